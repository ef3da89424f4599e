"""Calls that FreeSWITCH alone shows: their live states and setups, by the events of their legs.

A leg that came in is a call; one that FreeSWITCH made for it is not another. Where SIP shows the
call, SIP tells of it, and goes on to be believed after its end: an event that repeats an old state
brings nothing back. What FreeSWITCH adds then is that a leg was answered, and its end: the 200 and
the BYE may be lost.
"""

from collections import deque
from collections.abc import Callable

from sipsidecar.calls.events import CallRecord, Cohort, LegRecord, Move, Setup
from sipsidecar.calls.labelling import Labels
from sipsidecar.calls.legs import SETTLE, TURN, Leg, LegTable
from sipsidecar.calls.table import STATES, Alive, CallTable

TRYING, RINGING, ANSWERED = STATES


class _Told:
    """One Call-ID: its legs that came in and have not left, and what was said of it."""

    __slots__ = ("legs", "move", "seen", "sip")

    def __init__(self) -> None:
        self.legs: dict[str, Leg] = {}
        self.move: Move | None = None
        self.seen: tuple[str | None, tuple[str, ...]] = (None, ())
        """State and gateways that its cohort was told by."""
        self.sip = False
        """SIP has told of it."""

    def state(self) -> str | None:
        """The furthest of its legs; None when all have ended."""
        states = {_state(leg) for leg in self.legs.values()}
        return next((state for state in (ANSWERED, RINGING, TRYING) if state in states), None)


class Following:
    """The calls of legs, as long as these go on."""

    def __init__(
        self, calls: CallTable, legs: LegTable, record: Callable[[LegRecord], CallRecord]
    ) -> None:
        """`record`: a leg's call as its events tell it."""
        self._calls = calls
        self._legs = legs
        self._record = record
        self._told: dict[str, _Told] = {}
        self._call_ids: dict[str, str] = {}
        """By the UUID of each leg that is followed."""
        self._answered: deque[tuple[float, str]] = deque()
        """Legs whose setup is told at a time, by that time."""

    def __len__(self) -> int:
        return len(self._told)

    def see(self, leg: Leg, now: float) -> None:
        """One event of a leg was joined."""
        if leg.left:
            return
        if self._calls.tell_setups and leg.answered and leg.set_up is None:
            leg.set_up = False
            self._answered.append((now + SETTLE, leg.uuid))
        if leg.call_id and leg.answered:
            if leg.ended:
                self._calls.hang_up(leg.call_id, now)
            else:
                self._calls.answer(leg.call_id)
        if not self._calls.watch:
            return
        if leg.direction == "inbound":
            self._follow(leg)
            return
        for other in leg.conversation.legs:
            if other.uuid in self._call_ids:
                self._say(self._call_ids[other.uuid])

    def left(self, record: LegRecord) -> None:
        """A leg's record has left: it ended, or was given up."""
        if "interrupted" in record.flags:
            return
        call_id = self._call_ids.pop(record.uuid, None)
        if call_id is not None:
            told = self._told[call_id]
            del told.legs[record.uuid]
            self._say(call_id)
            if not told.legs:
                del self._told[call_id]
        leg = self._legs.leg_of(record.uuid)
        if self._calls.tell_setups and not record.revision and (leg is None or not leg.set_up):
            self._say_setup(leg, record)

    def alive(self, call_id: str) -> Alive | None:
        """What is known of a Call-ID, by SIP and by events; None when nothing is (any more)."""
        known, told = self._calls.alive(call_id), self._told.get(call_id)
        if told is None:
            return known
        told.sip = told.sip or self._calls.tells(call_id)
        over = told.state() is None
        last = max(leg.last_now for leg in told.legs.values())
        if known is None:
            return Alive(over or told.sip, last, media=False)
        if told.sip:
            over = known.over
        return Alive(over, known.last_now if over else max(known.last_now, last), known.media)

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        return self._answered[0][0] if self._answered else None

    def handle_timer(self, now: float) -> None:
        """Tell of the setups that were answered a settle time ago, at most `TURN`."""
        for _ in range(TURN):
            if not self._answered or self._answered[0][0] > now:
                return
            leg = self._legs.leg_of(self._answered.popleft()[1])
            if leg is not None and not leg.set_up:
                self._say_setup(leg, leg.record(leg.conversation.name()))

    def _follow(self, leg: Leg) -> None:
        call_id, before = leg.call_id, self._call_ids.get(leg.uuid)
        if before is not None and before != call_id:
            # An earlier event came late, and names it otherwise.
            del self._told[before].legs[leg.uuid], self._call_ids[leg.uuid]
            self._say(before)
            if not self._told[before].legs:
                del self._told[before]
        if not call_id:
            return
        if call_id != before:
            if _state(leg) is None:
                return
            self._call_ids[leg.uuid] = call_id
            self._told.setdefault(call_id, _Told()).legs[leg.uuid] = leg
        self._say(call_id)

    def _say(self, call_id: str) -> None:
        """Tell of a call what is not told yet, unless SIP does."""
        told = self._told[call_id]
        told.sip = told.sip or self._calls.tells(call_id)
        if told.sip:
            return
        state = told.state()
        if state is None:
            told.seen = (None, ())
            move = told.move._replace(state=None) if told.move is not None else None
        else:
            gateways = tuple(
                each.value("variable_sip_gateway_name") or ""
                for leg in told.legs.values()
                for each in leg.conversation.legs
            )
            if told.seen == (state, gateways):
                return
            told.seen = (state, gateways)
            move = Move(call_id, state, self._cohort(told))
        if move is not None and move != told.move:
            told.move = move
            self._calls.say(move)

    def _cohort(self, told: _Told) -> Cohort:
        labels = self._calls.labels
        if labels is None:
            return Cohort()
        leg = min((leg for leg in told.legs.values() if not leg.ended), key=Leg.rank)
        return cohort_of(leg.record(""), leg, labels)

    def _say_setup(self, leg: Leg | None, record: LegRecord) -> None:
        """Tell once what became of a setup that was seen, unless SIP shows it."""
        if leg is not None:
            leg.set_up = True
        if not record.call_id or "created_unseen" in record.flags:
            return
        if self._calls.has_sip(record.call_id) or (leg is not None and leg.mirrored):
            return
        self._calls.say_setup(Setup(self._record(record), ()))


def cohort_of(record: LegRecord, leg: Leg | None, labels: Labels) -> Cohort:
    """A leg's cohort; where it is no trunk's, that of the newest leg that was made for it."""
    found = labels.of_leg(record)
    if leg is None or record.direction != "inbound":
        return found
    made = [other for other in leg.conversation.legs if other.direction == "outbound"]
    made.sort(key=Leg.rank, reverse=True)
    return labels.with_peers(found, (labels.of_leg(other.record("")) for other in made))


def _state(leg: Leg) -> str | None:
    """Trying, ringing or answered; None when it has ended."""
    if leg.ended:
        return None
    return ANSWERED if leg.answered else RINGING if leg.ringing else TRYING
