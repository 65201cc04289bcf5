"""Through which door: limits, addresses behind proxies, pages of browsers. On a server in this event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatstate.access import NOBODY, Caller
from chatstate.errors import InvalidSetting, TooManyRequests
from chatstate.http.app import ChatState
from chatstate.http.gate import Credential, Gate, Rates, key, key_or_token
from chatstate.http.messages import Headers, Request
from chatstate.http.proxies import block_of, client_address, client_scheme, is_forwarded, peer_address
from chatstate.http.routes import ENDPOINTS
from chatstate.tokens import Tokens
from tests.http.conftest import Answer, SettableClock
from tests.http.credentials import ACCOUNT, ask, bearer, claims_of, echo, key_id_of, make_key, running, signer_of

SESSIONS = "/chat-state-sessions"
PAGE = "https://chat.example.org"


class Seconds:
    """The gate's clock, which stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    """What limits of servers that start from now on run on."""
    import chatstate.http.app

    clock = Seconds()
    monkeypatch.setattr(chatstate.http.app, "Gate", lambda *given: Gate(*given, clock))
    return clock


@asynccontextmanager
async def anonymous(url: str, **settings: Any) -> AsyncIterator[ChatState]:
    given = {"allowed_origins": [PAGE], "rates": Rates(0, 1000, 1000, 0), **settings}
    async with running(url, SettableClock(), allow_anonymous=True, **given) as app:
        yield app


async def load(app: ChatState, session: str = "a", headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    return await ask(app, "GET", f"{SESSIONS}/{session}", None, headers, **more)


async def statuses(app: ChatState, times: int, *given: Any, **more: Any) -> list[int]:
    return [(await load(app, *given, **more)).status for _ in range(times)]


# --- Limits -----------------------------------------------------------------------------------------------------------


async def test_a_key_has_a_limit_and_who_waits_as_long_as_they_are_told_gets_through(
    url: str, seconds: Seconds
) -> None:
    first, second = await make_key(url, SettableClock().now), await make_key(url, SettableClock().now)
    async with running(url, SettableClock(), rates=Rates(0.25, 0, 0, 0)) as app:
        assert await statuses(app, 1, "a", bearer(first)) == [404]
        refused = await load(app, "b", bearer(first))
        assert (refused.status, refused.json()["code"]) == (429, "too_many_requests")
        assert refused.headers["retry-after"] == "4"
        assert "API key" in refused.json()["detail"]
        assert "4 s" in refused.json()["detail"]
        seconds.now += 3.5
        assert (await load(app, "a", bearer(first))).headers["retry-after"] == "1", "rounded up"
        assert await statuses(app, 1, "a", bearer(second)) == [404]
        seconds.now += 0.5
        assert await statuses(app, 2, "a", bearer(first)) == [404, 429]


async def test_a_burst_is_twice_a_seconds_worth(url: str, seconds: Seconds) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock, rates=Rates(3, 0, 0, 0)) as app:
        assert await statuses(app, 7, "a", bearer(credential)) == [404] * 6 + [429]
    async with running(url, clock, rates=Rates(0, 3, 0, 0)) as app:
        assert await statuses(app, 7, "a", bearer(credential)) == [404] * 6 + [429]
        assert await statuses(app, 7, "b", bearer(credential)) == [404] * 6 + [429], "each session has its own"
    async with anonymous(url, rates=Rates(0, 1000, 3, 0)) as app:
        assert await statuses(app, 7) == [404] * 6 + [429]
        assert await statuses(app, 1, client="203.0.113.8") == [404], "each address has its own"


