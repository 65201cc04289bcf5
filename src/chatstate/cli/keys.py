"""`chatstate keys`, `chatstate tokens` and `chatstate audit-id`: who may come in, and who has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import click

from chatstate.cli.common import STORE_SETTINGS, mistakes_explained, on_store, settings_of, with_settings
from chatstate.encryption import KeyRing, new_key
from chatstate.errors import InvalidSetting, StartError
from chatstate.hashes import audit_key, session_hash
from chatstate.keys import ApiKey, Keys, is_key
from chatstate.model import LONGEST_TTL, SCOPES, Scope, check_prefix, format_time, utc_now
from chatstate.reencryption import Counts, Reencryption
from chatstate.stores import Store
from chatstate.tokens import Tokens

_LONGEST_PREFIX = 200
"""Behind it there must be room for what tells sessions apart."""

_LONGEST_NAME = 100

_MOST_SCOPES = tuple(scope for scope in SCOPES if scope != "admin")
_SCOPES = ",".join(_MOST_SCOPES)

_MEANINGS = (
    "Scopes. read, write, delete: sessions and visits whose ids the caller knows, and with delete also all about a "
    "person. list: find sessions and visits without knowing their ids. mint: session tokens for browsers. export: take "
    "out all that is kept about a session or a person. admin: see where the store is."
)

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group()
def keys() -> None:
    """API keys: what programs show to be let in.

    A server without any answers this machine only, and asks nobody for anything. From the first one on, each request
    must show a key, or a session token that a key has minted.
    """


@keys.command(epilog=_MEANINGS)
@with_settings(*STORE_SETTINGS)
@click.option("--name", required=True, metavar="TEXT", help="What it is for, in your words.")
@click.option(
    "--scopes",
    default=_SCOPES,
    metavar="LIST",
    help=f"What it may do: some of {','.join(SCOPES)}, or all. By default all but admin.",
)
@click.option(
    "--id-prefix",
    metavar="TEXT",
    help="It sees only sessions whose ids begin with this. By default it sees all.",
)
@click.option(
    "--expires-in-days",
    type=click.IntRange(1, 36_500),
    metavar="NUMBER",
    help="It is void after so many days. By default it does not expire.",
)
@_JSON
def create(
    name: str, scopes: str, id_prefix: str | None, expires_in_days: int | None, as_json: bool, **flags: Any
) -> None:
    """Create a key and print it, once.

    Servers that are running know it within seconds, and want a credential from the first one on.
    """

    async def make(store: Store) -> tuple[str, str, str, bool]:
        kept = Keys(store)
        is_first = not await kept.all(now)
        key, text = await kept.create(name, now, allowed, id_prefix or "", expires_at)
        return key.id, text, (await store.status()).store, is_first

    with mistakes_explained():
        allowed, now = _scopes(scopes), utc_now()
        _check_name(name)
        _check_prefix(id_prefix)
        expires_at = now + timedelta(days=expires_in_days) if expires_in_days else None
        key_id, text, place, is_first = on_store(settings_of(flags), make, create=True)
    _show(
        {"id": key_id, "key": text},
        as_json,
        f"The key {key_id} of {place}.\nIt is shown this once; keep it safe. Programs send it: Authorization: Bearer …",
        "From this first key on, servers on this store want a credential for each request." if is_first else "",
    )


def _show(made: Mapping[str, str], as_json: bool, *advice: str) -> None:
    """The key alone on standard output, so that scripts can take it from there."""
    if as_json:
        click.echo(json.dumps(made))
    else:
        click.echo(made["key"])
        click.echo("\n" + "\n".join(filter(None, advice)), err=True)


def _check_name(name: str) -> None:
    if not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
        raise InvalidSetting(f"--name={name!r} must be 1 to {_LONGEST_NAME} characters that can be printed.")


def _scopes(text: str) -> list[Scope]:
    names = list(SCOPES) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(SCOPES):
        raise InvalidSetting(f"--scopes={text!r} must be some of {','.join(SCOPES)}, separated by commas, or all.")
    return [scope for scope in SCOPES if scope in names]


def _check_prefix(prefix: str | None) -> None:
    if prefix is None:
        return
    try:
        if not prefix:  # an empty variable of a script must not make a key that sees everything
            raise ValueError("must not be empty; leave it out for a key that sees all sessions")
        if len(prefix) > _LONGEST_PREFIX:
            raise ValueError(f"must have at most {_LONGEST_PREFIX} characters")
        check_prefix(prefix)
    except ValueError as error:
        raise InvalidSetting(f"--id-prefix={prefix!r} {error}.") from None


@keys.command("list")
@with_settings(*STORE_SETTINGS)
@_JSON
def list_keys(as_json: bool, **flags: Any) -> None:
    """List the keys.

    Also those that are revoked or have expired. When each was last used is known to the minute.
    """
    now = utc_now()

    async def read(store: Store) -> list[dict[str, Any]]:
        known = Keys(store)
        uses = await known.last_uses(now)
        return [_row(key, uses.get(key.id), now) for key in (await known.all(now)).values()]

    with mistakes_explained():
        rows = on_store(settings_of(flags), read)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("There are no keys. Create one: chatstate keys create --name web")
    else:
        _print_table(rows)


def _row(key: ApiKey, used_at: datetime | None, now: datetime) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": ",".join(key.scopes),
        "id_prefix": key.id_prefix,
        "status": "revoked" if key.revoked_at else "live" if key.is_live(now) else "expired",
        "created_at": format_time(key.created_at),
        "expires_at": format_time(key.expires_at) if key.expires_at else None,
        "last_used_at": format_time(used_at) if used_at else None,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    """What fits into a line; JSON has it all. What may be long stands at the end."""
    cells = [("id", "status", "expires", "last used (UTC)", "scopes", "id prefix", "name")]
    cells += [
        (
            row["id"],
            row["status"],
            (row["expires_at"] or "never")[:10],
            (row["last_used_at"] or "never")[:16].replace("T", " "),
            _SHORT.get(row["scopes"], row["scopes"]),
            _printable(row["id_prefix"]) or "any",
            _printable(row["name"]),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


_SHORT = {",".join(SCOPES): "all", _SCOPES: "all but admin"}


def _printable(text: str) -> str:
    """Controls do not reach the terminal as they are."""
    return text if text.isprintable() else repr(text)


def _key_id(text: str) -> str:
    """The id of the key, also when somebody gives the whole key, as it was found where it should not be."""
    return text.split("_")[1] if is_key(text) else text


@keys.command()
@with_settings(*STORE_SETTINGS)
@click.argument("key_id")
def revoke(key_id: str, **flags: Any) -> None:
    """Make a key void, for ever.

    So are the session tokens that it has minted. Servers notice within seconds. KEY_ID is what `chatstate keys list`
    shows; the whole key will do, too.
    """

    async def work(store: Store) -> tuple[ApiKey, bool]:
        kept, now = Keys(store), utc_now()
        key = await kept.revoke(_key_id(key_id), now)
        return key, any(other.is_live(now) for other in (await kept.all(now)).values())

    with mistakes_explained():
        key, others = on_store(settings_of(flags), work)
    click.echo(f"Revoked the key {key.id} ({_printable(key.name)}).")
    if not others:
        click.echo("No key is valid any more, so nobody can come in. Create one: chatstate keys create", err=True)


@keys.command()
@with_settings(*STORE_SETTINGS)
@click.argument("key_id")
@click.option(
    "--grace-hours",
    type=click.IntRange(0, 24 * 90),
    default=24,
    metavar="NUMBER",
    help="For how long the old secret goes on working; by default a day. 0: not at all, nor the tokens that it minted.",
)
@_JSON
def rotate(key_id: str, grace_hours: int, as_json: bool, **flags: Any) -> None:
    """Give a key a new secret and print it, once.

    For a day both work, so that programs can be changed one by one. KEY_ID is what `chatstate keys list` shows; the
    whole key will do, too.
    """
    with mistakes_explained():
        now, grace = utc_now(), timedelta(hours=grace_hours)
        text = on_store(settings_of(flags), lambda store: Keys(store).rotate(_key_id(key_id), now, grace))
    end = format_time((now + grace).replace(microsecond=0))
    until = f"works until {end}" if grace else "is void"
    _show(
        {"id": _key_id(key_id), "key": text, "former_until": end},
        as_json,
        f"It is shown this once; keep it safe. The one before {until}.",
    )


@keys.command("new-encryption-key")
def new_encryption_key() -> None:
    """Print a new key for CHATSTATE_ENCRYPTION_KEYS.

    Who loses it loses what is encrypted with it.
    """
    click.echo(new_key())


@keys.command()
@with_settings(*STORE_SETTINGS)
@click.option("--decrypt", is_flag=True, help="Take the encryption off.")
@click.option("--yes", is_flag=True, help="With --decrypt: do not ask.")
def reencrypt(decrypt: bool, yes: bool, **flags: Any) -> None:
    """Encrypt what lies in the store.

    It does so with the newest key of CHATSTATE_ENCRYPTION_KEYS, also while servers are working. Versions and ETags stay
    as they are. Interrupted, it can be run again, and goes on with what is left. When it has found nothing to do, the
    older keys can be removed.
    """
    with mistakes_explained():
        settings = settings_of(flags)
        ring = settings.encryption_keys
        if ring is None:
            raise InvalidSetting(
                "There are no keys. Put those that are in use, or a new one (chatstate keys new-encryption-key), into "
                "CHATSTATE_ENCRYPTION_KEYS, or into the file that CHATSTATE_ENCRYPTION_KEYS_FILE names."
            )
        if decrypt and not yes:
            click.confirm("What lies in the store will be readable for everybody who can read that. Go on?", abort=True)
        sealing = KeyRing() if decrypt else ring
        counts = on_store(settings, lambda store: Reencryption(store.inner, ring, sealing).run(_progress), any_key=True)
        click.echo(f"\r{_told(counts)}")
        if counts.unreadable:
            raise StartError(f"{counts.unreadable} could not be decrypted: they were encrypted with another key.")


def _progress(counts: Counts) -> None:
    if sys.stdout.isatty():
        click.echo(f"\r{_told(counts)}", nl=False)


def _told(counts: Counts) -> str:
    return (
        f"{counts.seen} looked at, {counts.rewritten} rewritten, {counts.overtaken} overtaken by a write, "
        f"{counts.unreadable} unreadable"
    )


@click.group()
def tokens() -> None:
    """Session tokens: what browsers show to work with one session."""


@tokens.command("rotate")
@with_settings(*STORE_SETTINGS)
@click.option("--now", "at_once", is_flag=True, help="Make all tokens void that were minted until now.")
def rotate_tokens(at_once: bool, **flags: Any) -> None:
    """Sign session tokens with a new key from now on.

    Those that were minted before stay valid for their time, but for --now. Servers notice within seconds.
    """
    with mistakes_explained():
        grace = timedelta() if at_once else LONGEST_TTL
        signer = on_store(settings_of(flags), lambda store: Tokens(store).rotate(utc_now(), grace))
    earlier = "void" if at_once else "valid for their time"
    click.echo(f"Session tokens are signed with the key {signer} from now on. Earlier ones are {earlier}.")


@click.command("audit-id")
@with_settings(*STORE_SETTINGS)
@click.argument("user_session_id")
def audit_id(user_session_id: str, **flags: Any) -> None:
    """Print what stands for a session in the audit log.

    The same for the user_id of a person. With it, all lines about them can be found:
    id=$(chatstate audit-id …) && grep "$id" audit.jsonl
    """
    with mistakes_explained():
        if not user_session_id:
            raise InvalidSetting("The id is empty.")
        key = on_store(settings_of(flags), lambda store: audit_key(store, utc_now()))
    click.echo(session_hash(key, user_session_id))
