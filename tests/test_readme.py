"""The commands and the code of the README and of pages for beginners work as they stand (but for the port)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.postgres import poll_until
from tests.servers.process import ServerProcess

ROOT = Path(__file__).parent.parent
ADDRESS = "http://localhost:3000"

SEED_LINES = r"""
curl -X POST http://localhost:3000/chat-state-sessions \
  -H "Content-Type: application/json" \
  -d '{
    "user_session_id": "test_session_123",
    "chat_state": "{\"messages\": [], \"currentStep\": \"language\"}",
    "last_activity": "2025-10-02T10:00:00Z"
  }'
curl http://localhost:3000/chat-state-sessions/test_session_123
"""
"""As the document of the replaced service has them."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path) as running:
        yield running


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def paste(lines: str, server: ServerProcess, **variables: str) -> list[dict[str, object]]:
    """What the lines print: a JSON object for each call."""
    script = lines.replace(ADDRESS, server.base_url)
    environment = os.environ | variables
    printed = subprocess.run(
        ["bash", "-ec", script], env=environment, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return [json.loads(text) for text in printed.replace("}{", "}\n{").splitlines()]


needs_curl = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")


@needs_curl
def test_the_seeds_lines_work(server: ServerProcess) -> None:
    saved, loaded = paste(SEED_LINES, server)
    assert saved["user_session_id"] == "test_session_123"
    assert loaded == {
        "chat_state": '{"messages": [], "currentStep": "language"}',
        "last_activity": "2025-10-02T10:00:00Z",
    }


@needs_curl
def test_the_curl_lines_of_the_readme_work(server: ServerProcess) -> None:
    lines = [block for block in blocks("README.md", "bash") if "curl" in block and "CHATSTATE_KEY" not in block]
    answers = [answer for block in lines for answer in paste(block, server)]
    saved, loaded, updated, deleted, created, appended = answers
    assert (saved["version"], updated["version"]) == (1, 2)
    assert (created["version"], appended["version"]) == (1, 2)
    assert loaded["chat_state"] == saved["chat_state"] != updated["chat_state"]
    assert list(deleted) == ["message"]


@needs_curl
def test_the_key_of_the_readme_closes_the_server_and_mints_tokens(server: ServerProcess, tmp_path: Path) -> None:
    create, mint = [block for block in blocks("README.md", "bash") if "CHATSTATE_KEY" in block]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv" / "bin" / "chatstate"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chatstate "$@"\n')
    program.chmod(0o755)
    (minted,) = paste(f"cd {tmp_path}\n{create}\n{mint}", server, CHATSTATE_STORE=f"sqlite:///{tmp_path}/chatstate.db")
    assert minted["user_session_id"] == "session_12345"
    url = f"{server.base_url}/chat-state-sessions/session_12345"
    assert poll_until(lambda: httpx.get(url).status_code == 401, 5)
    assert httpx.get(url, headers={"Authorization": f"Bearer {minted['token']}"}).status_code == 404


needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")


def run_script(server: ServerProcess, folder: Path, *parts: str) -> str:
    """What the parts of one script print; a browser's localStorage stands in front of them."""
    script = "\n".join(["const localStorage = {};", *parts])
    (folder / "page.mjs").write_text(script.replace(ADDRESS, server.base_url))
    run = subprocess.run(["node", folder / "page.mjs"], capture_output=True, text=True, check=False, timeout=30)
    assert run.stderr == ""
    return run.stdout


@needs_node
def test_the_script_of_the_readme_works(server: ServerProcess, tmp_path: Path) -> None:
    (block,) = blocks("README.md", "js")
    use = "console.log(await load('a/b')); await save('a/b', {step: 'gender'}); console.log((await load('a/b')).step)"
    assert run_script(server, tmp_path, block, use) == "null\ngender\n"


def test_the_python_lines_of_the_readme_work(server: ServerProcess) -> None:
    (block,) = [block for block in blocks("README.md", "python") if "Client" in block]
    names: dict[str, Any] = {}
    for _ in range(2):  # the session is made, and then it is changed
        exec(block.replace(ADDRESS, server.base_url), names)
        with names["client"] as client:
            assert client.load("session_888").state == {"step": "gender"}


@needs_node
def test_the_scripts_of_the_readme_do_not_take_a_failure_for_a_new_conversation(
    server: ServerProcess, tmp_path: Path
) -> None:
    (block,) = blocks("README.md", "js")
    failing = "globalThis.fetch = async () => ({status: 503, ok: false});"
    use = "for (const call of [load, save]) await call('a').catch(error => console.log(error.message))"
    assert run_script(server, tmp_path, failing, block, use) == "not loaded; try again\nnot saved; try again\n"


@needs_node
def test_the_scripts_of_the_quickstart_lose_no_turn(server: ServerProcess, tmp_path: Path) -> None:
    use = """
    console.log(await load(), await saveSafely({step: "gender"}), (await load()).step);
    const stale = etag;
    console.log(await saveSafely({step: "age"}));
    etag = stale; // a tab that has not seen the last turn
    console.log(await saveSafely({step: "language"}), (await load()).step, await saveSafely({step: "question"}));
    await fetch(`${url}/${encodeURIComponent(id)}`, {method: "DELETE"});
    console.log(await saveSafely({step: "end"}), await load(), await saveSafely({step: "new"}), (await load()).step);
    """
    printed = run_script(server, tmp_path, *blocks("docs/quickstart.md", "js"), use)
    assert printed == "null true gender\ntrue\nfalse age true\nfalse null true new\n"


# --- Never lose a turn ------------------------------------------------------------------------------------------------

TURNS_PAGE = "docs/howto/never-lose-a-turn.md"
_TYPES = re.compile(
    r"<State>|<Chat>|type Chat = .*|: (?:string|unknown|RequestInit|Record<string, string>)"
    r"|: \(state: State \| null\) => State|: Promise<(?:Response|State|void|\{.*?\})>(?= \{)"
)
"""What TypeScript adds to JavaScript on that page; older Node.js does not know it."""


@needs_node
def test_the_scripts_against_lost_turns_lose_none(server: ServerProcess, tmp_path: Path) -> None:
    """Two devices at once, and a network that loses the answers of every second write."""
    use = """
    const id = "session_12345", add = (turn) => (chat) => ({...chat, messages: [...(chat?.messages ?? []), turn]});
    const online = fetch;
    let writes = 0;
    globalThis.fetch = async (address, request) => {
      const answer = await online(address, request);
      if (request.method && writes++ % 2) throw new TypeError("the answer is lost");
      return answer;
    };
    await Promise.all([1, 2, 3].flatMap((n) => [change(id, add(`changed ${n}`)), append(id, `appended ${n}`)]));
    console.log((await load(id)).state.messages.sort().join());
    console.log(await append("absent", 1).catch((error) => error.message), (await load("absent")).state);
    """
    scripts = [_TYPES.sub("", block) for block in blocks(TURNS_PAGE, "ts")]
    printed = run_script(server, tmp_path, *scripts, use)
    assert printed == "Hello,appended 1,appended 2,appended 3,changed 1,changed 2,changed 3\nnot saved: 404 null\n"


@needs_curl
def test_the_curl_lines_against_lost_turns_work(tmp_path: Path) -> None:
    with ServerProcess(f"sqlite:///{tmp_path}/chatstate.db", tmp_path, arguments=("--history", "20")) as server:
        lines = [block for block in blocks(TURNS_PAGE, "bash") if "curl" in block]
        answers: Any = [answer for block in lines for answer in paste(block, server)]
    created, appended, merged, begun, spoiled, versions, first, restored, expiring = answers
    assert [answer["version"] for answer in (created, appended, merged)] == [1, 2, 3]
    assert [answer["version"] for answer in (begun, spoiled, restored)] == [1, 2, 3]
    assert json.loads(merged["chat_state"]) == {
        "messages": [{"role": "user", "content": "Hello"}],
        "currentStep": "payment",
    }
    assert [version["version"] for version in versions["versions"]] == [2, 1]
    assert first["chat_state"] == begun["chat_state"] != spoiled["chat_state"]
    assert "expires_at" in expiring


def test_a_webhook_that_is_delivered_twice_appends_once(server: ServerProcess, tmp_path: Path) -> None:
    (block,) = blocks(TURNS_PAGE, "python")
    names: dict[str, Any] = {}
    exec(block.replace(ADDRESS, server.base_url), names)
    httpx.post(
        f"{server.base_url}/chat-state-sessions", json={"user_session_id": "a/b", "chat_state": '{"messages":[]}'}
    )
    append = names["append"]
    assert [append("a/b", "Hello", delivery) for delivery in ("wamid.1==", "wamid.1==", "wamid.2==")] == [
        True,
        False,
        True,
    ]
    loaded = httpx.get(f"{server.base_url}/chat-state-sessions/a%2Fb").json()
    assert loaded["chat_state"] == '{"messages":["Hello","Hello"]}'
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        append("a/b", "Hello?", "wamid.1==")
