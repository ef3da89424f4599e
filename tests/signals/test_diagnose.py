import json
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import CORPUS
from sipsidecar.calls.features import Shown
from sipsidecar.calls.offers import Feature
from sipsidecar.signals import diagnose as module
from sipsidecar.signals.diagnose import MAX_CALLS, Case, Diagnosis, Slot, diagnose, sampled

START = 1_795_000_000_000_000
MINUTE = 60_000_000


def case(
    failed: bool,
    *features: Feature,
    at: int = 0,
    numbers: dict[str, float] | None = None,
    call_id: str = "",
) -> Case:
    shown = Shown(features=features, numbers=tuple((numbers or {}).items()))
    return Case(call_id=call_id or f"{at}@x", at=START + at, failed=failed, shown=shown)


def table(
    a: int, b: int, c: int, d: int, name: str = "header", value: str = "x-cause"
) -> list[Case]:
    """Failing calls with and without a feature, then good ones; all at times of their own."""
    kinds = [(True, True)] * a + [(True, False)] * b + [(False, True)] * c + [(False, False)] * d
    random.Random(4).shuffle(kinds)
    return [
        case(failed, *[(name, value)] * has, at=n * 1_000_000)
        for n, (failed, has) in enumerate(kinds)
    ]


def also(cases: Sequence[Case], name: str, value: str, has: Iterable[bool]) -> list[Case]:
    """The same cases, some of them with one feature more."""
    more = [
        Shown(features=(*one.shown.features, *[(name, value)] * it), numbers=one.shown.numbers)
        for one, it in zip(cases, has, strict=True)
    ]
    return [
        Case(call_id=one.call_id, at=one.at, failed=one.failed, shown=shown)
        for one, shown in zip(cases, more, strict=True)
    ]


def has(one: Case, name: str = "header") -> bool:
    return any(feature[0] == name for feature in one.shown.features)


def first(answer: Diagnosis) -> tuple[str, str]:
    return answer.findings[0].separator.name, answer.findings[0].separator.value


def test_a_feature_s_figures_are_those_of_its_table() -> None:
    vectors = json.loads((CORPUS / "vectors/differential_diagnosis.json").read_text())["vectors"]
    seen = 0
    for vector in vectors:
        answer = diagnose(table(*vector["table"]))
        if not answer.findings:
            assert 2 * vector["p_greater"] * max(answer.tested, 1) > 0.001
            continue
        one = answer.findings[0].separator
        assert (one.failing, one.of_failing - one.failing) == tuple(vector["table"][:2])
        assert (one.good, one.of_good - one.good) == tuple(vector["table"][2:])
        assert one.chance == pytest.approx(2 * vector["p_greater"], rel=1e-9)
        assert one.odds == pytest.approx(vector["odds_haldane"], rel=1e-9)
        figures = (one.difference, one.low, one.high)
        assert figures == pytest.approx(vector["risk_diff"], abs=1e-5)
        seen += 1
    assert seen >= 3


def test_what_failing_calls_lack_is_told_with_the_counts_of_those_that_lack_it() -> None:
    answer = diagnose(table(1, 19, 75, 5))
    one = answer.findings[0].separator
    assert not one.present
    assert (one.failing, one.of_failing, one.good, one.of_good) == (19, 20, 5, 80)
    assert one.difference > 0


def test_without_any_difference_nothing_is_named() -> None:
    answer = diagnose(table(10, 10, 40, 40))
    assert answer.findings == ()
    assert (answer.failing, answer.good) == (20, 80)
    assert answer.tested > 0


@pytest.mark.parametrize("failed", [True, False])
def test_without_calls_of_both_sides_there_is_no_answer(failed: bool) -> None:
    answer = diagnose([case(failed, ("header", "x"), at=n) for n in range(30)])
    assert answer.findings == ()
    assert (answer.failing, answer.good) == ((30, 0) if failed else (0, 30))
    assert diagnose([]) == Diagnosis(failing=0, good=0)


def test_features_that_come_together_are_one_finding_and_the_most_telling_is_said_first() -> None:
    cases = table(18, 2, 5, 75, "sdp-line", "a=fmtp:18 annexb=yes")
    cases = also(cases, "fmtp", "G729 annexb=yes", [has(one, "sdp-line") for one in cases])
    answer = diagnose(cases)
    assert len(answer.findings) == 1
    assert first(answer) == ("fmtp", "G729 annexb=yes")
    assert [one.name for one in answer.findings[0].alike] == ["sdp-line"]


def test_of_what_separates_alike_what_failing_calls_have_comes_before_what_they_lack() -> None:
    cases = table(20, 0, 5, 75, "order", "cseq < from")
    cases = also(cases, "order", "a < cseq", [not has(one, "order") for one in cases])
    answer = diagnose(cases)
    assert first(answer) == ("order", "cseq < from")
    assert not answer.findings[0].alike[0].present


