"""The application: a store behind the routes, as an ASGI app that also mounts inside another application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from chatstate.errors import ChatStateError, StoreUnavailable
from chatstate.http import browsers
from chatstate.http.problems import problem, problem_response
from chatstate.http.routes import ENDPOINTS, Api, routes
from chatstate.http.wire import Limits
from chatstate.model import utc_now
from chatstate.sessions import Sessions
from chatstate.stores.base import Store


class ChatState(Starlette):
    """The application. Its `lifespan` opens the store, and at the end answers what was accepted and closes it."""

    def __init__(self, store: Store, limits: Limits, clock: Callable[[], datetime]) -> None:
        self.store = store
        self.started = False
        self._sessions = Sessions(store, clock)
        super().__init__(
            routes=routes(Api(self._sessions, store, limits)),
            middleware=browsers.middleware({endpoint.method for endpoint in ENDPOINTS}),
            exception_handlers={
                ChatStateError: _failed,
                HTTPException: _not_routed,
                ClientDisconnect: _gone,
                Exception: _broken,
            },
            lifespan=self.lifespan,
        )
        self.router.redirect_slashes = False

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """For applications that mount this one: `FastAPI(lifespan=chatstate.lifespan)`. Mounted, it gets none."""
        try:
            await self.store.open()
            await self.store.migrate()
            self.started = True
            yield
        finally:
            await self._sessions.drain()
            await self.store.close()


def create_app(
    store: Store,
    *,
    max_state_bytes: int = 1 << 20,
    require_json: bool = False,
    clock: Callable[[], datetime] = utc_now,
) -> ChatState:
    """An ASGI application that serves the sessions of this store.

    max_state_bytes  the largest state, in bytes of UTF-8
    require_json     refuse states that are not the text of a JSON document
    clock            gives the time, aware and in UTC
    """
    return ChatState(store, Limits(state_bytes=max_state_bytes, require_json=require_json), clock)


_NOT_STARTED = (
    "chatstate has not started, because nothing has run its lifespan. An application that mounts it must: "
    "`FastAPI(lifespan=chatstate.lifespan)`; and uvicorn must not run with `--lifespan off`."
)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ChatStateError)
    if isinstance(error, StoreUnavailable) and not request.app.started:
        error = StoreUnavailable(_NOT_STARTED)
    return problem(error)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return problem_response("method_not_allowed", f"Allowed here: {allowed.get('Allow')}.", headers=allowed)
    return problem_response("not_found", "There is nothing at this path. The routes: /openapi.json, readable at /docs.")


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _broken(_request: Request, _error: Exception) -> Response:
    return problem_response("internal_error", "This is a defect of chatstate; its log says more.")
