"""What the SQLite store says and does when its disk fails, fills up or loses power, and when others use its file.

Faults are put between SQLite and the disk, below the store: `Disk` calls a hook before SQLite's own code for files does
its work, and the hook may answer in its place. Nothing of the store or of SQLite is replaced.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, addressof, c_int, c_int64, c_void_p, cast, string_at
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import apsw
import pytest

from chatstate.errors import (
    OutcomeUnknown,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnreachable,
    WriteRefused,
)
from chatstate.model import ABSENT, PRESENT, Save, Session, Write
from chatstate.sessions import Sessions
from chatstate.stores import sqlite
from chatstate.stores.contract import NOW, deleting, saving
from chatstate.stores.sqlite import SQLiteStore
from tests.servers.postgres import unprivileged_account
from tests.stores.chance import seeded

PATIENCE_SECONDS = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chatstate.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with opened(path) as store:
        yield store


@asynccontextmanager
async def opened(path: Path, owner: bool = True) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, owner)
    await store.open()
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


async def commit_one(store: SQLiteStore, write: Write) -> Any:
    """The outcome of one write by itself."""
    (outcome,) = await store.commit([write])
    return outcome


async def pragma(store: SQLiteStore, name: str, value: object) -> None:
    """Set a pragma on the connection that writes."""
    await store._writer.run(lambda connection: connection.execute(f"PRAGMA {name} = {value}").fetchall())


_ALL_STATES = "SELECT user_session_id, chat_state FROM chat_state_sessions"


def rows(path: Path) -> dict[str, str]:
    """All states, read without the store; the file is checked, too."""
    connection = apsw.Connection(str(path))
    try:
        assert connection.pragma("integrity_check") == "ok"
        if not connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
            return {}
        return {str(name): str(state) for name, state in connection.execute(_ALL_STATES)}
    finally:
        connection.close()


# --- Between SQLite and the disk --------------------------------------------------------------------------------------

Hook = Callable[[str, str, tuple[Any, ...]], int | None]
"""Takes the method's name, the file's name and the arguments; a result code is the answer in place of the disk's."""

_IO_METHODS = (
    *("xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock", "xCheckReservedLock"),
    *("xFileControl", "xSectorSize", "xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap"),
    *("xFetch", "xUnfetch"),
)


class _IoMethods(Structure):
    """sqlite3_io_methods, https://www.sqlite.org/c3ref/io_methods.html."""

    _fields_: ClassVar = [("iVersion", c_int), *((name, c_void_p) for name in _IO_METHODS)]


class _Vfs(Structure):
    """The beginning of sqlite3_vfs, https://www.sqlite.org/c3ref/vfs.html."""

    _fields_: ClassVar = [
        *((name, c_int) for name in ("iVersion", "szOsFile", "mxPathname")),
        *((name, c_void_p) for name in ("pNext", "zName", "pAppData", "xOpen", "xDelete")),
    ]


_HOOKED = {
    "xRead": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "xWrite": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "xTruncate": CFUNCTYPE(c_int, c_void_p, c_int64),
    "xSync": CFUNCTYPE(c_int, c_void_p, c_int),
    "xFileSize": CFUNCTYPE(c_int, c_void_p, POINTER(c_int64)),
    "xShmMap": CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, POINTER(c_void_p)),
}
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)

_KEPT: list[object] = []
"""What C code points to must not be collected."""


