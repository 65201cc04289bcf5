"""`python -m bench`: run the bench, print its table, and write results.json."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import apsw
import psutil
from msgspec import Struct, json

from bench import peers
from bench.access import access
from bench.chatstate import ROOT, ChatStateOnPostgres, ChatStateOnSQLite, ChatStateServer, HttpAlone
from bench.growth import growth, tuning
from bench.half_open import half_opens
from bench.inbox import inbox
from bench.limits import BATCH, PgBench, fsyncs_per_second
from bench.lists import MANY, MANY_IN_SLOTS, lists, lists_of_slots
from bench.live import live
from bench.load import Mix, Spec
from bench.measure import FAILURES, SETTINGS, Bench, Contestant, Stage, Started, changed
from bench.moving import moving
from bench.report import report
from bench.results import OPEN, STANDARD, Results
from bench.scale import ChatStateOnValkey, scale
from bench.systems import System
from bench.turns import appends, halved, saves, turns
from tests.servers.postgres import wheels

PARTS = (
    *("peers", "limits", "turns", "access", "lists", "half-open", "live", "inbox", "growth", "tuning", "scale"),
    "moving",
)
OPEN_SHARE = 0.7
FEWER = 10
"""How many times as many sessions lists have as other loads, in place of `MANY`, if it has to be quick."""


Chosen = TypeVar("Chosen", bound=System)


class Plan(Struct, frozen=True, kw_only=True):
    """How much is done.

    parts    of `PARTS`
    mixes    of the comparison with peers and limits
    rounds   of the comparison; growth has two
    starts   how often each system is started to see how long that takes
    pgbench  clients, and rows a statement, of each run
    systems  words; a system takes part when its name has one of them, all do without words
    quick    the replaced service is the only peer, there is no open loop, and turns are measured on SQLite alone
    """

    parts: tuple[str, ...] = PARTS
    mixes: tuple[Mix, ...] = ("save", "load", "half")
    rounds: int = 3
    starts: int = 3
    updates: int = 10_000_000
    pgbench: tuple[tuple[int, int], ...] = ((8, 1), (16, 1), (64, 1), (4, BATCH))
    systems: tuple[str, ...] = ()
    quick: bool = False

    def chosen(self, systems: Sequence[Chosen]) -> list[Chosen]:
        """Those of the systems that take part."""
        words = [word.lower() for word in self.systems]
        return [system for system in systems if not words or any(word in system.name.lower() for word in words)]


def perform(bench: Bench, plan: Plan, spec: Spec) -> None:
    """All parts of the plan."""
    if "peers" in plan.parts or "limits" in plan.parts:
        _compare(bench, plan, spec)
    ours = plan.chosen([ChatStateOnPostgres(), ChatStateOnSQLite()])
    if "turns" in plan.parts:
        _turns(bench, plan, spec, ours)
    if "access" in plan.parts:
        access(bench, ours, spec, plan.rounds)
    if "lists" in plan.parts:
        _lists(bench, plan, spec, ours)
    if "half-open" in plan.parts:
        half_opens(bench, ours, spec, plan.rounds)
    if "live" in plan.parts:
        live(bench, ours, plan.rounds)
    if "inbox" in plan.parts:
        inbox(bench, ours, plan.rounds)
    if "moving" in plan.parts:
        moving(bench, spec, plan.rounds)
    if "tuning" in plan.parts:
        tuning(bench, spec, plan.rounds)
    if "scale" in plan.parts:
        scale(bench, plan.chosen(peers.REPLACED[:1]), spec, plan.rounds)
    if "growth" in plan.parts:
        shorter = changed(spec, seconds=0.75 * spec.seconds)
        growth(bench, plan.chosen(peers.REPLACED[:1]), shorter, min(2, plan.rounds), plan.updates)


def _turns(bench: Bench, plan: Plan, spec: Spec, ours: Sequence[ChatStateServer]) -> None:
    if not plan.quick:
        turns(bench, ours, spec, plan.rounds)
        return
    quickest = [system for system in ours if isinstance(system, ChatStateOnSQLite)]
    saves(bench, quickest, halved(spec), plan.rounds, ("save", "conditional"))
    appends(bench, quickest, spec, plan.rounds)


def _lists(bench: Bench, plan: Plan, spec: Spec, ours: Sequence[ChatStateServer]) -> None:
    if plan.quick:
        lists(bench, ours, spec, 1, FEWER)
        return
    lists(bench, ours, spec, plan.rounds, MANY)
    if clusters := plan.chosen([ChatStateOnValkey(1), ChatStateOnValkey(3)]):
        lists_of_slots(bench, clusters, spec, plan.rounds, MANY_IN_SLOTS)


def _compare(bench: Bench, plan: Plan, spec: Spec) -> None:
    """The parts `peers` and `limits`, in the same rounds."""
    systems: list[System] = [ChatStateOnPostgres(), ChatStateOnSQLite()]
    if "peers" in plan.parts:
        systems += peers.REPLACED[:1] if plan.quick else [*peers.REPLACED, *peers.OTHERS]
    if "limits" in plan.parts and not plan.quick:
        systems.append(HttpAlone())
    systems = plan.chosen(systems)
    _start(bench, systems, plan.starts - 1)
    with bench.casting(systems, STANDARD, spec) as cast:
        for started in cast:
            bench.results.fact("peers", f"start, {started.name}", "s", started.start_seconds)
        contestants: list[Contestant] = [*cast, *(_pgbench(cast, plan) if "limits" in plan.parts else ())]

        def closed(_: Contestant, mix: Mix) -> Spec:
            return changed(spec, mix=mix)

        bench.interleave("comparison", STANDARD, contestants, closed, plan.rounds, plan.mixes)
        if not plan.quick:
            _open_loop(bench, plan, spec, cast)
    if "limits" in plan.parts:
        _fsync(bench, plan.rounds)


def _pgbench(cast: Sequence[Started], plan: Plan) -> list[PgBench]:
    chatstate = next((started for started in cast if started.name == ChatStateOnPostgres.name), None)
    return [PgBench(chatstate, clients, batch) for clients, batch in plan.pgbench] if chatstate else []


def _start(bench: Bench, systems: Sequence[System], times: int) -> None:
    """Start each system so many times for nothing but the time that it takes; who can't, is named later on."""
    for number in range(times):
        for system in systems:
            bench.tell(f"start {number + 1}: {system.name}")
            with suppress(*FAILURES), bench.stage.started(system) as started:
                bench.results.fact("peers", f"start, {system.name}", "s", started.start_seconds)


