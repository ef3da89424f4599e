from typing import Any, get_args

import msgspec
import pytest

from sipsidecar.signals import rules
from sipsidecar.signals.rules import (
    EACH,
    MEASURES,
    SCOPES,
    Measured,
    Probe,
    Rule,
    RuleError,
    check_rules,
)

PROBE = Probe(name="asr", url="https://asr.example.com/health")
LIMITS = {
    name: None if measure.default is not None else 4.0 if name == "mos" else 50.0
    for name, measure in MEASURES.items()
}


def rule(measure: str = "calls", /, **said: Any) -> Rule:
    """A rule that is right, but for what is said."""
    said = {"name": "r", "limit": LIMITS.get(measure), **said}
    if measure == "signal":
        said.setdefault("which", "gpu")
    return msgspec.convert({"measure": measure, **said}, Rule)


def wrong(*said: Rule, routes: tuple[str, ...] = (), checks: tuple[Probe, ...] = (PROBE,)) -> str:
    with pytest.raises(RuleError) as error:
        check_rules(said, routes, checks)
    words = str(error.value)
    assert "\n" not in words
    return words


# -------------------------------------------------------------------------------------- what is right


def test_every_measure_that_can_be_written_is_known() -> None:
    assert get_args(Measured) == tuple(MEASURES)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_measure_makes_a_rule_that_is_right(measure: str) -> None:
    check_rules([rule(measure)], (), [PROBE])


@pytest.mark.parametrize("measure", MEASURES)
def test_a_default_is_good_again_on_the_other_side_of_its_limit(measure: str) -> None:
    said = rule(measure)
    if said.low_is_bad:
        assert said.good >= said.threshold
    else:
        assert said.good <= said.threshold


def test_the_scope_is_the_one_that_is_named() -> None:
    assert (rule().scope, rule().value) == ("global", "")
    for scope in SCOPES:
        said = rule(**{scope: "acme"})
        assert (said.scope, said.value) == (scope, "acme")
        check_rules([said])


def test_a_limit_of_its_own_is_where_it_is_good_again_unless_it_says_where() -> None:
    assert (rule("cpu_percent").threshold, rule("cpu_percent").good) == (85, 70)
    assert rule("cpu_percent", limit=60).good == 60
    assert rule("cpu_percent", limit=60, resume=40).good == 40
    assert rule("cpu_percent", resume=40).good == 40


def test_the_reason_names_the_rule() -> None:
    assert rule().text == "cac r"
    assert rule(reason="trunk full").text == "cac r: trunk full"


def test_the_kind_and_the_bad_side_are_those_of_the_measure() -> None:
    assert (rule("asr_percent").kind, rule("asr_percent").low_is_bad) == ("quality", True)
    assert (rule("disk_percent").kind, rule("disk_percent").low_is_bad) == ("health", False)


def test_no_rules_are_right() -> None:
    check_rules([])


# -------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a\n", "ä", "a" * 65, "\x1b[2J"])
def test_a_name_that_cannot_stand_in_a_header_is_wrong(name: str) -> None:
    assert "a name has 1 to 64" in wrong(rule(name=name))


def test_names_are_told_apart() -> None:
    assert wrong(rule(), rule("mos")) == "rule 'r': there are two of this name"


@pytest.mark.parametrize("name", ["drain", "other"])
def test_the_names_of_what_is_no_rule_are_taken(name: str) -> None:
    assert "taken" in wrong(rule(name=name))


def test_a_rule_is_about_one_scope() -> None:
    assert "is about tenant and trunk: name one" in wrong(rule(tenant="a", trunk="b"))


@pytest.mark.parametrize("value", ["a b", "a*", "**", "x" * 65, "a::b", "\n"])
def test_a_scope_has_a_name_or_stands_for_each(value: str) -> None:
    assert "trunk: expected '*' or 1 to 64 letters" in wrong(rule(trunk=value))
    check_rules([rule(trunk=EACH)])


@pytest.mark.parametrize("measure", [name for name, one in MEASURES.items() if one.default is None])
def test_a_measure_without_a_default_needs_a_limit(measure: str) -> None:
    assert f"{measure} needs a limit" in wrong(rule(measure, limit=None))


@pytest.mark.parametrize("limit", [-1, -0.001, 1e9, float("nan"), float("inf")])
def test_a_limit_is_a_number_from_0_on(limit: float) -> None:
    assert "limit: expected a number from 0 on" in wrong(rule(limit=limit))


def test_no_rate_of_0() -> None:
    assert "more than 0 calls per second" in wrong(rule("calls_per_second", limit=0))
    check_rules([rule("calls", limit=0)])  # nobody: a way to close


@pytest.mark.parametrize("measure", [name for name in MEASURES if name.endswith("_percent")])
def test_percent_are_100_at_most(measure: str) -> None:
    assert "limit: expected 0 to 100 percent" in wrong(rule(measure, limit=101))


