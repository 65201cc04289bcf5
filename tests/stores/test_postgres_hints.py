"""Hints between servers on PostgreSQL: what happens when the connection is lost, and what it takes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from chatstate.model import utc_now
from chatstate.stores import Store, server_hints
from chatstate.stores.postgres_hints import PostgresHints
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer, database_of
from tests.stores.hearing import ANY, SOON, Heard, hears, opened, saving


@pytest.fixture
async def one(postgres_url: str) -> AsyncIterator[Store]:
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Store]:
    async with opened(postgres_url) as store:
        yield store


async def test_a_lost_connection_is_made_anew_and_everything_may_have_changed_meanwhile(
    one: Store, other: Store, postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.01)
    heard = await hears(other, one)
    heard.feed.follow("a")
    await one.commit([saving("a")])
    await heard.until("a")
    heard.hints.clear()
    connection = await asyncpg.connect(postgres_url)
    for _ in range(2):
        killed = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query ~ '^SELECT pg_notify|^LISTEN'"
        )
        assert killed
        await heard.until(ANY)
        heard.hints.clear()
    await connection.close()
    async with asyncio.timeout(SOON):
        while "a" not in heard.hints:
            await one.commit([saving("a")])
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 0


async def test_a_database_that_goes_away_is_told_once_and_found_again(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.01)
    url = await own_postgres.create_database()
    async with opened(url) as one, opened(url) as other:
        heard = await hears(other, one)
        for outage in (1, 2):
            await asyncio.to_thread(own_postgres.stop)
            async with asyncio.timeout(SOON):
                while len(caplog.records) < 2 * outage:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            heard.hints.clear()
            await asyncio.to_thread(own_postgres.start)
            await heard.until(ANY)
            heard.hints.clear()
            async with asyncio.timeout(SOON):
                while "first" not in heard.hints:
                    await one.commit([saving("first")])
    assert len(caplog.records) == 4, "each of the two stores tells of each outage once"
    assert "back to the pool" not in caplog.text, "what the driver says of a lost connection is no reason"
    await own_postgres.drop_database(url)


async def test_two_schemas_of_one_database_do_not_disturb_each_other(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE SCHEMA second")
    await connection.close()
    joint = "&" if "?" in postgres_url else "?"
    async with opened(postgres_url) as first, opened(f"{postgres_url}{joint}schema=second") as second:
        heard = Heard(second)
        heard.feed.follow("a")
        mine = await hears(first, first)
        mine.feed.follow("a")
        await first.commit([saving("a")])
        await mine.until("a")


async def test_through_a_pooler_only_ones_own_writes_are_hinted(pgbouncer_url: str) -> None:
    async with opened(pgbouncer_url) as one:
        heard = Heard(one)
        heard.feed.follow("a")
        await one.commit([saving("a")])
        assert heard.hints == ["a"]


async def test_a_closed_store_leaves_no_connection_behind(
    pgbouncer: PgBouncer, postgres_url: str, own_postgres: PostgresServer
) -> None:
    async with opened(postgres_url) as store:
        await hears(store, store)
    connection = await asyncpg.connect(postgres_url)
    async with asyncio.timeout(SOON):
        while await connection.fetchval(  # noqa: ASYNC110
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            database_of(postgres_url),
        ):
            await asyncio.sleep(0.01)
    await connection.close()


@asynccontextmanager
async def limited_role(postgres_url: str, connections: int) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A connection of the owner, and the URL of a user who has so many connections, and knows it."""
    async with opened(postgres_url):
        pass
    name = f"few_{uuid.uuid4().hex}"
    owner = await asyncpg.connect(postgres_url)
    await owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' CONNECTION LIMIT {connections}")
    for schema in ("public", "chatstate"):
        await owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        await owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
    parts = urlsplit(postgres_url)
    place = f"{name}:{name}@{parts.netloc.rpartition('@')[2]}"
    query = "&".join(filter(None, [parts.query, f"connection_limit={connections}"]))
    yield owner, parts._replace(netloc=place, query=query).geturl()
    await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    await owner.close()


@pytest.mark.parametrize("connections", [1, 2])
async def test_who_may_have_so_many_connections_needs_no_further_one_to_listen(
    postgres_url: str, connections: int
) -> None:
    async with limited_role(postgres_url, connections) as (owner, url), opened(url) as store:
        heard = Heard(store)
        heard.feed.follow("a0")
        for turn in range(5):
            commits = [store.commit([saving(f"a{number}")]) for number in range(20)]
            loads = [store.load([f"a{number}"], utc_now()) for number in range(20)]
            await asyncio.gather(*commits, *loads)
            assert (
                await owner.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'few%'") <= connections
            )
            assert heard.hints.count("a0") == turn + 1


async def test_who_may_not_notify_tells_the_log_once_and_loads_nothing_for_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try of the connection was taken for one that works, after which any session may have changed."""
    monkeypatch.setattr(server_hints, "REFUSED_SECONDS", 0.01)
    tries = 0
    enough = asyncio.Event()
    listen = PostgresHints._listen

    async def counted(hints: PostgresHints) -> None:
        nonlocal tries
        tries += 1
        if tries == 5:
            enough.set()
        await listen(hints)

    monkeypatch.setattr(PostgresHints, "_listen", counted)
    async with limited_role(postgres_url, 3) as (owner, url):
        await owner.execute("REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC")
        async with opened(url) as store:
            heard = Heard(store)
            heard.feed.follow("a")
            async with asyncio.timeout(SOON):
                await enough.wait()
            assert not heard.hints
        assert len(caplog.records) == 1
        await owner.execute("GRANT EXECUTE ON FUNCTION pg_notify TO PUBLIC")