async def test_a_limit_of_one_caller_to_a_session_is_not_anothers(url: str, seconds: Seconds) -> None:
    clock = SettableClock()
    first, second = await make_key(url, clock.now), await make_key(url, clock.now, id_prefix="other")
    async with running(url, clock, rates=Rates(0, 1, 0, 0)) as app:
        assert await statuses(app, 3, "a", bearer(second)) == [404, 404, 429]
        assert await statuses(app, 3, "a", bearer(first)) == [404, 404, 429]


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.credential.token], ids=lambda e: f"{e.method} {e.path}")
async def test_a_token_is_limited_on_every_route_that_takes_it(url: str, seconds: Seconds, endpoint: Any) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    token = (await signer_of(url, clock.now)).sign(claims_of("a", clock.now, key_id_of(credential)))
    visit = "0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"
    path = endpoint.path.format(userSessionId="a", sessionId=visit, version="1", link="BCDF", person="d")
    async with running(url, clock, rates=Rates(0, 0.5, 0, 0)) as app:
        # Without a body most requests are invalid, and counted all the same.
        first, second = [await ask(app, endpoint.method, path, None, bearer(token)) for _ in range(2)]
        assert first.status not in (401, 403, 429)
        if endpoint.handler.__name__ != "revoke":
            assert (second.status, second.headers["retry-after"]) == (429, "2")
            assert "session" in second.json()["detail"]


async def test_an_open_server_has_no_limits(url: str, seconds: Seconds) -> None:
    async with running(url, SettableClock(), rates=Rates(0.001, 0.001, 0.001, 0.001)) as app:
        assert set(await statuses(app, 20)) == {404}
        token = await app.access.tokens.mint(_claims("a"), SettableClock().now)
        assert set(await statuses(app, 20, "a", bearer(token))) == {404}


def _claims(session: str) -> Any:
    from datetime import timedelta

    from chatstate.tokens import new_claims

    return new_claims(session, ("read",), SettableClock().now, timedelta(hours=1), "")


async def test_failures_of_an_address_do_not_lock_valid_credentials_out(url: str, seconds: Seconds) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock, rates=Rates(0, 0, 0, 6)) as app:
        assert await statuses(app, 7, "a", bearer("x")) == [401] * 6 + [429]
        refused = await load(app, "a", bearer("x"))
        assert refused.headers["retry-after"] == "10"
        assert "without a valid credential" in refused.json()["detail"]
        assert await statuses(app, 1, "a", bearer(credential)) == [404]
        assert await statuses(app, 1, "a", bearer("x"), client="203.0.113.8") == [401]
        seconds.now += 10
        assert await statuses(app, 2, "a", bearer("x")) == [401, 429]


async def test_who_shows_a_token_that_has_expired_is_always_told_so(url: str, seconds: Seconds) -> None:
    """Browsers behind one address, whose tokens have all expired over night, must get to know what to do."""
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    token = (await signer_of(url, clock.now)).sign(claims_of("a", clock.now, key_id_of(credential)))
    async with running(url, clock, rates=Rates(0, 0, 0, 1)) as app:
        clock.advance(seconds=3600)
        answers = [await load(app, "a", bearer(token)) for _ in range(5)]
        assert {(answer.status, answer.json()["code"]) for answer in answers} == {(401, "token_expired")}
        assert await statuses(app, 2, "a", bearer("x")) == [401, 429]


async def test_a_blocked_address_is_one_client(url: str, seconds: Seconds) -> None:
    """Of IPv6 a client has a network of 64 bits."""
    async with anonymous(url, rates=Rates(0, 1000, 0.5, 0)) as app:
        assert await statuses(app, 1, client="2001:db8:1:2::1") == [404]
        assert await statuses(app, 1, client="2001:db8:1:2:ffff::9") == [429]
        assert await statuses(app, 1, client="2001:db8:1:3::1") == [404]


async def test_the_first_refusal_is_the_credentials(url: str, seconds: Seconds) -> None:
    """The limit of a key says nothing to who has not got it; and a route that is forbidden counts, too."""
    clock = SettableClock()
    credential = await make_key(url, clock.now, ["write"])
    async with running(url, clock, rates=Rates(0.5, 0, 0, 0)) as app:
        assert await statuses(app, 2, "a", bearer(credential)) == [403, 429]
        assert await statuses(app, 1, "a", bearer(credential[:-1])) == [401]


