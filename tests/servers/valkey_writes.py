"""Clients that write to a shard of a Valkey Cluster and have each write confirmed, and what the answers have promised.

    ledger = Ledger(replicas=1)
    async with Writers(cluster, ledger):
        await ledger.grows(30)
        ...
    await ledger.verify(cluster.primary())

A write is *acknowledged* when its own reply was no error, and afterwards `WAITAOF` on the same connection said that the
primary and every replica of the shard have it on disk, and the primary has been the same all the time. Whatever else
was sent is *unknown*, but for what was *refused*: answered with an error, or never sent.

Clients append numbers to lists of their own. What is acknowledged must be in the lists of whoever is the primary, once
and in order; what is refused must not; what is unknown may.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, Self

import redis
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .valkey import ValkeyCluster, ValkeyNode

CLIENTS = 4
KEYS = 8
"""Of each client."""
ANSWER_SECONDS = 1.5
CONFIRM_MS = 300
"""How long a client waits for the confirmation of a write."""

Outcome = Literal["acknowledged", "refused", "unknown"]
Command = tuple[str | bytes | int, ...]

APPEND = "redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('LLEN', KEYS[1])"


# --- A client ---------------------------------------------------------------------------------------------------------


class Client:
    """One connection to one node; what raises is redis.RedisError, and then the connection is closed."""

    def __init__(self, node: ValkeyNode) -> None:
        self.connection = Connection(
            host=node.host,
            port=node.port,
            password=node.password,
            decode_responses=True,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, node: ValkeyNode) -> AsyncIterator[Self]:
        client = cls(node)
        await client.connection.connect()  # type: ignore[no-untyped-call]
        try:
            yield client
        finally:
            await client.connection.disconnect(nowait=True)

    async def pipeline(self, *commands: Command) -> list[Any]:
        """The reply to each command, in order; an error that is a reply is one of them."""
        if not self.connection.is_connected:  # redis-py would connect anew, and confirm what another one has written
            raise redis.ConnectionError("closed")
        await self.send(*commands)
        return await self.replies(len(commands))

    async def send(self, *commands: Command) -> None:
        await self.connection.send_packed_command(self.connection.pack_commands(commands))

    async def replies(self, number: int) -> list[Any]:
        return [await self._reply() for _ in range(number)]

    async def _reply(self) -> Any:
        try:
            return await self.connection.read_response()
        except redis.ResponseError as error:
            return error

    async def history(self) -> str:
        """The id of the history that the node writes as a primary; it gets a new one whenever it becomes one."""
        (told,) = await self.pipeline(("INFO", "replication"))
        return history_of(told)

    async def confirmed(self, replicas: int, milliseconds: int = CONFIRM_MS) -> bool:
        """Whether the node and so many replicas have on disk what this connection has written.

        Asked again and again: a replica that reads the question together with the write answers before it syncs, and
        by itself it would tell only a second later.
        """
        deadline = time.monotonic() + milliseconds / 1000
        patience = 2
        while True:
            (counts,) = await self.pipeline(("WAITAOF", 1, replicas, patience))
            if isinstance(counts, Exception):
                return False
            if counts[0] >= 1 and counts[1] >= replicas:
                return True
            if time.monotonic() > deadline:
                return False
            patience *= 2


def history_of(told: Any) -> str:
    """`master_replid` of an answer to INFO replication; empty unless it is a primary's."""
    if isinstance(told, Exception):
        return ""
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    return lines["master_replid"] if lines["role"] == "master" else ""


async def write(client: Client, replicas: int, writes: Sequence[tuple[str, int]]) -> list[Outcome]:
    """Append each number to its list, and have all confirmed; what has become of each. Raises redis.RedisError, and
    then all are unknown."""
    first, *replies = await client.pipeline(
        ("INFO", "replication"), *[("EVAL", APPEND, 1, key, number) for key, number in writes]
    )
    if all(isinstance(reply, Exception) for reply in replies):
        return ["refused"] * len(writes)
    sure = await client.confirmed(replicas) and history_of(first) == await client.history() != ""
    return ["refused" if isinstance(reply, Exception) else "acknowledged" if sure else "unknown" for reply in replies]


