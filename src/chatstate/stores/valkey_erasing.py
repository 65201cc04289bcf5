"""Erasing messages in a Valkey Cluster, by themselves or with their session.

What is erased begins with a *fence* at the session: it says up to which message of each conversation is erased, and
keeps the list of what was to leave. No message that it covers is taken in there any more. Whoever meets a fence erases
what it says, and takes it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from msgspec import Struct, json

from chatstate.errors import StoreBusy
from chatstate.mailbox import EraseMail
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import Box, Pointer, known_of
from chatstate.stores.valkey_cluster import Call, run_script
from chatstate.stores.valkey_finishing import BELOW, Claim, Effects, Finishing, box_call
from chatstate.stores.valkey_keys import SessionKeys, time_text
from chatstate.stores.valkey_steps import Steps, sure

MOST_TRIES = 20
"""How often others may be first."""

_MOST_AT_ONCE = 500
"""How many messages one script erases."""

_ERASE_ARRIVED, _ERASE_SENT = (script(name, "allow-oom", below=BELOW) for name in ("erase_arrived", "erase_sent"))
_ARRIVED, _FENCE, DROP_POINTER = (script(name, "allow-oom") for name in ("arrived", "fence", "drop_pointer"))
"""They give room, also when there is none."""


class Fence(Struct, frozen=True):
    """What is erased.

    now     when that was, as text
    bounds  up to which message of each conversation, in the order in which they have arrived in their bucket
    """

    now: str
    bounds: dict[str, int]


class Erasing(Finishing):
    """Steps that erase messages."""

    def _fenced(self, write: EraseMail) -> Steps[tuple[str, str]]:
        """A fence: its name, and its text. What arrives from now on is not erased."""
        names = [*dict.fromkeys(write.conversations)]
        boxes = [self._inbox(name) for name in names]
        counts = sure((yield [run_script(_ARRIVED, box.slot, [box.of_bucket("arrived")]) for box in boxes]))
        fence = Fence(time_text(write.now), dict(zip(names, counts, strict=True)))
        return token_hex(8), json.encode(fence).decode()

    def _fence_call(self, session: str, verb: str, name: str = "", text: str = "") -> Call:
        keys = SessionKeys(self._prefix, session)
        names = [keys.own("f"), keys.of_slot("fences"), keys.own("out"), keys.own(f"out:{name}")]
        return run_script(_FENCE, keys.slot, names, verb, session, name, text)

    def clear_fences(self, session: str) -> Steps[int]:
        """Erase what the session's fences say; how many messages that were."""
        (flat,) = sure((yield [self._fence_call(session, "show")]))
        erased = 0
        for name, text in zip(flat[::2], flat[1::2], strict=True):
            erased += yield from self._clear(session, name.decode(), json.decode(text, type=Fence))
        return erased

    def _clear(self, session: str, name: str, fence: Fence) -> Steps[int]:
        erased = 0
        for conversation, bound in fence.bounds.items():
            erased += yield from self._erase_arrived(conversation, bound, (session, name))
        keys = SessionKeys(self._prefix, session)
        (left,) = sure((yield [Call(keys.slot, ("ZRANGE", keys.own(f"out:{name}"), "-", "+", "BYLEX"))]))
        erased += yield from self._erase_sent(session, left, fence.now)
        sure((yield [self._fence_call(session, "drop", name)]))
        return erased

    def _erase_arrived(self, conversation: str, bound: int, fence: tuple[str, str]) -> Steps[int]:
        """What has arrived in a conversation up to some message. What sessions have taken in of it is finished."""
        erased, released = 0, dict[str, tuple[str, int]]()
        for _ in range(MOST_TRIES):
            more = 1
            busy: list[bytes] = []
            while more:
                given = {"bound": bound, "released": released, "most": _MOST_AT_ONCE}
                ((count, more, busy),) = sure((yield [box_call(_ERASE_ARRIVED, self._inbox(conversation), given)]))
                erased += count
            if not busy:
                return erased
            for key, kept in zip(busy[::2], busy[1::2], strict=True):
                claim = yield from self.released(conversation, key.decode(), known_of(kept), fence)
                if claim:
                    released[key.decode()] = claim
        raise StoreBusy("Others are at work on these messages all the time.")

    def released(
        self, conversation: str, key: str, known: dict[str, Any], fence: tuple[str, str] | None = None
    ) -> Steps[tuple[str, int] | None]:
        """Finish a message whose end is decided, or have its claim void: that claim then."""
        if decided := known.get("decided"):
            yield from self._finish(conversation, key, json.decode(decided, type=Effects), None, fence)
            return None
        claim = Claim(known["session"], known["number"], known.get("since", 0))
        if (yield from self._is_applied(conversation, key, claim, fence)):
            return None
        return claim.session, claim.number

    def _erase_sent(self, session: str, left: Sequence[bytes], now: str) -> Steps[int]:
        """What was to leave, by the list of a session."""
        erased = 0
        for start in range(0, len(left), _MOST_AT_ONCE):
            named = [_named(member) for member in left[start : start + _MOST_AT_ONCE]]
            calls = []
            for key, conversation in named:
                given = {"key": key, "now": now, "session": session}
                calls.append(box_call(_ERASE_SENT, Box(self._prefix, "outbox", conversation), given))
            found = sure((yield calls))
            dropped = []
            for (key, conversation), reply in zip(named, found, strict=True):
                if reply is not None:
                    erased += reply[0]
                    dropped += self.drop_pointers(key, conversation, reply[1].decode())
            sure((yield dropped))
        return erased

    def drop_pointers(self, key: str, conversation: str, provider: str) -> list[Call]:
        """What forgets where a message is that was to leave."""
        places = [(Pointer(self._prefix, "out", key), conversation)]
        if provider:
            places.append((Pointer(self._prefix, "sent", provider), f"{key}\0{conversation}"))
        return [run_script(DROP_POINTER, pointer.slot, [pointer.key], where) for pointer, where in places]


def _named(member: bytes) -> tuple[str, str]:
    """The key and the conversation of what the list of a session says."""
    key, _, conversation = member[18:].decode().partition("\0")
    return key, conversation
