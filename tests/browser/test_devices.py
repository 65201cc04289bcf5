"""Going on with a chat on another device, by a link and by a code, and taking it back. On a server with keys."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from chatstate.model import utc_now
from tests.browser.chat import Chat, arrives, stored_turns
from tests.browser.conftest import NewDevice
from tests.http.credentials import bearer, make_key
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {
    "viewport": {"width": 360, "height": 740},
    "user_agent": "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/140.0.0.0 Mobile Safari/537.36",
}
SHUT_OUT = r"status of 401"


@dataclass
class Keyed:
    """A server with an API key and the chat page."""

    server: ServerProcess
    key: str

    @property
    def page(self) -> str:
        return f"{self.server.base_url}/demo"

    def token(self, session: str, **wanted: object) -> str:
        body = {"user_session_id": session, **wanted}
        answer = httpx.post(f"{self.server.base_url}/tokens", json=body, headers=bearer(self.key))
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token

    async def turns(self, session: str) -> list[str]:
        return await stored_turns(self.server.base_url, session, self.key)


@pytest.fixture
def keyed(sqlite_url: str, tmp_path: Path) -> Iterator[Keyed]:
    """A server with an API key that shows its page all the same."""
    key = asyncio.run(make_key(sqlite_url, utc_now()))
    with ServerProcess(sqlite_url, tmp_path, arguments=["--demo"]) as server:
        yield Keyed(server, key)


async def let_in(chat: Chat, token: str) -> None:
    await expect(chat.page.locator("#access-title")).to_be_focused()
    await chat.page.get_by_label("A session token").fill(token)
    await chat.page.get_by_role("button", name="Open", exact=True).click()


async def issue(chat: Chat) -> tuple[str, str]:
    """The address and the code of a new link."""
    await chat.page.get_by_role("button", name="Continue on your phone").click()
    code = chat.page.locator("#hand-off-code")
    await expect(code).to_have_text(_CODE)
    picture = chat.page.get_by_role("img", name="QR code of the link")
    assert await picture.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    await expect(chat.page.locator("#hand-off-local")).to_be_visible()
    return await chat.page.get_by_label("Link", exact=True).input_value(), await code.inner_text()


_CODE = re.compile(r"^[A-Z0-9]{4}-[A-Z0-9]{4}$")


async def test_a_link_moves_the_chat_to_a_phone_until_it_is_taken_back(keyed: Keyed, new_device: NewDevice) -> None:
    desktop = await (await new_device()).open(keyed.page)
    await let_in(desktop, keyed.token("anna", verbs=["read", "write"]))
    await desktop.through_the_script()
    await desktop.saved()
    assert desktop.session == "anna"
    await expect(desktop.page.get_by_role("complementary")).to_be_hidden()  # the list wants a key
    url, _ = await issue(desktop)

    phone = await (await new_device(SHUT_OUT, **PHONE)).open(url)
    await expect(phone.page.get_by_role("heading", name="Continue a chat on this device?")).to_be_focused()
    await expect(phone.page.locator("#arrival")).to_contain_text("Only go on if you yourself made this link")
    assert "#" not in phone.page.url, "it is a secret"
    assert await phone.page.evaluate("history.length") <= 2
    assert (await (await phone.page.context.request.get(url)).text()).startswith("<!doctype html>")  # as a preview does
    await expect(desktop.page.locator("#hand-off-status")).to_have_text("")  # nothing has used it up
    await phone.page.get_by_role("button", name="Continue here").first.click()
    await phone.shows("English", "Non-binary", "34", "What is the weather?")
    assert phone.session == "anna"

    await expect(desktop.page.locator("#hand-off-status")).to_contain_text("Continued on Chrome on Android at ")
    await phone.say("from the phone")
    turns = ["English", "Non-binary", "34", "What is the weather?", "from the phone"]
    await desktop.shows(*turns)
    await phone.page.reload()
    await phone.shows(*turns)

    await desktop.page.get_by_role("button", name="Take back").click()
    await expect(desktop.page.locator("#hand-off-status")).to_contain_text("Taken back")
    await desktop.page.get_by_role("button", name="Close").click()
    await desktop.say("alone again")
    await desktop.saved()
    await expect(phone.page.locator("#access-reason")).to_contain_text("This device is not let into this chat")
    await expect(phone.page.locator("#text")).to_be_hidden()
    assert "alone again" not in await phone.turns()
    assert await keyed.turns("anna") == [*turns, "alone again"]
    await phone.page.reload()
    await expect(phone.page.locator("#access")).to_be_visible()


async def test_a_code_moves_the_chat_and_works_once(keyed: Keyed, new_device: NewDevice) -> None:
    desktop = await (await new_device()).open(keyed.page)
    await let_in(desktop, keyed.token("anna", verbs=["read", "write"]))
    await desktop.say("English")
    _, code = await issue(desktop)

    phone = await (await new_device(**PHONE)).open(keyed.page)
    await phone.page.get_by_label("A code from another device").fill(code.replace("-", " ").lower())
    await phone.page.keyboard.press("Enter")
    await phone.shows("English")
    await phone.say("Female")
    await phone.saved()
    await arrives(keyed.server.base_url, "anna", ["English", "Female"], keyed.key)
    await desktop.shows("English", "Female")

    third = await (await new_device(r"status of 404 .*/links/")).open(keyed.page)
    await third.page.get_by_label("A code from another device").fill(code)
    await third.page.keyboard.press("Enter")
    await expect(third.page.locator("#code-error")).to_contain_text("This is not valid (any more)")


async def test_an_open_server_hands_over_too(server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device()
    first = await device.open(f"{server.base_url}/demo")
    await first.say("English")
    url, code = await issue(first)
    other = await new_device()
    second = await other.open(f"{server.base_url}/demo")
    await second.asks("Which language")
    await second.page.goto(url)  # only the fragment is another
    await second.page.get_by_role("button", name="No, go back").click()
    await second.asks("Which language")
    await second.shows()
    await second.page.get_by_role("button", name="Continue on your phone").click()
    await expect(second.page.locator("#hand-off-status")).to_contain_text("There is nothing to go on with yet")
    await second.page.get_by_role("button", name="I have a code").click()
    await second.page.get_by_label("A code from another device").fill(code)
    await second.page.keyboard.press("Enter")
    await second.shows("English")
    assert second.session == first.session
    await expect(first.page.locator("#hand-off-status")).to_contain_text("Continued on Chrome on Linux")


async def test_a_link_that_was_taken_back_lets_nobody_in(server: ServerProcess, new_device: NewDevice) -> None:
    first = await (await new_device()).open(f"{server.base_url}/demo")
    await first.say("English")
    url, _ = await issue(first)
    await first.page.get_by_role("button", name="Take back").click()
    await expect(first.page.locator("#hand-off-status")).to_contain_text("Taken back")
    second = await (await new_device(r"status of 404 .*/links/")).open(url)
    await second.page.get_by_role("button", name="Continue here").first.click()
    await expect(second.page.locator("#arrival-error")).to_contain_text("This is not valid (any more)")


async def test_what_is_no_token_is_told(keyed: Keyed, new_device: NewDevice) -> None:
    chat = await (await new_device(SHUT_OUT)).open(keyed.page)
    await let_in(chat, "nonsense")
    await expect(chat.page.locator("#token-error")).to_contain_text("This is no session token")
    await chat.page.get_by_label("A session token").fill(keyed.token("anna") + "x")
    await chat.page.keyboard.press("Enter")
    await expect(chat.page.locator("#access-reason")).to_contain_text("This device is not let into this chat")
