"""A call's facts to the records they prove, and to the time that has to pass before they stand.

The table that is followed is the passive tracker's: facts of the INVITE transactions, of CANCEL,
ACK and BYE; 2xx beats every other final; a challenge is no end while a retry may come; what was
never seen is inferred only when its timer of RFC 3261 ran out, and is marked.

The *call* is the ingress: INVITE transactions that no other transaction of the call was forwarded
into (Via's branch below the top one, else the chain of addresses). Every other INVITE branch is an
*attempt*, and so is an ingress one that the capture node itself sent.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from sipsidecar.calls.call import (
    DIALOG_GONE,
    MAX_LEGS,
    RECEIVER,
    Call,
    DialogFact,
    Endpoint,
    Invite,
    Leg,
    Place,
    Reply,
    Times,
    earlier,
)
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.wire import hep, sdp, sip

TIMER_B = 32.0
"""64*T1: an INVITE without any reply, a CANCEL without a final, a challenge without a retry."""
TIMER_C = 180.0
"""RFC 3261 16.6: longest silence after a provisional response."""
ORPHAN = 5.0
"""How long facts without an INVITE wait for it."""
INVERSION_US = 20_000
"""Kamailio stamps a message after it was sent, so an instant answer may look older; up to this
much the truth is below the resolution and reads 0, beyond it an interval is unknown."""
FORK_US = 250_000
"""INVITEs sent within this of each other are a parallel fork: none waited for another to fail."""
IMPLAUSIBLE_US = 86_400_000_000
"""An agent's clock more than a day off the receive time does not date a record."""
MAX_TEXT = 255

_PDD_STOP = frozenset({180, 181, 182, 183})
_CHALLENGES = frozenset({401, 407})
_RETRIED = frozenset({401, 407, 422, 494})
_GONE = frozenset({404, 481})


class Timing(msgspec.Struct, frozen=True):
    """The waits that are choices, in seconds; the others are RFC 3261's."""

    settle: float = 2.0
    """How long facts that are complete wait for late ones."""
    longest: float = 14_400.0
    """When an answered call whose BYE was never seen is given up."""


class Clocks(msgspec.Struct, frozen=True):
    """What the call's clocks are: capture id and local addresses of the agent behind each."""

    agent_ids: dict[int, int | None]
    """Clock to capture id; None when that agent sends none."""
    local: frozenset[bytes]
    """Packed addresses of the capture nodes; empty while unknown."""


class Outcome(msgspec.Struct, frozen=True):
    """What can be said now: the records, and when they may be said if nothing else comes."""

    due: float
    """Monotonic seconds."""
    calls: tuple[CallRecord, ...]
    attempts: tuple[AttemptRecord, ...]
    orphan: bool
    """Nothing here is a call: stray ACKs, a BYE that the far side did not know."""


def outcome(call: Call, clocks: Clocks, timing: Timing) -> Outcome:
    """Derive everything that the facts prove."""
    groups = _groups(call)
    if not groups:
        return _without_invite(call, clocks, timing)
    calls: list[CallRecord] = []
    attempts: list[AttemptRecord] = []
    wait = 0.0
    for from_tag in sorted(groups):
        view = _View(call, from_tag, groups[from_tag], clocks)
        record, branches, needed = view.derive(timing)
        calls.append(record)
        attempts += branches
        wait = max(wait, needed)
    return Outcome(call.last_now + wait, tuple(calls), tuple(attempts), False)


def _groups(call: Call) -> dict[str, list[Leg]]:
    """INVITE transactions by the caller's tag, without those of re-INVITEs."""
    groups: dict[str, list[Leg]] = {}
    for leg in call.legs.values():
        if leg.invite or (leg.from_tag, leg.cseq) not in call.reinvites:
            groups.setdefault(leg.from_tag, []).append(leg)
    if len(groups) > 1:
        # A re-INVITE whose request was lost looks like a call of the callee's.
        invited = {tag for tag, legs in groups.items() if any(leg.invite for leg in legs)}
        callees = {
            reply.to_tag for tag in invited for leg in groups[tag] for reply in leg.replies.values()
        }
        for tag in list(groups):
            if tag not in invited and tag in callees:
                del groups[tag]
    return groups


def _without_invite(call: Call, clocks: Clocks, timing: Timing) -> Outcome:
    """Facts of a dialog whose INVITE was never seen: a BYE ends it, anything else may go on."""
    nothing = Outcome(call.last_now + ORPHAN + timing.settle, (), (), True)
    if not call.byes:
        if call.in_dialog:
            return msgspec.structs.replace(nothing, due=call.last_now + timing.longest)
        return nothing
    if call.bye_codes and _GONE.issuperset(call.bye_codes):
        return nothing
    first = min(call.byes.values(), key=lambda bye: (min(bye.times[1::2]), bye.from_tag))
    view = _View(call, _caller_of(first), [], clocks)
    record, _, _ = view.derive(timing)
    return Outcome(call.last_now + ORPHAN + timing.settle, (record,), (), False)


