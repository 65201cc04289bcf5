"""What handlers work with, and the rows of the route table that name them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Struct

from chatstate.http.messages import Request, Response
from chatstate.http.wire import Limits
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.visits import Visits


class Api(Struct, frozen=True):
    """What the handlers work with."""

    sessions: Sessions
    visits: Visits
    store: Store
    limits: Limits
    require_preconditions: bool = False


Handler = Callable[[Api, Request], Awaitable[Response]]


class Endpoint(Struct, frozen=True):
    """One row of the route table; the OpenAPI document is made from it.

    body        the shape of the body, or one for each media type that it may have
    answers     the shape of each success, or a list of it; for some only a media type, or None for an answer without a
                body
    problems    the codes of the errors that it has beside `PROBLEMS_EVERYWHERE`
    parameters  names of header fields and query parameters, as they stand in the OpenAPI document's components
    """

    method: str
    path: str
    handler: Handler
    tag: str
    body: type[Struct] | Mapping[str, Any] | None
    answers: Mapping[int, type[Struct] | type[list[Any]] | str | None]
    problems: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


PROBLEMS_EVERYWHERE = ("forbidden_host", "forbidden_origin")
"""What every route refuses."""

STORE_PROBLEMS = (
    "store_error",
    "store_unavailable",
    "store_busy",
    "session_locked",
    "store_full",
    "outcome_unknown",
    "state_unreadable",
)
"""What can keep any request from the store."""

BODY_PROBLEMS = ("invalid_request", "invalid_json", "too_large", "unsupported_media_type", "write_refused")
"""What can be wrong with any body."""
