"""Random requests, each sent to a real server and to the model, whose answers must agree.

Every request goes to one of two servers over one database. What a rule draws does not depend on what a server has
answered, so a seed always gives the same requests.
"""

from __future__ import annotations

import json
import sys
from asyncio import AbstractEventLoop, gather
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.servers.load import Answer as RawAnswer
from tests.simulate.model import (
    JSON_PATCH,
    MERGE_PATCH,
    Answer,
    Chosen,
    Model,
    Session,
    Settings,
    Version,
    Write,
)
from tests.simulate.servers import START, Deployment

SESSIONS = "/chat-state-sessions"
DAY = 86_400

SETTINGS = (
    Settings(history=3, idle_seconds=7 * DAY),
    Settings(),
    Settings(history=3, require_preconditions=True),
)

IDS = ("aB", "a_é/%", "\uffff", "😀")  # in UTF-16 the last one comes before the one before it
PREFIXES = ("", "", "", "a", "a_", "A", "%", "\uffff")
STATES = (
    '{"messages": [], "step": 1}',
    '{"messages": ["Grüße 😀"], "price": 1.50, "big": 18446744073709551616}',
    "[1, 2]",
    '"text"',
    "not JSON",
    "",
    '{"twice": 1, "twice": 2}',
    r'["\ud800"]',
    "too large " * 50,
)
TIMES = ("2000-01-01T00:00:00Z", "1999-12-31T23:59:59.999Z", "2000-01-01T01:00:00.000001+01:00", "9999-12-31T23:59:59Z")
PATCHES: tuple[tuple[str, Any], ...] = (
    (JSON_PATCH, [{"op": "add", "path": "/messages/-", "value": "m"}]),
    (JSON_PATCH, [{"op": "test", "path": "/step", "value": 1.0}, {"op": "replace", "path": "/step", "value": 2}]),
    (JSON_PATCH, [{"op": "add", "path": "/0", "value": {}}, {"op": "remove", "path": "/1"}]),
    (JSON_PATCH, [{"op": "replace", "path": "", "value": {"messages": []}}]),
    (JSON_PATCH, [{"op": "add", "path": "/note"}]),
    (JSON_PATCH, []),
    (MERGE_PATCH, {"step": 2, "messages": None}),
    (MERGE_PATCH, {"price": {"net": 1.0, "gross": None}}),
    (MERGE_PATCH, {"note": "too large " * 50}),
    (MERGE_PATCH, ["whole"]),
)


@dataclass(frozen=True)
class How:
    """How a write is sent.

    server      to which one of the two
    condition   what the client demands of the session
    key         the idempotency key
    prefer      whether it wants to see the session in the answer
    twice       the same request goes to the other server at the same time
    after       how many seconds pass before
    """

    server: int = 0
    condition: str = "nothing"
    key: str | None = None
    prefer: bool = False
    twice: bool = False
    after: int = 0


CONDITIONS = {
    "nothing": (None, None),
    "current": ("{current}", None),
    "stale": ("{stale}", None),
    "one of": ("{stale}, {current}", None),
    "foreign": ('"00000000-0000-4000-8000-000000000000-1"', None),
    "there": ("*", None),
    "absent": (None, "*"),
    "changed": (None, "{current}"),
    "both": ("{current}", "{stale}"),
}
"""If-Match and If-None-Match."""

FIRST, LAST = "the first that is there", "the last that is there"
ids = st.sampled_from(IDS)
ids_mostly_there = st.sampled_from([FIRST, FIRST, FIRST, LAST, LAST, *IDS])
servers = st.sampled_from([0, 1])
sweepers = st.sampled_from([None, None, 0, 1])
states = st.sampled_from([*STATES[:3], *STATES])
expiries = st.sampled_from(["as before", "as before", "as before", 60, 60, 30 * DAY, None])
last_activities = st.sampled_from(["absent", None, *TIMES])
hows = st.builds(
    How,
    server=servers,
    condition=st.sampled_from([*["nothing"] * 12, *["current"] * 6, *CONDITIONS]),
    key=st.sampled_from([None, None, None, "k1", "k2"]),
    prefer=st.booleans(),
    twice=st.sampled_from([False, False, False, False, False, True]),
    after=st.sampled_from([0, 1, 1, 30]),
)


