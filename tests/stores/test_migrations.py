"""Making the tables: by `migrate`, by hand, by whoever may, beside whoever holds them, and when they cannot be used."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from chatstate.errors import SchemaMismatch, StoreUnavailable, StoreUnreachable
from chatstate.model import PRESENT
from chatstate.stores import Store, create_store
from chatstate.stores.contract import NOW, deleting, saving
from tests.servers.postgres import Postgres, database_of, wheels
from tests.stores.old_tables import (
    IN_A_SCHEMA,
    OLD_ROWS,
    OUR_TRIGGERS,
    SEED,
    SEED_SQL,
    STARTS,
    STEPS,
    Connection,
    Start,
    commit_one,
    connected,
    load_one,
    migrated,
    old_database,
    opened,
    shape,
    with_query,
)

ID = "session_12345"
EMPTY = Start("empty", "", "")
EMPTY_WITHOUT_SCHEMA = Start("empty-without-its-schema", "", "", "made", in_url=True)


async def works(store: Store, user_session_id: str) -> bool:
    """Whether each kind of write does what it should."""
    key = f"{user_session_id}-2"
    writes = (saving(key), saving(key), saving(key, None, PRESENT), deleting(key))
    created, replaced, kept, _ = [await commit_one(store, write) for write in writes]
    return [created.version, replaced.version, kept.version] == [1, 2, 3] and await load_one(store, key) is None


# --- A fresh table ----------------------------------------------------------------------------------------------------


async def test_a_fresh_table_has_two_indexes_beside_its_keys(postgres_url: str) -> None:
    async with migrated(postgres_url), connected(postgres_url, search_path="public") as connection:
        fresh = await shape(connection)
    assert fresh.constraints == [
        ("chat_state_sessions_pkey", "PRIMARY KEY (session_id)"),
        ("chat_state_sessions_user_session_id_key", "UNIQUE (user_session_id)"),
    ]
    rest = [(name, sql) for name, sql in fresh.indexes if name not in dict(fresh.constraints)]
    assert [sql.partition(" USING ")[2] for _, sql in rest] == [
        "btree (expires_at) WHERE (expires_at IS NOT NULL)",
        "btree (last_activity, user_session_id)",
    ]


async def test_a_fresh_table_equals_the_migrated_one(postgres: Postgres, postgres_url: str) -> None:
    other_url = await postgres.create_database()
    async with old_database(SEED, other_url) as old, migrated(other_url):
        adopted = await shape(old.connection)
    async with migrated(postgres_url), connected(postgres_url, search_path="public") as connection:
        fresh = await shape(connection)
    await postgres.drop_database(other_url)
    in_bytes = [(*column[:4], "C") if column[0] == "user_session_id" else column for column in adopted.columns]
    assert fresh.columns == in_bytes != adopted.columns
    assert fresh.constraints == adopted.constraints
    assert fresh.triggers == adopted.triggers
    assert [name for name, _ in fresh.triggers] == OUR_TRIGGERS
    assert set(dict(adopted.indexes)) - set(dict(fresh.indexes)) == {"idx_chat_state_sessions_user_session_id"}


async def test_a_table_that_was_dropped_is_made_again(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url) as connection:
        await commit_one(store, saving(ID))
        await connection.execute("DROP TABLE public.chat_state_sessions")
        with pytest.raises(StoreUnavailable):
            await store.load([ID], NOW)
        with pytest.raises(StoreUnavailable):
            await store.commit([saving(ID)])
        assert await store.migrate() == STEPS
        assert await store.load([ID], NOW) == {}
        assert await works(store, ID)


@pytest.mark.parametrize(
    "mishap",
    [
        f"DROP TABLE chat_state_sessions; {SEED_SQL}",
        "DROP TRIGGER chatstate_raise_version ON chat_state_sessions",
        "DROP SCHEMA chatstate CASCADE",
    ],
    ids=["table-made-anew-by-the-seed", "trigger-dropped", "our-schema-dropped"],
)
async def test_what_others_removed_is_made_again(mishap: str, postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url, search_path="public") as connection:
        await connection.execute(mishap)
        assert await store.migrate() == STEPS
        assert await store.migrate() == []
        assert await works(store, ID)
        await connection.execute(SEED.insert, ID, "old")
        await connection.execute("UPDATE chat_state_sessions SET chat_state = 'new'")
        session = await load_one(store, ID)
        assert session is not None
        assert session.version == 2


# --- By hand ----------------------------------------------------------------------------------------------------------

RunScript = Callable[[str, str], Awaitable[None]]


async def with_asyncpg(url: str, script: str) -> None:
    async with connected(url) as connection:
        await connection.execute(script)


async def with_psql(url: str, script: str) -> None:
    psql = str(wheels()[0].bin / "psql") if wheels() else shutil.which("psql")
    if psql is None:
        pytest.skip("no psql on this machine (Debian: apt-get install postgresql-client)")
    arguments = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-", url)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(psql, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    output = await process.communicate(script.encode())
    assert process.returncode == 0, output


@asynccontextmanager
async def prepared(start: Start, url: str) -> AsyncIterator[str]:
    """The store's URL of a database with this start."""
    if start.sql:
        async with old_database(start, url) as old:
            yield old.store_url
    else:
        yield with_query(url, schema=start.schema) if start.in_url else url


