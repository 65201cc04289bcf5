"""More than one machine, as far as one can show it: several servers on one PostgreSQL, and shards of a Valkey Cluster.

All run in the same rounds as the service that is replaced. Shards, servers, databases and the load generator share the
cores of one machine, so more of them bring little here: what is shown is that they cost little, and what one carries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.chatstate import ChatStateOnPostgres, ChatStateOnSQLite, ChatStateServer
from bench.growth import SMALL, new_sessions, store_url, table_mb, write
from bench.load import Mix, Spec
from bench.measure import Bench, Started, changed
from bench.results import RowName
from bench.systems import Running, System
from tests.servers.valkey import ValkeyCluster

PART = CASE = "scale"
MIXES: tuple[Mix, ...] = ("save", "load")
SHARDS = (1, 2, 3)

LEAST_SAVES, LEAST_LOADS = 4.0, 6.0
"""The floors: how many times as many saves and loads as the replaced service has, one shard with a replica has."""

MANY = {SMALL: 100_000, 4096: 20_000}
"""Sessions of which it is measured what each costs in bytes, by the bytes of their states."""


class ChatStateOnValkey(ChatStateServer):
    """`chatstate serve` on a Valkey Cluster of its own, each shard with one replica, every write confirmed by it."""

    def __init__(self, shards: int, workers: int = 1) -> None:
        several = f", {workers} workers" if workers > 1 else ""
        name = f"chatstate, Valkey, {shards} shard{'s' * (shards > 1)}{several}"
        super().__init__(name, "--workers", str(workers), *(() if shards >= 3 else ("--allow-unsafe-durability",)))
        self._shards = shards

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        with ValkeyCluster(self._shards, 1, parent=folder) as cluster:
            url = f"valkey://:{cluster.password}@{cluster.nodes[0].host}:{cluster.nodes[0].port}"
            (folder / "url").write_text(url)
            with self._serving(folder, url) as server:
                yield server


def scale(bench: Bench, peers: Sequence[System], spec: Spec, rounds: int) -> None:
    """All rows of the part."""
    two = ChatStateOnPostgres("chatstate, PostgreSQL, 2 workers", "--workers", "2")
    ours: list[System] = [ChatStateOnPostgres(), two, *map(ChatStateOnValkey, SHARDS), ChatStateOnValkey(3, workers=2)]
    with bench.casting([*ours, *peers], CASE, spec) as cast:
        bench.interleave(PART, CASE, cast, lambda _, mix: changed(spec, mix=mix), rounds, MIXES)
    _compare(bench, ours, peers)
    _bytes(bench, [ChatStateOnSQLite(), ChatStateOnPostgres(), ChatStateOnValkey(1)], changed(spec, state_bytes=SMALL))


def _compare(bench: Bench, ours: Sequence[System], peers: Sequence[System]) -> None:
    one_server, one_shard = ours[0], ours[2]
    for mix, least in zip(MIXES, (LEAST_SAVES, LEAST_LOADS), strict=True):
        for peer in peers:
            names: tuple[RowName, RowName] = ((CASE, one_shard.name, mix), (CASE, peer.name, mix))
            bench.compare(f"one shard : {peer.name}", *names, ("rate", "p50"), {"rate": 1 / least})
        for system in ours[1:]:
            base = one_server if "PostgreSQL" in system.name else one_shard
            if system is not base:
                what = f"{system.name} : {base.name}"
                bench.compare(what, (CASE, system.name, mix), (CASE, base.name, mix), ("rate", "cpu_us", "p50"))


def _bytes(bench: Bench, systems: Sequence[System], spec: Spec) -> None:
    """What a session costs on each store with its indexes, and a save of it in PostgreSQL's log."""
    with bench.casting(systems, "bytes", changed(spec, sessions=1)) as cast:
        for started in cast:
            for state_bytes, sessions in MANY.items():
                bench.tell(f"{sessions:,} sessions: {started.name}")
                _fill(bench, started, range(state_bytes * 1000, state_bytes * 1000 + sessions), state_bytes)


def _fill(bench: Bench, started: Started, numbers: range, state_bytes: int) -> None:
    what = f"with {state_bytes} bytes of state, {started.name}"
    before = _used(started)
    write(started, new_sessions(numbers, state_bytes), 512)
    bench.results.fact(PART, f"a session {what}", "bytes", (_used(started) - before) * 1e6 / len(numbers))
    if started.database:
        position = "SELECT pg_current_wal_lsn() - '0/0'"
        before = float(started.database.value(position))
        write(started, new_sessions(numbers, state_bytes), 512)
        logged = float(started.database.value(position)) - before
        bench.results.fact(PART, f"log of a save {what}", "bytes", logged / len(numbers))


def _used(started: Started) -> float:
    """Disk, or memory of one primary, in MB."""
    if "Valkey" not in started.name:
        return table_mb(started)
    return asyncio.run(_memory(store_url(started)))


async def _memory(url: str) -> float:
    from chatstate.stores.valkey_cluster import Cluster  # noqa: PLC0415 (the driver is an extra)
    from chatstate.stores.valkey_node import parse_url  # noqa: PLC0415 (the driver is an extra)

    cluster = Cluster(parse_url(url))
    await cluster.open()
    try:
        told = [await cluster.ask((shard.host, shard.port), "INFO", "memory") for shard in cluster.shards]
    finally:
        await cluster.close()
    return sum(int(text.partition(b"used_memory_dataset:")[2].partition(b"\r\n")[0]) for text in told) / 1e6
