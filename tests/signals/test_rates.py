import random
from itertools import chain

import pytest

from sipsidecar.signals.rates import (
    FEWEST,
    MOST,
    NOTHING,
    Finding,
    Normal,
    Rates,
    is_whole,
)
from sipsidecar.signals.series import COUNTED, FIRST, MINUTES, TOTAL, WIDTH, MinuteRates, Ring

START = 29_000_000
COLUMN = FIRST + 1  # 5xx


def normal(share: float | None, phi: float = 1.0) -> Normal:
    return Normal(0, "own", [share] * len(COUNTED), [phi] * len(COUNTED))


class Fed:
    """One series, minute for minute."""

    def __init__(self, usual: Normal) -> None:
        self.usual = usual
        self.ring = Ring(192, WIDTH, START)
        self.rates = Rates()
        self.minute = START - 1
        self.found: tuple[Finding, ...] = ()

    def __call__(self, calls: int, failed: int, *, skip: int = 0) -> list[tuple[str, bool]]:
        self.minute += 1 + skip
        self.ring.push(self.minute, [(TOTAL, calls), (COLUMN, failed), (MINUTES, 1)])
        self.found = tuple(self.rates.look(self.ring, self.usual))
        return [(one.source, one.active) for one in self.found]


def test_three_failures_of_five_are_too_many_where_one_of_two_hundred_is_normal() -> None:
    # Standards 5.3: (5, 3, 0.005) is 1.2406e-6, over the 1e-6 of the window of five minutes, and
    # under the 1e-5 of the one of fifteen.
    fed = Fed(normal(0.005))
    for _ in range(9):
        assert fed(0, 0) == []
    assert fed(1, 1) == []
    assert fed(2, 1) == []
    assert fed(2, 1) == [("rate", True)]
    (found,) = fed.found
    assert found.held.window == 15
    assert found.column == COLUMN


def test_an_outage_is_seen_in_its_first_minute_and_by_its_shortest_sure_window() -> None:
    fed = Fed(normal(0.005))
    for _ in range(60):
        fed(30, 0)
    assert ("rate", True) in fed(30, 18)
    (rate,) = (one for one in fed.found if one.source == "rate")
    assert rate.held.window in (1, 5)
    assert rate.held.since == fed.minute
    assert rate.held.fired == fed.minute


def test_two_failures_are_never_an_alarm() -> None:
    assert FEWEST == 3
    fed = Fed(normal(1e-6))
    assert fed(1000, 2) == []
    for _ in range(100):
        assert fed(1000, 0) == []


def test_one_failure_adds_little_where_none_ever_was() -> None:
    fed = Fed(normal(0.0))
    assert fed(1, 1) == []
    assert fed.rates.cusum(COLUMN) == pytest.approx(10 / 3)


def test_a_rate_less_than_half_over_the_normal_one_is_none_however_improbable() -> None:
    fed = Fed(normal(0.2))
    for _ in range(60):
        findings = fed(10_000, 2900)
        assert ("rate", True) not in findings
    assert ("drift", True) in findings


def test_drift_is_seen_by_the_cusum_before_any_window() -> None:
    fed = Fed(normal(0.08))
    first = None
    for minute in range(120):
        findings = fed(300, 35)  # 11.7 %
        if findings:
            assert findings == [("drift", True)]
            first = first or minute
    assert first is not None
    assert first < 10
    (found,) = fed.found
    assert found.held.since == START
    assert found.held.window == 60


def test_the_cusum_has_an_upper_end_and_the_alarm_clears_below_three() -> None:
    fed = Fed(normal(0.08))
    for _ in range(200):
        fed(300, 60)
    assert fed.rates.cusum(COLUMN) == MOST
    history = []
    for _ in range(60):
        history.append((fed(300, 20), fed.rates.cusum(COLUMN)))
    ends = [cusum for findings, cusum in history if ("drift", False) in findings]
    assert len(ends) == 1
    assert ends[0] <= 3
    assert history[-1][0] == []
    assert not fed.rates.holding


def test_the_windows_alarm_ends_after_ten_calm_minutes_once() -> None:
    fed = Fed(normal(0.005))
    for _ in range(10):
        fed(30, 15)
    said = [[state for source, state in fed(30, 0) if source == "rate"] for _ in range(20)]
    # Four minutes until the last five are normal, and ten of calm. The longer windows are not yet.
    assert said == [[True]] * 13 + [[False]] + [[]] * 6
    assert ("rate", True) in fed(30, 15)


def test_where_calls_are_few_a_clear_recovery_ends_the_drift_alarm_too() -> None:
    fed = Fed(normal(0.005))
    for _ in range(60):
        fed(3, 2)
    assert fed.rates.cusum(COLUMN) == MOST
    minutes = 0
    while fed.rates.holding:
        fed(3, 0)
        minutes += 1
    assert minutes < 40  # the CUSUM alone would take ten hours


