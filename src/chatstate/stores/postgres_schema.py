"""The tables in PostgreSQL: making them, adopting those of another program, and knowing which types they have."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import asyncpg
from msgspec import Struct

from chatstate.errors import SchemaMismatch, SessionLocked
from chatstate.stores import sql
from chatstate.stores.postgres_connection import (
    LOCK_MILLISECONDS,
    RolledBack,
    Sleep,
    again_when_rolled_back,
    translated,
)

TABLE = "chat_state_sessions"

_LOCK_NUMBER = 0x63686174737461  # "chatsta": the advisory lock under which tables are changed

LOCK_TRIES = 15
"""How often a migration waits `LOCK_MILLISECONDS` for a table in use; others never queue behind it for longer."""

_TIMES = {"timestamp with time zone", "timestamp without time zone"}
_TEXTS = {"text", "character varying"}
_COLUMNS = {
    "session_id": _TEXTS | {"uuid"},
    "user_session_id": _TEXTS,
    "chat_state": _TEXTS,
    "last_activity": _TIMES,
    "created_at": _TIMES,
    "updated_at": _TIMES,
    "version": {"bigint"},
}


class Schema(Struct, frozen=True):
    """Where the table is, and what the statements must know of it.

    sorts_bytes    whether ids are sorted by their bytes, so that those with a prefix lie together
    finds_expired  whether there is an index by expiry
    """

    name: str
    session_id_type: str = "uuid"
    sorts_bytes: bool = True
    finds_expired: bool = True

    @property
    def table(self) -> str:
        return f'"{self.name}".{TABLE}'

    def fill(self, template: str) -> str:
        name = self.name.replace("'", "''")
        words = {"table": self.table, "session_id_type": self.session_id_type, "name": f"'{name}'"}
        return sql.filled(template, words)


class _Column(Struct, frozen=True):
    type: str
    nullable: bool
    has_default: bool
    compares_bytes: bool
    sorts_bytes: bool
    is_indexed: bool


async def inspect(connection: Any, schema: str) -> Schema | None:
    """The table as it is; None when it is not there or not migrated. Raises `SchemaMismatch` when it cannot be used."""
    columns = await _columns(connection, schema)
    if not columns:
        return None
    table = Schema(schema).table
    await _check(connection, table, columns)
    if not {"version", "expires_in_seconds", "expires_at"} <= set(columns):
        return None
    session_id, user_session_id, expires_at = (columns[n] for n in ("session_id", "user_session_id", "expires_at"))
    return Schema(schema, session_id.type, user_session_id.sorts_bytes, expires_at.is_indexed)


async def _columns(connection: Any, schema: str) -> dict[str, _Column]:
    rows = await connection.fetch(
        "SELECT attname, format_type(atttypid, NULL), NOT attnotnull, atthasdef OR attidentity <> '', "
        "coalesce((SELECT collisdeterministic FROM pg_collation WHERE oid = attcollation), true), "
        "EXISTS (SELECT FROM pg_collation WHERE oid = attcollation AND collname IN ('C', 'POSIX', 'ucs_basic')), "
        "EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indkey[0] = attnum AND indisvalid) "
        "FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        Schema(schema).table,
    )
    return {row[0]: _Column(*row[1:]) for row in rows}


async def _check(connection: Any, table: str, columns: dict[str, _Column]) -> None:
    problems = [problem for name in _COLUMNS for problem in _problems(table, name, columns.get(name))]
    problems += [
        f"The column {name} must have a value, and chatstate has none for it: "
        f"ALTER TABLE {table} ALTER COLUMN {_quoted(name)} DROP NOT NULL;"
        for name, column in columns.items()
        if name not in _COLUMNS and not (column.nullable or column.has_default)
    ]
    problems = problems or await _problems_of_uniqueness(connection, table)
    if problems:
        raise SchemaMismatch(
            "\n".join([f"The table {table} cannot be used as it is. Mend it with this SQL:", *problems])
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _problems(table: str, name: str, column: _Column | None) -> list[str]:
    if column is None:
        missing = f"The column {name} is missing: ALTER TABLE {table} ADD COLUMN {name} …;"
        return [] if name == "version" else [missing]
    problems = []
    if column.type not in _COLUMNS[name]:
        type_ = "timestamptz" if _COLUMNS[name] is _TIMES else "bigint" if name == "version" else "text"
        problems.append(
            f"The column {name} is {column.type}: "
            f"ALTER TABLE {table} ALTER COLUMN {name} TYPE {type_} USING {name}::{type_};"
        )
    if name == "user_session_id" and not column.compares_bytes:
        problems.append(
            f"The column {name} takes different ids for the same: "
            f'ALTER TABLE {table} ALTER COLUMN {name} TYPE {column.type} COLLATE "C";'
        )
    if column.nullable:
        problems.append(
            f"The column {name} may be null; give it a value in every row, then: "
            f"ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL;"
        )
    return problems


async def _problems_of_uniqueness(connection: Any, table: str) -> list[str]:
    """What keeps ON CONFLICT (user_session_id) from working: it needs a unique index, and none that is deferrable."""
    indexes = await connection.fetch(
        "SELECT c.relname, i.indimmediate FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
        "WHERE i.indrelid = to_regclass($1) AND a.attname = 'user_session_id' "
        "AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1",
        table,
    )
    if not indexes:
        return [f"Ids are not unique: CREATE UNIQUE INDEX CONCURRENTLY ON {table} (user_session_id);"]
    return [
        f"The constraint {name} is deferrable, which upserts cannot work with: "
        f"ALTER TABLE {table} DROP CONSTRAINT {_quoted(name)}, ADD UNIQUE (user_session_id);"
        for name, immediate in indexes
        if not immediate
    ]


async def migrate(connection: Any, schema: str, sleep: Sleep) -> list[str]:
    """Apply what is missing, all of it or nothing, and return the names of the steps."""
    for _ in range(LOCK_TRIES):
        with suppress(SessionLocked):
            return await again_when_rolled_back(lambda: _migrate(connection, schema), sleep)
    raise SchemaMismatch(
        f"The table {Schema(schema).table} is in use by a long transaction, so its version column cannot be added. End "
        "that transaction (SELECT * FROM pg_stat_activity) and start again."
    )


async def _migrate(connection: Any, schema: str) -> list[str]:
    with translated(in_doubt=False):
        async with connection.transaction():
            await inspect(connection, schema)
            pending = await _pending(connection, schema)
    if pending:
        with translated(in_doubt=True):
            try:
                await connection.execute(script(schema, pending))
            except asyncpg.InsufficientPrivilegeError as error:
                await connection.execute("ROLLBACK")
                raise SchemaMismatch(
                    f"This database user may not make the tables ({error}). Let their owner run the SQL that "
                    "`chatstate migrate --print` prints."
                ) from error
            except BaseException as error:
                with suppress(Exception):
                    await connection.execute("ROLLBACK")
                if _is_made_by_another(error):
                    raise RolledBack from error
                raise
    return [migration.name for migration in pending]


def _is_made_by_another(error: BaseException) -> bool:
    """Whether another server has made the same schema or table just now, on an engine without advisory locks."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return (error.constraint_name or "").startswith("pg_")  # of the catalogue
    return isinstance(error, asyncpg.DuplicateSchemaError)


