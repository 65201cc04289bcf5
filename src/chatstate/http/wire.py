"""Between HTTP and values: reading ids and bodies from requests, writing records."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, json

from chatstate.errors import (
    BodyTooLarge,
    Finding,
    InvalidJson,
    InvalidRequest,
    UnsupportedMediaType,
)
from chatstate.http.messages import Headers, Request, Response
from chatstate.http.shapes import SessionRecord, SessionSummary, VersionRecord
from chatstate.model import (
    MAX_EXPIRES_IN,
    MAX_STATE_DEPTH,
    Session,
    Summary,
    Version,
    check_chat_state,
    check_user_session_id,
    format_time,
    json_depth,
    parse_time,
    state_size,
    without_surrogates,
)

# --- Reading requests -------------------------------------------------------------------------------------------------


class Limits(Struct, frozen=True):
    """`state_bytes` is the largest state in UTF-8; escapes in JSON may double it on the wire."""

    state_bytes: int = 1 << 20
    require_json: bool = False

    @property
    def body_bytes(self) -> int:
        return 2 * self.state_bytes + 4096


_BROKEN_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


def decode_id(segment: str) -> str:
    """The id of a session in a segment of the raw path. Raises `InvalidRequest`."""
    return decode_segment("user_session_id", segment, check_user_session_id)


def decode_segment(name: str, segment: str, check: Callable[[str], None]) -> str:
    """The text in a segment of the raw path: percent-decoded once, as strict UTF-8, so that no two ids meet in one.

    Raises `InvalidRequest` with this name, also for what `check` says by a ValueError.
    """
    if _BROKEN_PERCENT.search(segment):
        raise InvalidRequest(errors=(Finding(name, "must have two hexadecimal digits after each `%`"),))
    try:
        text = unquote_to_bytes(segment.encode("latin-1")).decode()
        check(text)
    except UnicodeDecodeError:
        raise InvalidRequest(errors=(Finding(name, "must be percent-encoded UTF-8"),)) from None
    except ValueError as error:
        raise InvalidRequest(errors=(Finding(name, str(error)),)) from None
    return text


def encode_id(user_session_id: str) -> str:
    """The id as a segment of a path."""
    return quote(user_session_id, safe="")


def encode_path(path: str) -> str:
    """The path as it stands in addresses."""
    return "/".join(encode_id(segment) for segment in path.split("/"))


Body = TypeVar("Body", bound=Struct)
Value = TypeVar("Value")


async def read_body(
    request: Request, shape: type[Body], most_bytes: int, accepted: Sequence[str] = ("application/json",)
) -> Body:
    """The body as this shape. Raises what is wrong with it: its media type, its size, its JSON, its members."""
    check_media_type(request.headers, accepted)
    body = await request.read(most_bytes)
    if not body:
        raise InvalidJson("The body is empty; send a JSON object.")
    try:
        if not body.isascii():
            body.decode()  # the parsers below look only at the members that they know
        for read in (_strings, _members, _members_with_surrogates):
            try:
                return read(body, shape)
            except msgspec.DecodeError as error:
                failure = error
        raise InvalidJson(_explain(failure))
    except RecursionError:
        raise InvalidJson("The body is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise InvalidJson(_explain(error)) from None


def _strings(body: bytes, shape: type[Body]) -> Body:
    """The members as strings, which nearly every client sends: in one pass, and complete if nothing is wrong."""
    members: Body = json.decode(body, type=_of_strings(shape))
    return members


@cache
def _of_strings(shape: type[Body]) -> type[Body]:
    """The shape with strings for members; a member that is absent is UNSET."""
    members = [(name, str | UnsetType, UNSET) for name in shape.__struct_fields__]
    return cast(type[Body], msgspec.defstruct(shape.__name__, members))


def _members(body: bytes | bytearray, shape: type[Body]) -> Body:
    """The members that the shape knows. A required one that is missing is UNSET: its reader will say so."""
    try:
        return json.decode(body, type=shape)
    except msgspec.ValidationError:
        pass
    try:
        members = json.decode(body, type=dict[str, Raw])
    except msgspec.ValidationError:
        json.decode(body, type=Raw)  # raises when it is no JSON at all
        raise InvalidRequest(errors=(Finding("body", "must be a JSON object"),)) from None
    return shape(**{name: members.get(name, UNSET) for name in shape.__struct_fields__})


def _members_with_surrogates(body: bytes, shape: type[Body]) -> Body:
    """The same for bodies with escapes of lone surrogates, which the parser refuses.

    It is given other escapes of the same length; the members are slices of a buffer that then gets back what was sent.
    """
    buffer = bytearray(without_surrogates(body))
    members = _members(buffer, shape)
    buffer[:] = body
    return members


def check_media_type(headers: Headers, accepted: Sequence[str]) -> str:
    """The media type of the body, in lower case. Raises `UnsupportedMediaType`."""
    media_type, is_utf8 = _media_type(headers.get("content-type"))
    if media_type not in accepted or not is_utf8:
        raise UnsupportedMediaType(f"Send the body as JSON in UTF-8, with `Content-Type: {'` or `'.join(accepted)}`.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Send the body without a Content-Encoding.")
    return media_type


@lru_cache(64)
def _media_type(content_type: str) -> tuple[str, bool]:
    media_type, _, parameters = content_type.partition(";")
    charset = re.search(r'charset\s*=\s*"?([^";\s]+)', parameters, re.IGNORECASE)
    return media_type.strip().lower(), charset is None or charset[1].lower() in ("utf-8", "utf8")


def _explain(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"The body is not UTF-8 (byte {error.start})."
    return f"The body is not valid JSON: {error}."


class Findings:
    """Collects what is wrong with the members of a body, so that one answer can name them all."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []

    def of(self, member: str, read: Callable[..., Value], *given: Any) -> Value:
        """What `read` makes of the member; when it raises ValueError, nothing that will be used."""
        try:
            return read(*given)
        except ValueError as error:
            self.add(member, str(error))
            return cast(Value, None)

    def add(self, member: str, detail: str) -> None:
        self._findings.append(Finding(member, detail))

    def raise_if_any(self) -> None:
        if self._findings:
            raise InvalidRequest(errors=tuple(self._findings))


