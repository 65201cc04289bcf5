"""A TCP proxy on loopback that breaks connections when a test tells it to.

    async with FaultProxy(server.host, server.port) as proxy:
        url = at_port(await server.create_database(), proxy.port)
        proxy.cut_reply_to(b"COMMIT")

The client of `url` then loses its connection in place of the answer to COMMIT, and what it wrote is committed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from contextlib import suppress
from typing import Self

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: closing sends RST instead of FIN
_READY_FOR_QUERY = b"Z\x00\x00\x00\x05"  # and one byte of transaction status; ends every answer of PostgreSQL


class FaultProxy:
    """Forwards to one address until told otherwise; the faults may be switched at any time inside the event loop.

    `port`: where it listens on 127.0.0.1. `connections`: how many it accepted. `cuts`: how many connections it reset.
    `tls`: what it shows its clients, and asks of them; none between it and the target.
    """

    def __init__(self, target_host: str, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = (target_host, target_port)
        self._tls = tls
        self.port = 0
        self.connections = 0
        self.cuts = 0
        self.refusing = False
        self.flowing = asyncio.Event()  # cleared while everything is swallowed
        self.flowing.set()
        self._marker: bytes | None = None
        self._marked_cuts = 0
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self.accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._listener is not None
        self._listener.close()
        await self.close()
        await self._listener.wait_closed()

    async def close(self) -> None:
        """End all connections."""
        tasks = list(self._links.values())
        self.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def heal(self) -> None:
        """Forward again. Connections that lost bytes in a black hole are reset, for they would be out of step."""
        self.refusing = False
        self._marker = None
        self.flowing.set()
        for link in list(self._links):
            if link.lossy:
                link.reset()

    def cut(self) -> None:
        """Reset the live connections, on both sides; new ones are treated as before."""
        for link in list(self._links):
            link.reset()

    def refuse(self) -> None:
        """Reset the live connections and every new one as soon as it is accepted, until heal()."""
        self.refusing = True
        self.flowing.set()
        self.cut()

    def blackhole(self) -> None:
        """Accept, and swallow everything both ways, until heal(); neither side learns that the other one hung up."""
        self.flowing.clear()

    def cut_reply_to(self, marker: bytes, times: int = 1) -> None:
        """Let the next `times` requests with `marker` reach the server, but reset the client in place of the answer.

        The client is reset after the server answered in full, so a write is committed by then. For PostgreSQL a
        request is the *running* of a statement whose SQL contains the marker (case counts), sent as a simple query or
        prepared before under whatever name; the preparing itself passes. For other protocols it is a chunk of up to
        64 KiB with the marker in it, and the answer is the first chunk that comes back.
        """
        self._marker, self._marked_cuts = marker, times

    def takes(self, link: _Link, data: bytes) -> bool:
        """Whether the answer to `data`, which `link` is about to forward, is to be cut; counts down."""
        requests = link.requests.feed(data)
        if self._marker is None or self._marked_cuts == 0 or not any(self._marker in request for request in requests):
            return False
        self._marked_cuts -= 1
        return True

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a client's connection, which the proxy's own listener accepted, or another one."""
        self.connections += 1
        link = _Link(self, reader, writer)
        task = asyncio.get_running_loop().create_task(link.run())
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link))
        if self.refusing:
            link.reset()


class _Link:
    """One client's connection through the proxy."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lossy = False
        self.requests = _Requests()
        self._proxy = proxy
        self._reader = reader
        self._client = writer
        self._server: asyncio.StreamWriter | None = None
        self._muted = False
        self._reset = False

    async def run(self) -> None:
        """Forward until one side ends."""
        try:
            with suppress(OSError):
                await self._forward()
        finally:
            for writer in (self._client, self._server):
                if writer is not None:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()

    def reset(self) -> None:
        """Send RST to both sides, dropping what was not sent yet."""
        if not self._reset:
            self._reset = True
            self._proxy.cuts += 1
            self._abort(self._client)
            self._abort(self._server)

    async def _forward(self) -> None:
        if not self._proxy.flowing.is_set():
            self.lossy = True
            await self._proxy.flowing.wait()  # heal() has reset us by then
            return
        try:
            answers, self._server = await asyncio.open_connection(*self._proxy.target)
        except OSError:
            self.reset()
        if self._reset or self._server is None:
            return
        pumps = [asyncio.ensure_future(self._pump_requests()), asyncio.ensure_future(self._pump_answers(answers))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if self._muted:
                await pumps[1]  # a client that gave up waiting must not take the running request with it
            await self._proxy.flowing.wait()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump_requests(self) -> None:
        assert self._server is not None
        with suppress(OSError):
            while data := await self._reader.read(_CHUNK):
                if not self._proxy.flowing.is_set():
                    self.lossy = True
                    continue
                self._muted |= self._proxy.takes(self, data)  # before forwarding: the answer may be quick
                self._server.write(data)
                await self._server.drain()

    async def _pump_answers(self, reader: asyncio.StreamReader) -> None:
        tail = b""
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if not self._proxy.flowing.is_set():
                    self.lossy = True
                elif not self._muted:
                    self._client.write(data)
                    await self._client.drain()
                else:
                    tail = (tail + data)[-6:]
                    if not self.requests.postgres or tail.startswith(_READY_FOR_QUERY):
                        break
        if self._muted and not self._reset:
            self._reset = True
            self._proxy.cuts += 1
            self._abort(self._client)

    @staticmethod
    def _abort(writer: asyncio.StreamWriter | None) -> None:
        if writer is not None and not writer.transport.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class _Requests:
    """Reads along with a client of PostgreSQL's protocol 3: which SQL does it ask the server to run?"""

    _STARTUP, _NEGOTIATIONS = 3, (80877103, 80877104)  # major version; asking for TLS and GSSAPI encryption

    def __init__(self) -> None:
        self.postgres = True
        self._buffer = bytearray()
        self._started = False
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> list[bytes]:
        """The SQL of the statements that `data` completes the request to run; `data` itself for another protocol."""
        self._buffer += data
        while self.postgres and not self._started and len(self._buffer) >= 8:
            self._start()
        if not self.postgres:
            self._buffer.clear()
            return [data]
        return self._run_messages() if self._started else []

    def _start(self) -> None:
        length, code = struct.unpack_from("!ii", self._buffer)
        if code in self._NEGOTIATIONS:
            del self._buffer[:8]
        elif code >> 16 == self._STARTUP:
            if len(self._buffer) >= length:
                del self._buffer[:length]
                self._started = True
        else:
            self.postgres = False

    def _run_messages(self) -> list[bytes]:
        found = []
        while len(self._buffer) >= 5:
            kind, length = struct.unpack_from("!ci", self._buffer)
            if len(self._buffer) < 1 + length:
                break
            body = bytes(self._buffer[5 : 1 + length])
            del self._buffer[: 1 + length]
            sql = self._run_message(kind, body)
            if sql is not None:
                found.append(sql)
        return found

    def _run_message(self, kind: bytes, body: bytes) -> bytes | None:
        first, _, rest = body.partition(b"\0")
        if kind == b"P":  # Parse: statement name, SQL
            self._statements[first] = rest.partition(b"\0")[0]
        elif kind == b"B":  # Bind: portal name, statement name
            self._portals[first] = self._statements.get(rest.partition(b"\0")[0], b"")
        elif kind == b"E":  # Execute: portal name
            return self._portals.get(first)
        elif kind == b"Q":  # Query: SQL
            return first
        return None
