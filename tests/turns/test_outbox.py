"""Sending: in order, at least once, within the channel's window and as slowly as it wants."""

from __future__ import annotations

import asyncio

import pytest

from chatstate.bot import Reply, Turn
from chatstate.channels import Contact, Report
from chatstate.errors import SendFailed
from chatstate.mailbox import OutboxEntry
from chatstate.record import RecordQuery
from tests.turns.conftest import SCOPE, Clock, NewWorld, World, done, person


async def replies(world: World, contact: Contact | None = None) -> list[OutboxEntry]:
    session = await world.session_of(contact or person())
    return list(await world.inbox.replies(user_session_id=session))


async def test_replies_leave_in_order(new_world: NewWorld) -> None:
    async def talkative(turn: Turn) -> None:
        for number in range(5):
            await turn.reply(f"{turn.message.text}{number}\nand more")

    world = await new_world(talkative)
    await world.write(person(), "m1", "a")
    await world.write(person(), "m2", "b")
    await world.work()
    expected = [text for letter in "ab" for number in range(5) for text in (f"{letter}{number}", "and more")]
    assert world.paper.texts == expected
    assert {entry.status for entry in await replies(world)} == {"sent"}
    assert {entry.document for entry in await replies(world)} == {""}


async def test_what_was_not_taken_is_tried_again_later_and_later(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("busy", retry_after=0.5) for _ in range(4)]
    await world.write(person(), "m1")
    for seconds in (0, 1, 4, 16):
        clock.advance(seconds)
        await world.work()
        assert world.paper.sent == []
    clock.advance(63)
    await world.work()
    assert world.paper.sent == []
    clock.advance(1)
    await world.work()
    assert world.paper.texts == ["You said: Hello"]
    assert [entry.tries for entry in await replies(world)] == [4]


async def test_retry_after_is_respected(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("busy", retry_after=120)]
    await world.write(person(), "m1")
    await world.work()
    clock.advance(119)
    await world.work()
    assert world.paper.sent == []
    clock.advance(1)
    await world.work()
    assert len(world.paper.sent) == 1


async def test_what_waits_for_one_person_holds_up_nobody_else(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("pair limit", retry_after=6, holds="person")]
    await world.write(person("1"), "m1")
    await world.work()
    await world.write(person("2"), "m2")
    await world.write(person("1"), "m3", "again")
    await world.work()
    assert [(contact, reply.text) for contact, reply in world.paper.sent] == [(person("2"), "You said: Hello")]
    clock.advance(6)
    await world.work()
    assert world.paper.texts[1:] == ["You said: Hello", "You said: again"]


async def test_a_channel_that_wants_to_be_left_alone_is(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("throughput", retry_after=30, holds="channel")]
    await world.write(person("1"), "m1")
    await world.write(person("2"), "m2")
    await world.work()
    await world.write(person("3"), "m3")
    await done(world.turns)
    await done(world.outbox)
    assert len(world.paper.sent) <= 1
    sent = len(world.paper.sent)
    clock.advance(29)
    await world.work()
    assert len(world.paper.sent) == sent
    clock.advance(1)
    await world.work()
    assert len(world.paper.sent) == 3


