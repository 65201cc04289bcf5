"""Whole rows in SQLite, for copies: pages of them, and putting and removing single ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import apsw
from msgspec import Struct

from chatstate.row import (
    ROWS,
    TEXTS,
    AnyRow,
    DropRow,
    Kind,
    RowChanged,
    RowCount,
    RowQuery,
    RowShelf,
    RowWrite,
    kinds,
    shelf_of,
)
from chatstate.stores import sql
from chatstate.stores.sqlite_times import microseconds, time_of


class _Shelf(Struct, frozen=True):
    """Where the rows lie: the table, and the columns of their places."""

    table: str
    places: tuple[str, ...]
    listed: str = ""  # what to select from, if that is not the table


_SHELVES: dict[RowShelf, _Shelf] = {
    "sessions": _Shelf("chat_state_sessions", ("user_session_id",)),
    "versions": _Shelf(
        "versions",
        ("s.user_session_id", "v.version"),
        "chat_state_sessions AS s JOIN versions AS v ON v.session_id = s.session_id",
    ),
    "remembered": _Shelf("idempotency_keys", ("user_session_id", "caller", "key")),
    "visits": _Shelf("chat_sessions", ("session_id",)),
    "records": _Shelf("records", ("collection", "key")),
    "inbox": _Shelf("inbox", ("key",)),
    "outbox": _Shelf("outbox", ("key",)),
}

_IS_THERE = (
    "EXISTS (SELECT 1 FROM chat_state_sessions WHERE user_session_id = :user_session_id AND session_id = :session_id)"
)
_ITS_SESSION = "session_id = (SELECT session_id FROM chat_state_sessions WHERE user_session_id = :0)"

_FORGET_REPLACED = sql.statement("sqlite", "forget_replaced")

_SECOND = 1_000_000


@cache
def _listing(shelf: RowShelf, is_first: bool) -> str:
    where = _SHELVES[shelf]
    columns = ", ".join(kinds(shelf))
    behind = f"({', '.join(where.places)}) > ({', '.join(f':{n}' for n in range(len(where.places)))})"
    if shelf == "versions":
        columns = ", ".join(("s." if name == "user_session_id" else "v.") + name for name in kinds(shelf))
        behind = f"s.user_session_id >= :0 AND {behind}"
    words = {
        "columns": columns,
        "table": where.listed or where.table,
        "behind": "1" if is_first else behind,
        "order": ", ".join(where.places),
    }
    return _filled("rows", words)


@cache
def _putting(shelf: RowShelf) -> str:
    names = [name for name in kinds(shelf) if shelf != "versions" or name != "user_session_id"]
    words = {
        "table": _SHELVES[shelf].table,
        "columns": ", ".join(names),
        "values": ", ".join(f":{name}" for name in names),
        "condition": _IS_THERE if shelf == "versions" else "1",
    }
    return _filled("put_row", words)


@cache
def _dropping(shelf: RowShelf) -> str:
    where = _SHELVES[shelf]
    there = [f"{column} = :{number}" for number, column in enumerate(where.places)]
    if shelf == "versions":
        there = [_ITS_SESSION, "version = :1"]
    return _filled("drop_row", {"table": where.table, "there": " AND ".join(there)})


def _filled(name: str, words: dict[str, str]) -> str:
    return sql.filled(sql.statement("sqlite", name), words)


_READ: dict[Kind, Callable[[Any], Any]] = {"time": time_of, "truth": bool}
_KEPT: dict[Kind, Callable[[Any], Any]] = {"time": microseconds}


@cache
def _converted(shelf: RowShelf, into: str) -> list[tuple[int, str, Callable[[Any], Any]]]:
    """The members that SQLite keeps as something else: their numbers, names, and how they are read or kept."""
    special = _READ if into == "row" else _KEPT
    found = [(n, name, special[kind]) for n, (name, kind) in enumerate(kinds(shelf).items()) if kind in special]
    if shelf == "sessions":
        number = list(kinds(shelf)).index("expires_in")
        found.append((number, "expires_in", (lambda n: n // _SECOND) if into == "row" else (lambda n: n * _SECOND)))
    return found


def rows(connection: apsw.Connection, query: RowQuery) -> list[AnyRow]:
    """The rows that the query asks for, in its order."""
    make, texts = ROWS[query.shelf], [name for name in kinds(query.shelf) if name in TEXTS]
    converted = _converted(query.shelf, "row")
    given = {"limit": query.limit, **_numbered(query.after)}
    found: list[AnyRow] = []
    size = 0
    for values in connection.execute(_listing(query.shelf, not query.after), given):
        members = list(values)
        for number, _, read in converted:
            if members[number] is not None:
                members[number] = read(members[number])
        row = make(**dict(zip(make.__struct_fields__, members, strict=True)))
        found.append(row)
        size += sum(len(getattr(row, name) or "") for name in texts)
        if size > query.size:
            break
    return found


def _numbered(place: tuple[str | int, ...]) -> dict[str, str | int]:
    return {str(number): part for number, part in enumerate(place)}


def count(connection: apsw.Connection, query: RowCount) -> list[int]:
    number: Any
    ((number,),) = connection.execute(f"SELECT count(*) FROM {_SHELVES[query.shelf].table}").fetchall()
    return [number]


def apply_row(connection: apsw.Connection, write: RowWrite) -> RowChanged:
    """Carry out one write."""
    if isinstance(write, DropRow):
        connection.execute(_dropping(write.shelf), _numbered(write.place))
        return RowChanged(connection.changes() > 0)
    shelf = shelf_of(write.row)
    given: dict[str, Any] = {name: getattr(write.row, name) for name in write.row.__struct_fields__}
    for _, name, keep in _converted(shelf, "kept"):
        if given[name] is not None:
            given[name] = keep(given[name])
    if shelf == "sessions":
        connection.execute(_FORGET_REPLACED, given)
    connection.execute(_putting(shelf), given)
    return RowChanged(connection.changes() > 0)