async def test_routes_that_want_nothing_have_no_limits(url: str, seconds: Seconds) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock, rates=Rates(0.5, 0.5, 0.5, 0.5)) as app:
        for _ in range(5):
            assert (await ask(app, "GET", "/healthz", None, bearer("x"))).status == 200
            assert (await ask(app, "GET", "/readyz", None)).status == 200
            assert (await ask(app, "GET", "/readyz", None, bearer(credential))).status == 200
        assert await statuses(app, 2, "a", bearer(credential)) == [404, 429]


async def test_the_limits_are_those_of_the_settings_by_default() -> None:
    rates = Rates()
    assert (rates.per_key, rates.per_session, rates.per_address, rates.failures_per_minute) == (500, 20, 20, 10)


# --- What a route can want --------------------------------------------------------------------------------------------


async def test_who_looks_at_the_credential_themselves_get_nobody(url: str) -> None:
    await make_key(url, SettableClock().now)
    async with running(url, SettableClock()) as app:
        gate = Gate(app.access)
        request = Request("GET", "/", Headers([(b"authorization", b"Bearer x")]))
        for kind in ("none", "link_code", "webhook_signature"):
            assert await gate.admit(Credential(kind), request) is NOBODY  # type: ignore[arg-type]
        assert await gate.identify(request) is NOBODY
    assert (key("read").kind, key("read").scope, key("read").token, key("read").anonymous) == (
        "key",
        "read",
        False,
        False,
    )
    either = key_or_token("write", anonymous=True)
    assert (either.kind, either.scope, either.token, either.anonymous) == ("key", "write", True, True)
    assert key_or_token(None).anonymous is False


async def test_a_credential_is_one_field_with_its_scheme(url: str) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    invalid = 'Bearer realm="chatstate", error="invalid_token"'
    fields: list[tuple[dict[str, str], str]] = [
        ({}, 'Bearer realm="chatstate"'),
        ({"Authorization": "Bearer "}, 'Bearer realm="chatstate"'),
        ({"Authorization": credential}, invalid),
        ({"Authorization": f"Basic {credential}"}, invalid),
        ({"Authorization": f"Bearer {credential}", "authorization": f"Bearer {credential}"}, invalid),
        ({"Authorization": credential, "authorization": "Bearer x"}, invalid),
    ]
    async with running(url, clock) as app:
        for given, challenge in fields:
            refused = await load(app, "a", given)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, challenge), given
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
            assert (await load(app, "a", {"Authorization": f"{scheme} {credential} "})).status == 404


async def test_a_refusal_says_what_is_lacking(url: str) -> None:
    clock = SettableClock()
    credential, other = await make_key(url, clock.now), await make_key(url, clock.now, ["list"])
    token = (await signer_of(url, clock.now)).sign(claims_of("a", clock.now, key_id_of(credential), verbs=["write"]))
    async with running(url, clock) as app:
        for path, shown, scope, detail in (
            (SESSIONS, token, "list", "this takes an API key"),
            (f"{SESSIONS}/a", token, "read", "session token lacks the scope `read`"),
            (f"{SESSIONS}/a", other, "read", "API key lacks the scope `read`"),
        ):
            refused = await ask(app, "GET", path, None, bearer(shown))
            assert (refused.status, refused.json()["code"]) == (403, "forbidden")
            assert detail in refused.json()["detail"]
            challenge = f'Bearer realm="chatstate", error="insufficient_scope", scope="{scope}"'
            assert refused.headers["www-authenticate"] == challenge


async def test_where_the_store_is_stands_there_for_admins_only(url: str) -> None:
    clock = SettableClock()
    admin, other = await make_key(url, clock.now, ["admin"]), await make_key(url, clock.now, ["read"])
    async with running(url, clock) as app:
        for fields, shown in ((bearer(admin), True), (bearer(other), False), ({}, False), (bearer("x"), False)):
            answer = await ask(app, "GET", "/readyz", None, fields)
            assert answer.status == 200
            assert (b"chatstate.db" in answer.body) == shown
            assert answer.json()["durability"]


