"""Real Chromium windows on a real server.

The browser is that of CHATSTATE_TEST_CHROMIUM, or one of the usual names on the path, the one without windows first
(it takes half the time); without one these tests are skipped.
A test fails when a page writes an error to the console or throws one, beside those that the test expects.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.chat import Device
from tests.servers.process import ServerProcess

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    given = os.environ.get("CHATSTATE_TEST_CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for the tests of a module."""
    program = find_chromium()
    if not program:
        pytest.skip(
            "no Chromium here (Debian: apt-get install chromium-headless-shell; or set CHATSTATE_TEST_CHROMIUM)"
        )
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        yield running
        await running.close()


NewDevice = Callable[..., Awaitable[Device]]


@pytest_asyncio.fixture(loop_scope="module")
async def new_device(browser: Browser) -> AsyncIterator[NewDevice]:
    """`await new_device()`: a browser of its own, with its own storage, whose windows share it.

    expected  patterns of what the console may say beside what every console says
    options   those of Playwright's `new_context`
    """
    devices: list[Device] = []

    async def make(*expected: str, **options: Any) -> Device:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(15_000)
        device = await Device.of(context, expected)
        devices.append(device)
        return device

    yield make
    for device in devices:
        await device.context.close()
    assert [text for device in devices for text in device.errors] == []


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an empty SQLite file: browsers are slow, and what they ask for is tested on each kind of store."""
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """`chatstate serve`."""
    with ServerProcess(sqlite_url, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for the tests of a module that do not mind each other's sessions."""
    folder = tmp_path_factory.mktemp("browser")
    with ServerProcess(f"sqlite:///{folder}/chatstate.db", folder) as running:
        yield running
