"""The Graph API takes what the real one takes, and refuses the rest with the errors that the real one has."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec import json

from chatstate.emulator import Emulator, GraphError, Limits
from chatstate.emulator.graph import Meter, Outgoing, ReadMark, parse
from tests.emulator.conftest import ACCOUNT, MESSAGES, Bot, SettableClock, client_of
from tests.emulator.webhooks import SmallWebhook

ZOE = "16505551234"
TEXT = {"messaging_product": "whatsapp", "to": ZOE, "type": "text", "text": {"body": "Hi"}}


def interactive(**content: Any) -> dict[str, Any]:
    return {**TEXT, "type": "interactive", "interactive": {"body": {"text": "Choose"}, **content}}


def buttons(*titles: str, **content: Any) -> dict[str, Any]:
    replies = [
        {"type": "reply", "reply": {"id": f"id-{number}", "title": title}} for number, title in enumerate(titles)
    ]
    return interactive(type="button", action={"buttons": replies}, **content)


def rows(count: int, **row: str) -> list[dict[str, str]]:
    return [{"id": f"row-{number}", "title": "A row", **row} for number in range(count)]


def listed(*sections: dict[str, Any], button: str = "Show", **content: Any) -> dict[str, Any]:
    return interactive(type="list", action={"button": button, "sections": list(sections)}, **content)


def media(kind: str, **content: Any) -> dict[str, Any]:
    return {**TEXT, "type": kind, kind: content}


def refusal(request: object) -> GraphError:
    with pytest.raises(GraphError) as refused:
        parse(json.encode(request))
    return refused.value


# --- What is taken ----------------------------------------------------------------------------------------------------

LINK = "https://example.org/file"


@pytest.mark.parametrize(
    "request_body",
    [
        TEXT,
        {**TEXT, "text": {"body": "x" * 4096}},
        {**TEXT, "to": "+1 (650) 555-1234", "recipient_type": "individual"},
        {**TEXT, "context": {"message_id": "wamid.A"}},
        buttons("x" * 20),
        buttons("A", "B", "C", header={"type": "text", "text": "x" * 60}, footer={"text": "x" * 60}),
        buttons("A", body={"text": "x" * 1024}),
        listed({"rows": rows(10, title="x" * 24, description="x" * 72)}),
        listed({"title": "x" * 24, "rows": rows(1)}, {"title": "B", "rows": [{"id": "b", "title": "B"}]}),
        listed({"rows": rows(1)}, button="x" * 20, body={"text": "x" * 4096}),
        media("image", link=LINK, caption="x" * 1024),
        media("video", link=LINK),
        media("document", link=LINK, filename="a.pdf", caption="A"),
        media("audio", link=LINK),
        media("sticker", link=LINK),
    ],
)
def test_what_is_within_the_limits_is_taken(request_body: dict[str, Any]) -> None:
    taken = parse(json.encode(request_body))
    assert isinstance(taken, Outgoing)
    assert (taken.recipient.by, taken.recipient.value) == ("number", ZOE)


def test_what_can_be_tapped_is_told_apart() -> None:
    tapped = parse(json.encode(buttons("Yes", "No")))
    assert isinstance(tapped, Outgoing)
    assert (tapped.button, [(choice.id, choice.title) for choice in tapped.choices]) == (
        "",
        [("id-0", "Yes"), ("id-1", "No")],
    )
    opened = parse(json.encode(listed({"rows": rows(2, description="More")})))
    assert isinstance(opened, Outgoing)
    assert (opened.button, opened.choices[1]) == ("Show", ("row-1", "A row", "More"))


def test_a_person_is_addressed_by_number_or_by_user_id_and_the_number_goes_first() -> None:
    by_id = {name: value for name, value in TEXT.items() if name != "to"} | {"recipient": "US.1234"}
    both = {**TEXT, "recipient": "US.1234"}
    parent = {**by_id, "recipient": "US.ENT.1234"}
    taken = [parse(json.encode(request)) for request in (by_id, both, parent)]
    assert [(sent.recipient.by, sent.recipient.value) for sent in taken if isinstance(sent, Outgoing)] == [
        ("user_id", "US.1234"),
        ("number", ZOE),
        ("user_id", "US.ENT.1234"),
    ]


def test_a_read_mark_may_show_that_the_bot_is_typing() -> None:
    mark = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.A"}
    assert parse(json.encode(mark)) == ReadMark("wamid.A")
    assert parse(json.encode({**mark, "typing_indicator": {"type": "text"}})) == ReadMark("wamid.A", typing=True)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "request_body"),
    [
        (100, []),
        (100, {}),
        (100, {**TEXT, "messaging_product": "messenger"}),
        (100, {**TEXT, "to": ""}),
        (100, {**TEXT, "recipient_type": "business_scoped_user_id"}),
        (100, {**TEXT, "text": {"body": ""}}),
        (100, {**TEXT, "text": {"body": "x" * 4097}}),
        (100, {"messaging_product": "whatsapp", "status": "read"}),
        (100, {"messaging_product": "whatsapp", "status": "seen", "message_id": "wamid.A"}),
        (131009, {"messaging_product": "whatsapp", "status": "read", "message_id": "a", "typing_indicator": {}}),
        (131009, {**TEXT, "to": "nobody"}),
        (131009, {"messaging_product": "whatsapp", "recipient": "1234", "type": "text", "text": {"body": "x"}}),
        (131008, {**TEXT, "type": "image"}),
        (131051, {**TEXT, "type": "template", "template": {}}),
        (131009, interactive(type="flow", action={})),
        (131008, interactive(type="button")),
        (131009, buttons()),
        (131009, buttons("A", "B", "C", "D")),
        (131009, buttons("x" * 21)),
        (131009, buttons("")),
        (131009, buttons("A", "A")),
        (131009, buttons("A", body={"text": "x" * 1025})),
        (131009, buttons("A", body={"text": ""})),
        (131009, buttons("A", body=None)),
        (131009, buttons("A", footer={"text": "x" * 61})),
        (131009, buttons("A", header={"type": "image", "image": {"link": LINK}})),
        (131009, interactive(type="button", action={"buttons": [{"type": "url", "title": "A"}]})),
        (131009, interactive(type="button", action={"buttons": [{"type": "reply", "reply": {"title": "A"}}]})),
        (131009, listed()),
        (131009, listed({"rows": []})),
        (131009, listed({"rows": rows(11)})),
        (131009, listed({"title": "A", "rows": rows(6)}, {"title": "B", "rows": rows(5, id="x")})),
        (131009, listed({"rows": rows(1)}, {"title": "B", "rows": [{"id": "b", "title": "B"}]})),
        (131009, listed({"title": "x" * 25, "rows": rows(1)})),
        (131009, listed({"rows": rows(1, title="x" * 25)})),
        (131009, listed({"rows": rows(1, description="x" * 73)})),
        (131009, listed({"rows": rows(1, id="x" * 201)})),
        (131009, listed({"rows": rows(2, id="same")})),
        (131009, listed({"rows": rows(1)}, button="x" * 21)),
        (131009, listed({"rows": rows(1)}, body={"text": "x" * 4097})),
        (131009, listed({"rows": "none"})),
        (131008, media("image")),
        (131008, media("image", link=LINK, id="1")),
        (131009, media("image", id="1")),
        (131009, media("image", link="file:///etc/passwd")),
        (131009, media("image", link=LINK, caption="x" * 1025)),
        (131009, media("audio", link=LINK, caption="x")),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_code(code: int, request_body: object) -> None:
    error = refusal(request_body)
    assert (error.code, error.status) == (code, 400)
    told = json.decode(error.body())["error"]
    assert told["code"] == code
    assert told["type"] == "OAuthException"
    assert told["message"].startswith(f"(#{code}) ")
    assert told["fbtrace_id"]
    if code != 100:
        assert told["error_data"] == {"messaging_product": "whatsapp", "details": error.details}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'"text"', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(GraphError) as refused:
        parse(body)
    assert refused.value.code == 100


# --- How much ---------------------------------------------------------------------------------------------------------


def take(meter: Meter, clock: SettableClock, limits: Limits, person: str = "ann") -> int:
    """0, or the code of the refusal."""
    try:
        meter.count(person, clock(), limits)
    except GraphError as error:
        return error.code
    return 0


def test_one_person_may_be_sent_a_burst_and_then_has_to_be_left_alone() -> None:
    meter, clock, limits = Meter(), SettableClock(), Limits(pair=True)
    assert [take(meter, clock, limits) for _ in range(46)] == [0] * 45 + [131056]
    assert take(meter, clock, limits, "ben") == 0, "others can be written to"
    clock.advance(seconds=45 * 6 - 1)
    assert take(meter, clock, limits) == 131056
    clock.advance(seconds=1)
    assert take(meter, clock, limits) == 0


def test_a_burst_lasts_six_seconds_and_what_it_borrowed_must_pass() -> None:
    meter, clock, limits = Meter(), SettableClock(), Limits(pair=True)
    assert [take(meter, clock, limits) for _ in range(3)] == [0, 0, 0]
    clock.advance(seconds=6)
    assert take(meter, clock, limits) == 131056
    clock.advance(seconds=12)
    assert take(meter, clock, limits) == 0


def test_one_message_each_six_seconds_is_always_taken() -> None:
    meter, clock, limits = Meter(), SettableClock(), Limits(pair=True)
    for _ in range(50):
        assert take(meter, clock, limits) == 0
        clock.advance(seconds=6)


def test_all_sends_together_have_a_limit_each_second() -> None:
    meter, clock, limits = Meter(), SettableClock(), Limits(throughput=2)
    assert [take(meter, clock, limits, str(number)) for number in range(3)] == [0, 0, 130429]
    clock.advance(seconds=1)
    assert take(meter, clock, limits) == 0


def test_without_limits_there_are_none() -> None:
    meter, clock = Meter(), SettableClock()
    assert {take(meter, clock, Limits()) for _ in range(200)} == {0}


# --- Over HTTP --------------------------------------------------------------------------------------------------------


async def test_an_accepted_send_is_answered_as_by_meta(emulator: Emulator, bot: Bot) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    by_number = (await bot.say(f"+{ZOE}", "Hi")).json()
    assert by_number == {
        "messaging_product": "whatsapp",
        "contacts": [{"input": f"+{ZOE}", "wa_id": ZOE}],
        "messages": [{"id": emulator.sent[0].id}],
    }
    by_id = (await bot.post(recipient=zoe.user_id, type="text", text={"body": "Hi"})).json()
    assert by_id["contacts"] == [{"input": zoe.user_id, "user_id": zoe.user_id}]
    assert [sent.person for sent in emulator.sent] == [zoe, zoe]


async def test_the_version_may_be_any_and_may_be_left_out(emulator: Emulator, bot: Bot) -> None:
    await emulator.write(emulator.persons[0], "Hello")
    for path in (MESSAGES, MESSAGES.replace("v26", "v19"), MESSAGES.removeprefix("/v26.0")):
        assert (await bot.client.post(path, json=TEXT)).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [({}, 104), ({"authorization": "Bearer"}, 104), ({"authorization": "Bearer wrong"}, 190),
     ({"authorization": f"Basic {ACCOUNT.access_token}"}, 104)],
)  # fmt: skip
async def test_nothing_goes_without_the_access_token(header: dict[str, str], code: int, emulator: Emulator) -> None:
    async with client_of(emulator, header) as client:
        for answer in (await client.post(MESSAGES, json=TEXT), await client.get("/v26.0/900000000000001")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    assert emulator.sent == []


async def test_another_phone_number_id_is_not_known(emulator: Emulator, bot: Bot) -> None:
    answer = await bot.client.post("/v26.0/1/messages", json=TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 100)


async def test_statuses_follow_a_send(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    await bot.say(ZOE, "Hi")
    await emulator.settled()
    assert [(told["id"], told["status"]) for told in webhook.statuses()] == [
        (emulator.sent[0].id, state) for state in ("sent", "delivered", "read")
    ]
    emulator.reads = False
    await bot.say(ZOE, "Hi")
    await emulator.settled()
    assert [told["status"] for told in webhook.statuses()][3:] == ["sent", "delivered"]


async def test_after_24_hours_a_send_is_refused(emulator: Emulator, bot: Bot, clock: SettableClock) -> None:
    assert (await bot.say(ZOE, "Hi")).json()["error"]["code"] == 131047, "they have never written"
    await emulator.write(emulator.persons[0], "Hello")
    clock.advance(seconds=timedelta(hours=24).total_seconds() - 1)
    assert (await bot.say(ZOE, "Hi")).status_code == 200
    clock.advance(seconds=1)
    late = await bot.say(ZOE, "Hi")
    assert (late.status_code, late.json()["error"]["code"]) == (400, 131047)
    assert "24 hours" in late.json()["error"]["error_data"]["details"]
    emulator.limits.window = "off"
    assert (await bot.say(ZOE, "Hi")).status_code == 200


async def test_or_it_is_taken_and_fails(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    emulator.limits.window = "fail"
    assert (await bot.say(ZOE, "Hi")).status_code == 200
    await emulator.settled()
    [told] = webhook.statuses()
    assert (told["status"], told["errors"][0]["code"]) == ("failed", 131047)
    assert emulator.journal.chats.get("zoe", {}) == {}, "the person has got nothing"


async def test_to_nobody_it_is_taken_and_fails(emulator: Emulator, bot: Bot, webhook: SmallWebhook) -> None:
    assert (await bot.say("15559999999", "Hi")).status_code == 200
    await emulator.settled()
    [told] = webhook.statuses()
    assert (told["recipient_id"], told["status"], told["errors"][0]["code"]) == ("15559999999", "failed", 131026)


async def test_a_user_id_in_the_place_of_a_number_is_taken_and_lost(
    emulator: Emulator, bot: Bot, webhook: SmallWebhook
) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    answer = await bot.say(zoe.user_id, "Hi")
    assert answer.json()["contacts"] == [{"input": zoe.user_id, "wa_id": zoe.user_id.removeprefix("US.")}]
    await emulator.settled()
    assert list(webhook.statuses()) == []
    assert emulator.to(zoe) == []
    assert "`recipient`" in list(emulator.journal.entries.values())[-1].problem


async def test_read_marks_are_kept_and_seen_by_the_person(emulator: Emulator, bot: Bot) -> None:
    zoe = emulator.persons[0]
    first, second = await emulator.write(zoe, "1"), await emulator.write(zoe, "2")
    await emulator.write(zoe, "3")
    await emulator.settled()
    answer = await bot.post(status="read", message_id=second, typing_indicator={"type": "text"})
    assert answer.json() == {"success": True}
    assert emulator.read_marks == [second]
    assert [bubble.ticks for bubble in emulator.journal.chats["zoe"].values()] == ["read", "read", "received"]
    assert emulator.typing == {"zoe"}
    await bot.say(ZOE, "Hi")
    assert emulator.typing == set()
    assert (await bot.post(status="read", message_id="wamid.none")).json()["error"]["code"] == 131009
    assert first not in emulator.read_marks


async def test_a_message_that_is_not_shown_can_be_marked_as_read(emulator: Emulator, bot: Bot) -> None:
    reaction = await emulator.react(emulator.persons[0], "wamid.none", "👍")
    await emulator.settled()
    assert (await bot.post(status="read", message_id=reaction)).json() == {"success": True}


async def test_files_are_found_by_their_id_and_fetched_with_the_token(
    emulator: Emulator, bot: Bot, webhook: SmallWebhook
) -> None:
    await emulator.attach(emulator.persons[0], "document", "Read this")
    await emulator.settled()
    [message] = webhook.messages()
    document = message["document"]
    assert (document["caption"], document["mime_type"]) == ("Read this", "application/pdf")
    described = (await bot.client.get(f"/v26.0/{document['id']}")).json()
    assert described.keys() == {"messaging_product", "url", "mime_type", "sha256", "file_size", "id"}
    file = await bot.client.get(described["url"])
    assert (file.headers["content-type"], len(file.content)) == ("application/pdf", described["file_size"])
    async with client_of(emulator) as stranger:
        assert (await stranger.get(described["url"])).status_code == 401
    assert (await bot.client.get("/v26.0/1")).json()["error"]["code"] == 100


async def test_sends_can_be_made_to_fail(emulator: Emulator, bot: Bot) -> None:
    await emulator.write(emulator.persons[0], "Hello")
    emulator.fail_sends(131056, 2, retry_after=30)
    for _ in range(2):
        failed = await bot.say(ZOE, "Hi")
        assert (failed.status_code, failed.headers["retry-after"]) == (429, "30")
        assert failed.json()["error"]["message"] == (
            "(#131056) (Business Account, Consumer Account) pair rate limit hit"
        )
    assert (await bot.say(ZOE, "Hi")).status_code == 200
    emulator.fail_sends(GraphError(131000, "Whatever", status=502))
    assert (await bot.say(ZOE, "Hi")).status_code == 502
    assert len(emulator.sent) == 1
    emulator.fail_sends(131016, 5)
    emulator.stop_failing()
    assert (await bot.say(ZOE, "Hi")).status_code == 200


async def test_an_answer_can_be_lost_though_the_message_was_sent(emulator: Emulator, bot: Bot) -> None:
    zoe = emulator.persons[0]
    await emulator.write(zoe, "Hello")
    emulator.fail_sends(131016, accepted=True)
    assert (await bot.say(ZOE, "Hi")).status_code == 503
    assert [sent.text for sent in emulator.to(zoe)] == ["Hi"]


async def test_the_limits_hold_over_http(emulator: Emulator, bot: Bot) -> None:
    await emulator.write(emulator.persons[0], "Hello")
    emulator.limits.throughput = 1
    assert [(await bot.say(ZOE, "Hi")).status_code for _ in range(2)] == [200, 429]
