"""Whole rows in a Valkey Cluster: in the middle of writes of several steps, and where they lead."""

from __future__ import annotations

from typing import Any, cast

import pytest
from msgspec.structs import replace

from chatstate.mailbox import OutboxQuery, Progress, Settle, Settled
from chatstate.row import DropRow, InboxRow, OutboxRow, PutRow, RowChanged, RowQuery, RowShelf, VisitRow
from chatstate.stores.valkey import ValkeyStore
from chatstate.visit import UserSessionQuery, VisitQuery
from tests.stores.test_valkey_mailbox import (
    FAULTS,
    MOST_STEPS,
    NOW,
    Interrupted,
    commit,
    in_place,
    receiving,
    sending,
    settling,
    states,
    store,
    turn,
)

__all__ = ["store"]  # a fixture


_SHELVES: tuple[RowShelf, ...] = ("sessions", "inbox", "outbox")


async def listed(store: ValkeyStore, shelf: RowShelf) -> list[Any]:
    return list(await store.list(RowQuery(shelf=shelf)))


async def everything(store: ValkeyStore) -> dict[str, list[Any]]:
    return {shelf: await listed(store, shelf) for shelf in _SHELVES}


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_row_is_of_a_message_that_a_session_may_be_taking_in(store: ValkeyStore, fault: Any) -> None:
    for step in range(1, MOST_STEPS):
        place = in_place(store, f"{step}:")
        await commit(place, receiving("m"))
        write = Interrupted(place, turn("m", "s"), step, fault)
        reached = await write.begin()
        (message,) = cast(list[InboxRow], await listed(place, "inbox"))
        before = await everything(place)
        is_taken_in = bool(before["sessions"])
        assert (message.status, len(before["outbox"])) == (("applied", 2) if is_taken_in else ("pending", 0)), step
        await write.end()
        after = await everything(place)
        assert ([row.status for row in after["inbox"]] == ["applied"]) == bool(after["sessions"]), step
        if not reached:
            return
    raise AssertionError("there are more steps than were tried")


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_message_that_is_decided_is_done_before_its_row_is_shown(store: ValkeyStore, fault: Any) -> None:
    for step in range(1, MOST_STEPS):
        place = in_place(store, f"{step}:")
        await commit(place, receiving("m"))
        settle = Interrupted(place, settling("m", "s"), step, fault)
        reached = await settle.begin()
        (message,) = cast(list[InboxRow], await listed(place, "inbox"))
        replies = len(await listed(place, "outbox"))
        assert (message.status, replies) in (("applied", 2), ("pending", 0)), step
        await settle.end()
        if not reached:
            return
    raise AssertionError("there are more steps than were tried")


def outgoing(**given: Any) -> OutboxRow:
    words: dict[str, Any] = {"key": "k", "number": 1, "conversation": "c", "user_session_id": "s", "document": "d"}
    words |= {"status": "sent", "rank": 1, "provider_key": "p", "created_at": NOW, "due_at": NOW, "tries": 0}
    return OutboxRow(**(words | {"error": ""} | given))


def arrived(**given: Any) -> InboxRow:
    words: dict[str, Any] = {"key": "k", "number": 1, "conversation": "c", "document": "d", "status": "pending"}
    words |= {"sent_at": NOW, "received_at": NOW, "due_at": NOW, "tries": 0, "error": ""}
    return InboxRow(**(words | given))


def visited(**given: Any) -> VisitRow:
    words: dict[str, Any] = dict.fromkeys(VisitRow.__struct_fields__) | {"session_id": "k", "user_session_id": "s"}
    words |= {"session_start_time": NOW, "created_at": NOW, "total_messages_count": 1, "session_completed": False}
    return VisitRow(**(words | given))


MOVED = (
    (visited(), visited(user_session_id="other", user_id="me")),
    (visited(user_id="me"), visited(session_outcome="done")),
    (outgoing(), outgoing(conversation="elsewhere", user_session_id="other", provider_key="q", number=2**62)),
    (outgoing(), outgoing(user_session_id="other", provider_key=None, status="queued", rank=0)),
    (outgoing(), outgoing(rank=3)),
    (arrived(), arrived(conversation="elsewhere", number=2**62)),
    (arrived(), arrived(status="applied", document="")),
)


