"""Requests as they are sent, and answers as they are read. No I/O."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx

from chatstate.client import errors
from chatstate.client.errors import ClientError, Conflict, Finding, InvalidRequest, Outcome, UnexpectedAnswer
from chatstate.client.values import Saved, Session, saved_of, session_of

COLLECTION = "/chat-state-sessions"
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396
JSON_PATCH = "application/json-patch+json"  # RFC 6902
_PROBLEM = "application/problem+json"  # RFC 9457

ABSENT = {"If-None-Match": "*"}
PRESENT = {"If-Match": "*"}


@dataclass(frozen=True)
class Request:
    """One request; sent again with the same fields it is carried out once, because of its `Idempotency-Key`."""

    method: str
    path: str
    id: str
    fields: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def with_fields(self, fields: Mapping[str, str]) -> Request:
        return replace(self, fields={**self.fields, **fields})


def path_of(id: str) -> str:
    """The path of a session. Raises `InvalidRequest` for ids that no path can name (docs/reference/http.md)."""
    if not id or id in (".", ".."):
        raise InvalidRequest(f"{id!r} cannot be the id of a session")
    try:
        return f"{COLLECTION}/{quote(id, safe='')}"
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the id has a lone surrogate: {error}") from error


def load_request(id: str) -> Request:
    return Request("GET", path_of(id), id)


def save_request(
    id: str,
    text: str,
    expects: Mapping[str, str],
    last_activity: datetime | None,
    expires_in: int | None,
    key: str | None,
) -> Request:
    path_of(id)  # an id that could not be loaded again is not saved, either
    members: dict[str, Any] = {"user_session_id": id, "chat_state": text}
    if last_activity is not None:
        members["last_activity"] = _instant(last_activity)
    if expires_in is not None:
        members["expires_in_seconds"] = expires_in
    return _write("POST", COLLECTION, id, expects, key, _encoded(members), JSON)


def patch_request(id: str, patch: Any, media_type: str, expects: Mapping[str, str], key: str | None) -> Request:
    return _write("PATCH", path_of(id), id, expects, key, _encoded(patch), media_type)


def delete_request(id: str, expects: Mapping[str, str], key: str | None) -> Request:
    return _write("DELETE", path_of(id), id, expects, key)


def _write(
    method: str,
    path: str,
    id: str,
    expects: Mapping[str, str],
    key: str | None,
    body: bytes | None = None,
    media_type: str | None = None,
) -> Request:
    key = key or str(uuid.uuid4())
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("an idempotency key is printable ASCII")
    fields = {**expects, "Idempotency-Key": f'"{key}"'}
    if media_type:
        fields["Content-Type"] = media_type
    if method == "POST":  # a patch would send back the whole state
        fields["Prefer"] = "return=representation"
    return Request(method, path, id, fields, body)


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidRequest(f"this cannot be sent as JSON in UTF-8: {error}") from error


def _instant(time: datetime) -> str:
    if time.tzinfo is None:
        raise InvalidRequest("last_activity has no time zone: datetime.now(UTC), for example")
    return time.isoformat()


# --- Answers ----------------------------------------------------------------------------------------------------------


def media_type_of(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def read_session(response: httpx.Response, id: str) -> Session | None:
    """The answer to a load; None only when chatstate itself says that there is no such session."""
    if response.status_code == 200:
        try:
            return session_of(_members(response), id, response.headers["etag"])
        except (KeyError, TypeError, ValueError) as wrong:
            raise not_ours(response) from wrong
    error = error_of(response, id)
    if isinstance(error, errors.NotFound):
        return None
    raise error


def read_saved(response: httpx.Response, id: str, outcome: Outcome) -> Saved:
    """The answer to a write."""
    if response.status_code not in (200, 201):
        raise error_of(response, id, outcome)
    replayed = "idempotency-replayed" in response.headers
    created = response.status_code == 201
    try:
        return saved_of(_members(response), id, response.headers["etag"], created=created, replayed=replayed)
    except (KeyError, TypeError, ValueError) as error:
        raise not_ours(response, "unknown") from error


def read_deleted(response: httpx.Response, id: str, outcome: Outcome) -> None:
    """The answer to a deletion."""
    if response.status_code != 200:
        raise error_of(response, id, outcome)
    if "message" not in _members(response):
        raise not_ours(response, "unknown")


def _members(response: httpx.Response) -> Mapping[str, Any]:
    try:
        value = json.loads(response.content) if media_type_of(response) == JSON else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise not_ours(response, "unknown")
    return value


def problem_of(response: httpx.Response) -> Mapping[str, Any] | None:
    """The problem document of a failed request; None when it is none of chatstate."""
    if media_type_of(response) != _PROBLEM:
        return None
    try:
        value = json.loads(response.content)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("code"), str) else None


_BY_STATUS: dict[int, type[ClientError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    408: errors.Unavailable,
    409: errors.PatchConflict,
    412: Conflict,
    413: errors.TooLarge,
    429: errors.TooManyRequests,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
}

_ANYBODY = (401, 403, 408, 413, 429, 502, 503, 504)
"""What these mean is clear also from a proxy that stands between."""


def error_of(response: httpx.Response, id: str, outcome: Outcome = "failed") -> ClientError:
    """The error in an answer."""
    status, problem = response.status_code, problem_of(response)
    if (problem or {}).get("outcome") == "unknown" or (status >= 500 and status != 503):
        outcome = "unknown"  # a proxy that gave up, or a defect: who knows how far the request came
    if problem is None and status not in _ANYBODY:
        return not_ours(response, outcome)
    code, detail = (problem or {}).get("code"), (problem or {}).get("detail")
    kind = errors.NotFound if code == errors.NotFound.default_code else _BY_STATUS.get(status)
    if kind is None:
        kind = InvalidRequest if 400 <= status < 500 and status != 404 else UnexpectedAnswer
    error = kind(
        str(detail or f"the server answers {status} {response.reason_phrase}"),
        code=code,
        status=status,
        outcome=_of_a_write(outcome, response),
        retry_after=retry_after(response),
    )
    return _with_details(error, problem or {}, response, id)


def _with_details(error: ClientError, problem: Mapping[str, Any], response: httpx.Response, id: str) -> ClientError:
    if isinstance(error, InvalidRequest):
        findings = [finding for finding in problem.get("errors") or [] if isinstance(finding, dict)]
        error.errors = tuple(Finding(str(one.get("member")), str(one.get("detail"))) for one in findings)
    if isinstance(error, Conflict):
        error.etag = response.headers.get("etag")
        if error.etag and isinstance(problem.get("current"), dict):
            with suppress(KeyError, TypeError, ValueError):  # then it is not shown, and whoever needs it loads
                error.current = session_of(problem["current"], id, error.etag)
    return error


def not_ours(response: httpx.Response, outcome: Outcome = "failed") -> UnexpectedAnswer:
    """The error for an answer that chatstate does not give."""
    what = f"{response.status_code} with {media_type_of(response) or 'no media type'}"
    url = response.request.url.copy_with(userinfo=b"")  # no password in a log
    detail = f"{response.request.method} {url} was not answered by chatstate: {what}"
    return UnexpectedAnswer(
        f"{detail}. Is base_url right?", status=response.status_code, outcome=_of_a_write(outcome, response)
    )


def _of_a_write(outcome: Outcome, response: httpx.Response) -> Outcome:
    return "failed" if response.request.method == "GET" else outcome


def retry_after(response: httpx.Response) -> float | None:
    """The seconds of `Retry-After` (RFC 9110, section 10.2.3); None for a date, which chatstate does not send."""
    seconds = response.headers.get("retry-after", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() else None
