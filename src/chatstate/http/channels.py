"""The handlers of channels: what people write on web pages, and going on with a session on another channel."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated
from urllib.parse import quote

from msgspec import Meta, Raw, Struct

from chatstate.bot import Message as BotMessage
from chatstate.errors import BotNotFound, ChannelNotFound, Forbidden, LinkNotFound, SessionNotFound, TooManyRequests
from chatstate.http.api import BODY_PROBLEMS, STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import key_or_token
from chatstate.http.links import check_issuer, grant_of, qr_code
from chatstate.http.messages import Request, Response
from chatstate.http.shapes import ID_SCHEMA, Message
from chatstate.http.states import SESSION, SESSIONS
from chatstate.http.wire import Findings, Member, answer, encode_id, read_body, read_id, read_text
from chatstate.model import format_time
from chatstate.people import Person

MOST_TEXT = 1 << 15
"""The longest message from a web page, in bytes of UTF-8."""

_MOST_BYTES = 2 * MOST_TEXT + 4096


class MessageBody(Struct):
    """A message from a web page."""

    id: Annotated[
        Raw,
        Meta(
            description="What names it, within the session: the client draws it, and sends it again with a retry.",
            examples=["0b9d4ad6-2c38-4f6c-9d0b-6a1f1f6a8a55"],
            extra_json_schema=ID_SCHEMA,
        ),
    ]
    text: Annotated[
        Raw,
        Meta(
            description="What the person has typed, or the title of the choice that they have made.",
            examples=["Hello"],
            # It is not white space alone. What is longer in bytes than in characters may be shorter than this.
            extra_json_schema={
                "type": "string",
                "minLength": 1,
                "maxLength": MOST_TEXT,
                "pattern": r"^[^\u0000]*[^\s\u0000\u001c-\u001f\u0085][^\u0000]*$",
            },
        ),
    ]


class AcceptedMessage(Struct):
    """A message that is kept, and will be answered. The answer comes with the change feed, in the state."""

    id: Annotated[str, Meta(description="As it was sent.")]
    duplicate: Annotated[bool, Meta(description="Whether it was known already; then nothing has changed.")]


class IssuedChannelLink(Struct):
    """A way to go on with the session on a channel: the person sends the code there, which works once."""

    id: Annotated[str, Meta(description="Of the link, for `GET …/links/{link}`.", examples=["BCDF"])]
    code: Annotated[str, Meta(description="What the person sends.", examples=["BCDF-GHJK"])]
    url: Annotated[
        str,
        Meta(
            description="Opens the chat there, with the code typed in.",
            examples=["https://wa.me/15550783881?text=BCDF-GHJK"],
        ),
    ]
    number: Annotated[
        str,
        Meta(
            description="To be shown: whoever has a chat on the channel already is asked for it there.", examples=["47"]
        ),
    ]
    expires_at: Annotated[
        str, Meta(description="Until when the code works (RFC 3339).", extra_json_schema={"format": "date-time"})
    ]
    qr_svg: Annotated[str, Meta(description="The address as a QR code, an SVG image.")]


class LinkedPerson(Struct):
    """Somebody who goes on with the session on a channel."""

    id: Annotated[str, Meta(description="What names them here. It says nothing of who they are.")]
    channel: Annotated[str, Meta(description="Where.", examples=["whatsapp"])]
    linked_at: Annotated[str, Meta(description="Since when.", extra_json_schema={"format": "date-time"})]


class ChannelList(Struct):
    """Who goes on with a session elsewhere."""

    channels: Annotated[list[LinkedPerson], Meta(description="None: nobody does.")]


async def say(api: Api, request: Request) -> Response:
    """Say something to the bot, from a web page. The answer comes with the change feed."""
    user_session_id = api.path_id(request)
    body = await read_body(request, MessageBody, _MOST_BYTES)
    findings = Findings()
    message_id = findings.of("id", read_id, body.id)
    text = findings.of("text", _read_said, body.text)
    findings.raise_if_any()
    if api.options.bot is None:
        raise BotNotFound
    if not request.caller.within.covers(user_session_id):
        raise SessionNotFound
    if await api.inbox.is_full(user_session_id):
        raise TooManyRequests("As many messages wait for an answer in this session as may. Try again later.", 5)
    is_new = await api.inbox.say(user_session_id, BotMessage(message_id, api.clock(), text))
    return answer(AcceptedMessage(message_id, not is_new), 202)


def _read_said(raw: Member) -> str:
    text = read_text(raw)
    if not text.strip():
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not contain U+0000, which no store can keep")
    if len(text.encode()) > MOST_TEXT:
        raise ValueError(f"must have at most {MOST_TEXT} bytes of UTF-8")
    return text


async def issue_whatsapp_link(api: Api, request: Request) -> Response:
    """Make a link by which a person goes on with the session on WhatsApp: a chat opens there, with a code typed in."""
    grant = grant_of(api, request.caller)
    for scope in ("read", "write"):  # whoever goes on there does both
        if scope not in grant.verbs:
            raise Forbidden(f"Going on on a channel takes the scopes `read` and `write`; `{scope}` is missing.", scope)
    account = api.options.whatsapp
    if not (account.app_secret and account.number):
        raise ChannelNotFound("This server has no WhatsApp number to go on with (CHATSTATE_WHATSAPP_NUMBER).")
    now, user_session_id = api.clock(), api.path_id(request)
    session = await api.sessions.load(user_session_id)
    device = device_name(request.headers.get("user-agent"))
    made = await api.links.issue_for_channel(user_session_id, session.session_id, grant, device, now)
    url = f"https://wa.me/{account.number}?text={quote(made.code)}"
    link = made.link
    issued = IssuedChannelLink(link.id, made.code, url, link.number, format_time(link.expires_at), qr_code(url))
    location = f"{request.mount}{SESSIONS}/{encode_id(user_session_id)}/links/{link.id}"
    return answer(issued, 201, {"location": location})


async def list_channels(api: Api, request: Request) -> Response:
    """List who goes on with the session on a channel, because of a link."""
    check_issuer(request.caller)
    user_session_id = api.path_id(request)
    await api.sessions.load(user_session_id)
    people = await api.inbox.people.linked(user_session_id, api.clock())
    return answer(ChannelList([_linked(person_id, person) for person_id, person in people.items()]))


def _linked(person_id: str, person: Person) -> LinkedPerson:
    return LinkedPerson(person_id, person.channel, format_time(person.linked_at) if person.linked_at else "")


async def unlink(api: Api, request: Request) -> Response:
    """End that somebody goes on with the session on a channel. They go on there with what is theirs alone."""
    check_issuer(request.caller)
    user_session_id, person_id = api.path_id(request), request.params["person"]
    person = (await api.inbox.people.linked(user_session_id, api.clock())).get(person_id)
    if person is None:
        raise ChannelNotFound
    with suppress(LinkNotFound):  # it is forgotten already
        link = await api.links.find(user_session_id, person.link_id, api.clock())
        await api.links.void(user_session_id, link, api.clock())
    await api.inbox.people.unlink(person_id, api.clock())
    return answer(Message("Unlinked"))


_BROWSERS = (("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "Mac"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)
_LONGEST_AGENT = 1000


def device_name(user_agent: str) -> str:
    """A browser in a few words of ours: what it says of itself reaches other people, who must not be told anything."""
    agent = re.sub(r"\s+", " ", user_agent[:_LONGEST_AGENT])
    browser = next((name for sign, name in _BROWSERS if sign in agent), "")
    system = next((name for sign, name in _SYSTEMS if sign in agent), "")
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or "another program"


_TAG = "Channels"

ENDPOINTS = (
    Endpoint(
        "POST",
        f"{SESSION}/messages",
        key_or_token("write"),
        say,
        _TAG,
        MessageBody,
        {202: AcceptedMessage},
        ("session_not_found", "bot_not_found", *BODY_PROBLEMS, *STORE_PROBLEMS),
    ),
    Endpoint(
        "GET",
        f"{SESSION}/channels",
        key_or_token(None),
        list_channels,
        _TAG,
        None,
        {200: ChannelList},
        ("invalid_request", "session_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "POST",
        f"{SESSION}/channels/whatsapp/links",
        key_or_token(None),
        issue_whatsapp_link,
        _TAG,
        None,
        {201: IssuedChannelLink},
        ("invalid_request", "session_not_found", "channel_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "DELETE",
        f"{SESSION}/channels/{{person}}",
        key_or_token(None),
        unlink,
        _TAG,
        None,
        {200: Message},
        ("invalid_request", "channel_not_found", *STORE_PROBLEMS),
    ),
)
