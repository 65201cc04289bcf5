"""Whole rows in PostgreSQL, for copies: pages of them, and putting and removing many at once.

A table of another program may keep a value in another way than it was given, such as times to the millisecond. What was
put is compared with what then lies there, and any difference is an error: nothing is rounded in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import asyncpg
from msgspec import Struct

from chatstate.errors import PrivilegeMissing, WriteRefused
from chatstate.row import (
    ROWS,
    SHELVES,
    TEXTS,
    AnyRow,
    DropRow,
    Kind,
    OutboxRow,
    Place,
    PutRow,
    RowChanged,
    RowCount,
    RowQuery,
    RowShelf,
    RowWrite,
    SessionRow,
    kinds,
    shelf_of,
)
from chatstate.stores import sql
from chatstate.stores.postgres_connection import Connection
from chatstate.stores.postgres_schema import Schema
from chatstate.stores.postgres_sessions import readable


class _Shelf(Struct, frozen=True):
    """Where the rows lie: the table, whether all schemas share it, and what is a row's place, there and in a list."""

    table: str
    key: tuple[str, ...]
    is_shared: bool = True


_SHELVES: dict[RowShelf, _Shelf] = {
    "sessions": _Shelf("{table}", ("user_session_id",), is_shared=False),
    "versions": _Shelf("chatstate.versions", ("session_id", "version")),
    "remembered": _Shelf("chatstate.idempotency_keys", ("user_session_id", "caller", "key")),
    "visits": _Shelf("chatstate.visits", ("session_id",)),
    "records": _Shelf("chatstate.records", ("collection", "key")),
    "inbox": _Shelf("chatstate.inbox", ("key",)),
    "outbox": _Shelf("chatstate.outbox", ("key",)),
}

_PLACES: dict[RowShelf, tuple[str, ...]] = {shelf: where.key for shelf, where in _SHELVES.items()} | {
    "versions": ("user_session_id", "version")
}

_IS_THERE = (
    "WHERE EXISTS (SELECT FROM {table} AS s "
    "WHERE s.user_session_id = w.user_session_id AND s.session_id::text = w.session_id)"
)

_ARRAYS: dict[Kind, str] = {"number": "bigint", "truth": "boolean", "bytes": "bytea"}
"""What parameters are. All else goes as text, also times: the driver makes infinities of the ends of the calendar."""


_PATIENCE_SECONDS = 600
"""How long an answer may take: a table that is not sorted by bytes is sorted for each page."""


# --- Statements -------------------------------------------------------------------------------------------------------


@lru_cache
def _listing(schema: Schema, shelf: RowShelf, is_first: bool) -> str:
    where, places = _SHELVES[shelf], _PLACES[shelf]
    sources = [_source(shelf, name) for name in places]
    if shelf == "visits":  # as bytes, a UUID stands where its text does
        sources = ["t.session_id"]
    texts = [f"coalesce(octet_length({name}), 0)" for name in kinds(shelf) if name in TEXTS]
    words = {
        "columns": ", ".join(kinds(shelf)),
        "size": " + ".join(texts) or "0",
        "named_places": ", ".join(f'{name} COLLATE "C"' if name != "version" else name for name in places),
        "selected": ", ".join(f"{_selected(shelf, name, kind)} AS {name}" for name, kind in kinds(shelf).items()),
        "listed": _versions(is_first) if shelf == "versions" else f"{where.table} AS t",
        "behind": _behind(shelf, sources, is_first),
        "places": ", ".join(sources),
    }
    return _filled(schema, "rows", words)


def _versions(is_first: bool) -> str:
    return sql.statement("postgres", "row_versions").replace(
        "{from}", "true" if is_first else 'c.user_session_id COLLATE "C" >= $3::text'
    )


def _source(shelf: RowShelf, name: str) -> str:
    """The column of this member, sorted by bytes also where the table's own order is another."""
    if shelf == "versions":
        return f"s.{name}" if name == "user_session_id" else f"v.{name}"
    return f't.{name} COLLATE "C"' if shelf == "sessions" and name == "user_session_id" else f"t.{name}"


def _selected(shelf: RowShelf, name: str, kind: Kind) -> str:
    if shelf == "sessions" and kind == "time":
        found = readable(name).replace("s.", "t.")
        return f"CASE WHEN t.{name} IS NOT NULL THEN {found} END"
    if shelf == "sessions" and name == "expires_in":
        return "t.expires_in_seconds"
    source = _source(shelf, name)
    return f"{source}::text" if name == "session_id" else source


