"""Copies between real stores of each kind: whole, exact, resumable, and never over what somebody may still want."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from chatstate import create_app
from chatstate.copy_mark import check_is_whole
from chatstate.copying import Copied, Copying, Pages, Progress, StoreSource, counts
from chatstate.encryption import KeyRing, new_key
from chatstate.errors import PrivilegeMissing, StartError, StateUnreadable, StoreError, WriteRefused
from chatstate.model import Delete
from chatstate.reencryption import Reencryption
from chatstate.row import SHELVES, AnyRow, DropRow, PutRow, RowShelf, SessionRow
from chatstate.stores import Store, create_store
from chatstate.stores.base import all_readable
from chatstate.stores.postgres_rows import _listing
from chatstate.stores.postgres_schema import Schema
from tests.copying.conftest import NOW, Urls, Writer, creating, everything, opened
from tests.stores.old_tables import OLD_ROWS, PRISMA_TEXT, connected, old_database
from tests.stores.test_postgres_plans import plan_of_statement

SEED = int(os.environ.get("CHATSTATE_TEST_COPY_SEED") or secrets.randbits(32))
MERGES = int(os.environ.get("CHATSTATE_TEST_MERGES") or 40)


def copying(stores: Sequence[Store], progress: Progress | None = None, rows: int = 7) -> Copying:
    """A copy from the first into the second, in pages that are small, so that there are many."""
    return Copying(StoreSource(stores[0], "the source", rows), stores[1], lambda: NOW, progress, rows)


def changes(copied: Copied) -> int:
    return sum(compared.put + compared.dropped for compared in copied.shelves)


async def test_a_copy_has_everything_as_it_was(stores: list[Store]) -> None:
    source, target = stores
    await Writer(source, SEED).write(400)
    copied = await copying(stores).run()
    assert (copied.is_verified, copied.passes, changes(copied)) == (True, 2, 0)
    found = await everything(source)
    assert await everything(target) == found
    assert all(found.values()), "nothing was tested on an empty shelf"
    assert {compared.shelf: compared.target.rows for compared in copied.shelves} == {
        shelf: len(rows) for shelf, rows in found.items()
    }
    ids = [cast(SessionRow, row).user_session_id for row in found["sessions"]]
    assert await target.load(ids, NOW) == await source.load(ids, NOW)
    again = await copying(stores).run()
    assert (again.is_verified, again.passes) == (True, 1)


async def test_a_copy_is_made_beside_somebody_who_writes(stores: list[Store], urls: Urls) -> None:
    async with opened(urls[0]) as others:
        writer = Writer(others[0], SEED)
        await writer.write(300)
        before = writer.written
        async with writer.at_work():
            await copying(stores).run()
        assert writer.written > before
    last = await copying(stores).run()
    assert last.is_verified
    assert await everything(stores[1]) == await everything(stores[0])


async def test_the_changes_since_are_taken_and_no_more(stores: list[Store]) -> None:
    """Also what was deleted, created anew, and changed back; each in one pass, and then one to see that it holds."""
    source = stores[0]
    writer = Writer(source, SEED)
    await writer.write(300)
    await copying(stores).run()
    await source.commit([creating("new")])
    (row, *_) = (await everything(source))["sessions"]
    await source.commit([Delete(user_session_id=str(row.place[0]), now=NOW)])
    await source.commit([creating(str(row.place[0]))])
    passes = _Passes()
    copied = await copying(stores, passes).run()
    assert (copied.is_verified, copied.passes) == (True, 2)
    assert passes.put["sessions"] == 2
    await writer.write(100)
    assert (await copying(stores).run()).is_verified
    assert await everything(stores[1]) == await everything(source)


class _Stopped(Exception):
    """Somebody has pressed Ctrl+C."""


class _Passes(Progress):
    """Adds up what was put, and stops after so many rows of a shelf if it is told to."""

    def __init__(self, stop: tuple[RowShelf, int] | None = None) -> None:
        self.put: dict[str, int] = dict.fromkeys(SHELVES, 0)
        self._stop = stop
        self._seen = 0

    def seen(self, shelf: RowShelf, rows: int) -> None:
        if self._stop and shelf == self._stop[0]:
            self._seen += rows
            if self._seen >= self._stop[1]:
                raise _Stopped

    def done(self, number: int, compared: Any) -> None:
        self.put[compared.shelf] += compared.put


@pytest.mark.parametrize("shelf", ["sessions", "inbox"])
async def test_what_was_interrupted_goes_on(shelf: RowShelf, stores: list[Store]) -> None:
    source, target = stores
    await Writer(source, SEED).write(300)
    sizes = await counts(source)
    with pytest.raises(_Stopped):
        await copying(stores, _Passes((shelf, sizes[shelf] - 3)), rows=2).run()
    there = await counts(target)
    assert 0 < there[shelf] < sizes[shelf]
    with pytest.raises(StartError, match="not finished"):
        await check_is_whole(target, NOW)
    passes = _Passes()
    assert (await copying(stores, passes).run()).is_verified
    assert passes.put[shelf] == sizes[shelf] - there[shelf]
    await check_is_whole(target, NOW)
    assert await everything(target) == await everything(source)


async def test_a_source_that_never_rests_is_told_of(tmp_path: Path) -> None:
    class Restless(StoreSource):
        @asynccontextmanager
        async def reading(self) -> AsyncIterator[Pages]:
            await source.commit([creating(secrets.token_hex(8))])
            async with super().reading() as pages:
                yield pages

    async with opened(f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db") as (source, target):
        copied = await Copying(Restless(source, "restless"), target, lambda: NOW).run()
        assert (copied.is_verified, copied.passes, copied.changes) == (False, 4, 1)
        with pytest.raises(StartError, match="not finished"):
            await check_is_whole(target, NOW)


# --- What is not the right target -------------------------------------------------------------------------------------


async def test_a_target_that_is_in_use_is_left_alone(stores: list[Store]) -> None:
    source, target = stores
    await Writer(source, SEED).write(50)
    await target.commit([creating("theirs")])
    before = await everything(target)
    with pytest.raises(StartError, match="holds rows already"):
        await copying(stores).run()
    with pytest.raises(StartError, match="holds rows already"):
        await copying([target, source]).run()
    assert await everything(target) == before
    assert (await copying(stores).run(overwrite=True)).is_verified
    assert await everything(target) == await everything(source)


async def test_a_finished_copy_that_was_used_is_left_alone(stores: list[Store]) -> None:
    """The same command once more, weeks later, must not take back what servers have written since."""
    source, target = stores
    await Writer(source, SEED).write(50)
    await copying(stores).run()
    await target.commit([creating("written later")])
    with pytest.raises(StartError, match="has changed since"):
        await copying(stores).run()
    assert "written later" in await target.load(["written later"], NOW)


async def test_a_copy_of_another_source_is_left_alone(stores: list[Store], tmp_path: Path) -> None:
    await Writer(stores[0], SEED).write(50)
    await copying(stores).run()
    async with opened(f"sqlite:///{tmp_path}/other.db") as (other,):
        with pytest.raises(StartError, match="holds a copy of the source, and this would be one of another"):
            await Copying(StoreSource(other, "another"), stores[1], lambda: NOW).run()


async def test_no_server_works_on_half_a_copy(store: Store, store_url: str, tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/full.db") as (full,):
        await Writer(full, SEED).write(100)
        with pytest.raises(_Stopped):
            await copying([full, store], _Passes(("sessions", 5)), rows=2).run()
    app = create_app(create_store(store_url, owner=False))
    with pytest.raises(StartError, match="not finished"):
        async with app.lifespan():
            pass


async def test_a_mark_is_in_no_copy(tmp_path: Path) -> None:
    first, second, third = (f"sqlite:///{tmp_path}/{name}.db" for name in "abc")
    async with opened(first, second, third) as (one, two, three):
        await one.commit([creating("x")])
        await copying([one, two]).run()
        await copying([two, three]).run()
        assert await everything(three) == await everything(one)
        assert (await copying([one, two]).run()).is_verified, "and reading it has not changed it"


# --- What lies there in its own way -----------------------------------------------------------------------------------


async def test_what_is_encrypted_stays_so_and_needs_no_key(urls: Urls) -> None:
    ring = KeyRing.parse(new_key())
    async with opened(*urls, key_ring=ring) as (source, target):
        await source.commit([creating("secret", "the state")])
        async with opened(*urls) as plain:
            assert (await copying(plain).run()).is_verified
            (row,) = (await everything(plain[1]))["sessions"]
            assert cast(SessionRow, row).chat_state.startswith(ring.head)
        assert all_readable(await target.load(["secret"], NOW))["secret"].chat_state == "the state"
    async with opened(urls[1], key_ring=KeyRing()) as (blind,):
        assert isinstance((await blind.load(["secret"], NOW))["secret"], StateUnreadable)


async def test_a_copy_that_was_encrypted_afterwards_is_copied_on_without_a_key(stores: list[Store]) -> None:
    """As `docs/howto/move-and-back-up.md` has it. The mark is read by those who have no keys."""
    source, target = stores
    await source.commit([creating("secret", "the state")])
    await copying(stores).run()
    await Reencryption(target, KeyRing(), KeyRing.parse(new_key())).run()
    await check_is_whole(target, NOW)
    with pytest.raises(StartError, match="has changed since"):
        await copying(stores).run()


async def test_a_table_of_another_program_is_copied_and_takes_only_what_it_can_keep(
    postgres_url: str, tmp_path: Path
) -> None:
    """Prisma's: its times have milliseconds, its ids are text, and they are sorted in the database's own order."""
    async with old_database(PRISMA_TEXT, postgres_url) as old:
        for name in ("B", "a", "Z", "É", "b"):
            await old.insert(name, "state")
        async with opened(postgres_url, f"sqlite:///{tmp_path}/chatstate.db") as (theirs, ours):
            assert (await copying([theirs, ours], rows=2).run()).is_verified
            sessions = (await everything(ours))["sessions"]
            assert {row.place[0] for row in sessions} == OLD_ROWS.keys() | {"B", "a", "Z", "É", "b"}
            await theirs.commit([Delete(user_session_id=str(row.place[0]), now=NOW) for row in sessions])
            assert (await copying([ours, theirs]).run()).is_verified, "what came from there fits there"
            await ours.commit([creating("finer")])
            with pytest.raises(WriteRefused, match=r"'finer' of sessions .* keeps last_activity as .*timestamptz"):
                await copying([ours, theirs]).run()


async def test_a_session_that_another_program_gave_to_another_user_is_copied(postgres_url: str, tmp_path: Path) -> None:
    """Its session_id still lies in the target, in the row of the former user, which goes only later."""
    async with opened(f"sqlite:///{tmp_path}/a.db", postgres_url) as stores:
        await stores[0].commit([creating(name) for name in ("one", "other", "visitor")])
        await copying(stores, rows=1).run()
        one, other, visitor = cast(list[SessionRow], (await everything(stores[0]))["sessions"])
        swapped = [replace(one, session_id=other.session_id), replace(other, session_id=one.session_id)]
        moved = replace(visitor, user_session_id="customer")
        rows = [PutRow(row) for row in (*swapped, moved)]
        await stores[0].commit([DropRow("sessions", visitor.place), *rows])
        assert (await copying(stores, rows=1).run()).is_verified
        assert await everything(stores[1]) == await everything(stores[0])


async def test_an_index_sorts_a_table_of_another_program(postgres_url: str) -> None:
    """`docs/howto/move-and-back-up.md` says so."""
    async with old_database(PRISMA_TEXT, postgres_url) as old, opened(postgres_url):
        await old.connection.execute('CREATE INDEX ON chat_state_sessions (user_session_id COLLATE "C")')
        schema = Schema("public", "text", sorts_bytes=False)
        plan = await plan_of_statement(old.connection, _listing(schema, "sessions", False), "10, 100, 'a'")
    assert not [line for line in plan if "Sort" in line or "Seq Scan" in line], plan


async def test_a_user_without_rights_on_numbers_is_told_which(postgres_url: str, tmp_path: Path) -> None:
    """New messages must come after those that were copied."""
    name, password = f"copier_{secrets.token_hex(4)}", secrets.token_hex(8)
    parts = urlsplit(postgres_url)
    url = parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
    async with opened(f"sqlite:///{tmp_path}/a.db", postgres_url) as (source, _), connected(postgres_url) as owner:
        await owner.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{password}'; GRANT USAGE ON SCHEMA chatstate TO {name};"
            f"GRANT ALL ON chat_state_sessions TO {name}; GRANT ALL ON ALL TABLES IN SCHEMA chatstate TO {name}"
        )
        await Writer(source, SEED, ids=5).write(200)
        async with opened(url) as (target,):
            with pytest.raises(PrivilegeMissing, match="GRANT it ALL ON ALL SEQUENCES IN SCHEMA chatstate"):
                await copying([source, target]).run()
            await owner.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA chatstate TO {name}")
            assert (await copying([source, target]).run()).is_verified
            assert await everything(target) == await everything(source)
        await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


_AFTER = {
    "sessions": "'a'",
    "versions": "'a', 1",
    "remembered": "'a', 'b', 'c'",
    "visits": "'00000000-0000-0000-0000-000000000000'",
    "records": "'a', 'b'",
    "inbox": "'a'",
    "outbox": "'a'",
}


@pytest.mark.parametrize("shelf", SHELVES)
async def test_no_page_reads_a_whole_table(shelf: RowShelf, postgres_url: str) -> None:
    async with old_connection(postgres_url) as connection:
        statement = _listing(Schema("public"), shelf, False)
        plan = await plan_of_statement(connection, statement, f"10, 100, {_AFTER[shelf]}")
    assert not [line for line in plan if "Seq Scan" in line or "Bitmap" in line], plan


@asynccontextmanager
async def old_connection(url: str) -> AsyncIterator[Any]:
    async with opened(url), connected(url) as connection:
        yield connection


# --- The comparison ---------------------------------------------------------------------------------------------------


async def test_any_two_sides_become_one(tmp_path: Path) -> None:
    """Random rows on both sides, some of them the same, in pages of random sizes."""
    print(f"CHATSTATE_TEST_COPY_SEED={SEED}")  # noqa: T201
    chance = random.Random(SEED)
    async with opened(f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db") as stores:
        for number in range(MERGES):
            names = [f"{number} {name}" for name in range(chance.randrange(30))]
            sides = [[_row(name, "same") for name in names if chance.random() < 0.7] for _ in stores]
            sides[0] = [replace(row, version=2) if chance.random() < 0.3 else row for row in sides[0]]
            await stores[0].commit([PutRow(row) for row in sides[0]])
            await stores[1].commit([PutRow(row) for row in sides[1]])
            copied = await copying(stores, rows=chance.randrange(1, 9)).run(overwrite=True)
            assert copied.is_verified
            assert copied.passes <= 2
            assert await everything(stores[1]) == await everything(stores[0])


def _row(name: str, state: str) -> SessionRow:
    times = {"last_activity": NOW, "created_at": NOW, "updated_at": NOW}
    names = {"user_session_id": name, "session_id": f"id of {name}", "chat_state": state}
    return SessionRow(version=1, expires_in=None, expires_at=None, **cast(Any, times | names))


async def test_rows_in_the_wrong_order_remove_nothing(tmp_path: Path) -> None:
    """Whoever takes what comes late for missing would remove it."""

    class Disordered:
        name = "disordered"

        @asynccontextmanager
        async def reading(self) -> AsyncIterator[Pages]:
            async def pages(shelf: RowShelf) -> AsyncIterator[Sequence[AnyRow]]:
                if shelf == "sessions":
                    yield [_row("b", ""), _row("a", "")]

            yield pages

    async with opened(f"sqlite:///{tmp_path}/a.db") as (target,):
        await target.commit([PutRow(_row("a", ""))])
        with pytest.raises(StoreError, match="do not come in the order"):
            await Copying(Disordered(), target, lambda: NOW).run(overwrite=True)
        assert (await counts(target))["sessions"] == 1
