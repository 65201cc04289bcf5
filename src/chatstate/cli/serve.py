"""`chatstate serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import socket
from typing import Any

import click

from chatstate import __version__
from chatstate.access import Access, Mode
from chatstate.bot import Bot, load_bot
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.cli.common import (
    WHERE_ELSE,
    create_key_command,
    current_folder,
    mistakes_explained,
    settings_of,
    store_of,
    with_settings,
)
from chatstate.config import LOOPBACK, Settings
from chatstate.errors import InvalidSetting, KeysRequired, StartError
from chatstate.http import audit
from chatstate.http.app import ChatState, create_app
from chatstate.http.gate import Rates
from chatstate.http.processes import Child, Parent
from chatstate.http.server import bind, run
from chatstate.http.whatsapp import WEBHOOK
from chatstate.keys import FIRST_KEY
from chatstate.stores import Store, StoreStatus


@click.command(epilog=WHERE_ELSE)
@with_settings()
def serve(**flags: Any) -> None:
    """Serve sessions until Ctrl+C or SIGTERM."""
    start(flags)


def start(flags: Mapping[str, Any]) -> None:
    """Serve with these flags."""
    with mistakes_explained():
        settings = settings_of(flags)
        store = store_of(settings, owner=True)
        _check_workers(settings, store)
        sockets = bind(LOOPBACK.get(settings.host, (settings.host,)), settings.port)
        if settings.workers == 1:
            _serve(settings, store, sockets, flags)
        elif status := Parent(settings.workers, sockets, lambda child: _work(settings, sockets, flags, child)).run():
            sys.exit(status)
        click.echo("Stopped; everything that was accepted has been answered.")


def _check_workers(settings: Settings, store: Store) -> None:
    if settings.workers > 1 and store.is_exclusive:
        raise InvalidSetting(
            "A SQLite file has one process that serves it. Leave --workers away, or use PostgreSQL: --store "
            "postgresql://user:password@host/database (docs/howto/move-and-back-up.md has how to take the data along)"
        )
    if settings.workers > 1 and not hasattr(os, "fork"):
        raise InvalidSetting("This system cannot fork processes. Start several servers, on a --port each.")


def _work(settings: Settings, sockets: list[socket], flags: Mapping[str, Any], child: Child) -> None:
    """What one of several processes does."""
    with mistakes_explained():
        _serve(settings, store_of(settings, owner=True), sockets, flags, child)


def _serve(
    settings: Settings, store: Store, sockets: list[socket], flags: Mapping[str, Any], child: Child | None = None
) -> None:
    app = _app(store, settings, _bot(settings.bot))

    async def greet() -> None:
        if child is None or child.is_first:
            click.echo(_banner(settings, app.access, await store.status(), create_key_command(flags)))
        if child:
            child.started()

    parent = child.parent if child else None
    try:
        run(app, sockets, greet, max_connections=settings.max_connections, parent=parent)
    except KeysRequired as error:
        mends = create_key_command(flags)
        raise StartError(f"{error.message} Create one, then start again:\n\n  {mends}\n") from None


def _app(store: Store, settings: Settings, bot: Bot | None) -> ChatState:
    return create_app(
        store,
        max_state_bytes=settings.max_state_bytes,
        require_json=settings.require_json,
        require_preconditions=settings.require_preconditions,
        history=settings.history,
        idle_expiry_seconds=settings.idle_expiry_seconds,
        retention_days=settings.retention_days,
        keep_visits=settings.keep_visits,
        link_page=settings.link_page,
        demo=settings.demo,
        allow_anonymous=settings.allow_anonymous,
        allowed_origins=settings.allowed_origins,
        allowed_hosts=settings.allowed_hosts,
        trusted_proxies=settings.trusted_proxies,
        rates=Rates(
            settings.rate_per_key,
            settings.rate_per_session,
            settings.rate_per_address,
            settings.failures_per_minute,
            settings.watchers_per_session,
        ),
        token_ttl_seconds=settings.token_ttl_seconds,
        token_renewable_days=settings.token_renewable_days,
        audit=_audit(settings.audit_log),
        require_keys=not settings.is_local,
        first_key=_show_first_key if settings.first_key else None,
        bot=bot,
        turn_seconds=settings.turn_seconds,
        turns_at_once=settings.turns_at_once,
        lease_seconds=settings.lease_seconds,
        whatsapp=_whatsapp(settings),
    )


def _bot(place: str | None) -> Bot | None:
    if place is None:
        return None
    folder = str(current_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as for `python -m`: what stands in the current folder can be named
    return load_bot(place)


def _whatsapp(settings: Settings) -> WhatsAppAccount:
    account = WhatsAppAccount(
        app_secret=settings.whatsapp_app_secret or "",
        verify_token=settings.whatsapp_verify_token or "",
        access_token=settings.whatsapp_access_token or "",
        phone_number_id=settings.whatsapp_phone_number_id or "",
        number=settings.whatsapp_number or "",
        graph_url=settings.whatsapp_graph_url or "",
    )
    needed = ("verify_token", "access_token", "phone_number_id")
    missing = [f"CHATSTATE_WHATSAPP_{name.upper()}" for name in needed if not getattr(account, name)]
    if account.app_secret and missing:
        raise InvalidSetting(
            f"CHATSTATE_WHATSAPP_APP_SECRET is set, so WhatsApp wants these, too: {', '.join(missing)}. Where to find "
            "them: docs/howto/whatsapp.md"
        )
    return account


def _audit(path: str | None) -> Callable[[str], None] | None:
    if path is None:
        return None
    try:
        return audit.to_file(Path(path))
    except OSError as error:
        raise StartError(f"Cannot write the audit log {path}: {error.strerror}. Name another: --audit-log") from None


def _show_first_key(text: str) -> None:
    click.echo(
        f"The first API key, shown this once; keep it safe:\n\n  {text}\n\n"
        f"If this output is kept somewhere, give it a new secret from there: chatstate keys rotate {FIRST_KEY} "
        "--grace-hours 0\n"
    )


def _banner(settings: Settings, access: Access, status: StoreStatus, create_key: str) -> str:
    mode = access.mode
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    condition = "-H 'If-None-Match: *' " if settings.require_preconditions else ""
    credential = '-H "Authorization: Bearer $CHATSTATE_KEY" ' if mode == "keyed" else ""
    first = credential and f"{credential}\\\n    "
    return f"""\