def _open_loop(bench: Bench, plan: Plan, spec: Spec, cast: Sequence[Started]) -> None:
    def at_share(who: Contestant, mix: Mix) -> Spec:
        row = bench.results.find(STANDARD, who.name, mix)
        capacity = row.median("rate") if row else None
        assert capacity is not None
        return changed(spec, mix=mix, loop="open", rate=OPEN_SHARE * capacity)

    for mix in plan.mixes[:2]:
        able = [started for started in cast if bench.results.find(STANDARD, started.name, mix)]
        bench.interleave("comparison", OPEN, able, at_share, plan.rounds, (mix,))


def _fsync(bench: Bench, rounds: int) -> None:
    try:
        folder = bench.stage.postgres.folder
    except FAILURES:
        folder = bench.stage.folder
    for _ in range(rounds):
        bench.results.fact("limits", "fdatasync of 8 KB where the databases lie", "/s", fsyncs_per_second(folder, 1.0))


# --- The machine ------------------------------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, str]:
    """What the bench runs on, for the head of its report."""
    node = shutil.which("node")
    return {
        "machine": f"{os.cpu_count()} cores, {_cpu_model()}, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, databases on {_file_system(folder)}",
        "Python": platform.python_version(),
        "PostgreSQL": _version_of_postgres() + ", " + ", ".join(f"{key} {value}" for key, value in SETTINGS.items()),
        "SQLite": f"{apsw.sqlite_lib_version()} in chatstate",
        "Node.js": _output(node, "--version") if node else "none",
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    """In memory (tmpfs) nothing is synced, and the figures of all databases are worth nothing."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "an unknown file system"


def _version_of_postgres() -> str:
    wheel = next((wheel for wheel in wheels() if wheel.has_lz4), None)
    return _output(str(wheel.bin / "postgres"), "--version").rpartition(" ")[2] if wheel else "none"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stdout.strip()


# --- The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 0, or 130 when it was interrupted (what was measured until then is reported)."""
    given = _parser().parse_args(arguments)
    plan, spec = _plan(given)
    results = Results(date=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))
    results.conditions = _conditions(plan, spec)
    tell, began, status = _teller(), datetime.now(UTC), 0
    try:
        with Stage() as stage:
            results.machine = machine(stage.folder)
            perform(Bench(stage, results, tell), plan, spec)
    except KeyboardInterrupt:
        tell("interrupted; all servers have been ended")
        results.conditions["interrupted"], status = "yes, and so incomplete", 130
    results.conditions["took"] = f"{(datetime.now(UTC) - began).total_seconds():.0f} s"
    tell("")
    results.summarise()
    given.output.write_bytes(json.format(json.encode(results), indent=1) + b"\n")
    print(report(results), end="")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="chatstate, the replaced service and pgbench; 2 minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=(), metavar="PART")
    parser.add_argument(
        "--systems", nargs="+", default=(), metavar="WORD", help="systems with such a word in their name"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="that each run is counted (default 4, quick 2)")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--state-bytes", type=int, default=4096)
    parser.add_argument("--updates", type=int, default=10_000_000, help="of the row on bloat in `growth`")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results.json")
    return parser


