"""HTTP messages as values: the `Request` that has arrived, and the `Response` to it (RFC 9110, section 6).

They know nothing of who carries them. Any ASGI server does, through `ChatState.__call__`; our own server carries
requests that arrive in one piece without that detour (`chatstate.http.protocol`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

from msgspec import Struct

from chatstate.access import NOBODY, Caller
from chatstate.errors import BodyTooLarge


class ClientGone(Exception):
    """The client has closed the connection before its request was complete: there is nobody to answer."""


class Headers:
    """The header fields of a request. Names are given in lower case; values are decoded as Latin-1."""

    __slots__ = ("_values",)

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[bytes]] = {}
        for name, value in fields:
            self._values.setdefault(name.decode("latin-1"), []).append(value)

    def get(self, name: str, default: str = "") -> str:
        """The field's first value."""
        values = self._values.get(name)
        return values[0].decode("latin-1") if values else default

    def all(self, name: str) -> list[str]:
        """The values of all fields of this name; empty without one."""
        values = self._values.get(name)
        return [value.decode("latin-1") for value in values] if values else []

    def names(self) -> Iterable[str]:
        """The names of all fields, in lower case."""
        return self._values.keys()


class Request:
    """A request.

    path      as the client sent it, undecoded, below the place where the application is mounted
    query     what follows the `?`, undecoded
    mount     that place, as it stands in addresses: empty, or `/bot`
    version   of HTTP that it came with: `1.0` or `1.1`, from other servers perhaps others
    client    the address of the peer, as text and without its port; empty when it is unknown
    params    the raw segments that stand for the route's parameters, once a route is found
    caller    who has sent it, once the gate has found out
    action    what is asked for, once a route is found: the name of its handler
    session   the id of the session that it is about, once that is known
    sessions  the ids of the sessions that a request about a person has come to
    """

    __slots__ = (
        "_body",
        "action",
        "caller",
        "client",
        "headers",
        "method",
        "mount",
        "params",
        "path",
        "query",
        "scheme",
        "session",
        "sessions",
        "version",
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] = b"",
        *,
        query: str = "",
        mount: str = "",
        scheme: str = "http",
        client: str = "",
        version: str = "1.1",
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.query = query
        self.mount = mount
        self.scheme = scheme
        self.client = client
        self.version = version
        self.params: dict[str, str] = {}
        self.caller: Caller = NOBODY
        self.action = ""
        self.session: str | None = None
        self.sessions: Sequence[str] = ()
        self._body = body

    @property
    def base_url(self) -> str:
        """Where the client sees the application."""
        return f"{self.scheme}://{self.headers.get('host')}{self.mount}"

    @property
    def size(self) -> int:
        """How many bytes the body has, as far as it was read."""
        return len(self._body) if isinstance(self._body, bytes) else 0

    async def read(self, limit: int) -> bytes:
        """The body, once. Raises `BodyTooLarge` as soon as more than `limit` bytes are announced or have come."""
        length = self.headers.get("content-length")
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)
        if not isinstance(self._body, bytes):
            self._body = await _joined(self._body, limit)
        if len(self._body) > limit:
            raise _too_large(limit)
        return self._body


async def _joined(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes. The limit follows from CHATSTATE_MAX_STATE_BYTES.")


_ON_EVERY_ANSWER = (
    "x-content-type-options: nosniff\r\n"
    "referrer-policy: no-referrer\r\n"
    "vary: origin\r\n"  # for caches: CORS has other headers for another page
)

NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of answers that are no page: nothing runs, nothing is loaded."""

BODILESS = (204, 304)
"""Statuses of answers that have neither a body nor its length."""


class Response(Struct):
    """An answer. `headers` are those that not every answer has, with names in lower case.

    stream   gives the body piece by piece, in the place of `body`; if it raises, the connection is cut
    gone     ends a stream that has no end of its own: called when the client has gone, or wants something else
    problem  the code of the error that the answer tells of
    cache    what caches may do with it; nothing, because states are private
    """

    status: int = 200
    body: bytes = b""
    media_type: str = "application/json"
    headers: dict[str, str] = {}
    policy: str = NO_PAGE
    stream: AsyncGenerator[bytes, None] | None = None
    gone: Callable[[], None] | None = None
    problem: str = ""
    cache: str = "no-store"

    def head(self) -> str:
        """All header fields, each as a line. Raises ValueError for a value with a line end or other controls."""
        lines = f"cache-control: {self.cache}\r\n{_ON_EVERY_ANSWER}content-security-policy: {self.policy}\r\n"
        if self.status not in BODILESS:
            lines += f"content-type: {self.media_type}\r\n"
            if self.stream is None:
                lines += f"content-length: {len(self.body)}\r\n"
        for name, value in self.headers.items():
            if not value.isprintable():
                raise ValueError("a header field must not contain control characters")
            lines += f"{name}: {value}\r\n"
        return lines
