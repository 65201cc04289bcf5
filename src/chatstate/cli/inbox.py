"""`chatstate inbox`: messages that could not be answered, and replies that could not be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click

from chatstate.cli.common import STORE_SETTINGS, mistakes_explained, on_store, settings_of, with_settings
from chatstate.errors import StartError
from chatstate.inbox import Inbox
from chatstate.mailbox import InboxEntry, OutboxEntry
from chatstate.model import format_time
from chatstate.stores import EncryptedStore

Result = TypeVar("Result")

_SHOWN = 8
"""How many digits of a message's key are shown, and enough to name it."""


@click.group(invoke_without_command=True)
@with_settings(*STORE_SETTINGS)
@click.pass_context
def inbox(context: click.Context, /, **flags: Any) -> None:
    """List messages that were set aside, and what waits. What people have written is not shown.

    A message is set aside when the bot has failed on it five times. The log says each time where.
    """
    if context.invoked_subcommand is not None:
        if any(value is not None for value in flags.values()):
            raise click.UsageError(
                f"Write the options behind the command: chatstate inbox {context.invoked_subcommand} …"
            )
        return
    with mistakes_explained():
        aside, pending, failed = _on_inbox(flags, _look)
        click.echo(_table(aside))
        click.echo(f"\nWaiting for an answer: {len(pending)}{_more(pending)}.", nl=False)
        click.echo(f" Replies that could not be sent: {len(failed)}{_more(failed)}.")
        for error, count in Counter(entry.error for entry in failed).most_common():
            click.echo(f"  {count} × {error}")


@inbox.command()
@click.argument("keys", metavar="MESSAGE…", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All messages that were set aside.")
@with_settings(*STORE_SETTINGS)
def retry(keys: tuple[str, ...], every: bool, **flags: Any) -> None:
    """Have messages answered after all that were set aside.

    For when what was wrong is mended. Their tries begin anew.
    """
    _each(flags, keys, every, Inbox.retry, "will be answered")


@inbox.command()
@click.argument("keys", metavar="MESSAGE…", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All messages that were set aside.")
@with_settings(*STORE_SETTINGS)
def drop(keys: tuple[str, ...], every: bool, **flags: Any) -> None:
    """Erase messages that were set aside.

    They are never answered.
    """
    _each(flags, keys, every, Inbox.drop, "dropped")


async def _look(box: Inbox) -> tuple[Sequence[InboxEntry], Sequence[InboxEntry], Sequence[OutboxEntry]]:
    return await box.entries("aside"), await box.entries("pending"), await box.replies("failed")


def _on_inbox(flags: dict[str, Any], work: Callable[[Inbox], Awaitable[Result]]) -> Result:
    async def run(store: EncryptedStore) -> Result:
        return await work(Inbox(store))

    return on_store(settings_of(flags), run)


def _each(
    flags: dict[str, Any],
    keys: tuple[str, ...],
    every: bool,
    act: Callable[[Inbox, str], Awaitable[bool]],
    done: str,
) -> None:
    if every == bool(keys):
        raise click.UsageError("Name messages, as `chatstate inbox` lists them, or give --all.")

    async def work(box: Inbox) -> int:
        aside = [entry.key for entry in await box.entries("aside")]
        chosen = aside if every else [_found(key, aside) for key in keys]
        return sum([await act(box, key) for key in chosen])

    with mistakes_explained():
        count = _on_inbox(flags, work)
        click.echo(f"{count} message{'' if count == 1 else 's'} {done}.")


def _found(key: str, aside: Sequence[str]) -> str:
    found = [other for other in aside if other.startswith(key)]
    if len(found) != 1:
        reason = "names several messages; write more of it" if found else "names no message that was set aside"
        raise StartError(f"{key} {reason}. Those that there are: chatstate inbox")
    return found[0]


def _table(aside: Sequence[InboxEntry]) -> str:
    if not aside:
        return "No message was set aside."
    rows = [f"{'message':<{_SHOWN}}  {'arrived':<20}  tries  failed last"]
    for entry in aside:
        arrived = format_time(entry.received_at.replace(microsecond=0))
        rows.append(f"{entry.key[:_SHOWN]}  {arrived:<20}  {entry.tries:>5}  {entry.error}")
    return "\n".join([*rows, "", "To answer them after all: chatstate inbox retry --all"])


def _more(entries: Sequence[object]) -> str:
    return " or more" if len(entries) == 1000 else ""
