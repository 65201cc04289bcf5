"""The TypeScript client, with its tools installed from the lock once and for as long as the lock stays the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from tests.servers.process import clean_environment

FOLDER = Path(__file__).parents[2] / "clients" / "typescript"
SECONDS_TO_RUN = 300.0


def run(*command: str, **environment: str) -> str:
    """What this command prints in the client's folder; fails the test with it if the command fails."""
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env=clean_environment(HOME=str(Path.home()), **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_TO_RUN,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _missing() -> str:
    """What of Node.js is missing here; empty if nothing is."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "node or npm is not installed (Debian: apt-get install nodejs npm)"
    version = re.match(r"v(\d+)", run("node", "--version"))
    return "" if version and int(version[1]) >= 20 else "node is older than 20"


@pytest.fixture(scope="session")
def typescript() -> Path:
    """The folder of the client, with `node_modules` as the lock says."""
    if missing := _missing():
        pytest.skip(missing)
    stamp = FOLDER / "node_modules" / ".installed"  # npm ci takes it away with everything else
    wanted = _digest([FOLDER / "package.json", FOLDER / "package-lock.json", FOLDER / ".npmrc"])
    if not stamp.exists() or stamp.read_text() != wanted:
        run("npm", "ci", "--include=dev")
        stamp.write_text(wanted)
    return FOLDER


def _digest(paths: Sequence[Path]) -> str:
    return sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
