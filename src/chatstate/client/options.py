"""What both clients are made with, and what their arguments mean."""

from __future__ import annotations

from typing import Any, Final

import httpx

from chatstate import __version__
from chatstate.client import wire
from chatstate.client.calls import Base
from chatstate.client.values import dumps

BASE_URL = "http://localhost:3000"
TIMEOUT_SECONDS = 10.0
RETRIES = 4
HEADERS = {"User-Agent": f"chatstate-python/{__version__}", "Accept": "application/json, application/problem+json"}
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each watch holds a connection; a bound would let the hundredth wait for the others."""

NOT_GIVEN: Final[Any] = object()


def checked_url(base_url: str) -> str:
    """The address without the slash at its end. Raises ValueError for what cannot be one."""
    url = httpx.URL(base_url)
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"base_url is {base_url!r}; it looks like {BASE_URL}")
    return base_url.rstrip("/")


def text_to_save(state: Any, text: str | None, base: Base, overwrite: bool) -> str:
    """The text of what is to be saved. Raises TypeError or ValueError for arguments that contradict each other."""
    if (state is NOT_GIVEN) == (text is None):
        raise TypeError("save takes a state or a text")
    if overwrite and base is not None:
        raise ValueError("overwrite replaces whatever is there, so base has no meaning")
    return dumps(state) if text is None else text


def patch_to_send(merge: Any, operations: list[dict[str, Any]] | None) -> tuple[Any, str]:
    """The patch and its media type. Raises TypeError for none, and for both."""
    if (merge is NOT_GIVEN) == (operations is None):
        raise TypeError("patch takes merge or operations")
    return (merge, wire.MERGE_PATCH) if operations is None else (operations, wire.JSON_PATCH)
