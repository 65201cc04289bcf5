"""The service that chatstate replaces: NestJS (Express) with Prisma on PostgreSQL, as its document describes it.

Its source is nestjs_prisma. A save finds the session and then updates or creates it; DTOs are validated; table and
indexes are the document's. Prisma talks to PostgreSQL by its adapter for `pg`, with the pool that `pg` makes by itself:
up to 10 connections a process. Durability is PostgreSQL's own: an acknowledged save was committed.

Two saves that create one session at the same time end with 500 for one of them, as find-then-create does everywhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bench.peers import environment
from bench.peers.fastapi_sqlalchemy import create_seed_table
from bench.systems import NotRun, Running, System, launched
from tests.servers.ports import free_port

FOLDER = environment.FOLDER / "nestjs_prisma"
SOURCES = ("package.json", "package-lock.json", ".npmrc", "tsconfig.json", "prisma.config.ts", "prisma/*", "src/*.ts")
PROGRAM = FOLDER / "dist" / "main.js"
STAMP = FOLDER / "node_modules" / ".built"
"""The digest of the sources that are installed and built; written last, and removed with the packages by `npm ci`."""

NODE_MINORS = {20: 19, 22: 12}
"""The first minor version of Node.js 20 and 22 that Prisma 7 supports; from 24 on it supports them all."""


class NestPrisma(System):
    """One process, or several by Node's cluster module, which hands connections to them in turn."""

    needs_postgres = True

    def __init__(self, processes: int = 1) -> None:
        self.name = "NestJS + Prisma" + (f", {processes} processes" if processes > 1 else "")
        self._processes = processes

    def prepare(self) -> None:
        """See `System.prepare`."""
        _check_node()
        digest = _digest()
        if PROGRAM.exists() and STAMP.exists() and STAMP.read_text() == digest:
            return
        if not shutil.which("npm"):
            raise NotRun("npm is not installed; it comes with Node.js")
        # The compiler is a development dependency, which NODE_ENV=production in the user's environment would leave out.
        environment.run("npm", "ci", "--include=dev", folder=FOLDER)
        environment.run("npm", "run", "build", folder=FOLDER)
        STAMP.write_text(digest)

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`. The table is made before the start that is timed."""
        assert database_url is not None
        create_seed_table(database_url)
        port = free_port()
        with launched(
            ["node", PROGRAM],
            folder=folder,
            port=port,
            environment={
                "DATABASE_URL": database_url,
                "PORT": str(port),
                "PROCESSES": str(self._processes),
                "NODE_ENV": "production",
            },
            ready_path="/chat-state-sessions/ready",
            ready_statuses=(404,),
        ) as server:
            yield server


def _check_node() -> None:
    """Raises `NotRun` where Node.js is missing or of a version that Prisma does not support."""
    wanted = "Node.js 20.19, 22.12 or 24 and newer"
    node = shutil.which("node")
    if not node:
        raise NotRun(f"node is not installed; install {wanted}")
    version = subprocess.run([node, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    numbers = re.match(r"v(\d+)\.(\d+)\.", version.stdout)
    if not numbers:
        raise NotRun(f"node --version failed: {version.stderr.strip()[-500:]}")
    major, minor = map(int, numbers.groups())
    if major < 24 and not (major in NODE_MINORS and minor >= NODE_MINORS[major]):
        raise NotRun(f"node is {version.stdout.strip()}; install {wanted}")


def _digest() -> str:
    """Of all that the built program is made from."""
    digest = sha256()
    for path in sorted(path for pattern in SOURCES for path in FOLDER.glob(pattern)):
        digest.update(f"{path.relative_to(FOLDER)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
