"""Backups: all that a store keeps in one compressed file of JSON lines, and that file as the source of a copy.

    {"type":"backup","format":1,"chatstate":"0.7.0","id":"…","taken_at":"…"}
    {"type":"sessions","user_session_id":"…", …}         rows as in `chatstate.row`, shelf by shelf, in their order
    {"type":"end","shelves":{"sessions":{"rows":1,"checksum":"…"}, …}}

The checksum of a shelf is the SHA-256 of its lines, each with its line end:
`zgrep '^{"type":"sessions"' FILE | sha256sum`. A file that ends early, or was changed, is noticed before anything of it
is used.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from msgspec import MsgspecError, Struct, json

from chatstate.copying import Digest, Pages, Progress, Tally, pages_of
from chatstate.errors import StartError, StoreError
from chatstate.row import SHELVES, TEXTS, AnyRow, RowShelf, kinds, shelf_of
from chatstate.stores.base import Store

FORMAT = 1

_LEVEL = 6
"""How hard the file is compressed, from 1 to 9."""

_PAGE_ROWS, _PAGE_BYTES = 1000, 4 << 20


class Header(Struct, frozen=True, kw_only=True, tag="backup"):
    """The first line: what the file is. `id` is its own; `chatstate` is the version that wrote it."""

    format: int
    chatstate: str
    id: str
    taken_at: datetime


class Trailer(Struct, frozen=True, tag="end"):
    """The last line: what the rows add up to."""

    shelves: dict[RowShelf, Tally]


_LINES = json.Decoder(Header | Trailer | AnyRow)


class _Kind(Struct):
    """What tells lines of other versions apart."""

    type: str
    format: int = 0


# --- Writing ----------------------------------------------------------------------------------------------------------


async def write_backup(
    store: Store, file: BinaryIO, version: str, now: datetime, progress: Progress | None = None
) -> Trailer:
    """Write all that the store keeps, which is the one below the encryption, as of one moment if it can hold one.

    version  of chatstate
    """
    progress = progress or Progress()
    tallies = {}
    header = Header(format=FORMAT, chatstate=version, id=secrets.token_hex(16), taken_at=now)
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as packed:
        packed.write(json.encode(header) + b"\n")
        async with store.snapshot() as reader:
            for shelf in SHELVES:
                digest = Digest()
                async for page in pages_of(reader, shelf):
                    await asyncio.to_thread(packed.write, digest.add(page))
                    progress.seen(shelf, len(page))
                tallies[shelf] = digest.tally
        trailer = Trailer(tallies)
        packed.write(json.encode(trailer) + b"\n")
    return trailer


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file, for its owner alone, that is there under its name once it is whole and on the disk; else not at all."""
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        _check_place(path, overwrite)
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StartError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _check_place(path: Path, overwrite: bool) -> None:
    """Only a file is replaced: the place of a pipe or a device, such as /dev/null, is not for the taking."""
    if not path.exists():
        return
    if not path.is_file():
        raise StartError(f"{path} is there, and is no file. Name one, or - for standard output.")
    if not overwrite:
        raise StartError(f"There is a file {path} already. Choose another name, or replace it: --overwrite")


def _sync_folder(folder: Path) -> None:
    """Not every file system can."""
    with suppress(OSError):
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


# --- Reading ----------------------------------------------------------------------------------------------------------


class BackupFile:
    """A backup as the source of a copy, once it is checked."""

    def __init__(self, path: Path) -> None:
        self.name = ""
        self._path = path
        self._head = b""

    async def check(self) -> tuple[Header, Trailer]:
        """Read all of it. Raises `StartError` when it is not whole, or not what was written."""
        header, trailer = await asyncio.to_thread(self._checked)
        self.name = f"the backup {header.id} of {header.taken_at.isoformat()}"
        return header, trailer

    def _checked(self) -> tuple[Header, Trailer]:
        digests = {shelf: Digest() for shelf in SHELVES}
        self._check_is_file()
        with self._explained(), gzip.open(self._path) as file:
            self._head = file.readline()
            header = self._header(self._head)
            line: Header | Trailer | AnyRow = header
            places = iter(SHELVES)
            shelf = next(places)
            for text in file:
                line = _LINES.decode(text)
                if isinstance(line, Header | Trailer):
                    break
                while shelf != shelf_of(line):
                    shelf = next(places)
                if digests[shelf].add([line]) != text:
                    raise ValueError("a line of another form")
            if not isinstance(line, Trailer) or file.read(1):
                raise EOFError
        if line.shelves != {shelf: digest.tally for shelf, digest in digests.items()}:
            raise StartError(_DAMAGED.format(path=self._path, reason="its checksums are not those of its rows"))
        return header, line

    def _check_is_file(self) -> None:
        with suppress(OSError):  # which opening it explains
            if self._path.exists() and not self._path.is_file():
                raise StartError(
                    f"{self._path} is no file, and a backup is read more than once. What comes out of a pipe has to "
                    "become one first."
                )

    def _header(self, text: bytes) -> Header:
        kind = json.decode(text, type=_Kind)
        if kind.type == "backup" and kind.format > FORMAT:
            raise StartError(
                f"{self._path} was written by a later version of chatstate. Update it: pip install --upgrade chatstate"
            )
        header = _LINES.decode(text)
        if not isinstance(header, Header):
            raise ValueError("no header")
        return header

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, StopIteration):
            raise StartError(_DAMAGED.format(path=self._path, reason="its end is missing")) from None
        except (gzip.BadGzipFile, zlib.error, MsgspecError, ValueError, StoreError) as error:
            reason = f"it cannot be read ({type(error).__name__})"
            raise StartError(_DAMAGED.format(path=self._path, reason=reason)) from error
        except OSError as error:
            raise StartError(f"Cannot read {self._path}: {error.strerror or error}.") from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Pages]:
        with ExitStack() as stack:
            with self._explained():
                file = stack.enter_context(gzip.open(self._path))
                if file.readline() != self._head:
                    raise StartError(_REPLACED.format(path=self._path))
            yield _Pages(file, self._explained).of


class _Pages:
    """The rows of a file, behind its header and to its end.

    Only what reads the file is `explained` as its damage: what fails in the store meanwhile is not.
    """

    def __init__(self, file: gzip.GzipFile, explained: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._explained = explained
        with explained():
            self._ahead = self._line()

    async def of(self, shelf: RowShelf) -> AsyncIterator[Sequence[AnyRow]]:
        while page := await asyncio.to_thread(self._page, shelf):
            yield page

    def _page(self, shelf: RowShelf) -> list[AnyRow]:
        with self._explained():
            return self._read(shelf)

    def _read(self, shelf: RowShelf) -> list[AnyRow]:
        page: list[AnyRow] = []
        size = 0
        while self._ahead and shelf_of(self._ahead) == shelf and len(page) < _PAGE_ROWS and size < _PAGE_BYTES:
            page.append(self._ahead)
            size += sum(len(getattr(self._ahead, name) or "") for name in TEXTS if name in kinds(shelf))
            self._ahead = self._line()
        return page

    def _line(self) -> AnyRow | None:
        line = _LINES.decode(self._file.readline())
        return None if isinstance(line, Header | Trailer) else line


_DAMAGED = "{path} is not a whole backup: {reason}. Nothing of it was used. Take another one."

_REPLACED = "{path} is not the file any more that was checked: another one has taken its place. Run this again."
