"""Inbox and outbox in a Valkey Cluster: queries, and what is forgotten after its time.

What is asked of one conversation is answered by its bucket, in one moment. Other lists ask all 256 buckets which
messages they are, and then for those, leaving out which are in another status by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, cast

from chatstate.mailbox import REMEMBERED_FOR, DueQuery, InboxEntry, InboxQuery, OutboxEntry, OutboxQuery
from chatstate.model import Retention, before
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import (
    LETTERS,
    STATUSES,
    WIDTH,
    Box,
    Name,
    Pointer,
    bucket_sets,
    inbox_entry,
    known_of,
    outbox_entry,
)
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_erasing import DROP_POINTER, Erasing
from chatstate.stores.valkey_finishing import BELOW, box_call, left_text
from chatstate.stores.valkey_keys import SessionKeys, time_text
from chatstate.stores.valkey_lists import Bounds, first_members, look_into, of_all_slots
from chatstate.stores.valkey_steps import Steps, carry_out, reply_to, sure

_LIST, _SHOW = script("list_box", "no-writes"), script("show_message", "no-writes")
_DUE = script("due", "no-writes,allow-cross-slot-keys")
_SWEEP = script("sweep_message", "allow-oom", below=BELOW)

_BEHIND = b"\xff"
"""Is behind every text in UTF-8 in the order of bytes."""


async def inbox(cluster: Cluster, prefix: str, query: InboxQuery) -> list[InboxEntry]:
    """The messages that the query asks for, in its order."""
    statuses = (query.status,) if query.status else STATUSES["inbox"]
    from_the_end, limit = query.newest_first, query.limit
    if query.conversation is None:
        found = await _of_all(cluster, prefix, "inbox", statuses, from_the_end, limit)
    else:
        found = await _of_one(cluster, Box(prefix, "inbox", query.conversation), statuses, from_the_end, limit)
    entries = cast(list[InboxEntry], found)
    entries.sort(key=attrgetter("sent_at", "number"), reverse=from_the_end)
    return entries[:limit]


async def outbox(cluster: Cluster, prefix: str, query: OutboxQuery) -> list[OutboxEntry]:
    """The messages that the query asks for, in its order."""
    statuses = (query.status,) if query.status else STATUSES["outbox"]
    if query.user_session_id is not None:
        found = await _of_session(cluster, prefix, query, statuses)
    elif query.conversation is not None:
        found = await _of_one(cluster, Box(prefix, "outbox", query.conversation), statuses, False, query.limit)
    else:
        found = await _of_all(cluster, prefix, "outbox", statuses, False, query.limit)
    entries = cast(list[OutboxEntry], found)
    entries.sort(key=attrgetter("number"))
    return entries[: query.limit]


async def _of_one(
    cluster: Cluster, box: Box, statuses: Sequence[str], from_the_end: bool, limit: int
) -> list[InboxEntry | OutboxEntry]:
    given: list[str | bytes | int] = [
        int(from_the_end),
        limit,
        WIDTH[box.name],
        *(LETTERS[status] for status in statuses),
    ]
    (found,) = await cluster.read([Call(box.slot, ("EVALSHA_RO", _LIST.sha, 3, *box.own(), *given), _LIST)])
    return [_entry(box, key.decode(), known_of(kept), text) for key, kept, text in found]


def _entry(box: Box, key: str, known: dict[str, Any], text: bytes) -> InboxEntry | OutboxEntry:
    read: Any = inbox_entry if box.name == "inbox" else outbox_entry
    return read(key, box.conversation, known, text)  # type: ignore[no-any-return]


async def _of_all(
    cluster: Cluster, prefix: str, name: Name, statuses: Sequence[str], from_the_end: bool, limit: int
) -> list[InboxEntry | OutboxEntry]:
    sets = bucket_sets(prefix, name, "status")
    members: list[bytes] = []
    for status in statuses:
        letter = LETTERS[status]
        bounds = Bounds(b"[" + letter, b"[" + letter + _BEHIND, from_the_end)
        members += await first_members(cluster, sets, bounds, limit)
    members.sort(key=lambda member: member[1:], reverse=from_the_end)
    places = [_place(member[1 + WIDTH[name] :]) for member in members[:limit]]
    return await _shown(cluster, prefix, name, places, statuses)


async def _of_session(
    cluster: Cluster, prefix: str, query: OutboxQuery, statuses: Sequence[str]
) -> list[InboxEntry | OutboxEntry]:
    assert query.user_session_id is not None
    keys = SessionKeys(prefix, query.user_session_id)
    (members,) = await cluster.read([Call(keys.slot, ("ZRANGE", keys.own("out"), "-", "+", "BYLEX"))])
    places = [_place(member[18:]) for member in members]
    wanted = [place for place in places if query.conversation in (None, place[1])]
    found = cast(list[OutboxEntry], await _shown(cluster, prefix, "outbox", wanted, statuses))
    return [entry for entry in found if entry.user_session_id == query.user_session_id]


def _place(text: bytes) -> tuple[str, str]:
    """The key and the conversation."""
    key, _, conversation = text.decode().partition("\0")
    return key, conversation


async def _shown(
    cluster: Cluster, prefix: str, name: Name, places: Sequence[tuple[str, str]], statuses: Sequence[str]
) -> list[InboxEntry | OutboxEntry]:
    boxes = [Box(prefix, name, conversation) for _, conversation in places]
    calls = [
        Call(box.slot, ("EVALSHA_RO", _SHOW.sha, 2, *box.own()[:2], key), _SHOW)
        for box, (key, _) in zip(boxes, places, strict=True)
    ]
    found = []
    for box, (key, _), (kept, text) in zip(boxes, places, await cluster.read(calls), strict=True):
        known = known_of(kept) if kept else {"status": ""}
        if known["status"] in statuses:
            found.append(_entry(box, key, known, text))
    return found


async def due(cluster: Cluster, prefix: str, query: DueQuery) -> list[str]:
    """The conversations that the query asks for, in its order."""
    width = WIDTH[query.box]
    sets = bucket_sets(prefix, query.box, "heads")
    now = time_text(query.now)
    heads = await look_into(cluster, sets, _DUE, now, 1, width)
    heads.sort()
    chosen = [one for _, one in heads[: query.limit]]
    found = await look_into(cluster, chosen, _DUE, now, query.limit, width)
    members = sorted(member for member, _ in found)
    return [member[width + 15 :].decode() for member in members[: query.limit]]


# --- Sweeping ---------------------------------------------------------------------------------------------------------


async def sweep(cluster: Cluster, prefix: str, now: datetime, retention: Retention, limit: int) -> int:
    """Forget what has come to its end; of how many messages, at most, unless all of them have to wait for their
    shards."""
    forget_since = before(now, REMEMBERED_FOR)
    kept_since = retention.visits_since(now)
    ends = {b"d": forget_since} | ({b"o": min(forget_since, kept_since)} if kept_since else {})
    mail, found = Erasing(prefix), [0]
    for name in ("inbox", "outbox"):
        for letter, end in ends.items():
            bounds = Bounds(b"[" + letter, b"[" + letter + time_text(end).encode() + _BEHIND)
            members = await first_members(cluster, bucket_sets(prefix, name, "age"), bounds, limit)
            outcomes = await carry_out(cluster, [_forgotten(mail, prefix, name, member) for member in members])
            found.append(len(members) if None in outcomes else 0)
    return max(found)


async def sweep_fences(cluster: Cluster, prefix: str, limit: int) -> None:
    """Erase what was to be erased when somebody was interrupted, of some sessions."""
    fenced = await first_members(cluster, of_all_slots(prefix, "fences"), Bounds(), limit)
    mail = Erasing(prefix)
    await carry_out(cluster, [_unfenced(mail, member.decode()) for member in fenced])


def _forgotten(mail: Erasing, prefix: str, name: Name, member: bytes) -> Steps[None]:
    """Forget a message: first where it is. Whoever is interrupted is followed by the next sweep."""
    age = member[:16].decode()
    key, conversation = _place(member[16:])
    box = Box(prefix, name, conversation)
    shown = yield from reply_to(Call(box.slot, ("HGET", box.own()[0], key)))
    known = known_of(shown) if shown else {}
    if name == "inbox":
        pointer = Pointer(prefix, "in", key)
        calls = [run_script(DROP_POINTER, pointer.slot, [pointer.key], conversation)]
        if home := known.get("home"):
            calls.append(mail.mark_closed(home, key))
    else:
        calls = mail.drop_pointers(key, conversation, known.get("provider", ""))
        if session := known.get("session"):
            keys = SessionKeys(prefix, session)
            calls.append(
                Call(keys.slot, ("ZREM", keys.own("out"), left_text(key, conversation, known["age"], known["at"])))
            )
    sure((yield calls))
    yield from reply_to(box_call(_SWEEP, box, {"key": key, "age": age}))


def _unfenced(mail: Erasing, session: str) -> Steps[Any]:
    return (yield from mail.clear_fences(session))
