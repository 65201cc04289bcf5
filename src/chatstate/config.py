"""The settings: one table that feeds the command line, the environment, the `.env` file, and the docs.

A flag wins over the environment, the environment over the `.env` file in the current folder, and that over the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from msgspec import Struct

from chatstate.errors import InvalidSetting
from chatstate.model import MAX_EXPIRES_IN, Retention

LOOPBACK = {"localhost": ("127.0.0.1", "::1"), "127.0.0.1": ("127.0.0.1",), "::1": ("::1",)}
"""What `--host` may be, and the addresses that each binds."""


MOST_VERSIONS = 10_000
"""The longest history of a session."""


class Setting(Struct, frozen=True):
    """One setting. `variables` are the names in the environment, the first one ours; the first that is set counts."""

    name: str
    variables: tuple[str, ...]
    default: Any
    parse: Callable[[str], Any]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _host(text: str) -> str:
    if text not in LOOPBACK:
        raise ValueError(
            "must be localhost, 127.0.0.1 or ::1: whoever reaches this server can read every session, so it "
            "listens on this machine only"
        )
    return text


def _port(text: str) -> int:
    number = _number(text)
    if number > 65535:
        raise ValueError("must be at most 65535")
    return number


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20])):
        raise ValueError("must be a number from 1 up")
    return int(text)


def _history(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= MOST_VERSIONS):
        raise ValueError(f"must be a number from 0 to {MOST_VERSIONS}")
    return int(text)


def _seconds(text: str) -> int:
    seconds = _number(text)
    if seconds > MAX_EXPIRES_IN:
        raise ValueError(f"must be at most {MAX_EXPIRES_IN} (a hundred years)")
    return seconds


def _switch(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


SETTINGS = (
    Setting(
        "store",
        ("CHATSTATE_STORE", "DATABASE_URL"),
        "sqlite:///chatstate.db",
        str,
        "Where sessions are kept: sqlite:///file.db or postgresql://user:password@host/database.",
    ),
    Setting("host", ("CHATSTATE_HOST",), "localhost", _host, "The address to listen on: localhost, 127.0.0.1 or ::1."),
    Setting("port", ("CHATSTATE_PORT", "PORT"), 3000, _port, "The port to listen on."),
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
        "pool_size",
        ("CHATSTATE_POOL_SIZE",),
        None,
        _number,
        "The most connections to PostgreSQL. By default what the URL's connection_limit says, else 5.",
    ),
    Setting(
        "allow_unsafe_durability",
        ("CHATSTATE_ALLOW_UNSAFE_DURABILITY",),
        False,
        _switch,
        "Start even on a PostgreSQL with fsync=off, which loses acknowledged writes when its machine crashes.",
    ),
)


class Settings(Struct, frozen=True):
    """The settings that are in force, by the names of `SETTINGS`."""

    store: str
    host: str
    port: int
    max_state_bytes: int
    require_json: bool
    require_preconditions: bool
    history: int
    idle_expiry_seconds: int | None
    pool_size: int | None
    allow_unsafe_durability: bool

    @property
    def retention(self) -> Retention:
        idle = self.idle_expiry_seconds
        return Retention(None if idle is None else timedelta(seconds=idle), self.history)


def load_settings(flags: Mapping[str, Any], folder: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from flags (by name; None: not given), the environment, and the `.env` file in the folder.

    An empty variable counts as not set. Raises `InvalidSetting`, which names where the value came from.
    """
    file = _dotenv(folder / ".env")
    return Settings(**{setting.name: _value(setting, flags, environment, file) for setting in SETTINGS})


def _dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except UnicodeDecodeError:
        raise InvalidSetting(f"{path} is not UTF-8. Save it as UTF-8, or remove it.") from None
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}. Make it readable, or remove it.") from None


def _value(setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]) -> Any:
    sources = [(setting.flag, flags.get(setting.name))]
    sources += [(variable, environment.get(variable)) for variable in setting.variables]
    sources += [(f"{variable} in .env", file.get(variable)) for variable in setting.variables]
    for source, text in sources:
        if text:
            return _parsed(setting, source, text)
    return setting.default


def _parsed(setting: Setting, source: str, text: Any) -> Any:
    if isinstance(text, bool):  # a switch on the command line
        return text
    try:
        return setting.parse(text)
    except ValueError as error:
        raise InvalidSetting(f"{source}={text!r} {error}.") from None
