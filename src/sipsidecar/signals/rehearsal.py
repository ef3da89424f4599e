"""Stored calls to what other rules would have done with them: who would have been refused, and why.

Every call is offered again at the time that it came. One that is refused holds no capacity and
tells nothing of its trunk, as it would have been. Health of that time is not stored, so rules about
health say nothing here.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from sipsidecar.calls.events import (
    OTHER,
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    Move,
    Setup,
    Sighted,
)
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import ADMIT, AdmissionRecord, Ask, StateRecord
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Leases
from sipsidecar.signals.rules import GLOBAL, SCOPES

SETTLE = 2.0
"""Seconds after an answer or refusal at which a running sidecar counts it."""
IDLE = 3600.0
"""Seconds without a call after which nothing is left to remember: they are skipped."""
GUESSED_SECONDS = 60.0
"""How long a call is taken to last of which that is not known, while no other call tells."""
MAX_EXAMPLES = 5


class Offered(msgspec.Struct, frozen=True):
    """One stored call, and its attempts."""

    call: CallRecord
    attempts: tuple[AttemptRecord, ...] = ()
    loss_percent: float | None = None
    """Of the direction that lost more."""


class Tally(msgspec.Struct):
    """What one rule would have done."""

    rule: str
    refused: int = 0
    overflowed: int = 0
    shadowed: int = 0
    first_at: int | None = None
    """Microseconds UTC."""
    last_at: int | None = None
    examples: list[str] = []
    """Call-IDs."""


class Rehearsed(msgspec.Struct):
    """What a rehearsal came to."""

    offered: int = 0
    admitted: int = 0
    guessed: int = 0
    """Calls whose length is not known, taken to last as long as others do."""
    from_at: int | None = None
    until_at: int | None = None
    most: dict[str, int] = {}
    """Most calls at once, by `scope value`."""
    rules: dict[str, Tally] = {}
    unheard: tuple[str, ...] = ()
    """Rules about health: nothing is stored that they could be rehearsed with."""


class _Due(NamedTuple):
    at: float
    order: int
    what: str
    offered: Offered


class Rehearsal:
    """One run of rules over stored calls, in the order of their beginnings."""

    def __init__(self, policy: Policy, cohorts: Cohorts) -> None:
        self._cohorts = cohorts
        self._windows = Windows((GLOBAL, *SCOPES))
        # every call's end is known here, so none is looked for
        leases = Leases(
            lambda _: None, pending=math.inf, quiet=0.0, longest=math.inf, look=math.inf
        )
        self.admission = Admission(policy, cohorts, self._windows, leases)
        self.result = Rehearsed(
            unheard=tuple(rule.name for rule in policy.rules if rule.kind == "health")
        )
        self._due: list[_Due] = []
        self._order = 0
        self._tick: float | None = None
        self._began: float | None = None
        self._talk, self._talked = 0.0, 0

    def run(self, calls: Iterable[Offered]) -> Iterator[AdmissionRecord | StateRecord]:
        """Offer some more; gives every refusal and change of state as it would have been stored."""
        for offered in calls:
            at = offered.call.started_at / 1_000_000
            if self._began is None:
                self._began, self._tick = at, math.floor(at)
                self.result.from_at = offered.call.started_at
            self._advance(at)
            self._offer(offered, at)
            self.result.until_at = offered.call.started_at
            yield from self._rows()

    def finish(self) -> Iterator[AdmissionRecord | StateRecord]:
        """Let time pass until the last call is over."""
        while self._due:
            self._advance(self._due[0].at)
            yield from self._rows()

    def _advance(self, at: float) -> None:
        """Everything that happens up to a time, and a reading every second."""
        assert self._tick is not None
        while True:
            next_at = self._due[0].at if self._due else math.inf
            if min(next_at, self._tick) > at:
                return
            if next_at <= self._tick:
                self._happen(heapq.heappop(self._due))
                continue
            if not self._due and at - self._tick > IDLE:
                self._tick = math.floor(at - IDLE)
            now = self._tick
            self.admission.receive_readings({}, now, int(now * 1_000_000))
            while (due := self.admission.leases.next_timer()) is not None and due <= now:
                self.admission.leases.handle_timer(now)
            self.admission.handle_timer(now, int(now * 1_000_000))
            self._tick += 1.0

    def _offer(self, offered: Offered, at: float) -> None:
        call = offered.call
        cohort = self._cohort(offered)
        decision = self.admission.ask(
            Ask(call_id=call.call_id, from_tag=call.from_tag, sighted=_sighted(call)),
            at,
            call.started_at,
            cohort,
        )
        self.result.offered += 1
        for name in decision.shadow:
            _note(self._tally(name), "shadowed", call)
        if decision.verdict != ADMIT:
            what = "refused" if decision.verdict == "refuse" else "overflowed"
            _note(self._tally(decision.rule), what, call)
            return
        self.result.admitted += 1
        self._note_most()
        ended = self._ended(call, at)
        if call.final_origin != "admission":
            said = (call.setup_ms if call.answered else call.fail_ms) or 0.0
            self._push(_Due(at + said / 1000 + SETTLE, self._next(), "setup", offered))
            self._push(_Due(ended + SETTLE, self._next(), "record", offered))
        self._push(_Due(ended, self._next(), "over", offered))

    def _ended(self, call: CallRecord, at: float) -> float:
        """When a call was over; of one that was refused then, when one like it would have been."""
        if call.final_origin == "admission" or call.ended_at is None:
            self.result.guessed += 1
            return at + (self._talk / self._talked if self._talked else GUESSED_SECONDS)
        ended = max(at, call.ended_at / 1_000_000)
        if call.answered:
            self._talk += ended - at
            self._talked += 1
        return ended

    def _happen(self, due: _Due) -> None:
        call = due.offered.call
        if due.what == "setup":
            self._windows.receive_setup(self._setup(due.offered), due.at)
        elif due.what == "record":
            record = self._labelled(due.offered)
            self._windows.receive_call(record, due.at)
            if due.offered.loss_percent is not None:
                self._windows.receive_media(_media(due.offered), record, due.at)
        else:
            over = Move(call.call_id, None, Cohort())
            self.admission.receive_moves([over], due.at, int(due.at * 1_000_000))

    def _cohort(self, offered: Offered) -> Cohort:
        """Whose a call is by these matchers; where headers would tell, as it was stored."""
        call = offered.call
        found = self._cohorts.of(_sighted(call))
        said = {}
        for scope in SCOPES[:4]:
            stored = getattr(call, scope)
            if getattr(found, scope) == OTHER and stored in self._cohorts.values(scope):
                said[scope] = stored
        found = found._replace(**said)
        if found.trunk == OTHER:
            trunks = [self._trunk(attempt) for attempt in offered.attempts]
            found = found._replace(
                trunk=next((trunk for trunk in reversed(trunks) if trunk != OTHER), OTHER)
            )
        return found

    def _trunk(self, attempt: AttemptRecord) -> str:
        found = self._cohorts.of(
            Sighted(
                src_ip=attempt.src_ip,
                src_port=attempt.src_port,
                dst_ip=attempt.peer_ip,
                dst_port=attempt.peer_port,
                ruri_user=attempt.ruri_user,
                ruri_host=attempt.ruri_host,
                agent_ids=attempt.agent_ids,
            )
        ).trunk
        known = self._cohorts.values("trunk")
        return attempt.trunk if found == OTHER and attempt.trunk in known else found

    def _labelled(self, offered: Offered) -> CallRecord:
        labels = self._cohort(offered)._asdict()
        del labels["node"]
        return msgspec.structs.replace(offered.call, **labels)

    def _setup(self, offered: Offered) -> Setup:
        attempts = tuple(
            msgspec.structs.replace(attempt, trunk=self._trunk(attempt))
            for attempt in offered.attempts
        )
        return Setup(self._labelled(offered), attempts)

    def _rows(self) -> list[AdmissionRecord | StateRecord]:
        return self.admission.records()

    def _note_most(self) -> None:
        for (scope, value), count in self.admission.leases.active.items():
            name = f"{scope} {value}".strip()
            if value != OTHER and count > self.result.most.get(name, 0):
                self.result.most[name] = count

    def _tally(self, rule: str) -> Tally:
        return self.result.rules.setdefault(rule, Tally(rule))

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _push(self, due: _Due) -> None:
        heapq.heappush(self._due, due)


def _note(tally: Tally, what: str, call: CallRecord) -> None:
    setattr(tally, what, getattr(tally, what) + 1)
    tally.first_at = call.started_at if tally.first_at is None else tally.first_at
    tally.last_at = call.started_at
    if len(tally.examples) < MAX_EXAMPLES:
        tally.examples.append(call.call_id)


def _media(offered: Offered) -> MediaRecord:
    """The direction that lost more."""
    call = offered.call
    return MediaRecord(
        call_id=call.call_id,
        from_tag=call.from_tag,
        stream="worse",
        direction="unknown",
        received_at=call.received_at,
        started_at=call.started_at,
        ended_at=call.ended_at or call.started_at,
        loss_percent=offered.loss_percent,
    )


def _sighted(call: CallRecord) -> Sighted:
    names = Sighted.__struct_fields__
    known = {name: getattr(call, name) for name in names if hasattr(call, name)}
    return Sighted(**known)
