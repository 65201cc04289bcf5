"""The page "Encrypt at rest", run as it stands, on SQLite."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import httpx
import pytest

from chatstate.encryption import new_key
from tests.servers.canaries import CANARY
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, clean_environment
from tests.test_cli import mistake

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "encrypt-at-rest.md").read_text()
TURN_ON, REENCRYPT, ROTATE, TURN_OFF = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SESSIONS = "/chat-state-sessions"


class Operator:
    """Follows the page in a folder with a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/chatstate.db"

    def run(self, commands: str, answer: str = "") -> str:
        """What the commands print, on both ways."""
        script = re.sub(r"\bchatstate (?=keys|serve)", f"{sys.executable} -m chatstate ", commands)
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=self.folder,
            env=clean_environment(CHATSTATE_STORE=self.url),
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    @contextmanager
    def serving(self, keys: str | None = "encryption_keys") -> Iterator[httpx.Client]:
        environment = {"CHATSTATE_ENCRYPTION_KEYS_FILE": keys} if keys else {}
        with ServerProcess(self.url, self.folder, environment=environment) as server:
            with httpx.Client(base_url=server.base_url, timeout=20) as client:
                yield client
            assert server.terminate(SIGTERM) == 0

    def records(self) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "chatstate.db")) as connection:
            return connection.execute("SELECT * FROM records ORDER BY 1, 2").fetchall()

    def state_of(self, user_session_id: str, replaced_by: str | None = None) -> str:
        """The state as it lies there; perhaps replaced by another text."""
        chosen = "chat_state_sessions WHERE user_session_id = ?"
        with closing(sqlite3.connect(self.folder / "chatstate.db")) as connection, connection:
            (text,) = connection.execute(f"SELECT chat_state FROM {chosen}", [user_session_id]).fetchone()
            if replaced_by:
                table, _, condition = chosen.partition(" ")
                connection.execute(f"UPDATE {table} SET chat_state = ? {condition}", [replaced_by, user_session_id])
        return str(text)

    def lies_open(self) -> bool:
        files = [file for file in self.folder.iterdir() if file.name.startswith("chatstate.db")]
        return any(CANARY.encode() in file.read_bytes() for file in files)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def save(client: httpx.Client, user_session_id: str) -> httpx.Response:
    body = {"user_session_id": user_session_id, "chat_state": f'{{"said": "{CANARY}"}}'}
    return client.post(SESSIONS, json=body)


def loaded(client: httpx.Client, user_session_id: str) -> tuple[str, str]:
    response = client.get(f"{SESSIONS}/{user_session_id}")
    return response.json()["chat_state"], response.headers["etag"]


def turned_on(operator: Operator) -> None:
    operator.run("umask 022\n" + TURN_ON.rpartition("CHATSTATE_ENCRYPTION_KEYS_FILE")[0])


def test_what_was_there_is_encrypted_under_a_running_server_and_nobody_notices(operator: Operator) -> None:
    with operator.serving(keys=None) as client:
        save(client, "before")
        before = loaded(client, "before")
    assert operator.lies_open()
    turned_on(operator)
    assert (operator.folder / "encryption_keys").stat().st_mode & 0o777 == 0o600
    with operator.serving() as client:
        save(client, "after")
        assert loaded(client, "before") == before
        assert "1 rewritten, 0 overtaken by a write, 0 unreadable" in operator.run(REENCRYPT)
        assert loaded(client, "before") == before
        assert " 0 rewritten" in operator.run(REENCRYPT)
    assert not operator.lies_open()


