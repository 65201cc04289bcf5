"""Reading and writing small records, on a real store of each kind."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Struct

from chatstate.errors import StoreError
from chatstate.record import DropRecord, PutRecord
from chatstate.records import Records
from chatstate.stores import Store

NOW = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Count(Struct, frozen=True):
    number: int
    note: str = ""


@pytest.fixture
def counts(store: Store) -> Records[Count]:
    return Records(store, "counts", Count)


async def test_a_document_is_what_was_put(counts: Records[Count]) -> None:
    assert await counts.get("a", NOW) is None
    assert await counts.put("a", Count(1, "Grüße 😀"), NOW)
    assert await counts.get("a", NOW) == Count(1, "Grüße 😀")
    assert await counts.put("a", Count(2), NOW)
    assert await counts.get("a", NOW) == Count(2)
    assert await counts.get("b", NOW) is None


async def test_all_are_read_however_many_they_are(store: Store, counts: Records[Count]) -> None:
    await store.commit(
        [PutRecord(collection="counts", key=f"{n:04}", document=f'{{"number":{n}}}', now=NOW) for n in range(2000)]
    )
    assert await counts.all(NOW) == {f"{n:04}": Count(n) for n in range(2000)}
    assert list(await counts.all(NOW)) == sorted(await counts.all(NOW))
    await counts.put("2000", Count(2000), NOW)
    assert len(await counts.all(NOW)) == 2001


async def test_collections_do_not_meet(store: Store, counts: Records[Count]) -> None:
    other = Records(store, "others", Count)
    await counts.put("a", Count(1), NOW)
    await other.put("a", Count(2), NOW)
    assert await counts.all(NOW) == {"a": Count(1)}
    assert await other.drop("a", NOW)
    assert await counts.get("a", NOW) == Count(1)


async def test_what_has_changed_since_can_be_asked_for(counts: Records[Count]) -> None:
    for hours, key in enumerate("abc"):
        await counts.put(key, Count(hours), NOW + hours * HOUR)
    assert list(await counts.all(NOW, NOW + HOUR)) == ["b", "c"]


async def test_a_document_is_put_only_where_it_is_expected(counts: Records[Count]) -> None:
    assert await counts.put("a", Count(1), NOW, expect=0)
    assert not await counts.put("a", Count(2), NOW, expect=0)
    assert not await counts.put("a", Count(2), NOW, expect=2)
    assert not await counts.put("b", Count(2), NOW, expect=1)
    assert await counts.all(NOW) == {"a": Count(1)}
    assert await counts.put("a", Count(2), NOW, expect=1)
    assert await counts.all(NOW) == {"a": Count(2)}


async def test_a_document_that_has_expired_is_absent(counts: Records[Count]) -> None:
    await counts.put("a", Count(1), NOW, expires_at=NOW + HOUR)
    assert await counts.get("a", NOW + HOUR - timedelta.resolution) == Count(1)
    assert await counts.get("a", NOW + HOUR) is None
    assert await counts.all(NOW + HOUR) == {}
    assert await counts.change("a", NOW + HOUR, lambda count: count) is None
    assert not await counts.drop("a", NOW + HOUR)
    assert await counts.put("a", Count(2), NOW + HOUR, expect=0)


async def test_no_change_is_lost_among_others(store: Store, counts: Records[Count]) -> None:
    await counts.put("a", Count(0), NOW)

    async def count() -> None:
        await Records(store, "counts", Count).change("a", NOW, lambda found: Count(found.number + 1))

    await asyncio.gather(*(count() for _ in range(20)))
    assert await counts.get("a", NOW) == Count(20)


async def test_a_change_gives_the_document_after_it_and_sets_when_it_expires(counts: Records[Count]) -> None:
    await counts.put("a", Count(1), NOW)
    assert await counts.change("a", NOW, lambda count: Count(5), NOW + HOUR) == Count(5)
    assert await counts.get("a", NOW) == Count(5)
    assert await counts.get("a", NOW + HOUR) is None


async def test_when_a_document_expires_may_follow_from_what_is_in_it(counts: Records[Count]) -> None:
    await counts.put("a", Count(1), NOW)
    await counts.change("a", NOW, lambda count: Count(3), lambda count: NOW + count.number * HOUR)
    assert await counts.get("a", NOW + 3 * HOUR - timedelta.resolution) == Count(3)
    assert await counts.get("a", NOW + 3 * HOUR) is None


async def test_what_there_is_not_is_neither_changed_nor_created(counts: Records[Count]) -> None:
    assert await counts.change("a", NOW, lambda count: count) is None
    assert not await counts.drop("a", NOW)
    assert await counts.all(NOW) == {}


async def test_what_is_dropped_is_gone(counts: Records[Count]) -> None:
    await counts.put("a", Count(1), NOW)
    assert await counts.drop("a", NOW)
    assert not await counts.drop("a", NOW)
    assert await counts.get("a", NOW) is None


async def test_an_error_of_the_store_is_raised(store: Store, counts: Records[Count]) -> None:
    """A store may raise it for the whole call, or give it as the outcome of the write."""
    with pytest.raises(StoreError):
        await counts.put("a\0", Count(1), NOW)
    commit = store.commit

    async def refused(writes: list[PutRecord | DropRecord]) -> list[StoreError]:
        return [StoreError() for _ in writes]

    store.commit = refused  # type: ignore[method-assign, assignment]
    for work in (counts.put("a", Count(1), NOW), counts.drop("a", NOW)):
        with pytest.raises(StoreError):
            await work
    store.commit = commit  # type: ignore[method-assign]
    assert await counts.all(NOW) == {}
