"""chatstate itself, with its default settings, on each of its stores and on none.

"HTTP alone" is chatstate's HTTP layer before a store that keeps everything in memory: what is left is the cost of HTTP,
and no server of this design can be quicker. That store is part of the bench and never shipped.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path

import msgspec
from msgspec import json

from bench.apis import user_session_id
from bench.systems import Running, System, launched
from chatstate import create_app
from chatstate.http.server import bind, run
from chatstate.model import KEEP, Conflict, Delete, Deleted, Retention, Save, Session, Swept
from chatstate.stores.base import AnyWrite, Outcome, Query, Row, Store, StoreStatus
from chatstate.stores.feed import Changed, Feed, Hints
from chatstate.stores.replies import Sealing, Written
from tests.servers.ports import LOOPBACK, free_port

ROOT = Path(__file__).parents[1]


class ChatStateServer(System):
    """`chatstate serve`, by default as it is without options."""

    mixes = ("save", "load", "half", "conditional", "keyed", "append")

    def __init__(self, name: str | None = None, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name or self.name
        self._options = options
        self._environment = environment or {}

    @contextmanager
    def _serving(self, folder: Path, store_url: str) -> Iterator[Running]:
        port = free_port()
        command = [sys.executable, "-m", "chatstate", "serve", "--store", store_url, "--port", str(port)]
        command += self._options
        with launched(
            command, folder=folder, port=port, environment=self._environment, ready_path="/healthz"
        ) as server:
            yield server


class ChatStateOnSQLite(ChatStateServer):
    """`chatstate serve` on a file."""

    name = "chatstate, SQLite"

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        with self._serving(folder, sqlite_url(folder)) as server:
            yield server


class ChatStateOnPostgres(ChatStateServer):
    """`chatstate serve` on a PostgreSQL database."""

    name = "chatstate, PostgreSQL"
    needs_postgres = True

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        assert database_url is not None
        with self._serving(folder, database_url) as server:
            yield server


class WithKey(System):
    """Another system that wants an API key, which all requests show; with limits that no request reaches."""

    kind = "with an API key"

    def __init__(self, open_one: type[ChatStateServer], sessions: int) -> None:
        self._sessions = sessions
        limits = [("--rate-per-key", MOST_RATE), ("--rate-per-session", MOST_RATE)]
        self._keyed = open_one(f"{open_one.name}, {self.kind}", *(word for limit in limits for word in limit))
        self.name, self.needs_postgres = self._keyed.name, self._keyed.needs_postgres

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        key = _create_key(database_url or sqlite_url(folder), folder)
        with self._keyed.running(folder, database_url) as server:
            yield msgspec.structs.replace(server, bearers=self._bearers(server.port, key))

    def _bearers(self, port: int, key: str) -> tuple[str, ...]:
        return (key,)


class WithTokens(WithKey):
    """The same with a session token for each session."""

    kind = "with session tokens"

    def _bearers(self, port: int, key: str) -> tuple[str, ...]:
        with closing(HTTPConnection(LOOPBACK, port, timeout=20)) as connection:
            return tuple(_mint(connection, key, number) for number in range(self._sessions))


MOST_RATE = "1000000"


def _create_key(url: str, folder: Path) -> str:
    command = [sys.executable, "-m", "chatstate", "keys", "create", "--name", "bench", "--json"]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "CHATSTATE_STORE": url}
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return str(json.decode(made.stdout)["key"])


def _mint(connection: HTTPConnection, key: str, number: int) -> str:
    body = json.encode({"user_session_id": user_session_id(number)})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/tokens", body, headers)
    return str(json.decode(connection.getresponse().read())["token"])


class HttpAlone(System):
    """chatstate's HTTP layer without a store."""

    name = "HTTP alone, no store"

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`."""
        port = free_port()
        command = [sys.executable, "-m", "bench.chatstate", str(port)]
        environment = {"PYTHONPATH": str(ROOT)}
        with launched(command, folder=folder, port=port, environment=environment, ready_path="/healthz") as server:
            yield server


def sqlite_url(folder: Path) -> str:
    """The store of a `ChatStateOnSQLite` that runs in the folder."""
    return f"sqlite:///{folder}/chatstate.db"


class MemoryStore(Store):
    """Keeps sessions until it ends, and looks at no condition of a write: the load generator sends none."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    async def open(self) -> None:
        """See `Store.open`."""

    async def close(self) -> None:
        """See `Store.close`."""

    async def migrate(self) -> list[str]:
        """See `Store.migrate`."""
        return []

    def migration_sql(self) -> str:
        """See `Store.migration_sql`."""
        return ""

    async def status(self) -> StoreStatus:
        """See `Store.status`."""
        return StoreStatus(store="memory, for the bench", durability="None.")

    async def load(self, ids: Sequence[str], now: datetime, retention: Retention = KEEP) -> Mapping[str, Session]:
        """See `Store.load`."""
        return {name: session for name in ids if (session := self._sessions.get(name))}

    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        """See `Store.commit`."""
        return [self._apply(write) for write in writes]

    def _apply(self, write: AnyWrite) -> Outcome:
        if isinstance(write, Save):
            return self._save(write)
        if isinstance(write, Delete):
            return self._delete(write.user_session_id)
        raise NotImplementedError  # nothing of the bench makes visits

    async def list(self, query: Query) -> Sequence[Row]:
        """See `Store.list`. There are no API keys, and nothing of the bench asks for more."""
        return []

    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        """See `Store.watch`."""
        return Hints().feed(changed, written, sealing)

    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        """See `Store.sweep`. Nothing here expires."""
        return Swept(0)

    def _save(self, write: Save) -> Session:
        old = self._sessions.get(write.user_session_id)
        assert write.chat_state is not None
        session = Session(
            session_id=old.session_id if old else write.new_session_id,
            user_session_id=write.user_session_id,
            chat_state=write.chat_state,
            last_activity=write.last_activity,
            created_at=old.created_at if old else write.now,
            updated_at=write.now,
            version=old.version + 1 if old else 1,
        )
        self._sessions[write.user_session_id] = session
        return session

    def _delete(self, user_session_id: str) -> Outcome:
        old = self._sessions.pop(user_session_id, None)
        return Deleted(old.tag) if old else Conflict(None)


async def _ignore() -> None:
    """Nobody has to be told that it listens."""


def main() -> None:
    """`python -m bench.chatstate PORT`: serve without a store."""
    sockets: list[socket.socket] = bind((LOOPBACK,), int(sys.argv[1]))
    run(create_app(MemoryStore()), sockets, _ignore)


if __name__ == "__main__":
    main()
