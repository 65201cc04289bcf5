"""Re-encryption: sealing what lies in a store with the newest key, step by step, while servers are working.

Each text is replaced only if it is still the one that was read, so no write of a server is lost; versions, entity tags
and times stay as they are. What was interrupted can be run again: it goes on with what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import cast, get_args

from msgspec import Struct

from chatstate.copy_mark import COLLECTION
from chatstate.encryption import KeyRing
from chatstate.errors import OutcomeUnknown, SessionLocked, StateUnreadable
from chatstate.model import Rewrite, Rewritten, Shelf, Stored, StoredQuery
from chatstate.stores.base import Store, commit_one
from chatstate.stores.encrypted import INBOX, OUTBOX, STATES

_STEP = 100
"""How many texts are looked at in one step."""

_PAUSE_SECONDS = 0.01
"""How long it rests between two steps, so that writers never wait for more than one."""

_TRIES = 5


def _bound_to(row: Stored) -> tuple[str, str]:
    """The collection and the name that the text is sealed for."""
    if row.shelf == "records":
        return row.place[0], row.place[1]
    return (row.shelf if row.shelf in (INBOX, OUTBOX) else STATES), row.place[0]


class Counts(Struct):
    """How many texts were looked at, sealed anew, overtaken by a write, and could not be opened."""

    seen: int = 0
    rewritten: int = 0
    overtaken: int = 0
    unreadable: int = 0


class Reencryption:
    """Works on the store as it is, below the encryption: `EncryptedStore.inner`.

    opening  the keys that the texts may be sealed with
    sealing  the keys whose newest one they are to be sealed with; without any they are left open
    """

    def __init__(
        self,
        store: Store,
        opening: KeyRing,
        sealing: KeyRing,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._opening = opening
        self._sealing = sealing
        self._pause = pause
        self.counts = Counts()

    async def run(self, progress: Callable[[Counts], None] | None = None) -> Counts:
        """Go through everything once. `progress` is told after each step."""
        for shelf in get_args(Shelf):
            after: tuple[str, ...] = ()
            while page := await self._page(shelf, after):
                await self._rewrite(page)
                after = page[-1].place
                if progress:
                    progress(self.counts)
                await self._pause(_PAUSE_SECONDS)
        return self.counts

    async def _page(self, shelf: Shelf, after: tuple[str, ...]) -> Sequence[Stored]:
        query = StoredQuery(shelf=shelf, head=self._sealing.head, after=after, limit=_STEP)
        return cast(Sequence[Stored], await self._store.list(query))

    async def _rewrite(self, page: Sequence[Stored]) -> None:
        self.counts.seen += len(page)
        writes = [write for row in page if (write := self._sealed(row))]
        for write in writes:
            outcome = await self._commit(write)
            self.counts.rewritten += outcome.done
            self.counts.overtaken += not outcome.done

    def _sealed(self, row: Stored) -> Rewrite | None:
        """What to do about the text; nothing when it is all right, or cannot be opened.

        The mark of a copy stays open: copies and backups read it, and have no keys.
        """
        collection, name = _bound_to(row)
        if row.text is None or collection == COLLECTION:
            return None
        try:
            text = self._opening.open(collection, name, row.text)
        except StateUnreadable:
            self.counts.unreadable += 1
            return None
        sealed = self._sealing.seal(collection, name, text)
        return (
            None if sealed == row.text else Rewrite(shelf=row.shelf, place=row.place, text=row.text, replaced_by=sealed)
        )

    async def _commit(self, write: Rewrite) -> Rewritten:
        """Tried again when somebody holds the row; and when nobody knows what became of it: twice does no harm."""
        for attempt in range(_TRIES):
            try:
                return cast(Rewritten, await commit_one(self._store, write))
            except (SessionLocked, OutcomeUnknown):
                if attempt == _TRIES - 1:
                    raise
                await self._pause(_PAUSE_SECONDS)
        raise AssertionError
