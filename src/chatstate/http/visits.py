"""The handlers of visits: `/chat-sessions` and what lies below, with the shapes of their bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import asdict

from chatstate.errors import BodyTooLarge, SessionNotFound, UnsupportedMediaType, VisitNotFound
from chatstate.http.api import BODY_PROBLEMS, STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import key, key_or_token
from chatstate.http.messages import Request, Response
from chatstate.http.paging import next_page, read_cursor, read_limit, read_parameters, write_cursor
from chatstate.http.shapes import UserSessionId
from chatstate.http.wire import (
    Findings,
    Member,
    answer,
    read_body,
    read_id,
    read_text,
    read_time,
    read_whole_number,
)
from chatstate.model import format_time, parse_time
from chatstate.visit import (
    MAX_COUNT,
    MAX_TEXT_LENGTH,
    MAX_USER_AGENT_LENGTH,
    Changes,
    Visit,
    VisitPosition,
    canonical_ip_address,
    canonical_session_id,
    check_count,
    check_text,
)

VISITS = "/chat-sessions"
VISIT = f"{VISITS}/{{sessionId}}"
VISITS_OF_USER = f"{VISITS}/user/{{userSessionId}}"

_MOST_BYTES = 1 << 16
"""The largest body."""

_PAGE, _LARGEST_PAGE = 100, 1000

# --- Shapes -----------------------------------------------------------------------------------------------------------

_UUID = "0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"
_START, _END = "2025-10-02T10:00:00Z", "2025-10-02T10:12:30Z"


def _meta(description: str, example: object, **schema: object) -> Meta:
    return Meta(description=description, examples=[example], extra_json_schema=schema or None)


def _time(description: str, example: str, kind: str | list[str]) -> Meta:
    # Not those that are before the year 1 or after the year 9999 in UTC.
    beyond = {"type": "string", "pattern": r"^(0000|0001-01-01.*\+|9999-12-31.*-\d\d:\d\d$)"}
    return _meta(description, example, type=kind, format="date-time", **{"not": beyond})


def _text(description: str, example: str, most: int = MAX_TEXT_LENGTH) -> Meta:
    return _meta(description, example, type=["string", "null"], maxLength=most, pattern=r"^[^\u0000]*$")


def _count(description: str, example: int) -> Meta:
    return _meta(description, example, type=["integer", "null"], minimum=0, maximum=MAX_COUNT)


_CHOSEN_ID = "The visit's id, if the client chooses it: a UUID that no visit has. Absent or null: a new one."
_USER_ID = "The person, as the bot knows them."
_STARTED = "When the visit began (RFC 3339)."
_ENDED = "When it ended (RFC 3339)."
_MESSAGES = "How many messages it had."
_DURATION = "How long it was, in whole minutes."
_DURATION_GIVEN = f"{_DURATION} As long as no client gives one, or after null: what lies between start and end."
_COMPLETED = "Whether the person came to the end of the conversation."
_OUTCOME = "What came of it."
_STEP = "The last step of the conversation that the person reached."
_AGENT = "The browser, as it names itself."
_ADDRESS = "The person's IPv4 or IPv6 address."
_DEVICE = "On what kind of device."


class ChangeVisitBody(Struct, kw_only=True):
    """What to change in a visit. An absent member stays as it is; null makes it what it was at first."""

    user_id: Annotated[Raw, _text(_USER_ID, "user_42")] | UnsetType = UNSET
    session_start_time: Annotated[Raw, _time(_STARTED, _START, "string")] | UnsetType = UNSET
    session_end_time: Annotated[Raw, _time(_ENDED, _END, ["string", "null"])] | UnsetType = UNSET
    total_messages_count: Annotated[Raw, _count(_MESSAGES, 14)] | UnsetType = UNSET
    session_duration_minutes: Annotated[Raw, _count(_DURATION_GIVEN, 13)] | UnsetType = UNSET
    session_completed: Annotated[Raw, _meta(_COMPLETED, True, type=["boolean", "null"])] | UnsetType = UNSET
    session_outcome: Annotated[Raw, _text(_OUTCOME, "resolved")] | UnsetType = UNSET
    final_step_reached: Annotated[Raw, _text(_STEP, "payment")] | UnsetType = UNSET
    user_agent: Annotated[Raw, _text(_AGENT, "Mozilla/5.0", MAX_USER_AGENT_LENGTH)] | UnsetType = UNSET
    ip_address: (
        Annotated[
            Raw,
            _meta(
                _ADDRESS,
                "203.0.113.7",
                anyOf=[
                    {"type": "string", "format": "ipv4"},
                    {"type": "string", "format": "ipv6", "pattern": "^[^%]*$"},
                    {"type": "null"},
                ],
            ),
        ]
        | UnsetType
    ) = UNSET
    device_type: Annotated[Raw, _text(_DEVICE, "mobile")] | UnsetType = UNSET


class CreateVisitBody(ChangeVisitBody, kw_only=True):
    """A visit to create."""

    session_id: Annotated[Raw, _meta(_CHOSEN_ID, _UUID, type=["string", "null"], format="uuid")] | UnsetType = UNSET
    user_session_id: UserSessionId
    session_start_time: (
        Annotated[Raw, _time(f"{_STARTED} Absent or null: now.", _START, ["string", "null"])] | UnsetType
    ) = UNSET


class VisitRecord(Struct):
    """A visit as it is stored. What nobody has said is null."""

    session_id: Annotated[str, _meta("The visit's id, a UUID.", _UUID, format="uuid")]
    user_session_id: Annotated[str, Meta(description="The id of the bot's session.", examples=["session_12345"])]
    user_id: Annotated[str | None, Meta(description=_USER_ID, examples=["user_42"])]
    session_start_time: Annotated[str, _meta(_STARTED, _START, format="date-time")]
    session_end_time: Annotated[str | None, _meta(_ENDED, _END, format="date-time")]
    total_messages_count: Annotated[int, Meta(description=_MESSAGES, examples=[14], ge=0)]
    session_duration_minutes: Annotated[int | None, _meta(_DURATION, 13, minimum=0)]
    session_completed: Annotated[bool, Meta(description=_COMPLETED, examples=[True])]
    session_outcome: Annotated[str | None, Meta(description=_OUTCOME, examples=["resolved"])]
    final_step_reached: Annotated[str | None, Meta(description=_STEP, examples=["payment"])]
    user_agent: Annotated[str | None, Meta(description=_AGENT, examples=["Mozilla/5.0"])]
    ip_address: Annotated[str | None, Meta(description=_ADDRESS, examples=["203.0.113.7"])]
    device_type: Annotated[str | None, Meta(description=_DEVICE, examples=["mobile"])]
    created_at: Annotated[str, _meta("When the server got it.", _START, format="date-time")]


class Updated(Struct):
    """How many visits were changed."""

    updated: Annotated[int, Meta(description="How many visits were changed: all of this user session.", ge=1)]


# --- Handlers ---------------------------------------------------------------------------------------------------------


async def create_visit(api: Api, request: Request) -> Response:
    """Begin a visit."""
    body = await _read(request, CreateVisitBody)
    findings = Findings()
    session_id = findings.of("session_id", _or_none, canonical_session_id, body.session_id)
    user_session_id = findings.of("user_session_id", read_id, body.user_session_id)
    if _is_null(body.session_start_time):
        body.session_start_time = UNSET
    members = _read_members(body, findings)
    findings.raise_if_any()
    if api.own(request, user_session_id) != user_session_id:
        raise SessionNotFound
    visit = await api.visits.create(user_session_id, session_id, members)
    return answer(record(visit), 201, {"location": f"{request.mount}{VISITS}/{visit.session_id}"})


async def list_visits(api: Api, request: Request) -> Response:
    """List visits, newest start first."""
    return await _page(api, request)


async def list_visits_of_user(api: Api, request: Request) -> Response:
    """List the visits of one user session, newest start first."""
    return await _page(api, request, api.path_id(request))


async def load_visit(api: Api, request: Request) -> Response:
    """Load a visit."""
    visit = await api.visits.load(_path_session_id(request), request.caller.within)
    request.session = visit.user_session_id
    return answer(record(visit))


async def change_visit(api: Api, request: Request) -> Response:
    """Change a visit, for example when it ends."""
    session_id = _path_session_id(request)
    try:
        body = await _read(request, ChangeVisitBody, _PATCHES)
    except UnsupportedMediaType as error:
        raise UnsupportedMediaType(error.message, accept_patch=", ".join(_PATCHES)) from None
    visit = await api.visits.change(session_id, _changes(body), request.caller.within)
    request.session = visit.user_session_id
    return answer(record(visit) if "read" in request.caller.scopes else Updated(1))


async def change_visits_of_user(api: Api, request: Request) -> Response:
    """Change all visits of one user session."""
    user_session_id = api.path_id(request)
    changes = _changes(await _read(request, ChangeVisitBody))
    return answer(Updated(await api.visits.change_all(user_session_id, changes)))


async def _page(api: Api, request: Request, user_session_id: str | None = None) -> Response:
    given = read_parameters(request, ("limit", "cursor"))
    findings = Findings()
    limit = findings.of("limit", read_limit, given.get("limit"), _PAGE, _LARGEST_PAGE)
    after = findings.of("cursor", _read_position, given.get("cursor"))
    findings.raise_if_any()
    # One more shows whether there is a next page.
    visits = await api.visits.page(user_session_id, within=request.caller.within, limit=limit + 1, after=after)
    shown = visits[:limit]
    cursor = _write_position(shown[-1]) if len(visits) > limit else None
    return answer([record(visit) for visit in shown], headers=next_page(request, given, cursor))


def _write_position(visit: Visit) -> str:
    return write_cursor((format_time(visit.session_start_time), visit.session_id))


def _read_position(text: str | None) -> VisitPosition | None:
    position = read_cursor(text, tuple[str, str])
    return position and VisitPosition(parse_time(position[0]), canonical_session_id(position[1]))


def record(visit: Visit) -> VisitRecord:
    """The visit as it goes over the wire."""
    members = asdict(visit)
    for name in ("session_start_time", "session_end_time", "created_at"):
        members[name] = members[name] and format_time(members[name])
    return VisitRecord(**members)


# --- Reading requests -------------------------------------------------------------------------------------------------

_JSON = ("application/json",)
_PATCHES = (*_JSON, "application/merge-patch+json")

Body = TypeVar("Body", bound=Struct)
Value = TypeVar("Value")


async def _read(request: Request, shape: type[Body], accepted: tuple[str, ...] = _JSON) -> Body:
    try:
        return await read_body(request, shape, _MOST_BYTES, accepted)
    except BodyTooLarge:
        raise BodyTooLarge(f"The body is larger than {_MOST_BYTES} bytes, more than any visit needs.") from None


def _path_session_id(request: Request) -> str:
    """The id in the path. What is no UUID is the id of no visit, so that is what the answer says."""
    try:
        return canonical_session_id(unquote_to_bytes(request.params["sessionId"].encode("latin-1")).decode("ascii"))
    except ValueError:
        raise VisitNotFound from None


def _is_null(raw: Member) -> bool:
    return isinstance(raw, Raw) and bytes(raw) == b"null"


def _or_none(read: Callable[[str], Value], raw: Member) -> Value | None:
    """What `read` makes of a string; None when the member is absent or null."""
    return None if raw is UNSET or _is_null(raw) else read(read_text(raw))


def _read_short_text(raw: Member, most: int = MAX_TEXT_LENGTH) -> str | None:
    text = _or_none(str, raw)
    check_text(text or "", most)
    return text


def _read_user_agent(raw: Member) -> str | None:
    return _read_short_text(raw, MAX_USER_AGENT_LENGTH)


def _read_address(raw: Member) -> str | None:
    return _or_none(canonical_ip_address, raw)


def _read_start(raw: Member) -> datetime | None:
    if _is_null(raw):
        raise ValueError("must be a time: every visit has a start")
    return read_time(raw)


def _read_count(raw: Member) -> int | None:
    if _is_null(raw):
        return None
    number = read_whole_number(raw)
    if number is None:
        raise ValueError(f"must be a whole number from 0 to {MAX_COUNT}")
    check_count(number)
    return number


def _read_messages_count(raw: Member) -> int:
    return _read_count(raw) or 0


def _read_flag(raw: Member) -> bool:
    text = bytes(raw) if isinstance(raw, Raw) else b""
    if text not in (b"true", b"false", b"null"):
        raise ValueError("must be true or false")
    return text == b"true"


_READERS: Mapping[str, Callable[[Member], Any]] = {
    "user_id": _read_short_text,
    "session_start_time": _read_start,
    "session_end_time": read_time,
    "total_messages_count": _read_messages_count,
    "session_duration_minutes": _read_count,
    "session_completed": _read_flag,
    "session_outcome": _read_short_text,
    "final_step_reached": _read_short_text,
    "user_agent": _read_user_agent,
    "ip_address": _read_address,
    "device_type": _read_short_text,
}
"""How each member of a body is read: what makes a value of it, or raises ValueError."""


def _read_members(body: ChangeVisitBody, findings: Findings) -> Changes:
    """The members that the body has; some are no values if there are findings."""
    sent = {name: raw for name in _READERS if (raw := getattr(body, name)) is not UNSET}
    members = {name: findings.of(name, _READERS[name], raw) for name, raw in sent.items()}
    if "session_duration_minutes" in members:
        members["given_duration_minutes"] = members.pop("session_duration_minutes")
    return Changes(**members)


def _changes(body: ChangeVisitBody) -> Changes:
    findings = Findings()
    changes = _read_members(body, findings)
    findings.raise_if_any()
    return changes


# --- The route table --------------------------------------------------------------------------------------------------

_TAG = "Visits"
_LISTED = ("limit", "cursor")
_LIST_PROBLEMS = ("invalid_request", *STORE_PROBLEMS)
_CHANGE_PROBLEMS = (*BODY_PROBLEMS, "visit_not_found", *STORE_PROBLEMS)

ENDPOINTS = (
    Endpoint(
        "POST",
        VISITS,
        key_or_token("write"),
        create_visit,
        _TAG,
        CreateVisitBody,
        {201: VisitRecord},
        (*BODY_PROBLEMS, "session_not_found", "visit_exists", *STORE_PROBLEMS),
    ),
    Endpoint("GET", VISITS, key("list"), list_visits, _TAG, None, {200: list[VisitRecord]}, _LIST_PROBLEMS, _LISTED),
    Endpoint(
        "GET",
        VISIT,
        key_or_token("read"),
        load_visit,
        _TAG,
        None,
        {200: VisitRecord},
        ("visit_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "PATCH",
        VISIT,
        key_or_token("write"),
        change_visit,
        _TAG,
        dict.fromkeys(_PATCHES, ChangeVisitBody),
        {200: VisitRecord},
        _CHANGE_PROBLEMS,
    ),
    Endpoint(
        "GET",
        VISITS_OF_USER,
        key_or_token("read"),
        list_visits_of_user,
        _TAG,
        None,
        {200: list[VisitRecord]},
        _LIST_PROBLEMS,
        _LISTED,
    ),
    Endpoint(
        "PUT",
        VISITS_OF_USER,
        key_or_token("write"),
        change_visits_of_user,
        _TAG,
        ChangeVisitBody,
        {200: Updated},
        _CHANGE_PROBLEMS,
    ),
)
