"""Writes that change a session and its messages take several steps in a Valkey Cluster. Here each of them is stopped.

Whatever has become of a write that was stopped, another store goes on, and afterwards everything has happened once or
not at all, and nothing is left halfway.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import product
from random import Random, SystemRandom
from typing import Any, Literal, TypeVar, cast, get_args

import pytest
from msgspec import json
from msgspec.structs import replace

from chatstate.errors import OutcomeUnknown, StoreError
from chatstate.mailbox import (
    REMEMBERED_FOR,
    DueQuery,
    EraseMail,
    InboxEntry,
    InboxQuery,
    MailErased,
    OutboxEntry,
    OutboxQuery,
    Postpone,
    Progress,
    Receive,
    Received,
    Send,
    Settle,
    Settled,
)
from chatstate.model import (
    ABSENT,
    ANYTHING,
    KEEP,
    Conflict,
    Delete,
    Deleted,
    Expect,
    IdempotencyKey,
    Replay,
    Save,
    Session,
    one_of,
)
from chatstate.stores import valkey_mail_lists as mail_lists
from chatstate.stores.base import AnyWrite, all_readable
from chatstate.stores.valkey import ValkeyStore
from chatstate.stores.valkey_cluster import Call, Cluster
from chatstate.stores.valkey_keys import SessionKeys
from tests.servers.valkey_contents import keys_in

T = TypeVar("T")

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)

Fault = Literal["dies after", "is not sent", "is not confirmed", "is held"]
"""What becomes of one step: the process dies behind it; nobody knows whether it has happened, and it has not, or has;
or it takes so long that others have long gone on."""

FAULTS: tuple[Fault, ...] = get_args(Fault)

MOST_STEPS = 14
"""More than any write has."""


class Died(BaseException):
    """The process is no more."""


class FaultyCluster(Cluster):
    """A cluster, by the connections of another one, in which something becomes of one step."""

    def __init__(self, cluster: Cluster, step: int, fault: Fault) -> None:
        super().__init__(cluster.url)
        self.fault = fault
        self.reached, self.released = asyncio.Event(), asyncio.Event()
        self.shards, self._by_slot = cluster.shards, cluster._by_slot
        self._cluster = cluster
        self._left = step

    async def read_some(self, calls: Sequence[Call]) -> list[Any]:
        return await self._cluster.read_some(calls)

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        self._left -= 1
        if self._left != 0:
            return await self._cluster.write(calls)
        self.reached.set()
        if self.fault == "is held":
            await self.released.wait()
            return await self._cluster.write(calls)
        if self.fault != "is not sent":
            await self._cluster.write(calls)
        if self.fault == "dies after":
            raise Died
        return [OutcomeUnknown() for _ in calls]


class Interrupted:
    """A write that something happens to at one of its steps.

    outcome  what it has come to, as far as anybody was told
    """

    def __init__(self, store: ValkeyStore, write: AnyWrite, step: int, fault: Fault) -> None:
        self.outcome: Any = None
        self._cluster = FaultyCluster(store._cluster, step, fault)
        self._store = in_place(store, "", self._cluster)
        self._task = asyncio.create_task(self._run(write))

    async def begin(self) -> bool:
        """Let it run into its fault; false when it has fewer steps."""
        reached = asyncio.create_task(self._cluster.reached.wait())
        await asyncio.wait([self._task, reached], return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if self._cluster.fault != "is held":
            await self._task
        return self._cluster.reached.is_set()

    async def _run(self, write: AnyWrite) -> None:
        with suppress(Died):
            (self.outcome,) = await self._store.commit([write])

    async def end(self) -> None:
        """If it was held, it goes on now."""
        self._cluster.released.set()
        await self._task


def in_place(store: ValkeyStore, place: str, cluster: Cluster | None = None) -> ValkeyStore:
    """Another store, by the same connections, in a place of its own within that of the first."""
    other = ValkeyStore(f"valkey://127.0.0.1?prefix={store._prefix}{place}")
    other._cluster = cluster or store._cluster
    return other


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[ValkeyStore]:
    """A store in a place of its own."""
    one = ValkeyStore(valkey_url)
    await one.open()
    yield one
    await one.close()


async def commit(store: ValkeyStore, write: AnyWrite) -> Any:
    (outcome,) = await store.commit([write])
    return outcome


def receiving(key: str, conversation: str = "c") -> Receive:
    return Receive(key=key, conversation=conversation, document=f"what {key} says", sent_at=NOW, now=NOW)


def sending(key: str, session: str, conversation: str = "d") -> Send:
    return Send(key=key, conversation=conversation, user_session_id=session, document=f"reply {key}")


def settling(key: str, session: str, replies: int = 2) -> Settle:
    sends = tuple(sending(f"{key}.{number}", session) for number in range(replies))
    return Settle(key=key, now=NOW, sends=sends)


def turn(key: str, session: str, expect: Expect = ANYTHING, state: str = "", replies: int = 2) -> Save:
    return Save(
        user_session_id=session,
        new_session_id=str(uuid.uuid4()),
        chat_state=state or key,
        last_activity=NOW,
        now=NOW,
        expect=expect,
        settles=settling(key, session, replies),
    )


def deleting(session: str, *conversations: str, once: IdempotencyKey | None = None) -> Delete:
    return Delete(user_session_id=session, now=NOW, erases=erasing(session, *conversations), once=once)


def erasing(session: str, *conversations: str) -> EraseMail:
    return EraseMail(user_session_id=session, conversations=conversations, now=NOW)


async def states(store: ValkeyStore, *sessions: str) -> dict[str, str]:
    return {name: one.chat_state for name, one in all_readable(await store.load(sessions, NOW)).items()}


async def inbox(store: ValkeyStore, conversation: str | None = None) -> dict[str, InboxEntry]:
    found = cast(Sequence[InboxEntry], await store.list(InboxQuery(now=NOW, conversation=conversation, limit=1000)))
    assert len({entry.key for entry in found}) == len(found)
    return {entry.key: entry for entry in found}


async def outbox(store: ValkeyStore) -> list[str]:
    """What is to leave, as every list has it: key, and for which session."""
    entries = cast(Sequence[OutboxEntry], await store.list(OutboxQuery(now=NOW, limit=1000)))
    by_session = [
        entry
        for session in dict.fromkeys(entry.user_session_id for entry in entries)
        for entry in cast(Sequence[OutboxEntry], await store.list(OutboxQuery(now=NOW, user_session_id=session)))
    ]
    assert sorted(by_session, key=lambda entry: entry.key) == sorted(entries, key=lambda entry: entry.key)
    return [f"{entry.key} for {entry.user_session_id}" for entry in entries]


async def heads(store: ValkeyStore, box: Literal["inbox", "outbox"] = "inbox") -> list[str]:
    return cast(list[str], await store.list(DueQuery(box=box, now=NOW)))


GoOn = Callable[[ValkeyStore, Any], Awaitable[Any]]
Check = Callable[[ValkeyStore, Any, Any], Awaitable[None]]


async def stopped_everywhere(
    store: ValkeyStore,
    fault: Fault,
    write: AnyWrite,
    prepare: Sequence[AnyWrite],
    go_on: GoOn,
    check: Check,
    fewest: int,
) -> None:
    """Stop the write at each of its steps, each time in a place of its own; `go_on` with another store, and `check`
    what is there in the end: both are given the outcome of the write, as far as it is known by then, and `check` what
    `go_on` has come to."""

    async def stopped_at(step: int) -> bool:
        other = in_place(store, f"{step}:")
        for before in prepare:
            await commit(other, before)
        interrupted = Interrupted(other, write, step, fault)
        is_reached = await interrupted.begin()
        try:
            retried = await go_on(other, interrupted.outcome)
        finally:
            await interrupted.end()
        await check(other, interrupted.outcome, retried)
        return is_reached

    reached = await all_of(map(stopped_at, range(1, MOST_STEPS + 1)))
    assert fewest <= sum(reached) < MOST_STEPS


async def all_of(tasks: Iterable[Awaitable[T]]) -> list[T]:
    """What they come to, all at once; the first error when all have ended, so that none goes on without a store."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return cast(list[T], found)


