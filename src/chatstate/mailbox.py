"""What the inbox and the outbox keep, and what their writes and queries say: pure values, no I/O.

A message that arrives is kept in the inbox before anybody is told that it has arrived, and taken from there in the
order of its conversation. What becomes of it is one write: that it is done, and what it makes leave by the outbox; if
it changes a session, that write is part of the session's (`chatstate.model.Save`). Documents are texts of JSON; keys
and conversations are hashes, which name nobody. Times are aware and in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

REMEMBERED_FOR = timedelta(days=8)
"""How long it is remembered that a message has arrived: channels deliver again for seven days."""

InboxStatus = Literal["pending", "aside", "applied", "noted"]
"""`pending`: it waits. `aside`: it was tried in vain. `applied`: it is done. `noted`: nothing for a bot, or dropped."""

OutboxStatus = Literal["queued", "sent", "failed", "delivered", "read"]
"""In the order of their ranks: none takes the place of one behind it, in whatever order the news of them come."""

RANKS: dict[OutboxStatus, int] = {"queued": 0, "sent": 1, "failed": 2, "delivered": 3, "read": 4}


class InboxEntry(Struct, frozen=True, kw_only=True):
    """A message that has arrived.

    key           what names it
    conversation  whose messages are taken in order: by `sent_at`, then by `number`
    document      the message; empty once it is done
    number        the order of arrival: by the clock of the server that it came to, and by its place in the delivery
    due_at        before that it is not taken, nor is what stands behind it
    tries         how often it was tried in vain
    error         why, the last time
    is_readable   whether it could be decrypted; if not, `document` is empty
    """

    key: str
    conversation: str
    document: str
    status: InboxStatus
    sent_at: datetime
    received_at: datetime
    due_at: datetime
    tries: int
    error: str
    number: int
    is_readable: bool = True


class OutboxEntry(Struct, frozen=True, kw_only=True):
    """A message that is to leave, or has left.

    conversation  to whom: what goes to one of them leaves in the order of `number`
    document      the message; empty once it was sent
    is_readable   whether it could be decrypted; if not, `document` is empty
    """

    key: str
    conversation: str
    user_session_id: str
    document: str
    status: OutboxStatus
    created_at: datetime
    due_at: datetime
    tries: int
    error: str
    number: int
    is_readable: bool = True


class Receive(Struct, frozen=True, kw_only=True):
    """Keep a message, unless it is known. `status` is `noted` for what is nothing for a bot."""

    key: str
    conversation: str
    document: str
    sent_at: datetime
    now: datetime
    status: InboxStatus = "pending"


def arrival_number(write: Receive, place: int) -> int:
    """The number of a message at this place of a delivery: the microseconds since 1970 times 1000, and the place."""
    return (write.now - _EPOCH) // _MICROSECOND * 1000 + place % 1000


class Received(Struct, frozen=True):
    """A message is kept. `is_new`: it was not before."""

    is_new: bool


class Send(Struct, frozen=True, kw_only=True):
    """Put a message into the outbox, unless it is there."""

    key: str
    conversation: str
    user_session_id: str
    document: str


class Settle(Struct, frozen=True, kw_only=True):
    """The message is done, and this is to be sent. Only if it is still pending, or aside: else nothing changes."""

    key: str
    now: datetime
    status: Literal["applied", "noted"] = "applied"
    sends: tuple[Send, ...] = ()


class Postpone(Struct, frozen=True, kw_only=True):
    """Try the message again later, or put it aside. Only if it is pending or aside."""

    key: str
    now: datetime
    due_at: datetime
    tries: int
    error: str = ""
    aside: bool = False


class Settled(Struct, frozen=True):
    """Whether a `Settle`, a `Postpone` or a `Progress` has found what it changes."""

    done: bool


class Progress(Struct, frozen=True, kw_only=True):
    """What became of a message that was to leave. Statuses of a lower rank than the one it has change nothing.

    key           its name; or else
    provider_key  the hash of the id that its channel has given it: with a key it is set, without one it is looked for
    due_at        for `queued`: when it is tried again
    tries         how often it was tried; None: as before
    """

    now: datetime
    status: OutboxStatus
    key: str = ""
    provider_key: str = ""
    due_at: datetime | None = None
    tries: int | None = None
    error: str = ""


class EraseMail(Struct, frozen=True, kw_only=True):
    """Erase all messages of these conversations, and all that is to be sent for the session. What has arrived is still
    known by its key, so that it does not come back."""

    user_session_id: str
    conversations: tuple[str, ...]
    now: datetime


class MailErased(Struct, frozen=True):
    """How many messages were not done yet, or still lay there to be sent."""

    count: int


MailWrite = Receive | Settle | Postpone | Progress | EraseMail
MailOutcome = Received | Settled | MailErased


class InboxQuery(Struct, frozen=True, kw_only=True):
    """Messages that have arrived, in the order in which they are taken (`sent_at`, then `number`).

    conversation  only those of this one
    status        only those with this one
    newest_first  in the other order
    """

    now: datetime
    conversation: str | None = None
    status: InboxStatus | None = None
    newest_first: bool = False
    limit: int = 100


class OutboxQuery(Struct, frozen=True, kw_only=True):
    """Messages that are to leave, in the order of their numbers.

    conversation     only those of this one
    user_session_id  only those of this session
    status           only those with this one
    """

    now: datetime
    conversation: str | None = None
    user_session_id: str | None = None
    status: OutboxStatus | None = None
    limit: int = 100


class DueQuery(Struct, frozen=True, kw_only=True):
    """Conversations whose next message is due, those first that have waited longest: their names, as texts.

    box  whether it is about messages that are pending in the inbox, or queued in the outbox
    """

    box: Literal["inbox", "outbox"]
    now: datetime
    limit: int = 100


MailQuery = InboxQuery | OutboxQuery | DueQuery
