import random

import msgspec
import pytest

from sipsidecar.signals.alarms import CATEGORIES
from sipsidecar.signals.baseline import Baseline, BaselineHour
from sipsidecar.signals.series import FIRST, INEFFECTIVE, TOTAL, UNANSWERED, MinuteRates

MONDAY = 20_055 * 1440
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US


def row(hour: int, series: str = "call:all", **more: object) -> BaselineHour:
    said = {
        "received_at": 0,
        "hour_at": hour * HOUR_US,
        "series": series,
        "minutes": 60,
        "total": 600,
        "answered": 500,
        "effective": 580,
        "counts": (50, 10, 0, 10, 10, 10, 10),
        **more,
    }
    return msgspec.convert(said, BaselineHour)


def lived(baseline: Baseline, first: int, last: int, dice: random.Random) -> None:
    history = baseline.history("call:all")
    assert history is not None
    for minute in range(first, last):
        calls = dice.randint(0, 20)
        pairs = [(TOTAL, calls), (FIRST, calls // 5), (UNANSWERED, calls // 3)]
        pairs.append((INEFFECTIVE, calls // 7))
        history.push(minute, pairs if calls else ())
        history.mark(minute // 60, 0, float(minute % 60))


def test_hours_are_given_out_once_and_only_when_they_are_over() -> None:
    baseline = Baseline()
    lived(baseline, MONDAY, MONDAY + 130, random.Random(1))
    (found,) = baseline.records(7)
    assert found.hour_at == MONDAY * MINUTE_US
    assert found.minutes == 60
    assert found.received_at == 7
    assert found.series == "call:all"
    assert found.pdd_p95_ms == 59.0
    assert found.jitter_ms is None
    assert 0 < found.counts[0] < found.total
    assert found.answered < found.effective < found.total
    assert baseline.records(8) == []
    rest = baseline.records(9, all_=True)
    assert [(one.hour_at // MINUTE_US - MONDAY, one.minutes) for one in rest] == [
        (60, 60),
        (120, 10),
    ]
    assert baseline.records(10, all_=True) == []


@pytest.mark.parametrize("died_at", [1441, 3000, 4319])
def test_a_restart_changes_nothing_of_what_is_normal(died_at: int) -> None:
    one, first, second = Baseline(), Baseline(), Baseline()
    end = MONDAY + 4 * 1440
    lived(one, MONDAY, end, random.Random(7))
    dice = random.Random(7)
    rows = []
    for minute in range(MONDAY, MONDAY + died_at):
        lived(first, minute, minute + 1, dice)
        rows += first.records(minute * MINUTE_US)
    rows += first.records((MONDAY + died_at) * MINUTE_US, all_=True)
    second.load(rows[:5])
    second.load(rows[5:])
    assert second.loads == 2
    lived(second, MONDAY + died_at, end, dice)
    for each in (one, second):
        each.records(end * MINUTE_US, all_=True)
    whole, again = one.history("call:all"), second.history("call:all")
    assert whole is not None
    assert again is not None
    assert again.sums == whole.sums
    for hour in range(MONDAY // 60, MONDAY // 60 + 336, 13):
        assert again.expect(hour) == whole.expect(hour)
        assert again.volume(hour) == whole.volume(hour)
    assert again.spread() == whole.spread()
    assert sorted(again.gauges(0))[5:] == sorted(whole.gauges(0))[-len(again.gauges(0)) + 5 :]


def test_what_was_taken_back_is_a_row_that_adds_up_to_what_is_left() -> None:
    baseline = Baseline()
    lived(baseline, MONDAY, MONDAY + 120, random.Random(2))
    rows = baseline.records(1)
    history = baseline.history("call:all")
    assert history is not None
    history.leave_out(MONDAY + 40, MONDAY + 59)
    (back,) = baseline.records(2)
    assert back.minutes == -20
    assert back.total < 0
    assert back.pdd_p95_ms is None
    other = Baseline()
    other.load([*rows, back])
    again = other.history("call:all")
    assert again is not None
    assert again.sums == history.sums


def test_rows_of_one_hour_add_up() -> None:
    baseline = Baseline()
    hour = MONDAY // 60
    baseline.load([row(hour), row(hour, pdd_p95_ms=100.0), row(hour, pdd_p95_ms=200.0)])
    history = baseline.history("call:all")
    assert history is not None
    assert history.hour(hour, (TOTAL, UNANSWERED, INEFFECTIVE)) == [1800, 300, 60]
    assert history.gauges(0) == [200.0]


def test_rows_that_are_none_of_ours_are_left_alone() -> None:
    baseline = Baseline()
    baseline.load(
        [
            row(1, counts=(1, 2)),
            row(1, series="x" * 2000),
            row(1, total=1 << 40),
            row(1, counts=(1 << 40,) * 7),
        ]
    )
    assert baseline.series == 0


def test_series_are_bounded_and_what_has_no_room_is_counted() -> None:
    baseline = Baseline(max_series=2)
    assert baseline.history("call:all") is not None
    assert baseline.history("call:tenant=a") is not None
    assert baseline.history("call:tenant=b") is None
    baseline.load([row(1, series="call:tenant=c")])
    assert baseline.history("call:all") is not None
    assert (baseline.series, baseline.folded) == (2, 2)


def test_a_series_without_calls_for_four_weeks_is_forgotten() -> None:
    baseline = Baseline()
    hour = MONDAY // 60
    baseline.load([row(hour, series="call:old"), row(hour + 24, series="call:new")])
    baseline.load([row(hour, series="slo:kept")])
    assert baseline.forget(MONDAY + 28 * 1440 + 120, {"slo:kept"}) == ["call:old"]
    assert baseline.series == 2


def test_minute_rates_are_kept_over_a_restart() -> None:
    baseline = Baseline()
    history = baseline.history("call:all")
    assert history is not None
    history.rates = MinuteRates()
    for minute in range(MONDAY, MONDAY + 100):
        history.rates.add(minute, 10, [minute % 2, *[0] * (len(CATEGORIES) - 1)])
    at = (MONDAY + 100) * MINUTE_US
    rows = baseline.records(at)
    assert [(one.rate_minutes, one.total) for one in rows] == [(60, 0)]
    rows += baseline.records(at, all_=True)
    assert baseline.records(at, all_=True) == []
    other = Baseline()
    other.load(rows)
    again = other.history("call:all")
    assert again is not None
    assert again.rates is not None
    assert again.rates.minutes == 100
    assert again.rates.limit(0) == pytest.approx(history.rates.limit(0))
    assert other.records(at, all_=True) == []