each_fault = pytest.mark.parametrize("fault", FAULTS)


# --- A turn -----------------------------------------------------------------------------------------------------------


@each_fault
async def test_a_message_changes_its_session_once(store: ValkeyStore, fault: Fault) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        retried = await commit(store, turn("k", "s"))
        assert retried == Settled(False) or not isinstance(outcome, Session)
        return retried

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert [type(one) for one in (outcome, retried)].count(Session) <= 1
        assert (await states(store, "s"), await outbox(store)) == ({"s": "k"}, ["k.0 for s", "k.1 for s"])
        (session,) = all_readable(await store.load(["s"], NOW)).values()
        (entry,) = (await inbox(store, "c")).values()
        assert (session.version, entry.status, entry.document, await heads(store)) == (1, "applied", "", [])
        assert await commit(store, turn("k", "s", state="again")) == Settled(False)
        assert await commit(store, Settle(key="k", now=NOW)) == Settled(False)

    await stopped_everywhere(store, fault, turn("k", "s"), [receiving("k")], go_on, check, fewest=7)


@each_fault
async def test_a_message_changes_one_session_though_its_writer_was_linked_to_another(
    store: ValkeyStore, fault: Fault
) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        retried = await commit(store, turn("k", "other"))
        assert retried == Settled(False) or not isinstance(outcome, Session)
        return retried

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        found = await states(store, "one", "other")
        (session,) = found
        assert await outbox(store) == [f"k.0 for {session}", f"k.1 for {session}"]
        assert isinstance(retried, Session) == (session == "other")
        assert not isinstance(outcome, Session) or session == "one"
        assert [entry.status for entry in (await inbox(store)).values()] == ["applied"]
        for name in ("one", "other"):
            assert await commit(store, turn("k", name, state="again")) == Settled(False)
        assert await states(store, "one", "other") == found

    await stopped_everywhere(store, fault, turn("k", "one"), [receiving("k")], go_on, check, fewest=7)


