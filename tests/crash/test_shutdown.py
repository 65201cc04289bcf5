"""SIGTERM and SIGINT under load: whatever was accepted is answered, and nothing holds up the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import asyncpg
import pytest

from tests.crash.test_kill import assert_sqlite_is_whole, sqlite_file
from tests.servers.load import Connection, History, Load
from tests.servers.process import ServerProcess

ROUNDS = 3
AT_ONCE_SECONDS = 3.0
"""Far below the 30 s that an orderly end waits."""

BOTH = pytest.mark.parametrize("number", [SIGTERM, SIGINT])

HALF_A_REQUEST = (
    b"POST /chat-state-sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 48\r\n\r\n{"user_session_id": "half", '
)
THE_OTHER_HALF = b'"chat_state": "{}"}\n'
assert len((HALF_A_REQUEST + THE_OTHER_HALF).partition(b"\r\n\r\n")[2]) == 48


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as server:
        yield server


@BOTH
async def test_an_orderly_end_answers_what_was_accepted(number: Signals, store_url: str, tmp_path: Path) -> None:
    history = History()
    with ServerProcess(store_url, tmp_path) as server:
        for _ in range(ROUNDS):
            async with Load(history, server.port) as load:
                await load.acknowledgements(150)
                server.send(number)
                await load.ended()
            assert await asyncio.to_thread(server.wait) == 0, server.output
            assert load.broken == 0, "connections were closed although a request had been sent"
            assert history.count("unknown") == 0
            assert set(load.statuses) <= {200, 201, 404, 412}, load.statuses
            assert_files_are_tidy(store_url)
            await asyncio.to_thread(server.restart)
            await history.check(server.port)
        assert "Traceback" not in server.output
        assert "everything that was accepted has been answered" in server.output
    history.report(f"{ROUNDS} times {number.name}")


def assert_files_are_tidy(store_url: str) -> None:
    """SQLite has put everything into the one file, which can be copied now."""
    if store_url.startswith("sqlite"):
        assert not Path(f"{sqlite_file(store_url)}-wal").exists()
        assert_sqlite_is_whole(store_url)


@asynccontextmanager
async def row_locked(url: str, user_session_id: str) -> AsyncIterator[None]:
    """Another program holds the session, so a write to it waits in the database."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT 1 FROM chat_state_sessions WHERE user_session_id = $1 FOR UPDATE", user_session_id)
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


async def save(connection: Connection, state: str) -> int:
    body = {"user_session_id": "held", "chat_state": state}
    return (await connection.request("POST", "/chat-state-sessions", body)).status


async def refused(port: int) -> None:
    """Wait until nobody listens on the port any more."""

    async def poll() -> None:
        while True:
            async with await Connection.open(port):
                await asyncio.sleep(0.01)

    with suppress(ConnectionError):
        await asyncio.wait_for(poll(), AT_ONCE_SECONDS)


@BOTH
async def test_a_write_that_the_database_holds_up_is_answered(
    number: Signals, postgres_url: str, tmp_path: Path
) -> None:
    with ServerProcess(postgres_url, tmp_path) as server:
        async with await Connection.open(server.port) as connection:
            assert await save(connection, "first") == 201
            async with row_locked(postgres_url, "held"):
                waiting = asyncio.create_task(save(connection, "second"))
                await lock_is_waited_for(postgres_url)
                server.send(number)
                await refused(server.port)
            assert await waiting == 200
        assert await asyncio.to_thread(server.wait) == 0
        await asyncio.to_thread(server.restart)
        async with await Connection.open(server.port) as connection:
            assert b'"second"' in (await connection.request("GET", "/chat-state-sessions/held")).body


async def lock_is_waited_for(url: str) -> None:
    """Wait until chatstate waits for a row that somebody else has locked."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'chatstate'"
    )
    connection = await asyncpg.connect(url)

    async def poll() -> None:
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.01)

    try:
        await asyncio.wait_for(poll(), AT_ONCE_SECONDS)
    finally:
        await connection.close()


@BOTH
async def test_idle_connections_do_not_hold_up_the_end(number: Signals, server: ServerProcess) -> None:
    async with await Connection.open(server.port) as unused, await Connection.open(server.port) as used:
        assert (await used.request("GET", "/healthz")).status == 200
        assert await asyncio.to_thread(server.terminate, number, AT_ONCE_SECONDS) == 0
        for connection in (unused, used):
            with pytest.raises((EOFError, ConnectionError)):
                await connection.answer()


@asynccontextmanager
async def half_open(server: ServerProcess) -> AsyncIterator[Connection]:
    """A connection whose request has begun: the server has read its head and waits for the rest."""
    async with await Connection.open(server.port) as connection:
        await connection.send(HALF_A_REQUEST)
        # Requests are read in the order in which they arrive, so the answer to a later one shows that this was read.
        async with await Connection.open(server.port) as other:
            assert (await other.request("GET", "/healthz")).status == 200
        yield connection


async def test_a_request_that_is_still_arriving_is_answered(server: ServerProcess) -> None:
    async with half_open(server) as connection:
        server.send(SIGTERM)
        await refused(server.port)
        await connection.send(THE_OTHER_HALF)
        assert (await connection.answer()).status == 201
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.output


async def test_a_client_that_goes_away_lets_the_server_end(server: ServerProcess) -> None:
    async with half_open(server):
        server.send(SIGTERM)
        await refused(server.port)
        assert server.running
    assert await asyncio.to_thread(server.wait, AT_ONCE_SECONDS) == 0
    assert "Traceback" not in server.output


IMPATIENT = (
    "from chatstate.http import protocol; assert protocol.SHUTDOWN_SECONDS == 30; protocol.SHUTDOWN_SECONDS = 1; "
    "from chatstate.cli import main; main()"
)


@BOTH
async def test_a_client_that_never_finishes_does_not_hold_up_the_end_for_ever(number: Signals, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    with ServerProcess(url, tmp_path, program=(sys.executable, "-c", IMPATIENT)) as server:
        async with half_open(server):
            assert await asyncio.to_thread(server.terminate, number, 1 + AT_ONCE_SECONDS) == 0
        assert "Traceback" not in server.output
    assert_files_are_tidy(url)


@BOTH
@pytest.mark.parametrize("second", [SIGTERM, SIGINT])
async def test_the_second_signal_ends_it_at_once(
    number: Signals, second: Signals, server: ServerProcess, tmp_path: Path
) -> None:
    async with half_open(server):
        server.send(number)
        await refused(server.port)
        assert server.running
        await asyncio.to_thread(server.terminate, second, AT_ONCE_SECONDS)
    assert "Traceback" not in server.output
    await asyncio.to_thread(server.restart)
    assert_sqlite_is_whole(f"sqlite:///{tmp_path}/chatstate.db")


@BOTH
async def test_the_second_signal_does_not_wait_for_the_database(
    number: Signals, postgres_url: str, tmp_path: Path
) -> None:
    with ServerProcess(postgres_url, tmp_path) as server:
        async with await Connection.open(server.port) as connection:
            assert await save(connection, "first") == 201
            async with row_locked(postgres_url, "held"):
                waiting = asyncio.create_task(save(connection, "second"))
                await lock_is_waited_for(postgres_url)
                server.send(number)
                await refused(server.port)
                ended = asyncio.to_thread(server.terminate, number, 1.0)  # the lock is waited for twice as long
                _, answer = await asyncio.gather(ended, waiting, return_exceptions=True)
            assert isinstance(answer, EOFError | ConnectionError), answer
        assert not server.running
        assert "Traceback" not in server.output
