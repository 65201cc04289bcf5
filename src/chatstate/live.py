"""Live: who watches a session is told how it is, each time that it has changed.

A change is noticed by a hint of the store, which comes with each write of this server, and with those of others where
the store can hear them. Hints may be lost, and other programs give none: so the versions of all watched sessions are
compared with the store every few seconds, which also shows what has expired. Whatever is noticed is loaded: what a
watcher gets is what lies in the store.

A watcher holds the newest change and no other. Who reads slowly misses versions, never the newest one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime
from types import TracebackType
from typing import Literal, NamedTuple, Self, cast

from chatstate.errors import ChatStateError, SessionNotFound, StateUnreadable
from chatstate.model import KEEP, Retention, Session, Tag, Tagged, TagQuery, utc_now
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.stores.feed import Feed

INTERVAL_SECONDS = 4.0
"""How often the versions of watched sessions are compared with the store."""

_STEP = 500
"""How many of them at once."""

Gone = Literal["deleted", "expired"]
Change = Session | Gone


class Piece(NamedTuple):
    """More of a reply that is being written; nobody keeps it, and whoever reads slowly gets longer pieces.

    reply      the id of the reply; empty: nothing is being written any more
    text       what comes next
    continues  whether it follows what was told of this reply before; else it begins it
    """

    reply: str
    text: str
    continues: bool


_Written = tuple[str, str]
"""The id of a reply that is being written, and all of its text so far."""

_NOTHING: _Written = ("", "")

_UNKNOWN = Tag("", 0)
"""The version of a session that could not be loaded: no session is in it, so the next comparison loads it again."""

_log = logging.getLogger(__name__)


class Watcher:
    """Somebody who watches one session, inside a `with`.

    seen    the version that they know; None: that it is absent
    ends    from when on that has expired; None: never
    closed  whether nothing comes any more
    """

    __slots__ = ("_change", "_live", "_read", "_waiting", "closed", "ends", "seen", "user_session_id")

    def __init__(self, live: Live, user_session_id: str, session: Session | None) -> None:
        self.user_session_id = user_session_id
        self.seen = session.tag if session else None
        self.ends = live.end_of(session)
        self.closed = False
        self._live = live
        self._change: Change | None = None
        self._read = _NOTHING
        self._waiting: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._live.add(self)
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._live.remove(self)

    async def next(self, seconds: float) -> Change | Piece | None:
        """The newest change that they have not seen, or else more of a reply that is being written; None when there is
        nothing for so long, and when all has ended."""
        if self._change is None and self._read == self._live.written(self.user_session_id) and not self.closed:
            await self._woken_within(seconds)
        change, self._change = self._change, None
        if change is None:
            return self._piece()
        self.seen = change.tag if isinstance(change, Session) else None
        return change

    def _piece(self) -> Piece | None:
        """What they have not read of the reply that is being written."""
        written = self._live.written(self.user_session_id)
        before, self._read = self._read, written
        if written == before:
            return None
        reply, text = written
        continues = reply == before[0] and text.startswith(before[1])
        return Piece(reply, text[len(before[1]) :] if continues else text, continues)

    async def _woken_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        timer = loop.call_later(seconds, self.wake)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    def wake(self) -> None:
        """There may be something for them."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)

    def offer(self, change: Change) -> None:
        """This is how the session is now; what they have not taken yet is forgotten."""
        if self._change is None and self.seen == (change.tag if isinstance(change, Session) else None):
            return
        self._change = change
        self.wake()

    def close(self) -> None:
        """Nothing comes any more."""
        self.closed = True
        self.wake()


class _Topic:
    """A session that is watched.

    tag      the version that was last found; None: it was absent; _UNKNOWN: it was not or could not be loaded
    ends     from when on it has expired, as far as is known
    loading  whether it is being loaded; then `again` says whether that must be done once more
    """

    __slots__ = ("again", "ends", "loading", "tag", "watchers")

    def __init__(self) -> None:
        self.watchers: set[Watcher] = set()
        self.tag: Tag | None = _UNKNOWN
        self.ends: datetime | None = None
        self.loading = False
        self.again = False


