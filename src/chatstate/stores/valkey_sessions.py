"""Sessions in a Valkey Cluster: what the scripts are given, what their replies mean, and lists over all slots.

A session is one text, `cs:{digest of its id}:s`: a head of fixed length and the state (`lua/common.lua`). On the same
slot are its history, what is remembered of its idempotency keys, and what belongs to its messages
(`chatstate.stores.valkey_mailbox`). Five sorted sets of each slot name its sessions: by id, by activity and id, by end
and id; and what is remembered, by end and by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec import msgpack

from chatstate.encryption import HEAD_LENGTH, OVERHEAD, PLAIN, SEALED
from chatstate.errors import WriteRefused
from chatstate.mailbox import Settled
from chatstate.model import (
    LATEST,
    REMEMBERED_FOR,
    Conflict,
    Deleted,
    IdempotencyKey,
    Remembered,
    RememberedQuery,
    Replay,
    ReplayQuery,
    Retention,
    Save,
    Session,
    SessionQuery,
    Summary,
    Tag,
    Tagged,
    TagQuery,
    Version,
    VersionQuery,
    Write,
    prefix_end,
)
from chatstate.stores.base import Outcome
from chatstate.stores.lua import script
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_keys import SessionKeys, time_of, time_text
from chatstate.stores.valkey_lists import Bounds, first_members, of_all_slots
from chatstate.stores.valkey_node import EPOCH
from chatstate.stores.valkey_steps import Steps, reply_to

HEAD = 98
_NONE = b"-"
_ENOUGH = 620
"""How many bytes hold a head with its session_id."""

_SAVE, _DELETE = script("write_session"), script("write_session", "allow-oom")
"""What takes room is refused when there is none; what gives room is not."""


def check_text(text: str) -> None:
    """Raises `WriteRefused` for what no store can keep."""
    if "\0" in text:
        raise WriteRefused("The store cannot keep the character U+0000.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise WriteRefused("The store cannot keep lone surrogates.") from None


def check(write: Write) -> None:
    """Raises `WriteRefused` for what no store can keep."""
    texts = [write.user_session_id]
    if write.once:
        texts += [write.once.key, write.once.caller]
    if isinstance(write, Save):
        texts.append(write.chat_state or "")
    for text in texts:
        check_text(text)


# --- Reading ----------------------------------------------------------------------------------------------------------


class Gone:
    """Tells which sessions have expired at this moment."""

    __slots__ = ("idle_since", "now")

    def __init__(self, now: datetime, retention: Retention) -> None:
        idle_since = retention.idle_since(now)
        self.now = time_text(now).encode()
        self.idle_since = time_text(idle_since).encode() if idle_since else b""

    def __call__(self, head: bytes) -> bool:
        ends = head[61:76]
        if not ends.startswith(_NONE):
            return ends <= self.now
        return head[16:31] <= self.idle_since


def _ends(text: bytes | None) -> datetime | None:
    return None if not text or text.startswith(_NONE) else time_of(text)


def tag_of(text: bytes) -> Tag:
    return Tag(text[HEAD : HEAD + int(text[94:98])].decode(), int(text[:16]))


def session_of(user_session_id: str, text: bytes) -> Session:
    """The session that lies there as this text."""
    end = HEAD + int(text[94:98])
    return Session(
        text[HEAD:end].decode(),
        user_session_id,
        text[end:].decode(),
        time_of(text[31:46]),
        time_of(text[46:61]),
        time_of(text[16:31]),
        int(text[:16]),
        _ends(text[61:76]),
    )


def summary_of(user_session_id: str, text: bytes) -> Summary:
    times = (time_of(text[31:46]), time_of(text[46:61]), time_of(text[16:31]))
    tag = tag_of(text)
    return Summary(tag.session_id, user_session_id, *times, tag.version, _ends(text[61:76]))


def load_call(prefix: str, user_session_id: str) -> Call:
    keys = SessionKeys(prefix, user_session_id)
    return Call(keys.slot, ("GET", keys.own("s")))


def head_call(prefix: str, user_session_id: str) -> Call:
    keys = SessionKeys(prefix, user_session_id)
    return Call(keys.slot, ("GETRANGE", keys.own("s"), 0, _ENOUGH))


async def load(
    cluster: Cluster, prefix: str, ids: Sequence[str], now: datetime, retention: Retention
) -> dict[str, Session]:
    gone = Gone(now, retention)
    found = await cluster.read([load_call(prefix, user_session_id) for user_session_id in ids])
    return {
        user_session_id: session_of(user_session_id, text)
        for user_session_id, text in zip(ids, found, strict=True)
        if text and not gone(text)
    }


async def tags(cluster: Cluster, prefix: str, query: TagQuery) -> list[Tagged]:
    gone = Gone(query.now, query.retention)
    found = await cluster.read([head_call(prefix, user_session_id) for user_session_id in query.ids])
    return [
        Tagged(user_session_id, tag_of(text))
        for user_session_id, text in zip(query.ids, found, strict=True)
        if text and not gone(text)
    ]


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_call(
    prefix: str, write: Write, retention: Retention, more: dict[str, Any] | None = None, more_keys: Sequence[str] = ()
) -> Call:
    """The script that carries out this write, of which all can be kept (`check`).

    more       what else is asked of the script: a message that is settled, or a fence that is put up
    more_keys  the keys for that
    """
    keys = SessionKeys(prefix, write.user_session_id)
    idle_since = retention.idle_since(write.now)
    expect = write.expect
    given: dict[str, Any] = {
        "id": write.user_session_id,
        "now": time_text(write.now),
        "idle_since": time_text(idle_since) if idle_since else "",
        "absent": expect.absent,
        "unless": [str(tag) for tag in expect.unless],
        "history": retention.history,
        **(more or {}),
    }
    if expect.only is not None:
        given["only"] = [str(tag) for tag in expect.only]
    if write.once:
        given["once"] = _once(write.once, write.now)
    what, state = _DELETE, ""
    if isinstance(write, Save):
        what = _SAVE
        state = write.chat_state or ""
        given |= {
            "has_state": write.chat_state is not None,
            "session_id": write.new_session_id,
            "active": time_text(write.last_activity),
            "show": write.show_current,
        }
        if write.expires_in is not None:
            given["expires_in"] = write.expires_in
    else:
        given["deletes"] = True
    own = [keys.own(name) for name in ("s", "v", "r")]
    of_slot = [keys.of_slot(name) for name in ("ids", "active", "ends", "keys", "keyed")]
    return run_script(what, keys.slot, [*own, *of_slot, *more_keys], msgpack.encode(given), state, EPOCH)


def write(prefix: str, write: Write, retention: Retention) -> Steps[Any]:
    """Carry out one write, of which all can be kept (`check`)."""
    return outcome_of(write, (yield from reply_to(write_call(prefix, write, retention))))


def _once(once: IdempotencyKey, now: datetime) -> dict[str, Any]:
    return {"field": _field(once), "digest": once.digest.hex(), "forget": time_text(_later(now, REMEMBERED_FOR))}


def _later(time: datetime, by: timedelta) -> datetime:
    return time + by if LATEST - time >= by else LATEST


def _field(once: IdempotencyKey) -> str:
    return f"{once.key}\0{once.caller}"


def outcome_of(write: Write, reply: Any) -> Outcome:
    """What the script's reply says."""
    kind, *values = reply
    if kind == b"saved":
        assert isinstance(write, Save)
        return _saved(write, *values)
    if kind == b"deleted":
        return Deleted(_tag(*values))
    if kind == b"replay":
        return _replay(write.user_session_id, values)
    if kind == b"settled":
        return Settled(False)
    if not values:
        return Conflict(None)
    session_id, version, *whole = values
    shown = session_of(write.user_session_id, whole[0]) if whole and whole[0] else None
    return Conflict(_tag(session_id, version), shown)


