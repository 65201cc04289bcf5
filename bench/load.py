"""The load generator: a process of its own, so that its cost is known. `python -m bench.load` reads a `Spec` on stdin.

It prints the line `counting` when the warm-up is over, and at the end one line of JSON, a `Result`. It speaks HTTP/1.1
over plain asyncio protocols on uvloop and understands no more of the answers than it must: status and length.

Closed loop: each connection sends its next request when the last one is answered, so a slow server is asked less often.
Open loop: requests arrive at random (Poisson) at a given rate, whatever the server does; they wait when all connections
are busy, and the latency counts from the moment of arrival. Timers have a resolution of a millisecond, by which an
arrival may be late; that is counted, too.
"""

from __future__ import annotations

import asyncio
import gc
import random
import re
import resource
import sys
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Literal, cast

import uvloop
from msgspec import Struct, json

from bench.apis import APIS, WithCredentials
from bench.requests import Requests, states

LOOPBACK = "127.0.0.1"
COUNTING = "counting"
"""The line that says that the warm-up is over."""

GRACE_SECONDS = 20.0
"""How long the end waits for the answers that are still to come; before that, for one if there was none."""

MOST_ERRORS = 1000
_TICK = 0.001
"""The resolution of timers. For less, uvloop would come back at once, and again, and keep a core busy."""

MOST_WAITING = 100_000
MOST_HEAD_BYTES = 64 << 10
_ENTITY_TAG = b"\r\netag: "
"""As chatstate writes it."""


Mix = Literal["save", "load", "half", "conditional", "keyed", "append", "page", "far page", "move"]


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """What to send.

    port         of the server, on 127.0.0.1
    api          a name in `bench.apis.APIS`
    loop         `closed`, `open` (with `rate`), or `fill`, which creates the sessions 0, 1, … once each
    mix          only saves, only loads, or half and half at random; saves with the current entity tag in If-Match, or
                 with an Idempotency-Key; patches that append a message. Pages are
                 for bench/lists.py and moves for bench/moving.py, not for here
    connections  1 to 512; for conditional saves fewer than sessions
    sessions     the number of sessions, each as likely as the others; they have to be there
    state_bytes  the size of a state in UTF-8; also the least that a load must answer
    warmup       seconds that are not counted
    seconds      that are counted
    rate         arrivals a second
    bearers      credentials: of session 0, 1, … and then again from the first one; none are sent without any
    seed         replays the choice of words, sessions and arrivals
    """

    port: int
    api: str = "chatstate"
    loop: Literal["closed", "open", "fill"] = "closed"
    mix: Mix = "save"
    connections: int = 64
    sessions: int = 10_000
    state_bytes: int = 4096
    warmup: float = 1.0
    seconds: float = 4.0
    rate: float = 0.0
    bearers: tuple[str, ...] = ()
    seed: int = 1


class Latency(Struct, frozen=True):
    """Of the requests of one kind that were answered as they should; milliseconds."""

    requests: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Result(Struct, frozen=True):
    """What came of it. Errors are counted during the warm-up, too; none of them is among the requests.

    errors       answers that are not 2xx or shorter than the state, broken connections, requests never answered
    example      of an error; empty without one
    seconds      that were counted
    rate         requests a second
    wire_bytes   of these requests and their answers together, heads and bodies
    cpu_seconds  of this process while it counted, user and system
    """

    requests: int
    errors: int
    example: str
    seconds: float
    rate: float
    saves: Latency | None
    loads: Latency | None
    wire_bytes: int
    cpu_seconds: float


# --- What is answered -------------------------------------------------------------------------------------------------


