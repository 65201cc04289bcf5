"""The routes: one table, and a handler for each row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import UNSET, Struct

from chatstate.errors import PreconditionFailed
from chatstate.http.messages import Request, Response
from chatstate.http.problems import problem_response
from chatstate.http.reference import docs, openapi
from chatstate.http.shapes import LoadedState, Message, SaveBody, SessionRecord, UpdateBody
from chatstate.http.wire import (
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
    user_session_id = findings.of("user_session_id", read_id, body.user_session_id)
    chat_state = findings.of("chat_state", read_state, body.chat_state, api.limits)
    last_activity = findings.of("last_activity", read_time, body.last_activity)
    findings.raise_if_any()
    session = await api.sessions.save(user_session_id, chat_state, last_activity, precondition(request.headers))
    headers = {"etag": etag(session.tag)}
    if session.is_new:
        headers["location"] = f"{request.mount}{SESSIONS}/{encode_id(session.user_session_id)}"
    return answer(record(session), 201 if session.is_new else 200, headers)


async def load(api: Api, request: Request) -> Response:
    """Load a state."""
    required, known = if_match(request.headers), if_none_match(request.headers)
    session = await api.sessions.load(path_id(request))
    tag = session.tag
    headers = {"etag": etag(tag)}
    if not required.allows(tag):
        raise PreconditionFailed(tag)
    if not known.allows(tag):
        return Response(304, headers=headers)
    return answer(LoadedState(session.chat_state, format_time(session.last_activity)), headers=headers)


async def update(api: Api, request: Request) -> Response:
    """Change a session that exists: its state, its time of last activity, or both."""
    user_session_id = path_id(request)
    body = await read_body(request, UpdateBody, api.limits)
    findings = Findings()
    given = body.chat_state is not UNSET
    chat_state = findings.of("chat_state", read_state, body.chat_state, api.limits) if given else None
    last_activity = findings.of("last_activity", read_time, body.last_activity)
    findings.raise_if_any()
    session = await api.sessions.update(user_session_id, chat_state, last_activity, precondition(request.headers))
    return answer(record(session), headers={"etag": etag(session.tag)})


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


class _Node:
    """One segment of the paths: what follows it, literally or as a parameter, and what the path that ends here has."""

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: tuple[str, _Node] | None = None
        self.handlers: dict[str, Handler] = {}


class Routes:
    """The table as a tree of segments, in which a literal one goes before a parameter.

    It takes the path as the client sent it. Whoever decodes first cuts an id at its `%2F`, and makes U+FFFD of every
    invalid byte, so that different ids meet in one row. A parameter is the raw segment; `path_id` decodes it.
    """

    def __init__(self, api: Api, endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
        self._api = api
        self._root = _Node()
        for endpoint in endpoints:
            handlers = self._grow(endpoint.path).handlers
            handlers[endpoint.method] = endpoint.handler
            if endpoint.method == "GET":
                handlers["HEAD"] = endpoint.handler  # who carries the answer leaves its body out

    def _grow(self, path: str) -> _Node:
        node = self._root
        for segment in path.split("/"):
            if segment.startswith("{"):
                node.parameter = node.parameter or (segment[1:-1], _Node())
                node = node.parameter[1]
            else:
                node = node.children.setdefault(segment, _Node())
        return node

    def _find(self, request: Request) -> Mapping[str, Handler]:
        """The path's handlers by method; none when there is nothing at this path. Sets the request's parameters."""
        node = self._root
        for segment in request.path.split("/"):
            child = node.children.get(segment)
            if child is None:
                if not (node.parameter and segment):
                    return {}
                name, child = node.parameter
                request.params[name] = segment
            node = child
        return node.handlers

    async def respond(self, request: Request) -> Response:
        """The answer of the handler. Raises what it raises."""
        handlers = self._find(request)
        handler = handlers.get(request.method)
        if handler:
            return await handler(self._api, request)
        if handlers:
            allowed = ", ".join(handlers)
            return problem_response("method_not_allowed", f"Allowed here: {allowed}.", headers={"allow": allowed})
        return problem_response(
            "not_found", "There is nothing at this path. The routes: /openapi.json, readable at /docs."
        )


def encode_path(path: str) -> str:
    """The path as it stands in addresses."""
    return "/".join(encode_id(segment) for segment in path.split("/"))


def path_id(request: Request) -> str:
    return decode_id(request.params["userSessionId"])