class Disk:
    """Calls `hook` before SQLite's own code reads, writes, syncs, opens or deletes a file; a context manager.

    apsw can put Python in that place, too, but would raise also those errors that SQLite itself overcomes.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._names: dict[int, str] = {}
        self._methods: dict[int, _IoMethods] = {}
        self._vfs = _default_vfs()
        self._originals = (self._vfs.xOpen, self._vfs.xDelete)
        self._open, self._delete = _OPEN(self._vfs.xOpen), _DELETE(self._vfs.xDelete)

    def __enter__(self) -> None:
        self._vfs.xOpen = _pointer(_OPEN(self._hooked_open))
        self._vfs.xDelete = _pointer(_DELETE(self._hooked_delete))

    def __exit__(self, *error: object) -> None:
        self._vfs.xOpen, self._vfs.xDelete = self._originals

    def _hooked_open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        self._names[file] = os.path.basename(string_at(name).decode()) if name else ""
        methods = c_void_p.from_address(file)
        methods.value = None  # as SQLite wants it when a file could not be opened
        answer = self._hook("xOpen", self._names[file], ())
        if answer is not None:
            return answer
        result = int(self._open(vfs, name, file, flags, out))
        return self._hook_into(file, result)

    def _hook_into(self, file: int, result: int) -> int:
        methods = c_void_p.from_address(file)
        if methods.value:
            methods.value = addressof(self._hooked_methods(methods.value))
        return result

    def _hooked_delete(self, vfs: int, name: int, sync_folder: int) -> int:
        answer = self._hook("xDelete", os.path.basename(string_at(name).decode()), (sync_folder,))
        return int(self._delete(vfs, name, sync_folder)) if answer is None else answer

    def _hooked_methods(self, address: int) -> _IoMethods:
        if address not in self._methods:
            methods = _IoMethods.from_buffer_copy(_IoMethods.from_address(address))
            for name, kind in _HOOKED.items():
                if getattr(methods, name):
                    setattr(methods, name, _pointer(kind(self._hooked(name, kind(getattr(methods, name))))))
            _KEPT.append(methods)
            self._methods[address] = methods
        return self._methods[address]

    def _hooked(self, name: str, original: Callable[..., int]) -> Callable[..., int]:
        def method(file: int, *arguments: Any) -> int:
            answer = self._hook(name, self._names[file], arguments)
            if answer is None:
                return original(file, *arguments)
            if answer and name == "xWrite":
                data, size, offset = arguments
                original(file, data, size // 2, offset)  # a write may fail half-way
            return answer

        return method


def _pointer(function: Any) -> int | None:
    _KEPT.append(function)
    return cast(function, c_void_p).value


def _default_vfs() -> _Vfs:
    pointer = c_void_p()
    connection = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
    connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, addressof(pointer))
    connection.close()
    assert pointer.value
    return _Vfs.from_address(pointer.value)


def no_syncs(method: str, _name: str, _arguments: tuple[Any, ...]) -> int | None:
    """A hook for what does not end in a power cut: faster, and nothing that a process could notice."""
    return apsw.SQLITE_OK if method == "xSync" else None


# --- The disk fails at the Nth call -----------------------------------------------------------------------------------

IO_ERRORS = {
    "xRead": apsw.SQLITE_IOERR_READ,
    "xWrite": apsw.SQLITE_IOERR_WRITE,
    "xTruncate": apsw.SQLITE_IOERR_TRUNCATE,
    "xSync": apsw.SQLITE_IOERR_FSYNC,
    "xFileSize": apsw.SQLITE_IOERR_FSTAT,
    "xShmMap": apsw.SQLITE_IOERR_SHMMAP,
    "xOpen": apsw.SQLITE_CANTOPEN,
    "xDelete": apsw.SQLITE_IOERR_DELETE,
}
FULL = {"xWrite": apsw.SQLITE_FULL, "xShmMap": apsw.SQLITE_IOERR_SHMSIZE}


@dataclass
class Fault:
    """The Nth of the calls fails, and with `lasting` all that follow until it is healed."""

    codes: dict[str, int]
    nth: int
    lasting: bool
    calls: int = 0
    hits: list[str] = field(default_factory=list)
    healed: bool = False

    def __call__(self, method: str, name: str, arguments: tuple[Any, ...]) -> int | None:
        if not self.healed and method in self.codes:
            self.calls += 1
            if self.calls == self.nth or (self.lasting and self.calls > self.nth):
                self.hits.append(f"{method} {name}")
                return self.codes[method]
        return no_syncs(method, name, arguments)


BATCHES: list[list[Write]] = [
    [saving(name, "old") for name in "abcde"],
    [saving("b", "updated", PRESENT)],
    [saving("f", "inserted", ABSENT)],
    [deleting("c")],
    [saving("g", "x" * 30_000), saving("a", "mixed", PRESENT), deleting("d"), saving("h", "", ABSENT)],
    [saving("g", "y" * 9_000), saving("e", None, PRESENT)],
    [deleting("g"), saving("a", "last")],
]


def after(states: dict[str, str], batch: Sequence[Write]) -> dict[str, str]:
    """The states when a batch that meets what it expects has been carried out."""
    states = dict(states)
    for write in batch:
        if not isinstance(write, Save):
            del states[write.user_session_id]
        elif write.chat_state is not None:
            states[write.user_session_id] = write.chat_state
    return states


class Walk:
    """One walk through all that a store does, during which the disk fails; every answer is compared with the truth."""

    def __init__(self, path: Path, fault: Fault) -> None:
        self.path = path
        self.fault = fault
        self.store = SQLiteStore(path)
        self.states: dict[str, str] = {}
        self.errors: list[Exception] = []

    async def run(self) -> None:
        await self.attempt(StoreUnreachable, self.store.open)
        await pragma(self.store, "wal_autocheckpoint", 6)  # so that checkpoints fail, too
        await self.attempt((StoreUnavailable, OutcomeUnknown), self.store.migrate)
        for batch in BATCHES:
            await self.commit(batch)
            await self.attempt(StoreUnavailable, self.load)
        await self.attempt(StoreUnavailable, self.store.status)
        await self.store.close()
        self.fault.healed = True
        assert rows(self.path) == self.states

    async def attempt(self, expected: Any, call: Callable[[], Any]) -> None:
        """After an error, which must be of the expected kind, the fault goes away and the same call works."""
        try:
            await call()
        except expected as error:
            self.note(error)
            await call()

    async def commit(self, batch: Sequence[Write]) -> None:
        before, self.states = self.states, after(self.states, batch)
        try:
            outcomes = await self.store.commit(batch)
        except StoreUnavailable as error:
            self.note(error)
            assert rows(self.path) == before
            outcomes = await self.store.commit(batch)
        except OutcomeUnknown as error:
            self.note(error)
            if rows(self.path) == self.states:
                return
            assert rows(self.path) == before
            outcomes = await self.store.commit(batch)
        assert not any(isinstance(outcome, StoreError) for outcome in outcomes)

    async def load(self) -> None:
        sessions = await self.store.load(list("abcdefgh"), NOW)
        assert {name: session.chat_state for name, session in sessions.items()} == self.states

    def note(self, error: Exception) -> None:
        assert self.fault.hits, error
        self.fault.healed = True
        self.errors.append(error)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("codes", [IO_ERRORS, FULL], ids=["io-error", "full"])
async def test_whichever_call_of_the_disk_fails_every_answer_is_true(
    codes: dict[str, int], lasting: bool, tmp_path: Path
) -> None:
    errors: set[type[Exception]] = set()
    hits: set[str] = set()
    overcome = 0
    for nth in range(1, 1000):
        fault = Fault(codes, nth, lasting)
        folder = tmp_path / str(nth)
        folder.mkdir()
        with Disk(fault):
            walk = Walk(folder / "chatstate.db", fault)
            try:
                await walk.run()
            except BaseException:
                sys.stdout.write(f"the fault was at call {nth}: {fault.hits}, and led to {walk.errors!r}\n")
                raise
            finally:
                fault.healed = True
                await walk.store.close()
        if not fault.hits:
            break
        errors |= {type(error) for error in walk.errors}
        overcome += not walk.errors
        hits |= {hit.split()[0] for hit in fault.hits}
    assert nth > 30
    assert hits >= codes.keys() - {"xTruncate", "xDelete", "xFileSize"}
    assert overcome  # by SQLite itself, as when a checkpoint fails after the commit
    wanted = {StoreFull} if codes is FULL else {StoreUnavailable, OutcomeUnknown}
    assert errors == wanted | {StoreUnreachable}


# --- The power fails --------------------------------------------------------------------------------------------------


class Recorder:
    """A hook that writes down everything that reaches the disk, together with what the store was told and said."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def __call__(self, method: str, name: str, arguments: tuple[Any, ...]) -> int | None:
        if method == "xWrite":
            data, size, offset = arguments
            self.log.append(("write", name, offset, string_at(data, size)))
        elif method == "xTruncate":
            self.log.append(("truncate", name, arguments[0]))
        elif method == "xDelete":
            self.log.append(("delete", name))
        elif method == "xSync":
            self.log.append(("sync", name))
            return apsw.SQLITE_OK
        return None


