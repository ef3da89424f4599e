from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.alarms import Scope, Share
from sipsidecar.signals.attribution import (
    Attribution,
    Portions,
    Sums,
    attribute,
    divide,
    is_compatible,
    is_inside,
    is_nested,
    lead_of,
    matches,
    order_scope,
    portions,
)
from troubled import scope, share, values


def grid(bad: dict[Scope, float], calls: int = 100, normal: float = 0.01) -> list[Share]:
    """Tenants t1..t4 on trunks a1, a2 (carrier a), b1, b2 (b) and c1 (c), in and out; without luck."""
    rows = []
    for tenant in ("t1", "t2", "t3", "t4"):
        for trunk in ("a1", "a2", "b1", "b2", "c1"):
            for direction in ("in", "out"):
                said = {
                    "tenant": tenant,
                    "trunk": trunk,
                    "carrier": trunk[0],
                    "direction": direction,
                    "region": "eu",
                }
                row = share(calls, 0, calls * normal, **said)
                rate = max(
                    [normal, *(rate for cohort, rate in bad.items() if matches(row, cohort))]
                )
                rows.append(row._replace(failed=round(calls * rate)))
    return rows


# ------------------------------------------------------------------------------------------- scopes


def test_a_scope_has_each_pair_once_and_in_the_order_of_the_dimensions() -> None:
    said = [("region", "eu"), ("tenant", "t1"), ("trunk", "a"), ("tenant", "t1"), ("what", "x")]
    assert order_scope(said) == (
        ("tenant", "t1"),
        ("trunk", "a"),
        ("region", "eu"),
        ("what", "x"),
    )


def test_a_scope_is_inside_of_one_with_fewer_of_its_pairs() -> None:
    narrow, broad = scope(tenant="t1", trunk="a"), scope(trunk="a")
    assert is_inside(narrow, broad)
    assert is_inside(broad, broad)
    assert is_inside(narrow, ())
    assert not is_inside(broad, narrow)
    assert is_nested(broad, narrow)
    assert not is_nested(scope(trunk="a"), scope(tenant="t1"))


def test_scopes_are_compatible_unless_one_dimension_has_two_values() -> None:
    assert is_compatible(scope(tenant="t1"), scope(trunk="a"))
    assert is_compatible((), scope(trunk="a"))
    assert not is_compatible(scope(tenant="t1", trunk="a"), scope(trunk="b"))


def test_a_share_matches_a_scope_by_all_of_its_pairs_and_never_by_an_unknown_dimension() -> None:
    row = share(1, 0, tenant="t1", trunk="a")
    assert matches(row, ())
    assert matches(row, scope(tenant="t1", trunk="a"))
    assert not matches(row, scope(tenant="t1", trunk="b"))
    assert not matches(row, (("planet", "earth"),))


# -------------------------------------------------------------------------------------------- leads


def test_a_cohort_leads_by_the_lowest_difference_less_the_normal_one() -> None:
    # Newcombe's interval of 30/100 - 5/100 at 99 % begins at 0.1141.
    part, whole = Sums(100, 30, 1.0), Sums(200, 35, 2.0)
    lead = lead_of(part, whole)
    assert lead == pytest.approx(0.1141, abs=5e-4)
    other = lead_of(Sums(100, 30, 11.0), Sums(200, 35, 12.0))
    assert other is not None
    assert lead is not None
    assert lead - other == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (Sums(0, 0, 0), Sums(100, 10, 1)),
        (Sums(100, 50, 1), Sums(100, 50, 1)),  # there is no rest
        (Sums(10, 2, 0), Sums(1000, 2, 0)),  # two failures are nothing
        (Sums(100, 10, 9.5), Sums(1000, 10, 9.5)),  # as normal
        (Sums(100, 30, 0), Sums(200, 50, 0)),  # the rest is nearly as bad
        (Sums(100, 50, 0), Sums(102, 50, 0)),  # two calls of a rest prove nothing
    ],
)
def test_a_cohort_does_not_lead_what_it_is_no_worse_than(part: Sums, whole: Sums) -> None:
    assert lead_of(part, whole) is None


