"""The command line: `chatstate` and its commands. `chatstate --help` lists them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import click

from chatstate import __version__
from chatstate.cli import keys, maintain
from chatstate.cli import serve as serving
from chatstate.cli.common import WHERE_ELSE, with_settings
from chatstate.cli.inbox import inbox

_LOADED_LATER = {
    "backup": "move",
    "check-store": "check_store",  # the contract suite
    "copy": "move",
    "restore": "move",
    "whatsapp": "whatsapp",  # an HTTP client
}
"""Commands that are loaded when they are asked for, with what few need, and the modules that they are in."""


class _Commands(click.Group):
    """Those that are here, and those that are loaded later."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LOADED_LATER])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := _LOADED_LATER.get(cmd_name):
            name = cmd_name.replace("-", "_")
            return cast(click.Command, getattr(import_module(f"chatstate.cli.{module}"), name))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=WHERE_ELSE,
)
@click.version_option(__version__, message="chatstate %(version)s")
@with_settings()
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """The session server for chatbots. Without a command: serve."""
    if context.invoked_subcommand is None:
        serving.start(flags)
    elif any(value is not None for value in flags.values()):
        raise click.UsageError(f"Write the options behind the command: chatstate {context.invoked_subcommand} …")


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"chatstate {__version__}")


for command in (
    serving.serve,
    keys.keys,
    keys.tokens,
    keys.audit_id,
    maintain.migrate,
    maintain.sweep,
    inbox,
    version,
):
    main.add_command(command)
