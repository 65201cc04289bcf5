"""`chatstate migrate --tune`: what it offers, what it changes, whom it keeps waiting, and when it leaves all as is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatstate.errors import StoreUnavailable
from chatstate.model import KEEP
from chatstate.stores import create_tuning
from chatstate.stores.contract import NOW, saving
from chatstate.stores.postgres_tuning import PostgresTuning
from tests.servers.postgres import Postgres
from tests.stores.old_tables import (
    SEED,
    STARTS,
    OldDatabase,
    Start,
    commit_one,
    connected,
    migrated,
    old_database,
    opened,
    shape,
    with_query,
)
from tests.stores.test_migrations import WAITING, role, until
from tests.test_cli import mistake, run

__all__ = ["role"]

COMPRESSION = (
    "SELECT attcompression::text FROM pg_attribute "
    "WHERE attrelid = 'chat_state_sessions'::regclass AND attname = 'chat_state'"
)
OPTIONS = "SELECT reloptions FROM pg_class WHERE oid = 'chat_state_sessions'::regclass"
DOUBLED = "idx_chat_state_sessions_user_session_id"


def tuning(url: str) -> PostgresTuning:
    found = create_tuning(url)
    assert found is not None
    return found


@pytest.fixture
async def adopted(postgres_url: str) -> AsyncIterator[OldDatabase]:
    async with old_database(SEED, postgres_url) as old, migrated(old.store_url):
        yield old


async def test_a_table_that_we_made_is_born_tuned(postgres: Postgres, postgres_url: str) -> None:
    async with migrated(postgres_url), connected(postgres_url) as connection:
        assert (await connection.fetchval(COMPRESSION) == "l") == postgres.has_lz4
        assert await connection.fetchval(OPTIONS) == (["toast_tuple_target=2900"] if postgres.has_lz4 else None)
    _, steps = await tuning(postgres_url).plan()
    assert steps == []


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
async def test_an_adopted_table_keeps_its_storage_until_it_is_asked_for(start: Start, postgres_url: str) -> None:
    async with old_database(start, postgres_url) as old:
        before = await shape(old.connection)
        async with migrated(old.store_url):
            assert (await shape(old.connection)).indexes == before.indexes
            assert await old.connection.fetchval(COMPRESSION) != "l"


async def test_the_plan_changes_nothing(postgres: Postgres, adopted: OldDatabase) -> None:
    before = await shape(adopted.connection)
    table, steps = await tuning(adopted.store_url).plan()
    assert '"public".chat_state_sessions' in table
    assert [step.sql.split()[0] for step in steps] == ["ALTER"] * 2 * postgres.has_lz4 + ["CREATE", "DROP"]
    assert all(step.gain and step.locks for step in steps)
    assert await shape(adopted.connection) == before
    assert await adopted.connection.fetchval(COMPRESSION) != "l"


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
async def test_each_step_does_what_it_says_and_is_not_offered_again(
    start: Start, postgres: Postgres, postgres_url: str
) -> None:
    async with old_database(start, postgres_url) as old, migrated(old.store_url) as store:
        seen = await store.load(["large"], NOW)
        before = await shape(old.connection)
        for step in (await tuning(old.store_url).plan())[1]:
            await tuning(old.store_url).carry_out(step)
        after = await shape(old.connection)
        assert (await old.connection.fetchval(COMPRESSION) == "l") == postgres.has_lz4
        assert {name for name, _ in before.indexes} - {name for name, _ in after.indexes} <= {DOUBLED}
        assert DOUBLED not in dict(after.indexes)
        assert (after.columns, after.constraints, after.triggers) == before[:2] + before[3:]
        assert (await tuning(old.store_url).plan())[1] == []
        assert await store.load(["large"], NOW) == seen
        assert (await commit_one(store, saving("large"))).version == seen["large"].version + 1


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX kept ON chat_state_sessions (user_session_id)",
        "CREATE INDEX kept ON chat_state_sessions (user_session_id DESC)",
        "CREATE INDEX kept ON chat_state_sessions (user_session_id text_pattern_ops)",
        'CREATE INDEX kept ON chat_state_sessions (user_session_id COLLATE "POSIX")',
        "CREATE INDEX kept ON chat_state_sessions (user_session_id) WHERE version > 1",
        "CREATE INDEX kept ON chat_state_sessions (lower(user_session_id))",
        "CREATE INDEX kept ON chat_state_sessions (user_session_id) INCLUDE (version)",
        "CREATE INDEX kept ON chat_state_sessions (user_session_id, version)",
        "CREATE INDEX kept ON chat_state_sessions USING hash (user_session_id)",
        "CREATE INDEX kept ON chat_state_sessions (version)",
        "ALTER TABLE chat_state_sessions ADD CONSTRAINT kept EXCLUDE USING btree (user_session_id WITH =)",
    ],
)
async def test_an_index_that_can_do_anything_more_is_kept(index: str, adopted: OldDatabase) -> None:
    await adopted.connection.execute(index)
    dropped = [step.sql for step in (await tuning(adopted.store_url).plan())[1] if "DROP" in step.sql]
    assert dropped == [f"DROP INDEX CONCURRENTLY IF EXISTS public.{DOUBLED};"]


async def test_a_size_that_the_owner_has_set_is_kept(adopted: OldDatabase) -> None:
    await adopted.connection.execute("ALTER TABLE chat_state_sessions SET (toast_tuple_target = 500)")
    assert not any("toast" in step.sql for step in (await tuning(adopted.store_url).plan())[1])


async def test_sweeping_finds_the_index_while_the_server_goes_on(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old, migrated(old.store_url) as store:
        await store.sweep(NOW, KEEP, None, 10)
        assert not store.inner._table.finds_expired
        for step in (await tuning(old.store_url).plan())[1]:
            await tuning(old.store_url).carry_out(step)
        await store.sweep(NOW, KEEP, None, 10)
        assert store.inner._table.finds_expired


async def test_what_a_broken_off_index_has_left_is_removed_first(adopted: OldDatabase) -> None:
    name = "idx_chat_state_sessions_expires_at"
    await adopted.connection.execute(f"CREATE INDEX {name} ON chat_state_sessions (expires_at)")
    # As a lost connection leaves it.
    await adopted.connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
    steps = [step.sql for step in (await tuning(adopted.store_url).plan())[1] if name in step.sql]
    assert [sql.split()[0] for sql in steps] == ["DROP", "CREATE"]
    for step in (await tuning(adopted.store_url).plan())[1]:
        await tuning(adopted.store_url).carry_out(step)
    assert (await tuning(adopted.store_url).plan())[1] == []
    assert "WHERE (expires_at IS NOT NULL)" in dict((await shape(adopted.connection)).indexes)[name]


async def test_a_list_by_activity_gets_its_index(adopted: OldDatabase) -> None:
    await adopted.connection.execute("DROP INDEX idx_chat_state_sessions_last_activity")
    steps = [step.sql for step in (await tuning(adopted.store_url).plan())[1] if "(last_activity" in step.sql]
    assert [sql.split()[:3] for sql in steps] == [["CREATE", "INDEX", "CONCURRENTLY"]]


async def test_a_long_transaction_delays_a_step_and_nobody_else(postgres_url: str) -> None:
    """As `migrate` does, a step waits for the table a short while at a time, so that those behind it get their turn."""
    async with (
        old_database(SEED, postgres_url) as old,
        migrated(postgres_url),
        connected(postgres_url) as holder,
        connected(postgres_url) as watcher,
    ):
        steps = (await tuning(postgres_url).plan())[1]
        await holder.execute("BEGIN; LOCK TABLE chat_state_sessions IN ACCESS SHARE MODE")
        step = next(step for step in steps if not step.sql.startswith("CREATE"))
        change = asyncio.create_task(tuning(postgres_url).carry_out(step))
        if step.in_transaction:
            await until(watcher, WAITING, 1)
        await asyncio.wait_for(old.insert("meanwhile", "{}"), 10)
        assert not change.done()
        await holder.execute("COMMIT")
        await change
        assert step not in (await tuning(postgres_url).plan())[1]


async def test_whoever_does_not_own_the_table_is_told_who_may(role: tuple[str, str], adopted: OldDatabase) -> None:
    await adopted.connection.execute(f"GRANT SELECT, UPDATE ON chat_state_sessions TO {role[0]}")
    _, steps = await tuning(role[1]).plan()
    with pytest.raises(StoreUnavailable, match="migrate --tune --print"):
        await tuning(role[1]).carry_out(steps[0])


async def test_a_step_that_is_broken_off_says_how_to_go_on(adopted: OldDatabase) -> None:
    step = (await tuning(adopted.store_url).plan())[1][-1]
    async with connected(adopted.url) as holder, connected(adopted.url) as watcher:
        await holder.execute("BEGIN; LOCK TABLE chat_state_sessions IN ROW EXCLUSIVE MODE")
        change = asyncio.create_task(tuning(adopted.store_url).carry_out(step))
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DROP INDEX%' AND wait_event_type = 'Lock'"
        async with asyncio.timeout(20):
            while (pid := await watcher.fetchval(waiting)) is None:
                pass
        await watcher.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(StoreUnavailable, match=r"broken off.*migrate --tune"):
            await change
        await holder.execute("COMMIT")
    assert step.sql in [left.sql for left in (await tuning(adopted.store_url).plan())[1]]
    await tuning(adopted.store_url).carry_out(step)
    assert step.sql not in [left.sql for left in (await tuning(adopted.store_url).plan())[1]]


async def test_a_step_that_somebody_else_has_carried_out_is_done(adopted: OldDatabase) -> None:
    step = (await tuning(adopted.store_url).plan())[1][-1]
    await tuning(adopted.store_url).carry_out(step)
    await tuning(adopted.store_url).carry_out(step)


async def test_without_a_table_it_says_how_to_make_one(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    with pytest.raises(StoreUnavailable, match="chatstate migrate"):
        await tuning(postgres_url).plan()


# --- The command ------------------------------------------------------------------------------------------------------


async def test_the_command_asks_first(adopted: OldDatabase, tmp_path: Path) -> None:
    before = await shape(adopted.connection)
    status, output = await asyncio.to_thread(run, tmp_path, "migrate", "--tune", "--store", adopted.store_url)
    assert status == 1, "nobody was there to say yes"
    assert f"DROP INDEX CONCURRENTLY IF EXISTS public.{DOUBLED};" in output
    assert "Locks nothing that readers or writers wait for." in output
    assert output.count("done:") == 0
    assert "Traceback" not in output
    assert await shape(adopted.connection) == before


async def test_the_command_tunes(postgres: Postgres, adopted: OldDatabase, tmp_path: Path) -> None:
    command = ("migrate", "--tune", "--yes", "--store", adopted.store_url)
    status, output = await asyncio.to_thread(run, tmp_path, *command)
    assert status == 0, output
    assert output.count("done:") == 2 + 2 * postgres.has_lz4
    assert DOUBLED not in dict((await shape(adopted.connection)).indexes)
    status, output = await asyncio.to_thread(run, tmp_path, *command)
    assert status == 0, output
    assert "Nothing to tune." in output


async def test_the_printed_sql_tunes(adopted: OldDatabase, tmp_path: Path) -> None:
    command = ("migrate", "--tune", "--print")
    status, script = await asyncio.to_thread(run, tmp_path, *command, CHATSTATE_STORE=adopted.store_url)
    assert status == 0, script
    for statement in (line for line in script.splitlines() if line and not line.startswith("--")):
        await adopted.connection.execute(statement)
    assert (await tuning(adopted.store_url).plan())[1] == []


async def test_a_name_cannot_leave_its_comment(adopted: OldDatabase, tmp_path: Path) -> None:
    name = '"u\nDROP TABLE chat_state_sessions;--"'
    await adopted.connection.execute(f"ALTER INDEX chat_state_sessions_user_session_id_key RENAME TO {name}")
    command = ("migrate", "--tune", "--print", "--store", adopted.store_url)
    _, script = await asyncio.to_thread(run, tmp_path, *command)
    assert [line for line in script.splitlines() if "DROP TABLE" in line and not line.startswith("-- ")] == []


async def test_an_empty_database_gets_its_tables_first(postgres_url: str, tmp_path: Path) -> None:
    status, output = await asyncio.to_thread(run, tmp_path, "migrate", "--tune", "--store", postgres_url)
    assert status == 0, output
    assert "applied 0001_chat_state_sessions" in output
    assert "Nothing to tune." in output


def test_sqlite_has_nothing_to_tune(tmp_path: Path) -> None:
    status, output = run(tmp_path, "migrate", "--tune", "--store", "sqlite:///chatstate.db")
    assert (status, output.splitlines()[-1]) == (0, "Nothing to tune.")


def test_a_database_that_is_away_is_a_message(tmp_path: Path) -> None:
    url = with_query("postgresql://nobody@127.0.0.1:1/none", sslmode="disable")
    assert "Cannot reach PostgreSQL" in mistake(tmp_path, "migrate", "--tune", "--print", "--store", url)
