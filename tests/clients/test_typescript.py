"""The TypeScript client: its own tests against real servers, and that what is committed is what its source makes."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import FOLDER, run
from tests.servers.process import ServerProcess

ROOT = FOLDER.parents[1]
SERVED = ROOT / "src" / "chatstate" / "http" / "client.js"


@pytest.fixture(scope="session")
def built(typescript: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that would be served, and in the folder of the client what npm gets, both made anew."""
    file = tmp_path_factory.mktemp("typescript") / "client.js"
    run("node", "build.mjs", str(file))
    return file


def test_client_js_is_what_the_source_makes(built: Path) -> None:
    message = "src/chatstate/http/client.js is out of date; make it anew: make client"
    assert built.read_bytes() == SERVED.read_bytes(), message


def test_the_client_is_small(typescript: Path) -> None:
    size, budget = map(int, re.findall(r"\d+", run("node", "size.mjs")))
    assert size <= budget == 6 * 1024
    assert len(gzip.compress(SERVED.read_bytes(), 9)) <= budget


OF_THE_SERVED_FILE = ("api", "credentials", "links", "live", "session", "tabs")
"""The tests that need nothing but what `/client.js` exports."""


@pytest.fixture(scope="session")
def compiled(typescript: Path) -> Path:
    """The folder with the source and its tests as JavaScript."""
    run("node", "node_modules/typescript/bin/tsc", "-p", "tsconfig.test.json")
    return typescript / "build"


def pass_in(folder: str, names: Sequence[str]) -> None:
    """Run these tests against real servers, as `npm test` does with all of them."""
    files = [f"build/{folder}/{name}.test.js" for name in names]
    run("node", "--test", "--test-timeout=120000", *files, CHATSTATE_TEST_PYTHON=sys.executable)


def test_its_tests_pass_with_its_source(compiled: Path) -> None:
    names = {path.name.removesuffix(".test.js") for path in (compiled / "test").glob("*.test.js")}
    assert names > set(OF_THE_SERVED_FILE)
    pass_in("test", sorted(names - set(OF_THE_SERVED_FILE)))


def test_its_tests_pass_with_the_file_that_is_served(compiled: Path) -> None:
    """Its names are shorter, and that goes wrong where one of them stands in a text."""
    served = compiled / "served"
    shutil.rmtree(served, ignore_errors=True)
    for folder in ("src", "test"):
        shutil.copytree(compiled / folder, served / folder)
    shutil.copy(SERVED, served / "src" / "index.js")
    pass_in("served/test", OF_THE_SERVED_FILE)


@pytest.mark.usefixtures("built")  # they import the package by its name
def test_the_examples_in_the_docs_have_the_right_types(typescript: Path) -> None:
    folder = typescript / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    blocks = [
        re.findall(r"^```tsx?\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
        for page in ("howto/web-chat.md", "reference/typescript.md")
    ]
    view, (session, service, hook) = blocks[0][0], blocks[1]
    (folder / "view.tsx").write_text(view)
    (folder / "session.ts").write_text(session.replace("http://localhost:3000/client.js", "chatstate"))
    (folder / "service.ts").write_text('import { ApiService } from "chatstate";\n' + service)
    chat = 'import { useChatState } from "chatstate/react";\ntype Chat = { messages: string[] };\n'
    (folder / "hook.tsx").write_text(f"{chat}export function useIt() {{ {hook} return [chat, setChat, session]; }}\n")
    options = {"noEmit": True, "rootDir": ".", "noUnusedLocals": False}
    settings = {"extends": "../../tsconfig.test.json", "compilerOptions": options, "include": ["."], "exclude": []}
    (folder / "tsconfig.json").write_text(json.dumps(settings))
    run("node", "node_modules/typescript/bin/tsc", "-p", "build/docs")


def test_the_chat_of_the_docs_has_fewer_than_20_lines() -> None:
    page = re.search(r"^```html\n(.*?)^```$", (ROOT / "docs/howto/web-chat.md").read_text(), re.MULTILINE | re.DOTALL)
    assert page
    assert page[1].startswith("<!DOCTYPE html>")
    assert len(page[1].splitlines()) < 20


def test_the_package_has_no_dependencies_and_the_lock_names_no_address() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    assert "dependencies" not in package
    assert package["peerDependenciesMeta"] == {"react": {"optional": True}}
    assert all("resolved" not in entry for entry in lock["packages"].values())
    assert "://" not in (FOLDER / "package-lock.json").read_text()


@pytest.mark.usefixtures("built")
def test_the_package_has_what_its_exports_name() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    packed = json.loads(
        re.search(r"^\[.*^\]", run("npm", "pack", "--dry-run", "--json", "--ignore-scripts"), re.M | re.S)[0]
    )
    files = {f"./{file['path']}" for file in packed[0]["files"]}
    assert {target for export in package["exports"].values() for target in export.values()} <= files
    assert {name.split("/")[1] for name in files} <= {"dist", "package.json", "README.md", "LICENSE"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("client")
    with ServerProcess(f"sqlite:///{folder}/chatstate.db", folder) as running:
        yield running


def test_a_server_serves_it_to_pages_and_caches_ask_whether_it_is_new(server: ServerProcess) -> None:
    origin = "http://localhost:5173"
    answer = httpx.get(f"{server.base_url}/client.js", headers={"Origin": origin})
    assert answer.content == SERVED.read_bytes()
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["access-control-allow-origin"] == origin
    tag = answer.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = httpx.get(f"{server.base_url}/client.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert httpx.get(f"{server.base_url}/client.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert httpx.get(f"{server.base_url}/healthz").headers["cache-control"] == "no-store"


PROGRAM = """
import {ApiService, openSession, threeWayMerge} from "./client.mjs";
const state = async () => JSON.parse((await new ApiService().getUserSession("served")).chat_state);
const [one, two] = [1, 2].map(() => openSession("served", {initial: {list: []}, debounce: 1}));
await Promise.all([one.ready, two.ready]);
for (const [name, chat] of Object.entries({one, two})) chat.update(({list}) => ({list: [...list, name]}));
await Promise.all([one.flush(), two.flush()]);
while (one.state.list.length + two.state.list.length < 4) await new Promise((heard) => setTimeout(heard, 5));
one.update((now) => ({...now, long: "x".repeat(1000)}));
await one.flush();
one.update(({list, long}) => ({list: [...list, "patched"], long}));
await one.flush();
console.log((await state()).list.sort().join(), one.status, threeWayMerge([], [1], [2]).join());
await one.delete();
console.log(await new ApiService().getUserSession("served"), one.state.list.length);
one.close(), two.close();
"""


def test_what_is_served_works_and_looks_for_its_server_where_it_came_from(
    typescript: Path, server: ServerProcess, tmp_path: Path
) -> None:
    """Node.js imports from no http address, so the module is told where it came from by changing one line of it."""
    module = SERVED.read_text().replace("import.meta.url", json.dumps(f"{server.base_url}/client.js"))
    (tmp_path / "client.mjs").write_text(module)
    (tmp_path / "program.mjs").write_text(PROGRAM)
    done = subprocess.run(
        ["node", "program.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "one,patched,two saved 2,1\nnull 0\n"
