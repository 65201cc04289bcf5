"""Everything that can go wrong, as one tree.

    ChatStateError
    ├── InvalidRequest             the request breaks a rule; `errors` names each offending member
    │   ├── InvalidJson            the body is not the JSON that it claims to be
    │   ├── InvalidPrecondition    If-Match or If-None-Match cannot be parsed
    │   └── InvalidPatch           the body is not a patch of the kind that it claims to be
    ├── BodyTooLarge               the body, or the state in it, is over the limit
    ├── UnsupportedMediaType       the body is not application/json in UTF-8
    ├── ForbiddenHost              the Host header does not name this machine
    ├── ForbiddenAddress           the caller is on another machine, and the server has no keys
    ├── ForbiddenOrigin            a page of another site sent the request
    ├── ForbiddenProxy             a proxy has forwarded the request, to a server without keys
    ├── WebhookRefused             a webhook was called by somebody else than its channel
    ├── Unauthorized               no credential, or one that is not valid
    │   └── TokenExpired           a session token whose time is over
    ├── Forbidden                  a valid credential that does not cover this
    ├── TooManyRequests            more requests than the limits allow; `retry_after` says when to try again
    ├── NotFound
    │   ├── SessionNotFound        no session has this id
    │   ├── VersionNotFound        this version of the session is not kept
    │   ├── VisitNotFound          no visit has this id, or this user has none
    │   ├── UserNotFound           nothing is kept about this person
    │   ├── LinkNotFound           no link can be redeemed by this, or is of this session
    │   ├── BotNotFound            this server runs no bot
    │   └── ChannelNotFound        this server has no such channel, or nobody goes on with the session there
    ├── PreconditionFailed         the session is not in the state that the client expects; `current` says which, and
    │                              `session`, if the client wants to see it, shows it
    ├── PreconditionRequired       this server takes no write without a precondition
    ├── IdempotencyKeyReused       the key was used for another request
    ├── StateNotPatchable          the state is not JSON, or is ambiguous where the patch goes
    ├── PatchConflict              the patch does not fit the state
    ├── VisitExists                a visit has this id already
    ├── SendFailed                 a channel has not taken a message; `retry_after` says whether, and when, to try again
    ├── StoreError
    │   ├── StoreUnavailable       the store cannot answer; nothing was written
    │   │   ├── StoreBusy          too much work is waiting
    │   │   │   └── SessionLocked  another program holds this session's row
    │   │   ├── PrivilegeMissing   the database user may not do that
    │   │   └── StoreFull          the disk or the database has no room left
    │   ├── OutcomeUnknown         the connection broke while the store was committing
    │   ├── StateUnreadable        what is there cannot be decrypted with the keys that this server has
    │   └── WriteRefused           the store cannot keep this very value
    └── StartError                 the server cannot start; the message says what mends it
        ├── InvalidSetting         a setting has a value that cannot be used
        ├── StoreUnreachable       the database cannot be opened with what the store URL says
        ├── KeyNotFound            no API key has this id
        ├── KeysRequired           other machines can reach the server, and it has no API key
        └── SchemaMismatch         the database holds tables that this version cannot work with

Each class has a stable `code` that clients may rely on; its docstring's first line is the default message. Which HTTP
status a code becomes is decided in `chatstate.http.problems` and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from chatstate.model import Session, Tag


class Finding(NamedTuple):
    """One offending member of a request: its name (a header's or a JSON member's) and what is wrong with it."""

    member: str
    detail: str


class ChatStateError(Exception):
    """The request could not be carried out."""

    code: ClassVar[str] = "error"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.code = code or cls.code

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or self.code).splitlines()[0])

    @property
    def message(self) -> str:
        return str(self.args[0])


class InvalidRequest(ChatStateError, code="invalid_request"):
    """The request breaks a rule of this API."""

    def __init__(self, message: str | None = None, errors: tuple[Finding, ...] = ()) -> None:
        super().__init__(message or "; ".join(f"{error.member}: {error.detail}" for error in errors) or None)
        self.errors = errors


class InvalidJson(InvalidRequest, code="invalid_json"):
    """The body is not valid JSON (RFC 8259) in UTF-8."""


class InvalidPrecondition(InvalidRequest, code="invalid_precondition"):
    """If-Match and If-None-Match take `*` or a list of quoted entity tags (RFC 9110, section 8.8.3)."""


class InvalidPatch(InvalidRequest, code="invalid_patch"):
    """The body is not a valid patch."""


class BodyTooLarge(ChatStateError, code="too_large"):
    """The chat state is larger than this server accepts."""


class UnsupportedMediaType(ChatStateError, code="unsupported_media_type"):
    """Send the body as JSON in UTF-8, with `Content-Type: application/json`."""

    def __init__(self, message: str | None = None, accept_patch: str = "") -> None:
        super().__init__(message)
        self.accept_patch = accept_patch


class ForbiddenHost(ChatStateError, code="forbidden_host"):
    """This server answers only requests whose Host header names this machine (localhost, 127.0.0.1 or [::1])."""


class ForbiddenOrigin(ChatStateError, code="forbidden_origin"):
    """This server answers only pages that are served from this machine (localhost, 127.0.0.1 or [::1])."""


class ForbiddenAddress(ChatStateError, code="forbidden_address"):
    """This server has no API key yet, so it answers this machine alone: chatstate keys create --name web"""


class ForbiddenProxy(ChatStateError, code="forbidden_proxy"):
    """A proxy has forwarded this request, or it is HTTP/1.0, as proxies speak it; and this server has no API key yet:
    chatstate keys create --name web"""


class WebhookRefused(ChatStateError, code="webhook_refused"):
    """The signature is missing or wrong: this takes what the channel itself has sent, and nothing else."""


class Unauthorized(ChatStateError, code="unauthorized"):
    """This server wants a credential: `Authorization: Bearer …` with an API key or a session token."""


class TokenExpired(Unauthorized, code="token_expired"):
    """The session token has expired. Get a new one from whoever gave you this one (POST /tokens)."""


class Forbidden(ChatStateError, code="forbidden"):
    """The credential does not cover this."""

    def __init__(self, message: str | None = None, scope: str = "") -> None:
        super().__init__(message)
        self.scope = scope


class TooManyRequests(ChatStateError, code="too_many_requests"):
    """Too many requests. Wait for as many seconds as Retry-After says, then try again."""

    def __init__(self, message: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFound(ChatStateError, code="not_found"):
    """There is nothing here."""


class SessionNotFound(NotFound, code="session_not_found"):
    """No session that you may see has this id."""


class VersionNotFound(NotFound, code="version_not_found"):
    """This version of the session is not kept. How many are is set by CHATSTATE_HISTORY."""


class VisitNotFound(NotFound, code="visit_not_found"):
    """There is no such visit."""


class UserNotFound(NotFound, code="user_not_found"):
    """Nothing is kept about a person with this id: no visit names it."""


class LinkNotFound(NotFound, code="link_not_found"):
    """There is no such link, or not any more. Ask for a new one on the device where the chat is open."""


class BotNotFound(NotFound, code="bot_not_found"):
    """This server runs no bot that could answer. Start it with one: chatstate serve --bot package.module:bot"""


class ChannelNotFound(NotFound, code="channel_not_found"):
    """This server has no such channel, or nobody goes on with this session there."""


class PreconditionFailed(ChatStateError, code="precondition_failed"):
    """The session has changed since you read it: load it again, merge, and save with its current ETag."""

    def __init__(self, current: Tag | None, session: Session | None = None, *, expected_absence: bool = False) -> None:
        message = None
        if expected_absence:
            message = "The session exists already, and the request expects that it does not: load it."
        elif not current:
            message = "The session does not exist, and the request expects that it does."
        super().__init__(message)
        self.expected_absence = expected_absence
        self.current = current
        self.session = session


class PreconditionRequired(ChatStateError, code="precondition_required"):
    """No write is taken here without If-Match (the ETag that you read, or `*`) or `If-None-Match: *` (to create)."""


class IdempotencyKeyReused(ChatStateError, code="idempotency_key_reused"):
    """This Idempotency-Key was used for another request to this session. Use a new key for each new request."""


class StateNotPatchable(ChatStateError, code="state_not_patchable"):
    """The state is not JSON that a patch would leave whole. Save it as a whole instead."""


class PatchConflict(ChatStateError, code="patch_conflict"):
    """The patch does not fit the state: a test failed, or a path does not exist. Nothing was changed."""


class VisitExists(ChatStateError, code="visit_exists"):
    """A visit has this session_id already."""


class SendFailed(ChatStateError, code="send_failed"):
    """The channel has not taken the message.

    retry_after  after how many seconds it may be tried again; None: it never can
    holds        whether all messages to this person, or all of the channel, have to wait so long, too
    """

    def __init__(
        self,
        message: str | None = None,
        retry_after: float | None = None,
        holds: Literal["message", "person", "channel"] = "message",
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.holds = holds


class StoreError(ChatStateError, code="store_error"):
    """The store could not carry out the request."""


class StoreUnavailable(StoreError, code="store_unavailable"):
    """The store cannot answer at the moment. Nothing was written; try again."""


class StoreBusy(StoreUnavailable, code="store_busy"):
    """Too much work is waiting for the store. Nothing was written; try again."""


class SessionLocked(StoreBusy, code="session_locked"):
    """Another program holds this session in the database. Nothing was written; try again."""


class StoreFull(StoreUnavailable, code="store_full"):
    """The store has no room left on its disk. Nothing was written."""


class PrivilegeMissing(StoreUnavailable):
    """The database user may not do what it has to do. Nothing was written."""


class OutcomeUnknown(StoreError, code="outcome_unknown"):
    """The connection to the store broke during the commit: the write may or may not be there. Load before you retry."""


class StateUnreadable(StoreError, code="state_unreadable"):
    """The state is encrypted, and cannot be decrypted with the keys that this server has."""

    def __init__(self, message: str | None = None, key_id: str = "") -> None:
        super().__init__(message)
        self.key_id = key_id


class WriteRefused(StoreError, code="write_refused"):
    """The store cannot keep this value."""


class StartError(ChatStateError, code="cannot_start"):
    """The server cannot start."""


class InvalidSetting(StartError, code="invalid_setting"):
    """A setting has a value that cannot be used."""


class StoreUnreachable(StartError, code="store_unreachable"):
    """The database cannot be opened."""


class KeyNotFound(StartError, code="key_not_found"):
    """There is no API key with this id."""


class KeysRequired(StartError, code="keys_required"):
    """Other machines could reach this server, and without an API key everybody may read and change every session."""


class SchemaMismatch(StartError, code="schema_mismatch"):
    """The database holds tables that this version cannot work with."""
