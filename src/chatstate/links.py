"""Links: how a person goes on with a session on another device (RFC 10027 says what may go wrong with that).

A link is redeemed once, by its code, which a person can type, or by its token, which stands in an address. The code has
eight letters of an alphabet without vowels and look-alikes (RFC 8628, section 6.1). By the first four the link is
found, and they are its id; the other four are secret, and so are the 256 bits of the token. Of both only salted hashes
are kept. Four letters can be tried out, so the fifth wrong try makes the link void.

What a link gives is settled when it is made: a token as its issuer could have had it then. Whatever makes such a token
void before the link is redeemed makes the link void.

All links of a session are one record, so that each change of them is atomic; another one says of which session an id
is.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from chatstate.errors import LinkNotFound, StoreBusy
from chatstate.model import LONGEST_TTL, Scope
from chatstate.records import Records
from chatstate.stores.base import Store

ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
"""Of codes: nobody takes one letter for another, and no words come out (RFC 8628, section 6.1)."""

LONGEST_LINK = timedelta(minutes=10)
"""How long a link can be redeemed, by default and at most."""

MOST_TRIES = 5
"""How many wrong tries make a link void."""

MOST_OPEN = 5
"""How many links of a session can be redeemed at once; a further one takes the place of the oldest."""

MOST_KEPT = 50
"""How many links of a session are remembered."""

LONGEST_KEPT = timedelta(days=30)
"""How long a link that was redeemed is remembered, so that it can be taken back, or else as long as its token can be
renewed."""

_HALF = 4  # letters
_TOKEN_BYTES = 32
_MOST_DRAWS = 100
_OF_NO_SESSION = "\x1f"  # controls are in no id of a session

_CODE = re.compile(f"[{ALPHABET}]{{{2 * _HALF}}}")
_TOKEN = re.compile(rf"([{ALPHABET}{ALPHABET.lower()}]{{{_HALF}}})\.([A-Za-z0-9_-]{{43}})")
_BETWEEN_LETTERS = re.compile(r"[\s\u2010-\u2015-]")

Status = Literal["open", "redeemed", "void", "expired"]

Purpose = Literal["device", "channel"]
"""What a link is for: another device, which gets a token; or a channel, on which a person goes on."""


class Grant(Struct, frozen=True):
    """What a link gives: the claims of a session token that its issuer could have had (see `tokens.Claims`).

    renewable_until  when its last renewal ends, in seconds since 1970
    links            the handles of those by which the issuer's own token was handed on
    """

    verbs: tuple[Scope, ...]
    auth_time: float
    azp: str
    renewable_until: float
    links: tuple[str, ...] = ()


class Link(Struct, frozen=True, kw_only=True):
    """What is kept of a link. Times are aware and in UTC.

    id           the first letters of its code
    handle       names the token that it gives, and that token's renewals; nobody is told
    session_id   of the session that it is for: one that was deleted and created again has another
    kept_until   when it is forgotten
    code_digest, token_digest  SHA-256 of the salt and the secret, in hexadecimal digits
    tries        how many were wrong
    voided_at    when it was taken back, or was tried too often, or others took its place
    device       who has redeemed it, as they say (User-Agent); or the name of a channel
    purpose      what it is for; it is of no use for anything else
    origin       the device that it was made on, in words for people
    number       what that device shows, should a channel ask for it
    redeemed_by  by what message on a channel it was redeemed: that one may do so again
    """

    id: str
    handle: str
    session_id: str
    created_at: datetime
    expires_at: datetime
    kept_until: datetime
    salt: str
    code_digest: str
    token_digest: str
    grant: Grant
    tries: int = 0
    voided_at: datetime | None = None
    redeemed_at: datetime | None = None
    device: str = ""
    purpose: Purpose = "device"
    origin: str = ""
    number: str = ""
    redeemed_by: str = ""

    def status(self, now: datetime) -> Status:
        if self.voided_at:
            return "void"
        if self.redeemed_at:
            return "redeemed"
        return "open" if now < self.expires_at else "expired"

    def is_free(self, now: datetime, redeemer: str) -> bool:
        """Whether this can redeem it, or has."""
        status = self.status(now)
        return status == "open" or (status == "redeemed" and bool(redeemer) and self.redeemed_by == redeemer)

    def accepts(self, shown: Shown) -> bool:
        """Whether this is its secret, compared in constant time."""
        digest = self.token_digest if shown.is_token else self.code_digest
        return hmac.compare_digest(_digest(self.salt, shown.secret).encode(), digest.encode())


class Shown(Struct, frozen=True):
    """A text that has the form of a code or of a token."""

    id: str
    secret: str
    is_token: bool


class Made(Struct, frozen=True):
    """A new link, and what redeems it, which nobody can find out again."""

    link: Link
    code: str
    token: str


class SessionLinks(Struct, frozen=True):
    """The links of a session, newest first."""

    links: tuple[Link, ...]


class Place(Struct, frozen=True):
    """Of which session a link is that can be redeemed."""

    user_session_id: str


def parse(text: str) -> Shown | None:
    """What a person has typed, or what stood in an address; None when it has neither form."""
    if found := _TOKEN.fullmatch(text.strip()):
        return Shown(found[1].upper(), found[2], True)
    letters = _BETWEEN_LETTERS.sub("", text)
    if not (letters.isascii() and _CODE.fullmatch(letters.upper())):
        return None
    return Shown(letters[:_HALF].upper(), letters[_HALF:].upper(), False)


def _digest(salt: str, secret: str) -> str:
    return sha256(f"{salt}{secret}".encode()).hexdigest()


def _letters() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(_HALF))


class Links:
    """The links of a store. `longest_kept`: for how long at most one that was redeemed is remembered."""

    def __init__(self, store: Store, longest_kept: timedelta = LONGEST_KEPT) -> None:
        self._longest_kept = longest_kept
        self._places = Records(store, "link_places", Place)
        self._sessions = Records(store, "links", SessionLinks)

    async def issue(
        self, user_session_id: str, session_id: str, grant: Grant, now: datetime, ttl: timedelta = LONGEST_LINK
    ) -> Made:
        """A new link to this session, for another device. Raises `StoreBusy` when no id is free."""
        return await self._add(
            user_session_id, await self._draw(user_session_id, session_id, grant, now, now + ttl), now
        )

    async def issue_for_channel(
        self, user_session_id: str, session_id: str, grant: Grant, origin: str, now: datetime
    ) -> Made:
        """A new link to this session, for a channel; no token is given there, but what voids one voids it. Raises
        `StoreBusy`."""
        drawn = await self._draw(user_session_id, session_id, grant, now, now + LONGEST_LINK)
        number = f"{secrets.randbelow(90) + 10}"
        link = replace(drawn.link, purpose="channel", origin=origin, number=number)
        return await self._add(user_session_id, Made(link, drawn.code, drawn.token), now)

    async def _add(self, user_session_id: str, made: Made, now: datetime) -> Made:

        def added(kept: SessionLinks) -> SessionLinks:
            return SessionLinks((made.link, *_without_room_for_one(kept.links, now)))

        while not await self._change(user_session_id, now, added):
            first = SessionLinks((made.link,))
            if await self._sessions.put(user_session_id, first, now, expires_at=_kept_until(first), expect=0):
                break
        return made

    async def _draw(
        self, user_session_id: str, session_id: str, grant: Grant, now: datetime, expires_at: datetime
    ) -> Made:
        taken = {link.id for link in await self.all(user_session_id, now)}
        for _ in range(_MOST_DRAWS):
            link_id = _letters()
            place = Place(user_session_id)
            if link_id not in taken and await self._places.put(link_id, place, now, expires_at=expires_at, expect=0):
                return _made(link_id, session_id, grant, now, expires_at)
        raise StoreBusy("Too many links are open at the moment. Nothing was written; try again.")

    async def all(self, user_session_id: str, now: datetime) -> tuple[Link, ...]:
        """The links of the session that are remembered, newest first."""
        kept = await self._sessions.get(user_session_id, now)
        return tuple(link for link in kept.links if now < link.kept_until) if kept else ()

    async def find(self, user_session_id: str, link_id: str, now: datetime) -> Link:
        """One link of this session. Raises `LinkNotFound`."""
        return _named(link_id, await self.all(user_session_id, now))

    async def match(
        self, text: str, now: datetime, purpose: Purpose = "device", redeemer: str = ""
    ) -> tuple[str, Link]:
        """The session and the open link that this code or token is for; a wrong one is counted.

        redeemer  what it is, on a channel: the link may also be one that the same has redeemed already

        Raises `LinkNotFound`, whatever is wrong, after as many questions to the store.
        """
        shown = parse(text) or Shown(_OF_NO_SESSION, "", False)
        place = await self._places.get(shown.id, now)
        user_session_id = place.user_session_id if place else _OF_NO_SESSION
        links = {link.id: link for link in await self.all(user_session_id, now)}
        link = links.get(shown.id)
        if link and link.purpose == purpose and link.is_free(now, redeemer):
            if link.accepts(shown):
                return user_session_id, link
            await self._count_try(user_session_id, link, now)
        else:
            await self._sessions.drop(_OF_NO_SESSION, now)
        raise LinkNotFound

    async def _count_try(self, user_session_id: str, link: Link, now: datetime) -> None:
        def tried(now_there: Link) -> Link:
            tries = now_there.tries + 1
            voided_at = now_there.voided_at or (now if tries >= MOST_TRIES else None)
            return now_there if now_there.redeemed_at else replace(now_there, tries=tries, voided_at=voided_at)

        await self._change_one(user_session_id, link, now, tried)

    async def redeem(self, user_session_id: str, link: Link, now: datetime, device: str, redeemer: str = "") -> None:
        """Use the link up, which one caller alone can. Raises `LinkNotFound` when it is not open any more."""

        def redeemed(now_there: Link) -> Link:
            if not now_there.is_free(now, redeemer):
                raise LinkNotFound
            renewable_until = now + timedelta(seconds=max(0.0, now_there.grant.renewable_until - now.timestamp()))
            kept_until = max(now_there.kept_until, min(renewable_until, now + self._longest_kept))
            return replace(now_there, redeemed_at=now, device=device, kept_until=kept_until, redeemed_by=redeemer)

        await self._change_one(user_session_id, link, now, redeemed)

    async def void(self, user_session_id: str, link: Link, now: datetime) -> None:
        """Make the link void, also one that was redeemed, and those that were made with what it gave.

        The tokens that they gave are another matter.
        """

        def voided(kept: SessionLinks) -> SessionLinks:
            return SessionLinks(
                tuple(
                    replace(other, voided_at=other.voided_at or now)
                    if link.handle in (other.handle, *other.grant.links)
                    else other
                    for other in kept.links
                )
            )

        await self._change(user_session_id, now, voided)

    async def erase(self, user_session_id: str, now: datetime) -> None:
        """Remove all links of the session. Tokens that they gave stay what they are."""
        kept = await self._sessions.get(user_session_id, now)
        if kept:
            await self._sessions.drop(user_session_id, now)
            for link in kept.links:
                if now < link.expires_at:  # the place is its own until then
                    await self._places.drop(link.id, now)

    async def _change_one(
        self, user_session_id: str, link: Link, now: datetime, change: Callable[[Link], Link]
    ) -> None:
        """Change this link. Raises `LinkNotFound` when it is gone, and what `change` raises."""

        def changed(kept: SessionLinks) -> SessionLinks:
            if not any(other.handle == link.handle for other in kept.links):
                raise LinkNotFound
            return SessionLinks(tuple(change(other) if other.handle == link.handle else other for other in kept.links))

        if not await self._change(user_session_id, now, changed):
            raise LinkNotFound

    async def _change(
        self, user_session_id: str, now: datetime, change: Callable[[SessionLinks], SessionLinks]
    ) -> SessionLinks | None:
        return await self._sessions.change(user_session_id, now, change, _kept_until)


def _made(link_id: str, session_id: str, grant: Grant, now: datetime, expires_at: datetime) -> Made:
    salt, letters, token = secrets.token_hex(16), _letters(), secrets.token_urlsafe(_TOKEN_BYTES)
    link = Link(
        id=link_id,
        handle=secrets.token_hex(12),
        session_id=session_id,
        created_at=now,
        expires_at=expires_at,
        kept_until=expires_at + LONGEST_TTL,
        salt=salt,
        code_digest=_digest(salt, letters),
        token_digest=_digest(salt, token),
        grant=grant,
    )
    return Made(link, f"{link_id}-{letters}", f"{link_id}.{token}")


def _named(link_id: str, links: tuple[Link, ...]) -> Link:
    for link in links:
        if link.id == link_id:
            return link
    raise LinkNotFound


def _kept_until(kept: SessionLinks) -> datetime:
    return max(link.kept_until for link in kept.links)


def _without_room_for_one(links: tuple[Link, ...], now: datetime) -> list[Link]:
    """Those that stay when one is added: none that is to be forgotten, and the oldest ones that are open become void.

    Over the bound those go first that gave nothing.
    """
    stay = [link for link in links if now < link.kept_until]
    count = 0
    for place, link in enumerate(stay):
        if link.status(now) == "open":
            count += 1
            stay[place] = link if count < MOST_OPEN else replace(link, voided_at=now)
    while len(stay) >= MOST_KEPT:
        idle = [link for link in stay if link.redeemed_at is None]
        stay.remove((idle or stay)[-1])
    return stay
