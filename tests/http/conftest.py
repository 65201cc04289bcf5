"""A real server for every test of the HTTP contract: uvicorn on a loopback port, over each kind of store, with a clock
to set.

One server lives as long as a test module; tests keep apart by ids of their own (`new_id`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from itertools import cycle
from typing import Any, Literal, NamedTuple

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chatstate import create_app, create_store
from chatstate.encryption import KeyRing, new_key
from chatstate.http.app import ChatState
from chatstate.http.protocol import HttpProtocol
from tests.conftest import STORE_KINDS, database
from tests.servers.postgres import RunningServers

_SECONDS_TO_ANSWER = 20.0
_OVER_ASGI = " over ASGI"
_BY_TWO = " by two servers"
_RING = KeyRing.parse(new_key())
"""Of the deployment over ASGI, which is encrypted, too: what is asked there is the same."""


class SettableClock:
    """The server's clock: it stands still until a test moves it. `now` is aware and in UTC."""

    def __init__(self) -> None:
        self.now = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, *, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Answer(NamedTuple):
    """An answer as it came over the socket."""

    status: int
    headers: httpx.Headers
    body: bytes

    def json(self) -> Any:
        return httpx.Response(self.status, content=self.body).json()


def raw_request(port: int, request: bytes) -> Answer:
    """Send these very bytes on a new connection and read one answer."""
    method = request.partition(b" ")[0].decode("latin-1")
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS_TO_ANSWER) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection, method=method)
        try:
            response.begin()
            endless = response.getheader("content-type") == "text/event-stream"  # of that, what comes at once
            body = response.read1() if endless and method != "HEAD" else response.read()
            return Answer(response.status, httpx.Headers(response.getheaders()), body)
        finally:
            response.close()


