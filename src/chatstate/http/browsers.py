"""Who may call: programs on this machine, and pages that are served from this machine.

A server on loopback is not safe by itself: any web page that a person opens can send requests to it, and by DNS
rebinding even read the answers. So every request must name this machine in its Host header, and where a browser says
which page sent it (Origin, Sec-Fetch-Site), that page must come from this machine too.

Pages of other loopback origins, such as a development server on port 5173, are told by CORS that they may call
(https://fetch.spec.whatwg.org, section 3.3).
"""

from __future__ import annotations

import re
from functools import lru_cache

from chatstate.errors import ForbiddenHost, ForbiddenOrigin
from chatstate.http.messages import Headers, Request, Response

_LOOPBACK = r"(?:localhost|[a-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = re.compile(rf"https?://{_LOOPBACK}", re.IGNORECASE)
_EXPOSED = "etag, location, retry-after, link, accept-patch, preference-applied, idempotency-replayed"
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]*", re.ASCII)


def refusal(headers: Headers) -> ForbiddenHost | ForbiddenOrigin | None:
    """Why a request with these headers is refused; None when it is not."""
    hosts = headers.all("host")
    if len(hosts) != 1 or not _is_host_here(hosts[0]):
        return ForbiddenHost()
    origins = headers.all("origin")
    if origins:
        return None if all(map(_is_page_here, origins)) else ForbiddenOrigin()
    # Looked at only without an Origin: a page on 127.0.0.1 that calls localhost is cross-site to a browser.
    if headers.get("sec-fetch-site", "none").lower() not in ("same-origin", "same-site", "none"):
        return ForbiddenOrigin()
    return None


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
    """Let the page that asked read the answer; `refusal` has found that it is from this machine."""
    origin = headers.get("origin")
    if origin:
        response.headers |= {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",  # there are no cookies; old clients ask for it all the same
            "access-control-expose-headers": _EXPOSED,
        }
