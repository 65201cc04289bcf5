"""`chatstate whatsapp`: WhatsApp for development, without an account."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

from chatstate import __version__
from chatstate.cli.common import mistakes_explained, program, settings_of
from chatstate.config import LOOPBACK
from chatstate.emulator import PORT, WEBHOOK, Account, Emulator, Webhook
from chatstate.errors import StartError
from chatstate.http.server import bind, run

_PATH = urlsplit(WEBHOOK).path
_SERVER_PORT = 3000
_EXAMPLE = "examples.onboarding_bot:bot"

_VARIABLES = {
    "app_secret": "CHATSTATE_WHATSAPP_APP_SECRET",
    "verify_token": "CHATSTATE_WHATSAPP_VERIFY_TOKEN",
    "access_token": "CHATSTATE_WHATSAPP_ACCESS_TOKEN",
    "phone_number_id": "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID",
    "number": "CHATSTATE_WHATSAPP_NUMBER",
}
"""What both sides have to know, by its name in `Account`."""

_SECRET = ("app_secret", "verify_token", "access_token")


@click.group()
def whatsapp() -> None:
    """WhatsApp for development, without an account."""


def _webhook(_context: click.Context, _option: click.Parameter, text: str) -> str:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise click.BadParameter(f"{text!r} is no address of a server; give one such as {WEBHOOK}")
    return parts._replace(path=_PATH).geturl() if parts.path in ("", "/") else text


@whatsapp.command(
    epilog="What both sides have to know is taken from the environment, or from a file .env in the current folder, and "
    f"has fixed values for development otherwise: {', '.join(_VARIABLES.values())}."
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, help="The port of the page and the API."
)
@click.option(
    "--webhook",
    default=WEBHOOK,
    show_default=True,
    metavar="URL",
    callback=_webhook,
    help=f"Where messages are delivered. An address without a path gets {_PATH}.",
)
@click.option(
    "--identities",
    type=click.Choice(("before", "both", "username")),
    default="both",
    show_default=True,
    help="How webhooks name who has written: by number, as until March 2026; by number and user id; or by user id "
    "alone, as with people who have taken a username.",
)
def emulate(port: int, webhook: str, identities: Any) -> None:
    """Emulate the WhatsApp Cloud API, with a phone to write from.

    It is for a bot on this machine: what is written on the page it delivers to the webhook of a chatstate server,
    signed as Meta signs it, and takes the bot's replies. It talks to that server alone, and keeps nothing.
    """
    with mistakes_explained():
        known = _known()
        url = f"http://localhost:{port}"
        emulator = Emulator(webhook, Account(**known), identities=identities, url=url, watching=True)
        sockets = _bind(port)

        async def greet() -> None:
            click.echo(_banner(url, webhook, identities, known))
            emulator.network.told = _say
            if emulator.network.webhook.state != "unknown":
                _say(emulator.network.webhook)

        run(emulator, sockets, greet)
        click.echo("Stopped.")


def _known() -> dict[str, str]:
    """What is set of the account."""
    settings = settings_of({})
    found = {name: getattr(settings, f"whatsapp_{name}") for name in _VARIABLES}
    return {name: value for name, value in found.items() if value}


def _bind(port: int) -> list[Any]:
    try:
        return list(bind(LOOPBACK["localhost"], port))
    except StartError as error:
        raise StartError(error.message.replace("chatstate serve", "chatstate whatsapp emulate")) from None


def _banner(url: str, webhook: str, identities: str, known: Mapping[str, str]) -> str:
    return f"""\
chatstate {__version__} emulates WhatsApp on {url}

  phone       {url}
  webhook     {webhook}
  identities  {identities}

Start a server with a bot beside it:

{_command(url, webhook, known)}

Stop with Ctrl+C.
"""


def _command(url: str, webhook: str, known: Mapping[str, str]) -> str:
    """What starts the server, to be pasted. Secrets that were given are not repeated here."""
    account = Account(**known)
    lines = []
    for name, variable in _VARIABLES.items():
        given = name in _SECRET and name in known
        lines.append(f'{variable}="${variable}"' if given else f"{variable}={shlex.quote(getattr(account, name))}")
    lines.append(f"CHATSTATE_WHATSAPP_GRAPH_URL={url}")
    words = [*program(), "serve", "--bot", _EXAMPLE]
    parts = urlsplit(webhook)
    if parts.hostname in LOOPBACK and parts.port not in (None, _SERVER_PORT):
        words += ["--port", str(parts.port)]
    return " \\\n".join(f"  {line}" for line in [*lines, shlex.join(words)])


def _say(webhook: Webhook) -> None:
    more = "" if webhook.state == "ready" else " It is tried again until it answers."
    click.secho(f"  webhook: {webhook.text}{more}", fg=None if webhook.state == "ready" else "yellow")