class Answer:
    """Reads one answer after another from the pieces in which they arrive.

    status, size  of the last complete answer: its status, and the bytes of its body
    last          the server closes the connection after it
    head          its beginning, for messages
    """

    __slots__ = ("_buffer", "_chunked", "_missing", "head", "last", "size", "status")

    def __init__(self) -> None:
        self.status = self.size = self._missing = 0
        self.last = self._chunked = False
        self.head = b""
        self._buffer = b""

    def feed(self, data: bytes) -> bool:
        """Whether the answer is complete with this. Raises ValueError for what is no answer, or more than one."""
        if self._missing:
            self._missing -= len(data)
        elif self._chunked:
            self._buffer += data
            return self._unchunked()
        elif not self._begun(self._buffer + data if self._buffer else data):
            return False
        if self._missing < 0:
            raise ValueError("more came than one answer")
        return not self._missing and not self._chunked

    def _begun(self, data: bytes) -> bool:
        """Read the head; whether the answer has a length that is known then."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MOST_HEAD_BYTES:
                raise ValueError("the head never ends")
            self._buffer = data
            return False
        if not data.startswith(b"HTTP/1.1 "):
            raise ValueError(f"not an answer of HTTP/1.1: {data[:80]!r}")
        self._buffer = b""
        self.head = data
        self.status = int(data[9:12])
        names = data[: end + 2].lower()
        self.last = b"\r\nconnection: close" in names
        start = names.find(b"\r\ncontent-length:")
        if start >= 0:
            self.size = int(names[start + 17 : names.index(b"\r\n", start + 17)])
        elif self.status in (204, 304):
            self.size = 0
        elif re.search(rb"\r\ntransfer-encoding:[^\r]*chunked", names):
            self._chunked, self.size, self._buffer = True, 0, data[end + 4 :]
            return self._unchunked()
        else:
            raise ValueError(f"an answer without a length: {data[:80]!r}")
        self._missing = end + 4 + self.size - len(data)
        return True

    def _unchunked(self) -> bool:
        """Count the chunks that are complete (RFC 9112, section 7.1); whether the last one is among them."""
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if not size:
                if self._buffer.find(b"\r\n\r\n", end) < 0:  # there may be trailers
                    return False
                self._chunked, self._buffer = False, b""
                return True
            if len(self._buffer) < end + 2 + size + 2:
                return False
            self.size += size
            self._buffer = self._buffer[end + 2 + size + 2 :]
        return False


# --- Sending and counting ---------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One connection with at most one request on its way.

    saves       whether that request is a save
    session     whose
    began       when it was sent or, in an open loop, when it arrived
    busy        whether there is one
    wire_bytes  of the request, and of what has come of its answer
    """

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self.answer = Answer()
        self.saves = False
        self.session = self.wire_bytes = 0
        self.began = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, saves: bool, session: int, request: bytes, began: float) -> None:
        self.saves, self.session, self.began, self.busy = saves, session, began, True
        self.wire_bytes = len(request)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.wire_bytes += len(data)
        try:
            if not self.answer.feed(data):
                return
            if not self.busy:
                raise ValueError(f"an answer to nothing: {data[:80]!r}")
        except ValueError as error:
            self._load.failed(str(error))
            self.busy = False
            self.transport.abort()  # and another connection takes its place
            return
        self.busy = False
        self._load.answered(self)
        if self.answer.last:
            self.transport.close()
        else:
            self._load.ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self._load.failed(f"the connection broke: {error or 'the server closed it before it answered'}")
        self._load.lost(self)


