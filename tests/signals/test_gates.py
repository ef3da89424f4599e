from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.signals.gates import FIRST_SHARE, LAPSE, LONGEST_DOUBLING, STEP, Gate
from sipsidecar.signals.rules import Rule

BAD, GOOD, BETWEEN, UNKNOWN = (True, False), (False, True), (False, False), (None, None)
EDGES = {
    ("open", "closed"),
    ("closed", "ramping"),
    ("ramping", "closed"),
    ("ramping", "open"),
}
Reading = tuple[bool | None, bool | None]


def rule(**changes: Any) -> Rule:
    said = {
        "trip_samples": 3,
        "resume_seconds": 30.0,
        "in_service_seconds": 5.0,
        "ramp_seconds": 20.0,
    }
    return Rule(name="r", measure="cpu_percent", **{**said, **changes})


class Clock:
    """A gate that is given one reading a second."""

    def __init__(self, **changes: Any) -> None:
        self.gate = Gate(rule(**changes))
        self.now = 1000.0

    def feed(self, reading: Reading, times: int = 1, step: float = 1.0) -> str:
        for _ in range(times):
            self.now += step
            self.gate.sample(*reading, 1.0, self.now)
        return self.gate.state

    def until(self, state: str, reading: Reading, limit: int = 100_000) -> float:
        """Seconds of this reading until the gate is in a state."""
        began = self.now
        while self.gate.state != state:
            assert self.now - began < limit
            self.feed(reading)
        return self.now - began


# ------------------------------------------------------------------------------------------- closing


def test_it_is_open_before_anything_was_read() -> None:
    gate = Gate(rule())
    assert (gate.state, gate.share(0.0), gate.admits(0.0)) == ("open", 1.0, True)
    assert gate.since is gate.reopened_at is gate.value is gate.resumes_at is None


def test_it_closes_with_the_last_of_so_many_bad_readings_in_a_row() -> None:
    clock = Clock()
    assert clock.feed(BAD, 2) == "open"
    assert clock.feed(BAD) == "closed"
    assert clock.gate.since == clock.now
    assert clock.gate.share(clock.now) == 0
    assert not clock.gate.admits(clock.now)


def test_one_bad_reading_closes_where_one_is_enough() -> None:
    assert Clock(trip_samples=1).feed(BAD) == "closed"


@pytest.mark.parametrize("other", [GOOD, BETWEEN, UNKNOWN, (False, None), (None, False)])
def test_bad_readings_with_any_other_between_them_never_close_it(other: Reading) -> None:
    clock = Clock()
    for _ in range(200):
        clock.feed(BAD, 2)
        assert clock.feed(other) == "open"


def test_unknown_readings_leave_it_open() -> None:
    assert Clock(trip_samples=1).feed(UNKNOWN, 1000) == "open"


def test_readings_at_one_instant_are_one() -> None:
    clock = Clock()
    clock.feed(BAD)
    assert clock.feed(BAD, 50, step=0.0) == "open"
    assert clock.feed(BAD, 50, step=0.001) == "open"
    clock.feed(BAD, 2)
    assert clock.gate.state == "closed"


def test_readings_half_a_second_apart_are_two() -> None:
    assert Clock().feed(BAD, 3, step=STEP) == "closed"


def test_bad_readings_that_come_late_close_it_too() -> None:
    """A loop that lags looks seldom; that is when its gate must work."""
    clock = Clock()
    assert clock.feed(BAD, 3, step=45.0) == "closed"


def test_a_clock_that_steps_back_changes_nothing_until_it_is_where_it_was() -> None:
    clock = Clock()
    clock.feed(BAD, 2)
    clock.now -= 100
    assert clock.feed(BAD, 100) == "open"
    clock.feed(BAD)
    assert clock.gate.state == "closed"


def test_the_newest_value_is_kept_whatever_its_reading_counts() -> None:
    gate = Gate(rule())
    gate.sample(False, True, 3.5, 1.0)
    gate.sample(False, True, 4.5, 1.0)
    assert gate.value == 4.5
    gate.sample(None, None, None, 1.1)
    assert gate.value is None


