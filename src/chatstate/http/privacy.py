"""The handlers for what is kept about somebody: taking it out, and erasing it.

An export is one JSON document that is written while it is read from the store, for it may be large. If that fails in
the middle, the connection is cut: nobody can take a part for the whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, json

from chatstate.errors import SessionNotFound, UserNotFound
from chatstate.http.api import STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import key, key_or_token
from chatstate.http.links import LinkRecord, link_record
from chatstate.http.messages import Request, Response
from chatstate.http.shapes import SessionRecord, VersionRecord
from chatstate.http.states import SESSION
from chatstate.http.visits import VisitRecord
from chatstate.http.visits import record as visit_record
from chatstate.http.wire import answer, decode_segment, record, version_record
from chatstate.model import format_time
from chatstate.privacy import Held
from chatstate.visit import check_text

USER = "/users/{userId}"


class RememberedRequest(Struct):
    """A request with an idempotency key that is remembered."""

    key: Annotated[str, Meta(description="Its Idempotency-Key.")]
    at: Annotated[str, Meta(description="When it was carried out.", extra_json_schema={"format": "date-time"})]
    chat_state: Annotated[str, Meta(description="The state that is kept for a retry.")] | UnsetType = UNSET


class ChannelName(Struct):
    """A name under which a channel knows somebody who goes on with the session there."""

    channel: Annotated[str, Meta(description="The channel.", examples=["whatsapp"])]
    kind: Annotated[str, Meta(description="What kind of name it is.", examples=["wa_id"])]
    value: Annotated[str, Meta(description="The name itself, such as a phone number.")]


class KeptMessage(Struct):
    """A message that has arrived and is not answered yet, or that is to leave."""

    at: Annotated[str, Meta(description="When it came, or was written.", extra_json_schema={"format": "date-time"})]
    status: Annotated[str, Meta(description="What has become of it so far.", examples=["pending"])]
    document: Annotated[str, Meta(description="The message as it is kept, as JSON; empty when it has left.")]


class SessionExport(Struct):
    """Everything that is kept about a session."""

    user_session_id: Annotated[str, Meta(description="The id that the bot gave it.")]
    chat_state_session: Annotated[SessionRecord | None, Meta(description="The session; null: there are only visits.")]
    remembered_requests: Annotated[list[RememberedRequest], Meta(description="For retries, at most for 24 hours.")]
    tokens_revoked_at: Annotated[str | None, Meta(description="When its session tokens were last revoked.")]
    links: Annotated[list[LinkRecord], Meta(description="Its links to other devices, newest first.")]
    channel_names: Annotated[list[ChannelName], Meta(description="Who goes on with it on channels.")]
    waiting_messages: Annotated[list[KeptMessage], Meta(description="What has arrived and is not answered yet.")]
    replies: Annotated[list[KeptMessage], Meta(description="What leaves or has left on channels, for eight days.")]
    versions: Annotated[list[VersionRecord], Meta(description="Its versions that are kept, newest first.")]
    visits: Annotated[list[VisitRecord], Meta(description="Its visits, newest first.")]


class UserExport(Struct):
    """Everything that is kept about a person."""

    user_id: Annotated[str, Meta(description="The person, as the bot knows them.")]
    sessions: Annotated[list[SessionExport], Meta(description="The sessions that visits of the person name.")]


class ErasedReport(Struct):
    """What was erased."""

    sessions: Annotated[int, Meta(description="How many sessions, each with all its versions.")]
    visits: Annotated[int, Meta(description="How many visits.")]


async def export_session(api: Api, request: Request) -> Response:
    """Take out everything that is kept about a session."""
    held = await api.privacy.held(api.path_id(request), api.clock())
    return Response(stream=_session(api, held), headers=_download("session"))


async def export_user(api: Api, request: Request) -> Response:
    """Take out everything that is kept about a person: the sessions that visits with this `user_id` name."""
    user_id = _user_id(request)
    sessions = api.privacy.user_sessions(user_id, request.caller.within)
    first = await anext(sessions, None)
    if first is None:
        raise UserNotFound
    request.sessions = shown = list[str]()
    return Response(stream=_user(api, user_id, first, sessions, shown), headers=_download("user"))


async def erase_user(api: Api, request: Request) -> Response:
    """Erase everything that is kept about a person. If it is interrupted, the next try goes on."""
    request.sessions = erased_sessions = list[str]()
    erased = await api.privacy.erase_user(_user_id(request), api.clock(), request.caller.within, erased_sessions.append)
    return answer(ErasedReport(erased.sessions, erased.visits))


def _user_id(request: Request) -> str:
    return decode_segment("user_id", request.params["userId"], check_text)


def _download(what: str) -> dict[str, str]:
    """A browser offers to keep it as a file (RFC 6266)."""
    return {"content-disposition": f'attachment; filename="chatstate-{what}.json"'}


async def _user(
    api: Api, user_id: str, first: str, others: AsyncIterator[str], shown: list[str]
) -> AsyncGenerator[bytes, None]:
    yield b'{"user_id":' + json.encode(user_id) + b',"sessions":'
    before = b"["
    async for user_session_id in _with_first(first, others):
        with suppress(SessionNotFound):  # erased meanwhile
            held = await api.privacy.held(user_session_id, api.clock())
            yield before
            before = b","
            shown.append(user_session_id)
            async for piece in _session(api, held, user_id):
                yield piece
    yield b"[]}" if before == b"[" else b"]}"


async def _with_first(first: str, others: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for user_session_id in others:
        yield user_session_id


async def _session(api: Api, held: Held, user_id: str | None = None) -> AsyncGenerator[bytes, None]:
    """A `SessionExport`, in pieces."""
    remembered = [
        RememberedRequest(row.key, format_time(row.at), UNSET if row.chat_state is None else row.chat_state)
        for row in held.remembered
    ]
    revoked = format_time(held.tokens_revoked_at) if held.tokens_revoked_at else None
    links = [link_record(link, api.clock()) for link in held.links]
    shown = record(held.session) if held.session else None
    names = [ChannelName(person.channel, *name) for person in held.people for name in person.names]
    waiting = [KeptMessage(format_time(entry.received_at), entry.status, entry.document) for entry in held.waiting]
    replies = [KeptMessage(format_time(entry.created_at), entry.status, entry.document) for entry in held.replies]
    export = SessionExport(held.user_session_id, shown, remembered, revoked, links, names, waiting, replies, [], [])
    yield json.encode(export).removesuffix(b'"versions":[],"visits":[]}')
    versions = (version_record(version) async for version in api.privacy.versions(held.user_session_id))
    async for piece in _array(b'"versions":', versions):
        yield piece
    visits = (visit_record(visit) async for visit in api.privacy.visits(held.user_session_id, user_id))
    async for piece in _array(b',"visits":', visits):
        yield piece
    yield b"}"


async def _array(name: bytes, rows: AsyncIterator[Struct]) -> AsyncIterator[bytes]:
    yield name
    before = b"["
    async for row in rows:
        yield before + json.encode(row)
        before = b","
    yield b"[]" if before == b"[" else b"]"


_TAG = "Privacy"

ENDPOINTS = (
    Endpoint(
        "GET",
        f"{SESSION}/export",
        key_or_token("export"),
        export_session,
        _TAG,
        None,
        {200: SessionExport},
        ("invalid_request", "session_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "GET",
        f"{USER}/export",
        key("export"),
        export_user,
        _TAG,
        None,
        {200: UserExport},
        ("invalid_request", "user_not_found", *STORE_PROBLEMS),
    ),
    Endpoint(
        "DELETE",
        USER,
        key("delete"),
        erase_user,
        _TAG,
        None,
        {200: ErasedReport},
        ("invalid_request", "user_not_found", *STORE_PROBLEMS),
    ),
)
