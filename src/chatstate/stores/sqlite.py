"""The SQLite store: one file, owned by one server.

One thread writes (and checkpoints), one thread reads, each with its own connection. WAL with `synchronous=FULL`: an
acknowledged write has been synced to the disk; `NORMAL` would lose acknowledged writes on power loss
(https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import apsw
from filelock import FileLock, Timeout
from msgspec import json

from chatstate.errors import (
    OutcomeUnknown,
    SchemaMismatch,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    StoreUnreachable,
    WriteRefused,
)
from chatstate.model import Conflict, Deleted, Save, Session, Tag, Write
from chatstate.stores import sql
from chatstate.stores.base import Outcome, Store, StoreStatus, verb_for

Result = TypeVar("Result")

_FIRST_SAFE_VERSION = (3, 51, 3)
"""Earlier versions can corrupt the file in a race of WAL resets (https://www.sqlite.org/wal.html)."""

_BUSY_SECONDS = 5
"""How long a write waits for a short second writer, such as a command."""

_STATEMENTS = {name: sql.statement("sqlite", name) for name in ("load", "tag", "upsert", "insert", "update", "delete")}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class SQLiteStore(Store):
    """Sessions in the file at `path`.

    With `owner` the store takes the file for itself, as a server does: a second owner is refused. Without it the store
    is a short second writer, as commands are.
    """

    write_lanes = 1
    read_lanes = 1

    def __init__(self, path: Path, owner: bool = True) -> None:
        self._path = path.resolve()
        self._lock = FileLock(f"{self._path}.lock", timeout=0) if owner else None
        self._writer = _Worker(self._path)
        self._reader = _Worker(self._path)

    async def open(self) -> None:
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < _FIRST_SAFE_VERSION:
            raise StoreUnreachable(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt databases. Mend it with: pip install --upgrade apsw"
            )
        if not self._path.parent.is_dir():
            raise StoreUnreachable(
                f"Cannot use {self._path} as the database: its folder does not exist. Make it: "
                f"mkdir -p {self._path.parent}"
            )
        self._take_ownership()
        try:
            _create_private_file(self._path)
            await self._writer.start()
            await self._reader.start()
        except (apsw.Error, OSError) as error:
            await self.close()
            raise StoreUnreachable(_cannot_open(self._path, error)) from error
        except BaseException:
            await self.close()
            raise

    def _take_ownership(self) -> None:
        if not self._lock:
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise StoreUnreachable(
                f"Another chatstate server is using {self._path}. Stop it, or give this one a file of its own: "
                "chatstate serve --store sqlite:///other.db"
            ) from None
        except OSError as error:
            raise StoreUnreachable(_cannot_open(self._path, error)) from error

    async def close(self) -> None:
        await self._reader.stop()
        await self._writer.stop()
        if self._lock:
            self._lock.release()

    async def migrate(self) -> list[str]:
        with _translated(self._path):
            return await self._writer.run(_migrate)

    def migration_sql(self) -> str:
        steps = [f"{step.sql}\nPRAGMA user_version = {step.number};" for step in sql.migrations("sqlite")]
        return "\n".join(["PRAGMA journal_mode = wal;", "BEGIN IMMEDIATE;", *steps, "COMMIT;"])

    async def status(self) -> StoreStatus:
        with _translated(self._path):
            await self._reader.run(
                lambda connection: connection.execute(_STATEMENTS["tag"], {"user_session_id": ""}).fetchall()
            )
        return StoreStatus(
            store=f"SQLite {apsw.sqlite_lib_version()}, {self._path}",
            durability="An acknowledged write has been synced to the disk (WAL, synchronous=FULL).",
        )

    async def load(self, ids: Sequence[str]) -> dict[str, Session]:
        with _translated(self._path):
            return await self._reader.run(lambda connection: _load(connection, ids))

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        with _translated(self._path):
            return await self._writer.run(lambda connection: _commit(connection, writes))


class _Worker:
    """A thread with a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._connection: apsw.Connection | None = None

    async def start(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chatstate-sqlite")
        self._connection = await asyncio.get_running_loop().run_in_executor(self._thread, _connect, self._path)

    async def stop(self) -> None:
        if self._connection:
            await self.run(lambda connection: connection.close())
            self._connection = None
        if self._thread:
            self._thread.shutdown()
            self._thread = None

    async def run(self, task: Callable[[apsw.Connection], Result]) -> Result:
        if not self._thread or not self._connection:
            raise StoreUnavailable("The store is not open.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, task, self._connection)


def _create_private_file(path: Path) -> None:
    """States are private: the file is its owner's alone. SQLite gives its journals the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _cannot_open(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (
        f"Cannot use {path} as the database: {reason}. Choose a file in a folder that this user may write to: "
        "chatstate serve --store sqlite:///path/to/chatstate.db"
    )


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: apsw.Connection, path: Path) -> None:
    connection.set_busy_timeout(_BUSY_SECONDS * 1000)
    connection.pragma("trusted_schema", False)
    _check_is_ours(connection)  # before the journal mode, which stays with the file
    if connection.pragma("journal_mode", "wal") != "wal":
        raise StoreUnreachable(f"{path} lies on a file system without shared memory; use a file on a local disk.")
    connection.pragma("synchronous", "full")
    connection.pragma("schema_version")  # maps the shared memory, which SQLite never tries again once it has failed


