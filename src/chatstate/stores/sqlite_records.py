"""Records in SQLite: what the statements are given, and what their rows mean. As in `sqlite_sessions`, everything runs
on one connection, and what writes runs inside a transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw

from chatstate.record import (
    PutRecord,
    Record,
    RecordConflict,
    RecordDropped,
    RecordOutcome,
    RecordQuery,
    RecordWrite,
)
from chatstate.stores import sql
from chatstate.stores.sqlite_times import microseconds, time_of

_PUT, _CHANGE, _DROP = (sql.statement("sqlite", f"{verb}_record") for verb in ("put", "change", "drop"))
_FIND, _LIST = sql.statement("sqlite", "find_record"), sql.statement("sqlite", "list_records")


def _optional(time: datetime | None) -> int | None:
    return None if time is None else microseconds(time)


def apply_record(connection: apsw.Connection, write: RecordWrite) -> RecordOutcome:
    """Carry out one write."""
    given: dict[str, Any] = {
        "collection": write.collection,
        "key": write.key,
        "now": microseconds(write.now),
        "expect": write.expect,
    }
    if isinstance(write, PutRecord):
        given |= {"document": write.document, "expires_at": _optional(write.expires_at)}
        for (version,) in connection.execute(_CHANGE if write.expect else _PUT, given):
            return Record(write.collection, write.key, write.document, version, write.now, write.expires_at)
    else:
        for (version,) in connection.execute(_DROP, given):
            return RecordDropped(version)
    for (version,) in connection.execute(_FIND, given):
        return RecordConflict(version)
    return RecordConflict(0)


def records(connection: apsw.Connection, query: RecordQuery) -> list[Record]:
    """The records that the query asks for, in its order."""
    given = {
        "collection": query.collection,
        "now": microseconds(query.now),
        "key": query.key,
        "after": query.after,
        "changed_since": _optional(query.changed_since),
        "limit": query.limit,
    }
    return [
        Record(collection, key, document, version, time_of(changed), None if ends is None else time_of(ends))
        for collection, key, document, version, changed, ends in connection.execute(_LIST, given)
    ]
