"""Moving all rows: `chatstate copy`, `backup` and `restore`, each beside what the databases bring for the same rows.

PostgreSQL brings `pg_dump -Fc` and `pg_restore`; SQLite brings `VACUUM INTO`, whose file is synced here as the others
are, and packed where it stands beside a backup. None of them looks at what has arrived; chatstate's time includes its
checksums and its comparison of both sides. Each turn is a command from its start to its end, into a target of its own.
A few of the rows are moved as well, because what a command takes of memory must not grow with them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from select import select
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import psutil
from msgspec import Struct

from bench.apis import user_session_id
from bench.chatstate import sqlite_url
from bench.load import Mix, Spec
from bench.measure import FAILURES, Bench, Database, RunFailed, Stage, changed, ended, resident_mb
from bench.requests import MARK, states
from bench.results import Figures, RowName
from bench.systems import NotRun
from chatstate.errors import StoreError
from chatstate.row import AnyRow, PutRow, SessionRow, VersionRow, VisitRow
from chatstate.stores import Store, create_store
from tests.servers.postgres import database_of

PART = CASE = "moving"
HISTORY = 2
"""How many versions each session has, the current one among them. It has one visit, too."""

ROWS = 2 + HISTORY
"""Of each session."""

MANY, FEW = 2, 8
"""One in so many of the sessions of other loads is moved."""

MOST_GROWTH = 1.25
"""The floor: how many times the memory for the few rows the many may take."""

SAMPLE_SECONDS = 0.02
MOST_SECONDS = 300.0
_BATCH = 1000


def moving(bench: Bench, spec: Spec, rounds: int) -> None:
    """All rows of the part."""
    try:
        with ExitStack() as stack:
            many, few = (
                stack.enter_context(_made(bench, max(1, spec.sessions // share), spec.state_bytes))
                for share in (MANY, FEW)
            )
            movers = [Mover(bench.stage, many, name) for name in WAYS]
            movers += [Mover(bench.stage, few, name) for name in WAYS if name in BESIDE]
            bench.interleave(PART, CASE, movers, lambda _, mix: changed(spec, mix=mix), rounds, Mover.mixes)
    except NotRun as error:
        bench.not_run(PART, str(error))
    except FAILURES as error:
        bench.failed(PART, CASE, error)
    else:
        _compare(bench, many.rows, few.rows)


def _compare(bench: Bench, many: int, few: int) -> None:
    def row(name: str, rows: int) -> RowName:
        return CASE, _name(name, rows), "move"

    for name, beside in BESIDE.items():
        what = name.partition(", ")[0].removeprefix("chatstate ")
        bench.compare(f"{what} : {beside}", row(name, many), row(beside, many), ("rate", "cpu_us", "memory_mb"))
        floors = {"memory_mb": MOST_GROWTH}
        bench.compare(f"{what} of {many:,} : of {few:,}", row(name, many), row(name, few), ("memory_mb",), floors)


def _name(name: str, rows: int) -> str:
    return f"{name}, {rows:,} rows"


# --- The same rows everywhere -----------------------------------------------------------------------------------------


class Made(Struct, frozen=True):
    """The same rows in a SQLite file and in a PostgreSQL database, with a backup and a dump of them."""

    rows: int
    folder: Path
    database: Database

    @property
    def backup(self) -> Path:
        return self.folder / "backup.gz"

    @property
    def dump(self) -> Path:
        return self.folder / "dump"


@contextmanager
def _made(bench: Bench, sessions: int, state_bytes: int) -> Iterator[Made]:
    with ExitStack() as stack:
        target = stack.enter_context(_target(bench.stage))
        database = Database(bench.stage.postgres, target.postgres(migrated=False))
        made = Made(ROWS * sessions, target.folder, database)
        bench.tell(f"{CASE}: making {made.rows:,} rows")
        for url in (sqlite_url(made.folder), made.database.url):
            asyncio.run(put(url, sessions, state_bytes))
        made.database.vacuum()
        for command in (_backup(sqlite_url(made.folder), made.backup), _pg_dump(made, made.dump)):
            run(command, made.folder)
        yield made


async def put(url: str, sessions: int, state_bytes: int) -> None:
    """Put the rows of so many sessions into a store, and make its tables."""
    store = create_store(url, owner=False)
    await store.open()
    try:
        await store.migrate()
        writes = (PutRow(row) for row in rows_of(sessions, state_bytes))
        while batch := list(islice(writes, _BATCH)):
            for outcome in await store.inner.commit(batch):
                if isinstance(outcome, StoreError):
                    raise outcome
    finally:
        await store.close()


def rows_of(sessions: int, state_bytes: int) -> Iterator[AnyRow]:
    """The rows of so many sessions, shelf by shelf."""
    texts = states(state_bytes)

    def state(number: int, version: int) -> str:
        return texts[number % len(texts)].replace(MARK, str(10**11 + HISTORY * number + version))

    numbers = range(sessions)
    versions = ((number, version) for number in numbers for version in range(1, HISTORY + 1))
    return chain(
        (_session(number, state(number, HISTORY)) for number in numbers),
        (_version(number, version, state(number, version)) for number, version in versions),
        (_visit(number) for number in numbers),
    )


def _time(number: int) -> datetime:
    return datetime(2025, 10, 2, 10, tzinfo=UTC) + timedelta(milliseconds=number)


def _uuid(kind: str, number: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"{kind}:{number}"))


def _session(number: int, state: str) -> SessionRow:
    return SessionRow(
        user_session_id=user_session_id(number),
        session_id=_uuid("session", number),
        chat_state=state,
        last_activity=_time(number),
        created_at=_time(number),
        updated_at=_time(number),
        version=HISTORY,
        expires_in=None,
        expires_at=None,
    )


def _version(number: int, version: int, state: str) -> VersionRow:
    return VersionRow(
        user_session_id=user_session_id(number),
        version=version,
        session_id=_uuid("session", number),
        last_activity=_time(number),
        saved_at=_time(number),
        chat_state=state,
    )


def _visit(number: int) -> VisitRow:
    return VisitRow(
        session_id=_uuid("visit", number),
        user_session_id=user_session_id(number),
        user_id=None,
        session_start_time=_time(number),
        session_end_time=_time(number + 300_000),
        total_messages_count=12,
        given_duration_minutes=None,
        session_completed=number % 2 == 0,
        session_outcome="booked" if number % 2 == 0 else None,
        final_step_reached="confirmation" if number % 2 == 0 else "language",
        user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        ip_address="203.0.113.7",
        device_type="desktop",
        created_at=_time(number),
    )


# --- Where a turn puts them -------------------------------------------------------------------------------------------


class Target:
    """What a turn puts the rows into is made when it is asked for, and gone after the turn."""

    def __init__(self, stage: Stage, folder: Path, stack: ExitStack) -> None:
        self.folder, self.file = folder, folder / "file"
        self._stage, self._stack = stage, stack

    def sqlite(self) -> str:
        """The URL of a new store on a file."""
        url = sqlite_url(self.folder)
        asyncio.run(_migrated(create_store(url, owner=False)))
        return url

    def postgres(self, *, migrated: bool = True) -> str:
        """The URL of a new database, by default of a store."""
        server = self._stage.postgres
        url = asyncio.run(server.create_database())
        self._stack.callback(lambda: asyncio.run(server.drop_database(url)))
        if migrated:
            asyncio.run(_migrated(create_store(url, owner=False)))
        return url


@contextmanager
def _target(stage: Stage) -> Iterator[Target]:
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="moving-", dir=stage.folder))
        yield Target(stage, Path(name), stack)


async def _migrated(store: Store) -> None:
    await store.open()
    try:
        await store.migrate()
    finally:
        await store.close()


# --- The commands -----------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A program with its arguments, and what is in its environment beside the path to programs."""

    arguments: Sequence[str | Path]
    environment: dict[str, str]


