"""Rules over figures of quality and health, on a simulated clock: closing, overflow, ramp, no flapping."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from sipsidecar.calls.events import AttemptRecord, CallRecord, Cohort, Setup, Sighted
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import (
    ADMIT,
    CLOSED,
    LIMITING,
    OPEN,
    OVERFLOW,
    RAMPING,
    REFUSE,
    Ask,
    StateRecord,
)
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Leases
from sipsidecar.signals.rules import GLOBAL, SCOPES, Rule, RuleError
from sipsidecar.signals.standing import MAX_ROWS

US = 1_795_000_000_000_000
COHORTS = Cohorts(
    (
        Matcher(trunk="acme", destinations=("192.0.2.0/24",)),
        Matcher(trunk="beta", destinations=("198.51.100.0/24",)),
    )
)


class Carrier:
    """How a trunk treats the calls that it is given; it can change while calls go on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.answers = 0.6
        self.fails = 0.02
        """Share of 503."""
        self.pdd_ms = 900.0
        self.mos = 4.2

    def treat(self, number: int) -> tuple[int, float, float]:
        """Final code, PDD and MOS of one call."""
        draw = self.random.random()
        code = 503 if draw < self.fails else 200 if draw < self.fails + self.answers else 486
        pdd = self.pdd_ms * self.random.lognormvariate(0, 0.4)
        return code, pdd, min(4.5, self.random.gauss(self.mos, 0.2))


class Trunk:
    """One trunk under one rule: so many calls a second, each asked about first."""

    def __init__(self, rule: Rule, per_second: float = 2.0, seed: int = 7) -> None:
        self.carrier = Carrier(seed)
        self.windows = Windows((GLOBAL, *SCOPES))
        leases = Leases(lambda _: None, pending=1.0)
        self.admission = Admission(
            Policy(rules=(rule,), reserve_percent=0), COHORTS, self.windows, leases
        )
        self.rule = rule
        self.per_second = per_second
        self.now = 1_000_000.0
        self.calls = 0
        self.verdicts: list[tuple[float, str]] = []
        self.states: list[tuple[float, str]] = []
        self._due = 0.0

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            self._due += self.per_second
            while self._due >= 1.0:
                self._due -= 1.0
                self._call()
            at = int(self.now * 1_000_000)
            self.admission.receive_readings({}, self.now, at)
            self.admission.handle_timer(self.now, at)
            for row in self.admission.records():
                if isinstance(row, StateRecord):
                    self.states.append((self.now, row.state))
            if each is not None:
                each()

    def _call(self) -> None:
        self.calls += 1
        call_id = str(self.calls)
        ask = Ask(call_id=call_id, sighted=Sighted(dst_ip="192.0.2.1"))
        verdict = self.admission.ask(ask, self.now, US).verdict
        self.verdicts.append((self.now, verdict))
        if verdict != ADMIT:
            return
        code, pdd, mos = self.carrier.treat(self.calls)
        answered = code == 200
        labels: dict[str, Any] = {
            "tenant": "other",
            "trunk": "acme",
            "direction": "other",
            "region": "other",
        }
        common: dict[str, Any] = {
            "call_id": call_id, "from_tag": "t", "received_at": US, "started_at": US,
            "final_code": code, "final_class": f"{code // 100}xx", "answered": answered,
            "pdd_ms": pdd if code != 503 else None,
        }  # fmt: skip
        call = CallRecord(
            **common, **labels, seizure=True, final_origin="callee", attempts=1,
            mos=mos if answered else None, mos_scale="nb" if answered else None,
        )  # fmt: skip
        attempt = AttemptRecord(**common, **labels, branch="z")
        self.windows.receive_setup(Setup(call, (attempt,)), self.now)
        self.windows.receive_call(call, self.now)

    @property
    def state(self) -> str:
        return self.admission.standing.states()[self.rule.name, "acme"]

    def share(self, verdict: str, since: float) -> float:
        said = [one for at, one in self.verdicts if at > since]
        return said.count(verdict) / len(said)