def _caller_of(bye: DialogFact) -> str:
    """The caller's tag when only a BYE tells it.

    A BYE numbered 1 is its sender's first request of the dialog (RFC 3261 12.2.1.1), so its
    sender did not send the INVITE. Otherwise nobody knows, and the smaller tag keys the record.
    """
    if bye.cseq == 1:
        return bye.to_tag
    return min(bye.from_tag, bye.to_tag)


class _View:
    """One dialog of a call, from its caller's side."""

    def __init__(self, call: Call, from_tag: str, legs: Sequence[Leg], clocks: Clocks) -> None:
        self.call = call
        self.tag = from_tag
        self.legs = sorted(legs, key=lambda leg: (leg.cseq, _oldest(leg.invite), leg.branch))
        self.clocks = clocks
        self.parents = self._parents()
        roots = [leg for leg in self.legs if leg.branch not in self.parents]
        self.roots, self.late = _without_reinvites(roots)
        self.seen_invite = any(leg.invite for leg in self.legs)
        self.order = self._clock_order()
        self.byes = [b for b in call.byes.values() if from_tag in (b.from_tag, b.to_tag)]
        self.acks = [a for a in call.acks.values() if a.from_tag == from_tag]

    # -- which transaction was forwarded into which

    def _parents(self) -> dict[str, str]:
        """Branch of a forwarded INVITE to the branch it came from."""
        branches = {leg.branch for leg in self.legs}
        parents: dict[str, str] = {}
        for leg in self.legs:
            if leg.parent is not None and leg.parent in branches and leg.parent != leg.branch:
                parents[leg.branch] = leg.parent
        for i, leg in enumerate(self.legs):
            if leg.branch in parents:
                continue
            # A proxy that rewrites Via (topology hiding) still sends from where it received.
            for other in self.legs[:i]:
                if other.cseq == leg.cseq and _chained(other, leg):
                    parents[leg.branch] = other.branch
                    break
        return parents

    def _clock_order(self) -> list[int]:
        """The clocks of the call, the one that saw the first INVITE first."""
        firsts = _merge(leg.invite for leg in (self.roots or self.legs))
        others = sorted(self.call.clocks)
        if not firsts:
            return others
        primary = min((firsts[i + 1], firsts[i]) for i in range(0, len(firsts), 2))[1]
        return [primary, *(c for c in others if c != primary)]

    # -- times

    def _stamp(self, times: Times) -> int | None:
        """A fact's time by the first clock of the call's order that saw it."""
        for clock in self.order:
            for i in range(0, len(times), 2):
                if times[i] == clock:
                    return times[i + 1]
        return None

    def _span_ms(self, start: Times, end: Times) -> float | None:
        """Milliseconds between two facts, both by one clock; None when no clock saw both."""
        for clock in self.order:
            a = b = None
            for i in range(0, len(start), 2):
                if start[i] == clock:
                    a = start[i + 1]
            for i in range(0, len(end), 2):
                if end[i] == clock:
                    b = end[i + 1]
            if a is not None and b is not None:
                if b >= a:
                    return (b - a) / 1000
                return 0.0 if a - b <= INVERSION_US else None
        return None

    def _invited(self) -> Times:
        """The caller's first INVITE, by the clocks that can tell which one was first.

        A clock that missed one of the INVITEs of the lowest CSeq, as when a caller turns to the next
        server and that has another agent, would start its intervals at the wrong one.
        """
        lowest = min((leg.cseq for leg in self.roots), default=0)
        firsts = [(leg.invite, _life(leg)) for leg in self.roots if leg.cseq == lowest]
        times: Times = ()
        for clock in self.order:
            lives = [(_by(clock, life), _by(clock, invite)) for invite, life in firsts]
            began = [(at, invite) for at, invite in lives if at is not None]
            if len(began) == len(lives) and began:
                invite = min(began, key=lambda some: some[0])[1]
                if invite is not None:
                    times = earlier(times, clock, invite)
        return times

    def _plausible(self, at: int) -> bool:
        return abs(at - self.call.first_received_at) <= IMPLAUSIBLE_US

    # -- the record

    def derive(self, timing: Timing) -> tuple[CallRecord, list[AttemptRecord], float]:
        call = self.call
        newest = max((leg.cseq for leg in self.roots), default=0)
        current = [leg for leg in self.roots if leg.cseq == newest]
        invited = self._invited()
        replies = [reply for leg in self.roots for reply in leg.replies.values()]
        answers = [reply for reply in replies if 200 <= reply.status < 300]
        provisional = [reply for reply in replies if 100 < reply.status < 200]
        cancelled = _merge(leg.cancel for leg in current)
        failure = self._failure(current)
        attempts = self._attempts()

        flags: set[str] = set()
        code: int | None = None
        phrase: str | None = None
        inferred = False
        ended_by: str | None = None
        wait = timing.settle
        final: Reply | None = None
        if answers:
            final = min(answers, key=self._reply_key)
            code, phrase = final.status, final.phrase
            if any(leg.cancel and any(map(_is_2xx, leg.replies.values())) for leg in self.roots):
                flags.add("cancel_race")
        elif failure is not None:
            final = failure
            code, phrase = final.status, final.phrase
            if code in _CHALLENGES:
                flags.add("auth_not_completed")
            if code in _RETRIED or 300 <= code < 400:
                wait += TIMER_B
            if code not in _CHALLENGES:
                ended_by = "cancel" if cancelled and code == 487 else "final"
        elif self.legs and self._answer_is_implied(current, attempts):
            code, inferred = 200, True
            flags.add("answer_inferred")
        elif self.seen_invite or self.roots:
            # what was refused and then tried elsewhere says nothing of the one that is open
            unsaid = [
                leg for leg in current if not any(r.status >= 300 for r in leg.replies.values())
            ]
            refused = any(a.branch == leg.branch for leg in unsaid for a in self.acks)
            if refused:
                flags.add("final_lost")
                ended_by = "final"
            elif cancelled:
                code, inferred, ended_by = 487, True, "timer"
                wait += TIMER_B
            elif any(leg.replies for leg in unsaid):
                code, inferred, ended_by = 408, True, "timer"
                flags.add("stuck_early")
                wait += TIMER_C
            else:
                code, inferred, ended_by = 408, True, "timer"
                flags.add("no_response")
                wait += TIMER_B
        answered = code is not None and 200 <= code < 300

        bye = self._bye(answers)
        bye_at = _merge(fact.times for fact in bye)
        answered_at = _merge(reply.times for reply in answers)
        if bye:
            ended_by = "bye"
        elif answered and self._gone():
            ended_by = "dialog-gone"
        elif answered:
            interval = call.session_expires
            wait = min(interval + TIMER_B, timing.longest) if interval else timing.longest
        elif not self.seen_invite:
            wait = max(wait, ORPHAN + timing.settle)

        self._flag_dialog(flags, newest, answers, answered)
        if self._failed_over(attempts):
            flags.add("failover")

        first_progress = _merge(
            r.times for r in replies if r.status in _PDD_STOP or 200 <= r.status < 300
        )
        first_response = _merge(reply.times for reply in (*provisional, *answers))
        pdd = self._span_ms(invited, first_progress)
        srd = self._span_ms(invited, first_response)
        fail = None
        if failure is not None and not answered:
            fail = self._span_ms(invited, failure.times)
            if srd is None and not first_response and failure.status not in _CHALLENGES:
                srd = fail if failure.status >= 400 else None
        ringing = _merge(r.times for r in replies if r.status == 180)
        early = _merge(r.times for r in replies if r.status == 183 and _has_sdp(r))

        started_at = self._stamp(invited)
        if started_at is None:
            started_at = self._stamp(self._anything())
        ended_at = self._ended_at(ended_by, bye_at, final, cancelled, wait)
        dated = started_at if started_at is not None else call.first_received_at
        dated_by = "agent"
        if not self._plausible(dated):
            if ended_at is not None:
                ended_at += call.first_received_at - dated
            dated, dated_by = call.first_received_at, "receiver"

        head = self._head()
        ends = self._ends() or (head and (head.source, head.destination))
        what_ended = bye[0].reasons if bye else ()
        if not bye:
            what_ended = final.reasons if final else ()
            if cancelled:
                what_ended = (*what_ended, *_first_cancel(current).cancel_reasons)
        reasons = _reasons(what_ended)
        if cancelled and any(r.protocol.upper() == "SIP" and r.cause == 200 for r in reasons):
            flags.add("completed_elsewhere")
        offer, codec = self._codecs(self.roots, answers, provisional)
        record = CallRecord(
            call_id=call.call_id,
            from_tag=self.tag,
            received_at=call.first_received_at,
            started_at=dated,
            ended=ended_by is not None,
            ended_at=ended_at,
            end_source=ended_by,
            agent_ids=self._agent_ids(),
            time_source="receiver" if self.order[:1] == [RECEIVER] else "agent",
            dated_by=dated_by,
            clock_agent_id=self.clocks.agent_ids.get(self.order[0]) if self.order else None,
            from_user=_clip(head.from_user) if head else None,
            from_host=_clip(head.from_host) if head else None,
            to_user=_clip(head.to_user) if head else None,
            to_host=_clip(head.to_host) if head else None,
            ruri_user=_clip(head.ruri_user) if head else None,
            ruri_host=_clip(head.ruri_host) if head else None,
            user_agent=_clip(head.user_agent) if head else None,
            src_ip=hep.address_text(ends[0][0]) if ends else None,
            src_port=ends[0][1] if ends else None,
            dst_ip=hep.address_text(ends[1][0]) if ends else None,
            dst_port=ends[1][1] if ends else None,
            transport=head.transport if head else None,
            final_code=code,
            final_phrase=_clip(phrase),
            final_class=_class(code),
            final_origin=self._origin(code, inferred, final, bool(cancelled)),
            answered=answered,
            inferred=inferred,
            pdd_ms=pdd,
            srd_ms=srd,
            ring_ms=self._span_ms(invited, ringing),
            early_media_ms=self._span_ms(invited, early),
            setup_ms=self._span_ms(invited, answered_at),
            talk_ms=self._span_ms(answered_at, bye_at),
            fail_ms=fail,
            released_by=self._released_by(bye, answered, code, bool(cancelled)),
            q850=next((r.cause for r in reasons if r.protocol.upper() == "Q.850"), None),
            reason=_clip(", ".join(sip.text(r) for r in what_ended if r != b"X-Admission")) or None,
            invites=self._invites(),
            retransmissions=call.retransmissions(self._primary_places()),
            attempts=len(attempts),
            codec_offered=_clip(",".join(offer)) or None,
            codec_negotiated=_clip(codec),
            flags=tuple(sorted(flags)),
            seizure=self.seen_invite and not (code is not None and 300 <= code < 400),
        )
        return record, attempts, wait

    def _flag_dialog(
        self,
        flags: set[str],
        newest: int,
        answers: Sequence[Reply],
        answered: bool,
    ) -> None:
        if not self.seen_invite:
            flags.add("partial_no_invite")
        elif not any(leg.invite for leg in self.roots):
            flags.add("invite_lost")
        superseded = {
            reply.status
            for leg in self.roots
            if leg.cseq < newest
            for reply in leg.replies.values()
        }
        if superseded & _CHALLENGES:
            flags.add("challenged")
        if any(300 <= status < 400 for status in superseded):
            flags.add("redirected")
        for leg in self.roots:
            tags = {r.to_tag for r in leg.replies.values() if 100 < r.status < 300 and r.to_tag}
            if len(tags) > 1:
                flags.add("forked")
        if len({reply.to_tag for reply in answers}) > 1:
            flags.add("extra_2xx")
        if self._reinvited():
            flags.add("reinvite")
        if self.call.refers and answered:
            flags.add("refer")
        if answers and self.seen_invite and not self._acknowledged():
            flags.add("no_ack")

    def _reinvited(self) -> bool:
        callees = {r.to_tag for leg in self.roots for r in leg.replies.values()}
        return bool(self.late) or any(
            tag == self.tag or tag in callees for tag, _ in self.call.reinvites
        )

    def _gone(self) -> Times:
        """When the far side said of a refresh that it knows no such dialog."""
        refreshes = set(self.call.reinvites)
        again = [leg for leg in self.call.legs.values() if (leg.from_tag, leg.cseq) in refreshes]
        replies = (r for leg in (*again, *self.late) for r in leg.replies.values())
        return _merge((self.call.gone, *(r.times for r in replies if r.status in DIALOG_GONE)))

    def _acknowledged(self) -> bool:
        """Some ACK that is not the one a refusal gets (RFC 3261 17.1.1.3: same branch)."""
        refusals = {
            leg.branch
            for leg in self.legs
            if any(r.status >= 300 for r in leg.replies.values())
            and not any(200 <= r.status < 300 for r in leg.replies.values())
        }
        return any(ack.branch not in refusals for ack in self.acks)

    def _failure(self, current: Sequence[Leg]) -> Reply | None:
        """The final refusal that stands: of each newest transaction the earliest, of these the last.

        None while one that was only tried after them has no final: they were not the end.
        """
        finals = []
        for leg in current:
            refusals = [reply for reply in leg.replies.values() if reply.status >= 300]
            if refusals:
                finals.append(min(refusals, key=self._reply_key))
        if not finals:
            return None
        failure = max(finals, key=self._reply_key)
        last = max(current, key=lambda leg: (_oldest(_life(leg)), leg.branch))
        if any(reply.status >= 200 for reply in last.replies.values()):
            return failure
        began, refused = self._stamp(_life(last)), self._stamp(failure.times)
        moved_on = began is not None and refused is not None and began >= refused - INVERSION_US
        return None if moved_on else failure

    def _reply_key(self, reply: Reply) -> tuple[int, int, str]:
        stamp = self._stamp(reply.times)
        return (stamp if stamp is not None else 0, reply.status, reply.to_tag)

    def _answer_is_implied(self, current: Sequence[Leg], attempts: Sequence[AttemptRecord]) -> bool:
        """The 2xx was lost, but what only follows a 2xx was seen.

        The ACK to a 2xx has a new branch, the ACK to a refusal has the INVITE's (17.1.1.3, 13.2.2.4).
        """
        newest = {leg.branch for leg in self.legs if leg.cseq >= current[0].cseq} if current else ()
        tried = [attempt for attempt in attempts if attempt.branch in newest]
        if tried and all(a.final_code and a.final_code >= 300 and not a.inferred for a in tried):
            return False  # a BYE before the answer ends an early dialog
        if self.byes or self._reinvited():
            return True
        if any(attempt.answered for attempt in attempts):
            return True
        branches = {leg.branch for leg in self.legs}
        hops = {
            frozenset((a[0], b[0])) for leg in current if (ends := leg.ends()) for a, b in [ends]
        }
        return any(
            ack.to_tag
            and ack.branch not in branches
            and frozenset((ack.ends[0][0], ack.ends[1][0])) in hops
            for ack in self.acks
        )

    def _bye(self, answers: Sequence[Reply]) -> list[DialogFact]:
        """The BYE that ended the call, as seen at the ingress hop when it was seen there."""
        byes = self.byes
        tags = {reply.to_tag for reply in answers}
        if tags:
            # a 2xx that only an attempt shows is a dialog too, and its BYE is not another one's
            tags |= {r.to_tag for leg in self.legs for r in leg.replies.values() if _is_2xx(r)}
            byes = [b for b in byes if b.to_tag in tags or b.from_tag in tags] or byes
        if len(tags) > 1 and byes:
            # Several 2xx: the call is the dialog that lived longest, the others were shed by BYE.
            ends = {tag: [b for b in byes if tag in (b.from_tag, b.to_tag)] for tag in tags}
            if not all(ends.values()):
                return []
            byes = max(ends.values(), key=lambda some: min(self._stamp(b.times) or 0 for b in some))
        for same in (_same_endpoints, _same_hosts):
            here = [b for b in byes if any(same(b.ends, leg.ends()) for leg in self.roots)]
            if here:
                byes = here
                break
        byes = sorted(byes, key=lambda b: (self._stamp(b.times) or 0, b.from_tag, b.cseq))
        # Both sides may hang up at once: the earlier one did, its copies at other hops are the same.
        return [b for b in byes if b.from_tag == byes[0].from_tag]

    def _invites(self) -> int:
        """INVITE transactions on the caller's side; of an ingress never seen, by what names it."""
        if not self.seen_invite:
            return 0
        return len({(leg.cseq, leg.parent or leg.branch) for leg in self.roots})

    def _released_by(
        self, bye: Sequence[DialogFact], answered: bool, code: int | None, cancelled: bool
    ) -> str | None:
        if bye:
            if not self.legs and bye[0].cseq != 1:
                return None
            return "caller" if bye[0].from_tag == self.tag else "callee"
        return "caller" if cancelled and code == 487 and not answered else None

    def _ended_at(
        self,
        ended_by: str | None,
        bye_at: Times,
        final: Reply | None,
        cancelled: Times,
        wait: float,
    ) -> int | None:
        if ended_by == "bye":
            return self._stamp(bye_at)
        if ended_by == "dialog-gone":
            return self._stamp(self._gone())
        if ended_by in ("final", "cancel") and final is not None:
            return self._stamp(final.times)
        if ended_by == "final":
            return self._stamp(_merge(a.times for a in self.acks))
        if ended_by == "timer":
            # when the caller's own timer must have ended it, counted from the last thing it saw
            since = self._stamp(cancelled) if cancelled else self._stamp(self._latest())
            timer = TIMER_C if wait >= TIMER_C else TIMER_B
            return since + int(timer * 1_000_000) if since is not None else None
        return None

    def _latest(self) -> Times:
        """Times of the latest first sighting of the INVITE's transaction."""
        facts = [leg.invite for leg in self.roots]
        facts += [reply.times for leg in self.roots for reply in leg.replies.values()]
        return max(facts, key=lambda times: self._stamp(times) or 0, default=())

    def _anything(self) -> Times:
        facts = [leg.invite for leg in self.legs]
        facts += [reply.times for leg in self.legs for reply in leg.replies.values()]
        facts += [leg.cancel for leg in self.legs]
        facts += [fact.times for fact in (*self.byes, *self.acks)]
        return _merge(facts)

    def _agent_ids(self) -> tuple[int, ...]:
        ids = {self.clocks.agent_ids.get(clock) for clock in self.call.clocks}
        return tuple(sorted(i for i in ids if i is not None))

    def _head(self) -> Invite | None:
        """The earliest INVITE at the ingress hop, else at any: who called whom."""
        firsts = [leg.first for leg in self.roots if leg.first]
        firsts = firsts or [leg.first for leg in self.legs if leg.first]
        return min(firsts, key=lambda invite: invite.key, default=None)

    def _ends(self) -> tuple[Endpoint, Endpoint] | None:
        return next((ends for leg in self.roots if (ends := leg.ends())), None)

    def _primary_places(self) -> set[Place]:
        """Branches and hops of the caller's side, as retransmissions are counted by."""
        places: set[Place] = {leg.branch for leg in self.roots}
        for leg in self.roots:
            ends = leg.ends()
            if ends:
                places.add(ends if ends[0] < ends[1] else (ends[1], ends[0]))
        return places

    def _origin(
        self, code: int | None, inferred: bool, final: Reply | None, cancelled: bool
    ) -> str | None:
        """Who made the final response.

        A To tag that an attempt's response carried came from the far side; one that no attempt
        carried was made by the proxy in between, even when the code was (a 503 that became 500).
        """
        if code is None or not self.roots:
            return None
        if inferred:
            return "inferred"
        if code < 300:
            return "callee"
        if code == 487 and cancelled:
            return "caller"
        assert final is not None
        beyond = [leg for leg in self.legs if leg.branch in self.parents]
        if code == 487 and any(leg.cancel for leg in beyond):
            return None  # somebody cancelled, and that CANCEL was lost
        if any(
            r.to_tag == final.to_tag and r.status >= 300
            for leg in beyond
            for r in leg.replies.values()
        ):
            return "callee"
        if any(
            all(r.status < 200 for r in leg.replies.values())
            and any(ack.branch == leg.branch for ack in self.acks)
            for leg in beyond
        ):
            return None  # an attempt's final was lost: this may have been it
        ends = self._ends()
        local = self.clocks.local
        if not beyond and ends is not None and ends[1][0] not in local:
            return "callee"
        if not beyond and (ends is None or ends[0][0] in local):
            return None  # everybody has one address: nobody can tell the node from the callee
        # Only what the node itself answered can be our own admission: strangers write headers too.
        marks = _reasons(final.reasons)
        if not beyond and (
            b"X-Admission" in final.reasons
            or any(r.protocol.upper() == "SIP" and (r.text or "").startswith("cac") for r in marks)
        ):
            return "admission"
        return "proxy"

    def _codecs(
        self, legs: Sequence[Leg], answers: Sequence[Reply], provisional: Sequence[Reply]
    ) -> tuple[tuple[str, ...], str | None]:
        """Names offered, and the one agreed on; None unless the call was answered (RFC 3264)."""
        firsts = sorted((leg.first for leg in legs if leg.first), key=lambda i: i.key)
        offer = next((d for i in firsts if (d := _session(i.content_type, i.body))), None)
        replies = sorted(answers, key=self._reply_key) + sorted(provisional, key=self._reply_key)
        answer = next((d for r in replies if (d := _session(r.content_type, r.body))), None)
        if offer is None and answers:
            # the offer was in the 2xx, the answer is in the ACK (RFC 3261 13.2.2.4)
            acks = sorted(self.acks, key=lambda a: (self._stamp(a.times) or 0, a.branch))
            offer = answer
            answer = next((d for a in acks if (d := _session(a.content_type, a.body))), None)
        offered = sdp.audio_codecs(offer) if offer else ()
        return offered, _agreed(offer, answer) if answers else None

    # -- attempts

    def _attempts(self) -> list[AttemptRecord]:
        legs = [
            leg for leg in self.legs if leg.branch in self.parents or self._leaves_the_node(leg)
        ]
        # The next node's clock may differ, but what it sends on comes after what it was sent.
        legs.sort(
            key=lambda leg: (
                leg.cseq,
                self._depth(leg.branch),
                self._stamp(_any_time(leg)) or 0,
                leg.branch,
            )
        )
        return [self._attempt(leg, order) for order, leg in enumerate(legs, 1)]

    def _depth(self, branch: str) -> int:
        """How many nodes of the capture an INVITE was forwarded by."""
        depth, above = 0, self.parents.get(branch)
        while above is not None and depth < MAX_LEGS:
            depth, above = depth + 1, self.parents.get(above)
        return depth

    def _leaves_the_node(self, leg: Leg) -> bool:
        """Whether the capture node itself sent this INVITE to somebody else."""
        ends, local = leg.ends(), self.clocks.local
        return ends is not None and ends[0][0] in local and ends[1][0] not in local

    def _answered_out_of_sight(self, leg: Leg) -> bool:
        """Whether an attempt's 2xx was lost: its To tag was answered or acknowledged elsewhere."""
        tags = {r.to_tag for r in leg.replies.values() if r.to_tag}
        if any(
            r.to_tag in tags for other in self.legs for r in other.replies.values() if _is_2xx(r)
        ):
            return True
        branches = {other.branch for other in self.legs}
        parent = self.parents.get(leg.branch)
        siblings = [other for other in self.legs if self.parents.get(other.branch) == parent]
        others = {r.to_tag for other in siblings for r in other.replies.values()} - tags
        return any(
            ack.to_tag
            and ack.to_tag not in others
            and ack.branch not in branches
            and ack.cseq == leg.cseq
            and _same_endpoints(ack.ends, leg.ends())
            for ack in self.acks
        )

    def _failed_over(self, attempts: Sequence[AttemptRecord]) -> bool:
        """Whether one place tried the next branch after another gave way, not both at once."""
        legs = {leg.branch: leg for leg in self.legs}
        for attempt in attempts:
            if not _gave_way(attempt):
                continue
            refused = _merge(
                r.times for r in legs[attempt.branch].replies.values() if r.status >= 300
            )
            for later in attempts:
                if later.branch == attempt.branch:
                    continue
                if self.parents.get(later.branch) != self.parents.get(attempt.branch):
                    continue
                began = self._stamp(legs[later.branch].invite)
                gave = self._stamp(refused)
                first = self._stamp(legs[attempt.branch].invite)
                if began is None:
                    continue
                if gave is not None and began >= gave - INVERSION_US:
                    return True
                if gave is None and first is not None and began - first >= FORK_US:
                    return True
        return False

    def _attempt(self, leg: Leg, order: int) -> AttemptRecord:
        replies = sorted(leg.replies.values(), key=self._reply_key)
        answer = next((r for r in replies if 200 <= r.status < 300), None)
        refusal = next((r for r in replies if r.status >= 300), None)
        final = answer or refusal
        flags: set[str] = set()
        code = final.status if final else None
        inferred = False
        if leg.cancel:
            flags.add("cancelled" if answer is None else "cancel_race")
        if not leg.invite:
            flags.add("invite_lost")
        if len({r.to_tag for r in replies if 100 < r.status < 300 and r.to_tag}) > 1:
            flags.add("forked")
        if final is None:
            inferred = True
            if self._answered_out_of_sight(leg):
                code = 200
                flags.add("answer_inferred")
                if leg.cancel:
                    flags.discard("cancelled")
                    flags.add("cancel_race")
            elif any(ack.branch == leg.branch for ack in self.acks):
                flags.add("final_lost")
                inferred = False
            elif leg.cancel:
                code = 487
            elif replies:
                code = 408
                flags.add("stuck_early")
            else:
                code = 408
                flags.add("no_response")
        elif code in _CHALLENGES:
            retried = any(other.cseq > leg.cseq for other in self.legs)
            flags.add("challenged" if retried else "auth_not_completed")
        at = self._stamp(_any_time(leg))
        dated_by = "agent"
        if at is None or not self._plausible(at):
            at, dated_by = self.call.first_received_at, "receiver"
        ends = leg.ends()
        first = leg.first
        reasons = _reasons(final.reasons if final else leg.cancel_reasons)
        offer, codec = self._codecs(
            [leg], [answer] if answer else [], [r for r in replies if 100 < r.status < 200]
        )
        progress = _merge(
            r.times for r in replies if r.status in _PDD_STOP or 200 <= r.status < 300
        )
        return AttemptRecord(
            call_id=self.call.call_id,
            from_tag=self.tag,
            branch=leg.branch,
            received_at=self.call.first_received_at,
            started_at=at,
            dated_by=dated_by,
            agent_ids=self._agent_ids(),
            failover_order=order,
            src_ip=hep.address_text(ends[0][0]) if ends else None,
            src_port=ends[0][1] if ends else None,
            peer_ip=hep.address_text(ends[1][0]) if ends else None,
            peer_port=ends[1][1] if ends else None,
            transport=first.transport if first else None,
            ruri_user=_clip(first.ruri_user) if first else None,
            ruri_host=_clip(first.ruri_host) if first else None,
            final_code=code,
            final_phrase=_clip(final.phrase) if final else None,
            final_class=_class(code),
            answered=code is not None and 200 <= code < 300,
            inferred=inferred,
            pdd_ms=self._span_ms(leg.invite, progress),
            ring_ms=self._span_ms(leg.invite, _merge(r.times for r in replies if r.status == 180)),
            early_media_ms=self._span_ms(
                leg.invite, _merge(r.times for r in replies if r.status == 183 and _has_sdp(r))
            ),
            setup_ms=self._span_ms(leg.invite, answer.times) if answer else None,
            fail_ms=self._span_ms(leg.invite, refusal.times) if refusal and not answer else None,
            q850=next((r.cause for r in reasons if r.protocol.upper() == "Q.850"), None),
            reason=_clip(", ".join(sip.text(r) for r in final.reasons)) or None if final else None,
            retransmissions=self.call.retransmissions({leg.branch}),
            codec_offered=_clip(",".join(offer)) or None,
            codec_negotiated=_clip(codec),
            flags=tuple(sorted(flags)),
        )


