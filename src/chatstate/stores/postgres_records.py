"""Records in PostgreSQL: the statements, what they are given, and what their rows mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

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
from chatstate.stores.postgres_connection import Connection
from chatstate.stores.postgres_schema import Schema


@lru_cache
def _statement(schema: Schema, name: str) -> str:
    return schema.fill(sql.statement("postgres", name))


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


async def apply_records(connection: Connection, schema: Schema, writes: Sequence[RecordWrite]) -> list[RecordOutcome]:
    """Carry out writes of distinct records, an outcome for each, in order. They are few: one by one."""
    ordered = sorted(writes, key=lambda write: (write.collection, write.key))  # so that two servers cannot deadlock
    outcomes = {(write.collection, write.key): await _apply(connection, schema, write) for write in ordered}
    return [outcomes[write.collection, write.key] for write in writes]


async def _apply(connection: Connection, schema: Schema, write: RecordWrite) -> RecordOutcome:
    place, now = (write.collection, write.key), write.now.isoformat()
    if isinstance(write, PutRecord):
        statement = _statement(schema, "change_record" if write.expect else "put_record")
        given = (*place, write.document, now, _text(write.expires_at), write.expect)
        for (version,) in await connection.fetch(statement, *given):
            return Record(*place, write.document, version, write.now, write.expires_at)
    else:
        for (version,) in await connection.fetch(_statement(schema, "drop_record"), *place, now, write.expect):
            return RecordDropped(version)
    for (version,) in await connection.fetch(_statement(schema, "find_record"), *place, now):
        return RecordConflict(version)
    return RecordConflict(0)


async def records(connection: Connection, schema: Schema, query: RecordQuery) -> list[Record]:
    """The records that the query asks for, in its order."""
    given = (query.collection, query.now.isoformat(), query.key, query.after, _text(query.changed_since), query.limit)
    return [Record(*row) for row in await connection.fetch(_statement(schema, "list_records"), *given)]
