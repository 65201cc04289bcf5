"""Who is let in: every route of the table × every kind of credential, over HTTP. A new route is in it by itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta

import pytest
from msgspec import Struct, json

from chatstate.http.api import Endpoint
from chatstate.http.channels import issue_whatsapp_link, say
from chatstate.http.links import issue_link
from chatstate.http.routes import ENDPOINTS
from chatstate.http.tokens import mint
from chatstate.http.whatsapp import WEBHOOK
from chatstate.keys import Keys
from chatstate.model import SCOPES, VERBS, Scope
from chatstate.stores import Store
from chatstate.tokens import Tokens
from tests.http.conftest import Answer, Server, SettableClock, Start
from tests.http.credentials import (
    ACCOUNT,
    HOUR,
    UNLIMITED,
    Signer,
    bearer,
    beside,
    claims_of,
    delivered,
    echo,
    key_id_of,
    make_key,
    segment,
    signed,
    signer_of,
    verifying,
)

SESSIONS = "/chat-state-sessions"
MINE, FOREIGN, ABSENT = "mine_1", "other_1", "mine_absent"
VISIT = str(uuid.uuid4())
PERSON = "person_1"
ODD_SECRET = b"of another server, 32 bytes long"

Fields = Mapping[str, str]


class World(Struct):
    """A keyed server with a session, and what callers show to it."""

    server: Server
    signer: Signer
    key: str
    keys: dict[str, str]
    refused: dict[str, Fields]

    def token(self, session: str, *verbs: str) -> str:
        return self.signer.sign(claims_of(session, self.server.clock.now, key_id_of(self.key), verbs=verbs))

    def send(self, endpoint: Endpoint, fields: Fields, session: str = MINE, method: str = "") -> Answer:
        """A request to this route; its connection is closed, as bodies of any length end so."""
        body, media_type = None, None
        if endpoint.body is not None:
            body, media_type = b"{}", "application/json"
            if endpoint.method == "PATCH" and isinstance(endpoint.body, Mapping):
                media_type = "application/merge-patch+json"
        if endpoint.handler is say:
            body = json.encode({"id": uuid.uuid4().hex, "text": "Hello"})
        headers = {**fields, "Connection": "close", "Content-Type": media_type}
        return self.server.send(method or endpoint.method, target(endpoint, session), body, headers)

    def tag(self) -> str:
        """The ETag of the session: another one after any change."""
        answer = self.server.send("GET", f"{SESSIONS}/{MINE}", None, bearer(self.key))
        assert answer.status == 200
        return answer.headers["etag"]


def target(endpoint: Endpoint, session: str = MINE) -> str:
    """The path, of the session, and of the visit and the person that go with it."""
    visit, person = (VISIT, PERSON) if session == MINE else (str(uuid.uuid4()), "nobody")
    others = {"version": "1", "link": "BCDF", "code": "BCDF-GHJK", "file": "page.js", "person": "5f1c9b1e2f3b4a67"}
    return endpoint.path.format(userSessionId=session, sessionId=visit, userId=person, **others)


@pytest.fixture(scope="module")
def world(start: Start, store_url: str) -> Iterator[World]:
    clock = SettableClock()
    signer, keys, refused = asyncio.run(_prepared(store_url, clock))
    with start(store_url, clock=clock, rates=UNLIMITED, demo=True, bot=echo, whatsapp=ACCOUNT) as server:
        world = World(server, signer, keys["all"], keys, refused)
        body = json.encode({"user_session_id": MINE, "chat_state": "state"})
        assert server.send("POST", SESSIONS, body, bearer(world.key)).status == 201
        visit = json.encode({"user_session_id": MINE, "session_id": VISIT, "user_id": PERSON})
        assert server.send("POST", "/chat-sessions", visit, bearer(world.key)).status == 201
        yield world


async def _prepared(url: str, clock: SettableClock) -> tuple[Signer, dict[str, str], dict[str, Fields]]:
    now = clock.now
    keys = {"all": await make_key(url, now), "other prefix": await make_key(url, now, id_prefix="other_")}
    for scope in SCOPES:
        keys[f"only {scope}"] = await make_key(url, now, [scope])
        keys[f"all but {scope}"] = await make_key(url, now, [other for other in SCOPES if other != scope])
    revoked, former = await make_key(url, now), await make_key(url, now)
    expired = await make_key(url, now - HOUR, expires_at=now)

    async def change(store: Store) -> None:
        await Keys(store).revoke(key_id_of(revoked), now)
        await Keys(store).rotate(key_id_of(former), now - 2 * HOUR, HOUR)
        await Tokens(store).revoke("mine_revoked", now)

    await beside(url, change)
    signer = await signer_of(url, now)
    refused = {**_keys_refused(keys, revoked, expired, former), **_schemes_refused(keys["all"])}
    tokens = _tokens_refused(signer, clock, keys["all"], revoked)
    return signer, keys, refused | {name: bearer(token) for name, token in tokens.items()}


def _keys_refused(keys: dict[str, str], revoked: str, expired: str, former: str) -> dict[str, Fields]:
    key, other = keys["all"], keys["other prefix"]
    mistyped = key[:-20] + ("a" if key[-20] != "a" else "b") + key[-19:]
    wrong_secret = _of_parts(key_id_of(key), other.split("_")[2][:43])
    return {
        "no credential": {},
        "a mistyped key": bearer(mistyped),
        "a key that is cut": bearer(key[:-1]),
        "a key that is unknown": bearer(_of_parts("aaaaaaaa", other.split("_")[2][:43])),
        "the right id with a wrong secret": bearer(wrong_secret),
        "a key that was revoked": bearer(revoked),
        "a key that has expired": bearer(expired),
        "the secret before a rotation, after its grace": bearer(former),
        "the id alone": bearer(key_id_of(key)),
    }


def _of_parts(key_id: str, secret: str) -> str:
    """A key with the right checksum (CRC-32 in base 62, as the form says)."""
    from zlib import crc32

    text = f"cs_{key_id}_{secret}"
    number, digits = crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit] + digits
    return text + digits


def _schemes_refused(key: str) -> dict[str, Fields]:
    from base64 import b64encode

    return {
        "two credentials, the right one first": {"Authorization": f"Bearer {key}", "authorization": "Bearer x"},
        "two credentials, the right one last": {"Authorization": "Bearer x", "authorization": f"Bearer {key}"},
        "the same one twice": {"Authorization": f"Bearer {key}", "authorization": f"Bearer {key}"},
        "Basic": {"Authorization": f"Basic {b64encode(f'{key}:'.encode()).decode()}"},
        "Basic with a key": {"Authorization": f"Basic {key}"},
        "no scheme": {"Authorization": key},
        "an empty field": {"Authorization": ""},
        "the scheme alone": {"Authorization": "Bearer"},
        "two keys in one field": {"Authorization": f"Bearer {key}, Bearer {key}"},
        "another field": {"X-Api-Key": key, "Proxy-Authorization": f"Bearer {key}", "Cookie": f"token={key}"},
    }


def _tokens_refused(signer: Signer, clock: SettableClock, key: str, revoked: str) -> dict[str, str]:
    now, minter = clock.now, key_id_of(key)

    def claims(session: str = MINE, **other: object) -> dict[str, object]:
        return claims_of(session, now, minter, **other)

    genuine = signer.sign(claims())
    head, payload, signature = genuine.split(".")
    unsigned = {"alg": "none", "typ": "chatstate+jwt", "kid": signer.kid}
    as_rsa = {"alg": "RS256", "typ": "chatstate+jwt", "kid": signer.kid}
    second = now.timestamp()
    return {
        "a token that has expired": signer.sign(claims(iat=second - 3600, auth_time=second - 3600, exp=int(second))),
        "a token for somebody else": signer.sign(claims(aud="chatstate:other")),
        "a token for nobody": signer.sign(claims(aud=None)),
        "a token of another type": signer.sign(claims(), typ="JWT"),
        "a token without a type": signer.sign(claims(), typ=None),
        "alg none": f"{segment(unsigned)}.{payload}.",
        "alg none, with the signature": f"{segment(unsigned)}.{payload}.{signature}",
        "HS512": signer.sign(claims(), "HS512"),
        "RS256 in the header": f"{segment(as_rsa)}.{payload}.{signature}",
        "a key that is not known": Signer("ffffffff", signer.secret).sign(claims()),
        "no key": signer.sign(claims(), kid=""),
        "another key by the same name": Signer(signer.kid, ODD_SECRET).sign(claims()),
        "another payload": f"{head}.{segment(claims(verbs=list(SCOPES)))}.{signature}",
        "another signature": f"{head}.{payload}.{signature[::-1]}",
        "no signature": f"{head}.{payload}.",
        "a critical extension": signer.sign(claims(), crit=["exp"]),
        "a verb that there is not": signer.sign(claims(verbs=["read", "everything"])),
        "no verbs": signer.sign(claims(verbs=None)),
        "no expiry": signer.sign(claims(exp=None)),
        "no session": signer.sign(claims(sub=None)),
        "a token that was revoked": signer.sign(claims("mine_revoked")),
        "a token of a key that was revoked": signer.sign(claims(azp=key_id_of(revoked))),
        "a token of a key that is unknown": signer.sign(claims(azp="aaaaaaaa")),
        "a token from when the server was open": signer.sign(claims(azp="")),
        "a token of another issuer": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.XmNK3GpH3Ys_7wsYBfq4C3M6goz71I7dTgUkuIa5lyQ",
    }


GUARDED = [endpoint for endpoint in ENDPOINTS if endpoint.credential.kind == "key"]
OPEN_TO_ALL = [endpoint for endpoint in ENDPOINTS if endpoint.credential.kind == "none"]
BY_CODE = [endpoint for endpoint in ENDPOINTS if endpoint.credential.kind == "link_code"]
BY_SIGNATURE = [endpoint for endpoint in ENDPOINTS if endpoint.credential.kind == "webhook_signature"]


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


every_guarded_route = pytest.mark.parametrize("endpoint", GUARDED, ids=name_of)


def assert_forbidden(answer: Answer, scope: str = "") -> None:
    assert (answer.status, answer.json()["code"]) == (403, "forbidden")
    if scope:
        challenge = f'Bearer realm="chatstate", error="insufficient_scope", scope="{scope}"'
        assert answer.headers["www-authenticate"] == challenge


def assert_let_in(answer: Answer, what: str = "") -> None:
    """Whatever the handler says to the request."""
    assert answer.status not in (401, 403), what
    assert answer.status < 500, what


def test_every_route_declares_what_it_wants_and_only_these_want_nothing() -> None:
    assert {endpoint.path for endpoint in OPEN_TO_ALL} == {
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/client.js",
        "/",
        "/demo",
        "/demo/{file}",
    }
    assert [name_of(endpoint) for endpoint in BY_CODE] == ["POST /links/{code}"]
    assert [name_of(endpoint) for endpoint in BY_SIGNATURE] == [f"GET {WEBHOOK}", f"POST {WEBHOOK}"]
    assert len(GUARDED) + len(OPEN_TO_ALL) + len(BY_CODE) + len(BY_SIGNATURE) == len(ENDPOINTS)


def test_the_routes_of_the_replaced_service_alone_are_open_to_the_anonymous() -> None:
    anonymous = {name_of(endpoint) for endpoint in ENDPOINTS if endpoint.credential.anonymous}
    one = f"{SESSIONS}/{{userSessionId}}"
    assert anonymous == {f"POST {SESSIONS}", f"GET {one}", f"PUT {one}", f"DELETE {one}"}


# --- No valid credential ----------------------------------------------------------------------------------------------


@every_guarded_route
def test_who_shows_no_valid_credential_is_refused(world: World, endpoint: Endpoint) -> None:
    before = world.tag()
    for name, fields in world.refused.items():
        answer = world.send(endpoint, fields)
        code = "token_expired" if name == "a token that has expired" else "unauthorized"
        assert (answer.status, answer.json()["code"]) == (401, code), name
        nothing_shown = name in ("no credential", "the scheme alone", "another field")
        error = "" if nothing_shown else ', error="invalid_token"'
        assert answer.headers["www-authenticate"] == f'Bearer realm="chatstate"{error}', name
        assert "etag" not in answer.headers, name
    assert world.tag() == before


@every_guarded_route
def test_the_refusal_does_not_depend_on_what_there_is(world: World, endpoint: Endpoint) -> None:
    for name, fields in world.refused.items():
        answers = [world.send(endpoint, fields, session) for session in (MINE, ABSENT, "%ff", "..", "a" * 300)]
        assert {(answer.status, answer.body, tuple(answer.headers)) for answer in answers} == {
            (401, answers[0].body, tuple(answers[0].headers))
        }, name


@pytest.mark.parametrize("endpoint", OPEN_TO_ALL, ids=name_of)
def test_a_route_that_wants_nothing_takes_no_offence(world: World, endpoint: Endpoint) -> None:
    for name, fields in world.refused.items():
        assert world.send(endpoint, fields).status in (200, 303), name


@pytest.mark.parametrize("endpoint", BY_CODE, ids=name_of)
def test_no_credential_stands_in_for_a_code(world: World, endpoint: Endpoint) -> None:
    for fields in (*world.refused.values(), bearer(world.key), bearer(world.token(MINE, *VERBS))):
        answer = world.send(endpoint, fields)
        assert (answer.status, answer.json()["code"]) == (404, "link_not_found")


@pytest.mark.parametrize("endpoint", BY_SIGNATURE, ids=name_of)
def test_no_credential_stands_in_for_a_signature(world: World, endpoint: Endpoint) -> None:
    before = world.tag()
    every_key = (bearer(key) for key in world.keys.values())
    for fields in (*world.refused.values(), *every_key, bearer(world.token(MINE, *VERBS))):
        answer = world.send(endpoint, fields)
        assert (answer.status, answer.json()["code"]) == (403, "webhook_refused")
        assert "www-authenticate" not in answer.headers
    assert world.tag() == before


@pytest.mark.parametrize("name", ["no credential", "a key that was revoked", "two keys in one field"])
def test_a_signature_wants_no_credential_beside_it(world: World, name: str) -> None:
    fields = {**world.refused[name], "Connection": "close"}
    body = delivered(f"Hello from whoever shows {name}")
    assert world.server.send("POST", WEBHOOK, body, {**fields, **signed(body)}).status == 200
    assert world.server.send("GET", f"{WEBHOOK}?{verifying('42')}", None, fields).body == b"42"


@pytest.mark.parametrize("endpoint", [e for e in GUARDED if e.method == "GET"], ids=name_of)
def test_head_wants_what_get_wants(world: World, endpoint: Endpoint) -> None:
    for name, fields in world.refused.items():
        answer = world.send(endpoint, fields, method="HEAD")
        assert (answer.status, answer.body) == (401, b""), name
    allowed = world.send(endpoint, bearer(world.key), ABSENT), world.send(endpoint, bearer(world.key), ABSENT, "HEAD")
    assert allowed[0].status == allowed[1].status
    lacking = world.keys[f"all but {_scope_of(endpoint)}"]
    assert world.send(endpoint, bearer(lacking), method="HEAD").status == 403


# --- Scopes and verbs -------------------------------------------------------------------------------------------------


def _scope_of(endpoint: Endpoint) -> Scope:
    return endpoint.credential.scope or "mint"  # the routes that any token may use ask keys for it


@every_guarded_route
def test_a_key_wants_the_scope_of_the_route_and_no_other(world: World, endpoint: Endpoint) -> None:
    scope, before = _scope_of(endpoint), world.tag()
    for other in set(SCOPES) - {scope}:
        assert_forbidden(world.send(endpoint, bearer(world.keys[f"only {other}"])), scope)
    assert_forbidden(world.send(endpoint, bearer(world.keys[f"all but {scope}"])), scope)
    assert world.tag() == before
    # A token must have a verb, and a key cannot give what it lacks; and whoever goes on on a channel reads and writes.
    if endpoint.handler not in (mint, issue_link, issue_whatsapp_link):
        assert_let_in(world.send(endpoint, bearer(world.keys[f"only {scope}"]), ABSENT))
    assert_let_in(world.send(endpoint, bearer(world.key), ABSENT))


@every_guarded_route
def test_a_token_wants_the_verb_of_the_route_if_it_takes_tokens_at_all(world: World, endpoint: Endpoint) -> None:
    scope, before = endpoint.credential.scope, world.tag()
    for verb in VERBS:
        session = f"mine_{uuid.uuid4().hex}"
        answer = world.send(endpoint, bearer(world.token(session, verb)), session)
        if not endpoint.credential.token:
            assert_forbidden(answer)
        elif scope not in (verb, None):
            assert_forbidden(answer, scope)
        elif endpoint.handler is issue_whatsapp_link:
            assert_forbidden(answer, "write" if verb == "read" else "read")
        else:
            assert_let_in(answer, verb)
    assert world.tag() == before


def test_a_link_to_a_channel_takes_both_verbs_of_those_who_go_on_there(world: World) -> None:
    endpoint = next(each for each in GUARDED if each.handler is issue_whatsapp_link)
    session = f"mine_{uuid.uuid4().hex}"
    assert_let_in(world.send(endpoint, bearer(world.token(session, "read", "write")), session))
    assert_forbidden(world.send(endpoint, bearer(world.keys["all but write"])), "write")
    assert_forbidden(world.send(endpoint, bearer(world.keys["all but read"])), "read")


@every_guarded_route
@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_read_in_any_case(world: World, endpoint: Endpoint, scheme: str) -> None:
    assert_let_in(world.send(endpoint, {"Authorization": f"{scheme} {world.key}"}, ABSENT))


def test_a_token_that_may_only_read_changes_nothing(world: World) -> None:
    before, token = world.tag(), bearer(world.token(MINE, "read"))
    for endpoint in GUARDED:
        if endpoint.method != "GET" and endpoint.credential.scope is not None:
            assert_forbidden(world.send(endpoint, token))
    assert world.tag() == before
    assert world.server.send("GET", f"{SESSIONS}/{MINE}", None, token).json()["chat_state"] == "state"


# --- Not theirs -------------------------------------------------------------------------------------------------------


@every_guarded_route
def test_what_is_not_theirs_is_answered_like_what_there_is_not(world: World, endpoint: Endpoint) -> None:
    before, foreign = world.tag(), world.token(FOREIGN, *VERBS)
    for credential in (world.keys["other prefix"], foreign):
        answers = [world.send(endpoint, bearer(credential), session) for session in (MINE, ABSENT)]
        assert answers[0].status == answers[1].status
        if endpoint.path != "/tokens":
            assert answers[0].body == answers[1].body
        assert b"state" not in answers[0].body.replace(b"Chat state", b"").replace(b"chat_state", b"")
    assert world.tag() == before


# --- Ways around ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_field_makes_another_method_of_a_request(world: World, name: str, method: str) -> None:
    before, token = world.tag(), bearer(world.token(MINE, "read"))
    for path in (f"{SESSIONS}/{MINE}", f"{SESSIONS}/{MINE}?_method=DELETE"):
        answer = world.server.send(method, path, b'{"_method": "DELETE"}', {**token, name: "DELETE"})
        assert answer.status == (200 if method == "GET" else 405)
    assert world.tag() == before


def test_the_id_in_the_path_counts_and_not_one_in_the_body(world: World) -> None:
    token, before = bearer(world.token("mine_path", *VERBS)), world.tag()
    other = json.encode({"user_session_id": MINE, "chat_state": "stolen", "session_id": VISIT})
    assert world.server.send("PUT", f"{SESSIONS}/mine_path", other, token).status == 404
    assert world.server.send("POST", SESSIONS, other, token).status == 404
    assert world.server.send("PUT", f"{SESSIONS}/{MINE}", other, token).status == 404
    assert world.server.send("POST", "/chat-sessions", other, token).status == 404
    assert world.server.send("PATCH", f"/chat-sessions/{VISIT}", other, token).status == 404
    assert_forbidden(world.server.send("POST", "/tokens", json.encode({"user_session_id": MINE}), token))
    assert world.tag() == before


def test_a_visit_does_not_change_hands_by_a_member_of_the_body(world: World) -> None:
    visit = str(uuid.uuid4())
    token = bearer(world.token("mine_hands", *VERBS))
    own = json.encode({"user_session_id": "mine_hands", "session_id": visit})
    assert world.server.send("POST", "/chat-sessions", own, token).status == 201
    body = json.encode({"user_session_id": MINE, "session_outcome": "x"})
    changed = world.server.send("PATCH", f"/chat-sessions/{visit}", body, token)
    assert changed.json()["user_session_id"] == "mine_hands"


@pytest.mark.parametrize(
    "path", [f"/{SESSIONS}/{MINE}", f"{SESSIONS}//{MINE}", f"{SESSIONS}/{MINE}/", f"{SESSIONS}/x/../{MINE}"]
)
def test_no_other_spelling_of_a_path_leads_past_the_gate(world: World, path: str) -> None:
    for fields in ({}, bearer(world.keys["only write"])):
        assert world.server.send("GET", path, None, fields).status in (401, 403, 404)


def test_a_token_of_a_session_is_for_every_spelling_of_its_id(world: World) -> None:
    token = bearer(world.token(MINE, "read"))
    assert world.server.send("GET", f"{SESSIONS}/%6dine%5f1", None, token).status == 200


def test_the_secret_before_a_rotation_is_let_in_within_its_grace(start: Start, own_url: str) -> None:
    clock = SettableClock()
    key = asyncio.run(make_key(own_url, clock.now))
    new = asyncio.run(beside(own_url, lambda store: Keys(store).rotate(key_id_of(key), clock.now, timedelta(hours=1))))
    with start(own_url, clock=clock, rates=UNLIMITED) as server:
        for seconds, expected in ((0, 404), (3599.999, 404), (0.001, 401)):
            clock.advance(seconds=seconds)
            assert server.send("GET", f"{SESSIONS}/a", None, bearer(key)).status == expected
            assert server.send("GET", f"{SESSIONS}/a", None, bearer(new)).status == 404