async def test_a_limit_of_a_gate_is_in_whole_seconds_and_one_at_least(url: str) -> None:
    async with running(url, SettableClock()) as app:
        await make_key(url, SettableClock().now)
        await app.access.refresh()
        gate = Gate(app.access, Rates(0, 1000, 0, 0), clock=Seconds())
        caller = Caller("key:x", frozenset(), key_id="x")
        for _ in range(2000):
            gate.count_session(caller, "a")
        with pytest.raises(TooManyRequests) as refusal:
            gate.count_session(caller, "a")
        assert refusal.value.retry_after == 1


# --- Addresses --------------------------------------------------------------------------------------------------------


def headers(**fields: str) -> Headers:
    return Headers([(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items()])


TRUSTED = Gate(Any, trusted_proxies=("10.0.0.0/8", "fd00::/8")).trusted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.1", 1234), "192.0.2.1"),
        (["192.0.2.1", 1234], "192.0.2.1"),
        (("::ffff:192.0.2.1", 1234, 0, 0), "192.0.2.1"),
        (("::ffff:c000:201", 1234), "192.0.2.1"),
        (("2001:db8::1", 1234), "2001:db8::1"),
        (("fe80::1%eth0", 1234), "fe80::1%eth0"),
        (("testclient", 50000), "testclient"),
        ((None, None), ""),
        ((), ""),
        (None, ""),
    ],
)
def test_an_address_is_text_without_a_port(peer: Any, address: str) -> None:
    assert peer_address(peer) == address


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "evil, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "127.0.0.1, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", " 198.51.100.1 ,10.0.0.2 ", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1,", ""),
        ("10.0.0.1", "unknown", "unknown"),
        ("10.0.0.1", "198.51.100.1:52811", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:52811, 10.0.0.2:80", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "[]", ""),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("", "198.51.100.1", ""),
        ("unix", "198.51.100.1", "unix"),
    ],
)
def test_whose_address_it_is(peer: str, forwarded: str, client: str) -> None:
    given = headers(x_forwarded_for=forwarded) if forwarded else headers()
    assert client_address(peer, given, TRUSTED) == client
    assert client_address(peer, given, ()) == peer


def test_the_lines_of_a_field_are_one_list() -> None:
    lines = Headers([(b"x-forwarded-for", b"198.51.100.1"), (b"x-forwarded-for", b"198.51.100.2, 10.0.0.2")])
    assert client_address("10.0.0.1", lines, TRUSTED) == "198.51.100.2"


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_what_an_address_is_counted_as(address: str, block: str) -> None:
    assert block_of(address) == block


def test_ipv4_in_ipv6_is_counted_as_one_address() -> None:
    assert block_of("::ffff:203.0.113.7") != block_of("::ffff:203.0.113.8")


@pytest.mark.parametrize(
    ("peer", "said", "scheme"),
    [
        ("10.0.0.1", "https", "https"),
        ("10.0.0.1", " HTTPS ", "https"),
        ("10.0.0.1", "http", "http"),
        ("10.0.0.1", "ftp", "http"),
        ("10.0.0.1", "", "http"),
        ("203.0.113.7", "https", "http"),
        ("", "https", "http"),
    ],
)
def test_only_a_trusted_proxy_says_that_a_client_came_by_tls(peer: str, said: str, scheme: str) -> None:
    assert client_scheme(peer, headers(x_forwarded_proto=said), TRUSTED, "http") == scheme


def test_a_trusted_proxy_can_say_that_a_client_came_without_tls() -> None:
    assert client_scheme("10.0.0.1", headers(x_forwarded_proto="http"), TRUSTED, "https") == "http"
    assert client_scheme("10.0.0.1", headers(), TRUSTED, "https") == "https"


