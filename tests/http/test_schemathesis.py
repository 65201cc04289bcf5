"""Schemathesis makes requests from the OpenAPI document, valid and invalid ones, and holds each answer against it.

All of its checks are on. A failure shows the seed that it had; set CHATSTATE_TEST_SEED to replay it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import seed, settings
from hypothesis import strategies as st

from chatstate import create_app, create_store
from chatstate.http.routes import ENDPOINTS
from tests.http.conftest import Serve
from tools.reference.openapi import document

SEED = int(os.environ.get("CHATSTATE_TEST_SEED", "1"))

CONFIG = schemathesis.Config.from_dict(
    {
        "seed": SEED,
        "generation": {
            "max-examples": 150,
            "database": "none",
            # Not HTTP (RFC 9110, section 5.5): the HTTP parser refuses such requests before the application sees them.
            "exclude-header-characters": "".join(map(chr, [*range(32), 127])),
        },
        # A well-formed precondition may fail: 412 is not a refusal of valid data.
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 304, 404, 412]}},
    }
)

_TAG = st.from_regex(r'(W/)?"[!#-~]{0,60}"', fullmatch=True)
schemathesis.openapi.format("entity-tags", st.just("*") | st.lists(_TAG, min_size=1, max_size=3).map(", ".join))


def _schema() -> Any:
    """The document, with a format for tags: without one, Schemathesis also sends `0` as a valid If-Match."""
    spec = document(ENDPOINTS)
    for name in ("IfMatch", "IfNoneMatch"):
        spec["components"]["parameters"][name]["schema"]["format"] = "entity-tags"
    return schemathesis.openapi.from_dict(spec, config=CONFIG)


SCHEMA = _schema()


@SCHEMA.hook
def filter_headers(_context: schemathesis.HookContext, headers: dict[str, str] | None) -> bool:
    """A made-up header of framing makes a request that is not HTTP, which uvicorn refuses before the application."""
    return not {name.lower() for name in headers or ()} & {"content-length", "transfer-encoding"}


@pytest.fixture(autouse=True)
def _print_seed() -> None:
    """Pytest shows it where a test fails."""
    sys.stdout.write(f"CHATSTATE_TEST_SEED={SEED}\n")


@pytest.fixture(scope="module")
def base_url(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server over a SQLite file."""
    with _serving(serve, tmp_path_factory.mktemp("schemathesis")) as address:
        yield address


@contextmanager
def _serving(serve: Serve, folder: Path) -> Iterator[str]:
    with serve(create_app(create_store(f"sqlite:///{folder}/chatstate.db"))) as server:
        yield server.base_url


def _documented_codes(case: schemathesis.Case, status: int) -> set[str]:
    answer = case.operation.definition.raw["responses"].get(str(status), {})
    return set(answer.get("content", {}).get("application/problem+json", {}).get("examples", ()))


def _code_conformance(_context: Any, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """A check of our own: an error has a code that the document lists for this answer."""
    if answer.status_code >= 400 and answer.json()["code"] != "method_not_allowed":
        assert answer.json()["code"] in _documented_codes(case, answer.status_code)


@SCHEMA.parametrize()
def test_an_operation_answers_as_documented(case: schemathesis.Case, base_url: str) -> None:
    case.call_and_validate(base_url=base_url, additional_checks=[_code_conformance])


def test_sequences_of_operations_answer_as_documented(serve: Serve, tmp_path: Path) -> None:
    class Workflow(SCHEMA.as_state_machine()):  # type: ignore[misc]
        """Follows the links of the document: saves, then loads, updates and deletes what it has saved."""

        def setup(self) -> None:
            self.ids: set[str] = set()

        def get_call_kwargs(self, _case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": str(client.base_url)}

        def after_call(self, response: schemathesis.Response, _case: schemathesis.Case) -> None:
            seen.add((response.request.method, response.status_code))
            if response.request.method in ("POST", "PUT") and response.status_code < 300:
                self.ids.add(response.json()["user_session_id"])

        def teardown(self) -> None:
            """Sequences begin with an empty store: what a sequence meets must not depend on those before it."""
            for user_session_id in self.ids:
                client.delete(f"/chat-state-sessions/{quote(user_session_id, safe='')}")

    seen: set[tuple[str, int]] = set()
    sequences = settings(max_examples=50, stateful_step_count=10, deadline=None, database=None)
    with _serving(serve, tmp_path) as address, httpx.Client(base_url=address) as client:
        seed(SEED)(Workflow).run(settings=sequences)
    assert seen >= {("POST", 201), ("PUT", 200), ("GET", 200), ("DELETE", 200)}
