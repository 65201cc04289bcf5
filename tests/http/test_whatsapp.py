"""The webhook of WhatsApp: who may call it, and that what was acknowledged is kept, once."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from msgspec import json

from chatstate.bot import Turn
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.errors import InvalidSetting
from chatstate.http.whatsapp import MOST_BYTES, WEBHOOK
from tests.http.conftest import Server, Start
from tests.http.credentials import ACCOUNT
from tests.http.test_messages import SECONDS

SECRET, VERIFY, NUMBER_ID = ACCOUNT.app_secret, ACCOUNT.verify_token, ACCOUNT.phone_number_id


async def count(turn: Turn) -> None:
    turn.state["count"] = turn.state.get("count", 0) + 1
    await turn.reply(f"{turn.state['count']}")


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    with start(store_url, bot=count, whatsapp=ACCOUNT) as running:
        yield running


def text_message(message_id: str, sender: str = "16505551234", text: str = "Hello") -> dict[str, Any]:
    return {"from": sender, "id": message_id, "timestamp": "1759399200", "type": "text", "text": {"body": text}}


def delivery(*messages: dict[str, Any], **value: Any) -> dict[str, Any]:
    """A delivery with these messages, in one change."""
    metadata = {"display_phone_number": "15550783881", "phone_number_id": NUMBER_ID}
    contacts = [{"profile": {"name": "Sheena"}, "wa_id": message["from"]} for message in messages]
    change = {
        "field": "messages",
        "value": {"messaging_product": "whatsapp", "metadata": metadata, "contacts": contacts, "messages": messages},
    }
    change["value"] |= value  # type: ignore[operator]
    return {"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [change]}]}


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, sha256).hexdigest()


def post(client: httpx.Client, content: dict[str, Any] | bytes, **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.encode(content)
    given = {"Content-Type": "application/json", "X-Hub-Signature-256": sign(body), **headers}
    return client.post(WEBHOOK, content=body, headers={name: value for name, value in given.items() if value})


def sessions(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """The states of all sessions of WhatsApp."""
    found: dict[str, dict[str, Any]] = {}
    url: str = "/chat-state-sessions?prefix=whatsapp_&include=chat_state&limit=20&order=id"
    while url:
        answer = client.get(url)
        found |= {row["user_session_id"]: json.decode(row["chat_state"]) for row in answer.json()["sessions"]}
        url = answer.links["next"]["url"] if "next" in answer.links else ""
    return found


def answered(client: httpx.Client, turns: int) -> dict[str, dict[str, Any]]:
    """The states, once there were so many turns in all."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = sessions(client)
        if sum(state["count"] for state in found.values()) >= turns:
            return found
    raise AssertionError("not answered")


@pytest.fixture
def fresh(start: Start, own_url: str) -> Iterator[httpx.Client]:
    """A server of this test's own."""
    with (
        start(own_url, bot=count, whatsapp=ACCOUNT) as server,
        server.client(timeout=SECONDS) as client,
    ):
        yield client


def test_the_challenge_is_answered(client: httpx.Client) -> None:
    query = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": VERIFY}
    answer = client.get(WEBHOOK, params=query)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"].startswith("text/plain")
    for wrong in ({"hub.verify_token": "x"}, {"hub.mode": "unsubscribe"}, {"hub.verify_token": "é"}):
        assert client.get(WEBHOOK, params=query | wrong).status_code == 403
    for missing in query:
        rest = {name: value for name, value in query.items() if name != missing}
        assert client.get(WEBHOOK, params=rest).status_code == 403


@pytest.mark.parametrize(
    "abuse",
    ["missing", "short", "upper-case", "sha1", "non-ascii", "twice", "re-serialised", "another secret", "empty"],
)
def test_a_signature_that_is_not_metas_is_refused(server: Server, client: httpx.Client, abuse: str) -> None:
    body = json.encode(delivery(text_message("wamid.abuse")))
    right = sign(body)
    wrong = {
        "missing": None,
        "short": right[:-1],
        "upper-case": "sha256=" + right.removeprefix("sha256=").upper(),
        "sha1": "sha1=" + hmac.new(SECRET.encode(), body, "sha1").hexdigest(),
        "non-ascii": "sha256=é" + right[8:],
        "twice": f"{right}\r\nX-Hub-Signature-256: {right}",
        "re-serialised": right,
        "another secret": sign(body, "another"),
        "empty": "",
    }[abuse]
    if abuse == "re-serialised":
        body = body.replace(b'":', b'": ')
    answer = server.send("POST", WEBHOOK, body, {"X-Hub-Signature-256": wrong})
    assert (answer.status, answer.json()["code"]) == (403, "webhook_refused")
    assert sessions(client) == {}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"object": "page"}', b'{"entry": 7}'])
