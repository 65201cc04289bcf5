"""Turns: each message changes the state once, in order, whatever happens."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from datetime import timedelta

import pytest

from chatstate.bot import Attachment, Choice, Message, Turn
from chatstate.mailbox import InboxQuery
from chatstate.model import Conflict, Session
from chatstate.record import Record, RecordQuery
from chatstate.stores import Store
from chatstate.turns import MOST_TRIES
from tests.turns.conftest import SECONDS, Clock, NewWorld, World, done, echo, person, running


async def test_a_message_from_the_web_is_answered_in_the_state(world: World) -> None:
    assert await world.say("s", "m1", "Good morning")
    await world.work()
    state = await world.state("s")
    assert state is not None
    said, answered = state["messages"]
    assert (said["id"], said["role"], said["text"]) == ("m1", "user", "Good morning")
    assert (answered["id"], answered["role"], answered["text"]) == ("m1.1", "bot", "You said: Good morning")
    assert state["count"] == 1
    assert world.paper.sent == []


async def test_a_message_is_taken_once_however_often_it_comes(world: World) -> None:
    assert [await world.say("s", "m1"), await world.say("s", "m1"), await world.say("t", "m1")] == [True, False, True]
    await world.work()
    assert await world.say("s", "m1", "another text") is False
    await world.work()
    assert (await world.state("s") or {})["count"] == 1
    assert (await world.state("t") or {})["count"] == 1


async def test_two_messages_at_once_are_two_turns_in_order(world: World, clock: Clock) -> None:
    texts = [f"{number}" for number in range(20)]
    async with running(world.turns):
        for text in texts:
            await world.say("s", f"m{text}", text)
        await _until(world, "s", 2 * len(texts))
    assert (await world.texts("s"))[::2] == texts
    assert (await world.state("s") or {})["count"] == len(texts)


async def _until(world: World, session: str, count: int) -> None:
    """Until so much was said."""
    async with asyncio.timeout(SECONDS):
        while len(await world.texts(session)) < count:  # noqa: ASYNC110 (another task writes it)
            await asyncio.sleep(0)


async def test_messages_that_come_in_another_order_are_taken_in_theirs(world: World, clock: Clock) -> None:
    late, early = clock() + timedelta(seconds=2), clock()
    await world.write(person(), "b", "second", sent_at=late)
    await world.write(person(), "a", "first", sent_at=early)
    await world.work()
    assert world.paper.texts == ["You said: first", "You said: second"]


async def test_a_bot_on_a_channel_answers_there_and_in_the_state(world: World) -> None:
    await world.write(person(), "m1", "Hi")
    await world.work()
    ((contact, reply),) = world.paper.sent
    assert (contact, reply.text) == (person(), "You said: Hi")
    session = await world.session_of(person())
    assert await world.texts(session) == ["Hi", "You said: Hi"]
    assert "1" not in session.removeprefix("paper_") or len(session) > 20
    assert world.paper.typing == ["m1"]


async def test_no_id_of_a_channel_is_in_the_state(world: World) -> None:
    await world.write(person("16505551234"), "wamid.16505551234", "Hi")
    await world.work()
    session = await world.session_of(person("16505551234"))
    assert "16505551234" not in (await world.sessions.load(session)).chat_state + session


async def test_a_crashed_turn_is_run_again_and_applied_once(
    new_world: NewWorld, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    async def crashing(turn: Turn) -> None:
        runs.append(turn.tries)
        turn.state["count"] = turn.state.get("count", 0) + 1
        await turn.reply(f"try {turn.tries}")
        if len(runs) < 3:
            raise ValueError(turn.message.text)

    world = await new_world(crashing)
    await world.write(person(), "m1", "a secret")
    await world.write(person(), "m2", "another")
    for seconds in (0, 2, 8):
        clock.advance(seconds)
        await world.work()
    assert runs == [0, 1, 2, 0]
    assert world.paper.texts == ["try 2", "try 0"]
    session = await world.session_of(person())
    assert (await world.state(session) or {})["count"] == 2
    assert "secret" not in caplog.text
    assert "ValueError at test_turns.py" in caplog.text
    assert "crashing" in caplog.text


async def test_a_turn_is_not_run_again_before_its_time(new_world: NewWorld, clock: Clock) -> None:
    runs = 0

    async def crashing(_turn: Turn) -> None:
        nonlocal runs
        runs += 1
        raise KeyError

    world = await new_world(crashing)
    await world.say("s", "m1")
    for seconds, expected in ((0, 1), (1.9, 1), (0.1, 2), (7.9, 2), (0.1, 3)):
        clock.advance(seconds)
        await world.work()
        assert runs == expected


async def test_a_poisoned_message_goes_aside_and_lets_others_pass(new_world: NewWorld, clock: Clock) -> None:
    async def picky(turn: Turn) -> None:
        if turn.message.text == "poison":
            raise RuntimeError
        await turn.reply("fine")

    world = await new_world(picky)
    await world.say("s", "m1", "poison")
    await world.say("s", "m2", "water")
    for _ in range(MOST_TRIES):
        await world.work()
        clock.advance(200)
    assert await world.texts("s") == ["water", "fine"]
    (aside,) = await world.inbox.entries("aside")
    assert (aside.tries, aside.error.startswith("RuntimeError at test_turns.py:")) == (MOST_TRIES, True)


async def test_a_message_that_was_set_aside_is_answered_when_it_is_brought_back(
    new_world: NewWorld, clock: Clock
) -> None:
    broken = True

    async def mended(turn: Turn) -> None:
        if broken:
            raise RuntimeError
        await turn.reply("fine")

    world = await new_world(mended)
    await world.say("s", "m1")
    for _ in range(MOST_TRIES):
        await world.work()
        clock.advance(200)
    broken = False
    (aside,) = await world.inbox.entries("aside")
    assert await world.inbox.retry(aside.key)
    await world.work()
    assert await world.texts("s") == ["Hello", "fine"]
    assert await world.inbox.retry(aside.key) is False
    assert await world.inbox.drop(aside.key) is False


async def test_a_turn_that_another_write_has_overtaken_is_run_on_what_is_there(new_world: NewWorld) -> None:
    world: World
    seen: list[str] = []

    async def slow(turn: Turn) -> None:
        seen.append(turn.state.get("from", "nobody"))
        if len(seen) == 1:
            await world.sessions.save("s", '{"from": "a browser"}')
        await turn.reply("done")

    world = await new_world(slow)
    await world.say("s", "m1")
    await world.work()
    state = await world.state("s")
    assert (seen, state and state["from"]) == (["nobody", "a browser"], "a browser")
    assert await world.texts("s") == ["Hello", "done"]


async def test_two_servers_answer_each_message_once(new_world: NewWorld) -> None:
    one, other = await new_world(), await new_world()
    sessions = [f"s{number}" for number in range(5)]
    async with running(one.turns), running(other.turns):
        for number in range(10):
            for session in sessions:
                await (one, other)[number % 2].say(session, f"m{number}", f"{number}")
        one.turns.wake()
        other.turns.wake()
        for session in sessions:
            await _until(one, session, 20)
    for session in sessions:
        assert (await one.state(session) or {})["count"] == 10
        assert sorted((await one.texts(session))[::2], key=int) == [f"{number}" for number in range(10)]


async def test_a_server_whose_lease_ran_out_changes_nothing(new_world: NewWorld, clock: Clock) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def paused(turn: Turn) -> None:
        started.set()
        await go_on.wait()
        await echo(turn)

    paused_server, other = await new_world(paused), await new_world()
    await paused_server.write(person(), "m1", "Hi")
    (conversation,) = await paused_server.turns.find(10)
    standing = asyncio.create_task(paused_server.turns.work(conversation))
    await started.wait()
    await other.work()
    assert other.paper.sent == []  # the lease holds
    clock.advance(31)
    await other.work()
    assert other.paper.texts == ["You said: Hi"]
    go_on.set()
    async with asyncio.timeout(SECONDS):
        await standing
    await paused_server.work()
    session = await other.session_of(person())
    assert (await other.state(session) or {})["count"] == 1
    assert paused_server.paper.sent == []


async def test_a_long_turn_keeps_its_lease(new_world: NewWorld, clock: Clock) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def model(turn: Turn) -> None:
        started.set()
        await go_on.wait()
        await echo(turn)

    world, other = await new_world(model), await new_world()
    await world.say("s", "m1")
    (conversation,) = await world.turns.find(10)
    turn = asyncio.create_task(world.turns.work(conversation))
    await started.wait()
    for _ in range(12):  # two minutes
        clock.advance(10)
        world.beats.release()
        await _renewed(world, clock)
        await other.work()
    go_on.set()
    async with asyncio.timeout(SECONDS):
        await turn
    assert (await world.state("s") or {})["count"] == 1


async def _renewed(world: World, clock: Clock) -> None:
    """Until the lease lasts from now on."""
    async with asyncio.timeout(SECONDS):
        while True:
            (row,) = await world.store.list(RecordQuery(collection="turn_leases", now=clock()))
            assert isinstance(row, Record)
            if row.changed_at == clock():
                return
            await asyncio.sleep(0)


async def test_a_turn_whose_lease_was_lost_is_broken_off(new_world: NewWorld, clock: Clock) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(_turn: Turn) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    world, other = await new_world(endless), await new_world()
    await world.say("s", "m1")
    (conversation,) = await world.turns.find(10)
    turn = asyncio.create_task(world.turns.work(conversation))
    await started.wait()
    clock.advance(31)
    assert await other.turns.leases.take("s", clock())
    world.beats.release()
    async with asyncio.timeout(SECONDS):
        await ended.wait()
    turn.cancel()
    (entry,) = await world.inbox.entries("pending")
    assert entry.tries == 0  # it was not the bot's fault


async def test_a_bot_that_takes_too_long_has_failed(new_world: NewWorld) -> None:
    async def endless(_turn: Turn) -> None:
        await asyncio.Event().wait()

    world = await new_world(endless, seconds=0.01)
    await world.say("s", "m1")
    await world.work()
    (entry,) = await world.inbox.entries("pending")
    assert (entry.tries, "CHATSTATE_TURN_SECONDS" in entry.error) == (1, True)


async def test_what_a_bot_raises_that_was_cancelled_is_in_no_log(new_world: NewWorld) -> None:
    """asyncio would log it with its text, when the task is collected."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def stubborn(turn: Turn) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError(turn.message.text)

    world = await new_world(stubborn, seconds=0.01)
    await world.say("s", "m1", "what somebody has written")
    await world.work()
    (entry,) = await world.inbox.entries("pending")
    assert "CHATSTATE_TURN_SECONDS" in entry.error
    gc.collect()
    assert told == []


