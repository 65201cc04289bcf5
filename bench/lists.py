"""How long a page of a long list takes, and whether the thousandth takes longer than the first.

One client asks for one page at a time, the first one and a far one in turn. It finds the far page as clients do, by the
links from page to page. Pages of a Valkey Cluster, which looks into all of its slots for each, are compared with the
same pages on PostgreSQL, of a shorter list.
"""

from __future__ import annotations

import re
import socket
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import apsw
from msgspec import Struct

from bench.apis import request, user_session_id
from bench.chatstate import ChatStateOnPostgres, ChatStateOnSQLite, ChatStateServer, sqlite_url
from bench.growth import FILL_BATCH, SMALL, new_sessions, write
from bench.load import LOOPBACK, Answer, Mix, Spec, latency
from bench.measure import FAILURES, Bench, RunFailed, Started, changed, ordered
from bench.requests import MARK, states
from bench.results import Figures, RowName
from bench.scale import ChatStateOnValkey

PART = "lists"
MANY = 100
"""How many times as many sessions there are as under other loads."""

MANY_IN_SLOTS = 10
"""The same of lists that a Valkey Cluster has, too: it is filled by saves."""

LIMIT, LONGEST = 100, 1000
"""Sessions on a page, and on the pages that are skipped."""

FAR = 1000
"""The number of the far page; the last one where there are fewer."""

RARE = 1000
"""One in so many sessions has the prefix."""

WARMUP, LEAST_PAGES, MOST_PAGES, MOST_SECONDS = 2, 10, 50, 0.5
"""Turns that do not count; when a run ends: after so many turns that do, or, if there were enough, so much time."""

_SPREAD = 48_271
"""A prime: its multiples, modulo the number of sessions, scatter the times of activity over the ids."""


def lists(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int, times: int) -> None:
    """For each kind of list a row for its first page and, where it has more, for a far one.

    times  as many sessions there are as under other loads
    """
    sessions = times * spec.sessions
    one = changed(spec, sessions=1)
    with bench.casting(systems, f"{sessions:,} sessions", one, lambda started: fill(started, sessions)) as cast:
        for kind in _lists(sessions):
            case = f"{sessions:,} sessions, {kind.name}"
            _interleave(bench, case, kind, cast, rounds)
            for system in systems:
                far: RowName = (case, system.name, "far page")
                first: RowName = (case, system.name, "page")
                bench.compare(f"page {kind.far:,} : page 1", far, first, ("p50",))


def lists_of_slots(bench: Bench, clusters: Sequence[ChatStateOnValkey], spec: Spec, rounds: int, times: int) -> None:
    """For each kind of list a row for its first page in these clusters, and on the other stores.

    times  as many sessions there are as under other loads
    """
    sessions = times * spec.sessions
    one = changed(spec, sessions=1)
    base = ChatStateOnPostgres()
    systems = [base, ChatStateOnSQLite(), *clusters]
    with bench.casting(systems, f"{sessions:,} sessions", one, lambda started: fill(started, sessions)) as cast:
        for kind in _SLOTTED:
            case = f"{sessions:,} sessions, {kind.name}"
            _interleave(bench, case, kind, cast, rounds)
            for system in systems[1:]:
                page: RowName = (case, system.name, "page")
                bench.compare("page 1 : PostgreSQL's", page, (case, base.name, "page"), ("p50",))


def _interleave(bench: Bench, case: str, kind: List, cast: Sequence[Started], rounds: int) -> None:
    for number in range(rounds):
        for started in ordered(cast, number):
            _turn(bench, case, kind, started, number)


class List(Struct, frozen=True):
    """A list: what it is called, its query, and the number of its far page."""

    name: str
    query: str
    far: int


_SLOTTED = (
    List("newest first", "", 1),
    List("by id", "&order=id", 1),
    List("by id, prefix of none", "&order=id&prefix=nobody", 1),
)