# ------------------------------------------------------------------------------------- attribution


@pytest.mark.parametrize(
    "cohort",
    [
        scope(trunk="a1"),
        scope(carrier="a"),
        scope(tenant="t2"),
        scope(direction="in"),
        scope(trunk="b2", direction="out"),
        scope(tenant="t1", carrier="a"),
        scope(tenant="t1", trunk="a1"),
        scope(tenant="t1", trunk="a1", direction="in"),
    ],
)
@pytest.mark.parametrize("rate", [0.2, 0.6, 1.0])
def test_the_planted_cohort_explains_the_excess_whatever_else_has_all_of_it(
    cohort: Scope, rate: float
) -> None:
    found = attribute(grid({cohort: rate}))
    assert found.scope == cohort
    assert found.explained == pytest.approx(1.0)


def test_a_trouble_of_all_is_put_down_to_nobody() -> None:
    found = attribute(grid({(): 0.4}))
    assert (found.scope, found.explained, found.upstream) == ((), None, False)


def test_the_largest_is_not_to_blame_for_what_all_have() -> None:
    rows = [share(900, 300, 9.0, trunk="a"), share(100, 33, 1.0, trunk="b")]
    assert attribute(rows).scope == ()


def test_what_has_not_more_than_eighty_percent_does_not_explain() -> None:
    def rows(b: int) -> list[Share]:
        return [
            share(100, 40, 0.0, trunk="a"),
            share(100, b, 0.0, trunk="b"),
            *(share(100, 0, 0.0, trunk=name) for name in "cdefgh"),
        ]

    assert attribute(rows(9)).scope == scope(trunk="a")
    assert attribute(rows(9)).explained == pytest.approx(40 / 49)
    assert attribute(rows(10)).scope == ()


def test_a_carrier_wins_over_its_busiest_trunk_when_the_others_fail_alike() -> None:
    rows = [
        share(900, 540, 9, trunk="a1", carrier="a"),
        share(100, 60, 1, trunk="a2", carrier="a"),
        share(1000, 10, 10, trunk="b1", carrier="b"),
    ]
    assert attribute(rows).scope == scope(carrier="a")


def test_its_busiest_trunk_wins_over_a_carrier_whose_others_are_well() -> None:
    rows = [
        share(900, 540, 9, trunk="a1", carrier="a"),
        share(100, 1, 1, trunk="a2", carrier="a"),
        share(1000, 10, 10, trunk="b1", carrier="b"),
    ]
    assert attribute(rows).scope == scope(trunk="a1")


def test_of_values_that_mean_the_same_calls_the_trunk_is_named() -> None:
    rows = [
        share(100, 60, 1, tenant="t1", trunk="a1", carrier="a", region="eu"),
        share(900, 9, 9, tenant="t2", trunk="b1", carrier="b", region="us"),
    ]
    assert attribute(rows).scope == scope(trunk="a1")
    assert attribute(rows, dimensions=("tenant", "trunk")).scope == scope(tenant="t1")


def test_what_is_unknown_or_matched_nothing_is_no_cohort() -> None:
    rows = [share(100, 60, 1, trunk="other"), share(900, 9, 9, trunk="")]
    assert attribute(rows).scope == ()


def test_a_pair_is_found_where_no_value_by_itself_is_worse() -> None:
    rows = [
        share(10, 8, 1, tenant="t2", trunk="a"),
        share(1000, 100, 100, tenant="t2", trunk="b"),
        share(1000, 100, 100, tenant="t1", trunk="a"),
        share(10_000, 1000, 1000, tenant="t1", trunk="b"),
        share(10, 1, 1, tenant="other", trunk="b"),
    ]
    found = attribute(rows)
    assert (found.scope, found.dimension) == (scope(tenant="t2", trunk="a"), "trunk")


def test_within_a_scope_only_its_calls_count() -> None:
    rows = grid({scope(tenant="t1"): 0.9, scope(tenant="t2", trunk="a1"): 0.5})
    found = attribute(rows, scope(tenant="t2"))
    assert found.scope == scope(tenant="t2", trunk="a1")
    assert attribute(rows, scope(tenant="t3")) == Attribution(scope(tenant="t3"), None, {})


