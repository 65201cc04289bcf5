"""How things are named in a Valkey Cluster, and what their texts look like: pure values, no I/O.

A key says by its hash tag on which of 16384 slots it lies (Redis Cluster specification, "Hash tags"), and a script can
change keys of one slot alone. So all of a session has one tag, the SHA-256 of its id. What lists sessions has keys of
each slot. Everything else is spread over 256 *buckets*, each with a tag of its own: to list it, so many are asked.

Texts that are compared are as long as each other: times are 15 hexadecimal digits, so that their order as bytes is
their order in time, also in Lua, whose numbers cannot hold them.
"""

from __future__ import annotations

from binascii import crc_hqx
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from itertools import product
from typing import Literal

from chatstate.model import EARLIEST, LATEST

SLOTS = 16_384
BUCKETS = 256

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SECOND = timedelta(seconds=1)
_LAST_SECOND = (LATEST - EARLIEST) // _SECOND

Collection = Literal["r", "v", "m"]
"""What has buckets: records, visits, mail."""


def slot_of(tag: str) -> int:
    """The slot of keys with this hash tag: CRC-16/XMODEM of it, modulo 16384."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def digest(text: str) -> str:
    """What stands for a text in a key."""
    return sha256(text.encode()).hexdigest()


@cache
def slot_tags() -> list[str]:
    """For each slot a hash tag that leads there, the first one of three letters or digits; the same for ever."""
    tags: dict[int, str] = {}
    for letters in product(_LETTERS, repeat=3):
        tags.setdefault(slot_of("".join(letters)), "".join(letters))
    return [tags[slot] for slot in range(SLOTS)]


def bucket_of(text: str | bytes) -> int:
    return sha256(text if isinstance(text, bytes) else text.encode()).digest()[0]


def bucket_tag(collection: Collection, bucket: int) -> str:
    return f"{collection}{bucket:02x}"


class Bucket:
    """The keys of one bucket, which are on one slot."""

    __slots__ = ("number", "prefix", "slot", "tag")

    def __init__(self, prefix: str, collection: Collection, number: int) -> None:
        self.prefix = prefix
        self.number = number
        self.tag = bucket_tag(collection, number)
        self.slot = slot_of(self.tag)

    def key(self, name: str) -> str:
        return f"{self.prefix}{{{self.tag}}}:{name}"


class SessionKeys:
    """The keys of a session: its own, and those that list all sessions of its slot."""

    __slots__ = ("digest", "prefix", "slot")

    def __init__(self, prefix: str, user_session_id: str) -> None:
        self.prefix = prefix
        self.digest = digest(user_session_id)
        self.slot = slot_of(self.digest)

    def own(self, name: str) -> str:
        return f"{self.prefix}{{{self.digest}}}:{name}"

    def of_slot(self, name: str) -> str:
        return f"{self.prefix}{{{slot_tags()[self.slot]}}}:{name}"


# --- Times ------------------------------------------------------------------------------------------------------------


def time_text(time: datetime) -> str:
    """Seconds since the year 1 and microseconds, in 10 and 5 hexadecimal digits."""
    since = time - EARLIEST
    return f"{since.days * 86_400 + since.seconds:010x}{since.microseconds:05x}"


def time_of(text: str | bytes) -> datetime:
    """The time that the text says, at most the end of the calendar."""
    seconds = int(text[:10], 16)
    if seconds > _LAST_SECOND:
        return LATEST
    return EARLIEST.astimezone(UTC) + timedelta(seconds=seconds, microseconds=int(text[10:], 16))


def time_or_none(text: bytes | None) -> datetime | None:
    return time_of(text) if text else None
