"""Texts as they lie in PostgreSQL, for re-encryption: pages of them, and putting another one in the place of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from chatstate.encryption import SEALED
from chatstate.model import Rewrite, Rewritten, Stored, StoredQuery
from chatstate.stores import sql
from chatstate.stores.postgres_connection import Connection
from chatstate.stores.postgres_schema import Schema

_WANTING = (
    f"CASE WHEN $4::text = '' THEN starts_with(s.chat_state, '{SEALED}') ELSE NOT starts_with(s.chat_state, $4) END"
)


@lru_cache
def _statement(schema: Schema, name: str) -> str:
    return schema.fill(sql.statement("postgres", name).replace("{wanting}", _WANTING))


def _three(place: tuple[str, ...]) -> tuple[str, ...]:
    return (*place, "", "", "")[:3]


async def stored(connection: Connection, schema: Schema, query: StoredQuery) -> list[Stored]:
    """The texts that the query asks for, in its order."""
    statement = _statement(schema, f"stored_{query.shelf}")
    rows = await connection.fetch(statement, *_three(query.after), query.head, query.limit)
    return [Stored(query.shelf, tuple(place), text) for *place, text in rows]


async def rewrite(connection: Connection, schema: Schema, writes: Sequence[Rewrite]) -> list[Rewritten]:
    """Carry out writes inside a transaction, an outcome for each, in order. Versions do not rise."""
    await connection.execute("SET LOCAL chatstate.reencrypting = 'on'")
    outcomes = {}
    for write in sorted(writes, key=lambda write: (write.shelf, write.place)):  # so that two servers cannot deadlock
        statement = _statement(schema, f"rewrite_{write.shelf}")
        rows = await connection.fetch(statement, *_three(write.place), write.text, write.replaced_by)
        outcomes[write.shelf, write.place] = Rewritten(bool(rows))
    return [outcomes[write.shelf, write.place] for write in writes]
