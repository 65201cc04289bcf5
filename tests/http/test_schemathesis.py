"""Schemathesis makes requests from the OpenAPI document, valid and invalid ones, and holds each answer against it.

All of its checks are on. A failure shows the seed that it had; set CHATSTATE_TEST_SEED to replay it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import requests
import schemathesis
from hypothesis import seed, settings
from hypothesis import strategies as st
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.generation.stateful.state_machine import normalize_name

from chatstate import create_app, create_store
from chatstate.http.gate import Rates
from chatstate.http.paging import read_cursor, write_cursor
from chatstate.http.routes import ENDPOINTS
from chatstate.http.states import SESSIONS
from chatstate.http.tokens import TOKENS
from chatstate.http.visits import VISITS
from chatstate.http.whatsapp import WEBHOOK
from tests.http.conftest import Serve, SettableClock
from tests.http.credentials import ACCOUNT, echo, signed
from tools.reference.openapi import document

SEED = int(os.environ.get("CHATSTATE_TEST_SEED", "1"))


def _config(examples: int) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "generation": {
                "max-examples": examples,
                "database": "none",
                # Not HTTP (RFC 9110, section 5.5): the parser refuses such requests before the application sees them.
                "exclude-header-characters": "".join(map(chr, [*range(32), 127])),
            },
            # Sequences follow the links of the document.
            "phases": {"stateful": {"inference": {"algorithms": []}}},
            # What is well-formed need not fit what the server holds: a precondition may fail (412), a visit be there,
            # or a patch not fit (409), and a key have been used for another request (422). `/` leads on (303). None
            # refuses valid data.
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 303, 304, 404, 409, 412, 422]}},
        }
    )


# --- What the document cannot say in a schema -------------------------------------------------------------------------

_TAG = st.from_regex(r'(W/)?"[!#-~]{0,60}"', fullmatch=True)
_TIME = st.datetimes().map(lambda time: f"{time.isoformat(timespec='microseconds')}Z")
_ID = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..")
)
_VISIT_CURSOR = st.tuples(_TIME, st.uuids().map(str)).map(write_cursor)

PAGES = ["http://localhost:5173/chat?a=b", "https://[::1]", "HTTP://127.0.0.1/"]
"""Which pages a server lets links lead to."""

FORMATS = {
    "entity-tags": st.just("*") | st.lists(_TAG, min_size=1, max_size=3).map(", ".join),
    "preferences": st.sampled_from(["return=representation", 'Return="representation"; a=b', "return=minimal, wait=1"]),
    "list_sessions-cursor": st.tuples(st.sampled_from(["activity", "id"]), _TIME, _ID).map(write_cursor),
    "list_versions-cursor": st.integers(1, (1 << 63) - 1).map(write_cursor),
    "list_visits-cursor": _VISIT_CURSOR,
    "list_visits_of_user-cursor": _VISIT_CURSOR,
}
for _name, _strategy in FORMATS.items():
    schemathesis.openapi.format(_name, _strategy)


def _schema(examples: int, keyed: bool) -> Any:
    """The document, with formats for tags, preferences and each list's cursors: without them, Schemathesis makes up
    other texts too, such as `0` for If-Match. A server without keys wants no credentials."""
    spec = document(ENDPOINTS)
    _want_no_credentials(spec, lambda path: not keyed or path == WEBHOOK)  # what Meta shows is always right: `_of_meta`
    parameters = spec["components"]["parameters"]
    for name in ("IfMatch", "IfNoneMatch"):
        parameters[name]["schema"]["format"] = "entity-tags"
    parameters["Prefer"]["schema"]["format"] = "preferences"
    for item in spec["paths"].values():
        for operation in item.values():
            cursor = f"{operation['operationId']}-cursor"
            if cursor in FORMATS:
                parameters[cursor] = {**parameters["cursor"], "schema": {"type": "string", "format": cursor}}
                references = operation["parameters"]
                references[references.index({"$ref": "#/components/parameters/cursor"})] = {
                    "$ref": f"#/components/parameters/{cursor}"
                }
    spec["components"]["schemas"]["LinkBody"]["properties"]["page"] = {"enum": PAGES}
    for path in (SESSIONS, VISITS):
        _begin_with_a_write(spec["paths"][path])
    schema = schemathesis.openapi.from_dict(spec, config=_config(examples))
    schema.hook(filter_headers)
    schema.hook(filter_case)
    return schema


def _want_no_credentials(spec: dict[str, Any], of: Callable[[str], bool]) -> None:
    for path, item in spec["paths"].items():
        for operation in item.values():
            operation["security"] = [] if of(path) else operation["security"]


def _begin_with_a_write(operations: dict[str, Any]) -> None:
    """Schemathesis begins a sequence with a list, if that leads to anything; but then every list is empty."""
    listed = operations["get"]["responses"]["200"]
    del listed["links"]
    operations["post"]["responses"]["201"]["links"]["list"] = {"operationId": operations["get"]["operationId"]}


def filter_headers(_context: schemathesis.HookContext, headers: dict[str, str] | None) -> bool:
    """A made-up header of framing makes a request that is not HTTP, which uvicorn refuses before the application."""
    return not {name.lower() for name in headers or ()} & {"content-length", "transfer-encoding"}


def filter_case(_context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves out what is valid by itself, but not together: that is 400."""
    return not (_asks_for_too_many_states(case) or _mixes_orders(case) or _moves_into_itself(case))


