"""Records in a Valkey Cluster: what the scripts are given, what their replies mean, and lists over all buckets.

A record is one text in a hash of its bucket: a head of fixed length and its document (`lua/write_record.lua`). Three
sorted sets of the bucket name its records: by collection and key; by collection, change and key; by end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import asdict

from chatstate.record import (
    PutRecord,
    Record,
    RecordConflict,
    RecordDropped,
    RecordQuery,
    RecordWrite,
)
from chatstate.row import RecordRow
from chatstate.stores.lua import script
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_keys import Bucket, bucket_of, time_of, time_text
from chatstate.stores.valkey_lists import Bounds, SortedSet, first_members, of_all_buckets
from chatstate.stores.valkey_sessions import check_text, until
from chatstate.stores.valkey_steps import Steps, reply_to, sure

HEAD = 46
_NO_TIME = "-" * 15
_FEW = 2000
"""If so few have changed, they are sorted here; else all of the collection are looked through for them."""

_PUT = script("write_record")
_DROP, _SWEEP = script("write_record", "allow-oom"), script("sweep_records", "allow-oom")
"""What takes room is refused when there is none; what gives room is not."""

_INDEXES = ("keys", "changed", "ends")


def name_of(collection: str, key: str) -> bytes:
    """What a record is called where it lies."""
    return f"{collection}\0{key}".encode()


def bucket(prefix: str, name: bytes) -> Bucket:
    """Where the record with this name lies."""
    return Bucket(prefix, "r", bucket_of(name))


def _keys(place: Bucket) -> list[str]:
    return [place.key(name) for name in ("docs", *_INDEXES)]


def index_sets(prefix: str, name: str) -> Sequence[SortedSet]:
    """The sets of all buckets that name records in this order."""
    return of_all_buckets(prefix, "r", name)


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(prefix: str, write: RecordWrite) -> Steps[Any]:
    """Carry out one write. Raises `WriteRefused` for what no store can keep."""
    check_text(write.collection)
    check_text(write.key)
    ends, document = _NO_TIME, ""
    if isinstance(write, PutRecord):
        document = write.document
        check_text(document)
        ends = time_text(write.expires_at) if write.expires_at else _NO_TIME
    verb, run = ("put", _PUT) if isinstance(write, PutRecord) else ("drop", _DROP)
    expect = "" if write.expect is None else write.expect
    place = bucket(prefix, name_of(write.collection, write.key))
    given = (write.collection, write.key, time_text(write.now), expect, ends, document)
    done, number = yield from reply_to(run_script(run, place.slot, _keys(place), verb, *given))
    version = int(number)
    if not done:
        return RecordConflict(version)
    if isinstance(write, PutRecord):
        return Record(write.collection, write.key, write.document, version, write.now, write.expires_at)
    return RecordDropped(version)


def put_row(prefix: str, row: RecordRow) -> Steps[bool]:
    """Put a record there as it is."""
    ends = _NO_TIME if row.expires_at is None else time_text(row.expires_at)
    place = bucket(prefix, name_of(row.collection, row.key))
    given = (row.collection, row.key, time_text(row.changed_at), "", ends, row.document, row.version)
    done, _ = yield from reply_to(run_script(_PUT, place.slot, _keys(place), "put", *given))
    return bool(done)


def drop_row(prefix: str, collection: str, key: str) -> Steps[bool]:
    """Remove a record, expired or not; whether it was there."""
    place = bucket(prefix, name_of(collection, key))
    given = (collection, key, "", "", _NO_TIME, "")
    done, _ = yield from reply_to(run_script(_DROP, place.slot, _keys(place), "drop", *given))
    return bool(done)


# --- Reading ----------------------------------------------------------------------------------------------------------


async def records(cluster: Cluster, prefix: str, query: RecordQuery) -> list[Record]:
    """The records that the query asks for, in its order."""
    if query.key is not None:
        found = await _read(cluster, prefix, query, [name_of(query.collection, query.key)])
        return [record for record in found if record.key > query.after][: query.limit]
    if query.changed_since:
        bounds = _bounds(query.collection, time_text(query.changed_since))
        members = await first_members(cluster, index_sets(prefix, "changed"), bounds, _FEW + 1)
        if len(members) <= _FEW:
            return await _sorted_here(cluster, prefix, query, members)
    return await _looked_through(cluster, prefix, query)


def _bounds(collection: str, first: str) -> Bounds:
    start = f"{collection}\0".encode()
    return Bounds(b"[" + start + first.encode(), b"(" + start[:-1] + b"\1")


async def _sorted_here(cluster: Cluster, prefix: str, query: RecordQuery, changed: Sequence[bytes]) -> list[Record]:
    """Of those that have changed, the page by key."""
    start = len(name_of(query.collection, ""))
    after = name_of(query.collection, query.after)
    names = {member[:start] + member[start + 15 :] for member in changed}
    return (await _read(cluster, prefix, query, sorted(name for name in names if name > after)))[: query.limit]


async def _looked_through(cluster: Cluster, prefix: str, query: RecordQuery) -> list[Record]:
    found: list[Record] = []
    bounds = _bounds(query.collection, "")
    if query.after:
        bounds = bounds._replace(first=b"(" + name_of(query.collection, query.after))
    while len(found) < query.limit:
        names = await first_members(cluster, index_sets(prefix, "keys"), bounds, query.limit)
        found += await _read(cluster, prefix, query, names)
        if len(names) < query.limit:
            break
        bounds = bounds._replace(first=b"(" + names[-1])
    return found[: query.limit]


async def texts(cluster: Cluster, prefix: str, names: Sequence[bytes]) -> list[bytes | None]:
    """The texts of the records with these names, in order; None for what is not there."""
    by_bucket: dict[int, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        by_bucket[bucket_of(name)].append(place)
    calls = []
    for number, places in by_bucket.items():
        one = Bucket(prefix, "r", number)
        calls.append(Call(one.slot, ("HMGET", one.key("docs"), *(names[place] for place in places))))
    found: list[bytes | None] = [None] * len(names)
    for places, replies in zip(by_bucket.values(), await cluster.read(calls), strict=True):
        for place, reply in zip(places, replies, strict=True):
            found[place] = reply
    return found


async def _read(cluster: Cluster, prefix: str, query: RecordQuery, names: Sequence[bytes]) -> list[Record]:
    """Those of these records that the query wants, in this order."""
    found = zip(names, await texts(cluster, prefix, names), strict=True)
    rows = [_record(name, text) for name, text in found if text]
    return [row for row in rows if _is_wanted(row, query)]


def _record(name: bytes, text: bytes) -> Record:
    collection, _, key = name.decode().partition("\0")
    ends = None if text[31:46] == _NO_TIME.encode() else time_of(text[31:46])
    return Record(collection, key, text[HEAD:].decode(), int(text[:16]), time_of(text[16:31]), ends)


def _is_wanted(row: Record, query: RecordQuery) -> bool:
    if query.changed_since and row.changed_at < query.changed_since:
        return False
    return row.expires_at is None or row.expires_at > query.now


async def rows(cluster: Cluster, prefix: str, names: Sequence[bytes]) -> list[RecordRow]:
    """Those of these records that are there, in order, expired or not."""
    found = zip(names, await texts(cluster, prefix, names), strict=True)
    return [RecordRow(**asdict(_record(name, text))) for name, text in found if text]


# --- Sweeping ---------------------------------------------------------------------------------------------------------


async def sweep(cluster: Cluster, prefix: str, now: datetime, limit: int) -> int:
    """Remove those that have expired; how many were found."""
    by_bucket: dict[int, list[bytes]] = defaultdict(list)
    found = await first_members(cluster, index_sets(prefix, "ends"), until(now), limit)
    for member in found:
        by_bucket[bucket_of(member[15:])].append(member)
    places = [(Bucket(prefix, "r", number), members) for number, members in by_bucket.items()]
    calls = [run_script(_SWEEP, place.slot, _keys(place), *members) for place, members in places]
    sure(await cluster.write(calls))
    return len(found)
