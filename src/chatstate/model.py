"""What a session is, what a write says, and the rules for ids, states and times: pure values, no I/O.

A `Session` is what a store keeps. A `Write` is one value that says what it changes and what it expects to find
(`Expect`), so that a store can compare and set in one step. The `check_*` functions raise `ValueError` with a message
for the person who sent the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

from msgspec import DecodeError, Raw, Struct
from msgspec.json import decode

from chatstate.mailbox import EraseMail, Settle

MAX_ID_LENGTH = 255
"""Longest `user_session_id`, in code points."""

MAX_EXPIRES_IN = 100 * 31_557_600
"""The longest expiry, in seconds: a hundred years."""

EARLIEST = datetime.min.replace(tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)
"""The ends of the calendar."""

MAX_STATE_DEPTH = 128
"""Deepest nesting of a state that is sent as a JSON object or array."""


class Tag(NamedTuple):
    """Names one version of one session. After a deletion the `session_id` is a new one: an old tag never matches again.

    `session_id` is a UUID wherever we made the row; a table that another program made may hold other text.
    """

    session_id: str
    version: int

    def __str__(self) -> str:
        return f"{self.session_id}-{self.version}"


class Session(Struct, frozen=True):
    """A stored session. Times are aware and in UTC; `version` is 1 after creation and rises by one with each write.

    `expires_at` is None for a session without an expiry of its own.
    """

    session_id: str
    user_session_id: str
    chat_state: str
    last_activity: datetime
    created_at: datetime
    updated_at: datetime
    version: int
    expires_at: datetime | None = None

    @property
    def tag(self) -> Tag:
        return Tag(self.session_id, self.version)

    @property
    def is_new(self) -> bool:
        """Whether the write that gave this session created it."""
        return self.version == 1


class Expect(Struct, frozen=True):
    """What a write expects to find: may the session be absent, and if it is present, which versions will do.

    absent  whether an absent session satisfies it
    only    the versions that satisfy it; None means every version, an empty set means none
    unless  versions that do not satisfy it
    """

    absent: bool = True
    only: frozenset[Tag] | None = None
    unless: frozenset[Tag] = frozenset()

    def allows(self, current: Tag | None) -> bool:
        """Whether a session in this version (None: absent) satisfies the expectation."""
        if current is None:
            return self.absent
        return (self.only is None or current in self.only) and current not in self.unless

    def __and__(self, other: Expect) -> Expect:
        """Both expectations at once."""
        if other is ANYTHING:
            return self
        only = self.only if other.only is None else other.only if self.only is None else self.only & other.only
        return Expect(self.absent and other.absent, only, self.unless | other.unless)


ANYTHING = Expect()
PRESENT = Expect(absent=False)
ABSENT = Expect(only=frozenset())


def one_of(tags: Iterable[Tag]) -> Expect:
    """The session is present, in one of these versions."""
    return Expect(absent=False, only=frozenset(tags))


def none_of(tags: Iterable[Tag]) -> Expect:
    """The session is absent, or in none of these versions."""
    return Expect(unless=frozenset(tags))


class IdempotencyKey(Struct, frozen=True):
    """Makes a write happen once: within (caller, session, key) it is applied once and remembered.

    `digest` names the request (SHA-256), so that the same key with another request is noticed.
    """

    key: str
    digest: bytes
    caller: str = ""


REMEMBERED_FOR = timedelta(hours=24)
"""How long a store remembers an idempotency key."""


class Retention(Struct, frozen=True):
    """How long sessions and their versions are kept: the server's settings, which every store applies alike.

    idle     how long after its last write a session without an expiry of its own expires; None: never
    history  how many versions of each session are kept, the current one among them; 0: the current one alone
    visits   how long visits are kept after they were created; None: for ever
    """

    idle: timedelta | None = None
    history: int = 0
    visits: timedelta | None = None

    def idle_since(self, now: datetime) -> datetime | None:
        """Sessions without an expiry of their own that were last written then or earlier have expired."""
        return None if self.idle is None else before(now, self.idle)

    def visits_since(self, now: datetime) -> datetime | None:
        """Visits that were created then or earlier have been kept for long enough."""
        return None if self.visits is None else before(now, self.visits)


def before(now: datetime, span: timedelta) -> datetime:
    """So long ago; at the earliest the beginning of the calendar."""
    return now - span if now - EARLIEST >= span else EARLIEST


def retention_of(history: int, idle_seconds: int | None, days: int | None) -> Retention:
    """The retention that these settings come to; `days` is for how long anything is kept."""
    spans = [timedelta(seconds=idle_seconds)] if idle_seconds is not None else []
    kept = None if days is None else timedelta(days=days)
    if kept is not None:
        spans.append(kept)
    return Retention(min(spans, default=None), history, kept)


KEEP = Retention()
"""Nothing expires by itself, and only current versions are kept."""


class Within(Struct, frozen=True):
    """Which sessions somebody may know of: those whose ids begin with `prefix`; or, if `only` is given, that one alone.

    Whether a session is among them follows from its id, so no statement needs to look it up first.
    """

    prefix: str = ""
    only: str | None = None

    def covers(self, user_session_id: str) -> bool:
        if self.only is not None:
            return user_session_id == self.only
        return user_session_id.startswith(self.prefix)

    def narrowed(self, prefix: str) -> str | None:
        """What the ids of those that also begin with this prefix begin with; None: there are none."""
        if prefix.startswith(self.prefix):
            return prefix
        return self.prefix if self.prefix.startswith(prefix) else None


EVERYTHING = Within()
"""All sessions."""

Scope = Literal["read", "write", "delete", "list", "mint", "export", "admin"]
"""What somebody may do: load, save, delete; list sessions and visits; mint session tokens; take out all that is kept
about somebody; look at the server itself."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
VERBS: tuple[Scope, ...] = ("read", "write", "delete", "export")
"""The scopes that a session token can have: what can be done with the one session that it names."""

