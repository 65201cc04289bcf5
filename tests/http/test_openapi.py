"""`/openapi.json` and `/docs` say what the route table and the table of error codes say, no more and no less."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from starlette.applications import Starlette
from starlette.routing import Mount

from chatstate import create_app, create_store
from chatstate.http.api import CREDENTIAL_PROBLEMS, PROBLEMS_EVERYWHERE, Endpoint
from chatstate.http.gate import Rates
from chatstate.http.problems import STATUS
from chatstate.http.routes import ENDPOINTS
from chatstate.http.states import SESSION, SESSIONS
from chatstate.http.visits import VISITS
from chatstate.http.whatsapp import WEBHOOK, verify_webhook
from chatstate.keys import Keys
from chatstate.model import SCOPES, VERBS, Scope, utc_now
from chatstate.patches import MEDIA_TYPES
from tests.http.conftest import Serve
from tests.http.credentials import ACCOUNT, beside, echo, link_somebody, signed, verifying
from tools.reference.__main__ import contents
from tools.reference.openapi import document, messages
from tools.reference.page import page

VOID_ELEMENTS = {"meta", "link", "br", "hr", "img", "input", "wbr"}
PERSON = "5f1c9b1e2f3b4a679d0e8d4b"
"""Whom the document has as an example."""

ATTRIBUTES_THAT_LOAD = {"src", "srcset", "action", "background", "data", "poster", "style"}


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server over a SQLite file: these answers do not depend on the store."""
    path = tmp_path_factory.mktemp("openapi") / "chatstate.db"
    with (
        serve(create_app(create_store(f"sqlite:///{path}"))) as server,
        server.client() as client,
    ):
        yield client