async def test_what_is_no_exception_is_a_failed_turn_too(new_world: NewWorld) -> None:
    class Odd(BaseException):
        pass

    async def odd(_turn: Turn) -> None:
        raise Odd("what somebody has written")

    world = await new_world(odd)
    await world.say("s", "m1")
    await world.work()
    (entry,) = await world.inbox.entries("pending")
    assert (entry.tries, entry.error.partition(" ")[0]) == (1, "Odd")


async def test_a_fault_of_ours_counts_as_a_failed_try_so_that_it_blocks_nobody_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_person_id: str, _person: object, message: Message) -> None:
        raise RuntimeError(message.text)

    monkeypatch.setattr(world.linking, "answer", broken)
    await world.write(person(), "m1", "what somebody has written")
    await world.work()
    (entry,) = await world.inbox.entries("pending")
    assert (entry.tries, entry.error.partition(" ")[0]) == (1, "RuntimeError")
    assert "what somebody" not in caplog.text + entry.error


async def test_a_server_that_ends_just_when_a_bot_has_ended_counts_no_failed_try(new_world: NewWorld) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def waiting(_turn: Turn) -> None:
        started.set()
        await go_on.wait()

    world = await new_world(waiting)
    await world.say("s", "m1")
    (conversation,) = await world.turns.find(10)
    work = asyncio.create_task(world.turns.work(conversation))
    await started.wait()
    go_on.set()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    (entry,) = await world.inbox.entries("pending")
    assert entry.tries == 0


