"""The people of channels: by which names a channel knows them, and with which session they go on there.

A person has a session of their own, with an id that is drawn; no name of a channel is ever one. They may have linked
another one instead, and go back to their own when that link ends. Nothing that lies in two sessions is ever merged.

A person may have several names, of which any may be missing from a message, and change. A phone number goes to somebody
else after a while, so what a number stands for is forgotten when it was not used for 45 days, which is when WhatsApp
takes it for given back; and whoever comes with a surer name that is another one is somebody else. Names lie in the
database as hashes where they are looked for, and inside documents.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from chatstate.channels import Contact, ExternalId
from chatstate.errors import StoreError
from chatstate.hashes import name_hash
from chatstate.leases import Leases
from chatstate.records import Records
from chatstate.stores.base import Store

LASTING = ("bsuid", "parent")
"""Kinds of names that nobody else ever gets."""

_IDLE = timedelta(days=45)
_SEEN_AGAIN = timedelta(days=1)
"""How exactly it is remembered when a name was used last."""

_MEETING = timedelta(seconds=5)
_MEETING_SECONDS = 0.02
"""After what time others go on that a server has died over somebody new; and how often they look."""

_MOST_PEOPLE = 100
"""How many people may go on with one session, or may have."""


class TooManyPeople(Exception):
    """As many people go on with this session on channels as may."""


class Question(Struct, frozen=True):
    """What a person was asked: whether to go on here with this session, which a device has open.

    session_id  of that session: one that was deleted and created again has another
    number      what the device shows, and the person is to answer
    """

    user_session_id: str
    session_id: str
    link_id: str
    device: str
    number: str
    until: datetime


class Answered(Struct, frozen=True):
    """What was answered to a message about links: it is answered once, also if it is looked at again."""

    message: str
    text: str


class Person(Struct, frozen=True, kw_only=True):
    """What is kept of a person of a channel.

    contact          the names under which they can be written to, the surest first: those of their newest message, and
                     those that nobody else ever gets
    earlier          names that they had before, and that are not told with their newest message
    own_session_id   the session that is theirs alone
    user_session_id  the session that they go on with; the other one, if they have linked one
    linked_at        since when; None: they have not
    device           by which device's link
    link_id          of that link
    asked            what they were asked, and have not answered
    answered         the newest message of theirs that was about links
    """

    channel: str
    contact: Contact
    own_session_id: str
    user_session_id: str
    linked_at: datetime | None = None
    device: str = ""
    link_id: str = ""
    asked: Question | None = None
    answered: Answered | None = None
    earlier: tuple[ExternalId, ...] = ()

    @property
    def names(self) -> tuple[ExternalId, ...]:
        """All that they are known by."""
        return (*self.contact.ids, *self.earlier)


class _Name(Struct, frozen=True):
    """Whose a name is."""

    person: str
    seen_at: datetime


class _Followers(Struct, frozen=True):
    """Who goes on with a session, or did."""

    people: tuple[str, ...]


class People:
    """The people of a store.

    key   that of the hashes (`hashes.mail_key`); it must be there before anything is asked
    kept  for how long somebody is remembered who does not write; None: for ever
    """

    def __init__(
        self,
        store: Store,
        key: bytes = b"",
        kept: timedelta | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.key = key
        self._kept = kept
        self._pause = pause
        self._meeting = asyncio.Lock()
        self._leases = Leases(store, "people_leases", secrets.token_hex(8), _MEETING)
        self._people = Records(store, "people", Person)
        self._names = Records(store, "people_names", _Name)
        self._followers = Records(store, "people_sessions", _Followers)

    def conversation(self, channel: str, contact: Contact) -> str:
        """What stands for the conversation with whom a channel knows by these names."""
        return self._hash(channel, contact.ids[0])

    def conversations(self, person: Person) -> tuple[str, ...]:
        """All that may stand for theirs: a message may come under any of their names."""
        return tuple(self._hash(person.channel, name) for name in person.names)

    def conversations_in(self, user_session_id: str, people: Iterable[Person]) -> tuple[str, ...]:
        """The same of those among them who go on with this session."""
        here = (person for person in people if person.user_session_id == user_session_id)
        return tuple(name for person in here for name in self.conversations(person))

    def _hash(self, channel: str, name: ExternalId) -> str:
        return name_hash(self.key, channel, name.kind, name.value)

    # --- Finding ------------------------------------------------------------------------------------------------------

    async def find(
        self, channel: str, contact: Contact, now: datetime, sent_at: datetime | None = None
    ) -> tuple[str, Person]:
        """Who has written, by the surest name that is known; whoever is not known is somebody new. And their id.

        sent_at  when the message was sent that has named them: it may have waited; None: now
        """
        found = await self._known(channel, contact, now) or await self._met(channel, contact, now)
        person_id, person = found
        lost = await self._note_names(person_id, person, contact, now, sent_at or now)
        return person_id, await self._with_names(person_id, person, contact, lost, now)

    async def _met(self, channel: str, contact: Contact, now: datetime) -> tuple[str, Person]:
        """Somebody new. They are met one by one, by all servers: several messages of one person may come at once, each
        under another name."""
        async with self._meeting:
            while (lease := await self._leases.take(channel, now)) is None:
                await self._pause(_MEETING_SECONDS)
                now += timedelta(seconds=_MEETING_SECONDS)  # or the lease of a server that died would not expire
            try:
                return await self._known(channel, contact, now) or await self._added(channel, contact, now)
            finally:
                with suppress(StoreError):  # it expires
                    await self._leases.release(lease, now)

    async def get(self, person_id: str, now: datetime) -> Person | None:
        """The person of this id."""
        return await self._people.get(person_id, now)

    async def _known(self, channel: str, contact: Contact, now: datetime) -> tuple[str, Person] | None:
        for name in contact.ids:
            found = await self._names.get(self._hash(channel, name), now)
            person = await self._people.get(found.person, now) if found else None
            if found and person and not _is_somebody_else(person, contact, name):
                return found.person, person
        return None

    async def _added(self, channel: str, contact: Contact, now: datetime) -> tuple[str, Person]:
        person_id, session_id = secrets.token_hex(12), f"{channel}_{secrets.token_urlsafe(24)}"
        person = Person(channel=channel, contact=contact, own_session_id=session_id, user_session_id=session_id)
        await self._follow(person_id, session_id, now)  # first: whoever erases the session must find them
        await self._people.put(person_id, person, now, expires_at=self._ends(now))
        for name in contact.ids:
            if await self._names.get(self._hash(channel, name), now) is None:
                await self._put_name(channel, name, person_id, now)
        return person_id, person

    async def _disown(self, channel: str, names: Sequence[ExternalId], person_id: str, now: datetime) -> None:
        """Forget that these names are theirs, as far as they are."""
        for name in names:
            key = self._hash(channel, name)
            known = await self._names.get(key, now)
            if known and known.person == person_id:
                await self._names.drop(key, now)

    async def _note_names(
        self, person_id: str, person: Person, contact: Contact, now: datetime, sent_at: datetime
    ) -> set[ExternalId]:
        """Note that these names are theirs, and are used. Those of them that others have been met by since then."""
        lost = set()
        for place, name in enumerate(contact.ids):
            known = await self._names.get(self._hash(person.channel, name), now)
            is_theirs = known is not None and known.person == person_id
            if known and is_theirs and now - known.seen_at < _SEEN_AGAIN:
                continue
            if known and not is_theirs:
                if known.seen_at > sent_at:
                    lost.add(name)
                    continue
                await self._change(known.person, now, partial(_without, name))  # nothing is sent to them by it any more
            await self._put_name(person.channel, name, person_id, now)
            if place == 0 and self._kept:
                await self._change(person_id, now, lambda there: there)  # so that it lasts on
                await self._follow(person_id, person.own_session_id, now)
        return lost

    async def _put_name(self, channel: str, name: ExternalId, person_id: str, now: datetime) -> None:
        spans = [span for span in (None if name.kind in LASTING else _IDLE, self._kept) if span is not None]
        ends = now + min(spans) if spans else None
        key = self._hash(channel, name)
        await self._names.put(key, _Name(person_id, now), now, expires_at=ends)

    def _ends(self, now: datetime) -> datetime | None:
        """When somebody is forgotten who does not write any more."""
        return None if self._kept is None else now + self._kept

    async def _with_names(
        self, person_id: str, person: Person, contact: Contact, lost: Collection[ExternalId], now: datetime
    ) -> Person:
        """The person with these names, without those that are another's now. A number that is not told any more may be
        somebody else's, too, so nothing is sent to it."""
        kinds = {name.kind for name in contact.ids}
        lasting = (name for name in person.contact.ids if name.kind in LASTING and name.kind not in kinds)
        names = (*(name for name in contact.ids if name not in lost), *lasting)
        earlier = tuple(name for name in person.names if name not in names and name not in lost)
        if (names, earlier) == (person.contact.ids, person.earlier):
            return person
        there = Contact(names)
        changed = await self._change(person_id, now, lambda person: replace(person, contact=there, earlier=earlier))
        return changed or person

    # --- Links --------------------------------------------------------------------------------------------------------

    async def ask(
        self, person_id: str, question: Question | None, now: datetime, answered: Answered | None = None
    ) -> None:
        """Remember what they were asked; None: nothing any more."""
        await self._change(person_id, now, lambda person: replace(person, asked=question, answered=answered))

    async def link(
        self, person_id: str, user_session_id: str, link_id: str, device: str, now: datetime, answered: Answered
    ) -> None:
        """They go on with this session from now on."""

        def linked(person: Person) -> Person:
            there = replace(_unlinked(person), linked_at=now, device=device, link_id=link_id, answered=answered)
            return replace(there, user_session_id=user_session_id)

        await self._follow(person_id, user_session_id, now)
        await self._change(person_id, now, linked)

    async def unlink(self, person_id: str, now: datetime, answered: Answered | None = None) -> bool:
        """They go on with their own session from now on; whether they went on with another one."""
        person = await self._people.get(person_id, now)
        if person is None or person.linked_at is None:
            return False
        await self._change(person_id, now, lambda there: replace(_unlinked(there), answered=answered))
        return True

    async def linked(self, user_session_id: str, now: datetime) -> dict[str, Person]:
        """Who goes on with this session, which is not their own, by their ids."""
        return {
            person_id: person
            for person_id, person in (await self.of_session(user_session_id, now)).items()
            if person.linked_at and person.user_session_id == user_session_id
        }

    async def of_session(self, user_session_id: str, now: datetime) -> dict[str, Person]:
        """Who goes on with this session, their own or another's, by their ids."""
        followers = await self._followers.get(user_session_id, now)
        found = {}
        for person_id in followers.people if followers else ():
            person = await self._people.get(person_id, now)
            if person and user_session_id in (person.user_session_id, person.own_session_id):
                found[person_id] = person
        return found

    # --- The end ------------------------------------------------------------------------------------------------------

    async def give_up(self, channel: str, former: Sequence[ExternalId], now: datetime) -> None:
        """These names are nobody's any more: whoever comes with one of them is somebody new. A link of whose they were
        ends: nobody knows who has the name now."""
        for name in former:
            key = self._hash(channel, name)
            if known := await self._names.get(key, now):  # in this order: what is interrupted here can be done again
                await self._change(known.person, now, partial(_given_up, name))
            await self._names.drop(key, now)

    async def erase(self, user_session_id: str, now: datetime) -> None:
        """Forget those whose own session this is, and end the links of others."""
        for person_id, person in (await self.of_session(user_session_id, now)).items():
            if person.own_session_id != user_session_id:
                await self._change(person_id, now, _unlinked)
                continue
            await self._disown(person.channel, person.names, person_id, now)
            await self._people.drop(person_id, now)
        await self._followers.drop(user_session_id, now)

    # --- Records ------------------------------------------------------------------------------------------------------

    async def _change(self, person_id: str, now: datetime, change: Callable[[Person], Person]) -> Person | None:
        return await self._people.change(person_id, now, change, self._ends(now))

    async def _follow(self, person_id: str, user_session_id: str, now: datetime) -> None:
        def added(there: _Followers) -> _Followers:
            if person_id in there.people:
                return there
            if len(there.people) >= _MOST_PEOPLE:
                raise TooManyPeople
            return _Followers((*there.people, person_id))

        ends = self._ends(now)
        while not await self._followers.change(user_session_id, now, added, ends):
            if await self._followers.put(user_session_id, _Followers((person_id,)), now, expires_at=ends, expect=0):
                return


def _is_somebody_else(person: Person, contact: Contact, by: ExternalId) -> bool:
    """Whether a surer name than the one by which the person was found is another one than theirs."""
    known = dict(person.contact.ids)
    surer = contact.ids[: contact.ids.index(by)]
    return any(known.get(name.kind, name.value) != name.value for name in surer)


def _unlinked(person: Person) -> Person:
    return replace(person, user_session_id=person.own_session_id, linked_at=None, device="", link_id="", asked=None)


def _given_up(name: ExternalId, person: Person) -> Person:
    return _unlinked(_without(name, person))


def _without(name: ExternalId, person: Person) -> Person:
    names = tuple(other for other in person.contact.ids if other != name)
    return replace(person, contact=Contact(names), earlier=tuple(other for other in person.earlier if other != name))
