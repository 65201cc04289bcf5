"""Sessions in SQLite: what the statements are given, and what their rows mean. Everything here runs on one connection,
and what writes runs inside a transaction, which holds SQLite's one write lock: nothing that is read can be out of date.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw
from msgspec import json

from chatstate.mailbox import Settled
from chatstate.model import (
    REMEMBERED_FOR,
    Conflict,
    Delete,
    Deleted,
    IdempotencyKey,
    Remembered,
    RememberedQuery,
    Replay,
    ReplayQuery,
    Retention,
    Save,
    Session,
    SessionQuery,
    Summary,
    Swept,
    Tag,
    Tagged,
    TagQuery,
    Version,
    VersionQuery,
    Write,
    prefix_end,
)
from chatstate.stores import sql, sqlite_mailbox
from chatstate.stores.base import Outcome, verb_for
from chatstate.stores.sqlite_times import MICROSECOND, microseconds, time_of

_GONE = "coalesce(expires_at <= :now, updated_at <= :idle_since, 0)"
"""Whether a session has expired: by its own expiry, else by the server's for idle sessions."""


def _statement(name: str) -> str:
    return sql.statement("sqlite", name).replace("{gone}", _GONE)


_WRITES = {name: _statement(name) for name in ("upsert", "insert", "update", "delete")}
_LOAD, _TAG, _BURY = _statement("load"), _statement("tag"), _statement("bury")
_RECORD_PRIOR, _RECORD, _PRUNE = _statement("record_prior"), _statement("record_version"), _statement("prune")
_RECALL, _REMEMBER = _statement("recall"), _statement("remember")
_VERSIONS = (
    _statement("versions")
    .replace("{size}", sql.clear_size("chat_state"))
    .replace("{recorded_size}", sql.clear_size("v.chat_state"))
)
_REMEMBERED = _statement("remembered")
_SWEEP, _SWEEP_KEYS, _SWEEP_IDLE, _PAGE = map(_statement, ("sweep", "sweep_keys", "sweep_idle", "page"))
_SWEEP_RECORDS, _SWEEP_VISITS = _statement("sweep_records"), _statement("sweep_visits")

Parameters = dict[str, Any]


def _time_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else time_of(microseconds)


def _moment(now: datetime, retention: Retention) -> Parameters:
    """What `_GONE` asks for."""
    idle_since = retention.idle_since(now)
    return {"now": microseconds(now), "idle_since": None if idle_since is None else microseconds(idle_since)}


def check_readable(connection: apsw.Connection) -> None:
    """Raises the driver's error when there is no table."""
    connection.execute(_TAG, {"user_session_id": "", "now": 0, "idle_since": None}).fetchall()


def load(connection: apsw.Connection, ids: Sequence[str], now: datetime, retention: Retention) -> dict[str, Session]:
    parameters = _moment(now, retention)
    sessions = {}
    for user_session_id in ids:
        for row in connection.execute(_LOAD, parameters | {"user_session_id": user_session_id}):
            sessions[user_session_id] = _session(*row)
    return sessions


def _session(
    session_id: str, user_session_id: str, state: str, active: int, created: int, updated: int, version: int, ends: Any
) -> Session:
    times = (time_of(active), time_of(created), time_of(updated))
    return Session(session_id, user_session_id, state, *times, version, _time_or_none(ends))


# --- Writing ----------------------------------------------------------------------------------------------------------


def apply(connection: apsw.Connection, write: Write, retention: Retention) -> Outcome:
    """Carry out one write."""
    parameters = _parameters(write, retention)
    if write.once and (replay := _recall(connection, parameters)):
        return replay
    settles = write.settles if isinstance(write, Save) else None
    if settles and not sqlite_mailbox.is_open(connection, settles):
        return Settled(False)
    if retention.history and isinstance(write, Save):
        connection.execute(_RECORD_PRIOR, parameters)
    outcome = _try(connection, write, parameters)
    if outcome == Conflict(None):
        connection.execute(_BURY, parameters)
        if write.expect.allows(None):
            outcome = _try(connection, write, parameters, known_absent=True)
    if retention.history and isinstance(outcome, Session):
        _record(connection, outcome, parameters, retention.history)
    if write.once and isinstance(outcome, Session | Deleted):
        connection.execute(_REMEMBER, parameters | _remembered(write, outcome))
    if settles and isinstance(outcome, Session):
        sqlite_mailbox.settle(connection, settles)
    if isinstance(write, Delete) and write.erases and isinstance(outcome, Deleted):
        sqlite_mailbox.erase(connection, write.erases)
    return outcome


