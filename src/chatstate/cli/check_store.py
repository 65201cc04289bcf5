"""`chatstate check-store`: the contract suite on a database of the user's own, and what it means that checks hold."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import click

from chatstate.cli.common import STORE_SETTINGS, mistakes_explained, settings_of, store_of, with_settings
from chatstate.config import SETTINGS, Settings
from chatstate.errors import (
    ChatStateError,
    PrivilegeMissing,
    StartError,
    StoreError,
    StoreUnavailable,
    StoreUnreachable,
)
from chatstate.mailbox import InboxQuery, OutboxQuery
from chatstate.model import StoredQuery, utc_now
from chatstate.stores import EncryptedStore, Store, create_tuning
from chatstate.stores.base import Query
from chatstate.stores.contract import CHECKS, NOT_REMOVED, Contract, run
from chatstate.visit import VisitQuery


class Group(NamedTuple):
    """Checks that belong together: their title, and what it means for the operator that all of them hold."""

    title: str
    meaning: str


GROUPS = {
    "Contract": Group("sessions", "a save is whole, and never lost to another one, on any number of servers."),
    "TurnChecks": Group("turns", "a retry happens once; history, expiry, lists and sweeping are right."),
    "VisitChecks": Group("visits", "visits are counted, changed, listed and erased, whoever else is writing."),
    "RecordChecks": Group("records", "API keys, links and leases: of many who want the same one, one gets it."),
    "MailboxChecks": Group("mailbox", "bots and channels: each message is kept and answered once, in order."),
    "RowChecks": Group("rows", "copies and backups: every row is listed, put and dropped as it lies."),
    "StoredChecks": Group("texts", "encryption at rest: every text is found where it lies, and sealed anew."),
    "FeedChecks": Group("feed", "live updates: who watches a session learns of each write."),
}
"""What the parts of the suite are about."""

_DEFAULT_STORE = next(setting.default for setting in SETTINGS if setting.name == "store")


class Result(NamedTuple):
    """What became of a check: how long it took, in seconds, and why it does not hold, if it does not."""

    check: str
    seconds: float
    error: BaseException | None


@click.command("check-store")
@click.argument("url", required=False)
@with_settings(*STORE_SETTINGS)
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Only checks like this, such as '*visit*'.")
@click.option("--list", "listing", is_flag=True, help="List the checks, and run none.")
@click.option("--verbose", is_flag=True, help="Show whole why a check does not hold.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one check may take.",
)
@click.option(
    "--even-in-use",
    is_flag=True,
    help="Run also on a database that holds something already. It is left alone; but stop the servers that work on it: "
    "they would take the messages of the checks for theirs.",
)
def check_store(
    url: str | None,
    patterns: tuple[str, ...],
    listing: bool,
    verbose: bool,
    timeout: float,
    even_in_use: bool,
    **flags: Any,
) -> None:
    """Show whether a database keeps the contract of a store.

    Runs the suite that every store of chatstate passes on the database that URL means, or --store, with two stores at
    once: for engines that speak PostgreSQL's protocol, and for a set-up of your own. Takes an empty database and makes
    the tables; what the checks make they remove, and the tables stay. The status is 0 only if all checks hold.
    """
    checks = [check for check in CHECKS if not patterns or any(_is_like(check, pattern) for pattern in patterns)]
    if not checks:
        raise click.UsageError("No check is like that. Those that there are: chatstate check-store --list")
    if listing:
        click.echo("\n".join(map(_words, checks)))
        return
    if url and flags["store"]:
        raise click.UsageError("Give the database once: as the argument, or with --store.")
    logging.getLogger("chatstate").addHandler(logging.NullHandler())  # what is wrong is printed with the check
    with mistakes_explained():
        settings = settings_of({**flags, "store": url or flags["store"]})
        if settings.store == _DEFAULT_STORE:
            raise StartError("Say which database: chatstate check-store postgresql://user@host/chatstate_check")
        suite = _Suite(settings, timeout, verbose)
        try:
            asyncio.run(suite.run(checks, even_in_use))
        except KeyboardInterrupt:
            click.echo(f"\nStopped. {suite.rest}", err=True)
            sys.exit(130)
    sys.exit(suite.conclude(len(checks)))


def _words(check: str) -> str:
    return check.replace("_", " ")


def _is_like(check: str, pattern: str) -> bool:
    return fnmatch(check, pattern.replace(" ", "_")) or pattern == group_of(check).title


def group_of(check: str) -> Group:
    """The group that the check belongs to."""
    name = next(part.__name__ for part in Contract.__mro__ if check in vars(part))
    return GROUPS.get(name) or Group(name.removesuffix("Checks").lower(), "")


class _Suite:
    """One run of the suite, and what it prints."""

    def __init__(self, settings: Settings, seconds: float, verbose: bool) -> None:
        self._settings, self._seconds, self._verbose = settings, seconds, verbose
        self._results: list[Result] = []
        self._left = ""  # of what the checks have made
        self.rest = "What the check had made was removed."  # as far as is known, of the one that is interrupted
        self._shows_progress = sys.stdout.isatty()

    async def run(self, checks: Sequence[str], even_in_use: bool) -> None:
        """Run the checks, one after the other. Raises `StartError` when that cannot begin."""
        await self._prepare(even_in_use)
        await self._run_all(checks)
        if even_in_use or isinstance(self._results[-1].error, StoreUnreachable):
            return
        store = await self._open()
        try:
            self._left = await _held(store, self._settings.store)
        finally:
            await store.close()

    async def _run_all(self, checks: Sequence[str]) -> None:
        for number, check in enumerate(checks):
            if number == 0 or group_of(check) != group_of(checks[number - 1]):
                click.echo(f"\n{group_of(check).title}")
            if self._shows_progress:
                click.echo(f"  … {_words(check)} ({number + 1} of {len(checks)})", nl=False)
            self._results.append(await self._result(check))
            self._show(self._results[-1])
            if isinstance(self._results[-1].error, StoreUnreachable):
                click.secho("  The database cannot be reached any more; the other checks were not run.", fg="red")
                return

    async def _prepare(self, even_in_use: bool) -> None:
        """Say what answers, and make the tables, unless it is in use."""
        store = store_of(self._settings, owner=False)
        try:
            await store.open()
            if not even_in_use:
                await self._refuse_in_use(store)
            applied = await self._migrated(store)
            if not even_in_use:
                await self._refuse_in_use(store)
            status = await store.status()
        finally:
            await store.close()
        click.secho(status.store, bold=True)
        click.echo(f"  {status.durability}")
        click.echo(f"  Migrations applied: {', '.join(applied) or 'none, the tables are up to date'}")

    async def _migrated(self, store: Store) -> Sequence[str]:
        try:
            return await store.migrate()
        except StoreError as error:
            cause = f" It said: {error.__cause__}" if error.__cause__ else ""
            raise StartError(f"The tables cannot be made on this database. {error.message}{cause}") from error

    async def _refuse_in_use(self, store: Store) -> None:
        held = await _held(store, self._settings.store)
        if held:
            raise StartError(
                f"The database holds {held} already, so it may be in use. Give an empty one (for PostgreSQL: createdb "
                "chatstate_check, and that name at the end of the URL), or run on this one: --even-in-use"
            )

    async def _result(self, check: str) -> Result:
        started = time.monotonic()
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self._seconds):
                await run(check, self._open)
        except Exception as failure:  # whatever it is, it is what the operator wants to know
            error = failure
        except BaseException as end:
            if NOT_REMOVED in getattr(end, "__notes__", ()):
                self.rest = f"{NOT_REMOVED} Drop the database."
            raise
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # what has failed is the cleaning up after Ctrl+C
            raise asyncio.CancelledError from error
        return Result(check, time.monotonic() - started, error)

    async def _open(self) -> Store:
        store = store_of(self._settings, owner=False)
        try:
            await store.open()
        except BaseException:
            await store.close()
            raise
        return store

    def _show(self, result: Result) -> None:
        if self._shows_progress:
            click.echo("\r\x1b[K", nl=False)
        if result.error is None:
            click.echo(f"  {click.style('✓', fg='green')} {_words(result.check)}")
            return
        click.echo(f"  {click.style('✗', fg='red')} {_words(result.check)}: {self._reason(result.error)}")
        if self._verbose:
            for line in "".join(traceback.format_exception(result.error)).splitlines():
                click.echo(f"      {line}")

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"it has not ended within {self._seconds:g} s (--timeout)"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).partition("\n")[0] or f"{frame.line}"
        if isinstance(error, ChatStateError) and error.__cause__ is not None:
            said += f" ({type(error.__cause__).__name__}: {str(error.__cause__).partition(chr(10))[0]})"
        return f"{type(error).__name__}: {said}"

    def conclude(self, wanted: int) -> int:
        """Say what holds and what does not; the status of the process."""
        held = [result for result in self._results if result.error is None]
        click.echo()
        for group in dict.fromkeys(group_of(result.check) for result in self._results):
            of_group = [result for result in self._results if group_of(result.check) == group]
            count = sum(result.error is None for result in of_group)
            holds = count == len(of_group)
            mark = click.style("✓", fg="green") if holds else click.style("✗", fg="red")
            tail = group.meaning if holds else f"NOT shown: {group.meaning}"
            if holds and len(of_group) < sum(group_of(check) == group for check in CHECKS):
                tail = "what was chosen of it; the whole group shows more."
            click.echo(f"{mark} {group.title:<8}  {count:>3} of {len(of_group):<3} {tail}".rstrip())
        seconds = sum(result.seconds for result in self._results)
        all_hold = len(held) == wanted
        text = f"{len(held)} of {wanted} checks hold, in {seconds:.0f} s."
        click.secho(f"\n{text}", fg="green" if all_hold else "red", bold=True)
        if self._left:
            click.secho(f"Some {self._left} of the checks could not be removed. Drop the database.", fg="red")
        else:
            click.echo("What the checks have made is removed. The tables stay; they go with the database.")
        return 0 if all_hold and not self._left else 1


async def _held(store: Store, url: str) -> str:
    """What is in the database, in one word; nothing when it is empty or has no tables yet."""
    now = utc_now()
    queries: dict[str, Query] = {
        "sessions": StoredQuery(shelf="sessions", head="", limit=1),
        "idempotency keys": StoredQuery(shelf="remembered", head="", limit=1),
        "records": StoredQuery(shelf="records", head="", limit=1),
        "visits": VisitQuery(limit=1),
        "messages": InboxQuery(now=now, limit=1),
        "replies": OutboxQuery(now=now, limit=1),
    }
    inner = store.inner if isinstance(store, EncryptedStore) else store  # whether they can be read is no matter
    try:
        for name, query in queries.items():
            if await inner.list(query):
                return name
        return ""
    except PrivilegeMissing as error:
        raise StartError(error.message) from error
    except StoreUnavailable:
        return await _held_by_another_program(url)


async def _held_by_another_program(url: str) -> str:
    """What is in a table that is not migrated: that of a service that chatstate replaces, perhaps."""
    tuning = create_tuning(url)
    try:
        return f"a table of another program ({(await tuning.plan())[0].rstrip('.')})" if tuning else ""
    except StoreUnavailable:
        return ""
