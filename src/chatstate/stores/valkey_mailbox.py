"""Inbox and outbox in a Valkey Cluster: writes, also those that change a session and its messages together.

No step changes more than one slot, so a write of several places is a chain of steps, each durable before the next and
each such that doing it again changes nothing (docs/decisions/0012-valkey-mail.md). One of them is the moment at which
the write happens; whoever is interrupted before it has changed nothing, and what is left to do after it is done by
whoever meets it.

A turn (`Save.settles`): the message is *claimed*, by a number, for the session; then the session's script takes the
message in: state, what is to be sent and the *mark* of the message, at once; then the effects follow. A claim for
another session has the one before it made *void* at its session first, and finds out whether it has come too late.
A message that is settled alone is *decided* where it lies, and done when its effects are there.

What is erased begins with a *fence* at the session: it says up to which message of each conversation is erased, and
keeps what was to leave. No message that it covers is taken in there any more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from msgspec import Struct, json, msgpack

from chatstate.errors import StoreBusy, StoreError
from chatstate.mailbox import (
    RANKS,
    EraseMail,
    MailErased,
    MailOutcome,
    MailWrite,
    Postpone,
    Progress,
    Receive,
    Received,
    Send,
    Settle,
    Settled,
)
from chatstate.model import EARLIEST, Delete, Deleted, Retention, Save
from chatstate.stores import valkey_sessions as sessions
from chatstate.stores.base import Outcome
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import WAITING, WIDTH, Box, Pointer, known_of, number_text
from chatstate.stores.valkey_cluster import Call, run_script
from chatstate.stores.valkey_keys import SessionKeys, time_text
from chatstate.stores.valkey_steps import Steps, beforehand, sure

MARK_SECONDS = 10 * 86_400
"""How long it is known that a session has taken in a message that is done. Longer than any write is on its way."""

_MOST_TRIES = 20
"""How often others may be first."""

_MOST_AT_ONCE = 500
"""How many messages one script erases."""

_BELOW = ("common", "box")
_RECEIVE, _TAKE, _ERASE_ARRIVED = (script(name, below=_BELOW) for name in ("receive", "take", "erase_arrived"))
_SEND, _ERASE_SENT, _PROGRESS = (script(name, below=_BELOW) for name in ("send", "erase_sent", "progress"))
_POINT, _FIND, _LEAVE, _FENCE = script("point"), script("find"), script("leave"), script("fence")
_VOID_MARK, _CLOSE_MARK = script("void_mark"), script("close_mark")
DROP_POINTER = script("drop_pointer")

_log = logging.getLogger(__name__)


class Effects(Struct, frozen=True, array_like=True):
    """What is left to do of a message whose end is decided.

    now    when that was, as text
    sends  what is to leave
    """

    status: str
    now: str
    sends: tuple[Send, ...]


class Fence(Struct, frozen=True):
    """What is erased.

    now     when that was, as text
    bounds  up to which message of each conversation, in the order in which they have arrived in their bucket
    """

    now: str
    bounds: dict[str, int]


class _Claim(NamedTuple):
    """A claim that was made: by which number, and the message's place in the order of arrival in its bucket."""

    number: int
    seq: int


def box_call(what: Any, box: Box, given: dict[str, Any], text: str = "") -> Call:
    """A script that changes a box."""
    asked = {"conversation": box.conversation, "waiting": WAITING[box.name], "width": WIDTH[box.name], **given}
    return run_script(what, box.slot, box.all(), msgpack.encode(asked), text)


def check(write: MailWrite) -> None:
    """Raises `WriteRefused` for what no store can keep."""
    texts: tuple[str, ...]
    if isinstance(write, Receive):
        texts = (write.key, write.conversation, write.document)
    elif isinstance(write, EraseMail):
        texts = (write.user_session_id, *write.conversations)
    elif isinstance(write, Settle):
        sends = ((send.key, send.conversation, send.user_session_id, send.document) for send in write.sends)
        texts = (write.key, *(text for send in sends for text in send))
    elif isinstance(write, Progress):
        texts = (write.key, write.provider_key, write.error)
    else:
        texts = (write.key, write.error)
    for text in texts:
        sessions.check_text(text)


def left_text(key: str, conversation: str, now: str, place: int) -> str:
    """What the list of a session says of a message that is to leave for it."""
    return f"{now}{place % 1000:03x}{key}\0{conversation}"


