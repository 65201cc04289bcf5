"""Hints between the servers of one PostgreSQL database, by LISTEN and NOTIFY on a connection that is kept for it.

A NOTIFY costs a commit, in which PostgreSQL lets no other one pass, and has room for 8000 bytes: see
`chatstate.stores.server_hints` for what is said, and when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import asyncpg

from chatstate.stores.postgres_connection import DRIVER_ERRORS
from chatstate.stores.server_hints import ServerHints

CHANNEL = "chatstate"

_GOODBYE_SECONDS = 2.0
"""How long the database has to take leave of a connection."""

_NOTIFY = "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message"

_REFUSED = (asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError)
"""What engines say that have no LISTEN and NOTIFY, though they speak PostgreSQL's protocol, and users who may not."""

Acquire = Callable[[], AbstractAsyncContextManager[Any]]


class PostgresHints(ServerHints):
    """Hints from all servers on the database once `listen` was called; before that, and through a pooler, from here."""

    def __init__(self) -> None:
        super().__init__(DRIVER_ERRORS, _REFUSED)
        self._acquire: Acquire | None = None
        self._process: int | None = None  # of PostgreSQL, which serves the connection

    def listen(self, acquire: Acquire, schema: str) -> None:
        """Hear other servers, and tell them; from now on, and until `close`."""
        self._acquire = acquire
        self.start(schema)

    async def _listen(self) -> None:
        assert self._acquire
        is_lost = asyncio.Event()  # the connection does not say so: the pool has taken it back by then

        def lost(_connection: object) -> None:
            is_lost.set()
            self._wake.set()

        async with self._acquire() as connection:
            try:
                self._process = connection.get_server_pid()
                connection.add_termination_listener(lost)
                await connection.add_listener(CHANNEL, self._notified)
                await self._talk(lambda messages: connection.execute(_NOTIFY, CHANNEL, messages), is_lost.is_set)
            finally:
                with suppress(*DRIVER_ERRORS):  # the pool makes another one; this one still listens
                    await connection.close(timeout=_GOODBYE_SECONDS)

    def _notified(self, _connection: Any, process: int, _channel: str, message: str) -> None:
        if process != self._process:  # else it was said here; the connection may be lost by now, and cannot be asked
            self._hear(message)