def _behind(shelf: RowShelf, sources: Sequence[str], is_first: bool) -> str:
    """The condition for the rows behind the place that the parameters from $3 on name."""
    ours = "t.table_schema = {name}" if _SHELVES[shelf].is_shared and shelf != "versions" else "true"
    if is_first:
        return ours
    if shelf == "versions":
        return f"({sources[0]} > $3::text OR v.version > $4::bigint)"
    type_ = "uuid" if shelf == "visits" else "text"
    places = ", ".join(f"${number}::text::{type_}" for number in range(3, 3 + len(sources)))
    return f"{ours} AND ({', '.join(sources)}) > ({places})"


@lru_cache
def _putting(schema: Schema, shelf: RowShelf) -> str:
    where, members = _SHELVES[shelf], kinds(shelf)
    columns = {_column(shelf, name): _value(shelf, name, kind) for name, kind in members.items()}
    if shelf == "versions":
        del columns["user_session_id"]
    key = where.key
    if where.is_shared:
        columns, key = {"table_schema": "{name}"} | columns, ("table_schema", *key)
    words = {
        "into": where.table,
        "into_columns": ", ".join(columns),
        "overriding": "OVERRIDING SYSTEM VALUE" if shelf == "outbox" else "",
        "values": ", ".join(columns.values()),
        "arrays": ", ".join(f"${n}::{_ARRAYS.get(kind, 'text')}[]" for n, kind in enumerate(members.values(), 1)),
        "members": ", ".join(members),
        "condition": _IS_THERE if shelf == "versions" else "",
        "key": ", ".join(key),
        "assignments": ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key),
        "kept": ", ".join(f"{_kept(shelf, name, kind)} AS {name}" for name, kind in _compared(shelf).items()),
    }
    if shelf == "outbox":  # an identity cannot be updated: the row was removed before
        words["assignments"] = "key = excluded.key"
    return _filled(schema, "put_rows", words)


def _column(shelf: RowShelf, name: str) -> str:
    return "expires_in_seconds" if (shelf, name) == ("sessions", "expires_in") else name


def _value(shelf: RowShelf, name: str, kind: Kind) -> str:
    types = {
        ("sessions", "session_id"): "{session_id_type}",
        ("visits", "session_id"): "uuid",
        ("visits", "ip_address"): "inet",
    }
    type_ = "timestamptz" if kind == "time" else types.get((shelf, name))
    return f"w.{name}::{type_}" if type_ else f"w.{name}"


def _compared(shelf: RowShelf) -> dict[str, Kind]:
    """The members that are compared with what then lies there: all but long texts, and what the row does not hold."""
    return {
        name: kind
        for name, kind in kinds(shelf).items()
        if name not in TEXTS and (shelf, name) != ("versions", "user_session_id")
    }


def _kept(shelf: RowShelf, name: str, kind: Kind) -> str:
    return f"t.{name}" if shelf == "versions" else _selected(shelf, name, kind)


@lru_cache
def _dropping(schema: Schema, shelf: RowShelf) -> str:
    where, places = _SHELVES[shelf], _PLACES[shelf]
    there = [f"t.{name} = w.{name}" for name in places]
    returned = [f"t.{name}::text" for name in places]
    if shelf == "visits":
        there = ["t.session_id = w.session_id::uuid"]
    if shelf == "versions":
        session = "SELECT s.session_id::text FROM {table} AS s WHERE s.user_session_id = w.user_session_id"
        there = [f"t.session_id = ({session})", "t.version = w.version"]
        returned = ["w.user_session_id", "t.version::text"]
    if where.is_shared:
        there.append("t.table_schema = {name}")
    types = ["bigint" if name == "version" else "text" for name in places]
    words = {
        "into": where.table,
        "arrays": ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(types, 1)),
        "parts": ", ".join(places),
        "there": " AND ".join(there),
        "returned": ", ".join(returned),
    }
    return _filled(schema, "drop_rows", words)


def _filled(schema: Schema, name: str, words: dict[str, str]) -> str:
    return schema.fill(sql.filled(sql.statement("postgres", name), words))


# --- Lists ------------------------------------------------------------------------------------------------------------


async def rows(connection: Connection, schema: Schema, query: RowQuery) -> list[AnyRow]:
    """The rows that the query asks for, in its order."""
    make = ROWS[query.shelf]
    statement = _listing(schema, query.shelf, not query.after)
    found = await connection.fetch(statement, query.limit, query.size, *query.after, timeout=_PATIENCE_SECONDS)
    return [make(**_read(row)) for row in found]


