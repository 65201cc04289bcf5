"""The rules of group commit, one test for each: on a flush that the test controls, and on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatstate.errors import OutcomeUnknown, PrivilegeMissing, SessionLocked, StoreBusy, StoreUnavailable, WriteRefused
from chatstate.group_commit import GroupCommit
from chatstate.model import ABSENT, Session
from chatstate.sessions import Sessions
from chatstate.stores import Store, create_store
from chatstate.stores.contract import NOW, saving


class Flush:
    """A flush that ends when the test says so, and remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self._open = asyncio.Event()
        self._open.set()
        self._error: Exception | None = None

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        await self._open.wait()
        if any(isinstance(item, Exception) for item in items):
            raise next(item for item in items if isinstance(item, Exception))
        return [f"answer to {item}" for item in items]


async def settled() -> None:
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_idle_server_flushes_at_once() -> None:
    flush = Flush()
    assert await GroupCommit(flush).submit("a", 1) == "answer to 1"
    assert flush.batches == [[1]]


async def test_what_arrives_during_a_flush_goes_as_one_batch() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)
    flush.hold()
    first = asyncio.create_task(group.submit("first", 0))
    await settled()
    others = [asyncio.create_task(group.submit(str(number), number)) for number in range(1, 6)]
    await settled()
    assert flush.batches == [[0]]
    flush.let_go()
    assert await asyncio.gather(first, *others) == [f"answer to {number}" for number in range(6)]
    assert flush.batches == [[0], [1, 2, 3, 4, 5]]


async def test_an_answer_comes_only_after_the_items_own_flush_has_ended() -> None:
    flush = Flush()
    flush.hold()
    task = asyncio.create_task(GroupCommit[Any, Any](flush).submit("a", 1))
    await settled()
    assert flush.batches == [[1]]
    assert not task.done()
    flush.let_go()
    assert await task == "answer to 1"


async def test_a_hot_id_goes_one_flush_at_a_time_and_in_order() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=4)
    flush.hold()
    tasks = [asyncio.create_task(group.submit("hot", number)) for number in range(5)]
    other = asyncio.create_task(group.submit("other", "x"))
    await settled()
    assert flush.batches == [[0, "x"]], "the second item for an id must wait for the first one's flush"
    flush.let_go()
    await asyncio.gather(*tasks, other)
    assert flush.batches == [[0, "x"], [1], [2], [3], [4]]


async def test_a_hot_id_does_not_starve_the_others() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)
    hot = [asyncio.create_task(group.submit("hot", number)) for number in range(50)]
    await settled()
    await group.submit("other", "x")
    position = next(index for index, batch in enumerate(flush.batches) if "x" in batch)
    await asyncio.gather(*hot)
    assert position <= len(flush.batches) - 1
    assert all(len(batch) <= 2 for batch in flush.batches)


async def test_a_lane_leaves_work_for_the_others() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=2)
    flush.hold()
    tasks = [asyncio.create_task(group.submit(str(number), number)) for number in range(500)]
    await settled()
    assert [len(batch) for batch in flush.batches] == [64, 64], "many are waiting: the largest batches"
    flush.let_go()
    await asyncio.gather(*tasks)
    flush.batches.clear()
    flush.hold()
    tasks = [asyncio.create_task(group.submit(str(number), number)) for number in range(40)]
    await settled()
    assert [len(batch) for batch in flush.batches] == [16, 16], "few are waiting: no lane takes them all"
    flush.let_go()
    await asyncio.gather(*tasks)


async def test_batches_are_bounded_by_items_and_by_bytes() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1, batch_items=3, batch_bytes=100)
    sizes = [10, 10, 10, 10, 90, 20, 500, 10]
    await asyncio.gather(*(group.submit(str(number), number, size) for number, size in enumerate(sizes)))
    assert flush.batches == [[0, 1, 2], [3, 4], [5], [6], [7]]


async def test_a_poisoned_item_does_not_fail_its_neighbours() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush)
    items = [1, WriteRefused("poison"), 3]
    answers = await asyncio.gather(
        *(group.submit(str(number), item) for number, item in enumerate(items)), return_exceptions=True
    )
    assert answers == ["answer to 1", items[1], "answer to 3"]
    assert flush.batches == [items, [1], [items[1]], [3]]


@pytest.mark.parametrize("error", [OutcomeUnknown(), StoreUnavailable(), StoreBusy()])
async def test_a_batch_is_never_tried_again_when_that_cannot_help(error: Exception) -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush)
    answers = await asyncio.gather(group.submit("a", 1), group.submit("b", error), return_exceptions=True)
    assert answers == [error, error]
    assert len(flush.batches) == 1


