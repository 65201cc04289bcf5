"""What the PostgreSQL store says and does when its database has a standby, which lags, dies or is promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

import pytest
from msgspec.structs import replace

from chatstate.errors import OutcomeUnknown
from chatstate.mailbox import Receive
from chatstate.model import KEEP, Rewrite, Session
from chatstate.record import PutRecord
from chatstate.stores import postgres_connection
from chatstate.stores.contract import LATER, NOW, saving
from chatstate.stores.turn_contract import key
from chatstate.stores.visit_contract import creating
from tests.servers.memory import memory_folder
from tests.servers.pgbouncer import PgBouncer
from tests.servers.ports import at_port
from tests.servers.postgres import database_of, wheels
from tests.servers.standby import Pair, ask, frozen
from tests.stores.test_postgres_faults import (
    CALLS,
    Call,
    commit_one,
    connected,
    load_one,
    make_rows,
    make_trigger,
    one_of_each,
    opened,
    until_it_works,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and a standby that no test of this module ends for good."""
    with Pair.create(wheels()[0], parent=memory_folder()) as pair:
        yield pair


@pytest.fixture
async def url(pair: Pair) -> str:
    """The URL of an empty database on the primary alone."""
    return at_port(await pair.create_database(), pair.primary.port)


# --- Writes that the standby may not have -----------------------------------------------------------------------------


async def cancelled(pair: Pair, call: Awaitable[object]) -> object:
    """What comes of a call whose commit waits for the standby, and somebody cancels the wait."""
    with frozen(pair.standby):
        task = asyncio.ensure_future(call)
        await ask(pair.primary, f"SELECT pg_cancel_backend({await pair.waiting()})")
        (answer,) = await asyncio.gather(task, return_exceptions=True)
    await pair.caught_up()
    return answer


COMMITS: dict[str, Call] = {
    **{name: CALLS[name] for name in ("upsert", "insert", "update", "delete", "mixed")},
    "keyed": lambda store: store.commit([replace(saving("a", "new"), once=key())]),
    "visit": lambda store: store.commit([creating("a")]),
    "record": lambda store: store.commit([PutRecord(collection="c", key="k", document="{}", now=NOW)]),
    "mail": lambda store: store.commit(
        [Receive(key="k", conversation="c", document="{}", sent_at=NOW, now=NOW)],
    ),
    "rewrite": lambda store: store.commit([Rewrite(shelf="sessions", place=("b",), text="old", replaced_by="new")]),
    "sweep": lambda store: store.sweep(LATER, KEEP, None, 100),
}
"""Each way in which something is committed."""


@pytest.mark.parametrize("kind", COMMITS)
async def test_a_cancelled_wait_for_the_standby_leaves_the_outcome_unknown(kind: str, pair: Pair, url: str) -> None:
    """PostgreSQL reports success with a warning: this machine alone has it, and it is lost with this machine."""
    async with opened(url) as store:
        await make_rows(store)
        await store.commit([PutRecord(collection="c", key="old", document="{}", now=NOW, expires_at=NOW)])
        assert isinstance(await cancelled(pair, COMMITS[kind](store)), OutcomeUnknown)
        await until_it_works(store)


@pytest.mark.parametrize("kind", COMMITS)
async def test_so_it_does_through_a_pooler(kind: str, pair: Pair, url: str) -> None:
    with PgBouncer(pair.primary) as pooler:
        async with opened(pooler.url(database_of(url))) as store:
            await make_rows(store)
            await store.commit([PutRecord(collection="c", key="old", document="{}", now=NOW, expires_at=NOW)])
            assert isinstance(await cancelled(pair, COMMITS[kind](store)), OutcomeUnknown)
            await until_it_works(store)


async def test_a_cancelled_wait_is_noticed_though_the_role_wants_to_see_no_warnings(pair: Pair, url: str) -> None:
    name = database_of(url)
    await ask(pair.primary, f"ALTER DATABASE {name} SET client_min_messages = error")
    async with opened(url) as store:
        assert isinstance(await cancelled(pair, CALLS["upsert"](store)), OutcomeUnknown)


async def test_a_migration_whose_wait_was_cancelled_can_be_made_again(pair: Pair, url: str) -> None:
    async with opened(url, migrated=False) as store:
        assert isinstance(await cancelled(pair, store.migrate()), OutcomeUnknown)
        await store.migrate()
        await until_it_works(store)


async def test_a_connection_that_is_ended_while_it_waits_leaves_the_outcome_unknown(pair: Pair, url: str) -> None:
    async with opened(url) as store:
        with frozen(pair.standby):
            task = asyncio.ensure_future(CALLS["upsert"](store))
            await ask(pair.primary, f"SELECT pg_terminate_backend({await pair.waiting()})")
            with pytest.raises(OutcomeUnknown):
                await task
        await pair.caught_up()
        await until_it_works(store)


async def test_other_warnings_are_no_reason_for_doubt(url: str) -> None:
    async with opened(url) as store, connected(url) as other:
        await make_trigger(other, "RAISE WARNING 'canceling wait for synchronous replication due to user request';")
        assert isinstance(await commit_one(store, saving("a")), Session)
        await store.commit(one_of_each())


async def test_writes_wait_for_a_standby_that_is_dead_and_end_as_unknown(
    pair: Pair, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "COMMAND_SECONDS", 1)
    async with opened(url) as store:
        await make_rows(store)
        await asyncio.to_thread(pair.standby.kill)
        for kind in ("upsert", "mixed"):
            with pytest.raises(OutcomeUnknown):
                await CALLS[kind](store)
        assert await load_one(store, "b")
        waiting = [asyncio.ensure_future(CALLS["upsert"](store)) for _ in range(3)]
        await pair.waiting()
        await asyncio.to_thread(pair.standby.start)
        await asyncio.gather(*waiting, return_exceptions=True)
        await pair.caught_up()
        await until_it_works(store)


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("on", "synced to the disks of the primary and of its synchronous standby (synchronous_commit=on)"),
        ("off", "synced to the disks of the primary and of its synchronous standby (synchronous_commit=on)"),
        ("remote_apply", "synced to the disks of the primary and of its synchronous standby"),
        ("remote_write", "in the memory of its synchronous standby's machine"),
        ("local", "synced to the primary's disk, and does not wait for the standbys"),
    ],
)
async def test_the_status_says_what_an_acknowledged_write_survives(
    level: str, words: str, pair: Pair, url: str
) -> None:
    await ask(pair.primary, f"ALTER DATABASE {database_of(url)} SET synchronous_commit = {level}")
    async with opened(url) as store:
        assert words in (await store.status()).durability