@each_fault
async def test_a_claim_that_is_taken_over_is_void_also_when_that_is_stopped(store: ValkeyStore, fault: Fault) -> None:
    """The first has claimed the message, and sleeps; the second is stopped while it takes it over; the third comes."""

    async def stopped_at(step: int) -> bool:
        other = in_place(store, f"{step}:")
        await commit(other, receiving("k"))
        sleeping = Interrupted(other, turn("k", "early"), 3, "is held")
        assert await sleeping.begin()
        interrupted = Interrupted(other, turn("k", "one"), step, fault)
        is_reached = await interrupted.begin()
        await commit(other, turn("k", "other"))
        await interrupted.end()
        await sleeping.end()  # it wakes up and means to change its session
        assert sleeping.outcome == Settled(False)
        (session,) = await states(other, "early", "one", "other")
        assert session != "early"
        assert await outbox(other) == [f"k.0 for {session}", f"k.1 for {session}"]
        assert await commit(other, turn("k", "early")) == Settled(False)
        return is_reached

    assert 9 <= sum(await all_of(map(stopped_at, range(1, MOST_STEPS + 1)))) < MOST_STEPS


@each_fault
async def test_a_turn_that_is_retried_by_its_key_is_answered_as_it_was(store: ValkeyStore, fault: Fault) -> None:
    once = IdempotencyKey("key", b"digest")
    write = cast(Save, turn("k", "s"))
    write = Save(**{name: getattr(write, name) for name in write.__struct_fields__} | {"once": once})

    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        retried = await commit(store, write)
        assert isinstance(retried, Replay if isinstance(outcome, Session) else Session | Replay)

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert isinstance(await commit(store, write), Replay)
        await commit(store, turn("k", "s", state="again"))  # whoever comes for the message
        assert (await states(store, "s"), await outbox(store)) == ({"s": "k"}, ["k.0 for s", "k.1 for s"])
        assert [entry.status for entry in (await inbox(store)).values()] == ["applied"]

    await stopped_everywhere(store, fault, write, [receiving("k")], go_on, check, fewest=7)


