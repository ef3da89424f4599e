from collections.abc import Sequence
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.alarms import CATEGORIES, DIMENSIONS, PAGE, TREND, Alarm, Scope, Share
from sipsidecar.signals.attribution import is_inside, is_nested
from sipsidecar.signals.troubles import (
    CAUSES,
    EFFECTS,
    SAME_TIME,
    Trouble,
    broader,
    explains,
    find_troubles,
    fold_effects,
    is_divided,
    kind_of,
    onset_of,
    part_category,
    rank_of,
    weight_of,
)
from troubled import BEGAN, MINUTE, World, scope, share


def alarm(category: str = "pdd", at: int = BEGAN, **said: Any) -> Alarm:
    fields = {name: said.pop(name) for name in DIMENSIONS if name in said}
    return Alarm(
        **{"source": "rate", "category": category, "scope": scope(**fields), "at": at, **said}
    )


def nothing(_: Alarm) -> Sequence[Share]:
    return ()


def scopes_of(troubles: Sequence[Trouble]) -> list[Scope]:
    return sorted(trouble.scope for trouble in troubles)


def by_words(*alarms: Alarm) -> list[Scope]:
    """Scopes of the troubles of alarms of which shares say nothing, whatever their order is."""
    found = {tuple(scopes_of(find_troubles(order, nothing))) for order in permutations(alarms)}
    assert len(found) == 1
    return list(found.pop())


# -------------------------------------------------------------------------------------------- words


def test_every_effect_has_its_causes_and_no_category_explains_itself() -> None:
    for cause, effects in EFFECTS.items():
        assert cause not in effects
        for effect in effects:
            assert cause in CAUSES[effect]
            assert rank_of(cause) < rank_of(effect)
    assert all(is_divided(category) for category in (*CATEGORIES, "asr", "slo-promise"))
    assert not is_divided("volume")
    assert (kind_of("slo-promise"), kind_of("slow")) == ("slo", "slow")
    assert rank_of("slo-promise") > rank_of("asr")
    assert rank_of("trunk-down") == 0
    assert rank_of("volume") == rank_of("certificate") == len(EFFECTS)


def test_severities_weigh_by_their_order_and_an_unknown_one_least() -> None:
    assert weight_of(TREND) < weight_of("warn") < weight_of(PAGE)
    assert weight_of("whatever") == 0


def test_an_alarm_began_when_it_says_or_when_it_came() -> None:
    assert onset_of(alarm(at=7)) == 7
    assert onset_of(alarm(at=7, since=0)) == 0


def test_broader_scopes_are_all_parts_of_it_without_itself_the_broadest_first() -> None:
    assert list(broader(scope(tenant="t", trunk="a"))) == [
        (),
        scope(tenant="t"),
        scope(trunk="a"),
    ]
    assert list(broader(())) == []


# ----------------------------------------------------------------------------------------- explains


@pytest.mark.parametrize("effect", ["5xx", "4xx", "volume", "asr", "ner", "slo-x", "480"])
def test_a_trunk_that_is_down_explains_what_fails_on_it(effect: str) -> None:
    down, inside = scope(trunk="a"), scope(tenant="t", trunk="a")
    assert explains("trunk-down", down, effect, down, 0)
    assert explains("trunk-down", down, effect, inside, 3 * SAME_TIME)
    assert not explains("trunk-down", down, effect, scope(trunk="b"), 0)
    assert not explains(effect, down, "trunk-down", down, 0)


def test_it_explains_what_is_broader_only_when_that_began_with_it() -> None:
    assert explains("5xx", scope(trunk="a"), "asr", (), SAME_TIME)
    assert explains("5xx", scope(trunk="a"), "asr", scope(tenant="t"), -SAME_TIME)
    assert not explains("5xx", scope(trunk="a"), "asr", (), SAME_TIME + 1)


def test_nothing_explains_what_was_there_before_it() -> None:
    assert not explains("5xx", scope(trunk="a"), "asr", scope(trunk="a"), -SAME_TIME - 1)


def test_what_is_no_effect_is_not_explained() -> None:
    assert not explains("5xx", (), "486", (), 0)
    assert not explains("certificate", (), "trunk-down", (), 0)


