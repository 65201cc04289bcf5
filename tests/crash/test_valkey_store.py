"""Two servers on a Valkey Cluster whose nodes fail under load: what was acknowledged is there, on whoever is primary.

`CHATSTATE_TEST_FAULTS=20` repeats each fault so often. A seed that is printed replays the choices of the clients.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest

from tests.servers.load import History, Load
from tests.servers.process import ServerProcess
from tests.servers.valkey import ValkeyCluster, ValkeyNode

FAULTS = int(os.environ.get("CHATSTATE_TEST_FAULTS", "1"))
AGAIN_SECONDS = 30.0
STALE_SECONDS = 10.0
"""How far behind a load may be that a primary answers which was paused or cut off: as long as it is waited for."""

SKIPS = 1000
"""How many versions of a session are left out after a failover: what a former primary may have made of it, and lost."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    """Three shards, each with a replica, whose links can be cut; on the disk."""
    with ValkeyCluster(3, 1, links=True) as running:
        yield running


@pytest.fixture
def servers(cluster: ValkeyCluster, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    with ExitStack() as stack:
        folders = [tmp_path / str(number) for number in range(2)]
        for folder in folders:
            folder.mkdir()
        url = cluster.url(f"{tmp_path.name}:")
        yield [stack.enter_context(ServerProcess(url, folder)) for folder in folders]


def kill(_cluster: ValkeyCluster, node: ValkeyNode) -> None:
    node.kill()


def pause(_cluster: ValkeyCluster, node: ValkeyNode) -> None:
    node.pause()


def cut_off(cluster: ValkeyCluster, node: ValkeyNode) -> None:
    """From all other nodes, not from the servers, which go on asking it."""
    cluster.isolate(node)


def come_back(cluster: ValkeyCluster, node: ValkeyNode) -> None:
    cluster.heal()
    if node.paused:
        node.wake()
    else:
        node.start()


@pytest.mark.parametrize("fault", [kill, pause, cut_off])
async def test_a_primary_that_fails_under_load_takes_nothing_acknowledged_with_it(
    fault: Callable[[ValkeyCluster, ValkeyNode], None], cluster: ValkeyCluster, servers: list[ServerProcess]
) -> None:
    history = History(skips=SKIPS, staleness=STALE_SECONDS, dirty=True)
    for number in range(FAULTS):
        shard = number % cluster.shards
        async with AsyncExitStack() as stack:
            loads = [await stack.enter_async_context(Load(history, server.port, workers=8)) for server in servers]
            await asyncio.gather(*(load.acknowledgements(100) for load in loads))
            victim = await asyncio.to_thread(cluster.primary, shard)
            await asyncio.to_thread(fault, cluster, victim)
            await asyncio.to_thread(cluster.await_promotion, victim, shard)
            await asyncio.to_thread(come_back, cluster, victim)
            await asyncio.to_thread(cluster.await_whole)
            async with asyncio.timeout(AGAIN_SECONDS):
                await asyncio.gather(*(load.acknowledgements(100) for load in loads))
        await history.check(servers[number % 2].port)
    for server in servers:
        assert "Traceback" not in server.output, server.output
    history.report(f"{FAULTS} times {fault.__name__}")


async def test_all_nodes_killed_at_once_lose_nothing(cluster: ValkeyCluster, servers: list[ServerProcess]) -> None:
    history = History(skips=SKIPS, staleness=STALE_SECONDS, dirty=True)
    async with Load(history, servers[0].port, workers=8) as load:
        await load.acknowledgements(150)
        for node in cluster.nodes:
            await asyncio.to_thread(node.kill)
        for node in cluster.nodes:
            await asyncio.to_thread(node.start)
        await asyncio.to_thread(cluster.await_whole)
        async with asyncio.timeout(AGAIN_SECONDS):
            await load.acknowledgements(50)
    await history.check(servers[1].port)
    history.report("all killed")


async def test_while_a_replica_is_away_its_shard_takes_no_write_and_says_so(
    cluster: ValkeyCluster, servers: list[ServerProcess]
) -> None:
    """A save is 503 and nothing was written, loads go on; and when the replica is back, saves do."""
    replica = (await asyncio.to_thread(cluster.replicas_of, 0))[0]
    name = next(name for name in map("session {}".format, range(1000)) if cluster.shard_of(name) == 0)
    body = {"user_session_id": name, "chat_state": "{}"}
    async with httpx.AsyncClient(base_url=servers[0].base_url, timeout=AGAIN_SECONDS) as client:
        assert (await client.post("/chat-state-sessions", json=body)).status_code == 201
        await asyncio.to_thread(replica.kill)
        answers = [await client.post("/chat-state-sessions", json=body)]
        while answers[-1].json().get("outcome") == "unknown":  # until it is known that the replica is away
            answers.append(await client.post("/chat-state-sessions", json=body))
        assert {answer.status_code for answer in answers} == {503}
        assert "replica" in answers[-1].json()["detail"]
        loaded = await client.get(f"/chat-state-sessions/{name}")
        assert loaded.json()["chat_state"] == "{}"
        assert "away" in (await client.get("/readyz")).json()["durability"]
        await asyncio.to_thread(replica.start)
        await asyncio.to_thread(cluster.await_whole)
        async with asyncio.timeout(AGAIN_SECONDS):
            while (await client.post("/chat-state-sessions", json=body)).status_code != 200:
                pass


async def test_after_a_failover_its_shard_takes_no_write_until_the_old_primary_is_back(
    cluster: ValkeyCluster, servers: list[ServerProcess]
) -> None:
    """The cluster lists it as a primary that has failed, and not as a replica: it was not waited for."""
    await asyncio.to_thread(cluster.await_whole)
    old = await asyncio.to_thread(cluster.primary, 0)
    name = next(name for name in map("session {}".format, range(1000)) if cluster.shard_of(name) == 0)
    body = {"user_session_id": name, "chat_state": "{}"}
    async with httpx.AsyncClient(base_url=servers[0].base_url, timeout=AGAIN_SECONDS) as client:
        assert (await client.post("/chat-state-sessions", json=body)).status_code == 201
        await asyncio.to_thread(old.kill)
        await asyncio.to_thread(cluster.await_promotion, old)
        answers = [await client.post("/chat-state-sessions", json=body) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {503}
        assert (await client.get(f"/chat-state-sessions/{name}")).status_code == 200
        await asyncio.to_thread(old.start)
        await asyncio.to_thread(cluster.await_whole)
        async with asyncio.timeout(AGAIN_SECONDS):
            while (await client.post("/chat-state-sessions", json=body)).status_code != 200:
                pass
