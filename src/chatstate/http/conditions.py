"""The header fields that put conditions on a request: entity tags and preconditions (RFC 9110, sections 8.8.3 and
13.1), preferences (RFC 7240), and the idempotency key (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Literal
from urllib.parse import quote, unquote

from chatstate.errors import Finding, InvalidPrecondition, InvalidRequest, PreconditionRequired
from chatstate.http.messages import Headers
from chatstate.model import ABSENT, ANYTHING, PRESENT, Expect, IdempotencyKey, Tag, none_of, one_of

_UNRESERVED = re.compile(r"[0-9A-Za-z-]*")


def etag(tag: Tag) -> str:
    """The strong entity tag of this version of a session."""
    session_id = tag.session_id if _UNRESERVED.fullmatch(tag.session_id) else quote(tag.session_id)
    return f'"{session_id}-{tag.version}"'


_OWN_TAG = re.compile(r'"([0-9A-Za-z-]+)-([1-9][0-9]{0,18})"')
"""One strong tag as `etag` writes it for a UUID: what nearly every client sends."""

_ENTITY_TAG = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|$)')


def precondition(headers: Headers, required: bool = False) -> Expect:
    """What If-Match and If-None-Match together demand of the session; `ANYTHING` without them.

    Raises `PreconditionRequired` (RFC 6585, section 3) when there must be one and there is none.
    """
    if required and not (headers.all("if-match") or headers.all("if-none-match")):
        raise PreconditionRequired
    return if_match(headers) & if_none_match(headers)


def if_match(headers: Headers) -> Expect:
    """What If-Match demands. It compares strongly: a weak tag never matches (RFC 9110, section 8.8.3.2)."""
    tags = _tags(headers, "if-match", weak=False)
    return ANYTHING if tags is None else PRESENT if tags == "*" else one_of(tags)


def if_none_match(headers: Headers) -> Expect:
    """What If-None-Match demands. It compares weakly."""
    tags = _tags(headers, "if-none-match", weak=True)
    return ANYTHING if tags is None else ABSENT if tags == "*" else none_of(tags)


def _tags(headers: Headers, header: str, weak: bool) -> list[Tag] | Literal["*"] | None:
    """The tags of the list that could be ours; None without the header. Empty elements count for nothing (5.6.1.2)."""
    lines = headers.all(header)
    if not lines:
        return None
    if len(lines) == 1 and (match := _OWN_TAG.fullmatch(lines[0])):
        return [Tag(match[1], int(match[2]))]
    text = ",".join(lines).strip()
    if text == "*":
        return "*"
    tags: list[Tag] = []
    found, position = False, 0
    while position < len(text):
        match = _ENTITY_TAG.match(text, position)
        if not match:
            raise _malformed(header)
        position = match.end()
        found = found or match[2] is not None
        tag = _tag(match[2] or "")
        if tag and (weak or not match[1]):
            tags.append(tag)
    if not found:
        raise _malformed(header)  # taken for no header it would leave the write without the protection it asked for
    return tags


_CONTROL = re.compile("[\x00-\x1f]")


def _tag(opaque: str) -> Tag | None:
    """The tag that `etag` writes in just this way."""
    session_id, _, version = opaque.rpartition("-")
    if not (version.isascii() and version.isdigit() and len(version) < 20):
        return None
    tag = Tag(unquote(session_id), int(version))
    if _CONTROL.search(tag.session_id):  # in no session's id, and not in what every store can compare with
        return None
    return tag if etag(tag) == f'"{opaque}"' else None


def _malformed(header: str) -> InvalidPrecondition:
    return InvalidPrecondition(errors=(Finding(header.title(), "must be `*` or a list of quoted entity tags"),))


# --- Preferences ------------------------------------------------------------------------------------------------------


def prefers_representation(headers: Headers) -> bool:
    """Whether the client asks for the session in the answer: `Prefer: return=representation`. The first one counts."""
    for line in headers.all("prefer"):
        for preference in line.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            if name.strip().lower() == "return":
                return value.strip().strip('"').lower() == "representation"
    return False


# --- Idempotency keys -------------------------------------------------------------------------------------------------


_KEY = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})')
"""A string of RFC 9651 without escapes, or the same without quotes, as many clients send it."""


def idempotency_key(
    headers: Headers, operation: str, body: bytes = b"", caller: str = "", secret: bytes = b""
) -> IdempotencyKey | None:
    """The key of the request, with the digest of what makes two requests the same: what is done, and with which body.
    Keys of different callers have nothing to do with each other. With a secret the digest tells nobody else anything.

    Preconditions do not count: a client that has lost an answer may well load again before it retries.
    """
    lines = headers.all("idempotency-key")
    if not lines:
        return None
    match = _KEY.fullmatch(lines[0].strip())
    if not match or len(lines) > 1:
        raise InvalidRequest(
            errors=(
                Finding(
                    "Idempotency-Key", "must be one key of 1 to 255 printable ASCII characters, quoted if it has blanks"
                ),
            )
        )
    done = operation.encode() + b"\0" + body
    digest = hmac.digest(secret, done, sha256) if secret else sha256(done).digest()
    return IdempotencyKey(match[1] or match[2], digest, caller)
