"""One node of a Valkey Cluster: the URL that says how to reach it, connections to it, and what it confirms.

A write counts only when the node and all replicas of its shard have it on their disks: behind the scripts of a batch
goes `WAITAOF`, down the same connection, because it waits for what that connection has written; and behind that the
question whether the node has been the primary all the time: one that was demoted and promoted again confirms on an old
connection what it has lost.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, unquote

from msgspec import Struct
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from chatstate.errors import InvalidSetting, StoreBusy, StoreUnavailable
from chatstate.stores.lua import Script

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
"""How long to wait for a connection, and for one answer of a node."""

CONFIRM_MILLISECONDS = 2000
"""How long a write waits until all replicas have it, and then until they have it on their disks; after that its outcome
is unknown."""

_MOST_CONNECTIONS = 16
"""To one node."""

EPOCH = b"\0epoch"
"""Stands among the words of a call for what names the time since the node became the primary: eight digits, which are
others after every failover."""


class Tls(Struct, frozen=True):
    """Paths of PEM files, named as in a URL for PostgreSQL.

    sslrootcert      who must have signed a node's certificate; None: somebody whom the system trusts
    sslcert, sslkey  what nodes are shown that ask for a certificate, as all do by default (`tls-auth-clients`)
    """

    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None

    def context(self) -> ssl.SSLContext:
        """Made anew for each connection, so that files may be replaced. Raises OSError."""
        # The driver's own would trust the system beside whom is named, and read all of its certificates for that.
        context = ssl.create_default_context(cafile=self.sslrootcert)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.sslcert:
            context.load_cert_chain(self.sslcert, self.sslkey, password="")  # else OpenSSL asks at the terminal
        return context


class ValkeyUrl(Struct, frozen=True):
    """What a store URL says. `seeds`: hosts and ports of which any one that answers will do."""

    seeds: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    prefix: str
    tls: Tls | None

    @property
    def place(self) -> str:
        """Hosts and ports, for people: never the password."""
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.seeds)


_SEED = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#,]+)(?::([0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def parse_url(url: str) -> ValkeyUrl:
    """`valkey://user:password@host:port,host:port?prefix=cs:`, or `valkeys://` with TLS and what is of it, as in
    `&sslrootcert=/etc/ssl/our.pem`. Raises `InvalidSetting`."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.partition("?")[0].rstrip("/").rpartition("@")
    found = [_SEED.fullmatch(seed) for seed in place.split(",")]
    if not all(found) or "/" in place or any(int(seed[2] or 0) > 65535 for seed in found if seed):
        raise InvalidSetting(
            "The store URL cannot be taken apart: valkey://user:password@host:port,host:port. Special characters in "
            "the user name or password must be written with %: / as %2F, # as %23, ? as %3F, @ as %40, : as %3A."
        )
    query = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    prefix = query.pop("prefix", "cs:")
    if not _PREFIX.fullmatch(prefix):
        raise InvalidSetting("In a store URL for Valkey ?prefix= takes letters, digits and . _ : - alone.")
    username, _, password = login.partition(":")
    return ValkeyUrl(
        seeds=tuple((seed[1].strip("[]"), int(seed[2] or 6379)) for seed in found if seed),
        username=unquote(username) or None,
        password=unquote(password) or None if at else None,
        prefix=prefix,
        tls=_tls(query, scheme.lower() == "valkeys"),
    )


def _tls(query: Mapping[str, str], is_on: bool) -> Tls | None:
    """What these parameters of a URL say. Raises `InvalidSetting`."""
    names = Tls.__struct_fields__
    for name, path in query.items():
        if name not in names:
            raise InvalidSetting(
                f"A store URL for Valkey takes ?prefix=, and with TLS {', '.join(names)}; not {name!r}."
            )
        if not is_on:
            raise InvalidSetting(f"{name} in the store URL is for TLS: valkeys:// in place of valkey://.")
        if not os.access(path, os.R_OK):
            raise InvalidSetting(f"{name} in the store URL: the file {path!r} cannot be read.")
    if not is_on:
        return None
    tls = Tls(**query)
    try:
        tls.context()
    except OSError as error:
        raise InvalidSetting(
            f"The certificates that the store URL names cannot be used: {error}. They are PEM files; sslkey is the key "
            "of sslcert, without a password."
        ) from None
    return tls


class NotSent(StoreUnavailable):
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


class Node:
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

        Raises `NotSent`, and errors of the driver when nobody knows what has happened.
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
                raise NotSent(f"{self._place[0]}:{self._place[1]} was no primary")
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
        """The replies to what goes before anything is written. Raises `NotSent`."""
        try:
            return await link.exchange(commands)
        except (RedisError, OSError) as error:
            raise NotSent(str(error)) from error

    async def _linked(self) -> _Link:
        link = _Link(await self.connect())
        (told,) = await self._before(link, [("INFO", "replication")])
        link.history = _history(told)
        return link

    async def connect(self) -> Connection:
        """A further connection. Raises `NotSent`."""
        host, port = self._place
        tls = self._url.tls
        connection = (SSLConnection if tls else Connection)(
            host=host,
            port=port,
            username=self._url.username,
            password=self._url.password,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=None,  # the driver has wait_for for it, which before Python 3.12 may lose a cancellation
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="chatstate",
        )
        try:
            if tls and isinstance(connection, SSLConnection):
                connection.ssl_context.context = await asyncio.to_thread(tls.context)  # the system's may take a while
            async with asyncio.timeout(ANSWER_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise NotSent(f"{host}:{port} cannot be reached: {error}") from error
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
