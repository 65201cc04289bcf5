"""The routes of the original service, with exactly its shapes, and what holds for every answer."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.http.conftest import Server

SESSIONS = "/chat-state-sessions"
RECORD = {
    "session_id": str,
    "user_session_id": str,
    "chat_state": str,
    "last_activity": str,
    "created_at": str,
    "updated_at": str,
    "version": int,
}
LIMIT = 1 << 20


def save(client: httpx.Client, user_session_id: str, state: Any = "state", **members: Any) -> httpx.Response:
    return client.post(SESSIONS, json={"user_session_id": user_session_id, "chat_state": state, **members})


def put(client: httpx.Client, user_session_id: str, /, **members: Any) -> httpx.Response:
    return client.put(f"{SESSIONS}/{user_session_id}", json=members)


def load(client: httpx.Client, user_session_id: str) -> dict[str, Any]:
    answer = client.get(f"{SESSIONS}/{user_session_id}")
    assert answer.status_code == 200
    loaded: dict[str, Any] = answer.json()
    return loaded


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    """RFC 9457, with our `code`."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "code"}
    assert (problem["type"], problem["status"], problem["code"]) == ("about:blank", status, code)
    assert problem["title"]
    assert problem["detail"]


# --- The examples that clients were written after ---------------------------------------------------------------------


def test_the_requests_of_the_documented_api(server: Server) -> None:
    created = server.send(
        "POST",
        "/chat-state-sessions",
        b"""{
  "user_session_id": "session_12345",
  "chat_state": "{\\"messages\\": [], \\"currentStep\\": \\"language\\"}",
  "last_activity": "2025-10-02T10:00:00Z"
}""",
    )
    assert created.status == 201
    loaded = server.send("GET", "/chat-state-sessions/session_12345")
    assert loaded.status == 200
    assert loaded.json() == {
        "chat_state": '{"messages": [], "currentStep": "language"}',
        "last_activity": "2025-10-02T10:00:00Z",
    }
    updated = server.send(
        "PUT",
        "/chat-state-sessions/session_12345",
        b"""{
  "chat_state": "{\\"messages\\": [...], \\"currentStep\\": \\"gender\\"}"
}""",
    )
    assert updated.status == 200
    assert updated.json()["chat_state"] == '{"messages": [...], "currentStep": "gender"}'
    assert server.send("DELETE", "/chat-state-sessions/session_12345").status == 200
    assert server.send("GET", "/chat-state-sessions/session_12345").status == 404


def test_the_curl_example(server: Server) -> None:
    body = b"""{
    "user_session_id": "test_session_123",
    "chat_state": "{\\"messages\\": [], \\"currentStep\\": \\"language\\"}",
    "last_activity": "2025-10-02T10:00:00Z"
  }"""
    curl = {"User-Agent": "curl/8.5.0", "Accept": "*/*", "Host": f"localhost:{server.port}"}
    assert server.send("POST", "/chat-state-sessions", body, curl).status == 201
    loaded = server.send("GET", "/chat-state-sessions/test_session_123", None, curl)
    assert loaded.json() == {
        "chat_state": '{"messages": [], "currentStep": "language"}',
        "last_activity": "2025-10-02T10:00:00Z",
    }


def test_the_front_ends_two_calls(client: httpx.Client, new_id: str) -> None:
    """What JSON.stringify and toISOString give."""
    state = '{"messages":[{"role":"user","text":"Hi"}],"currentStep":"language"}'
    saved = save(client, new_id, state, last_activity="2025-10-02T10:00:00.000Z")
    assert saved.status_code == 201
    assert load(client, new_id) == {"chat_state": state, "last_activity": "2025-10-02T10:00:00Z"}


# --- POST -------------------------------------------------------------------------------------------------------------


