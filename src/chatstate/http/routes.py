"""The routes: one table, and a handler for each row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from msgspec import UNSET, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from chatstate.errors import PreconditionFailed
from chatstate.http.reference import docs, openapi
from chatstate.http.shapes import LoadedState, Message, SaveBody, SessionRecord, UpdateBody
from chatstate.http.wire import (
    HEADERS,
    Findings,
    Limits,
    answer,
    decode_id,
    encode_id,
    etag,
    if_match,
    if_none_match,
    precondition,
    read_body,
    read_id,
    read_state,
    read_time,
    record,
)
from chatstate.model import format_time
from chatstate.sessions import Sessions
from chatstate.stores.base import Store, StoreStatus


class Api(Struct, frozen=True):
    """What the handlers work with."""

    sessions: Sessions
    store: Store
    limits: Limits


Handler = Callable[[Api, Request], Awaitable[Response]]


async def save(api: Api, request: Request) -> Response:
    """Save a state: create the session, or replace its state."""
    body = await read_body(request, SaveBody, api.limits)
    findings = Findings()
    with findings.of("user_session_id"):
        user_session_id = read_id(body.user_session_id)
    with findings.of("chat_state"):
        chat_state = read_state(body.chat_state, api.limits)
    with findings.of("last_activity"):
        last_activity = read_time(body.last_activity)
    findings.raise_if_any()
    session = await api.sessions.save(user_session_id, chat_state, last_activity, precondition(request.headers))
    headers = {"ETag": etag(session.tag)}
    if session.is_new:
        headers["Location"] = f"{_mount_path(request)}{SESSIONS}/{encode_id(session.user_session_id)}"
    return answer(record(session), 201 if session.is_new else 200, headers)


async def load(api: Api, request: Request) -> Response:
    """Load a state."""
    required, known = if_match(request.headers), if_none_match(request.headers)
    session = await api.sessions.load(path_id(request))
    headers = {"ETag": etag(session.tag)}
    if not required.allows(session.tag):
        raise PreconditionFailed(session.tag)
    if not known.allows(session.tag):
        return Response(status_code=304, headers={**HEADERS, **headers})
    return answer(LoadedState(session.chat_state, format_time(session.last_activity)), headers=headers)


async def update(api: Api, request: Request) -> Response:
    """Change a session that exists: its state, its time of last activity, or both."""
    user_session_id = path_id(request)
    body = await read_body(request, UpdateBody, api.limits)
    findings = Findings()
    with findings.of("chat_state"):
        chat_state = None if body.chat_state is UNSET else read_state(body.chat_state, api.limits)
    with findings.of("last_activity"):
        last_activity = read_time(body.last_activity)
    findings.raise_if_any()
    session = await api.sessions.update(user_session_id, chat_state, last_activity, precondition(request.headers))
    return answer(record(session), headers={"ETag": etag(session.tag)})


async def delete(api: Api, request: Request) -> Response:
    """Delete a session."""
    await api.sessions.delete(path_id(request), precondition(request.headers))
    return answer(Message("Chat state session deleted"))


async def alive(_api: Api, _request: Request) -> Response:
    """Whether the process answers. It does not ask the store."""
    return answer(Message("alive"))


async def ready(api: Api, _request: Request) -> Response:
    """Whether the store answers, and what an acknowledged write survives."""
    return answer(await api.store.status())


class Endpoint(Struct, frozen=True):
    """One row of the route table; the OpenAPI document is made from it. An answer has a shape, or only a media type."""

    method: str
    path: str
    handler: Handler
    body: type[Struct] | None
    answers: Mapping[int, type[Struct] | str | None]
    problems: tuple[int, ...]


SESSIONS = "/chat-state-sessions"
SESSION = "/chat-state-sessions/{userSessionId}"

ENDPOINTS = (
    Endpoint(
        "POST", SESSIONS, save, SaveBody, {200: SessionRecord, 201: SessionRecord}, (400, 403, 412, 413, 415, 503)
    ),
    Endpoint("GET", SESSION, load, None, {200: LoadedState, 304: None}, (400, 403, 404, 412, 503)),
    Endpoint("PUT", SESSION, update, UpdateBody, {200: SessionRecord}, (400, 403, 404, 412, 413, 415, 503)),
    Endpoint("DELETE", SESSION, delete, None, {200: Message}, (400, 403, 404, 412, 503)),
    Endpoint("GET", "/healthz", alive, None, {200: Message}, (403,)),
    Endpoint("GET", "/readyz", ready, None, {200: StoreStatus}, (403, 503)),
    Endpoint("GET", "/openapi.json", openapi, None, {200: "application/json"}, (403,)),
    Endpoint("GET", "/docs", docs, None, {200: "text/html"}, (403,)),
)


def routes(api: Api) -> list[BaseRoute]:
    """The table as Starlette's routes, one for each path."""
    paths: dict[str, dict[str, Handler]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint.handler
    return [RawPathRoute(path, partial(_dispatch, api, handlers), methods=handlers) for path, handlers in paths.items()]


async def _dispatch(api: Api, handlers: Mapping[str, Handler], request: Request) -> Response:
    return await handlers["GET" if request.method == "HEAD" else request.method](api, request)


class RawPathRoute(Route):
    """Matches the path as the client sent it, segment by segment.

    Servers decode the path before routing, and then `%2F` splits an id in two and every invalid byte becomes U+FFFD, so
    that different ids meet in one row. Here a parameter is the raw segment; `path_id` decodes it.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http":
            return Match.NONE, {}
        match = self.path_regex.match(raw_path(scope))
        if not match:
            return Match.NONE, {}
        params = {**scope.get("path_params", {}), **match.groupdict()}
        complete = scope["method"] in (self.methods or ())
        return Match.FULL if complete else Match.PARTIAL, {"endpoint": self.endpoint, "path_params": params}


def raw_path(scope: Scope) -> str:
    """The undecoded path below the place where the application is mounted."""
    path: str = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else encode_path(scope["path"])
    mounted: str = scope.get("root_path", "")
    if not mounted:
        return path
    return "/" + "/".join(path.split("/")[mounted.count("/") + 1 :])


def _mount_path(request: Request) -> str:
    """Where the application is mounted, as it stands in addresses; servers and routers give it decoded."""
    return encode_path(request.scope.get("root_path", ""))


def encode_path(path: str) -> str:
    """The path as it stands in addresses."""
    return "/".join(encode_id(segment) for segment in path.split("/"))


def path_id(request: Request) -> str:
    return decode_id(request.path_params["userSessionId"])
