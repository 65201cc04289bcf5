"""`chatstate check-store` as an operator uses it: on sound databases, on damaged ones, and on ones that are in use."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import apsw
import asyncpg
import pytest

from chatstate.cli.check_store import GROUPS, group_of
from chatstate.stores import create_store
from chatstate.stores.contract import CHECKS, saving
from tests.conftest import POSTGRES_NAMES, database
from tests.servers.canaries import look_through
from tests.servers.ports import free_port
from tests.servers.postgres import RunningServers, database_of, poll_until
from tests.servers.process import PROGRAM, clean_environment
from tests.test_cli import run

PAGE = Path(__file__).parent.parent / "docs/howto/check-a-database.md"
SECONDS = 120.0
A_FEW = ("--only", "a_created_*", "--only", "*message_is_settled_once*", "--only", "a_record_is_changed*")


def check(folder: Path, url: str, *options: str, **environment: str) -> tuple[int, str]:
    """Run the command to its end; its status, and all that it prints."""
    status, output = run(folder, "check-store", url, *options, seconds=SECONDS, **environment)
    assert "\x1b" not in output, "no colours where nobody looks"
    return status, output


def check_named(folder: Path, url: str, *options: str) -> tuple[int, str]:
    """The same, with the URL in the environment, where its password belongs."""
    return check(folder, "--only", "a_created_*", *options, CHATSTATE_STORE=url)


@pytest.fixture
def url(servers: RunningServers, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty PostgreSQL database; the tests of the stores are on each server that there is."""
    with database(POSTGRES_NAMES[0], servers, tmp_path) as url:
        yield url


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def rows_left(url: str) -> dict[str, int]:
    """How many rows each of our tables has, but for that of the migrations."""
    connection = await asyncpg.connect(url)
    tables = await connection.fetch(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('public', 'chatstate')"
    )
    counts = {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for (name,) in tables}
    await connection.close()
    assert counts.pop("chatstate.migrations") > 0
    return counts


async def fill(url: str) -> None:
    store = create_store(url)
    await store.open()
    await store.migrate()
    await store.commit([saving("somebody's")])
    await store.close()


# --- Databases that are as they should be -----------------------------------------------------------------------------


def test_all_checks_hold_on_sqlite_and_leave_nothing_behind(tmp_path: Path) -> None:
    status, output = check(tmp_path, "sqlite:///new.db")
    assert status == 0, output
    assert output.startswith("SQLite "), output
    assert "synced to the disk" in output
    assert "Migrations applied: 0001_chat_state_sessions, " in output
    for group in GROUPS.values():
        assert re.search(rf"^✓ {group.title} .*{re.escape(group.meaning)}$", output, re.MULTILINE), group
    assert len(re.findall(r"^  ✓ ", output, re.MULTILINE)) == len(CHECKS)
    assert f"{len(CHECKS)} of {len(CHECKS)} checks hold, in " in output
    assert "✗" not in output
    with closing(apsw.Connection(str(tmp_path / "new.db"))) as file:
        tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: file.execute(f"SELECT count(*) FROM {name}").fetchone() for name in tables}
    assert {name for name, count in counts.items() if count != (0,)} <= {"migrations"}, counts


def test_some_checks_on_postgresql(url: str, tmp_path: Path) -> None:
    status, output = check(tmp_path, *A_FEW, CHATSTATE_STORE=url)
    assert status == 0, output
    assert output.startswith("PostgreSQL "), output
    assert f"/{database_of(url)}" in output.splitlines()[0]
    assert "  ✓ a message is settled once and then says nothing" in output
    assert re.search(r"^✓ mailbox +1 of 1 +what was chosen of it", output, re.MULTILINE), output
    assert "4 of 4 checks hold" in output
    assert set(asyncio.run(rows_left(url)).values()) == {0}
    again, output = check(tmp_path, *A_FEW, CHATSTATE_STORE=url)
    assert again == 0, "the tables that stay are no reason to refuse"
    assert "none, the tables are up to date" in output


def test_the_groups_are_those_of_the_suite() -> None:
    assert {group_of(check) for check in CHECKS} == set(GROUPS.values())


def test_the_page_shows_each_group_with_as_many_checks_as_there_are() -> None:
    page = PAGE.read_text()
    for group in GROUPS.values():
        count = sum(group_of(check) == group for check in CHECKS)
        assert f"✓ {group.title:<8}  {count:>3} of {count:<3} {group.meaning}\n" in page
    assert f"{len(CHECKS)} of {len(CHECKS)} checks hold, in " in page


def test_a_group_or_a_pattern_chooses_checks(tmp_path: Path) -> None:
    status, output = check(tmp_path, "--list", "--only", "feed", "--only", "no update*")
    assert status == 0
    assert len(output.splitlines()) == 5
    assert "no update is lost" in output
    status, output = check(tmp_path, "sqlite:///new.db", "--only", "nothing")
    assert status == 2
    assert "check-store --list" in output
    assert not list(tmp_path.iterdir())


