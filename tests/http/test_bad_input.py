"""docs/reference/bad-input.md is the test: every row of its tables is sent to a real server, on every store."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, quote_from_bytes

import pytest
from msgspec import json

from tests.http.conftest import Answer, Server, Start
from tests.http.credentials import ACCOUNT, echo, signed

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "bad-input.md"
SESSIONS = "/chat-state-sessions"
SEED = random.randrange(1 << 32)

# --- The page's notation ----------------------------------------------------------------------------------------------

_CODE = re.compile(r"``|`([^`]*)`")
_NOTATION = re.compile(r'<(?:"((?:<[0-9A-F ]+>|\\?[^<])+?)" \* (\d+)|random \* (\d+)|([0-9A-F]{2}(?: [0-9A-F]{2})*))>')
_HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]*):\s*(.*)", re.DOTALL)
_SIGNED = "<signed>"


class Row(NamedTuple):
    """One row: `given` is what stands as code in the second column, `expected` in the last (None: a dash)."""

    line: int
    column: str
    what: str
    given: list[str]
    status: int
    expected: str | None

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def as_bytes(notation: str) -> bytes:
    """What the notation of the page stands for."""
    parts, end = [], 0
    for match in _NOTATION.finditer(notation):
        parts += [notation[end : match.start()].encode(), _expand(match)]
        end = match.end()
    return b"".join([*parts, notation[end:].encode()])


def _expand(match: re.Match[str]) -> bytes:
    text, times, random_bytes, hexadecimal = match.groups()
    if text:
        return as_bytes(text if "<" in text else text.replace(r"\"", '"')) * int(times)
    if random_bytes:
        return quote_from_bytes(random.Random(SEED).randbytes(int(random_bytes)), safe="").encode()
    return bytes.fromhex(hexadecimal)


def _rows() -> Iterator[Row]:
    column = ""
    for number, text in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in text.strip("|").split(" | ")] if text.startswith("| ") else []
        if len(cells) == 4 and cells[0] == "What":
            column = cells[1].strip("`")
        elif len(cells) == 4:
            given, expected = _CODE.findall(cells[1]), _CODE.findall(cells[3])
            yield Row(number, column, cells[0], given, int(cells[2]), expected[0] if expected else None)


ROWS = list(_rows())
COLUMNS = {
    "Body": 40,
    "chat_state": 60,
    "last_activity": 20,
    "user_session_id": 25,
    "Id in the path": 80,
    "Request": 200,
}


def rows(*columns: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [row for row in ROWS if row.column in columns], ids=str)


def test_the_tables_were_found() -> None:
    assert {row.column for row in ROWS} == set(COLUMNS)
    for column, fewest in COLUMNS.items():
        assert sum(row.column == column for row in ROWS) >= fewest, column


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("a<FF 00>b", b"a\xff\x00b"),
        ('<"ab" * 3>', b"ababab"),
        ('"<"[" * 2>"', b'"[["'),
        (r'<"{\"a\":" * 2>', b'{"a":{"a":'),
        ('<"<0A>" * 2>', b"\n\n"),
        (r'"\u0000"', rb'"\u0000"'),
        ("é", b"\xc3\xa9"),
    ],
)
def test_the_notation(notation: str, expected: bytes) -> None:
    assert as_bytes(notation) == expected


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    """With a bot, and a number on WhatsApp."""
    with start(store_url, bot=echo, whatsapp=ACCOUNT) as running:
        yield running


# --- What every row shares --------------------------------------------------------------------------------------------


def save(server: Server, user_session_id: str, chat_state: str) -> Answer:
    body = json.encode({"user_session_id": user_session_id, "chat_state": chat_state})
    answer = server.send("POST", SESSIONS, body)
    assert answer.status in (200, 201)
    return answer


def load(server: Server, segment: bytes | str) -> bytes:
    """The state, in UTF-8."""
    answer = server.send("GET", path(segment))
    assert answer.status == 200, answer
    return str(answer.json()["chat_state"]).encode()


def path(segment: bytes | str) -> bytes:
    return f"{SESSIONS}/".encode() + (segment.encode() if isinstance(segment, str) else segment)


WITH_ERRORS = ("invalid_request", "invalid_precondition", "invalid_patch")


def assert_refused(row: Row, answer: Answer) -> None:
    """With the row's status and code; by the HTTP parser where the row has a dash."""
    assert answer.status == row.status, (SEED, answer)
    if row.expected is None:
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["connection"] == "close"
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == (row.expected, row.status)
    assert (problem["code"] in WITH_ERRORS) == ("errors" in problem)


@pytest.fixture
def s1(server: Server) -> str:
    save(server, "s1", "old")
    return "s1"


# --- The rows ---------------------------------------------------------------------------------------------------------


def body_of(row: Row) -> bytes:
    value = as_bytes(row.given[0])
    return {
        "Body": value,
        "chat_state": b'{"user_session_id": "s1", "chat_state": ' + value + b"}",
        "last_activity": b'{"user_session_id": "s1", "chat_state": "new", "last_activity": ' + value + b"}",
        "user_session_id": b'{"user_session_id": ' + value + b', "chat_state": "new"}',
    }[row.column]


@rows("Body", "chat_state")
def test_a_body_and_the_state_in_it(server: Server, s1: str, row: Row) -> None:
    answer = server.send("POST", SESSIONS, body_of(row))
    if row.status < 400:
        assert answer.status == row.status, answer.body[:500]
        assert load(server, s1) == as_bytes(row.expected or "")
        assert answer.json()["chat_state"].encode() == as_bytes(row.expected or "")
    else:
        assert_refused(row, answer)
        assert load(server, s1) == b"old"


