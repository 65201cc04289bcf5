"""Valkey Cluster as a system of record: a write that `WAITAOF` has confirmed survives whatever happens to its primary.

`tests/servers/valkey_writes.py` says what confirmed is, and checks. What is not promised is in `test_valkey_limits.py`.
CHATSTATE_TEST_FAULTS=100 repeats each fault for so often.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from tests.servers.valkey import ValkeyCluster, ValkeyNode
from tests.servers.valkey_writes import Client, Ledger, Writers, write

ROUNDS = int(os.environ.get("CHATSTATE_TEST_FAULTS", "1"))

# --- Faults -----------------------------------------------------------------------------------------------------------

Fault = Callable[[ValkeyCluster, random.Random], AbstractContextManager[ValkeyNode]]
"""Begins when it is entered, and gives the primary that there is then; ends when it is left."""


@contextmanager
def the_primary_is_killed(cluster: ValkeyCluster, rng: random.Random) -> Iterator[ValkeyNode]:
    old = cluster.primary()
    if rng.random() < 0.5:
        rng.choice(cluster.shard()).call("BGREWRITEAOF")
    old.kill()
    yield cluster.await_promotion(old)
    old.start()


@contextmanager
def the_primary_is_paused_and_wakes(cluster: ValkeyCluster, rng: random.Random) -> Iterator[ValkeyNode]:
    old = cluster.primary()
    old.pause()
    yield cluster.await_promotion(old)
    old.wake()


@contextmanager
def the_primary_is_cut_off(cluster: ValkeyCluster, rng: random.Random) -> Iterator[ValkeyNode]:
    old = cluster.primary()
    cluster.isolate(old)
    yield cluster.await_promotion(old)
    cluster.heal()


@contextmanager
def all_nodes_are_killed(cluster: ValkeyCluster, rng: random.Random) -> Iterator[ValkeyNode]:
    for node in cluster.nodes:
        node.kill()
    for node in rng.sample(cluster.nodes, len(cluster.nodes)):
        node.start()
    cluster.await_whole()
    yield cluster.primary()


@contextmanager
def a_replica_is_killed(cluster: ValkeyCluster, rng: random.Random) -> Iterator[ValkeyNode]:
    replica = rng.choice(cluster.replicas_of())
    replica.kill()
    yield cluster.primary()
    replica.start()


@contextmanager
def the_primary_is_killed_while_a_replica_comes_back(
    cluster: ValkeyCluster, rng: random.Random
) -> Iterator[ValkeyNode]:
    old = cluster.primary()
    rng.choice(cluster.replicas_of()).restart()
    time.sleep(rng.choice((0, 0.05, 0.2)))
    old.kill()
    if cluster.replicas == 1:  # which has been away for too long to be elected
        old.start()
        cluster.await_whole()
        yield cluster.primary()
    else:
        yield cluster.await_promotion(old)
        old.start()


FAULTS: list[Fault] = [
    the_primary_is_killed,
    the_primary_is_paused_and_wakes,
    the_primary_is_cut_off,
    all_nodes_are_killed,
    a_replica_is_killed,
    the_primary_is_killed_while_a_replica_comes_back,
]


@pytest.fixture(scope="module", params=[1, 2])
def cluster(request: pytest.FixtureRequest) -> Iterator[ValkeyCluster]:
    """A shard with one replica, then one with two, whose links can be cut."""
    with ValkeyCluster(replicas=request.param, links=True) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_confirmed_survives(cluster: ValkeyCluster, fault: Fault) -> None:
    ledger = Ledger(cluster.replicas)
    rng = random.Random(ledger.seed)
    await asyncio.to_thread(cluster.await_whole)
    cluster.primary().call("FLUSHALL")
    async with Writers(cluster, ledger):
        for _ in range(ROUNDS):
            await ledger.grows()
            with ExitStack() as stack:
                began = time.monotonic()
                primary = await asyncio.to_thread(stack.enter_context, fault(cluster, rng))
                print(f"{fault.__name__}: a primary after {time.monotonic() - began:.2f} s")  # noqa: T201
                await ledger.verify(primary)
                await asyncio.to_thread(stack.close)
            await asyncio.to_thread(cluster.await_whole)
            await ledger.grows()
            await ledger.verify(cluster.primary())
    await asyncio.to_thread(cluster.await_whole)
    for node in cluster.shard():
        node.call("READONLY")
        await ledger.verify(node)
    ledger.report(f"{fault.__name__}, {ROUNDS} times, {cluster.replicas} replicas")


async def test_the_checker_sees_what_is_lost_or_out_of_order(cluster: ValkeyCluster) -> None:
    await asyncio.to_thread(cluster.await_whole)
    primary = cluster.primary()
    (key,) = cluster.keys_of(0, 1, "checked")
    ledger = Ledger(cluster.replicas)
    async with Client.open(primary) as client:
        assert await write(client, ledger.replicas, [(key, 1), (key, 2)]) == ["acknowledged"] * 2
    ledger.outcomes[key] = {1: "acknowledged", 2: "acknowledged"}
    await ledger.verify(primary)
    primary.call("LMOVE", key, key, "LEFT", "RIGHT")
    with pytest.raises(AssertionError, match="not in the order"):
        await ledger.verify(primary)
    primary.call("LPOP", key)
    with pytest.raises(AssertionError, match=r"\[2\] of 2 acknowledged writes are lost"):
        await ledger.verify(primary)


async def test_what_only_the_primary_has_confirmed_is_lost_and_the_checker_sees_it(cluster: ValkeyCluster) -> None:
    await asyncio.to_thread(cluster.await_whole)
    cluster.primary().call("FLUSHALL")
    ledger = Ledger(replicas=0)
    async with Writers(cluster, ledger):
        await ledger.grows()
        with ExitStack() as stack:
            primary = await asyncio.to_thread(stack.enter_context, the_primary_is_cut_off(cluster, random.Random(1)))
            with pytest.raises(AssertionError, match="acknowledged writes are lost"):
                await ledger.verify(primary)
