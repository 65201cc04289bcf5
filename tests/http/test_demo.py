"""The chat page's files: to whom they are shown, and under what policy. What the page does is in tests/browser."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from chatstate import Turn, create_app, create_store
from chatstate.bot import Bot
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.http import demo
from chatstate.model import utc_now
from tests.http.conftest import Serve, Start
from tests.http.credentials import UNLIMITED, make_key
from tests.servers.postgres import poll_until
from tests.servers.process import ServerProcess

FOLDER = Path(demo.__file__).parent / "demo"
PATHS = ["/", "/demo", *(f"/demo/{name}" for name in sorted(demo.FILES))]
NOTICED_WITHIN_SECONDS = 5.0


@pytest.fixture
def nothing(client: httpx.Client) -> bytes:
    """The body of the answer about a path that has no route."""
    return client.get("/nothing-here").content


def test_the_root_leads_to_the_page(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"], answer.content) == (303, "demo", b"")
    page = client.get("/", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/demo")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.head("/demo").status_code == 200


def test_the_page_runs_nothing_but_its_own_scripts(client: httpx.Client) -> None:
    page = client.get("/demo")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.headers["cache-control"] == "no-store", "it says whether the server is open"
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?! type=\"module\" src=)", page.text)
    assert 'data-access="open"' in page.text


@pytest.mark.parametrize("name", sorted(demo.FILES))
def test_each_file_is_sent_once(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/demo/{name}")
    kind = {"js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(f"/demo/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["", "page.html", "none.js", "..%2Fclient.js", "x/page.js"])
def test_what_is_no_file_of_the_page_is_nothing(client: httpx.Client, nothing: bytes, name: str) -> None:
    answer = client.get(f"/demo/{name}")
    assert (answer.status_code, answer.content) == (404, nothing)


def test_the_files_load_nothing_from_elsewhere_and_make_no_html_of_texts() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text()
        assert set(re.findall(r"https?://[\w./-]+", text)) <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(r"(inner|outer|insertAdjacent)HTML|document\.write|\beval\(|\.style\b", text), file.name
        for path in re.findall(r'(?:from|import\() ?"([^"]+)"', text):
            assert path == "../client.js" or path.removeprefix("./") in demo.FILES, path


def test_the_document_names_each_file(client: httpx.Client) -> None:
    parameter = client.get("/openapi.json").json()["components"]["parameters"]["file"]
    assert parameter["schema"]["enum"] == sorted(demo.FILES)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_asked_for", [True, False])
def test_a_server_with_keys_shows_it_only_if_it_was_asked_to(
    start: Start, own_url: str, path: str, is_asked_for: bool
) -> None:
    asyncio.run(make_key(own_url, utc_now()))
    with start(own_url, demo=is_asked_for, rates=UNLIMITED) as server, server.client() as client:
        answer = client.get(path)
        if is_asked_for:
            assert answer.status_code == (303 if path == "/" else 200)
            assert 'data-access="keyed"' in client.get("/demo").text
        else:
            assert answer.status_code == 404
            assert answer.content == client.get("/nothing-here").content
            assert answer.headers.keys() == client.get("/nothing-here").headers.keys()


WHATSAPP = {"app_secret": "secret", "verify_token": "a", "access_token": "b", "phone_number_id": "1", "number": "15550"}


async def silent(_turn: Turn) -> None:
    pass


@pytest.mark.parametrize(
    ("bot", "account", "runs", "continues"),
    [
        (None, {}, "page", "no"),
        (None, WHATSAPP, "page", "no"),
        (silent, {}, "server", "no"),
        (silent, {**WHATSAPP, "number": ""}, "server", "no"),
        (silent, {"number": "15550"}, "server", "no"),
        (silent, WHATSAPP, "server", "yes"),
    ],
)
def test_it_says_whether_the_server_runs_a_bot_and_can_be_reached_on_whatsapp(
    start: Start, own_url: str, bot: Bot | None, account: dict[str, str], runs: str, continues: str
) -> None:
    with start(own_url, bot=bot, whatsapp=WhatsAppAccount(**account)) as server:
        page = httpx.get(f"{server.base_url}/demo").text
    assert f'data-bot="{runs}"' in page
    assert f'data-whatsapp="{continues}"' in page
    assert not re.search(r"\{\w+\}", page), "everything is filled in"


def test_where_anonymous_callers_are_let_in_the_page_wants_a_token_too(start: Start, own_url: str) -> None:
    """It uses routes that the replaced service did not have."""
    settings = {"allow_anonymous": True, "allowed_origins": ["https://chat.example.org"]}
    with start(own_url, **settings) as server:
        assert httpx.get(f"{server.base_url}/demo").status_code == 404
    with start(own_url, **settings, demo=True) as server:
        assert 'data-access="keyed"' in httpx.get(f"{server.base_url}/demo").text


def test_the_first_key_takes_the_page_away_while_the_server_runs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    with ServerProcess(url, tmp_path) as server, httpx.Client(base_url=server.base_url) as client:
        assert client.get("/demo").status_code == 200
        asyncio.run(make_key(url, utc_now()))
        poll_until(lambda: client.get("/demo").status_code == 404, NOTICED_WITHIN_SECONDS)
        assert {client.get(path).status_code for path in PATHS} == {404}


def test_the_flag_keeps_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    asyncio.run(make_key(url, utc_now()))
    with ServerProcess(url, tmp_path, arguments=["--demo"]) as server:
        assert httpx.get(f"{server.base_url}/demo").status_code == 200
        told = f"chat page   {server.base_url.replace('127.0.0.1', 'localhost')}/demo"
        poll_until(lambda: told in server.output, NOTICED_WITHIN_SECONDS)


def test_mounted_it_works_below_its_path(serve: Serve, tmp_path: Path) -> None:
    mounted = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"))
    with serve(Starlette(routes=[Mount("/bot", mounted)], lifespan=mounted.lifespan)) as server:
        page = httpx.get(f"{server.base_url}/bot/", follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, "/bot/demo")
        for path in re.findall(r'(?:src|href)="([\w./]+)"', page.text):
            assert httpx.get(str(page.url.join(path))).status_code == 200
