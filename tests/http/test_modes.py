"""From open to keyed while the server runs, and that nobody without a credential makes it read a body. Over sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatstate.http.api import Endpoint
from chatstate.http.routes import ENDPOINTS, Routes
from chatstate.keys import Keys
from chatstate.model import utc_now
from tests.http.conftest import Server, SettableClock, Start
from tests.http.credentials import UNLIMITED, bearer, beside, key_id_of, make_key
from tests.servers.postgres import poll_until
from tests.servers.process import ServerProcess

SESSIONS = "/chat-state-sessions"
NOTICED_WITHIN_SECONDS = 5.0


def test_a_server_that_runs_notices_its_first_key_and_that_it_is_revoked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    with ServerProcess(url, tmp_path) as server, httpx.Client(base_url=server.base_url) as client:

        def status(fields: dict[str, str]) -> int:
            return client.get(f"{SESSIONS}/a", headers=fields).status_code

        assert status({}) == 404
        key = asyncio.run(make_key(url, utc_now()))
        poll_until(lambda: status({}) == 401, NOTICED_WITHIN_SECONDS)
        assert (status({}), status(bearer(key))) == (401, 404)
        token = client.post("/tokens", json={"user_session_id": "a"}, headers=bearer(key)).json()["token"]
        assert status(bearer(token)) == 404
        asyncio.run(beside(url, lambda store: Keys(store).revoke(key_id_of(key), utc_now())))
        poll_until(lambda: status(bearer(key)) == 401, NOTICED_WITHIN_SECONDS)
        assert (status({}), status(bearer(key)), status(bearer(token))) == (401, 401, 401)
        server.terminate()
        server.restart()
        assert httpx.get(f"{server.base_url}{SESSIONS}/a").status_code == 401, "a revoked key keeps it closed"


# --- Before the body --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(start: Start, store_url: str) -> Iterator[Server]:
    clock = SettableClock()
    asyncio.run(make_key(store_url, clock.now, expires_at=clock.now + timedelta(days=1)))
    with start(store_url, clock=clock, rates=UNLIMITED) as server:
        yield server


def first_answer(server: Server, head: str) -> bytes:
    """What comes back when this head has been sent, and nothing of the body that it announces."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        received = b""
        while b"}" not in received:
            piece = connection.recv(1 << 16)
            assert piece, received
            received += piece
        return received


@pytest.mark.parametrize("authorization", ["", "\nAuthorization: Bearer x", "\nAuthorization: Basic eDp5"])
@pytest.mark.parametrize(
    "fields",
    [
        "Content-Length: 10\nExpect: 100-continue",
        "Content-Length: 10",
        "Content-Length: 10000000000",
        "Content-Length: 10000000000\nExpect: 100-continue",
        "Transfer-Encoding: chunked",
    ],
)
@pytest.mark.parametrize("route", [f"POST {SESSIONS}", f"PATCH {SESSIONS}/a", "POST /tokens", "POST /chat-sessions"])
def test_the_refusal_comes_before_the_body(keyed: Server, route: str, fields: str, authorization: str) -> None:
    head = f"{route} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n{fields}{authorization}"
    answer = first_answer(keyed, head)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"unauthorized" in answer
    assert b"100 Continue" not in answer


def test_a_route_that_does_not_declare_its_credential_does_not_start() -> None:
    declared = {name: getattr(ENDPOINTS[0], name) for name in Endpoint.__struct_fields__}
    del declared["credential"]
    with pytest.raises(TypeError, match="credential"):
        Endpoint(**declared)
    api: Any = None  # nothing is asked yet
    with pytest.raises(TypeError, match="does not declare which credential it wants"):
        Routes(api, [Endpoint(**declared, credential=None)])
