"""The running admission: what feeds it, who asks it, whom it tells, and what it shows."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from sipsidecar.calls.events import CallRecord, Cohort, MediaRecord, Setup, Sighted
from sipsidecar.config import Config, parse_address
from sipsidecar.edges import host
from sipsidecar.edges.kamailio.evapi import KamailioAsk
from sipsidecar.edges.kamailio.push import KamailioPush
from sipsidecar.edges.outbound import Outbound
from sipsidecar.edges.probing import Prober
from sipsidecar.guarding import Guard
from sipsidecar.pipeline import Output, Pipeline
from sipsidecar.signals import telling
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import (
    OPEN,
    RAMPING,
    AdmissionRecord,
    Ask,
    AskState,
    Decision,
    PushState,
    StateRecord,
)
from sipsidecar.signals.health import Signals, readings
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Alive, Leases
from sipsidecar.signals.rules import EACH, GLOBAL, SCOPES, Rule
from sipsidecar.signals.snapshot import (
    DECISION_BOUNDS,
    AdmissionFigures,
    Figures,
    Histogram,
)
from sipsidecar.switchboard import Switchboard

EVERY = 1.0
"""Seconds between two readings of every rule."""
STEP = 60.0
"""Seconds of figures that are kept where no rule looks back."""
TELL_SHARE = 0.1
"""Of the time, to find out and say what switches must know: with many rules that takes milliseconds."""

log = logging.getLogger("sipsidecar.admission")


class NotAtWorkError(Exception):
    """Rules cannot be read: a question has no answer, which is neither yes nor no."""


class Told(Protocol):
    """A switch that decides by itself with what it was told."""

    async def run(self) -> None:
        """Renew what it holds, until cancelled."""

    def status(self) -> PushState:
        """How it is with it."""


def policy_of(config: Config) -> Policy:
    """The policy that is configured."""
    said = config.admission
    return Policy(
        rules=said.rules,
        emergency=said.emergency,
        priority_callers=said.priority_callers,
        priority_networks=said.priority_networks,
        reserve_percent=said.reserve_percent,
        waited=said.waited_ms / 1000,
    )


class Admitting:
    """Admission in one sidecar.

    `figures` reads it, for rules about its own health; `asked` hears of every question.
    """

    def __init__(
        self,
        config: Config,
        cohorts: Cohorts,
        pipeline: Pipeline,
        switchboard: Switchboard,
        figures: Callable[[], Figures],
        *,
        asked: Callable[[], None] = lambda: None,
        disks: Sequence[str] = (),
    ) -> None:
        said = config.admission
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._cohorts = cohorts
        self._pipeline = pipeline
        self._figures = figures
        self._on_question = asked
        self._machine = host.Machine(disks)
        scopes = (GLOBAL, *SCOPES) if cohorts else (GLOBAL, "node")
        self._longest = max((rule.window_seconds for rule in said.rules), default=STEP)
        self._windows = Windows(
            scopes,
            longest=self._longest,
            nodes={number: name for name, number in config.hep.agents.items()},
        )
        leases = Leases(
            self._alive,
            pending=said.pending_seconds,
            quiet=said.quiet_seconds,
            longest=config.calls.max_seconds,
        )
        self.admission = Admission(policy_of(config), cohorts, self._windows, leases)
        self._signals = Signals(_signals(said.rules))
        self._prober = Prober(said.checks)
        self._kamailios = [
            KamailioPush(
                name,
                address,
                routes=said.routes,
                addresses=cohorts.addresses,
                lease_seconds=said.lease_seconds,
            )
            for name, address in said.kamailio.items()
        ]
        self._switches = switchboard.pushes
        self._told: list[Told] = [*self._kamailios, *self._switches]
        self._asked = [
            KamailioAsk(name, *parse_address(address), self.ask)
            for name, address in said.evapi.items()
        ]
        self._outbound: Outbound | None = None
        if said.outbound_listen:
            self._outbound = Outbound(self.ask, name_of=switchboard.name_of)
        self._seconds = Histogram(DECISION_BOUNDS)
        self._guard = Guard("admission", log)
        self._at_work = True
        self._told_until = 0.0
        self._telling: asyncio.TimerHandle | None = None

    @property
    def judges_setups(self) -> bool:
        """Whether a rule is about how setups end: then it must be told of them."""
        return any(rule.kind == "quality" for rule in self._config.admission.rules)

    async def open(self) -> None:
        """Begin to listen for those who ask by connecting."""
        if self._outbound is not None:
            await self._outbound.open(*parse_address(self._config.admission.outbound_listen))

    @property
    def faults(self) -> int:
        """Bugs here that cost something: a part's beginning again, or a turn."""
        return self._guard.faults

    async def close(self) -> None:
        """End listening."""
        if self._telling is not None:
            self._telling.cancel()
        if self._outbound is not None:
            await self._outbound.close()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Begin to look, to tell and to be asked: no bug in that ends these tasks."""
        return [
            asyncio.create_task(self._guard.keep("the rules", self._work), name="admission"),
            asyncio.create_task(self._guard.keep("the checks", self._prober.run), name="checks"),
        ]

    async def _work(self) -> None:
        """Look at the rules, and tell and answer switches for as long as that goes well.

        Else what switches were told would hold for ever. Told and answered nothing, they do in seconds
        what is configured for a sidecar that is gone.
        """
        self._at_work = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look())
                for told in self._told:
                    group.create_task(self._guard.keep("telling a switch", told.run))
                for asked in self._asked:
                    group.create_task(self._guard.keep("being asked", asked.run))
        except Exception:
            self._at_work = False
            raise

    def reload(self, config: Config) -> None:
        """Put other rules in force; what they need and a run cannot take is said."""
        self._config = config
        for why in self._unready(config.admission.rules):
            log.warning("%s before the next start", why)
        self.admission.use(policy_of(config))
        known = Signals(_signals(config.admission.rules))
        known.take_over(self._signals)
        self._signals = known

    def _unready(self, rules: Sequence[Rule]) -> list[str]:
        """What new rules are about and this run does not have: all but rules stays as it was."""
        said = self._config.admission
        checks = {check.name for check in said.checks}
        found = []
        for rule in rules:
            if rule.route and rule.route not in said.routes:
                found.append(f"rule {rule.name}: no switch that is told knows route {rule.route}")
            if rule.measure == "check" and not (rule.which in checks if rule.which else checks):
                found.append(f"rule {rule.name}: nobody looks at check {rule.which}".rstrip())
            known = self._cohorts.values(rule.scope)
            if rule.scope not in (GLOBAL, "node") and rule.value not in (EACH, *known):
                found.append(f"rule {rule.name}: no call is of {rule.scope} {rule.value}")
            if rule.kind == "quality" and rule.window_seconds > self._longest:
                found.append(f"rule {rule.name}: looks back no further than {self._longest:g} s")
        return found

    # -- what happens

    def after_turn(
        self, outputs: Sequence[Output], setups: Sequence[Setup], now: float
    ) -> list[AdmissionRecord | StateRecord]:
        """Take in what the pipeline learned; returns rows to store."""
        try:
            return self._take_in(outputs, setups, now)
        except Exception as error:  # noqa: BLE001 -- a bug costs a turn of admission, not of capture
            self._guard.fault("a turn", error)
            return []

    def _take_in(
        self, outputs: Sequence[Output], setups: Sequence[Setup], now: float
    ) -> list[AdmissionRecord | StateRecord]:
        moves = self._pipeline.moves()
        if moves:
            self.admission.receive_moves(moves, now, time.time_ns() // 1000)
        # What a fallback makes of a call says nothing of the trunk that it was kept from.
        elsewhere = self.admission.is_elsewhere
        if setups and self.judges_setups:
            for setup in setups:
                if not elsewhere(setup.call.call_id):
                    self._windows.receive_setup(setup, now)
        ended: dict[tuple[str, str], CallRecord] = {}
        for record in outputs:
            if isinstance(record, CallRecord) and not (
                record.revision or elsewhere(record.call_id)
            ):
                ended[record.call_id, record.from_tag] = record
                self._windows.receive_call(record, now)
                if record.final_origin == "admission":
                    self.admission.receive_refused(record, time.time_ns() // 1000)
        for record in outputs:
            if isinstance(record, MediaRecord) and not (
                record.revision or elsewhere(record.call_id)
            ):
                call = ended.get((record.call_id, record.from_tag))
                self._windows.receive_media(record, call, now)
        if self.admission.standing.changed:
            self._tell()
        rows = self.admission.records()
        for row in rows:
            if isinstance(row, StateRecord) and row.by == "rule":  # an operator's are said below
                _say(row, self.admission.standing.rule(row.rule))
        return rows

    def is_elsewhere(self, call_id: str) -> bool:
        """Whether this call was sent to a fallback route."""
        return self.admission.is_elsewhere(call_id)

    async def _look(self) -> None:
        """Every rule's reading, once a second."""
        due = self._loop.time()
        while True:
            now, at = self._loop.time(), time.time_ns() // 1000
            self.admission.receive_readings(
                readings(
                    self._figures(),
                    self._machine.read(now),
                    self._prober.probed(now),
                    self._signals.values(now),
                ),
                now,
                at,
            )
            await self._end_leases(now)
            self.admission.handle_timer(now, at)
            self._show(now)
            due = max(due + EVERY, now)
            await asyncio.sleep(max(due - self._loop.time(), 0))

    async def _end_leases(self, now: float) -> None:
        """Look at all leases that are due, in turns: capture has the loop between two of them."""
        leases = self.admission.leases
        while (due := leases.next_timer()) is not None and due <= now:
            leases.handle_timer(now)
            await asyncio.sleep(0)

    def _tell(self) -> None:
        """Say what switches must know: at once, or when enough time went to other things."""
        if self._telling is None:
            wait = self._told_until - time.monotonic()
            if wait > 0:
                self._telling = self._loop.call_later(wait, self._tell_now)
            else:
                self._tell_now()

    def _tell_now(self) -> None:
        try:
            self._show(self._loop.time())
        except Exception as error:  # noqa: BLE001 -- whoever asks gets his answer
            self._guard.fault("telling", error)

    def _show(self, now: float) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        began = time.monotonic()
        standing = self.admission.standing
        standing.changed = False
        if self._told:
            self._show_all(now)
        ended = time.monotonic()
        self._told_until = ended + (ended - began) * (1 / TELL_SHARE - 1)

    def _show_all(self, now: float) -> None:
        standing = self.admission.standing
        denials, limits = telling.denials(standing, self._cohorts, now)
        for kamailio in self._kamailios:
            kamailio.show(denials, limits)
        if self._switches:
            caps = telling.caps(standing)
            rooms = {key: room for key, (room, _) in caps.items()}
            rules = {key: rule for key, (_, rule) in caps.items()}
            for switch in self._switches:
                switch.show(denials, limits, rooms, rules)

    def _alive(self, call_id: str) -> Alive | None:
        return self._pipeline.alive(call_id)

    # -- who asks, and who operates

    def ask(self, ask: Ask) -> Decision:
        """Answer one question; NotAtWorkError."""
        if not self._at_work:
            raise NotAtWorkError
        began = time.perf_counter()
        self._on_question()
        decision = self.admission.ask(ask, self._loop.time(), time.time_ns() // 1000)
        if self.admission.standing.changed:
            self._tell()
        self._seconds.observe(time.perf_counter() - began)
        return decision

    def release(self, call_id: str) -> int:
        """Give back what a call held, for askers whose calls nobody mirrors."""
        return self.admission.release(call_id, self._loop.time(), time.time_ns() // 1000)

    def explain(self, sighted: Sighted) -> dict[str, Any]:
        """What would be decided about a call that looks so, and which matchers said whose it is."""
        cohort = self._cohorts.of(sighted)
        return self.admission.explain(cohort, self._loop.time()) | {
            "matched": self._cohorts.why(sighted)
        }

    def explain_cohort(self, values: Mapping[str, str]) -> dict[str, Any]:
        """What would be decided about a call of these values; LookupError: there is none such."""
        for scope, value in values.items():
            self.admission.standing.check_value(scope, value)
        return self.admission.explain(Cohort(**values), self._loop.time())

    def drain(self, scope: str, value: str) -> None:
        """Refuse every new call of one value, or of all (`global`)."""
        self.admission.standing.drain(scope, value, self._loop.time(), time.time_ns() // 1000)
        self._tell()
        log.warning("an operator drained %s", f"{scope} {value}".strip())

    def resume(self, scope: str, value: str) -> int:
        """End a drain, and open what rules closed."""
        changed = self.admission.standing.resume(
            scope, value, self._loop.time(), time.time_ns() // 1000
        )
        self._tell()
        log.warning("an operator resumed %s", f"{scope} {value}".strip())
        return changed

    def set_limit(self, rule: str, limit: float) -> dict[str, Any]:
        """Give a rule another limit until the next start or reload."""
        found = self.admission.standing.set_limit(
            rule, limit, self._loop.time(), time.time_ns() // 1000
        )
        self._tell()
        log.warning("an operator set the limit of rule %s to %g", found.name, found.threshold)
        return {"rule": found.name, "measure": found.measure, "limit": found.threshold}

    def signal(self, name: str, value: float, ttl_seconds: float) -> bool:
        """Take what somebody says of the part behind the calls; False: no rule knows the name."""
        return self._signals.set(name, value, ttl_seconds, self._loop.time())

    def status(self) -> dict[str, Any]:
        """All of it, for people."""
        now = self._loop.time()
        leases = self.admission.leases
        return {
            "rules": self.admission.standing.status(now),
            "drains": [
                {"scope": scope, "scope_value": value, "seconds": max(0.0, now - since)}
                for (scope, value), since in self.admission.standing.drains.items()
            ],
            "leases": {
                "held": len(leases),
                "pending": leases.pending,
                "ended": dict(leases.ended),
                "active": [
                    {"scope": scope, "scope_value": value, "calls": count}
                    for (scope, value), count in sorted(leases.active.items())
                    if count
                ],
            },
            "pushes": [msgspec.to_builtins(one.status()) for one in self._told],
            "asks": [msgspec.to_builtins(one) for one in self._ask_states()],
            "checks": [msgspec.to_builtins(one) for one in self._prober.probed(now)],
            "signals": self._signals.values(now),
            "faults": self.faults,
            "fail": {trunk: policy for trunk, (_, policy) in self._trunks().items()},
        }

    def figures(self) -> AdmissionFigures:
        """What metrics and health show."""
        admission, leases = self.admission, self.admission.leases
        now = self._loop.time()
        return AdmissionFigures(
            decisions=dict(admission.decisions),
            seconds=self._seconds,
            exempted=dict(admission.exempted),
            repeated=admission.repeated,
            too_late=admission.too_late,
            leases=len(leases),
            leases_pending=leases.pending,
            leases_ended=dict(leases.ended),
            leases_refused=leases.refused,
            active={key: count for key, count in leases.active.items() if count},
            states=admission.standing.states(),
            notified=admission.standing.notified(),
            drained=tuple(admission.standing.drains),
            rows_lost=admission.rows_lost,
            trunks=self._trunks(),
            pushes=tuple(one.status() for one in self._told),
            asks=self._ask_states(),
            checks={one.name: one.ok for one in self._prober.probed(now)},
            faults=self.faults,
        )

    def _ask_states(self) -> tuple[AskState, ...]:
        asked = [one.status() for one in self._asked]
        if self._outbound is not None:
            asked.append(self._outbound.status())
        return tuple(asked)

    def _trunks(self) -> dict[str, tuple[str, str]]:
        """State of each configured trunk, and what happens to its calls while no sidecar speaks."""
        closed = set(self._config.admission.fail_closed)
        return {
            trunk: (
                self.admission.standing.state_of("trunk", trunk),
                "fail-closed" if trunk in closed else "fail-open",
            )
            for trunk in self._cohorts.values("trunk")
        }


def _say(row: StateRecord, rule: Rule | None) -> None:
    """Log one change of a rule's state; the words of it are the configuration's."""
    if row.state == row.previous:  # it went over its notify mark, or is under it again
        well = rule is None or rule.notify is None or (row.value or 0.0) < rule.notify
        change = row.state
    else:
        well = row.state in (OPEN, RAMPING)
        change = f"{row.previous} -> {row.state}"
    log.log(
        logging.INFO if well else logging.WARNING,
        "rule %s%s of %s: %s: %s",
        row.rule,
        " (shadow)" if rule is not None and rule.outcome == "shadow" else "",
        "all calls" if row.scope == GLOBAL else f"{row.scope} {row.scope_value}",
        change,
        row.reason,
        extra={"kind": row.rule},
    )


def _signals(rules: Sequence[Rule]) -> list[str]:
    return [rule.which for rule in rules if rule.measure == "signal"]
