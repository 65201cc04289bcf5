"""The use-cases: save, load, update, delete. Every protocol (HTTP, later channels) calls these and holds no rules.

Ids and states that arrive here have passed `chatstate.model.check_user_session_id` and `check_chat_state`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NoReturn

from chatstate.errors import PreconditionFailed, SessionNotFound
from chatstate.group_commit import GroupCommit
from chatstate.model import (
    ANYTHING,
    PRESENT,
    Conflict,
    Delete,
    Deleted,
    Expect,
    Save,
    Session,
    Write,
    state_size,
    utc_now,
)
from chatstate.stores.base import Outcome, Store

_OVERHEAD = 512
"""What a queued write weighs beside its state, in bytes, roughly."""


class Sessions:
    """The sessions of one store. Writes and loads go through group commit, each with lanes of their own."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock
        self._writes = GroupCommit[Write, Outcome](store.commit, lanes=store.write_lanes)
        self._loads = GroupCommit[str, Session | None](self._load_batch, lanes=store.read_lanes)

    async def save(
        self,
        user_session_id: str,
        chat_state: str,
        last_activity: datetime | None = None,
        precondition: Expect = ANYTHING,
    ) -> Session:
        """Create the session (`Session.is_new`) or replace its state. `last_activity` None means now."""
        return await self._save(user_session_id, chat_state, last_activity, precondition, precondition)

    async def update(
        self,
        user_session_id: str,
        chat_state: str | None = None,
        last_activity: datetime | None = None,
        precondition: Expect = ANYTHING,
    ) -> Session:
        """Change a session that exists. `chat_state` None keeps the state; `last_activity` None means now."""
        return await self._save(user_session_id, chat_state, last_activity, precondition, precondition & PRESENT)

    async def _save(
        self,
        user_session_id: str,
        chat_state: str | None,
        last_activity: datetime | None,
        precondition: Expect,
        expect: Expect,
    ) -> Session:
        now = self._clock()
        write = Save(
            user_session_id=user_session_id,
            new_session_id=str(uuid.uuid4()),
            chat_state=chat_state,
            last_activity=last_activity or now,
            now=now,
            expect=expect,
        )
        outcome = await self._writes.submit(user_session_id, write, _OVERHEAD + state_size(chat_state or ""))
        return outcome if isinstance(outcome, Session) else _failed(outcome, precondition)

    async def load(self, user_session_id: str) -> Session:
        """The session as it is at some moment during the call. Raises `SessionNotFound`."""
        session = await self._loads.submit(object(), user_session_id)  # loads need no order, so no key in common
        if session is None:
            raise SessionNotFound
        return session

    async def _load_batch(self, ids: Sequence[str]) -> list[Session | None]:
        sessions = await self._store.load(list(dict.fromkeys(ids)))
        return [sessions.get(user_session_id) for user_session_id in ids]

    async def delete(self, user_session_id: str, precondition: Expect = ANYTHING) -> None:
        """Remove the session. Raises `SessionNotFound`."""
        write = Delete(user_session_id=user_session_id, expect=precondition & PRESENT)
        outcome = await self._writes.submit(user_session_id, write, _OVERHEAD)
        if not isinstance(outcome, Deleted):
            _failed(outcome, precondition)

    async def drain(self) -> None:
        """Wait until everything that was accepted has been answered."""
        await asyncio.gather(self._writes.drain(), self._loads.drain())


def _failed(outcome: Outcome, precondition: Expect) -> NoReturn:
    """A write that finds no session fails with 'not found', unless it is a precondition that demands one."""
    assert isinstance(outcome, Conflict)
    if outcome.current is None and precondition.allows(None):
        raise SessionNotFound
    raise PreconditionFailed(outcome.current)
