"""A request is answered in the same way whether it arrives in one piece or in many, alone or with others behind it.

In one piece it goes to the application directly, else over ASGI; `long_ways` counts the latter, so that each test here
knows which way it has tested.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from chatstate import create_app, create_store
from chatstate.http.messages import Response
from chatstate.http.protocol import HttpProtocol
from tests.http.conftest import Answer, Serve, Server, SettableClock

SESSIONS = "/chat-state-sessions"
STATE = json.dumps({"messages": ["Grüße 😀", 'quo"ted'], "filler": "x" * 3000})


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = create_store(f"sqlite:///{tmp_path_factory.mktemp('protocol')}/chatstate.db")
    clock = SettableClock()  # times of which one in a thousand is three digits shorter would make answers differ
    with serve(create_app(store, clock=clock), clock=clock) as running:
        saved = running.send("POST", SESSIONS, save_body("kept"))
        assert saved.status == 201
        yield running


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The targets of the requests that went over ASGI."""
    targets: list[bytes] = []
    start = HttpProtocol._start_cycle

    def counted(self: HttpProtocol) -> None:
        targets.append(self.url)
        start(self)

    monkeypatch.setattr(HttpProtocol, "_start_cycle", counted)
    return targets


def save_body(user_session_id: str, state: str = STATE) -> bytes:
    return json.dumps({"user_session_id": user_session_id, "chat_state": state}).encode()


def request(method: str, target: str, body: bytes = b"", *fields: str) -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    if body and "Transfer-Encoding: chunked" not in fields:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
REQUESTS = {
    "load": (200, request("GET", f"{SESSIONS}/kept")),
    "load with its length only": (200, request("HEAD", f"{SESSIONS}/kept")),
    "load of what is absent": (404, request("GET", f"{SESSIONS}/absent")),
    "load of a bad id": (400, request("GET", f"{SESSIONS}/%zz")),
    "load for a page": (200, request("GET", f"{SESSIONS}/kept", b"", "Origin: http://localhost:5173")),
    "load for a foreign page": (403, request("GET", f"{SESSIONS}/kept", b"", "Origin: http://evil.test")),
    "question before": (204, request("OPTIONS", SESSIONS, b"", "Access-Control-Request-Method: PUT")),
    "save": (200, request("POST", SESSIONS, save_body("kept"), JSON)),
    "save in chunks": (200, request("POST", SESSIONS, chunked(save_body("kept")), JSON, CHUNKED)),
    "save of no JSON": (400, request("POST", SESSIONS, b"{", JSON)),
    "save with a failed condition": (412, request("POST", SESSIONS, save_body("kept"), JSON, "If-None-Match: *")),
    "save of no known type": (415, request("POST", SESSIONS, save_body("kept"))),
    "save of too much": (413, request("PUT", f"{SESSIONS}/kept", b"x" * (3 << 20), JSON)),
    "no such method": (405, request("PATCH", SESSIONS, b"{}", JSON)),
    "no such path": (404, request("GET", "/nothing")),
    "query": (200, request("GET", f"{SESSIONS}/kept?x=y")),
    "whole URL": (200, request("GET", f"http://localhost{SESSIONS}/kept")),
    "last of its connection": (200, request("GET", f"{SESSIONS}/kept", b"", "Connection: close")),
    "body that nobody reads": (200, request("GET", f"{SESSIONS}/kept", b"x" * 100)),
}