def _asks_for_too_many_states(case: schemathesis.Case) -> bool:
    query = case.query or {}
    limit = str(query.get("limit"))
    return query.get("include") == "chat_state" and limit.isdigit() and int(limit) > 20


def _mixes_orders(case: schemathesis.Case) -> bool:
    """A cursor of a list in another order."""
    query = case.query or {}
    try:
        position = read_cursor(query.get("cursor"), tuple[str, str, str])
    except (TypeError, ValueError):
        return False
    return position is not None and query.get("order", "activity") != position[0]


def _moves_into_itself(case: schemathesis.Case) -> bool:
    """An operation of a JSON Patch."""
    operations = case.body if isinstance(case.body, list) else []
    return any(
        operation.get("op") == "move" and str(operation.get("path")).startswith(f"{operation.get('from')}/")
        for operation in operations
        if isinstance(operation, dict)
    )


SCHEMA = _schema(100, keyed=False)
KEYED_SCHEMA = _schema(30, keyed=True)


# --- Checks of our own ------------------------------------------------------------------------------------------------


def _documented_codes(case: schemathesis.Case, status: int) -> set[str]:
    answer = case.operation.definition.raw["responses"].get(str(status), {})
    return set(answer.get("content", {}).get("application/problem+json", {}).get("examples", ()))


