"""What the PostgreSQL store says and does when its database has a standby, which lags, dies or is promoted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec.structs import replace

from chatstate.errors import InvalidSetting, OutcomeUnknown, StoreBusy, StoreError, StoreUnavailable, StoreUnreachable
from chatstate.mailbox import Receive
from chatstate.model import ABSENT, KEEP, ReplayQuery, Rewrite, Session
from chatstate.record import PutRecord
from chatstate.stores import postgres_connection, postgres_primary
from chatstate.stores.contract import LATER, NOW, saving
from chatstate.stores.postgres import PostgresStore
from chatstate.stores.turn_contract import key
from chatstate.stores.visit_contract import creating
from tests.servers.fault_proxy import FaultProxy
from tests.servers.memory import memory_folder
from tests.servers.pgbouncer import PgBouncer
from tests.servers.ports import at_port
from tests.servers.postgres import PostgresServer, database_of, wheels
from tests.servers.standby import Pair, ask, demote, frozen
from tests.stores.test_postgres_faults import (
    CALLS,
    Call,
    Writer,
    commit_one,
    connected,
    load_one,
    make_rows,
    make_trigger,
    one_of_each,
    opened,
    until,
    until_each_saved,
    until_idle,
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


def pooler_of(server: PostgresServer) -> PgBouncer:
    if not PgBouncer.find():
        pytest.skip("no pgbouncer program on this machine (Debian: apt-get install pgbouncer)")
    return PgBouncer(server)


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
    with pooler_of(pair.primary) as pooler:
        async with opened(pooler.url(database_of(url))) as store:
            await make_rows(store)
            await store.commit([PutRecord(collection="c", key="old", document="{}", now=NOW, expires_at=NOW)])
            assert isinstance(await cancelled(pair, COMMITS[kind](store)), OutcomeUnknown)
            await until_it_works(store)


REPEATED: dict[str, Call] = {
    "keyed": COMMITS["keyed"],
    "keyed and expecting": lambda store: store.commit([replace(saving("a", "new", ABSENT), once=key())]),
    "looked for": lambda store: store.list(ReplayQuery(user_session_id="a", once=key(), now=NOW)),
    "mail": COMMITS["mail"],
}
"""Each way in which a write that is repeated is acknowledged for what is there already."""


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", REPEATED)
async def test_a_repeated_write_is_not_acknowledged_before_the_standby_has_the_first(
    kind: str, pooled: bool, pair: Pair, url: str
) -> None:
    first = COMMITS["keyed"] if kind == "looked for" else REPEATED[kind]
    with ExitStack() as stack:
        if pooled:
            url = stack.enter_context(pooler_of(pair.primary)).url(database_of(url))
        async with opened(url) as store:
            with frozen(pair.standby):
                task = asyncio.ensure_future(first(store))
                await ask(pair.primary, f"SELECT pg_cancel_backend({await pair.waiting()})")
                with pytest.raises(OutcomeUnknown):
                    await task
                again = asyncio.ensure_future(REPEATED[kind](store))
                await pair.waiting()
                assert not again.done()
            assert await again
        await pair.caught_up()


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


# --- The primary is another host ------------------------------------------------------------------------------------

GO_ON_SECONDS = 10
"""How soon after a promotion a store works again."""


@pytest.fixture
async def own_pair() -> AsyncIterator[Pair]:
    """Servers that a test may end and promote."""
    pair = await asyncio.to_thread(Pair.create, wheels()[0], parent=memory_folder())
    yield pair
    await asyncio.to_thread(pair.close)


async def ports(store: PostgresStore) -> set[int]:
    """Where all connections of the store lead to, while all are in use."""
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(postgres_connection.acquired(store._open_pool))
            for _ in range(postgres_connection.DEFAULT_POOL_SIZE)
        ]
        return {await connection.fetchval("SELECT inet_server_port()") for connection in connections}


async def until_it_goes_on(store: PostgresStore) -> None:
    """The store, without being opened again, saves and loads in time."""
    await until(lambda: works(store), GO_ON_SECONDS)


async def works(store: PostgresStore) -> bool:
    try:
        saved = await commit_one(store, saving("again"))
        return bool(await load_one(store, "again") == saved)
    except StoreError:
        return False


async def test_whatever_the_order_of_the_hosts_the_primary_is_used(pair: Pair) -> None:
    url = await pair.create_database()
    for order in ((pair.primary, pair.standby), (pair.standby, pair.primary)):
        async with opened(at_port(url, *(server.port for server in order))) as store:
            assert await ports(store) == {pair.primary.port}
            assert f"{order[0].port},127.0.0.1:{order[1].port}" in (await store.status()).store


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@one/db", [("one", 5432)]),
        ("postgresql:///db", [("localhost", 5432)]),
        ("postgresql://u:p@one:1,two,[::1]:3,[::2]/db", [("one", 1), ("two", 5432), ("::1", 3), ("::2", 5432)]),
        ("postgresql://u:p@one,two/db?port=6", [("one", 6), ("two", 6)]),
        ("postgresql:///db?host=one,/run/postgresql&port=1,2", [("one", 1), ("/run/postgresql", 2)]),
    ],
)
def test_the_hosts_of_a_url(url: str, hosts: list[tuple[str, int]]) -> None:
    parsed = postgres_connection.parse_url(url, None)
    assert list(parsed.hosts) == hosts
    assert parsed.wants_primary == (len(hosts) > 1)


def test_a_kind_of_host_that_does_not_exist_is_explained() -> None:
    """The driver said: is expected to be one of <built-in method values of mappingproxy object at 0x…>."""
    with pytest.raises(InvalidSetting, match="target_session_attrs=master in the store URL must be one of primary, "):
        postgres_connection.parse_url("postgresql://u:p@one,two/db?target_session_attrs=master", None)


async def test_hosts_may_be_named_in_the_query(pair: Pair) -> None:
    parts = urlsplit(at_port(await pair.create_database(), pair.standby.port))
    query = f"host=127.0.0.1,127.0.0.1&port={pair.standby.port},{pair.primary.port}"
    url = parts._replace(netloc=f"{parts.username}:{parts.password}@", query=query).geturl()
    async with opened(url) as store:
        assert await ports(store) == {pair.primary.port}


async def test_a_url_may_ask_for_another_host_than_the_primary(pair: Pair) -> None:
    url = pair.url(database_of(await pair.create_database()), target_session_attrs="standby")
    async with opened(url, migrated=False) as store:
        assert await ports(store) == {pair.standby.port}
        with pytest.raises(StoreUnavailable):
            await store.status()


async def test_a_wrong_password_is_told_as_with_one_host(pair: Pair) -> None:
    url = (await pair.create_database()).replace(pair.primary.password, "wrong")
    with pytest.raises(StoreUnreachable, match="refused the login"):
        await PostgresStore(url).open()


async def test_hosts_of_which_none_is_a_primary_are_told_one_by_one(own_pair: Pair) -> None:
    url = await own_pair.create_database()
    await asyncio.to_thread(own_pair.primary.kill)
    with pytest.raises(StoreUnreachable, match="has no primary") as caught:
        await PostgresStore(url).open()
    assert f"127.0.0.1:{own_pair.standby.port} takes no writes" in caught.value.message
    assert "Connect call failed" in caught.value.message
    assert "pg_promote()" in caught.value.message
    assert own_pair.primary.password not in caught.value.message


async def test_after_a_promotion_the_store_goes_on_with_everything_acknowledged(own_pair: Pair) -> None:
    url = await own_pair.create_database()
    async with opened(url) as store:
        writers = [Writer(store, f"writer-{number}") for number in range(8)]
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        await until_each_saved(writers)
        await asyncio.to_thread(own_pair.primary.kill)
        await asyncio.gather(*tasks)
        with pytest.raises(StoreUnavailable, match="None of the store URL's hosts"):
            await store.status()
        await own_pair.promote()
        await until_it_goes_on(store)
        for writer in writers:
            await writer.check()
        assert await ports(store) == {own_pair.standby.port}
        assert "no standby is waited for" in (await store.status()).durability


async def test_a_primary_that_hangs_is_left_behind_with_all_that_waits_for_it(own_pair: Pair) -> None:
    """Its machine is gone without a word: nothing is refused, and nothing answers."""
    url = await own_pair.create_database()
    async with (
        FaultProxy(own_pair.primary.host, own_pair.primary.port) as proxy,
        opened(at_port(url, proxy.port, own_pair.standby.port)) as store,
    ):
        await ports(store)  # all connections are made
        proxy.blackhole()
        waiting = [asyncio.ensure_future(commit_one(store, saving(f"waiting-{number}"))) for number in range(20)]
        await own_pair.promote()
        await until_it_goes_on(store)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {OutcomeUnknown, StoreBusy, StoreUnavailable, Session}
        assert OutcomeUnknown in map(type, outcomes)
        assert await ports(store) == {own_pair.standby.port}
        async with connected(at_port(url, own_pair.standby.port)) as other:
            await until_idle(other, postgres_connection.DEFAULT_POOL_SIZE + 1)


async def test_a_first_host_that_hangs_holds_up_no_start(pair: Pair) -> None:
    url = await pair.create_database()
    async with FaultProxy(pair.standby.host, pair.standby.port) as proxy:
        proxy.blackhole()
        async with opened(at_port(url, proxy.port, pair.primary.port)) as store:
            async with asyncio.timeout(GO_ON_SECONDS):
                assert await ports(store) == {pair.primary.port}


async def test_a_primary_that_was_left_behind_is_not_read_from_any_more(own_pair: Pair) -> None:
    """Nobody has ended it: it runs, and says that it is the primary. It waits for its standby at each write."""
    url = await own_pair.create_database()
    async with opened(url) as store, opened(at_port(url, own_pair.standby.port), migrated=False) as other:
        await commit_one(store, saving("a", "old"))
        await own_pair.promote()
        new = await commit_one(other, saving("a", "new"))

        async def is_read() -> bool:
            with suppress(StoreUnavailable):  # a connection to the old one may be ended while it is read from
                return bool(await load_one(store, "a") == new)
            return False

        await until(is_read, GO_ON_SECONDS)
        await until_it_goes_on(store)
        assert await ports(store) == {own_pair.standby.port}
        await asyncio.to_thread(own_pair.standby.kill)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await load_one(store, "a")
            await store._primary._look()
        await asyncio.to_thread(own_pair.standby.start)
        await until_it_goes_on(store)


async def test_databases_without_timelines_are_used_in_the_order_of_the_url(
    own_pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that only speak the protocol: each host takes writes."""
    monkeypatch.setattr(postgres_primary, "_TIMELINE", "SELECT no_such_function()")
    url = await own_pair.create_database()
    await own_pair.promote()
    async with opened(url, migrated=False) as store:
        for _ in range(3):
            await store._primary._look()
            assert await ports(store) == {own_pair.primary.port}
        await asyncio.to_thread(own_pair.primary.kill)
        await until(lambda: has_moved(store, own_pair.standby.port), GO_ON_SECONDS)
    assert caplog.text.count("the primary is") == 1


