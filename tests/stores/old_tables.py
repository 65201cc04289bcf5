"""Databases as chatstate finds them: empty, or with the tables and rows of the service that it replaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import asyncpg

from chatstate.model import Session, Write
from chatstate.stores import Store, create_store
from chatstate.stores.base import all_readable
from chatstate.stores.contract import NOW
from chatstate.stores.sql import migrations

Connection = Any

STEPS = [migration.name for migration in migrations("postgres")]
"""What `migrate` applies to a database without our tables."""

OUR_COLUMNS = [
    ("version", "bigint", True, "1", None),
    ("expires_in_seconds", "bigint", False, None, None),
    ("expires_at", "timestamp with time zone", False, None, None),
]
OUR_TRIGGERS = ["chatstate_forget_deleted", "chatstate_forget_replaced", "chatstate_raise_version"]
"""What `migrate` adds to a table that is there."""

# The "Option 1" of the old service's documentation, to the letter.
SEED_SQL = """\
CREATE TABLE IF NOT EXISTS chat_state_sessions (
    session_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_session_id VARCHAR(255) UNIQUE NOT NULL,
    chat_state TEXT NOT NULL,
    last_activity TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE INDEX IF NOT EXISTS idx_chat_state_sessions_user_session_id ON chat_state_sessions(user_session_id);
CREATE INDEX IF NOT EXISTS idx_chat_state_sessions_last_activity ON chat_state_sessions(last_activity);
"""

# What `prisma migrate` makes of a model with @id, @unique, @default(now()) and @updatedAt.
_PRISMA_SQL = """\
CREATE TABLE "chat_state_sessions" (
    "session_id" {session_id} NOT NULL{default},
    "user_session_id" TEXT NOT NULL,
    "chat_state" TEXT NOT NULL,
    "last_activity" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "chat_state_sessions_pkey" PRIMARY KEY ("session_id")
);

-- CreateIndex
CREATE UNIQUE INDEX "chat_state_sessions_user_session_id_key" ON "chat_state_sessions"("user_session_id");
"""
_PRISMA_TEXT_SQL = _PRISMA_SQL.format(session_id="TEXT", default="")
_PRISMA_UUID_SQL = _PRISMA_SQL.format(session_id="UUID", default=" DEFAULT gen_random_uuid()")

_SEED_INSERT = "INSERT INTO chat_state_sessions (user_session_id, chat_state) VALUES ($1, $2)"
_PRISMA_INSERT = (
    'INSERT INTO "chat_state_sessions" ("session_id", "user_session_id", "chat_state", "updated_at") '
    "VALUES (gen_random_uuid(), $1, $2, now() AT TIME ZONE 'UTC')"
)


class Start(NamedTuple):
    """One way in which a database may have come to be.

    sql        what the old service ran, in the schema `schema`
    insert     its statement for a new row; $1 is the id, $2 the state
    in_url     whether the store's URL names the schema
    """

    name: str
    sql: str
    insert: str
    schema: str = "public"
    in_url: bool = False


SEED = Start("seed", SEED_SQL, _SEED_INSERT)
PRISMA_TEXT = Start("prisma-text", _PRISMA_TEXT_SQL, _PRISMA_INSERT)
PRISMA_UUID = Start("prisma-uuid", _PRISMA_UUID_SQL, _PRISMA_INSERT)
IN_A_SCHEMA = Start("seed-in-a-schema", SEED_SQL, _SEED_INSERT, "app", in_url=True)
PRISMA_IN_A_SCHEMA = Start("prisma-in-a-schema", _PRISMA_TEXT_SQL, _PRISMA_INSERT, "My App", in_url=True)

STARTS = [SEED, PRISMA_TEXT, PRISMA_UUID, IN_A_SCHEMA, PRISMA_IN_A_SCHEMA]

OLD_ROWS = {
    "session_12345": '{"messages": [], "currentStep": "language"}',
    "a/b é 😀": r'{"nul": "\u0000", "twice": 1, "twice": 2}',
    "empty": "",
    "large": "abcdefghij" * 20_000,
}
OLD_COLUMNS = "session_id, user_session_id, chat_state, last_activity, created_at, updated_at"


class OldDatabase(NamedTuple):
    """A database with the old service's table and `OLD_ROWS`, and a connection such as the old service has."""

    start: Start
    url: str
    connection: Connection

    @property
    def store_url(self) -> str:
        return with_query(self.url, schema=self.start.schema) if self.start.in_url else self.url

    async def insert(self, user_session_id: str, chat_state: str) -> None:
        await self.connection.execute(self.start.insert, user_session_id, chat_state)


def with_query(url: str, **query: str) -> str:
    separator = "&" if "?" in url else "?"
    return f"{url}{separator}{urlencode(query, quote_via=quote)}"


@asynccontextmanager
async def connected(url: str, **settings: str) -> AsyncIterator[Connection]:
    """A connection of another program, with these settings of PostgreSQL."""
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """An open store that has not migrated."""
    store = create_store(url, owner=False)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Store]:
    async with opened(url) as store:
        await store.migrate()
        yield store


@asynccontextmanager
async def old_database(start: Start, url: str) -> AsyncIterator[OldDatabase]:
    """Make the old service's table in the empty database at `url`, and fill it."""
    async with connected(url, search_path=f'"{start.schema}"') as connection:
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{start.schema}"; {start.sql}')
        old = OldDatabase(start, url, connection)
        for user_session_id, chat_state in OLD_ROWS.items():
            await old.insert(user_session_id, chat_state)
        yield old


async def commit_one(store: Store, write: Write) -> Any:
    """The outcome of one write by itself."""
    (outcome,) = await store.commit([write])
    return outcome


async def load_one(store: Store, user_session_id: str) -> Session | None:
    return all_readable(await store.load([user_session_id], NOW)).get(user_session_id)


class Shape(NamedTuple):
    """A table as PostgreSQL describes it. `columns`: name, type, whether null is refused, default, collation."""

    columns: list[tuple[str, str, bool, str | None, str | None]]
    constraints: list[tuple[str, str]]
    indexes: list[tuple[str, str]]
    triggers: list[tuple[str, str]]


_SHAPE = (
    "SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), collname "
    "FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum) "
    "LEFT JOIN pg_collation c ON c.oid = attcollation "
    "WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",  # a dropped column would show up too
    # Later versions of PostgreSQL list NOT NULL here as well.
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE conrelid = $1::text::regclass AND contype <> 'n' ORDER BY conname",
    "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
    "WHERE indrelid = $1::text::regclass ORDER BY 1",
    "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = $1::text::regclass ORDER BY 1",
)


async def shape(connection: Connection, table: str = "chat_state_sessions") -> Shape:
    """`table` as it is now, on the search path of the connection."""
    return Shape(*[[tuple(row) for row in await connection.fetch(query, table)] for query in _SHAPE])
