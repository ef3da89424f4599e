from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.cli.deciding import Shown, place, sentence
from sipsidecar.signals.decisions import EXEMPTIONS, VERDICTS, WAYS
from sipsidecar.signals.rules import MEASURES
from stored import admission, as_stored

RECEIVED = 1_785_000_000_000_000


def row(**changes: Any) -> dict[str, Any]:
    return as_stored(admission("a@pbx", **changes))


SHADOW: dict[str, Any] = {"verdict": "admit", "code": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "refused 486 by rule acme-calls: calls 50 of 50 (trunk acme), asked by evapi"),
        (
            {"measure": "calls_per_second", "value": 10.126, "threshold": 10.0, "scope": "global",
             "scope_value": "", "way": "http"},
            "refused 486 by rule acme-calls: calls_per_second 10.13 of 10, asked by http",
        ),
        (
            {"measure": "mos", "value": 3.1, "threshold": 3.5, "way": "pushed"},
            "refused 486 by rule acme-calls: mos 3.1, limit 3.5 (trunk acme), as pushed to the switch",
        ),
        (  # closed on, although what is measured is good again
            {"measure": "pdd_p95_ms", "value": 900.0, "threshold": 3000.0},
            "refused 486 by rule acme-calls: pdd_p95_ms 900, limit 3000 (trunk acme), asked by evapi",
        ),
        (
            {"rule": "drain", "measure": None, "value": None, "threshold": None, "code": 503},
            "refused 503 by rule drain (trunk acme), asked by evapi",
        ),
        (
            {"value": None, "threshold": 50.0},
            "refused 486 by rule acme-calls: calls, limit 50 (trunk acme), asked by evapi",
        ),
        (
            {"threshold": None},
            "refused 486 by rule acme-calls: calls 50 (trunk acme), asked by evapi",
        ),
        (
            {"measure": "unheard_of"},
            "refused 486 by rule acme-calls: unheard_of 50, limit 50 (trunk acme), asked by evapi",
        ),
        (
            {"value": 1234567.0, "threshold": 1e6, "scope": ""},
            "refused 486 by rule acme-calls: calls 1234567 of 1000000, asked by evapi",
        ),
        ({"rule": "", "measure": None, "code": None, "scope": ""}, "refused, asked by evapi"),
        (
            {"shadow": ("asr", "mos")},
            (
                "refused 486 by rule acme-calls: calls 50 of 50 (trunk acme), asked by evapi;"
                " in shadow asr, mos"
            ),
        ),
        (
            {"verdict": "overflow", "route": "ivr", "code": None},
            "sent to ivr by rule acme-calls: calls 50 of 50 (trunk acme), asked by evapi",
        ),
        (
            {**SHADOW, "shadow": ("acme-calls",)},
            "would be refused by shadow rule acme-calls: calls 50 of 50 (trunk acme), asked by evapi",
        ),
        (
            {**SHADOW, "rule": "", "measure": None, "scope": "", "shadow": ("asr", "mos")},
            "would be refused by shadow rules asr, mos, asked by evapi",
        ),
        (
            {**SHADOW, "shadow": ("asr", "acme-calls")},
            (
                "would be refused by shadow rules acme-calls, asr: calls 50 of 50 (trunk acme),"
                " asked by evapi"
            ),
        ),
        (
            {**SHADOW, "exempt": "emergency", "way": "freeswitch"},
            (
                "let in as emergency in spite of rule acme-calls: calls 50 of 50 (trunk acme),"
                " asked by freeswitch"
            ),
        ),
        (
            {**SHADOW, "exempt": "priority", "rule": "", "measure": None, "shadow": ("asr",)},
            "let in as priority (trunk acme), asked by evapi; in shadow asr",
        ),
    ],
)  # fmt: skip
def test_a_decision_is_one_sentence(changes: dict[str, Any], expected: str) -> None:
    assert sentence(row(**changes)) == expected


@given(
    st.sampled_from(VERDICTS), st.sampled_from(WAYS), st.none() | st.sampled_from(EXEMPTIONS),
    st.none() | st.sampled_from(sorted(MEASURES)), st.none() | st.floats(-1e12, 1e12),
    st.none() | st.floats(-1e12, 1e12), st.none() | st.integers(), st.lists(st.text()).map(tuple),
)  # fmt: skip
def test_no_row_that_can_be_stored_is_without_words(
    verdict: str, way: str, exempt: str | None, measure: str | None, value: float | None,
    threshold: float | None, code: int | None, shadow: tuple[str, ...],
) -> None:  # fmt: skip
    some: dict[str, Any] = {"verdict": verdict, "way": way, "exempt": exempt, "measure": measure}
    some |= {"value": value, "threshold": threshold, "code": code, "shadow": shadow}
    said = sentence(row(**some))
    assert said.split(" ")[0] in ("refused", "sent", "let", "would")
    assert measure is None or measure in said


def invite(at: int, received_at: int | None = None) -> Shown:
    return Shown(at, at if received_at is None else received_at, begins=True, code=None)


def answer(at: int, code: int, received_at: int | None = None) -> Shown:
    return Shown(at, at if received_at is None else received_at, begins=False, code=code)


def placed(at: int, *messages: Shown, **changes: Any) -> int:
    return place(row(received_at=RECEIVED + at, **changes), messages) - RECEIVED


def noon(at: int, ahead: int = 0) -> tuple[int, int]:
    """By an agent's clock, and by the sidecar's, which is so far ahead of it."""
    return RECEIVED + at, RECEIVED + at + ahead


def test_a_decision_stands_at_its_time_when_the_clocks_agree() -> None:
    messages = invite(*noon(0)), answer(noon(900)[0], 486)
    assert placed(300, *messages) == 300
    assert placed(300) == 300


@pytest.mark.parametrize("ahead", [-3_600_000_000, -5_000_000, 0, 5_000_000])
def test_a_decision_stands_between_invite_and_refusal_whatever_the_agents_clock(
    ahead: int,
) -> None:
    messages = [
        invite(*noon(0, ahead + 40)),  # 40 us on the way
        Shown(*noon(900, ahead + 10), begins=False, code=486),
        Shown(*noon(1_000_000, ahead), begins=False, code=None),  # the ACK
    ]
    assert placed(ahead + 340, *messages) == 300


def test_what_was_asked_faster_than_the_capture_came_does_not_stand_before_the_invite() -> None:
    messages = [invite(*noon(0, 400_000)), answer(noon(900)[0], 486)]
    assert placed(300, *messages) == 0


def test_what_a_switch_did_by_itself_and_was_seen_later_stands_before_its_refusal() -> None:
    messages = [invite(*noon(0)), answer(noon(900)[0], 486)]
    assert placed(2_000_000, *messages, way="pushed") == 899


def test_each_of_two_refusals_of_one_call_id_stands_before_its_own() -> None:
    messages = [
        invite(*noon(0)), answer(noon(900)[0], 486),
        invite(*noon(5_000_000)), answer(noon(5_000_900)[0], 486),
    ]  # fmt: skip
    assert placed(5_000_950, *messages) == 5_000_899
    assert placed(950, *messages) == 899


def test_an_answer_of_another_code_is_not_the_refusal() -> None:
    messages = [invite(*noon(0)), answer(noon(100)[0], 100), answer(noon(900)[0], 503)]
    assert placed(2000, *messages) == 2000
    assert placed(2000, *messages, verdict="overflow", code=None) == 2000
