"""PostgreSQL without what other engines that speak its protocol lack, and with the rollbacks that they answer with.

Functions are taken away by another name in the catalogue of one database; a setting by a proxy that gives it a name
which the server does not know. What the engines lack is in `docs/howto/check-a-database.md`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chatstate.errors import OutcomeUnknown
from chatstate.model import KEEP, SessionQuery
from chatstate.stores import Store, create_store, postgres_connection, server_hints
from chatstate.stores.contract import CHECKS, NOW, Contract, run, saving
from chatstate.stores.feed_contract import FeedChecks
from chatstate.stores.postgres import PostgresStore
from chatstate.stores.postgres_connection import RolledBack
from chatstate.stores.postgres_hints import PostgresHints
from tests.conftest import POSTGRES_NAMES, database
from tests.servers.ports import at_port
from tests.servers.postgres import RunningServers
from tests.stores.old_tables import connected, migrated, with_query


async def without(url: str, function: str) -> None:
    """The database has no such function any more."""
    async with connected(url) as connection:
        await connection.execute(f"ALTER FUNCTION pg_catalog.{function} RENAME TO not_here")


# --- Transactions that are rolled back --------------------------------------------------------------------------------


def _races(check: str) -> bool:
    """Whether the check has several writers at once."""
    return bool(re.search(r"gather\(|at_once\(", inspect.getsource(getattr(Contract, check))))


RACES = [check for check in CHECKS if _races(check) or os.environ.get("CHATSTATE_TEST_SERIALIZABLE") == "all"]
"""Those of the checks in which rollbacks are to be expected; with CHATSTATE_TEST_SERIALIZABLE=all, all."""


@pytest.fixture(scope="module")
def serializable_url(servers: RunningServers) -> Iterator[str]:
    """The URL of a database on which all transactions of a store are SERIALIZABLE, as they are in CockroachDB."""
    with database(POSTGRES_NAMES[0], servers, Path()) as url:
        yield with_query(url, default_transaction_isolation="serializable")


class Pauses(list[float]):
    """Takes the place of sleeping, and remembers how long each pause would have been."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


