"""Sessions in PostgreSQL: the statements as they fit the table, what they are given, and what their rows mean.

The first two parameters of statements about sessions are always the time and the end of idleness: `{gone}` asks for
them. Times go as text: the driver would turn the first and the last moment of the calendar into infinities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from chatstate.model import (
    REMEMBERED_FOR,
    Delete,
    Deleted,
    Expect,
    Replay,
    ReplayQuery,
    Retention,
    Save,
    Session,
    SessionQuery,
    Summary,
    Tag,
    Version,
    VersionQuery,
    Write,
    prefix_end,
)
from chatstate.stores import sql
from chatstate.stores.base import Outcome, Verb
from chatstate.stores.postgres_schema import Schema

_FIRST, _LAST = "'0001-01-01Z'", "'9999-12-31 23:59:59.999999Z'"
"""The ends of our calendar, beyond which PostgreSQL goes on."""

_GONE = "coalesce(s.expires_at <= $1::text::timestamptz, s.updated_at <= $2::text::timestamptz, false)"
"""Whether a session has expired: by its own expiry, else by the server's for idle sessions."""


def readable(column: str) -> str:
    """The time, or the end of the calendar where it lies beyond."""
    return f"least(greatest(s.{column}::timestamptz, {_FIRST}), {_LAST})"


_TIMES = ", ".join(f"{readable(column)} AS {column}" for column in ("last_activity", "created_at", "updated_at"))
_ENDS = f"CASE WHEN s.expires_at IS NOT NULL THEN {readable('expires_at')} END AS expires_at"
_SUMMARY = f"s.session_id::text, s.user_session_id, {_TIMES}, s.version, {_ENDS}"
_COLUMNS = f"s.session_id::text, s.user_session_id, s.chat_state, {_TIMES}, s.version, {_ENDS}"
_SAVED = f"s.session_id::text, s.user_session_id, NULL::text AS kept_state, {_TIMES}, s.version, {_ENDS}"
_UPDATED = _SAVED.replace("NULL::text", "CASE WHEN ($4::text[])[w.number] IS NULL THEN s.chat_state END")
_VERSION = f"s.session_id::text, s.version, {readable('last_activity')}, {readable('updated_at')}"

_SAVING = ("upsert", "insert", "update")


@lru_cache(256)
def statement(schema: Schema, name: str, history: int = 0) -> str:
    """The statement of this name for this table; one that saves records versions if some are to be kept."""
    template = sql.statement("postgres", name)
    also = ""
    if history and name in _SAVING:
        template = sql.statement("postgres", "history").replace("{statement}", template)
        also = ", s.chat_state"
    words = {
        "saved": _SAVED + also,
        "updated": _UPDATED + also,
        "columns": _COLUMNS,
        "version_columns": f"{_VERSION}, s.chat_state",
        "version_columns_read": f"{_VERSION}, {{size}}, CASE WHEN $6::boolean THEN s.chat_state END",
        "size": sql.clear_size("s.chat_state"),
        "recorded_size": sql.clear_size("v.chat_state"),
        "gone": _GONE,
        "history": str(history),
        "first": _FIRST,
        "last": _LAST,
    }
    for word, value in words.items():
        template = template.replace(f"{{{word}}}", value)
    return schema.fill(template)


def moment(now: datetime, retention: Retention) -> tuple[str, str | None]:
    """What `{gone}` asks for."""
    idle_since = retention.idle_since(now)
    return now.isoformat(), None if idle_since is None else idle_since.isoformat()


# --- Writes -----------------------------------------------------------------------------------------------------------


def parameters(verb: Verb, writes: Sequence[Any], retention: Retention) -> list[Any]:
    """The parameters of the statement: the time, and for each other one a column with the values of all writes.

    One time for all of them, the latest: the same that is asked for when the losers are looked at.
    """
    now = max(write.now for write in writes)
    columns = zip(*(_ROWS[verb](write) for write in writes), strict=True)
    return [*moment(now, retention), *map(list, columns)]


def _inserted(write: Save) -> tuple[Any, ...]:
    times = (write.last_activity.isoformat(), write.now.isoformat())
    return (write.user_session_id, write.new_session_id, write.chat_state, *times, write.expires_in)


def _updated(write: Save) -> tuple[Any, ...]:
    times = (write.last_activity.isoformat(), write.now.isoformat())
    return (write.user_session_id, write.chat_state, *times, write.expires_in, *_tags(write.expect))


def _deleted(write: Delete) -> tuple[Any, ...]:
    return (write.user_session_id, *_tags(write.expect))


def _tags(expect: Expect) -> tuple[str | None, str]:
    """`only` and `unless` as lines of tags; None for no restriction."""
    only = None if expect.only is None else "\n".join([str(tag) for tag in expect.only])
    return only, "\n".join([str(tag) for tag in expect.unless]) if expect.unless else ""


_ROWS: dict[Verb, Callable[[Any], tuple[Any, ...]]] = {
    "upsert": _inserted,
    "insert": _inserted,
    "update": _updated,
    "delete": _deleted,
}


