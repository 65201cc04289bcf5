"""The contract that every store keeps.

A store holds sessions by `user_session_id`. It knows nothing of HTTP, queues or clocks: times arrive as parameters. All
methods are coroutines, may be called concurrently, and raise only errors of `chatstate.errors`: whatever the driver
raises is translated. The promises below are checked by `chatstate.stores.contract`, the suite that every store passes.

One session changes atomically, and nothing spans sessions: no store is asked for more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from msgspec import Meta, Struct

from chatstate.errors import StoreError
from chatstate.mailbox import InboxEntry, MailOutcome, MailQuery, MailWrite, OutboxEntry
from chatstate.model import (
    ANYTHING,
    KEEP,
    Conflict,
    Deleted,
    Remembered,
    RememberedQuery,
    Replay,
    ReplayQuery,
    Retention,
    Rewrite,
    Rewritten,
    Save,
    Session,
    SessionQuery,
    Stored,
    StoredQuery,
    Summary,
    Swept,
    Tagged,
    TagQuery,
    Version,
    VersionQuery,
    Write,
)
from chatstate.record import Record, RecordOutcome, RecordQuery, RecordWrite
from chatstate.row import AnyRow, RowChanged, RowCount, RowQuery, RowWrite
from chatstate.visit import UserSessionQuery, Visit, VisitOutcome, VisitQuery, VisitWrite

if TYPE_CHECKING:
    from chatstate.stores.feed import Changed, Feed
    from chatstate.stores.replies import Sealing, Written

AnyWrite = Write | VisitWrite | RecordWrite | MailWrite | Rewrite | RowWrite
"""A write of any collection."""

Outcome = (
    Session
    | Deleted
    | Conflict
    | Replay
    | VisitOutcome
    | RecordOutcome
    | MailOutcome
    | Rewritten
    | RowChanged
    | StoreError
)
"""What became of one write: the session, visit or record as it is now, its removal, or why nothing changed."""

Query = (
    SessionQuery
    | TagQuery
    | VersionQuery
    | ReplayQuery
    | RememberedQuery
    | VisitQuery
    | UserSessionQuery
    | RecordQuery
    | MailQuery
    | StoredQuery
    | RowQuery
    | RowCount
)
Row = (
    Session
    | Summary
    | Tagged
    | Version
    | Replay
    | Remembered
    | Visit
    | Record
    | InboxEntry
    | OutboxEntry
    | Stored
    | AnyRow
    | str
    | int
)


class StoreStatus(Struct, frozen=True):
    """Which store this is, and what an acknowledged write survives, in words for people."""

    store: Annotated[str, Meta(description="Which store this is, its version, and where it is.")]
    durability: Annotated[str, Meta(description="What an acknowledged write survives.")]


class Reader(Protocol):
    """What lists can be asked for of: a store, or what it was at one moment."""

    async def list(self, query: Query) -> Sequence[Row]: ...


class Store(ABC):
    """One database of sessions."""

    write_lanes: ClassVar[int] = 2
    read_lanes: ClassVar[int] = 2
    """How many `commit`, and how many `load` calls at once this store makes good use of."""

    is_exclusive = False
    """Whether no other server can work on the database as long as this store is open."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and check that acknowledged writes will be durable. Changes nothing in an existing database.

        Raises `StoreUnreachable` with the repair in its message.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back all connections. Closing twice, or before opening, is fine."""

    @abstractmethod
    async def migrate(self) -> list[str]:
        """Bring the tables to this version and return the names of the steps that were applied; none the second time.

        Safe while other servers, also of the old version, are working, and when two servers migrate at once. Rows that
        are there stay as they are. Raises `SchemaMismatch` when the tables are such that this version cannot use them.
        """

    @abstractmethod
    def migration_sql(self) -> str:
        """All of `migrate` as SQL for people who run it by hand, safe to run twice. Needs no connection."""

    @abstractmethod
    async def status(self) -> StoreStatus:
        """Ask the database whether it can serve. Raises `StoreUnavailable` when it cannot, or has no tables."""

    @abstractmethod
    async def load(
        self, ids: Sequence[str], now: datetime, retention: Retention = KEEP
    ) -> Mapping[str, Session | StoreError]:
        """The sessions that exist among these distinct ids, as of some moment during the call.

        An absent session, and one that has expired by `now`, is absent from the answer; that is never an error, and an
        error is never an empty answer. One that cannot be read has an error in its place, and its neighbours do not.
        """

    @abstractmethod
    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        """Carry out writes to distinct ids; return when all accepted ones are durable, an outcome for each, in order.

        Each write is atomic by itself: it compares what it finds with `expect` and changes the session, its history,
        what is remembered of its idempotency key, what it settles in the inbox and what it sends by the outbox, in one
        step; and what happens to one write does not depend on its neighbours. A session that has expired is absent, and
        a creation in its place leaves nothing of it. A key that is remembered makes the write a `Replay`, and a message
        that is done makes it `Settled(False)`, whatever it expects.

        When the call raises `OutcomeUnknown`, any of the writes may have happened. When it raises anything else, none
        has: a value that the store cannot keep makes the whole call fail with `WriteRefused`, and a row that another
        program holds with `SessionLocked`.
        """

    @abstractmethod
    async def list(self, query: Query) -> Sequence[Row]:
        """The rows that the query asks for, in its order, as of some moment during the call."""

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Reader]:
        """What the store is at one moment, for whoever reads all of it, as long as the context lasts.

        A store that cannot hold a moment gives itself: then each page is as of a moment of its own.
        """
        yield self

    @abstractmethod
    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        """A feed that calls `changed` with the id of each session that it follows and that may have changed; with None
        when any of them may have.

        Writes that this store has committed, also when their outcome is unknown, are told of before `commit` returns;
        those of other servers soon after, if the store has a way to hear of them: such hints may be lost. The store is
        open.

        written  is told how far replies to sessions that are followed are which other servers are writing, if the store
                 has a way to hear of them
        sealing  how their texts are sealed on the way
        """

    @abstractmethod
    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        """Remove what has expired by `now`, about `limit` rows at most of each kind: sessions, idempotency keys and
        records; visits that have been kept for long enough; and messages of eight days ago that are done.

        `after` is None at first, then what the step before gave as `next`. Many processes may sweep at once: none
        waits for another, and rows that are being written are left for the next time.
        """


def all_readable(found: Mapping[str, Session | StoreError]) -> dict[str, Session]:
    """What `Store.load` has found, for those who want all of it or nothing. Raises the first error."""
    sessions = {}
    for user_session_id, session in found.items():
        if isinstance(session, StoreError):
            raise session
        sessions[user_session_id] = session
    return sessions


async def commit_one(store: Store, write: AnyWrite) -> Outcome:
    """The outcome of a write that goes by itself. Raises errors of the store."""
    (outcome,) = await store.commit([write])
    if isinstance(outcome, StoreError):
        raise outcome
    return outcome


Verb = Literal["upsert", "insert", "update", "delete"]


def verb_for(write: Write, known_absent: bool = False) -> Verb:
    """The statement that carries out this write.

    A write with conditions updates and never inserts, unless its session is known to be absent (then it inserts and
    never updates): so no statement needs to do both, and each compares and sets in one step.
    """
    if not isinstance(write, Save):
        return "delete"
    if write.expect == ANYTHING and write.expires_in != 0:  # an upsert cannot tell "none" from "as before"
        return "upsert"
    if write.expect.absent and (known_absent or write.expect.only == frozenset()):
        return "insert"
    return "update"
