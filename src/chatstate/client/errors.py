"""What can go wrong between a client and its server, as one tree.

    ClientError
    ├── InvalidRequest       the server refuses the request as such; `errors` names each offending member
    ├── Unauthorized         no credential, or one that is not valid (any more)
    ├── Forbidden            a valid credential that does not cover this
    ├── NotFound             no session has this id, and the call needs one
    ├── PatchConflict        the patch does not fit the state
    ├── Conflict             somebody else has written meanwhile; `etag` and `current` say what is there now
    │   └── MergeConflict    and both have changed the same place; `paths` names it
    ├── TooLarge             the state is larger than the server accepts
    ├── TooManyRequests      more requests than the limits allow; `retry_after` says when to try again
    ├── Unavailable          the server or its store does not answer; `outcome` says whether the write may be there
    ├── StateNotJson         the state that is there is not JSON; read it as text
    └── UnexpectedAnswer     the answer is not one of chatstate: a wrong address, a proxy, or a defect

Each has a stable `code`: the server's (docs/reference/errors.md), or where no server has answered, the class's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from chatstate.client.values import Session

Outcome = Literal["failed", "unknown"]
"""`failed`: nothing was written. `unknown`: the write may have been carried out."""


class Finding(NamedTuple):
    """One offending member of a request: its name (a header's or a JSON member's) and what is wrong with it."""

    member: str
    detail: str


class ClientError(Exception):
    """A call has failed.

    code         stable, for programs; see docs/reference/errors.md
    status       of the answer (HTTP); None when there was none, or when the client itself has refused
    detail       what is wrong, for people
    outcome      of a write: `"failed"` when nothing was written, `"unknown"` when it may have been carried out
    retry_after  after how many seconds the server wants to be asked again; None when it does not say
    """

    default_code: ClassVar[str] = "error"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.default_code = code or cls.default_code

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        outcome: Outcome = "failed",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.status = status
        self.outcome: Outcome = outcome
        self.retry_after = retry_after

    def __str__(self) -> str:
        unknown = "; it may have been carried out" if self.outcome == "unknown" else ""
        return f"{self.detail} ({self.code}{unknown})"


class InvalidRequest(ClientError, code="invalid_request"):
    """The server refuses the request as such (400, 405, 415, 422, 428 …): it has to be mended. `errors` names each
    offending member, if the server does."""

    errors: tuple[Finding, ...] = ()


class Unauthorized(ClientError, code="unauthorized"):
    """No credential, or one that is not valid (401), also when the `token` function was asked once more."""


class Forbidden(ClientError, code="forbidden"):
    """The credential is valid, and does not cover this; or the server does not answer this machine (403)."""


class NotFound(ClientError, code="session_not_found"):
    """No session has this id, or it is not one of the caller's (404 `session_not_found`). `load` gives None instead."""


class PatchConflict(ClientError, code="patch_conflict"):
    """The patch does not fit the state, for example because a path does not exist (409). Nothing was changed."""


class Conflict(ClientError, code="precondition_failed"):
    """Somebody else has written meanwhile (412). Nothing was written.

    etag     of what is there now; None: nothing is
    current  what is there now; None also when the server could not show it: then load it
    """

    etag: str | None = None
    current: Session | None = None


class MergeConflict(Conflict, code="merge_conflict"):
    """Both have changed the same place, named by `paths` as JSON Pointers (RFC 6901). Nothing was written."""

    paths: tuple[str, ...] = ()


class TooLarge(ClientError, code="too_large"):
    """The state, or what a patch would make of it, is larger than the server accepts (413)."""


class TooManyRequests(ClientError, code="too_many_requests"):
    """More requests than the limits allow (429), and too long a wait for the client to sit it out."""


class Unavailable(ClientError, code="unreachable"):
    """The server cannot be reached, or its store does not answer (503), and the retries are used up.

    This says nothing about what is stored: never take it for "no session".
    """


class StateNotJson(ClientError, code="state_not_json"):
    """The state that is there is not JSON, so it has no value in Python: read it as `text`. It was not changed."""


class UnexpectedAnswer(ClientError, code="unexpected_answer"):
    """The answer is not one that chatstate gives: look at `base_url` and at what stands between. Also a 500."""