def test_a_mos_is_from_1_to_5() -> None:
    assert "limit: expected a MOS from 1 to 5" in wrong(rule("mos", limit=38))
    assert "limit: expected a MOS from 1 to 5" in wrong(rule("mos", limit=0.5))
    assert "resume: expected a MOS from 1 to 5" in wrong(rule("mos", limit=3.5, resume=40))


@pytest.mark.parametrize("measure", ["database", "check"])
@pytest.mark.parametrize("limit", [0, 2, 500])
def test_what_is_0_or_1_has_no_other_limit(measure: str, limit: float) -> None:
    """With 0 it would object while all is well, with 2 never."""
    assert "leave the limit out" in wrong(rule(measure, limit=limit))


@pytest.mark.parametrize("resume", [float("nan"), float("inf"), float("-inf"), -1])
@pytest.mark.parametrize("measure", ["calls", "mos", "signal"])
def test_where_it_is_good_again_is_a_number(measure: str, resume: float) -> None:
    assert "resume: " in wrong(rule(measure, resume=resume))


def test_where_it_is_good_again_is_not_on_the_bad_side() -> None:
    assert "resume: 60.0 is over the limit" in wrong(rule("cpu_percent", limit=50, resume=60))
    assert "resume: 30.0 is under the limit" in wrong(rule("asr_percent", limit=50, resume=30))
    assert "resume: 90.0 is over the limit" in wrong(rule("cpu_percent", resume=90))
    assert "resume: expected 0 to 100 percent" in wrong(rule("asr_percent", limit=50, resume=101))


def test_a_warning_is_for_calls_and_before_the_limit() -> None:
    check_rules([rule(notify=40)])
    assert "notify: is for `calls`" in wrong(rule("mos", notify=3))
    for notify in (51, -1, float("nan")):
        assert "notify: expected 0 up to the limit" in wrong(rule(notify=notify))


def test_a_guarantee_is_for_calls_of_somebody() -> None:
    check_rules([rule(tenant=EACH, guaranteed=5)])
    assert "guaranteed: is for `calls` of a tenant" in wrong(rule(guaranteed=5))
    assert "guaranteed: is for `calls` of a tenant" in wrong(
        rule("mos", limit=3, tenant="a", guaranteed=5)
    )
    assert "guaranteed: expected 0 up to the limit" in wrong(rule(tenant="a", guaranteed=51))
    assert "guaranteed: expected 0 up to the limit" in wrong(rule(tenant="a", guaranteed=-1))


def test_no_more_is_guaranteed_than_all_together_may_have() -> None:
    whole = rule(name="all", limit=50)
    acme = rule(name="acme", tenant="acme", limit=40, guaranteed=30)
    beta = rule(name="beta", tenant="beta", limit=40, guaranteed=25)
    words = wrong(whole, acme, beta)
    assert words == (
        "rule 'beta': guaranteed: with it 55 calls are guaranteed by tenant, and rule 'all' lets in 50"
    )
    check_rules([acme, beta])
    check_rules([whole, acme, msgspec.structs.replace(beta, guaranteed=20)])
    check_rules([whole, acme, msgspec.structs.replace(beta, outcome="shadow")])
    check_rules([msgspec.structs.replace(whole, outcome="shadow"), acme, beta])
    trunk = msgspec.structs.replace(beta, tenant="", trunk="west")
    check_rules([whole, acme, trunk])  # the same calls are of a tenant and of a trunk


@pytest.mark.parametrize(
    "measure",
    [name for name, one in MEASURES.items() if one.kind == "health" and name != "signal"],
)
def test_a_figure_that_there_is_one_of_is_not_for_each(measure: str) -> None:
    assert f"{measure} is one figure: name the trunk" in wrong(rule(measure, trunk=EACH))
    check_rules([rule(measure, trunk="west")], (), [PROBE])


def test_a_check_is_among_those_that_are_configured() -> None:
    check_rules([rule("check", which="asr")], (), [PROBE])
    check_rules([rule("check")], (), [PROBE])
    assert "which: 'llm' is not among admission.checks" in wrong(rule("check", which="llm"))
    assert "there is nothing to check" in wrong(rule("check"), checks=())


def test_a_signal_is_named() -> None:
    assert "which: name the signal" in wrong(rule("signal", which=""))
    assert "which: name the signal" in wrong(rule("signal", which="a b"))


def test_only_some_measures_are_of_something() -> None:
    check_rules([rule("freeswitch_rate_percent", which="fs1")])
    for measure in ("calls", "mos", "cpu_percent", "database"):
        assert "which: is for checks, signals" in wrong(rule(measure, which="x"))


