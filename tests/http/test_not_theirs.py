"""What is not somebody's is not there for them: the same answers, after the same work, and nothing is left behind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import pytest

from chatstate import create_store
from chatstate.errors import PatchConflict, StateNotPatchable
from chatstate.http.app import ChatState
from chatstate.http.whatsapp import WEBHOOK
from chatstate.mailbox import InboxQuery, OutboxQuery
from chatstate.model import SCOPES, VERBS, RememberedQuery, SessionQuery
from chatstate.record import RecordQuery
from chatstate.visit import VisitQuery
from tests.http.conftest import Answer, SettableClock
from tests.http.credentials import (
    ACCOUNT,
    Asked,
    Signer,
    ask,
    bearer,
    claims_of,
    delivered,
    echo,
    key_id_of,
    link_somebody,
    make_key,
    running,
    signed,
    signer_of,
)

SESSIONS = "/chat-state-sessions"
SECRET = '{"secret": "what only its owner may read"}'
MERGE = {"Content-Type": "application/merge-patch+json"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}


class Place(NamedTuple):
    """What a request is about."""

    session: str
    visit: str
    person: str


THEIRS = Place("a_1", str(uuid.uuid4()), "person_1")
ABSENT = Place("a_2", str(uuid.uuid4()), "person_2")
OWN_ABSENT = Place("b_2", str(uuid.uuid4()), "person_3")
LONG = Place("a_" + "x" * 253, THEIRS.visit, "person_1")


class Ask(NamedTuple):
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = {}
    creates: bool = False

    def of(self, place: Place) -> tuple[str, str, Any]:
        body = {**self.body, "user_session_id": place.session} if self.creates else self.body
        path = self.path.format(id=place.session, visit=place.visit, person=place.person)
        return self.method, path, body

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.headers.get('Content-Type', '')}"


ONE = f"{SESSIONS}/{{id}}"
ASKS = [
    Ask("POST", SESSIONS, {"chat_state": "x"}, creates=True),
    Ask("GET", ONE),
    Ask("HEAD", ONE),
    Ask("PUT", ONE, {"chat_state": "x"}),
    Ask("PUT", ONE, {}),
    Ask("PATCH", ONE, {"a": 1}, MERGE),
    Ask("PATCH", ONE, [{"op": "add", "path": "/a", "value": 1}], JSON_PATCH),
    Ask("DELETE", ONE),
    Ask("GET", f"{ONE}/versions"),
    Ask("GET", f"{ONE}/versions?limit=1"),
    Ask("GET", f"{ONE}/versions/1"),
    Ask("POST", f"{ONE}/restore", {"version": 1}),
    Ask("GET", f"{ONE}/export"),
    Ask("DELETE", f"{ONE}/tokens"),
    Ask("POST", "/chat-sessions", {"session_outcome": "x"}, creates=True),
    Ask("GET", "/chat-sessions/user/{id}"),
    Ask("PUT", "/chat-sessions/user/{id}", {"session_outcome": "x"}),
    Ask("GET", "/chat-sessions/{visit}"),
    Ask("PATCH", "/chat-sessions/{visit}", {"session_outcome": "x"}),
    Ask("GET", "/users/{person}/export"),
    Ask("DELETE", "/users/{person}"),
    Ask("POST", f"{ONE}/messages", {"id": "m1", "text": "Hello"}, creates=True),
    Ask("GET", f"{ONE}/channels"),
    Ask("POST", f"{ONE}/channels/whatsapp/links"),
    Ask("DELETE", f"{ONE}/channels/LINKED"),
]
FIELDS: list[dict[str, str]] = [
    {},
    {"If-Match": "*"},
    {"If-Match": "TAG"},
    {"If-None-Match": "*"},
    {"If-None-Match": "TAG"},
    {"Idempotency-Key": "one"},
    {"Prefer": "return=representation"},
    {"If-Match": '"00000000-0000-4000-8000-000000000000-1"', "Prefer": "return=representation"},
    {"If-None-Match": "*", "Idempotency-Key": "two", "Prefer": "return=representation"},
]


class World(NamedTuple):
    app: ChatState
    asked: Asked
    clock: SettableClock
    owner: str
    callers: dict[str, str]
    tag: str
    linked: str


@pytest.fixture
async def world(own_url: str) -> AsyncIterator[World]:
    """A session of prefix `a_` with all that can be kept of one, and callers who are not to know of it."""
    clock = SettableClock()
    owner, stranger = (
        await make_key(own_url, clock.now, id_prefix="a_"),
        await make_key(own_url, clock.now, SCOPES, "b_"),
    )
    signer = await signer_of(own_url, clock.now)
    store = create_store(own_url)
    asked = Asked(store)
    async with running(store, clock, history=5, bot=echo, whatsapp=ACCOUNT) as app:
        await _fill(app, owner)
        linked = await _go_on_elsewhere(app, clock)
        token = _token(signer, "b_1", clock, stranger)
        near = _token(signer, "a_", clock, owner)
        answer = await ask(app, "GET", f"{SESSIONS}/{THEIRS.session}", None, bearer(owner))
        callers = {"a key of another prefix": stranger, "a token of another session": token, "of a beginning": near}
        yield World(app, asked, clock, owner, callers, answer.headers["etag"], linked)


async def _fill(app: ChatState, owner: str) -> None:
    fields = bearer(owner)
    body = {"user_session_id": THEIRS.session, "chat_state": SECRET}
    for key in ("one", "zero"):
        await ask(app, "POST", SESSIONS, body, {**fields, "Idempotency-Key": key})
    visit = {"user_session_id": THEIRS.session, "session_id": THEIRS.visit, "user_id": THEIRS.person}
    assert (await ask(app, "POST", "/chat-sessions", visit, fields)).status == 201
    assert (await ask(app, "POST", SESSIONS, {**body, "user_session_id": LONG.session}, fields)).status == 201


async def _go_on_elsewhere(app: ChatState, clock: SettableClock) -> str:
    """Somebody goes on with the session on WhatsApp: a message of theirs is answered, and the reply waits to leave."""
    linked = await link_somebody(app.store, THEIRS.session, clock.now)
    body = delivered("What only I have said")
    assert (await ask(app, "POST", WEBHOOK, body, signed(body))).status == 200
    leaving = OutboxQuery(now=clock.now, user_session_id=THEIRS.session)
    async with asyncio.timeout(20):
        while not await app.store.list(leaving):
            pass
    return linked


def _token(signer: Signer, session: str, clock: SettableClock, minted_by: str) -> str:
    return signer.sign(claims_of(session, clock.now, key_id_of(minted_by), verbs=VERBS))


async def kept(world: World) -> list[Any]:
    """All that is in the database, but for when keys were used."""
    store, now = world.app.store, world.clock.now
    queries: list[Any] = [
        SessionQuery(now=now, limit=1000, with_state=True),
        VisitQuery(limit=1000),
        *(RecordQuery(collection=name, now=now) for name in ("api_keys", "signing_keys", "revocations")),
        *(RecordQuery(collection=name, now=now) for name in ("people", "people_names", "people_sessions")),
        InboxQuery(now=now),
        OutboxQuery(now=now),
    ]
    for place in (THEIRS, ABSENT, LONG):
        queries.append(RememberedQuery(user_session_id=place.session, now=now))
    return [await store.list(query) for query in queries]


def shown(answer: Answer) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status, answer.body, answer.headers.multi_items()


async def answered(world: World, request: Ask, fields: Mapping[str, str], credential: str, place: Place) -> Any:
    """The answer, and what it took."""
    chosen = {name: world.tag if value == "TAG" else value for name, value in fields.items()}
    world.asked.taken()
    method, path, body = request.of(place)
    path = path.replace("LINKED", world.linked)
    answer = await ask(world.app, method, path, body, {**request.headers, **chosen, **bearer(credential)})
    return shown(answer), world.asked.taken()


async def test_what_is_not_theirs_is_like_what_there_is_not(world: World) -> None:
    before = await kept(world)
    for request in ASKS:
        for name, credential in world.callers.items():
            await _assert_alike(world, request, name, credential)
        assert await kept(world) == before, request


async def _assert_alike(world: World, request: Ask, name: str, credential: str) -> None:
    for fields in FIELDS:
        theirs = await answered(world, request, fields, credential, THEIRS)
        absent = await answered(world, request, fields, credential, ABSENT)
        assert theirs == absent, (str(request), name, fields)
        assert theirs == await answered(world, request, fields, credential, THEIRS), "and again"
        assert b"what only" not in theirs[0][1]
        if LONG.session in request.of(LONG)[1]:
            assert theirs[0] == (await answered(world, request, fields, credential, LONG))[0], (str(request), fields)


async def test_it_is_like_what_there_is_not_among_their_own(world: World) -> None:
    stranger = world.callers["a key of another prefix"]
    for request in ASKS:
        for fields in FIELDS if not request.creates else []:
            theirs = await answered(world, request, fields, stranger, THEIRS)
            assert theirs == await answered(world, request, fields, stranger, OWN_ABSENT), (str(request), fields)


async def test_nobody_creates_what_is_not_theirs(world: World) -> None:
    for credential in world.callers.values():
        for fields in FIELDS:
            answer = await ask(
                world.app,
                "POST",
                SESSIONS,
                {"user_session_id": ABSENT.session, "chat_state": "x"},
                {**fields, **bearer(credential)},
            )
            assert answer.status in (404, 412, 400)
    assert (await ask(world.app, "GET", f"{SESSIONS}/{ABSENT.session}", None, bearer(world.owner))).status == 404


async def test_a_taken_id_of_a_visit_is_refused_without_a_word_about_whose_it_is(world: World) -> None:
    stranger = bearer(world.callers["a key of another prefix"])
    body = {"user_session_id": "b_1", "session_id": THEIRS.visit}
    refused = await ask(world.app, "POST", "/chat-sessions", body, stranger)
    assert (refused.status, refused.json()["code"]) == (409, "visit_exists")
    assert b"a_1" not in refused.body
    assert b"person" not in refused.body


# --- Lists ------------------------------------------------------------------------------------------------------------

NAMES = [
    "a",
    "a_",
    "a_1",
    "a_2",
    "a_b_1",
    "A_1",
    "a%",
    "a%1",
    "a.",
    "b_1",
    "ab",
    "é_1",
    "é",
    "😀1",
    "a_\u00ff",
    "a_😀",
    "_",
]
PREFIXES = ["", "a", "a_", "a_b", "a%", "A", "_", "é", "😀", "none", "a_\u00ff", "."]


async def _all(app: ChatState, path: str, credential: str, first: str = "") -> list[str]:
    """The ids on all pages."""
    found: list[str] = []
    target = path + first
    while True:
        answer = await ask(app, "GET", target, None, bearer(credential))
        assert answer.status == 200, answer.body
        rows = answer.json()
        found += [row["user_session_id"] for row in (rows["sessions"] if isinstance(rows, dict) else rows)]
        link = answer.headers.get("link")
        if not link:
            return found
        target = link.partition(">")[0].removeprefix("<")


async def test_lists_show_what_is_theirs_on_all_pages(own_url: str) -> None:
    from urllib.parse import quote

    clock = SettableClock()
    everything = await make_key(own_url, clock.now)
    keys = {prefix: await make_key(own_url, clock.now, ["list"], prefix) for prefix in PREFIXES}
    async with running(own_url, clock) as app:
        for name in NAMES:
            body = {"user_session_id": name, "chat_state": SECRET}
            assert (await ask(app, "POST", SESSIONS, body, bearer(everything))).status == 201
            assert (
                await ask(app, "POST", "/chat-sessions", {"user_session_id": name}, bearer(everything))
            ).status == 201
        for prefix, key in keys.items():
            own = sorted(name for name in NAMES if name.startswith(prefix))
            assert sorted(await _all(app, "/chat-sessions?limit=2", key)) == own, prefix
            for order in ("activity", "id"):
                path = f"{SESSIONS}?limit=2&order={order}"
                assert sorted(await _all(app, path, key)) == own, (prefix, order)
                for narrower in PREFIXES:
                    expected = [name for name in own if name.startswith(narrower)]
                    found = await _all(app, path, key, f"&prefix={quote(narrower)}")
                    assert sorted(found) == expected, (prefix, narrower, order)


async def test_a_cursor_of_somebody_else_shows_nothing_of_theirs(own_url: str) -> None:
    clock = SettableClock()
    everything = await make_key(own_url, clock.now)
    key = await make_key(own_url, clock.now, ["list"], "b_")
    async with running(own_url, clock) as app:
        for name in ("a_1", "a_2", "b_1", "b_2", "c_1", "c_2"):
            clock.advance(seconds=1)
            await ask(app, "POST", SESSIONS, {"user_session_id": name, "chat_state": "x"}, bearer(everything))
            await ask(app, "POST", "/chat-sessions", {"user_session_id": name}, bearer(everything))
        for path in (f"{SESSIONS}?limit=1", f"{SESSIONS}?limit=1&order=id", "/chat-sessions?limit=1"):
            target: str | None = path
            while target:
                answer = await ask(app, "GET", target, None, bearer(everything))
                link = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
                target = link or None
                if target:
                    assert set(await _all(app, target, key)) <= {"b_1", "b_2"}


async def test_the_lists_of_two_keys_with_one_prefix_inside_the_other(own_url: str) -> None:
    clock = SettableClock()
    key = await make_key(own_url, clock.now, ["list"], "shop_")
    async with running(own_url, clock) as app:
        for prefix in ("other", "shop", "shop_", "shop_x"):
            answer = await ask(app, "GET", f"{SESSIONS}?prefix={prefix}", None, bearer(key))
            assert (answer.status, answer.json()) == (200, {"sessions": [], "next_cursor": None})


# --- Without `read` ---------------------------------------------------------------------------------------------------


async def test_who_may_not_read_is_shown_no_state_but_what_they_have_just_sent(own_url: str) -> None:
    clock = SettableClock()
    whole = await make_key(own_url, clock.now)
    blind = await make_key(own_url, clock.now, ["write", "delete", "list", "mint", "admin"])
    async with running(own_url, clock, history=50) as app:
        answer = await ask(app, "POST", SESSIONS, {"user_session_id": "a", "chat_state": SECRET}, bearer(whole))
        tag, one = answer.headers["etag"], f"{SESSIONS}/a"
        visit = (
            await ask(app, "POST", "/chat-sessions", {"user_session_id": "a", "user_id": "what only"}, bearer(whole))
        ).json()
        prefer = {"Prefer": "return=representation", **bearer(blind)}
        once = {**prefer, "Idempotency-Key": "k1"}
        stale = {**prefer, "If-Match": '"00000000-0000-4000-8000-000000000000-1"'}
        append = [{"op": "add", "path": "/x", "value": 1}]
        requests = [
            ("PUT", one, {}, prefer),
            ("PUT", one, {}, once),
            ("PUT", one, {}, once),
            ("PUT", one, {"chat_state": "y"}, stale),
            ("PUT", one, {}, stale),
            ("POST", SESSIONS, {"user_session_id": "a", "chat_state": "y"}, {**prefer, "If-None-Match": "*"}),
            ("DELETE", one, None, stale),
            ("PATCH", one, {"x": 1}, {**stale, **MERGE}),
            ("PATCH", one, {"x": 1}, {**prefer, **MERGE}),
            ("PATCH", one, append, {**once, **JSON_PATCH, "Idempotency-Key": "k2"}),
            ("PATCH", one, append, {**once, **JSON_PATCH, "Idempotency-Key": "k2"}),
            ("PATCH", one, [{"op": "test", "path": "/secret", "value": ""}], {**prefer, **JSON_PATCH}),
            ("PATCH", one, [{"op": "remove", "path": "/secret/a"}], {**prefer, **JSON_PATCH}),
            ("PATCH", one, [{"op": "copy", "from": "/secret", "path": "/b"}], {**prefer, **JSON_PATCH}),
            ("PATCH", one, [{"op": "move", "from": "/secret", "path": "/b"}], {**prefer, **JSON_PATCH}),
            ("POST", f"{one}/restore", {"version": 1}, prefer),
            ("POST", f"{one}/restore", {"version": 1}, {**once, "Idempotency-Key": "k3"}),
            ("POST", f"{one}/restore", {"version": 1}, {**once, "Idempotency-Key": "k3"}),
            ("POST", f"{one}/restore", {"version": 1}, stale),
            ("GET", f"{SESSIONS}", None, prefer),
            ("GET", f"{SESSIONS}?include=chat_state", None, prefer),
            ("GET", one, None, {**prefer, "If-None-Match": tag}),
            ("GET", f"{one}/versions", None, prefer),
            ("GET", f"{one}/versions/1", None, prefer),
            ("GET", f"{one}/export", None, prefer),
            ("PATCH", f"/chat-sessions/{visit['session_id']}", {"session_outcome": "x"}, prefer),
            ("PUT", "/chat-sessions/user/a", {"session_outcome": "x"}, prefer),
        ]
        for method, path, body, fields in requests:
            answer = await ask(app, method, path, body, fields)
            assert answer.status in (200, 403, 409, 412), (method, path, answer.body)
            assert b"what only" not in answer.body, (method, path, fields)
            assert b'"chat_state"' not in answer.body, (method, path, fields)
        assert (await ask(app, "PUT", one, {"chat_state": "z"}, prefer)).json()["chat_state"] == "z"


# --- Idempotency keys -------------------------------------------------------------------------------------------------


async def test_idempotency_keys_of_two_callers_do_not_meet(own_url: str) -> None:
    clock = SettableClock()
    keys = [await make_key(own_url, clock.now) for _ in range(2)]
    signer = await signer_of(own_url, clock.now)
    token = _token(signer, "a", clock, keys[0])
    async with running(own_url, clock) as app:
        for credential in (*keys, token):
            body = {"user_session_id": "a", "chat_state": f"of {credential[:12]}"}
            once = {**bearer(credential), "Idempotency-Key": "same"}
            first, again = [await ask(app, "POST", SESSIONS, body, once) for _ in range(2)]
            assert first.status in (200, 201), first.body
            assert "idempotency-replayed" not in first.headers
            assert again.headers["idempotency-replayed"] == "true"
            assert again.json()["version"] == first.json()["version"]
            deleted = await ask(app, "DELETE", f"{SESSIONS}/a", None, {**bearer(credential), "Idempotency-Key": "end"})
            assert deleted.status == 200
            assert "idempotency-replayed" not in deleted.headers
            assert (await ask(app, "POST", SESSIONS, body, bearer(credential))).status == 201


async def test_a_retry_with_a_renewed_token_is_the_same_callers(own_url: str) -> None:
    clock = SettableClock()
    key = await make_key(own_url, clock.now)
    async with running(own_url, clock) as app:
        token = (await ask(app, "POST", "/tokens", {"user_session_id": "a"}, bearer(key))).json()["token"]
        body = {"user_session_id": "a", "chat_state": "x"}
        await ask(app, "POST", SESSIONS, body, {**bearer(token), "Idempotency-Key": "k"})
        clock.advance(seconds=60)
        renewed = (await ask(app, "POST", "/tokens", None, bearer(token))).json()["token"]
        again = await ask(app, "POST", SESSIONS, body, {**bearer(renewed), "Idempotency-Key": "k"})
        assert again.headers["idempotency-replayed"] == "true"


# --- Patches of who may not read --------------------------------------------------------------------------------------


async def test_who_may_not_read_is_not_told_why_a_patch_does_not_fit(own_url: str) -> None:
    clock = SettableClock()
    blind = await make_key(own_url, clock.now, ["write"])
    async with running(own_url, clock) as app:
        fields = {**bearer(blind), **JSON_PATCH}
        for state, patch, status in (
            ('{"what only I know": 1, "what only I know": 2}', [{"op": "add", "path": "/a", "value": 1}], 409),
            ('{"a": [1, 2]}', [{"op": "remove", "path": "/a/2"}], 409),
            ("what only I know", [{"op": "add", "path": "/a", "value": 1}], 409),
        ):
            await ask(app, "POST", SESSIONS, {"user_session_id": "a", "chat_state": state}, bearer(blind))
            answer = await ask(app, "PATCH", f"{SESSIONS}/a", patch, fields)
            assert answer.status == status
            code = answer.json()["code"]
            told = {"state_not_patchable": StateNotPatchable, "patch_conflict": PatchConflict}[code]
            assert answer.json()["detail"] == told().message


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 5000, "-0.0", "123456789012345678901234567890.5"])
async def test_a_patch_of_who_may_not_read_takes_numbers_of_any_size(own_url: str, number: str) -> None:
    clock = SettableClock()
    blind, seeing = await make_key(own_url, clock.now, ["write"]), await make_key(own_url, clock.now)
    async with running(own_url, clock) as app:
        await ask(app, "POST", SESSIONS, {"user_session_id": "a", "chat_state": "{}"}, bearer(blind))
        patch = f'[{{"op": "add", "path": "/n", "value": {number}}}]'.encode()
        answer = await ask(app, "PATCH", f"{SESSIONS}/a", patch, {**bearer(blind), **JSON_PATCH})
        assert answer.status == 200, answer.body
        loaded = await ask(app, "GET", f"{SESSIONS}/a", None, bearer(seeing))
        assert loaded.json()["chat_state"] == f'{{"n":{number}}}'
