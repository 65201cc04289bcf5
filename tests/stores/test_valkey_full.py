"""A Valkey Cluster without room: what takes room is refused, what gives room is not."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatstate.errors import StoreFull
from chatstate.mailbox import EraseMail, InboxQuery, MailErased, OutboxQuery, Receive, Send, Settle, Settled
from chatstate.model import Delete, Deleted, Retention
from chatstate.record import DropRecord, PutRecord, RecordDropped, RecordQuery
from chatstate.stores.base import AnyWrite, Store
from chatstate.stores.contract import deleting, saving
from chatstate.stores.visit_contract import creating
from chatstate.visit import EraseVisits, VisitQuery, VisitsErased
from tests.stores.hearing import opened

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    servers = pytest.importorskip("tests.servers.valkey")
    with servers.ValkeyCluster(shards=1, replicas=0) as own:
        yield own


@pytest.fixture
async def store(cluster: Any) -> AsyncIterator[Store]:
    url = f"valkey://:{cluster.password}@127.0.0.1:{cluster.nodes[0].port}?prefix={secrets.token_hex(8)}:"
    async with opened(url, allow_unsafe=True) as one:  # it has no replicas
        yield one


@pytest.fixture
def fill(cluster: Any) -> Iterator[Callable[[], None]]:
    """Takes all room away, until the test ends."""

    def limit(room: int) -> None:
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "maxmemory", room)

    yield lambda: limit(1)
    limit(0)


async def commit(store: Store, write: AnyWrite) -> Any:
    return (await store.commit([write]))[0]


async def test_what_is_full_can_be_emptied(store: Store, fill: Callable[[], None]) -> None:
    putting = [PutRecord(collection="c", key=f"{n}", document="", now=NOW, expires_at=NOW) for n in range(20)]
    creation = [creating(f"{number}", created_at=NOW) for number in range(20)]
    await store.commit([*putting, *creation])
    fill()
    refused = await store.commit([putting[0], creating("new")])
    assert [type(outcome) for outcome in refused] == [StoreFull, StoreFull]
    early = NOW - timedelta(seconds=1)
    assert await commit(store, DropRecord(collection="c", key="3", now=early)) == RecordDropped(1)
    assert await commit(store, EraseVisits(user_session_id="3")) == VisitsErased(1)
    while (await store.sweep(NOW, Retention(visits=timedelta()), None, 7)).next is not None:
        pass
    assert not await store.list(RecordQuery(collection="c", now=early))
    assert not await store.list(VisitQuery())


def erasing(session: str, *conversations: str) -> EraseMail:
    return EraseMail(user_session_id=session, conversations=conversations, now=NOW)


async def test_what_people_have_said_can_be_erased_when_it_is_full(store: Store, fill: Callable[[], None]) -> None:
    arriving = [Receive(key=n, conversation=n, document="text", sent_at=NOW, now=NOW) for n in "abcde"]
    await store.commit([*(saving(name) for name in "ab"), *arriving])
    sends = [Send(key=f"{n}.1", conversation="d", user_session_id=n, document="reply") for n in "bc"]
    await commit(store, Settle(key="e", now=NOW, sends=tuple(sends)))
    fill()
    assert isinstance(await commit(store, saving("a")), StoreFull)
    assert isinstance(await commit(store, deleting("a")), Deleted)
    assert isinstance(await commit(store, Delete(user_session_id="b", now=NOW, erases=erasing("b", "b"))), Deleted)
    assert await commit(store, erasing("c", "c")) == MailErased(2)
    assert not await store.list(OutboxQuery(now=NOW))
    left: Any = await store.list(InboxQuery(now=NOW, status="pending"))
    assert [entry.key for entry in left] == ["a", "d"]
    assert await commit(store, Settle(key="d", now=NOW, status="noted")) == Settled(True)
    while (await store.sweep(NOW + timedelta(days=9), Retention(visits=timedelta(days=9)), None, 2)).next is not None:
        pass
    assert not await store.list(InboxQuery(now=NOW))