class RealPauses(Pauses):
    """Sleeps too: whoever is in the way has to be gone."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(seconds)


async def run_serializable(check: str, url: str) -> Pauses:
    """Run the check; the pauses that it has taken after rollbacks."""
    pauses = RealPauses()

    async def open_store() -> Store:
        store = PostgresStore(url, sleep=pauses)
        await store.open()
        assert await store._open_pool.fetchval("SHOW transaction_isolation") == "serializable"
        return store

    await run(check, open_store)
    return pauses


@pytest.mark.parametrize("check", RACES)
async def test_the_contract_holds_where_transactions_are_serializable(check: str, serializable_url: str) -> None:
    await run_serializable(check, serializable_url)


async def test_there_are_rollbacks_where_transactions_are_serializable(serializable_url: str) -> None:
    assert await run_serializable("crossing_batches_do_not_block_each_other", serializable_url)


async def _again(url: str, name: str, kind: str, code: str = "40001", times: int = 3) -> None:
    """A function that answers its first calls with this error; a sequence counts, which no rollback sets back."""
    async with connected(url) as connection:
        await connection.execute(
            f"CREATE SEQUENCE {name}_calls; CREATE FUNCTION {name}() RETURNS {kind} LANGUAGE plpgsql SECURITY DEFINER "
            f"AS $$ BEGIN IF nextval('{name}_calls') <= {times} THEN "
            f"RAISE EXCEPTION 'again' USING ERRCODE = '{code}'; END IF;"
            f"{' RETURN NULL;' if kind == 'trigger' else ' RETURN true;' if kind == 'boolean' else ''} END $$"
        )


async def _fails_at_commit(url: str, code: str, times: int = 3) -> None:
    """Each first COMMIT that has changed a session is answered with this error."""
    await _again(url, "late", "trigger", code, times)
    async with connected(url) as connection:
        await connection.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON chat_state_sessions "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()"
        )


@asynccontextmanager
async def patient(url: str) -> AsyncIterator[tuple[PostgresStore, Pauses]]:
    pauses = Pauses()
    store = PostgresStore(url, sleep=pauses)
    await store.open()
    try:
        yield store, pauses
    finally:
        await store.close()


async def _calls(url: str, name: str) -> int:
    async with connected(url) as connection:
        return int(await connection.fetchval(f"SELECT last_value FROM {name}_calls"))


@pytest.mark.parametrize("batch", [["a"], ["a", "b"]], ids=["one", "several"])
async def test_a_commit_that_is_rolled_back_at_its_very_end_is_tried_again(batch: list[str], postgres_url: str) -> None:
    async with migrated(postgres_url):
        await _fails_at_commit(postgres_url, "40001")
        async with patient(postgres_url) as (store, pauses):
            saved = await store.commit([saving(name) for name in batch])
            assert [outcome.version for outcome in saved] == [1] * len(batch)  # type: ignore[union-attr]
    assert len(pauses) == 3
    assert all(0 <= pause <= 0.005 * 2**number for number, pause in enumerate(pauses, 1))


async def test_what_is_rolled_back_again_and_again_is_given_up_and_says_that_nothing_was_written(
    postgres_url: str,
) -> None:
    async with migrated(postgres_url):
        await _fails_at_commit(postgres_url, "40001", 1000)
        async with patient(postgres_url) as (store, pauses):
            with pytest.raises(RolledBack):
                await store.commit([saving("a")])
            assert await store.load(["a"], NOW) == {}
    assert len(pauses) == postgres_connection.ROLLED_BACK_TRIES - 1
    assert max(pauses) <= 0.4
    assert len(set(pauses)) > 5, "at random, so that two do not meet again and again"


@pytest.mark.parametrize("code", ["40003", "08007"])
async def test_a_commit_whose_outcome_the_database_does_not_know_is_not_tried_again(
    code: str, postgres_url: str
) -> None:
    """CockroachDB says 40003 when it has lost the answer of its own nodes: statement_completion_unknown."""
    async with migrated(postgres_url):
        await _fails_at_commit(postgres_url, code, 1000)
        async with patient(postgres_url) as (store, pauses):
            with pytest.raises(OutcomeUnknown):
                await store.commit([saving("a")])
    assert (pauses, await _calls(postgres_url, "late")) == ([], 1)


READS: dict[str, Callable[[PostgresStore], Awaitable[Any]]] = {
    "load": lambda store: store.load(["a"], NOW),
    "list": lambda store: store.list(SessionQuery(now=NOW)),
    "sweep": lambda store: store.sweep(NOW.replace(year=2100), KEEP, None, 10),
}


@pytest.mark.parametrize("call", READS)
async def test_a_read_that_is_rolled_back_is_asked_again(call: str, postgres_url: str) -> None:
    """A policy of row security is asked for each row that is read."""
    async with migrated(postgres_url) as store:
        await store.commit([saving("a")])
        await store.commit([saving("old")])
    await _again(postgres_url, "seen", "boolean")
    async with role_with_policy(postgres_url) as url, patient(url) as (store_of_role, pauses):
        async with connected(postgres_url) as connection:
            await connection.execute("UPDATE chat_state_sessions SET expires_at = now() WHERE user_session_id = 'old'")
        assert await READS[call](store_of_role)
    assert len(pauses) == 3


@asynccontextmanager
async def role_with_policy(url: str) -> AsyncIterator[str]:
    """The URL of a user whose reads of sessions call `seen()`."""
    name = f"reader_{uuid.uuid4().hex}"
    async with connected(url) as owner:
        await owner.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{name}'; GRANT USAGE ON SCHEMA chatstate TO {name};"
            f"GRANT ALL ON chat_state_sessions TO {name}; GRANT ALL ON ALL TABLES IN SCHEMA chatstate TO {name};"
            "ALTER TABLE chat_state_sessions ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY seen ON chat_state_sessions USING (seen())"
        )
        parts = urlsplit(url)
        yield parts._replace(netloc=f"{name}:{name}@{parts.netloc.rpartition('@')[2]}").geturl()
        await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_migration_that_is_rolled_back_is_tried_again(postgres_url: str) -> None:
    await _again(postgres_url, "ddl", "event_trigger")
    async with connected(postgres_url) as connection:
        await connection.execute("CREATE EVENT TRIGGER ddl ON ddl_command_start EXECUTE FUNCTION ddl()")
        async with patient(postgres_url) as (store, pauses):
            assert await store.migrate()
            assert await store.migrate() == []
        await connection.execute("DROP EVENT TRIGGER ddl")
    assert len(pauses) == 3


# --- What is missing --------------------------------------------------------------------------------------------------


async def test_no_extension_is_needed(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url) as connection:
        await store.commit([saving("a")])
        assert [row[0] for row in await connection.fetch("SELECT extname FROM pg_extension")] == ["plpgsql"]


async def test_servers_migrate_one_after_the_other_without_advisory_locks(postgres_url: str) -> None:
    await without(postgres_url, "pg_advisory_xact_lock(bigint)")
    stores = [create_store(postgres_url, pool_size=1) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        applied = await asyncio.gather(*(store.migrate() for store in stores))
        assert max(applied), "one of them has made the tables"
        await stores[0].commit([saving("a")])
        for store in stores:
            assert await store.migrate() == []
            assert await store.load(["a"], NOW)
    finally:
        for store in stores:
            await store.close()


@asynccontextmanager
async def renaming_proxy(url: str, old: bytes, new: bytes) -> AsyncIterator[str]:
    """The URL of a proxy that gives a setting another name, of the same length, wherever it is set."""
    target = urlsplit(url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, renaming: bool) -> None:
        with suppress(OSError), closing(writer):
            while data := await reader.read(65536):
                if renaming:
                    data = data.replace(b"\0" + old + b"\0", b"\0" + new + b"\0").replace(b"SET " + old, b"SET " + new)
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(forward(reader, server, True), forward(answers, writer, False))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listener:
        yield at_port(url, listener.sockets[0].getsockname()[1])


async def test_a_setting_that_the_engine_refuses_is_done_without(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are set all the same."""
    async with renaming_proxy(postgres_url, b"jit", b"tij") as url, migrated(url) as store:
        (saved,) = await store.commit([saving("a")])
        assert await store.load(["a"], NOW) == {"a": saved}
        pool = store.inner._open_pool  # type: ignore[attr-defined]
        settings = [await pool.fetchval(f"SHOW {name}") for name in ("jit", "enable_seqscan", "synchronous_commit")]
    assert settings == ["on", "off", "on"]
    assert [record.getMessage() for record in caplog.records] == [
        "this database has not all settings that chatstate uses: jit"
    ]


