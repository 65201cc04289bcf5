"""Does the pair of test servers do what the tests of failover rely on?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from .memory import memory_folder
from .postgres import Wheel, database_of, wheels
from .standby import Pair, ask, demote, frozen


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Where it does not matter which."""
    with Pair.create(wheels()[0], parent=memory_folder()) as pair:
        yield pair


@pytest.mark.parametrize("wheel", wheels(), ids=lambda wheel: wheel.name)
async def test_what_is_acknowledged_is_on_the_standby_that_is_promoted(wheel: Wheel) -> None:
    with await asyncio.to_thread(Pair.create, wheel, parent=memory_folder()) as pair:
        await is_promoted_with_everything(pair)


async def is_promoted_with_everything(pair: Pair) -> None:
    url = await pair.create_database()
    name = database_of(url)
    await ask(pair.primary, "CREATE TABLE kept (number int)", name)
    for number in range(20):
        await ask(pair.primary, f"INSERT INTO kept VALUES ({number})", name)
    await asyncio.to_thread(pair.primary.kill)
    assert await ask(pair.standby, "SELECT pg_is_in_recovery()") is True
    await pair.promote()
    assert await ask(pair.standby, "SELECT pg_is_in_recovery()") is False
    assert await ask(pair.standby, "SELECT count(*) FROM kept", name) == 20
    connection = await asyncpg.connect(url)  # the first host is gone, the second one is tried
    await connection.execute("INSERT INTO kept VALUES (20)")
    await connection.close()


async def test_a_commit_waits_for_a_standby_that_stands_still(pair: Pair) -> None:
    name = database_of(await pair.create_database())
    with frozen(pair.standby):
        waiting = asyncio.create_task(ask(pair.primary, "CREATE TABLE kept (number int)", name))
        await pair.waiting()
        assert not waiting.done()
    await waiting
    await pair.caught_up()
    await asyncio.to_thread(pair.standby.stop)
    waiting = asyncio.create_task(ask(pair.primary, "INSERT INTO kept VALUES (1)", name))
    await pair.waiting()
    assert not waiting.done()
    await asyncio.to_thread(pair.standby.start)
    await waiting


async def test_who_is_demoted_reads_and_does_not_write(pair: Pair) -> None:
    name = database_of(await pair.create_database())
    await asyncio.to_thread(demote, pair.primary)
    assert await ask(pair.primary, "SELECT pg_is_in_recovery()", name) is True
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await ask(pair.primary, "CREATE TABLE kept (number int)", name)