async def test_a_state_that_is_no_object_is_left_alone(new_world: NewWorld, clock: Clock) -> None:
    world = await new_world()
    for text in ("not JSON", "[1]", '{"n": NaN}', "[" * 100_000):
        await world.sessions.save("s", text)
        await world.say("s", text[:20])
        await world.work()
        assert (await world.sessions.load("s")).chat_state == text
        (entry,) = [entry for entry in await world.inbox.entries("pending") if entry.tries == 1]
        assert "not a JSON object" in entry.error
        await world.inbox.drop(entry.key)


async def test_a_state_that_cannot_be_saved_is_a_failed_turn(new_world: NewWorld, clock: Clock) -> None:
    async def unsound(turn: Turn) -> None:
        turn.state["x"] = {"set": {1, 2}, "nan": float("nan"), "large": "x" * 5000}.get(turn.message.text)
        if turn.message.text == "none":
            turn.state = turn.state.update({})  # type: ignore[assignment]
        elif turn.message.text == "list":
            turn.state = []  # type: ignore[assignment]
        elif turn.message.text == "exit":
            sys.exit(1)

    reasons = {"set": "TypeError", "nan": "ValueError", "large": "MAX_STATE_BYTES", "none": "dict", "list": "dict"}
    reasons["exit"] = "sys.exit"
    world = await new_world(unsound, state_bytes=2000)
    for text in reasons:
        await world.say(text, "m1", text)
        clock.advance(1)
    await world.work()
    entries = await world.inbox.entries("pending")
    assert [(entry.tries, reason in entry.error) for entry, reason in zip(entries, reasons.values(), strict=True)] == [
        (1, True)
    ] * len(reasons)
    assert [await world.state(text) for text in reasons] == [None] * len(reasons)


