import itertools

from hypothesis import given
from hypothesis import strategies as st

from overload.callee import Work


def test_who_comes_alone_is_served_after_the_time_of_one_call() -> None:
    work = Work(50, 10)
    assert work.take(100.0, 1.0) == 100.02
    assert work.delay(100.01) < 0.0101
    assert work.delay(101.0) == 0


def test_a_full_queue_takes_nobody() -> None:
    work = Work(50, 2)
    assert [work.take(0.0, 1.0) is None for _ in range(3)] == [False, False, True]
    work.done()
    assert work.take(0.0, 1.0) is not None


@given(st.lists(st.floats(0, 0.1), min_size=2, max_size=200))
def test_never_more_than_its_capacity_is_served_and_in_the_order_of_arrival(
    gaps: list[float],
) -> None:
    work = Work(50, 1000)
    now = 0.0
    done = []
    for gap in gaps:
        now += gap
        at = work.take(now, 1.0)
        assert at is not None
        done.append(at)
    assert all(later - earlier > 0.0199 for earlier, later in itertools.pairwise(done))