def _tag(session_id: bytes, version: bytes) -> Tag:
    return Tag(session_id.decode(), int(version))


def _saved(
    write: Save, session_id: bytes, created: bytes, version: bytes, ends: bytes, kept: bytes | None = None
) -> Session:
    state = write.chat_state if kept is None else kept.decode()
    assert state is not None
    times = (write.last_activity, time_of(created), write.now)
    return Session(session_id.decode(), write.user_session_id, state, *times, int(version), _ends(ends))


def _replay(user_session_id: str, values: Sequence[Any]) -> Replay:
    digest, deleted, session_id, active, created, updated, version, ends, *state = values
    tag = _tag(session_id, version)
    digest = bytes.fromhex(digest.decode())
    if deleted:
        return Replay(digest, Deleted(tag))
    times = (time_of(active), time_of(created), time_of(updated))
    summary = Summary(tag.session_id, user_session_id, *times, tag.version, _ends(ends))
    return Replay(digest, summary, state[0].decode() if state and state[0] is not None else None)


# --- What is kept beside a session ------------------------------------------------------------------------------------


async def replays(cluster: Cluster, prefix: str, query: ReplayQuery) -> list[Replay]:
    keys = SessionKeys(prefix, query.user_session_id)
    (kept,) = await cluster.read([Call(keys.slot, ("HGET", keys.own("r"), _field(query.once)))])
    known = msgpack.decode(kept) if kept else None
    if not known or known["forget"] <= time_text(query.now):
        return []
    names = ("digest", "deleted", "session_id", "active", "created", "updated", "version", "ends", "state")
    return [_replay(query.user_session_id, [_bytes(known.get(name)) for name in names])]


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


