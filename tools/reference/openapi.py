"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), made from the route table and the shapes on the wire.

What neither of them knows stands in `openapi.base.json`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType, json

from chatstate import __version__
from chatstate.errors import ChatStateError
from chatstate.http import channels, demo, links, tokens
from chatstate.http.api import CREDENTIAL_PROBLEMS, PROBLEMS_EVERYWHERE, Endpoint, Handler
from chatstate.http.channels import AcceptedMessage, ChannelList
from chatstate.http.privacy import SessionExport, UserExport
from chatstate.http.problems import MEDIA_TYPE, STATUS, problem_response
from chatstate.http.reference import DEFAULT_URL
from chatstate.http.shapes import (
    LoadedState,
    RestoreBody,
    SessionPage,
    SessionRecord,
    SessionSummary,
    UserSessionId,
    VersionPage,
    VersionRecord,
)
from chatstate.http.tokens import MintedToken
from chatstate.http.visits import VisitRecord

Json = dict[str, Any]

_BASE = (files(__package__) / "openapi.base.json").read_bytes()


class ProblemMember(Struct):
    """One offending member of a request."""

    member: Annotated[str, Meta(description="The name of the member of the body, or of the header or parameter.")]
    detail: Annotated[str, Meta(description="What is wrong with it.")]


class Problem(Struct):
    """An error (RFC 9457)."""

    type: Annotated[str, Meta(description="Always `about:blank`: the code says it all.")]
    title: Annotated[str, Meta(description="The code in words.")]
    status: Annotated[int, Meta(description="The HTTP status.")]
    detail: Annotated[str, Meta(description="What went wrong and what mends it, for people; it may change.")]
    code: Annotated[str, Meta(description="What went wrong, for programs; it never changes.")]
    errors: Annotated[list[ProblemMember], Meta(description="Each offending member.")] | UnsetType = UNSET
    current: (
        Annotated[
            SessionRecord,
            Meta(description="On 412 with `Prefer: return=representation`, the session, if there is one."),
        ]
        | UnsetType
    ) = UNSET
    outcome: Annotated[Literal["unknown"], Meta(description="The write may have happened.")] | UnsetType = UNSET


def document(endpoints: Sequence[Endpoint], server_url: str = DEFAULT_URL) -> Json:
    """The document as JSON values. `server_url` is where the application stands: a URL or a path."""
    base: Json = json.decode(_BASE)
    base["info"]["version"] = __version__
    base["servers"] = [{"url": server_url}]
    base["components"]["parameters"]["userSessionId"]["schema"] = json.schema(UserSessionId)
    base["components"]["parameters"]["file"]["schema"]["enum"] = sorted(demo.FILES)
    base["components"]["schemas"] = _schemas(endpoints)
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
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or HTTPStatus(status).phrase