class File:
    """What a disk keeps of one file: what was synced surely, and of the rest whatever chance wants."""

    def __init__(self) -> None:
        self.is_new = True
        self._kept: bytearray | None = None
        self._unsynced: list[tuple[Any, ...]] = []

    def change(self, event: tuple[Any, ...]) -> None:
        self._unsynced.append(event)
        self.is_new |= event[0] == "delete"

    def sync(self) -> None:
        self._keep(self._unsynced)
        self._unsynced = []
        self.is_new = False

    def sync_folder(self) -> None:
        """From here on a deletion is sure."""
        count = max((number for number, event in enumerate(self._unsynced, 1) if event[0] == "delete"), default=0)
        self._keep(self._unsynced[:count])
        self._unsynced = self._unsynced[count:]

    def lose_power(self, chance: random.Random) -> bytearray | None:
        """Of what was not synced, nothing, all, the beginning or anything is there, and some only in part."""
        survivors = self._unsynced
        match chance.randrange(4):
            case 0:
                survivors = []
            case 1:
                survivors = survivors[: chance.randrange(len(survivors) + 1)]
            case 2:
                survivors = [event for event in survivors if chance.random() < 0.5]
        self._keep([torn(event, chance) for event in survivors])
        return self._kept

    def _keep(self, events: Sequence[tuple[Any, ...]]) -> None:
        for event in events:
            if event[0] == "delete":
                self._kept = None
                continue
            content = self._kept = bytearray() if self._kept is None else self._kept
            position = event[2]
            content.extend(bytes(max(0, position - len(content))))
            if event[0] == "write":
                content[position : position + len(event[3])] = event[3]
            else:
                del content[position:]


