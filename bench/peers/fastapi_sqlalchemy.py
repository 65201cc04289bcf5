"""FastAPI + SQLAlchemy: the service that a Python developer would write; its source is fastapi_app.py.

Async SQLAlchemy with asyncpg on the seed's table, uvicorn with uvloop and httptools, one worker, no log of requests. A
save is one INSERT … ON CONFLICT DO UPDATE … RETURNING, the upsert that SQLAlchemy's documentation shows for ORM
objects, in one transaction. Durability is PostgreSQL's own: an acknowledged save was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from bench.peers import environment
from bench.systems import Running, System, launched
from tests.servers.ports import free_port
from tests.stores.old_tables import SEED_SQL

APP = environment.FOLDER / "fastapi_app.py"


class FastApiSqlAlchemy(System):
    """One process of it."""

    name = "FastAPI + SQLAlchemy"
    needs_postgres = True

    def prepare(self) -> None:
        """See `System.prepare`."""
        environment.prepare()

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        assert database_url is not None
        create_seed_table(database_url)
        port = free_port()
        with launched(
            [environment.program("python"), APP],
            folder=folder,
            port=port,
            environment={"DATABASE_URL": database_url, "PORT": str(port)},
            ready_path="/chat-state-sessions/ready",
        ) as server:
            yield server


def create_seed_table(database_url: str) -> None:
    """Create the table as the service that chatstate replaces has it; raises asyncpg's errors or OSError."""
    with ThreadPoolExecutor(1) as executor:  # a thread of its own, because the caller may be inside an event loop
        executor.submit(asyncio.run, _execute(database_url, SEED_SQL)).result()


async def _execute(database_url: str, statements: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