# --- What was written and answered ------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What clients have written in a test, over all its faults, and what became of it."""

    replicas: int
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1 << 32))
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=lambda: defaultdict(dict))
    seconds: list[float] = field(default_factory=list)
    """How long each confirmed batch has taken."""

    def __post_init__(self) -> None:
        self.report("clients begin")

    def count(self, outcome: Outcome) -> int:
        return sum(list(found.values()).count(outcome) for found in self.outcomes.values())

    def report(self, what: str) -> None:
        """Print the seed and the numbers."""
        counted = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("acknowledged", "refused", "unknown"))
        times = sorted(self.seconds) or [0.0]
        p50, p99 = (1000 * times[len(times) * percent // 100] for percent in (50, 99))
        print(f"{what}: seed {self.seed}, {counted}; confirmed in {p50:.1f} ms, 99 % in {p99:.1f} ms")  # noqa: T201

    async def grows(self, by: int = 30) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = self.count("acknowledged") + by
        async with asyncio.timeout(30):
            while self.count("acknowledged") < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def verify(self, node: ValkeyNode) -> None:
        """Compare with what is in a node, of which what was acknowledged by now must be there, once and in order."""
        before = {key: dict(found) for key, found in self.outcomes.items()}
        for key, found in before.items():
            present = [int(number) for number in await asyncio.to_thread(node.call, "LRANGE", key, 0, -1)]
            self._compare(f"seed {self.seed}, {key} in node {node.number}", found, present)

    @staticmethod
    def _compare(where: str, found: dict[int, Outcome], present: list[int]) -> None:
        acknowledged = [number for number, outcome in found.items() if outcome == "acknowledged"]
        lost = set(acknowledged) - set(present)
        assert not lost, f"{where}: {sorted(lost)} of {len(acknowledged)} acknowledged writes are lost"
        assert len(present) == len(set(present)), f"{where}: written twice"
        kept = [number for number in present if found.get(number) == "acknowledged"]
        assert kept == sorted(kept), f"{where}: not in the order of the acknowledgements"
        refused = {number for number, outcome in found.items() if outcome == "refused"}
        assert not refused & set(present), f"{where}: {refused & set(present)} were refused, and are there"


class Writers:
    """Clients at work inside `async with`, each with lists of its own; they follow the primary."""

    def __init__(self, cluster: ValkeyCluster, ledger: Ledger) -> None:
        self._cluster, self._ledger = cluster, ledger
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _work(self, client: int) -> None:
        rng = random.Random(f"{self._ledger.seed} {client} {len(self._ledger.outcomes)}")
        keys = self._cluster.keys_of(0, KEYS * CLIENTS)[client::CLIENTS]
        numbers = count(max((number for key in keys for number in self._ledger.outcomes[key]), default=0) + 1)
        nodes = self._cluster.shard(0)
        while not self._ending:
            with suppress(redis.RedisError, OSError):
                async with Client.open(rng.choice(nodes)) as connection:
                    while not self._ending and await self._write(connection, rng, keys, numbers):
                        pass
            await asyncio.sleep(0.005)

    async def _write(self, connection: Client, rng: random.Random, keys: Sequence[str], numbers: Iterator[int]) -> bool:
        """Write a few numbers; whether it makes sense to go on with this node."""
        writes = [(key, next(numbers)) for key in rng.sample(keys, rng.randint(1, 4))]
        for key, number in writes:
            self._ledger.outcomes[key][number] = "unknown"
        began = time.monotonic()
        outcomes = await write(connection, self._ledger.replicas, writes)
        for (key, number), outcome in zip(writes, outcomes, strict=True):
            self._ledger.outcomes[key][number] = outcome
        if "acknowledged" in outcomes:
            self._ledger.seconds.append(time.monotonic() - began)
        return "refused" not in outcomes
