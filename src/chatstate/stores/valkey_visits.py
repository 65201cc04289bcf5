"""Visits in a Valkey Cluster: what the scripts are given, what their replies mean, and lists over all buckets.

A visit lies in the bucket of its user session, so that all visits of one change in one step (`lua/write_visits.lua`).
By its own id it is found through a *pointer*, which says in which bucket, and has a number: at first 1. To create a
visit, its pointer is set, unless it is set already, and then the visit is made in that bucket, if it is not there.

Whoever finds a pointer without a visit takes it over for another bucket: first creations by its number are *voided* in
the old bucket, then the pointer gets a higher number by compare-and-set. So of two that create a visit with one id, one
fails, wherever both are interrupted; and a pointer that is left behind is in nobody's way. A removal voids likewise,
then takes the pointer away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct, msgpack
from msgspec.structs import asdict

from chatstate.errors import StoreBusy
from chatstate.model import Within, prefix_end
from chatstate.row import VisitRow
from chatstate.stores.lua import script
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_keys import Bucket, bucket_of, digest, slot_of, time_of, time_text
from chatstate.stores.valkey_lists import Bounds, Member, SortedSet, first_found, first_members, of_all_buckets
from chatstate.stores.valkey_sessions import check_text, until
from chatstate.stores.valkey_steps import Steps, reply_to, sure
from chatstate.visit import (
    Changes,
    ChangeVisit,
    ChangeVisits,
    CreateVisit,
    EraseVisits,
    UserSessionQuery,
    Visit,
    VisitMissing,
    VisitPosition,
    VisitQuery,
    VisitsChanged,
    VisitsErased,
    VisitTaken,
    VisitWrite,
    duration_minutes,
)

_TRIES = 20
"""How often a creation looks again at what others do to its pointer."""

_FEW = 2000
"""If so few visits are of the user sessions that are asked for, they are sorted here; else all are looked through."""

_WRITE, _REMOVE = script("write_visits"), script("write_visits", "allow-oom")
_POINT, _UNPOINT = script("point_visit"), script("point_visit", "allow-oom")
"""What takes room is refused when there is none; what gives room is not."""


class _Kept(Struct, omit_defaults=True):
    """A visit as it lies there. `number` is that of its pointer."""

    number: int
    user_session_id: str
    session_start_time: str
    created_at: str
    user_id: str | None = None
    session_end_time: str | None = None
    total_messages_count: int = 0
    given_duration_minutes: int | None = None
    session_completed: bool = False
    session_outcome: str | None = None
    final_step_reached: str | None = None
    user_agent: str | None = None
    ip_address: str | None = None
    device_type: str | None = None


_DECODER = msgpack.Decoder(_Kept)


def _visit(session_id: str, text: bytes) -> Visit:
    kept = asdict(_DECODER.decode(text))
    del kept["number"]
    start, end = time_of(kept["session_start_time"]), kept["session_end_time"]
    end = None if end is None else time_of(end)
    given = kept.pop("given_duration_minutes")
    kept |= {
        "session_id": session_id,
        "session_start_time": start,
        "session_end_time": end,
        "session_duration_minutes": duration_minutes(start, end) if given is None else given,
        "created_at": time_of(kept["created_at"]),
    }
    return Visit(**kept)


def _bucket(prefix: str, user_session_id: str) -> Bucket:
    return Bucket(prefix, "v", bucket_of(user_session_id))


def _run(place: Bucket, verb: str, *given: str | bytes | int) -> Call:
    keys = [place.key(name) for name in ("docs", "starts", "users", "people", "created", "void:", "ids")]
    return run_script(_REMOVE if verb in ("erase", "sweep", "drop") else _WRITE, place.slot, keys, verb, *given)


# --- Pointers ---------------------------------------------------------------------------------------------------------


def _pointer(prefix: str, session_id: str) -> tuple[int, str]:
    tag = digest(session_id)
    return slot_of(tag), f"{prefix}{{{tag}}}:visit"


def _point(prefix: str, session_id: str, expected: str, wanted: str) -> Call:
    slot, key = _pointer(prefix, session_id)
    return run_script(_POINT if wanted else _UNPOINT, slot, [key], expected, wanted)


def _look(prefix: str, session_id: str) -> Call:
    slot, key = _pointer(prefix, session_id)
    return Call(slot, ("GET", key))


def _pointing(number: int, place: Bucket) -> str:
    return f"{number}:{place.number}"


def _read_pointer(prefix: str, text: bytes) -> tuple[int, Bucket]:
    """Its number, and where the visit is, if there is one."""
    number, _, place = text.partition(b":")
    return int(number), Bucket(prefix, "v", int(place))


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(prefix: str, write: VisitWrite) -> Steps[Any]:
    """Carry out one write. Raises `WriteRefused` for what no store can keep."""
    check_text(write.session_id if isinstance(write, CreateVisit | ChangeVisit) else write.user_session_id)
    if isinstance(write, CreateVisit):
        return _create(prefix, write)
    if isinstance(write, ChangeVisit):
        return _change(prefix, write)
    return _change_all(prefix, write) if isinstance(write, ChangeVisits) else _erase(prefix, write)


def _create(prefix: str, write: CreateVisit) -> Steps[Any]:
    members = _kept(asdict(write))
    session_id = members.pop("session_id")
    here = _bucket(prefix, write.user_session_id)
    expected, wanted, seen = "", _pointing(1, here), b""
    for _ in range(_TRIES):
        pointer = yield from reply_to(_point(prefix, session_id, expected, wanted))
        if not pointer:  # its visit was removed
            expected, wanted, seen = "", _pointing(1, here), b""
            continue
        number, there = _read_pointer(prefix, pointer)
        if there.number == here.number:
            text = msgpack.encode(_Kept(number=number, **members))
            reply = yield from reply_to(_run(here, "create", session_id, text))
            if reply == b"made":
                return _visit(session_id, text)
        else:
            # At first it is only looked at: its visit may be about to be made.
            reply = yield from reply_to(_run(there, "void", session_id, number if pointer == seen else 0))
        if reply == b"taken":
            return VisitTaken()
        if isinstance(reply, int):
            expected, wanted = pointer.decode(), _pointing(reply + 1, here)
        elif pointer == seen:
            expected, wanted = pointer.decode(), _pointing(number + 1, here)
        seen = pointer
    return StoreBusy()


def _change(prefix: str, write: ChangeVisit) -> Steps[Any]:
    within = {"prefix": write.within.prefix}
    if write.within.only is not None:
        within = {"prefix": "", "only": write.within.only}
    packed = msgpack.encode({**_packable(write.changes), **within})
    pointer = yield from reply_to(_look(prefix, write.session_id))
    if pointer is None:
        return VisitMissing()
    _, place = _read_pointer(prefix, pointer)
    text = yield from reply_to(_run(place, "change", write.session_id, packed))
    return _visit(write.session_id, text) if text else VisitMissing()


def _change_all(prefix: str, write: ChangeVisits) -> Steps[Any]:
    packed = msgpack.encode(_packable(write.changes))
    place = _bucket(prefix, write.user_session_id)
    count = yield from reply_to(_run(place, "change_all", write.user_session_id, packed))
    return VisitsChanged(count)


def _erase(prefix: str, write: EraseVisits) -> Steps[Any]:
    person = [] if write.user_id is None else [write.user_id]
    for text in person:
        check_text(text)
    place = _bucket(prefix, write.user_session_id)
    removed = yield from reply_to(_run(place, "erase", write.user_session_id, *person))
    yield _forget(prefix, place, removed)  # what fails of it leaves a pointer, which is in nobody's way
    return VisitsErased(len(removed) // 2)


def _forget(prefix: str, place: Bucket, removed: Sequence[Any]) -> list[Call]:
    """Take the pointers away, unless they have been taken over."""
    pairs = zip(removed[::2], removed[1::2], strict=True)
    return [_point(prefix, name.decode(), _pointing(number, place), "") for name, number in pairs]


def _packable(changes: Changes) -> dict[str, Any]:
    members = _kept({name: value for name, value in asdict(changes).items() if value is not UNSET})
    return {
        "set": {name: value for name, value in members.items() if value is not None},
        "unset": [name for name, value in members.items() if value is None],
    }


def _kept(members: dict[str, Any]) -> dict[str, Any]:
    """These members as they are kept. Raises `WriteRefused`."""
    for value in members.values():
        if isinstance(value, str):
            check_text(value)
    return {name: time_text(value) if isinstance(value, datetime) else value for name, value in members.items()}


def put_row(prefix: str, row: VisitRow) -> Steps[bool]:
    """Put a visit there as it is. One of this id that lies in another bucket is removed before."""
    members = _kept(asdict(row))
    session_id = members.pop("session_id")
    here = _bucket(prefix, row.user_session_id)
    expected, wanted = "", _pointing(1, here)
    for _ in range(_TRIES):
        pointer = yield from reply_to(_point(prefix, session_id, expected, wanted))
        if not pointer:
            expected, wanted = "", _pointing(1, here)
            continue
        number, there = _read_pointer(prefix, pointer)
        if there.number == here.number:
            reply = yield from reply_to(_run(here, "put", session_id, msgpack.encode(_Kept(number=number, **members))))
            if reply == b"made":
                return True
            number = reply
        else:
            yield from reply_to(_run(there, "drop", session_id, number))
        expected, wanted = pointer.decode(), _pointing(number + 1, here)
    raise StoreBusy()


def drop_row(prefix: str, session_id: str) -> Steps[bool]:
    """Remove a visit; whether it was there."""
    pointer = yield from reply_to(_look(prefix, session_id))
    if pointer is None:
        return False
    number, place = _read_pointer(prefix, pointer)
    removed = yield from reply_to(_run(place, "drop", session_id, number))
    yield from reply_to(_point(prefix, session_id, pointer.decode(), ""))
    return bool(removed)


# --- Reading ----------------------------------------------------------------------------------------------------------


async def visits(cluster: Cluster, prefix: str, query: VisitQuery) -> list[Visit]:
    """The visits that the query asks for, in its order."""
    if query.session_id is not None:
        return await _one(cluster, prefix, query.session_id, query.within)
    if query.within.only is not None and query.user_session_id in (None, query.within.only):
        query = VisitQuery(user_session_id=query.within.only, limit=query.limit, after=query.after)
    if query.user_session_id is not None:
        if not query.within.covers(query.user_session_id):
            return []
        return await _of_user_session(cluster, prefix, query.user_session_id, query)
    if query.within.prefix:
        found = await first_found(cluster, _sets(prefix, "users"), _beginning(query.within.prefix), _FEW + 1)
        if len(found) <= _FEW:
            return await _sorted_here(cluster, prefix, query, found)
    return await _looked_through(cluster, prefix, query)


async def _one(cluster: Cluster, prefix: str, session_id: str, within: Within) -> list[Visit]:
    (pointer,) = await cluster.read([_look(prefix, session_id)])
    if pointer is None:
        return []
    _, place = _read_pointer(prefix, pointer)
    (text,) = await cluster.read([Call(place.slot, ("HGET", place.key("docs"), session_id))])
    found = [_visit(session_id, text)] if text else []
    return [visit for visit in found if within.covers(visit.user_session_id)]


def _sets(prefix: str, name: str) -> Sequence[SortedSet]:
    return of_all_buckets(prefix, "v", name)


def _behind(after: VisitPosition | None) -> bytes:
    return f"{time_text(after.session_start_time)}{after.session_id}".encode() if after else b""


async def _of_user_session(cluster: Cluster, prefix: str, user_session_id: str, query: VisitQuery) -> list[Visit]:
    place = _bucket(prefix, user_session_id)
    start = f"{user_session_id}\0".encode()
    last = b"(" + (start + _behind(query.after) if query.after else start[:-1] + b"\1")
    bounds = Bounds(b"[" + start, last, from_the_end=True)
    members = await first_members(cluster, [_sets(prefix, "users")[place.number]], bounds, query.limit)
    return await _read(cluster, [(place, member[len(start) + 15 :]) for member in members])


def _beginning(start: str) -> Bounds:
    """Members that begin with an id that begins so."""
    end = prefix_end(start)
    return Bounds(b"[" + start.encode(), b"(" + end.encode() if end else b"+")


async def _sorted_here(cluster: Cluster, prefix: str, query: VisitQuery, found: Sequence[Member]) -> list[Visit]:
    """Of all these that are of the user sessions that are asked for, the page."""
    by_position = {}
    for member in found:
        user_session_id, _, position = member.text.partition(b"\0")
        if not query.after or position < _behind(query.after):
            by_position[position] = _bucket(prefix, user_session_id.decode())
    chosen = sorted(by_position.items(), reverse=True)[: query.limit]
    return await _read(cluster, [(place, position[15:]) for position, place in chosen])


async def _looked_through(cluster: Cluster, prefix: str, query: VisitQuery) -> list[Visit]:
    sets = _sets(prefix, "starts")
    numbers = {one: number for number, one in enumerate(sets)}
    bounds = Bounds(last=b"(" + _behind(query.after) if query.after else b"+", from_the_end=True)
    rows: list[Visit] = []
    while len(rows) < query.limit:
        found = await first_found(cluster, sets, bounds, query.limit)
        page = await _read(cluster, [(Bucket(prefix, "v", numbers[one.of]), one.text[15:]) for one in found])
        rows += [visit for visit in page if query.within.covers(visit.user_session_id)]
        if len(found) < query.limit:
            break
        bounds = bounds._replace(last=b"(" + found[-1].text)
    return rows[: query.limit]


async def _read(cluster: Cluster, places: Sequence[tuple[Bucket, bytes]]) -> list[Visit]:
    """Those of these visits that are there, in this order."""
    texts = await cluster.read([Call(place.slot, ("HGET", place.key("docs"), name)) for place, name in places])
    return [_visit(name.decode(), text) for (_, name), text in zip(places, texts, strict=True) if text]


async def user_sessions(cluster: Cluster, prefix: str, query: UserSessionQuery) -> list[str]:
    """The ids that the query asks for, in its order."""
    within = query.within
    person = f"{query.user_id}\0"
    sets = _sets(prefix, "people")
    bounds = _beginning(person + (within.prefix if within.only is None else within.only))
    if query.after:
        bounds = bounds._replace(first=max(bounds.first, _past(person, query.after)))
    found: list[str] = []
    while len(found) < query.limit:
        members = await first_members(cluster, sets, bounds, query.limit)
        ids = (member[len(person.encode()) :].partition(b"\0")[0].decode() for member in members)
        found += [name for name in dict.fromkeys(ids) if within.covers(name)]
        if len(members) < query.limit:
            break
        last = members[-1][len(person.encode()) :].partition(b"\0")[0].decode()
        bounds = bounds._replace(first=_past(person, last))
    return found[: query.limit]


def _past(person: str, user_session_id: str) -> bytes:
    """Where members of this person and user session have ended."""
    return f"[{person}{user_session_id}\1".encode()


async def rows(cluster: Cluster, prefix: str, after: str | None, limit: int) -> AsyncIterator[list[VisitRow]]:
    """Whole rows in the order of their ids, from behind one, at most so many at a time."""
    sets = row_sets(prefix)
    numbers = {one: number for number, one in enumerate(sets)}
    bounds = Bounds() if after is None else Bounds(first=b"(" + after.encode())
    while found := await first_found(cluster, sets, bounds, limit):
        places = [(Bucket(prefix, "v", numbers[one.of]), one.text) for one in found]
        texts = await cluster.read([Call(place.slot, ("HGET", place.key("docs"), name)) for place, name in places])
        yield [_row(name.decode(), text) for (_, name), text in zip(places, texts, strict=True) if text]
        if len(found) < limit:
            return
        bounds = Bounds(first=b"(" + found[-1].text)


def row_sets(prefix: str) -> Sequence[SortedSet]:
    """The sets of all buckets that name visits by id."""
    return _sets(prefix, "ids")


def _row(session_id: str, text: bytes) -> VisitRow:
    kept = asdict(_DECODER.decode(text))
    del kept["number"]
    for name in ("session_start_time", "session_end_time", "created_at"):
        kept[name] = None if kept[name] is None else time_of(kept[name])
    return VisitRow(session_id=session_id, **kept)


# --- Sweeping ---------------------------------------------------------------------------------------------------------


async def sweep(cluster: Cluster, prefix: str, kept_since: datetime, limit: int) -> int:
    """Remove those that were created then or earlier; how many were found."""
    sets = _sets(prefix, "created")
    numbers = {one: number for number, one in enumerate(sets)}
    by_bucket: dict[int, list[bytes]] = defaultdict(list)
    found = await first_found(cluster, sets, until(kept_since), limit)
    for member in found:
        by_bucket[numbers[member.of]].append(member.text)
    places = [Bucket(prefix, "v", number) for number in by_bucket]
    calls = [_run(place, "sweep", *by_bucket[place.number]) for place in places]
    replies = await cluster.write(calls)
    removed = [(place, reply) for place, reply in zip(places, replies, strict=True) if isinstance(reply, list)]
    await cluster.write([call for place, reply in removed for call in _forget(prefix, place, reply)])
    sure(replies)
    return len(found)
