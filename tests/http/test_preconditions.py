"""ETag, If-Match and If-None-Match (RFC 9110, sections 8.8.3 and 13): no writer overwrites what it has not seen.

States here are JSON texts, so that every method that writes can write them.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpx
import pytest

from tests.http.conftest import Server, Start
from tests.http.test_endpoints import RECORD

SESSIONS = "/chat-state-sessions"
STATE, CHANGED = '"state"', '"changed"'
_T = TypeVar("_T")

Headers = dict[str, str] | list[tuple[str, str]]


def save(
    client: httpx.Client, user_session_id: str, state: str = STATE, headers: Headers | None = None
) -> httpx.Response:
    body = {"user_session_id": user_session_id, "chat_state": state}
    return client.post(SESSIONS, json=body, headers=headers)


def write(
    client: httpx.Client, method: str, user_session_id: str, headers: Headers | None, state: str = CHANGED
) -> httpx.Response:
    """A write in each of the ways to write. `restore` brings back the current version."""
    if method == "POST":
        return save(client, user_session_id, state, headers)
    target = f"{SESSIONS}/{user_session_id}"
    if method == "restore":
        number = load(client, user_session_id).headers.get("etag", '-1"').rpartition("-")[2].strip('"')
        return client.post(f"{target}/restore", json={"version": int(number)}, headers=headers)
    if method == "PATCH":
        fields = list(headers.items() if isinstance(headers, dict) else headers or [])
        fields.append(("Content-Type", "application/merge-patch+json"))
        return client.patch(target, content=state.encode(), headers=fields)
    return client.request(method, target, json={"chat_state": state} if method == "PUT" else None, headers=headers)


def load(client: httpx.Client, user_session_id: str, headers: Headers | None = None) -> httpx.Response:
    return client.get(f"{SESSIONS}/{user_session_id}", headers=headers)


def assert_failed(answer: httpx.Response, current: str | None) -> None:
    """412, with the tag that the session has now, or none when there is no session."""
    assert answer.status_code == 412
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "precondition_failed"
    assert answer.headers.get("etag") == current


def assert_malformed(answer: httpx.Response, header: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_precondition")
    assert [error["member"] for error in answer.json()["errors"]] == [header]


WRITES = ["POST", "PUT", "PATCH", "restore", "DELETE"]
writes = pytest.mark.parametrize("method", WRITES)
saves = pytest.mark.parametrize("method", ["POST", "PUT"])

# --- The tag ----------------------------------------------------------------------------------------------------------


def test_the_tag_is_strong_and_names_the_version(client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id)
    assert created.headers["etag"] == f'"{created.json()["session_id"]}-1"'


def test_every_answer_about_a_version_carries_the_same_tag(client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id)
    assert load(client, new_id).headers["etag"] == created.headers["etag"]
    assert client.head(f"{SESSIONS}/{new_id}").headers["etag"] == created.headers["etag"]
    changed = client.put(f"{SESSIONS}/{new_id}", json={"chat_state": "b"})
    assert load(client, new_id).headers["etag"] == changed.headers["etag"]
    replaced = save(client, new_id)
    assert load(client, new_id).headers["etag"] == replaced.headers["etag"]
    assert len({answer.headers["etag"] for answer in (created, changed, replaced)}) == 3


def test_a_write_that_changes_nothing_makes_a_new_version_too(client: httpx.Client, new_id: str) -> None:
    first = save(client, new_id, "same").headers["etag"]
    assert save(client, new_id, "same").headers["etag"] != first


# --- If-Match ---------------------------------------------------------------------------------------------------------


@writes
def test_the_current_tag_matches(client: httpx.Client, new_id: str, method: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert write(client, method, new_id, {"If-Match": tag}).status_code == 200


@writes
def test_an_old_tag_fails_and_the_answer_carries_the_current_one(
    client: httpx.Client, new_id: str, method: str
) -> None:
    old = save(client, new_id).headers["etag"]
    current = save(client, new_id, "by somebody else").headers["etag"]
    assert_failed(write(client, method, new_id, {"If-Match": old}), current)
    assert load(client, new_id).json()["chat_state"] == "by somebody else"
    assert load(client, new_id).headers["etag"] == current


@writes
@pytest.mark.parametrize("form", ['"x", {}', '{}, "x"', '"x",{},"y"', '{} \t,  "x"', ',{},,"x",', 'W/"x", {}'])
def test_a_list_matches_when_one_of_its_tags_does(client: httpx.Client, new_id: str, method: str, form: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert write(client, method, new_id, {"If-Match": form.format(tag)}).status_code == 200


@writes
def test_several_header_lines_are_one_list(client: httpx.Client, new_id: str, method: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert_failed(write(client, method, new_id, [("If-Match", '"x"'), ("If-Match", '"y"')]), tag)
    assert write(client, method, new_id, [("If-Match", '"x"'), ("If-Match", tag)]).status_code == 200


@writes
def test_the_star_matches_every_session_that_exists(client: httpx.Client, new_id: str, method: str) -> None:
    save(client, new_id)
    assert write(client, method, new_id, {"If-Match": "*"}).status_code == 200


@writes
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tag: f"W/{tag}", id="weak"),
        pytest.param(lambda tag: tag.replace("-1", "-01"), id="a zero in front"),
        pytest.param(lambda tag: tag.replace("-1", "-%31"), id="percent-encoded"),
        pytest.param(lambda tag: f'"%{ord(tag[1]):02X}{tag[2:]}', id="a letter percent-encoded"),
        pytest.param(str.upper, id="capital letters"),
        pytest.param(lambda tag: tag.replace("-1", ""), id="without version"),
        pytest.param(lambda tag: tag.replace("-1", "-2"), id="the next version"),
        pytest.param(lambda tag: tag.replace("-1", "-1" + "0" * 30), id="a version beyond all"),
        pytest.param(lambda tag: tag.replace("-1", "--1"), id="a negative version"),
        pytest.param(lambda _: f'"{uuid.uuid4()}-1"', id="of another session"),
        pytest.param(lambda _: '""', id="empty"),
        pytest.param(lambda _: '"*"', id="a star in quotes"),
        pytest.param(lambda _: '"é"', id="not ASCII"),
    ],
)
def test_a_tag_that_is_not_the_very_same_never_matches(
    client: httpx.Client, new_id: str, method: str, change: Callable[[str], str]
) -> None:
    tag = save(client, new_id).headers["etag"]
    assert change(tag).lower() != tag or change is str.upper
    header = change(tag).encode("latin-1").decode("latin-1")
    answer = write(client, method, new_id, [("If-Match", header.encode("latin-1"))])  # type: ignore[list-item]
    assert_failed(answer, tag)


@writes
@pytest.mark.parametrize("header", ["*", '"x"', '"00000000-0000-4000-8000-000000000000-1"'])
def test_no_tag_matches_a_missing_session(client: httpx.Client, new_id: str, method: str, header: str) -> None:
    """412 and not 404: the client said that it has a session in mind, and it must not be created behind its back."""
    assert_failed(write(client, method, new_id, {"If-Match": header}), None)
    assert load(client, new_id).status_code == 404


@writes
def test_a_tag_from_before_a_deletion_never_matches_again(client: httpx.Client, new_id: str, method: str) -> None:
    old = save(client, new_id).headers["etag"]
    client.delete(f"{SESSIONS}/{new_id}")
    current = save(client, new_id, "anew").headers["etag"]
    assert current.endswith('-1"')
    assert old.endswith('-1"')
    assert_failed(write(client, method, new_id, {"If-Match": old}), current)


# --- If-None-Match on writes ------------------------------------------------------------------------------------------


def test_if_none_match_star_creates_only(client: httpx.Client, new_id: str) -> None:
    created = save(client, new_id, "first", {"If-None-Match": "*"})
    assert created.status_code == 201
    assert_failed(save(client, new_id, "second", {"If-None-Match": "*"}), created.headers["etag"])
    assert load(client, new_id).json()["chat_state"] == "first"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "restore", "DELETE"])
def test_if_none_match_star_never_changes_what_exists(client: httpx.Client, new_id: str, method: str) -> None:
    assert write(client, method, new_id, {"If-None-Match": "*"}).status_code == 404
    tag = save(client, new_id).headers["etag"]
    assert_failed(write(client, method, new_id, {"If-None-Match": "*"}), tag)
    assert load(client, new_id).json()["chat_state"] == STATE


@writes
@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', '"x",W/{}'])
def test_if_none_match_refuses_the_versions_that_it_lists(
    client: httpx.Client, new_id: str, method: str, form: str
) -> None:
    """It compares weakly (RFC 9110, section 13.1.2)."""
    tag = save(client, new_id).headers["etag"]
    assert_failed(write(client, method, new_id, {"If-None-Match": form.format(tag)}), tag)
    assert write(client, method, new_id, {"If-None-Match": '"x", "y"'}).status_code == 200


def test_if_none_match_with_a_list_may_create(client: httpx.Client, new_id: str) -> None:
    assert save(client, new_id, headers={"If-None-Match": '"x"'}).status_code == 201


# --- Both headers -----------------------------------------------------------------------------------------------------


@writes
def test_both_headers_have_to_hold(client: httpx.Client, new_id: str, method: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert_failed(write(client, method, new_id, {"If-Match": tag, "If-None-Match": tag}), tag)
    assert_failed(write(client, method, new_id, {"If-Match": '"x"', "If-None-Match": '"x"'}), tag)
    assert_failed(write(client, method, new_id, {"If-Match": "*", "If-None-Match": "*"}), tag)
    assert write(client, method, new_id, {"If-Match": tag, "If-None-Match": '"x"'}).status_code == 200


@writes
def test_nothing_satisfies_both_stars(client: httpx.Client, new_id: str, method: str) -> None:
    assert_failed(write(client, method, new_id, {"If-Match": "*", "If-None-Match": "*"}), None)


# --- What comes first -------------------------------------------------------------------------------------------------

MALFORMED = [
    "x",
    '"x',
    'x"',
    '"a" "b"',
    '*, "a"',
    '"a", *',
    "**",
    "w/x",
    'w/"x"',
    "'x'",
    '"a b"',
    '"a";"b"',
    ",",
    "",
]


@pytest.mark.parametrize("method", ["GET", *WRITES])
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_header_is_refused(client: httpx.Client, new_id: str, method: str, header: str, value: str) -> None:
    """It must not be taken for no header: the client asked for protection."""
    tag = save(client, new_id).headers["etag"]
    assert_malformed(write(client, method, new_id, {header: value}), header)
    assert load(client, new_id).headers["etag"] == tag


@saves
@pytest.mark.parametrize("headers", [{"If-Match": '"x"'}, {"If-Match": "malformed"}, {"If-None-Match": "*"}])
def test_a_body_is_checked_before_preconditions(
    client: httpx.Client, new_id: str, method: str, headers: dict[str, str]
) -> None:
    save(client, new_id)
    assert write(client, method, new_id, headers, state="[object Object]").json()["code"] == "invalid_request"


def test_a_write_without_preconditions_always_wins(client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    assert save(client, new_id, "last").json()["version"] == 2
    assert load(client, new_id).json()["chat_state"] == "last"


# --- GET --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', "*"])
def test_get_answers_304_when_the_client_has_the_version(client: httpx.Client, new_id: str, form: str) -> None:
    tag = save(client, new_id).headers["etag"]
    answer = load(client, new_id, {"If-None-Match": form.format(tag)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == tag
    assert answer.headers["cache-control"] == "no-store"
    assert "content-type" not in answer.headers


def test_head_answers_304_too(client: httpx.Client, new_id: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert client.head(f"{SESSIONS}/{new_id}", headers={"If-None-Match": tag}).status_code == 304


def test_get_answers_in_full_when_the_version_is_another(client: httpx.Client, new_id: str) -> None:
    old = save(client, new_id).headers["etag"]
    save(client, new_id, "newer")
    answer = load(client, new_id, {"If-None-Match": old})
    assert (answer.status_code, answer.json()["chat_state"]) == (200, "newer")


@pytest.mark.parametrize("headers", [{"If-None-Match": "*"}, {"If-None-Match": '"x"'}, {"If-Match": "*"}])
def test_get_of_a_missing_session_is_not_found(client: httpx.Client, new_id: str, headers: dict[str, str]) -> None:
    assert load(client, new_id, headers).status_code == 404


def test_get_with_if_match(client: httpx.Client, new_id: str) -> None:
    tag = save(client, new_id).headers["etag"]
    assert load(client, new_id, {"If-Match": tag}).status_code == 200
    assert_failed(load(client, new_id, {"If-Match": '"x"'}), tag)
    assert_failed(load(client, new_id, {"If-Match": f"W/{tag}"}), tag)


def test_get_looks_at_if_match_first(client: httpx.Client, new_id: str) -> None:
    """RFC 9110, section 13.2.2."""
    tag = save(client, new_id).headers["etag"]
    assert load(client, new_id, {"If-Match": tag, "If-None-Match": tag}).status_code == 304
    assert_failed(load(client, new_id, {"If-Match": '"x"', "If-None-Match": tag}), tag)


# --- What the answer to a failure shows -------------------------------------------------------------------------------

PREFERRED = {"Prefer": "return=representation"}


@writes
@pytest.mark.parametrize(
    "condition", [{"If-Match": '"x-1"'}, {"If-None-Match": "*"}], ids=["If-Match", "If-None-Match"]
)
def test_a_failure_shows_the_session_if_the_client_prefers_so(
    client: httpx.Client, new_id: str, method: str, condition: dict[str, str]
) -> None:
    """Who has lost merges, and tries again with the tag of what it has merged; it need not load."""
    current = client.post(
        SESSIONS, json={"user_session_id": new_id, "chat_state": "Grüße 😀", "expires_in_seconds": 600}
    )
    answer = write(client, method, new_id, condition | PREFERRED)
    assert_failed(answer, current.headers["etag"])
    assert answer.json()["current"] == current.json()
    assert answer.json()["current"].keys() == RECORD.keys() | {"expires_at"}
    assert answer.headers["preference-applied"] == "return=representation"
    assert write(client, "PUT", new_id, {"If-Match": answer.headers["etag"]}).status_code == 200


@writes
@pytest.mark.parametrize("headers", [{}, {"Prefer": "return=minimal"}, {"Prefer": "wait=1"}])
def test_a_failure_shows_no_session_otherwise(
    client: httpx.Client, new_id: str, method: str, headers: dict[str, str]
) -> None:
    tag = save(client, new_id).headers["etag"]
    answer = write(client, method, new_id, {"If-Match": '"x-1"', **headers})
    assert_failed(answer, tag)
    assert "current" not in answer.json()
    assert "preference-applied" not in answer.headers


@writes
def test_a_failure_shows_no_session_that_is_absent(client: httpx.Client, new_id: str, method: str) -> None:
    for _ in ("never there", "deleted"):
        answer = write(client, method, new_id, {"If-Match": "*", **PREFERRED})
        assert_failed(answer, None)
        assert "current" not in answer.json()
        assert "preference-applied" not in answer.headers
        save(client, new_id)
        client.delete(f"{SESSIONS}/{new_id}")


def test_a_failed_get_shows_no_session(client: httpx.Client, new_id: str) -> None:
    """Its answer would be the session."""
    tag = save(client, new_id).headers["etag"]
    answer = load(client, new_id, {"If-Match": '"x-1"', **PREFERRED})
    assert_failed(answer, tag)
    assert "current" not in answer.json()


@writes
def test_other_failures_show_no_session(client: httpx.Client, new_id: str, method: str) -> None:
    save(client, new_id)
    answer = write(client, method, new_id, {"If-Match": "malformed", **PREFERRED})
    assert_malformed(answer, "If-Match")
    assert "current" not in answer.json()


# --- Servers that require preconditions -------------------------------------------------------------------------------


def test_a_write_without_a_precondition_may_be_refused(start: Start, own_url: str) -> None:
    """The setting CHATSTATE_REQUIRE_PRECONDITIONS; reads need none."""
    with start(own_url, require_preconditions=True) as server, server.client() as client:
        for method in WRITES:
            assert_required(write(client, method, "one", None))
        tag = save(client, "one", headers={"If-None-Match": "*"}).headers["etag"]
        for method in WRITES:
            for headers in ({}, {"Idempotency-Key": "key"}, PREFERRED, {"If-Modified-Since": "0"}):
                assert_required(write(client, method, "one", headers))
            assert_malformed(write(client, method, "one", {"If-Match": ""}), "If-Match")
        for path in ("", "/one", "/one/versions", "/one/versions/1"):
            assert client.get(f"{SESSIONS}{path}").status_code == 200
        assert load(client, "one").headers["etag"] == tag
        for method in WRITES[:-1]:
            tag = write(client, method, "one", {"If-Match": tag}).headers["etag"]
        assert write(client, "PUT", "one", {"If-None-Match": '"x"'}).status_code == 200
        assert write(client, "DELETE", "one", {"If-Match": "*"}).status_code == 200


def assert_required(answer: httpx.Response) -> None:
    assert answer.status_code == 428
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "precondition_required"
    assert "If-Match" in answer.json()["detail"]
    assert "etag" not in answer.headers


def test_a_body_is_checked_before_a_precondition_is_required(start: Start, own_url: str) -> None:
    with start(own_url, require_preconditions=True) as server:
        for method, target in (("POST", SESSIONS), ("PUT", f"{SESSIONS}/one"), ("POST", f"{SESSIONS}/one/restore")):
            assert server.send(method, target, b"[]").json()["code"] == "invalid_request"
            assert server.send(method, target, b"{").json()["code"] == "invalid_json"
            assert server.send(method, target, b"{}", {"Content-Type": "text/plain"}).status == 415
        patch = {"Content-Type": "application/json-patch+json"}
        assert server.send("PATCH", f"{SESSIONS}/one", b"{}", patch).json()["code"] == "invalid_patch"


# --- Races ------------------------------------------------------------------------------------------------------------


def at_once(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """The results of calls that are made at the same moment, each in a thread."""
    barrier = threading.Barrier(len(calls))

    def call(function: Callable[[], _T]) -> _T:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(calls)) as executor:
        return list(executor.map(call, calls))


def test_of_fifty_that_create_at_once_one_does(server: Server, client: httpx.Client, new_id: str) -> None:
    def creation(number: int) -> Callable[[], tuple[int, str]]:
        body = json.dumps({"user_session_id": new_id, "chat_state": str(number)}).encode()

        def create() -> tuple[int, str]:
            answer = server.send("POST", SESSIONS, body, {"If-None-Match": "*"})
            return answer.status, answer.headers["etag"]

        return create

    answers = at_once([creation(number) for number in range(50)])
    statuses = [status for status, _ in answers]
    assert Counter(statuses) == {201: 1, 412: 49}
    assert {tag for _, tag in answers} == {load(client, new_id).headers["etag"]}
    assert load(client, new_id).json()["chat_state"] == str(statuses.index(201))


def test_of_fifty_that_delete_at_once_one_does(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    statuses = at_once([lambda: server.send("DELETE", f"{SESSIONS}/{new_id}").status] * 50)
    assert Counter(statuses) == {200: 1, 404: 49}


def test_no_acknowledged_append_is_lost(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "[]")

    def append_25(writer: int) -> list[str]:
        with server.client() as own:
            return [entry for number in range(25) if append(own, new_id, entry := f"{writer}-{number}")]

    acknowledged = at_once([lambda writer=writer: append_25(writer) for writer in range(8)])  # type: ignore[misc]
    kept = json.loads(load(client, new_id).json()["chat_state"])
    assert sorted(kept) == sorted(entry for entries in acknowledged for entry in entries)
    for entries in acknowledged:
        assert [entry for entry in kept if entry in set(entries)] == entries, "each writer's are in its order"
    assert len(kept) >= 25, "somebody wins every round"
    assert load(client, new_id).headers["etag"].endswith(f'-{len(kept) + 1}"')


def append(client: httpx.Client, user_session_id: str, entry: str) -> bool:
    """Read, append, write; whether the write was acknowledged."""
    loaded = load(client, user_session_id)
    state = json.dumps([*json.loads(loaded.json()["chat_state"]), entry])
    written = write(client, "PUT", user_session_id, {"If-Match": loaded.headers["etag"]}, state)
    assert written.status_code in (200, 412)
    return written.status_code == 200


@pytest.mark.parametrize("opaque", ["a%00-1", "%0A{tag}", "{tag}%0A", "x%0A{tag}", "%ED%A0%80-1", "{tag}\u00e9"])
def test_a_tag_with_characters_that_no_id_has_matches_nothing(client: httpx.Client, new_id: str, opaque: str) -> None:
    """The same on every store, whatever its database makes of such characters."""
    tag = save(client, new_id).headers["etag"]
    value = f'"{opaque}"'.format(tag=tag.strip('"')).encode("latin-1")
    answer = client.put(f"{SESSIONS}/{new_id}", json={"chat_state": "x"}, headers=[(b"If-Match", value)])
    assert_failed(answer, tag)
