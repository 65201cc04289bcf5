"""The scripts of the Valkey store, one file for each. What several of them need stands in `common.lua`, and what those
need that change inboxes and outboxes in `box.lua`.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """The text of a script, and the name that a server knows it by once it has seen it."""

    text: str
    sha: bytes


@cache
def script(name: str, flags: str = "", below: tuple[str, ...] = ("common",)) -> Script:
    """The script `<name>.lua`, with what it needs before it.

    flags  of the script, separated by commas (Valkey: "Scripting with Lua", script flags)
    below  the files that stand before it
    """
    folder = files(__name__)
    head = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    text = head + "".join(folder.joinpath(f"{part}.lua").read_text() for part in (*below, name))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest().encode())