# --- A message alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "then"),
    [*((fault, "settle") for fault in FAULTS), *product(("dies after", "is held"), ("turn", "postpone", "erase"))],
)
async def test_a_message_that_is_settled_sends_once(store: ValkeyStore, fault: Fault, then: str) -> None:
    after: dict[str, AnyWrite] = {
        "settle": settling("k", "s"),
        "turn": turn("k", "s"),
        "postpone": Postpone(key="k", now=NOW, due_at=NOW, tries=1),
        "erase": erasing("s", "c"),
    }
    replies = ["k.0 for s", "k.1 for s"]

    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        following = await commit(store, after[then])
        if outcome == Settled(True):
            assert following == Settled(False) or isinstance(following, MailErased)

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        if then == "postpone":
            await commit(store, settling("k", "s"))
        assert [entry.status for entry in (await inbox(store)).values()] == ["applied"]
        assert await heads(store) == []
        if then == "erase":
            assert await outbox(store) in ([], replies if fault == "is held" else [])
        else:
            assert await outbox(store) == replies
        assert await commit(store, settling("k", "s")) == Settled(False)

    await stopped_everywhere(store, fault, settling("k", "s"), [receiving("k")], go_on, check, fewest=6)


@each_fault
async def test_a_message_is_kept_once_wherever_it_is_delivered(store: ValkeyStore, fault: Fault) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        retried = await commit(store, receiving("k", "elsewhere"))
        assert isinstance(retried, Received)
        if outcome == Received(True):
            assert not retried.is_new

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        (entry,) = (await inbox(store)).values()
        assert (entry.status, await heads(store)) == ("pending", [entry.conversation])
        assert await commit(store, turn("k", "s")) != Settled(False)
        assert await heads(store) == []

    await stopped_everywhere(store, fault, receiving("k", "c"), [], go_on, check, fewest=2)


@each_fault
async def test_what_a_channel_has_taken_is_known_by_its_key(store: ValkeyStore, fault: Fault) -> None:
    sent = Progress(now=NOW, status="sent", key="k.0", provider_key="p")

    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        retried = await commit(store, sent)
        assert retried == Settled(False) or outcome != Settled(True)

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert await commit(store, Progress(now=NOW, status="read", provider_key="p")) == Settled(True)
        found = cast(Sequence[OutboxEntry], await store.list(OutboxQuery(now=NOW, conversation="d")))
        assert [(entry.key, entry.status, entry.document) for entry in found] == [("k.0", "read", "")]

    prepared = [receiving("k"), settling("k", "s", replies=1)]
    await stopped_everywhere(store, fault, sent, prepared, go_on, check, fewest=3)


# --- The end ----------------------------------------------------------------------------------------------------------

LIVING: Sequence[AnyWrite] = (receiving("done"), receiving("late"), turn("done", "s"))
"""A session that has answered one message, and another that waits."""


@pytest.mark.parametrize(
    ("fault", "mends"),
    [*((fault, "a turn") for fault in FAULTS), ("dies after", "the deletion"), ("dies after", "a sweep")],
)
async def test_a_deletion_lets_no_message_bring_the_session_back(store: ValkeyStore, fault: Fault, mends: str) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        is_deleted = await states(store, "s") == {}
        assert is_deleted or not isinstance(outcome, Deleted)
        await commit(store, receiving("new"))  # arrives after it, if it has happened
        if mends == "a turn":
            outcome = await commit(store, turn("late", "s", ABSENT))
            assert outcome == Settled(False) if is_deleted else isinstance(outcome, Conflict)
        if mends == "the deletion" or not is_deleted:
            assert isinstance(await commit(store, deleting("s", "c")), Conflict if is_deleted else Deleted)
        if mends == "a sweep":
            await store.sweep(NOW, KEEP, None, 100)
        assert await states(store, "s") == {}
        assert await outbox(store) == []
        found = await inbox(store)
        assert [found[key].status for key in ("done", "late")] == ["applied"] * 2
        assert found["new"].status == "pending" if is_deleted else found["new"].document == ""

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert (await states(store, "s"), await outbox(store)) == ({}, [])
        assert await commit(store, turn("late", "s", ABSENT)) == Settled(False)
        is_open = (await inbox(store))["new"].status == "pending"
        assert isinstance(await commit(store, turn("new", "s", ABSENT)), Session if is_open else Settled)
        assert len(await outbox(store)) == (2 if is_open else 0)
        assert await commit(store, turn("late", "s")) == Settled(False)

    await stopped_everywhere(store, fault, deleting("s", "c"), LIVING, go_on, check, fewest=7)