_VACUUM = """
import os, sys, apsw
apsw.Connection(sys.argv[1]).execute("VACUUM INTO ?", (sys.argv[2],))
os.fsync(os.open(sys.argv[2], os.O_RDONLY))
"""


def _chatstate(*arguments: str | Path, **environment: str) -> Command:
    return Command((sys.executable, "-m", "chatstate", *arguments), environment)


def _backup(url: str, file: Path) -> Command:
    return _chatstate("backup", file, CHATSTATE_STORE=url)


def _restore(file: Path, url: str) -> Command:
    return _chatstate("restore", file, CHATSTATE_STORE=url)


def _copy(source: str, target: str) -> Command:
    return _chatstate("copy", "env:FROM", "env:TO", FROM=source, TO=target)


def _vacuum(made: Made, file: Path) -> Command:
    return Command((sys.executable, "-c", _VACUUM, made.folder / "chatstate.db", file), {})


def _gzip(file: Path) -> Command:
    return Command((sys.executable, "-m", "gzip", file), {})  # its level is that of a backup


def _pg_dump(made: Made, file: Path) -> Command:
    return _postgres(made, "pg_dump", made.database.url, "--format=custom", "--file", file)


def _pg_restore(made: Made, file: Path, url: str) -> Command:
    return _postgres(made, "pg_restore", url, "--exit-on-error", "--dbname", database_of(url), file)


