"""Questions to the rules: real leases, gates, windows and buckets, and a clock of the test's own."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import CallRecord, Cohort, Move, Setup, Sighted
from sipsidecar.signals import telling
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import (
    ADMIT,
    OVERFLOW,
    REFUSE,
    AdmissionRecord,
    Ask,
    Decision,
    StateRecord,
)
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import MAX_SAME, Alive, Leases
from sipsidecar.signals.refusals import REMEMBERED
from sipsidecar.signals.rules import GLOBAL, SCOPES, Rule

MATCHERS = (
    Matcher(trunk="acme", direction="inbound", sources=("192.0.2.0/24",)),
    Matcher(trunk="beta", direction="inbound", sources=("198.51.100.0/24",)),
    Matcher(tenant="one", prefixes=("1",)),
    Matcher(tenant="two", prefixes=("2",)),
)
ACME, BETA = "192.0.2.1", "198.51.100.1"
US = 1_795_000_000_000_000


class World:
    """Admission under a clock; HEP says what the test tells it to."""

    def __init__(self, *rules: Rule, reserve: float = 0.0, **policy: Any) -> None:
        cohorts = Cohorts(MATCHERS)
        self.live: dict[str, str] = {}
        self.leases = Leases(self._alive, pending=5.0)
        self.windows = Windows((GLOBAL, *SCOPES))
        self.admission = Admission(
            Policy(rules=rules, reserve_percent=reserve, **policy),
            cohorts,
            self.windows,
            self.leases,
        )
        self.cohorts = cohorts
        self.now = 1000.0

    def _alive(self, call_id: str) -> Alive | None:
        return Alive(False, self.now, False) if call_id in self.live else None

    @property
    def at(self) -> int:
        return US + int(self.now * 1_000_000)

    def ask(self, call_id: str, source: str = ACME, to: str = "30", **said: Any) -> Decision:
        sighted = Sighted(src_ip=source, ruri_user=to, from_user=said.pop("caller", None))
        fields: dict[str, Any] = {"from_tag": "t", "cseq": 1}
        ask = Ask(call_id=call_id, sighted=sighted, **(fields | said))
        return self.admission.ask(ask, self.now, self.at)

    def see(self, call_id: str, state: str | None, source: str = ACME, to: str = "30") -> None:
        if state is None:
            self.live.pop(call_id, None)
        else:
            self.live[call_id] = state
        cohort = self.cohorts.of(Sighted(src_ip=source, ruri_user=to))
        self.admission.receive_moves([Move(call_id, state, cohort)], self.now, self.at)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.admission.receive_readings({}, self.now, self.at)
            self.admission.handle_timer(self.now, self.at)

    def rows(self) -> list[AdmissionRecord]:
        return [row for row in self.admission.records() if isinstance(row, AdmissionRecord)]


def calls(limit: int, **said: Any) -> Rule:
    fields: dict[str, Any] = {"name": "full", "measure": "calls", "limit": limit}
    return Rule(**(fields | said))


def test_without_rules_every_call_is_let_in() -> None:
    world = World()
    decision = world.ask("a")
    assert decision.verdict == ADMIT
    assert decision.rule == ""
    assert world.rows() == []


def test_a_full_capacity_refuses_with_its_code_and_says_why() -> None:
    world = World(calls(2, code=480, reason="no room"))
    assert [world.ask(c).verdict for c in "ab"] == [ADMIT, ADMIT]
    refused = world.ask("c")
    assert (refused.verdict, refused.code, refused.rule) == (REFUSE, 480, "full")
    assert refused.reason == "cac full: no room"
    assert (refused.value, refused.threshold) == (2.0, 2.0)
    (row,) = world.rows()
    assert (row.call_id, row.verdict, row.rule, row.measure) == ("c", REFUSE, "full", "calls")
    assert (row.value, row.threshold, row.code, row.trunk) == (2.0, 2.0, 480, "acme")


def test_a_call_that_ends_makes_room() -> None:
    world = World(calls(1))
    world.ask("a")
    world.see("a", "answered")
    assert world.ask("b").verdict == REFUSE
    world.see("a", None)
    assert world.ask("c").verdict == ADMIT


def test_a_call_that_never_comes_makes_room() -> None:
    world = World(calls(1))
    world.ask("a")
    world.pass_time(6)
    assert world.ask("b").verdict == ADMIT


def test_calls_that_nobody_asked_about_hold_capacity_too() -> None:
    world = World(calls(1))
    world.see("a", "trying")
    assert world.ask("b").verdict == REFUSE


def test_a_call_does_not_stand_in_its_own_way_when_hep_is_faster_than_the_question() -> None:
    world = World(calls(1, trunk="acme"))
    world.see("a", "trying")
    assert world.ask("a").verdict == ADMIT
    assert len(world.leases) == 1
    assert world.ask("b").verdict == REFUSE


def test_the_invite_of_a_refused_call_holds_nothing() -> None:
    world = World(calls(1))
    world.ask("a")
    world.see("b", "trying")
    assert world.ask("b").verdict == REFUSE
    world.see("b", "trying")
    assert world.leases.active[GLOBAL, ""] == 1
    world.pass_time(1)
    world.see("a", None)
    assert world.ask("c").verdict == ADMIT


def test_a_refused_call_that_lives_all_the_same_holds_its_place() -> None:
    world = World(calls(1))
    world.ask("a")
    world.ask("b")
    world.see("b", "ringing")
    assert world.admission.too_late == 1
    assert world.leases.active[GLOBAL, ""] == 2
    world.see("a", None)
    assert world.ask("c").verdict == REFUSE
    world.see("b", "answered")
    assert world.admission.too_late == 1


@pytest.mark.parametrize("state", ["ringing", "answered"])
def test_a_question_about_a_call_that_passed_already_is_not_refused_and_counts_once(
    state: str,
) -> None:
    """After a stop of this process HEP may be read first: the switch did not wait."""
    world = World(calls(1), waited=0.1)
    world.ask("a")
    world.see("b", state)
    late = world.ask("b", waited=3.0)
    assert (late.verdict, late.rule, late.repeated) == (ADMIT, "", False)
    assert world.leases.active[GLOBAL, ""] == 2
    assert world.ask("b").repeated
    world.pass_time(1)
    world.see("b", None)
    assert world.leases.active[GLOBAL, ""] == 1
    assert world.rows() == []


def test_a_call_that_only_looked_ended_keeps_its_place() -> None:
    world = World(calls(1))
    world.ask("a")
    world.see("a", "trying")
    world.pass_time(1)
    world.see("a", None)
    world.see("a", "ringing")
    assert world.ask("b").verdict == REFUSE
    assert world.ask("a").verdict == ADMIT, "it rings: nobody waits for this answer"


def test_the_refusal_before_does_not_end_a_call_that_was_dialled_again() -> None:
    world = World(calls(1))
    world.ask("a")
    assert world.ask("b", cseq=1).verdict == REFUSE
    world.see("b", "trying")
    world.see("a", "answered")
    world.see("a", None)
    assert world.ask("b", cseq=2).verdict == ADMIT
    world.see("b", None)  # HEP shows the end of the first
    assert world.leases.active[GLOBAL, ""] == 1
    world.see("b", "ringing")
    assert world.ask("c").verdict == REFUSE


def test_a_lower_limit_that_is_put_in_force_is_told_at_once() -> None:
    world = World(calls(5))
    world.ask("a")
    world.ask("b")
    world.admission.use(Policy(rules=(calls(2),), reserve_percent=0.0))
    told, _ = telling.denials(world.admission.standing, world.cohorts, world.now)
    assert [(one.scope, one.rule) for one in told] == [(GLOBAL, "full")]
    world.pass_time(1)
    states = [row for row in world.admission.records() if isinstance(row, StateRecord)]
    assert [row.state for row in states] == ["limiting"]


def test_time_forgets_refusals_without_any_question() -> None:
    world = World(calls(0))
    world.ask("a")
    world.pass_time(REMEMBERED + 1)
    world.admission.receive_refused(refused_record('SIP;cause=486;text="cac full"'), world.at)
    assert [row.way for row in world.rows()] == ["http", "pushed"]


@pytest.mark.parametrize("cseq", [1, None])
def test_the_same_invite_is_counted_once(cseq: int | None) -> None:
    world = World(calls(2))
    assert not world.ask("a", cseq=cseq).repeated
    assert world.ask("a", cseq=cseq).repeated
    assert world.ask("b").verdict == ADMIT
    first = world.ask("c", cseq=cseq)
    again = world.ask("c", cseq=cseq)
    assert (first.verdict, first.repeated) == (REFUSE, False)
    assert (again.verdict, again.code, again.repeated) == (REFUSE, 486, True)
    assert len(world.rows()) == 1
    assert world.admission.repeated == 2


def test_a_refused_call_stays_refused_although_there_is_room_now() -> None:
    world = World(calls(1))
    world.ask("a")
    world.ask("b")
    world.see("a", "answered")
    world.see("a", None)
    assert world.ask("b").verdict == REFUSE
    world.now += REMEMBERED
    assert world.ask("b").verdict == ADMIT


def test_the_answer_to_a_challenge_is_the_same_call() -> None:
    world = World(calls(1))
    assert world.ask("a", cseq=1).verdict == ADMIT
    assert world.ask("a", cseq=2).repeated


def test_trunks_have_capacities_of_their_own() -> None:
    world = World(calls(1, trunk="acme"))
    world.ask("a")
    assert world.ask("b").verdict == REFUSE
    assert world.ask("c", BETA).verdict == ADMIT


def test_a_rule_for_each_trunk_counts_each() -> None:
    world = World(calls(1, trunk="*"))
    assert [
        world.ask(c, s).verdict for c, s in zip("abc", (ACME, BETA, "203.0.113.1"), strict=True)
    ] == [ADMIT] * 3
    refused = world.ask("d", BETA)
    assert (refused.verdict, refused.scope, refused.scope_value) == (REFUSE, "trunk", "beta")


def test_the_reserve_is_for_those_who_are_never_refused() -> None:
    world = World(calls(20), reserve=5.0, emergency=("112",))
    assert [world.ask(str(i)).verdict for i in range(19)] == [ADMIT] * 19
    assert world.ask("x").verdict == REFUSE
    sos = world.ask("sos", to="112")
    assert (sos.verdict, sos.exempt) == (ADMIT, "emergency")
    assert world.leases.active[GLOBAL, ""] == 20
    assert world.ask("more", to="112").verdict == ADMIT, "never refused, not even over the limit"
    over = world.rows()[-1]
    assert (over.call_id, over.verdict, over.exempt) == ("more", ADMIT, "emergency")


@pytest.mark.parametrize(("limit", "reserve"), [(1, 0), (2, 1), (10, 1), (50, 3), (100, 5)])
def test_the_reserve_is_a_twentieth_at_least_one_and_leaves_one(limit: int, reserve: int) -> None:
    assert World(calls(limit), reserve=5.0).admission.standing.reserve(limit) == reserve


def test_a_call_of_a_dialog_takes_no_place() -> None:
    world = World(calls(1))
    world.ask("a")
    assert world.ask("b", in_dialog=True).exempt == "in-dialog"
    assert world.ask("b", method="CANCEL").exempt == "cancel"
    assert len(world.leases) == 1
    assert world.admission.exempted == {"in-dialog": 1, "cancel": 1}


def test_an_overflowed_call_goes_on_without_holding_what_refused_it() -> None:
    world = World(calls(1, outcome="overflow", route="ivr"))
    world.ask("a")
    decision = world.ask("b")
    assert (decision.verdict, decision.route, decision.code) == (OVERFLOW, "ivr", None)
    world.see("b", "answered")
    assert world.leases.active[GLOBAL, ""] == 1
    world.see("b", None)
    world.see("a", "answered")
    world.see("a", None)
    assert world.ask("c").verdict == ADMIT


def test_a_shadow_rule_counts_and_stores_and_refuses_nobody() -> None:
    world = World(calls(1, outcome="shadow"))
    world.ask("a")
    decision = world.ask("b")
    assert (decision.verdict, decision.shadow) == (ADMIT, ("full",))
    (row,) = world.rows()
    assert (row.verdict, row.rule, row.shadow) == (ADMIT, "full", ("full",))
    assert world.admission.decisions["full", "shadow", "http"] == 1
    assert world.admission.decisions["", ADMIT, "http"] == 2


def test_a_shadow_rule_does_not_hide_one_that_counts() -> None:
    world = World(calls(1, outcome="shadow", name="would"), calls(1))
    world.ask("a")
    decision = world.ask("b")
    assert (decision.verdict, decision.rule, decision.shadow) == (REFUSE, "full", ("would",))


def test_guaranteed_shares_are_kept_free_for_whom_they_are() -> None:
    world = World(
        calls(5, name="all"),
        calls(4, name="one", tenant="one", guaranteed=2),
    )
    assert [world.ask(str(i), to="2").verdict for i in range(4)] == [ADMIT, ADMIT, ADMIT, REFUSE]
    assert [world.ask(f"one{i}", to="1").verdict for i in range(3)] == [ADMIT, ADMIT, REFUSE]


def test_a_tenant_may_use_more_than_its_guarantee_up_to_its_cap() -> None:
    world = World(
        calls(10, name="all"),
        calls(3, name="one", tenant="one", guaranteed=1),
    )
    assert [world.ask(str(i), to="1").verdict for i in range(4)] == [ADMIT, ADMIT, ADMIT, REFUSE]


def test_the_rate_of_calls_is_limited_over_time() -> None:
    world = World(Rule(name="rate", measure="calls_per_second", limit=10, burst=4))
    verdicts = []
    for i in range(1000):
        world.now += 0.02
        verdicts.append(world.ask(str(i)).verdict)
    admitted = verdicts.count(ADMIT)
    assert 200 <= admitted <= 206
    refused = world.ask("x")
    assert refused.rule == "rate"


def test_a_late_question_is_refused_rather_than_answered_in_vain() -> None:
    world = World(waited=0.1)
    assert world.ask("a", waited=0.05).verdict == ADMIT
    late = world.ask("b", waited=0.2)
    assert (late.verdict, late.rule, late.code) == (REFUSE, "waited", 503)
    assert world.ask("c", waited=0.2, to="urn", ruri="urn:service:sos").verdict == ADMIT


def test_a_drained_trunk_refuses_until_it_is_resumed() -> None:
    world = World(calls(10))
    world.admission.standing.drain("trunk", "acme", world.now, world.at)
    drained = world.ask("a")
    assert (drained.verdict, drained.code, drained.rule) == (REFUSE, 503, "drain")
    assert world.ask("b", BETA).verdict == ADMIT
    assert world.admission.standing.resume("trunk", "acme", world.now, world.at) == 1
    assert world.ask("c").verdict == ADMIT
    states = [row for row in world.admission.records() if isinstance(row, StateRecord)]
    assert [(row.rule, row.state, row.by) for row in states] == [
        ("drain", "closed", "operator"),
        ("drain", "open", "operator"),
    ]


def test_what_a_proxy_calls_itself_is_a_label_only_if_it_is_configured() -> None:
    world = World(calls(1, node="edge"))
    world.ask("a", node="edge")
    assert world.ask("b", node="edge").verdict == REFUSE
    assert world.ask("c", node="forged").verdict == ADMIT
    assert ("node", "forged") not in world.leases.active


def test_a_refusal_that_a_switch_made_itself_is_stored_under_its_rule() -> None:
    world = World(calls(7, trunk="acme"))
    record = refused_record('SIP;cause=486;text="cac full"')
    world.admission.receive_refused(record, world.at)
    (row,) = world.rows()
    assert (row.way, row.rule, row.scope_value, row.threshold) == ("pushed", "full", "acme", 7.0)
    assert world.admission.decisions["full", REFUSE, "pushed"] == 1


@pytest.mark.parametrize("reason", ['SIP;cause=486;text="cac forged"', "SIP;cause=486", None])
def test_a_rule_that_only_the_network_knows_is_no_label(reason: str | None) -> None:
    world = World(calls(7))
    world.admission.receive_refused(refused_record(reason), world.at)
    assert world.rows()[0].rule == "other"


@pytest.mark.parametrize("name", ["drain", "waited", "alone", "fail-closed"])
def test_refusals_that_no_rule_made_have_names_of_their_own(name: str) -> None:
    world = World()
    world.admission.receive_refused(refused_record(f'SIP;cause=486;text="cac {name}: x"'), world.at)
    (row,) = world.rows()
    assert (row.rule, row.measure, row.way) == (name, None, "pushed")


def test_a_refusal_that_was_asked_about_is_stored_once() -> None:
    world = World(calls(1))
    world.ask("x")
    world.ask("a")
    world.admission.receive_refused(refused_record('SIP;cause=486;text="cac full"'), world.at)
    assert [row.way for row in world.rows()] == ["http"]


def test_explaining_changes_nothing() -> None:
    world = World(calls(1))
    cohort = Cohort(trunk="acme")
    assert world.admission.explain(cohort, world.now)["decision"]["verdict"] == ADMIT
    assert len(world.leases) == 0
    world.ask("a")
    said = world.admission.explain(cohort, world.now)
    assert (said["decision"]["verdict"], said["decision"]["rule"]) == (REFUSE, "full")
    assert said["rules"][0]["objects"]
    assert world.rows() == []


def test_one_call_id_cannot_hold_more_calls_than_are_counted() -> None:
    world = World(calls(1000), emergency=("112",))
    verdicts = [world.ask("same", from_tag=str(i)).verdict for i in range(MAX_SAME + 2)]
    assert verdicts.count(ADMIT) == MAX_SAME == world.leases.active[GLOBAL, ""]
    refused = world.ask("same", from_tag="x")
    assert (refused.rule, refused.code) == ("crowded", 482)
    assert world.ask("same", from_tag="sos", to="112").verdict == ADMIT


def test_released_calls_make_room_where_nobody_mirrors() -> None:
    world = World(calls(1))
    world.ask("a")
    assert world.admission.release("a", world.now, world.at) == 1
    assert world.ask("b").verdict == ADMIT


def refused_record(reason: str | None) -> CallRecord:
    return CallRecord(
        call_id="a",
        from_tag="t",
        received_at=US,
        started_at=US,
        final_code=486,
        final_origin="admission",
        reason=reason,
        trunk="acme",
        tenant="other",
        direction="inbound",
        region="other",
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "see", "end", "wait", "lose"]),
            st.integers(0, 12),
            st.sampled_from([ACME, BETA]),
        ),
        max_size=80,
    ),
    st.integers(1, 5),
)
def test_a_capacity_is_never_exceeded_by_those_who_ask(
    steps: list[tuple[str, int, str]], limit: int
) -> None:
    world = World(calls(limit), calls(2, trunk="acme", name="acme"))
    admitted: dict[str, str] = {}
    for what, number, source in steps:
        call_id = f"{number}-{source}"
        if what == "ask":
            decision = world.ask(call_id, source)
            if decision.verdict == ADMIT and call_id not in admitted:
                admitted[call_id] = source
        elif what == "see" and call_id in admitted:
            world.see(call_id, "answered", source)
        elif what == "end" and call_id in admitted:
            world.see(call_id, None, source)
            del admitted[call_id]
        elif what == "lose" and call_id in admitted:
            # it never came: its lease ends by itself
            if call_id not in world.live:
                world.pass_time(6)
                admitted = {c: s for c, s in admitted.items() if c in world.live}
        elif what == "wait":
            world.pass_time(0.5)
        held = [c for c in admitted if c in world.live]
        assert len(held) <= limit
        assert sum(admitted[c] == ACME for c in held) <= 2
        assert world.leases.active[GLOBAL, ""] >= len(held)


@pytest.mark.parametrize(
    ("way", "word", "trunk"),
    [
        ("evapi", "beta", "beta"),
        ("evapi", "forged", "acme"),
        ("evapi", "", "acme"),
        ("http", "beta", "acme"),  # there any caller's header could stand in the question
    ],
)
def test_whose_a_call_is_kamailio_s_script_can_say_in_words_of_the_configuration(
    way: str, word: str, trunk: str
) -> None:
    world = World(calls(0, trunk=trunk))
    headers = {"sidecar-trunk": word, "sidecar-tenant": "two", "sidecar-node": "edge"}
    ask = Ask(call_id="a", way=way, sighted=Sighted(src_ip=ACME, headers=headers))
    decision = world.admission.ask(ask, world.now, world.at)
    assert decision.verdict == REFUSE
    assert decision.cohort.trunk == trunk
    assert decision.cohort.direction == "inbound"
    assert decision.cohort.tenant == ("two" if way == "evapi" else "other")
    assert decision.cohort.node == "other"


def test_of_calls_that_ring_no_share_says_that_they_failed() -> None:
    """A trunk with many calls: the first that are known of are those that were refused at once."""
    rule = Rule(name="asr", measure="asr_percent", limit=30, trunk="acme")
    for ringing, verdict in ((0, REFUSE), (60, ADMIT)):
        world = World(rule)
        for number in range(40):
            call = CallRecord(
                call_id=f"f{number}", from_tag="t", received_at=US, started_at=US,
                final_code=404, trunk="acme", seizure=True,
            )  # fmt: skip
            world.windows.receive_setup(Setup(call, ()), world.now)
        for number in range(ringing):
            world.see(f"r{number}", "ringing")
        world.pass_time(5)
        assert world.ask("a").verdict == verdict
