"""What those have in common who take messages from the inbox and from the outbox: they look for work, and do it, one
message of a conversation at a time, many conversations at once.

They are told when there is something to do on this server, and look for themselves every second: for what other servers
have put there, what is due again, and what a server that died has left.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from secrets import token_hex

from chatstate.errors import ChatStateError
from chatstate.leases import Leases
from chatstate.stores.base import Store

POLL_SECONDS = 1.0
"""How often it is looked for work."""

ELSEWHERE_SECONDS = 2.0
"""How long a conversation is left alone that another server works on."""

_LONGEST_REST = 60.0
"""How long one is left alone at most on which something fails again and again: 1, 2, 4 … seconds."""

_END_SECONDS = 5.0
"""How long work that is being done has at the end of the server."""

_log = logging.getLogger(__name__)


class Worker(ABC):
    """Works on one store, on one server.

    leases   of this server, of the kind that this work wants
    at_once  how many conversations at once
    what     it is, for the log: "messages cannot be taken"
    """

    def __init__(
        self, store: Store, leases: str, lease: timedelta, clock: Callable[[], datetime], at_once: int, what: str
    ) -> None:
        self.store = store
        self.clock = clock
        self.leases = Leases(store, leases, token_hex(8), lease)
        self._at_once = at_once
        self._what = what
        self._working: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, float] = {}  # until when each is left alone
        self._failures: dict[str, int] = {}
        self._crowded = False
        self._woken = asyncio.Event()
        self._failing = False

    @abstractmethod
    async def find(self, most: int) -> Sequence[str]:
        """Conversations that have something to be done, at most so many."""

    @abstractmethod
    async def work(self, conversation: str) -> float:
        """Do what is to be done in this conversation; for how many seconds it is to be left alone then.

        What it raises is told to the log, and tried again, later and later.
        """

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Work, until cancelled; what is being done then has a little time, and is left for another server."""
        try:
            if self.store.is_exclusive:  # whoever has left leases here is dead
                await self._quietly(self.leases.release_all(self.clock()))
            while True:
                await self._quietly(self._begin())
                with suppress(TimeoutError):  # not wait_for: before Python 3.12 it may lose a cancellation
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            await self._end()

    def go_on(self, conversation: str) -> None:
        """It need not be left alone any more."""
        if self._resting.pop(conversation, None) is not None:
            self.wake()

    async def _begin(self) -> None:
        """Begin with each conversation that has something to be done, as far as there is room."""
        if len(self._working) >= self._at_once:
            self._crowded = True
            return
        now = asyncio.get_running_loop().time()
        self._resting = {name: until for name, until in self._resting.items() if now < until}
        others = self._working.keys() | self._resting.keys()  # so many more are looked at, or they hide the rest
        found = [name for name in await self.find(len(others) + self._at_once) if name not in others]
        room = self._at_once - len(self._working)
        self._crowded = len(found) > room
        for conversation in found[:room]:
            self._working[conversation] = asyncio.create_task(self._work(conversation))

    async def _work(self, conversation: str) -> None:
        try:
            rest = await self.work(conversation)
            self._failures.pop(conversation, None)
        except Exception as error:
            rest = self._rest_after(conversation, error)
        finally:
            del self._working[conversation]
        if rest:
            loop = asyncio.get_running_loop()
            self._resting[conversation] = loop.time() + rest
            loop.call_later(rest, self.wake)
        if self._crowded:
            self.wake()  # others had no room

    def _rest_after(self, conversation: str, error: Exception) -> float:
        """Tell the log, the first time; how long to leave it alone."""
        count = self._failures[conversation] = self._failures.get(conversation, 0) + 1
        if count == 1:
            _log.warning("%s in a conversation, which will be tried again: %s", self._what, told(error))
        return float(min(2.0 ** (count - 1), _LONGEST_REST))

    async def _quietly(self, work: Awaitable[None]) -> None:
        """Do it. What goes wrong is told to the log once, until it goes well."""
        try:
            await work
            self._failing = False
        except Exception as error:
            if not self._failing:
                _log.warning("%s, which will be tried again: %s", self._what, told(error))
            self._failing = True

    async def _end(self) -> None:
        working = list(self._working.values())
        if working:
            await asyncio.wait(working, timeout=_END_SECONDS)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


def told(error: BaseException) -> str:
    """What a log may say of an error: ours hold nothing of what people have written, others might."""
    return error.message if isinstance(error, ChatStateError) else type(error).__name__
