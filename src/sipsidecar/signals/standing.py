"""How each rule stands: what it measures, whether it objects, and what switches must know of it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from sipsidecar.calls.events import Cohort
from sipsidecar.signals.bucket import Bucket
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import (
    CLOSED,
    DRAIN,
    LIMITING,
    OPEN,
    OVERFLOW,
    RAMPING,
    REFUSE,
    StateRecord,
)
from sipsidecar.signals.gates import Gate
from sipsidecar.signals.health import Reading
from sipsidecar.signals.kpi import Key, Windows
from sipsidecar.signals.leases import Leases
from sipsidecar.signals.rules import EACH, GLOBAL, SCOPES, Rule, check_limits

DRAIN_CODE = 503
"""So that a carrier takes another way at once; without Retry-After, which would stop all it sends."""
MAX_KNOWN = 4096
"""Cohorts whose rules are remembered."""
MEDIA = ("mos", "loss_percent")
"""Measures that are known of a call when it ends, not when its setup does."""
MAX_ROWS = 20_000
"""Changes of state that wait to be drained; more are counted."""
_UNITS = {"percent": " %", "ms": " ms", "second": "/s"}


class Place(NamedTuple):
    """One rule for one value of its scope."""

    rule: str
    value: str


class _Capacity:
    """How full one capacity is, for one value of its scope."""

    __slots__ = ("blocked", "noted", "quiet_at", "since", "state")

    def __init__(self) -> None:
        self.blocked = False
        """Ordinary calls are refused now."""
        self.state = OPEN
        self.since: float | None = None
        self.quiet_at = 0.0
        """Last time that it was full, or refused somebody."""
        self.noted = False
        """It is over its notify mark."""


class Objection(NamedTuple):
    """What one rule says against one call."""

    rule: Rule | None
    """None of a drain."""
    name: str
    scope: str
    value: str
    reading: float | None
    threshold: float | None
    code: int
    verdict: str
    route: str
    text: str
    """For the Reason header."""


class Standing:
    """Every rule for every value of its scope, and what an operator drained.

    Three kinds of rules object in three ways. A capacity is full or not, exactly, at the moment of
    the question. A figure of quality or health closes a `Gate`, which lets calls in again by a
    ramp. A drain stands above all. What is not known objects to nothing.
    """

    def __init__(self, cohorts: Cohorts, windows: Windows, leases: Leases) -> None:
        self._cohorts = cohorts
        self._windows = windows
        self._leases = leases
        self._rules: dict[str, Rule] = {}
        self._reserve_percent = 0.0
        self.places: tuple[tuple[Rule, str], ...] = ()
        """Each rule with each value that it is about."""
        self._known: dict[Cohort, tuple[tuple[Rule, str], ...]] = {}
        self._counted: dict[tuple[str, str], list[tuple[Rule, str]]] = {}
        self._enforced: dict[tuple[str, str], list[tuple[Rule, str]]] = {}
        """By scope and value, but those of shadow rules."""
        self._guarantees: tuple[tuple[Rule, str], ...] = ()
        self._guaranteed: dict[tuple[str, str], list[Rule]] = {}
        self._nodes: frozenset[str] = frozenset()
        self._drains: dict[tuple[str, str], float] = {}
        self._gates: dict[Place, Gate] = {}
        self._closed_at: dict[Place, float | None] = {}
        """What a gate closed at: it stands under that while no call passes that could tell more."""
        self._buckets: dict[Place, Bucket] = {}
        self._capacities: dict[Place, _Capacity] = {}
        self._rows: list[StateRecord] = []
        self.rows_lost = 0
        self.changed = True
        """What switches must know may be another than when `denials` was read last."""

    def use(self, rules: tuple[Rule, ...], reserve_percent: float) -> None:
        """Put rules in force; those that are as they were keep their state."""
        kept = {rule.name for rule in rules if self._rules.get(rule.name) == rule}
        for places in (self._gates, self._closed_at, self._buckets, self._capacities):
            for place in [place for place in places if place.rule not in kept]:
                del places[place]
        self._rules = {rule.name: rule for rule in rules}
        self._reserve_percent = reserve_percent
        self.places = tuple(
            (rule, value)
            for rule in rules
            for value in (self._cohorts.values(rule.scope) if rule.value == EACH else (rule.value,))
        )
        self._nodes = frozenset(
            {*self._cohorts.values("node"), *(rule.node for rule in rules if rule.value != EACH)}
            - {""}
        )
        self._guarantees = tuple(
            (rule, value)
            for rule, value in self.places
            if rule.guaranteed and rule.outcome != "shadow"
        )
        self._guaranteed = {}
        for rule, value in self._guarantees:
            self._guaranteed.setdefault((rule.scope, value), []).append(rule)
        self._counted, self._known, self._enforced = {}, {}, {}
        for rule, value in self.places:
            place = Place(rule.name, value)
            if rule.outcome != "shadow":
                self._enforced.setdefault((rule.scope, value), []).append((rule, value))
            if rule.kind != "capacity":
                self._gates.setdefault(place, Gate(rule))
                continue
            self._counted.setdefault((rule.scope, value), []).append((rule, value))
            if place not in self._capacities:
                one = self._capacities[place] = _Capacity()
                limit = int(rule.threshold)
                # So that what switches are told until the next look is true.
                one.blocked = rule.measure == "calls" and (
                    self._leases.active[rule.scope, value] >= limit - self.reserve(limit)
                )
            if rule.measure == "calls_per_second":
                self._buckets.setdefault(place, Bucket(rule.threshold, rule.burst))
        self.changed = True

    def rule(self, name: str) -> Rule | None:
        """The rule of this name."""
        return self._rules.get(name)

    def knows_node(self, name: str) -> bool:
        """Whether a proxy's name is configured: what one calls itself is no label."""
        return name in self._nodes

    def gate(self, rule: Rule, value: str) -> Gate | None:
        """The gate of a rule about quality or health."""
        return self._gates.get(Place(rule.name, value))

    def is_full(self, rule: Rule, value: str) -> bool:
        """Whether a capacity takes no ordinary call now."""
        return self._capacities[Place(rule.name, value)].blocked

    def guarantees(self) -> Iterator[tuple[str, str]]:
        """Scopes and values that have a guaranteed share."""
        yield from ((rule.scope, value) for rule, value in self._guarantees)

    def reserve(self, limit: float) -> int:
        """How much of a capacity is kept for calls that are never refused; one is always left."""
        share = self._reserve_percent
        if not share:
            return 0
        return max(0, min(int(limit) - 1, max(1, math.ceil(limit * share / 100))))

    # -- questions

    def _of(self, cohort: Cohort) -> tuple[tuple[Rule, str], ...]:
        """The rules that are about a cohort, each with the value that it then has."""
        found = self._known.get(cohort)
        if found is None:
            found = tuple(
                (rule, value)
                for rule, value in self.places
                if rule.scope == GLOBAL or getattr(cohort, rule.scope) == value
            )
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[cohort] = found
        return found

    def objections(
        self, cohort: Cohort, now: float, *, priority: bool, own: Cohort | None = None
    ) -> tuple[Objection | None, list[Objection]]:
        """The first objection that counts, and those of shadow rules.

        `own`: the call stands in the counts already, under this cohort.
        """
        shadow: list[Objection] = []
        for scope, value in scopes_of(cohort):
            if (scope, value) in self._drains:
                return _drained(scope, value), shadow
        enforced: Objection | None = None
        for rule, value in self._of(cohort):
            if enforced is not None and rule.outcome != "shadow":
                continue
            objection = self._objection(rule, value, cohort, now, priority=priority, own=own)
            if objection is None:
                continue
            if rule.outcome == "shadow":
                shadow.append(objection)
            else:
                enforced = objection
        return enforced, shadow

    def _objection(
        self,
        rule: Rule,
        value: str,
        cohort: Cohort,
        now: float,
        *,
        priority: bool,
        own: Cohort | None = None,
        trial: bool = False,
    ) -> Objection | None:
        """What one rule says against a call; a `trial` is no call and takes no turn in a ramp."""
        place = Place(rule.name, value)
        if rule.measure == "calls":
            if self.has_room(rule, value, cohort, priority=priority, own=own):
                return None
            return _objects(rule, value, float(self._active(rule.scope, value, own)))
        if rule.measure == "calls_per_second":
            bucket = self._buckets[place]
            if bucket.admits(now, priority=priority):
                return None
            if not trial:
                self._capacities[place].quiet_at = now
            return _objects(rule, value, round(bucket.level(now), 3))
        gate = self._gates[place]
        share = gate.share(now)
        if share >= 1 or (share > 0 and (trial or gate.admits(now))):
            return None
        return _objects(rule, value, self._value_of(place, gate))

    def has_room(
        self,
        rule: Rule,
        value: str,
        cohort: Cohort,
        *,
        priority: bool = False,
        own: Cohort | None = None,
        unused: int | None = None,
    ) -> bool:
        """Whether one more call of the cohort fits into a capacity.

        `unused`: what `unused_guarantees` gives now, for who asks about many cohorts.
        """
        active = self._active(rule.scope, value, own)
        limit = int(rule.threshold)
        room = limit if priority else limit - self.reserve(limit)
        if rule.resume is not None and self._capacities[Place(rule.name, value)].blocked:
            room = min(room, int(rule.resume) + 1)
        if rule.scope != GLOBAL or not self._guarantees or active >= room:
            return active < room
        # What is guaranteed to others and not used by them is taken, but for whom it is guaranteed to.
        for scope, of in scopes_of(cohort):
            for one in self._guaranteed.get((scope, of), ()):
                if one.guaranteed > self._active(scope, of, own):
                    return True
        return active + (self.unused_guarantees(own) if unused is None else unused) < room

    def unused_guarantees(self, own: Cohort | None = None) -> int:
        """How many calls are guaranteed to somebody and not there."""
        return sum(
            max(0, rule.guaranteed - self._active(rule.scope, value, own))
            for rule, value in self._guarantees
        )

    def _active(self, scope: str, value: str, own: Cohort | None) -> int:
        """Calls that hold capacity, but for the one that asks."""
        active = self._leases.active[scope, value]
        if own is not None and (scope == GLOBAL or getattr(own, scope) == value):
            return active - 1
        return active

    def take(self, cohort: Cohort, now: float) -> None:
        """A call of the cohort is let in."""
        for rule, value in self._of(cohort):
            if rule.measure == "calls_per_second":
                self._buckets[Place(rule.name, value)].take(now)

    def trial(
        self, cohort: Cohort, now: float
    ) -> tuple[Objection | None, list[Objection], list[dict[str, Any]]]:
        """The objections to an ordinary call of a cohort, which is none, and each rule's word on it."""
        words: list[dict[str, Any]] = []
        shadow: list[Objection] = []
        enforced = next(
            (_drained(*pair) for pair in scopes_of(cohort) if pair in self._drains), None
        )
        for rule, value in self._of(cohort):
            objection = self._objection(rule, value, cohort, now, priority=False, trial=True)
            words.append(self._status(rule, value, now) | {"objects": objection is not None})
            if objection is not None and rule.outcome == "shadow":
                shadow.append(objection)
            else:
                enforced = enforced or objection
        return enforced, shadow, words

    # -- time

    def receive_readings(
        self, readings: Mapping[Reading, float | None], now: float, received_at: int
    ) -> None:
        """One reading a second of all that is measured: every gate looks."""
        for rule, value in self.places:
            place = Place(rule.name, value)
            gate = self._gates.get(place)
            if gate is None:
                continue
            before, share = gate.state, gate.share(now)
            if rule.kind == "quality":
                bad, good, reading = self._judged(rule, value, gate, now)
            else:
                reading = readings.get((rule.measure, rule.which))
                bad = None if reading is None else _past(rule, reading, rule.threshold)
                good = None if reading is None else not _past(rule, reading, rule.good)
            gate.sample(bad, good, reading, now)
            if gate.state != before:
                if gate.state == CLOSED:
                    self._closed_at[place] = gate.value
                self._say_state(rule, value, gate.state, before, gate.value, received_at)
            self.changed |= gate.share(now) != share

    def _judged(
        self, rule: Rule, value: str, gate: Gate, now: float
    ) -> tuple[bool | None, bool | None, float | None]:
        """A quality figure: surely bad, on its good side, and what it is."""
        # What was measured before it closed, or while it was closed, says nothing of now.
        since, seconds = gate.reopened_at, rule.window_seconds
        if gate.state == CLOSED:
            since = gate.since
            if rule.outcome != "shadow" and rule.measure not in MEDIA:
                # No call passes: what setups are still told of began before, and would keep it closed
                # for a whole window. (Of calls that were let in before, media is told for minutes; in
                # the ramp it would close it again.)
                seconds = min(seconds, rule.in_service_seconds)
        bad, reading, samples = self._windows.surely_bad(
            Key(rule.scope, value),
            rule.measure,
            rule.threshold,
            seconds,
            now,
            min_samples=rule.min_samples,
            since=since,
        )
        if reading is None or samples < rule.min_samples:
            return None, None, reading
        return bad, not _past(rule, reading, rule.good), reading

    def look_at_capacities(self, now: float, received_at: int, *, everywhere: bool = False) -> None:
        """Open or limiting, of those whose count changed; `everywhere` once a second."""
        changed = set(self._leases.changed())
        keys = self._counted if everywhere else changed & self._counted.keys()
        for rule, value in (place for key in keys for place in self._counted[key]):
            one = self._capacities[Place(rule.name, value)]
            if rule.measure == "calls":
                self._look_at_calls(rule, value, one, now, received_at)
            full = one.blocked or (
                rule.measure == "calls_per_second"
                and one.quiet_at > 0
                and now - one.quiet_at < rule.in_service_seconds
            )
            if full:
                one.quiet_at = now if one.blocked else one.quiet_at
                if one.state != LIMITING:
                    one.state, one.since = LIMITING, now
                    reading, _ = self.reading(rule, value)
                    self._say_state(rule, value, LIMITING, OPEN, reading, received_at)
            elif one.state == LIMITING and now - one.quiet_at >= rule.in_service_seconds:
                one.state, one.since = OPEN, now
                reading, _ = self.reading(rule, value)
                self._say_state(rule, value, OPEN, LIMITING, reading, received_at)

    def _look_at_calls(
        self, rule: Rule, value: str, one: _Capacity, now: float, received_at: int
    ) -> None:
        active = self._leases.active[rule.scope, value]
        limit = int(rule.threshold)
        full = limit - self.reserve(limit)
        free = int(rule.resume) if rule.resume is not None else full - 1
        blocked = active >= full or (one.blocked and active > free)
        if blocked != one.blocked:
            one.blocked = blocked
            one.quiet_at = now
            self.changed = True
        if rule.scope == GLOBAL or rule.guaranteed:
            self.changed |= bool(self._guarantees)
        if rule.notify is not None and (active >= rule.notify) != one.noted:
            if one.noted and active > rule.notify - max(1, self.reserve(limit)):
                return  # not at every call around the mark
            one.noted = active >= rule.notify
            side = "at" if one.noted else "under"
            self._say_state(
                rule, value, one.state, one.state, float(active), received_at,
                f"{active} calls: {side} its notify mark of {rule.notify:g}",
            )  # fmt: skip

    # -- operators

    def drain(self, scope: str, value: str, now: float, received_at: int) -> None:
        """Refuse every new call of a scope's value, until `resume`; LookupError: no such value."""
        self.check_value(scope, value)
        if (scope, value) not in self._drains:
            self._drains[scope, value] = now
            self.changed = True
            self._say_operator(scope, value, CLOSED, OPEN, received_at, "drained")

    def resume(self, scope: str, value: str, now: float, received_at: int) -> int:
        """End drains and open closed rules of a scope's value at once; returns how many changed."""
        if (scope, value) not in self._drains:  # a reload may have taken the name that was drained
            self.check_value(scope, value)
        changed = 0
        if self._drains.pop((scope, value), None) is not None:
            changed += 1
            self._say_operator(scope, value, OPEN, CLOSED, received_at, "resumed")
        for rule, of in self.places:
            gate = self.gate(rule, of)
            if gate is None or (rule.scope, of) != (scope, value) or gate.state == OPEN:
                continue
            changed += 1
            before = gate.state
            gate.reopen(now)
            self._say_state(
                rule, of, OPEN, before, gate.value, received_at, "an operator opened it", "operator"
            )
        self.changed |= changed > 0
        return changed

    def set_limit(self, rule: str, limit: float, now: float, received_at: int) -> Rule:
        """Give a rule another limit until the next start or reload; LookupError, RuleError."""
        old = self._rules.get(rule)
        if old is None:
            raise LookupError(
                f"no rule is named {rule!r}: there are {', '.join(self._rules) or 'none'}"
            )
        new = msgspec.structs.replace(old, limit=limit)
        check_limits(new)
        rules = tuple(new if one.name == rule else one for one in self._rules.values())
        gates = {place: gate for place, gate in self._gates.items() if place.rule == rule}
        closed_at = {place: at for place, at in self._closed_at.items() if place.rule == rule}
        kept = {place: one for place, one in self._capacities.items() if place.rule == rule}
        self.use(rules, self._reserve_percent)
        self._closed_at.update(closed_at)
        self._gates.update(gates)  # closed stays closed until the new limit has had its readings
        self._capacities.update(kept)
        self._say_state(
            new, new.value, *(2 * (self.reading(new, new.value)[1],)), None, received_at,
            f"limit {old.threshold:g} -> {limit:g}", "operator",
        )  # fmt: skip
        self.look_at_capacities(now, received_at, everywhere=True)
        return new

    def check_value(self, scope: str, value: str) -> None:
        """LookupError for a scope or value that is not configured; it says which there are."""
        if scope == GLOBAL and not value:
            return
        known = self._nodes if scope == "node" else self._cohorts.values(scope)
        if scope not in SCOPES or value not in known:
            raise LookupError(
                f"no {scope} is named {value!r}: there are {', '.join(sorted(known))}"
            )

    # -- what is shown

    def status(self, now: float) -> list[dict[str, Any]]:
        """Every rule's every state, with value, threshold and reason, as JSON can hold it."""
        return [self._status(rule, value, now) for rule, value in self.places]

    @property
    def drains(self) -> Mapping[tuple[str, str], float]:
        """Scopes and values that an operator drained, and since when."""
        return self._drains

    def drained(self, scope: str, value: str) -> bool:
        """Whether an operator drained all, or this value."""
        return (GLOBAL, "") in self._drains or (scope, value) in self._drains

    def states(self) -> dict[tuple[str, str], str]:
        """State by rule and value."""
        return {(rule.name, value): self.reading(rule, value)[1] for rule, value in self.places}

    def notified(self) -> dict[tuple[str, str], bool]:
        """By rule and value, where there is a notify mark: whether it was reached."""
        return {
            (rule.name, value): self._capacities[Place(rule.name, value)].noted
            for rule, value in self.places
            if rule.notify is not None
        }

    def state_of(self, scope: str, value: str) -> str:
        """The worst state of all enforced rules about one value, or about all calls."""
        if self.drained(scope, value):
            return CLOSED
        order = (OPEN, RAMPING, LIMITING, CLOSED)
        worst = OPEN
        for key in ((GLOBAL, ""), (scope, value)):
            for rule, of in self._enforced.get(key, ()):
                worst = max(worst, self.reading(rule, of)[1], key=order.index)
        return worst

    def reading(self, rule: Rule, value: str) -> tuple[float | None, str]:
        """What a rule measures now, and its state."""
        place = Place(rule.name, value)
        if rule.measure == "calls":
            one = self._capacities.get(place)
            return float(self._leases.active[rule.scope, value]), one.state if one else OPEN
        if rule.measure == "calls_per_second":
            one = self._capacities.get(place)
            return None, one.state if one else OPEN
        gate = self._gates.get(place)
        if gate is None:
            return None, OPEN
        return (self._value_of(place, gate) if gate.state == CLOSED else gate.value), gate.state

    def _value_of(self, place: Place, gate: Gate) -> float | None:
        """What a gate that objects measures; while nobody can tell, what it closed at."""
        return self._closed_at.get(place) if gate.value is None else gate.value

    def _status(self, rule: Rule, value: str, now: float) -> dict[str, Any]:
        place = Place(rule.name, value)
        reading, state = self.reading(rule, value)
        gate, one = self._gates.get(place), self._capacities.get(place)
        since = gate.since if gate is not None else one.since if one is not None else None
        if rule.measure == "calls_per_second":
            reading = round(self._buckets[place].level(now), 3)
        return {
            "rule": rule.name,
            "measure": rule.measure,
            "which": rule.which or None,
            "scope": rule.scope,
            "scope_value": value,
            "state": state,
            "since_seconds": None if since is None else max(0.0, now - since),
            "value": reading,
            "threshold": rule.threshold,
            "resume": rule.good,
            "outcome": rule.outcome,
            "code": rule.code if rule.outcome == "refuse" else None,
            "route": rule.route or None,
            "percent_admitted": round(100 * gate.share(now), 1) if gate is not None else None,
            "reserve": self.reserve(rule.threshold) if rule.measure == "calls" else None,
            "guaranteed": rule.guaranteed or None,
            "notified": one.noted if one is not None and rule.notify is not None else None,
            "reason": _words(rule, reading, state) + _noted(rule, one),
        }

    # -- rows

    def records(self) -> list[StateRecord]:
        """Changes of state since the last time; drains."""
        drained, self._rows = self._rows, []
        return drained

    def _keep(self, row: StateRecord) -> None:
        if len(self._rows) < MAX_ROWS:
            self._rows.append(row)
        else:
            self.rows_lost += 1

    def _say_state(
        self,
        rule: Rule,
        value: str,
        state: str,
        previous: str,
        reading: float | None,
        received_at: int,
        reason: str | None = None,
        by: str = "rule",
    ) -> None:
        self.changed = True
        self._keep(
            StateRecord(
                received_at=received_at,
                rule=rule.name,
                measure=rule.measure,
                scope=rule.scope,
                scope_value=value,
                state=state,
                previous=previous,
                value=reading,
                threshold=rule.threshold,
                reason=_words(rule, reading, state) if reason is None else reason,
                by=by,
            )
        )

    def _say_operator(
        self, scope: str, value: str, state: str, previous: str, received_at: int, reason: str
    ) -> None:
        self._keep(
            StateRecord(
                received_at=received_at,
                rule=DRAIN,
                scope=scope,
                scope_value=value,
                state=state,
                previous=previous,
                reason=reason,
                by="operator",
            )
        )


