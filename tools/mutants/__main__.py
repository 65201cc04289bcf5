"""`python -m tools.mutants [file …]`: changes these files of the package, such as `keys.py`, or all of the table below,
in one place at a time, and runs the tests that know them on each change. Prints those that no test noticed.

The tests run in children of this process, which has loaded everything but chatstate already; each child imports the
changed package from a copy in a temporary folder.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.mutants.changes import Change, changes_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "chatstate"
SECONDS = 60.0
AT_ONCE = 2

_ACCESS = ("tests/test_access.py", "tests/http/test_gate.py", "tests/http/test_tokens.py")
_CONDITIONS = ("tests/http/test_conditions.py",)
KILLERS: dict[str, tuple[str, ...]] = {
    "http/conditions.py": _CONDITIONS,
    "http/gate.py": ("tests/http/test_gate.py", "tests/http/test_tokens.py"),
    "http/proxies.py": ("tests/http/test_gate.py",),
    "http/browsers.py": ("tests/http/test_gate.py", "tests/http/test_browsers.py"),
    "http/tokens.py": ("tests/http/test_tokens.py", "tests/http/test_gate.py", "tests/http/test_not_theirs.py"),
    "http/links.py": ("tests/http/test_links.py",),
    "links.py": ("tests/test_links.py", "tests/http/test_links.py"),
    "keys.py": ("tests/test_keys.py", "tests/test_access.py"),
    "tokens.py": ("tests/http/test_tokens.py", "tests/test_access.py"),
    "access.py": _ACCESS,
    "rates.py": ("tests/test_rates.py",),
    "live.py": ("tests/test_live.py",),
    "records.py": ("tests/test_records.py", "tests/test_keys.py"),
}
"""The tests that know a file, the likeliest first. They must be fast: they run hundreds of times."""

_FASTEST = "not postgres and not ASGI"


class Report(NamedTuple):
    """How a file came out."""

    file: str
    changes: int
    survivors: list[Change]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("files", nargs="*", help="paths below src/chatstate")
    files = [name.removeprefix("src/chatstate/") for name in parser.parse_args().files] or list(KILLERS)
    reports = [_report(file) for file in files]
    print(f"\n{'file':24} {'changes':>8} {'noticed':>8}")
    for report in reports:
        noticed = 1 - len(report.survivors) / max(report.changes, 1)
        print(f"{report.file:24} {report.changes:8} {noticed:8.1%}")
    return 0


def _report(file: str) -> Report:
    source = (PACKAGE / file).read_text(encoding="utf-8")
    changes = list(changes_of(source))
    if not list(_survivors(file, [Change(source, 0, "", "")])):
        sys.exit(f"The tests of {file} fail without any change: pytest {' '.join(KILLERS[file])}")
    survivors = sorted(_survivors(file, changes), key=lambda change: change.line)
    for change in survivors:
        print(f"src/chatstate/{file}:{change}", flush=True)
    return Report(file, len(changes), survivors)


def _survivors(file: str, changes: Sequence[Change]) -> Iterator[Change]:
    """Those that no test noticed; `AT_ONCE` are tried at a time, each in a copy of the package of its own."""
    with tempfile.TemporaryDirectory() as folder:
        free = [_copy(Path(folder) / str(number), file) for number in range(AT_ONCE)]
        running: dict[int, tuple[Path, Change, float]] = {}
        waiting = list(reversed(changes))
        while waiting or running:
            while waiting and free:
                place, change = free.pop(), waiting.pop()
                (place / "chatstate" / file).write_text(change.source, encoding="utf-8")
                running[_started(place, file)] = (place, change, time.monotonic())
            for pid, (_, change, began) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    free.append(running.pop(pid)[0])
                    if status == 0:
                        yield change
                elif time.monotonic() - began > SECONDS:
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.01)


def _copy(place: Path, file: str) -> Path:
    """A copy of the package, compiled but for the file that will change."""
    shutil.copytree(PACKAGE, place / "chatstate", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(place, quiet=1)
    for compiled in (place / "chatstate" / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
        compiled.unlink()
    return place


def _started(place: Path, file: str) -> int:
    """The process that runs the tests; it ends with 0 when they all pass."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = _run_tests(place, file)
    finally:
        os._exit(status)  # nothing of the parent's is cleared away here


def _run_tests(place: Path, file: str) -> int:
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(place)]
    os.environ["PYTHONPATH"] = str(place)
    options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-k", _FASTEST, f"--basetemp={place}/tests"]
    return pytest.main([*options, *KILLERS[file]])


if __name__ == "__main__":
    os.chdir(ROOT)
    for name in [name for name in sys.modules if name.partition(".")[0] == "chatstate"]:
        del sys.modules[name]
    import apsw  # noqa: F401
    import asyncpg  # noqa: F401
    import httpx  # noqa: F401
    import hypothesis.strategies  # noqa: F401
    import jsonpatch  # noqa: F401
    import jwt  # noqa: F401
    import msgspec  # noqa: F401
    import pytest_asyncio  # noqa: F401
    import uvicorn  # noqa: F401

    sys.exit(main())
