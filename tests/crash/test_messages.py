"""A server that is killed on the way of a message: each changes the state once, each reply leaves at least once.

Everything is real: the deliveries are signed, come twice, and are repeated until they are acknowledged; the process is
killed by SIGKILL at the worst moments, again and again. CHATSTATE_TEST_KILLS says how often at each point.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatstate.emulator import Account, Emulator
from tests.crash.killed_at import POINTS
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerProcess, clean_environment

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("CHATSTATE_TEST_KILLS", "3"))
PEOPLE = 4
SECONDS = 60.0

BOT = """
async def bot(turn):
    turn.state.setdefault("seen", []).append(turn.message.text)
    await turn.reply(f"got {turn.message.text}")
"""


async def soon(_tries: int) -> None:
    """The pause of a Meta that is in a hurry."""
    await asyncio.sleep(0.05)


def account_variables(emulator: Emulator) -> dict[str, str]:
    """What a server must be told that talks to this emulator."""
    account = emulator.account
    return {
        "CHATSTATE_WHATSAPP_APP_SECRET": account.app_secret,
        "CHATSTATE_WHATSAPP_VERIFY_TOKEN": account.verify_token,
        "CHATSTATE_WHATSAPP_ACCESS_TOKEN": account.access_token,
        "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID": account.phone_number_id,
        "CHATSTATE_WHATSAPP_NUMBER": account.number,
        "CHATSTATE_WHATSAPP_GRAPH_URL": f"{emulator.url}/v25.0",
        "CHATSTATE_BOT": "counting_bot:bot",
        "CHATSTATE_LEASE_SECONDS": "1",
    }


class World:
    """A Meta, and a server that can be started, with or without being killed."""

    def __init__(self, emulator: Emulator, server: ServerProcess, environment: Mapping[str, str]) -> None:
        self.emulator, self.server, self.environment = emulator, server, environment
        self.people = [emulator.add_person(f"Person {number}") for number in range(PEOPLE)]
        self.written: dict[str, list[str]] = {person.key: [] for person in self.people}

    async def write(self) -> None:
        """Everybody writes something."""
        for person in self.people:
            text = f"{person.key} {len(self.written[person.key])}"
            self.written[person.key].append(text)
            await self.emulator.write(person, text)

    async def killed(self, point: str, count: int) -> None:
        """A server that runs until it has killed itself."""
        command = [sys.executable, "-m", "tests.crash.killed_at", point, str(count), "serve"]
        returncode, output = await asyncio.to_thread(self._run, [*command, "--port", str(self.server.port)])
        assert returncode == -signal.SIGKILL, output

    def _run(self, command: list[str]) -> tuple[int, str]:
        """Run the program to its end; how it has ended, and all that it has printed."""
        ended = subprocess.run(
            command,
            cwd=self.server.folder,
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        return ended.returncode, ended.stdout.decode()

    async def answered(self) -> None:
        """Until all was delivered, and everybody has an answer to everything."""
        await self.emulator.settled(within=SECONDS)
        for person in self.people:
            wanted = {f"got {text}" for text in self.written[person.key]}
            await self.emulator.until(
                lambda person=person, wanted=wanted: wanted <= {sent.text for sent in self.emulator.to(person)},  # type: ignore[misc]
                f"{person.key} had all answers",
                within=SECONDS,
            )

    async def check(self) -> None:
        """Each message has changed the state once."""
        await self.answered()
        seen: Counter[str] = Counter()
        async with httpx.AsyncClient(base_url=self.server.base_url) as client:
            found = await client.get("/chat-state-sessions?prefix=whatsapp_&include=chat_state&limit=20")
        for row in found.json()["sessions"]:
            state: dict[str, Any] = json.loads(row["chat_state"])
            seen.update(state["seen"])
            said = [entry["text"] for entry in state["messages"] if entry["role"] == "user"]
            assert said == state["seen"]
        assert seen == Counter(text for texts in self.written.values() for text in texts)


def statuses(emulator: Emulator) -> set[int | None]:
    """With what deliveries were answered the last time."""
    return {entry.status for entry in emulator.journal.entries.values() if entry.way == "webhook"}


@pytest.fixture
async def world(store_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Not started yet."""
    (tmp_path / "counting_bot.py").write_text(BOT)
    emulator = Emulator(account=Account(), pause=soon)
    async with emulator.serving():
        variables = account_variables(emulator)
        server = ServerProcess(store_url, tmp_path, environment=variables)
        emulator.network.url = f"{server.base_url}/channels/whatsapp/webhook"
        emulator.network.duplicates = 2
        yield World(emulator, server, clean_environment(CHATSTATE_STORE=store_url, **variables))
        server.__exit__()


@pytest.mark.parametrize("point", POINTS)
async def test_a_server_that_is_killed_applies_each_message_once(point: str, world: World) -> None:
    for number in range(KILLS):
        await world.write()
        await world.killed(point, 1 + number % (PEOPLE - 1))
    await world.write()
    await asyncio.to_thread(world.server.__enter__)
    await world.check()
    assert "Traceback" not in world.server.output


async def test_a_database_that_is_down_is_told_to_meta_which_comes_again(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = await own_postgres.create_database()
    (tmp_path / "counting_bot.py").write_text(BOT)
    emulator = Emulator(account=Account(), pause=soon)
    async with emulator.serving():
        server = ServerProcess(url, tmp_path, environment=account_variables(emulator))
        world = World(emulator, server, {})
        with server:
            emulator.network.url = f"{server.base_url}/channels/whatsapp/webhook"
            await world.write()
            await world.check()
            await asyncio.to_thread(own_postgres.kill)
            try:
                await world.write()
                await emulator.until(lambda: 503 in statuses(emulator), "a delivery was refused", within=SECONDS)
                assert statuses(emulator) <= {200, 503, None}
            finally:
                await asyncio.to_thread(own_postgres.start)
            await world.check()
            assert "Traceback" not in server.output
    await own_postgres.drop_database(url)
