"""What the server itself decides, before the application sees a request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from chatstate.http.protocol import HEADER_BYTES
from tests.http.conftest import raw_request
from tests.servers.process import ServerProcess


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(f"sqlite:///{folder}/chatstate.db", folder) as running:
        yield running


def get(headers: bytes) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n"


def test_ordinary_headers_are_accepted(process: ServerProcess) -> None:
    assert raw_request(process.port, get(b"X: " + b"x" * 8000 + b"\r\n")).status == 200


@pytest.mark.parametrize("line", [b"x", b"X: y\r\n"], ids=["one long header", "many headers"])
def test_headers_without_end_are_refused_before_they_fill_the_memory(process: ServerProcess, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(get(b"")[:-2] + (b"X: " if line == b"x" else b""))
        sent = 0
        try:
            while sent < 100 * HEADER_BYTES:
                sent += connection.send(line * 1000)
        except OSError:
            pass
    assert sent < 100 * HEADER_BYTES


def test_the_refusal_is_a_problem_document(process: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(get(b"")[:-2] + b"X: " + b"x" * (HEADER_BYTES + 1))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert (json.loads(body)["status"], json.loads(body)["code"]) == (431, "headers_too_large")


def test_many_requests_on_one_connection_are_not_many_headers(process: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        for _ in range(20):
            connection.sendall(get(b"X: " + b"x" * 8000 + b"\r\n"))
            answer = b""
            while not answer.endswith(b'{"message":"alive"}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