@pytest.mark.parametrize(
    "name", ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "x_real_ip", "via"]
)
def test_a_server_without_keys_answers_nothing_that_was_forwarded(name: str) -> None:
    assert is_forwarded(headers(**{name: "x"}))
    assert not is_forwarded(headers(accept="x"))


async def test_a_limit_follows_the_client_that_a_trusted_proxy_names(url: str, seconds: Seconds) -> None:
    async with anonymous(url, rates=Rates(0, 1000, 0.5, 0), trusted_proxies=["10.0.0.0/8"]) as app:
        for number in range(3):
            fields = {"X-Forwarded-For": f"127.0.0.{number}, 198.51.100.{number}"}
            assert await statuses(app, 2, "a", fields, client="10.0.0.1") == [404, 429]
            spoofed = {"X-Forwarded-For": f"198.51.100.{number}, 198.51.100.9"}
            assert await statuses(app, 1, "a", spoofed, client="10.0.0.1") == [404 if number == 0 else 429]
        assert await statuses(app, 1, "a", {"X-Forwarded-For": "198.51.100.50"}, client="203.0.113.1") == [404]
        assert await statuses(app, 1, "a", {"X-Forwarded-For": "198.51.100.51"}, client="203.0.113.1") == [429]


# --- Modes ------------------------------------------------------------------------------------------------------------


async def test_an_open_server_answers_no_proxy_and_a_keyed_one_does(url: str) -> None:
    clock = SettableClock()
    names = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Port", "X-Forwarded-Server", "Via", "X-Real-IP")
    names += ("X-Client-IP", "CF-Connecting-IP", "True-Client-IP", "X-Original-Forwarded-For")
    async with running(url, clock, trusted_proxies=["10.0.0.0/8"]) as app:
        for name in names:
            refused = await load(app, "a", {name: "127.0.0.1"})
            assert (refused.status, refused.json()["code"]) == (403, "forbidden_proxy")
        credential = await make_key(url, clock.now)
        await app.access.refresh()
        for name in names:
            assert (await load(app, "a", {name: "127.0.0.1", **bearer(credential)})).status == 404


