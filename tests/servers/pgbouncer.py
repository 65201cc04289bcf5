"""PgBouncer in transaction pooling mode before a test server: each transaction may run on another server connection."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from .ports import at_port
from .postgres import LocalServer, PostgresServer

# `ignore_startup_parameters` stays empty on purpose: a client that sends parameters which PgBouncer does not know, such
# as `extra_float_digits` or `search_path`, is refused here as it would be by a production pooler with default settings.
_CONFIGURATION = """
[databases]
* = host={server.host} port={server.port}

[pgbouncer]
listen_addr = {pooler.host}
listen_port = {pooler.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
ignore_startup_parameters =
; a server that was just restarted is tried again at once, instead of after 15 s
server_login_retry = 0.1
; a client that holds a server connection too long fails its test in 10 s, instead of 120 s
query_wait_timeout = 10
"""
_PREPARED_STATEMENTS_SINCE = (1, 21)


class PgBouncer(LocalServer):
    """A pooler before one PostgresServer, with its user and password, on 127.0.0.1; a context manager."""

    def __init__(self, server: PostgresServer, pool_size: int = 4) -> None:
        """Start it, with up to `pool_size` server connections per database; raises ServerFailed, FileNotFoundError."""
        binary = self.find()
        if binary is None:
            raise FileNotFoundError("pgbouncer is not installed; `apt-get install pgbouncer` brings it")
        super().__init__("pgbouncer")
        self._server = server
        try:
            self._launch(binary, self._write_configuration(binary, pool_size))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def find() -> Path | None:
        """The `pgbouncer` program, or None where it is not installed."""
        # Debian puts it into /usr/sbin, which is not on every user's PATH.
        found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
        return Path(found) if found else None

    def url(self, database: str, **query: str) -> str:
        """`postgresql://user:password@host:port/database?query` through the pooler."""
        return at_port(self._server.url(database, **query), self.port)

    def _write_configuration(self, binary: Path, pool_size: int) -> Path:
        # The password in plain text, because PgBouncer needs it itself to log in with SCRAM.
        users = self._write("users", f'"{self._server.user}" "{self._server.password}"\n')
        text = _CONFIGURATION.format(server=self._server, pooler=self, users=users, pool_size=pool_size)
        if _version(binary) >= _PREPARED_STATEMENTS_SINCE:
            text += "max_prepared_statements = 0\n"  # newer versions carry them over; the tests want the strict pooler
        return self._write("pgbouncer.ini", text)

    def _ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def _end(self) -> None:
        if self._process is not None:
            # The gentler signals change their meaning between versions, and it has nothing to save.
            self._process.send_signal(signal.SIGKILL)
            self._await_end()


def _version(binary: Path) -> tuple[int, ...]:
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", output)
    return tuple(int(number) for number in found.groups()) if found else (0,)
