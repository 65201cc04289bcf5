"""Expiry: a session of its own, and the server's for idle sessions. Expired is absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from chatstate.model import MAX_EXPIRES_IN, format_time
from tests.http.conftest import Server, SettableClock, Start
from tests.http.test_endpoints import RECORD, SESSIONS, assert_problem, load, put, save
from tests.http.test_listing import listed

MICROSECOND = timedelta(microseconds=1)
STATE = '{"messages": []}'

Write = Callable[[httpx.Client, str], httpx.Response]


def patch(client: httpx.Client, user_session_id: str, headers: dict[str, str] | None = None) -> httpx.Response:
    fields = {"Content-Type": "application/merge-patch+json", **(headers or {})}
    return client.patch(f"{SESSIONS}/{user_session_id}", content=b'{"a": 1}', headers=fields)


def restore(
    client: httpx.Client, user_session_id: str, headers: dict[str, str] | None = None, number: int | None = None
) -> httpx.Response:
    """Restores the current version, or the one of this number."""
    if number is None:
        tag = client.get(f"{SESSIONS}/{user_session_id}").headers.get("etag", '-1"')
        number = int(tag.rpartition("-")[2][:-1])
    return client.post(f"{SESSIONS}/{user_session_id}/restore", json={"version": number}, headers=headers)


RENEWING: dict[str, Write] = {
    "save": lambda client, name: save(client, name, STATE),
    "update": lambda client, name: put(client, name, chat_state=STATE),
    "touch": put,
    "patch": patch,
    "restore": restore,
}
"""Every write that leaves a session."""


def expires_at(answer: httpx.Response) -> datetime | None:
    """When the session expires, as the answer shows it."""
    assert answer.is_success, answer.text
    text = answer.json().get("expires_at")
    return None if text is None else datetime.fromisoformat(text)


def is_there(client: httpx.Client, user_session_id: str) -> bool:
    answer = client.get(f"{SESSIONS}/{user_session_id}")
    if answer.status_code == 404:
        assert_problem(answer, 404, "session_not_found")
    return answer.status_code == 200


# --- The member -------------------------------------------------------------------------------------------------------

REFUSED = [
    "0",
    "-0",
    "-1",
    "1.5",
    "0.9999999999999999",
    "3155760001",
    "3155760000.5",
    "1e400",
    "-1e400",
    "1e-400",
    "9223372036854775808",
    "9" * 5000,
    '"60"',
    '""',
    '"null"',
    '"PT1H"',
    "true",
    "false",
    "[]",
    "[60]",
    "{}",
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: value[:20])
def test_an_expiry_is_a_number_of_seconds(server: Server, client: httpx.Client, new_id: str, value: str) -> None:
    tag = save(client, new_id, expires_in_seconds=60).headers["etag"]
    body = f'{{"user_session_id": "{new_id}", "chat_state": "changed", "expires_in_seconds": {value}}}'.encode()
    for method, target in (("POST", SESSIONS), ("PUT", f"{SESSIONS}/{new_id}"), ("PUT", f"{SESSIONS}/absent")):
        answer = server.send(method, target, body)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
        assert [error["member"] for error in answer.json()["errors"]] == ["expires_in_seconds"]
    assert client.get(f"{SESSIONS}/{new_id}").headers["etag"] == tag


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1),
        (" 60\t", 60),
        ("60.0", 60),
        ("6e1", 60),
        ("3155760000", MAX_EXPIRES_IN),
        ("null", None),
        ("\r\nnull ", None),
    ],
)
def test_these_are_accepted(server: Server, new_id: str, value: str, seconds: int | None) -> None:
    expected = None if seconds is None else format_time(server.clock.now + timedelta(seconds=seconds))
    created = f'{{"user_session_id": "{new_id}", "chat_state": "", "expires_in_seconds":{value}}}'.encode()
    assert server.send("POST", SESSIONS, created).json().get("expires_at") == expected
    changed = f'{{"expires_in_seconds":{value}}}'.encode()
    assert server.send("PUT", f"{SESSIONS}/{new_id}", changed).json().get("expires_at") == expected


def test_it_is_named_with_all_else_that_is_wrong(client: httpx.Client) -> None:
    members = {"user_session_id": "", "chat_state": 1, "last_activity": "soon", "expires_in_seconds": 0}
    answer = client.post(SESSIONS, json=members)
    assert_problem(answer, 400, "invalid_request")
    assert [error["member"] for error in answer.json()["errors"]] == list(members)


def test_it_goes_with_odd_members_too(server: Server, new_id: str) -> None:
    """An object for the state, escapes of lone surrogates in what is ignored, and the member twice."""
    body = rf'{{"chat_state": {{"a": 1}}, "x": "\ud800", "user_session_id": "{new_id}", "expires_in_seconds": 0'
    answer = server.send("POST", SESSIONS, f'{body}, "expires_in_seconds": 60}}'.encode())
    assert (answer.status, answer.json()["chat_state"]) == (201, '{"a": 1}')
    assert answer.json()["expires_at"] == format_time(server.clock.now + timedelta(seconds=60))


# --- What answers show ------------------------------------------------------------------------------------------------


def test_a_record_has_the_member_only_with_an_expiry_of_its_own(client: httpx.Client, new_id: str) -> None:
    def members() -> list[set[str]]:
        records = [
            save(client, new_id, STATE).json(),
            put(client, new_id).json(),
            patch(client, new_id, {"Prefer": "return=representation"}).json(),
            restore(client, new_id, {"Prefer": "return=representation"}).json(),
            client.get(SESSIONS, params={"prefix": new_id, "include": "chat_state"}).json()["sessions"][0],
            save(client, new_id, STATE).json(),
        ]
        assert records[-2]["version"] == records[-3]["version"]
        assert set(load(client, new_id)) == {"chat_state", "last_activity"}
        return [set(record) for record in records]

    assert members() == [set(RECORD)] * 6
    put(client, new_id, expires_in_seconds=60)
    assert members() == [{*RECORD, "expires_at"}] * 6
    put(client, new_id, expires_in_seconds=None)
    assert members() == [set(RECORD)] * 6


@pytest.mark.parametrize("first", ["POST", "PUT"])
@pytest.mark.parametrize("second", ["POST", "PUT", "PUT without a state"])
def test_an_expiry_is_given_kept_changed_and_taken_away(
    server: Server, client: httpx.Client, new_id: str, first: str, second: str
) -> None:
    def write(how: str, **members: Any) -> datetime | None:
        if how == "POST":
            return expires_at(save(client, new_id, STATE, **members))
        return expires_at(put(client, new_id, **members, **({} if "without" in how else {"chat_state": STATE})))

    save(client, new_id, STATE)
    now = server.clock.now
    assert write(first, expires_in_seconds=60) == now + timedelta(seconds=60)
    assert write(second) == now + timedelta(seconds=60)
    assert write(second, expires_in_seconds=5) == now + timedelta(seconds=5)
    assert write(second) == now + timedelta(seconds=5)
    assert write(second, expires_in_seconds=None) is None
    assert write(second) is None
    assert write(second, expires_in_seconds=MAX_EXPIRES_IN) == now + timedelta(seconds=MAX_EXPIRES_IN)


# --- Renewal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENEWING)
def test_every_write_renews_the_expiry(server: Server, client: httpx.Client, new_id: str, name: str) -> None:
    save(client, new_id, STATE, expires_in_seconds=60)
    for _ in range(3):
        server.clock.advance(seconds=59.999999)
        assert expires_at(RENEWING[name](client, new_id)) == server.clock.now + timedelta(seconds=60)
    server.clock.advance(seconds=59.999999)
    assert is_there(client, new_id)
    server.clock.now += MICROSECOND
    assert not is_there(client, new_id)


def test_reads_renew_nothing(server: Server, client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id, STATE, expires_in_seconds=60)
    session, tag = f"{SESSIONS}/{new_id}", created.headers["etag"]
    server.clock.advance(seconds=30)
    answers = [
        client.get(session),
        client.head(session),
        client.get(session, headers={"If-None-Match": tag}),
        client.options(session),
        client.get(f"{session}/versions"),
        client.get(f"{session}/versions/1"),
        client.get(SESSIONS, params={"prefix": new_id}),
        client.get(SESSIONS, params={"prefix": new_id, "include": "chat_state"}),
    ]
    assert {answer.status_code for answer in answers} <= {200, 204, 304}
    assert answers[6].json()["sessions"][0]["expires_at"] == created.json()["expires_at"]
    server.clock.advance(seconds=30)
    assert not is_there(client, new_id)


def test_writes_that_fail_or_are_replayed_renew_nothing(server: Server, client: httpx.Client, new_id: str) -> None:
    key = {"Idempotency-Key": "key"}
    body = {"user_session_id": new_id, "chat_state": "no JSON", "expires_in_seconds": 60}
    first = client.post(SESSIONS, json=body, headers=key)
    server.clock.advance(seconds=30)
    replay = client.post(SESSIONS, json=body, headers=key)
    assert replay.headers["idempotency-replayed"] == "true"
    assert expires_at(replay) == expires_at(first) == server.clock.now + timedelta(seconds=30)
    stale = {"If-Match": '"x-1"'}
    failed = [
        client.post(SESSIONS, json=body, headers=stale),
        client.put(f"{SESSIONS}/{new_id}", json={}, headers=stale),
        client.delete(f"{SESSIONS}/{new_id}", headers=stale),
        save(client, new_id, 1),
        patch(client, new_id),
        restore(client, new_id, number=9),
    ]
    assert [answer.status_code for answer in failed] == [412, 412, 412, 400, 409, 404]
    server.clock.advance(seconds=30)
    assert not is_there(client, new_id)


def test_it_expires_to_the_microsecond(server: Server, client: httpx.Client, new_id: str) -> None:
    server.clock.now += timedelta(microseconds=123_457)
    created = save(client, new_id, STATE, expires_in_seconds=1)
    end = expires_at(created)
    assert end == server.clock.now + timedelta(seconds=1)
    server.clock.now = end - MICROSECOND
    assert is_there(client, new_id)
    server.clock.now = end
    assert not is_there(client, new_id)
    server.clock.now = end - MICROSECOND
    assert client.get(f"{SESSIONS}/{new_id}").headers["etag"] == created.headers["etag"], "reading removes nothing"


# --- Expired is absent ------------------------------------------------------------------------------------------------


@pytest.fixture
def expired(server: Server, client: httpx.Client, new_id: str) -> httpx.Response:
    """The last write to a session that has expired at this very moment."""
    save(client, new_id, STATE, expires_in_seconds=60)
    answer = put(client, new_id)
    server.clock.advance(seconds=60)
    return answer


MERGE = "application/merge-patch+json"
NOT_FOUND = [
    ("GET", "", None),
    ("HEAD", "", None),
    ("PUT", "", b'{"chat_state": "x"}'),
    ("PUT", "", b"{}"),
    ("PUT", "", b'{"expires_in_seconds": 60}'),
    ("PATCH", "", b'{"a": 1}'),
    ("DELETE", "", None),
    ("POST", "/restore", b'{"version": 1}'),
    ("POST", "/restore", b'{"version": 2}'),
    ("GET", "/versions", None),
    ("HEAD", "/versions", None),
    ("GET", "/versions?limit=1", None),
    ("GET", "/versions/1", None),
    ("GET", "/versions/2", None),
]


@pytest.mark.parametrize(("method", "path", "body"), NOT_FOUND)
def test_an_expired_session_is_absent(
    server: Server,
    client: httpx.Client,
    new_id: str,
    expired: httpx.Response,
    method: str,
    path: str,
    body: bytes | None,
) -> None:
    kind = {"Content-Type": MERGE} if method == "PATCH" else {}
    for _ in range(2):
        answer = server.send(method, f"{SESSIONS}/{new_id}{path}", body, kind)
        assert answer.status == 404
        assert "etag" not in answer.headers
        if method != "HEAD":
            assert answer.json()["code"] == "session_not_found"
    assert not is_there(client, new_id)


WRITES = [row for row in NOT_FOUND if row[0] not in ("GET", "HEAD")]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_no_tag_matches_an_expired_session(
    server: Server,
    client: httpx.Client,
    new_id: str,
    expired: httpx.Response,
    method: str,
    path: str,
    body: bytes | None,
) -> None:
    kind = {"Content-Type": MERGE} if method == "PATCH" else {}
    for value in (expired.headers["etag"], "*"):
        fields = kind | {"If-Match": value, "Prefer": "return=representation"}
        answer = server.send(method, f"{SESSIONS}/{new_id}{path}", body, fields)
        assert (answer.status, answer.json()["code"]) == (412, "precondition_failed")
        assert "etag" not in answer.headers
        assert "current" not in answer.json()
    assert server.send(method, f"{SESSIONS}/{new_id}{path}", body, kind | {"If-None-Match": "*"}).status == 404
    assert not is_there(client, new_id)


def test_reads_with_conditions_find_nothing_either(client: httpx.Client, new_id: str, expired: httpx.Response) -> None:
    tag = expired.headers["etag"]
    for headers in ({"If-None-Match": tag}, {"If-None-Match": "*"}, {"If-Match": tag}):
        assert client.get(f"{SESSIONS}/{new_id}", headers=headers).status_code == 404


def test_an_expired_session_is_in_no_list(client: httpx.Client, new_id: str, expired: httpx.Response) -> None:
    save(client, f"{new_id}-live")
    for parameters in ({}, {"order": "id"}, {"include": "chat_state"}, {"active_after": "2000-01-01T00:00:00Z"}):
        assert listed(client, prefix=new_id, **parameters) == [f"{new_id}-live"]


CREATING = {
    "plain": {},
    "creation only": {"If-None-Match": "*"},
    "not the old one": {"If-None-Match": "{tag}"},
    "with a key": {"Idempotency-Key": "key"},
}


@pytest.mark.parametrize("name", CREATING)
@pytest.mark.parametrize("more", [{}, {"expires_in_seconds": None}, {"expires_in_seconds": 5}], ids=str)
def test_a_save_in_its_place_is_a_new_session(
    server: Server, client: httpx.Client, new_id: str, expired: httpx.Response, name: str, more: dict[str, Any]
) -> None:
    headers = {header: value.format(tag=expired.headers["etag"]) for header, value in CREATING[name].items()}
    body = {"user_session_id": new_id, "chat_state": "anew", **more}
    answer = client.post(SESSIONS, json=body, headers=headers)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{SESSIONS}/{new_id}"
    now, old = format_time(server.clock.now), expired.json()
    seconds = more.get("expires_in_seconds")
    expiry = {"expires_at": format_time(server.clock.now + timedelta(seconds=seconds))} if seconds else {}
    assert answer.json() == {
        "session_id": answer.json()["session_id"],
        "user_session_id": new_id,
        "chat_state": "anew",
        "last_activity": now,
        "created_at": now,
        "updated_at": now,
        "version": 1,
        **expiry,
    }
    assert answer.json()["session_id"] != old["session_id"]
    zombie = client.post(SESSIONS, json=body, headers={"If-Match": expired.headers["etag"]})
    assert_problem(zombie, 412, "precondition_failed")
    assert zombie.headers["etag"] == answer.headers["etag"]


def test_a_save_that_expects_it_creates_nothing(client: httpx.Client, new_id: str, expired: httpx.Response) -> None:
    body = {"user_session_id": new_id, "chat_state": "zombie"}
    for value in (expired.headers["etag"], "*"):
        answer = client.post(SESSIONS, json=body, headers={"If-Match": value})
        assert_problem(answer, 412, "precondition_failed")
        assert "etag" not in answer.headers
    assert not is_there(client, new_id)


def test_whatever_was_tried_first_a_save_creates_it(
    server: Server, client: httpx.Client, new_id: str, expired: httpx.Response
) -> None:
    """What an expired session has left behind is not in the way of a new one."""
    for method, path, body in WRITES:
        kind = {"Content-Type": MERGE} if method == "PATCH" else {}
        server.send(method, f"{SESSIONS}/{new_id}{path}", body, kind)
    assert save(client, new_id, "anew").status_code == 201


def test_a_session_may_expire_again_and_again(server: Server, client: httpx.Client, new_id: str) -> None:
    ids = set()
    for _ in range(4):
        answer = save(client, new_id, STATE, expires_in_seconds=1)
        assert (answer.status_code, answer.json()["version"]) == (201, 1)
        ids.add(answer.json()["session_id"])
        server.clock.advance(seconds=1)
    assert len(ids) == 4


def test_the_history_of_an_expired_session_is_out_of_reach(start: Start, own_url: str) -> None:
    with start(own_url, history=5) as server, server.client() as client:
        for number in range(1, 4):
            save(client, "one", f"secret {number}", expires_in_seconds=60)
        server.clock.advance(seconds=60)
        assert_problem(client.get(f"{SESSIONS}/one/versions"), 404, "session_not_found")
        assert_problem(client.get(f"{SESSIONS}/one/versions/2"), 404, "session_not_found")
        assert_problem(restore(client, "one", number=2), 404, "session_not_found")
        assert save(client, "one", "anew").json()["version"] == 1
        rows = client.get(f"{SESSIONS}/one/versions").json()["versions"]
        assert [row["version"] for row in rows] == [1]
        for number in (2, 3):
            assert_problem(client.get(f"{SESSIONS}/one/versions/{number}"), 404, "version_not_found")
            assert_problem(restore(client, "one", number=number), 404, "version_not_found")
        assert client.get(f"{SESSIONS}/one/versions/1").json()["chat_state"] == "anew"
        save(client, "one", "newer")
        assert restore(client, "one", number=1).json()["version"] == 3
        assert load(client, "one")["chat_state"] == "anew"


# --- Idle sessions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idle_url(tmp_path_factory: pytest.TempPathFactory, store_url: str) -> str:
    """A database beside the module's, where that has one owner."""
    if store_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path_factory.mktemp('idle')}/chatstate.db"
    return store_url


