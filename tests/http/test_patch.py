"""PATCH of a chat state: JSON Merge Patch (RFC 7396) and JSON Patch (RFC 6902) over HTTP.

What patches do to documents is tested in `tests/test_patches.py`; here it is what the route makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatstate import create_app, create_store
from tests.http.conftest import Serve, Server, Start
from tests.http.test_endpoints import LIMIT, RECORD, SESSIONS, assert_problem, load, save
from tests.http.test_protocol import CHUNKED, Connection, chunked, request

MERGE = "application/merge-patch+json"
OPERATIONS = "application/json-patch+json"
SUMMARY = {name: kind for name, kind in RECORD.items() if name != "chat_state"}

Headers = dict[str, str] | list[tuple[str, str]]


def patch(
    client: httpx.Client, user_session_id: str, kind: str, body: Any, headers: Headers | None = None
) -> httpx.Response:
    """A patch of this media type. A body of bytes goes as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = list(headers.items()) if isinstance(headers, dict) else headers or []
    fields = [*given, ("Content-Type", kind)]
    return client.patch(f"{SESSIONS}/{user_session_id}", content=content, headers=fields)


def append(client: httpx.Client, user_session_id: str, message: str, headers: Headers | None = None) -> httpx.Response:
    operation = {"op": "add", "path": "/messages/-", "value": message}
    return patch(client, user_session_id, OPERATIONS, [operation], headers)


def state_of(client: httpx.Client, user_session_id: str) -> str:
    state: str = load(client, user_session_id)["chat_state"]
    return state


def tag_of(client: httpx.Client, user_session_id: str) -> str:
    return client.get(f"{SESSIONS}/{user_session_id}").headers["etag"]


STATE = '{"messages": ["Hi"], "currentStep": "language"}'
PATCHES: dict[str, Any] = {
    MERGE: {"currentStep": "payment"},
    OPERATIONS: [{"op": "replace", "path": "/currentStep", "value": "payment"}],
}
"""Both say the same."""

NOTHING: dict[str, Any] = {MERGE: {}, OPERATIONS: []}

both = pytest.mark.parametrize("kind", PATCHES)

# --- What it does and answers -----------------------------------------------------------------------------------------


@both
def test_a_patch_changes_a_part_of_the_state(server: Server, client: httpx.Client, new_id: str, kind: str) -> None:
    created = save(client, new_id, STATE, last_activity="2024-01-01T00:00:00Z").json()
    server.clock.advance(seconds=1.5)
    answer = patch(client, new_id, kind, PATCHES[kind])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    now = client.put(f"{SESSIONS}/{new_id}", json={}).json()["updated_at"]
    expected = {name: value for name, value in created.items() if name != "chat_state"}
    assert answer.json() == expected | {"last_activity": now, "updated_at": now, "version": 2}
    assert answer.headers["etag"] == f'"{created["session_id"]}-2"'
    assert not {"preference-applied", "location", "idempotency-replayed"} & set(answer.headers)
    assert json.loads(state_of(client, new_id)) == {"messages": ["Hi"], "currentStep": "payment"}


