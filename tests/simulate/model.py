"""What the server has to answer: the rules of sessions over a plain dictionary, as short and as obvious as they can be.

This is the executable form of "never lose a turn". There is one world, one clock that somebody else moves, and no
concurrency: each call is a request that is carried out at once. What is the server's to choose (the id of a new
session, the spelling of a patched document) comes in as `Chosen`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

REMEMBERED_FOR = timedelta(hours=24)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

Body = Any
"""A JSON value."""


class Settings(NamedTuple):
    """The settings of a server that change its answers."""

    history: int = 0
    idle_seconds: int | None = None
    require_preconditions: bool = False
    max_state_bytes: int = 400


class Answer(NamedTuple):
    """What is compared of an answer. Of a problem, the body has only `code`, and `current` if it is there."""

    status: int
    body: Body = None
    etag: str | None = None
    replayed: bool = False
    location: str | None = None
    preference_applied: str | None = None


class Chosen(NamedTuple):
    """What the server was free to choose in its answer to a write."""

    session_id: str | None = None
    chat_state: str | None = None


Operation = Literal["save", "update", "delete", "restore", "patch"]


@dataclass(frozen=True)
class Write:
    """A request that writes. `body` is the JSON that is sent; `if_match` and `if_none_match` are header values."""

    operation: Operation
    user_session_id: str
    body: Body = None
    media_type: str = "application/json"
    if_match: str | None = None
    if_none_match: str | None = None
    key: str | None = None
    prefer: bool = False

    @property
    def meaning(self) -> str:
        """What makes two requests with one key the same."""
        return json.dumps([self.operation, self.media_type, self.body])


@dataclass
class Version:
    """A version that is kept. One that another program has made is recorded only when the next write replaces it."""

    chat_state: str
    last_activity: datetime
    saved_at: datetime
    recorded: bool


@dataclass
class Session:
    """`expires_in` is in seconds; None: it has no expiry of its own."""

    session_id: str
    user_session_id: str
    created_at: datetime
    version: int = 0
    expires_in: int | None = None
    expires_at: datetime | None = None
    kept: dict[int, Version] = field(default_factory=dict)

    @property
    def current(self) -> Version:
        return self.kept[self.version]

    @property
    def etag(self) -> str:
        return f'"{self.session_id}-{self.version}"'

    def summary(self) -> dict[str, Any]:
        """The record without the state."""
        members = {
            "session_id": self.session_id,
            "user_session_id": self.user_session_id,
            "last_activity": text(self.current.last_activity),
            "created_at": text(self.created_at),
            "updated_at": text(self.current.saved_at),
            "version": self.version,
        }
        return members | ({"expires_at": text(self.expires_at)} if self.expires_at else {})

    def record(self) -> dict[str, Any]:
        return self.summary() | {"chat_state": self.current.chat_state}


@dataclass
class Remembered:
    """A success under an idempotency key. `found_state`: its answer shows a state that the request did not bring."""

    meaning: str
    answer: Answer
    forget_at: datetime
    found_state: bool


class Refused(Exception):
    """A rule is broken: the answer is this problem, and nothing changes."""

    def __init__(self, status: int, code: str, session: Session | None = None, show: bool = False) -> None:
        self.answer = Answer(status, {"code": code}, session.etag if session else None)
        if session and show:
            body = {"code": code, "current": session.record()}
            self.answer = self.answer._replace(body=body, preference_applied="return=representation")


class Model:
    """All sessions by id. `now` is the time; whoever holds the clock sets it."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self.settings = settings
        self.now = now
        self.sessions: dict[str, Session] = {}
        self.keys: dict[tuple[str, str], Remembered] = {}

    # --- What is there ------------------------------------------------------------------------------------------------

    def ends_at(self, session: Session) -> datetime | None:
        """When the session expires unless somebody writes: by its own expiry, else by the server's for idle ones."""
        if session.expires_at or self.settings.idle_seconds is None:
            return session.expires_at
        return session.current.saved_at + timedelta(seconds=self.settings.idle_seconds)

    def find(self, user_session_id: str) -> Session | None:
        """The session; an expired one is absent."""
        session = self.sessions.get(user_session_id)
        ends_at = self.ends_at(session) if session else None
        return None if ends_at and ends_at <= self.now else session

    def all(self) -> Iterator[Session]:
        """The sessions, in the order of the bytes of their ids."""
        ids = sorted(self.sessions, key=str.encode)
        return (session for user_session_id in ids if (session := self.find(user_session_id)))

    def ends(self) -> list[datetime]:
        """The coming moments at which something expires or is forgotten."""
        ends = [self.ends_at(session) for session in self.sessions.values()]
        forgotten = [remembered.forget_at for remembered in self.keys.values()]
        return sorted(end for end in [*ends, *forgotten] if end and end > self.now)

    # --- Reads --------------------------------------------------------------------------------------------------------

    def load(self, user_session_id: str, if_match: str | None, if_none_match: str | None) -> Answer:
        try:
            session = self._require(user_session_id)
            if if_match and not matches(if_match, session):
                raise Refused(412, "precondition_failed", session)
        except Refused as refused:
            return refused.answer
        if if_none_match and matches(if_none_match, session):
            return Answer(304, None, session.etag)
        version = session.current
        body = {"chat_state": version.chat_state, "last_activity": text(version.last_activity)}
        return Answer(200, body, session.etag)

    def versions(self, user_session_id: str) -> Answer:
        """All of them, newest first."""
        try:
            session = self._require(user_session_id)
        except Refused as refused:
            return refused.answer
        rows = [
            {
                "version": number,
                "last_activity": text(version.last_activity),
                "saved_at": text(version.saved_at),
                "size": len(version.chat_state.encode()),
            }
            for number, version in sorted(session.kept.items(), reverse=True)
        ]
        return Answer(200, rows, session.etag)

    def version(self, user_session_id: str, number: int) -> Answer:
        try:
            session = self._require(user_session_id)
            version = self._version(session, number)
        except Refused as refused:
            return refused.answer
        body = {
            "version": number,
            "chat_state": version.chat_state,
            "last_activity": text(version.last_activity),
            "saved_at": text(version.saved_at),
        }
        return Answer(200, body, f'"{session.session_id}-{number}"')

    def list(
        self,
        order: str = "id",
        prefix: str = "",
        active_after: datetime | None = None,
        active_before: datetime | None = None,
        with_state: bool = True,
    ) -> list[dict[str, Any]]:
        """The rows of all pages."""
        found = [
            session
            for session in self.all()
            if session.user_session_id.startswith(prefix)
            and (active_after is None or session.current.last_activity >= active_after)
            and (active_before is None or session.current.last_activity < active_before)
        ]
        if order == "activity":
            found.sort(key=lambda one: (one.current.last_activity, one.user_session_id.encode()), reverse=True)
        return [session.record() if with_state else session.summary() for session in found]

    # --- Writes -------------------------------------------------------------------------------------------------------

    def write(self, write: Write, chosen: Chosen) -> Answer:
        """Carry out a request, and give the answer."""
        try:
            return self._write(write, chosen)
        except Refused as refused:
            return refused.answer

    def _write(self, write: Write, chosen: Chosen) -> Answer:
        self._check_body(write)
        if self.settings.require_preconditions and not (write.if_match or write.if_none_match):
            raise Refused(428, "precondition_required")
        remembered = self.keys.get((write.user_session_id, write.key)) if write.key else None
        if remembered and remembered.forget_at > self.now:
            return self._replay(write, remembered)
        session = self._check_preconditions(write)
        answer = self._apply(write, session, chosen)
        if write.key:
            found_state = write.operation == "update" and "chat_state" not in write.body
            forget_at = self.now + REMEMBERED_FOR
            self.keys[write.user_session_id, write.key] = Remembered(write.meaning, answer, forget_at, found_state)
        return answer

    def _check_body(self, write: Write) -> None:
        state = write.body.get("chat_state", "") if write.operation in ("save", "update") else ""
        if len(state.encode()) > self.settings.max_state_bytes:
            raise Refused(413, "too_large")
        if write.media_type == JSON_PATCH and not is_json_patch(write.body):
            raise Refused(400, "invalid_patch")

    def _check_preconditions(self, write: Write) -> Session | None:
        """The session that the write may change; None when it may create one."""
        session = self.find(write.user_session_id)
        if_match = write.if_match is None or matches(write.if_match, session)
        if_none_match = write.if_none_match is None or not matches(write.if_none_match, session)
        if not (if_match and if_none_match):
            raise Refused(412, "precondition_failed", session, show=write.prefer)
        return session if write.operation == "save" else self._require(write.user_session_id)

    def _apply(self, write: Write, session: Session | None, chosen: Chosen) -> Answer:
        if write.operation == "delete":
            del self.sessions[write.user_session_id]
            return Answer(200, {"message": "Chat state session deleted"})
        if session is None:
            assert chosen.session_id, "the server does not say which session it has created"
            session = Session(chosen.session_id, write.user_session_id, self.now)
            self.sessions[write.user_session_id] = session
        if write.operation in ("save", "update"):
            return self._put(write, session)
        if write.operation == "restore":
            state = self._version(session, write.body["version"]).chat_state
        else:
            state = self._patched(write, session.current.chat_state, chosen)
        self._save(session, state, self.now)
        return edited(session, write.prefer)

    def _put(self, write: Write, session: Session) -> Answer:
        if "expires_in_seconds" in write.body:
            session.expires_in = write.body["expires_in_seconds"]
        given = write.body.get("last_activity")
        state = write.body.get("chat_state", session.current.chat_state if session.version else "")
        self._save(session, state, datetime.fromisoformat(given).astimezone(UTC) if given else self.now)
        if session.version > 1:
            return Answer(200, session.record(), session.etag)
        return Answer(201, session.record(), session.etag, location=session.user_session_id)

    def _save(self, session: Session, state: str, last_activity: datetime) -> None:
        """A new version: the expiry is renewed, and of the versions the newest are kept."""
        if session.version:
            session.current.recorded = True
        session.version += 1
        session.kept[session.version] = Version(state, last_activity, self.now, recorded=self.settings.history > 0)
        session.expires_at = self.now + timedelta(seconds=session.expires_in) if session.expires_in else None
        oldest = session.version - max(self.settings.history, 1) + 1
        session.kept = {number: version for number, version in session.kept.items() if number >= oldest}

    def _patched(self, write: Write, state: str, chosen: Chosen) -> str:
        """What the patch makes of the state, in the spelling that the server has chosen."""
        document = parse_patchable(state)
        patch = parse(json.dumps(write.body))
        document = merged(document, patch) if write.media_type == MERGE_PATCH else patched(document, patch)
        if len(json.dumps(document, default=str)) > self.settings.max_state_bytes:
            raise Refused(413, "too_large")
        assert chosen.chat_state is not None, "the patch fits, but the server does not show its result"
        assert literal(parse(chosen.chat_state)) == literal(document), "the patch came to something else"
        return chosen.chat_state

    def _replay(self, write: Write, remembered: Remembered) -> Answer:
        """The same answer again, but for states that are gone; nothing changes."""
        if remembered.meaning != write.meaning:
            raise Refused(422, "idempotency_key_reused")
        answer = remembered.answer._replace(replayed=True)
        session = self.find(write.user_session_id)
        lives = session is not None and answer.body.get("session_id") == session.session_id
        if remembered.found_state and not lives:
            raise Refused(404, "session_not_found")
        if write.operation in ("patch", "restore"):
            summary = {name: value for name, value in answer.body.items() if name != "chat_state"}
            version = session.kept.get(summary["version"]) if session and lives else None
            show = write.prefer and version is not None
            body = summary | {"chat_state": version.chat_state} if show and version else summary
            return answer._replace(body=body, preference_applied="return=representation" if show else None)
        return answer

    def _require(self, user_session_id: str) -> Session:
        session = self.find(user_session_id)
        if session is None:
            raise Refused(404, "session_not_found")
        return session

    def _version(self, session: Session, number: int) -> Version:
        if number not in session.kept:
            raise Refused(404, "version_not_found")
        return session.kept[number]

    # --- What clients do not ask for ----------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what has expired. No answer changes."""
        self.sessions = {session.user_session_id: session for session in self.all()}
        self.keys = {key: remembered for key, remembered in self.keys.items() if remembered.forget_at > self.now}

    def foreign_write(self, session: Session, version: Version, expires_at: datetime | None) -> None:
        """Another program has changed the session's row. It knows nothing of histories: its version is recorded by our
        next write, unless it writes twice, and only our next write makes room."""
        if not session.current.recorded:
            del session.kept[session.version]
        session.version += 1
        session.kept[session.version] = version
        session.expires_at = expires_at

    def foreign_row(self, session: Session, version: Version) -> None:
        """Another program has put a new row in the place of whatever was there."""
        session.version, session.kept = 1, {1: version}
        self.sessions[session.user_session_id] = session


