"""The chat page in a browser: what is typed arrives, whatever happens to pages, windows, networks and servers."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import expect

from tests.browser.chat import OFFLINE, arrives, eventually, stored, stored_turns
from tests.browser.conftest import NewDevice
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_refreshing_keeps_the_place_at_each_step(server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{server.base_url}/")
    await chat.asks("Which language do you speak?")
    session = chat.session
    said: list[str] = []
    for text, step, question in [
        ("Deutsch", "gender", "Wie beschreiben Sie Ihr Geschlecht?"),
        ("Keine Angabe", "age", "wie alt sind Sie?"),
        ("hundert", "age", "Das habe ich nicht verstanden."),
        ("34", "question", "Was möchten Sie fragen?"),
        ("Wie wird das Wetter?", "chat", "ist eine gute Frage"),
        ("Was wird gespeichert?", "chat", "als ein JSON-Dokument"),
        ("Danke!", "chat", "Das habe ich notiert."),
    ]:
        await chat.say(text)
        said.append(text)
        await chat.saved()
        await chat.page.reload()
        await chat.shows(*said)
        await chat.asks(question)
        assert chat.session == session
        assert (await stored(server.base_url, session))["currentStep"] == step
    state = await stored(server.base_url, session)
    answers = {"language": "de", "gender": "Keine Angabe", "age": 34, "question": "Wie wird das Wetter?"}
    assert state["answers"] == answers
    assert await stored_turns(server.base_url, session) == said


async def test_a_new_window_without_the_address_finds_the_chat_again(
    server: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device()
    first = await device.open(f"{server.base_url}/demo")
    await first.say("English")
    await first.saved()
    await first.page.close()
    again = await device.open(f"{server.base_url}/demo")
    await again.shows("English")
    before = again.session
    await again.page.click("#new-chat")
    await again.shows()
    await again.say("Español")
    await again.asks("género")
    await again.saved()
    assert again.session != before
    await again.page.get_by_role("button", name=before).click()
    await again.shows("English")


@pytest.mark.parametrize("devices", [1, 2], ids=["two windows", "two devices"])
async def test_each_follows_the_other_live(server: ServerProcess, new_device: NewDevice, devices: int) -> None:
    one = await new_device()
    other = one if devices == 1 else await new_device()
    first = await one.open(f"{server.base_url}/demo")
    await first.say("English")
    await first.saved()
    second = await other.open(first.page.url)
    await second.shows("English")
    said = ["English"]
    for number in range(4):
        writer, reader = (first, second) if number % 2 else (second, first)
        said.append(f"turn {number}")
        await writer.say(said[-1])
        await reader.shows(*said)
    await first.saved()
    await second.saved()
    assert await stored_turns(server.base_url, first.session) == said


async def test_20_turns_that_were_typed_offline_arrive(server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    before = await chat.turns()
    await device.context.set_offline(True)
    typed = [f"offline {number}" for number in range(20)]
    for text in typed:
        await chat.say(text)
    await chat.shows(*before, *typed)
    await chat.sign("offline")
    await expect(chat.page.locator("#sign")).to_have_text("Offline – kept on this device, sent later")
    assert await stored_turns(server.base_url, chat.session) == before
    await device.context.set_offline(False)
    await chat.saved()
    assert await stored_turns(server.base_url, chat.session) == [*before, *typed]


async def test_what_was_typed_offline_survives_the_tab(server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE, "status of 503")
    chat = await device.open(f"{server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    before = await chat.turns()
    await asyncio.to_thread(server.kill)  # a browser that was told to be offline is online when its page closes
    typed = [f"offline {number}" for number in range(5)]
    for text in typed:
        await chat.say(text)
    await chat.sign("offline")
    session = chat.session
    await chat.page.close()
    await asyncio.to_thread(server.restart)
    assert await stored_turns(server.base_url, session) == before
    again = await device.open(f"{server.base_url}/demo")
    await again.shows(*before, *typed)
    await again.saved()
    assert await stored_turns(server.base_url, session) == [*before, *typed]


async def test_a_server_that_is_killed_while_somebody_types_loses_nothing(
    server: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device(OFFLINE, "status of 503")
    chat = await device.open(f"{server.base_url}/demo")
    await chat.through_the_script()
    typed = await chat.turns()
    for number in range(24):
        typed.append(f"turn {number}")
        await chat.say(typed[-1])
        if number % 8 == 3:
            await eventually(lambda: typed[-4] in device.acknowledged)
            acknowledged = set(device.acknowledged)
            await asyncio.to_thread(server.kill)
        if number % 8 == 6:
            await asyncio.to_thread(server.restart)
            assert acknowledged <= set(await stored_turns(server.base_url, chat.session))
    await chat.shows(*typed)
    await chat.saved()
    assert await stored_turns(server.base_url, chat.session) == typed


@pytest.mark.parametrize("closed", [0, 1], ids=["the first is closed", "the second is closed"])
async def test_of_two_windows_the_one_that_stays_saves_what_both_had(
    server: ServerProcess, new_device: NewDevice, closed: int
) -> None:
    """Of the windows of one browser, one talks to the server for all."""
    device = await new_device(OFFLINE, "status of 503")
    first = await device.open(f"{server.base_url}/demo")
    await first.through_the_script()
    await first.saved()
    before = await first.turns()
    second = await device.open(first.page.url)
    await second.shows(*before)
    await asyncio.to_thread(server.kill)
    await first.say("in the first")
    await second.shows(*before, "in the first")
    await second.say("in the second")
    await first.shows(*before, "in the first", "in the second")
    await second.sign("offline")
    windows = [first, second]
    await windows.pop(closed).page.close()
    await asyncio.to_thread(server.restart)
    await windows[0].saved()
    await windows[0].shows(*before, "in the first", "in the second")
    assert await stored_turns(server.base_url, windows[0].session) == [*before, "in the first", "in the second"]


async def test_the_sign_says_that_the_server_is_gone_before_anything_is_typed(
    server: ServerProcess, new_device: NewDevice
) -> None:
    chat = await (await new_device(OFFLINE, "status of 503")).open(f"{server.base_url}/demo")
    await chat.say("English")
    await chat.saved()
    await asyncio.to_thread(server.kill)
    await chat.sign("offline")
    await asyncio.to_thread(server.restart)
    await chat.saved()


async def test_two_windows_that_were_both_offline_are_united(server: ServerProcess, new_device: NewDevice) -> None:
    one, other = await new_device(OFFLINE), await new_device(OFFLINE)
    first = await one.open(f"{server.base_url}/demo")
    await first.through_the_script()
    await first.saved()
    before = await first.turns()
    second = await other.open(first.page.url)
    await second.shows(*before)
    for device in (one, other):
        await device.context.set_offline(True)
    mine = [f"mine {number}" for number in range(5)]
    theirs = [f"theirs {number}" for number in range(5)]
    for text in mine:
        await first.say(text)
    for text in theirs:
        await second.say(text)
    await first.sign("offline")
    await second.sign("offline")
    await one.context.set_offline(False)
    await first.saved()
    await other.context.set_offline(False)
    await second.saved()
    await second.shows(*before, *mine, *theirs)
    await first.shows(*before, *mine, *theirs)
    assert await stored_turns(server.base_url, first.session) == [*before, *mine, *theirs]


async def test_two_devices_that_begin_the_same_chat_offline_are_united(
    server: ServerProcess, new_device: NewDevice
) -> None:
    """Both answer the same questions, so each has the bot's next one; it is there once, and both answers are."""
    one, other = await new_device(OFFLINE), await new_device(OFFLINE)
    first = await one.open(f"{server.base_url}/demo")
    second = await other.open(first.page.url)
    await first.asks("Which language")
    await second.asks("Which language")
    for device in (one, other):
        await device.context.set_offline(True)
    await first.say("English")
    await first.say("Female")
    await second.say("Deutsch")
    await first.sign("offline")
    await second.sign("offline")
    await one.context.set_offline(False)
    await first.saved()
    await other.context.set_offline(False)
    await second.saved()
    await first.shows("English", "Female", "Deutsch")
    assert await stored_turns(server.base_url, first.session) == ["English", "Female", "Deutsch"]
    await second.say("34")
    await second.saved()
    assert (await stored(server.base_url, first.session))["currentStep"] == "question"


