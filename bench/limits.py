"""The limits: what PostgreSQL, HTTP and the disk give by themselves.

pgbench runs the very statement with which chatstate upserts, on the very table and database of the chatstate that is
measured in the same rounds. Everything that chatstate sends as parameters is sent here, too: the state is a variable of
pgbench, and in its prepared mode variables go to the server as parameters, as text. pgbench cannot make texts, so a
random number is sent beside the state, and the statement puts it where a state has its counter: no two saves are equal.
The ids are random; pgbench has their numbers only, and the statement makes the ids. The times are the server's own and
so always new, which the index on them has to bear as it does with chatstate. This costs the server a few microseconds a
row. One script is used, because every client would plan every further one anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from bench.load import Mix, Spec
from bench.measure import Database, RunFailed, Started, ended
from bench.requests import MARK, states
from bench.results import Figures
from chatstate.stores import postgres_sessions
from chatstate.stores.postgres_schema import Schema
from tests.servers.postgres import database_of

STATES = 16
BATCH = 64
PAGE = b"\0" * 8192
MOST_SECONDS = 8


class PgBench:
    """pgbench on the database of a chatstate that is running; a transaction is one statement of `batch` rows.

    `rate` counts rows. pgbench gives the average latency only, so the figures have none.
    """

    mixes: Sequence[Mix] = ("save",)

    def __init__(self, chatstate: Started, clients: int, batch: int = 1) -> None:
        assert chatstate.database is not None
        self._started, self._database = chatstate, chatstate.database
        self._clients, self._batch = clients, batch
        self.name = f"pgbench, {clients} clients" + (f", {batch} rows" if batch > 1 else "")

    def measure(self, spec: Spec, number: int = 0) -> Figures:
        """See `bench.measure.Contestant`. The warm-up has the connections made and the caches filled."""
        self._database.checkpoint()
        account = self._database.server.account
        folder = account.new_folder("chatstate-pgbench-")
        try:
            arguments = self._arguments(folder, spec)
            self._run([*arguments, "-T", str(max(1, round(spec.warmup)))], folder)
            tree = self._database.tree
            seconds = max(1, round(spec.seconds))
            while True:
                cpu, began = tree.cpu_seconds(), monotonic()
                output = self._run([*arguments, "-T", str(seconds)], folder)
                if _done(output) != 0 or seconds > MOST_SECONDS:
                    return self._figures(output, number, tree.cpu_seconds() - cpu, monotonic() - began)
                seconds *= 2  # they ran while it connected its clients, one after the other
        finally:
            _remove(folder)
            self._started.settle()

    def _arguments(self, folder: Path, spec: Spec) -> list[str]:
        server = self._database.server
        pieces = [text.split(MARK) for text in states(spec.state_bytes)[:STATES]]
        variables = [f"-Dstate{index}={after}" for index, (_, after) in enumerate(pieces)]
        path = folder / "upsert.sql"
        path.write_text(script(statement(self._database), pieces[0][0], self._batch, spec.sessions))
        server.account.give(path)
        parts = urlsplit(self._database.url)
        address = ["-h", str(parts.hostname), "-p", str(parts.port), "-U", str(parts.username)]
        load = ["-n", "-M", "prepared", "-j", "1", "-c", str(self._clients)]
        return [
            str(server.wheel.bin / "pgbench"),
            *address,
            *load,
            *variables,
            "-f",
            str(path),
            database_of(self._database.url),
        ]

    def _run(self, arguments: list[str], folder: Path) -> str:
        server = self._database.server
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(f"*:*:*:*:{server.password}\n")
        server.account.give(password)
        command = ["/usr/bin/env", f"PGPASSFILE={password}", *arguments]
        with ended(server.account.start(command, folder, subprocess.DEVNULL, subprocess.PIPE)) as process:
            output = process.communicate(timeout=120)[0].decode(errors="replace")
            if process.returncode:
                raise RunFailed(f"pgbench failed: {output[-1000:]}")
            return output

    def _figures(self, output: str, number: int, cpu_seconds: float, seconds: float) -> Figures:
        rate = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
        done = _done(output)
        lost = re.search(r"^number of failed transactions: (\d+)", output, re.MULTILINE)
        if not rate or done is None:
            raise RunFailed(f"pgbench printed no rate after {seconds:.1f} s: {output[-1000:]}")
        rows = done * self._batch
        return Figures(
            round=number,
            rate=float(rate[1]) * self._batch,
            requests=rows,
            errors=int(lost[1]) if lost else 0,
            example="failed transactions of pgbench" if lost and int(lost[1]) else "",
            database_cpu_us=1e6 * cpu_seconds / rows if rows else None,
        )


def _done(output: str) -> int | None:
    """How many transactions pgbench says that it has done."""
    done = re.search(r"^number of transactions actually processed: (\d+)", output, re.MULTILINE)
    return int(done[1]) if done else None


def statement(database: Database) -> str:
    """chatstate's upsert, fitted to its table as chatstate does it."""
    type_ = database.value(
        "SELECT format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = 'public.chat_state_sessions'::regclass AND attname = 'session_id'"
    )
    return postgres_sessions.statement(Schema("public", type_), "upsert")


def script(upsert: str, before: str, batch: int, sessions: int) -> str:
    """A script of pgbench that upserts `batch` rows whose ids are random, distinct and in order.

    A state is `before` (the same for all), a random number, and the variable `state0`, `state1`, … . The parameters of
    the statement are recognised by the names that it gives them: AS w (user_session_id, …). The first two are the time
    and, as long as nothing expires by itself, nothing.
    """
    step = sessions // batch
    numbers = [f"\\set n{row} random({row * step}, {(row + 1) * step - 1})" for row in range(batch)]
    numbers += [f"\\set t random({10**11}, {10**12 - 1})"]
    values: Mapping[str, list[str]] = {
        "user_session_id": [f"'session-' || lpad(:n{row}::text, 8, '0')" for row in range(batch)],
        "session_id": ["gen_random_uuid()::text"] * batch,
        "chat_state": [f"'{before}' || :t::text || :state{row % STATES}::text" for row in range(batch)],
        "last_activity": ["now()::text"] * batch,
        "now": ["now()::text"] * batch,
        "expires_in": ["NULL"] * batch,
    }
    match = re.search(r"AS w \(([^)]*)\)", upsert)
    if not match:
        raise RunFailed("the upsert names its parameters no more, as AS w (user_session_id, …)")
    names = [name.strip() for name in match[1].split(",")]
    if not values.keys() >= set(names):
        raise RunFailed(f"the upsert has parameters that the bench does not know: {names}")
    text = re.sub(r"--[^\n]*", "", upsert)
    text = text.replace("$1::text", "now()::text").replace("$2::text", "NULL::text")
    columns = iter(names)
    text = re.sub(r"\$\d+(::\w+\[\])", lambda found: f"ARRAY[{', '.join(values[next(columns)])}]{found[1]}", text)
    return "\n".join([*numbers, " ".join(text.split()) + ";", ""])


def fsyncs_per_second(folder: Path, seconds: float) -> float:
    """How often a second 8 KB, appended to a file in the folder, get to the disk, one after the other."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        done, began = 0, monotonic()
        while monotonic() - began < seconds:
            os.write(file.fileno(), PAGE)
            os.fdatasync(file.fileno())
            done += 1
        return done / (monotonic() - began)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
