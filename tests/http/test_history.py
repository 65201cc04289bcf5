"""Versions of a session that are kept, and restoring them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from chatstate.http.paging import write_cursor
from tests.http.conftest import Answer, Server, SettableClock, Start
from tests.http.test_endpoints import LIMIT, RECORD, SESSIONS, assert_problem, load, put, save
from tests.http.test_listing import findings, pages
from tests.http.test_preconditions import at_once
from tests.http.test_protocol import chunked

HISTORY = 5
SUMMARY = {name: kind for name, kind in RECORD.items() if name != "chat_state"}


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    """A server that keeps five versions of each session."""
    with start(store_url, history=HISTORY) as running:
        yield running


def write(client: httpx.Client, user_session_id: str, count: int) -> list[str]:
    """So many versions, whose states tell their numbers; their tags."""
    return [save(client, user_session_id, f"state {n}").headers["etag"] for n in range(1, count + 1)]


def versions(client: httpx.Client, user_session_id: str, **parameters: Any) -> list[int]:
    """The numbers of the versions on one page."""
    answer = client.get(f"{SESSIONS}/{user_session_id}/versions", params=parameters)
    assert answer.status_code == 200, answer.text
    return [version["version"] for version in answer.json()["versions"]]


def version(client: httpx.Client, user_session_id: str, number: object) -> httpx.Response:
    return client.get(f"{SESSIONS}/{user_session_id}/versions/{number}")


def restore(
    client: httpx.Client, user_session_id: str, number: object, headers: dict[str, str] | None = None
) -> httpx.Response:
    return client.post(f"{SESSIONS}/{user_session_id}/restore", json={"version": number}, headers=headers)


# --- Lists ------------------------------------------------------------------------------------------------------------


def test_the_versions_newest_first(server: Server, client: httpx.Client, new_id: str) -> None:
    expected: list[dict[str, Any]] = []
    for number, state in enumerate(("", "state", "Grüße 😀"), 1):
        server.clock.advance(seconds=1.5)
        record = save(client, new_id, state, last_activity="2024-02-29T00:00:00.120Z").json()
        shown = {"version": number, "last_activity": "2024-02-29T00:00:00.120Z", "saved_at": record["updated_at"]}
        expected.insert(0, shown | {"size": len(state.encode())})
    answer = client.get(f"{SESSIONS}/{new_id}/versions")
    assert answer.status_code == 200
    assert answer.json() == {"versions": expected, "next_cursor": None}
    assert answer.headers["etag"] == client.get(f"{SESSIONS}/{new_id}").headers["etag"]
    assert "link" not in answer.headers


def test_a_version_with_its_state(server: Server, client: httpx.Client, new_id: str) -> None:
    tags, records = [], []
    for number in range(1, 4):
        server.clock.advance(seconds=1.5)
        answer = save(client, new_id, f"state {number}", last_activity="2024-02-29T00:00:00.120Z")
        tags.append(answer.headers["etag"])
        records.append(answer.json())
    for tag, record in zip(tags, records, strict=True):
        answer = version(client, new_id, record["version"])
        assert answer.status_code == 200
        assert answer.json() == {
            "version": record["version"],
            "chat_state": record["chat_state"],
            "last_activity": "2024-02-29T00:00:00.120Z",
            "saved_at": record["updated_at"],
        }
        assert answer.headers["etag"] == tag


def test_as_many_are_kept_as_the_server_is_told(client: httpx.Client, new_id: str) -> None:
    for count in range(1, 9):
        save(client, new_id, f"state {count}")
        assert versions(client, new_id) == list(range(count, max(count - HISTORY, 0), -1))
    for number in (1, 2, 3):
        assert_problem(version(client, new_id, number), 404, "version_not_found")
    assert [version(client, new_id, number).json()["chat_state"] for number in (4, 8)] == ["state 4", "state 8"]


def test_every_kind_of_write_has_its_version_and_no_other_request(client: httpx.Client, new_id: str) -> None:
    patched = {"Content-Type": "application/merge-patch+json", "Idempotency-Key": "patch"}
    save(client, new_id, '{"a": 1}')
    put(client, new_id, chat_state='{"b": 2}')
    put(client, new_id, last_activity="2024-02-29T00:00:00Z")
    for _ in range(2):
        assert client.patch(f"{SESSIONS}/{new_id}", content=b'{"c": 3}', headers=patched).status_code == 200
    restore(client, new_id, 1)
    assert client.patch(f"{SESSIONS}/{new_id}", content=b"[", headers=patched).status_code == 400
    assert save(client, new_id, 1).status_code == 400
    assert client.put(f"{SESSIONS}/{new_id}", json={}, headers={"If-Match": '"x-1"'}).status_code == 412
    shown = [version(client, new_id, number).json() for number in versions(client, new_id)]
    assert [json.loads(row["chat_state"]) for row in shown] == [
        {"a": 1},
        {"b": 2, "c": 3},
        {"b": 2},
        {"b": 2},
        {"a": 1},
    ]
    assert shown[2]["last_activity"] == "2024-02-29T00:00:00Z"


def test_head_has_the_same_headers(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 3)
    for path in ("/versions", "/versions?limit=2", "/versions/2", "/versions/9"):
        got, head = (client.request(method, f"{SESSIONS}/{new_id}{path}") for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (got.status_code, b"")
        for name in ("content-type", "content-length", "cache-control", "etag", "link"):
            assert head.headers.get(name) == got.headers.get(name)


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 1000])
def test_pages_have_every_version_once(client: httpx.Client, new_id: str, limit: int) -> None:
    write(client, new_id, 7)
    found = list(pages(client, f"{SESSIONS}/{new_id}/versions", {"limit": limit}))
    assert len(found) == -(-HISTORY // limit)
    assert [row["version"] for page in found for row in page.json()["versions"]] == [7, 6, 5, 4, 3]


def test_pages_go_on_where_they_were_while_others_write(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 5)
    found = []
    for page in pages(client, f"{SESSIONS}/{new_id}/versions", {"limit": 2}):
        found += [row["version"] for row in page.json()["versions"]]
        save(client, new_id, "meanwhile")
    assert found == [5, 4, 3, 2], "and the oldest has made room for a new one"


def test_behind_the_last_version_there_is_nothing(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 2)
    for cursor, expected in ((1, []), (2, [1]), (3, [2, 1]), ((1 << 63) - 1, [2, 1])):
        assert versions(client, new_id, cursor=write_cursor(cursor)) == expected


@pytest.mark.parametrize(
    ("query", "member"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=a", "limit"),
        ("limit=1&limit=2", "limit"),
        ("order=id", "order"),
        ("include=chat_state", "include"),
        ("cursor=", "cursor"),
        ("cursor=x", "cursor"),
        ("cursor=%FF", "query"),
        ("cursor=" + write_cursor(0), "cursor"),
        ("cursor=" + write_cursor(-1), "cursor"),
        ("cursor=" + write_cursor(1.5), "cursor"),
        ("cursor=" + write_cursor("1"), "cursor"),
        ("cursor=" + write_cursor(1 << 63), "cursor"),
        ("cursor=" + write_cursor([1]), "cursor"),
        ("cursor=" + write_cursor(None), "cursor"),
        ("cursor=" + write_cursor(["id", "2025-10-02T10:00:00Z", "a"]), "cursor"),
    ],
)
def test_what_cannot_be_meant_is_refused(client: httpx.Client, new_id: str, query: str, member: str) -> None:
    for _ in ("absent", "present"):
        assert findings(client.get(f"{SESSIONS}/{new_id}/versions?{query}")) == [member]
        save(client, new_id)


@pytest.mark.parametrize("segment", [">", '<a>"{b}|c\\^`', "a;rel=x", "a%2Fb>", "%C3%A9", "*'()!$&+,:=@~"])
def test_the_next_page_can_be_asked_for_as_it_is_written(server: Server, new_id: str, segment: str) -> None:
    """Also when the client does not encode what must not stand in an address."""
    target = f"{SESSIONS}/{new_id}{segment}"
    body = b'{"chat_state": "state"}'
    encoded = quote(segment, safe="%")
    created = json.dumps({"user_session_id": httpx.URL(f"http://x/{new_id}{encoded}").path[1:], "chat_state": "state"})
    assert server.send("POST", SESSIONS, created.encode()).status == 201
    assert server.send("PUT", target, body).status == 200
    link = server.send("GET", f"{target}/versions?limit=1").headers["link"]
    assert link.startswith("<")
    following, _, relation = link[1:].partition(">")
    assert relation == '; rel="next"'
    assert not set(following) & set('<>"{}|\\^` ')
    assert [row["version"] for row in server.send("GET", following).json()["versions"]] == [1]


def test_an_absent_session_has_no_versions(client: httpx.Client, new_id: str) -> None:
    for path in ("/versions", "/versions?limit=1", f"/versions?cursor={write_cursor(5)}", "/versions/1", "/versions/x"):
        assert_problem(client.get(f"{SESSIONS}/{new_id}{path}"), 404, "session_not_found")


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "-1",
        "+1",
        "3",
        "9223372036854775807",
        "9223372036854775808",
        "9999999999999999999999",
        "9" * 5000,
        "%31",
        "a",
        "1.0",
        "1e0",
        "0x1",
        "%D9%A1",
        "%00",
        "%FF",
        "%zz",
        "1%2F",
        "..",
        "1;x",
        "latest",
    ],
)
def test_another_version_is_not_there(server: Server, client: httpx.Client, new_id: str, number: str) -> None:
    write(client, new_id, 2)
    answer = server.send("GET", f"{SESSIONS}/{new_id}/versions/{number}")
    assert (answer.status, answer.json()["code"]) == (404, "version_not_found")


def test_zeros_before_a_number_count_for_nothing(server: Server, client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 2)
    shown = server.send("GET", f"{SESSIONS}/{new_id}/versions/1")
    assert server.send("GET", f"{SESSIONS}/{new_id}/versions/0001").body == shown.body


@pytest.mark.parametrize(
    "path", ["/versions/", "/versions/1/", "/versions//1", "/versions/1/x", "/Versions", "/restore/1"]
)
def test_another_path_is_not_there(server: Server, client: httpx.Client, new_id: str, path: str) -> None:
    save(client, new_id)
    answer = server.send("GET", f"{SESSIONS}/{new_id}{path}")
    assert (answer.status, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/versions", "GET, HEAD"),
        ("DELETE", "/versions", "GET, HEAD"),
        ("DELETE", "/versions/1", "GET, HEAD"),
        ("PUT", "/versions/1", "GET, HEAD"),
        ("PATCH", "/versions/1", "GET, HEAD"),
        ("GET", "/restore", "POST"),
        ("PUT", "/restore", "POST"),
    ],
)
def test_versions_cannot_be_changed(client: httpx.Client, new_id: str, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, f"{SESSIONS}/{new_id}{path}")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_ids_that_look_like_the_rest_of_a_path_are_ids(server: Server) -> None:
    for user_session_id in ("versions", "restore", "a/versions/1", "versions/1"):
        body = json.dumps({"user_session_id": user_session_id, "chat_state": f"of {user_session_id}"}).encode()
        location = server.send("POST", SESSIONS, body).headers["location"]
        assert server.send("GET", f"{location}/versions/1").json()["chat_state"] == f"of {user_session_id}"
        assert server.send("POST", f"{location}/restore", b'{"version": 1}').json()["version"] == 2
        assert server.send("DELETE", location).status == 200


# --- Restoring --------------------------------------------------------------------------------------------------------


def test_a_version_is_restored_as_a_new_one(server: Server, client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 3)
    server.clock.advance(seconds=1.5)
    answer = restore(client, new_id, 1)
    assert answer.status_code == 200
    assert {name: type(value) for name, value in answer.json().items()} == SUMMARY
    assert answer.json()["version"] == 4
    assert answer.json()["last_activity"] == answer.json()["updated_at"] != answer.json()["created_at"]
    assert answer.headers["etag"] == client.get(f"{SESSIONS}/{new_id}").headers["etag"]
    assert load(client, new_id) == {"chat_state": "state 1", "last_activity": answer.json()["updated_at"]}
    assert versions(client, new_id) == [4, 3, 2, 1]
    assert version(client, new_id, 3).json()["chat_state"] == "state 3", "nothing is undone for good"


def test_with_its_state_if_the_client_prefers_so(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 2)
    answer = restore(client, new_id, 1, {"Prefer": "return=representation"})
    assert {name: type(value) for name, value in answer.json().items()} == RECORD
    assert answer.json()["chat_state"] == "state 1"
    assert answer.headers["preference-applied"] == "return=representation"


def test_the_current_version_can_be_restored_too(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 2)
    assert restore(client, new_id, 2).json()["version"] == 3
    assert load(client, new_id)["chat_state"] == "state 2"


def test_the_oldest_version_makes_room_for_itself(client: httpx.Client, new_id: str) -> None:
    write(client, new_id, HISTORY)
    assert restore(client, new_id, 1).status_code == 200
    assert versions(client, new_id) == [6, 5, 4, 3, 2]
    assert load(client, new_id)["chat_state"] == "state 1"


def test_preconditions_hold(client: httpx.Client, new_id: str) -> None:
    old, current = write(client, new_id, 2)
    for headers in ({"If-Match": old}, {"If-None-Match": "*"}, {"If-None-Match": current}):
        answer = restore(client, new_id, 1, headers)
        assert_problem(answer, 412, "precondition_failed")
        assert answer.headers["etag"] == current
    assert versions(client, new_id) == [2, 1]
    assert restore(client, new_id, 1, {"If-Match": current}).status_code == 200
    assert restore(client, new_id, 1, {"If-Match": current}).status_code == 412
    assert restore(client, new_id, 1, {"If-Match": "*"}).json()["version"] == 4


def test_what_is_not_kept_cannot_be_restored(client: httpx.Client, new_id: str) -> None:
    tag = write(client, new_id, HISTORY + 2)[-1]
    for number in (1, 2, HISTORY + 3, (1 << 63) - 1):
        assert_problem(restore(client, new_id, number), 404, "version_not_found")
        assert_problem(restore(client, new_id, number, {"If-Match": '"x-1"'}), 412, "precondition_failed")
    assert client.get(f"{SESSIONS}/{new_id}").headers["etag"] == tag
    assert restore(client, new_id, 3).status_code == 200


def test_an_absent_session_cannot_be_restored(client: httpx.Client, new_id: str) -> None:
    """Nor can one that was deleted: whoever deletes it wants it gone."""
    for _ in ("never there", "deleted"):
        assert_problem(restore(client, new_id, 1), 404, "session_not_found")
        assert_problem(restore(client, new_id, 1, {"If-Match": "*"}), 412, "precondition_failed")
        assert_problem(restore(client, new_id, 1, {"If-None-Match": "*"}), 404, "session_not_found")
        assert client.get(f"{SESSIONS}/{new_id}").status_code == 404
        write(client, new_id, 2)
        client.delete(f"{SESSIONS}/{new_id}")


def test_a_deletion_takes_all_versions_along(client: httpx.Client, new_id: str) -> None:
    """A session that is created again has none of those of the one before."""
    old = write(client, new_id, 3)
    client.delete(f"{SESSIONS}/{new_id}")
    assert_problem(client.get(f"{SESSIONS}/{new_id}/versions"), 404, "session_not_found")
    save(client, new_id, "anew")
    assert versions(client, new_id) == [1]
    assert version(client, new_id, 1).json()["chat_state"] == "anew"
    for number in (2, 3):
        assert_problem(version(client, new_id, number), 404, "version_not_found")
        assert_problem(restore(client, new_id, number), 404, "version_not_found")
    assert_problem(restore(client, new_id, 1, {"If-Match": old[0]}), 412, "precondition_failed")
    restore(client, new_id, 1)
    assert load(client, new_id)["chat_state"] == "anew"


@pytest.mark.parametrize(
    ("body", "code", "members"),
    [
        (b"", "invalid_json", []),
        (b"{", "invalid_json", []),
        (b'{"version": 01}', "invalid_json", []),
        (b"[]", "invalid_request", ["body"]),
        (b"1", "invalid_request", ["body"]),
        (b"null", "invalid_request", ["body"]),
        (b"{}", "invalid_request", ["version"]),
        (b'{"Version": 1}', "invalid_request", ["version"]),
        (b'{"version": 0}', "invalid_request", ["version"]),
        (b'{"version": -1}', "invalid_request", ["version"]),
        (b'{"version": 1.5}', "invalid_request", ["version"]),
        (b'{"version": 1e400}', "invalid_request", ["version"]),
        (b'{"version": 1e-400}', "invalid_request", ["version"]),
        (b'{"version": "1"}', "invalid_request", ["version"]),
        (b'{"version": true}', "invalid_request", ["version"]),
        (b'{"version": null}', "invalid_request", ["version"]),
        (b'{"version": [1]}', "invalid_request", ["version"]),
        (b'{"version": {}}', "invalid_request", ["version"]),
        (b'{"version": 9223372036854775808}', "invalid_request", ["version"]),
        (b'{"version": ' + b"9" * 5000 + b"}", "invalid_request", ["version"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_names_no_version(
    server: Server, client: httpx.Client, new_id: str, body: bytes, code: str, members: list[str]
) -> None:
    for _ in ("absent", "present"):
        for fields in ({}, {"If-Match": '"x-1"'}):
            answer = server.send("POST", f"{SESSIONS}/{new_id}/restore", body, fields)
            assert (answer.status, answer.json()["code"]) == (400, code)
            assert [error["member"] for error in answer.json().get("errors", [])] == members
        save(client, new_id)
    assert versions(client, new_id) == [2, 1]


def test_a_body_that_names_one(server: Server, client: httpx.Client, new_id: str) -> None:
    write(client, new_id, 2)
    target = f"{SESSIONS}/{new_id}/restore"
    bodies = [b'{"version":1}', b' { "version" :\r\n1 , "more": {"version": 2} } ', b'{"version": 9, "version": 1}']
    for body in (*bodies, b'{"version": 1.0}'):  # some languages have no whole numbers
        assert server.send("POST", target, body).status == 200
        assert load(client, new_id)["chat_state"] == "state 1"
    fields = {"Transfer-Encoding": "chunked", "Content-Length": None}
    assert server.send("POST", target, chunked(b'{"version": 2}'), fields).json()["version"] == 7
    assert server.send("POST", target, b'{"version": 2}', {"Content-Type": "text/plain"}).status == 415
    assert server.send("POST", target, b'{"version": 2}', {"Content-Encoding": "gzip"}).status == 415


# --- States -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        "",
        " ",
        "null",
        '{"a": "\\u0000 \\ud800", "n": 12345678901234567890.10, "n": -0}',
        "\u2028\u2029\ufeff\uffff\x01\x1f\x7f\x80\r\n\t",
        "cafe\u0301 \u00e9 😀👩‍👩‍👧 \U0010ffff",
        "'; DROP TABLE versions; -- %s $1 :a {name} \\",
        "😀" * (LIMIT // 4),
        "x" * LIMIT,
    ],
    ids=lambda state: f"{len(state)} {state[:10]!a}",
)
def test_a_state_comes_back_byte_for_byte(client: httpx.Client, new_id: str, state: str) -> None:
    save(client, new_id, state)
    save(client, new_id, "other")
    assert version(client, new_id, 1).json()["chat_state"] == state
    (_, row) = client.get(f"{SESSIONS}/{new_id}/versions").json()["versions"]
    assert row["size"] == len(state.encode())
    restored = restore(client, new_id, 1, {"Prefer": "return=representation"})
    assert restored.json()["chat_state"] == state
    assert load(client, new_id)["chat_state"] == state


def test_a_state_over_a_new_limit_can_be_restored(start: Start, own_url: str) -> None:
    """It was accepted once; a limit is no reason to lose it."""
    with start(own_url, history=3) as server, server.client() as client:
        save(client, "one", "x" * 1000)
        save(client, "one", "short")
    with start(own_url, history=3, max_state_bytes=600) as server, server.client() as client:
        assert restore(client, "one", 1).status_code == 200
        assert load(client, "one")["chat_state"] == "x" * 1000


# --- With history off -------------------------------------------------------------------------------------------------


def test_without_a_history_the_current_version_is_there_alone(start: Start, own_url: str) -> None:
    with start(own_url) as server, server.client() as client:
        tags = write(client, "one", 3)
        answer = client.get(f"{SESSIONS}/one/versions")
        assert [row["version"] for row in answer.json()["versions"]] == [3]
        assert answer.headers["etag"] == tags[2]
        assert version(client, "one", 3).json()["chat_state"] == "state 3"
        for number in (1, 2, 4):
            assert_problem(version(client, "one", number), 404, "version_not_found")
            assert_problem(restore(client, "one", number), 404, "version_not_found")
        assert restore(client, "one", 3).json()["version"] == 4
        assert load(client, "one")["chat_state"] == "state 3"


def test_a_history_that_is_turned_off_and_on_again(start: Start, own_url: str) -> None:
    """What is kept stays readable; the next write of a server with a history makes room."""
    clock = SettableClock()

    def states(client: httpx.Client) -> dict[int, str]:
        numbers = versions(client, "one")
        assert numbers == sorted(numbers, reverse=True)
        return {number: version(client, "one", number).json()["chat_state"] for number in numbers}

    with start(own_url, clock=clock, history=3) as server, server.client() as client:
        write(client, "one", 4)
        assert states(client) == {4: "state 4", 3: "state 3", 2: "state 2"}
    with start(own_url, clock=clock) as server, server.client() as client:
        assert states(client) == {4: "state 4", 3: "state 3", 2: "state 2"}
        save(client, "one", "state 5")
        assert states(client)[5] == "state 5"
        assert restore(client, "one", 2).json()["version"] == 6
        assert (versions(client, "one")[0], load(client, "one")["chat_state"]) == (6, "state 2")
    with start(own_url, clock=clock, history=3) as server, server.client() as client:
        save(client, "one", "state 7")
        assert states(client) == {7: "state 7", 6: "state 2"}
    with start(own_url, clock=clock, history=1) as server, server.client() as client:
        save(client, "one", "state 8")
        assert states(client) == {8: "state 8"}
        client.delete(f"{SESSIONS}/one")
        save(client, "one", "anew")
        assert states(client) == {1: "anew"}


# --- Races ------------------------------------------------------------------------------------------------------------


def test_a_session_that_is_created_at_the_same_moment_is_there_or_not(server: Server, new_id: str) -> None:
    def asked(user_session_id: str) -> Callable[[], Answer]:
        return lambda: server.send("GET", f"{SESSIONS}/{user_session_id}/versions")

    def created(user_session_id: str) -> Callable[[], Answer]:
        body = json.dumps({"user_session_id": user_session_id, "chat_state": "state"}).encode()
        return lambda: server.send("POST", SESSIONS, body)

    for number in range(15):
        user_session_id = f"{new_id}-{number}"
        saved, *answers = at_once([created(user_session_id), *[asked(user_session_id)] * 8])
        assert saved.status == 201
        for answer in answers:
            assert answer.status in (200, 404), answer
            if answer.status == 200:
                assert [row["version"] for row in answer.json()["versions"]] == [1]
                assert answer.headers["etag"] == saved.headers["etag"]
