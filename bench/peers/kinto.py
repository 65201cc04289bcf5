"""Kinto: JSON records over HTTP with permissions and versions, on PostgreSQL.

A save is PUT of a record, which creates or replaces it; a load is GET. It runs as `kinto start` runs it: waitress, one
process with 4 threads. The cache is in memory, storage and permissions are in PostgreSQL. Everybody may read and write
by configuration, so that no request pays for an account or a look at its permissions; there is no log of requests.
Durability is PostgreSQL's own: an acknowledged save was committed.

Kinto gives every record of a collection a millisecond of its own and answers 409 to a writer who comes second. With one
collection that is a tenth of the saves at 64 connections, so the sessions are spread over many, made after the start.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

from bench.apis import Kinto as KintoApi
from bench.peers import environment
from bench.systems import NotRun, Running, System, launched
from tests.servers.ports import LOOPBACK, free_port

CONFIGURATION = environment.FOLDER / "kinto.ini"


class Kinto(System):
    """One process of it."""

    name = "Kinto"
    api = "kinto"
    needs_postgres = True

    def prepare(self) -> None:
        """See `System.prepare`."""
        environment.prepare()

    @contextmanager
    def running(self, folder: Path, database_url: str | None) -> Iterator[Running]:
        """See `System.running`. Its tables are made before the start that is timed."""
        assert database_url is not None
        configuration = folder / "kinto.ini"
        configuration.write_text(_configured(CONFIGURATION.read_text(), database_url))
        program = environment.program("kinto")
        environment.run(program, "migrate", "--quiet", "--ini", configuration, folder=folder)
        port = free_port()
        with launched(
            [program, "start", "--quiet", "--ini", configuration, "--port", str(port)],
            folder=folder,
            port=port,
            environment={},
            ready_path="/v1/__lbheartbeat__",
            ready_statuses=(200,),
        ) as server:
            api = KintoApi()
            _create(port, [api.bucket, *map(api.collection, range(api.collections))])
            yield server


def _configured(text: str, database_url: str) -> str:
    """Percent signs are doubled, for they name variables in an ini file."""
    text = text.replace("KINTO_DATABASE_URL", database_url.replace("%", "%%"))
    return text.replace("KINTO_SECRET", secrets.token_hex(32))


def _create(port: int, paths: Sequence[str]) -> None:
    with closing(HTTPConnection(LOOPBACK, port, timeout=30)) as connection:
        for path in paths:
            connection.request("PUT", path, body="{}", headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status not in (200, 201):
                raise NotRun(f"Kinto answered PUT {path} with {answer.status}: {body[:500]!r}")
