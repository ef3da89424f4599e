import json
from fractions import Fraction
from math import comb, exp, isclose
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.chances import (
    benjamini_hochberg,
    binomial_tail,
    fisher,
    newcombe,
    odds_ratio,
    poisson_lower,
    wilson,
)

VECTORS = Path(__file__).parent.parent / "corpus" / "vectors"
TABLES = json.loads((VECTORS / "differential_diagnosis.json").read_text())["vectors"]
CHECKS = json.loads((VECTORS / "anomaly_targets.json").read_text())["checks"]

counts = st.integers(0, 120)
shares = st.sampled_from([1e-9, 0.0005, 0.005, 0.08, 0.2, 0.5, 0.9, 0.999])


def exact_tail(k: int, n: int, p: float) -> Fraction:
    num, den = Fraction(p).as_integer_ratio()
    found = sum(comb(n, i) * num**i * (den - num) ** (n - i) for i in range(max(k, 0), n + 1))
    return Fraction(found, den**n)


@pytest.mark.parametrize(
    ("n", "k", "p", "chance", "digits"),
    [  # standards 5.3
        (1500, 200, 0.08, 1.524e-12, 3e-4),
        (150, 24, 0.08, 8.72e-4, 6e-4),
        (150, 30, 0.08, 2.687e-6, 2e-4),
        (60, 12, 0.08, 2.544e-3, 2e-4),
        (5, 3, 0.005, 1.2406e-6, 4e-5),
        (10, 3, 0.005, 1.461e-5, 4e-4),
        (300, 12, 0.005, 5.75e-8, 9e-4),
        (20, 5, 0.01, 1.368e-6, 4e-4),
        (40, 10, 0.08, 9.68e-4, 6e-4),
        (1500, 160, 0.08, 1.554e-4, 4e-4),
    ],
)
def test_the_tail_of_the_binomial_distribution_is_that_of_the_vectors(
    n: int, k: int, p: float, chance: float, digits: float
) -> None:
    assert isclose(binomial_tail(k, n, p), chance, rel_tol=digits)


def test_the_tail_is_that_of_another_library_to_all_its_digits() -> None:
    assert isclose(binomial_tail(3, 10, 0.1), CHECKS["binom_sf(3,10,.1)"][1], rel_tol=1e-9)
    assert isclose(binomial_tail(30, 100, 0.2), CHECKS["binom_sf(30,100,.2)"][1], rel_tol=1e-9)


@given(counts, counts, shares)
def test_the_tail_is_exact(k: int, n: int, p: float) -> None:
    truth = exact_tail(k, n, p)
    found = binomial_tail(k, n, p)
    if truth < Fraction(1, 10**290):
        assert found < 1e-289
    else:
        assert abs(Fraction(found) - truth) <= truth * Fraction(1, 10**11)


def test_a_chance_far_out_is_still_exact_with_many_calls() -> None:
    # Of a million calls, seven deviations: where 1 - (sum of the rest) has no digit left.
    found = binomial_tail(82_000, 1_000_000, 0.08)
    assert 1e-14 < found < 1e-12
    assert binomial_tail(1000, 1000, 0.001) == 0.0
    assert isclose(binomial_tail(100, 100, 0.001), 1e-300, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "p", "chance"),
    [
        (0, 10, 0.1, 1.0),
        (-1, 10, 0.1, 1.0),
        (11, 10, 1.0, 0.0),
        (1, 10, 0.0, 0.0),
        (3, 3, 1.0, 1.0),
    ],
)
def test_what_must_be_or_cannot_be_needs_no_sum(k: int, n: int, p: float, chance: float) -> None:
    assert binomial_tail(k, n, p) == chance


@pytest.mark.parametrize(("k", "mean"), [(0, 10.0), (3, 10.0), (10, 10.0), (25, 10.0), (40, 100.0)])
def test_the_lower_tail_of_the_poisson_distribution_is_the_sum_of_its_terms(
    k: int, mean: float
) -> None:
    term = total = Fraction(1)
    for i in range(1, k + 1):
        term = term * Fraction(mean) / i
        total += term
    assert isclose(poisson_lower(k, mean), float(total) * exp(-mean), rel_tol=1e-11)