def test_effects_go_to_their_cause_and_the_rest_stays() -> None:
    def trouble(category: str, **said: Any) -> Trouble:
        one = alarm(category, BEGAN, **said)
        return Trouble(category=category, scope=one.scope, alarms=[one], onset=BEGAN)

    given_ = [
        trouble("slo-x"),
        trouble("asr", direction="inbound"),
        trouble("volume", trunk="b"),
        trouble("5xx", trunk="a"),
        trouble("trunk-down", trunk="a"),
    ]
    for order in permutations(given_):
        found = fold_effects(order)
        assert [(one.category, one.scope) for one in found] == [
            ("trunk-down", scope(trunk="a")),
            ("volume", scope(trunk="b")),
        ]
        assert [one.category for one in found[0].alarms] == ["trunk-down", "5xx", "asr", "slo-x"]
    assert [len(one.alarms) for one in given_] == [1] * 5


# ----------------------------------------------------------------------------------------- by words


def test_alarms_of_which_one_is_inside_the_other_are_one_trouble_of_the_broader() -> None:
    assert by_words(alarm(trunk="a"), alarm(tenant="t", trunk="a")) == [scope(trunk="a")]
    assert by_words(alarm(), alarm(trunk="a"), alarm(trunk="b")) == [()]


def test_what_is_nested_is_one_trouble_whenever_it_began() -> None:
    late = alarm(at=BEGAN + 100 * SAME_TIME, tenant="t", trunk="a")
    assert by_words(alarm(trunk="a"), late) == [scope(trunk="a")]


def test_different_trunks_are_different_troubles() -> None:
    assert by_words(alarm(trunk="a"), alarm(trunk="b"), alarm(trunk="c")) == [
        scope(trunk="a"),
        scope(trunk="b"),
        scope(trunk="c"),
    ]


def test_what_began_together_and_can_be_the_same_calls_is_one_trouble() -> None:
    together = (alarm(trunk="a"), alarm(tenant="t"), alarm(direction="inbound"))
    assert by_words(*together) == [scope(trunk="a")]
    later = alarm(at=BEGAN + SAME_TIME + 1, tenant="t")
    assert by_words(alarm(trunk="a"), later) == [scope(tenant="t"), scope(trunk="a")]


def test_several_tenants_on_one_carrier_are_one_trouble_upstream() -> None:
    alarms = [alarm(tenant="t1"), alarm(tenant="t2"), alarm(carrier="c")]
    (found,) = find_troubles(alarms, nothing)
    assert (found.scope, found.upstream, len(found.alarms)) == (scope(carrier="c"), True, 3)
    alarms = [alarm(tenant="t1", carrier="c"), alarm(tenant="t2", carrier="c")]
    (found,) = find_troubles(alarms, nothing)
    assert (found.scope, found.upstream) == (scope(carrier="c"), True)


def test_those_of_each_carrier_go_together() -> None:
    alarms = [alarm(tenant=f"t{at}", carrier="ab"[at % 2]) for at in range(4)]
    assert by_words(*alarms) == [scope(carrier="a"), scope(carrier="b")]


def test_tenants_of_which_nothing_is_common_are_troubles_of_their_own() -> None:
    assert by_words(alarm(tenant="t1"), alarm(tenant="t2")) == [
        scope(tenant="t1"),
        scope(tenant="t2"),
    ]
    assert by_words(alarm(tenant="t1"), alarm(direction="inbound")) == [scope(tenant="t1")]


def test_a_narrower_alarm_is_the_scope_when_its_own_counts_explain_the_broadest() -> None:
    everything = alarm(count=60, total=1000)
    one = alarm(trunk="a", count=55, total=100)
    assert by_words(everything, one) == [scope(trunk="a")]
    (found,) = find_troubles([everything, one], nothing)
    assert found.explained == pytest.approx(55 / 60)
    assert by_words(everything, alarm(trunk="a", count=45, total=100)) == [()]
    assert by_words(everything, alarm(trunk="a", count=55, total=950)) == [()]
    assert by_words(everything, alarm(trunk="a", count=61, total=100)) == [()]
    assert by_words(everything, alarm(trunk="a", count=55)) == [()]
    assert by_words(everything, alarm(source="drift", trunk="a", count=55, total=100)) == [()]