def test_a_cohort_whose_normal_is_higher_is_not_blamed_for_it() -> None:
    # Half of what t1 dials is never answered; t2 got worse.
    rows = [
        share(1000, 500, 500, tenant="t1"),
        share(1000, 10, 10, tenant="t3"),
        share(1000, 130, 10, tenant="t2"),
    ]
    assert attribute(rows).scope == scope(tenant="t2")


def test_nothing_is_explained_where_there_is_no_excess() -> None:
    assert attribute([]) == Attribution((), None, {})
    assert attribute([share(100, 1, 1.0, trunk="a")]) == Attribution((), None, {})
    assert attribute([share(0, 0, 0.0, trunk="a")]) == Attribution((), None, {})


def test_more_failures_than_calls_do_no_harm() -> None:
    assert attribute([share(10, 99, 0, trunk="a"), share(10, 0, 0, trunk="b")]).scope == scope(
        trunk="a"
    )


def test_the_excess_is_split_by_the_values_of_what_it_is_put_down_to() -> None:
    rows = [
        share(100, 32, 1, trunk="a"),
        share(100, 7, 1, trunk="b"),
        share(100, 3, 1, trunk="c"),
        share(100, 1, 1, trunk="d"),
        share(100, 9, 1, trunk=""),
    ]
    found = attribute(rows[:4])
    assert (found.dimension, found.by_value) == ("trunk", {"a": 31, "b": 6, "c": 2})
    assert list(found.by_value) == ["a", "b", "c"]
    assert "" not in attribute(rows).by_value


def test_what_may_be_luck_is_no_part_of_the_split() -> None:
    rows = [share(10_000, 600, 100, trunk="a"), share(10_000, 110, 100, trunk="b")]
    assert attribute(rows).by_value == {"a": 500}


def test_where_no_value_leads_the_first_dimension_with_several_splits_it() -> None:
    rows = [
        share(100, 40, 1, carrier="x", direction="in"),
        share(100, 40, 1, carrier="y", direction="out"),
    ]
    found = attribute(rows)
    assert (found.scope, found.dimension, found.by_value) == ((), "carrier", {"x": 39, "y": 39})


# ---------------------------------------------------------------------------------------- upstream


@pytest.mark.parametrize("cohort", [scope(trunk="a1"), scope(carrier="a")])
def test_several_tenants_on_what_they_share_are_upstream(cohort: Scope) -> None:
    assert attribute(grid({cohort: 0.6})).upstream


@pytest.mark.parametrize(
    "cohort", [scope(tenant="t1"), scope(tenant="t1", carrier="a"), scope(direction="in")]
)
def test_a_tenant_or_what_no_carrier_is_part_of_is_not_upstream(cohort: Scope) -> None:
    assert not attribute(grid({cohort: 0.6})).upstream


def test_one_suffering_tenant_is_not_several_whatever_others_do_there() -> None:
    rows = [
        share(100, 60, 1, tenant="t1", trunk="a"),
        share(100, 1, 1, tenant="t1", trunk="b"),
        share(2, 0, 0, tenant="t2", trunk="a"),
        share(900, 9, 9, tenant="t2", trunk="b"),
    ]
    found = attribute(rows)
    assert (found.scope, found.upstream) == (scope(trunk="a"), False)


# ---------------------------------------------------------------------------------------- dividing


def test_two_trunks_that_fail_together_are_two_troubles_and_no_direction() -> None:
    one, other = scope(trunk="a1"), scope(trunk="b1")
    rows = grid({one: 0.6, other: 0.4})
    found = divide(rows)
    assert [part.scope for part in found] == [one, other]
    assert [part.explained for part in found] == [
        pytest.approx(0.602, abs=0.01),
        pytest.approx(0.398, abs=0.01),
    ]
    assert all(part.upstream for part in found)
    assert found[0].by_value == {"a1": 472, "b1": 312}