LONGEST_TTL = timedelta(days=1)
"""How long a token can be valid at most, whatever the settings say: so long a key that no longer signs it is kept."""


class Save(Struct, frozen=True, kw_only=True):
    """Create the session, or replace its state and raise its version.

    `chat_state` None keeps the state that is there; such a write cannot create. `new_session_id` is used only when the
    session is created. `now` becomes `updated_at`, and on creation `created_at`. `expires_in`, in seconds: the session
    expires so long after its last write; 0: it has no expiry of its own; None: as before. `show_current`: a `Conflict`
    shall bring the session that is there. `settles`: the write is what a message has come to, so it is carried out only
    if that is not done yet; else it is `Settled(False)`, whatever it expects.
    """

    user_session_id: str
    new_session_id: str
    chat_state: str | None
    last_activity: datetime
    now: datetime
    expires_in: int | None = None
    expect: Expect = ANYTHING
    show_current: bool = False
    once: IdempotencyKey | None = None
    settles: Settle | None = None

    def __post_init__(self) -> None:
        if self.chat_state is None and self.expect.absent:
            raise ValueError("a write that keeps the state must expect the session to be present")


class Delete(Struct, frozen=True, kw_only=True):
    """Remove the session, its state and all its versions. An absent session cannot satisfy it.

    What idempotency keys remember outlives it: no state, and only so that a retried write does not bring it back.
    `erases`: the messages that go with it, in the same write, so that none of them brings the session back.
    """

    user_session_id: str
    now: datetime
    expect: Expect = PRESENT
    once: IdempotencyKey | None = None
    erases: EraseMail | None = None

    def __post_init__(self) -> None:
        if self.expect.absent:
            raise ValueError("a deletion must expect the session to be present")


Write = Save | Delete


class Deleted(Struct, frozen=True):
    """A `Delete` has removed the session, which was in this version."""

    tag: Tag


class Conflict(Struct, frozen=True):
    """The session was not what the write expected, and the write changed nothing. `current` None: it is absent.

    `session` is there if the write has asked to see it, and then it is in the version `current`.
    """

    current: Tag | None
    session: Session | None = None


class Replay(Struct, frozen=True):
    """A write with this idempotency key has been applied before; this time nothing was changed.

    `outcome` is what it came to then. `chat_state` is there only if the write kept the state that it found, and until
    the session is deleted: a retry brings its own.
    """

    digest: bytes
    outcome: Summary | Deleted
    chat_state: str | None = None


class Summary(Struct, frozen=True):
    """A session without its state; the members are those of `Session`."""

    session_id: str
    user_session_id: str
    last_activity: datetime
    created_at: datetime
    updated_at: datetime
    version: int
    expires_at: datetime | None = None


class Version(Struct, frozen=True):
    """A version of a session: what was saved when. `size` is in bytes of UTF-8, `chat_state` None if not asked for."""

    session_id: str
    version: int
    last_activity: datetime
    saved_at: datetime
    size: int
    chat_state: str | None = None


