"""The audit log: who did what to which session, when, and what came of it, as lines of JSON.

It never holds a body, a token, a key or the id of a session: that stands there as a keyed hash, so that all lines about
a session can be found by who knows its id and the store's audit key (`chatstate audit-id`), and by nobody else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from chatstate.errors import WebhookRefused
from chatstate.hashes import session_hash
from chatstate.http.messages import Request, Response
from chatstate.model import format_time
from chatstate.rates import RateLimit

_REFUSAL_SECONDS = 60
"""How often at most the log says that a caller is answered with 429: a flood must not fill the disk."""


class PrivateFileHandler(WatchedFileHandler):
    """Appends to a file that is its owner's alone; opens it anew when it has been moved away (logrotate)."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class AuditLog:
    """Writes a line for each request to a route that wants a credential.

    write  takes a line
    key    that of the hashes
    """

    def __init__(self, write: Callable[[str], None], key: bytes, clock: Callable[[], datetime]) -> None:
        self._write = write
        self._key = key
        self._clock = clock
        self._refusals = RateLimit(1 / _REFUSAL_SECONDS, 1, lambda: clock().timestamp())

    def record(self, request: Request, response: Response, address: str) -> None:
        """One request from this address, and what came of it: of a stream, when it has ended.

        A stream without an end of its own also has a line when it begins: it may go on for days.
        """
        # Of what is refused without a limit to how often, one is written, too.
        is_refused = response.status == 429 or response.problem == WebhookRefused.code
        if is_refused and self._refusals.wait((request.caller.name, address)):
            return
        line = self._line(request, response, address)
        if response.stream is None or request.method == "HEAD":
            self._write(json.dumps(line))
        else:
            if response.gone:
                self._write(json.dumps(line | {"result": "begun"}))
            response.stream = self._followed(response.stream, request, line)

    async def _followed(
        self, pieces: AsyncGenerator[bytes, None], request: Request, line: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """The same pieces. The line is written behind the last one, also if nobody takes them all."""
        size, result = 0, "broken_off"
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    size += len(piece)
                    yield piece
                    del piece
            result = "ok"
        finally:
            self._write(json.dumps(line | {"result": result, "size": size} | self._named(request)))

    def _named(self, request: Request) -> dict[str, Any]:
        """The sessions that a request about a person has come to."""
        hashes = [session_hash(self._key, name) for name in request.sessions]
        return {"sessions": hashes} if hashes else {}

    def _line(self, request: Request, response: Response, address: str) -> dict[str, Any]:
        line: dict[str, Any] = {
            "at": format_time(self._clock()),
            "who": request.caller.name,
            "what": request.action,
            "result": response.problem or "ok",
            "status": response.status,
        }
        if request.caller.claims:
            line["minted_by"] = request.caller.key_id
        if request.session is not None:
            line["session"] = session_hash(self._key, request.session)
        if "userId" in request.params:
            line["user"] = session_hash(self._key, _decoded(request.params["userId"]))
        line["size"] = request.size or len(response.body)
        version = response.headers.get("etag", "").rstrip('"').rpartition("-")[2]
        if version:
            line["version"] = int(version)
        if response.status in (401, 403, 429):
            line["address"] = address
        return line | self._named(request)


def _decoded(segment: str) -> str:
    return unquote_to_bytes(segment.encode("latin-1")).decode(errors="replace")


def to_file(path: Path) -> Callable[[str], None]:
    """Lines go into this file. Raises OSError when it cannot be opened."""
    logger = logging.getLogger(f"chatstate.audit.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = PrivateFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    return logger.info
