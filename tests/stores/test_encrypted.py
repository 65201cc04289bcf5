"""Stores that are encrypted: what lies there, what cannot be read, and sealing it anew while others write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from msgspec.structs import replace

from chatstate import create_app
from chatstate.encryption import KeyRing
from chatstate.errors import StateUnreadable, WriteRefused
from chatstate.http.messages import Headers, Request
from chatstate.model import (
    PRESENT,
    IdempotencyKey,
    Replay,
    ReplayQuery,
    Retention,
    Rewrite,
    Session,
    SessionQuery,
    Shelf,
    Stored,
    StoredQuery,
    Version,
    VersionQuery,
    utc_now,
)
from chatstate.record import PutRecord, RecordQuery
from chatstate.reencryption import Reencryption
from chatstate.sessions import Sessions
from chatstate.stores import EncryptedStore, create_store
from chatstate.stores.base import all_readable
from chatstate.stores.contract import NOW, saving
from tests.servers.canaries import CANARY
from tests.servers.valkey_contents import contents_of
from tests.stores.old_tables import connected

OLD, NEW = KeyRing([b"o" * 32]), KeyRing([b"n" * 32])
BOTH = KeyRing([b"n" * 32, b"o" * 32])
HISTORY = Retention(history=10)


@asynccontextmanager
async def opened(url: str, ring: KeyRing | None = None) -> AsyncIterator[EncryptedStore]:
    store = create_store(url, owner=False, key_ring=ring)
    await store.open()
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


async def save(store: EncryptedStore, user_session_id: str, state: str | None, **given: Any) -> Any:
    write = saving(user_session_id, state, **given)
    return (await store.commit([write], HISTORY))[0]


async def load(store: EncryptedStore, user_session_id: str) -> Any:
    return (await store.load([user_session_id], NOW)).get(user_session_id)


async def lying(store: EncryptedStore, shelf: Shelf = "sessions") -> Sequence[Stored]:
    query = StoredQuery(shelf=shelf, head="no text begins with this", limit=10_000)
    return cast(Sequence[Stored], await store.inner.list(query))


async def replace_text(store: EncryptedStore, row: Stored, text: str) -> None:
    await store.commit([Rewrite(shelf=row.shelf, place=row.place, text=row.text or "", replaced_by=text)])


async def fill(store: EncryptedStore, secret: str) -> None:
    for number in range(3):
        await save(store, "a", f"{secret} {number}")
    touch = saving("a", None, PRESENT)
    once = IdempotencyKey("key", b"digest")
    await store.commit([replace(touch, once=once)])
    await store.commit([PutRecord(collection="c", key="k", document=secret, now=NOW)])


async def test_nothing_lies_there_in_the_clear(store_url: str, tmp_path: Path) -> None:
    secret = f"{CANARY}-sealed"
    async with opened(store_url, NEW) as store:
        await fill(store, secret)
        rows = [row for shelf in get_args(Shelf) for row in await lying(store, shelf)]
        assert len(rows) >= 6
        assert all(row.text is None or row.text.startswith(NEW.head) for row in rows)
        if store_url.startswith("sqlite"):
            assert files_with(secret, tmp_path) == []
        elif store_url.startswith("valkey"):
            assert await keys_with(secret, store_url) == []
        else:
            assert await tables_with(secret, store_url) == []


def files_with(text: str, folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if text.encode() in file.read_bytes()]


async def tables_with(text: str, url: str) -> list[str]:
    async with connected(url) as connection:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'chatstate')"
        )
        found = []
        for (table,) in tables:
            if await connection.fetchval(
                f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%' || $1 || '%'", text
            ):
                found.append(table)
        return found


async def keys_with(text: str, url: str) -> list[bytes]:
    contents = await contents_of(url)
    assert len(contents) >= 6
    return [key for key, parts in contents.items() if text in str((key, parts))]


async def test_rows_from_before_go_on_being_read(store_url: str) -> None:
    states = ["{}", "$chatstate$", "$chatstate$plain$x", OLD.seal("chat_state", "s3", "sealed by somebody else")]
    async with opened(store_url) as plain:
        for number, state in enumerate(states):
            await save(plain, f"s{number}", state)
            await save(plain, f"s{number}", state)
    async with opened(store_url, NEW) as store:
        for number, state in enumerate(states):
            assert (await load(store, f"s{number}")).chat_state == state
            rows = await store.list(VersionQuery(user_session_id=f"s{number}", now=NOW, with_state=True))
            versions = cast(Sequence[Version], rows)
            assert {(row.chat_state, row.size) for row in versions} == {(state, len(state))}


async def test_of_an_encrypted_server_nothing_is_served_without_its_key(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        await save(store, "a", "secret")
        await save(store, "b", "secret too")
    for ring in (KeyRing(), NEW):
        async with opened(store_url, ring) as store:
            await save(store, "c", "clear")
            found = await store.load(["a", "b", "c"], NOW)
            assert isinstance(found["a"], StateUnreadable)
            assert isinstance(found["b"], StateUnreadable)
            assert cast(Session, found["c"]).chat_state == "clear"
            for query in (
                SessionQuery(now=NOW, with_state=True),
                VersionQuery(user_session_id="a", now=NOW, with_state=True),
            ):
                with pytest.raises(StateUnreadable):
                    await store.list(query)
            assert len(await store.list(SessionQuery(now=NOW))) == 3


async def test_one_session_that_cannot_be_read_does_not_fail_its_neighbours(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        await save(store, "a", "secret")
    async with opened(store_url, NEW) as store:
        sessions = Sessions(store)
        await sessions.save("b", "clear")
        answers = await asyncio.gather(sessions.load("a"), sessions.load("b"), return_exceptions=True)
        assert isinstance(answers[0], StateUnreadable)
        assert cast(Session, answers[1]).chat_state == "clear"


async def test_a_state_that_cannot_be_read_can_be_replaced_and_not_be_edited(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        await save(store, "a", "secret")
    async with opened(store_url, NEW) as store:
        sessions = Sessions(store)

        async def change(state: str) -> str:
            return state + " and more"

        with pytest.raises(StateUnreadable):
            await sessions.edit("a", change)
        assert (await sessions.save("a", "new")).version == 2
        assert (await sessions.load("a")).chat_state == "new"


async def test_rows_that_were_swapped_are_refused(store_url: str) -> None:
    async with opened(store_url, NEW) as store:
        for name in ("a", "b"):
            await save(store, name, f"state of {name}")
        rows = await lying(store)
        for row, other in zip(rows, reversed(rows), strict=True):
            await replace_text(store, row, other.text or "")
        found = await store.load(["a", "b"], NOW)
        assert [type(session) for session in found.values()] == [StateUnreadable, StateUnreadable]


async def test_a_record_that_was_put_elsewhere_is_refused(store_url: str) -> None:
    async with opened(store_url, NEW) as store:
        for key in ("mine", "yours"):
            await store.commit([PutRecord(collection="c", key=key, document=key, now=NOW)])
        first, second = await lying(store, "records")
        await replace_text(store, first, second.text or "")
        with pytest.raises(StateUnreadable):
            await store.list(RecordQuery(collection="c", now=NOW))


async def test_the_alarm_is_raised_once_in_a_while_and_names_no_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, now = f"sqlite:///{tmp_path}/a.db", [0.0]
    async with opened(url, OLD) as store:
        for number in range(3):
            await save(store, f"person-{number}", "secret")
    async with opened(url, NEW) as store:
        store._clock = lambda: now[0]
        with caplog.at_level(logging.ERROR):
            for _ in range(5):
                await store.load([f"person-{number}" for number in range(3)], NOW)
            assert len(caplog.records) == 1
            now[0] = 60.0
            await load(store, "person-0")
        assert len(caplog.records) == 2
        assert str(OLD.newest) in caplog.text
        assert "person" not in caplog.text
        assert "secret" not in caplog.text


@pytest.mark.parametrize("state", ["nul \0", "lone \ud800"])
async def test_what_could_not_be_kept_in_the_clear_is_refused_sealed_too(store_url: str, state: str) -> None:
    async with opened(store_url, NEW) as store:
        with pytest.raises(WriteRefused):
            await save(store, "a", state)


# --- Re-encryption ----------------------------------------------------------------------------------------------------


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


async def reencrypt(store: EncryptedStore, opening: KeyRing, sealing: KeyRing) -> Any:
    return await Reencryption(store.inner, opening, sealing, no_pause).run()


async def test_everything_is_sealed_anew_and_nothing_else_changes(store_url: str) -> None:
    async with opened(store_url) as store:
        await save(store, "from before", "clear")
    async with opened(store_url, OLD) as store:
        await fill(store, "secret")
    async with opened(store_url, BOTH) as store:
        before = await store.load(["a", "from before"], NOW)
        counts = await reencrypt(store, BOTH, BOTH)
        assert (counts.overtaken, counts.unreadable) == (0, 0)
        assert (await reencrypt(store, BOTH, BOTH)).rewritten == 0
    async with opened(store_url, NEW) as store:
        assert await store.load(["a", "from before"], NOW) == before
        rows = await store.list(VersionQuery(user_session_id="a", now=NOW, with_state=True))
        assert [cast(Version, row).chat_state for row in rows] == ["secret 2", "secret 2", "secret 1", "secret 0"]
        query = ReplayQuery(user_session_id="a", once=IdempotencyKey("key", b"digest"), now=NOW)
        assert [cast(Any, row).chat_state for row in await store.list(query)] == ["secret 2"]
        (record,) = await store.list(RecordQuery(collection="c", now=NOW))
        assert cast(Any, record).document == "secret"


async def test_the_encryption_can_be_taken_off(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        await fill(store, "secret")
        await save(store, "b", "$chatstate$ by itself")
        await reencrypt(store, OLD, KeyRing())
    async with opened(store_url) as store:
        assert (await load(store, "a")).chat_state == "secret 2"
        assert (await load(store, "b")).chat_state == "$chatstate$ by itself"


async def test_what_cannot_be_opened_is_counted_and_left(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        await save(store, "a", "secret")
    async with opened(store_url, NEW) as store:
        await save(store, "b", "clear")
        counts = await reencrypt(store, NEW, NEW)
        assert counts.unreadable == 2, "the state, and its version"
    async with opened(store_url, OLD) as store:
        assert (await load(store, "a")).chat_state == "secret"


async def test_no_write_is_lost_while_everything_is_sealed_anew(store_url: str) -> None:
    ids = [f"session {number}" for number in range(20)]
    async with opened(store_url, OLD) as store:
        for user_session_id in ids:
            await save(store, user_session_id, "0")
    async with opened(store_url, BOTH) as store, opened(store_url, BOTH) as other:
        written = dict.fromkeys(ids, 1)
        done = asyncio.Event()

        async def write(turn: int) -> None:
            while not done.is_set():
                for user_session_id in ids[turn::8]:
                    session = await save(other, user_session_id, str(written[user_session_id]))
                    written[user_session_id] += 1
                    assert session.version == written[user_session_id], "nobody but the writers raises a version"

        writers = [asyncio.create_task(write(turn)) for turn in range(8)]
        for _ in range(3):
            await reencrypt(store, BOTH, BOTH)
        done.set()
        await asyncio.gather(*writers)
        await reencrypt(store, BOTH, BOTH)
    async with opened(store_url, NEW) as store:
        found = all_readable(await store.load(ids, NOW))
        assert {name: session.version for name, session in found.items()} == written
        assert {name: session.chat_state for name, session in found.items()} == {
            name: str(count - 1) for name, count in written.items()
        }


async def test_what_was_interrupted_goes_on(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        for number in range(250):
            await save(store, f"session {number:03}", str(number))
    steps = 0

    async def interrupted(_seconds: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt

    async with opened(store_url, BOTH) as store:
        with pytest.raises(KeyboardInterrupt):
            await Reencryption(store.inner, BOTH, BOTH, interrupted).run()
        left = [row for row in await lying(store) if not (row.text or "").startswith(NEW.head)]
        assert 0 < len(left) < 250
        await reencrypt(store, BOTH, BOTH)
    async with opened(store_url, NEW) as store:
        rows = await store.list(SessionQuery(now=NOW, with_state=True, order="id", limit=1000))
        assert [cast(Session, row).chat_state for row in rows] == [str(number) for number in range(250)]


async def test_an_expired_session_is_sealed_anew_too(store_url: str) -> None:
    async with opened(store_url, OLD) as store:
        write = saving("a", "secret")
        await store.commit([replace(write, expires_in=1)])
        assert await store.load(["a"], utc_now()) == {}
        await reencrypt(store, BOTH, BOTH)
        assert all((row.text or "").startswith(NEW.head) for row in await lying(store))


async def test_a_write_that_keeps_an_unreadable_state_changes_nothing(store_url: str) -> None:
    """Above all not its expiry: the session would be gone before the key is found again."""
    async with opened(store_url, OLD) as store:
        await save(store, "a", "kept")
    async with opened(store_url, NEW) as store:
        touched = replace(saving("a", None, PRESENT), expires_in=5)
        others = [saving("b", "new"), replace(saving("b", None, PRESENT), expires_in=5), saving("c", "new")]
        outcomes = await store.commit([touched, *others], HISTORY)
        assert isinstance(outcomes[0], StateUnreadable)
        assert [getattr(outcome, "chat_state", None) for outcome in outcomes[1:]] == ["new", "new", "new"]
        assert isinstance((await store.commit([touched], HISTORY))[0], StateUnreadable)
    async with opened(store_url, OLD) as store:
        session = await load(store, "a")
        assert (session.version, session.expires_at, session.chat_state) == (1, None, "kept")


async def test_the_digest_of_a_request_tells_no_guess_of_its_body(store_url: str) -> None:
    body = b'{"user_session_id": "a", "chat_state": "yes"}'
    guesses = {sha256(b"save\0" + body).digest(), sha256(body).digest()}
    digests = []
    for _ in range(2):
        store = create_store(store_url, owner=False, key_ring=NEW)
        app = create_app(store)
        async with app.lifespan():
            fields = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"idempotency-key", b"k")]
            answer = await app.respond(Request("POST", "/chat-state-sessions", Headers(fields), body))
            assert answer.status == 201
            rows = await store.list(ReplayQuery(user_session_id="a", once=IdempotencyKey("k", b""), now=utc_now()))
            digests += [row.digest for row in rows if isinstance(row, Replay)]
    assert len(digests) == 2
    assert len(set(digests)) == 1, "servers of one store have the same key, so a retry is known to all of them"
    assert not guesses & set(digests)
