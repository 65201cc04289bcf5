"""The Valkey Cluster store: sessions on many shards, each with replicas, and no tables.

A session changes by one script on the node that has it, and is acknowledged when that node and all its replicas have it
on their disks (`chatstate.stores.valkey_cluster`). What spans slots is made of steps that can each be done again
(`chatstate.stores.valkey_mailbox`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from chatstate.errors import SchemaMismatch, StoreError, StoreUnavailable, StoreUnreachable, WriteRefused
from chatstate.mailbox import DueQuery, InboxQuery, MailWrite, OutboxQuery
from chatstate.model import (
    KEEP,
    Delete,
    RememberedQuery,
    ReplayQuery,
    Retention,
    Rewrite,
    Save,
    Session,
    SessionQuery,
    StoredQuery,
    Swept,
    TagQuery,
    VersionQuery,
    Write,
)
from chatstate.record import RecordQuery, RecordWrite
from chatstate.row import RowCount, RowQuery, RowWrite
from chatstate.stores import valkey_mail_lists as mail_lists
from chatstate.stores import valkey_mailbox as mailbox
from chatstate.stores import valkey_records as records
from chatstate.stores import valkey_rows, valkey_settings
from chatstate.stores import valkey_sessions as sessions
from chatstate.stores import valkey_stored as stored
from chatstate.stores import valkey_visits as visits
from chatstate.stores.base import AnyWrite, Outcome, Query, Row, Store, StoreStatus
from chatstate.stores.feed import Changed, Feed
from chatstate.stores.replies import Sealing, Written
from chatstate.stores.valkey_cluster import Call, Cluster, Shard
from chatstate.stores.valkey_hints import ValkeyHints
from chatstate.stores.valkey_keys import slot_of
from chatstate.stores.valkey_mailbox import Mail
from chatstate.stores.valkey_node import parse_url
from chatstate.stores.valkey_steps import Steps, carry_out
from chatstate.visit import UserSessionQuery, VisitQuery, VisitWrite

_FORMAT = "1"
"""Of what lies there; another number is of a newer version."""


class ValkeyStore(Store):
    """Sessions in the Valkey Cluster that the URL names."""

    def __init__(self, url: str, allow_unsafe: bool = False) -> None:
        self._url = parse_url(url)
        self._prefix = self._url.prefix
        self._allow_unsafe = allow_unsafe
        self._cluster = Cluster(self._url, allow_unsafe)
        self._mail = Mail(self._prefix)
        self._hints = ValkeyHints()

    async def open(self) -> None:
        try:
            await self._cluster.open()
            faults = [] if self._allow_unsafe else await valkey_settings.faults(self._cluster)
        except StoreError as error:
            await self.close()
            raise StoreUnreachable(
                f"{error.message} Is it running in cluster mode, and does the store URL name the right hosts, ports, "
                "user and password?"
            ) from error
        if faults:
            await self.close()
            raise StoreUnreachable(
                "This Valkey Cluster would lose acknowledged writes:\n\n  "
                + "\n  ".join(faults)
                + "\n\nChange that (and CONFIG REWRITE), or accept the loss: chatstate serve --allow-unsafe-durability"
            )

    async def close(self) -> None:
        await self._hints.close()
        await self._cluster.close()

    async def migrate(self) -> list[str]:
        key = f"{self._prefix}{{format}}"
        slot = slot_of("format")
        (made,) = await self._cluster.write([Call(slot, ("SET", key, _FORMAT, "NX"))])
        if isinstance(made, StoreError):
            raise made
        (found,) = await self._cluster.read([Call(slot, ("GET", key))])
        if found != _FORMAT.encode():
            raise SchemaMismatch(f"What lies in Valkey is of a newer version (format {found!r}). Update chatstate.")
        return ["0001_format"] if made else []

    def migration_sql(self) -> str:
        return "-- A Valkey Cluster has no tables.\n"

    async def status(self) -> StoreStatus:
        (found,) = await self._cluster.read([Call(slot_of("format"), ("GET", f"{self._prefix}{{format}}"))])
        if found is None:
            raise StoreUnavailable("Nothing of chatstate lies in this cluster yet. Begin with: chatstate migrate")
        await self._cluster.look()
        shards = self._cluster.shards
        told = await self._cluster.ask((shards[0].host, shards[0].port), "INFO", "server")
        version = told.partition(b"valkey_version:")[2].partition(b"\r\n")[0].decode()
        return StoreStatus(
            store=f"Valkey {version}, a cluster of {len(shards)} shards, at {self._url.place}",
            durability=_durability(shards, self._allow_unsafe),
        )

    async def load(self, ids: Sequence[str], now: datetime, retention: Retention = KEEP) -> Mapping[str, Session]:
        with _refusing():
            return await sessions.load(self._cluster, self._prefix, ids, now, retention)

    async def commit(self, writes: Sequence[AnyWrite], retention: Retention = KEEP) -> Sequence[Outcome]:
        return await self._hints.after(writes, self._committed(writes, retention))

    async def _committed(self, writes: Sequence[AnyWrite], retention: Retention) -> list[Outcome]:
        if all(isinstance(write, RowWrite) for write in writes):
            return await valkey_rows.apply_rows(self._cluster, self._prefix, writes)  # type: ignore[arg-type]
        if all(isinstance(write, Write) and not _moves_mail(write) for write in writes):
            for write in writes:
                sessions.check(write)  # type: ignore[arg-type]
            calls = [sessions.write_call(self._prefix, write, retention) for write in writes]  # type: ignore[arg-type]
            replies = await self._cluster.write(calls)
            return [_outcome(write, reply) for write, reply in zip(writes, replies, strict=True)]
        return await carry_out(
            self._cluster, [self._steps(write, place, retention) for place, write in enumerate(writes)]
        )

    def _steps(self, write: AnyWrite, place: int, retention: Retention) -> Steps[Outcome]:
        """What carries out a write of several steps, or one beside it."""
        if isinstance(write, MailWrite):
            mailbox.check(write)
            return self._mail.steps(write, place)
        if isinstance(write, Write):
            return self._session_steps(write, retention)
        carried_out: dict[Any, Any] = {
            RecordWrite: records.write,
            VisitWrite: visits.write,
            Rewrite: stored.rewrite,
            RowWrite: valkey_rows.write_steps,
        }
        steps: Steps[Outcome] = next(
            carry(self._prefix, write) for kind, carry in carried_out.items() if isinstance(write, kind)
        )
        return steps

    def _session_steps(self, write: Write, retention: Retention) -> Steps[Outcome]:
        sessions.check(write)
        if isinstance(write, Save) and write.settles:
            mailbox.check(write.settles)
            return self._mail.turn(write, retention)
        if isinstance(write, Delete) and write.erases:
            mailbox.check(write.erases)
            return self._mail.deletion(write, retention)
        return sessions.write(self._prefix, write, retention)

    async def list(self, query: Query) -> Sequence[Row]:
        listing: dict[Any, Any] = {
            SessionQuery: sessions.sessions,
            TagQuery: sessions.tags,
            VersionQuery: sessions.versions,
            ReplayQuery: sessions.replays,
            RememberedQuery: sessions.remembered,
            RowQuery: valkey_rows.rows,
            RowCount: valkey_rows.count,
            InboxQuery: mail_lists.inbox,
            OutboxQuery: mail_lists.outbox,
            DueQuery: mail_lists.due,
            RecordQuery: records.records,
            VisitQuery: visits.visits,
            UserSessionQuery: visits.user_sessions,
            StoredQuery: stored.stored,
        }
        with _refusing():
            rows: Sequence[Row] = await listing[type(query)](self._cluster, self._prefix, query)
        return rows

    def watch(self, changed: Changed, written: Written | None = None, sealing: Sealing | None = None) -> Feed:
        self._hints.listen(self._cluster, self._prefix)
        return self._hints.feed(changed, written, sealing)

    async def sweep(self, now: datetime, retention: Retention, after: str | None, limit: int) -> Swept:
        found, removed = await sessions.sweep_ended(self._cluster, self._prefix, now, retention, limit)
        if after is None:  # once in each round: it asks all slots
            await mail_lists.sweep_fences(self._cluster, self._prefix, limit)
        others = [
            await sessions.sweep_remembered(self._cluster, self._prefix, now, limit),
            await mail_lists.sweep(self._cluster, self._prefix, now, retention, limit),
            await records.sweep(self._cluster, self._prefix, now, limit),
        ]
        visits_since = retention.visits_since(now)
        if visits_since:
            others.append(await visits.sweep(self._cluster, self._prefix, visits_since, limit))
        more = limit in (found, *others)  # what waits for its shard does not count, or the round would wait with it
        if retention.idle is None:
            return Swept(removed, "" if more else None)
        seen, idle = await sessions.sweep_idle(self._cluster, self._prefix, now, retention, after or "", limit)
        if len(seen) == limit:
            return Swept(removed + idle, seen[-1])
        return Swept(removed + idle, (seen[-1] if seen else after or "") if more else None)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raises `WriteRefused` when what is asked for has a name that no store can keep."""
    try:
        yield
    except UnicodeEncodeError:
        raise WriteRefused("The store cannot keep lone surrogates.") from None


def _moves_mail(write: Save | Delete) -> bool:
    """Whether messages are settled or erased with it."""
    return bool(write.settles if isinstance(write, Save) else write.erases)


def _outcome(write: Any, reply: Any) -> Outcome:
    return reply if isinstance(reply, StoreError) else sessions.outcome_of(write, reply)


def _durability(shards: Sequence[Shard], allow_unsafe: bool) -> str:
    least = min(shard.replicas for shard in shards)
    if not least or allow_unsafe:
        return "UNSAFE: what is acknowledged may be on the disk of one machine, or of none (--allow-unsafe-durability)."
    text = (
        "An acknowledged write has been synced to the disks of its primary and of all replicas of its shard "
        f"({least} at least)."
    )
    away = sum(bool(shard.away) for shard in shards)
    if not away:
        return text
    places = "1 shard" if away == 1 else f"{away} shards"
    return f"{text} Replicas of {places} are away now: saves there are refused until they are back."
