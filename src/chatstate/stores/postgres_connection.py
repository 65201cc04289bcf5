"""Reaching PostgreSQL: the URL, what the server says about itself, the pool, and the translation of driver errors."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import asyncpg
from msgspec import Struct

from chatstate.errors import (
    InvalidSetting,
    OutcomeUnknown,
    PrivilegeMissing,
    SessionLocked,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnreachable,
    WriteRefused,
)

CONNECT_SECONDS = 10
ACQUIRE_SECONDS = 5
COMMAND_SECONDS = 15
"""How long to wait for a new connection, for a free one, and for one answer of the database."""

_SETTLE_SECONDS = 2
"""How long a connection whose user has failed may take until it is as it was."""

LOCK_MILLISECONDS = 2000
"""How long a statement waits for a row that another program has locked."""

ROLLED_BACK_TRIES = 20
"""How often is tried what the database has rolled back: the pauses between come to a few seconds."""

DEFAULT_POOL_SIZE = 6
"""Two lanes of writes, two of loads, one for everything else, and one that listens for changes."""

_log = logging.getLogger(__name__)

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that the driver raises; a TimeoutError is an OSError."""

_PRISMA_ONLY = {"connect_timeout", "pool_timeout", "socket_timeout", "statement_cache_size", "sslaccept", "sslidentity"}
_LIBPQ_ONLY = {"channel_binding", "keepalives", "keepalives_idle"}
_TARGETS = ("primary", "read-write", "standby", "prefer-standby", "read-only", "any")


Sleep = Callable[[float], Awaitable[object]]
Result = TypeVar("Result")


class Connection(Protocol):
    """What statements need of a connection of the driver."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> Sequence[Any]: ...  # noqa: ASYNC109 (the driver's)

    async def execute(self, query: str) -> object: ...


_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


class PostgresUrl(Struct, frozen=True):
    """What a connection URL says, in PostgreSQL's own words (`dsn`) and in those of Prisma (the rest).

    settings  those of a session that the URL sets, which win over ours
    """

    dsn: str
    schema: str | None
    pool_size: int
    through_pooler: bool
    settings: Mapping[str, str] = {}
    hosts: tuple[tuple[str, int], ...] = ()
    target: str = ""

    @property
    def wants_primary(self) -> bool:
        """Whether it names several hosts, and means the one of them that is the primary (`target_session_attrs`)."""
        return len(self.hosts) > 1 and self.target in ("", "primary", "read-write")

    @property
    def place(self) -> str:
        """Hosts, ports and database, for people: never the password."""
        parts = urlsplit(self.dsn)
        return f"{parts.netloc.rpartition('@')[2] or 'localhost'}/{unquote(parts.path.lstrip('/'))}"


def parse_url(url: str, pool_size: int | None) -> PostgresUrl:
    """Understands `schema`, `connection_limit` and `pgbouncer` as Prisma does: its `.env` works as it stands."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _badly_quoted() from None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1:
        raise _badly_quoted()
    if not all(map(_is_host, hosts)):
        raise _badly_quoted()
    query = dict(parse_qsl(parts.query))
    schema = query.pop("schema", None)
    if schema is not None and any(character in schema for character in "\"'{}\\"):
        raise InvalidSetting(f"The schema {schema!r} in the store URL must not contain quotes, braces or backslashes.")
    limit = query.pop("connection_limit", "")
    if limit and not (limit.isascii() and limit.isdigit() and int(limit)):
        raise InvalidSetting(f"connection_limit={limit} in the store URL must be a number from 1 up.")
    target = query.get("target_session_attrs", "")
    if target and target not in _TARGETS:
        raise InvalidSetting(f"target_session_attrs={target} in the store URL must be one of {', '.join(_TARGETS)}.")
    through_pooler = query.pop("pgbouncer", "false").lower() == "true"
    query = {name: value for name, value in query.items() if name not in _PRISMA_ONLY | _LIBPQ_ONLY}
    return PostgresUrl(
        dsn=f"postgresql://{parts.netloc}{parts.path}?{urlencode(query, quote_via=quote)}",
        schema=schema,
        pool_size=pool_size or int(limit or DEFAULT_POOL_SIZE),
        through_pooler=through_pooler,
        settings={name: value for name, value in query.items() if name in session_settings()},
        hosts=_hosts(parts.netloc.rpartition("@")[2], query),
        target=target,
    )


