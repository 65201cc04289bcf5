"""Copying all that a store keeps into another one, whatever kinds they are, also while the first is being written to.

A copy is a comparison. Both sides list the rows of a shelf in the same order; a row that only the source has, or that
differs, is put into the target as it lies, and one that only the target has is dropped. So the first pass, going on
after an interruption, taking the changes of the meantime, and the verification are one operation, done again and again
until a pass has found nothing to do: then the rows, their counts and their checksums are the same on both sides.

Nothing is decrypted: texts stay sealed with the keys that they are sealed with.

The mark in the target (`chatstate.copy_mark`) names the source. While the copy is unfinished, no server works on the
target, so there is nothing in it to lose; once it is finished the mark has the checksums, and another run goes on only
if the target is still what they say. Everything else that holds rows is left alone, unless the caller knows better.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Protocol, cast

from msgspec import Struct, json

from chatstate.copy_mark import COLLECTION, CopyMark, mark_of, put_mark
from chatstate.errors import OutcomeUnknown, SessionLocked, StartError, StoreError, WriteRefused
from chatstate.row import (
    SHELVES,
    TEXTS,
    AnyRow,
    DropRow,
    Place,
    PutRow,
    RecordRow,
    RowCount,
    RowQuery,
    RowShelf,
    RowWrite,
    kinds,
    shelf_of,
)
from chatstate.stores.base import Reader, Store

_MOST_PASSES = 4
"""One copies, one takes what has changed meanwhile, one finds nothing; another one for good measure. If the source is
written to all the time, more of them would not help."""

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1000, 4 << 20
"""How much is read and written at once, at most: so many rows, and but for the last of them so many bytes of text."""

_TRIES = 5
_PAUSE_SECONDS = 0.2


class Tally(Struct, frozen=True):
    """How many rows there are on a shelf, and the SHA-256 of their lines of JSON, in the order of their places."""

    rows: int = 0
    checksum: str = sha256().hexdigest()


class Compared(Struct, frozen=True):
    """A shelf after one pass: what there was on both sides, and what was put and dropped to make them equal."""

    shelf: RowShelf
    source: Tally
    target: Tally
    put: int
    dropped: int

    @property
    def is_equal(self) -> bool:
        return self.source == self.target


Pages = Callable[[RowShelf], AsyncIterator[Sequence[AnyRow]]]
"""The rows of a shelf in the order of their places, page by page. Shelves are asked for in their order, each once."""


class Source(Protocol):
    """Where rows come from. `name` tells it from all others, and has no password in it."""

    name: str

    def reading(self) -> AbstractAsyncContextManager[Pages]:
        """All of it, once."""
        ...


class StoreSource:
    """A store. It is the one below the encryption (`EncryptedStore.inner`), and is only read."""

    def __init__(self, store: Store, name: str, rows_at_once: int = _ROWS_AT_ONCE) -> None:
        self.name = name
        self._store = store
        self._rows = rows_at_once

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Pages]:
        async with self._store.snapshot() as reader:
            yield partial(pages_of, reader, rows=self._rows)


async def pages_of(reader: Reader, shelf: RowShelf, rows: int = _ROWS_AT_ONCE) -> AsyncIterator[Sequence[AnyRow]]:
    """The rows of one shelf of a store, but for the mark; so many at once, at most."""
    after: Place = ()
    while page := cast(Sequence[AnyRow], await reader.list(RowQuery(shelf=shelf, after=after, limit=rows))):
        yield [row for row in page if not _is_mark(row)] if shelf == "records" else page
        after = page[-1].place


def _is_mark(row: AnyRow) -> bool:
    return isinstance(row, RecordRow) and row.collection == COLLECTION


async def counts(store: Store) -> dict[RowShelf, int]:
    """How many rows there are, about."""
    return {shelf: cast(int, (await store.list(RowCount(shelf)))[0]) for shelf in SHELVES}


class Progress:
    """Is told how far a copy or a backup has come. This one says nothing to anybody."""

    def seen(self, shelf: RowShelf, rows: int) -> None:
        """So many more rows of the source were looked at."""

    def done(self, number: int, compared: Compared) -> None:
        """A shelf is through; it is the pass with this number, from 1 on."""


class Digest:
    """The tally of rows that are added to it in order."""

    def __init__(self) -> None:
        self._rows = 0
        self._hash = sha256()
        self._last: Place | None = None

    def add(self, page: Sequence[AnyRow]) -> bytes:
        """The lines of JSON of these rows. Raises `StoreError` when they do not come in their order: they cannot be
        compared then, and dropping what seems to be missing would lose it."""
        for row in page:
            place = row.place
            if self._last is not None and not self._last < place:
                raise StoreError(f"The rows of {shelf_of(row)} do not come in the order of the bytes of their names.")
            self._last = place
        lines = json.Encoder().encode_lines(page)
        self._rows += len(page)
        self._hash.update(lines)
        return lines

    @property
    def tally(self) -> Tally:
        return Tally(self._rows, self._hash.hexdigest())


class _Side:
    """The rows of a shelf on one side. While those of one page are looked at, the next page is on its way."""

    def __init__(self, pages: AsyncIterator[Sequence[AnyRow]], seen: Callable[[int], None] = lambda rows: None) -> None:
        self.rows: deque[AnyRow] = deque()
        self.digest = Digest()
        self._pages = pages
        self._seen = seen
        self._next: asyncio.Task[Sequence[AnyRow] | None] | None = self._ask()

    def _ask(self) -> asyncio.Task[Sequence[AnyRow] | None]:
        return asyncio.ensure_future(anext(self._pages, None))

    async def fill(self) -> None:
        """There are rows then, or they are at their end."""
        while not self.rows and self._next:
            page = await self._next
            self._next = None if page is None else self._ask()
            if page:
                self.digest.add(page)
                self.rows.extend(page)
                self._seen(len(page))

    @property
    def is_ready(self) -> bool:
        """Whether the next row is here, or there is none."""
        return bool(self.rows) or self._next is None

    async def close(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.wait([self._next])


def _differences(source: _Side, target: _Side) -> Iterator[RowWrite]:
    """What makes the target what the source is, until one of the sides has to be filled."""
    while (source.rows or target.rows) and source.is_ready and target.is_ready:
        if not target.rows or (source.rows and source.rows[0].place < target.rows[0].place):
            yield PutRow(source.rows.popleft())
        elif not source.rows or target.rows[0].place < source.rows[0].place:
            row = target.rows.popleft()
            yield DropRow(shelf_of(row), row.place)
        else:
            row = source.rows.popleft()
            if row != target.rows.popleft():
                yield PutRow(row)


class _Writer:
    """Commits writes in batches. While one batch is on its way, the next one is gathered."""

    def __init__(self, store: Store, rows: int) -> None:
        self.put = self.dropped = 0
        self._rows = rows
        self._store = store
        self._batch: list[RowWrite] = []
        self._size = 0
        self._flying: asyncio.Task[None] | None = None

    async def add(self, write: RowWrite) -> None:
        self._batch.append(write)
        self._size += _size_of(write)
        if len(self._batch) >= self._rows or self._size >= _BYTES_AT_ONCE:
            await self.land()
            batch, self._batch, self._size = self._batch, [], 0
            self._flying = asyncio.ensure_future(self._commit(batch))

    async def finish(self) -> None:
        await self.land()
        await self._commit(self._batch)
        self._batch = []

    async def land(self) -> None:
        """Wait for the batch that is on its way."""
        if self._flying:
            flying, self._flying = self._flying, None
            await flying

    async def _commit(self, batch: Sequence[RowWrite]) -> None:
        if not batch:
            return
        try:
            await self._committed(batch)
        except WriteRefused as error:
            if len(batch) == 1:
                raise WriteRefused(f"{_named(batch[0])} cannot be put there. {error.message}") from error
            for write in batch:
                await self._commit([write])
            return
        self.put += sum(isinstance(write, PutRow) for write in batch)
        self.dropped += sum(isinstance(write, DropRow) for write in batch)

    async def _committed(self, batch: Sequence[RowWrite]) -> None:
        """Tried again when somebody holds a row; and when nobody knows what became of it: twice does no harm."""
        for attempt in range(_TRIES):
            try:
                await self._store.commit(batch)
                return
            except (SessionLocked, OutcomeUnknown):
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)


def _size_of(write: RowWrite) -> int:
    if isinstance(write, DropRow):
        return 0
    return sum(len(getattr(write.row, name) or "") for name in TEXTS if name in kinds(shelf_of(write.row)))


def _named(write: RowWrite) -> str:
    shelf, place = (write.shelf, write.place) if isinstance(write, DropRow) else (shelf_of(write.row), write.row.place)
    return f"The row {', '.join(map(repr, place))} of {shelf}"


# --- Copying ----------------------------------------------------------------------------------------------------------


class Copied(Struct, frozen=True):
    """What a copy came to: each shelf after the last pass, and how many passes there were."""

    shelves: Sequence[Compared]
    passes: int

    @property
    def is_verified(self) -> bool:
        """Whether the last pass has read the same on both sides."""
        return all(compared.is_equal for compared in self.shelves)

    @property
    def changes(self) -> int:
        return sum(compared.put + compared.dropped for compared in self.shelves)


class Copying:
    """A copy of all that the source has into the target, which is open, and is the one below the encryption.

    Nobody else may work on the target meanwhile. Hints for those who follow sessions are not given.
    """

    def __init__(
        self,
        source: Source,
        target: Store,
        clock: Callable[[], datetime],
        progress: Progress | None = None,
        rows_at_once: int = _ROWS_AT_ONCE,
    ) -> None:
        self._rows = rows_at_once
        self._source = source
        self._target = target
        self._clock = clock
        self._progress = progress or Progress()

    async def run(self, overwrite: bool = False) -> Copied:
        """Copy until a pass finds nothing to do, or the source has not rested for some passes.

        overwrite  whether what the target holds may be lost

        Raises `StartError` for a target that holds what is not from this source; and errors of both stores.
        """
        if not overwrite:
            await self._check_target()
        await self._set_mark(None)
        for number in range(1, _MOST_PASSES + 1):
            copied = Copied(await self._pass(number), number)
            if copied.is_verified:
                await self._set_mark({compared.shelf: compared.target.checksum for compared in copied.shelves})
                break
        return copied

    async def _check_target(self) -> None:
        if not await self._is_filled():
            return
        mark = await mark_of(self._target, self._clock())
        if mark is None:
            raise StartError(
                "The target holds rows already, and no copy has put them there. Are the two the wrong way round? If "
                "all that is there may go, say so: --overwrite"
            )
        if mark.source != self._source.name:
            raise StartError(
                f"The target holds a copy of {mark.source}, and this would be one of {self._source.name}. If all that "
                "is there may go, say so: --overwrite"
            )
        if mark.checksums and mark.checksums != await self._checksums():
            raise StartError(
                "The copy was finished, and the target has changed since then: this would take back what was written "
                "there. If that may go, say so: --overwrite"
            )

    async def _is_filled(self) -> bool:
        for shelf in SHELVES:
            async for page in pages_of(self._target, shelf):
                if page:
                    return True
        return False

    async def _checksums(self) -> dict[str, str]:
        """Of the target as it is."""
        found = {}
        for shelf in SHELVES:
            digest = Digest()
            async for page in pages_of(self._target, shelf):
                digest.add(page)
            found[shelf] = digest.tally.checksum
        return cast(dict[str, str], found)

    async def _set_mark(self, checksums: dict[str, str] | None) -> None:
        await put_mark(self._target, CopyMark(self._source.name, checksums), self._clock())

    async def _pass(self, number: int) -> list[Compared]:
        found = []
        async with self._source.reading() as pages:
            for shelf in SHELVES:
                found.append(await self._compare(shelf, pages(shelf)))
                self._progress.done(number, found[-1])
        return found

    async def _compare(self, shelf: RowShelf, pages: AsyncIterator[Sequence[AnyRow]]) -> Compared:
        """Make the shelf of the target what that of the source is."""
        source = _Side(pages, partial(self._progress.seen, shelf))
        target = _Side(pages_of(self._target, shelf, self._rows))
        writer = _Writer(self._target, self._rows)
        try:
            while True:
                await source.fill()
                await target.fill()
                if not (source.rows or target.rows):
                    break
                for write in _differences(source, target):
                    await writer.add(write)
            await writer.finish()
        finally:
            await source.close()
            await target.close()
            await asyncio.gather(writer.land(), return_exceptions=True)
        return Compared(shelf, source.digest.tally, target.digest.tally, writer.put, writer.dropped)