def _plan(given: argparse.Namespace) -> tuple[Plan, Spec]:
    seconds: float = given.seconds or (2.0 if given.quick else 4.0)
    spec = Spec(
        port=0,  # each system fills in its own
        connections=given.connections,
        sessions=given.sessions,
        state_bytes=given.state_bytes,
        seconds=seconds,
        warmup=seconds / 4,
    )
    plan = Plan(
        parts=tuple(part for part in given.only if part not in given.skip),
        rounds=given.rounds,
        updates=given.updates,
        systems=tuple(given.systems),
    )
    return (_quick(plan) if given.quick else plan), spec


def _quick(plan: Plan) -> Plan:
    return Plan(
        parts=tuple(part for part in plan.parts if part in ("peers", "limits", "turns", "lists")),
        mixes=("save", "load"),
        rounds=plan.rounds,
        starts=1,
        pgbench=((64, 1),),
        systems=plan.systems,
        quick=True,
    )


def _conditions(plan: Plan, spec: Spec) -> dict[str, str]:
    chosen = f", systems with {' or '.join(plan.systems)} in their names" if plan.systems else ""
    return {
        "parts": ", ".join(plan.parts) + chosen,
        "load": f"{spec.connections} connections, states of {spec.state_bytes} bytes, {spec.sessions:,} sessions",
        "runs": f"{plan.rounds} interleaved rounds of {spec.seconds:g} s after {spec.warmup:g} s of warm-up; medians",
    }


def _teller() -> Callable[[str], None]:
    """Progress on stderr: on a terminal one line that changes, else one line for each case."""
    if not sys.stderr.isatty():
        return lambda text: print(text, file=sys.stderr, flush=True) if text else None

    def tell(text: str) -> None:
        end = "\n" if text.startswith(("FAILED", "not run")) else ""
        line = text.replace("\n", " ")[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a bench that is told to end, ends its servers
    sys.exit(main())