def gate(measure: str, limit: float, **said: Any) -> Rule:
    fields: dict[str, Any] = {
        "name": "gate", "measure": measure, "limit": limit, "trunk": "acme",
        "window_seconds": 60.0, "outcome": "overflow", "route": "ivr",
        "resume_seconds": 30.0, "ramp_seconds": 30.0,
    }  # fmt: skip
    return Rule(**(fields | said))


def turns_503(carrier: Carrier) -> None:
    carrier.fails = 1.0


def grows_slow(carrier: Carrier) -> None:
    carrier.pdd_ms = 6000.0


def sounds_bad(carrier: Carrier) -> None:
    carrier.mos = 2.4


def heals(carrier: Carrier) -> None:
    carrier.fails, carrier.pdd_ms, carrier.mos = 0.02, 900.0, 4.2


TROUBLES = [
    (gate("server_errors_percent", 30), turns_503),
    (gate("asr_percent", 30), turns_503),
    (gate("ner_percent", 60), turns_503),
    (gate("pdd_p95_ms", 4000), grows_slow),
    (gate("mos", 3.5), sounds_bad),
]


@pytest.mark.parametrize(("rule", "trouble"), TROUBLES, ids=lambda one: getattr(one, "measure", ""))
def test_a_trunk_in_trouble_is_closed_within_its_window_overflowed_and_let_in_by_a_ramp(
    rule: Rule, trouble: Callable[[Carrier], None]
) -> None:
    trunk = Trunk(rule)
    trunk.run(300)
    assert trunk.states == []
    assert trunk.share(ADMIT, 0) == 1.0
    trouble(trunk.carrier)
    began = trunk.now
    while not trunk.states and trunk.now - began <= rule.window_seconds:
        trunk.run(1)
    assert [state for _, state in trunk.states] == [CLOSED]
    trunk.run(20)
    assert trunk.share(OVERFLOW, trunk.now - 20) == 1.0
    heals(trunk.carrier)
    trunk.run(300)
    # what was let in while it still was in trouble may have closed it once more, not more often
    assert trunk.states[-1][1] == OPEN
    assert [state for _, state in trunk.states].count(CLOSED) <= 2
    assert trunk.state == OPEN
    ramp = next(at for at, state in reversed(trunk.states) if state == RAMPING)
    early = [one for at, one in trunk.verdicts if ramp < at <= ramp + 10]
    assert 0 < early.count(ADMIT) / len(early) < 0.6, "not all at once"
    trunk.run(600)
    assert trunk.states[-1][1] == OPEN
    assert trunk.share(ADMIT, trunk.now - 600) == 1.0


def test_a_trunk_that_stays_in_trouble_is_tried_ever_less_often() -> None:
    trunk = Trunk(gate("asr_percent", 30))
    trunk.run(120)
    turns_503(trunk.carrier)
    trunk.run(3600)
    closings = [at for at, state in trunk.states if state == CLOSED]
    gaps = [b - a for a, b in itertools.pairwise(closings)]
    assert len(closings) < 20
    assert min(gaps) >= 30.0
    assert gaps[-1] > gaps[0]
    assert trunk.share(ADMIT, trunk.now - 1800) < 0.15


@pytest.mark.parametrize(
    "rule",
    [
        gate("asr_percent", 40, window_seconds=300.0),
        gate("server_errors_percent", 10, window_seconds=300.0),
        gate("pdd_p95_ms", 4000, window_seconds=300.0),
        gate("mos", 3.5, window_seconds=300.0),
    ],
    ids=lambda rule: rule.measure,
)
def test_a_noisy_but_healthy_trunk_is_never_closed(rule: Rule) -> None:
    """A short one; `make bench-admission` runs the ten thousand minutes."""
    trunk = Trunk(rule, per_second=0.5, seed=11)
    noise = random.Random(3)

    def wander() -> None:
        if trunk.now % 300 == 0:
            trunk.carrier.answers = noise.uniform(0.5, 0.75)
            trunk.carrier.fails = noise.uniform(0.0, 0.06)
            trunk.carrier.pdd_ms = noise.uniform(600, 1600)
            trunk.carrier.mos = noise.uniform(3.8, 4.3)

    trunk.run(6000, wander)
    assert trunk.states == []


