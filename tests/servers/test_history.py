"""Does the checker of histories find each way in which answers can contradict each other?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from .history import RULES, Entry, LostWrite, Tag, Verb, check


def tag(version: int, life: str = "life") -> Tag:
    return Tag(life, version)


def save(number: int, span: tuple[float, float], **given: Any) -> Entry:
    """An acknowledged save of the state `number`, which is this version."""
    state = str(number)
    members = {"outcome": "ok", "status": 200, "tag": tag(number), "state": state, **given}
    return Entry("a", "save", state, *span, **members)


def load(number: int, span: tuple[float, float], **given: Any) -> Entry:
    """A load that shows this version, with its state."""
    return Entry(
        "a", "load", None, *span, **{"outcome": "ok", "status": 200, "tag": tag(number), "state": str(number), **given}
    )


def lost(number: int, span: tuple[float, float], **given: Any) -> Entry:
    """A save whose outcome nobody knows."""
    return Entry("a", "save", str(number), *span, status=503, **given)


def failed(status: int, span: tuple[float, float], verb: Verb = "load", **given: Any) -> Entry:
    return Entry("a", verb, None, *span, outcome="failed", status=status, **given)


def delete(span: tuple[float, float], **given: Any) -> Entry:
    return Entry("a", "delete", None, *span, **{"outcome": "ok", "status": 200, **given})


FINE: dict[str, Sequence[Entry]] = {
    "one after the other": [save(1, (0, 1)), load(1, (2, 3)), save(2, (4, 5)), load(2, (6, 7))],
    "at the same time": [save(2, (0, 9)), save(1, (0, 9)), load(2, (1, 2)), load(1, (1, 3)), load(2, (10, 11))],
    "expecting": [save(1, (0, 1), expects=""), save(2, (2, 3), expects=tag(1)), load(2, (4, 5))],
    "refused": [
        save(1, (0, 1)),
        save(2, (2, 3)),
        failed(412, (4, 5), "save", expects=tag(1), current=tag(2)),
        load(2, (6, 7)),
    ],
    "unknown and done": [save(1, (0, 1)), lost(2, (2, 3)), load(2, (4, 5)), save(3, (6, 7))],
    "unknown and not done": [save(1, (0, 1)), lost(9, (2, 3)), load(1, (4, 5)), save(2, (6, 7))],
    "unknown and done late": [save(1, (0, 1)), lost(3, (2, 8)), save(2, (4, 5)), load(3, (6, 7))],
    "unknown, done and touched": [
        save(1, (0, 1)),
        lost(2, (2, 3)),
        replace(load(3, (4, 5)), verb="touch", state="2"),
        load(3, (6, 7), state="2"),
    ],
    "deleted": [save(1, (0, 1)), delete((2, 3)), failed(404, (4, 5))],
    "deleted, perhaps": [save(1, (0, 1)), delete((2, 3), outcome="unknown", status=503), load(1, (4, 5))],
    "another life": [save(1, (0, 1)), delete((2, 3)), save(7, (4, 5), status=201, tag=tag(1, "other"))],
}

BROKEN: dict[str, Sequence[Entry]] = {
    "only_known_statuses": [save(1, (0, 1)), failed(500, (2, 3))],
    "writes_answer_what_was_sent": [save(1, (0, 1), state="another")],
    "one_version_has_one_writer": [save(1, (0, 9)), replace(save(2, (0, 9)), tag=tag(1))],
    "one_version_has_one_state": [save(1, (0, 9)), save(2, (0, 9)), load(1, (10, 11)), load(2, (0, 9), state="1")],
    "only_sent_states_are_seen": [save(1, (0, 1)), load(2, (2, 3), state="nobody sent this")],
    "seen before it was sent": [load(1, (0, 1)), save(1, (2, 3))],
    "sent by a request that failed": [
        save(1, (0, 1)),
        Entry("a", "save", "2", 2, 3, outcome="failed", status=503),
        load(2, (4, 5)),
    ],
    "versions_never_go_back": [save(1, (0, 1)), save(2, (2, 3)), load(1, (4, 5))],
    "a later write with an earlier version": [save(2, (0, 1)), save(1, (2, 3))],
    "a read after a read": [save(1, (0, 9)), save(2, (0, 9)), load(2, (1, 2)), load(1, (3, 4))],
    "versions_have_writers": [save(2, (0, 1))],
    "sessions_vanish_only_by_deletion": [save(1, (0, 1)), failed(404, (2, 3))],
    "another life without a deletion": [save(1, (0, 1)), save(7, (2, 3), status=201, tag=tag(1, "other"))],
    "the_deleted_stays_deleted": [save(1, (0, 1)), delete((2, 3)), load(1, (4, 5))],
    "preconditions_are_kept": [save(1, (0, 1)), save(2, (2, 3)), save(3, (4, 5), expects=tag(1))],
    "created although it was there": [save(1, (0, 1)), save(2, (2, 3), expects="")],
    "refused although it held": [save(1, (0, 1)), failed(412, (2, 3), "save", expects=tag(1), current=tag(1))],
    "the_unknown_keeps_its_place": [save(1, (0, 1)), lost(3, (2, 3)), save(2, (4, 5)), load(3, (6, 7))],
    "an acknowledged write is lost": [save(1, (0, 1)), save(2, (2, 3)), save(3, (4, 5)), load(2, (6, 7))],
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_store_that_loses_nothing_may_answer_is_fine(name: str) -> None:
    check(FINE[name])


@pytest.mark.parametrize("name", BROKEN)
def test_what_it_may_not_answer_is_found(name: str) -> None:
    with pytest.raises(LostWrite, match="seed 17, a: "):
        check(BROKEN[name], seed=17)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_finds_its_own(rule: Any) -> None:
    assert list(rule(list(BROKEN[rule.__name__])))
    for entries in FINE.values():
        assert not list(rule(list(entries)))


def test_sessions_are_looked_at_one_by_one() -> None:
    others = [replace(entry, user_session_id="b") for entry in FINE["one after the other"]]
    check([*FINE["at the same time"], *others])
    with pytest.raises(LostWrite, match="b: "):
        check([*FINE["at the same time"], *others, replace(load(1, (8, 9)), user_session_id="b")])


def test_a_load_may_lag_where_the_store_says_so_and_no_further() -> None:
    history = [save(1, (0, 1)), save(2, (2, 3)), load(1, (4, 5))]
    check(history, staleness=2)
    with pytest.raises(LostWrite):
        check(history, staleness=0.5)
    with pytest.raises(LostWrite):
        check([save(2, (0, 1)), save(1, (2, 3))], staleness=9)  # a write does not
    vanished = [save(1, (2, 3)), failed(404, (4, 5))]
    check(vanished, staleness=2)
    with pytest.raises(LostWrite):
        check(vanished, staleness=0.5)