def _hosts(netloc: str, query: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """The hosts with their ports; libpq has a second way to name them, in the query."""
    ports = query.get("port", "").split(",")
    found = []
    for number, place in enumerate((netloc or query.get("host", "")).split(",")):
        match = _HOST.fullmatch(place)
        port = (match and match[2]) or ports[number if len(ports) > 1 and number < len(ports) else 0]
        address = match[1].strip("[]") if match else place
        found.append((unquote(address) or "localhost", int(port) if port.isdigit() else _PORT))
    return tuple(found)


_PORT = 5432


def _is_host(text: str) -> bool:
    """Whether the text is a name or an address, perhaps with a port."""
    match = _HOST.fullmatch(text)
    return match is not None and int(match[2] or 0) <= 65535


def _badly_quoted() -> InvalidSetting:
    """The message shows nothing of the URL: what was taken for the host may be a part of the password."""
    return InvalidSetting(
        "The store URL cannot be taken apart: postgresql://user:password@host:port/database, where the port is at most "
        "65535. Special characters in the user name or password must be written with %: / as %2F, # as %23, "
        "? as %3F, [ as %5B, @ as %40, : as %3A."
    )


class Facts(Struct, frozen=True):
    """What the server says about itself.

    engine    its name and version
    fsync     None: it has no such setting, as engines that keep their data in another way
    settings  those that each connection is given: those that our statements rely on and that the server knows
    """

    engine: str
    encoding: str
    fsync: bool | None
    synchronous_commit: str
    schema: str
    through_pooler: bool
    settings: Mapping[str, str]


FSYNC = """
CASE WHEN NOT EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_version')
    THEN current_setting('fsync', true)::boolean END
"""
"""What is told of `fsync`: nothing by engines that have no such setting (CockroachDB), or in which it is about no disk
that holds the data (Aurora)."""

_FACTS = f"""
SELECT
    version(), current_setting('server_version'), current_setting('server_encoding'), {FSYNC},
    current_setting('synchronous_commit', true),
    coalesce(
        (SELECT name FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, place)
         WHERE name <> 'chatstate'
         ORDER BY to_regclass(quote_ident(name) || '.chat_state_sessions') IS NULL, place LIMIT 1),
        'public')
"""
"""The last column: the schema of the search path that holds the table, else its first one. Never our own schema, which
stands first in the search path of a user called chatstate."""


Connect = Callable[..., Awaitable[Any]]
"""The driver's `connect`, or that of a `Primary`."""


async def ask_facts(url: PostgresUrl, connect: Connect) -> Facts:
    """Connect once, see whether a transaction pooler stands in between, and ask the server about itself."""
    known = {**session_settings(), **url.settings}
    if url.through_pooler:
        return await _ask(url, connect, True, known)
    try:
        return await _ask(url, connect, False, known)
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):
            raise
        return await _ask(url, connect, True, known)
    except _SETTING_REFUSED:
        return await _ask(url, connect, False, await _known_settings(url, connect, known))


_SETTING_REFUSED = (
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.CantChangeRuntimeParamError,
)
"""What engines say of a setting that they do not have, or not with this value."""


async def _known_settings(url: PostgresUrl, connect: Connect, settings: Mapping[str, str]) -> dict[str, str]:
    """Those of the settings that the server takes. It is asked for each: how it names one that it refuses, it may say
    in its own words."""
    connection = await connect(url.dsn, timeout=CONNECT_SECONDS)
    known = {}
    try:
        for name, value in settings.items():
            with suppress(*_SETTING_REFUSED):
                await connection.execute(f"SET {name} = '{value}'")
                known[name] = value
    finally:
        await connection.close(timeout=CONNECT_SECONDS)
    _log.warning("this database has not all settings that chatstate uses: %s", ", ".join(settings.keys() - known))
    return known


async def _ask(url: PostgresUrl, connect: Connect, through_pooler: bool, settings: Mapping[str, str]) -> Facts:
    options = connection_options(through_pooler, settings)
    connection = await connect(url.dsn, timeout=CONNECT_SECONDS, **options)
    try:
        async with connection.transaction():
            engine, version, encoding, fsync, level, schema = await connection.fetchrow(_FACTS)
    finally:
        await connection.close(timeout=CONNECT_SECONDS)
    if level is not None:
        settings = {**settings, **_durable(level)}
    return Facts(_engine(engine, version), encoding, fsync, level or "", url.schema or schema, through_pooler, settings)


def _engine(engine: str, version: str) -> str:
    """Its name and version: others than PostgreSQL, and those that are made of it, say theirs in `version()` alone."""
    name = engine.partition(" on ")[0]
    return f"PostgreSQL {version}" if name.startswith(f"PostgreSQL {version}") else name.partition(" (")[0]