class Page(HTMLParser):
    """The page's elements. Fails on tags that do not balance and on ids that are not unique."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(str(attributes["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["style"] else data


@pytest.fixture(scope="module")
def html(client: httpx.Client) -> str:
    return client.get("/docs").text


def test_the_document_is_valid_openapi_3_1(client: httpx.Client) -> None:
    answer = client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document(ENDPOINTS, str(client.base_url).removesuffix("/"))
    assert answer.json()["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(answer.json()).validate()


def test_the_files_of_the_reference_are_up_to_date() -> None:
    for path, text in contents().items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date; make it anew: make reference"


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    spec = document(ENDPOINTS)
    references = set(re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(spec)))
    references |= {("securitySchemes", scheme) for security in _securities(spec) for scheme in security}
    components = {(kind, name) for kind, found in spec["components"].items() for name in found}
    described = {("examples", code) for code in re.findall(r"\d{3} `(\w+)`", spec["info"]["description"])}
    assert references <= components <= references | described


def _securities(spec: dict[str, Any]) -> list[dict[str, list[str]]]:
    """What every operation says of credentials, in one list."""
    return [found for item in spec["paths"].values() for operation in item.values() for found in operation["security"]]


def test_every_link_leads_to_an_operation_that_has_its_parameters() -> None:
    spec = document(ENDPOINTS)
    operations = {
        operation["operationId"]: [
            spec["components"]["parameters"][reference["$ref"].rpartition("/")[2]]
            for reference in operation["parameters"]
        ]
        for item in spec["paths"].values()
        for operation in item.values()
    }
    answers = [
        answer for item in spec["paths"].values() for found in item.values() for answer in found["responses"].values()
    ]
    links = [link for answer in answers for link in answer.get("links", {}).values()]
    assert len(links) > 40
    for link in links:
        has = {f"{parameter['in']}.{parameter['name']}" for parameter in operations[link["operationId"]]}
        wanted = {name for name in has if name.startswith("path.")}
        assert wanted <= link["parameters"].keys() <= has


def test_the_document_has_every_route_and_nothing_else() -> None:
    found = {(method.upper(), path) for path, item in document(ENDPOINTS)["paths"].items() for method in item}
    assert found == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


def test_every_operation_has_every_answer_of_its_route() -> None:
    spec = document(ENDPOINTS)
    for endpoint in ENDPOINTS:
        answers = spec["paths"][endpoint.path][endpoint.method.lower()]["responses"]
        kind = endpoint.credential.kind
        wanted = CREDENTIAL_PROBLEMS if kind == "key" else ()
        everywhere = () if kind == "webhook_signature" else PROBLEMS_EVERYWHERE
        codes = {*endpoint.problems, *everywhere, *wanted}
        assert answers.keys() == {str(status) for status in (*endpoint.answers, *(STATUS[code] for code in codes))}
        problems = [answer["content"].get("application/problem+json") for answer in _with_content(answers)]
        assert {code for problem in problems if problem for code in problem["examples"]} == codes


def _with_content(answers: dict[str, Any]) -> list[Any]:
    return [answer for answer in answers.values() if "content" in answer]


def test_every_operation_has_the_parameters_of_its_route() -> None:
    spec = document(ENDPOINTS)
    for endpoint in ENDPOINTS:
        references = spec["paths"][endpoint.path][endpoint.method.lower()]["parameters"]
        found = [spec["components"]["parameters"][reference["$ref"].rpartition("/")[2]] for reference in references]
        in_path = [parameter["name"] for parameter in found if parameter["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", endpoint.path)
        required = {parameter["name"] for parameter in found if parameter.get("required", False)}
        assert required == {*in_path, *(("hub.mode", "hub.challenge") if endpoint.handler is verify_webhook else ())}


def _operation(method: str, path: str) -> Any:
    return document(ENDPOINTS)["paths"][path][method.lower()]


def test_a_patch_has_a_schema_for_each_media_type_that_the_server_takes() -> None:
    assert _operation("PATCH", SESSION)["requestBody"]["content"].keys() == MEDIA_TYPES.keys()


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        (
            "POST",
            SESSIONS,
            {"200": "ETag Idempotency-Replayed", "201": "ETag Location Idempotency-Replayed"}
            | {"412": "ETag Preference-Applied"},
        ),
        ("POST", "/tokens", {}),
        ("GET", f"{SESSION}/export", {"200": "Content-Disposition"}),
        ("GET", "/users/{userId}/export", {"200": "Content-Disposition"}),
        ("GET", SESSIONS, {"200": "Link"}),
        ("GET", SESSION, {"200": "ETag", "304": "ETag", "412": "ETag"}),
        (
            "PATCH",
            SESSION,
            {"200": "ETag Preference-Applied Idempotency-Replayed", "412": "ETag Preference-Applied"}
            | {"415": "Accept-Patch"},
        ),
        ("DELETE", SESSION, {"200": "Idempotency-Replayed", "412": "ETag Preference-Applied"}),
        ("GET", f"{SESSION}/versions", {"200": "ETag Link"}),
        ("GET", f"{SESSION}/versions/{{version}}", {"200": "ETag"}),
        ("POST", VISITS, {"201": "Location"}),
        ("GET", VISITS, {"200": "Link"}),
        ("PATCH", f"{VISITS}/{{sessionId}}", {"415": "Accept-Patch"}),
        ("POST", f"{SESSION}/messages", {}),
        ("GET", f"{SESSION}/channels", {}),
        ("POST", f"{SESSION}/channels/whatsapp/links", {"201": "Location"}),
        ("DELETE", f"{SESSION}/channels/{{person}}", {}),
    ],
)
def test_an_answer_has_the_headers_that_the_server_sends(method: str, path: str, headers: dict[str, str]) -> None:
    answers = _operation(method, path)["responses"]
    found = {status: " ".join(answer["headers"]) for status, answer in answers.items() if answer["headers"]}
    credentials = {"401": "WWW-Authenticate", "403": "WWW-Authenticate", "429": "Retry-After"}
    assert found == {**headers, **credentials, "503": "Retry-After"}


def test_an_operation_without_a_credential_has_no_problems_of_credentials() -> None:
    answers = _operation("GET", "/readyz")["responses"]
    assert answers.keys() == {"200", "403", "503"}
    assert answers["403"]["headers"] == {}


def test_a_webhook_is_refused_for_its_signature_and_for_nothing_else() -> None:
    for method in ("GET", "POST"):
        answers = _operation(method, WEBHOOK)["responses"]
        assert answers["403"]["content"]["application/problem+json"]["examples"].keys() == {"webhook_refused"}
        assert answers["403"]["headers"] == {}
        assert "401" not in answers


def test_every_error_code_is_in_the_answers_with_its_status_or_in_the_description() -> None:
    spec = document(ENDPOINTS)
    found = set(re.findall(r"(\d{3}) `(\w+)`", spec["info"]["description"]))
    for item in spec["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                codes = answer.get("content", {}).get("application/problem+json", {}).get("examples", ())
                assert bool(codes) == (int(status) >= 400)
                found |= {(status, code) for code in codes}
    assert found == {(str(status), code) for code, status in STATUS.items()}
    assert [messages()[code] for code in ("store_busy", "session_not_found")] == [
        "Too much work is waiting for the store. Nothing was written; try again.",
        "No session that you may see has this id.",
    ]


def test_the_page_shows_every_route_and_every_code(html: str) -> None:
    text = Page(html).text
    for endpoint in ENDPOINTS:
        assert f"{endpoint.method} {endpoint.path}\n" in text
    for code, message in messages().items():
        assert f"{code}{STATUS[code]}" in text
        assert message.replace("`", "") in text


def test_the_page_shows_every_parameter_and_every_header(html: str) -> None:
    page, components = Page(html), document(ENDPOINTS)["components"]
    text = page.text.replace("\n", "")
    for parameter in components["parameters"].values():
        assert parameter["name"] in text
        assert parameter["description"].replace("`", "") in text
    for header in components["headers"].values():
        assert header["description"].replace("`", "") in text
    assert {"sent-if-match", "sent-idempotency-key", "answered-etag", "answered-accept-patch"} <= page.ids


Call = tuple[str, str, dict[str, str], str | None]


def _calls(html: str) -> dict[str, list[Call]]:
    """What the curl lines of the page send, by the operation that they stand at."""
    calls: dict[str, list[Call]] = {}
    for operation, article in re.findall(r'<article aria-labelledby="(\w+)">(.*?)</article>', html, re.DOTALL):
        for line in re.findall(r"<code>(curl .*?)</code>", article, re.DOTALL):
            words = iter(shlex.split(unescape(line).replace("\\\n", " "))[1:])
            method, url, headers, body = "GET", "", {}, None
            for word in words:
                if word == "-X":
                    method = next(words)
                elif word == "-H":
                    name, _, value = next(words).partition(": ")
                    headers[name] = value
                elif word == "-N":
                    assert operation == "watch"
                elif word == "-d":
                    body = next(words)
                else:
                    url = word
            calls.setdefault(operation, []).append((method, url, headers, body))
    return calls


def _send(client: httpx.Client, call: Call) -> httpx.Response:
    method, url, headers, body = call
    return client.request(method, url, headers=headers, content=body)


def test_the_curl_lines_of_the_page_work(serve: Serve, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chatstate.db"
    app = create_app(create_store(url), bot=echo, whatsapp=ACCOUNT)
    with serve(app) as server, server.client() as client:
        app.end_streams()  # an answer that has no end cannot be waited for
        calls = _calls(client.get("/docs").text)
        before = ("save", "create_visit")
        assert {operation: len(lines) for operation, lines in calls.items() if len(lines) != 1} == {"patch": 2}
        for endpoint in ENDPOINTS:
            for call in calls[endpoint.handler.__name__]:
                _send(client, calls["delete"][0])
                for operation in before:
                    if endpoint.handler.__name__ != operation:
                        _send(client, calls[operation][0])
                answer = _send(client, _of_a_webhook(_of_a_person(url, _of_a_link(client, calls, call))))
                assert (call[0], answer.status_code) in {(endpoint.method, status) for status in endpoint.answers}, call


def _of_a_link(client: httpx.Client, calls: dict[str, list[Call]], call: Call) -> Call:
    """The call, of a link that has been made just now if it names one."""
    method, url, headers, body = call
    if "/BCDF" in url:
        code = _send(client, calls["issue_link"][0]).json()["code"]
        url = url.replace("BCDF-GHJK", code).replace("BCDF", code[:4])
    return method, url, headers, body


def _of_a_person(store_url: str, call: Call) -> Call:
    """The call, of somebody who goes on with the session since just now if it names one."""
    method, url, headers, body = call
    if PERSON in url:
        person = asyncio.run(beside(store_url, lambda store: link_somebody(store, "session_12345", utc_now())))
        url = url.replace(PERSON, person)
    return method, url, headers, body


def _of_a_webhook(call: Call) -> Call:
    """The call, as Meta makes it if it is one of Meta's."""
    method, url, headers, body = call
    if WEBHOOK in url:
        url += f"?{verifying()}" if body is None else ""
        headers = {**headers, **signed((body or "").encode())}
    return method, url, headers, body