def matches(header: str, session: Session | None) -> bool:
    """Whether the session is in a version that If-Match or If-None-Match names."""
    return session is not None and (header == "*" or session.etag in header.split(", "))


def edited(session: Session, prefer: bool) -> Answer:
    """The answer to a write that the server has worked out: with the state only if the client prefers so."""
    if prefer:
        return Answer(200, session.record(), session.etag, preference_applied="return=representation")
    return Answer(200, session.summary(), session.etag)


def text(time: datetime) -> str:
    """The time as it stands in answers: UTC, with 0, 3 or 6 digits of fraction."""
    seconds, micro = time.strftime("%Y-%m-%dT%H:%M:%S"), time.microsecond
    return seconds + (f".{micro:06}" if micro % 1000 else f".{micro // 1000:03}" if micro else "") + "Z"


# --- Patches (RFC 7396 and RFC 6902) ----------------------------------------------------------------------------------


def parse(document: str) -> Any:
    """A JSON document, numbers as decimals: `1.0` equals `1`, and keeps its digits."""
    return json.loads(document, parse_int=Decimal, parse_float=Decimal)


def parse_patchable(state: str) -> Any:
    """A state as a document: JSON without lone surrogates, and without a name that is there twice.

    The server looks for such names only where the patch goes; the states of the simulation have them on top, if at all.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        document = json.loads(state, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=once)
        json.dumps(document, default=str, ensure_ascii=False).encode()
    except ValueError:
        raise Refused(409, "state_not_patchable") from None
    return document


def literal(document: Any) -> str:
    """The document with its numbers as they were written: `1.0` is not `1` here."""
    return json.dumps(document, default=lambda number: {"number": str(number)}, sort_keys=True)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


_MEMBERS = {"add": {"path", "value"}, "remove": {"path"}, "replace": {"path", "value"}, "test": {"path", "value"}}


def is_json_patch(patch: Body) -> bool:
    """Whether it is one of RFC 6902, of those four operations."""
    return isinstance(patch, list) and all(_MEMBERS[entry["op"]] <= entry.keys() for entry in patch)


def patched(document: Any, patch: Any) -> Any:
    """RFC 6902, section 4."""
    whole = {"": document}
    for entry in patch:
        parent: Any = whole
        *way, last = [name.replace("~1", "/").replace("~0", "~") for name in entry["path"].split("/")]
        for name in way:
            parent = parent[_place(parent, name)]
        place = _place(parent, last, adding=entry["op"] == "add")
        if entry["op"] == "test" and parent[place] != entry["value"]:
            raise Refused(409, "patch_conflict")
        if entry["op"] == "remove":
            del parent[place]
        elif entry["op"] == "add" and isinstance(parent, list):
            parent.insert(place, entry["value"])
        elif entry["op"] in ("add", "replace"):
            parent[place] = entry["value"]
    return whole[""]


def _place(parent: Any, name: str, adding: bool = False) -> Any:
    """The key or index that a part of a pointer means (RFC 6901); it must be there, unless something is added there."""
    if isinstance(parent, dict) and (adding or name in parent):
        return name
    if isinstance(parent, list) and name == "-" and adding:
        return len(parent)
    if isinstance(parent, list) and name.isdigit() and int(name) < len(parent) + adding:
        return int(name)
    raise Refused(409, "patch_conflict")
