"""SIP messages to call records: the live calls by Call-ID, their deadlines, caps and eviction.

A record leaves when its facts are complete and nothing new came for the settle time, or when the
timer ran out that RFC 3261 gives what is missing. The call then lingers for late facts, and a
record that they change leaves again with a higher revision.

Besides its records it tells, to whoever wants it, of each change of a call's live state, and once of
each call what became of its setup.

After a restart the calls of the life before are restored from what was stored of them. Their
records are flagged `rebuilt`. Until that is done, and for some time in which calls are met in their
middle, records of calls whose INVITE was not seen are flagged `warming`.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from sipsidecar.calls.agents import Agents
from sipsidecar.calls.call import (
    ANSWERED,
    ENDED,
    FAILED,
    GONE,
    INVITED,
    RANG,
    REFUSED,
    Call,
    Endpoint,
)
from sipsidecar.calls.dialog import ORPHAN, TIMER_B, TIMER_C, Timing
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    Move,
    QualityInterval,
    Setup,
)
from sipsidecar.calls.joining import MediaIndex, Said, join, ssrcs_in
from sipsidecar.calls.judging import judged_alone
from sipsidecar.calls.labelling import Classifier, Labels
from sipsidecar.calls.leaving import Revisable, hashes, interrupted, key_of, marked, marks_of
from sipsidecar.calls.media import Facts
from sipsidecar.calls.record import AllTraits, Outcome, outcome
from sipsidecar.calls.restoring import (
    Heard,
    RowKey,
    Sighting,
    StoredRow,
    is_over,
    join_stored,
    last_call,
    saw_all_of_it,
    says_it_all,
)
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import rtcp, sip

MAX_LINGERING = 20_000
"""Closed calls kept for late facts; the oldest go first."""
HOLD_LOOK = 1.0
"""Seconds between looks at a call whose beginning may still be restored."""
SPARE_DEADLINES = 1000
"""Deadlines that no longer count, beside one for each call, before all are put in order anew."""
HUNG_UP_SECONDS: Final = 64.0
"""How long a hang-up is remembered of a call that no SIP was seen of."""
MAX_HUNG_UP: Final = 20_000
HEARD_SECONDS: Final = 1.0
"""Over which RTCP must have been heard for its silence to mean something."""
TURN = 8
"""Calls derived per turn, so that a burst of endings does not stall the receiver."""

STATES = ("trying", "ringing", "answered")


def _live_state(bits: int) -> int | None:
    """Index into `STATES`; None when the call is not live, or was never seen to begin."""
    if not bits & INVITED or _is_over(bits):
        return None
    return 2 if bits & ANSWERED else 1 if bits & RANG else 0


def _is_over(bits: int) -> bool:
    return bool(bits & (ENDED | GONE)) or (bool(bits & REFUSED) and not bits & ANSWERED)


def _met_state(bits: int) -> int | None:
    """That of a call that was met in its middle: its INVITE is not known, but what came of it."""
    if bits & INVITED or _is_over(bits):
        return None
    return 2 if bits & ANSWERED else 1 if bits & RANG else None


def _goes_on(bits: int) -> bool:
    """Whether something of a call was seen, and nothing that ends it."""
    return _live_state(bits) is not None or _met_state(bits) is not None


_STATE_OF = [_live_state(bits) for bits in range(2 * FAILED)]
_MET_STATE_OF = [_met_state(bits) for bits in range(2 * FAILED)]


class Alive(NamedTuple):
    """What is known of one Call-ID that may hold capacity."""

    over: bool
    last_now: float
    """Monotonic time of its last sign of life: SIP, RTCP or an event."""
    media: bool
    """RTCP was heard for a while, so that silence means something."""


Leaving = CallRecord | AttemptRecord | MediaRecord | QualityInterval
"""Records of a call, on their way out."""


class Retraction(msgspec.Struct, frozen=True):
    """A record that late facts proved never to have been: its key in its table."""

    call_id: str
    from_tag: str
    branch: str | None
    received_at: int
    revision: int
    """Of the change that disproved it: the records below it go."""
    stream: str | None = None
    """Of media; None for a call and an attempt."""


class CallTable:
    """All calls that are live or lingering."""

    def __init__(
        self,
        agents: Agents,
        timing: Timing | None = None,
        *,
        max_calls: int = 50_000,
        linger: float = 2 * TIMER_B,
        thresholds: Thresholds | None = None,
        cohorts: Classifier | None = None,
    ) -> None:
        self._agents = agents
        self.labels = Labels(cohorts) if cohorts is not None else None
        """Who says whose a call is."""
        self.record_labels = self.labels if cohorts else None
        """The same, of records: one without matchers names nodes, but has nothing to say there."""
        self._asked = cohorts.headers if cohorts is not None else ()
        self.watch = False
        """Tell of every change of a call's live state; to be set before the first message."""
        self.tell_setups = False
        """Tell of every call what became of its setup."""
        self.tell_traits = False
        """And what its INVITEs said beyond its record; to be set before the first message."""
        self._moves: list[Move] = []
        self._setups: list[Setup] = []
        self._answered: deque[tuple[float, Call]] = deque()
        """Calls whose setup is told at a time, by that time."""
        self._hung_up: OrderedDict[str, float] = OrderedDict()
        self._timing = timing or Timing()
        self._thresholds = thresholds or Thresholds()
        self._max_calls = max_calls
        self._linger = linger
        self._calls: dict[str, Call] = {}
        self._lingering: OrderedDict[str, None] = OrderedDict()
        self._deadlines: list[tuple[float, str]] = []
        self._records: list[Leaving | Retraction] = []
        self._media_only = 0
        self.index = MediaIndex()
        self.live = [0, 0, 0]
        self.refused_calls = 0
        self.refused_facts = 0
        self.refused_memory = 0
        self.left_out = 0
        """Blocks and accounts of media that cannot be, or that nobody can place."""
        self.refused_media = 0
        """Reports of media that no call is known of, over a quarter of the room for calls."""
        self.refused_reports = 0
        """Reports of a known call, and parts of them, over the caps of its media."""
        self.refuse_new = False
        """Newcomers are refused and counted in `refused_memory`: somebody governs memory."""
        self.hold_partials_until: float | None = None
        """Monotonic; until then a call without INVITE waits, for its beginning may be restored."""
        self.warming_until: float | None = None
        """Monotonic; calls met until then may lack their beginning and say so."""
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
            if call.shown is not None:
                yield STATES[call.shown], call

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
            call = self._admit(message.call_id, now, received_at)
            if call is None:
                return
            if self.warming_until is not None and now < self.warming_until:
                call.marks = ("warming",)
        elif received_at < call.first_received_at and call.emitted is None:
            call.first_received_at = received_at
        if call.media is not None and not call.clocks:
            self._media_only -= 1  # reports came before it
        before, refused, legs = call.live, call.refused, len(call.legs)
        call.see(message, source, destination, transport, fingerprint, clock, at)
        if call.refused != refused:
            self.refused_facts += call.refused - refused
        call.last_now = now
        if self.index.wanted and message.body:
            self.index.read(call.call_id, message.body, self._calls)
        if call.live != before or (call.emitted is not None and len(call.legs) != legs):
            if self.tell_setups and call.live & ~before & ANSWERED:
                self._answered.append((now + self._timing.settle, call))
            if call.emitted is not None:
                call.revived = call.revived or _goes_on(call.live)
            elif call.live & (ENDED | REFUSED) and not before & (ENDED | REFUSED):
                self._schedule_by(call, now + self._timing.settle)
            self._show(call)
        elif call.news and self.watch:
            self._tell(call)
        if call.emitted is not None or (
            (call.acks or message.method == "CANCEL") and _ends_unseen(call)
        ):
            self._schedule_by(call, now + self._timing.settle)

    def call_of(
        self,
        call_id: str | None,
        said: Said,
        source: Endpoint,
        destination: Endpoint,
        now: float,
    ) -> str | None:
        """Name the call that a report belongs to: by the id it came with, by addresses, by SSRC.

        An id that no SIP was seen of may be the agent's own: addresses tell more. SSRCs tell less:
        test tools use the same one in every call. None: nobody knows.
        """
        if call_id and (call := self._calls.get(call_id)) is not None and call.clocks:
            return call_id
        self.index.want(self._calls, now)
        if not call_id:
            return self.index.find(source, destination, ssrcs_in(said))
        found = self.index.find(source, destination, ())
        return found if found is not None and self._calls[found].clocks else call_id

    def receive_media(
        self,
        call_id: str,
        said: Said,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
        now: float,
        received_at: int,
        *,
        reporter: str | None = None,
    ) -> None:
        """Join one report of a call's media; the call may not be known (yet).

        `reporter`, caller or callee, where it is known who speaks.
        """
        call = self._calls.get(call_id)
        if call is None:
            if self._media_only >= max(1, self._max_calls // 4):
                self.refused_media += 1
                return
            call = self._admit(call_id, now, received_at)
            if call is None:
                return
            self._media_only += 1
        self._join(call, said, source, destination, clock, at, reporter)
        if self.index.wanted:
            self.index.learn(call.call_id, ssrcs_in(said)[0], self._calls)
        call.media_news = True
        if isinstance(said, rtcp.Report):
            if call.heard_since is None:
                call.heard_since = now
            call.heard_last = now
        # After its end a call does not go on for reports: they change its record once, at the last.
        if call.emitted is None:
            call.last_now = now

    def answer(self, call_id: str) -> None:
        """Take a call that SIP shows for answered, as others heard it: its 200 may be lost.

        Its record tells what SIP shows as ever, but not before the call is over.
        """
        call = self._calls.get(call_id)
        if call is not None and call.clocks and not call.live & ANSWERED:
            call.live |= ANSWERED
            self._show(call)

    def hang_up(self, call_id: str, now: float) -> None:
        """End the live state of a call whose answered dialog is over as others heard it.

        Its record waits for SIP as ever. Of a call that is not known (yet) it is remembered for a
        while: what SIP shows late does not bring it back.
        """
        call = self._calls.get(call_id)
        if call is not None:
            call.live |= GONE
            self._show(call)
        if call is None or not call.clocks:
            hung_up = self._hung_up
            hung_up[call_id] = now
            hung_up.move_to_end(call_id)
            while (
                len(hung_up) > MAX_HUNG_UP or now - next(iter(hung_up.values())) > HUNG_UP_SECONDS
            ):
                hung_up.popitem(last=False)

    def alive(self, call_id: str) -> Alive | None:
        """What is known of a Call-ID; None when nothing is (any more)."""
        call = self._calls.get(call_id)
        if call is None:
            return None
        left = call.emitted is not None and not call.revived
        since = call.heard_since
        return Alive(
            left or _is_over(call.live),
            call.last_now,
            since is not None and call.heard_last - since >= HEARD_SECONDS,
        )

    def tells(self, call_id: str) -> bool:
        """Whether it has told of this Call-ID's live state: then nobody else should."""
        call = self._calls.get(call_id)
        return call is not None and call.moved is not None

    def say(self, move: Move) -> None:
        """Hand out what others know of a call that no SIP was seen of."""
        self._moves.append(move)

    def say_setup(self, setup: Setup) -> None:
        """Hand out what others know of such a call's setup."""
        self._setups.append(setup)

    def moves(self) -> list[Move]:
        """Changes of live states since the last time; drains."""
        drained, self._moves = self._moves, []
        return drained

    def setups(self) -> list[Setup]:
        """Setups that are over since the last time; drains."""
        drained, self._setups = self._setups, []
        return drained

    def has_sip(self, call_id: str) -> bool:
        """Whether any SIP of this Call-ID was seen lately."""
        call = self._calls.get(call_id)
        return call is not None and bool(call.clocks)

    def final_code(self, call_id: str) -> int | None:
        """The final response that SIP showed for a Call-ID; None when it showed none (yet)."""
        call = self._calls.get(call_id)
        if call is None or not call.clocks:
            return None
        said = outcome(call, self._agents.clocks(call.clocks), self._timing)
        codes = (one.final_code for one in said.calls if not one.inferred)
        return next((code for code in codes if code is not None), None)

    def rated(self, record: CallRecord) -> CallRecord:
        """A record that no SIP tells of, with what was reported of its media."""
        call = self._calls.get(record.call_id)
        if call is None or call.media is None:
            return record
        call.told = record.answered, record.talk_ms
        return judged_alone(record, call.media, self._thresholds)

    def receive_encrypted(
        self, call_id: str | None, source: Endpoint, destination: Endpoint, now: float
    ) -> None:
        """Note that a known call has RTCP that nobody here can read (SRTCP)."""
        known = call_id if call_id in self._calls else None
        if known is None:
            self.index.want(self._calls, now)
            known = self.index.find(source, destination, ())
        call = self._calls.get(known) if known is not None else None
        if call is not None and call.clocks:
            if call.media is None:
                call.media = Facts()
            call.media.see_encrypted()

    def restore(
        self,
        call_id: str,
        sightings: Sequence[Sighting],
        rows: Sequence[StoredRow],
        now: float,
        heard: Sequence[Heard] = (),
    ) -> bool:
        """Join what was stored of a call before a restart; False when there is no room for it.

        `rows` are those of its Call-ID. The whole call at once: half of one would be judged. A call
        that had no row, or one that says `interrupted`, goes on, and its deadlines run from now;
        one that was over lingers. Its rows are replaced or taken back as soon as there is more to
        say, and so is what this life said of it before it knew of the beginning.
        """
        patience = self._timing.settle + self._linger
        facts, rows = last_call(sightings, rows, int(patience * 1_000_000))
        call = self._calls.get(call_id)
        met = call is not None
        if call is None:
            call = self._admit(call_id, now, facts[0].received_at)
            if call is None:
                return False
        elif saw_all_of_it(call, facts, rows):
            return True
        if call.media is not None and not call.clocks:
            self._media_only -= 1
        refused = call.refused
        newest = join_stored(call, facts, rows)
        call.set_up = (*call.set_up, *_set_up(call, rows))
        for report in heard:
            if report.received_at >= facts[0].received_at:
                self._join(call, *report[:-1])
        self.refused_facts += call.refused - refused
        call.last_now = now
        if _was_heard(facts, heard):
            # So that silence from now on means something.
            call.heard_since, call.heard_last = now - HEARD_SECONDS, now
        if call.emitted is None and not is_over(rows):
            call.revision = newest + 1
            self._show(call)
            if call.live & (ENDED | REFUSED):
                self._schedule_by(call, now + self._timing.settle)
            return True
        call.revision = newest
        said = self._outcome(call)
        if not met and says_it_all(rows, said, facts, int(self._timing.settle * 1_000_000)):
            call.emitted = hashes((*said.calls, *said.attempts))
            call.stored = ()
            call.emitted_at, call.last_now = now, now - self._timing.settle
            self._schedule(call, now + self._linger)
        else:
            call.emitted, call.emitted_at = {}, float("-inf")
            self._schedule(call, now + self._timing.settle)
        self._show(call)
        self._keep(call, now, oldest=True)
        return True

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        due = self._deadlines[0][0] if self._deadlines else None
        if self._answered:
            due = self._answered[0][0] if due is None else min(due, self._answered[0][0])
        return due

    def handle_timer(self, now: float) -> None:
        """Close what is due, at most `TURN` calls; the rest is due at once again."""
        if self.index.wanted:
            self.index.rest(now)
        for _ in range(TURN):
            if not self._answered or self._answered[0][0] > now:
                break
            self._tell_answered(self._answered.popleft()[1])
        for _ in range(TURN):
            if not self._deadlines or self._deadlines[0][0] > now:
                return
            due, call_id = heapq.heappop(self._deadlines)
            call = self._calls.get(call_id)
            if call is not None and call.due == due:
                self._judge(call, now)

    def records(self) -> list[Leaving | Retraction]:
        """What has left since the last time; drains."""
        drained, self._records = self._records, []
        return drained

    def drain(self, now: float) -> None:
        """Let every record leave, of calls that go on too: those say what is known, `interrupted`."""
        for call in list(self._calls.values()):
            self._conclude(call, now)

    def shrink(self, share: float, now: float) -> None:
        """Evict the oldest lingering calls, down to this share of `MAX_LINGERING`, at once."""
        while len(self._lingering) > max(share, 0.0) * MAX_LINGERING:
            self._evict(now)

    def _admit(self, call_id: str, now: float, received_at: int) -> Call | None:
        """A new call; None, and counted, when there is no room."""
        if self.refuse_new:
            self.refused_memory += 1
            return None
        if len(self._calls) - len(self._lingering) >= self._max_calls:
            self.refused_calls += 1
            return None
        call = self._calls[call_id] = Call(
            call_id, now, received_at, self._asked, traits=self.tell_traits
        )
        if self._hung_up:
            at = self._hung_up.get(call_id)
            if at is not None and now - at <= HUNG_UP_SECONDS:
                call.live |= GONE
        self._schedule(call, now + self._timing.settle + ORPHAN)
        return call

    def _join(
        self,
        call: Call,
        said: Said,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
        reporter: str | None = None,
    ) -> None:
        if call.media is None:
            call.media = Facts()
        if clock not in call.media_clocks:
            call.media_clocks += (clock,)
        refused = call.media.refused
        join(call.media, said, source, destination, clock, at, reporter)
        self.refused_reports += call.media.refused - refused

    def _outcome(self, call: Call) -> Outcome:
        clocks = (*call.clocks, *call.media_clocks) if call.media_clocks else call.clocks
        return outcome(
            call, self._agents.clocks(clocks), self._timing, self._thresholds, self.record_labels
        )

    def _conclude(self, call: Call, now: float) -> None:
        """Say what is known of a call and was not said yet; what is not complete, `interrupted`."""
        if call.emitted is not None and call.last_now <= call.emitted_at and not call.media_news:
            return
        said = self._outcome(call)
        if said.orphan:
            self._dismiss(call)
            return
        records = said.records
        if said.due > call.last_now + self._timing.settle:
            records = [interrupted(record) for record in records]
        self._emit(call, records, said.intervals, said.left_out, said.traits)
        call.emitted_at = now

    def _dismiss(self, call: Call) -> None:
        """Forget what proved to be no call; what was said of it is taken back."""
        self.orphans += 1
        if call.emitted is not None or call.stored:
            self._emit(call, ())
        self._forget(call)

    def _schedule(self, call: Call, due: float) -> None:
        call.due = due
        heapq.heappush(self._deadlines, (due, call.call_id))
        if len(self._deadlines) > 2 * len(self._calls) + SPARE_DEADLINES:
            # A call that was hung up leaves the deadline it had before, hours ahead.
            self._deadlines = [(call.due, call_id) for call_id, call in self._calls.items()]
            heapq.heapify(self._deadlines)

    def _schedule_by(self, call: Call, due: float) -> None:
        if due < call.due:
            self._schedule(call, due)

    def _show(self, call: Call, *, gone: bool = False) -> None:
        """Count a call under its live state, and tell of it; one that is `gone` has none."""
        here = not gone and (call.emitted is None or call.revived)
        state = _STATE_OF[call.live] if here else None
        if state != call.shown:
            if call.shown is not None:
                self.live[call.shown] -= 1
            if state is not None:
                self.live[state] += 1
            call.shown = state
        if self.watch:
            self._tell(call, gone=gone)

    def _tell(self, call: Call, *, gone: bool = False) -> None:
        """Tell of a call what is not told yet; one whose INVITE was lost holds capacity, too."""
        last, state = call.moved, call.shown
        if state is None and not gone and (call.emitted is None or call.revived):
            state = _MET_STATE_OF[call.live]
        if state is not None:
            if last is None or call.news:
                move = Move(call.call_id, STATES[state], self._cohort(call))
                call.news = False
            else:
                move = Move(call.call_id, STATES[state], last.cohort)
        elif last is not None:
            move = Move(call.call_id, None, last.cohort)
        elif call.emitted is None and call.live & (INVITED | ENDED) and _is_over(call.live):
            # Whoever admitted it waits for it, and will not see it live.
            move = Move(call.call_id, None, Cohort())
        else:
            return
        if move != last:
            call.moved = move
            self._moves.append(move)

    def _cohort(self, call: Call) -> Cohort:
        if self.labels is None:
            return Cohort()
        return self.labels.of_call(call, self._agents.clocks(call.clocks).agent_ids)

    def _tell_answered(self, call: Call) -> None:
        """Tell of the setups of a call that were answered a settle time ago."""
        clocks = self._agents.clocks(call.clocks)
        said = outcome(call, clocks, self._timing, None, self.record_labels)
        for record in said.calls:
            if record.answered:
                self._tell_setup(call, record, said.attempts, said.traits)

    def _tell_setup(
        self,
        call: Call,
        record: CallRecord,
        attempts: Sequence[AttemptRecord],
        traits: AllTraits,
    ) -> None:
        """Tell once what became of a setup; not of one that was not seen, or that goes on."""
        if record.from_tag in call.set_up or "partial_no_invite" in record.flags:
            return
        if "interrupted" in record.flags and not record.answered:
            return
        call.set_up = (*call.set_up, record.from_tag)
        mine = tuple(attempt for attempt in attempts if attempt.from_tag == record.from_tag)
        said = next((said for tag, said in traits if tag == record.from_tag), ())
        self._setups.append(Setup(_without_media(record), mine, said))

    def _judge(self, call: Call, now: float) -> None:
        # Not `<=`: what came at the very instant of the last emission is not said yet.
        only_media = call.emitted is not None and call.last_now < call.emitted_at
        if only_media and not call.media_news:
            self._forget(call)
            return
        patience = self._not_before(call)
        early = patience > now and _ends_unseen(call)
        quick = max(0.0 if early else patience, call.last_now + self._timing.settle)
        if quick > now:
            self._schedule(call, quick)
            return
        if self._may_be_restored(call, now):
            self._schedule(call, now + HOLD_LOOK)
            return
        said = self._outcome(call)
        due = said.due
        if early and any(c.inferred and c.final_code == 408 for c in said.calls):
            due = max(due, patience)  # nothing that was seen ends it
        if due > now:
            if (
                call.emitted is None
                and call.live & REFUSED
                and not any(c.ended and c.end_source != "timer" for c in said.calls)
            ):
                # what looked like the call's refusal was an attempt's, or the caller tried elsewhere
                call.live &= ~REFUSED
                self._show(call)
            self._schedule(call, due)
            return
        if said.orphan:
            self._dismiss(call)
            return
        self._emit(call, said.records, said.intervals, said.left_out, said.traits)
        if only_media:
            self._forget(call)
            return
        call.emitted_at = now
        self._schedule(call, now + self._linger)
        self._keep(call, now)

    def _keep(self, call: Call, now: float, *, oldest: bool = False) -> None:
        """Let a call linger for late facts; the `oldest` goes first when there is no room."""
        self._lingering[call.call_id] = None
        self._lingering.move_to_end(call.call_id, last=not oldest)
        if len(self._lingering) > MAX_LINGERING:
            self._evict(now)

    def _evict(self, now: float) -> None:
        """Forget the call that lingers longest; what late facts changed of it is said before."""
        call = self._calls[next(iter(self._lingering))]
        self.evicted += 1
        self._conclude(call, now)
        if call.call_id in self._calls:
            self._forget(call)

    def _may_be_restored(self, call: Call, now: float) -> bool:
        """Whether a call that lacks its INVITE should wait for what was stored before a restart.

        Not while strays take up more than half of the room: newcomers need it more.
        """
        return (
            self.hold_partials_until is not None
            and now < self.hold_partials_until
            and call.emitted is None
            and not call.live & INVITED
            and "rebuilt" not in call.marks
            and 2 * (len(self._calls) - len(self._lingering)) <= self._max_calls
        )

    def _not_before(self, call: Call) -> float:
        """The cheap half of the judgement: calls that are plainly not over need no derivation."""
        bits = call.live
        if call.emitted is not None or bits & (ENDED | REFUSED):
            return 0.0
        if not bits & (INVITED | ANSWERED):
            return 0.0
        if bits & ANSWERED:
            return call.last_now + min(
                (call.session_expires or self._timing.longest) + TIMER_B, self._timing.longest
            )
        return call.last_now + (TIMER_C if bits & RANG else TIMER_B) + self._timing.settle

    def _emit(
        self,
        call: Call,
        records: Sequence[Revisable],
        intervals: Sequence[QualityInterval] = (),
        left_out: int = 0,
        traits: AllTraits = (),
    ) -> None:
        first = call.emitted is None
        said, now_said = call.emitted or {}, hashes(records)
        fresh = [record for record in records if said.get(key := key_of(record)) != now_said[key]]
        replaced: set[RowKey] = {(*key, call.first_received_at) for key in now_said}
        gone: set[RowKey] = {(*key, call.first_received_at) for key in said}
        gone = (gone | set(call.stored)) - replaced
        if first:
            self.left_out += left_out
        elif fresh or gone:
            call.revision += 1
            self.revisions += 1
        if call.revision or call.marks:
            marks = marks_of(call)
            fresh = [marked(record, call.revision, marks) for record in fresh]
        self._records += fresh
        self._records += [
            Retraction(call.call_id, tag, branch, received_at, call.revision, stream)
            for tag, branch, stream, received_at in sorted(gone, key=str)
        ]
        if intervals:
            said_hashes = {hash((i.reporter_ssrc, i.source_ssrc, i.at)): i for i in intervals}
            self._records += [
                interval for key, interval in said_hashes.items() if key not in call.intervals_said
            ]
            call.intervals_said = frozenset(said_hashes)
        call.media_news = False
        call.stored = ()
        call.emitted = now_said
        call.revived = False
        self._show(call)
        if self.tell_setups:
            attempts = [record for record in records if isinstance(record, AttemptRecord)]
            for record in records:
                if isinstance(record, CallRecord):
                    self._tell_setup(call, record, attempts, traits)

    def _forget(self, call: Call) -> None:
        self._show(call, gone=True)
        if call.media is not None and not call.clocks:
            self._media_only -= 1
        self.index.forget(call.call_id)
        self._lingering.pop(call.call_id, None)
        del self._calls[call.call_id]


def _ends_unseen(call: Call) -> bool:
    """Whether an open call may be over: what is open of its INVITEs has a CANCEL or an ACK.

    Its record tells; to derive that at every message would cost too much.
    """
    if call.live & (ANSWERED | ENDED | GONE | REFUSED):
        return False
    acked = {(ack.branch, ack.cseq) for ack in call.acks.values()}
    open_ones = [
        bool(leg.cancel) or key in acked
        for key, leg in call.legs.items()
        if (leg.parent, leg.cseq) not in call.legs
        and not any(status >= 200 for status, *_ in leg.replies)
    ]
    return bool(open_ones) and all(open_ones)


def _was_heard(facts: Sequence[Sighting], heard: Sequence[Heard]) -> bool:
    """Whether RTCP of a restored call was heard for a while since its session changed last."""
    since = max(
        (
            fact.received_at
            for fact in facts
            if fact.message.method == "INVITE" and fact.message.status is None
        ),
        default=facts[0].received_at,
    )
    times = [
        report.received_at
        for report in heard
        if isinstance(report.said, rtcp.Report) and report.received_at > since
    ]
    return bool(times) and max(times) - min(times) >= HEARD_SECONDS * 1_000_000


def _set_up(call: Call, rows: Sequence[StoredRow]) -> tuple[str, ...]:
    """From tags of a restored call whose setup was over in an earlier life."""
    tags = {row.from_tag for row in rows if row.of_a_call and not row.interrupted}
    tags |= {
        leg.from_tag
        for leg in call.legs.values()
        if any(200 <= status < 300 for status, *_ in leg.replies)
    }
    return tuple(sorted(tags))


def _without_media(record: CallRecord) -> CallRecord:
    """What was known of a call before its media was judged."""
    if record.mos is None and not record.findings:
        return record
    return msgspec.structs.replace(
        record, mos=None, mos_scale=None, mos_direction=None, findings=(), evidence=None
    )
