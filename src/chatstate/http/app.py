"""The application: a store behind the routes, as an ASGI app that also mounts inside another application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

from chatstate.errors import ChatStateError, StoreUnavailable
from chatstate.http.api import Api
from chatstate.http.browsers import allow_origin, preflight, refusal
from chatstate.http.messages import ClientGone, Headers, Request, Response, peer_address
from chatstate.http.problems import problem, problem_response
from chatstate.http.routes import ENDPOINTS, Routes, encode_path
from chatstate.http.wire import Limits
from chatstate.model import Retention, utc_now
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.sweeper import Sweeper
from chatstate.visits import Visits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_METHODS = ", ".join(sorted({endpoint.method for endpoint in ENDPOINTS}))

_log = logging.getLogger(__name__)


class ChatState:
    """The application. Its `lifespan` opens the store, and at the end answers what was accepted and closes it."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        clock: Callable[[], datetime],
        retention: Retention,
        require_preconditions: bool,
    ) -> None:
        self.store = store
        self.started = False
        self._sessions = Sessions(store, clock, retention)
        self._visits = Visits(store, clock)
        self._sweeper = Sweeper(store, clock, retention)
        self._routes = Routes(Api(self._sessions, self._visits, store, limits, require_preconditions))

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """For applications that mount this one: `FastAPI(lifespan=chatstate.lifespan)`. Mounted, it gets none."""
        try:
            await self.store.open()
            await self.store.migrate()
            self.started = True
            sweeping = asyncio.create_task(self._sweeper.run())
            try:
                yield
            finally:
                sweeping.cancel()
        finally:
            await asyncio.gather(self._sessions.drain(), self._visits.drain())
            await self.store.close()

    async def respond(self, request: Request) -> Response:
        """The answer to any request. Raises only `ClientGone`."""
        error = refusal(request.headers)
        if error:
            return problem(error)
        response = preflight(request, _METHODS) or await self._handled(request)
        allow_origin(response, request.headers)
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
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"chatstate does not speak {scope['type']}")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            response = await self.respond(_request(scope, receive))
        except ClientGone:
            response = Response(400)  # nobody is there to read it
        fields = [line.split(b": ", 1) for line in response.head().encode("latin-1").splitlines()]
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        await send({"type": "http.response.body", "body": response.body})

    async def _live(self, receive: Receive, send: Send) -> None:
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
    )


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
    clock: Callable[[], datetime] = utc_now,
) -> ChatState:
    """An ASGI application that serves the sessions of this store.

    max_state_bytes        the largest state, in bytes of UTF-8
    require_json           refuse states that are not the text of a JSON document
    require_preconditions  refuse writes without If-Match or If-None-Match
    history                how many versions of each session are kept; 0: the current one alone
    idle_expiry_seconds    how long after its last write a session expires that has no expiry of its own
    clock                  gives the time, aware and in UTC
    """
    idle = None if idle_expiry_seconds is None else timedelta(seconds=idle_expiry_seconds)
    limits = Limits(state_bytes=max_state_bytes, require_json=require_json)
    return ChatState(store, limits, clock, Retention(idle, history), require_preconditions)


_NOT_STARTED = (
    "chatstate has not started, because nothing has run its lifespan. An application that mounts it must: "
    "`FastAPI(lifespan=chatstate.lifespan)`; and uvicorn must not run with `--lifespan off`."
)
