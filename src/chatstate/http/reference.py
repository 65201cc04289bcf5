"""The reference: `/openapi.json` for programs, `/docs` for people.

Both files are made from the route table and the shapes on the wire by `make reference`; a test fails when they are not
up to date. What they cannot know is where this server stands, so that is filled in here.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from msgspec import json

from chatstate.http.messages import Request, Response

DEFAULT_URL = "http://localhost:3000"
"""The address that the files name."""

_OPENAPI = (files(__package__) / "openapi.json").read_text("utf-8")
_PAGE = (files(__package__) / "docs.html").read_text("utf-8")
_STYLE = _PAGE.partition("<style>")[2].partition("</style>")[0]
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()

_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may show its own style, and loads nothing."""


async def openapi(_api: Any, request: Request) -> Response:
    """This API as an OpenAPI 3.1 document."""
    text = _OPENAPI.replace(f'"{DEFAULT_URL}"', json.encode(request.base_url).decode())
    return Response(body=text.encode())


async def docs(_api: Any, request: Request) -> Response:
    """This page."""
    text = _PAGE.replace(escape(DEFAULT_URL), escape(request.base_url))
    return Response(200, text.encode(), "text/html; charset=utf-8", policy=_POLICY)
