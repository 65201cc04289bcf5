"""What a visit is, what its writes and queries say, and the rules for its members: pure values, no I/O.

A visit is one chat session of one person, kept as a row for analytics: when it began and ended, how far it came, on
what kind of device. With the state of the conversation it shares the `user_session_id`, and nothing else. Members are
named as the columns of the SQL stores.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from chatstate.model import EVERYTHING, Within

MAX_TEXT_LENGTH = 255
MAX_USER_AGENT_LENGTH = 1024
"""The longest texts, in code points."""

MAX_COUNT = (1 << 31) - 1
"""The largest count, and the longest duration that a client may give."""


class Visit(Struct, frozen=True, kw_only=True):
    """A stored visit. Times are aware and in UTC; None is what nobody has said.

    `session_duration_minutes` is what a client gave, else `duration_minutes` of the two times as they are now.
    """

    session_id: str
    user_session_id: str
    user_id: str | None
    session_start_time: datetime
    session_end_time: datetime | None
    total_messages_count: int
    session_duration_minutes: int | None
    session_completed: bool
    session_outcome: str | None
    final_step_reached: str | None
    user_agent: str | None
    ip_address: str | None
    device_type: str | None
    created_at: datetime


class Changes(Struct, frozen=True, kw_only=True):
    """New values for members of a visit; UNSET: as it was. The other members never change.

    `given_duration_minutes` None: no longer given, so that the times say it again.
    """

    user_id: str | UnsetType | None = UNSET
    session_start_time: datetime | UnsetType = UNSET
    session_end_time: datetime | UnsetType | None = UNSET
    total_messages_count: int | UnsetType = UNSET
    given_duration_minutes: int | UnsetType | None = UNSET
    session_completed: bool | UnsetType = UNSET
    session_outcome: str | UnsetType | None = UNSET
    final_step_reached: str | UnsetType | None = UNSET
    user_agent: str | UnsetType | None = UNSET
    ip_address: str | UnsetType | None = UNSET
    device_type: str | UnsetType | None = UNSET


class CreateVisit(Struct, frozen=True, kw_only=True):
    """Create the visit if there is none with this id. What a new visit has by default stands here."""

    session_id: str
    user_session_id: str
    created_at: datetime
    session_start_time: datetime
    user_id: str | None = None
    session_end_time: datetime | None = None
    total_messages_count: int = 0
    given_duration_minutes: int | None = None
    session_completed: bool = False
    session_outcome: str | None = None
    final_step_reached: str | None = None
    user_agent: str | None = None
    ip_address: str | None = None
    device_type: str | None = None


class ChangeVisit(Struct, frozen=True, kw_only=True):
    """Change the visit with this id, if it is one of these user sessions."""

    session_id: str
    changes: Changes
    within: Within = EVERYTHING


class ChangeVisits(Struct, frozen=True, kw_only=True):
    """Change all visits of one user session."""

    user_session_id: str
    changes: Changes


class EraseVisits(Struct, frozen=True, kw_only=True):
    """Remove all visits of one user session; with a `user_id` not those that name another person."""

    user_session_id: str
    user_id: str | None = None


VisitWrite = CreateVisit | ChangeVisit | ChangeVisits | EraseVisits


class VisitTaken(Struct, frozen=True):
    """A `CreateVisit` has found a visit with its id, and changed nothing."""


class VisitMissing(Struct, frozen=True):
    """A `ChangeVisit` has found no visit with its id."""


class VisitsChanged(Struct, frozen=True):
    """A `ChangeVisits` has changed so many visits."""

    count: int


class VisitsErased(Struct, frozen=True):
    """An `EraseVisits` has removed so many visits."""

    count: int


VisitOutcome = Visit | VisitTaken | VisitMissing | VisitsChanged | VisitsErased
"""What became of one write; a `Visit` is the created or changed one as it is now."""


class VisitPosition(NamedTuple):
    """Where a visit stands in a list."""

    session_start_time: datetime
    session_id: str


class VisitQuery(Struct, frozen=True, kw_only=True):
    """A page of visits, newest start first, those that began together by id, the greater one first.

    session_id       only the visit with this id
    user_session_id  only visits of this user session
    within           only visits of these user sessions
    after            the position of the last visit of the page before
    """

    session_id: str | None = None
    user_session_id: str | None = None
    within: Within = EVERYTHING
    limit: int = 100
    after: VisitPosition | None = None


class UserSessionQuery(Struct, frozen=True, kw_only=True):
    """The ids of user sessions that visits of this person name, in the order of their bytes.

    `within` says which user sessions, `after` is the last id of the page before.
    """

    user_id: str
    within: Within = EVERYTHING
    after: str = ""
    limit: int = 100


def duration_minutes(start: datetime, end: datetime | None) -> int | None:
    """Whole minutes between the times, half a minute counting as one; None without an end, or with one before the
    start.

    The two may come from different clocks, so an end before the start is no reason to refuse a visit; but it says
    nothing about how long that was. SQL stores keep this rule in a generated column, so it holds whoever writes.
    """
    if end is None or end < start:
        return None
    return (end - start + timedelta(seconds=30)) // timedelta(minutes=1)


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def canonical_session_id(text: str) -> str:
    """The UUID in lower case (RFC 9562, section 4). Raises ValueError."""
    if not _UUID.fullmatch(text):
        raise ValueError("must be a UUID such as 0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44")
    return text.lower()


def canonical_ip_address(text: str) -> str:
    """The address in its canonical form (RFC 5952), an IPv4 address inside an IPv6 one by itself. Raises ValueError.

    A server that listens on both protocols sees 203.0.113.7 as ::ffff:203.0.113.7; the person is the same.
    """
    try:
        if "%" in text:  # a zone means something on one machine only
            raise ValueError
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address such as 203.0.113.7 or 2001:db8::7, and no more") from None
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)


_UNKEEPABLE = re.compile("[\x00\ud800-\udfff]")


def check_text(text: str, most: int = MAX_TEXT_LENGTH) -> None:
    """Any text of so many code points that every store can keep."""
    if len(text) > most:
        raise ValueError(f"must have at most {most} characters, has {len(text)}")
    if _UNKEEPABLE.search(text):
        raise ValueError("must not contain the character U+0000 or lone surrogates")


def check_count(number: int) -> None:
    """0 to 2^31 - 1."""
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"must be from 0 to {MAX_COUNT}")
