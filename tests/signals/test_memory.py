from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.memory import HIGH, LEAST, LOW, Governor

MB = 1 << 20
CEILING = 512 * MB


def test_under_the_ceiling_nothing_is_limited() -> None:
    governor = Governor(CEILING)
    assert governor.read(int(CEILING * (HIGH - 0.01)), 1.0) == 1.0
    assert not governor.pressed


def test_growth_near_the_ceiling_lowers_the_caps_below_what_is_in_use() -> None:
    governor = Governor(CEILING)
    assert governor.read(int(CEILING * 0.85), 0.4) < 0.4
    assert governor.pressed


def test_growth_at_the_critical_level_is_answered_more_strongly() -> None:
    mild, strong = Governor(CEILING), Governor(CEILING)
    assert strong.read(int(CEILING * 0.95), 0.5) < mild.read(int(CEILING * 0.85), 0.5)


def test_memory_that_stays_high_without_growing_holds_the_share() -> None:
    governor = Governor(CEILING)
    share = governor.read(int(CEILING * 0.9), 0.5)
    assert {governor.read(int(CEILING * 0.9), 0.1) for _ in range(100)} == {share}


def test_growth_that_goes_on_lowers_the_share_again_and_again_down_to_a_least_one() -> None:
    governor = Governor(CEILING)
    used = int(CEILING * 0.8)
    shares = [governor.read(used + step * 2 * MB, 0.5) for step in range(60)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == LEAST


def test_when_there_is_room_again_the_caps_come_back_whole() -> None:
    governor = Governor(CEILING)
    governor.read(int(CEILING * 0.95), 0.1)
    for _ in range(400):
        governor.read(int(CEILING * (LOW - 0.01)), 0.0)
    assert governor.share == 1.0


@given(st.lists(st.tuples(st.integers(0, 2 * CEILING), st.floats(0, 1))))
def test_the_share_is_always_between_the_least_one_and_all(
    readings: list[tuple[int, float]],
) -> None:
    governor = Governor(CEILING)
    for used, fullest in readings:
        assert LEAST <= governor.read(used, fullest) <= 1.0
        assert governor.used == used
