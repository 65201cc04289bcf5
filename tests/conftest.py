"""The databases that the tests run on: SQLite files, and real servers of PostgreSQL and Valkey from wheels."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chatstate.stores import Store, create_store
from tests.servers import canaries
from tests.servers.memory import memory_folder
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres, PostgresServer, RunningServers, database_of, server_names

POSTGRES_NAMES = server_names()
VALKEY = "valkey"
STORE_NAMES = ["sqlite", *POSTGRES_NAMES, VALKEY]
EVERYWHERE = "CHATSTATE_TEST_EVERYWHERE"
STORE_KINDS = ["sqlite", POSTGRES_NAMES[0], *([VALKEY] if os.environ.get(EVERYWHERE) else [])]
"""For what is above the stores: in what one PostgreSQL differs from another is theirs, and tested on all of them.

With CHATSTATE_TEST_EVERYWHERE also on a Valkey Cluster, which takes some minutes more.
"""


def pytest_sessionstart() -> None:
    """From here on every log is looked through."""
    logging.getLogger().addHandler(canaries.Listener())


def pytest_configure(config: pytest.Config) -> None:
    """Have `tmp_path` in memory, with the SQLite files of the tests; --basetemp and TMPDIR have it elsewhere. And have
    clients begin at once, and Ctrl+C end what is started."""
    folder = memory_folder()
    if folder and not config.option.basetemp:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))  # pytest's only setting for the parent
    # No test talks to another machine. Reading whom to trust there would take each new client 40 ms.
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = os.devnull
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; programs inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


gc.disable()


def pytest_collection_finish() -> None:
    """What was collected stays to the end: to look at it again and again would take a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CHATSTATE_TEST_NO_SKIPS a skipped test counts as failed: nothing may go untested unnoticed.

    And what must not be anywhere, must not have been in anything that chatstate wrote during the whole run. One of
    several processes that run the tests tells that to the one that started it, which has the results of all.
    """
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["secrets"] = canaries.found
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if canaries.found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for place in canaries.found:
        reporter.write_line(f"a secret was written: {place}", red=True)
    if os.environ.get("CHATSTATE_TEST_NO_SKIPS") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)  # it is pytest-xdist's
def pytest_testnodedown(node: Any) -> None:
    """One of several processes has ended; one that crashed says nothing, but fails the test that it ran."""
    canaries.found.extend(getattr(node, "workeroutput", {}).get("secrets", ()))


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
    """PostgreSQL servers by name, each started when it is first asked for; in memory where there is room."""
    with RunningServers(memory_folder()) as running:
        yield running


@contextmanager
def database(store_name: str, servers: RunningServers, folder: Path) -> Iterator[str]:
    """The URL of an empty database of this kind, for a fixture that lives longer than a test; a file is in `folder`."""
    if store_name == "sqlite":
        yield f"sqlite:///{folder}/chatstate.db"
        return
    if store_name == VALKEY:
        yield servers.cluster().url(f"t{secrets.token_hex(8)}:")
        return
    server = servers.get(store_name)
    url = asyncio.run(server.create_database())
    yield url
    asyncio.run(server.drop_database(url))


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


@pytest.fixture(params=STORE_KINDS)
def store_url(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn."""
    with database(request.param, servers, tmp_path) as url:
        yield url


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
