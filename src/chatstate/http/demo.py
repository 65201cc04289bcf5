"""The chat page at `/demo`: what a front-end can do with this server, to try and to copy from.

Its files, in the folder beside this module, are sent as they stand there; they need no build, and are walked
through in docs/howto/demo-page.md. The page is shown on an open server, and else only where it was asked for. Where the
server runs a bot, the page talks to that one; else it brings one of its own.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from chatstate.http.api import Api, Endpoint
from chatstate.http.gate import NONE
from chatstate.http.messages import Request, Response
from chatstate.http.pages import static, tag_of
from chatstate.http.problems import nothing_here

_TYPES = {"js": "text/javascript", "css": "text/css"}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing that stands in a message can run or load anything; `data:` is the QR code."""


class _File(NamedTuple):
    content: bytes
    media_type: str
    tag: str


def _read() -> dict[str, _File]:
    found = {}
    for file in (files(__package__) / "demo").iterdir():
        name, content = file.name, file.read_bytes()
        if media_type := _TYPES.get(name.rpartition(".")[2]):
            found[name] = _File(content, f"{media_type}; charset=utf-8", tag_of(content))
    return found


_PAGE = (files(__package__) / "demo" / "page.html").read_text("utf-8")
FILES = _read()


def _is_shown(api: Api) -> bool:
    return api.options.demo or api.gate.access.mode == "open"


async def root(api: Api, _request: Request) -> Response:
    """Leads to the chat page."""
    # Relative, because a proxy may have the server below a path of which it says nothing (RFC 9110, section 10.2.2).
    return Response(303, headers={"location": "demo"}) if _is_shown(api) else nothing_here()


async def demo(api: Api, _request: Request) -> Response:
    """The chat page: a small chat to try, whose source shows what a front-end does."""
    if not _is_shown(api):
        return nothing_here()
    page = _PAGE
    for name, value in _facts(api).items():
        page = page.replace(f"{{{name}}}", value)
    return Response(200, page.encode(), "text/html; charset=utf-8", policy=_POLICY)


def _facts(api: Api) -> dict[str, str]:
    """What the page has to know of the server; to find it out by itself would be errors in its console."""
    bot, account = api.options.bot, api.options.whatsapp
    return {
        "access": "open" if api.gate.access.mode == "open" else "keyed",
        "bot": "server" if bot else "page",
        "whatsapp": "yes" if bot and account.app_secret and account.number else "no",
    }


async def demo_file(api: Api, request: Request) -> Response:
    """A script of the chat page, or its style."""
    file = FILES.get(request.params["file"])
    if file is None or not _is_shown(api):
        return nothing_here()
    return static(request, *file)


_TAG = "Server"
_FILE_ANSWERS = {200: ", ".join(_TYPES.values()), 304: None}

ENDPOINTS = (
    Endpoint("GET", "/", NONE, root, _TAG, None, {303: None}, ("not_found",)),
    Endpoint("GET", "/demo", NONE, demo, _TAG, None, {200: "text/html"}, ("not_found",)),
    Endpoint("GET", "/demo/{file}", NONE, demo_file, _TAG, None, _FILE_ANSWERS, ("not_found",)),
)
