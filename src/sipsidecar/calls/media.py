"""Reports and agreements of a call to the quality of each direction: who sent, who heard, how well."""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from operator import attrgetter

import msgspec

from sipsidecar.calls.dialog import IMPLAUSIBLE_US
from sipsidecar.calls.events import MediaRecord, QualityInterval
from sipsidecar.calls.hearing import (
    MIN_SILENT_REPORTS,
    PRECEDENCE,
    UNNAMED,
    Facts,
    Heard,
    Hearing,
    longest,
    silent_reports,
    voip_of,
)
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.parties import CALLEE, CALLER, DIRECTIONS, OTHER
from sipsidecar.calls.scoring import PTIME_ASSUMED, Figures, Setting, Summary, p95, summarize
from sipsidecar.calls.streams import Sender
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import hep

__all__ = ["PRECEDENCE", "UNKNOWN", "Direction", "Facts", "Media", "derive"]

UNKNOWN = "unknown"
"""The direction of what nobody can tell whose it is."""
_END_OF_TIME = 1 << 62


class Direction(msgspec.Struct, frozen=True, gc=False):
    """One direction's record, and what findings ask besides. Times as `Interval.at`."""

    record: MediaRecord
    """Without its findings."""
    sends: bool | None
    """The sending party sent media, by its own word or by what was heard; None when nobody can know."""
    heard: bool | None
    """The hearing party received it; None when it made no report."""
    sent_packets: int | None
    received_packets: int | None
    first_media_at: int | None
    """When its first packet was sent or heard, at the latest; reckoned back from the first counts."""
    low_intervals: int
    """Intervals whose MOS is under the threshold."""
    rated_intervals: int = 0
    sender_reports: int | None = None
    """Of the sending party, saying that it sent media; None when it made no report at all."""
    silent_reports: int = 0
    """Of the hearing party, speaking of nothing heard."""


class Media(msgspec.Struct, frozen=True, gc=False):
    """Everything that is known of one call's media."""

    directions: tuple[Direction, ...] = ()
    intervals: tuple[QualityInterval, ...] = ()
    implausible: int = 0
    """Blocks that were left out because their figures cannot be."""
    unplaced: int = 0
    """Accounts of whole sessions of which nobody can tell who heard."""
    beside: int = 0
    """Blocks that were left out because they are of another medium of the call, such as video."""

    @property
    def left_out(self) -> int:
        """What was reported and counts for nothing."""
        return self.implausible + self.unplaced + self.beside


def derive(
    facts: Facts,
    negotiation: Negotiation,
    thresholds: Thresholds,
    *,
    call_id: str,
    from_tag: str,
    received_at: int,
    skews: Mapping[int, int],
) -> Media:
    """Derive the quality of each direction; the same facts give the same answer in any order.

    `skews`: microseconds that a clock is ahead of the one that the call is timed by, where that is
    known. Times in `negotiation` are by that clock.
    """
    hearing = Hearing(facts, negotiation, thresholds, from_tag, skews)
    writer = _Writer(hearing, thresholds, _Named(call_id, from_tag, received_at))
    directions = [writer.direction(party) for party in (CALLER, CALLEE)]
    directions += [writer.stranger(ssrc) for ssrc in hearing.strangers()]
    return Media(
        tuple(direction for direction in directions if direction is not None),
        writer.rows(),
        facts.implausible + hearing.implausible,
        len(hearing.unplaced),
        hearing.beside,
    )


class _Named(msgspec.Struct, frozen=True, gc=False):
    """What names the rows of one call."""

    call_id: str
    from_tag: str
    received_at: int

    def plausible(self, at: int | None) -> int:
        """A report's time; when the call was first seen for one that cannot be."""
        if at is None or abs(at - self.received_at) > IMPLAUSIBLE_US:
            return self.received_at
        return at


class _Story(msgspec.Struct, frozen=True, gc=False):
    """One direction, before it is written down."""

    stream: str
    party: str | None
    """Who speaks."""
    figures: Figures | None
    setting: Setting
    """The newest."""
    own: Sequence[Sender]
    """What the speaking party itself says."""
    heard_of: Sequence[Heard]
    sends: bool | None
    heard: bool | None
    silent: int
    began: int | None
    sent: int | None = None
    """Packets by account of the speaking party, or of who relayed it."""
    received: int | None = None
    """Packets by account of the hearing party."""


