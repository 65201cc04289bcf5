"""What a message in a Valkey Cluster has come to, once that is decided, and how it is put in place.

The replies go into the outbox, then the message is done; then the mark of the session that has taken it in is closed.
Whoever meets a message whose end is decided does that, as often as it may be (`chatstate.stores.valkey_mailbox`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from msgspec import Struct, json, msgpack

from chatstate.mailbox import Send
from chatstate.model import EARLIEST
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import WAITING, WIDTH, Box, Pointer
from chatstate.stores.valkey_cluster import Call, run_script
from chatstate.stores.valkey_keys import SessionKeys
from chatstate.stores.valkey_steps import Steps, reply_to, sure

MARK_SECONDS = 10 * 86_400
"""How long it is known that a session has taken in a message that is done. Longer than any write is on its way."""

BELOW = ("common", "box")
"""What the scripts need that change a box."""

TAKE, END = script("take", below=BELOW), script("take", "allow-oom", below=BELOW)
_SEND = script("send", below=BELOW)
_POINT, _LEAVE = script("point"), script("leave")
_FIND, _VOID_MARK, _CLOSE_MARK = (script(name, "allow-oom") for name in ("find", "void_mark", "close_mark"))
"""What takes room is refused when there is none; what gives room is not, nor what goes before it."""


class Effects(Struct, frozen=True, array_like=True):
    """What is left to do of a message whose end is decided.

    now    when that was, as text
    sends  what is to leave
    """

    status: str
    now: str
    sends: tuple[Send, ...]


class Claim(NamedTuple):
    """For whom a message is claimed, and by which number; numbers below `since` are of others that had its key."""

    session: str
    number: int
    since: int


def claim_number(time: datetime) -> int:
    """Claims have numbers that rise; those that begin later, with other numbers than any that began before."""
    return (time - EARLIEST) // timedelta(seconds=1)


def box_call(what: Any, box: Box, given: dict[str, Any], text: str = "") -> Call:
    """A script that changes a box."""
    asked = {"conversation": box.conversation, "waiting": WAITING[box.name], "width": WIDTH[box.name], **given}
    return run_script(what, box.slot, box.all(), msgpack.encode(asked), text)


def left_text(key: str, conversation: str, now: str, place: int) -> str:
    """What the list of a session says of a message that is to leave for it."""
    return f"{now}{place % 1000:03x}{key}\0{conversation}"


class Finishing:
    """Steps that find messages, and put in place what they have come to, under a prefix of keys."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def _inbox(self, conversation: str) -> Box:
        return Box(self._prefix, "inbox", conversation)

    def _point(self, kind: Any, key: str, conversation: str) -> Steps[str]:
        """Say where a message is, unless that is known; where it is."""
        pointer = Pointer(self._prefix, kind, key)
        (found,) = sure((yield [run_script(_POINT, pointer.slot, [pointer.key], conversation)]))
        return found.decode()  # type: ignore[no-any-return]

    def _find(self, kind: Any, key: str) -> Steps[str | None]:
        """Where a message is; None: nowhere."""
        pointer = Pointer(self._prefix, kind, key)
        (found,) = sure((yield [run_script(_FIND, pointer.slot, [pointer.key, pointer.asked])]))
        return None if found is None else found.decode()

    def _is_applied(
        self, conversation: str, key: str, claim: Claim, fence: tuple[str, str] | None = None
    ) -> Steps[bool]:
        """Whether the session has taken in the message, which is finished then; if not, it will not by this claim."""
        session, number, since = claim
        mark = self._mark(session, key)
        slot = SessionKeys(self._prefix, session).slot
        (kept,) = sure((yield [run_script(_VOID_MARK, slot, [mark], number, MARK_SECONDS, since)]))
        if kept is None:
            return False
        yield from self._finish_marked(conversation, key, session, kept, fence)
        return True

    def _finish_marked(
        self, conversation: str, key: str, session: str, mark: bytes, fence: tuple[str, str] | None = None
    ) -> Steps[None]:
        text = msgpack.decode(mark).get("effects")
        effects = json.decode(text, type=Effects) if text else Effects("applied", "", ())
        yield from self._finish(conversation, key, effects, session, fence)

    def _mark(self, session: str, key: str) -> str:
        return SessionKeys(self._prefix, session).own(f"m:{key}")

    def _finish(
        self, conversation: str, key: str, effects: Effects, home: str | None, fence: tuple[str, str] | None = None
    ) -> Steps[None]:
        """Put in place what a message has come to. In this order: until it is done, somebody will come for it.

        home   the session that has taken it in, whose list says already what is to leave for it
        fence  a session of which everything is erased, and the fence's name
        """
        if effects.sends:
            yield from self._leave(effects, home, fence)
            yield from self._put_out(effects)
        given = {"verb": "finish", "key": key, "status": effects.status}
        sure((yield [box_call(END, self._inbox(conversation), given)]))
        if home is not None:
            yield from reply_to(self.mark_closed(home, key))

    def mark_closed(self, home: str, key: str) -> Call:
        """Have the session forget what a message that is done has made leave; and after a while, that it took it in."""
        return run_script(_CLOSE_MARK, SessionKeys(self._prefix, home).slot, [self._mark(home, key)], MARK_SECONDS)

    def _leave(self, effects: Effects, home: str | None, fence: tuple[str, str] | None) -> Steps[None]:
        """Have the lists of other sessions say what is to leave for them; a list that is erased, for what is erased."""
        members: dict[str, list[str]] = {}
        for place, send in enumerate(effects.sends):
            if send.user_session_id != home:
                members.setdefault(send.user_session_id, []).append(
                    left_text(send.key, send.conversation, effects.now, place)
                )
        calls = []
        for session, texts in members.items():
            keys = SessionKeys(self._prefix, session)
            name = f"out:{fence[1]}" if fence and fence[0] == session else "out"
            calls.append(run_script(_LEAVE, keys.slot, [keys.own(name), keys.own("asked")], *texts))
        sure((yield calls))

    def _put_out(self, effects: Effects) -> Steps[None]:
        """Put what is to leave into the outbox. A key that is known is known: who was first has it, and the session of
        another one does not list it."""
        pointers = [Pointer(self._prefix, "out", send.key) for send in effects.sends]
        asked = [
            run_script(_POINT, pointer.slot, [pointer.key], send.conversation)
            for pointer, send in zip(pointers, effects.sends, strict=True)
        ]
        places = sure((yield asked))
        here = [n for n, send in enumerate(effects.sends) if places[n].decode() == send.conversation]
        found = sure((yield [self._send_call(effects, number) for number in here]))
        there = {number for number, is_there in zip(here, found, strict=True) if is_there}
        sure((yield [self._unlisted_call(effects, n) for n in range(len(effects.sends)) if n not in there]))

    def _send_call(self, effects: Effects, number: int) -> Call:
        send = effects.sends[number]
        entry = {
            "status": "queued",
            "order": f"{effects.now}{number % 1000:03x}",
            "at": number,
            "age": effects.now,
            "due": effects.now,
            "session": send.user_session_id,
            "tries": 0,
            "error": "",
        }
        box = Box(self._prefix, "outbox", send.conversation)
        return box_call(_SEND, box, {"key": send.key, "entry": entry}, send.document)

    def _unlisted_call(self, effects: Effects, number: int) -> Call:
        send = effects.sends[number]
        keys = SessionKeys(self._prefix, send.user_session_id)
        listed = left_text(send.key, send.conversation, effects.now, number)
        return Call(keys.slot, ("ZREM", keys.own("out"), listed))
