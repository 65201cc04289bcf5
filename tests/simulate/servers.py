"""The servers that the simulation talks to: real ones, on loopback, in pairs over one database.

They run in the event loop of whoever asks them, so that no thread stands between a request and its answer. That makes
real HTTP cheap enough: of the time of an example it takes a quarter.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import apsw
import asyncpg
import uvicorn
from uvicorn.server import ServerState

from chatstate import create_app, create_store
from chatstate.http.protocol import HttpProtocol
from chatstate.model import Retention
from chatstate.sweeper import Sweeper
from tests.servers.load import Answer, Connection
from tests.servers.ports import LOOPBACK
from tests.simulate.model import Settings

START = datetime(2000, 1, 1, tzinfo=UTC)
"""When every example begins: so far back that it never reaches the clock of the database, which foreign writes show."""


KEEP_ALIVE_SECONDS = 3600
"""Some of the servers have long to wait, also for their first request."""


class Clock:
    """The clock of all servers."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class RunningServer:
    """One server with a store of its own, and one keep-alive connection to it."""

    def __init__(self, url: str, owner: bool, settings: Settings, clock: Clock) -> None:
        self._url, self._owner, self.settings, self._clock = url, owner, settings, clock
        self._running = AsyncExitStack()

    async def start(self) -> None:
        pool_size = None if self._url.startswith("sqlite") else 2
        self.store = create_store(self._url, owner=self._owner, pool_size=pool_size)
        app = create_app(
            self.store,
            clock=self._clock,
            history=self.settings.history,
            idle_expiry_seconds=self.settings.idle_seconds,
            require_preconditions=self.settings.require_preconditions,
            max_state_bytes=self.settings.max_state_bytes,
        )
        self.sweeping = _one_round_at_a_time(app._sweeper)
        await self._running.enter_async_context(app.lifespan())
        self._port = await self._running.enter_async_context(_listening(app))
        self._connection = await Connection.open(self._port)

    async def stop(self) -> None:
        """Close the connection, the port and the store, in this order."""
        async with self._running, self._connection:
            pass

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def sweep(self) -> None:
        """One round, as `chatstate sweep` makes it."""
        idle = self.settings.idle_seconds
        retention = Retention(None if idle is None else timedelta(seconds=idle), self.settings.history)
        await Sweeper(self.store, self._clock, retention).sweep()

    async def send(self, method: str, target: str, body: object, headers: dict[str, str]) -> Answer:
        try:
            return await self._connection.request(method, target, body, headers)
        except (OSError, EOFError):  # the next example shall not fail for the same reason
            async with self._connection:
                self._connection = await Connection.open(self._port)
            raise


def _one_round_at_a_time(sweeper: Sweeper) -> asyncio.Lock:
    """A lock that is held as long as the sweeper makes a round."""
    lock, sweep = asyncio.Lock(), sweeper.sweep

    async def locked() -> int:
        async with lock:
            return await sweep()

    sweeper.sweep = locked  # type: ignore[method-assign]
    return lock


class _Patient(HttpProtocol):
    HEADER_SECONDS = KEEP_ALIVE_SECONDS


@asynccontextmanager
async def _listening(app: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        http=_Patient,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        server = await asyncio.get_running_loop().create_server(
            lambda: _Patient(config=config, server_state=state, app_state={}), sock=listener
        )
        try:
            yield listener.getsockname()[1]
        finally:
            server.close()


class Deployment:
    """Two servers for each of the settings, all on one database. A SQLite file is owned by the first of all."""

    def __init__(self, url: str, settings: Sequence[Settings]) -> None:
        self.clock = Clock()
        self.is_sqlite = url.startswith("sqlite")
        self._url = url
        self._pairs = {
            one: [RunningServer(url, position == number == 0, one, self.clock) for number in range(2)]
            for position, one in enumerate(settings)
        }
        self._foreign: Any = None

    async def start(self) -> None:
        for server in self._servers():
            await server.start()
        if self.is_sqlite:
            self._foreign = apsw.Connection(unquote(urlsplit(self._url).path.removeprefix("/")))
            self._foreign.set_busy_timeout(5000)
        else:
            self._foreign = await asyncpg.connect(self._url)

    async def begin_again(self) -> None:
        """Set the clock back. A round of sweeping that has begun goes on by its own time: what is new would be old to
        it, and so it is waited for."""
        for server in self._servers():
            async with server.sweeping:
                pass
        self.clock.now = START

    async def stop(self) -> None:
        for server in self._servers():
            await server.stop()
        if self.is_sqlite:
            self._foreign.close()
        else:
            await self._foreign.close()

    def _servers(self) -> list[RunningServer]:
        return [server for pair in self._pairs.values() for server in pair]

    def pair(self, settings: Settings) -> list[RunningServer]:
        """The two servers with these settings."""
        return self._pairs[settings]

    async def foreign(self, statement: str, *values: object) -> list[Any]:
        """What another program that uses the database's own client gets for a statement; `$1` is the first value."""
        rows = (
            self._foreign.execute(statement, values)
            if self.is_sqlite
            else await self._foreign.fetch(statement, *values)
        )
        return list(rows)