def _check_is_ours(connection: apsw.Connection) -> None:
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    if names and not (connection.pragma("user_version") and "chat_state_sessions" in names):
        raise SchemaMismatch(
            "The SQLite file is another program's database. Give chatstate a file of its own: "
            "chatstate serve --store sqlite:///chatstate.db"
        )


def _migrate(connection: apsw.Connection) -> list[str]:
    with _transaction(connection):
        _check_is_ours(connection)
        done = connection.pragma("user_version")
        pending = [migration for migration in sql.migrations("sqlite") if migration.number > done]
        for migration in pending:
            connection.execute(migration.sql)
            connection.pragma("user_version", migration.number)
    return [migration.name for migration in pending]


def _load(connection: apsw.Connection, ids: Sequence[str]) -> dict[str, Session]:
    sessions = {}
    for user_session_id in ids:
        for row in connection.execute(_STATEMENTS["load"], {"user_session_id": user_session_id}):
            session_id, _, chat_state, active, created, updated, version = row
            times = (_time(active), _time(created), _time(updated))
            sessions[user_session_id] = Session(session_id, user_session_id, chat_state, *times, version)
    return sessions


def _commit(connection: apsw.Connection, writes: Sequence[Write]) -> list[Outcome]:
    with _transaction(connection):
        return [_apply(connection, write) for write in writes]


def _apply(connection: apsw.Connection, write: Write) -> Outcome:
    # The transaction holds SQLite's one write lock: a session that was seen absent stays absent until the insert.
    outcome = _try(connection, write)
    if isinstance(outcome, Conflict) and write.expect.allows(outcome.current):
        return _try(connection, write, known_absent=True)
    return outcome


def _try(connection: apsw.Connection, write: Write, known_absent: bool = False) -> Outcome:
    statement = _STATEMENTS[verb_for(write, known_absent)]
    for row in connection.execute(statement, _parameters(write)):
        return _saved(write, *row) if isinstance(write, Save) else Deleted(Tag(*row))
    for row in connection.execute(_STATEMENTS["tag"], {"user_session_id": write.user_session_id}):
        return Conflict(Tag(*row))
    return Conflict(None)


def _parameters(write: Write) -> dict[str, str | int | None]:
    only = write.expect.only
    parameters: dict[str, str | int | None] = {
        "user_session_id": write.user_session_id,
        "only": None if only is None else json.encode([str(tag) for tag in only]).decode(),
        "unless": json.encode([str(tag) for tag in write.expect.unless]).decode(),
    }
    if isinstance(write, Save):
        parameters |= {
            "session_id": write.new_session_id,
            "chat_state": write.chat_state,
            "last_activity": _microseconds(write.last_activity),
            "now": _microseconds(write.now),
        }
    return parameters


def _saved(write: Save, session_id: str, created: int, version: int, kept_state: str | None = None) -> Session:
    state = write.chat_state if kept_state is None else kept_state
    assert state is not None  # a write without a state updates, and gives the one that it has kept
    return Session(session_id, write.user_session_id, state, write.last_activity, _time(created), write.now, version)


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    """All or nothing. The write lock is taken at the start, so nothing that is read inside can be out of date."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        _roll_back(connection)
        raise
    try:
        connection.execute("COMMIT")
    except (apsw.FullError, apsw.BusyError):
        _roll_back(connection)
        raise
    except apsw.Error as error:
        _roll_back(connection)
        raise OutcomeUnknown from error


def _roll_back(connection: apsw.Connection) -> None:
    if connection.in_transaction:  # some errors end the transaction by themselves
        connection.execute("ROLLBACK")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The one place where the driver's errors become ours."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreFull from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusy("Another program has been writing to the file for too long. Nothing was written.") from error
    except (apsw.ConstraintError, apsw.TooBigError, apsw.MismatchError, UnicodeEncodeError) as error:
        raise WriteRefused(f"The store cannot keep this value: {type(error).__name__}.") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreUnavailable(
            f"The file {path} is damaged ({error}). Nothing was written. Stop the server and bring back a backup, or "
            f"save what can still be read: sqlite3 {path} .recover | sqlite3 recovered.db"
        ) from error
    except apsw.Error as error:
        raise StoreUnavailable(f"SQLite cannot use its file ({error}). Nothing was written; try again.") from error
