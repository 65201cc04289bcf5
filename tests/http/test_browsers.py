"""What a page in a browser can do: pages of this machine everything, pages of other sites nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.http.conftest import Answer, Server

SESSIONS = "/chat-state-sessions"
LOCAL_ORIGINS = [
    "http://localhost:5173",
    "http://127.0.0.1:5173",
    "http://[::1]:5173",
    "https://localhost",
    "http://bot.localhost:8080",
]
SAFELISTED_ANSWER_HEADERS = {
    *("cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma")
}


class NetworkError(Exception):
    """All that a page learns of an answer that it may not see: `TypeError: Failed to fetch`."""


@dataclass
class Shown:
    """What a page sees of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    """A page of `origin` that calls `fetch` for the server at `host` (https://fetch.spec.whatwg.org, section 4)."""

    server: Server
    origin: str
    host: str = "localhost"
    preflights: list[Answer] = field(default_factory=list)

    def fetch(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, credentials: bool = False
    ) -> Shown:
        """Asks first where a browser would; raises NetworkError for what a browser would not send, or not show."""
        chosen = dict(headers or {})
        if body is not None:
            chosen.setdefault("Content-Type", "application/json")
        if self._needs_preflight(method, chosen):
            self._preflight(method, chosen, credentials)
        content = None if body is None else json.dumps(body).encode()
        answer = self.server.send(method, path, content, {**chosen, **self._own_headers("cors")})
        self._check(answer, credentials)
        return Shown(answer.status, self._readable(answer, credentials), answer.body)

    def _own_headers(self, mode: str) -> dict[str, str]:
        """What a page cannot set or leave out."""
        return {
            "Host": f"{self.host}:{self.server.port}",
            "Origin": self.origin,
            "Sec-Fetch-Site": "same-site" if urlsplit(self.origin).hostname == self.host.strip("[]") else "cross-site",
            "Sec-Fetch-Mode": mode,
            "Sec-Fetch-Dest": "empty",
        }

    @staticmethod
    def _needs_preflight(method: str, headers: dict[str, str]) -> bool:
        simple_types = ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded")
        simple = all(
            name.lower() in ("accept", "accept-language", "content-language")
            or (name.lower() == "content-type" and value.partition(";")[0].strip().lower() in simple_types)
            for name, value in headers.items()
        )
        return not simple or method not in ("GET", "HEAD", "POST")

    def _preflight(self, method: str, headers: dict[str, str], credentials: bool) -> None:
        asked = sorted(name.lower() for name in headers if name.lower() not in ("accept", "accept-language"))
        question = {"Access-Control-Request-Method": method, **self._own_headers("cors")}
        if asked:
            question["Access-Control-Request-Headers"] = ",".join(asked)
        answer = self.server.send("OPTIONS", SESSIONS, None, question)
        self.preflights.append(answer)
        self._check(answer, credentials)
        if not 200 <= answer.status < 300:
            raise NetworkError(f"the preflight was answered with {answer.status}")
        methods = _listed(answer, "access-control-allow-methods")
        if method.lower() not in methods | {"get", "head", "post"} and (credentials or "*" not in methods):
            raise NetworkError(f"{method} is not allowed")
        allowed = _listed(answer, "access-control-allow-headers")
        if not set(asked) <= allowed and (credentials or "*" not in allowed or "authorization" in asked):
            raise NetworkError(f"of {asked} only {allowed} are allowed")

    def _check(self, answer: Answer, credentials: bool) -> None:
        """The CORS check (section 4.10)."""
        allowed = answer.headers.get_list("access-control-allow-origin")
        if allowed != [self.origin] and (credentials or allowed != ["*"]):
            raise NetworkError(f"{self.origin} may not see the answer, only {allowed}")
        if credentials and answer.headers.get("access-control-allow-credentials") != "true":
            raise NetworkError("no credentials are allowed")

    @staticmethod
    def _readable(answer: Answer, credentials: bool) -> dict[str, str]:
        exposed = _listed(answer, "access-control-expose-headers")
        everything = "*" in exposed and not credentials
        readable = SAFELISTED_ANSWER_HEADERS | exposed
        return {name: value for name, value in answer.headers.items() if everything or name in readable}


def _listed(answer: Answer, header: str) -> set[str]:
    return {name.strip().lower() for name in answer.headers.get(header, "").split(",") if name.strip()}


