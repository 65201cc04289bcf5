"""What a server of ours runs: an application that answers requests. It is an ASGI application as well."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any
from urllib.parse import unquote

from chatstate.http.messages import ClientGone, Headers, Request, Response
from chatstate.http.proxies import peer_address
from chatstate.http.wire import encode_path

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application(ABC):
    """Answers requests, as long as its lifespan lasts.

    started  whether the lifespan has begun
    """

    started = False

    @abstractmethod
    async def respond(self, request: Request) -> Response:
        """The answer to any request. Raises only `ClientGone`."""

    @abstractmethod
    def lifespan(self, _app: object = None) -> AbstractAsyncContextManager[None]:
        """From what the application needs, to its orderly end."""

    @abstractmethod
    def end_streams(self) -> None:
        """Let those end who listen to changes: the server is about to end, and waits for all answers."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI interface (https://asgi.readthedocs.io, version 3)."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"chatstate does not speak {scope['type']}")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            response = await self.respond(_request(scope, receive))
        except ClientGone:
            response = Response(400)  # nobody is there to read it
        if response.stream is not None and scope.get("http_version") == "1.0":  # it knows no chunks
            pieces, response.stream = response.stream, None
            response.body = b"".join([piece async for piece in pieces])
        fields = [line.split(b": ", 1) for line in response.head().encode("latin-1").splitlines()]
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        if response.stream is not None and scope["method"] != "HEAD":
            await _stream(response, response.stream, receive, send)
        await send({"type": "http.response.body", "body": response.body})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            phase = "shutdown" if self.started else "startup"
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _request(scope: Message, receive: Receive) -> Request:
    mounted: str = scope.get("root_path", "")
    path: str = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else encode_path(scope["path"])
    path = _below(mounted, path)
    return Request(
        scope["method"],
        path,
        Headers(scope["headers"]),
        _chunks(receive),
        query=scope.get("query_string", b"").decode("latin-1"),
        mount=encode_path(mounted),
        scheme=scope.get("scheme", "http"),
        client=peer_address(scope.get("client")),
        version=scope.get("http_version", "1.1"),
    )


async def _stream(response: Response, pieces: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Send a body as it comes, until the client has gone: then ASGI servers take the rest without a word."""
    gone = asyncio.create_task(_disconnected(receive))
    if when_gone := response.gone:
        gone.add_done_callback(lambda _: when_gone())
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    return
                del piece  # it may be large, and the next one long in coming
    finally:
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _below(mounted: str, path: str) -> str:
    """The raw path without the place of the mount, or without the end of it: proxies may have taken off the rest."""
    names, segments = mounted.split("/")[1:], path.split("/")[1:]
    for number in range(len(names), 0, -1):
        if unquote("/".join(segments[:number])) == "/".join(names[-number:]):
            return "/" + "/".join(segments[number:])
    return path


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)