# ---------------------------------------------------------------------------------------- reopening


@pytest.mark.parametrize("reading", [GOOD, UNKNOWN, (False, None), (None, False)])
def test_good_and_unknown_readings_begin_the_ramp_after_its_time(reading: Reading) -> None:
    clock = Clock()
    clock.until("closed", BAD)
    assert clock.gate.resumes_at == clock.now + 30
    assert clock.until("ramping", reading) == 30
    assert clock.gate.reopened_at == clock.gate.since == clock.now
    assert clock.gate.resumes_at is None


@pytest.mark.parametrize("reading", [BAD, BETWEEN])
def test_bad_readings_and_the_band_between_keep_it_closed(reading: Reading) -> None:
    clock = Clock()
    clock.until("closed", BAD)
    assert clock.feed(reading, 10_000) == "closed"
    assert clock.until("ramping", GOOD) == 6  # the first of them, and five seconds


@pytest.mark.parametrize("reading", [BAD, BETWEEN])
def test_the_in_service_period_is_without_any_reading_that_is_not_good(reading: Reading) -> None:
    clock = Clock()
    clock.until("closed", BAD)
    for _ in range(50):
        clock.feed(GOOD, 5)
        assert clock.feed(reading) == "closed"
    assert clock.until("ramping", UNKNOWN) == 6


def test_the_in_service_period_does_not_pass_while_nobody_looks() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.feed(BAD, 40)
    clock.feed(GOOD)
    assert clock.feed(GOOD, step=600.0) == "closed"
    assert clock.feed(GOOD, step=600.0) == "closed"
    assert clock.feed(GOOD, step=600.0) == "ramping"  # three times LAPSE


def test_the_closed_time_passes_while_nobody_looks() -> None:
    clock = Clock(in_service_seconds=0)
    clock.until("closed", BAD)
    assert clock.feed(GOOD, step=29.9) == "closed"
    clock = Clock(in_service_seconds=0)
    clock.until("closed", BAD)
    assert clock.feed(GOOD, step=30.0) == "ramping"


def test_without_a_ramp_it_opens_at_once_and_says_when() -> None:
    clock = Clock(ramp_seconds=0)
    clock.until("closed", BAD)
    assert clock.until("open", GOOD) == 30
    assert clock.gate.reopened_at == clock.now
    assert clock.gate.share(clock.now) == 1
    assert clock.until("closed", BAD) == 3  # what was bad before it closed is forgotten
    assert clock.until("open", GOOD) == 60


def test_each_closing_has_its_own_in_service_period() -> None:
    clock = Clock(resume_seconds=1.0, in_service_seconds=100.0)
    clock.until("closed", BAD)
    assert clock.until("ramping", GOOD) == 101
    clock.until("closed", BAD)
    assert clock.until("ramping", GOOD) == 101


# ------------------------------------------------------------------------------------------ the ramp


def test_the_share_grows_from_a_tenth_to_all() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    shares = [clock.gate.share(clock.now)]
    while clock.gate.state == "ramping":
        shares.append(clock.gate.share(clock.now + 0.5))
        clock.feed(GOOD)
        shares.append(clock.gate.share(clock.now))
    assert shares[0] == FIRST_SHARE
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(0.1 + 0.9 / 40)
    assert shares[20] == pytest.approx(0.55)
    assert shares[-2] < shares[-1] == 1
    assert len(shares) == 41


@pytest.mark.parametrize("reading", [GOOD, BETWEEN, UNKNOWN])
def test_it_is_open_after_its_ramp(reading: Reading) -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    assert clock.until("open", reading) == 20
    assert clock.gate.since == clock.now


def test_bad_readings_in_the_ramp_close_it_for_twice_as_long_each_time() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    times = []
    for _ in range(7):
        times.append(clock.until("ramping", GOOD))
        clock.until("closed", BAD)
    longest = 30.0 * LONGEST_DOUBLING
    assert times == [30, 60, 120, longest, longest, longest, longest]
    assert clock.gate.closings == 8


