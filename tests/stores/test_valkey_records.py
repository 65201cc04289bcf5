"""Records in a Valkey Cluster: what it costs to ask for them, which every server does every two seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatstate.record import PutRecord, RecordQuery
from chatstate.stores import Store, valkey_records
from chatstate.stores.valkey_cluster import Call, Cluster
from chatstate.stores.valkey_node import parse_url
from tests.stores.hearing import opened

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
SECOND = timedelta(seconds=1)


class Counting(Cluster):
    """Counts what is asked of the nodes, and how often it waits for an answer."""

    rounds = calls = 0

    async def read_some(self, calls: Sequence[Call]) -> list[Any]:
        self.rounds += bool(calls)
        self.calls += len(calls)
        return await super().read_some(calls)


@pytest.fixture
async def cluster(valkey_url: str) -> AsyncIterator[Counting]:
    cluster = Counting(parse_url(valkey_url))
    await cluster.open()
    yield cluster
    await cluster.close()


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[Store]:
    async with opened(valkey_url) as store:
        yield store


def putting(key: str, now: datetime = NOW) -> PutRecord:
    return PutRecord(collection="keys", key=key, document="{}", now=now)


async def test_to_hear_that_nothing_has_changed_takes_one_answer_of_each_node(store: Store, cluster: Counting) -> None:
    await store.commit([putting(f"{number}") for number in range(1000)])
    query = RecordQuery(collection="keys", now=NOW, changed_since=NOW + SECOND)
    assert await valkey_records.records(cluster, cluster.url.prefix, query) == []
    assert (cluster.rounds, cluster.calls) == (1, len(cluster.shards))


async def test_to_get_the_few_that_have_changed_takes_three_answers(store: Store, cluster: Counting) -> None:
    await store.commit([putting(f"{number}") for number in range(1000)])
    await store.commit([putting(f"{number}", NOW + SECOND) for number in (7, 5, 400)])
    query = RecordQuery(collection="keys", now=NOW, changed_since=NOW + SECOND)
    found = await valkey_records.records(cluster, cluster.url.prefix, query)
    assert [record.key for record in found] == ["400", "5", "7"]
    assert cluster.rounds == 3
    assert cluster.calls <= len(cluster.shards) + 3 + 3


async def test_a_page_of_many_asks_for_little_more_than_it_holds(store: Store, cluster: Counting) -> None:
    await store.commit([putting(f"{number:04}") for number in range(3000)])
    found = await valkey_records.records(
        cluster, cluster.url.prefix, RecordQuery(collection="keys", now=NOW, after="0099", limit=1000)
    )
    assert [record.key for record in found] == [f"{number:04}" for number in range(100, 1100)]
    assert cluster.rounds <= 5
