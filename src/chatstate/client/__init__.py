"""The Python client: chat states from a bot or a back end. It imports nothing of the server.

    from chatstate import Client

    with Client("http://localhost:3000") as client, client.edit("session_12345") as state:
        state.setdefault("messages", []).append("Hello")

`blocking` and `asynchronous` do the I/O, and `calls` and `feed` say which; `wire` knows the HTTP contract
(docs/reference/http.md), `values` what comes back, `merge` how two changes become one, `errors` what can go wrong.
The names here are the public ones; docs/reference/python.md describes them.
"""

from __future__ import annotations

from chatstate.client.asynchronous import AsyncClient, AsyncWatch
from chatstate.client.blocking import Client, Watch
from chatstate.client.errors import (
    ClientError,
    Conflict,
    Finding,
    Forbidden,
    InvalidRequest,
    MergeConflict,
    NotFound,
    PatchConflict,
    StateNotJson,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from chatstate.client.values import Event, Gone, Saved, Session, State

__all__ = [
    "AsyncClient",
    "AsyncWatch",
    "Client",
    "ClientError",
    "Conflict",
    "Event",
    "Finding",
    "Forbidden",
    "Gone",
    "InvalidRequest",
    "MergeConflict",
    "NotFound",
    "PatchConflict",
    "Saved",
    "Session",
    "State",
    "StateNotJson",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "Watch",
]
