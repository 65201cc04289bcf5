"""Sweeping: the task of a server that goes on whatever happens, and the command."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import httpx
import pytest

from chatstate.model import KEEP, Retention, Save, Session
from chatstate.stores import Store, create_store
from chatstate.stores.sql import migrations
from chatstate.sweeper import INTERVAL_SECONDS, Sweeper
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.stores.old_tables import SEED, old_database
from tests.test_cli import mistake, run

START = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
IDLE = Retention(idle=MINUTE)


def expiring(user_session_id: str, seconds: int | None = 60, now: datetime = START) -> Save:
    """A save of a session that expires so long after `now`."""
    return Save(
        user_session_id=user_session_id,
        new_session_id=str(uuid.uuid4()),
        chat_state="a secret",
        last_activity=now,
        now=now,
        expires_in=seconds,
    )


async def kept(store: Store, *ids: str) -> set[str]:
    """Which of these sessions are still in the database, expired or not."""
    return set(await store.load(ids, START - 100 * MINUTE))


class Enough(Exception):
    """Ends a sweeper, which goes on for ever."""


# --- A round ----------------------------------------------------------------------------------------------------------


async def test_a_round_removes_what_has_expired_step_by_step(store: Store) -> None:
    """With pauses in between, in which others can write."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        (saved,) = await store.commit([expiring("meanwhile", None)])
        assert isinstance(saved, Session)

    await store.commit([expiring(f"gone {number:04}") for number in range(1001)])
    await store.commit([expiring("live", 61), expiring("forever", None)])
    sweeper = Sweeper(store, lambda: START + MINUTE, pause=pause)
    assert await sweeper.sweep() == 1001
    assert len(pauses) >= 2
    assert max(pauses) < 1
    assert await kept(store, "gone 0000", "gone 1000", "live", "forever", "meanwhile") == {
        "live",
        "forever",
        "meanwhile",
    }
    assert await sweeper.sweep() == 0


async def test_a_round_removes_idle_sessions_where_they_expire(store: Store) -> None:
    await store.commit([expiring("idle", None), expiring("own", 600), expiring("late", None, START + MINUTE / 2)])
    assert await Sweeper(store, lambda: START + MINUTE, KEEP).sweep() == 0
    assert await Sweeper(store, lambda: START + MINUTE, IDLE).sweep() == 1
    assert await kept(store, "idle", "own", "late") == {"own", "late"}


# --- For ever ---------------------------------------------------------------------------------------------------------


