"""What is seen of the emulator: chats as phones show them, the requests both ways, and who is told of changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct, field

from chatstate.emulator.delivery import Delivery
from chatstate.emulator.graph import Choice

MOST_ENTRIES = 300
"""How many requests are remembered; of the oldest ones nothing is known any more."""

MOST_BUBBLES = 300
"""How many messages of each chat are shown."""

Ticks = Literal["waiting", "received", "sent", "delivered", "read", "failed", ""]


class Bubble(Struct, eq=False, kw_only=True):
    """A message as the phone shows it.

    by         the person, the bot, or the phone itself
    type       of the message
    choices    what can be tapped, and `chosen`, the id of what was; `button` opens the list
    file       the name or the address of what comes with it
    reactions  by who has reacted
    ticks      of a person's message: whether the webhook has answered, and the bot has marked it as read; of the bot's:
               which status was reported last
    note       what else there is to say, such as why it failed
    """

    id: str
    by: Literal["person", "bot", "phone"]
    type: str
    text: str
    at: datetime
    header: str = ""
    footer: str = ""
    choices: tuple[Choice, ...] = ()
    button: str = ""
    chosen: str = ""
    file: str = ""
    reply_to: str = ""
    reactions: dict[str, str] = field(default_factory=dict)
    ticks: Ticks = ""
    note: str = ""


class Entry(Struct, eq=False, kw_only=True):
    """A request, to the webhook or from the bot.

    what    in a few words
    body    of the request, as it was sent
    tries   how often it was sent
    status  of the latest answer; None: there is none yet, or there was none
    """

    number: int
    way: Literal["webhook", "call"]
    what: str
    at: datetime
    body: str
    tries: int = 1
    status: int | None = None
    problem: str = ""

    def summary(self) -> dict[str, Any]:
        """All of it but the body, which may be large."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "body"}


class Journal:
    """The chats, by person and message, and the latest requests. `changed` is told what has changed, as a key:
    `("bubble", person, id)` or `("entry", number)`."""

    def __init__(self, changed: Callable[[Hashable], None]) -> None:
        self.chats: dict[str, dict[str, Bubble]] = {}
        self.entries: dict[int, Entry] = {}
        self._changed = changed
        self._count = 0
        self._of_delivery: dict[Delivery, Entry] = {}

    def show(self, person: str, bubble: Bubble) -> None:
        """A new message in this person's chat."""
        chat = self.chats.setdefault(person, {})
        chat[bubble.id] = bubble
        while len(chat) > MOST_BUBBLES:
            del chat[next(iter(chat))]
        self._changed(("bubble", person, bubble.id))

    def bubble(self, message_id: str) -> tuple[str, Bubble] | None:
        """The message, and in whose chat it is."""
        return next(((person, chat[message_id]) for person, chat in self.chats.items() if message_id in chat), None)

    def mark(self, message_id: str, **news: Any) -> None:
        """Something has become of a message; those that are not shown any more do not matter."""
        if found := self.bubble(message_id):
            person, bubble = found
            for name, value in news.items():
                setattr(bubble, name, value)
            self._changed(("bubble", person, message_id))

    def mark_read(self, person: str, message_id: str) -> None:
        """The bot has read what this person has written up to this message."""
        chat = self.chats.get(person, {})
        for bubble in chat.values() if message_id in chat else ():
            if bubble.by == "person" and bubble.ticks != "read":
                self.mark(bubble.id, ticks="read")
            if bubble.id == message_id:
                return

    def record(self, delivery: Delivery) -> None:
        """A request to the webhook, or news of it."""
        entry = self._of_delivery.get(delivery)
        if entry is None:
            entry = self._add("webhook", _what(delivery), delivery.at, delivery.body.decode())
            self._of_delivery[delivery] = entry
        entry.tries, entry.status, entry.problem = delivery.tries, delivery.status, delivery.problem
        if delivery.done:
            del self._of_delivery[delivery]
        self._changed(("entry", entry.number))

    def call(self, what: str, at: datetime, body: bytes, status: int, problem: str = "") -> None:
        """A request of the bot, which has been answered."""
        entry = self._add("call", what, at, body.decode("utf-8", "replace"))
        entry.status, entry.problem = status, problem
        self._changed(("entry", entry.number))

    def _add(self, way: Literal["webhook", "call"], what: str, at: datetime, body: str) -> Entry:
        self._count += 1
        entry = self.entries[self._count] = Entry(number=self._count, way=way, what=what, at=at, body=body)
        self.entries.pop(self._count - MOST_ENTRIES, None)
        return entry


def _what(delivery: Delivery) -> str:
    labels = [update.label for update in delivery.updates]
    copy = f" (copy {delivery.copy})" if delivery.copy > 1 else ""
    if len(labels) == 1:
        return labels[0] + copy
    counted = ", ".join(f"{labels.count(label)} × {label}" for label in dict.fromkeys(labels))
    return f"batch of {len(labels)}: {counted}{copy}"


class Listener:
    """Somebody who is told what has changed, and is told once of what has changed several times."""

    def __init__(self, close: Callable[[Listener], None]) -> None:
        self.closed = False
        self._changed: dict[Hashable, None] = {}
        self._news = asyncio.Event()
        self._close = close

    def add(self, key: Hashable) -> None:
        self._changed[key] = None
        self._news.set()

    async def next(self, seconds: float) -> Iterable[Hashable]:
        """What has changed, as soon as something has; nothing when so much time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return ()
        self._news.clear()
        changed, self._changed = self._changed, {}
        return changed

    def close(self) -> None:
        """Let `next` return for good."""
        self.closed = True
        self._news.set()
        self._close(self)


class Feed:
    """Tells listeners of changes, and wakes those who wait for a condition."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def changed(self, key: Hashable) -> None:
        for listener in self._listeners:
            listener.add(key)
        for future, holds in list(self._waiting.items()):
            if not future.done() and holds():
                future.set_result(None)

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until this holds; whether it does before so much time has passed."""
        if holds():
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = holds
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return holds()
        finally:
            del self._waiting[future]
        return True

    def listen(self) -> Listener:
        listener = Listener(self._listeners.discard)
        self._listeners.add(listener)
        return listener

    def end(self) -> None:
        """Let all listeners go."""
        for listener in list(self._listeners):
            listener.close()
