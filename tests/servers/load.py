"""Many clients that write to few sessions at once, and the history of what they were told.

    history = History(seed)
    async with Load(history, server.port) as load:
        await load.acknowledgements(300)
        server.kill()
    server.restart()
    await history.check(server.port)

Each client has one connection and goes on until it breaks, is closed or the load ends. Every request is recorded with
its time span and answer, and `tests/servers/history.py` compares all of them with what a store that loses nothing may
answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple, Self

from .history import Entry, LostWrite, Outcome, Tag, Verb, check
from .ports import LOOPBACK

ANSWER_SECONDS = 30.0
RETRY_SECONDS = 0.02
"""How long a client waits before it asks a store again that could not answer."""


class Answer(NamedTuple):
    """One answer; `closes`: the server takes no further request on this connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


class Connection:
    """One keep-alive connection to a server; raises OSError or EOFError when it breaks.

    async with await Connection.open(server.port) as connection:
        answer = await connection.request("GET", "/healthz")
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(LOOPBACK, port))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and wait for its answer."""
        content = b"" if body is None else json.dumps(body).encode()
        fields = {"Host": LOOPBACK, "Content-Type": "application/json", "Content-Length": str(len(content))}
        lines = [f"{name}: {value}" for name, value in (fields | (headers or {})).items()]
        await self.send("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + content)
        return await asyncio.wait_for(self.answer(), ANSWER_SECONDS)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        head, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head.split()[1]), headers, body)


@dataclass
class History:
    """Every request of a test, over all its faults, and what follows from the answers."""

    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1 << 32))
    entries: list[Entry] = field(default_factory=list)
    skips: int = 0
    staleness: float = 0.0
    dirty: bool = False
    _numbers: Iterator[int] = field(default_factory=count)
    _loads: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.report("load begins")

    def random_for(self, worker: int) -> random.Random:
        """The source of one client's choices in the next load."""
        return random.Random(f"{self.seed} {next(self._loads)} {worker}")

    def begin(
        self, user_session_id: str, verb: Verb, sent: str | None = None, expects: Tag | Literal[""] | None = None
    ) -> Entry:
        entry = Entry(user_session_id, verb, sent, time.monotonic(), expects=expects)
        self.entries.append(entry)
        return entry

    def new_state(self, rng: random.Random) -> str:
        """A state that is never sent twice."""
        return json.dumps({"number": next(self._numbers), "messages": ["Grüße 😀 \u2028"] * rng.randrange(40)})

    def count(self, outcome: Outcome) -> int:
        return sum(entry.outcome == outcome and entry.verb != "load" for entry in self.entries)

    def report(self, what: str) -> None:
        """Print the seed, which replays the clients' choices, and how many writes there were."""
        outcomes: tuple[Outcome, ...] = ("ok", "failed", "unknown")
        counted = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in outcomes)
        print(f"{what}: seed {self.seed}, writes: {counted}")  # noqa: T201

    async def check(self, port: int) -> None:
        """Load every session, now that the fault is over, and raise LostWrite where answers contradict each other."""
        now = time.monotonic()
        for entry in self.entries:
            entry.end = min(entry.end, now)  # nobody carries out what was cut off before the fault ended
        async with await Connection.open(port) as connection:
            for user_session_id in sorted({entry.user_session_id for entry in self.entries}):
                entry = self.begin(user_session_id, "load")
                answer = await connection.request("GET", f"/chat-state-sessions/{user_session_id}")
                entry.answered(*answer)
                if entry.status not in (200, 404):
                    raise LostWrite(f"{user_session_id} cannot be loaded: {answer.body.decode()}")
        check(
            self.entries,
            staleness=self.staleness,
            dirty_until=now if self.dirty else -math.inf,
            skips=self.skips,
            seed=self.seed,
        )


# --- The clients ------------------------------------------------------------------------------------------------------


