"""How rules stand to what a switch must know to decide by itself."""

import math
from collections.abc import Iterator

from sipsidecar.calls.events import Cohort
from sipsidecar.signals.bucket import DEFAULT_BURST
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import DRAIN, OVERFLOW, REFUSE, Denial, RateLimit
from sipsidecar.signals.rules import GLOBAL, Rule
from sipsidecar.signals.standing import DRAIN_CODE, Standing

Key = tuple[str, str]
"""Scope and value."""


def denials(
    standing: Standing, cohorts: Cohorts, now: float
) -> tuple[list[Denial], list[RateLimit]]:
    """What is refused now, one denial a key: the strongest; and the rates that hold always."""
    found: dict[Key, Denial] = {
        (scope, value): Denial(
            scope=scope, scope_value=value, code=DRAIN_CODE, reason=f"cac {DRAIN}", rule=DRAIN
        )
        for scope, value in standing.drains
    }
    limits: list[RateLimit] = []
    for rule, value in standing.places:
        if rule.outcome == "shadow":
            continue
        if rule.measure == "calls_per_second":
            limits.append(_rate(rule, value))
            continue
        for key, percent in _denied(standing, cohorts, rule, value, now):
            known = found.get(key)
            if percent and (known is None or known.percent < percent):
                found[key] = _denial(rule, *key, percent)
    return list(found.values()), limits


def caps(standing: Standing) -> dict[Key, tuple[int, str]]:
    """Hard capacities by scope and value, for switches that count by themselves, and whose they are.

    Of two rules about one key the lower holds.
    """
    found: dict[Key, tuple[int, str]] = {}
    for rule, value in standing.places:
        # A switch's own cap refuses: one that overflows is told as a denial, with its route.
        if rule.measure == "calls" and rule.outcome == "refuse":
            room = int(rule.threshold) - standing.reserve(rule.threshold)
            known = found.get((rule.scope, value))
            if known is None or room < known[0]:
                found[rule.scope, value] = room, rule.name
    return found


def _denied(
    standing: Standing, cohorts: Cohorts, rule: Rule, value: str, now: float
) -> Iterator[tuple[Key, int]]:
    """Keys that a rule closes, and for how many of a hundred calls."""
    gate = standing.gate(rule, value)
    if gate is not None:
        yield (rule.scope, value), math.ceil(round(100 * (1 - gate.share(now)), 6))
        return
    guaranteed = set(standing.guarantees()) if rule.scope == GLOBAL else set()
    if not guaranteed:
        if standing.is_full(rule, value):
            yield (rule.scope, value), 100
        return
    # Who has a guarantee left gets in where others do not: no key for all, but one for each.
    unused = standing.unused_guarantees()
    for scope in {scope for scope, _ in guaranteed}:
        for of in cohorts.values(scope):
            cohort = Cohort()._replace(**{scope: of})
            if not standing.has_room(rule, value, cohort, unused=unused):
                yield (scope, of), 100


def _denial(rule: Rule, scope: str, value: str, percent: int) -> Denial:
    return Denial(
        scope=scope,
        scope_value=value,
        verdict=OVERFLOW if rule.outcome == "overflow" else REFUSE,
        code=rule.code,
        reason=rule.text,
        rule=rule.name,
        route=rule.route,
        percent=percent,
    )


def _rate(rule: Rule, value: str) -> RateLimit:
    # A switch counts whole calls in whole seconds.
    return RateLimit(
        scope=rule.scope,
        scope_value=value,
        limit=max(1, math.floor(rule.threshold)),
        rate=rule.threshold,
        burst=DEFAULT_BURST if rule.burst is None else rule.burst,
        code=rule.code,
        reason=rule.text,
        rule=rule.name,
    )
