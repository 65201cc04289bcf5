"""What the PostgreSQL store says and does when its database stops, hangs, cuts connections, refuses or locks.

Two things are shown again and again: the error says the truth about what was written, and the same store object works
again as soon as the fault is gone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from chatstate.errors import (
    InvalidSetting,
    OutcomeUnknown,
    SchemaMismatch,
    SessionLocked,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnreachable,
    WriteRefused,
)
from chatstate.model import ABSENT, PRESENT, Session, Write
from chatstate.sessions import Sessions
from chatstate.stores import postgres_connection
from chatstate.stores.contract import NOW, deleting, saving
from chatstate.stores.postgres import PostgresStore
from tests.servers.fault_proxy import FaultProxy
from tests.servers.pgbouncer import PgBouncer
from tests.servers.ports import at_port, free_port
from tests.servers.postgres import PostgresServer, database_of

HEAL_SECONDS = 5
"""How soon a store works again after its database does."""

PATIENCE_SECONDS = 20
"""How long a test waits for what must happen at some time."""


# --- Databases, connections and stores --------------------------------------------------------------------------------


@pytest.fixture
async def url(own_postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database on a server that runs again, whatever the test did to it, when the test is over."""
    url = await own_postgres.create_database()
    yield url
    await asyncio.to_thread(own_postgres.start)
    await own_postgres.drop_database(url)


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    async with opened(url) as store:
        yield store


