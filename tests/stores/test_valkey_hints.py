"""Hints between servers in a Valkey Cluster: what happens when the connection is lost, and what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chatstate.stores import server_hints
from chatstate.stores.valkey_cluster import Call, Cluster
from chatstate.stores.valkey_hints import TAG, channel
from chatstate.stores.valkey_keys import slot_of
from chatstate.stores.valkey_node import parse_url
from tests.stores.hearing import ANY, SOON, Heard, hears, opened, saving


@pytest.fixture
async def cluster(valkey_url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(parse_url(valkey_url))
    await cluster.open()
    yield cluster
    await cluster.close()


async def ask(cluster: Cluster, *words: str) -> Any:
    """What the node says that has the channel."""
    (reply,) = await cluster.read([Call(slot_of(TAG), words)])
    return reply


async def listeners(cluster: Cluster) -> set[str]:
    """The ids of all connections that listen to something."""
    known = (await ask(cluster, "CLIENT", "LIST", "TYPE", "pubsub")).decode()
    return {line.split()[0].removeprefix("id=") for line in known.splitlines()}


async def hearers(cluster: Cluster) -> int:
    """How many listen to the channel."""
    _, count = await ask(cluster, "PUBSUB", "SHARDNUMSUB", channel(cluster.url.prefix))
    return int(count)


async def until_hearers(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(SOON):
        while await hearers(cluster) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_lost_connection_is_made_anew_and_everything_may_have_changed_meanwhile(
    cluster: Cluster, valkey_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.01)
    others = await listeners(cluster)
    async with opened(valkey_url) as one, opened(valkey_url) as other:
        heard = await hears(other, one)
        for _ in range(2):
            assert await hearers(cluster) == 2
            for client in await listeners(cluster) - others:
                await ask(cluster, "CLIENT", "KILL", "ID", client)
            heard.hints.clear()
            await heard.until(ANY)
            await until_hearers(cluster, 2)
        heard.feed.follow("a")
        async with asyncio.timeout(SOON):
            while "a" not in heard.hints:
                await one.commit([saving("a")])
    assert not caplog.records


async def test_a_server_that_is_not_heard_is_made_up_for(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be told is not forgotten: once the line works again, any session may have changed."""
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.01)
    async with opened(valkey_url) as one, opened(valkey_url) as other:
        heard = await hears(other, one)
        heard.hints.clear()
        inner: Any = one
        hints = inner.inner._hints
        say, failed = hints._say, asyncio.Event()

        async def fails(line: Any, messages: Any) -> None:
            if not failed.is_set() and any(message.startswith("changed") for message in messages):
                failed.set()
                heard.hints.clear()
                raise ConnectionError
            await say(line, messages)

        monkeypatch.setattr(hints, "_say", fails)
        await one.close()
        await one.open()
        Heard(one)
        async with asyncio.timeout(SOON):
            while not failed.is_set():
                await one.commit([saving("first")])
        await heard.until(ANY)


async def test_two_prefixes_of_one_cluster_do_not_disturb_each_other(valkey_url: str) -> None:
    async with opened(valkey_url) as first, opened(f"{valkey_url}second:") as second:
        heard = Heard(second)
        heard.feed.follow("a")
        mine = await hears(first, first)
        mine.feed.follow("a")
        await first.commit([saving("a")])
        await mine.until("a")
        assert "a" not in heard.hints


async def test_a_closed_store_leaves_no_connection_behind(cluster: Cluster, valkey_url: str) -> None:
    async with opened(valkey_url) as store:
        await hears(store, store)
        await until_hearers(cluster, 1)
    await until_hearers(cluster, 0)


async def test_when_the_node_of_the_channel_dies_another_one_is_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    servers = pytest.importorskip("tests.servers.valkey")
    monkeypatch.setattr(server_hints, "RETRY_SECONDS", 0.01)
    own = servers.ValkeyCluster(shards=3, replicas=1)
    await asyncio.to_thread(own.__enter__)
    try:
        url = f"valkey://:{own.password}@127.0.0.1:{own.nodes[0].port}"
        async with opened(url) as one, opened(url) as other:
            heard = await hears(other, one)
            (shard,) = [n for n in range(3) if own.primary(n).port == _port_of_channel(one)]
            dead = own.primary(shard)
            await asyncio.to_thread(dead.kill)
            heard.hints.clear()
            await heard.until(ANY)
            heard.feed.follow("a")
            async with asyncio.timeout(SOON):
                while "a" not in heard.hints:
                    await one.commit([saving("a")])
        assert 0 < len(caplog.records) <= 2, "each of the two stores tells of it once"
    finally:
        await asyncio.to_thread(own.__exit__, None, None, None)


def _port_of_channel(store: Any) -> int:
    return int(store.inner._cluster.owner_of(slot_of(TAG)).port)
