"""What each call does, without I/O: generators that yield what is to be done and are sent what came of it.

    Send   an HTTP request; what comes back is the response, or the error that came in its place
    Pause  some seconds
    Ask    a function of the user; what comes back is its result

`Client` carries them out by blocking, `AsyncClient` in an event loop: the rules are written once, and here.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import httpx

from chatstate.client import wire
from chatstate.client.errors import ClientError, Conflict, MergeConflict, NotFound, Outcome, Unavailable
from chatstate.client.merge import merge
from chatstate.client.values import Saved, Session, dumps, loads
from chatstate.client.wire import Request

Result = TypeVar("Result")


@dataclass(frozen=True)
class Send:
    request: Request


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Ask:
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


Operation = Generator[Send | Pause | Ask, Any, Result]
Base = Session | Saved | str | None

LONGEST_PAUSE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.1
_TEMPORARY = (408, 429, 502, 503, 504)
_LASTING = ("state_unreadable", "store_full")  # no retry of ours mends these
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CONFLICTS = 100
"""So often a change is made anew. Whoever loses has lost to somebody who has won, so many can go on at once."""
_CONFLICTS_AT_ONCE = 2
"""So often without a pause: on what the 412 has brought."""


def back_off(attempt: int, first: float = _FIRST_PAUSE_SECONDS, longest: float = LONGEST_PAUSE_SECONDS) -> float:
    """The seconds to wait after this attempt (from 0): doubled each time, and spread so that clients do not march in
    step."""
    return min(first * 2.0 ** min(attempt, 30), longest) * random.uniform(0.5, 1.0)  # noqa: S311


class Credential:
    """The token, and where the next one comes from."""

    def __init__(self, token: str | Callable[[], Any] | None) -> None:
        self._ask = token if callable(token) else None
        self._token = None if callable(token) else token
        self.renewable = self._ask is not None

    def get(self, refused: str | None = None) -> Operation[str | None]:
        """The token; a new one if the one at hand was `refused`. Another thread may have renewed it meanwhile."""
        if self._ask and self._token in (None, refused):
            self._token = yield Ask(self._ask)
        return self._token


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass
class Editing:
    """A state that is being changed in place, and what it was before."""

    session: Session | None
    state: Any
    before: str


class Calls:
    """The calls of one client: its credential, and how often it tries again."""

    def __init__(self, token: str | Callable[[], Any] | None, retries: int) -> None:
        self.credential = Credential(token)
        self.retries = retries

    def _exchange(self, request: Request) -> Operation[tuple[httpx.Response, Outcome]]:
        """The answer, and whether an earlier try whose answer was lost may have been carried out."""
        attempt, refused = 0, None
        outcome: Outcome = "failed"
        while True:
            token = yield from self.credential.get(refused)
            answer = yield Send(request.with_fields(bearer(token)))
            if isinstance(answer, httpx.Response):
                if answer.status_code == 401 and self.credential.renewable and not refused:
                    refused = token
                    continue
                if not _is_temporary(answer):
                    return answer, outcome
            failure = _failure(answer, request, outcome)
            if attempt >= self.retries:
                raise failure
            outcome = failure.outcome
            yield Pause(max(failure.retry_after or 0.0, back_off(attempt)))
            attempt += 1

    def load(self, id: str) -> Operation[Session | None]:
        response, _ = yield from self._exchange(wire.load_request(id))
        return wire.read_session(response, id)

    def save(
        self,
        id: str,
        text: str,
        base: Base,
        *,
        overwrite: bool = False,
        last_activity: datetime | None = None,
        expires_in: int | None = None,
        key: str | None = None,
    ) -> Operation[Saved]:
        expectations = [wire.PRESENT, wire.ABSENT] * (_CONFLICTS // 2) if overwrite else [expected(id, base)]
        while True:  # an overwrite, too, has a precondition, for servers that demand one
            request = wire.save_request(id, text, expectations.pop(0), last_activity, expires_in, key)
            response, outcome = yield from self._exchange(request)
            if response.status_code != 412 or not expectations:
                return wire.read_saved(response, id, outcome)

    def patch(self, id: str, patch: Any, media_type: str, base: Base, key: str | None) -> Operation[Saved]:
        expects = wire.PRESENT if base is None else expected(id, base)
        response, outcome = yield from self._exchange(wire.patch_request(id, patch, media_type, expects, key))
        try:
            return wire.read_saved(response, id, outcome)
        except Conflict as conflict:
            if base is None:  # all that it demanded was that there is a session
                raise NotFound(f"there is no session {id!r}", status=404) from conflict
            raise

    def append(
        self, id: str, path: str, values: tuple[Any, ...], create: Any, base: Base, key: str | None
    ) -> Operation[Saved]:
        operations = [{"op": "add", "path": f"{path}/-", "value": value} for value in values]
        attempt = 0
        while True:
            try:
                return (yield from self.patch(id, operations, wire.JSON_PATCH, base, key))
            except NotFound:
                if create is None or attempt > self.retries:
                    raise
            # Two requests, so that the key stands for the same append in every delivery of the same message.
            try:
                yield from self.save(id, dumps(create), None)
            except Conflict:
                attempt += 1  # somebody else was quicker; append to what they have made

    def delete(self, id: str, base: Base, key: str | None) -> Operation[bool]:
        expects = wire.PRESENT if base is None else expected(id, base)
        response, outcome = yield from self._exchange(wire.delete_request(id, expects, key))
        try:
            wire.read_deleted(response, id, outcome)
        except Conflict as conflict:
            if conflict.etag:
                raise
            return False
        except NotFound:
            return False
        return True

    def update(
        self, id: str, change: Callable[[Any], Any], default: Callable[[], Any] | None, expires_in: int | None
    ) -> Operation[Session]:
        session, attempt = (yield from self.load(id)), 0
        while True:
            state = starting_state(id, session, default)
            result = yield Ask(change, (state,))
            text = dumps(state if result is None else result)
            try:
                saved = yield from self.save(id, text, session, expires_in=expires_in)
                return Session(id, text, saved.etag, saved.last_activity)
            except Conflict as error:
                conflict = error
            session = yield from self._current(id, conflict, attempt)
            attempt += 1

    def begin_edit(self, id: str, default: Callable[[], Any] | None) -> Operation[Editing]:
        session = yield from self.load(id)
        state = starting_state(id, session, default)
        if not isinstance(state, dict | list):
            raise TypeError(f"edit changes a dict or list in place, and the state is of {type(state)}: use update()")
        return Editing(session, state, dumps(state))

    def finish_edit(self, id: str, editing: Editing, expires_in: int | None) -> Operation[None]:
        text, session, attempt = dumps(editing.state), editing.session, 0
        if text == editing.before:
            return
        base, mine = loads(editing.before), loads(text)
        while True:
            try:
                yield from self.save(id, text, session, expires_in=expires_in)
                return
            except Conflict as error:
                conflict = error
            theirs = yield from self._current(id, conflict, attempt)
            if theirs is None and editing.session:
                raise conflict  # it was deleted, and is not to come back by what was left of it here
            text = _merged(base, mine, theirs)
            session, attempt = theirs, attempt + 1

    def _current(self, id: str, conflict: Conflict, attempt: int) -> Operation[Session | None]:
        """What is there now, to make the change anew on it; raises the conflict when that was tried too often."""
        if attempt >= _CONFLICTS:
            raise conflict
        if conflict.current and attempt < _CONFLICTS_AT_ONCE:
            return conflict.current
        yield Pause(back_off(attempt, first=0.01, longest=0.5))
        return (yield from self.load(id))


def expected(id: str, base: Base) -> dict[str, str]:
    """The precondition for a write that replaces `base`; None: nothing. Raises ValueError for another session's."""
    if isinstance(base, Session | Saved) and base.id != id:
        raise ValueError(f"base is of session {base.id!r}, and this is {id!r}")
    if base is None:
        return wire.ABSENT
    return {"If-Match": base if isinstance(base, str) else base.etag}


