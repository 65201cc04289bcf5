"""Idempotency-Key: a write that is sent again, because its answer was lost, happens once and is answered as it was.

What many clients and killed servers do to it is tested in `tests/crash/test_races.py`.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, NamedTuple

import httpx
import pytest

from tests.http.conftest import Server, SettableClock, Start
from tests.http.test_endpoints import SESSIONS, assert_problem, load, save

STATE = '{"messages": ["Hi"]}'
HOURS_24 = timedelta(hours=24)
MICROSECOND = timedelta(microseconds=1)
PREFERRED = {"Prefer": "return=representation"}

Headers = dict[str, str] | list[tuple[str, str]]


class Write(NamedTuple):
    """A request that writes. `is_first`: it finds no session; else there is one, in version 1."""

    method: str
    path: str
    body: Any = None
    kind: str = "application/json"
    is_first: bool = False


WRITES = {
    "create": Write("POST", "", {"chat_state": STATE, "expires_in_seconds": 600}, is_first=True),
    "replace": Write("POST", "", {"chat_state": '{"messages": []}'}),
    "update": Write("PUT", "/{id}", {"chat_state": {"an": "object"}, "last_activity": "2024-02-29T00:00:00Z"}),
    "touch": Write("PUT", "/{id}", {}),
    "merge patch": Write("PATCH", "/{id}", {"messages": ["Hello"]}, "application/merge-patch+json"),
    "JSON patch": Write(
        "PATCH", "/{id}", [{"op": "add", "path": "/messages/-", "value": "Hello"}], "application/json-patch+json"
    ),
    "restore": Write("POST", "/{id}/restore", {"version": 1}),
    "delete": Write("DELETE", "/{id}"),
}
writes = pytest.mark.parametrize("name", WRITES)
edits = pytest.mark.parametrize("name", ["merge patch", "JSON patch", "restore"])


def send(client: httpx.Client, name: str, user_session_id: str, headers: Headers | None = None) -> httpx.Response:
    """One of the writes, the same bytes each time."""
    write = WRITES[name]
    body = {"user_session_id": user_session_id, **write.body} if write.path == "" else write.body
    given = list(headers.items()) if isinstance(headers, dict) else headers or []
    return client.request(
        write.method,
        SESSIONS + write.path.replace("{id}", user_session_id),
        content=None if body is None else json.dumps(body).encode(),
        headers=[*given, ("Content-Type", write.kind)],
    )


def prepare(client: httpx.Client, name: str, user_session_id: str, **members: Any) -> str | None:
    """What the write is to find there; its tag."""
    if WRITES[name].is_first:
        return None
    return save(client, user_session_id, STATE, **members).headers["etag"]


def tag_of(client: httpx.Client, user_session_id: str) -> str | None:
    """The tag of the session; None when there is none."""
    tag: str | None = client.get(f"{SESSIONS}/{user_session_id}").headers.get("etag")
    return tag


def told(answer: httpx.Response) -> dict[str, Any]:
    """All that an answer says, but for when it was sent, and whether it was a replay."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "idempotency-replayed")}
    return {"status": answer.status_code, "body": answer.content, "headers": headers}


def assert_replay(answer: httpx.Response, first: httpx.Response) -> None:
    assert told(answer) == told(first)
    assert answer.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers


# --- The same again ---------------------------------------------------------------------------------------------------


@writes
def test_a_retry_is_answered_as_the_first_and_changes_nothing(
    server: Server, client: httpx.Client, new_id: str, name: str
) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, {"Idempotency-Key": "key"})
    assert first.status_code == (201 if name == "create" else 200)
    left = tag_of(client, new_id)
    assert left == first.headers.get("etag")
    for _ in range(3):
        server.clock.advance(seconds=1.5)
        assert_replay(send(client, name, new_id, {"Idempotency-Key": "key"}), first)
        assert tag_of(client, new_id) == left


def test_what_a_replay_of_a_creation_carries(client: httpx.Client, new_id: str) -> None:
    first = send(client, "create", new_id, {"Idempotency-Key": "key"})
    replay = send(client, "create", new_id, {"Idempotency-Key": "key"})
    assert replay.status_code == 201
    assert replay.headers["location"] == first.headers["location"] == f"{SESSIONS}/{new_id}"
    assert replay.json()["expires_at"] == first.json()["expires_at"]
    assert replay.json()["chat_state"] == STATE


