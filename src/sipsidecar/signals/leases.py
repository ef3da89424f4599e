"""Which calls hold capacity now: those admitted and not seen yet, and those seen live.

A lease begins with an admission, or with a call that is seen without one. It ends with the call:
by BYE, refusal or hang-up as HEP or ESL show it, by its patience when the call never comes, by
silence when its end was lost. A lost BYE never leaks capacity.

What is said of an ended call is remembered for a while: live states that come late do not bring it
back. Where the call table knows better it goes on, and is counted again at once: what looked like
its refusal was an attempt's, or its caller tried once more. So is a call that was taken for silent
and is heard again.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from sipsidecar.calls.events import OTHER, Cohort
from sipsidecar.signals.rules import GLOBAL, SCOPES

LATE = 64.0
"""Seconds that an end is remembered: a live state brings the call back only if the table knows it to be
alive, and where others said that it is over, not before this time: HEP repeats and reorders, and a
call lingers in the table for 64 T1 twice (RFC 3261)."""
OVERLAP = 1.0
"""Seconds after a question in which an end is doubted: HEP is slower and reorders, so it may be that of
the INVITE before a redirect, or of an attempt whose caller's INVITE is still on its way here."""
DOUBT = 0.5
"""Seconds that a doubted end waits for what proves it wrong: longer than HEP reorders."""
MAX_RETRIES = 8
"""INVITEs with higher CSeqs that still are the call that was asked about: a challenge's answer, a
redirect's. Without an end one admission would let any number of calls in."""
MAX_SAME = 64
"""Leases of one Call-ID. No honest caller has more than a few; one end ends them all."""
TURN = 256
"""Leases looked at per turn, so that many at once do not stall the receiver."""

WHYS: Final = ("over", "unseen", "gone", "quiet", "longest", "refused", "released")
"""Why leases end. gone: the call table does not know the call any more."""

_ALL: Final = (GLOBAL, "")


class Lease(msgspec.Struct):
    """One call that holds capacity."""

    call_id: str
    from_tag: str
    cohort: Cohort
    since: float
    cseq: int | None = None
    seen: bool = False
    """HEP or ESL showed the call; until then it is pending."""
    answered: bool = False
    passed: bool = False
    """It was seen to ring or be answered: whoever asks about it let it pass already."""
    due: float = 0.0
    """Monotonic; when it is looked at again."""
    exempt: bool = False
    """Of a call that is never refused."""
    asked: bool = True
    """It was admitted; else it was only seen, and its From tag is not known."""
    earlier: tuple[int, ...] = ()
    """CSeqs that it was asked about before `cseq`."""
    asked_at: float = float("-inf")
    """Monotonic; when it was first asked about `cseq`."""
    doubted: bool = False
    """It ended, as it seems."""
    number: int = 0
    """Of its own."""


class Alive(msgspec.Struct, frozen=True):
    """What the call table knows of one Call-ID."""

    over: bool
    last_now: float
    """Monotonic time of its last sign of life: SIP, RTCP or an event."""
    media: bool
    """Reports of its media were heard, so that silence means something."""


class _Past(msgspec.Struct):
    """One Call-ID whose leases have ended."""

    at: float
    due: float
    refused: bool = False
    """By this product: such a call can have no live state but trying."""
    released: bool = False
    """Not by the table's word, which may come to know it later."""
    said: tuple[str, Cohort] | None = None
    """The newest live state that came since."""


class _Silent(msgspec.Struct):
    """Calls of one Call-ID that ended as silent; one sign of life brings them back."""

    at: float
    due: float
    leases: list[Lease]


