"""The PostgreSQL store: the table of the service that chatstate replaces, shared with whoever else writes to it.

A batch is one statement for each kind of write in it. A batch of one kind, the usual case, commits by itself in one
round trip; a mixed one is a transaction that first locks its rows in the order of their ids, as every statement does.
So is one with idempotency keys, which looks first what it remembers of them, and remembers them at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import asyncpg

from chatstate.errors import (
    OutcomeUnknown,
    SchemaMismatch,
    SessionLocked,
    StoreError,
    StoreUnavailable,
    StoreUnreachable,
)
from chatstate.mailbox import DueQuery, InboxQuery, MailWrite, OutboxQuery, Settled
from chatstate.model import (
    EARLIEST,
    KEEP,
    Conflict,
    Delete,
    Deleted,
    Remembered,
    RememberedQuery,
    ReplayQuery,
    Retention,
    Rewrite,
    Save,
    Session,
    SessionQuery,
    StoredQuery,
    Summary,
    Swept,
    Tag,
    Tagged,
    TagQuery,
    Version,
    VersionQuery,
    Write,
)
from chatstate.record import RecordQuery, RecordWrite
from chatstate.row import RowCount, RowQuery, RowWrite
from chatstate.stores import postgres_mailbox, postgres_records, postgres_rows, postgres_stored, postgres_visits, sql
from chatstate.stores import postgres_sessions as sessions
from chatstate.stores.base import AnyWrite, Outcome, Query, Reader, Row, Store, StoreStatus, Verb, verb_for
from chatstate.stores.feed import Changed, Feed
from chatstate.stores.postgres_connection import (
    FSYNC,
    Connection,
    Facts,
    RolledBack,
    Sleep,
    acquired,
    again_when_rolled_back,
    ask_facts,
    close_pool,
    create_pool,
    parse_url,
    translated,
    unreachable_explained,
)
from chatstate.stores.postgres_hints import PostgresHints
from chatstate.stores.postgres_primary import Primary
from chatstate.stores.postgres_schema import Schema, inspect, migrate, script
from chatstate.stores.postgres_sessions import moment, parameters
from chatstate.stores.replies import Sealing, Written
from chatstate.visit import UserSessionQuery, VisitQuery, VisitWrite

_TRIES = 5
"""How often a write is tried that other writers have overtaken."""

Result = TypeVar("Result")

_CHANGED_BY_TRIGGER = "A trigger of the database has dropped this write or changed its id. Load before you retry."


class PostgresStore(Store):
    """Sessions in the table `chat_state_sessions` of the database that the URL names.

    sleep  how the pauses pass before what the database has rolled back is tried again
    """

    def __init__(
        self, url: str, pool_size: int | None = None, allow_unsafe: bool = False, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._url = parse_url(url, pool_size)
        self._allow_unsafe = allow_unsafe
        self._sleep = sleep
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._facts: Facts  # known once the store is open
        self._schema: Schema | None = None  # none without a table
        self._begin = "BEGIN"
        self._hints = PostgresHints()
        self._primary = Primary(self._url)

    async def open(self) -> None:
        try:
            await self._connect()
            with unreachable_explained(self._url.place):
                await self._prepare()
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        with unreachable_explained(self._url.place):
            facts = await ask_facts(self._url, self._primary.connect)
        self._check(facts)
        with unreachable_explained(self._url.place):
            self._pool = await create_pool(self._url, facts, self._primary.connect)
        self._primary.watch()
        self._facts = facts
        if facts.through_pooler:
            settings = facts.settings.items()
            self._begin = "BEGIN; " + "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in settings)

    def _check(self, facts: Facts) -> None:
        if facts.encoding != "UTF8":
            raise SchemaMismatch(
                f"The database's encoding is {facts.encoding}, which cannot keep every text. Make one that can, "
                "and move the rows with pg_dump: CREATE DATABASE chatstate ENCODING 'UTF8' TEMPLATE template0;"
            )
        if facts.fsync is False and not self._allow_unsafe:
            raise StoreUnreachable(
                "PostgreSQL runs with fsync=off: a crash of its machine loses acknowledged writes. Turn fsync on, or "
                "accept the loss: chatstate serve --allow-unsafe-durability"
            )

    async def _prepare(self) -> None:
        """Look at the table as it is."""
        self._schema = await self._read(lambda connection: inspect(connection, self._facts.schema))

    async def close(self) -> None:
        await self._hints.close()
        if self._pool:
            pool, self._pool = self._pool, None
            await close_pool(pool)
        await self._primary.close()

    async def migrate(self) -> list[str]:
        async with acquired(self._open_pool) as connection:
            applied = await migrate(connection, self._facts.schema, self._sleep)
        await self._prepare()
        return applied

    def migration_sql(self) -> str:
        return script(self._url.schema or "public", sql.migrations("postgres"))

    async def status(self) -> StoreStatus:
        fsync, level, standbys, read_only = await self._read(self._ask_status)
        if read_only:
            raise StoreUnavailable("The database takes no writes (transaction_read_only is on; is it a standby?).")
        pooler = " through a transaction pooler" if self._facts.through_pooler else ""
        return StoreStatus(
            store=f"{self._facts.engine} at {self._url.place}{pooler}", durability=_durability(fsync, level, standbys)
        )

    async def _ask_status(self, connection: Connection) -> Any:
        # The table is there, and we may read it.
        await connection.fetch(self._statement("tags"), *moment(EARLIEST, KEEP), [])
        (row,) = await connection.fetch(
            f"SELECT {FSYNC}, current_setting('synchronous_commit', true), "
            "coalesce(current_setting('synchronous_standby_names', true), '') <> '', "
            "current_setting('transaction_read_only')::boolean"
        )
        return row

    async def load(self, ids: Sequence[str], now: datetime, retention: Retention = KEEP) -> dict[str, Session]:
        statement, given = self._statement("load"), (*moment(now, retention), ids)
        rows = await self._read(lambda connection: connection.fetch(statement, *given))
        return {row[1]: Session(*row) for row in rows}

    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        return await self._hints.after(writes, self._committed(writes, retention))

    async def _committed(self, writes: Sequence[AnyWrite], retention: Retention) -> list[Outcome]:
        kinds: dict[Any, Callable[[Sequence[Any]], Awaitable[list[Outcome]]]] = {
            Write: lambda some: self._commit_sessions(some, retention),
            VisitWrite: self._commit_visits,
            RecordWrite: self._commit_records,
            MailWrite: self._commit_mail,
            Rewrite: self._rewrite,
            RowWrite: self._commit_rows,
        }
        for kind, commit in kinds.items():
            if all(isinstance(write, kind) for write in writes):
                return await commit(writes)
        outcomes = {Write: iter(await kinds.pop(Write)([write for write in writes if isinstance(write, Write)]))}
        # Those are done: from here on, what goes wrong with a write is that write's outcome.
        for kind, commit in kinds.items():
            alone = [await self._alone(commit([write])) for write in writes if isinstance(write, kind)]
            outcomes[kind] = iter(alone)
        return [next(done) for write in writes for kind, done in outcomes.items() if isinstance(write, kind)]

    async def _commit_visits(self, writes: Sequence[VisitWrite]) -> list[Outcome]:
        several = postgres_visits.needs_several_statements(writes)
        return await self._tried(several, lambda on: postgres_visits.apply_visits(on, self._table, writes))

    async def _commit_records(self, writes: Sequence[RecordWrite]) -> list[Outcome]:
        several = len(writes) > 1
        return await self._tried(several, lambda on: postgres_records.apply_records(on, self._table, writes))

    async def _commit_mail(self, writes: Sequence[MailWrite]) -> list[Outcome]:
        return await self._tried(True, lambda on: postgres_mailbox.apply_mail(on, self._table, writes))

    async def _rewrite(self, writes: Sequence[Rewrite]) -> list[Outcome]:
        return await self._tried(True, lambda on: postgres_stored.rewrite(on, self._table, writes))

    async def _commit_rows(self, writes: Sequence[RowWrite]) -> list[Outcome]:
        return await self._tried(True, lambda on: postgres_rows.apply_rows(on, self._table, writes))

    async def _tried(
        self, explicit: bool, apply: Callable[[Connection], Awaitable[Sequence[Outcome]]]
    ) -> list[Outcome]:
        """What comes of writes on one connection; again, when the database has undone them.

        explicit  whether they are several statements
        """

        async def once() -> list[Outcome]:
            async with (
                acquired(self._open_pool) as connection,
                self._unit(connection, explicit or self._facts.through_pooler),
            ):
                return [*await apply(connection)]

        return await self._again(once)

    async def _alone(self, commit: Awaitable[list[Outcome]]) -> Outcome:
        """What becomes of the one write that is committed."""
        try:
            return (await commit)[0]
        except StoreError as error:
            return error

    async def _commit_sessions(self, writes: Sequence[Write], retention: Retention) -> list[Outcome]:
        ordered = sorted(writes, key=lambda write: write.user_session_id)
        outcomes = await self._attempt(ordered, {}, retention) if ordered else {}
        for write in ordered:
            if _was_overtaken(write, outcomes[write.user_session_id]):
                await self._catch_up(write, outcomes, retention)
        return [outcomes[write.user_session_id] for write in writes]

    async def _catch_up(self, write: Write, outcomes: dict[str, Outcome], retention: Retention) -> None:
        """Try a write again, alone, when another writer came between its comparison and our look at the loser."""
        for _ in range(_TRIES):
            try:
                outcomes |= await self._attempt([write], outcomes, retention)
            except StoreError as error:  # the others have their outcomes already
                outcomes[write.user_session_id] = error
            if not _was_overtaken(write, outcomes[write.user_session_id]):
                return
        outcomes[write.user_session_id] = SessionLocked()

    async def _attempt(
        self, writes: Sequence[Write], earlier: dict[str, Outcome], retention: Retention
    ) -> dict[str, Outcome]:
        """Try the writes, in the order of their ids, knowing what earlier attempts have run into."""
        return await self._again(lambda: self._run(writes, earlier, retention))

    async def _run(
        self, writes: Sequence[Write], earlier: dict[str, Outcome], retention: Retention
    ) -> dict[str, Outcome]:
        groups = _by_verb(writes, earlier)
        keyed = [write for write in writes if write.once]
        settling = [write for write in writes if isinstance(write, Save) and write.settles]
        erasing = [write.erases for write in writes if isinstance(write, Delete) and write.erases]
        several = len(groups) > 1
        async with (
            acquired(self._open_pool) as connection,
            self._unit(connection, several or bool(keyed or settling or erasing) or self._facts.through_pooler),
        ):
            outcomes = await self._settled_before(connection, settling)
            if erasing:
                await postgres_mailbox.lock(connection, self._table, erasing)
            if several:
                await connection.fetch(self._statement("lock"), [write.user_session_id for write in writes])
            outcomes |= await self._replays(connection, keyed)
            for verb, group in groups.items():
                left = [write for write in group if write.user_session_id not in outcomes]
                if left:
                    rows = await connection.fetch(
                        self._statement(verb, retention.history), *parameters(verb, left, retention)
                    )
                    outcomes |= sessions.outcomes(left, rows)
            await self._remember(connection, keyed, outcomes)
            await self._settle(connection, settling, outcomes)
            for erase in erasing:
                if isinstance(outcomes.get(erase.user_session_id), Deleted):
                    await postgres_mailbox.erase(connection, self._table, erase)
        outcomes |= {
            write.user_session_id: OutcomeUnknown(_CHANGED_BY_TRIGGER)
            for write in groups.get("upsert", ())  # an upsert gives a row, unless a foreign trigger is in its way
            if write.user_session_id not in outcomes
        }
        losers = [write for write in writes if write.user_session_id not in outcomes]
        return outcomes | (await self._conflicts(losers, retention) if losers else {})

    async def _replays(self, connection: Any, keyed: Sequence[Write]) -> dict[str, Outcome]:
        """What is remembered of these writes."""
        if not keyed:
            return {}
        rows = await connection.fetch(self._statement("recall"), *sessions.recalled(keyed))
        return {row[0]: sessions.replay(row) for row in rows}

    async def _remember(self, connection: Any, keyed: Sequence[Write], outcomes: dict[str, Outcome]) -> None:
        """Raises `RolledBack` when another server has been faster with the same key: the next try replays its write."""
        found = [(write, outcomes.get(write.user_session_id)) for write in keyed]
        done = [(write, outcome) for write, outcome in found if isinstance(outcome, Session | Deleted)]
        if done:
            rows = await connection.fetch(self._statement("remember"), *sessions.remembered(done))
            if len(rows) < len(done):
                raise RolledBack

    async def _settled_before(self, connection: Any, settling: Sequence[Save]) -> dict[str, Outcome]:
        """Those of the writes whose messages are done already; the others' messages are locked."""
        if not settling:
            return {}
        settles = [write.settles for write in settling if write.settles]
        still_open = await postgres_mailbox.open_keys(connection, self._table, settles)
        return {
            write.user_session_id: Settled(False)
            for write in settling
            if write.settles and write.settles.key not in still_open
        }

    async def _settle(self, connection: Any, settling: Sequence[Save], outcomes: dict[str, Outcome]) -> None:
        done = [
            write.settles
            for write in settling
            if write.settles and isinstance(outcomes.get(write.user_session_id), Session)
        ]
        if done:
            await postgres_mailbox.settle(connection, self._table, done)

    async def _conflicts(self, losers: Sequence[Write], retention: Retention) -> dict[str, Outcome]:
        """What the writes that changed nothing have run into; perhaps a duplicate of themselves."""
        ids = [write.user_session_id for write in losers]
        shown = [write.user_session_id for write in losers if isinstance(write, Save) and write.show_current]
        when = moment(max(write.now for write in losers), retention)

        async def look(connection: Connection) -> tuple[dict[str, Outcome], Sequence[Any], Sequence[Any]]:
            replays = await self._replays(connection, [write for write in losers if write.once])
            loaded = await connection.fetch(self._statement("load"), *when, shown) if shown else []
            rows = await connection.fetch(self._statement("tags"), *when, ids) if len(shown) < len(ids) else []
            return replays, loaded, rows

        try:
            replays, loaded, rows = await self._read(look)
        except StoreError as error:
            return dict.fromkeys(ids, error)
        found = {row[0]: Conflict(Tag(row[1], row[2])) for row in rows}
        found |= {row[1]: Conflict(Tag(row[0], row[6]), Session(*row)) for row in loaded}
        return {user_session_id: found.get(user_session_id, Conflict(None)) for user_session_id in ids} | replays

    async def list(self, query: Query) -> Sequence[Row]:
        return await self._read(lambda connection: self._list(connection, query))

    async def _list(self, connection: Any, query: Query) -> Sequence[Row]:
        if type(query) in _LISTS:
            return await _LISTS[type(query)](connection, self._table, query)
        statement, given, read = self._listing(query)
        return [read(row) for row in await connection.fetch(statement, *given)]

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Reader]:
        begin = self._begin.replace("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", 1)
        async with acquired(self._open_pool) as connection:
            with translated(in_doubt=False):
                # Between two pages there may be a long time: whoever takes them writes them somewhere.
                await connection.execute(f"{begin}; SET LOCAL idle_in_transaction_session_timeout = 0; SELECT 1")
            try:
                yield _Snapshot(partial(self._list, connection))
            finally:
                with suppress(Exception):  # a connection that cannot roll back is thrown away by the pool
                    await connection.execute("ROLLBACK")

    def _listing(self, query: Query) -> tuple[str, Sequence[Any], Callable[[Any], Row]]:
        """The statement, its parameters, and what makes a row of one of the database."""
        if isinstance(query, SessionQuery):
            statement, given = sessions.listing(self._table, query)
            return statement, given, (lambda row: Session(*row)) if query.with_state else (lambda row: Summary(*row))
        if isinstance(query, TagQuery):
            given = [*moment(query.now, query.retention), query.ids]
            return self._statement("tags"), given, lambda row: Tagged(row[0], Tag(row[1], row[2]))
        if isinstance(query, VersionQuery):
            return self._statement("versions"), sessions.versions(query), lambda row: Version(*row)
        if isinstance(query, RememberedQuery):
            given = [query.user_session_id, query.now.isoformat()]
            return self._statement("remembered"), given, lambda row: Remembered(*row)
        assert isinstance(query, ReplayQuery)
        return self._statement("recall"), sessions.recalled([query]), sessions.replay

    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        # LISTEN is for a connection that is one's own, and the only one that there may be is not.
        if not self._facts.through_pooler and self._url.pool_size > 1:
            self._hints.listen(partial(acquired, self._open_pool), self._facts.schema)
        return self._hints.feed(changed, written, sealing)

    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        if after is None and not self._table.finds_expired:
            await self._look_for_indexes()
        return await self._again(lambda: self._sweep(now, retention, after, limit))

    async def _sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        async with acquired(self._open_pool) as connection, self._unit(connection, self._facts.through_pooler):
            ends = {"sweep_keys": now, "sweep_records": now}
            if kept_since := retention.visits_since(now):
                ends["sweep_visits"] = kept_since
            others = [
                len(await connection.fetch(self._statement(name), end.isoformat(), limit)) for name, end in ends.items()
            ]
            for statement, given in postgres_mailbox.sweeps(self._table, now, retention):
                others.append(len(await connection.fetch(statement, *given, limit)))
            removed: list[Any] = []
            if self._table.finds_expired:
                removed = await connection.fetch(self._statement("sweep"), now.isoformat(), limit)
            more = limit in (len(removed), *others)
            if retention.idle is None and self._table.finds_expired:
                return Swept(len(removed), "" if more else None)
            ((count, last, seen),) = await connection.fetch(
                self._statement("sweep_page"), *moment(now, retention), after or "", limit
            )
        if seen < limit:
            last = (last or after or "") if more else None
        return Swept(len(removed) + count, last)

    async def _look_for_indexes(self) -> None:
        """Somebody may have made the one by expiry since we last looked."""
        found = await self._read(lambda connection: inspect(connection, self._facts.schema))
        self._schema = found or self._schema

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

    async def _read(self, ask: Callable[[Connection], Awaitable[Result]]) -> Result:
        """What the database answers; asked again when it has rolled that back."""

        async def once() -> Result:
            # Through a transaction pooler only a transaction keeps two messages of one statement on one connection.
            async with (
                acquired(self._open_pool) as connection,
                self._unit(connection, self._facts.through_pooler, in_doubt=False),
            ):
                return await ask(connection)

        return await self._again(once)

    async def _again(self, work: Callable[[], Awaitable[Result]]) -> Result:
        return await again_when_rolled_back(work, self._sleep)

    @property
    def _open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        if not self._pool:
            raise StoreUnavailable("The store is not open.")
        return self._pool

    @property
    def _table(self) -> Schema:
        if not self._schema:
            raise StoreUnavailable(
                "The database has no tables for this version of chatstate yet. Make them with: chatstate migrate"
            )
        return self._schema

    def _statement(self, name: str, history: int = 0) -> str:
        return sessions.statement(self._table, name, history)