def test_what_is_signed_but_no_delivery_is_no_error_of_ours(client: httpx.Client, body: bytes) -> None:
    assert post(client, body).status_code in (200, 400)


def test_a_route_without_a_secret_is_closed(start: Start, own_url: str) -> None:
    with start(own_url, bot=count) as server, server.client() as client:
        body = json.encode(delivery(text_message("wamid.1")))
        for secret in ("", SECRET):
            assert post(client, body, **{"X-Hub-Signature-256": sign(body, secret)}).status_code == 404
        query = {"hub.mode": "subscribe", "hub.challenge": "1", "hub.verify_token": ""}
        assert client.get(WEBHOOK, params=query).status_code == 404


def test_a_delivery_through_a_tunnel_reaches_a_server_without_keys(client: httpx.Client) -> None:
    outside = {"Host": "bot.example.org", "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    assert post(client, delivery(), **outside).status_code == 200
    assert client.get("/chat-state-sessions", headers=outside).status_code == 403


def test_every_message_of_a_delivery_changes_its_state_once(fresh: httpx.Client) -> None:
    people = ["16505551234", "16505550000"]
    batch = delivery(*(text_message(f"wamid.{n}", people[n % 2], f"{n}") for n in range(6)))
    second = delivery(*(text_message(f"wamid.{n}", people[n % 2], f"{n}") for n in range(6, 12)))
    batch["entry"] += second["entry"]
    batch["entry"][-1]["changes"] += delivery(text_message("wamid.12", people[0], "12"))["entry"][0]["changes"]
    for _ in range(3):
        assert post(fresh, batch).status_code == 200
    respaced = json.format(json.encode(batch), indent=2)
    assert post(fresh, respaced).status_code == 200
    assert post(fresh, delivery(text_message("wamid.0"), text_message("wamid.0"))).status_code == 200
    states = answered(fresh, 13)
    assert sorted(state["count"] for state in states.values()) == [6, 7]
    for state in states.values():
        said = [int(entry["text"]) for entry in state["messages"] if entry["role"] == "user"]
        assert said == sorted(said)
        assert len(state["messages"]) == 2 * len(said)


def test_ids_and_numbers_are_in_no_session(fresh: httpx.Client) -> None:
    post(fresh, delivery(text_message("wamid.HBgL", text="Hi")))
    for name, state in answered(fresh, 1).items():
        assert "16505551234" not in name + str(state)
        assert "wamid" not in str(state)


def test_a_delivery_may_have_three_mebibytes(client: httpx.Client) -> None:
    message = text_message("wamid.large", text="x" * (MOST_BYTES - 5000))
    body = json.encode(delivery(message))
    assert MOST_BYTES - 5000 < len(body) <= MOST_BYTES
    assert post(client, body).status_code == 200
    answer = post(client, body + b" " * (MOST_BYTES - len(body) + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_texts_that_no_store_can_keep_are_kept_all_the_same(fresh: httpx.Client) -> None:
    """If they were refused, Meta would deliver the whole batch again and again."""
    odd = json.encode(delivery(text_message("wamid.a"), text_message("wamid.b", text="fine")))
    odd = odd.replace(b'"Hello"', rb'"nul \u0000 and lone \ud800"')
    assert post(fresh, odd).status_code == 200
    (state,) = answered(fresh, 2).values()
    assert "fine" in [entry["text"] for entry in state["messages"]]


def test_statuses_and_unknown_types_are_taken(client: httpx.Client) -> None:
    status = {"id": "wamid.x", "status": "delivered", "timestamp": "1759399200", "recipient_id": "16505551234"}
    assert post(client, delivery(statuses=[status], messages=[])).status_code == 200
    unknown = {"from": "16505551234", "id": "wamid.u", "timestamp": "1759399200", "type": "hologram", "hologram": {}}
    assert post(client, delivery(unknown)).status_code == 200


def test_a_delivery_of_long_ago_is_kept_and_not_applied(fresh: httpx.Client) -> None:
    """After eight days nobody knows whether it was applied before."""
    old = {**text_message("wamid.old"), "timestamp": str(1759399200 - 8 * 86400)}
    assert post(fresh, delivery(old, text_message("wamid.new", "16505550000"))).status_code == 200
    assert len(answered(fresh, 1)) == 1


def test_a_number_is_wanted(start: Start, own_url: str) -> None:
    with (
        pytest.raises(InvalidSetting, match="CHATSTATE_WHATSAPP_PHONE_NUMBER_ID"),
        start(own_url, whatsapp=WhatsAppAccount(app_secret=SECRET, verify_token=VERIFY)),
    ):
        pass
