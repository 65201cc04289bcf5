"""Copies and backups between a Valkey Cluster and the other stores."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatstate.backups import BackupFile
from chatstate.copy_mark import COLLECTION
from chatstate.copying import Copying, StoreSource, counts
from chatstate.row import SHELVES
from chatstate.stores import Store
from tests.copying.conftest import NOW, Urls, Writer, everything, opened, two_databases
from tests.copying.test_backups import backed_up
from tests.servers.postgres import RunningServers

SEED = int(os.environ.get("CHATSTATE_TEST_COPY_SEED") or secrets.randbits(32))


@pytest.fixture(params=["sqlite-to-valkey", "valkey-to-sqlite", "valkey-to-valkey"])
def urls(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[Urls]:
    """The URLs of two empty databases."""
    source, _, target = request.param.partition("-to-")
    with two_databases((source, target), servers, tmp_path) as found:
        yield found


@pytest.fixture
async def stores(urls: Urls) -> AsyncIterator[list[Store]]:
    """The two databases, open and migrated."""
    async with opened(*urls) as found:
        yield found


def copying(stores: list[Store]) -> Copying:
    return Copying(StoreSource(stores[0], "the source", 100), stores[1], lambda: NOW, None, 100)


async def test_a_copy_has_everything_as_it_was_and_takes_what_has_changed(stores: list[Store]) -> None:
    source, target = stores
    writer = Writer(source, SEED)
    await writer.write(400)
    copied = await copying(stores).run()
    assert (copied.is_verified, copied.passes) == (True, 2)
    found = await everything(source)
    assert await everything(target) == found
    assert all(found.values()), "nothing was tested on an empty shelf"
    assert await counts(target) == {shelf: len(rows) + (shelf == "records") for shelf, rows in found.items()}
    await writer.write(100)
    assert (await copying(stores).run()).is_verified
    assert await everything(target) == await everything(source)


async def test_a_copy_can_be_worked_on(stores: list[Store]) -> None:
    """Whatever is done to it comes to what it comes to in the source, but for what only one of them decides."""
    await Writer(stores[0], SEED).write(300)
    await copying(stores).run()
    for store in stores:
        await Writer(store, SEED + 1).write(150)
    one, other = [await everything(store) for store in stores]
    for shelf in SHELVES:
        assert [row.place for row in one[shelf]] == [row.place for row in other[shelf] if not _is_mark(row.place)]


def _is_mark(place: tuple[str | int, ...]) -> bool:
    return place[0] == COLLECTION


async def test_a_restored_backup_is_the_same(stores: list[Store], tmp_path: Path) -> None:
    source, target = stores
    await Writer(source, SEED).write(300)
    backup = BackupFile(await backed_up(source, tmp_path / "backup"))
    _, trailer = await backup.check()
    copied = await Copying(backup, target, lambda: NOW).run()
    assert copied.is_verified
    assert {compared.shelf: compared.target for compared in copied.shelves} == trailer.shelves
    assert await everything(target) == await everything(source)
