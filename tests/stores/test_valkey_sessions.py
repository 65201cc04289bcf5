"""Sessions in a Valkey Cluster: what no other store has to bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from msgspec import msgpack
from msgspec.structs import replace

from chatstate.errors import StoreUnavailable
from chatstate.mailbox import REMEMBERED_FOR
from chatstate.model import IdempotencyKey, Retention, Version, VersionQuery
from chatstate.stores.contract import NOW, saving
from chatstate.stores.valkey import ValkeyStore
from chatstate.stores.valkey_cluster import Call
from chatstate.stores.valkey_keys import SessionKeys
from tests.stores.test_valkey_mailbox import FaultyCluster, in_place, receiving, settling, store

__all__ = ["store"]  # a fixture

_EPOCH = 86
"""Where the epoch of the primary stands in the text of a session."""


async def failed_over(store: ValkeyStore, user_session_id: str) -> None:
    """Have the session as another primary has left it."""
    keys = SessionKeys(store._prefix, user_session_id)
    await store._cluster.write([Call(keys.slot, ("SETRANGE", keys.own("s"), _EPOCH, "x" * 8))])


async def test_the_newest_versions_are_kept_though_versions_skip_after_a_failover(store: ValkeyStore) -> None:
    async def save(state: str) -> Any:
        return (await store.commit([saving("s", state)], Retention(history=3)))[0]

    for number in range(1, 5):
        await save(f"{number}")
    await failed_over(store, "s")
    assert (await save("5")).version == 1005
    query = VersionQuery(user_session_id="s", now=NOW, with_state=True)
    assert [row.chat_state for row in cast(list[Version], await store.list(query))] == ["5", "4", "3"]
    await save("6")
    assert [row.version for row in cast(list[Version], await store.list(query))] == [1006, 1005, 4]


class CountingCluster(FaultyCluster):
    """A cluster that counts the bytes of what it reads."""

    read_bytes = 0

    async def read(self, calls: Sequence[Call]) -> list[Any]:
        replies = await super().read(calls)
        self.read_bytes += len(msgpack.encode(replies))
        return replies


async def test_of_a_long_history_only_the_versions_that_are_asked_for_are_read(store: ValkeyStore) -> None:
    """A state may have a megabyte, and a history thousands of them."""
    for number in range(20):
        await store.commit([saving("s", f"{number}" * 10_000)], Retention(history=20))
    counting = CountingCluster(store._cluster, 0, "is not sent")
    other = in_place(store, "", counting)
    asked: list[tuple[dict[str, Any], list[int]]] = [
        ({"version": 7}, [7]),
        ({"before": 4, "limit": 1}, [3]),
        ({"limit": 2}, [20, 19]),
    ]
    for given, numbers in asked:
        counting.read_bytes = 0
        found = cast(list[Version], await other.list(VersionQuery(user_session_id="s", now=NOW, **given)))
        assert [row.version for row in found] == numbers
        assert counting.read_bytes < 100_000


class RefusingCluster(FaultyCluster):
    """A cluster that takes no writes."""

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        return [StoreUnavailable("a replica is away") for _ in calls]


async def test_a_sweep_ends_though_what_it_finds_cannot_be_removed(store: ValkeyStore) -> None:
    """Else it would begin again at once, and again, as long as one shard takes no writes."""
    once = IdempotencyKey("key", b"digest")
    saves = [replace(saving(name), expires_in=1, once=once) for name in "ab"]
    await store.commit([*saves, *(receiving(key) for key in "ab"), *(settling(key, "a", 0) for key in "ab")])
    other = in_place(store, "", RefusingCluster(store._cluster, 0, "is not sent"))
    later = NOW + REMEMBERED_FOR
    swept = await other.sweep(later, Retention(), None, 2)
    assert (swept.sessions, swept.next) == (0, None)
    swept = await store.sweep(later, Retention(), None, 2)
    assert (swept.sessions, swept.next) == (2, "")
