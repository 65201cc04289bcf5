"""Visits in SQLite: what the statements are given, and what their rows mean. As in `sqlite_sessions`, everything runs
on one connection, and what writes runs inside a transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw
from msgspec import UNSET
from msgspec.structs import asdict

from chatstate.model import Within
from chatstate.stores import sql
from chatstate.stores.sqlite_times import microseconds, time_of
from chatstate.visit import (
    Changes,
    ChangeVisit,
    CreateVisit,
    EraseVisits,
    UserSessionQuery,
    Visit,
    VisitMissing,
    VisitOutcome,
    VisitQuery,
    VisitsChanged,
    VisitsErased,
    VisitTaken,
    VisitWrite,
)

_COLUMNS = Visit.__struct_fields__
_TIMES = ("session_start_time", "session_end_time", "created_at")


_WITHIN = "substr(user_session_id, 1, length(:prefix)) = :prefix AND coalesce(user_session_id = :only_session, 1)"
"""Whether the visit is one of the user sessions that somebody may know of."""


def _statement(name: str) -> str:
    return sql.statement("sqlite", name).replace("{columns}", ", ".join(_COLUMNS)).replace("{within}", _WITHIN)


_INSERT, _CHANGE, _CHANGE_USER = map(_statement, ("visit_insert", "visit_change", "visit_change_user"))
_ERASE, _USER_SESSIONS = map(_statement, ("erase_visits", "user_sessions"))
_ONE, _PAGE, _PAGE_USER = map(_statement, ("visit_one", "visit_page", "visit_page_user"))

_BEHIND_ALL = ((1 << 63) - 1, "")
"""The position before the first visit of a list: no time is as late."""


def apply_visit(connection: apsw.Connection, write: VisitWrite) -> VisitOutcome:
    """Carry out one write."""
    if isinstance(write, CreateVisit):
        created = connection.execute(_INSERT, {name: _kept(value) for name, value in asdict(write).items()}).fetchall()
        return _visit(created[0]) if created else VisitTaken()
    if isinstance(write, EraseVisits):
        given = {"user_session_id": write.user_session_id, "user_id": write.user_id}
        return VisitsErased(len(connection.execute(_ERASE, given).fetchall()))
    assignments, values = _assignments(write.changes)
    if isinstance(write, ChangeVisit):
        statement = _CHANGE.replace("{assignments}", assignments)
        values |= {"session_id": write.session_id, **_within(write.within)}
        changed = connection.execute(statement, values).fetchall()
        return _visit(changed[0]) if changed else VisitMissing()
    statement = _CHANGE_USER.replace("{assignments}", assignments)
    connection.execute(statement, {"user_session_id": write.user_session_id, **values})
    return VisitsChanged(connection.changes())


def _assignments(changes: Changes) -> tuple[str, dict[str, Any]]:
    """What SET takes. A change of nothing sets what never changes: the visit is found all the same."""
    values = {name: _kept(value) for name, value in asdict(changes).items() if value is not UNSET}
    return ", ".join(f"{name} = :{name}" for name in values) or "session_id = session_id", values


def _kept(value: object) -> object:
    return microseconds(value) if isinstance(value, datetime) else value


def visits(connection: apsw.Connection, query: VisitQuery) -> list[Visit]:
    """The visits that the query asks for, in its order."""
    if query.session_id is not None:
        given = {"session_id": query.session_id, **_within(query.within)}
        return [_visit(row) for row in connection.execute(_ONE, given)]
    start, session_id = query.after or (None, "")
    position = (microseconds(start), session_id) if start else _BEHIND_ALL
    parameters = {"start": position[0], "id": position[1], "limit": query.limit, **_within(query.within)}
    if query.user_session_id is None:
        return [_visit(row) for row in connection.execute(_PAGE, parameters)]
    parameters["user_session_id"] = query.user_session_id
    return [_visit(row) for row in connection.execute(_PAGE_USER, parameters)]


def user_sessions(connection: apsw.Connection, query: UserSessionQuery) -> list[str]:
    """The ids that the query asks for, in its order."""
    given = {"user_id": query.user_id, "after": query.after, "limit": query.limit, **_within(query.within)}
    return [row[0] for row in connection.execute(_USER_SESSIONS, given)]


def _within(within: Within) -> dict[str, Any]:
    """What `{within}` asks for."""
    return {"prefix": within.prefix, "only_session": within.only}


def _visit(row: tuple[Any, ...]) -> Visit:
    members = dict(zip(_COLUMNS, row, strict=True))
    for name in _TIMES:
        members[name] = None if members[name] is None else time_of(members[name])
    members["session_completed"] = bool(members["session_completed"])
    return Visit(**members)
