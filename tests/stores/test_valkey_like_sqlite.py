"""Records and visits in a Valkey Cluster beside those in SQLite: random batches come to the same outcomes and lists."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from chatstate.encryption import SEALED
from chatstate.model import PRESENT, IdempotencyKey, Retention, Rewrite, Save, Stored, StoredQuery, Within
from chatstate.record import DropRecord, PutRecord, RecordQuery
from chatstate.stores import Store, valkey_records, valkey_visits
from chatstate.stores.base import AnyWrite, Query, Row
from chatstate.stores.valkey_node import parse_url
from chatstate.visit import (
    Changes,
    ChangeVisit,
    ChangeVisits,
    CreateVisit,
    EraseVisits,
    UserSessionQuery,
    Visit,
    VisitPosition,
    VisitQuery,
)
from tests.servers.valkey_contents import contents_of
from tests.stores.chance import seeded
from tests.stores.hearing import opened

BATCHES = int(os.environ.get("CHATSTATE_TEST_EXAMPLES") or 40)

START = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
NAMES = ("a", "A", "ab", "a b", "b", "é", "😀", "z\uffff")
PEOPLE = ("me", "you", "yo", "")


class Random:
    """What to do next. Times are few, so that many are equal."""

    def __init__(self) -> None:
        self.rng = seeded()
        self.visits = [str(uuid.UUID(int=self.rng.getrandbits(128))) for _ in range(20)]

    def one(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def time(self) -> datetime:
        return START + timedelta(seconds=self.rng.randrange(-3, 4), microseconds=self.one(0, 1, 999999 - 123456))

    def record(self) -> AnyWrite:
        place = {"collection": self.one("c", "c2", "d"), "key": self.one(*NAMES), "now": self.time()}
        expect = self.one(None, None, 0, 1, 2)
        if self.rng.random() < 0.3:
            return DropRecord(**place, expect=expect)
        document = self.one("{}", SEALED + "x", SEALED + "y", "", "Grüße 😀")
        return PutRecord(**place, document=document, expires_at=self.one(None, self.time()), expect=expect)

    def visit(self) -> AnyWrite:
        user_session_id = self.one(*NAMES)
        changes = self.changes()
        kind = self.rng.random()
        if kind < 0.45:
            given = {"session_start_time": self.time(), **changes}
            place = {"session_id": self.one(*self.visits), "user_session_id": user_session_id}
            return CreateVisit(**place, created_at=self.time(), **given)
        if kind < 0.75:
            return ChangeVisit(session_id=self.one(*self.visits), changes=Changes(**changes), within=self.within())
        if kind < 0.9:
            return ChangeVisits(user_session_id=user_session_id, changes=Changes(**changes))
        return EraseVisits(user_session_id=user_session_id, user_id=self.one(None, *PEOPLE))

    def changes(self) -> dict[str, Any]:
        members = {
            "user_id": self.one(None, *PEOPLE),
            "session_start_time": self.time(),
            "session_end_time": self.one(None, self.time()),
            "total_messages_count": self.one(0, 1, 2**31 - 1),
            "given_duration_minutes": self.one(None, 0, 7),
            "session_completed": self.one(True, False),
            "session_outcome": self.one(None, "", "done"),
            "device_type": self.one(None, "ß"),
        }
        return {name: value for name, value in members.items() if self.rng.random() < 0.4}

    def within(self) -> Within:
        return self.one(Within(), Within(), Within("a"), Within("é"), Within(only=self.one(*NAMES)))

    def query(self) -> Query:
        limit = self.one(1, 2, 3, 100)
        kind = self.rng.randrange(4)
        if kind == 0:
            after, since = self.one("", *NAMES), self.one(None, self.time())
            place = {"collection": self.one("c", "c2", "d"), "key": self.one(None, None, *NAMES)}
            return RecordQuery(**place, now=self.time(), after=after, changed_since=since, limit=limit)
        if kind == 1:
            person, after = self.one(*PEOPLE), self.one("", *NAMES)
            return UserSessionQuery(user_id=person, within=self.within(), after=after, limit=limit)
        if kind == 2:
            head, after = self.one("", SEALED + "x"), self.one((), ("c", self.one(*NAMES)), ("c2", ""))
            return StoredQuery(shelf="records", head=head, after=after, limit=limit)
        position = VisitPosition(self.time(), self.one(*self.visits))
        return VisitQuery(
            session_id=self.one(None, None, None, *self.visits[:3]),
            user_session_id=self.one(None, None, *NAMES),
            within=self.within(),
            limit=limit,
            after=self.one(None, position),
        )


async def the_same(stores: Sequence[Store], query: Query) -> Sequence[Row]:
    """What both stores list."""
    ours, theirs = [list(await store.list(query)) for store in stores]
    assert ours == theirs, query
    return ours


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.mark.parametrize("few", [1, 2000])
async def test_random_batches_come_to_the_same(
    valkey_url: str, sqlite_url: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether little or much is sorted here."""
    for module in (valkey_records, valkey_visits):
        monkeypatch.setattr(module, "_FEW", few)
    rng = Random()
    async with opened(valkey_url) as ours, opened(sqlite_url) as theirs:
        for number in range(BATCHES):
            batch: dict[Any, AnyWrite] = {}
            for write in [rng.visit()] + [rng.record() for _ in range(rng.rng.randrange(4))]:
                batch[getattr(write, "key", None), getattr(write, "collection", None)] = write
            outcomes = [list(await store.commit(list(batch.values()))) for store in (ours, theirs)]
            assert outcomes[0] == outcomes[1], batch
            for _ in range(4):
                await the_same((ours, theirs), rng.query())
            if number % 20 == 19:
                now = rng.time()
                for store in (ours, theirs):
                    while (await store.sweep(now, Retention(visits=timedelta(seconds=1)), None, 3)).next is not None:
                        pass
        await the_same((ours, theirs), VisitQuery(limit=1000))
        for session_id in rng.visits:
            await the_same((ours, theirs), VisitQuery(session_id=session_id))