@pytest.fixture(scope="module")
def idle_server(start: Start, idle_url: str) -> Iterator[Server]:
    """A server on which sessions expire a minute after their last write."""
    with start(idle_url, idle_expiry_seconds=60) as running:
        yield running


@pytest.fixture(scope="module")
def idle_client(idle_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=idle_server.base_url) as client:
        yield client


def test_an_idle_session_expires_to_the_microsecond(
    idle_server: Server, idle_client: httpx.Client, new_id: str
) -> None:
    created = save(idle_client, new_id, STATE, last_activity="9999-12-31T23:59:59Z")
    assert set(created.json()) == set(RECORD), "the server's expiry is no member of the record"
    idle_server.clock.now += timedelta(seconds=60) - MICROSECOND
    assert is_there(idle_client, new_id), "a client's clock decides nothing"
    idle_server.clock.now += MICROSECOND
    assert not is_there(idle_client, new_id)
    assert listed(idle_client, prefix=new_id) == []
    assert_problem(idle_client.get(f"{SESSIONS}/{new_id}/versions"), 404, "session_not_found")
    assert_problem(put(idle_client, new_id), 404, "session_not_found")
    assert_problem(patch(idle_client, new_id), 404, "session_not_found")
    assert_problem(restore(idle_client, new_id, number=1), 404, "session_not_found")
    zombie = patch(idle_client, new_id, {"If-Match": created.headers["etag"]})
    assert_problem(zombie, 412, "precondition_failed")
    anew = save(idle_client, new_id, "anew")
    assert (anew.status_code, anew.json()["version"]) == (201, 1)
    assert anew.json()["session_id"] != created.json()["session_id"]