class _Writer:
    """What was heard to records."""

    def __init__(self, hearing: Hearing, thresholds: Thresholds, named: _Named) -> None:
        self._hearing = hearing
        self._thresholds = thresholds
        self._named = named

    def direction(self, party: str) -> Direction | None:
        """What is known of what one party said; None when that is nothing."""
        hearing = self._hearing
        figures = hearing.figures_of(party)
        sends = hearing.sends(party)
        heard, silent = hearing.is_heard(party)
        if figures is not None and figures.source in PRECEDENCE:
            if heard is None and figures.expected:
                heard = bool(figures.received)
            sends = sends or heard or None
        sent, received = self._counted(party)
        if sends is None and sent is not None:
            sends = sent > 0
        if heard is None and received is not None:
            heard = received > 0
        claim = self._claim(party)
        encrypted = hearing.agreed and hearing.facts.encrypted > 0
        if figures is None and claim is None and not encrypted and sends is None and heard is None:
            return None
        own = hearing.voices(party, own=True)
        mine = hearing.heard_of[party]
        setting = hearing.settings.heard_at(party, end=True, clock=None, at=_END_OF_TIME)
        ptime = figures.points[-1].setting.ptime_ms if figures else setting.ptime_ms
        began = _began(own, [each for each in mine if not each.remade], ptime)
        if began is None:
            began = _began(hearing.voices(party, own=False), mine, ptime)
        stream = DIRECTIONS[party]
        return self._direction(
            _Story(
                stream,
                party,
                figures,
                setting,
                own,
                mine,
                sends,
                heard,
                silent,
                began,
                sent,
                received,
            ),
            claim,
        )

    def stranger(self, ssrc: int) -> Direction:
        """What is known of what was sent under one SSRC, whosever it is."""
        hearing = self._hearing
        mine = [each for each in hearing.heard_of[None] if each.pair.source_ssrc == ssrc]
        real = longest([each for each in mine if each.pair.heard])
        figures = hearing.of_pairs(real) if real else None
        own = [sender for sender in hearing.senders if sender.ssrc == ssrc]
        others = [sender for sender in hearing.senders if sender.ssrc != ssrc]
        received = any(each.received for each in mine)
        sends: bool | None = None
        if received or any(sender.packets for sender in own):
            sends = True
        elif sum(sender.reports for sender in own) >= MIN_SILENT_REPORTS:
            sends = False
        heard: bool | None = True if received else None
        silent = 0 if received else silent_reports(others, mine)
        if silent >= MIN_SILENT_REPORTS and hearing.nothing_else(others, mine):
            heard = False
        setting = hearing.settings.heard_at(None, end=True, clock=None, at=_END_OF_TIME)
        ptime = figures.points[-1].setting.ptime_ms if figures else setting.ptime_ms
        began = _began(own, mine, ptime)
        stream = f"{UNKNOWN}-{_ssrc(ssrc):08x}"
        return self._direction(
            _Story(stream, None, figures, setting, own, mine, sends, heard, silent, began), None
        )

    def _counted(self, party: str) -> tuple[int | None, int | None]:
        """Packets that one party sent, and that the other received, by the largest account."""
        accounts = self._hearing.accounts
        sent = [one.packets_sent for one in accounts[OTHER[party]] if one.packets_sent is not None]
        received = [
            one.packets_received for one in accounts[party] if one.packets_received is not None
        ]
        return max(sent, default=None), max(received, default=None)

    def _claim(self, party: str) -> tuple[float, str] | None:
        """The MOS that a device or media proxy claims, and which."""
        hearing = self._hearing
        voip = voip_of(hearing.heard_of[party])
        if voip is not None:
            mos = voip.mos_lq if voip.mos_cq is None else voip.mos_cq
            if mos is not None:
                return mos, "xr"
        accounts = hearing.accounts[party]
        for source in PRECEDENCE if accounts else ():
            for said in reversed(accounts):
                for mos in (said.mos_cq, said.mos_lq, said.mos):
                    if said.source == source and mos is not None:
                        return mos, source
        return None

    def _direction(self, story: _Story, claim: tuple[float, str] | None) -> Direction:
        figures = story.figures
        senders = story.own
        if figures is not None:
            heard = [s for s in self._hearing.senders if s.ssrc in figures.ssrcs]
            senders = heard or senders
        counts = [sender.packets for sender in senders if sender.packets is not None]
        sent = sum(counts) if counts else story.sent
        received = 0 if story.heard is False else story.received
        record = self._record(story, senders, sent, claim)
        low = rated = 0
        if figures is not None:
            received = figures.received
            summary = summarize(figures, self._thresholds)
            low, rated = summary.low_intervals, summary.rated_intervals
            record = _measured(record, figures, summary)
        return Direction(
            record=record,
            sends=story.sends,
            heard=story.heard,
            sent_packets=sent,
            received_packets=received,
            first_media_at=story.began,
            low_intervals=low,
            rated_intervals=rated,
            sender_reports=sum(s.sender_reports for s in story.own) if story.own else None,
            silent_reports=story.silent,
        )

    def _record(
        self,
        story: _Story,
        senders: Sequence[Sender],
        sent: int | None,
        claim: tuple[float, str] | None,
    ) -> MediaRecord:
        """What can be said of a direction without its figures."""
        figures, setting, named = story.figures, story.setting, self._named
        told = [sender.first_at for sender in senders] + [sender.last_at for sender in senders]
        if figures is not None:
            told += [figures.first_at, figures.last_at]
        place = self._hearing.parties.place(story.party)
        if place is None and senders:
            place = senders[-1].endpoint
        other = self._hearing.parties.place(OTHER.get(story.party or ""))
        if other is None and story.heard_of:
            other = story.heard_of[-1].pair.reporter
        unrated = "no_reports"
        if story.heard is False or (story.heard is None and story.sends is False):
            unrated = "no_packets"
        elif self._hearing.facts.encrypted:
            unrated = "encrypted"
        return MediaRecord(
            call_id=named.call_id,
            from_tag=named.from_tag,
            stream=story.stream,
            received_at=named.received_at,
            direction=story.stream if story.party else UNKNOWN,
            started_at=named.plausible(min(told) if told else None),
            ended_at=named.plausible(max(told) if told else None),
            ssrc=(_ssrc(story.own[-1].ssrc) or None) if story.own else None,
            ssrcs=len(story.own),
            sender_ip=hep.address_text(place[0]) if place else None,
            sender_port=(place[1] or None) if place else None,
            receiver_ip=hep.address_text(other[0]) if other else None,
            receiver_port=(other[1] or None) if other else None,
            codec=setting.name,
            clock_rate=setting.clock_rate if setting.name else None,
            ptime_ms=None if PTIME_ASSUMED in setting.flags else setting.ptime_ms,
            packets_sent=sent,
            peer_mos=claim[0] if claim else None,
            peer_mos_source=claim[1] if claim else None,
            unrated=unrated,
        )

    def rows(self) -> tuple[QualityInterval, ...]:
        """Every interval of every pair, by direction and time."""
        named, points = self._named, self._hearing.points
        rows = []
        for heard in self._hearing.heard:
            direction = DIRECTIONS[heard.party] if heard.party else UNKNOWN
            source = "esl" if heard.pair.form == "freeswitch" else "rtcp"
            reporter, speaker = _ssrc(heard.pair.reporter_ssrc), _ssrc(heard.pair.source_ssrc)
            for point in points(heard):
                rating = point.rating
                rows.append(
                    QualityInterval(
                        call_id=named.call_id,
                        from_tag=named.from_tag,
                        direction=direction,
                        reporter_ssrc=reporter,
                        source_ssrc=speaker,
                        received_at=named.received_at,
                        at=point.at,
                        source=source,
                        seconds=point.seconds,
                        packets_expected=point.expected,
                        packets_lost=point.lost,
                        loss_percent=point.loss_percent,
                        jitter_ms=point.jitter_ms,
                        rtt_ms=point.rtt_ms,
                        mos=point.mos,
                        mos_kind=point.kind,
                        mos_scale=rating.scale if rating else None,
                        r=rating.r if rating else None,
                    )
                )
        rows.sort(key=_row_key)
        return tuple(rows)