def test_what_only_goes_along_with_the_cause_says_so() -> None:
    rng = random.Random(7)
    cases = table(57, 3, 24, 216)
    cases = also(cases, "user-agent-product", "Foo", [
        rng.random() < (0.6 if has(one) else 0.2) for one in cases
    ])  # fmt: skip
    answer = diagnose(cases)
    assert first(answer) == ("header", "x-cause")
    (follower,) = [one for one in answer.findings if one.separator.value == "Foo"]
    assert follower.follows == 0


def test_two_causes_are_two_findings() -> None:
    rng = random.Random(3)
    cases = []
    for n in range(600):
        one, other = rng.random() < 0.08, rng.random() < 0.08
        features = [("header", "x-one")] * one + [("codec", "G729/8000")] * other
        cases.append(case(one or other, *features, at=n * 1_000_000))
    answer = diagnose(cases)
    leading = {one.separator.value for one in answer.findings if one.follows is None}
    assert leading == {"x-one", "G729/8000"}


def test_numbers_are_split_where_the_calls_are() -> None:
    rng = random.Random(5)
    cases = []
    for n in range(300):
        large = rng.random() < 0.2
        size = rng.randrange(1400, 1800) if large else rng.randrange(600, 1200)
        failed = rng.random() < (0.6 if large else 0.01)
        cases.append(case(failed, at=n * 1_000_000, numbers={"size": float(size)}))
    one = diagnose(cases).findings[0].separator
    assert (one.name, one.over, one.present) == ("size", True, True)
    assert 1100 < float(one.value) < 1500
    assert len(diagnose(cases).findings) == 1


def test_values_that_no_other_call_has_are_a_feature_together() -> None:
    cases = [
        case(n % 10 == 0, ("x-token:", f"odd {n}" if n % 10 == 0 else "plain"), at=n * 1_000_000)
        for n in range(200)
    ]
    answer = diagnose(cases)
    names = {(one.name, one.value) for one in answer.findings[0].alike}
    assert ("one-of-a-kind", "x-token:") in names | {first(answer)}


def test_a_value_that_begins_with_the_failures_is_new_and_says_since_when() -> None:
    cases = [case(n >= 200, *[("header", "x-new")] * (n >= 200), at=n * MINUTE) for n in range(240)]
    told = [one.separator for one in diagnose(cases).findings if one.separator.value == "x-new"]
    assert [one.first_seen_at for one in told] == [START + 200 * MINUTE]
    old = diagnose(table(18, 2, 5, 75)).findings[0].separator
    assert old.first_seen_at is None


def test_a_time_in_which_calls_fail_is_a_finding_of_its_own() -> None:
    rng = random.Random(2)
    cases = [
        case(200 <= n < 260 and rng.random() < 0.7, ("header", "x"), at=n * MINUTE)
        for n in range(400)
    ]
    answer = diagnose(cases)
    one = answer.findings[0].separator
    assert one.name == "time"
    assert one.since is not None
    assert one.until is not None
    assert abs(one.since - START - 200 * MINUTE) <= 40 * MINUTE
    assert abs(one.until - START - 260 * MINUTE) <= 40 * MINUTE
    assert answer.findings[0].pair is not None


def test_a_time_is_judged_by_all_calls_not_by_those_compared() -> None:
    cases = table(10, 10, 40, 40)
    slots = [Slot(START + n * MINUTE, 20 if n >= 50 else 0, 30) for n in range(100)]
    answer = diagnose(cases, slots)
    one = answer.findings[0].separator
    assert (one.name, one.since, one.until) == ("time", START + 50 * MINUTE, None)
    assert (one.failing, one.of_failing) == (1000, 1000)
    assert diagnose(cases, [Slot(START, 20, 80)]).findings == ()
    many = [Slot(slot.at, slot.failing * 1000, slot.good * 1000) for slot in slots]
    assert diagnose(cases, many).findings[0].separator.since == START + 50 * MINUTE


def test_what_is_of_the_same_time_as_the_failures_and_no_more_follows_the_time() -> None:
    rng = random.Random(6)
    cases = []
    for n in range(600):
        bad = 300 <= n < 360
        features = [("tenant", "campaign")] * (rng.random() < (0.9 if bad else 0.05))
        cases.append(case(bad and rng.random() < 0.5, *features, at=n * MINUTE))
    answer = diagnose(cases)
    assert first(answer)[0] == "time"
    (campaign,) = [one for one in answer.findings if one.separator.value == "campaign"]
    assert campaign.follows == 0


def test_a_cause_within_the_time_leads_and_the_time_comes_after_it() -> None:
    rng = random.Random(8)
    cases = []
    for n in range(600):
        caused = rng.random() < 0.2
        failed = caused and n >= 300 and rng.random() < 0.9
        cases.append(case(failed, *[("codec", "G729/8000")] * caused, at=n * MINUTE))
    answer = diagnose(cases)
    assert first(answer) == ("codec", "G729/8000")
    assert answer.findings[1].separator.name == "time"


def test_the_order_of_the_cases_changes_nothing() -> None:
    cases = table(18, 2, 5, 75)
    answer = diagnose(cases)
    turned = diagnose(cases[::-1])
    assert turned.findings[0].separator == answer.findings[0].separator
    last = len(cases) - 1
    assert turned.findings[0].examples == tuple(last - n for n in answer.findings[0].examples)