@pytest.mark.parametrize("fault", FAULTS[:3])
@pytest.mark.parametrize(("old", "new"), MOVED)
async def test_a_row_that_moves_leaves_nothing_behind(store: ValkeyStore, old: Any, new: Any, fault: Any) -> None:
    """Whatever becomes of one of its steps, when it is done again."""
    shelf = cast(RowShelf, type(old).__struct_config__.tag)
    for step in range(1, MOST_STEPS):
        place = in_place(store, f"{step}:")
        await commit(place, PutRow(old))
        reached = await Interrupted(place, PutRow(new), step, fault).begin()
        await commit(place, PutRow(new))
        assert await listed(place, shelf) == [new]
        if shelf == "outbox":
            await check_where_it_leads(place, old, new)
        if shelf == "visits":
            await check_how_it_is_found(place, old, new)
        await Interrupted(place, DropRow(shelf, new.place), step, fault).begin()
        await commit(place, DropRow(shelf, new.place))
        assert await commit(place, DropRow(shelf, new.place)) == RowChanged(False)
        assert await listed(place, shelf) == []
        if not reached:
            return
    raise AssertionError("there are more steps than were tried")


async def check_how_it_is_found(store: ValkeyStore, old: VisitRow, new: VisitRow) -> None:
    assert len(await store.list(VisitQuery(session_id="k"))) == 1
    for session in {old.user_session_id, new.user_session_id}:
        found = await store.list(VisitQuery(user_session_id=session))
        assert len(found) == (session == new.user_session_id)
    for person in filter(None, {old.user_id, new.user_id}):
        found = await store.list(UserSessionQuery(user_id=person))
        assert len(found) == (person == new.user_id)


async def check_where_it_leads(store: ValkeyStore, old: OutboxRow, new: OutboxRow) -> None:
    for session in {old.user_session_id, new.user_session_id}:
        found = await store.list(OutboxQuery(now=NOW, user_session_id=session))
        assert len(found) == (session == new.user_session_id)
    for provider in filter(None, {old.provider_key, new.provider_key}):
        news = Progress(now=NOW, status="read", provider_key=provider)
        assert await commit(store, news) == Settled(provider == new.provider_key)
    await commit(store, PutRow(new))


async def test_messages_that_were_put_there_go_on_as_others_do(store: ValkeyStore) -> None:
    await store.commit([PutRow(arrived()), PutRow(outgoing(conversation="d", number=7))])
    await commit(store, receiving("later"))
    assert [row.number > 1 for row in await listed(store, "inbox")] == [False, True]
    settle = Settle(key="k", now=NOW, sends=(sending("reply", "s"),))
    assert await commit(store, settle) == Settled(True)
    assert [(row.key, row.number > 7) for row in await listed(store, "outbox")] == [("k", False), ("reply", True)]
    assert await commit(store, replace(settle, sends=())) == Settled(False)


@pytest.mark.parametrize("is_removed", [False, True])
async def test_what_is_restored_is_taken_in_again(store: ValkeyStore, is_removed: bool) -> None:
    """Though its session knows yet that it has taken in a message of this key, before it was put back."""
    await commit(store, receiving("m"))
    before = await listed(store, "inbox")
    await commit(store, turn("m", "s"))
    if is_removed:
        await store.commit([DropRow("sessions", ("s",)), DropRow("inbox", ("m",))])
    await commit(store, PutRow(before[0]))
    for step in range(1, MOST_STEPS):
        write = Interrupted(store, turn("m", "s", state="again"), step, "dies after")
        if not await write.begin():
            break
        assert (bool(await states(store, "s")), len(await listed(store, "inbox"))) == (True, 1) or is_removed
    assert await states(store, "s") == {"s": "again"}
    assert [row.status for row in await listed(store, "inbox")] == ["applied"]
    assert await commit(store, turn("m", "s", state="never")) == Settled(False)
    assert await commit(store, turn("m", "other", state="never")) == Settled(False)
