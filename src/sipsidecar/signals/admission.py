"""May this call begin? The rules over what is live, what was measured and what is healthy.

Pure, in memory: a question costs microseconds and waits for nobody.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from sipsidecar.calls.events import CallRecord, Cohort, Move
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import (
    ADMIT,
    CROWDED,
    DRAIN,
    LOCAL_RULES,
    OTHER_RULE,
    REFUSE,
    WAITED,
    AdmissionRecord,
    Ask,
    Decision,
    StateRecord,
)
from sipsidecar.signals.exemptions import Exemptions
from sipsidecar.signals.health import Reading
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Lease, Leases
from sipsidecar.signals.refusals import Refusals
from sipsidecar.signals.rules import GLOBAL, SCOPES, Rule
from sipsidecar.signals.standing import Objection, Standing

MAX_ROWS = 20_000
"""Rows that wait to be drained; more are counted."""
WORDS = ("trunk", "tenant", "direction", "region")
"""Scopes that Kamailio's script can say of a call, as `$avp(sidecar_trunk)` and its like."""
WAITED_CODE = 503
CROWDED_CODE = 482
"""As a proxy that sees a request come round again (RFC 3261 8.2.2.2)."""

_OURS = re.compile(r"\bcac ([A-Za-z0-9_.-]{1,64})")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator configures of admission."""

    rules: tuple[Rule, ...] = ()
    emergency: tuple[str, ...] = ()
    priority_callers: tuple[str, ...] = ()
    priority_networks: tuple[str, ...] = ()
    reserve_percent: float = 5.0
    waited: float = 0.0
    """Seconds; an older request is refused. 0: none."""


class Admission:
    """Every question and every call that holds capacity, before the rules as they stand."""

    def __init__(self, policy: Policy, cohorts: Cohorts, windows: Windows, leases: Leases) -> None:
        self._cohorts = cohorts
        self._words = {scope: frozenset(cohorts.values(scope)) for scope in SCOPES}
        self._windows = windows
        self.leases = leases
        """Who holds capacity."""
        self.standing = Standing(cohorts, windows, leases)
        """How each rule stands."""
        self._refusals = Refusals()
        self._rows: list[AdmissionRecord] = []
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        """By rule (empty: none objected), verdict and way; a shadow rule's word is `shadow`."""
        self.exempted: Counter[str] = Counter()
        """Requests that are never refused, by why."""
        self.repeated = 0
        """Questions that were answered before."""
        self.too_late = 0
        """Refused calls that rang or were answered all the same."""
        self._rows_lost = 0
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Put a policy in force; rules that are as they were keep their state."""
        self._waited = policy.waited
        self._exemptions = Exemptions(
            policy.emergency, policy.priority_callers, policy.priority_networks
        )
        self.standing.use(policy.rules, policy.reserve_percent)

    @property
    def rows_lost(self) -> int:
        """Rows over their cap."""
        return self._rows_lost + self.standing.rows_lost

    # -- questions

    def ask(self, ask: Ask, now: float, received_at: int, cohort: Cohort | None = None) -> Decision:
        """Answer one question; an admission takes its place at once.

        The cohort may be known already, as in a rehearsal.
        """
        exempt = self._exemptions.of(ask)
        if exempt in ("cancel", "in-dialog"):
            self.exempted[exempt] += 1
            return Decision(verdict=ADMIT, exempt=exempt)
        again = self._refusals.answer(ask, now)
        if again is not None and exempt is None:
            self.repeated += 1
            return msgspec.structs.replace(again, repeated=True)
        cohort = cohort if cohort is not None else self._cohort(ask)
        if self.leases.holds(ask.call_id, ask.from_tag, ask.cseq, now):
            self.repeated += 1
            return Decision(verdict=ADMIT, cohort=cohort, exempt=exempt, repeated=True)
        # HEP of its INVITE may have been faster than the question: it must not stand in its own way.
        own = self.leases.own(ask.call_id)
        enforced, shadow = self._objections(ask, cohort, now, exempt, own)
        decision = _decision(enforced, shadow, cohort, exempt)
        self._count(decision, ask.way)
        if decision.verdict == ADMIT:
            self._refusals.admitted(ask)
            self.leases.admit(
                ask.call_id, ask.from_tag, ask.cseq, cohort, now, exempt=exempt is not None
            )
            self.standing.take(cohort, now)
        else:
            self._refusals.remember(ask, decision, now)
            self.leases.refuse(ask.call_id, now)
        stands = enforced or next(iter(shadow), None)
        if stands is not None:
            self._keep(_row(ask, decision, stands, received_at))
        self.standing.look_at_capacities(now, received_at)
        return decision

    def _objections(
        self, ask: Ask, cohort: Cohort, now: float, exempt: str | None, own: Lease | None
    ) -> tuple[Objection | None, list[Objection]]:
        """The objection that counts, and those of shadow rules."""
        if own is not None and own.passed:
            # It rings already: whoever asks did not wait, and a refusal would only hide it.
            return None, []
        enforced, shadow = self.standing.objections(
            cohort, now, priority=exempt is not None, own=own.cohort if own is not None else None
        )
        if exempt is None and self._waited and ask.waited > self._waited:
            enforced = _own(WAITED, WAITED_CODE, round(ask.waited, 3), self._waited)
        if exempt is None and self.leases.is_crowded(ask.call_id):
            # Attack: all calls of one caller under one Call-ID, of which only some would count.
            enforced = _own(CROWDED, CROWDED_CODE)
        return enforced, shadow

    def explain(self, cohort: Cohort, now: float) -> dict[str, Any]:
        """What would be decided about an ordinary call of a cohort now, and each rule's word on it."""
        enforced, shadow, words = self.standing.trial(cohort, now)
        decision = _decision(enforced, shadow, cohort, None)
        return {
            "decision": {**msgspec.structs.asdict(decision), "cohort": cohort._asdict()},
            "rules": words,
        }

    def _cohort(self, ask: Ask) -> Cohort:
        cohort = self._cohorts.of(ask.sighted)
        if ask.way == "evapi":
            # The script's own words, in names that no caller's header has there. Of a question only the
            # hop to the proxy is known: without them the trunk that a call goes out by is not.
            said = {scope: ask.sighted.headers.get(f"sidecar-{scope}", "") for scope in WORDS}
            cohort = cohort._replace(
                **{scope: value for scope, value in said.items() if value in self._words[scope]}
            )
        return cohort._replace(node=ask.node) if self.standing.knows_node(ask.node) else cohort

    def _count(self, decision: Decision, way: str) -> None:
        if decision.exempt is not None:
            self.exempted[decision.exempt] += 1
        for name in decision.shadow:
            self.decisions[name, "shadow", way] += 1
        rule = decision.rule if decision.verdict != ADMIT else ""
        self.decisions[rule, decision.verdict, way] += 1

    # -- what happens to calls

    def receive_moves(self, moves: Iterable[Move], now: float, received_at: int) -> None:
        """What became live, changed or ended, as HEP and ESL show it."""
        for move in moves:
            self._windows.receive_move(move)
            call_id, state, cohort = move
            if state is None:
                self._refusals.over(call_id, now)
                self.leases.over(call_id, now)
            # A call that went to a fallback holds nothing of what refused it.
            elif not self._refusals.is_elsewhere(call_id):
                if state != "trying" and self._refusals.disproved(call_id):
                    self.too_late += 1
                self.leases.see(call_id, state, cohort, now)
        self.standing.look_at_capacities(now, received_at)

    def release(self, call_id: str, now: float, received_at: int) -> int:
        """The asker says that a call is over; returns how many leases it held."""
        self._refusals.over(call_id, now)
        released = self.leases.over(call_id, now, "released")
        self.standing.look_at_capacities(now, received_at)
        return released

    def receive_refused(self, record: CallRecord, received_at: int) -> None:
        """A call that HEP shows to be refused by this product: stored, unless it was asked about."""
        if record.call_id in self._refusals:
            return
        found = _OURS.search(record.reason or "")
        name = found[1] if found else OTHER_RULE
        rule = self.standing.rule(name)
        if rule is None and name not in (DRAIN, WAITED, CROWDED, *LOCAL_RULES):
            name = OTHER_RULE  # what the network says labels rows and metrics only if it is ours
        self.decisions[name, REFUSE, "pushed"] += 1
        labels = {scope: getattr(record, scope) for scope in SCOPES if scope != "node"}
        row = AdmissionRecord(
            call_id=record.call_id,
            from_tag=record.from_tag,
            received_at=received_at,
            way="pushed",
            verdict=REFUSE,
            rule=name,
            code=record.final_code,
            reason=f"cac {name}",
            **labels,
        )
        if rule is not None:
            value = labels.get(rule.scope) or ""
            row = msgspec.structs.replace(
                row,
                measure=rule.measure,
                scope=rule.scope,
                scope_value=value,
                value=self.standing.reading(rule, value)[0],
                threshold=rule.threshold,
                reason=rule.text,
            )
        self._keep(row)

    def is_elsewhere(self, call_id: str) -> bool:
        """Whether a call was sent to a fallback: it says nothing of what refused it."""
        return self._refusals.is_elsewhere(call_id)

    # -- time

    def receive_readings(
        self, readings: Mapping[Reading, float | None], now: float, received_at: int
    ) -> None:
        """One reading a second of all that is measured: every gate looks."""
        self.standing.receive_readings(readings, now, received_at)

    def handle_timer(self, now: float, received_at: int) -> None:
        """End leases that are due, and see which capacities are free again."""
        self.leases.handle_timer(now)
        self._refusals.handle_timer(now)
        self.standing.look_at_capacities(now, received_at, everywhere=True)

    # -- rows

    def records(self) -> list[AdmissionRecord | StateRecord]:
        """Rows since the last time; drains."""
        drained: list[AdmissionRecord | StateRecord] = [*self.standing.records(), *self._rows]
        self._rows = []
        return drained

    def _keep(self, row: AdmissionRecord) -> None:
        if len(self._rows) < MAX_ROWS:
            self._rows.append(row)
        else:
            self._rows_lost += 1


