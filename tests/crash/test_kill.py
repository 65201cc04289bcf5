"""Processes killed under load, again and again: what was acknowledged is there, and nothing else."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import apsw
import pytest

from tests.servers.history import LostWrite
from tests.servers.load import Connection, History, Load
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerProcess

KILLS = 8
RESTARTS = 5
START_SECONDS = 5.0
RECOVERY_SECONDS = 5.0


async def test_a_killed_server_has_lost_nothing(store_url: str, tmp_path: Path) -> None:
    history = History()
    rng = history.random_for(-1)
    with ServerProcess(store_url, tmp_path) as server:
        for _ in range(KILLS):
            async with Load(history, server.port) as load:
                await load.acknowledgements(rng.randrange(50, 500))
                await asyncio.to_thread(server.kill)  # beside the clients, in whatever they and the server are doing
                await load.ended()
            assert load.broken > 0
            await asyncio.to_thread(server.restart)
            assert server.start_seconds < START_SECONDS
            await history.check(server.port)
        assert server.terminate() == 0, server.output
        assert "Traceback" not in server.output
    history.report(f"{KILLS} kills of the server")
    if store_url.startswith("sqlite"):
        assert_sqlite_is_whole(store_url)


def assert_sqlite_is_whole(url: str) -> None:
    connection = apsw.Connection(sqlite_file(url))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


def sqlite_file(url: str) -> str:
    return unquote(urlsplit(url).path.removeprefix("/"))


async def test_the_checker_sees_a_database_that_went_back_in_time(tmp_path: Path) -> None:
    history = History()
    file = tmp_path / "chatstate.db"
    with ServerProcess(f"sqlite:///{file}", tmp_path) as server:
        async with Load(history, server.port) as load:
            await load.acknowledgements(100)
        assert server.terminate() == 0
        shutil.copy(file, tmp_path / "old.db")
        server.restart()
        async with Load(history, server.port) as load:
            await load.acknowledgements(100)
        await history.check(server.port)
        assert server.terminate() == 0
        shutil.copy(tmp_path / "old.db", file)
        server.restart()
        with pytest.raises(LostWrite, match=str(history.seed)):
            await history.check(server.port)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("DELETE FROM chat_state_sessions", id="sessions vanish"),
        pytest.param("UPDATE chat_state_sessions SET version = version - 1", id="versions go back"),
        pytest.param("UPDATE chat_state_sessions SET chat_state = chat_state || ' '", id="states change"),
        pytest.param("UPDATE chat_state_sessions SET version = version + 1", id="versions rise by themselves"),
        pytest.param("UPDATE chat_state_sessions SET session_id = 'x' || session_id", id="sessions are exchanged"),
    ],
)
async def test_the_checker_sees_damage(damage: str, tmp_path: Path) -> None:
    history = History()
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as server:
        async with Load(history, server.port) as load:
            await load.acknowledgements(50)
        await history.check(server.port)
        with apsw.Connection(str(tmp_path / "chatstate.db")) as connection:
            connection.set_busy_timeout(5000)
            connection.execute(damage)
        connection.close()
        with pytest.raises(LostWrite):
            await history.check(server.port)


@pytest.fixture
async def own_url(own_postgres: PostgresServer) -> AsyncIterator[str]:
    """An empty database on the server that may be killed."""
    url = await own_postgres.create_database()
    yield url
    await own_postgres.drop_database(url)


def crash(postgres: PostgresServer) -> None:
    postgres.restart("immediate")


def kill(postgres: PostgresServer) -> None:
    postgres.kill()
    postgres.start()


def stop_politely(postgres: PostgresServer) -> None:
    postgres.restart("fast")


@pytest.mark.parametrize("fault", [crash, kill, stop_politely])
async def test_a_restarted_database_loses_nothing(
    fault: Callable[[PostgresServer], None], own_postgres: PostgresServer, own_url: str, tmp_path: Path
) -> None:
    history = History()
    with ServerProcess(own_url, tmp_path) as server:
        async with Load(history, server.port) as load:
            for _ in range(RESTARTS):
                await load.acknowledgements(200)
                await asyncio.to_thread(fault, own_postgres)
                assert await ready_again(server) < RECOVERY_SECONDS
                await load.acknowledgements(1)
        assert load.broken == 0, "chatstate itself has closed connections"
        assert load.statuses[503] > 0, "no request met the fault"
        assert set(load.statuses) <= {200, 201, 404, 412, 503}, load.statuses
        await history.check(server.port)
        assert server.terminate() == 0, server.output
        assert "Traceback" not in server.output
    history.report(f"{RESTARTS} restarts of the database")


async def ready_again(server: ServerProcess) -> float:
    """How long it takes, in seconds, until the store answers and a session can be written."""
    began = time.monotonic()
    body = {"user_session_id": "probe", "chat_state": "{}"}
    async with await Connection.open(server.port) as connection:
        while time.monotonic() - began < RECOVERY_SECONDS:
            answers = [
                await connection.request("GET", "/readyz"),
                await connection.request("POST", "/chat-state-sessions", body),
            ]
            if all(answer.status in (200, 201) for answer in answers):
                break
            assert {answer.status for answer in answers} <= {200, 201, 503}
            await asyncio.sleep(0.02)
    return time.monotonic() - began
