"""What handlers work with, and the rows of the route table that name them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct

from chatstate.bot import Bot
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.http.browsers import Doors
from chatstate.http.gate import Credential, Gate, Rates
from chatstate.http.messages import Request, Response
from chatstate.http.wire import Limits, decode_id
from chatstate.inbox import Inbox
from chatstate.links import Links
from chatstate.live import Live
from chatstate.model import Retention
from chatstate.privacy import Privacy
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.turns import TurnSettings
from chatstate.visits import Visits


class Options(Struct, frozen=True, kw_only=True):
    """What an application was told, beside its store; `create_app` says what each means."""

    limits: Limits
    retention: Retention
    doors: Doors
    rates: Rates
    trusted_proxies: tuple[str, ...]
    allow_anonymous: bool
    require_preconditions: bool
    token_ttl: timedelta
    token_renewable: timedelta
    keep_visits: bool
    demo: bool
    link_page: str | None
    bot: Bot | None
    turns: TurnSettings
    whatsapp: WhatsAppAccount
    audit: Callable[[str], None] | None
    require_keys: bool
    first_key: Callable[[str], None] | None


class Api(Struct):
    """What the handlers work with.

    digest_key  that of the digests of requests with idempotency keys; empty where states do not lie encrypted
    """

    sessions: Sessions
    visits: Visits
    privacy: Privacy
    links: Links
    inbox: Inbox
    live: Live
    store: Store
    options: Options
    gate: Gate
    clock: Callable[[], datetime]
    digest_key: bytes = b""

    def own(self, request: Request, user_session_id: str) -> str:
        """The id under which the caller's request goes on (see `Caller.own`); counts it, too."""
        request.session = user_session_id
        self.gate.count_session(request.caller, user_session_id)
        return request.caller.own(user_session_id)

    def path_id(self, request: Request) -> str:
        """The same for the id in the path."""
        return self.own(request, decode_id(request.params["userSessionId"]))


Handler = Callable[[Api, Request], Awaitable[Response]]


class Endpoint(Struct, frozen=True):
    """One row of the route table; the OpenAPI document is made from it.

    credential  what the route wants to be shown: a route without one cannot be made
    body        the shape of the body, or one for each media type that it may have
    answers     the shape of each success, or a list of it; for some only a media type, or None for an answer without a
                body
    problems    the codes of the errors that it has beside `PROBLEMS_EVERYWHERE`
    parameters  names of header fields and query parameters, as they stand in the OpenAPI document's components
    may_be_empty  whether the body may be left out
    """

    method: str
    path: str
    credential: Credential
    handler: Handler
    tag: str
    body: type[Struct] | Mapping[str, Any] | None
    answers: Mapping[int, type[Struct] | type[list[Any]] | str | None]
    problems: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    may_be_empty: bool = False


PROBLEMS_EVERYWHERE = ("forbidden_host", "forbidden_address", "forbidden_origin", "forbidden_proxy")
"""What every route refuses."""

CREDENTIAL_PROBLEMS = ("unauthorized", "token_expired", "forbidden", "too_many_requests")
"""What every route refuses that wants a credential."""

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
