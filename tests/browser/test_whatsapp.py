"""The example bot on two channels, side by side: the chat page, and the page of an emulated phone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from chatstate.emulator import Emulator
from tests.browser.chat import Chat, eventually, stored
from tests.browser.conftest import NewDevice
from tests.crash.test_messages import ROOT, account_variables, soon
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 15_000


@pytest_asyncio.fixture(loop_scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    """A WhatsApp, whose people write to the server of the test."""
    emulator = Emulator(pause=soon)
    async with emulator.serving():
        yield emulator


@pytest_asyncio.fixture(loop_scope="module")
async def server(emulator: Emulator, store_url: str, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """`chatstate serve` with the example, on each store in turn."""
    variables = {**account_variables(emulator), "CHATSTATE_BOT": "examples.onboarding_bot:bot", "PYTHONPATH": str(ROOT)}
    with ServerProcess(store_url, tmp_path, environment=variables) as running:
        emulator.network.url = f"{running.base_url}/channels/whatsapp/webhook"
        yield running
        await emulator.network.stop()


async def asks(phone: Page, text: str) -> None:
    """Wait until this is the last that the bot has said on the phone."""
    await expect(phone.locator("#messages .bot").last).to_contain_text(text, timeout=SECONDS)


async def write(phone: Page, text: str) -> None:
    await phone.fill("#text", text)
    await phone.press("#text", "Enter")


async def linked(chat: Chat, phone: Page) -> None:
    """Go on on the phone, with the code that the page shows."""
    await chat.page.click("#whatsapp")
    code = chat.page.locator("#whatsapp-code")
    await expect(code).not_to_be_empty()
    await write(phone, (await code.text_content()) or "")
    await expect(chat.page.locator("#whatsapp-status")).to_contain_text("Linked", timeout=SECONDS)
    await chat.page.keyboard.press("Escape")


async def test_begun_on_the_web_continued_on_whatsapp_finished_on_the_web(
    server: ServerProcess, emulator: Emulator, new_device: NewDevice
) -> None:
    browser, pocket = await new_device(), await new_device()
    chat = await browser.open(f"{server.base_url}/demo")
    phone = (await pocket.open(f"{emulator.url}/")).page
    await chat.choose("Hello")
    await chat.asks("Which language do you speak?")
    await chat.choose("English")
    await chat.asks("How would you describe your gender?")

    await linked(chat, phone)
    await asks(phone, "How would you describe your gender?")
    await phone.get_by_role("button", name="Options").last.click()
    await phone.get_by_role("button", name="Non-binary").click()
    await asks(phone, "And how old are you?")
    await write(phone, "a hundred")
    await asks(phone, "Please type a number")
    await write(phone, "34")
    await asks(phone, "What would you like to ask?")
    await chat.shows("Hello", "English", "Non-binary", "a hundred", "34")

    await chat.asks("What would you like to ask?")
    await chat.say("Where am I?")
    await chat.asks("is a good question")
    state = await stored(server.base_url, chat.session)
    answers = {"language": "en", "gender": "Non-binary", "age": 34, "question": "Where am I?"}
    assert state["answers"] == answers
    assert "16505551234" not in str(state)
    assert len({entry["id"] for entry in state["messages"]}) == len(state["messages"]) == 12


async def test_who_unlinks_on_the_phone_is_alone_there_again(
    server: ServerProcess, emulator: Emulator, new_device: NewDevice
) -> None:
    browser, pocket = await new_device(), await new_device()
    chat = await browser.open(f"{server.base_url}/demo")
    phone = (await pocket.open(f"{emulator.url}/")).page
    await chat.choose("Hello")
    await chat.asks("Which language do you speak?")
    await linked(chat, phone)
    await asks(phone, "Which language do you speak?")
    await phone.get_by_role("button", name="Deutsch").last.click()
    await asks(phone, "Wie beschreiben Sie Ihr Geschlecht?")
    await write(phone, "UNLINK")
    await asks(phone, "nobody else sees what you write here now")
    await write(phone, "Hi")
    await asks(phone, "Which language do you speak?")

    async def is_left_alone() -> bool:
        state = await stored(server.base_url, chat.session)
        return [entry["text"] for entry in state["messages"] if entry["role"] == "user"] == ["Hello", "Deutsch"]

    await eventually(is_left_alone)