def _code_conformance(_context: Any, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """An error has a code that the document lists for this answer."""
    if answer.status_code >= 400 and answer.json()["code"] != "method_not_allowed":
        assert answer.json()["code"] in _documented_codes(case, answer.status_code)


def _replay_conformance(_context: Any, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """A write that is sent again with its Idempotency-Key is answered as it was."""
    takes_key = {"$ref": "#/components/parameters/IdempotencyKey"} in case.operation.definition.raw["parameters"]
    is_write = takes_key and case.method == case.operation.method.upper()  # other methods are tried too
    if is_write and "Idempotency-Key" in (case.headers or {}) and answer.status_code < 300:
        shown = {"Authorization": answer.request.headers.get("Authorization", "Bearer none")}
        again = case.call(base_url=answer.request.url.partition("/chat-")[0], headers=shown)
        assert again.headers["idempotency-replayed"] == ["true"]
        assert (again.status_code, again.headers.get("etag")) == (answer.status_code, answer.headers.get("etag"))
        assert again.json() == answer.json()


CHECKS = [_code_conformance, _replay_conformance]


@pytest.fixture(autouse=True)
def _print_seed() -> None:
    """Pytest shows it where a test fails."""
    sys.stdout.write(f"CHATSTATE_TEST_SEED={SEED}\n")


@contextmanager
def _serving(serve: Serve, folder: Path, **settings: Any) -> Iterator[str]:
    """The address of a real server over a SQLite file; its clock stands still, so that nothing expires. Limits are left
    out: they are about how many requests there are, and not about what stands in them."""
    app = create_app(
        create_store(f"sqlite:///{folder}/chatstate.db"),
        history=5,
        clock=SettableClock(),
        token_ttl_seconds=86_400,
        demo=True,
        rates=Rates(per_key=0, per_session=0, per_address=0, failures_per_minute=0),
        bot=echo,
        whatsapp=ACCOUNT,
        **settings,
    )
    with serve(app) as server:
        app.end_streams()  # an answer that has no end cannot be waited for
        yield server.base_url


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        _serving(serve, tmp_path_factory.mktemp("schemathesis")) as address,
        httpx.Client(base_url=address) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def keyed_client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with keys, with the one that may do everything."""
    keys: list[str] = []
    folder = tmp_path_factory.mktemp("schemathesis_keyed")
    with _serving(serve, folder, first_key=keys.append) as address:
        headers = {"Authorization": f"Bearer {keys[0]}"}
        with httpx.Client(base_url=address, headers=headers) as client:
            yield client


def _prepare(case: schemathesis.Case, client: httpx.Client) -> None:
    """What the request is about is there; else most ids would be those of no session and of nobody."""
    given = case.path_parameters or {}
    user_session_id, user_id = given.get("userSessionId"), given.get("userId")
    if isinstance(user_session_id, str):
        state = '{"messages": []}' if len(user_session_id) % 2 else "no JSON"
        client.post(SESSIONS, json={"user_session_id": unquote(user_session_id), "chat_state": state})
    if isinstance(user_id, str):
        client.post(VISITS, json={"user_session_id": "s", "user_id": unquote(user_id)})


def _of_meta(case: schemathesis.Case) -> dict[str, Any]:
    """What Meta shows beside what it asks or posts."""
    if case.operation.path != WEBHOOK:
        return {}
    if case.operation.method.upper() == "GET":
        return {"params": {"hub.verify_token": ACCOUNT.verify_token}}
    sent = case.as_transport_kwargs(base_url="http://localhost")
    body = requests.Request("POST", sent["url"], json=sent.get("json"), data=sent.get("data")).prepare().body or b""
    return {"headers": signed(body.encode() if isinstance(body, str) else body)}


@SCHEMA.parametrize()
def test_an_operation_answers_as_documented(case: schemathesis.Case, client: httpx.Client) -> None:
    _prepare(case, client)
    case.call_and_validate(base_url=str(client.base_url), additional_checks=CHECKS, **_of_meta(case))


@KEYED_SCHEMA.parametrize()
def test_an_operation_of_a_server_with_keys_answers_as_documented(
    case: schemathesis.Case, keyed_client: httpx.Client
) -> None:
    _prepare(case, keyed_client)
    of_meta = _of_meta(case)
    shown = {"Authorization": keyed_client.headers["authorization"], **of_meta.pop("headers", {})}
    case.call_and_validate(base_url=str(keyed_client.base_url), headers=shown, additional_checks=CHECKS, **of_meta)


class _Always:
    """Every link is followed as it stands. Schemathesis would toss a coin, which Hypothesis cannot replay."""

    def use_probability(self, _link: str) -> float:
        return 1.0

    def is_calibrated(self, _link: str) -> bool:
        return True


def _machine(tag: str, first: str) -> Any:
    """Makes sequences of this tag's operations. They begin with a write: what has no id yet is made up, and else most
    would be about sessions that do not exist."""
    machine = SCHEMA.include(tag=tag).build_state_machine(feedback=FeedbackSources(), link_calibration=_Always())
    for name in machine.root_rules - {normalize_name(f"RANDOM -> {first}")}:
        delattr(machine, name)
    machine._root_labels = frozenset({first})
    return machine


@pytest.mark.parametrize(
    ("tag", "first", "sequences", "expected"),
    [
        (
            "Chat state",
            f"POST {SESSIONS}",
            60,
            {("save", 201), ("update", 200), ("patch", 200), ("load", 200), ("delete", 200), ("load", 404)}
            | {("list_sessions", 200), ("list_versions", 200), ("load_version", 200), ("restore", 200)},
        ),
        (
            "Visits",
            f"POST {VISITS}",
            20,
            {("create_visit", 201), ("load_visit", 200), ("change_visit", 200), ("list_visits", 200)}
            | {("list_visits_of_user", 200), ("change_visits_of_user", 200)},
        ),
        ("Session tokens", f"POST {TOKENS}", 10, {("mint", 201), ("revoke", 200)}),
    ],
)
def test_sequences_of_operations_answer_as_documented(
    serve: Serve, tmp_path: Path, tag: str, first: str, sequences: int, expected: set[tuple[str, int]]
) -> None:
    class Workflow(_machine(tag, first)):  # type: ignore[misc]
        """Follows the links of the document: saves, then loads, patches, restores and deletes what it has saved."""

        def setup(self) -> None:
            """Sequences begin with an empty store: what a sequence meets must not depend on those before it."""
            self.server = _serving(serve, Path(mkdtemp(dir=tmp_path)))
            self.address = self.server.__enter__()
            self.keys: set[str] = set()

        def teardown(self) -> None:
            self.server.__exit__(None, None, None)

        def get_call_kwargs(self, _case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": self.address}

        def before_call(self, case: schemathesis.Case) -> None:
            """A key is used once. The answer to a replay tells of the past: that a session was created which is gone,
            or that one was deleted which is there again; to Schemathesis that is a broken promise."""
            key = (case.headers or {}).get("Idempotency-Key")
            if key in self.keys:
                case.headers["Idempotency-Key"] = key = f"key-{len(self.keys)}"
            self.keys.add(str(key))

        def after_call(self, response: schemathesis.Response, case: schemathesis.Case) -> None:
            super().after_call(response, case)
            seen.add((case.operation.definition.raw["operationId"], response.status_code))

        def validate_response(self, response: schemathesis.Response, case: schemathesis.Case, **given: Any) -> None:
            super().validate_response(response, case, additional_checks=CHECKS, **given)

    seen: set[tuple[str, int]] = set()
    seed(SEED)(Workflow).run(
        settings=settings(max_examples=sequences, stateful_step_count=10, deadline=None, database=None)
    )
    assert seen >= expected