def test_the_first_curl_line_of_patch_appends_a_message(client: httpx.Client, html: str) -> None:
    calls = _calls(html)
    _send(client, calls["delete"][0])
    assert _send(client, calls["save"][0]).status_code == 201
    assert _send(client, calls["patch"][0]).status_code == 200
    state = json.loads(client.get(calls["load"][0][1]).json()["chat_state"])
    assert state["messages"] == [{"role": "user", "content": "Hello"}]


def test_a_server_that_requires_preconditions_says_so_where_the_document_does(
    serve: Serve, tmp_path: Path, html: str
) -> None:
    store = create_store(f"sqlite:///{tmp_path}/chatstate.db")
    with serve(create_app(store, require_preconditions=True)) as server, httpx.Client() as client:
        server.app.end_streams()
        for endpoint in ENDPOINTS:
            method, url, headers, body = _calls(html)[endpoint.handler.__name__][0]
            url = f"{server.base_url}{httpx.URL(url).raw_path.decode()}"
            answer = client.request(method, url, headers=headers, content=body)
            assert (answer.status_code == 428) == ("precondition_required" in endpoint.problems)


NAMES = {
    "ApiKey": "an API key",
    "SessionToken": "a session token",
    "WebhookSignature": "Meta's signature, in `X-Hub-Signature-256`",
    "VerifyToken": "the verify token, in `hub.verify_token`",
}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.handler.__name__)
def test_the_page_and_the_document_show_the_credential_of_a_route(endpoint: Endpoint, html: str) -> None:
    operation = _operation(endpoint.method, endpoint.path)
    assert isinstance(operation["security"], list)
    assert (operation["security"] == []) == (endpoint.credential.kind in ("none", "link_code"))
    (article,) = re.findall(rf'<article aria-labelledby="{endpoint.handler.__name__}">.*?</article>', html, re.DOTALL)
    assert operation["description"].replace("`", "") in Page(article).text
    for requirement in operation["security"]:
        for scheme, scopes in requirement.items():
            name = NAMES[scheme]
            assert name in operation["description"]
            words = operation["description"].partition(name)[2].partition(" or ")[0]
            assert re.findall("`(\\w+)`", words.partition("With `--allow")[0]) == scopes
    assert ("--allow-anonymous" in operation["description"]) == endpoint.credential.anonymous


