"""Whole rows of inbox and outbox in a Valkey Cluster, for copies, and where their texts lie.

A message that a session may be taking in, or that is decided but not done, is in between: before its row is shown or
changed, it is brought to its end, or its claim is made void. So no copy has a message pending that the session has
taken in already.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import asdict

from chatstate.errors import StoreBusy
from chatstate.mailbox import RANKS, InboxEntry, OutboxEntry
from chatstate.model import utc_now
from chatstate.row import InboxRow, OutboxRow
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import (
    Box,
    Name,
    Pointer,
    bucket_sets,
    inbox_entry,
    known_of,
    order_text,
    outbox_entry,
)
from chatstate.stores.valkey_cluster import Call, Cluster, run_script
from chatstate.stores.valkey_erasing import DROP_POINTER, MOST_TRIES, Erasing
from chatstate.stores.valkey_finishing import BELOW, MARK_SECONDS, box_call, claim_number, left_text
from chatstate.stores.valkey_keys import SessionKeys, time_text
from chatstate.stores.valkey_lists import ALL, Bounds, first_members
from chatstate.stores.valkey_steps import Steps, beforehand, carry_out, sure

_PUT, _DROP = script("put_message", below=BELOW), script("put_message", "allow-oom", below=BELOW)
_SHOW, _LEAVE = script("show_message", "no-writes"), script("leave")

_CLOCKS_APART = 3600
"""How many seconds the clocks of servers may differ at most."""

_KINDS: dict[Name, Any] = {"inbox": "in", "outbox": "out"}
"""Of the pointers."""

MailRow = InboxRow | OutboxRow


class _Asked(NamedTuple):
    """A message: its box, its key, and how its row becomes one."""

    box: Box
    key: str
    entry: dict[str, Any] | None = None
    document: str = ""


# --- Listing ----------------------------------------------------------------------------------------------------------


async def places(
    cluster: Cluster, prefix: str, name: Name, after: str | None, limit: int
) -> AsyncGenerator[list[tuple[str, str]], None]:
    """Keys and conversations of the messages behind a key, some at a time, in order."""
    bounds = ALL if after is None else Bounds(first=b"[" + f"{after}\1".encode())
    while True:
        members = await first_members(cluster, bucket_sets(prefix, name, "names"), bounds, limit)
        pairs = [member.decode().partition("\0") for member in members]
        yield [(key, conversation) for key, _, conversation in pairs]
        if len(members) < limit:
            return
        bounds = Bounds(first=b"(" + members[-1])


async def settled(cluster: Cluster, prefix: str, found: Sequence[tuple[str, str]]) -> None:
    """Bring those of these messages that have arrived to their end that are in between. Raises `StoreError`."""
    boxes = [Box(prefix, "inbox", conversation) for _, conversation in found]
    kept = await _known(cluster, boxes, [key for key, _ in found])
    mail = _MailRows(prefix)
    steps = [
        mail.released(conversation, key, known)
        for (key, conversation), known in zip(found, kept, strict=True)
        if known and _is_between(known)
    ]
    if steps:
        sure(list(await carry_out(cluster, steps)))


async def _known(cluster: Cluster, boxes: Sequence[Box], keys: Sequence[str]) -> list[dict[str, Any] | None]:
    calls = [Call(box.slot, ("HGET", box.own()[0], key)) for box, key in zip(boxes, keys, strict=True)]
    return [known_of(kept) if kept else None for kept in await cluster.read(calls)]


def _is_between(known: dict[str, Any]) -> bool:
    return bool(known.get("decided") or known.get("session"))


async def rows(cluster: Cluster, prefix: str, name: Name, found: Sequence[tuple[str, str]]) -> list[MailRow]:
    """The rows of these messages, in this order; of those that are there."""
    if name == "inbox":
        await settled(cluster, prefix, found)
    boxes = [Box(prefix, name, conversation) for _, conversation in found]
    calls = [
        Call(box.slot, ("EVALSHA_RO", _SHOW.sha, 2, *box.own()[:2], key), _SHOW)
        for box, (key, _) in zip(boxes, found, strict=True)
    ]
    replies = zip(found, await cluster.read(calls), strict=True)
    read: Callable[..., MailRow] = _inbox_row if name == "inbox" else _outbox_row
    shown = ((key, conversation, known_of(kept), text) for (key, conversation), (kept, text) in replies if kept)
    return [read(*one) for one in shown if one[2]["status"] != "erased"]


def _inbox_row(key: str, conversation: str, known: dict[str, Any], text: bytes) -> InboxRow:
    return InboxRow(**_members(inbox_entry(key, conversation, known, text)))


def _outbox_row(key: str, conversation: str, known: dict[str, Any], text: bytes) -> OutboxRow:
    entry = outbox_entry(key, conversation, known, text)
    members = _members(entry)
    rank = known.get("rank", RANKS[entry.status])
    return OutboxRow(**members, rank=rank, provider_key=known.get("provider"))


def _members(entry: InboxEntry | OutboxEntry) -> dict[str, Any]:
    members = asdict(entry)
    del members["is_readable"]
    return members


# --- Writing ----------------------------------------------------------------------------------------------------------


def put(prefix: str, row: MailRow) -> Steps[bool]:
    """Put the row there."""
    mail = _MailRows(prefix)
    return mail.put_in(row) if isinstance(row, InboxRow) else mail.put_out(row)


def drop(prefix: str, name: Name, key: str) -> Steps[bool]:
    """Remove the row; whether it was there."""
    return _MailRows(prefix).drop(name, key)


def find(prefix: str, name: Name, key: str) -> Steps[str | None]:
    """The conversation that the message is in."""
    return _MailRows(prefix).find(name, key)


class _MailRows(Erasing):
    """The steps."""

    def find(self, name: Name, key: str) -> Steps[str | None]:
        return (yield from beforehand(self._find(_KINDS[name], key)))

    def put_in(self, row: InboxRow) -> Steps[bool]:
        yield from self._here("inbox", row)
        entry = {
            "status": row.status,
            "order": time_text(row.sent_at) + order_text(row.number),
            "age": time_text(row.received_at),
            "due": time_text(row.due_at),
            "tries": row.tries,
            "error": row.error,
        }
        yield from self._changed(_Asked(self._inbox(row.conversation), row.key, entry, row.document))
        return True

    def put_out(self, row: OutboxRow) -> Steps[bool]:
        yield from self._here("outbox", row)
        age, at = time_text(row.created_at), row.number % 1000
        entry = {
            "status": row.status,
            "order": order_text(row.number),
            "at": at,
            "age": age,
            "due": time_text(row.due_at),
            "session": row.user_session_id,
            "tries": row.tries,
            "error": row.error,
        }
        if row.rank != RANKS[row.status]:
            entry["rank"] = row.rank
        keys = SessionKeys(self._prefix, row.user_session_id)
        listed = left_text(row.key, row.conversation, age, at)
        calls = [run_script(_LEAVE, keys.slot, [keys.own("out"), keys.own("asked")], listed)]
        if row.provider_key is not None:
            entry["provider"] = row.provider_key
            pointer = Pointer(self._prefix, "sent", row.provider_key)
            words = ("SET", pointer.key, f"{row.key}\0{row.conversation}", "EX", MARK_SECONDS)
            calls.append(Call(pointer.slot, words))
        box = Box(self._prefix, "outbox", row.conversation)
        known = yield from self._known(box, row.key)
        # Before it is there, so that whoever is interrupted leaves nothing that leads to it as it was.
        sure((yield [*calls, *self._unlisted(row.key, row.conversation, known, entry)]))
        yield from self._changed(_Asked(box, row.key, entry, row.document))
        return True

    def drop(self, name: Name, key: str) -> Steps[bool]:
        conversation = yield from self.find(name, key)
        return conversation is not None and (yield from self._removed(name, key, conversation))

    def _here(self, name: Name, row: MailRow) -> Steps[None]:
        """Have the pointer lead to the row's conversation, and nothing be where it led."""
        for _ in range(MOST_TRIES):
            found = yield from self._point(_KINDS[name], row.key, row.conversation)
            if found == row.conversation:
                return
            yield from self._removed(name, row.key, found)
        raise StoreBusy("Others are at work on this message all the time.")

    def _removed(self, name: Name, key: str, conversation: str) -> Steps[bool]:
        """Remove a message, its pointer last: by it whoever was interrupted finds what is left."""
        box = Box(self._prefix, name, conversation)
        if name == "outbox":
            known = yield from self._known(box, key)
            sure((yield self._unlisted(key, conversation, known)))
        was_there = yield from self._changed(_Asked(box, key))
        sure((yield [self._pointer_dropped(Pointer(self._prefix, _KINDS[name], key), conversation)]))
        return was_there

    def _known(self, box: Box, key: str) -> Steps[dict[str, Any]]:
        (kept,) = sure((yield [Call(box.slot, ("HGET", box.own()[0], key))]))
        return known_of(kept) if kept else {}

    def _unlisted(
        self, key: str, conversation: str, known: dict[str, Any], new: dict[str, Any] | None = None
    ) -> list[Call]:
        """What forgets all that leads to a message, but for what leads to it as it is now."""
        calls, new = [], new or {}
        names = ("session", "age", "at")
        session = known.get("session")
        if session is not None and any(known[name] != new.get(name) for name in names):
            keys = SessionKeys(self._prefix, session)
            listed = left_text(key, conversation, known["age"], known["at"])
            calls.append(Call(keys.slot, ("ZREM", keys.own("out"), listed)))
        provider = known.get("provider")
        if provider is not None and provider != new.get("provider"):
            calls.append(self._pointer_dropped(Pointer(self._prefix, "sent", provider), f"{key}\0{conversation}"))
        return calls

    def _pointer_dropped(self, pointer: Pointer, where: str) -> Call:
        return run_script(DROP_POINTER, pointer.slot, [pointer.key], where)

    def _changed(self, asked: _Asked) -> Steps[bool]:
        """Put the message there, or remove it; whether one was there."""
        given: dict[str, Any] = {"key": asked.key, "arrives": asked.box.name == "inbox"}
        if asked.entry is not None:
            given["entry"] = asked.entry
            given["since"] = claim_number(utc_now()) + _CLOCKS_APART
        for _ in range(MOST_TRIES):
            call = box_call(_DROP if asked.entry is None else _PUT, asked.box, given, asked.document)
            (reply,) = sure((yield [call]))
            if reply[0] != b"claimed":
                return bool(reply[0] == b"there")
            claim = yield from self.released(asked.box.conversation, asked.key, known_of(reply[1]))
            if claim:
                given["released"] = claim
        raise StoreBusy("Others are at work on this message all the time.")