@each_fault
async def test_what_a_turn_sends_is_erased_wherever_the_turn_was_stopped(store: ValkeyStore, fault: Fault) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        assert isinstance(await commit(store, erasing("s", "c")), MailErased)
        assert (await outbox(store), await heads(store)) == ([], [])

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert (await outbox(store), await heads(store), await heads(store, "outbox")) == ([], [], [])
        found = await inbox(store)
        assert [(entry.status, entry.document) for entry in found.values()] == [("applied", "")]
        assert await commit(store, turn("k", "s", state="again")) == Settled(False)
        assert await states(store, "s") in ({}, {"s": "k"})

    await stopped_everywhere(store, fault, turn("k", "s"), [receiving("k")], go_on, check, fewest=7)


@each_fault
async def test_what_a_turn_sends_goes_with_its_session_wherever_it_was_stopped(
    store: ValkeyStore, fault: Fault
) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        assert isinstance(await commit(store, deleting("s", "c")), Deleted)
        assert (await states(store, "s"), await outbox(store), await heads(store)) == ({}, [], [])

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        assert (await states(store, "s"), await outbox(store), await heads(store)) == ({}, [], [])
        assert await commit(store, turn("late", "s")) == Settled(False)

    await stopped_everywhere(store, fault, turn("late", "s"), LIVING, go_on, check, fewest=7)


@each_fault
async def test_an_erasure_that_was_stopped_is_finished_and_spares_what_comes_after(
    store: ValkeyStore, fault: Fault
) -> None:
    async def go_on(store: ValkeyStore, outcome: Any) -> Any:
        assert isinstance(await commit(store, erasing("s", "c")), MailErased)
        assert (await outbox(store), await heads(store)) == ([], [])
        await commit(store, receiving("new"))
        await commit(store, turn("new", "s", state="new"))

    async def check(store: ValkeyStore, outcome: Any, retried: Any) -> None:
        # One that was held, and erases what was there when it has put up its fence, is as one that comes later.
        assert await outbox(store) in (["new.0 for s", "new.1 for s"], [] if fault == "is held" else ["?"])
        assert await states(store, "s") == {"s": "new"}
        assert {entry.document for entry in (await inbox(store)).values()} == {""}

    await stopped_everywhere(store, fault, erasing("s", "c"), LIVING, go_on, check, fewest=7)


async def test_a_reply_with_a_key_that_is_known_is_listed_for_nobody(store: ValkeyStore) -> None:
    """Else the list would have it for ever: no sweep knows of it."""
    await store.commit([receiving("a"), receiving("b"), receiving("c")])
    first, second = sending("k", "s"), sending("k", "late")
    await commit(store, Settle(key="a", now=NOW, sends=(first,)))
    await commit(store, Settle(key="b", now=NOW, sends=(second, second)))
    elsewhere = sending("k", "late", conversation="e")
    await commit(store, replace(turn("c", "late"), settles=Settle(key="c", now=NOW, sends=(elsewhere,))))
    lists = [key for key in await keys_in(store._cluster, store._prefix) if key.endswith(b"}:out")]
    assert lists == [SessionKeys(store._prefix, "s").own("out").encode()]
    assert await outbox(store) == ["k for s"]


