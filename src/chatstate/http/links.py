"""The handlers of links: going on with a session on another device.

Whoever fetches an address must not use it up, as scanners of mail and messengers do: the secret stands in the fragment,
which no request carries, and only a POST redeems.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from io import BytesIO
from typing import Annotated
from urllib.parse import unquote

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from chatstate.access import Caller
from chatstate.errors import Forbidden, LinkNotFound, SessionNotFound, TokenExpired
from chatstate.http.api import BODY_PROBLEMS, STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import Credential, key_or_token
from chatstate.http.messages import Request, Response
from chatstate.http.shapes import Message
from chatstate.http.states import SESSION, SESSIONS
from chatstate.http.tokens import DEFAULT_VERBS
from chatstate.http.wire import Findings, Member, answer, encode_id, read_body, read_text, read_whole_number
from chatstate.links import ALPHABET, LONGEST_LINK, Grant, Link, Status
from chatstate.model import Within, check_page, format_time, origin_of
from chatstate.tokens import Claims, expiry_of

LINKS = "/links"

_MOST_BYTES = 1 << 14
_MOST_DEVICE = 200
_MOST_HANDED_ON = 8
"""How many links may lie between a token and the first one: each must be named in it, to be taken back."""

_LONGEST = int(LONGEST_LINK.total_seconds())


class LinkBody(Struct):
    """Which link is wanted. All members may be absent."""

    page: (
        Annotated[
            Raw,
            Meta(
                description=(
                    "The page that the link leads to: of this server, or of one that may call it. Absent: what "
                    "CHATSTATE_LINK_PAGE says, else the chat page of this server, where it has one."
                ),
                extra_json_schema={"type": "string", "format": "uri"},
            ),
        ]
        | UnsetType
    ) = UNSET
    ttl_seconds: (
        Annotated[
            Raw,
            Meta(
                description="For how long it can be redeemed.",
                extra_json_schema={"type": "integer", "minimum": 1, "maximum": _LONGEST, "default": _LONGEST},
            ),
        ]
        | UnsetType
    ) = UNSET
    qr: (
        Annotated[
            Raw,
            Meta(
                description="Whether the answer has the link as a picture, too (a QR code).",
                examples=[True],
                extra_json_schema={"type": "boolean", "default": False},
            ),
        ]
        | UnsetType
    ) = UNSET


_LinkId = Annotated[
    str,
    Meta(
        description="The first half of its code, which is no secret.", examples=["BCDF"], pattern=f"^[{ALPHABET}]{{4}}$"
    ),
]
_TIME = {"format": "date-time"}
_ExpiresAt = Annotated[
    str, Meta(description="From when on it cannot be redeemed any more (RFC 3339).", extra_json_schema=_TIME)
]


class IssuedLink(Struct):
    """A new link. Its code and its address are shown this once; each redeems it."""

    code: Annotated[str, Meta(description="For people to type.", examples=["BCDF-GHJK"])]
    url: Annotated[str, Meta(description="The page, with a secret behind `#link=`, which goes to no server.")]
    expires_at: _ExpiresAt
    qr_svg: (
        Annotated[str, Meta(description="The address as a QR code, an SVG image; if it was asked for.")] | UnsetType
    ) = UNSET


class LinkRecord(Struct):
    """What became of a link."""

    id: _LinkId
    created_at: Annotated[str, Meta(description="When it was made.", extra_json_schema=_TIME)]
    expires_at: _ExpiresAt
    status: Annotated[
        Status,
        Meta(description="`void`: it was taken back, was tried too often, or newer ones took its place."),
    ]
    redeemed_at: Annotated[str, Meta(description="When it was redeemed.", extra_json_schema=_TIME)] | UnsetType = UNSET
    device: (
        Annotated[
            str,
            Meta(description="Who has redeemed it, as they say (User-Agent), or which channel. Text, never HTML."),
        ]
        | UnsetType
    ) = UNSET


class LinkList(Struct):
    """The links of a session that are remembered."""

    links: Annotated[list[LinkRecord], Meta(description="Newest first.")]


class Redeemed(Struct):
    """A session token for the session that the link is for."""

    user_session_id: Annotated[str, Meta(description="The session.")]
    token: Annotated[str, Meta(description="What the browser sends as `Authorization: Bearer …`.")]
    expires_at: Annotated[str, Meta(description="From when on the token is void (RFC 3339).", extra_json_schema=_TIME)]


async def issue_link(api: Api, request: Request) -> Response:
    """Make a link, by which a person goes on with the session on another device. It is redeemed once."""
    grant = grant_of(api, request.caller)
    body = await read_body(request, LinkBody, _MOST_BYTES) if await request.read(_MOST_BYTES) else LinkBody()
    findings = Findings()
    page = findings.of("page", _read_page, api, request, body.page)
    seconds = findings.of("ttl_seconds", _read_ttl, body.ttl_seconds)
    with_qr = findings.of("qr", _read_switch, body.qr)
    findings.raise_if_any()
    now, user_session_id = api.clock(), api.path_id(request)
    session = await api.sessions.load(user_session_id)
    made = await api.links.issue(user_session_id, session.session_id, grant, now, timedelta(seconds=seconds))
    url = f"{page}#link={made.token}"
    issued = IssuedLink(made.code, url, format_time(made.link.expires_at), qr_code(url) if with_qr else UNSET)
    location = f"{request.mount}{SESSIONS}/{encode_id(user_session_id)}/links/{made.link.id}"
    return answer(issued, 201, {"location": location})


def grant_of(api: Api, caller: Caller) -> Grant:
    """What a token of this caller's would say now. Nobody hands on what they do not have."""
    longest = api.options.token_renewable.total_seconds()
    if claims := caller.claims:
        if api.clock().timestamp() >= int(claims.auth_time) + int(longest):
            raise TokenExpired("The session token has been renewed for as long as this server allows. Get a new one.")
        if len(claims.links) >= _MOST_HANDED_ON:
            raise Forbidden("This session has been handed on too often. Make the link where the chat was begun.")
        return Grant(claims.verbs, claims.auth_time, claims.azp, claims.auth_time + longest, claims.links)
    check_issuer(caller)
    verbs = tuple(verb for verb in DEFAULT_VERBS if verb in caller.scopes)
    if not verbs:
        raise Forbidden("This API key lacks the scope `read`, so it cannot give it to a token.", "read")
    now = api.clock().timestamp()
    return Grant(verbs, now, caller.key_id, now + longest)


