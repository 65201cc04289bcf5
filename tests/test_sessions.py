"""The use-cases, where another server comes in between: on a real store, at a place that no race would hit for sure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from chatstate.errors import PreconditionFailed, SessionNotFound, VersionNotFound
from chatstate.model import ANYTHING, Expect, Version, one_of
from chatstate.sessions import Sessions
from chatstate.stores import Store

Other = Callable[[Sessions], Awaitable[None]]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


class Interrupted(Sessions):
    """Lets another server go first, between the look at a session and the look at one of its versions."""

    other: Other
    elsewhere: Sessions

    async def version(self, user_session_id: str, version: int) -> Version:
        await self.other(self.elsewhere)
        return await super().version(user_session_id, version)


async def interrupted(store: Store, other: Other) -> tuple[Sessions, Expect]:
    """Sessions of which `a` has two versions, and what expects the newest of them."""
    sessions, elsewhere = Interrupted(store), Sessions(store)
    sessions.other, sessions.elsewhere = other, elsewhere
    await elsewhere.save("a", "one")
    return sessions, one_of([(await elsewhere.save("a", "two")).tag])


async def replace(sessions: Sessions) -> None:
    await sessions.delete("a")
    await sessions.save("a", "new")


async def delete(sessions: Sessions) -> None:
    with suppress(SessionNotFound):
        await sessions.delete("a")


async def do_nothing(sessions: Sessions) -> None:
    """Nobody comes in between."""


@pytest.mark.parametrize("other", [replace, delete])
async def test_a_restore_whose_session_is_replaced_meanwhile_fails_by_its_precondition(
    store: Store, other: Other
) -> None:
    """If-Match is judged by the session that is there, also where the version went with the session that was there."""
    sessions, newest = await interrupted(store, other)
    with pytest.raises(PreconditionFailed):
        await sessions.restore("a", 1, newest)


async def test_a_restore_without_a_precondition_is_of_what_is_there_now(store: Store) -> None:
    sessions, _ = await interrupted(store, delete)
    with pytest.raises(SessionNotFound):
        await sessions.restore("a", 1, ANYTHING)


async def test_a_version_that_is_not_kept_is_not_looked_for_for_ever(store: Store) -> None:
    sessions, newest = await interrupted(store, do_nothing)
    with pytest.raises(VersionNotFound):
        await sessions.restore("a", 9, newest)