def test_an_idle_session_can_be_deleted_no_more(idle_server: Server, idle_client: httpx.Client, new_id: str) -> None:
    save(idle_client, new_id, STATE)
    idle_server.clock.advance(seconds=60)
    assert_problem(idle_client.delete(f"{SESSIONS}/{new_id}"), 404, "session_not_found")
    anew = {"user_session_id": new_id, "chat_state": "anew"}
    assert idle_client.post(SESSIONS, json=anew, headers={"If-None-Match": "*"}).status_code == 201


@pytest.mark.parametrize("name", RENEWING)
def test_every_write_keeps_it_from_being_idle(
    idle_server: Server, idle_client: httpx.Client, new_id: str, name: str
) -> None:
    save(idle_client, new_id, STATE)
    for _ in range(3):
        idle_server.clock.advance(seconds=59)
        assert RENEWING[name](idle_client, new_id).status_code == 200
    idle_server.clock.advance(seconds=59)
    assert is_there(idle_client, new_id)  # and this does not
    idle_server.clock.advance(seconds=1)
    assert not is_there(idle_client, new_id)


@pytest.mark.parametrize("seconds", [10, 600])
def test_an_expiry_of_its_own_goes_before_the_servers(
    idle_server: Server, idle_client: httpx.Client, new_id: str, seconds: int
) -> None:
    """Be it sooner or later."""
    save(idle_client, new_id, STATE, expires_in_seconds=seconds)
    idle_server.clock.now += timedelta(seconds=seconds) - MICROSECOND
    assert is_there(idle_client, new_id)
    assert listed(idle_client, prefix=new_id) == [new_id]
    idle_server.clock.now += MICROSECOND
    assert not is_there(idle_client, new_id)
    assert listed(idle_client, prefix=new_id) == []


