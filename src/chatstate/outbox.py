"""Sending: a worker takes what is to leave from the outbox, and gives it to its channel.

What goes to one person leaves in order, from one server at a time, and at least once: whoever is killed between the
channel's answer and the note of it sends again. What a channel has not taken is tried again, later and later, and not
before the channel has said; when the channel's window for answers has closed, it has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import cast

from msgspec import DecodeError, json

from chatstate.channels import Channel
from chatstate.errors import SendFailed, StoreError
from chatstate.inbox import Inbox, Parcel
from chatstate.mailbox import DueQuery, InboxEntry, InboxQuery, OutboxEntry, OutboxQuery, Progress
from chatstate.people import Person
from chatstate.rates import RateLimit
from chatstate.stores.base import Store, commit_one
from chatstate.worker import ELSEWHERE_SECONDS, Worker

PAIR_PER_SECOND, PAIR_BURST = 1 / 6, 45
"""How many messages one person may be sent: WhatsApp takes one in six seconds, and 45 at once before that."""

_GIVE_UP = timedelta(hours=24)
"""After what time something is not tried any more, where the channel has no window."""

_LONGEST_PAUSE = 300.0
"""The longest pause between two tries, in seconds, unless the channel asks for a longer one."""

_LONGEST_REST = 5.0
"""How long somebody is left alone at most whose channel can send nothing, in seconds."""

_AT_ONCE = 50
"""To how many people it is sent at once."""

_NOBODY = "the person has another name now, or was forgotten"
_UNLINKED = "the person does not go on with that session any more"
_WINDOW_CLOSED = "the person has not written for so long that the channel lets nobody answer"

_log = logging.getLogger(__name__)


class Outbox(Worker):
    """The sender of one server.

    scopes  of the channels' ids, as in `Inbox.receive`
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        channels: Mapping[str, Channel],
        scopes: Mapping[str, str],
        clock: Callable[[], datetime],
        lease: timedelta,
    ) -> None:
        super().__init__(store, "send_leases", lease, clock, _AT_ONCE, "replies cannot be sent")
        self._inbox = inbox
        self._people = inbox.people
        self._channels = channels
        self._scopes = scopes
        self._pairs = RateLimit(PAIR_PER_SECOND, PAIR_BURST, lambda: clock().timestamp())
        self._held_until: dict[str, datetime] = {}

    async def find(self, most: int) -> Sequence[str]:
        return cast(Sequence[str], await self.store.list(DueQuery(box="outbox", now=self.clock(), limit=most)))

    async def work(self, conversation: str) -> float:
        if rest := self._held_for(conversation.partition(":")[0]):
            return rest
        lease = await self.leases.take(conversation, self.clock())
        if lease is None:
            return ELSEWHERE_SECONDS
        try:
            while lease and (entry := await self._head(conversation)) and await self._sent(entry):
                lease = await self.leases.renew(lease, self.clock())
        finally:
            if lease:
                with suppress(StoreError):  # it expires
                    await self.leases.release(lease, self.clock())
        return 0.0

    def _held_for(self, channel: str) -> float:
        """How long nothing can be sent by this channel from here, in seconds, or a part of that; 0: it can."""
        if channel not in self._channels:  # another server may have it
            return _LONGEST_REST
        until = self._held_until.get(channel)
        left = (until - self.clock()).total_seconds() if until else 0.0
        return min(max(left, 0.0), _LONGEST_REST)

    async def _head(self, conversation: str) -> OutboxEntry | None:
        """The message that is to leave next, if it is due."""
        query = OutboxQuery(now=self.clock(), conversation=conversation, status="queued", limit=1)
        found = cast(Sequence[OutboxEntry], await self.store.list(query))
        return found[0] if found and found[0].due_at <= self.clock() else None

    async def _sent(self, entry: OutboxEntry) -> bool:
        """Send one message; whether the next one may follow at once."""
        now = self.clock()
        try:
            parcel = json.decode(entry.document if entry.is_readable else "", type=Parcel)
        except DecodeError:
            what = "damaged" if entry.is_readable else "cannot be decrypted with the keys that this server has"
            await self._note(Progress(now=now, status="failed", key=entry.key, error=what))
            return True
        if self._held_for(parcel.channel):
            return False
        channel = self._channels[parcel.channel]
        person = await self._people.get(parcel.person, now)
        why = await self._hindrance(channel, person, entry, now)
        if person is None or why:
            await self._note(Progress(now=now, status="failed", key=entry.key, error=why))
            return True
        if wait := self._pairs.wait(entry.conversation):
            await self._postpone(entry, entry.tries, wait, entry.error)
            return False
        return await self._give(channel, person, parcel, entry)

    async def _hindrance(self, channel: Channel, person: Person | None, entry: OutboxEntry, now: datetime) -> str:
        """Why it is not to reach the person any more; empty if it is."""
        if person is None or not person.contact.ids:
            return _NOBODY
        if entry.user_session_id not in (person.user_session_id, person.own_session_id):
            return _UNLINKED
        return "" if await self._is_open(channel, person, entry, now) else _WINDOW_CLOSED

    async def _is_open(self, channel: Channel, person: Person, entry: OutboxEntry, now: datetime) -> bool:
        """Whether the person may be sent something now: it may have waited here since it could leave."""
        if channel.window is None:
            return now - entry.created_at < _GIVE_UP
        for conversation in self._people.conversations(person):
            query = InboxQuery(now=now, conversation=conversation, newest_first=True, limit=1)
            for last in cast(Sequence[InboxEntry], await self.store.list(query)):
                if now - last.sent_at < channel.window:
                    return True
        return False

    async def _give(self, channel: Channel, person: Person, parcel: Parcel, entry: OutboxEntry) -> bool:
        try:
            provider_id = await channel.send(person.contact, parcel.reply)
        except SendFailed as error:
            return await self._not_taken(channel, entry, error)
        key = self._inbox.provider_key(channel.name, self._scopes.get(channel.name, ""), provider_id)
        await self._note(Progress(now=self.clock(), status="sent", key=entry.key, provider_key=key))
        await self._inbox.report_early(key)
        return True

    async def _not_taken(self, channel: Channel, entry: OutboxEntry, error: SendFailed) -> bool:
        if error.retry_after is None:
            _log.error("%s has refused a reply for good: %s", channel.name, error.message)
            await self._note(Progress(now=self.clock(), status="failed", key=entry.key, error=error.message))
            return True
        tries = entry.tries + 1
        seconds = max(error.retry_after, min(4.0 ** (tries - 1), _LONGEST_PAUSE))
        if error.holds == "channel":
            self._held_until[channel.name] = self.clock() + timedelta(seconds=seconds)
        if tries in (1, 5) or tries % 20 == 0:
            _log.warning("%s has not taken a reply, which will be tried again: %s", channel.name, error.message)
        await self._postpone(entry, tries, seconds, error.message)
        return False

    async def _postpone(self, entry: OutboxEntry, tries: int, seconds: float, error: str) -> None:
        now = self.clock()
        due_at = now + timedelta(seconds=seconds)
        await self._note(Progress(now=now, status="queued", key=entry.key, due_at=due_at, tries=tries, error=error))

    async def _note(self, progress: Progress) -> None:
        await commit_one(self.store, progress)
