"""Reaching a Valkey Cluster: the URL, which node has which slot, pipelines by node, and the translation of errors.

A write counts only when the primary of its shard and all of that shard's replicas, also those that the cluster takes
for failed, have it on their disks: behind the scripts of a batch goes `WAITAOF`, down the same connection, because it
waits for what that connection has written; and behind that the question whether the node has been the primary all the
time: one that was demoted and promoted again confirms on an old connection what it has lost. What is not confirmed is
of unknown outcome. What a node has refused (`MOVED`, `CLUSTERDOWN`, `LOADING`, …) has not happened, and is tried again
for a while where the slot is by then. `docs/explanation/durability.md` has the tests.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from msgspec import Struct
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, BusyLoadingError, MovedError, NoScriptError, RedisError, ResponseError

from chatstate.errors import InvalidSetting, OutcomeUnknown, StoreBusy, StoreError, StoreFull, StoreUnavailable
from chatstate.stores.lua import Script
from chatstate.stores.valkey_keys import SLOTS

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
"""How long to wait for a connection, and for one answer of a node."""

CONFIRM_MILLISECONDS = 2000
"""How long a write waits until all replicas have it, and then until they have it on their disks; after that its outcome
is unknown."""

RETRY_SECONDS = 3.0
"""For how long what a node has refused is tried again: while a slot moves, and while a replica is being promoted."""

_PAUSE_SECONDS = 0.05
_MOST_CONNECTIONS = 16
"""To one node."""

_REFUSALS = ("CLUSTERDOWN", "TRYAGAIN", "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY")
"""How errors begin that say that nothing has happened, and that it may work soon."""

_log = logging.getLogger(__name__)


class ValkeyUrl(Struct, frozen=True):
    """What a store URL says. `seeds`: hosts and ports of which any one that answers will do."""

    seeds: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    prefix: str
    tls: bool

    @property
    def place(self) -> str:
        """Hosts and ports, for people: never the password."""
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.seeds)


_SEED = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#,]+)(?::([0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def parse_url(url: str) -> ValkeyUrl:
    """`valkey://user:password@host:port,host:port?prefix=cs:`, or `valkeys://` with TLS. Raises `InvalidSetting`."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.partition("?")[0].rstrip("/").rpartition("@")
    found = [_SEED.fullmatch(seed) for seed in place.split(",")]
    if not all(found) or "/" in place or any(int(seed[2] or 0) > 65535 for seed in found if seed):
        raise InvalidSetting(
            "The store URL cannot be taken apart: valkey://user:password@host:port,host:port. Special characters in "
            "the user name or password must be written with %: / as %2F, # as %23, ? as %3F, @ as %40, : as %3A."
        )
    query = dict(parse_qsl(url.partition("?")[2]))
    prefix = query.pop("prefix", "cs:")
    if query or not _PREFIX.fullmatch(prefix):
        raise InvalidSetting("A store URL for Valkey takes ?prefix=, of letters, digits and . _ : - alone.")
    username, _, password = login.partition(":")
    return ValkeyUrl(
        seeds=tuple((seed[1].strip("[]"), int(seed[2] or 6379)) for seed in found if seed),
        username=unquote(username) or None,
        password=unquote(password) or None if at else None,
        prefix=prefix,
        tls=scheme.lower() == "valkeys",
    )


EPOCH = b"\0epoch"
"""Stands among the words of a call for what names the time since the node became the primary: eight digits, which are
others after every failover."""


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
        self._nodes: dict[tuple[str, int], _Node] = {}
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
                return _shards(reply, place[0])
            except (RedisError, OSError, StoreError, _NotSent) as error:
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

    def _node(self, place: tuple[str, int]) -> _Node:
        if not self._is_open:
            raise StoreUnavailable("The store is not open.")
        if place not in self._nodes:
            self._nodes[place] = _Node(self.url, place)
        return self._nodes[place]

    def owner_of(self, slot: int) -> object:
        """What is equal for slots of one node."""
        return self._by_slot[slot] if self._by_slot else None

    async def ask(self, place: tuple[str, int], *words: str | bytes) -> Any:
        """The answer of this node to a command. Raises `StoreUnavailable`; `CommandRefused` if it answers with an
        error."""
        try:
            (reply,) = await self._node(place).run([words])
        except (RedisError, OSError, _NotSent) as error:
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
        replies = await self._run(calls, is_write=False)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

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
        except _NotSent as error:
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
    if not is_write and ("CROSSSLOT" in text or "non local key" in text):  # not all that a script looks at is here now
        return _Again("slots are moving")
    if text.startswith("OOM"):
        return StoreFull()
    _log.error("Valkey cannot carry out a command: %s", text)
    # A script that fails is not undone.
    return OutcomeUnknown() if is_write else StoreUnavailable("Valkey cannot carry out a command; the log says why.")


