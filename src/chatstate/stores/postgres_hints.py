"""Hints between the servers of one PostgreSQL database, by LISTEN and NOTIFY on a connection that is kept for it.

A NOTIFY costs a commit, in which PostgreSQL lets no other one pass. So a server tells of its writes only while another
one follows sessions, which that one says every few seconds; and what was written while one NOTIFY was on its way goes
together with the next. Sessions are named by digests: a notification has room for 8000 bytes, and no ids in it.

Replies that are being written go the same way (`chatstate.stores.replies`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from hashlib import blake2b
from typing import Any

import asyncpg

from chatstate.errors import StoreError
from chatstate.stores.feed import Changed, Feed, Hints
from chatstate.stores.postgres_connection import DRIVER_ERRORS
from chatstate.stores.replies import IN_THE_CLEAR, REPEAT_SECONDS, Replies, Sealing, Written

CHANNEL = "chatstate"

FOLLOWING_SECONDS = 5.0
"""How often a server says that it follows sessions. When it was not heard for three times as long, it does not."""

RETRY_SECONDS = 2.0
"""How soon a lost connection is made anew."""

REFUSED_SECONDS = 300.0
"""How soon is tried again what the database has refused: not every engine that speaks PostgreSQL's protocol has LISTEN
and NOTIFY. Until then the comparison of versions (`chatstate.live`) finds what others write."""

_REFUSED = (asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError)

_GOODBYE_SECONDS = 2.0
"""How long the database has to take leave of a connection."""

_MOST_DIGESTS = 400
"""How many sessions one notification names."""

_MOST_PENDING = 20_000
"""From how many sessions on they are not named one by one."""

_HELLO, _FOLLOWING, _CHANGED, _ANY, _REPLIES = "hello", "following", "changed ", "any", "replies "
"""What is said: a server has begun to listen; one follows sessions; these may have changed; any may have; about replies
that are being written."""

_NOTIFY = "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message"

Acquire = Callable[[], AbstractAsyncContextManager[Any]]

_log = logging.getLogger(__name__)


class PostgresHints(Hints):
    """Hints from all servers on the database, once `listen` was called; before that, and through a pooler, from here.

    schema  tells apart several services that share a database
    """

    def __init__(self) -> None:
        super().__init__()
        self._schema = ""
        self._by_digest: dict[str, set[str]] = {}
        self._pending: set[str] = set()
        self._pending_any = False
        self._followed_until = float("-inf")  # until when another server is taken to follow something
        self._replies = Replies(self._by_digest.__contains__, self._read)
        self._wake = asyncio.Event()
        self._hears = True  # or nothing has failed yet
        self._task: asyncio.Task[None] | None = None
        self._process: int | None = None  # of PostgreSQL, which serves the connection

    def listen(self, acquire: Acquire, schema: str) -> None:
        """Hear other servers, and tell them; from now on, and until `close`."""
        if self._task is None:
            self._schema = schema
            self._task = asyncio.create_task(self._keep_listening(acquire))

    async def close(self) -> None:
        """Give the connection back."""
        if self._task:
            task, self._task = self._task, None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- What is followed here ----------------------------------------------------------------------------------------

    def on_follow(self, user_session_id: str) -> None:
        if not self._by_digest:
            self._wake.set()  # the others shall know at once
        self._by_digest.setdefault(self._digest(user_session_id), set()).add(user_session_id)

    def on_unfollow(self, user_session_id: str) -> None:
        if any(user_session_id in feed.followed for feed in self.feeds):
            return
        digest = self._digest(user_session_id)
        if ids := self._by_digest.get(digest):
            ids.discard(user_session_id)
            if not ids:
                del self._by_digest[digest]
                self._replies.forget(digest)

    def _digest(self, user_session_id: str) -> str:
        return blake2b(f"{self._schema}\0{user_session_id}".encode(), digest_size=8).hexdigest()

    def feed(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        self._replies.sealing = sealing or IN_THE_CLEAR
        return super().feed(changed, written, sealing)

    # --- Replies that are being written -------------------------------------------------------------------------------

    def on_write(self, user_session_id: str, reply: str, text: str) -> None:
        if self._task and self._replies.write(self._digest(user_session_id), reply, text, self._now()):
            self._wake.set()

    def _read(self, digest: str, reply: str, text: str) -> None:
        for user_session_id in list(self._by_digest.get(digest, ())):
            self.give_written(user_session_id, reply, text)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # --- What is told to others ---------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        return super().wanted or self._others_follow

    @property
    def _others_follow(self) -> bool:
        return self._task is not None and self._now() < self._followed_until

    def give(self, ids: Iterable[str]) -> None:
        changed = list(ids)
        super().give(changed)
        if changed and self._others_follow:
            self._pending.update(map(self._digest, changed))
            if len(self._pending) > _MOST_PENDING:
                self._pending_any = True
                self._pending.clear()
            self._wake.set()

    def _messages(self) -> Sequence[str]:
        """What is to be said now, each a notification."""
        messages = [_FOLLOWING] if self._by_digest else []
        if self._pending_any:
            messages.append(_ANY)
        digests = list(self._pending)
        for start in range(0, len(digests), _MOST_DIGESTS):
            messages.append(_CHANGED + " ".join(digests[start : start + _MOST_DIGESTS]))
        self._pending.clear()
        self._pending_any = False
        self._replies.drop_silent(self._now())
        if self._others_follow or self._by_digest:
            messages += [_REPLIES + message.decode() for message in self._replies.messages(self._now())]
        return messages

    # --- The connection -----------------------------------------------------------------------------------------------

    async def _keep_listening(self, acquire: Acquire) -> None:
        while True:
            pause = RETRY_SECONDS
            try:
                await self._listen(acquire)
            except (StoreError, *DRIVER_ERRORS) as error:
                self._failed(error)
                pause = REFUSED_SECONDS if isinstance(error, _REFUSED) else RETRY_SECONDS
            except Exception as error:
                self._failed(error, exc_info=True)
            await asyncio.sleep(pause)

    def _failed(self, error: Exception, exc_info: bool = False) -> None:
        """Tell the log, once each time that it begins."""
        if self._hears:
            _log.warning(
                "other servers cannot be heard for now, so the change feed is slower: %s", error, exc_info=exc_info
            )
        self._hears = False

    async def _listen(self, acquire: Acquire) -> None:
        """Listen and tell, until the connection is lost."""
        async with acquire() as connection:
            try:
                self._process = connection.get_server_pid()
                connection.add_termination_listener(lambda _: self._wake.set())
                await connection.add_listener(CHANNEL, self._hear)
                await connection.execute(_NOTIFY, CHANNEL, [_HELLO])
                self._hears = True
                self.give_any()  # of what has changed meanwhile nobody has told
                while not connection.is_closed():
                    # Also when there is nothing to be said: so a connection that is dead is noticed.
                    await connection.execute(_NOTIFY, CHANNEL, self._messages())
                    with suppress(TimeoutError):  # not wait_for: before Python 3.12 it may lose a cancellation
                        seconds = REPEAT_SECONDS if self._replies.are_written else FOLLOWING_SECONDS
                        async with asyncio.timeout(seconds):
                            await self._wake.wait()
                    self._wake.clear()
            finally:
                with suppress(*DRIVER_ERRORS):  # the pool makes another one; this one still listens
                    await connection.close(timeout=_GOODBYE_SECONDS)

    def _hear(self, _connection: Any, process: int, _channel: str, message: str) -> None:
        if process == self._process:  # said here; the connection may be lost by now, and cannot be asked
            return
        if message == _HELLO:
            self._wake.set()  # it shall know at once whether somebody follows anything here
        elif message == _FOLLOWING:
            if not self._others_follow:  # what was written before they were heard, they may have missed
                self._pending_any = True
                self._wake.set()
            self._followed_until = self._now() + 3 * FOLLOWING_SECONDS
        elif message == _ANY:
            self.give_any()
        elif message.startswith(_REPLIES):
            if self._replies.hear(message.removeprefix(_REPLIES), self._now()):
                self._wake.set()
        else:
            digests = message.removeprefix(_CHANGED).split(" ")
            super().give(name for digest in digests for name in list(self._by_digest.get(digest, ())))
