"""Sweeping: removing what has expired. Readers never see it, swept or not; sweeping gives its room back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from chatstate.errors import ChatStateError
from chatstate.model import KEEP, Retention, utc_now
from chatstate.stores.base import Store

INTERVAL_SECONDS = 60.0
"""How long a server rests between two rounds."""

_PAUSE_SECONDS = 0.05
"""How long it rests between two steps of a round, so that writers never wait for more than one."""

_STEP = 500
"""How many rows a step removes, or looks at, at most."""

Pause = Callable[[float], Awaitable[None]]

_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps one store, step by step. Several may work on one store: none waits for another."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime] = utc_now,
        retention: Retention = KEEP,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention
        self._pause = pause

    async def sweep(self) -> int:
        """One round over everything that has expired by now. Returns how many sessions it has removed."""
        now = self._clock()
        swept = await self._store.sweep(now, self._retention, None, _STEP)
        removed = swept.sessions
        while swept.next is not None:
            await self._pause(_PAUSE_SECONDS)
            swept = await self._store.sweep(now, self._retention, swept.next, _STEP)
            removed += swept.sessions
        return removed

    async def run(self) -> None:
        """Round after round, until cancelled. Whatever goes wrong is tried again in the next round."""
        while True:
            try:
                await self.sweep()
            except ChatStateError as error:
                _log.warning("sweeping expired sessions has failed, and will be tried again: %s", error.message)
            except Exception:
                _log.exception("sweeping expired sessions has failed, and will be tried again")
            await self._pause(INTERVAL_SECONDS)
