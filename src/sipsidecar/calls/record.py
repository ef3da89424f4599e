"""A call's facts to the records they prove, and to the time that has to pass before they stand.

The table that is followed is the passive tracker's: facts of the INVITE transactions, of CANCEL,
ACK and BYE; 2xx beats every other final; a challenge is no end while a retry may come; what was
never seen is inferred only when its timer of RFC 3261 ran out, and is marked.

The *call* is the ingress: INVITE transactions that no other transaction of the call was forwarded
into (Via's branch below the top one, else the chain of addresses). Every other INVITE branch is an
*attempt*, and so is an ingress one that the capture node itself sent.
"""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from sipsidecar.calls.attempt import Branches
from sipsidecar.calls.call import (
    DIALOG_GONE,
    RECEIVER,
    RETRIED,
    Call,
    DialogFact,
    Leg,
    Place,
    Reply,
    Times,
)
from sipsidecar.calls.dialog import (
    CHALLENGES,
    INVERSION_US,
    ORPHAN,
    PDD_STOP,
    TIMER_B,
    TIMER_C,
    UNKNOWN_DIALOG,
    Clocks,
    Timing,
    clip,
    code_class,
    has_sdp,
    is_2xx,
    life,
    merge,
    oldest,
    read_reasons,
    same_endpoints,
    same_hosts,
)
from sipsidecar.calls.events import (
    OTHER,
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    QualityInterval,
    Traits,
)
from sipsidecar.calls.judging import Judged, judged, media_alone
from sipsidecar.calls.labelling import Labels
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import hep, sip

MEDIA_PATIENCE = 30.0
"""Silence after which media that no call is known of is over; RTCP comes every 2 to 7 s."""

AllTraits: TypeAlias = tuple[tuple[str, tuple[tuple[str, Traits], ...]], ...]
"""What the INVITEs of each call said, by its From tag, as `Setup` has it; empty when nobody asks."""


class Outcome(msgspec.Struct, frozen=True):
    """What can be said now: the records, and when they may be said if nothing else comes."""

    due: float
    """Monotonic seconds."""
    calls: tuple[CallRecord, ...]
    attempts: tuple[AttemptRecord, ...]
    orphan: bool
    """Nothing here is a call: stray ACKs, a BYE that the far side did not know."""
    media: tuple[MediaRecord, ...] = ()
    intervals: tuple[QualityInterval, ...] = ()
    left_out: int = 0
    """What was reported of media and counts for nothing."""
    traits: AllTraits = ()

    @property
    def records(self) -> list[CallRecord | AttemptRecord | MediaRecord]:
        """All that late facts may change."""
        return [*self.calls, *self.attempts, *self.media]


def outcome(
    call: Call,
    clocks: Clocks,
    timing: Timing,
    thresholds: Thresholds | None = None,
    labels: Labels | None = None,
) -> Outcome:
    """Derive everything that the facts prove; of media only when `thresholds` are given.

    Whose a call is only when `labels` are given.
    """
    groups = _groups(call)
    if not groups:
        return _without_invite(call, clocks, timing, thresholds, labels)
    calls: list[CallRecord] = []
    attempts: list[AttemptRecord] = []
    views: list[_Ingress] = []
    traits: list[tuple[str, tuple[tuple[str, Traits], ...]]] = []
    wait = 0.0
    for from_tag in sorted(groups):
        view = _Ingress(call, from_tag, groups[from_tag], clocks, labels)
        record, branches, needed = view.derive(timing)
        calls.append(record)
        views.append(view)
        attempts += branches
        if call.traits:
            traits.append((from_tag, view.traits(branches)))
        wait = max(wait, needed)
    due, said = call.last_now + wait, tuple(traits)
    if thresholds is None:
        return Outcome(due, tuple(calls), tuple(attempts), False, traits=said)
    # Reports name a Call-ID, not a dialog of it: they are of the one that was answered.
    spoke = max(range(len(calls)), key=lambda i: (calls[i].answered, -i))
    heard = Judged()
    for i, view in enumerate(views):
        if calls[i].answered or view.early_media_at() or (call.media is not None and i == spoke):
            calls[i], found = judged(calls[i], view, call.media if i == spoke else None, thresholds)
            heard = found if i == spoke else heard
    return Outcome(due, tuple(calls), tuple(attempts), False, *heard, traits=said)


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


