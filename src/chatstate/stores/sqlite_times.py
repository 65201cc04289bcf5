"""Times in SQLite: microseconds since 1970-01-01T00:00:00Z."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from chatstate.model import LATEST

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_LAST = (LATEST - _EPOCH) // MICROSECOND


def microseconds(time: datetime) -> int:
    return (time - _EPOCH) // MICROSECOND


def time_of(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=min(microseconds, _LAST))
