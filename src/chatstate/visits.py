"""The use-cases of visits: create, load, list, change. As with `chatstate.sessions`, protocols call these and hold no
rules, and writes go through group commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from typing import cast

from msgspec import UNSET
from msgspec.structs import asdict

from chatstate.errors import VisitExists, VisitNotFound
from chatstate.group_commit import GroupCommit
from chatstate.model import EVERYTHING, Within, utc_now
from chatstate.stores.base import Outcome, Store
from chatstate.visit import (
    Changes,
    ChangeVisit,
    ChangeVisits,
    CreateVisit,
    EraseVisits,
    UserSessionQuery,
    Visit,
    VisitPosition,
    VisitQuery,
    VisitsChanged,
    VisitsErased,
    VisitWrite,
)

_SIZE = 8192
"""What a queued write weighs, in bytes, at most and roughly."""


class Visits:
    """The visits of one store. Their writes have one lane: they are not to take connections from the sessions."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._clock = clock
        self._writes = GroupCommit[VisitWrite, Outcome](store.commit, lanes=1)

    async def create(
        self,
        user_session_id: str,
        session_id: str | None = None,
        members: Changes = Changes(),  # noqa: B008 (frozen)
    ) -> Visit:
        """A new visit; without an id it gets one, without a start it starts now. Raises `VisitExists`."""
        now = self._clock()
        given = {name: value for name, value in asdict(members).items() if value is not UNSET}
        write = CreateVisit(
            session_id=session_id or str(uuid.uuid4()),
            user_session_id=user_session_id,
            created_at=now,
            **{"session_start_time": now, **given},
        )
        outcome = await self._commit(write.session_id, write)
        if not isinstance(outcome, Visit):
            raise VisitExists
        return outcome

    async def load(self, session_id: str, within: Within = EVERYTHING) -> Visit:
        """One visit, if it is of one of these user sessions. Raises `VisitNotFound`."""
        found = await self._list(VisitQuery(session_id=session_id, within=within))
        if not found:
            raise VisitNotFound
        return found[0]

    async def page(
        self,
        user_session_id: str | None = None,
        *,
        within: Within = EVERYTHING,
        limit: int = 100,
        after: VisitPosition | None = None,
    ) -> Sequence[Visit]:
        """A page of the visits, newest start first (see `VisitQuery`): of one user session, or of all of these."""
        return await self._list(VisitQuery(user_session_id=user_session_id, within=within, limit=limit, after=after))

    async def change(self, session_id: str, changes: Changes, within: Within = EVERYTHING) -> Visit:
        """The visit, changed, if it is of one of these user sessions. Raises `VisitNotFound`."""
        write = ChangeVisit(session_id=session_id, changes=changes, within=within)
        outcome = await self._commit(session_id, write)
        if not isinstance(outcome, Visit):
            raise VisitNotFound
        return outcome

    async def change_all(self, user_session_id: str, changes: Changes) -> int:
        """How many visits of this user session were changed. Raises `VisitNotFound` when it has none."""
        write = ChangeVisits(user_session_id=user_session_id, changes=changes)
        outcome = await self._commit(("user", user_session_id), write)
        assert isinstance(outcome, VisitsChanged)
        if not outcome.count:
            raise VisitNotFound("This user session has no visits.")
        return outcome.count

    async def erase(self, user_session_id: str, user_id: str | None = None) -> int:
        """How many visits of this user session were removed; with a person, none that names another one."""
        write = EraseVisits(user_session_id=user_session_id, user_id=user_id)
        outcome = await self._commit(("user", user_session_id), write)
        assert isinstance(outcome, VisitsErased)
        return outcome.count

    async def user_sessions(
        self, user_id: str, *, within: Within = EVERYTHING, after: str = "", limit: int = 100
    ) -> Sequence[str]:
        """A page of the ids of the user sessions that visits of this person name (see `UserSessionQuery`)."""
        query = UserSessionQuery(user_id=user_id, within=within, after=after, limit=limit)
        return cast(Sequence[str], await self._store.list(query))

    async def _commit(self, key: Hashable, write: VisitWrite) -> Outcome:
        return await self._writes.submit(key, write, _SIZE)

    async def _list(self, query: VisitQuery) -> Sequence[Visit]:
        return cast(Sequence[Visit], await self._store.list(query))

    async def drain(self) -> None:
        """Wait until everything that was accepted has been answered."""
        await self._writes.drain()