class Connection:
    """A connection that answers are read from one after the other."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.socket.close()

    def makefile(self, _mode: str) -> Any:  # what HTTPResponse asks of a socket: here always the same buffer
        return _Kept(self._file)

    def answer(self, method: str = "GET") -> Answer:
        response = HTTPResponse(self, method=method)  # type: ignore[arg-type]
        response.begin()
        return Answer(response.status, response.headers, response.read())  # type: ignore[arg-type]

    def closed(self) -> bool:
        return self._file.read(1) == b""


class _Kept:
    """A file that stays open when the response that was read from it is closed."""

    def __init__(self, file: Any) -> None:
        self.readline, self.read, self.readinto = file.readline, file.read, file.readinto

    def close(self) -> None:
        pass

    flush = close


def told(answer: Answer) -> tuple[int, dict[str, str], Any]:
    """What does not change from one save to the next."""
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in ("date", "etag")}
    body = json.loads(answer.body) if answer.body else None
    for changing in ("updated_at", "last_activity", "version"):
        if isinstance(body, dict):
            body.pop(changing, None)
    return answer.status, headers, body


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_in_pieces_is_answered_as_a_whole_one(server: Server, name: str, long_ways: list[bytes]) -> None:
    status, sent = REQUESTS[name]
    method = sent.split()[0].decode()
    head, _, body = sent.partition(b"\r\n\r\n")
    answers = []
    for pieces in (
        [sent],
        [head + b"\r\n\r\n", body],
        [head[:20], head[20:] + b"\r\n\r\n" + body[:1], body[1:-1], body[-1:]],
    ):
        with Connection(server) as connection:
            for piece in filter(None, pieces):
                try:
                    connection.socket.sendall(piece)
                    # A round trip, so that the pieces arrive one by one.
                    server.send("GET", "/healthz")
                except ConnectionError:
                    assert status == 413  # it was refused before all of it was sent
            answers.append(told(connection.answer(method)))
    assert answers[0][0] == status
    assert answers == [answers[0]] * 3
    target = sent.split()[1]
    if name in ("load", "save", "save in chunks", "no such path"):
        in_pieces = 2 if body else 0
        assert long_ways.count(target) == in_pieces


def test_a_request_byte_by_byte(server: Server) -> None:
    _, sent = REQUESTS["save in chunks"]
    with Connection(server) as connection:
        for byte in sent[:400]:
            connection.socket.sendall(bytes([byte]))
        connection.socket.sendall(sent[400:])
        assert connection.answer().status == 200


def test_answers_come_in_the_order_of_their_requests(server: Server, long_ways: list[bytes]) -> None:
    with Connection(server) as connection:
        saves = [request("POST", SESSIONS, save_body("piped", f"state {number}"), JSON) for number in range(30)]
        loads = [request("GET", f"{SESSIONS}/piped") for _ in saves]
        connection.socket.sendall(b"".join(save + load for save, load in zip(saves, loads, strict=True)))
        for number in range(30):
            saved, loaded = connection.answer(), connection.answer()
            assert saved.json()["chat_state"] == loaded.json()["chat_state"] == f"state {number}"
    assert len(long_ways) == 59, "all but the first found another one in their way"


def test_a_connection_goes_on_after_both_ways(server: Server, long_ways: list[bytes]) -> None:
    _, sent = REQUESTS["save"]
    with Connection(server) as connection:
        for _ in range(10):
            connection.socket.sendall(sent)
            assert connection.answer().status == 200
            connection.socket.sendall(sent[:300])
            server.send("GET", "/healthz")
            connection.socket.sendall(sent[300:])
            assert connection.answer().status == 200
    assert len(long_ways) == 10


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", False),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", True),
        (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", True),
    ],
)
def test_a_connection_is_kept_or_closed_as_the_client_asks(server: Server, head: bytes, closes: bool) -> None:
    with Connection(server) as connection:
        connection.socket.sendall(head)
        assert (connection.answer().headers.get("connection") == "close") == closes
        if closes:
            assert connection.closed()
        else:
            connection.socket.sendall(head)
            assert connection.answer().status == 200


def test_a_body_that_breaks_off_its_framing_is_refused_once(server: Server) -> None:
    with Connection(server) as connection:
        connection.socket.sendall(request("POST", SESSIONS, b"zz\r\nx\r\n0\r\n\r\n", JSON, CHUNKED))
        assert connection.answer().status == 400
        assert connection.closed()


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"


def test_a_client_that_asks_for_http_2_is_served_with_http_1(server: Server) -> None:
    """As Java's HttpClient and `curl --http2` do, also for saves."""
    with Connection(server) as connection:
        for _ in range(3):
            connection.socket.sendall(request("POST", SESSIONS, save_body("kept"), JSON, H2C))
            assert connection.answer().status == 200
        connection.socket.sendall(request("GET", f"{SESSIONS}/kept", b"", H2C))
        assert connection.answer().json()["chat_state"] == STATE