def test_a_series_without_calls_for_an_hour_has_no_alarm_any_more() -> None:
    fed = Fed(normal(0.005))
    for _ in range(10):
        fed(30, 15)
    states = [fed(0, 0) for _ in range(75)]
    assert states[30]
    said = list(chain.from_iterable(states))
    assert said.count(("rate", False)) == 1
    assert said.count(("drift", False)) == 1
    assert states[-1] == []
    assert fed.rates.look(fed.ring, fed.usual) is NOTHING


def test_few_calls_are_judged_in_the_shortest_time_that_has_any() -> None:
    fed = Fed(normal(0.005))
    for minute in range(60):
        fed(minute % 5 == 0, minute % 5 == 0)
    assert fed.rates.holding
    for _ in range(8):
        findings = fed(0, 0)
        assert ("rate", True) in findings  # silence is no recovery


def test_counts_are_divided_by_their_spread() -> None:
    sure, unsure = Fed(normal(0.08)), Fed(normal(0.08, phi=20.0))
    for _ in range(3):
        sure(300, 60)
        unsure(300, 60)
    assert sure.rates.holding
    assert not unsure.rates.holding
    assert unsure.usual.chance(COLUMN, 60, 300) == pytest.approx(
        sure.usual.chance(COLUMN, 3, 15) or 0
    )
    z = unsure.usual.z(COLUMN, 60, 300)
    assert z is not None
    assert z == pytest.approx((sure.usual.z(COLUMN, 60, 300) or 0) / 20**0.5)


def test_what_is_not_known_alarms_nobody() -> None:
    fed = Fed(normal(None))
    for _ in range(60):
        assert fed(100, 100) == []
    assert fed.usual.chance(COLUMN, 1, 1) is None
    assert fed.usual.z(COLUMN, 1, 1) is None
    assert normal(0.99).limit[1] == float("inf")
    assert normal(0.5).z(COLUMN, 0, 0) is None


def test_z_is_that_of_the_vectors() -> None:
    # Standards 5.3.
    for n, k, p, z in ((1500, 200, 0.08, 7.61), (150, 24, 0.08, 3.61), (150, 30, 0.08, 5.42)):
        assert normal(p).z(COLUMN, k, n) == pytest.approx(z, abs=0.01)


def test_a_gap_is_no_recovery_and_no_failure() -> None:
    fed = Fed(normal(0.005))
    for _ in range(10):
        fed(30, 15)
    assert ("rate", True) in fed(30, 15, skip=20)


def test_stationary_counts_are_quiet_for_days() -> None:
    dice = random.Random(4)
    fed = Fed(normal(0.08))
    for _ in range(3 * 1440):
        failed = sum(dice.random() < 0.08 for _ in range(30))
        assert fed(30, failed) == []


# ------------------------------------------------------------------------------------- three sigma


def fed_sigma(ring: Ring, rates: Rates, known: MinuteRates, calls: int, failed: int) -> list[bool]:
    ring.push(ring.minute + 1, [(TOTAL, calls), (COLUMN, failed)] if calls else ())
    return [one.active for one in rates.look_for_sigmas(ring, known, 60)]


def test_three_sigma_fires_at_a_single_failure_where_none_ever_was() -> None:
    ring, rates, known = Ring(192, WIDTH, START), Rates(), MinuteRates()
    for _ in range(100):
        assert fed_sigma(ring, rates, known, 30, 0) == []
    assert fed_sigma(ring, rates, known, 30, 1) == [True]
    states = [fed_sigma(ring, rates, known, 30, 0) for _ in range(12)]
    assert states == [[True]] * 9 + [[False]] + [[]] * 2


def test_three_sigma_is_the_mean_and_three_deviations_of_all_minutes() -> None:
    ring, rates, known = Ring(192, WIDTH, START), Rates(), MinuteRates()
    for minute in range(400):
        fed_sigma(ring, rates, known, 100, 6 + 4 * (minute % 2))  # mean 8 %, deviation 2 %
    assert fed_sigma(ring, rates, known, 100, 14) == []
    assert fed_sigma(ring, rates, known, 100, 15) == [True]
    assert rates.holding


def test_three_sigma_waits_until_it_is_armed_and_for_calls() -> None:
    ring, rates, known = Ring(192, WIDTH, START), Rates(), MinuteRates()
    for _ in range(59):
        assert fed_sigma(ring, rates, known, 30, 0) == []
    assert fed_sigma(ring, rates, known, 30, 30) == []
    assert fed_sigma(ring, rates, known, 0, 0) == []
    assert known.minutes == 60


def test_minutes_that_were_not_looked_at_make_a_window_that_is_not_whole() -> None:
    ring = Ring(192, WIDTH, START)
    for minute in (0, 1, 2, 3):
        ring.push(START + minute, [(MINUTES, 1)])
    assert is_whole(ring, 4)
    assert not is_whole(ring, 5)
    ring.push(START + 5, [(MINUTES, 1)])
    assert not is_whole(ring, 3)
