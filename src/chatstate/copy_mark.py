"""The mark of a copy: a record in the target that says whose copy it is, and what it was when that was finished.

It belongs to its store, so it is in no copy of it and in no backup.
"""

from __future__ import annotations

from datetime import datetime
from typing import cast

from msgspec import Struct, json

from chatstate.errors import StartError
from chatstate.record import PutRecord, Record, RecordQuery
from chatstate.stores.base import Store, commit_one

COLLECTION = "copies"
_KEY = "target"


class CopyMark(Struct, frozen=True):
    """What names the source; and, of a copy that is finished, the checksum of each shelf as it was then."""

    source: str
    checksums: dict[str, str] | None = None


async def mark_of(store: Store, now: datetime) -> CopyMark | None:
    """The mark of the store; None when nothing was copied into it."""
    for row in await store.list(RecordQuery(collection=COLLECTION, key=_KEY, now=now)):
        return json.decode(cast(Record, row).document, type=CopyMark)
    return None


async def put_mark(store: Store, mark: CopyMark, now: datetime) -> None:
    """Mark the store, in place of any mark before."""
    document = json.encode(mark).decode()
    await commit_one(store, PutRecord(collection=COLLECTION, key=_KEY, document=document, now=now))


async def check_is_whole(store: Store, now: datetime) -> None:
    """Raises `StartError` when the store is the target of a copy that is not finished: whoever served it would say of
    sessions that are still to come that they do not exist."""
    mark = await mark_of(store, now)
    if mark and mark.checksums is None:
        raise StartError(
            f"The copy from {mark.source} into this store is not finished. Run it again: it goes on where it was. (Or "
            "give the copy up: chatstate copy or restore something else into it, with --overwrite.)"
        )
