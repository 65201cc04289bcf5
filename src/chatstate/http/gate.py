"""Who is let in, through which door: each route declares the credential that it wants, and the gate asks for it.

Before a request has a caller: which hosts and pages may call at all stands in `chatstate.http.browsers`. What is asked
here costs no question to the store, and comes before the body is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from time import monotonic
from typing import Literal

from msgspec import Struct

from chatstate.access import ANONYMOUS, NOBODY, Access, Caller
from chatstate.errors import Forbidden, StoreUnavailable, TokenExpired, TooManyRequests, Unauthorized
from chatstate.http.messages import Headers, Request
from chatstate.http.proxies import Network, block_of, client_address
from chatstate.model import Scope
from chatstate.rates import RateLimit


class Credential(Struct, frozen=True):
    """What a route wants to be shown.

    kind       `none`; `key`: an API key with the scope; `link_code` and `webhook_signature`: the handler looks at it
    scope      what the caller must be allowed to do; None: any valid credential will do
    token      whether a session token with this verb will do, too
    anonymous  whether `--allow-anonymous` opens the route: only those that the replaced service had
    """

    kind: Literal["none", "key", "link_code", "webhook_signature"]
    scope: Scope | None = None
    token: bool = False
    anonymous: bool = False


NONE = Credential("none")


def key(scope: Scope) -> Credential:
    """An API key with this scope."""
    return Credential("key", scope)


def key_or_token(scope: Scope | None, anonymous: bool = False) -> Credential:
    """An API key with this scope, or a session token with this verb."""
    return Credential("key", scope, token=True, anonymous=anonymous)


class Rates(Struct, frozen=True):
    """How many requests are answered. 0: as many as there are. A burst may be twice as large as a second's worth.

    per_key, per_session, per_address  per second: with one API key, to one session, from one address without a
                                       credential
    failures_per_minute                of requests with a wrong credential from one address, before they are answered
                                       with 429 alone
    watchers_per_session               who watch it at once
    """

    per_key: float = 500
    per_session: float = 20
    per_address: float = 20
    failures_per_minute: float = 10
    watchers_per_session: int = 100


class Gate:
    """Lets requests in, and counts them."""

    def __init__(
        self,
        access: Access,
        rates: Rates = Rates(),  # noqa: B008 (frozen)
        trusted_proxies: tuple[str, ...] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.access = access
        self.trusted: tuple[Network, ...] = tuple(ip_network(network) for network in trusted_proxies)
        self._per_key = RateLimit(rates.per_key, 2 * rates.per_key, clock)
        self._per_session = RateLimit(rates.per_session, 2 * rates.per_session, clock)
        self._per_address = RateLimit(rates.per_address, 2 * rates.per_address, clock)
        self._failures = RateLimit(rates.failures_per_minute / 60, rates.failures_per_minute, clock)

    async def admit(self, credential: Credential, request: Request) -> Caller:
        """The caller, who may do what the route is for.

        Raises `Unauthorized`, `Forbidden`, `TooManyRequests`, and `StoreUnavailable`.
        """
        if credential.kind != "key":
            return NOBODY
        try:
            caller = await self.access.caller(bearer(request.headers))
            if caller is ANONYMOUS and not credential.anonymous:
                raise Unauthorized
        except TokenExpired:
            raise  # it is genuine, so nobody guesses; and its holder must learn that it is to be renewed
        except Unauthorized as error:
            wait = self._failures.wait(block_of(self.address(request)))
            raise _too_many("without a valid credential", wait) if wait else error from None
        request.caller = caller  # whoever is refused from here on is known to the audit log
        self._count(caller, request)
        _check(caller, credential)
        return caller

    async def identify(self, request: Request) -> Caller:
        """The caller, on a route that wants no credential: nobody, if none is shown that is valid.

        Whoever guesses is counted here as well. Raises `TooManyRequests`.
        """
        credential = bearer(request.headers)
        try:
            return await self.access.caller(credential)
        except StoreUnavailable:
            return NOBODY
        except Unauthorized:
            wait = credential and self._failures.wait(block_of(self.address(request)))
            if wait:
                raise _too_many("without a valid credential", wait) from None
            return NOBODY

    @contextmanager
    def guess(self, request: Request) -> Iterator[None]:
        """Counts a try of a code as one with a wrong credential, and takes that back when it was right.

        It is counted before it is looked at: else many at once would find out more than the limit allows. An open
        server has no limits. Raises `TooManyRequests`.
        """
        if self.access.mode == "open":
            yield
            return
        block = block_of(self.address(request))
        if wait := self._failures.wait(block):
            raise _too_many("with a wrong code", wait)
        yield
        self._failures.give_back(block)

    def _count(self, caller: Caller, request: Request) -> None:
        if caller is ANONYMOUS:
            wait, whose = self._per_address.wait(block_of(self.address(request))), "from this address"
        elif caller.claims is not None:  # also on routes that name no session
            self._count_session(caller, caller.claims.sub)
            return
        elif caller.key_id:
            wait, whose = self._per_key.wait(caller.key_id), "with this API key"
        else:
            return
        if wait:
            raise _too_many(whose, wait)

    def count_session(self, caller: Caller, user_session_id: str) -> None:
        """Count a request to this session. Raises `TooManyRequests`. An open server has no limits.

        One with a session token was counted when it was let in.
        """
        if caller.claims is None:
            self._count_session(caller, user_session_id)

    def _count_session(self, caller: Caller, user_session_id: str) -> None:
        if self.access.mode != "open" and (wait := self._per_session.wait((caller.key_id, user_session_id))):
            raise _too_many("to this session", wait)

    def address(self, request: Request) -> str:
        """The address of the client."""
        return client_address(request.client, request.headers, self.trusted)


def bearer(headers: Headers) -> str:
    """The credential (RFC 6750, section 2.1); empty without one. Two of them are none."""
    lines = headers.all("authorization")
    if not lines:
        return ""
    scheme, _, credential = lines[0].partition(" ")
    if len(lines) > 1 or scheme.lower() != "bearer":
        return _OF_NOBODY
    return credential.strip()


_OF_NOBODY = "?"
"""A credential that is valid nowhere. What was sent must not stand in its place: it may be a key without a scheme."""


def _check(caller: Caller, credential: Credential) -> None:
    if caller.claims is not None and not credential.token:
        raise Forbidden("A session token is for its own session; this takes an API key.", credential.scope or "")
    if credential.scope and credential.scope not in caller.scopes:
        whose = "session token" if caller.claims else "API key"
        raise Forbidden(f"This {whose} lacks the scope `{credential.scope}`.", credential.scope)


def _too_many(whose: str, wait: float) -> TooManyRequests:
    seconds = math.ceil(wait)
    return TooManyRequests(f"Too many requests {whose}; try again in {seconds} s.", seconds)
