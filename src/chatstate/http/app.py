"""The application: a store behind the routes, as an ASGI app that also mounts inside another application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

from chatstate.access import NOBODY, Access
from chatstate.errors import ChatStateError, InvalidSetting, KeysRequired, StoreUnavailable
from chatstate.http.api import Api, Options
from chatstate.http.audit import AuditLog
from chatstate.http.browsers import Doors, allow_origin, preflight
from chatstate.http.gate import Gate, Rates
from chatstate.http.messages import ClientGone, Headers, Request, Response
from chatstate.http.problems import problem, problem_response
from chatstate.http.proxies import client_scheme, peer_address
from chatstate.http.routes import ENDPOINTS, Routes, encode_path
from chatstate.http.wire import Limits
from chatstate.links import LONGEST_KEPT, Links
from chatstate.live import Live
from chatstate.model import LONGEST_TTL, retention_of, utc_now
from chatstate.privacy import Privacy, audit_key, digest_key
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.stores.encrypted import EncryptedStore
from chatstate.sweeper import Sweeper
from chatstate.visits import Visits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_METHODS = ", ".join(sorted({endpoint.method for endpoint in ENDPOINTS}))

_log = logging.getLogger(__name__)


class ChatState:
    """The application. Its `lifespan` opens the store, and at the end answers what was accepted and closes it."""

    def __init__(self, store: Store, clock: Callable[[], datetime], options: Options) -> None:
        rates = options.rates
        if options.allow_anonymous and not (options.doors.origins and rates.per_address and rates.per_session):
            raise InvalidSetting(ANONYMOUS_WANTS)
        self.store = store
        self.started = False
        self.access = Access(store, clock, options.allow_anonymous)
        self._clock = clock
        self._options = options
        self._gate = Gate(self.access, rates, options.trusted_proxies)
        self._sessions = Sessions(store, clock, options.retention)
        self._visits = Visits(store, clock)
        self._sweeper = Sweeper(store, clock, options.retention)
        self._audit: AuditLog | None = None
        links = Links(store, min(LONGEST_KEPT, options.retention.visits or LONGEST_KEPT))
        privacy = Privacy(self._sessions, self._visits, self.access.tokens, links)
        self._live = Live(store, self._sessions, clock, options.retention)
        self._api = Api(self._sessions, self._visits, privacy, links, self._live, store, options, self._gate, clock)
        self._routes = Routes(self._api)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """For applications that mount this one: `FastAPI(lifespan=chatstate.lifespan)`. Mounted, it gets none."""
        try:
            await self._start()
            tasks = [asyncio.create_task(work) for work in (self._sweeper.run(), self.access.run(), self._live.run())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                with suppress(ChatStateError):  # nobody waits for it
                    await self.access.record_uses()
        finally:
            self._live.end()
            await asyncio.gather(self._sessions.drain(), self._visits.drain())
            await self.store.close()

    async def _start(self) -> None:
        await self.store.open()
        await self.store.migrate()
        if isinstance(self.store, EncryptedStore):
            await self.store.check_keys(self._clock())
            if self.store.ring.newest:
                self._api.digest_key = await digest_key(self.store, self._clock())
        if self._options.first_key and (key := await self.access.keys.create_first(self._clock())):
            self._options.first_key(key)
        await self.access.refresh()
        self._live.start()
        if self._options.require_keys and self.access.mode == "open":
            raise KeysRequired
        if self._options.audit:
            self._audit = AuditLog(self._options.audit, await audit_key(self.store, self._clock()), self._clock)
        self.started = True

    def end_streams(self) -> None:
        """Let those end who listen to changes: the server is about to end, and waits for all answers."""
        self._live.end()

    async def respond(self, request: Request) -> Response:
        """The answer to any request. Raises only `ClientGone`."""
        request.scheme = client_scheme(request.client, request.headers, self._gate.trusted, request.scheme)
        error = self._options.doors.refusal(request, self.access.mode)
        if error:
            return problem(error)
        response = preflight(request, _METHODS) or await self._handled(request)
        allow_origin(response, request.headers)
        if self._audit and request.action and (request.caller is not NOBODY or response.problem):
            self._audit.record(request, response, self._gate.address(request))
        return response

    async def _handled(self, request: Request) -> Response:
        try:
            return await self._routes.respond(request)
        except ChatStateError as error:
            if isinstance(error, StoreUnavailable) and not self.started:
                return problem(StoreUnavailable(_NOT_STARTED))
            return problem(error)
        except ClientGone:
            raise
        except Exception:
            _log.exception("a request failed in an unexpected way")
            return problem_response("internal_error", "This is a defect of chatstate; its log says more.")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI interface (https://asgi.readthedocs.io, version 3)."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"chatstate does not speak {scope['type']}")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            response = await self.respond(_request(scope, receive))
        except ClientGone:
            response = Response(400)  # nobody is there to read it
        if response.stream is not None and scope.get("http_version") == "1.0":  # it knows no chunks
            pieces, response.stream = response.stream, None
            response.body = b"".join([piece async for piece in pieces])
        fields = [line.split(b": ", 1) for line in response.head().encode("latin-1").splitlines()]
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        if response.stream is not None and scope["method"] != "HEAD":
            await _stream(response, response.stream, receive, send)
        await send({"type": "http.response.body", "body": response.body})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            phase = "shutdown" if self.started else "startup"
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _request(scope: Message, receive: Receive) -> Request:
    mounted: str = scope.get("root_path", "")
    path: str = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else encode_path(scope["path"])
    path = _below(mounted, path)
    return Request(
        scope["method"],
        path,
        Headers(scope["headers"]),
        _chunks(receive),
        query=scope.get("query_string", b"").decode("latin-1"),
        mount=encode_path(mounted),
        scheme=scope.get("scheme", "http"),
        client=peer_address(scope.get("client")),
        version=scope.get("http_version", "1.1"),
    )


async def _stream(response: Response, pieces: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Send a body as it comes, until the client has gone: then ASGI servers take the rest without a word."""
    gone = asyncio.create_task(_disconnected(receive))
    if when_gone := response.gone:
        gone.add_done_callback(lambda _: when_gone())
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    return
                del piece  # it may be large, and the next one long in coming
    finally:
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _below(mounted: str, path: str) -> str:
    """The raw path without the place of the mount, or without the end of it: proxies may have taken off the rest."""
    names, segments = mounted.split("/")[1:], path.split("/")[1:]
    for number in range(len(names), 0, -1):
        if unquote("/".join(segments[:number])) == "/".join(names[-number:]):
            return "/" + "/".join(segments[number:])
    return path


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def create_app(
    store: Store,
    *,
    max_state_bytes: int = 1 << 20,
    require_json: bool = False,
    require_preconditions: bool = False,
    history: int = 0,
    idle_expiry_seconds: int | None = None,
    retention_days: int | None = None,
    keep_visits: bool = False,
    demo: bool = False,
    link_page: str | None = None,
    allow_anonymous: bool = False,
    allowed_origins: Collection[str] = (),
    allowed_hosts: Collection[str] = (),
    trusted_proxies: Collection[str] = (),
    rates: Rates = Rates(),  # noqa: B008 (frozen)
    token_ttl_seconds: int = 3600,
    token_renewable_days: int = 30,
    audit: Callable[[str], None] | None = None,
    require_keys: bool = False,
    first_key: Callable[[str], None] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> ChatState:
    """An ASGI application that serves the sessions of this store.

    max_state_bytes        the largest state, in bytes of UTF-8
    require_json, require_preconditions: refuse states that are not JSON, and writes without If-Match or If-None-Match
    history                how many versions of each session are kept; 0: the current one alone
    idle_expiry_seconds    how long after its last write a session expires that has no expiry of its own
    retention_days         how long anything is kept: sessions after their last write, visits after their creation
    keep_visits            deleting a session leaves its visits
    demo, link_page: show the chat page at /demo also when there are keys; where links lead, if no page is named
    allow_anonymous        let callers without a credential use the routes that the replaced service had
    allowed_origins, allowed_hosts: origins of pages that may call, and names of this server without a credential
    trusted_proxies        networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed
    rates                  how many requests are answered once there are keys
    token_ttl_seconds, token_renewable_days: how long a session token is valid (up to a day), and can be renewed
    audit                  takes each line of the audit log
    require_keys, first_key: refuse to start without an API key; takes the one that is made if there is none yet
    clock                  gives the time, aware and in UTC
    """
    options = Options(
        limits=Limits(state_bytes=max_state_bytes, require_json=require_json),
        retention=retention_of(history, idle_expiry_seconds, retention_days),
        doors=Doors(frozenset(map(str.lower, allowed_origins)), frozenset(map(str.lower, allowed_hosts))),
        rates=rates,
        trusted_proxies=tuple(trusted_proxies),
        allow_anonymous=allow_anonymous,
        require_preconditions=require_preconditions,
        token_ttl=min(timedelta(seconds=token_ttl_seconds), LONGEST_TTL),
        token_renewable=timedelta(days=token_renewable_days),
        keep_visits=keep_visits,
        demo=demo,
        link_page=link_page,
        audit=audit,
        require_keys=require_keys,
        first_key=first_key,
    )
    return ChatState(store, clock, options)


ANONYMOUS_WANTS = (
    "--allow-anonymous lets everybody in who reaches this server, so it wants the list of pages that may call "
    "(--allowed-origins https://chat.example.org), and limits that are not 0 (--rate-per-address, --rate-per-session)."
)

_NOT_STARTED = (
    "chatstate has not started, because nothing has run its lifespan. An application that mounts it must: "
    "`FastAPI(lifespan=chatstate.lifespan)`; and uvicorn must not run with `--lifespan off`."
)