def _parameters(write: Write, retention: Retention) -> Parameters:
    only = write.expect.only
    parameters: Parameters = {
        "user_session_id": write.user_session_id,
        "only": None if only is None else json.encode([str(tag) for tag in only]).decode(),
        "unless": json.encode([str(tag) for tag in write.expect.unless]).decode(),
        **_moment(write.now, retention),
    }
    if isinstance(write, Save):
        parameters |= {
            "session_id": write.new_session_id,
            "chat_state": write.chat_state,
            "last_activity": microseconds(write.last_activity),
            "expires_in": None if write.expires_in is None else write.expires_in * 1_000_000,
        }
    return parameters | _key(write.once)


def _key(once: IdempotencyKey | None) -> Parameters:
    return {"caller": once.caller, "key": once.key, "digest": once.digest} if once else {}


def _try(connection: apsw.Connection, write: Write, parameters: Parameters, known_absent: bool = False) -> Outcome:
    for row in connection.execute(_WRITES[verb_for(write, known_absent)], parameters):
        return _saved(write, *row) if isinstance(write, Save) else Deleted(Tag(*row))
    if isinstance(write, Save) and write.show_current:
        for row in connection.execute(_LOAD, parameters):
            session = _session(*row)
            return Conflict(session.tag, session)
    for row in connection.execute(_TAG, parameters):
        return Conflict(Tag(*row))
    return Conflict(None)


def _saved(
    write: Save, session_id: str, created: int, version: int, ends: int | None, kept_state: str | None = None
) -> Session:
    state = write.chat_state if kept_state is None else kept_state
    assert state is not None  # a write without a state updates, and gives the one that it has kept
    times = (write.last_activity, time_of(created), write.now)
    return Session(session_id, write.user_session_id, state, *times, version, _time_or_none(ends))


def _record(connection: apsw.Connection, session: Session, parameters: Parameters, history: int) -> None:
    version = {"session_id": session.session_id, "version": session.version, "history": history}
    connection.execute(_RECORD, parameters | version | {"chat_state": session.chat_state})
    connection.execute(_PRUNE, version)


def _recall(connection: apsw.Connection, parameters: Parameters) -> Replay | None:
    for digest, deleted, *row in connection.execute(_RECALL, parameters):
        session_id, user_session_id, active, created, updated, version, ends, state = row
        if deleted:
            return Replay(digest, Deleted(Tag(session_id, version)))
        times = (time_of(active), time_of(created), time_of(updated))
        return Replay(digest, Summary(session_id, user_session_id, *times, version, _time_or_none(ends)), state)
    return None


_NOTHING_KEPT: Parameters = {"expires_at": None, "chat_state": None}


def _remembered(write: Write, outcome: Session | Deleted) -> Parameters:
    session_id, version = outcome.tag
    row: Parameters = {"session_id": session_id, "version": version, "deleted": isinstance(outcome, Deleted)}
    row["forget_at"] = microseconds(write.now) + REMEMBERED_FOR // MICROSECOND
    if isinstance(outcome, Deleted) or isinstance(write, Delete):
        now = microseconds(write.now)
        return row | {
            "last_activity": now,
            "created_at": now,
            "updated_at": now,
            "expires_at": None,
            "chat_state": None,
        }
    return row | {
        "last_activity": microseconds(outcome.last_activity),
        "created_at": microseconds(outcome.created_at),
        "updated_at": microseconds(outcome.updated_at),
        "expires_at": None if outcome.expires_at is None else microseconds(outcome.expires_at),
        "chat_state": outcome.chat_state if write.chat_state is None else None,
    }


# --- Lists ------------------------------------------------------------------------------------------------------------


def replays(connection: apsw.Connection, query: ReplayQuery) -> list[Replay]:
    parameters = {"user_session_id": query.user_session_id, "now": microseconds(query.now), **_key(query.once)}
    replay = _recall(connection, parameters)
    return [replay] if replay else []


def remembered(connection: apsw.Connection, query: RememberedQuery) -> list[Remembered]:
    given = {"user_session_id": query.user_session_id, "now": microseconds(query.now)}
    return [Remembered(key, time_of(at), state) for key, at, state in connection.execute(_REMEMBERED, given)]


def tags(connection: apsw.Connection, query: TagQuery) -> list[Tagged]:
    given = _moment(query.now, query.retention)
    return [
        Tagged(name, Tag(*row))
        for name in query.ids
        for row in connection.execute(_TAG, given | {"user_session_id": name})
    ]


