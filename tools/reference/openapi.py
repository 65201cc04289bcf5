"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), made from the route table and the shapes on the wire.

What neither of them knows stands in `openapi.base.json`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, json

from chatstate import __version__
from chatstate.errors import ChatStateError
from chatstate.http.problems import MEDIA_TYPE, STATUS, problem_response
from chatstate.http.reference import DEFAULT_URL
from chatstate.http.routes import Endpoint
from chatstate.http.shapes import LoadedState, SessionRecord, UserSessionId

Json = dict[str, Any]

_BASE = (files(__package__) / "openapi.base.json").read_bytes()


class ProblemMember(Struct):
    """One offending member of a request."""

    member: Annotated[str, Meta(description="The name of the member of the body, or of the header.")]
    detail: Annotated[str, Meta(description="What is wrong with it.")]


class Problem(Struct):
    """An error (RFC 9457)."""

    type: Annotated[str, Meta(description="Always `about:blank`: the code says it all.")]
    title: Annotated[str, Meta(description="The code in words.")]
    status: Annotated[int, Meta(description="The HTTP status.")]
    detail: Annotated[str, Meta(description="What went wrong and what mends it, for people; it may change.")]
    code: Annotated[str, Meta(description="What went wrong, for programs; it never changes.")]
    errors: Annotated[list[ProblemMember], Meta(description="Each offending member.")] | UnsetType = UNSET
    outcome: Annotated[Literal["unknown"], Meta(description="The write may have happened.")] | UnsetType = UNSET


def document(endpoints: Sequence[Endpoint], server_url: str = DEFAULT_URL) -> Json:
    """The document as JSON values. `server_url` is where the application stands: a URL or a path."""
    shapes = [shape for endpoint in endpoints for shape in (endpoint.body, *endpoint.answers.values())]
    structs = dict.fromkeys(shape for shape in shapes if isinstance(shape, type))
    _, schemas = json.schema_components([*structs, Problem], ref_template="#/components/schemas/{name}")
    base: Json = json.decode(_BASE)
    base["info"]["version"] = __version__
    base["servers"] = [{"url": server_url}]
    base["components"]["parameters"]["userSessionId"]["schema"] = json.schema(UserSessionId)
    base["components"]["schemas"] = {name: _with_example(schema) for name, schema in schemas.items()}
    base["components"]["examples"] = {
        code: {"summary": message, "value": json.decode(problem_response(code, message).body)}
        for code, message in messages().items()
    }
    base["paths"] = {endpoint.path: {} for endpoint in endpoints}
    for endpoint in endpoints:
        base["paths"][endpoint.path][endpoint.method.lower()] = _operation(endpoint, endpoints)
    return base


def phrase(status: int) -> str:
    """The reason phrase of RFC 9110; older versions of Python have older ones."""
    return "Content Too Large" if status == 413 else HTTPStatus(status).phrase


def messages() -> dict[str, str]:
    """Every error code of the API with its default message, in the order of `problems.STATUS`."""
    found = {
        "not_found": "There is nothing at this path.",
        "method_not_allowed": "The path has no such method; the header Allow names those that it has.",
        "headers_too_large": "The request's headers are larger than this server accepts.",
        "internal_error": "A defect of the server; its log says more.",
    }
    for error in _errors(ChatStateError):
        found.setdefault(error.code, (error.__doc__ or "").splitlines()[0])
    return {code: found[code] for code in STATUS}


def _errors(error: type[ChatStateError]) -> Iterator[type[ChatStateError]]:
    """The tree of errors, each class before those that are derived from it and may share its code."""
    yield error
    for derived in error.__subclasses__():
        yield from _errors(derived)


def _with_example(schema: Json) -> Json:
    """The schema of an object with an example that is made of its members' examples."""
    example = {name: member["examples"][0] for name, member in schema["properties"].items() if "examples" in member}
    return {**schema, "examples": [example]} if example else schema


def _operation(endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> Json:
    conditional = 412 in endpoint.problems
    parameters = ["userSessionId"] * _names_session(endpoint) + ["IfMatch", "IfNoneMatch"] * conditional
    operation: Json = {
        "operationId": endpoint.handler.__name__,
        "summary": inspect.getdoc(endpoint.handler),
        "tags": ["Chat state" if conditional else "Server"],
        "parameters": [_ref("parameters", name) for name in parameters],
    }
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": _content("application/json", endpoint.body)}
    operation["responses"] = {
        **{str(status): _answer(status, shape, endpoints) for status, shape in endpoint.answers.items()},
        **{str(status): _problem(status, endpoint) for status in endpoint.problems},
    }
    return operation


def _answer(status: int, shape: type[Struct] | str | None, endpoints: Sequence[Endpoint]) -> Json:
    answer: Json = {"description": f"{phrase(status)}.", "headers": {}}
    if shape in (SessionRecord, LoadedState, None):
        answer["headers"]["ETag"] = _ref("headers", "ETag")
    if status == 201:
        answer["headers"]["Location"] = _ref("headers", "Location")
    if isinstance(shape, str):
        answer["content"] = {shape: {}}
    elif shape:
        answer["description"] += f" {inspect.getdoc(shape)}"
        answer["content"] = _content("application/json", shape)
    if shape is SessionRecord:
        answer["links"] = {other.handler.__name__: _link(other) for other in endpoints if _names_session(other)}
    return answer


def _link(endpoint: Endpoint) -> Json:
    """How the answer to a write leads on to the next request about the same session."""
    parameters = {"path.userSessionId": "$response.body#/user_session_id"}
    if endpoint.method != "GET":
        parameters["header.If-Match"] = "$response.header.ETag"
    return {"operationId": endpoint.handler.__name__, "parameters": parameters}


def _problem(status: int, endpoint: Endpoint) -> Json:
    codes = [code for code in STATUS if STATUS[code] == status and _can_give(endpoint, code)]
    headers = {412: {"ETag": _ref("headers", "CurrentETag")}, 503: {"Retry-After": _ref("headers", "RetryAfter")}}
    content = _content(MEDIA_TYPE, Problem)
    content[MEDIA_TYPE]["examples"] = {code: _ref("examples", code) for code in codes}
    return {
        "description": f"{phrase(status)}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": headers.get(status, {}),
        "content": content,
    }


def _can_give(endpoint: Endpoint, code: str) -> bool:
    if code == "invalid_json":
        return endpoint.body is not None
    if code == "invalid_precondition":
        return 412 in endpoint.problems
    return code != "not_found"  # that is an answer about other paths


def _names_session(endpoint: Endpoint) -> bool:
    return "{userSessionId}" in endpoint.path


def _content(media_type: str, shape: type[Struct]) -> Json:
    return {media_type: {"schema": _ref("schemas", shape.__name__)}}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
