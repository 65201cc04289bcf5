"""Reading and writing small records, for those who keep something in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, TypeVar, cast

from msgspec import Struct, json

from chatstate.record import DropRecord, PutRecord, Record, RecordDropped, RecordQuery
from chatstate.stores.base import Store, commit_one

Document = TypeVar("Document", bound=Struct)


class Records(Generic[Document]):
    """One collection, whose documents all have this shape."""

    def __init__(self, store: Store, collection: str, shape: type[Document]) -> None:
        self._store = store
        self._collection = collection
        self._shape = shape

    async def all(self, now: datetime, changed_since: datetime | None = None) -> dict[str, Document]:
        """The documents by key, in the order of the keys; perhaps only those that have changed since then."""
        found: list[Record] = []
        while True:
            after = found[-1].key if found else ""
            query = RecordQuery(collection=self._collection, now=now, after=after, changed_since=changed_since)
            page = await self._list(query)
            found += page
            if len(page) < query.limit:
                return {record.key: self._read(record) for record in found}

    async def get(self, key: str, now: datetime) -> Document | None:
        """One document; None when there is none."""
        found = await self._list(RecordQuery(collection=self._collection, now=now, key=key))
        return self._read(found[0]) if found else None

    async def put(
        self,
        key: str,
        document: Document,
        now: datetime,
        *,
        expires_at: datetime | None = None,
        expect: int | None = None,
    ) -> bool:
        """Create or replace a document; whether it was (`PutRecord` says what `expect` is)."""
        text = json.encode(document).decode()
        place = {"collection": self._collection, "key": key}
        write = PutRecord(**place, document=text, now=now, expires_at=expires_at, expect=expect)
        return isinstance(await commit_one(self._store, write), Record)

    async def change(
        self,
        key: str,
        now: datetime,
        change: Callable[[Document], Document],
        expires_at: datetime | Callable[[Document], datetime] | None = None,
    ) -> Document | None:
        """The document after this change, in which no other one is lost; None when there is no document.

        When it expires may follow from what is in it.
        """
        while True:
            found = await self._list(RecordQuery(collection=self._collection, now=now, key=key))
            if not found:
                return None
            document = change(self._read(found[0]))
            until = expires_at(document) if callable(expires_at) else expires_at
            if await self.put(key, document, now, expires_at=until, expect=found[0].version):
                return document

    async def drop(self, key: str, now: datetime) -> bool:
        """Remove a document; whether there was one."""
        write = DropRecord(collection=self._collection, key=key, now=now)
        return isinstance(await commit_one(self._store, write), RecordDropped)

    async def _list(self, query: RecordQuery) -> Sequence[Record]:
        return cast(Sequence[Record], await self._store.list(query))

    def _read(self, record: Record) -> Document:
        return json.decode(record.document, type=self._shape)