def scopes_of(cohort: Cohort) -> Iterator[tuple[str, str]]:
    """Every scope and value that a call of the cohort is of."""
    yield GLOBAL, ""
    yield from zip(SCOPES, cohort, strict=False)  # it is also of a carrier and an agent


def _past(rule: Rule, reading: float, limit: float) -> bool:
    """Whether a reading is on the bad side of a limit."""
    return reading < limit if rule.low_is_bad else reading > limit


def _objects(rule: Rule, value: str, reading: float | None) -> Objection:
    verdict = OVERFLOW if rule.outcome == "overflow" else REFUSE
    return Objection(
        rule, rule.name, rule.scope, value, reading, rule.threshold, rule.code, verdict,
        rule.route, rule.text,
    )  # fmt: skip


def _drained(scope: str, value: str) -> Objection:
    return Objection(None, DRAIN, scope, value, None, None, DRAIN_CODE, REFUSE, "", f"cac {DRAIN}")


def _noted(rule: Rule, one: _Capacity | None) -> str:
    """Say that it is over its notify mark."""
    if one is None or not one.noted or rule.notify is None:
        return ""
    return f", at its notify mark of {rule.notify:g}"


def _words(rule: Rule, reading: float | None, state: str) -> str:
    """Why a rule is in its state, in words."""
    side = "under" if rule.low_is_bad else "over"
    unit = _UNITS.get(rule.measure.rpartition("_")[2], "")
    name = f"{rule.measure} {rule.which}".strip()
    shown = "unknown" if reading is None else f"{reading:.4g}{unit}"
    limit = f"{rule.threshold:g}{unit}"
    if rule.measure == "calls":
        return f"{0 if reading is None else reading:g} of {limit} calls"
    if rule.measure == "calls_per_second":
        return f"limit {limit}"
    if state == OPEN:
        return f"{name} {shown}, closes {side} {limit}"
    if state == RAMPING:
        return f"{name} {shown}: calls are let in again"
    if reading is not None and not _past(rule, reading, rule.threshold):
        return f"{name} {shown}: was {side} {limit}"
    return f"{name} {shown}: {side} {limit}"
