import pytest

from sipsidecar.signals.gauges import FEWEST, Gauge

USUAL = [1000.0 + 10 * (i % 11 - 5) for i in range(44)]
"""Median 1000, median absolute deviation 30."""


def learned(floor: float = 100.0) -> Gauge:
    gauge = Gauge(floor)
    gauge.learn(USUAL, 24)
    return gauge


def test_the_limit_is_the_median_and_four_deviations() -> None:
    assert learned().limit == pytest.approx(1000 + 4 * 1.4826 * 30)


def test_the_limit_is_never_nearer_than_the_floor() -> None:
    assert learned(200.0).limit == pytest.approx(1200)
    gauge = Gauge(200.0)
    gauge.learn([5.0] * 30, 24)
    assert gauge.limit == 205.0


def test_nothing_is_an_alarm_before_enough_is_known() -> None:
    gauge = Gauge(100.0)
    gauge.learn(USUAL[:23], 24)
    assert gauge.limit is None
    gauge.read(1, 9000.0)
    assert gauge.look("pdd", 1) is None
    gauge.learn([], 0)
    assert gauge.limit is None


def test_a_gauge_moves_by_a_fifth_and_starts_where_it_usually_is() -> None:
    gauge = learned()
    assert gauge.value == 1000.0
    gauge.read(1, 1500.0)
    assert gauge.value == pytest.approx(1100.0)
    fresh = Gauge(100.0)
    fresh.read(1, 1500.0)
    assert fresh.value == 1500.0


def test_learning_anew_moves_no_gauge() -> None:
    gauge = learned()
    gauge.read(1, 1500.0)
    gauge.learn(USUAL, 24)
    assert gauge.value == pytest.approx(1100.0)


def test_a_rise_is_an_alarm_that_ends_half_way_back_once() -> None:
    gauge = learned()
    states = []
    for minute in range(60):
        gauge.read(minute, 2000.0 if 10 <= minute < 30 else 1000.0)
        found = gauge.look("pdd", minute)
        states.append(None if found is None else found.active)
    assert states[:10] == [None] * 10
    assert states[10] is True  # 1200 is over 1177.9
    assert states[10:30] == [True] * 20
    assert states.count(False) == 1
    assert 35 < states.index(False) < 45
    assert states[-1] is None


def test_a_fall_is_no_alarm() -> None:
    gauge = learned()
    for minute in range(60):
        gauge.read(minute, 1.0)
        assert gauge.look("pdd", minute) is None


def test_an_alarm_without_readings_for_an_hour_ends() -> None:
    gauge = learned()
    gauge.read(100, 9000.0)
    assert gauge.look("pdd", 100) is not None
    assert gauge.holding
    found = gauge.look("pdd", 159)
    assert found is not None
    assert found.active
    found = gauge.look("pdd", 160)
    assert found is not None
    assert not found.active
    assert gauge.look("pdd", 161) is None


def test_an_alarm_ends_when_nothing_is_known_any_more() -> None:
    gauge = learned()
    gauge.read(100, 9000.0)
    assert gauge.look("pdd", 100) is not None
    gauge.learn([], 24)
    found = gauge.look("pdd", 101)
    assert found is not None
    assert (found.active, found.expected) == (False, None)


def test_a_reading_waits_for_enough_calls() -> None:
    gauge = Gauge(1.0)
    assert gauge.gather(0, [3, 1], 4) is None
    assert gauge.gather(1, [1, 1], 2) is None
    assert gauge.gather(5, [2, 3], FEWEST - 6) == [6, 5]
    assert gauge.gather(6, [9, 1], FEWEST) == [9, 1]


def test_a_reading_does_not_wait_for_longer_than_an_hour() -> None:
    gauge = Gauge(1.0)
    assert gauge.gather(0, [9], FEWEST - 1) is None
    assert gauge.gather(60, [1], 1) is None
    assert gauge.gather(61, [1], FEWEST - 1) == [2]
