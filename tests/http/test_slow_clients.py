"""No client takes a place, memory or an answer from others by being slow, half-open, deaf, or one of too many.

Each server here is in a hurry with one thing only. That its time has passed is told by a connection that was opened
later and did the same as the client that must not be cut off: it has been closed.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from chatstate import create_app, create_store
from chatstate.http.deadlines import Watch
from chatstate.http.messages import Request, Response
from chatstate.http.protocol import MAX_REFUSED, SLICE_BYTES, HttpProtocol
from tests.http.conftest import Serve, Server
from tests.http.event_stream import EventStream, listening
from tests.http.test_protocol import CHUNKED, JSON, SESSIONS, Connection, request, save_body
from tests.servers.process import PROGRAM, ServerProcess

SHORT, LONG, TICK = 0.3, 3600, 0.03
HALF = b"GET /healthz HTTP/1.1\r\nHost: loc"
LOAD = request("GET", f"{SESSIONS}/kept")
LARGE = 24 << 20
"""Bytes: more than the system keeps for a client that does not read."""

Hurried = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def hurried(serve: Serve, tmp_path: Path) -> Hurried:
    """`with hurried(headers=SHORT) as server:` has much time for all the rest."""

    def start(
        *,
        headers: float = LONG,
        body: float = LONG,
        write: float = LONG,
        keep_alive: float = LONG,
        connections: int = 4096,
        respond: Callable[[Any, Request], Any] | None = None,
    ) -> AbstractContextManager[Server]:
        class Protocol(HttpProtocol):
            HEADER_SECONDS, BODY_SECONDS, WRITE_SECONDS, TICK_SECONDS = headers, body, write, TICK
            MAX_CONNECTIONS = connections

            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **named)
                self.timeout_keep_alive = keep_alive  # type: ignore[assignment]

        app = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"), max_state_bytes=LARGE)
        if respond:
            answered = app.respond
            app.respond = lambda request: respond(answered, request)  # type: ignore[method-assign]
        return _with_session(serve(app, protocol=Protocol))

    return start


@contextmanager
def _with_session(serving: AbstractContextManager[Server]) -> Iterator[Server]:
    with serving as server:
        assert server.send("POST", SESSIONS, save_body("kept", "state")).status == 201
        yield server


class Gate:
    """Holds back what comes to `/chat-state-sessions/kept`, and all saves, until it is opened: a slow store."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._opened = threading.Event()
        self.reached = threading.Event()

    async def __call__(self, answered: Callable[[Request], Any], request: Request) -> Response:
        if self.closed.is_set() and request.path.startswith(SESSIONS):
            self.reached.set()
            await asyncio.to_thread(self._opened.wait, 20)
        response: Response = await answered(request)
        return response

    @contextmanager
    def shut(self) -> Iterator[None]:
        self.closed.set()
        try:
            yield
        finally:
            self._opened.set()


def refused(connection: Connection) -> bool:
    """Whether a 408 comes, and then the end."""
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["status"]) == ("request_timeout", 408)
    return connection.closed()


def time_passes(server: Server, sent: bytes) -> None:
    """Until a client that sends this now, and nothing else, has been refused."""
    with Connection(server) as connection:
        connection.socket.sendall(sent)
        assert refused(connection)


def trickle(connection: Connection, piece: bytes) -> None:
    """Send this again and again, until something comes back."""
    with suppress(ConnectionError):
        while not select.select([connection.socket], [], [], TICK)[0]:
            connection.socket.sendall(piece)


# --- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_without_a_request_is_closed_without_a_word(hurried: Hurried, sent: bytes) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(sent)
        assert connection.closed()


@pytest.mark.parametrize("half", [b"G", HALF, HALF + b"alhost\r\n"])
def test_half_sent_headers_are_refused(hurried: Hurried, half: bytes) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(half)
        assert refused(connection)


def test_headers_that_trickle_in_are_refused(hurried: Hurried) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(HALF)
        trickle(connection, b"x")
        assert refused(connection)


def test_empty_lines_do_not_keep_a_new_connection(hurried: Hurried) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        trickle(connection, b"\r\n")
        assert connection.closed()


@pytest.mark.parametrize("target", ["/healthz", "/healthz?over=asgi"])
def test_half_of_a_later_request_is_refused(hurried: Hurried, target: str) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(request("GET", target) + HALF)
        assert connection.answer().status == 200
        assert refused(connection)


def test_the_time_for_headers_is_not_the_one_between_requests(hurried: Hurried) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(LOAD)
        assert connection.answer().status == 200
        time_passes(server, HALF)
        connection.socket.sendall(LOAD)
        assert connection.answer().status == 200


