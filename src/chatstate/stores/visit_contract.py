"""The part of the contract suite that is about visits. `chatstate.stores.contract` runs it with the rest."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, cast

from msgspec.structs import asdict, replace

from chatstate.errors import StoreError, StoreUnavailable, WriteRefused
from chatstate.model import Delete, Deleted, Retention, Save, Session, Within
from chatstate.stores.base import AnyWrite, Store
from chatstate.visit import (
    MAX_COUNT,
    MAX_TEXT_LENGTH,
    MAX_USER_AGENT_LENGTH,
    Changes,
    ChangeVisit,
    ChangeVisits,
    CreateVisit,
    EraseVisits,
    UserSessionQuery,
    Visit,
    VisitMissing,
    VisitPosition,
    VisitQuery,
    VisitsChanged,
    VisitsErased,
    VisitTaken,
    duration_minutes,
)

START = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
EARLIEST, LATEST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
FULL = Changes(
    user_id="user ' \" \\ $1 %s {} 😀",
    session_start_time=START,
    session_end_time=START + timedelta(minutes=12, seconds=30),
    total_messages_count=MAX_COUNT,
    given_duration_minutes=0,
    session_completed=True,
    session_outcome="",
    final_step_reached=" \t\n\r\x01\x7f\u2028 e\u0301 ",
    user_agent="😀" * MAX_USER_AGENT_LENGTH,
    ip_address="2001:db8::7",
    device_type="ß" * MAX_TEXT_LENGTH,
)
"""A value for every member."""

EMPTY = Changes(
    user_id=None,
    session_end_time=None,
    total_messages_count=0,
    given_duration_minutes=None,
    session_completed=False,
    session_outcome=None,
    final_step_reached=None,
    user_agent=None,
    ip_address=None,
    device_type=None,
)
"""What a new visit has."""


def creating(user_session_id: str, start: datetime = START, **members: Any) -> CreateVisit:
    """A `CreateVisit` with defaults."""
    given = {"session_id": str(uuid.uuid4()), "session_start_time": start, "created_at": START, **members}
    return CreateVisit(user_session_id=user_session_id, **given)


def changed(visit: Visit, changes: Changes) -> Visit:
    """What the change must make of a visit whose duration nobody has given."""
    members = {name: value for name, value in asdict(changes).items() if name in Changes.__struct_fields__}
    given = members.pop("given_duration_minutes")
    visit = replace(visit, **{name: value for name, value in members.items() if isinstance(value, _VALUES)})
    derived = duration_minutes(visit.session_start_time, visit.session_end_time)
    return replace(visit, session_duration_minutes=given if isinstance(given, int) else derived)


_VALUES = (str, int, datetime, type(None))


def _saving(user_session_id: str) -> Save:
    new_session_id = str(uuid.uuid4())
    return Save(
        user_session_id=user_session_id, new_session_id=new_session_id, chat_state="", last_activity=START, now=START
    )


class VisitChecks:
    """The checks, for the two stores that the suite works on."""

    one: Store
    other: Store

    def id(self, name: object = "") -> str:
        """An id that nobody else uses."""
        raise NotImplementedError

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself."""
        raise NotImplementedError

    async def _visit(self, session_id: str, store: Store | None = None) -> Visit | None:
        found = await self._visits(VisitQuery(session_id=session_id), store)
        assert len(found) < 2
        return found[0] if found else None

    async def _visits(self, query: VisitQuery, store: Store | None = None) -> Sequence[Visit]:
        return cast(Sequence[Visit], await (store or self.other).list(query))

    async def a_created_visit_is_what_was_written(self) -> None:
        plain = creating(self.id())
        visit = await self.commit(plain)
        given = {"session_id": plain.session_id, "user_session_id": self.id(), "created_at": START}
        empty = {name: value for name, value in asdict(EMPTY).items() if name in Visit.__struct_fields__}
        nothing = Visit(**{**empty, **given, "session_start_time": START, "session_duration_minutes": None})
        assert visit == nothing == await self._visit(plain.session_id)
        full = creating(self.id(), **asdict(FULL))
        visit = await self.commit(full, self.other)
        assert visit == changed(replace(nothing, session_id=full.session_id), FULL)
        assert visit == await self._visit(full.session_id, self.one)
        assert await self._visit(str(uuid.uuid4())) is None

    async def a_visit_is_created_once(self) -> None:
        write = creating(self.id(), user_id="first")
        visit = await self.commit(write)
        assert await self.commit(creating(self.id("x"), session_id=write.session_id), self.other) == VisitTaken()
        assert await self._visit(write.session_id) == visit
        session_id = str(uuid.uuid4())
        writes = [creating(self.id(), session_id=session_id, user_id=str(number)) for number in range(20)]
        stores = (self.one, self.other)
        outcomes = await asyncio.gather(*(self.commit(write, stores[n % 2]) for n, write in enumerate(writes)))
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Visit)]
        assert outcomes.count(VisitTaken()) == 19
        assert await self._visit(session_id) == winner

    async def a_change_sets_what_it_names_and_nothing_else(self) -> None:
        visit = await self.commit(creating(self.id()))
        for name, values in product(Changes.__struct_fields__, (FULL, EMPTY)):
            if name == "session_start_time" and values is EMPTY:
                continue
            change = Changes(**{name: getattr(values, name)})
            outcome = await self.commit(ChangeVisit(session_id=visit.session_id, changes=change), self.other)
            assert outcome == changed(visit, change), change
            assert outcome == await self._visit(visit.session_id, self.one)
            visit = outcome
        for change in (FULL, Changes(), EMPTY):
            outcome = await self.commit(ChangeVisit(session_id=visit.session_id, changes=change))
            assert outcome == (changed(visit, change) if change != Changes() else visit)
            visit = outcome

    async def a_change_of_no_visit_makes_none(self) -> None:
        session_id = str(uuid.uuid4())
        assert await self.commit(ChangeVisit(session_id=session_id, changes=FULL)) == VisitMissing()
        assert await self.commit(ChangeVisits(user_session_id=self.id(), changes=FULL)) == VisitsChanged(0)
        assert await self._visit(session_id) is None
        assert not await self._visits(VisitQuery(user_session_id=self.id()))

    async def the_duration_follows_from_the_times(self) -> None:
        visit = await self.commit(creating(self.id()))

        async def duration(**members: Any) -> int | None:
            change = ChangeVisit(session_id=visit.session_id, changes=Changes(**members))
            outcome = cast(Visit, await self.commit(change))
            return outcome.session_duration_minutes

        for seconds in (0, 29.999999, 30, 89.999999, 90, 3600, 86400 * 400, -0.000001, -90):
            end = START + timedelta(seconds=seconds)
            assert await duration(session_end_time=end) == duration_minutes(START, end), seconds
        assert (
            await duration(session_start_time=START - timedelta(hours=2)) == 119
        )  # its end lies 90 s before the old start
        assert await duration(given_duration_minutes=7) == 7
        assert await duration(session_end_time=START) == 7
        assert await duration(session_end_time=None) == 7
        assert await duration(given_duration_minutes=None) is None
        ends = {"session_start_time": EARLIEST, "session_end_time": LATEST}
        assert await duration(**ends) == duration_minutes(EARLIEST, LATEST)
        found = await self._visit(visit.session_id)
        assert found
        assert (found.session_start_time, found.session_end_time) == (EARLIEST, LATEST)

    async def no_change_of_a_visit_is_lost(self) -> None:
        """Many writers change one visit, each another member; and the duration is that of the times in the end."""
        visit = await self.commit(creating(self.id()))
        for turn in range(8):
            end = START + timedelta(minutes=10 * turn)
            changes = (
                Changes(user_id=str(turn)),
                Changes(session_start_time=START - timedelta(minutes=turn)),
                Changes(session_end_time=end),
                Changes(total_messages_count=turn),
                Changes(final_step_reached=str(turn)),
                Changes(device_type=str(turn)),
            )
            writes: list[AnyWrite] = [ChangeVisit(session_id=visit.session_id, changes=change) for change in changes]
            writes.append(ChangeVisits(user_session_id=self.id(), changes=Changes(session_outcome=str(turn))))
            stores = (self.one, self.other)
            await asyncio.gather(*(self.commit(write, stores[n % 2]) for n, write in enumerate(writes)))
            found = await self._visit(visit.session_id)
            assert found
            texts = (found.user_id, found.final_step_reached, found.device_type, found.session_outcome)
            assert texts == (str(turn),) * 4
            assert (found.total_messages_count, found.session_duration_minutes) == (turn, 11 * turn)

    async def the_visits_of_a_user_change_together(self) -> None:
        writes = [creating(self.id(number % 2)) for number in range(5)]
        await self.one.commit(writes)
        change = Changes(session_completed=True, session_end_time=START + timedelta(minutes=3))
        outcome = await self.commit(ChangeVisits(user_session_id=self.id(0), changes=change), self.other)
        assert outcome == VisitsChanged(3)
        for number in range(2):
            visits = await self._visits(VisitQuery(user_session_id=self.id(number)), self.one)
            done = {(visit.session_completed, visit.session_duration_minutes) for visit in visits}
            assert done == {(False, None) if number else (True, 3)}
        assert await self.commit(ChangeVisits(user_session_id=self.id(1), changes=Changes())) == VisitsChanged(2)

    async def visits_are_listed_newest_first(self) -> None:
        """Pages follow each other without a gap, also where visits began at the same time."""
        starts = [LATEST - timedelta(seconds=number // 3) for number in range(10)]
        await self.one.commit([creating(self.id(number % 2), start) for number, start in enumerate(starts)])
        mine = {self.id(0), self.id(1)}
        expected = [row for row in await self._pages(None, 1000, 10, mine) if row.user_session_id in mine]
        assert [row.session_start_time for row in expected] == starts
        assert expected == sorted(expected, key=lambda row: (row.session_start_time, row.session_id), reverse=True)
        for user_session_id, limit in product(sorted(mine), (1, 2, 3, 100)):
            rows = [row for row in expected if row.user_session_id == user_session_id]
            assert await self._pages(user_session_id, limit, 5, mine) == rows
        assert await self._visits(VisitQuery(user_session_id=self.id("nobody"))) == []

    async def _pages(self, user_session_id: str | None, limit: int, wanted: int, mine: set[str]) -> list[Visit]:
        rows: list[Visit] = []
        after = None
        while True:
            page = await self._visits(VisitQuery(user_session_id=user_session_id, limit=limit, after=after))
            assert len(page) <= limit
            rows += page
            if not page or (user_session_id is None and sum(row.user_session_id in mine for row in rows) == wanted):
                return rows
            after = VisitPosition(page[-1].session_start_time, page[-1].session_id)

    async def user_ids_of_visits_are_compared_as_bytes(self) -> None:
        ids = [self.id(name) for name in ("a", "A", "a ", "é", "e\u0301", "%", "'", "😀" * 200)]
        await self.one.commit([creating(user_session_id) for user_session_id in ids])
        for user_session_id in ids:
            (visit,) = await self._visits(VisitQuery(user_session_id=user_session_id))
            assert visit.user_session_id == user_session_id

    async def writes_of_sessions_and_visits_share_a_batch(self) -> None:
        """All kinds, winners and losers: the outcomes come in the order of the writes."""
        old, done = creating(self.id(1)), creating(self.id(2))
        await self.one.commit([old, _saving(self.id(1)), done])
        new = creating(self.id(3))
        outcomes = await self.other.commit(
            [
                ChangeVisits(user_session_id=self.id(2), changes=Changes(user_id="all")),
                _saving(self.id(2)),
                ChangeVisit(session_id=old.session_id, changes=Changes(user_id="one")),
                creating(self.id(4), session_id=done.session_id),
                Delete(user_session_id=self.id(1), now=START),
                new,
                ChangeVisit(session_id=str(uuid.uuid4()), changes=FULL),
            ]
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [VisitsChanged, Session, Visit, VisitTaken, Deleted, Visit, VisitMissing]
        rows = [await self._visit(write.session_id, self.one) for write in (old, done, new)]
        assert [row and row.user_id for row in rows] == ["one", "all", None]
        assert (rows[0], rows[2]) == (outcomes[2], outcomes[5])

    async def crossing_batches_of_visits_do_not_block_each_other(self) -> None:
        """Two stores commit to the same visits in opposite orders, all kinds of writes mixed."""
        ids = sorted(str(uuid.uuid4()) for _ in range(8))
        users = [self.id(0), self.id(1)]
        for turn in range(24):
            orders = (ids, ids[::-1], ids[4:] + ids[:4], ids[::2])
            batches: list[list[AnyWrite]] = [
                [
                    creating(users[ids.index(key) % 2], session_id=key)
                    if (turn + number + place) % 3 == 0
                    else ChangeVisit(session_id=key, changes=Changes(user_id=str(turn)))
                    for place, key in enumerate(order)
                ]
                for number, order in enumerate(orders)
            ]
            for number, batch in enumerate(batches):
                batch.insert(4, ChangeVisits(user_session_id=users[number % 2], changes=Changes(device_type="d")))
            stores = (self.one, self.other, self.one, self.other)
            pairs = zip(stores, batches, strict=True)
            answers = await asyncio.gather(*(store.commit(batch) for store, batch in pairs))
            assert [len(outcomes) for outcomes in answers] == [9, 9, 9, 5]
            assert not [outcome for outcomes in answers for outcome in outcomes if isinstance(outcome, StoreError)]

    async def a_refused_visit_leaves_no_trace(self) -> None:
        """What no store can keep makes the call fail as a whole."""
        kept = await self.commit(creating(self.id(0)))
        for bad in ("nul \x00", "lone \ud800"):
            await self._is_refused([creating(self.id(1)), creating(self.id(1) + bad)], kept)
            for name in ("user_id", "session_outcome", "final_step_reached", "user_agent", "ip_address", "device_type"):
                member: dict[str, Any] = {name: bad}
                change = Changes(**member)
                await self._is_refused([creating(self.id(1)), creating(self.id(1), **member)], kept)
                of_one = ChangeVisit(session_id=kept.session_id, changes=change)
                await self._is_refused([creating(self.id(1)), of_one], kept)
                of_all = ChangeVisits(user_session_id=self.id(0), changes=change)
                await self._is_refused([creating(self.id(1)), of_all], kept)

    async def _is_refused(self, batch: list[AnyWrite], kept: Visit) -> None:
        try:
            await self.one.commit(batch)
        except WriteRefused:
            assert await self._visits(VisitQuery(user_session_id=self.id(1))) == []
            assert await self._visit(kept.session_id) == kept
        else:
            raise AssertionError(f"the store took {batch[1]}")

    async def a_visit_of_somebody_else_is_as_absent_as_one_that_does_not_exist(self) -> None:
        write = creating(self.id("mine"))
        visit = await self.commit(write)
        for within, is_seen in (
            (Within(self.id("")), True),
            (Within(only=self.id("mine")), True),
            (Within(self.id("minetoo")), False),
            (Within(self.id("%")), False),
            (Within(only=self.id("min")), False),
        ):
            change = ChangeVisit(session_id=write.session_id, changes=Changes(), within=within)
            seen, absent = ([visit], visit) if is_seen else ([], VisitMissing())
            assert await self._visits(VisitQuery(session_id=write.session_id, within=within)) == seen
            assert await self._visits(VisitQuery(user_session_id=self.id("mine"), within=within)) == seen
            assert await self.commit(change) == absent
            found = await self._visits(
                VisitQuery(within=within, after=VisitPosition(LATEST, visit.session_id), limit=5)
            )
            assert (visit in found) == is_seen

    async def the_visits_of_a_user_session_are_erased(self) -> None:
        mine, also_mine, named, other = [
            creating(self.id(name), user_id=person)
            for name, person in (("a", None), ("a", "me"), ("a", "you"), ("b", "me"))
        ]
        for write in (mine, also_mine, named, other):
            await self.commit(write)
        assert await self.commit(EraseVisits(user_session_id=self.id("a"), user_id="me")) == VisitsErased(2)
        (left,) = await self._visits(VisitQuery(user_session_id=self.id("a")))
        assert left.session_id == named.session_id
        assert await self.commit(EraseVisits(user_session_id=self.id("a"))) == VisitsErased(1)
        assert await self.commit(EraseVisits(user_session_id=self.id("a"))) == VisitsErased(0)
        assert await self._visit(other.session_id) is not None

    async def the_user_sessions_of_a_person_are_found(self) -> None:
        person = self.id("person")
        ids = [self.id(name) for name in ("A", "B", "a", "b", "é")]
        for user_session_id in [*reversed(ids), ids[0]]:
            await self.commit(creating(user_session_id, user_id=person))
        await self.commit(creating(self.id("other"), user_id=f"{person} too"))
        found: list[str] = []
        while page := await self._people(person, after=found[-1] if found else "", limit=2):
            found += page
        assert found == ids
        assert await self._people(person, within=Within(self.id("a"))) == [self.id("a")]
        assert await self._people(person, within=Within(only=self.id("b"))) == [self.id("b")]
        assert await self._people("nobody") == []

    async def _people(self, person: str, **given: Any) -> list[str]:
        return cast(list[str], list(await self.other.list(UserSessionQuery(user_id=person, **given))))

    async def visits_that_have_been_kept_for_long_enough_are_swept(self) -> None:
        long_ago = datetime(1001, 1, 1, tzinfo=UTC)  # no other visit is as old
        times = [long_ago + timedelta(days=day) for day in range(4)]
        visits = [await self.commit(creating(self.id(), created_at=time)) for time in times]
        retention = Retention(visits=timedelta(days=1))
        while (await self.one.sweep(times[3], retention, None, 2)).next is not None:
            pass
        found = [await self._visit(visit.session_id) for visit in visits]
        assert found == [None, None, None, visits[3]]

    async def a_closed_store_has_no_visits_to_show(self) -> None:
        """After it is closed, every method fails, and none gives an empty answer."""
        write = creating(self.id())
        await self.commit(write)
        calls = (
            lambda: self.one.commit([creating(self.id())]),
            lambda: self.one.commit([ChangeVisit(session_id=write.session_id, changes=FULL)]),
            lambda: self.one.list(VisitQuery(session_id=write.session_id)),
            lambda: self.one.list(VisitQuery()),
        )
        await self.one.close()
        for call in calls:
            try:
                await call()
            except StoreUnavailable:
                continue
            raise AssertionError("a closed store answered")
        await self.one.open()
