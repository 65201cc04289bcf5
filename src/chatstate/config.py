"""The settings: one table that feeds the command line, the environment, the `.env` file, and the docs.

A flag wins over the environment, the environment over the `.env` file in the current folder, and that over the default.
In the place of a variable there may be one of the same name with `_FILE` behind it, which says in which file the value
stands, as containers are given secrets. What is secret as a whole has no flag: other users can read command lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from msgspec import Struct

from chatstate.encryption import KeyRing
from chatstate.errors import InvalidSetting
from chatstate.model import LONGEST_TTL, MAX_EXPIRES_IN, Retention, check_page, retention_of

LOOPBACK = {"localhost": ("127.0.0.1", "::1"), "127.0.0.1": ("127.0.0.1",), "::1": ("::1",)}
"""What `--host` may be, and the addresses that each binds."""


DEFAULT_STORE = "sqlite:///chatstate.db"

MOST_VERSIONS = 10_000
"""The longest history of a session."""


MOST_WORKERS = 64
"""The most processes of one server."""

MOST_DIGITS = 20
"""The longest id of a phone number, and the longest number."""


class Secret(str):
    """A secret text, which does not show itself where settings are shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret()"


class Setting(Struct, frozen=True):
    """One setting. `variables` are the names in the environment, the first one ours; the first that is set counts. A
    secret one has no flag, and is never shown."""

    name: str
    variables: tuple[str, ...]
    default: Any
    parse: Callable[[str], Any]
    help: str
    secret: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _host(text: str) -> str:
    if text in LOOPBACK:
        return text
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be localhost, or an address of this machine, such as 0.0.0.0 for all of them") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20])):
        raise ValueError("must be a number from 1 up")
    return int(text)


def _history(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= MOST_VERSIONS):
        raise ValueError(f"must be a number from 0 to {MOST_VERSIONS}")
    return int(text)


def _at_most(most: int, which_is: str = "") -> Callable[[str], int]:
    """What reads a number from 1 up to this one."""

    def read(text: str) -> int:
        number = _number(text)
        if number > most:
            raise ValueError(f"must be at most {most}{which_is}")
        return number

    return read


_port = _at_most(65535)
_seconds = _at_most(MAX_EXPIRES_IN, " (a hundred years)")
_days = _at_most(MAX_EXPIRES_IN // 86400, " (a hundred years)")
_token_seconds = _at_most(int(LONGEST_TTL.total_seconds()), " (a day)")
_work_seconds = _at_most(86_400, " (a day)")


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1e6:
        raise ValueError("must be a number of requests from 0 (no limit) to 1000000")
    return rate


def _digits(text: str) -> str:
    digits = re.sub(r"[\s+()-]", "", text)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS):
        raise ValueError(f"must be 1 to {MOST_DIGITS} digits alone")
    return digits


_GRAPH = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?")


def _graph(text: str) -> str:
    if not _GRAPH.fullmatch(text):
        raise ValueError("must be an address such as http://localhost:4000, without user, query or fragment")
    return text.rstrip("/")


_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{1,5})?")
_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:]+\]")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _origins(text: str) -> tuple[str, ...]:
    origins = [origin.lower().removesuffix("/") for origin in _items(text)]
    if bad := [origin for origin in origins if not _ORIGIN.fullmatch(origin)]:
        raise ValueError(
            f"must be a list of origins such as https://chat.example.org, separated by commas; {bad[0]!r} is none"
        )
    return tuple(origins)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = [host.lower() for host in _items(text)]
    if bad := [host for host in hosts if not _NAME.fullmatch(host)]:
        raise ValueError(f"must be a list of host names without ports, separated by commas; {bad[0]!r} is none")
    return tuple(hosts)


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(network)) for network in _items(text))
    except ValueError as error:
        raise ValueError(f"must be a list of networks such as 10.0.0.0/8, separated by commas: {error}") from None


def _page(text: str) -> str:
    check_page(text)
    return text


