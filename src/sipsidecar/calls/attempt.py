"""The egress side of a dialog to attempt records: each INVITE branch towards a trunk or callee.

Every INVITE transaction that is not the ingress is an attempt, and so is an ingress one that the
capture node itself sent.
"""

from collections.abc import Sequence

from sipsidecar.calls.call import MAX_LEGS, RETRIED, Call, Leg
from sipsidecar.calls.dialog import (
    CHALLENGES,
    FORK_US,
    INVERSION_US,
    PDD_STOP,
    Clocks,
    Dialog,
    any_time,
    clip,
    code_class,
    has_sdp,
    is_2xx,
    merge,
    read_reasons,
    same_endpoints,
)
from sipsidecar.calls.events import AttemptRecord, Cohort, Traits
from sipsidecar.calls.labelling import Labels
from sipsidecar.wire import hep, sip


class Branches(Dialog):
    """A dialog that knows its attempts."""

    def __init__(
        self,
        call: Call,
        from_tag: str,
        legs: Sequence[Leg],
        clocks: Clocks,
        labels: Labels | None = None,
    ) -> None:
        super().__init__(call, from_tag, legs, clocks)
        self.labels = labels
        self.cohort = self._ingress_cohort() if labels is not None else None

    def _head(self) -> Leg | None:
        """The earliest INVITE at the ingress hop, else at any: who called whom."""
        seen = [leg for leg in self.roots if leg.first] or [leg for leg in self.legs if leg.first]
        return min(seen, key=lambda leg: leg.first.key if leg.first else (0, 0), default=None)

    def _ingress_cohort(self) -> Cohort:
        """What the ingress hop says; where its INVITE was lost, its ends are those of its replies."""
        assert self.labels is not None
        head = self._head()
        hop = head
        if head is None or head.branch in self.parents:
            hop = next((leg for leg in self.roots if leg.ends()), head)
        return self.labels.of_hop(
            head.first if head is not None else None,
            hop.ends() if hop is not None else None,
            any_time(hop) if hop is not None else (),
            self.clocks.agent_ids,
        )

    def _attempt_cohort(self, leg: Leg) -> Cohort | None:
        if self.labels is None or self.cohort is None:
            return None
        hop = self.labels.of_hop(leg.first, leg.ends(), any_time(leg), self.clocks.agent_ids)
        return self.labels.of_attempt(hop, self.cohort)

    def traits(self, attempts: Sequence[AttemptRecord]) -> tuple[tuple[str, Traits], ...]:
        """What the INVITEs of the ingress hop and of its attempts said, as `Setup` has it."""
        firsts = {leg.branch: leg.first for leg in self.legs}
        head = self._head()
        said = [("", head.first if head is not None and head.branch not in self.parents else None)]
        said += [(one.branch, firsts[one.branch]) for one in attempts]
        return tuple([(branch, first.traits) for branch, first in said if first and first.traits])

    def _attempts(self) -> list[AttemptRecord]:
        legs = [
            leg for leg in self.legs if leg.branch in self.parents or self._leaves_the_node(leg)
        ]
        # The next node's clock may differ, but what it sends on comes after what it was sent.
        legs.sort(
            key=lambda leg: (
                leg.cseq,
                self._depth(leg.branch),
                self._stamp(any_time(leg)) or 0,
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
            r.to_tag in tags for other in self.legs for r in other.replies.values() if is_2xx(r)
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
            and same_endpoints(ack.ends, leg.ends())
            for ack in self.acks
        )

    def _failed_over(self, attempts: Sequence[AttemptRecord]) -> bool:
        """Whether one place tried the next branch after another gave way, not both at once."""
        legs = {leg.branch: leg for leg in self.legs}
        for attempt in attempts:
            if not _gave_way(attempt):
                continue
            refused = merge(
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
        elif code in CHALLENGES:
            retried = any(other.cseq > leg.cseq for other in self.legs)
            flags.add("challenged" if retried else "auth_not_completed")
        at = self._stamp(any_time(leg))
        dated_by = "agent"
        if at is None or not self._plausible(at):
            at, dated_by = self.call.first_received_at, "receiver"
        ends = leg.ends()
        first = leg.first
        reasons = read_reasons(final.reasons if final else leg.cancel_reasons)
        offer, codec = self._codecs(
            [leg], [answer] if answer else [], [r for r in replies if 100 < r.status < 200]
        )
        progress = merge(r.times for r in replies if r.status in PDD_STOP or 200 <= r.status < 300)
        cohort = self._attempt_cohort(leg)
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
            ruri_user=clip(first.ruri_user) if first else None,
            ruri_host=clip(first.ruri_host) if first else None,
            tenant=cohort.tenant if cohort else None,
            trunk=cohort.trunk if cohort else None,
            direction=cohort.direction if cohort else None,
            region=cohort.region if cohort else None,
            carrier=cohort.carrier if cohort else None,
            agent=cohort.agent if cohort else None,
            final_code=code,
            final_phrase=clip(final.phrase) if final else None,
            final_class=code_class(code),
            answered=code is not None and 200 <= code < 300,
            inferred=inferred,
            pdd_ms=self._span_ms(leg.invite, progress),
            ring_ms=self._span_ms(leg.invite, merge(r.times for r in replies if r.status == 180)),
            early_media_ms=self._span_ms(
                leg.invite, merge(r.times for r in replies if r.status == 183 and has_sdp(r))
            ),
            setup_ms=self._span_ms(leg.invite, answer.times) if answer else None,
            fail_ms=self._span_ms(leg.invite, refusal.times) if refusal and not answer else None,
            q850=next((r.cause for r in reasons if r.protocol.upper() == "Q.850"), None),
            reason=clip(", ".join(sip.text(r) for r in final.reasons)) or None if final else None,
            retransmissions=self.call.retransmissions({leg.branch}),
            codec_offered=clip(",".join(offer)) or None,
            codec_negotiated=clip(codec),
            flags=tuple(sorted(flags)),
        )


def _gave_way(attempt: AttemptRecord) -> bool:
    """A refusal after which a proxy tries the next; a challenge or redirect is retried instead."""
    code = attempt.final_code
    return (
        code is not None
        and code >= 400
        and code not in RETRIED
        and "cancelled" not in attempt.flags
    )
