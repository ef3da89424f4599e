"""What is normal of a trunk's calls, and when more of a kind is no luck."""

import random

import pytest

from sipsidecar.signals.shares import (
    DAY,
    HOUR,
    MAX_KINDS,
    MAX_NOTES,
    MINUTE,
    OTHER_KIND,
    Share,
    ShareSettings,
    Shift,
    Watch,
)

T0 = 1_795_000_000_000_000 // DAY * DAY
SETTINGS = ShareSettings()
SCOPE = (("trunk", "acme"),)


class Line:
    """A trunk with so many calls a minute, looked at each minute."""

    def __init__(self, seed: int = 1, settings: ShareSettings = SETTINGS) -> None:
        self.random = random.Random(seed)
        self.share = Share(settings, T0)
        self.now = T0
        self.calls = 0
        self.found: list[Shift] = []

    def minute(self, calls: int, chance: float, kind: str = "bad") -> list[Shift]:
        for _ in range(calls):
            hit = self.random.random() < chance
            self.calls += 1
            self.share.receive((kind,) if hit else (), self.now + 1, str(self.calls), kind)
        self.now += MINUTE
        shifts = self.share.look(self.now)
        self.found += shifts
        return shifts

    def run(self, minutes: int, calls: int, chance: float) -> list[Shift]:
        return [shift for _ in range(minutes) for shift in self.minute(calls, chance)]

    def until(self, calls: int, chance: float, *, active: bool, limit: int = 3000) -> Shift:
        """The first shift that holds, or ends."""
        for _ in range(limit):
            for shift in self.minute(calls, chance):
                if shift.active is active:
                    return shift
        raise AssertionError("nothing was found")


def test_before_enough_calls_nothing_is_found_whatever_they_are() -> None:
    line = Line()
    for chance in (0.0, 1.0, 0.5):
        assert not line.run(6, 10, chance)
    assert not line.share.armed


@pytest.mark.parametrize(("normal", "seed"), [(0.0, 1), (0.02, 2), (0.3, 3), (0.9, 4), (1.0, 5)])
def test_a_share_that_stays_is_never_a_shift(normal: float, seed: int) -> None:
    line = Line(seed)
    line.run(3 * 1440, 7, normal)
    assert not line.found


@pytest.mark.parametrize(
    ("normal", "planted", "within"),
    [(0.0, 0.3, 70), (0.0, 1.0, 15), (0.1, 0.4, 150), (0.5, 0.8, 250), (0.02, 0.15, 500)],
)
def test_a_rise_is_found_within_so_many_calls_and_ends(
    normal: float, planted: float, within: int
) -> None:
    for seed in range(8):
        line = Line(seed)
        line.run(1500, 5, normal)
        assert not line.found
        before, began = line.calls, line.now
        shift = line.until(5, planted, active=True)
        assert line.calls - before <= within
        assert shift.hits >= 10
        assert shift.normal < planted
        assert shift.probability < 1e-6
        assert shift.z > 4
        assert shift.since >= began - 3 * HOUR
        assert len(shift.call_ids) == 5
        assert int(shift.call_ids[0]) > int(shift.call_ids[-1]) > before - 200
        held = line.minute(5, planted)
        assert [one.active for one in held] == [True]
        assert held[0].total == shift.total + 5
        back = line.now
        assert not line.until(5, normal, active=False).adopted
        assert line.now - back <= HOUR
        assert not line.run(60, 5, normal)


def test_in_the_first_day_a_shift_must_be_twice_as_wide() -> None:
    young, old = Line(3), Line(3)
    young.run(100, 10, 0.0)
    old.run(1500, 10, 0.0)
    assert not young.run(200, 10, 0.06)
    assert old.until(10, 0.08, active=True)


def test_few_calls_of_a_kind_are_no_shift_even_if_all_are() -> None:
    line = Line()
    line.run(1500, 5, 0.0)
    assert not line.run(1, 9, 1.0)
    assert line.run(1, 1, 1.0)


def test_what_happens_in_a_shift_teaches_nothing() -> None:
    line = Line()
    line.run(1500, 5, 0.0)
    line.until(5, 0.5, active=True)
    learned = line.share.learned
    line.run(300, 5, 0.5)
    line.until(5, 0.0, active=False)
    assert line.share.learned == pytest.approx(learned, rel=0.05)
    assert line.share.normal("bad") == pytest.approx(0.0, abs=0.005)
    line.run(120, 5, 0.0)
    assert line.share.learned > learned
    assert line.until(5, 0.5, active=True)


def test_a_shift_that_holds_for_a_day_is_the_new_normal() -> None:
    line = Line()
    line.run(1500, 5, 0.0)
    line.until(5, 0.5, active=True)
    began = line.now
    end = line.until(5, 0.5, active=False)
    assert end.adopted
    assert line.now - began == DAY
    assert not line.run(1000, 5, 0.5)
    assert line.share.armed


def test_all_kinds_of_a_scope_end_when_one_becomes_normal() -> None:
    line = Line()
    line.run(1500, 5, 0.0)
    line.until(5, 0.5, active=True)
    for _ in range(1200):
        line.minute(5, 0.5)
    ended: list[Shift] = []
    for _ in range(300):
        line.minute(3, 1.0, "worse")
        ended += [shift for shift in line.minute(5, 0.9) if not shift.active]
    assert {shift.kind for shift in ended if shift.adopted} == {"bad", "worse"}


def test_a_shift_without_any_more_calls_ends_within_an_hour() -> None:
    line = Line()
    line.run(1500, 5, 0.0)
    line.until(5, 1.0, active=True)
    end = line.until(0, 0.0, active=False, limit=62)
    assert (end.adopted, end.active) == (False, False)


