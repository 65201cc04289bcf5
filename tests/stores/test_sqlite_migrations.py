"""Making the table in a SQLite file: a new one, one made by hand, a newer one, and files that are not ours."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chatstate.errors import SchemaMismatch, StoreUnreachable
from chatstate.stores import Store, create_store
from chatstate.stores.contract import saving
from chatstate.stores.sql import migrations
from tests.stores.old_tables import commit_one, load_one, migrated, opened

ID = "session_12345"
STEPS = [migration.name for migration in migrations("sqlite")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "chatstate.db"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A umask that leaves new files open to everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


# Python's own library must not touch a file that the store has open: closing it would drop the store's locks.


def run_sql(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def described(path: Path) -> tuple[list[tuple[str, ...]], int, str]:
    """The schema, the schema's version, and the journal mode of the file."""
    with closing(sqlite3.connect(path)) as connection:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name").fetchall()
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "journal_mode")]
    return schema, pragmas[0], pragmas[1]


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def files_of(path: Path) -> dict[str, bytes]:
    """The database and its journals."""
    return {file.name: file.read_bytes() for file in path.parent.glob(f"{path.name}*") if file.suffix != ".lock"}


async def works(store: Store) -> bool:
    """Whether a session that is saved comes back."""
    session = await commit_one(store, saving(ID))
    return await load_one(store, ID) == session


async def test_an_empty_file_gets_its_table_once(path: Path) -> None:
    write(path, b"")
    async with opened(url_of(path)) as store:
        assert await store.migrate() == STEPS
        assert await store.migrate() == []
        assert await works(store)
    before = described(path)
    async with opened(url_of(path)) as store:
        assert await store.migrate() == []
        assert await works(store)
    assert described(path) == before


@pytest.mark.usefixtures("open_umask")
async def test_the_file_and_its_journals_are_private(path: Path) -> None:
    async with migrated(url_of(path)) as store:
        assert await works(store)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob(f"{path.name}*")}
    assert modes == dict.fromkeys((path.name, f"{path.name}-wal", f"{path.name}-shm"), 0o600)


async def test_the_printed_sql_makes_what_migrate_makes(path: Path, tmp_path: Path) -> None:
    by_hand = tmp_path / "by-hand.db"
    script = create_store(url_of(by_hand)).migration_sql()
    run_sql(by_hand, script)
    with pytest.raises(sqlite3.OperationalError, match="duplicate column"):  # and the second time changes nothing
        run_sql(by_hand, script)
    async with migrated(url_of(path)):
        pass
    assert described(by_hand) == described(path)
    assert described(path)[1:] == (len(STEPS), "wal")
    async with opened(url_of(by_hand)) as store:
        assert await store.migrate() == []
        assert await works(store)


async def test_a_file_of_a_newer_version_is_served(path: Path) -> None:
    """Migrations only add, so the version before goes on working, as it must while servers are replaced one by one."""
    async with migrated(url_of(path)) as store:
        await commit_one(store, saving(ID))
    run_sql(path, "ALTER TABLE chat_state_sessions ADD COLUMN added_later INTEGER; PRAGMA user_version = 99;")
    async with opened(url_of(path)) as store:
        assert await store.migrate() == []
        session = await commit_one(store, saving(ID))
        assert session.version == 2
        assert await load_one(store, ID) == session
    assert described(path)[1] == 99


FOREIGN = {
    "other-tables": "CREATE TABLE theirs (n); INSERT INTO theirs VALUES (1);",
    "other-tables-with-a-version": "CREATE TABLE theirs (n); PRAGMA user_version = 7;",
    "our-name-without-a-version": "CREATE TABLE chat_state_sessions (session_id TEXT PRIMARY KEY);",
    "view-only": "CREATE VIEW theirs AS SELECT 1;",
}


@pytest.mark.parametrize("owner", [True, False], ids=["server", "command"])
@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN.keys())
async def test_another_programs_database_is_refused_and_left_alone(script: str, owner: bool, path: Path) -> None:
    run_sql(path, script)
    before = files_of(path)
    store = create_store(url_of(path), owner=owner)
    try:
        with pytest.raises(SchemaMismatch, match="--store sqlite:///"):
            await store.open()
    finally:
        await store.close()
    assert files_of(path) == before


@pytest.mark.parametrize("content", [b"no database\n" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(content: bytes, path: Path) -> None:
    write(path, content)
    store = create_store(url_of(path))
    with pytest.raises(StoreUnreachable, match="--store sqlite:///") as refused:
        await store.open()
    assert str(path) in refused.value.message
    assert files_of(path) == {path.name: content}
    write(path, b"")  # a file that was refused holds no lock and no thread: the same store opens on a new one
    await store.open()
    assert await store.migrate() == STEPS
    await store.close()