def test_half_a_request_behind_one_that_is_being_answered_waits(hurried: Hurried) -> None:
    gate = Gate()
    with hurried(headers=SHORT, respond=gate) as server, Connection(server) as connection:
        with gate.shut():
            connection.socket.sendall(LOAD + HALF)
            time_passes(server, HALF)
        assert connection.answer().status == 200
        assert refused(connection)


# --- Bodies -----------------------------------------------------------------------------------------------------------

BODY = save_body("half", "never to be seen")
WHOLE_TEXT = request("POST", SESSIONS, b"%x\r\n%b\r\n" % (len(BODY), BODY), JSON, CHUNKED)
HALF_BODIES = {
    "nothing of it": request("POST", SESSIONS, BODY, JSON)[: -len(BODY)],
    "half of it": request("POST", SESSIONS, BODY, JSON)[:-10],
    "all but the end of its chunks": WHOLE_TEXT,
}


@pytest.mark.parametrize("name", HALF_BODIES)
def test_half_a_body_is_refused_and_never_saved(hurried: Hurried, name: str) -> None:
    with hurried(body=SHORT) as server:
        with Connection(server) as connection:
            connection.socket.sendall(HALF_BODIES[name])
            assert refused(connection)
        assert server.send("GET", f"{SESSIONS}/half").status == 404


def test_a_body_that_trickles_in_is_refused_and_never_saved(hurried: Hurried) -> None:
    with hurried(body=SHORT) as server:
        with Connection(server) as connection:
            connection.socket.sendall(request("POST", SESSIONS, b"", JSON, "Content-Length: 1000000"))
            trickle(connection, b" ")
            assert refused(connection)
        assert server.send("GET", "/readyz").status == 200


