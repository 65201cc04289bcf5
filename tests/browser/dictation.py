"""Telling the bot of `bots.py` what to write, piece by piece, while it writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.browser.chat import SECONDS
from tests.servers.ports import LOOPBACK


class Dictation:
    """Tells the bot line by line what to write; one connection of it after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def begun(self) -> asyncio.StreamWriter:
        """The bot listens now; closing it is the end."""
        return await asyncio.wait_for(self.connections.get(), SECONDS)


@asynccontextmanager
async def dictating() -> AsyncIterator[Dictation]:
    writers: list[asyncio.StreamWriter] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        made.connections.put_nowait(writer)

    server = await asyncio.start_server(connected, LOOPBACK)
    made = Dictation(server.sockets[0].getsockname()[1])
    yield made
    server.close()
    for writer in writers:
        writer.close()
