"""A server in the event loop of whoever asks for it: tests play with what it serves while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState

from chatstate.http.protocol import HttpProtocol
from chatstate.http.server import bind

if TYPE_CHECKING:
    from chatstate.emulator.app import Emulator

LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def serving(emulator: Emulator, port: int) -> AsyncIterator[str]:
    """Serve it on loopback; where it is reached. At the end no answer is waited for."""
    [listener] = bind((LOOPBACK,), port)
    url = emulator.url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    config = uvicorn.Config(emulator, lifespan="off", log_config=None, server_header=False, proxy_headers=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(config, state, {}), sock=listener)
    try:
        async with emulator.lifespan():
            yield url
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