def check_issuer(caller: Caller) -> None:
    """Who may make links may see them, and take them back."""
    if not caller.claims and "mint" not in caller.scopes:
        raise Forbidden("This API key lacks the scope `mint`.", "mint")


async def list_links(api: Api, request: Request) -> Response:
    """List the links of a session, newest first: those that can be redeemed, and what became of the others."""
    check_issuer(request.caller)
    user_session_id = api.path_id(request)
    await api.sessions.load(user_session_id)
    now = api.clock()
    return answer(LinkList([link_record(link, now) for link in await api.links.all(user_session_id, now)]))


async def load_link(api: Api, request: Request) -> Response:
    """Load what became of a link: whether it was redeemed, when, and from what device."""
    check_issuer(request.caller)
    user_session_id, now = api.path_id(request), api.clock()
    return answer(link_record(await api.links.find(user_session_id, request.params["link"], now), now))


async def take_back_link(api: Api, request: Request) -> Response:
    """Take a link back: it cannot be redeemed any more, and what it has given is void, with all renewals; and whoever
    goes on on a channel because of it does so no more."""
    check_issuer(request.caller)
    user_session_id, now = api.path_id(request), api.clock()
    link = await api.links.find(user_session_id, request.params["link"], now)
    # In this order: if it is broken off here, or redeemed meanwhile, the token is void all the same.
    await api.gate.access.tokens.revoke_link(link.handle, now)
    await api.links.void(user_session_id, link, now)
    for person_id, person in (await api.inbox.people.linked(user_session_id, now)).items():
        if link.purpose == "channel" and person.link_id == link.id:
            await api.inbox.people.unlink(person_id, now)
    return answer(Message("Link taken back"))


async def redeem_link(api: Api, request: Request) -> Response:
    """Redeem a link, by its code or by what stands behind `#link=` in its address. It works once."""
    with api.gate.guess(request):
        now = api.clock()
        user_session_id, link = await api.links.match(_code(request), now)
        claims = claims_of(api, user_session_id, link)
        if not (await _is_there(api, user_session_id, link) and await api.gate.access.holds(claims)):
            raise LinkNotFound
        token = await api.gate.access.tokens.mint(claims, now)
        await api.links.redeem(user_session_id, link, now, _device(request))
    # For the audit log.
    request.session = user_session_id
    request.caller = Caller("link", frozenset(claims.verbs), Within(only=user_session_id), claims.azp, claims)
    return answer(Redeemed(user_session_id, token, format_time(expiry_of(claims))))


