"""Who may call: programs on this machine, and pages that are served from this machine.

A server on loopback is not safe by itself: any web page that a person opens can send requests to it, and by DNS
rebinding even read the answers. So every request must name this machine in its Host header, and where a browser says
which page sent it (Origin, Sec-Fetch-Site), that page must come from this machine too.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from chatstate.errors import ForbiddenHost, ForbiddenOrigin
from chatstate.http.problems import problem

_LOOPBACK = r"(?:localhost|[a-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = rf"https?://{_LOOPBACK}"


class LoopbackOnly:
    """Answers 403 to what does not come from this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if error:
            await problem(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def refusal(headers: Headers) -> ForbiddenHost | ForbiddenOrigin | None:
    """Why a request with these headers is refused; None when it is not."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return ForbiddenHost()
    origins = headers.getlist("origin")
    if any(not re.fullmatch(_ORIGIN, origin, re.IGNORECASE) for origin in origins):
        return ForbiddenOrigin()
    # A page on 127.0.0.1 that calls localhost is cross-site to a browser; its Origin has told that it is from here.
    if not origins and headers.get("sec-fetch-site", "none").lower() not in ("same-origin", "same-site", "none"):
        return ForbiddenOrigin()
    return None


def middleware(methods: set[str]) -> list[Middleware]:
    """First the refusal, then CORS for pages of other loopback origins, such as a development server on port 5173."""
    cors = Middleware(
        CORSMiddleware,
        allow_origin_regex=f"(?i:{_ORIGIN})",
        allow_methods=sorted(methods),
        allow_headers=["*"],
        allow_credentials=True,  # there are no cookies; old clients ask for it all the same
        expose_headers=["ETag", "Location", "Retry-After"],
    )
    return [Middleware(LoopbackOnly), cors]
