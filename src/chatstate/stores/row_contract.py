"""The part of the contract suite that is about whole rows, which copies and backups are made of.
`chatstate.stores.contract` runs it with the rest.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from msgspec.structs import replace

from chatstate.errors import WriteRefused
from chatstate.mailbox import OutboxEntry, OutboxQuery, Postpone, Progress, Receive, Send, Settle
from chatstate.model import (
    PRESENT,
    IdempotencyKey,
    Replay,
    Retention,
    Save,
    Session,
    Version,
    VersionQuery,
)
from chatstate.record import PutRecord
from chatstate.row import (
    SHELVES,
    AnyRow,
    DropRow,
    InboxRow,
    OutboxRow,
    PutRow,
    RecordRow,
    RememberedRow,
    RowChanged,
    RowCount,
    RowQuery,
    RowShelf,
    SessionRow,
    VersionRow,
    VisitRow,
    shelf_of,
)
from chatstate.stores.base import AnyWrite, Reader, Store, all_readable
from chatstate.visit import CreateVisit

NOW = datetime(2025, 10, 2, 10, 0, 0, 123456, UTC)
EARLY = datetime(1, 1, 1, 0, 0, 0, 1, UTC)
LATE = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
HISTORY = Retention(history=10)

NAMES = ("", "B", "a", "a ", "é", "e\u0301", "\uffff", "😀", "'", "\\", "%_")
"""What is sorted in another way than by bytes almost everywhere."""


class RowChecks:
    """The checks, for the two stores that the suite works on."""

    one: Store
    other: Store
    prefix: str

    def id(self, name: object = "") -> str:
        """An id that nobody else uses."""
        raise NotImplementedError

    async def commit(self, write: AnyWrite, store: Store | None = None) -> Any:
        """The outcome of one write by itself."""
        raise NotImplementedError

    async def _rows(self, shelf: RowShelf, reader: Reader | None = None, **given: Any) -> list[Any]:
        """All rows of the suite on this shelf, page by page."""
        found: list[AnyRow] = []
        after: tuple[str | int, ...] = () if shelf == "visits" else (self.prefix[:-1], *_LEAST[shelf])
        while page := await self._page(shelf, after, reader, **given):
            found += page
            after = page[-1].place
            if shelf != "visits" and not str(after[0]).startswith(self.prefix):
                break
        return [row for row in found if self._is_ours(row)]

    async def _page(
        self, shelf: RowShelf, after: tuple[str | int, ...], reader: Reader | None = None, **given: Any
    ) -> Sequence[AnyRow]:
        query = RowQuery(shelf=shelf, after=after, **given)
        return cast(Sequence[AnyRow], await (reader or self.other).list(query))

    def _is_ours(self, row: AnyRow) -> bool:
        name = row.user_session_id if isinstance(row, VisitRow) else row.place[0]
        return str(name).startswith(self.prefix)

    async def _all(self, reader: Reader | None = None) -> dict[RowShelf, list[Any]]:
        return {shelf: await self._rows(shelf, reader) for shelf in SHELVES}

    async def _fill_shelves(self) -> None:
        """Rows on every shelf, by the writes that make them."""
        for number in range(4):
            name = self.id(number % 2)
            await self.one.commit([_saving(name, f"state {number}", expires_in=3600 if number else None)], HISTORY)
        for name in (self.id(0), self.id(1)):
            once = IdempotencyKey("key", b"digest", "caller")
            await self.one.commit([replace(_saving(name, None, expect=PRESENT), once=once)], HISTORY)
        await self.commit(
            CreateVisit(
                session_id=str(uuid.uuid4()),
                user_session_id=self.id(0),
                created_at=NOW,
                session_start_time=NOW,
                session_end_time=NOW + timedelta(minutes=5),
                ip_address="2001:db8::7",
                user_agent="agent",
            )
        )
        for key in "ab":
            await self.commit(PutRecord(collection=self.prefix, key=key, document=f"record {key}", now=NOW))
            await self.commit(_arriving(f"{self.prefix}{key}", self.prefix))
        send = Send(key=f"{self.prefix}a", conversation=self.prefix, user_session_id=self.id(0), document="reply")
        more = replace(send, key=f"{self.prefix}b")
        await self.commit(Settle(key=f"{self.prefix}a", now=NOW, sends=(send, more)))
        await self.commit(Postpone(key=f"{self.prefix}b", now=NOW, due_at=LATE, tries=3, error="why", aside=True))
        await self.commit(Progress(now=NOW, status="sent", key=f"{self.prefix}b", provider_key="hash"))

    def _made(self, name: str, number: int = 7) -> list[Any]:
        """A row for each shelf, as no write would make them."""
        mine, session_id = self.id(name), str(uuid.uuid4())
        owner: dict[str, Any] = {"user_session_id": mine, "session_id": session_id}
        times: dict[str, Any] = {"last_activity": LATE, "created_at": NOW, "updated_at": EARLY, "expires_at": NOW}
        mail: dict[str, Any] = {"key": mine, "conversation": self.prefix, "due_at": LATE, "error": "e"}
        return [
            SessionRow(**owner, **times, chat_state="$chatstate$x", version=number, expires_in=77),
            VersionRow(**owner, version=number - 2, last_activity=EARLY, saved_at=LATE, chat_state=""),
            RememberedRow(
                **(owner | times | {"caller": "", "key": "k", "digest": b"\x00\xff", "forget_at": LATE}),
                deleted=False,
                version=number,
                chat_state="kept",
            ),
            VisitRow(
                **(owner | {"user_id": None, "session_start_time": LATE, "session_end_time": EARLY}),
                total_messages_count=number,
                given_duration_minutes=0,
                session_completed=True,
                session_outcome="",
                final_step_reached="é",
                user_agent=None,
                device_type=None,
                ip_address="203.0.113.7",
                created_at=EARLY,
            ),
            RecordRow(
                collection=self.prefix,
                key=name,
                document="{}",
                version=number,
                changed_at=EARLY,
                expires_at=EARLY,
            ),
            InboxRow(
                **(mail | {"number": number, "document": "", "status": "aside", "tries": number}),
                sent_at=EARLY,
                received_at=NOW,
            ),
            OutboxRow(
                **(mail | {"number": number + uuid.uuid4().int % (1 << 40), "user_session_id": mine, "tries": 1}),
                document="d",
                status="read",
                rank=4,
                provider_key=None,
                created_at=EARLY,
            ),
        ]

    async def _put_rows(self, rows: Iterable[AnyRow]) -> list[bool]:
        outcomes = await self.one.commit([PutRow(row) for row in rows])
        return [outcome == RowChanged(True) for outcome in outcomes]

    async def every_row_is_listed_whole(self) -> None:
        await self._fill_shelves()
        found = await self._all()
        assert {shelf: len(rows) for shelf, rows in found.items()} == _COUNTS, found
        loaded = all_readable(await self.one.load([self.id(0), self.id(1)], NOW))
        for row in found["sessions"]:
            session = loaded[row.user_session_id]
            assert [getattr(row, name) for name in _SESSION] == [getattr(session, name) for name in _SESSION]
        assert [row.expires_in for row in found["sessions"]] == [3600, 3600]
        assert [row.version for row in found["versions"]] == [1, 2, 3, 1, 2, 3]
        assert [(row.key, row.digest, row.version, row.deleted) for row in found["remembered"]] == [
            ("key", b"digest", 3, False)
        ] * 2
        (visit,) = found["visits"]
        assert (visit.ip_address, visit.given_duration_minutes) == ("2001:db8::7", None)
        assert [(row.status, row.tries, row.error) for row in found["inbox"]] == [
            ("applied", 0, ""),
            ("aside", 3, "why"),
        ]
        assert [(row.status, row.rank, row.provider_key) for row in found["outbox"]] == [
            ("queued", 0, None),
            ("sent", 1, "hash"),
        ]
        for shelf in SHELVES:
            (count,) = await self.other.list(RowCount(shelf))
            assert cast(int, count) >= len(found[shelf])

    async def a_row_that_is_put_back_is_as_it_was(self) -> None:
        """Every row is removed, and put there again: nobody sees a difference, and what comes later goes on."""
        await self._fill_shelves()
        before = await self._all()
        seen = await self._seen()
        drops = [DropRow(shelf, row.place) for shelf in reversed(SHELVES) for row in before[shelf]]
        assert list(await self.one.commit(drops)) == [RowChanged(True)] * len(drops)
        assert await self._all() == {shelf: [] for shelf in SHELVES}
        assert list(await self.one.commit(drops)) == [RowChanged(False)] * len(drops)
        rows = [row for shelf in SHELVES for row in before[shelf]]
        assert all(await self._put_rows(rows))
        assert await self._all() == before
        assert await self._seen() == seen
        assert all(await self._put_rows(rows)), "twice does no harm"
        assert await self._all() == before
        saved = await self.commit(_saving(self.id(0), "later"))
        assert (saved.version, saved.session_id) == (4, before["sessions"][0].session_id)

    async def _seen(self) -> list[Any]:
        """What a server sees of it."""
        once = IdempotencyKey("key", b"digest", "caller")
        sessions = all_readable(await self.other.load([self.id(0), self.id(1)], NOW))
        retried = await self.commit(replace(_saving(self.id(0), None, expect=PRESENT), once=once), self.other)
        assert isinstance(retried, Replay)
        query = VersionQuery(user_session_id=self.id(0), now=NOW, with_state=True)
        versions = cast(Sequence[Version], await self.other.list(query))
        mail = await self.other.list(OutboxQuery(now=NOW, conversation=self.prefix))
        return [sessions, retried, versions, mail]

    async def a_row_takes_the_place_of_another(self) -> None:
        """With members of every kind at their ends; the version may fall, and stays when it is the same."""
        for number in (9, 7, 7):
            made = self._made("x", number)
            assert all(await self._put_rows(made))
            found = await self._all()
            assert [row for shelf in SHELVES for row in found[shelf] if shelf != "visits"] == [
                row for row in made if not isinstance(row, VisitRow)
            ]
            assert next(row for row in made if isinstance(row, VisitRow)) in found["visits"]
        changed = replace(made[0], chat_state="other", updated_at=LATE, expires_in=None, expires_at=None)
        await self._put_rows([changed])
        assert await self._rows("sessions") == [changed], "and no trigger has raised anything"
        assert await self._rows("versions") == [made[1]]

    async def a_version_goes_with_its_session(self) -> None:
        session, version, *_ = self._made("x")
        assert await self._put_rows([version]) == [False], "its session is not there"
        assert await self._put_rows([session, version]) == [True, True]
        assert await self._put_rows([replace(version, session_id=str(uuid.uuid4()))]) == [False]
        assert await self._rows("versions") == [version]
        await self._put_rows([replace(session, session_id=str(uuid.uuid4()))])
        assert await self._rows("versions") == [], "another session has none of them"
        await self._put_rows([session])
        assert await self._rows("versions") == []

    async def pages_are_in_the_order_of_bytes_and_bounded(self) -> None:
        rows = {shelf: sorted(self._made_many(shelf), key=lambda row: row.place) for shelf in SHELVES}
        assert all(await self._put_rows(row for shelf in SHELVES for row in rows[shelf]))
        for shelf, expected in rows.items():
            pages: tuple[dict[str, Any], ...] = ({"limit": 1000}, {"limit": 2}, {"size": 5})
            for given in pages:
                if shelf == "visits":
                    found = [row.place for row in await self._rows(shelf)]
                    assert [place for place in found if place in {row.place for row in expected}] == sorted(found)
                else:
                    assert await self._rows(shelf, **given) == expected, (shelf, given)
        after = (self.prefix[:-1],)
        assert len(await self._page("sessions", after, limit=3)) == 3
        assert [len(await self._page("sessions", after, size=size)) for size in (0, 5, 20)] == [1, 1, 2]

    def _made_many(self, shelf: RowShelf) -> list[AnyRow]:
        rows = [self._made(name)[SHELVES.index(shelf)] for name in NAMES]
        return [replace(row, session_id=_uuid_of(row.place[0])) if _has_session(row) else row for row in rows]

    async def what_is_sent_later_has_a_greater_number(self) -> None:
        rows = [row for name in "xy" for row in self._made(name) if isinstance(row, OutboxRow)]
        await self._put_rows(rows)
        await self.commit(_arriving(f"{self.prefix}m", self.prefix))
        send = Send(key=f"{self.prefix}new", conversation=self.prefix, user_session_id=self.id("x"), document="reply")
        await self.commit(Settle(key=f"{self.prefix}m", now=NOW, sends=(send,)), self.other)
        listed = cast(list[OutboxEntry], await self.one.list(OutboxQuery(now=NOW, conversation=self.prefix)))
        assert [entry.key for entry in listed][-1] == send.key
        assert listed[-1].number > max(row.number for row in rows)

    async def a_row_that_cannot_be_kept_is_refused(self) -> None:
        session = self._made("x")[0]
        for bad in ("nul \x00", "lone \ud800"):
            try:
                await self._put_rows([replace(session, chat_state=bad)])
            except WriteRefused:
                assert await self._rows("sessions") == []
            else:
                raise AssertionError(f"the store took {bad!r}")

    async def a_snapshot_stays_as_it_was_or_says_nothing_wrong(self) -> None:
        """A store that holds a moment shows nothing of what comes later; another one shows what is there."""
        await self._fill_shelves()
        before = await self._all()
        async with self.other.snapshot() as reader:
            held = await self._all(reader)
            await self.commit(_saving(self.id(0), "later"))
            assert held == before
            (now, _) = await self._rows("sessions", reader)
            assert now.version == 3 or reader is self.other
        assert (await self._rows("sessions"))[0].version == 4


_LEAST: dict[RowShelf, tuple[str | int, ...]] = {
    "sessions": (),
    "versions": (0,),
    "remembered": ("", ""),
    "records": ("",),
    "inbox": (),
    "outbox": (),
}
"""What completes a place, behind its first part, to one before all others."""

_COUNTS = {"sessions": 2, "versions": 6, "remembered": 2, "visits": 1, "records": 2, "inbox": 2, "outbox": 2}
_SESSION = [name for name in Session.__struct_fields__ if name != "chat_state"]  # that lies there sealed, perhaps


def _saving(user_session_id: str, state: str | None, **given: Any) -> Save:
    return Save(
        user_session_id=user_session_id,
        new_session_id=str(uuid.uuid4()),
        chat_state=state,
        last_activity=NOW,
        now=NOW,
        **given,
    )


def _arriving(key: str, conversation: str) -> Receive:
    return Receive(key=key, conversation=conversation, document="message", sent_at=NOW, now=NOW)


def _uuid_of(name: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(name)))


def _has_session(row: AnyRow) -> bool:
    return shelf_of(row) in ("sessions", "versions")
