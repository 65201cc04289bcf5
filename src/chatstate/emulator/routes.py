"""What the emulator answers: the Graph API to the bot, and the page with what it needs to the browser."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import AsyncGenerator, Callable, Hashable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import json

from chatstate.emulator.actions import carry_out
from chatstate.emulator.graph import GraphError, Outgoing, ReadMark, parse
from chatstate.emulator.journal import Listener
from chatstate.emulator.media import BY_ID, SAMPLES
from chatstate.emulator.payloads import Person
from chatstate.errors import ChatStateError
from chatstate.http.browsers import Doors
from chatstate.http.messages import ClientGone, Request, Response
from chatstate.http.pages import static, tag_of
from chatstate.http.problems import nothing_here, problem, problem_response

if TYPE_CHECKING:
    from chatstate.emulator.app import Emulator

MOST_BYTES = 1 << 20
"""Of a request's body."""

HEARTBEAT_SECONDS = 15.0

_MESSAGES = re.compile(r"(?:/v\d+\.\d+)?/(\d+)/messages")
_OBJECT = re.compile(r"(?:/v\d+\.\d+)?/(\d+)")
_FILE = re.compile(r"/media/(\d+)")

_DOORS = Doors()
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing that stands in a message can run or load anything."""

_log = logging.getLogger(__name__)


class _File(NamedTuple):
    content: bytes
    media_type: str
    tag: str


_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_FILES = {
    file.name: _File(content, f"{_MEDIA_TYPES[file.name.rpartition('.')[2]]}; charset=utf-8", tag_of(content))
    for file in (files(__package__) / "page").iterdir()
    for content in [file.read_bytes()]
}


async def respond(emulator: Emulator, request: Request) -> Response:
    """The answer to any request. Only programs and pages of this machine are answered."""
    if refusal := _DOORS.refusal(request, "open"):
        return problem(refusal)
    try:
        return await _answer(emulator, request)
    except ChatStateError as error:
        return problem(error)
    except ClientGone:
        raise
    except Exception:
        _log.exception("a request failed in an unexpected way")
        return problem_response("internal_error", "This is a defect of the emulator; its log says more.")


async def _answer(emulator: Emulator, request: Request) -> Response:
    method, path = request.method, request.path
    if method == "POST" and (match := _MESSAGES.fullmatch(path)):
        return await _send(emulator, request, match[1])
    if method == "POST" and path == "/actions":
        await carry_out(emulator, request)
        return Response(204)
    if method in ("GET", "HEAD"):
        if match := _FILE.fullmatch(path) or _OBJECT.fullmatch(path):
            return _media(emulator, request, match[1], as_file=match.re is _FILE)
        return _page(emulator, request)
    return nothing_here()


# --- The Graph API ----------------------------------------------------------------------------------------------------


async def _send(emulator: Emulator, request: Request, phone_number_id: str) -> Response:
    body, what = await request.read(MOST_BYTES), "message"
    try:
        _check_token(emulator, request)
        if phone_number_id != emulator.account.phone_number_id:
            raise GraphError(100, "Unsupported post request. This account has no phone number with this ID.")
        wanted = parse(body)
        what = "read mark" if isinstance(wanted, ReadMark) else wanted.type
        answer = _carry_out(emulator, wanted)
    except GraphError as error:
        emulator.journal.call(what, emulator.clock(), body, error.status, f"{error}: {error.details}")
        return _refused(error)
    note = _MISDIRECTED if isinstance(wanted, Outgoing) and wanted.misdirected else ""
    emulator.journal.call(what, emulator.clock(), body, 200, note)
    return Response(200, json.encode(answer))


_MISDIRECTED = "A user id belongs into `recipient`. In `to` Meta takes it for a number, and delivers to nobody."


def _carry_out(emulator: Emulator, wanted: Outgoing | ReadMark) -> dict[str, Any]:
    if isinstance(wanted, ReadMark):
        emulator.mark_read(wanted)
        return {"success": True}
    sent, recipient = emulator.accept(wanted), wanted.recipient
    name = "wa_id" if recipient.by == "number" else "user_id"
    contact = {"input": recipient.given, name: recipient.value}
    return {"messaging_product": "whatsapp", "contacts": [contact], "messages": [{"id": sent.id}]}


def _media(emulator: Emulator, request: Request, media_id: str, as_file: bool) -> Response:
    try:
        _check_token(emulator, request)
        sample = BY_ID.get(media_id)
        if sample is None:
            raise GraphError(100, "Unsupported get request. There is no object with this ID.")
    except GraphError as error:
        emulator.journal.call("media", emulator.clock(), b"", error.status, f"{error}: {error.details}")
        return _refused(error)
    emulator.journal.call("media file" if as_file else "media", emulator.clock(), b"", 200)
    if as_file:
        return Response(200, sample.content, sample.media_type)
    return Response(200, json.encode(sample.described(f"{emulator.url}/media/{sample.id}")))


def _check_token(emulator: Emulator, request: Request) -> None:
    scheme, _, token = request.headers.get("authorization").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise GraphError(104)
    if not hmac.compare_digest(token.encode("latin-1"), emulator.account.access_token.encode()):
        raise GraphError(190)


def _refused(error: GraphError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return Response(error.status, error.body(), headers=headers)


# --- The page ---------------------------------------------------------------------------------------------------------


def _page(emulator: Emulator, request: Request) -> Response:
    _, first, *rest = request.path.split("/")
    name = rest[0] if len(rest) == 1 else ""
    if request.path == "/":
        return Response(200, _FILES["page.html"].content, _FILES["page.html"].media_type, policy=_POLICY)
    if first == "page" and name in _FILES:
        return static(request, *_FILES[name])
    if first == "samples" and name in SAMPLES:
        sample = SAMPLES[name]
        return static(request, sample.content, sample.media_type, tag_of(sample.content))
    if (
        first == "entries"
        and name.isascii()
        and name.isdigit()
        and (entry := emulator.journal.entries.get(int(name[:9])))
    ):
        return Response(200, entry.body.encode(), "text/plain; charset=utf-8")
    if first == "events" and not rest:
        return _events(emulator)
    return nothing_here()


def _events(emulator: Emulator) -> Response:
    """All there is to see, and from then on what changes, as server-sent events (WHATWG HTML, section 9.2)."""
    listener = emulator.feed.listen()
    listener.add("state")
    for person, chat in emulator.journal.chats.items():
        for message_id in chat:
            listener.add(("bubble", person, message_id))
    for number in emulator.journal.entries:
        listener.add(("entry", number))
    return Response(media_type="text/event-stream", stream=_stream(emulator, listener), gone=listener.close)


async def _stream(emulator: Emulator, listener: Listener) -> AsyncGenerator[bytes, None]:
    try:
        yield b"retry: 1000\n\nevent: begin\ndata: {}\n\n"
        while True:
            changed = await listener.next(HEARTBEAT_SECONDS)
            if listener.closed:
                return
            yield b"".join(_event(emulator, key) for key in changed) or b":\n\n"
    finally:
        listener.close()


def _event(emulator: Emulator, key: Hashable) -> bytes:
    name, *what = key if isinstance(key, tuple) else (key,)
    data = _DATA[name](emulator, *what)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.encode(data)) if data else b""


def _state(emulator: Emulator) -> dict[str, Any]:
    network, limits = emulator.network, emulator.limits
    return {
        "number": emulator.account.number,
        "identities": emulator.identities,
        "reads": emulator.reads,
        "limits": limits,
        "persons": [_person(emulator, person) for person in emulator.persons],
        "failing": {"times": len(emulator.failing), "code": emulator.failing[0][0].code if emulator.failing else 0},
        "network": {
            "url": network.url,
            "webhook": network.webhook,
            "holding": network.holding,
            "held": len(network.held),
            "outstanding": network.outstanding,
            "duplicates": network.duplicates,
        },
    }


def _person(emulator: Emulator, person: Person) -> dict[str, Any]:
    known = {name: getattr(person, name) for name in person.__struct_fields__}
    return {**known, "blocked": person.key in emulator.blocked, "typing": person.key in emulator.typing}


def _bubble(emulator: Emulator, person: str, message_id: str) -> dict[str, Any] | None:
    bubble = emulator.journal.chats.get(person, {}).get(message_id)
    return {"person": person, "bubble": bubble} if bubble else None


def _entry(emulator: Emulator, number: int) -> dict[str, Any] | None:
    entry = emulator.journal.entries.get(number)
    return entry.summary() if entry else None


_DATA: dict[str, Callable[..., dict[str, Any] | None]] = {
    "state": _state,
    "bubble": _bubble,
    "entry": _entry,
    "typing": lambda emulator, person: {"person": person, "typing": person in emulator.typing},
}