class Leases:
    """All leases, and how many there are of each scope's value.

    `pending` seconds an admitted call has to be seen; `quiet` seconds without a sign of life end a
    call whose media was reported (0: never); `longest` ends any. Each seen lease is checked against
    `alive` every `look` seconds. Times are monotonic; one that steps back counts as standing still.
    """

    def __init__(
        self,
        alive: Callable[[str], Alive | None],
        *,
        pending: float = 5.0,
        quiet: float = 120.0,
        longest: float = 14400.0,
        look: float = 10.0,
        max_leases: int = 200_000,
    ) -> None:
        self.active: Counter[tuple[str, str]] = Counter()
        """Leases by (scope, value); ("global", "") counts all. A value without any is not in it."""
        self.ended: Counter[str] = Counter()
        """By why: one of `WHYS`."""
        self.refused = 0
        """Newcomers over `max_leases`, or over `MAX_SAME` of one Call-ID: not followed."""
        self.forgotten = 0
        """Ended calls that were forgotten early, for there were more than `max_leases` of them."""
        self.returned = 0
        """Calls that had ended, as it seemed, and went on."""
        self._alive = alive
        self._patience = pending
        self._quiet = quiet
        self._longest = longest
        self._look = look
        self._max = max_leases
        self._now = float("-inf")
        self._numbers = 0
        self._calls: dict[str, list[Lease]] = {}
        # Each in the order of its deadlines: the time that it waits is the same for all in it.
        self._pending: OrderedDict[int, Lease] = OrderedDict()
        self._seen: OrderedDict[int, Lease] = OrderedDict()
        self._doubted: OrderedDict[int, Lease] = OrderedDict()
        self._past: OrderedDict[str, _Past] = OrderedDict()
        self._silent: OrderedDict[str, _Silent] = OrderedDict()
        self._before: dict[tuple[str, str], int] = {}
        """Counts as they were when `changed` was asked last."""

    def __len__(self) -> int:
        return len(self._pending) + len(self._seen) + len(self._doubted)

    def __iter__(self) -> Iterator[Lease]:
        for leases in self._calls.values():
            yield from leases

    @property
    def pending(self) -> int:
        """Admitted calls that were not seen yet."""
        return len(self._pending)

    @property
    def remembered(self) -> int:
        """Ended calls whose names are kept."""
        return len(self._past) + len(self._silent)

    def holds(
        self, call_id: str, from_tag: str, cseq: int | None, now: float | None = None
    ) -> bool:
        """Whether this question is of a call that holds a lease.

        It is for a retransmission, another fork, the retry after a challenge or a failover, but not
        for a new call under an old name.
        """
        if now is not None:
            self._advance(now)
        return self._held(call_id, from_tag, cseq) is not None

    def own(self, call_id: str, now: float | None = None) -> Lease | None:
        """The lease that a call has because it was seen before its question came: HEP was faster.

        It stands in the counts already, and must not be counted against itself. An answered one is
        meant only if it is young: its question was late, as after a stop of this process.
        """
        if now is not None:
            self._advance(now)
        return next(
            (
                one
                for one in self._calls.get(call_id, ())
                if not one.asked and (not one.answered or self._now - one.since < self._patience)
            ),
            None,
        )

    def is_crowded(self, call_id: str) -> bool:
        """Whether a Call-ID has so many leases that no other begins: refuse its next call.

        Attack: all calls of one caller under one Call-ID, of which only the first would count.
        """
        return len(self._calls.get(call_id, ())) >= MAX_SAME

    def admit(
        self, call_id: str, from_tag: str, cseq: int | None, cohort: Cohort, now: float,
        *, exempt: bool = False,
    ) -> Lease | None:  # fmt: skip
        """Begin a lease; None, and counted, without room. A call that was seen already has one."""
        now = self._advance(now)
        lease = self._held(call_id, from_tag, cseq)
        if lease is not None:
            return lease
        self._past.pop(call_id, None)
        lease = self.own(call_id)
        if lease is not None:
            lease.asked, lease.asked_at, lease.exempt = True, now, exempt
            lease.from_tag, lease.cseq = from_tag, cseq
            self._place(lease, _refined(cohort, lease.cohort))
            return lease
        if self.is_crowded(call_id):
            self.refused += 1
            return None
        lease = Lease(call_id, from_tag, cohort, now, cseq, exempt=exempt, asked_at=now)
        return lease if self._begin(lease, now) else None

    def refuse(self, call_id: str, now: float) -> None:
        """A call was refused: what HEP shows of its INVITE until then holds no capacity."""
        now = self._advance(now)
        lease = self.own(call_id)
        if lease is not None and not lease.passed:
            self._end(lease, "refused")
        if call_id not in self._calls:
            self._remember(call_id, now, refused=True)

    def see(self, call_id: str, state: str, cohort: Cohort, now: float) -> None:
        """A call is live: trying, ringing or answered.

        The cohort that was asked about stays, but for what is `other` in it.
        """
        now = self._advance(now)
        if call_id in self._silent and call_id not in self._calls:
            self._bring_back(self._silent.pop(call_id), now)
        leases = self._calls.get(call_id)
        if leases is None:
            past = self._past.get(call_id)
            if past is not None and self._is_late(call_id, past, state):
                past.said = state, cohort
                return
            if past is not None:
                del self._past[call_id]
                self.returned += not past.refused
            self._begin(_seen(call_id, state, cohort, now), now)
            return
        for lease in leases:
            unsure = not self._is_over(call_id) if lease.doubted else not lease.seen
            if unsure:
                self._mark_seen(lease, now)
            if state != "trying":
                lease.passed = True
            if state == "answered":
                lease.answered = True
            self._place(lease, _refined(lease.cohort, cohort) if lease.asked else cohort)

    def over(self, call_id: str, now: float, why: str = "over") -> int:
        """A call ended; returns how many leases it held.

        One that was asked about just now is doubted, and ends if nothing proves it wrong.
        """
        now = self._advance(now)
        self._silent.pop(call_id, None)
        held = 0
        for lease in tuple(self._calls.get(call_id, ())):
            if why == "over" and not lease.answered and now - lease.asked_at < OVERLAP:
                self._doubt(lease, now)
                continue
            self._end(lease, why)
            held += 1
        if call_id not in self._calls:
            self._remember(call_id, now, released=why != "over")
        return held

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        return min((queue[0] for queue in self._heads()), default=None)

    def handle_timer(self, now: float) -> None:
        """End what was never seen, and what shows no sign of life; a bounded part per turn.

        What is left is due at once again.
        """
        now = self._advance(now)
        for _ in range(TURN):
            due, look = min(self._heads(), key=lambda head: head[0], default=(now, None))
            if look is None or due > now:
                return
            look(now)

    def changed(self) -> Sequence[tuple[str, str]]:
        """Scopes' values whose count changed since the last time; drains."""
        before, self._before = self._before, {}
        return [key for key, count in before.items() if self.active[key] != count]

    # ------------------------------------------------------------------------------------- deadlines

    def _heads(self) -> Iterator[tuple[float, Callable[[float], None]]]:
        """When each queue's first is due, and who looks at it."""
        for queue, look in (
            (self._pending, self._look_at_pending),
            (self._seen, self._look_at_seen),
            (self._doubted, self._look_at_doubted),
            (self._past, self._look_at_past),
            (self._silent, self._look_at_silent),
        ):
            for entry in queue.values():
                yield entry.due, look
                break

    def _look_at_pending(self, now: float) -> None:
        lease = next(iter(self._pending.values()))
        if not self._is_over(lease.call_id):
            self._mark_seen(lease, now)  # its INVITE was lost on its way here
        else:
            self._end(lease, "unseen")

    def _look_at_seen(self, now: float) -> None:
        lease = next(iter(self._seen.values()))
        alive = self._alive(lease.call_id)
        if alive is None:
            self._end(lease, "gone")
        elif alive.over:
            self._end(lease, "over")
            if lease.call_id not in self._calls:
                self._remember(lease.call_id, now)
        elif now - lease.since > self._longest:
            self._end(lease, "longest")
            if lease.call_id not in self._calls:
                self._remember(lease.call_id, now, released=True)
        elif self._is_quiet(alive, now):
            self._end(lease, "quiet")
            self._silence(lease, now)
        else:
            lease.due = now + self._look
            self._seen.move_to_end(lease.number)

    def _look_at_doubted(self, now: float) -> None:
        lease = next(iter(self._doubted.values()))
        if not self._is_over(lease.call_id):
            self._mark_seen(lease, now)
            return
        self._end(lease, "over")
        if lease.call_id not in self._calls:
            self._remember(lease.call_id, now)

    def _look_at_past(self, now: float) -> None:
        call_id, past = self._past.popitem(last=False)
        if past.said is None or call_id in self._calls:
            return
        alive = self._alive(call_id)
        if alive is not None and not alive.over and alive.last_now > past.at:
            self._begin(_seen(call_id, *past.said, now), now)

    def _look_at_silent(self, now: float) -> None:
        call_id, silent = self._silent.popitem(last=False)
        alive = self._alive(call_id)
        if alive is None or alive.over:
            return
        if alive.last_now > silent.at:
            self._bring_back(silent, now)
        elif now - min(one.since for one in silent.leases) <= self._longest:
            silent.due = now + self._look
            self._silent[call_id] = silent

    def _is_late(self, call_id: str, past: _Past, state: str) -> bool:
        """Whether a live state is an old one of an ended call, or of one that was refused."""
        if past.refused:
            return state == "trying"
        return past.released or self._is_over(call_id)

    def _is_over(self, call_id: str) -> bool:
        """Whether the table knows no live call of this name."""
        alive = self._alive(call_id)
        return alive is None or alive.over

    def _is_quiet(self, alive: Alive, now: float) -> bool:
        return self._quiet > 0 and alive.media and now - alive.last_now > self._quiet

    # ---------------------------------------------------------------------------------------- leases

    def _advance(self, now: float) -> float:
        self._now = max(self._now, now)
        return self._now

    def _held(self, call_id: str, from_tag: str, cseq: int | None) -> Lease | None:
        """The lease that a question is of, which from now on knows its CSeq."""
        for lease in self._calls.get(call_id, ()):
            if not lease.asked or lease.from_tag != from_tag:
                continue
            if cseq is None or cseq == lease.cseq or cseq in lease.earlier:
                return lease
            if lease.cseq is None:
                lease.cseq = cseq
                return lease
            if not lease.answered and cseq > lease.cseq and len(lease.earlier) < MAX_RETRIES:
                lease.earlier += (lease.cseq,)
                lease.cseq, lease.asked_at = cseq, self._now
                if lease.doubted:
                    self._wait_again(lease)
                return lease
        return None

    def _begin(self, lease: Lease, now: float) -> bool:
        if len(self) >= self._max:
            self.refused += 1
            return False
        self._numbers += 1
        lease.number = self._numbers
        self._calls.setdefault(lease.call_id, []).append(lease)
        if lease.seen:
            lease.due = now + self._look
            self._seen[lease.number] = lease
        else:
            lease.due = now + self._patience
            self._pending[lease.number] = lease
        self._count(lease.cohort, 1)
        return True

    def _end(self, lease: Lease, why: str) -> None:
        leases = self._calls[lease.call_id]
        if len(leases) == 1:
            del self._calls[lease.call_id]
        else:
            leases[:] = [one for one in leases if one is not lease]
        del self._queue(lease)[lease.number]
        self._count(lease.cohort, -1)
        self.ended[why] += 1

    def _mark_seen(self, lease: Lease, now: float) -> None:
        del self._queue(lease)[lease.number]
        lease.seen, lease.doubted, lease.due = True, False, now + self._look
        self._seen[lease.number] = lease

    def _doubt(self, lease: Lease, now: float) -> None:
        if not lease.doubted:
            del self._queue(lease)[lease.number]
            lease.doubted, lease.due = True, now + DOUBT
            self._doubted[lease.number] = lease

    def _wait_again(self, lease: Lease) -> None:
        """It did end, but its caller tries once more."""
        del self._doubted[lease.number]
        lease.seen, lease.doubted, lease.due = False, False, self._now + self._patience
        self._pending[lease.number] = lease

    def _queue(self, lease: Lease) -> OrderedDict[int, Lease]:
        """Where it waits for its deadline."""
        return self._doubted if lease.doubted else self._seen if lease.seen else self._pending

    def _place(self, lease: Lease, cohort: Cohort) -> None:
        if cohort != lease.cohort:
            self._count(lease.cohort, -1)
            lease.cohort = cohort
            self._count(cohort, 1)

    def _count(self, cohort: Cohort, by: int) -> None:
        for key in (_ALL, *zip(SCOPES, cohort, strict=False)):  # no carrier, no agent
            count = self.active[key]
            self._before.setdefault(key, count)
            if count + by:
                self.active[key] = count + by
            else:
                del self.active[key]

    def _remember(
        self, call_id: str, now: float, *, refused: bool = False, released: bool = False
    ) -> None:
        self._past.pop(call_id, None)
        if len(self._past) >= self._max:
            self._past.popitem(last=False)
            self.forgotten += 1
        self._past[call_id] = _Past(now, now + LATE, refused, released)

    def _silence(self, lease: Lease, now: float) -> None:
        silent = self._silent.get(lease.call_id)
        if silent is not None:
            silent.leases.append(lease)
            return
        if len(self._silent) >= self._max:
            self._silent.popitem(last=False)
            self.forgotten += 1
        self._silent[lease.call_id] = _Silent(now, now + self._look, [lease])

    def _bring_back(self, silent: _Silent, now: float) -> None:
        for lease in silent.leases:
            self.returned += self._begin(lease, now)


def _seen(call_id: str, state: str, cohort: Cohort, now: float) -> Lease:
    """The lease of a call that is seen and was not asked about."""
    return Lease(
        call_id, "", cohort, now, seen=True, answered=state == "answered",
        passed=state != "trying", asked=False,
    )  # fmt: skip


def _refined(known: Cohort, told: Cohort) -> Cohort:
    """What is known of a call, completed by what else is told of it."""
    if OTHER not in known:
        return known
    return Cohort(*(new if old == OTHER else old for old, new in zip(known, told, strict=True)))
