"""PocketBase: a backend in one program, with SQLite inside.

A save is PATCH of the record by its id, which is the session's id. That is an update only, so sessions are created
before the load begins (`Api.fill`), and PocketBase is spared what an upsert would cost it. It is the quickest of its
ways to save; with 64 connections and 4 KB states on 2 cores that wrk shared they made

    5.1 thousand a second  PATCH /api/collections/chat_state_sessions/records/{id}
    4.2                    a route in JavaScript (pb_hooks) that runs INSERT … ON CONFLICT (user_session_id) DO UPDATE
    2.8                    POST /api/batch with one upsert by id
    2.7                    a route in JavaScript that finds the record by user_session_id, and updates or creates it

A load is GET of the record by its id; asking for two of its fields only (`?fields=`) was slower by more than a quarter.

Durability: PocketBase opens SQLite in WAL mode with `synchronous=NORMAL`, and the bench leaves it so. A power loss may
then take the last saves that were acknowledged, whereas chatstate's are on disk; PocketBase is spared those fsyncs.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers import environment
from bench.systems import Running, System, launched
from tests.servers.ports import LOOPBACK, free_port

MIGRATIONS = environment.FOLDER / "pocketbase_migrations"


class PocketBase(System):
    """One process with its defaults, but without a log of requests."""

    name = "PocketBase"
    api = "pocketbase"

    def prepare(self) -> None:
        """See `System.prepare`."""
        environment.prepare()

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`. The collection is made before the start that is timed."""
        program = environment.program("pocketbase")
        flags = ("--dir", folder / "data", "--migrationsDir", MIGRATIONS, "--automigrate=0")
        environment.run(program, "migrate", "up", *flags, folder=folder)
        # Without a superuser, `serve` opens a browser to ask for one.
        password = secrets.token_hex(16)
        environment.run(program, "superuser", "upsert", "bench@example.com", password, *flags, folder=folder)
        port = free_port()
        with launched(
            [program, "serve", "--http", f"{LOOPBACK}:{port}", *flags],
            folder=folder,
            port=port,
            environment={},
            ready_path="/api/health",
            ready_statuses=(200,),
        ) as server:
            yield server
