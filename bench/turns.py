"""What it costs not to lose a turn, each time beside what it is compared with, in the same rounds.

Conditional saves, saves with an idempotency key, and a history are compared with plain saves of the same states; the
append of a message to a large state with a save of it as a whole; and SQLite's table with the same one without the
index by activity, which lists need and saves have to keep up.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.chatstate import ChatStateOnSQLite, ChatStateServer
from bench.growth import MOST_BYTES, SMALL
from bench.lists import MANY, execute_sqlite, fill
from bench.load import Mix, Spec
from bench.measure import FAILURES, Bench, Started, changed
from bench.results import RowName

PART = "turns"
ALIKE = ("rate", "cpu_us", "p50")

DEAREST_CONDITION = 1.15
DEAREST_APPEND = 1.6
MOST_WIRE = 0.02
"""The floors: how many times what a plain save costs a conditional one may cost, and an append that of a whole save."""

TIMES_LARGE = 64
"""How many times as large as the others the states are to which messages are appended."""

HISTORY = 10
MOST_WITH_HISTORY = 2000
"""Sessions, so that each has all of its versions before it is measured."""

WITHOUT_INDEX = "chatstate, SQLite, without the index"


def turns(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int) -> None:
    """All rows of the part. The ratios near to one get more rounds, and shorter ones."""
    saves(bench, systems, halved(spec), 2 * rounds, ("save", "conditional", "keyed"))
    appends(bench, systems, spec, rounds)
    _history(bench, systems, halved(spec), rounds)
    if any(isinstance(system, ChatStateOnSQLite) for system in systems):
        _index(bench, halved(spec), rounds)


def halved(spec: Spec) -> Spec:
    """Half as long."""
    return changed(spec, seconds=0.5 * spec.seconds, warmup=0.5 * spec.warmup)


def saves(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int, mixes: Sequence[Mix]) -> None:
    """Conditional saves, and with idempotency keys, beside plain ones."""
    case = "saves and their conditions"
    with bench.casting(systems, case, spec) as cast:
        bench.interleave(PART, case, cast, lambda _, mix: changed(spec, mix=mix), rounds, mixes)
    floors = dict.fromkeys(("rate", "cpu_us"), DEAREST_CONDITION)
    for system in systems:
        plain: RowName = (case, system.name, "save")
        bench.compare("conditional save : save", (case, system.name, "conditional"), plain, ALIKE, floors)
        if "keyed" in mixes:
            bench.compare("with an idempotency key : save", (case, system.name, "keyed"), plain, ALIKE)


def appends(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int) -> None:
    """The append of a message to a large state beside a save of it as a whole, which makes it what it was."""
    size = TIMES_LARGE * spec.state_bytes
    case = f"states of {size >> 10} KB, patched"
    spec = changed(spec, state_bytes=size, sessions=min(spec.sessions, MOST_BYTES // size))
    with bench.casting(systems, case, spec) as cast:
        bench.interleave(PART, case, cast, lambda _, mix: changed(spec, mix=mix), rounds, ("save", "append"))
    what = f"append to {size >> 10} KB : save of the whole"
    floors = {"cpu_us": DEAREST_APPEND, "wire_bytes": MOST_WIRE}
    for system in systems:
        whole: RowName = (case, system.name, "save")
        bench.compare(what, (case, system.name, "append"), whole, (*ALIKE, "wire_bytes"), floors)


def _history(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int) -> None:
    case = f"a history of {HISTORY}"
    spec = changed(spec, sessions=min(spec.sessions, MOST_WITH_HISTORY))
    pairs = {f"{system.name}, history": system for system in systems}
    keeping = [type(system)(name, "--history", str(HISTORY)) for name, system in pairs.items()]
    with bench.casting([*systems, *keeping], case, spec) as cast:
        for started in [started for started in cast if started.name in pairs]:
            bench.tell(f"{case}: making the versions: {started.name}")
            try:
                for _ in range(HISTORY):
                    started.fill(spec)
            except FAILURES as error:
                bench.failed(started.name, case, error)
                cast.remove(started)
        bench.interleave(PART, case, cast, lambda _, mix: changed(spec, mix=mix), rounds, ("save",))
    for name, system in pairs.items():
        bench.compare(f"with {case} : save", (case, name, "save"), (case, system.name, "save"), ALIKE)


def _index(bench: Bench, spec: Spec, rounds: int) -> None:
    """Of few sessions, made by saves, and of many small ones, made in the file itself."""
    systems = [ChatStateOnSQLite(), ChatStateOnSQLite(WITHOUT_INDEX)]

    def leave_out(started: Started) -> None:
        if started.name == WITHOUT_INDEX:
            execute_sqlite(started, "DROP INDEX chat_state_sessions_last_activity")

    few = f"index : none, {spec.sessions:,} × {spec.state_bytes} bytes"
    with bench.casting(systems, few, spec, leave_out) as cast:
        _save_with_index(bench, few, cast, spec, rounds)
    spec = changed(spec, sessions=MANY * spec.sessions, state_bytes=SMALL)
    many = f"index : none, {spec.sessions:,} × {spec.state_bytes} bytes"

    def fill_in(started: Started) -> None:
        leave_out(started)
        fill(started, spec.sessions)

    with bench.casting(systems, many, changed(spec, sessions=1), fill_in) as cast:
        _save_with_index(bench, many, cast, spec, rounds)


def _save_with_index(bench: Bench, case: str, cast: Sequence[Started], spec: Spec, rounds: int) -> None:
    bench.interleave(PART, case, cast, lambda _, mix: changed(spec, mix=mix), rounds, ("save",))
    without: RowName = (case, WITHOUT_INDEX, "save")
    bench.compare(case, (case, ChatStateOnSQLite.name, "save"), without, ALIKE)
