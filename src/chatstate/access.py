"""Who is calling, and what they may do.

A server is *open* as long as no API key exists: then everybody may do everything, and only this machine is listened to.
It is *keyed* from the first key on, also when that is revoked later: nothing falls back to open by itself. With
`allow_anonymous` callers without a credential may use the routes of the service that chatstate replaces.

Keys, signing keys and revocations are read every two seconds, so that what another process has changed is noticed
without asking the store for each request. If they cannot be read for longer, nobody is let in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Literal

from msgspec import Struct

from chatstate import keys
from chatstate.errors import ChatStateError, StoreError, StoreUnavailable, Unauthorized
from chatstate.keys import ApiKey, Keys
from chatstate.model import EVERYTHING, SCOPES, Scope, Within, utc_now
from chatstate.stores.base import Store
from chatstate.tokens import Claims, Tokens, is_token

INTERVAL_SECONDS = 2.0
"""How often keys and revocations are read."""

STALE_SECONDS = 30.0
"""For how long what was read is relied on when it cannot be read again."""

_EAGER_SECONDS = 1.0
"""How soon they may be read again for another key that is not known yet."""

_MOST_ACCEPTED = 10_000
"""How many credentials are known to be genuine before all of them are looked at again."""

_USE_RECORDED = timedelta(minutes=1)
"""How exactly the last use of a key is remembered."""

Mode = Literal["open", "keyed", "anonymous"]

_log = logging.getLogger(__name__)


class Caller(Struct, frozen=True):
    """Who is calling.

    name    for the audit log and for idempotency keys: `key:<id>`, `token`, `anonymous` or `open`
    scopes  what they may do
    within  with which sessions
    key_id  the API key that they show, or that has minted their session token
    claims  what their session token says, if they show one
    """

    name: str
    scopes: frozenset[Scope]
    within: Within = EVERYTHING
    key_id: str = ""
    claims: Claims | None = None

    def own(self, user_session_id: str) -> str:
        """The id, if it is of a session of theirs; else an id that no session has, so that all goes on as if it were of
        none: with the same answer, after the same work."""
        return user_session_id if self.within.covers(user_session_id) else _OF_NO_SESSION + user_session_id


_OF_NO_SESSION = "\x1f" + token_hex(16)  # controls are in no id, and nobody else can know this one

OPEN = Caller("open", frozenset(SCOPES))
ANONYMOUS = Caller("anonymous", frozenset({"read", "write", "delete"}))
NOBODY = Caller("nobody", frozenset())


class Access:
    """Decides whom a credential belongs to."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime] = utc_now,
        allow_anonymous: bool = False,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.keys = Keys(store)
        self.tokens = Tokens(store)
        self._clock = clock
        self._allow_anonymous = allow_anonymous
        self._pause = pause
        self._known: dict[str, tuple[ApiKey, Caller]] = {}
        self._accepted: dict[str, Caller] = {}
        self._read_at: float | None = None
        self._looked_at = float("-inf")
        self._reading = asyncio.Lock()
        self._used: dict[str, datetime] = {}
        self._recorded: dict[str, datetime] = {}

    @property
    def mode(self) -> Mode:
        if self._allow_anonymous:
            return "anonymous"
        return "keyed" if self._known else "open"

    @property
    def lets_nobody_in(self) -> bool:
        """Whether there are keys, of which none is valid any more."""
        now = self._clock()
        return self.mode == "keyed" and not any(key.is_live(now) for key, _ in self._known.values())

    # --- What is known ------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read keys, signing keys and revocations. Raises errors of the store."""
        async with self._reading:  # one after the other: what was read earlier must not take the place of newer things
            await self._read()

    async def _read(self) -> None:
        now = self._clock()
        was_open = not self._known
        found = await self.keys.all(now)
        if await self.tokens.refresh(now) or found != {key_id: key for key_id, (key, _) in self._known.items()}:
            self._accepted.clear()
        # Keys are revoked, never removed; whoever empties the table by hand does not open a server that runs.
        self._known |= {key_id: (key, _caller_with(key)) for key_id, key in found.items()}
        for key_id in self._known.keys() - found.keys():
            self._known[key_id] = (_void(self._known[key_id][0], now), NOBODY)
        if was_open and found and self._read_at is not None:
            _log.warning("there is an API key now: from here on each request wants a credential")
        self._read_at = asyncio.get_running_loop().time()

    def _age(self) -> float:
        """How many seconds ago all was read."""
        return float("inf") if self._read_at is None else asyncio.get_running_loop().time() - self._read_at

    async def run(self) -> None:
        """Read again and again, and remember which keys are used, until cancelled."""
        while True:
            await self._pause(INTERVAL_SECONDS)
            try:
                await self.refresh()
                await self.record_uses()
            except ChatStateError as error:
                _log.warning("API keys cannot be read, which will be tried again: %s", error.message)
            except Exception:
                _log.exception("API keys cannot be read, which will be tried again")

    async def record_uses(self) -> None:
        """Remember in the store when each key was last used."""
        for key_id, used_at in list(self._used.items()):
            recorded = self._recorded.get(key_id)
            if recorded is None or used_at - recorded >= _USE_RECORDED:
                await self.keys.record_use(key_id, used_at)
                self._recorded[key_id] = used_at

    async def holds(self, claims: Claims) -> bool:
        """Whether a token that says this would be let in, by what the store knows now. Raises errors of the store."""
        await self.refresh()
        try:
            self._check(_caller_with_claims(claims))
        except Unauthorized:
            return False
        return True

    # --- Who it is ----------------------------------------------------------------------------------------------------

    async def caller(self, credential: str) -> Caller:
        """Whom this credential belongs to; empty: nobody has shown one.

        Raises `Unauthorized`, and `StoreUnavailable` when what must be known could not be read for too long.
        """
        if self._age() > STALE_SECONDS:
            await self._read_now()
        if caller := self._accepted.get(credential):
            return self._check(caller)
        if keys.is_key(credential):
            if self.mode == "open":
                await self._look_again()  # who shows a key has made one, perhaps just now
            if self.mode != "open":
                return await self._caller_with_key(credential)
        if credential and is_token(credential):
            return await self._caller_with_token(credential)
        if self.mode == "open":
            return OPEN  # what clients of other services send along does not matter
        if self.mode == "anonymous":
            return ANONYMOUS
        raise Unauthorized(_NO_CREDENTIAL if credential else None)

    def _check(self, caller: Caller) -> Caller:
        """The caller, who has shown a credential that is genuine, if it is still valid. Raises `Unauthorized`."""
        now = self._clock()
        if self.mode != "open" and not self._is_live(caller.key_id, now):  # a server without keys mints for everybody
            raise Unauthorized(_VOID if caller.claims is None else _VOID_MINTER)
        if caller.claims is not None:
            self.tokens.check(caller.claims, now)
            if self.mode != "open" and not self._known[caller.key_id][0].vouches_for(caller.claims.auth_time):
                raise Unauthorized(_VOID_MINTER)
        else:
            self._used[caller.key_id] = now
        return caller

    def _accept(self, credential: str, caller: Caller) -> Caller:
        """The caller, if the credential is still valid; from now on by a look into a table."""
        self._check(caller)
        if len(self._accepted) >= _MOST_ACCEPTED:
            self._accepted.clear()
        self._accepted[credential] = caller
        return caller

    async def _read_now(self) -> None:
        try:
            async with self._reading:
                if self._age() > STALE_SECONDS:  # whoever has waited finds that it has been done
                    await self._read()
        except StoreError as error:
            raise StoreUnavailable("API keys cannot be read at the moment. Nothing was written; try again.") from error

    async def _caller_with_key(self, text: str) -> Caller:
        parsed = keys.parse(text)
        if parsed is None:
            raise Unauthorized("The API key is mistyped: its checksum is wrong. Copy it again, as a whole.")
        if parsed.id not in self._known:
            await self._look_again()
        key, caller = self._known.get(parsed.id, (_NO_KEY, NOBODY))
        if not key.accepts(parsed.secret, self._clock()):
            raise Unauthorized(_VOID)
        # A secret that has been rotated is looked at each time: its grace ends.
        return self._accept(text, caller) if key.is_current(parsed.secret) else self._check(caller)

    async def _caller_with_token(self, text: str) -> Caller:
        if not self.tokens.knows_signer(text):
            await self._look_again()
        return self._accept(text, _caller_with_claims(self.tokens.verify(text)))

    def _is_live(self, key_id: str, now: datetime) -> bool:
        return key_id in self._known and self._known[key_id][0].is_live(now)

    async def _look_again(self) -> None:
        """What is not known may be new. A store that does not answer changes nothing."""
        time = asyncio.get_running_loop().time
        try:
            async with self._reading:  # whoever has waited finds that it has been done
                if time() - self._looked_at > _EAGER_SECONDS:
                    self._looked_at = time()
                    await self._read()
        except StoreError as error:
            _log.warning("API keys cannot be read: %s", error.message)


def _caller_with(key: ApiKey) -> Caller:
    return Caller(f"key:{key.id}", frozenset(key.scopes), key.within, key.id)


def _caller_with_claims(claims: Claims) -> Caller:
    return Caller("token", frozenset(claims.verbs), Within(only=claims.sub), claims.azp, claims)


def _void(key: ApiKey, now: datetime) -> ApiKey:
    return ApiKey(id=key.id, name=key.name, scopes=(), digest="", created_at=key.created_at, revoked_at=now)


_NO_KEY = ApiKey(id="", name="", scopes=(), digest="0" * 64, created_at=datetime.min)
"""Compared with where there is no key, so that both take as long."""

_VOID = "The API key is not valid: it is unknown, revoked, or has expired."
_VOID_MINTER = "The API key that minted this session token is not valid any more."
_NO_CREDENTIAL = "The credential is not valid: neither an API key nor a session token of this server."
