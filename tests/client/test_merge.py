"""The three-way merge: what is merged, what is a conflict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatstate.client import MergeConflict
from chatstate.client.merge import merge, same

MERGED: list[tuple[Any, Any, Any, Any]] = [  # base, mine, theirs, merged
    ({}, {"a": 1}, {"b": 2}, {"b": 2, "a": 1}),
    ({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}),
    ({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 2}, {"b": 2}),
    ({"a": {"b": {}}}, {"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 1}}}, {"a": {"b": {"d": 1, "c": 1}}}),
    ([1], [1, 2], [1, 3], [1, 3, 2]),
    ([], ["same"], ["same"], ["same", "same"]),  # two people have said it
    ({}, {"messages": ["a"]}, {"messages": ["b"]}, {"messages": ["b", "a"]}),
    ({}, {"a": {"x": 1}}, {"a": {"y": 1}}, {"a": {"y": 1, "x": 1}}),
    ([{"read": False}], [{"read": True}], [{"read": False}, {"new": 1}], [{"read": True}, {"new": 1}]),
    ([1, 2], [9, 2], [1, 8], [9, 8]),
    ([1, 2, 3], [2, 3, 4], [1, 2, 3, 5], [2, 3, 4, 5]),  # a window that moves on
    ({"step": "a"}, {"step": "b"}, {"step": "b"}, {"step": "b"}),
    ({"done": False}, {"done": True}, {"done": True}, {"done": True}),
    ({"a": 1}, {}, {}, {}),
    ({"a": 1}, {"a": None}, {"a": 1}, {"a": None}),
]


@pytest.mark.parametrize(("base", "mine", "theirs", "merged"), MERGED)
def test_what_cannot_be_meant_otherwise_is_merged(base: Any, mine: Any, theirs: Any, merged: Any) -> None:
    assert merge(base, mine, theirs) == merged
    if isinstance(merged, dict):
        assert list(merge(base, mine, theirs)) == list(merged)


CONFLICTS: list[tuple[Any, Any, Any, list[str]]] = [
    ({"a": 1}, {"a": 2}, {"a": 3}, ["/a"]),
    ({"n": 1}, {"n": 2}, {"n": 2}, ["/n"]),  # both have counted
    ({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 3}, ["/a", "/b"]),
    ({"a": {"x": 1}}, {}, {"a": {"x": 2}}, ["/a"]),
    ({"a": {"x": 1}}, {"a": {"x": 2}}, {}, ["/a"]),
    ({"a/b": {"~": 1}}, {"a/b": {"~": 2}}, {"a/b": {"~": 3}}, ["/a~1b/~0"]),
    ([1, 2], [2], [1, 2, 3], [""]),
    ([1, 2], [0, 1, 2], [1, 2, 3], [""]),
    ([{"a": 1, "b": 1}], [{"a": 2, "b": 1}], [{"a": 1, "b": 2}], ["/0"]),  # perhaps it is not the same element
    ([1], [True], [1.0], ["/0"]),
    ({}, {"a": []}, {"a": {}}, ["/a"]),
    ({}, {"a": 1}, {"a": 1}, ["/a"]),
    ("a", "b", "c", [""]),
]


@pytest.mark.parametrize(("base", "mine", "theirs", "paths"), CONFLICTS)
def test_everything_else_is_a_conflict(base: Any, mine: Any, theirs: Any, paths: list[str]) -> None:
    with pytest.raises(MergeConflict) as conflict:
        merge(base, mine, theirs)
    assert list(conflict.value.paths) == paths


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_a_change_of_one_side_alone_is_taken_as_it_is(base: Any, changed: Any) -> None:
    assert same(merge(base, changed, base), changed)
    assert same(merge(base, base, changed), changed)


@given(values, values, values)
def test_both_orders_agree_on_what_is_a_conflict(base: Any, mine: Any, theirs: Any) -> None:
    def outcome(one: Any, other: Any) -> set[str]:
        try:
            merge(base, one, other)
        except MergeConflict as conflict:
            return set(conflict.paths)
        return set()

    assert outcome(mine, theirs) == outcome(theirs, mine)
