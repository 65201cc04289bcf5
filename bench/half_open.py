"""Saves and loads beside connections on which half a request was sent, and without them, in the same rounds.

Such a connection costs its client next to nothing. What it costs the server is its memory, and a look at it once a
second; others should not notice.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from select import POLLIN, poll

from bench.chatstate import ChatStateServer
from bench.load import LOOPBACK, Mix, Spec
from bench.measure import Bench, Contestant, RunFailed, Started, changed
from bench.results import Figures

PART = "half-open"
MIXES: tuple[Mix, ...] = ("save", "load")
CONNECTIONS = 500
HALF = b"GET /healthz HTTP/1.1\r\nHost: local"

MOST_P99 = 2.0
"""The floor: how many times the p99 without them the one beside half-open connections may be."""

MOST_SECONDS = 5.0
"""A run has to end before the server gives half-open connections up (10 s), its start and end included."""


class Beside:
    """A system that runs, while there are half-open connections."""

    def __init__(self, started: Started) -> None:
        self.name = beside(started.name)
        self.mixes: Sequence[Mix] = MIXES
        self._started = started

    def measure(self, spec: Spec, number: int = 0) -> Figures:
        """See `bench.measure.Contestant`. Raises `RunFailed` if one of the connections ended before the run."""
        with half_open(self._started.port) as ended:
            figures = self._started.measure(spec, number)
            if ended.poll(0):
                raise RunFailed("the server gave half-open connections up during the run; choose fewer --seconds")
            return figures


def beside(name: str) -> str:
    """How the table calls a system while there are half-open connections."""
    return f"{name}, {CONNECTIONS} half-open"


@contextmanager
def half_open(port: int) -> Iterator[poll]:
    """The connections, which can be asked if any has ended."""
    with ExitStack() as stack:
        ended = poll()
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection((LOOPBACK, port), timeout=20))
            connection.sendall(HALF)
            ended.register(connection, POLLIN)
        yield ended


def half_opens(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int) -> None:
    """All rows of the part, and what a half-open connection takes of memory before any load."""
    spec = changed(spec, seconds=min(spec.seconds, MOST_SECONDS), warmup=min(spec.warmup, 1.0))
    case = f"{CONNECTIONS} half-open connections"
    memory: dict[str, float] = {}

    def weigh(started: Started) -> None:
        before = started.memory_mb()
        with half_open(started.port):
            with socket.create_connection((LOOPBACK, started.port), timeout=20) as last:
                last.sendall(HALF + b"host\r\n\r\n")
                last.recv(1)  # the others have been read before it
            memory[started.name] = 1000 * (started.memory_mb() - before) / CONNECTIONS

    with bench.casting(systems, case, spec, weigh) as cast:
        both: list[Contestant] = [contestant for started in cast for contestant in (started, Beside(started))]
        bench.interleave(PART, case, both, lambda _, mix: changed(spec, mix=mix), rounds, MIXES)
    for system in systems:
        if system.name in memory:
            bench.results.fact(PART, f"memory of a half-open connection, {system.name}", "KB", memory[system.name])
        for mix in MIXES:
            ours, theirs = (case, beside(system.name), mix), (case, system.name, mix)
            bench.compare(f"{mix}s", ours, theirs, ("rate", "cpu_us", "p50", "p99"), {"p99": MOST_P99})
