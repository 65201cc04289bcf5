"""The command line as people use it: real processes, what they print, and what they say about mistakes."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import httpx
import pytest
from click.testing import CliRunner

from chatstate import __version__
from chatstate.cli import main
from chatstate.config import SETTINGS, Setting
from tests.servers.canaries import look_through
from tests.servers.ports import LOOPBACK, at_port, free_port
from tests.servers.postgres import Postgres, database_of, poll_until
from tests.servers.process import PROGRAM, ServerProcess, clean_environment

SECONDS = 30.0
LAST_LINE = "Stop with Ctrl+C.\n\n"
SCRIPT = Path(sys.executable).with_name("chatstate")


def run(folder: Path, *arguments: str, seconds: float = SECONDS, **environment: str) -> tuple[int, str]:
    """Run the program to its end in `folder`; its exit code, and all that it prints."""
    ended = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    return ended.returncode, ended.stdout.decode()


@contextmanager
def started(folder: Path, *command: str | Path, **environment: str) -> Iterator[str]:
    """A server that goes on for the length of the block; its whole banner."""
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=clean_environment(**environment), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        poll_until(lambda: output.read_text().endswith(LAST_LINE) or process.poll() is not None, SECONDS)
        banner = output.read_text()
        assert LAST_LINE in banner, banner
        yield banner
    finally:
        process.kill()
        process.wait()


def mistake(folder: Path, *arguments: str, **environment: str) -> str:
    """What the program says about a mistake: one message of its own, and no stack trace."""
    status, output = run(folder, *arguments, **environment)
    assert status == 1, output
    assert output.startswith("chatstate: "), output
    assert "Traceback" not in output
    look_through("what chatstate says of a mistake", output)
    return output


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


# --- Serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("serve",)], ids=["bare", "serve"])
def test_it_serves(command: tuple[str, ...], store_url: str, tmp_path: Path) -> None:
    with ServerProcess(store_url, tmp_path, command=command) as server:
        body = {"user_session_id": "one", "chat_state": "{}"}
        assert httpx.post(f"{server.base_url}/chat-state-sessions", json=body).status_code == 201
        assert server.terminate() == 0
        server.restart()
        assert httpx.get(f"{server.base_url}/chat-state-sessions/one").json()["chat_state"] == "{}"


@pytest.mark.skipif(not SCRIPT.exists(), reason="chatstate is not installed as a script here")
def test_the_script_serves_with_nothing_said(tmp_path: Path) -> None:
    # A first start; only the port must differ, because the default one may be in use on this machine.
    port = free_port()
    with started(tmp_path, SCRIPT, PORT=str(port)) as banner:
        assert banner.startswith(f"chatstate {__version__} listens on http://localhost:{port}\n")
        assert httpx.get(f"http://localhost:{port}/readyz").status_code == 200
        assert (tmp_path / "chatstate.db").stat().st_mode & 0o077 == 0


def test_the_banner_says_where_what_and_how_safe(store_url: str, tmp_path: Path) -> None:
    with ServerProcess(store_url, tmp_path) as server:
        status = httpx.get(f"{server.base_url}/readyz").json()
        assert server.terminate() == 0
    first, *lines = server.output.splitlines()
    assert first == f"chatstate {__version__} listens on http://localhost:{server.port}"
    assert f"  store       {status['store']}" in lines
    assert f"  durability  {status['durability']}" in lines
    assert lines[-1] == "Stopped; everything that was accepted has been answered."
    assert status["durability"].startswith("An acknowledged write has been synced to the")
    if store_url.startswith("sqlite"):
        assert str(tmp_path / "chatstate.db") in status["store"]
    else:
        assert status["store"].endswith(f"/{database_of(store_url)}")
        assert password_of(store_url) not in server.output


def test_the_banner_says_what_is_kept_and_what_expires(tmp_path: Path) -> None:
    environment = {"CHATSTATE_HISTORY": "20", "CHATSTATE_IDLE_EXPIRY_SECONDS": "3600"}
    with ServerProcess("sqlite:///kept.db", tmp_path, environment=environment) as server:
        assert server.terminate() == 0
    lines = server.output.splitlines()
    assert "  history     the 20 newest versions of each session" in lines
    assert "  expiry      3600 s after a session's last write, unless it has an expiry of its own" in lines


def test_the_example_of_the_banner_has_a_precondition_where_one_is_required(tmp_path: Path) -> None:
    with ServerProcess("sqlite:///strict.db", tmp_path, arguments=("--require-preconditions",)) as server:
        assert server.terminate() == 0
    assert "    -H 'If-None-Match: *' -d '{" in server.output


def password_of(url: str) -> str:
    match = re.search(r"://[^:/]+:([^@]+)@", url)
    assert match is not None
    return match[1]


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="no curl or bash on this machine")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_printed_curl_lines_work(host: str, tmp_path: Path) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    url = f"sqlite:///{tmp_path}/chatstate.db"
    port = free_port()
    with started(tmp_path, *PROGRAM, "serve", "--host", host, "--store", url, "--port", str(port)) as banner:
        commands = banner.partition("Try it:\n")[2].partition("Stop with")[0]
        ended = subprocess.run(["bash", "-c", commands], capture_output=True, check=True, text=True, timeout=SECONDS)
    assert commands.count(f":{port}/") == 2
    assert '"version":1' in ended.stdout
    assert ended.stdout.count(r'"chat_state":"{\"messages\": []}"') == 2


def has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_every_name_of_this_machine_answers(tmp_path: Path) -> None:
    hosts = ["127.0.0.1", "localhost", *(["[::1]"] if has_ipv6() else [])]
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as server:
        for host in hosts:
            assert httpx.get(f"http://{host}:{server.port}/healthz").status_code == 200
    if len(hosts) == 2:
        pytest.skip("this machine has no IPv6, so [::1] was not tried")


# --- Help and version -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_the_version(argument: str, tmp_path: Path) -> None:
    assert run(tmp_path, argument) == (0, f"chatstate {__version__}\n")


@pytest.mark.parametrize("command", [(), ("serve",)], ids=["bare", "serve"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_help_names_every_setting(command: tuple[str, ...], flag: str, tmp_path: Path) -> None:
    status, output = run(tmp_path, *command, flag)
    assert status == 0
    for setting in SETTINGS:
        assert all(variable in output for variable in setting.variables)
        assert (setting.flag in output) != setting.secret
        assert setting.secret or setting.help.replace(" ", "") in re.sub(r"\s", "", output)


def test_the_help_says_what_holds_by_default(tmp_path: Path) -> None:
    _, output = run(tmp_path, "serve", "--help")
    text = " ".join(output.split())
    for setting in SETTINGS:
        if setting.default is not False and not setting.secret:
            (of_this,) = re.findall(rf" {setting.flag} VALUE (.*?\.) \[{setting.variables[0]}", text)
            assert "y default" in of_this


def test_the_help_names_every_command(tmp_path: Path) -> None:
    _, output = run(tmp_path, "--help")
    commands = re.findall(r"^  ([a-z-]+) +[A-Z]", output.partition("Commands:")[2], re.MULTILINE)
    first = ["audit-id", "backup", "check-store", "copy", "inbox", "keys", "migrate", "restore", "serve", "sweep"]
    assert commands == [*first, "tokens", "version", "whatsapp"]
    assert ".env" in output
    assert "NAME_FILE" in output


@pytest.mark.parametrize("group", ["keys", "tokens", "inbox", "whatsapp"])
def test_the_help_of_a_group_says_of_each_command_in_a_whole_sentence_what_it_does(group: str, tmp_path: Path) -> None:
    _, output = run(tmp_path, group, "--help")
    lines = output.partition("Commands:\n")[2].splitlines()
    assert lines
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_the_help_of_migrate_names_its_settings(tmp_path: Path) -> None:
    _, output = run(tmp_path, "migrate", "--help")
    assert re.findall(r"^  (--[a-z-]+)", output, re.MULTILINE) == [
        "--store",
        "--pool-size",
        "--allow-unsafe-durability",
        "--print",
        "--tune",
        "--yes",
    ]
    assert "CHATSTATE_STORE" in output
    assert "DATABASE_URL" in output


@pytest.mark.parametrize(
    "arguments", [("--port", "3001", "serve"), ("serve", "--prot", "1"), ("sevre",), ("serve", "x")]
)
def test_a_wrong_command_line_shows_the_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    status, output = run(tmp_path, *arguments)
    assert status == 2
    assert output.startswith("Usage: ")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


# --- Migrating --------------------------------------------------------------------------------------------------------


def test_migrate_twice(store_url: str, tmp_path: Path) -> None:
    status, output = run(tmp_path, "migrate", CHATSTATE_STORE=store_url)
    assert status == 0
    assert output.startswith("applied 0001_chat_state_sessions\n")
    assert run(tmp_path, "migrate", CHATSTATE_STORE=store_url) == (0, "Nothing to do: the tables are up to date.\n")


def test_migrate_while_a_server_is_working(store_url: str, tmp_path: Path) -> None:
    with ServerProcess(store_url, tmp_path) as server:
        assert run(tmp_path, "migrate", CHATSTATE_STORE=store_url) == (0, "Nothing to do: the tables are up to date.\n")
        assert server.answers("/readyz")


def test_print_changes_nothing(store_url: str, tmp_path: Path) -> None:
    status, output = run(tmp_path, "migrate", "--print", CHATSTATE_STORE=store_url)
    assert status == 0
    assert "CREATE TABLE" in output
    assert list(tmp_path.iterdir()) == []
    status, output = run(tmp_path, "migrate", CHATSTATE_STORE=store_url)
    assert output.startswith("applied ")


def test_the_printed_sql_makes_the_tables_of_sqlite(tmp_path: Path) -> None:
    _, printed = run(tmp_path, "migrate", "--print", "--store", "sqlite:///new.db")
    connection = apsw.Connection(str(tmp_path / "new.db"))
    connection.execute(printed).fetchall()
    connection.close()
    status, output = run(tmp_path, "migrate", "--store", "sqlite:///new.db")
    assert (status, output) == (0, "Nothing to do: the tables are up to date.\n")


def test_print_needs_no_connection(tmp_path: Path) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/bot"
    status, output = run(tmp_path, "migrate", "--print", "--store", url)
    assert status == 0
    assert "hunter2" not in output


# --- Where settings come from -----------------------------------------------------------------------------------------


def test_the_env_file_of_a_prisma_service(postgres_url: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / ".env").write_text(f'DATABASE_URL="{postgres_url}?schema=public"\nPORT={port}\n')
    with started(tmp_path, *PROGRAM) as banner:
        assert f"listens on http://localhost:{port}\n" in banner
        store = httpx.get(f"http://127.0.0.1:{port}/readyz").json()["store"]
    assert store.startswith("PostgreSQL")
    assert store.endswith(database_of(postgres_url))


def store_in_use(folder: Path, *arguments: str, **environment: str) -> str:
    """The name of the SQLite file that `migrate` works on."""
    before = set(folder.glob("*.db"))
    assert run(folder, "migrate", *arguments, **environment)[0] == 0
    (new,) = set(folder.glob("*.db")) - before
    return new.stem


def test_who_wins(tmp_path: Path) -> None:
    assert store_in_use(tmp_path) == "chatstate"
    (tmp_path / ".env").write_text("DATABASE_URL='sqlite:///file.db'\n")
    assert store_in_use(tmp_path) == "file"
    (tmp_path / ".env").write_text("DATABASE_URL='mysql://x'\nCHATSTATE_STORE=sqlite:///own.db\n")
    assert store_in_use(tmp_path) == "own"
    assert store_in_use(tmp_path, DATABASE_URL="sqlite:///variable.db") == "variable"
    both = {"DATABASE_URL": "mysql://x", "CHATSTATE_STORE": "sqlite:///own_variable.db"}
    assert store_in_use(tmp_path, **both) == "own_variable"
    assert store_in_use(tmp_path, "--store", "sqlite:///flag.db", **both) == "flag"


def test_empty_variables_count_as_unset(tmp_path: Path) -> None:
    assert store_in_use(tmp_path, CHATSTATE_STORE="", DATABASE_URL="", CHATSTATE_POOL_SIZE="") == "chatstate"


def test_flags_reach_the_server(tmp_path: Path) -> None:
    limit = ("--require-json", "--max-state-bytes", "10")
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path, arguments=limit) as server:
        url = f"{server.base_url}/chat-state-sessions"
        statuses = [
            httpx.post(url, json={"user_session_id": "one", "chat_state": state}).status_code
            for state in ("{}", "no JSON", '"' + "x" * 9 + '"')
        ]
    assert statuses == [201, 400, 413]


# --- Mistakes ---------------------------------------------------------------------------------------------------------


ANY_TEXT = ("store", "audit_log", "bot", "whatsapp_app_secret", "whatsapp_verify_token", "whatsapp_access_token")
WITH_BAD_VALUES = [setting for setting in SETTINGS if setting.name not in ANY_TEXT]


def told_here(*arguments: str, **environment: str) -> str:
    """What the program says of a mistake, in this process: there are many of them, and a start takes half a second.
    A mistake that it does not notice ends as well: it has no store."""
    result = CliRunner().invoke(main, arguments, env={**environment, "CHATSTATE_STORE": "none://"})
    assert result.exit_code == 1, result.output
    return result.output


@pytest.mark.parametrize("setting", WITH_BAD_VALUES, ids=lambda setting: setting.name)
def test_a_bad_value_names_its_source(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = "" if setting.secret else "='?'"
    for variable in setting.variables:
        assert told_here(**{variable: "?"}).startswith(f"chatstate: {variable}{shown} must be ")
        (tmp_path / ".env").write_text(f"{variable}=?\n")
        assert told_here("serve").startswith(f"chatstate: {variable} in .env{shown} must be ")
        (tmp_path / ".env").unlink()
    if setting.default is not False and not setting.secret:
        assert told_here("serve", setting.flag, "?").startswith(f"chatstate: {setting.flag}='?' must be ")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_value_is_the_end(tmp_path: Path) -> None:
    assert "chatstate: CHATSTATE_PORT='?' must be " in mistake(tmp_path, CHATSTATE_PORT="?")
    (tmp_path / ".env").write_text("CHATSTATE_PORT=?\n")
    assert "chatstate: CHATSTATE_PORT in .env='?' must be " in mistake(tmp_path, "serve")
    assert "chatstate: --port='?' must be " in mistake(tmp_path, "serve", "--port", "?")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("bots", "name the module and the function, as in --bot package.module:bot"),
        ("bots:", "name the module and the function, as in --bot package.module:bot"),
        ("bots:other", "other is none; a bot is `async def other(turn)` in bots."),
        ("bots:plain", "plain is not `async def`; a bot is `async def plain(turn)` in bots."),
        ("missing.bots:bot", "there is no module missing. It is looked for in the current folder, and among"),
    ],
)
def test_a_bot_that_cannot_be_found(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bots.py").write_text("def plain(turn): ...\n")
    port = str(free_port())
    assert f"chatstate: --bot {place}: {message}" in mistake(tmp_path, "serve", "--bot", place, PORT=port)
    assert f"chatstate: --bot {place}: {message}" in mistake(tmp_path, "serve", CHATSTATE_BOT=place, PORT=port)


def test_an_account_of_which_something_is_missing(tmp_path: Path) -> None:
    some = {"CHATSTATE_WHATSAPP_APP_SECRET": "hunter2", "CHATSTATE_WHATSAPP_VERIFY_TOKEN": "hunter3"}
    output = mistake(tmp_path, "serve", PORT=str(free_port()), **some)
    assert (
        "CHATSTATE_WHATSAPP_APP_SECRET is set, so WhatsApp wants these, too: CHATSTATE_WHATSAPP_ACCESS_TOKEN, "
        "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID."
    ) in " ".join(output.split())
    assert "hunter" not in output


@pytest.mark.parametrize("setting", ["VERIFY_TOKEN", "ACCESS_TOKEN"])
def test_an_account_without_its_secret_is_warned_of(setting: str, tmp_path: Path) -> None:
    variables = {f"CHATSTATE_WHATSAPP_{setting}": "hunter2", "PORT": str(free_port())}
    with started(tmp_path, *PROGRAM, **variables) as banner:
        assert "WARNING  Nothing is taken from WhatsApp without CHATSTATE_WHATSAPP_APP_SECRET" in banner
        assert "hunter" not in banner


def test_a_bot_that_is_missing_is_warned_of(tmp_path: Path) -> None:
    names = ("APP_SECRET", "VERIFY_TOKEN", "ACCESS_TOKEN", "PHONE_NUMBER_ID")
    variables = {f"CHATSTATE_WHATSAPP_{name}": "12345" for name in names}
    with started(tmp_path, *PROGRAM, PORT=str(free_port()), **variables) as banner:
        assert "WARNING  What people write on WhatsApp waits until a server with a bot answers it" in banner


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    output = mistake(tmp_path, "serve", "--host", "203.0.113.9", "--port", str(free_port()))
    assert "This machine has no address 203.0.113.9; choose another with --host." in output


def test_an_audit_log_that_cannot_be_written(tmp_path: Path) -> None:
    output = mistake(tmp_path, "serve", "--audit-log", "missing/audit.log", "--port", str(free_port()))
    assert (
        "Cannot write the audit log missing/audit.log: No such file or directory. Name another: --audit-log" in output
    )


def test_a_file_has_one_process_that_serves_it(tmp_path: Path) -> None:
    assert "use PostgreSQL" in mistake(tmp_path, "serve", "--workers", "2", PORT=str(free_port()))
    assert not (tmp_path / "chatstate.db").exists()


def test_several_processes_that_cannot_start_say_so_once(tmp_path: Path) -> None:
    output = mistake(tmp_path, "--workers", "3", PORT=str(free_port()), DATABASE_URL=f"postgresql://x@{LOOPBACK}:1/x")
    assert output.count("Cannot reach PostgreSQL") == 1


def test_a_taken_port(taken_port: int, tmp_path: Path) -> None:
    output = mistake(tmp_path, "serve", "--port", str(taken_port))
    assert f"Port {taken_port} is taken." in output
    assert f"chatstate serve --port {taken_port + 1}" in output


def test_a_second_owner_of_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    with ServerProcess(url, tmp_path) as server:
        output = mistake(tmp_path, "serve", "--store", url, "--port", str(free_port()))
        assert f"Another chatstate server is using {tmp_path}/chatstate.db." in output
        assert "chatstate serve --store sqlite:///other.db" in output
        assert server.answers("/readyz")
        server.kill()
        server.restart()  # what a killed server leaves behind locks nobody out


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_an_unreachable_database(command: str, tmp_path: Path) -> None:
    port = free_port()
    store = f"postgresql://me:hunter2@127.0.0.1:{port}/bot"
    output = mistake(tmp_path, command, "--store", store, PORT=str(free_port()))
    assert f"Cannot reach PostgreSQL at 127.0.0.1:{port}/bot" in output
    assert "Is it running, and does the store URL name the right host and port?" in output
    assert "hunter2" not in output


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_wrong_password(command: str, postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url("postgres").replace(password_of(postgres.url("postgres")), "hunter2")
    output = mistake(tmp_path, command, "--store", url, PORT=str(free_port()))
    assert "refused the login. The user name or the password in the store URL is wrong" in output
    assert "hunter2" not in output
    assert password_of(postgres.url("postgres")) not in output


def test_a_missing_database(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url("chatstate_test_missing")
    output = mistake(tmp_path, "migrate", "--store", url)
    assert "has no database of that name. Create it: createdb" in output
    assert "chatstate_test_missing" in output
    assert password_of(url) not in output


@pytest.mark.parametrize("password", ["qq/zz", "12/34", "12?34", "12#34", "[34", "qq@zz/34"])
def test_a_password_that_is_not_encoded_is_not_printed(password: str, tmp_path: Path) -> None:
    output = mistake(tmp_path, "migrate", "--store", f"postgresql://me:{password}@localhost:1/bot")
    assert not any(part and part in output for part in re.split(r"[/?#\[@]", password))
    assert "%2F" in output


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("mysql://me:hunter2@localhost/bot", "mysql"),
        ("file:./dev.db", "file"),
        ("mongodb+srv://me:hunter2@cluster/bot", "mongodb+srv"),
        ("prisma://accelerate.prisma-data.net/?api_key=hunter2", "prisma"),
    ],
)
def test_an_unknown_store(url: str, scheme: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f'DATABASE_URL="{url}"\n')
    output = mistake(tmp_path, "serve")
    assert f"URLs that begin with '{scheme}'" in output
    assert "--store sqlite:///chatstate.db" in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://host/x.db", "sqlite://[x", "sqlite:///a%00b"]
)
def test_a_sqlite_url_that_names_no_file(url: str, tmp_path: Path) -> None:
    assert "A SQLite store is a file: --store sqlite:///chatstate.db" in mistake(tmp_path, "serve", "--store", url)


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_file_that_cannot_be_written(command: str, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("This is no database, but the beginning of a novel. " * 20)
    for name in ("folder.db", "text.db", "missing/x.db"):
        output = mistake(tmp_path, command, "--store", f"sqlite:///{tmp_path}/{name}", PORT=str(free_port()))
        assert f"Cannot use {tmp_path}/{name} as the database" in output
    assert (tmp_path / "text.db").read_text().startswith("This is no database")


def test_another_programs_database(tmp_path: Path) -> None:
    with apsw.Connection(str(tmp_path / "theirs.db")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    output = mistake(tmp_path, "serve", "--store", "sqlite:///theirs.db", "--port", str(free_port()))
    assert "another program's database" in output


def test_a_server_that_is_not_postgresql(tmp_path: Path) -> None:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as other:
        output = mistake(tmp_path, "migrate", "--store", at_port("postgresql://me:hunter2@localhost/bot", other.port))
    assert f"Cannot reach PostgreSQL at 127.0.0.1:{other.port}/bot" in output
    assert "hunter2" not in output


def test_an_env_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("PORT=3001\n".encode("utf-16"))
    assert ".env is not UTF-8. Save it as UTF-8" in mistake(tmp_path, "serve")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f'rmdir "{folder}" && exec "$@"'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *PROGRAM, "serve"],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "chatstate: The current folder does not exist any more. Change to another one: cd ~\n"