def test_a_bad_reading_holds_the_ramp_where_it_is() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    clock.feed(GOOD, 9)
    clock.feed(BAD)
    held = clock.gate.share(clock.now)
    clock.feed(BAD)
    assert clock.gate.share(clock.now) == clock.gate.share(clock.now + 5) == held
    clock.feed(GOOD)
    assert clock.gate.share(clock.now) == held
    assert clock.until("open", GOOD) == 10


def test_a_ramp_never_ends_with_a_bad_reading() -> None:
    clock = Clock(trip_samples=1000)
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    clock.feed(GOOD, 19)
    assert clock.gate.share(clock.now + 1.5) == 1
    assert clock.feed(BAD, 900) == "ramping"
    assert clock.feed(GOOD) == "open"


def test_a_ramp_does_not_pass_while_nobody_looks() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    assert clock.gate.share(clock.now + 600) == clock.gate.share(clock.now + LAPSE)
    assert clock.feed(GOOD, step=600.0) == "ramping"
    assert clock.gate.share(clock.now) == pytest.approx(FIRST_SHARE + 0.9 * LAPSE / 20)


def test_the_doubling_is_forgotten_after_a_ramp_and_a_time_without_a_bad_reading() -> None:
    def again(calm: int) -> float:
        clock = Clock()
        clock.until("closed", BAD)
        clock.until("ramping", GOOD)
        clock.until("open", GOOD)
        clock.feed(GOOD, calm)
        clock.until("closed", BAD)
        return clock.until("ramping", GOOD)

    assert again(29) == 60
    assert again(30) == 30


def test_the_doubling_is_not_forgotten_while_nobody_can_tell() -> None:
    """Few calls: after a ramp it takes longer than `resume_seconds` until enough of them are known."""
    clock = Clock()
    times = []
    for _ in range(5):
        clock.until("closed", BAD)
        times.append(clock.until("ramping", UNKNOWN))
        clock.until("open", UNKNOWN)
        clock.feed(UNKNOWN, 10_000)
    assert times == [30, 60, 120, 240, 240]
    clock.feed(GOOD, 15)
    clock.feed(UNKNOWN, 100)
    clock.feed(GOOD, 15)
    clock.until("closed", BAD)
    assert clock.until("ramping", UNKNOWN) == 30


def test_a_bad_reading_now_and_then_does_not_let_the_doubling_be_forgotten() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("open", GOOD)
    for _ in range(20):
        clock.feed(GOOD, 25)
        assert clock.feed(BAD) == "open"
    clock.until("closed", BAD)
    assert clock.until("ramping", GOOD) == 60


@pytest.mark.parametrize(("readings", "closed"), [(30, 60), (31, 30)])
def test_the_time_without_a_bad_reading_begins_with_the_first_that_is_not(
    readings: int, closed: float
) -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("open", GOOD)
    clock.feed(BAD)
    clock.feed(GOOD, readings)
    clock.until("closed", BAD)
    assert clock.until("ramping", GOOD) == closed


def test_an_operator_opens_it_at_once_and_it_starts_anew() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", GOOD)
    clock.until("closed", BAD)
    clock.gate.reopen(clock.now)
    assert (clock.gate.state, clock.gate.reopened_at) == ("open", clock.now)
    assert clock.gate.admits(clock.now)
    assert clock.until("closed", BAD) == 3
    assert clock.until("ramping", GOOD) == 30


# ------------------------------------------------------------------------------------- the next call


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_calls_let_in_are_the_sum_of_the_shares(rounds: list[tuple[int, int]]) -> None:
    clock = Clock(ramp_seconds=3600)
    clock.until("closed", BAD)
    clock.until("ramping", UNKNOWN)
    shares, passed = 0.0, 0
    for calls, seconds in rounds:
        for _ in range(calls):
            shares += clock.gate.share(clock.now)
            passed += clock.gate.admits(clock.now)
            assert -FIRST_SHARE - 1e-6 < passed - shares < 1
        clock.feed(GOOD, seconds)


