"""Rate limits: the generic cell rate algorithm on a clock that stands still until a test moves it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatstate.rates import MOST_NAMES, RateLimit


class Clock:
    """Seconds, as of `time.monotonic`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def passed(limit: RateLimit, name: str, times: int) -> int:
    """How many of so many requests are allowed."""
    return sum(limit.wait(name) == 0 for _ in range(times))


def test_a_burst_passes_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(2, 5, clock)
    assert passed(limit, "a", 10) == 5
    assert limit.wait("a") == 0.5
    clock.now += 0.25
    assert limit.wait("a") == 0.25
    clock.now += 0.25
    assert passed(limit, "a", 3) == 1
    clock.now += 1
    assert passed(limit, "a", 3) == 2


def test_who_rests_gets_a_whole_burst_again_and_no_more() -> None:
    clock = Clock()
    limit = RateLimit(1, 3, clock)
    for seconds in (3, 3, 1e6):
        assert passed(limit, "a", 9) == 3
        clock.now += seconds
    assert passed(limit, "a", 9) == 3


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    limit = RateLimit(1, 1, clock)
    limit.wait("a")
    assert [limit.wait("a") for _ in range(100)] == [1.0] * 100
    clock.now += 1
    assert limit.wait("a") == 0


def test_names_are_independent() -> None:
    limit = RateLimit(1, 2, Clock())
    assert passed(limit, "a", 5) == 2
    assert passed(limit, "b", 5) == 2
    assert [limit.wait(("key", 1)), limit.wait(("key", 2))] == [0, 0]


@pytest.mark.parametrize("burst", [0, 0.5, 1])
def test_a_burst_is_one_request_at_least(burst: float) -> None:
    assert passed(RateLimit(0.1, burst, Clock()), "a", 3) == 1


def test_no_rate_is_no_limit_and_remembers_nothing() -> None:
    limit = RateLimit(0, 0, Clock())
    assert passed(limit, "a", 1000) == 1000
    assert not limit._due


def test_the_memory_is_bounded_and_who_rested_longest_is_forgotten() -> None:
    clock = Clock()
    limit = RateLimit(0.001, 1, clock)
    limit.wait("first")
    limit.wait("second")
    assert limit.wait("first") > 0, "refused, but seen again"
    for number in range(MOST_NAMES - 1):
        limit.wait(number)
    assert len(limit._due) == MOST_NAMES == 50_000
    assert limit.wait("first") > 0, "still known"
    assert limit.wait("second") == 0, "forgotten"
    assert len(limit._due) == MOST_NAMES


def test_what_is_given_back_was_not_counted() -> None:
    clock = Clock(0)
    limit = RateLimit(1, 2, clock)
    for _ in range(10):
        assert limit.wait("a") == 0
        limit.give_back("a")
    assert [limit.wait("a") for _ in range(3)] == [0, 0, 1]
    limit.give_back("a")
    assert [limit.wait("a"), limit.wait("a")] == [0, 1]
    limit.give_back("unknown")
    assert [limit.wait("unknown") for _ in range(3)] == [0, 0, 1]
    unlimited = RateLimit(0, 1, clock)
    unlimited.give_back("a")
    assert unlimited.wait("a") == 0


def test_it_runs_on_real_time_by_default() -> None:
    limit = RateLimit(1e-6, 1)
    assert limit.wait("a") == 0
    assert 0 < limit.wait("a") <= 1e6


@given(st.floats(0.001, 1e6), st.floats(1, 100), st.floats(0, 1e7), st.integers(1, 30))
@example(per_second=0.3, burst=1.0, start=0.1, requests=7)
def test_who_waits_for_as_long_as_they_are_told_gets_through(
    per_second: float, burst: float, start: float, requests: int
) -> None:
    clock = Clock(start)
    limit = RateLimit(per_second, burst, clock)
    for _ in range(requests):
        clock.now += limit.wait("a")
        limit.wait("a")
    while not (wait := limit.wait("a")):
        pass
    clock.now += wait
    assert limit.wait("a") == 0
