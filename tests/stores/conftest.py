"""The tests of the stores run on each database that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from chatstate.stores import postgres_hints, valkey_hints
from chatstate.stores.valkey_cluster import Cluster
from chatstate.stores.valkey_keys import slot_of
from chatstate.stores.valkey_node import Subscription, parse_url
from tests.conftest import POSTGRES_NAMES, STORE_NAMES, VALKEY, database
from tests.servers.postgres import RunningServers


@pytest.fixture(params=STORE_NAMES)
def store_url(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database on each server in turn."""
    with database(request.param, servers, tmp_path) as url:
        yield url


@pytest.fixture
def valkey_url(servers: RunningServers, tmp_path: Path) -> Iterator[str]:
    """The URL of a Valkey Cluster, with a prefix that nobody else uses."""
    with database(VALKEY, servers, tmp_path) as url:
        yield url


@pytest.fixture(params=[*POSTGRES_NAMES, VALKEY])
async def shared_url(request: pytest.FixtureRequest, servers: RunningServers) -> AsyncIterator[str]:
    """The URL of an empty database that servers can share, on each server in turn."""
    if request.param == VALKEY:
        yield request.getfixturevalue("valkey_url")
        return
    server = servers.get(request.param)
    url = await server.create_database()
    yield url
    await server.drop_database(url)


@pytest.fixture
async def said(shared_url: str) -> AsyncIterator[list[str]]:
    """All that servers on this database say to each other."""
    messages: list[str] = []
    if not shared_url.startswith("valkey"):
        connection = await asyncpg.connect(shared_url)
        await connection.add_listener(postgres_hints.CHANNEL, lambda *given: messages.append(given[-1]))
        yield messages
        await connection.close()
        return
    cluster = Cluster(parse_url(shared_url))
    await cluster.open()
    channel = valkey_hints.channel(cluster.url.prefix)
    async with cluster.subscribed(slot_of(valkey_hints.TAG), channel) as line:
        listening = asyncio.create_task(_note(line, messages))
        yield messages
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
    await cluster.close()


async def _note(line: Subscription, messages: list[str]) -> None:
    while True:
        message = await line.hear()
        if message:
            messages.append(message.decode().partition(" ")[2])
