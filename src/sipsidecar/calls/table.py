"""SIP messages to call records: the live calls by Call-ID, their deadlines, caps and eviction.

A record leaves when its facts are complete and nothing new came for the settle time, or when the
timer ran out that RFC 3261 gives what is missing. The call then lingers for late facts, and a
record that they change leaves again with a higher revision.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from sipsidecar.calls.agents import Agents
from sipsidecar.calls.call import ANSWERED, ENDED, INVITED, RANG, REFUSED, Call, Endpoint
from sipsidecar.calls.dialog import ORPHAN, TIMER_B, TIMER_C, Timing
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.calls.record import outcome
from sipsidecar.wire import sip

MAX_LINGERING = 20_000
"""Closed calls kept for late facts; the oldest go first."""
TURN = 64
"""Calls derived per turn, so that a burst of endings does not stall the receiver."""

STATES = ("trying", "ringing", "answered")


def _live_state(bits: int) -> int | None:
    """Index into `STATES`; None when the call is not live, or was never seen to begin."""
    if not bits & INVITED or bits & ENDED or (bits & REFUSED and not bits & ANSWERED):
        return None
    return 2 if bits & ANSWERED else 1 if bits & RANG else 0


_STATE_OF = [_live_state(bits) for bits in range(32)]


class Retraction(msgspec.Struct, frozen=True):
    """A record that late facts proved never to have been: its key in `calls` or `attempts`."""

    call_id: str
    from_tag: str
    branch: str | None
    received_at: int
    revision: int
    """Of the change that disproved it: the records below it go."""


_INFERRED_BY_TIMER = frozenset({"no_response", "stuck_early"})


def _interrupted(record: CallRecord | AttemptRecord) -> CallRecord | AttemptRecord:
    """A record whose timers did not run out: nothing that only they would prove is said."""
    flags = tuple(sorted({*record.flags, "interrupted"} - _INFERRED_BY_TIMER))
    by_timer = record.inferred and not record.answered
    if not by_timer:
        return msgspec.structs.replace(record, flags=flags)
    unknown = msgspec.structs.replace(
        record, flags=flags, final_code=None, final_class=None, inferred=False
    )
    if isinstance(unknown, CallRecord):
        return msgspec.structs.replace(
            unknown,
            final_origin=None,
            ended=False,
            ended_at=None,
            end_source=None,
            released_by=None,
        )
    return unknown


class CallTable:
    """All calls that are live or lingering."""

    def __init__(
        self,
        agents: Agents,
        timing: Timing | None = None,
        *,
        max_calls: int = 50_000,
        linger: float = 2 * TIMER_B,
    ) -> None:
        self._agents = agents
        self._timing = timing or Timing()
        self._max_calls = max_calls
        self._linger = linger
        self._calls: dict[str, Call] = {}
        self._lingering: OrderedDict[str, None] = OrderedDict()
        self._deadlines: list[tuple[float, str]] = []
        self._records: list[CallRecord | AttemptRecord | Retraction] = []
        self.live = [0, 0, 0]
        self.refused_calls = 0
        self.refused_facts = 0
        self.orphans = 0
        self.evicted = 0
        self.revisions = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def lingering(self) -> int:
        """Closed calls that are kept for late facts."""
        return len(self._lingering)

    def live_calls(self) -> Iterator[tuple[str, Call]]:
        """State and call of each that is live now."""
        for call in self._calls.values():
            state = _STATE_OF[call.live]
            if call.emitted is None and state is not None:
                yield STATES[state], call

    def receive(
        self,
        message: sip.Message,
        source: Endpoint,
        destination: Endpoint,
        transport: str | None,
        fingerprint: int,
        clock: int,
        at: int,
        now: float,
        received_at: int,
    ) -> None:
        """Join one message of a dialog, or of one that may become a dialog."""
        call = self._calls.get(message.call_id)
        if call is None:
            if len(self._calls) - len(self._lingering) >= self._max_calls:
                self.refused_calls += 1
                return
            call = self._calls[message.call_id] = Call(message.call_id, now, received_at)
            self._schedule(call, now + self._timing.settle + ORPHAN)
        elif received_at < call.first_received_at and call.emitted is None:
            call.first_received_at = received_at
        before, refused = call.live, call.refused
        call.see(message, source, destination, transport, fingerprint, clock, at)
        if call.refused != refused:
            self.refused_facts += call.refused - refused
        call.last_now = now
        if call.emitted is not None:
            self._schedule_by(call, now + self._timing.settle)
        elif call.live != before:
            self._move(before, call.live)
            if call.live & (ENDED | REFUSED) and not before & (ENDED | REFUSED):
                self._schedule_by(call, now + self._timing.settle)

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> None:
        """Close what is due, at most `TURN` calls; the rest is due at once again."""
        for _ in range(TURN):
            if not self._deadlines or self._deadlines[0][0] > now:
                return
            due, call_id = heapq.heappop(self._deadlines)
            call = self._calls.get(call_id)
            if call is not None and call.due == due:
                self._judge(call, now)

    def records(self) -> list[CallRecord | AttemptRecord | Retraction]:
        """What has left since the last time; drains."""
        drained, self._records = self._records, []
        return drained

    def drain(self, now: float) -> None:
        """Let every record leave, of calls that go on too: those say what is known, `interrupted`."""
        for call in list(self._calls.values()):
            if call.emitted is not None and call.last_now <= call.emitted_at:
                continue
            said = outcome(call, self._agents.clocks(call.clocks), self._timing)
            if said.orphan:
                self.orphans += 1
                self._forget(call)
                continue
            complete = said.due <= call.last_now + self._timing.settle
            records: list[CallRecord | AttemptRecord] = [*said.calls, *said.attempts]
            if not complete:
                records = [_interrupted(record) for record in records]
            self._emit(call, records)
            call.emitted_at = now

    def _schedule(self, call: Call, due: float) -> None:
        call.due = due
        heapq.heappush(self._deadlines, (due, call.call_id))

    def _schedule_by(self, call: Call, due: float) -> None:
        if due < call.due:
            self._schedule(call, due)

    def _move(self, before: int, after: int) -> None:
        was, now = _STATE_OF[before], _STATE_OF[after]
        if was != now:
            if was is not None:
                self.live[was] -= 1
            if now is not None:
                self.live[now] += 1

    def _judge(self, call: Call, now: float) -> None:
        # Not `<=`: what came at the very instant of the last emission is not said yet.
        if call.emitted is not None and call.last_now < call.emitted_at:
            self._forget(call)
            return
        quick = max(self._not_before(call), call.last_now + self._timing.settle)
        if quick > now:
            self._schedule(call, quick)
            return
        said = outcome(call, self._agents.clocks(call.clocks), self._timing)
        if said.due > now:
            if (
                call.emitted is None
                and call.live & REFUSED
                and not any(c.ended and c.end_source != "timer" for c in said.calls)
            ):
                # what looked like the call's refusal was an attempt's, or the caller tried elsewhere
                self._move(call.live, call.live & ~REFUSED)
                call.live &= ~REFUSED
            self._schedule(call, said.due)
            return
        if said.orphan:
            self.orphans += 1
            self._forget(call)
            return
        self._emit(call, (*said.calls, *said.attempts))
        call.emitted_at = now
        self._schedule(call, now + self._linger)
        self._lingering[call.call_id] = None
        self._lingering.move_to_end(call.call_id)
        if len(self._lingering) > MAX_LINGERING:
            oldest = next(iter(self._lingering))
            self.evicted += 1
            self._forget(self._calls[oldest])

    def _not_before(self, call: Call) -> float:
        """The cheap half of the judgement: calls that are plainly not over need no derivation."""
        bits = call.live
        if call.emitted is not None or bits & (ENDED | REFUSED) or not bits & INVITED:
            return 0.0
        if bits & ANSWERED:
            return call.last_now + min(
                (call.session_expires or self._timing.longest) + TIMER_B, self._timing.longest
            )
        return call.last_now + (TIMER_C if bits & RANG else TIMER_B) + self._timing.settle

    def _emit(self, call: Call, records: Sequence[CallRecord | AttemptRecord]) -> None:
        first = call.emitted is None
        said = call.emitted or {}
        now_said: dict[tuple[str, str | None], int] = {}
        fresh = []
        for record in records:
            branch = record.branch if isinstance(record, AttemptRecord) else None
            key = (record.from_tag, branch)
            now_said[key] = hash(record)
            if said.get(key) != now_said[key]:
                fresh.append(record)
        if first:
            self._move(call.live, 0)
            self._records += fresh
        elif fresh or said.keys() - now_said.keys():
            call.revision += 1
            self.revisions += 1
            revised = call.revision
            self._records += [msgspec.structs.replace(r, revision=revised) for r in fresh]
            self._records += [
                Retraction(call.call_id, tag, branch, call.first_received_at, revised)
                for tag, branch in sorted(said.keys() - now_said.keys(), key=str)
            ]
        call.emitted = now_said

    def _forget(self, call: Call) -> None:
        if call.emitted is None:
            self._move(call.live, 0)
        self._lingering.pop(call.call_id, None)
        del self._calls[call.call_id]
