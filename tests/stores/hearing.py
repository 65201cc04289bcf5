"""Stores that hear of each other's writes, for the tests of what they hear."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatstate.encryption import KeyRing
from chatstate.model import Save, utc_now
from chatstate.stores import Store, create_store
from chatstate.stores.feed import Feed

SOON = 10.0

ANY = "any may have changed"


class Heard:
    """A feed of a store that notes its hints."""

    def __init__(self, store: Store) -> None:
        self.hints: list[str] = []
        self.any = asyncio.Event()
        self.feed: Feed = store.watch(self._hint)

    def _hint(self, user_session_id: str | None) -> None:
        self.hints.append(user_session_id or ANY)
        self.any.set()

    async def until(self, *ids: str) -> None:
        """Wait until there was a hint of each of these."""
        async with asyncio.timeout(SOON):
            while not set(ids) <= set(self.hints):
                self.any.clear()
                await self.any.wait()


@asynccontextmanager
async def opened(url: str, key_ring: KeyRing | None = None, *, allow_unsafe: bool = False) -> AsyncIterator[Store]:
    store = create_store(url, key_ring=key_ring, allow_unsafe=allow_unsafe)
    await store.open()
    await store.migrate()
    try:
        yield store
    finally:
        await store.close()


def saving(user_session_id: str) -> Save:
    now = utc_now()
    words = {"chat_state": "{}", "last_activity": now, "now": now}
    return Save(user_session_id=user_session_id, new_session_id=str(uuid.uuid4()), **words)


async def hears(store: Store, speaker: Store) -> Heard:
    """A feed of the one store that hears what the other one writes."""
    heard = Heard(store)
    Heard(speaker)  # a server watches from its start on
    heard.feed.follow("first")
    async with asyncio.timeout(SOON):
        while "first" not in heard.hints:
            await speaker.commit([saving("first")])
    return heard