def test_a_message_is_appended(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    for number in range(3):
        assert append(client, new_id, f"message {number}").json()["version"] == number + 2
    assert json.loads(state_of(client, new_id))["messages"] == ["Hi", "message 0", "message 1", "message 2"]


def test_a_merge_patch_sets_and_removes_and_replaces(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, '{"a": {"b": 1, "c": [1, 2]}, "d": null}')
    patch(client, new_id, MERGE, {"a": {"b": None, "c": [3], "e": {"f": 1, "g": None}}})
    assert json.loads(state_of(client, new_id)) == {"a": {"c": [3], "e": {"f": 1}}, "d": None}
    assert patch(client, new_id, MERGE, []).status_code == 200
    assert state_of(client, new_id) == "[]"
    assert patch(client, new_id, MERGE, None).status_code == 200
    assert state_of(client, new_id) == "null"


def test_a_patch_that_changes_nothing_is_a_new_version_all_the_same(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    for number, (kind, nothing) in enumerate(NOTHING.items(), 2):
        assert patch(client, new_id, kind, nothing).json()["version"] == number
    assert json.loads(state_of(client, new_id)) == json.loads(STATE)


@pytest.mark.parametrize(
    "lines",
    [
        ["return=representation"],
        ['return="representation"'],
        ["Return=Representation"],
        ["return = representation"],
        ["respond-async, return=representation; foo=bar, wait=10"],
        ["handling=lenient,return=representation"],
        ["wait=10", "return=representation"],
        ["return=representation, return=minimal"],
    ],
)
def test_the_state_is_in_the_answer_if_the_client_prefers_so(
    client: httpx.Client, new_id: str, lines: list[str]
) -> None:
    save(client, new_id, STATE)
    answer = append(client, new_id, "Hello", [("Prefer", line) for line in lines])
    assert {name: type(value) for name, value in answer.json().items()} == RECORD
    assert answer.json()["chat_state"] == state_of(client, new_id)
    assert answer.headers["preference-applied"] == "return=representation"


@pytest.mark.parametrize(
    "lines",
    [
        ["return=minimal"],
        ["return=minimal, return=representation"],
        ["return=minimal", "return=representation"],
        ["return"],
        ["return="],
        ["representation"],
        ["return=representations"],
        ["noreturn=representation"],
        ["wait=return=representation"],
        [""],
        [",;=,"],
        ['"'],
    ],
)
def test_the_state_is_not_in_the_answer_otherwise(client: httpx.Client, new_id: str, lines: list[str]) -> None:
    save(client, new_id, STATE)
    answer = append(client, new_id, "Hello", [("Prefer", line) for line in lines])
    assert {name: type(value) for name, value in answer.json().items()} == SUMMARY
    assert "preference-applied" not in answer.headers


LITERALS = '"n":1.0,"e":1E400,"f":1e-7,"z":-0,"big":123456789012345678901234567890,"d":0.10,"t":[2.50,{"x":0e0}]'


@both
def test_numbers_stay_as_they_were_written(client: httpx.Client, new_id: str, kind: str) -> None:
    save(client, new_id, f'{{{LITERALS},"currentStep":"language"}}')
    assert patch(client, new_id, kind, PATCHES[kind]).status_code == 200
    assert state_of(client, new_id) == f'{{{LITERALS},"currentStep":"payment"}}'


def test_numbers_that_a_patch_brings_stay_as_they_were_written(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "{}")
    patch(client, new_id, MERGE, f"{{{LITERALS}}}".encode())
    assert state_of(client, new_id) == f"{{{LITERALS}}}"
    patch(client, new_id, OPERATIONS, f'[{{"op":"add","path":"","value":[{{{LITERALS}}}]}}]'.encode())
    assert state_of(client, new_id) == f"[{{{LITERALS}}}]"


def test_every_character_that_a_state_may_have(client: httpx.Client, new_id: str) -> None:
    text = 'Grüße 世界 שלום 😀👩‍👩‍👧 \u2028\u2029\ufeff\uffff\x7f\x80 " \\ / \t\r\n \x00\x1f'
    save(client, new_id, json.dumps({"messages": [text]}))
    append(client, new_id, text)
    assert json.loads(state_of(client, new_id)) == {"messages": [text, text]}


# --- Media types ------------------------------------------------------------------------------------------------------


def test_options_tells_what_can_be_patched_and_how(client: httpx.Client, new_id: str) -> None:
    for _ in ("absent", "present"):
        answer = client.options(f"{SESSIONS}/{new_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "PATCH", "DELETE"}
        assert set(answer.headers["accept-patch"].split(", ")) == {MERGE, OPERATIONS}
        save(client, new_id, STATE)
    answer = client.options(SESSIONS)
    assert (answer.status_code, answer.headers["allow"]) == (204, "POST, GET, HEAD")
    assert "accept-patch" not in answer.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"Content-Type": None},
        {"Content-Type": ""},
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/merge-patch"},
        {"Content-Type": f"{MERGE}, {OPERATIONS}"},
        {"Content-Type": f"{MERGE}; charset=utf-16"},
        {"Content-Type": MERGE, "Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_other_media_types_are_refused(
    server: Server, client: httpx.Client, new_id: str, fields: dict[str, str | None]
) -> None:
    target = f"{SESSIONS}/{new_id}"
    for _ in ("absent", "present"):
        answer = server.send("PATCH", target, b"{}", fields)
        assert (answer.status, answer.json()["code"]) == (415, "unsupported_media_type")
        assert set(answer.headers["accept-patch"].split(", ")) == {MERGE, OPERATIONS}
        save(client, new_id, STATE)
    assert state_of(client, new_id) == STATE


@pytest.mark.parametrize(
    "kind", [MERGE.upper(), f"{MERGE}; charset=utf-8", f'{MERGE} ;charset="UTF-8"', f"{MERGE}; a=b"]
)
def test_a_media_type_may_be_written_in_many_ways(server: Server, client: httpx.Client, new_id: str, kind: str) -> None:
    save(client, new_id, STATE)
    fields = {"Content-Type": kind, "Content-Encoding": "identity"}
    assert server.send("PATCH", f"{SESSIONS}/{new_id}", b"{}", fields).status == 200


def test_post_and_put_take_no_patches(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    for method, path in (("POST", ""), ("PUT", f"/{new_id}"), ("POST", f"/{new_id}/restore")):
        answer = server.send(method, SESSIONS + path, b"{}", {"Content-Type": MERGE})
        assert answer.status == 415
        assert "accept-patch" not in answer.headers


# --- When it cannot be done -------------------------------------------------------------------------------------------


@both
def test_an_absent_session_is_not_found(client: httpx.Client, new_id: str, kind: str) -> None:
    assert_problem(patch(client, new_id, kind, PATCHES[kind]), 404, "session_not_found")
    assert_problem(patch(client, new_id, kind, PATCHES[kind], {"If-Match": "*"}), 412, "precondition_failed")
    assert_problem(patch(client, new_id, kind, PATCHES[kind], {"If-None-Match": "*"}), 404, "session_not_found")
    assert client.get(f"{SESSIONS}/{new_id}").status_code == 404, "nothing was created"


@both
def test_preconditions_hold(client: httpx.Client, new_id: str, kind: str) -> None:
    old = save(client, new_id, STATE).headers["etag"]
    current = save(client, new_id, STATE).headers["etag"]
    for fields in ({"If-Match": old}, {"If-None-Match": "*"}, {"If-None-Match": current}, {"If-Match": f"W/{current}"}):
        answer = patch(client, new_id, kind, PATCHES[kind], fields)
        assert_problem(answer, 412, "precondition_failed")
        assert answer.headers["etag"] == current
    assert state_of(client, new_id) == STATE
    renewed = patch(client, new_id, kind, PATCHES[kind], {"If-Match": f"{old}, {current}"})
    assert renewed.status_code == 200
    assert patch(client, new_id, kind, PATCHES[kind], {"If-Match": current}).status_code == 412
    assert patch(client, new_id, kind, PATCHES[kind], {"If-Match": renewed.headers["etag"]}).status_code == 200
    assert patch(client, new_id, kind, PATCHES[kind], {"If-Match": "*", "If-None-Match": old}).status_code == 200


@pytest.mark.parametrize(
    "state",
    [
        "",
        "plain text",
        "H4sIAAAAAAAAA6tWKkktLlGyUlAqS8wpTtVRSs7PS1WyUkorzs9VqgUAb8aVWB4AAAA=",
        '{"a": 1, "a": 2}',
        r'{"a": 1, "\u0061": 2}',
        r'["\ud800"]',
        r'["\udc00\ud800"]',
        "\ufeff{}",
        "{} {}",
        "{'a': 1}",
        '{"a": 1,}',
        "NaN",
        "[" * 5000 + "]" * 5000,
        "[" * 5000,
    ],
    ids=lambda state: state[:20],
)
@both
def test_a_state_that_would_not_survive_is_not_patched(
    client: httpx.Client, new_id: str, kind: str, state: str
) -> None:
    tag = save(client, new_id, state).headers["etag"]
    for body in (PATCHES[kind], NOTHING[kind]):
        assert_problem(patch(client, new_id, kind, body), 409, "state_not_patchable")
    assert (state_of(client, new_id), tag_of(client, new_id)) == (state, tag)


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/currentStep", "value": "payment"},
        {"op": "test", "path": "/absent", "value": None},
        {"op": "remove", "path": "/absent"},
        {"op": "replace", "path": "/absent", "value": 1},
        {"op": "add", "path": "/absent/a", "value": 1},
        {"op": "add", "path": "/messages/3", "value": 1},
        {"op": "add", "path": "/messages/01", "value": 1},
        {"op": "add", "path": "/messages/a", "value": 1},
        {"op": "add", "path": "/currentStep/0", "value": 1},
        {"op": "remove", "path": "/messages/-"},
        {"op": "move", "from": "/absent", "path": "/a"},
        {"op": "copy", "from": "/absent", "path": "/a"},
    ],
    ids=lambda operation: f"{operation['op']} {operation['path']}",
)
def test_a_patch_that_does_not_fit_changes_nothing(
    client: httpx.Client, new_id: str, operation: dict[str, Any]
) -> None:
    """Also when operations before it would."""
    tag = save(client, new_id, STATE).headers["etag"]
    first = {"op": "add", "path": "/messages/-", "value": "lost?"}
    answer = patch(client, new_id, OPERATIONS, [first, operation, first])
    assert_problem(answer, 409, "patch_conflict")
    assert "Operation 1" in answer.json()["detail"]
    assert "lost?" not in answer.text
    assert (state_of(client, new_id), tag_of(client, new_id)) == (STATE, tag)


INVALID: list[tuple[str, bytes, str, list[str]]] = [
    # media type, body, code, members
    (MERGE, b"", "invalid_json", []),
    (MERGE, b"{", "invalid_json", []),
    (MERGE, b'{"a": NaN}', "invalid_json", []),
    (MERGE, b'{"a": "\xff"}', "invalid_json", []),
    (MERGE, b"\xef\xbb\xbf{}", "invalid_json", []),
    (MERGE, b'{"a": 1} {}', "invalid_json", []),
    (MERGE, b'{"a": 1, "a": 2}', "invalid_patch", ["body"]),
    (MERGE, rb'{"a": "\ud800"}', "invalid_patch", ["body"]),
    (MERGE, b"[" * 129 + b"]" * 129, "invalid_patch", ["body"]),
    (MERGE, b"[" * 100_000, "invalid_patch", ["body"]),
    (OPERATIONS, b"", "invalid_json", []),
    (OPERATIONS, b"[}", "invalid_json", []),
    (OPERATIONS, b"{}", "invalid_patch", ["body"]),
    (OPERATIONS, b"null", "invalid_patch", ["body"]),
    (OPERATIONS, b'[{"op": "remove", "path": "/a", "op": "add"}]', "invalid_patch", ["body"]),
    (OPERATIONS, b"[" + b",".join([b'{"op":"test","path":"","value":1}'] * 1001) + b"]", "invalid_patch", ["body"]),
    (OPERATIONS, b"[1]", "invalid_patch", ["/0"]),
    (OPERATIONS, b"[{}]", "invalid_patch", ["/0/op"]),
    (OPERATIONS, b'[{"op": "append", "path": "/a"}]', "invalid_patch", ["/0/op"]),
    (OPERATIONS, b'[{"op": ["add"], "path": "/a"}]', "invalid_patch", ["/0/op"]),
    (OPERATIONS, b'[{"op": "add"}]', "invalid_patch", ["/0/path", "/0/value"]),
    (OPERATIONS, b'[{"op": "add", "path": 1, "value": 1}]', "invalid_patch", ["/0/path"]),
    (OPERATIONS, b'[{"op": "add", "path": "a", "value": 1}]', "invalid_patch", ["/0/path"]),
    (OPERATIONS, b'[{"op": "add", "path": "/~2", "value": 1}]', "invalid_patch", ["/0/path"]),
    (OPERATIONS, b'[{"op": "copy", "path": "/a"}]', "invalid_patch", ["/0/from"]),
    (OPERATIONS, b'[{"op": "move", "from": "/a", "path": "/a/b"}]', "invalid_patch", ["/0/path"]),
    (OPERATIONS, b'[{"op": "remove", "path": ""}]', "invalid_patch", ["/0/path"]),
    (OPERATIONS, b'[{"op": "remove", "path": "/a"}, {"op": "test", "path": "/a"}]', "invalid_patch", ["/1/value"]),
]


@pytest.mark.parametrize(("kind", "body", "code", "members"), INVALID, ids=[str(row[1][:45]) for row in INVALID])
def test_a_patch_that_is_none_is_refused_before_all_else(
    client: httpx.Client, new_id: str, kind: str, body: bytes, code: str, members: list[str]
) -> None:
    """Whether the session is there or not, and whatever is expected of it."""
    for _ in ("absent", "present"):
        for fields in ({}, {"If-Match": '"stale-1"'}, {"If-Match": "malformed"}):
            answer = patch(client, new_id, kind, body, fields)
            assert_problem(answer, 400, code)
            assert [error["member"] for error in answer.json().get("errors", [])] == members
        save(client, new_id, STATE)
    assert state_of(client, new_id) == STATE


@pytest.mark.parametrize("segment", ["%zz", "%FF", "..", "%00", "a" * 256])
def test_a_bad_id_is_refused(server: Server, segment: str) -> None:
    answer = server.send("PATCH", f"{SESSIONS}/{segment}", b"{}", {"Content-Type": MERGE})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_a_result_over_the_limit_is_refused(client: httpx.Client, new_id: str) -> None:
    room = LIMIT - len('{"a":""}')
    tag = save(client, new_id, f'{{"a":"{"x" * (room - 10)}"}}').headers["etag"]
    for kind, more in (
        (MERGE, {"a": "y" * (room + 1)}),
        (OPERATIONS, [{"op": "add", "path": "/b", "value": "y" * 10}]),
    ):
        assert_problem(patch(client, new_id, kind, more), 413, "too_large")
    assert_problem(patch(client, new_id, MERGE, {"a": "é" * (room // 2 + 1)}), 413, "too_large")
    assert tag_of(client, new_id) == tag
    assert patch(client, new_id, MERGE, {"a": "y" * room}).status_code == 200
    assert len(state_of(client, new_id)) == LIMIT


@pytest.mark.parametrize("source", ["", "/a"])
def test_copies_of_copies_stay_small(client: httpx.Client, new_id: str, source: str) -> None:
    tag = save(client, new_id, json.dumps({"a": ["x" * 1000]})).headers["etag"]
    bomb = [{"op": "copy", "from": source, "path": f"{source}/{0 if source else 'b'}"}] * 900
    answer = patch(client, new_id, OPERATIONS, bomb)
    assert_problem(answer, 413, "too_large")
    assert tag_of(client, new_id) == tag


def test_a_result_that_is_nested_too_deeply_is_refused(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "[" * 128 + "]" * 128)
    deeper = [{"op": "add", "path": "/0" * 127 + "/-", "value": []}]
    assert_problem(patch(client, new_id, OPERATIONS, deeper), 413, "too_large")


@both
def test_the_body_is_bounded(client: httpx.Client, new_id: str, kind: str) -> None:
    save(client, new_id, STATE)
    body = json.dumps(PATCHES[kind]).encode()
    assert patch(client, new_id, kind, body.ljust(2 * LIMIT + 4096)).status_code == 200
    assert_problem(patch(client, new_id, kind, body.ljust(2 * LIMIT + 4097)), 413, "too_large")


def test_a_state_that_is_over_a_new_limit_cannot_grow_but_shrink(start: Start, own_url: str) -> None:
    with start(own_url) as server, server.client() as client:
        save(client, "large", json.dumps({"a": "x" * 1000, "b": "y" * 1000}))
    with start(own_url, max_state_bytes=600) as server, server.client() as client:
        assert len(state_of(client, "large")) > 2000, "what is there is served"
        for change in ({"c": 1}, {"a": None}, {}):
            assert_problem(patch(client, "large", MERGE, change), 413, "too_large")
        assert patch(client, "large", MERGE, {"a": None, "b": "short"}).status_code == 200
        assert state_of(client, "large") == '{"b":"short"}'


@pytest.fixture
def strict(serve: Serve, tmp_path: Path) -> Iterator[Server]:
    with serve(create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"), require_json=True)) as running:
        yield running


def test_where_json_is_required_patches_work_as_anywhere(strict: Server) -> None:
    with httpx.Client(base_url=strict.base_url) as client:
        save(client, "one", STATE)
        for kind, body in PATCHES.items():
            assert patch(client, "one", kind, body).status_code == 200
        assert patch(client, "one", MERGE, "a text").status_code == 200
        assert state_of(client, "one") == '"a text"'


# --- How the body arrives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(), (CHUNKED,)], ids=["with its length", "in chunks"])
def test_a_body_in_pieces_is_a_body(server: Server, client: httpx.Client, new_id: str, fields: tuple[str, ...]) -> None:
    save(client, new_id, STATE)
    body = json.dumps([{"op": "add", "path": "/messages/-", "value": "Grüße"}], ensure_ascii=False).encode()
    framed = chunked(body) if fields else body
    sent = request("PATCH", f"{SESSIONS}/{new_id}", framed, f"Content-Type: {OPERATIONS}", *fields)
    for pieces in ([sent], [sent[:20], sent[20:-30], sent[-30:-5], sent[-5:]]):
        with Connection(server) as connection:
            for piece in pieces:
                connection.socket.sendall(piece)
                server.send("GET", "/healthz")  # a round trip, so that the pieces arrive one by one
            assert connection.answer("PATCH").status == 200
    assert json.loads(state_of(client, new_id))["messages"] == ["Hi", "Grüße", "Grüße"]


def test_an_empty_body_is_no_patch(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, STATE)
    for body in (b"", None):
        answer = server.send("PATCH", f"{SESSIONS}/{new_id}", body, {"Content-Type": MERGE})
        assert (answer.status, answer.json()["code"]) == (400, "invalid_json")


def test_a_body_that_ends_too_early_changes_nothing(server: Server, client: httpx.Client, new_id: str) -> None:
    tag = save(client, new_id, STATE).headers["etag"]
    sent = request("PATCH", f"{SESSIONS}/{new_id}", b"{}" + b" " * 100, f"Content-Type: {MERGE}")
    with Connection(server) as connection:
        connection.socket.sendall(sent[:-50])
        server.send("GET", "/healthz")
    assert tag_of(client, new_id) == tag
