"""HTTP/1.1 on a connection: uvicorn's protocol, with limits to what a client may hold up, and a shorter way."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chatstate.http.application import Application
from chatstate.http.deadlines import Watch
from chatstate.http.messages import Headers, Request, Response
from chatstate.http.problems import problem_response
from chatstate.http.proxies import peer_address
from chatstate.http.replies import CHUNKED, CLOSE, TOO_MANY, Refused, written

HEADER_BYTES = 64 << 10
"""The most that the request line and the headers of one request may take, give or take one read."""

SLICE_BYTES = 8 << 10
"""How much is parsed at once, and so how many requests, or nearly, may wait behind another one of the same client."""

MAX_REFUSED = 100
"""How many connections at most wait until they have read that they are too many."""

SHUTDOWN_SECONDS = 30
"""How long an orderly end waits for requests that are being received or answered."""

LINGER_SECONDS = 0.25
"""How long idle connections stay open at an orderly end: a request may be on its way on them already."""

_NO_LINGER = struct.pack("ii", 1, 0) if sys.platform != "win32" else struct.pack("hh", 1, 0)


class _Exchange:
    """A request that is being answered without ASGI, in the place of uvicorn's own record of one."""

    __slots__ = ("chunks", "disconnected", "gone", "head", "keep_alive", "response_complete")

    more_body = False
    message_event = asyncio.Event()  # uvicorn sets it; nobody waits

    def __init__(self, head: bool, keep_alive: bool, chunks: bool) -> None:
        self.head = head
        self.keep_alive = keep_alive
        self.chunks = chunks
        self.response_complete = False
        self.disconnected = False
        self.gone: Callable[[], None] | None = None  # ends a stream that nobody reads any more


_log = logging.getLogger(__name__)

_PLAIN_TARGET = re.compile(rb"/[!-\"$->@-~]{0,65000}(?:\?[!-\"$-~]{0,65000})?")
"""A request target that is a path, perhaps with a query: no authority, no fragment."""