def _without_invite(
    call: Call,
    clocks: Clocks,
    timing: Timing,
    thresholds: Thresholds | None,
    labels: Labels | None,
) -> Outcome:
    """Facts of a dialog whose INVITE was never seen: a BYE ends it, anything else may go on."""
    nothing = Outcome(call.last_now + ORPHAN + timing.settle, (), (), True)
    if call.media is not None and thresholds is not None:
        heard = media_alone(call, call.media, thresholds)
        due = call.last_now + MEDIA_PATIENCE + timing.settle
        nothing = Outcome(due, (), (), False, *heard)
    if not call.byes:
        if call.in_dialog:
            return msgspec.structs.replace(nothing, due=call.last_now + timing.longest)
        return nothing
    if call.bye_codes and UNKNOWN_DIALOG.issuperset(call.bye_codes):
        return nothing
    # Media of a dialog that only its BYE was seen of stays without a call: whose is whose is unknown.
    first = min(call.byes.values(), key=lambda bye: (min(bye.times[1::2]), bye.from_tag))
    view = _Ingress(call, _caller_of(first), [], clocks, labels)
    record, _, _ = view.derive(timing)
    due = call.last_now + ORPHAN + timing.settle
    return Outcome(due, (record,), (), False, nothing.media, nothing.intervals, nothing.left_out)


def _caller_of(bye: DialogFact) -> str:
    """The caller's tag when only a BYE tells it.

    A BYE numbered 1 is its sender's first request of the dialog (RFC 3261 12.2.1.1), so its
    sender did not send the INVITE. Otherwise nobody knows, and the smaller tag keys the record.
    """
    if bye.cseq == 1:
        return bye.to_tag
    return min(bye.from_tag, bye.to_tag)


