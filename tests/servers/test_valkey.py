"""Does the test cluster of Valkey do what the other tests rely on?"""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import redis

from .ports import LOOPBACK
from .valkey import ValkeyCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(shards=3, replicas=1) as running:
        yield running


def test_every_shard_takes_the_keys_that_are_said_to_be_its_own(cluster: ValkeyCluster) -> None:
    for shard in range(cluster.shards):
        for key in cluster.keys_of(shard, 3):
            assert cluster.primary(shard).call("SET", key, "here") == "OK"
            with pytest.raises(redis.exceptions.MovedError) as moved:
                cluster.primary((shard + 1) % cluster.shards).call("SET", key, "not here")
            assert moved.value.port == cluster.primary(shard).port


def test_nodes_listen_on_loopback_only_and_want_a_password(cluster: ValkeyCluster) -> None:
    for node in cluster.nodes:
        sockets = psutil.Process(node.pid).net_connections("tcp")
        listening = {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert listening == {(LOOPBACK, node.port), (LOOPBACK, node.bus_port)}
        with redis.Redis(host=node.host, port=node.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_node_that_was_killed_comes_back_where_it_was(cluster: ValkeyCluster) -> None:
    node = cluster.primary(2)
    before = (node.port, node.node_id, node.pid)
    node.call("SET", cluster.keys_of(2, 1)[0], "kept")
    node.restart()
    assert (node.port, node.node_id) == before[:2]
    assert node.pid != before[2]
    cluster.await_whole()
    assert cluster.primary(2).call("GET", cluster.keys_of(2, 1)[0]) == "kept"


def test_a_paused_primary_is_replaced_and_follows_when_it_wakes(cluster: ValkeyCluster) -> None:
    old = cluster.primary(1)
    old.pause()
    new = cluster.await_promotion(old, shard=1)
    old.wake()
    cluster.await_whole()
    assert cluster.primary(1) is new
    assert cluster.replicas_of(1) == [old]
