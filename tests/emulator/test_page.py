"""The page in a real Chromium: a person writes on it, a bot answers, and a developer disturbs both."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from chatstate.emulator import Emulator
from tests.emulator.conftest import ACCOUNT, Bot, at_once, client_of
from tests.emulator.webhooks import SmallWebhook

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECKS = (Path(__file__).parents[1] / "browser" / "checks.js").read_text()
SECONDS = 15_000


class Scene(NamedTuple):
    emulator: Emulator
    webhook: SmallWebhook
    bot: Bot
    context: BrowserContext
    page: Page

    async def open(self, address: str = "/") -> Page:
        await self.page.goto(f"{self.emulator.url}{address}")
        await expect(self.page.locator("#persons button")).not_to_have_count(0)
        return self.page

    async def ask(self) -> None:
        """The bot asks Zoë with buttons."""
        replies = [{"type": "reply", "reply": {"id": title, "title": title}} for title in ("English", "Deutsch")]
        question = {"type": "button", "body": {"text": "Which language?"}, "action": {"buttons": replies}}
        answer = await self.bot.post(to="16505551234", type="interactive", interactive=question)
        assert answer.status_code == 200, answer.text


@pytest_asyncio.fixture(loop_scope="module")
async def scene(browser: Browser) -> AsyncIterator[Scene]:
    """An emulator, its webhook, a bot that the test plays, and a window. The console must stay empty."""
    errors: list[str] = []
    context = await browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(SECONDS)
    context.on("console", lambda said: errors.append(said.text))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    async with SmallWebhook(ACCOUNT).listening() as webhook:
        emulator = Emulator(webhook.url, pause=at_once, watching=True)
        headers = {"authorization": f"Bearer {ACCOUNT.access_token}"}
        async with emulator.serving(), client_of(emulator, headers) as client:
            yield Scene(emulator, webhook, Bot(client), context, await context.new_page())
            await context.close()
    assert errors == []


async def test_a_conversation_by_keyboard(scene: Scene) -> None:
    page, emulator = await scene.open("/?text=LINK%20one&person=zoe"), scene.emulator
    await expect(page.locator("#sign")).to_have_attribute("data-sign", "ready")
    await expect(page.locator("#text")).to_have_value("LINK one")
    assert list(scene.webhook.messages()) == [], "it is written, and not sent"
    await page.keyboard.press("Enter")
    await expect(page.locator("#messages .mine")).to_contain_text("LINK one")
    await expect(page.locator("#messages .ticks")).to_have_class(re.compile("received"))
    [written] = scene.webhook.messages()
    assert written["text"]["body"] == "LINK one"
    await scene.bot.post(status="read", message_id=written["id"], typing_indicator={"type": "text"})
    await expect(page.locator("#typing")).to_be_visible()
    await expect(page.locator("#messages .ticks")).to_have_class(re.compile("read"))
    await scene.ask()
    await expect(page.locator("#typing")).to_be_hidden()
    await page.get_by_role("button", name="Deutsch").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Deutsch")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#messages .mine").last).to_contain_text("Which language?Deutsch")
    rows = [{"id": "1", "title": "Fern", "description": "Likes shade"}, {"id": "2", "title": "Cactus"}]
    listed = {"type": "list", "body": {"text": "What?"}, "action": {"button": "Plants", "sections": [{"rows": rows}]}}
    await scene.bot.post(to="16505551234", type="interactive", interactive=listed)
    await page.get_by_role("button", name="Plants").click()
    await page.get_by_role("button", name="Fern Likes shade").click()
    await expect(page.locator("dialog")).to_be_hidden()
    await expect(page.locator("#messages .mine").last).to_contain_text("Fern")
    await page.locator("#messages .bot summary").last.click()
    await page.get_by_role("button", name="React with 👍").click()
    await expect(page.locator("#messages .reactions")).to_have_text("👍")
    await emulator.settled()
    kinds = [message.get("interactive", message)["type"] for message in scene.webhook.messages()]
    assert kinds == ["text", "button_reply", "list_reply", "reaction"]
    await page.get_by_role("button", name="Luis Peña").click()
    await expect(page.locator("#messages li")).to_have_count(0)
    await page.reload()
    await expect(page.locator("#owner")).to_have_text("Luis Peña’s phone")


async def test_links_and_attachments(scene: Scene) -> None:
    page = await scene.open()
    await page.fill("#text", "https://wa.me/15550783881?text=LINK%20two")
    await expect(page.locator("#text")).to_have_value("LINK two")
    await expect(page.locator("#hint")).to_contain_text("Nothing is sent before you press Send")
    await page.fill("#text", "wa.me/15550000000?text=LINK%20three")
    await expect(page.locator("#hint")).to_contain_text("opens a chat with +15550000000")
    await expect(page.locator("#text")).to_have_value("")
    await page.fill("#text", "My window")
    await page.get_by_title("Attach something").click()
    await page.get_by_role("button", name="Picture").click()
    picture = page.locator("#messages img")
    await expect(picture).to_have_js_property("naturalWidth", 96)
    await expect(page.locator("#messages .mine")).to_contain_text("My window")
    await page.get_by_title("Attach something").click()
    await page.get_by_role("button", name="Sticker").click()
    await expect(page.locator("#messages img.sticker")).to_have_js_property("naturalWidth", 512)
    await scene.emulator.settled()
    image, sticker = scene.webhook.messages()
    assert (image["image"]["caption"], sticker["type"]) == ("My window", "sticker")


async def test_a_developer_disturbs_the_network(scene: Scene) -> None:
    page, webhook = await scene.open(), scene.webhook
    await page.get_by_label("By user id alone").check()
    await expect(page.locator("#identity")).to_contain_text("@zoe.park")
    await page.get_by_label("Deliver everything twice").check()
    await page.get_by_role("button", name="Hold back").click()
    for text in ("one", "two"):
        await page.fill("#text", text)
        await page.keyboard.press("Enter")
    await expect(page.locator("#held")).to_have_text("2 held back")
    assert webhook.bodies == []
    await page.get_by_label("Order").select_option("reversed")
    await page.get_by_label("All in one request").check()
    await page.get_by_role("button", name="Release").click()
    await scene.emulator.settled()
    assert [message["text"]["body"] for message in webhook.messages()] == ["two", "one"] * 2
    assert b"16505551234" not in webhook.bodies[0]
    first = page.locator("#entries li").first
    await expect(first).to_contain_text("batch of 2: 2 × text (copy 2)")
    await expect(first.locator(".status")).to_have_text("200")
    await first.locator("summary").click()
    await expect(first.locator("pre")).to_contain_text('"object": "whatsapp_business_account"')
    await page.get_by_role("button", name="Refuse the next sends").click()
    await expect(page.locator("#failing")).to_have_text("The next 1 will be refused with 131056.")
    assert (await scene.bot.say("16505551234", "Hi")).status_code == 429
    await expect(page.locator("#entries .problem").first).to_contain_text("(#131056)")
    await page.get_by_role("button", name="Change number").click()
    await expect(page.locator("#messages .phone")).to_have_text("Zoë Park has a new number.")
    await page.get_by_placeholder("Another person").fill("Ann")
    await page.keyboard.press("Enter")
    await expect(page.locator("#persons")).to_contain_text("Ann")


async def test_the_page_says_what_is_wrong_with_the_webhook(scene: Scene) -> None:
    page, sign = await scene.open(), scene.page.locator("#sign")
    scene.emulator.hold()
    scene.webhook.verifies, scene.webhook.answers = 403, [404] * 9
    await scene.emulator.write(scene.emulator.persons[0], "Hello")
    await scene.emulator.release()
    await expect(sign).to_have_attribute("data-sign", "refused")
    await expect(page.get_by_role("button", name="Try now")).to_be_visible()
    scene.webhook.verifies = 200
    await scene.emulator.settled()
    await expect(sign).to_have_text(re.compile("The webhook answers"))
    await expect(page.locator("#entries .tries").first).to_have_text("10 tries")


async def test_it_is_for_everybody(scene: Scene) -> None:
    page = scene.page
    await page.set_viewport_size({"width": 320, "height": 640})
    await scene.open("/?text=Hello")
    await page.keyboard.press("Enter")
    await expect(page.locator("#messages .mine")).to_have_count(1)
    await scene.ask()
    await scene.bot.say("16505551234", "x" * 300)
    await scene.emulator.change_user_id(scene.emulator.persons[0])
    await expect(page.locator("#messages .phone")).to_be_visible()
    await scene.emulator.settled()
    assert await check(page, "withoutName") == []
    assert await check(page, "ambiguousIds") == []
    for view in ("Phone", "Controls", "Requests"):
        await page.get_by_role("button", name=view, exact=True).click()
        assert await page.evaluate("document.documentElement.scrollWidth") == 320, view
        assert await page.evaluate(TOO_SMALL) == [], view
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for sign in ("ready", "absent", "refused"):
            await page.evaluate("sign => document.getElementById('sign').dataset.sign = sign", sign)
            weak = [(what, contrast) for what, contrast in await check(page, "contrasts") if contrast < 4.5]
            assert weak == [], (scheme, sign)


TOO_SMALL = """[...document.querySelectorAll("button, summary, select, input:not([type=checkbox], [type=radio])")]
    .map((control) => [control, control.getBoundingClientRect()])
    .filter(([, { width, height }]) => width && Math.min(width, height) < 40)
    .map(([control]) => control.outerHTML.slice(0, 100))"""


async def check(page: Page, name: str) -> Any:
    """What this function of the browser tests' checks.js finds."""
    return await page.evaluate(f"({CHECKS}).{name}()")
