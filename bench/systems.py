"""What is measured: a system is a server that keeps states under ids, chatstate itself or a peer.

Each system can be prepared (installed, built) once, and run any number of times, each time on an empty database. How a
save and a load look on its wire is an `Api` of `bench.apis`.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import SIGKILL, SIGTERM

from msgspec import Struct

from bench.load import Mix

START_SECONDS = 60.0
END_SECONDS = 20.0


class NotRun(Exception):
    """A system cannot be run on this machine; the message says which tool is missing or what failed."""


class Running(Struct, frozen=True):
    """A server that answers.

    port           on 127.0.0.1
    pid            its first process; its children count as the server, too
    start_seconds  from starting the process to the first answer
    bearers        the credentials that it wants, as `Spec.bearers` says
    """

    port: int
    pid: int
    start_seconds: float
    bearers: tuple[str, ...] = ()


class System(ABC):
    """One row of the table.

    name            how the table calls it
    api             the name of its `Api` in `bench.apis.APIS`
    mixes           what its `Api` can do
    needs_postgres  whether `running` gets the URL of a PostgreSQL database of its own
    """

    name: str
    api: str = "chatstate"
    mixes: Sequence[Mix] = ("save", "load", "half")
    needs_postgres: bool = False

    def prepare(self) -> None:
        """Install and build what it needs, if that was not done yet. Raises `NotRun`."""
        return

    @abstractmethod
    def running(self, folder: Path, database_url: str | None) -> AbstractContextManager[Running]:
        """Start it with its files in the empty `folder`; it is ended, with all its processes, on leaving."""


@contextmanager
def launched(
    arguments: Sequence[str | Path],
    *,
    folder: Path,
    port: int,
    environment: Mapping[str, str],
    ready_path: str,
    ready_statuses: Sequence[int] = (200, 404),
) -> Iterator[Running]:
    """Run a server until leaving; raises `NotRun` with the end of its output when it does not answer.

    Nothing is inherited but the path to programs. Ready is when GET `ready_path` is answered with one of the statuses.
    """
    output = folder / "output"
    started = time.monotonic()
    with output.open("ab") as log:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not _answers(port, ready_path, ready_statuses):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                tail = output.read_text(errors="replace")[-2000:]
                raise NotRun(f"{arguments[0]} did not start; its output ends with\n{tail}")
            time.sleep(0.005)
        yield Running(port, process.pid, time.monotonic() - started)
    finally:
        _end(process)


def _answers(port: int, path: str, statuses: Sequence[int]) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        with suppress(OSError, HTTPException):
            connection.request("GET", path)
            return connection.getresponse().status in statuses
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process leads a session of its own, so that its children end with it."""
    for number in (SIGTERM, SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