def test_the_ring_is_rotated_as_the_page_says(operator: Operator) -> None:
    turned_on(operator)
    ring = operator.folder / "encryption_keys"
    older = ring.read_text()
    with operator.serving() as client:
        save(client, "a")
        before = loaded(client, "a")
    umask, first, second, third, reencrypt, last = ROTATE.splitlines()
    operator.run(f"{umask}\n{first}\n{second}")
    with operator.serving() as client:  # it writes with the older key still
        assert loaded(client, "a") == before
    operator.run(f"{umask}\n{third}")
    assert ring.stat().st_mode & 0o777 == 0o600
    with operator.serving() as client:
        save(client, "b")
        assert re.search(r" [1-9]\d* rewritten, 0 overtaken by a write, 0 unreadable", operator.run(reencrypt))
        assert " 0 rewritten" in operator.run(reencrypt)
    operator.run(last)
    assert older.strip() not in ring.read_text()
    with operator.serving() as client:
        assert loaded(client, "a") == before


def test_a_server_without_an_older_key_serves_no_state_of_it_and_says_which_one_it_lacks(operator: Operator) -> None:
    turned_on(operator)
    with operator.serving() as client:
        save(client, "a")
    text = operator.state_of("a")
    operator.run("chatstate keys new-encryption-key > newer; cat newer encryption_keys > ring")
    operator.run("CHATSTATE_ENCRYPTION_KEYS_FILE=ring chatstate keys reencrypt")
    with operator.serving("ring"):
        assert operator.state_of("a", replaced_by=text) != text, "as if that row came from an old backup"
    with operator.serving("newer") as client:
        response = client.get(f"{SESSIONS}/a")
        assert (response.status_code, response.json()["code"]) == (503, "state_unreadable")
        assert "CHATSTATE_ENCRYPTION_KEYS" in response.json()["detail"]
        touched = client.put(f"{SESSIONS}/a", json={})
        assert touched.json()["code"] == "state_unreadable"
        assert save(client, "a").status_code == 200
        assert loaded(client, "a")[0] == f'{{"said": "{CANARY}"}}'


COMMANDS = (
    ("serve", "--port", "0"),
    ("keys", "create", "--name", "web"),
    ("keys", "list"),
    ("tokens", "rotate"),
    ("audit-id", "a"),
    ("sweep",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("given", ["nothing", "another key"])
def test_without_the_key_nothing_starts_and_nothing_is_written_in_the_clear(
    operator: Operator, command: tuple[str, ...], given: str
) -> None:
    turned_on(operator)
    with operator.serving() as client:
        save(client, "a")
    before = operator.records()
    other = {"CHATSTATE_ENCRYPTION_KEYS": new_key()} if given == "another key" else {}
    words = [str(free_port()) if word == "0" else word for word in command]
    output = mistake(operator.folder, *words, CHATSTATE_STORE=operator.url, **other)
    assert re.fullmatch(
        r"chatstate: This is encrypted with the key [0-9a-f]{8}, which is missing here\. "
        r"Add it to CHATSTATE_ENCRYPTION_KEYS\. Nothing is lost\.\n",
        output,
    )
    assert operator.records() == before


@pytest.mark.parametrize("content", ["", "\n", " , \n"])
def test_an_empty_file_of_keys_is_a_mistake(operator: Operator, content: str) -> None:
    (operator.folder / "encryption_keys").write_text(content)
    environment = {"CHATSTATE_STORE": operator.url, "CHATSTATE_ENCRYPTION_KEYS_FILE": "encryption_keys"}
    output = mistake(operator.folder, "serve", "--port", str(free_port()), **environment)
    assert "CHATSTATE_ENCRYPTION_KEYS_FILE" in output
    assert not (operator.folder / "chatstate.db").exists()


def test_it_is_turned_off_as_the_page_says(operator: Operator) -> None:
    turned_on(operator)
    with operator.serving() as client:
        save(client, "a")
        before = loaded(client, "a")
    assert "Go on?" in operator.run(TURN_OFF, answer="y\n")
    with operator.serving(keys=None) as client:
        assert loaded(client, "a") == before


def test_there_is_no_flag_for_keys(operator: Operator) -> None:
    assert "--encryption-keys" not in operator.run("chatstate serve --help")
