"""Leases: of several servers one works on a thing at a time, as long as it says again and again that it does.

A lease is a record that expires, taken and renewed by compare-and-set (Gray and Cheriton, "Leases", SOSP 1989). It
keeps others from doing the same work; it does not keep a server that stood still from going on when it wakes up. What
must not happen twice needs a fence besides: here the version of the session, and the message that is done.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import cast

from msgspec import Struct, json

from chatstate.record import DropRecord, PutRecord, Record, RecordQuery
from chatstate.stores.base import Store, commit_one


class Holder(Struct, frozen=True):
    """Who holds a lease."""

    server: str


class Lease(Struct, frozen=True):
    """A lease that is held until then, unless it is renewed. `version` is that of its record."""

    name: str
    version: int
    until: datetime


class Leases:
    """The leases of one kind, for one server.

    collection  of the records
    server      what names this server
    span        for how long a lease is held that is not renewed
    """

    def __init__(self, store: Store, collection: str, server: str, span: timedelta) -> None:
        self.span = span
        self._store = store
        self._collection = collection
        self._document = json.encode(Holder(server)).decode()

    async def take(self, name: str, now: datetime) -> Lease | None:
        """The lease; None while somebody holds it. Raises errors of the store."""
        return await self._put(name, now, 0)

    async def renew(self, lease: Lease, now: datetime) -> Lease | None:
        """The lease, for another span; None when it was lost. Raises errors of the store."""
        # One that has expired may be another one's by now, whose record is in the same version.
        return await self._put(lease.name, now, lease.version) if now < lease.until else None

    async def _put(self, name: str, now: datetime, expect: int) -> Lease | None:
        write = PutRecord(
            collection=self._collection,
            key=name,
            document=self._document,
            now=now,
            expires_at=now + self.span,
            expect=expect,
        )
        outcome = await commit_one(self._store, write)
        return Lease(name, outcome.version, now + self.span) if isinstance(outcome, Record) else None

    async def release(self, lease: Lease, now: datetime) -> None:
        """Let others have it. Nothing happens if it was lost. Raises errors of the store."""
        if now < lease.until:
            drop = DropRecord(collection=self._collection, key=lease.name, now=now, expect=lease.version)
            await commit_one(self._store, drop)

    async def release_all(self, now: datetime) -> None:
        """Let others have all leases, whoever holds them: for a server that has the store for itself."""
        while True:
            found = await self._store.list(RecordQuery(collection=self._collection, now=now))
            for record in cast(list[Record], found):
                await commit_one(self._store, DropRecord(collection=self._collection, key=record.key, now=now))
            if not found:
                return
