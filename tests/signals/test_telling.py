"""What switches are told: compared, key by key, with what a question would be answered."""

from typing import Any

import pytest

from sipsidecar.calls.events import Cohort, Sighted
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import OVERFLOW, REFUSE, Ask, Denial, RateLimit
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Leases
from sipsidecar.signals.rules import GLOBAL, SCOPES, Rule
from sipsidecar.signals.telling import caps, denials

COHORTS = Cohorts(
    (
        Matcher(trunk="acme", sources=("192.0.2.1",)),
        Matcher(tenant="one", prefixes=("1",)),
        Matcher(tenant="two", prefixes=("2",)),
    )
)


def admission(*rules: Rule, reserve: float = 0.0) -> Admission:
    return Admission(
        Policy(rules=rules, reserve_percent=reserve),
        COHORTS,
        Windows((GLOBAL, *SCOPES)),
        Leases(lambda _: None),
    )


def rule(measure: str = "calls", limit: float | None = 2, **said: Any) -> Rule:
    fields: dict[str, Any] = {"name": "full", "measure": measure, "limit": limit}
    return Rule(**(fields | said))


def hold(one: Admission, count: int, to: str = "3") -> None:
    for i in range(count):
        sighted = Sighted(src_ip="192.0.2.1", ruri_user=to)
        one.ask(Ask(call_id=f"{to}{i}", sighted=sighted), 10.0, 1)


def told(one: Admission, now: float = 10.0) -> dict[tuple[str, str], Denial]:
    return {(d.scope, d.scope_value): d for d in denials(one.standing, COHORTS, now)[0]}


def test_nothing_is_refused_while_there_is_room() -> None:
    one = admission(rule())
    hold(one, 1)
    assert told(one) == {}


def test_a_full_capacity_is_refused_under_its_key() -> None:
    one = admission(rule(trunk="acme", code=480, reason="no room"))
    hold(one, 2)
    assert told(one) == {
        ("trunk", "acme"): Denial(
            scope="trunk", scope_value="acme", verdict=REFUSE, code=480,
            reason="cac full: no room", rule="full", percent=100,
        )
    }  # fmt: skip


def test_the_reserve_is_kept_by_switches_too() -> None:
    one = admission(rule(limit=20), reserve=5.0)
    hold(one, 18)
    assert told(one) == {}
    hold(one, 19)
    assert (GLOBAL, "") in told(one)


def test_a_ramp_is_told_as_the_share_that_is_refused() -> None:
    one = admission(rule("cpu_percent", None, resume_seconds=1.0, ramp_seconds=100.0))
    now = 100.0
    for reading in [99.0] * 3 + [10.0] * 10:
        now += 1
        one.receive_readings({("cpu_percent", ""): reading}, now, 1)
    percent = told(one, now)[GLOBAL, ""].percent
    assert 80 <= percent < 100
    later = told(one, now + 50)[GLOBAL, ""].percent
    assert later < percent
    for _ in range(110):
        now += 1
        one.receive_readings({("cpu_percent", ""): 10.0}, now, 1)
    assert told(one, now) == {}


def test_an_overflow_names_its_route() -> None:
    one = admission(rule(outcome="overflow", route="ivr"))
    hold(one, 2)
    found = told(one)[GLOBAL, ""]
    assert (found.verdict, found.route) == (OVERFLOW, "ivr")


def test_a_shadow_rule_is_told_to_nobody() -> None:
    one = admission(
        rule(outcome="shadow"), rule("calls_per_second", 5, name="rate", outcome="shadow")
    )
    hold(one, 2)
    assert denials(one.standing, COHORTS, 10.0) == ([], [])
    assert caps(one.standing) == {}


def test_a_drain_stands_above_all() -> None:
    one = admission(rule(trunk="acme"))
    hold(one, 2)
    one.standing.drain("trunk", "acme", 10.0, 1)
    found = told(one)["trunk", "acme"]
    assert (found.rule, found.code, found.percent) == ("drain", 503, 100)


def test_rates_are_told_always_in_whole_calls() -> None:
    one = admission(
        rule("calls_per_second", 12.7, name="fast"),
        rule("calls_per_second", 0.2, name="slow", tenant="*"),
    )
    _, limits = denials(one.standing, COHORTS, 10.0)
    assert limits[0] == RateLimit(
        scope=GLOBAL, scope_value="", limit=12, rate=12.7, burst=5, code=486, reason="cac fast",
        rule="fast",
    )  # fmt: skip
    assert [(r.scope_value, r.limit) for r in limits[1:]] == [("one", 1), ("two", 1), ("other", 1)]


def test_with_guarantees_each_value_is_told_what_it_would_be_answered() -> None:
    one = admission(
        rule(limit=5, name="all"),
        rule(limit=4, name="one", tenant="one", guaranteed=2),
    )
    hold(one, 3, to="2")
    closed = {value for scope, value in told(one) if scope == "tenant"}
    assert closed == {"two", "other"}
    for value in ("one", "two", "other"):
        refused = one.explain(Cohort(tenant=value), 10.0)["decision"]["verdict"] == REFUSE
        assert refused == (value in closed)


def test_caps_are_what_ordinary_calls_may_use_at_once() -> None:
    one = admission(rule(limit=100), rule(limit=10, name="acme", trunk="acme"), reserve=5.0)
    assert caps(one.standing) == {(GLOBAL, ""): (95, "full"), ("trunk", "acme"): (9, "acme")}


@pytest.mark.parametrize("limits", [(10, 20), (20, 10)])
def test_of_two_caps_for_one_key_the_lower_holds(limits: tuple[int, int]) -> None:
    one = admission(*(rule(limit=limit, name=str(limit)) for limit in limits))
    assert caps(one.standing) == {(GLOBAL, ""): (10, "10")}
