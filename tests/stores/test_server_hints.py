"""Hints between servers, over each line that there is: what is told, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatstate.stores import Store, server_hints
from tests.stores.hearing import ANY, SOON, Heard, hears, opened, saving


@pytest.fixture
async def one(shared_url: str) -> AsyncIterator[Store]:
    async with opened(shared_url) as store:
        yield store


@pytest.fixture
async def other(shared_url: str) -> AsyncIterator[Store]:
    async with opened(shared_url) as store:
        yield store


async def test_nothing_is_told_while_nobody_follows(one: Store, other: Store, said: list[str]) -> None:
    Heard(one)
    heard = Heard(other)
    for number in range(5):
        await one.commit([saving(f"a{number}")])
    heard.feed.follow("b")  # that is told, after what came before
    async with asyncio.timeout(SOON):
        while "following" not in said:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not [note for note in said if note.startswith("changed")]


async def test_who_follows_hears_of_what_is_followed_alone(one: Store, other: Store) -> None:
    heard = await hears(other, one)
    heard.feed.follow("followed")
    heard.hints.clear()
    await one.commit([saving("not followed")])
    await one.commit([saving("followed")])
    await heard.until("followed")
    assert "not followed" not in heard.hints
    heard.feed.unfollow("followed")
    heard.feed.follow("another")
    heard.hints.clear()
    await one.commit([saving("followed")])
    await one.commit([saving("another")])
    await heard.until("another")
    assert "followed" not in heard.hints


async def test_ids_are_not_in_messages(one: Store, other: Store, said: list[str]) -> None:
    heard = await hears(other, one)
    heard.feed.follow("whose id is private")
    async with asyncio.timeout(SOON):
        while not any(note.startswith("changed ") for note in said):
            await one.commit([saving("whose id is private")])
    assert not any("private" in note for note in said)


async def test_more_sessions_than_one_message_names(one: Store, other: Store) -> None:
    heard = await hears(other, one)
    names = [f"session {number}" for number in range(1000)]
    for name in names:
        heard.feed.follow(name)
    await one.commit([saving(name) for name in names])
    await heard.until(*names)


async def test_more_sessions_than_are_named(one: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = await hears(other, one)
    monkeypatch.setattr(server_hints, "_MOST_PENDING", 10)
    names = [f"session {number}" for number in range(11)]
    heard.feed.follow("followed")
    await one.commit([saving(name) for name in names])
    await heard.until(ANY)


async def test_a_store_that_is_closed_while_there_is_something_to_tell_is_closed(shared_url: str) -> None:
    """The wish to end came together with something to be told, and was lost: the end never came."""
    for _ in range(20):
        async with asyncio.timeout(SOON), opened(shared_url) as store:
            heard = Heard(store)
            heard.feed.follow("a")
            await store.commit([saving("a")])
            heard.feed.close()
            Heard(store).feed.follow("a")