def test_a_trunk_and_a_tenant_that_fail_together_are_two_troubles() -> None:
    found = divide(grid({scope(trunk="a1"): 0.7, scope(tenant="t4"): 0.5}))
    assert {part.scope for part in found} == {scope(trunk="a1"), scope(tenant="t4")}


@pytest.mark.parametrize(
    "cohort", [scope(trunk="a1"), scope(carrier="a"), scope(tenant="t2"), scope(direction="in"), ()]
)
def test_one_trouble_is_not_divided(cohort: Scope) -> None:
    rows = grid({cohort: 0.6})
    assert divide(rows) == [attribute(rows)]


def test_more_than_three_at_once_are_not_told_apart() -> None:
    rows = grid({scope(trunk=name): 0.6 for name in ("a1", "a2", "b1", "b2")})
    assert divide(rows) == [attribute(rows)]


def test_three_trunks_that_fail_together_are_three_troubles() -> None:
    bad = {scope(trunk=f"x{at}"): 0.5 for at in range(3)}
    rows = [share(100, 50 if at < 3 else 1, trunk=f"x{at}", direction="in") for at in range(9)]
    assert {part.scope for part in divide(rows)} == bad.keys()


def test_what_is_left_over_must_be_little() -> None:
    rows = [
        share(100, 40, 0, trunk="a"),
        share(100, 30, 0, trunk="b"),
        *(share(100, 6, 0, trunk=f"x{at}") for at in range(6)),
    ]
    assert divide(rows) == [attribute(rows)]


# ---------------------------------------------------------------------------------------- portions


def test_portions_tell_how_much_of_an_excess_lies_in_each_cohort() -> None:
    rows = [
        share(100, 31, 1, tenant="t1", trunk="a"),
        share(300, 13, 3, tenant="t1", trunk="b"),
        share(100, 1, 1, tenant="t2", trunk="b"),
    ]
    asked = [(), scope(tenant="t1"), scope(tenant="t2"), scope(tenant="t3"), (("planet", "x"),)]
    found = portions(rows, asked, [scope(trunk="a"), scope(trunk="b")])
    assert found[()] == Portions((0.75, 0.25), (0.2, 0.8))
    assert found[scope(tenant="t1")] == Portions((0.75, 0.25), (0.25, 0.75))
    assert found[scope(tenant="t2")] == Portions(None, (0.0, 1.0))
    assert found[scope(tenant="t3")] == Portions(None, None)
    assert found[("planet", "x"),] == Portions(None, None)


# -------------------------------------------------------------------------------------- properties

names = st.sampled_from(["", "other", "x", "y", "z"])
shares = st.lists(
    st.builds(
        lambda total, failed, expected, *said: Share(
            values(tenant=said[0], trunk=said[1], carrier=said[2]),
            total,
            min(total, failed),
            min(expected, float(total)),
        ),
        st.integers(0, 200),
        st.integers(0, 200),
        st.floats(0, 50),
        names,
        names,
        names,
    ),
    max_size=30,
)


@given(shares, st.sampled_from([(), scope(trunk="x"), scope(tenant="y", trunk="x")]), st.randoms())
def test_whatever_the_shares_are_the_cohort_is_inside_worse_and_enough(
    rows: list[Share], within: Scope, luck: Random
) -> None:
    found = attribute(rows, within)
    assert is_inside(found.scope, within)
    whole = [row for row in rows if matches(row, within)]
    if found.scope != within:
        inside = [row for row in whole if matches(row, found.scope)]
        excess = sum(row.failed - row.expected for row in inside)
        everything = sum(row.failed - row.expected for row in whole)
        assert excess > 0.8 * everything - 1e-6
        rest_calls = sum(row.total for row in whole) - sum(row.total for row in inside)
        assert rest_calls > 0
        assert excess / sum(row.total for row in inside) > (everything - excess) / rest_calls
        assert not {value for _, value in found.scope} & {"", "other"} - {v for _, v in within}
    shuffled = list(rows)
    luck.shuffle(shuffled)
    assert attribute(shuffled, within) == found
    assert divide(shuffled, within) == divide(rows, within)
    parts = divide(rows, within)
    assert 1 <= len(parts) <= 3
    assert all(is_inside(part.scope, within) for part in parts)
