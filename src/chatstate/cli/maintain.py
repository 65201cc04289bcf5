"""`chatstate migrate` and `chatstate sweep`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from chatstate.cli.common import STORE_SETTINGS, mistakes_explained, on_store, settings_of, store_of, with_settings
from chatstate.stores import Store, create_tuning
from chatstate.sweeper import Sweeper

if TYPE_CHECKING:
    from chatstate.stores.postgres_tuning import PostgresTuning


@click.command()
@with_settings(*STORE_SETTINGS)
@click.option(
    "--print", "print_only", is_flag=True, help="Print the SQL for those who run it by hand, and change nothing."
)
@click.option(
    "--tune", is_flag=True, help="Then make a table of another program as fast as our own; asks before it does."
)
@click.option("--yes", is_flag=True, help="With --tune: do not ask.")
def migrate(print_only: bool, tune: bool, yes: bool, **flags: Any) -> None:
    """Make the tables, or bring those that are there to this version.

    `chatstate serve` does the same at its start; this command is for those who want it done at another time, or by
    another user. Running it twice is fine, also while servers are working.
    """
    if yes and not tune:
        raise click.UsageError("--yes goes with --tune; nothing else asks.")
    with mistakes_explained():
        settings = settings_of(flags)
        store = store_of(settings, owner=False)
        if print_only and not tune:
            click.echo(store.migration_sql())
            return
        if not print_only:
            applied = asyncio.run(_migrate(store))
            click.echo("\n".join(f"applied {name}" for name in applied) or "Nothing to do: the tables are up to date.")
        if tune:
            _tune(create_tuning(settings.store), print_only, yes)


def _tune(tuning: PostgresTuning | None, print_only: bool, yes: bool) -> None:
    table, steps = asyncio.run(tuning.plan()) if tuning else ("", [])
    comment = "-- " if print_only else ""
    click.echo(f"{comment}{table}\n" if steps else f"{comment}Nothing to tune. {table}".rstrip())
    for step in steps:
        for text in (step.gain, f"Locks {step.locks}"):
            words = " ".join(text.split())  # the names of indexes may have line ends
            click.echo(click.wrap_text(words, 100, initial_indent=comment, subsequent_indent=comment))
        click.echo(f"{step.sql}\n")
    if tuning is None or not steps or print_only:
        return
    if not yes:
        click.confirm("Carry out these steps?", abort=True)
    for step in steps:
        asyncio.run(tuning.carry_out(step))
        click.echo(f"done: {step.sql}")


async def _migrate(store: Store) -> list[str]:
    try:
        await store.open()
        return await store.migrate()
    finally:
        await store.close()


@click.command()
@with_settings(*STORE_SETTINGS, "idle_expiry_seconds", "retention_days")
def sweep(**flags: Any) -> None:
    """Remove now what has expired, also while servers are working.

    A server does the same by itself, every minute. Expired sessions are never served, swept or not. Give it the
    servers' own values of --idle-expiry-seconds and --retention-days: smaller ones remove what they still serve.
    """
    with mistakes_explained():
        settings = settings_of(flags)
        removed = on_store(settings, lambda store: Sweeper(store, retention=settings.retention).sweep())
        click.echo(f"Removed {removed} expired session{'' if removed == 1 else 's'}.")
