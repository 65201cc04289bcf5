"""Running the application: sockets on loopback, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chatstate.errors import StartError
from chatstate.http.app import ChatState
from chatstate.http.problems import problem_response

BACKLOG = 2048
HEADER_BYTES = 64 << 10
"""The most that the request line and the headers of one request may take, give or take one read."""

SHUTDOWN_SECONDS = 30
"""How long an orderly end waits for requests that are being received or answered."""

LINGER_SECONDS = 0.25
"""How long idle connections stay open at an orderly end: a request may be on its way on them already."""


def bind(addresses: tuple[str, ...], port: int) -> list[socket.socket]:
    """A listening socket for each address; one that this machine does not have (IPv6 may be off) is left out.

    Raises `StartError` when the port is taken or may not be used.
    """
    sockets: list[socket.socket] = []
    for address in addresses:
        try:
            sockets.append(_listen(address, port))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            for opened in sockets:
                opened.close()
            raise StartError(_cannot_bind(port, error)) from error
    if not sockets:
        raise StartError(f"This machine has no address {' or '.join(addresses)}; choose another with --host.")
    return sockets


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _cannot_bind(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 3000
        return f"Port {port} is taken. Stop the program that uses it, or try: chatstate serve --port {other}"
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}. Choose one above 1023: chatstate serve --port 3000"
    return f"Cannot listen on port {port}: {error.strerror}."


def run(app: ChatState, sockets: list[socket.socket], started: Callable[[], Awaitable[None]]) -> None:
    """Serve until SIGINT or SIGTERM; then take no new connection, answer what was accepted, and close the store.

    A second signal ends the process at once, as SIGKILL would; what was acknowledged is safe then, too.

    `started` is called once requests are being answered. Raises `StartError` when the store cannot be opened.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",  # opened below, so that a failure is one message and not a stack trace
        log_level="warning",
        access_log=False,  # it would write down ids
        server_header=False,
        proxy_headers=False,
        http=_Protocol,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS + 5,  # the last resort, after the protocol's own
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(app, _Server(config, started), sockets))


async def _serve(app: ChatState, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    async with app.lifespan():
        await server.serve(sockets)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, but headers are bounded, and its end loses no request.

    uvicorn closes idle connections at once, also those whose next request has arrived and was not read yet. Here that
    one is still answered. Half a request that stays half is given up in the end.
    """

    _ending = False
    _in_headers = False
    _header_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._header_bytes = self._header_bytes + len(data) if self._in_headers else 0
        if self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            answer = problem_response("headers_too_large", f"Send at most {HEADER_BYTES} bytes of headers.")
            headers = b"".join(name + b": " + value + b"\r\n" for name, value in answer.raw_headers)
            self.transport.write(b"HTTP/1.1 431 \r\nConnection: close\r\n" + headers + b"\r\n" + bytes(answer.body))
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def shutdown(self) -> None:
        self._ending = True
        self.loop.call_later(LINGER_SECONDS, self._end_if_idle)
        self.loop.call_later(SHUTDOWN_SECONDS, self._end_if_receiving)
        if not self._idle:
            super().shutdown()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_headers = False
        if self._ending and self.cycle:
            self.cycle.keep_alive = False

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_if_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def _end_if_receiving(self) -> None:
        if self.cycle and self.cycle.more_body:
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self._when_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, it does not raise the signal again at the end: the store is still to be closed."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            if not self.should_exit:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the orderly end; from then on either one kills, until the process has ended."""
        self.should_exit = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
