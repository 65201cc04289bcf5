"""A message that cannot be decrypted stands alone: it stops nobody else, and operators see it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from chatstate.encryption import KeyRing, new_key
from chatstate.mailbox import InboxEntry, InboxQuery, OutboxEntry, OutboxQuery
from chatstate.model import Rewrite
from chatstate.stores import EncryptedStore, create_store
from tests.turns.conftest import Clock, World, done, echo, person


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EncryptedStore]:
    """An encrypted store."""
    opened = create_store(store_url, key_ring=KeyRing.parse(new_key()))
    await opened.open()
    await opened.migrate()
    yield opened
    await opened.close()


async def damage(store: EncryptedStore, entry: InboxEntry | OutboxEntry) -> None:
    shelf = "inbox" if isinstance(entry, InboxEntry) else "outbox"
    text = entry.document
    await store.inner.commit([Rewrite(shelf=shelf, place=(entry.key,), text=text, replaced_by=text[:-4] + "AAAA")])


async def test_one_message_that_cannot_be_read_is_set_aside(store: EncryptedStore, clock: Clock) -> None:
    world = World(store, clock, echo)
    for number in range(5):
        await world.say(f"s{number}", "m")
    sealed = await store.inner.list(InboxQuery(now=clock()))
    assert all(isinstance(entry, InboxEntry) and "Hello" not in entry.document for entry in sealed)
    assert isinstance(sealed[2], InboxEntry)
    await damage(store, sealed[2])
    await done(world.turns)
    assert [await world.state(f"s{number}") is not None for number in range(5)].count(True) == 4
    (aside,) = await world.inbox.entries("aside")
    assert (aside.is_readable, "cannot be decrypted" in aside.error) == (False, True)


async def test_one_reply_that_cannot_be_read_has_failed(store: EncryptedStore, clock: Clock) -> None:
    world = World(store, clock, echo)
    for number in range(5):
        await world.write(person(f"{number}"), f"m{number}")
    await done(world.turns)
    sealed = await store.inner.list(OutboxQuery(now=clock()))
    assert isinstance(sealed[2], OutboxEntry)
    await damage(store, sealed[2])
    await done(world.outbox)
    assert len(world.paper.sent) == 4
    (failed,) = await world.inbox.replies("failed")
    assert "cannot be decrypted" in failed.error