@pytest.mark.parametrize("at_once", [True, False])
def test_the_body_of_an_upgrade_is_not_taken_for_a_request(server: Server, at_once: bool) -> None:
    server.send("POST", SESSIONS, save_body("victim"))
    smuggled = request("DELETE", f"{SESSIONS}/victim")
    sent = request("POST", "/healthz", smuggled, H2C)
    with Connection(server) as connection:
        connection.socket.sendall(sent if at_once else sent[: -len(smuggled)])
        if not at_once:
            server.send("GET", "/healthz")
            connection.socket.sendall(smuggled)
        assert connection.answer().status == 405
        connection.socket.sendall(request("GET", f"{SESSIONS}/victim"))
        assert connection.answer().status == 200


def test_connect_is_refused(server: Server) -> None:
    assert server.raw(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 400


def test_a_deep_pipeline_is_no_large_header(server: Server) -> None:
    asked = request("GET", "/healthz", b"", "X: " + "x" * 2000) * 400
    with Connection(server) as connection:
        sender = threading.Thread(target=connection.socket.sendall, args=(asked,))
        sender.start()
        assert {connection.answer().status for _ in range(400)} == {200}
        sender.join()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("trailer", "fields"),
    [("If-None-Match: *", [JSON]), ("Content-Type: text/plain", [JSON]), ("Host: evil.test", [JSON])],
)
def test_trailers_are_not_headers(server: Server, trailer: str, fields: list[str], in_pieces: bool) -> None:
    framed = chunked(save_body("kept"))[:-2]
    sent = request("POST", SESSIONS, framed, *fields, CHUNKED)
    with Connection(server) as connection:
        connection.socket.sendall(sent if in_pieces else sent + f"{trailer}\r\n\r\n".encode())
        if in_pieces:
            server.send("GET", "/healthz")
            connection.socket.sendall(f"{trailer}\r\n\r\n".encode())
        assert connection.answer().status == 200


def test_a_trailer_cannot_name_the_host(server: Server) -> None:
    framed = chunked(save_body("kept"))[:-2] + b"Host: localhost\r\n\r\n"
    head = f"POST {SESSIONS} HTTP/1.1\r\n{JSON}\r\n{CHUNKED}\r\n\r\n"
    assert server.raw(head.encode() + framed).status == 403


def test_a_preflight_with_a_tab_is_answered(server: Server) -> None:
    asked = "Access-Control-Request-Headers: content-type,\tif-match"
    with Connection(server) as connection:
        connection.socket.sendall(request("OPTIONS", SESSIONS, b"", "Access-Control-Request-Method: PUT", asked))
        assert connection.answer("OPTIONS").status == 204


def test_whoever_does_not_read_gets_everything_in_the_end(server: Server) -> None:
    server.send("POST", SESSIONS, save_body("large", "x" * 500_000))
    with Connection(server) as connection:
        sender = threading.Thread(target=connection.socket.sendall, args=(request("GET", f"{SESSIONS}/large") * 40,))
        sender.start()
        assert server.send("GET", "/healthz").status == 200
        assert {len(connection.answer().json()["chat_state"]) for _ in range(40)} == {500_000}
        sender.join()


def test_whoever_hangs_up_harms_nobody(server: Server) -> None:
    for number in range(50):
        with Connection(server) as connection:
            connection.socket.sendall(request("POST", SESSIONS, save_body(f"gone-{number}"), JSON))
    assert server.send("GET", "/readyz").status == 200
    with Connection(server) as connection:
        connection.socket.sendall(request("GET", f"{SESSIONS}/kept"))
        assert connection.answer().status == 200


def test_a_header_field_cannot_end_its_line() -> None:
    with pytest.raises(ValueError, match="control characters"):
        Response(headers={"location": "/a\r\nset-cookie: x"}).head()