def _merge(facts: Iterable[Times]) -> Times:
    merged: Times = ()
    for times in facts:
        if not merged:
            merged = times
            continue
        for i in range(0, len(times), 2):
            merged = earlier(merged, times[i], times[i + 1])
    return merged


def _without_reinvites(roots: list[Leg]) -> tuple[list[Leg], list[Leg]]:
    """Ingress transactions, and those of re-INVITEs whose request was lost.

    After an answer no INVITE without a To tag is sent any more: a reply to one is a re-INVITE's.
    """
    answered = [leg.cseq for leg in roots if leg.invite and any(map(_is_2xx, leg.replies.values()))]
    if not answered:
        return roots, []
    first = min(answered)
    late = [leg for leg in roots if leg.cseq > first and not leg.invite]
    return [leg for leg in roots if leg not in late], late


def _gave_way(attempt: AttemptRecord) -> bool:
    """A refusal after which a proxy tries the next; a challenge or redirect is retried instead."""
    code = attempt.final_code
    return (
        code is not None
        and code >= 400
        and code not in _RETRIED
        and "cancelled" not in attempt.flags
    )


def _by(clock: int, times: Times) -> int | None:
    """A fact's time by one clock."""
    return next((times[i + 1] for i in range(0, len(times), 2) if times[i] == clock), None)


