"""Whole rows in a Valkey Cluster, for copies: pages of them in the order of their places, and putting and dropping."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from msgspec import msgpack
from msgspec.structs import asdict

from chatstate.errors import StoreError
from chatstate.row import (
    AnyRow,
    DropRow,
    Place,
    PutRow,
    RememberedRow,
    RowChanged,
    RowCount,
    RowQuery,
    RowShelf,
    RowWrite,
    SessionRow,
    VersionRow,
    shelf_of,
)
from chatstate.stores import valkey_mail_rows as mail
from chatstate.stores import valkey_records as records
from chatstate.stores import valkey_visits as visits
from chatstate.stores.base import Outcome
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import Name, bucket_sets
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_keys import SessionKeys, time_of, time_text
from chatstate.stores.valkey_lists import ALL, Bounds, SortedSet, count_members, first_members, of_all_slots
from chatstate.stores.valkey_node import EPOCH
from chatstate.stores.valkey_sessions import check_text, forget_call, load_call, session_of
from chatstate.stores.valkey_steps import Steps, carry_out, reply_to

_PUT_SESSION, _PUT_VERSION, _PUT_KEY = script("put_session"), script("put_version"), script("put_key")
_DROP_SESSION, _DROP_VERSION = script("put_session", "allow-oom"), script("put_version", "allow-oom")
"""What takes room is refused when there is none; what gives room is not."""

_AT_ONCE = 32
"""How many sessions are read at once: their states may be large."""

_NO_TIME, _NO_SECONDS = "-" * 15, "-" * 10


# --- Listing ----------------------------------------------------------------------------------------------------------


async def rows(cluster: Cluster, prefix: str, query: RowQuery) -> list[AnyRow]:
    """The rows that the query asks for, in its order."""
    found: list[AnyRow] = []
    size = 0
    async for row in _LISTED[query.shelf](cluster, prefix, query):
        found.append(row)
        size += len(getattr(row, "chat_state", "") or getattr(row, "document", "") or "")
        if len(found) >= query.limit or size > query.size:
            break
    return found


async def _ids(cluster: Cluster, prefix: str, name: str, query: RowQuery) -> AsyncIterator[list[str]]:
    """Ids from one of the sets, some at a time, from that of the place on: of it there may be more."""
    bound = b"-"
    if query.after:
        bound = (b"(" if len(query.after) == 1 else b"[") + str(query.after[0]).encode()
    async for members in _members(cluster, of_all_slots(prefix, name), bound, query.limit):
        yield [member.decode() for member in members]


async def _members(cluster: Cluster, sets: Sequence[SortedSet], bound: bytes, limit: int) -> AsyncIterator[list[bytes]]:
    """Members of these sets, in order, some at a time, though more are looked up at once: that asks every set."""
    limit = max(limit, _AT_ONCE)
    while True:
        members = await first_members(cluster, sets, Bounds(first=bound), limit)
        for start in range(0, len(members), _AT_ONCE):
            yield members[start : start + _AT_ONCE]
        if len(members) < limit:
            return
        bound = b"(" + members[-1]


async def _sessions(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    async for ids in _ids(cluster, prefix, "ids", query):
        texts = await cluster.read([load_call(prefix, name) for name in ids])
        for name, text in zip(ids, texts, strict=True):
            if text:
                yield _session_row(name, text)


def _session_row(user_session_id: str, text: bytes) -> SessionRow:
    session = session_of(user_session_id, text)
    lives = text[76:86]
    return SessionRow(
        user_session_id=user_session_id,
        session_id=session.session_id,
        chat_state=session.chat_state,
        last_activity=session.last_activity,
        created_at=session.created_at,
        updated_at=session.updated_at,
        version=session.version,
        expires_in=None if lives.startswith(b"-") else int(lives),
        expires_at=session.expires_at,
    )


async def _versions(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    async for ids in _ids(cluster, prefix, "ids", query):
        keys = [SessionKeys(prefix, name) for name in ids]
        replies = await cluster.read([Call(each.slot, ("HGETALL", each.own("v"))) for each in keys])
        for name, flat in zip(ids, replies, strict=True):
            versions = sorted(zip(map(int, flat[::2]), flat[1::2], strict=True))
            for number, packed in versions:
                if not query.after or (name, number) > query.after:
                    yield _version_row(name, number, packed)


def _version_row(user_session_id: str, version: int, packed: bytes) -> VersionRow:
    session_id, active, saved, state = msgpack.decode(packed)
    return VersionRow(
        user_session_id=user_session_id,
        version=version,
        session_id=session_id,
        last_activity=time_of(active),
        saved_at=time_of(saved),
        chat_state=state,
    )


async def _remembered(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    async for ids in _ids(cluster, prefix, "keyed", query):
        keys = [SessionKeys(prefix, name) for name in ids]
        replies = await cluster.read([Call(each.slot, ("HGETALL", each.own("r"))) for each in keys])
        for name, flat in zip(ids, replies, strict=True):
            found = [_remembered_row(name, *pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
            for row in sorted(found, key=lambda row: row.place):
                if not query.after or row.place > query.after:
                    yield row


def _remembered_row(user_session_id: str, field: bytes, packed: bytes) -> RememberedRow:
    key, _, caller = field.decode().partition("\0")
    known = msgpack.decode(packed)
    return RememberedRow(
        user_session_id=user_session_id,
        caller=caller,
        key=key,
        digest=bytes.fromhex(known["digest"]),
        forget_at=time_of(known["forget"]),
        deleted=bool(known.get("deleted")),
        session_id=known["session_id"],
        version=int(known["version"]),
        last_activity=time_of(known["active"]),
        created_at=time_of(known["created"]),
        updated_at=time_of(known["updated"]),
        expires_at=None if known["ends"].startswith("-") else time_of(known["ends"]),
        chat_state=known.get("state"),
    )


async def _visits(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    after = str(query.after[0]) if query.after else None
    async for page in visits.rows(cluster, prefix, after, max(query.limit, _AT_ONCE)):
        for row in page:
            yield row


async def _records(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    collection, key = (*map(str, query.after), "", "")[:2]
    bound = b"(" + records.name_of(collection, key) if query.after else b"-"
    async for names in _members(cluster, records.index_sets(prefix, "keys"), bound, query.limit):
        for row in await records.rows(cluster, prefix, names):
            yield row


async def _messages(cluster: Cluster, prefix: str, query: RowQuery) -> AsyncIterator[AnyRow]:
    name: Name = "inbox" if query.shelf == "inbox" else "outbox"
    after = str(query.after[0]) if query.after else None
    async for places in mail.places(cluster, prefix, name, after, max(query.limit, _AT_ONCE)):
        for start in range(0, len(places), _AT_ONCE):
            for row in await mail.rows(cluster, prefix, name, places[start : start + _AT_ONCE]):
                yield row


async def count(cluster: Cluster, prefix: str, query: RowCount) -> list[int]:
    """How many rows are on the shelf, about."""
    return [await _COUNTED[query.shelf](cluster, prefix)]


async def _count_versions(cluster: Cluster, prefix: str) -> int:
    total = 0
    async for ids in _ids(cluster, prefix, "ids", RowQuery(shelf="versions")):
        keys = [SessionKeys(prefix, name) for name in ids]
        total += sum(await cluster.read([Call(each.slot, ("HLEN", each.own("v"))) for each in keys]))
    return total


def _counting(sets: Callable[[str], Sequence[SortedSet]]) -> Callable[[Cluster, str], Awaitable[int]]:
    async def counted(cluster: Cluster, prefix: str) -> int:
        return await count_members(cluster, sets(prefix), ALL)

    return counted


_LISTED: dict[RowShelf, Callable[[Cluster, str, RowQuery], AsyncIterator[AnyRow]]] = {
    "sessions": _sessions,
    "versions": _versions,
    "remembered": _remembered,
    "visits": _visits,
    "records": _records,
    "inbox": _messages,
    "outbox": _messages,
}

_COUNTED: dict[RowShelf, Callable[[Cluster, str], Awaitable[int]]] = {
    "sessions": _counting(lambda prefix: of_all_slots(prefix, "ids")),
    "versions": _count_versions,
    "remembered": _counting(lambda prefix: of_all_slots(prefix, "keys")),
    "visits": _counting(visits.row_sets),
    "records": _counting(lambda prefix: records.index_sets(prefix, "keys")),
    "inbox": _counting(lambda prefix: bucket_sets(prefix, "inbox", "names")),
    "outbox": _counting(lambda prefix: bucket_sets(prefix, "outbox", "names")),
}


# --- Writing ----------------------------------------------------------------------------------------------------------


async def apply_rows(cluster: Cluster, prefix: str, writes: Sequence[RowWrite]) -> list[Outcome]:
    """Carry out writes, an outcome for each, in order: those of one shelf that stand together go side by side.

    Raises as `commit` does: then nothing has happened.
    """
    steps = [write_steps(prefix, write) for write in writes]
    outcomes: list[Outcome] = []
    for start, end in _together(writes):
        try:
            outcomes += await carry_out(cluster, steps[start:end])
        except StoreError as error:
            if not start:
                raise
            outcomes += [error] * (end - start)
    return outcomes


def _together(writes: Sequence[RowWrite]) -> Iterator[tuple[int, int]]:
    """Which writes go side by side: of one shelf, and of a place one alone."""
    start, seen = 0, set[Place]()
    for number, write in enumerate(writes):
        place = _place(write)
        if number and (_shelf(write) != _shelf(writes[number - 1]) or place in seen):
            yield start, number
            start, seen = number, set()
        seen.add(place)
    if writes:
        yield start, len(writes)


def write_steps(prefix: str, write: RowWrite) -> Steps[Outcome]:
    """What carries out one write. Raises `WriteRefused` for what no store can keep."""
    shelf = _shelf(write)
    if isinstance(write, PutRow):
        for value in asdict(write.row).values():
            if isinstance(value, str):
                check_text(value)
        return _changed(_PUT[shelf](prefix, write.row))
    return _changed(_DROPPED[shelf](prefix, *write.place))


def _changed(what: Call | Steps[bool]) -> Steps[Outcome]:
    return RowChanged(bool((yield from (reply_to(what) if isinstance(what, Call) else what))))


def _shelf(write: RowWrite) -> RowShelf:
    return write.shelf if isinstance(write, DropRow) else shelf_of(write.row)


def _place(write: RowWrite) -> Place:
    return write.place if isinstance(write, DropRow) else write.row.place


def _session_call(prefix: str, user_session_id: str, puts: bool, *given: str | bytes) -> Call:
    keys = SessionKeys(prefix, user_session_id)
    names = [keys.own(name) for name in ("s", "v", "r")] + [keys.of_slot(name) for name in ("ids", "active", "ends")]
    return run_script(
        _PUT_SESSION if puts else _DROP_SESSION, keys.slot, names, user_session_id, int(puts), EPOCH, *given
    )


def _put_session(prefix: str, row: SessionRow) -> Call:
    members = {
        "version": row.version,
        "updated": time_text(row.updated_at),
        "active": time_text(row.last_activity),
        "created": time_text(row.created_at),
        "ends": _text_or(row.expires_at, _NO_TIME),
        "lives": _NO_SECONDS if row.expires_in is None else f"{row.expires_in:010}",
        "session_id": row.session_id,
    }
    return _session_call(prefix, row.user_session_id, True, msgpack.encode(members), row.chat_state)


def _text_or(time: datetime | None, nothing: str) -> str:
    return nothing if time is None else time_text(time)


def _version_call(prefix: str, user_session_id: str, version: int, session_id: str = "", packed: bytes = b"") -> Call:
    keys = SessionKeys(prefix, user_session_id)
    return run_script(
        _PUT_VERSION if packed else _DROP_VERSION,
        keys.slot,
        [keys.own("s"), keys.own("v")],
        version,
        session_id,
        packed,
    )


def _put_version(prefix: str, row: VersionRow) -> Call:
    packed = msgpack.encode((row.session_id, time_text(row.last_activity), time_text(row.saved_at), row.chat_state))
    return _version_call(prefix, row.user_session_id, row.version, row.session_id, packed)


def _put_remembered(prefix: str, row: RememberedRow) -> Call:
    members: dict[str, Any] = {
        "digest": row.digest.hex(),
        "forget": time_text(row.forget_at),
        "session_id": row.session_id,
        "version": row.version,
        "active": time_text(row.last_activity),
        "created": time_text(row.created_at),
        "updated": time_text(row.updated_at),
        "ends": _text_or(row.expires_at, _NO_TIME),
    }
    if row.deleted:
        members["deleted"] = True
    if row.chat_state is not None:
        members["state"] = row.chat_state
    keys = SessionKeys(prefix, row.user_session_id)
    names = [keys.own("r"), keys.of_slot("keys"), keys.of_slot("keyed")]
    field = f"{row.key}\0{row.caller}"
    return run_script(_PUT_KEY, keys.slot, names, row.user_session_id, field, msgpack.encode(members))


_PUT: dict[RowShelf, Callable[[str, Any], Call | Steps[bool]]] = {
    "sessions": _put_session,
    "versions": _put_version,
    "remembered": _put_remembered,
    "visits": visits.put_row,
    "records": records.put_row,
    "inbox": mail.put,
    "outbox": mail.put,
}

_DROPPED: dict[RowShelf, Callable[..., Call | Steps[bool]]] = {
    "sessions": lambda prefix, name: _session_call(prefix, name, False),
    "versions": _version_call,
    "remembered": lambda prefix, name, caller, key: forget_call(prefix, name, f"{key}\0{caller}"),
    "visits": visits.drop_row,
    "records": records.drop_row,
    "inbox": lambda prefix, key: mail.drop(prefix, "inbox", key),
    "outbox": lambda prefix, key: mail.drop(prefix, "outbox", key),
}
