"""The change feed: how long after a save its event is with a watcher, and what a watcher costs that waits.

The time is counted from when a save is sent until another client has its event, in one process and across two on one
PostgreSQL, and beside it, in the same rounds, that of a save and a load one after the other: the least that somebody
would need who asked for the new state at just the right moment.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import quantiles

from msgspec import json

from bench.chatstate import ChatStateOnPostgres, ChatStateServer
from bench.measure import FAILURES, Bench, RunFailed, Started
from tests.servers.ports import LOOPBACK

PART = "live"
SAVES = 1000
"""How many saves a round has of each kind."""

STATE = json.encode({"messages": ["x" * 4000]}).decode()

WATCHERS = 2000
IDLE_SECONDS = 10.0
MOST_KB = 20.0
MOST_MS, MOST_MS_ACROSS = 10.0, 30.0
"""The floors: memory of a watcher, and the p99 from a save to its event in one process, and across two."""

_SPARE_FILES = 100


class Client:
    """A connection that waits for each answer. Nothing is parsed but where an answer ends."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"Host: {LOOPBACK}:{port}\r\n".encode()
        self._unread = b""

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        """A request."""
        head = f"{method} /chat-state-sessions{path} HTTP/1.1\r\n".encode() + self._host
        if body:
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        self.socket.sendall(head + b"\r\n" + body)

    def answer(self) -> None:
        """Wait until the answer is there as a whole. Raises `RunFailed` if it is not one of success."""
        head = self._until(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 20"):
            raise RunFailed(head.decode(errors="replace"))
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._unread) < length:
            self._receive()
        self._unread = self._unread[length:]

    def event(self, mark: bytes) -> None:
        """Wait for an event with this in its data."""
        while True:
            if mark in self._until(b"\n\n"):
                return

    def _until(self, end: bytes) -> bytes:
        while end not in self._unread:
            self._receive()
        found, _, self._unread = self._unread.partition(end)
        return found

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise RunFailed("the server has closed the connection")
        self._unread += data


@contextmanager
def connected(port: int) -> Iterator[Client]:
    """A client, until leaving."""
    client = Client(port)
    with client.socket:
        yield client


def live(bench: Bench, systems: Sequence[ChatStateServer], rounds: int) -> None:
    """All facts of the part."""
    for system in systems:
        try:
            with bench.stage.started(system) as started:
                _latency(bench, system.name, started.port, started.port, rounds)
                if isinstance(system, ChatStateOnPostgres) and started.database:
                    folder = started.folder / "second"
                    folder.mkdir()
                    with system.running(folder, started.database.url) as second:
                        _latency(bench, f"{system.name}, two processes", started.port, second.port, rounds)
            _weigh(bench, system)
        except FAILURES as error:
            bench.failed(system.name, PART, error)


# --- From a save to its event -----------------------------------------------------------------------------------------


def _latency(bench: Bench, name: str, watched: int, written: int, rounds: int) -> None:
    session = f"watched_{watched}_{written}"
    with connected(watched) as watcher, connected(written) as writer:
        watcher.send("GET", f"/{session}/events")
        watcher.event(b"event: absent")
        for number in range(rounds):
            bench.tell(f"{PART} {number + 1}: {name}")
            told, asked = [], []
            for count in range(SAVES):
                mark = f"{number}.{count}"
                told.append(_timed(partial(_until_told, writer, watcher, session, mark)))
                asked.append(_timed(partial(_until_loaded, writer, mark)))
            _note(bench, name, told, asked)


def _timed(what: Callable[[], None]) -> float:
    began = time.perf_counter()
    what()
    return 1000 * (time.perf_counter() - began)


def _until_told(writer: Client, watcher: Client, session: str, mark: str) -> None:
    writer.send("POST", "", _saving(session, mark))
    watcher.event(f'"{mark}'.encode())
    writer.answer()


def _until_loaded(writer: Client, mark: str) -> None:
    writer.send("POST", "", _saving("polled", mark))
    writer.answer()
    writer.send("GET", "/polled")
    writer.answer()


def _saving(user_session_id: str, mark: str) -> bytes:
    return json.encode({"user_session_id": user_session_id, "chat_state": f"{mark}{STATE}"})


def _note(bench: Bench, name: str, told: Sequence[float], asked: Sequence[float]) -> None:
    for label, percentile in (("p50", 50), ("p99", 99)):
        event, poll = (quantiles(times, n=100)[percentile - 1] for times in (told, asked))
        bench.results.fact(PART, f"{label} from a save to its event, {name}", "ms", event)
        bench.results.fact(PART, f"{label} of that : of a save and a load, {name}", "×", event / poll)


# --- What a watcher costs ---------------------------------------------------------------------------------------------


def _weigh(bench: Bench, system: ChatStateServer) -> None:
    _allow_files(WATCHERS + _SPARE_FILES)
    for kind, path in (("idle connection", "/{}"), ("idle watcher", "/{}/events")):
        with bench.stage.started(system) as started, ExitStack() as stack:
            bench.tell(f"{PART}: {WATCHERS} of an {kind}: {system.name}")
            _warm_up(started)
            before = started.memory_mb()
            clients = [stack.enter_context(connected(started.port)) for _ in range(WATCHERS)]
            for number, client in enumerate(clients):
                client.send("GET", path.format(f"session_{number}"))
            for client in clients:
                client.socket.recv(1 << 16)
            weight = 1000 * (started.memory_mb() - before) / WATCHERS
            bench.results.fact(PART, f"memory of an {kind}, {system.name}", "KB", weight)
            busy = started.cpu_seconds()
            time.sleep(IDLE_SECONDS)
            share = 100 * (started.cpu_seconds() - busy) / IDLE_SECONDS
            bench.results.fact(PART, f"CPU of {WATCHERS:,}, each an {kind}, {system.name}", "%", share)


def _warm_up(started: Started) -> None:
    """What the first requests take stays, and is no watcher's."""
    with connected(started.port) as client:
        for number in range(WATCHERS):
            client.send("POST", "", _saving(f"session_{number}", "first"))
            client.answer()


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
