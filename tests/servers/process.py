"""chatstate as a process of its own, as people run it: started, killed, ended and started again.

    with ServerProcess("sqlite:///chatstate.db", folder) as server:
        httpx.get(f"{server.base_url}/healthz")
        server.kill()
        server.restart()

Starting and ending block the calling thread; call them with `asyncio.to_thread` where an event loop has to go on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Self

from .canaries import look_through
from .ports import LOOPBACK, free_port
from .postgres import ServerFailed, poll_until

START_SECONDS = 30.0
END_SECONDS = 20.0

PROGRAM = (sys.executable, "-m", "chatstate")


def clean_environment(**variables: str) -> dict[str, str]:
    """An environment with nothing of the person who runs the tests but the path to programs."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **variables}


class ServerProcess:
    """`chatstate serve` in `folder`, from when it answers until it is ended; a context manager that always ends it.

    program      what to run in place of `python -m chatstate`
    command      `serve`, or nothing for the bare program
    arguments    further flags
    environment  variables; nothing else is inherited
    """

    def __init__(
        self,
        store_url: str,
        folder: Path,
        *,
        program: Sequence[str] = PROGRAM,
        command: Sequence[str] = ("serve",),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.start_seconds = 0.0
        self._program, self._command, self._arguments = tuple(program), tuple(command), tuple(arguments)
        # The URL may hold a password, which a command line would show to everybody.
        self._environment = clean_environment(**{"CHATSTATE_STORE": store_url, **(environment or {})})
        self._output = folder / "chatstate.output"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for _ in range(3):
            try:
                return self._start()
            except ServerFailed:
                # Somebody else was quicker with the port; later starts keep theirs, because URLs were given out.
                if f"Port {self.port} is taken" not in self.output:
                    raise
                self.port = free_port()
        return self._start()

    def __exit__(self, *error: object) -> None:
        self.kill()
        look_through("the output of chatstate serve", self.output)

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def output(self) -> str:
        """Everything that the process, and those before it, have printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: Signals) -> None:
        """Send a signal and do not wait for what it does."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """The exit code; raises ServerFailed when the process goes on for longer."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"chatstate did not end within {seconds} s; it printed\n{self.output}") from None

    def kill(self) -> None:
        """SIGKILL; may be called when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def terminate(self, number: Signals = SIGTERM, seconds: float = END_SECONDS) -> int:
        """Ask it to end; the exit code. Raises ServerFailed when it goes on for longer."""
        self.send(number)
        return self.wait(seconds)

    def restart(self) -> None:
        """Start it again on the same store and port, after it was killed or has ended."""
        assert not self.running
        self._start()

    def _start(self) -> Self:
        started = time.monotonic()
        arguments = ("--port", str(self.port), *self._arguments)
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._program, *self._command, *arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # out of reach of a Ctrl+C on the tests' terminal
            )
        poll_until(lambda: self.answers() or not self.running, START_SECONDS)
        if not self.running or not self.answers():
            self.kill()
            raise ServerFailed(f"chatstate did not start on port {self.port}; it printed\n{self.output}")
        self.start_seconds = time.monotonic() - started
        return self

    def answers(self, path: str = "/healthz") -> bool:
        """Whether it answers this GET with 200."""
        with closing(HTTPConnection(LOOPBACK, self.port, timeout=END_SECONDS)) as connection:
            with suppress(OSError, HTTPException):
                connection.request("GET", path)
                return connection.getresponse().status == 200
            return False
