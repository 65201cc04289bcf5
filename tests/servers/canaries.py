"""What must never be found where it does not belong: in logs, in the output of servers, in answers about errors.

Passwords of databases begin with `CANARY`; tests put it into bodies and states, too. API keys, session tokens, and what
redeems links are known by their form. Whatever any test makes chatstate write is looked through when the whole run is
over.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

CANARY = "canary-7f3a91"

_LETTERS = "[BCDFGHJKLMNPQRSTVWXZ]{4}"
_SECRETS = re.compile(
    rf"{CANARY}|cs_[a-z2-7]{{8}}_[0-9A-Za-z]{{20,}}|eyJ[0-9A-Za-z_-]{{10,}}\.eyJ[0-9A-Za-z_-]{{10,}}"
    rf"|\b{_LETTERS}-{_LETTERS}\b|\b{_LETTERS}\.[0-9A-Za-z_-]{{43}}"
)
_SHOWN_ON_PURPOSE = re.compile(r"The first API key, shown this once; keep it safe:\n\n  \S+\n")

found: list[str] = []
"""Each place where one was found, for the end of the run."""


def secrets_in(text: str) -> Iterator[str]:
    """The lines with a canary, a key or a token."""
    for line in _SHOWN_ON_PURPOSE.sub("", text).splitlines():
        if _SECRETS.search(line):
            yield line


def look_through(place: str, text: str) -> None:
    """Remember what must not be in this text."""
    found.extend(f"{place}: {line[:300]}" for line in secrets_in(text))


class Listener(logging.Handler):
    """Looks through every record of every log of this process that is chatstate's."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("chatstate", "uvicorn", "asyncpg", "asyncio")):
            formatter = logging.Formatter()
            text = record.getMessage() + (formatter.formatException(record.exc_info) if record.exc_info else "")
            look_through(f"the log {record.name}", text)