@writes
def test_a_new_key_is_a_new_request(client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, {"Idempotency-Key": "one"})
    second = send(client, name, new_id, {"Idempotency-Key": "two"})
    assert "idempotency-replayed" not in second.headers
    if name == "delete":
        assert_problem(second, 404, "session_not_found")
    elif name == "restore":  # the first has replaced version 1
        assert_problem(second, 404, "version_not_found")
    else:
        assert second.json()["version"] == first.json()["version"] + 1


@writes
def test_a_retry_is_a_replay_also_when_others_have_written(client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, {"Idempotency-Key": "key"})
    other = save(client, new_id, "by somebody else").headers["etag"]
    assert_replay(send(client, name, new_id, {"Idempotency-Key": "key"}), first)
    assert tag_of(client, new_id) == other
    assert load(client, new_id)["chat_state"] == "by somebody else"


@writes
def test_a_replay_comes_before_preconditions(client: httpx.Client, new_id: str, name: str) -> None:
    """The retry as it was, whose tag is now stale, and one after a new load; each would be 412 otherwise."""
    current = prepare(client, name, new_id)
    condition = {"If-Match": current} if current else {"If-None-Match": "*"}
    first = send(client, name, new_id, {"Idempotency-Key": "key", **condition})
    assert first.is_success
    save(client, new_id, "by somebody else")
    for other in (
        condition,
        {"If-Match": tag_of(client, new_id) or ""},
        {"If-Match": '"x-1"'},
        {"If-Match": "*"},
        {"If-None-Match": "*"},
        {},
    ):
        assert_replay(send(client, name, new_id, {"Idempotency-Key": "key", **other}), first)
        assert load(client, new_id)["chat_state"] == "by somebody else"


