"""Pages of a collection: `limit`, an opaque `cursor`, and the address of the next page in `Link` (RFC 8288).

Paging is by position, not by number: a cursor says behind which row the next page begins, so a page costs the same
wherever it is, and what is added or removed meanwhile shifts nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from msgspec import json

from chatstate.errors import Finding, InvalidRequest
from chatstate.http.messages import Request

Position = TypeVar("Position")

_MOST_FINDINGS = 20
"""How many findings about parameters one answer names; a query has room for thousands."""

_IN_PATH = "/%:@!$&'()*+,;=~"
"""What may stand in the path of an address as it is, beside letters, digits and `-._` (RFC 3986, section 3.3)."""


def read_parameters(request: Request, known: Collection[str]) -> dict[str, str]:
    """The parameters of the query by name. One that is unknown, or there twice, is an error: nobody means to ask for
    everything by a slip of the pen."""
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest(errors=(Finding("query", "must be percent-encoded UTF-8"),)) from None
    counts = Counter(name for name, _ in pairs)
    findings = [Finding(name, "is given twice") for name, count in counts.items() if count > 1]
    choice = ", ".join(known)
    findings += [Finding(name, f"is unknown; there are: {choice}") for name in counts if name not in known]
    if findings:
        raise InvalidRequest(errors=tuple(findings[:_MOST_FINDINGS]))
    return dict(pairs)


def read_limit(text: str | None, default: int, most: int) -> int:
    """How many rows a page may have. Raises ValueError."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
        raise ValueError(f"must be a number from 1 to {most}")
    return int(text)


def write_cursor(position: Any) -> str:
    """The position as text that clients give back unread."""
    return urlsafe_b64encode(json.encode(position)).decode().rstrip("=")


def read_cursor(text: str | None, shape: type[Position]) -> Position | None:
    """The position that `write_cursor` wrote; None without a cursor. Raises ValueError."""
    if text is None:
        return None
    try:
        return json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=shape)
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise ValueError("must be a cursor that this list has given, for the same order") from None


def next_page(request: Request, parameters: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    """The header that says where the next page is; none when there is none."""
    if cursor is None:
        return {}
    path = quote(request.path.encode("latin-1"), safe=_IN_PATH)  # some clients send `>` and the like as they are
    query = urlencode({**parameters, "cursor": cursor})
    return {"link": f'<{request.mount}{path}?{query}>; rel="next"'}
