"""Power that fails: what a process has written and not synced is gone from its files, and it is watched what that is.

    with SyncWatch(node.pid, folder) as watch:
        ...
        node.kill()
    watch.cut_power(rng)

`strace` follows the process's calls, so what is known is what the system was asked, not what a disk has done with it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Self

from .postgres import ServerFailed, poll_until

_ATTACH_SECONDS = 10.0
_CALL = re.compile(r"^(\w+)\(\d+<([^>]*)>.* = (\d+)$")
_CALLS = "write,writev,pwrite64,fsync,fdatasync,ftruncate"


class SyncWatch:
    """Follows what a process writes to its files, and syncs, until it ends; a context manager.

    It has to begin while nothing is written. Raises ServerFailed where the process may not be followed.
    """

    def __init__(self, pid: int, output: Path) -> None:
        self._output = output / f"strace-{pid}"
        self._log = output / f"strace-{pid}.log"
        self._pid = pid
        self._strace: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Whether `strace` is installed."""
        return shutil.which("strace") is not None

    def __enter__(self) -> Self:
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-e",
            f"trace={_CALLS}",
            "-o",
            str(self._output),
            "-p",
            str(self._pid),
        ]
        with self._log.open("wb") as log:
            self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        if not poll_until(lambda: "attached" in self._told or not self._runs, _ATTACH_SECONDS) or not self._runs:
            self.__exit__()
            raise ServerFailed(f"strace does not follow {self._pid}: {self._told}")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._strace is not None
        if os.path.exists(f"/proc/{self._pid}"):
            self._strace.terminate()  # it lets go of the process; else it ends by itself
        self._strace.wait(_ATTACH_SECONDS)

    def cut_power(self, rng: random.Random) -> dict[str, int]:
        """Take from the end of each file what was not synced, or a part of it, as after a power failure; how many
        bytes that was, by name. After the process has ended."""
        lost = {}
        for path, unsynced in self._unsynced().items():
            if unsynced:
                lost[path.name] = rng.randint(1, unsynced)
                os.truncate(path, path.stat().st_size - lost[path.name])
        return lost

    @property
    def _told(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _runs(self) -> bool:
        return self._strace is not None and self._strace.poll() is None

    def _unsynced(self) -> dict[Path, int]:
        """How many bytes at its end each file has that were not synced."""
        unsynced: dict[Path, int] = defaultdict(int)
        for call, path, result in self._calls():
            if call.endswith("sync"):
                unsynced[path] = 0
            else:
                unsynced[path] += result
        return {path: number for path, number in unsynced.items() if path.is_file()}

    def _calls(self) -> list[tuple[str, Path, int]]:
        """Each completed call on a file in order of its end: its name, the file and what it returned."""
        begun: dict[str, str] = {}
        found = []
        for line in self._output.read_text(errors="replace").splitlines():
            thread, _, call = line.partition(" ")
            call = call.strip()
            if call.endswith("<unfinished ...>"):
                begun[thread] = call.removesuffix("<unfinished ...>").rstrip()
                continue
            if call.startswith("<... "):
                call = begun.pop(thread, "") + call.partition("resumed>")[2]
            if (match := _CALL.match(call)) and match[2].startswith("/"):
                found.append((match[1], Path(match[2]), int(match[3])))
        return found