class Load(ABC):
    """One run; subclasses say when the next request is sent.

    tags  the current entity tags of all sessions; only conditional saves need them
    """

    def __init__(self, spec: Spec, tags: Mapping[int, bytes] | None = None) -> None:
        self.spec = spec
        self.tags = dict(tags or {})
        self._saving: set[int] = set()
        self.dice = random.Random(spec.seed)
        self.api = WithCredentials(APIS[spec.api], spec.bearers) if spec.bearers else APIS[spec.api]
        self.requests = Requests(self.api, spec.state_bytes, spec.seed)
        self.connections: set[Connection] = set()
        self.counting = self.ended = self._overdue = False
        self.began = self.stopped = self._cpu = 0.0
        self._saves, self._loads = array("d"), array("d")
        self._wire_bytes = self._errors = 0
        self._example = ""
        self._done, self._quiet = asyncio.Event(), asyncio.Event()
        self._reconnecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Result:
        """Connect, send, wait for the last answers, and close."""
        try:
            await asyncio.gather(*(self._connect() for _ in range(self.spec.connections)))
        except OSError as error:
            self.failed(f"cannot connect: {error}")
            self.end()
        self.start()
        await self._done.wait()
        await self._drain()
        for connection in self.connections:
            connection.transport.abort()
        return self._result()

    def start(self) -> None:
        """Begin to send; with `warmup` and `seconds` the end is known."""
        asyncio.get_running_loop().call_later(self.spec.warmup, self._count_for_seconds)
        for connection in list(self.connections):
            self.ready(connection)

    def _count_for_seconds(self) -> None:
        """From now on, however late that is."""
        self.count()
        asyncio.get_running_loop().call_later(self.spec.seconds, self._end_in_time)

    def _end_in_time(self) -> None:
        """Unless the server stood still for all of the time: then the run ends with the answer to come, or an error."""
        if self._saves or self._loads or self._errors:
            self.end()
        else:
            self._overdue = True
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self.end)

    def count(self) -> None:
        """The warm-up is over."""
        print(COUNTING, flush=True)
        self._cpu = _cpu_seconds()
        self.counting, self.began = True, perf_counter()

    def end(self) -> None:
        """Send no more."""
        if not self.ended:
            self.stopped, self.ended = perf_counter(), True
            self._cpu = _cpu_seconds() - self._cpu
            self._done.set()

    @abstractmethod
    def ready(self, connection: Connection) -> None:
        """The connection has nothing to do."""

    def answered(self, connection: Connection) -> None:
        """An answer is complete."""
        answer = connection.answer
        if self.spec.mix == "conditional":
            self.learn(connection)
        if not 200 <= answer.status < 300:
            self.failed(answer.head[:300].decode(errors="replace"))
        elif not connection.saves and answer.size < self.spec.state_bytes:
            self.failed(f"a load was answered with {answer.size} bytes: {answer.head[-300:].decode(errors='replace')}")
        elif self.is_counted(connection.began):
            (self._saves if connection.saves else self._loads).append(perf_counter() - connection.began)
            self._wire_bytes += connection.wire_bytes
            if self._overdue:
                self.end()
        if self.ended:
            self._settle()

    def learn(self, connection: Connection) -> None:
        """Remember the entity tag of the answer."""
        self._saving.discard(connection.session)
        head = connection.answer.head
        start = head.find(_ENTITY_TAG)
        if start >= 0:
            start += len(_ENTITY_TAG)
            self.tags[connection.session] = head[start : head.find(b"\r", start)]

    def is_counted(self, began: float) -> bool:
        """Whether the answer that has just come counts."""
        return self.counting and not self.ended

    def failed(self, example: str) -> None:
        """One more error; after too many the run ends."""
        self._errors += 1
        self._example = self._example or example
        if self._overdue or self._errors >= MOST_ERRORS:
            self.end()

    def lost(self, connection: Connection) -> None:
        """A connection has ended; as long as the run goes on, another takes its place."""
        self.connections.discard(connection)
        self._saving.discard(connection.session)
        if self.ended:
            self._settle()
        else:
            task = asyncio.get_running_loop().create_task(self._reconnect())
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    def send(self, connection: Connection, began: float) -> None:
        """Send a request of the mix to a session, by chance."""
        mix, number = self.spec.mix, int(self.dice.random() * self.spec.sessions)
        if mix == "half":
            mix = "save" if self.dice.random() < 0.5 else "load"
        if mix == "save":
            request = self.requests.save(number)
        elif mix == "load":
            request = self.requests.load(number)
        elif mix == "keyed":
            request = self.requests.keyed(number)
        elif mix == "append":
            request = self.requests.append(number)
        else:
            number = self._free(number)
            request = self.requests.conditional(number, self.tags[number])
        connection.send(mix != "load", number, request, began)

    def _free(self, number: int) -> int:
        """This session, or another one while a save of it is on its way: with that it gets another tag."""
        while number in self._saving:
            number = int(self.dice.random() * self.spec.sessions)
        self._saving.add(number)
        return number

    @property
    def unanswered(self) -> int:
        """Requests that were sent, or wait for a connection."""
        return sum(connection.busy for connection in self.connections)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), LOOPBACK, self.spec.port)
        self.connections.add(connection)
        return connection

    async def _reconnect(self) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            self.failed(f"cannot connect again: {error}")
            if not self.connections:
                self.end()
        else:
            self.ready(connection)

    def _settle(self) -> None:
        if not self.unanswered or self._errors >= MOST_ERRORS:
            self._quiet.set()

    async def _drain(self) -> None:
        self._settle()
        try:
            await asyncio.wait_for(self._quiet.wait(), GRACE_SECONDS)
        except TimeoutError:
            self._errors += self.unanswered - 1
            self.failed(f"no answer {GRACE_SECONDS:.0f} s after the end")

    def _result(self) -> Result:
        seconds = self.stopped - self.began if self.counting else 0.0
        requests = len(self._saves) + len(self._loads)
        return Result(
            requests=requests,
            errors=self._errors,
            example=self._example,
            seconds=seconds,
            rate=requests / seconds if seconds else 0.0,
            saves=latency(self._saves),
            loads=latency(self._loads),
            wire_bytes=self._wire_bytes,
            cpu_seconds=self._cpu if self.counting else 0.0,
        )


