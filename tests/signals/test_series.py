import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.signals.series import (
    COUNTED,
    FIRST,
    MINUTES,
    SIZE,
    TOTAL,
    UNANSWERED,
    WIDTH,
    History,
    MinuteRates,
    Ring,
)

MONDAY = 20_055 * 1440  # 2024-11-28 was a Thursday; only that it is a whole day matters
RED = FIRST  # the first category


def fed(history: History, minutes: range, calls: int = 10, failed: int = 1) -> None:
    for minute in minutes:
        history.push(minute, [(TOTAL, calls), (RED, failed)])


def learned(history: History) -> list[int]:
    return [history.sums[MINUTES], history.sums[TOTAL], history.sums[RED]]


# ------------------------------------------------------------------------------------------- rings


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_a_window_has_what_was_pushed_in_it(pushes: list[tuple[int, int]], window: int) -> None:
    ring = Ring(21, 2, 1000)
    seen: dict[int, int] = {}
    minute = 999
    for step, count in pushes:
        minute += step
        ring.push(minute, [(1, count)])
        seen[minute] = count
    truth = sum(count for at, count in seen.items() if minute - window < at <= minute)
    assert ring.sums(window) == [0, truth]
    assert ring.between(minute - window + 1, minute) == [0, truth]
    assert ring.data[ring.here + 1] - ring.data[ring.before(window) + 1] == truth


def test_a_minute_that_was_never_pushed_is_nothing() -> None:
    ring = Ring(10, 1, 100)
    assert ring.sums(5) == [0]
    ring.push(100, [(0, 3)])
    ring.turn(104)
    ring.turn(99)
    assert ring.minute == 104
    assert ring.between(101, 104) == [0]
    assert ring.between(90, 100) == [3]


# ---------------------------------------------------------------------------------------- learning


def test_a_minute_teaches_nothing_before_its_hour_is_an_hour_old() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 119))
    assert learned(history) == [0, 0, 0]
    fed(history, range(MONDAY + 119, MONDAY + 120))
    assert learned(history) == [60, 600, 60]
    assert history.hour(MONDAY // 60, (MINUTES, TOTAL)) == [60, 600]
    assert history.hour(MONDAY // 60 - 24, (MINUTES, TOTAL)) == [0, 0]


def test_a_quiet_minute_is_one_and_a_gap_is_none() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 20))
    for minute in range(MONDAY + 40, MONDAY + 60):
        history.push(minute, ())
    history.settle(MONDAY + 59)
    assert learned(history) == [40, 200, 20]


def test_a_long_gap_loses_nothing_that_was_not_learned_yet() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 50))
    fed(history, range(MONDAY + 5000, MONDAY + 5130))
    history.settle(MONDAY + 5129)
    assert learned(history) == [180, 1800, 180]


def test_what_is_left_out_teaches_nothing() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 60))
    history.leave_out(MONDAY + 10, MONDAY + 19)
    history.leave_out(MONDAY + 15, MONDAY + 24)
    history.settle(MONDAY + 59)
    assert learned(history) == [45, 450, 45]


def test_what_was_learned_is_taken_back_by_the_minute() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 120))
    history.unsaved.clear()
    assert history.leave_out(MONDAY + 50, MONDAY + 70)
    assert not history.leave_out(MONDAY + 50, MONDAY + 70)
    assert not history.leave_out(MONDAY + 70, MONDAY + 71)
    assert learned(history) == [50, 500, 50]
    assert history.unsaved[MONDAY // 60][:2] == [-10, -100]
    history.settle(MONDAY + 119)
    assert learned(history) == [98, 980, 98]


def test_what_is_too_old_for_that_is_taken_back_by_the_hour() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 600))
    before = learned(history)
    history.leave_out(MONDAY + 61, MONDAY + 62)
    assert learned(history) == [before[0] - 60, before[1] - 600, before[2] - 60]
    history.leave_out(MONDAY + 61, MONDAY + 62)
    assert learned(history) == [before[0] - 60, before[1] - 600, before[2] - 60]


