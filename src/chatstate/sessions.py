"""The use-cases: save, load, update, edit, delete, list, restore. Every protocol (HTTP, later channels) calls these and
holds no rules.

Ids and states that arrive here have passed `chatstate.model.check_user_session_id` and `check_chat_state`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, NoReturn, cast
from weakref import WeakValueDictionary

from chatstate.errors import (
    ChatStateError,
    IdempotencyKeyReused,
    PreconditionFailed,
    SessionNotFound,
    StoreBusy,
    StoreError,
    VersionNotFound,
)
from chatstate.group_commit import GroupCommit
from chatstate.mailbox import EraseMail, Settle, Settled
from chatstate.model import (
    ABSENT,
    ANYTHING,
    KEEP,
    PRESENT,
    Conflict,
    Delete,
    Deleted,
    Expect,
    IdempotencyKey,
    Position,
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
    Version,
    VersionQuery,
    Write,
    one_of,
    state_size,
    utc_now,
)
from chatstate.stores.base import Outcome, Store

_OVERHEAD = 512
"""What a queued write weighs beside its state, in bytes, roughly."""

_EDIT_SECONDS = 5.0
"""How long an edit is made anew, each time that another process has changed the session meanwhile."""

_MOST_EDITS = 1000
"""How many edits may wait for their turn, or be in work, before more are refused."""


class Replayed(Session, frozen=True):
    """A session as an earlier write with the same idempotency key has left it; this time nothing was changed.

    `state_is_kept` is false when nobody keeps the state of that version any more: then `chat_state` is empty.
    """

    state_is_kept: bool = True


class Sessions:
    """The sessions of one store. Writes and loads go through group commit, each with lanes of their own."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = utc_now, retention: Retention = KEEP) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention
        commit = partial(store.commit, retention=retention)
        self._writes = GroupCommit[Write, Outcome](commit, lanes=store.write_lanes)
        self._loads = GroupCommit[str, Session | None](self._load_batch, lanes=store.read_lanes)
        self._edits = 0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def save(
        self,
        user_session_id: str,
        chat_state: str,
        last_activity: datetime | None = None,
        precondition: Expect = ANYTHING,
        *,
        expires_in: int | None = None,
        once: IdempotencyKey | None = None,
    ) -> Session:
        """Create the session (`Session.is_new`) or replace its state. `last_activity` None means now."""
        return await self._save(
            user_session_id, chat_state, last_activity, precondition, precondition, expires_in=expires_in, once=once
        )

    async def update(
        self,
        user_session_id: str,
        chat_state: str | None = None,
        last_activity: datetime | None = None,
        precondition: Expect = ANYTHING,
        *,
        expires_in: int | None = None,
        once: IdempotencyKey | None = None,
    ) -> Session:
        """Change a session that exists. `chat_state` None keeps the state; `last_activity` None means now."""
        return await self._save(
            user_session_id,
            chat_state,
            last_activity,
            precondition,
            precondition & PRESENT,
            expires_in=expires_in,
            once=once,
        )

    async def _save(
        self,
        user_session_id: str,
        chat_state: str | None,
        last_activity: datetime | None,
        precondition: Expect,
        expect: Expect,
        **more: Any,
    ) -> Session:
        outcome = await self._submit(user_session_id, chat_state, last_activity, expect, **more)
        if isinstance(outcome, Session):
            return outcome
        if isinstance(outcome, Replay):
            session = _replayed(outcome, more["once"], chat_state)
            if chat_state is None:
                await self.load(user_session_id)  # a state that was kept is not served once its session has expired
            return session
        return _failed(outcome, precondition)

    async def _submit(
        self,
        user_session_id: str,
        chat_state: str | None,
        last_activity: datetime | None,
        expect: Expect,
        **more: Any,
    ) -> Outcome:
        now = self._clock()
        write = Save(
            user_session_id=user_session_id,
            new_session_id=str(uuid.uuid4()),
            chat_state=chat_state,
            last_activity=last_activity or now,
            now=now,
            expect=expect,
            **more,
        )
        return await self._writes.submit(user_session_id, write, _OVERHEAD + state_size(chat_state or ""))

    async def take_turn(
        self, user_session_id: str, chat_state: str, seen: Tag | None, settles: Settle
    ) -> Session | Conflict | Settled:
        """Save what a turn has made of the session that it has seen (None: that there was none), and what it settles.

        A `Conflict` when the session is another one now, and `Settled(False)` when the message is done already: then
        nothing was changed.
        """
        expect = ABSENT if seen is None else one_of([seen])
        outcome = await self._submit(user_session_id, chat_state, None, expect, settles=settles)
        assert isinstance(outcome, Session | Conflict | Settled)
        return outcome

    async def load(self, user_session_id: str) -> Session:
        """The session as it is at some moment during the call. Raises `SessionNotFound`."""
        session = await self._loads.submit(object(), user_session_id)  # loads need no order, so no key in common
        if session is None:
            raise SessionNotFound
        return session

    async def _load_batch(self, ids: Sequence[str]) -> list[Session | StoreError | None]:
        sessions = await self._store.load(list(dict.fromkeys(ids)), self._clock(), self._retention)
        return [sessions.get(user_session_id) for user_session_id in ids]

    async def delete(
        self,
        user_session_id: str,
        precondition: Expect = ANYTHING,
        *,
        once: IdempotencyKey | None = None,
        erases: EraseMail | None = None,
    ) -> bool:
        """Remove the session, with the messages that go with it, and tell whether an earlier request with this key had.
        Raises `SessionNotFound`."""
        expect = precondition & PRESENT
        write = Delete(user_session_id=user_session_id, now=self._clock(), expect=expect, once=once, erases=erases)
        outcome = await self._writes.submit(user_session_id, write, _OVERHEAD)
        if isinstance(outcome, Replay):
            _check_same(outcome, once)
        elif not isinstance(outcome, Deleted):
            _failed(outcome, precondition)
        return isinstance(outcome, Replay)

    # --- Edits: what the new state is depends on the one that is there ------------------------------------------------

    async def edit(
        self,
        user_session_id: str,
        change: Callable[[str], Awaitable[str]],
        precondition: Expect = ANYTHING,
        once: IdempotencyKey | None = None,
    ) -> Session:
        """Put what `change` makes of the state in its place. No write that comes in between is lost: then the change is
        made anew, on what that one has left, as long as the precondition allows it.

        Raises what `change` raises, `SessionNotFound`, and `StoreBusy` when others are faster all the time.
        """

        async def changed(session: Session) -> str:
            return await change(session.chat_state)

        return await self._edit(user_session_id, changed, precondition, once)

    async def restore(
        self,
        user_session_id: str,
        version: int,
        precondition: Expect = ANYTHING,
        once: IdempotencyKey | None = None,
    ) -> Session:
        """Make the state of an earlier version the newest one. Raises `VersionNotFound`, and what `edit` raises."""

        async def earlier(session: Session) -> str:
            found = await self.version(user_session_id, version)
            if found.session_id != session.session_id:
                raise VersionNotFound  # of the session that had this id before
            return cast(str, found.chat_state)

        return await self._edit(user_session_id, earlier, precondition, once)

    async def _edit(
        self,
        user_session_id: str,
        change: Callable[[Session], Awaitable[str]],
        precondition: Expect,
        once: IdempotencyKey | None,
    ) -> Session:
        if self._edits >= _MOST_EDITS:
            raise StoreBusy
        self._edits += 1
        try:
            return await self._edit_in_turn(user_session_id, change, precondition, once)
        finally:
            self._edits -= 1

    async def _edit_in_turn(
        self,
        user_session_id: str,
        change: Callable[[Session], Awaitable[str]],
        precondition: Expect,
        once: IdempotencyKey | None,
    ) -> Session:
        # Edits of one session take turns, so that they race with other processes only.
        async with self._turns.setdefault(user_session_id, asyncio.Lock()):
            found: Session | None = None
            time = asyncio.get_running_loop().time
            until = time() + _EDIT_SECONDS
            while time() < until:
                outcome = await self._try_edit(user_session_id, found, change, precondition, once)
                if isinstance(outcome, Replay):
                    return await self._edited_before(outcome, once)
                if isinstance(outcome, Session):
                    return outcome
                # Who has lost knows what to build on without another look, and so is ahead of the winner's next edit.
                assert isinstance(outcome, Conflict)
                found = outcome.session
        raise StoreBusy("Other servers change this session all the time. Nothing was written; try again.")

    async def _try_edit(
        self,
        user_session_id: str,
        found: Session | None,
        change: Callable[[Session], Awaitable[str]],
        precondition: Expect,
        once: IdempotencyKey | None,
    ) -> Outcome:
        if once and not found and (replay := await self._recall(user_session_id, once)):
            return replay
        try:
            session = found or await self._load_for(user_session_id, precondition)
            if not precondition.allows(session.tag):
                _failed(Conflict(session.tag), precondition)
            state = await self._changed(session, change, precondition)
            if isinstance(state, Conflict):
                return state
        except ChatStateError:  # perhaps because a duplicate, which another server has carried out, was faster
            if once and (replay := await self._recall(user_session_id, once)):
                return replay
            raise
        return await self._submit(user_session_id, state, None, one_of([session.tag]), show_current=True, once=once)

    async def _changed(
        self, session: Session, change: Callable[[Session], Awaitable[str]], precondition: Expect
    ) -> str | Conflict:
        try:
            return await change(session)
        except (SessionNotFound, VersionNotFound):
            # Perhaps another server has just changed the session; then the precondition is judged by what is there now.
            now = await self._load_for(session.user_session_id, precondition)
            if now.tag == session.tag:
                raise
            return Conflict(now.tag, now)

    async def _load_for(self, user_session_id: str, precondition: Expect) -> Session:
        try:
            return await self.load(user_session_id)
        except SessionNotFound:
            return _failed(Conflict(None), precondition)

    async def _recall(self, user_session_id: str, once: IdempotencyKey) -> Replay | None:
        query = ReplayQuery(user_session_id=user_session_id, once=once, now=self._clock())
        replays = cast(Sequence[Replay], await self._store.list(query))
        return replays[0] if replays else None

    async def _edited_before(self, replay: Replay, once: IdempotencyKey | None) -> Session:
        """What an edit that was carried out earlier has left, with its state if that is kept."""
        _check_same(replay, once)
        assert isinstance(replay.outcome, Summary)
        try:
            version = await self.version(replay.outcome.user_session_id, replay.outcome.version)
        except (SessionNotFound, VersionNotFound):
            version = None
        kept = version is not None and version.session_id == replay.outcome.session_id
        return _replay_of(replay.outcome, version.chat_state or "" if kept and version else "", kept)

    # --- Lists --------------------------------------------------------------------------------------------------------

    async def list(
        self,
        *,
        limit: int,
        order: Literal["activity", "id"] = "activity",
        after: Position | None = None,
        prefix: str = "",
        active_after: datetime | None = None,
        active_before: datetime | None = None,
        with_state: bool = False,
    ) -> Sequence[Summary | Session]:
        """A page of the sessions (see `SessionQuery`): `Session`s if the state is asked for, else `Summary`s."""
        query = SessionQuery(
            now=self._clock(),
            retention=self._retention,
            order=order,
            limit=limit,
            after=after,
            prefix=prefix,
            active_after=active_after,
            active_before=active_before,
            with_state=with_state,
        )
        return cast(Sequence[Summary | Session], await self._store.list(query))

    async def versions(
        self, user_session_id: str, limit: int, before: int | None = None, *, with_state: bool = False
    ) -> Sequence[Version]:
        """The versions that are kept, newest first; their states only if asked for. Raises `SessionNotFound`."""
        rows = await self._versions(user_session_id, limit=limit, before=before, with_state=with_state)
        if not rows:
            session = await self.load(user_session_id)  # raises if it is absent; else there is no older version
            if before is None:  # it has been created meanwhile
                return [_current_version(session, with_state)]
        return rows

    async def version(self, user_session_id: str, version: int) -> Version:
        """One version with its state. Raises `VersionNotFound` and `SessionNotFound`."""
        rows = await self._versions(user_session_id, version=version, with_state=True)
        if not rows:
            await self.load(user_session_id)
            raise VersionNotFound
        return rows[0]

    async def _versions(self, user_session_id: str, **given: Any) -> Sequence[Version]:
        query = VersionQuery(user_session_id=user_session_id, now=self._clock(), retention=self._retention, **given)
        return cast(Sequence[Version], await self._store.list(query))

    async def remembered(self, user_session_id: str) -> Sequence[Remembered]:
        """What is remembered of requests with idempotency keys, of any caller, also after the session was deleted."""
        query = RememberedQuery(user_session_id=user_session_id, now=self._clock())
        return cast(Sequence[Remembered], await self._store.list(query))

    async def drain(self) -> None:
        """Wait until everything that was accepted has been answered."""
        await asyncio.gather(self._writes.drain(), self._loads.drain())


