"""A small webhook, on a real socket: it does what Meta's documentation asks of one, and remembers what came."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlsplit

from msgspec import json

from chatstate.emulator import Account

SECONDS = 15.0


class SmallWebhook:
    """Answers the challenge and deliveries, one connection at a time or many.

    bodies    those that were signed correctly, in the order in which they came
    forged    how many were not
    answers   what the next deliveries are answered with, in the place of 200; None: the connection is cut
    verifies  what the challenge is answered with, in the place of 200; `echoes`: whether it is given back
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.bodies: list[bytes] = []
        self.forged = 0
        self.answers: list[int | None] = []
        self.verifies = 200
        self.echoes = True
        self.port = 0
        self._came = asyncio.Condition()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhook"

    def messages(self) -> Iterator[dict[str, Any]]:
        """All messages that have come."""
        return (message for value in self.values() for message in value.get("messages", ()))

    def statuses(self) -> Iterator[dict[str, Any]]:
        return (status for value in self.values() for status in value.get("statuses", ()))

    def values(self) -> Iterator[dict[str, Any]]:
        for body in self.bodies:
            for entry in json.decode(body)["entry"]:
                for change in entry["changes"]:
                    assert change["field"] == "messages"
                    yield change["value"]

    async def has(self, condition: Callable[[], bool]) -> None:
        """Wait until this holds, after each delivery."""
        async with asyncio.timeout(SECONDS), self._came:
            await self._came.wait_for(condition)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                request_line, *lines = head.split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status, answer = await self._answer(request_line.split()[0], request_line.split()[1], headers, body)
                if status is None:
                    return
                writer.write(f"HTTP/1.1 {status} Told\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int | None, bytes]:
        if method == "GET":
            return self._consent(target)
        signature = hmac.new(self.account.app_secret.encode(), body, sha256).hexdigest()
        async with self._came:
            status = self.answers.pop(0) if self.answers else 200
            if headers.get("x-hub-signature-256") != f"sha256={signature}":
                self.forged += 1
                status = 401
            else:
                self.bodies.append(body)
            self._came.notify_all()
        return status, b""

    def _consent(self, target: str) -> tuple[int, bytes]:
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        if self.verifies != 200:
            return self.verifies, b""
        if query.get("hub.mode") != "subscribe" or query.get("hub.verify_token") != self.account.verify_token:
            return 403, b""
        return 200, query["hub.challenge"].encode() if self.echoes else b"<html>"

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[SmallWebhook]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._connections.values():
                writer.close()
            await asyncio.gather(*self._connections)
