"""The contract suite: what every store must show, on two independently opened stores of one database.

    @pytest.mark.parametrize("check", CHECKS)
    async def test_contract(check, open_store):
        await run(check, open_store)

`open_store` is awaited for each store and opens a new one on the same database. A check that does not hold raises
AssertionError. `CHECKS` names all checks; there are no others, and none may be left out. Ids are random, and what a
check has made is removed at its end, whether it holds or not: the suite may run on a database that holds other rows,
and leaves them alone. It also sweeps, as of days that have passed long ago, as any server would. `chatstate
check-store` runs it from the command line.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import cycle, product
from typing import Any

from msgspec.structs import replace

from chatstate.errors import ChatStateError, StoreError, StoreUnavailable, WriteRefused
from chatstate.mailbox import OutboxQuery
from chatstate.model import (
    ABSENT,
    ANYTHING,
    PRESENT,
    Conflict,
    Delete,
    Deleted,
    Expect,
    IdempotencyKey,
    Save,
    Session,
    Tag,
    VersionQuery,
    Write,
    none_of,
    one_of,
)
from chatstate.row import SHELVES, DropRow
from chatstate.stores.base import AnyWrite, Outcome, Store, all_readable, commit_one
from chatstate.stores.feed_contract import FeedChecks
from chatstate.stores.mailbox_contract import MailboxChecks
from chatstate.stores.record_contract import RecordChecks
from chatstate.stores.row_contract import RowChecks
from chatstate.stores.stored_contract import StoredChecks
from chatstate.stores.turn_contract import TurnChecks
from chatstate.stores.visit_contract import VisitChecks
from chatstate.visit import EraseVisits, VisitQuery

OpenStore = Callable[[], Awaitable[Store]]

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
LATER = NOW + timedelta(seconds=1)
TIMES = (
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
    datetime(2038, 1, 19, 3, 14, 8, 1, UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
)
STATES = (
    "",
    '{"messages": [], "currentStep": "language"}',
    r'{"nul": "\u0000", "lone": "\ud800"}',
    '{"a": 1, "a": 2, "big": 12345678901234567890123, "one": 1.0, "minus": -0}',
    " \t\n\r\x01\x1f\x7f\x85\u2028 ",
    "\ufeffGrüße, 你好, שלום, 😀 e\u0301 \uffff \U0010ffff",
    "not JSON at all \\ ' \" $1 %s {} ;--",
    "x" * (1 << 20),
)
IDS = (
    "a",
    "A",
    "a ",
    " a",
    "%",
    "_",
    "é",
    "e\u0301",
    "ı",
    "i",
    "İ",
    "a/b",
    "a%2Fb",
    "שלום",
    "\\",
    "'",
    '"',
    "😀" * 200,
)
UNKEEPABLE = ("nul \x00", "lone \ud800")


def saving(user_session_id: str, state: str | None = "{}", expect: Expect = ANYTHING, now: datetime = NOW) -> Save:
    """A `Save` with defaults."""
    return Save(
        user_session_id=user_session_id,
        new_session_id=str(uuid.uuid4()),
        chat_state=state,
        last_activity=now,
        now=now,
        expect=expect,
    )


def deleting(user_session_id: str, expect: Expect = PRESENT, now: datetime = LATER) -> Delete:
    """A `Delete` with defaults."""
    return Delete(user_session_id=user_session_id, now=now, expect=expect)


async def run(check: str, open_store: OpenStore) -> None:
    """Run one of `CHECKS`, and remove what it has made. Where that fails, too, its error has the note NOT_REMOVED."""
    contract = Contract(open_store)
    try:
        await contract.begin()
        await getattr(contract, check)()
        await contract.clear(contract.one)
    except BaseException as error:
        await contract.end()  # first, so that nothing is still on its way when what is there is removed
        try:
            async with asyncio.timeout(CLEARING_SECONDS):
                await contract.clear(await contract.open_store())
        except (ChatStateError, OSError):  # the reason is known, and is not this
            error.add_note(NOT_REMOVED)
        raise
    finally:
        await contract.end()


CLEARING_SECONDS = 30
"""How long the rest of a check that has failed may take to be removed."""

NOT_REMOVED = "What the check had made could not be removed."


class Contract(TurnChecks, VisitChecks, RecordChecks, MailboxChecks, StoredChecks, RowChecks, FeedChecks):
    """The checks, and two stores that they work on."""

    one: Store
    other: Store

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self._opened: list[Store] = []
        self.prefix = f"contract-{uuid.uuid4()}-"
        self.ids: set[str] = set()

    async def begin(self) -> None:
        """Open the two stores."""
        self.one, self.other = await self.open_store(), await self.open_store()
        await self.one.migrate()
        await self.other.migrate()

    async def open_store(self) -> Store:
        """A further store on the database, which is closed at the end at the latest."""
        self._opened.append(await self._open_store())
        return self._opened[-1]

    async def end(self) -> None:
        """Close all stores."""
        while self._opened:
            await self._opened.pop().close()

    async def clear(self, store: Store) -> None:
        """Remove all that has been made under our ids and our prefix."""
        for shelf in SHELVES:
            if shelf != "visits":
                await store.commit([DropRow(shelf, row.place) for row in await self._rows(shelf, store)])
        await store.commit([EraseVisits(user_session_id=user_session_id) for user_session_id in sorted(self.ids)])

    def id(self, name: object = "") -> str:
        """An id that nobody else uses."""
        self.ids.add(f"{self.prefix}{name}")
        return f"{self.prefix}{name}"

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself. Raises it, if it is an error."""
        return await commit_one(store or self.one, write)

    async def load(self, user_session_id: str, store: Store | None = None) -> Session | None:
        return all_readable(await (store or self.other).load([user_session_id], NOW)).get(user_session_id)

    async def at_once(self, writes: list[Write]) -> list[Outcome]:
        """The writes, each by itself, all at once, through both stores in turn."""
        turns = zip(cycle((self.one, self.other)), writes, strict=False)
        return list(await asyncio.gather(*(self.commit(write, store) for store, write in turns)))

    async def absent_sessions_are_absent_from_the_answer(self) -> None:
        assert await self.one.load([self.id(1), self.id(2)], NOW) == {}
        assert await self.one.load([], NOW) == {}

    async def an_empty_batch_is_fine(self) -> None:
        assert list(await self.one.commit([])) == []

    async def a_created_session_is_what_was_written(self) -> None:
        write = saving(self.id(), "{}", now=NOW)
        session = await self.commit(write)
        assert session == Session(write.new_session_id, self.id(), "{}", NOW, NOW, NOW, 1)
        assert session.is_new
        assert await self.load(self.id()) == session

    async def a_replaced_session_keeps_its_identity(self) -> None:
        created = await self.commit(saving(self.id(), "old"))
        replaced = await self.commit(saving(self.id(), "new", now=LATER), self.other)
        assert replaced == Session(created.session_id, self.id(), "new", LATER, NOW, LATER, 2)
        assert not replaced.is_new
        assert await self.load(self.id(), self.one) == replaced

    async def a_committed_write_is_seen_by_every_store(self) -> None:
        for version in range(1, 7):
            writer, reader = (self.one, self.other) if version % 2 else (self.other, self.one)
            session = await self.commit(saving(self.id(), str(version)), writer)
            assert session.version == version
            assert await self.load(self.id(), reader) == session

    async def a_write_without_a_state_keeps_it(self) -> None:
        for state in STATES:
            await self.commit(saving(self.id(), state))
            kept = await self.commit(saving(self.id(), None, PRESENT, LATER))
            assert (kept.chat_state, kept.last_activity) == (state, LATER)
            assert await self.load(self.id()) == kept

    async def states_come_back_as_they_were(self) -> None:
        ids = [self.id(number) for number in range(len(STATES))]
        await self.one.commit([saving(*pair) for pair in zip(ids, STATES, strict=True)])
        sessions = all_readable(await self.other.load(ids, NOW))
        assert [sessions[user_session_id].chat_state for user_session_id in ids] == list(STATES)

    async def ids_are_compared_as_bytes(self) -> None:
        ids = [self.id(name) for name in IDS]
        outcomes = await self.one.commit([saving(user_session_id, user_session_id) for user_session_id in ids])
        assert all(isinstance(outcome, Session) and outcome.is_new for outcome in outcomes)
        sessions = all_readable(await self.other.load(ids, NOW))
        assert {key: session.chat_state for key, session in sessions.items()} == {key: key for key in ids}

    async def times_keep_their_microseconds(self) -> None:
        for time in TIMES:
            session = await self.commit(saving(self.id(), now=time))
            loaded = await self.load(self.id())
            assert loaded == session
            assert (session.last_activity, session.updated_at) == (time, time)
            assert session.last_activity.utcoffset() == timedelta(0)

    async def every_expectation_is_kept(self) -> None:
        """Every kind of write with every kind of expectation, on an absent and on a re-created session."""
        for number, (kind, shape, present) in enumerate(product(("save", "keep", "delete"), range(9), (False, True))):
            user_session_id = self.id(number)
            current = await self._second_life(user_session_id) if present else None
            mine = current or Tag(str(uuid.uuid4()), 1)
            stale, strange = Tag(mine.session_id, mine.version + 1), Tag(str(uuid.uuid4()), 1)
            expect = (
                ANYTHING,
                ABSENT,
                PRESENT,
                one_of([mine]),
                one_of([stale, mine, strange]),
                one_of([stale, strange]),
                none_of([mine, strange]),
                none_of([stale, strange]),
                PRESENT & none_of([stale]) & one_of([mine, stale]),
            )[shape]
            await self._is_kept(kind, user_session_id, expect if kind == "save" else expect & PRESENT, current)

    async def _second_life(self, user_session_id: str) -> Tag:
        for write in (
            saving(user_session_id),
            deleting(user_session_id),
            saving(user_session_id),
        ):
            await self.commit(write)
        session: Session = await self.commit(saving(user_session_id, "before"))
        return session.tag

    async def _is_kept(self, kind: str, user_session_id: str, expect: Expect, current: Tag | None) -> None:
        write: Write = saving(user_session_id, None if kind == "keep" else "after", expect, LATER)
        if kind == "delete":
            write = deleting(user_session_id, expect=expect)
        outcome = await self.commit(write, self.other)
        loaded = await self.load(user_session_id, self.one)
        if not expect.allows(current):
            assert outcome == Conflict(current), (write, current, outcome)
            assert (loaded.tag if loaded else None) == current
            assert loaded is None or (loaded.chat_state, loaded.updated_at) == ("before", NOW)
        elif isinstance(write, Delete):
            assert (outcome, loaded) == (Deleted(current), None) if current else False
        else:
            tag = Tag(current.session_id, current.version + 1) if current else Tag(write.new_session_id, 1)
            assert (outcome, outcome.tag) == (loaded, tag), (write, current, outcome)

    async def a_deleted_session_never_matches_again(self) -> None:
        first = await self.commit(saving(self.id()))
        assert await self.commit(deleting(self.id()), self.other) == Deleted(first.tag)
        assert await self.load(self.id()) is None
        assert await self.commit(deleting(self.id())) == Conflict(None)
        second = await self.commit(saving(self.id()))
        assert second.session_id != first.session_id
        assert await self.commit(saving(self.id(), "zombie", one_of([first.tag]))) == Conflict(second.tag)

    async def writes_of_a_batch_are_independent(self) -> None:
        """A batch of every kind, winners and losers, out of order: the outcomes come in the order of the writes."""
        present = {name: (await self.commit(saving(self.id(name), name))).tag for name in "bdfhj"}
        outcomes = await self.other.commit(
            [
                saving(self.id("j"), "new", one_of([present["j"]])),
                saving(self.id("a"), "new"),
                saving(self.id("b"), "new", ABSENT),
                saving(self.id("c"), "new", one_of([present["b"]])),
                deleting(self.id("d")),
                deleting(self.id("e")),
                saving(self.id("f"), "new"),
                saving(self.id("g"), "new", ABSENT),
                saving(self.id("h"), None, PRESENT),
                saving(self.id("i"), "new", none_of([present["b"]])),
            ]
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Session, Session, Conflict, Conflict, Deleted, Conflict, Session, Session, Session, Session]
        assert outcomes[2:6] == [Conflict(present["b"]), Conflict(None), Deleted(present["d"]), Conflict(None)]
        sessions = all_readable(await self.one.load([self.id(name) for name in "abcdefghij"], NOW))
        states = {key.removeprefix(self.prefix): session.chat_state for key, session in sessions.items()}
        assert states == {"a": "new", "b": "b", "f": "new", "g": "new", "h": "h", "i": "new", "j": "new"}

    async def a_refused_value_leaves_no_trace(self) -> None:
        """What no store can keep makes the call fail as a whole; nothing is written, and the store works on."""
        for bad in UNKEEPABLE:
            try:
                await self.one.commit([saving(self.id(1)), saving(self.id(2), bad), saving(self.id(3))])
            except WriteRefused:
                assert await self.other.load([self.id(number) for number in (1, 2, 3)], NOW) == {}
            else:
                raise AssertionError(f"the store took {bad!r}")
        assert (await self.commit(saving(self.id(1)))).is_new

    async def an_id_that_no_store_can_keep_is_refused(self) -> None:
        """With an error of ours, whatever the driver raises; and with it all that came along."""
        lone = f"{self.prefix}lone \ud800"
        plain: dict[str, Any] = {"user_session_id": lone, "now": NOW}
        once = replace(saving(self.id(2)), once=IdempotencyKey(lone, b"digest"))
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: self.one.commit([saving(self.id(1)), saving(lone)]),
            lambda: self.one.commit([saving(self.id(1)), deleting(lone)]),
            lambda: self.one.commit([saving(self.id(1)), once]),
            lambda: self.one.load([lone], NOW),
            lambda: self.one.list(VersionQuery(**plain)),
            lambda: self.one.list(OutboxQuery(**plain)),
            lambda: self.one.list(VisitQuery(user_session_id=lone)),
        ]
        for number, call in enumerate(calls):
            try:
                await call()
            except WriteRefused:
                continue
            raise AssertionError(f"call {number} took a lone surrogate")
        assert await self.other.load([self.id(1), self.id(2)], NOW) == {}

    async def no_update_is_lost(self) -> None:
        """Many writers read, append and save conditionally; what was acknowledged is there, once each, in order."""
        await self.commit(saving(self.id(), ""))
        acknowledged: list[str] = []

        async def append(store: Store, mark: str) -> None:
            while mark not in acknowledged:
                session = await self.load(self.id(), store)
                assert session
                write = saving(self.id(), session.chat_state + mark, one_of([session.tag]))
                if isinstance(await self.commit(write, store), Session):
                    acknowledged.append(mark)

        marks = [chr(0x4E00 + number) for number in range(24)]
        await asyncio.gather(*(append((self.one, self.other)[ord(mark) % 2], mark) for mark in marks))
        session = await self.load(self.id())
        assert session
        assert sorted(session.chat_state) == marks
        assert session.version == 1 + len(marks)

    async def one_of_many_creations_wins(self) -> None:
        outcomes = await self.at_once([saving(self.id(), str(number), ABSENT) for number in range(20)])
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert outcomes.count(Conflict(winner.tag)) == 19
        assert await self.load(self.id()) == winner

    async def every_plain_write_counts(self) -> None:
        """Concurrent writes without conditions all succeed, each with a version of its own."""
        outcomes: list[Any] = await self.at_once([saving(self.id(), str(number)) for number in range(20)])
        assert sorted(outcome.version for outcome in outcomes) == list(range(1, 21))
        assert await self.load(self.id()) == max(outcomes, key=lambda outcome: outcome.version)

    async def crossing_batches_do_not_block_each_other(self) -> None:
        """Two stores commit the same ids in opposite orders, all kinds of writes mixed; every write has an outcome."""
        ids = [self.id(number) for number in range(8)]
        kinds: tuple[Callable[[str], Write], ...] = (
            saving,
            lambda key: saving(key, "updated", PRESENT),
            lambda key: saving(key, "created", ABSENT),
            deleting,
        )
        for turn in range(24):
            orders = (ids, ids[::-1], ids[4:] + ids[:4], ids[::2])
            stores = (self.one, self.other, self.one, self.other)
            answers = await asyncio.gather(
                *(
                    store.commit([kinds[(turn + number + place) % 4](key) for place, key in enumerate(order)])
                    for number, (store, order) in enumerate(zip(stores, orders, strict=True))
                )
            )
            assert [len(outcomes) for outcomes in answers] == [8, 8, 8, 4]
            assert not [outcome for outcomes in answers for outcome in outcomes if isinstance(outcome, StoreError)]

    async def migrating_again_changes_nothing(self) -> None:
        session = await self.commit(saving(self.id()))
        assert (await self.one.migrate(), await self.other.migrate()) == ([], [])
        assert await self.load(self.id()) == session

    async def several_stores_may_migrate_at_once(self) -> None:
        stores = [await self.open_store() for _ in range(4)]
        await asyncio.gather(*(store.migrate() for store in stores))
        assert [await store.load([self.id()], NOW) for store in stores] == [{}] * 4
        for store in stores:
            await store.close()

    async def the_status_is_in_words(self) -> None:
        status = await self.one.status()
        assert status == await self.other.status()
        assert " " in status.store
        assert len(status.durability) > 20

    async def a_closed_store_says_so(self) -> None:
        """Closing twice is fine; afterwards every method fails, and none gives an empty answer."""
        store = await self.open_store()
        await store.close()
        await store.close()
        calls = (store.status(), store.migrate(), store.load([self.id()], NOW), store.commit([saving(self.id())]))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, StoreUnavailable), answer

    async def what_was_committed_outlives_the_store(self) -> None:
        store = await self.open_store()
        await store.migrate()
        session = await self.commit(saving(self.id()), store)
        await store.close()
        await store.open()
        assert await self.load(self.id(), store) == session
        await store.close()


_NOT_CHECKS = {"begin", "open_store", "end", "clear", "id", "commit", "load", "at_once"}

CHECKS = [
    name
    for checks in (Contract, TurnChecks, VisitChecks, RecordChecks, MailboxChecks, StoredChecks, RowChecks, FeedChecks)
    for name in vars(checks)
    if not name.startswith("_") and name not in _NOT_CHECKS
]
