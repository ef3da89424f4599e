from typing import Any

import pytest

from sipsidecar.calls.events import AttemptRecord, CallRecord, Setup
from sipsidecar.signals import examples
from sipsidecar.signals.alarms import Scope
from sipsidecar.signals.examples import MOST, Examples

ACME: Scope = (("trunk", "acme"),)


def call(call_id: str, code: int | None, **changes: Any) -> CallRecord:
    values: dict[str, Any] = {
        "from_tag": "t", "received_at": 1, "started_at": 1, "final_code": code, "tenant": "t",
        "trunk": "acme", "carrier": "blue",
    }  # fmt: skip
    return CallRecord(call_id=call_id, **(values | changes))


def attempt(call_id: str, code: int | None, trunk: str) -> AttemptRecord:
    return AttemptRecord(
        call_id=call_id, from_tag="t", branch=trunk, received_at=1, started_at=1, final_code=code,
        trunk=trunk, carrier=f"of-{trunk}", tenant="t",
    )  # fmt: skip


def fed(*setups: Setup) -> Examples:
    made = Examples()
    for at, setup in enumerate(setups):
        made.receive_setup(setup, at)
    return made


def test_the_newest_calls_come_first_and_no_more_than_five() -> None:
    made = fed(*(Setup(call(str(n), 503), ()) for n in range(9)))
    assert made.find("5xx", (), 0) == ("8", "7", "6", "5", "4")
    assert made.find("5xx", (), 7) == ("8", "7")
    assert len(made.find("5xx", ACME, 0)) == MOST


@pytest.mark.parametrize(
    ("code", "categories"),
    [
        (503, {"5xx", "asr", "ner", "slo-gold"}),
        (404, {"404", "asr", "ner", "slo-gold"}),
        (410, {"4xx", "asr", "ner", "slo-gold"}),
        (604, {"6xx", "asr", "ner", "slo-gold"}),
        (603, {"6xx", "asr"}),  # people's doing
        (486, {"486", "asr"}),
        (200, set()),
        (302, set()),
        (401, set()),
        (None, set()),
    ],
)
def test_a_call_is_an_example_of_its_own_trouble_alone(
    code: int | None, categories: set[str]
) -> None:
    made = fed(Setup(call("a", code), ()))
    every = ("4xx", "5xx", "6xx", "404", "480", "486", "487", "asr", "ner", "slo-gold", "pdd")
    assert {name for name in every if made.find(name, (), 0)} == categories


def test_a_slow_call_is_an_example_of_slowness_and_of_no_failure() -> None:
    made = fed(Setup(call("a", 200, pdd_ms=2000.0), ()), Setup(call("b", 200, pdd_ms=1999.0), ()))
    assert made.find("pdd", (), 0) == ("a",)
    assert made.find("asr", (), 0) == ()


def test_an_attempt_speaks_for_its_trunk_and_the_call_for_its_tenant() -> None:
    made = fed(
        Setup(call("a", 200, trunk="beta"), (attempt("a", 503, "acme"), attempt("a", 200, "beta")))
    )
    assert made.find("5xx", ACME, 0) == ("a",)
    assert made.find("5xx", (("carrier", "of-acme"),), 0) == ("a",)
    assert made.find("5xx", (("trunk", "beta"),), 0) == ()
    assert made.find("5xx", (("tenant", "t"),), 0) == ()


def test_a_call_whose_trunk_no_attempt_has_speaks_for_it() -> None:
    made = fed(Setup(call("a", 486), (attempt("a", 486, "inside"),)))
    assert made.find("486", ACME, 0) == ("a",)
    assert made.find("486", (("trunk", "inside"),), 0) == ("a",)
    assert made.find("486", (("trunk", "acme"), ("carrier", "blue")), 0) == ("a",)
    assert made.find("486", (("trunk", "acme"), ("carrier", "red")), 0) == ()


def test_our_own_refusals_are_examples_of_nothing() -> None:
    assert fed(Setup(call("a", 486, final_origin="admission"), ())).find("486", (), 0) == ()


def test_a_cohort_that_was_quiet_for_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MAX_KEYS", 4)
    made = fed(*(Setup(call(str(n), 503, tenant=f"t{n}"), ()) for n in range(3)))
    assert made.forgotten == 2
    assert made.find("5xx", (("tenant", "t0"),), 0) == ()
    assert made.find("5xx", (("tenant", "t2"),), 0) == ("2",)


def test_a_timeout_is_a_failure_of_the_network_unless_it_rang() -> None:
    made = fed(Setup(call("rang", 408, ring_ms=900.0), ()), Setup(call("silent", 408), ()))
    assert made.find("asr", (), 0) == ("silent", "rang")
    assert made.find("ner", (), 0) == ("silent",)


def test_a_codec_is_named_as_the_figures_name_it_and_a_strangers_word_never() -> None:
    made = fed(
        Setup(call("a", 503, codec_negotiated="opus"), ()),
        *(Setup(call(f"b{n}", 503, codec_negotiated=f"EVIL-{n}"), ()) for n in range(50)),
    )
    assert made.find("5xx", (("codec", "opus"),), 0) == ("a",)
    assert len(made.find("5xx", (("codec", "other"),), 0)) == MOST
    assert len(made._kept) == 4  # of call and trunk; words of strangers push out no others
