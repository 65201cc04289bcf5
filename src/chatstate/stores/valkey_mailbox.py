"""Inbox and outbox in a Valkey Cluster: writes, also those that change a session and its messages together.

No step changes more than one slot, so a write of several places is a chain of steps, each durable before the next and
each such that doing it again changes nothing (docs/decisions/0012-valkey-mail.md). One of them is the moment at which
the write happens; whoever is interrupted before it has changed nothing, and what is left to do after it is done by
whoever meets it.

A turn (`Save.settles`): the message is *claimed*, by a number, for the session; then the session's script takes the
message in: state, what is to be sent and the *mark* of the message, at once; then the effects follow. A claim for
another session has the one before it made *void* at its session first, and finds out whether it has come too late.
A message that is settled alone is *decided* where it lies, and done when its effects are there.

What puts effects in place stands in `chatstate.stores.valkey_finishing`, what erases in
`chatstate.stores.valkey_erasing`, what lists and forgets in `chatstate.stores.valkey_mail_lists`.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from msgspec import json

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
    Settle,
    Settled,
)
from chatstate.model import Delete, Deleted, Retention, Save
from chatstate.stores import valkey_sessions as sessions
from chatstate.stores.base import Outcome
from chatstate.stores.lua import script
from chatstate.stores.valkey_boxes import Box, Pointer, number_text
from chatstate.stores.valkey_cluster import Call
from chatstate.stores.valkey_erasing import MOST_TRIES, Erasing
from chatstate.stores.valkey_finishing import (
    BELOW,
    END,
    MARK_SECONDS,
    TAKE,
    Claim,
    Effects,
    box_call,
    claim_number,
    left_text,
)
from chatstate.stores.valkey_keys import SessionKeys, time_text
from chatstate.stores.valkey_steps import Steps, beforehand, sure

_RECEIVE, _PROGRESS = (script(name, below=BELOW) for name in ("receive", "progress"))

_log = logging.getLogger(__name__)


class _Claimed(NamedTuple):
    """A claim that was made: by which number, and the message's place in the order of arrival in its bucket; and
    `Claim.since`."""

    number: int
    seq: int
    since: int


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


class Mail(Erasing):
    """The writes of inbox and outbox under a prefix of keys, as steps."""

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
        gives_room = given["verb"] == "settle" and "effects" not in given
        for _ in range(MOST_TRIES):
            (reply,) = sure((yield [box_call(END if gives_room else TAKE, self._inbox(conversation), asked)]))
            if reply[0] == b"ok":
                return reply  # type: ignore[no-any-return]
            if reply[0] == b"decided":
                yield from beforehand(self._finish(conversation, key, json.decode(reply[1], type=Effects), home=None))
                return None
            if reply[0] == b"done":
                return None
            claim = Claim(reply[1].decode(), int(reply[2]), int(reply[3]))
            if (yield from beforehand(self._is_applied(conversation, key, claim))):
                return None
            asked["released"] = (claim.session, claim.number)
        raise StoreBusy("Others are at work on this message all the time. Nothing was written.")

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
            "since": claim.since,
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

    def _claimed(self, conversation: str, settle: Settle, session: str) -> Steps[_Claimed | None]:
        # A number that no claim before can have had, also of a message of the same key that was forgotten since.
        given = {"verb": "claim", "session": session, "number": claim_number(settle.now)}
        reply = yield from self._taken(conversation, settle.key, given)
        return _Claimed(*map(int, reply[1:])) if reply else None

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


def _later(steps: Steps[Any]) -> Steps[None]:
    """Steps of a write that has happened: if they fail, whoever meets what is left does them."""
    try:
        yield from steps
    except StoreError as error:
        _log.warning(
            "what a write makes of inbox and outbox is kept, and will be put in place later: %s", error.message
        )
