from sipsidecar.signals.alarms import PAGE, WARN
from sipsidecar.signals.burning import Burning, Objective
from sipsidecar.signals.series import MINUTES, TOTAL, UNANSWERED, WIDTH, History

START = 29_000_040  # a whole hour
BUDGET = 0.01


class Fed:
    """One objective, minute for minute."""

    def __init__(self, history: History | None = None) -> None:
        self.objective = Objective(BUDGET, UNANSWERED, history)
        self.minute = START

    def __call__(self, calls: int, bad: int, minutes: int = 1) -> Burning | None:
        found = None
        for _ in range(minutes):
            self.objective.push(self.minute, calls, bad)
            found = self.objective.look()
            self.minute += 1
        return found


def test_two_percent_of_a_month_in_an_hour_is_a_page() -> None:
    fed = Fed()
    assert fed(100, 0, 360) is None
    # 14.4 times the budget over an hour: after 9 minutes at 100 %, and five minutes of it.
    found = None
    minutes = 0
    while found is None:
        found = fed(100, 100)
        minutes += 1
    assert minutes == 9
    assert found.pair.severity == PAGE
    assert (found.pair.long, found.pair.short) == (60, 5)
    assert found.burns[0] > 14.4
    assert found.finding.active


def test_five_percent_of_a_month_in_six_hours_is_a_page() -> None:
    fed = Fed()
    fed(100, 0, 360)
    found = fed(100, 8, 359)
    assert found is not None
    assert (found.pair.long, found.pair.severity) == (360, PAGE)
    assert found.burns[0] > 6


def test_ten_percent_of_a_month_in_three_days_is_a_ticket() -> None:
    fed = Fed()
    fed(100, 0, 1000)
    found = fed(100, 2, 3320)
    assert found is not None
    assert (found.pair.long, found.pair.severity) == (4320, WARN)
    assert 1 < found.burns[0] < 6
    assert fed.objective.counts(4320)[0] == 432_000


def test_a_budget_that_is_used_as_promised_is_quiet() -> None:
    fed = Fed()
    assert all(fed(100, 1) is None for _ in range(5000))


def test_a_single_bad_call_is_no_page() -> None:
    fed = Fed()
    for _ in range(100):
        assert fed(0, 0) is None
    assert fed(1, 1) is None
    assert fed(1, 1) is None
    assert fed(1, 1) is not None


def test_a_start_in_trouble_is_told_after_a_quarter_of_the_hour_not_before() -> None:
    fed = Fed()
    assert [fed(100, 100) is not None for _ in range(15)] == [False] * 14 + [True]


def test_an_alarm_ends_ten_minutes_after_its_short_window_is_good_once() -> None:
    fed = Fed()
    fed(100, 0, 360)
    assert fed(100, 50, 30) is not None
    states = []
    for _ in range(30):
        found = fed(100, 0)
        states.append(None if found is None else found.finding.active)
    assert states.count(False) == 1
    assert states[-1] is None
    assert states.index(False) in range(10, 16)


def test_hours_of_an_earlier_life_count() -> None:
    history = History("slo:a")
    for hour in range(START // 60 - 70, START // 60):
        history.load(hour, [60, 6000, *[0] * (WIDTH - 4), 120, 0])
    assert history.hour(START // 60 - 1, (MINUTES, TOTAL, UNANSWERED)) == [60, 6000, 120]
    fed = Fed(history)
    fed(100, 2, 30)
    calls, bad = fed.objective.counts(4320)
    assert calls == 70 * 6000 + 3000
    assert bad == 70 * 120 + 60
    found = fed(100, 2)
    assert found is not None
    assert found.pair.long == 4320


def test_hours_of_this_life_do_not_count_twice() -> None:
    history = History("slo:a")
    fed = Fed(history)
    fed(100, 2, 300)
    history.settle(fed.minute - 1)
    assert fed.objective.counts(4320) == (30_000, 600)


def test_nothing_counted_burns_nothing() -> None:
    fed = Fed()
    assert fed(0, 0, 500) is None