def torn(event: tuple[Any, ...], chance: random.Random) -> tuple[Any, ...]:
    """Perhaps only the beginning of a write."""
    if event[0] == "write" and chance.random() < 0.2:
        return (*event[:3], event[3][: chance.randrange(len(event[3]))])
    return event


def cut_power(log: Sequence[tuple[Any, ...]], folder: Path, chance: random.Random) -> None:
    """The files in the folder as they are when the power fails after the last event of the log."""
    files: dict[str, File] = {}
    for event in log:
        if event[0] in ("begun", "acknowledged"):
            continue
        file = files.setdefault(event[1], File())
        if event[0] != "sync":
            file.change(event)
        else:
            if file.is_new and event[1].endswith(("-wal", "-journal")):
                for other in files.values():  # SQLite syncs their folder together with a journal that it has just made
                    other.sync_folder()
            file.sync()
    for name, file in files.items():
        content = file.lose_power(chance)
        if content is not None:
            (folder / name).write_bytes(content)


async def life(path: Path, chance: random.Random, synced: bool) -> tuple[list[tuple[Any, ...]], list[dict[str, str]]]:
    """A store's life from its first start to its end: what reached the disk, and the states after each batch."""
    recorder = Recorder()
    history: list[dict[str, str]] = [{}]
    with Disk(recorder):
        store = SQLiteStore(path)
        await store.open()
        if not synced:
            await pragma(store, "synchronous", "normal")
        await pragma(store, "wal_autocheckpoint", 12)
        await store.migrate()
        for number in range(40):
            batch = a_batch(history[-1], number, chance)
            recorder.log.append(("begun", number + 1))
            await store.commit(batch)
            recorder.log.append(("acknowledged", number + 1))
            history.append(after(history[-1], batch))
        await store.close()
    return recorder.log, history


def a_batch(states: dict[str, str], number: int, chance: random.Random) -> list[Write]:
    batch: list[Write] = []
    for name in chance.sample("abcdefghij", chance.randint(1, 5)):
        state = f"{number} " + name * chance.choice((10, 500, 9_000))
        if name not in states:
            batch.append(saving(name, state, ABSENT))
        elif chance.random() < 0.3:
            batch.append(deleting(name))
        else:
            batch.append(saving(name, state))
    return batch


