"""Going on with a chat of the web on a channel: a person sends the code of a link, and may end that again.

RFC 10027 (Security of Cross-Device Flows) says what may go wrong. Whoever gets a person to send a foreign code would
read what the person writes from then on. So the direction is from the web to the channel, never back: what a person had
on the channel before stays where it is, and no browser sees it. Whoever has a chat there already is asked first, and
answers with a number that the browser shows; everybody is told on which device the chat was begun, and how to end it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime

from msgspec import json

from chatstate.bot import Message, Reply, StateNotReadable, last_reply, read_state
from chatstate.errors import LinkNotFound, SessionNotFound, StateUnreadable
from chatstate.links import ALPHABET, LONGEST_LINK, Link, Links
from chatstate.model import Session
from chatstate.people import Answered, People, Person, Question, TooManyPeople
from chatstate.rates import RateLimit
from chatstate.sessions import Sessions

UNLINK = "UNLINK"
"""What a person sends to end a link."""

_CODE = re.compile(rf"(?:LINK\s+)?([{ALPHABET}]{{4}})[\s-]?([{ALPHABET}]{{4}})", re.IGNORECASE)
"""A code, and nothing else; also with the word that people may have been told to put before it."""

_TRIES_PER_HOUR = 5
"""How many codes of one person are looked at."""


class Linking:
    """Looks at what people of channels write, before a bot does. It is called for one message of a person at a time,
    and perhaps again for the same one."""

    def __init__(
        self,
        people: People,
        links: Links,
        sessions: Sessions,
        clock: Callable[[], datetime],
        holds: Callable[[str, Link], Awaitable[bool]],
    ) -> None:
        """`holds`: whether a link to this session is as good as the credential that it was made with."""
        self._people = people
        self._links = links
        self._sessions = sessions
        self._clock = clock
        self._holds = holds
        self._tries = RateLimit(_TRIES_PER_HOUR / 3600, _TRIES_PER_HOUR, lambda: clock().timestamp())

    async def answer(self, person_id: str, person: Person, message: Message) -> str | None:
        """What is said to a message that is about links; None when it is for the bot."""
        if person.answered and person.answered.message == message.id:
            return person.answered.text
        text = message.text.strip()
        if message.attachment:
            return None
        if text.casefold() == UNLINK.casefold():
            ended = await self._people.unlink(person_id, self._clock(), Answered(message.id, _ENDED))
            if person.asked and not ended:
                await self._people.ask(person_id, None, self._clock())
            return _ENDED if ended else _NOT_LINKED
        if code := _CODE.fullmatch(text):
            return await self._redeem(person_id, person, message.id, f"{code[1]}{code[2]}")
        return await self._confirm(person_id, person.asked, message.id, text) if person.asked else None

    async def _redeem(self, person_id: str, person: Person, message_id: str, code: str) -> str:
        if self._tries.wait(person_id):
            return _TOO_MANY
        try:
            session, link = await self._matched(f"{person_id}:{message_id}", person.channel, code)
        except (LinkNotFound, SessionNotFound):
            return _NOT_VALID
        self._tries.give_back(person_id)
        if session.user_session_id == person.user_session_id or not await self._is_there(person.user_session_id):
            return await self._link(person_id, session.user_session_id, link.id, link.origin, message_id)
        now, text = self._clock(), _ASKED.format(device=link.origin)
        place = (session.user_session_id, session.session_id)
        question = Question(*place, link.id, link.origin, link.number, now + LONGEST_LINK)
        await self._people.ask(person_id, question, now, Answered(message_id, text))
        return text

    async def _matched(self, redeemer: str, channel: str, code: str) -> tuple[Session, Link]:
        """The session that the code is for, and its link, which is used up. Raises `NotFound`s."""
        now = self._clock()
        user_session_id, link = await self._links.match(code, now, "channel", redeemer)
        session = await self._sessions.load(user_session_id)
        if session.session_id != link.session_id or not await self._holds(user_session_id, link):
            raise LinkNotFound
        await self._links.redeem(user_session_id, link, now, channel, redeemer)
        return session, link

    async def _confirm(self, person_id: str, question: Question, message_id: str, text: str) -> str | None:
        """What comes of their answer. There is one, and no second try: whoever guesses would need many."""
        now = self._clock()
        if now < question.until and text == question.number:
            if await self._stands(question):
                return await self._link(
                    person_id, question.user_session_id, question.link_id, question.device, message_id
                )
            await self._people.ask(person_id, None, now, Answered(message_id, _NOT_VALID))
            return _NOT_VALID
        if text.isdecimal() and len(text) <= len(question.number):  # it was meant for us
            await self._people.ask(person_id, None, now, Answered(message_id, _STAYS))
            return _STAYS
        await self._people.ask(person_id, None, now)
        return None

    async def _stands(self, question: Question) -> bool:
        """Whether what was asked can still be had: the same session, and a link that nobody has taken back."""
        try:
            session = await self._sessions.load(question.user_session_id)
            link = await self._links.find(question.user_session_id, question.link_id, self._clock())
        except (LinkNotFound, SessionNotFound):
            return False
        is_same = session.session_id == question.session_id and link.status(self._clock()) == "redeemed"
        return is_same and await self._holds(question.user_session_id, link)

    async def _is_there(self, user_session_id: str) -> bool:
        try:
            await self._sessions.load(user_session_id)
        except SessionNotFound:
            return False
        return True

    async def _link(self, person_id: str, user_session_id: str, link_id: str, device: str, message_id: str) -> str:
        text = _LINKED.format(device=device)
        answered = Answered(message_id, text)
        try:
            await self._people.link(person_id, user_session_id, link_id, device, self._clock(), answered)
        except TooManyPeople:
            return _FULL
        return text

    async def last_said(self, user_session_id: str) -> Reply | None:
        """What the bot has said last in a session, so that a person knows where the chat stands. Clients write that
        too, so it may be nothing that can be sent."""
        try:
            said = last_reply(read_state((await self._sessions.load(user_session_id)).chat_state))
            json.encode(said)
        except (SessionNotFound, StateNotReadable, StateUnreadable, UnicodeEncodeError):
            return None
        return said


_LINKED = (
    "You go on here with the chat that you began in {device}. What you write here is seen there, too. "
    f"If that was not you, send {UNLINK}, which ends it at any time."
)
_ASKED = (
    "You have a chat here already. {device} wants to go on here with another one: what you write from then on is seen "
    "there, too. If that is you, answer with the number that it shows. Anything else keeps everything as it is."
)
_STAYS = "That is not the number, so everything stays as it is. To try again, ask for a new code there."
_ENDED = "That has ended: nobody else sees what you write here now. The chat that you have here goes on."
_NOT_LINKED = "There is nothing to end: nobody else sees what you write here."
_NOT_VALID = "This code is not valid, or not any more: each works once, and for ten minutes. Ask for a new one there."
_FULL = "Very many people go on with this chat already, so nobody else can."
_TOO_MANY = "Too many codes. Please wait for an hour."