async def test_what_was_typed_just_before_the_tab_was_closed_is_there(
    server: ServerProcess, new_device: NewDevice
) -> None:
    chat = await (await new_device()).open(f"{server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    session, before = chat.session, await chat.turns()
    await chat.say("the last words")
    await chat.page.close()
    await arrives(server.base_url, session, [*before, "the last words"])


async def test_leaving_for_another_chat_at_once_sends_what_was_typed(
    server: ServerProcess, new_device: NewDevice
) -> None:
    chat = await (await new_device()).open(f"{server.base_url}/demo")
    await chat.say("English")
    session = chat.session
    await chat.page.click("#new-chat")
    await chat.shows()
    await arrives(server.base_url, session, ["English"])


async def test_a_full_storage_is_told(server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    before = await chat.turns()
    await chat.page.evaluate(FILL_THE_STORAGE)
    await chat.say("no room")
    await chat.sign("error")
    await expect(chat.page.locator("#sign")).to_contain_text("storage is full")
    await arrives(server.base_url, chat.session, [*before, "no room"])
    await device.context.set_offline(True)
    async with chat.page.expect_event("requestfailed", lambda request: request.method == "PATCH"):
        await chat.say("still no room")
    await expect(chat.page.locator("#sessions-note")).to_contain_text("does not answer")
    await expect(chat.page.locator("#sign")).to_contain_text("Not kept on this device")
    await expect(chat.page.locator("#announcement")).to_contain_text("Not kept on this device")
    await chat.page.evaluate("localStorage.removeItem('filler')")
    await device.context.set_offline(False)
    await chat.say("room again")
    await chat.saved()
    turns = [*before, "no room", "still no room", "room again"]
    assert await stored_turns(server.base_url, chat.session) == turns


FILL_THE_STORAGE = """() => {
  let filler = "";
  for (let size = 1 << 22; size >= 1; ) {
    try {
      localStorage.setItem("filler", filler + "x".repeat(size));
      filler += "x".repeat(size);
    } catch {
      size >>= 1;
    }
  }
}"""