async def test_replies_that_overlap_are_all_sent(new_world: NewWorld) -> None:
    async def talkative(turn: Turn) -> None:
        async def tokens():  # type: ignore[no-untyped-def]
            await turn.reply("One moment")
            yield "The answer"

        await turn.reply(tokens())

    world = await new_world(talkative)
    await world.write(person(), "m1")
    await world.work()
    assert world.paper.texts == ["One moment", "The answer"]
    assert len({reply.id for _, reply in world.paper.sent}) == 2


async def test_a_slow_session_takes_one_place_only(new_world: NewWorld, clock: Clock) -> None:
    """Three people go on with one session, whose bot is slow; other sessions are answered meanwhile."""
    go_on = asyncio.Event()

    async def slow(turn: Turn) -> None:
        if turn.user_session_id == "web":
            await go_on.wait()
        await echo(turn)

    world = await new_world(slow, at_once=2)
    await world.sessions.save("web", "{}")
    for number in range(3):
        await world.write(person(f"{number}"), f"code{number}", (await world.link_to("web")).code)
    await world.work()
    for number in range(3):
        await world.write(person(f"{number}"), f"m{number}", f"{number}")
    clock.advance(1)
    await world.say("other", "m")
    async with running(world.turns):
        await _until(world, "other", 2)
        go_on.set()
        await _until(world, "web", 6)


