"""The inbox: what people have written, on any channel, is kept here before anybody is told that it has arrived.

Channels deliver again and in any order; a message is known by its channel's id for eight days, and kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import cast

from msgspec import Struct, json

from chatstate.bot import Message, Reply
from chatstate.channels import Arrived, Contact, ExternalId, Report
from chatstate.errors import StoreError
from chatstate.hashes import mail_key, name_hash
from chatstate.mailbox import (
    REMEMBERED_FOR,
    EraseMail,
    InboxEntry,
    InboxQuery,
    InboxStatus,
    OutboxEntry,
    OutboxQuery,
    OutboxStatus,
    Postpone,
    Progress,
    Receive,
    Received,
    Settle,
    Settled,
)
from chatstate.model import KEEP, Retention, utc_now
from chatstate.people import People, Person
from chatstate.records import Records
from chatstate.stores.base import AnyWrite, Outcome, Store, commit_one

MOST_WAITING = 100
"""How many messages of web pages may wait for one session."""

_KEPT: tuple[InboxStatus, ...] = ("pending", "aside", "noted")
"""The statuses of messages whose text is kept."""

WEB = "web"
"""The channel of web pages; its conversations are sessions."""


class Envelope(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The document of a message in the inbox.

    id               the channel's own
    sender           who has sent it; None on the web
    user_session_id  the session, on the web
    message          what a bot shall see, whose id names nobody; None: nothing for a bot
    note             what it is then
    former           names that are the sender's no more
    """

    channel: str
    id: str
    sender: Contact | None = None
    user_session_id: str = ""
    message: Message | None = None
    note: str = ""
    former: tuple[ExternalId, ...] = ()


