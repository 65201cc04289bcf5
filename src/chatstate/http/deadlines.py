"""The time that clients have, counted in ticks: one timer for all connections, and none for each request."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState


class Watched(Protocol):
    """A connection."""

    def check(self) -> None:
        """Called once a tick: end what has been left undone for too long."""


class Watch:
    """Looks after the connections of a server, as long as there are any.

    ticks        how many have been counted
    seconds      from one to the next, or a little more
    connections  those that it looks after

    A tick that comes a whole one late is not counted: while the event loop stood still, what the clients have sent was
    not read, and nobody's time may run out before it is.
    """

    def __init__(self, loop: AbstractEventLoop, seconds: float) -> None:
        self.ticks = 0
        self.seconds = seconds
        self._loop = loop
        self._due = 0.0
        self._running = False
        self.connections: set[Watched] = set()

    @classmethod
    def of(cls, server: ServerState, loop: AbstractEventLoop, seconds: float) -> Watch:
        """The one of this server; the first connection makes it."""
        watch = _WATCHES.get(server)
        if watch is None:
            watch = _WATCHES[server] = cls(loop, seconds)
        return watch

    def add(self, connection: Watched) -> None:
        """Look after this one, too."""
        self.connections.add(connection)
        if not self._running:
            self._wait()

    def remove(self, connection: Watched) -> None:
        """It has ended."""
        self.connections.discard(connection)

    def passed(self, since: int, seconds: float) -> bool:
        """Whether all of so many seconds have passed since something happened between this tick and the next."""
        return (self.ticks - since - 1) * self.seconds >= seconds

    def _wait(self) -> None:
        self._running = bool(self.connections)
        if self._running:
            self._due = self._loop.time() + self.seconds
            self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        late = self._loop.time() - self._due
        self._wait()
        if late < self.seconds:
            self.ticks += 1
            for connection in list(self.connections):
                connection.check()


_WATCHES: WeakKeyDictionary[ServerState, Watch] = WeakKeyDictionary()