async def test_a_store_that_does_not_answer_is_asked_again_in_the_next_round(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is logged of it tells nothing about sessions."""
    rounds: list[set[str]] = []
    clock = [START]

    async def pause(seconds: float) -> None:
        assert seconds == INTERVAL_SECONDS
        rounds.append(await kept(store, "first", "second") if len(rounds) > 0 else set())
        clock[0] += MINUTE
        if len(rounds) == 1:
            await store.open()
        if len(rounds) == 3:
            raise Enough

    await store.commit([expiring("first", 60), expiring("second", 120)])
    await store.close()
    with pytest.raises(Enough):
        await Sweeper(store, lambda: clock[0], pause=pause).run()
    assert rounds == [set(), {"second"}, set()]
    (logged,) = caplog.records
    assert logged.levelname == "WARNING"
    assert logged.getMessage().endswith("will be tried again: The store is not open.")
    assert "secret" not in caplog.text
    assert "first" not in caplog.text


async def test_a_fault_of_another_kind_does_not_end_it(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    times: list[datetime] = []
    rounds = 0

    async def pause(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            times.append(START + MINUTE)
        if rounds == 2:
            raise Enough

    await store.commit([expiring("gone")])
    with pytest.raises(Enough):
        await Sweeper(store, lambda: times[0], pause=pause).run()
    assert await kept(store, "gone") == set()
    (logged,) = caplog.records
    assert logged.levelname == "ERROR"
    assert "IndexError" in caplog.text


# --- The command ------------------------------------------------------------------------------------------------------


async def put(url: str, *saves: Save) -> None:
    """As another program that writes while a server is working."""
    store = create_store(url, owner=False)
    await store.open()
    await store.migrate()
    await store.commit(saves)
    await store.close()


async def left(url: str, *ids: str) -> set[str]:
    store = create_store(url, owner=False)
    await store.open()
    found = await kept(store, *ids)
    await store.close()
    return found


def test_the_command_while_a_server_is_working(store_url: str, tmp_path: Path) -> None:
    with ServerProcess(store_url, tmp_path) as server:
        session = f"{server.base_url}/chat-state-sessions"
        # Behind the server's own first round, which begins with it.
        assert httpx.post(session, json={"user_session_id": "live", "chat_state": "{}"}).status_code == 201
        asyncio.run(put(store_url, expiring("a"), expiring("b", 1), expiring("idle", None)))
        assert run(tmp_path, "sweep", CHATSTATE_STORE=store_url) == (0, "Removed 2 expired sessions.\n")
        assert run(tmp_path, "sweep", CHATSTATE_STORE=store_url) == (0, "Removed 0 expired sessions.\n")
        assert asyncio.run(left(store_url, "a", "b")) == set()
        sweep_idle = ("sweep", "--idle-expiry-seconds", "3600")
        assert httpx.get(f"{session}/idle").status_code == 200
        assert run(tmp_path, *sweep_idle, CHATSTATE_STORE=store_url) == (0, "Removed 1 expired session.\n")
        assert [httpx.get(f"{session}/{name}").status_code for name in ("a", "idle", "live")] == [404, 404, 200]
        assert server.terminate() == 0


async def test_the_command_takes_its_settings_from_the_environment(tmp_path: Path) -> None:
    await put(f"sqlite:///{tmp_path}/chatstate.db", expiring("idle", None))
    assert run(tmp_path, "sweep")[1] == "Removed 0 expired sessions.\n"
    status, output = run(tmp_path, "sweep", CHATSTATE_IDLE_EXPIRY_SECONDS="60")
    assert (status, output) == (0, "Removed 1 expired session.\n")
    assert "CHATSTATE_IDLE_EXPIRY_SECONDS='0' must be " in mistake(tmp_path, "sweep", CHATSTATE_IDLE_EXPIRY_SECONDS="0")


def test_a_name_that_is_mistyped_makes_no_file(tmp_path: Path) -> None:
    output = mistake(tmp_path, "sweep", "--store", "sqlite:///typo.db")
    assert f"There is no file {tmp_path}/typo.db. Name the one that the server uses" in output
    assert list(tmp_path.iterdir()) == []


def test_without_tables_it_says_how_to_make_them(store_url: str, tmp_path: Path) -> None:
    if store_url.startswith("sqlite"):
        Path(store_url.removeprefix("sqlite:///")).touch()
    output = mistake(tmp_path, "sweep", "--store", store_url)
    assert "has no tables for this version of chatstate yet. Make them with: chatstate migrate" in output


async def test_with_tables_of_an_older_version_too(store_url: str, tmp_path: Path) -> None:
    await make_old_tables(store_url)
    output = mistake(tmp_path, "sweep", "--store", store_url)
    assert "has no tables for this version of chatstate yet. Make them with: chatstate migrate" in output
    assert run(tmp_path, "migrate", "--store", store_url)[0] == 0
    assert run(tmp_path, "sweep", CHATSTATE_STORE=store_url) == (0, "Removed 0 expired sessions.\n")


async def make_old_tables(url: str) -> None:
    """Those of the service that chatstate replaces, or of the first chatstate."""
    if not url.startswith("sqlite"):
        async with old_database(SEED, url):
            return
    first = migrations("sqlite")[0]
    with apsw.Connection(url.removeprefix("sqlite:///")) as connection:
        connection.execute(first.sql)
        connection.pragma("user_version", first.number)
    connection.close()


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    with apsw.Connection(str(tmp_path / "theirs.db")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = (tmp_path / "theirs.db").read_bytes()
    assert "another program's database" in mistake(tmp_path, "sweep", "--store", "sqlite:///theirs.db")
    assert (tmp_path / "theirs.db").read_bytes() == before
    (tmp_path / "text.db").write_text("This is no database, but the beginning of a novel. " * 20)
    for name in ("text.db", "missing/x.db"):
        assert f"Cannot use {tmp_path}/{name} as the database" in mistake(
            tmp_path, "sweep", "--store", f"sqlite:///{tmp_path}/{name}"
        )


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    port = free_port()
    output = mistake(tmp_path, "sweep", "--store", f"postgresql://me:hunter2@127.0.0.1:{port}/bot")
    assert f"Cannot reach PostgreSQL at 127.0.0.1:{port}/bot" in output
    assert "hunter2" not in output
