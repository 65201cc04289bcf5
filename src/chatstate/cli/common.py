"""What the commands have in common: flags of settings, the store that they mean, and mistakes that are explained."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import click

from chatstate.config import SETTINGS, Setting, Settings, load_settings, unknown_variables
from chatstate.copy_mark import check_is_whole
from chatstate.errors import ChatStateError, StartError
from chatstate.model import utc_now
from chatstate.stores import EncryptedStore, create_store

Command = Callable[..., Any]
Result = TypeVar("Result")


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Gives a command the flags of these settings (all of them when none is named)."""

    def decorate(command: Command) -> Command:
        for setting in reversed(SETTINGS):
            if not setting.secret and (not names or setting.name in names):
                switch = {"is_flag": True, "default": None} if setting.default is False else {"metavar": "VALUE"}
                text = f"{setting.help}{_default(setting)} [{', '.join(setting.variables)}]"
                command = click.option(setting.flag, setting.name, help=text, **switch)(command)
        return command

    return decorate


def _default(setting: Setting) -> str:
    """The default, unless the setting's own text says what holds by default."""
    if setting.default is None or setting.default is False or setting.default == ():
        return ""
    shown = f"{setting.default:g}" if isinstance(setting.default, float) else setting.default
    return f" By default {shown}."


def _where_else() -> str:
    secrets = ", ".join(variable for setting in SETTINGS if setting.secret for variable in setting.variables)
    return (
        "Settings may also stand in the environment, or in a file .env in the current folder; NAME_FILE is the file "
        f"that holds the value of NAME. Only there, because all users of this machine can see flags: {secrets}."
    )


WHERE_ELSE = _where_else()
"""Where settings are taken from beside flags, for the ends of help texts."""

STORE_SETTINGS = ("store", "pool_size", "allow_unsafe_durability")
"""Those of every command that works on the store."""


def settings_of(flags: Mapping[str, Any]) -> Settings:
    """The settings that are in force. Warns of a password that other users of this machine can read."""
    elsewhere = "the environment (CHATSTATE_STORE), or into a file (CHATSTATE_STORE_FILE)"
    warn_of_password(flags.get("store") or "", elsewhere)
    folder = current_folder()
    for name, meant in unknown_variables(folder).items():
        guess = f" Did you mean {meant}?" if meant else " Those that there are: chatstate serve --help"
        click.secho(f"chatstate: {name} is no setting, so it does nothing.{guess}", err=True, fg="yellow")
    return load_settings(flags, folder)


def warn_of_password(url: str, elsewhere: str) -> None:
    """If this store URL, which stands on the command line, holds one. `elsewhere` says where it could stand instead."""
    if _has_password(url):
        click.secho(
            "chatstate: the store URL on the command line holds a password, which all users of this machine can see. "
            f"Put it into {elsewhere}.",
            err=True,
            fg="yellow",
        )


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:
        return False


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, separator, host = parts.netloc.rpartition("@")
    place = f"{user.partition(':')[0]}:PASSWORD{separator}{host}" if parts.password else parts.netloc
    query = re.sub(r"(^|&)password=[^&]*", r"\1password=PASSWORD", parts.query)
    return parts._replace(netloc=place, query=query).geturl()


def program() -> list[str]:
    """How this program is called, so that it can be pasted: also where it is not on the PATH."""
    called = sys.argv[0]
    if Path(called).name != "chatstate":
        return [sys.executable, "-m", "chatstate"]
    return ["chatstate" if shutil.which("chatstate") == str(Path(called).absolute()) else called]


def create_key_command(flags: Mapping[str, Any]) -> str:
    """The command that makes an API key in the store of a server with these flags, to be pasted where it was started.

    In the place of a password stands PASSWORD.
    """
    words = [*program(), "keys", "create", "--name", "web"]
    if url := flags.get("store"):
        words += ["--store", _without_password(url) if _has_password(url) else url]
    if flags.get("allow_unsafe_durability"):
        words.append("--allow-unsafe-durability")
    return shlex.join(words)


def current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise StartError("The current folder does not exist any more. Change to another one: cd ~") from None


def store_of(settings: Settings, owner: bool, create: bool = True) -> EncryptedStore:
    return create_store(
        settings.store,
        owner=owner,
        create=create,
        pool_size=settings.pool_size,
        allow_unsafe=settings.allow_unsafe_durability,
        key_ring=settings.encryption_keys,
    )


def on_store(
    settings: Settings,
    work: Callable[[EncryptedStore], Awaitable[Result]],
    *,
    create: bool = False,
    any_key: bool = False,
) -> Result:
    """What comes of the work on the store, which is opened for it beside a server that may be running.

    create   make the file and the tables if they are not there yet
    any_key  also where what lies there is encrypted with a key that is missing here
    """
    logging.getLogger("chatstate").addHandler(logging.NullHandler())  # what is wrong is printed once, as a mistake

    async def run() -> Result:
        store = store_of(settings, owner=False, create=create)
        try:
            await store.open()
            if create:
                await store.migrate()
            await check_is_whole(store, utc_now())
            if not any_key:
                await store.check_keys(utc_now())
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


@contextmanager
def mistakes_explained() -> Iterator[None]:
    """Prints our errors as one message with its repair, and ends the process with status 1."""
    try:
        yield
    except ChatStateError as error:
        click.secho(f"chatstate: {error.message}", err=True, fg="red")
        sys.exit(1)