async def lost_by_power_cuts(tmp_path: Path, lives: int, cuts: int, synced: bool = True) -> int:
    """After how many cuts something was lost that had been acknowledged, or something was there only in part."""
    chance = seeded()
    lost = 0
    for number in range(lives):
        folder = tmp_path / str(number)
        folder.mkdir()
        log, history = await life(folder / "chatstate.db", chance, synced)
        for cut in range(cuts):
            after_cut = folder / str(cut)
            after_cut.mkdir()
            events = log[: chance.randint(0, len(log))]
            cut_power(events, after_cut, chance)
            begun = max((event[1] for event in events if event[0] == "begun"), default=0)
            acknowledged = max((event[1] for event in events if event[0] == "acknowledged"), default=0)
            states = await states_after_start(after_cut / "chatstate.db")
            lost += states not in (history[acknowledged], history[begun])
    return lost


async def states_after_start(path: Path) -> dict[str, str]:
    """What a store finds that starts on the file as it is; it can write, and the file is sound."""
    with Disk(no_syncs):
        async with opened(path) as store:
            sessions = await store.load(list("abcdefghij"), NOW)
            assert isinstance(await commit_one(store, saving("works")), Session)
    assert "works" in rows(path)
    return {name: session.chat_state for name, session in sessions.items()}


async def test_no_power_cut_loses_what_was_acknowledged(tmp_path: Path) -> None:
    assert await lost_by_power_cuts(tmp_path, lives=5, cuts=100) == 0


async def test_power_cuts_do_lose_what_was_acknowledged_when_commits_are_not_synced(tmp_path: Path) -> None:
    """So the test above can fail."""
    assert await lost_by_power_cuts(tmp_path, lives=2, cuts=50, synced=False) > 0


async def test_the_store_syncs_its_commits_and_never_waits_for_a_checkpoint_to_do_so(store: SQLiteStore) -> None:
    for worker in (store._writer, store._reader):
        assert await worker.run(lambda connection: connection.pragma("synchronous")) == 2
        assert await worker.run(lambda connection: connection.pragma("journal_mode")) == "wal"


# --- The disk is full -------------------------------------------------------------------------------------------------


async def save_until_full(sessions: Sessions) -> dict[str, str]:
    """What was saved until `StoreFull` came."""
    written: dict[str, str] = {}
    for number in range(100):
        try:
            await sessions.save(str(number), "x" * 4000)
        except StoreFull:
            return written
        written[str(number)] = "x" * 4000
    raise AssertionError("the database was never full")


async def test_a_full_database_takes_no_more_serves_what_it_has_and_recovers(store: SQLiteStore, path: Path) -> None:
    sessions = Sessions(store)
    await sessions.save("before", "kept")
    ((pages,),) = await store._writer.run(lambda connection: connection.execute("PRAGMA page_count").fetchall())
    await pragma(store, "max_page_count", pages + 10)
    written = {"before": "kept", **await save_until_full(sessions)}
    assert 1 < len(written) < 12
    answers = await asyncio.gather(*(sessions.save(name, "x" * 20_000) for name in "xyz"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreFull] * 3
    assert rows(path) == written
    assert (await sessions.load("before")).chat_state == "kept"
    await store.status()
    await sessions.delete("0")
    await pragma(store, "max_page_count", 10_000)
    await sessions.save("after", "x" * 20_000)
    assert set(rows(path)) == {*written, "after"} - {"0"}


async def test_a_row_that_the_file_refuses_fails_alone(store: SQLiteStore, path: Path) -> None:
    await store._writer.run(
        lambda connection: connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON chat_state_sessions WHEN NEW.chat_state = 'bad' "
            "BEGIN SELECT raise(ABORT, 'not this one'); END"
        )
    )
    sessions = Sessions(store)
    texts = {"a": "good", "b": "bad", "c": "good"}
    answers = await asyncio.gather(*(sessions.save(*pair) for pair in texts.items()), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Session, WriteRefused, Session]
    assert rows(path) == {"a": "good", "c": "good"}


# --- Other processes --------------------------------------------------------------------------------------------------