# --- Databases that do not keep the contract --------------------------------------------------------------------------


async def _loses_updates(url: str) -> None:
    """A trigger that drops every second write, as a rule of replication or a faulty engine would."""
    await execute(
        url,
        "CREATE SEQUENCE writes; CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF nextval('writes') % 2 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER lose BEFORE UPDATE ON chat_state_sessions FOR EACH ROW EXECUTE FUNCTION lose()",
    )


async def _keeps_doubles(url: str) -> None:
    """Nothing keeps two servers from having the same message: the unique index is missing."""
    await execute(url, "ALTER TABLE chatstate.inbox DROP CONSTRAINT inbox_pkey")


@pytest.mark.parametrize(
    ("damage", "pattern", "group", "said"),
    [
        (_loses_updates, "a_committed_write_is_seen*", "sessions", "OutcomeUnknown"),
        (_keeps_doubles, "a_message_is_kept_once", "mailbox", "SQLSTATE 42P10"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[1:],
)
def test_what_does_not_hold_is_said(
    damage: Callable[[str], Awaitable[None]], pattern: str, group: str, said: str, url: str, tmp_path: Path
) -> None:
    environment = {"CHATSTATE_STORE": url}
    assert check(tmp_path, "--only", "an_empty_batch_is_fine", **environment)[0] == 0
    asyncio.run(damage(url))
    chosen = ("--only", pattern, "--only", "*a_record_is_what*")
    status, output = check(tmp_path, *chosen, **environment)
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("  ✗ ")]
    assert said in line, output
    assert re.search(rf"^✗ {group} +0 of 1 +NOT shown: ", output, re.MULTILINE), output
    assert re.search(r"^✓ records +1 of 1 ", output, re.MULTILINE), output
    assert "1 of 2 checks hold" in output
    assert "Traceback" not in output
    assert set(asyncio.run(rows_left(url)).values()) == {0}, "of a check that fails nothing stays either"
    _, whole = check(tmp_path, *chosen, "--verbose", **environment)
    assert "      Traceback" in whole
    look_through("what check-store says", whole)


def test_an_engine_on_which_the_tables_cannot_be_made_is_quoted(url: str, tmp_path: Path) -> None:
    """As one that knows no DDL in DO blocks."""
    refusal = "RAISE EXCEPTION 'CREATE SCHEMA inside a DO block' USING ERRCODE = 'feature_not_supported'"
    asyncio.run(
        execute(
            url,
            f"CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;"
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION refuse()",
        )
    )
    status, output = check_named(tmp_path, url)
    assert status == 1
    assert output.startswith("chatstate: The tables cannot be made on this database."), output
    assert "SQLSTATE 0A000" in output
    assert "It said: CREATE SCHEMA inside a DO block" in output


async def _sleeps(url: str, verb: str = "INSERT") -> None:
    await execute(
        url,
        "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;"
        f"CREATE TRIGGER sleep BEFORE {verb} ON chat_state_sessions FOR EACH ROW EXECUTE FUNCTION sleep()",
    )


def test_a_check_that_hangs_is_ended_and_the_next_one_is_run(url: str, tmp_path: Path) -> None:
    asyncio.run(_migrated(url))
    asyncio.run(_sleeps(url))
    chosen = ("--only", "a_created_session*", "--only", "*a_record_is_what*", "--timeout", "3")
    status, output = check(tmp_path, *chosen, CHATSTATE_STORE=url)
    assert status == 1
    assert "✗ a created session is what was written: it has not ended within 3 s (--timeout)" in output
    assert "✓ a record is what was written" in output


async def _migrated(url: str) -> None:
    store = create_store(url)
    await store.open()
    await store.migrate()
    await store.close()


def interrupted(url: str, folder: Path, *options: str) -> str:
    """What it prints at Ctrl+C, which comes when the database sleeps."""
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*PROGRAM, "check-store", *options],
            cwd=folder,
            env=clean_environment(CHATSTATE_STORE=url, PYTHONUNBUFFERED="1"),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        assert poll_until(lambda: asyncio.run(_sleeping(url)), SECONDS), output.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output.read_text()
    return output.read_text()


def test_ctrl_c_ends_it_in_order(url: str, tmp_path: Path) -> None:
    asyncio.run(_migrated(url))
    asyncio.run(_sleeps(url))
    output = interrupted(url, tmp_path, "--only", "a_replaced*", "--only", "every_plain*")
    assert "Stopped. What the check had made was removed." in output
    assert set(asyncio.run(rows_left(url)).values()) == {0}