def _lists(sessions: int) -> list[List]:
    digits = len(str(sessions // RARE)) - 1
    rare = user_session_id(12)[:-digits] if digits else user_session_id(12)
    pages, few = max(1, min(FAR, sessions // LIMIT)), max(1, sessions // RARE // LIMIT)
    prefix = f"prefix of 1 in {RARE:,}"
    return [
        List("newest first", "", pages),
        List("by id", "&order=id", pages),
        List(f"newest first, {prefix}", f"&prefix={rare}", few),
        List(f"by id, {prefix}", f"&order=id&prefix={rare}", few),
    ]


def _turn(bench: Bench, case: str, kind: List, started: Started, number: int) -> None:
    try:
        with closing(Client(started.port)) as client:
            first = f"/chat-state-sessions?limit={LIMIT}{kind.query}"
            paths: dict[Mix, str] = {"page": first}
            if kind.far > 1:
                paths["far page"] = client.find(first, kind.far)
            for mix, figures in client.measure(paths, number).items():
                bench.results.add(PART, case, started.name, mix, figures)
                bench.tell(f"{case}, round {number + 1}: {started.name}: {mix}: {figures.p50:.2f} ms")
    except FAILURES as error:
        bench.failed(started.name, case, error)


class Client:
    """One connection, with one request after another. Raises `RunFailed` for any answer but 200."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), timeout=60)
        self._answer = Answer()

    def close(self) -> None:
        self._socket.close()

    def get(self, path: str) -> bytes:
        """The head of the answer, and perhaps more of it."""
        self._send(request("GET", path))
        return self._answer.head

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)
        while True:
            piece = self._socket.recv(1 << 18)
            if not piece:
                raise RunFailed("the server closed the connection")
            if self._answer.feed(piece):
                break
        if self._answer.status != 200:
            raise RunFailed(self._answer.head[:300].decode(errors="replace"))

    def find(self, path: str, number: int) -> str:
        """The path of the page with this number, counted from 1, of a list whose first page is at `path`."""
        skipped = (number - 1) * LIMIT
        while skipped:
            step = LONGEST if skipped >= LONGEST else LIMIT
            head = self.get(re.sub(r"(?<=[?&]limit=)\d+", str(step), path))
            link = re.search(rb'\r\nlink: <([^>]*)>; rel="next"', head)
            if not link:
                raise RunFailed(f"the list ends {skipped} sessions before page {number}")
            path = link[1].decode()
            skipped -= step
        return re.sub(r"(?<=[?&]limit=)\d+", str(LIMIT), path)

    def measure(self, paths: Mapping[Mix, str], number: int) -> dict[Mix, Figures]:
        """The figures of each of the pages, which are asked for in turn; the first turns do not count."""
        requests = {mix: request("GET", path) for mix, path in paths.items()}
        times = {mix: array("d") for mix in paths}
        ends = perf_counter() + MOST_SECONDS
        for turn in range(-WARMUP, MOST_PAGES):
            for mix, data in requests.items():
                began = perf_counter()
                self._send(data)
                if turn >= 0:
                    times[mix].append(perf_counter() - began)
            if turn + 1 >= LEAST_PAGES and perf_counter() > ends:
                break
        return {mix: _figures(seconds, number) for mix, seconds in times.items()}


def _figures(seconds: array[float], number: int) -> Figures:
    return Figures(round=number, rate=len(seconds) / sum(seconds), requests=len(seconds), loads=latency(seconds))


# --- Many sessions ----------------------------------------------------------------------------------------------------

_COLUMNS = "user_session_id, session_id, chat_state, last_activity, created_at, updated_at"

_POSTGRES = """
INSERT INTO chat_state_sessions ({columns})
SELECT 'session-' || lpad(n::text, 8, '0'), gen_random_uuid(), '{before}' || 100000000000 + n || '{after}',
    activity, activity, activity
FROM (SELECT n, now() - n * {spread} % {sessions} * interval '1 ms' FROM generate_series(0::bigint, {last}) AS n)
    AS made (n, activity)
"""
_SQLITE = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}),
made (n, activity) AS (SELECT n, (unixepoch() * 1000 - n * {spread} % {sessions}) * 1000 FROM numbers)
INSERT INTO chat_state_sessions ({columns}, version)
SELECT printf('session-%08d', n), printf('00000000-0000-4000-8000-%012x', n),
    '{before}' || (100000000000 + n) || '{after}', activity, activity, activity, 1
FROM made
"""


def fill(started: Started, sessions: int) -> None:
    """Make small sessions in the database itself, which takes seconds where saves would take minutes.

    They are those of `bench.apis`; the times of their last activity are a millisecond apart, in an order of chance.
    In a cluster they are saved, one after the other.
    """
    if "Valkey" in started.name:
        write(started, new_sessions(range(sessions)), FILL_BATCH)
        return
    before, after = states(SMALL)[0].split(MARK)
    words = {"columns": _COLUMNS, "before": before, "after": after, "spread": _SPREAD}
    template = _POSTGRES if started.database else _SQLITE
    for word, value in (words | {"sessions": sessions, "last": sessions - 1}).items():
        template = template.replace(f"{{{word}}}", str(value))
    if started.database:
        started.database.execute(template)
    else:
        execute_sqlite(started, "PRAGMA cache_size = -200000", template, "PRAGMA wal_checkpoint(TRUNCATE)")
    started.settle()


def execute_sqlite(started: Started, *statements: str) -> None:
    """Run statements on the file of a chatstate that runs, beside it. Raises `RunFailed`."""
    path = Path(sqlite_url(started.folder).removeprefix("sqlite:///"))
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(5000)
            for statement in statements:
                connection.execute(statement).fetchall()
    except apsw.Error as error:
        raise RunFailed(f"SQLite: {error}") from error