async def test_a_failing_conversation_is_left_alone_for_longer_and_longer(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()

    async def broken(_entry: object) -> float:
        raise ConnectionResetError

    monkeypatch.setattr(world.turns, "_take", broken)
    rests = [world.turns._rest_after("c", ConnectionResetError()) for _ in range(9)]
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(caplog.records) == 1
    await world.say("s", "m1")
    for _ in range(3):
        await world.turns._begin()
        await asyncio.gather(*world.turns._working.values())
    assert world.turns._failures == {"c": 9, (await world.turns.find(1))[0]: 1}


async def test_the_oldest_messages_make_room_in_a_full_state(new_world: NewWorld) -> None:
    world = await new_world(state_bytes=2000)
    for number in range(50):
        await world.say("s", f"m{number:02}", f"{number}")
    await world.work()
    session = await world.sessions.load("s")
    assert len(session.chat_state.encode()) <= 2000
    assert (await world.texts("s"))[-2:] == ["49", "You said: 49"]
    assert (await world.state("s") or {})["count"] == 50


async def test_typing_a_choice_is_as_good_as_choosing_it(new_world: NewWorld) -> None:
    chosen: list[Choice | None] = []

    async def asking(turn: Turn) -> None:
        chosen.append(turn.message.choice)
        await turn.reply("Which?", choices={"de": "Deutsch", "en": "English"})

    world = await new_world(asking)
    for number, text in enumerate(("Hello", " deutsch ", "EN", "Français")):
        await world.say("s", f"m{number}", text)
    await world.work()
    assert chosen == [None, Choice("de", "Deutsch"), Choice("en", "English"), None]


async def test_a_reply_that_streams_is_seen_as_it_grows_and_kept_once(new_world: NewWorld) -> None:
    go_on = asyncio.Semaphore(0)

    async def streaming(turn: Turn) -> None:
        async def tokens():  # type: ignore[no-untyped-def]
            for token in ("Once ", "upon ", "a time"):
                yield token
                await go_on.acquire()

        await turn.reply(tokens())

    world = await new_world(streaming)
    with world.live.watch("s", None) as watcher:
        async with running(world.turns):
            await world.say("s", "m1")
            pieces = [await watcher.next(SECONDS) for _ in range(2)]
            go_on.release()
            pieces.append(await watcher.next(SECONDS))
            go_on.release()
            pieces.append(await watcher.next(SECONDS))
            go_on.release()
            while not isinstance(change := await watcher.next(SECONDS), Session):
                pass
    assert pieces == [
        ("m1.1", "", False),
        ("m1.1", "Once ", True),
        ("m1.1", "upon ", True),
        ("m1.1", "a time", True),
    ]
    assert (change.version, (await world.texts("s"))[-1]) == (1, "Once upon a time")


async def test_a_bot_gets_the_file_that_came_with_a_message(new_world: NewWorld, clock: Clock) -> None:
    async def reading(turn: Turn) -> None:
        await turn.reply((await turn.download()).decode())

    world = await new_world(reading)
    picture = Message("m1", clock(), "a caption", attachment=Attachment("image", "media-1"))
    await world.write(person(), "m1", message=picture)
    await world.write(person(), "m2", "no file")
    await world.work()
    assert world.paper.texts == ["the file media-1"]
    (failed,) = await world.inbox.entries("pending")
    assert failed.error.startswith("ValueError at bot.py")


async def test_who_comes_in_the_middle_of_a_reply_sees_what_there_is_of_it(new_world: NewWorld) -> None:
    said, go_on = asyncio.Event(), asyncio.Event()

    async def streaming(turn: Turn) -> None:
        async def tokens():  # type: ignore[no-untyped-def]
            yield "Once upon "
            said.set()
            await go_on.wait()
            yield "a time"

        await turn.reply(tokens())

    world = await new_world(streaming)
    async with running(world.turns):
        await world.say("s", "m1")
        await said.wait()
        with world.live.watch("s", None) as watcher:
            assert await watcher.next(SECONDS) == ("m1.1", "Once upon ", False)
            go_on.set()
            assert await watcher.next(SECONDS) == ("m1.1", "a time", True)
            while not isinstance(await watcher.next(SECONDS), Session):
                pass


async def test_a_turn_on_a_session_that_is_deleted_meanwhile_begins_anew(new_world: NewWorld, clock: Clock) -> None:
    world: World
    runs = 0

    async def deleting(turn: Turn) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await world.sessions.delete("s")
        await echo(turn)

    world = await new_world(deleting)
    await world.sessions.save("s", '{"count": 7}')
    await world.say("s", "m1")
    await world.work()
    assert (runs, await world.state("s")) == (1, None)  # whoever deletes it erases its messages in a moment
    clock.advance(2)
    await world.work()
    assert (runs, (await world.state("s") or {})["count"]) == (2, 1)


async def test_deleting_a_session_under_a_turn_brings_nothing_back(new_world: NewWorld, clock: Clock) -> None:
    world: World

    async def deleting(turn: Turn) -> None:
        await world.sessions.delete("s")
        await echo(turn)

    world = await new_world(deleting)
    await world.sessions.save("s", "{}")
    await world.say("s", "m1")
    await world.work()
    assert await world.inbox.erase("s")
    clock.advance(2)
    await world.work()
    assert await world.state("s") is None


async def test_messages_that_wait_go_with_their_session_and_do_not_bring_it_back(world: World) -> None:
    await world.say("s", "m1")
    await world.work()
    await world.say("s", "m2")
    await world.sessions.delete("s", erases=await world.inbox.erasure("s"))
    await world.work()
    assert (await world.state("s"), await world.inbox.entries("pending")) == (None, [])


async def test_what_was_done_long_ago_hides_no_message_from_its_erasure(new_world: NewWorld) -> None:
    world = await new_world()
    for number in range(3):
        await world.say("s", f"m{number}")
    await world.work()
    await world.sessions.delete("s")
    await world.say("s", "late")
    assert await world.inbox.erase("s")
    await world.work()
    assert await world.state("s") is None


async def test_unlinking_and_deleting_under_a_turn_gives_the_message_to_its_sender(new_world: NewWorld) -> None:
    world: World
    runs: list[str] = []

    async def disturbed(turn: Turn) -> None:
        runs.append(turn.user_session_id)
        if len(runs) == 1:
            (person_id,) = await world.inbox.people.linked("web", world.clock())
            await world.inbox.people.unlink(person_id, world.clock())
            await world.sessions.delete("web")
            await world.inbox.erase("web")
        await echo(turn)

    world = await new_world(disturbed)
    await world.sessions.save("web", "{}")
    await world.write(person(), "m1", (await world.link_to("web")).code)
    await world.write(person(), "m2", "Hi")
    await world.work()
    own = await world.session_of(person())
    assert runs == ["web", own]
    assert await world.state("web") is None
    assert await world.texts(own) == ["Hi", "You said: Hi"]


async def test_a_message_that_was_erased_meanwhile_brings_nothing_back(new_world: NewWorld) -> None:
    world: World

    async def erasing(turn: Turn) -> None:
        await world.inbox.erase("s")
        await echo(turn)

    world = await new_world(erasing)
    await world.say("s", "m1")
    await world.work()
    assert await world.state("s") is None
    assert await world.inbox.entries("pending") == []


async def test_a_busy_server_hides_no_work_from_another(new_world: NewWorld, clock: Clock) -> None:
    """The first conversations are in the hands of a server with slow turns; those behind them are for the other one."""
    go_on = asyncio.Event()

    async def slow(turn: Turn) -> None:
        await go_on.wait()
        await echo(turn)

    busy, other = await new_world(slow, at_once=3), await new_world(at_once=3)
    for number in range(9):
        await busy.say(f"s{number}", "m1")
        clock.advance(0.001)
    async with running(busy.turns):
        async with asyncio.timeout(SECONDS):
            while len(await _leases(busy, clock)) < 3:  # noqa: ASYNC110 (another task takes them)
                await asyncio.sleep(0)
        async with running(other.turns):
            for number in range(3, 9):
                await _until(other, f"s{number}", 2)
        go_on.set()
        for number in range(3):
            await _until(busy, f"s{number}", 2)


async def _leases(world: World, clock: Clock) -> list[object]:
    return list(await world.store.list(RecordQuery(collection="turn_leases", now=clock())))


async def test_a_damaged_message_is_set_aside(world: World, store: Store) -> None:
    from chatstate.mailbox import Receive

    now = world.clock()
    await store.commit([Receive(key="k", conversation="c", document="no envelope", sent_at=now, now=now)])
    await world.work()
    (entry,) = await world.inbox.entries("aside")
    assert (entry.key, entry.error) == ("k", "the message is damaged")


async def test_take_turn_tells_conflicts_from_what_is_done(world: World, store: Store) -> None:
    from chatstate.mailbox import Settle, Settled

    await world.say("s", "m1")
    (entry,) = await world.store.list(InboxQuery(now=world.clock(), status="pending"))
    settle = Settle(key=entry.key, now=world.clock())  # type: ignore[union-attr]
    first = await world.sessions.save("s", "{}")
    assert await world.sessions.take_turn("s", "{}", None, settle) == Conflict(first.tag)
    assert isinstance(await world.sessions.take_turn("s", "[]", first.tag, settle), Session)
    assert await world.sessions.take_turn("s", "{}", first.tag, settle) == Settled(False)


async def test_a_store_that_fails_is_told_once_and_tried_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.store.close()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await world.turns._quietly(world.turns._begin())
    assert len([record for record in caplog.records if "messages cannot be answered" in record.message]) == 1
    await world.store.open()
    await world.say("s", "m1")
    await done(world.turns)
    assert (await world.state("s") or {})["count"] == 1