class Mail:
    """The writes of inbox and outbox under a prefix of keys, as steps."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def steps(self, write: MailWrite, place: int) -> Steps[MailOutcome]:
        """Carry out a write that is no session's. `place`: of those that came with it."""
        if isinstance(write, Receive):
            return self._receive(write, place)
        if isinstance(write, Settle):
            return self._settle(write)
        if isinstance(write, Postpone):
            return self._postpone(write)
        return self._progress(write) if isinstance(write, Progress) else self._erase(write)

    # --- What arrives -------------------------------------------------------------------------------------------------

    def _receive(self, write: Receive, place: int) -> Steps[MailOutcome]:
        conversation = yield from beforehand(self._point("in", write.key, write.conversation))
        now = time_text(write.now)
        entry = {
            "status": write.status,
            "order": time_text(write.sent_at) + number_text(write.now, place),
            "age": now,
            "due": now,
            "tries": 0,
            "error": "",
        }
        given = {"key": write.key, "entry": entry}
        (is_new,) = sure((yield [box_call(_RECEIVE, self._inbox(conversation), given, write.document)]))
        return Received(bool(is_new))

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

    # --- What is done with it -----------------------------------------------------------------------------------------

    def _settle(self, write: Settle) -> Steps[MailOutcome]:
        given: dict[str, Any] = {"verb": "settle", "status": write.status}
        effects = _effects(write) if write.sends else None
        if effects:
            given["effects"] = json.encode(effects).decode()
        conversation = yield from beforehand(self._find("in", write.key))
        if conversation is None or not (yield from self._taken(conversation, write.key, given)):
            return Settled(False)
        if effects:
            yield from _later(self._finish(conversation, write.key, effects, home=None))
        return Settled(True)

    def _postpone(self, write: Postpone) -> Steps[MailOutcome]:
        conversation = yield from beforehand(self._find("in", write.key))
        given = {
            "verb": "postpone",
            "status": "aside" if write.aside else "pending",
            "due": time_text(write.due_at),
            "tries": write.tries,
            "error": write.error,
        }
        return Settled(conversation is not None and bool((yield from self._taken(conversation, write.key, given))))

    def _taken(self, conversation: str, key: str, given: dict[str, Any]) -> Steps[list[Any] | None]:
        """Do this with a message, unless it is done: then None. A claim of others is made void first."""
        asked = {"key": key, **given}
        for _ in range(_MOST_TRIES):
            (reply,) = sure((yield [box_call(_TAKE, self._inbox(conversation), asked)]))
            if reply[0] == b"ok":
                return reply  # type: ignore[no-any-return]
            if reply[0] == b"decided":
                yield from beforehand(self._finish(conversation, key, json.decode(reply[1], type=Effects), home=None))
                return None
            if reply[0] == b"done":
                return None
            session, number = reply[1].decode(), int(reply[2])
            if (yield from beforehand(self._is_applied(conversation, key, session, number))):
                return None
            asked["released"] = (session, number)
        raise StoreBusy("Others are at work on this message all the time. Nothing was written.")

    def _is_applied(
        self, conversation: str, key: str, session: str, number: int, fence: tuple[str, str] | None = None
    ) -> Steps[bool]:
        """Whether the session has taken in the message, which is finished then; if not, it will not by this claim."""
        mark = self._mark(session, key)
        slot = SessionKeys(self._prefix, session).slot
        (kept,) = sure((yield [run_script(_VOID_MARK, slot, [mark], number, MARK_SECONDS)]))
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
        sure((yield [box_call(_TAKE, self._inbox(conversation), given)]))
        if home is not None:
            slot = SessionKeys(self._prefix, home).slot
            sure((yield [run_script(_CLOSE_MARK, slot, [self._mark(home, key)], MARK_SECONDS)]))

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
        """Put what is to leave into the outbox. A key that is known elsewhere is known: who was first has it."""
        pointers = [Pointer(self._prefix, "out", send.key) for send in effects.sends]
        asked = [
            run_script(_POINT, pointer.slot, [pointer.key], send.conversation)
            for pointer, send in zip(pointers, effects.sends, strict=True)
        ]
        found = sure((yield asked))
        calls = []
        for place, (send, where) in enumerate(zip(effects.sends, found, strict=True)):
            if where.decode() == send.conversation:
                entry = {
                    "status": "queued",
                    "order": f"{effects.now}{place % 1000:03x}",
                    "at": place,
                    "age": effects.now,
                    "due": effects.now,
                    "session": send.user_session_id,
                    "tries": 0,
                    "error": "",
                }
                box = Box(self._prefix, "outbox", send.conversation)
                calls.append(box_call(_SEND, box, {"key": send.key, "entry": entry}, send.document))
        sure((yield calls))

    # --- What changes a session ---------------------------------------------------------------------------------------

    def turn(self, write: Save, retention: Retention) -> Steps[Outcome]:
        """A `Save` that settles a message."""
        assert write.settles
        settle, session = write.settles, write.user_session_id
        conversation = yield from beforehand(self._find("in", settle.key))
        claim = None
        if conversation is not None:
            claim = yield from beforehand(self._claimed(conversation, settle, session))
        if conversation is None or claim is None:
            yield from beforehand(self.clear_fences(session))  # perhaps it was erased, and not all with it
            if not write.once:
                return Settled(False)
            (reply,) = sure((yield [self._home(write, retention, {"is_done": True})]))  # what it was answered then
            return sessions.outcome_of(write, reply)
        effects = _effects(settle)
        asked = {
            "conversation": conversation,
            "number": claim.number,
            "seq": claim.seq,
            "effects": json.encode(effects).decode(),
            "leaving": [
                left_text(send.key, send.conversation, effects.now, place)
                for place, send in enumerate(settle.sends)
                if send.user_session_id == session
            ],
        }
        (reply,) = sure((yield [self._home(write, retention, asked)]))
        if reply[0] == b"saved":
            yield from _later(self._finish(conversation, settle.key, effects, session))
        elif reply[:2] == [b"settled", b"applied"]:
            yield from beforehand(self._finish_marked(conversation, settle.key, session, reply[2]))
        elif reply[:2] == [b"settled", b"fenced"]:
            yield from beforehand(self.clear_fences(session))
        return sessions.outcome_of(write, reply)

    def _claimed(self, conversation: str, settle: Settle, session: str) -> Steps[_Claim | None]:
        # A number that no claim before can have had, also of a message of the same key that was forgotten since.
        number = (settle.now - EARLIEST).days * 86_400 + (settle.now - EARLIEST).seconds
        given = {"verb": "claim", "session": session, "number": number}
        reply = yield from self._taken(conversation, settle.key, given)
        return _Claim(int(reply[1]), int(reply[2])) if reply else None

    def _home(self, write: Save, retention: Retention, asked: dict[str, Any]) -> Call:
        assert write.settles
        keys = SessionKeys(self._prefix, write.user_session_id)
        more = [keys.own("f"), keys.own("out"), self._mark(write.user_session_id, write.settles.key)]
        return sessions.write_call(self._prefix, write, retention, {"settles": asked}, more)

    # --- What is erased -----------------------------------------------------------------------------------------------

    def deletion(self, write: Delete, retention: Retention) -> Steps[Outcome]:
        """A `Delete` that erases messages."""
        assert write.erases
        name, text = yield from beforehand(self._fenced(write.erases))
        keys = SessionKeys(self._prefix, write.user_session_id)
        more = [keys.own("f"), keys.own("out"), keys.own(f"out:{name}"), keys.of_slot("fences")]
        asked = {"fence": {"name": name, "text": text}}
        (reply,) = sure((yield [sessions.write_call(self._prefix, write, retention, asked, more)]))
        outcome = sessions.outcome_of(write, reply)
        if isinstance(outcome, Deleted):
            yield from _later(self.clear_fences(write.user_session_id))
        else:  # perhaps one that was interrupted has left something to do
            yield from beforehand(self.clear_fences(write.user_session_id))
        return outcome

    def _erase(self, write: EraseMail) -> Steps[MailOutcome]:
        name, text = yield from beforehand(self._fenced(write))
        sure((yield [self._fence_call(write.user_session_id, "put", name, text)]))
        return MailErased((yield from self.clear_fences(write.user_session_id)))

    def _fenced(self, write: EraseMail) -> Steps[tuple[str, str]]:
        """A fence: its name, and its text. What arrives from now on is not erased."""
        names = [*dict.fromkeys(write.conversations)]
        boxes = [self._inbox(name) for name in names]
        counts = sure((yield [Call(box.slot, ("INCR", box.of_bucket("arrived"))) for box in boxes]))
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
        erased += yield from self._erase_sent(left, fence.now)
        sure((yield [self._fence_call(session, "drop", name)]))
        return erased

    def _erase_arrived(self, conversation: str, bound: int, fence: tuple[str, str]) -> Steps[int]:
        """What has arrived in a conversation up to some message. What sessions have taken in of it is finished."""
        erased, released = 0, dict[str, tuple[str, int]]()
        for _ in range(_MOST_TRIES):
            more = 1
            busy: list[bytes] = []
            while more:
                given = {"bound": bound, "released": released, "most": _MOST_AT_ONCE}
                ((count, more, busy),) = sure((yield [box_call(_ERASE_ARRIVED, self._inbox(conversation), given)]))
                erased += count
            if not busy:
                return erased
            for key, kept in zip(busy[::2], busy[1::2], strict=True):
                claim = yield from self._released(conversation, key.decode(), known_of(kept), fence)
                if claim:
                    released[key.decode()] = claim
        raise StoreBusy("Others are at work on these messages all the time.")

    def _released(
        self, conversation: str, key: str, known: dict[str, Any], fence: tuple[str, str]
    ) -> Steps[tuple[str, int] | None]:
        """Finish a message whose end is decided, or have its claim void: that claim then."""
        if decided := known.get("decided"):
            yield from self._finish(conversation, key, json.decode(decided, type=Effects), None, fence)
            return None
        session, number = known["session"], known["number"]
        if (yield from self._is_applied(conversation, key, session, number, fence)):
            return None
        return session, number

    def _erase_sent(self, left: Sequence[bytes], now: str) -> Steps[int]:
        """What was to leave, by the list of a session."""
        erased = 0
        for start in range(0, len(left), _MOST_AT_ONCE):
            named = [_named(member) for member in left[start : start + _MOST_AT_ONCE]]
            calls = []
            for key, conversation in named:
                given = {"key": key, "now": now}
                calls.append(box_call(_ERASE_SENT, Box(self._prefix, "outbox", conversation), given))
            found = sure((yield calls))
            erased += sum(count for count, _ in found)
            dropped = []
            for (key, conversation), (_, provider) in zip(named, found, strict=True):
                dropped += self.drop_pointers(key, conversation, provider.decode())
            sure((yield dropped))
        return erased

    def drop_pointers(self, key: str, conversation: str, provider: str) -> list[Call]:
        """What forgets where a message is that was to leave."""
        places = [(Pointer(self._prefix, "out", key), conversation)]
        if provider:
            places.append((Pointer(self._prefix, "sent", provider), f"{key}\0{conversation}"))
        return [run_script(DROP_POINTER, pointer.slot, [pointer.key], where) for pointer, where in places]

    # --- What leaves --------------------------------------------------------------------------------------------------

    def _progress(self, write: Progress) -> Steps[MailOutcome]:
        key, conversation = write.key, None
        if key:
            conversation = yield from beforehand(self._find("out", key))
        elif where := (yield from beforehand(self._find("sent", write.provider_key))):
            key, _, conversation = where.partition("\0")
        if conversation is None:
            return Settled(False)
        if write.key and write.provider_key:
            pointer = Pointer(self._prefix, "sent", write.provider_key)
            place = f"{key}\0{conversation}"
            sure((yield [Call(pointer.slot, ("SET", pointer.key, place, "EX", MARK_SECONDS))]))
        given: dict[str, Any] = {
            "key": key,
            "status": write.status,
            "ranks": RANKS,
            "rank": RANKS[write.status],
            "error": write.error,
            "from_provider": not write.key,
        }
        if write.provider_key:
            given["provider"] = write.provider_key
        if write.due_at is not None:
            given["due"] = time_text(write.due_at)
        if write.tries is not None:
            given["tries"] = write.tries
        (done,) = sure((yield [box_call(_PROGRESS, Box(self._prefix, "outbox", conversation), given)]))
        return Settled(bool(done))


def _effects(settle: Settle) -> Effects:
    return Effects(settle.status, time_text(settle.now), settle.sends)


def _named(member: bytes) -> tuple[str, str]:
    """The key and the conversation of what the list of a session says."""
    key, _, conversation = member[18:].decode().partition("\0")
    return key, conversation


def _later(steps: Steps[Any]) -> Steps[None]:
    """Steps of a write that has happened: if they fail, whoever meets what is left does them."""
    try:
        yield from steps
    except StoreError as error:
        _log.warning(
            "what a write makes of inbox and outbox is kept, and will be put in place later: %s", error.message
        )