def _postgres(made: Made, program: str, url: str, *arguments: str | Path) -> Command:
    parts = urlsplit(url)
    environment = {
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": str(parts.username),
        "PGPASSWORD": str(parts.password),
        "PGDATABASE": database_of(url),
    }
    return Command((made.database.server.wheel.bin / program, *arguments), environment)


Way = Callable[[Made, Target], Sequence[Command]]
"""The commands that move all rows, one after the other."""

WAYS: dict[str, Way] = {
    "chatstate backup, SQLite": lambda made, to: [_backup(sqlite_url(made.folder), to.file)],
    "chatstate backup, PostgreSQL": lambda made, to: [_backup(made.database.url, to.file)],
    "chatstate restore, SQLite": lambda made, to: [_restore(made.backup, to.sqlite())],
    "chatstate restore, PostgreSQL": lambda made, to: [_restore(made.backup, to.postgres())],
    "chatstate copy, SQLite to PostgreSQL": lambda made, to: [_copy(sqlite_url(made.folder), to.postgres())],
    "chatstate copy, PostgreSQL to SQLite": lambda made, to: [_copy(made.database.url, to.sqlite())],
    "VACUUM INTO": lambda made, to: [_vacuum(made, to.file)],
    "VACUUM INTO and gzip": lambda made, to: [_vacuum(made, to.file), _gzip(to.file)],
    "pg_dump": lambda made, to: [_pg_dump(made, to.file)],
    "pg_restore": lambda made, to: [_pg_restore(made, made.dump, to.postgres(migrated=False))],
    "pg_dump and pg_restore": lambda made, to: [
        _pg_dump(made, to.file),
        _pg_restore(made, to.file, to.postgres(migrated=False)),
    ],
}

BESIDE = {
    "chatstate backup, SQLite": "VACUUM INTO and gzip",
    "chatstate backup, PostgreSQL": "pg_dump",
    "chatstate restore, SQLite": "VACUUM INTO",
    "chatstate restore, PostgreSQL": "pg_restore",
    "chatstate copy, SQLite to PostgreSQL": "pg_dump and pg_restore",
    "chatstate copy, PostgreSQL to SQLite": "pg_dump and pg_restore",
}
"""Ours, and what each of them is compared with."""


# --- A turn -----------------------------------------------------------------------------------------------------------


class Mover:
    """Moves all rows once a turn; see `bench.measure.Contestant`. `rate` counts rows."""

    mixes: Sequence[Mix] = ("move",)

    def __init__(self, stage: Stage, made: Made, name: str) -> None:
        self.name = _name(name, made.rows)
        self._stage, self._made, self._way = stage, made, WAYS[name]

    def measure(self, spec: Spec, number: int = 0) -> Figures:
        """See `bench.measure.Contestant`."""
        database, rows = self._made.database, self._made.rows
        with _target(self._stage) as target:
            commands = self._way(self._made, target)
            database.checkpoint()
            before = database.tree.cpu_seconds()
            used = [run(command, target.folder) for command in commands]
            database_cpu_seconds = database.tree.cpu_seconds() - before
        return Figures(
            round=number,
            rate=rows / sum(one.seconds for one in used),
            requests=rows,
            server_cpu_us=1e6 * sum(one.cpu_seconds for one in used) / rows,
            database_cpu_us=1e6 * database_cpu_seconds / rows,
            memory_mb=max(one.memory_mb for one in used),
        )


class Used(NamedTuple):
    """What a command took: time, CPU of its process, and the most resident memory."""

    seconds: float
    cpu_seconds: float
    memory_mb: float


def run(command: Command, folder: Path) -> Used:
    """Run it to its end; raises `RunFailed` with the end of its output when it fails."""
    began = monotonic()
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    with ended(
        subprocess.Popen(
            [str(argument) for argument in command.arguments],
            cwd=folder,
            env={**environment, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # so that nothing hides in it from select()
            start_new_session=True,
        )
    ) as process:
        output, memory_mb = _watched(process, began + MOST_SECONDS)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunFailed(f"{command.arguments[0]} failed: {output[-1000:].decode(errors='replace')}")
    return Used(monotonic() - began, usage.ru_utime + usage.ru_stime, memory_mb)


def _watched(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, float]:
    """The output up to its end, and the most memory, in MB, until then."""
    assert process.stdout is not None
    output, memory_mb, watched = b"", 0.0, psutil.Process(process.pid)
    while monotonic() < deadline:
        memory_mb = max(memory_mb, resident_mb([watched]))
        if select([process.stdout], [], [], SAMPLE_SECONDS)[0]:
            piece = process.stdout.read(1 << 16)
            if not piece:
                return output, memory_mb
            output += piece
    raise RunFailed(f"it went on for more than {MOST_SECONDS:.0f} s: {output[-1000:].decode(errors='replace')}")