@pytest.mark.parametrize("fault", FAULTS[:3])
async def test_a_sweep_that_was_stopped_is_finished_by_the_next_one(store: ValkeyStore, fault: Fault) -> None:
    """Nothing is left that leads to a message that is forgotten."""
    later = NOW + REMEMBERED_FOR
    for step in range(1, MOST_STEPS):
        place = in_place(store, f"{step}:")
        await commit(place, receiving("m"))
        await commit(place, settling("m", "s"))
        for number in range(2):
            sent = Progress(now=NOW, status="sent", key=f"m.{number}", provider_key=f"p{number}")
            assert await commit(place, sent) == Settled(True)
        faulty = FaultyCluster(place._cluster, step, fault)
        with suppress(Died):
            await mail_lists.sweep(faulty, place._prefix, later, KEEP, 10)
        await mail_lists.sweep(place._cluster, place._prefix, later, KEEP, 10)
        left = await keys_in(place._cluster, place._prefix)
        assert [key for key in left if not key.endswith((b":arrived", b":asked"))] == [], step
        if not faulty.reached.is_set():
            return
    raise AssertionError("there are more steps than were tried")


async def test_what_a_session_knows_of_a_message_ends_wherever_its_turn_was_stopped(store: ValkeyStore) -> None:
    """It has the texts of replies until the message is done, and nobody comes for one that is."""
    for step in range(1, MOST_STEPS):
        place = in_place(store, f"{step}:")
        await commit(place, receiving("m"))
        reached = await Interrupted(place, turn("m", "s"), step, "dies after").begin()
        await commit(place, turn("m", "s"))
        await mail_lists.sweep(place._cluster, place._prefix, NOW + REMEMBERED_FOR, KEEP, 10)
        mark = SessionKeys(place._prefix, "s").own("m:m").encode()
        at = (await keys_in(place._cluster, place._prefix))[mark]
        assert await place._cluster.ask(at, "TTL", mark) > 0, step
        assert b"reply" not in await place._cluster.ask(at, "GET", mark), step
        if not reached:
            return
    raise AssertionError("there are more steps than were tried")


# --- Everything at once -----------------------------------------------------------------------------------------------

RUNS = int(os.environ.get("CHATSTATE_TEST_RUNS") or 1)
SESSIONS = ("a", "b", "c", "d")
MORTALS = SESSIONS[:2]
"""Sessions that are deleted now and then."""

WRITES = 150


class UnreliableCluster(Cluster):
    """A cluster, by the connections of another one, in which every step may take long, and some go wrong."""

    def __init__(self, cluster: Cluster, random: Random) -> None:
        super().__init__(cluster.url)
        self._cluster = cluster
        self._random = random

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        fate, wait = self._random.random(), self._random.random() ** 3 * 0.03
        await asyncio.sleep(wait)  # others pass
        if fate < 0.04:
            return [OutcomeUnknown() for _ in calls]
        replies = await self._cluster.write(calls)
        if fate < 0.08:
            raise Died
        return [OutcomeUnknown() for _ in calls] if fate < 0.12 else replies

    async def read_some(self, calls: Sequence[Call]) -> list[Any]:
        return await self._cluster.read_some(calls)