class Live:
    """The watchers of the sessions of one store, on one server."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        clock: Callable[[], datetime] = utc_now,
        retention: Retention = KEEP,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._retention = retention
        self._pause = pause
        self._topics: dict[str, _Topic] = {}
        self._written: dict[str, _Written] = {}  # as many as there are turns
        self._read: dict[str, _Written] = {}  # of those that are watched, what other servers are writing
        self._feed: Feed | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing = False
        self._ended = False

    def start(self) -> None:
        """Listen to the store, which is open."""
        self._ended = False
        self._feed = self._store.watch(self._changed, self._heard)

    def end(self) -> None:
        """Nobody is told anything any more: the server ends, and waits for those who listen."""
        if self._ended:  # each connection says so
            return
        self._ended = True
        if self._feed:
            self._feed.close()
        for topic in self._topics.values():
            for watcher in topic.watchers:
                watcher.close()

    async def run(self) -> None:
        """Compare again and again, until cancelled."""
        while True:
            await self._pause(INTERVAL_SECONDS)
            await self._compared()

    def watch(self, user_session_id: str, session: Session | None) -> Watcher:
        """A watcher who knows the session as it is there, or that it is absent."""
        watcher = Watcher(self, user_session_id, session)
        if self._ended:
            watcher.close()
        return watcher

    def count(self, user_session_id: str) -> int:
        """How many watch this session on this server."""
        topic = self._topics.get(user_session_id)
        return len(topic.watchers) if topic else 0

    # --- Replies that are being written -------------------------------------------------------------------------------

    def write(self, user_session_id: str, reply: str, text: str) -> None:
        """Show those who watch the session, or will, how far this reply is; an empty id: nothing is written any
        more. On other servers, as soon and as well as the store can tell them."""
        if not text.isascii():
            text = text.encode(errors="replace").decode()  # lone surrogates, of which a bot can make some, are no text
        if self._written.get(user_session_id, _NOTHING) == (reply, text):
            return
        if reply:
            self._written[user_session_id] = (reply, text)
        else:
            del self._written[user_session_id]
        if self._feed:
            self._feed.write(user_session_id, reply, text)
        self._wake(user_session_id)

    def _heard(self, user_session_id: str, reply: str, text: str) -> None:
        """So far is what another server is writing."""
        if user_session_id in self._topics and reply:
            self._read[user_session_id] = (reply, text)
        else:
            self._read.pop(user_session_id, None)
        self._wake(user_session_id)

    def _wake(self, user_session_id: str) -> None:
        if topic := self._topics.get(user_session_id):
            for watcher in topic.watchers:
                watcher.wake()

    def written(self, user_session_id: str) -> tuple[str, str]:
        """The id and the text so far of the reply that is being written; both empty when none is."""
        return self._written.get(user_session_id) or self._read.get(user_session_id, _NOTHING)

    # --- Who watches what ---------------------------------------------------------------------------------------------

    def add(self, watcher: Watcher) -> None:
        """Begin to tell them."""
        topic = self._topics.get(watcher.user_session_id)
        if topic is None:
            topic = self._topics[watcher.user_session_id] = _Topic()
            if self._feed:
                self._feed.follow(watcher.user_session_id)
        topic.watchers.add(watcher)
        topic.ends = topic.ends or watcher.ends
        self._changed(watcher.user_session_id)  # it may have, since they have seen it

    def remove(self, watcher: Watcher) -> None:
        """End to tell them."""
        topic = self._topics[watcher.user_session_id]
        topic.watchers.discard(watcher)
        if not topic.watchers:
            del self._topics[watcher.user_session_id]
            self._read.pop(watcher.user_session_id, None)
            if self._feed:
                self._feed.unfollow(watcher.user_session_id)

    # --- What has changed ---------------------------------------------------------------------------------------------

    def _changed(self, user_session_id: str | None) -> None:
        if user_session_id is None:
            self._do(self._compared())
            return
        topic = self._topics.get(user_session_id)
        if topic is None:
            return
        topic.again = True
        if not topic.loading:
            topic.loading = True
            self._do(self._load(user_session_id, topic))

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, user_session_id: str, topic: _Topic) -> None:
        outage = self._failing
        try:
            while topic.again and topic.watchers:
                topic.again = False
                told = tuple(topic.watchers)  # who comes while it is loaded may know a newer version
                self._found(topic, await self._session(user_session_id), told)
            self._worked(outage)
        except StateUnreadable:  # the store has told the log; whoever comes back to watch it is told, too
            topic.tag = _UNKNOWN
            for watcher in topic.watchers:
                watcher.close()
        except Exception as error:
            topic.tag = _UNKNOWN
            self._failed(error)
        finally:
            topic.loading = False

    async def _session(self, user_session_id: str) -> Session | None:
        try:
            return await self._sessions.load(user_session_id)
        except SessionNotFound:
            return None

    def _found(self, topic: _Topic, session: Session | None, told: Iterable[Watcher]) -> None:
        topic.tag = session.tag if session else None
        if session:
            topic.ends = self.end_of(session)
        change: Change = session or ("expired" if topic.ends and topic.ends <= self._clock() else "deleted")
        for watcher in told:
            watcher.offer(change)

    def end_of(self, session: Session | None) -> datetime | None:
        """From when on the session has expired, if nobody writes; None: never."""
        if session is None:
            return None
        if session.expires_at is not None or self._retention.idle is None:
            return session.expires_at
        try:
            return session.updated_at + self._retention.idle
        except OverflowError:
            return None

    async def _compared(self) -> None:
        outage = self._failing
        try:
            await self.compare()
            self._worked(outage)
        except Exception as error:
            self._failed(error)

    async def compare(self) -> None:
        """Compare the versions of all watched sessions with the store, once. Raises errors of the store."""
        ids = list(self._topics)
        for start in range(0, len(ids), _STEP):
            some = ids[start : start + _STEP]
            query = TagQuery(ids=some, now=self._clock(), retention=self._retention)
            found = dict(cast(list[Tagged], await self._store.list(query)))
            for user_session_id in some:
                topic = self._topics.get(user_session_id)
                if topic and topic.tag != found.get(user_session_id):
                    self._changed(user_session_id)

    def _worked(self, outage: bool) -> None:
        """What began before an outage says nothing about its end."""
        if outage:
            self._failing = False

    def _failed(self, error: Exception) -> None:
        """Tell the log, but not for each of thousands of sessions."""
        if self._failing:
            return
        self._failing = True
        if isinstance(error, ChatStateError):
            _log.warning("watched sessions cannot be loaded, which will be tried again: %s", error.message)
        else:
            _log.error("watched sessions cannot be loaded, which will be tried again", exc_info=error)
