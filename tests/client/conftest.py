"""Both clients against real servers. A test is written once, awaits every call, and runs with each of them."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatstate import AsyncClient, Client
from chatstate.client import Event
from tests.servers.process import ServerProcess

ANSWER_SECONDS = 20.0

Connect = Callable[..., AbstractAsyncContextManager[Any]]


class Threaded:
    """`Client` with calls that are awaited: each runs in a thread, so that the test's event loop goes on."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(asyncio.to_thread, getattr(self.client, name))

    @asynccontextmanager
    async def edit(self, *given: Any, **more: Any) -> AsyncIterator[Any]:
        edit = self.client.edit(*given, **more)
        state = await asyncio.to_thread(edit.__enter__)
        try:
            yield state
        except BaseException as error:
            if not await asyncio.to_thread(edit.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await asyncio.to_thread(edit.__exit__, None, None, None)

    def watch(self, *given: Any, **more: Any) -> ThreadedWatch:
        return ThreadedWatch(self.client.watch(*given, **more))


class ThreadedWatch:
    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def __aiter__(self) -> ThreadedWatch:
        return self

    async def __anext__(self) -> Event:
        event = await asyncio.to_thread(next, self.watch, None)
        if event is None:
            raise StopAsyncIteration
        return event  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        self.watch.close()


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """`async with connect(base_url, …) as client:` each of the two clients in turn; its pauses are short."""

    @asynccontextmanager
    async def connect(base_url: str, token: Any = None, **options: Any) -> AsyncIterator[Any]:
        if request.param == "AsyncClient":
            options.setdefault("pause", _breathe)
            async with AsyncClient(base_url, token, **options) as client:
                yield client
            return
        options.setdefault("pause", _breathe_in_a_thread)
        with Client(base_url, token, **options) as client:
            yield Threaded(client)

    return connect


async def _breathe(_seconds: float) -> None:
    await asyncio.sleep(0)


def _breathe_in_a_thread(_seconds: float) -> None:
    threading.Event().wait(0.001)


class Pauses(list[float]):
    """What a client wanted to wait; it does not have to."""

    def blocking(self, seconds: float) -> None:
        self.append(seconds)

    async def awaited(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
async def client(connect: Connect, process: ServerProcess) -> AsyncIterator[Any]:
    """Each client, of one server."""
    async with connect(process.base_url) as client:
        yield client


@pytest.fixture(scope="package")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`chatstate serve`, for all tests here that do not stop it."""
    folder = tmp_path_factory.mktemp("client")
    with ServerProcess(f"sqlite:///{folder}/chatstate.db", folder) as running:
        yield running


@pytest.fixture
def own_url(tmp_path: Path) -> str:
    """The store of `own_process`."""
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def own_process(own_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """`chatstate serve`, for a test that stops it."""
    with ServerProcess(own_url, tmp_path) as running:
        yield running


@pytest.fixture
def new_id() -> str:
    """An id that no other test uses, with what paths have to escape."""
    return f"é/{uuid.uuid4().hex}?a=100%25#"


class Scripted(ThreadingHTTPServer):
    """A web server that is not chatstate: it gives the same answer to everything."""

    daemon_threads = True

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.headers, self.body = status, headers, body
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted(status: int, body: bytes = b"", **headers: str) -> Iterator[Scripted]:
    """A server with this one answer; `content_type="text/html"` is the header `content-type`."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    with Scripted(status, fields, body) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(ANSWER_SECONDS)