def test_the_routes_that_allow_anonymous_opens_are_those_of_the_replaced_service() -> None:
    found = [endpoint.handler.__name__ for endpoint in ENDPOINTS if endpoint.credential.anonymous]
    assert found == ["save", "load", "update", "delete"]


@dataclass
class Keyed:
    """A client that shows nothing by itself, and the keys of its server: `everything`, one `with` and one `without`
    each scope, and one for the sessions of `others`."""

    client: httpx.Client
    everything: str
    with_scope: dict[str, str]
    without_scope: dict[str, str]
    others: str

    def send(self, call: Call, credential: str | None) -> httpx.Response:
        method, url, headers, body = call
        shown = {"Authorization": f"Bearer {credential}"} if credential else {}
        path = httpx.URL(url).raw_path.decode()
        return self.client.request(method, path, headers={**headers, **shown}, content=body)

    def token(self, *verbs: str) -> str:
        body = {"user_session_id": "session_12345", "verbs": verbs}
        answer = self.client.post("/tokens", json=body, headers={"Authorization": f"Bearer {self.everything}"})
        token: str = answer.json()["token"]
        return token


async def _create_keys(url: str) -> tuple[str, dict[str, str], dict[str, str], str]:
    store = create_store(url)
    await store.open()
    await store.migrate()
    keys = Keys(store)

    async def create(scopes: Iterable[Scope], id_prefix: str = "") -> str:
        return (await keys.create("test", utc_now(), tuple(scopes), id_prefix))[1]

    try:
        return (
            await create(SCOPES),
            # Nobody gives what they do not have, so who mints must have something.
            {scope: await create({scope, *(VERBS if scope == "mint" else ())}) for scope in SCOPES},
            {scope: await create(set(SCOPES) - {scope}) for scope in SCOPES},
            await create(SCOPES, "other_"),
        )
    finally:
        await store.close()


