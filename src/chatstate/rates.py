"""Rate limits, per anything: a key, a session, an address.

The generic cell rate algorithm (ITU-T I.371, section A.1): a leaky bucket that needs one number for each name, the time
at which its next request would be due. It is our own because it must run on an injected clock, and because an attacker
who invents names must not fill the memory: over the bound, those that have rested longest are forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

MOST_NAMES = 50_000
"""How many names are remembered."""


class RateLimit:
    """So many requests per second for each name, after a burst of so many at once. 0 per second: no limit."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._tolerance = self._interval * (max(burst, 1) - 1)
        self._clock = clock
        self._due: dict[Hashable, float] = {}

    def wait(self, name: Hashable) -> float:
        """Count a request of this name: 0 when it is allowed; else, not counted, in how many seconds one will be."""
        if not self._interval:
            return 0.0
        now = self._clock()
        due = max(self._due.pop(name, now), now)  # out and in again: the dict keeps those that rested longest in front
        early = due - self._tolerance - now
        self._due[name] = due if early > 0 else due + self._interval
        if len(self._due) > MOST_NAMES:
            del self._due[next(iter(self._due))]
        return max(early, 0.0)

    def give_back(self, name: Hashable) -> None:
        """Uncount a request of this name that `wait` has allowed."""
        if name in self._due:
            self._due[name] -= self._interval