class Simulation(RuleBasedStateMachine):
    """One example. It leaves empty tables behind."""

    def __init__(self, loop: AbstractEventLoop, deployment: Deployment) -> None:
        super().__init__()
        self._loop, self._deployment = loop, deployment
        self._etags: dict[str, list[str]] = {}
        self._session_ids: list[str] = []
        self._keyed: list[Write] = []
        self._loop.run_until_complete(self._deployment.begin_again())

    @initialize(
        settings=st.sampled_from([SETTINGS[0], SETTINGS[0], SETTINGS[0], *SETTINGS[1:]]),
        names=st.sampled_from([IDS, IDS[:3], IDS[:2], ()]),
        restarts=st.sampled_from([False, False, False, False, False, True]),
    )
    def begin(self, settings: Settings, names: tuple[str, ...], restarts: bool) -> None:
        """A server with these settings has sessions with these names.

        restarts: whether it may be restarted; that takes as long as twenty requests.
        """
        self._servers = self._deployment.pair(settings)
        self._model = Model(settings, START)
        self._restarts = restarts
        for name, state, expires_in in zip(names, STATES, ["as before", 60, 30 * DAY, 60], strict=False):
            self.save(name, state, "absent", expires_in, How(condition="absent"))

    # --- Writes -------------------------------------------------------------------------------------------------------

    @rule(name=ids, state=states, last_activity=last_activities, expires_in=expiries, how=hows)
    def save(self, name: str, state: str, last_activity: str | None, expires_in: int | str | None, how: How) -> None:
        user_session_id = self._id(name)
        body = {"user_session_id": user_session_id, "chat_state": state} | _times(last_activity, expires_in)
        self._write("save", user_session_id, how, body)

    @rule(name=ids_mostly_there, state=st.none() | states, last_activity=last_activities, expires_in=expiries, how=hows)
    def update(
        self, name: str, state: str | None, last_activity: str | None, expires_in: int | str | None, how: How
    ) -> None:
        body = ({} if state is None else {"chat_state": state}) | _times(last_activity, expires_in)
        self._write("update", self._id(name), how, body)

    @rule(name=ids_mostly_there, patch=st.sampled_from(PATCHES), how=hows)
    def patch(self, name: str, patch: tuple[str, Any], how: How) -> None:
        self._write("patch", self._id(name), how, patch[1], patch[0])

    @rule(name=ids_mostly_there, version=st.sampled_from([1, 1, 2, 2, 3, 4, 6]), how=hows)
    def restore(self, name: str, version: int, how: How) -> None:
        self._write("restore", self._id(name), how, {"version": version})

    @rule(name=ids_mostly_there, how=hows)
    def delete(self, name: str, how: How) -> None:
        self._write("delete", self._id(name), how)

    @precondition(lambda self: self._keyed)
    @rule(back=st.integers(0, 5), how=hows, otherwise=st.sampled_from([False, False, False, True]))
    def retry(self, back: int, how: How, otherwise: bool) -> None:
        """A client sends a request with an idempotency key once more: as it was, or with other conditions.

        otherwise  the same body, as far as it can be, asks for something else
        """
        write = self._keyed[-1 - back % len(self._keyed)]
        if otherwise and write.operation == "update":
            write = replace(write, operation="patch", media_type=MERGE_PATCH)
        if how.key:
            if_match, if_none_match = self._headers(how.condition, write.user_session_id)
            write = replace(write, if_match=if_match, if_none_match=if_none_match, prefer=how.prefer)
        self._send_write(write, how)

    def _id(self, name: str) -> str:
        """The id. One that is there is always found: if there is none, it is saved."""
        if name not in (FIRST, LAST):
            return name
        if not list(self._model.all()):
            self.save(IDS[0], STATES[0], "absent", "as before", How(condition="absent"))
        return list(self._model.all())[0 if name == FIRST else -1].user_session_id

    def _write(
        self, operation: Any, user_session_id: str, how: How, body: Any = None, media_type: str = "application/json"
    ) -> None:
        self._move_clock(how.after)
        if_match, if_none_match = self._headers(how.condition, user_session_id)
        prefer = how.prefer or how.twice
        write = Write(operation, user_session_id, body, media_type, if_match, if_none_match, how.key, prefer)
        if write.key:
            self._keyed.append(write)
        self._send_write(write, how)

    def _headers(self, condition: str, user_session_id: str) -> tuple[str | None, ...]:
        """If-Match and If-None-Match. Where there is no current or earlier version, the tag is of no session at all."""
        session = self._model.find(user_session_id)
        current = session.etag if session else '"gone-1"'
        earlier = [etag for etag in self._etags.get(user_session_id, []) if etag != current]
        stale = earlier[-1] if earlier else '"stale-1"'
        return tuple(form and form.format(current=current, stale=stale) for form in CONDITIONS[condition])

    def _send_write(self, write: Write, how: How) -> None:
        requests = [(self._servers[how.server], _request(write))]
        if how.twice:
            requests.append((self._servers[1 - how.server], _request(write)))
        answers = self._send(requests)
        agreed, problems = None, []
        for order in permutations(answers):
            model, problem = self._carried_out(write, order)
            if problem is None:
                agreed = model
            else:
                problems.append(problem)
        if agreed is None:
            raise AssertionError("\n".join([f"{write}, {how}", *problems]))
        self._model = agreed
        self._note(write.user_session_id)

    def _carried_out(self, write: Write, answers: Sequence[RawAnswer]) -> tuple[Model, str | None]:
        """What the model becomes when it carries out the write so many times, and how its answers differ from these."""
        model = deepcopy(self._model) if len(answers) > 1 else self._model
        for answer in answers:
            chosen = self._chosen(write, answer)
            try:
                _compare(_normal(answer), model.write(write, chosen))
            except AssertionError as error:
                return model, str(error)
        return model, None

    def _chosen(self, write: Write, answer: RawAnswer) -> Chosen:
        """What the server had to choose, as far as it was its choice."""
        if answer.status not in (200, 201) or "idempotency-replayed" in answer.headers:
            return Chosen()
        content = json.loads(answer.body)
        if answer.status == 201 and content["session_id"] not in self._session_ids:
            return Chosen(session_id=str(UUID(content["session_id"])))
        if write.operation == "patch":
            state = content.get("chat_state")
            return Chosen(chat_state=self._state_of(write.user_session_id) if state is None else state)
        return Chosen()

    def _state_of(self, user_session_id: str) -> str:
        answer = self._ask(0, "GET", _path(user_session_id))
        state: str = json.loads(answer.body)["chat_state"]
        return state

    def _note(self, user_session_id: str) -> None:
        """Keep the tags and ids that were given out, to come back with them when they are stale."""
        session = self._model.find(user_session_id)
        if session and session.etag not in (etags := self._etags.setdefault(user_session_id, [])):
            etags.append(session.etag)
        if session and session.session_id not in self._session_ids:
            self._session_ids.append(session.session_id)

    # --- Reads --------------------------------------------------------------------------------------------------------

    @rule(name=ids_mostly_there, server=servers, condition=st.sampled_from(sorted(CONDITIONS)))
    def load(self, name: str, server: int, condition: str) -> None:
        user_session_id = self._id(name)
        if_match, if_none_match = self._headers(condition, user_session_id)
        headers = _given({"If-Match": if_match, "If-None-Match": if_none_match})
        answer = self._ask(server, "GET", _path(user_session_id), headers)
        _compare(_normal(answer), self._model.load(user_session_id, if_match, if_none_match))

    @rule(name=ids_mostly_there, server=servers, limit=st.sampled_from([None, 1, 2]))
    def versions(self, name: str, server: int, limit: int | None) -> None:
        user_session_id = self._id(name)
        self._compare_versions(user_session_id, server, limit)
        for number in range(1, 5):
            answer = self._ask(server, "GET", f"{_path(user_session_id)}/versions/{number}")
            _compare(_normal(answer), self._model.version(user_session_id, number))

    @rule(
        order=st.sampled_from(["id", "activity"]),
        prefix=st.sampled_from(PREFIXES),
        times=st.tuples(*[st.sampled_from([None, None, None, *TIMES])] * 2),
        with_state=st.booleans(),
        limit=st.sampled_from([1, 2, 20]),
        server=servers,
    )
    def list_sessions(
        self, order: str, prefix: str, times: tuple[str | None, str | None], with_state: bool, limit: int, server: int
    ) -> None:
        after, before = times
        query = {"order": order, "prefix": prefix, "active_after": after, "active_before": before, "limit": limit}
        rows = self._pages(server, SESSIONS, query | {"include": "chat_state" if with_state else None}, "sessions")
        moments = [datetime.fromisoformat(time).astimezone(UTC) if time else None for time in times]
        _compare(rows, self._model.list(order, prefix, moments[0], moments[1], with_state))

    @invariant()
    def the_world_agrees(self) -> None:
        if self._initialize_rules_to_run:
            return
        query = {"order": "id", "include": "chat_state"}
        _compare(self._pages(0, SESSIONS, query, "sessions"), self._model.list())

    def teardown(self) -> None:
        try:
            for name in () if self._initialize_rules_to_run or sys.exception() else IDS:
                self._compare_versions(name, 0, None)
        finally:
            self._foreign("DELETE FROM chat_state_sessions")
            self._foreign(f"DELETE FROM {self._table('idempotency_keys')}")

    def _compare_versions(self, user_session_id: str, server: int, limit: int | None) -> None:
        expected = self._model.versions(user_session_id)
        target = f"{_path(user_session_id)}/versions"
        if expected.status != 200:
            _compare(_normal(self._ask(server, "GET", target)), expected)
            return
        first = self._ask(server, "GET", target)
        _compare(first.headers.get("etag"), expected.etag)
        _compare(self._pages(server, target, {"limit": limit}, "versions"), expected.body)

    def _pages(self, server: int, path: str, query: dict[str, Any], member: str) -> list[Any]:
        """The rows of all pages, which each name the next one in two ways."""
        rows: list[Any] = []
        target = f"{path}?{urlencode(_given(query))}"
        while target:
            answer = self._ask(server, "GET", target)
            page = json.loads(answer.body)
            assert answer.status == 200, f"{target}: {page}"
            rows += page[member]
            assert len(rows) < 100, f"{target}: the pages have no end"
            target = answer.headers.get("link", "").removeprefix("<").removesuffix('>; rel="next"')
            assert dict(parse_qsl(urlsplit(target).query)).get("cursor") == page["next_cursor"]
            assert not target or len(page[member]) == query.get("limit")
        return rows

    # --- Time, and what goes on beside the clients --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 59, 3600, DAY, 8 * DAY]), sweeper=sweepers)
    def wait(self, seconds: float, sweeper: int | None) -> None:
        self._move_clock(seconds)
        self._sweep(sweeper)

    @precondition(lambda self: self._model.ends())
    @rule(before=st.booleans(), sweeper=sweepers)
    def wait_for_the_next_end(self, before: bool, sweeper: int | None) -> None:
        """Until something expires or is forgotten, or until just before."""
        end = self._model.ends()[0] - timedelta(microseconds=before)
        self._move_clock((end - self._model.now) / timedelta(seconds=1))
        self._sweep(sweeper)

    def _move_clock(self, seconds: float) -> None:
        self._model.now += timedelta(seconds=seconds)
        self._deployment.clock.now = self._model.now

    def _sweep(self, server: int | None) -> None:
        """Afterwards the tables hold what the model holds, and nothing else."""
        if server is None:
            return
        self._model.sweep()
        expected = [len(self._model.sessions), len(self._model.keys)]
        for _ in range(
            20
        ):  # a server that sweeps by itself just now is not waited for, and keeps its rows a moment longer
            self._loop.run_until_complete(self._servers[server].sweep())
            rows = [self._count("chat_state_sessions"), self._count("idempotency_keys")]
            if rows == expected:
                break
        assert rows == expected, f"{rows} sessions and keys are left in the tables, in place of {expected}"
        gone = set(self._session_ids) - {session.session_id for session in self._model.sessions.values()}
        listed = ", ".join(f"'{session_id}'" for session_id in sorted(gone))
        assert not gone or not self._foreign(f"SELECT 1 FROM {self._table('versions')} WHERE session_id IN ({listed})")

    @precondition(lambda self: self._restarts)
    @rule(server=servers)
    def restart(self, server: int) -> None:
        self._loop.run_until_complete(self._servers[server].restart())

    @precondition(lambda self: not self._deployment.is_sqlite)
    @rule(name=ids_mostly_there, state=states, knows_time=st.booleans())
    def foreign_update(self, name: str, state: str, knows_time: bool) -> None:
        """The service that chatstate replaces writes to the table; it sets `updated_at`, or nobody does."""
        session = self._model.find(self._id(name))
        if not session:
            return
        # Its clock goes on: who writes `updated_at` as it was is taken for one that does not know it.
        self._move_clock(0.001)
        now = self._model.now
        changes = "chat_state = $2, last_activity = $3" + (", updated_at = $3" if knows_time else "")
        before = datetime.now(UTC)
        ((updated_at, expires_at),) = self._foreign(
            f"UPDATE chat_state_sessions SET {changes} WHERE user_session_id = $1 RETURNING updated_at, expires_at",
            *(session.user_session_id, state, now),
        )
        after = datetime.now(UTC)

        def renewed(time: datetime) -> bool:
            """What the database itself renews, it renews by its own clock."""
            return before - timedelta(seconds=1) <= time <= after + timedelta(seconds=1)

        assert updated_at == now if knows_time else renewed(updated_at)
        expires_in = session.expires_in
        assert renewed(expires_at - timedelta(seconds=expires_in)) if expires_in else expires_at is None
        self._model.foreign_write(session, Version(state, now, updated_at, recorded=False), expires_at)
        self._note(session.user_session_id)

    @precondition(lambda self: not self._deployment.is_sqlite)
    @rule(name=ids, state=states)
    def foreign_row(self, name: str, state: str) -> None:
        """The same service deletes a session and creates it anew."""
        user_session_id, now = self._id(name), self._model.now
        self._foreign("DELETE FROM chat_state_sessions WHERE user_session_id = $1", user_session_id)
        ((session_id,),) = self._foreign(
            "INSERT INTO chat_state_sessions (user_session_id, chat_state, last_activity, created_at, updated_at) "
            "VALUES ($1, $2, $3, $3, $3) RETURNING session_id",
            *(user_session_id, state, now),
        )
        session = Session(str(session_id), user_session_id, now)
        self._model.foreign_row(session, Version(state, now, now, recorded=False))
        self._note(user_session_id)

    def _count(self, table: str) -> int:
        ((count,),) = self._foreign(f"SELECT count(*) FROM {self._table(table)}")
        return int(count)

    def _table(self, name: str) -> str:
        return name if self._deployment.is_sqlite or name == "chat_state_sessions" else f"chatstate.{name}"

    def _foreign(self, statement: str, *values: object) -> list[Any]:
        return self._loop.run_until_complete(self._deployment.foreign(statement, *values))

    # --- Sending ------------------------------------------------------------------------------------------------------

    def _ask(self, server: int, method: str, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        return self._send([(self._servers[server], (method, target, None, headers or {}))])[0]

    def _send(self, requests: Sequence[tuple[Any, tuple[str, str, Any, dict[str, str]]]]) -> list[RawAnswer]:
        """The answers to requests that are sent at the same time."""

        async def send() -> list[RawAnswer]:
            if len(requests) == 1:
                ((server, request),) = requests
                return [await server.send(*request)]
            return [*await gather(*(server.send(*request) for server, request in requests))]

        return self._loop.run_until_complete(send())


def _times(last_activity: str | None, expires_in: int | str | None) -> dict[str, Any]:
    """The members of a body, if they are given."""
    members: dict[str, Any] = {} if last_activity == "absent" else {"last_activity": last_activity}
    return members if expires_in == "as before" else members | {"expires_in_seconds": expires_in}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _path(user_session_id: str) -> str:
    return f"{SESSIONS}/{quote(user_session_id, safe='')}"


def _request(write: Write) -> tuple[str, str, Any, dict[str, str]]:
    """The method, the target, the body and the header fields."""
    path = _path(write.user_session_id)
    method, target = {
        "save": ("POST", SESSIONS),
        "update": ("PUT", path),
        "patch": ("PATCH", path),
        "restore": ("POST", f"{path}/restore"),
        "delete": ("DELETE", path),
    }[write.operation]
    headers = {
        "Content-Type": write.media_type,
        "If-Match": write.if_match,
        "If-None-Match": write.if_none_match,
        "Idempotency-Key": write.key,
        "Prefer": "return=representation" if write.prefer else None,
    }
    return method, target, write.body, _given(headers)


def _normal(answer: RawAnswer) -> Answer:
    """What is compared of an answer."""
    headers = answer.headers
    body: Any = json.loads(answer.body) if answer.body else None
    if headers.get("content-type") == "application/problem+json":
        assert body["status"] == answer.status
        body = _given({"code": body["code"], "current": body.get("current")})
    location = headers.get("location")
    return Answer(
        answer.status,
        body,
        headers.get("etag"),
        headers.get("idempotency-replayed") == "true",
        location and unquote(location.removeprefix(f"{SESSIONS}/")),
        headers.get("preference-applied"),
    )


def _compare(actual: object, expected: object) -> None:
    if actual != expected:
        raise AssertionError(f"the server:  {actual}\nshould have: {expected}")