def test_post_creates_then_replaces(client: httpx.Client, new_id: str) -> None:
    created, replaced = save(client, new_id, "a"), save(client, new_id, "b")
    assert (created.status_code, replaced.status_code) == (201, 200)
    assert (created.json()["chat_state"], replaced.json()["chat_state"]) == ("a", "b")
    assert replaced.json()["session_id"] == created.json()["session_id"]


def test_a_record_has_exactly_these_members(client: httpx.Client, new_id: str) -> None:
    for answer in (save(client, new_id), save(client, new_id), put(client, new_id, chat_state="b")):
        assert {name: type(value) for name, value in answer.json().items()} == RECORD
        assert answer.json()["user_session_id"] == new_id
        assert str(uuid.UUID(answer.json()["session_id"])) == answer.json()["session_id"]


def test_versions_rise_by_one(client: httpx.Client, new_id: str) -> None:
    answers = [save(client, new_id), save(client, new_id), put(client, new_id, chat_state="b"), put(client, new_id)]
    assert [answer.json()["version"] for answer in answers] == [1, 2, 3, 4]


def test_what_was_created_stays_and_what_was_updated_moves(server: Server, client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id).json()
    server.clock.advance(seconds=1.5)
    replaced = save(client, new_id).json()
    server.clock.advance(seconds=60)
    changed = put(client, new_id, chat_state="b").json()
    assert created["created_at"] == created["updated_at"] == replaced["created_at"] == changed["created_at"]
    times = [datetime.fromisoformat(record["updated_at"]) for record in (created, replaced, changed)]
    assert [(time - times[0]).total_seconds() for time in times] == [0, 1.5, 61.5]
    assert times[2] == server.clock.now


@pytest.mark.parametrize(
    "user_session_id",
    [
        "%s",
        "a/%s",
        "%s/..",
        "a b %s",
        "%s?x=1#y",
        "%%2F%s",
        "+%s;,=&",
        "caf\u00e9 %s",
        "\u05e9\u05dc %s",
        "\U0001f600%s",
    ],
)
def test_the_location_of_a_new_session_can_be_used_as_it_is(server: Server, new_id: str, user_session_id: str) -> None:
    user_session_id %= new_id
    body = json.dumps({"user_session_id": user_session_id, "chat_state": "state"}).encode()
    created = server.send("POST", SESSIONS, body)
    location = created.headers["location"]
    assert (created.status, location) == (201, f"{SESSIONS}/{quote(user_session_id, safe='')}")
    assert server.send("GET", location).json()["chat_state"] == "state"
    assert server.send("PUT", location, b"{}").json()["user_session_id"] == user_session_id
    replaced = server.send("POST", SESSIONS, body)
    assert (replaced.status, replaced.headers.get("location")) == (200, None)


def test_unknown_members_are_ignored(client: httpx.Client, new_id: str) -> None:
    saved = save(client, new_id, locale="de", version=99, session_id="x", created_at="never")
    assert (saved.status_code, set(saved.json()), saved.json()["version"]) == (201, set(RECORD), 1)
    changed = put(client, new_id, chat_state="b", user_session_id="other", version=99)
    assert (changed.status_code, changed.json()["user_session_id"], changed.json()["version"]) == (200, new_id, 2)


def test_all_that_is_wrong_is_named_at_once(client: httpx.Client) -> None:
    answer = client.post(SESSIONS, json={"user_session_id": "", "chat_state": 1, "last_activity": "soon"})
    assert_problem(answer, 400, "invalid_request")
    assert [error["member"] for error in answer.json()["errors"]] == ["user_session_id", "chat_state", "last_activity"]


# --- GET --------------------------------------------------------------------------------------------------------------