@pytest.mark.parametrize("error", [SessionLocked(), PrivilegeMissing()])
async def test_what_fails_because_of_one_write_is_found_by_trying_alone(error: Exception) -> None:
    """Another program holds a session; or one write touches a table on which the server has no rights."""
    flush = Flush()
    group = GroupCommit[Any, Any](flush)
    answers = await asyncio.gather(group.submit("a", 1), group.submit("b", error), return_exceptions=True)
    assert answers == ["answer to 1", error]


async def test_a_batch_that_failed_in_an_unexpected_way_is_never_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error that is not one of ours may have come after the commit."""
    flush = Flush()
    group = GroupCommit[Any, Any](flush)
    error = KeyError("after the commit")
    answers = await asyncio.gather(group.submit("a", 1), group.submit("b", error), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OutcomeUnknown, OutcomeUnknown]
    assert flush.batches == [[1, error]]
    assert "a flush failed in an unexpected way" in caplog.text


async def test_a_held_session_does_not_slow_the_others_again_and_again() -> None:
    """A key that was locked goes alone and in one lane, until it is free; what is behind it keeps its order."""
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=2)
    locked = SessionLocked()
    await asyncio.gather(group.submit("a", 1), group.submit("held", locked), return_exceptions=True)
    flush.batches.clear()
    flush.hold()
    held = [asyncio.create_task(group.submit("held", item)) for item in ("x", "y")]
    await settled()
    assert flush.batches == [["x"]]
    flush.let_go()
    others = [asyncio.create_task(group.submit(str(number), number)) for number in range(3)]
    assert await asyncio.gather(*held, *others) == ["answer to x", "answer to y", *(f"answer to {n}" for n in range(3))]
    flush.batches.clear()
    await asyncio.gather(group.submit("held", "z"), group.submit("b", 2))
    assert flush.batches == [["z", 2]], "after a success it is like any other"


async def test_several_held_sessions_leave_a_lane_free() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=2)
    locked = [SessionLocked(), SessionLocked()]
    await asyncio.gather(*(group.submit(str(error), error) for error in locked), return_exceptions=True)
    for number, error in enumerate(locked):
        with pytest.raises(SessionLocked):
            await group.submit(f"held {number}", error)
    flush.batches.clear()
    flush.hold()
    held = [asyncio.create_task(group.submit(f"held {number}", f"h{number}")) for number in range(2)]
    await settled()
    other = asyncio.create_task(group.submit("other", 1))
    await settled()
    assert flush.batches == [["h0"], [1]]
    flush.let_go()
    assert await asyncio.gather(*held, other) == ["answer to h0", "answer to h1", "answer to 1"]


async def test_a_full_queue_refuses_and_recovers() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1, queue_items=3, queue_bytes=100)
    flush.hold()
    tasks = [asyncio.create_task(group.submit(str(number), number, 10)) for number in range(3)]
    await settled()
    with pytest.raises(StoreBusy):
        await group.submit("one too many", 4)
    flush.let_go()
    await asyncio.gather(*tasks)
    assert await group.submit("fits again", 5, 100) == "answer to 5"


async def test_the_bytes_of_the_queue_are_bounded_and_one_large_item_fits_when_it_is_empty() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1, queue_bytes=100)
    flush.hold()
    large = asyncio.create_task(group.submit("larger than the queue", 1, 1000))
    await settled()
    with pytest.raises(StoreBusy):
        await group.submit("more", 2, 1)
    flush.let_go()
    assert await large == "answer to 1"
    assert await group.submit("more", 2, 1) == "answer to 2"


async def test_a_client_that_hangs_up_neither_cancels_nor_tears_a_flush() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)
    flush.hold()
    in_flight = [asyncio.create_task(group.submit(name, name)) for name in "ab"]
    await settled()
    waiting = asyncio.create_task(group.submit("c", "c"))
    await settled()
    in_flight[0].cancel()
    waiting.cancel()
    await settled()
    flush.let_go()
    assert await in_flight[1] == "answer to b"
    await group.drain()
    assert flush.batches == [["a", "b"], ["c"]], "what was accepted is carried out"
    assert await group.submit("d", "d") == "answer to d"


async def test_a_callback_that_raises_does_not_stop_a_lane() -> None:
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)

    def explode(_task: object) -> None:
        raise RuntimeError("closed socket")

    task = asyncio.create_task(group.submit("a", 1))
    task.add_done_callback(explode)
    await task
    assert await group.submit("b", 2) == "answer to 2"
    assert [str(error) for error in raised] == ["closed socket"]


async def test_a_flush_that_gives_too_few_answers_fails_its_items_and_not_the_lane() -> None:
    async def forgetful(items: Sequence[Any]) -> list[Any]:
        return [] if "bad" in items else list(items)

    group = GroupCommit[Any, Any](forgetful, lanes=1)
    with pytest.raises(OutcomeUnknown):
        await group.submit("a", "bad")
    assert await group.submit("b", "good") == "good"


async def test_drain_waits_for_everything_that_was_accepted() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)
    await group.drain()
    flush.hold()
    tasks = [asyncio.create_task(group.submit("hot", number)) for number in range(5)]
    await settled()
    draining = asyncio.create_task(group.drain())
    await settled()
    assert not draining.done()
    flush.let_go()
    await draining
    assert all(task.done() for task in tasks)


async def test_everything_is_answered_when_flushes_are_cancelled() -> None:
    flush = Flush()
    group = GroupCommit[Any, Any](flush, lanes=1)
    flush.hold()
    task = asyncio.create_task(group.submit("a", 1))
    await settled()
    for running in asyncio.all_tasks() - {asyncio.current_task(), task}:
        running.cancel()
    with pytest.raises(OutcomeUnknown):
        await task


# --- On real stores ---------------------------------------------------------------------------------------------------


async def test_a_poisoned_row_among_good_ones(store: Store) -> None:
    sessions = Sessions(store)
    states = ["good", "bad \x00", "good", "worse \ud800", "good"]
    answers = await asyncio.gather(
        *(sessions._writes.submit(str(number), saving(str(number), state)) for number, state in enumerate(states)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Session, WriteRefused, Session, WriteRefused, Session]
    assert sorted(await store.load([str(number) for number in range(5)], NOW)) == ["0", "2", "4"]


async def test_saves_of_one_id_are_stored_in_the_order_of_their_arrival(store: Store) -> None:
    sessions = Sessions(store)
    answers = await asyncio.gather(*(sessions.save("hot", str(number)) for number in range(60)))
    assert [answer.version for answer in answers] == list(range(1, 61))
    assert (await sessions.load("hot")).chat_state == "59"


async def test_a_load_after_a_save_sees_it(store: Store) -> None:
    sessions = Sessions(store)

    async def save_then_load(number: int) -> None:
        saved = await sessions.save("shared", str(number))
        loaded = await sessions.load("shared")
        assert loaded.version >= saved.version

    await asyncio.gather(*(save_then_load(number) for number in range(100)))


async def test_loads_of_one_id_share_a_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(store)
    saved = await sessions.save("hot", "state")
    load, batches = store.load, []

    async def counted(ids: Sequence[str], *given: Any) -> Any:
        batches.append(list(ids))
        return await load(ids, *given)

    monkeypatch.setattr(store, "load", counted)
    assert await asyncio.gather(*(sessions.load("hot") for _ in range(100))) == [saved] * 100
    assert set(map(tuple, batches)) == {("hot",)}
    assert len(batches) <= 7


async def test_two_servers_with_crossing_batches(store_url: str) -> None:
    stores = [create_store(store_url, owner=False) for _ in range(2)]
    for opened in stores:
        await opened.open()
        await opened.migrate()
    servers = [Sessions(opened) for opened in stores]
    ids = [f"id {number}" for number in range(40)]
    rounds = 5
    answers = await asyncio.gather(
        *(
            server.save(user_session_id, "state")
            for _ in range(rounds)
            for server, order in zip(servers, (ids, ids[::-1]), strict=True)
            for user_session_id in order
        ),
        return_exceptions=True,
    )
    assert [answer for answer in answers if not isinstance(answer, Session)] == []
    loaded = await stores[0].load(ids, NOW)
    assert {session.version for session in loaded.values()} == {2 * rounds}
    for opened in stores:
        await opened.close()


async def test_one_of_many_first_saves_creates(store: Store) -> None:
    sessions = Sessions(store)
    answers = await asyncio.gather(
        *(sessions.save("new", str(number), precondition=ABSENT) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(answer, Session) for answer in answers) == 1


async def test_shutdown_under_load_answers_everything_that_was_accepted(store_url: str) -> None:
    store = create_store(store_url)
    await store.open()
    await store.migrate()
    sessions = Sessions(store)
    tasks = [asyncio.create_task(sessions.save(str(number % 50), str(number))) for number in range(500)]
    await settled()
    await sessions.drain()
    await store.close()
    answers = await asyncio.gather(*tasks)
    await store.open()
    loaded = await store.load([str(number) for number in range(50)], NOW)
    assert all(loaded[answer.user_session_id].version == 10 for answer in answers)
    await store.close()
