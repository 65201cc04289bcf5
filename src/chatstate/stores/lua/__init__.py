"""The scripts of the Valkey store, one file for each. What several of them need stands in `common.lua`."""

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
def script(name: str, flags: str = "") -> Script:
    """The script `<name>.lua`, with `common.lua` before it.

    flags  of the script, separated by commas (Valkey: "Scripting with Lua", script flags)
    """
    folder = files(__name__)
    head = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    text = head + folder.joinpath("common.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest().encode())