async def remembered(cluster: Cluster, prefix: str, query: RememberedQuery) -> list[Remembered]:
    keys = SessionKeys(prefix, query.user_session_id)
    (flat,) = await cluster.read([Call(keys.slot, ("HGETALL", keys.own("r")))])
    now = time_text(query.now)
    found = []
    for field, kept in sorted(zip(flat[::2], flat[1::2], strict=True)):
        known = msgpack.decode(kept)
        if known["forget"] > now:
            found.append(Remembered(field.partition(b"\0")[0].decode(), time_of(known["updated"]), known.get("state")))
    return found


async def versions(cluster: Cluster, prefix: str, query: VersionQuery) -> list[Version]:
    keys = SessionKeys(prefix, query.user_session_id)
    calls = [Call(keys.slot, ("GET", keys.own("s"))), Call(keys.slot, ("HKEYS", keys.own("v")))]
    text, fields = await cluster.read(calls)
    if not text or Gone(query.now, query.retention)(text):
        return []
    current = session_of(query.user_session_id, text)
    times = (current.last_activity, current.updated_at)
    first = _version(current.session_id, current.version, *times, current.chat_state)
    found = [first] if _is_wanted(current.version, query) else []
    older = sorted((int(field) for field in fields if int(field) < current.version), reverse=True)
    wanted = [number for number in older if _is_wanted(number, query)]
    found += await _recorded(cluster, keys, current.session_id, wanted[: query.limit - len(found)])
    return found if query.with_state else [_without_state(version) for version in found]


async def _recorded(cluster: Cluster, keys: SessionKeys, session_id: str, numbers: Sequence[int]) -> list[Version]:
    """These versions from the history, in order; of those that are still there."""
    if not numbers:
        return []
    (texts,) = await cluster.read([Call(keys.slot, ("HMGET", keys.own("v"), *numbers))])
    found = []
    for number, packed in zip(numbers, texts, strict=True):
        of, active, saved, state = msgpack.decode(packed) if packed else ("", "", "", "")
        if of == session_id:
            found.append(_version(session_id, number, time_of(active), time_of(saved), state))
    return found