class History:
    """What two stores have done at random to some sessions and their messages, as far as anybody was told.

    arrived  the conversations of messages, which are those of the sessions that they are for, mostly
    taken    which session has taken in a message; "" if none was to
    gone     messages that had arrived for a session before it was deleted, and must not be in it any more
    """

    def __init__(self, store: ValkeyStore, random: Random) -> None:
        self.random = random
        self.stores = [in_place(store, "", UnreliableCluster(store._cluster, random)) for _ in range(2)]
        self.honest = store
        self.arrived: dict[str, str] = {}
        self.taken: dict[str, str] = {}
        self.gone: dict[str, set[str]] = {name: set() for name in SESSIONS}
        self._count = 0

    async def work(self) -> None:
        """One of many who work at once."""
        while self._count < WRITES:
            self._count += 1
            store, what = self.random.choice(self.stores), self.random.random()
            with suppress(Died, StoreError):
                if what < 0.35 or not self.arrived:
                    await self._receive(store, f"k{self._count}")
                elif what < 0.75:
                    await self._turn(store, self.random.choice([*self.arrived]))
                elif what < 0.85:
                    await self._settle(store, self.random.choice([*self.arrived]))
                elif what < 0.93:
                    await self._delete(store, self.random.choice(MORTALS))
                else:
                    later = Postpone(key=self.random.choice([*self.arrived]), now=NOW, due_at=NOW, tries=1)
                    await commit(store, later)

    async def _receive(self, store: ValkeyStore, key: str) -> None:
        conversation = self.random.choice(SESSIONS)
        if isinstance(await commit(store, receiving(key, conversation)), Received):
            self.arrived[key] = conversation

    async def _turn(self, store: ValkeyStore, key: str) -> None:
        session = self.arrived[key] if self.random.random() < 0.7 else self.random.choice(SESSIONS)
        seen = all_readable(await store.load([session], NOW)).get(session)
        state = [*json.decode(seen.chat_state), key] if seen else [key]
        expect = one_of([seen.tag]) if seen else ABSENT
        if isinstance(await commit(store, turn(key, session, expect, json.encode(state).decode())), Session):
            self._take(key, session)

    async def _settle(self, store: ValkeyStore, key: str) -> None:
        if await commit(store, settling(key, self.arrived[key])) == Settled(True):
            self._take(key, "")

    def _take(self, key: str, session: str) -> None:
        assert key not in self.taken, f"{key} was taken by {self.taken[key]!r} and by {session!r}"
        self.taken[key] = session

    async def _delete(self, store: ValkeyStore, session: str) -> None:
        before = {key for key, conversation in self.arrived.items() if conversation == session}
        if isinstance(await commit(store, deleting(session, session)), Deleted):
            self.gone[session] |= before

    async def check(self) -> None:
        """Somebody ends all that was begun; and then everything has been done once."""
        await self.honest.sweep(NOW, KEEP, None, 1000)
        found = {name: json.decode(state) for name, state in (await states(self.honest, *SESSIONS)).items()}
        applied = [key for state in found.values() for key in state]
        assert len({*applied}) == len(applied)
        assert all({*state}.isdisjoint(self.gone[name]) for name, state in found.items())
        for key, session in self.taken.items():
            if session in SESSIONS and session not in MORTALS:
                assert key in found[session]
        for key, entry in (await inbox(self.honest)).items():
            is_late = isinstance(await commit(self.honest, turn(key, "late")), Session)
            assert not (is_late and (entry.status != "pending" or key in self.taken or key in applied))
        await self._check_mail({key: name for name, state in found.items() for key in state})

    async def _check_mail(self, applied: dict[str, str]) -> None:
        known = await inbox(self.honest)
        assert known.keys() >= self.arrived.keys()
        assert {(entry.status, entry.document) for entry in known.values()} == {("applied", "")}
        assert await heads(self.honest) == []
        leaving = await outbox(self.honest)
        assert len({reply.partition(" ")[0] for reply in leaving}) == len(leaving)
        for key, session in {**applied, **{key: name or self.arrived[key] for key, name in self.taken.items()}}.items():
            if session not in MORTALS:
                assert {f"{key}.0 for {session}", f"{key}.1 for {session}"} <= {*leaving}
        left = await keys_in(self.honest._cluster, self.honest._prefix)
        assert [key for key in left if key.endswith((b":f", b":fences")) or b":out:" in key] == []


@pytest.mark.parametrize("run", range(RUNS))
async def test_whatever_two_stores_do_at_once_is_done_once(store: ValkeyStore, run: int) -> None:
    seed = int(os.environ.get("CHATSTATE_TEST_SEED") or SystemRandom().randrange(1 << 32)) + run
    sys.stdout.write(f"again: CHATSTATE_TEST_SEED={seed} CHATSTATE_TEST_RUNS=1\n")
    history = History(store, Random(seed))
    await all_of(history.work() for _ in range(8))
    await history.check()
