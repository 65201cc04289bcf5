"""Visits over HTTP, on every store: the calls of existing front-ends, lists and their pages, and bad input."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from chatstate.model import format_time
from tests.http.conftest import Server
from tests.http.test_endpoints import assert_problem

VISITS = "/chat-sessions"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ABSENT = "0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"
MEMBERS: dict[str, Any] = {
    "user_id": "user_42",
    "session_start_time": "2025-10-02T10:00:00Z",
    "session_end_time": "2025-10-02T10:12:30Z",
    "total_messages_count": 14,
    "session_duration_minutes": 20,
    "session_completed": True,
    "session_outcome": "resolved",
    "final_step_reached": "payment",
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
    "ip_address": "203.0.113.7",
    "device_type": "mobile",
}
"""What a client may send, each as it comes back."""

NEW: dict[str, Any] = dict.fromkeys(MEMBERS) | {"total_messages_count": 0, "session_completed": False}
"""What a new visit has, but for its start."""


def post(client: httpx.Client, user_session_id: str, **members: Any) -> httpx.Response:
    return client.post(VISITS, json={"user_session_id": user_session_id, **members})


def create(client: httpx.Client, user_session_id: str, **members: Any) -> dict[str, Any]:
    answer = post(client, user_session_id, **members)
    assert answer.status_code == 201, answer.text
    visit: dict[str, Any] = answer.json()
    return visit


def patch(client: httpx.Client, visit: dict[str, Any], /, **members: Any) -> dict[str, Any]:
    answer = client.patch(f"{VISITS}/{visit['session_id']}", json=members)
    assert answer.status_code == 200, answer.text
    changed: dict[str, Any] = answer.json()
    return changed


def load(client: httpx.Client, visit: dict[str, Any]) -> Any:
    return client.get(f"{VISITS}/{visit['session_id']}").json()


def of_user(client: httpx.Client, user_session_id: str) -> Any:
    return client.get(f"{VISITS}/user/{user_session_id}").json()


def findings(answer: httpx.Response) -> dict[str, str]:
    assert_problem(answer, 400, "invalid_request")
    return {error["member"]: error["detail"] for error in answer.json()["errors"]}


# --- The calls of existing front-ends ---------------------------------------------------------------------------------


def test_a_visit_from_its_start_to_its_end(client: httpx.Client, server: Server, new_id: str) -> None:
    """What existing front-ends do: create a visit when the chat opens, and send its end when the chat closes."""
    begun = create(client, new_id, device_type="mobile", user_agent="Mozilla/5.0")
    assert begun["session_start_time"] == format_time(server.clock.now)
    assert (begun["session_end_time"], begun["session_duration_minutes"]) == (None, None)
    server.clock.advance(seconds=150)
    end = format_time(server.clock.now).replace("Z", ".000Z")  # what toISOString gives
    body = json.dumps({"session_end_time": end}).encode()
    ended = server.send("PATCH", f"{VISITS}/{begun['session_id']}", body)
    assert ended.status == 200
    expected = begun | {"session_end_time": format_time(server.clock.now), "session_duration_minutes": 3}
    assert ended.json() == expected == load(client, begun)


def test_a_new_visit_has_every_member(client: httpx.Client, server: Server, new_id: str) -> None:
    answer = post(client, new_id)
    visit = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{VISITS}/{visit['session_id']}"
    assert client.get(answer.headers["location"]).json() == visit
    assert UUID.fullmatch(visit["session_id"])
    now = format_time(server.clock.now)
    given = {"session_id": visit["session_id"], "user_session_id": new_id, "created_at": now}
    assert visit == NEW | given | {"session_start_time": now}
    order = ["session_id", "user_session_id", *MEMBERS, "created_at"]
    order.insert(6, order.pop(order.index("session_duration_minutes")))
    assert list(visit) == order


def test_every_member_comes_back_as_it_was_sent(client: httpx.Client, new_id: str) -> None:
    visit = create(client, new_id, **MEMBERS)
    assert {name: visit[name] for name in MEMBERS} == MEMBERS
    assert load(client, visit) == visit
    for name, value in MEMBERS.items():
        plain = create(client, new_id, session_start_time="2025-10-02T09:00:00Z")
        changed = patch(client, plain, **{name: value})
        derived = {"session_end_time": {"session_duration_minutes": 73}}.get(name, {})
        assert changed == plain | {name: value} | derived
        assert load(client, plain) == changed


def test_members_that_the_client_does_not_send_stay_and_null_makes_them_as_at_first(
    client: httpx.Client, new_id: str
) -> None:
    visit = create(client, new_id, **MEMBERS)
    assert patch(client, visit) == visit
    cleared = patch(client, visit, **{name: None for name in MEMBERS if name != "session_start_time"})
    assert cleared == visit | NEW | {"session_start_time": visit["session_start_time"]}
    assert create(client, new_id, **dict.fromkeys([*MEMBERS, "session_id"]))["session_outcome"] is None


def test_ids_and_unknown_members_in_a_change_are_ignored(client: httpx.Client, new_id: str) -> None:
    """So that a client may send back the whole record that it has read."""
    visit = create(client, new_id, **MEMBERS)
    foreign = {"session_id": ABSENT, "user_session_id": "other", "created_at": "2000-01-01T00:00:00Z", "more": [1]}
    assert patch(client, visit, **foreign) == visit
    answer = client.patch(f"{VISITS}/{visit['session_id']}", json=visit | {"session_outcome": "left"})
    assert answer.json() == visit | {"session_outcome": "left"}
    assert create(client, new_id, more={"a": 1}, created_at="x")["session_id"] != visit["session_id"]


def test_a_merge_patch_is_the_same_as_json(server: Server, client: httpx.Client, new_id: str) -> None:
    visit = create(client, new_id, **MEMBERS)
    body = b'{"session_outcome": "left", "device_type": null}'
    kind = {"Content-Type": "application/merge-patch+json"}
    answer = server.send("PATCH", f"{VISITS}/{visit['session_id']}", body, kind)
    assert (answer.status, answer.json()) == (200, visit | {"session_outcome": "left", "device_type": None})
    refused = server.send("PATCH", f"{VISITS}/{visit['session_id']}", body, {"Content-Type": "text/plain"})
    assert (refused.status, refused.json()["code"]) == (415, "unsupported_media_type")
    assert refused.headers["accept-patch"] == "application/json, application/merge-patch+json"
    assert server.send("POST", VISITS, body, kind).status == 415


# --- Ids --------------------------------------------------------------------------------------------------------------


def test_a_client_may_choose_the_id_once(client: httpx.Client, new_id: str) -> None:
    chosen = str(uuid.uuid4())
    visit = create(client, new_id, session_id=chosen.upper(), user_id="first")
    assert visit["session_id"] == chosen
    assert_problem(post(client, new_id, session_id=chosen, user_id="second"), 409, "visit_exists")
    assert_problem(post(client, f"{new_id}-2", session_id=chosen.upper()), 409, "visit_exists")
    for path in (chosen, chosen.upper(), f"%{ord(chosen[0]):x}{chosen[1:]}"):
        assert client.get(f"{VISITS}/{path}").json() == visit
    assert of_user(client, f"{new_id}-2") == []


def test_of_many_creations_with_one_id_one_wins(client: httpx.Client, new_id: str) -> None:
    chosen = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: post(client, new_id, session_id=chosen, user_id=str(n)), range(16)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15
    (winner,) = [answer.json() for answer in answers if answer.status_code == 201]
    assert of_user(client, new_id) == [winner]


@pytest.mark.parametrize(
    "segment",
    [
        ABSENT,
        "x",
        "session_12345",
        "%00",
        "%FF",
        "%zz",
        "%F0%9F%98%80",
        ABSENT.replace("-", ""),
        f"{ABSENT}0",
        ".",
        "..",
        f"%7B{ABSENT}%7D",
        f"{ABSENT}%0A",
        "a" * 4000,
        "user%2Fa",
        "undefined",
        "null",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_what_is_not_the_id_of_a_visit_is_404(server: Server, method: str, segment: str) -> None:
    answer = server.send(method, f"{VISITS}/{segment}", b"{}" if method == "PATCH" else None)
    assert (answer.status, answer.json()["code"]) == (404, "visit_not_found")


def test_an_invalid_body_is_400_also_for_a_visit_that_does_not_exist(client: httpx.Client, new_id: str) -> None:
    assert set(findings(client.patch(f"{VISITS}/{ABSENT}", json={"ip_address": 1}))) == {"ip_address"}
    assert set(findings(client.put(f"{VISITS}/user/{new_id}", json={"user_id": 1}))) == {"user_id"}


def test_user_session_ids_are_those_of_chat_states(server: Server, client: httpx.Client, new_id: str) -> None:
    odd = f"a/b %😀 {new_id}"
    visit = create(client, odd)
    path = "a%2Fb%20%25%F0%9F%98%80%20" + new_id
    assert server.send("GET", f"{VISITS}/user/{path}").json() == [visit]
    for segment, detail in (("%FF", "UTF-8"), ("%zz", "hexadecimal"), ("a%00", "control"), ("a" * 256, "255")):
        for method, body in (("GET", None), ("PUT", b"{}")):
            answer = server.send(method, f"{VISITS}/user/{segment}", body)
            assert answer.status == 400
            (error,) = answer.json()["errors"]
            assert error["member"] == "user_session_id"
            assert detail in error["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/chat-sessions/user"), ("GET", "/chat-sessions/"), ("GET", "/x")]
)
def test_what_lies_beside_the_routes_is_404(server: Server, method: str, path: str) -> None:
    answer = server.send(method, path)
    assert (answer.status, answer.json()["code"]) == (404, "not_found")


def test_other_methods_are_405(server: Server) -> None:
    allowed = {
        VISITS: "POST, GET, HEAD",
        f"{VISITS}/{ABSENT}": "GET, HEAD, PATCH",
        f"{VISITS}/user/u": "GET, HEAD, PUT",
    }
    for path, methods in allowed.items():
        answer = server.send("DELETE", path)
        assert (answer.status, answer.headers["allow"]) == (405, methods)


# --- Times and the duration -------------------------------------------------------------------------------------------


def test_a_derived_duration_follows_the_times_and_a_given_one_stays(client: httpx.Client, new_id: str) -> None:
    visit = create(client, new_id, session_start_time="2025-10-02T10:00:00Z", session_end_time="2025-10-02T10:05:00Z")

    def duration(**members: Any) -> Any:
        return patch(client, visit, **members)["session_duration_minutes"]

    assert visit["session_duration_minutes"] == 5
    assert duration(session_end_time="2025-10-02T12:07:29.999999+02:00") == 7
    assert duration(session_start_time="2025-10-02T09:59:59.999999Z") == 8
    assert duration(session_duration_minutes=2) == 2
    assert duration(session_end_time="2025-10-02T11:00:00Z") == 2
    assert duration(session_end_time=None) == 2
    assert duration(session_duration_minutes=None) is None
    assert duration(session_end_time="2025-10-02T10:30:00Z") == 30
    assert duration(session_end_time=None) is None


def test_an_end_before_the_start_is_kept_without_a_duration(client: httpx.Client, new_id: str) -> None:
    """The start may be of the server's clock, and the end of a browser's that is slow."""
    end = "2025-10-02T09:59:59Z"
    visit = create(client, new_id, session_start_time="2025-10-02T10:00:00Z", session_end_time=end)
    assert (visit["session_end_time"], visit["session_duration_minutes"]) == (end, None)
    assert patch(client, visit, session_start_time="2025-10-02T09:00:00Z")["session_duration_minutes"] == 60


def test_the_duration_is_right_when_start_and_end_change_at_once(client: httpx.Client, new_id: str) -> None:
    visit = create(client, new_id)
    for minute in range(8):
        start, end = f"2025-10-02T10:0{minute}:00Z", f"2025-10-02T11:{minute}0:00Z" if minute < 6 else None
        changes = ({"session_start_time": start}, {"session_end_time": end}, {"user_id": str(minute)})
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda change: patch(client, visit, **change), changes))
        now = load(client, visit)
        assert (now["session_start_time"], now["session_end_time"], now["user_id"]) == (start, end, str(minute))
        assert now["session_duration_minutes"] == (60 + 9 * minute if end else None)


def test_the_whole_calendar_fits(client: httpx.Client, new_id: str) -> None:
    ends = {"session_start_time": "0001-01-01T00:00:00Z", "session_end_time": "9999-12-31T23:59:59.999999Z"}
    visit = create(client, new_id, **ends)
    assert {name: visit[name] for name in ends} == ends
    assert visit["session_duration_minutes"] == 5258964960
    assert load(client, visit) == visit == of_user(client, new_id)[0]


# --- Lists ------------------------------------------------------------------------------------------------------------


def pages(client: httpx.Client, path: str, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
    """Follow the links from page to page."""
    answer = client.get(path, params=parameters)
    while True:
        assert answer.status_code == 200, answer.text
        yield answer.json()
        if "next" not in answer.links:
            return
        answer = client.get(answer.links["next"]["url"])


def newest_first(visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(visits, key=lambda visit: (visit["session_start_time"], visit["session_id"]), reverse=True)


def test_the_visits_of_a_user_come_newest_first_page_by_page(client: httpx.Client, new_id: str) -> None:
    starts = [f"2025-10-0{1 + number % 3}T10:00:00Z" for number in range(10)]
    visits = newest_first([create(client, new_id, session_start_time=start) for start in starts])
    create(client, f"{new_id}-other")
    assert of_user(client, new_id) == visits
    for limit in (1, 3, 9, 10, 11, 1000):
        found = list(pages(client, f"{VISITS}/user/{new_id}", limit=limit))
        assert [visit for page in found for visit in page] == visits
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert found[-1]


def test_a_user_without_visits_has_an_empty_list(client: httpx.Client, new_id: str) -> None:
    answer = client.get(f"{VISITS}/user/{new_id}")
    assert (answer.status_code, answer.json(), "link" in answer.headers) == (200, [], False)


def test_all_visits_are_listed_newest_first(client: httpx.Client, new_id: str) -> None:
    mine = newest_first([create(client, f"{new_id}-{n}", session_start_time="9999-10-02T10:00:00Z") for n in range(7)])
    listed = [visit for page in pages(client, VISITS, limit=3) for visit in page]
    assert listed == newest_first(listed)
    assert [visit for visit in listed if visit["user_session_id"].startswith(new_id)] == mine
    answer = client.get(VISITS)
    assert answer.json() == listed[:100]
    assert ("next" in answer.links) == (len(listed) > 100)
    assert client.head(VISITS).headers["content-length"] == str(len(answer.content))


def test_a_page_has_a_hundred_visits_unless_more_are_asked_for(client: httpx.Client, new_id: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: create(client, new_id), range(103)))
    assert [len(page) for page in pages(client, f"{VISITS}/user/{new_id}")] == [100, 3]
    link = client.get(f"{VISITS}/user/{new_id}").headers["link"]
    assert re.fullmatch(rf'</chat-sessions/user/{new_id}\?cursor=[\w-]+>; rel="next"', link)
    assert len(client.get(f"{VISITS}/user/{new_id}?limit=1000").json()) == 103


def test_what_is_added_meanwhile_shifts_no_page(client: httpx.Client, new_id: str) -> None:
    old = newest_first([create(client, new_id, session_start_time="2025-10-01T10:00:00Z") for _ in range(4)])
    walk = pages(client, f"{VISITS}/user/{new_id}", limit=2)
    assert next(walk) == old[:2]
    create(client, new_id, session_start_time="2025-10-02T10:00:00Z")
    assert next(walk) == old[2:]


@pytest.mark.parametrize(
    ("query", "members"),
    [
        ("limit=0", {"limit"}),
        ("limit=1001", {"limit"}),
        ("limit=", {"limit"}),
        ("limit=1.0", {"limit"}),
        ("limit=-1", {"limit"}),
        ("limit=%D9%A1", {"limit"}),
        ("limit=x&cursor=x", {"limit", "cursor"}),
        ("cursor=", {"cursor"}),
        ("cursor=W10", {"cursor"}),
        ("cursor=WyJ4IiwieCJd", {"cursor"}),
        ("cursor=WyIyMDI1LTEwLTAyVDEwOjAwOjAwWiIsIngiXQ", {"cursor"}),
        ("limit=1&limit=2", {"limit"}),
        ("offset=1", {"offset"}),
        ("limit=%FF", {"query"}),
    ],
)
@pytest.mark.parametrize("path", [VISITS, f"{VISITS}/user/u"])
def test_bad_parameters_are_named(client: httpx.Client, path: str, query: str, members: set[str]) -> None:
    assert set(findings(client.get(f"{path}?{query}"))) == members


# --- All visits of a user ---------------------------------------------------------------------------------------------


def test_all_visits_of_a_user_change_at_once(client: httpx.Client, new_id: str) -> None:
    visits = [create(client, new_id, session_start_time=f"2025-10-02T10:0{n}:00Z", user_id="u") for n in range(3)]
    other = create(client, f"{new_id}-other")
    change = {"session_end_time": "2025-10-02T11:00:00Z", "user_id": None, "session_id": ABSENT, "more": 1}
    answer = client.put(f"{VISITS}/user/{new_id}", json=change)
    assert (answer.status_code, answer.json()) == (200, {"updated": 3})
    ended = {"session_end_time": "2025-10-02T11:00:00Z", "user_id": None}
    expected = [visit | ended | {"session_duration_minutes": 60 - n} for n, visit in enumerate(visits)]
    assert of_user(client, new_id) == expected[::-1]
    assert load(client, other) == other
    assert client.put(f"{VISITS}/user/{new_id}", json={}).json() == {"updated": 3}


def test_a_change_of_a_user_without_visits_is_404(client: httpx.Client, new_id: str) -> None:
    assert_problem(client.put(f"{VISITS}/user/{new_id}", json={"user_id": "u"}), 404, "visit_not_found")
    assert of_user(client, new_id) == []


# --- Bad bodies -------------------------------------------------------------------------------------------------------


def test_every_offending_member_is_named_at_once(client: httpx.Client, new_id: str) -> None:
    bad: dict[str, Any] = {name: {"a": 1} for name in MEMBERS}
    assert set(findings(client.patch(f"{VISITS}/{ABSENT}", json=bad))) == set(MEMBERS)
    assert set(findings(client.put(f"{VISITS}/user/{new_id}", json=bad))) == set(MEMBERS)
    bad |= {"session_id": 1, "user_session_id": None}
    assert set(findings(client.post(VISITS, json=bad))) == set(bad)
    assert findings(client.post(VISITS, json={})) == {"user_session_id": "is required"}
    assert of_user(client, new_id) == []


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("session_id", '""'),
        ("session_id", '"abc"'),
        ("user_session_id", '""'),
        ("user_session_id", "5"),
        ("user_session_id", '".."'),
        ("user_session_id", rf'"{"a" * 256}"'),
        ("user_id", "42"),
        ("user_id", "true"),
        ("user_id", r'"\u0000"'),
        ("user_id", r'"\ud800"'),
        ("user_id", rf'"{"x" * 256}"'),
        ("session_outcome", "[]"),
        ("final_step_reached", rf'"{"x" * 256}"'),
        ("device_type", "1.5"),
        ("user_agent", rf'"{"x" * 1025}"'),
        ("session_start_time", '"yesterday"'),
        ("session_start_time", "1759399200"),
        ("session_end_time", '"2025-10-02T10:00:00"'),
        ("session_end_time", '"2025-02-30T10:00:00Z"'),
        ("session_end_time", '"0001-01-01T00:00:00+01:00"'),
        ("session_end_time", '""'),
        ("total_messages_count", "-1"),
        ("total_messages_count", "2147483648"),
        ("total_messages_count", "1.5"),
        ("total_messages_count", '"3"'),
        ("total_messages_count", "true"),
        ("total_messages_count", "1e400"),
        ("total_messages_count", "1" * 5000),
        ("session_duration_minutes", "2.5"),
        ("session_duration_minutes", "-0.5"),
        ("session_duration_minutes", "[1]"),
        ("session_completed", "1"),
        ("session_completed", '"true"'),
        ("ip_address", '"unknown"'),
        ("ip_address", '"203.0.113.7, 198.51.100.1"'),
        ("ip_address", '"203.0.113.7:443"'),
        ("ip_address", r'"\ud800"'),
        ("ip_address", "3405803783"),
    ],
)
def test_bad_members_are_refused_and_change_nothing(
    server: Server, client: httpx.Client, new_id: str, name: str, raw: str
) -> None:
    visit = create(client, new_id, **MEMBERS)
    required = "" if name == "user_session_id" else f'"user_session_id": "{new_id}", '
    requests = [("POST", VISITS, f'{{{required}"{name}": {raw}}}')]
    if name in MEMBERS:
        requests.append(("PATCH", f"{VISITS}/{visit['session_id']}", f'{{"{name}": {raw}, "user_id": "new"}}'))
        requests.append(("PUT", f"{VISITS}/user/{new_id}", f'{{"session_outcome": "new", "{name}": {raw}}}'))
        requests[1] = (*requests[1][:2], f'{{"session_completed": false, "{name}": {raw}}}')
    for method, path, body in requests:
        answer = server.send(method, path, body.encode())
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request"), answer.body
        assert name in {error["member"] for error in answer.json()["errors"]}
    assert of_user(client, new_id) == [visit]


@pytest.mark.parametrize(
    ("name", "raw", "kept"),
    [
        ("total_messages_count", "3.0", 3),
        ("total_messages_count", "3e2", 300),
        ("total_messages_count", "-0", 0),
        ("total_messages_count", "2147483647", 2147483647),
        ("session_duration_minutes", "0", 0),
        ("user_id", r'"\ud83d\ude00 \"\\ é"', '😀 "\\ é'),
        ("user_id", '""', ""),
        ("user_agent", f'"{"😀" * 1024}"', "😀" * 1024),
        ("session_start_time", '"2025-10-02t12:00:00.1234567+02:00"', "2025-10-02T10:00:00.123456Z"),
        ("ip_address", '"::FFFF:203.0.113.7"', "203.0.113.7"),
        ("ip_address", '"2001:DB8:0:0::7"', "2001:db8::7"),
        ("ip_address", '"::1.2.3.4"', "::102:304"),
    ],
)
def test_odd_members_have_one_meaning(
    server: Server, client: httpx.Client, new_id: str, name: str, raw: str, kept: Any
) -> None:
    body = f'{{"user_session_id": "{new_id}", "{name}": {raw}}}'.encode()
    visit = server.send("POST", VISITS, body).json()
    assert visit[name] == kept
    assert load(client, visit) == visit
    plain = create(client, new_id)
    changed = server.send("PATCH", f"{VISITS}/{plain['session_id']}", f'{{"{name}": {raw}}}'.encode()).json()
    assert changed[name] == kept


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b'{"user_id": "\xff"}', 400, "invalid_json"),
        (b"[" * 60_000, 400, "invalid_json"),
        (b"[]", 400, "invalid_request"),
        (b"null", 400, "invalid_request"),
        (b'{"user_session_id": "u", "user_id": "%s"}' % (b"x" * (1 << 16)), 413, "too_large"),
    ],
)
def test_bodies_that_are_no_visits(server: Server, body: bytes, status: int, code: str) -> None:
    for method, path in (("POST", VISITS), ("PATCH", f"{VISITS}/{ABSENT}"), ("PUT", f"{VISITS}/user/u")):
        answer = server.send(method, path, body)
        assert (answer.status, answer.json()["code"]) == (status, code)


def test_a_body_may_have_64_kib(server: Server, new_id: str) -> None:
    body = json.dumps({"user_session_id": new_id}).encode()
    assert server.send("POST", VISITS, body.ljust(1 << 16)).status == 201
    refused = server.send("POST", VISITS, body.ljust((1 << 16) + 1))
    assert refused.status == 413
    assert "65536" in refused.json()["detail"]


def test_visits_know_no_preconditions(client: httpx.Client, new_id: str) -> None:
    """They have no versions: what one client writes about a visit does not depend on what another has read."""
    visit = create(client, new_id)
    answer = client.patch(f"{VISITS}/{visit['session_id']}", json={"user_id": "u"}, headers={"If-Match": '"x"'})
    assert (answer.status_code, "etag" in answer.headers) == (200, False)
