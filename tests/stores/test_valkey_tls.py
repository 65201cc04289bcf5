"""A Valkey Cluster that is reached by TLS alone, and asks its clients for certificates.

The server of the wheel was built without TLS: it is put in front of each node, and the nodes tell clients of that port.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chatstate.errors import InvalidSetting, StoreUnreachable
from chatstate.model import utc_now
from chatstate.stores import create_store
from tests.servers.certificates import Authority
from tests.servers.fault_proxy import FaultProxy
from tests.servers.ports import LOOPBACK
from tests.servers.postgres import poll_until
from tests.servers.valkey import ValkeyCluster, ValkeyNode
from tests.stores.hearing import hears, opened, saving

SETTLED_SECONDS = 10.0
BOTH_PORTS, ONE_PORT = "cluster-announce-tls-port", "cluster-announce-client-port"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(shards=3, replicas=1) as running:
        yield running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture(params=[ONE_PORT, BOTH_PORTS])
async def fronts(
    cluster: ValkeyCluster, authority: Authority, request: pytest.FixtureRequest
) -> AsyncIterator[list[FaultProxy]]:
    """TLS in front of each node, which tells of that port in place of its own, or beside it."""
    context = authority.server_context()
    async with AsyncExitStack() as stack:
        fronts = [await stack.enter_async_context(FaultProxy(node.host, node.port, context)) for node in cluster.nodes]
        ports = [front.port for front in fronts]
        await asyncio.to_thread(announce, cluster.nodes, request.param, ports)
        yield fronts
        await asyncio.to_thread(announce, cluster.nodes, request.param, [0 for _ in ports])


def announce(nodes: list[ValkeyNode], setting: str, ports: list[int]) -> None:
    """Have the nodes tell of these ports, and wait until all of them do of all."""
    for node, port in zip(nodes, ports, strict=True):
        node.call("CONFIG", "SET", setting, port)

    def known() -> bool:
        told = [str(node.call("CLUSTER", "SHARDS")) for node in nodes]
        return all(str(port) in text for text in told for port in ports if port)

    assert poll_until(known, SETTLED_SECONDS)


@pytest.fixture
def url(cluster: ValkeyCluster, authority: Authority, fronts: list[FaultProxy]) -> str:
    certificate, key = authority.issue("client")
    files = f"sslrootcert={authority.file}&sslcert={certificate}&sslkey={key}"
    return f"valkeys://:{cluster.password}@{LOOPBACK}:{fronts[0].port}?prefix=tls:&{files}"


def without(url: str, name: str) -> str:
    return "&".join(part for part in url.split("&") if not part.startswith(f"{name}="))


async def test_all_goes_by_tls(cluster: ValkeyCluster, url: str, fronts: list[FaultProxy]) -> None:
    names = [f"session {number}" for number in range(12)]
    assert {cluster.shard_of(name) for name in names} == {0, 1, 2}
    async with opened(url) as store, opened(url) as other:
        heard = await hears(store, other)
        for name in names:
            heard.feed.follow(name)
        outcomes = await other.commit([saving(name) for name in names])
        found = await store.load(names, utc_now())
        assert [found[name] for name in names] == outcomes
        await heard.until(*names)
    assert all(front.connections for front in fronts[:3])


@pytest.mark.parametrize("fronts", [ONE_PORT], indirect=True)
async def test_a_node_whose_authority_is_not_trusted_is_told_nothing(url: str) -> None:
    with pytest.raises(StoreUnreachable, match="certificate verify failed"):
        await create_store(without(url, "sslrootcert")).open()


@pytest.mark.parametrize("fronts", [ONE_PORT], indirect=True)
async def test_whom_the_system_trusts_is_trusted_only_where_nobody_is_named(
    url: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))  # what OpenSSL takes for the system's
    async with opened(without(url, "sslrootcert")):
        pass
    another = Authority(tmp_path / "another").file
    with pytest.raises(StoreUnreachable, match="certificate verify failed"):
        await create_store(url.replace(str(authority.file), str(another))).open()


@pytest.mark.parametrize("fronts", [ONE_PORT], indirect=True)
async def test_whoever_shows_no_certificate_is_let_in_nowhere(url: str) -> None:
    with pytest.raises(StoreUnreachable, match="No node of the Valkey Cluster"):
        await create_store(without(without(url, "sslcert"), "sslkey")).open()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("valkey://localhost?sslrootcert={here}", "valkeys:// in place of valkey://"),
        ("valkeys://localhost?sslrootcert={here}.missing", "sslrootcert .* cannot be read"),
        ("valkeys://localhost?sslcert=", "sslcert .* cannot be read"),
        ("valkeys://localhost?sslmode=require", "not 'sslmode'"),
        ("valkeys://localhost?sslrootcert={here}", "They are PEM files"),
        ("valkeys://localhost?sslcert={here}", "sslkey is the key of sslcert"),
    ],
)
def test_parameters_of_tls_that_cannot_be_meant_are_explained(url: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        create_store(url.format(here=__file__))
