"""Session tokens: what a browser shows to work with one session, and with no other.

A token is a JWT (RFC 7519, with the advice of RFC 8725): signed with HMAC-SHA-256 and nothing else, its type and its
audience are fixed, and it names the key that signed it. Two keys or more may be live: the newest one signs, the others
verify what they have signed. The keys are records of the store, so all servers on one database have the same.

What a token says is checked without asking the store; revocations are known from reading them all now and then.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from msgspec import Struct, ValidationError, convert
from msgspec.structs import asdict

from chatstate.errors import TokenExpired, Unauthorized
from chatstate.model import EARLIEST, LONGEST_TTL, Scope
from chatstate.records import Records
from chatstate.stores.base import Store

ALGORITHM = "HS256"
TYPE = "chatstate+jwt"
AUDIENCE = "chatstate:session"

_OF_LINK = "\x1f"
"""What the keys of revocations begin with that are about a link: no id of a session has controls."""

_OVERLAP = timedelta(minutes=5)
"""How far the clocks of servers may be apart, and how long a revocation may take to be committed."""

_MANY_REVOKED = 10_000
"""From how many on revocations are looked through for those that have become pointless."""


class SigningKey(Struct, frozen=True):
    """What is kept of a key: 32 random bytes in base64, and since when it signs."""

    secret: str
    created_at: datetime


class Revocation(Struct, frozen=True):
    """The tokens of a session that were minted then or earlier are void."""

    revoked_at: datetime


class Claims(Struct, frozen=True):
    """What a token says (RFC 7519, section 4.1). Times are in seconds since 1970.

    sub        the user_session_id
    verbs      what may be done with that session
    iat        when it was minted
    exp        from when on it is void
    auth_time  when the first one in a row of renewals was minted, with a fraction. Revocations count from there: no
               renewal escapes one, on a server that has not read of it yet
    azp        the API key that minted the first one; empty on a server without keys
    links      the handles of the links by which the first one came to another device; left out when there is none
    """

    sub: str
    verbs: tuple[Scope, ...]
    iat: float
    exp: int
    auth_time: float
    azp: str = ""
    links: tuple[str, ...] = ()


class Tokens:
    """The session tokens of a store. `refresh` reads what `verify` needs to know."""

    def __init__(self, store: Store) -> None:
        self._keys = Records(store, "signing_keys", SigningKey)
        self._revocations = Records(store, "revocations", Revocation)
        self._ring: dict[str, SigningKey] = {}
        self._revoked: dict[str, float] = {}
        self._read_until: datetime | None = None

    async def refresh(self, now: datetime) -> bool:
        """Read the signing keys, and the revocations that are new; whether there are other signing keys than before.

        Raises errors of the store.
        """
        ring = await self._keys.all(now)
        changed, self._ring = ring != self._ring, ring
        since = None if self._read_until is None else max(self._read_until, EARLIEST + _OVERLAP) - _OVERLAP
        for user_session_id, revocation in (await self._revocations.all(now, since)).items():
            self._revoke_here(user_session_id, revocation.revoked_at)
        self._read_until = now
        self._forget_old(now)
        return changed

    def _forget_old(self, now: datetime) -> None:
        if len(self._revoked) > _MANY_REVOKED:  # some may be older than any token that is valid
            oldest = now.timestamp() - (LONGEST_TTL + _OVERLAP).total_seconds()
            self._revoked = {name: time for name, time in self._revoked.items() if time >= oldest}

    def _revoke_here(self, user_session_id: str, revoked_at: datetime) -> None:
        earlier = self._revoked.get(user_session_id, 0.0)
        self._revoked[user_session_id] = max(earlier, revoked_at.timestamp())

    async def mint(self, claims: Claims, now: datetime) -> str:
        """The token that says this."""
        if not self._ring:
            await self.refresh(now)
        if not self._ring:
            await self.rotate(now)
        key_id = _newest(self._ring)
        payload = {**asdict(claims), "aud": AUDIENCE}
        if not claims.links:
            del payload["links"]
        secret = b64decode(self._ring[key_id].secret)
        return jwt.encode(payload, secret, ALGORITHM, headers={"kid": key_id, "typ": TYPE})

    async def rotate(self, now: datetime, grace: timedelta = LONGEST_TTL) -> str:
        """Make a new key, which signs from now on, and give its id; the one before goes on verifying for so long."""
        ring = await self._keys.all(now)
        key_id = secrets.token_hex(4)
        await self._keys.put(key_id, SigningKey(b64encode(secrets.token_bytes(32)).decode(), now), now, expect=0)
        if not grace:
            for former in ring:
                await self._keys.drop(former, now)
        elif ring:  # those before the newest one have their ends already; and it may have been dropped meanwhile
            await self._keys.change(_newest(ring), now, lambda key: key, now + grace)
        await self.refresh(now)
        return key_id

    def knows_signer(self, token: str) -> bool:
        """Whether the key that the token names is known here."""
        return _header(token).get("kid") in self._ring

    def check(self, claims: Claims, now: datetime) -> None:
        """Whether what a genuine token says holds now. Raises `Unauthorized`, and `TokenExpired`."""
        if claims.exp <= now.timestamp():
            raise TokenExpired
        if claims.auth_time <= self._revoked.get(claims.sub, -1.0):
            raise Unauthorized(_REVOKED)
        if claims.links and any(_OF_LINK + handle in self._revoked for handle in claims.links):
            raise Unauthorized(_REVOKED)

    def verify(self, token: str) -> Claims:
        """What a genuine token says, whenever that was. Raises `Unauthorized`."""
        try:
            header = _header(token)
            key = self._ring.get(header.get("kid", ""))
            if key is None or header.get("typ") != TYPE or "crit" in header:
                raise Unauthorized(_NOT_OURS)
            payload = jwt.decode(token, b64decode(key.secret), [ALGORITHM], audience=AUDIENCE, options=_OPTIONS)
            return convert(payload, Claims)
        except (jwt.PyJWTError, ValidationError) as error:
            raise Unauthorized(_NOT_OURS) from error

    async def revoke(self, user_session_id: str, now: datetime) -> None:
        """Make all tokens of the session void that were minted until now. Other servers know it within seconds."""
        revocation = Revocation(now)
        await self._revocations.put(user_session_id, revocation, now, expires_at=now + LONGEST_TTL + _OVERLAP)
        self._revoke_here(user_session_id, now)

    async def revoke_link(self, handle: str, now: datetime) -> None:
        """Make void what this link gave, and its renewals, as `revoke` does, and no other tokens of the session."""
        await self.revoke(_OF_LINK + handle, now)

    async def forget(self, user_session_id: str, now: datetime) -> None:
        """Remove what is remembered of the session's revocation. Servers that have read it go on knowing of it."""
        await self._revocations.drop(user_session_id, now)

    async def revoked_at(self, user_session_id: str, now: datetime) -> datetime | None:
        """When the tokens of this session were last revoked, as long as that matters."""
        found = await self._revocations.get(user_session_id, now)
        return found.revoked_at if found else None


_OPTIONS: Any = {"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "aud", "sub"]}
"""Times are compared by our own clock."""

_REVOKED = "The session token has been revoked."
_NOT_OURS = "The credential is not valid: no session token of this server, and no API key."


def is_token(text: str) -> bool:
    """Whether the text is meant to be one of our tokens, genuine or not."""
    return _header(text).get("typ") == TYPE


def _header(token: str) -> dict[str, Any]:
    """What stands in the token's header, genuine or not; nothing if it has none."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, RecursionError):
        return {}


def _newest(ring: Mapping[str, SigningKey]) -> str:
    """The id of the key that signs; empty when there is none."""
    return max(ring, key=lambda key_id: (ring[key_id].created_at, key_id), default="")


def new_claims(user_session_id: str, verbs: tuple[Scope, ...], now: datetime, ttl: timedelta, minted_by: str) -> Claims:
    """The claims of a first token."""
    seconds = now.timestamp()
    return Claims(user_session_id, verbs, seconds, int(seconds) + int(ttl.total_seconds()), seconds, minted_by)


def expiry_of(claims: Claims) -> datetime:
    return datetime.fromtimestamp(claims.exp, UTC)