@pytest.mark.parametrize(
    "key", ["window_seconds", "resume_seconds", "in_service_seconds", "ramp_seconds"]
)
@pytest.mark.parametrize("seconds", [-1, 3601, float("nan")])
def test_times_are_up_to_an_hour(key: str, seconds: float) -> None:
    assert f"{key}: expected 0 to 3600" in wrong(rule("mos", **{key: seconds}))


def test_a_window_is_a_second_at_least() -> None:
    assert "window_seconds: expected 1 to 3600" in wrong(rule("mos", window_seconds=0.5))
    check_rules([rule(resume_seconds=0, in_service_seconds=0, ramp_seconds=0)])


@pytest.mark.parametrize("said", [{"trip_samples": 0}, {"min_samples": 0}, {"trip_samples": 3601}])
def test_readings_and_calls_are_counted_from_1_on(said: dict[str, Any]) -> None:
    assert "trip_samples and min_samples: expected 1 or more" in wrong(rule(**said))


@pytest.mark.parametrize("burst", [0, 0.9, -1, 2e6, float("nan")])
def test_a_burst_lets_one_call_in_at_least(burst: float) -> None:
    assert "burst: expected 1 or more calls" in wrong(rule("calls_per_second", burst=burst))
    assert "burst: is for `calls_per_second`" in wrong(rule("calls", burst=10))


@pytest.mark.parametrize("code", [0, 200, 302, 399, 700])
def test_a_refusal_is_a_failure(code: int) -> None:
    assert f"code: expected 400 to 699, got {code}" in wrong(rule(code=code))


@pytest.mark.parametrize("reason", ['say "x"', "a\r\nX: y", "ä", "x" * 65, "a;b", "a\\"])
def test_a_reason_cannot_break_its_header(reason: str) -> None:
    assert "reason: expected up to 64" in wrong(rule(reason=reason))


def test_an_overflow_has_a_route_that_is_configured_and_nothing_else_has_one() -> None:
    check_rules([rule(outcome="overflow", route="ivr")], ["ivr"])
    assert "route: 'ivr' is not among admission.routes" in wrong(
        rule(outcome="overflow", route="ivr"), routes=("voicemail",)
    )
    assert "route: '' is not among" in wrong(rule(outcome="overflow"), routes=("ivr",))
    assert 'route: is for outcome = "overflow"' in wrong(rule(route="ivr"), routes=("ivr",))


# --------------------------------------------------------------------------------------------- checks


def probe(**said: Any) -> Probe:
    return msgspec.structs.replace(PROBE, **said)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/health?deep=1",
        "https://asr.example.com",
        "http://[::1]:80/",
        "tcp://127.0.0.1:5432",
        "tcp://[2001:db8::1]:6379",
    ],
)
def test_an_address_to_check_is_http_or_tcp(url: str) -> None:
    check_rules([], (), [probe(url=url)])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "asr.example.com",
        "ftp://asr.example.com",
        "file:///etc/passwd",
        "http://",
        "http:///health",
        "http://:80",
        "http://a:99999/",
        "http://a:0/",
        "http://a b/",
        "http://a/\x1b[2J",
        "http://[::1/",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:80/path",
        "tcp://a:80?x",
        "http://" + "a" * 501,
    ],
)
def test_an_address_that_cannot_be_asked_is_wrong(url: str) -> None:
    assert wrong(checks=(probe(url=url),)) == (
        "check 'asr': url: expected http://, https:// or tcp://HOST:PORT"
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"name": "a b"}, "check 'a b': a name has 1 to 64 letters"),
        ({"every_seconds": 0.05}, "every_seconds: 0.1 to 3600"),
        ({"every_seconds": float("nan")}, "every_seconds: 0.1 to 3600"),
        ({"timeout_seconds": 61}, "timeout_seconds: 0.05 to 60"),
        ({"max_ms": 0}, "max_ms: expected more than 0"),
        ({"max_ms": float("nan")}, "max_ms: expected more than 0"),
        ({"status": 99}, "status: expected 100 to 599"),
        ({"status": -1}, "status: expected 100 to 599"),
    ],
)
def test_what_a_check_cannot_be(said: dict[str, Any], words: str) -> None:
    assert words in wrong(checks=(probe(**said),))


def test_checks_are_told_apart() -> None:
    assert wrong(checks=(PROBE, PROBE)) == "two checks have one name"


def test_words_of_an_operator_come_back_without_control_characters() -> None:
    assert "\x1b" not in wrong(rule(name="\x1b[31m"))
    assert "\x1b" not in wrong(checks=(probe(name="\x1b[31m"),))


def test_the_presets_are_the_standards() -> None:
    presets = {name: (one.default, one.resume) for name, one in rules.MEASURES.items()}
    assert presets["cpu_percent"] == (85, 70)
    assert presets["memory_percent"] == (90, 80)
    assert presets["loop_lag_ms"] == (100, 50)
    assert presets["queue_percent"] == (80, 50)
    assert presets["freeswitch_sessions_percent"] == (95, 90)
