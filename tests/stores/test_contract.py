"""The contract suite on every store that ships, with and without encryption, and through a transaction pooler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw
import asyncpg
import pytest
from msgspec.structs import replace

from chatstate.encryption import KeyRing, new_key
from chatstate.mailbox import Receive, Send, Settle
from chatstate.model import IdempotencyKey, Retention
from chatstate.record import PutRecord
from chatstate.row import SHELVES, RowQuery
from chatstate.stores import Store, create_store
from chatstate.stores.contract import CHECKS, NOW, OpenStore, run, saving
from chatstate.stores.visit_contract import creating
from tests.conftest import STORE_NAMES, database
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer, RunningServers, database_of


@pytest.fixture(scope="module", params=STORE_NAMES)
def shared_url(
    request: pytest.FixtureRequest, servers: RunningServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database, of each kind in turn, that all checks run on. They have to bear what others have there, to
    leave it alone, and to leave nothing of their own."""
    with database(request.param, servers, tmp_path_factory.mktemp("contract")) as url:
        asyncio.run(fill(url))
        before = asyncio.run(contents(url))
        assert all(before.values()), before
        yield url
        assert asyncio.run(contents(url)) == before


async def fill(url: str) -> None:
    """Rows of somebody else in every table, from the days in which the checks live."""
    store = await opener(url)()
    await store.migrate()
    mine = replace(saving("mine"), once=IdempotencyKey("key", b"digest"), now=TODAY, last_activity=TODAY)
    await store.commit([mine], Retention(history=5))
    await store.commit([creating("mine", created_at=NOW - timedelta(days=900))])
    await store.commit([PutRecord(collection="mine", key="key", document="{}", now=NOW)])
    await store.commit([arriving("done", TODAY), arriving("waiting", NOW - timedelta(days=900))])
    sends = (Send(key="mine", conversation="mine", user_session_id="mine", document="{}"),)
    await store.commit([Settle(key="done", now=NOW - timedelta(days=900), sends=sends)])
    await store.close()


TODAY = datetime(2026, 11, 1, tzinfo=UTC)
"""Of what comes to its end by itself, only that which has come later than all that the checks do."""


def arriving(key: str, now: datetime) -> Receive:
    return Receive(key=key, conversation="mine", document="{}", sent_at=now, now=now)


async def contents(url: str) -> dict[str, list[Any]]:
    """The rows of all tables but that of the migrations."""
    if url.startswith("valkey"):
        store = await opener(url)()
        everything = {shelf: list(await store.list(RowQuery(shelf=shelf))) for shelf in SHELVES}
        await store.close()
        return everything
    if url.startswith("sqlite"):
        with closing(apsw.Connection(url.removeprefix("sqlite:///"))) as file:
            tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {name: list(file.execute(f"SELECT * FROM {name} ORDER BY 1, 2")) for name in tables}
    else:
        connection = await asyncpg.connect(url)
        tables = [
            f"{schema}.{name}"
            for schema, name in await connection.fetch(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'chatstate')"
            )
        ]
        rows = {name: await connection.fetch(f"SELECT * FROM {name} ORDER BY 1, 2") for name in tables}
        await connection.close()
    return {name: found for name, found in rows.items() if "migration" not in name}


@pytest.fixture(scope="module")
def pooled_url(pooled_server: PostgresServer, pgbouncer: PgBouncer) -> Iterator[str]:
    """The URL of such a database through PgBouncer."""
    url = asyncio.run(pooled_server.create_database())
    yield pgbouncer.url(database_of(url))
    asyncio.run(pooled_server.drop_database(url))


each_check = pytest.mark.parametrize("check", CHECKS)

RING = KeyRing.parse(new_key())


def opener(url: str, ring: KeyRing | None = None) -> OpenStore:
    """Opens stores on one database, each independent of the others."""

    async def open_store() -> Store:
        store = create_store(url, owner=False, key_ring=ring)
        await store.open()
        return store

    return open_store


@each_check
async def test_contract(check: str, shared_url: str) -> None:
    await run(check, opener(shared_url))


@each_check
async def test_contract_with_encryption(check: str, shared_url: str) -> None:
    await run(check, opener(shared_url, RING))


@each_check
async def test_contract_through_a_transaction_pooler(check: str, pooled_url: str) -> None:
    await run(check, opener(pooled_url))


def test_the_suite_is_whole() -> None:
    assert len(set(CHECKS)) == len(CHECKS) >= 22
