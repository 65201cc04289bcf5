"""The contract suite on every store that ships, with and without encryption, and through a transaction pooler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from chatstate.encryption import KeyRing, new_key
from chatstate.stores import Store, create_store
from chatstate.stores.contract import CHECKS, OpenStore, run
from tests.conftest import STORE_NAMES, database
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer, RunningServers, database_of


@pytest.fixture(scope="module", params=STORE_NAMES)
def shared_url(
    request: pytest.FixtureRequest, servers: RunningServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database, of each kind in turn, that all checks run on: each has to bear what others left there."""
    with database(request.param, servers, tmp_path_factory.mktemp("contract")) as url:
        yield url


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