def messages() -> dict[str, str]:
    """Every error code of the API with its default message, in the order of `problems.STATUS`."""
    found = {
        "not_found": "There is nothing at this path.",
        "method_not_allowed": "The path has no such method; the header Allow names those that it has.",
        "headers_too_large": "The request's headers are larger than this server accepts.",
        "request_timeout": "The request took too long to arrive; send it again.",
        "too_many_connections": "The server has as many connections as it takes; try again.",
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


# --- Schemas ----------------------------------------------------------------------------------------------------------


def _schemas(endpoints: Sequence[Endpoint]) -> Json:
    """All schemas that have a name, in the order of the routes that use them."""
    shapes = [shape for endpoint in endpoints for shape in (*bodies(endpoint).values(), *endpoint.answers.values())]
    found: Json = {}
    for shape in (*shapes, Problem):
        if shape and not isinstance(shape, str):
            found |= _named(shape)[1]
    return {name: _with_example(_required_first(schema), found) for name, schema in found.items()}


def _named(shape: Any) -> tuple[Json, Json]:
    """The schema of a shape, and all schemas by name that it refers to. One with a title of its own has a name too."""
    (schema,), found = json.schema_components([shape], ref_template="#/components/schemas/{name}")
    if "title" not in schema:
        return schema, found
    return _ref("schemas", schema["title"]), {**found, schema["title"]: schema}


def _required_first(schema: Json) -> Json:
    if "properties" not in schema:
        return schema
    members = sorted(schema["properties"].items(), key=lambda member: member[0] not in schema["required"])
    return {**schema, "properties": dict(members)}


def _with_example(schema: Json, schemas: Json) -> Json:
    """The schema with an example, which for objects and arrays is made of what they hold."""
    example = _example(schema, schemas)
    return schema if example is None else {**schema, "examples": [example]}


def _example(schema: Json, schemas: Json) -> Any:
    """An example of what the schema describes; None without one. Optional members are in it if they have their own."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "items" in schema:
        example = _example(schema["items"], schemas)
        return None if example is None else [example]
    examples = {
        name: _example(member, schemas)
        for name, member in schema.get("properties", {}).items()
        if "examples" in member or name in schema["required"]
    }
    return {name: example for name, example in examples.items() if example is not None} or None


# --- Operations -------------------------------------------------------------------------------------------------------


def bodies(endpoint: Endpoint) -> Mapping[str, Any]:
    """The shapes of an operation's body by media type; none when it takes no body."""
    if endpoint.body is None:
        return {}
    return endpoint.body if isinstance(endpoint.body, Mapping) else {"application/json": endpoint.body}


def _operation(endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> Json:
    problems = problem_codes(endpoint)
    statuses = dict.fromkeys(status for code, status in STATUS.items() if code in problems)
    operation: Json = {
        "operationId": endpoint.handler.__name__,
        "summary": inspect.getdoc(endpoint.handler),
        "description": _credential(endpoint),
        "security": security(endpoint),
        "tags": [endpoint.tag],
        "parameters": [_ref("parameters", name) for name in (*_path_parameters(endpoint), *endpoint.parameters)],
    }
    if endpoint.body:
        content = {media_type: {"schema": _named(shape)[0]} for media_type, shape in bodies(endpoint).items()}
        operation["requestBody"] = {"required": not endpoint.may_be_empty, "content": content}
    operation["responses"] = {
        **{str(status): _answer(endpoint, status, endpoints) for status in endpoint.answers},
        **{str(status): _problem(endpoint, status, problems) for status in statuses},
    }
    return operation


def problem_codes(endpoint: Endpoint) -> set[str]:
    """The codes of all errors that an operation can be answered with."""
    kind = endpoint.credential.kind
    wanted = CREDENTIAL_PROBLEMS if kind == "key" else ()
    everywhere = PROBLEMS_EVERYWHERE if kind != "webhook_signature" else ()  # a webhook is called from anywhere
    return {*endpoint.problems, *everywhere, *wanted}


def _path_parameters(endpoint: Endpoint) -> list[str]:
    return re.findall(r"{(\w+)}", endpoint.path)


def _answer(endpoint: Endpoint, status: int, endpoints: Sequence[Endpoint]) -> Json:
    shape = endpoint.answers[status]
    answer: Json = {"description": f"{phrase(status)}.", "headers": dict(_headers(endpoint, status))}
    if isinstance(shape, str):
        answer["content"] = {media_type: {} for media_type in shape.split(", ")}
    elif shape:
        answer["description"] += "" if get_args(shape) else f" {inspect.getdoc(shape)}"
        answer["content"] = {"application/json": {"schema": _named(shape)[0]}}
    if links := dict(_links(endpoint, shape, endpoints)):
        answer["links"] = links
    return answer


def _headers(endpoint: Endpoint, status: int) -> Iterator[tuple[str, Json]]:
    """The header fields that a success has, beside those that all answers have."""
    shape = endpoint.answers[status]
    if status != 303 and shape in (SessionRecord, SessionSummary, LoadedState, VersionRecord, None):
        yield "ETag", _ref("headers", "ETag")
    if shape is VersionPage:
        yield "ETag", _ref("headers", "NewestETag")
    if status == 303 or (status == 201 and shape is not MintedToken):
        yield "Location", _ref("headers", "Location")
    if shape in (SessionExport, UserExport):
        yield "Content-Disposition", _ref("headers", "ContentDisposition")
    if "cursor" in endpoint.parameters:
        yield "Link", _ref("headers", "Link")
    if shape is SessionSummary:
        yield "Preference-Applied", _ref("headers", "PreferenceApplied")
    if "IdempotencyKey" in endpoint.parameters:
        yield "Idempotency-Replayed", _ref("headers", "IdempotencyReplayed")


def _problem(endpoint: Endpoint, status: int, problems: set[str]) -> Json:
    codes = [code for code in STATUS if STATUS[code] == status and code in problems]
    return {
        "description": f"{phrase(status)}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": dict(_problem_headers(endpoint, status, codes)),
        "content": {
            MEDIA_TYPE: {
                "schema": _ref("schemas", "Problem"),
                "examples": {code: _ref("examples", code) for code in codes},
            }
        },
    }


def _problem_headers(endpoint: Endpoint, status: int, codes: Sequence[str]) -> Iterator[tuple[str, Json]]:
    if status == 401:
        yield "WWW-Authenticate", _ref("headers", "WWWAuthenticate")
    if "forbidden" in codes:
        yield "WWW-Authenticate", _ref("headers", "ScopeWanted")
    if status == 412:
        yield "ETag", _ref("headers", "CurrentETag")
    if status == 412 and "Prefer" in endpoint.parameters:
        yield "Preference-Applied", _ref("headers", "PreferenceApplied")
    if status == 415 and endpoint.method == "PATCH":
        yield "Accept-Patch", _ref("headers", "AcceptPatch")
    if status in (429, 503):
        yield "Retry-After", _ref("headers", "RetryAfter")


# --- Credentials ------------------------------------------------------------------------------------------------------

API_KEY, SESSION_TOKEN = "ApiKey", "SessionToken"
WEBHOOK_SIGNATURE, VERIFY_TOKEN = "WebhookSignature", "VerifyToken"

_OF_MINTERS = (
    tokens.mint,
    tokens.revoke,
    *(row.handler for row in (*links.ENDPOINTS, *channels.ENDPOINTS) if row.credential.kind == "key"),
)
_OF_TOKENS: Mapping[Handler, Sequence[str]] = {channels.issue_whatsapp_link: ("read", "write")}
"""What these handlers themselves demand of any credential."""

_OF_KEYS: Mapping[Handler, Sequence[str]] = {handler: ("mint", *_OF_TOKENS.get(handler, ())) for handler in _OF_MINTERS}
"""What these demand of an API key; a session token needs nothing more for it than itself."""


def security(endpoint: Endpoint) -> list[Json]:
    """The credentials of which the operation wants one, each with the scopes that it must have; none: it wants none."""
    credential = endpoint.credential
    if credential.kind in ("none", "link_code"):  # the code stands in the path, which no security scheme knows of
        return []
    if credential.kind == "webhook_signature":
        return [{VERIFY_TOKEN if endpoint.method == "GET" else WEBHOOK_SIGNATURE: []}]
    if credential.kind != "key":
        raise ValueError(
            f"{endpoint.method} {endpoint.path}: the document has no security scheme for {credential.kind}"
        )
    scopes = [credential.scope] if credential.scope else []
    found: list[Json] = [{API_KEY: scopes or [*_OF_KEYS.get(endpoint.handler, ())]}]
    if credential.token:
        found.append({SESSION_TOKEN: scopes or [*_OF_TOKENS.get(endpoint.handler, ())]})
    return found


def _credential(endpoint: Endpoint) -> str:
    """The same in words."""
    names = {
        API_KEY: "an API key",
        SESSION_TOKEN: "a session token",
        WEBHOOK_SIGNATURE: "Meta's signature, in `X-Hub-Signature-256`",
        VERIFY_TOKEN: "the verify token, in `hub.verify_token`",
    }
    wanted = " or ".join(
        names[scheme] + _with_scopes(scopes)
        for requirement in security(endpoint)
        for scheme, scopes in requirement.items()
    )
    if endpoint.credential.kind == "link_code":
        wanted = "the code, which stands in the path"
    anonymous = " With `--allow-anonymous`, none." if endpoint.credential.anonymous else ""
    return f"Credential: {wanted or 'none'}.{anonymous}"


def _with_scopes(scopes: Sequence[str]) -> str:
    if not scopes:
        return ""
    *others, last = (f"`{scope}`" for scope in scopes)
    return f" with the scopes {', '.join(others)} and {last}" if others else f" with the scope {last}"


# --- Links ------------------------------------------------------------------------------------------------------------

_IN_SESSION = {"userSessionId": "$response.body#/user_session_id", "version": "$response.body#/version"}
_AS_ASKED = {"userSessionId": "$request.path.userSessionId"}

_KNOWN: Sequence[tuple[Any, Mapping[str, str]]] = (
    (SessionRecord, _IN_SESSION),
    (SessionSummary, _IN_SESSION),
    (LoadedState, _AS_ASKED),
    (SessionPage, {"userSessionId": "$response.body#/sessions/0/user_session_id"}),
    (VersionPage, {**_AS_ASKED, "version": "$response.body#/versions/0/version"}),
    (VersionRecord, {**_AS_ASKED, "version": "$response.body#/version"}),
    (VisitRecord, {"sessionId": "$response.body#/session_id", "userSessionId": "$response.body#/user_session_id"}),
    (list[VisitRecord], {"sessionId": "$response.body#/0/session_id"}),
    (MintedToken, {"userSessionId": "$response.body#/user_session_id"}),
    (AcceptedMessage, _AS_ASKED),
    (ChannelList, {**_AS_ASKED, "person": "$response.body#/channels/0/id"}),
    (SessionExport, {"userSessionId": "$response.body#/user_session_id"}),
    (
        UserExport,
        {"userId": "$response.body#/user_id", "userSessionId": "$response.body#/sessions/0/user_session_id"},
    ),
)
"""What an answer of this shape knows of the parameters in the paths of other operations."""


def _links(endpoint: Endpoint, shape: Any, endpoints: Sequence[Endpoint]) -> Iterator[tuple[str, Json]]:
    """How an answer leads on to the next requests about the same thing."""
    known = next((known for source, known in _KNOWN if source == shape), {})
    for other in endpoints:
        names = _path_parameters(other)
        if other.tag == endpoint.tag and names and known.keys() >= set(names):
            yield other.handler.__name__, _link(other, known, shape)


def _link(endpoint: Endpoint, known: Mapping[str, str], shape: Any) -> Json:
    parameters = {f"path.{name}": known[name] for name in _path_parameters(endpoint)}
    if "IfMatch" in endpoint.parameters and endpoint.method != "GET" and shape is not SessionPage:
        parameters["header.If-Match"] = "$response.header.ETag"
    link: Json = {"operationId": endpoint.handler.__name__, "parameters": parameters}
    if endpoint.body is RestoreBody and "version" in known:
        link["requestBody"] = {"version": known["version"]}
    return link


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
