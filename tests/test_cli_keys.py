"""The commands about access, and how a server starts with keys and without: real processes, and what they print."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from chatstate.encryption import new_key
from chatstate.keys import parse
from chatstate.model import SCOPES
from tests.servers.ports import free_port
from tests.servers.postgres import poll_until
from tests.servers.process import PROGRAM, ServerProcess, clean_environment
from tests.test_cli import LAST_LINE, SECONDS, mistake, run, started

OTHER_ADDRESS = "127.0.0.2"
"""An address that is not one of this machine's names to chatstate, and that nobody else can reach."""

KEY = re.compile(r"cs_[a-z2-7]{8}_[0-9A-Za-z]{49}")


def output_of(folder: Path, store_url: str, *arguments: str) -> str:
    """What a command prints to standard output when it succeeds; the store's URL stands in the environment."""
    ended = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env=clean_environment(CHATSTATE_STORE=store_url),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def listed(folder: Path, store_url: str) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(output_of(folder, store_url, "keys", "list", "--json"))
    return keys


def id_of(key: str) -> str:
    parsed = parse(key.strip())
    assert parsed is not None
    return parsed.id


def status_with(server: ServerProcess, key: str) -> int:
    """Of a request that shows this key."""
    address = f"http://127.0.0.1:{server.port}/chat-state-sessions/one"
    return httpx.get(address, headers={"Authorization": f"Bearer {key.strip()}"}).status_code


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_created_listed_rotated_and_revoked(store_url: str, tmp_path: Path) -> None:
    first = output_of(tmp_path, store_url, "keys", "create", "--name", "web")
    assert KEY.fullmatch(first.strip())
    assert [(key["id"], key["status"], key["name"]) for key in listed(tmp_path, store_url)] == [
        (id_of(first), "live", "web")
    ]
    second = output_of(tmp_path, store_url, "keys", "rotate", id_of(first), "--grace-hours", "0")
    assert id_of(second) == id_of(first)
    with ServerProcess(store_url, tmp_path) as server:
        assert [status_with(server, key) for key in (first, second)] == [401, 404]
        assert server.terminate() == 0
    output = output_of(tmp_path, store_url, "keys", "revoke", id_of(first))
    assert output == f"Revoked the key {id_of(first)} (web).\n"
    with ServerProcess(store_url, tmp_path) as server:
        assert status_with(server, second) == 401
    (key,) = listed(tmp_path, store_url)
    assert key["status"] == "revoked"
    assert key["last_used_at"] is not None
    output = mistake(tmp_path, "keys", "rotate", id_of(first), CHATSTATE_STORE=store_url)
    assert "is revoked or has expired. Make a new one: chatstate keys create" in output


