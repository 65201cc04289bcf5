"""Watching sessions, without HTTP: on each store, with a clock to set, and comparisons when a test wants them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw
import asyncpg
import pytest

from chatstate.errors import StateUnreadable, StoreError, StoreUnavailable
from chatstate.live import Live, Piece, Watcher
from chatstate.model import KEEP, Retention, Session
from chatstate.sessions import Sessions
from chatstate.stores import Store, create_store

START = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
SOON = 10.0
"""For how long something is waited for that comes at once."""


class World:
    """A store with its sessions, who watches them, and what time it is. Nothing is compared by itself."""

    def __init__(self, store: Store, retention: Retention = KEEP) -> None:
        self.store = store
        self.now = START
        self.sessions = Sessions(store, self.clock, retention)
        self.live = Live(store, self.sessions, self.clock, retention)
        self.live.start()

    def clock(self) -> datetime:
        return self.now

    async def settled(self) -> None:
        """Wait until nothing is being loaded."""
        while self.live._tasks:
            await asyncio.gather(*self.live._tasks)
            await asyncio.sleep(0)  # their callbacks


@pytest.fixture
async def world(store: Store) -> World:
    return World(store)


async def state(watcher: Watcher) -> str:
    """The state that comes next."""
    change = await watcher.next(SOON)
    assert isinstance(change, Session), change
    return change.chat_state


async def test_who_begins_to_watch_gets_what_they_do_not_know(world: World) -> None:
    session = await world.sessions.save("a", "first")
    with world.live.watch("a", None) as watcher:
        assert await state(watcher) == "first"
    with world.live.watch("a", session) as watcher:
        await world.settled()
        assert await watcher.next(0) is None
        await world.sessions.save("a", "second")
        assert await state(watcher) == "second"
    await world.sessions.delete("a")
    with world.live.watch("a", session) as watcher:
        assert await watcher.next(SOON) == "deleted"
    with world.live.watch("a", None) as watcher:
        await world.settled()
        assert await watcher.next(0) is None


async def test_all_who_watch_get_each_change_and_nobody_else_does(world: World) -> None:
    with world.live.watch("a", None) as one, world.live.watch("a", None) as two, world.live.watch("b", None) as other:
        for number in range(5):
            await world.sessions.save("a", str(number))
            assert [await state(one), await state(two)] == [str(number)] * 2
        await world.settled()
        assert await other.next(0) is None
        assert [world.live.count(name) for name in "abc"] == [2, 1, 0]
        assert world.live._feed
        assert world.live._feed.followed == {"a", "b"}
    assert world.live._feed.followed == set()
    assert [world.live.count(name) for name in "abc"] == [0, 0, 0]


async def test_who_reads_slowly_gets_the_newest_change_alone(world: World) -> None:
    with world.live.watch("a", None) as watcher:
        for number in range(5):
            await world.sessions.save("a", str(number))
            await world.settled()
        assert await state(watcher) == "4"
        assert await watcher.next(0) is None
        await world.sessions.save("a", "5")
        await world.settled()
        await world.sessions.delete("a")
        await world.settled()
        assert await watcher.next(0) == "deleted"
        await world.sessions.save("a", "6")
        await world.settled()
        await world.sessions.delete("a")
        await world.sessions.save("a", "7")
        await world.settled()
        assert await state(watcher) == "7"


async def test_a_session_that_changes_all_the_time_is_loaded_once_at_a_time(world: World) -> None:
    """However many hints there are: what comes while one is loaded is answered by one further load."""
    at_once = most_at_once = 0
    load = world.sessions.load

    async def counted(user_session_id: str) -> Session:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(at_once, most_at_once)
        try:
            return await load(user_session_id)
        finally:
            at_once -= 1

    world.sessions.load = counted  # type: ignore[method-assign]
    with world.live.watch("a", None) as watcher:
        await asyncio.gather(*(world.sessions.save("a", str(number)) for number in range(50)))
        await world.settled()
        assert await watcher.next(0) == await load("a")
        assert most_at_once == 1


async def test_nobody_is_told_what_was_loaded_before_they_began_to_watch(world: World) -> None:
    """They know a newer version than the one that a load brings which was under way when they came."""
    await world.sessions.save("a", "1")
    load, begun, may_end = world.sessions.load, asyncio.Event(), asyncio.Event()

    async def slow(user_session_id: str) -> Session:
        session = await load(user_session_id)
        begun.set()
        await may_end.wait()
        return session

    with world.live.watch("a", None) as early:
        world.sessions.load = slow  # type: ignore[method-assign]
        await begun.wait()
        newer = await world.sessions.save("a", "2")
        with world.live.watch("a", newer) as late:
            may_end.set()
            await world.settled()
            assert await state(early) == "2"
            assert await late.next(0) is None


async def test_an_expired_session_is_told_by_the_next_comparison(store: Store) -> None:
    world = World(store, Retention(idle=timedelta(minutes=2)))
    await world.sessions.save("own", "1", expires_in=60)
    await world.sessions.save("idle", "2")
    with world.live.watch("own", None) as own, world.live.watch("idle", None) as idle:
        assert [await state(own), await state(idle)] == ["1", "2"]
        world.now += timedelta(minutes=1)
        await world.live.compare()
        await world.settled()
        assert [await own.next(0), await idle.next(0)] == ["expired", None]
        world.now += timedelta(minutes=1)
        await world.live.compare()
        await world.settled()
        assert [await own.next(0), await idle.next(0)] == [None, "expired"]
        await world.sessions.save("own", "3")
        assert await state(own) == "3"


async def test_a_session_that_is_deleted_in_time_has_not_expired(store: Store) -> None:
    world = World(store, Retention(idle=timedelta(minutes=2)))
    session = await world.sessions.save("a", "1")
    with world.live.watch("a", session) as watcher:
        world.now += timedelta(seconds=119)
        await world.sessions.delete("a")
        assert await watcher.next(SOON) == "deleted"


async def test_who_begins_to_watch_what_has_just_expired_is_told_so(store: Store) -> None:
    world = World(store)
    session = await world.sessions.save("a", "1", expires_in=60)
    world.now += timedelta(minutes=1)
    with world.live.watch("a", session) as watcher:
        assert await watcher.next(SOON) == "expired"


async def test_a_session_that_was_renewed_and_then_deleted_has_not_expired(store: Store) -> None:
    world = World(store)
    session = await world.sessions.save("a", "1", expires_in=60)
    with world.live.watch("a", session) as watcher:
        await world.sessions.save("a", "2", expires_in=0)
        assert await state(watcher) == "2"
        world.now += timedelta(hours=1)
        await world.sessions.delete("a")
        assert await watcher.next(SOON) == "deleted"


async def test_the_end_of_the_calendar_is_no_hindrance(store: Store) -> None:
    world = World(store, Retention(idle=timedelta(days=36525)))
    world.now = datetime(9999, 12, 31, tzinfo=UTC)
    await world.sessions.save("a", "1")
    with world.live.watch("a", None) as watcher:
        assert await state(watcher) == "1"


async def write_behind_its_back(url: str, user_session_id: str, text: str) -> None:
    """What another program does, which tells nobody."""
    if url.startswith("sqlite"):
        with closing(apsw.Connection(url.removeprefix("sqlite:///"))) as file:
            file.execute(
                "UPDATE chat_state_sessions SET chat_state = ?, version = version + 1 WHERE user_session_id = ?",
                (text, user_session_id),
            )
        return
    connection = await asyncpg.connect(url)
    await connection.execute(
        "UPDATE chat_state_sessions SET chat_state = $1 WHERE user_session_id = $2", text, user_session_id
    )
    await connection.close()


async def test_what_other_programs_write_is_found_by_the_next_comparison(world: World, store_url: str) -> None:
    names = [f"session {number}" for number in range(1200)]  # more than are compared at once
    await asyncio.gather(*(world.sessions.save(name, "first") for name in names))
    watchers = [world.live.watch(name, await world.sessions.load(name)) for name in names]
    for watcher in watchers:
        watcher.__enter__()
    await world.settled()
    for place in (0, 499, 500, 1199):
        await write_behind_its_back(store_url, names[place], "behind")
    await world.live.compare()
    await world.settled()
    changed = [watcher.user_session_id for watcher in watchers if await watcher.next(0) is not None]
    assert changed == [names[place] for place in (0, 499, 500, 1199)]
    for watcher in watchers:
        watcher.__exit__(None, None, None)
    assert not world.live._topics


class Failing:
    """A store that cannot load for a while."""

    def __init__(self, store: Store) -> None:
        self.away = False
        self.load = store.load
        self.list = store.list
        store.load, store.list = self._load, self._list  # type: ignore[method-assign]

    async def _load(self, *given: Any) -> Mapping[str, Session | StoreError]:
        if self.away:
            raise StoreUnavailable
        return await self.load(*given)

    async def _list(self, *given: Any) -> Sequence[Any]:
        if self.away:
            raise StoreUnavailable
        return await self.list(*given)


async def test_a_session_that_nobody_watches_any_more_is_not_loaded_by_a_late_comparison(world: World) -> None:
    """They leave while the store is asked."""
    listed = world.store.list
    with world.live.watch("a", None) as watcher:
        await world.settled()

        async def slow(query: Any) -> Sequence[Any]:
            world.live.remove(watcher)
            await world.sessions.save("a", "1")
            return await listed(query)

        world.store.list = slow  # type: ignore[method-assign]
        await world.live.compare()
        assert not world.live._tasks
        world.live.add(watcher)


async def test_a_store_that_fails_for_a_while_loses_no_change(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be loaded is not told as a deletion, and is loaded by the first comparison that works."""
    failing = Failing(world.store)
    with world.live.watch("a", None) as watcher:
        await world.sessions.save("a", "first")
        assert await state(watcher) == "first"
        failing.away = True
        with caplog.at_level(logging.WARNING):
            await world.sessions.save("a", "second")
            await world.sessions.save("a", "third")
            await world.settled()
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await world.live.compare()
        assert await watcher.next(0) is None
        assert len(caplog.records) == 1
        failing.away = False
        await world.live.compare()
        assert await state(watcher) == "third"
        failing.away = True
        await world.sessions.save("a", "fourth")
        await world.settled()
        assert len(caplog.records) == 2, "a second outage is told, too"