def starting_state(id: str, session: Session | None, default: Callable[[], Any] | None) -> Any:
    """The state to change: what was loaded, and `default()` only where the server has said that there is none."""
    if session:
        return loads(session.text)
    if default is None:
        raise NotFound(f"there is no session {id!r}", status=404)
    return copy.deepcopy(default())


def _merged(base: Any, mine: Any, theirs: Session | None) -> str:
    if theirs is None:
        return dumps(mine)
    try:
        return dumps(merge(base, mine, theirs.state))
    except MergeConflict as conflict:
        conflict.etag, conflict.current = theirs.etag, theirs
        raise


def _is_temporary(answer: httpx.Response) -> bool:
    lasting = (wire.problem_of(answer) or {}).get("code") in _LASTING
    soon = (wire.retry_after(answer) or 0.0) <= LONGEST_PAUSE_SECONDS
    return answer.status_code in _TEMPORARY and soon and not lasting


def _failure(answer: httpx.Response | httpx.RequestError, request: Request, outcome: Outcome) -> ClientError:
    """The error for a try that failed for now."""
    if isinstance(answer, httpx.Response):
        return wire.error_of(answer, request.id, outcome)
    writes = request.method != "GET" and not isinstance(answer, _NEVER_SENT)
    detail = f"no answer from the server: {answer or type(answer).__name__}"
    error = Unavailable(detail, outcome="unknown" if writes else outcome)
    error.__cause__ = answer
    return error