def test_what_ctrl_c_leaves_behind_is_said(url: str, tmp_path: Path) -> None:
    """It was said to be removed, whatever had become of that."""
    asyncio.run(_migrated(url))
    asyncio.run(_sleeps(url, "UPDATE"))
    keep = "$$ BEGIN RAISE EXCEPTION 'kept'; END $$"
    asyncio.run(execute(url, f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS {keep}"))
    on = "BEFORE DELETE ON chat_state_sessions FOR EACH ROW EXECUTE FUNCTION keep()"
    asyncio.run(execute(url, f"CREATE TRIGGER keep {on}"))
    output = interrupted(url, tmp_path, "--only", "a_replaced*")
    assert "Stopped. What the check had made could not be removed. Drop the database." in output


async def _sleeping(url: str) -> bool:
    connection = await asyncpg.connect(url)
    count = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    await connection.close()
    return bool(count)


def test_on_a_terminal_it_shows_what_it_does_in_colours(tmp_path: Path) -> None:
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "check-store", "sqlite:///new.db", "--only", "an_empty_batch*"],
        cwd=tmp_path,
        env=clean_environment(TERM="xterm"),
        stdout=writing,
        stderr=subprocess.STDOUT,
    )
    os.close(writing)
    output = b""
    try:
        while chunk := os.read(reading, 4096):
            output += chunk
    except OSError:  # the other end is closed
        pass
    os.close(reading)
    assert process.wait(SECONDS) == 0
    text = output.decode()
    assert "… an empty batch is fine (1 of 1)" in text
    assert "\x1b[32m✓" in text


# --- Databases that it refuses ----------------------------------------------------------------------------------------


def test_a_database_in_use_is_refused_and_left_alone(store_url: str, tmp_path: Path) -> None:
    asyncio.run(fill(store_url))
    status, output = check_named(tmp_path, store_url)
    assert status == 1
    assert output.startswith("chatstate: The database holds sessions already"), output
    assert "createdb chatstate_check" in output
    assert "--even-in-use" in output
    status, output = check_named(tmp_path, store_url, "--even-in-use")
    assert status == 0, output
    assert asyncio.run(_loaded(store_url)) == {"somebody's"}


async def _loaded(url: str) -> set[str]:
    store = create_store(url)
    await store.open()
    found = await store.load(["somebody's"], saving("").now)
    await store.close()
    return set(found)


def test_the_table_of_another_program_is_refused_before_it_is_changed(url: str, tmp_path: Path) -> None:
    columns = "session_id uuid PRIMARY KEY, user_session_id varchar(255) UNIQUE NOT NULL, chat_state text NOT NULL"
    times = ", ".join(f"{name} timestamptz NOT NULL" for name in ("last_activity", "created_at", "updated_at"))
    asyncio.run(execute(url, f"CREATE TABLE chat_state_sessions ({columns}, {times})"))
    status, output = check_named(tmp_path, url)
    assert status == 1
    assert "holds a table of another program" in output
    assert asyncio.run(_schemas(url)) == {"public"}


async def _schemas(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'")
    await connection.close()
    return {name for (name,) in rows}


def test_who_may_not_read_our_tables_is_told_so(url: str, tmp_path: Path) -> None:
    """They were taken for a table of another program, which might be in use."""
    asyncio.run(_migrated(url))
    with unprivileged(url) as poor:
        status, output = check_named(tmp_path, poor)
    assert status == 1
    assert output.startswith("chatstate: The database user lacks a privilege (permission denied for "), output
    assert "GRANT it USAGE" in output


@contextmanager
def unprivileged(url: str) -> Iterator[str]:
    """The URL of a user who may log in, and no more."""
    name = f"poor_{uuid.uuid4().hex}"
    asyncio.run(execute(url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'"))
    parts = urlsplit(url)
    yield parts._replace(netloc=f"{name}:{name}@{parts.netloc.rpartition('@')[2]}").geturl()
    asyncio.run(execute(url, f"DROP ROLE {name}"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say which database"),
        (["mysql://localhost/x"], "No store is known"),
        (["postgresql://user:pass word@[::1/x"], "cannot be taken apart"),
        (["postgresql://127.0.0.1:{port}/x"], "Cannot reach PostgreSQL at 127.0.0.1:{port}/x"),
        (["sqlite:///no/such/folder/a.db"], "chatstate: "),
    ],
)
def test_mistakes_are_explained(arguments: list[str], said: str, tmp_path: Path) -> None:
    port = str(free_port())
    ended = subprocess.run(
        [*PROGRAM, "check-store", *(argument.replace("{port}", port) for argument in arguments)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert said.replace("{port}", port) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_password_on_the_command_line_is_warned_of(url: str, tmp_path: Path) -> None:
    status, output = check(tmp_path, url, "--only", "an_empty_batch*")
    assert status == 0
    assert "holds a password, which all users of this machine can see" in output
    look_through("what check-store says", output)


def test_other_commands_do_not_load_the_suite(tmp_path: Path) -> None:
    code = (
        "import sys; from chatstate.cli import main; main(['version'], standalone_mode=False); "
        "print([name for name in sys.modules if 'contract' in name or 'check_store' in name])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"
