"""The part of the contract suite that is about records. `chatstate.stores.contract` runs it with the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from chatstate.errors import WriteRefused
from chatstate.model import KEEP
from chatstate.record import DropRecord, PutRecord, Record, RecordConflict, RecordDropped, RecordQuery
from chatstate.stores.base import AnyWrite, Store

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
SECOND = timedelta(seconds=1)
DOCUMENTS = ("{}", r'{"nul": "\u0000"}', "not JSON: ' \" $1 %s ?", "Grüße 😀", "")


class RecordChecks:
    """The checks, for the two stores that the suite works on."""

    one: Store
    other: Store
    prefix: str

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself."""
        raise NotImplementedError

    def _put(self, key: str, document: str = "{}", expect: int | None = None, **given: Any) -> PutRecord:
        return PutRecord(collection=self.prefix, key=key, document=document, expect=expect, **{"now": NOW, **given})

    def _drop(self, key: str, expect: int | None = None, now: datetime = NOW) -> DropRecord:
        return DropRecord(collection=self.prefix, key=key, now=now, expect=expect)

    async def _records(self, now: datetime = NOW, **given: Any) -> Sequence[Record]:
        query = RecordQuery(collection=self.prefix, now=now, **given)
        return cast(Sequence[Record], await self.other.list(query))

    async def a_record_is_what_was_written(self) -> None:
        for number, document in enumerate(DOCUMENTS):
            key, ends = f"{number} ' % \\ é", NOW + number * SECOND if number else None
            put = await self.commit(self._put(key, document, now=NOW - SECOND, expires_at=ends))
            assert put == Record(self.prefix, key, document, 1, NOW - SECOND, ends)
            assert await self._records(NOW - SECOND, key=key) == [put]
        assert await self._records(key="absent") == []

    async def a_record_that_is_put_again_rises_by_one(self) -> None:
        for version in range(1, 4):
            store = self.one if version % 2 else self.other
            assert (await self.commit(self._put("a", str(version)), store)).version == version
        assert [(record.document, record.version) for record in await self._records()] == [("3", 3)]

    async def a_record_is_changed_only_in_the_version_that_is_expected(self) -> None:
        assert await self.commit(self._put("a", expect=1)) == RecordConflict(0)
        assert (await self.commit(self._put("a", "one", expect=0))).version == 1
        assert await self.commit(self._put("a", expect=0)) == RecordConflict(1)
        assert await self.commit(self._put("a", expect=2)) == RecordConflict(1)
        assert await self.commit(self._drop("a", expect=2)) == RecordConflict(1)
        assert (await self.commit(self._put("a", "two", expect=1))).version == 2
        assert [record.document for record in await self._records()] == ["two"]
        assert await self.commit(self._drop("a", expect=2)) == RecordDropped(2)
        assert await self.commit(self._drop("a")) == RecordConflict(0)
        assert await self._records() == []

    async def of_many_who_expect_the_same_record_one_wins(self) -> None:
        for expect in (0, 1):
            racing = [
                self.commit(self._put("a", str(number), expect=expect), (self.one, self.other)[number % 2])
                for number in range(20)
            ]
            outcomes = await asyncio.gather(*racing)
            (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Record)]
            assert outcomes.count(RecordConflict(expect + 1)) == 19
            assert await self._records() == [winner]

    async def a_record_that_has_expired_is_absent(self) -> None:
        ends = NOW + SECOND
        await self.commit(self._put("a", "old", expires_at=ends))
        assert (await self.commit(self._put("a", "older", expires_at=ends))).version == 2
        assert len(await self._records(ends - timedelta(microseconds=1))) == 1
        assert await self._records(ends) == []
        assert await self.commit(self._put("a", expect=2, now=ends)) == RecordConflict(0)
        assert await self.commit(self._drop("a", now=ends)) == RecordConflict(0)
        assert (await self.commit(self._put("a", "new", expect=0, now=ends))).version == 1

    async def records_are_listed_in_pages_by_the_bytes_of_their_keys(self) -> None:
        keys = ["A", "Z", "a", "a ", "ab", "é", "\uffff", "😀"]
        await self.one.commit([self._put(key) for key in reversed(keys)])
        await self.commit(PutRecord(collection=f"{self.prefix}2", key="a", document="", now=NOW))
        found: list[str] = []
        while page := await self._records(after=found[-1] if found else "", limit=3):
            found += [record.key for record in page]
        assert found == keys

    async def records_that_have_changed_since_can_be_asked_for(self) -> None:
        await self.commit(self._put("old"))
        await self.commit(self._put("new", now=NOW + SECOND))
        changed = await self._records(NOW + SECOND, changed_since=NOW + SECOND)
        assert [record.key for record in changed] == ["new"]

    async def records_that_have_expired_are_swept(self) -> None:
        await self.one.commit([self._put(key, expires_at=NOW + SECOND) for key in "abc"] + [self._put("kept")])
        while (await self.one.sweep(NOW + SECOND, KEEP, None, 2)).next is not None:
            pass
        # Asked for as of a time when none had expired, they would still be there.
        assert [record.key for record in await self._records(NOW)] == ["kept"]

    async def a_record_that_no_store_can_keep_is_refused(self) -> None:
        for document in ("nul \x00", "lone \ud800"):
            try:
                await self.commit(self._put("a", document))
            except WriteRefused:
                pass
            else:
                raise AssertionError(f"{document!r} was kept")
