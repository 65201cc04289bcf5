"""The routes: one table, and the tree that finds a request's handler in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chatstate.http import channels, demo, events, links, pages, privacy, states, tokens, visits, whatsapp
from chatstate.http.api import STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import NONE, Credential
from chatstate.http.messages import Request, Response
from chatstate.http.problems import nothing_here, problem_response
from chatstate.http.reference import docs, openapi
from chatstate.http.shapes import Message
from chatstate.http.wire import answer
from chatstate.stores.base import StoreStatus


async def alive(_api: Api, _request: Request) -> Response:
    """Whether the process answers. It does not ask the store."""
    return answer(Message("alive"))


async def ready(api: Api, request: Request) -> Response:
    """Whether the store answers, and what an acknowledged write survives; where it is, stands there for admins only."""
    status = await api.store.status()
    caller = await api.gate.identify(request)
    return answer(status if "admin" in caller.scopes else StoreStatus(status.store.split()[0], status.durability))


ENDPOINTS = (
    *states.ENDPOINTS,
    *events.ENDPOINTS,
    *visits.ENDPOINTS,
    *tokens.ENDPOINTS,
    *links.ENDPOINTS,
    *channels.ENDPOINTS,
    *whatsapp.ENDPOINTS,
    *privacy.ENDPOINTS,
    Endpoint("GET", "/healthz", NONE, alive, "Server", None, {200: Message}),
    Endpoint("GET", "/readyz", NONE, ready, "Server", None, {200: StoreStatus}, STORE_PROBLEMS),
    Endpoint("GET", "/openapi.json", NONE, openapi, "Server", None, {200: "application/json"}),
    Endpoint("GET", "/docs", NONE, docs, "Server", None, {200: "text/html"}),
    *demo.ENDPOINTS,
    Endpoint("GET", "/client.js", NONE, pages.client, "Server", None, {200: "text/javascript", 304: None}),
)


class _Node:
    """One segment of the paths: what follows it, literally or as a parameter, and what the path that ends here has."""

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: tuple[str, _Node] | None = None
        self.endpoints: dict[str, Endpoint] = {}
        self.accept_patch = ""


class Routes:
    """The table as a tree of segments, in which a literal one goes before a parameter.

    It takes the path as the client sent it. Whoever decodes first cuts an id at its `%2F`, and makes U+FFFD of every
    invalid byte, so that different ids meet in one row. A parameter is the raw segment; `path_id` decodes it.
    """

    def __init__(self, api: Api, endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
        self._api = api
        self._root = _Node()
        for endpoint in endpoints:
            node = self._grow(endpoint.path)
            _check_declared(endpoint)
            node.endpoints[endpoint.method] = endpoint
            if endpoint.method == "GET":
                node.endpoints["HEAD"] = endpoint  # who carries the answer leaves its body out
            if endpoint.method == "PATCH" and isinstance(endpoint.body, Mapping):
                node.accept_patch = ", ".join(endpoint.body)

    def _grow(self, path: str) -> _Node:
        node = self._root
        for segment in path.split("/"):
            if segment.startswith("{"):
                node.parameter = node.parameter or (segment[1:-1], _Node())
                node = node.parameter[1]
            else:
                node = node.children.setdefault(segment, _Node())
        return node

    def _find(self, request: Request) -> _Node | None:
        """The node where the path ends; None when there is nothing at this path. Sets the request's parameters."""
        node = self._root
        for segment in request.path.split("/"):
            child = node.children.get(segment)
            if child is None:
                if not (node.parameter and segment):
                    return None
                name, child = node.parameter
                request.params[name] = segment
            node = child
        return node

    async def respond(self, request: Request) -> Response:
        """The answer of the handler, if the caller may use the route. Raises what they raise."""
        node = self._find(request)
        endpoint = node and node.endpoints.get(request.method)
        if endpoint:
            request.action = endpoint.handler.__name__
            request.caller = await self._api.gate.admit(endpoint.credential, request)
            return await endpoint.handler(self._api, request)
        if node and node.endpoints:
            allowed = ", ".join(node.endpoints)
            if request.method == "OPTIONS":  # RFC 5789, section 3.1
                accept_patch = {"accept-patch": node.accept_patch} if node.accept_patch else {}
                return Response(204, headers={"allow": allowed, **accept_patch})
            return problem_response("method_not_allowed", f"Allowed here: {allowed}.", headers={"allow": allowed})
        return nothing_here()


def _check_declared(endpoint: Endpoint) -> None:
    """Python takes any value; a route that wants nothing to be shown must say so."""
    if not isinstance(endpoint.credential, Credential):
        raise TypeError(f"The route {endpoint.method} {endpoint.path} does not declare which credential it wants.")