def _decision(
    enforced: Objection | None, shadow: Sequence[Objection], cohort: Cohort, exempt: str | None
) -> Decision:
    """The first objection that counts, as an answer; whoever is exempt is let in over it."""
    stands = enforced or next(iter(shadow), None)
    if stands is None:
        return Decision(verdict=ADMIT, cohort=cohort, exempt=exempt)
    decision = Decision(
        verdict=ADMIT,
        rule=stands.name,
        scope=stands.scope,
        scope_value=stands.value,
        value=stands.reading,
        threshold=stands.threshold,
        cohort=cohort,
        shadow=tuple(one.name for one in shadow),
        exempt=exempt,
    )
    if enforced is None or exempt is not None:
        return decision
    return msgspec.structs.replace(
        decision,
        verdict=enforced.verdict,
        code=enforced.code if enforced.verdict == REFUSE else None,
        reason=enforced.text,
        route=enforced.route,
    )


def _own(
    name: str, code: int, reading: float | None = None, limit: float | None = None
) -> Objection:
    """An objection of no rule that somebody configured."""
    return Objection(None, name, GLOBAL, "", reading, limit, code, REFUSE, "", f"cac {name}")


def _row(ask: Ask, decision: Decision, stands: Objection, received_at: int) -> AdmissionRecord:
    return AdmissionRecord(
        call_id=ask.call_id,
        from_tag=ask.from_tag,
        received_at=received_at,
        way=ask.way,
        verdict=decision.verdict,
        rule=stands.name,
        measure=stands.rule.measure if stands.rule is not None else None,
        scope=stands.scope,
        scope_value=stands.value,
        value=stands.reading,
        threshold=stands.threshold,
        code=decision.code,
        reason=stands.text,
        route=decision.route,
        shadow=decision.shadow,
        exempt=decision.exempt,
        **{scope: getattr(decision.cohort, scope) for scope in SCOPES},
    )
