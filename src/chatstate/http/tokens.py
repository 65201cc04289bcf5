"""The handlers of session tokens: minting, renewing, revoking."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, json
from msgspec.structs import replace

from chatstate.access import Caller
from chatstate.errors import Forbidden, TokenExpired
from chatstate.http.api import BODY_PROBLEMS, STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import key_or_token
from chatstate.http.messages import Request, Response
from chatstate.http.shapes import Message, UserSessionId
from chatstate.http.states import SESSION
from chatstate.http.wire import Findings, Member, answer, read_body, read_id, read_whole_number
from chatstate.model import LONGEST_TTL, VERBS, Scope, format_time
from chatstate.tokens import Claims, expiry_of, new_claims

TOKENS = "/tokens"

_MOST_BYTES = 1 << 14
_ID_BYTES = 24
"""What is random in an id that the server makes: 192 bits."""

DEFAULT_VERBS: tuple[Scope, ...] = ("read", "write", "delete")


class MintBody(Struct):
    """Which token is wanted. All members may be absent."""

    user_session_id: UserSessionId | UnsetType = UNSET
    verbs: (
        Annotated[
            Raw,
            Meta(
                description=(
                    "What the token's holder may do with the session. Absent: read, write and delete, as far as the "
                    "caller may."
                ),
                extra_json_schema={
                    "type": "array",
                    "items": {"enum": list(VERBS)},
                    "minItems": 1,
                },
            ),
        ]
        | UnsetType
    ) = UNSET
    ttl_seconds: (
        Annotated[
            Raw,
            Meta(
                description="For how long it is valid. At most, and by default, what CHATSTATE_TOKEN_TTL_SECONDS says.",
                extra_json_schema={"type": "integer", "minimum": 1, "maximum": int(LONGEST_TTL.total_seconds())},
            ),
        ]
        | UnsetType
    ) = UNSET


class MintedToken(Struct):
    """A session token."""

    token: Annotated[str, Meta(description="What the browser sends as `Authorization: Bearer …`.")]
    user_session_id: Annotated[str, Meta(description="The session that it is for; a new id if none was given.")]
    expires_at: Annotated[
        str, Meta(description="From when on it is void (RFC 3339).", extra_json_schema={"format": "date-time"})
    ]


async def mint(api: Api, request: Request) -> Response:
    """Mint a session token, for a browser to work with one session and no other; or renew the one that is shown."""
    body = await read_body(request, MintBody, _MOST_BYTES) if await request.read(_MOST_BYTES) else MintBody()
    findings = Findings()
    given = body.user_session_id is not UNSET
    user_session_id = findings.of("user_session_id", read_id, body.user_session_id) if given else None
    verbs = findings.of("verbs", _read_verbs, body.verbs)
    longest = int(api.options.token_ttl.total_seconds())
    seconds = findings.of("ttl_seconds", _read_ttl, body.ttl_seconds, longest)
    findings.raise_if_any()
    claims = _claims(api, request.caller, user_session_id, verbs, timedelta(seconds=seconds))
    request.session = claims.sub
    api.gate.count_session(request.caller, claims.sub)
    token = await api.gate.access.tokens.mint(claims, api.clock())
    return answer(MintedToken(token, claims.sub, format_time(expiry_of(claims))), 201)


def _claims(
    api: Api, caller: Caller, user_session_id: str | None, verbs: tuple[Scope, ...] | None, ttl: timedelta
) -> Claims:
    """What the token will say. Nobody gives what they do not have."""
    if caller.claims:
        return _renewed(api, caller.claims, user_session_id, verbs, ttl)
    if "mint" not in caller.scopes:
        raise Forbidden("This API key lacks the scope `mint`.", "mint")
    verbs = verbs or tuple(verb for verb in DEFAULT_VERBS if verb in caller.scopes)
    lacking = [verb for verb in verbs if verb not in caller.scopes]
    if lacking or not verbs:
        scope = lacking[0] if lacking else "read"
        raise Forbidden(f"This API key lacks the scope `{scope}`, so it cannot give it to a token.", scope)
    name = user_session_id or caller.within.prefix + secrets.token_urlsafe(_ID_BYTES)
    if not caller.within.covers(name):
        raise Forbidden(f"This API key is for sessions whose ids begin with `{caller.within.prefix}`.")
    return new_claims(name, verbs, api.clock(), ttl, caller.key_id)


def _renewed(
    api: Api, claims: Claims, user_session_id: str | None, verbs: tuple[Scope, ...] | None, ttl: timedelta
) -> Claims:
    if user_session_id not in (None, claims.sub):
        raise Forbidden("A session token can only be renewed for its own session.", "mint")
    if lacking := [verb for verb in verbs or () if verb not in claims.verbs]:
        raise Forbidden(f"This session token lacks `{lacking[0]}`, so its renewal cannot have it.", lacking[0])
    now = api.clock().timestamp()
    last = int(claims.auth_time) + int(api.options.token_renewable.total_seconds())
    if now >= last:
        raise TokenExpired("The session token has been renewed for as long as this server allows. Get a new one.")
    expires = min(int(now) + int(ttl.total_seconds()), last)
    return replace(claims, verbs=verbs or claims.verbs, iat=now, exp=expires)


async def revoke(api: Api, request: Request) -> Response:
    """Revoke all tokens of a session that were minted until now, for example when its person logs out."""
    caller = request.caller
    if not caller.claims and "mint" not in caller.scopes:
        raise Forbidden("This API key lacks the scope `mint`.", "mint")
    user_session_id = api.path_id(request)
    if user_session_id == request.session:
        await api.gate.access.tokens.revoke(user_session_id, api.clock())
        for person_id in await api.inbox.people.linked(user_session_id, api.clock()):
            await api.inbox.people.unlink(person_id, api.clock())  # they came by a link, which is as good as a token
    else:  # as much work, and nothing is remembered of a session that is not theirs
        await api.gate.access.tokens.forget(user_session_id, api.clock())
        await api.inbox.people.linked(user_session_id, api.clock())
    return answer(Message("Session tokens revoked"))


def _read_verbs(raw: Member) -> tuple[Scope, ...] | None:
    if raw is UNSET:
        return None
    try:
        found = json.decode(raw, type=list[str]) if isinstance(raw, Raw) else []
    except DecodeError:
        found = []
    if not found or not set(found) <= set(VERBS):
        raise ValueError(f"must be an array of some of: {', '.join(VERBS)}")
    return tuple(verb for verb in VERBS if verb in found)


def _read_ttl(raw: Member, longest: int) -> int:
    if raw is UNSET:
        return longest
    seconds = read_whole_number(raw)
    if seconds is None or not 1 <= seconds <= longest:
        raise ValueError(f"must be a whole number of seconds from 1 to {longest} (CHATSTATE_TOKEN_TTL_SECONDS)")
    return seconds


_TAG = "Session tokens"

ENDPOINTS = (
    Endpoint(
        "POST",
        TOKENS,
        key_or_token(None),
        mint,
        _TAG,
        MintBody,
        {201: MintedToken},
        (*BODY_PROBLEMS, *STORE_PROBLEMS),
        may_be_empty=True,
    ),
    Endpoint(
        "DELETE",
        f"{SESSION}/tokens",
        key_or_token(None),
        revoke,
        _TAG,
        None,
        {200: Message},
        ("invalid_request", *STORE_PROBLEMS),
    ),
)
