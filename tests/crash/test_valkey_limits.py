"""What a Valkey Cluster does not promise: ways to lose a write, or to read a lie, that a store must not fall for."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from tests.servers.postgres import poll_until
from tests.servers.valkey import NODE_TIMEOUT_MS, ValkeyCluster, ValkeyNode
from tests.servers.valkey_writes import Client, write


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=2, links=True) as running:
        yield running


@pytest.fixture
async def key(cluster: ValkeyCluster) -> AsyncIterator[str]:
    """A key of the shard, with the confirmed value `kept`; the cluster is whole before and after."""
    await asyncio.to_thread(cluster.await_whole)
    (name,) = cluster.keys_of(0, 1)
    async with Client.open(cluster.primary()) as client:
        await client.pipeline(("SET", name, "kept"))
        assert await client.confirmed(2, 2_000)
    yield name
    for node in cluster.shard():
        node.start()
    cluster.heal()
    await asyncio.to_thread(cluster.await_whole)


async def value_in(node: ValkeyNode, key: str) -> str:
    return str(await asyncio.to_thread(node.call, "GET", key))


async def test_what_is_not_confirmed_is_read_and_lost(cluster: ValkeyCluster, key: str) -> None:
    old = cluster.primary()
    cluster.isolate(old)
    async with Client.open(old) as writer, Client.open(old) as reader:
        assert await writer.pipeline(("SET", key, "lost"), ("WAITAOF", 1, 2, 100)) == ["OK", [1, 0]]
        # To a reader, WAITAOF says nothing about what others have written.
        assert await reader.pipeline(("GET", key), ("WAITAOF", 1, 2, 100)) == ["lost", [1, 2]]
    new = await asyncio.to_thread(cluster.await_promotion, old)
    assert await value_in(new, key) == "kept"


async def test_what_some_replicas_have_confirmed_is_lost_with_them(cluster: ValkeyCluster, key: str) -> None:
    old = cluster.primary()
    confirming, behind = cluster.replicas_of()
    assert cluster.links is not None
    cluster.links.cut([(behind.number, old.number)])  # the others still hear of it, and it of them
    async with Client.open(old) as client:
        await client.pipeline(("SET", key, "lost"))
        assert await client.confirmed(1)
        assert not await client.confirmed(2)
    await asyncio.to_thread(old.kill)
    await asyncio.to_thread(confirming.kill)
    assert await asyncio.to_thread(cluster.await_promotion, old) is behind
    assert await value_in(behind, key) == "kept"


async def test_a_primary_that_is_one_again_confirms_what_it_has_lost(cluster: ValkeyCluster, key: str) -> None:
    """Why the history at the time of the write and that at the time of the confirmation are compared."""
    old = cluster.primary()
    async with Client.open(old) as client:
        history = await client.history()
        cluster.isolate(old)
        assert await client.pipeline(("SET", key, "lost")) == ["OK"]
        new = await asyncio.to_thread(cluster.await_promotion, old)
        cluster.heal()
        await asyncio.to_thread(cluster.await_whole)
        assert await client.history() == ""  # a replica
        await asyncio.to_thread(old.call, "CLUSTER FAILOVER")
        assert await asyncio.to_thread(cluster.await_promotion, new) is old
        await asyncio.to_thread(cluster.await_whole)
        assert await client.pipeline(("WAITAOF", 1, 2, 1_000), ("GET", key)) == [[1, 2], "kept"]
        assert await client.history() not in ("", history)


async def test_another_connection_confirms_nothing(cluster: ValkeyCluster, key: str) -> None:
    primary = cluster.primary()
    assert cluster.links is not None
    cluster.links.cut([(replica.number, primary.number) for replica in cluster.replicas_of()])
    async with Client.open(primary) as writer, Client.open(primary) as other:
        await writer.pipeline(("SET", key, "new"))
        assert await other.pipeline(("WAITAOF", 1, 2, 100)) == [[1, 2]]
        assert await writer.pipeline(("WAITAOF", 1, 2, 100)) == [[1, 0]]
        await writer.connection.disconnect()
        await writer.send(("WAITAOF", 1, 2, 100))  # the library connects anew, and says nothing of it
        assert await writer.replies(1) == [[1, 2]]


async def test_a_shard_whose_replica_is_away_confirms_nothing_until_it_is_back(
    cluster: ValkeyCluster, key: str
) -> None:
    replica = cluster.replicas_of()[0]
    await asyncio.to_thread(replica.kill)
    async with Client.open(cluster.primary()) as client:
        assert await write(client, 2, [(f"list-{{{key}}}", 1)]) == ["unknown"]
        await asyncio.to_thread(replica.start)
        assert await client.confirmed(2, 10_000)


async def test_a_shard_can_refuse_what_it_could_not_confirm(cluster: ValkeyCluster, key: str) -> None:
    primary, replica = cluster.primary(), cluster.replicas_of()[0]
    primary.call("CONFIG", "SET", "min-replicas-to-write", "2")
    try:
        await asyncio.to_thread(replica.kill)

        # What is written before the primary has noticed is unknown.
        def noticed() -> bool:
            return primary.info("replication")["connected_slaves"] == "1"

        assert await asyncio.to_thread(poll_until, noticed, 20)
        async with Client.open(primary) as client:
            assert await write(client, 2, [(f"list-{{{key}}}", 2)]) == ["refused"]
            (reply,) = await client.pipeline(("SET", key, "new"))
            assert str(reply).startswith("NOREPLICAS")
            assert await client.pipeline(("GET", key)) == ["kept"]
    finally:
        primary.call("CONFIG", "SET", "min-replicas-to-write", "0")


async def test_a_primary_that_is_cut_off_is_read_until_it_notices(cluster: ValkeyCluster, key: str) -> None:
    old, (new, _) = cluster.primary(), cluster.replicas_of()
    old.call("CONFIG", "SET", "cluster-node-timeout", 3 * NODE_TIMEOUT_MS)  # time enough for what follows
    async with Client.open(old) as reader, Client.open(new) as writer:
        cluster.isolate(old)
        await asyncio.to_thread(new.call, "CLUSTER", "FAILOVER", "TAKEOVER")  # at once, and without a vote
        assert await writer.pipeline(("SET", key, "new")) == ["OK"]
        assert await reader.pipeline(("GET", key)) == ["kept"]
        async with asyncio.timeout(20):
            while (reply := (await reader.pipeline(("GET", key)))[0]) == "kept":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert isinstance(reply, redis.exceptions.ClusterDownError)
    old.call("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS)


async def test_a_primary_that_wakes_reads_what_is_old_and_writes_what_is_lost(cluster: ValkeyCluster, key: str) -> None:
    old = cluster.primary()
    async with Client.open(old) as client:
        cluster.isolate(old)
        old.pause()
        new = await asyncio.to_thread(cluster.await_promotion, old)
        assert new.call("SET", key, "new") == "OK"
        await client.send(("GET", key), ("SET", key, "lost"), ("WAITAOF", 1, 2, 100))
        old.wake()
        assert await client.replies(3) == ["kept", "OK", [1, 0]]
    cluster.heal()
    await asyncio.to_thread(cluster.await_whole)
    assert await value_in(new, key) == "new"


async def test_a_primary_that_comes_back_with_an_empty_disk_empties_its_replicas(
    cluster: ValkeyCluster, key: str
) -> None:
    primary = cluster.primary()
    for voter in cluster.voters:
        voter.pause()  # nobody is elected meanwhile
    await asyncio.to_thread(primary.kill)
    shutil.rmtree(primary.data / "appendonlydir")
    await asyncio.to_thread(primary.start)
    for voter in cluster.voters:
        voter.wake()
    await asyncio.to_thread(cluster.await_whole)
    assert cluster.primary() is primary
    for node in cluster.shard():
        node.call("READONLY")
        assert node.call("EXISTS", key) == 0


async def test_after_a_restart_of_all_a_replica_is_elected_only_by_an_operator(
    cluster: ValkeyCluster, key: str
) -> None:
    old = cluster.primary()
    replica, _ = cluster.replicas_of()
    for node in cluster.nodes:
        node.kill()
    replica.log.write_text("")
    for node in cluster.nodes:
        if node is not old:
            await asyncio.to_thread(node.start)
    told = "Disconnected from primary for longer than allowed"
    assert await asyncio.to_thread(poll_until, lambda: told in replica.log_tail(), 20)
    assert await asyncio.to_thread(replica.call, "CLUSTER FAILOVER", "TAKEOVER") == "OK"
    assert await asyncio.to_thread(cluster.await_promotion, old) is replica
    assert await value_in(replica, key) == "kept"