async def has_moved(store: PostgresStore, port: int) -> bool:
    try:
        return await ports(store) == {port}
    except (StoreError, asyncpg.InternalClientError):  # the second: the host dies while a statement is begun
        return False


async def test_a_connection_to_a_host_that_takes_no_writes_is_not_used_again(url: str) -> None:
    async with opened(url, pool_size=2) as store:
        for _ in range(2):
            async with postgres_connection.acquired(store._open_pool) as connection:
                await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await commit_one(store, saving("a"))
        for _ in range(4):
            await commit_one(store, saving("a"))


async def test_a_primary_that_was_demoted_behind_a_pooler_says_so(own_pair: Pair) -> None:
    url = await own_pair.create_database()
    with pooler_of(own_pair.primary) as pooler:
        async with opened(pooler.url(database_of(url))) as store:
            await commit_one(store, saving("a"))
            await asyncio.to_thread(demote, own_pair.primary)
            for _ in range(3):
                with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                    await commit_one(store, saving("a"))
            await ask(own_pair.primary, "SELECT pg_promote()")
            await ask(own_pair.primary, "ALTER SYSTEM RESET synchronous_standby_names")
            await ask(own_pair.primary, "SELECT pg_reload_conf()")
            await until_it_goes_on(store)


async def test_two_poolers_before_two_hosts_are_hosts_as_well(own_pair: Pair) -> None:
    name = database_of(await own_pair.create_database())
    with pooler_of(own_pair.standby) as there, pooler_of(own_pair.primary) as here:
        async with opened(at_port(own_pair.url(name), there.port, here.port)) as store:
            assert "pooler" in (await store.status()).store
            await commit_one(store, saving("a"))
            await asyncio.to_thread(own_pair.primary.kill)
            await own_pair.promote()
            await until_it_goes_on(store)
            assert await load_one(store, "a")
