"""What was asked of sessions and answered, and what follows from it: a checker of histories that needs no second store.

    entries = [Entry("a", "save", "1", start=0.0), …]
    check(entries)

Every request is recorded with its time span and answer, and no state is sent twice. Because each write is answered
with a version, it is enough to look at each session by itself, in one pass for each rule, with no search over orders.
No order is needed between requests to one session at the same time: only what one answer tells before another request
begins binds that one.

A request of unknown outcome has or has not done its work, by its `end` at the latest: give it the time from which on
nothing that was cut off can still be carried out.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Verb = Literal["save", "touch", "delete", "load"]
Outcome = Literal["ok", "failed", "unknown"]


class Tag(NamedTuple):
    """One version of one life of a session."""

    session_id: str
    version: int

    @classmethod
    def of(cls, etag: str) -> Tag:
        session_id, _, version = etag.strip('"').rpartition("-")
        return cls(session_id, int(version))

    def __str__(self) -> str:
        return f'"{self.session_id}-{self.version}"'


@dataclass(slots=True)
class Entry:
    """One request.

    sent            the state in it
    start, end      when it was sent, and when its answer was there, in seconds of one clock
    tag, state      the version that its answer tells of
    expects         its precondition: this version, or none at all (""); None: it has no precondition
    current         what a failed precondition was answered with
    """

    user_session_id: str
    verb: Verb
    sent: str | None
    start: float
    end: float = math.inf
    outcome: Outcome = "unknown"
    status: int = 0
    tag: Tag | None = None
    state: str | None = None
    expects: Tag | Literal[""] | None = None
    current: Tag | None = None

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Note what an answer over HTTP says."""
        self.end, self.status = time.monotonic(), status
        content = json.loads(body)
        tag = Tag.of(headers["etag"]) if "etag" in headers else None
        if status in (200, 201):
            self.outcome, self.state, self.tag = "ok", content.get("chat_state"), tag
        elif status in (404, 412) or (status == 503 and content.get("outcome") != "unknown"):
            self.outcome, self.current = "failed", tag
        else:
            self.end = math.inf  # what an unknown request does, it may do later

    @property
    def shows_absence(self) -> bool:
        """Whether the answer says that there was no session at some moment in its span."""
        return self.status in (201, 404)


class LostWrite(AssertionError):
    """The answers contradict each other; the message says how, and names the seed."""


def check(
    entries: Sequence[Entry],
    *,
    staleness: float = 0.0,
    dirty_until: float = -math.inf,
    skips: int = 0,
    seed: object = None,
) -> None:
    """Raise LostWrite where answers contradict each other.

    staleness  by how many seconds a load may lag behind, where the store says that it may
    dirty_until  until when a load, or a refusal, may show what nobody was told of as done and what was taken back
                 later, where the store says that it may
    skips      how many versions of a session a failover skips, where the store says that it does; and of no session
               there are as many
    seed       what replays the history, for the message
    """
    by_id: dict[str, list[Entry]] = defaultdict(list)
    acknowledged = {entry.tag for entry in entries if entry.outcome == "ok" and entry.verb != "load"}
    for entry in entries:
        if entry.start < dirty_until and _may_be_dirty(entry, acknowledged):
            continue
        # A load that may lag shows what was there at some moment in a span that begins so much earlier.
        lag = staleness if entry.verb == "load" else 0.0
        by_id[entry.user_session_id].append(replace(entry, start=entry.start - lag))
    for user_session_id, some in by_id.items():
        for rule in RULES:
            counted = skips and rule in (versions_have_writers, preconditions_are_kept)
            for entry in rule([_without_skips(entry, skips) for entry in some] if counted else some):
                told = "\n".join(f"  {other}"[:300] for other in _neighbours(some, entry))
                raise LostWrite(f"seed {seed}, {user_session_id}: {rule.__doc__} Not so:\n  {entry}\n{told}")


def _may_be_dirty(entry: Entry, acknowledged: Collection[Tag | None]) -> bool:
    """Whether it shows something that no acknowledged write has made."""
    return entry.status == 404 or (entry.verb == "load" and entry.outcome == "ok" and entry.tag not in acknowledged)


def _without_skips(entry: Entry, skips: int) -> Entry:
    """The request as if nothing had been skipped."""

    def counted(tag: Tag | None) -> Tag | None:
        return tag and Tag(tag.session_id, tag.version % skips)

    return replace(
        entry,
        tag=counted(entry.tag),
        current=counted(entry.current),
        expects=counted(entry.expects) if isinstance(entry.expects, Tag) else entry.expects,
    )


def _neighbours(entries: list[Entry], entry: Entry) -> list[Entry]:
    position = next((number for number, other in enumerate(entries) if other is entry), len(entries))
    return entries[max(0, position - 12) : position]


# --- What a store that loses nothing may answer; each rule yields the requests whose answers break it -----------------


def _sightings(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.outcome == "ok" and entry.tag]


def _deletes(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.verb == "delete" and entry.outcome != "failed"]


def only_known_statuses(entries: list[Entry]) -> Iterator[Entry]:
    """Only success, absence, a failed precondition and an unavailable store are answered."""
    return (entry for entry in entries if entry.status not in (0, 200, 201, 404, 412, 503))


def writes_answer_what_was_sent(entries: list[Entry]) -> Iterator[Entry]:
    """An acknowledged write answers with the very state that was sent."""
    return (entry for entry in _sightings(entries) if entry.verb == "save" and entry.state != entry.sent)


def one_version_has_one_writer(entries: list[Entry]) -> Iterator[Entry]:
    """No two acknowledged writes have the same version."""
    seen: set[Tag] = set()
    for entry in _sightings(entries):
        if entry.verb != "load" and entry.tag:
            if entry.tag in seen:
                yield entry
            seen.add(entry.tag)


