"""All machines of a Valkey Cluster lose their power at once: what was not synced is gone from every disk.

Calls are watched, not disks: that a synced file has its name in a synced folder is not part of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers.power import SyncWatch
from tests.servers.valkey import ValkeyCluster
from tests.servers.valkey_writes import Client, Ledger, Writers

pytestmark = pytest.mark.skipif(not SyncWatch.available(), reason="no strace (Debian: apt-get install strace)")


@contextmanager
def watched(folder: Path) -> Iterator[tuple[ValkeyCluster, list[SyncWatch]]]:
    """A shard with one replica, and who follows what each of the two syncs."""
    with ValkeyCluster(replicas=1) as cluster, ExitStack() as stack:
        yield cluster, [stack.enter_context(SyncWatch(node.pid, folder)) for node in cluster.shard()]


def fail_power(cluster: ValkeyCluster, watches: list[SyncWatch], rng: random.Random) -> dict[str, int]:
    """End all nodes, and take from the files of the shard what was not synced; how many bytes, by file."""
    for node in cluster.nodes:
        node.kill()
    lost: dict[str, int] = {}
    for watch in watches:
        watch.__exit__()
        lost |= watch.cut_power(rng)
    return lost


async def test_what_is_confirmed_survives_a_power_failure(tmp_path: Path) -> None:
    ledger = Ledger(replicas=1)
    with watched(tmp_path) as (cluster, watches):
        async with Writers(cluster, ledger):
            await ledger.grows(50)
            for node in cluster.shard():
                node.call("BGREWRITEAOF")  # what follows goes to new files
            await ledger.grows(100)
            await asyncio.to_thread(fail_power, cluster, watches, random.Random(ledger.seed))
        # Each disk by itself has all of it: whoever is the primary afterwards.
        for node in cluster.shard():
            await asyncio.to_thread(node.start)
            node.call("CONFIG", "SET", "cluster-allow-reads-when-down", "yes")
            node.call("READONLY")
            await ledger.verify(node)
            await asyncio.to_thread(node.kill)
        for node in cluster.nodes:
            await asyncio.to_thread(node.start)
        await asyncio.to_thread(cluster.await_whole)
        await ledger.verify(cluster.primary())
    ledger.report("a power failure")


async def test_what_is_not_synced_is_lost_by_a_power_failure(tmp_path: Path) -> None:
    """With `appendfsync no`, and with `everysec` for a second, an answer says nothing about the disk."""
    with watched(tmp_path) as (cluster, watches):
        (key,) = cluster.keys_of(0, 1)
        for node in cluster.shard():
            node.call("CONFIG", "SET", "appendfsync", "no")
        async with Client.open(cluster.primary()) as client:
            assert await client.pipeline(("SET", key, "lost")) == ["OK"]
            (received,) = await client.pipeline(("WAIT", 1, 2_000))
            assert received == 1
        assert await asyncio.to_thread(fail_power, cluster, watches, random.Random(1))
        for node in cluster.nodes:
            await asyncio.to_thread(node.start)
        await asyncio.to_thread(cluster.await_whole)
        assert cluster.primary().call("EXISTS", key) == 0