# ---------------------------------------------------------------------------------------- by shares

ONE_TROUBLE = [
    scope(carrier="c1"),
    scope(trunk="c1-1"),
    scope(tenant="t3"),
    scope(region="eu"),
    scope(trunk="c1-1", direction="inbound"),
    scope(tenant="t1", carrier="c1"),
    (),
]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("broken", ONE_TROUBLE)
def test_one_cause_is_one_trouble_of_the_cohort_that_is_broken(broken: Scope, seed: int) -> None:
    world = World(seed=seed)
    world.broken = [(broken, 0.6)]
    alarms = world.look(BEGAN)
    assert len(alarms) > 5
    (found,) = find_troubles(alarms, world.ask)
    assert found.scope == broken
    assert sorted(one.key for one in found.alarms) == sorted(one.key for one in alarms)
    tenants = "tenant" not in dict(broken)
    assert found.upstream == (tenants and broken != ())


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "broken",
    [
        [(scope(trunk="c1-1"), 0.6), (scope(trunk="c2-2"), 0.3)],
        [(scope(trunk="c1-1"), 0.6), (scope(trunk="c2-2"), 0.3), (scope(trunk="c0-0"), 0.9)],
        [(scope(trunk="c1-1"), 0.6), (scope(tenant="t3"), 0.5)],
        [(scope(tenant="t3"), 0.6), (scope(tenant="t4"), 0.6), (scope(tenant="t5"), 0.6)],
    ],
)
def test_independent_causes_are_troubles_of_their_own(
    broken: list[tuple[Scope, float]], seed: int
) -> None:
    world = World(seed=seed)
    world.broken = broken
    found = find_troubles(world.look(BEGAN), world.ask)
    assert scopes_of(found) == sorted(one for one, _ in broken)


def test_shares_of_only_the_calls_of_an_alarm_do_as_well() -> None:
    rows = [
        share(100, 60, tenant="t1", trunk="a", carrier="c"),
        share(100, 1, tenant="t1", trunk="b", carrier="c"),
    ]
    alarms = [
        alarm("5xx", carrier="c", count=61, total=200),
        alarm("5xx", trunk="a", carrier="c", count=60, total=100),
    ]
    (found,) = find_troubles(alarms, lambda _: rows)
    assert (found.scope, found.explained) == (scope(trunk="a", carrier="c"), 1.0)


def test_an_alarm_whose_excess_lies_elsewhere_is_a_trouble_of_its_own() -> None:
    # Callers of t9 see nothing of what fails on trunk h, for the next trunk takes their calls.
    calls = [share(1000, 400, tenant="t1", trunk="a"), share(1000, 10, tenant="t9", trunk="b")]
    attempts = [share(500, 300, tenant="t9", trunk="h"), share(2000, 20, tenant="t9", trunk="b")]
    alarms = [
        alarm("5xx", count=410, total=2000),
        alarm("5xx", tenant="t1", count=400, total=1000),
        alarm("5xx", trunk="h", count=300, total=500),
    ]

    def ask(one: Alarm) -> Sequence[Share]:
        return attempts if "trunk" in dict(one.scope) else calls

    assert scopes_of(find_troubles(alarms, ask)) == [scope(trunk="a"), scope(trunk="h")]


def test_a_trouble_of_no_cohort_without_an_alarm_of_all_is_as_broad_as_its_alarms() -> None:
    rows = [share(100, 30, tenant=f"t{at}", trunk=f"x{at}") for at in range(9)]
    found = find_troubles([alarm("5xx", tenant="t1", count=30, total=100)], lambda _: rows)
    assert scopes_of(found) == [scope(tenant="t1")]


def test_an_alarm_away_from_what_explains_the_rest_is_put_down_to_itself() -> None:
    rows = [
        share(1000, 500, tenant="t1", trunk="a"),
        share(1000, 10, tenant="t2", trunk="a2"),
        share(100, 20, tenant="t3", trunk="b"),
        share(900, 9, tenant="t3", trunk="c"),
    ]
    found = find_troubles([alarm("5xx", tenant="t3", count=29, total=1000)], lambda _: rows)
    assert scopes_of(found) == [scope(tenant="t3", trunk="b")]