def _failed(outcome: Outcome, precondition: Expect) -> NoReturn:
    """A write that finds no session fails with 'not found', unless it is a precondition that demands one."""
    assert isinstance(outcome, Conflict)
    if outcome.current is None and precondition.allows(None):
        raise SessionNotFound
    expected_absence = outcome.current is not None and precondition.only == frozenset()
    raise PreconditionFailed(outcome.current, expected_absence=expected_absence)


def _current_version(session: Session, with_state: bool) -> Version:
    size, state = state_size(session.chat_state), session.chat_state if with_state else None
    return Version(session.session_id, session.version, session.last_activity, session.updated_at, size, state)


def _check_same(replay: Replay, once: IdempotencyKey | None) -> None:
    if once is None or replay.digest != once.digest:
        raise IdempotencyKeyReused


def _replayed(replay: Replay, once: IdempotencyKey | None, sent_state: str | None) -> Session:
    """What a save or an update that was carried out earlier has left. Its state comes with the retry, or was kept."""
    _check_same(replay, once)
    state = replay.chat_state if sent_state is None else sent_state
    if state is None:  # deleted since
        raise SessionNotFound
    assert isinstance(replay.outcome, Summary)
    return _replay_of(replay.outcome, state, True)


def _replay_of(summary: Summary, state: str, kept: bool) -> Session:
    times = (summary.last_activity, summary.created_at, summary.updated_at)
    return Replayed(
        summary.session_id, summary.user_session_id, state, *times, summary.version, summary.expires_at, kept
    )
