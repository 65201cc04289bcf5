"""An HTTP server that answers as a test tells it to, in whatever pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.servers.ports import LOOPBACK


@dataclass
class Asked:
    """One request as it arrived: `b"POST"`, its path, its body, and its header fields by their names in lower case."""

    method: bytes
    path: bytes
    body: bytes
    fields: dict[bytes, bytes] = field(default_factory=dict)


Answerer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class SmallServer:
    """What the server was asked, by how many connections."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


def answer(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """An answer with a length."""
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


def chunked(*chunks: bytes) -> bytes:
    """An answer in chunks."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def always(data: bytes) -> Answerer:
    """The same bytes for every request."""

    async def write(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return write


@asynccontextmanager
async def serving(answerer: Answerer) -> AsyncIterator[SmallServer]:
    """A server on a port of loopback."""
    server = SmallServer()
    conversations: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        conversations[asyncio.current_task()] = writer
        try:
            while not writer.is_closing():
                asked = await _read(reader)
                server.asked.append(asked)
                await answerer(asked, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(converse, LOOPBACK, 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in conversations.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in conversations if task))  # they see that their connections are gone


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *fields = head[:-4].split(b"\r\n")
    method, path, version = line.split(b" ")
    assert version == b"HTTP/1.1"
    named = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in fields)}
    assert b"host" in named
    return Asked(method, path, await reader.readexactly(int(named.get(b"content-length", b"0"))), named)