def assert_forbidden(answer: Answer, code: str) -> None:
    """403, and nothing that would let a browser show it."""
    assert (answer.status, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.json()["code"] == code
    assert "access-control-allow-origin" not in answer.headers


def body_of(user_session_id: str) -> bytes:
    return json.dumps({"user_session_id": user_session_id, "chat_state": "state"}).encode()


# --- Pages of this machine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", LOCAL_ORIGINS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("credentials", [False, True])
def test_a_page_saves_and_loads(server: Server, new_id: str, origin: str, host: str, credentials: bool) -> None:
    page = Browser(server, origin, host)
    state = json.dumps({"messages": [{"text": "Grüße 😀"}], "currentStep": "language"})
    body = {"user_session_id": new_id, "chat_state": state, "last_activity": "2025-10-02T10:00:00.000Z"}
    assert page.fetch("POST", SESSIONS, body, credentials=credentials).status == 201
    loaded = page.fetch("GET", f"{SESSIONS}/{new_id}", credentials=credentials)
    assert loaded.json() == {"chat_state": state, "last_activity": "2025-10-02T10:00:00Z"}
    assert len(page.preflights) == 1


@pytest.mark.parametrize("origin", LOCAL_ORIGINS)
def test_a_page_works_with_versions(server: Server, new_id: str, origin: str) -> None:
    page, path = Browser(server, origin), f"{SESSIONS}/{new_id}"
    body = {"user_session_id": new_id, "chat_state": "a"}
    created = page.fetch("POST", SESSIONS, body, {"If-None-Match": "*"})
    assert created.headers["location"] == path
    changed = page.fetch("PUT", path, {"chat_state": "b"}, {"If-Match": created.headers["etag"]})
    assert changed.headers["etag"] != created.headers["etag"]
    known = page.fetch("GET", path, headers={"If-None-Match": changed.headers["etag"]})
    assert (known.status, known.headers["etag"]) == (304, changed.headers["etag"])
    assert page.fetch("DELETE", path, headers={"If-Match": changed.headers["etag"]}).status == 200


def test_a_page_may_read_retry_after(server: Server) -> None:
    answer = server.send("GET", "/healthz", None, {"Origin": LOCAL_ORIGINS[0]})
    assert {"etag", "location", "retry-after"} <= _listed(answer, "access-control-expose-headers")


@pytest.mark.parametrize("origin", LOCAL_ORIGINS[:3])
def test_a_page_may_read_errors(server: Server, new_id: str, origin: str) -> None:
    page, path = Browser(server, origin), f"{SESSIONS}/{new_id}"
    body = {"user_session_id": new_id, "chat_state": "a"}
    page.fetch("POST", SESSIONS, body)
    errors = [
        page.fetch("POST", SESSIONS, {"user_session_id": new_id}),
        page.fetch("GET", f"{path}-missing"),
        page.fetch("GET", "/nothing"),
        page.fetch("PUT", SESSIONS, {}),
        page.fetch("POST", SESSIONS, body, {"If-None-Match": "*"}),
        page.fetch("PUT", path, {"chat_state": "a" * (3 << 20)}),
        page.fetch("PUT", path, "x", {"Content-Type": "text/plain"}),
    ]
    assert [error.status for error in errors] == [400, 404, 404, 405, 412, 413, 415]
    assert all(error.json()["status"] == error.status for error in errors)
    assert errors[4].headers["etag"]


def test_a_page_may_read_a_defect_of_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    for app in server.apps:
        monkeypatch.setattr(app._sessions, "load", broken)
    error = Browser(server, LOCAL_ORIGINS[0]).fetch("GET", f"{SESSIONS}/any")
    assert (error.status, error.json()["code"]) == (500, "internal_error")


def test_an_answer_depends_on_the_origin_for_caches_too(server: Server) -> None:
    for headers in ({}, {"Origin": LOCAL_ORIGINS[0]}):
        assert "origin" in _listed(server.send("GET", "/healthz", None, headers), "vary")


def test_every_origin_is_answered_with_itself(server: Server) -> None:
    for origin in LOCAL_ORIGINS:
        answer = server.send("GET", "/healthz", None, {"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin


# --- Pages of other sites ---------------------------------------------------------------------------------------------

FOREIGN_ORIGINS = [
    "http://evil.test",
    "https://evil.test:3000",
    "null",
    "",
    "http://localhost.evil.test",
    "http://evil.test/localhost",
    "http://localhost@evil.test",
    "http://evil.test#localhost",
    "https://127.0.0.1.evil.test",
    "http://127.0.0.1.evil.test:5173",
    "http://xlocalhost",
    "http://evil-localhost:5173",
    "http://localhost:5173.evil.test",
    "http://localhost:5173/",
    "http://localhost:5173 http://evil.test",
    "http://[::1].evil.test",
    "http://127.0.0.2:5173",
    "http://0.0.0.0:5173",
    "http://192.168.0.1",
    "file://localhost",
    "chrome-extension://localhost",
    "localhost",
    "*",
]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_page_of_another_site_is_refused(server: Server, new_id: str, origin: str) -> None:
    headers = {"Origin": origin}
    assert_forbidden(server.send("GET", f"{SESSIONS}/{new_id}", None, headers), "forbidden_origin")
    assert_forbidden(server.send("POST", SESSIONS, body_of(new_id), headers), "forbidden_origin")
    preflight = {**headers, "Access-Control-Request-Method": "PUT"}
    assert_forbidden(server.send("OPTIONS", f"{SESSIONS}/{new_id}", None, preflight), "forbidden_origin")
    assert server.send("GET", f"{SESSIONS}/{new_id}").status == 404, "nothing was saved"


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS[:3])
def test_a_browser_tells_a_foreign_page_nothing(server: Server, new_id: str, origin: str) -> None:
    page = Browser(server, origin)
    with pytest.raises(NetworkError):
        page.fetch("GET", f"{SESSIONS}/{new_id}")
    with pytest.raises(NetworkError):
        page.fetch("POST", SESSIONS, {"user_session_id": new_id, "chat_state": "stolen"})
    with pytest.raises(NetworkError):
        page.fetch("POST", SESSIONS, "stolen", {"Content-Type": "text/plain"})


def test_two_origins_are_refused_when_one_is_foreign(server: Server) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: {LOCAL_ORIGINS[0]}\r\nOrigin: http://evil.test\r\n\r\n"
    assert_forbidden(server.raw(head.encode()), "forbidden_origin")


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", "unheard-of"])
def test_what_a_browser_calls_cross_site_is_refused_without_an_origin(server: Server, new_id: str, site: str) -> None:
    """An <img>, a form or a link of another site: browsers send no Origin with those."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert_forbidden(server.send("GET", f"{SESSIONS}/{new_id}", None, headers), "forbidden_origin")
    assert_forbidden(server.send("POST", SESSIONS, body_of(new_id), headers), "forbidden_origin")


@pytest.mark.parametrize("site", ["none", "same-origin", "same-site"])
def test_the_address_bar_and_the_servers_own_pages_work(server: Server, site: str) -> None:
    assert server.send("GET", "/healthz", None, {"Sec-Fetch-Site": site}).status == 200


def test_a_foreign_page_that_rebinds_its_name_to_this_machine_is_refused(server: Server, new_id: str) -> None:
    """DNS rebinding: to the browser it is same-origin, so there is no Origin, but the Host is the attacker's."""
    headers = {"Host": f"evil.test:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert_forbidden(server.send("GET", f"{SESSIONS}/{new_id}", None, headers), "forbidden_host")


# --- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:3000", "127.0.0.1", "[::1]", "[::1]:3000", "bot.localhost:80"]
)
def test_names_of_this_machine_are_served(server: Server, host: str) -> None:
    assert server.send("GET", "/healthz", None, {"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.test", "localhost.evil.test", "127.0.0.1.evil.test", "evil.test:localhost", "localhost:evil.test"),
        *(
            "user@localhost",
            "localhost@evil.test",
            "user:pass@127.0.0.1:3000",
            "localhost, evil.test",
            "localhost evil",
        ),
        *("localhost/", "localhost#", "localhost:", "localhost:123456", "::1", "[::1", "[::2]", "127.0.0.2"),
        *("0.0.0.0", "192.168.0.1", "2130706433", "127.1", "localhost.", ".localhost", "evil.test\\.localhost", ""),
    ],
)
def test_any_other_host_is_refused(server: Server, new_id: str, host: str) -> None:
    assert_forbidden(server.send("GET", "/healthz", None, {"Host": host}), "forbidden_host")
    assert_forbidden(server.send("POST", SESSIONS, body_of(new_id), {"Host": host}), "forbidden_host")
    forwarded = {"Host": host, "X-Forwarded-Host": "localhost", "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=::1"}
    assert_forbidden(server.send("GET", "/healthz", None, forwarded), "forbidden_host")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET http://localhost/healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: evil.test\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    ],
)
def test_there_has_to_be_exactly_one_host(server: Server, request_head: bytes) -> None:
    assert_forbidden(server.raw(request_head), "forbidden_host")


def test_http_1_0_is_what_proxies_speak_so_a_server_without_keys_refuses_it(server: Server) -> None:
    """A plain `proxy_pass` of nginx sends nothing else that would give it away."""
    assert_forbidden(server.raw(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"), "forbidden_proxy")


def test_programs_need_no_headers_of_browsers(server: Server, new_id: str) -> None:
    curl: dict[str, str | None] = {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
    assert server.send("POST", SESSIONS, body_of(new_id), curl).status == 201
    loaded = server.send("GET", f"{SESSIONS}/{new_id}", None, curl)
    assert (loaded.status, loaded.json()["chat_state"]) == (200, "state")
    assert "access-control-allow-origin" not in loaded.headers