@writes
def test_a_malformed_precondition_is_refused_all_the_same(client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    assert send(client, name, new_id, {"Idempotency-Key": "key"}).is_success
    answer = send(client, name, new_id, {"Idempotency-Key": "key", "If-Match": "malformed"})
    assert_problem(answer, 400, "invalid_precondition")


# --- The same key for something else ----------------------------------------------------------------------------------


@writes
def test_a_key_is_good_for_one_request(client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, {"Idempotency-Key": "key"})
    left = tag_of(client, new_id)
    for other in WRITES.keys() - {name}:
        assert_problem(send(client, other, new_id, {"Idempotency-Key": "key"}), 422, "idempotency_key_reused")
    assert tag_of(client, new_id) == left
    assert_replay(send(client, name, new_id, {"Idempotency-Key": "key"}), first)


def test_a_body_of_other_bytes_is_another_request(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    target = f"{SESSIONS}/{new_id}"
    key = {"Idempotency-Key": "key"}
    assert server.send("PUT", target, b'{"chat_state": "a"}', key).status == 200
    for body in (b'{"chat_state": "b"}', b'{"chat_state":"a"}', b'{"chat_state": "a"} ', b"{}"):
        answer = server.send("PUT", target, body, key)
        assert (answer.status, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert load(client, new_id)["chat_state"] == "a"


def test_the_kind_of_patch_belongs_to_the_request(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    kinds = ["application/json-patch+json", "application/merge-patch+json"]
    answers = [
        server.send("PATCH", f"{SESSIONS}/{new_id}", b"[]", {"Content-Type": kind, "Idempotency-Key": "key"})
        for kind in (kinds[0], kinds[1], f"{kinds[0].upper()}; charset=utf-8")
    ]
    assert [answer.status for answer in answers] == [200, 422, 200]
    assert answers[2].headers["idempotency-replayed"] == "true"
    assert load(client, new_id)["chat_state"] != "[]"


@writes
def test_a_key_belongs_to_one_session(client: httpx.Client, new_id: str, name: str) -> None:
    for user_session_id in (new_id, f"{new_id}-other"):
        prepare(client, name, user_session_id)
        answer = send(client, name, user_session_id, {"Idempotency-Key": "key"})
        assert answer.is_success
        assert "idempotency-replayed" not in answer.headers


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "k",
        '"k"',
        '"quoted with blanks"',
        "8e03978e-40d5-43e8-bc93-6894a57f9324",
        '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
        "!#$%&'()*+,-./:;<=>?@[]^_`{|}~",
        "*",
        "x" * 255,
        '"' + "x" * 255 + '"',
    ],
)
def test_a_key_may_be(client: httpx.Client, new_id: str, key: str) -> None:
    first = send(client, "create", new_id, {"Idempotency-Key": key})
    assert first.status_code == 201
    assert_replay(send(client, "create", new_id, {"Idempotency-Key": key}), first)


def test_quotes_are_no_part_of_the_key_but_case_is(client: httpx.Client, new_id: str) -> None:
    """RFC 9651 writes strings in quotes; many clients send none."""
    first = send(client, "create", new_id, {"Idempotency-Key": '"key"'})
    assert_replay(send(client, "create", new_id, {"Idempotency-Key": "key"}), first)
    assert send(client, "create", new_id, {"Idempotency-Key": "Key"}).json()["version"] == 2


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b'""'],
        [b"x" * 256],
        [b'"' + b"x" * 256 + b'"'],
        [b"x" * 10_000],
        [b"a b"],
        [b'"a'],
        [b'a"'],
        [b'a"b'],
        [b'"a"b"'],
        [rb'"a\"b"'],
        [b'"a";p=1'],
        [b'"a", "b"'],
        [b'"a\tb"'],
        [b"\xc3\xa9"],
        [b'"\xe9"'],
        [b"one", b"two"],
        [b"one", b"one"],
    ],
    ids=lambda lines: str(lines)[:30],
)
def test_a_key_must_not_be(client: httpx.Client, new_id: str, lines: list[bytes]) -> None:
    """Taken for no key, it would leave the write without the protection that it asked for."""
    fields: Any = [(b"Idempotency-Key", line) for line in lines]
    answer = send(client, "create", new_id, fields)
    assert_problem(answer, 400, "invalid_request")
    assert [error["member"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    assert tag_of(client, new_id) is None


@pytest.mark.parametrize("byte", [b"\x00", b"\x01", b"\x0b", b"\r", b"\x7f"])
def test_a_key_with_a_control_character_is_no_request(server: Server, new_id: str, byte: bytes) -> None:
    body = json.dumps({"user_session_id": new_id, "chat_state": STATE}).encode()
    head = f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    head += b"Idempotency-Key: a" + byte + b"b\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert server.raw(head + body).status == 400
    assert server.send("GET", f"{SESSIONS}/{new_id}").status == 404


@writes
def test_every_write_looks_at_the_key(client: httpx.Client, new_id: str, name: str) -> None:
    tag = prepare(client, name, new_id)
    assert_problem(send(client, name, new_id, {"Idempotency-Key": "a b"}), 400, "invalid_request")
    assert tag_of(client, new_id) == tag


def test_reads_do_not(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    for path in (f"/{new_id}", "", f"/{new_id}/versions", f"/{new_id}/versions/1"):
        for key in ("key", "a b"):
            answer = client.get(f"{SESSIONS}{path}", headers={"Idempotency-Key": key})
            assert answer.status_code == 200
            assert "idempotency-replayed" not in answer.headers


# --- Failures ---------------------------------------------------------------------------------------------------------

KEYED = {"Idempotency-Key": "key"}


def assert_works_now(answer: httpx.Response) -> None:
    assert answer.is_success
    assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize("name", [name for name, write in WRITES.items() if write.path])
def test_a_404_is_not_remembered(client: httpx.Client, new_id: str, name: str) -> None:
    for _ in range(2):
        assert_problem(send(client, name, new_id, KEYED), 404, "session_not_found")
    save(client, new_id, STATE)
    assert_works_now(send(client, name, new_id, KEYED))


@writes
def test_a_412_is_not_remembered(client: httpx.Client, new_id: str, name: str) -> None:
    tag = prepare(client, name, new_id)
    for _ in range(2):
        assert_problem(send(client, name, new_id, {**KEYED, "If-Match": '"x-1"'}), 412, "precondition_failed")
    assert_works_now(send(client, name, new_id, {**KEYED, "If-Match": tag} if tag else KEYED))


def test_a_409_is_not_remembered(client: httpx.Client, new_id: str) -> None:
    for state, code in (("no JSON", "state_not_patchable"), ("[]", "patch_conflict"), ("{}", "patch_conflict")):
        save(client, new_id, state)
        assert_problem(send(client, "JSON patch", new_id, KEYED), 409, code)
    save(client, new_id, STATE)
    assert_works_now(send(client, "JSON patch", new_id, KEYED))


def test_a_version_that_is_not_there_is_not_remembered(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    target = f"{SESSIONS}/{new_id}/restore"
    assert_problem(client.post(target, json={"version": 2}, headers=KEYED), 404, "version_not_found")
    save(client, new_id, STATE)
    assert_works_now(client.post(target, json={"version": 2}, headers=KEYED))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"chat_state": 1}', "application/json", 400),
        (b'{"chat_state": "' + b"x" * (1 << 20) + b'x"}', "application/json", 413),
        (b'{"chat_state": "a"}', "text/plain", 415),
    ],
    ids=["no JSON", "no state", "too large", "no JSON either"],
)
def test_a_refused_body_is_not_remembered(
    server: Server, client: httpx.Client, new_id: str, body: bytes, kind: str, status: int
) -> None:
    save(client, new_id, STATE)
    target = f"{SESSIONS}/{new_id}"
    assert server.send("PUT", target, body, {**KEYED, "Content-Type": kind}).status == status
    assert server.send("PUT", target, b'{"chat_state": "a"}', KEYED).status == 200


def test_a_write_that_needs_a_precondition_needs_it_with_a_key_too(start: Start, own_url: str) -> None:
    with start(own_url, require_preconditions=True) as server, server.client() as client:
        assert_problem(send(client, "create", "one", KEYED), 428, "precondition_required")
        first = send(client, "create", "one", {**KEYED, "If-None-Match": "*"})
        assert_works_now(first)
        assert_replay(send(client, "create", "one", {**KEYED, "If-None-Match": "*"}), first)
        assert_problem(send(client, "create", "one", KEYED), 428, "precondition_required")


# --- What outlives what -----------------------------------------------------------------------------------------------


def delete(client: httpx.Client, user_session_id: str) -> None:
    assert client.delete(f"{SESSIONS}/{user_session_id}").status_code == 200


def assert_replay_of_what_is_gone(retry: httpx.Response, first: httpx.Response, name: str) -> None:
    """A state that the client has not sent again is gone with the session, so a touch can only be 404."""
    if name == "touch":
        assert_problem(retry, 404, "session_not_found")
    else:
        assert_replay(retry, first)


@writes
def test_a_retry_after_a_deletion_does_not_bring_the_session_back(client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, KEYED)
    if name != "delete":
        delete(client, new_id)
    retry = send(client, name, new_id, KEYED)
    assert_replay_of_what_is_gone(retry, first, name)
    assert tag_of(client, new_id) is None


@edits
def test_what_a_retried_edit_has_made_is_not_shown_after_a_deletion(
    client: httpx.Client, new_id: str, name: str
) -> None:
    """Nor is the state of the session that is there instead."""
    prepare(client, name, new_id)
    first = send(client, name, new_id, KEYED)
    delete(client, new_id)
    assert_replay(send(client, name, new_id, KEYED | PREFERRED), first)
    for number in range(3):
        save(client, new_id, f"of another session {number}")
        assert_replay(send(client, name, new_id, KEYED | PREFERRED), first)


def test_a_retried_deletion_deletes_nothing_new(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    first = send(client, "delete", new_id, KEYED)
    created = save(client, new_id, "anew")
    assert_replay(send(client, "delete", new_id, KEYED), first)
    assert tag_of(client, new_id) == created.headers["etag"]


@writes
def test_a_key_is_forgotten_after_a_day(server: Server, client: httpx.Client, new_id: str, name: str) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, KEYED)
    began = server.clock.now
    server.clock.now = began + HOURS_24 - MICROSECOND
    assert_replay(send(client, name, new_id, KEYED), first)
    server.clock.now = began + HOURS_24
    again = send(client, name, new_id, KEYED)
    assert "idempotency-replayed" not in again.headers
    if name == "delete":
        assert_problem(again, 404, "session_not_found")
    elif name == "restore":
        assert_problem(again, 404, "version_not_found")
    elif name == "create":  # it has expired meanwhile
        assert (again.status_code, again.json()["version"]) == (201, 1)
        assert again.json()["session_id"] != first.json()["session_id"]
    else:
        assert again.json()["version"] == first.json()["version"] + 1


def test_a_key_that_is_forgotten_is_free_for_another_request(server: Server, client: httpx.Client, new_id: str) -> None:
    send(client, "create", new_id, KEYED)
    server.clock.now += HOURS_24
    second = send(client, "delete", new_id, KEYED)
    assert_problem(second, 404, "session_not_found")  # expired
    save(client, new_id, STATE)
    assert_works_now(send(client, "touch", new_id, KEYED))
    assert_problem(send(client, "create", new_id, KEYED), 422, "idempotency_key_reused")


@writes
def test_a_retry_after_the_session_has_expired(server: Server, client: httpx.Client, new_id: str, name: str) -> None:
    """It is answered, and the session stays absent."""
    prepare(client, name, new_id, expires_in_seconds=600)
    first = send(client, name, new_id, KEYED)
    server.clock.advance(seconds=600)
    retry = send(client, name, new_id, KEYED | PREFERRED)
    assert_replay_of_what_is_gone(retry, first, name)
    assert tag_of(client, new_id) is None


# --- Edits that are shown ---------------------------------------------------------------------------------------------


@edits
def test_a_retried_edit_shows_its_state_while_it_is_the_current_one(
    client: httpx.Client, new_id: str, name: str
) -> None:
    prepare(client, name, new_id)
    first = send(client, name, new_id, KEYED | PREFERRED)
    assert first.headers["preference-applied"] == "return=representation"
    assert first.json()["chat_state"] == load(client, new_id)["chat_state"]
    assert_replay(send(client, name, new_id, KEYED | PREFERRED), first)
    brief = send(client, name, new_id, KEYED)
    assert brief.headers["idempotency-replayed"] == "true"
    assert brief.json() == {member: value for member, value in first.json().items() if member != "chat_state"}
    save(client, new_id, "moved on")
    retry = send(client, name, new_id, KEYED | PREFERRED)
    assert_replay(retry, brief_of(brief))
    assert "preference-applied" not in retry.headers


def brief_of(replay: httpx.Response) -> httpx.Response:
    """The answer that a replay repeats."""
    headers = {name: value for name, value in replay.headers.items() if name != "idempotency-replayed"}
    return httpx.Response(replay.status_code, headers=headers, content=replay.content)


@edits
def test_a_retried_edit_shows_its_state_as_long_as_it_is_in_the_history(start: Start, own_url: str, name: str) -> None:
    with start(own_url, history=3) as server, server.client() as client:
        prepare(client, name, "one")
        first = send(client, name, "one", KEYED | PREFERRED)
        for number in range(2):
            save(client, "one", f"moved on {number}")
            assert_replay(send(client, name, "one", KEYED | PREFERRED), first)
        save(client, "one", "moved out of the history")
        assert "chat_state" not in send(client, name, "one", KEYED | PREFERRED).json()
        assert send(client, name, "one", KEYED).headers["etag"] == first.headers["etag"]


# --- Restarts ---------------------------------------------------------------------------------------------------------


def test_keys_are_remembered_over_a_restart(start: Start, own_url: str) -> None:
    clock = SettableClock()
    firsts = {}
    with start(own_url, clock=clock) as server, server.client() as client:
        for name in WRITES:
            prepare(client, name, f"id of {name}".replace(" ", "_"))
            firsts[name] = send(client, name, f"id of {name}".replace(" ", "_"), KEYED)
    clock.advance(seconds=3600 - 600)
    with start(own_url, clock=clock, history=3) as server, server.client() as client:
        for name, first in firsts.items():
            assert_replay(send(client, name, f"id of {name}".replace(" ", "_"), KEYED), first)