def test_a_share_that_is_nearly_all_cannot_rise() -> None:
    line = Line()
    line.run(1500, 5, 0.93)
    assert not line.run(300, 5, 1.0)


def test_hours_of_the_day_have_their_own_normal() -> None:
    line = Line(7)
    for minute in range(6 * 1440):
        night = minute % 1440 < 8 * 60
        line.minute(6, 0.25 if night else 0.1)
    assert not line.found


def test_calls_that_come_in_bursts_are_expected_to() -> None:
    """Ten calls of one kind at a time are one event: a share of them wanders more."""
    chance = random.Random(5)
    line = Line(6)
    for _ in range(7 * 1440):
        burst = chance.random() < 0.02
        line.minute(7, 0.9 if burst else 0.05)
    assert len({shift.since for shift in line.found}) <= 1


def test_a_gap_without_calls_is_no_change() -> None:
    line = Line()
    line.run(1500, 5, 0.1)
    line.now += 3 * DAY
    assert not line.run(600, 5, 0.1)


def test_what_was_learned_fades_in_a_week() -> None:
    line = Line()
    line.run(1500, 5, 0.1)
    learned = line.share.learned
    line.now += 60 * DAY
    line.minute(1, 0.0)
    assert line.share.learned < learned / 10


def test_a_shift_ends_although_what_was_learned_faded() -> None:
    line = Line()
    line.run(250, 1, 0.0)
    line.until(1, 1.0, active=True)
    line.now += 30 * DAY
    assert line.until(1, 1.0, active=False, limit=3).adopted


def test_a_shift_ends_soon_though_midnight_leaves_less_learned_than_arms() -> None:
    line = Line(3)
    line.now = T0 + DAY - 90 * MINUTE
    line.run(21, 10, 0.0)
    while line.share.learned < SETTINGS.arm_calls:
        line.minute(1, 0.0)
    line.until(10, 1.0, active=True, limit=60)
    while line.now < T0 + DAY + 5 * MINUTE:
        line.minute(10, 1.0)
    assert not line.share.armed
    mended = line.now
    line.until(10, 0.0, active=False, limit=60)
    assert line.now - mended <= 30 * MINUTE


def test_kinds_and_notes_are_bounded() -> None:
    share = Share(ShareSettings(arm_calls=1), T0)
    share.receive((), T0, "c")
    share.look(T0)
    for number in range(MAX_KINDS + 30):
        share.receive((str(number),), T0, "c", f"note {number}")
    share.look(T0 + MINUTE)
    total, kinds, notes = share.recent()
    assert total == MAX_KINDS + 30
    assert kinds[OTHER_KIND] == share.folded == 30
    assert len(kinds) == MAX_KINDS + 1
    assert len(notes) == MAX_NOTES


def test_kinds_that_are_not_met_any_more_make_room() -> None:
    share = Share(SETTINGS, T0)
    for number in range(MAX_KINDS):
        share.receive((str(number),), T0, "c")
    share.look(T0 + MINUTE)
    later = T0 + 40 * DAY
    share.receive((), later, "c")
    share.look(later + MINUTE)
    share.receive(("newer",), later + MINUTE, "c")
    share.look(later + 2 * MINUTE)
    assert share.folded == 0


def test_what_was_noted_is_told_most_first_and_only_of_the_last_hour() -> None:
    share = Share(SETTINGS, T0)
    for hit in range(SETTINGS.arm_calls):
        share.receive((), T0, str(hit), "never: no kind")
    share.look(T0 + MINUTE)
    for note, count in (("a", 1), ("b", 3), ("c", 2)):
        for _ in range(count):
            share.receive(("bad",), T0 + 2 * MINUTE, "c", note)
    share.look(T0 + 3 * MINUTE)
    assert share.recent()[2] == {"b": 3, "c": 2, "a": 1}
    share.receive((), T0 + 2 * HOUR, "c")
    share.look(T0 + 2 * HOUR)
    assert share.recent()[0] == 1


def test_nothing_learned_has_no_normal() -> None:
    assert Share(SETTINGS, T0).normal("bad") is None


def fed(watch: Watch, at: int, scope: tuple[tuple[str, str], ...] = SCOPE) -> None:
    watch.receive(scope, (), at, "c")


def test_scopes_are_bounded_and_those_over_it_are_counted() -> None:
    watch = Watch(SETTINGS, max_scopes=2)
    for name in "abcc":
        fed(watch, T0, (("trunk", name),))
    assert watch.folded == 2
    assert watch.share((("trunk", "a"),)) is not None
    assert watch.share((("trunk", "c"),)) is None


def test_a_scope_without_calls_makes_room_after_a_week() -> None:
    watch = Watch(SETTINGS, max_scopes=1)
    fed(watch, T0)
    assert watch.look(T0 + MINUTE) == []
    watch.look(T0 + 6 * DAY)
    assert watch.share(SCOPE) is not None
    watch.look(T0 + 9 * DAY)
    assert watch.share(SCOPE) is None


def test_scopes_do_not_know_each_other() -> None:
    watch, now = Watch(SETTINGS), T0
    other = (("trunk", "other"),)
    found = set()
    for minute in range(330):
        for _ in range(3):
            watch.receive(SCOPE, ("bad",) if minute > 300 else (), now, "c")
            watch.receive(other, (), now, "c")
        now += MINUTE
        found |= {scope for scope, _, _ in watch.look(now)}
    assert found == {SCOPE}
