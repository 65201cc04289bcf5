"""Running the application: sockets on loopback, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn

from chatstate.errors import StartError
from chatstate.http.application import Application
from chatstate.http.protocol import SHUTDOWN_SECONDS, HttpProtocol

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""How long a connection stays open between two requests."""

SPARE_FILES = 200
"""How many files the process may have open beside connections: those of the store, and connections that are refused."""

_log = logging.getLogger(__name__)


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


def run(
    app: Application,
    sockets: list[socket.socket],
    started: Callable[[], Awaitable[None]],
    *,
    max_connections: int = HttpProtocol.MAX_CONNECTIONS,
    parent: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then take no new connection, answer what was accepted, and close the store.

    A second signal ends the process at once, as SIGKILL would; what was acknowledged is safe then, too.

    `started` is called once requests are being answered. Of more than `max_connections` the further ones are refused,
    and of fewer, if the process may not open as many files. `parent` is a file whose end counts as a SIGTERM. Raises
    `StartError` when the store cannot be opened.
    """

    class Bounded(HttpProtocol):
        MAX_CONNECTIONS = allow_files_for(max_connections)

    config = uvicorn.Config(
        app,
        lifespan="off",  # opened below, so that a failure is one message and not a stack trace
        log_level="warning",
        access_log=False,  # it would write down ids
        server_header=False,
        proxy_headers=False,
        http=Bounded,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS + 5,  # the last resort, after the protocol's own
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(app, _Server(config, started, parent), sockets))


def allow_files_for(connections: int) -> int:
    """Have the system let this process open files for so many connections; for how many it does."""
    if sys.platform == "win32":  # knows no such limit
        return connections
    import resource  # noqa: PLC0415  # is not there on Windows

    needed = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in range(needed):  # not when it is infinite, a negative number
        raised = min(needed, hard) if hard >= 0 else needed
        with suppress(OSError, ValueError):  # macOS has further limits
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft not in range(needed):
        return connections
    possible = max(soft - SPARE_FILES, soft // 2)
    _log.warning(
        "This process may open %d files: enough for %d connections, further ones will be refused. For %d connections "
        "raise the limit to %d: `ulimit -Hn %d` as root, `LimitNOFILE=%d` in a unit of systemd, or "
        "`--ulimit nofile=%d` for docker.",
        *(soft, possible, connections, *([needed] * 4)),
    )
    return possible


async def _serve(app: Application, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    async with app.lifespan():
        await server.serve(sockets)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, started: Callable[[], Awaitable[None]], parent: int | None = None
    ) -> None:
        super().__init__(config)
        self._when_started = started
        self._parent = parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there now stays: no collection needs to look at it again, while requests wait
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._parent_gone, self._parent)
        await self._when_started()

    def _parent_gone(self, parent: int) -> None:
        asyncio.get_running_loop().remove_reader(parent)
        self.handle_exit(signal.SIGTERM, None)

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
        """The first signal begins the orderly end; from then on either one kills, until the process has ended.

        A worker is killed by its parent, and by no second signal: systemd sends one to each process, and so does the
        parent.
        """
        self.should_exit = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL if self._parent is None else signal.SIG_IGN)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