class Parcel(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The document of a message in the outbox.

    person  whom it goes to
    """

    channel: str
    person: str
    reply: Reply


def _is_to_be_done(arrived: Arrived, now: datetime) -> bool:
    """Not what is older than what is remembered: it may have been done before, and nobody could know."""
    return bool(arrived.message or arrived.former) and now - arrived.sent_at < REMEMBERED_FOR


class _Early(Struct, frozen=True):
    """That a message has failed which is not known yet."""

    error: str


_EARLY = timedelta(hours=1)
"""How long that is remembered."""


class Inbox:
    """Inbox and outbox of a store, for those who put something in, look into them, or put them in order.

    arrived  is called when something new may be there to be taken
    """

    def __init__(self, store: Store, clock: Callable[[], datetime] = utc_now, retention: Retention = KEEP) -> None:
        self.people = People(store, kept=retention.visits)
        self.arrived: Callable[[], None] = lambda: None
        self._store = store
        self._clock = clock
        self._early = Records(store, "early_reports", _Early)

    async def open(self) -> None:
        """Read what is needed from the store, which is open, unless that was done before."""
        if not self.people.key:
            self.people.key = await mail_key(self._store, self._clock())

    # --- What comes in ------------------------------------------------------------------------------------------------

    async def receive(self, channel: str, scope: str, arrived: Sequence[Arrived]) -> int:
        """Keep messages of a channel; how many of them are new. Raises errors of the store, when none is kept surely.

        scope  within which the channel's ids are unique
        """
        await self.open()
        now = self._clock()
        writes = {write.key: write for write in (self._arriving(channel, scope, each, now) for each in arrived)}
        outcomes = await self._commit([*writes.values()])
        self.arrived()
        return sum(isinstance(outcome, Received) and outcome.is_new for outcome in outcomes)

    def _arriving(self, channel: str, scope: str, arrived: Arrived, now: datetime) -> Receive:
        key = name_hash(self.people.key, channel, scope, arrived.id)
        message = arrived.message
        envelope = Envelope(
            channel=channel,
            id=arrived.id,
            sender=arrived.sender,
            message=Message(key, message.at, message.text, message.choice, message.attachment) if message else None,
            note=arrived.note,
            former=arrived.former,
        )
        return Receive(
            key=key,
            conversation=self.people.conversation(channel, arrived.sender),
            document=json.encode(envelope).decode(),
            sent_at=arrived.sent_at,
            now=now,
            status="pending" if _is_to_be_done(arrived, now) else "noted",
        )

    async def say(self, user_session_id: str, message: Message) -> bool:
        """Keep a message from a web page; whether it is new. Its id is unique within the session."""
        await self.open()
        envelope = Envelope(channel=WEB, id=message.id, user_session_id=user_session_id, message=message)
        receive = Receive(
            key=name_hash(self.people.key, WEB, user_session_id, message.id),
            conversation=self.web_conversation(user_session_id),
            document=json.encode(envelope).decode(),
            sent_at=message.at,
            now=self._clock(),
        )
        outcome = await commit_one(self._store, receive)
        self.arrived()
        return isinstance(outcome, Received) and outcome.is_new

    def web_conversation(self, user_session_id: str) -> str:
        """What stands for the conversation on web pages of this session."""
        return name_hash(self.people.key, WEB, user_session_id)

    def provider_key(self, channel: str, scope: str, message_id: str) -> str:
        """What stands for a message that a channel has taken, by the id that it has given it."""
        return name_hash(self.people.key, "sent", channel, scope, message_id)

    async def report(self, channel: str, scope: str, reports: Sequence[Report]) -> None:
        """Note what became of messages that were sent. Of one that is not known nothing is noted."""
        await self.open()
        now = self._clock()
        keys = [self.provider_key(channel, scope, report.id) for report in reports]
        writes = [
            Progress(now=now, status=report.status, provider_key=key, error=report.error)
            for key, report in zip(keys, reports, strict=True)
        ]
        for key, report, outcome in zip(keys, reports, await self._commit(writes), strict=True):
            # Perhaps it is told before we have noted the id.
            if report.status == "failed" and outcome == Settled(False):
                early = _Early(report.error)
                await self._early.put(key, early, now, expires_at=now + _EARLY)

    async def report_early(self, provider_key: str) -> None:
        """Note what was told of a message before it was known under this key."""
        now = self._clock()
        if early := await self._early.get(provider_key, now):
            progress = Progress(now=now, status="failed", provider_key=provider_key, error=early.error)
            await commit_one(self._store, progress)

    # --- Looking into it ----------------------------------------------------------------------------------------------

    async def entries(self, status: InboxStatus, limit: int = 1000) -> Sequence[InboxEntry]:
        """Messages with this status, oldest first."""
        query = InboxQuery(now=self._clock(), status=status, limit=limit)
        return cast(Sequence[InboxEntry], await self._store.list(query))

    async def replies(
        self, status: OutboxStatus | None = None, user_session_id: str | None = None
    ) -> Sequence[OutboxEntry]:
        """Messages that are to leave or have left, oldest first."""
        query = OutboxQuery(now=self._clock(), user_session_id=user_session_id, status=status, limit=1000)
        return cast(Sequence[OutboxEntry], await self._store.list(query))

    async def waiting(self, user_session_id: str, conversations: Sequence[str] = ()) -> Sequence[InboxEntry]:
        """Messages of these conversations, and of the session's on web pages, whose text is kept."""
        await self.open()
        found: list[InboxEntry] = []
        for conversation in (self.web_conversation(user_session_id), *conversations):
            for status in _KEPT:
                query = InboxQuery(now=self._clock(), conversation=conversation, status=status, limit=1000)
                found += cast(Sequence[InboxEntry], await self._store.list(query))
        return [entry for entry in found if entry.document]

    async def is_full(self, user_session_id: str) -> bool:
        """Whether as many messages of web pages wait for this session as may."""
        await self.open()
        conversation = self.web_conversation(user_session_id)
        query = InboxQuery(now=self._clock(), conversation=conversation, status="pending", limit=MOST_WAITING)
        return len(await self._store.list(query)) >= MOST_WAITING

    async def retry(self, key: str) -> bool:
        """Have a message that was set aside tried again; whether there is one."""
        now = self._clock()
        outcome = await commit_one(self._store, Postpone(key=key, now=now, due_at=now, tries=0))
        return isinstance(outcome, Settled) and outcome.done

    async def drop(self, key: str) -> bool:
        """Do without a message; whether there is one."""
        outcome = await commit_one(self._store, Settle(key=key, now=self._clock(), status="noted"))
        return isinstance(outcome, Settled) and outcome.done

    async def erase(self, user_session_id: str) -> bool:
        """Erase all that has arrived for the session or is to leave, and who goes on with it; whether there was any."""
        await self.open()
        now = self._clock()
        people = await self.people.of_session(user_session_id, now)
        if not people and not await self._has_any(user_session_id):
            return False
        # In this order: what is interrupted here can be found again.
        await commit_one(self._store, self._erasure(user_session_id, people.values()))
        await self.people.erase(user_session_id, now)
        return True

    async def erasure(self, user_session_id: str) -> EraseMail:
        """What erases what was said to the session on web pages, and is to leave. It asks nobody, so that a deletion is
        not overtaken by what comes after it."""
        await self.open()
        return self._erasure(user_session_id, ())

    def _erasure(self, user_session_id: str, people: Iterable[Person]) -> EraseMail:
        conversations = self.people.conversations_in(user_session_id, people)
        everything = (self.web_conversation(user_session_id), *conversations)
        return EraseMail(user_session_id=user_session_id, conversations=everything, now=self._clock())

    async def _has_any(self, user_session_id: str) -> bool:
        now, conversation = self._clock(), self.web_conversation(user_session_id)
        for status in _KEPT:
            if await self._store.list(InboxQuery(now=now, conversation=conversation, status=status, limit=1)):
                return True
        return bool(await self._store.list(OutboxQuery(now=now, user_session_id=user_session_id, limit=1)))

    async def _commit(self, writes: Sequence[AnyWrite]) -> Sequence[Outcome]:
        outcomes = await self._store.commit(writes) if writes else ()
        for outcome in outcomes:
            if isinstance(outcome, StoreError):
                raise outcome
        return outcomes
