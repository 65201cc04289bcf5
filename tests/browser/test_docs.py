"""The chat of the docs, as it stands there, in a browser: what is typed survives a refresh."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.async_api import Page, expect

from tests.browser.chat import OFFLINE, stored
from tests.browser.conftest import NewDevice
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]


def documented_page(name: str) -> str:
    (page,) = re.findall(r"^```html\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert len(page.splitlines()) < 20
    return str(page)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which `python3 -m http.server` would have this folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def address(server: ServerProcess, tmp_path: Path) -> Iterator[str]:
    """Where the page of the docs is, on another origin than the server."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, path in (("chat", "docs/howto/web-chat.md"), ("readme", "README.md")):
        page = documented_page(path)
        assert page.count("http://localhost:3000") == 1
        (folder / f"{name}.html").write_text(page.replace("http://localhost:3000", server.base_url))
    with served(folder) as url:
        yield url


async def shows(page: Page, *texts: str) -> None:
    await expect(page.locator("#messages li")).to_have_text(list(texts))


async def say(page: Page, text: str) -> None:
    await page.fill("#text", text)
    await page.press("#text", "Enter")


async def test_the_lines_of_the_readme_append_a_message_each_time(
    server: ServerProcess, new_device: NewDevice, address: str
) -> None:
    device = await new_device(r"favicon\.ico")
    page = await device.context.new_page()
    for count in (1, 2, 3):
        async with page.expect_console_message(lambda message: message.text.startswith("saved")):
            await page.goto(f"{address}/readme.html")
        state = await stored(server.base_url, "session_888")
        assert [message["text"] for message in state["messages"]] == ["Hello"] * count


async def test_the_chat_of_the_docs_survives_what_they_say_it_does(
    server: ServerProcess, new_device: NewDevice, address: str
) -> None:
    device = await new_device(OFFLINE, r"favicon\.ico")
    first = await device.context.new_page()
    await first.goto(f"{address}/chat.html")
    await say(first, "one")
    await expect(first.locator("#status")).to_have_text("saved")
    await first.reload()
    await shows(first, "one")
    second = await device.context.new_page()
    await second.goto(f"{address}/chat.html")
    await shows(second, "one")
    await say(second, "two")
    await shows(first, "one", "two")
    await expect(second.locator("#status")).to_have_text("saved")
    await asyncio.to_thread(server.kill)
    await say(first, "three")
    await say(second, "four")
    await expect(first.locator("#status")).to_have_text("offline")
    await asyncio.to_thread(server.restart)
    for page in (first, second):
        await expect(page.locator("#messages li")).to_have_count(4)
        await expect(page.locator("#status")).to_have_text("saved", timeout=15_000)
    session = await first.evaluate("localStorage.chat")
    state = await stored(server.base_url, session)
    assert sorted(message["text"] for message in state["messages"]) == ["four", "one", "three", "two"]