def _said(error: Exception) -> str:
    """What the node has said; the driver takes the first word away from some errors."""
    code, text = getattr(error, "status_code", None), str(error)
    return f"{code} {text}" if code and not text.startswith(code) else text


def _shards(reply: Any, asked: str) -> list[Shard]:
    """What `CLUSTER SHARDS` says (Valkey command reference)."""
    shards = []
    for shard in map(_pairs, reply):
        slots = shard[b"slots"]
        nodes = [_pairs(node) for node in shard[b"nodes"]]
        primaries = [node for node in nodes if node[b"role"] == b"master" and node[b"health"] == b"online"]
        if not primaries:
            continue
        host, port = _place_of(primaries[0], asked)
        # A primary that has failed stays one in the list until it is back, though another is elected; it is waited for.
        others = [node[b"health"] for node in nodes if node is not primaries[0]]
        ranges = tuple(zip(slots[::2], slots[1::2], strict=True))
        alive = tuple(_place_of(node, asked) for node in nodes if node[b"health"] != b"fail")
        shards.append(Shard(host, port, ranges, len(others), others.count(b"fail"), alive))
    if not any(shard.ranges for shard in shards):
        raise StoreUnavailable("No node of the Valkey Cluster has any slots yet.")
    return shards


def _place_of(node: Mapping[bytes, Any], asked: str) -> tuple[str, int]:
    """Its host and port. One that does not know its address is where it was asked."""
    name = node.get(b"endpoint") or node[b"ip"]
    host = name.decode() if name not in (b"", b"?", None) else asked
    return host, node.get(b"port") or node[b"tls-port"]


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Subscription:
    """A connection on which the messages of a channel arrive. All methods raise `StoreUnavailable` once it is lost.

    is_current  whether, by what is known of the cluster, it still leads to where the channel is
    """

    def __init__(self, connection: Connection, is_current: Callable[[], bool]) -> None:
        self._connection = connection
        self.is_current = is_current

    async def say(self, *words: str) -> None:
        """Ask the node for something, to which it gives some answer: `PING` at least, before `hear` gives up."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._connection.send_command(*words, check_health=False)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"The connection to Valkey is lost: {error}") from error

    async def hear(self) -> bytes | None:
        """The next message; None for whatever else the node says."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                said = await self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"The connection to Valkey is lost: {error}") from error
        if said[0] == b"sunsubscribe":
            raise StoreUnavailable("The slot of the channel has moved.")
        return bytes(said[2]) if said[0] == b"smessage" else None


# --- One node ---------------------------------------------------------------------------------------------------------


class _NotSent(StoreUnavailable):
    """There is no connection, so nothing has happened."""


