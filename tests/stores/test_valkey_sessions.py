"""Sessions in a Valkey Cluster: what no other store has to bear."""

from __future__ import annotations

from typing import Any, cast

from chatstate.model import Retention, Version, VersionQuery
from chatstate.stores.contract import NOW, saving
from chatstate.stores.valkey import ValkeyStore
from chatstate.stores.valkey_cluster import Call
from chatstate.stores.valkey_keys import SessionKeys
from tests.stores.test_valkey_mailbox import store

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