def one_version_has_one_state(entries: list[Entry]) -> Iterator[Entry]:
    """Whoever sees a version sees the same state, byte for byte."""
    states: dict[Tag, str | None] = {}
    for entry in _sightings(entries):
        if entry.tag and states.setdefault(entry.tag, entry.state) != entry.state:
            yield entry


def only_sent_states_are_seen(entries: list[Entry]) -> Iterator[Entry]:
    """What is seen was sent before, by a request that did not report its failure."""
    sent = {entry.sent: entry.start for entry in entries if entry.sent and entry.outcome != "failed"}
    for entry in _sightings(entries):
        if entry.state is None or sent.get(entry.state, math.inf) > entry.end:
            yield entry


def versions_never_go_back(entries: list[Entry]) -> Iterator[Entry]:
    """A request that began after a version was seen sees that or a later one of it, and a write makes a later one."""
    ended = sorted(_sightings(entries), key=lambda entry: entry.end)
    newest: dict[str, int] = {}
    position = 0
    for entry in sorted(ended, key=lambda entry: entry.start):
        while ended[position].end < entry.start:
            tag = ended[position].tag
            assert tag is not None
            newest[tag.session_id] = max(newest.get(tag.session_id, 0), tag.version)
            position += 1
        assert entry.tag is not None
        if entry.tag.version < newest.get(entry.tag.session_id, 0) + (entry.verb != "load"):
            yield entry


def versions_have_writers(entries: list[Entry]) -> Iterator[Entry]:
    """There are no more versions than acknowledged writes and writes of unknown outcome."""
    newest: dict[str, Entry] = {}
    for entry in _sightings(entries):
        assert entry.tag is not None
        other = newest.setdefault(entry.tag.session_id, entry)
        if other.tag and entry.tag.version > other.tag.version:
            newest[entry.tag.session_id] = entry
    versions = sum(entry.tag.version for entry in newest.values() if entry.tag)
    writers = sum(entry.verb in ("save", "touch") and entry.outcome != "failed" for entry in entries)
    if versions > writers:
        yield max(newest.values(), key=lambda entry: entry.start)


def sessions_vanish_only_by_deletion(entries: list[Entry]) -> Iterator[Entry]:
    """A session that was seen is absent, or another one, only if a request to delete it came in between."""
    ended = sorted(_sightings(entries), key=lambda entry: entry.end)
    deletes = _deletes(entries)
    latest: Entry | None = None
    position = 0
    for entry in sorted(
        (entry for entry in entries if entry.tag or entry.shows_absence), key=lambda entry: entry.start
    ):
        while position < len(ended) and ended[position].end < entry.start:
            if latest is None or ended[position].start > latest.start:
                latest = ended[position]
            position += 1
        if latest is None or _same_life(entry, latest):
            continue
        if not any(delete.end > latest.start and delete.start < entry.end for delete in deletes):
            yield entry


def _same_life(entry: Entry, other: Entry) -> bool:
    return bool(entry.tag and other.tag and entry.tag.session_id == other.tag.session_id)


def the_deleted_stays_deleted(entries: list[Entry]) -> Iterator[Entry]:
    """A session that was seen before an acknowledged deletion is never seen after it."""
    lives: dict[str, list[Entry]] = defaultdict(list)
    for entry in _sightings(entries):
        assert entry.tag is not None
        lives[entry.tag.session_id].append(entry)
    deletions = [entry for entry in _deletes(entries) if entry.outcome == "ok"]
    for seen in lives.values():
        first, last = min(entry.end for entry in seen), max(seen, key=lambda entry: entry.start)
        if any(first < deletion.start and deletion.end < last.start for deletion in deletions):
            yield last


def preconditions_are_kept(entries: list[Entry]) -> Iterator[Entry]:
    """A write with a precondition succeeds on the version that it names, and is refused on others only."""
    for entry in entries:
        if entry.expects is None:
            continue
        if entry.status == 412 and entry.current is not None and entry.current == entry.expects:
            yield entry
        elif entry.outcome == "ok" and entry.tag and entry.verb != "load":
            before = entry.expects or Tag(entry.tag.session_id, 0)
            if entry.tag != Tag(before.session_id, before.version + 1):
                yield entry


def the_unknown_keeps_its_place(entries: list[Entry]) -> Iterator[Entry]:
    """A write of unknown outcome that is seen has a later version than what was seen before it began, and an earlier
    one than each write that began after it could last be carried out."""
    first: dict[str | None, Tag] = {}  # touching a session repeats its state in later versions
    for entry in _sightings(entries):
        assert entry.tag is not None
        first[entry.state] = min(first.get(entry.state, entry.tag), entry.tag)
    for entry in entries:
        if entry.outcome == "unknown" and entry.sent in first and not _fits(entry, first[entry.sent], entries):
            yield entry


def _fits(entry: Entry, tag: Tag, entries: list[Entry]) -> bool:
    """Whether the save may have made this version or one before it that was touched since."""
    for other in _sightings(entries):
        assert other.tag is not None
        if other.tag.session_id == tag.session_id:
            if other.end < entry.start and other.tag.version >= tag.version:
                return False
            if other.start > entry.end and other.verb == "save" and other.tag.version <= tag.version:
                return False
    return True


Rule = Callable[[list[Entry]], Iterator[Entry]]
RULES: tuple[Rule, ...] = (
    only_known_statuses,
    writes_answer_what_was_sent,
    one_version_has_one_writer,
    one_version_has_one_state,
    only_sent_states_are_seen,
    versions_never_go_back,
    versions_have_writers,
    sessions_vanish_only_by_deletion,
    the_deleted_stays_deleted,
    preconditions_are_kept,
    the_unknown_keeps_its_place,
)
