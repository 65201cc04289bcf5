"""A Valkey Cluster: which node has which slot, pipelines by node, and the translation of errors.

A write counts only when the primary of its shard and all of that shard's replicas confirm it, also those replicas that
the cluster takes for failed (how: `chatstate.stores.valkey_node`). What is not confirmed is of unknown outcome. What a
node has refused (`MOVED`, `CLUSTERDOWN`, `LOADING`, …) has not happened, and is tried again for a while where the slot
is by then. `docs/explanation/durability.md` has the tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from msgspec import Struct
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError

from chatstate.errors import OutcomeUnknown, StoreBusy, StoreError, StoreFull, StoreUnavailable
from chatstate.stores.lua import Script
from chatstate.stores.valkey_keys import SLOTS
from chatstate.stores.valkey_node import Node, NotSent, Subscription, ValkeyUrl

RETRY_SECONDS = 3.0
"""For how long what a node has refused is tried again: while a slot moves, and while a replica is being promoted."""

_PAUSE_SECONDS = 0.05

_REFUSALS = ("CLUSTERDOWN", "TRYAGAIN", "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY")
"""How errors begin that say that nothing has happened, and that it may work soon."""

_log = logging.getLogger(__name__)


class Call(NamedTuple):
    """A command for whoever has this slot, or a script with its keys and arguments behind their number."""

    slot: int
    words: Sequence[str | bytes | int]
    script: Script | None = None


def run_script(script: Script, slot: int, keys: Sequence[str], *given: str | bytes | int) -> Call:
    """A call of a script that writes.

    Behind its keys stands one that is never there. While a slot moves, a node refuses what does not have all its keys
    there (`TRYAGAIN`, `ASK`), so it does not begin. It would begin where all are, and stop halfway: a set that the
    script empties is missing from then on, and what it puts into it again is refused.
    """
    never = f"{keys[0].partition('}')[0]}}}:never"
    return Call(slot, ("EVALSHA", script.sha, len(keys) + 1, *keys, never, *given), script)


class Shard(Struct, frozen=True):
    """A primary, the slots that it has, and how many replicas it has, by what the cluster knows; of those, `away` have
    failed. `nodes`: hosts and ports of all that have not."""

    host: str
    port: int
    ranges: tuple[tuple[int, int], ...]
    replicas: int
    away: int
    nodes: tuple[tuple[str, int], ...] = ()


class CommandRefused(StoreUnavailable):
    """A node does not carry out a command, perhaps because this user may not."""


class SlotsMoving(StoreUnavailable):
    """A script that looks into many slots has found one that is, or is about to be, on another node."""


class _Again(Exception):
    """Nothing has happened; it may work soon, perhaps there. `why` for people."""

    def __init__(self, why: str, ask: tuple[str, int] | None = None) -> None:
        super().__init__(why)
        self.ask = ask


class Cluster:
    """Connections to the primaries of a cluster.

    allow_unsafe  do not wait for replicas that have failed
    """

    def __init__(
        self,
        url: ValkeyUrl,
        allow_unsafe: bool = False,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self._allow_unsafe = allow_unsafe
        self.shards: list[Shard] = []
        self._empty: list[Shard] = []
        self._pause = pause
        self._nodes: dict[tuple[str, int], Node] = {}
        self._by_slot: list[Shard | None] = []
        self._is_open = False
        self._looking = asyncio.Lock()

    async def open(self) -> None:
        """Find the nodes. Raises `StoreUnavailable`."""
        self._is_open = True
        await self.look()

    async def close(self) -> None:
        self._is_open = False
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.close()

    # --- Which node has what ------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask the cluster which node has which slots."""
        seen = self._by_slot
        async with self._looking:
            if self._by_slot is seen:  # whoever has waited finds that it has been done
                self._know(await self._asked())

    async def _asked(self) -> list[Shard]:
        known = [(shard.host, shard.port) for shard in self.shards]
        reasons = []
        for place in dict.fromkeys([*known, *self.url.seeds]):
            try:
                (reply,) = await self._node(place).run([("CLUSTER", "SHARDS")])
                if isinstance(reply, Exception):
                    raise reply
                return _shards(reply, place[0], self.url.tls is not None)
            except (RedisError, OSError, StoreError, NotSent) as error:
                reasons.append(str(error) or type(error).__name__)
        raise StoreUnavailable(f"No node of the Valkey Cluster at {self.url.place} answers: {'; '.join(reasons)}")

    def _know(self, shards: list[Shard]) -> None:
        by_slot: list[Shard | None] = [None] * SLOTS
        for shard in shards:
            for first, last in shard.ranges:
                by_slot[first : last + 1] = [shard] * (last + 1 - first)
        self._by_slot = by_slot
        self._empty = [shard for shard in shards if not shard.ranges]
        with_slots = [shard for shard in shards if shard.ranges]
        if with_slots != self.shards:  # else what was made of them holds
            self.shards = with_slots

    def _node(self, place: tuple[str, int]) -> Node:
        if not self._is_open:
            raise StoreUnavailable("The store is not open.")
        if place not in self._nodes:
            self._nodes[place] = Node(self.url, place)
        return self._nodes[place]

    def owner_of(self, slot: int) -> object:
        """What is equal for slots of one node."""
        return self._by_slot[slot] if self._by_slot else None

    async def ask(self, place: tuple[str, int], *words: str | bytes) -> Any:
        """The answer of this node to a command. Raises `StoreUnavailable`; `CommandRefused` if it answers with an
        error."""
        try:
            (reply,) = await self._node(place).run([words])
        except (RedisError, OSError, NotSent) as error:
            raise StoreUnavailable(f"Valkey at {place[0]}:{place[1]} does not answer: {error}") from error
        if isinstance(reply, Exception):
            raise CommandRefused(_said(reply)) from reply
        return reply

    @asynccontextmanager
    async def subscribed(self, slot: int, channel: str) -> AsyncIterator[Subscription]:
        """What is said on a sharded channel of this slot. Raises `StoreUnavailable`."""
        await self.look()
        shard = self._by_slot[slot]
        if shard is None:
            raise StoreUnavailable("No node has the slot of the channel.")
        connection = await self._node((shard.host, shard.port)).connect()
        try:
            line = Subscription(connection, lambda: self._is_at(slot, shard))
            await line.say("SSUBSCRIBE", channel)
            await line.hear()
            yield line
        finally:
            with suppress(RedisError, OSError):
                await asyncio.shield(connection.disconnect(nowait=True))

    def _is_at(self, slot: int, shard: Shard) -> bool:
        now = self._by_slot[slot]
        return now is not None and (now.host, now.port) == (shard.host, shard.port)

    # --- Calls --------------------------------------------------------------------------------------------------------

    async def read(self, calls: Sequence[Call]) -> list[Any]:
        """The replies, in order. Raises `StoreUnavailable` unless there are all of them."""
        replies = await self.read_some(calls)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    async def read_some(self, calls: Sequence[Call]) -> list[Any]:
        """The replies, in order; in the place of one that there is not, an error."""
        return await self._run(calls, is_write=False)

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        """The replies, in order, once what was written is confirmed; in the place of one that is not, an error."""
        return await self._run(calls, is_write=True)

    async def _run(self, calls: Sequence[Call], is_write: bool) -> list[Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + RETRY_SECONDS
        replies: list[Any] = [None] * len(calls)
        left: dict[int, _Again | None] = dict.fromkeys(range(len(calls)))
        while True:
            left = await self._try(calls, left, replies, is_write)
            if not left:
                return replies
            if loop.time() > until:
                for place, why in left.items():
                    replies[place] = StoreUnavailable(f"The Valkey Cluster cannot serve this for now: {why}.")
                return replies
            if not all(why and why.ask for why in left.values()):
                await self._pause(_PAUSE_SECONDS)
                with suppress(StoreUnavailable):
                    await self.look()

    async def _try(
        self, calls: Sequence[Call], left: dict[int, _Again | None], replies: list[Any], is_write: bool
    ) -> dict[int, _Again | None]:
        """Run those that are left, each node's together; those that must be tried again, and why."""
        groups: dict[tuple[tuple[str, int], Shard, bool], list[int]] = defaultdict(list)
        again: dict[int, _Again | None] = {}
        for place, why in left.items():
            ask = why and why.ask
            shard = self._shard_at(ask) if ask else self._by_slot[calls[place].slot] if self._by_slot else None
            if shard is None:
                again[place] = _Again("no node has the slot")
            elif is_write and shard.away and not self._allow_unsafe:
                again[place] = _Again(f"a replica of {shard.host}:{shard.port} is away, so nothing can be confirmed")
            else:
                groups[(shard.host, shard.port), shard, bool(ask)].append(place)
        parts = [
            self._part(node, [calls[place] for place in places], self._needed(shard) if is_write else None, asking)
            for (node, shard, asking), places in groups.items()
        ]
        found = [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)
        for places, part in zip(groups.values(), found, strict=True):
            for place, reply in zip(places, part, strict=True):
                if isinstance(reply, _Again):
                    again[place] = reply
                else:
                    replies[place] = reply
        return again

    def _shard_at(self, place: tuple[str, int]) -> Shard | None:
        """The shard of this primary; the first slot of a new one may be about to move there."""
        known = (*self.shards, *self._empty)
        return next((shard for shard in known if (shard.host, shard.port) == place), None)

    def _needed(self, shard: Shard) -> int:
        """How many replicas must confirm a write."""
        return shard.replicas - shard.away if self._allow_unsafe else shard.replicas

    async def _part(
        self, place: tuple[str, int], calls: Sequence[Call], replicas: int | None, asking: bool
    ) -> list[Any]:
        """What one node answers to these; `replicas` confirm what they write, None: they only read."""
        commands: list[Sequence[str | bytes | int]] = []
        for call in calls:
            if asking:
                commands.append(("ASKING",))
            commands.append(call.words)
        node = self._node(place)
        scripts = [call.script for call in calls if call.script]
        confirmed = True
        try:
            if replicas is None:
                found = await node.run(commands, scripts)
            else:
                found, confirmed = await node.run_confirmed(commands, scripts, replicas)
        except NotSent as error:
            return [_Again(str(error))] * len(calls)
        except StoreBusy as error:  # what goes to other nodes may have happened
            return [error] * len(calls)
        except (RedisError, OSError) as error:
            if replicas is None:
                return [_Again(str(error) or type(error).__name__)] * len(calls)
            return [OutcomeUnknown()] * len(calls)
        if not confirmed:
            with suppress(StoreUnavailable):
                await self.look()
        replies = found[1::2] if asking else found
        return [_understood(reply, replicas is not None, confirmed) for reply in replies]


def _understood(reply: Any, is_write: bool, confirmed: bool) -> Any:
    """The reply; or `_Again`, or a `StoreError`, in its place."""
    if not isinstance(reply, Exception):
        return reply if confirmed else OutcomeUnknown()
    if isinstance(reply, AskError):
        return _Again("its slot is moving", (reply.host, reply.port))
    text = _said(reply)
    if isinstance(reply, MovedError | NoScriptError) or text.startswith(_REFUSALS):
        return _Again(type(reply).__name__ if isinstance(reply, MovedError) else text)
    if not is_write and ("CROSSSLOT" in text or "non local key" in text):
        return SlotsMoving("Slots of the Valkey Cluster are moving.")
    if text.startswith("OOM"):
        return StoreFull()
    _log.error("Valkey cannot carry out a command: %s", text)
    # A script that fails is not undone.
    return OutcomeUnknown() if is_write else StoreUnavailable("Valkey cannot carry out a command; the log says why.")


def _said(error: Exception) -> str:
    """What the node has said; the driver takes the first word away from some errors."""
    code, text = getattr(error, "status_code", None), str(error)
    return f"{code} {text}" if code and not text.startswith(code) else text


def _shards(reply: Any, asked: str, tls: bool) -> list[Shard]:
    """What `CLUSTER SHARDS` says (Valkey command reference) to whoever has asked at this address."""
    shards = []
    for shard in map(_pairs, reply):
        slots = shard[b"slots"]
        nodes = [_pairs(node) for node in shard[b"nodes"]]
        primaries = [node for node in nodes if node[b"role"] == b"master" and node[b"health"] == b"online"]
        if not primaries:
            continue
        host, port = _place_of(primaries[0], asked, tls)
        # A primary that has failed stays one in the list until it is back, though another is elected; it is waited for.
        others = [node[b"health"] for node in nodes if node is not primaries[0]]
        ranges = tuple(zip(slots[::2], slots[1::2], strict=True))
        alive = tuple(_place_of(node, asked, tls) for node in nodes if node[b"health"] != b"fail")
        shards.append(Shard(host, port, ranges, len(others), others.count(b"fail"), alive))
    if not any(shard.ranges for shard in shards):
        raise StoreUnavailable("No node of the Valkey Cluster has any slots yet.")
    return shards


def _place_of(node: Mapping[bytes, Any], asked: str, tls: bool) -> tuple[str, int]:
    """Its host and port. One that does not know its address is where it was asked. Of one port alone it may tell also
    where TLS is made by somebody in front of it."""
    name = node.get(b"endpoint") or node[b"ip"]
    host = name.decode() if name not in (b"", b"?", None) else asked
    ports = [node[kind] for kind in (b"tls-port", b"port") if node.get(kind)]
    return host, ports[0 if tls else -1]


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
