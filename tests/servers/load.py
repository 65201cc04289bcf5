"""Many clients that write to few sessions at once, and a checker that knows what the answers have promised.

    history = History(seed)
    async with Load(history, server.port) as load:
        await load.acknowledgements(300)
        server.kill()
    server.restart()
    await history.check(server.port)

Each client has one connection and goes on until it breaks, is closed or the load ends. Every request is recorded with
its time span and answer; the checker compares all of them with what a store that loses nothing may answer. It needs no
order between clients that write to one session at the same time: only what one answer tells before another request
begins binds that one.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple, Self

from .ports import LOOPBACK

ANSWER_SECONDS = 30.0
RETRY_SECONDS = 0.02
"""How long a client waits before it asks a store again that could not answer."""

Verb = Literal["save", "touch", "delete", "load"]
Outcome = Literal["ok", "failed", "unknown"]


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


# --- What was asked and answered --------------------------------------------------------------------------------------


class Tag(NamedTuple):
    """One version of one life of a session."""

    session_id: str
    version: int

    @classmethod
    def of(cls, etag: str) -> Tag:
        session_id, _, version = etag.strip('"').rpartition("-")
        return cls(session_id, int(version))

    def __str__(self) -> str:
        return f'"{self.session_id}-{self.version}"'


@dataclass(slots=True)
class Entry:
    """One request. `sent`: the state in it; `tag`, `state`: the version that its answer tells of."""

    user_session_id: str
    verb: Verb
    sent: str | None
    start: float
    end: float = math.inf
    outcome: Outcome = "unknown"
    status: int = 0
    tag: Tag | None = None
    state: str | None = None

    def answered(self, answer: Answer) -> None:
        """Note what the answer says."""
        self.end, self.status = time.monotonic(), answer.status
        content = json.loads(answer.body)
        if answer.status in (200, 201):
            self.outcome = "ok"
            self.state = content.get("chat_state")
            self.tag = Tag.of(answer.headers["etag"]) if "etag" in answer.headers else None
        elif answer.status in (404, 412) or (answer.status == 503 and content.get("outcome") != "unknown"):
            self.outcome = "failed"
        else:
            self.end = math.inf  # what an unknown request does, it may do later

    @property
    def shows_absence(self) -> bool:
        """Whether the answer says that there was no session at some moment in its span."""
        return self.status in (201, 404)


class LostWrite(AssertionError):
    """The answers contradict each other; the message says how, and names the seed."""


@dataclass
class History:
    """Every request of a test, over all its faults, and what follows from the answers."""

    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1 << 32))
    entries: list[Entry] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _loads: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.report("load begins")

    def random_for(self, worker: int) -> random.Random:
        """The source of one client's choices in the next load."""
        return random.Random(f"{self.seed} {next(self._loads)} {worker}")

    def begin(self, user_session_id: str, verb: Verb, sent: str | None = None) -> Entry:
        entry = Entry(user_session_id, verb, sent, time.monotonic())
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
                entry.answered(await connection.request("GET", f"/chat-state-sessions/{user_session_id}"))
                if entry.status not in (200, 404):
                    raise LostWrite(f"{user_session_id} cannot be loaded: status {entry.status}")
        self.verify()

    def verify(self) -> None:
        """Raise LostWrite where answers contradict each other."""
        by_id: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            by_id[entry.user_session_id].append(entry)
        for user_session_id, entries in by_id.items():
            for rule in RULES:
                for entry in rule(entries):
                    told = "\n".join(f"  {other}"[:300] for other in _neighbours(entries, entry))
                    raise LostWrite(f"seed {self.seed}, {user_session_id}: {rule.__doc__} Not so:\n  {entry}\n{told}")


def _neighbours(entries: list[Entry], entry: Entry) -> list[Entry]:
    position = next(number for number, other in enumerate(entries) if other is entry)
    return entries[max(0, position - 12) : position]


# --- What a store that loses nothing may answer; each rule yields the requests whose answers break it -----------------


def _sightings(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.outcome == "ok" and entry.tag]


def _deletes(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.verb == "delete" and entry.outcome != "failed"]


def only_known_statuses(entries: list[Entry]) -> Iterator[Entry]:
    """Only success, absence, a failed precondition and an unavailable store are answered."""
    return (entry for entry in entries if entry.status not in (0, 200, 201, 404, 412, 503))


def writes_answer_what_was_sent(entries: list[Entry]) -> Iterator[Entry]:
    """An acknowledged write answers with the very state that was sent."""
    return (entry for entry in _sightings(entries) if entry.verb == "save" and entry.state != entry.sent)


def one_version_has_one_writer(entries: list[Entry]) -> Iterator[Entry]:
    """No two acknowledged writes have the same version."""
    seen: set[Tag] = set()
    for entry in _sightings(entries):
        if entry.verb != "load" and entry.tag:
            if entry.tag in seen:
                yield entry
            seen.add(entry.tag)