def test_few_where_many_are_expected_is_as_rare_as_it_is() -> None:
    assert isclose(poisson_lower(0, 10.0), exp(-10), rel_tol=1e-12)
    assert isclose(poisson_lower(0, 600.0), exp(-600), rel_tol=1e-9)
    assert poisson_lower(-1, 10.0) == 0.0
    assert poisson_lower(0, 0.0) == 1.0
    assert poisson_lower(5, 0.0) == 1.0
    assert poisson_lower(10**6, 3.0) == 1.0


def test_wilson_is_that_of_the_vectors() -> None:
    low, high = wilson(8, 10)
    assert round(low, 6) == CHECKS["wilson(8,10)"][0][0]
    assert round(high, 6) == CHECKS["wilson(8,10)"][1][0]
    assert wilson(0, 0) == (0.0, 1.0)


@given(counts, counts)
def test_wilson_is_within_nothing_and_all_and_holds_the_share(part: int, more: int) -> None:
    whole = part + more
    low, high = wilson(part, whole)
    assert 0.0 <= low <= high <= 1.0
    if whole:
        assert low <= part / whole <= high
    assert (low == 0.0) == (part == 0)
    assert (high == 1.0) == (more == 0)


@pytest.mark.parametrize("vector", TABLES, ids=lambda v: str(v["table"]))
def test_tables_are_judged_as_the_vectors_say(vector: dict[str, list[float]]) -> None:
    a, b, c, d = map(int, vector["table"])
    assert isclose(fisher(a, b, c, d), float(vector["p_greater"]), rel_tol=1e-9)  # type: ignore[arg-type]
    assert isclose(odds_ratio(a, b, c, d), float(vector["odds_haldane"]), rel_tol=1e-12)  # type: ignore[arg-type]
    found = newcombe(a, a + c, b, b + d)
    assert [round(each, 6) for each in found] == vector["risk_diff"]


def exact_fisher(a: int, b: int, c: int, d: int) -> Fraction:
    row, other, column = a + b, c + d, a + c
    all_ = comb(row + other, column)
    last = min(row, column)
    return Fraction(
        sum(comb(row, x) * comb(other, column - x) for x in range(a, last + 1)), all_ or 1
    )


@given(counts, counts, counts, counts)
def test_fishers_test_is_exact(a: int, b: int, c: int, d: int) -> None:
    truth = exact_fisher(a, b, c, d)
    assert isclose(fisher(a, b, c, d), float(truth), rel_tol=1e-10)


def test_a_table_that_says_nothing_is_certain() -> None:
    for table in ((0, 0, 3, 4), (3, 4, 0, 0), (0, 3, 0, 4), (3, 0, 4, 0), (0, 3, 4, 5)):
        assert fisher(*table) == 1.0


def test_a_table_of_a_hundred_thousand_calls_is_judged_too() -> None:
    assert isclose(
        fisher(60, 250, 1000, 99_000), float(exact_fisher(60, 250, 1000, 99_000)), rel_tol=1e-9
    )
    assert fisher(300, 10, 1000, 99_000) == 0.0
    assert 0.4 < fisher(500, 49_500, 500, 49_500) < 0.6


@given(counts, counts, counts, counts)
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(
    a: int, b: int, c: int, d: int
) -> None:
    difference, low, high = newcombe(a, a + b, c, c + d)
    other, other_low, other_high = newcombe(c, c + d, a, a + b)
    assert low <= difference + 1e-12
    assert difference <= high + 1e-12
    assert isclose(difference, -other, abs_tol=1e-12)
    assert isclose(low, -other_high, abs_tol=1e-12)
    assert isclose(high, -other_low, abs_tol=1e-12)


def test_chances_of_many_looks_are_corrected_in_their_order() -> None:
    # Benjamini and Hochberg 1995, by hand: 0.04 * 4 / 3 beats 0.03 * 4 / 2.
    found = benjamini_hochberg([0.04, 0.01, 0.9, 0.03])
    assert [round(each, 6) for each in found] == [0.053333, 0.04, 0.9, 0.053333]
    assert benjamini_hochberg([]) == []
    assert benjamini_hochberg([0.5, 0.5]) == [0.5, 0.5]


@given(st.lists(st.floats(0, 1), max_size=30))
def test_a_corrected_chance_is_never_smaller_and_keeps_the_order(ps: list[float]) -> None:
    qs = benjamini_hochberg(ps)
    assert all(p <= q <= 1 or isclose(p, q) for p, q in zip(ps, qs, strict=True))
    ranked = [q for _, q in sorted(zip(ps, qs, strict=True))]
    assert ranked == sorted(ranked)