def _is_wanted(number: int, query: VersionQuery) -> bool:
    if query.version is not None and number != query.version:
        return False
    return query.before is None or number < query.before


def _version(session_id: str, version: int, active: datetime, saved: datetime, state: str) -> Version:
    return Version(session_id, version, active, saved, clear_size(state), state)


def _without_state(row: Version) -> Version:
    return Version(row.session_id, row.version, row.last_activity, row.saved_at, row.size)


def clear_size(text: str) -> int:
    """The size of a text when it is not sealed, in bytes; as `chatstate.stores.sql.clear_size`."""
    size = len(text.encode())
    if text.startswith(SEALED):
        return (size - HEAD_LENGTH) * 3 // 4 - OVERHEAD
    return size - len(PLAIN) if text.startswith(PLAIN) else size


# --- Lists ------------------------------------------------------------------------------------------------------------

_FEW = 2000
"""If so few ids begin with a prefix, they are sorted here; else the list by activity is looked through for them."""

_AFTER_ALL_IDS = b"\xff"
"""Is behind every id in the order of bytes: it is in no UTF-8 text."""


async def sessions(cluster: Cluster, prefix: str, query: SessionQuery) -> list[Session] | list[Summary]:
    """The page that the query asks for."""
    by_id = query.order == "id"
    if not by_id and query.prefix:
        few = await first_members(cluster, of_all_slots(prefix, "ids"), _bounds_by_id(query.prefix), _FEW + 1)
        if len(few) <= _FEW:
            return await _sorted_here(cluster, prefix, query, few)
    found: list[Any] = []
    sets = of_all_slots(prefix, "ids" if by_id else "active")
    bounds = _bounds_by_id(query.prefix, query) if by_id else _bounds_by_activity(query)
    while len(found) < query.limit:
        members = await first_members(cluster, sets, bounds, query.limit)
        ids_found = [(member if by_id else member[15:]).decode() for member in members]
        found += await _read(cluster, prefix, query, [name for name in ids_found if name.startswith(query.prefix)])
        if len(members) < query.limit:
            break
        edge = b"(" + members[-1]
        bounds = bounds._replace(last=edge) if bounds.from_the_end else bounds._replace(first=edge)
    return found[: query.limit]


async def _sorted_here(
    cluster: Cluster, prefix: str, query: SessionQuery, ids: Sequence[bytes]
) -> list[Session] | list[Summary]:
    """Of these sessions, which are all that begin with the prefix, the page by activity."""
    found = await _read(cluster, prefix, query, [name.decode() for name in ids])
    rows = [row for row in found if query.after is None or _position(row) < query.after]
    return sorted(rows, key=_position, reverse=True)[: query.limit]


def _position(row: Session | Summary) -> tuple[datetime, str]:
    return row.last_activity, row.user_session_id


async def _read(cluster: Cluster, prefix: str, query: SessionQuery, ids: Sequence[str]) -> list[Any]:
    """Those of these sessions that the query wants, in this order."""
    call, read = (load_call, session_of) if query.with_state else (head_call, summary_of)
    texts = await cluster.read([call(prefix, name) for name in ids])
    gone = Gone(query.now, query.retention)
    rows = [read(name, text) for name, text in zip(ids, texts, strict=True) if text and not gone(text)]
    return [row for row in rows if _is_active(row, query)]


def _is_active(row: Any, query: SessionQuery) -> bool:
    if query.active_after and row.last_activity < query.active_after:
        return False
    return query.active_before is None or row.last_activity < query.active_before


def _bounds_by_id(prefix: str, query: SessionQuery | None = None) -> Bounds:
    first = b"[" + prefix.encode() if prefix else b"-"
    end = prefix_end(prefix)
    if query and query.after and query.after.user_session_id >= prefix:
        first = b"(" + query.after.user_session_id.encode()
    return Bounds(first, b"(" + end.encode() if end else b"+")