_HOLDER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("ready", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("done", flush=True)
"""

_OWNER = """
import asyncio, sys
from pathlib import Path
from chatstate.stores.sqlite import SQLiteStore
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    await store.open()
    await store.migrate()
    print("ready", flush=True)
    sys.stdin.readline()
    await store.close()
    print("done", flush=True)
asyncio.run(main())
"""

_WRITER = """
import asyncio, sys
from pathlib import Path
from chatstate.stores.contract import NOW, deleting, saving
from chatstate.stores.sqlite import SQLiteStore
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    await store.open()
    await store.migrate()
    print("ready", flush=True)
    number = int(sys.argv[2])
    while True:
        number += 1
        print("begun", number, flush=True)
        await store.commit([saving(name, f"{number} " + name * 3000) for name in "abc"])
        print("acknowledged", number, flush=True)
asyncio.run(main())
"""

_REFUSED = """
import asyncio, os, sys
from pathlib import Path
from chatstate.errors import StoreUnreachable
from chatstate.stores.sqlite import SQLiteStore
if sys.argv[2] != "None":
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[2]))
try:
    asyncio.run(SQLiteStore(Path(sys.argv[1])).open())
except StoreUnreachable as error:
    print(error.message)
"""


class Program:
    """A Python program in a process of its own, from its line `ready` on."""

    def __init__(self, script: str, *arguments: object) -> None:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._output.readline() == "ready\n"

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout
        return self._process.stdout

    def read_line(self) -> str:
        return self._output.readline()

    def finish(self) -> None:
        """Let it go on, to its end."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert (self._rest(), self._process.returncode) == (["done\n"], 0)

    def kill(self) -> list[str]:
        """SIGKILL; the whole lines that it still wrote."""
        self._process.kill()
        return [line for line in self._rest() if line.endswith("\n")]

    def _rest(self) -> list[str]:
        # Not with `communicate`, which would not see what has been read ahead.
        with self._process:
            return self._output.readlines()


@contextmanager
def program(script: str, *arguments: object) -> Iterator[Program]:
    running = Program(script, *arguments)
    try:
        yield running
    finally:
        if running._process.returncode is None:
            running.kill()


async def test_a_long_second_writer_makes_the_store_busy_and_nothing_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 1)
    async with opened(path) as store:
        await store.commit([saving("a", "old")])
        with program(_HOLDER, path) as holder:
            with pytest.raises(StoreBusy, match="Another program"):
                await store.commit([saving("a", "new"), saving("b", "new")])
            assert (await store.load(["a"], NOW))["a"].chat_state == "old"
            holder.finish()
        assert rows(path) == {"a": "old"}
        assert (await commit_one(store, saving("a", "new"))).version == 2


async def test_a_short_second_writer_only_delays(store: SQLiteStore) -> None:
    await store.commit([saving("a", "old")])
    with program(_HOLDER, store._path) as holder:
        task = asyncio.create_task(commit_one(store, saving("a", "new")))
        for _ in range(3):
            assert (await store.load(["a"], NOW))["a"].chat_state == "old"
        assert not task.done()
        await asyncio.to_thread(holder.finish)
        assert (await task).version == 2


async def test_a_file_in_use_has_one_owner(store: SQLiteStore, path: Path) -> None:
    """Also within one process; a command is no owner, and gets in."""
    with pytest.raises(StoreUnreachable, match="Another chatstate server") as caught:
        await SQLiteStore(path).open()
    assert str(path) in caught.value.message
    assert "--store sqlite:///" in caught.value.message
    async with opened(path, owner=False) as command:
        await command.commit([saving("a")])
    assert set(await store.load(["a"], NOW)) == {"a"}


async def test_an_owner_in_another_process_is_respected_until_it_ends(path: Path) -> None:
    store = SQLiteStore(path)
    for end in (Program.finish, Program.kill):
        with program(_OWNER, path) as owner:
            with pytest.raises(StoreUnreachable, match="Another chatstate server"):
                await store.open()
            with pytest.raises(StoreUnavailable):
                await store.load(["a"], NOW)
            end(owner)
        await store.open()
        assert isinstance(await commit_one(store, saving("a")), Session)
        await store.close()


