"""Lists of sessions: order, pages, filters, and what is refused."""

from __future__ import annotations

import itertools
import json
import string
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from chatstate import create_app, create_store
from chatstate.http.paging import write_cursor
from tests.http.conftest import Serve, Server, Start
from tests.http.test_endpoints import RECORD, SESSIONS, assert_problem, save

ORDERS = ("activity", "id")
SUMMARY = {name: kind for name, kind in RECORD.items() if name != "chat_state"}
START = "2025-10-02T10:00:00Z"


def at(second: int) -> str:
    return f"2025-10-02T10:00:{second:02}Z"


def fill(client: httpx.Client, prefix: str, count: int) -> list[str]:
    """Sessions with ids in this order, three to a second; their ids."""
    ids = [f"{prefix}-{number:03}" for number in range(count)]
    for number, user_session_id in enumerate(ids):
        assert save(client, user_session_id, f"state {number}", last_activity=at(number // 3)).status_code == 201
    return ids


def newest_first(ids: list[str]) -> list[str]:
    """The ids that `fill` gave, by activity, and by id where that is the same."""
    return sorted(ids, key=lambda user_session_id: (int(user_session_id[-3:]) // 3, user_session_id), reverse=True)


def listed(client: httpx.Client, **parameters: Any) -> list[str]:
    """The ids on one page."""
    answer = client.get(SESSIONS, params=parameters)
    assert answer.status_code == 200, answer.text
    return [session["user_session_id"] for session in answer.json()["sessions"]]


def pages(client: httpx.Client, target: str, parameters: dict[str, Any] | None = None) -> Iterator[httpx.Response]:
    """The pages from this one on, found as clients find them: by the Link header (RFC 8288)."""
    answer = client.get(target, params=parameters)
    while True:
        assert answer.status_code == 200, answer.text
        yield answer
        cursor = answer.json()["next_cursor"]
        if "next" not in answer.links:
            assert cursor is None
            assert "link" not in answer.headers
            return
        following = answer.links["next"]["url"]
        assert parse_qs(urlsplit(following).query)["cursor"] == [cursor]
        answer = client.get(following)


def all_pages(client: httpx.Client, **parameters: Any) -> list[str]:
    """The ids on all pages."""
    return [row["user_session_id"] for page in pages(client, SESSIONS, parameters) for row in page.json()["sessions"]]


def findings(answer: httpx.Response) -> list[str]:
    """The members that are refused."""
    assert_problem(answer, 400, "invalid_request")
    return [error["member"] for error in answer.json()["errors"]]


# --- What is in it ----------------------------------------------------------------------------------------------------


def test_a_session_is_listed_without_its_state(client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id, "secret", expires_in_seconds=60).json()
    answer = client.get(SESSIONS, params={"prefix": new_id})
    assert answer.json() == {
        "sessions": [{name: value for name, value in created.items() if name != "chat_state"}],
        "next_cursor": None,
    }
    client.put(f"{SESSIONS}/{new_id}", json={"expires_in_seconds": None})
    (session,) = client.get(SESSIONS, params={"prefix": new_id}).json()["sessions"]
    assert {name: type(value) for name, value in session.items()} == SUMMARY


@pytest.mark.parametrize("order", ORDERS)
def test_with_its_state_if_it_is_asked_for(client: httpx.Client, new_id: str, order: str) -> None:
    state = '{"messages": ["Grüße 😀"], "n": 1.0}'
    created = save(client, new_id, state).json()
    parameters = {"prefix": new_id, "include": "chat_state", "order": order}
    assert client.get(SESSIONS, params=parameters).json()["sessions"] == [created]


def test_an_empty_store_has_an_empty_list(start: Start, own_url: str) -> None:
    with start(own_url) as server, server.client() as client:
        for parameters in ({}, {"order": "id"}, {"include": "chat_state"}, {"prefix": "a", "active_after": START}):
            answer = client.get(SESSIONS, params=parameters)
            assert (answer.status_code, answer.json()) == (200, {"sessions": [], "next_cursor": None})
            assert "link" not in answer.headers


def test_head_has_the_same_headers(client: httpx.Client, new_id: str) -> None:
    fill(client, new_id, 3)
    for limit in (2, 3):
        parameters = {"prefix": new_id, "limit": limit}
        got, head = client.get(SESSIONS, params=parameters), client.head(SESSIONS, params=parameters)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "cache-control", "link"):
            assert head.headers.get(name) == got.headers.get(name)


def test_a_deleted_session_is_not_listed(client: httpx.Client, new_id: str) -> None:
    ids = fill(client, new_id, 2)
    client.delete(f"{SESSIONS}/{ids[0]}")
    assert listed(client, prefix=new_id) == ids[1:]


# --- Order ------------------------------------------------------------------------------------------------------------


def test_the_newest_activity_comes_first_and_ties_are_broken_by_id(client: httpx.Client, new_id: str) -> None:
    ids = fill(client, new_id, 7)
    expected = [ids[n] for n in (6, 5, 4, 3, 2, 1, 0)]
    assert listed(client, prefix=new_id) == listed(client, prefix=new_id, order="activity") == expected
    client.put(f"{SESSIONS}/{ids[1]}", json={"last_activity": at(30)})
    assert listed(client, prefix=new_id) == [ids[n] for n in (1, 6, 5, 4, 3, 2, 0)]


def test_ids_are_in_the_order_of_their_bytes(client: httpx.Client, new_id: str) -> None:
    ends = ["", " ", "!", "-", "A", "B", "Z", "_", "a", "aa", "b", "é", "ÿ", "Ā", "€", "\uffee", "😀"]
    for end in reversed(ends):
        save(client, new_id + end)
    assert listed(client, prefix=new_id, order="id") == [new_id + end for end in ends]


def test_fractions_of_a_second_count(client: httpx.Client, new_id: str) -> None:
    times = ["09.999999Z", "10Z", "10.000001Z", "10.001Z", "10.100Z", "11Z"]
    for number, time in enumerate(times):
        save(client, f"{new_id}{number}", last_activity=f"2025-10-02T10:00:{time}")
    expected = [f"{new_id}{number}" for number in reversed(range(len(times)))]
    assert all_pages(client, prefix=new_id, limit=1) == expected


def test_the_first_and_the_last_moment_of_the_calendar_are_listed(client: httpx.Client, new_id: str) -> None:
    times = ["0001-01-01T00:00:00Z", START, "9999-12-31T23:59:59.999999Z"]
    for number, time in enumerate(times):
        save(client, f"{new_id}{number}", last_activity=time)
    for order in ORDERS:
        expected = [f"{new_id}{number}" for number in range(3)]
        assert all_pages(client, prefix=new_id, limit=1, order=order) == (expected if order == "id" else expected[::-1])


# --- Pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [1, 3, 9, 10, 1000])
def test_pages_have_everything_once(client: httpx.Client, new_id: str, order: str, limit: int) -> None:
    ids = fill(client, new_id, 10)
    found = list(pages(client, SESSIONS, {"prefix": new_id, "order": order, "limit": limit}))
    assert len(found) == max(1, -(-10 // limit))
    assert [len(page.json()["sessions"]) for page in found[:-1]] == [limit] * (len(found) - 1)
    expected = ids if order == "id" else newest_first(ids)
    assert [s["user_session_id"] for page in found for s in page.json()["sessions"]] == expected


@pytest.mark.parametrize("order", ORDERS)
def test_the_next_page_has_the_same_filters(client: httpx.Client, new_id: str, order: str) -> None:
    ids = fill(client, new_id, 12)
    fill(client, f"other-{new_id}", 6)
    filters = {
        "prefix": f"{new_id}-0",
        "order": order,
        "limit": "2",
        "active_after": at(1),
        "active_before": "2025-10-02T12:00:03+02:00",
        "include": "chat_state",
    }
    found = list(pages(client, SESSIONS, filters))
    expected = ids[3:9] if order == "id" else newest_first(ids[3:9])
    assert [s["user_session_id"] for page in found for s in page.json()["sessions"]] == expected
    assert all("chat_state" in session for page in found for session in page.json()["sessions"])
    for page in found[:-1]:
        following = parse_qs(urlsplit(page.links["next"]["url"]).query)
        expected_query = filters | {"cursor": page.json()["next_cursor"]}
        assert following == {name: [value] for name, value in expected_query.items()}


def test_a_hundred_are_on_a_page_and_twenty_with_their_states(client: httpx.Client, new_id: str) -> None:
    ids = fill(client, new_id, 101)
    assert listed(client, prefix=new_id, order="id") == ids[:100]
    assert listed(client, prefix=new_id, order="id", limit=1000) == ids
    assert listed(client, prefix=new_id, order="id", include="chat_state") == ids[:20]
    assert all_pages(client, prefix=new_id, order="id", include="chat_state") == ids


def test_a_cursor_is_opaque_and_fits_into_an_address(client: httpx.Client, new_id: str) -> None:
    for end in ("a&b=c#d?e/f%g+h i", "😀é\u2028"):
        save(client, f"{new_id}-{end}")
    for order in ORDERS:
        cursor = client.get(SESSIONS, params={"prefix": new_id, "limit": 1, "order": order}).json()["next_cursor"]
        assert set(cursor) <= set(string.ascii_letters + string.digits + "-_")
        target = f"{SESSIONS}?prefix={new_id}&limit=1&order={order}&cursor={cursor}"
        assert len(client.get(target).json()["sessions"]) == 1


def test_a_list_by_id_is_complete_whatever_happens_meanwhile(client: httpx.Client, new_id: str) -> None:
    """What is there from the first page to the last is found once, and nothing twice."""
    ids = fill(client, new_id, 12)
    found: list[str] = []
    for number, page in enumerate(pages(client, SESSIONS, {"prefix": new_id, "order": "id", "limit": 3})):
        found += [session["user_session_id"] for session in page.json()["sessions"]]
        if number == 0:
            for gone in (ids[0], ids[2], ids[4]):  # the last of this page, where the next begins, among them
                client.delete(f"{SESSIONS}/{gone}")
            for new in ("-000a", "-005a"):
                save(client, new_id + new)
            for touched in (ids[1], ids[3], ids[11]):
                client.put(f"{SESSIONS}/{touched}", json={"last_activity": at(59)})
    assert found == [*ids[:4], ids[5], f"{new_id}-005a", *ids[6:]]


def test_a_list_by_activity_skips_nothing_that_stays_as_it_is(client: httpx.Client, new_id: str) -> None:
    ids = fill(client, new_id, 12)
    found: list[str] = []
    for number, page in enumerate(pages(client, SESSIONS, {"prefix": new_id, "limit": 4})):
        found += [session["user_session_id"] for session in page.json()["sessions"]]
        if number == 0:
            client.delete(f"{SESSIONS}/{ids[8]}")  # the last of this page
            client.put(f"{SESSIONS}/{ids[7]}", json={"last_activity": at(59)})  # moves to the front
            save(client, f"{new_id}-new", last_activity=at(58))
    assert found == [n for n in newest_first(ids) if n != ids[7]]


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    ["0", "-1", "1001", "", "a", "1.0", "1e2", "+5", "%2B5", "%205", "5%20", "0x5", "%D9%A1", "9" * 30, "5;6", "null"],
)
def test_a_limit_is_a_number_from_1_to_1000(client: httpx.Client, limit: str) -> None:
    assert findings(client.get(f"{SESSIONS}?limit={limit}")) == ["limit"]


@pytest.mark.parametrize("limit", ["1", "1000", "0001"])
def test_these_limits_are_accepted(client: httpx.Client, limit: str) -> None:
    assert client.get(f"{SESSIONS}?limit={limit}").status_code == 200


def test_with_their_states_fewer_are_on_a_page(client: httpx.Client) -> None:
    for limit, status in ((20, 200), (21, 400), (1000, 400)):
        answer = client.get(SESSIONS, params={"include": "chat_state", "limit": limit})
        assert answer.status_code == status
        assert status == 200 or findings(answer) == ["limit"]


# --- Parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "members"),
    [
        ("a=1", ["a"]),
        ("Limit=1", ["Limit"]),
        ("limit=1&offset=5&page=2", ["offset", "page"]),
        ("limit=1&limit=1", ["limit"]),
        ("order=id&order=activity&prefix=&prefix=", ["order", "prefix"]),
        ("a&a", ["a", "a"]),
        ("limit[]=1", ["limit[]"]),
        ("=1", [""]),
        ("%6Cimit=x", ["limit"]),
        ("prefix=%FF", ["query"]),
        ("%ED%A0%80=1", ["query"]),
        ("order=", ["order"]),
        ("order=ID", ["order"]),
        ("order=created", ["order"]),
        ("include=", ["include"]),
        ("include=chat_state,version", ["include"]),
        ("include=all", ["include"]),
        ("active_after=", ["active_after"]),
        ("active_before=yesterday", ["active_before"]),
        ("active_after=2025-10-02", ["active_after"]),
        ("active_after=2025-02-30T00:00:00Z&active_before=2025-10-02T10:00:00", ["active_after", "active_before"]),
        ("active_after=9999-12-31T23:59:59-01:00", ["active_after"]),
        ("active_before=1759399200", ["active_before"]),
        ("limit=0&order=x&include=x&cursor=x&prefix=%00", ["include", "limit", "order", "cursor", "prefix"]),
    ],
)
def test_what_cannot_be_meant_is_refused(client: httpx.Client, query: str, members: list[str]) -> None:
    """A filter that is misspelt and ignored would list everything."""
    assert findings(client.get(f"{SESSIONS}?{query}")) == members


def test_an_empty_query_is_no_parameter(server: Server) -> None:
    for query in ("?", "?&", "?&&limit=1&"):
        assert server.send("GET", f"{SESSIONS}{query}").status == 200


def test_thousands_of_parameters_are_refused_like_one(server: Server, client: httpx.Client) -> None:
    """In a moment, and without an answer that is larger than the request."""
    names = ["".join(letters) for letters in itertools.product(string.ascii_letters, repeat=3)]
    for query in ("&".join(names)[:60_000], "&".join(["a"] * 30_000)):
        answer = server.send("GET", f"{SESSIONS}?{query}")
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
        assert 1 <= len(answer.json()["errors"]) <= 20


# --- Cursors ----------------------------------------------------------------------------------------------------------


def cursor_of(text: str | bytes) -> str:
    """A cursor of this text, whatever it is."""
    return urlsafe_b64encode(text.encode() if isinstance(text, str) else text).decode().rstrip("=")


REFUSED = ["cursor"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "1",
        "{}",
        "[]",
        '["ORDER"]',
        f'["ORDER","{START}"]',
        f'["ORDER","{START}","a","b"]',
        f'["ORDER","{START}",1]',
        f'["ORDER","{START}",null]',
        '["ORDER",0,"a"]',
        f'[null,"{START}","a"]',
        f'["","{START}","a"]',
        f'["activity_","{START}","a"]',
        '["ORDER","soon","a"]',
        '["ORDER","","a"]',
        '["ORDER","2025-02-30T00:00:00Z","a"]',
        '["ORDER","0000-01-01T00:00:00Z","a"]',
        '["ORDER","0001-01-01T00:00:00+00:01","a"]',
        '["ORDER","9999-12-31T23:59:59-00:01","a"]',
        '["ORDER","9999-12-31T23:59:60Z","a"]',
        '["ORDER","10000-01-01T00:00:00Z","a"]',
        '["ORDER","infinity","a"]',
        f'["ORDER","{START}",""]',
        f'["ORDER","{START}","."]',
        rf'["ORDER","{START}","a\u0000"]',
        rf'["ORDER","{START}","\ud800"]',
        rf'["ORDER","{START}","\u0080"]',
        f'["ORDER","{START}","{"a" * 256}"]',
        f'["ORDER","{START}","a"] x',
        f'["ORDER","{START}","a",',
        "[" * 40_000,
        b'["ORDER","\xff","a"]',
        b"\x00\x01\x02",
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_cursor_that_no_list_has_given_is_refused(client: httpx.Client, order: str, content: str | bytes) -> None:
    given = content.encode() if isinstance(content, str) else content
    cursor = cursor_of(given.replace(b"ORDER", order.encode()))
    assert findings(client.get(SESSIONS, params={"cursor": cursor, "order": order})) == REFUSED


@pytest.mark.parametrize("cursor", ["", "x", "!", "%00", "%C3%A9", "====", "a" * 50_000, "😀", ".", "bnVsbA==="])
def test_what_is_no_cursor_at_all_is_refused(client: httpx.Client, cursor: str) -> None:
    assert findings(client.get(f"{SESSIONS}?cursor={cursor}")) == REFUSED


@pytest.mark.parametrize("order", ORDERS)
def test_a_cursor_that_was_cut_is_refused(client: httpx.Client, new_id: str, order: str) -> None:
    fill(client, new_id, 2)
    parameters: dict[str, Any] = {"prefix": new_id, "limit": 1, "order": order}
    cursor = client.get(SESSIONS, params=parameters).json()["next_cursor"]
    for length in range(len(cursor)):
        assert findings(client.get(SESSIONS, params={**parameters, "cursor": cursor[:length]})) == REFUSED


def test_a_cursor_of_another_list_is_refused(client: httpx.Client, new_id: str) -> None:
    fill(client, new_id, 2)
    for order, other in (ORDERS, ORDERS[::-1]):
        cursor = client.get(SESSIONS, params={"prefix": new_id, "limit": 1, "order": order}).json()["next_cursor"]
        assert findings(client.get(SESSIONS, params={"order": other, "cursor": cursor})) == REFUSED
        assert findings(client.get(f"{SESSIONS}/{new_id}-000/versions", params={"cursor": cursor})) == REFUSED
    assert findings(client.get(SESSIONS, params={"cursor": write_cursor(3)})) == REFUSED


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_a_cursor_at_the_end_of_the_calendar_is_none_of_these(client: httpx.Client, time: str) -> None:
    for order in ORDERS:
        for user_session_id in ("\U0010ffff" * 255, "!", "\ud7ff\ue000"):
            cursor = write_cursor((order, time, user_session_id))
            assert client.get(SESSIONS, params={"order": order, "cursor": cursor}).status_code == 200


# --- Filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_a_prefix_is_literal(client: httpx.Client, new_id: str, order: str) -> None:
    ends = ["a", "a%", "a%b", "a_", "aXb", "A%", "a\\", "a*", "a'", "é", "e\u0301", "éa", "😀", "😀😀"]
    ends += ["\U0010ffffz", "\ud7ff", "\ue000"]
    for end in ends:
        save(client, new_id + end)
    for prefix in ("", "a", "a%", "a_", "a\\", "a\\%", "A", "a*", "a'", "é", "e", "😀", "\U0010ffff", "\ud7ff", "b"):
        found = all_pages(client, prefix=new_id + prefix, order=order, limit=4)
        assert sorted(found) == sorted(new_id + end for end in ends if end.startswith(prefix)), prefix


def test_an_empty_prefix_is_none(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, last_activity="9999-01-01T00:00:00Z")
    assert new_id in listed(client, prefix="", limit=1000)


@pytest.mark.parametrize("prefix", ["%00", "a%0A", "%7F", "%C2%80", "a" * 256, "é" * 256])
def test_a_prefix_that_no_id_has_is_refused(client: httpx.Client, prefix: str) -> None:
    assert findings(client.get(f"{SESSIONS}?prefix={prefix}")) == ["prefix"]


@pytest.mark.parametrize("prefix", [".", "..", "é" * 255, "%2F", "%25", "a+b"])
def test_a_prefix_may_be(client: httpx.Client, prefix: str) -> None:
    assert client.get(f"{SESSIONS}?prefix={prefix}").status_code == 200


@pytest.mark.parametrize("order", ORDERS)
def test_bounds_of_the_activity(client: httpx.Client, new_id: str, order: str) -> None:
    """From `active_after` on, it included, to `active_before`, it excluded."""
    ids = fill(client, new_id, 9)
    for first, end in itertools.product((None, 0, 1, 2, 3), repeat=2):
        bounds = {} if first is None else {"active_after": at(first)}
        bounds |= {} if end is None else {"active_before": at(end)}
        found = listed(client, prefix=new_id, order=order, **bounds)
        assert sorted(found) == ids[3 * (first or 0) : 3 * (3 if end is None else end)]


@pytest.mark.parametrize(
    "time",
    ["2025-10-02T10:00:01Z", "2025-10-02T12:00:01%2B02:00", "2025-10-02T09:30:01-00:30", "2025-10-02t10:00:01.000z"],
)
def test_bounds_may_have_offsets(client: httpx.Client, new_id: str, time: str) -> None:
    ids = fill(client, new_id, 6)
    answer = client.get(f"{SESSIONS}?order=id&prefix={new_id}&active_after={time}")
    assert [session["user_session_id"] for session in answer.json()["sessions"]] == ids[3:]


def test_a_plus_that_is_not_encoded_is_refused(client: httpx.Client) -> None:
    """In a query it stands for a blank; guessed at, it might be the time of another zone."""
    for name in ("active_after", "active_before"):
        assert findings(client.get(f"{SESSIONS}?{name}=2025-10-02T12:00:00+02:00")) == [name]


# --- Mounted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/bot", "/a/b", "/caf\u00e9", "/with blank"])
def test_links_lead_to_where_the_application_is_mounted(serve: Serve, tmp_path: Path, prefix: str) -> None:
    chatstate = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"), history=3)
    app = Starlette(routes=[Mount(prefix, chatstate)], lifespan=chatstate.lifespan)
    with serve(app) as server, server.client() as client:
        mounted = quote(prefix)
        for number in range(3):
            body = {"user_session_id": f"a/{number}", "chat_state": "state"}
            assert client.post(f"{mounted}{SESSIONS}", json=body).status_code == 201
            client.put(f"{mounted}{SESSIONS}/a%2F0", json={})
        found = list(pages(client, f"{mounted}{SESSIONS}", {"limit": 1, "order": "id"}))
        assert [page.json()["sessions"][0]["user_session_id"] for page in found] == ["a/0", "a/1", "a/2"]
        assert found[0].links["next"]["url"].startswith(f"{mounted}{SESSIONS}?")
        versions = list(pages(client, f"{mounted}{SESSIONS}/a%2F0/versions", {"limit": 1}))
        assert [page.json()["versions"][0]["version"] for page in versions] == [4, 3, 2]


def test_links_behind_a_proxy_that_takes_its_prefix_off(serve: Serve, tmp_path: Path) -> None:
    chatstate = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"))

    async def told_of_the_prefix(scope: Any, receive: Any, send: Any) -> None:  # as servers do with --root-path
        await chatstate({**scope, "root_path": "/api"} if scope["type"] == "http" else scope, receive, send)

    with serve(told_of_the_prefix) as server:
        for number in range(2):
            body = json.dumps({"user_session_id": str(number), "chat_state": "state"}).encode()
            assert server.send("POST", SESSIONS, body).status == 201
        for target in (SESSIONS, f"/api{SESSIONS}"):
            link = server.send("GET", f"{target}?limit=1").headers["link"]
            assert link.startswith(f"</api{SESSIONS}?limit=1&cursor=")