def _life(leg: Leg) -> Times:
    """When anything of a transaction was first seen."""
    return _merge((leg.invite, leg.cancel, *(reply.times for reply in leg.replies.values())))


def _oldest(times: Times) -> int:
    return min(times[1::2]) if times else 1 << 62


def _any_time(leg: Leg) -> Times:
    return leg.invite or _merge(reply.times for reply in leg.replies.values()) or leg.cancel


def _first_cancel(legs: Sequence[Leg]) -> Leg:
    return min(
        (leg for leg in legs if leg.cancel), key=lambda leg: (_oldest(leg.cancel), leg.branch)
    )


def _chained(upstream: Leg, leg: Leg) -> bool:
    """Whether a transaction starts where another arrived."""
    above, below = upstream.ends(), leg.ends()
    if above is None or below is None:
        return False
    if below[0] == above[1]:
        return below[1] != above[0]
    return below[0][0] == above[1][0] and above[0][0] not in (below[0][0], below[1][0])


def _same_endpoints(
    a: tuple[Endpoint, Endpoint] | None, b: tuple[Endpoint, Endpoint] | None
) -> bool:
    return a is not None and b is not None and set(a) == set(b)


def _same_hosts(a: tuple[Endpoint, Endpoint] | None, b: tuple[Endpoint, Endpoint] | None) -> bool:
    return a is not None and b is not None and {a[0][0], a[1][0]} == {b[0][0], b[1][0]}


def _is_2xx(reply: Reply) -> bool:
    return 200 <= reply.status < 300


def _has_sdp(reply: Reply) -> bool:
    return bool(reply.body) and sdp.body_of(reply.content_type, reply.body) is not None


def _session(content_type: str, body: bytes) -> sdp.SessionDescription | None:
    description = sdp.body_of(content_type, body) if body else None
    if description is None:
        return None
    try:
        return sdp.parse(description)
    except sdp.SdpError:
        return None


def _agreed(
    offer: sdp.SessionDescription | None, answer: sdp.SessionDescription | None
) -> str | None:
    """The answer's codec; what it only numbers is named by the offer."""
    codec = sdp.negotiated(answer) if answer else None
    if codec is None or codec.name or offer is None:
        return codec.name if codec else None
    offered = (c for media in offer.media for c in media.codecs)
    return next((c.name for c in offered if c.payload_type == codec.payload_type), None)


def _reasons(raw: Collection[bytes]) -> list[sip.Reason]:
    return sip.parse_reasons(list(raw))


def _class(code: int | None) -> str | None:
    return f"{code // 100}xx" if code is not None else None


def _clip(value: str | None) -> str | None:
    return value[:MAX_TEXT] if value else None