Member = str | Raw | UnsetType


def read_id(raw: Member) -> str:
    """A member that is an id."""
    user_session_id = read_text(raw)
    check_user_session_id(user_session_id)
    return user_session_id


def read_state(raw: Member, limits: Limits) -> str:
    """A member that is a state: a string as it stands, an object or array as the very slice of the body.

    Raises ValueError for what is neither or breaks a rule, and `BodyTooLarge`.
    """
    document = bytes(raw) if isinstance(raw, Raw) else b""
    if document[:1] in (b"{", b"["):
        _check_size(len(document), limits)
        if json_depth(document) > MAX_STATE_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_STATE_DEPTH} levels; send it as a string instead")
        text = document.decode()
    else:
        text = read_text(raw, "a string, or a JSON object or array")
    check_chat_state(text, limits.require_json)
    _check_size(state_size(text), limits)
    return text


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.state_bytes:
        raise BodyTooLarge(f"The state is larger than {limits.state_bytes} bytes (CHATSTATE_MAX_STATE_BYTES).")


def read_time(raw: Member) -> datetime | None:
    """A member that is a time; None when it is absent or null."""
    if raw is UNSET or (isinstance(raw, Raw) and bytes(raw) == b"null"):
        return None
    return parse_time(read_text(raw))


def read_expires_in(raw: Member) -> int | None:
    """A member that is an expiry in seconds; 0 for null (no expiry), None when it is absent (as before)."""
    if raw is UNSET:
        return None
    if isinstance(raw, Raw) and bytes(raw) == b"null":
        return 0
    seconds = read_whole_number(raw)
    if seconds is None or not 1 <= seconds <= MAX_EXPIRES_IN:
        raise ValueError(f"must be a whole number of seconds from 1 to {MAX_EXPIRES_IN}, or null for no expiry")
    return seconds


def read_version(raw: Member) -> int:
    """A member that is the number of a version."""
    if raw is UNSET:
        raise ValueError("is required")
    version = read_whole_number(raw)
    if version is None or not 1 <= version < 1 << 63:
        raise ValueError("must be the number of a version")
    return version


def read_whole_number(raw: Member) -> int | None:
    """A whole number, written in any way that JSON has for it: 3, 3.0 or 3e0; a language may have no integers.

    None for everything else, and for what is beyond all bounds.
    """
    try:
        number = json.decode(raw, type=int | float) if isinstance(raw, Raw) else None
    except msgspec.DecodeError:
        return None
    return int(number) if number is not None and number == int(number) else None


def read_text(raw: Member, kind: str = "a string") -> str:
    """A member that is a string."""
    if isinstance(raw, str):
        return raw
    if raw is UNSET:
        raise ValueError("is required")
    if bytes(raw)[:1] != b'"':
        raise ValueError(f"must be {kind}")
    try:
        return json.decode(raw, type=str)
    except msgspec.DecodeError:  # the body as a whole is JSON, so nothing else is left
        raise ValueError("must not contain lone surrogates, which no UTF-8 text can carry") from None


# --- Writing answers --------------------------------------------------------------------------------------------------


def answer(content: Struct | Sequence[Struct], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, json.encode(content), headers=headers or {})


def record(session: Session) -> SessionRecord:
    return SessionRecord(
        session_id=session.session_id,
        user_session_id=session.user_session_id,
        chat_state=session.chat_state,
        last_activity=format_time(session.last_activity),
        created_at=format_time(session.created_at),
        updated_at=format_time(session.updated_at),
        version=session.version,
        expires_at=format_time(session.expires_at) if session.expires_at else UNSET,
    )


def version_record(version: Version) -> VersionRecord:
    last_activity, saved_at = format_time(version.last_activity), format_time(version.saved_at)
    return VersionRecord(version.version, version.chat_state or "", last_activity, saved_at)


def summary(session: Session | Summary) -> SessionSummary:
    """The same without the state."""
    return SessionSummary(
        session_id=session.session_id,
        user_session_id=session.user_session_id,
        last_activity=format_time(session.last_activity),
        created_at=format_time(session.created_at),
        updated_at=format_time(session.updated_at),
        version=session.version,
        expires_at=format_time(session.expires_at) if session.expires_at else UNSET,
    )
