"""The environment of the peers that come from pip: bench/peers/.venv, pinned with hashes in requirements.txt.

It is not the environment of chatstate itself, so that neither can change the other's libraries.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.systems import NotRun

FOLDER = Path(__file__).parent
ENVIRONMENT = FOLDER / ".venv"
REQUIREMENTS = FOLDER / "requirements.txt"
STAMP = ENVIRONMENT / "installed"
"""A copy of the requirements that are installed; written last."""

INSTALL_SECONDS = 900.0


def program(name: str) -> Path:
    """The path of a program of the environment: `python`, `pocketbase`, `kinto`."""
    return ENVIRONMENT / "bin" / name


def prepare() -> None:
    """Make the environment, unless it is there with the very requirements of today.

    Raises `NotRun` with the end of the output when that fails.
    """
    if STAMP.exists() and STAMP.read_bytes() == REQUIREMENTS.read_bytes():
        return
    run(sys.executable, "-m", "venv", "--clear", ENVIRONMENT)
    pip = (program("python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "--require-hashes", "-r", REQUIREMENTS)
    STAMP.write_bytes(REQUIREMENTS.read_bytes())


def run(*arguments: str | Path, folder: Path = FOLDER) -> None:
    """Run a program in `folder` to its end; raises `NotRun` with the end of its output when it fails."""
    command = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRun(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-2000:]
        raise NotRun(f"{' '.join(command)} failed; its output ends with\n{tail}")
