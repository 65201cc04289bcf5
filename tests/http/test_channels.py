"""Going on with a chat of a web page on WhatsApp, from the page's side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from chatstate.http.channels import device_name
from chatstate.model import Scope
from tests.http.conftest import SettableClock, Start
from tests.http.credentials import ACCOUNT, UNLIMITED, bearer, claims_of, key_id_of, make_key, signer_of
from tests.http.test_messages import SECONDS, count, say
from tests.http.test_whatsapp import delivery, post, text_message

CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0 Safari/537.36"
PHONE = "16505551234"


@pytest.fixture
def client(start: Start, own_url: str) -> Iterator[httpx.Client]:
    """A client of a server of this test's own."""
    with (
        start(own_url, bot=count, whatsapp=ACCOUNT) as server,
        server.client(timeout=SECONDS, headers={"User-Agent": CHROME}) as client,
    ):
        client.post("/chat-state-sessions", json={"user_session_id": "web", "chat_state": '{"count": 0}'})
        yield client


def link(client: httpx.Client, session: str = "web", **given: Any) -> httpx.Response:
    return client.post(f"/chat-state-sessions/{session}/channels/whatsapp/links", **given)


def write(client: httpx.Client, message_id: str, text: str, sender: str = PHONE) -> None:
    assert post(client, delivery(text_message(message_id, sender, text))).status_code == 200