class _Ingress(Branches):
    """A dialog that knows its call record."""

    def derive(self, timing: Timing) -> tuple[CallRecord, list[AttemptRecord], float]:
        call = self.call
        newest = max((leg.cseq for leg in self.roots), default=0)
        current = [leg for leg in self.roots if leg.cseq == newest]
        invited = self._invited()
        replies = [reply for leg in self.roots for reply in leg.replies.values()]
        answers = [reply for reply in replies if 200 <= reply.status < 300]
        provisional = [reply for reply in replies if 100 < reply.status < 200]
        cancelled = merge(leg.cancel for leg in current)
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
            if any(leg.cancel and any(map(is_2xx, leg.replies.values())) for leg in self.roots):
                flags.add("cancel_race")
        elif failure is not None:
            final = failure
            code, phrase = final.status, final.phrase
            if code in CHALLENGES:
                flags.add("auth_not_completed")
            if code in RETRIED or 300 <= code < 400:
                wait += TIMER_B
            if code not in CHALLENGES:
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
        bye_at = merge(fact.times for fact in bye)
        answered_at = merge(reply.times for reply in answers)
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

        first_progress = merge(
            r.times for r in replies if r.status in PDD_STOP or 200 <= r.status < 300
        )
        first_response = merge(reply.times for reply in (*provisional, *answers))
        pdd = self._span_ms(invited, first_progress)
        srd = self._span_ms(invited, first_response)
        fail = None
        if failure is not None and not answered:
            fail = self._span_ms(invited, failure.times)
            if srd is None and not first_response and failure.status not in CHALLENGES:
                srd = fail if failure.status >= 400 else None
        ringing = merge(r.times for r in replies if r.status == 180)
        early = merge(r.times for r in replies if r.status == 183 and has_sdp(r))

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

        first = self._head()
        head = first.first if first is not None else None
        cohort = self._call_cohort(attempts)
        ends = self.ends() or (head and (head.source, head.destination))
        what_ended = bye[0].reasons if bye else ()
        if not bye:
            what_ended = final.reasons if final else ()
            if cancelled:
                what_ended = (*what_ended, *_first_cancel(current).cancel_reasons)
        reasons = read_reasons(what_ended)
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
            from_user=clip(head.from_user) if head else None,
            from_host=clip(head.from_host) if head else None,
            to_user=clip(head.to_user) if head else None,
            to_host=clip(head.to_host) if head else None,
            ruri_user=clip(head.ruri_user) if head else None,
            ruri_host=clip(head.ruri_host) if head else None,
            user_agent=clip(head.user_agent) if head else None,
            src_ip=hep.address_text(ends[0][0]) if ends else None,
            src_port=ends[0][1] if ends else None,
            dst_ip=hep.address_text(ends[1][0]) if ends else None,
            dst_port=ends[1][1] if ends else None,
            transport=head.transport if head else None,
            final_code=code,
            final_phrase=clip(phrase),
            final_class=code_class(code),
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
            reason=clip(", ".join(sip.text(r) for r in what_ended if r != b"X-Admission")) or None,
            invites=self._invites(),
            retransmissions=call.retransmissions(self._primary_places()),
            attempts=len(attempts),
            codec_offered=clip(",".join(offer)) or None,
            codec_negotiated=clip(codec),
            flags=tuple(sorted(flags)),
            seizure=self.seen_invite and not (code is not None and 300 <= code < 400),
            tenant=cohort.tenant if cohort else None,
            trunk=cohort.trunk if cohort else None,
            direction=cohort.direction if cohort else None,
            region=cohort.region if cohort else None,
            carrier=cohort.carrier if cohort else None,
            agent=cohort.agent if cohort else None,
        )
        return record, attempts, wait

    def _call_cohort(self, attempts: Sequence[AttemptRecord]) -> Cohort | None:
        """Whose the call is; None when nobody asks."""
        if self.labels is None or self.cohort is None:
            return None
        hops = (
            Cohort(trunk=one.trunk, carrier=one.carrier or OTHER, agent=one.agent or OTHER)
            for one in reversed(attempts)
            if one.trunk is not None
        )
        return self.labels.with_peers(self.cohort, hops)

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
        if superseded & CHALLENGES:
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

    def _gone(self) -> Times:
        """When the far side said of a refresh that it knows no such dialog."""
        refreshes = set(self.call.reinvites)
        again = [leg for leg in self.call.legs.values() if (leg.from_tag, leg.cseq) in refreshes]
        replies = (r for leg in (*again, *self.late) for r in leg.replies.values())
        return merge((self.call.gone, *(r.times for r in replies if r.status in DIALOG_GONE)))

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
        last = max(current, key=lambda leg: (oldest(life(leg)), leg.branch))
        if any(reply.status >= 200 for reply in last.replies.values()):
            return failure
        began, refused = self._stamp(life(last)), self._stamp(failure.times)
        moved_on = began is not None and refused is not None and began >= refused - INVERSION_US
        return None if moved_on else failure

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
        # An ACK of an older CSeq is that of a request which was tried again.
        return bool(current) and any(
            ack.to_tag
            and ack.branch not in branches
            and ack.cseq == current[0].cseq
            and frozenset((ack.ends[0][0], ack.ends[1][0])) in hops
            for ack in self.acks
        )

    def _bye(self, answers: Sequence[Reply]) -> list[DialogFact]:
        """The BYE that ended the call, as seen at the ingress hop when it was seen there."""
        byes = self.byes
        tags = {reply.to_tag for reply in answers}
        if tags:
            # a 2xx that only an attempt shows is a dialog too, and its BYE is not another one's
            tags |= {r.to_tag for leg in self.legs for r in leg.replies.values() if is_2xx(r)}
            byes = [b for b in byes if b.to_tag in tags or b.from_tag in tags] or byes
        if len(tags) > 1 and byes:
            # Several 2xx: the call is the dialog that lived longest, the others were shed by BYE.
            ends = {tag: [b for b in byes if tag in (b.from_tag, b.to_tag)] for tag in tags}
            if not all(ends.values()):
                return []
            byes = max(ends.values(), key=lambda some: min(self._stamp(b.times) or 0 for b in some))
        for same in (same_endpoints, same_hosts):
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
            return self._stamp(merge(a.times for a in self.acks))
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
        return merge(facts)

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
        ends = self.ends()
        local = self.clocks.local
        if not beyond and ends is not None and ends[1][0] not in local:
            return "callee"
        if not beyond and (ends is None or ends[0][0] in local):
            return None  # everybody has one address: nobody can tell the node from the callee
        # Only what the node itself answered can be our own admission: strangers write headers too.
        marks = read_reasons(final.reasons)
        if not beyond and (
            b"X-Admission" in final.reasons
            or any(r.protocol.upper() == "SIP" and (r.text or "").startswith("cac") for r in marks)
        ):
            return "admission"
        return "proxy"


def _first_cancel(legs: Sequence[Leg]) -> Leg:
    return min(
        (leg for leg in legs if leg.cancel), key=lambda leg: (oldest(leg.cancel), leg.branch)
    )
