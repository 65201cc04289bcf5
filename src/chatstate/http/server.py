"""Running the application: sockets on loopback, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from chatstate.errors import StartError
from chatstate.http.app import ChatState
from chatstate.http.messages import Headers, Request, Response
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
        http=HttpProtocol,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS + 5,  # the last resort, after the protocol's own
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(app, _Server(config, started), sockets))


async def _serve(app: ChatState, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    async with app.lifespan():
        await server.serve(sockets)


class _Exchange:
    """A request that is being answered without ASGI, in the place of uvicorn's own record of one."""

    __slots__ = ("disconnected", "head", "keep_alive", "response_complete")

    more_body = False
    message_event = asyncio.Event()  # uvicorn sets it; nobody waits

    def __init__(self, head: bool, keep_alive: bool) -> None:
        self.head = head
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False


_PLAIN_PATH = re.compile(rb"/[!-\"$->@-~]{0,65000}")
"""A request target that is nothing but a path: no query, no authority."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with bounded headers, an end that loses no request, and a shorter way for most requests.

    The shorter way (`docs/decisions/0004`): a request that arrives in one piece goes to the application as a value,
    and the answer to the socket, without the detour over ASGI, which takes a third of the CPU for a load. All other
    requests (large or slow bodies, pipelining, `Expect`) go the way of uvicorn. Both end in `ChatState.respond`.

    The end: uvicorn closes idle connections at once, also those whose next request has arrived and was not read yet.
    Here that one is still answered. Half a request that stays half is given up in the end.
    """

    app: ChatState
    _ending = False
    _in_headers = False
    _completed = False  # whether a request has ended in the data that is being parsed
    _header_bytes = 0
    _body: list[bytes] | None = None
    """The pieces of a body that may yet be complete with the data that is being parsed; None on uvicorn's way."""

    def data_received(self, data: bytes) -> None:
        self._completed = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            return self.send_400_response("Invalid HTTP request received.")
        self._after_data(data)
        return None

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again as the one of HTTP/1.1 that it also is (RFC 9110, section 7.8).

        Java's HttpClient asks for HTTP/2 in this way. The parser takes what follows such a head for another protocol,
        which ours does not become: it would be a save without its body, and a body that is taken for a request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            return self.send_400_response("This is no proxy.")
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name not in (b"connection", b"upgrade")]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", rest]))
        return None

    def _after_data(self, data: bytes) -> None:
        if self._body is not None and not self.transport.is_closing():
            self._go_the_long_way()
        self._header_bytes = self._header_bytes + len(data) if self._in_headers and not self._completed else 0
        if self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            answer = problem_response("headers_too_large", f"Send at most {HEADER_BYTES} bytes of headers.")
            self.transport.write(_written(answer, [(b"connection", b"close")]))
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._in_headers = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # what comes behind the body, in chunked ones, is not asked for (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self.parser.should_upgrade():
            return
        if self._idle and not self.expect_100_continue and _PLAIN_PATH.fullmatch(self.url):
            self._body = []
        else:
            self._start_cycle()

    def _start_cycle(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # only now, because it makes the scope that only ASGI needs
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        if self._ending and self.cycle:
            self.cycle.keep_alive = False

    def _go_the_long_way(self) -> None:
        pieces, self._body = self._body or [], None
        self._start_cycle()
        for piece in pieces:
            super().on_body(piece)

    def on_body(self, body: bytes) -> None:
        if self._body is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._completed = True
        if self.parser.should_upgrade():
            return
        if self._body is None:
            super().on_message_complete()
            return
        body, self._body = b"".join(self._body), None
        method = self.parser.get_method().decode("ascii")
        request = Request(method, self.url.decode("ascii"), Headers(self.headers), body)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive() and not self._ending
        self.cycle = exchange = _Exchange(method == "HEAD", keep_alive)  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(request, exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, request: Request, exchange: _Exchange) -> None:
        try:
            response = await self.app.respond(request)
            if self.flow.write_paused and not exchange.disconnected:
                await self.flow.drain()  # the client does not read what it was sent before
            if not exchange.disconnected and not self.transport.is_closing():
                self._write(response, exchange)
        finally:
            if not exchange.response_complete:  # whatever went wrong, nobody shall wait for ever
                self.transport.close()

    def _write(self, response: Response, exchange: _Exchange) -> None:
        fields = self.server_state.default_headers
        if not exchange.keep_alive:
            fields = [*fields, (b"connection", b"close")]
        self.transport.write(_written(response, fields, body=not exchange.head))
        exchange.response_complete = True
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def shutdown(self) -> None:
        self._ending = True
        self.loop.call_later(LINGER_SECONDS, self._end_if_idle)
        self.loop.call_later(SHUTDOWN_SECONDS, self._end_if_receiving)
        if not self._idle:
            super().shutdown()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_if_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def _end_if_receiving(self) -> None:
        if self.cycle and self.cycle.more_body:
            self.transport.close()


def _written(response: Response, fields: list[tuple[bytes, bytes]], body: bool = True) -> bytes:
    """The response on the wire (RFC 9112), with further header fields."""
    lines = [STATUS_LINE[response.status]]
    for name, value in fields:
        lines += (name, b": ", value, b"\r\n")
    lines += (response.head().encode("latin-1"), b"\r\n", response.body if body else b"")
    return b"".join(lines)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there now stays: no collection needs to look at it again, while requests wait
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
