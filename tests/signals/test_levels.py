import pytest

from sipsidecar.signals.chances import wilson
from sipsidecar.signals.levels import Levels
from sipsidecar.signals.rates import Normal
from sipsidecar.signals.series import (
    COUNTED,
    INEFFECTIVE,
    MINUTES,
    TOTAL,
    UNANSWERED,
    WIDTH,
    Ring,
)

START = 29_000_000


def normal(unanswered: float | None, volume: float | None = None) -> Normal:
    shares: list[float | None] = [None] * len(COUNTED)
    shares[-2] = unanswered
    shares[-1] = None if unanswered is None else unanswered / 10
    return Normal(0, "own", shares, None, volume)


class Fed:
    """One series, minute for minute; what holds or ends, by source."""

    def __init__(self, usual: Normal, fixed: float | None = None) -> None:
        self.usual, self.fixed = usual, fixed
        self.ring = Ring(192, WIDTH, START)
        self.levels = Levels()

    def __call__(
        self, calls: int, bad: int = 0, ineffective: int = 0, *, skip: int = 0
    ) -> dict[str, bool]:
        pairs = [(MINUTES, 1), (TOTAL, calls), (UNANSWERED, bad), (INEFFECTIVE, ineffective)]
        self.ring.push(self.ring.minute + 1 + skip, pairs)
        self.found = tuple(self.levels.look(self.ring, self.usual, self.fixed))
        return {one.source: one.active for one in self.found}


@pytest.mark.parametrize(
    ("calls", "bad", "alarms"),
    [  # Wilson's upper bound under 0.90 (standards 5.4)
        (4, 4, False),
        (5, 2, True),
        (5, 1, False),
        (10, 3, True),
        (10, 2, False),
        (20, 5, True),
        (20, 4, False),
        (100, 16, True),
        (100, 15, False),
        (200, 29, True),
        (200, 28, False),
    ],
)
def test_a_fixed_threshold_alarms_when_the_share_is_surely_under_it(
    calls: int, bad: int, alarms: bool
) -> None:
    found = Fed(normal(None), fixed=0.9)(calls, bad)
    assert found == ({"asr": True} if alarms else {})
    if calls >= 5:
        assert alarms == (wilson(calls - bad, calls)[1] < 0.9)


def test_it_was_first_seen_in_the_first_minute_that_was_too_low_by_itself() -> None:
    fed = Fed(normal(0.05))
    for _ in range(5):
        fed(100, bad=5)
    fed(100, bad=60)
    assert fed(100, bad=60)["asr"]
    assert fed.found[0].held.since == fed.ring.minute - 1


def test_effective_calls_have_the_threshold_too() -> None:
    assert Fed(normal(None), fixed=0.9)(100, 30, 30) == {"asr": True, "ner": True}


def test_elsewhere_the_usual_share_decides() -> None:
    fed = Fed(normal(0.5))
    assert fed(100, 60) == {}  # 40 % where 50 % is usual
    assert fed(100, 95) == {"asr": True}
    (found,) = fed.found
    assert found.value == pytest.approx((40 + 5) / 200)
    assert found.expected == pytest.approx(0.45)
    assert Fed(normal(0.5))(20, 20) == {"asr": True}
    assert Fed(normal(0.5))(19, 19) == {}  # 2e-6
    assert Fed(normal(None))(100, 100) == {}


def test_a_share_that_is_back_for_ten_minutes_ends_the_alarm_once() -> None:
    fed = Fed(normal(0.1))
    assert fed(100, 80) == {"asr": True}
    states = [fed(100, 10).get("asr") for _ in range(20)]
    # Five minutes until the window is good, and ten of it.
    assert states == [True] * 13 + [False] + [None] * 6
    assert not fed.levels.holding


def test_five_calls_are_waited_for_before_a_share_is_back() -> None:
    fed = Fed(normal(0.1), fixed=0.9)
    assert fed(10, 10) == {"asr": True}
    states = [fed(1, 0).get("asr") for _ in range(20)]
    assert states[4:] == [True] * 9 + [False] + [None] * 6
    slow = Fed(normal(0.1), fixed=0.9)
    slow(10, 10)
    assert all(slow(0).get("asr") for _ in range(59))
    ends = [slow(0).get("asr") for _ in range(20)]
    assert ends.count(False) == 1  # no call in an hour


def test_an_alarm_ends_where_it_is_not_known_any_more_what_is_usual() -> None:
    fed = Fed(normal(0.1))
    assert fed(100, 80) == {"asr": True}
    fed.usual = normal(None)
    assert fed(100, 80) == {"asr": False}
    assert fed(100, 80) == {}


def test_a_drop_of_volume_is_an_alarm_when_half_is_missing_and_it_is_no_luck() -> None:
    fed = Fed(normal(0.1, volume=20.0))
    for _ in range(5):
        assert fed(20) == {}
    states = [fed(5).get("volume") for _ in range(5)]
    assert states == [None, None, None, True, True]  # 35 of 100 after four minutes
    (found,) = fed.found
    assert (found.value, found.expected) == (25.0, 100.0)
    states = [fed(20).get("volume") for _ in range(20)]
    assert states.count(False) == 1
    assert states[-1] is None


def test_a_drop_of_a_third_is_no_alarm_however_improbable() -> None:
    fed = Fed(normal(0.1, volume=1000.0))
    for _ in range(20):
        assert fed(660) == {}


def test_too_few_calls_say_nothing_of_volume() -> None:
    fed = Fed(normal(0.1, volume=1.9))
    for _ in range(20):
        assert fed(0) == {}


def test_minutes_that_the_sidecar_did_not_see_are_no_drop() -> None:
    fed = Fed(normal(0.1, volume=20.0))
    for _ in range(10):
        fed(20)
    states = [fed(20, skip=30), *(fed(20) for _ in range(10))]
    assert states == [{}] * 11
    # Nor are those before its start.
    fresh = Fed(normal(0.1, volume=20.0))
    assert [fresh(0) for _ in range(4)] == [{}] * 4
    assert fresh(0) == {"volume": True}


def test_a_drop_ends_where_the_usual_volume_is_not_known_any_more() -> None:
    fed = Fed(normal(0.1, volume=20.0))
    for _ in range(5):
        fed(0)
    assert fed.levels.holding
    fed.usual = normal(0.1)
    states = [fed(0).get("volume") for _ in range(12)]
    assert states == [True] * 9 + [False] + [None] * 2
