"""The pages about the client name all of it, and their code works as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chatstate import Client, client
from chatstate.client import ClientError, NotFound, errors
from tests.servers.process import ServerProcess

DOCS = Path(__file__).parent.parent.parent / "docs"
ADDRESS = "http://localhost:3000"


def code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", client.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"`{name}\b", (DOCS / "reference/python.md").read_text())


@pytest.mark.parametrize("call", [name for name in vars(Client) if not name.startswith("_")])
def test_every_call_is_documented(call: str) -> None:
    assert re.search(rf"`(with )?{call}\(", (DOCS / "reference/python.md").read_text())


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"─ (\w+)", errors.__doc__ or "")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClientError)]
    assert sorted(drawn) == sorted(kind.__name__ for kind in kinds if kind is not ClientError)


def test_the_bot_has_every_message_once_and_one_answer_to_each(process: ServerProcess, new_id: str) -> None:
    bot, block = code("howto/python-bot.md")
    assert len(bot.strip().splitlines()) < 20
    thoughts: list[int] = []

    def think(chat: dict[str, Any]) -> str:
        thoughts.append(len(chat["messages"]))
        if len(thoughts) == 2:
            raise RuntimeError("the bot dies in the middle")
        if len(thoughts) == 4:
            on_message(new_id, "wamid.3", "What?")  # another delivery is answered meanwhile
        return f"thought {len(thoughts)}"

    names: dict[str, Any] = {"think": think}
    exec(bot.replace(ADDRESS, process.base_url), names)
    on_message = names["on_message"]
    with names["chats"]:
        assert on_message(new_id, "wamid.1", "Hello") == "thought 1"
        with pytest.raises(RuntimeError):
            on_message(new_id, "wamid.2", "Who?")
        assert on_message(new_id, "wamid.2", "Who?") == "thought 3"
        assert on_message(new_id, "wamid.3", "What?") == "thought 5"
        chat = names["chats"].load(new_id).state["messages"]
        said = [message["content"] for message in chat]
        assert said == ["Hello", "thought 1", "Who?", "thought 3", "What?", "thought 5"]

        names["think"] = lambda chat: str(names["chats"].delete(new_id))
        with pytest.raises(NotFound):
            on_message(new_id, "wamid.4", "Forget me")
        assert names["chats"].load(new_id) is None

        exec(block, names)
        assert names["chats"].load("session_12345").state["step"] == "payment"


def test_the_code_of_the_reference_runs(process: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    make, watch, *_of_bots = code("reference/python.md")
    names: dict[str, Any] = {}
    exec(make.replace(ADDRESS, process.base_url), names)
    with names["client"] as made:
        made.save("session_12345", {"n": 1}, overwrite=True)
        exec(watch.rstrip() + "\n    break\n", names)
    assert capsys.readouterr().out == "{'n': 1}\n"