def test_a_body_has_a_time_of_its_own(hurried: Hurried) -> None:
    with hurried(headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(request("POST", SESSIONS, BODY, JSON)[:-10])
        time_passes(server, HALF)
        connection.socket.sendall(BODY[-10:])
        assert connection.answer().status == 201


@pytest.mark.parametrize("sent", [LOAD, request("POST", SESSIONS, save_body("kept", "x" * 500_000), JSON)])
def test_the_time_that_the_store_takes_does_not_count(hurried: Hurried, sent: bytes) -> None:
    """Also not while we do not read on, because much of a body waits for a handler."""
    gate = Gate()
    with hurried(headers=SHORT, body=SHORT, respond=gate) as server, Connection(server) as connection:
        sender = threading.Thread(target=connection.socket.sendall, args=(sent,))
        with gate.shut():
            sender.start()
            assert gate.reached.wait(20)
            time_passes(server, request("POST", "/healthz", b"", "Content-Length: 1")[:-5])
            time_passes(server, HALF)
        assert connection.answer().status == 200
        sender.join()


def test_the_time_until_we_ask_for_a_body_does_not_count(hurried: Hurried) -> None:
    gate = Gate()
    with hurried(body=SHORT, respond=gate) as server, Connection(server) as connection:
        with gate.shut():
            head = request("POST", SESSIONS, BODY, JSON, "Expect: 100-continue")[: -len(BODY)]
            connection.socket.sendall(head)
            assert gate.reached.wait(20)
            with Connection(server) as later:
                later.socket.sendall(head.replace(b"Expect: 100-continue\r\n", b""))
                assert refused(later)
        assert connection._file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert connection._file.readline() == b"\r\n"
        connection.socket.sendall(BODY)
        assert connection.answer().status == 201


def test_a_body_that_stays_half_after_its_answer_ends_without_a_second_one(hurried: Hurried) -> None:
    with hurried(body=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(request("POST", "/nowhere", b"", "Content-Length: 1000") + b"x")
        assert connection.answer().status == 404
        assert connection.closed()


# --- Between requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/healthz", "/healthz?over=asgi"])
def test_an_idle_connection_is_closed_without_a_word(hurried: Hurried, target: str) -> None:
    with hurried(keep_alive=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(request("GET", target))
        assert connection.answer().status == 200
        assert connection.closed()


def test_only_whole_requests_keep_a_connection(hurried: Hurried) -> None:
    with hurried(keep_alive=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(LOAD)
        assert connection.answer().status == 200
        trickle(connection, b"\r\n")
        assert connection.closed()


def test_a_connection_is_kept_after_a_body_that_nobody_read(hurried: Hurried) -> None:
    with hurried(keep_alive=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(request("POST", "/nowhere", b"xx")[:-1])
        assert connection.answer().status == 404
        connection.socket.sendall(b"x")
        assert connection.closed()


# --- Clients that do not read -----------------------------------------------------------------------------------------


def is_cut_off(connection: Connection | EventStream) -> bool:
    """Whether the server resets the connection, sooner or later."""
    poll = select.poll()
    poll.register(connection.socket, select.POLLERR)  # nobody reads: to be readable is no event
    return bool(poll.poll(20_000))


@pytest.mark.parametrize("fields", [(), ("Connection: close",)])
@pytest.mark.parametrize("target", [f"{SESSIONS}/large", f"{SESSIONS}/large?over=asgi"])
def test_whoever_does_not_take_an_answer_is_cut_off(hurried: Hurried, target: str, fields: tuple[str, ...]) -> None:
    with hurried(write=SHORT) as server:
        assert server.send("POST", SESSIONS, save_body("large", "x" * LARGE)).status == 201
        with Connection(server) as connection:
            connection.socket.sendall(request("GET", target, b"", *fields))
            assert is_cut_off(connection)


def test_a_watcher_who_reads_nothing_is_cut_off_and_an_idle_one_is_not(hurried: Hurried) -> None:
    """All deadlines but the one for taking an answer are for requests, and none of them for a stream that is idle."""
    with (
        hurried(headers=SHORT, body=SHORT, write=SHORT, keep_alive=SHORT) as server,
        listening(server.port, "kept/events") as idle,
        listening(server.port, "large/events") as deaf,
    ):
        assert idle.state() == "state"
        assert server.app._live.count("large") == 1
        while server.app._live.count("large"):
            assert server.send("POST", SESSIONS, save_body("large", "x" * (LARGE >> 3))).status in (200, 201)
        assert is_cut_off(deaf)
        assert server.send("POST", SESSIONS, save_body("kept", "later")).status == 200
        assert idle.state() == "later"


def test_whoever_takes_an_answer_in_time_is_not_cut_off(hurried: Hurried) -> None:
    with hurried(write=SHORT, headers=SHORT) as server, Connection(server) as connection:
        connection.socket.sendall(LOAD)
        time_passes(server, HALF)
        assert connection.answer().status == 200
        connection.socket.sendall(LOAD)
        assert connection.answer().status == 200


@pytest.mark.parametrize("target", [f"{SESSIONS}/behind", f"{SESSIONS}/behind?over=asgi"])
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_asked_behind_an_answer_that_nobody_takes_is_not_done(
    hurried: Hurried, target: str, at_once: bool
) -> None:
    with hurried(write=SHORT) as server:
        for name in ("large", "behind"):
            assert server.send("POST", SESSIONS, save_body(name, "x" * LARGE)).status == 201
        load, delete = request("GET", f"{SESSIONS}/large"), request("DELETE", target)
        with Connection(server) as connection:
            connection.socket.sendall(load + delete if at_once else load)
            if not at_once:
                assert select.select([connection.socket], [], [], 20)[0]
                connection.socket.sendall(delete)
            assert is_cut_off(connection)
        assert server.send("GET", f"{SESSIONS}/behind").status == 200


@pytest.mark.parametrize("target", [f"{SESSIONS}/large", f"{SESSIONS}/large?over=asgi"])
def test_an_answer_is_not_made_before_the_one_before_it_is_taken(hurried: Hurried, target: str) -> None:
    made: list[str] = []

    async def counted(answered: Callable[[Request], Any], request: Request) -> Response:
        made.append(request.path)
        response: Response = await answered(request)
        return response

    with hurried(respond=counted) as server:
        assert server.send("POST", SESSIONS, save_body("large", "x" * LARGE)).status == 201
        with Connection(server) as connection:
            connection.socket.sendall(request("GET", target) * 5)
            assert select.select([connection.socket], [], [], 20)[0]
            for _ in range(20):
                assert server.send("GET", "/healthz").status == 200
            assert made.count(f"{SESSIONS}/large") == 1
            assert {connection.answer().status for _ in range(5)} == {200}


def test_very_many_requests_at_once_are_not_all_taken_in(hurried: Hurried, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []
    start = HttpProtocol._start_cycle

    def counted(self: HttpProtocol) -> None:
        taken.append(self.url)
        start(self)

    monkeypatch.setattr(HttpProtocol, "_start_cycle", counted)
    gate, least = Gate(), request("GET", "/healthz")
    count = 20 * SLICE_BYTES // len(least)
    with hurried(respond=gate) as server, Connection(server) as connection:
        sender = threading.Thread(target=connection.socket.sendall, args=(LOAD + least * count + LOAD,))
        with gate.shut():
            sender.start()
            assert gate.reached.wait(20)
            for _ in range(20):
                assert server.send("GET", "/healthz").status == 200
            assert len(taken) <= SLICE_BYTES // len(least) + 1
        statuses = [connection.answer().json() for _ in range(count + 2)]
        assert statuses == [statuses[0], *[{"message": "alive"}] * count, statuses[0]]
        sender.join()
        connection.socket.sendall(LOAD)
        assert connection.answer().status == 200


@pytest.mark.parametrize("size", [1, SLICE_BYTES, 3 * SLICE_BYTES])
@pytest.mark.parametrize(
    "behind", [LOAD, request("GET", f"{SESSIONS}/kept", b"", "Connection: Upgrade", "Upgrade: h2c")]
)
def test_large_requests_behind_each_other_are_all_answered(hurried: Hurried, size: int, behind: bytes) -> None:
    save = request("POST", SESSIONS, save_body("kept", "x" * size), JSON)
    with hurried() as server, Connection(server) as connection:
        sender = threading.Thread(target=connection.socket.sendall, args=((save + behind) * 20,))
        sender.start()
        for _ in range(40):
            assert connection.answer().json()["chat_state"] == "x" * size
        sender.join()


# --- Clients that send no more ----------------------------------------------------------------------------------------

SAVE = request("POST", SESSIONS, save_body("kept"), JSON)
WHOLE = {
    "in one piece": (LOAD, b"", [200]),
    "over ASGI": (request("GET", f"{SESSIONS}/kept?over=asgi"), b"", [200]),
    "of HTTP/1.0": (f"GET {SESSIONS}/kept HTTP/1.0\r\nHost: localhost\r\n\r\n".encode(), b"", [403]),
    "with a body": (SAVE, b"", [200]),
    "with a body that comes later": (SAVE[:-1000], SAVE[-1000:], [200]),
    "several": (LOAD * 3, b"", [200, 200, 200]),
    "and half of another": (LOAD + HALF, b"", [200]),
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_whoever_sends_no_more_gets_the_answers(hurried: Hurried, name: str, slow: bool) -> None:
    gate = Gate()
    first, second, statuses = WHOLE[name]
    with hurried(respond=gate) as server, Connection(server) as connection, ExitStack() as stack:
        if slow:
            stack.enter_context(gate.shut())
        connection.socket.sendall(first)
        if second:
            server.send("GET", "/healthz")
            connection.socket.sendall(second)
        connection.socket.shutdown(socket.SHUT_WR)
        if slow:
            assert gate.reached.wait(20)
            assert server.send("GET", "/healthz").status == 200
            stack.close()
        assert [connection.answer().status for _ in statuses] == statuses
        assert connection.closed()


@pytest.mark.parametrize("half", [b"", HALF, HALF_BODIES["half of it"], WHOLE_TEXT])
def test_the_end_in_the_middle_of_a_request_is_the_end_at_once_and_no_error(tmp_path: Path, half: bytes) -> None:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=5) as connection:
            connection.sendall(half)
            assert process.answers()
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert process.answers("/readyz")
        assert process.output.rstrip().endswith("Stop with Ctrl+C."), "there is more than the banner"
        assert not process.answers(f"{SESSIONS}/half")


# --- Too many ---------------------------------------------------------------------------------------------------------


def test_a_connection_too_many_is_refused_and_takes_nobodys_place(hurried: Hurried) -> None:
    with hurried(connections=3) as server, ExitStack() as stack:
        present = [stack.enter_context(Connection(server)) for _ in range(3)]
        for connection in present:
            connection.socket.sendall(LOAD)
            assert connection.answer().status == 200
        for sent in (b"", LOAD):
            with Connection(server) as further:
                further.socket.sendall(sent)
                answer = further.answer()
                assert (answer.status, answer.json()["code"]) == (503, "too_many_connections")
                assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
                assert further.closed()
        for connection in present:
            connection.socket.sendall(LOAD)
            assert connection.answer().status == 200


def test_a_place_that_is_free_again_is_given_away(hurried: Hurried) -> None:
    with hurried(connections=1) as server:
        for _ in range(3):
            with Connection(server) as connection:
                connection.socket.sendall(request("GET", "/healthz", b"", "Connection: close"))
                assert connection.answer().status == 200
                assert connection.closed()


def test_of_very_many_at_once_each_is_refused(hurried: Hurried) -> None:
    with hurried(connections=1) as server, ExitStack() as stack:
        first = stack.enter_context(Connection(server))
        first.socket.sendall(LOAD)
        assert first.answer().status == 200
        further = [stack.enter_context(Connection(server)) for _ in range(3 * MAX_REFUSED)]
        assert {connection.answer().status for connection in further} == {503}
        assert all(connection.closed() for connection in further)
        first.socket.sendall(LOAD)
        assert first.answer().status == 200


@contextmanager
def process_with_limits(folder: Path, limits: str) -> Iterator[ServerProcess]:
    program = ("/bin/sh", "-c", f'{limits} && exec "$0" "$@"', *PROGRAM)
    with ServerProcess(f"sqlite:///{folder}/chatstate.db", folder, program=program) as process:
        yield process


@pytest.mark.skipif(sys.platform != "linux", reason="psutil knows the limits of others on Linux only")
def test_the_server_opens_as_many_files_as_its_connections_need(tmp_path: Path) -> None:
    with process_with_limits(tmp_path, "ulimit -S -n 256") as process:
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == 4096 + 200
        assert "ulimit" not in process.output


def test_where_the_system_allows_fewer_files_there_are_fewer_connections(tmp_path: Path) -> None:
    with process_with_limits(tmp_path, "ulimit -n 400") as process, ExitStack() as stack:
        assert "enough for 200 connections" in process.output
        assert "LimitNOFILE=4296" in process.output
        server = Server(None, process.port)
        first = stack.enter_context(Connection(server))
        first.socket.sendall(LOAD)
        assert first.answer().status == 404
        further = [stack.enter_context(Connection(server)) for _ in range(700)]
        for connection in further:
            with suppress(OSError):
                connection.socket.sendall(LOAD)
        # Beyond what fits into the limit at once, the system closes some without a word.
        statuses = [status_or_none(connection) for connection in further]
        assert statuses[:199] == [404] * 199
        assert {*statuses[199:]} - {None} == {503}
        first.socket.sendall(LOAD)
        assert first.answer().status == 404
        stack.close()
        assert process.answers()


def status_or_none(connection: Connection) -> int | None:
    try:
        return connection.answer().status
    except (OSError, ValueError):
        return None


def test_500_half_open_connections_keep_nobody_waiting(tmp_path: Path) -> None:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as process, ExitStack() as stack:
        server = Server(None, process.port)
        half_open = [stack.enter_context(Connection(server)) for _ in range(500)]
        for connection in half_open:
            connection.socket.sendall(HALF)
        for number in range(20):
            assert server.send("POST", SESSIONS, save_body(f"other-{number}")).status == 201
            assert server.send("GET", f"{SESSIONS}/other-{number}").status == 200
        for connection in half_open:  # none of them was given up for the others
            connection.socket.sendall(b"alhost\r\n\r\n")
        assert {connection.answer().status for connection in half_open} == {200}


# --- Who it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("target", [f"{SESSIONS}/kept", f"{SESSIONS}/kept?over=asgi"])
def test_a_request_knows_the_address_of_its_client(serve: Serve, tmp_path: Path, target: str, asgi: bool) -> None:
    app = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"))
    clients, answered = [], app.respond

    async def seen(request: Request) -> Response:
        clients.append(request.client)
        return await answered(request)

    app.respond = seen  # type: ignore[method-assign]
    with serve(app, asgi=asgi) as server:
        server.send("GET", target)
    assert clients == ["127.0.0.1"]


# --- How time is counted ----------------------------------------------------------------------------------------------


class SettableLoop:
    """The time of an event loop, which stands still until the one timer that was set is called."""

    def __init__(self) -> None:
        self.now, self.due = 0.0, 0.0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.due, self.callback = when, callback

    def go_on(self, late: float) -> None:
        self.now = self.due + late
        self.callback()


class Checked:
    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


def test_time_in_which_the_server_stood_still_does_not_count() -> None:
    loop, connection = SettableLoop(), Checked()
    watch = Watch(loop, 1.0)  # type: ignore[arg-type]
    watch.add(connection)
    for late in (0.0, 0.9, 1.0, 60.0, 0.1):
        loop.go_on(late)
    assert watch.ticks == connection.checks == 3


def test_no_deadline_passes_early() -> None:
    watch = Watch(SettableLoop(), 0.5)  # type: ignore[arg-type]
    watch.ticks = 7  # what happened in the third tick may have happened at its end
    assert watch.passed(3, 1.5)
    assert not watch.passed(4, 1.5)
