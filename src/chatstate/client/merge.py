"""A three-way merge of JSON values: what I have made of `base`, applied to what others have made of it.

It merges only what cannot be meant otherwise:

* a member, or an element of a list that kept its length, that one side alone has changed, added or removed;
* what both have appended to a list: theirs first, then mine;
* the same change on both sides, unless it is a number: two times `+ 1` looks like one.

Everything else is a conflict, and nothing is merged at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from chatstate.client.errors import MergeConflict

_MISSING: Any = object()


def merge(base: Any, mine: Any, theirs: Any) -> Any:
    """Raises `MergeConflict` with the JSON Pointers (RFC 6901) of the places that both have changed."""
    conflicts: list[str] = []
    merged = _merge(base, mine, theirs, "", conflicts)
    if conflicts:
        error = MergeConflict(f"both have changed {', '.join(path or 'the state' for path in conflicts)}")
        error.paths = tuple(conflicts)
        raise error
    return merged


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON; `1`, `1.0` and `true` are three different values."""
    if one is _MISSING or other is _MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _merge(base: Any, mine: Any, theirs: Any, path: str, conflicts: list[str]) -> Any:
    if same(base, mine):
        return theirs
    if same(base, theirs):
        return mine
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return _merge_objects(base if isinstance(base, dict) else {}, mine, theirs, path, conflicts)
    if isinstance(mine, list) and isinstance(theirs, list):
        merged = _merge_lists(base if isinstance(base, list) else [], mine, theirs, path, conflicts)
        if merged is not None:
            return merged
    elif _agreed(mine, theirs):
        return mine
    conflicts.append(path)
    return theirs


def _merge_objects(
    base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any], path: str, conflicts: list[str]
) -> dict[str, Any]:
    merged = {}
    for name in dict.fromkeys([*theirs, *mine]):  # in their order, and then what is new of mine
        place = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        was, ours, other = (values.get(name, _MISSING) for values in (base, mine, theirs))
        value = _merge(was, ours, other, place, conflicts)
        if value is not _MISSING:
            merged[name] = value
    return merged


def _merge_lists(
    base: list[Any], mine: list[Any], theirs: list[Any], path: str, conflicts: list[str]
) -> list[Any] | None:
    """None when a side has neither appended to the list nor kept its length: nobody can tell then what has moved."""
    size = len(base)
    if not all(len(side) == size or (len(side) > size and same(side[:size], base)) for side in (mine, theirs)):
        return None
    return [*_merge_elements(base, mine, theirs, path, conflicts), *theirs[size:], *mine[size:]]


def _merge_elements(
    base: list[Any], mine: list[Any], theirs: list[Any], path: str, conflicts: list[str]
) -> Iterator[Any]:
    """An element that both have changed is a conflict, wherever in it: perhaps one of them has moved the elements."""
    for index, element in enumerate(base):
        if same(element, mine[index]):
            yield theirs[index]
            continue
        if not (same(element, theirs[index]) or _agreed(mine[index], theirs[index])):
            conflicts.append(f"{path}/{index}")
        yield mine[index]


def _agreed(mine: Any, theirs: Any) -> bool:
    return same(mine, theirs) and (isinstance(mine, bool) or not isinstance(mine, int | float))