def _switch(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


SETTINGS = (
    Setting(
        "store",
        ("CHATSTATE_STORE", "DATABASE_URL"),
        DEFAULT_STORE,
        str,
        "Where sessions are kept: sqlite:///file.db, postgresql://user:password@host/database, or a Valkey Cluster, "
        "valkey://user:password@host:port (experimental).",
    ),
    Setting(
        "host",
        ("CHATSTATE_HOST",),
        "localhost",
        _host,
        "The address to listen on. Any but those of this machine alone (localhost, 127.0.0.1, ::1) wants an API key.",
    ),
    Setting("port", ("CHATSTATE_PORT", "PORT"), 3000, _port, "The port to listen on."),
    Setting(
        "workers",
        ("CHATSTATE_WORKERS",),
        1,
        _at_most(MOST_WORKERS),
        "How many processes answer requests on that port. More than one wants PostgreSQL or Valkey.",
    ),
    Setting(
        "max_state_bytes",
        ("CHATSTATE_MAX_STATE_BYTES",),
        1 << 20,
        _number,
        "The largest state, in bytes of UTF-8. A request body may have twice that and 4 KiB.",
    ),
    Setting(
        "require_json",
        ("CHATSTATE_REQUIRE_JSON",),
        False,
        _switch,
        "Refuse states that are not the text of a JSON document.",
    ),
    Setting(
        "require_preconditions",
        ("CHATSTATE_REQUIRE_PRECONDITIONS",),
        False,
        _switch,
        "Refuse writes without If-Match or If-None-Match. The clients of the replaced service send none.",
    ),
    Setting(
        "history",
        ("CHATSTATE_HISTORY",),
        0,
        _history,
        "How many versions of each session are kept, the current one among them. 0: that one alone.",
    ),
    Setting(
        "idle_expiry_seconds",
        ("CHATSTATE_IDLE_EXPIRY_SECONDS",),
        None,
        _seconds,
        "How long after its last write a session expires that has no expiry of its own. By default it never does.",
    ),
    Setting(
        "retention_days",
        ("CHATSTATE_RETENTION_DAYS",),
        None,
        _days,
        "For how many days anything is kept: sessions after their last write, visits after their creation. By default "
        "for ever.",
    ),
    Setting(
        "keep_visits",
        ("CHATSTATE_KEEP_VISITS",),
        False,
        _switch,
        "Deleting a session leaves its visits. By default it erases all that is kept about the session.",
    ),
    Setting(
        "link_page",
        ("CHATSTATE_LINK_PAGE",),
        None,
        _page,
        "The page that links to other devices lead to, where none is named. By default the chat page of this server.",
    ),
    Setting(
        "demo",
        ("CHATSTATE_DEMO",),
        False,
        _switch,
        "Show the chat page at /demo also when there are API keys. Without any it is always there.",
    ),
    Setting(
        "first_key",
        ("CHATSTATE_FIRST_KEY",),
        False,
        _switch,
        "If there is no API key yet, create one with all scopes at the start, and print it once. For containers.",
    ),
    Setting(
        "allow_anonymous",
        ("CHATSTATE_ALLOW_ANONYMOUS",),
        False,
        _switch,
        "Let callers without a credential load, save and delete sessions, as the replaced service did.",
    ),
    Setting(
        "allowed_origins",
        ("CHATSTATE_ALLOWED_ORIGINS",),
        (),
        _origins,
        "Pages of these origins may call, such as https://chat.example.org, separated by commas. "
        "By default those of this machine.",
    ),
    Setting(
        "allowed_hosts",
        ("CHATSTATE_ALLOWED_HOSTS",),
        (),
        _hosts,
        "Names of this server that callers without a credential may use, separated by commas. By default any.",
    ),
    Setting(
        "trusted_proxies",
        ("CHATSTATE_TRUSTED_PROXIES",),
        (),
        _networks,
        "Networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by commas. "
        "By default none.",
    ),
    Setting(
        "rate_per_key",
        ("CHATSTATE_RATE_PER_KEY",),
        500.0,
        _rate,
        "How many requests per second are answered with one API key, in bursts of twice as many. 0: all.",
    ),
    Setting(
        "rate_per_session",
        ("CHATSTATE_RATE_PER_SESSION",),
        20.0,
        _rate,
        "How many requests per second to one session are answered with one credential, in bursts of twice as many. "
        "0: all.",
    ),
    Setting(
        "rate_per_address",
        ("CHATSTATE_RATE_PER_ADDRESS",),
        20.0,
        _rate,
        "How many requests per second are answered without a credential, from one address, in bursts of twice as many. "
        "0: all.",
    ),
    Setting(
        "failures_per_minute",
        ("CHATSTATE_FAILURES_PER_MINUTE",),
        10.0,
        _rate,
        "How many wrong credentials per minute from one address are told that they are wrong; further ones get 429 "
        "alone. 0: all.",
    ),
    Setting(
        "max_connections",
        ("CHATSTATE_MAX_CONNECTIONS",),
        4096,
        _number,
        "How many connections are open at once at most. Further ones are told to try again later.",
    ),
    Setting(
        "token_ttl_seconds",
        ("CHATSTATE_TOKEN_TTL_SECONDS",),
        3600,
        _token_seconds,
        "For how many seconds a session token is valid at most, and where nothing else is asked for.",
    ),
    Setting(
        "token_renewable_days",
        ("CHATSTATE_TOKEN_RENEWABLE_DAYS",),
        30,
        _days,
        "For how many days after it was first minted a session token can be renewed.",
    ),
    Setting(
        "watchers_per_session",
        ("CHATSTATE_WATCHERS_PER_SESSION",),
        100,
        _number,
        "How many clients of a server with keys may watch one session at once.",
    ),
    Setting(
        "bot",
        ("CHATSTATE_BOT",),
        None,
        str,
        "The bot that answers what people write, as package.module:function. By default there is none.",
    ),
    Setting(
        "turn_seconds",
        ("CHATSTATE_TURN_SECONDS",),
        600,
        _work_seconds,
        "How many seconds the bot may take for an answer.",
    ),
    Setting(
        "turns_at_once",
        ("CHATSTATE_TURNS_AT_ONCE",),
        100,
        _number,
        "In how many conversations the bot answers at once.",
    ),
    Setting(
        "lease_seconds",
        ("CHATSTATE_LEASE_SECONDS",),
        30,
        _work_seconds,
        "After how many seconds another server takes over the conversations of one that has died.",
    ),
    Setting(
        "whatsapp_app_secret",
        ("CHATSTATE_WHATSAPP_APP_SECRET",),
        None,
        Secret,
        "The secret of the app at Meta, which signs what WhatsApp delivers. Without it nothing is taken from there.",
        secret=True,
    ),
    Setting(
        "whatsapp_verify_token",
        ("CHATSTATE_WHATSAPP_VERIFY_TOKEN",),
        None,
        Secret,
        "A text of your choice, which you also tell Meta when you set up the webhook.",
        secret=True,
    ),
    Setting(
        "whatsapp_access_token",
        ("CHATSTATE_WHATSAPP_ACCESS_TOKEN",),
        None,
        Secret,
        "The token of a system user at Meta, with which replies are sent.",
        secret=True,
    ),
    Setting(
        "whatsapp_phone_number_id",
        ("CHATSTATE_WHATSAPP_PHONE_NUMBER_ID",),
        None,
        _digits,
        "The id of the business's number, as Meta's dashboard shows it. By default there is none.",
    ),
    Setting(
        "whatsapp_number",
        ("CHATSTATE_WHATSAPP_NUMBER",),
        None,
        _digits,
        "The business's number itself, with its country code: where people are led who go on on WhatsApp. By default "
        "there is none.",
    ),
    Setting(
        "whatsapp_graph_url",
        ("CHATSTATE_WHATSAPP_GRAPH_URL",),
        None,
        _graph,
        "Where Meta's Graph API is, with its version; for `chatstate whatsapp emulate`. By default Meta's own.",
    ),
    Setting(
        "encryption_keys",
        ("CHATSTATE_ENCRYPTION_KEYS",),
        None,
        KeyRing.parse,
        "Keys that states lie encrypted with in the database, the newest first, separated by commas. By default none.",
        secret=True,
    ),
    Setting(
        "audit_log",
        ("CHATSTATE_AUDIT_LOG",),
        None,
        str,
        "A file that gets a line of JSON for each request: who did what, when, to which session. By default none.",
    ),
    Setting(
        "pool_size",
        ("CHATSTATE_POOL_SIZE",),
        None,
        _number,
        "The most connections to PostgreSQL. By default what the URL's connection_limit says, else 6.",
    ),
    Setting(
        "allow_unsafe_durability",
        ("CHATSTATE_ALLOW_UNSAFE_DURABILITY",),
        False,
        _switch,
        "Start even on a PostgreSQL with fsync=off, or a Valkey Cluster without replicas or with settings that lose "
        "data: acknowledged writes are lost when a machine crashes.",
    ),
)


class Settings(Struct, frozen=True):
    """The settings that are in force, by the names of `SETTINGS`."""

    store: str
    host: str
    port: int
    workers: int
    max_state_bytes: int
    require_json: bool
    require_preconditions: bool
    history: int
    idle_expiry_seconds: int | None
    retention_days: int | None
    keep_visits: bool
    link_page: str | None
    demo: bool
    first_key: bool
    allow_anonymous: bool
    allowed_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    rate_per_key: float
    rate_per_session: float
    rate_per_address: float
    failures_per_minute: float
    max_connections: int
    token_ttl_seconds: int
    token_renewable_days: int
    watchers_per_session: int
    bot: str | None
    turn_seconds: int
    turns_at_once: int
    lease_seconds: int
    whatsapp_app_secret: Secret | None
    whatsapp_verify_token: Secret | None
    whatsapp_access_token: Secret | None
    whatsapp_phone_number_id: str | None
    whatsapp_number: str | None
    whatsapp_graph_url: str | None
    encryption_keys: KeyRing | None
    audit_log: str | None
    pool_size: int | None
    allow_unsafe_durability: bool

    @property
    def retention(self) -> Retention:
        return retention_of(self.history, self.idle_expiry_seconds, self.retention_days)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK


def load_settings(flags: Mapping[str, Any], folder: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from flags (by name; None: not given), the environment, and the `.env` file in the folder.

    An empty variable counts as not set. Raises `InvalidSetting`, which names where the value came from.
    """
    file = _dotenv(folder / ".env")
    return Settings(**{setting.name: _value(setting, flags, environment, file) for setting in SETTINGS})


def unknown_variables(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """The variables, in the environment or in the `.env` file, that look like settings and are none; each with the one
    that was perhaps meant. Raises `InvalidSetting`."""
    names = [variable for setting in SETTINGS for variable in setting.variables]
    known = {*names, *(f"{name}_FILE" for name in names), *_OF_OTHERS}
    given = {name for name in (*environment, *_dotenv(folder / ".env")) if name.startswith("CHATSTATE_")}
    strange = sorted(name for name in given - known if not name.startswith("CHATSTATE_TEST_"))
    return {name: _closest(name, known - set(_OF_OTHERS)) for name in strange}


def _closest(name: str, known: Iterable[str]) -> str | None:
    ours = {variable.removeprefix("CHATSTATE_"): variable for variable in known}
    return next((ours[found] for found in get_close_matches(name.removeprefix("CHATSTATE_"), ours, 1, 0.8)), None)


_OF_OTHERS = ("CHATSTATE_KEY",)
"""Variables of clients: the API key that they show, as the docs call it."""


def _dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except UnicodeDecodeError:
        raise InvalidSetting(f"{path} is not UTF-8. Save it as UTF-8, or remove it.") from None
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}. Make it readable, or remove it.") from None


def _value(setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]) -> Any:
    for source, text in _sources(setting, flags, environment, file):
        if text:
            return _parsed(setting, source, text)
    return setting.default


def _sources(
    setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """Where a value may come from, and what stands there. What is overruled is not even read."""
    yield setting.flag, flags.get(setting.name)
    for variable in setting.variables:
        yield _variable(variable, environment, "")
    for variable in setting.variables:
        yield _variable(variable, file, " in .env")


def _variable(name: str, values: Mapping[str, str], where: str) -> tuple[str, str | None]:
    """Where the variable's value comes from, and that value, which may stand in the file that another one names."""
    text, path = values.get(name), values.get(f"{name}_FILE")
    if not path:
        return f"{name}{where}", text
    if text:
        raise InvalidSetting(f"Set either {name} or {name}_FILE{where}, not both.")
    try:
        content = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidSetting(f"{name}_FILE={path!r}{where} cannot be read: {reason}.") from None
    if not content:  # what is not there must not be taken for what was never wanted, such as encryption
        raise InvalidSetting(f"{name}_FILE={path!r}{where} is empty.")
    return f"{name}_FILE{where}", content


def _parsed(setting: Setting, source: str, text: Any) -> Any:
    if isinstance(text, bool):  # a switch on the command line
        return text
    try:
        return setting.parse(text)
    except ValueError as error:
        shown = "" if setting.secret else f"={text!r}"
        raise InvalidSetting(f"{source}{shown} {error}.") from None
