"""Hints between servers that share a database, over whatever line the store has for it: what is said, when, to whom.

To tell costs something, so a server tells of its writes only while another one follows sessions, which that one says
every few seconds; and what was written while one message was on its way goes together with the next. Sessions are named
by digests: a message is short, and there are no ids in it.

Replies that are being written go the same way (`chatstate.stores.replies`). Messages may be lost.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b

from chatstate.errors import StoreError
from chatstate.stores.feed import Changed, Feed, Hints
from chatstate.stores.replies import IN_THE_CLEAR, REPEAT_SECONDS, Replies, Sealing, Written

FOLLOWING_SECONDS = 5.0
"""How often a server says that it follows sessions. When it was not heard for three times as long, it does not."""

RETRY_SECONDS = 2.0
"""How soon a lost connection is made anew."""

REFUSED_SECONDS = 300.0
"""How soon is tried again what the database has refused to do. Until then the comparison of versions
(`chatstate.live`) finds what others write."""

_MOST_DIGESTS = 400
"""How many sessions one message names: it stays below 8000 bytes."""

_MOST_PENDING = 20_000
"""From how many sessions on they are not named one by one."""

_HELLO, _FOLLOWING, _CHANGED, _ANY, _REPLIES = "hello", "following", "changed ", "any", "replies "
"""What is said: a server has begun to listen; one follows sessions; these may have changed; any may have; about replies
that are being written."""

Say = Callable[[Sequence[str]], Awaitable[object]]
"""Sends messages to all servers; none is fine, and shows whether the line works. Raises when it does not."""

_log = logging.getLogger(__name__)


class ServerHints(Hints):
    """Hints from all servers on the database, once it listens; before that from here alone.

    driver_errors  what the line may raise, besides `StoreError`s, when it does not work
    refused        those of them that say that it will not work soon
    """

    def __init__(
        self, driver_errors: tuple[type[Exception], ...] = (), refused: tuple[type[Exception], ...] = ()
    ) -> None:
        super().__init__()
        self._refused = refused
        self._errors: tuple[type[Exception], ...] = (StoreError, *driver_errors)
        self._service = ""
        self._by_digest: dict[str, set[str]] = {}
        self._pending: set[str] = set()
        self._pending_any = False
        self._followed_until = float("-inf")  # until when another server is taken to follow something
        self._replies = Replies(self._by_digest.__contains__, self._read)
        self._wake = asyncio.Event()
        self._hears = True  # or nothing has failed yet
        self._task: asyncio.Task[None] | None = None

    def start(self, service: str) -> None:
        """Hear other servers, and tell them; from now on, and until `close`.

        service  tells apart several services that share a database
        """
        if self._task is None:
            self._service = service
            self._task = asyncio.create_task(self._keep_listening())

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
        return blake2b(f"{self._service}\0{user_session_id}".encode(), digest_size=8).hexdigest()

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
        """What is to be said now."""
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

    # --- The line -----------------------------------------------------------------------------------------------------

    async def _keep_listening(self) -> None:
        while True:
            pause = RETRY_SECONDS
            try:
                await self._listen()
            except self._errors as error:
                self._failed(error)
                pause = REFUSED_SECONDS if isinstance(error, self._refused) else RETRY_SECONDS
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

    @abstractmethod
    async def _listen(self) -> None:
        """Make the line, have what arrives on it go to `_hear`, and `_talk` on it, until it is lost."""

    async def _talk(self, say: Say, is_lost: Callable[[], bool]) -> None:
        """Tell what there is to tell, on a line on which others are heard by now. Whoever notices that the line is lost
        wakes it."""
        await say([_HELLO])
        self._hears = True
        self.give_any()  # of what has changed meanwhile nobody has told
        while not is_lost():
            await self._say_all(say)  # also when there is nothing to be said: so a line that is dead is noticed
            with suppress(TimeoutError):  # not wait_for: before Python 3.12 it may lose a cancellation
                async with asyncio.timeout(REPEAT_SECONDS if self._replies.are_written else FOLLOWING_SECONDS):
                    await self._wake.wait()
            self._wake.clear()

    async def _say_all(self, say: Say) -> None:
        messages = self._messages()
        try:
            await say(messages)
        except BaseException:  # others may still be on a line that works
            self._pending_any |= any(message == _ANY or message.startswith(_CHANGED) for message in messages)
            raise

    def _hear(self, message: str) -> None:
        """What another server has said."""
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
