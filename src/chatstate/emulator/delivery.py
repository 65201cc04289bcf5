"""The way from Meta to the webhook: signed requests, each repeated until it is answered with 200.

What is on its way can be held back, and released in another order, in batches, and more than once: Meta promises that a
message arrives at least once, within seven days, and neither when nor in which order.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from random import Random
from typing import Literal

import httpx
from msgspec import Struct

from chatstate.emulator.payloads import MOST_UPDATES, Account, Update, encode

Order = Literal["kept", "reversed", "shuffled"]
Pause = Callable[[int], Awaitable[None]]
"""What is waited for after so many tries have failed."""

SECONDS_TO_ANSWER = 10.0
LONGEST_PAUSE = 60.0
_MOST_PATIENCE = 3  # tries: a server that is being started is asked every other second


def sign(app_secret: str, body: bytes) -> str:
    """The value of `X-Hub-Signature-256`: HMAC-SHA256 of these very bytes."""
    return "sha256=" + hmac.new(app_secret.encode(), body, sha256).hexdigest()


async def longer_each_time(tries: int) -> None:
    """No pause after the first try, then 1 s, 2 s, 4 s … up to a minute."""
    await asyncio.sleep(min(2.0 ** (tries - 2), LONGEST_PAUSE) if tries > 1 else 0)


class Delivery(Struct, eq=False, kw_only=True):
    """One request to the webhook, and what has become of it.

    updates  what it brings
    copy     which one of several equal requests it is, from 1
    tries    how often it was sent
    status   of the latest answer; None: there was none
    problem  why it has to be sent again, in words; empty: it has not
    done     whether it was answered with 200
    """

    updates: tuple[Update, ...]
    body: bytes
    at: datetime
    copy: int = 1
    tries: int = 0
    status: int | None = None
    problem: str = ""
    done: bool = False


class Webhook(Struct):
    """Whether the webhook is there.

    state  `unknown`: nobody has asked yet; `ready`; `absent`: nothing answers; `refused`: it answers, but not with 200
    text   says it in words, with what mends it
    """

    state: Literal["unknown", "ready", "absent", "refused"] = "unknown"
    text: str = "Not asked yet."


class Network:
    """Delivers updates to one webhook. Everything happens in the event loop that calls it.

    webhook     whether it is there, and `told`, who hears of it when that is another matter than before
    duplicates  how often each request is delivered
    held        what is held back, as long as it is `holding`
    """

    def __init__(
        self,
        account: Account,
        url: str,
        *,
        clock: Callable[[], datetime],
        pause: Pause,
        random: Random,
        changed: Callable[[Delivery | None], None],
    ) -> None:
        """
        pause    what is waited for before a delivery is tried again
        changed  is called with each delivery of which there is news, and with None for other news
        """
        self.url = url
        self.webhook = Webhook()
        self.told: Callable[[Webhook], None] = lambda _webhook: None
        self.duplicates = 1
        self.held: list[Update] = []
        self.holding = False
        self._account, self._clock, self._pause, self._random, self._changed = account, clock, pause, random, changed
        self._one_by_one = asyncio.Semaphore(1)
        self._open = asyncio.Event()
        self._open.set()
        self._hurry = asyncio.Event()
        self._lost = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is held back, and everything that was sent has been answered with 200."""
        return not self.held and not self._under_way

    @property
    def outstanding(self) -> int:
        """How many requests have not been answered with 200 yet."""
        return len(self._under_way)

    # --- Sending ------------------------------------------------------------------------------------------------------

    def send(self, update: Update) -> None:
        """Deliver it: now, in the order of the calls, or when what is held back is released."""
        if self.holding:
            self.held.append(update)
            self._changed(None)
        else:
            self._start([(update,)], self.duplicates, self._one_by_one)

    def hold(self) -> None:
        """Let nothing through any more, repetitions included."""
        self.holding = True
        self._open.clear()
        self._changed(None)

    def release(
        self, *, order: Order = "kept", batch: bool | int = False, duplicates: int | None = None, parallel: int = 1
    ) -> int:
        """Let everything through again; how many requests that makes.

        batch       several updates in one request: as many as it takes, or so many
        duplicates  how often each request is delivered
        parallel    how many requests are under way at once
        """
        updates, self.held, self.holding = self._ordered(order), [], False
        size = MOST_UPDATES if batch is True else max(int(batch), 1)
        batches = [tuple(updates[start : start + size]) for start in range(0, len(updates), size)]
        copies = duplicates or self.duplicates
        self._open.set()
        self._start(batches, copies, asyncio.Semaphore(parallel), mixed=order == "shuffled")
        self._changed(None)
        return len(batches) * copies

    def _ordered(self, order: Order) -> list[Update]:
        updates = self.held[::-1] if order == "reversed" else list(self.held)
        if order == "shuffled":
            self._random.shuffle(updates)
        return updates

    def _start(
        self, batches: Sequence[tuple[Update, ...]], copies: int, turn: asyncio.Semaphore, mixed: bool = False
    ) -> None:
        deliveries = [
            Delivery(updates=batch, body=body, at=self._clock(), copy=copy)
            for batch, body in [(batch, encode(self._account, batch)) for batch in batches]
            for copy in range(1, copies + 1)
        ]
        if mixed:
            self._random.shuffle(deliveries)
        for delivery in deliveries:
            task = asyncio.create_task(self._deliver(delivery, turn))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            self._changed(delivery)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._changed(None)

    async def _deliver(self, delivery: Delivery, turn: asyncio.Semaphore) -> None:
        async with turn:
            await self._try(delivery)
        while not delivery.done:
            await self._wait(delivery.tries)
            await self._try(delivery)

    async def _wait(self, tries: int) -> None:
        """The pause, or a shorter one when somebody is in a hurry."""
        ways = [asyncio.ensure_future(self._pause(tries)), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    def retry_now(self) -> None:
        """Try everything at once that waits to be tried again."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    async def _try(self, delivery: Delivery) -> None:
        await self._open.wait()
        delivery.tries += 1
        headers = {
            "content-type": "application/json",
            "user-agent": "facebookexternalua",
            "x-hub-signature-256": sign(self._account.app_secret, delivery.body),
        }
        try:
            response = await self._http.post(self.url, content=delivery.body, headers=headers)
        except httpx.HTTPError as error:
            delivery.status, delivery.problem = None, _silence(error)
            self._note("absent", delivery.problem)
        else:
            delivery.status, delivery.done = response.status_code, response.status_code == 200
            delivery.problem = "" if delivery.done else _objection(response.status_code)
            self._note("ready" if delivery.done else "refused", delivery.problem or _READY)
        self._changed(delivery)

    def _note(self, state: Literal["ready", "absent", "refused"], text: str) -> None:
        before, self.webhook = self.webhook, Webhook(state, text)
        if before != self.webhook:
            self.told(self.webhook)
        if state == "ready":
            self._lost.clear()
        else:
            self._lost.set()

    # --- The webhook's consent ----------------------------------------------------------------------------------------

    async def verify(self) -> Webhook:
        """Ask the webhook whether it knows the verify token, as Meta does before it delivers anything."""
        challenge = str(secrets.randbelow(9 * 10**9) + 10**9)
        query = {
            "hub.mode": "subscribe",
            "hub.challenge": challenge,
            "hub.verify_token": self._account.verify_token,
        }
        try:
            response = await self._http.get(self.url, params=query)
        except httpx.HTTPError as error:
            self._note("absent", _silence(error))
        else:
            if response.status_code != 200:
                self._note("refused", _objection(response.status_code, verifying=True))
            elif response.text.strip() != challenge:
                self._note("refused", "It answers, but not with hub.challenge: this address is no webhook of WhatsApp.")
            else:
                self._note("ready", _READY)
        self._changed(None)
        return self.webhook

    async def watch(self) -> None:
        """Verify until it is ready, and again whenever deliveries find that it is not."""
        while True:
            tries = 1
            while (await self.verify()).state != "ready":
                tries = min(tries + 1, _MOST_PATIENCE)
                await self._wait(tries)
            await self._lost.wait()

    # --- Beginning and end --------------------------------------------------------------------------------------------

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            # No proxy of the environment: a webhook under development is on this machine.
            with_tls = self.url.startswith("https:")  # without it, there is no need to read all certificates first
            self._client = httpx.AsyncClient(timeout=SECONDS_TO_ANSWER, limits=limits, trust_env=False, verify=with_tls)
        return self._client

    async def stop(self) -> None:
        """Give up whatever is not delivered yet."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._client:
            await self._client.aclose()
            self._client = None


_READY = "It has answered with 200."

_OBJECTIONS = {
    401: "it does not accept the signature: both sides need the same CHATSTATE_WHATSAPP_APP_SECRET",
    403: "it does not accept the signature: both sides need the same CHATSTATE_WHATSAPP_APP_SECRET",
    404: "there is no webhook at this address: chatstate opens it when CHATSTATE_WHATSAPP_APP_SECRET is set",
    503: "its store cannot take the message at the moment",
}


def _objection(status: int, verifying: bool = False) -> str:
    if verifying and status in (401, 403):
        return f"HTTP {status}: the verify token is another one there; set the same CHATSTATE_WHATSAPP_VERIFY_TOKEN."
    reason = _OBJECTIONS.get(status, "only 200 counts as received")
    return f"HTTP {status}: {reason}."


def _silence(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "Nothing listens at this address: start the server, or name another address with --webhook."
    if isinstance(error, httpx.TimeoutException):
        return f"No answer within {SECONDS_TO_ANSWER:g} s."
    return "The connection broke before there was an answer."
