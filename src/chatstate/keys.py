"""API keys: what programs show to be let in, and what is kept of them.

A key reads `cs_<id>_<secret><checksum>`. The id (8 letters and digits) names its record; the secret has 256 random
bits; by the checksum (CRC-32, six digits of base 62) a mistyped key is told from a wrong one, and secret scanners find
keys with next to no false alarms: `cs_[a-z2-7]{8}_[0-9A-Za-z]{49}`. Kept is the SHA-256 of the secret: a slow hash is
for passwords, which can be guessed (OWASP ASVS 5.0, 11.4.2).
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from hashlib import sha256
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from chatstate.errors import KeyNotFound
from chatstate.model import SCOPES, Scope, Within
from chatstate.records import Records
from chatstate.stores.base import Store

FIRST_KEY = "firstkey"
"""The id of the key that a server makes for itself at its first start, if it is told to; only one server can."""

GRACE = timedelta(days=1)
"""How long a secret goes on being accepted after it was rotated."""

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43  # of 62 digits: 256 bits
_CHECKSUM_LENGTH = 6
_FORM = re.compile(f"cs_([a-z2-7]{{8}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})")
_ANY_KEY = re.compile("cs_[a-z2-7]{8}_")


class Former(Struct, frozen=True):
    """What is kept of a secret that was rotated: its SHA-256, and until when it is accepted all the same."""

    digest: str
    until: datetime


class ApiKey(Struct, frozen=True, kw_only=True):
    """What is kept of a key. Times are aware and in UTC.

    id_prefix   the key sees only sessions whose ids begin with it
    digest      SHA-256 of the secret, in hexadecimal digits
    formers     the secrets before, as long as they are accepted
    revoked_at  from when on it is void, for ever
    rotated_at  when it was last rotated without a grace, as it had leaked: tokens that it minted until then are void
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    digest: str
    created_at: datetime
    id_prefix: str = ""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    formers: tuple[Former, ...] = ()
    rotated_at: datetime | None = None

    @property
    def within(self) -> Within:
        return Within(self.id_prefix)

    def is_live(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def vouches_for(self, minted_at: float) -> bool:
        """Whether a session token that it minted then (in seconds since 1970) is still good on its account."""
        return self.rotated_at is None or minted_at > self.rotated_at.timestamp()

    def accepts(self, secret: str, now: datetime) -> bool:
        """Whether this is the key's secret, compared in constant time, or one before within its grace."""
        digest = _digest(secret).encode()
        live = [former for former in self.formers if now < former.until]
        return self.is_current(secret) or any(hmac.compare_digest(digest, former.digest.encode()) for former in live)

    def is_current(self, secret: str) -> bool:
        """The same without those before."""
        return hmac.compare_digest(_digest(secret).encode(), self.digest.encode())


class Parsed(Struct, frozen=True):
    """A text that has the form of a key."""

    id: str
    secret: str


def is_key(text: str) -> bool:
    """Whether the text is meant to be a key, perhaps a mistyped one."""
    return _ANY_KEY.match(text) is not None


def parse(text: str) -> Parsed | None:
    """The parts of a key; None when its form or its checksum is wrong."""
    match = _FORM.fullmatch(text)
    if not match or _checksum(text[:-_CHECKSUM_LENGTH]) != match[3]:
        return None
    return Parsed(match[1], match[2])


def _checksum(text: str) -> str:
    number, digits = crc32(text.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _written(key_id: str, secret: str) -> str:
    """The key as it is shown, once."""
    text = f"cs_{key_id}_{secret}"
    return text + _checksum(text)


class KeyUse(Struct, frozen=True):
    """When a key was last used, give or take a minute."""

    last_used_at: datetime


class Keys:
    """The API keys of a store."""

    def __init__(self, store: Store) -> None:
        self._keys = Records(store, "api_keys", ApiKey)
        self._uses = Records(store, "api_key_uses", KeyUse)  # they change all the time, the keys hardly ever

    async def create(
        self,
        name: str,
        now: datetime,
        scopes: Collection[Scope] = SCOPES,
        id_prefix: str = "",
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its text, which nobody can find out again."""
        while not (made := await self._create(_random(_BASE32, 8), name, now, scopes, id_prefix, expires_at)):
            pass  # the id was taken
        return made

    async def create_first(self, now: datetime) -> str | None:
        """The text of the first key of all; None when there are keys already, or another server was faster."""
        if await self.all(now):
            return None
        made = await self._create(FIRST_KEY, "first", now, SCOPES)
        return made[1] if made else None

    async def _create(
        self,
        key_id: str,
        name: str,
        now: datetime,
        scopes: Collection[Scope],
        id_prefix: str = "",
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str] | None:
        secret = _random(_BASE62, _SECRET_LENGTH)
        key = ApiKey(
            id=key_id,
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            digest=_digest(secret),
            created_at=now,
            id_prefix=id_prefix,
            expires_at=expires_at,
        )
        return (key, _written(key_id, secret)) if await self._keys.put(key_id, key, now, expect=0) else None

    async def all(self, now: datetime) -> dict[str, ApiKey]:
        """All keys by their ids, also those that are void."""
        return await self._keys.all(now)

    async def last_uses(self, now: datetime) -> dict[str, datetime]:
        """When each key was last used, by their ids; those that never were are not there."""
        return {key_id: use.last_used_at for key_id, use in (await self._uses.all(now)).items()}

    async def record_use(self, key_id: str, used_at: datetime) -> None:
        """Remember when the key was used."""
        await self._uses.put(key_id, KeyUse(used_at), used_at)

    async def revoke(self, key_id: str, now: datetime) -> ApiKey:
        """Make the key void, for ever. Raises `KeyNotFound`."""
        return await self._change(key_id, now, lambda key: replace(key, revoked_at=key.revoked_at or now))

    async def rotate(self, key_id: str, now: datetime, grace: timedelta = GRACE) -> str:
        """The text of the key with a new secret; the one before is accepted for so long. Raises `KeyNotFound`.

        Those that were rotated earlier go on until their own time is over. Without a grace all of them are void, and so
        are the session tokens that were minted with them.
        """
        secret = _random(_BASE62, _SECRET_LENGTH)

        def rotated(key: ApiKey) -> ApiKey:
            if not key.is_live(now):
                raise KeyNotFound(f"The key {key_id} is revoked or has expired. Make a new one: chatstate keys create")
            if not grace:
                return replace(key, digest=_digest(secret), formers=(), rotated_at=now)
            formers = (*(former for former in key.formers if now < former.until), Former(key.digest, now + grace))
            return replace(key, digest=_digest(secret), formers=formers)

        await self._change(key_id, now, rotated)
        return _written(key_id, secret)

    async def _change(self, key_id: str, now: datetime, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
        key = await self._keys.change(key_id, now, change)
        if key is None:
            raise KeyNotFound(f"There is no key {key_id}. Those that there are: chatstate keys list")
        return key