async def test_an_engine_whose_fsync_is_about_no_disk_is_taken_at_its_word(postgres_url: str) -> None:
    """Aurora has a function by which it is known."""
    async with connected(postgres_url) as connection:
        await connection.execute("CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql AS $$ SELECT '17.5' $$")
    async with migrated(postgres_url) as store:
        status = await store.status()
    assert "This engine says nothing of fsync" in status.durability
    assert "synced to the database's disk" not in status.durability


@pytest.fixture
async def silent_url(postgres_url: str) -> str:
    """The URL of a database that has no NOTIFY."""
    await without(postgres_url, "pg_notify(text, text)")
    return postgres_url


async def test_without_notify_the_log_is_told_once_and_the_database_is_left_in_peace(
    silent_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.0)
    tries = 0
    tried = asyncio.Event()
    failed = PostgresHints._failed

    def counted(hints: PostgresHints, error: Exception, exc_info: bool = False) -> None:
        nonlocal tries
        tries += 1
        tried.set()
        failed(hints, error, exc_info)

    monkeypatch.setattr(PostgresHints, "_failed", counted)
    hints: list[str | None] = []
    async with migrated(silent_url) as store:
        store.watch(hints.append).follow("a")
        await asyncio.wait_for(tried.wait(), 20)
        for _ in range(20):
            await store.commit([saving("a")])
    assert hints.count("a") == 20, "of its own writes a server learns all the same"
    assert tries == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the change feed is slower" in caplog.text


@pytest.mark.parametrize("check", [check for check in CHECKS if check in vars(FeedChecks)])
async def test_the_contract_of_feeds_holds_without_notify(check: str, silent_url: str) -> None:
    async def open_store() -> Store:
        store = create_store(silent_url)
        await store.open()
        return store

    await run(check, open_store)