def test_scripts_get_json(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    made = json.loads(output_of(tmp_path, url, "keys", "create", "--name", "ci", "--scopes", "list, read", "--json"))
    assert made.keys() == {"id", "key"}
    assert id_of(made["key"]) == made["id"]
    rotated = json.loads(output_of(tmp_path, url, "keys", "rotate", made["id"], "--json"))
    assert (rotated["id"], id_of(rotated["key"])) == (made["id"], made["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+Z", rotated["former_until"])
    (key,) = listed(tmp_path, url)
    assert key == {
        "id": made["id"],
        "name": "ci",
        "scopes": "read,list",
        "id_prefix": "",
        "status": "live",
        "created_at": key["created_at"],
        "expires_at": None,
        "last_used_at": None,
    }


def test_what_is_shown_once_is_alone_on_standard_output(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    key = output_of(tmp_path, url, "keys", "create", "--name", "web").removesuffix("\n")
    assert KEY.fullmatch(key)
    assert KEY.fullmatch(output_of(tmp_path, url, "keys", "rotate", id_of(key)).removesuffix("\n"))
    status, output = run(tmp_path, "keys", "rotate", id_of(key))
    assert status == 0
    assert re.search(r"shown this once; keep it safe\. The one before works until \d{4}-\d\d-\d\dT[\d:]+Z\.", output)


def test_a_new_key_says_where_it_is_and_what_the_first_one_changes(tmp_path: Path) -> None:
    closes = "From this first key on, servers on this store want a credential for each request.\n"
    for is_first in (True, False):
        status, output = run(tmp_path, "keys", "create", "--name", "web")
        (key,) = KEY.findall(output)
        assert status == 0
        assert re.search(rf"^The key {id_of(key)} of SQLite [\d.]+, {tmp_path}/chatstate\.db", output, re.MULTILINE)
        assert output.endswith(closes) == is_first


def test_whoever_revokes_the_last_key_is_told(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    first, second = (output_of(tmp_path, url, "keys", "create", "--name", name).strip() for name in ("a", "b"))
    assert run(tmp_path, "keys", "revoke", first) == (0, f"Revoked the key {id_of(first)} (a).\n")
    status, output = run(tmp_path, "keys", "revoke", second)
    assert status == 0
    assert "No key is valid any more, so nobody can come in. Create one: chatstate keys create\n" in output
    with started(tmp_path, *PROGRAM, "serve", "--port", str(free_port())) as banner:
        assert "  WARNING  No API key is valid any more, so nobody can come in." in banner


def test_a_mistyped_variable_is_warned_of(tmp_path: Path) -> None:
    status, output = run(tmp_path, "migrate", CHATSTATE_ENCRYPTION_KEY="x", CHATSTATE_COLOUR="red")
    assert status == 0
    assert (
        "CHATSTATE_ENCRYPTION_KEY is no setting, so it does nothing. Did you mean CHATSTATE_ENCRYPTION_KEYS?" in output
    )
    assert "CHATSTATE_COLOUR is no setting, so it does nothing. Those that there are: chatstate serve --help" in output


def test_a_key_has_all_scopes_but_admin_unless_it_is_told(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    output_of(tmp_path, url, "keys", "create", "--name", "web")
    assert listed(tmp_path, url)[0]["scopes"].split(",") == [scope for scope in SCOPES if scope != "admin"]
    made = json.loads(output_of(tmp_path, url, "keys", "create", "--name", "web", "--scopes", "all", "--json"))
    (every,) = (key for key in listed(tmp_path, url) if key["id"] == made["id"])
    assert every["scopes"].split(",") == list(SCOPES)


def test_the_whole_key_will_do_where_its_id_is_wanted(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    key = output_of(tmp_path, url, "keys", "create", "--name", "leaked").strip()
    output_of(tmp_path, url, "keys", "rotate", key)
    output = output_of(tmp_path, url, "keys", "revoke", key)
    assert output == f"Revoked the key {id_of(key)} (leaked).\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scopes", "read,fly"), "--scopes='read,fly' must be some of read,write,delete,list,mint,export,admin"),
        (("--scopes", ","), "--scopes=',' must be some of"),
        (("--id-prefix", "a\tb"), r"--id-prefix='a\tb' must not contain control characters"),
        (("--id-prefix", "a" * 201), "must have at most 200 characters"),
        (("--id-prefix", "a" * 300), "must have at most 200 characters"),
        (("--id-prefix", ""), "--id-prefix='' must not be empty; leave it out for a key that sees all sessions."),
        (("--name", ""), "--name='' must be 1 to 100 characters that can be printed."),
        (("--name", "\x1b[31mred"), r"--name='\x1b[31mred' must be 1 to 100 characters that can be printed."),
        (("--name", "n" * 101), "must be 1 to 100 characters"),
    ],
)
def test_a_key_that_cannot_be_made(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    output = mistake(tmp_path, "keys", "create", "--name", "web", *arguments)
    assert says in output
    assert "\x1b[31mred" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_a_key_that_does_not_exist(command: str, store_url: str, tmp_path: Path) -> None:
    output_of(tmp_path, store_url, "keys", "create", "--name", "web")
    output = mistake(tmp_path, "keys", command, "unknown2", CHATSTATE_STORE=store_url)
    assert output == "chatstate: There is no key unknown2. Those that there are: chatstate keys list\n"


@pytest.mark.parametrize(
    "command", ["keys list", "keys revoke x", "keys rotate x", "keys reencrypt", "tokens rotate --now", "audit-id x"]
)
def test_a_mistyped_file_is_not_made(command: str, tmp_path: Path) -> None:
    """Above all nobody believes that all tokens are void, when it was those of a store that nobody uses."""
    ring = {"CHATSTATE_ENCRYPTION_KEYS": new_key()}
    output = mistake(tmp_path, *command.split(), "--store", "sqlite:///typo.db", **ring)
    assert "There is no file" in output
    assert list(tmp_path.iterdir()) == []


def test_without_keys_the_list_says_how_to_make_one(store_url: str, tmp_path: Path) -> None:
    output_of(tmp_path, store_url, "migrate")
    output = output_of(tmp_path, store_url, "keys", "list")
    assert output == "There are no keys. Create one: chatstate keys create --name web\n"


def test_the_list_fits_into_a_terminal_of_100_columns(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    for arguments in (
        ("--name", "the shop's web page"),
        ("--name", "everything", "--scopes", ",".join(SCOPES)),
        ("--name", "mints tokens", "--scopes", "read,write,mint", "--id-prefix", "shop_", "--expires-in-days", "30"),
    ):
        output_of(tmp_path, url, "keys", "create", *arguments)
    output = output_of(tmp_path, url, "keys", "list")
    head, *lines = output.splitlines()
    assert head.split("  ")[0] == "id"
    assert len(lines) == 3
    assert all(len(line) <= 100 for line in (head, *lines))
    for text in ("the shop's web page", " all but admin ", " all ", " read,write,mint ", " shop_ ", " never "):
        assert text in output


_WITH_CONTROLS = """
import asyncio
from chatstate.keys import Keys
from chatstate.model import utc_now
from chatstate.stores import create_store

async def create():
    store = create_store("sqlite:///chatstate.db", owner=False)
    await store.open()
    await store.migrate()
    key, _ = await Keys(store).create("\\x1b[31mred", utc_now())
    await store.close()
    print(key.id)

asyncio.run(create())
"""


def test_controls_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """The command makes no such key, but other programs may."""
    made = subprocess.run(
        [sys.executable, "-c", _WITH_CONTROLS],
        cwd=tmp_path,
        env=clean_environment(),
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    url = "sqlite:///chatstate.db"
    outputs = [
        output_of(tmp_path, url, "keys", "list"),
        output_of(tmp_path, url, "keys", "list", "--json"),
        output_of(tmp_path, url, "keys", "revoke", made.stdout.decode().strip()),
    ]
    assert all("[31mred" in output and "\x1b" not in output for output in outputs)


# --- Session tokens and the audit log ---------------------------------------------------------------------------------


def test_tokens_that_were_minted_before_are_void_if_it_is_to_be_now(store_url: str, tmp_path: Path) -> None:
    def answers(token: str) -> int:
        address = f"http://127.0.0.1:{server.port}/chat-state-sessions/one"
        return httpx.get(address, headers={"Authorization": f"Bearer {token}"}).status_code

    key = output_of(tmp_path, store_url, "keys", "create", "--name", "web").strip()
    with ServerProcess(store_url, tmp_path) as server:
        minted = httpx.post(
            f"http://127.0.0.1:{server.port}/tokens",
            json={"user_session_id": "one"},
            headers={"Authorization": f"Bearer {key}"},
        )
        token = minted.json()["token"]
        assert answers(token) == 404
        server.terminate()
        output = output_of(tmp_path, store_url, "tokens", "rotate")
        assert output.endswith(" from now on. Earlier ones are valid for their time.\n")
        server.restart()
        assert answers(token) == 404
        server.terminate()
        output = output_of(tmp_path, store_url, "tokens", "rotate", "--now")
        assert output.endswith(" from now on. Earlier ones are void.\n")
        server.restart()
        assert answers(token) == 401


def test_all_lines_about_a_session_can_be_found_in_the_audit_log(store_url: str, tmp_path: Path) -> None:
    key = output_of(tmp_path, store_url, "keys", "create", "--name", "web").strip()
    shown = {"Authorization": f"Bearer {key}"}
    with ServerProcess(store_url, tmp_path, arguments=("--audit-log", "audit.log")) as server:
        url = f"http://127.0.0.1:{server.port}/chat-state-sessions"
        httpx.post(url, json={"user_session_id": "one", "chat_state": "{}"}, headers=shown)
        httpx.get(f"{url}/one", headers=shown)
        httpx.get(f"{url}/two", headers=shown)
    name = output_of(tmp_path, store_url, "audit-id", "one").strip()
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [(line["what"], line.get("session") == name) for line in lines] == [
        ("save", True),
        ("load", True),
        ("load", False),
    ]
    assert "one" not in name


# --- Starting where others can reach it -------------------------------------------------------------------------------


def answers_on_other_address(port: int, headers: dict[str, str] | None = None) -> int:
    return httpx.get(f"http://{OTHER_ADDRESS}:{port}/chat-state-sessions/one", headers=headers).status_code


@pytest.mark.skipif(not shutil.which("sh"), reason="no sh on this machine")
@pytest.mark.parametrize("given", ["by default", "as a flag", "in the environment"])
def test_another_address_wants_a_key_and_the_command_that_is_named_makes_it(given: str, tmp_path: Path) -> None:
    port = free_port()
    command = ("serve", "--host", OTHER_ADDRESS, "--port", str(port))
    environment = {}
    if given == "as a flag":
        command += ("--store", f"sqlite:///{tmp_path}/it's here.db")
    if given == "in the environment":
        environment = {"CHATSTATE_STORE": "sqlite:///there.db"}
    output = mistake(tmp_path, *command, **environment)
    assert "without an API key everybody may read and change every session. Create one, then start again:" in output
    (pasted,) = re.findall(r"^  (.* keys create .*)$", output, re.MULTILINE)
    ended = subprocess.run(
        ["sh", "-c", pasted],
        cwd=tmp_path,
        env=clean_environment(**environment),
        capture_output=True,
        check=True,
        text=True,
        timeout=SECONDS,
    )
    with started(tmp_path, *PROGRAM, *command, **environment) as banner:
        assert "access      API keys and session tokens (chatstate keys list)" in banner
        assert "WARNING  What goes over the network is not encrypted." in banner
        assert answers_on_other_address(port) == 401
        assert answers_on_other_address(port, {"Authorization": f"Bearer {ended.stdout.strip()}"}) == 404


def test_the_command_that_mends_it_does_not_show_a_password(postgres_url: str, tmp_path: Path) -> None:
    output = mistake(tmp_path, "serve", "--host", OTHER_ADDRESS, "--port", str(free_port()), "--store", postgres_url)
    (mends,) = re.findall(r"^  (.* keys create .*)$", output, re.MULTILINE)
    *_, flag, url = shlex.split(mends)
    password = re.search(r"://[^:/]+:([^@]+)@", postgres_url)
    assert password is not None
    assert (flag, url) == ("--store", postgres_url.replace(password[1], "PASSWORD"))
    assert password[1] not in output


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:1/bot", "postgresql://127.0.0.1:1/bot?user=me&password=hunter2"]
)
def test_a_password_on_the_command_line_is_warned_of(url: str, tmp_path: Path) -> None:
    output = mistake(tmp_path, "migrate", "--store", url)
    assert output.startswith("chatstate: the store URL on the command line holds a password, which all users")
    assert "CHATSTATE_STORE_FILE" in output
    assert "hunter2" not in output
    assert "command line" not in mistake(tmp_path, "migrate", CHATSTATE_STORE=url)


async def test_a_server_that_may_not_read_keys_does_not_start(postgres_url: str, tmp_path: Path) -> None:
    """It cannot know whether there are any, so it must not be an open one."""
    assert (await asyncio.to_thread(run, tmp_path, "migrate", CHATSTATE_STORE=postgres_url))[0] == 0
    name, password = f"keyless_{secrets.token_hex(4)}", secrets.token_hex(8)
    owner = await asyncpg.connect(postgres_url)
    try:
        await owner.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{password}'; GRANT USAGE ON SCHEMA chatstate TO {name};"
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON chat_state_sessions TO {name}"
        )
        parts = urlsplit(postgres_url)
        url = parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
        environment = {"CHATSTATE_STORE": url, "PORT": str(free_port())}
        output = await asyncio.to_thread(mistake, tmp_path, "serve", **environment)
        await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    finally:
        await owner.close()
    assert "permission denied for table records" in output
    assert "ALL TABLES IN SCHEMA chatstate" in output


def test_the_first_key_is_printed_once_and_only_once(store_url: str, tmp_path: Path) -> None:
    arguments = ("--host", OTHER_ADDRESS, "--first-key")
    port = free_port()
    command = (*PROGRAM, "serve", *arguments, "--port", str(port))
    with started(tmp_path, *command, CHATSTATE_STORE=store_url) as banner:
        assert banner.startswith("The first API key, shown this once; keep it safe:\n\n  cs_firstkey_")
        (key,) = KEY.findall(banner)
        assert answers_on_other_address(port, {"Authorization": f"Bearer {key}"}) == 404
    with started(tmp_path, *command, CHATSTATE_STORE=store_url) as banner:
        assert not KEY.search(banner)
        assert "The first API key" not in banner
        assert answers_on_other_address(port, {"Authorization": f"Bearer {key}"}) == 404


def test_no_first_key_is_made_where_there_is_one(tmp_path: Path) -> None:
    url = "sqlite:///chatstate.db"
    output_of(tmp_path, url, "keys", "create", "--name", "web")
    with started(tmp_path, *PROGRAM, "serve", "--first-key", "--port", str(free_port())) as banner:
        assert not KEY.search(banner)
    assert [key["name"] for key in listed(tmp_path, url)] == ["web"]


def test_of_two_servers_that_start_together_one_makes_the_first_key(postgres_url: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    output_of(tmp_path, postgres_url, "migrate")
    processes = []
    for folder in folders:
        folder.mkdir()
        with (folder / "output").open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [*PROGRAM, "serve", "--first-key", "--port", str(free_port())],
                    cwd=folder,
                    env=clean_environment(CHATSTATE_STORE=postgres_url),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    with ExitStack() as stack:
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        outputs = [folder / "output" for folder in folders]
        assert poll_until(lambda: all(output.read_text().endswith(LAST_LINE) for output in outputs), SECONDS)
    printed = [key for folder in folders for key in KEY.findall((folder / "output").read_text())]
    assert len(printed) == 1
    assert [key["id"] for key in listed(tmp_path, postgres_url)] == ["firstkey"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--allowed-origins", "https://a.example", "--rate-per-address", "0"),
        ("--allowed-origins", "https://a.example", "--rate-per-session", "0"),
    ],
)
def test_anonymous_callers_want_a_list_of_pages_and_limits(arguments: tuple[str, ...], tmp_path: Path) -> None:
    output = mistake(tmp_path, "serve", "--allow-anonymous", *arguments, "--port", str(free_port()))
    assert "--allowed-origins https://chat.example.org" in output
    assert "--rate-per-address, --rate-per-session" in output


def test_the_banner_warns_of_anonymous_callers(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("--allow-anonymous", "--allowed-origins", "https://a.example", "--host", OTHER_ADDRESS)
    with started(tmp_path, *PROGRAM, "serve", *arguments, "--port", str(port)) as banner:
        assert "  access      WITHOUT A CREDENTIAL for loading, saving and deleting" in banner
        assert "  WARNING  --allow-anonymous: whoever knows or guesses the id of a session can read" in banner
        assert answers_on_other_address(port) == 404


def test_the_banner_of_an_open_server_says_how_to_close_it(tmp_path: Path) -> None:
    command = (*PROGRAM, "serve", "--store", "sqlite:///other.db", "--allowed-origins", "https://a.example")
    with started(tmp_path, *command, "--port", str(free_port())) as banner:
        assert "access      open to all programs and pages of this machine, until there is an API key:" in banner
        command_line = shlex.join([*PROGRAM, "keys", "create", "--name", "web", "--store", "sqlite:///other.db"])
        assert f"\n              {command_line}\n" in banner
        assert "  WARNING  --allowed-origins has no effect yet" in banner


def test_the_banner_says_how_long_everything_is_kept(tmp_path: Path) -> None:
    arguments = ("--retention-days", "30", "--trusted-proxies", "10.0.0.0/8", "--port", str(free_port()))
    with started(tmp_path, *PROGRAM, "serve", *arguments) as banner:
        assert "  retention   everything for 30 days\n" in banner
        assert "WARNING" not in banner


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="no curl or bash on this machine")
def test_the_printed_curl_lines_work_with_a_key(tmp_path: Path) -> None:
    key = output_of(tmp_path, "sqlite:///chatstate.db", "keys", "create", "--name", "web").strip()
    with started(tmp_path, *PROGRAM, "serve", "--host", OTHER_ADDRESS, "--port", str(free_port())) as banner:
        commands = banner.partition("Try it:\n")[2].partition("Stop with")[0]
        assert all(len(line) <= 120 for line in commands.splitlines())
        environment = clean_environment(CHATSTATE_KEY=key)
        ended = subprocess.run(
            ["bash", "-c", commands], env=environment, capture_output=True, check=True, text=True, timeout=SECONDS
        )
    assert '"version":1' in ended.stdout
    assert ended.stdout.count(r'"chat_state":"{\"messages\": []}"') == 2