def test_get_has_exactly_two_members(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "a", last_activity="2025-10-02T10:00:00Z")
    answer = client.get(f"{SESSIONS}/{new_id}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"chat_state": "a", "last_activity": "2025-10-02T10:00:00Z"}


def test_head_is_get_without_the_body(client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    got, head = client.get(f"{SESSIONS}/{new_id}"), client.head(f"{SESSIONS}/{new_id}")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "content-length", "cache-control"):
        assert head.headers[name] == got.headers[name]


def test_head_of_a_missing_session_is_not_found(client: httpx.Client, new_id: str) -> None:
    assert client.head(f"{SESSIONS}/{new_id}").status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_missing_session_is_not_found(client: httpx.Client, new_id: str, method: str) -> None:
    body = {"chat_state": "state"} if method == "PUT" else None
    assert_problem(client.request(method, f"{SESSIONS}/{new_id}", json=body), 404, "session_not_found")
    assert client.head(f"{SESSIONS}/{new_id}").status_code == 404, "nothing was created"


# --- The state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        '{"messages": [], "currentStep": "language"}',
        "",
        "x",
        "null",
        " \t\r\n ",
        "Grüße, 世界, שלום, 😀👩‍👩‍👧",
        "cafe\u0301 \u00e9 \ufeff\uffff\u2028",
        "\"quoted\" 'single' \\back\\ /slash/ \\u0041 \\n %41 <b>&amp;</b>",
        "\x01\x1f\x7f\x80",
        '{"a": "\\u0000 \\ud800", "n": 12345678901234567890.10, "n": -0}',
        "H4sIAAAAAAAAA6tWKkktLlGyUlAqS8wpTtVRSs7PS1WyUkorzs9VqgUAb8aVWB4AAAA=",
    ],
)
def test_a_state_comes_back_exactly(client: httpx.Client, new_id: str, state: str) -> None:
    assert save(client, new_id, state).json()["chat_state"] == state
    assert load(client, new_id)["chat_state"] == state
    assert put(client, new_id, chat_state=state).json()["chat_state"] == state
    assert load(client, new_id)["chat_state"] == state


