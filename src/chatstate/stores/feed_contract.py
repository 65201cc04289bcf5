"""The part of the contract suite that is about feeds and tags. `chatstate.stores.contract` runs it with the rest."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from chatstate.model import KEEP, PRESENT, Delete, Deleted, IdempotencyKey, Retention, Save, Session, Tagged, TagQuery
from chatstate.stores.base import AnyWrite, Store

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
SECOND = timedelta(seconds=1)


class FeedChecks:
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

    def _saving(self, name: object = "", **given: Any) -> Save:
        words = {"chat_state": "{}", "last_activity": NOW, "now": NOW, **given}
        return Save(user_session_id=self.id(name), new_session_id=str(uuid.uuid4()), **words)

    async def _tags(self, *names: object, now: datetime = NOW, retention: Retention = KEEP) -> Any:
        query = TagQuery(ids=[self.id(name) for name in names], now=now, retention=retention)
        return dict(cast(Sequence[Tagged], await self.other.list(query)))

    async def a_feed_tells_of_each_write_before_its_commit_returns(self) -> None:
        """It may tell of more, but of nothing that is not followed."""
        hints: set[str | None] = set()
        feed = self.one.watch(hints.add)
        for name in "abc":
            feed.follow(self.id(name))
        await self.one.commit([self._saving("b"), self._saving("a"), self._saving("not followed")])
        assert hints - {self.id("c"), None} == {self.id("a"), self.id("b")}
        for write in (
            self._saving("a"),
            self._saving("a", chat_state=None, expect=PRESENT),
            self._saving("a", once=IdempotencyKey("feed", b"digest")),
            Delete(user_session_id=self.id("a"), now=NOW),
        ):
            hints.clear()
            assert isinstance(await self.commit(write), Session | Deleted)
            assert self.id("a") in hints
        feed.close()

    async def feeds_are_independent_and_end_when_they_are_closed(self) -> None:
        hints: dict[str, set[str | None]] = {name: set() for name in "xyz"}
        feeds = {name: self.one.watch(hints[name].add) for name in "xyz"}
        for feed in feeds.values():
            feed.follow(self.id("a"))
        feeds["y"].unfollow(self.id("a"))
        feeds["y"].unfollow(self.id("never followed"))
        feeds["z"].close()
        feeds["z"].close()
        await self.commit(self._saving("a"))
        told = {name: some - {None} for name, some in hints.items()}
        assert told == {"x": {self.id("a")}, "y": set(), "z": set()}
        feeds["x"].close()
        hints["x"].clear()
        await self.commit(self._saving("a"))
        assert not hints["x"]

    async def tags_are_those_of_the_sessions_that_are_there(self) -> None:
        assert await self._tags() == {}
        first = await self.commit(self._saving("a"))
        second = await self.commit(self._saving("a"))
        gone = await self.commit(self._saving("b"))
        assert (first.version, second.version, gone.version) == (1, 2, 1)
        await self.commit(Delete(user_session_id=self.id("b"), now=NOW))
        assert await self._tags("a", "b", "c") == {self.id("a"): second.tag}

    async def tags_of_expired_sessions_are_absent(self) -> None:
        await self.commit(self._saving("own", expires_in=10))
        await self.commit(self._saving("idle"))
        idle = Retention(idle=20 * SECOND)
        assert (await self._tags("own", "idle", now=NOW + 9 * SECOND, retention=idle)).keys() == {
            self.id("own"),
            self.id("idle"),
        }
        assert (await self._tags("own", "idle", now=NOW + 10 * SECOND, retention=idle)).keys() == {self.id("idle")}
        assert await self._tags("own", "idle", now=NOW + 20 * SECOND, retention=idle) == {}