_row_key = attrgetter("direction", "at", "source_ssrc", "reporter_ssrc")


def _measured(record: MediaRecord, figures: Figures, summary: Summary) -> MediaRecord:
    """The record with what was measured."""
    delay, delay_ms = figures.delay, summary.delay_ms
    losses = [p.loss_percent for p in figures.points if p.loss_percent is not None]
    jitters = [point.jitter_ms for point in figures.points if point.jitter_ms is not None]
    return msgspec.structs.replace(
        record,
        segment=figures.segment,
        source=figures.source,
        ssrc=_ssrc(figures.ssrcs[-1]) if figures.ssrcs else None,
        ssrcs=len(figures.ssrcs),
        reports=len(figures.points),
        packets_expected=figures.expected,
        packets_lost=figures.lost,
        loss_percent=summary.loss_percent,
        loss_max_percent=max(losses) if losses else None,
        discard_percent=delay.discard_percent,
        burst_ratio=delay.burst_ratio,
        upstream_loss_percent=figures.upstream_loss_percent,
        jitter_ms=fsum(jitters) / len(jitters) if jitters else None,
        jitter_p95_ms=p95(jitters),
        jitter_max_ms=max(jitters) if jitters else None,
        rtt_ms=delay.rtt_ms,
        rtt_max_ms=delay.rtt_max_ms,
        media_seconds=summary.media_seconds,
        mos=summary.mos,
        mos_kind=summary.mos_kind,
        mos_lq=summary.mos_lq,
        mos_min=summary.mos_min,
        low_share=summary.low_share,
        r=summary.r,
        mos_scale=summary.mos_scale,
        mos_grade=summary.mos_grade,
        mos_codec=summary.mos_codec,
        delay_ms=delay_ms,
        delay_source=None if delay_ms is None else delay.source,
        rated=summary.rated,
        unrated=summary.unrated,
        flags=tuple(sorted(figures.flags | summary.flags)),
    )


def _began(senders: Iterable[Sender], heard: Iterable[Heard], ptime_ms: int) -> int | None:
    """When the first packet was sent or heard, at the latest, by the first counts."""
    found = [
        sender.first_sent_at - sender.first_packets * ptime_ms * 1000
        for sender in senders
        if sender.first_sent_at is not None and sender.first_packets
    ]
    for each in heard:
        first = each.pair.intervals[0]
        if each.received and first.expected is not None:
            found.append(first.at - first.expected * ptime_ms * 1000)
    return min(found) if found else None


def _ssrc(name: int) -> int:
    """The SSRC; 0 for a reporter that has none."""
    return name if name < UNNAMED else 0