@pytest.mark.parametrize(
    ("client", "status"),
    [("127.0.0.1", 404), ("127.8.9.10", 404), ("::1", 404), ("::ffff:127.0.0.1", 404), ("", 404), ("testclient", 404)]
    + [(peer, 403) for peer in ("203.0.113.9", "10.0.0.1", "192.168.1.2", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0")],
)
async def test_an_open_server_answers_this_machine_alone(url: str, client: str, status: int) -> None:
    """Also inside of another application, whose own server may listen to the world."""
    clock = SettableClock()
    async with running(url, clock) as app:
        answer = await load(app, "a", client=client)
        assert (answer.status, answer.json()["code"]) == (
            (status, "session_not_found") if status == 404 else (403, "forbidden_address")
        )
        credential = await make_key(url, clock.now)
        await app.access.refresh()
        assert (await load(app, "a", bearer(credential), client=client)).status == 404


@pytest.mark.parametrize("host", ["a\xa0", "\x85", "a\tb", "a b", "a/b", "<a>", 'a"b', ""])
async def test_a_host_that_is_none_is_refused_before_it_is_echoed(keyed: tuple[ChatState, str], host: str) -> None:
    app, credential = keyed
    for path in ("/healthz", f"{SESSIONS}/a"):
        answer = await ask(app, "GET", path, None, {"Host": host, "Origin": f"http://{host}", **bearer(credential)})
        assert (answer.status, answer.json()["code"]) == (403, "forbidden_host")


async def test_guesses_are_counted_where_no_credential_is_wanted_too(url: str, seconds: Seconds) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock, rates=Rates(0, 0, 0, 3)) as app:
        asked = [(await ask(app, "GET", "/readyz", None, bearer("x"))).status for _ in range(5)]
        assert asked == [200, 200, 200, 429, 429]
        assert await statuses(app, 1, "a", bearer("x")) == [429]
        assert (await ask(app, "GET", "/readyz", None, bearer(credential))).status == 200


async def test_only_a_keyed_server_answers_to_any_name(url: str) -> None:
    clock = SettableClock()
    async with running(url, clock, allowed_hosts=["chat.example.org"]) as app:
        other = {"Host": "chat.example.org"}
        assert (await load(app, "a", other)).json()["code"] == "forbidden_host"
        credential = await make_key(url, clock.now)
        await app.access.refresh()
        assert (await load(app, "a", {**other, **bearer(credential)})).status == 404
        assert (await load(app, "a", other)).status == 401


async def test_the_anonymous_use_the_four_routes_and_no_others(url: str) -> None:
    async with anonymous(url, bot=echo, whatsapp=ACCOUNT) as app:
        for endpoint in ENDPOINTS:
            other = {"version": "1", "link": "d", "code": "e", "file": "f", "person": "g"}
            path = endpoint.path.format(userSessionId="a", sessionId="b", userId="c", **other)
            answer = await ask(app, endpoint.method, path)
            if endpoint.credential.kind == "key" and not endpoint.credential.anonymous:
                assert (answer.status, answer.json()["code"]) == (401, "unauthorized"), endpoint.path
                assert answer.headers["www-authenticate"] == 'Bearer realm="chatstate"'
            elif endpoint.credential.kind == "webhook_signature":
                assert (answer.status, answer.json()["code"]) == (403, "webhook_refused")
            else:
                assert answer.status in (200, 303, 400, 404, 415), endpoint.path
        saved = await ask(app, "POST", SESSIONS, {"user_session_id": "a", "chat_state": "x"})
        assert saved.status == 201
        assert (await load(app)).json()["chat_state"] == "x"
        assert (await ask(app, "DELETE", f"{SESSIONS}/a")).status == 200


async def test_the_anonymous_have_a_limit_for_each_session(url: str, seconds: Seconds) -> None:
    async with anonymous(url, rates=Rates(0, 0.5, 1000, 0)) as app:
        assert await statuses(app, 1, "a") == [404]
        assert await statuses(app, 1, "a", client="203.0.113.8") == [429], "whoever asks"
        assert await statuses(app, 1, "b") == [404]


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_origins": []},
        {"rates": Rates(500, 0, 20, 10)},
        {"rates": Rates(500, 20, 0, 10)},
    ],
)
async def test_the_anonymous_are_let_in_only_with_origins_and_limits(url: str, settings: Any) -> None:
    with pytest.raises(InvalidSetting, match="allowed-origins"):
        async with anonymous(url, **settings):
            pass


@pytest.mark.parametrize(
    ("host", "hosts", "status"),
    [
        ("anything.example", [], 404),
        ("chat.example.org", ["chat.example.org"], 404),
        ("CHAT.example.org:8080", ["Chat.Example.org"], 404),
        ("localhost:3000", ["chat.example.org"], 404),
        ("[::1]:3000", ["chat.example.org"], 404),
        ("evil.example", ["chat.example.org"], 403),
        ("chat.example.org.evil.example", ["chat.example.org"], 403),
        ("", ["chat.example.org"], 403),
        ("[2001:db8::1]:3000", ["[2001:db8::1]"], 404),
        ("[2001:DB8::1]", ["[2001:db8::1]"], 404),
        ("[2001:db8::2]:3000", ["[2001:db8::1]"], 403),
        ("chat.example.org:evil.example", ["chat.example.org"], 403),
    ],
)
async def test_which_names_the_anonymous_may_use(url: str, host: str, hosts: list[str], status: int) -> None:
    async with anonymous(url, allowed_hosts=hosts) as app:
        answer = await load(app, "a", {"Host": host})
        assert answer.status == status
        if status == 403:
            assert answer.json()["code"] == "forbidden_host"