def test_without_one_any_more_it_is_idle_like_others(
    idle_server: Server, idle_client: httpx.Client, new_id: str
) -> None:
    save(idle_client, new_id, STATE, expires_in_seconds=600)
    idle_server.clock.advance(seconds=599)
    put(idle_client, new_id, expires_in_seconds=None)
    idle_server.clock.advance(seconds=59)
    assert is_there(idle_client, new_id)
    idle_server.clock.advance(seconds=1)
    assert not is_there(idle_client, new_id)


def test_a_touch_that_is_sent_again_shows_no_state_of_an_idle_session(
    idle_server: Server, idle_client: httpx.Client, new_id: str
) -> None:
    save(idle_client, new_id, "secret")
    key = {"Idempotency-Key": "key"}
    touched = idle_client.put(f"{SESSIONS}/{new_id}", json={}, headers=key)
    idle_server.clock.advance(seconds=59)
    assert idle_client.put(f"{SESSIONS}/{new_id}", json={}, headers=key).content == touched.content
    idle_server.clock.advance(seconds=1)
    assert_problem(idle_client.put(f"{SESSIONS}/{new_id}", json={}, headers=key), 404, "session_not_found")


def test_the_setting_may_change_at_any_time(start: Start, own_url: str) -> None:
    clock = SettableClock()
    with start(own_url, clock=clock) as server, server.client() as client:
        save(client, "one", STATE)
    clock.advance(seconds=3600)
    with start(own_url, clock=clock) as server, server.client() as client:
        assert is_there(client, "one")
    settings = {"idle_expiry_seconds": 3601}
    with start(own_url, clock=clock, **settings) as server, server.client() as client:
        assert is_there(client, "one")
        clock.advance(seconds=1)
        assert not is_there(client, "one")


