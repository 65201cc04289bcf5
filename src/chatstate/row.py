"""Whole rows as they lie in a store, for copies and backups: what they are, and what is asked and written of them.

A row has all that the store keeps about one thing, down to what nobody asks for: put into another store, it is the same
there. Texts that are sealed stay sealed. Times are aware and in UTC; those beyond the calendar, which only other
programs can make, are its ends. Pure values, no I/O.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Literal, get_args, get_type_hints

from msgspec import Struct

from chatstate.mailbox import InboxStatus, OutboxStatus

RowShelf = Literal["sessions", "versions", "remembered", "visits", "records", "inbox", "outbox"]
"""All that a store keeps, in the order in which it is put into another one: versions go where their session is, and
whoever removes a session takes the states of what is remembered of it along."""

SHELVES: tuple[RowShelf, ...] = get_args(RowShelf)

Place = tuple[str | int, ...]
"""What names a row on its shelf. Places are ordered part by part, texts by their bytes in UTF-8 (in Python: by code
points, which is the same), numbers as numbers."""


class SessionRow(Struct, frozen=True, kw_only=True, tag="sessions"):
    """A session, expired or not. `expires_in` is in seconds."""

    user_session_id: str
    session_id: str
    chat_state: str
    last_activity: datetime
    created_at: datetime
    updated_at: datetime
    version: int
    expires_in: int | None
    expires_at: datetime | None

    @property
    def place(self) -> Place:
        return (self.user_session_id,)


class VersionRow(Struct, frozen=True, kw_only=True, tag="versions"):
    """A version of the session that is there."""

    user_session_id: str
    version: int
    session_id: str
    last_activity: datetime
    saved_at: datetime
    chat_state: str

    @property
    def place(self) -> Place:
        return (self.user_session_id, self.version)


class RememberedRow(Struct, frozen=True, kw_only=True, tag="remembered"):
    """What is remembered of a request with an idempotency key."""

    user_session_id: str
    caller: str
    key: str
    digest: bytes
    forget_at: datetime
    deleted: bool
    session_id: str
    version: int
    last_activity: datetime
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    chat_state: str | None

    @property
    def place(self) -> Place:
        return (self.user_session_id, self.caller, self.key)


class VisitRow(Struct, frozen=True, kw_only=True, tag="visits"):
    """A visit. Its duration is what was given; that which follows from the times is in no row."""

    session_id: str
    user_session_id: str
    user_id: str | None
    session_start_time: datetime
    session_end_time: datetime | None
    total_messages_count: int
    given_duration_minutes: int | None
    session_completed: bool
    session_outcome: str | None
    final_step_reached: str | None
    user_agent: str | None
    ip_address: str | None
    device_type: str | None
    created_at: datetime

    @property
    def place(self) -> Place:
        return (self.session_id,)


class RecordRow(Struct, frozen=True, kw_only=True, tag="records"):
    """A record, expired or not."""

    collection: str
    key: str
    document: str
    version: int
    changed_at: datetime
    expires_at: datetime | None

    @property
    def place(self) -> Place:
        return (self.collection, self.key)


class InboxRow(Struct, frozen=True, kw_only=True, tag="inbox"):
    """A message that has arrived."""

    key: str
    number: int
    conversation: str
    document: str
    status: InboxStatus
    sent_at: datetime
    received_at: datetime
    due_at: datetime
    tries: int
    error: str

    @property
    def place(self) -> Place:
        return (self.key,)


class OutboxRow(Struct, frozen=True, kw_only=True, tag="outbox"):
    """A message that is to leave, or has left. Those that are sent later have greater numbers."""

    key: str
    number: int
    conversation: str
    user_session_id: str
    document: str
    status: OutboxStatus
    rank: int
    provider_key: str | None
    created_at: datetime
    due_at: datetime
    tries: int
    error: str

    @property
    def place(self) -> Place:
        return (self.key,)


AnyRow = SessionRow | VersionRow | RememberedRow | VisitRow | RecordRow | InboxRow | OutboxRow

ROWS: dict[RowShelf, type[AnyRow]] = dict(zip(SHELVES, get_args(AnyRow), strict=True))
"""What lies on each shelf."""

TEXTS = ("chat_state", "document")
"""The members that may be long."""

Kind = Literal["text", "number", "truth", "bytes", "time"]
"""What a member is: it says how a store keeps it."""

_KINDS: dict[type, Kind] = {bool: "truth", int: "number", bytes: "bytes", datetime: "time"}


def shelf_of(row: AnyRow) -> RowShelf:
    return row.__struct_config__.tag  # type: ignore[return-value]


@cache
def kinds(shelf: RowShelf) -> dict[str, Kind]:
    """The members of the rows of this shelf, in their order, and what each of them is."""
    hints = get_type_hints(ROWS[shelf])
    return {name: _kind(hints[name]) for name in ROWS[shelf].__struct_fields__}


def _kind(hint: object) -> Kind:
    for type_ in (hint, *get_args(hint)):
        if isinstance(type_, type) and type_ in _KINDS:
            return _KINDS[type_]
    return "text"


class RowQuery(Struct, frozen=True, kw_only=True):
    """A page of the rows of a shelf, in the order of their places; none only when there are none behind `after`.

    after  the last place of the page before
    limit  the most rows
    size   no more rows once these have more than so many bytes of text
    """

    shelf: RowShelf
    after: Place = ()
    limit: int = 1000
    size: int = 4 << 20


class RowCount(Struct, frozen=True):
    """A query: how many rows are on a shelf, about; its answer is one number."""

    shelf: RowShelf


class PutRow(Struct, frozen=True):
    """Put the row there as it is, whatever lies in its place: no version rises by it, no time changes.

    A version is put only where its session is, with the same `session_id`. A session that takes the place of one with
    another `session_id` takes the versions of that away.
    """

    row: AnyRow


class DropRow(Struct, frozen=True):
    """Remove the row that lies there; what goes with a session goes with it."""

    shelf: RowShelf
    place: Place


RowWrite = PutRow | DropRow


class RowChanged(Struct, frozen=True):
    """Whether the row was put, or was there to be removed."""

    done: bool
