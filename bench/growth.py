"""How it goes on: with larger states, more sessions, more connections, after many updates; and with a tuned table."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import uvloop
from msgspec import Struct

from bench.apis import user_session_id
from bench.chatstate import ChatStateOnPostgres, ChatStateOnSQLite, sqlite_url
from bench.load import Mix, Spec
from bench.measure import FAILURES, Bench, Started, changed
from bench.requests import MARK, states
from bench.systems import System
from chatstate.model import Save, utc_now
from chatstate.stores import create_store

SIZES = (4 << 10, 64 << 10, 256 << 10, 1 << 20)
CONNECTIONS = (1, 16, 64, 512)
SESSIONS = (10_000, 1_000_000)
SMALL = 200
"""Bytes of a state where there are many sessions, or many updates."""

MOST_BYTES = 256 << 20
"""Of all states together; where states are large, there are fewer sessions."""

BATCH, FILL_BATCH = 64, 4096
MIXES: tuple[Mix, ...] = ("save", "load")


class Variant(Struct, frozen=True):
    """The table, changed by statements that are run between `migrate` and the first session."""

    name: str
    sql: tuple[str, ...] = ()


_TABLE = "ALTER TABLE chat_state_sessions"
_ACTIVITY = "idx_chat_state_sessions_last_activity"

VARIANTS = (
    Variant("as migrated"),
    Variant("without toast_tuple_target 2900", (f"{_TABLE} RESET (toast_tuple_target)",)),
    Variant(
        "the same with pglz",
        (f"{_TABLE} RESET (toast_tuple_target)", f"{_TABLE} ALTER COLUMN chat_state SET COMPRESSION pglz"),
    ),
    Variant(
        "the same with the index doubled: the seed",
        (
            f"{_TABLE} RESET (toast_tuple_target)",
            f"{_TABLE} ALTER COLUMN chat_state SET COMPRESSION pglz",
            "CREATE INDEX doubled ON chat_state_sessions (user_session_id)",
        ),
    ),
    Variant("toast_tuple_target 3900", (f"{_TABLE} SET (toast_tuple_target = 3900)",)),
    Variant("fillfactor 80", (f"{_TABLE} SET (fillfactor = 80)",)),
    Variant("no compression", (f"{_TABLE} ALTER COLUMN chat_state SET STORAGE EXTERNAL",)),
    Variant("no index on last_activity, fillfactor 50", (f"DROP INDEX {_ACTIVITY}", f"{_TABLE} SET (fillfactor = 50)")),
)
"""What `tuning` compares with the first."""


def growth(bench: Bench, peers: Sequence[System], spec: Spec, rounds: int, updates: int) -> None:
    """All rows of the part; sizes and connections with the peers beside, too."""
    ours: list[System] = [ChatStateOnPostgres(), ChatStateOnSQLite()]
    for size in SIZES:
        _size(bench, [*ours, *peers], changed(spec, state_bytes=size), rounds)
    _connections(bench, [*ours, *peers], spec, rounds)
    _sessions(bench, ours, changed(spec, state_bytes=SMALL), rounds)
    _updates(bench, ours, changed(spec, state_bytes=SMALL), rounds, updates)


def tuning(bench: Bench, spec: Spec, rounds: int) -> None:
    """A row for each variant of the table."""
    case = "table"
    systems = {variant.name: variant for variant in VARIANTS}

    def before_fill(started: Started) -> None:
        assert started.database
        started.database.execute(*systems[started.name].sql)

    with bench.casting([ChatStateOnPostgres(variant.name) for variant in VARIANTS], case, spec, before_fill) as cast:
        bench.interleave("tuning", case, cast, lambda _, mix: changed(spec, mix=mix), rounds, MIXES)


def _size(bench: Bench, systems: Sequence[System], spec: Spec, rounds: int) -> None:
    sessions = min(spec.sessions, MOST_BYTES // spec.state_bytes)
    spec = changed(spec, sessions=sessions)
    size = spec.state_bytes
    case = f"states of {size >> 20} MB" if size >= 1 << 20 else f"states of {size >> 10} KB"
    with bench.casting(systems, case, spec) as cast:
        bench.interleave("growth", case, cast, lambda _, mix: changed(spec, mix=mix), rounds, MIXES)


def _connections(bench: Bench, systems: Sequence[System], spec: Spec, rounds: int) -> None:
    with bench.casting(systems, "connections", spec) as cast:
        for number in CONNECTIONS:
            case = f"{number} connection{'s' * (number > 1)}"
            wider = changed(spec, connections=number)
            _again(bench, cast, case, wider, rounds)


def _sessions(bench: Bench, systems: Sequence[System], spec: Spec, rounds: int) -> None:
    few, many = (f"{number:,} sessions of {SMALL} bytes" for number in SESSIONS)
    with bench.casting(systems, few, changed(spec, sessions=SESSIONS[0])) as cast:
        _again(bench, cast, few, changed(spec, sessions=SESSIONS[0]), rounds)
        for started in list(cast):
            bench.tell(f"{many}: creating them: {started.name}")
            _write_or_leave(bench, cast, started, many, new_sessions(range(*SESSIONS)), FILL_BATCH)
        _again(bench, cast, many, changed(spec, sessions=SESSIONS[1]), rounds)


def _updates(bench: Bench, systems: Sequence[System], spec: Spec, rounds: int, updates: int) -> None:
    before, after = (f"{when} {updates:,} updates" for when in ("before", "after"))
    with bench.casting(systems, before, spec) as cast:
        _again(bench, cast, before, spec, rounds)
        for started in list(cast):
            bench.results.fact("growth", f"table {before}, {started.name}", "MB", table_mb(started))
            bench.tell(f"{after}: {started.name}")
            _write_or_leave(bench, cast, started, after, _updated(spec.sessions, updates), BATCH)
            bench.results.fact("growth", f"table {after}, {started.name}", "MB", table_mb(started))
        _again(bench, cast, after, spec, rounds)


def _again(bench: Bench, cast: Sequence[Started], case: str, spec: Spec, rounds: int) -> None:
    bench.interleave("growth", case, cast, lambda _, mix: changed(spec, mix=mix), rounds, MIXES)


def _write_or_leave(
    bench: Bench, cast: list[Started], started: Started, case: str, writes: Iterator[Save], batch: int
) -> None:
    try:
        write(started, writes, batch)
    except FAILURES as error:
        bench.failed(started.name, case, error)
        cast.remove(started)


def store_url(started: Started) -> str:
    """The store of a chatstate that runs."""
    if (told := started.folder / "url").exists():  # a cluster of its own
        return told.read_text()
    return started.database.url if started.database else sqlite_url(started.folder)


def table_mb(started: Started) -> float:
    """The table with its indexes and its large values, or the file with its log, in MB."""
    if started.database:
        return float(started.database.value("SELECT pg_total_relation_size('chat_state_sessions')")) / 1e6
    path = Path(store_url(started).removeprefix("sqlite:///"))
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


def write(started: Started, writes: Iterable[Save], batch: int) -> None:
    """Commit the writes straight through the store, beside the server, which has nothing to do meanwhile.

    The writes of `batch` neighbours must be to distinct ids. Raises the store's errors.
    """
    uvloop.run(_write(store_url(started), _batches(writes, batch)))
    started.settle()


async def _write(url: str, batches: Iterator[list[Save]]) -> None:
    store = create_store(
        url, owner=False, allow_unsafe=url.startswith("valkey")
    )  # voters of the bench have no replicas
    await store.open()

    async def lane() -> None:
        for batch in batches:  # all lanes take from the same
            for outcome in await store.commit(batch):
                if isinstance(outcome, Exception):
                    raise outcome

    lanes = [asyncio.create_task(lane()) for _ in range(store.write_lanes)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.wait(lanes)
        await store.close()


def _batches(writes: Iterable[Save], batch: int) -> Iterator[list[Save]]:
    collected: list[Save] = []
    for save in writes:
        collected.append(save)
        if len(collected) == batch:
            yield collected
            collected = []
    if collected:
        yield collected


def new_sessions(numbers: Iterable[int], state_bytes: int = SMALL) -> Iterator[Save]:
    """With ids of these numbers."""
    texts = states(state_bytes)
    for number in numbers:
        yield _save(number, texts[number % len(texts)].replace(MARK, f"{number:012d}"))


def _updated(sessions: int, updates: int) -> Iterator[Save]:
    """Each session about equally often, in an order of chance, and no session twice within a batch."""
    dice, texts = random.Random(1), states(SMALL)
    numbers = list(range(sessions))
    done = 0
    while done < updates:
        dice.shuffle(numbers)
        for number in numbers[: (min(sessions, updates - done) // BATCH or 1) * BATCH]:
            yield _save(number, texts[done % len(texts)].replace(MARK, f"{done:012d}"))
            done += 1


def _save(number: int, state: str) -> Save:
    now = utc_now()
    return Save(
        user_session_id=user_session_id(number),
        new_session_id=str(UUID(int=number)),
        chat_state=state,
        last_activity=now,
        now=now,
    )