def test_a_quiet_trunk_says_nothing() -> None:
    trunk = Trunk(gate("asr_percent", 90, min_samples=20), per_second=0.05)
    trunk.carrier.answers = 0.0
    trunk.run(200)
    assert trunk.states == []


# -- health


class Health:
    def __init__(self, *rules: Rule) -> None:
        self.admission = Admission(
            Policy(rules=rules), COHORTS, Windows((GLOBAL, *SCOPES)), Leases(lambda _: None)
        )
        self.now = 500.0
        self.rows: list[StateRecord] = []

    def read(self, seconds: int = 1, **readings: float | None) -> None:
        for _ in range(seconds):
            self.now += 1.0
            named = {(name, ""): value for name, value in readings.items()}
            self.admission.receive_readings(named, self.now, US)
            self.rows += [r for r in self.admission.records() if isinstance(r, StateRecord)]

    def ask(self, call_id: str) -> str:
        ask = Ask(call_id=call_id, sighted=Sighted(dst_ip="192.0.2.1"))
        return self.admission.ask(ask, self.now, US).verdict


def test_health_has_hysteresis() -> None:
    world = Health(Rule(name="cpu", measure="cpu_percent", resume_seconds=5.0, ramp_seconds=10.0))
    world.read(2, cpu_percent=99.0)
    world.read(1, cpu_percent=50.0)
    world.read(2, cpu_percent=99.0)
    assert world.ask("a") == ADMIT, "two bad readings are not three"
    world.read(1, cpu_percent=99.0)
    assert world.ask("b") == REFUSE
    world.read(60, cpu_percent=78.0)
    assert world.ask("c") == REFUSE, "between 70 and 85 it stays as it is"
    world.read(4, cpu_percent=60.0)
    assert [row.state for row in world.rows] == [CLOSED]
    world.read(2, cpu_percent=60.0)
    assert [row.state for row in world.rows] == [CLOSED, RAMPING]
    world.read(11, cpu_percent=60.0)
    assert [row.state for row in world.rows] == [CLOSED, RAMPING, OPEN]
    assert world.rows[0].reason == "cpu_percent 99 %: over 85 %"
    assert (world.rows[0].value, world.rows[0].threshold) == (99.0, 85.0)


@pytest.mark.parametrize("measure", ["cpu_percent", "database", "queue_percent"])
def test_what_is_unknown_refuses_nobody(measure: str) -> None:
    world = Health(Rule(name="one", measure=measure))  # type: ignore[arg-type]
    world.read(60, **{measure: None})
    world.read(60)
    assert world.ask("a") == ADMIT
    assert world.rows == []


def test_a_figure_that_is_bad_when_low_closes_under_its_limit() -> None:
    world = Health(Rule(name="idle", measure="freeswitch_idle_cpu_percent"))
    world.read(3, freeswitch_idle_cpu_percent=80.0)
    assert world.ask("a") == ADMIT
    world.read(3, freeswitch_idle_cpu_percent=10.0)
    assert world.ask("b") == REFUSE


# -- operators


def test_an_operator_opens_what_a_rule_closed() -> None:
    world = Health(Rule(name="cpu", measure="cpu_percent"))
    world.read(3, cpu_percent=99.0)
    assert world.ask("a") == REFUSE
    assert world.admission.standing.resume(GLOBAL, "", world.now, US) == 1
    assert world.ask("b") == ADMIT
    world.read(3, cpu_percent=99.0)
    assert world.ask("c") == REFUSE, "the rule goes on"
    assert [row.by for row in world.rows] == ["rule", "operator", "rule"]


def test_a_limit_can_be_changed_while_it_runs() -> None:
    world = Health(Rule(name="full", measure="calls", limit=1))
    standing = world.admission.standing
    world.ask("a")
    assert world.ask("b") == REFUSE
    new = standing.set_limit("full", 5, world.now, US)
    assert new.threshold == 5
    assert world.ask("c") == ADMIT
    with pytest.raises(LookupError, match="no rule is named 'empty'"):
        standing.set_limit("empty", 5, world.now, US)
    with pytest.raises(RuleError):
        standing.set_limit("full", -1, world.now, US)