def linked(client: httpx.Client, expected: int = 1, session: str = "web") -> list[dict[str, Any]]:
    """Who goes on with the session elsewhere, once they are so many."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found: list[dict[str, Any]] = client.get(f"/chat-state-sessions/{session}/channels").json()["channels"]
        if len(found) == expected:
            return found
    raise AssertionError("not linked")


def test_a_link_opens_the_chat_with_the_code_typed_in(client: httpx.Client) -> None:
    answer = link(client)
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/chat-state-sessions/web/links/{made['id']}")
    assert made["url"] == f"https://wa.me/15550783881?text={made['code']}"
    assert made["code"].startswith(f"{made['id']}-")
    assert made["number"].isdecimal()
    assert 10 <= int(made["number"]) <= 99
    assert "<svg" in made["qr_svg"]
    assert client.get(answer.headers["location"]).json()["status"] == "open"
    assert client.post(f"/links/{made['code']}").status_code == 404  # it is for no device


def test_the_person_goes_on_there_and_the_page_sees_it(client: httpx.Client) -> None:
    made = link(client).json()
    assert linked(client, 0) == []
    write(client, "wamid.1", made["code"])
    (person,) = linked(client)
    assert set(person) == {"id", "channel", "linked_at"}
    assert person["channel"] == "whatsapp"
    assert PHONE not in str(person)
    status = client.get(f"/chat-state-sessions/web/links/{made['id']}").json()
    assert (status["status"], status["device"]) == ("redeemed", "whatsapp")
    write(client, "wamid.2", "from WhatsApp")
    until = time.monotonic() + SECONDS
    while "from WhatsApp" not in (state := client.get("/chat-state-sessions/web").json()["chat_state"]):
        assert time.monotonic() < until
    assert made["code"] not in state
    say(client, "web", "m1", "from the page")
    while "from the page" not in client.get("/chat-state-sessions/web").json()["chat_state"]:
        assert time.monotonic() < until


def test_unlinking_from_the_page_ends_it(client: httpx.Client) -> None:
    write(client, "wamid.1", link(client).json()["code"])
    (person,) = linked(client)
    assert client.delete(f"/chat-state-sessions/web/channels/{person['id']}").status_code == 200
    assert linked(client, 0) == []
    answer = client.delete(f"/chat-state-sessions/web/channels/{person['id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "channel_not_found")


def test_a_code_does_not_undo_that(client: httpx.Client) -> None:
    made = link(client).json()
    write(client, "wamid.1", made["code"])
    (person,) = linked(client)
    client.delete(f"/chat-state-sessions/web/channels/{person['id']}")
    write(client, "wamid.2", made["code"])
    write(client, "wamid.3", "next")  # answered after that one
    until = time.monotonic() + SECONDS
    while not client.get("/chat-state-sessions?prefix=whatsapp_").json()["sessions"]:
        assert time.monotonic() < until
    assert linked(client, 0) == []


def test_taking_the_link_back_ends_what_it_has_given(client: httpx.Client) -> None:
    made = link(client).json()
    write(client, "wamid.1", made["code"])
    linked(client)
    assert client.delete(f"/chat-state-sessions/web/links/{made['id']}").status_code == 200
    assert linked(client, 0) == []


def test_a_link_that_was_taken_back_links_nobody(client: httpx.Client) -> None:
    made = link(client).json()
    assert client.delete(f"/chat-state-sessions/web/links/{made['id']}").status_code == 200
    write(client, "wamid.1", made["code"])
    write(client, "wamid.2", "next")  # answered after the first one
    until = time.monotonic() + SECONDS
    while not client.get("/chat-state-sessions?prefix=whatsapp_").json()["sessions"]:
        assert time.monotonic() < until
    assert linked(client, 0) == []


def test_of_two_who_send_one_code_one_goes_on(client: httpx.Client) -> None:
    made = link(client).json()
    people = [f"1650555000{number}" for number in range(8)]
    batch = delivery(*(text_message(f"wamid.{person}", person, made["code"]) for person in people))
    assert post(client, batch).status_code == 200
    assert len(linked(client)) == 1
    for person in people:
        write(client, f"wamid.2{person}", "and now", person)
    until = time.monotonic() + SECONDS
    while len(client.get("/chat-state-sessions?prefix=whatsapp_").json()["sessions"]) < len(people) - 1:
        assert time.monotonic() < until
    assert len(linked(client)) == 1


def test_a_session_that_is_not_there_has_no_links(client: httpx.Client) -> None:
    assert link(client, "nobody").json()["code"] == "session_not_found"
    assert client.get("/chat-state-sessions/nobody/channels").status_code == 404


def test_a_server_without_a_number_says_so(start: Start, own_url: str) -> None:
    with start(own_url, bot=count) as server, server.client() as client:
        client.post("/chat-state-sessions", json={"user_session_id": "web", "chat_state": "{}"})
        answer = link(client)
        assert (answer.status_code, answer.json()["code"]) == (404, "channel_not_found")
        assert "CHATSTATE_WHATSAPP_NUMBER" in answer.json()["detail"]


def test_only_who_may_hand_a_session_on_may_link_it(start: Start, own_url: str) -> None:
    clock = SettableClock()
    scopes: dict[str, tuple[Scope, ...]] = {"all": ("mint", "read", "write"), "mint": ("mint",), "write": ("write",)}
    keys = {name: asyncio.run(make_key(own_url, clock.now, some)) for name, some in scopes.items()}
    signer = asyncio.run(signer_of(own_url, clock.now))
    with (
        start(own_url, clock=clock, bot=count, whatsapp=ACCOUNT, rates=UNLIMITED) as server,
        server.client(timeout=SECONDS) as client,
    ):
        body = {"user_session_id": "web", "chat_state": "{}"}
        assert client.post("/chat-state-sessions", json=body, headers=bearer(keys["write"])).status_code == 201
        key_id = key_id_of(keys["all"])
        own, other = (bearer(signer.sign(claims_of(name, clock.now, key_id))) for name in ("web", "other"))
        assert link(client, headers=own).status_code == 201
        assert link(client, headers=bearer(keys["all"])).status_code == 201
        assert link(client, headers=other).status_code == 404
        for refused in ("mint", "write"):
            assert link(client, headers=bearer(keys[refused])).status_code == 403
        for verb in ("read", "write"):  # whoever goes on there does both
            token = signer.sign(claims_of("web", clock.now, key_id, verbs=(verb,)))
            assert link(client, headers=bearer(token)).status_code == 403
        write(client, "wamid.1", link(client, headers=own).json()["code"])
        until = time.monotonic() + SECONDS
        while not (found := client.get("/chat-state-sessions/web/channels", headers=own).json()["channels"]):
            assert time.monotonic() < until
        place = f"/chat-state-sessions/web/channels/{found[0]['id']}"
        assert client.delete(place, headers=other).status_code == 404
        assert client.delete(place, headers=bearer(keys["write"])).status_code == 403
        assert client.delete(place, headers=own).status_code == 200


def test_the_export_tells_who_goes_on_there_and_the_deletion_forgets_them(client: httpx.Client) -> None:
    write(client, "wamid.1", link(client).json()["code"])
    linked(client)
    exported = client.get("/chat-state-sessions/web/export").json()
    assert PHONE not in str(exported)  # whose own session it is not
    assert [reply["status"] for reply in exported["replies"]] == ["queued"]
    assert client.delete("/chat-state-sessions/web").status_code == 200
    assert client.get("/chat-state-sessions/web/export").status_code == 404


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (CHROME, "Chrome on Windows"),
        (CHROME.replace("Chrome/156.0 Safari/537.36", "Chrome/156.0 Safari/537.36 Edg/156.0"), "Edge on Windows"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0", "Firefox on Linux"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Safari/604.1", "Safari on iPhone"),
        ("curl/8.0", "another program"),
        ("", "another program"),
        ("Your bank. Send your PIN to 555", "another program"),
        ("Chrome/ Send your PIN \r\n to 555", "Chrome"),
    ],
)
def test_a_device_is_named_in_words_of_ours(agent: str, name: str) -> None:
    assert device_name(agent) == name


def test_a_code_is_good_for_ten_minutes(start: Start, own_url: str) -> None:
    clock = SettableClock()
    with (
        start(own_url, clock=clock, bot=count, whatsapp=ACCOUNT) as own,
        httpx.Client(base_url=own.base_url, timeout=SECONDS) as client,
    ):
        client.post("/chat-state-sessions", json={"user_session_id": "web", "chat_state": '{"count": 0}'})
        made = link(client).json()
        assert made["expires_at"] == "2025-10-02T10:10:00Z"
        clock.now += timedelta(minutes=10)
        assert client.get(f"/chat-state-sessions/web/links/{made['id']}").json()["status"] == "expired"
