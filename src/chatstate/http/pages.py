"""Files that browsers load: `/client.js`, the TypeScript client in one file.

It is built from clients/typescript by `make client`, and committed; a test proves that a fresh build is the same.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import Any

from chatstate.http.messages import Request, Response

REVALIDATED = "no-cache"
"""Caches keep the file, and ask each time whether it is still the same (RFC 9111, section 5.2.2.4)."""

_CLIENT = (files(__package__) / "client.js").read_bytes()


def tag_of(content: bytes) -> str:
    """A strong entity tag that is the same wherever the content is the same."""
    return f'"{sha256(content).hexdigest()[:32]}"'


def static(request: Request, content: bytes, media_type: str, tag: str) -> Response:
    """A file, or 304 without a body if the client has it already (RFC 9110, section 13.1.2)."""
    known = ",".join(request.headers.all("if-none-match"))
    if tag in known or known.strip() == "*":
        return Response(304, headers={"etag": tag}, cache=REVALIDATED)
    return Response(200, content, media_type, {"etag": tag}, cache=REVALIDATED)


_CLIENT_TAG = tag_of(_CLIENT)


async def client(_api: Any, request: Request) -> Response:
    """The client for browsers, an ECMAScript module: `import {openSession} from "http://localhost:3000/client.js"`."""
    return static(request, _CLIENT, "text/javascript; charset=utf-8", _CLIENT_TAG)