def session_settings() -> dict[str, str]:
    """The settings that our statements rely on."""
    return {
        "lock_timeout": str(LOCK_MILLISECONDS),
        "default_transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": str(COMMAND_SECONDS * 1000),
        "client_min_messages": "warning",  # there is one that counts: `acquired`
        # A plan that was made while a table was empty reads all of it, and is kept while the table grows.
        "enable_seqscan": "off",
        "jit": "off",
    }


def _durable(synchronous_commit: str) -> dict[str, str]:
    """`off`, as a default of the server, database or role, would lose acknowledged writes. Other levels are named too,
    so that a default that becomes `off` later has no effect here."""
    return {"synchronous_commit": "on" if synchronous_commit == "off" else synchronous_commit}


def connection_options(through_pooler: bool, settings: Mapping[str, str]) -> dict[str, Any]:
    """Times are cast in UTC. A transaction pooler passes on the time zone, and neither settings nor statements."""
    if through_pooler:
        return {"server_settings": {"timezone": "UTC"}, "statement_cache_size": 0}
    return {"server_settings": {"timezone": "UTC", "application_name": "chatstate", **settings}}


_PLAN_SECONDS = 30
"""How long a plan is used. One that was made for a small table does not suit the large one that it may have become."""


async def create_pool(url: PostgresUrl, facts: Facts, connect: Connect) -> asyncpg.Pool[asyncpg.Record]:
    return await asyncpg.create_pool(
        url.dsn,
        connect=connect,
        min_size=0,  # a floor would print a stack trace whenever the database is away
        max_size=url.pool_size,
        timeout=CONNECT_SECONDS,
        command_timeout=COMMAND_SECONDS,
        reset=_leave_as_it_is,
        max_cached_statement_lifetime=_PLAN_SECONDS,
        **connection_options(facts.through_pooler, facts.settings),
    )