# --- Pages ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def keyed(url: str) -> AsyncIterator[tuple[ChatState, str]]:
    """A keyed server that answers one page, behind proxies with TLS."""
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    origins = [PAGE, "http://localhost:5173"]
    async with running(url, clock, allowed_origins=origins, trusted_proxies=["10.0.0.0/8"]) as app:
        yield app, credential


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (PAGE, True),
        ("HTTPS://Chat.Example.org", True),
        ("http://localhost:5173", True),
        ("http://localhost:5174", False),
        ("http://127.0.0.1", False),
        ("http://chat.example.org", False),
        ("https://chat.example.org:8443", False),
        ("https://chat.example.org.evil.example", False),
        ("https://evil.example", False),
        ("null", False),
        ("", False),
        ("http://api.example.org", True),
        ("http://API.example.org", True),
        ("https://api.example.org", False),
    ],
)
async def test_which_pages_a_keyed_server_answers(keyed: tuple[ChatState, str], origin: str, allowed: bool) -> None:
    app, credential = keyed
    fields = {"Host": "api.example.org", "Origin": origin}
    asked = {
        **fields,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,if-match",
    }
    answers = [
        await load(app, "a", {**fields, **bearer(credential)}),
        await load(app, "a", fields),
        await ask(app, "OPTIONS", f"{SESSIONS}/a", None, asked),
    ]
    for answer, status in zip(answers, (404, 401, 204), strict=True):
        if allowed:
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == origin
        else:
            assert (answer.status, answer.json()["code"]) == (403, "forbidden_origin")
            assert "--allowed-origins" in answer.json()["detail"]
            assert "access-control-allow-origin" not in answer.headers


async def test_a_preflight_is_answered_before_anybody_is_asked_for_a_credential(keyed: tuple[ChatState, str]) -> None:
    app, _ = keyed
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "PATCH"}
    plain = await ask(app, "OPTIONS", "/tokens", None, asked)
    assert plain.status == 204
    assert plain.headers["access-control-allow-methods"] == "DELETE, GET, PATCH, POST, PUT"
    assert plain.headers["access-control-max-age"] == "600"
    assert plain.headers["access-control-allow-credentials"] == "true"
    assert "access-control-allow-headers" not in plain.headers
    for names, echoed in (("authorization, content-type", True), ("x\x7f", False), ("a;b", False), ('"', False)):
        answer = await ask(app, "OPTIONS", "/tokens", None, {**asked, "Access-Control-Request-Headers": names})
        assert answer.headers.get("access-control-allow-headers") == (names if echoed else None)


async def test_only_the_question_of_a_browser_is_a_preflight(keyed: tuple[ChatState, str]) -> None:
    app, credential = keyed
    assert (await load(app, "a", {"Access-Control-Request-Method": "PUT", **bearer(credential)})).status == 404
    plain = await ask(app, "OPTIONS", "/tokens", None, {"Origin": PAGE})
    assert (plain.status, plain.headers["allow"]) == (204, "POST")
    assert "access-control-allow-methods" not in plain.headers


async def test_an_open_server_says_that_it_answers_pages_of_this_machine(url: str) -> None:
    async with running(url, SettableClock()) as app:
        for fields in ({"Origin": PAGE}, {"Sec-Fetch-Site": "cross-site"}):
            refused = await load(app, "a", fields)
            assert (refused.status, refused.json()["code"]) == (403, "forbidden_origin")
            assert "pages that are served from this machine" in refused.json()["detail"]


async def test_an_open_server_answers_the_pages_of_no_list(url: str) -> None:
    async with running(url, SettableClock(), allowed_origins=[PAGE]) as app:
        assert (await load(app, "a", {"Origin": PAGE})).status == 403
        assert (await load(app, "a", {"Origin": "http://localhost:5173"})).status == 404


async def test_a_page_may_read_what_it_needs(keyed: tuple[ChatState, str]) -> None:
    app, _ = keyed
    exposed = (await load(app, "a", {"Origin": PAGE})).headers["access-control-expose-headers"].split(", ")
    assert {"www-authenticate", "retry-after", "etag", "location", "link", "idempotency-replayed"} <= set(exposed)
    assert "access-control-expose-headers" not in (await load(app, "a")).headers


