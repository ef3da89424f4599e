"""Calls of the past under other rules."""

from typing import Any

from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.signals.admission import Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import CLOSED, AdmissionRecord, StateRecord
from sipsidecar.signals.rehearsal import Offered, Rehearsal
from sipsidecar.signals.rules import Rule

US = 1_795_000_000_000_000
COHORTS = Cohorts(
    (
        Matcher(trunk="acme", destinations=("192.0.2.1",)),
        Matcher(tenant="one", headers={"x-tenant": "one"}),
    )
)


def call(number: int, at: float, lasts: float | None, code: int = 200, **said: Any) -> Offered:
    started = US + int(at * 1_000_000)
    fields: dict[str, Any] = {
        "call_id": f"c{number}", "from_tag": "t", "received_at": started, "started_at": started,
        "ended": lasts is not None, "final_code": code, "final_class": f"{code // 100}xx",
        "ended_at": None if lasts is None else started + int(lasts * 1_000_000),
        "answered": code == 200, "setup_ms": 500.0 if code == 200 else None,
        "fail_ms": None if code == 200 else 100.0, "seizure": True, "final_origin": "callee",
        "pdd_ms": 400.0 if code == 200 else None, "attempts": 1,
    }  # fmt: skip
    fields |= said
    attempt = AttemptRecord(
        call_id=fields["call_id"], from_tag="t", branch="z", received_at=started,
        started_at=started, peer_ip="192.0.2.1", final_code=code, answered=code == 200,
        final_class=fields["final_class"], pdd_ms=fields["pdd_ms"],
    )  # fmt: skip
    return Offered(CallRecord(**fields), (attempt,))


def rehearse(
    calls: list[Offered], *rules: Rule
) -> tuple[Rehearsal, list[AdmissionRecord], list[StateRecord]]:
    run = Rehearsal(Policy(rules=rules, reserve_percent=0), COHORTS)
    rows = [*run.run(calls), *run.finish()]
    return (
        run,
        [row for row in rows if isinstance(row, AdmissionRecord)],
        [row for row in rows if isinstance(row, StateRecord)],
    )


def test_without_rules_nobody_would_have_been_refused() -> None:
    run, refused, states = rehearse([call(i, i, 60) for i in range(50)])
    assert (run.result.offered, run.result.admitted) == (50, 50)
    assert (refused, states) == ([], [])
    assert run.result.most["global"] == 50


def test_a_lower_capacity_names_the_calls_that_it_would_have_refused() -> None:
    full = Rule(name="full", measure="calls", limit=2)
    run, refused, _ = rehearse(
        [call(0, 0, 10), call(1, 1, 10), call(2, 2, 10), call(3, 11, 10)], full
    )
    assert [row.call_id for row in refused] == ["c2"]
    assert refused[0].received_at == US + 2_000_000
    tally = run.result.rules["full"]
    assert (tally.refused, tally.first_at, tally.examples) == (1, US + 2_000_000, ["c2"])
    assert run.result.most["global"] == 2


def test_a_call_that_would_have_been_refused_holds_nothing_and_says_nothing() -> None:
    full = Rule(name="full", measure="calls", limit=1)
    calls = [call(i, i, 100) for i in range(3)] + [call(3, 101, 5)]
    _, refused, _ = rehearse(calls, full)
    assert [row.call_id for row in refused] == ["c1", "c2"]


def test_a_failing_trunk_would_have_been_closed_by_a_quality_rule() -> None:
    gate = Rule(
        name="asr", measure="asr_percent", limit=40, trunk="acme", window_seconds=60.0,
        outcome="overflow", route="ivr",
    )  # fmt: skip
    good = [call(i, i, 5) for i in range(100)]
    bad = [call(100 + i, 100 + i, 0.1, 503) for i in range(100)]
    run, refused, states = rehearse(good + bad, gate)
    assert states[0].state == CLOSED
    assert states[0].received_at < US + 161_000_000
    assert run.result.rules["asr"].overflowed == len(refused) > 30
    assert {row.trunk for row in refused} == {"acme"}


def test_calls_that_were_refused_then_are_offered_again() -> None:
    calls = [call(0, 0, 30), call(1, 1, 30)]
    calls.append(call(2, 2, 0.1, 486, final_origin="admission", attempts=0))
    run, refused, _ = rehearse(calls, Rule(name="full", measure="calls", limit=5))
    assert (run.result.offered, run.result.admitted, refused) == (3, 3, [])
    assert run.result.guessed == 1
    run, refused, _ = rehearse(calls, Rule(name="full", measure="calls", limit=2))
    assert [row.call_id for row in refused] == ["c2"]


def test_a_call_whose_end_is_not_known_is_taken_to_last_as_others_do() -> None:
    full = Rule(name="full", measure="calls", limit=1)
    calls = [call(0, 0, 10), call(1, 20, None), call(2, 29, 1), call(3, 31, 1)]
    run, refused, _ = rehearse(calls, full)
    assert run.result.guessed == 1
    assert [row.call_id for row in refused] == ["c2"], "ten seconds, as the first one"


def test_rules_about_health_are_named_as_unheard() -> None:
    run, _, states = rehearse([call(0, 0, 1)], Rule(name="cpu", measure="cpu_percent"))
    assert run.result.unheard == ("cpu",)
    assert states == []


def test_a_shadow_rule_is_tallied() -> None:
    run, _, _ = rehearse(
        [call(0, 0, 10), call(1, 1, 10)],
        Rule(name="full", measure="calls", limit=1, outcome="shadow"),
    )
    assert (run.result.admitted, run.result.rules["full"].shadowed) == (2, 1)


def test_what_only_headers_told_is_taken_as_it_was_stored() -> None:
    full = Rule(name="full", measure="calls", limit=1, tenant="one")
    calls = [call(i, i, 10, tenant="one") for i in range(2)] + [call(2, 2, 10, tenant="gone")]
    _, refused, _ = rehearse(calls, full)
    assert [(row.call_id, row.tenant) for row in refused] == [("c1", "one")]


def test_nights_without_calls_are_skipped() -> None:
    run, _, _ = rehearse(
        [call(0, 0, 10), call(1, 30 * 86_400, 10)],
        Rule(name="mos", measure="mos", limit=3, trunk="acme"),
    )
    assert run.result.admitted == 2
    assert run.result.until_at == US + 30 * 86_400_000_000