def versions(connection: apsw.Connection, query: VersionQuery) -> list[Version]:
    parameters = {
        "user_session_id": query.user_session_id,
        "version": query.version,
        "before": query.before or (1 << 63) - 1,
        "limit": query.limit,
        "with_state": query.with_state,
        **_moment(query.now, query.retention),
    }
    rows = connection.execute(_VERSIONS, parameters)
    return [
        Version(session_id, version, time_of(active), time_of(saved), size, state)
        for session_id, version, active, saved, size, state in rows
    ]


def sessions(connection: apsw.Connection, query: SessionQuery) -> list[Session] | list[Summary]:
    few = query.order == "activity" and query.prefix != "" and _few_begin_with(connection, query.prefix)
    statement, parameters = _listing(query, few)
    rows = connection.execute(statement, parameters)
    if query.with_state:
        return [_session(*row) for row in rows]
    return [
        Summary(
            session_id,
            user_session_id,
            time_of(active),
            time_of(created),
            time_of(updated),
            version,
            _time_or_none(ends),
        )
        for session_id, user_session_id, active, created, updated, version, ends in rows
    ]


_FEW = 500


def _few_begin_with(connection: apsw.Connection, prefix: str) -> bool:
    """Whether so few ids begin with the prefix that finding and sorting them is quicker than looking by activity."""
    end = prefix_end(prefix)
    until = "AND user_session_id < :end" if end else ""
    ids = f"SELECT 1 FROM chat_state_sessions WHERE user_session_id >= :prefix {until} LIMIT {_FEW}"
    return len(connection.execute(ids, {"prefix": prefix, "end": end}).fetchall()) < _FEW


def _listing(query: SessionQuery, few: bool) -> tuple[str, Parameters]:
    """The statement with just the conditions that the query has, so that each finds its index.

    few  whether the index of ids shall be chosen, also for a list by activity; a + keeps SQLite from choosing another
    """
    parameters = _moment(query.now, query.retention) | {"limit": query.limit}
    conditions = [f"NOT {_GONE}"]

    def add(condition: str, **values: object) -> None:
        conditions.append(condition)
        parameters.update(values)

    by_id = query.order == "id"
    indexed_id = "user_session_id" if by_id or few else "+user_session_id"
    active = "+last_activity" if few else "last_activity"
    if query.prefix:
        add(f"{indexed_id} >= :prefix", prefix=query.prefix)
        if end := prefix_end(query.prefix):
            add(f"{indexed_id} < :prefix_end", prefix_end=end)
    if query.active_after:
        add(f"{active} >= :active_after", active_after=microseconds(query.active_after))
    if query.active_before:
        add(f"{active} < :active_before", active_before=microseconds(query.active_before))
    if query.after and by_id:
        add("user_session_id > :id", id=query.after.user_session_id)
    elif query.after:
        place = {"active": microseconds(query.after.last_activity), "id": query.after.user_session_id}
        add(f"({active}, user_session_id) < (:active, :id)", **place)
    state = "chat_state, " if query.with_state else ""
    order = "user_session_id" if by_id else f"{active} DESC, user_session_id DESC"
    return (
        f"SELECT session_id, user_session_id, {state}last_activity, created_at, updated_at, version, expires_at "
        f"FROM chat_state_sessions WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT :limit"
    ), parameters


# --- Sweeping ---------------------------------------------------------------------------------------------------------


def sweep(connection: apsw.Connection, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
    parameters = _moment(now, retention) | {"limit": limit, "after": after or ""}
    removed = len(connection.execute(_SWEEP, parameters).fetchall())
    of_others = [_SWEEP_KEYS, _SWEEP_RECORDS]
    if kept_since := retention.visits_since(now):
        of_others.append(_SWEEP_VISITS)
        parameters["kept_since"] = microseconds(kept_since)
    others = [len(connection.execute(statement, parameters).fetchall()) for statement in of_others]
    others.append(sqlite_mailbox.sweep(connection, now, retention, limit))
    more = limit in (removed, *others)
    if retention.idle is None:
        return Swept(removed, "" if more else None)
    last: Any
    ((last, count),) = connection.execute(_PAGE, parameters).fetchall()
    if count:
        removed += len(connection.execute(_SWEEP_IDLE, parameters | {"last": last}).fetchall())
    if count == limit:
        return Swept(removed, last)
    return Swept(removed, (last or after or "") if more else None)
