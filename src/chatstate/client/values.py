"""What the client gives: sessions, receipts of writes, and events. And how states become text and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from chatstate.client.errors import InvalidRequest, StateNotJson


def dumps(state: Any) -> str:
    """The state as JSON text (RFC 8259), in as few bytes as possible.

    Raises `InvalidRequest` for what JSON cannot say: other types, NaN and infinity, cycles.
    """
    try:
        text = json.dumps(state, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if not _encodable(text):  # a lone surrogate: it can be said in JSON, but only as an escape
            text = json.dumps(state, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the state cannot be said in JSON: {error}") from error
    return text


def loads(text: str) -> Any:
    """The value of a JSON text. Raises `StateNotJson` for anything else, also for NaN and the like."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StateNotJson(f"the state is not JSON ({error}); read it as `text`") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Session:
    """A chat state as the server has it.

    id             the `user_session_id`
    text           the state as it is stored, by convention JSON text
    etag           its version; hand the session to `save` as `base`, and only this version is replaced
    last_activity  aware, in UTC
    """

    id: str
    text: str = field(repr=False)  # a person's conversation is not for logs
    etag: str
    last_activity: datetime

    @cached_property
    def state(self) -> Any:
        """The state as a Python value. It is made once and yours to change; what is stored changes with `save` only.

        Numbers with a fraction become `float`. Raises `StateNotJson` when `text` is not JSON.
        """
        return loads(self.text)


@dataclass(frozen=True)
class State(Session):
    """An event of `watch`: this is the state now. `version` rises with each write, from 1."""

    version: int


@dataclass(frozen=True)
class Gone:
    """An event of `watch`: there is no session now. `absent`: there is none yet."""

    id: str
    reason: Literal["absent", "deleted", "expired"]


Event = State | Gone


@dataclass(frozen=True)
class Saved:
    """The receipt of a write: it is durable.

    etag        of the new version; hand the receipt to the next `save` as `base`
    version     rises by one with each write, from 1
    expires_at  when the session expires if nobody writes; None: when the server says so
    created     whether this write has made the session
    replayed    whether the server had carried it out before: the answer of that time is repeated, and `etag` may be old
    """

    id: str
    etag: str
    version: int
    last_activity: datetime
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    created: bool
    replayed: bool


def session_of(record: Mapping[str, Any], id: str, etag: str) -> Session:
    """The session in a record of the server. Raises KeyError, TypeError or ValueError when it is not one."""
    return Session(id, _text(record["chat_state"]), etag, _time(record["last_activity"]))


def state_of(record: Mapping[str, Any], id: str, etag: str) -> State:
    """The same for the data of an event."""
    return State(id, _text(record["chat_state"]), etag, _time(record["last_activity"]), int(record["version"]))


def saved_of(record: Mapping[str, Any], id: str, etag: str, *, created: bool, replayed: bool) -> Saved:
    """The receipt in a record of the server. Raises KeyError, TypeError or ValueError when it is not one."""
    expires_at = record.get("expires_at")
    return Saved(
        id,
        etag,
        int(record["version"]),
        _time(record["last_activity"]),
        _time(record["created_at"]),
        _time(record["updated_at"]),
        _time(expires_at) if expires_at else None,
        created,
        replayed,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("chat_state is not a string")
    return value


def _time(value: object) -> datetime:
    if not isinstance(value, str):
        raise TypeError("a time is not a string")
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError("a time has no time zone")
    return time
