"""Error answers: RFC 9457 problem documents. `STATUS` is the one table from error codes to HTTP statuses."""

from __future__ import annotations

from typing import Any

from msgspec import json

from chatstate.errors import (
    ChatStateError,
    Forbidden,
    InvalidRequest,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from chatstate.http.conditions import etag
from chatstate.http.messages import Response
from chatstate.http.wire import record

STATUS = {
    "invalid_request": 400,
    "invalid_json": 400,
    "invalid_precondition": 400,
    "invalid_patch": 400,
    "write_refused": 400,
    "unauthorized": 401,
    "token_expired": 401,
    "forbidden": 403,
    "forbidden_host": 403,
    "forbidden_address": 403,
    "forbidden_origin": 403,
    "forbidden_proxy": 403,
    "webhook_refused": 403,
    "not_found": 404,
    "session_not_found": 404,
    "version_not_found": 404,
    "visit_not_found": 404,
    "user_not_found": 404,
    "link_not_found": 404,
    "bot_not_found": 404,
    "channel_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "state_not_patchable": 409,
    "patch_conflict": 409,
    "visit_exists": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "precondition_required": 428,
    "too_many_requests": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "store_error": 503,
    "store_unavailable": 503,
    "store_busy": 503,
    "session_locked": 503,
    "store_full": 503,
    "outcome_unknown": 503,
    "state_unreadable": 503,
    "too_many_connections": 503,
}

RETRY_AFTER_SECONDS = 1

MEDIA_TYPE = "application/problem+json"


def problem(error: ChatStateError) -> Response:
    """The answer to a request that failed with one of our errors."""
    members: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, InvalidRequest) and error.errors:
        members["errors"] = [finding._asdict() for finding in error.errors]
    if isinstance(error, PreconditionFailed) and error.current:
        headers["etag"] = etag(error.current)
    if isinstance(error, PreconditionFailed) and error.session:
        members["current"] = record(error.session)
        headers["preference-applied"] = "return=representation"
    if isinstance(error, UnsupportedMediaType) and error.accept_patch:
        headers["accept-patch"] = error.accept_patch
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = _challenge(error)
    if isinstance(error, Forbidden):
        missing = f', scope="{error.scope}"' if error.scope else ""
        headers["www-authenticate"] = f'Bearer realm="chatstate", error="insufficient_scope"{missing}'
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, OutcomeUnknown):
        members["outcome"] = "unknown"
    if isinstance(error, StoreError) and STATUS[error.code] == 503:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return problem_response(error.code, error.message, members, headers)


def _challenge(error: Unauthorized) -> str:
    """What the client is to show (RFC 6750, section 3); who has shown nothing is told of no error."""
    realm = 'Bearer realm="chatstate"'
    return realm if error.message == Unauthorized().message else f'{realm}, error="invalid_token"'


def problem_response(
    code: str, detail: str, members: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """A problem document: `type`, `title`, `status`, `detail`, `code`, and what else the code brings with it."""
    status = STATUS[code]
    title = code.replace("_", " ").capitalize()
    document = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **(members or {}),
    }
    return Response(status, json.encode(document), MEDIA_TYPE, headers or {}, problem=code)


def nothing_here() -> Response:
    """The answer to a request for a path that has no route."""
    return problem_response("not_found", "There is nothing at this path. The routes: /openapi.json, readable at /docs.")
