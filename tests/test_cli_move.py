"""`chatstate copy`, `backup` and `restore` as operators use them, beside real servers."""

from __future__ import annotations

import gzip
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from chatstate.cli import main
from chatstate.cli.move import _report
from chatstate.copying import Compared, Copied, Tally
from tests.conftest import STORE_KINDS
from tests.copying.conftest import DIRECTIONS, Urls, two_databases
from tests.servers.canaries import look_through
from tests.servers.postgres import RunningServers
from tests.servers.process import PROGRAM, ServerProcess, clean_environment
from tests.test_cli import SECONDS

SESSIONS = "/chat-state-sessions"
EQUAL = "The same on both sides: "


@pytest.fixture(params=[pair for pair in DIRECTIONS if pair[0] != pair[1]], ids="-to-".join)
def urls(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[Urls]:
    """The URLs of two empty databases of different kinds, in both directions."""
    with two_databases(request.param, servers, tmp_path) as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> Urls:
    """The URLs of two SQLite files that are not there yet."""
    return f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/two.db"


@pytest.fixture
def from_postgres(servers: RunningServers, tmp_path: Path) -> Iterator[Urls]:
    """The URLs of an empty database of PostgreSQL and of one of SQLite."""
    with two_databases((STORE_KINDS[1], "sqlite"), servers, tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most commands run in this process: starting one takes longer than what they do."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command, and all that it prints."""
    done = CliRunner().invoke(main, arguments, env=environment)
    assert isinstance(done.exception, SystemExit | None), done.output
    return done.exit_code, done.output


def succeeds(*arguments: str, **environment: str) -> str:
    status, output = run(*arguments, **environment)
    assert status == 0, output
    look_through("what chatstate prints", output)
    return output


def mistake(*arguments: str, **environment: str) -> str:
    status, output = run(*arguments, **environment)
    assert status == 1, output
    look_through("what chatstate says of a mistake", output)
    return output


def migrate(*urls: str) -> None:
    for url in urls:
        succeeds("migrate", CHATSTATE_STORE=url)


def copy(urls: Urls, *flags: str) -> tuple[int, str]:
    return run("copy", "env:FROM", "env:TO", *flags, FROM=urls[0], TO=urls[1])


@contextmanager
def serving(url: str, folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """A client of a server with a history, which ends in order."""
    with ServerProcess(url, folder, environment={"CHATSTATE_HISTORY": "5", **environment}) as server:
        with httpx.Client(base_url=server.base_url, timeout=20) as client:
            yield client
        assert server.terminate() == 0, server.output


ONCE = {"Idempotency-Key": "once"}
PATCH = {**ONCE, "Content-Type": "application/merge-patch+json"}


def fill(client: httpx.Client, count: int = 5) -> None:
    for number in range(count):
        body = {"user_session_id": f"s{number}", "chat_state": f'{{"n": {number}}}', "expires_in_seconds": 600}
        assert client.post(SESSIONS, json=body).status_code == 201
    assert client.patch(f"{SESSIONS}/s0", content='{"patched": true}', headers=PATCH).status_code == 200
    assert client.post("/chat-sessions", json={"user_session_id": "s0", "user_id": "u"}).status_code == 201


def seen(client: httpx.Client, count: int = 5) -> list[Any]:
    """All that a client can see of it, with the entity tags."""
    paths = [f"{SESSIONS}/s{number}" for number in range(count)]
    paths += [f"{SESSIONS}/s0/versions", f"{SESSIONS}/s0/versions/1", "/chat-sessions", SESSIONS]
    answers = [client.get(path) for path in paths]
    assert {answer.status_code for answer in answers} == {200}
    return [(answer.json(), answer.headers.get("ETag")) for answer in answers]


def assert_goes_on(client: httpx.Client, before: list[Any]) -> None:
    """What the old server has answered is what the new one answers, and writes go on from there."""
    assert seen(client) == before
    again = client.patch(f"{SESSIONS}/s0", content='{"patched": true}', headers=PATCH)
    assert (again.status_code, again.headers["ETag"]) == (200, before[0][1]), "the retried request was not remembered"
    body = {"chat_state": '{"new": true}'}
    saved = client.put(f"{SESSIONS}/s0", json=body, headers={"If-Match": before[0][1]})
    assert (saved.status_code, saved.json()["version"]) == (200, 3)
    assert client.put(f"{SESSIONS}/s0", json=body, headers={"If-Match": before[0][1]}).status_code == 412


def test_moving_to_another_store_beside_a_server(urls: Urls, tmp_path: Path) -> None:
    """`docs/howto/move-and-back-up.md`: copy while it serves, stop it, copy again, and serve from there."""
    with serving(urls[0], tmp_path) as client:
        fill(client, 3)
        migrate(urls[1])
        status, output = copy(urls)
        assert status == 0, output
        for number in (3, 4):
            client.post(SESSIONS, json={"user_session_id": f"s{number}", "chat_state": "later"})
        before = seen(client)
    status, output = copy(urls)
    assert status == 0, output
    assert "pass 1: sessions: 5 rows, 2 put, 0 removed" in output
    assert re.search(r"^sessions +5 +5  ([0-9a-f]{16})  \1  equal$", output, re.MULTILINE), output
    assert EQUAL in output
    assert output.endswith("stop them, and run this once more.\n")
    with serving(urls[1], tmp_path) as client:
        assert_goes_on(client, before)
    status, output = copy(urls)
    assert status == 1
    assert "has changed since then" in output


def test_a_backup_is_made_beside_a_server_and_restored(urls: Urls, tmp_path: Path) -> None:
    with serving(urls[0], tmp_path) as client:
        fill(client)
        output = succeeds("backup", "backup.gz", CHATSTATE_STORE=urls[0])
        assert re.search(r"^sessions +5  [0-9a-f]{16}$", output, re.MULTILINE), output
        before = seen(client)
    migrate(urls[1])
    assert EQUAL in succeeds("restore", "backup.gz", CHATSTATE_STORE=urls[1])
    with serving(urls[1], tmp_path) as client:
        assert_goes_on(client, before)
    assert "has changed since" in mistake("restore", "backup.gz", CHATSTATE_STORE=urls[1])


def test_an_encrypted_store_is_moved_without_its_keys(files: Urls, tmp_path: Path) -> None:
    key = succeeds("keys", "new-encryption-key").strip()
    with serving(files[0], tmp_path, CHATSTATE_ENCRYPTION_KEYS=key) as client:
        fill(client)
        before = seen(client)
    migrate(files[1])
    assert copy(files)[0] == 0
    assert "missing" in mistake("keys", "list", CHATSTATE_STORE=files[1])
    with serving(files[1], tmp_path, CHATSTATE_ENCRYPTION_KEYS=key) as client:
        assert_goes_on(client, before)


def test_a_killed_copy_goes_on(from_postgres: Urls, tmp_path: Path) -> None:
    with serving(from_postgres[0], tmp_path) as client:
        for number in range(300):
            client.post(SESSIONS, json={"user_session_id": f"s{number}", "chat_state": "x" * 5000})
    migrate(from_postgres[1])
    environment = clean_environment(FROM=from_postgres[0], TO=from_postgres[1])
    command = [*PROGRAM, "copy", "env:FROM", "env:TO"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline() == "pass 1: sessions: 300 rows, 300 put, 0 removed\n"
        process.kill()
    status, output = copy(from_postgres)
    assert status == 0, output
    assert "pass 1: sessions: 300 rows, 0 put, 0 removed" in output


def test_a_restored_store_that_does_not_rest_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody writes to a file; but a server may be sweeping the store, and a copy's target as well as its source."""
    copied = Copied([Compared("sessions", Tally(1, "a"), Tally(), 1, 0)], passes=4)
    for sides, writing in ((("FILE", "store"), "to the store"), (("FROM", "TO"), "to FROM or TO")):
        with pytest.raises(SystemExit):
            _report(copied, *sides)
        assert f"servers are writing {writing}." in capsys.readouterr().err


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_about_the_two_stores_are_explained(files: Urls, tmp_path: Path) -> None:
    one, two = files
    migrate(one)
    assert "the same store" in mistake("copy", one, "sqlite:///one.db")
    assert "chatstate migrate --store" in mistake("copy", one, two)
    assert "FROM: There is no file" in mistake("copy", two, one)
    assert not (tmp_path / "two.db").exists()
    assert "NOWHERE is not set" in mistake("copy", "env:NOWHERE", one)
    assert "Cannot read nowhere" in mistake("copy", "file:nowhere", one)
    assert "No store is known" in mistake("copy", one, "mysql://host")


def test_databases_whose_hosts_stand_in_the_query_are_told_apart() -> None:
    """As those of Unix sockets do, which is how somebody moves from one cluster to another on one machine."""
    base = "postgresql:///chat?host=/no-such-folder"
    assert "FROM: " in mistake("copy", f"{base}&port=5433", f"{base}&port=5434")
    assert "FROM: " in mistake("copy", f"{base}/a", f"{base}/b")
    assert "the same store" in mistake("copy", "postgresql://me@host/chat", "postgres://host:5432/chat")


def test_a_url_that_names_no_file_is_explained(files: Urls) -> None:
    assert "A SQLite store is a file" in mistake("copy", "sqlite:///a%00b", files[1])


def test_a_target_that_is_served_is_left_alone(files: Urls, tmp_path: Path) -> None:
    one, two = files
    migrate(one)
    with serving(two, tmp_path):
        assert "Another chatstate server is using" in mistake("copy", one, two)


def test_what_a_target_holds_is_lost_only_if_somebody_says_so(files: Urls, tmp_path: Path) -> None:
    for url, count in zip(files, (2, 3), strict=True):
        with serving(url, tmp_path) as client:
            for number in range(count):
                client.post(SESSIONS, json={"user_session_id": f"{count} {number}", "chat_state": "{}"})
    status, output = copy(files)
    assert (status, "holds rows already" in output) == (1, True)
    status, output = copy(files, "--overwrite")
    assert (status, "The target holds: 3 sessions" in output) == (1, True), "and nobody has said yes"
    status, output = copy(files, "--overwrite", "--yes")
    assert status == 0, output
    with serving(files[1], tmp_path) as client:
        assert [client.get(f"{SESSIONS}/{name}").status_code for name in ("2 0", "3 0")] == [200, 404]


def test_ctrl_c_ends_the_question_whether_all_may_go(files: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = []

    def answer(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        answered.append("it went on waiting for an answer")

    migrate(*files)
    assert run("keys", "create", "--name", "theirs", "--store", files[1])[0] == 0
    monkeypatch.setattr("click.confirm", answer)
    status, _ = copy(files, "--overwrite")
    assert (status, answered) == (1, [])


def test_a_password_is_neither_shown_nor_kept(from_postgres: Urls, tmp_path: Path) -> None:
    """In the servers of the tests it is a canary, which no output may hold; here it stands on the command line."""
    migrate(*from_postgres)
    (tmp_path / "to").write_text(f"{from_postgres[1]}\n")
    output = succeeds("copy", from_postgres[0], "file:to")
    assert "all users of this machine can see" in output
    succeeds("backup", "backup.gz", CHATSTATE_STORE=from_postgres[1])
    look_through("a backup", gzip.decompress((tmp_path / "backup.gz").read_bytes()).decode())


def test_a_backup_goes_to_standard_output(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    migrate(url)
    command = [*PROGRAM, "backup", "-", "--store", url]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=SECONDS, check=True)
    (tmp_path / "backup.gz").write_bytes(done.stdout)
    assert EQUAL in succeeds("restore", "backup.gz", "--store", url)


def to_standard_output(stdout: Any, url: str) -> subprocess.CompletedProcess[bytes]:
    pipes = {"stdout": stdout, "stderr": subprocess.PIPE}
    command = [*PROGRAM, "backup", "-", "--store", url]
    return subprocess.run(command, env=clean_environment(), timeout=SECONDS, check=False, **pipes)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_backup_to_a_full_standard_output_is_a_mistake(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    migrate(url)
    with open("/dev/full", "wb") as full:
        done = to_standard_output(full, url)
    assert done.returncode == 1
    assert done.stderr == b"chatstate: Cannot write to standard output: No space left on device.\n"


def test_a_backup_is_not_written_to_a_terminal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    migrate(url)
    ours, theirs = pty.openpty()
    done = to_standard_output(theirs, url)
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, b"nothing for a terminal" in done.stderr) == (1, True)


def test_a_backup_takes_the_place_of_another_only_if_somebody_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    migrate(url)
    succeeds("backup", "backup.gz", "--store", url)
    assert "There is a file backup.gz already" in mistake("backup", "backup.gz", "--store", url)
    succeeds("backup", "backup.gz", "--store", url, "--overwrite")
    (tmp_path / "backup.gz").write_bytes((tmp_path / "backup.gz").read_bytes()[:-9])
    assert "its end is missing" in mistake("restore", "backup.gz", "--store", url)


def test_a_terminal_sees_a_bar(files: Urls, tmp_path: Path) -> None:
    one, two = files
    with serving(one, tmp_path) as client:
        fill(client)
    migrate(two)
    ours, theirs = pty.openpty()
    subprocess.run(
        [*PROGRAM, "copy", one, two],
        env=clean_environment(TERM="xterm", COLUMNS="100"),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        timeout=SECONDS,
        check=True,
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how the end is told
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert re.search(rb"\[#+\] .*100%", shown), shown
    assert b"pass 1" not in shown
