"""The handlers of chat states: `/chat-state-sessions` and what lies below."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, json

from chatstate.access import OPEN
from chatstate.errors import (
    ChatStateError,
    Forbidden,
    OutcomeUnknown,
    PatchConflict,
    PreconditionFailed,
    SessionNotFound,
    StateNotPatchable,
    StoreError,
    UnsupportedMediaType,
)
from chatstate.http.api import BODY_PROBLEMS, STORE_PROBLEMS, Api, Endpoint
from chatstate.http.conditions import (
    etag,
    idempotency_key,
    if_match,
    if_none_match,
    precondition,
    prefers_representation,
)
from chatstate.http.gate import key, key_or_token
from chatstate.http.messages import Request, Response
from chatstate.http.paging import next_page, read_cursor, read_limit, read_parameters, write_cursor
from chatstate.http.shapes import (
    JsonPatch,
    LoadedState,
    MergePatch,
    Message,
    RestoreBody,
    SaveBody,
    SessionPage,
    SessionRecord,
    SessionSummary,
    UpdateBody,
    VersionPage,
    VersionRecord,
    VersionSummary,
)
from chatstate.http.wire import (
    Findings,
    answer,
    check_media_type,
    encode_id,
    read_body,
    read_expires_in,
    read_id,
    read_state,
    read_time,
    read_version,
    record,
    summary,
    version_record,
)
from chatstate.model import (
    Expect,
    IdempotencyKey,
    Position,
    Session,
    Summary,
    Tag,
    check_prefix,
    check_user_session_id,
    format_time,
    parse_time,
)
from chatstate.patches import MEDIA_TYPES, unhurried
from chatstate.sessions import Replayed

Value = TypeVar("Value")

SESSIONS = "/chat-state-sessions"
SESSION = "/chat-state-sessions/{userSessionId}"

_MOST_LISTED, _MOST_LISTED_WITH_STATE = 1000, 20
"""The longest pages; states may be large."""


async def save(api: Api, request: Request) -> Response:
    """Save a state: create the session, or replace its state."""
    body = await read_body(request, SaveBody, api.options.limits.body_bytes)
    findings = Findings()
    user_session_id = findings.of("user_session_id", read_id, body.user_session_id)
    chat_state = findings.of("chat_state", read_state, body.chat_state, api.options.limits)
    last_activity = findings.of("last_activity", read_time, body.last_activity)
    expires_in = findings.of("expires_in_seconds", read_expires_in, body.expires_in_seconds)
    findings.raise_if_any()
    expect, once = await _conditions(api, request, "save")
    own_id = api.own(request, user_session_id)
    # What is not theirs is not there for them, and not theirs to create either.
    save_or_fail = api.sessions.save if own_id == user_session_id else api.sessions.update
    write = save_or_fail(own_id, chat_state, last_activity, expect, expires_in=expires_in, once=once)
    session = await _current_shown(api, request, own_id, write)
    response = _written(session, record(session), 201 if session.is_new else 200)
    if session.is_new:
        response.headers["location"] = f"{request.mount}{SESSIONS}/{encode_id(session.user_session_id)}"
    return response


async def load(api: Api, request: Request) -> Response:
    """Load a state."""
    required, known = if_match(request.headers), if_none_match(request.headers)
    session = await api.sessions.load(api.path_id(request))
    tag = session.tag
    headers = {"etag": etag(tag)}
    if not required.allows(tag):
        raise PreconditionFailed(tag)
    if not known.allows(tag):
        return Response(304, headers=headers)
    return answer(LoadedState(session.chat_state, format_time(session.last_activity)), headers=headers)


async def update(api: Api, request: Request) -> Response:
    """Change a session that exists: its state, its time of last activity, its expiry."""
    user_session_id = api.path_id(request)
    body = await read_body(request, UpdateBody, api.options.limits.body_bytes)
    findings = Findings()
    given = body.chat_state is not UNSET
    chat_state = findings.of("chat_state", read_state, body.chat_state, api.options.limits) if given else None
    last_activity = findings.of("last_activity", read_time, body.last_activity)
    expires_in = findings.of("expires_in_seconds", read_expires_in, body.expires_in_seconds)
    findings.raise_if_any()
    expect, once = await _conditions(api, request, "update")
    write = api.sessions.update(user_session_id, chat_state, last_activity, expect, expires_in=expires_in, once=once)
    session = await _current_shown(api, request, user_session_id, write)
    return _written(session, record(session) if given or _may_read(request) else summary(session))


async def patch(api: Api, request: Request) -> Response:
    """Change a part of the state on the server: a JSON merge patch (RFC 7396) or a JSON patch (RFC 6902)."""
    user_session_id = api.path_id(request)
    try:
        media_type = check_media_type(request.headers, list(MEDIA_TYPES))
    except UnsupportedMediaType as error:
        raise UnsupportedMediaType(error.message, accept_patch=_ACCEPT_PATCH) from None
    body = await request.read(api.options.limits.body_bytes)
    apply = await unhurried(MEDIA_TYPES[media_type], body)
    if not _may_read(request) and media_type == _JSON_PATCH and _reads(body):
        raise Forbidden("`test`, `copy` and `move` tell what the state is, so they take the scope `read`.", "read")
    expect, once = await _conditions(api, request, media_type)
    limit = api.options.limits.state_bytes
    write = api.sessions.edit(user_session_id, lambda state: unhurried(apply, state, limit), expect, once)
    session = await _current_shown(api, request, user_session_id, _without_hints(request, write))
    return _edited(request, session)


async def restore(api: Api, request: Request) -> Response:
    """Bring an earlier version back, as a new version."""
    user_session_id = api.path_id(request)
    body = await read_body(request, RestoreBody, api.options.limits.body_bytes)
    findings = Findings()
    version = findings.of("version", read_version, body.version)
    findings.raise_if_any()
    expect, once = await _conditions(api, request, "restore")
    write = api.sessions.restore(user_session_id, version, expect, once)
    session = await _current_shown(api, request, user_session_id, write)
    return _edited(request, session)


async def delete(api: Api, request: Request) -> Response:
    """Delete a session: all that is kept about it, its visits and messages too. If it is interrupted, the next try
    goes on."""
    user_session_id = api.path_id(request)
    expect, once = await _conditions(api, request, "delete")
    replayed = False
    try:
        erases = await api.inbox.erasure(user_session_id)
        write = api.sessions.delete(user_session_id, expect, once=once, erases=erases)
        replayed = await _current_shown(api, request, user_session_id, write)
    except SessionNotFound:
        await api.links.erase(user_session_id, api.clock())
        had_mail = await api.inbox.erase(user_session_id)
        had_visits = not api.options.keep_visits and await api.visits.erase(user_session_id)
        if not (had_mail or had_visits):
            raise
    else:
        await _erase_rest(api, user_session_id)
    headers = {"idempotency-replayed": "true"} if replayed else {}
    return answer(Message("Chat state session deleted"), headers=headers)


async def _erase_rest(api: Api, user_session_id: str) -> None:
    """Erase the links, the messages and the visits of a session that has just been deleted."""
    try:
        await api.links.erase(user_session_id, api.clock())
        await api.inbox.erase(user_session_id)
        if not api.options.keep_visits:
            await api.visits.erase(user_session_id)
    except StoreError as error:  # which may say that nothing was written
        raise OutcomeUnknown("The session is deleted, its messages or visits are not. Try again.") from error


async def list_sessions(api: Api, request: Request) -> Response:
    """List sessions, newest activity first, without their states unless they are asked for."""
    given = read_parameters(request, _LIST_PARAMETERS)
    findings = Findings()
    include = given.get("include")
    with_state = include == "chat_state"
    if include is not None and not with_state:
        findings.add("include", "must be chat_state, the only member that can be asked for")
    if with_state and not _may_read(request):
        raise Forbidden("This API key lacks the scope `read`, which lists with states need.", "read")
    most = _MOST_LISTED_WITH_STATE if with_state else _MOST_LISTED
    limit = findings.of("limit", read_limit, given.get("limit"), min(100, most), most)
    order = findings.of("order", _read_order, given.get("order", "activity"))
    after = findings.of("cursor", _read_position, given.get("cursor"), order)
    findings.of("prefix", check_prefix, given.get("prefix", ""))
    prefix = request.caller.within.narrowed(given.get("prefix", ""))
    active_after = findings.of("active_after", _read_query_time, given.get("active_after"))
    active_before = findings.of("active_before", _read_query_time, given.get("active_before"))
    findings.raise_if_any()
    if prefix is None:
        return answer(SessionPage([], None))
    sessions = await api.sessions.list(
        limit=limit + 1,  # one more shows whether there is a next page
        order=order,
        after=after,
        prefix=prefix,
        active_after=active_after,
        active_before=active_before,
        with_state=with_state,
    )
    page = sessions[:limit]
    cursor = _write_position(page[-1], order) if len(sessions) > limit else None
    return answer(
        SessionPage([_listed(session) for session in page], cursor), headers=next_page(request, given, cursor)
    )


async def list_versions(api: Api, request: Request) -> Response:
    """List the versions of a session that are kept, newest first."""
    user_session_id = api.path_id(request)
    given = read_parameters(request, ("limit", "cursor"))
    findings = Findings()
    limit = findings.of("limit", read_limit, given.get("limit"), 100, _MOST_LISTED)
    before = findings.of("cursor", read_cursor, given.get("cursor"), _VersionNumber)
    findings.raise_if_any()
    versions = await api.sessions.versions(user_session_id, limit + 1, before)
    page = versions[:limit]
    cursor = write_cursor(page[-1].version) if len(versions) > limit else None
    headers = next_page(request, given, cursor)
    if before is None:
        headers["etag"] = etag(Tag(page[0].session_id, page[0].version))
    rows = [
        VersionSummary(row.version, format_time(row.last_activity), format_time(row.saved_at), row.size) for row in page
    ]
    return answer(VersionPage(rows, cursor), headers=headers)


async def load_version(api: Api, request: Request) -> Response:
    """Load a version of a session."""
    user_session_id = api.path_id(request)
    number = request.params["version"]
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        number = "0"  # there is no such version
    row = await api.sessions.version(user_session_id, int(number))
    return answer(version_record(row), headers={"etag": etag(Tag(row.session_id, row.version))})


# --- What these have in common ----------------------------------------------------------------------------------------


async def _conditions(api: Api, request: Request, operation: str) -> tuple[Expect, IdempotencyKey | None]:
    """What the header fields of a write demand."""
    expect = precondition(request.headers, api.options.require_preconditions)
    if not request.headers.all("idempotency-key"):
        return expect, None
    body = await request.read(api.options.limits.body_bytes)
    caller = "" if request.caller is OPEN else request.caller.name
    return expect, idempotency_key(request.headers, operation, body, caller, api.digest_key)


class _Operation(Struct):
    """Of a JSON Patch, what it does; the values, which may be numbers of any size, are left alone."""

    op: str


def _reads(patch: bytes) -> bool:
    """Whether one of the operations of a valid JSON Patch takes something out of the state."""
    return any(operation.op in ("test", "copy", "move") for operation in json.decode(patch, type=list[_Operation]))


async def _without_hints(request: Request, write: Awaitable[Value]) -> Value:
    """What the write gives. Why a patch does not fit tells what the state is, so not everybody is told."""
    try:
        return await write
    except (PatchConflict, StateNotPatchable) as error:
        raise (error if _may_read(request) else type(error)()) from None


def _may_read(request: Request) -> bool:
    """Whether the caller may see a state that they have not just sent."""
    return "read" in request.caller.scopes


async def _current_shown(api: Api, request: Request, user_session_id: str, write: Awaitable[Value]) -> Value:
    """What the write gives. If its precondition fails, and the client prefers so, the error brings the session."""
    try:
        return await write
    except PreconditionFailed as error:
        if not (prefers_representation(request.headers) and _may_read(request)):
            raise
        try:
            session = await api.sessions.load(user_session_id)
        except ChatStateError:  # what has failed is the precondition, even if the session cannot be shown
            raise error from None
        raise PreconditionFailed(session.tag, session, expected_absence=error.expected_absence) from None


def _written(session: Session, shown: SessionRecord | SessionSummary, status: int = 200) -> Response:
    headers = {"etag": etag(session.tag)}
    if isinstance(session, Replayed):
        headers["idempotency-replayed"] = "true"
    return answer(shown, status, headers)


def _edited(request: Request, session: Session) -> Response:
    """The answer to an edit, with the state only if the client prefers so, and if it is still kept."""
    kept = not isinstance(session, Replayed) or session.state_is_kept
    if not (prefers_representation(request.headers) and kept and _may_read(request)):
        return _written(session, summary(session))
    response = _written(session, record(session))
    response.headers["preference-applied"] = "return=representation"
    return response


_VersionNumber = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]

_LIST_PARAMETERS = ("limit", "cursor", "order", "prefix", "active_after", "active_before", "include")


def _read_order(text: str) -> Literal["activity", "id"]:
    if text == "id":
        return "id"
    if text == "activity":
        return "activity"
    raise ValueError("must be activity or id")


def _read_query_time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def _write_position(session: Session | Summary, order: str) -> str:
    return write_cursor((order, format_time(session.last_activity), session.user_session_id))


def _read_position(text: str | None, order: str) -> Position | None:
    position = read_cursor(text, tuple[str, str, str])
    if position is None:
        return None
    if position[0] != order:
        raise ValueError("must be a cursor that this list has given, for the same order")
    check_user_session_id(position[2])
    return Position(parse_time(position[1]), position[2])


def _listed(session: Session | Summary) -> SessionSummary:
    shown = summary(session)
    if isinstance(session, Session):
        shown.chat_state = session.chat_state
    return shown


# --- The route table --------------------------------------------------------------------------------------------------

_CONDITIONS = ("IfMatch", "IfNoneMatch")
_WRITE = (*_CONDITIONS, "IdempotencyKey", "Prefer")
_WRITE_PROBLEMS = (
    "invalid_request",
    "invalid_precondition",
    "precondition_failed",
    "precondition_required",
    "idempotency_key_reused",
    *STORE_PROBLEMS,
)
_JSON_PATCH = "application/json-patch+json"
_PATCHES = {_JSON_PATCH: JsonPatch, "application/merge-patch+json": MergePatch}
_ACCEPT_PATCH = ", ".join(_PATCHES)

STATES = "Chat state"

ENDPOINTS = (
    Endpoint(
        "POST",
        SESSIONS,
        key_or_token("write", anonymous=True),
        save,
        STATES,
        SaveBody,
        {200: SessionRecord, 201: SessionRecord},
        (*BODY_PROBLEMS, "session_not_found", *_WRITE_PROBLEMS),
        _WRITE,
    ),
    Endpoint(
        "GET",
        SESSIONS,
        key("list"),
        list_sessions,
        STATES,
        None,
        {200: SessionPage},
        ("invalid_request", *STORE_PROBLEMS),
        _LIST_PARAMETERS,
    ),
    Endpoint(
        "GET",
        SESSION,
        key_or_token("read", anonymous=True),
        load,
        STATES,
        None,
        {200: LoadedState, 304: None},
        ("invalid_request", "invalid_precondition", "session_not_found", "precondition_failed", *STORE_PROBLEMS),
        _CONDITIONS,
    ),
    Endpoint(
        "PUT",
        SESSION,
        key_or_token("write", anonymous=True),
        update,
        STATES,
        UpdateBody,
        {200: SessionRecord},
        (*BODY_PROBLEMS, "session_not_found", *_WRITE_PROBLEMS),
        _WRITE,
    ),
    Endpoint(
        "PATCH",
        SESSION,
        key_or_token("write"),
        patch,
        STATES,
        _PATCHES,
        {200: SessionSummary},
        (
            *BODY_PROBLEMS,
            "invalid_patch",
            "session_not_found",
            "state_not_patchable",
            "patch_conflict",
            *_WRITE_PROBLEMS,
        ),
        _WRITE,
    ),
    Endpoint(
        "DELETE",
        SESSION,
        key_or_token("delete", anonymous=True),
        delete,
        STATES,
        None,
        {200: Message},
        ("session_not_found", "too_large", *_WRITE_PROBLEMS),
        _WRITE,
    ),
    Endpoint(
        "GET",
        f"{SESSION}/versions",
        key_or_token("read"),
        list_versions,
        STATES,
        None,
        {200: VersionPage},
        ("invalid_request", "session_not_found", *STORE_PROBLEMS),
        ("limit", "cursor"),
    ),
    Endpoint(
        "GET",
        f"{SESSION}/versions/{{version}}",
        key_or_token("read"),
        load_version,
        STATES,
        None,
        {200: VersionRecord},
        ("invalid_request", "session_not_found", "version_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "POST",
        f"{SESSION}/restore",
        key_or_token("write"),
        restore,
        STATES,
        RestoreBody,
        {200: SessionSummary},
        (*BODY_PROBLEMS, "session_not_found", "version_not_found", *_WRITE_PROBLEMS),
        _WRITE,
    ),
)