class _Link:
    """A connection, and the history that the node wrote as a primary when it was made; empty: it was none."""

    __slots__ = ("connection", "history")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.history = b""

    async def exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to these; an error that the node answers with is one of them. What raises closes it."""
        done = False
        try:
            packed = self.connection.pack_commands(commands)
            # Not the driver's own: that is wait_for, which before Python 3.12 may lose a cancellation.
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.connection.send_packed_command(packed, check_health=False)
                replies = [await self._reply() for _ in commands]
            done = True
        finally:
            if not done:  # what is still to come on it would be taken for the answer to something else
                await self.close()
        return replies

    async def _reply(self) -> Any:
        try:
            return await self.connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except (ResponseError, BusyLoadingError) as error:
            return error

    async def close(self) -> None:
        with suppress(RedisError, OSError):
            await asyncio.shield(self.connection.disconnect(nowait=True))


class _Node:
    """Connections to one node, each used by one batch at a time."""

    def __init__(self, url: ValkeyUrl, place: tuple[str, int]) -> None:
        self._url = url
        self._place = place
        self._idle: list[_Link] = []
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._known: set[bytes] = set()

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for link in idle:
            await link.close()

    async def run(self, commands: Sequence[Sequence[Any]], scripts: Sequence[Script] = ()) -> list[Any]:
        """The replies to these, down one connection; an error that the node answers with is one of them.

        Raises `_NotSent`, and errors of the driver when nobody knows what has happened.
        """
        async with self._link(scripts) as link:
            return self._checked(await link.exchange(commands))

    async def run_confirmed(
        self, commands: Sequence[Sequence[Any]], scripts: Sequence[Script], replicas: int
    ) -> tuple[list[Any], bool]:
        """The replies, and whether what they tell of is on the disks of the node and of so many replicas."""
        async with self._link(scripts) as link:
            if not link.history:  # it has no epoch that a write could have
                await link.close()
                raise _NotSent(f"{self._place[0]}:{self._place[1]} was no primary")
            epoch = link.history[:8]
            words = [[epoch if word is EPOCH else word for word in command] for command in commands]
            # WAIT has the replicas asked how far they are, and WAITAOF asks once more. Alone it would come together
            # with the writes, the replicas would answer before they sync, and tell the rest a second later.
            asking = [
                ("WAIT", replicas, CONFIRM_MILLISECONDS),
                ("WAITAOF", 1, replicas, CONFIRM_MILLISECONDS),
                ("INFO", "replication"),
            ]
            *replies, _, counts, told = await link.exchange([*words, *asking])
            confirmed = _is_confirmed(counts, told, replicas, link.history)
            if not confirmed:
                await link.close()
            return self._checked(replies), confirmed

    def _checked(self, replies: list[Any]) -> list[Any]:
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._known.clear()
        return replies

    @asynccontextmanager
    async def _link(self, scripts: Sequence[Script]) -> AsyncIterator[_Link]:
        """A connection to a node that knows these scripts."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            raise StoreBusy from None
        try:
            link = self._idle.pop() if self._idle else await self._linked()
            unknown = {script.sha: script for script in scripts if script.sha not in self._known}
            if unknown:
                await self._before(link, [("SCRIPT", "LOAD", script.text) for script in unknown.values()])
                self._known |= unknown.keys()
            yield link
            if link.connection.is_connected:  # else the driver would connect anew, and not say so
                self._idle.append(link)
        finally:
            self._room.release()

    async def _before(self, link: _Link, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to what goes before anything is written. Raises `_NotSent`."""
        try:
            return await link.exchange(commands)
        except (RedisError, OSError) as error:
            raise _NotSent(str(error)) from error

    async def _linked(self) -> _Link:
        link = _Link(await self.connect())
        (told,) = await self._before(link, [("INFO", "replication")])
        link.history = _history(told)
        return link

    async def connect(self) -> Connection:
        """A further connection. Raises `_NotSent`."""
        host, port = self._place
        options: dict[str, Any] = {"ssl_min_version": ssl.TLSVersion.TLSv1_2} if self._url.tls else {}
        connection = (SSLConnection if self._url.tls else Connection)(
            host=host,
            port=port,
            username=self._url.username,
            password=self._url.password,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=None,  # the driver has wait_for for it, which before Python 3.12 may lose a cancellation
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="chatstate",
            **options,
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise _NotSent(f"{host}:{port} cannot be reached: {error}") from error
        return connection


def _history(told: Any) -> bytes:
    """`master_replid` of an answer to `INFO replication`; empty unless it is a primary's."""
    if isinstance(told, Exception) or b"role:master" not in told:
        return b""
    return bytes(_between(told, b"master_replid:"))


def _between(told: bytes, name: bytes) -> bytes:
    return told.partition(name)[2].partition(b"\r\n")[0]


def _is_confirmed(counts: Any, told: Any, replicas: int, history: bytes) -> bool:
    """Whether so many have it on disk, and the node has been the primary all the time, of no more than these."""
    if isinstance(counts, Exception) or isinstance(told, Exception):
        return False
    no_others = int(_between(told, b"connected_slaves:") or 0) <= replicas
    return bool(history) and counts[0] >= 1 and counts[1] >= replicas and _history(told) == history and no_others
