"""Inbox and outbox in PostgreSQL: the statements, what they are given, and what their rows mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from chatstate.mailbox import (
    RANKS,
    REMEMBERED_FOR,
    DueQuery,
    EraseMail,
    InboxEntry,
    InboxQuery,
    MailErased,
    MailOutcome,
    MailQuery,
    MailWrite,
    OutboxEntry,
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
from chatstate.stores.postgres_connection import Connection
from chatstate.stores.postgres_schema import Schema


@lru_cache
def _statement(schema: Schema, name: str, which: str = "") -> str:
    return schema.fill(sql.statement("postgres", name).replace("{which}", which))


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [*map(list, zip(*rows, strict=True))]


async def apply_mail(connection: Connection, schema: Schema, writes: Sequence[MailWrite]) -> list[MailOutcome]:
    """Carry out writes inside a transaction, an outcome for each, in order. What arrives goes together; the rest is
    little, and goes one by one."""
    arriving = [write for write in writes if isinstance(write, Receive)]
    new = await _receive(connection, schema, arriving) if arriving else set()
    others = sorted((write for write in writes if not isinstance(write, Receive)), key=_place)  # no deadlocks
    outcomes = {id(write): await _apply(connection, schema, write) for write in others}
    return [Received(write.key in new) if isinstance(write, Receive) else outcomes[id(write)] for write in writes]


def _place(write: MailWrite) -> tuple[str, str]:
    name = write.user_session_id if isinstance(write, EraseMail) else write.key
    if isinstance(write, Progress):
        name = name or write.provider_key
    return type(write).__name__, name


async def _receive(connection: Connection, schema: Schema, writes: Sequence[Receive]) -> set[str]:
    """The keys that were not known."""
    rows = [
        (
            write.key,
            arrival_number(write, place),
            *(write.conversation, write.document, write.status),
            *(write.sent_at.isoformat(), write.now.isoformat()),
        )
        for place, write in enumerate(writes)
    ]
    new = {row[0] for row in await connection.fetch(_statement(schema, "receive"), *_columns(rows))}
    known = [write.key for write in writes if write.key not in new]
    if known:
        await connection.fetch(_statement(schema, "known_entries"), known)
    return new


async def _apply(connection: Connection, schema: Schema, write: MailWrite) -> MailOutcome:
    if isinstance(write, Settle):
        return Settled(bool(await settle(connection, schema, [write])))
    if isinstance(write, EraseMail):
        return await erase(connection, schema, write)
    if isinstance(write, Postpone):
        given = (write.key, write.aside, write.due_at.isoformat(), write.tries, write.error)
        return Settled(bool(await connection.fetch(_statement(schema, "postpone"), *given)))
    assert isinstance(write, Progress)
    which = "key = $1::text" if write.key else "$1::text = '' AND provider_key = $2::text"
    outcome = (write.status, RANKS[write.status], write.error, _text(write.due_at), write.tries)
    statement = _statement(schema, "progress", which)
    return Settled(bool(await connection.fetch(statement, write.key, write.provider_key, *outcome)))


async def erase(connection: Connection, schema: Schema, write: EraseMail) -> MailErased:
    """Carry out one `EraseMail`."""
    arrived = await connection.fetch(_statement(schema, "erase_inbox"), write.conversations)
    leaving = await connection.fetch(_statement(schema, "erase_outbox"), write.user_session_id)
    return MailErased(len(arrived) + len(leaving))


# --- What is settled together with a session --------------------------------------------------------------------------


async def open_keys(connection: Connection, schema: Schema, settles: Sequence[Settle]) -> set[str]:
    """Which of these messages are not done yet; they are locked until the transaction ends."""
    rows = await connection.fetch(_statement(schema, "open_entries"), [write.key for write in settles])
    return {row[0] for row in rows}


async def lock(connection: Connection, schema: Schema, erasing: Sequence[EraseMail]) -> None:
    """Lock what these are about to erase. Whoever settles a message locks it before the session; so does this."""
    conversations = [name for write in erasing for name in write.conversations]
    await connection.fetch(_statement(schema, "lock_entries"), conversations)


async def settle(connection: Connection, schema: Schema, settles: Sequence[Settle]) -> set[str]:
    """Carry out these writes; the keys of those that have found their message."""
    ordered = sorted(settles, key=lambda write: write.key)
    given = _columns((write.key, write.status) for write in ordered)
    done = {row[0] for row in await connection.fetch(_statement(schema, "settle"), *given)}
    sends = [
        (send.key, send.conversation, send.user_session_id, send.document, write.now.isoformat())
        for write in ordered
        for send in write.sends
        if write.key in done
    ]
    if sends:
        await connection.fetch(_statement(schema, "send"), *_columns(sends))
    return done


# --- Lists ------------------------------------------------------------------------------------------------------------


_INBOX_COLUMNS = "key, conversation, document, status, sent_at, received_at, due_at, tries, error, number"
_OUTBOX_COLUMNS = "key, conversation, user_session_id, document, status, created_at, due_at, tries, error, number"


async def mail(
    connection: Connection, schema: Schema, query: MailQuery
) -> list[InboxEntry] | list[OutboxEntry] | list[str]:
    """What the query asks for, in its order."""
    if isinstance(query, DueQuery):
        statement = _statement(schema, f"due_{query.box}")
        return [row[0] for row in await connection.fetch(statement, query.now.isoformat(), query.limit)]
    wanted: dict[str, str | None] = {"conversation": query.conversation, "status": query.status}
    if isinstance(query, InboxQuery):
        direction = "DESC" if query.newest_first else "ASC"
        order = f"sent_at {direction}, number {direction}"
        rows = await _selected(connection, schema, "inbox", _INBOX_COLUMNS, order, query.limit, wanted)
        return [InboxEntry(**row) for row in rows]
    wanted["user_session_id"] = query.user_session_id
    rows = await _selected(connection, schema, "outbox", _OUTBOX_COLUMNS, "number", query.limit, wanted)
    return [OutboxEntry(**row) for row in rows]


async def _selected(
    connection: Connection,
    schema: Schema,
    table: str,
    columns: str,
    order: str,
    limit: int,
    wanted: dict[str, str | None],
) -> Any:
    """The rows with what is wanted of them; None: with anything."""
    # A status stands in the statement itself: only so is the index of those that wait found.
    status = f" AND status = '{wanted['status']}'" if wanted["status"] else ""
    given = {name: value for name, value in wanted.items() if value is not None and name != "status"}
    conditions = "".join(f" AND {name} = ${place}" for place, name in enumerate(given, 2)) + status
    statement = (
        f"SELECT {columns} FROM chatstate.{table} WHERE table_schema = {{name}}{conditions} ORDER BY {order} LIMIT $1"
    )
    return await connection.fetch(schema.fill(statement), limit, *given.values())


def sweeps(schema: Schema, now: datetime, retention: Retention) -> list[tuple[str, tuple[str | None, ...]]]:
    """The statements that forget what has come to its end, and what they are given before their limit."""
    given = (before(now, REMEMBERED_FOR).isoformat(), _text(retention.visits_since(now)))
    return [(_statement(schema, "sweep_inbox"), given), (_statement(schema, "sweep_outbox"), given)]