class SessionQuery(Struct, frozen=True, kw_only=True):
    """A page of the sessions that have not expired.

    order    by last activity, newest first, or by id, in the order of its bytes in UTF-8
    after    the last session of the page before
    prefix   only ids that begin with it, literally
    active_after, active_before    only last activities from then on, and before then
    with_state    give `Session`s, not `Summary`s
    """

    now: datetime
    retention: Retention = KEEP
    order: Literal["activity", "id"] = "activity"
    limit: int = 100
    after: Position | None = None
    prefix: str = ""
    active_after: datetime | None = None
    active_before: datetime | None = None
    with_state: bool = False


class Position(NamedTuple):
    """Where a session stands in a list."""

    last_activity: datetime
    user_session_id: str


class TagQuery(Struct, frozen=True, kw_only=True):
    """Which versions these sessions are in: a `Tagged` for each that is present, in any order."""

    ids: Sequence[str]
    now: datetime
    retention: Retention = KEEP


class Tagged(NamedTuple):
    """A session, and the version that it is in."""

    user_session_id: str
    tag: Tag


class VersionQuery(Struct, frozen=True, kw_only=True):
    """The versions of a session that are kept, newest first; none when the session is absent.

    `version` asks for that one alone, and `before` for older ones.
    """

    user_session_id: str
    now: datetime
    retention: Retention = KEEP
    version: int | None = None
    before: int | None = None
    limit: int = 100
    with_state: bool = False


class ReplayQuery(Struct, frozen=True, kw_only=True):
    """What is remembered of a write with this key; at most one `Replay`."""

    user_session_id: str
    once: IdempotencyKey
    now: datetime


class Remembered(Struct, frozen=True):
    """That a request with an idempotency key was carried out, and the state if it is kept for a retry."""

    key: str
    at: datetime
    chat_state: str | None


class RememberedQuery(Struct, frozen=True, kw_only=True):
    """All that is remembered of requests to this session: `Remembered`s, in the order of their keys."""

    user_session_id: str
    now: datetime


Shelf = Literal["sessions", "versions", "remembered", "records", "inbox", "outbox"]
"""Where texts lie in a database: states of sessions, of their versions, and of remembered requests; records; messages
that have arrived, and that are to leave."""


class StoredQuery(Struct, frozen=True, kw_only=True):
    """A page of texts as they lie in the database, `Stored`s in the order of their places.

    head   those that begin with this are all right; empty: those are that are not sealed at all
    after  the last place of the page before
    """

    shelf: Shelf
    head: str
    after: tuple[str, ...] = ()
    limit: int = 100


class Stored(Struct, frozen=True):
    """A text as it lies in the database; None: it is all right.

    place  what names its row: the id of a session, with the number of a version; with caller and key, of a remembered
           request; the collection and the key of a record; the key of a message
    """

    shelf: Shelf
    place: tuple[str, ...]
    text: str | None


class Rewrite(Struct, frozen=True, kw_only=True):
    """Put another text in the place of this one, if it still lies there; nothing else about the row changes."""

    shelf: Shelf
    place: tuple[str, ...]
    text: str
    replaced_by: str


class Rewritten(Struct, frozen=True):
    """What became of a `Rewrite`: whether the text still lay there."""

    done: bool


class Swept(Struct, frozen=True):
    """What one step of sweeping has removed, and where the next one goes on; `next` None: all has been looked at."""

    sessions: int
    next: str | None = None


_FORBIDDEN_IN_ID = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_user_session_id(text: str) -> None:
    """1 to 255 code points, no control characters, no lone surrogates, and neither `.` nor `..`."""
    if not text:
        raise ValueError("must not be empty")
    if len(text) > MAX_ID_LENGTH:
        raise ValueError(f"must have at most {MAX_ID_LENGTH} characters, has {len(text)}")
    if _FORBIDDEN_IN_ID.search(text):
        raise ValueError("must not contain control characters or lone surrogates")
    if text in (".", ".."):
        raise ValueError("must not be `.` or `..`, which browsers remove from paths")


def check_prefix(text: str) -> None:
    """What an id can begin with."""
    if len(text) > MAX_ID_LENGTH:
        raise ValueError(f"must have at most {MAX_ID_LENGTH} characters, has {len(text)}")
    if _FORBIDDEN_IN_ID.search(text):
        raise ValueError("must not contain control characters or lone surrogates")


_PAGE = re.compile(
    r"(https?://)((?:[a-z0-9.-]+|\[[0-9a-f:]+\]))(:\d{1,5})?([/?][\w.~!$&'()*+,;=:@%/?-]*)?", re.ASCII | re.I
)
"""Only what every reader of addresses takes for the same: no `\\`, no blanks, no user, no fragment."""

