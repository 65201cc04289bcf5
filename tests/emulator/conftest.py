"""An emulator on a real socket, a small webhook on another, and a client that sends as a bot does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest

from chatstate.emulator import Account, Emulator, Network
from chatstate.emulator.delivery import Pause
from tests.browser.conftest import browser  # noqa: F401 (a fixture, for the page)
from tests.emulator.webhooks import SECONDS, SmallWebhook

ACCOUNT = Account()


class SettableClock:
    """The time at the emulator: it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 2, 10, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, *, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Patience:
    """The pause between tries: it goes on until the test lets it end.

    tries  after how many tries each pause was begun
    """

    def __init__(self) -> None:
        self.tries: list[int] = []
        self._over = asyncio.Event()
        self._begun = asyncio.Condition()

    async def __call__(self, tries: int) -> None:
        async with self._begun:
            self.tries.append(tries)
            self._begun.notify_all()
        await self._over.wait()

    async def begun(self, count: int) -> None:
        """Wait until so many pauses have begun."""
        async with asyncio.timeout(SECONDS), self._begun:
            await self._begun.wait_for(lambda: len(self.tries) >= count)

    def end(self) -> None:
        self._over.set()


async def at_once(_tries: int) -> None:
    """No pause at all."""


def client_of(emulator: Emulator, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """There is no TLS here, so no certificates are read, which would take longer than most tests."""
    return httpx.AsyncClient(base_url=emulator.url, headers=headers, verify=False)


class Bot:
    """Sends to the Graph API."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def post(self, **message: Any) -> httpx.Response:
        """A message, or a read mark."""
        return await self.client.post(MESSAGES, json={"messaging_product": "whatsapp", **message})

    async def say(self, to: str, text: str) -> httpx.Response:
        return await self.post(to=to, type="text", text={"body": text})


MESSAGES = f"/v26.0/{ACCOUNT.phone_number_id}/messages"


@pytest.fixture
async def webhook() -> AsyncIterator[SmallWebhook]:
    async with SmallWebhook(ACCOUNT).listening() as listening:
        yield listening


NetworkTo = Callable[..., Network]


@pytest.fixture
async def network_to(webhook: SmallWebhook) -> AsyncIterator[NetworkTo]:
    """`network_to(pause)`: the way to that webhook alone, without an emulator."""
    made: list[Network] = []

    def make(pause: Pause = at_once, account: Account = ACCOUNT) -> Network:
        options: dict[str, Any] = {"clock": SettableClock(), "pause": pause, "random": Random(0)}
        made.append(Network(account, webhook.url, changed=lambda _delivery: None, **options))
        return made[-1]

    yield make
    for network in made:
        await network.stop()


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def emulator(webhook: SmallWebhook, clock: SettableClock) -> AsyncIterator[Emulator]:
    """It delivers to that webhook, by that clock, and without pauses."""
    served = Emulator(webhook.url, clock=clock, pause=at_once)
    async with served.serving():
        yield served


@pytest.fixture
async def bot(emulator: Emulator) -> AsyncIterator[Bot]:
    headers = {"authorization": f"Bearer {ACCOUNT.access_token}"}
    async with client_of(emulator, headers) as client:
        yield Bot(client)
