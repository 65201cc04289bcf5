"""What a small record is, and what its writes and queries say: pure values, no I/O.

Records hold what the server itself has to remember beside sessions: API keys, keys that sign tokens, revocations. A
record is one JSON document under a key, in a collection of its kind; each changes atomically, and by compare-and-set of
its version it can be a lock, a counter, or a code that is redeemed once.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct


class Record(Struct, frozen=True):
    """A stored record. `version` is 1 at first and rises by one with each write; `document` is the text of JSON.

    One that has expired is absent. Times are aware and in UTC.
    """

    collection: str
    key: str
    document: str
    version: int
    changed_at: datetime
    expires_at: datetime | None = None


class PutRecord(Struct, frozen=True, kw_only=True):
    """Create the record or replace it. `expect`: only if it is in this version; 0: only if it is absent."""

    collection: str
    key: str
    document: str
    now: datetime
    expires_at: datetime | None = None
    expect: int | None = None


class DropRecord(Struct, frozen=True, kw_only=True):
    """Remove the record. `expect`: only if it is in this version."""

    collection: str
    key: str
    now: datetime
    expect: int | None = None


RecordWrite = PutRecord | DropRecord


class RecordDropped(Struct, frozen=True):
    """A `DropRecord` has removed the record, which was in this version."""

    version: int


class RecordConflict(Struct, frozen=True):
    """The record was not what the write expected, and nothing was changed. It is in this version; 0: it is absent."""

    current: int


RecordOutcome = Record | RecordDropped | RecordConflict
"""What became of one write."""


class RecordQuery(Struct, frozen=True, kw_only=True):
    """The records of a collection that have not expired, in the order of their keys' bytes.

    key            only this one
    after          only those with greater keys
    changed_since  only those that were written then or later, by the clocks of those who wrote them
    """

    collection: str
    now: datetime
    key: str | None = None
    after: str = ""
    changed_since: datetime | None = None
    limit: int = 1000
