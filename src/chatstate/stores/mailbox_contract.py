"""The part of the contract suite that is about inbox and outbox. `chatstate.stores.contract` runs it with the rest."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from msgspec.structs import replace

from chatstate.errors import WriteRefused
from chatstate.mailbox import (
    REMEMBERED_FOR,
    DueQuery,
    EraseMail,
    InboxEntry,
    InboxQuery,
    MailErased,
    OutboxEntry,
    OutboxQuery,
    OutboxStatus,
    Postpone,
    Progress,
    Receive,
    Received,
    Send,
    Settle,
    Settled,
)
from chatstate.model import ABSENT, ANYTHING, KEEP, Conflict, Delete, Deleted, Expect, Retention, Save, Session, one_of
from chatstate.stores.base import AnyWrite, Store, all_readable

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
SECOND = timedelta(seconds=1)
LONG_AGO = datetime(1700, 1, 1, tzinfo=UTC)
"""Before all that others may have in the database: what a sweep as of then removes is ours."""

DOCUMENT = '{"text": "Grüße 😀 \\u0000 \' \\" $1 %s"}'


class MailboxChecks:
    """The checks, for the two stores that the suite works on."""

    one: Store
    other: Store
    prefix: str

    def id(self, name: object = "") -> str:
        """An id that nobody else uses."""
        raise NotImplementedError

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself."""
        raise NotImplementedError

    # --- What the checks are made of ----------------------------------------------------------------------------------

    def _receive(self, key: object, conversation: str = "c", **given: Any) -> Receive:
        members: dict[str, Any] = {"document": DOCUMENT, "sent_at": NOW, "now": NOW, **given}
        return Receive(key=f"{self.prefix}{key}", conversation=f"{self.prefix}{conversation}", **members)

    def _settle(self, key: object, *sends: Send, **given: Any) -> Settle:
        return Settle(key=f"{self.prefix}{key}", sends=sends, **{"now": NOW, **given})

    def _send(self, key: object, conversation: str = "c", document: str = DOCUMENT) -> Send:
        return Send(
            key=f"{self.prefix}{key}",
            conversation=f"{self.prefix}{conversation}",
            user_session_id=self.id(),
            document=document,
        )

    def _turn(self, key: object, state: str, *sends: Send, expect: Expect = ANYTHING) -> Save:
        return Save(
            user_session_id=self.id(),
            new_session_id=str(uuid.uuid4()),
            chat_state=state,
            last_activity=NOW,
            now=NOW,
            expect=expect,
            settles=self._settle(key, *sends),
        )

    async def _inbox(self, conversation: str = "c", **given: Any) -> Sequence[InboxEntry]:
        query = InboxQuery(conversation=f"{self.prefix}{conversation}", **{"now": NOW, **given})
        return cast(Sequence[InboxEntry], await self.other.list(query))

    async def _heads(self, now: datetime = NOW) -> list[str]:
        return await self._due("inbox", now)

    async def _due(self, box: Literal["inbox", "outbox"], now: datetime) -> list[str]:
        """The keys of what is to be taken next in each conversation of this check, in the order of those."""
        keys = []
        for name in cast(Sequence[str], await self.other.list(DueQuery(box=box, now=now, limit=10_000))):
            if name.startswith(self.prefix):
                query = (
                    InboxQuery(now=now, conversation=name, status="pending", limit=1)
                    if box == "inbox"
                    else OutboxQuery(now=now, conversation=name, status="queued", limit=1)
                )
                (head,) = await self.other.list(query)
                assert isinstance(head, InboxEntry | OutboxEntry)
                keys.append(head.key.removeprefix(self.prefix))
        return keys

    async def _outbox(self, **given: Any) -> Sequence[OutboxEntry]:
        query = OutboxQuery(user_session_id=self.id(), **{"now": NOW, **given})
        return cast(Sequence[OutboxEntry], await self.other.list(query))

    async def _leaving(self, now: datetime = NOW) -> list[str]:
        return await self._due("outbox", now)

    async def _state(self) -> str | None:
        session = all_readable(await self.other.load([self.id()], NOW)).get(self.id())
        return session.chat_state if session else None

    # --- What arrives -------------------------------------------------------------------------------------------------

    async def a_message_is_kept_once(self) -> None:
        sent = NOW - 3 * SECOND
        assert await self.commit(self._receive("a", sent_at=sent)) == Received(True)
        again = self._receive("a", "elsewhere", document="another")
        assert await self.commit(again, self.other) == Received(False)
        (entry,) = await self._inbox()
        assert (entry.key, entry.document, entry.status) == (f"{self.prefix}a", DOCUMENT, "pending")
        assert (entry.sent_at, entry.received_at, entry.due_at, entry.tries, entry.error) == (sent, NOW, NOW, 0, "")
        assert await self._inbox("elsewhere") == []

    async def of_many_who_receive_the_same_message_one_keeps_it(self) -> None:
        racing = [self.commit(self._receive("a"), (self.one, self.other)[number % 2]) for number in range(20)]
        outcomes = await asyncio.gather(*racing)
        assert sorted(outcome.is_new for outcome in outcomes) == [False] * 19 + [True]

    async def messages_of_a_batch_are_kept_in_its_order(self) -> None:
        assert await self.commit(self._receive("x1")) == Received(True)
        batch = [self._receive(f"x{number}", now=NOW + SECOND) for number in range(100)]
        assert list(await self.one.commit(batch)) == [Received(n != 1) for n in range(100)]
        known = [entry.key.removeprefix(self.prefix) for entry in await self._inbox(limit=1000)]
        assert known == ["x1", "x0", *(f"x{number}" for number in range(2, 100))]
        assert [entry.key for entry in await self._inbox(newest_first=True, limit=1)] == [f"{self.prefix}x99"]

    async def a_message_that_no_store_can_keep_is_refused(self) -> None:
        for document in ("nul \x00", "lone \ud800"):
            try:
                await self.commit(self._receive("a", document=document))
            except WriteRefused:
                pass
            else:
                raise AssertionError(f"{document!r} was kept")

    async def the_earliest_message_of_each_conversation_is_its_head(self) -> None:
        await self.commit(self._receive("later", sent_at=NOW + SECOND))
        await self.commit(self._receive("earlier"))
        await self.commit(self._receive("other", "d"))
        await self.commit(self._receive("noted", "e", status="noted"))
        assert sorted(await self._heads()) == ["earlier", "other"]
        assert (await self.other.list(DueQuery(box="inbox", now=NOW, limit=1))) != []
        assert await self.commit(self._settle("earlier")) == Settled(True)
        assert sorted(await self._heads()) == ["later", "other"]

    async def a_message_that_is_postponed_holds_up_its_conversation(self) -> None:
        await self.one.commit([self._receive(key) for key in ("a", "b")])
        due = NOW + 5 * SECOND
        later = Postpone(key=f"{self.prefix}a", now=NOW, due_at=due, tries=1, error="ValueError")
        assert await self.commit(later) == Settled(True)
        assert await self._heads(due - timedelta(microseconds=1)) == []
        assert await self._heads(due) == ["a"]
        (entry, _) = await self._inbox()
        assert (entry.due_at, entry.tries, entry.error, entry.status) == (due, 1, "ValueError", "pending")

    async def a_message_that_is_set_aside_lets_others_pass_and_can_be_brought_back(self) -> None:
        await self.one.commit([self._receive(key) for key in ("a", "b")])
        aside = Postpone(key=f"{self.prefix}a", now=NOW, due_at=NOW, tries=5, error="ValueError", aside=True)
        assert await self.commit(aside) == Settled(True)
        assert await self._heads() == ["b"]
        (entry,) = await self._inbox(status="aside")
        assert (entry.document, entry.tries, entry.error) == (DOCUMENT, 5, "ValueError")
        again = Postpone(key=f"{self.prefix}a", now=NOW, due_at=NOW, tries=0)
        assert await self.commit(again) == Settled(True)
        assert await self._heads() == ["a"]

    async def a_message_is_settled_once_and_then_says_nothing(self) -> None:
        await self.commit(self._receive("a"))
        racing = [
            self.commit(self._settle("a", self._send(f"s{number}")), (self.one, self.other)[number % 2])
            for number in range(20)
        ]
        outcomes = await asyncio.gather(*racing)
        assert sorted(outcome.done for outcome in outcomes) == [False] * 19 + [True]
        (entry,) = await self._inbox()
        assert (entry.status, entry.document) == ("applied", "")
        assert len(await self._outbox()) == 1
        postpone = Postpone(key=f"{self.prefix}a", now=NOW, due_at=NOW, tries=1)
        assert await self.commit(postpone) == Settled(False)
        assert await self.commit(self._settle("unknown")) == Settled(False)
        assert await self.commit(self._receive("a")) == Received(False)

    # --- What a message makes of its session --------------------------------------------------------------------------

    async def state_replies_and_done_are_one_write(self) -> None:
        await self.commit(self._receive("a"))
        saved = await self.commit(self._turn("a", "one", self._send("1"), self._send("2"), expect=ABSENT))
        assert isinstance(saved, Session)
        assert (saved.version, await self._state()) == (1, "one")
        assert [(entry.document, entry.status) for entry in await self._outbox()] == [(DOCUMENT, "queued")] * 2
        assert [entry.status for entry in await self._inbox()] == ["applied"]

    async def a_message_that_is_done_changes_no_session(self) -> None:
        await self.commit(self._receive("a"))
        saved = await self.commit(self._turn("a", "one"))
        for expect in (ANYTHING, ABSENT, one_of([saved.tag])):
            assert await self.commit(self._turn("a", "two", self._send("1"), expect=expect), self.other) == Settled(
                False
            )
        assert (await self._state(), await self._outbox()) == ("one", [])
        assert await self.commit(self._turn("unknown", "two")) == Settled(False)

    async def a_turn_on_another_version_changes_nothing_at_all(self) -> None:
        await self.one.commit([self._receive("a"), self._receive("b")])
        saved = await self.commit(self._turn("a", "one"))
        for expect in (ABSENT, one_of([saved.tag._replace(version=7)])):
            outcome = await self.commit(self._turn("b", "two", self._send("1"), expect=expect))
            assert outcome == Conflict(saved.tag)
        assert (await self._state(), await self._outbox(), await self._heads()) == ("one", [], ["b"])

    async def of_many_who_apply_the_same_message_one_does(self) -> None:
        await self.commit(self._receive("a"))
        racing = [
            self.commit(self._turn("a", str(number), self._send(f"s{number}")), (self.one, self.other)[number % 2])
            for number in range(20)
        ]
        outcomes = await asyncio.gather(*racing)
        (saved,) = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert outcomes.count(Settled(False)) == 19
        assert (saved.version, await self._state()) == (1, saved.chat_state)
        assert len(await self._outbox()) == 1

    async def turns_of_several_sessions_go_together(self) -> None:
        await self.one.commit([self._receive(number) for number in range(20)])
        plain = [replace(self._turn(n, "plain"), user_session_id=self.id(f"p{n}"), settles=None) for n in (1, 2)]
        turns = [replace(self._turn(n, f"{n}"), user_session_id=self.id(n)) for n in range(20)]
        done = await self.one.commit([*plain, *turns, self._receive("more")])
        assert [type(outcome) for outcome in done] == [Session] * 22 + [Received]
        again = await self.other.commit([*plain, *turns])
        assert again[2:] == [Settled(False)] * 20
        assert all(isinstance(outcome, Session) and outcome.version == 2 for outcome in again[:2])

    # --- What leaves --------------------------------------------------------------------------------------------------

    async def what_is_sent_to_one_leaves_in_order(self) -> None:
        await self.commit(self._receive("a"))
        sends = [self._send(1), self._send(2), self._send(3, "d")]
        assert await self.commit(self._settle("a", *sends)) == Settled(True)
        assert await self._leaving() == ["1", "3"]
        assert [entry.key for entry in await self._outbox(conversation=f"{self.prefix}d")] == [f"{self.prefix}3"]
        due = NOW + 5 * SECOND
        wait = Progress(now=NOW, status="queued", key=f"{self.prefix}1", due_at=due, tries=1, error="HTTP 503")
        assert await self.commit(wait) == Settled(True)
        assert await self._leaving() == ["3"]
        assert await self._leaving(due) == ["1", "3"]
        first = (await self._outbox())[0]
        assert (first.due_at, first.tries, first.error, first.status) == (due, 1, "HTTP 503", "queued")
        assert await self.commit(self._progress("sent", 1)) == Settled(True)
        assert await self._leaving() == ["2", "3"]

    def _progress(self, status: OutboxStatus, key: object = "", provider: object = "") -> Progress:
        return Progress(
            now=NOW,
            status=status,
            key=f"{self.prefix}{key}" if key else "",
            provider_key=f"{self.prefix}p{provider}" if provider else "",
        )

    async def news_of_what_was_sent_may_come_in_any_order(self) -> None:
        await self.commit(self._receive("a"))
        await self.commit(self._settle("a", self._send(1), self._send(2)))
        assert await self.commit(self._progress("delivered", provider=1)) == Settled(False)
        assert await self.commit(self._progress("sent", 1, 1)) == Settled(True)
        assert (await self._outbox())[0].document == ""
        for status, known in (
            ("failed", True),
            ("delivered", True),
            ("sent", False),
            ("read", True),
            ("failed", False),
        ):
            found = await self.commit(self._progress(cast(OutboxStatus, status), provider=1), self.other)
            assert found == Settled(known), status
        assert [entry.status for entry in await self._outbox()] == ["read", "queued"]
        assert await self.commit(self._progress("queued", 1)) == Settled(False)

    async def what_could_not_be_sent_is_still_there_to_read(self) -> None:
        await self.commit(self._receive("a"))
        await self.commit(self._settle("a", self._send(1)))
        assert await self.commit(self._progress("failed", 1)) == Settled(True)
        assert [entry.document for entry in await self._outbox(status="failed")] == [DOCUMENT]
        assert await self._leaving() == []

    async def a_message_that_is_known_stays_with_its_session(self) -> None:
        """Another session that sends one with its key neither has it nor takes it away."""
        await self.one.commit([self._receive("a"), self._receive("b")])
        await self.commit(self._settle("a", self._send("k")))
        send = replace(self._send("k"), user_session_id=self.id("x"))
        assert await self.commit(self._settle("b", send)) == Settled(True)
        assert await self.other.list(OutboxQuery(now=NOW, user_session_id=self.id("x"))) == []
        erase = EraseMail(user_session_id=self.id("x"), conversations=(), now=NOW)
        assert await self.commit(erase) == MailErased(0)
        assert [entry.key for entry in await self._outbox()] == [f"{self.prefix}k"]
        assert await self.commit(self._progress("sent", "k")) == Settled(True)

    # --- The end ------------------------------------------------------------------------------------------------------

    async def erased_messages_say_nothing_and_do_not_come_back(self) -> None:
        await self.one.commit([self._receive(1), self._receive(2), self._receive(3, "d"), self._receive(4, "d")])
        await self.commit(self._settle(1, self._send(1)))
        conversations = (f"{self.prefix}c",)
        erase = EraseMail(user_session_id=self.id(), conversations=conversations, now=NOW)
        assert await self.commit(erase) == MailErased(2)
        assert [(entry.status, entry.document) for entry in await self._inbox()] == [("applied", "")] * 2
        assert (await self._outbox(), await self._heads()) == ([], ["3"])
        assert await self.commit(self._receive(2)) == Received(False)
        assert await self.commit(EraseMail(user_session_id="?", conversations=(), now=NOW)) == MailErased(0)

    async def what_a_deletion_erases_goes_with_the_session_or_not_at_all(self) -> None:
        await self.one.commit([self._receive(1), self._receive(2), self._receive(3, "d")])
        session = await self.commit(self._turn(1, "s", self._send(1)))
        erases = EraseMail(user_session_id=self.id(), conversations=(f"{self.prefix}c",), now=NOW)
        delete = Delete(user_session_id=self.id(), now=NOW, erases=erases)
        other_one = replace(delete, expect=one_of([session.tag._replace(version=7)]))
        assert await self.commit(other_one) == Conflict(session.tag)
        assert (await self._heads(), len(await self._outbox())) == (["2", "3"], 1)
        deleted, turn = await asyncio.gather(self.commit(delete), self.commit(self._turn(2, "s"), self.other))
        assert isinstance(deleted, Deleted)
        assert isinstance(turn, Session | Settled)  # whichever was first
        assert (await self._heads(), await self._outbox()) == (["3"], [])
        assert await self.commit(self._turn(2, "s")) == Settled(False)
        assert await self.one.load([self.id()], NOW) == {}

    async def messages_that_are_done_are_forgotten_after_eight_days(self) -> None:
        then: dict[str, Any] = {"now": LONG_AGO}
        await self.one.commit([self._receive(key, sent_at=LONG_AGO, **then) for key in ("done", "waiting", "aside")])
        await self.commit(self._settle("done", self._send("left"), self._send("leaving"), **then))
        await self.commit(self._progress("sent", "left"))
        aside = Postpone(key=f"{self.prefix}aside", now=LONG_AGO, due_at=LONG_AGO, tries=5, aside=True)
        await self.commit(aside)
        end = LONG_AGO + REMEMBERED_FOR
        for now, retention, left in (
            (end - timedelta(microseconds=1), KEEP, {"done", "waiting", "aside", "left", "leaving"}),
            (end, KEEP, {"waiting", "aside", "leaving"}),
            (end, Retention(visits=REMEMBERED_FOR), set()),
        ):
            after: str | None = None
            while (after := (await self.one.sweep(now, retention, after, 2)).next) is not None:
                pass
            keys = [entry.key for entry in await self._inbox()] + [entry.key for entry in await self._outbox()]
            assert {key.removeprefix(self.prefix) for key in keys} == left, (now, retention)
        assert await self.commit(self._receive("done")) == Received(True)