chatstate {__version__} listens on {url}

  store       {status.store}
  durability  {status.durability}
  access      {_ACCESS[mode].format(create_key=create_key)}
{_workers(settings)}{_answering(settings, url)}{_kept(settings)}  reference   {url}/docs
{_chat_page(settings, mode, url)}{_warnings(settings, access)}
Try it:

  curl -X POST {url}/chat-state-sessions -H "Content-Type: application/json" \\
    {first}{condition}-d '{{"user_session_id": "session_12345", "chat_state": "{{\\"messages\\": []}}"}}'
  curl {credential}{url}/chat-state-sessions/session_12345

Stop with Ctrl+C.
"""


def _workers(settings: Settings) -> str:
    if settings.workers == 1:
        return ""
    return f"  workers     {settings.workers} processes; limits of rates and connections are those of each\n"


def _answering(settings: Settings, url: str) -> str:
    """Who answers, and where."""
    bot = f"  bot         {settings.bot}\n" if settings.bot else ""
    if not settings.whatsapp_app_secret:
        return bot
    return f"{bot}  whatsapp    {url}{WEBHOOK} (Meta wants it by https)\n"


def _chat_page(settings: Settings, mode: Mode, url: str) -> str:
    return f"  chat page   {url}/demo\n" if settings.demo or mode == "open" else ""


_ACCESS: Mapping[Mode, str] = {
    "open": "open to all programs and pages of this machine, until there is an API key:\n              {create_key}",
    "keyed": "API keys and session tokens (chatstate keys list)",
    "anonymous": "WITHOUT A CREDENTIAL for loading, saving and deleting; with API keys for the rest",
}


def _warnings(settings: Settings, access: Access) -> str:
    warnings, mode = [], access.mode
    if access.lets_nobody_in:
        warnings.append("No API key is valid any more, so nobody can come in. Create one: chatstate keys create")
    if mode == "anonymous":
        warnings.append("--allow-anonymous: whoever knows or guesses the id of a session can read and change it.")
    if mode == "anonymous" and not settings.allowed_hosts:
        warnings.append(
            "--allow-anonymous without --allowed-hosts: pages that rebind their name to this server can read."
        )
    if settings.store.partition(":")[0].lower() in ("valkey", "valkeys"):
        warnings.append(
            "The store on a Valkey Cluster is experimental. What it survives, and what it was shown to: "
            "docs/explanation/durability.md"
        )
    if not settings.is_local and not settings.trusted_proxies:
        warnings.append("What goes over the network is not encrypted. Put a proxy with TLS in front of this server.")
    if mode == "open" and settings.allowed_origins:
        warnings.append("--allowed-origins has no effect yet: a server without API keys answers pages of this machine.")
    if (settings.whatsapp_access_token or settings.whatsapp_verify_token) and not settings.whatsapp_app_secret:
        warnings.append("Nothing is taken from WhatsApp without CHATSTATE_WHATSAPP_APP_SECRET, which shows who sends.")
    if settings.whatsapp_app_secret and not settings.bot:
        warnings.append("What people write on WhatsApp waits until a server with a bot answers it (--bot).")
    return "".join(f"\n  WARNING  {text}\n" for text in warnings)


def _kept(settings: Settings) -> str:
    """What is kept for longer than by default, or removed by itself."""
    history = f"  history     the {settings.history} newest versions of each session\n" if settings.history else ""
    idle = settings.idle_expiry_seconds
    expiry = (
        f"  expiry      {idle} s after a session's last write, unless it has an expiry of its own\n" if idle else ""
    )
    ring = settings.encryption_keys
    sealed = f"  encryption  {f'AES-256-GCM, with the key {ring.newest}' if ring else 'none'}\n"
    days = settings.retention_days
    return sealed + history + expiry + (f"  retention   everything for {days} days\n" if days else "")