def outcomes(group: Sequence[Write], rows: Sequence[Any]) -> dict[str, Outcome]:
    """What became of the writes for which the statement gave a row. A foreign trigger may have changed a row's id."""
    by_id = {write.user_session_id: write for write in group}
    found = {row[1]: _outcome(by_id[row[1]], row) for row in rows if row[1] in by_id}
    return {user_session_id: outcome for user_session_id, outcome in found.items() if outcome}


def _outcome(write: Write, row: Any) -> Outcome | None:
    if not isinstance(write, Save):
        session_id, _, version, had_expired = row
        return None if had_expired else Deleted(Tag(session_id, version))
    session_id, user_session_id, kept_state, *rest = row
    return Session(session_id, user_session_id, kept_state if write.chat_state is None else write.chat_state, *rest)


# --- Idempotency keys -------------------------------------------------------------------------------------------------


def recalled(keyed: Sequence[Write | ReplayQuery]) -> list[Any]:
    """The parameters of `recall`."""
    keys = [(write.user_session_id, write.once.caller, write.once.key) for write in keyed if write.once]
    return [min(write.now for write in keyed).isoformat(), *map(list, zip(*keys, strict=True))]


def replay(row: Any) -> Replay:
    """What a row of `recall` says."""
    user_session_id, digest, deleted, session_id, active, created, updated, version, ends, state = row
    if deleted:
        return Replay(digest, Deleted(Tag(session_id, version)))
    return Replay(digest, Summary(session_id, user_session_id, active, created, updated, version, ends), state)


def remembered(done: Sequence[tuple[Write, Session | Deleted]]) -> list[Any]:
    """The parameters of `remember`."""
    rows = [_remembered(write, outcome) for write, outcome in done]
    return [min(write.now for write, _ in done).isoformat(), *map(list, zip(*rows, strict=True))]


def _remembered(write: Write, outcome: Session | Deleted) -> tuple[Any, ...]:
    assert write.once
    key = (write.user_session_id, write.once.caller, write.once.key, write.once.digest)
    forget_at = _later(write.now, REMEMBERED_FOR).isoformat()
    if isinstance(outcome, Deleted):
        now = write.now.isoformat()
        return (*key, forget_at, True, *outcome.tag, now, now, now, None, None)
    times = (outcome.last_activity, outcome.created_at, outcome.updated_at)
    ends = outcome.expires_at.isoformat() if outcome.expires_at else None
    kept_state = outcome.chat_state if isinstance(write, Save) and write.chat_state is None else None
    return (*key, forget_at, False, *outcome.tag, *(time.isoformat() for time in times), ends, kept_state)


def _later(time: datetime, by: timedelta) -> datetime:
    try:
        return time + by
    except OverflowError:
        return datetime.max.replace(tzinfo=time.tzinfo)


# --- Lists ------------------------------------------------------------------------------------------------------------


def listing(schema: Schema, query: SessionQuery) -> tuple[str, list[Any]]:
    """The statement with just the conditions that the query has, so that each finds its index, and its parameters.

    Sessions whose last activity lies beyond the calendar, which only other programs can make, are listed by id only.
    """
    values: list[Any] = [*moment(query.now, query.retention), query.limit]
    conditions = [f"NOT {_GONE}"]

    def add(condition: str, *given: object) -> None:
        places = range(len(values) + 1, len(values) + len(given) + 1)
        conditions.append(condition.format(*(f"${place}" for place in places)))
        values.extend(given)

    by_id = query.order == "id"
    if query.prefix:
        add("starts_with(s.user_session_id::text, {}::text)", query.prefix)
    if query.prefix and schema.sorts_bytes:
        add("s.user_session_id >= {}", query.prefix)
        if end := prefix_end(query.prefix):
            add("s.user_session_id < {}", end)
    if query.active_after:
        add("s.last_activity >= {}::text::timestamptz", query.active_after.isoformat())
    if query.active_before:
        add("s.last_activity < {}::text::timestamptz", query.active_before.isoformat())
    if not by_id:
        conditions += [f"s.last_activity >= {_FIRST}", f"s.last_activity <= {_LAST}"]
    if query.after and by_id:
        add("s.user_session_id > {}", query.after.user_session_id)
    elif query.after:
        place = (query.after.last_activity.isoformat(), query.after.user_session_id)
        add("(s.last_activity, s.user_session_id) < ({}::text::timestamptz, {})", *place)
    return (
        f"SELECT {_COLUMNS if query.with_state else _SUMMARY} FROM {schema.table} AS s "
        f"WHERE {' AND '.join(conditions)} "
        f"ORDER BY {'s.user_session_id' if by_id else 's.last_activity DESC, s.user_session_id DESC'} LIMIT $3"
    ), values


def versions(query: VersionQuery) -> list[Any]:
    """The parameters of `versions`."""
    before = query.before or (1 << 63) - 1
    given = (query.user_session_id, before, query.version, query.with_state, query.limit)
    return [*moment(query.now, query.retention), *given]


def version(row: Any) -> Version:
    return Version(*row)
