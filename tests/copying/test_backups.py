"""Backups: what is in the file, that a damaged one changes nothing, and that a restored one is the same."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import secrets
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from chatstate.backups import BackupFile, new_file, write_backup
from chatstate.copying import Copying, counts
from chatstate.errors import StartError, StoreFull
from chatstate.model import KEEP, Retention, Save
from chatstate.row import SHELVES, PutRow
from chatstate.stores import Outcome, Store
from chatstate.stores.base import AnyWrite
from chatstate.stores.sqlite import SQLiteStore
from tests.copying.conftest import HISTORY, NOW, Urls, Writer, creating, everything, opened

SEED = int(os.environ.get("CHATSTATE_TEST_COPY_SEED") or secrets.randbits(32))
FLIPS = int(os.environ.get("CHATSTATE_TEST_FLIPS") or 60)


async def backed_up(store: Store, path: Path) -> Path:
    with new_file(path, overwrite=True) as file:
        await write_backup(store, file, "0.0.0", NOW)
    return path


async def test_a_restored_backup_is_the_same(stores: list[Store], tmp_path: Path) -> None:
    source, target = stores
    await Writer(source, SEED).write(300)
    backup = BackupFile(await backed_up(source, tmp_path / "backup"))
    header, trailer = await backup.check()
    assert (header.chatstate, header.taken_at) == ("0.0.0", NOW)
    assert {shelf: tally.rows for shelf, tally in trailer.shelves.items()} == {
        shelf: len(rows) for shelf, rows in (await everything(source)).items()
    }
    copied = await Copying(backup, target, lambda: NOW).run()
    assert copied.is_verified
    assert {compared.shelf: compared.target for compared in copied.shelves} == trailer.shelves
    assert await everything(target) == await everything(source)
    assert (await Copying(backup, target, lambda: NOW).run()).passes == 1
    await target.commit([creating("later")])
    with pytest.raises(StartError, match="has changed since"):
        await Copying(backup, target, lambda: NOW).run()


async def test_a_file_is_lines_of_json_with_checksums_that_anybody_can_check(store: Store, tmp_path: Path) -> None:
    await Writer(store, SEED).write(200)
    path = await backed_up(store, tmp_path / "backup")
    assert path.stat().st_mode & 0o777 == 0o600
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds == ["backup", *sorted(kinds[1:-1], key=SHELVES.index), "end"]
    for shelf, tally in json.loads(lines[-1])["shelves"].items():
        rows = [line for line, kind in zip(lines, kinds, strict=True) if kind == shelf]
        assert tally == {"rows": len(rows), "checksum": sha256(b"".join(rows)).hexdigest()}


async def test_a_backup_beside_a_writer_is_of_one_moment(urls: Urls, stores: list[Store], tmp_path: Path) -> None:
    """A session, its versions and what is remembered of its requests fit together, whatever was written meanwhile."""
    source, target = stores
    async with opened(urls[0]) as (other,):
        writer = Writer(other, SEED, ids=5)
        await writer.write(200)
        async with writer.at_work():
            await backed_up(source, tmp_path / "backup")
    backup = BackupFile(tmp_path / "backup")
    await backup.check()
    assert (await Copying(backup, target, lambda: NOW).run()).is_verified
    found = await everything(target)
    newest = {row.place[0]: row for row in found["sessions"]}
    for version in found["versions"]:
        session = newest[version.place[0]]
        assert version.session_id == session.session_id  # type: ignore[union-attr]
        assert version.place[1] <= session.version  # type: ignore[union-attr,operator]


async def test_what_was_acknowledged_before_is_in_it(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        save = creating(f"session {number}", "x" * (3 << 20))
        await store.commit([save], HISTORY)
        assert isinstance(save, Save)
    path = await backed_up(store, tmp_path / "backup")
    _, trailer = await BackupFile(path).check()
    assert (trailer.shelves["sessions"].rows, trailer.shelves["versions"].rows) == (5, 5)


async def test_a_store_that_fails_is_not_called_a_damaged_backup(whole: bytes, tmp_path: Path) -> None:
    """Whoever restores after a disaster would throw a good backup away."""

    class Full(SQLiteStore):
        async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
            if isinstance(writes[0], PutRow):
                raise StoreFull
            return await super().commit(writes, retention)

    (tmp_path / "backup").write_bytes(whole)
    backup = BackupFile(tmp_path / "backup")
    await backup.check()
    target = Full(tmp_path / "full.db")
    await target.open()
    try:
        await target.migrate()
        with pytest.raises(StoreFull):
            await Copying(backup, target, lambda: NOW).run()
    finally:
        await target.close()


# --- Damage -----------------------------------------------------------------------------------------------------------


async def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        await BackupFile(path).check()


@pytest.fixture
async def whole(tmp_path: Path) -> bytes:
    """The bytes of a backup."""
    async with opened(f"sqlite:///{tmp_path}/source.db") as (source,):
        await Writer(source, SEED).write(120)
        return (await backed_up(source, tmp_path / "whole")).read_bytes()


async def test_a_backup_that_ends_early_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    for length in (*range(0, len(whole), len(whole) // 20), len(whole) - 1):
        path.write_bytes(whole[:length])
        await assert_refused(path, "not a whole backup")
    lines = gzip.decompress(whole).splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_bytes(gzip.compress(b"".join(lines[:count])))
        await assert_refused(path, "not a whole backup")


async def test_a_backup_with_a_changed_byte_is_refused(whole: bytes, tmp_path: Path) -> None:
    """But for bits that mean nothing: the time and the system in the head of gzip, and what fills up its last byte."""
    text = gzip.decompress(whole)
    print(f"CHATSTATE_TEST_COPY_SEED={SEED}")  # noqa: T201
    chance = random.Random(SEED)
    path = tmp_path / "backup"
    for _ in range(FLIPS):
        place = chance.randrange(10, len(whole))
        damaged = whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :]
        with suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(damaged) == text:
                continue
        path.write_bytes(damaged)
        await assert_refused(path, "not a whole backup")


async def test_a_pipe_is_refused_since_a_backup_is_read_more_than_once(whole: bytes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    await assert_refused(tmp_path / "pipe", "is no file")


async def test_a_backup_that_takes_the_place_of_the_checked_one_is_not_used(whole: bytes, tmp_path: Path) -> None:
    """As one that is made every night under the same name."""
    path = tmp_path / "backup"
    path.write_bytes(whole)
    backup = BackupFile(path)
    await backup.check()
    async with opened(f"sqlite:///{tmp_path}/target.db") as (target,):
        await backed_up(target, path)
        with pytest.raises(StartError, match="is not the file any more that was checked"):
            await Copying(backup, target, lambda: NOW).run()


Lines = list[bytes]
DAMAGES: dict[str, Callable[[Lines], Lines]] = {
    "a row is missing": lambda lines: [*lines[:5], *lines[6:]],
    "a row is there twice": lambda lines: [*lines[:5], *lines[4:]],
    "rows are in another order": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "a row was changed": lambda lines: [*lines[:4], lines[4].replace(b'"version":', b'"version":1'), *lines[5:]],
    "a row has more members": lambda lines: [*lines[:4], lines[4].replace(b"{", b'{"more":1,', 1), *lines[5:]],
    "the checksums are others": lambda lines: [*lines[:-1], lines[-1].replace(b'"rows":', b'"rows":1')],
    "something follows": lambda lines: [*lines, lines[4]],
    "there is no header": lambda lines: lines[1:],
    "it is no JSON": lambda lines: [*lines[:4], b"no JSON\n", *lines[5:]],
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_backup_that_was_edited_is_refused(damage: str, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    lines = gzip.decompress(whole).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(DAMAGES[damage](lines))))
    with pytest.raises(StartError):
        await BackupFile(path).check()


async def test_a_backup_of_a_later_version_says_so(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    lines = gzip.decompress(whole).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b'{"type":"backup","format":2,"new":true}\n' + b"".join(lines[1:])))
    await assert_refused(path, "pip install --upgrade chatstate")


async def test_what_is_no_file_of_ours_says_so(tmp_path: Path) -> None:
    await assert_refused(tmp_path / "missing", "Cannot read .*missing")
    (tmp_path / "text").write_text("no backup")
    await assert_refused(tmp_path / "text", "not a whole backup")
    (tmp_path / "other").write_bytes(gzip.compress(b'{"a": 1}\n'))
    await assert_refused(tmp_path / "other", "not a whole backup")


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_text("the one before")
    with pytest.raises(StartError, match="There is a file"), new_file(path, overwrite=False):
        pass

    def fail() -> None:
        with new_file(path, overwrite=True) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "the one before"
    assert os.listdir(tmp_path) == ["backup"]
    with pytest.raises(StartError, match="Cannot write"), new_file(tmp_path / "no folder" / "backup", overwrite=False):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["", ".", "folder", "pipe", "file/backup", "x" * 300])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_read(
    name: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--overwrite` a pipe, or /dev/null, would be replaced."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo("pipe")
    with pytest.raises(StartError, match=r"is no file|Cannot write"), new_file(Path(name), overwrite):
        raise AssertionError("it would be written")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]


async def test_an_empty_store_has_a_backup_too(store: Store) -> None:
    file = io.BytesIO()
    trailer = await write_backup(store, file, "0.0.0", NOW)
    assert sum(tally.rows for tally in trailer.shelves.values()) == sum((await counts(store)).values()) == 0
