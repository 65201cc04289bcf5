"""`chatstate copy`, `chatstate backup` and `chatstate restore`: all that a store keeps, elsewhere or in a file."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

import click

from chatstate import __version__
from chatstate.backups import BackupFile, Trailer, new_file, write_backup
from chatstate.cli.common import (
    STORE_SETTINGS,
    mistakes_explained,
    on_store,
    settings_of,
    warn_of_password,
    with_settings,
)
from chatstate.config import Settings
from chatstate.copy_mark import check_is_whole
from chatstate.copying import (
    Compared,
    Copied,
    Copying,
    Progress,
    Source,
    StoreSource,
    counts,
)
from chatstate.errors import InvalidSetting, StartError, StoreUnavailable, StoreUnreachable
from chatstate.model import utc_now
from chatstate.row import SHELVES, RowShelf
from chatstate.stores import EncryptedStore, Store, create_store
from chatstate.stores.postgres_connection import parse_url

_OVERWRITE = click.option("--overwrite", is_flag=True, help="What is there may go; asks before it does.")
_YES = click.option("--yes", is_flag=True, help="With --overwrite: do not ask.")

_SHOWN = 16
"""How many digits of a checksum are shown."""

_STDOUT = "-"


@click.command(
    epilog="A URL may also stand in the environment (env:NAME) or in a file (file:PATH): passwords on the command line "
    "can be seen by all users of this machine."
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@with_settings("pool_size", "allow_unsafe_durability")
@_OVERWRITE
@_YES
def copy(source: str, target: str, overwrite: bool, yes: bool, **flags: Any) -> None:
    """Copy everything from one store into another.

    FROM and TO are store URLs of any kind. Servers may be writing to FROM; nobody may use TO. Make its tables first:
    chatstate migrate --store TO. Then run this once beside the servers, stop them, and run it again: the second time it
    compares, and takes what has changed. It is done when it says that both sides are the same, with status 0.

    What is encrypted stays so, and no key is needed. Interrupted, it can be run again, and goes on.
    """
    with mistakes_explained():
        settings = settings_of(flags)
        urls = [_url(text) for text in (source, target)]
        if _name(urls[0]) == _name(urls[1]):
            raise InvalidSetting("FROM and TO are the same store.")
        copied = asyncio.run(_copy(settings, urls[0], urls[1], overwrite, yes))
    _report(copied, "FROM", "TO")
    click.echo("If servers have been writing to FROM meanwhile, stop them, and run this once more.", err=True)


async def _copy(settings: Settings, source_url: str, target_url: str, overwrite: bool, yes: bool) -> Copied:
    async with _open(settings, "FROM", source_url, owner=False) as source:
        await check_is_whole(source, utc_now())
        total = sum((await counts(source)).values())
        async with _open(settings, "TO", target_url, owner=True) as target:
            return await _into(StoreSource(source, _name(source_url)), target, total, overwrite, yes)


async def _into(source: Source, target: Store, total: int, overwrite: bool, yes: bool) -> Copied:
    if overwrite and not yes:
        _ask(await counts(target))
    with _Shown(total) as shown:
        return await Copying(source, target, utc_now, shown).run(overwrite)


def _ask(there: dict[RowShelf, int]) -> None:
    if sum(there.values()):
        held = ", ".join(f"{count} {shelf}" for shelf, count in there.items() if count)
        with _interruptible():
            click.confirm(
                f"The target holds: {held}. All of it will be replaced or removed. Go on?", abort=True, err=True
            )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl+C ends a question at once. The event loop only notes it, and looks at it when there is an answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_NO_MOMENT = (
    "This store does not hold a moment: the backup is whole only if no server writes to it meanwhile. Beside servers, "
    "copy it into another store (chatstate copy) until both are the same, and back that up."
)


@click.command()
@click.argument("file", metavar="FILE")
@with_settings(*STORE_SETTINGS)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
def backup(file: str, overwrite: bool, **flags: Any) -> None:
    """Write everything that the store keeps into a file.

    Servers may go on working, but on a Valkey Cluster. The file is gzip of JSON lines, as of one moment, and readable
    for its owner alone. What is encrypted stays so. FILE may be -, for standard output.
    """

    async def write(store: EncryptedStore, packed: Any) -> Trailer:
        async with store.inner.snapshot() as reader:
            if reader is store.inner:
                click.echo(_NO_MOMENT, err=True)
        with _Shown(sum((await counts(store.inner)).values())) as shown:
            return await write_backup(store.inner, packed, __version__, utc_now(), shown)

    with mistakes_explained():
        settings = settings_of(flags)
        with _standard_output() if file == _STDOUT else new_file(Path(file), overwrite) as packed:
            trailer = on_store(settings, lambda store: write(store, packed), any_key=True)
    rows = [(shelf, f"{tally.rows}", tally.checksum[:_SHOWN]) for shelf, tally in trailer.shelves.items()]
    _table([("", "rows", "checksum"), *rows], err=file == _STDOUT)


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    """All has been taken when this ends: what is cut off must not pass for a backup."""
    if sys.stdout.isatty():
        raise StartError("A backup is nothing for a terminal. Name a file, or send it on: chatstate backup - | …")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # else the interpreter tries again at its end, and complains, too
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise StartError(f"Cannot write to standard output: {error.strerror or error}.") from error


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@with_settings(*STORE_SETTINGS)
@_OVERWRITE
@_YES
def restore(file: Path, overwrite: bool, yes: bool, **flags: Any) -> None:
    """Bring a backup back, into a store that holds nothing yet.

    The file is read through first: one that is damaged changes nothing. Make the tables first: chatstate migrate. No
    server may be using the store. Interrupted, it can be run again, and goes on.
    """
    with mistakes_explained():
        settings = settings_of(flags)
        copied = asyncio.run(_restore(settings, BackupFile(file), overwrite, yes))
    _report(copied, "FILE", "store")


async def _restore(settings: Settings, source: BackupFile, overwrite: bool, yes: bool) -> Copied:
    _, trailer = await source.check()
    async with _open(settings, "The store", settings.store, owner=True) as target:
        return await _into(source, target, sum(tally.rows for tally in trailer.shelves.values()), overwrite, yes)


# --- The stores -------------------------------------------------------------------------------------------------------


def _url(text: str) -> str:
    """The store URL, also where the argument says where it stands."""
    kind, _, place = text.partition(":")
    if kind == "env":
        if not os.environ.get(place):
            raise InvalidSetting(f"The variable {place} is not set; {text} means the store URL in it.")
        return os.environ[place]
    if kind == "file":
        try:
            return Path(place).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSetting(f"Cannot read {place}; {text} means the store URL in it.") from error
    warn_of_password(text, "the environment, or into a file: env:NAME or file:PATH in its place")
    return text


def _name(url: str) -> str:
    """What names a store, without a user or a password: a file by its whole path."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "sqlite":
            return f"sqlite:{Path(unquote(parts.path).removeprefix('/')).resolve()}"
    except ValueError:
        return ""  # which opening it explains
    if parts.scheme in ("postgresql", "postgres"):
        return _name_of_postgres(url)
    given = "".join(f"?prefix={name}" for name in parse_qs(parts.query).get("prefix", ()))
    return f"valkey://{parts.netloc.rpartition('@')[2]}{parts.path}{given}"