@rows("last_activity")
def test_a_time(server: Server, s1: str, row: Row) -> None:
    answer = server.send("POST", SESSIONS, body_of(row))
    if row.status < 400:
        assert answer.status == row.status, answer
        loaded = server.send("GET", path(s1)).json()
        assert loaded["last_activity"] == answer.json()["last_activity"] == row.expected
    else:
        assert_refused(row, answer)
        assert answer.json()["errors"][0]["member"] == "last_activity"
        assert load(server, s1) == b"old"


@rows("user_session_id")
def test_an_id_in_a_body(server: Server, row: Row) -> None:
    answer = server.send("POST", SESSIONS, body_of(row))
    if row.status >= 400:
        assert_refused(row, answer)
        return
    assert answer.status == row.status, answer
    assert answer.json()["user_session_id"].encode() == as_bytes(row.expected or "")
    location = answer.headers["location"]
    assert server.send("GET", location).json()["chat_state"] == "new"
    assert server.send("DELETE", location).status == 200


@rows("Id in the path")
def test_an_id_in_a_path(server: Server, row: Row) -> None:
    segment = as_bytes(row.given[0])
    if row.status >= 400:
        for method, body in (("GET", None), ("PUT", b'{"chat_state": "new"}'), ("DELETE", None)):
            assert_refused(row, server.send(method, path(segment), body))
        return
    meaning = as_bytes(row.expected or "").decode()
    assert save(server, meaning, "old").status == 201, "the row before it has left its session behind"
    assert load(server, segment) == b"old"
    changed = server.send("PUT", path(segment), b'{"chat_state": "new"}')
    assert (changed.status, changed.json()["user_session_id"]) == (row.status, meaning)
    assert server.send("DELETE", path(segment)).status == 200
    assert server.send("GET", path(quote(meaning, safe=""))).status == 404


def whole_request(row: Row) -> tuple[str, bytes, bytes | None, dict[str, str | None]]:
    """Method, target, body and headers."""
    line, *rest = (as_bytes(given) for given in row.given)
    headers: dict[str, str | None] = {}
    body: bytes | None = None
    for part in rest:
        header = _HEADER.fullmatch(part)
        if header:
            headers[header[1].decode()] = header[2].decode("latin-1") or None
        else:
            body = part
    right = signed(body or b"")["X-Hub-Signature-256"]
    headers = {name: right if value == _SIGNED else value for name, value in headers.items()}
    if headers.get("Transfer-Encoding") == "chunked" and body is not None:
        headers.setdefault("Content-Length", None)
        body = chunked(body)
    method, _, target = line.partition(b" ")
    return method.decode(), target, body, headers


def chunked(body: bytes) -> bytes:
    size = 1 << 16
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@rows("Request")
def test_a_whole_request(server: Server, s1: str, row: Row) -> None:
    answer = server.send(*whole_request(row))
    if row.status < 400:
        assert answer.status == row.status, answer
        assert load(server, s1) == as_bytes(row.expected or "")
    else:
        assert_refused(row, answer)
        assert load(server, s1) == b"old"


# --- What holds for all rows together ---------------------------------------------------------------------------------


def test_no_two_different_ids_share_a_row(server: Server) -> None:
    """Write all, change all through the path, then read all back."""
    accepted = [row for row in ROWS if row.column in ("user_session_id", "Id in the path") and row.status < 400]
    meanings = {as_bytes(row.expected or "").decode() for row in accepted}
    session_ids = {save(server, meaning, "first").json()["session_id"] for meaning in meanings}
    assert len(session_ids) == len(meanings)
    for meaning in meanings:
        body = json.encode({"chat_state": f"state of {meaning}"})
        assert server.send("PUT", path(quote(meaning, safe="")), body).status == 200
    for row in accepted:
        meaning = as_bytes(row.expected or "").decode()
        segment = as_bytes(row.given[0]) if row.column == "Id in the path" else quote(meaning, safe="")
        assert load(server, segment) == f"state of {meaning}".encode(), row
    for meaning in meanings:
        server.send("DELETE", path(quote(meaning, safe="")))


def test_no_answer_is_a_server_error(server: Server, s1: str) -> None:
    """Also not where a row's input is sent in another place than the row says."""
    for row in ROWS:
        assert row.status < 500, row
        for answer in misplaced(server, row):
            assert answer.status < 500, (SEED, row, answer)
            assert answer.headers.get("content-type") != "text/html"  # an answer to OPTIONS has none
    assert server.send("GET", "/readyz").status == 200


def misplaced(server: Server, row: Row) -> Iterator[Answer]:
    """A body sent with PUT and in place of the state; a value as a precondition; an id below other methods."""
    if row.column == "Request":
        return
    if row.column == "Id in the path":
        segment = as_bytes(row.given[0])
        for method in ("HEAD", "PATCH", "OPTIONS", "POST"):
            yield server.send(method, path(segment))
        return
    value = as_bytes(row.given[0])
    yield server.send("PUT", path("s1"), body_of(row))
    yield server.send("PUT", path("s1"), value)
    yield server.send("PUT", path("s1"), b'{"last_activity": ' + value + b"}")


def test_a_body_without_end_is_refused_at_the_limit(server: Server, s1: str) -> None:
    head = f"PUT {SESSIONS}/s1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    beginning = chunked(b"{" + b" " * 2_101_248).removesuffix(b"0\r\n\r\n")
    answer = server.raw(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + beginning)
    assert (answer.status, answer.json()["code"]) == (413, "too_large")
    assert load(server, s1) == b"old"


def test_a_body_that_ends_too_early_is_not_saved(server: Server, s1: str) -> None:
    body = b'{"chat_state": "new"}'
    head = f"PUT {SESSIONS}/s1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body) + 1, body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1 << 16)  # until the server has seen the end
    assert load(server, s1) == b"old"
