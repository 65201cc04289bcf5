"""The databases that the tests run on: SQLite files, and real PostgreSQL servers from wheels or from a URL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatstate.stores import Store, create_store
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres, PostgresServer, RunningServers, database_of, server_names

POSTGRES_NAMES = server_names()
STORE_NAMES = ["sqlite", *POSTGRES_NAMES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CHATSTATE_TEST_NO_SKIPS a skipped test counts as failed: nothing may go untested unnoticed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CHATSTATE_TEST_NO_SKIPS") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in os.environ:
        if name in ("DATABASE_URL", "PORT") or (
            name.startswith("CHATSTATE_") and not name.startswith("CHATSTATE_TEST")
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers() -> Iterator[RunningServers]:
    """PostgreSQL servers by name, each started when it is first asked for."""
    with RunningServers() as running:
        yield running


@pytest.fixture(params=POSTGRES_NAMES)
def postgres(request: pytest.FixtureRequest, servers: RunningServers) -> Postgres:
    """Each PostgreSQL server in turn."""
    return servers.get(request.param)


@pytest.fixture
def own_postgres(servers: RunningServers) -> PostgresServer:
    """A PostgreSQL server that a test may stop, kill and put a proxy in front of."""
    ours = [server for server in map(servers.get, POSTGRES_NAMES) if isinstance(server, PostgresServer)]
    if not ours:
        pytest.skip("CHATSTATE_TEST_POSTGRES names a server that tests must not stop")
    return ours[0]


@pytest.fixture
async def postgres_url(postgres: Postgres) -> AsyncIterator[str]:
    """The URL of an empty database on each PostgreSQL server in turn."""
    url = await postgres.create_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture(params=STORE_NAMES)
async def store_url(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/chatstate.db"
        return
    server = servers.get(request.param)
    url = await server.create_database()
    yield url
    await server.drop_database(url)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """An open store on an empty database, of each kind in turn."""
    opened = create_store(store_url)
    await opened.open()
    await opened.migrate()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def pooled_server(servers: RunningServers) -> PostgresServer:
    """The server that PgBouncer stands before."""
    ours = [server for server in map(servers.get, POSTGRES_NAMES) if isinstance(server, PostgresServer)]
    if not ours:
        pytest.skip("CHATSTATE_TEST_POSTGRES names a server that no pooler can be put in front of")
    if not PgBouncer.find():
        pytest.skip("no pgbouncer program on this machine (Debian: apt-get install pgbouncer)")
    return ours[0]


@pytest.fixture(scope="session")
def pgbouncer(pooled_server: PostgresServer) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode."""
    with PgBouncer(pooled_server) as bouncer:
        yield bouncer


@pytest.fixture
async def pgbouncer_url(pooled_server: PostgresServer, pgbouncer: PgBouncer) -> AsyncIterator[str]:
    """The URL of an empty database through PgBouncer."""
    url = await pooled_server.create_database()
    yield pgbouncer.url(database_of(url))
    await pooled_server.drop_database(url)
