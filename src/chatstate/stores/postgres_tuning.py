"""Tuning a table that another program made: steps that cost a lock or the old owner's consent, so they are asked for.

A table that we made is born like this. What each step gains is measured by `make bench` (the rows called tuning).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from msgspec import Struct

from chatstate.errors import PrivilegeMissing, SessionLocked, StoreError, StoreUnavailable
from chatstate.stores.postgres_connection import (
    CONNECT_SECONDS,
    LOCK_MILLISECONDS,
    Facts,
    ask_facts,
    connection_options,
    parse_url,
    translated,
    unreachable_explained,
)
from chatstate.stores.postgres_primary import Primary
from chatstate.stores.postgres_schema import LOCK_TRIES, Schema


class TuningStep(Struct, frozen=True):
    """One change of the table: what it gains, its SQL, and what it locks for how long, in words for people."""

    gain: str
    sql: str
    locks: str
    in_transaction: bool = True


_SIZE = """
SELECT reltuples::bigint, pg_total_relation_size(oid), pg_indexes_size(oid) FROM pg_class WHERE oid = to_regclass($1)
"""

_STORAGE = """
SELECT coalesce(nullif(to_jsonb(a) ->> 'attcompression', ''), left(s.setting, 1)) <> 'l',
    coalesce(c.reloptions::text, '') NOT LIKE '%toast_tuple_target=%'
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid, pg_settings s
WHERE a.attrelid = to_regclass($1) AND a.attname = 'chat_state'
    AND s.name = 'default_toast_compression' AND 'lz4' = ANY (s.enumvals)
"""
"""Whether another compression than lz4 is in use, and whether nobody has set the size that rows may have.

No row where the server cannot compress with lz4. By JSON, because PostgreSQL 13 has no such column."""

_DOUBLED = """
SELECT DISTINCT ON (i.indexrelid)
    quote_ident(n.nspname) || '.' || quote_ident(c.relname), quote_ident(k.relname), pg_relation_size(c.oid)
FROM pg_index i
JOIN pg_index u ON u.indrelid = i.indrelid AND u.indexrelid <> i.indexrelid
    AND u.indkey = i.indkey AND u.indclass = i.indclass AND u.indcollation = i.indcollation
    AND u.indoption = i.indoption AND u.indnatts = i.indnatts
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class k ON k.oid = u.indexrelid AND k.relam = c.relam
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = to_regclass($1) AND u.indisunique AND u.indisvalid AND NOT i.indisunique
    AND i.indpred IS NULL AND u.indpred IS NULL AND i.indexprs IS NULL AND u.indexprs IS NULL
    AND NOT i.indisexclusion AND NOT i.indisreplident AND NOT i.indisclustered
ORDER BY i.indexrelid, 2
"""
"""Indexes that hold just what a unique one holds already."""

_INDEXED = """
SELECT a.attname, i.indisvalid, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = to_regclass($1) AND a.attname IN ('expires_at', 'last_activity')
ORDER BY c.relname
"""
"""The indexes that begin with one of these columns, and whether they are complete."""


class PostgresTuning:
    """What can be tuned in the table of a PostgreSQL store. Raises what the store raises when it cannot be reached."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url, None)

    async def plan(self) -> tuple[str, list[TuningStep]]:
        """The table with its size, for people, and the steps that it still lacks."""
        async with self._connected() as (connection, facts):
            table = Schema(facts.schema).table
            with translated(in_doubt=False):
                size = await connection.fetchrow(_SIZE, table)
                storage = await connection.fetchrow(_STORAGE, table)
                doubled = await connection.fetch(_DOUBLED, table)
                indexed = await connection.fetch(_INDEXED, table)
        if size is None:
            raise StoreUnavailable("The database has no tables for chatstate yet. Make them with: chatstate migrate")
        lacks_compression, lacks_target = storage or (False, False)
        steps = [_compress(table)] * lacks_compression + [_keep_whole(table)] * lacks_target
        steps += _missing_indexes(table, indexed)
        return _described(table, *size), steps + [_drop(*index) for index in doubled]

    async def carry_out(self, step: TuningStep) -> None:
        """Carry out one step. Raises `StoreUnavailable` when that failed; the next `plan` shows what is left to do."""
        async with self._connected() as (connection, _):
            for _ in range(LOCK_TRIES):
                with suppress(SessionLocked):
                    await _execute(connection, step)
                    return
        raise StoreUnavailable(
            "The table is in use by a long transaction, so the step was not carried out. End that transaction "
            "(SELECT * FROM pg_stat_activity) and tune again."
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, Facts]]:
        primary = Primary(self._url)
        try:
            with unreachable_explained(self._url.place):
                facts = await ask_facts(self._url, primary.connect)
                options = connection_options(facts.through_pooler, facts.settings)
                connection = await primary.connect(self._url.dsn, timeout=CONNECT_SECONDS, **options)
            try:
                yield connection, facts
            finally:
                await connection.close(timeout=CONNECT_SECONDS)
        finally:
            await primary.close()


