"""The command line: `chatstate`, `chatstate serve`, `chatstate migrate`, `chatstate sweep`, `chatstate version`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatstate import __version__
from chatstate.config import LOOPBACK, SETTINGS, Settings, load_settings
from chatstate.errors import ChatStateError, StartError
from chatstate.http.app import create_app
from chatstate.http.server import bind, run
from chatstate.stores import Store, StoreStatus, create_store, create_tuning
from chatstate.sweeper import Sweeper

if TYPE_CHECKING:
    from chatstate.stores.postgres_tuning import PostgresTuning

Command = Callable[..., Any]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Gives a command the flags of these settings (all of them when none is named)."""

    def decorate(command: Command) -> Command:
        for setting in reversed(SETTINGS):
            if not names or setting.name in names:
                switch = {"is_flag": True, "default": None} if setting.default is False else {"metavar": "VALUE"}
                text = f"{setting.help} [{', '.join(setting.variables)}]"
                command = click.option(setting.flag, setting.name, help=text, **switch)(command)
        return command

    return decorate


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings may also stand in the environment, or in a file .env in the current folder.",
)
@click.version_option(__version__, message="chatstate %(version)s")
@with_settings()
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """The session server for chatbots. Without a command: serve."""
    if context.invoked_subcommand is None:
        _serve(flags)
    elif any(value is not None for value in flags.values()):
        raise click.UsageError(f"Write the options behind the command: chatstate {context.invoked_subcommand} …")


@main.command()
@with_settings()
def serve(**flags: Any) -> None:
    """Serve sessions on this machine until Ctrl+C or SIGTERM."""
    _serve(flags)


def _serve(flags: Mapping[str, Any]) -> None:
    with _mistakes_explained():
        settings = load_settings(flags, _folder())
        store = _store(settings, owner=True)
        sockets = bind(LOOPBACK[settings.host], settings.port)
        app = create_app(
            store,
            max_state_bytes=settings.max_state_bytes,
            require_json=settings.require_json,
            require_preconditions=settings.require_preconditions,
            history=settings.history,
            idle_expiry_seconds=settings.idle_expiry_seconds,
        )

        async def greet() -> None:
            click.echo(_banner(settings, await store.status()))

        run(app, sockets, greet)
        click.echo("Stopped; everything that was accepted has been answered.")


def _folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise StartError("The current folder does not exist any more. Change to another one: cd ~") from None


def _store(settings: Settings, owner: bool, create: bool = True) -> Store:
    return create_store(
        settings.store,
        owner=owner,
        create=create,
        pool_size=settings.pool_size,
        allow_unsafe=settings.allow_unsafe_durability,
    )


def _banner(settings: Settings, status: StoreStatus) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    condition = "-H 'If-None-Match: *' " if settings.require_preconditions else ""
    return f"""\
chatstate {__version__} listens on {url}

  store       {status.store}
  durability  {status.durability}
{_kept(settings)}  reference   {url}/docs

Try it:

  curl -X POST {url}/chat-state-sessions -H "Content-Type: application/json" \\
    {condition}-d '{{"user_session_id": "session_12345", "chat_state": "{{\\"messages\\": []}}"}}'
  curl {url}/chat-state-sessions/session_12345

Stop with Ctrl+C.
"""


def _kept(settings: Settings) -> str:
    """What is kept for longer than by default, or removed by itself."""
    history = f"  history     the {settings.history} newest versions of each session\n" if settings.history else ""
    idle = settings.idle_expiry_seconds
    expiry = (
        f"  expiry      {idle} s after a session's last write, unless it has an expiry of its own\n" if idle else ""
    )
    return history + expiry


@main.command()
@with_settings("store", "pool_size", "allow_unsafe_durability")
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
    with _mistakes_explained():
        settings = load_settings(flags, _folder())
        store = _store(settings, owner=False)
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


@main.command()
@with_settings("store", "idle_expiry_seconds", "pool_size", "allow_unsafe_durability")
def sweep(**flags: Any) -> None:
    """Remove expired sessions now, also while servers are working.

    A server does the same by itself, every minute. Expired sessions are never served, swept or not. Give it the
    servers' own value of --idle-expiry-seconds: with a smaller one it removes sessions that they still serve.
    """
    with _mistakes_explained():
        settings = load_settings(flags, _folder())
        removed = asyncio.run(_sweep(_store(settings, owner=False, create=False), settings))
        click.echo(f"Removed {removed} expired session{'' if removed == 1 else 's'}.")


async def _sweep(store: Store, settings: Settings) -> int:
    try:
        await store.open()
        return await Sweeper(store, retention=settings.retention).sweep()
    finally:
        await store.close()


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"chatstate {__version__}")


@contextmanager
def _mistakes_explained() -> Iterator[None]:
    """Prints our errors as one message with its repair, and ends the process with status 1."""
    try:
        yield
    except ChatStateError as error:
        click.secho(f"chatstate: {error.message}", err=True, fg="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
