"""Responses as they go over the wire, and the one to a connection that is one too many."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from chatstate.http.deadlines import Watch
from chatstate.http.messages import Response
from chatstate.http.problems import RETRY_AFTER_SECONDS, problem_response

CLOSE = [(b"connection", b"close")]
"""The header fields of the last answer on a connection."""

CHUNKED = [(b"transfer-encoding", b"chunked")]
"""Those of an answer whose length is not known at its beginning."""


def written(response: Response, fields: list[tuple[bytes, bytes]], body: bool = True) -> bytes:
    """The response on the wire (RFC 9112), with further header fields."""
    lines = [STATUS_LINE[response.status]]
    for name, value in fields:
        lines += (name, b": ", value, b"\r\n")
    lines += (response.head().encode("latin-1"), b"\r\n", response.body if body else b"")
    return b"".join(lines)


class Refused(asyncio.Protocol):
    """The end of a connection that is one too many: told so, and closed within two ticks.

    Not at once, if it can be helped: to close a socket with unread data in it makes the other side forget what it was
    sent, and most clients have sent a request by now.
    """

    def __init__(self, transport: asyncio.Transport, watch: Watch) -> None:
        self._transport, self._watch, self._since = transport, watch, watch.ticks
        transport.set_protocol(self)
        transport.write(TOO_MANY)
        transport.write_eof()
        watch.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.remove(self)

    def check(self) -> None:
        """See `Watched.check`."""
        if self._watch.passed(self._since, 0):
            self._transport.abort()


TOO_MANY = written(
    problem_response(
        "too_many_connections",
        "The server has as many connections as it takes. Close some, or try again when others are closed.",
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
    ),
    CLOSE,
)
