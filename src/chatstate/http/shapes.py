"""The shapes of bodies. The OpenAPI document is made from them.

Members of requests are taken as raw JSON, so that one pass over all of them can name everything that is wrong; what
they must be stands in their schemas, and the rules themselves in `chatstate.model`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from chatstate.model import MAX_ID_LENGTH

UserSessionId = Annotated[
    Raw,
    Meta(
        description="The id under which the bot finds the session again: any text without control characters.",
        examples=["session_12345"],
        extra_json_schema={
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_ID_LENGTH,
            "pattern": r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$",
        },
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


class SaveBody(Struct):
    """A session to create or replace."""

    user_session_id: UserSessionId
    chat_state: ChatState
    last_activity: LastActivity | UnsetType = UNSET


class UpdateBody(Struct):
    """What to change in a session. An absent `chat_state` stays as it is."""

    chat_state: ChatState | UnsetType = UNSET
    last_activity: LastActivity | UnsetType = UNSET


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


class SessionRecord(Struct):
    """A session as it is stored."""

    session_id: Annotated[
        str,
        Meta(
            description="A UUID that the server gave the session; a new one after every deletion.",
            examples=["0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"],
        ),
    ]
    user_session_id: Annotated[str, Meta(description="The id that the bot gave it.", examples=["session_12345"])]
    chat_state: State
    last_activity: LastActivityTime
    created_at: Annotated[
        str,
        Meta(description="When it was created.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"}),
    ]
    updated_at: Annotated[
        str,
        Meta(
            description="When it was last written.", examples=[_TIME_EXAMPLE], extra_json_schema={"format": "date-time"}
        ),
    ]
    version: Annotated[int, Meta(description="1 at first; one more with every write.", examples=[1], ge=1)]


class LoadedState(Struct, forbid_unknown_fields=True):
    """What a bot needs to go on: these two members and no others."""

    chat_state: State
    last_activity: LastActivityTime


class Message(Struct):
    """A confirmation."""

    message: Annotated[str, Meta(description="What was done, for people.")]
