"""No credential and no request for a token, however odd, makes a defect of the server: random ones, and known ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatstate.tokens import TYPE
from tests.http.conftest import Answer, SettableClock
from tests.http.credentials import ask, bearer, make_key, running, segment

SESSIONS = "/chat-state-sessions"

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
_HEADER = st.fixed_dictionaries(
    {"typ": st.just(TYPE) | _JSON},
    optional={"alg": st.sampled_from(["HS256", "none", "HS512", "RS256", ""]) | _JSON, "kid": _JSON, "crit": _JSON}
    | {"b64": _JSON, "jwk": _JSON, "jku": _JSON, "x5c": _JSON, "zip": _JSON, "cty": _JSON},
)
_TOKENS = st.builds(
    lambda header, payload, signature: f"{segment(header)}.{segment(payload)}.{segment(signature)}",
    _HEADER,
    _JSON | st.binary(max_size=50),
    st.binary(max_size=40),
)
_VALUES = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=200),
    st.builds("{}{}".format, st.sampled_from(["Bearer ", "bearer ", "Basic ", "Bearer"]), _TOKENS),
    st.builds("Bearer {}".format, st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=100)),
    st.builds(
        "Bearer cs_{}_{}".format, st.from_regex("[a-z2-7]{8}", fullmatch=True), st.text("aZ09\u00e9", max_size=60)
    ),
)


@pytest.fixture(scope="module")
def answer_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Asks one keyed server, from code that has no event loop."""
    url, clock = f"sqlite:///{tmp_path_factory.mktemp('odd')}/chatstate.db", SettableClock()
    runner = asyncio.Runner()
    key = runner.run(make_key(url, clock.now))
    server = running(url, clock)
    app = runner.run(server.__aenter__())

    def send(method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return runner.run(ask(app, method, path, body, headers or bearer(key)))

    yield send
    runner.run(server.__aexit__(None, None, None))
    runner.close()


Send = Callable[..., Answer]
_quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_quick
@given(value=_VALUES)
def test_no_authorization_makes_a_defect(answer_of: Send, value: str) -> None:
    assert answer_of("GET", f"{SESSIONS}/a", None, {"Authorization": value}).status == 401


@_quick
@given(body=_JSON | st.binary(max_size=60) | st.dictionaries(st.sampled_from(["verbs", "ttl_seconds"]), _JSON))
def test_no_body_of_a_request_for_a_token_makes_a_defect(answer_of: Send, body: Any) -> None:
    assert answer_of("POST", "/tokens", body).status in (201, 400)


@pytest.mark.parametrize(
    "header",
    [
        b'{"typ":"chatstate+jwt","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"typ":"chatstate+jwt","kid":' + b"1" * 5000 + b"}",
        b'{"typ":"chatstate+jwt","kid":[1]}',
        b'{"typ":"chatstate+jwt","kid":{"a":{"b":1}}}',
        b'{"typ":"chatstate+jwt","crit":["b64"],"b64":false}',
        b'{"typ":"chatstate+jwt","kid":"\\ud800"}',
        b"\xff\xfe",
        b"[]",
    ],
)
def test_a_header_that_is_none_makes_no_defect(answer_of: Send, header: bytes) -> None:
    token = f"{segment(header)}.{segment({'sub': 'a'})}.{segment(b'x' * 32)}"
    assert answer_of("GET", f"{SESSIONS}/a", None, bearer(token)).status == 401
    assert answer_of("GET", f"{SESSIONS}/a", None, bearer(token * 2)).status == 401


@pytest.mark.parametrize(
    "value",
    [
        "Bearer " + "a" * 60_000,
        "Bearer " + "." * 60_000,
        "Bearer " + "cs_aaaaaaaa_" + "0" * 60_000,
        "Bearer " + "eyJ0eXAiOiJjaGF0c3RhdGUrand0In0." * 1_500,
        "Bearer " + "\u00ff" * 60_000,
        " " * 60_000,
        "Bearer" + "\u00a0" * 100 + "x",
        "Bearer ..",
        "Bearer .",
        "Bearer e30.e30.",
        "Bearer \u00e9.\u00e9.\u00e9",
    ],
    ids=lambda value: f"{value[:20]!r} {len(value)}",
)
def test_no_long_or_broken_authorization_makes_a_defect(answer_of: Send, value: str) -> None:
    for method, path, body in (("GET", f"{SESSIONS}/a", None), ("POST", "/tokens", {}), ("DELETE", "/users/a", None)):
        assert answer_of(method, path, body, {"Authorization": value}).status == 401
