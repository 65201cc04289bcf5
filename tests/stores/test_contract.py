"""The contract suite on every store that ships, and through a transaction pooler."""

from __future__ import annotations

import pytest

from chatstate.stores import Store, create_store
from chatstate.stores.contract import CHECKS, OpenStore, run

each_check = pytest.mark.parametrize("check", CHECKS)


def opener(url: str) -> OpenStore:
    """Opens stores on one database, each independent of the others."""

    async def open_store() -> Store:
        store = create_store(url, owner=False)
        await store.open()
        return store

    return open_store


@each_check
async def test_contract(check: str, store_url: str) -> None:
    await run(check, opener(store_url))


@each_check
async def test_contract_through_a_transaction_pooler(check: str, pgbouncer_url: str) -> None:
    await run(check, opener(pgbouncer_url))


def test_the_suite_is_whole() -> None:
    assert len(set(CHECKS)) == len(CHECKS) >= 22
