"""Visits in PostgreSQL: the statements, what they are given, and what their rows mean.

Members travel as JSON objects of columns, which PostgreSQL makes typed rows of (`jsonb_populate_record`): so one
statement changes many visits, each in other columns. A batch first creates visits, then locks rows in the order of
their ids, then changes them: whoever waits for a lock has changed nothing yet that somebody else could wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import json

from chatstate.errors import WriteRefused
from chatstate.stores import sql
from chatstate.stores.postgres_connection import Connection
from chatstate.stores.postgres_schema import Schema
from chatstate.visit import (
    Changes,
    ChangeVisit,
    ChangeVisits,
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

_COLUMNS = ", ".join(f"v.{name}" for name in Visit.__struct_fields__).replace("v.session_id", "v.session_id::text")
_CHANGED = Changes.__struct_fields__
_ASSIGNMENTS = (
    f"({', '.join(_CHANGED)}) = "
    f"(SELECT {', '.join(f'n.{name}' for name in _CHANGED)} FROM jsonb_populate_record(v, w.changes) AS n)"
)

_BEHIND_ALL = ("infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff")
"""The position before the first visit of a list."""


@lru_cache
def _statement(schema: Schema, name: str) -> str:
    template = sql.statement("postgres", name).replace("{columns}", _COLUMNS).replace("{assignments}", _ASSIGNMENTS)
    return schema.fill(template)


# --- Writes -----------------------------------------------------------------------------------------------------------


def needs_several_statements(writes: Sequence[VisitWrite]) -> bool:
    """Whether `apply_visits` must run inside a transaction; one statement is one by itself."""
    return len({type(write) for write in writes}) > 1


async def apply_visits(connection: Connection, schema: Schema, writes: Sequence[VisitWrite]) -> list[VisitOutcome]:
    """Carry out writes of distinct visits and distinct users, an outcome for each, in order."""
    created = [write for write in writes if isinstance(write, CreateVisit)]
    changed = [write for write in writes if isinstance(write, ChangeVisit)]
    of_users = [write for write in writes if isinstance(write, ChangeVisits)]
    erased = [write for write in writes if isinstance(write, EraseVisits)]
    visits: dict[str, Visit] = {}
    counts: dict[str, int] = {}
    if created:
        rows = sorted(created, key=lambda write: write.session_id)
        visits |= _by_id(await connection.fetch(_statement(schema, "visit_insert"), _text(rows)))
    if bool(changed) + bool(of_users) + bool(erased) > 1:
        ids = [write.session_id for write in changed]
        users = [write.user_session_id for write in of_users] + [write.user_session_id for write in erased]
        await connection.fetch(_statement(schema, "visit_lock"), ids, users)
    if changed:
        ids, changes = [write.session_id for write in changed], [_text(write.changes) for write in changed]
        given = (ids, changes, [write.within.prefix for write in changed], [write.within.only for write in changed])
        visits |= _by_id(await connection.fetch(_statement(schema, "visit_change"), *given))
    if of_users:
        users, changes = [write.user_session_id for write in of_users], [_text(write.changes) for write in of_users]
        counts = dict(await connection.fetch(_statement(schema, "visit_change_user"), users, changes))
    if erased:
        users, people = [write.user_session_id for write in erased], [write.user_id for write in erased]
        counts |= dict(await connection.fetch(_statement(schema, "erase_visits"), users, people))
    return [_outcome(write, visits, counts) for write in writes]


def _text(document: object) -> str:
    try:
        return json.encode(document).decode()
    except UnicodeEncodeError as error:
        raise WriteRefused("The store cannot keep lone surrogates.") from error


def _by_id(rows: Iterable[Any]) -> dict[str, Visit]:
    return {visit.session_id: visit for visit in map(_visit, rows)}


def _outcome(write: VisitWrite, visits: Mapping[str, Visit], counts: Mapping[str, int]) -> VisitOutcome:
    if isinstance(write, ChangeVisits):
        return VisitsChanged(counts.get(write.user_session_id, 0))
    if isinstance(write, EraseVisits):
        return VisitsErased(counts.get(write.user_session_id, 0))
    return visits.get(write.session_id) or (VisitTaken() if isinstance(write, CreateVisit) else VisitMissing())


def _visit(row: Any) -> Visit:
    members = dict(zip(Visit.__struct_fields__, row, strict=True))
    address = members["ip_address"]
    return Visit(**{**members, "ip_address": None if address is None else str(address)})


# --- Lists ------------------------------------------------------------------------------------------------------------


async def visits(connection: Connection, schema: Schema, query: VisitQuery) -> list[Visit]:
    """The visits that the query asks for, in its order."""
    within = (query.within.prefix, query.within.only)
    if query.session_id is not None:
        rows = await connection.fetch(_statement(schema, "visit_one"), query.session_id, *within)
        return [_visit(row) for row in rows]
    position = (query.after.session_start_time.isoformat(), query.after.session_id) if query.after else _BEHIND_ALL
    if query.user_session_id is None:
        rows = await connection.fetch(_statement(schema, "visit_page"), *position, query.limit, *within)
    else:
        rows = await connection.fetch(
            _statement(schema, "visit_page_user"), *position, query.limit, *within, query.user_session_id
        )
    return [_visit(row) for row in rows]


async def user_sessions(connection: Connection, schema: Schema, query: UserSessionQuery) -> list[str]:
    """The ids that the query asks for, in its order."""
    given = (query.user_id, query.after, query.within.prefix, query.limit, query.within.only)
    return [row[0] for row in await connection.fetch(_statement(schema, "user_sessions"), *given)]
