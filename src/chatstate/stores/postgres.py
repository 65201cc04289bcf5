"""The PostgreSQL store: the table of the service that chatstate replaces, shared with whoever else writes to it.

A batch is one statement for each kind of write in it. A batch of one kind, the usual case, commits by itself in one
round trip; a mixed one is a transaction that first locks its rows in the order of their ids, as every statement does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from chatstate.errors import (
    OutcomeUnknown,
    SchemaMismatch,
    SessionLocked,
    StoreError,
    StoreUnavailable,
    StoreUnreachable,
)
from chatstate.model import Conflict, Delete, Deleted, Expect, Save, Session, Tag, Write
from chatstate.stores import sql
from chatstate.stores.base import Outcome, Store, StoreStatus, Verb, verb_for
from chatstate.stores.postgres_connection import (
    Facts,
    RolledBack,
    acquired,
    ask_facts,
    close_pool,
    create_pool,
    parse_url,
    session_settings,
    translated,
    unreachable_explained,
)
from chatstate.stores.postgres_schema import inspect, migrate, script

_STATEMENTS = ("load", "tags", "lock", "upsert", "insert", "update", "delete")

_TRIES = 5
"""How often a batch is tried that a deadlock has undone, or that other writers have overtaken."""

_CHANGED_BY_TRIGGER = "A trigger of the database has dropped this write or changed its id. Load before you retry."


class PostgresStore(Store):
    """Sessions in the table `chat_state_sessions` of the database that the URL names."""

    def __init__(self, url: str, pool_size: int | None = None, allow_unsafe: bool = False) -> None:
        self._url = parse_url(url, pool_size)
        self._allow_unsafe = allow_unsafe
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._facts: Facts  # known once the store is open
        self._sql: dict[str, str] = {}
        self._begin = "BEGIN"

    async def open(self) -> None:
        with unreachable_explained(self._url.place):
            facts = await ask_facts(self._url)
        self._check(facts)
        with unreachable_explained(self._url.place):
            self._pool = await create_pool(self._url, facts)
        self._facts = facts
        if facts.through_pooler:
            settings = session_settings(facts.synchronous_commit).items()
            self._begin = "BEGIN; " + "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in settings)
        try:
            with unreachable_explained(self._url.place):
                await self._prepare()
        except BaseException:
            await self.close()
            raise

    def _check(self, facts: Facts) -> None:
        if facts.encoding != "UTF8":
            raise SchemaMismatch(
                f"The database's encoding is {facts.encoding}, which cannot keep every text. Make one that can, "
                "and move the rows with pg_dump: CREATE DATABASE chatstate ENCODING 'UTF8' TEMPLATE template0;"
            )
        if not facts.fsync and not self._allow_unsafe:
            raise StoreUnreachable(
                "PostgreSQL runs with fsync=off: a crash of its machine loses acknowledged writes. Turn fsync on, or "
                "accept the loss: chatstate serve --allow-unsafe-durability"
            )

    async def _prepare(self) -> None:
        """Fit the statements to the table as it is; without a table there are none."""
        async with self._reading() as connection:
            schema = await inspect(connection, self._facts.schema)
        self._sql = {name: schema.fill(sql.statement("postgres", name)) for name in _STATEMENTS} if schema else {}

    async def close(self) -> None:
        if self._pool:
            pool, self._pool = self._pool, None
            await close_pool(pool)

    async def migrate(self) -> list[str]:
        async with acquired(self._open_pool) as connection:
            applied = await migrate(connection, self._facts.schema)
        await self._prepare()
        return applied

    def migration_sql(self) -> str:
        return script(self._url.schema or "public", sql.migrations("postgres"))

    async def status(self) -> StoreStatus:
        async with self._reading() as connection:
            await connection.fetch(self._statement("tags"), [])  # the table is there, and we may read it
            fsync, level, read_only = await connection.fetchrow(
                "SELECT current_setting('fsync')::boolean, current_setting('synchronous_commit'), "
                "current_setting('transaction_read_only')::boolean"
            )
        if read_only:
            raise StoreUnavailable("The database takes no writes (transaction_read_only is on; is it a standby?).")
        pooler = " through a transaction pooler" if self._facts.through_pooler else ""
        return StoreStatus(
            store=f"PostgreSQL {self._facts.version} at {self._url.place}{pooler}", durability=_durability(fsync, level)
        )

    async def load(self, ids: Sequence[str]) -> dict[str, Session]:
        async with self._reading() as connection:
            rows = await connection.fetch(self._statement("load"), ids)
        return {row[1]: Session(*row) for row in rows}

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        ordered = sorted(writes, key=lambda write: write.user_session_id)
        outcomes = await self._attempt(ordered, {}) if ordered else {}
        for write in ordered:
            if _was_overtaken(write, outcomes[write.user_session_id]):
                await self._catch_up(write, outcomes)
        return [outcomes[write.user_session_id] for write in writes]

    async def _catch_up(self, write: Write, outcomes: dict[str, Outcome]) -> None:
        """Try a write again, alone, when another writer came between its comparison and our look at the loser."""
        for _ in range(_TRIES):
            try:
                outcomes |= await self._attempt([write], outcomes)
            except StoreError as error:  # the others have their outcomes already
                outcomes[write.user_session_id] = error
            if not _was_overtaken(write, outcomes[write.user_session_id]):
                return
        outcomes[write.user_session_id] = SessionLocked()

    async def _attempt(self, writes: Sequence[Write], earlier: dict[str, Outcome]) -> dict[str, Outcome]:
        """Try the writes, in the order of their ids, knowing what earlier attempts have run into."""
        groups: dict[Verb, list[Write]] = {}
        for write in writes:
            verb = verb_for(write, known_absent=earlier.get(write.user_session_id) == Conflict(None))
            groups.setdefault(verb, []).append(write)
        for _ in range(_TRIES):
            with suppress(RolledBack):
                return await self._run(groups)
        raise RolledBack

    async def _run(self, groups: dict[Verb, list[Write]]) -> dict[str, Outcome]:
        several = len(groups) > 1
        outcomes: dict[str, Outcome] = {}
        ids = [write.user_session_id for group in groups.values() for write in group]
        async with (
            acquired(self._open_pool) as connection,
            self._unit(connection, several or self._facts.through_pooler),
        ):
            if several:
                await connection.fetch(self._statement("lock"), ids)
            for verb, group in groups.items():
                rows = await connection.fetch(self._statement(verb), *_columns(verb, group))
                outcomes |= _outcomes(group, rows)
        outcomes |= {
            write.user_session_id: OutcomeUnknown(_CHANGED_BY_TRIGGER)
            for write in groups.get("upsert", ())  # an upsert gives a row, unless a foreign trigger is in its way
            if write.user_session_id not in outcomes
        }
        losers = [user_session_id for user_session_id in ids if user_session_id not in outcomes]
        return outcomes | (await self._conflicts(losers) if losers else {})

    async def _conflicts(self, ids: list[str]) -> dict[str, Outcome]:
        try:
            async with self._reading() as connection:
                rows = await connection.fetch(self._statement("tags"), ids)
        except StoreError as error:
            return dict.fromkeys(ids, error)
        current = {row[0]: Tag(row[1], row[2]) for row in rows}
        return {user_session_id: Conflict(current.get(user_session_id)) for user_session_id in ids}

    @asynccontextmanager
    async def _unit(self, connection: Any, explicit: bool, in_doubt: bool = True) -> AsyncIterator[None]:
        """All or nothing: a transaction, or the one statement inside, which is a transaction by itself.

        in_doubt  whether a lost connection leaves in doubt if something was committed (for reads, nothing ever is)
        """
        if not explicit:
            with translated(in_doubt=in_doubt):
                yield
            return
        with translated(in_doubt=False):
            await connection.execute(self._begin)
            try:
                yield
            except BaseException:
                with suppress(Exception):  # a connection that cannot roll back is thrown away by the pool
                    await connection.execute("ROLLBACK")
                raise
        with translated(in_doubt=in_doubt):
            await connection.execute("COMMIT")

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Any]:
        # Through a transaction pooler only a transaction keeps two messages of one statement on one connection.
        async with (
            acquired(self._open_pool) as connection,
            self._unit(connection, self._facts.through_pooler, in_doubt=False),
        ):
            yield connection

    @property
    def _open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        if not self._pool:
            raise StoreUnavailable("The store is not open.")
        return self._pool

    def _statement(self, name: str) -> str:
        if not self._sql:
            raise StoreUnavailable("The database has no tables for chatstate yet. Make them with: chatstate migrate")
        return self._sql[name]


def _durability(fsync: bool, level: str) -> str:
    if not fsync:
        return "UNSAFE: fsync=off, a crash of the database's machine loses acknowledged writes."
    return f"An acknowledged write has been synced to the database's disk (synchronous_commit={level})."


def _was_overtaken(write: Write, outcome: Outcome) -> bool:
    """Whether the write found what it does not expect, but a moment later what it does."""
    return isinstance(outcome, Conflict) and write.expect.allows(outcome.current)


def _outcomes(group: Sequence[Write], rows: Sequence[Any]) -> dict[str, Outcome]:
    """What became of the writes for which the statement gave a row. A foreign trigger may have changed a row's id."""
    by_id = {write.user_session_id: write for write in group}
    return {row[1]: _outcome(by_id[row[1]], row) for row in rows if row[1] in by_id}