# --- The ends of the calendar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "now", [datetime(9990, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_998, tzinfo=UTC)], ids=str
)
def test_an_expiry_beyond_the_calendar_is_its_end(start: Start, own_url: str, now: datetime) -> None:
    clock = SettableClock()
    clock.now = now
    with start(own_url, clock=clock, history=2) as server, server.client() as client:
        created = save(client, "one", STATE, expires_in_seconds=MAX_EXPIRES_IN)
        assert created.status_code == 201
        assert created.json()["expires_at"] == "9999-12-31T23:59:59.999999Z"
        for name, write in RENEWING.items():
            answer = write(client, "one")
            assert (answer.status_code, answer.json()["expires_at"]) == (200, created.json()["expires_at"]), name
        assert is_there(client, "one")
        assert listed(client, prefix="one") == ["one"]
        assert client.get(f"{SESSIONS}/one/versions").status_code == 200
        for _ in range(2):
            answer = patch(client, "one", {"Idempotency-Key": "key"})
            assert (answer.status_code, answer.json()["version"]) == (200, 7)
        assert client.delete(f"{SESSIONS}/one", headers={"Idempotency-Key": "gone"}).status_code == 200


@pytest.mark.parametrize("now", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)], ids=str)
def test_an_idle_time_longer_than_the_calendar(start: Start, own_url: str, now: datetime) -> None:
    clock = SettableClock()
    clock.now = now + timedelta(seconds=60)
    settings = {"idle_expiry_seconds": MAX_EXPIRES_IN}
    with start(own_url, clock=clock, **settings) as server, server.client() as client:
        assert save(client, "one", STATE).status_code == 201
        assert put(client, "one").status_code == 200
        assert is_there(client, "one")
        assert listed(client) == ["one"]


def test_expiries_of_many_sessions_are_their_own(server: Server, client: httpx.Client, new_id: str) -> None:
    for number in range(1, 6):
        save(client, f"{new_id}-{number}", json.dumps(number), expires_in_seconds=number)
    for number in range(1, 6):
        server.clock.advance(seconds=1)
        assert listed(client, prefix=new_id, order="id") == [f"{new_id}-{left}" for left in range(number + 1, 6)]
