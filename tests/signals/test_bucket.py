import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.bucket import Bucket

RATES = st.floats(0.01, 1e6)
BURSTS = st.floats(1, 1000)
STEPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 10)), max_size=200)
"""Pauses in units of 1/rate; of many zeros: the clock stands still."""


def offer(bucket: Bucket, now: float, *, priority: bool = False) -> bool:
    """One call that is taken when it may pass."""
    admitted = bucket.admits(now, priority=priority)
    if admitted:
        bucket.take(now)
    return admitted


def at_once(bucket: Bucket, now: float, *, priority: bool = False) -> int:
    passed = 0
    while offer(bucket, now, priority=priority):
        passed += 1
    return passed


def test_it_is_the_algorithm_of_rfc_7415() -> None:
    """The RFC's own words, in seconds, beside ours in calls."""
    rate, tau_calls = 7.0, 4.0
    t, tau = 1 / rate, tau_calls / rate
    x, lct = 0.0, 0.0
    bucket = Bucket(rate, tau_calls + 1)
    for step in range(5000):
        now = step * 0.0437
        before = x - (now - lct)
        conforming = before <= tau
        if abs(before - tau) > 1e-9:
            assert offer(bucket, now) is conforming
        elif conforming:
            bucket.take(now)
        if conforming:
            x, lct = max(0.0, before) + t, now


@pytest.mark.parametrize("rate", [0.01, 0.3, 1, 3, 7.7, 1000, 1e6])
@pytest.mark.parametrize("burst", [1, 2, 4, 10, 333])
def test_a_burst_is_as_many_calls_as_it_says_and_then_one_each_interval(
    rate: float, burst: int
) -> None:
    bucket = Bucket(rate, burst)
    assert at_once(bucket, 1000.0) == burst
    assert bucket.level(1000.0) == burst
    assert not bucket.admits(1000.0 + 0.9 / rate)
    assert at_once(bucket, 1000.0 + 1.01 / rate) == 1
    assert at_once(bucket, 1000.0 + (burst + 2) / rate) == burst


def test_without_a_burst_the_rfcs_tolerance_of_four_intervals_holds() -> None:
    assert at_once(Bucket(10), 0.0) == 5


@pytest.mark.parametrize("rate", [0.01, 0.1, 3, 7, 50, 999, 12345])
def test_calls_at_exactly_the_rate_all_pass_even_without_any_burst(rate: float) -> None:
    bucket = Bucket(rate, 1)
    start = 86_400.0 * 3
    assert all(offer(bucket, start + k / rate) for k in range(2000))


@given(RATES, BURSTS, STEPS)
def test_no_interval_has_more_calls_than_its_rate_and_one_burst(
    rate: float, burst: float, steps: list[float]
) -> None:
    bucket = Bucket(rate, burst)
    now, passed = 0.0, []
    for step in steps:
        now += step / rate
        if offer(bucket, now):
            passed.append(now)
    for first in range(0, len(passed), 7):
        for last in range(first, len(passed)):
            allowed = rate * (passed[last] - passed[first]) + burst
            assert last - first + 1 <= allowed * (1 + 1e-9) + 1e-5


@given(RATES, st.floats(1, 50))
def test_under_a_steady_overload_no_less_than_the_rate_passes(rate: float, burst: float) -> None:
    bucket = Bucket(rate, burst)
    passed = sum(offer(bucket, k / (3 * rate)) for k in range(3000))
    assert 999 <= passed <= 1000 + burst + 1


@given(STEPS, st.booleans())
def test_asking_changes_nothing(steps: list[float], priority: bool) -> None:
    asked, other = Bucket(1, 3), Bucket(1, 3)
    now = 0.0
    for step in steps:
        now += step
        for _ in range(3):
            asked.admits(now, priority=priority)
            asked.level(now)
        assert offer(asked, now) is offer(other, now)


def test_refused_calls_do_not_fill_it() -> None:
    bucket = Bucket(1, 2)
    at_once(bucket, 0.0)
    for _ in range(1000):
        assert not offer(bucket, 0.5)
    assert offer(bucket, 1.0)


def test_a_clock_that_stands_still_lets_one_burst_in_and_one_that_steps_back_no_more() -> None:
    bucket = Bucket(100, 4)
    assert at_once(bucket, 50.0) == 4
    assert at_once(bucket, 50.0) == 0
    assert at_once(bucket, 10.0) == 0
    bucket.take(10.0)
    assert bucket.level(50.0) == 5  # the step back neither drained it nor moved its clock
    assert at_once(bucket, 50.011) == 0
    assert at_once(bucket, 50.021) == 1


@pytest.mark.parametrize(("burst", "tolerated"), [(1, 10), (5, 10), (11, 25), (101, 250)])
def test_priority_passes_up_to_ten_intervals_and_two_and_a_half_bursts(
    burst: float, tolerated: float
) -> None:
    bucket = Bucket(5, burst)
    at_once(bucket, 0.0)
    more = at_once(bucket, 0.0, priority=True)
    assert burst + more == tolerated + 1
    assert not offer(bucket, 0.0)


def test_calls_that_are_never_refused_hold_up_ordinary_ones_no_longer_than_priority_may() -> None:
    bucket = Bucket(10, 5)
    for _ in range(100_000):
        bucket.take(0.0)
    assert bucket.level(0.0) == 11
    assert not bucket.admits(0.69)
    assert bucket.admits(0.71)


def test_a_long_pause_is_no_credit() -> None:
    bucket = Bucket(100, 5)
    bucket.take(0.0)
    assert bucket.level(1e9) == 0
    assert at_once(bucket, 1e9) == 5


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_a_rate_that_cannot_be_is_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Bucket(rate)


@pytest.mark.parametrize("burst", [0, 0.5, -3, math.inf, math.nan])
def test_a_burst_that_would_let_no_call_in_is_an_error(burst: float) -> None:
    with pytest.raises(ValueError, match="burst"):
        Bucket(1, burst)