@pytest.fixture
async def proxy(own_postgres: PostgresServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(own_postgres.host, own_postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def proxied(url: str, proxy: FaultProxy) -> AsyncIterator[PostgresStore]:
    """A store that reaches the database of `url` through the proxy."""
    async with opened(at_port(url, proxy.port)) as store:
        yield store


@pytest.fixture
async def other(url: str) -> AsyncIterator[Any]:
    """The connection of another program to the same database."""
    async with connected(url) as connection:
        yield connection


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For stores that are opened afterwards: every wait ends soon."""
    monkeypatch.setattr(postgres_connection, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(postgres_connection, "ACQUIRE_SECONDS", 0.3)
    monkeypatch.setattr(postgres_connection, "COMMAND_SECONDS", 1)
    monkeypatch.setattr(postgres_connection, "LOCK_MILLISECONDS", 300)


@asynccontextmanager
async def opened(url: str, pool_size: int | None = None, migrated: bool = True) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, pool_size)
    await store.open()
    try:
        if migrated:
            await store.migrate()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def row_held(url: str, user_session_id: str) -> AsyncIterator[None]:
    """Another program holds the session's row."""
    async with connected(url) as connection:
        await connection.execute("BEGIN")
        found = await connection.fetch(
            "SELECT FROM chat_state_sessions WHERE user_session_id = $1 FOR UPDATE", user_session_id
        )
        assert found
        yield
        await connection.execute("ROLLBACK")


async def commit_one(store: PostgresStore, write: Write) -> Any:
    """The outcome of one write by itself."""
    (outcome,) = await store.commit([write])
    return outcome


async def load_one(store: PostgresStore, user_session_id: str) -> Session | None:
    return (await store.load([user_session_id], NOW)).get(user_session_id)


async def until(condition: Callable[[], Awaitable[object]], seconds: float = PATIENCE_SECONDS) -> None:
    """Ask until it holds; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # it is another process that is waited for
            await asyncio.sleep(0.01)


_OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'chatstate'"


async def connection_states(other: Any) -> list[str]:
    """What each connection of a store is doing."""
    return [row[0] for row in await other.fetch(f"SELECT state {_OURS} ORDER BY state")]


async def until_one_waits_for_a_lock(other: Any) -> None:
    await until(lambda: other.fetchval(f"SELECT count(*) {_OURS} AND wait_event_type = 'Lock'"))


async def until_idle(other: Any, connections: int) -> None:
    """No more than so many connections, and none at work or in a transaction."""

    async def idle() -> bool:
        states = await connection_states(other)
        return len(states) <= connections and set(states) <= {"idle"}

    await until(idle)


async def until_it_works(store: PostgresStore) -> None:
    """The store, without being opened again, soon saves and loads."""

    async def works() -> bool:
        try:
            saved = await commit_one(store, saving("again"))
        except StoreError:
            return False
        return bool(await load_one(store, "again") == saved)

    await until(works, HEAL_SECONDS)


async def make_trigger(other: Any, body: str, events: str = "INSERT OR UPDATE OR DELETE") -> None:
    """A trigger of another program on each row; `NEW.user_session_id` and `OLD` are there to be looked at."""
    await other.execute(
        "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {body} RETURN coalesce(NEW, OLD); END $$;"
        f"CREATE TRIGGER fault BEFORE {events} ON chat_state_sessions FOR EACH ROW EXECUTE FUNCTION fault()"
    )


async def drop_trigger(other: Any) -> None:
    await other.execute("DROP TRIGGER fault ON chat_state_sessions")


def one_of_each() -> list[Write]:
    """A batch that needs a transaction: it creates `a` and `d`, changes `b` and deletes `c`, which must be there."""
    return [
        saving("a", "new"),
        saving("b", "new", PRESENT),
        deleting("c"),
        saving("d", "new", ABSENT),
    ]


async def states(url: str) -> dict[str, str]:
    """All rows, read without any store."""
    async with connected(url) as connection:
        return dict(await connection.fetch("SELECT user_session_id, chat_state FROM chat_state_sessions"))


BEFORE = {"b": "old", "c": "old"}
AFTER = {"a": "new", "b": "new", "d": "new"}


async def make_rows(store: PostgresStore) -> None:
    """The rows that `one_of_each` works on, and every statement prepared once."""
    await store.commit([saving("b", "old"), saving("c", "old")])


Call = Callable[[PostgresStore], Awaitable[object]]

CALLS: dict[str, Call] = {
    "status": lambda store: store.status(),
    "load": lambda store: store.load(["b"], NOW),
    "migrate": lambda store: store.migrate(),
    "upsert": lambda store: store.commit([saving("a", "new")]),
    "insert": lambda store: store.commit([saving("a", "new", ABSENT)]),
    "update": lambda store: store.commit([saving("b", "new", PRESENT)]),
    "delete": lambda store: store.commit([deleting("c")]),
    "mixed": lambda store: store.commit(one_of_each()),
}


# --- The database stops -----------------------------------------------------------------------------------------------


async def test_a_stopped_database_is_unavailable_to_every_method_and_the_store_comes_back(
    own_postgres: PostgresServer, store: PostgresStore, url: str
) -> None:
    await make_rows(store)
    await asyncio.to_thread(own_postgres.stop)
    for call in CALLS.values():
        with pytest.raises(StoreUnavailable):
            await call(store)
    await asyncio.to_thread(own_postgres.start)
    assert await states(url) == BEFORE
    await until_it_works(store)
    for call in CALLS.values():
        await call(store)
    assert await states(url) == {**AFTER, "again": "{}"}


async def test_a_stopped_database_cannot_be_opened(own_postgres: PostgresServer, url: str) -> None:
    await asyncio.to_thread(own_postgres.stop)
    await cannot_open(url, f"{own_postgres.host}:{own_postgres.port}", "Is it running")


async def test_a_killed_database_keeps_what_was_acknowledged(own_postgres: PostgresServer, url: str) -> None:
    """Writers go on while the database is killed again and again; every answer turns out to be true."""
    async with opened(url) as store:
        writers = [Writer(store, f"writer-{number}") for number in range(8)]
        for _ in range(3):
            tasks = [asyncio.create_task(writer.run()) for writer in writers]
            await until_each_saved(writers)
            await asyncio.to_thread(own_postgres.kill)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*tasks)
            await asyncio.to_thread(own_postgres.start)
            await until_it_works(store)
            for writer in writers:
                await writer.check()


async def until_each_saved(writers: Sequence[Writer]) -> None:
    goals = [writer.acknowledged + 5 for writer in writers]

    async def all_saved() -> bool:
        return all(writer.acknowledged >= goal for writer, goal in zip(writers, goals, strict=True))

    await until(all_saved)


class Writer:
    """Saves rising numbers under its id until an error comes, and remembers what it was told."""

    def __init__(self, store: PostgresStore, user_session_id: str) -> None:
        self.store = store
        self.id = user_session_id
        self.last = self.acknowledged = 0
        self.unknown: set[int] = set()

    async def run(self) -> None:
        while True:
            self.last += 1
            try:
                await commit_one(self.store, saving(self.id, str(self.last)))
            except OutcomeUnknown:
                self.unknown.add(self.last)
                return
            except StoreUnavailable:
                return
            self.acknowledged = self.last

    async def check(self) -> None:
        session = await load_one(self.store, self.id)
        assert session is not None
        possible = {self.acknowledged} | {number for number in self.unknown if number > self.acknowledged}
        assert int(session.chat_state) in possible
        self.acknowledged = int(session.chat_state)
        self.unknown.clear()


@pytest.mark.usefixtures("short_waits")
async def test_a_stopped_database_behind_a_pooler_is_unavailable_and_comes_back(
    own_postgres: PostgresServer, pgbouncer: PgBouncer, url: str
) -> None:
    async with opened(pgbouncer.url(database_of(url))) as store:
        assert "pooler" in (await store.status()).store
        await make_rows(store)
        await asyncio.to_thread(own_postgres.stop)
        for kind in ("load", "upsert", "mixed"):
            with pytest.raises(StoreUnavailable):
                await CALLS[kind](store)
        await asyncio.to_thread(own_postgres.start)
        assert await states(url) == BEFORE
        await until_it_works(store)


# --- Connections are cut ----------------------------------------------------------------------------------------------

_OUTCOMES = {
    "upsert": (b"ON CONFLICT (user_session_id) DO UPDATE", {**BEFORE, "a": "new"}),
    "insert": (b"nullif(w.expires_in, 0)", {**BEFORE, "a": "new"}),
    "update": (b'UPDATE "public".chat_state_sessions', {"b": "new", "c": "old"}),
    "delete": (b'DELETE FROM "public".chat_state_sessions', {"b": "old"}),
    "mixed": (b"COMMIT", AFTER),
}


@pytest.mark.parametrize("kind", _OUTCOMES)
async def test_a_cut_in_place_of_the_answer_to_a_commit_leaves_the_outcome_unknown(
    kind: str, proxied: PostgresStore, proxy: FaultProxy, url: str
) -> None:
    marker, after = _OUTCOMES[kind]
    await make_rows(proxied)
    proxy.cut_reply_to(marker)
    with pytest.raises(OutcomeUnknown):
        await CALLS[kind](proxied)
    assert proxy.cuts == 1
    assert await states(url) == after
    await until_it_works(proxied)


async def test_a_write_of_unknown_outcome_is_not_tried_again(
    proxied: PostgresStore, proxy: FaultProxy, url: str
) -> None:
    sessions = Sessions(proxied)
    proxy.cut_reply_to(b"ON CONFLICT")
    answers = await asyncio.gather(*(sessions.save(name, "once") for name in "xyz"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OutcomeUnknown] * 3
    assert [session.version for session in (await proxied.load(list("xyz"), NOW)).values()] == [1, 1, 1]


@pytest.mark.parametrize("marker", [b"BEGIN", b"FOR UPDATE", b"DO UPDATE", b"DELETE FROM", b"nullif(w.expires_in, 0)"])
async def test_a_cut_before_the_commit_was_sent_means_that_nothing_was_written(
    marker: bytes, proxied: PostgresStore, proxy: FaultProxy, url: str
) -> None:
    await make_rows(proxied)
    proxy.cut_reply_to(marker)
    with pytest.raises(StoreUnavailable):
        await proxied.commit(one_of_each())
    assert proxy.cuts == 1
    assert await states(url) == BEFORE
    assert len(await proxied.commit(one_of_each())) == 4
    assert await states(url) == AFTER


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize("kind", ["upsert", "mixed"])
async def test_a_cut_while_idle_never_makes_an_answer_false(
    kind: str, noticed: bool, proxied: PostgresStore, proxy: FaultProxy, url: str
) -> None:
    await make_rows(proxied)
    after = _OUTCOMES[kind][1]
    proxy.cut()
    if noticed:
        for _ in range(20):
            await asyncio.sleep(0)
    possible = [after]
    try:
        await CALLS[kind](proxied)
    except OutcomeUnknown:
        possible = [BEFORE, after]
    except StoreUnavailable:
        possible = [BEFORE]
    assert await states(url) in possible
    await until_it_works(proxied)


@pytest.mark.parametrize(("name", "marker"), [("load", b"ANY ("), ("status", b"SELECT"), ("migrate", b"pg_attribute")])
async def test_a_cut_while_reading_is_unavailable_and_never_an_empty_answer(
    name: str, marker: bytes, proxied: PostgresStore, proxy: FaultProxy
) -> None:
    await make_rows(proxied)
    proxy.cut_reply_to(marker)
    with pytest.raises(StoreUnavailable):
        await CALLS[name](proxied)
    assert proxy.cuts == 1
    assert list(await proxied.load(["b"], NOW)) == ["b"]


async def test_a_cut_in_place_of_the_losers_tags_fails_the_losers_alone(
    proxied: PostgresStore, proxy: FaultProxy, url: str
) -> None:
    await make_rows(proxied)
    proxy.cut_reply_to(b"SELECT s.user_session_id, s.session_id::text, s.version\nFROM")
    won, lost = await proxied.commit([saving("b", "new", PRESENT), saving("x", "new", PRESENT)])
    assert isinstance(won, Session)
    assert isinstance(lost, StoreUnavailable)
    assert await states(url) == {"b": "new", "c": "old"}


async def test_a_cut_while_a_migration_commits_leaves_the_outcome_unknown(
    url: str, proxy: FaultProxy, other: Any
) -> None:
    async with opened(at_port(url, proxy.port), migrated=False) as store:
        proxy.cut_reply_to(b"CREATE TABLE IF NOT EXISTS chatstate.migrations")
        with pytest.raises(OutcomeUnknown):
            await store.migrate()
        assert await other.fetchval("SELECT to_regclass('chat_state_sessions') IS NOT NULL")
        assert await store.migrate() == []
        assert await commit_one(store, saving("a"))


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("load", StoreUnavailable),
        ("migrate", StoreUnavailable),
        ("upsert", OutcomeUnknown),
        ("mixed", StoreUnavailable),  # which was never told to commit
    ],
)
async def test_a_database_that_hangs_is_given_up_in_time(
    name: str, error: type[StoreError], url: str, proxy: FaultProxy
) -> None:
    async with opened(at_port(url, proxy.port)) as store:
        await make_rows(store)
        proxy.blackhole()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(error):
                await CALLS[name](store)
        proxy.heal()
        await until_it_works(store)
    assert await states(url) == {**BEFORE, "again": "{}"}


@pytest.mark.usefixtures("short_waits")
async def test_a_store_on_a_database_that_hangs_can_be_closed(url: str, proxy: FaultProxy) -> None:
    store = PostgresStore(at_port(url, proxy.port))
    await store.open()
    proxy.blackhole()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await store.close()
    with pytest.raises(StoreUnavailable):
        await store.status()


async def test_a_store_can_be_closed_after_its_connections_were_cut(proxied: PostgresStore, proxy: FaultProxy) -> None:
    proxy.refuse()
    await proxied.close()
    await proxied.close()


# --- Backends end -----------------------------------------------------------------------------------------------------


async def end_backends(other: Any) -> None:
    await other.fetch(f"SELECT pg_terminate_backend(pid, 5000) {_OURS}")


@pytest.mark.parametrize("kind", ["load", "upsert", "mixed"])
async def test_a_backend_that_was_ended_while_idle_is_replaced(
    kind: str, store: PostgresStore, other: Any, url: str
) -> None:
    await make_rows(store)
    await end_backends(other)
    possible = [AFTER if kind == "mixed" else {**BEFORE, "a": "new"} if kind == "upsert" else BEFORE]
    try:
        await CALLS[kind](store)
    except OutcomeUnknown:
        assert kind == "upsert"
        possible.append(BEFORE)
    except StoreUnavailable:
        possible = [BEFORE]
    assert await states(url) in possible
    await until_it_works(store)


@pytest.mark.parametrize(("kind", "error"), [("update", OutcomeUnknown), ("mixed", StoreUnavailable)])
async def test_a_backend_that_is_ended_while_its_statement_waits_has_written_nothing(
    kind: str, error: type[StoreError], store: PostgresStore, other: Any, url: str
) -> None:
    """For a statement that commits by itself the store cannot know that, and says so."""
    await make_rows(store)
    async with row_held(url, "b"):
        task = asyncio.ensure_future(CALLS[kind](store))
        await until_one_waits_for_a_lock(other)
        await end_backends(other)
        with pytest.raises(error):
            await task
    assert await states(url) == BEFORE
    await until_it_works(store)


async def test_a_statement_that_an_administrator_cancels_has_written_nothing(
    store: PostgresStore, other: Any, url: str
) -> None:
    await make_rows(store)
    async with row_held(url, "b"):
        task = asyncio.ensure_future(CALLS["update"](store))
        await until_one_waits_for_a_lock(other)
        await other.fetch(f"SELECT pg_cancel_backend(pid) {_OURS} AND wait_event_type = 'Lock'")
        with pytest.raises(StoreUnavailable):
            await task
    assert await states(url) == BEFORE


# --- The pool and those who go away -----------------------------------------------------------------------------------


async def test_whoever_finds_no_free_connection_is_told_so_in_time(
    url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url, pool_size=1) as store:
        await make_rows(store)
        monkeypatch.setattr(postgres_connection, "ACQUIRE_SECONDS", 0.1)
        async with row_held(url, "b"):
            holder = asyncio.create_task(commit_one(store, saving("b", "new")))
            await until_one_waits_for_a_lock(other)
            started = time.monotonic()
            for call in CALLS.values():
                with pytest.raises(StoreBusy, match="No connection"):
                    await call(store)
            assert time.monotonic() - started < 0.1 * len(CALLS) + 1
        assert isinstance(await holder, Session)
        assert await states(url) == {"b": "new", "c": "old"}
        assert await connection_states(other) == ["idle"]
        await until_it_works(store)


async def test_clients_that_hang_up_leave_no_connection_behind(url: str, other: Any) -> None:
    async with opened(url, pool_size=4) as store:
        await make_rows(store)
        async with row_held(url, "b"):
            tasks = [asyncio.ensure_future(CALLS[kind](store)) for kind in ("update", "mixed", "load") * 10]
            await until_one_waits_for_a_lock(other)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until_idle(other, 4)
        assert await asyncio.gather(*(load_one(store, "b") for _ in range(8)))
        await until_it_works(store)
    await until_idle(other, 0)


@pytest.mark.parametrize("kind", CALLS)
async def test_a_call_that_is_cancelled_before_what_was_parsed_is_carried_out_leaves_no_transaction_open(
    kind: str, url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver lets a statement be parsed and says nothing more to the server until it has it carried out."""
    parse = asyncpg.Connection._get_statement
    parsed = 0

    async def cancelled(*given: Any, **more: Any) -> Any:
        nonlocal parsed
        await parse(*given, **more)
        parsed += 1
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(0)

    async with opened(url, pool_size=1) as store:
        await make_rows(store)
        monkeypatch.setattr(asyncpg.Connection, "_get_statement", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await CALLS[kind](store)
        monkeypatch.undo()
        assert parsed == 1
        await until_idle(other, 1)
        await until_it_works(store)


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_call_that_is_cancelled_again_while_it_rolls_back_leaves_no_transaction_open(
    times: int, url: str, other: Any
) -> None:
    async with opened(url, pool_size=1) as store:
        await make_rows(store)
        async with row_held(url, "b"):
            task = asyncio.ensure_future(store.commit(one_of_each()))
            await until_one_waits_for_a_lock(other)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
        await commit_one(store, saving("a", "later"))
        assert await states(url) == {**BEFORE, "a": "later"}
        await until_idle(other, 1)


async def test_a_connection_that_was_left_in_a_transaction_does_not_swallow_the_next_write(
    url: str, other: Any
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with opened(url, pool_size=1) as store:
        async with postgres_connection.acquired(store._open_pool) as connection:
            await connection.execute("BEGIN")
        await commit_one(store, saving("a", "new"))
        assert await states(url) == {"a": "new"}


async def test_a_pool_that_may_not_grow_is_unavailable_and_not_broken(url: str, own_postgres: PostgresServer) -> None:
    """The server has fewer connections than the pool would like (53300)."""
    async with ordinary_user(url, own_postgres, "CONNECTION LIMIT 1") as user_url, opened(url) as owner:
        await make_rows(owner)
        async with opened(user_url, migrated=False) as store, row_held(url, "b"):
            holder = asyncio.create_task(commit_one(store, saving("b", "new")))
            async with connected(url) as other:
                await until_one_waits_for_a_lock(other)
            with pytest.raises(StoreUnavailable):
                await load_one(store, "c")
            with suppress(SessionLocked):
                await holder
            assert await load_one(store, "c")


# --- Rows that another program holds ----------------------------------------------------------------------------------


async def test_a_held_row_fails_alone_while_all_others_are_written(
    url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_MILLISECONDS", 300)
    async with opened(url) as store:
        sessions = Sessions(store)
        await make_rows(store)
        async with row_held(url, "b"):
            batch = [asyncio.ensure_future(sessions.save(name, "new")) for name in "abcd"]
            held = batch[1]
            await until_one_waits_for_a_lock(other)
            meanwhile = await sessions.save("e", "new")
            assert (meanwhile.chat_state, (await sessions.load("b")).chat_state) == ("new", "old")
            assert not held.done()
            answers = await asyncio.gather(*batch, return_exceptions=True)
            assert [type(answer) for answer in answers] == [Session, SessionLocked, Session, Session]
        assert await states(url) == {"a": "new", "b": "old", "c": "new", "d": "new", "e": "new"}
        assert (await sessions.save("b", "new")).version == 2


@pytest.mark.parametrize("kind", ["update", "mixed"])
async def test_a_held_row_is_waited_for_as_long_as_the_limit_says(
    kind: str, url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_MILLISECONDS", 200)
    async with opened(url) as store:
        await make_rows(store)
        async with row_held(url, "b"):
            started = time.monotonic()
            with pytest.raises(SessionLocked):
                await CALLS[kind](store)
            assert 0.2 <= time.monotonic() - started < 2
        assert await states(url) == BEFORE
        assert await CALLS[kind](store)


async def test_a_session_that_another_program_is_creating_is_locked_too(
    url: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_MILLISECONDS", 200)
    async with opened(url) as store:
        await other.execute("BEGIN")
        await other.execute("INSERT INTO chat_state_sessions (user_session_id, chat_state) VALUES ('a', 'theirs')")
        for write in (saving("a", "ours"), saving("a", "ours", ABSENT)):
            with pytest.raises(SessionLocked):
                await store.commit([write])
        await other.execute("COMMIT")
        assert await states(url) == {"a": "theirs"}


async def test_a_deadlock_with_another_program_loses_nothing(
    url: str, other: Any, own_postgres: PostgresServer
) -> None:
    """The store finds the deadlock first and is undone by PostgreSQL; it tries again when the other one is through."""
    await other.execute(f"ALTER DATABASE {database_of(url)} SET deadlock_timeout = '700ms'")
    deadlocks = own_postgres.log.read_text().count("deadlock detected")
    async with opened(url) as store:
        await store.commit([saving("a", "old"), saving("b", "old")])
        await other.execute("SET deadlock_timeout = '10s'")
        await other.execute("BEGIN")
        await other.execute("UPDATE chat_state_sessions SET chat_state = 'theirs' WHERE user_session_id = 'b'")
        task = asyncio.ensure_future(store.commit([saving("a", "ours"), saving("b", "ours")]))
        await until_one_waits_for_a_lock(other)
        await other.execute("UPDATE chat_state_sessions SET chat_state = 'theirs' WHERE user_session_id = 'a'")
        await other.execute("COMMIT")
        outcomes = await task
        assert [outcome.version for outcome in outcomes if isinstance(outcome, Session)] == [3, 3]
        assert await states(url) == {"a": "ours", "b": "ours"}
        assert own_postgres.log.read_text().count("deadlock detected") > deadlocks


# --- The database refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["upsert", "insert", "update", "delete", "mixed"])
async def test_a_full_disk_is_said_to_be_full_and_nothing_was_written(
    kind: str, store: PostgresStore, other: Any, url: str
) -> None:
    await make_rows(store)
    await make_trigger(other, "RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';")
    with pytest.raises(StoreFull):
        await CALLS[kind](store)
    assert await states(url) == BEFORE
    assert set(await store.load(["b", "c"], NOW)) == {"b", "c"}
    await drop_trigger(other)
    await until_it_works(store)


async def test_a_read_only_database_is_unavailable_for_writes_and_still_read(url: str, other: Any) -> None:
    async with opened(url) as store:
        await make_rows(store)
    name = database_of(url)
    await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with opened(url) as store:
        for kind in ("upsert", "insert", "update", "delete", "mixed"):
            with pytest.raises(StoreUnavailable, match="25006"):
                await CALLS[kind](store)
        assert set(await store.load(["b", "c"], NOW)) == {"b", "c"}
        assert await states(url) == BEFORE
        await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await end_backends(other)
        await until_it_works(store)


@pytest.mark.parametrize("refusal", ["constraint", "exception", "serialization"])
async def test_a_row_that_the_database_refuses_fails_alone(
    refusal: str, store: PostgresStore, other: Any, url: str
) -> None:
    """By a constraint, by a trigger that raises, and by one that never lets this row's transaction through."""
    if refusal == "constraint":
        await other.execute("ALTER TABLE chat_state_sessions ADD CHECK (chat_state <> 'bad')")
    else:
        code = "serialization_failure" if refusal == "serialization" else "raise_exception"
        body = f"IF NEW.chat_state = 'bad' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END IF;"
        await make_trigger(other, body, "INSERT OR UPDATE")
    sessions = Sessions(store)
    texts = {"a": "good", "b": "bad", "c": "good"}
    answers = await asyncio.gather(*(sessions.save(*pair) for pair in texts.items()), return_exceptions=True)
    assert [isinstance(answer, Session) for answer in answers] == [True, False, True]
    assert isinstance(answers[1], SessionLocked if refusal == "serialization" else WriteRefused)
    assert await states(url) == {"a": "good", "c": "good"}


@pytest.mark.parametrize("kind", ["upsert", "insert", "update", "delete", "mixed"])
async def test_a_transaction_that_could_not_be_serialized_is_tried_again(
    kind: str, store: PostgresStore, other: Any, url: str
) -> None:
    await make_rows(store)
    await other.execute("CREATE SEQUENCE tries")  # which no rollback sets back
    await make_trigger(
        other, "IF nextval('tries') <= 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure'; END IF;"
    )
    await CALLS[kind](store)
    assert await states(url) == _OUTCOMES[kind][1]
    assert await other.fetchval("SELECT last_value FROM tries") > 3


async def test_a_table_that_another_program_alters_is_used_as_it_is_now(
    store: PostgresStore, other: Any, url: str
) -> None:
    """The prepared statements are out of date; PostgreSQL says so, and at the latest the second try is fine."""
    await make_rows(store)
    await store.commit([saving("b", "old", PRESENT), deleting("x")])
    await store.load(["b"], NOW)
    await other.execute("ALTER TABLE chat_state_sessions ALTER COLUMN user_session_id TYPE VARCHAR(300)")
    await other.execute("ALTER TABLE chat_state_sessions ADD COLUMN added TEXT")
    for kind in ("load", "mixed"):
        with suppress(StoreUnavailable):
            await CALLS[kind](store)
    assert await states(url) in (BEFORE, AFTER)
    await until_it_works(store)
    assert await load_one(store, "b")


async def test_a_table_that_is_gone_is_no_empty_answer(store: PostgresStore, other: Any) -> None:
    await other.execute("DROP TABLE chat_state_sessions")
    for kind in ("load", "upsert", "insert", "update", "delete", "mixed"):
        with pytest.raises(StoreUnavailable, match="42P01"):
            await CALLS[kind](store)


async def test_a_store_without_tables_says_which_command_makes_them(url: str) -> None:
    async with opened(url, migrated=False) as store:
        for kind in ("load", "upsert", "insert", "update", "delete", "mixed"):
            with pytest.raises(StoreUnavailable, match="chatstate migrate"):
                await CALLS[kind](store)


# --- Opening ----------------------------------------------------------------------------------------------------------


async def cannot_open(url: str, *parts: str) -> None:
    """Opening fails with a message that has these parts, and nothing of the password."""
    password = urlsplit(url).password
    assert password
    store = PostgresStore(url)
    with pytest.raises(StoreUnreachable) as caught:
        await store.open()
    for part in parts:
        assert part in caught.value.message
    assert password not in caught.value.message
    with pytest.raises(StoreUnavailable):
        await store.status()
    await store.close()


@asynccontextmanager
async def ordinary_user(url: str, server: PostgresServer, limit: str = "") -> AsyncIterator[str]:
    """The URL of the database for a user who is no superuser, but may do everything with the sessions."""
    name = f"user_of_{database_of(url)}"
    password = "sesame-of-the-user"
    async with connected(url) as connection:
        await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {limit}")
        await connection.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {name}")
    yield url.replace(f"//{server.user}:{server.password}@", f"//{name}:{password}@")
    async with connected(url) as connection:
        await connection.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def test_a_wrong_password_is_named_as_the_cause(own_postgres: PostgresServer, url: str) -> None:
    wrong = url.replace(own_postgres.password, "not-the-password")
    await cannot_open(wrong, f"{own_postgres.host}:{own_postgres.port}", "password", "%40")


async def test_a_missing_database_comes_with_the_command_that_creates_it(own_postgres: PostgresServer) -> None:
    await cannot_open(own_postgres.url("nowhere"), f"{own_postgres.host}:{own_postgres.port}", "createdb nowhere")


async def test_a_port_where_nobody_listens_is_named(url: str) -> None:
    port = free_port()
    await cannot_open(at_port(url, port), f"127.0.0.1:{port}", "Is it running", "host and port")


async def test_a_server_without_a_free_connection_says_what_to_raise(url: str, own_postgres: PostgresServer) -> None:
    async with ordinary_user(url, own_postgres, "CONNECTION LIMIT 0") as limited:
        await cannot_open(limited, f"{own_postgres.host}:{own_postgres.port}", "max_connections")


@pytest.mark.usefixtures("short_waits")
async def test_a_server_that_does_not_answer_is_given_up(url: str, proxy: FaultProxy) -> None:
    proxy.blackhole()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await cannot_open(at_port(url, proxy.port), f"127.0.0.1:{proxy.port}", "Is it running")


@pytest.mark.parametrize("marker", [b"server_version", b"pg_attribute"])
async def test_a_cut_while_opening_is_unreachable_and_leaves_no_connection(
    marker: bytes, url: str, proxy: FaultProxy, other: Any
) -> None:
    proxy.cut_reply_to(marker)
    await cannot_open(at_port(url, proxy.port), f"127.0.0.1:{proxy.port}", "Is it running")
    assert proxy.cuts == 1
    await until_idle(other, 0)


async def test_a_table_that_cannot_be_used_leaves_no_connection_open(url: str, other: Any) -> None:
    await other.execute("CREATE TABLE chat_state_sessions (user_session_id TEXT PRIMARY KEY)")
    store = PostgresStore(url)
    with pytest.raises(SchemaMismatch, match="ALTER TABLE"):
        await store.open()
    await until_idle(other, 0)
    with pytest.raises(StoreUnavailable):
        await store.load(["a"], NOW)


@pytest.mark.parametrize("password", ["se/cret", "se#cret", "se?cret", "se[cret", "se@cr:et", "se@cret", "se@cret/x"])
def test_a_password_that_breaks_the_url_is_explained_and_not_shown(password: str) -> None:
    with pytest.raises(InvalidSetting, match="%") as caught:
        PostgresStore(f"postgresql://user:{password}@localhost:5432/chatbot")
    assert "cret" not in caught.value.message
    assert "se" + password[2] not in caught.value.message


# --- Durability -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server_setting(other: Any, url: str, name: str, value: str) -> AsyncIterator[None]:
    """A setting in the server's configuration, in force before the body runs, and taken back after it."""
    try:
        await other.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await reload(other, url, name, value)
        yield
    finally:
        before = "on"
        await other.execute(f"ALTER SYSTEM RESET {name}")
        await reload(other, url, name, before)


async def reload(other: Any, url: str, name: str, value: str) -> None:
    await other.execute("SELECT pg_reload_conf()")

    async def in_force() -> bool:
        async with connected(url) as connection:
            return bool(await connection.fetchval(f"SHOW {name}") == value)

    await until(in_force)


async def test_a_server_without_fsync_is_refused_unless_allowed(url: str, other: Any) -> None:
    async with server_setting(other, url, "fsync", "off"):
        await cannot_open(url, "fsync=off", "--allow-unsafe-durability")
        await until_idle(other, 0)
        store = PostgresStore(url, allow_unsafe=True)
        await store.open()
        try:
            await store.migrate()
            assert (await store.status()).durability.startswith("UNSAFE: fsync=off")
        finally:
            await store.close()
    async with opened(url) as store:
        assert "the database's disk, and no standby is waited for" in (await store.status()).durability


async def test_fsync_that_is_turned_off_later_shows_in_the_status(store: PostgresStore, url: str, other: Any) -> None:
    assert "UNSAFE" not in (await store.status()).durability
    async with server_setting(other, url, "fsync", "off"):
        await until(lambda: status_says(store, "UNSAFE: fsync=off"))


async def status_says(store: PostgresStore, words: str) -> bool:
    return words in (await store.status()).durability


async def level_of_writes(other: Any, store: PostgresStore) -> set[str]:
    """The `synchronous_commit` that is in force while rows are written, alone and in a mixed batch."""
    await other.execute("CREATE TABLE IF NOT EXISTS levels (level TEXT); GRANT ALL ON levels TO PUBLIC")
    await make_trigger(other, "INSERT INTO levels VALUES (current_setting('synchronous_commit'));")
    await make_rows(store)
    await store.commit(one_of_each())
    await drop_trigger(other)
    await other.execute("DROP FUNCTION fault")
    return {row[0] for row in await other.fetch("DELETE FROM levels RETURNING level")}


@pytest.mark.parametrize("whose", ["DATABASE {database}", "ROLE {role} IN DATABASE {database}"])
async def test_a_default_that_would_lose_writes_is_overridden(
    whose: str, url: str, other: Any, own_postgres: PostgresServer
) -> None:
    target = whose.format(database=database_of(url), role=own_postgres.user)
    await other.execute(f"ALTER {target} SET synchronous_commit = off")
    async with connected(url) as connection:
        assert await connection.fetchval("SHOW synchronous_commit") == "off"
    async with opened(url) as store:
        assert await level_of_writes(other, store) == {"on"}
        assert "synchronous_commit=on" in (await store.status()).durability


@pytest.mark.parametrize("level", ["local", "remote_apply"])
async def test_a_level_that_loses_nothing_stays_as_it_is(level: str, url: str, other: Any) -> None:
    await other.execute(f"ALTER DATABASE {database_of(url)} SET synchronous_commit = {level}")
    async with opened(url) as store:
        assert await level_of_writes(other, store) == {level}
        assert f"synchronous_commit={level}" in (await store.status()).durability


async def test_a_default_that_is_turned_off_later_loses_nothing(store: PostgresStore, url: str, other: Any) -> None:
    """Neither on the connections that the store has, nor on those that it makes afterwards."""
    async with server_setting(other, url, "synchronous_commit", "off"):
        assert await level_of_writes(other, store) == {"on"}
        await end_backends(other)
        await until_it_works(store)
        assert await level_of_writes(other, store) == {"on"}
        assert "synchronous_commit=on" in (await store.status()).durability


async def test_writes_through_a_pooler_override_the_default_too(url: str, other: Any, pgbouncer: PgBouncer) -> None:
    await other.execute(f"ALTER DATABASE {database_of(url)} SET synchronous_commit = off")
    async with opened(pgbouncer.url(database_of(url))) as store:
        assert await level_of_writes(other, store) == {"on"}
        assert re.search(r"synchronous_commit=on\b", (await store.status()).durability)


async def test_the_status_of_a_read_only_database_is_unavailable(url: str, other: Any) -> None:
    async with opened(url) as store:
        await other.execute(f"ALTER DATABASE {database_of(url)} SET default_transaction_read_only = on")
        await end_backends(other)
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await store.status()


async def test_the_status_without_the_table_is_unavailable(store: PostgresStore, other: Any) -> None:
    await store.status()
    await other.execute("DROP TABLE public.chat_state_sessions")
    with pytest.raises(StoreUnavailable):
        await store.status()


@pytest.mark.parametrize(
    "url", ["postgresql://chatstate:hunter2", "postgresql://h:99999/db", f"postgresql://h:{'1' * 5000}/d"]
)
def test_what_stands_in_place_of_the_port_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidSetting, match="port is at most") as caught:
        PostgresStore(url)
    assert not {"hunter2", "99999", "1111"} & set(re.findall(r"\w+", caught.value.message))
