from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.memory import HIGH, LEAST, LOW, TOP, Governor, Relief

CEILING = 512 << 20


def at(level: float) -> int:
    return int(CEILING * level)


def test_under_the_ceiling_nothing_is_limited() -> None:
    governor = Governor(CEILING)
    assert governor.read(at(LOW - 0.01)) == Relief(1.0, 1.0)
    assert not governor.pressed


def test_what_is_over_gives_way_before_what_goes_on() -> None:
    governor = Governor(CEILING)
    relief = governor.read(at(HIGH - 0.01))
    assert relief.lingering < 0.2
    assert relief.calls == 1.0
    assert governor.pressed


def test_near_the_top_new_calls_have_less_and_less_room_and_at_the_top_none() -> None:
    governor = Governor(CEILING)
    shares = [governor.read(at(HIGH + step / 1000)).calls for step in range(1, 90)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[10] < 1
    assert governor.read(at(TOP) + 1).calls == 0.0
    assert governor.relief.lingering == LEAST


def test_memory_that_stays_high_holds_the_shares_where_they_are() -> None:
    governor = Governor(CEILING)
    held = governor.read(at(0.85))
    assert {governor.read(at(0.85)) for _ in range(100)} == {held}


def test_when_there_is_room_again_the_caps_come_back_slowly_and_whole() -> None:
    governor = Governor(CEILING)
    governor.read(at(0.99))
    first = governor.read(at(0.5))
    assert first.calls < 0.1
    for _ in range(400):
        governor.read(at(0.5))
    assert governor.relief == Relief(1.0, 1.0)


@given(st.lists(st.integers(0, 2 * CEILING)))
def test_shares_are_always_shares(readings: list[int]) -> None:
    governor = Governor(CEILING)
    for used in readings:
        relief = governor.read(used)
        assert LEAST <= relief.lingering <= 1.0
        assert 0.0 <= relief.calls <= 1.0
        assert governor.used == used
