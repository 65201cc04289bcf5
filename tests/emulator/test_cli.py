"""`chatstate whatsapp emulate` as people use it: a real process, what it prints, and what it says about mistakes."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from chatstate import __version__
from chatstate.cli.whatsapp import whatsapp
from tests.emulator.conftest import ACCOUNT
from tests.emulator.webhooks import SmallWebhook
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.postgres import poll_until
from tests.servers.process import PROGRAM, clean_environment

SECONDS = 30.0
LAST_LINE = "Stop with Ctrl+C.\n\n"
COMMAND = (*PROGRAM, "whatsapp", "emulate")


class Running:
    """The process, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self._output = process, output

    @property
    def text(self) -> str:
        return self._output.read_text()

    def says(self, text: str) -> None:
        """Wait until it has printed this."""
        poll_until(lambda: text in self.text or self.process.poll() is not None, SECONDS)
        assert text in self.text, self.text


@contextmanager
def running(folder: Path, *flags: str, **environment: str) -> Iterator[Running]:
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, *flags], cwd=folder, env=clean_environment(**environment), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        started = Running(process, output)
        started.says(LAST_LINE)
        yield started
    finally:
        process.kill()
        process.wait()


def mistake(*flags: str, status: int = 2, **environment: str) -> str:
    """What it says about a mistake, in one message of its own."""
    ended = CliRunner().invoke(whatsapp, ["emulate", *flags], env=environment)
    assert ended.exit_code == status, ended.output
    assert isinstance(ended.exception, SystemExit)
    return ended.stderr


@pytest.fixture
async def webhook() -> AsyncIterator[SmallWebhook]:
    async with SmallWebhook(ACCOUNT).listening() as listening:
        yield listening


def test_it_says_where_it_is_and_how_to_start_a_server(tmp_path: Path) -> None:
    port, webhook = free_port(), f"http://localhost:{free_port()}"
    with running(tmp_path, "--port", str(port), "--webhook", webhook, "--identities", "username") as emulator:
        assert emulator.text.startswith(f"chatstate {__version__} emulates WhatsApp on http://localhost:{port}\n")
        assert f"  webhook     {webhook}/channels/whatsapp/webhook\n" in emulator.text
        command = emulator.text.partition("beside it:\n\n")[2].partition("\n\nStop with")[0]
        *variables, name, value = shlex.split(command.replace("\\\n", " "))
        assert (name, value) == ("--port", webhook.rpartition(":")[2])
        assert dict(variable.split("=", 1) for variable in variables[:6]) == {
            "CHATSTATE_WHATSAPP_APP_SECRET": ACCOUNT.app_secret,
            "CHATSTATE_WHATSAPP_VERIFY_TOKEN": ACCOUNT.verify_token,
            "CHATSTATE_WHATSAPP_ACCESS_TOKEN": ACCOUNT.access_token,
            "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID": ACCOUNT.phone_number_id,
            "CHATSTATE_WHATSAPP_NUMBER": ACCOUNT.number,
            "CHATSTATE_WHATSAPP_GRAPH_URL": f"http://localhost:{port}",
        }
        assert variables[-3:] == ["serve", "--bot", "examples.onboarding_bot:bot"]
        emulator.says("webhook: Nothing listens at this address")
        assert httpx.get(f"http://localhost:{port}/").status_code == 200
        emulator.process.send_signal(signal.SIGINT)
        assert emulator.process.wait(SECONDS) == 0
        assert emulator.text.endswith("Stopped.\n")


async def test_it_delivers_and_says_when_the_webhook_is_there(webhook: SmallWebhook, tmp_path: Path) -> None:
    def play() -> None:
        port = free_port()
        with running(tmp_path, "--port", str(port), "--webhook", webhook.url) as emulator:
            emulator.says("webhook: It has answered with 200.")
            write = {"action": "write", "person": "zoe", "text": "Hello"}
            assert httpx.post(f"http://localhost:{port}/actions", json=write).status_code == 204
            webhook_has_it.result(SECONDS)

    loop = asyncio.get_running_loop()
    webhook_has_it = asyncio.run_coroutine_threadsafe(webhook.has(lambda: len(webhook.bodies) == 1), loop)
    await asyncio.to_thread(play)
    assert [message["text"]["body"] for message in webhook.messages()] == ["Hello"]


def test_secrets_that_are_set_are_used_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    (tmp_path / ".env").write_text("CHATSTATE_WHATSAPP_VERIFY_TOKEN=from-dotenv\n")
    environment = {
        "CHATSTATE_WHATSAPP_APP_SECRET": "from-the-environment",
        "CHATSTATE_WHATSAPP_ACCESS_TOKEN_FILE": str(tmp_path / "token"),
        "CHATSTATE_WHATSAPP_NUMBER": "15550100009",
    }
    port = free_port()
    with running(tmp_path, "--port", str(port), **environment) as emulator:
        assert not re.search("from-(the-environment|a-file|dotenv)", emulator.text)
        assert 'CHATSTATE_WHATSAPP_APP_SECRET="$CHATSTATE_WHATSAPP_APP_SECRET"' in emulator.text
        assert "CHATSTATE_WHATSAPP_NUMBER=15550100009" in emulator.text
        read = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.none"}
        answer = httpx.post(
            f"http://localhost:{port}/v26.0/{ACCOUNT.phone_number_id}/messages",
            json=read,
            headers={"authorization": "Bearer from-a-file"},
        )
        assert answer.json()["error"]["code"] == 131009, "the token is known"


@pytest.mark.parametrize(
    ("flags", "mends"),
    [
        (("--port", "0"), "1<=x<=65535"),
        (("--port", "web"), "'web' is not a valid integer"),
        (("--webhook", "localhost:3000"), "give one such as http://localhost:3000/channels/whatsapp/webhook"),
        (("--webhook", "http://[::1"), "give one such as"),
        (("--identities", "none"), "'before', 'both', 'username'"),
    ],
)
def test_a_bad_flag_is_explained(flags: tuple[str, str], mends: str) -> None:
    said = mistake(*flags)
    assert flags[0] in said
    assert mends in said


def test_other_mistakes_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = mistake("--port", str(port), status=1)
    assert said.startswith(f"chatstate: Port {port} is taken.")
    assert "chatstate whatsapp emulate --port" in said
    assert "CHATSTATE_WHATSAPP_NUMBER='none' must be" in mistake(status=1, CHATSTATE_WHATSAPP_NUMBER="none")
    assert "cannot be read" in mistake(status=1, CHATSTATE_WHATSAPP_APP_SECRET_FILE="missing")