async def _execute(connection: Any, step: TuningStep) -> None:
    with _failure_explained():
        if step.in_transaction:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_MILLISECONDS}ms'")
                await connection.execute(step.sql)
        else:
            # It waits without keeping anybody else waiting.
            await connection.execute("SET lock_timeout = 0; SET statement_timeout = 0")
            await connection.execute(step.sql)


@contextmanager
def _failure_explained() -> Iterator[None]:
    try:
        with translated(in_doubt=True):
            yield
    except SessionLocked:
        raise
    except PrivilegeMissing as error:
        raise StoreUnavailable(
            f"Only its owner may change the table ({error.__cause__}). Let the owner run the SQL that "
            "`chatstate migrate --tune --print` prints."
        ) from error
    except StoreError as error:
        raise StoreUnavailable(
            f"The step was broken off ({error.__cause__}). See what is left to do, and do it: chatstate migrate --tune"
        ) from error


def _described(table: str, rows: int, total: int, indexes: int) -> str:
    count = f"about {rows:,} rows" if rows >= 0 else "an unknown number of rows"
    return f"The table {table}: {count}, {_megabytes(total)}, {_megabytes(indexes)} of it in indexes."


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MB"


def _compress(table: str) -> TuningStep:
    return TuningStep(
        gain="States are compressed with lz4: a save takes about half of PostgreSQL's CPU. Those that are there stay "
        "as they are until they are saved again.",
        sql=f"ALTER TABLE {table} ALTER COLUMN chat_state SET COMPRESSION lz4;",
        locks="the whole table, for an instant: no row is read or written. While a transaction uses the table, the "
        f"step waits {LOCK_MILLISECONDS // 1000} s for it, then lets everybody pass, and tries again.",
    )


def _keep_whole(table: str) -> TuningStep:
    return TuningStep(
        gain="States that lz4 makes smaller than 2,900 bytes, as most of 4 KB are, stay in their rows: saving and "
        "loading them takes PostgreSQL a third less CPU.",
        sql=f"ALTER TABLE {table} SET (toast_tuple_target = 2900);",
        locks="nothing that readers or writers wait for, for an instant.",
    )


def _drop(index: str, unique: str, size: int) -> TuningStep:
    return TuningStep(
        gain=f"The index repeats the unique one, {unique}: every save keeps both up to date ({_megabytes(size)}).",
        sql=f"DROP INDEX CONCURRENTLY IF EXISTS {index};",
        locks="nothing that readers or writers wait for. The step waits until the transactions of this moment have "
        "ended.",
        in_transaction=False,
    )


_INDEXES = {
    "expires_at": (
        "(expires_at) WHERE expires_at IS NOT NULL",
        "Sweeping finds expired sessions without reading the whole table, as it does once a minute. Sessions that "
        "never expire are not in the index, and cost nothing.",
    ),
    "last_activity": (
        "(last_activity, user_session_id)",
        "Listing sessions by activity reads one page, not the whole table. A save costs a little more.",
    ),
}
"""The indexes that a table of ours is born with: what they hold, and what they gain."""


def _missing_indexes(table: str, indexed: Sequence[Any]) -> Iterator[TuningStep]:
    """Each index that is not there, and before it the removal of what a broken-off attempt has left of it."""
    complete = {column for column, is_valid, _ in indexed if is_valid}
    for column, (definition, gain) in _INDEXES.items():
        if column not in complete:
            name = f"idx_chat_state_sessions_{column}"
            yield from (_drop_broken(index) for of, _, index in indexed if of == column and index.endswith(name))
            yield TuningStep(
                gain=gain,
                sql=f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} {definition};",
                locks="nothing that readers or writers wait for. The step reads the whole table, twice, and waits for "
                "transactions that are older than it.",
                in_transaction=False,
            )


def _drop_broken(index: str) -> TuningStep:
    return TuningStep(
        gain="The index is of no use: its making was broken off. Or it is being made right now; then wait.",
        sql=f"DROP INDEX CONCURRENTLY IF EXISTS {index};",
        locks="nothing that readers or writers wait for.",
        in_transaction=False,
    )
