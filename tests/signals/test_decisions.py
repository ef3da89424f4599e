import msgspec

from sipsidecar.signals import decisions
from sipsidecar.signals.decisions import (
    AdmissionRecord,
    Ask,
    Decision,
    Denial,
    RateLimit,
    StateRecord,
)
from sipsidecar.signals.rules import Rule


def test_words_of_one_kind_are_told_apart() -> None:
    for words in (decisions.VERDICTS, decisions.STATES, decisions.WAYS, decisions.EXEMPTIONS):
        assert len(set(words)) == len(words)


def test_a_question_of_which_only_the_call_is_known_begins_one() -> None:
    ask = Ask(call_id="a")
    assert (ask.method, ask.in_dialog, ask.cseq, ask.way) == ("INVITE", False, None, "http")
    assert ask.way in decisions.WAYS


def test_what_refuses_without_saying_how_does_it_as_a_rule_does() -> None:
    rule = Rule(name="r", measure="calls", limit=1)
    assert Denial(scope="global").code == RateLimit(scope="global", limit=1).code == rule.code
    assert Denial(scope="global").verdict == decisions.REFUSE
    assert Denial(scope="global").percent == 100


def test_the_outcomes_of_rules_are_verdicts_or_only_recorded() -> None:
    assert {"refuse", "overflow"} < set(decisions.VERDICTS)


def test_a_change_of_state_is_of_no_call() -> None:
    record = StateRecord(received_at=1, rule="r", scope="global", state="open", previous="closed")
    assert record.call_id == ""
    assert record.state in decisions.STATES


def test_rows_and_decisions_cannot_be_changed_by_who_reads_them() -> None:
    for kind in (Ask, Decision, AdmissionRecord, StateRecord, Denial, RateLimit):
        assert kind.__struct_config__.frozen


def test_a_decision_becomes_json() -> None:
    said = msgspec.json.decode(msgspec.json.encode(Decision(verdict="refuse", code=486)))
    assert said["verdict"] == "refuse"
    assert said["cohort"] == ["other"] * 7
    assert said["value"] is None
