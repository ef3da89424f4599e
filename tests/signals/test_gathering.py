import pytest

from sipsidecar.signals.alarms import DIMENSIONS
from sipsidecar.signals.gathering import (
    COLUMN,
    JITTER_COUNT,
    JITTER_SUM,
    PDD_PLACES,
    Cell,
    Key,
    add,
    codes_of,
    gather,
    gather_codes,
    matches,
    pairs_of,
    scopes_of,
    source_of,
)
from sipsidecar.signals.minutes import CodeMinute, KpiMinute
from sipsidecar.signals.series import FIRST, INEFFECTIVE, TOTAL, UNANSWERED


def key(source: str, **labels: str) -> Key:
    return source, *(labels.get(name, "") for name in DIMENSIONS)


def kpi(source: str = "call", **more: object) -> KpiMinute:
    return KpiMinute(received_at=0, minute_at=0, source=source, **more)  # type: ignore[arg-type]


def code(number: int, count: int, source: str = "call", **more: str) -> CodeMinute:
    return CodeMinute(received_at=0, minute_at=0, source=source, code=number, count=count, **more)


@pytest.mark.parametrize(
    ("number", "column"),
    [(404, 3), (480, 4), (486, 5), (487, 6), (403, 0), (499, 0), (500, 1), (603, 2), (600, 2)],
)
def test_four_codes_are_counted_by_themselves_and_all_others_by_their_class(
    number: int, column: int
) -> None:
    assert COLUMN[number] == FIRST + column


def test_challenges_answers_redirections_and_unknown_ends_are_no_failures() -> None:
    assert not {0, 200, 302, 401, 407, 700}.intersection(COLUMN)


def test_calls_count_for_all_and_for_each_name_that_they_have() -> None:
    labels = {"tenant": "t", "direction": "in", "region": "eu", "agent": "a", "trunk": "k"}
    assert scopes_of(key("call", **labels, carrier="c", codec="PCMU")) == [
        (),
        (("tenant", "t"),),
        (("direction", "in"),),
        (("region", "eu"),),
        (("agent", "a"),),
    ]


def test_attempts_count_for_their_trunk_and_carrier_and_for_the_combination() -> None:
    labels = {"tenant": "t", "trunk": "k", "carrier": "c", "direction": "in", "region": "eu"}
    assert scopes_of(key("trunk", **labels, agent="a")) == [
        (),
        (("trunk", "k"),),
        (("carrier", "c"),),
        (("tenant", "t"), ("trunk", "k"), ("direction", "in"), ("region", "eu")),
    ]


def test_a_combination_without_a_trunk_is_counted_from_calls() -> None:
    assert scopes_of(key("call", tenant="t", region="eu", trunk="other")) == [
        (),
        (("tenant", "t"),),
        (("region", "eu"),),
        (("tenant", "t"), ("region", "eu")),
    ]
    assert scopes_of(key("trunk", tenant="t", region="eu")) == [()]


def test_other_and_nothing_are_no_names_and_one_name_is_no_combination() -> None:
    assert scopes_of(key("call", tenant="other", region="")) == [()]
    assert scopes_of(key("call", tenant="t", region="other")) == [(), (("tenant", "t"),)]
    assert scopes_of(key("trunk", trunk="k", tenant="other")) == [(), (("trunk", "k"),)]


def test_a_scope_with_a_trunk_or_carrier_is_counted_from_attempts() -> None:
    assert source_of(()) == "call"
    assert source_of((("tenant", "t"), ("region", "eu"))) == "call"
    assert source_of((("tenant", "t"), ("trunk", "k"))) == "trunk"
    assert source_of((("carrier", "c"),)) == "trunk"


def test_rows_of_one_cohort_add_up() -> None:
    cells: dict[Key, Cell] = {}
    rows = [
        kpi(tenant="t", seizures=10, answered=6, effective=9),
        kpi(tenant="t", seizures=5, answered=5, effective=5),
        kpi(tenant="u", pdd_count=2, pdd_sum_ms=9.0, pdd_buckets=(0, 2, *[0] * 13)),
        kpi(tenant="u", jitter_count=3, jitter_sum_ms=12.0),
        kpi(tenant="u", attempts=3, redirected=3),
        kpi("register", tenant="u", registers=9),
    ]
    gather(cells, rows)
    gather_codes(
        cells,
        [
            code(404, 2, tenant="t"),
            code(404, 1, tenant="t", origin="remote"),
            code(403, 1, tenant="t"),
            code(503, 9, tenant="t", origin="admission"),
            code(401, 9, tenant="t"),
            code(200, 9, tenant="t"),
            code(503, 9, source="register"),
        ],
    )
    assert cells == {
        key("call", tenant="t"): {
            TOTAL: 15, UNANSWERED: 4, INEFFECTIVE: 1, 404: 3, COLUMN[404]: 3, 403: 1, COLUMN[403]: 1,
        },
        key("call", tenant="u"): {PDD_PLACES[1]: 2, JITTER_SUM: 12.0, JITTER_COUNT: 3},
    }  # fmt: skip


def test_cells_add_up_to_those_of_a_series() -> None:
    into: Cell = {TOTAL: 3}
    add(into, {TOTAL: 2, 404: 1})
    assert into == {TOTAL: 5, 404: 1}


def test_nothing_counts_more_than_there_are_calls() -> None:
    assert dict(pairs_of({TOTAL: 5, COLUMN[404]: 9, 404: 9, JITTER_SUM: 3.0})) == {
        TOTAL: 5,
        COLUMN[404]: 5,
    }
    assert pairs_of({COLUMN[404]: 9, 404: 9}) == []


def test_codes_are_those_that_failed() -> None:
    assert codes_of({TOTAL: 5, 404: 2, COLUMN[404]: 2, 503: 1, JITTER_SUM: 8.0}) == (404, 2, 503, 1)


def test_a_cohort_is_within_a_scope_when_it_has_all_of_its_values() -> None:
    one = key("trunk", trunk="k", direction="in", codec="PCMU")
    assert matches(one, ())
    assert matches(one, (("trunk", "k"), ("codec", "PCMU")))
    assert not matches(one, (("trunk", "k"), ("direction", "out")))