def one_version_has_one_state(entries: list[Entry]) -> Iterator[Entry]:
    """Whoever sees a version sees the same state, byte for byte."""
    states: dict[Tag, str | None] = {}
    for entry in _sightings(entries):
        if entry.tag and states.setdefault(entry.tag, entry.state) != entry.state:
            yield entry


def only_sent_states_are_seen(entries: list[Entry]) -> Iterator[Entry]:
    """What is seen was sent before, by a request that did not report its failure."""
    sent = {entry.sent: entry.start for entry in entries if entry.sent and entry.outcome != "failed"}
    for entry in _sightings(entries):
        if entry.state is None or sent.get(entry.state, math.inf) > entry.end:
            yield entry


def versions_never_go_back(entries: list[Entry]) -> Iterator[Entry]:
    """A request that began after a version was seen sees that or a later one of it, and a write makes a later one."""
    ended = sorted(_sightings(entries), key=lambda entry: entry.end)
    newest: dict[str, int] = {}
    position = 0
    for entry in sorted(ended, key=lambda entry: entry.start):
        while ended[position].end < entry.start:
            tag = ended[position].tag
            assert tag is not None
            newest[tag.session_id] = max(newest.get(tag.session_id, 0), tag.version)
            position += 1
        assert entry.tag is not None
        if entry.tag.version < newest.get(entry.tag.session_id, 0) + (entry.verb != "load"):
            yield entry


def versions_have_writers(entries: list[Entry]) -> Iterator[Entry]:
    """There are no more versions than acknowledged writes and writes of unknown outcome."""
    newest: dict[str, Entry] = {}
    for entry in _sightings(entries):
        assert entry.tag is not None
        other = newest.setdefault(entry.tag.session_id, entry)
        if other.tag and entry.tag.version > other.tag.version:
            newest[entry.tag.session_id] = entry
    versions = sum(entry.tag.version for entry in newest.values() if entry.tag)
    writers = sum(entry.verb in ("save", "touch") and entry.outcome != "failed" for entry in entries)
    if versions > writers:
        yield max(newest.values(), key=lambda entry: entry.start)


def sessions_vanish_only_by_deletion(entries: list[Entry]) -> Iterator[Entry]:
    """A session that was seen is absent, or another one, only if a request to delete it came in between."""
    ended = sorted(_sightings(entries), key=lambda entry: entry.end)
    deletes = _deletes(entries)
    latest: Entry | None = None
    position = 0
    for entry in sorted(
        (entry for entry in entries if entry.tag or entry.shows_absence), key=lambda entry: entry.start
    ):
        while position < len(ended) and ended[position].end < entry.start:
            if latest is None or ended[position].start > latest.start:
                latest = ended[position]
            position += 1
        if latest is None or _same_life(entry, latest):
            continue
        if not any(delete.end > latest.start and delete.start < entry.end for delete in deletes):
            yield entry


def _same_life(entry: Entry, other: Entry) -> bool:
    return bool(entry.tag and other.tag and entry.tag.session_id == other.tag.session_id)


def the_deleted_stays_deleted(entries: list[Entry]) -> Iterator[Entry]:
    """A session that was seen before an acknowledged deletion is never seen after it."""
    lives: dict[str, list[Entry]] = defaultdict(list)
    for entry in _sightings(entries):
        assert entry.tag is not None
        lives[entry.tag.session_id].append(entry)
    deletions = [entry for entry in _deletes(entries) if entry.outcome == "ok"]
    for seen in lives.values():
        first, last = min(entry.end for entry in seen), max(seen, key=lambda entry: entry.start)
        if any(first < deletion.start and deletion.end < last.start for deletion in deletions):
            yield last


Rule = Callable[[list[Entry]], Iterator[Entry]]
RULES: tuple[Rule, ...] = (
    only_known_statuses,
    writes_answer_what_was_sent,
    one_version_has_one_writer,
    one_version_has_one_state,
    only_sent_states_are_seen,
    versions_never_go_back,
    versions_have_writers,
    sessions_vanish_only_by_deletion,
    the_deleted_stays_deleted,
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

    async def _save(self, user_session_id: str, headers: dict[str, str] | None = None) -> tuple[Entry, Answer]:
        state = self._history.new_state(self._random)
        entry = self._history.begin(user_session_id, "save", state)
        body = {"user_session_id": user_session_id, "chat_state": state}
        return await self._send(entry, "POST", "/chat-state-sessions", body, headers)

    async def _save_if_unchanged(self, user_session_id: str) -> tuple[Entry, Answer]:
        seen = self._seen.get(user_session_id)
        return await self._save(user_session_id, {"If-Match": str(seen)} if seen else {"If-None-Match": "*"})

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
        entry.answered(answer)
        return entry, answer


def _path(user_session_id: str) -> str:
    return f"/chat-state-sessions/{user_session_id}"