def test_a_value_that_is_not_configured_cannot_be_drained() -> None:
    world = Health()
    with pytest.raises(
        LookupError, match="no trunk is named 'forged': there are acme, beta, other"
    ):
        world.admission.standing.drain("trunk", "forged", world.now, US)
    with pytest.raises(LookupError):
        world.admission.standing.drain("planet", "earth", world.now, US)


def test_a_drain_can_be_ended_although_a_reload_took_its_name() -> None:
    world = Health(Rule(name="edge", measure="cpu_percent", node="edge"))
    standing = world.admission.standing
    standing.drain("node", "edge", world.now, US)
    world.admission.use(Policy(rules=()))
    assert standing.resume("node", "edge", world.now, US) == 1
    assert not standing.drains
    with pytest.raises(LookupError):
        standing.resume("node", "edge", world.now, US)


def test_to_explain_is_not_to_refuse() -> None:
    world = Health(Rule(name="rate", measure="calls_per_second", limit=1, burst=1))
    world.ask("a")
    for _ in range(3):
        world.admission.explain(Cohort(trunk="acme"), world.now)
    world.admission.handle_timer(world.now, US)
    assert world.admission.standing.states() == {("rate", ""): OPEN}
    assert world.ask("b") == REFUSE
    world.admission.handle_timer(world.now, US)
    assert world.admission.standing.states() == {("rate", ""): LIMITING}


def test_the_state_of_a_trunk_is_that_of_enforced_rules_about_it_or_about_all() -> None:
    world = Health(
        Rule(name="shadow", measure="cpu_percent", outcome="shadow"),
        Rule(name="queue", measure="queue_percent", trunk="acme"),
        Rule(name="lag", measure="loop_lag_ms", resume_seconds=0.0, in_service_seconds=0.0),
    )
    standing = world.admission.standing
    world.read(3, cpu_percent=99.0)
    assert standing.state_of("trunk", "acme") == OPEN
    world.read(3, loop_lag_ms=500.0)
    world.read(2, loop_lag_ms=1.0)
    assert standing.state_of("trunk", "beta") == RAMPING
    world.read(3, queue_percent=99.0, loop_lag_ms=1.0)
    assert (standing.state_of("trunk", "acme"), standing.state_of("trunk", "beta")) == (
        CLOSED,
        RAMPING,
    )


def test_a_new_policy_keeps_the_state_of_rules_that_are_as_they_were() -> None:
    cpu = Rule(name="cpu", measure="cpu_percent")
    queue = Rule(name="queue", measure="queue_percent")
    world = Health(cpu, queue)
    world.read(3, cpu_percent=99.0, queue_percent=99.0)
    states = world.admission.standing.states
    assert states() == {("cpu", ""): CLOSED, ("queue", ""): CLOSED}
    other = Rule(name="queue", measure="queue_percent", limit=90)
    world.admission.use(Policy(rules=(other, cpu)))
    assert states() == {("queue", ""): OPEN, ("cpu", ""): CLOSED}


# -- capacities


def test_a_full_capacity_is_limiting_until_it_had_room_for_a_while() -> None:
    world = Health(Rule(name="full", measure="calls", limit=1, in_service_seconds=5.0))
    admission = world.admission
    world.ask("a")
    world.ask("b")
    assert admission.standing.state_of("trunk", "acme") == LIMITING
    admission.leases.over("a", world.now)
    for _ in range(4):
        world.now += 1
        admission.handle_timer(world.now, US)
    assert admission.standing.states()["full", ""] == LIMITING
    world.now += 2
    admission.handle_timer(world.now, US)
    assert admission.standing.states()["full", ""] == OPEN


def test_a_notify_mark_is_said_once_and_not_at_every_call_around_it() -> None:
    world = Health(Rule(name="full", measure="calls", limit=100, notify=10))
    admission = world.admission
    for i in range(12):
        world.ask(str(i))
    for i in range(5):
        admission.leases.over(str(i % 2), world.now)
        world.ask(f"again{i}")
        admission.handle_timer(world.now, US)
    rows = [r for r in admission.records() if isinstance(r, StateRecord)]
    assert [(r.state, r.previous, r.reason) for r in rows] == [
        (OPEN, OPEN, "10 calls: at its notify mark of 10")
    ]


