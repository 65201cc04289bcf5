"""Which of several hosts is the primary, now and after the next failover.

Somebody else promotes (Patroni, pg_auto_failover, a cloud, a person); here it is noticed. Each host is asked every
LOOK_SECONDS over a connection of its own, so a primary that hangs delays nothing: who is asked answers or does not. Of
two that both say that they are the primary, the one on the newer timeline is: each promotion begins a timeline with a
higher number (PostgreSQL, "Timelines"), so the other one was left behind and is to be shut down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

import asyncpg
from msgspec import Struct

from chatstate.stores.postgres_connection import NoPrimary, PostgresUrl

LOOK_SECONDS = 2.0
"""How often the hosts are looked at. For so long after a promotion, a primary that was left behind may be read from."""

HOST_SECONDS = 2.0
"""How long one host has to accept a connection, or to say what it is; both together, less than ACQUIRE_SECONDS."""

_CANNOT_CONNECT = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError)

_ROLE = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"

_REFUSED_BY_STANDBYS = "BEGIN READ WRITE; COMMIT"

_TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
"""The last checkpoint has it too, but the old one for a while after a promotion."""

_LEFT_BEHIND = "is a primary that was left behind by a promotion (if not, restart this server)"

_log = logging.getLogger(__name__)


class _Sighting(Struct, frozen=True):
    """What a host has said, or why it has not."""

    is_primary: bool = False
    timeline: int = 0
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is None:
            return _LEFT_BEHIND if self.is_primary else "takes no writes (is it a standby?)"
        return str(self.error) or "does not answer"


class _Host:
    """One of the hosts, and the connection over which it is asked."""

    def __init__(self, url: PostgresUrl, address: str, port: int) -> None:
        self.address, self.port = address, port
        self._url = url
        self._connection: Any = None
        self._has_timelines = True

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    async def connect(self, **options: Any) -> Any:
        """A new connection to this host. Raises what the driver raises, in HOST_SECONDS at the latest."""
        return await asyncpg.connect(
            self._url.dsn, host=self.address, port=self.port, **{**options, "timeout": HOST_SECONDS}
        )

    async def look(self) -> _Sighting:
        """What it is now."""
        try:
            async with asyncio.timeout(HOST_SECONDS):
                return await self._ask()
        except Exception as error:
            self.forget()
            return _Sighting(error=error)

    async def _ask(self) -> _Sighting:
        if self._connection is None or self._connection.is_closed():
            settings = {"application_name": "chatstate"}
            self._connection = await self.connect(server_settings=settings, statement_cache_size=0)
        async with self._connection.transaction():
            in_recovery, read_only = await self._connection.fetchrow(_ROLE)
        is_primary = not (read_only if self._url.target == "read-write" else in_recovery)
        return _Sighting(is_primary, await self._timeline() if is_primary else 0)

    async def _timeline(self) -> int:
        """Databases that only speak PostgreSQL's protocol have none; 0 then."""
        if not self._has_timelines:
            return 0
        try:
            async with self._connection.transaction():
                return int(await self._connection.fetchval(_TIMELINE), 16)
        except asyncpg.ObjectNotInPrerequisiteStateError:  # it has been made a standby since
            return 0
        except (asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError, ValueError, TypeError):
            self._has_timelines = False
            return 0

    def forget(self) -> None:
        """Drop the connection over which it is asked."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Primary:
    """Connects to the primary. When that is another host, the connections to the one before are dropped: what was under
    way on them is answered as unknown, and nobody reads what is old.

    With a URL of one host, or one that asks for another kind (`target_session_attrs`), it is as the driver does it.
    """

    def __init__(self, url: PostgresUrl) -> None:
        self._hosts = [_Host(url, *host) for host in url.hosts] if url.wants_primary else []
        self._host: _Host | None = None
        self._last: _Host | None = None  # also while there is none
        self._timeline = 0  # the newest that was seen: an older one is never gone back to
        self._sightings: Sequence[_Sighting] = ()
        self._made: WeakKeyDictionary[Any, _Host] = WeakKeyDictionary()
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def connect(self, dsn: str, **options: Any) -> Any:
        """As the driver's `connect`. Raises also `NoPrimary`."""
        if not self._hosts:
            return await asyncpg.connect(dsn, **options)
        failed: Exception | None = None
        for _ in range(2):
            if host := self._host:
                try:
                    if connection := await self._connect_to(host, options):
                        return connection
                except asyncpg.ProtocolViolationError:  # a pooler says so of settings that it does not know
                    raise
                except (*_CANNOT_CONNECT, asyncpg.FeatureNotSupportedError) as error:
                    failed = error
            await self._look()
        raise self._explained(failed)

    async def _connect_to(self, host: _Host, options: dict[str, Any]) -> Any:
        """None where it has turned out not to be the primary."""
        connection = await host.connect(**options)
        try:
            # The parameter `in_hot_standby` would say it too, but a pooler repeats what it has heard long ago.
            await connection.execute(_REFUSED_BY_STANDBYS, timeout=HOST_SECONDS)
        except BaseException:
            connection.terminate()
            raise
        if self._host is not host:
            connection.terminate()
            return None
        self._made[connection] = host
        return connection

    def watch(self) -> None:
        """Look at the hosts from now on, until `close`."""
        if self._hosts and self._watching is None:
            self._watching = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Ask nobody any more. The connections that were made stay."""
        if self._watching:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        if self._looking:
            await self._looking  # somebody may wait for it
        for host in self._hosts:
            host.forget()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        """Look at all hosts at once; whoever wants to know meanwhile waits for the same answer."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_all())
        await asyncio.shield(self._looking)

    async def _look_at_all(self) -> None:
        self._sightings = await asyncio.gather(*(host.look() for host in self._hosts))
        seen = dict(zip(self._hosts, self._sightings, strict=True))
        self._timeline = max(self._timeline, *(sighting.timeline for sighting in self._sightings))
        primaries = [
            host for host, sighting in seen.items() if sighting.is_primary and sighting.timeline == self._timeline
        ]
        if primaries and self._host not in primaries:
            self._move(primaries[0])
        elif not primaries and self._host and seen[self._host].error is None:
            self._move(None)

    def _move(self, host: _Host | None) -> None:
        if self._last and host not in (None, self._last):
            _log.warning("the primary is %s now, and no more %s", host, self._last)
        self._host, self._last = host, host or self._last
        for connection, made_to in list(self._made.items()):
            if made_to is not host:
                connection.terminate()

    def _explained(self, failed: Exception | None) -> Exception:
        """What is the matter with the hosts; that a password is wrong is something of its own."""
        seen = dict(zip(self._hosts, self._sightings, strict=True))
        if failed and self._host and seen[self._host].error is None:
            return failed
        for sighting in self._sightings:
            error = sighting.error
            if isinstance(error, asyncpg.PostgresError) and not isinstance(error, _CANNOT_CONNECT):
                return cast("Exception", error)
        return NoPrimary("; ".join(f"{host} {sighting}" for host, sighting in seen.items()))