def _code(request: Request) -> str:
    """The text in the path. What is no text is no code."""
    return unquote(request.params["code"])


async def _is_there(api: Api, user_session_id: str, link: Link) -> bool:
    """Whether the session is still the one that the link was made for."""
    try:
        return (await api.sessions.load(user_session_id)).session_id == link.session_id
    except SessionNotFound:
        return False


def claims_of(api: Api, user_session_id: str, link: Link) -> Claims:
    """What the redeemer's token says. Its `auth_time` is that of its issuer's token, or of the link if that is an API
    key: so whatever makes void what the issuer could have had does that, and links do not prolong the renewals."""
    grant, now = link.grant, api.clock().timestamp()
    expires = min(int(now) + int(api.options.token_ttl.total_seconds()), int(grant.renewable_until))
    links = (*grant.links, link.handle)
    return Claims(user_session_id, grant.verbs, now, expires, grant.auth_time, grant.azp, links)


def _device(request: Request) -> str:
    return "".join(filter(str.isprintable, request.headers.get("user-agent")))[:_MOST_DEVICE]


def link_record(link: Link, now: datetime) -> LinkRecord:
    """A link as its issuer sees it."""
    created_at, expires_at = format_time(link.created_at), format_time(link.expires_at)
    record = LinkRecord(link.id, created_at, expires_at, link.status(now))
    if link.redeemed_at:
        record.redeemed_at, record.device = format_time(link.redeemed_at), link.device
    return record


def _read_page(api: Api, request: Request, raw: Member) -> str:
    """The page that the link leads to: else a link of ours could lead to a page that only looks like ours."""
    if raw is UNSET:
        return _default_page(api, request)
    page = read_text(raw)
    check_page(page)
    own = origin_of(request.base_url)
    if origin_of(page) != own and not api.options.doors.is_page(origin_of(page), api.gate.access.mode):
        raise ValueError("must be a page of this server, or of one of --allowed-origins (CHATSTATE_ALLOWED_ORIGINS)")
    return page


def _default_page(api: Api, request: Request) -> str:
    if api.options.link_page:
        return api.options.link_page
    if api.options.demo or api.gate.access.mode == "open":
        return f"{request.base_url}/demo"
    raise ValueError("is required, as this server has no chat page of its own. A default: CHATSTATE_LINK_PAGE")


def _read_ttl(raw: Member) -> int:
    if raw is UNSET:
        return _LONGEST
    seconds = read_whole_number(raw)
    if seconds is None or not 1 <= seconds <= _LONGEST:
        raise ValueError(f"must be a whole number of seconds from 1 to {_LONGEST}")
    return seconds


def _read_switch(raw: Member) -> bool:
    if raw is UNSET:
        return False
    if isinstance(raw, str) or bytes(raw) not in (b"true", b"false"):
        raise ValueError("must be true or false")
    return bytes(raw) == b"true"


def qr_code(url: str) -> str:
    """The address as an image, of any size, for people who see it and those who have it read out."""
    import segno  # noqa: PLC0415 (few servers need it)

    image = BytesIO()
    segno.make(url, error="m", micro=False).save(
        image, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, svgns=True, omitsize=True, nl=False,
        title="QR code: continue on another device", svgclass=None, lineclass=None,
    )  # fmt: skip
    return image.getvalue().decode().replace("<svg ", '<svg role="img" ', 1)


_TAG = "Links"

ENDPOINTS = (
    Endpoint(
        "POST",
        f"{SESSION}/links",
        key_or_token(None),
        issue_link,
        _TAG,
        LinkBody,
        {201: IssuedLink},
        ("session_not_found", *BODY_PROBLEMS, *STORE_PROBLEMS),
        may_be_empty=True,
    ),
    Endpoint(
        "GET",
        f"{SESSION}/links",
        key_or_token(None),
        list_links,
        _TAG,
        None,
        {200: LinkList},
        ("invalid_request", "session_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "GET",
        f"{SESSION}/links/{{link}}",
        key_or_token(None),
        load_link,
        _TAG,
        None,
        {200: LinkRecord},
        ("invalid_request", "link_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "DELETE",
        f"{SESSION}/links/{{link}}",
        key_or_token(None),
        take_back_link,
        _TAG,
        None,
        {200: Message},
        ("invalid_request", "link_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "POST",
        f"{LINKS}/{{code}}",
        Credential("link_code"),
        redeem_link,
        _TAG,
        None,
        {200: Redeemed},
        ("link_not_found", "too_many_requests", *STORE_PROBLEMS),
    ),
)
