"""Somebody who decides about calls, simple enough to be believed."""

from typing import Any

import msgspec

from sipsidecar.calls.events import Cohort, Sighted
from sipsidecar.signals.decisions import Ask, Decision
from sipsidecar.signals.rules import RuleError

TRUNKS = {"192.0.2.4": "acme", "192.0.2.5": "beta"}
"""By source address."""
RULE = "per-trunk"


class Desk:
    """Admits so many calls of each trunk, and holds its own state."""

    def __init__(self, limit: float = 2.0) -> None:
        self.limits: dict[str, float] = {RULE: limit}
        self.held: dict[tuple[str, str], str] = {}
        """Trunk by Call-ID and From tag."""
        self.drained: set[tuple[str, str]] = set()
        self.asked: list[Ask] = []
        self.signals: dict[str, tuple[float, float]] = {}
        self.route = ""
        """Of an overflow, instead of a refusal."""
        self.more: dict[str, Any] = {}
        """What else its status says."""

    def ask(self, ask: Ask) -> Decision:
        self.asked.append(ask)
        found = self.look(ask.sighted)
        key = ask.call_id, ask.from_tag
        if key in self.held:
            return msgspec.structs.replace(found, verdict="admit", repeated=True)
        if ask.in_dialog:
            return Decision(verdict="admit", exempt="in-dialog")
        if found.verdict == "admit":
            self.held[key] = found.cohort.trunk
        return found

    def look(self, sighted: Sighted) -> Decision:
        return self.judge(Cohort(trunk=TRUNKS.get(sighted.src_ip or "", "other")))

    def judge(self, cohort: Cohort) -> Decision:
        active, limit = self.active(cohort.trunk), self.limits[RULE]
        drained = {("global", ""), ("trunk", cohort.trunk)} & self.drained
        if not drained and active < limit:
            return Decision(verdict="admit", cohort=cohort)
        rule = "drain" if drained else RULE
        return Decision(
            verdict="overflow" if self.route else "refuse",
            code=None if self.route else 486,
            reason="" if self.route else f'cac {rule}: a "full" trunk',
            rule=rule, route=self.route, scope="trunk", scope_value=cohort.trunk,
            value=float(active), threshold=limit, cohort=cohort,
        )  # fmt: skip

    def active(self, trunk: str) -> int:
        return sum(one == trunk for one in self.held.values())

    def release(self, call_id: str) -> int:
        gone = [key for key in self.held if key[0] == call_id]
        for key in gone:
            del self.held[key]
        return len(gone)

    def rule_of(self, trunk: str) -> dict[str, Any]:
        active, limit = self.active(trunk), self.limits[RULE]
        return {
            "rule": RULE, "measure": "calls", "which": None, "scope": "trunk", "scope_value": trunk,
            "state": "limiting" if active >= limit else "open", "since_seconds": 90.0,
            "value": float(active), "threshold": limit, "outcome": "refuse",
            "reason": f"{active} of {limit:g} calls",
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        return {
            "rules": [self.rule_of(trunk) for trunk in TRUNKS.values()],
            "leases": {"held": len(self.held), "pending": 1, "ended": {"over": 3}},
            "drains": [
                {"scope": scope, "scope_value": value, "seconds": 7200.0}
                for scope, value in sorted(self.drained)
            ],
        } | self.more

    def explain(self, sighted: Sighted) -> dict[str, Any]:
        decision = self.look(sighted)
        return self.shown(decision) | {"matched": {"trunk": 0, "tenant": None}}

    def explain_cohort(self, values: dict[str, str]) -> dict[str, Any]:
        self.check("trunk", values.get("trunk", "other"))
        return self.shown(self.judge(Cohort(**values)))

    def shown(self, decision: Decision) -> dict[str, Any]:
        fields = {**msgspec.structs.asdict(decision), "cohort": decision.cohort._asdict()}
        word = self.rule_of(decision.cohort.trunk) | {"objects": decision.rule == RULE}
        return {"decision": fields, "rules": [word]}

    def check(self, scope: str, value: str) -> None:
        if scope == "trunk" and value not in {*TRUNKS.values(), "other"}:
            raise LookupError(f"no trunk is named {value!r}")

    def drain(self, scope: str, value: str) -> None:
        self.check(scope, value)
        self.drained.add((scope, value))

    def resume(self, scope: str, value: str) -> int:
        self.check(scope, value)
        was = len(self.drained)
        self.drained.discard((scope, value))
        return was - len(self.drained)

    def set_limit(self, rule: str, limit: float) -> dict[str, Any]:
        if rule not in self.limits:
            raise LookupError(f"no rule is named {rule!r}")
        if limit < 0:
            raise RuleError(f"rule {rule!r}: limit: expected a number from 0 on")
        self.limits[rule] = limit
        return {"rule": rule, "measure": "calls", "limit": limit}

    def signal(self, name: str, value: float, ttl_seconds: float) -> bool:
        self.signals[name] = value, ttl_seconds
        return name != "nobody"
