"""Encryption in front of any store: what goes in is sealed, what comes out is opened (`chatstate.encryption`).

Without keys nothing is sealed. What is sealed is then an error all the same, and never handed out as a state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

from msgspec.structs import replace

from chatstate.encryption import MARK, KeyRing
from chatstate.errors import StateUnreadable, StoreError, WriteRefused
from chatstate.mailbox import InboxEntry, OutboxEntry, Receive, Settle
from chatstate.model import (
    KEEP,
    Conflict,
    Remembered,
    RememberedQuery,
    Replay,
    ReplayQuery,
    Retention,
    Save,
    Session,
    Swept,
    Version,
    VersionQuery,
)
from chatstate.record import PutRecord, Record, RecordQuery
from chatstate.stores.base import AnyWrite, Outcome, Query, Reader, Row, Store, StoreStatus
from chatstate.stores.feed import Changed, Feed
from chatstate.stores.replies import Sealing, Written

_WITNESS = ("encryption", "witness")
"""The collection and the key of a record that only lies there as all the rest does."""

STATES = "chat_state"
"""The collection that states are bound to, those of sessions, of their versions, and of remembered requests alike."""

INBOX, OUTBOX = "inbox", "outbox"
"""Those of messages."""

_REPLIES = "replies"
"""That of texts which are on their way to other servers, and are kept nowhere."""

_ALARM_SECONDS = 60.0
"""How often at most the log says that states cannot be read."""

_log = logging.getLogger(__name__)


class EncryptedStore(Store):
    """Another store, in which states and records lie sealed with the newest key of the ring."""

    def __init__(self, store: Store, ring: KeyRing, clock: Callable[[], float] = time.monotonic) -> None:
        self.inner = store
        self.ring = ring
        self.write_lanes = store.write_lanes  # type: ignore[misc]
        self.read_lanes = store.read_lanes  # type: ignore[misc]
        self.is_exclusive = store.is_exclusive
        self._clock = clock
        self._alarmed: dict[str, float] = {}
        self._sealing = Sealing(partial(ring.seal, _REPLIES), partial(ring.open, _REPLIES))

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def migrate(self) -> list[str]:
        return await self.inner.migrate()

    def migration_sql(self) -> str:
        return self.inner.migration_sql()

    async def status(self) -> StoreStatus:
        return await self.inner.status()

    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        return await self.inner.sweep(now, retention, after, limit)

    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        return self.inner.watch(changed, written, sealing or self._sealing)

    async def load(
        self, ids: Sequence[str], now: datetime, retention: Retention = KEEP
    ) -> Mapping[str, Session | StoreError]:
        sessions = await self.inner.load(ids, now, retention)
        return {name: self._opened_or_error(session) for name, session in sessions.items()}

    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        unreadable = await self._unreadable(writes, retention)
        sealed = [self._sealed(write) for place, write in enumerate(writes) if place not in unreadable]
        outcomes = iter(await self.inner.commit(sealed, retention) if sealed else ())
        return [
            unreadable[place] if place in unreadable else self._outcome(write, next(outcomes))
            for place, write in enumerate(writes)
        ]

    async def _unreadable(self, writes: Sequence[AnyWrite], retention: Retention) -> Mapping[int, StateUnreadable]:
        """The errors, by their places, of writes that keep a state which cannot be read: they must change nothing."""
        if self.ring.newest is None:
            return {}
        keep = {n: write for n, write in enumerate(writes) if isinstance(write, Save) and write.chat_state is None}
        if not keep:
            return {}
        now = max(write.now for write in keep.values())
        found = await self.load(sorted({write.user_session_id for write in keep.values()}), now, retention)
        errors = {n: found.get(write.user_session_id) for n, write in keep.items()}
        return {n: error for n, error in errors.items() if isinstance(error, StateUnreadable)}

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Reader]:
        async with self.inner.snapshot() as reader:
            yield self if reader is self.inner else _OpenedReader(self, reader)  # one that holds no moment is itself

    async def list(self, query: Query) -> Sequence[Row]:
        return self.opened(query, await self.inner.list(query))

    def opened(self, query: Query, rows: Sequence[Row]) -> Sequence[Row]:
        """What was found for the query, in the clear; but whole rows (`chatstate.row`) stay as they lie."""
        if isinstance(query, VersionQuery | ReplayQuery | RememberedQuery):
            return [self._of_session(query.user_session_id, row) for row in rows]
        return [self._row(row) for row in rows]

    async def check_keys(self, now: datetime) -> None:
        """Raises `StateUnreadable` when the store was last written with a key that is not in the ring.

        A forgotten setting would otherwise go unnoticed, and new states would lie in the clear beside encrypted ones.
        """
        collection, key = _WITNESS
        text = f'{{"key_id":"{self.ring.newest}"}}'
        found = await self.inner.list(RecordQuery(collection=collection, now=now, key=key))
        known = next((self.ring.open(collection, key, row.document) for row in found if isinstance(row, Record)), None)
        if self.ring.newest and known != text:
            await self.commit([PutRecord(collection=collection, key=key, document=text, now=now)])

    # --- On the way in ------------------------------------------------------------------------------------------------

    def _sealed(self, write: AnyWrite) -> AnyWrite:
        if isinstance(write, Save):
            if write.settles:
                write = replace(write, settles=self._sealed_sends(write.settles))
            if write.chat_state is None:
                return write
            sealed = self._seal(STATES, write.user_session_id, write.chat_state)
            return write if sealed is write.chat_state else replace(write, chat_state=sealed)
        if isinstance(write, PutRecord):
            return replace(write, document=self._seal(write.collection, write.key, write.document))
        if isinstance(write, Receive):
            return replace(write, document=self._seal(INBOX, write.key, write.document))
        return self._sealed_sends(write) if isinstance(write, Settle) else write

    def _sealed_sends(self, write: Settle) -> Settle:
        sends = (replace(send, document=self._seal(OUTBOX, send.key, send.document)) for send in write.sends)
        return replace(write, sends=tuple(sends))

    def _seal(self, collection: str, name: str, text: str) -> str:
        if self.ring.newest is None and not text.startswith(MARK):
            return text
        try:
            if "\0" in text:  # it could be kept when it is sealed, and then not be opened for good
                raise ValueError
            return self.ring.seal(collection, name, text)
        except ValueError:
            raise WriteRefused("The store cannot keep U+0000 or lone surrogates.") from None

    # --- On the way out -----------------------------------------------------------------------------------------------

    def _outcome(self, write: AnyWrite, outcome: Outcome) -> Outcome:
        try:
            if isinstance(write, Save):
                return self._saved(write, outcome)
            if isinstance(outcome, Record) and isinstance(write, PutRecord):
                return replace(outcome, document=write.document)
            return outcome
        except StateUnreadable as error:
            return error

    def _saved(self, write: Save, outcome: Outcome) -> Outcome:
        """The outcome with the state in the clear: the one that was just sent, or what was there."""
        if isinstance(outcome, Session) and write.chat_state is not None:
            return outcome if outcome.chat_state is write.chat_state else replace(outcome, chat_state=write.chat_state)
        if isinstance(outcome, Session):
            return self._opened(outcome)
        if isinstance(outcome, Conflict) and outcome.session is not None:
            return replace(outcome, session=self._opened(outcome.session))
        if isinstance(outcome, Replay) and outcome.chat_state is not None:
            state = self._open(STATES, write.user_session_id, outcome.chat_state)
            return replace(outcome, chat_state=state)
        return outcome

    def _row(self, row: Row) -> Row:
        if isinstance(row, Session):
            return self._opened(row)
        if isinstance(row, Record):
            return replace(row, document=self._open(row.collection, row.key, row.document))
        if isinstance(row, InboxEntry | OutboxEntry) and row.document:
            return self._entry(row)
        return row

    def _entry(self, row: InboxEntry | OutboxEntry) -> Row:
        """The message with its document. One that cannot be read must not hide the others."""
        try:
            collection = INBOX if isinstance(row, InboxEntry) else OUTBOX
            return replace(row, document=self._open(collection, row.key, row.document))
        except StateUnreadable:
            return replace(row, document="", is_readable=False)

    def _of_session(self, user_session_id: str, row: Any) -> Any:
        """A `Version`, a `Replay` or what is `Remembered`, of this session."""
        if isinstance(row, Version | Replay | Remembered) and row.chat_state is not None:
            state = self._open(STATES, user_session_id, row.chat_state)
            return row if state is row.chat_state else replace(row, chat_state=state)
        return row

    def _opened_or_error(self, session: Session | StoreError) -> Session | StoreError:
        try:
            return self._opened(session) if isinstance(session, Session) else session
        except StateUnreadable as error:
            return error

    def _opened(self, session: Session) -> Session:
        if not session.chat_state.startswith(MARK):
            return session
        return replace(session, chat_state=self._open(STATES, session.user_session_id, session.chat_state))

    def _open(self, collection: str, name: str, text: str) -> str:
        try:
            return self.ring.open(collection, name, text)
        except StateUnreadable as error:
            self._alarm(error)
            raise

    def _alarm(self, error: StateUnreadable) -> None:
        """Tell the log, but not for each of thousands of rows."""
        now = self._clock()
        if now - self._alarmed.get(error.key_id, -_ALARM_SECONDS) >= _ALARM_SECONDS:
            if len(self._alarmed) > 100:  # whoever writes into the database can invent ids of keys
                self._alarmed.clear()
            self._alarmed[error.key_id] = now
            _log.error("%s", error.message)


class _OpenedReader:
    """What another reader finds, in the clear."""

    def __init__(self, store: EncryptedStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader

    async def list(self, query: Query) -> Sequence[Row]:
        return self._store.opened(query, await self._reader.list(query))
