"""What is kept about somebody: taken out whole, erased whole, kept only as long as it may be; and on record."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatstate import create_app
from chatstate.bot import Turn
from chatstate.hashes import audit_key, session_hash
from chatstate.http.gate import Rates
from chatstate.http.whatsapp import WEBHOOK
from chatstate.keys import Keys
from chatstate.model import (
    ANYTHING,
    KEEP,
    PRESENT,
    REMEMBERED_FOR,
    Delete,
    IdempotencyKey,
    Retention,
    Save,
    utc_now,
)
from chatstate.stores import create_store
from chatstate.visit import CreateVisit, EraseVisits
from tests.http.conftest import Serve, Server, SettableClock, Start
from tests.http.credentials import ACCOUNT, delivered, echo, signed
from tests.servers.canaries import CANARY
from tests.servers.postgres import PostgresServer, poll_until

SESSIONS = "/chat-state-sessions"
NO_LIMITS = Rates(0, 0, 0, 0)


def save(client: httpx.Client, user_session_id: str, state: str = "{}", **headers: str) -> httpx.Response:
    body = {"user_session_id": user_session_id, "chat_state": state}
    response = client.post(SESSIONS, json=body, headers=headers)
    assert response.status_code in (200, 201), response.text
    return response


def visit(client: httpx.Client, user_session_id: str, **members: Any) -> dict[str, Any]:
    response = client.post("/chat-sessions", json={"user_session_id": user_session_id, **members})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    """A server that keeps a history."""
    with start(store_url, history=20) as running:
        yield running


# --- Export -----------------------------------------------------------------------------------------------------------


def test_an_export_holds_everything_of_every_collection(client: httpx.Client, new_id: str) -> None:
    states = [f'{{"turn": {number}, "text": "Grüße ☃"}}' for number in range(7)]
    for state in states:
        record = save(client, new_id, state).json()
    touched = client.put(f"{SESSIONS}/{new_id}", json={}, headers={"Idempotency-Key": "retry-1"}).json()
    visits = [visit(client, new_id, user_id="ada"), visit(client, new_id, ip_address="203.0.113.7")]
    client.delete(f"{SESSIONS}/{new_id}/tokens")
    response = client.get(f"{SESSIONS}/{new_id}/export")
    export = response.json()
    assert response.headers["content-disposition"] == 'attachment; filename="chatstate-session.json"'
    assert list(export) == [
        *(
            "user_session_id",
            "chat_state_session",
            "remembered_requests",
            "tokens_revoked_at",
            "links",
            "channel_names",
            "waiting_messages",
            "replies",
            "versions",
            "visits",
        )
    ]
    assert export["channel_names"] == export["waiting_messages"] == export["replies"] == []
    assert export["chat_state_session"] == touched
    assert [row["chat_state"] for row in export["versions"]] == [states[-1], *reversed(states)]
    assert [row["version"] for row in export["versions"]] == list(range(8, 0, -1))
    assert {row["session_id"] for row in export["visits"]} == {row["session_id"] for row in visits}
    assert export["remembered_requests"] == [{"key": "retry-1", "at": touched["updated_at"], "chat_state": states[-1]}]
    assert export["tokens_revoked_at"] is not None
    assert record["session_id"] == touched["session_id"]


def test_visits_alone_are_something_to_take_out(client: httpx.Client, new_id: str) -> None:
    visit(client, new_id)
    export = client.get(f"{SESSIONS}/{new_id}/export").json()
    assert export["chat_state_session"] is None
    assert export["versions"] == []
    assert len(export["visits"]) == 1


def test_of_what_is_not_there_nothing_is_taken_out(client: httpx.Client, new_id: str) -> None:
    assert client.get(f"{SESSIONS}/{new_id}/export").json()["code"] == "session_not_found"
    assert client.get(f"/users/{new_id}/export").json()["code"] == "user_not_found"
    assert client.delete(f"/users/{new_id}").json()["code"] == "user_not_found"


def test_many_visits_and_large_versions_are_all_in_it(client: httpx.Client, new_id: str) -> None:
    for number in range(12):
        save(client, new_id, json.dumps({"number": number, "text": "x" * 300_000}))
    for _ in range(230):
        visit(client, new_id)
    export = client.get(f"{SESSIONS}/{new_id}/export").json()
    assert [json.loads(row["chat_state"])["number"] for row in export["versions"]] == list(range(11, -1, -1))
    assert len({row["session_id"] for row in export["visits"]}) == 230


def test_a_head_of_an_export_has_no_body(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    answer = server.send("HEAD", f"{SESSIONS}/{new_id}/export")
    assert (answer.status, answer.body) == (200, b"")
    assert client.get(f"{SESSIONS}/{new_id}/export").status_code == 200


def test_an_export_over_http_1_0_ends_with_the_connection(audited: Audited, new_id: str) -> None:
    save(audited.client, new_id)
    fields = f"Host: localhost\r\nAuthorization: Bearer {audited.key}"
    answer = audited.server.raw(f"GET {SESSIONS}/{new_id}/export HTTP/1.0\r\n{fields}\r\n\r\n".encode())
    assert answer.headers.get("transfer-encoding") is None, "which it does not know"
    assert answer.json()["user_session_id"] == new_id


def test_an_export_of_a_person_holds_all_their_sessions(client: httpx.Client, new_id: str) -> None:
    ids = [f"{new_id}-{number}" for number in range(3)]
    for user_session_id in ids:
        save(client, user_session_id)
        visit(client, user_session_id, user_id=new_id)
    unnamed, somebody_else = visit(client, ids[0]), visit(client, ids[0], user_id="somebody else")
    save(client, f"{new_id}-other")
    export = client.get(f"/users/{new_id}/export").json()
    assert export["user_id"] == new_id
    assert [session["user_session_id"] for session in export["sessions"]] == ids
    shown = {row["session_id"] for row in export["sessions"][0]["visits"]}
    assert unnamed["session_id"] in shown
    assert somebody_else["session_id"] not in shown


@pytest.mark.parametrize("user_id", ["a/b", "ä ☃", "%", "..."])
def test_any_person_can_be_named(client: httpx.Client, new_id: str, user_id: str) -> None:
    name = f"{user_id}{new_id}"
    visit(client, new_id, user_id=name)
    response = client.get(f"/users/{quoted(name)}/export")
    assert response.json()["user_id"] == name


def quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def test_an_export_that_breaks_off_is_no_whole_one(
    serve: Serve, own_postgres: PostgresServer, new_id: str
) -> None:
    url = await own_postgres.create_database()
    with serve(create_app(create_store(url), history=20)) as server:
        state = json.dumps({"text": "x" * 1_000_000})
        with server.client(timeout=20) as client:
            for _ in range(20):
                save(client, new_id, state)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(f"GET {SESSIONS}/{new_id}/export HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = bytearray(connection.recv(1))
            await asyncio.to_thread(own_postgres.stop, "immediate")
            try:
                while piece := connection.recv(1 << 20):
                    received += piece
            except ConnectionResetError:
                pass
            finally:
                await asyncio.to_thread(own_postgres.start)
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert not received.endswith(b"0\r\n\r\n")
        assert len(received) < 20_000_000
    await own_postgres.drop_database(url)


# --- What channels have brought ---------------------------------------------------------------------------------------

NUMBER = "16505551234"


def deliver(client: httpx.Client, *texts: str, number: str = NUMBER) -> None:
    """Somebody with that number writes this on WhatsApp."""
    for text in texts:
        body = delivered(text, number)
        assert client.post(WEBHOOK, content=body, headers=signed(body)).status_code == 200


async def moody(turn: Turn) -> None:
    if turn.message.text == "What only fails":
        raise ValueError(turn.message.text)
    await turn.reply(f"You said: {turn.message.text}")


@pytest.fixture
def linked(start: Start, own_url: str) -> Iterator[httpx.Client]:
    """A client of a server with a session `web`, with which somebody goes on on WhatsApp: one message of theirs is
    answered, and one waits."""
    with (
        start(own_url, bot=moody, whatsapp=ACCOUNT) as server,
        server.client(timeout=20) as client,
    ):
        save(client, "web")
        visit(client, "web", user_id="ada")
        code = client.post(f"{SESSIONS}/web/channels/whatsapp/links").json()["code"]
        deliver(client, code, "Hello", "What only fails")

        def is_answered() -> bool:
            return len(client.get(f"{SESSIONS}/web/export").json()["replies"]) == 2

        assert poll_until(is_answered, 20)
        yield client


def test_an_export_tells_of_who_has_linked_a_session_what_they_were_told_there_and_not_who_they_are(
    linked: httpx.Client,
) -> None:
    answer = linked.get(f"{SESSIONS}/web/export")
    export = answer.json()
    assert NUMBER not in answer.text
    assert "What only fails" not in answer.text
    assert export["channel_names"] == export["waiting_messages"] == []
    _, to_hello = export["replies"]
    assert (to_hello["at"], to_hello["status"]) == ("2025-10-02T10:00:00Z", "queued")
    assert json.loads(to_hello["document"])["reply"]["text"] == "You said: Hello"
    assert said_in(export) == ["Hello", "You said: Hello"]
    assert linked.get("/users/ada/export").json()["sessions"] == [export]


def test_an_export_of_a_session_of_a_channel_holds_who_it_is_and_what_waits(linked: httpx.Client) -> None:
    deliver(linked, "UNLINK", "Hello from me", "What only fails", number="16505550000")
    own = session_of_a_channel(linked)
    answer = linked.get(f"{SESSIONS}/{own}/export")
    export = answer.json()
    assert export["channel_names"] == [{"channel": "whatsapp", "kind": "wa_id", "value": "16505550000"}]
    (waiting,) = export["waiting_messages"]
    assert (waiting["at"], waiting["status"]) == ("2025-10-02T10:00:00Z", "pending")
    assert json.loads(waiting["document"])["message"]["text"] == "What only fails"
    assert "You said: Hello from me" in export["replies"][-1]["document"]
    assert said_in(export) == ["Hello from me", "You said: Hello from me"]
    assert NUMBER not in answer.text
    assert linked.delete(f"{SESSIONS}/{own}").status_code == 200
    assert linked.get(f"{SESSIONS}/{own}/export").status_code == 404


def said_in(export: dict[str, Any]) -> list[str]:
    return [entry["text"] for entry in json.loads(export["chat_state_session"]["chat_state"])["messages"]]


def session_of_a_channel(client: httpx.Client) -> str:
    """The id of the one session of WhatsApp, once there is one."""

    def ids() -> list[str]:
        page = client.get(f"{SESSIONS}?prefix=whatsapp_").json()
        return [session["user_session_id"] for session in page["sessions"]]

    assert poll_until(lambda: bool(ids()), 20)
    (found,) = ids()
    return found


@pytest.mark.parametrize("path", [f"{SESSIONS}/web", "/users/ada"])
def test_what_channels_have_brought_is_erased_with_the_session(linked: httpx.Client, path: str) -> None:
    assert linked.delete(path).status_code == 200
    assert linked.get("/users/ada/export").json()["code"] == "user_not_found"
    save(linked, "web")
    export = linked.get(f"{SESSIONS}/web/export").json()
    assert export["channel_names"] == export["waiting_messages"] == export["replies"] == []
    assert export["chat_state_session"]["version"] == 1
    assert linked.get(f"{SESSIONS}/web/channels").json() == {"channels": []}


def test_what_was_erased_does_not_come_back_when_it_is_delivered_again(linked: httpx.Client) -> None:
    assert linked.delete(f"{SESSIONS}/web").status_code == 200
    deliver(linked, "Hello", "What only fails", "Hello again")
    own = session_of_a_channel(linked)
    assert said_in(linked.get(f"{SESSIONS}/{own}/export").json()) == ["Hello again", "You said: Hello again"]


def test_messages_alone_are_something_to_take_out_and_to_erase(start: Start, own_url: str) -> None:
    """As when a bot has never come to answer them."""
    with (
        start(own_url, bot=moody) as server,
        server.client(timeout=20) as client,
    ):
        body = {"id": "m1", "text": "What only fails"}
        assert client.post(f"{SESSIONS}/web/messages", json=body).status_code == 202
        export = client.get(f"{SESSIONS}/web/export").json()
        assert (export["chat_state_session"], len(export["waiting_messages"])) == (None, 1)
        assert client.delete(f"{SESSIONS}/web").status_code == 200
        assert client.get(f"{SESSIONS}/web/export").status_code == 404
        assert client.delete(f"{SESSIONS}/web").status_code == 404


# --- Erasure ----------------------------------------------------------------------------------------------------------


def test_delete_erases_the_visits_too(client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    made = visit(client, new_id)
    assert client.delete(f"{SESSIONS}/{new_id}").status_code == 200
    assert client.get(f"/chat-sessions/{made['session_id']}").status_code == 404
    assert client.get(f"{SESSIONS}/{new_id}/export").status_code == 404


def test_what_an_interrupted_delete_has_left_the_next_one_erases(client: httpx.Client, new_id: str) -> None:
    visit(client, new_id)  # as when the session had gone, and its visits had not
    assert client.delete(f"{SESSIONS}/{new_id}").status_code == 200
    assert client.delete(f"{SESSIONS}/{new_id}").status_code == 404


def test_a_delete_whose_precondition_fails_erases_nothing(client: httpx.Client, new_id: str) -> None:
    save(client, new_id)
    made = visit(client, new_id)
    assert client.delete(f"{SESSIONS}/{new_id}", headers={"If-Match": '"other-1"'}).status_code == 412
    assert client.get(f"/chat-sessions/{made['session_id']}").status_code == 200


def test_visits_can_be_kept(start: Start, own_url: str, new_id: str) -> None:
    with start(own_url, keep_visits=True) as server, server.client() as client:
        save(client, new_id)
        made = visit(client, new_id)
        assert client.delete(f"{SESSIONS}/{new_id}").status_code == 200
        assert client.delete(f"{SESSIONS}/{new_id}").status_code == 404
        assert client.get(f"/chat-sessions/{made['session_id']}").status_code == 200


def test_erasing_a_person_erases_all_their_sessions_and_nothing_else(client: httpx.Client, new_id: str) -> None:
    mine, other = f"{new_id}-mine", f"{new_id}-other"
    for user_session_id in (mine, other):
        save(client, user_session_id)
    visit(client, mine, user_id=new_id)
    visit(client, mine)
    theirs = visit(client, mine, user_id="somebody else")
    visit(client, other, user_id="somebody else")
    response = client.delete(f"/users/{new_id}")
    assert response.json() == {"sessions": 1, "visits": 2}
    assert client.get(f"{SESSIONS}/{mine}").status_code == 404
    assert client.get(f"/chat-sessions/{theirs['session_id']}").status_code == 200
    assert client.get(f"{SESSIONS}/{other}").status_code == 200
    assert client.delete(f"/users/{new_id}").status_code == 404


def files_with(text: str, folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if text.encode() in file.read_bytes()]


async def test_in_sqlite_nothing_of_it_is_left_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "chatstate.db"
    store = create_store(f"sqlite:///{path}")
    await store.open()
    await store.migrate()
    secret, now, history = f"{CANARY}-erased", utc_now(), Retention(history=5)
    for number in range(6):
        save_one = Save(
            user_session_id=f"{secret}-id",
            new_session_id=f"00000000-0000-0000-0000-{number:012}",
            chat_state=None if number == 5 else f"{secret} {number} " * 3000,
            last_activity=now,
            now=now,
            once=IdempotencyKey(f"key {number}", b"digest"),
            expect=PRESENT if number == 5 else ANYTHING,
        )
        await store.commit([save_one], history)
    await store.commit(
        [
            CreateVisit(
                session_id="00000000-0000-0000-0000-000000000001",
                user_session_id=f"{secret}-id",
                created_at=now,
                session_start_time=now,
                user_agent=secret,
            )
        ]
    )
    assert files_with(secret, tmp_path)
    await store.commit(
        [
            Delete(user_session_id=f"{secret}-id", now=now),
        ],
        history,
    )
    await store.commit([EraseVisits(user_session_id=f"{secret}-id")])
    while (await store.sweep(now + 2 * REMEMBERED_FOR, KEEP, None, 100)).next is not None:
        pass
    assert files_with(secret, tmp_path) == []
    await store.close()


# --- Retention --------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_for_longer_than_the_retention(start: Start, own_url: str, new_id: str) -> None:
    clock = SettableClock()
    with (
        start(own_url, clock=clock, retention_days=30, idle_expiry_seconds=90 * 86400) as server,
        server.client() as client,
    ):
        save(client, new_id)
        made = visit(client, new_id)
        clock.advance(seconds=30 * 86400 - 1)
        assert client.get(f"{SESSIONS}/{new_id}").status_code == 200
        clock.advance(seconds=1)
        assert client.get(f"{SESSIONS}/{new_id}").status_code == 404
        assert client.get(f"/chat-sessions/{made['session_id']}").status_code == 200, "until it is swept"


# --- The audit log ----------------------------------------------------------------------------------------------------


class Audited:
    """A keyed server with an audit log, and a key."""

    def __init__(self, url: str, start: Start) -> None:
        self.lines: list[str] = []
        self.key, self.audit_key = asyncio.run(self._prepare(url))
        answering = {"bot": echo, "whatsapp": ACCOUNT}
        self._serving = start(url, audit=self.lines.append, rates=NO_LIMITS, history=20, **answering)

    async def _prepare(self, url: str) -> tuple[str, bytes]:
        store = create_store(url, owner=False)
        await store.open()
        await store.migrate()
        try:
            _, text = await Keys(store).create("test", utc_now())
            return text, await audit_key(store, utc_now())
        finally:
            await store.close()

    def __enter__(self) -> Audited:
        self.server = self._serving.__enter__()
        headers = {"Authorization": f"Bearer {self.key}"}
        self.client = httpx.Client(base_url=self.server.base_url, headers=headers)
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self._serving.__exit__(None, None, None)

    @property
    def last(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self.lines[-1])
        return line


@pytest.fixture
def audited(start: Start, own_url: str) -> Iterator[Audited]:
    with Audited(own_url, start) as audited:
        yield audited


def test_a_line_says_who_did_what_when_and_what_came_of_it(audited: Audited, new_id: str) -> None:
    body = json.dumps({"user_session_id": new_id, "chat_state": "{}"}).encode()
    audited.client.post(SESSIONS, content=body, headers={"Content-Type": "application/json"})
    key_id = audited.key.split("_")[1]
    assert audited.last == {
        "at": "2025-10-02T10:00:00Z",
        "who": f"key:{key_id}",
        "what": "save",
        "result": "ok",
        "status": 201,
        "session": session_hash(audited.audit_key, new_id),
        "size": len(body),
        "version": 1,
    }
    audited.client.get(f"{SESSIONS}/{new_id}-absent")
    assert (audited.last["what"], audited.last["result"], audited.last["status"]) == ("load", "session_not_found", 404)
    assert audited.last["session"] == session_hash(audited.audit_key, f"{new_id}-absent")


def test_a_session_token_is_on_record_with_the_key_that_minted_it(audited: Audited, new_id: str) -> None:
    token = audited.client.post("/tokens", json={"user_session_id": new_id}).json()["token"]
    assert (audited.last["what"], audited.last["session"]) == ("mint", session_hash(audited.audit_key, new_id))
    audited.client.get(f"{SESSIONS}/{new_id}", headers={"Authorization": f"Bearer {token}"})
    assert (audited.last["who"], audited.last["minted_by"]) == ("token", audited.key.split("_")[1])


def test_who_is_refused_is_on_record_with_their_address(audited: Audited, new_id: str) -> None:
    audited.client.get(f"{SESSIONS}/{new_id}", headers={"Authorization": "Bearer wrong"})
    assert (audited.last["who"], audited.last["result"], audited.last["address"]) == (
        *("nobody", "unauthorized", "127.0.0.1"),
    )


def test_who_is_refused_with_a_valid_credential_is_on_record_by_name(audited: Audited, new_id: str) -> None:
    token = audited.client.post("/tokens", json={"user_session_id": new_id, "verbs": ["read"]}).json()["token"]
    shown = {"Authorization": f"Bearer {token}"}
    assert audited.client.delete(f"{SESSIONS}/{new_id}", headers=shown).status_code == 403
    assert (audited.last["who"], audited.last["minted_by"]) == ("token", audited.key.split("_")[1])
    assert audited.client.delete(f"/users/{new_id}", headers=shown).status_code == 403
    assert (audited.last["who"], audited.last["result"]) == ("token", "forbidden")


def test_what_is_done_to_a_visit_is_found_by_its_session(audited: Audited, new_id: str) -> None:
    made = visit(audited.client, new_id)
    place = f"/chat-sessions/{made['session_id']}"
    audited.client.get(place)
    assert (audited.last["what"], audited.last["session"]) == ("load_visit", session_hash(audited.audit_key, new_id))
    audited.client.patch(place, json={"session_outcome": "x"})
    assert (audited.last["what"], audited.last["session"]) == ("change_visit", session_hash(audited.audit_key, new_id))


def test_erasing_and_exporting_a_person_are_on_record(audited: Audited, new_id: str) -> None:
    sessions = [f"{new_id} 1", f"{new_id} 2"]
    for name in sessions:
        visit(audited.client, name, user_id=new_id)
    person, hashes = (
        session_hash(audited.audit_key, new_id),
        [session_hash(audited.audit_key, name) for name in sessions],
    )
    exported = audited.client.get(f"/users/{new_id}/export").content
    assert (audited.last["what"], audited.last["user"], audited.last["sessions"]) == ("export_user", person, hashes)
    assert (audited.last["result"], audited.last["size"]) == ("ok", len(exported))
    audited.client.delete(f"/users/{new_id}")
    assert (audited.last["what"], audited.last["user"], audited.last["sessions"]) == ("erase_user", person, hashes)
    audited.client.head(f"{SESSIONS}/{new_id}/export")
    assert (audited.last["what"], audited.last["result"]) == ("export_session", "session_not_found")


def test_an_export_that_nobody_has_got_whole_is_on_record_as_such(audited: Audited, new_id: str) -> None:
    for number in range(20):
        save(audited.client, new_id, f"{number}{'x' * 1_000_000}")
    with audited.client.stream("GET", f"{SESSIONS}/{new_id}/export") as export:
        next(export.iter_bytes(1000))
    assert poll_until(lambda: audited.last["what"] == "export_session", 10)
    assert audited.last["result"] == "broken_off"
    assert 0 < audited.last["size"] < 20_000_000


def test_who_watches_a_session_is_on_record_from_the_beginning(audited: Audited, new_id: str) -> None:
    """A stream may go on for days: a line at its end alone would come too late, or never."""
    save(audited.client, new_id, "seen")
    with audited.client.stream("GET", f"{SESSIONS}/{new_id}/events") as watching:
        lines = watching.iter_lines()  # without it the connection would end
        next(lines)
        assert (audited.last["what"], audited.last["result"], audited.last["status"]) == ("watch", "begun", 200)
        assert audited.last["session"] == session_hash(audited.audit_key, new_id)
    assert poll_until(lambda: audited.last["result"] == "ok", 10)
    assert audited.last["what"] == "watch"
    assert audited.last["size"] > len("seen")


def test_messages_and_deliveries_are_on_record(audited: Audited, new_id: str) -> None:
    audited.client.post(f"{SESSIONS}/{new_id}/messages", json={"id": "m1", "text": CANARY})
    assert (audited.last["what"], audited.last["session"]) == ("say", session_hash(audited.audit_key, new_id))
    assert (audited.last["status"], audited.last["result"]) == (202, "ok")
    body = delivered(CANARY)
    del audited.client.headers["Authorization"]
    audited.client.post(WEBHOOK, content=body, headers=signed(body))
    assert (audited.last["who"], audited.last["what"]) == ("channel:whatsapp", "take_delivery")
    assert (audited.last["status"], audited.last["size"]) == (200, len(body))
    assert not [line for line in audited.lines if CANARY in line or "16505551234" in line]


def test_wrong_signatures_do_not_fill_the_audit_log(audited: Audited) -> None:
    """There is no limit to how many are looked at: whoever sends them must not keep Meta out."""
    for _ in range(20):
        assert audited.client.post(WEBHOOK, content=b"{}").status_code == 403
    assert [json.loads(line)["result"] for line in audited.lines] == ["webhook_refused"]
    assert (audited.last["who"], audited.last["address"]) == ("nobody", "127.0.0.1")


def test_a_flood_does_not_fill_the_audit_log(start: Start, own_url: str) -> None:
    lines: list[str] = []
    with start(own_url, audit=lines.append, rates=Rates(0, 0, 0, 3)) as server, httpx.Client() as client:
        asyncio.run(_make_key(own_url))
        url = f"{server.base_url}{SESSIONS}/one"
        wrong = {"Authorization": f"Bearer cs_aaaaaaaa_{'0' * 49}"}
        for _ in range(20):
            client.get(url, headers=wrong)
        assert [json.loads(line)["status"] for line in lines] == [401] * 3 + [429]
        server.clock.advance(seconds=60)
        for _ in range(5):
            client.get(url, headers=wrong)
        assert [json.loads(line)["status"] for line in lines[4:]] == [429]


async def _make_key(url: str) -> None:
    store = create_store(url, owner=False)
    await store.open()
    await store.migrate()
    await Keys(store).create("test", utc_now())
    await store.close()


def test_health_is_not_on_record(audited: Audited) -> None:
    audited.client.get("/healthz")
    assert audited.lines == []


def test_no_line_holds_an_id_a_state_or_a_credential(audited: Audited) -> None:
    secret = f"{CANARY}-audited"
    save(audited.client, secret, json.dumps({"said": secret}))
    token = audited.client.post("/tokens", json={"user_session_id": secret}).json()["token"]
    visit(audited.client, secret, user_id=secret, user_agent=secret)
    for method, path in (
        *(("GET", f"{SESSIONS}/{secret}"), ("PUT", f"{SESSIONS}/{secret}"), ("GET", f"/users/{secret}/export")),
        *(("PATCH", f"{SESSIONS}/{secret}"), ("GET", f"/chat-sessions/{secret}"), ("DELETE", f"/users/{secret}")),
    ):
        audited.client.request(method, path, content=f'{{"{secret}": "{secret}"'.encode())
        audited.client.request(method, path, headers={"Authorization": f"Bearer {secret}"})
    assert len(audited.lines) == 15
    written = "\n".join(audited.lines)
    assert not [text for text in (secret, audited.key, token) if text in written]
