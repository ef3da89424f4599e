"""FreeSWITCH's events to legs and conversations, and to what they add to the calls that SIP shows.

SIP stays the truth for final codes. Events add what mirrored SIP cannot tell: which two legs are one
conversation, RTCP, packet counts. Only where no SIP of a leg was seen, a call is recorded from its
events, and says so.
"""

from collections import Counter

import msgspec

from sipsidecar.calls.agents import Agents
from sipsidecar.calls.call import RECEIVER, Endpoint
from sipsidecar.calls.dialog import code_class
from sipsidecar.calls.events import CallRecord, Cohort, ConversationRecord, LegRecord
from sipsidecar.calls.following import Following, cohort_of
from sipsidecar.calls.joining import Said
from sipsidecar.calls.legs import Leg, LegTable, Unjoined
from sipsidecar.calls.table import Alive, CallTable, Retraction
from sipsidecar.wire import esl, quality, rtcp

MAX_TOLD = 20_000
"""Calls recorded from events that are remembered, in case their SIP comes after all."""

Output = LegRecord | ConversationRecord | Unjoined | CallRecord | Retraction

RECEIVED, SENT = "RECV_RTCP_MESSAGE", "SEND_RTCP_MESSAGE"


class Bridging:
    """The legs of every FreeSWITCH, beside the calls."""

    def __init__(self, calls: CallTable, agents: Agents, *, max_legs: int, linger: float) -> None:
        self._calls = calls
        self._agents = agents
        self.legs = LegTable(self._final_code, max_legs=max_legs, linger=linger)
        self.following = Following(calls, self.legs, self._call_of)
        self._told: dict[str, CallRecord] = {}
        """By Call-ID: what was recorded from events alone."""
        self._disproved: list[Retraction] = []
        self.reports: Counter[str] = Counter()
        """Reports of media by what became of them."""

    def receive(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        """One event of a FreeSWITCH; its name is the configured one, or its own in a transcript."""
        self.legs.receive(switch, event, now, received_at)
        leg = self.legs.leg_of(event.unique_id or "")
        if leg is not None and not leg.left and leg.call_id:
            # As of its last event: the SIP call may be forgotten before a leg whose end was not
            # heard. Not for ever: what was seen may prove to be no call, and is dismissed.
            leg.mirrored = self._calls.has_sip(leg.call_id)
        if event.event_name in (RECEIVED, SENT):
            self._report(switch, event, now, received_at)
            return
        if leg is not None:
            self.following.see(leg, now)
        if event.event_name == "CHANNEL_HANGUP_COMPLETE":
            self._packets(switch, event, now, received_at)

    def records(self) -> list[Output]:
        """What has left since the last time; drains."""
        found: list[Output] = []
        for record in self.legs.records():
            found.append(record)
            if isinstance(record, LegRecord):
                found += self._of_a_call(record)
                self.following.left(record)
        self.legs.mirrored.clear()
        found += self._disproved
        self._disproved.clear()
        return found

    def alive(self, call_id: str) -> Alive | None:
        """What is known of a Call-ID, by SIP and by events; None when nothing is (any more)."""
        return self.following.alive(call_id)

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        due, other = self.legs.next_timer(), self.following.next_timer()
        return due if other is None else other if due is None else min(due, other)

    def handle_timer(self, now: float) -> None:
        """Let leave what is due, a bounded part per turn."""
        self.following.handle_timer(now)
        self.legs.handle_timer(now)

    def _final_code(self, call_id: str) -> int | None:
        """What SIP shows, which is asked for at each look at a leg; what was said without it goes."""
        if not self._calls.has_sip(call_id):
            return None
        # The SIP call may be forgotten before the records of this look are drained.
        self.legs.mirrored.add(call_id)
        if call_id in self._told:
            self._disprove(call_id)
        return self._calls.final_code(call_id)

    def _disprove(self, call_id: str) -> None:
        told = self._told.pop(call_id)
        self._disproved.append(
            Retraction(call_id, told.from_tag, None, told.received_at, told.revision + 1)
        )

    def _report(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        leg = self.legs.leg_of(event.unique_id or "")
        if leg is None or not leg.call_id:
            self.reports["unjoined"] += 1
            return
        sent = event.event_name == SENT
        try:
            report = rtcp.from_freeswitch(event.rtcp or {}, sent=sent)
        except rtcp.RtcpError:
            self.reports["refused"] += 1
            return
        if not sent:
            report = _of_what_it_sends(report, leg)
        self.reports["sr" if report.sender is not None else "rr"] += 1
        if rtcp.implausible(report) is not None:
            self.reports["implausible"] += 1
            return
        self._say(leg, report, switch, event, now, received_at, by_switch=sent)

    def _packets(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        """What a leg's end counted is what the switch heard, and what it sent."""
        leg = self.legs.leg_of(event.unique_id or "")
        if leg is None or not leg.call_id or not leg.answered:
            return
        packets = leg.quality()
        if packets.received is None:
            return
        said = quality.SessionQuality(
            source="esl",
            heard_by=_party(leg, by_switch=True),
            codec=leg.value("channel_read_codec_name"),
            packets_received=packets.received,
            packets_sent=packets.sent,
        )
        self._say(leg, said, switch, event, now, received_at, by_switch=True)

    def _say(
        self,
        leg: Leg,
        said: Said,
        switch: str,
        event: esl.Event,
        now: float,
        received_at: int,
        *,
        by_switch: bool,
    ) -> None:
        """Join a report to the call of a leg, at the time that the event has."""
        clock, at = RECEIVER, received_at
        agent = self._agents.see(None, f"freeswitch {switch}", now, received_at)
        text = event.event_date_timestamp or ""
        if agent is not None and text.isascii() and text.isdigit() and len(text) <= 16:
            clock, at = agent.clock, int(text)
            agent.stamp(at, received_at, now)
        remote, local = leg.endpoints
        ends = (_rtcp(remote, 2 * leg.number), _rtcp(local, 2 * leg.number + 1))
        source, destination = reversed(ends) if by_switch else ends
        self._calls.receive_media(
            leg.call_id,
            said,
            source,
            destination,
            clock,
            at,
            now,
            received_at,
            reporter=_party(leg, by_switch=by_switch),
        )

    def _call_of(self, leg: LegRecord) -> CallRecord:
        """The call of a leg, as its events tell it."""
        labels = self._calls.record_labels
        cohort = cohort_of(leg, self.legs.leg_of(leg.uuid), labels) if labels is not None else None
        return _from_leg(leg, cohort)

    def _of_a_call(self, leg: LegRecord) -> list[Output]:
        """The call of a leg whose SIP nobody mirrored; what was said so before its SIP came goes."""
        call_id = leg.call_id
        if not call_id or call_id in self.legs.mirrored or self._calls.has_sip(call_id):
            if call_id in self._told:
                self._disprove(call_id)
            return []
        told = self._told.pop(call_id, None)
        record = msgspec.structs.replace(
            self._call_of(leg), revision=told.revision + 1 if told is not None else 0
        )
        record = self._calls.rated(record)
        if told is not None and msgspec.structs.replace(record, revision=told.revision) == told:
            self._told[leg.call_id] = told
            return []
        if len(self._told) >= MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[leg.call_id] = record
        return [record]


def _of_what_it_sends(report: rtcp.Report, leg: Leg) -> rtcp.Report:
    """A peer's report without blocks about SSRCs that this leg does not send: nobody knows whose."""
    text = leg.value("variable_rtp_use_ssrc") or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return report
    blocks = tuple(block for block in report.blocks if block.source_ssrc == int(text))
    if len(blocks) == len(report.blocks):
        return report
    # What it said of another stream says nothing of this one, not even that it hears nothing.
    return msgspec.structs.replace(report, blocks=blocks, reception=bool(blocks))


def _party(leg: Leg, *, by_switch: bool) -> str:
    """Which party of the leg's own SIP call speaks: FreeSWITCH answers inbound legs, makes the others."""
    inbound = leg.direction == "inbound"
    return "callee" if inbound == by_switch else "caller"


def _rtcp(rtp: Endpoint | None, number: int) -> Endpoint:
    """The RTCP end beside an RTP one; one of no address, told from all others, where it is unknown."""
    return (rtp[0], rtp[1] + 1) if rtp is not None else (b"", number)


def _from_leg(leg: LegRecord, cohort: Cohort | None) -> CallRecord:
    """A call as the events of its leg tell it, and whose it is."""
    setup = (leg.answered_at - leg.created_at) / 1000 if leg.answered_at is not None else None
    failed = leg.ended_at is not None and not leg.answered
    flags = {"from_esl"} | ({"derived"} if leg.sip_code_source == "derived" else set())
    return CallRecord(
        call_id=leg.call_id,
        from_tag="",
        received_at=leg.received_at,
        started_at=leg.created_at,
        ended=leg.ended_at is not None,
        ended_at=leg.ended_at,
        end_source="bye"
        if leg.answered and leg.ended_at is not None
        else "final"
        if failed
        else None,
        from_user=leg.caller,
        to_user=leg.destination,
        src_ip=leg.network_ip if leg.direction == "inbound" else None,
        src_port=leg.network_port if leg.direction == "inbound" else None,
        dst_ip=leg.network_ip if leg.direction == "outbound" else None,
        dst_port=leg.network_port if leg.direction == "outbound" else None,
        final_code=leg.sip_code,
        final_class=code_class(leg.sip_code),
        final_origin="esl",
        answered=leg.answered,
        inferred=leg.sip_code_source == "derived",
        pdd_ms=leg.pdd_ms,
        setup_ms=max(setup, 0.0) if setup is not None else None,
        talk_ms=leg.talk_ms,
        released_by=_who(leg),
        q850=leg.q850,
        codec_negotiated=leg.codec_read,
        flags=tuple(sorted(flags | set(leg.flags))),
        seizure=True,
        tenant=cohort.tenant if cohort else None,
        trunk=cohort.trunk if cohort else None,
        direction=cohort.direction if cohort else None,
        region=cohort.region if cohort else None,
        carrier=cohort.carrier if cohort else None,
        agent=cohort.agent if cohort else None,
    )


def _who(leg: LegRecord) -> str | None:
    """The party that hung up; None of a failed call that nobody cancelled."""
    if leg.released_by is None or not (leg.answered or leg.sip_code == 487):
        return None
    inbound = leg.direction == "inbound"
    return "caller" if inbound == (leg.released_by == "peer") else "callee"