@pytest.mark.parametrize("run_script", [with_asyncpg, with_psql])
@pytest.mark.parametrize("start", [EMPTY, EMPTY_WITHOUT_SCHEMA, *STARTS], ids=lambda start: start.name)
async def test_the_printed_sql_does_all_of_migrate(start: Start, run_script: RunScript, postgres_url: str) -> None:
    async with prepared(start, postgres_url) as store_url:
        script = create_store(store_url).migration_sql()
        await run_script(postgres_url, script)
        await run_script(postgres_url, script)
        async with opened(store_url) as store:
            assert await store.migrate() == []
            sessions = await store.load(list(OLD_ROWS), NOW)
            assert {key: one.chat_state for key, one in sessions.items()} == (OLD_ROWS if start.sql else {})
            assert await works(store, ID)


async def test_the_printed_sql_makes_what_migrate_makes(postgres_url: str) -> None:
    async with connected(postgres_url, search_path="public") as connection:
        await connection.execute(create_store(postgres_url).migration_sql())
        by_hand = await shape(connection)
        await connection.execute("DROP TABLE chat_state_sessions; DROP SCHEMA chatstate CASCADE")
        async with migrated(postgres_url):
            assert await shape(connection) == by_hand


# --- Tables that cannot be used ---------------------------------------------------------------------------------------


def altered(*changes: str) -> str:
    return "; ".join(f"ALTER TABLE chat_state_sessions {change}" for change in changes)


NOT_UNIQUE = altered("DROP CONSTRAINT chat_state_sessions_user_session_id_key")

MENDABLE = {
    "state-in-jsonb": (
        f"DELETE FROM chat_state_sessions WHERE user_session_id <> '{ID}'; "
        + altered("ALTER chat_state TYPE jsonb USING chat_state::jsonb", "ALTER chat_state SET DEFAULT '{}'")
    ),
    "nullable": altered("ALTER chat_state DROP NOT NULL", "ALTER last_activity DROP NOT NULL"),
    "no-unique-index": NOT_UNIQUE,
    "partial-unique-index": NOT_UNIQUE + "; CREATE UNIQUE INDEX ON chat_state_sessions (user_session_id) "
    "WHERE chat_state <> ''",
    "unique-together": NOT_UNIQUE + "; CREATE UNIQUE INDEX ON chat_state_sessions (user_session_id, created_at)",
    "unique-in-lower-case": NOT_UNIQUE + "; CREATE UNIQUE INDEX ON chat_state_sessions (lower(user_session_id))",
    "deferrable-constraint": NOT_UNIQUE + "; " + altered("ADD UNIQUE (user_session_id) DEFERRABLE"),
    "one-of-two-is-deferrable": altered("ADD UNIQUE (user_session_id) DEFERRABLE"),
    "integer-version": altered("ADD version INTEGER NOT NULL DEFAULT 1"),
    "column-that-we-cannot-fill": (
        altered("ADD \"tenantId\" TEXT NOT NULL DEFAULT ''", 'ALTER "tenantId" DROP DEFAULT')
    ),
    "date-without-time": altered("ALTER created_at TYPE date"),
    "padded-ids": altered("ALTER user_session_id TYPE char(40)"),
}