def test_the_first_call_of_a_ramp_passes_and_the_others_are_evenly_spread() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", UNKNOWN)
    passed = [clock.gate.admits(clock.now) for _ in range(100)]
    assert [i for i, one in enumerate(passed) if one] == list(range(0, 100, 10))


def test_asking_for_the_share_lets_nobody_in() -> None:
    clock = Clock()
    clock.until("closed", BAD)
    clock.until("ramping", UNKNOWN)
    for _ in range(1000):
        clock.gate.share(clock.now)
    assert sum(clock.gate.admits(clock.now) for _ in range(100)) == 10


# ----------------------------------------------------------------------------------------- for always

READINGS = st.sampled_from([BAD, BAD, BAD, GOOD, GOOD, BETWEEN, UNKNOWN, (False, None)])
RULES = st.builds(
    rule,
    trip_samples=st.integers(1, 5),
    resume_seconds=st.sampled_from([0.0, 1.0, 7.5, 30.0]),
    in_service_seconds=st.sampled_from([0.0, 1.0, 5.0]),
    ramp_seconds=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
)
STEPS = st.sampled_from([1.0, 1.0, 1.0, 1.0, 0.0, 0.2, 0.5, 1.7, 3.0, 20.0, 300.0])


@settings(max_examples=150)
@given(RULES, st.lists(st.tuples(READINGS, STEPS, st.integers(1, 12)), max_size=60))
def test_it_never_oscillates_faster_than_it_is_told_to(
    said: Rule, script: list[tuple[Reading, float, int]]
) -> None:
    gate, now = Gate(said), 0.0
    edges = EDGES | ({("closed", "open")} if said.ramp_seconds == 0 else set())
    closings: list[float] = []
    reopened: list[float] = []
    for reading, step, times in script:
        for _ in range(times):
            now += step
            before = gate.state
            gate.sample(*reading, None, now)
            share = gate.share(now)
            assert 0 <= share <= 1
            assert (share == 0) is (gate.state == "closed")
            assert gate.state != "open" or share == 1
            if gate.state == before:
                continue
            assert (before, gate.state) in edges
            assert gate.since == now
            if gate.state == "closed":
                assert reading[0] is True
                closings.append(now)
            elif before == "closed":
                assert reading is not BAD
                assert reading is not BETWEEN
                reopened.append(now)
    least = said.resume_seconds + said.trip_samples * STEP
    for first, second in pairwise(closings):
        assert second - first >= least - 1e-9
    for closed, opened in zip(closings, reopened, strict=False):
        assert opened - closed >= said.resume_seconds - 1e-9
    assert gate.closings == len(closings)


@given(RULES, st.lists(st.tuples(READINGS, STEPS, st.integers(1, 12)), max_size=60))
def test_from_any_state_good_readings_open_it_in_the_longest_time_that_it_may_be_closed(
    said: Rule, script: list[tuple[Reading, float, int]]
) -> None:
    gate, now = Gate(said), 0.0
    for reading, step, times in script:
        for _ in range(times):
            now += step
            gate.sample(*reading, None, now)
    longest = (
        said.resume_seconds * LONGEST_DOUBLING + said.in_service_seconds + said.ramp_seconds + 3
    )
    for _ in range(int(longest)):
        now += 1
        gate.sample(*GOOD, None, now)
    assert gate.state == "open"


def test_a_figure_that_is_always_bad_when_calls_pass_opens_ever_less_often() -> None:
    """The worst case for a flapping gate: well while closed, bad as soon as it lets anybody in."""
    clock = Clock()
    clock.feed(BAD, 3)
    times = 0
    while clock.now < 1000 + 3600:
        clock.feed(GOOD if clock.gate.state == "closed" else BAD)
        times += clock.gate.state == "ramping" and clock.gate.since == clock.now
    # 30, 60, 120, then 240 seconds and 3 readings each
    assert times == 3 + (3600 - 3 - 30 - 60 - 120 - 9) // 243
