"""The SQLite store: one file, owned by one server.

One thread writes (and checkpoints), one thread reads, each with its own connection. WAL with `synchronous=FULL`: an
acknowledged write has been synced to the disk; `NORMAL` would lose acknowledged writes on power loss
(https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import apsw
from filelock import FileLock, Timeout

from chatstate.errors import (
    OutcomeUnknown,
    SchemaMismatch,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    StoreUnreachable,
    WriteRefused,
)
from chatstate.mailbox import DueQuery, InboxQuery, MailWrite, OutboxQuery
from chatstate.model import (
    KEEP,
    RememberedQuery,
    ReplayQuery,
    Retention,
    Rewrite,
    Session,
    SessionQuery,
    StoredQuery,
    Swept,
    TagQuery,
    VersionQuery,
)
from chatstate.record import RecordQuery, RecordWrite
from chatstate.row import RowCount, RowQuery, RowWrite
from chatstate.stores import (
    sql,
    sqlite_mailbox,
    sqlite_records,
    sqlite_rows,
    sqlite_sessions,
    sqlite_stored,
    sqlite_visits,
)
from chatstate.stores.base import AnyWrite, Outcome, Query, Reader, Row, Store, StoreStatus
from chatstate.stores.feed import Changed, Feed, Hints
from chatstate.stores.replies import Sealing, Written
from chatstate.visit import UserSessionQuery, VisitQuery, VisitWrite

Result = TypeVar("Result")

_FIRST_SAFE_VERSION = (3, 51, 3)
"""Earlier versions can corrupt the file in a race of WAL resets (https://www.sqlite.org/wal.html)."""

_BUSY_SECONDS = 5
"""How long a write waits for a short second writer, such as a command."""

_CHECKPOINT_MILLISECONDS = 200
"""How long emptying the write-ahead log waits for those who read."""


class SQLiteStore(Store):
    """Sessions in the file at `path`.

    With `owner` the store takes the file for itself, as a server does: a second owner is refused. Without it the store
    is a short second writer, as commands are. Without `create` the file must be there.
    """

    write_lanes = 1
    read_lanes = 1

    def __init__(self, path: Path, owner: bool = True, create: bool = True) -> None:
        self._path = path.resolve()
        self._create = create
        self.is_exclusive = owner
        self._lock = FileLock(f"{self._path}.lock", timeout=0) if owner else None
        self._writer = _Worker(self._path)
        self._reader = _Worker(self._path)
        self._hints = Hints()

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
        if not (self._create or self._path.exists()):
            raise StoreUnreachable(
                f"There is no file {self._path}. Name the one that the server uses: --store sqlite:///chatstate.db"
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
            await self._reader.run(sqlite_sessions.check_readable)
        return StoreStatus(
            store=f"SQLite {apsw.sqlite_lib_version()}, {self._path}",
            durability="An acknowledged write has been synced to the disk (WAL, synchronous=FULL).",
        )

    async def load(self, ids: Sequence[str], now: datetime, retention: Retention = KEEP) -> dict[str, Session]:
        with _translated(self._path):
            return await self._reader.run(lambda connection: sqlite_sessions.load(connection, ids, now, retention))

    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        return await self._hints.after(writes, self._committed(writes, retention))

    async def _committed(self, writes: Sequence[AnyWrite], retention: Retention) -> list[Outcome]:
        with _translated(self._path):
            return await self._writer.run(lambda connection: _commit(connection, writes, retention))

    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        return self._hints.feed(changed)

    async def list(self, query: Query) -> Sequence[Row]:
        with _translated(self._path):
            return await self._reader.run(lambda connection: _list(connection, query))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Reader]:
        moment = _Snapshot(self._path)
        with _translated(self._path):
            await moment.begin()
        try:
            yield moment
        finally:
            await moment.end()

    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        with _translated(self._path):
            return await self._writer.run(lambda connection: _sweep(connection, now, retention, after, limit))


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


class _Snapshot:
    """The database at one moment. As long as that is read, the write-ahead log grows by what is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._worker = _Worker(path)

    async def begin(self) -> None:
        try:
            await self._worker.start()
            # The moment is that of the first read.
            await self._worker.run(
                lambda connection: connection.execute("BEGIN; SELECT 1 FROM sqlite_schema").fetchall()
            )
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        await self._worker.stop()

    async def list(self, query: Query) -> Sequence[Row]:
        with _translated(self._path):
            return await self._worker.run(lambda connection: _list(connection, query))


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
    connection.pragma("secure_delete", True)  # what was deleted is overwritten with zeros
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


def _commit(connection: apsw.Connection, writes: Sequence[AnyWrite], retention: Retention) -> list[Outcome]:
    with _transaction(connection):
        return [_apply(connection, write, retention, place) for place, write in enumerate(writes)]


def _apply(connection: apsw.Connection, write: AnyWrite, retention: Retention, place: int) -> Outcome:
    if isinstance(write, VisitWrite):
        return sqlite_visits.apply_visit(connection, write)
    if isinstance(write, RecordWrite):
        return sqlite_records.apply_record(connection, write)
    if isinstance(write, MailWrite):
        return sqlite_mailbox.apply_mail(connection, write, place)
    if isinstance(write, Rewrite):
        return sqlite_stored.rewrite(connection, write)
    if isinstance(write, RowWrite):
        return sqlite_rows.apply_row(connection, write)
    return sqlite_sessions.apply(connection, write, retention)


_LISTS: dict[type[Query], Callable[[apsw.Connection, Any], Sequence[Row]]] = {
    SessionQuery: sqlite_sessions.sessions,
    TagQuery: sqlite_sessions.tags,
    VersionQuery: sqlite_sessions.versions,
    ReplayQuery: sqlite_sessions.replays,
    RememberedQuery: sqlite_sessions.remembered,
    VisitQuery: sqlite_visits.visits,
    UserSessionQuery: sqlite_visits.user_sessions,
    RecordQuery: sqlite_records.records,
    InboxQuery: sqlite_mailbox.inbox,
    OutboxQuery: sqlite_mailbox.outbox,
    DueQuery: sqlite_mailbox.due,
    StoredQuery: sqlite_stored.stored,
    RowQuery: sqlite_rows.rows,
    RowCount: sqlite_rows.count,
}


def _list(connection: apsw.Connection, query: Query) -> Sequence[Row]:
    return _LISTS[type(query)](connection, query)


def _sweep(connection: apsw.Connection, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
    with _transaction(connection):
        swept = sqlite_sessions.sweep(connection, now, retention, after, limit)
    if swept.next is None:
        # The write-ahead log still holds what was deleted. If somebody is reading now, the next round empties it: a
        # backup may read for minutes, and no writer shall wait for that.
        connection.set_busy_timeout(_CHECKPOINT_MILLISECONDS)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.set_busy_timeout(_BUSY_SECONDS * 1000)
    return swept


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
        if isinstance(error, apsw.SQLError) and str(error).startswith("no such "):  # SQLite has no finer code for it
            raise StoreUnavailable(
                f"The file {path} has no tables for this version of chatstate yet. Make them with: chatstate migrate"
            ) from error
        raise StoreUnavailable(f"SQLite cannot use its file ({error}). Nothing was written; try again.") from error