def sql_in(message: str) -> list[str]:
    """The statements that the message tells to run."""
    return re.findall(r": ((?:ALTER|CREATE) .*;)$", message, re.MULTILINE)


async def refusal(url: str) -> str:
    with pytest.raises(SchemaMismatch) as refused:
        async with migrated(url):
            pass
    return refused.value.message


@pytest.mark.parametrize("damage", MENDABLE.values(), ids=MENDABLE.keys())
async def test_the_refusal_says_the_sql_that_mends_it(damage: str, postgres_url: str) -> None:
    async with old_database(IN_A_SCHEMA, postgres_url) as old:
        await old.connection.execute(damage)
        rows = await old.connection.fetch("SELECT user_session_id, chat_state FROM chat_state_sessions ORDER BY 1")
        before = await shape(old.connection)
        statements = sql_in(await refusal(old.store_url))
        assert statements
        assert await shape(old.connection) == before
        for statement in statements:
            await old.connection.execute(statement)
        async with migrated(old.store_url) as store:
            sessions = await store.load([row[0].rstrip() for row in rows], NOW)
            assert [sessions[row[0].rstrip()].chat_state for row in rows] == [row[1] for row in rows]
            assert await works(store, ID)


async def test_all_that_is_wrong_is_said_at_once(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old:
        await old.connection.execute(f"{MENDABLE['nullable']}; {MENDABLE['integer-version']}")
        assert len(sql_in(await refusal(postgres_url))) == 3


async def test_a_missing_column_is_named(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old:
        await old.connection.execute(altered("DROP COLUMN created_at"))
        message = await refusal(postgres_url)
    assert "created_at is missing" in message
    assert 'ALTER TABLE "public".chat_state_sessions ADD COLUMN created_at' in message


async def test_a_name_that_is_no_table_is_refused(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old:
        await old.connection.execute(
            "ALTER TABLE chat_state_sessions RENAME TO t; CREATE VIEW chat_state_sessions AS TABLE t"
        )
        await refusal(postgres_url)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_cannot_keep_every_text_is_refused(encoding: str, postgres: Postgres) -> None:
    url = await postgres.create_database(encoding)
    with pytest.raises(SchemaMismatch, match=rf"(?s){encoding}.*CREATE DATABASE .* ENCODING 'UTF8'"):
        async with opened(url):
            pass
    await postgres.drop_database(url)


# --- Who may ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def role(postgres_url: str) -> AsyncIterator[tuple[str, str]]:
    """A role that may only connect: its name, and the URL by which it does; the password has to be percent-encoded."""
    name, password = f"bot_{secrets.token_hex(6)}", "p@ss:/?#[]%25 wörd'&="
    parts = urlsplit(postgres_url)
    async with connected(postgres_url) as owner:
        if not await owner.fetchval("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"):
            pytest.skip("the user of CHATSTATE_TEST_POSTGRES may not create roles")
        literal = await owner.fetchval("SELECT quote_literal($1)", password)
        await owner.execute(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {name} LOGIN PASSWORD {literal}")
        yield name, parts._replace(netloc=f"{name}:{quote(password, safe='')}@{parts.hostname}:{parts.port}").geturl()
        await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_who_may_not_make_tables_is_told_who_may(role: tuple[str, str]) -> None:
    async with opened(role[1]) as store:
        with pytest.raises(SchemaMismatch, match="chatstate migrate --print"):
            await store.migrate()
        with pytest.raises(StoreUnavailable, match="chatstate migrate"):
            await store.load([ID], NOW)


async def test_who_does_not_own_the_table_is_told_who_may(role: tuple[str, str], postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old, opened(role[1]) as store:
        await old.connection.execute(
            f"GRANT CREATE ON DATABASE {database_of(postgres_url)} TO {role[0]}; "
            f"GRANT ALL ON chat_state_sessions TO {role[0]}"
        )
        with pytest.raises(SchemaMismatch, match="chatstate migrate --print"):
            await store.migrate()
        assert await old.connection.fetchval("SELECT to_regclass('chatstate.migrations')") is None


@pytest.mark.parametrize("schema", ["public", "app"])
async def test_rights_on_rows_are_enough_once_the_owner_has_migrated(
    schema: str, role: tuple[str, str], postgres_url: str
) -> None:
    name, role_url = role
    async with migrated(with_query(postgres_url, schema=schema)), connected(postgres_url) as owner:
        # In the schema public everybody has USAGE already. The schema `chatstate` needs no grant: migrate gives them.
        await owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        await owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.chat_state_sessions TO {name}")
        async with opened(with_query(role_url, schema=schema)) as store:
            assert await store.migrate() == []
            assert await works(store, ID)
            created = await commit_one(store, saving(ID))
            async with connected(role_url, search_path=schema) as old_service:  # the trigger works for it, too
                await old_service.execute("UPDATE chat_state_sessions SET chat_state = 'old service'")
            assert (await store.load([ID], NOW))[ID].version == created.version + 1


async def test_a_missing_right_is_named(role: tuple[str, str], postgres_url: str) -> None:
    async with migrated(with_query(postgres_url, schema="app")), connected(postgres_url) as owner:
        with pytest.raises(StoreUnreachable, match=r"permission denied for schema app.*GRANT"):
            async with opened(with_query(role[1], schema="app")):
                pass
        await owner.execute(f"GRANT USAGE ON SCHEMA app TO {role[0]}")
        async with opened(with_query(role[1], schema="app")) as store:
            with pytest.raises(StoreUnavailable, match=r"permission denied for table.*GRANT"):
                await store.load([ID], NOW)


# --- Beside whoever holds the table -----------------------------------------------------------------------------------

WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'chat_state_sessions'::regclass AND NOT granted"


async def until(connection: Connection, query: str, wanted: Any) -> None:
    async with asyncio.timeout(20):
        while await connection.fetchval(query) != wanted:
            pass


async def test_a_long_transaction_delays_migrate_and_nobody_else(postgres_url: str) -> None:
    """`migrate` waits for the table a short while at a time, so that those who queue behind it get their turn."""
    async with (
        old_database(SEED, postgres_url) as old,
        connected(postgres_url) as holder,
        connected(postgres_url) as watcher,
        opened(postgres_url) as store,
    ):
        await holder.execute("BEGIN; LOCK TABLE chat_state_sessions IN ACCESS SHARE MODE")
        migration = asyncio.create_task(store.migrate())
        await until(watcher, WAITING, 1)
        await asyncio.wait_for(old.insert("meanwhile", "{}"), 10)
        assert not migration.done()
        await until(watcher, WAITING, 1)
        await holder.execute("COMMIT")
        assert await migration == STEPS
        assert await store.load(["meanwhile"], NOW)
        assert await works(store, ID)


# --- What Prisma writes into DATABASE_URL -----------------------------------------------------------------------------

PRISMA_QUERY = "schema=public&connection_limit=3&pool_timeout=20&connect_timeout=5&pgbouncer=true&sslmode=prefer"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
@pytest.mark.parametrize(
    "query", [PRISMA_QUERY, "schema=app&connection_limit=1&socket_timeout=10&statement_cache_size=0", ""]
)
async def test_the_url_of_a_prisma_service_works_as_it_stands(scheme: str, query: str, postgres_url: str) -> None:
    url = f"{scheme}:{postgres_url.partition(':')[2]}"
    async with migrated(f"{url}{'&' if urlsplit(url).query else '?'}{query}") as store:
        assert await works(store, ID)
        assert await store.load([f"absent-{number}" for number in range(10)], NOW) == {}
        results = await asyncio.gather(*(works(store, f"{ID}-{number}") for number in range(8)))
        assert all(results)
    async with connected(postgres_url) as connection:
        place = "app" if "app" in query else "public"
        assert await connection.fetchval(f"SELECT to_regclass('{place}.chat_state_sessions') IS NOT NULL")