@pytest.fixture(scope="module")
def keyed(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A server with keys and without limits."""
    url = f"sqlite:///{tmp_path_factory.mktemp('keyed')}/chatstate.db"
    keys = asyncio.run(_create_keys(url))
    rates = Rates(per_key=0, per_session=0, per_address=0, failures_per_minute=0)
    with (
        serve(create_app(create_store(url), rates=rates, bot=echo, whatsapp=ACCOUNT)) as server,
        server.client() as client,
    ):
        server.app.end_streams()  # an answer that has no end cannot be waited for
        yield Keyed(client, *keys)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.handler.__name__)
def test_the_server_wants_the_credential_that_the_document_names(endpoint: Endpoint, keyed: Keyed, html: str) -> None:
    call = _calls(html)[endpoint.handler.__name__][0]
    if endpoint.credential.kind == "webhook_signature":
        for credential in (None, keyed.everything):
            answer = keyed.send(call, credential)
            assert (answer.status_code, answer.json()["code"]) == (403, "webhook_refused")
        assert keyed.send(_of_a_webhook(call), None).status_code == 200
        return
    wanted = {
        scheme: scopes
        for requirement in _operation(endpoint.method, endpoint.path)["security"]
        for scheme, scopes in requirement.items()
    }
    shown = keyed.send(call, None)
    assert (shown.status_code == 401) == bool(wanted)
    if not wanted:
        return
    assert shown.headers["www-authenticate"] == 'Bearer realm="chatstate"'
    for scope in wanted["ApiKey"]:
        refused = keyed.send(call, keyed.without_scope[scope])
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert f'scope="{scope}"' in refused.headers["www-authenticate"]
    assert keyed.send(call, keyed.with_scope[wanted["ApiKey"][0]]).status_code not in (401, 403)
    with_token = keyed.send(call, keyed.token(*(wanted.get("SessionToken") or VERBS)))
    assert (with_token.status_code in (401, 403)) == ("SessionToken" not in wanted)


def test_a_key_for_other_sessions_gets_answers_that_are_documented(keyed: Keyed, html: str) -> None:
    calls = _calls(html)
    keyed.send(calls["save"][0], keyed.everything)
    for endpoint in ENDPOINTS:
        answer = keyed.send(calls[endpoint.handler.__name__][0], keyed.others)
        if answer.status_code >= 400:
            documented = _operation(endpoint.method, endpoint.path)["responses"][str(answer.status_code)]
            assert answer.json()["code"] in documented["content"]["application/problem+json"]["examples"]


def test_the_page_is_accessible(html: str) -> None:
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("main", "header", "nav", "h1", "title")] == [1, 1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {link for link in links if link != "openapi.json"} <= {f"#{name}" for name in page.ids}


def test_the_page_loads_nothing_and_runs_nothing(client: httpx.Client, html: str) -> None:
    for tag, attributes in Page(html).elements:
        assert tag not in {"script", "iframe", "object", "embed", "img", "link", "base", "form"}
        assert not attributes.keys() & ATTRIBUTES_THAT_LOAD
        assert not any(name.startswith("on") for name in attributes)
    own_address = str(client.base_url).removesuffix("/")
    in_an_example = "https://wa.me"  # which is text, and leads nowhere
    assert set(re.findall(r"https?://[\w.:\[\]-]+", html)) == {own_address, in_an_example}
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_may_not_load_anything_either(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not any("unsafe" in directive or "script-src" in directive for directive in policy)


def test_the_curl_lines_of_the_page_call_the_server_that_was_asked(client: httpx.Client) -> None:
    port = client.base_url.port
    text = Page(client.get("/docs", headers={"Host": f"localhost:{port}"}).text).text
    assert f"curl http://localhost:{port}/chat-state-sessions/session_12345\n" in text


def test_the_page_escapes_what_it_is_given() -> None:
    spec = document(ENDPOINTS, "http://localhost/<script>alert('1')</script>&amp;")
    spec["info"]["description"] = "<script>"
    spec["components"]["schemas"]["SaveBody"]["properties"]["<script>"] = {
        "type": "<script>",
        "description": "<script>",
    }
    html = page(spec)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_mounted_application_describes_itself_where_it_is_mounted(serve: Serve, tmp_path: Path) -> None:
    mounted = create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"))
    with (
        serve(Starlette(routes=[Mount("/bot", mounted)], lifespan=mounted.lifespan)) as server,
        server.client() as client,
    ):
        assert client.get("/bot/openapi.json").json()["servers"] == [{"url": f"{server.base_url}/bot"}]
        assert f"curl {server.base_url}/bot/healthz\n" in Page(client.get("/bot/docs").text).text
