"""Which hosts and pages may call, before it is asked who calls.

A server on loopback is not safe by itself: any web page that a person opens can send requests to it, and by DNS
rebinding even read the answers; and a proxy on the same machine makes the whole internet look like this machine. So an
open server wants every request to name this machine in its Host header, no page but one of this machine to have sent it
(Origin, Sec-Fetch-Site), the connection to come from here, and no proxy to have forwarded it.

A keyed server is called by whoever shows a credential, which no browser adds by itself. There the origins only say
which pages may read the answers (CORS, https://fetch.spec.whatwg.org, section 3.3): those of the same origin, and those
of the list; without a list, those of this machine.
"""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct

from chatstate.access import Mode
from chatstate.errors import ForbiddenAddress, ForbiddenHost, ForbiddenOrigin, ForbiddenProxy
from chatstate.http.messages import Headers, Request, Response
from chatstate.http.proxies import is_forwarded, is_this_machine

_LOOPBACK = r"(?:localhost|[a-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_HOST_CHARACTERS = re.compile(r"[\w.~:\[\]%!$&'()*+,;=-]+", re.ASCII)  # RFC 3986, section 3.2.2
_PORT = re.compile(r":\d{1,5}$")
_ORIGIN = re.compile(rf"https?://{_LOOPBACK}", re.IGNORECASE)
_EXPOSED = (
    "etag, location, retry-after, link, accept-patch, preference-applied, idempotency-replayed, www-authenticate, "
    "content-disposition"
)
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]*", re.ASCII)


Refusal = ForbiddenHost | ForbiddenAddress | ForbiddenOrigin | ForbiddenProxy


class Doors(Struct, frozen=True):
    """What the settings allow beside this machine: pages, as their origins, and names of this server."""

    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    def refusal(self, request: Request, mode: Mode) -> Refusal | None:
        """Why the request is refused; None when it is not."""
        headers = request.headers
        hosts = headers.all("host")
        if len(hosts) != 1 or not self._is_host(hosts[0], mode):
            return ForbiddenHost()
        if mode == "open" and (refusal := _stranger(request)):
            return refusal
        origins = headers.all("origin")
        if origins:
            same = f"{request.scheme}://{hosts[0]}".lower() if mode == "keyed" else None
            may_call = all(origin.lower() == same or self.is_page(origin, mode) for origin in origins)
        else:  # a page on 127.0.0.1 that calls localhost is cross-site to a browser, and has an Origin
            site = headers.get("sec-fetch-site", "none").lower()
            may_call = mode == "keyed" or site in ("same-origin", "same-site", "none")
        return None if may_call else ForbiddenOrigin(None if mode == "open" else _NOT_LISTED)

    def _is_host(self, host: str, mode: Mode) -> bool:
        if not _HOST_CHARACTERS.fullmatch(host):
            return False
        if mode == "keyed" or (mode == "anonymous" and not self.hosts):
            return True
        return _is_host_here(host) or (mode == "anonymous" and _PORT.sub("", host.lower()) in self.hosts)

    def is_page(self, origin: str, mode: Mode) -> bool:
        """Whether pages of this origin may call."""
        if mode == "open" or not self.origins:
            return _is_page_here(origin)
        return origin.lower() in self.origins


def _stranger(request: Request) -> Refusal | None:
    """Why an open server does not take the request for one of this machine."""
    if not is_this_machine(request.client):
        return ForbiddenAddress()
    # Proxies that are set up in haste add nothing, and speak HTTP/1.0: nginx by default, for years.
    return ForbiddenProxy() if request.version == "1.0" or is_forwarded(request.headers) else None


@lru_cache(64)
def _is_host_here(host: str) -> bool:
    return _HOST.fullmatch(host) is not None


@lru_cache(64)
def _is_page_here(origin: str) -> bool:
    return _ORIGIN.fullmatch(origin) is not None


def preflight(request: Request, methods: str) -> Response | None:
    """The answer to a browser that asks what a page may send; None when the request is no such question.

    methods  all that the application has, as a list in one header
    """
    if request.method != "OPTIONS" or not request.headers.get("access-control-request-method"):
        return None
    headers = {"access-control-allow-methods": methods, "access-control-max-age": "600"}
    asked = request.headers.get("access-control-request-headers")
    if asked and _FIELD_NAMES.fullmatch(asked):
        headers["access-control-allow-headers"] = asked  # `*` would not do for requests with credentials
    return Response(204, headers=headers)


def allow_origin(response: Response, headers: Headers) -> None:
    """Let the page that asked read the answer; `Doors.refusal` has found that it may."""
    origin = headers.get("origin")
    if origin:
        response.headers |= {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",  # there are no cookies; old clients ask for it all the same
            "access-control-expose-headers": _EXPOSED,
        }


_NOT_LISTED = (
    "This server does not answer pages of this origin. Add it to those that it answers: --allowed-origins, or "
    "CHATSTATE_ALLOWED_ORIGINS."
)
