import random

from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.pulse import KEPT, Beat, Pulse, Standing


def pulse(*said: bool | int, down: int = 3, up: int = 2) -> Pulse:
    made = Pulse(down, up)
    for at, ok in enumerate(said):
        made.add(Beat(at, bool(ok), 200 if ok else None, call_id=f"c{at}"))
    return made


def test_nothing_is_known_before_anything_was_heard() -> None:
    made = pulse()
    assert made.standing == Standing(None, 0, 0, None)
    assert made.last is None
    assert made.last_good is None


def test_the_first_answer_is_enough_to_be_up() -> None:
    assert pulse(1).standing.up is True


def test_two_misses_of_three_are_not_down_and_the_third_is() -> None:
    assert pulse(1, 0, 0).standing.up is True
    assert pulse(1, 0, 0, 0).standing == Standing(False, 3, 0, 1)


def test_one_that_was_never_up_is_down_after_as_many_misses() -> None:
    assert pulse(0, 0).standing.up is None
    assert pulse(0, 0, 0).standing.up is False


def test_an_answer_between_misses_begins_the_count_anew() -> None:
    assert pulse(1, 0, 0, 1, 0, 0).standing == Standing(True, 2, 0, 4)


def test_one_good_answer_does_not_end_being_down_and_two_in_a_row_do() -> None:
    assert pulse(0, 0, 0, 1).standing.up is False
    assert pulse(0, 0, 0, 1, 0, 1).standing.up is False
    assert pulse(0, 0, 0, 1, 1).standing.up is True


def test_a_miss_that_is_told_late_stands_where_it_happened() -> None:
    made = pulse(1, 1)
    for at in (2, 3, 5, 6):
        made.add(Beat(at, True))
    made.add(Beat(4, False))
    assert made.standing == Standing(True, 0, 2, None)
    assert made.missed == 1


def test_misses_told_after_the_answer_that_followed_them_do_not_make_it_down() -> None:
    made = pulse(1)
    made.add(Beat(50, True, 200))
    for at in (10, 20, 30):
        made.add(Beat(at, False))
    # Down at 30, one good at 50: not yet up again.
    assert made.standing == Standing(False, 0, 1, None)
    made.add(Beat(60, True, 200))
    assert made.standing.up is True
    assert made.last_good == Beat(60, True, 200)


def test_one_older_than_all_that_are_kept_is_only_counted() -> None:
    made = pulse(*[1] * (KEPT + 3))
    made.add(Beat(0, False))
    assert (made.late, made.missed, made.standing.up) == (1, 1, True)
    assert made.standing.goods == KEPT + 3


def test_what_is_forgotten_is_unknown_and_stays_counted() -> None:
    made = pulse(1, 0, 0, 0)
    made.forget()
    assert made.standing == Standing()
    assert (made.answered, made.missed) == (1, 3)
    made.add(Beat(1, True))
    assert made.standing.up is True


def test_call_ids_are_of_the_newest_misses_newest_first() -> None:
    made = pulse(0, 1, 0, 0, 0)
    assert made.missed_call_ids() == ("c4", "c3", "c2")
    assert made.missed_call_ids(2) == ("c4", "c3")
    assert pulse(0, 1).missed_call_ids() == ()
    made.add(Beat(9, False))
    assert made.missed_call_ids(2) == ("c4", "c3")


@given(st.lists(st.booleans(), max_size=KEPT), st.integers(1, 4), st.integers(1, 4), st.randoms())
def test_the_order_in_which_results_are_told_does_not_matter(
    said: list[bool], down: int, up: int, lots: random.Random
) -> None:
    in_order, shuffled = Pulse(down, up), Pulse(down, up)
    beats = [Beat(at, ok) for at, ok in enumerate(said)]
    for beat in beats:
        in_order.add(beat)
    lots.shuffle(beats)
    for beat in beats:
        shuffled.add(beat)
    assert shuffled.standing == in_order.standing
    assert shuffled.last == in_order.last


@given(st.lists(st.booleans(), max_size=100), st.integers(1, 4), st.integers(1, 4))
def test_down_and_up_need_as_many_in_a_row_as_they_should(
    said: list[bool], down: int, up: int
) -> None:
    made = Pulse(down, up)
    before: bool | None = None
    for at, ok in enumerate(said):
        made.add(Beat(at, ok))
        now = made.standing.up
        if before is not False and now is False:
            assert not any(said[at - down + 1 : at + 1])
            assert at + 1 >= down
        if before is False and now is True:
            assert all(said[at - up + 1 : at + 1])
        before = now
