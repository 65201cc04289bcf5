"""The chat page as a person uses it, and what the server has of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx
from msgspec import json
from playwright.async_api import BrowserContext, ConsoleMessage, Page, expect

SECONDS = 15.0

_ALWAYS_EXPECTED = (
    r"status of 404 .* http://[\d.:]+/chat-state-sessions/[^/]+$",  # a chat that is new
    r"status of 412 .* http://[\d.:]+/chat-state-sessions(/[^/]+)?$",  # somebody else was first
)

OFFLINE = r"net::ERR_"
"""What the console says when there is no network, or no server."""

_RECORDS_WHAT_IS_SAVED = """
addEventListener("DOMContentLoaded", () => {
  const sign = document.getElementById("sign");
  if (!sign) return;
  new MutationObserver(() => {
    if (sign.dataset.sign !== "saved") return;
    acknowledged([...document.querySelectorAll("#messages .user p")].map((text) => text.textContent));
  }).observe(sign, { attributes: true });
});
"""


class Device:
    """A browser with its own storage.

    errors        what its pages have complained of, and should not have
    acknowledged  the turns that a page has shown while it said that all was saved
    """

    def __init__(self, context: BrowserContext, expected: Sequence[str]) -> None:
        self.context = context
        self.errors: list[str] = []
        self.acknowledged: set[str] = set()
        self._expected = [re.compile(pattern) for pattern in (*_ALWAYS_EXPECTED, *expected)]

    @classmethod
    async def of(cls, context: BrowserContext, expected: Sequence[str] = ()) -> Self:
        device = cls(context, expected)
        await context.expose_function("acknowledged", device._acknowledge)
        await context.add_init_script(_RECORDS_WHAT_IS_SAVED)
        context.on("console", device._heard)
        context.on("weberror", lambda error: device.errors.append(str(error.error)))
        return device

    def _acknowledge(self, turns: list[str]) -> None:
        self.acknowledged.update(turns)

    def _heard(self, message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location['url']}"
        if message.type in ("error", "warning") and not any(known.search(text) for known in self._expected):
            self.errors.append(text)

    async def open(self, url: str) -> Chat:
        """A new window."""
        page = await self.context.new_page()
        await page.goto(url)
        return Chat(page)


class Chat:
    """A window with the chat page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @property
    def session(self) -> str:
        """The id of the session that is shown."""
        return parse_qs(urlsplit(self.page.url).query)["session"][0]

    async def say(self, text: str) -> None:
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def choose(self, choice: str) -> None:
        await self.page.get_by_role("button", name=choice, exact=True).click()

    async def sign(self, sign: str) -> None:
        """Wait until the page says that this is how things stand."""
        await expect(self.page.locator("#sign")).to_have_attribute("data-sign", sign, timeout=SECONDS * 1000)

    async def saved(self) -> None:
        await self.sign("saved")

    async def shows(self, *texts: str) -> None:
        """Wait until the page shows these messages of the person, and no others."""
        turns = self.page.locator("#messages .user p")
        await expect(turns).to_have_text(list(texts), timeout=SECONDS * 1000)

    async def asks(self, text: str) -> None:
        """Wait until this is the last that the bot has said."""
        await expect(self.page.locator("#messages .bot p").last).to_contain_text(text, timeout=SECONDS * 1000)

    async def turns(self) -> list[str]:
        return await self.page.locator("#messages .user p").all_text_contents()

    async def through_the_script(self) -> None:
        """Answer everything up to the free chat."""
        await self.choose("English")
        await self.choose("Non-binary")
        await self.say("34")
        await self.say("What is the weather?")
        await self.asks("is a good question")


async def stored(base_url: str, session: str, token: str = "") -> Any:
    """The state that the server has; None without one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers) as client:
        answer = await client.get(f"/chat-state-sessions/{session}")
    if answer.status_code == 404:
        return None
    assert answer.status_code == 200, answer.text
    return json.decode(answer.json()["chat_state"])


async def stored_turns(base_url: str, session: str, token: str = "") -> list[str]:
    """What the person has said, as the server has it."""
    state = await stored(base_url, session, token)
    messages = state["messages"] if state else []
    ids = [message["id"] for message in messages]
    assert len(ids) == len(set(ids)), "a message is there twice"
    return [message["text"] for message in messages if message["role"] == "user"]


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = SECONDS) -> None:
    """Wait until the condition, which may be asynchronous, holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert loop.time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)


async def arrives(base_url: str, session: str, turns: Sequence[str], token: str = "") -> None:
    """Wait until the server has exactly these turns."""

    async def is_there() -> bool:
        return await stored_turns(base_url, session, token) == list(turns)

    await eventually(is_there)
