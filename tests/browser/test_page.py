"""The chat page for everybody: by keyboard, by screen reader, in both colour schemes, on phones, in hostile company."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from msgspec import json
from playwright.async_api import Page, expect

from tests.browser.chat import OFFLINE, Chat, eventually, stored_turns
from tests.browser.conftest import NewDevice
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"width": 360, "height": 740}
SESSIONS = "/chat-state-sessions"


async def call(server: ServerProcess, method: str, path: str, body: object = None) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.base_url) as client:
        answer = await client.request(method, f"{SESSIONS}{path}", json=body)
    assert answer.is_success, answer.text
    return answer


async def save(server: ServerProcess, session: str, state: str) -> None:
    await call(server, "POST", "", {"user_session_id": session, "chat_state": state})


def address(server: ServerProcess, session: str) -> str:
    return f"{server.base_url}/demo?session={quote(session, safe='')}"


async def focused(page: Page) -> str:
    """The text, or the id, of what the next key goes to."""
    found: str = await page.evaluate("document.activeElement.innerText || document.activeElement.id")
    return found.strip()


async def tab_to(page: Page, wanted: str) -> None:
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await focused(page) == wanted:
            return
    raise AssertionError(f"{wanted} cannot be reached with the keyboard")


# --- Accessible -------------------------------------------------------------------------------------------------------


async def test_it_works_without_a_mouse(shared_server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{shared_server.base_url}/demo")
    page = chat.page
    await chat.asks("Which language")
    await tab_to(page, "Español")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outline")
    assert "3px" in outline, "where the focus is can be seen"
    await page.keyboard.press("Enter")
    await chat.asks("género")
    assert await focused(page) == "Femenino", "it goes on where the buttons were"
    await tab_to(page, "Prefiero no decirlo")
    await page.keyboard.press("Space")
    await chat.asks("años")
    await tab_to(page, "text")
    await page.keyboard.type("34")
    await page.keyboard.press("Enter")
    await page.keyboard.type("¿Qué tiempo hace?")
    await page.keyboard.press("Enter")
    await chat.shows("Español", "Prefiero no decirlo", "34", "¿Qué tiempo hace?")
    await chat.saved()
    await tab_to(page, "Continue on your phone")
    await page.keyboard.press("Enter")
    await expect(page.locator("#hand-off-code")).not_to_be_empty()
    await tab_to(page, "Take back")
    await page.keyboard.press("Escape")
    await expect(page.locator("#hand-off-dialog")).to_be_hidden()
    assert await focused(page) == "Continue on your phone", "closing goes back to where it was opened"
    await tab_to(page, "New chat")
    await page.keyboard.press("Enter")
    await chat.shows()
    assert await focused(page) == "text"
    await page.locator("#session-rows button").first.focus()
    await page.keyboard.press("Enter")
    await chat.shows("Español", "Prefiero no decirlo", "34", "¿Qué tiempo hace?")


CHECKS = (Path(__file__).parent / "checks.js").read_text()


async def check(page: Page, name: str, *arguments: object) -> Any:
    """What this function of checks.js finds."""
    return await page.evaluate(f"arguments => ({CHECKS}).{name}(...arguments)", arguments)


async def test_everything_has_a_name(shared_server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{shared_server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    assert await chat.page.evaluate("document.documentElement.lang") == "en"
    assert await chat.page.locator("h1").count() == 1
    assert await chat.page.locator("main").count() == 1
    assert await check(chat.page, "ambiguousIds") == []
    await check(chat.page, "showEverything")
    assert await check(chat.page, "withoutName") == []
    assert await check(chat.page, "tooSmall", 40) == [], "fingers are wide"


async def test_the_bot_says_in_which_language_it_speaks(shared_server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{shared_server.base_url}/demo")
    await chat.choose("Deutsch")
    await chat.asks("Geschlecht")
    assert await chat.page.locator("#messages .bot p").last.get_attribute("lang") == "de"
    assert await chat.page.locator("#choices").get_attribute("lang") == "de"


async def test_a_screen_reader_hears_of_trouble_and_not_of_every_save(
    shared_server: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{shared_server.base_url}/demo")
    live = await chat.page.locator("[aria-live], [role=status], [role=log], [role=alert]").evaluate_all(
        "elements => elements.map(({ id }) => id)"
    )
    dialogs = {"hand-off-status", "whatsapp-status"}
    assert set(live) == {"announcement", "log", *dialogs, "arrival-error", "code-error", "token-error"}
    await chat.say("English")
    await chat.saved()
    announcement = chat.page.locator("#announcement")
    await expect(announcement).to_be_empty()
    await device.context.set_offline(True)
    await chat.say("Female")
    await expect(announcement).to_have_text("Offline – kept on this device, sent later")
    await device.context.set_offline(False)
    await expect(announcement).to_have_text("Saved. The server answers again.")
    # Who reads the last message is not sent back to the first: what is there stays there.
    first = await chat.page.locator("#messages li").first.element_handle()
    await chat.say("34")
    await chat.shows("English", "Female", "34")
    assert first is not None
    assert await first.evaluate("element => element.isConnected")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out(shared_server: ServerProcess, new_device: NewDevice, scheme: str) -> None:
    chat = await (await new_device(color_scheme=scheme)).open(f"{shared_server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    await expect(chat.page.locator("#session-rows button").first).to_be_visible()
    await check(chat.page, "showEverything")
    looked_at = 0
    for sign in ("saved", "saving", "loading", "offline", "error"):
        await chat.page.locator("#sign").evaluate("(sign, state) => { sign.dataset.sign = state; }", sign)
        contrasts = await check(chat.page, "contrasts")
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        looked_at += len(contrasts)
    assert looked_at > 200


# --- Of all sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(360, 740), (320, 480), (640, 400), (1280, 800)], ids=str)
async def test_it_fits_every_window(shared_server: ServerProcess, new_device: NewDevice, size: tuple[int, int]) -> None:
    """640 by 400 is a window of 1280 by 800 at 200 %."""
    width, height = size
    chat = await (await new_device(viewport={"width": width, "height": height})).open(f"{shared_server.base_url}/demo")
    await chat.through_the_script()
    await chat.say("Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 5)
    await chat.saved()
    assert await chat.page.evaluate("document.documentElement.scrollWidth") <= width
    assert await check(chat.page, "overflowing") == []
    for part in ("#text", "#composer button", "#hand-off", "#sign"):
        await expect(chat.page.locator(part)).to_be_in_viewport(ratio=1)
    if width < 896:
        await expect(chat.page.locator("#sessions")).to_be_hidden()
        await chat.page.get_by_role("button", name="Sessions").click()
        await expect(chat.page.locator("#session-rows button").first).to_be_in_viewport()
        await chat.page.locator("#session-rows button").first.click()
    await expect(chat.page.locator("#log")).to_be_visible()
    await chat.page.locator("#hand-off").click()
    await expect(chat.page.locator("#hand-off-code")).not_to_be_empty()
    box = await chat.page.locator("#hand-off-dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= height


async def test_nothing_moves_when_the_sign_changes(shared_server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE, viewport=PHONE)
    chat = await device.open(f"{shared_server.base_url}/demo")
    await chat.through_the_script()
    await chat.saved()
    places = [await chat.page.locator("#log").bounding_box()]
    await device.context.set_offline(True)
    await chat.say("one more")
    await chat.sign("offline")
    places.append(await chat.page.locator("#log").bounding_box())
    assert places[0] == places[1]


async def test_who_wants_no_motion_gets_none(shared_server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device(reduced_motion="reduce")).open(f"{shared_server.base_url}/demo")
    await chat.say("English")
    await chat.shows("English")
    assert await chat.page.evaluate("document.getAnimations().length") == 0


# --- Hostile states ---------------------------------------------------------------------------------------------------

BOMB = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"


def message(text: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "role": "user", "text": text, **more}


async def test_html_in_a_state_is_text(shared_server: ServerProcess, new_device: NewDevice) -> None:
    state = {
        "messages": [message(BOMB, lang=BOMB, at=BOMB), {**message(BOMB, 2), "role": BOMB}],
        "currentStep": BOMB,
        "answers": {"language": BOMB, "gender": "constructor", "__proto__": {"age": 1}},
    }
    await save(shared_server, BOMB, json.encode(state).decode())
    chat = await (await new_device()).open(address(shared_server, BOMB))
    await chat.shows(BOMB)
    await chat.say("34")
    await chat.shows(BOMB, "34")
    await chat.saved()
    await expect(chat.page.locator("#session-rows .name").first).to_have_text(BOMB)
    assert await chat.page.evaluate("window.hacked") is None
    assert await chat.page.locator("main img, aside img").count() == 0
    assert await stored_turns(shared_server.base_url, quote(BOMB, safe="")) == [BOMB, "34"]


RAW = [
    "not JSON",
    "",
    "null",
    "42",
    '"text"',
    "[1, 2]",
    "{}",
    '{"messages": {}}',
    '{"messages": [null]}',
    '{"messages": [{"id": 1, "role": "user", "text": "a number for an id"}]}',
    '{"messages": [{"id": "1", "role": "user", "text": {}}]}',
    '{"messages": [], "answers": []}',
    BOMB,
    "[" * 100_000 + "]" * 100_000,
]


async def test_what_is_no_chat_can_only_be_read(shared_server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device()
    chat = await device.open(f"{shared_server.base_url}/demo")
    await chat.asks("Which language")
    for number, state in enumerate(RAW):
        await save(shared_server, f"raw {number:02}", state)
    for number, state in enumerate(RAW):
        await chat.page.get_by_role("button", name=f"raw {number:02}").click()
        await expect(chat.page.locator("#raw-title")).to_be_visible()
        await expect(chat.page.locator("#raw-text")).to_contain_text(state[:1000])
        await expect(chat.page.locator("#text")).to_be_hidden()
        assert (await call(shared_server, "GET", f"/raw {number:02}")).json()["chat_state"] == state
    assert await chat.page.evaluate("window.hacked") is None
    await save(shared_server, f"raw {len(RAW) - 1:02}", "[]")
    await expect(chat.page.locator("#raw-text")).to_have_text("[]")  # it follows, too


async def test_much_is_shown_in_part(shared_server: ServerProcess, new_device: NewDevice) -> None:
    await save(shared_server, "large", json.encode({"messages": [message("x" * 1_000_000)]}).decode())
    many = [message(f"turn {number}", number) for number in range(10_000)]
    await save(shared_server, "many", json.encode({"messages": many}).decode())
    device = await new_device()
    chat = await device.open(address(shared_server, "large"))
    await expect(chat.page.locator("#messages .user p")).to_contain_text("… (1,000,000 characters in all)")
    await chat.page.goto(address(shared_server, "many"))
    await expect(chat.page.locator("#messages .user p").last).to_have_text("turn 9999")
    await chat.say("English")
    await chat.saved()
    turns = await stored_turns(shared_server.base_url, "many")
    assert turns == [*(text["text"] for text in many), "English"], "what is not shown is kept all the same"


async def test_any_id_can_be_opened(shared_server: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{shared_server.base_url}/demo")
    sessions = ("a/b", "ü ñ 🙂", "x" * 255, "../../etc", "?#&=%2F")
    for session in sessions:
        await save(shared_server, session, '{"messages": []}')
    for session in sessions:
        await chat.page.get_by_role("button", name=session).click()
        await chat.shows()
        await chat.say("English")
        await chat.saved()
        assert chat.session == session
        await chat.page.reload()
        await chat.shows("English")
        assert await stored_turns(shared_server.base_url, quote(session, safe="")) == ["English"]


# --- The list ---------------------------------------------------------------------------------------------------------


async def test_the_list_follows(server: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{server.base_url}/demo")
    names = chat.page.locator("#session-rows .name")
    await expect(names).to_have_count(0)
    await chat.say("English")
    await expect(names).to_have_text([chat.session])
    await save(server, "session_12345", "{}")
    await expect(names).to_have_text(["session_12345", chat.session])
    await chat.page.locator("#session-rows button").last.focus()
    await save(server, "session_67890", "{}")
    await expect(names).to_have_text(["session_67890", "session_12345", chat.session])
    assert chat.session in await focused(chat.page), "whoever is in the list stays where they are"
    await expect(chat.page.locator("[aria-current] .name")).to_have_text(chat.session)
    await call(server, "DELETE", "/session_12345")
    await expect(names).to_have_text(["session_67890", chat.session])
    await device.context.set_offline(True)
    await expect(chat.page.locator("#sessions-note")).to_contain_text("does not answer")
    await expect(names).to_have_text(["session_67890", chat.session])


# --- The pictures in the docs -----------------------------------------------------------------------------------------

MOST_BYTES = 150_000
MORNING = datetime(2026, 1, 5, 10, 24, tzinfo=UTC)


@pytest.mark.parametrize(("name", "size"), [("demo-desktop", (1280, 800)), ("demo-phone", (390, 780))])
async def test_the_pictures_in_the_docs_can_be_made(
    server: ServerProcess, new_device: NewDevice, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    """With CHATSTATE_TEST_PICTURES=docs/images they are made anew."""
    folder = Path(os.environ.get("CHATSTATE_TEST_PICTURES", tmp_path))
    await save(server, "whatsapp-4915112345678", '{"messages": []}')
    await save(server, "session_12345", '{"messages": []}')
    device = await new_device(viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce")
    await device.context.clock.set_fixed_time(MORNING)
    chat = await device.open(address(server, "demo-3f9a1c27e0b4"))
    await chat.through_the_script()
    await chat.saved()
    rows = chat.page.locator("#session-rows .name")
    await eventually(lambda: _has(chat, 3))
    assert await rows.count() == 3
    await chat.page.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size < MOST_BYTES


async def _has(chat: Chat, rows: int) -> bool:
    return await chat.page.locator("#session-rows .name").count() == rows