def test_hours_of_an_earlier_life_are_taken_back_whole() -> None:
    history = History("call:all")
    values = [60, 600, *[60] * (WIDTH - 2)]
    history.load(MONDAY // 60, values)
    history.load(MONDAY // 60 + 1, values)
    history.leave_out(MONDAY + 5, MONDAY + 6)
    assert learned(history) == [60, 600, 60]
    fed(history, range(MONDAY + 90, MONDAY + 100))
    history.leave_out(MONDAY + 80, MONDAY + 95)
    history.settle(MONDAY + 99)
    assert learned(history) == [4, 40, 4]


def test_an_hour_of_two_lives_is_taken_back_once() -> None:
    history = History("call:all")
    history.load(MONDAY // 60, [20, 200, 20, *[0] * (WIDTH - 3)])
    fed(history, range(MONDAY + 20, MONDAY + 120))
    assert history.hour(MONDAY // 60, (MINUTES, TOTAL, RED)) == [60, 600, 60]
    history.leave_out(MONDAY + 10, MONDAY + 30)
    assert history.hour(MONDAY // 60, (MINUTES, TOTAL, RED)) == [0, 0, 0]


def test_nothing_is_taken_back_for_minutes_that_run_backwards() -> None:
    history = History("call:all")
    fed(history, range(MONDAY, MONDAY + 60))
    history.leave_out(MONDAY + 30, MONDAY + 20)
    history.leave_out(MONDAY + 100, MONDAY + 200)  # to come
    history.settle(MONDAY + 59)
    assert learned(history) == [60, 600, 60]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 420), st.integers(0, 120), st.integers(0, 430)), max_size=6),
    st.integers(0, 7),
)
def test_what_is_learned_is_every_minute_but_those_left_out(
    outs: list[tuple[int, int, int]], gap: int
) -> None:
    """As long as they are left out while the minutes are here, whenever that is."""
    history = History("call:all")
    kept: dict[int, int] = {}
    dropped: set[int] = set()
    for minute in range(430):
        if gap and minute % 100 < gap:
            continue
        history.push(MONDAY + minute, [(TOTAL, 1 + minute % 7), (RED, minute % 3)])
        kept[minute] = 1 + minute % 7
        for since, length, told in outs:
            if told == minute and since >= minute - 120:
                until = min(since + length, minute)
                history.leave_out(MONDAY + since, MONDAY + until)
                dropped.update(range(since, until + 1))
    history.settle(MONDAY + 429)
    assert history.sums[TOTAL] == sum(n for at, n in kept.items() if at not in dropped)
    assert history.sums[MINUTES] == len(set(kept) - dropped)
    unsaved = [sum(column) for column in zip(*history.unsaved.values(), strict=True)]
    assert (unsaved or [0] * WIDTH) == history.sums


def test_days_are_forgotten_after_four_weeks() -> None:
    history = History("call:all")
    hour = MONDAY // 60
    for day in range(30):
        history.load(hour - 24 * day, [60, 100, *[1] * (WIDTH - 2)])
        history.load_gauges(hour - 24 * day, 100.0, None)
    fed(history, range(MONDAY, MONDAY + 120), calls=0, failed=0)
    assert history.sums[TOTAL] == 29 * 100
    assert len(history.gauges(0)) == 29


# --------------------------------------------------------------------------------- what is normal


def test_the_normal_share_is_drawn_from_all_hours_over_the_day_to_the_week() -> None:
    history = History("call:all")
    hour = MONDAY // 60 + 10
    weeks = [0] * (WIDTH - 3)
    history.load(hour - 168, [60, 900, 90, *weeks])  # the same hour of the week
    history.load(hour - 24, [60, 600, 30, *weeks])  # the same hour of the day
    history.load(hour - 30, [60, 1500, 300, *weeks])  # another one
    history.load(hour, [60, 5000, 5000, *weeks])  # itself is only in the rate of all hours
    g = (90 + 30 + 300 + 5000 + 0.5) / (900 + 600 + 1500 + 5000 + 1)
    day = (90 + 30 + 300 * g) / (900 + 600 + 300)
    week = (90 + 300 * day) / (900 + 300)
    assert history.expect(hour)[0] == pytest.approx(week, rel=1e-12)


def test_where_shares_wander_half_of_the_days_say_what_is_not_abnormal() -> None:
    history = History("call:all")
    hour = MONDAY // 60 + 10
    for day, failed in zip(range(1, 8), (60, 70, 80, 90, 600, 110, 20), strict=True):
        history.load(hour - 24 * day, [60, 1000, failed, *[0] * (WIDTH - 3)])
    calm, wandering = [1.0] * len(COUNTED), [2.0] * len(COUNTED)
    assert history.expect(hour, calm)[0] == history.expect(hour)[0] < 0.06
    assert history.expect(hour, wandering)[0] == pytest.approx(0.08)
    history.load(hour - 24 * 7, [0, 0, 480, *[0] * (WIDTH - 3)])
    assert history.expect(hour, wandering)[0] == history.expect(hour)[0] > 0.3
    assert History("call:new").expect(hour, wandering)[0] == 0.5


def test_a_category_that_never_was_is_rare_and_not_impossible() -> None:
    history = History("call:all")
    for each in range(168):
        history.load(MONDAY // 60 - 168 + each, [60, 1800, *[0] * (WIDTH - 2)])
    share = history.expect(MONDAY // 60)[0]
    assert 0 < share < 1e-5
    assert History("call:new").expect(MONDAY // 60) == [0.5] * len(COUNTED)


def test_the_volume_of_an_hour_is_the_least_of_its_neighbours_and_unknown_without_them() -> None:
    history = History("call:all")
    hour = MONDAY // 60 + 9
    for each, calls in ((-2, 5), (-1, 600), (0, 6000), (1, 9000)):
        history.load(hour - 168 + each, [60, calls, *[0] * (WIDTH - 2)])
    assert history.volume(hour) == 10.0
    assert history.volume(hour + 1) is None
    assert history.volume(hour - 1) == pytest.approx(5 / 60)


# ---------------------------------------------------------------------------------- overdispersion


def week_of(dice: random.Random, wander: float, calls: int = 6000, share: float = 0.08) -> History:
    history = History("call:all")
    for each in range(336):
        level = share * max(0.1, dice.gauss(1, wander)) if wander else share
        deviation = (calls * level * (1 - level)) ** 0.5
        failed = max(0, round(dice.gauss(calls * level, deviation)))
        history.load(MONDAY // 60 + each, [60, calls, failed, *[0] * (WIDTH - 3)])
    return history


def test_counts_that_vary_by_luck_alone_have_a_spread_of_one() -> None:
    found = [week_of(random.Random(seed), 0.0).spread()[0] for seed in range(20)]
    assert sum(found) / 20 < 1.25
    assert all(1.0 <= each < 1.7 for each in found)


def test_counts_that_wander_have_as_much_more_spread_as_they_do() -> None:
    # 15 % of 480 are 72, by luck it is 21: 1 + 72^2 / 21^2 is 12.7.
    found = [week_of(random.Random(seed), 0.15).spread()[0] for seed in range(20)]
    assert 9 < sum(found) / 20 < 17


def test_an_outage_in_the_past_is_no_spread() -> None:
    history = week_of(random.Random(3), 0.0)
    for each in range(250, 253):
        history.load(MONDAY // 60 + each, [0, 0, 3000, *[0] * (WIDTH - 3)])
    assert history.spread()[0] < 1.6


def test_too_few_to_say_it_count_as_luck() -> None:
    assert week_of(random.Random(1), 0.5, calls=40).spread() == [1.0] * len(COUNTED)
    short = History("call:all")
    for each in range(20):
        short.load(MONDAY // 60 + each, [60, 6000, 100 * each, *[0] * (WIDTH - 3)])
    assert short.spread()[0] == 1.0
    assert History("call:all").spread() == [1.0] * len(COUNTED)


def test_hours_with_too_little_of_it_say_nothing_and_the_others_do() -> None:
    history = week_of(random.Random(2), 0.3)
    for each in range(336, 340):
        history.load(MONDAY // 60 + each, [60, 20, 1, *[0] * (WIDTH - 3)])
    assert history.spread()[0] > 20


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.lists(st.integers(-20_000, 20_000), min_size=WIDTH, max_size=WIDTH),
        ),
        max_size=60,
    )
)
def test_no_rows_can_be_so_wrong_that_there_is_no_answer(
    hours: list[tuple[int, list[int]]],
) -> None:
    history = History("call:all")
    for hour, values in hours:
        history.load(MONDAY // 60 + hour, values)
    assert all(each >= 1 for each in history.spread())
    for hour in range(380, 410):
        assert all(0 < each <= 1 for each in history.expect(MONDAY // 60 + hour))
        history.volume(MONDAY // 60 + hour)


# ------------------------------------------------------------------------------------------ gauges


def test_an_hour_teaches_a_gauge_as_it_was_at_its_end() -> None:
    history = History("call:all")
    for minute in range(MONDAY, MONDAY + 120):
        history.push(minute, ())
        history.mark(minute // 60, 0, float(minute - MONDAY))
    assert history.gauges(0) == [59.0]
    assert history.gauges(1) == []
    assert history.unsaved_gauges == {MONDAY // 60: (59.0, None)}


def test_a_gauge_of_an_hour_that_was_left_out_is_not_learned() -> None:
    history = History("call:all")
    for minute in range(MONDAY, MONDAY + 60):
        history.push(minute, ())
        history.mark(minute // 60, 0, 5.0)
    history.leave_out(MONDAY, MONDAY + 59)
    history.settle(MONDAY + 59)
    assert history.gauges(0) == []


def test_marks_of_hours_that_never_come_are_few() -> None:
    history = History("call:all")
    for hour in range(100):
        history.mark(hour, 0, 1.0)
    assert len(history._marks) == 4


def test_a_history_without_minutes_has_nothing_to_settle() -> None:
    history = History("call:all")
    history.settle(MONDAY)
    assert learned(history) == [0, 0, 0]


# ---------------------------------------------------------------------------------- three sigma


def test_the_mean_and_deviation_are_those_of_the_minutes_of_seven_days() -> None:
    rates = MinuteRates()
    zeros = [0] * 6
    for minute in range(100):
        rates.add(minute, 10, [minute % 2, *zeros])
    mean, deviation = rates.limit(0)
    assert rates.minutes == 100
    assert mean == pytest.approx(0.05)
    assert deviation == pytest.approx(0.05)
    rates.add(168 * 60 + 61, 10, [1, *zeros])
    assert rates.minutes == 1
    assert rates.limit(0)[0] == pytest.approx(0.1)
    rates.add(5, 10, [1, *zeros])  # over a week ago
    assert rates.minutes == 1


def test_each_minute_is_given_out_once() -> None:
    rates = MinuteRates()
    zeros = [0] * 6
    for minute in range(90):
        rates.add(minute, 10, [1, *zeros])
    ((hour, values),) = rates.unsaved(1)
    assert (hour, values[0]) == (0, 60.0)
    assert rates.unsaved(1) == []
    ((hour, values),) = rates.unsaved(2)
    assert (hour, values[0]) == (1, 30.0)
    again = MinuteRates()
    again.load(0, [60.0, *[6.0] * 7, *[0.6] * 7], saved=True)
    assert again.unsaved(10) == []
    assert again.minutes == 60


def test_a_ring_holds_the_hour_that_is_learned_last() -> None:
    assert SIZE >= 60 + 120
    assert len(COUNTED) == WIDTH - 2
    assert UNANSWERED == FIRST + 7