async def test_what_can_never_be_sent_holds_up_nothing(
    world: World, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world.paper.failing = [SendFailed("131026 Message undeliverable")]
    await world.write(person(), "m1", "a")
    await world.write(person(), "m2", "b")
    await world.work()
    assert world.paper.texts == ["You said: b"]
    failed, sent = await replies(world)
    assert (failed.status, failed.error, sent.status) == ("failed", "131026 Message undeliverable", "sent")
    assert "131026" in caplog.text
    assert "You said" not in caplog.text


async def test_the_window_is_looked_at_again_when_it_is_sent(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("down", retry_after=86400)]
    await world.write(person(), "m1")
    await world.work()
    clock.advance(86400)
    await world.work()
    assert world.paper.sent == []
    (entry,) = await replies(world)
    assert (entry.status, "has not written" in entry.error) == ("failed", True)


async def test_a_later_message_opens_the_window_again(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("down", retry_after=86400)]
    await world.write(person(), "m1", "early")
    await world.work()
    clock.advance(86000)
    await world.write(person(), "m2", "late")
    await world.work()
    clock.advance(400)
    await world.work()
    assert world.paper.texts == ["You said: early", "You said: late"]


async def test_one_person_is_not_sent_more_than_the_channel_takes(new_world: NewWorld, clock: Clock) -> None:
    async def flooding(turn: Turn) -> None:
        for number in range(50):
            await turn.reply(f"{number}")

    world = await new_world(flooding)
    await world.write(person(), "m1")
    await world.work()
    assert len(world.paper.sent) == 45
    clock.advance(6)
    await world.work()
    assert len(world.paper.sent) == 46
    for _ in range(4):
        clock.advance(6)
        await world.work()
    assert world.paper.texts == [f"{number}" for number in range(50)]


async def test_a_killed_server_has_sent_at_least_once(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(_progress: object) -> None:
        raise ConnectionResetError

    await world.write(person(), "m1")
    await done(world.turns)
    (conversation,) = await world.outbox.find(10)
    with monkeypatch.context() as patch:
        patch.setattr(world.outbox, "_note", dies)
        with pytest.raises(ConnectionResetError):
            await world.outbox.work(conversation)
    await done(world.outbox)
    assert world.paper.texts == ["You said: Hello"] * 2


async def test_two_servers_send_to_one_person_one_after_the_other(new_world: NewWorld, clock: Clock) -> None:
    one, other = await new_world(), await new_world()
    for number in range(10):
        await one.write(person(), f"m{number}", f"{number}")
    await done(one.turns)
    (conversation,) = await one.outbox.find(10)
    await asyncio.gather(one.outbox.work(conversation), other.outbox.work(conversation))
    assert sorted(one.paper.texts + other.paper.texts) == [f"You said: {number}" for number in range(10)]
    assert [] in (one.paper.texts, other.paper.texts)


async def test_reports_tell_what_became_of_what_was_sent(world: World, clock: Clock) -> None:
    await world.write(person(), "m1")
    await world.work()
    reports = [
        Report("sent-1", "read", clock()),
        Report("sent-1", "delivered", clock()),
        Report("sent-9", "failed", clock(), "131047"),
    ]
    await world.inbox.report("paper", SCOPE, reports)
    assert [(entry.status, entry.error) for entry in await replies(world)] == [("read", "")]
    await world.inbox.report("paper", "another number", [Report("sent-1", "failed", clock(), "x")])
    assert [entry.status for entry in await replies(world)] == ["read"]


async def test_a_failure_that_is_told_before_the_reply_is_known_is_noted(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = world.paper.send

    async def sends_and_tells(recipient: Contact, reply: Reply) -> str:
        sent = await send(recipient, reply)
        await world.inbox.report("paper", SCOPE, [Report(sent, "failed", clock(), "131047")])
        return sent

    monkeypatch.setattr(world.paper, "send", sends_and_tells)
    await world.write(person(), "m1")
    await world.work()
    assert [(entry.status, entry.error) for entry in await replies(world)] == [("failed", "131047")]


async def test_a_channel_that_is_held_is_not_asked_for_each_person(world: World, clock: Clock) -> None:
    world.paper.failing = [SendFailed("throughput", retry_after=60, holds="channel")]
    for number in range(5):
        await world.write(person(f"{number}"), f"m{number}")
    await world.work()
    assert [await world.outbox.work(name) for name in await world.outbox.find(10)] == [5.0] * 4
    assert await world.store.list(RecordQuery(collection="send_leases", now=clock())) == []


async def test_a_reply_to_somebody_who_was_forgotten_is_not_sent(world: World, clock: Clock) -> None:
    await world.write(person(), "m1")
    await done(world.turns)
    from chatstate.channels import ExternalId

    await world.inbox.people.give_up("paper", [ExternalId("wa_id", "1")], clock())
    await done(world.outbox)
    assert world.paper.sent == []


async def test_the_reply_goes_where_the_person_is_now(world: World, clock: Clock) -> None:
    await world.write(person(), "m1")
    await done(world.turns)
    await world.inbox.people.find("paper", person("US.1", "bsuid", ("wa_id", "1")), clock())
    await done(world.outbox)
    ((contact, reply),) = world.paper.sent
    assert contact == person("US.1", "bsuid", ("wa_id", "1"))
    assert isinstance(reply, Reply)