def _outcome(write: Write, row: Any) -> Outcome:
    if not isinstance(write, Save):
        return Deleted(Tag(row[0], row[2]))
    session_id, user_session_id, kept_state, *rest = row
    return Session(session_id, user_session_id, kept_state if write.chat_state is None else write.chat_state, *rest)


def _columns(verb: Verb, writes: Sequence[Any]) -> list[list[Any]]:
    """The parameters of the statement: for each one a column with the values of all writes."""
    return [list(column) for column in zip(*(_ROWS[verb](write) for write in writes), strict=True)]


# Times go as text: the driver would turn the first and the last moment of the calendar into infinities.


def _inserted(write: Save) -> tuple[Any, ...]:
    times = (write.last_activity.isoformat(), write.now.isoformat())
    return (write.user_session_id, write.new_session_id, write.chat_state, *times)


def _updated(write: Save) -> tuple[Any, ...]:
    times = (write.last_activity.isoformat(), write.now.isoformat())
    return (write.user_session_id, write.chat_state, *times, *_tags(write.expect))


def _deleted(write: Delete) -> tuple[Any, ...]:
    return (write.user_session_id, *_tags(write.expect))


def _tags(expect: Expect) -> tuple[str | None, str]:
    """`only` and `unless` as lines of tags; None for no restriction."""
    return None if expect.only is None else "\n".join(map(str, expect.only)), "\n".join(map(str, expect.unless))


_ROWS: dict[Verb, Callable[[Any], tuple[Any, ...]]] = {
    "upsert": _inserted,
    "insert": _inserted,
    "update": _updated,
    "delete": _deleted,
}
