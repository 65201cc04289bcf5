"""Hints that sessions may have changed, for those who follow them; and what is being written for them elsewhere.

A hint is the id of a session and nothing else: whoever gets one loads the session. Hints may come too often, and the
hints of other servers may be lost; what makes up for that is `chatstate.live`. Replies that another server is writing
come with their text, as far as they are, and are lost as easily: what makes up for that is the state that they end in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from chatstate.errors import OutcomeUnknown
from chatstate.model import Delete, Deleted, Save, Session
from chatstate.stores.base import AnyWrite, Outcome
from chatstate.stores.replies import Sealing, Written

Changed = Callable[[str | None], None]
"""Takes the id of a session that may have changed; None: any of those that are followed may have."""


class Feed:
    """Calls `changed` with the id of each followed session that may have changed, once that is durable, or with None.

    It is called in the event loop, and must not raise. What it is told of is bounded by what is followed.
    """

    def __init__(self, hints: Hints, changed: Changed, written: Written | None = None) -> None:
        self.followed: set[str] = set()
        self.changed = changed
        self.written = written
        self._hints = hints

    def follow(self, user_session_id: str) -> None:
        """From now on there are hints of this session, whether it exists or not."""
        self.followed.add(user_session_id)
        self._hints.on_follow(user_session_id)

    def unfollow(self, user_session_id: str) -> None:
        """No more of them."""
        self.followed.discard(user_session_id)
        self._hints.on_unfollow(user_session_id)

    def write(self, user_session_id: str, reply: str, text: str) -> None:
        """Show those who follow the session on other servers how far a reply is that is being written here; both empty:
        none is any more."""
        self._hints.on_write(user_session_id, reply, text)

    def close(self) -> None:
        """No more hints at all."""
        for user_session_id in list(self.followed):
            self.unfollow(user_session_id)
        self._hints.feeds.discard(self)


class Hints:
    """The feeds of one store, and what its own writes tell them."""

    def __init__(self) -> None:
        self.feeds: set[Feed] = set()

    def feed(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        """A new one, which follows nothing yet."""
        feed = Feed(self, changed, written)
        self.feeds.add(feed)
        return feed

    def on_follow(self, user_session_id: str) -> None:
        """Called when a feed has begun to follow a session."""

    def on_unfollow(self, user_session_id: str) -> None:
        """Called when a feed does not follow it any more."""

    def on_write(self, user_session_id: str, reply: str, text: str) -> None:
        """Called when a reply is being written here. Nobody else serves the store, or can be told."""

    @property
    def wanted(self) -> bool:
        """Whether anybody follows anything."""
        return any(feed.followed for feed in self.feeds)

    def give(self, ids: Iterable[str]) -> None:
        """Tell the feeds here that these sessions may have changed."""
        for user_session_id in ids:
            for feed in list(self.feeds):
                if user_session_id in feed.followed:
                    feed.changed(user_session_id)

    def give_any(self) -> None:
        """Tell the feeds here that any session may have changed."""
        for feed in list(self.feeds):
            if feed.followed:
                feed.changed(None)

    def give_written(self, user_session_id: str, reply: str, text: str) -> None:
        """Tell the feeds here what is being written elsewhere."""
        for feed in list(self.feeds):
            if feed.written and user_session_id in feed.followed:
                feed.written(user_session_id, reply, text)

    async def after(self, writes: Sequence[AnyWrite], commit: Awaitable[Sequence[Outcome]]) -> Sequence[Outcome]:
        """What the commit of these writes comes to. Those who follow what it may have changed are told."""
        try:
            outcomes = await commit
        except OutcomeUnknown:
            self.give(write.user_session_id for write in writes if isinstance(write, Save | Delete))
            raise
        if self.wanted:
            self.give(
                write.user_session_id
                for write, outcome in zip(writes, outcomes, strict=True)
                if isinstance(write, Save | Delete) and isinstance(outcome, Session | Deleted | OutcomeUnknown)
            )
        return outcomes