@dataclass
class Server:
    """A running server, or several that take turns. `send` and `raw` change nothing of what they are given; `client` is
    for ordinary requests."""

    apps: Sequence[Any]
    port: int
    clock: SettableClock = field(default_factory=SettableClock)

    @property
    def app(self) -> Any:
        """The application, where there is one."""
        (app,) = self.apps
        return app

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout: float = _SECONDS_TO_ANSWER, **options: Any) -> httpx.Client:
        """An ordinary client. Where there are several servers, each of its requests goes to the next one."""
        limits = httpx.Limits(max_keepalive_connections=0) if len(self.apps) > 1 else httpx.Limits()
        return httpx.Client(base_url=self.base_url, timeout=timeout, limits=limits, **options)

    def raw(self, request: bytes) -> Answer:
        """These very bytes."""
        return raw_request(self.port, request)

    def send(
        self,
        method: str,
        target: str | bytes,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """A request with an unaltered target. Host, and with a body Content-Length and Content-Type, are added unless
        they are given; None leaves a header out."""
        fields: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if body is not None:
            fields |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        fields |= headers or {}
        lines = [f"{name}: {value}".encode("latin-1") for name, value in fields.items() if value is not None]
        target = target.encode("ascii") if isinstance(target, str) else target
        request_line = method.encode() + b" " + target + b" HTTP/1.1"
        return self.raw(b"\r\n".join([request_line, *lines, b"", body or b""]))


class _Uvicorn(uvicorn.Server):
    """Tells when it has started, takes connections that others have accepted, and ends when it is told to, so that
    nobody has to ask again and again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.start_ended = threading.Event()
        self._woken = asyncio.Event()
        self._taking: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self._loop = asyncio.get_running_loop()
            self.start_ended.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which looks every 100 ms whether it shall end."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), 0.1)

    def end(self) -> None:
        """Let it end; from another thread."""
        self.should_exit = True
        with suppress(RuntimeError):  # it has ended by itself, and its loop with it
            self._loop.call_soon_threadsafe(self._woken.set)

    def take(self, connection: socket.socket) -> None:
        """Answer on this connection; from another thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, connection)

    def _take(self, connection: socket.socket) -> None:
        def protocol() -> Any:
            return self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        task = asyncio.ensure_future(self._loop.connect_accepted_socket(protocol, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)


@contextmanager
def _taking_turns(listener: socket.socket, servers: Sequence[_Uvicorn]) -> Iterator[None]:
    """Each server gets the next connection in turn, as from a round-robin proxy that changes no byte."""

    def accept() -> None:
        with suppress(OSError):
            for server in cycle(servers):
                server.take(listener.accept()[0])

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join(_SECONDS_TO_ANSWER)


@contextmanager
def _serving(
    apps: Sequence[Any], clock: SettableClock, lifespan: Literal["on", "off"], asgi: bool, own: type[HttpProtocol]
) -> Iterator[Server]:
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        sockets = [listener] if len(apps) == 1 else []
        servers = [stack.enter_context(_running(app, lifespan, asgi, own, sockets)) for app in apps]
        if len(apps) > 1:
            stack.enter_context(_taking_turns(listener, servers))
        yield Server(apps, listener.getsockname()[1], clock)


@contextmanager
def _running(
    app: Any, lifespan: Literal["on", "off"], asgi: bool, own: type[HttpProtocol], sockets: list[socket.socket]
) -> Iterator[_Uvicorn]:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        lifespan=lifespan,
        http=HttpToolsProtocol if asgi or not isinstance(app, ChatState) else own,
    )
    server = _Uvicorn(config)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        assert server.start_ended.wait(_SECONDS_TO_ANSWER)
        assert server.started
        yield server
    finally:
        server.end()
        thread.join(_SECONDS_TO_ANSWER)
    assert not thread.is_alive()


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`with serve(app) as server:` runs any ASGI application, or a list of them that take turns; `lifespan="off"`
    leaves its lifespan out.

    chatstate runs on its own protocol, as in `chatstate serve`, or on the `protocol` that is given, unless `asgi` is
    set: then on uvicorn's.
    """

    def start(
        app: Any,
        *,
        clock: SettableClock | None = None,
        lifespan: Literal["on", "off"] = "on",
        asgi: bool = False,
        protocol: type[HttpProtocol] = HttpProtocol,
    ) -> AbstractContextManager[Server]:
        apps = [app] if not isinstance(app, list) else app
        return _serving(apps, clock or SettableClock(), lifespan, asgi, protocol)

    return start


@pytest.fixture(
    scope="module", params=["sqlite", *(f"{name}{_BY_TWO}" for name in STORE_KINDS[1:]), f"sqlite{_OVER_ASGI}"]
)
def deployment(request: pytest.FixtureRequest) -> str:
    """Which store; whether two servers of it take turns; and whether any ASGI server could be in the place of our own:
    that one lies encrypted."""
    name: str = request.param
    return name


def _database(deployment: str, folders: pytest.TempPathFactory, servers: RunningServers) -> AbstractContextManager[str]:
    return database(deployment.removesuffix(_OVER_ASGI).removesuffix(_BY_TWO), servers, folders.mktemp("http"))


@pytest.fixture(scope="module")
def store_url(deployment: str, tmp_path_factory: pytest.TempPathFactory, servers: RunningServers) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn; here it lives as long as a module's server."""
    with _database(deployment, tmp_path_factory, servers) as url:
        yield url


@pytest.fixture
def own_url(deployment: str, tmp_path_factory: pytest.TempPathFactory, servers: RunningServers) -> Iterator[str]:
    """The URL of an empty database of the same kind, for a test that starts servers of its own."""
    with _database(deployment, tmp_path_factory, servers) as url:
        yield url


Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def start(deployment: str, serve: Serve) -> Start:
    """`with start(store_url, history=3) as server:` runs chatstate itself, with these settings, and with this clock.

    alone  one server also where there are two: for what each counts for itself, and for tests that look into it
    """

    def start(
        url: str, *, clock: SettableClock | None = None, alone: bool = False, **settings: Any
    ) -> AbstractContextManager[Server]:
        clock = clock or SettableClock()
        asgi = deployment.endswith(_OVER_ASGI)
        count = 2 if deployment.endswith(_BY_TWO) and not alone else 1
        apps = [
            create_app(create_store(url, key_ring=_RING if asgi else None), clock=clock, **settings)
            for _ in range(count)
        ]
        return serve(apps, clock=clock, asgi=asgi)

    return start


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    """chatstate itself, on each store; one server for the tests of a module."""
    with start(store_url) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """An ordinary client of that server; making one takes longer than most tests."""
    with server.client() as client:
        yield client


@pytest.fixture
def new_id() -> str:
    """An id that no other test uses."""
    return f"session_{uuid.uuid4().hex}"