def test_examples_are_the_newest_failing_calls_that_have_it() -> None:
    cases = table(18, 2, 5, 75)
    examples = diagnose(cases).findings[0].examples
    having = [n for n, one in enumerate(cases) if one.failed and has(one)]
    assert examples == tuple(having[:-6:-1])


def test_the_pair_is_a_failing_call_and_the_good_one_most_like_it() -> None:
    cases = table(18, 2, 5, 75)
    cases = [
        case(one.failed, *one.shown.features, ("header", "x-a" if n % 2 else "x-b"), at=one.at)
        for n, one in enumerate(cases)
    ]
    failing, good = diagnose(cases).findings[0].pair or (0, 0)
    assert cases[failing].failed
    assert not cases[good].failed
    assert cases[failing].shown.features[0] == ("header", "x-cause")
    assert cases[failing].shown.features[1:] == cases[good].shown.features


def test_where_no_compared_call_is_in_it_there_is_no_pair() -> None:
    cases = [case(n < 20, at=n * MINUTE) for n in range(100)]
    assert (
        diagnose(cases, [Slot(START, 20, 1), Slot(START + 200 * MINUTE, 0, 79)]).findings[0].pair
        is None
    )


def test_with_few_failing_calls_it_says_what_could_be_known() -> None:
    few = diagnose(table(2, 0, 30, 270))
    assert few.findings == ()
    assert few.reach is None
    assert few.needed is not None
    assert 3 <= few.needed <= 6
    many = diagnose(table(20, 20, 150, 150))
    assert many.reach is not None
    assert 5 <= many.reach <= 20
    assert diagnose(table(1, 1, 1, 0)).needed is None


def test_features_of_one_call_are_left_out_and_counted() -> None:
    cases = [case(n < 10, ("host", f"from {n}"), ("sdp", "none"), at=n) for n in range(50)]
    answer = diagnose(cases)
    assert answer.rare == 50


def test_more_calls_than_the_cap_are_taken_evenly_over_time() -> None:
    cases = [case(n % 3 == 0, at=n) for n in range(3 * MAX_CALLS)]
    taken = sampled(cases)
    sides = [sum(cases[place].failed is side for place in taken) for side in (True, False)]
    assert sides == [MAX_CALLS, MAX_CALLS]
    assert taken == sorted(taken)
    assert sampled(cases, 10)[0] == 0
    halves = [sum(place < 1.5 * MAX_CALLS for place in taken if not cases[place].failed)]
    assert abs(halves[0] - MAX_CALLS // 2) <= 1


def test_features_over_the_caps_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> list[Case]:
        noise = [[("host", f"from {n % 25} {i}") for i in range(20)] for n in range(100)]
        return [
            case(n < 20, *[("header", "x-cause")] * (n < 18), *noise[n], at=n * 7 % 100)
            for n in range(100)
        ]

    whole = diagnose(cases())
    assert whole.cut == 0
    monkeypatch.setattr(module, "MAX_TESTED", 30)
    answer = diagnose(cases())
    assert answer.features == 30
    assert answer.cut == whole.features - 30
    assert first(answer) == ("header", "x-cause")
    monkeypatch.setattr(module, "MAX_DISTINCT", 3)
    assert diagnose(cases()).cut > 100


def test_what_an_invite_had_over_its_own_cap_is_counted() -> None:
    cases = [Case(call_id="a", at=START + n, failed=n < 3, shown=Shown(cut=2)) for n in range(9)]
    assert diagnose(cases).cut == 18


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    diagnose(table(18, 2, 5, 75), tell=lambda part, whole: told.append((part, whole)))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0


def test_by_luck_alone_nothing_is_named() -> None:
    rng = random.Random(11)
    named = 0
    for _ in range(60):
        cases = [
            case(
                rng.random() < 0.1,
                *[("header", f"x-{i}") for i in range(60) if rng.random() < (i % 9 + 1) / 10],
                at=n * 1_000_000,
                numbers={"size": rng.gauss(900, 100)},
            )
            for n in range(200)
        ]
        named += bool(diagnose(cases).findings)
    assert named <= 2


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.tuples(st.sampled_from(["header", "codec", "x:"]), st.text(max_size=2)), max_size=4),
            st.integers(-5, 5),
            st.floats(-10, 10),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_whatever_is_compared_the_answer_holds_together(
    given_: list[tuple[bool, list[Feature], int, float]],
) -> None:
    cases = [
        case(failed, *dict.fromkeys(features), at=at * MINUTE, numbers={"size": number})
        for failed, features, at, number in given_
    ]
    answer = diagnose(cases)
    assert answer.failing == sum(one.failed for one in cases)
    for one in answer.findings:
        figures = one.separator
        assert 0 <= figures.failing <= figures.of_failing
        assert 0 <= figures.good <= figures.of_good
        assert figures.low - 1e-9 <= figures.difference <= figures.high + 1e-9
        assert figures.q < module.Q
        assert one.follows is None or answer.findings[one.follows].follows is None
        assert all(cases[place].failed for place in one.examples)
