"""The part of the contract suite that is about never losing a turn: expiry, history, idempotency keys, lists, sweeping.

`chatstate.stores.contract` runs it with the rest.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, cast

from chatstate.model import (
    ABSENT,
    ANYTHING,
    KEEP,
    PRESENT,
    REMEMBERED_FOR,
    Conflict,
    Delete,
    Deleted,
    Expect,
    IdempotencyKey,
    Position,
    Replay,
    ReplayQuery,
    Retention,
    Save,
    Session,
    SessionQuery,
    Summary,
    Swept,
    Version,
    VersionQuery,
    Write,
    none_of,
    one_of,
)
from chatstate.stores.base import Store, all_readable

START = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
"""Before all that others may have in the database: what is idle since then is ours."""

MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
SECONDS = 60


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def key(name: str = "key", request: str = "request", caller: str = "") -> IdempotencyKey:
    """An idempotency key with defaults."""
    return IdempotencyKey(name, request.encode(), caller)


class TurnChecks:
    """Checks that `Contract` has beside its own."""

    one: Store
    other: Store
    prefix: str

    def id(self, name: object = "") -> str:
        raise NotImplementedError

    async def _save(self, name: object = "", state: str | None = "{}", **given: Any) -> Any:
        """The outcome of a save, by itself, through one store. `at` is its time, `retention` what it is saved under."""
        at, retention = given.pop("at", START), given.pop("retention", KEEP)
        store: Store = given.pop("store", self.one)
        write = Save(
            user_session_id=self.id(name),
            new_session_id=str(uuid.uuid4()),
            chat_state=state,
            last_activity=given.pop("active", at),
            now=at,
            **given,
        )
        return (await store.commit([write], retention))[0]

    async def _delete(self, name: object = "", expect: Expect = PRESENT, **given: Any) -> Any:
        at, retention = given.pop("at", START), given.pop("retention", KEEP)
        write = Delete(user_session_id=self.id(name), now=at, expect=expect, **given)
        return (await self.other.commit([write], retention))[0]

    async def _load(self, name: object = "", at: datetime = START, retention: Retention = KEEP) -> Session | None:
        return all_readable(await self.other.load([self.id(name)], at, retention)).get(self.id(name))

    async def _versions(self, name: object = "", at: datetime = START, **given: Any) -> list[Version]:
        rows = await self.other.list(VersionQuery(user_session_id=self.id(name), now=at, **given))
        return cast(list[Version], list(rows))

    async def _list(self, at: datetime = START, **given: Any) -> list[Any]:
        query = SessionQuery(now=at, prefix=self.prefix + given.pop("prefix", ""), **given)
        return list(await self.other.list(query))

    # --- Expiry -------------------------------------------------------------------------------------------------------

    async def a_session_expires_at_its_moment(self) -> None:
        saved = await self._save(expires_in=SECONDS)
        assert saved.expires_at == after(SECONDS)
        assert await self._load(at=after(SECONDS) - MICROSECOND) == saved
        assert await self._load(at=after(SECONDS)) is None
        assert await self._load() == saved  # reading changes nothing

    async def an_expired_session_is_absent_for_every_kind_of_write(self) -> None:
        for number, (idle, state) in enumerate(product((False, True), ("new", None))):
            retention = Retention(idle=MINUTE) if idle else KEEP
            given: dict[str, Any] = {"at": after(SECONDS), "retention": retention}
            saved = await self._save(number, expires_in=None if idle else SECONDS, retention=retention)
            for expect in (PRESENT, one_of([saved.tag])):
                assert await self._save(number, state, expect=expect, **given) == Conflict(None)
            assert await self._load(number, after(SECONDS), retention) is None
            assert await self._versions(number, after(SECONDS), retention=retention) == []
            assert await self._list(after(SECONDS), prefix=str(number), retention=retention) == []
            assert await self._delete(number, **given) == Conflict(None)

    async def a_deletion_removes_an_expired_session_all_the_same(self) -> None:
        """It was not there, but whoever wants it gone need not wait for a sweep."""
        await self._save(expires_in=SECONDS)
        assert await self._delete(at=after(SECONDS)) == Conflict(None)
        assert await self._load() is None

    async def each_write_renews_the_expiry(self) -> None:
        first = await self._save(expires_in=SECONDS)
        for number, (state, expect) in enumerate(product(("new", None), (ANYTHING, PRESENT)), 1):
            at = after(50 * number)
            renewed = await self._save(state=state, expect=expect & PRESENT if state is None else expect, at=at)
            assert renewed.expires_at == at + MINUTE
            assert renewed.session_id == first.session_id
            assert await self._load(at=at + MINUTE - MICROSECOND) == renewed
            assert await self._load(at=at + MINUTE) is None

    async def an_expiry_is_given_changed_and_taken_away(self) -> None:
        """By every kind of write, absent or present: a number sets it, 0 takes it away, None leaves it."""
        for number, (before, now, expect) in enumerate(
            product((None, 0, 30), (None, 0, SECONDS), (ANYTHING, PRESENT, ABSENT, none_of([])))
        ):
            if expect != ABSENT:
                await self._save(number, expires_in=before)
            saved = await self._save(number, "new", expires_in=now, expect=expect, at=after(1))
            seconds = now if now is not None or expect == ABSENT else before
            assert saved.expires_at == (after(1 + seconds) if seconds else None), (before, now, expect)
            assert await self._load(number, after(1)) == saved

    async def a_creation_in_the_place_of_an_expired_session_is_a_new_one(self) -> None:
        retention = Retention(history=5)
        for number, (writes, expect) in enumerate(product((1, 3), (ANYTHING, ABSENT, none_of([]), none_of([])))):
            for turn in range(writes):
                old = await self._save(number, f"old {turn}", expires_in=SECONDS, retention=retention)
            allowing = none_of([old.tag]) if number % 4 == 3 else expect
            new = await self._save(number, "new", expect=allowing, at=after(SECONDS), retention=retention)
            assert new.session_id != old.session_id
            assert (new.version, new.created_at, new.expires_at) == (1, after(SECONDS), None)
            assert await self._load(number, after(1000)) == new
            assert [row.session_id for row in await self._versions(number, after(1000))] == [new.session_id]
            assert await self._save(number, "zombie", expect=one_of([old.tag]), at=after(1000)) == Conflict(new.tag)

    async def an_idle_session_expires_unless_it_has_an_expiry_of_its_own(self) -> None:
        retention = Retention(idle=MINUTE)
        idle, own = await self._save("idle"), await self._save("own", expires_in=10 * SECONDS)
        assert await self._load("idle", after(SECONDS) - MICROSECOND, retention) == idle
        assert await self._load("idle", after(SECONDS), retention) is None
        assert await self._load("idle", after(SECONDS)) == idle
        assert await self._load("own", after(9 * SECONDS), retention) == own
        assert await self._load("own", after(10 * SECONDS), retention) is None
        short = await self._save("short", expires_in=1)
        assert await self._load("short", after(1), retention) is None
        assert short.expires_at == after(1)

    async def many_creations_in_the_place_of_an_expired_session(self) -> None:
        """Through both stores at once: of those that expect nothing there one wins, and plain writes all count."""
        for name, expect in (("absent", ABSENT), ("plain", ANYTHING)):
            old = await self._save(name, expires_in=SECONDS)
            stores = [self.one, self.other] * 8
            outcomes = await asyncio.gather(
                *(self._save(name, str(n), expect=expect, at=after(SECONDS), store=s) for n, s in enumerate(stores))
            )
            won = [outcome for outcome in outcomes if isinstance(outcome, Session)]
            assert [session.version for session in sorted(won, key=lambda session: session.version)] == [
                *range(1, 2 if expect == ABSENT else 17)
            ]
            assert {session.session_id for session in won} == {won[0].session_id} != {old.session_id}

    # --- History ------------------------------------------------------------------------------------------------------

    async def the_newest_versions_are_kept(self) -> None:
        retention = Retention(history=3)
        saved = [await self._save(state=f"state {n}", at=after(n), retention=retention) for n in range(1, 6)]
        expected = [Version(s.session_id, s.version, s.last_activity, s.updated_at, 7, s.chat_state) for s in saved]
        assert await self._versions(with_state=True) == expected[:1:-1]
        assert [row.chat_state for row in await self._versions()] == [None] * 3
        assert [row.version for row in await self._versions(limit=1)] == [5]
        assert [row.version for row in await self._versions(before=5)] == [4, 3]
        assert await self._versions(version=4, with_state=True) == [expected[3]]
        assert await self._versions(version=2) == []

    async def without_a_history_the_current_version_is_there_alone(self) -> None:
        await self._save(state="old")
        saved = await self._save(state="näw")
        assert await self._versions(with_state=True) == [Version(saved.session_id, 2, START, START, 4, "näw")]

    async def a_version_is_kept_whoever_wrote_it(self) -> None:
        """What was written before history was turned on, or by a server without it, is recorded when it is replaced."""
        for number in range(1, 7):
            retention = Retention(history=10) if number % 2 == 0 else KEEP
            await self._save(state=str(number), retention=retention)
        assert [row.chat_state for row in await self._versions(with_state=True)] == ["6", "5", "4", "3", "2", "1"]

    async def every_kind_of_write_has_its_version(self) -> None:
        retention = Retention(history=10)
        await self._save(state="created", expect=ABSENT, retention=retention)
        await self._save(state="replaced", retention=retention)
        await self._save(state=None, expect=PRESENT, active=after(5), retention=retention)
        await self._save(state="updated", expect=PRESENT, retention=retention)
        assert isinstance(await self._save(state="refused", expect=ABSENT, retention=retention), Conflict)
        rows = await self._versions(with_state=True)
        assert [row.chat_state for row in rows] == ["updated", "replaced", "replaced", "created"]
        assert rows[1].last_activity == after(5)

    async def a_deletion_removes_the_history(self) -> None:
        retention = Retention(history=10)
        for state in ("one", "two"):
            await self._save(state=state, retention=retention)
        assert isinstance(await self._delete(), Deleted)
        assert await self._versions() == []
        await self._save(state="three", retention=retention)
        assert [row.chat_state for row in await self._versions(with_state=True)] == ["three"]

    # --- Idempotency keys ---------------------------------------------------------------------------------------------

    async def a_write_with_a_key_happens_once(self) -> None:
        """Whatever it expects, and whatever has happened since."""
        for number, write in enumerate(self._keyed_writes()):
            await self._save(number, "before")
            first = await self._once(number, write)
            assert not isinstance(first, Replay | Conflict)
            expected = _replay(first, keeps_state=write.get("state", "") is None)
            assert await self._once(number, write, at=after(5)) == expected
            if isinstance(first, Session):
                moved_on = await self._save(number, "moved on", at=after(6))
                assert await self._once(number, write, at=after(7)) == expected
                assert await self._load(number) == moved_on
            else:
                assert await self._load(number) is None

    @staticmethod
    def _keyed_writes() -> Iterator[dict[str, Any]]:
        yield {"state": "plain"}
        yield {"state": "present", "expect": PRESENT, "expires_in": SECONDS}
        yield {"state": None, "expect": PRESENT}
        yield {"delete": True}

    async def _once(self, name: object, write: dict[str, Any], **given: Any) -> Any:
        given = {"once": key(), **write, **given}
        return await (self._delete if given.pop("delete", False) else self._save)(name, **given)

    async def a_key_belongs_to_one_session_and_one_caller(self) -> None:
        await self._save("a", "one", once=key())
        assert isinstance(await self._save("b", "one", once=key()), Session)
        assert isinstance(await self._save("a", "two", once=key(caller="other")), Session)
        assert isinstance(await self._save("a", "two", once=key("other")), Session)
        replay = await self._save("a", "three", once=key(request="another"))
        assert isinstance(replay, Replay)
        assert replay.digest == b"request"
        loaded = await self._load("a")
        assert loaded
        assert (loaded.chat_state, loaded.version) == ("two", 3)

    async def a_failed_write_is_not_remembered(self) -> None:
        assert await self._save(state="x", expect=PRESENT, once=key()) == Conflict(None)
        created = await self._save(state="x", once=key())
        assert isinstance(created, Session)
        assert await self._save(state="x", expect=ABSENT, once=key("2")) == Conflict(created.tag)
        assert await self._save(state="x", expect=ABSENT, once=key("2")) == Conflict(created.tag)

    async def a_key_outlives_its_session_but_no_state_does(self) -> None:
        saved = await self._save(state="text", once=key("save"))
        kept = await self._save(state=None, expect=PRESENT, once=key("keep"))
        await self._delete()
        assert await self._save(state="text", once=key("save"), at=after(9)) == _replay(saved, keeps_state=False)
        assert await self._save(state=None, expect=PRESENT, once=key("keep")) == _replay(kept, keeps_state=False)
        assert await self._load() is None

    async def a_key_is_forgotten_in_the_end(self) -> None:
        await self._save(state="one", once=key())
        until = START + REMEMBERED_FOR
        assert isinstance(await self._save(state="one", once=key(), at=until - MICROSECOND), Replay)
        again = await self._save(state="one", once=key(), at=until)
        assert (again.version, again.updated_at) == (2, until)
        assert await self._save(state="one", once=key(), at=until) == _replay(again, keeps_state=False)

    async def what_is_remembered_can_be_asked_for(self) -> None:
        saved = await self._save(once=key())
        query = ReplayQuery(user_session_id=self.id(), once=key(), now=START)
        assert list(await self.other.list(query)) == [_replay(saved, keeps_state=False)]
        for absent in (key("other"), key(caller="other")):
            assert list(await self.other.list(ReplayQuery(user_session_id=self.id(), once=absent, now=START))) == []

    async def concurrent_duplicates_are_one_write(self) -> None:
        """Through both stores at once, present and absent sessions, every kind of write."""
        for number, write in enumerate((*self._keyed_writes(), {"state": "new", "expect": ABSENT})):
            if write.get("expect") != ABSENT:
                await self._save(number, "before")
            stores = (self.one, self.other) * 6
            outcomes = await asyncio.gather(*(self._raced(number, write, store) for store in stores))
            (first,) = [outcome for outcome in outcomes if not isinstance(outcome, Replay)]
            assert not isinstance(first, Conflict)
            expected = _replay(first, keeps_state=write.get("state", "") is None)
            assert [outcome for outcome in outcomes if isinstance(outcome, Replay)] == [expected] * 11
            loaded = await self._load(number)
            assert (loaded and loaded.tag) == (first.tag if isinstance(first, Session) else None)

    async def _raced(self, name: object, write: dict[str, Any], store: Store) -> Any:
        if write.get("delete"):
            delete = Delete(user_session_id=self.id(name), now=START, once=key())
            return (await store.commit([delete]))[0]
        return await self._save(name, store=store, once=key(), **write)

    async def keyed_and_other_writes_share_a_batch(self) -> None:
        await self._save("replayed", "before", once=key())
        names = ("plain", "keyed", "replayed", "conflict")
        writes: list[Write] = [
            Save(
                user_session_id=self.id(name),
                new_session_id=str(uuid.uuid4()),
                chat_state=name,
                last_activity=START,
                now=START,
                expect=PRESENT if name == "conflict" else ANYTHING,
                once=None if name == "plain" else key(),
            )
            for name in names
        ]
        outcomes = await self.other.commit(writes)
        assert [type(outcome) for outcome in outcomes] == [Session, Session, Replay, Conflict]
        sessions = all_readable(await self.one.load([self.id(name) for name in names], START))
        states = {name: session.chat_state for name, session in sessions.items()}
        assert states == {self.id("plain"): "plain", self.id("keyed"): "keyed", self.id("replayed"): "before"}

    # --- Lists --------------------------------------------------------------------------------------------------------

    async def a_list_has_pages_without_gaps(self) -> None:
        """In both orders, sessions of one moment among them, with their states and without."""
        saved = [await self._save(f"{n:02}", str(n), active=after(n // 3), expires_in=SECONDS) for n in range(10)]
        by_activity = sorted(saved, key=lambda s: (s.last_activity, s.user_session_id), reverse=True)
        for order, expected in (("id", saved), ("activity", by_activity)):
            assert await self._all_pages(order=order, with_state=True) == expected
            assert await self._all_pages(order=order) == [_summary(session) for session in expected]

    async def _all_pages(self, **given: Any) -> list[Any]:
        found: list[Any] = []
        while page := await self._list(limit=3, after=_position(found[-1]) if found else None, **given):
            found += page
        return found

    async def ids_are_listed_in_the_order_of_their_bytes(self) -> None:
        names = ["", "!", "-", "A", "B", "Z", "_", "a", "a ", "aa", "b", "é", "ÿ", "Ā", "€", "\uffee", "😀"]
        for name in reversed(names):
            await self._save(name)
        assert [row.user_session_id for row in await self._list(order="id")] == [self.id(name) for name in names]

    async def a_prefix_is_literal(self) -> None:
        names = ["a", "a%", "a%b", "a_", "aXb", "A%", "a\\", "a\U0010ffff", "a\U0010ffffz", "b", "\ud7ffz", "\ue000"]
        for name in names:
            await self._save(name)
        for prefix, order in product(("a", "a%", "a_", "a\\", "A", "a\U0010ffff", "\ud7ff", "c"), ("id", "activity")):
            rows = await self._list(prefix=prefix, order=order)
            assert {row.user_session_id for row in rows} == {self.id(n) for n in names if n.startswith(prefix)}

    async def a_prefix_may_have_many_ids_or_few(self) -> None:
        """A store may look for the one in another way than for the other."""
        active = {self.id(f"{number:03}"): after(number * 7 % 600) for number in range(600)}
        await self.one.commit(
            [
                Save(
                    user_session_id=user_session_id,
                    new_session_id=str(uuid.uuid4()),
                    chat_state="",
                    last_activity=last_activity,
                    now=START,
                )
                for user_session_id, last_activity in active.items()
            ]
        )
        bounds = {"active_after": after(100), "active_before": after(500)}
        for prefix in ("", "0", "01", "019"):
            found = [row.user_session_id for row in await self._list(prefix=prefix, limit=50, **bounds)]
            expected = [
                one for one in active if one.startswith(self.id(prefix)) and after(100) <= active[one] < after(500)
            ]
            assert found == sorted(expected, key=lambda one: active[one], reverse=True)[:50]
            rest = await self._list(prefix=prefix, limit=50, after=Position(after(300), self.id()), **bounds)
            assert {row.user_session_id for row in rest} <= {one for one in expected if active[one] <= after(300)}
            assert len(rest) == min(50, len([one for one in expected if active[one] < after(300)]))

    async def a_list_may_be_bounded_by_activity(self) -> None:
        for number in range(4):
            await self._save(number, active=after(number))
        for order, first, end in product(("id", "activity"), (None, *range(5)), (None, *range(5))):
            rows = await self._list(
                order=order,
                active_after=None if first is None else after(first),
                active_before=None if end is None else after(end),
            )
            expected = {self.id(number) for number in range(4)[first or 0 : end]}
            assert {row.user_session_id for row in rows} == expected

    # --- Sweeping -----------------------------------------------------------------------------------------------------

    async def sweeping_removes_what_has_expired_and_nothing_else(self) -> None:
        retention = Retention(idle=MINUTE, history=3)
        at = LONG_AGO
        for number in range(7):
            await self._save(f"own {number}", at=at, expires_in=10, retention=retention)
            await self._save(f"idle {number}", at=at, retention=retention)
            await self._save(f"live {number}", at=at, expires_in=600, retention=retention)
        assert await self._sweep(at + timedelta(seconds=9), retention) == 0
        assert await self._sweep(at + timedelta(seconds=10), retention) == 7
        assert await self._sweep(at + MINUTE - MICROSECOND, retention) == 0
        assert await self._sweep(at + MINUTE, KEEP) == 0
        assert await self._sweep(at + MINUTE, retention) == 7
        left = await self._list(at, order="id")
        assert [row.user_session_id for row in left] == [self.id(f"live {number}") for number in range(7)]
        assert len(await self._versions("live 0", at)) == 1

    async def _sweep(self, now: datetime, retention: Retention, limit: int = 3) -> int:
        """How many sessions a whole round removes, a few at a time."""
        swept = Swept(0, "")
        removed = 0
        while swept.next is not None:
            swept = await self.one.sweep(now, retention, swept.next or None, limit)
            removed += swept.sessions
        return removed

    async def several_may_sweep_at_once(self) -> None:
        retention = Retention(idle=MINUTE)
        for number in range(30):
            await self._save(number, at=LONG_AGO, expires_in=10 if number % 2 else None)
        sweeps = [store.sweep(LONG_AGO + MINUTE, retention, None, 100) for store in (self.one, self.other) * 3]
        await asyncio.gather(*sweeps)
        await self._sweep(LONG_AGO + MINUTE, retention)  # others may have left what they took for being written
        assert await self._list(LONG_AGO) == []

    async def sweeping_forgets_keys(self) -> None:
        await self._save(at=LONG_AGO, once=key())
        query = ReplayQuery(user_session_id=self.id(), once=key(), now=LONG_AGO)
        assert await self._sweep(LONG_AGO + REMEMBERED_FOR - MICROSECOND, KEEP) == 0
        assert len(await self.other.list(query)) == 1
        assert await self._sweep(LONG_AGO + REMEMBERED_FOR, KEEP) == 0
        assert await self.other.list(query) == []
        assert await self._load(at=LONG_AGO)


def _position(row: Session | Summary) -> Position:
    return Position(row.last_activity, row.user_session_id)


def _summary(session: Session) -> Summary:
    times = (session.last_activity, session.created_at, session.updated_at)
    return Summary(session.session_id, session.user_session_id, *times, session.version, session.expires_at)


def _replay(outcome: Session | Deleted, keeps_state: bool) -> Replay:
    if isinstance(outcome, Deleted):
        return Replay(b"request", outcome)
    return Replay(b"request", _summary(outcome), outcome.chat_state if keeps_state else None)