_LISTS: dict[type[Query], Callable[[Any, Schema, Any], Awaitable[Sequence[Row]]]] = {
    VisitQuery: postgres_visits.visits,
    UserSessionQuery: postgres_visits.user_sessions,
    InboxQuery: postgres_mailbox.mail,
    OutboxQuery: postgres_mailbox.mail,
    DueQuery: postgres_mailbox.mail,
    RecordQuery: postgres_records.records,
    StoredQuery: postgres_stored.stored,
    RowQuery: postgres_rows.rows,
    RowCount: postgres_rows.count,
}
"""What lists other than those of sessions."""


class _Snapshot:
    """The database at one moment: the one of the first statement of a transaction."""

    def __init__(self, read: Callable[[Query], Awaitable[Sequence[Row]]]) -> None:
        self._read = read

    async def list(self, query: Query) -> Sequence[Row]:
        with translated(in_doubt=False):
            return await self._read(query)


def _by_verb(writes: Sequence[Write], earlier: dict[str, Outcome]) -> dict[Verb, list[Write]]:
    groups: dict[Verb, list[Write]] = {}
    for write in writes:
        verb = verb_for(write, known_absent=earlier.get(write.user_session_id) == Conflict(None))
        groups.setdefault(verb, []).append(write)
    return groups


_PLACES = {
    "on": "has been synced to the disks of the primary and of its synchronous standby",
    "remote_apply": "has been synced to the disks of the primary and of its synchronous standby",
    "remote_write": "has been synced to the primary's disk, and is in the memory of its synchronous standby's machine",
    "local": "has been synced to the primary's disk, and does not wait for the standbys",
}
"""What PostgreSQL says of the levels of `synchronous_commit` where `synchronous_standby_names` is set."""

_ONE_DISK = "has been synced to the database's disk, and no standby is waited for"


def _durability(fsync: bool | None, level: str | None, standbys: bool) -> str:
    if fsync is None:
        said = f"synchronous_commit={level}" if level else "it has no synchronous_commit either"
        return f"This engine says nothing of fsync: what a committed write survives is in its documentation ({said})."
    if not fsync:
        return "UNSAFE: fsync=off, a crash of the database's machine loses acknowledged writes."
    place = _PLACES.get(level or "") if standbys else None
    return f"An acknowledged write {place or _ONE_DISK} (synchronous_commit={level})."


def _was_overtaken(write: Write, outcome: Outcome) -> bool:
    """Whether the write found what it does not expect, but a moment later what it does."""
    return isinstance(outcome, Conflict) and write.expect.allows(outcome.current)