def _read(row: Any) -> dict[str, Any]:
    members = dict(row)
    if members.get("ip_address") is not None:
        members["ip_address"] = str(members["ip_address"])
    return members


async def count(connection: Connection, schema: Schema, query: RowCount) -> list[int]:
    where = _SHELVES[query.shelf]
    ours = "table_schema = {name}" if where.is_shared else "true"
    statement = schema.fill(f"SELECT count(*) FROM {where.table} WHERE {ours}")
    rows = await connection.fetch(statement, timeout=_PATIENCE_SECONDS)
    return [rows[0][0]]


# --- Writes -----------------------------------------------------------------------------------------------------------


async def apply_rows(connection: Connection, schema: Schema, writes: Sequence[RowWrite]) -> list[RowChanged]:
    """Carry out writes inside a transaction, an outcome for each, in order. Versions do not rise."""
    await connection.execute("SET LOCAL chatstate.reencrypting = 'on'")
    done: set[tuple[RowShelf, Place]] = set()
    for shelf in reversed(SHELVES):  # versions go before their sessions, which would take them along
        places = sorted(write.place for write in writes if isinstance(write, DropRow) and write.shelf == shelf)
        if places:  # sorted, so that two programs cannot deadlock
            done |= {(shelf, place) for place in await _drop(connection, schema, shelf, places)}
    for shelf in SHELVES:
        rows = [write.row for write in writes if isinstance(write, PutRow) and shelf_of(write.row) == shelf]
        if rows:
            rows.sort(key=lambda row: row.place)
            done |= {(shelf, place) for place in await _put(connection, schema, shelf, rows)}
    return [RowChanged(_of(write) in done) for write in writes]


def _of(write: RowWrite) -> tuple[RowShelf, Place]:
    if isinstance(write, DropRow):
        return write.shelf, write.place
    return shelf_of(write.row), write.row.place


async def _drop(connection: Connection, schema: Schema, shelf: RowShelf, places: Sequence[Place]) -> list[Place]:
    rows = await connection.fetch(_dropping(schema, shelf), *map(list, zip(*places, strict=True)))
    return [(row[0], int(row[1])) if shelf == "versions" else tuple(row) for row in rows]


async def _put(connection: Connection, schema: Schema, shelf: RowShelf, rows: Sequence[AnyRow]) -> list[Place]:
    """The places of those that were put."""
    if shelf == "outbox":
        await _drop(connection, schema, shelf, [row.place for row in rows])
    if shelf == "sessions":
        await _free_session_ids(connection, schema, [row for row in rows if isinstance(row, SessionRow)])
    given = [[_given(getattr(row, name)) for row in rows] for name in kinds(shelf)]
    found = await connection.fetch(_putting(schema, shelf), *given)
    key = _SHELVES[shelf].key
    kept = {tuple(row[name] for name in key): _read(row) for row in found}
    done = []
    for row in rows:
        place = tuple(getattr(row, name) for name in key)
        if place in kept:
            _check_kept(shelf, row, kept[place])
            done.append(row.place)
        elif shelf != "versions":
            raise WriteRefused("A trigger of the database has dropped this row, or changed what names it.")
    if shelf == "outbox":
        await _number_after(connection, schema, max(row.number for row in rows if isinstance(row, OutboxRow)))
    return done


async def _free_session_ids(connection: Connection, schema: Schema, rows: Sequence[SessionRow]) -> None:
    ids = [row.user_session_id for row in rows], [row.session_id for row in rows]
    await connection.fetch(_filled(schema, "free_session_ids", {}), *ids)


def _given(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _check_kept(shelf: RowShelf, row: AnyRow, kept: dict[str, Any]) -> None:
    for name in _compared(shelf):
        if kept[name] != getattr(row, name):
            raise WriteRefused(
                f"The table keeps {_column(shelf, name)} as {kept[name]} where {getattr(row, name)} was put, so it "
                "cannot hold a true copy. Give the column the type that chatstate makes it with (`chatstate migrate "
                "--print`; a time: ALTER TABLE … ALTER COLUMN … TYPE timestamptz), or take a trigger away that "
                "changes it."
            )


async def _number_after(connection: Connection, schema: Schema, number: int) -> None:
    try:
        await connection.fetch(_filled(schema, "row_numbers", {}), number)
    except asyncpg.InsufficientPrivilegeError as error:
        raise PrivilegeMissing(
            f"The database user may not set the numbers of messages ({error}). Let the owner of the tables GRANT it "
            "ALL ON ALL SEQUENCES IN SCHEMA chatstate, or run this command. Nothing was written."
        ) from error
