"""chatstate inside another application: mounted, with its lifespan run by the one around it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from chatstate import create_app, create_store
from tests.http.conftest import Serve, Server

README = Path(__file__).parents[2] / "README.md"
SESSIONS = "/chat-state-sessions"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqlite:///chatstate.db` is a file in the current folder."""
    monkeypatch.chdir(tmp_path)


def documented_application() -> FastAPI:
    """The five lines of the README."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "FastAPI" in block]
    names: dict[str, Any] = {}
    exec(lines, names)
    app: FastAPI = names["app"]
    return app


def save(server: Server, prefix: str, user_session_id: str) -> str:
    """The Location of the new session."""
    body = f'{{"user_session_id": "{user_session_id}", "chat_state": "state of {user_session_id}"}}'.encode()
    created = server.send("POST", f"{prefix}{SESSIONS}", body)
    assert created.status == 201
    assert created.json()["user_session_id"] == user_session_id
    return created.headers["location"]


ODD_IDS = [
    "session_12345",
    "a/b",
    "a%2Fb",
    "/",
    "%",
    "//bot/",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "a+b;c",
    "bot",
    "?x#y",
]


@pytest.mark.parametrize("user_session_id", ODD_IDS)
def test_in_fastapi(serve: Serve, user_session_id: str) -> None:
    with serve(documented_application()) as server:
        location = save(server, "/bot", user_session_id)
        assert location == f"/bot{SESSIONS}/{quote(user_session_id, safe='')}"
        assert server.send("GET", location).json()["chat_state"] == f"state of {user_session_id}"
        assert server.send("PUT", location, b'{"chat_state": "b"}').json()["user_session_id"] == user_session_id
        assert server.send("DELETE", location).status == 200
        assert server.send("GET", location).json()["code"] == "session_not_found"


def test_different_ids_stay_different_below_a_mount(serve: Serve) -> None:
    with serve(documented_application()) as server:
        locations = {user_session_id: save(server, "/bot", user_session_id) for user_session_id in ODD_IDS}
        assert len(set(locations.values())) == len(ODD_IDS)
        for user_session_id, location in locations.items():
            assert server.send("GET", location).json()["chat_state"] == f"state of {user_session_id}"


@pytest.mark.parametrize("segment", ["%zz", "%FF", "..", "%2e%2e", "%00"])
def test_bad_ids_are_refused_below_a_mount_too(serve: Serve, segment: str) -> None:
    with serve(documented_application()) as server:
        refused = server.send("GET", f"/bot{SESSIONS}/{segment}")
        assert (refused.status, refused.json()["code"]) == (400, "invalid_request")


def test_the_application_around_it_keeps_its_own_routes(serve: Serve) -> None:
    app = documented_application()

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    with serve(app) as server:
        assert server.send("GET", "/hello").json() == "hello"
        assert server.send("GET", SESSIONS).status == 404
        assert server.send("GET", "/bot/hello").json()["code"] == "not_found"
        assert server.send("GET", "/bot/healthz").status == 200


@pytest.mark.parametrize("prefix", ["/bot", "/a/b", "/caf\u00e9", "/with blank"])
def test_in_starlette(serve: Serve, prefix: str) -> None:
    chatstate = create_app(create_store("sqlite:///chatstate.db"))
    app = Starlette(routes=[Mount(prefix, chatstate)], lifespan=chatstate.lifespan)
    with serve(app) as server:
        location = save(server, quote(prefix), "a/b")
        assert location == f"{quote(prefix)}{SESSIONS}/a%2Fb"
        assert server.send("GET", location).json()["chat_state"] == "state of a/b"


@pytest.mark.parametrize("path", ["/bot", "/api/bot"])
def test_behind_a_proxy_that_may_have_taken_its_prefix_off(serve: Serve, path: str) -> None:
    chatstate = create_app(create_store("sqlite:///chatstate.db"))
    app = FastAPI(lifespan=chatstate.lifespan)
    app.mount("/bot", chatstate)

    async def told_of_the_prefix(scope: Any, receive: Any, send: Any) -> None:  # as servers do with --root-path
        await app({**scope, "root_path": "/api"} if scope["type"] == "http" else scope, receive, send)

    with serve(told_of_the_prefix) as server:
        assert save(server, path, "a/b") == f"/api/bot{SESSIONS}/a%2Fb"
        assert server.send("GET", f"{path}{SESSIONS}/a%2Fb").json()["chat_state"] == "state of a/b"


def test_with_a_lifespan_around_it(serve: Serve) -> None:
    chatstate = create_app(create_store("sqlite:///chatstate.db"))
    ended = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with chatstate.lifespan(app):
            yield
        ended.append(True)

    with serve(Starlette(routes=[Mount("/outer", Mount("/bot", chatstate))], lifespan=lifespan)) as server:
        location = save(server, "/outer/bot", "a%2Fb")
        assert location == f"/outer/bot{SESSIONS}/a%252Fb"
        assert server.send("GET", location).status == 200
    assert ended == [True]


def test_what_was_saved_is_there_after_a_restart(serve: Serve) -> None:
    with serve(documented_application()) as server:
        location = save(server, "/bot", "kept")
    with serve(documented_application()) as server:
        assert server.send("GET", location).json()["chat_state"] == "state of kept"


def test_without_its_lifespan_it_says_what_to_do(serve: Serve) -> None:
    chatstate = create_app(create_store("sqlite:///chatstate.db"))
    app = FastAPI()
    app.mount("/bot", chatstate)
    with serve(app) as server:
        assert_says_that_the_lifespan_is_missing(server, "/bot")


def test_without_any_lifespan_it_says_what_to_do(serve: Serve) -> None:
    with serve(create_app(create_store("sqlite:///chatstate.db")), lifespan="off") as server:
        assert_says_that_the_lifespan_is_missing(server, "")


def assert_says_that_the_lifespan_is_missing(server: Server, prefix: str) -> None:
    body = b'{"user_session_id": "a", "chat_state": "state"}'
    answers = [
        server.send("POST", f"{prefix}{SESSIONS}", body),
        server.send("GET", f"{prefix}{SESSIONS}/a"),
        server.send("PUT", f"{prefix}{SESSIONS}/a", b"{}"),
        server.send("DELETE", f"{prefix}{SESSIONS}/a"),
        server.send("GET", f"{prefix}/readyz"),
    ]
    for answer in answers:
        assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.headers["retry-after"]
        assert "lifespan" in answer.json()["detail"]
