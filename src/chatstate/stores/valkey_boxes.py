"""Inboxes and outboxes in a Valkey Cluster: how their keys are named, and what lies there.

All of a conversation lies in one of 256 buckets, by its name (`chatstate.stores.valkey_keys`): what is known of its
messages and what they say, each a hash by key, and their order, a sorted set of texts: a letter for the status, the
order, the key. Each bucket has sorted sets of all its messages, by status, by age and by key, and of its conversations
by their next message. Where a message is, says a pointer: a key of its own, named by the hash of the message's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from msgspec import msgpack

from chatstate.mailbox import InboxEntry, OutboxEntry
from chatstate.stores.valkey_keys import bucket_of, bucket_tag, digest, slot_of, time_of, time_text
from chatstate.stores.valkey_lists import SortedSet, of_all_buckets

Name = Literal["inbox", "outbox"]

LETTERS: dict[str, bytes] = {
    "pending": b"p",
    "aside": b"a",
    "applied": b"d",
    "noted": b"n",
    "queued": b"q",
    "sent": b"s",
    "failed": b"f",
    "delivered": b"l",
    "read": b"r",
}
"""Of the statuses; `lua/box.lua` has them, too."""

STATUSES: dict[Name, tuple[str, ...]] = {
    "inbox": ("pending", "aside", "applied", "noted"),
    "outbox": ("queued", "sent", "failed", "delivered", "read"),
}
WAITING: dict[Name, str] = {"inbox": "p", "outbox": "q"}
"""The letter of what waits to be taken."""

WIDTH: dict[Name, int] = {"inbox": 33, "outbox": 18}
"""How long an order is: of the inbox when it was sent, and its number; of the outbox its number."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@cache
def _bucket_slot(bucket: int) -> int:
    return slot_of(bucket_tag("m", bucket))


class Box:
    """The keys of the inbox or outbox of a conversation."""

    __slots__ = ("_bucket", "_own", "conversation", "name", "slot")

    def __init__(self, prefix: str, name: Name, conversation: str) -> None:
        bucket = bucket_of(conversation)
        self.name = name
        self.conversation = conversation
        self.slot = _bucket_slot(bucket)
        self._bucket = f"{prefix}{{{bucket_tag('m', bucket)}}}:{name}"

    def own(self) -> list[str]:
        """Those of the conversation."""
        return [f"{self._bucket}:{part}:{self.conversation}" for part in ("known", "texts", "order")]

    def of_bucket(self, part: str) -> str:
        return f"{self._bucket}:{part}"

    def all(self) -> list[str]:
        """As `lua/box.lua` wants them."""
        parts = ("status", "age", "heads", "head", "arrived", "asked", "names")
        return [*self.own(), *(self.of_bucket(part) for part in parts)]


def bucket_sets(prefix: str, name: Name, part: str) -> Sequence[SortedSet]:
    """The same sorted set of all buckets."""
    return of_all_buckets(prefix, "m", f"{name}:{part}")


class Pointer:
    """The keys that say where a message is. `kind`: `in` or `out`; `sent`, by the key that its channel gave it."""

    __slots__ = ("asked", "key", "slot")

    def __init__(self, prefix: str, kind: Literal["in", "out", "sent"], key: str) -> None:
        tag = digest(key)
        self.slot = slot_of(tag)
        self.key = f"{prefix}{{{tag}}}:at:{kind}"  # a session may be called as a message is
        self.asked = f"{prefix}{{{tag}}}:asked"


def number_text(time: datetime, place: int) -> str:
    """What stands for the number of a message, in the same order."""
    return f"{time_text(time)}{place % 1000:03x}"


def order_text(number: int) -> str:
    """The same of a number that another store has given."""
    since, place = divmod(number, 1000)
    return f"{time_text(_EPOCH + since * _MICROSECOND)}{place:03x}"


def _number_of(text: str) -> int:
    return (time_of(text[:15]) - _EPOCH) // _MICROSECOND * 1000 + int(text[15:], 16)


def known_of(kept: bytes) -> dict[str, Any]:
    """What is known of a message."""
    known: dict[str, Any] = msgpack.decode(kept)
    return known


def inbox_entry(key: str, conversation: str, known: dict[str, Any], document: bytes) -> InboxEntry:
    return InboxEntry(
        key=key,
        conversation=conversation,
        document=document.decode(),
        status=known["status"],
        sent_at=time_of(known["order"][:15]),
        received_at=time_of(known["age"]),
        due_at=time_of(known["due"]),
        tries=known["tries"],
        error=known["error"],
        number=_number_of(known["order"][15:]),
    )


def outbox_entry(key: str, conversation: str, known: dict[str, Any], document: bytes) -> OutboxEntry:
    return OutboxEntry(
        key=key,
        conversation=conversation,
        user_session_id=known["session"],
        document=document.decode(),
        status=known["status"],
        created_at=time_of(known["age"]),
        due_at=time_of(known["due"]),
        tries=known["tries"],
        error=known["error"],
        number=_number_of(known["order"]),
    )