class ClosedLoop(Load):
    """The next request follows the last answer."""

    def ready(self, connection: Connection) -> None:
        """See `Load.ready`."""
        if not self.ended:
            self.send(connection, perf_counter())


class OpenLoop(Load):
    """Requests arrive by chance, and wait for a connection when all are busy."""

    def __init__(self, spec: Spec, tags: Mapping[int, bytes] | None = None) -> None:
        super().__init__(spec, tags)
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._next = 0.0

    def start(self) -> None:
        """See `Load.start`."""
        super().start()
        self._next = perf_counter() + self.dice.expovariate(self.spec.rate)
        self._arrive()

    def ready(self, connection: Connection) -> None:
        """See `Load.ready`."""
        if self._waiting:
            self.send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """See `Load.lost`."""
        if connection in self._idle:
            self._idle.remove(connection)
        super().lost(connection)

    def is_counted(self, began: float) -> bool:
        """All that arrive while it counts, so that the slowest, whose answers come after the end, are not left out."""
        return self.counting and self.began <= began and not (self.ended and began > self.stopped)

    @property
    def unanswered(self) -> int:
        """See `Load.unanswered`."""
        return super().unanswered + len(self._waiting)

    def _arrive(self) -> None:
        now = perf_counter()
        while self._next <= now and not self.ended:
            self._take(self._next)
            self._next += self.dice.expovariate(self.spec.rate)
        if not self.ended:
            asyncio.get_running_loop().call_later(max(_TICK, self._next - now), self._arrive)

    def _take(self, arrival: float) -> None:
        if self._idle:
            self.send(self._idle.popleft(), arrival)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(arrival)
        else:
            self.failed(f"{MOST_WAITING} requests waited for a connection")


class OnceEach(Load):
    """One request to each session."""

    def __init__(self, spec: Spec, tags: Mapping[int, bytes] | None = None) -> None:
        super().__init__(spec, tags)
        self._numbers = iter(range(spec.sessions))

    def start(self) -> None:
        """See `Load.start`."""
        for connection in list(self.connections):
            self.ready(connection)

    def ready(self, connection: Connection) -> None:
        """See `Load.ready`."""
        number = next(self._numbers, None)
        if number is None:
            if not self.unanswered:
                self.end()
        elif not self.ended:
            self.visit(connection, number)

    @abstractmethod
    def visit(self, connection: Connection, number: int) -> None:
        """Send the request to this session."""


class Fill(OnceEach):
    """Each session is created."""

    def __init__(self, spec: Spec, tags: Mapping[int, bytes] | None = None) -> None:
        super().__init__(spec, tags)
        self._states: Sequence[str] = states(spec.state_bytes, spec.seed)

    def start(self) -> None:
        """See `Load.start`."""
        self.count()
        super().start()

    def visit(self, connection: Connection, number: int) -> None:
        """See `OnceEach.visit`."""
        state = self._states[number % len(self._states)]
        connection.send(True, number, self.api.fill(number, state), perf_counter())


class Learn(OnceEach):
    """Each session is loaded for its entity tag."""

    def visit(self, connection: Connection, number: int) -> None:
        """See `OnceEach.visit`."""
        connection.send(False, number, self.requests.load(number), perf_counter())


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def latency(seconds: array[float]) -> Latency | None:
    """Of requests that took so long; None without any."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return 1000 * ordered[min(int(len(ordered) * share), len(ordered) - 1)]

    return Latency(len(ordered), at(0.5), at(0.9), at(0.99), at(0.999), at(1))


LOOPS: dict[str, type[Load]] = {"closed": ClosedLoop, "open": OpenLoop, "fill": Fill}


async def perform(spec: Spec) -> Result:
    """The result of one run; also for tests, in their own loop."""
    tags: dict[int, bytes] = {}
    if spec.mix == "conditional" and spec.loop != "fill":
        learning = Learn(spec)
        result = await learning.run()
        if result.errors or len(learning.tags) < spec.sessions:
            return result
        tags = learning.tags
    return await LOOPS[spec.loop](spec, tags).run()


def main() -> None:
    """Read the spec, perform it, print the result."""
    spec = json.decode(sys.stdin.buffer.read(), type=Spec)
    gc.disable()  # a run is short, and its pauses would be taken for the server's
    result = uvloop.run(perform(spec))
    print(json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
