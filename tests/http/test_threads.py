"""What users of other systems ran into, tried here; docs/explanation/threads.md names these tests and the others."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import apsw
import asyncpg
import httpx
import pytest

from chatstate.encryption import SEALED
from chatstate.model import Retention
from chatstate.stores import create_store
from chatstate.sweeper import Sweeper
from tests.http.conftest import Server, SettableClock, Start
from tests.http.test_endpoints import SESSIONS, assert_problem, load, put, save
from tests.http.test_preconditions import at_once
from tests.servers.valkey_contents import contents_of

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


def patch(server: Server, user_session_id: str, kind: str, body: Any, **headers: str) -> tuple[int, str]:
    """The status, and the tag of the session as it is then."""
    fields = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = server.send("PATCH", f"{SESSIONS}/{user_session_id}", json.dumps(body).encode(), fields)
    return answer.status, answer.headers.get("etag", "")


def state_of(client: httpx.Client, user_session_id: str) -> Any:
    return json.loads(load(client, user_session_id)["chat_state"])


# --- Lost updates -----------------------------------------------------------------------------------------------------


def test_requests_that_change_different_members_do_not_undo_each_other(
    server: Server, client: httpx.Client, new_id: str
) -> None:
    """Parallel requests of one page, each with its own idea of the session: only what each changes is written."""
    save(client, new_id, '{"a": 0, "b": {"c": 0}, "d": 0}')
    patches = [{"a": 1}, {"b": {"e": 2}}, {"d": None}, {"b": {"c": 3}}]
    answers = at_once([partial(patch, server, new_id, MERGE_PATCH, body) for body in patches])
    assert [status for status, _ in answers] == [200] * 4
    assert len({tag for _, tag in answers}) == 4
    assert state_of(client, new_id) == {"a": 1, "b": {"c": 3, "e": 2}}


def test_writes_of_the_same_moment_have_different_versions(server: Server, client: httpx.Client, new_id: str) -> None:
    """The clock stands still, and so do the times of the record; a stale tag is stale all the same."""
    first = save(client, new_id, "one")
    second = put(client, new_id, chat_state="two")
    assert first.json()["updated_at"] == second.json()["updated_at"]
    stale = server.send("PUT", f"{SESSIONS}/{new_id}", b'{"chat_state": "x"}', {"If-Match": first.headers["etag"]})
    assert (stale.status, stale.headers["etag"]) == (412, second.headers["etag"])
    current = server.send("PUT", f"{SESSIONS}/{new_id}", b'{"chat_state": "x"}', {"If-Match": second.headers["etag"]})
    assert current.status == 200


def test_first_saves_that_meet_are_all_accepted(server: Server, client: httpx.Client, new_id: str) -> None:
    """One creates, the others replace; none is dropped, and none fails because another was first."""
    body = json.dumps({"user_session_id": new_id, "chat_state": "{}"}).encode()
    answers = at_once([lambda: server.send("POST", SESSIONS, body)] * 20)
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 21))
    assert len({answer.json()["session_id"] for answer in answers}) == 1
    assert client.get(f"{SESSIONS}/{new_id}").headers["etag"].endswith('-20"')


def test_an_item_that_two_want_is_given_to_one(server: Server, client: httpx.Client, new_id: str) -> None:
    """A queue in a state: who takes its first item tests that it is still there."""
    save(client, new_id, '{"queue": ["first", "second"]}')
    take = [{"op": "test", "path": "/queue/0", "value": "first"}, {"op": "remove", "path": "/queue/0"}]
    statuses = [status for status, _ in at_once([lambda: patch(server, new_id, JSON_PATCH, take)] * 10)]
    assert sorted(statuses) == [200] + [409] * 9
    assert state_of(client, new_id) == {"queue": ["second"]}


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
def test_a_slow_request_does_not_bring_a_deleted_session_back(
    server: Server, client: httpx.Client, new_id: str, method: str
) -> None:
    """It has loaded the session before another request deleted it, and saves afterwards."""
    seen = save(client, new_id).headers["etag"]
    client.delete(f"{SESSIONS}/{new_id}")
    target = SESSIONS if method == "POST" else f"{SESSIONS}/{new_id}"
    body = json.dumps({"user_session_id": new_id, "chat_state": "old"}).encode()
    kind = MERGE_PATCH if method == "PATCH" else "application/json"
    answer = server.send(method, target, body, {"If-Match": seen, "Content-Type": kind})
    assert (answer.status, answer.json()["code"]) == (412, "precondition_failed")
    assert client.get(f"{SESSIONS}/{new_id}").status_code == 404


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, {"meta": {"lang": "de"}, "n": 1}),
        ({"meta": {}}, {"meta": {"lang": "de"}, "n": 1}),
        ({"meta": None}, {"n": 1}),
        ({"meta": {"lang": None}}, {"meta": {}, "n": 1}),
        ({"meta": {"zone": "CET"}}, {"meta": {"lang": "de", "zone": "CET"}, "n": 1}),
        ({"meta": []}, {"meta": [], "n": 1}),
    ],
    ids=str,
)
def test_absent_and_null_and_empty_are_three_things(
    server: Server, client: httpx.Client, new_id: str, change: Any, left: Any
) -> None:
    save(client, new_id, '{"meta": {"lang": "de"}, "n": 1}')
    assert patch(server, new_id, MERGE_PATCH, change)[0] == 200
    assert state_of(client, new_id) == left


def test_an_absent_state_stays_and_null_is_none(client: httpx.Client, new_id: str) -> None:
    save(client, new_id, '{"meta": {"lang": "de"}}')
    assert put(client, new_id).status_code == 200
    assert_problem(put(client, new_id, chat_state=None), 400, "invalid_request")
    assert state_of(client, new_id) == {"meta": {"lang": "de"}}


# --- Expiry and erasure -----------------------------------------------------------------------------------------------


def test_expiry_aborts_no_write(start: Start, own_url: str) -> None:
    """Sessions expire and are swept while they are written to: every save is accepted, and each is there afterwards."""
    clock = SettableClock()
    ids = [f"session_{number}" for number in range(10)]
    with start(own_url, clock=clock) as server, server.client() as client:

        def save_soon_expired(name: str) -> int:
            body = {"user_session_id": name, "chat_state": "{}", "expires_in_seconds": 1}
            return server.send("POST", SESSIONS, json.dumps(body).encode()).status

        for _ in range(5):
            statuses = at_once(
                [lambda: sweep(own_url, clock), *(lambda name=name: save_soon_expired(name) for name in ids)]
            )
            assert statuses[1:] == [201] * len(ids)
            assert [client.get(f"{SESSIONS}/{name}").status_code for name in ids] == [200] * len(ids)
            clock.advance(seconds=1)
        assert [client.get(f"{SESSIONS}/{name}").status_code for name in ids] == [404] * len(ids)


def sweep(url: str, clock: SettableClock) -> int:
    """As `chatstate sweep` beside the server."""

    async def run() -> int:
        store = create_store(url, owner=False)
        await store.open()
        try:
            return await Sweeper(store, clock, Retention()).sweep()
        finally:
            await store.close()

    return asyncio.run(run())


def test_the_id_of_a_deleted_session_can_be_used_at_once(client: httpx.Client, new_id: str) -> None:
    for life in range(3):
        created = save(client, new_id, f"life {life}")
        assert (created.status_code, created.json()["version"]) == (201, 1)
        assert load(client, new_id)["chat_state"] == f"life {life}"
        assert client.delete(f"{SESSIONS}/{new_id}").status_code == 200


_KEYS = ("digest_keys", "mail_keys", "encryption")


def test_a_deletion_leaves_no_state_anywhere(start: Start, own_url: str) -> None:
    """Not in the history, and not with any idempotency key: no row of any table has it, encrypted or not."""
    secret = "+49 89 1234567"

    def lies_there() -> bool:
        # The server's own keys are sealed as well, and may be made at any time.
        rows = [row for row in everything(own_url).splitlines() if not row.lstrip("('").startswith(_KEYS)]
        return any(secret in row or SEALED in row for row in rows)

    with start(own_url, history=5) as server, server.client() as client:
        keys = iter(f"key {number}" for number in range(10))

        def keyed(method: str, path: str, body: Any, kind: str = "application/json") -> None:
            headers = {"Idempotency-Key": f'"{next(keys)}"', "Content-Type": kind}
            assert server.send(method, f"{SESSIONS}{path}", json.dumps(body).encode(), headers).status in (200, 201)

        keyed("POST", "", {"user_session_id": "one", "chat_state": json.dumps([secret])})
        keyed("PUT", "/one", {"chat_state": json.dumps([secret, 2])})
        keyed("PUT", "/one", {})
        keyed("PATCH", "/one", [{"op": "add", "path": "/-", "value": secret}], JSON_PATCH)
        keyed("POST", "/one/restore", {"version": 1})
        assert lies_there()
        keyed("DELETE", "/one", None)
        assert not lies_there()
        assert "key 0" in everything(own_url), "what is remembered of the writes stays for a day"
        assert client.get(f"{SESSIONS}/one").status_code == 404


def everything(url: str) -> str:
    """All rows of all tables, as text."""
    if url.startswith("valkey"):
        return asyncio.run(_in_valkey(url))
    return _in_sqlite(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else asyncio.run(_in_postgres(url))


async def _in_valkey(url: str) -> str:
    """The names and the values of all keys."""
    return "\n".join(
        f"{key.decode()} {part.decode(errors='replace')}"
        for key, parts in (await contents_of(url)).items()
        for part in parts
    )


def _in_sqlite(path: str) -> str:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return "\n".join(str(row) for table in tables for row in connection.execute(f'SELECT * FROM "{table}"'))
    finally:
        connection.close()


async def _in_postgres(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'chatstate')"
        )
        rows = [row for (table,) in tables for row in await connection.fetch(f"SELECT t::text FROM {table} AS t")]
        return "\n".join(row[0] for row in rows)
    finally:
        await connection.close()


# --- What is in a state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        '{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "true"}}',
        '{"py/object": "subprocess.Popen", "__proto__": {"admin": true}, "$type": "System.Diagnostics.Process"}',
        "gASVIQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu",
        "!!python/object/apply:os.system ['true']",
    ],
    ids=["a constructor", "names of classes", "a pickle", "YAML"],
)
def test_what_a_state_names_is_not_made(server: Server, client: httpx.Client, new_id: str, state: str) -> None:
    """It is text: what comes back is what went in, also where a patch has read it."""
    save(client, new_id, state)
    assert load(client, new_id)["chat_state"] == state
    if state.startswith("{"):
        assert patch(server, new_id, MERGE_PATCH, {"more": 1})[0] == 200
        assert state_of(client, new_id) == {**json.loads(state), "more": 1}


@pytest.mark.parametrize("broken", ["\x00", "\ud800", "\udfff\ud83d"], ids=["U+0000", "surrogate", "two the wrong way"])
def test_broken_text_of_a_model_costs_a_turn_at_most_and_no_session(
    server: Server, client: httpx.Client, new_id: str, broken: str
) -> None:
    """As `JSON.stringify` writes it, it is kept; as such it is refused, and the session is as before."""
    escaped = json.dumps({"messages": [f"a{broken}b"]})
    assert save(client, new_id, escaped).status_code == 201
    assert load(client, new_id)["chat_state"] == escaped
    body = json.dumps({"chat_state": f"a{broken}b"}).encode()
    assert server.send("PUT", f"{SESSIONS}/{new_id}", body).status == 400
    assert load(client, new_id)["chat_state"] == escaped