async def close_pool(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    """Say goodbye to the database; when it does not answer (in COMMAND_SECONDS), close the connections without it."""
    try:
        await pool.close()
    except DRIVER_ERRORS:
        pool.terminate()


async def _leave_as_it_is(_connection: object) -> None:
    """Our statements leave nothing behind that a reset would clear, and the reset costs a round trip."""


@contextmanager
def unreachable_explained(place: str) -> Iterator[None]:
    """Turns what goes wrong while connecting into a message that says what mends it."""
    try:
        yield
    except asyncpg.InvalidPasswordError as error:
        repair = "The user name or the password in the store URL is wrong; special characters in it are written as %40."
        raise StoreUnreachable(f"PostgreSQL at {place} refused the login. {repair}") from error
    except asyncpg.InvalidCatalogNameError as error:
        name = place.partition("/")[2]
        raise StoreUnreachable(
            f"PostgreSQL at {place} has no database of that name. Create it: createdb {name}"
        ) from error
    except asyncpg.TooManyConnectionsError as error:
        raise StoreUnreachable(f"PostgreSQL at {place} has no free connection. Raise max_connections there.") from error
    except NoPrimary as error:
        repair = "Promote a standby there (SELECT pg_promote()), or name the primary in the store URL."
        raise StoreUnreachable(f"PostgreSQL at {place} has no primary: {error}. {repair}") from error
    except PrivilegeMissing as error:
        raise StoreUnreachable(f"PostgreSQL at {place} cannot be used. {error.message}") from error
    except (*DRIVER_ERRORS, ValueError, StoreError) as error:
        reason = str(error) or type(error).__name__
        repair = "Is it running, and does the store URL name the right host and port?"
        raise StoreUnreachable(f"Cannot reach PostgreSQL at {place}: {reason}. {repair}") from error


_CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


class NoPrimary(ConnectionError):
    """Of several hosts none is the primary; the message says what each of them is."""


class Demoted(StoreUnavailable):
    """The database takes no writes (SQLSTATE 25006): is it a standby, or read-only? Nothing was written; try again."""


class RolledBack(SessionLocked):
    """A deadlock or serialization failure: PostgreSQL has undone the transaction, which may work the next time."""


async def again_when_rolled_back(work: Callable[[], Awaitable[Result]], sleep: Sleep) -> Result:
    """What comes of the work, which is tried again as long as the database has undone all of it, and says so.

    The pauses grow, and each is a random part of its most: those who were in each other's way do not meet again.
    """
    for tried in range(1, ROLLED_BACK_TRIES):
        try:
            return await work()
        except RolledBack:
            await sleep(random.uniform(0, min(0.005 * 2**tried, 0.4)))  # noqa: S311  (no secret)
    return await work()


@contextmanager
def translated(*, in_doubt: bool) -> Iterator[None]:
    """The one place where the driver's errors become ours.

    in_doubt  whether the database may have committed although an error came in place of its answer
    """
    try:
        yield
    except NoPrimary as error:
        raise StoreUnavailable("None of the store URL's hosts is a primary now. Nothing was written.") from error
    except (*_CONNECTION_LOST, asyncpg.StatementCompletionUnknownError) as error:
        raise OutcomeUnknown if in_doubt else StoreUnavailable from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise Demoted from error
    except asyncpg.PostgresError as error:
        raise _translate(error) from error


def _translate(error: asyncpg.PostgresError) -> StoreError:
    """Errors that the database has answered with: it has rolled back. Classes of SQLSTATE: PostgreSQL, appendix A."""
    state = error.sqlstate or ""
    if isinstance(error, asyncpg.LockNotAvailableError):
        return SessionLocked()
    if isinstance(error, asyncpg.DiskFullError):
        return StoreFull()
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return PrivilegeMissing(
            f"The database user lacks a privilege ({error}). Let the owner of the tables GRANT it USAGE on the schema "
            "and SELECT, INSERT, UPDATE, DELETE on chat_state_sessions and on ALL TABLES IN SCHEMA chatstate. "
            "Nothing was written."
        )
    if state in ("40001", "40P01"):  # serialization failure, deadlock
        return RolledBack()
    # Data exception, constraint violation, view's check option, program limit exceeded, and what triggers raise.
    if state[:2] in ("22", "23", "44", "54", "P0"):
        return WriteRefused(f"The store cannot keep this value: SQLSTATE {state}.")
    return StoreUnavailable(f"PostgreSQL cannot carry out the statement (SQLSTATE {state}). Nothing was written.")


_WAITS_FOR_STANDBYS = "SyncRepWaitForLSN"
"""The function of PostgreSQL (syncrep.c) whose warnings say that the wait has ended too early. Their text is translated
(`lc_messages`), and their SQLSTATE is that of any warning; each message names the function that it comes from."""


@asynccontextmanager
async def acquired(pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[Any]:
    """A connection of the pool. Raises `StoreBusy` when none is free in time, `StoreUnavailable` when none is made.

    And raises `OutcomeUnknown` at its end, when PostgreSQL has told of a success on it that it warns of: somebody has
    cancelled the wait for the synchronous standby, and what is committed here is lost if that is promoted.
    """
    with translated(in_doubt=False):
        try:
            connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
        except TimeoutError as error:
            raise StoreBusy(
                f"No connection to the database within {ACQUIRE_SECONDS} s. Nothing was written."
            ) from error
    done = doubtful = False

    def hear(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        nonlocal doubtful  # the driver calls this before it gives the statement's result
        doubtful |= getattr(message, "server_source_function", None) == _WAITS_FOR_STANDBYS

    try:
        with translated(in_doubt=False):
            connection.add_log_listener(hear)
        yield connection
        done = True
    except Demoted:
        # The host was the primary when this connection was made, and those beside it.
        connection.terminate()
        await pool.expire_connections()
        raise
    finally:
        # Whoever waits may be cancelled; the connection must be given back whole all the same.
        await asyncio.shield(_give_back(pool, connection, done, hear))
    if doubtful:
        raise OutcomeUnknown(_NOT_REPLICATED)


_NOT_REPLICATED = (
    "The write is committed, but perhaps on the primary alone: the wait for its synchronous standby was cancelled. "
    "Load before you retry."
)


async def _give_back(pool: asyncpg.Pool[asyncpg.Record], connection: Any, done: bool, listener: object) -> None:
    """A connection that cannot be given back whole is thrown away by the pool; no answer changes by that.

    done  whether all was carried out. The driver has a statement parsed with a Flush, not a Sync (PostgreSQL,
          "Extended Query"): when it goes no further, the locks of that stay until the connection is next used.
    """
    if not done:
        with suppress(*DRIVER_ERRORS):
            await connection.execute("SELECT", timeout=_SETTLE_SECONDS)
    with suppress(*DRIVER_ERRORS):
        connection.remove_log_listener(listener)
    with suppress(*DRIVER_ERRORS):
        await pool.release(connection)