async def _pending(connection: Any, schema: str) -> list[sql.Migration]:
    # Whoever made the table anew after we had migrated it left our record, but no trigger.
    recorded = await connection.fetchval(
        "SELECT to_regclass('chatstate.migrations') IS NOT NULL AND EXISTS (SELECT FROM pg_trigger "
        "WHERE tgrelid = to_regclass($1) AND tgname = 'chatstate_raise_version')",
        Schema(schema).table,
    )
    query = "SELECT number FROM chatstate.migrations WHERE table_schema = $1"
    done = {row[0] for row in await connection.fetch(query, schema)} if recorded else set()
    return [migration for migration in sql.migrations("postgres") if migration.number not in done]


def script(schema: str, pending: list[sql.Migration]) -> str:
    """The SQL of these migrations as one transaction that is safe to run twice, by hand too.

    What is going to be applied is written down first: where there are no advisory locks, that row is the lock.
    """
    name = schema.replace("'", "''")
    rows = ",\n".join(f"    ('{name}', {migration.number}, '{migration.name}')" for migration in pending)
    preamble = _PREAMBLE.format(lock=_LOCK_NUMBER, timeout=LOCK_MILLISECONDS, schema=schema, rows=rows)
    steps = [f"-- {migration.name}\n{Schema(schema).fill(migration.sql)}\n" for migration in pending]
    return preamble + "\n".join(steps) + "\nCOMMIT;\n"


_PREAMBLE = """\
BEGIN;
SET LOCAL lock_timeout = '{timeout}ms';
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
EXCEPTION WHEN undefined_function OR feature_not_supported THEN
    NULL;  -- not every engine that speaks PostgreSQL's protocol has them
END
$$;
DO $$
BEGIN  -- not IF NOT EXISTS, which demands the right to create schemas even where nothing is to do
    IF to_regnamespace('chatstate') IS NULL THEN CREATE SCHEMA chatstate; END IF;
    IF to_regnamespace('"{schema}"') IS NULL THEN CREATE SCHEMA "{schema}"; END IF;
END
$$;
CREATE TABLE IF NOT EXISTS chatstate.migrations (
    table_schema TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (table_schema, number)
);
INSERT INTO chatstate.migrations (table_schema, number, name)
VALUES
{rows}
ON CONFLICT DO NOTHING;
GRANT USAGE ON SCHEMA chatstate TO PUBLIC;
GRANT SELECT ON chatstate.migrations TO PUBLIC;

"""
