"""A client of the change feed on a socket of its own, which gives events one by one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any, NamedTuple

SECONDS = 20.0


class Event(NamedTuple):
    """An event; `name` is empty for a comment, and `data` then None."""

    name: str
    id: str | None
    data: Any

    @property
    def state(self) -> str:
        return str(self.data["chat_state"])


class EventStream:
    """An answer that goes on. `next` waits for an event, and skips comments unless it is told not to."""

    def __init__(self, connection: socket.socket, response: HTTPResponse) -> None:
        self.socket = connection
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._response = response
        self._unread = b""

    def block(self) -> str | None:
        """What stands before the next empty line; None: the stream has ended."""
        while b"\n\n" not in self._unread:
            data = self._response.read1(1 << 16)
            if not data:
                return None
            self._unread += data
        block, _, self._unread = self._unread.partition(b"\n\n")
        return block.decode()

    def next(self, comments: bool = False) -> Event | None:
        """The next event; None: the stream has ended."""
        while (block := self.block()) is not None:
            event = _event(block)
            if event.name or (comments and not block.startswith("retry")):
                return event
        return None

    def state(self) -> str:
        """The state that the next event tells."""
        event = self.next()
        assert event
        assert event.name == "state", event
        return event.state


def _event(block: str) -> Event:
    fields = dict(line.split(":", 1) for line in block.split("\n"))
    name, data = fields.get("event", "").strip(), fields.get("data")
    number = fields.get("id")
    return Event(name, None if number is None else number.strip(), None if data is None else json.loads(data))


@contextmanager
def listening(
    port: int, path: str, headers: Mapping[str, str] | None = None, *, version: str = "1.1", seconds: float = SECONDS
) -> Iterator[EventStream]:
    """The stream at this path, below `/chat-state-sessions/`."""
    fields = {"Host": f"127.0.0.1:{port}", "Accept": "text/event-stream", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(f"GET /chat-state-sessions/{path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1"))
        response = HTTPResponse(connection, method="GET")
        try:
            response.begin()
            yield EventStream(connection, response)
        finally:
            response.close()
