import json
from pathlib import Path

import pytest

from overload.callers import Fate
from overload.goodput import achieved, bound, quantile, recovery, slope

VECTORS = Path(__file__).parents[1] / "corpus" / "vectors" / "overload_goodput.json"


def fates(rate: float, seconds: float, answered: float, begin: float = 0.0) -> list[Fate]:
    """Calls at a steady rate; those that begin before `answered` are refused."""
    return [
        Fate(
            at,
            "call",
            *(("answered", 200, "") if at >= answered else ("refused", 486, "r")),
            0.1,
            1,
        )
        for at in (begin + number / rate for number in range(int(rate * seconds)))
    ]


@pytest.mark.parametrize("row", json.loads(VECTORS.read_text())["rows"])
def test_the_bound_is_that_of_the_published_figures(row: dict[str, float]) -> None:
    assert bound(row["x"], row["beta"]) == pytest.approx(row["bound"], abs=5e-4)


def test_what_refusals_cost_nothing_is_never_less_than_the_capacity() -> None:
    assert bound(0.5, 0.0) == 0.5
    assert bound(10.0, 0.0) == 1.0


def test_only_answers_in_time_count_as_goodput() -> None:
    kinds = [("answered", 200), ("late", 200), ("refused", 486), ("silent", None)]
    calls = [Fate(at + 0.5, "call", *kind, "", 0.1, 2) for at, kind in enumerate(kinds)]
    got = achieved(calls, 0.0, 4.0)
    assert (got.offered, got.goodput, got.late, got.refused, got.silent) == (
        1,
        0.25,
        0.25,
        0.25,
        0.25,
    )
    assert (got.answered_share, got.copies, got.setup_p50_ms) == (0.25, 2, 100.0)


def test_nothing_offered_is_nothing_achieved() -> None:
    got = achieved([], 0.0, 1.0)
    assert (got.goodput, got.answered_share, got.setup_p99_ms) == (0, 0, None)


def test_recovery_is_counted_from_the_drop_of_the_load() -> None:
    assert recovery(fates(50, 20, answered=0.0), 5.0, 20.0) == 0.0
    # Three in a hundred and fifty may be refused; the last of the others is 0.06 s before 8.
    assert recovery(fates(50, 20, answered=8.0), 5.0, 20.0) == pytest.approx(3.0, abs=0.1)


def test_a_relapse_is_no_recovery() -> None:
    calls = fates(50, 10, answered=2.0) + fates(50, 5, answered=99.0, begin=10.0)
    assert recovery(calls, 0.0, 15.0) is None


def test_who_never_answers_never_recovers() -> None:
    assert recovery(fates(50, 20, answered=99.0), 5.0, 20.0) is None
    assert recovery([], 5.0, 20.0) is None


def test_the_cost_of_one_more_is_the_slope() -> None:
    assert slope([(1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]) == pytest.approx(2.0)
    assert slope([(1.0, 3.0)]) is None
    assert slope([(1.0, 3.0), (1.0, 5.0)]) is None


def test_a_quantile_of_nothing_is_unknown() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 1.0) == 3.0
