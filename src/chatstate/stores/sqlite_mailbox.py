"""Inbox and outbox in SQLite: what the statements are given, and what their rows mean. As in `sqlite_sessions`,
everything runs on one connection, and what writes runs inside a transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw
from msgspec import json

from chatstate.mailbox import (
    RANKS,
    REMEMBERED_FOR,
    DueQuery,
    EraseMail,
    InboxEntry,
    InboxQuery,
    MailErased,
    MailOutcome,
    MailWrite,
    OutboxEntry,
    OutboxQuery,
    Postpone,
    Progress,
    Receive,
    Received,
    Settle,
    Settled,
    arrival_number,
)
from chatstate.model import Retention, before
from chatstate.stores import sql
from chatstate.stores.sqlite_times import microseconds, time_of

_RECEIVE, _OPEN, _SETTLE, _SEND, _POSTPONE = (
    sql.statement("sqlite", name) for name in ("receive", "open_entry", "settle", "send", "postpone")
)
_ERASE_INBOX, _ERASE_OUTBOX = sql.statement("sqlite", "erase_inbox"), sql.statement("sqlite", "erase_outbox")
_PROGRESS = sql.statement("sqlite", "progress").replace("{which}", "key = :key")
_PROGRESS_BY_PROVIDER = sql.statement("sqlite", "progress").replace("{which}", "provider_key = :provider_key")
_DUE = {box: sql.statement("sqlite", f"due_{box}") for box in ("inbox", "outbox")}
_INBOX_COLUMNS = "key, conversation, document, status, sent_at, received_at, due_at, tries, error, number"
_OUTBOX_COLUMNS = "key, conversation, user_session_id, document, status, created_at, due_at, tries, error, number"
_SWEEPS = (sql.statement("sqlite", "sweep_inbox"), sql.statement("sqlite", "sweep_outbox"))


def is_open(connection: apsw.Connection, settle: Settle) -> bool:
    """Whether the message is not done yet."""
    return bool(connection.execute(_OPEN, {"key": settle.key}).fetchall())


def settle(connection: apsw.Connection, write: Settle) -> Settled:
    """Carry out one `Settle`."""
    now = microseconds(write.now)
    if not connection.execute(_SETTLE, {"key": write.key, "status": write.status}).fetchall():
        return Settled(False)
    for send in write.sends:
        connection.execute(
            _SEND,
            {
                "key": send.key,
                "conversation": send.conversation,
                "user_session_id": send.user_session_id,
                "document": send.document,
                "now": now,
            },
        )
    return Settled(True)


def apply_mail(connection: apsw.Connection, write: MailWrite, place: int) -> MailOutcome:
    """Carry out one write. `place`: of those that came with it."""
    if isinstance(write, Receive):
        return _receive(connection, write, place)
    if isinstance(write, Settle):
        return settle(connection, write)
    if isinstance(write, EraseMail):
        return erase(connection, write)
    statement, given = _postponed(write) if isinstance(write, Postpone) else _progressed(write)
    return Settled(bool(connection.execute(statement, given).fetchall()))


def _receive(connection: apsw.Connection, write: Receive, place: int) -> Received:
    given = {
        "key": write.key,
        "number": arrival_number(write, place),
        "conversation": write.conversation,
        "document": write.document,
        "status": write.status,
        "sent_at": microseconds(write.sent_at),
        "now": microseconds(write.now),
    }
    return Received(bool(connection.execute(_RECEIVE, given).fetchall()))


def _postponed(write: Postpone) -> tuple[str, dict[str, Any]]:
    due_at = microseconds(write.due_at)
    given = {"key": write.key, "due_at": due_at, "tries": write.tries, "error": write.error, "aside": write.aside}
    return _POSTPONE, given


def _progressed(write: Progress) -> tuple[str, dict[str, Any]]:
    return _PROGRESS if write.key else _PROGRESS_BY_PROVIDER, {
        "key": write.key,
        "provider_key": write.provider_key,
        "status": write.status,
        "rank": RANKS[write.status],
        "due_at": None if write.due_at is None else microseconds(write.due_at),
        "tries": write.tries,
        "error": write.error,
    }


def erase(connection: apsw.Connection, write: EraseMail) -> MailErased:
    """Carry out one `EraseMail`."""
    given = {"conversations": json.encode(write.conversations).decode(), "user_session_id": write.user_session_id}
    return MailErased(
        sum(len(connection.execute(statement, given).fetchall()) for statement in (_ERASE_INBOX, _ERASE_OUTBOX))
    )


def due(connection: apsw.Connection, query: DueQuery) -> list[str]:
    """The conversations that the query asks for, in its order."""
    given = {"now": microseconds(query.now), "limit": query.limit}
    return [name for (name,) in connection.execute(_DUE[query.box], given)]


def inbox(connection: apsw.Connection, query: InboxQuery) -> list[InboxEntry]:
    """The messages that the query asks for, in its order."""
    direction = "DESC" if query.newest_first else "ASC"
    order = f"sent_at {direction}, number {direction}"
    wanted = {"conversation": query.conversation, "status": query.status}
    rows = _selected(connection, "inbox", _INBOX_COLUMNS, order, query.limit, wanted)
    return [
        InboxEntry(
            key=key,
            conversation=conversation,
            document=document,
            status=status,
            sent_at=time_of(sent),
            received_at=time_of(received),
            due_at=time_of(due),
            tries=tries,
            error=error,
            number=number,
        )
        for key, conversation, document, status, sent, received, due, tries, error, number in rows
    ]


def outbox(connection: apsw.Connection, query: OutboxQuery) -> list[OutboxEntry]:
    """The messages that the query asks for, in its order."""
    wanted = {
        "conversation": query.conversation,
        "user_session_id": query.user_session_id,
        "status": query.status,
    }
    rows = _selected(connection, "outbox", _OUTBOX_COLUMNS, "number", query.limit, wanted)
    return [
        OutboxEntry(
            key=key,
            conversation=conversation,
            user_session_id=user_session_id,
            document=document,
            status=status,
            created_at=time_of(created),
            due_at=time_of(due),
            tries=tries,
            error=error,
            number=number,
        )
        for key, conversation, user_session_id, document, status, created, due, tries, error, number in rows
    ]


def _selected(
    connection: apsw.Connection, table: str, columns: str, order: str, limit: int, wanted: dict[str, str | None]
) -> Any:
    """The rows with what is wanted of them; None: with anything."""
    given = {name: value for name, value in wanted.items() if value is not None}
    # A status stands in the statement itself: only so is the index of those that wait found.
    conditions = " AND ".join(f"{n} = '{v}'" if n == "status" else f"{n} = :{n}" for n, v in given.items()) or "true"
    statement = f"SELECT {columns} FROM {table} WHERE {conditions} ORDER BY {order} LIMIT :limit"
    return connection.execute(statement, {**given, "limit": limit})


def sweep(connection: apsw.Connection, now: datetime, retention: Retention, limit: int) -> int:
    """Forget what has come to its end; of how many rows, at most."""
    kept_since = retention.visits_since(now)
    given = {
        "forget_since": microseconds(before(now, REMEMBERED_FOR)),
        "kept_since": None if kept_since is None else microseconds(kept_since),
        "limit": limit,
    }
    return max(len(connection.execute(statement, given).fetchall()) for statement in _SWEEPS)