async def test_what_was_removed_leaves_nothing_behind(valkey_url: str) -> None:
    """After all is erased and dropped, no member of any list is left; a void names nobody."""
    rng = Random()
    async with opened(valkey_url) as ours:
        for _ in range(BATCHES):
            await ours.commit([rng.visit()])
            await ours.commit([rng.record()])
        for name in NAMES:
            await ours.commit([EraseVisits(user_session_id=name)])
            await ours.commit([DropRecord(collection=one, key=name, now=START) for one in ("c", "c2", "d")])
        while (await ours.sweep(START + timedelta(days=1), Retention(), None, 10)).next is not None:
            pass
        keys = await contents_of(valkey_url)
        prefix = parse_url(valkey_url).prefix
        assert [key for key in keys if b":void:" not in key] == [f"{prefix}{{format}}".encode()]


async def test_many_are_listed_page_by_page(valkey_url: str, sqlite_url: str) -> None:
    """More than the nodes are asked for at first, and unevenly spread."""
    async with opened(valkey_url) as ours, opened(sqlite_url) as theirs:
        now = START
        writes: list[AnyWrite] = [
            PutRecord(collection="c", key=f"{number:03}", document="", now=now) for number in range(300)
        ]
        writes += [
            CreateVisit(
                session_id=str(uuid.UUID(int=number)),
                user_session_id="one" if number % 3 else f"s{number}",
                user_id="me",
                created_at=now,
                session_start_time=now + timedelta(seconds=number // 2),
            )
            for number in range(150)
        ]
        for store in (ours, theirs):
            await store.commit(writes)
        for limit in (7, 100, 1000):
            await _pages((ours, theirs), limit)


async def _pages(stores: Sequence[Store], limit: int) -> None:
    after, seen = "", 0
    while page := cast(Any, await the_same(stores, RecordQuery(collection="c", now=START, after=after, limit=limit))):
        after, seen = page[-1].key, seen + len(page)
    assert seen == 300
    position, seen = None, 0
    while page := cast(Sequence[Visit], await the_same(stores, VisitQuery(limit=limit, after=position))):
        position = VisitPosition(page[-1].session_start_time, page[-1].session_id)
        seen += len(page)
    assert seen == 150
    after, found = "", []
    while page := cast(Any, await the_same(stores, UserSessionQuery(user_id="me", after=after, limit=limit))):
        after = page[-1]
        found += page
    assert len(found) == 51


@pytest.mark.parametrize("shelf", ["sessions", "versions", "remembered"])
async def test_texts_of_sessions_are_shown_the_same(valkey_url: str, sqlite_url: str, shelf: Any) -> None:
    """Some all right, some not, and some rewritten: page by page, of any size."""
    rng = Random()
    async with opened(valkey_url) as ours, opened(sqlite_url) as theirs:
        stores = [cast(Any, store).inner for store in (ours, theirs)]
        for number in range(32):
            once = IdempotencyKey(rng.one("k", "k2"), b"digest", rng.one("", "caller", "caller2"))
            state = None if number % 2 else rng.one("{}", SEALED + "x", SEALED + "y")
            write = Save(
                user_session_id=rng.one(*NAMES[:4]),
                new_session_id=str(uuid.UUID(int=number)),
                chat_state=state,
                last_activity=START,
                now=START,
                once=once if state is None else None,
                **({"expect": PRESENT} if state is None else {}),
            )
            outcomes = [list(await store.commit([write], Retention(history=12))) for store in stores]
            assert outcomes[0] == outcomes[1]
        rewritten = 0
        for head in ("", SEALED + "x"):
            for limit in (4, 100):
                rows = await _all_stored(stores, shelf, head, limit)
            some = [row for row in rows if row.text is not None]
            for row in some[::2]:
                write_again = Rewrite(shelf=shelf, place=row.place, text=cast(str, row.text), replaced_by=SEALED + "x")
                outcomes = [list(await store.commit([write_again])) for store in stores]
                assert outcomes[0] == outcomes[1]
                rewritten += 1
            await _all_stored(stores, shelf, head, 100)
        assert rewritten


async def _all_stored(stores: Sequence[Store], shelf: Any, head: str, limit: int) -> list[Stored]:
    found: list[Stored] = []
    after: tuple[str, ...] = ()
    while page := cast(Any, await the_same(stores, StoredQuery(shelf=shelf, head=head, after=after, limit=limit))):
        found += page
        after = page[-1].place
    return found
