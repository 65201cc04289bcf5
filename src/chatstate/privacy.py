"""What is kept about somebody: taking it out, and erasing it. By session, and by person, whom visits name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from chatstate.errors import SessionNotFound, UserNotFound
from chatstate.inbox import Inbox
from chatstate.links import Link, Links
from chatstate.mailbox import InboxEntry, OutboxEntry
from chatstate.model import EVERYTHING, Remembered, Session, Version, Within
from chatstate.people import Person
from chatstate.sessions import Sessions
from chatstate.tokens import Tokens
from chatstate.visit import Visit, VisitPosition
from chatstate.visits import Visits

_VERSIONS_AT_ONCE = 5
"""How many versions are read at once; their states may be large."""

_AT_ONCE = 100


class Erased(NamedTuple):
    """How much was removed."""

    sessions: int
    visits: int


class Held(NamedTuple):
    """What is kept about a session, but for its versions and its visits, which may be many."""

    user_session_id: str
    session: Session | None
    remembered: Sequence[Remembered]
    tokens_revoked_at: datetime | None
    links: Sequence[Link]
    people: Sequence[Person]
    waiting: Sequence[InboxEntry]
    replies: Sequence[OutboxEntry]


class Privacy:
    """Works on all collections at once; each step is atomic, and what was interrupted goes on with the next try."""

    def __init__(self, sessions: Sessions, visits: Visits, tokens: Tokens, links: Links, inbox: Inbox) -> None:
        self._sessions = sessions
        self._visits = visits
        self._tokens = tokens
        self._links = links
        self._inbox = inbox

    async def held(self, user_session_id: str, now: datetime) -> Held:
        """What is kept about the session. Raises `SessionNotFound` when that is nothing, not even a visit."""
        session = None
        with suppress(SessionNotFound):
            session = await self._sessions.load(user_session_id)
        remembered = await self._sessions.remembered(user_session_id)
        revoked_at = await self._tokens.revoked_at(user_session_id, now)
        links = await self._links.all(user_session_id, now)
        # Who has only linked it tells nobody who they are: not by their names, nor by what they have written there.
        people = [
            person
            for person in (await self._inbox.people.of_session(user_session_id, now)).values()
            if person.own_session_id == user_session_id
        ]
        conversations = self._inbox.people.conversations_in(user_session_id, people)
        waiting = await self._inbox.waiting(user_session_id, conversations)
        replies = await self._inbox.replies(user_session_id=user_session_id)
        held = Held(user_session_id, session, remembered, revoked_at, links, people, waiting, replies)
        if not (any(held[1:]) or await self._visits.page(user_session_id, limit=1)):
            raise SessionNotFound
        return held

    async def versions(self, user_session_id: str) -> AsyncIterator[Version]:
        """All versions of a session that are kept, newest first, with their states."""
        before = None
        with suppress(SessionNotFound):  # deleted meanwhile
            while page := await self._sessions.versions(user_session_id, _VERSIONS_AT_ONCE, before, with_state=True):
                for version in page:
                    yield version
                before = page[-1].version

    async def visits(self, user_session_id: str, user_id: str | None = None) -> AsyncIterator[Visit]:
        """All visits of a session, newest first; with a person, none that names another one."""
        after = None
        while page := await self._visits.page(user_session_id, limit=_AT_ONCE, after=after):
            for visit in page:
                if user_id is None or visit.user_id in (None, user_id):
                    yield visit
            after = VisitPosition(page[-1].session_start_time, page[-1].session_id)

    async def user_sessions(self, user_id: str, within: Within = EVERYTHING) -> AsyncIterator[str]:
        """The ids of all sessions of a person."""
        after = ""
        while page := await self._visits.user_sessions(user_id, within=within, after=after, limit=_AT_ONCE):
            for user_session_id in page:
                yield user_session_id
            after = page[-1]

    async def erase_user(self, user_id: str, now: datetime, within: Within, erasing: Callable[[str], None]) -> Erased:
        """Remove all that is kept about a person, and make the tokens of their sessions void, so that no open browser
        brings one back. Visits, which say which sessions are theirs, go last. Each session is given to `erasing`
        before. Raises `UserNotFound`."""
        sessions = visits = 0
        async for user_session_id in self.user_sessions(user_id, within):
            erasing(user_session_id)
            await self._tokens.revoke(user_session_id, now)
            await self._links.erase(user_session_id, now)
            await self._inbox.erase(user_session_id)  # first: whoever is linked to the session would bring it back
            with suppress(SessionNotFound):
                await self._sessions.delete(user_session_id, erases=await self._inbox.erasure(user_session_id))
                sessions += 1
            visits += await self._visits.erase(user_session_id, user_id)
        if not visits:
            raise UserNotFound
        return Erased(sessions, visits)
