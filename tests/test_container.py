"""The container: what its files say is there, and what it runs, run here with the same environment."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest
import yaml

from chatstate.config import SETTINGS
from tests.servers.ports import free_port
from tests.servers.postgres import poll_until
from tests.servers.process import clean_environment

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
INSTRUCTIONS = [
    (line.partition(" ")[0], " ".join(line.partition(" ")[2].split()))
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    if line and not line.startswith("#")
]
OTHER_LOOPBACK = "127.0.0.2"
"""As good as 0.0.0.0, which tests do not listen on: an address that wants a key."""


def instruction(name: str) -> str:
    """What the last one of this name says."""
    return [text for kind, text in INSTRUCTIONS if kind == name][-1]


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(instruction("ENV")))


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    sources = [
        word for kind, text in INSTRUCTIONS if kind == "COPY" and "--from" not in text for word in text.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(sources)


def test_it_runs_as_an_unprivileged_user_with_a_volume_of_its_own() -> None:
    assert instruction("USER") == "10001:10001"
    assert instruction("VOLUME") == "/var/lib/chatstate"
    assert instruction("WORKDIR") == instruction("VOLUME"), "where the file is by default"


def test_it_takes_the_variables_of_the_replaced_service() -> None:
    """Ours would go before them."""
    assert not {"CHATSTATE_STORE", "CHATSTATE_PORT"} & set(variables())


def test_every_variable_is_a_setting() -> None:
    known = {variable for setting in SETTINGS for variable in setting.variables}
    given = [name for name in variables() if name.startswith("CHATSTATE_")]
    given += [name.removesuffix("_FILE") for name in COMPOSE["services"]["chatstate"]["environment"]]
    assert set(given) <= known


def test_only_this_machine_reaches_it_and_no_secret_stands_in_the_file() -> None:
    service, database = COMPOSE["services"]["chatstate"], COMPOSE["services"]["database"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "ports" not in database
    assert set(service["secrets"]) | set(database["secrets"]) == set(COMPOSE["secrets"])
    assert "PASSWORD" not in str(service["environment"])
    assert list(database["environment"]) == ["POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {Path(secret["file"]).parts[0] + "/" for secret in COMPOSE["secrets"].values()} <= set(ignored)


def test_the_commands_of_its_head_make_the_secrets(tmp_path: Path) -> None:
    lines = re.findall(r"^#     (.+)$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    script = "\n".join(line for line in lines if not line.startswith("docker"))
    subprocess.run(["/bin/sh", "-e", "-c", script], cwd=tmp_path, check=True)
    made = {name: (tmp_path / secret["file"]).read_text().strip() for name, secret in COMPOSE["secrets"].items()}
    assert len(made["database_password"]) == 32
    assert made["store_url"] == f"postgresql://chatstate:{made['database_password']}@database/chatstate"


class Container:
    """What the container runs, with what it is given."""

    def __init__(self, volume: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://{OTHER_LOOPBACK}:{self.port}"
        inside = variables() | {"CHATSTATE_HOST": OTHER_LOOPBACK, "PORT": str(self.port)}
        del inside["PATH"]
        self.environment = clean_environment(**inside)
        self.output = volume / "output"
        entrypoint = json.loads(instruction("ENTRYPOINT"))
        assert entrypoint == ["chatstate"]
        self.command = [sys.executable, "-m", *entrypoint, *json.loads(instruction("CMD"))]
        self.volume = volume
        self.starts = 0

    def _has_started(self) -> bool:
        return self.output.read_text().count("Stop with Ctrl+C.") == self.starts

    @contextmanager
    def running(self) -> Iterator[None]:
        self.starts += 1
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                self.command, cwd=self.volume, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            assert poll_until(lambda: self._has_started() or process.poll() is not None, 30)
            assert process.poll() is None, self.output.read_text()
            yield
            process.send_signal(SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_the_first_start_makes_a_key_and_prints_it_once(container: Container) -> None:
    body = {"user_session_id": "session_1", "chat_state": "{}"}
    url = f"{container.base_url}/chat-state-sessions"
    with container.running():
        (key,) = re.findall(r"cs_\w+", container.output.read_text())
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers=headers).status_code == 201
    with container.running():
        assert re.findall(r"cs_\w+", container.output.read_text()) == [key]
        assert httpx.get(f"{url}/session_1", headers=headers).status_code == 200
        assert httpx.get(f"{url}/session_1").status_code == 401


def test_the_health_check_sees_whether_it_is_well(container: Container) -> None:
    command = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    environment = container.environment

    def is_well() -> bool:
        line = [sys.executable, *command[1:-1], command[-1].replace("127.0.0.1", OTHER_LOOPBACK)]
        return subprocess.run(line, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 0

    assert not is_well()
    with container.running():
        assert is_well()
