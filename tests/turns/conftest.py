"""Workers on real stores: a `World` is a store with what a server has behind its routes, and a clock that stands still.

Nothing waits for a while: a worker is told when there is something to do, and a test asks it whether it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from chatstate.bot import Bot, Message, Reply, Turn, read_state
from chatstate.channels import Arrived, Channel, Contact, ExternalId
from chatstate.errors import SendFailed, SessionNotFound
from chatstate.inbox import Inbox
from chatstate.linking import Linking
from chatstate.links import Grant, Link, Links, Made
from chatstate.live import Live
from chatstate.outbox import Outbox
from chatstate.sessions import Sessions
from chatstate.stores import Store
from chatstate.turns import Turns, TurnSettings

SECONDS = 20.0
"""After this time a test has failed that waits for something."""

SCOPE = "106540352242922"


class Clock:
    """It stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 10, 2, 10, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Paper(Channel):
    """A channel whose messages lie on a table. `failing` is what it raises next, one after the other."""

    name: ClassVar[str] = "paper"
    window: ClassVar[timedelta | None] = timedelta(hours=24)

    def __init__(self) -> None:
        self.sent: list[tuple[Contact, Reply]] = []
        self.typing: list[str] = []
        self.failing: list[SendFailed] = []
        self.arrived = asyncio.Event()

    def split(self, reply: Reply) -> tuple[Reply, ...]:
        lines = reply.text.split("\n")
        parts = [Reply(reply.id if place == 0 else f"{reply.id}.{place + 1}", line) for place, line in enumerate(lines)]
        return (*parts[:-1], Reply(parts[-1].id, parts[-1].text, reply.choices, reply.media))

    async def send(self, recipient: Contact, reply: Reply) -> str:
        if self.failing:
            raise self.failing.pop(0)
        self.sent.append((recipient, reply))
        self.arrived.set()
        return f"sent-{len(self.sent)}"

    async def download(self, media_id: str) -> tuple[bytes, str]:
        return f"the file {media_id}".encode(), "text/plain"

    async def show_typing(self, message_id: str) -> None:
        self.typing.append(message_id)

    @property
    def texts(self) -> list[str]:
        return [reply.text for _, reply in self.sent]


def person(number: str = "1", kind: str = "wa_id", *others: tuple[str, str]) -> Contact:
    """Whom the channel knows by this name, and by others."""
    return Contact((ExternalId(kind, number), *(ExternalId(*other) for other in others)))


class World:
    """One server's part of the work on a store."""

    def __init__(self, store: Store, clock: Clock, bot: Bot, **settings: Any) -> None:
        self.store, self.clock = store, clock
        self.sessions = Sessions(store, clock)
        self.inbox = Inbox(store, clock)
        self.links = Links(store)
        self.live = Live(store, self.sessions, clock)
        self.paper = Paper()
        self.revoked: set[str] = set()
        self.linking = Linking(self.inbox.people, self.links, self.sessions, clock, self._holds)
        self.settings = TurnSettings(**{"lease": timedelta(seconds=30), **settings})
        self.outbox = Outbox(store, self.inbox, {"paper": self.paper}, {"paper": SCOPE}, clock, self.settings.lease)
        self.beats = asyncio.Semaphore(0)
        self.turns = Turns(
            bot,
            store,
            self.sessions,
            self.inbox,
            self.linking,
            self.live,
            {"paper": self.paper},
            clock,
            self.settings,
            self.outbox.wake,
            self._beat,
        )

    async def _holds(self, _session: str, link: Link) -> bool:
        """The credentials that links are made with here are named by their API keys."""
        return link.grant.azp not in self.revoked

    async def link_to(self, session: str, device: str = "Chrome on Windows", key: str = "") -> Made:
        """A link to a session, for a channel."""
        found = await self.sessions.load(session)
        grant = Grant(("read", "write"), self.clock().timestamp(), key, self.clock().timestamp())
        return await self.links.issue_for_channel(session, found.session_id, grant, device, self.clock())

    async def _beat(self, _seconds: float) -> None:
        """A pause ends when the test says so."""
        await self.beats.acquire()

    async def say(self, session: str, message_id: str, text: str = "Hello") -> bool:
        """Somebody writes on a web page."""
        return await self.inbox.say(session, Message(message_id, self.clock(), text))

    async def write(self, contact: Contact, message_id: str, text: str = "Hello", **given: Any) -> int:
        """Somebody writes on the channel."""
        message = Message(message_id, self.clock(), text)
        arrived = Arrived(**{"id": message_id, "sender": contact, "sent_at": self.clock(), "message": message, **given})
        return await self.inbox.receive("paper", SCOPE, [arrived])

    async def work(self) -> None:
        """Answer everything that is due, and send what is due then."""
        await done(self.turns)
        await done(self.outbox)

    async def state(self, session: str) -> dict[str, Any] | None:
        with suppress(SessionNotFound):
            return read_state((await self.sessions.load(session)).chat_state)
        return None

    async def texts(self, session: str) -> list[str]:
        """What was said in a session."""
        state = await self.state(session) or {}
        return [entry["text"] for entry in state.get("messages", [])]

    async def session_of(self, contact: Contact) -> str:
        """The session with which somebody goes on."""
        _, found = await self.inbox.people.find("paper", contact, self.clock())
        return found.user_session_id


async def done(worker: Turns | Outbox) -> None:
    """Let the worker do everything that is due, and end."""
    async with asyncio.timeout(SECONDS):
        left_alone: set[str] = set()
        while conversations := set(await worker.find(1000)) - left_alone:
            for conversation in conversations:
                if await worker.work(conversation):
                    left_alone.add(conversation)


async def echo(turn: Turn) -> None:
    """Counts, and says what was said."""
    turn.state["count"] = turn.state.get("count", 0) + 1
    await turn.reply(f"You said: {turn.message.text}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


NewWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def new_world(store: Store, clock: Clock) -> AsyncIterator[NewWorld]:
    """`await new_world(bot)`: a server on the store of this test; several are several servers."""
    worlds = []

    async def make(bot: Bot = echo, **settings: Any) -> World:
        world = World(store, clock, bot, **settings)
        await world.inbox.open()
        world.live.start()
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.live.end()


@pytest.fixture
async def world(new_world: NewWorld) -> World:
    """A server whose bot is `echo`."""
    return await new_world()


@asynccontextmanager
async def running(worker: Turns | Outbox) -> AsyncIterator[None]:
    """The worker runs as in a server."""
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