@pytest.mark.parametrize(
    ("client", "said", "status"),
    [("10.0.0.1", "https", 404), ("10.0.0.1", "http", 403), ("10.0.0.1", "", 403), ("203.0.113.7", "https", 403)],
)
async def test_a_page_of_the_same_origin_behind_a_proxy_with_tls(
    keyed: tuple[ChatState, str], client: str, said: str, status: int
) -> None:
    app, credential = keyed
    fields = {"Host": "api.example.org", "Origin": "https://api.example.org", "X-Forwarded-Proto": said}
    assert (await load(app, "a", {**fields, **bearer(credential)}, client=client)).status == status


async def test_without_a_list_a_keyed_server_answers_pages_of_this_machine(url: str) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock) as app:
        for origin, status in (("http://localhost:5173", 404), ("http://[::1]", 404), (PAGE, 403), ("null", 403)):
            assert (await load(app, "a", {"Origin": origin, **bearer(credential)})).status == status


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("Same-Origin", 404), ("none", 404), ("x", 403)])
async def test_what_a_browser_calls_cross_site_is_refused_where_no_credential_is_wanted(
    url: str, site: str, status: int
) -> None:
    clock = SettableClock()
    async with anonymous(url) as app:
        refused = await load(app, "a", {"Sec-Fetch-Site": site})
        assert refused.status == status
        assert status != 403 or "--allowed-origins" in refused.json()["detail"]
    async with running(url, clock) as app:
        assert (await load(app, "a", {"Sec-Fetch-Site": site})).status == status
        credential = await make_key(url, clock.now)
        await app.access.refresh()
        assert (await load(app, "a", {"Sec-Fetch-Site": site, **bearer(credential)})).status == 404


async def test_the_anonymous_pages_are_those_of_the_list_alone(url: str) -> None:
    async with anonymous(url) as app:
        for origin, status in ((PAGE, 404), ("http://localhost", 403), ("http://api.example.org", 403), ("null", 403)):
            assert (await load(app, "a", {"Host": "api.example.org", "Origin": origin})).status == status


async def test_there_is_exactly_one_host_in_every_mode(url: str) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock) as app:
        for lines in ([], [(b"host", b"a"), (b"host", b"a")]):
            authorization = (b"authorization", f"Bearer {credential}".encode())
            response = await app.respond(Request("GET", "/healthz", Headers([*lines, authorization])))
            assert (response.status, response.problem) == (403, "forbidden_host")


# --- A store that does not answer -------------------------------------------------------------------------------------


async def test_when_keys_cannot_be_read_for_long_nobody_is_let_in_until_they_can(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatstate.errors import StoreUnavailable

    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock) as app:

        async def gone(*_: object) -> None:
            raise StoreUnavailable

        with monkeypatch.context() as broken:
            broken.setattr(app.store, "list", gone)
            assert app.access._read_at is not None
            assert (await load(app, "a", bearer(credential))).status == 404
            app.access._read_at -= 31
            refused = await load(app, "a", bearer(credential))
            assert (refused.status, refused.json()["code"]) == (503, "store_unavailable")
            assert refused.headers["retry-after"] == "1"
            assert (await ask(app, "GET", "/healthz")).status == 200
            assert (await ask(app, "GET", "/readyz")).status == 200, "the store answers; who asks is nobody"
        assert (await load(app, "a", bearer(credential))).status == 404


async def test_a_signing_key_is_made_once_however_many_ask_first(url: str) -> None:
    clock = SettableClock()
    credential = await make_key(url, clock.now)
    async with running(url, clock) as app:
        answers = await asyncio.gather(*(ask(app, "POST", "/tokens", None, bearer(credential)) for _ in range(5)))
        assert {answer.status for answer in answers} == {201}
        for answer in answers:
            found = answer.json()
            assert (await load(app, found["user_session_id"], bearer(found["token"]))).status == 404
        assert isinstance(app.access.tokens, Tokens)