def _name_of_postgres(url: str) -> str:
    """Hosts and database may stand in the query: those of a Unix socket can only stand there."""
    parsed = parse_url(url, None)
    parts = urlsplit(parsed.dsn)
    query = parse_qs(parts.query)
    database = unquote(parts.path).lstrip("/") or ",".join(query.get("dbname", query.get("database", ())))
    hosts = ",".join(f"{host}:{port}" for host, port in parsed.hosts)
    return f"postgresql://{hosts}/{database}" + (f"?schema={parsed.schema}" if parsed.schema else "")


@asynccontextmanager
async def _open(settings: Settings, side: str, url: str, owner: bool) -> AsyncIterator[Store]:
    """The store as it lies, without its encryption. One that is to be written belongs to nobody else meanwhile."""
    store = create_store(
        url,
        owner=owner,
        create=False,
        pool_size=settings.pool_size,
        allow_unsafe=settings.allow_unsafe_durability,
    )
    try:
        try:
            await store.open()
            await store.status()
        except (StoreUnreachable, StoreUnavailable) as error:
            new = "\nIf it is new, make its tables first: chatstate migrate --store URL" if owner else ""
            raise StartError(f"{side}: {error.message}{new}") from error
        yield store.inner
    finally:
        await store.close()


# --- What is shown ----------------------------------------------------------------------------------------------------


class _Shown(Progress):
    """A bar for each pass on a terminal; else a line for each shelf."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def seen(self, shelf: RowShelf, rows: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = click.progressbar(length=self._total, file=sys.stderr, show_pos=True, show_percent=True)
            self._bar.__enter__()
        self._bar.label = shelf.ljust(max(map(len, SHELVES)))
        self._bar.update(rows)

    def done(self, number: int, compared: Compared) -> None:
        if compared.shelf == SHELVES[-1]:
            self._end()
        if not sys.stderr.isatty():
            rows, put, dropped = compared.source.rows, compared.put, compared.dropped
            click.echo(f"pass {number}: {compared.shelf}: {rows} rows, {put} put, {dropped} removed", err=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _report(copied: Copied, source: str, target: str) -> None:
    rows = [
        (
            compared.shelf,
            *(str(side.rows) for side in (compared.source, compared.target)),
            *(side.checksum[:_SHOWN] for side in (compared.source, compared.target)),
            "equal" if compared.is_equal else "DIFFERENT",
        )
        for compared in copied.shelves
    ]
    head = ("", f"rows {source}", f"rows {target}", f"checksum {source}", f"checksum {target}", "")
    _table([head, *rows])
    if copied.is_verified:
        total = sum(compared.source.rows for compared in copied.shelves)
        click.echo(f"\nThe same on both sides: {total} rows.")
        return
    written = f"{source} or {target}" if source == "FROM" else f"the {target}"
    click.secho(
        f"\nchatstate: not the same yet. {copied.changes} rows still had to be changed in pass {copied.passes}: "
        f"servers are writing to {written}. Stop them, and run this again: it compares, and takes what is left.",
        err=True,
        fg="red",
    )
    sys.exit(1)


def _table(lines: Sequence[tuple[str, ...]], err: bool = False) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        places: list[Callable[[int], str]] = [cell.rjust if cell.isdigit() else cell.ljust for cell in line]
        cells = [place(width) for place, width in zip(places, widths, strict=True)]
        click.echo("  ".join(cells).rstrip(), err=err)
