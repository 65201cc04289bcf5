"""Data flows one way: each module imports only from the layers below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import chatstate

ROOT = Path(chatstate.__file__).parent

BELOW = {
    "mailbox": set(),
    "model": {"mailbox"},
    "errors": {"model"},
    "encryption": {"errors"},
    "config": {"model", "errors", "encryption"},
    "patches": {"errors", "model"},
    "rates": set(),
    "visit": {"model"},
    "record": set(),
    "row": {"mailbox"},
    "bot": {"errors", "model"},
    "channels": {"bot", "errors", "model"},
    "stores": {"model", "errors", "visit", "record", "row", "mailbox", "encryption"},
    "records": {"record", "stores"},
    "hashes": {"errors", "records", "stores"},
    "keys": {"errors", "model", "records", "stores"},
    "tokens": {"errors", "model", "records", "stores"},
    "links": {"errors", "model", "records", "stores"},
    "access": {"errors", "model", "keys", "tokens", "stores"},
    "group_commit": {"errors"},
    "sessions": {"model", "errors", "mailbox", "group_commit", "stores"},
    "reencryption": {"copy_mark", "model", "errors", "encryption", "stores"},
    "copy_mark": {"errors", "record", "stores"},
    "copying": {"copy_mark", "errors", "row", "stores"},
    "backups": {"copying", "errors", "row", "stores"},
    "sweeper": {"model", "errors", "stores"},
    "visits": {"model", "errors", "visit", "group_commit", "stores"},
    "live": {"model", "errors", "sessions", "stores"},
    "people": {"channels", "errors", "hashes", "leases", "records", "stores"},
    "inbox": {"bot", "channels", "errors", "hashes", "mailbox", "model", "people", "records", "stores"},
    "linking": {"bot", "errors", "links", "model", "people", "rates", "sessions"},
    "leases": {"record", "stores"},
    "worker": {"errors", "leases", "stores"},
    "outbox": {"channels", "errors", "inbox", "mailbox", "people", "rates", "stores", "worker"},
    "turns": {
        "bot",
        "channels",
        "errors",
        "inbox",
        "leases",
        "linking",
        "live",
        "mailbox",
        "model",
        "people",
        "sessions",
        "stores",
        "worker",
    },
    "privacy": {"model", "errors", "inbox", "mailbox", "people", "sessions", "tokens", "links", "visit", "visits"},
    "client": {"__init__"},  # its version; it knows the server by the HTTP contract alone
    "http": {
        "copy_mark",
        "live",
        "model",
        "errors",
        "rates",
        "patches",
        "sessions",
        "sweeper",
        "visit",
        "visits",
        "tokens",
        "links",
        "access",
        "privacy",
        "stores",
        "bot",
        "channels",
        "hashes",
        "inbox",
        "linking",
        "outbox",
        "people",
        "turns",
        "worker",
    },
    "emulator": {"errors", "model", "http"},  # a server of its own: it knows ours by what it posts and takes alone
    "cli": {
        "model",
        "errors",
        "config",
        "stores",
        "backups",
        "copy_mark",
        "copying",
        "row",
        "sweeper",
        "keys",
        "tokens",
        "access",
        "encryption",
        "reencryption",
        "bot",
        "channels",
        "hashes",
        "inbox",
        "mailbox",
        "emulator",
        "http",
        "visit",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": {"bot", "client", "http", "stores"},
}
"""What each part of the package may import from the rest of it."""

DRIVERS = {
    "apsw": {"sqlite"},
    "filelock": {"sqlite.py"},
    "asyncpg": {"postgres"},
    "redis": {"valkey_cluster.py", "valkey_node.py"},
    "uvicorn": {"http", "emulator/"},
    "jsonpatch": {"patches.py"},
    "jwt": {"tokens.py"},
    "cryptography": {"encryption.py"},
    "httpx": {"client", "channels/whatsapp/", "emulator/"},
    "httpx_sse": {"client"},
    "segno": {"http/links.py"},
}
"""Where a library may be imported."""

FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: Path) -> set[str]:
    """The other parts of the package that the file imports from."""
    found = set()
    for name in imported(path):
        package, _, rest = name.partition(".")
        first = rest.split(".")[0]
        if package == "chatstate" and first:
            found.add(first if (ROOT / f"{first}.py").exists() or (ROOT / first).is_dir() else "__init__")
    return found - {part_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    assert parts_imported(path) <= BELOW[part], f"{part} must not import these"


def test_the_table_allows_what_is_imported_and_no_more() -> None:
    found: dict[str, set[str]] = {part: set() for part in BELOW}
    for path in FILES:
        found[part_of(path)] |= parts_imported(path)
    assert found == BELOW


def test_no_part_is_below_itself() -> None:
    """But for the package as a whole, whose names are loaded when they are asked for."""
    order = TopologicalSorter({part: below - {"__init__"} for part, below in BELOW.items()})
    assert {*order.static_order()} == BELOW.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_driver_is_imported_in_one_place(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name in imported(path):
        allowed = DRIVERS.get(name.partition(".")[0])
        assert not allowed or any(part in place for part in allowed), f"{place} must not import {name}"


WITHOUT_WHATSAPP = """
import sys
from chatstate import create_app, create_store
from chatstate.cli import main
create_app(create_store("sqlite:///chatstate.db"))
print(sorted({name.split(".")[0] for name in sys.modules} & {"httpx", "httpcore", "segno"}))
print(sorted(name for name in sys.modules if name.startswith(("chatstate.emulator", "chatstate.client"))))
"""


def test_a_server_without_whatsapp_loads_no_http_client(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_WHATSAPP]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n[]\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_the_package_stays_small() -> None:
    """Each of its parts does one thing. Blank lines do not count, the contract suite does, which users may run too.

    The server grew by a third when bots, channels and messages that wait came to it, and by a third when it came to
    more machines than one. The emulator is not part of it: a tool for developers, which has a bound of its own.
    """
    lines = {path: sum(bool(line.strip()) for line in path.read_text().splitlines()) for path in FILES}
    emulator = sum(count for path, count in lines.items() if part_of(path) == "emulator")
    assert emulator < 2200
    assert sum(lines.values()) - emulator < 24800