class _Flow(FlowControl):
    """Reads nothing further while requests wait behind another one.

    uvicorn reads on after each answer: whoever sends more requests than it reads answers would fill the memory.
    """

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with bounds for clients, an end that loses no request, and a shorter way for most requests.

    The shorter way (`docs/decisions/0004`): a request that arrives in one piece goes to the application as a value,
    and the answer to the socket, without the detour over ASGI, which takes a third of the CPU for a load. All other
    requests (large or slow bodies, pipelining, `Expect`) go the way of uvicorn. Both end in `ChatState.respond`.

    The end: uvicorn closes idle connections at once, also those whose next request has arrived and was not read yet.
    Here that one is still answered. Half a request that stays half is given up in the end.

    The bounds: `Watch` calls `check` once a tick, which ends what a client has left undone for too long. Time in which
    the client waits for us does not count.

    HEADER_SECONDS   from the opening, or the first byte of a later request, until request line and headers are complete
    BODY_SECONDS     from then until the body is
    WRITE_SECONDS    until a client has taken an answer
    TICK_SECONDS     by so much, or twice that, each of them may be longer
    MAX_CONNECTIONS  of a server; further ones are refused

    The time between requests is uvicorn's `timeout_keep_alive`.
    """

    HEADER_SECONDS: float = 10
    BODY_SECONDS: float = 30
    WRITE_SECONDS: float = 30
    TICK_SECONDS: float = 1
    MAX_CONNECTIONS: int = 4096

    app: Application
    _watch: Watch
    _peer = ""
    _since = 0  # the tick in which the connection was opened, or its latest request began, or that one's body
    _answered = 0  # the tick in which the latest answer was written
    _taken = 0  # the latest tick in which nothing was left for the client to take
    _held: tuple[RequestResponseCycle, Any] | None = None
    """A request that begins when the client has taken the answer before it."""

    _answering: RequestResponseCycle | _Exchange | None = None
    """The request that is being answered, or was last; `cycle` may be one that waits behind it."""

    _ending = False
    _receiving = False  # from the first byte of a request to the last
    _in_headers = False
    _completed = False  # whether a request has ended in the data that is being parsed
    _header_bytes = 0
    _unparsed = b""
    """What was read behind requests that wait."""

    _body: list[bytes] | None = None
    """The pieces of a body that may yet be complete with the data that is being parsed; None on uvicorn's way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = Watch.of(self.server_state, self.loop, self.TICK_SECONDS)
        if len(self.connections) > self.MAX_CONNECTIONS:
            self._turn_away()
            return
        self.flow = _Flow(transport, self.pipeline)
        self._peer = peer_address(self.client)
        self._since = self._answered = self._taken = self._watch.ticks
        self._watch.add(self)

    def _turn_away(self) -> None:
        self.connections.discard(self)
        if len(self._watch.connections) - len(self.connections) < MAX_REFUSED:
            Refused(self.transport, self._watch)
        else:
            self.transport.write(TOO_MANY)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.remove(self)
        super().connection_lost(exc)
        answering = self._answering
        if answering and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        if (gone := self._when_gone) is not None:
            gone()

    @property
    def _when_gone(self) -> Callable[[], None] | None:
        return self._answering.gone if isinstance(self._answering, _Exchange) else None

    def data_received(self, data: bytes) -> None:
        """Parse it, slice by slice: once a request waits behind another one, what follows stays as it is.

        Else one read of the smallest requests that there are would become tens of megabytes of waiting requests.
        """
        self._completed = False
        for start in range(0, len(data), SLICE_BYTES):
            if self.pipeline:
                self._unparsed += data[start:]
                break
            try:
                self.parser.feed_data(data[start : start + SLICE_BYTES] if len(data) > SLICE_BYTES else data)
            except httptools.HttpParserUpgrade as upgrade:
                return self._decline_upgrade(data[start + upgrade.args[0] :])
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
            self._refuse("headers_too_large", f"Send at most {HEADER_BYTES} bytes of headers.")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays: a client that sends no more, such as `nc -N`, still gets all its answers."""
        if self._idle or (self._receiving and not self._in_headers) or self._when_gone:
            return False  # who listens to changes without an end has gone
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._receiving = self._in_headers = True
        if self.cycle:  # for the first request the time runs from the opening
            self._since = self._watch.ticks

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # what comes behind the body, in chunked ones, is not asked for (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self.parser.should_upgrade():
            return
        if (gone := self._when_gone) is not None:
            gone()  # who asks for something else behind a stream without an end has had enough of it
        if self._idle and not self.expect_100_continue and _PLAIN_TARGET.fullmatch(self.url):
            self._body = []
        else:
            self._start_cycle()

    def _start_cycle(self) -> None:
        self._since = self._watch.ticks
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
        self._receiving = False
        if self.parser.should_upgrade():
            return
        if self._body is None:
            super().on_message_complete()
            return
        body, self._body = b"".join(self._body), None
        method = self.parser.get_method().decode("ascii")
        version = self.parser.get_http_version()
        url = self.url.decode("ascii")
        path, _, query = url.partition("?")
        request = Request(method, path, Headers(self.headers), body, query=query, client=self._peer, version=version)
        is_1_1 = version != "1.0"
        keep_alive = is_1_1 and self.parser.should_keep_alive() and not self._ending
        exchange = self._answering = _Exchange(method == "HEAD", keep_alive, is_1_1)
        self.cycle = exchange  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(request, exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, request: Request, exchange: _Exchange) -> None:
        try:
            if self.flow.write_paused:
                await self.flow.drain()  # the client does not read what it was sent before
                if exchange.disconnected:
                    return
            response = await self.app.respond(request)
            del request  # the answer may go on for hours
            if exchange.disconnected or self.transport.is_closing():
                return
            if response.stream is None or exchange.head:
                self._write(response, exchange)
            else:
                await self._stream(response, response.stream, exchange)
        finally:
            if not exchange.response_complete:  # whatever went wrong, nobody shall wait for ever
                self.transport.close()

    async def _stream(self, response: Response, pieces: AsyncGenerator[bytes, None], exchange: _Exchange) -> None:
        """Send a body as it comes, and as quickly as the client takes it: in chunks (RFC 9112, section 7.1), if the
        client knows them. If it breaks off, the connection is reset, and nobody takes a part for the whole.
        """
        fields = [*self.server_state.default_headers, *([] if exchange.keep_alive else CLOSE)]
        self.transport.write(written(response, [*fields, *(CHUNKED if exchange.chunks else [])]))
        exchange.gone = response.gone
        if response.gone and self.pipeline:
            response.gone()  # what they ask for behind it came together with it
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if exchange.chunks else piece)
                    self._answered = self._watch.ticks
                    await self.flow.drain()
                    if exchange.disconnected:
                        return
                    del piece  # it may be large, and the next one long in coming
        except Exception:
            _log.exception("an answer broke off")
            self._reset()
            return
        exchange.gone = None
        if exchange.disconnected:
            return
        if exchange.chunks:
            self.transport.write(b"0\r\n\r\n")
        self._written(exchange)

    def _write(self, response: Response, exchange: _Exchange) -> None:
        fields = self.server_state.default_headers
        if not exchange.keep_alive:
            fields = [*fields, *CLOSE]
        self.transport.write(written(response, fields, body=not exchange.head))
        self._written(exchange)

    def _written(self, exchange: _Exchange) -> None:
        exchange.response_complete = True
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        self._answered = self._watch.ticks
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            if self._unparsed and not self.pipeline:
                unparsed, self._unparsed = self._unparsed, b""
                self.data_received(unparsed)
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if self.flow.write_paused:
            self._held = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        super().resume_writing()
        held, self._held = self._held, None
        if held and not self.transport.is_closing():
            super()._start_asgi_task(*held)

    def _refuse(self, code: str, detail: str) -> None:
        self.transport.write(written(problem_response(code, detail), CLOSE))
        self.transport.close()

    def check(self) -> None:
        """See `Watched.check`."""
        if self.transport.get_write_buffer_size():
            if self._watch.passed(max(self._answered, self._taken), self.WRITE_SECONDS):
                self._reset()
            return
        self._taken = self._watch.ticks
        if not self.transport.is_closing():
            if self._receiving:
                self._check_receiving()
            elif self._idle:
                self._check_idle()

    def _reset(self) -> None:
        """End it, and have the system forget, too, what it holds for the client: it would go on to offer that."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError, ValueError):  # it is closed already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _check_idle(self) -> None:
        since, seconds = (self._answered, self.timeout_keep_alive) if self.cycle else (self._since, self.HEADER_SECONDS)
        if self._watch.passed(since, seconds):
            self.transport.close()

    def _check_receiving(self) -> None:
        part, seconds = ("headers", self.HEADER_SECONDS) if self._in_headers else ("body", self.BODY_SECONDS)
        if self._waits_for_us():
            self._since += 1
        elif self._watch.passed(self._since, seconds):
            if not self._in_headers and self._idle:  # it was answered before its body was complete
                self.transport.close()
                return
            if not self._in_headers:
                self.cycle.disconnected = True  # nobody shall take half a body for a whole one
                self.cycle.message_event.set()
            detail = f"The {part} of the request took more than {seconds:g} s to arrive. Send it again, without pauses."
            self._refuse("request_timeout", detail)

    def _waits_for_us(self) -> bool:
        """Whether the client cannot send the rest of a request, or has to wait for earlier answers first."""
        if self.flow.read_paused or (self._in_headers and not self._idle):
            return True
        cycle = self.cycle
        if self._in_headers or cycle.response_complete:
            return False
        return cycle.waiting_for_100_continue or cycle.response_started

    def shutdown(self) -> None:
        self._ending = True
        self.app.end_streams()
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