class Load:
    """Clients at work inside `async with`; leaving it lets each finish the request that it has sent.

    broken   how many clients were cut off without an answer to a request that they had sent
    """

    def __init__(self, history: History, port: int, workers: int = 16, shared_ids: int = 4) -> None:
        self.history = history
        self.broken = 0
        self.statuses: Counter[int] = Counter()
        self._port = port
        self._workers = workers
        self._shared_ids = shared_ids
        self._ending = False
        self._answered = asyncio.Event()
        self._acknowledged = [0] * workers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        connections = [await Connection.open(self._port) for _ in range(self._workers)]
        self._tasks = [asyncio.create_task(self._work(*numbered)) for numbered in enumerate(connections)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def ended(self) -> None:
        """Wait until the server has closed every connection."""
        await asyncio.gather(*self._tasks)

    async def acknowledgements(self, number: int) -> None:
        """Wait for so many further acknowledged writes, and one at least for every client."""
        before, goal = list(self._acknowledged), sum(self._acknowledged) + number

        async def arrive() -> None:
            while sum(self._acknowledged) < goal or any(map(int.__eq__, self._acknowledged, before)):
                if all(task.done() for task in self._tasks):
                    raise ConnectionError("every client lost its connection")
                self._answered.clear()
                await self._answered.wait()

        await asyncio.wait_for(arrive(), ANSWER_SECONDS)

    async def _work(self, worker: int, connection: Connection) -> None:
        async with connection:
            try:
                await self._write(worker, _Client(self.history, connection, worker, self._shared_ids))
            except (OSError, EOFError):
                self.broken += 1
            finally:
                self._answered.set()

    async def _write(self, worker: int, client: _Client) -> None:
        while not self._ending:
            entry, answer = await client.request()
            self.statuses[answer.status] += 1
            self._acknowledged[worker] += entry.outcome == "ok" and entry.verb != "load"
            self._answered.set()
            if answer.closes:
                return
            if answer.status == 503:
                await asyncio.sleep(RETRY_SECONDS)  # polls a database that is being restarted


class _Client:
    """Chooses one request after the other."""

    def __init__(self, history: History, connection: Connection, worker: int, shared_ids: int) -> None:
        self._history = history
        self._connection = connection
        self._random = history.random_for(worker)
        self._ids = [f"shared-{number}" for number in range(shared_ids)] + [f"own-{worker}-{n}" for n in range(2)]
        self._seen: dict[str, Tag] = {}

    async def request(self) -> tuple[Entry, Answer]:
        user_session_id = self._random.choice(self._ids)
        kinds = (self._save, self._save_if_unchanged, self._update, self._touch, self._delete, self._load)
        (kind,) = self._random.choices(kinds, (40, 25, 10, 5, 6, 14))
        entry, answer = await kind(user_session_id)
        if entry.tag or answer.status == 412:
            self._seen[user_session_id] = entry.tag or Tag.of(answer.headers.get("etag", '"gone-1"'))
        elif entry.verb == "delete" and entry.outcome == "ok":
            self._seen.pop(user_session_id, None)
        return entry, answer

    async def _save(
        self, user_session_id: str, headers: dict[str, str] | None = None, expects: Tag | Literal[""] | None = None
    ) -> tuple[Entry, Answer]:
        state = self._history.new_state(self._random)
        entry = self._history.begin(user_session_id, "save", state, expects)
        body = {"user_session_id": user_session_id, "chat_state": state}
        return await self._send(entry, "POST", "/chat-state-sessions", body, headers)

    async def _save_if_unchanged(self, user_session_id: str) -> tuple[Entry, Answer]:
        seen = self._seen.get(user_session_id)
        headers = {"If-Match": str(seen)} if seen else {"If-None-Match": "*"}
        return await self._save(user_session_id, headers, seen or "")

    async def _update(self, user_session_id: str) -> tuple[Entry, Answer]:
        state = self._history.new_state(self._random)
        entry = self._history.begin(user_session_id, "save", state)
        return await self._send(entry, "PUT", _path(user_session_id), {"chat_state": state})

    async def _touch(self, user_session_id: str) -> tuple[Entry, Answer]:
        return await self._send(self._history.begin(user_session_id, "touch"), "PUT", _path(user_session_id), {})

    async def _delete(self, user_session_id: str) -> tuple[Entry, Answer]:
        seen = self._seen.get(user_session_id)
        headers = {"If-Match": str(seen)} if seen and self._random.random() < 0.5 else None
        return await self._send(
            self._history.begin(user_session_id, "delete"), "DELETE", _path(user_session_id), headers=headers
        )

    async def _load(self, user_session_id: str) -> tuple[Entry, Answer]:
        return await self._send(self._history.begin(user_session_id, "load"), "GET", _path(user_session_id))

    async def _send(
        self, entry: Entry, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[Entry, Answer]:
        answer = await self._connection.request(method, path, body, headers)
        entry.answered(*answer)
        return entry, answer


def _path(user_session_id: str) -> str:
    return f"/chat-state-sessions/{user_session_id}"
