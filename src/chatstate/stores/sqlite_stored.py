"""Texts as they lie in SQLite, for re-encryption: pages of them, and putting another one in the place of one."""

from __future__ import annotations

from typing import Any, get_args

import apsw

from chatstate.encryption import SEALED
from chatstate.model import Rewrite, Rewritten, Shelf, Stored, StoredQuery
from chatstate.stores import sql

_TEXTS: dict[Shelf, str] = {
    "sessions": "chat_state",
    "versions": "v.chat_state",
    "remembered": "chat_state",
    "records": "document",
    "inbox": "document",
    "outbox": "document",
}
"""The column of each shelf."""

_WANTING = (
    "CASE WHEN :head = '' THEN substr({text}, 1, {length}) = '{sealed}' "
    "ELSE substr({text}, 1, length(:head)) <> :head END"
)


def _listing(shelf: Shelf) -> str:
    wanting = _WANTING.format(text=_TEXTS[shelf], length=len(SEALED), sealed=SEALED)
    return sql.statement("sqlite", f"stored_{shelf}").replace("{wanting}", wanting)


_STORED = {shelf: _listing(shelf) for shelf in get_args(Shelf)}
_REWRITE = {shelf: sql.statement("sqlite", f"rewrite_{shelf}") for shelf in get_args(Shelf)}


def stored(connection: apsw.Connection, query: StoredQuery) -> list[Stored]:
    """The texts that the query asks for, in its order."""
    given = {"head": query.head, "limit": query.limit, **_place(query.after)}
    rows = connection.execute(_STORED[query.shelf], given)
    return [Stored(query.shelf, tuple(map(str, place)), text) for *place, text in rows]


def rewrite(connection: apsw.Connection, write: Rewrite) -> Rewritten:
    """Carry out one write."""
    given = {"text": write.text, "replaced_by": write.replaced_by, **_place(write.place)}
    return Rewritten(bool(connection.execute(_REWRITE[write.shelf], given).fetchall()))


def _place(place: tuple[str, ...]) -> dict[str, Any]:
    first, second, third = (*place, "", "", "")[:3]
    return {"first": first, "second": second, "third": third}
