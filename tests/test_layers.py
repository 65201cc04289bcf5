"""Data flows one way: each module imports only from the layers below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import chatstate

ROOT = Path(chatstate.__file__).parent

BELOW = {
    "model": set(),
    "errors": {"model"},
    "encryption": {"errors"},
    "config": {"model", "errors", "encryption"},
    "patches": {"errors", "model"},
    "rates": set(),
    "visit": {"model"},
    "record": set(),
    "records": {"errors", "record", "stores"},
    "keys": {"errors", "model", "records", "stores"},
    "tokens": {"errors", "model", "records", "stores"},
    "links": {"errors", "model", "records", "stores"},
    "access": {"errors", "model", "keys", "tokens", "stores"},
    "stores": {"model", "errors", "visit", "record", "encryption"},
    "group_commit": {"errors"},
    "sessions": {"model", "errors", "group_commit", "stores"},
    "reencryption": {"model", "errors", "encryption", "stores"},
    "sweeper": {"model", "errors", "stores"},
    "visits": {"model", "errors", "visit", "group_commit", "stores"},
    "privacy": {"model", "errors", "records", "sessions", "tokens", "links", "visit", "visits", "stores"},
    "live": {"model", "errors", "sessions", "stores"},
    "client": {"__init__"},  # its version; it knows the server by the HTTP contract alone
    "http": {
        "live",
        "model",
        "errors",
        "rates",
        "patches",
        "sessions",
        "sweeper",
        "visit",
        "visits",
        "keys",
        "tokens",
        "links",
        "access",
        "privacy",
        "stores",
        "__init__",
    },
    "cli": {
        "model",
        "errors",
        "config",
        "stores",
        "sweeper",
        "keys",
        "tokens",
        "access",
        "privacy",
        "encryption",
        "reencryption",
        "http",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": {"client", "http", "stores"},
}
"""What each part of the package may import from the rest of it."""

DRIVERS = {
    "apsw": {"sqlite"},
    "filelock": {"sqlite.py"},
    "asyncpg": {"postgres"},
    "uvicorn": {"http"},
    "jsonpatch": {"patches.py"},
    "jwt": {"tokens.py"},
    "cryptography": {"encryption.py"},
    "httpx": {"client"},
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    for name in imported(path):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0] if (ROOT / f"{rest.split('.')[0]}.py").exists() else ""
        target = target or (rest.split(".")[0] if (ROOT / rest.split(".")[0]).is_dir() else "__init__")
        if package == "chatstate" and rest and target != part:
            assert target in BELOW[part], f"{part} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_driver_is_imported_in_one_place(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name in imported(path):
        allowed = DRIVERS.get(name.partition(".")[0])
        assert not allowed or any(part in place for part in allowed), f"{place} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_the_package_stays_small() -> None:
    """Each of its parts does one thing. Blank lines do not count, the contract suite does, which users may run too."""
    lines = [line for path in FILES for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 14000
