"""Texts as they lie in a Valkey Cluster, for re-encryption: pages of them, and putting another one in the place of one.

A text that is all right does not leave its node (`lua/stored.lua`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from chatstate.encryption import SEALED
from chatstate.model import Rewrite, Rewritten, Shelf, Stored, StoredQuery
from chatstate.stores import valkey_mail_rows, valkey_records
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import Box, Name
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_keys import SessionKeys
from chatstate.stores.valkey_lists import Bounds, SortedSet, first_members, of_all_slots
from chatstate.stores.valkey_sessions import check_text
from chatstate.stores.valkey_steps import Steps, reply_to

_LOOK, _REWRITE = script("stored", "no-writes"), script("rewrite")

_HASHES = {"sessions": "s", "versions": "v", "remembered": "r"}
"""How the keys are named; that of sessions is no hash."""

_MAIL: dict[Shelf, Name] = {"inbox": "inbox", "outbox": "outbox"}

_MANY = 500
"""How many sessions are looked at in one step for what lies beside them."""

Place = tuple[str, ...]
"""What names a row, as in `Stored`."""


class _Lying(NamedTuple):
    """Where a text lies: the slot, the key, and the field of a hash."""

    slot: int
    key: str
    field: str | bytes


def _lying(prefix: str, shelf: Shelf, place: Place) -> _Lying:
    first, second, third = (*place, "", "", "")[:3]
    if shelf in _MAIL:
        box = Box(prefix, _MAIL[shelf], second)  # the conversation, which stands behind the place here
        return _Lying(box.slot, box.own()[1], first)
    if shelf == "records":
        name = valkey_records.name_of(first, second)
        bucket = valkey_records.bucket(prefix, name)
        return _Lying(bucket.slot, bucket.key("docs"), name)
    keys = SessionKeys(prefix, first)
    field = f"{third}\0{second}" if shelf == "remembered" else second
    return _Lying(keys.slot, keys.own(_HASHES[shelf]), field)


def rewrite(prefix: str, write: Rewrite) -> Steps[Any]:
    """Carry out one write. Raises `WriteRefused` for what no store can keep."""
    check_text(write.replaced_by)
    place = write.place
    if write.shelf in _MAIL:
        conversation = yield from valkey_mail_rows.find(prefix, _MAIL[write.shelf], place[0])
        if conversation is None:
            return Rewritten(False)
        place = (*place, conversation)
    slot, key, field = _lying(prefix, write.shelf, place)
    call = run_script(_REWRITE, slot, [key], write.shelf, field, write.text, write.replaced_by)
    return Rewritten(bool((yield from reply_to(call))))


# --- Pages ------------------------------------------------------------------------------------------------------------


async def stored(cluster: Cluster, prefix: str, query: StoredQuery) -> list[Stored]:
    """The texts that the query asks for, in its order."""
    rows: list[Stored] = []
    async with aclosing(_PLACES[query.shelf](cluster, prefix, query)) as pages:
        async for places in pages:
            left = list(places)
            while left and len(rows) < query.limit:
                missing = query.limit - len(rows)
                rows += await _read(cluster, prefix, query, left[:missing])
                del left[:missing]
            if len(rows) == query.limit:
                break
    return rows


async def _read(cluster: Cluster, prefix: str, query: StoredQuery, places: Sequence[Place]) -> list[Stored]:
    """Those of these texts that are there, in this order."""
    calls = []
    for place in places:
        slot, key, field = _lying(prefix, query.shelf, place)
        words = ("EVALSHA_RO", _LOOK.sha, 1, key, query.shelf, query.head, SEALED, field)
        calls.append(Call(slot, words, _LOOK))
    replies = zip(places, await cluster.read(calls), strict=True)
    named = 1 if query.shelf in _MAIL else None  # without the conversation
    return [_stored(query.shelf, place[:named], *reply) for place, reply in replies if reply]


def _stored(shelf: Shelf, place: Place, is_right: int, text: bytes = b"") -> Stored:
    return Stored(shelf, place, None if is_right else text.decode())


async def _pages(
    cluster: Cluster, sets: Sequence[SortedSet], bounds: Bounds, limit: int
) -> AsyncGenerator[list[bytes], None]:
    """All members of these sets, some at a time, in order."""
    while True:
        members = await first_members(cluster, sets, bounds, limit)
        yield members
        if len(members) < limit:
            return
        bounds = bounds._replace(first=b"(" + members[-1])


async def _of_sessions(cluster: Cluster, prefix: str, query: StoredQuery) -> AsyncGenerator[Sequence[Place], None]:
    bounds = Bounds(first=b"(" + query.after[0].encode() if query.after else b"-")
    async for ids in _pages(cluster, of_all_slots(prefix, "ids"), bounds, query.limit):
        yield [(name.decode(),) for name in ids]


async def _of_records(cluster: Cluster, prefix: str, query: StoredQuery) -> AsyncGenerator[Sequence[Place], None]:
    collection, key = (*query.after, "", "")[:2]
    bounds = Bounds(first=b"(" + valkey_records.name_of(collection, key) if query.after else b"-")
    async for names in _pages(cluster, valkey_records.index_sets(prefix, "keys"), bounds, query.limit):
        yield [tuple(name.decode().split("\0", 1)) for name in names]


async def _of_mail(cluster: Cluster, prefix: str, query: StoredQuery) -> AsyncGenerator[Sequence[Place], None]:
    """With the conversation of each. What is decided, and not done, has texts elsewhere: it is done before."""
    after = query.after[0] if query.after else None
    async for found in valkey_mail_rows.places(cluster, prefix, _MAIL[query.shelf], after, query.limit):
        if query.shelf == "inbox":
            await valkey_mail_rows.settled(cluster, prefix, found)
        yield found


async def _beside_sessions(cluster: Cluster, prefix: str, query: StoredQuery) -> AsyncGenerator[Sequence[Place], None]:
    """Of what is kept beside sessions. Nothing of it has a text once its session is gone."""
    order, after = _order(query.shelf), query.after
    bounds = Bounds(first=b"[" + after[0].encode() if after else b"-")
    async for ids in _pages(cluster, of_all_slots(prefix, "ids"), bounds, _MANY):
        names = [name.decode() for name in ids]
        keys = [SessionKeys(prefix, name) for name in names]
        calls = [Call(one.slot, ("HKEYS", one.own(_HASHES[query.shelf]))) for one in keys]
        found = zip(names, await cluster.read(calls), strict=True)
        places = (_place(query.shelf, name, field.decode()) for name, fields in found for field in fields)
        yield sorted((place for place in places if not after or order(place) > order(after)), key=order)


def _place(shelf: Shelf, user_session_id: str, field: str) -> Place:
    """What names the row; the fields of what is remembered say the key first."""
    return user_session_id, *(reversed(field.split("\0")) if shelf == "remembered" else [field])


def _order(shelf: Shelf) -> Callable[[Place], Any]:
    if shelf == "remembered":
        return lambda place: place
    return lambda place: (place[0], int(place[1]) if len(place) > 1 else 0)


_PLACES: dict[Shelf, Callable[[Cluster, str, StoredQuery], AsyncGenerator[Sequence[Place], None]]] = {
    "sessions": _of_sessions,
    "versions": _beside_sessions,
    "remembered": _beside_sessions,
    "records": _of_records,
    "inbox": _of_mail,
    "outbox": _of_mail,
}
"""All places of a shelf behind the one that the query names, some at a time, in order."""
