"""The settings that bound a state: its size, and whether it must be JSON."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatstate import create_app, create_store
from tests.http.conftest import Serve, Server

PATH = "/chat-state-sessions"


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = create_store(f"sqlite:///{tmp_path_factory.mktemp('limits')}/chatstate.db")
    with serve(create_app(store, max_state_bytes=600, require_json=True)) as running:
        yield running


def save(server: Server, raw_state: bytes) -> tuple[int, str]:
    """The status and, if it was refused, the code."""
    answer = server.send("POST", PATH, b'{"user_session_id": "s", "chat_state": ' + raw_state + b"}")
    return answer.status, answer.json().get("code", "")


@pytest.mark.parametrize(
    "raw_state",
    [
        b'"{}"',
        b'"null"',
        b'"1e400"',
        rb'" [1, 2]\n"',
        b'"12345678901234567890123"',
        rb'"\"\\ud800\""',
        rb'"{\"a\": \"\\u0000\"}"',
        b'{"a": 1}',
        b'"' + b"[" * 128 + b"]" * 128 + b'"',
        b'"' + b"1" * 600 + b'"',
    ],
)
def test_json_is_accepted_where_json_is_required(server: Server, raw_state: bytes) -> None:
    assert save(server, raw_state)[0] in (200, 201)


@pytest.mark.parametrize(
    "raw_state",
    [
        b'""',
        b'"plain text"',
        b'"NaN"',
        b'"{} {}"',
        rb'"{\"a\": 1,}"',
        rb'"\ufeff{}"',
        rb'"\"\\x\""',
        b'"' + b"[" * 129 + b"]" * 129 + b'"',
    ],
)
def test_what_is_not_json_is_refused_where_json_is_required(server: Server, raw_state: bytes) -> None:
    assert save(server, raw_state) == (400, "invalid_request")


def test_the_limit_counts_the_bytes_of_the_state_and_not_of_its_escapes(server: Server) -> None:
    assert save(server, b'"' + b"1" * 600 + b'"')[0] in (200, 201)
    assert save(server, b'"' + b"1" * 601 + b'"') == (413, "too_large")
    assert save(server, '"\\"{}\\""'.format("é" * 299).encode())[0] in (200, 201)
    assert save(server, '"\\"{}\\""'.format("é" * 300).encode()) == (413, "too_large")
    assert save(server, rb'"\"' + rb"\u0031" * 598 + rb'\""')[0] in (200, 201)


def test_the_body_is_bounded_too(server: Server) -> None:
    room = 2 * 600 + 4096
    body = b'{"user_session_id": "s", "chat_state": "{}"}'
    assert server.send("POST", PATH, body.ljust(room)).status in (200, 201)
    assert server.send("POST", PATH, body.ljust(room + 1)).json()["code"] == "too_large"
