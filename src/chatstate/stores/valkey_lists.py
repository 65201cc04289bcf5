"""Lists over sorted sets that lie on many slots: all members within bounds, in order, from as many sets as there are.

Each node is asked for the first member of each of its sets, some hundreds of sets with one script, so that it never
stops for long; then those sets alone are asked for more whose first member is among the first so many of all, and
again those alone that may have more of them. A page costs a look into every set, whatever is in them: 16384 for
sessions, 256 for all else (docs/explanation/scale.md). Where slots are moving each set is asked for by itself: it is
on the one node or the other as a whole, and the cluster says on which.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from chatstate.errors import StoreError
from chatstate.stores.lua import Script, script
from chatstate.stores.valkey_cluster import Call, Cluster, SlotsMoving
from chatstate.stores.valkey_keys import BUCKETS, Collection, bucket_tag, slot_of, slot_tags

_AT_ONCE = 512
"""How many sets one script looks into."""

_FLAGS = "no-writes,allow-cross-slot-keys"
_HEADS = script("heads", _FLAGS)
_COUNT = script("count", _FLAGS)


class SortedSet(NamedTuple):
    """One of the sets: what its name is made of, of which the hash tag has three letters; and its slot."""

    before: str
    tag: str
    after: str
    slot: int

    @property
    def name(self) -> str:
        return f"{self.before}{self.tag}{self.after}"


@cache
def of_all_slots(prefix: str, name: str) -> tuple[SortedSet, ...]:
    """The set of this name of each slot."""
    return tuple(SortedSet(f"{prefix}{{", tag, f"}}:{name}", slot) for slot, tag in enumerate(slot_tags()))


@cache
def of_all_buckets(prefix: str, collection: Collection, name: str) -> tuple[SortedSet, ...]:
    """The set of this name of each bucket."""
    tags = (bucket_tag(collection, number) for number in range(BUCKETS))
    return tuple(SortedSet(f"{prefix}{{", tag, f"}}:{name}", slot_of(tag)) for tag in tags)


class Bounds(NamedTuple):
    """Which members, in words of `ZRANGE … BYLEX`: `[` includes, `(` excludes, `-` and `+` are the ends."""

    first: bytes = b"-"
    last: bytes = b"+"
    from_the_end: bool = False


ALL = Bounds()


class Member(NamedTuple):
    """A member of one of the sets."""

    text: bytes
    of: SortedSet


async def first_members(cluster: Cluster, sets: Sequence[SortedSet], bounds: Bounds, limit: int) -> list[bytes]:
    """The first `limit` members of all sets together, in order."""
    return [member.text for member in await first_found(cluster, sets, bounds, limit)]


async def first_found(cluster: Cluster, sets: Sequence[SortedSet], bounds: Bounds, limit: int) -> list[Member]:
    """The same, and of which set each is."""
    heads = await _heads(cluster, sets, bounds)
    heads.sort(reverse=bounds.from_the_end)
    left = {head.of: bounds for head in heads[:limit]}
    each = _spare(limit, len(left))
    found: list[Member] = []
    while left:
        pages = await cluster.read([_range(one, within, each) for one, within in left.items()])
        ends = {}
        for one, page in zip(left, pages, strict=True):
            found += [Member(text, one) for text in page]
            if len(page) == each:
                ends[one] = page[-1]
        found.sort(reverse=bounds.from_the_end)
        del found[limit:]
        left = {one: _behind(end, bounds) for one, end in ends.items() if _may_have_more(found, limit, end, bounds)}
        each *= 2
    return found


def _spare(limit: int, sets: int) -> int:
    """How many members to ask each of so many sets for: mostly enough, when they are spread evenly."""
    return min(limit, 2 * limit // max(sets, 1) + 4)


def _behind(member: bytes, bounds: Bounds) -> Bounds:
    edge = b"(" + member
    return bounds._replace(last=edge) if bounds.from_the_end else bounds._replace(first=edge)


def _may_have_more(found: Sequence[Member], limit: int, end: bytes, bounds: Bounds) -> bool:
    """Whether a set that was read up to `end` may have more of the first `limit` members."""
    if len(found) < limit:
        return True
    last = found[-1].text
    return end > last if bounds.from_the_end else end < last


async def count_members(cluster: Cluster, sets: Sequence[SortedSet], bounds: Bounds) -> int:
    """How many there are."""
    return sum([count for _, count in await _told(cluster, sets, _COUNT, bounds.first, bounds.last)])


def _range(one: SortedSet, bounds: Bounds, limit: int) -> Call:
    ends = (bounds.last, bounds.first) if bounds.from_the_end else (bounds.first, bounds.last)
    order = ("REV",) if bounds.from_the_end else ()
    return Call(one.slot, ("ZRANGE", one.name, *ends, "BYLEX", *order, "LIMIT", 0, limit))


async def _heads(cluster: Cluster, sets: Sequence[SortedSet], bounds: Bounds) -> list[Member]:
    return await look_into(cluster, sets, _HEADS, int(bounds.from_the_end), bounds.first, bounds.last)


async def look_into(
    cluster: Cluster, sets: Sequence[SortedSet], script: Script, *given: str | bytes | int
) -> list[Member]:
    """The members that a script finds in these sets, and in which set each is."""
    return [
        Member(member, some[place])
        for some, flat in await _told(cluster, sets, script, *given)
        for place, member in zip(flat[::2], flat[1::2], strict=True)
    ]


async def _told(
    cluster: Cluster, sets: Sequence[SortedSet], script: Script, *given: str | bytes | int
) -> list[tuple[Sequence[SortedSet], Any]]:
    """What a script tells of these sets, some hundreds at once, or one where slots are moving."""
    parts = _parts(cluster, sets)
    replies = await cluster.read_some([_over(part, script, *given) for part in parts])
    told: list[tuple[Sequence[SortedSet], Any]] = []
    apart: list[SortedSet] = []
    for part, reply in zip(parts, replies, strict=True):
        if isinstance(reply, SlotsMoving):
            apart += part.sets
        elif isinstance(reply, StoreError):
            raise reply
        else:
            told.append((part.sets, reply))
    replies = await cluster.read([_into(one, script, *given) for one in apart])
    return [*told, *(([one], reply) for one, reply in zip(apart, replies, strict=True))]


class _Part(NamedTuple):
    """Some of the sets that are on one node, and their tags."""

    sets: Sequence[SortedSet]
    tags: str


def _over(part: _Part, script: Script, *given: str | bytes | int) -> Call:
    """A script that looks into all these sets. It makes their names: they would be most of what is sent."""
    first = part.sets[0]
    words = ("EVALSHA_RO", script.sha, 0, first.before, first.after, part.tags, *given)
    return Call(first.slot, words, script)


def _into(one: SortedSet, script: Script, *given: str | bytes | int) -> Call:
    """The same for one set, whose name the node is given as a key: so it says whether it has it."""
    words = ("EVALSHA_RO", script.sha, 1, one.name, one.before, one.after, one.tag, *given)
    return Call(one.slot, words, script)


_known: dict[int, tuple[object, object, list[_Part]]] = {}
"""Of those that are of all slots or buckets: the sets, for which nodes they were parted, and the parts."""

_MOST_KNOWN = 100


def _parts(cluster: Cluster, sets: Sequence[SortedSet]) -> list[_Part]:
    """The sets of each node, some hundreds at once."""
    of, nodes, parts = _known.get(id(sets), (None, None, []))
    if of is sets and nodes is cluster.shards:
        return parts
    by_node: dict[object, list[SortedSet]] = {}
    for one in sets:
        by_node.setdefault(cluster.owner_of(one.slot), []).append(one)
    pieces = [some[start : start + _AT_ONCE] for some in by_node.values() for start in range(0, len(some), _AT_ONCE)]
    parts = [_Part(piece, "".join([one.tag for one in piece])) for piece in pieces]
    if isinstance(sets, tuple):
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(sets)] = (sets, cluster.shards, parts)
    return parts
