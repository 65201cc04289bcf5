"""The part of the contract suite that is about texts as they lie in the database, which re-encryption replaces.
`chatstate.stores.contract` runs it with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast, get_args

from chatstate.mailbox import Receive, Send, Settle
from chatstate.model import (
    PRESENT,
    IdempotencyKey,
    Retention,
    Rewrite,
    Rewritten,
    Save,
    Session,
    Shelf,
    Stored,
    StoredQuery,
)
from chatstate.record import PutRecord
from chatstate.stores.base import AnyWrite, Store, all_readable

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
HISTORY = Retention(history=10)


class StoredChecks:
    """The checks, for the two stores that the suite works on."""

    one: Store
    other: Store
    prefix: str

    def id(self, name: object = "") -> str:
        """An id that nobody else uses."""
        raise NotImplementedError

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself."""
        raise NotImplementedError

    async def _lying(
        self, shelf: Shelf, head: str = "no text begins with this", limit: int = 3, store: Store | None = None
    ) -> list[Stored]:
        """All texts of this check on this shelf, page by page."""
        found: list[Stored] = []
        after: tuple[str, ...] = (self.prefix,)  # nothing of it comes before
        while True:
            query = StoredQuery(shelf=shelf, head=head, after=after, limit=limit)
            page = cast(Sequence[Stored], await (store or self.other).list(query))
            found += [row for row in page if row.place[0].startswith(self.prefix)]
            if len(page) < limit or not page[-1].place[0].startswith(self.prefix):
                return found
            after = page[-1].place

    async def _fill(self) -> list[Session]:
        """Texts on every shelf: two sessions with three versions and a remembered request each, and records."""
        for number in range(6):
            await self.one.commit([self._writing(self.id(number % 2), f"state {number}", number + 1)], HISTORY)
        once = IdempotencyKey("key", b"digest", "caller")
        for name in (0, 1):
            touch = self._writing(self.id(name), None, 9, once=once, expect=PRESENT)
            await self.one.commit([touch])
        for key in "abcd":
            await self.commit(PutRecord(collection=self.prefix, key=key, document=f"document {key}", now=NOW))
            await self.commit(self._arriving(key))
            await self.commit(Settle(key=f"{self.prefix}{key}", now=NOW, sends=(self._leaving_by(key),)))
            await self.commit(self._arriving(f"{key}2"))
        return await self._both()

    def _arriving(self, key: str) -> Receive:
        return Receive(
            key=f"{self.prefix}{key}", conversation=self.prefix, document=f"message {key}", sent_at=NOW, now=NOW
        )

    def _leaving_by(self, key: str) -> Send:
        return Send(
            key=f"{self.prefix}{key}", conversation=self.prefix, user_session_id=self.id(0), document=f"reply {key}"
        )

    def _writing(self, user_session_id: str, state: str | None, number: int, **given: Any) -> Save:
        return Save(
            user_session_id=user_session_id,
            new_session_id=f"00000000-0000-0000-0000-{number:012}",
            chat_state=state,
            last_activity=NOW,
            now=NOW,
            **given,
        )

    async def _both(self) -> list[Session]:
        found = all_readable(await self.other.load([self.id(0), self.id(1)], NOW))
        return [found[self.id(0)], found[self.id(1)]]

    async def every_text_is_found_where_it_lies(self) -> None:
        await self._fill()
        places = {shelf: [row.place for row in await self._lying(shelf)] for shelf in get_args(Shelf)}
        ids = [self.id(0), self.id(1)]
        assert places["sessions"] == [(name,) for name in ids]
        assert places["versions"] == [(name, str(version)) for name in ids for version in (1, 2, 3)]
        assert places["remembered"] == [(name, "caller", "key") for name in ids]
        assert places["records"] == [(self.prefix, key) for key in "abcd"]
        assert places["inbox"] == [(f"{self.prefix}{key}2",) for key in "abcd"]
        assert places["outbox"] == [(f"{self.prefix}{key}",) for key in "abcd"]

    async def a_text_that_is_all_right_is_not_shown(self) -> None:
        await self._fill()
        for shelf in get_args(Shelf):
            (first, *others) = await self._lying(shelf)
            assert first.text is not None
            head = first.text[:4]
            assert [row.text for row in await self._lying(shelf, head)] == [None] * (1 + len(others))

    async def a_rewritten_text_changes_nothing_else(self) -> None:
        before = await self._fill()
        for shelf in get_args(Shelf):
            for row in await self._lying(shelf):
                text = cast(str, row.text)
                there = Rewrite(shelf=shelf, place=row.place, text=text, replaced_by="another")
                back = Rewrite(shelf=shelf, place=row.place, text="another", replaced_by=text)
                outcomes = [await self.commit(there), await self.commit(there), await self.commit(back)]
                assert outcomes == [Rewritten(True), Rewritten(False), Rewritten(True)], row
        assert await self._both() == before
        saved = await self.commit(self._writing(self.id(0), "later", 99))
        assert saved.version == before[0].version + 1

    async def what_is_not_there_is_not_rewritten(self) -> None:
        for shelf, place in (
            *(("sessions", (self.id(),)), ("versions", (self.id(), "1"))),
            *(("remembered", (self.id(), "caller", "key")), ("records", (self.prefix, "key"))),
            *(("inbox", (self.prefix,)), ("outbox", (self.prefix,))),
        ):
            write = Rewrite(shelf=cast(Shelf, shelf), place=place, text="", replaced_by="new")
            assert await self.commit(write) == Rewritten(False)

    async def many_texts_are_rewritten_at_once(self) -> None:
        await self._fill()
        rows = [row for shelf in get_args(Shelf) for row in await self._lying(shelf)]
        writes = [
            Rewrite(shelf=row.shelf, place=row.place, text=cast(str, row.text), replaced_by=f"new {number}")
            for number, row in enumerate(rows)
        ]
        assert list(await self.one.commit(writes)) == [Rewritten(True)] * len(rows)
        found = [row.text for shelf in get_args(Shelf) for row in await self._lying(shelf)]
        assert found == [write.replaced_by for write in writes]
        back = [Rewrite(shelf=w.shelf, place=w.place, text=w.replaced_by, replaced_by=w.text) for w in writes]
        assert list(await self.other.commit(back)) == [Rewritten(True)] * len(rows)