def _bounds_by_activity(query: SessionQuery) -> Bounds:
    ends = [b"(" + time_text(query.active_before).encode()] if query.active_before else []
    if query.after:
        ends.append(b"(" + time_text(query.after.last_activity).encode() + query.after.user_session_id.encode())
    first = b"[" + time_text(query.active_after).encode() if query.active_after else b"-"
    return Bounds(first, min(ends, default=b"+"), from_the_end=True)


# --- Sweeping ---------------------------------------------------------------------------------------------------------

_SWEEP, _FORGET = script("sweep_session", "allow-oom"), script("forget_key", "allow-oom")


def until(now: datetime) -> Bounds:
    """Members that begin with this time or an earlier one."""
    return Bounds(last=b"[" + time_text(now).encode() + _AFTER_ALL_IDS)


async def sweep_ended(
    cluster: Cluster, prefix: str, now: datetime, retention: Retention, limit: int
) -> tuple[int, int]:
    """Remove sessions whose own expiry has come; how many were found, unless all of them have to wait for
    their shards, and how many were removed."""
    found = await first_members(cluster, of_all_slots(prefix, "ends"), until(now), limit)
    ids = {member[15:].decode(): member for member in found}
    removed = await _removed(cluster, prefix, ids, now, retention)
    return len(found) if removed else 0, sum(removed)


async def sweep_idle(
    cluster: Cluster, prefix: str, now: datetime, retention: Retention, after: str, limit: int
) -> tuple[list[str], int]:
    """Remove the idle among the next sessions by id; those that were looked at, and how many were removed."""
    bounds = Bounds(first=b"(" + after.encode() if after else b"-")
    ids = [member.decode() for member in await first_members(cluster, of_all_slots(prefix, "ids"), bounds, limit)]
    heads = await cluster.read([head_call(prefix, name) for name in ids])
    gone = Gone(now, retention)
    expired = {name: b"" for name, head in zip(ids, heads, strict=True) if head and gone(head)}
    return ids, sum(await _removed(cluster, prefix, expired, now, retention))


async def _removed(
    cluster: Cluster, prefix: str, found: dict[str, bytes], now: datetime, retention: Retention
) -> list[int]:
    """1 for each of these sessions that was removed, 0 for one that had not expired; nothing for one that has to wait
    for its shard."""
    idle_since = retention.idle_since(now)
    moment = (time_text(now), time_text(idle_since) if idle_since else "")
    calls = []
    for name, member in found.items():
        keys = SessionKeys(prefix, name)
        own = [keys.own(part) for part in ("s", "v", "r")] + [keys.of_slot(part) for part in ("ids", "active", "ends")]
        calls.append(run_script(_SWEEP, keys.slot, own, name, *moment, member))
    return await _answers(cluster, calls)


async def _answers(cluster: Cluster, calls: Sequence[Call]) -> list[int]:
    """The replies, without those of shards that take no writes now."""
    return [reply for reply in await cluster.write(calls) if isinstance(reply, int)]


async def sweep_remembered(cluster: Cluster, prefix: str, now: datetime, limit: int) -> int:
    """Forget idempotency keys; how many were found, unless all of them have to wait for their shards."""
    found = await first_members(cluster, of_all_slots(prefix, "keys"), until(now), limit)
    calls = []
    for member in found:
        user_session_id, _, field = member[15:].decode().partition("\0")
        calls.append(forget_call(prefix, user_session_id, field, member[:15]))
    return len(found) if await _answers(cluster, calls) else 0


def forget_call(prefix: str, user_session_id: str, field: str, ends: bytes = b"") -> Call:
    """Forgets an idempotency key that ends then; with nothing given: whenever it ends."""
    keys = SessionKeys(prefix, user_session_id)
    names = [keys.own("r"), keys.of_slot("keys"), keys.of_slot("keyed")]
    return run_script(_FORGET, keys.slot, names, user_session_id, field, ends)
