"""The docs say what the code does: every setting, route, command and error code is in them, and their code runs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

import chatstate
from chatstate import Message, Turn, errors
from chatstate.cli import main
from chatstate.cli.inbox import inbox
from chatstate.cli.keys import keys, tokens
from chatstate.cli.whatsapp import whatsapp
from chatstate.config import SETTINGS, Setting
from chatstate.http.problems import STATUS
from chatstate.http.routes import ENDPOINTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]


def page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: Setting) -> None:
    text = page("reference/settings.md")
    assert (f"`{setting.flag}" in text) != setting.secret
    assert all(f"`{variable}`" in text for variable in setting.variables)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_every_route_is_documented(endpoint: object) -> None:
    assert f"`{endpoint.method} {endpoint.path}`" in page("reference/http.md")  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", main.list_commands(click.Context(main)))
def test_every_command_is_documented(command: str) -> None:
    assert f"`chatstate {command}" in page("reference/settings.md")


@pytest.mark.parametrize("group", [keys, tokens, inbox, whatsapp], ids=lambda group: str(group.name))
def test_every_command_of_a_group_is_documented_with_its_options(group: click.Group) -> None:
    text = page("reference/settings.md")
    for command in group.commands.values():
        assert f"`chatstate {group.name} {command.name}" in text
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert all(f"`{option}" in text for option in options - {"--yes"})


@pytest.mark.parametrize(("code", "status"), STATUS.items())
def test_every_error_code_is_documented_with_its_status(code: str, status: int) -> None:
    assert f"| {status} | `{code}` |" in page("reference/errors.md")


def test_the_docs_name_no_error_code_that_does_not_exist() -> None:
    assert set(re.findall(r"^\| \d+ \| `(\w+)` \|", page("reference/errors.md"), re.MULTILINE)) == set(STATUS)


def test_every_error_that_can_reach_a_client_has_a_status() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {
        value.code
        for value in classes
        if issubclass(value, errors.ChatStateError)
        and not issubclass(value, errors.StartError | errors.SendFailed)
        and value is not errors.ChatStateError
    }
    assert codes <= set(STATUS)


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"─ (\w+)", errors.__doc__ or "")
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ChatStateError) and name != "ChatStateError"
    ]
    assert sorted(drawn) == sorted(defined)


def test_the_version_is_the_newest_in_the_changelog() -> None:
    (newest, *_) = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert chatstate.__version__ == newest


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_exists(path: Path) -> None:
    for module, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", path.read_text()):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / module).read_text(), re.MULTILINE), f"{module}::{name}"


def test_the_public_names_are_pinned() -> None:
    of_bots = ["Attachment", "Choice", "Media", "Message", "Reply", "Turn"]
    others = ["AsyncClient", "Client", "__version__", "create_app", "create_store"]
    assert chatstate.__all__ == sorted([*of_bots, *others])
    assert all(hasattr(chatstate, name) for name in chatstate.__all__)
    assert [getattr(chatstate, name).__module__ for name in of_bots] == ["chatstate.bot"] * len(of_bots)


@pytest.mark.parametrize("name", [name for name in chatstate.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    """With each member that a bot or its author meets."""
    text = page("reference/python.md")
    assert re.search(rf"`(chatstate\.)?{name}\b", text)
    for member in getattr(getattr(chatstate, name), "__struct_fields__", ()):
        assert f"`{member}`" in text


def test_the_code_about_bots_runs() -> None:
    section = page("reference/python.md").partition("## Bots")[2]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block, names)
    now = datetime(2026, 10, 2, tzinfo=UTC)
    turn = Turn("session_1", {}, Message("m1", now))
    asyncio.run(names["streaming_bot"](turn))
    assert [reply.text for reply in turn.replies] == ["Let me think."]
    turn = Turn("session_1", names["turn"].state, Message("m2", now, "goodbye"))
    asyncio.run(names["bot"](turn))
    assert [reply.text for reply in turn.replies] == ["Goodbye!"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_the_locks_name_no_address_and_pin_everything_with_hashes(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    packages = re.split(r"\n(?=[a-z])", text.strip())
    assert len(packages) > 10
    assert all("==" in package and "--hash=sha256:" in package for package in packages)


def test_each_test_that_the_table_of_threads_names_is_there() -> None:
    text = page("explanation/threads.md")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 34
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.M)
    ]
    assert missing == []