async def test_a_killed_writer_has_kept_what_it_acknowledged(path: Path) -> None:
    chance = seeded()
    number = 0
    for _ in range(10):
        with program(_WRITER, path, number) as writer:
            lines = [writer.read_line() for _ in range(chance.randint(1, 60))] + writer.kill()
        said = [line.split() for line in lines]
        begun = max(int(words[1]) for words in said if words[0] == "begun")
        acknowledged = max((int(words[1]) for words in said if words[0] == "acknowledged"), default=number)
        async with opened(path) as store:
            sessions = await store.load(list("abc"), NOW)
        numbers = {int(session.chat_state.split()[0]) for session in sessions.values()} or {0}
        assert numbers in ({acknowledged}, {begun})
        (number,) = numbers
    assert rows(path)


async def test_an_orderly_end_leaves_one_file(tmp_path: Path, path: Path) -> None:
    async with opened(path) as store:
        await store.commit([saving("a", "x" * 10_000)])
        assert set(os.listdir(tmp_path)) > {"chatstate.db", "chatstate.db-wal"}
    assert set(os.listdir(tmp_path)) <= {"chatstate.db", "chatstate.db.lock"}
    assert rows(path) == {"a": "x" * 10_000}


# --- Files that cannot be used ----------------------------------------------------------------------------------------


async def cannot_open(path: Path, *parts: str) -> None:
    """Opening fails with a message that has these parts, and leaves the store as it was."""
    store = SQLiteStore(path)
    with pytest.raises(StoreUnreachable) as caught:
        await store.open()
    for part in (str(path), *parts):
        assert part in caught.value.message
    with pytest.raises(StoreUnavailable):
        await store.load(["a"], NOW)
    await store.close()


@pytest.mark.parametrize("owner", [True, False])
async def test_a_folder_that_does_not_exist_is_not_made_up(tmp_path: Path, owner: bool) -> None:
    folder = tmp_path / "mistyped"
    store = SQLiteStore(folder / "chatstate.db", owner)
    with pytest.raises(StoreUnreachable, match=f"mkdir -p {folder}"):
        await store.open()
    assert not folder.exists()
    folder.mkdir()
    await store.open()
    await store.close()


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    await cannot_open(tmp_path, "Is a directory", "--store sqlite:///")


async def test_a_file_below_a_file_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await cannot_open(tmp_path / "file" / "chatstate.db", str(tmp_path / "file"))


@pytest.mark.parametrize("forbidden", ["folder", "file"])
def test_a_place_that_may_not_be_written_to_is_explained(forbidden: str) -> None:
    account = unprivileged_account()
    folder = account.new_folder("chatstate-read-only-")
    path = folder / "chatstate.db"
    try:
        path.touch()
        account.give(path)
        (folder if forbidden == "folder" else path).chmod(0o555 if forbidden == "folder" else 0o444)
        command = [sys.executable, "-c", _REFUSED, path, account.uid, account.gid]
        message = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    finally:
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert f"Cannot use {path} as the database: Permission denied" in message
    assert "--store sqlite:///" in message


async def test_a_file_without_room_for_shared_memory_cannot_be_opened_until_there_is(path: Path) -> None:
    def no_memory(method: str, _name: str, _arguments: tuple[Any, ...]) -> int | None:
        return apsw.SQLITE_IOERR_SHMSIZE if method == "xShmMap" else None

    with Disk(no_memory):
        await cannot_open(path, "--store sqlite:///")
    async with opened(path) as store:
        await store.commit([saving("a")])


async def test_a_damaged_page_is_an_error_with_a_repair_and_never_an_empty_answer(path: Path) -> None:
    names = [str(number) for number in range(40)]
    async with opened(path) as store:
        await store.commit([saving(name, "x" * 1000) for name in names])
    damage(path)
    async with opened(path) as store:
        for call in (store.load(names, NOW), store.load(["absent"], NOW), store.status(), store.commit([saving("7")])):
            with pytest.raises(StoreUnavailable, match=r"damaged.*backup") as caught:
                await call
            assert str(path) in caught.value.message


def damage(path: Path) -> None:
    """Every page but those that describe the tables begins with nonsense."""
    content = bytearray(path.read_bytes())
    connection = apsw.Connection(str(path))
    described = {row[0] for row in connection.execute("SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'")}
    connection.close()
    for page in range(0, len(content), 4096):
        if page // 4096 + 1 in described:
            continue
        content[page : page + 16] = b"\xff" * 16
    path.write_bytes(content)