def test_two_causes_of_which_only_one_has_an_alarm_are_one_trouble() -> None:
    rows = [share(100, 40 if at < 2 else 1, trunk=f"x{at}") for at in range(9)]
    found = find_troubles([alarm("5xx", count=87, total=900)], lambda _: rows)
    assert scopes_of(found) == [()]


def test_an_alarm_that_only_holds_by_the_past_stays_with_the_calls_it_is_about() -> None:
    rows = [
        share(500, 250, tenant="t1", trunk="a", carrier="c"),
        share(500, 250, tenant="t4", trunk="a", carrier="c"),
        share(10, 0, tenant="t2", trunk="a", carrier="c"),
        share(1000, 10, tenant="t3", trunk="b", carrier="d"),
    ]
    alarms = [
        alarm("5xx", count=510, total=2010),
        alarm("5xx", carrier="c", count=500, total=1010),
        alarm("5xx", tenant="t2", count=5, total=10),
    ]
    (found,) = find_troubles(alarms, lambda _: rows)
    assert len(found.alarms) == 3
    other = find_troubles([*alarms, alarm("5xx", tenant="t3", count=40)], lambda _: rows)
    assert len(other) == 2


def test_shares_are_asked_only_of_what_has_failures() -> None:
    def ask(_: Alarm) -> Sequence[Share]:
        raise AssertionError

    assert scopes_of(find_troubles([alarm("volume", trunk="a")], ask)) == [scope(trunk="a")]
    assert find_troubles([], ask) == []
    assert part_category([], ask) == []


def test_more_causes_than_it_divides_are_told_apart_by_their_words() -> None:
    rows = [share(100, 50, tenant=f"t{at}", trunk=f"x{at}") for at in range(30)]
    alarms = [alarm("5xx", tenant=f"t{at}", count=50, total=100) for at in range(20)]
    asked = []

    def ask(one: Alarm) -> Sequence[Share]:
        asked.append(one.scope)
        return rows

    found = find_troubles(alarms, ask)
    assert scopes_of(found) == sorted(one.scope for one in alarms)
    assert len(asked) == 8


# --------------------------------------------------------------------------------------- properties

names = st.sampled_from(["x", "y", "z"])
scopes = st.dictionaries(st.sampled_from(["tenant", "trunk", "carrier", "region"]), names).map(
    lambda said: scope(**said)
)
alarms_ = st.lists(
    st.builds(
        lambda category, one, minute, count: Alarm(
            source="rate",
            category=category,
            scope=one,
            at=BEGAN + minute * MINUTE,
            count=count,
            total=100,
        ),
        st.sampled_from(["5xx", "4xx", "asr", "pdd", "trunk-down"]),
        scopes,
        st.integers(0, 20),
        st.none() | st.integers(0, 100),
    ),
    max_size=15,
    unique_by=lambda one: one.key,
)
rows_ = st.lists(
    st.builds(
        lambda total, failed, said: share(total, min(total, failed), **said),
        st.integers(0, 100),
        st.integers(0, 100),
        st.dictionaries(st.sampled_from(["tenant", "trunk", "carrier", "region"]), names),
    ),
    max_size=15,
)


@given(alarms_, rows_, st.booleans(), st.randoms())
def test_each_alarm_is_in_one_trouble_and_none_of_a_category_is_inside_another(
    alarms: list[Alarm], rows: list[Share], only_inside: bool, luck: Random
) -> None:
    def ask(one: Alarm) -> Sequence[Share]:
        return [
            row
            for row in rows
            if not only_inside
            or is_inside(tuple(zip(DIMENSIONS, row.values, strict=True)), one.scope)
        ]

    found = find_troubles(alarms, ask)
    keys = [one.key for trouble in found for one in trouble.alarms]
    assert sorted(keys) == sorted(one.key for one in alarms)
    for one in found:
        for other in found:
            if one is not other and one.category == other.category:
                assert not is_nested(one.scope, other.scope)
    shuffled = list(alarms)
    luck.shuffle(shuffled)
    assert find_troubles(shuffled, ask) == found