@pytest.mark.parametrize("character", ["a", "é", "世", "😀"])
def test_the_limit_counts_bytes_in_utf8(client: httpx.Client, new_id: str, character: str) -> None:
    size = len(character.encode())
    exactly = character * (LIMIT // size) + "a" * (LIMIT % size)
    assert save(client, new_id, exactly).status_code == 201
    assert_problem(save(client, new_id, exactly + "a"), 413, "too_large")
    assert_problem(put(client, new_id, chat_state=exactly + "a"), 413, "too_large")
    assert load(client, new_id)["chat_state"] == exactly


def test_escapes_that_double_the_largest_state_on_the_wire_pass(client: httpx.Client, new_id: str) -> None:
    assert save(client, new_id, '"' * LIMIT).status_code == 201
    assert load(client, new_id)["chat_state"] == '"' * LIMIT


@pytest.mark.parametrize(
    "document",
    [
        '{"messages": [], "currentStep": "language"}',
        '{ \t"a" :\n[ 1 ,2 ]\r\n }',
        "[]",
        "[1.0, 1e2, 1E+2, 12345678901234567890, -0, 0.10]",
        '{"b": 1, "a": 2, "b": {"a": 3, "a": 4}}',
        '["\\u00e9", "\\/", "é", "😀", "\\ud83d\\ude00", "]", "\\"}"]',
    ],
)
def test_an_object_or_array_is_kept_as_it_was_written(server: Server, new_id: str, document: str) -> None:
    body = f'{{"chat_state" : {document} , "user_session_id":"{new_id}"}}'.encode()
    assert server.send("POST", SESSIONS, body).json()["chat_state"] == document
    assert server.send("GET", f"{SESSIONS}/{new_id}").json()["chat_state"] == document
    assert server.send("PUT", f"{SESSIONS}/{new_id}", b'{"chat_state":"x"}').status == 200
    assert server.send("PUT", f"{SESSIONS}/{new_id}", body).json()["chat_state"] == document


# --- PUT --------------------------------------------------------------------------------------------------------------


def test_put_changes_the_state(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "a")
    changed = put(client, new_id, chat_state="b")
    assert (changed.status_code, changed.json()["chat_state"]) == (200, "b")
    assert load(client, new_id)["chat_state"] == "b"


@pytest.mark.parametrize("members", [{}, {"last_activity": None}, {"last_activity": "2024-02-29T00:00:00Z"}])
def test_put_keeps_a_state_that_is_absent(client: httpx.Client, new_id: str, members: dict[str, Any]) -> None:
    save(client, new_id, '{"kept": true}')
    assert put(client, new_id, **members).json()["chat_state"] == '{"kept": true}'
    assert load(client, new_id)["chat_state"] == '{"kept": true}'


@pytest.mark.parametrize("members", [{}, {"last_activity": None}])
def test_an_absent_time_becomes_now(server: Server, client: httpx.Client, new_id: str, members: dict[str, Any]) -> None:
    server.clock.now = datetime(2026, 3, 4, 5, 6, 7, 89_000, UTC)
    assert save(client, new_id, **members).json()["last_activity"] == "2026-03-04T05:06:07.089Z"
    server.clock.advance(seconds=1)
    assert put(client, new_id, chat_state="b", **members).json()["last_activity"] == "2026-03-04T05:06:08.089Z"
    server.clock.advance(seconds=0.911)
    assert put(client, new_id, **members).json()["last_activity"] == "2026-03-04T05:06:09Z"
    assert load(client, new_id)["last_activity"] == "2026-03-04T05:06:09Z"


# --- Times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("2025-10-02T10:00:00Z", "2025-10-02T10:00:00Z"),
        ("2025-10-02T10:00:00.120Z", "2025-10-02T10:00:00.120Z"),
        ("2025-10-02T10:00:00.123456Z", "2025-10-02T10:00:00.123456Z"),
        ("2025-10-02T10:00:00.123456789Z", "2025-10-02T10:00:00.123456Z"),
        ("2025-10-02T10:00:00.000000001Z", "2025-10-02T10:00:00Z"),
        ("2025-10-02T10:00:00.5Z", "2025-10-02T10:00:00.500Z"),
        ("2025-10-02T12:00:00+02:00", "2025-10-02T10:00:00Z"),
        ("2025-10-01T22:30:00.5-11:30", "2025-10-02T10:00:00.500Z"),
        ("2025-10-02T10:00:00-00:00", "2025-10-02T10:00:00Z"),
        ("2025-10-02t10:00:00z", "2025-10-02T10:00:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2017-01-01T01:59:60.250+02:00", "2017-01-01T00:00:00.250Z"),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_kept_in_utc(client: httpx.Client, new_id: str, sent: str, kept: str) -> None:
    assert save(client, new_id, last_activity=sent).json()["last_activity"] == kept
    assert load(client, new_id)["last_activity"] == kept
    assert put(client, new_id, last_activity=sent).json()["last_activity"] == kept


def test_a_clients_clock_decides_nothing_but_its_own_member(server: Server, client: httpx.Client, new_id: str) -> None:
    record = save(client, new_id, last_activity="1999-01-01T00:00:00Z").json()
    assert datetime.fromisoformat(record["created_at"]) == server.clock.now
    assert datetime.fromisoformat(record["updated_at"]) == server.clock.now


# --- DELETE -----------------------------------------------------------------------------------------------------------


def test_delete_answers_json_and_then_there_is_nothing(client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    deleted = client.delete(f"{SESSIONS}/{new_id}")
    assert (deleted.status_code, deleted.headers["content-type"]) == (200, "application/json")
    assert set(deleted.json()) == {"message"}
    assert isinstance(deleted.json()["message"], str)
    for method in ("GET", "DELETE"):
        assert_problem(client.request(method, f"{SESSIONS}/{new_id}"), 404, "session_not_found")


def test_a_session_that_is_created_again_is_another_one(client: httpx.Client, new_id: str) -> None:
    first = save(client, new_id)
    client.delete(f"{SESSIONS}/{new_id}")
    second = save(client, new_id)
    assert (second.status_code, second.json()["version"]) == (201, 1)
    assert second.json()["session_id"] != first.json()["session_id"]
    stale = client.get(f"{SESSIONS}/{new_id}", headers={"If-None-Match": first.headers["etag"]})
    assert stale.status_code == 200
    refused = client.delete(f"{SESSIONS}/{new_id}", headers={"If-Match": first.headers["etag"]})
    assert_problem(refused, 412, "precondition_failed")


# --- What is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", SESSIONS, {"GET", "HEAD", "POST"}),
        ("PATCH", SESSIONS, {"GET", "HEAD", "POST"}),
        ("DELETE", SESSIONS, {"GET", "HEAD", "POST"}),
        ("POST", f"{SESSIONS}/x", {"GET", "HEAD", "PUT", "DELETE"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/readyz", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_allowed(client: httpx.Client, method: str, path: str, allowed: set[str]) -> None:
    answer = client.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert set(re.split(r",\s*", answer.headers["allow"])) >= allowed
    assert method not in answer.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "path", ["/demo/", "/nothing", "/chat-state-sessions/", "/chat-state-sessions/a/b", "/healthz/"]
)
def test_a_path_that_is_not_there(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404, "not_found")


# --- Every answer -----------------------------------------------------------------------------------------------------

CREATE, CHANGE = {"user_session_id": "every", "chat_state": "state"}, {"chat_state": "state"}
EVERY = [
    ("POST", SESSIONS, CREATE, {}, {200, 201}),
    ("GET", f"{SESSIONS}/every", None, {}, {200}),
    ("HEAD", f"{SESSIONS}/every", None, {}, {200}),
    ("PUT", f"{SESSIONS}/every", CHANGE, {}, {200}),
    ("GET", f"{SESSIONS}/every", None, {"If-None-Match": "*"}, {304}),
    ("GET", "/healthz", None, {}, {200}),
    ("GET", "/readyz", None, {}, {200}),
    ("PUT", f"{SESSIONS}/every", {"chat_state": 1}, {}, {400}),
    ("POST", SESSIONS, CREATE, {"If-Match": "x"}, {400}),
    ("GET", SESSIONS, None, {"Host": "evil.test"}, {403}),
    ("GET", SESSIONS, None, {"Origin": "http://evil.test"}, {403}),
    ("GET", f"{SESSIONS}/none", None, {}, {404}),
    ("GET", "/none", None, {}, {404}),
    ("PUT", SESSIONS, None, {}, {405}),
    ("POST", SESSIONS, CREATE, {"If-None-Match": "*"}, {412}),
    ("POST", SESSIONS, {"user_session_id": "every", "chat_state": "a" * (LIMIT + 1)}, {}, {413}),
    ("POST", SESSIONS, CREATE, {"Content-Type": "text/plain"}, {415}),
    ("DELETE", f"{SESSIONS}/every", None, {}, {200}),
]


def test_no_answer_may_be_stored_and_every_error_is_a_problem(client: httpx.Client) -> None:
    for method, path, body, headers, statuses in EVERY:
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code in statuses, (method, path, answer.text)
        assert answer.headers["cache-control"] == "no-store", (method, path)
        assert answer.headers["x-content-type-options"] == "nosniff", (method, path)
        if answer.status_code >= 400:
            assert_problem(answer, answer.status_code, answer.json()["code"])


# --- Health -----------------------------------------------------------------------------------------------------------


def test_healthz_says_that_the_process_is_alive(client: httpx.Client) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert set(answer.json()) == {"message"}


def test_readyz_names_the_store_and_its_durability(client: httpx.Client, store_url: str) -> None:
    status = client.get("/readyz").json()
    assert set(status) == {"store", "durability"}
    assert store_url.partition(":")[0][:6] in status["store"].lower()
    assert status["durability"]
