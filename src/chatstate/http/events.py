"""The handler of the change feed: server-sent events (WHATWG HTML, section 9.2).

The id of an event is the entity tag of the state in it, so that a client that comes back says by `Last-Event-ID` what
it knows. Nothing else has to be remembered for it: of all that it has missed, only the newest state matters.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from msgspec import Struct, json

from chatstate.errors import SessionNotFound, StoreUnavailable, TokenExpired, TooManyRequests, Unauthorized
from chatstate.http.api import STORE_PROBLEMS, Api, Endpoint
from chatstate.http.conditions import etag
from chatstate.http.gate import bearer, key_or_token
from chatstate.http.messages import Request, Response
from chatstate.http.states import SESSION
from chatstate.live import Change, Piece, Watcher
from chatstate.model import Session, format_time

MEDIA_TYPE = "text/event-stream"

HEARTBEAT_SECONDS = 15.0
"""How long nothing comes at most; proxies and clients take a longer silence for a broken connection."""

RETRY_MILLISECONDS = 2000
"""After what time an `EventSource` connects again."""

_HEARTBEAT = b":\n\n"


class ReplyEvent(Struct):
    """The data of an event that tells more of a reply that is being written; an empty id: none is any more."""

    id: str
    text: str
    continues: bool


class StateEvent(Struct):
    """The data of an event that tells the state."""

    chat_state: str
    last_activity: str
    version: int


async def watch(api: Api, request: Request) -> Response:
    """Watch a session: its state now, and from then on each newer one, as server-sent events: `state`, whose id is the
    `ETag`; `absent`, if there is none yet; `deleted`; `expired`. Who reads slowly gets the newest state only.
    """
    user_session_id = api.path_id(request)
    try:
        session = await api.sessions.load(user_session_id)
    except SessionNotFound:
        session = None
    # Nothing is awaited between this and the stream, which is counted: many at once are no more than may be.
    most = api.options.rates.watchers_per_session
    if most and api.gate.access.mode != "open" and api.live.count(user_session_id) >= most:
        raise TooManyRequests("As many watch this session as may (CHATSTATE_WATCHERS_PER_SESSION). Try again.", 5)
    watcher = api.live.watch(user_session_id, session)
    if request.version == "1.0":  # it knows no body that comes in pieces: it has to ask again and again
        watcher.close()
    begin = _begin(session, request.headers.get("last-event-id"))
    return Response(
        media_type=MEDIA_TYPE,
        headers={"x-accel-buffering": "no"},  # nginx would hold events back
        stream=_events(api, bearer(request.headers), watcher, begin),
        gone=watcher.close,
    )


def _begin(session: Session | None, known: str) -> bytes:
    """What is sent at once."""
    head = b"retry: %d\n\n" % RETRY_MILLISECONDS
    if session is None:
        return head + _event("deleted" if known else "absent")
    return head if known == etag(session.tag) else head + _event(session)


async def _events(api: Api, credential: str, watcher: Watcher, begin: bytes) -> AsyncGenerator[bytes, None]:
    with watcher:
        yield begin
        del begin  # what may be large is not held while nothing happens
        while True:
            change = await watcher.next(HEARTBEAT_SECONDS)
            if watcher.closed:
                return
            try:
                await api.gate.access.caller(credential)  # as for a request: it may have ended, or nobody can know
            except (Unauthorized, TokenExpired, StoreUnavailable):
                return
            yield _HEARTBEAT if change is None else _event(change)
            del change


def _event(change: Change | Piece | str) -> bytes:
    if isinstance(change, Piece):  # without an id: whoever comes back asks for states
        return b"event: reply\ndata: %b\n\n" % json.encode(ReplyEvent(*change))
    if isinstance(change, Session):
        data = StateEvent(change.chat_state, format_time(change.last_activity), change.version)
        return b"event: state\nid: %b\ndata: %b\n\n" % (etag(change.tag).encode(), json.encode(data))
    return b"event: %b\nid:\ndata: {}\n\n" % change.encode()


_TAG = "Live"

ENDPOINTS = (
    Endpoint(
        "GET",
        f"{SESSION}/events",
        key_or_token("read"),
        watch,
        _TAG,
        None,
        {200: MEDIA_TYPE},
        ("invalid_request", *STORE_PROBLEMS),
        ("LastEventID",),
    ),
)
