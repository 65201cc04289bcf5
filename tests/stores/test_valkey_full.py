"""A Valkey Cluster without room: what takes room is refused, what gives room is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatstate.errors import StoreFull
from chatstate.model import Retention
from chatstate.record import DropRecord, PutRecord, RecordDropped, RecordQuery
from chatstate.stores.visit_contract import creating
from chatstate.visit import EraseVisits, VisitQuery, VisitsErased
from tests.stores.hearing import opened

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)


@pytest.fixture
async def cluster() -> AsyncIterator[Any]:
    servers = pytest.importorskip("tests.servers.valkey")
    own = servers.ValkeyCluster(shards=1, replicas=0)
    await asyncio.to_thread(own.__enter__)
    yield own
    await asyncio.to_thread(own.__exit__, None, None, None)


async def test_what_is_full_can_be_emptied(cluster: Any) -> None:
    url = f"valkey://:{cluster.password}@127.0.0.1:{cluster.nodes[0].port}"
    async with opened(url, allow_unsafe=True) as store:  # it has no replicas
        putting = [PutRecord(collection="c", key=f"{n}", document="", now=NOW, expires_at=NOW) for n in range(20)]
        creation = [creating(f"{number}", created_at=NOW) for number in range(20)]
        await store.commit([*putting, *creation])
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "maxmemory", 1)
        refused = await store.commit([putting[0], creating("new")])
        assert [type(outcome) for outcome in refused] == [StoreFull, StoreFull]
        early = NOW - timedelta(seconds=1)
        assert list(await store.commit([DropRecord(collection="c", key="3", now=early)])) == [RecordDropped(1)]
        assert list(await store.commit([EraseVisits(user_session_id="3")])) == [VisitsErased(1)]
        while (await store.sweep(NOW, Retention(visits=timedelta()), None, 7)).next is not None:
            pass
        assert not await store.list(RecordQuery(collection="c", now=early))
        assert not await store.list(VisitQuery())