async def test_an_outage_is_told_once_also_when_a_comparison_that_began_before_it_ends_well(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(world.store)
    answered = asyncio.Event()

    async def slow(query: Any) -> Sequence[Any]:
        found = await failing.list(query)
        await answered.wait()
        return found

    with world.live.watch("a", None):
        await world.settled()
        world.store.list = slow  # type: ignore[method-assign]
        world.live._do(world.live._compared())
        await asyncio.sleep(0)
        failing.away = True
        with caplog.at_level(logging.WARNING):
            world.live._failed(StoreUnavailable())
            answered.set()
            await world.settled()
            await world.sessions.save("a", "first")
            await world.settled()
    assert len(caplog.records) == 1


async def test_each_outage_is_told_once_also_when_only_comparisons_meet_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(world.store)
    turns = 0

    async def pause(_seconds: float) -> None:
        nonlocal turns
        turns += 1
        failing.away = turns % 4 < 2
        if turns == 13:
            raise asyncio.CancelledError

    live = Live(world.store, world.sessions, world.clock, pause=pause)
    live.start()
    with live.watch("a", None), pytest.raises(asyncio.CancelledError):
        await live.run()
    assert len(caplog.records) == 4


async def test_who_watches_a_session_that_cannot_be_decrypted_is_let_go(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """They come back and learn why. The log has a line of the store's for it, and needs none each few seconds."""
    load = world.sessions.load

    async def loaded(user_session_id: str) -> Session:
        if user_session_id == "sealed":
            raise StateUnreadable
        return await load(user_session_id)

    with world.live.watch("sealed", None) as sealed, world.live.watch("open", None) as readable:
        await world.settled()
        world.sessions.load = loaded  # type: ignore[method-assign]
        await world.sessions.save("sealed", "1")
        await world.live.compare()
        for number in range(3):
            await world.sessions.save("open", str(number))
            await world.settled()
        assert sealed.closed
        assert await state(readable) == "2"
    assert not caplog.records


async def test_when_any_may_have_changed_only_what_has_is_loaded(world: World, store_url: str) -> None:
    names = [f"session {number}" for number in range(50)]
    watchers = [world.live.watch(name, await world.sessions.save(name, "first")) for name in names]
    loaded: list[str] = []
    load = world.sessions.load

    async def noted(user_session_id: str) -> Session:
        loaded.append(user_session_id)
        return await load(user_session_id)

    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher)
        await world.settled()
        await write_behind_its_back(store_url, names[7], "second")
        world.sessions.load = noted  # type: ignore[method-assign]
        world.live._changed(None)
        assert await state(watchers[7]) == "second"
        await world.settled()
    assert loaded == [names[7]]


async def test_it_begins_again_after_its_end(world: World) -> None:
    world.live.end()
    world.live.start()
    with world.live.watch("a", None) as watcher:
        await world.sessions.save("a", "first")
        assert await state(watcher) == "first"


async def test_comparing_goes_on_whatever_goes_wrong(world: World, caplog: pytest.LogCaptureFixture) -> None:
    turns = 0

    async def pause(seconds: float) -> None:
        nonlocal turns
        turns += 1
        assert 0 < seconds <= 5
        if turns == 4:
            raise asyncio.CancelledError

    live = Live(world.store, world.sessions, world.clock, pause=pause)
    live.start()

    asked = 0

    async def broken(_query: Any) -> Sequence[Any]:
        nonlocal asked
        asked += 1
        raise RuntimeError

    world.store.list = broken  # type: ignore[method-assign]
    with live.watch("a", None), pytest.raises(asyncio.CancelledError):
        await live.run()
    assert (turns, asked) == (4, 3)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_the_end_wakes_everybody_and_nobody_begins_to_watch_after_it(world: World) -> None:
    with world.live.watch("a", None) as watcher:
        waiting = asyncio.create_task(watcher.next(SOON))
        await asyncio.sleep(0)
        world.live.end()
        assert await waiting is None
        assert watcher.closed
    late = world.live.watch("a", None)
    assert late.closed
    with late:
        assert await late.next(SOON) is None


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[World]:
    store = create_store(url)
    await store.open()
    await store.migrate()
    try:
        yield World(store)
    finally:
        await store.close()


async def test_two_servers_of_postgres_tell_each_other(postgres_url: str) -> None:
    """No comparison is made here: the hints travel by themselves, in both directions, for every kind of write."""
    async with opened(postgres_url) as one, opened(postgres_url) as other:
        with one.live.watch("a", None) as here, other.live.watch("b", None) as there:
            for number in range(20):
                await other.sessions.save("a", str(number))
                assert await state(here) == str(number)
                await one.sessions.save("b", str(number))
                assert await state(there) == str(number)
            await other.sessions.delete("a")
            assert await here.next(SOON) == "deleted"


async def test_half_a_character_of_a_bot_ends_no_stream(world: World) -> None:
    """A lone surrogate, which no UTF-8 text can carry, was an error in the stream of everybody who watched."""
    with world.live.watch("a", None) as watcher:
        world.live.write("a", "r", "half \ud83d")
        while not isinstance(piece := await watcher.next(SOON), Piece):
            pass
        assert piece == ("r", "half ?", False)