_DEFAULT_PORTS = {("https://", ":443"), ("http://", ":80")}
_LONGEST_PAGE = 2000


def check_page(url: str) -> None:
    """An address that a link can lead to, behind which its secret is put as the fragment."""
    if len(url) > _LONGEST_PAGE or not _PAGE.fullmatch(url):
        raise ValueError("must be the address of a page, such as https://chat.example.org/, without user or fragment")


def origin_of(url: str) -> str:
    """The origin of a page (RFC 6454, section 6.2); empty for what has none."""
    found = _PAGE.fullmatch(url)
    if not found:
        return ""
    scheme, host, port = found[1].lower(), found[2].lower(), found[3] or ""
    return scheme + host + ("" if (scheme, port) in _DEFAULT_PORTS else port)


def prefix_end(prefix: str) -> str | None:
    """The first text behind all that begin with the prefix, in the order of code points; None when there is none."""
    for place in range(len(prefix) - 1, -1, -1):
        if prefix[place] != "\U0010ffff":
            following = ord(prefix[place]) + 1
            return prefix[:place] + chr(0xE000 if following == 0xD800 else following)  # surrogates are in no id
    return None


def check_chat_state(text: str, require_json: bool) -> None:
    """Any text that every store can keep: no U+0000, no lone surrogates, and not the text `[object Object]`."""
    if "\x00" in text:
        raise ValueError(r"must not contain the character U+0000 (the escape \u0000 inside the JSON text is fine)")
    if not text.isascii():
        _check_encodable(text)
    if text == "[object Object]":
        raise ValueError("is `[object Object]`: the client sent an object as text; send JSON.stringify(state) instead")
    if require_json and not is_json(text):
        raise ValueError("must be the text of a JSON document (this server runs with CHATSTATE_REQUIRE_JSON)")


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates, which no UTF-8 text can carry") from None


def state_size(text: str) -> int:
    """The size that the limit counts: bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def without_surrogates(document: bytes) -> bytes:
    """The JSON document with other escapes, of the same length, in place of those of surrogates.

    The grammar allows escapes of lone surrogates (RFC 8259, section 8.2), only the parser used here does not.
    """
    return _SURROGATE_ESCAPE.sub(rb"\\ufffd", document)


def is_json(text: str) -> bool:
    """Whether the text is one JSON document (RFC 8259), nested no deeper than `MAX_STATE_DEPTH`."""
    document = text.encode()
    try:
        decode(without_surrogates(document), type=Raw)
    except (DecodeError, RecursionError):
        return False
    return json_depth(document) <= MAX_STATE_DEPTH


_JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def json_depth(document: bytes) -> int:
    """How deeply the arrays and objects of a valid JSON document are nested; 0 for a scalar."""
    steps = _JSON_STRING.sub(b"", document).translate(_BRACKETS, _NOT_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_time(text: str) -> datetime:
    """An RFC 3339 date-time (section 5.6), as an aware time in UTC.

    A fraction beyond microseconds is cut off; a leap second (`:60`) becomes the next second. Raises ValueError.
    """
    match = _RFC3339.fullmatch(text)
    if not match:
        raise ValueError("must be an RFC 3339 time such as 2025-10-02T10:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    microsecond = int((match[7] or "").ljust(6, "0")[:6])
    leap = second == 60
    try:
        zone = timezone(_offset(match[8], match[9], match[10]))
        time = datetime(year, month, day, hour, minute, second - leap, microsecond, zone).astimezone(UTC)
        return time + timedelta(seconds=leap)
    except (ValueError, OverflowError):
        raise ValueError("must be a time that exists, between the years 0001 and 9999 in UTC") from None


def _offset(sign: str | None, hours: str | None, minutes: str | None) -> timedelta:
    if sign is None:
        return timedelta()
    if int(minutes or 0) > 59:
        raise ValueError("minutes of an offset")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    return -offset if sign == "-" else offset


def format_time(time: datetime) -> str:
    """An RFC 3339 time in UTC with `Z` and 0, 3 or 6 digits of fraction, as few as it needs."""
    if time.tzinfo is not UTC:
        time = time.astimezone(UTC)
    text = time.isoformat()[:-6]
    return (text[:-3] if text.endswith("000") and time.microsecond else text) + "Z"


def utc_now() -> datetime:
    """The default clock. Everything that needs the time takes a clock like this one, so that tests can set it."""
    return datetime.now(UTC)
