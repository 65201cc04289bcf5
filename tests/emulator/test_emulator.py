"""The emulator as tests use it, and as the page does: what persons do, what is waited for, who may ask."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from msgspec import json

from chatstate.emulator import Emulator, payloads
from chatstate.emulator.journal import Bubble, Journal
from tests.emulator.conftest import Bot, Patience, client_of
from tests.emulator.webhooks import SmallWebhook

SOON = 0.01
"""How long is waited for what will not happen."""


def choices_of(*titles: str) -> dict[str, Any]:
    replies = [{"type": "reply", "reply": {"id": title.lower(), "title": title}} for title in titles]
    return {"type": "button", "body": {"text": "Choose"}, "action": {"buttons": replies}}


# --- What persons do --------------------------------------------------------------------------------------------------


async def test_a_person_writes_and_chooses(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    await bot.post(to=zoe.wa_id, type="interactive", interactive=choices_of("Yes", "No"))
    [question] = await emulator.replied(zoe)
    await emulator.choose(zoe, question, "no")
    rows = [{"id": "a", "title": "A", "description": "First"}]
    action = {"button": "Show", "sections": [{"rows": rows}]}
    await bot.post(
        to=zoe.wa_id, type="interactive", interactive={"type": "list", "body": {"text": "x"}, "action": action}
    )
    _, listed = await emulator.replied(zoe, 2)
    await emulator.choose(zoe, listed.id, "a")
    await emulator.settled()
    _, tapped, picked = webhook.messages()
    assert tapped["interactive"] == {"type": "button_reply", "button_reply": {"id": "no", "title": "No"}}
    assert tapped["context"] == {"from": emulator.account.number, "id": question.id}
    assert picked["interactive"]["list_reply"] == {"id": "a", "title": "A", "description": "First"}
    assert emulator.journal.chats["zoe"][question.id].chosen == "no"


async def test_only_what_is_offered_can_be_chosen(emulator: Emulator, bot: Bot) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    await bot.post(to=zoe.wa_id, type="interactive", interactive=choices_of("Yes"))
    [question] = await emulator.replied(zoe)
    with pytest.raises(KeyError):
        await emulator.choose(zoe, question, "maybe")
    with pytest.raises(KeyError):
        await emulator.choose(zoe, "wamid.none", "yes")


async def test_a_person_reacts_edits_and_deletes(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    zoe = emulator.persons[0]
    written = await emulator.write(zoe, "Helo")
    await bot.say(zoe.wa_id, "Hi")
    [reply] = await emulator.replied(zoe)
    await emulator.react(zoe, reply.id, "👍")
    assert emulator.journal.chats["zoe"][reply.id].reactions == {"zoe": "👍"}
    await emulator.react(zoe, reply.id, "")
    assert emulator.journal.chats["zoe"][reply.id].reactions == {}
    await emulator.edit(zoe, written, "Hello")
    await emulator.revoke(zoe, written)
    await emulator.post(zoe, payloads.order())
    await emulator.settled()
    types = [message["type"] for message in webhook.messages()]
    assert types == ["text", "reaction", "reaction", "edit", "revoke", "order"]


async def test_a_person_changes_the_number(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    zoe = emulator.persons[0]
    old_number, old_id = zoe.wa_id, zoe.user_id
    await emulator.write(zoe, "Hello")
    await emulator.change_number(zoe)
    await emulator.change_user_id(zoe)
    await emulator.write(zoe, "It is me")
    await emulator.settled()
    _, changed, changed_again, now = webhook.messages()
    assert (changed["from"], changed["system"]["wa_id"]) == (old_number, zoe.wa_id)
    assert (changed["system"]["previous_user_id"], changed["system"]["user_id"]) == (
        old_id,
        changed_again["system"]["previous_user_id"],
    )
    assert (now["from"], now["from_user_id"]) == (zoe.wa_id, zoe.user_id)
    await bot.say(old_number, "Are you there?")
    assert emulator.to(zoe) == [], "the number is nobody's now"
    await bot.say(zoe.wa_id, "There you are")
    assert len(emulator.to(zoe)) == 1


async def test_there_can_be_more_persons(emulator: Emulator, webhook: SmallWebhook) -> None:
    ann, ben = emulator.add_person("Ann Öz"), emulator.add_person("Ben")
    assert len({person.wa_id for person in emulator.persons}) == 4
    assert (ann.username, emulator.person(ben.key)) == ("@annz", ben)
    emulator.identities = "username"
    await emulator.write(ann, "Hello")
    await emulator.settled()
    [value] = webhook.values()
    assert value["contacts"] == [{"profile": {"name": "Ann Öz", "username": "@annz"}, "user_id": ann.user_id}]
    assert ann.wa_id.encode() not in webhook.bodies[0]
    with pytest.raises(KeyError):
        emulator.person("nobody")


async def test_who_has_blocked_the_number_gets_nothing(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    emulator.blocked.add("zoe")
    await bot.say(zoe.wa_id, "Hi")
    await emulator.settled()
    assert [told["status"] for told in webhook.statuses()] == ["sent"]
    assert len(emulator.journal.chats["zoe"]) == 1


# --- Waiting ----------------------------------------------------------------------------------------------------------


async def test_replies_are_waited_for(emulator: Emulator, bot: Bot) -> None:
    zoe, luis = emulator.persons
    await emulator.write(zoe, "Hello")
    await emulator.write(luis, "Hello")
    waiting = asyncio.create_task(emulator.replied(zoe, 2))
    await bot.say(luis.wa_id, "to Luis")
    await bot.say(zoe.wa_id, "1")
    assert not waiting.done()
    await bot.say(zoe.wa_id, "2")
    assert [sent.text for sent in await waiting] == ["1", "2"]
    assert [sent.text for sent in emulator.sent] == ["to Luis", "1", "2"]


async def test_who_waits_in_vain_is_told_how_far_things_are(webhook: SmallWebhook) -> None:
    emulator = Emulator(webhook.url, pause=Patience())
    webhook.answers = [503]
    async with emulator.serving():
        await emulator.write(emulator.persons[0], "Hello")
        await emulator.until(lambda: emulator.network.webhook.state == "refused")
        emulator.hold()
        await emulator.write(emulator.persons[0], "Again")
        with pytest.raises(TimeoutError, match="before zoe had 3 replies; 0 sends") as late:
            await emulator.replied(emulator.persons[0], 3, within=SOON)
        assert "1 updates are held back, 1 requests are under way. The webhook: HTTP 503" in str(late.value)
        with pytest.raises(TimeoutError, match="before all was delivered"):
            await emulator.settled(within=SOON)
    assert "Hello" not in str(late.value)


# --- The page's own routes --------------------------------------------------------------------------------------------


@pytest.fixture
async def page(emulator: Emulator) -> Any:
    async with client_of(emulator) as client:
        yield client


FOREIGN = (
    {"host": "evil.test"},
    {"origin": "https://evil.test"},
    {"sec-fetch-site": "cross-site"},
    {"x-forwarded-for": "192.0.2.1"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers)))
async def test_no_foreign_page_gets_in(headers: dict[str, str], page: httpx.AsyncClient) -> None:
    for path in ("/", "/page/page.js", "/events", "/entries/1", "/samples/image"):
        assert (await page.get(path, headers=headers)).status_code == 403
    write = {"action": "write", "person": "zoe", "text": "x"}
    assert (await page.post("/actions", json=write, headers=headers)).status_code == 403


async def test_the_page_and_its_files_are_served(page: httpx.AsyncClient) -> None:
    document = await page.get("/?text=Hello")
    assert document.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in document.headers["content-security-policy"]
    for name in ("page.js", "phone.js", "controls.js", "emulator.js", "view.js", "page.css"):
        file = await page.get(f"/page/{name}")
        assert file.status_code == 200
        known = {"if-none-match": file.headers["etag"]}
        assert (await page.get(f"/page/{name}", headers=known)).status_code == 304
    assert (await page.get("/samples/image")).headers["content-type"] == "image/png"
    for path in ("/page/app.py", "/page/", "/samples/none", "/entries/1", "/entries/x", "/nothing", "/actions"):
        assert (await page.get(path)).status_code == 404


ACTIONS = (
    {"action": "write", "person": "zoe", "text": "Hello"},
    {"action": "attach", "person": "zoe", "kind": "voice"},
    *({"action": "post", "person": "zoe", "content": content} for content in (
        "location", "contacts", "order", "button", "unsupported", "unknown")),
    {"action": "change", "person": "zoe", "what": "number"},
    {"action": "change", "person": "zoe", "what": "user_id"},
    {"action": "add", "name": "Ann"},
    {"action": "block", "person": "zoe", "blocked": True},
    {"action": "block", "person": "zoe", "blocked": False},
    {"action": "set", "identities": "username", "reads": False, "duplicates": 2, "window": "off", "pair": True},
    {"action": "set", "throughput": 80},
    {"action": "fail", "code": 131056, "times": 2},
    {"action": "retry"},
)  # fmt: skip


async def test_the_page_has_all_of_it_done(page: httpx.AsyncClient, emulator: Emulator, webhook: SmallWebhook) -> None:
    for action in ACTIONS:
        answer = await page.post("/actions", json=action)
        assert answer.status_code == 204, answer.text
    await emulator.settled()
    assert len({message["id"] for message in webhook.messages()}) == 10
    limits = emulator.limits
    assert (emulator.identities, emulator.reads, limits.window, limits.pair) == ("username", False, "off", True)
    assert (limits.throughput, emulator.network.duplicates, len(emulator.failing)) == (80, 2, 2)


async def test_messages_are_changed_and_held_back_by_the_page(
    page: httpx.AsyncClient, emulator: Emulator, bot: Bot, webhook: SmallWebhook
) -> None:
    zoe = emulator.persons[0]
    written = await emulator.write(zoe, "Hello")
    await bot.post(to=zoe.wa_id, type="interactive", interactive=choices_of("Yes"))
    [question] = await emulator.replied(zoe)
    await emulator.settled()
    webhook.bodies.clear()
    for action in (
        {"action": "hold"},
        {"action": "choose", "person": "zoe", "message": question.id, "choice": "yes"},
        {"action": "react", "person": "zoe", "message": question.id, "emoji": "🙏"},
        {"action": "edit", "person": "zoe", "message": written, "text": "Hello!"},
        {"action": "revoke", "person": "zoe", "message": written},
    ):
        assert (await page.post("/actions", json=action)).status_code == 204
    assert webhook.bodies == []
    await page.post("/actions", json={"action": "release", "order": "reversed", "batch": True})
    await emulator.settled()
    assert len(webhook.bodies) == 1
    assert [message["type"] for message in webhook.messages()] == ["revoke", "edit", "reaction", "interactive"]


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (400, {"action": "write", "person": "nobody", "text": "x"}),
        (400, {"action": "write", "person": "zoe", "text": ""}),
        (400, {"action": "write", "person": "zoe", "text": "x" * 4097}),
        (400, {"action": "write", "person": "zoe"}),
        (400, {"action": "fly"}),
        (400, {"action": "hold", "strength": 1}),
        (400, {"action": "choose", "person": "zoe", "message": "wamid.none", "choice": "x"}),
        (400, {"action": "fail", "code": 1}),
        (400, {"action": "set", "duplicates": 0}),
        (413, {"action": "write", "person": "zoe", "text": "x" * 70_000}),
    ],
)
async def test_what_cannot_be_done_is_said(status: int, action: dict[str, Any], page: httpx.AsyncClient) -> None:
    answer = await page.post("/actions", json=action)
    assert answer.status_code == status
    assert answer.json()["detail"]


async def test_actions_are_json(page: httpx.AsyncClient) -> None:
    answer = await page.post("/actions", content=b'{"action": "hold"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_changes_are_followed(page: httpx.AsyncClient, emulator: Emulator, bot: Bot) -> None:
    zoe = emulator.persons[0]
    written = await emulator.write(zoe, "Hello")
    await emulator.settled()
    async with aconnect_sse(page, "GET", "/events") as source:
        events = source.aiter_sse()

        async def next_of(name: str) -> dict[str, Any]:
            async for event in events:
                if event.event == name:
                    found: dict[str, Any] = json.decode(event.data)
                    return found
            raise AssertionError(f"the stream has ended without {name}")

        state = await next_of("state")
        assert [person["key"] for person in state["persons"]] == ["zoe", "luis"]
        assert state["network"]["webhook"]["state"] == "ready"
        first = await next_of("bubble")
        assert (first["person"], first["bubble"]["id"], first["bubble"]["ticks"]) == ("zoe", written, "received")
        entry = await next_of("entry")
        assert (entry["what"], entry["status"]) == ("text", 200)
        assert "body" not in entry, "it is fetched when it is looked at"
        assert (await page.get(f"/entries/{entry['number']}")).json()["object"] == "whatsapp_business_account"
        await bot.post(status="read", message_id=written, typing_indicator={"type": "text"})
        assert await next_of("typing") == {"person": "zoe", "typing": True}
        await bot.say(zoe.wa_id, "Hi")
        assert (await next_of("bubble"))["bubble"]["text"] == "Hi"


def test_only_the_latest_requests_and_messages_are_remembered() -> None:
    journal = Journal(lambda _key: None)
    at = datetime(2026, 11, 2, tzinfo=UTC)
    for number in range(310):
        journal.call("text", at, b"{}", 200)
        journal.show("zoe", Bubble(id=str(number), by="bot", type="text", text="x", at=at))
    assert (len(journal.entries), min(journal.entries)) == (300, 11)
    assert (len(journal.chats["zoe"]), next(iter(journal.chats["zoe"]))) == (300, "10")
    journal.mark("1", ticks="read")
    assert journal.bubble("1") is None
