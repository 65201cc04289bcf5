"""The shapes of bodies. The OpenAPI document is made from them.

Members of requests are taken as raw JSON, so that one pass over all of them can name everything that is wrong; what
they must be stands in their schemas, and the rules themselves in `chatstate.model`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from chatstate.model import MAX_EXPIRES_IN, MAX_ID_LENGTH
from chatstate.patches import MAX_OPERATIONS

ID_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_LENGTH,
    "pattern": r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$",
}
UserSessionId = Annotated[
    Raw,
    Meta(
        description="The id under which the bot finds the session again: any text without control characters.",
        examples=["session_12345"],
        extra_json_schema=ID_SCHEMA,
    ),
]
ChatState = Annotated[
    Raw,
    Meta(
        description=(
            "The whole state as a string, by convention the text of a JSON document; it comes back byte for byte. "
            "A JSON object or array is accepted too, and kept as the text that was sent."
        ),
        examples=['{"messages": [], "currentStep": "language"}'],
        extra_json_schema={
            "anyOf": [
                {"type": "string", "pattern": r"^[^\u0000]*$", "not": {"const": "[object Object]"}},
                {"type": "object"},
                {"type": "array"},
            ]
        },
    ),
]
LastActivity = Annotated[
    Raw,
    Meta(
        description="When the person was last active (RFC 3339). Absent or null: now.",
        examples=["2025-10-02T10:00:00Z"],
        extra_json_schema={
            "type": ["string", "null"],
            "format": "date-time",
            # Those that are before the year 1 or after the year 9999 in UTC.
            "not": {"type": "string", "pattern": r"^(0000|0001-01-01.*\+|9999-12-31.*-\d\d:\d\d$)"},
        },
    ),
]


ExpiresIn = Annotated[
    Raw,
    Meta(
        description=(
            "How many seconds after its last write the session expires; each write begins them anew. "
            "Null: it has no expiry of its own. Absent: as before."
        ),
        extra_json_schema={"type": ["integer", "null"], "minimum": 1, "maximum": MAX_EXPIRES_IN},
    ),
]


class SaveBody(Struct):
    """A session to create or replace."""

    user_session_id: UserSessionId
    chat_state: ChatState
    last_activity: LastActivity | UnsetType = UNSET
    expires_in_seconds: ExpiresIn | UnsetType = UNSET


class UpdateBody(Struct):
    """What to change in a session. An absent `chat_state` stays as it is."""

    chat_state: ChatState | UnsetType = UNSET
    last_activity: LastActivity | UnsetType = UNSET
    expires_in_seconds: ExpiresIn | UnsetType = UNSET


class RestoreBody(Struct):
    """Which version to bring back."""

    version: Annotated[
        Raw,
        Meta(
            description="The number of the version whose state becomes the newest one.",
            examples=[1],
            extra_json_schema={"type": "integer", "minimum": 1, "maximum": (1 << 63) - 1},
        ),
    ]


_POINTER = {"type": "string", "format": "json-pointer"}
_POINTER_BELOW_ROOT = {**_POINTER, "minLength": 1}


def _operations(names: list[str], **members: object) -> dict[str, object]:
    """The schema of these operations of a JSON Patch (RFC 6902, section 4), which all have the same members."""
    properties = {"op": {"enum": names}, **members}
    return {"type": "object", "properties": properties, "required": list(properties)}


JsonPatch = Annotated[
    Raw,
    Meta(
        title="JsonPatch",
        description=(
            "A JSON Patch (RFC 6902): operations, carried out in order, all or none. `add` to `/messages/-` appends. "
            "`add`, `replace` and `test` take a `value`, `move` and `copy` a `from`."
        ),
        examples=[[{"op": "add", "path": "/messages/-", "value": {"role": "user", "content": "Hello"}}]],
        extra_json_schema={
            "type": "array",
            "maxItems": MAX_OPERATIONS,
            "items": {
                "oneOf": [
                    _operations(["add", "replace", "test"], path=_POINTER, value={}),
                    _operations(["remove"], path=_POINTER_BELOW_ROOT),
                    _operations(["move", "copy"], path=_POINTER, **{"from": _POINTER}),
                ]
            },
        },
    ),
]
MergePatch = Annotated[
    Raw,
    Meta(
        title="MergePatch",
        description=(
            "A JSON Merge Patch (RFC 7396): the members of objects to set, and with null those to remove. "
            "A patch that is no object replaces the whole state."
        ),
        examples=[{"currentStep": "payment", "language": None}],
    ),
]


_STATE_EXAMPLE = '{"messages": [], "currentStep": "language"}'
_TIME_EXAMPLE = "2025-10-02T10:00:00Z"

State = Annotated[str, Meta(description="The state, byte for byte as it was saved.", examples=[_STATE_EXAMPLE])]
LastActivityTime = Annotated[
    str,
    Meta(
        description="When the person was last active (RFC 3339, in UTC).",
        examples=[_TIME_EXAMPLE],
        extra_json_schema={"format": "date-time"},
    ),
]


SessionId = Annotated[
    str,
    Meta(
        description="A UUID that the server gave the session; a new one after every deletion.",
        examples=["0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"],
    ),
]
GivenId = Annotated[str, Meta(description="The id that the bot gave it.", examples=["session_12345"])]
CreatedAt = Annotated[
    str, Meta(description="When it was created.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"})
]
UpdatedAt = Annotated[
    str,
    Meta(description="When it was last written.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"}),
]
VersionNumber = Annotated[int, Meta(description="1 at first; one more with every write.", examples=[1], ge=1)]
ExpiresAt = Annotated[
    str,
    Meta(
        description="When it expires if nobody writes; only there if the session has an expiry of its own.",
        extra_json_schema={"format": "date-time"},
    ),
]


class SessionRecord(Struct):
    """A session as it is stored."""

    session_id: SessionId
    user_session_id: GivenId
    chat_state: State
    last_activity: LastActivityTime
    created_at: CreatedAt
    updated_at: UpdatedAt
    version: VersionNumber
    expires_at: ExpiresAt | UnsetType = UNSET


class SessionSummary(Struct):
    """A session as it is stored, without its state unless that was asked for."""

    session_id: SessionId
    user_session_id: GivenId
    last_activity: LastActivityTime
    created_at: CreatedAt
    updated_at: UpdatedAt
    version: VersionNumber
    expires_at: ExpiresAt | UnsetType = UNSET
    chat_state: (
        Annotated[str, Meta(description="The state, byte for byte as it was saved; only there if it was asked for.")]
        | UnsetType
    ) = UNSET


_NEXT_CURSOR = "What to send as `cursor` for the next page; null: no more."
_CURSOR = "WyJhY3Rpdml0eSIsIjIwMjUtMTAtMDJUMTA6MDA6MDBaIiwic2Vzc2lvbl8xMjM0NSJd"


class SessionPage(Struct):
    """A page of sessions."""

    sessions: Annotated[list[SessionSummary], Meta(description="The sessions, in the order that was asked for.")]
    next_cursor: Annotated[str | None, Meta(description=_NEXT_CURSOR, examples=[_CURSOR])]


class VersionSummary(Struct):
    """A version of a session that is kept."""

    version: VersionNumber
    last_activity: LastActivityTime
    saved_at: Annotated[
        str,
        Meta(description="When it was saved.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"}),
    ]
    size: Annotated[int, Meta(description="The size of its state, in bytes of UTF-8.", examples=[43])]


class VersionPage(Struct):
    """A page of the versions of a session, newest first. The current one is among them."""

    versions: Annotated[list[VersionSummary], Meta(description="The versions, without their states.")]
    next_cursor: Annotated[str | None, Meta(description=_NEXT_CURSOR, examples=["MQ"])]


class VersionRecord(Struct):
    """A version of a session with its state."""

    version: VersionNumber
    chat_state: State
    last_activity: LastActivityTime
    saved_at: Annotated[
        str,
        Meta(description="When it was saved.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"}),
    ]


class LoadedState(Struct, forbid_unknown_fields=True):
    """What a bot needs to go on: these two members and no others."""

    chat_state: State
    last_activity: LastActivityTime


class Message(Struct):
    """A confirmation."""

    message: Annotated[str, Meta(description="What was done, for people.")]
