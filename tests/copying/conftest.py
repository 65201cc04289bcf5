"""Stores to copy from and into, of both kinds in each direction, and somebody who writes to one of them at random."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from chatstate.copying import pages_of
from chatstate.mailbox import Postpone, Progress, Receive, Send, Settle
from chatstate.model import ABSENT, PRESENT, Delete, IdempotencyKey, Retention, Save
from chatstate.record import DropRecord, PutRecord
from chatstate.row import SHELVES, AnyRow
from chatstate.stores import Store, create_store
from chatstate.stores.base import AnyWrite
from chatstate.visit import Changes, ChangeVisits, CreateVisit, EraseVisits
from tests.conftest import STORE_KINDS, database
from tests.servers.postgres import RunningServers

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
HISTORY = Retention(history=3)

Urls = tuple[str, str]


DIRECTIONS = [(source, target) for source in STORE_KINDS for target in STORE_KINDS]


@contextmanager
def two_databases(kinds: tuple[str, str], servers: RunningServers, folder: Path) -> Iterator[Urls]:
    """The URLs of two empty databases."""
    with ExitStack() as stack:
        found = []
        for side, kind in zip(("source", "target"), kinds, strict=True):
            (folder / side).mkdir()
            found.append(stack.enter_context(database(kind, servers, folder / side)))
        yield found[0], found[1]


@pytest.fixture(params=DIRECTIONS, ids="-to-".join)
def urls(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[Urls]:
    """The URLs of two empty databases, of each kind in each direction."""
    with two_databases(request.param, servers, tmp_path) as found:
        yield found


@asynccontextmanager
async def opened(*urls: str, **given: Any) -> AsyncIterator[list[Store]]:
    """These stores, migrated, as they lie."""
    async with AsyncExitStack() as stack:
        found: list[Store] = []
        for url in urls:
            store = create_store(url, owner=False, **given)
            await store.open()
            stack.push_async_callback(store.close)
            await store.migrate()
            found.append(store if given else store.inner)
        yield found


@pytest.fixture
async def stores(urls: Urls) -> AsyncIterator[list[Store]]:
    """The two databases, open and migrated."""
    async with opened(*urls) as found:
        yield found


async def everything(store: Store) -> dict[str, list[AnyRow]]:
    return {shelf: [row async for page in pages_of(store, shelf) for row in page] for shelf in SHELVES}


class Writer:
    """Writes to a store what comes to its mind; the same for the same seed."""

    def __init__(self, store: Store, seed: int, ids: int = 40) -> None:
        print(f"CHATSTATE_TEST_COPY_SEED={seed}")  # noqa: T201 (replays it)
        self.written = 0
        self._store = store
        self._random = random.Random(seed)
        self._ids = ids
        self._arrived, self._sent = ["none yet"], ["none yet"]
        self._kinds: Sequence[Callable[[str], AnyWrite]] = (
            *([self._save] * 6),
            self._touch,
            self._delete,
            self._visit,
            self._end_visits,
            self._record,
            *([self._arrive, self._settle] * 2),
            self._postpone,
            self._progress,
            lambda name: DropRecord(collection="things", key=name, now=NOW),
            lambda name: EraseVisits(user_session_id=name),
        )

    async def write(self, count: int) -> None:
        for _ in range(count):
            name = f"{self._random.choice(('Id', 'id', 'é', '😀'))} {self._random.randrange(self._ids)}"
            await self._store.commit([self._random.choice(self._kinds)(name)], HISTORY)
            self.written += 1

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """It writes all the time, for the length of the block."""
        task = asyncio.create_task(self.write(1 << 30))
        try:
            yield
        finally:
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError), results

    def _time(self) -> datetime:
        return NOW + timedelta(microseconds=self._random.randrange(10**9))

    def _save(self, name: str) -> Save:
        once = IdempotencyKey(f"key {self._random.randrange(5)}", self._random.randbytes(32), "caller")
        return Save(
            user_session_id=name,
            new_session_id=str(uuid.UUID(int=self._random.getrandbits(128))),
            chat_state="x" * self._random.choice((0, 10, 3000)) + str(self._random.random()),
            last_activity=self._time(),
            now=self._time(),
            expires_in=self._random.choice((None, 0, 3600)),
            once=self._random.choice((None, once)),
        )

    def _touch(self, name: str) -> Save:
        once = IdempotencyKey("touch", b"digest", "")
        given = {"new_session_id": str(uuid.uuid4()), "last_activity": self._time(), "now": self._time()}
        return Save(user_session_id=name, chat_state=None, expect=PRESENT, once=once, **cast(Any, given))

    def _delete(self, name: str) -> Delete:
        return Delete(user_session_id=name, now=self._time())

    def _visit(self, name: str) -> CreateVisit:
        session_id = str(uuid.UUID(int=self._random.getrandbits(128)))
        given = {"created_at": self._time(), "session_start_time": self._time(), "session_end_time": self._time()}
        address = self._random.choice((None, "203.0.113.7", "2001:db8::7"))
        return CreateVisit(session_id=session_id, user_session_id=name, ip_address=address, **cast(Any, given))

    def _end_visits(self, name: str) -> ChangeVisits:
        return ChangeVisits(user_session_id=name, changes=Changes(session_completed=True, given_duration_minutes=5))

    def _record(self, name: str) -> PutRecord:
        return PutRecord(collection="things", key=name, document=f'"{self._random.random()}"', now=self._time())

    def _arrive(self, name: str) -> Receive:
        self._arrived.append(name)
        return Receive(key=name, conversation="c", document="message", sent_at=self._time(), now=self._time())

    def _settle(self, name: str) -> Settle:
        self._sent.append(f"{name} {self._random.random()}")
        send = Send(key=self._sent[-1], conversation="c", user_session_id=name, document="reply")
        return Settle(key=self._random.choice(self._arrived), now=self._time(), sends=(send,))

    def _postpone(self, _name: str) -> Postpone:
        due_at, key = self._time(), self._random.choice(self._arrived)
        return Postpone(key=key, now=NOW, due_at=due_at, tries=2, error="why", aside=True)

    def _progress(self, name: str) -> Progress:
        return Progress(now=NOW, status="sent", key=self._random.choice(self._sent), provider_key=name)


def creating(name: str, state: str = "{}") -> Save:
    """A session that was not there."""
    return Save(
        user_session_id=name,
        new_session_id=str(uuid.uuid4()),
        chat_state=state,
        last_activity=NOW,
        now=NOW,
        expect=ABSENT,
    )