def test_rows_that_nobody_takes_are_bounded_and_counted() -> None:
    world = Health(Rule(name="full", measure="calls", limit=10))
    standing = world.admission.standing
    for i in range(MAX_ROWS // 2 + 5):
        standing.drain("trunk", "acme", float(i), US)
        standing.resume("trunk", "acme", float(i), US)
    assert standing.rows_lost == 10
    assert len(standing.records()) == MAX_ROWS


def test_everything_shown_is_plain() -> None:
    world = Health(
        Rule(name="full", measure="calls", limit=10, notify=5),
        Rule(name="rate", measure="calls_per_second", limit=2),
        gate("mos", 3.5),
    )
    world.ask("a")
    shown = world.admission.standing.status(world.now)
    assert [one["rule"] for one in shown] == ["full", "rate", "gate"]
    assert shown[0]["reason"] == "1 of 10 calls"
    assert shown[2]["reason"] == "mos unknown, closes under 3.5"
    _, _, words = world.admission.standing.trial(Cohort(trunk="acme"), world.now)
    assert [one["objects"] for one in words] == [False, False, False]


def test_a_closed_trunk_goes_on_to_say_what_it_was_closed_for() -> None:
    trunk = Trunk(gate("server_errors_percent", 30, outcome="refuse", route=""))
    trunk.run(120)
    turns_503(trunk.carrier)
    while trunk.state != "closed":
        trunk.run(1)
    (before,) = trunk.admission.standing.status(trunk.now)
    trunk.run(10)  # no call passes that could tell more
    (status,) = trunk.admission.standing.status(trunk.now)
    assert status["state"] == "closed"
    assert status["value"] == before["value"] > 30
    assert "unknown" not in status["reason"]
    ask = Ask(call_id="late", sighted=Sighted(dst_ip="192.0.2.1"))
    assert trunk.admission.ask(ask, trunk.now, US).value == before["value"]
    trunk.admission.standing.set_limit("gate", 20, trunk.now, US)
    assert trunk.admission.standing.status(trunk.now)[0]["value"] == before["value"]


def test_a_rule_that_is_still_closed_although_all_is_well_does_not_say_that_it_is_bad() -> None:
    world = Health(Rule(name="cpu", measure="cpu_percent"))
    world.read(3, cpu_percent=99.0)
    assert world.admission.standing.status(world.now)[0]["reason"] == "cpu_percent 99 %: over 85 %"
    world.read(1, cpu_percent=50.0)
    (status,) = world.admission.standing.status(world.now)
    assert (status["state"], status["reason"]) == ("closed", "cpu_percent 50 %: was over 85 %")


def test_a_rule_over_its_notify_mark_says_so() -> None:
    world = Health(Rule(name="full", measure="calls", limit=10, notify=2))
    for name in "ab":
        world.ask(name)
    (status,) = world.admission.standing.status(world.now)
    assert status["reason"] == "2 of 10 calls, at its notify mark of 2"


@pytest.mark.parametrize(("outcome", "seconds"), [("overflow", 30), ("shadow", 65)])
def test_setups_that_are_told_of_late_do_not_keep_it_closed_for_a_window(
    outcome: str, seconds: int
) -> None:
    """Under a shadow rule calls go on, so what is told of them is news."""
    route = "ivr" if outcome == "overflow" else ""
    trunk = Trunk(gate("server_errors_percent", 30, outcome=outcome, route=route), per_second=0)

    def told_of(code: int) -> None:
        for _ in range(30):
            call = CallRecord(
                call_id="c", from_tag="t", received_at=US, started_at=US, final_code=code,
                trunk="acme", seizure=True,
            )  # fmt: skip
            trunk.windows.receive_setup(Setup(call, ()), trunk.now)

    told_of(503)
    trunk.run(3)
    assert trunk.state == CLOSED
    closed = trunk.now
    trunk.run(5)
    told_of(503)
    while trunk.state == CLOSED:
        trunk.run(1)
    assert trunk.now - closed == pytest.approx(seconds, abs=10)
