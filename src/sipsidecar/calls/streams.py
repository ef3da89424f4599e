"""RTCP reports of one call to what each receiver reports of each source, interval by interval.

The same reports in any order give the same answer: `see` only stores what was captured, and
everything else is derived when it is asked for. UDP and a second tap repeat reports, so one report
counts once by what it says. The arithmetic is RFC 3550's: 6.4.1, A.1 (sequence numbers), A.3 (loss).
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

import msgspec

from sipsidecar.calls.call import RETRANSMISSION_US, Endpoint
from sipsidecar.wire import rtcp

MAX_PAIRS: Final = 32
"""Reporter and source; SSRCs are written by strangers."""
MAX_SENDERS: Final = 32
MAX_PLACES: Final = 64
"""Address pairs that a call's reports were captured between."""
MAX_BLOCKS: Final = 1024
"""Of one pair; an hour of a report every 2.5 s is 1,440: beyond, the older half is thinned."""
MAX_SPOKEN: Final = 1024
"""Reports of one SSRC, likewise."""
MAX_VOIP_CLOCKS: Final = 8

MAX_DROPOUT: Final = 3000
"""A receiver takes a longer gap for a new sequence (RFC 3550 A.1)."""
MAX_MISORDER: Final = 100
"""Late packets that may lower the count of lost ones without any new one (RFC 3550 A.1)."""
MIN_RATE: Final = 100.0
"""Packets a second that any stream may have: 10 ms of audio each."""
CYCLE: Final = 1 << 16
MAX_LOST: Final = 0x7FFFFF
MIN_LOST: Final = -0x800000
"""The count of lost packets stays there (RFC 3550 6.4.1)."""
MAX_JITTER_SECONDS: Final = 10
HIGHEST_CLOCK_RATE: Final = 90_000
MAX_RTT_US: Final = 5_000_000
MIN_RTT_US: Final = -2_000
"""Stamps are this exact; a round trip that is less negative took no time."""
MAX_DLSR: Final = 60 << 16
LSR_UNITS: Final = (0, -1, 1, -2, 2)
"""An agent that converts NTP to UNIX microseconds is this inexact, in 1/65536 s."""
LATE_VIEW_US: Final = 10_000_000
"""Two clocks may be this far apart unknown to us: an older figure of another clock is no restart."""
YOUNG_US: Final = 10_000_000
"""A source that spoke longer than this before the first report about it had another listener."""

_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = 0xFFFFFFFFFFFFFFFF
_NO_RTT: Final = _MASK32

_BLOCK: Final = struct.Struct("<qHBBiIIIII")
"""Time, clock, place | fraction, lost, highest, jitter, LSR, DLSR | RTT in microseconds."""
_SPOKEN: Final = struct.Struct("<qHBBQI")
"""Time, clock, place | kind, identity (NTP time, or a digest of what it says), packets sent."""
_SR, _EMPTY, _WEAK = 1, 2, 4
"""Kinds; weak: two reports may say the same, so that only time tells a copy from the next one."""

_Row = tuple[Any, ...]


class Interval(msgspec.Struct, frozen=True, gc=False):
    """What one report block adds to the one before it."""

    at: int
    """Microseconds by the clock that the call is timed by, as far as the skew to it is known."""
    seconds: float | None
    """Since the report before; None for the first."""
    expected: int | None
    """Packets, by the extended sequence numbers, in an outage by the source's SRs; None where
    unknown."""
    lost: int | None
    """Never negative."""
    loss: float | None
    """0 to 1; of `lost` and `expected`, else the report's own fraction. None when nothing was
    received and nobody knows whether anything was sent; 1 when the source's own SRs say it was."""
    jitter: int
    """RTP timestamp units."""
    rtt_ms: float | None
    """Capture point to reporter and back (passive), or as the form told it."""


class Pair(msgspec.Struct, frozen=True, gc=False):
    """What one reporter says of one source."""

    reporter_ssrc: int
    source_ssrc: int
    reporter: Endpoint
    """Where its reports come from (RTCP)."""
    target: Endpoint
    """Where they go."""
    intervals: tuple[Interval, ...]
    """By time."""
    expected: int | None
    lost: int | None
    """Over all intervals."""
    clock_rate: int | None
    restarts: int
    """The source began anew under the same SSRC."""
    form: str
    known: bool = True
    """The source itself spoke in this call."""
    static: bool = False
    """Three reports or more whose figures are no measurement: the sequence never moved, or each
    claims a loss that its count of lost packets does not show."""
    heard: bool = True
    """False when the highest sequence number never left 0: no packet ever came (FreeSWITCH)."""
    implausible: int = 0
    """Blocks left out because those before and after contradict them."""
    thinned: int = 0
    """Blocks given up for space: intervals are longer there, the totals are the same."""
    voip: rtcp.VoipMetrics | None = None
    """The newest of the reporter about the source."""


class Sender(msgspec.Struct, frozen=True, gc=False):
    """What one SSRC says of itself: what it sent, and whether it heard anything.

    SSRC 0 is one whose form does not tell it (FreeSWITCH): one for each address it reports from.
    """

    ssrc: int
    endpoint: Endpoint
    target: Endpoint
    first_at: int
    last_at: int
    reports: int
    """SR, RR and empty ones, without duplicates."""
    sender_reports: int
    empty_reports: int
    """Those without a report block: it heard nothing. A BYE that a form does not tell looks so too."""
    first_sent_at: int | None
    """When the first SR with packets was captured."""
    first_packets: int | None
    """The count in that SR."""
    packets: int | None
    """The highest count of packets sent; None without an SR."""
    clock_rate: int | None
    left: bool = False
    """It said BYE."""


class _Pair:
    __slots__ = ("blocks", "clock_rate", "form", "thinned", "voip")

    def __init__(self, form: str) -> None:
        self.blocks = bytearray()
        self.clock_rate: int | None = None
        self.form = form
        self.thinned = 0
        self.voip: dict[int, tuple[int, rtcp.VoipMetrics]] = {}


class _Sender:
    __slots__ = ("clock_rate", "spoken", "thinned")

    def __init__(self) -> None:
        self.spoken = bytearray()
        self.clock_rate: int | None = None
        self.thinned = [0, 0, 0]
        """Reports given up for space: all, SRs, empty ones."""


class Streams:
    """The reports of one call, packed; what they mean is derived when it is asked for."""

    __slots__ = ("_left", "_pairs", "_places", "_senders", "implausible", "refused")

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int, Endpoint | None], _Pair] = {}
        self._senders: dict[tuple[int, Endpoint | None], _Sender] = {}
        self._places: dict[tuple[Endpoint, Endpoint], int] = {}
        self._left: set[int] = set()
        self.refused = 0
        """Blocks, words of new SSRCs and reports from new places that were over a cap."""
        self.implausible = 0
        """Blocks whose figures are outside of what the fields can say."""

    def see(
        self, report: rtcp.Report, source: Endpoint, destination: Endpoint, clock: int, at: int
    ) -> None:
        """Join one report, captured on its way from `source` to `destination`.

        `at`: microseconds UTC by `clock`. Repeating one changes nothing; it never raises.
        """
        route = (source, destination)
        place = self._places.get(route)
        if place is None:
            place = len(self._places)
            if place >= MAX_PLACES:
                self.refused += 1
                return
            self._places[route] = place
        of_itself = False
        for block in report.blocks:
            of_itself = of_itself or block.source_ssrc == report.ssrc
            self._see_block(report, block, source, clock, at, place)
        for voip in report.voip:
            self._see_voip(report, voip, source, clock, at)
        # Two parties share that SSRC, or the form names the source as the reporter (FreeSWITCH
        # sending): either way, what it says of itself is not known to be of this SSRC.
        if not of_itself:
            self._see_sender(report, source, clock, at, place)
        for ssrc in report.bye:
            if len(self._left) < MAX_SENDERS or ssrc in self._left:
                self._left.add(ssrc)
            else:
                self.refused += 1

    def _see_block(
        self,
        report: rtcp.Report,
        block: rtcp.ReportBlock,
        source: Endpoint,
        clock: int,
        at: int,
        place: int,
    ) -> None:
        rtt, lost, jitter = report.rtt_ms, block.lost, block.jitter
        try:
            row = _BLOCK.pack(
                at,
                clock,
                place,
                block.fraction_lost,
                lost,
                block.highest_seq,
                jitter,
                block.lsr,
                block.dlsr,
                # Written so that a NaN is none.
                int(rtt * 1000) if rtt is not None and 0 <= rtt * 1000 <= MAX_RTT_US else _NO_RTT,
            )
        except struct.error:
            self.implausible += 1
            return
        rate = report.clock_rate or HIGHEST_CLOCK_RATE
        if jitter > rate * MAX_JITTER_SECONDS or not MIN_LOST <= lost <= MAX_LOST:
            self.implausible += 1
            return
        pair = self._pair(report, block.source_ssrc, source)
        if pair is None:
            self.refused += 1
        elif not pair.blocks.endswith(row):
            if len(pair.blocks) >= MAX_BLOCKS * _BLOCK.size:
                _thin_blocks(pair)
            pair.blocks += row

    def _see_voip(
        self, report: rtcp.Report, voip: rtcp.VoipMetrics, source: Endpoint, clock: int, at: int
    ) -> None:
        pair = self._pair(report, voip.source_ssrc, source)
        if pair is None or (clock not in pair.voip and len(pair.voip) >= MAX_VOIP_CLOCKS):
            self.refused += 1
        elif (known := pair.voip.get(clock)) is None or _newer((at, voip), known):
            pair.voip[clock] = (at, voip)

    def _pair(self, report: rtcp.Report, source_ssrc: int, source: Endpoint) -> _Pair | None:
        """The pair that a block belongs to; None when there are too many.

        Two parties with the same SSRC seem to report of themselves, and SSRC 0 is a reporter that
        is not told: only the address tells them apart.
        """
        ssrc = report.ssrc
        key = (ssrc, source_ssrc, source if source_ssrc == ssrc or not ssrc else None)
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MAX_PAIRS:
                return None
            pair = self._pairs[key] = _Pair(report.form)
        if report.form != pair.form:
            pair.form = min(pair.form, report.form)
        if report.clock_rate is not None:
            pair.clock_rate = max(report.clock_rate, pair.clock_rate or 0)
        return pair

    def _see_sender(
        self, report: rtcp.Report, source: Endpoint, clock: int, at: int, place: int
    ) -> None:
        ssrc, blocks = report.ssrc, report.blocks
        key = (ssrc, None if ssrc else source)
        sender = self._senders.get(key)
        if sender is None:
            if len(self._senders) >= MAX_SENDERS:
                self.refused += 1
                return
            sender = _Sender()
        info = report.sender
        packets = identity = 0
        if info is not None:
            packets = info.packets
            # Without a clock the RTP timestamp is all that moves.
            identity = info.ntp if info.ntp >> 32 else info.rtp_timestamp
            kind = _SR if blocks or report.bye or not report.reception else _SR | _EMPTY
        elif blocks:
            identity = hash(blocks) & _MASK64
            kind = 0 if any(block.lsr for block in blocks) else _WEAK
        else:
            # An XR alone says nothing of what was heard, and a last word is no complaint.
            kind = _WEAK | _EMPTY if report.reception and not report.bye else _WEAK
        try:
            row = _SPOKEN.pack(at, clock, place, kind, identity, packets)
        except struct.error:
            self.implausible += 1
            return
        self._senders[key] = sender
        if report.clock_rate is not None:
            sender.clock_rate = max(report.clock_rate, sender.clock_rate or 0)
        if not sender.spoken.endswith(row):
            if len(sender.spoken) >= MAX_SPOKEN * _SPOKEN.size:
                _thin_spoken(sender)
            sender.spoken += row

    def pairs(self, skews: Mapping[int, int]) -> tuple[Pair, ...]:
        """Derive what each reporter says of each source, sorted by their SSRCs.

        `skews`: microseconds that a clock is ahead of the one that the call is timed by, where
        that is known.
        """
        return self.derived(skews)[0]

    def senders(self, skews: Mapping[int, int]) -> tuple[Sender, ...]:
        """Derive what each SSRC says of itself, sorted by SSRC; `skews` as for `pairs`."""
        return self.derived(skews)[1]

    def derived(self, skews: Mapping[int, int]) -> tuple[tuple[Pair, ...], tuple[Sender, ...]]:
        """Derive `pairs` and `senders` at once."""
        places, ranks = self._ranked()
        spoken = {
            key: list(_SPOKEN.iter_unpack(sender.spoken)) for key, sender in self._senders.items()
        }
        sources: dict[int, _Source] = {}
        pairs: list[Pair] = []
        for (ssrc, source_ssrc, _), pair in self._pairs.items():
            if not pair.blocks:
                continue
            source = sources.get(source_ssrc)
            if source is None and (said := spoken.get((source_ssrc, None))) is not None:
                source = sources[source_ssrc] = _Source(said)
            blocks = _BLOCK.iter_unpack(pair.blocks)
            rows = [
                _claim(sightings, source, ranks, skews)
                for sightings in _distinct(blocks, _no_lsr, ranks, skews)
            ]
            reporter = spoken.get((ssrc, None))
            if source is not None and reporter is not None and ssrc != source_ssrc:
                rows += _silences(reporter, ranks, skews)
            rows.sort(key=_claim_key)
            pairs.append(self._derived(ssrc, source_ssrc, pair, rows, source, places, skews))
        senders = [
            self._sender(key[0], self._senders[key], said, places, ranks, skews)
            for key, said in spoken.items()
        ]
        pairs.sort(key=_pair_key)
        senders.sort(key=_sender_key)
        return tuple(pairs), tuple(senders)

    def _derived(
        self,
        ssrc: int,
        source_ssrc: int,
        pair: _Pair,
        rows: "list[_Claim]",
        source: "_Source | None",
        places: Sequence[tuple[Endpoint, Endpoint]],
        skews: Mapping[int, int],
    ) -> Pair:
        claims = [row for row in rows if not row.silent]
        heard = any(row.highest for row in claims)
        account = _Account(source, heard=heard)
        spared = 0
        if pair.form == "freeswitch" and claims[0].lost == 1 and all(r.lost <= 1 for r in claims):
            # FreeSWITCH counts one packet lost at the start of a clean stream.
            spared = 1
        account.read(rows, spared)
        newest = claims[-1]
        reporter, target = places[newest.place]
        return Pair(
            reporter_ssrc=ssrc,
            source_ssrc=source_ssrc,
            reporter=reporter,
            target=target,
            intervals=tuple(account.intervals),
            expected=account.expected,
            lost=account.lost,
            clock_rate=pair.clock_rate,
            restarts=account.restarts,
            form=pair.form,
            known=source is not None,
            static=_is_static(claims),
            heard=heard,
            implausible=account.implausible,
            thinned=pair.thinned,
            voip=_newest_voip(pair.voip, skews) if pair.voip else None,
        )

    def _sender(
        self,
        ssrc: int,
        sender: _Sender,
        spoken: Iterable[_Row],
        places: Sequence[tuple[Endpoint, Endpoint]],
        ranks: Sequence[int],
        skews: Mapping[int, int],
    ) -> Sender:
        rows = sorted(
            [
                (row[0] - skews.get(row[1], 0), ranks[row[2]], row[3], row[5])
                for (row, *_) in _distinct(spoken, _is_weak, ranks, skews)
            ]
        )
        first_sent_at, first_packets, most = _counted(
            [(at, packets) for at, _, kind, packets in rows if kind & _SR]
        )
        reports, sender_reports, empty_reports = sender.thinned
        for _, _, kind, _ in rows:
            sender_reports += bool(kind & _SR)
            empty_reports += bool(kind & _EMPTY)
        endpoint, target = places[rows[-1][1]]
        return Sender(
            ssrc=ssrc,
            endpoint=endpoint,
            target=target,
            first_at=rows[0][0],
            last_at=rows[-1][0],
            reports=reports + len(rows),
            sender_reports=sender_reports,
            empty_reports=empty_reports,
            first_sent_at=first_sent_at,
            first_packets=first_packets,
            packets=most,
            clock_rate=sender.clock_rate,
            left=ssrc in self._left,
        )

    def _ranked(self) -> tuple[list[tuple[Endpoint, Endpoint]], list[int]]:
        """The places in an order that no arrival decides, and each one's rank by its number."""
        places = sorted(self._places)
        rank = dict(zip(places, range(len(places)), strict=True))
        return places, [rank[place] for place in self._places]


def _pair_key(pair: Pair) -> tuple[int, int, Endpoint]:
    return pair.reporter_ssrc, pair.source_ssrc, pair.reporter


def _sender_key(sender: Sender) -> tuple[int, Endpoint]:
    return sender.ssrc, sender.endpoint


def _counted(said: Sequence[tuple[int, int]]) -> tuple[int | None, int | None, int | None]:
    """Times and counts of packets sent, by time: the first time and count, and the highest count.

    A count that no stream can have come to since the one before is a stranger's, and so is a first
    one that the second falls far below.
    """
    if len(said) > 1 and said[0][1] > said[1][1] + MAX_DROPOUT:
        said = said[1:]
    first_at: int | None = None
    first: int | None = None
    most: int | None = None
    most_at = 0
    for at, packets in said:
        if most is not None and packets > most + _reach((at - most_at) / 1_000_000, MIN_RATE):
            continue
        if packets and first is None:
            first_at, first = at, packets
        if most is None or packets > most:
            most, most_at = packets, at
    return first_at, first, most


def _newer(one: tuple[int, rtcp.VoipMetrics], other: tuple[int, rtcp.VoipMetrics]) -> bool:
    return one[0] > other[0] or (one[0] == other[0] and repr(one[1]) > repr(other[1]))


def _newest_voip(
    by_clock: Mapping[int, tuple[int, rtcp.VoipMetrics]], skews: Mapping[int, int]
) -> rtcp.VoipMetrics | None:
    newest: tuple[int, rtcp.VoipMetrics] | None = None
    for clock, (at, voip) in by_clock.items():
        seen = (at - skews.get(clock, 0), voip)
        if newest is None or _newer(seen, newest):
            newest = seen
    return newest[1] if newest else None


def _is_static(claims: "Sequence[_Claim]") -> bool:
    if len(claims) < 3:
        return False
    first = claims[0]
    if all(claim.highest == first.highest for claim in claims):
        return True
    if not MIN_LOST < first.lost < MAX_LOST:
        return False
    return all(claim.fraction and claim.lost == first.lost for claim in claims)


# One report may be captured several times; what it says tells.


def _distinct(
    rows: Iterable[_Row],
    weak: Callable[[_Row], bool],
    ranks: Sequence[int],
    skews: Mapping[int, int],
) -> list[Sequence[_Row]]:
    """The sightings of each report, the best one first; rows are time, clock, place, content."""
    same: dict[_Row, list[_Row]] = {}
    for row in rows:
        same.setdefault(row[3:9], []).append(row)
    found: list[Sequence[_Row]] = []
    for seen in same.values():
        if len(seen) == 1:
            found.append(seen)
        elif weak(seen[0]):
            found += [(row,) for row in _spaced(seen, ranks, skews)]
        else:
            seen.sort(key=lambda row: (row[1] not in skews, row[1], row[0], ranks[row[2]]))
            found.append(seen)
    return found


def _spaced(seen: Iterable[_Row], ranks: Sequence[int], skews: Mapping[int, int]) -> list[_Row]:
    """Reports that say the same, without copies: as the clock has them that saw most."""
    by_clock: dict[int, list[_Row]] = {}
    for row in sorted(seen, key=lambda row: (row[0], ranks[row[2]], row[3:])):
        kept = by_clock.setdefault(row[1], [])
        if not kept or row[0] - kept[-1][0] >= RETRANSMISSION_US:
            kept.append(row)
    return max(by_clock.values(), key=lambda rows: (len(rows), rows[0][1] in skews, -rows[0][1]))


def _no_lsr(row: _Row) -> bool:
    """Whether two reports may say the same: nothing but the delay since an SR always moves."""
    return not row[7]


def _is_weak(row: _Row) -> bool:
    return bool(row[3] & _WEAK)


class _Source:
    """What a source says it sent, by each clock that captured it."""

    __slots__ = ("_counts", "_seen_at", "_times")

    def __init__(self, spoken: Iterable[_Row]) -> None:
        self._times: dict[int, list[int]] = {}
        self._counts: dict[int, list[int]] = {}
        self._seen_at: dict[tuple[int, int], int] = {}
        reports = [
            (at, clock, ntp, packets) for at, clock, _, kind, ntp, packets in spoken if kind & _SR
        ]
        reports.sort()
        newest: dict[int, tuple[int, int]] = {}
        for at, clock, ntp, packets in reports:
            said = (ntp, packets)
            if newest.get(clock) == said:
                continue
            if clock not in newest:
                self._times[clock], self._counts[clock] = [], []
            newest[clock] = said
            self._times[clock].append(at)
            self._counts[clock].append(packets)
            if ntp >> 32:
                self._seen_at.setdefault((clock, ntp >> 16 & _MASK32), at)

    def rtt_ms(self, at: int, clock: int, lsr: int, dlsr: int) -> float | None:
        """From the capture point to the reporter and back, all by one clock (RFC 3550 6.4.1)."""
        if not lsr or dlsr > MAX_DLSR:
            return None
        for units in LSR_UNITS:
            sent = self._seen_at.get((clock, (lsr + units) & _MASK32))
            if sent is not None:
                rtt = at - sent - dlsr * 1_000_000 / 65_536
                return max(0.0, rtt) / 1000 if MIN_RTT_US <= rtt <= MAX_RTT_US else None
        return None

    def sent_by(self, at: int, clock: int) -> int | None:
        """About how many packets it had sent, where it had begun within the last seconds."""
        times, counts = self._times.get(clock, []), self._counts.get(clock, [])
        if not times or times[0] < at - YOUNG_US or times[0] > at + YOUNG_US:
            return None
        after = min(max(1, bisect_right(times, at)), len(times) - 1)
        before = max(0, after - 1)
        passed = times[after] - times[before]
        grown = counts[after] - counts[before]
        if grown < 0 or not passed:
            # Its count began anew, or one SR is all there is.
            return counts[before] if abs(at - times[before]) < 1_000_000 else None
        if at > times[after] + passed:
            return None
        sent = round(counts[before] + grown * (at - times[before]) / passed)
        return sent if sent > 0 else None

    def sent_between(self, clock: int, start: int, since: int, until: int) -> int:
        """Packets that its SRs count between two times; SRs captured before `start` count for nothing.

        An SR soon after `start` may still speak of packets before it, so two are needed.
        """
        times, counts = self._times.get(clock, []), self._counts.get(clock, [])
        base = max(bisect_right(times, since) - 1, bisect_left(times, start))
        last = bisect_right(times, until) - 1
        sent = counts[last] - counts[base] if base < last else 0
        # A stranger's count: more than any stream may have is no count.
        return sent if 0 < sent <= _reach((until - start) / 1_000_000, MIN_RATE) else 0


class _Claim(msgspec.Struct, frozen=True, gc=False):
    """One distinct block, or a report that says nothing of the source any more (`silent`)."""

    at: int
    clock: int
    stamp: int
    """As captured, by that clock."""
    place: int
    fraction: int
    lost: int
    highest: int
    jitter: int
    rtt_ms: float | None
    silent: bool = False


_claim_key = attrgetter("at", "silent", "highest", "lost", "fraction", "jitter", "clock", "place")


def _claim(
    sightings: Sequence[_Row],
    source: _Source | None,
    ranks: Sequence[int],
    skews: Mapping[int, int],
) -> _Claim:
    at, clock, place, fraction, lost, highest, jitter, lsr, dlsr, told = sightings[0]
    rtt = None
    if source is not None and lsr:
        for row in sightings:
            rtt = source.rtt_ms(row[0], row[1], lsr, dlsr)
            if rtt is not None:
                break
    if rtt is None:
        if len(sightings) > 1:
            told = min([row[9] for row in sightings])
        rtt = told / 1000 if told != _NO_RTT else None
    at_ours = at - skews.get(clock, 0)
    return _Claim(at_ours, clock, at, ranks[place], fraction, lost, highest, jitter, rtt)


def _silences(
    spoken: Iterable[_Row], ranks: Sequence[int], skews: Mapping[int, int]
) -> list[_Claim]:
    """A reporter's empty reports: it heard nothing since its last one (RFC 3550 6.4)."""
    rows = [row for row in spoken if row[3] & _EMPTY]
    if not rows:
        return []
    return [
        _Claim(
            at=at - skews.get(clock, 0),
            clock=clock,
            stamp=at,
            place=ranks[place],
            fraction=0,
            lost=0,
            highest=0,
            jitter=0,
            rtt_ms=None,
            silent=True,
        )
        for ((at, clock, place, *_), *_) in _distinct(rows, _is_weak, ranks, skews)
    ]


def _reach(seconds: float, rate: float) -> float:
    """How many packets a stream may have sent in that time, with a gap that is not a restart."""
    return MAX_DROPOUT + seconds * 4 * max(MIN_RATE, rate)


def _step(
    highest: int, lost: int, new_highest: int, new_lost: int, seconds: float, rate: float
) -> tuple[int, int] | None:
    """Packets expected and lost between two reports; None when the source began anew."""
    ahead = new_highest - highest
    lost = new_lost - lost
    if not 0 <= ahead <= MAX_DROPOUT and not 0 <= ahead <= _reach(seconds, rate):
        # A receiver without cycles wraps at 65,535; one that counts too many jumps by 65,536.
        cycles, ahead = divmod(ahead, CYCLE)
        if ahead > 20 + 1.5 * seconds * rate or (cycles < 0 and highest >= CYCLE):
            return None
        if abs(lost) > ahead:
            lost -= cycles * CYCLE
        return (ahead, lost) if abs(lost) <= ahead else None
    return (ahead, lost) if abs(lost) <= ahead + MAX_MISORDER else None


class _Account:
    """The intervals of one pair and their totals."""

    __slots__ = (
        "_dead",
        "_expected",
        "_heard",
        "_lost",
        "_mark",
        "_moved",
        "_rate",
        "_source",
        "expected",
        "implausible",
        "intervals",
        "lost",
        "restarts",
    )

    def __init__(self, source: _Source | None, *, heard: bool) -> None:
        self.intervals: list[Interval] = []
        self.expected: int | None = None
        self.lost: int | None = None
        self.restarts = 0
        self.implausible = 0
        self._source = source
        self._heard = heard
        self._expected: int | None = None
        """Since the source began (anew), by the first and the newest figures alone."""
        self._lost = 0
        self._dead = 0
        """Packets that only the source's SRs count, since the last one that was received."""
        self._moved: _Claim | None = None
        """The newest with a packet that was received."""
        self._mark: _Claim | None = None
        """The newest."""
        self._rate = MIN_RATE

    def read(self, claims: Sequence[_Claim], spared: int) -> None:
        """Account for all of them, by time; `spared` packets at the beginning were not lost."""
        figures: _Claim | None = None
        for i, claim in enumerate(claims):
            if claim.silent:
                if figures is not None:
                    self._nothing_came(claim, figures.jitter)
                continue
            if not self._heard:
                self._add(claim, self._seconds(claim), None, None, None)
                self._mark = claim
                continue
            if figures is None:
                self._begin(claim, None, spared)
                figures = claim
                continue
            step = self._step(figures, claim)
            if step is None:
                if self._is_late_view(figures, claim):
                    continue
                # Few silent ones stand between two blocks; a stranger may send many.
                if self._is_outlier(figures, claim, claims[i + 1 : i + 8]):
                    self.implausible += 1
                    continue
                self._close()
                self.restarts += 1
                self._begin(claim, self._seconds(claim), 0)
            elif step[0]:
                self._advance(figures, claim, *step)
            else:
                self._lost += step[1]
                self._nothing_came(claim, claim.jitter, told=True)
            figures = claim
        self._close()

    def _step(self, before: _Claim, claim: _Claim) -> tuple[int, int] | None:
        step = _step(
            before.highest,
            before.lost,
            claim.highest,
            claim.lost,
            (claim.at - before.at) / 1_000_000,
            self._rate,
        )
        if step is None and self._moved is not None and self._moved.at < before.at:
            # After reports of nothing: a gap that is told as lost may be as long as they lasted.
            step = _step(
                before.highest,
                before.lost,
                claim.highest,
                claim.lost,
                (claim.at - self._moved.at) / 1_000_000,
                self._rate,
            )
            if step is not None and 2 * step[1] < step[0]:
                step = None
        return step

    def _seconds(self, claim: _Claim) -> float | None:
        return (claim.at - self._mark.at) / 1_000_000 if self._mark is not None else None

    def _add(
        self,
        claim: _Claim,
        seconds: float | None,
        expected: int | None,
        lost: int | None,
        loss: float | None,
    ) -> None:
        self.intervals.append(
            Interval(claim.at, seconds, expected, lost, loss, claim.jitter, claim.rtt_ms)
        )

    def _begin(self, claim: _Claim, seconds: float | None, spared: int) -> None:
        """The first report of a source: the sequence number that it began with is not told.

        What was expected follows from the fraction where there is loss (more exactly with the
        source's own count), else from that count; where it does not, only the fraction stands.
        """
        fraction, lost = claim.fraction, claim.lost
        sent = None
        if self._source is not None and not self.restarts:
            # After a restart, SRs may go on counting from before it.
            sent = self._source.sent_by(claim.stamp, claim.clock)
        expected: int | None = None
        if lost > 0 and fraction > 0:
            # fraction = floor(256 * lost / expected): the bounds that it leaves.
            least, most = 256 * lost / (fraction + 1), 256 * lost / fraction
            expected = round(256 * lost / (fraction + 0.5) if sent is None else sent)
            expected = max(lost, int(least) + 1, min(expected, int(most)))
        elif fraction == 0 and sent is not None and 256 * max(lost, 0) < sent:
            expected = sent
        if expected is not None and expected > MAX_DROPOUT:
            # Not the first one: it counts what was lost long before, and is weighed by nothing.
            expected = None
        if expected is None:
            self._add(claim, seconds, None, None, fraction / 256)
            self._lost = 0
        else:
            # Duplicates may have made the count negative; the next ones go on from there.
            self._lost = lost - spared
            here = max(0, self._lost)
            self._add(claim, seconds, expected, here, here / expected)
        self._expected = expected
        self._mark = self._moved = claim

    def _advance(self, before: _Claim, claim: _Claim, ahead: int, lost: int) -> None:
        if claim.lost in {MIN_LOST, MAX_LOST} and before.lost == claim.lost:
            lost = round(ahead * claim.fraction / 256)
        elif lost < 0 and claim.fraction and _explains(claim, ahead):
            # The count of lost packets began anew, the sequence went on.
            lost = claim.lost
        self._expected = (self._expected or 0) + ahead
        self._lost += lost
        here = min(max(lost, 0), ahead)
        came = ahead - here
        # What the SRs told already is part of this gap.
        here = max(0, here - self._dead)
        self._dead = 0
        seconds = self._seconds(claim)
        self._add(claim, seconds, came + here, here, here / (came + here) if came + here else None)
        passed = (claim.at - before.at) / 1_000_000
        if passed >= 1:
            self._rate = max(MIN_RATE, ahead / passed)
        self._mark = self._moved = claim

    def _nothing_came(self, claim: _Claim, jitter: int, *, told: bool = False) -> None:
        """A report without a new packet: lost ones when the source's SRs say that it sent any."""
        mark, moved, sent = self._mark, self._moved, 0
        if (
            self._source is not None
            and mark is not None
            and moved is not None
            and mark.clock == moved.clock == claim.clock
        ):
            sent = self._source.sent_between(claim.clock, moved.stamp, mark.stamp, claim.stamp)
        if sent:
            self._dead += sent
            self.intervals.append(
                Interval(claim.at, self._seconds(claim), sent, sent, 1.0, jitter, claim.rtt_ms)
            )
        elif told:
            self._add(claim, self._seconds(claim), 0, 0, None)
        else:
            return
        self._mark = claim

    def _is_late_view(self, before: _Claim, claim: _Claim) -> bool:
        """Whether another clock's stamp put an older report after a newer one."""
        return (
            claim.clock != before.clock
            and claim.highest < before.highest
            and claim.at - before.at < LATE_VIEW_US
        )

    def _is_outlier(self, before: _Claim, claim: _Claim, after: Sequence[_Claim]) -> bool:
        """Whether the next report goes on from the one before, not from this one."""
        follower = next((other for other in after if not other.silent), None)
        if follower is None:
            return False
        goes_on = self._step(before, follower) is not None
        return goes_on and self._step(claim, follower) is None

    def _close(self) -> None:
        """Add what was counted since the source began (anew) to the totals."""
        if self._expected is not None or self._dead:
            expected = self._expected or 0
            self.expected = (self.expected or 0) + expected + self._dead
            self.lost = (self.lost or 0) + min(max(self._lost, 0), expected) + self._dead
        self._expected, self._lost, self._dead = None, 0, 0


def _explains(claim: _Claim, ahead: int) -> bool:
    """Whether the count of lost packets is that of the last interval alone."""
    return 0 < claim.lost <= ahead and abs(256 * claim.lost // ahead - claim.fraction) <= 1


# A pair or sender that is full: its older half is thinned, by what it holds alone.


def _thin(
    rows: Iterable[_Row],
    size: int,
    weak: Callable[[_Row], bool],
    needed: Callable[[_Row, _Row, _Row], bool],
) -> tuple[list[_Row], list[_Row]]:
    """Rows to keep and rows to drop; copies are in neither.

    Every second one of the older half goes, of each clock. If too many are `needed`, every second
    one goes all the same: an eighth of `size` is free again, or a stranger makes this happen each
    time.
    """
    ranks = range(MAX_PLACES)
    by_clock: dict[int, list[_Row]] = {}
    for row, *_ in _distinct(rows, weak, ranks, {}):
        by_clock.setdefault(row[1], []).append(row)
    kept: list[_Row] = []
    dropped: list[_Row] = []
    for seen in by_clock.values():
        seen.sort()
        for i, row in enumerate(seen):
            old = i % 2 and i < len(seen) // 2
            spare = old and not needed(seen[i - 1], row, seen[i + 1])
            (dropped if spare else kept).append(row)
    if len(kept) > size - size // 8:
        kept.sort()
        half = len(kept) // 2
        dropped += kept[1:half:2]
        kept = kept[:half:2] + kept[half:]
    return kept, dropped


def _thin_blocks(pair: _Pair) -> None:
    def at_an_edge(before: _Row, row: _Row, after: _Row) -> bool:
        return any(
            _step(a[5], a[4], b[5], b[4], (b[0] - a[0]) / 1_000_000, MIN_RATE) is None
            for a, b in pairwise((before, row, after))
        )

    kept, dropped = _thin(_BLOCK.iter_unpack(pair.blocks), MAX_BLOCKS, _no_lsr, at_an_edge)
    pair.thinned += len(dropped)
    pair.blocks = bytearray().join(_BLOCK.pack(*row) for row in kept)


def _thin_spoken(sender: _Sender) -> None:
    def begins(before: _Row, row: _Row, _: _Row) -> bool:
        return row[5] > 0 and not before[5]

    kept, dropped = _thin(_SPOKEN.iter_unpack(sender.spoken), MAX_SPOKEN, _is_weak, begins)
    for i, kind in enumerate((0, _SR, _EMPTY)):
        sender.thinned[i] += sum(1 for row in dropped if row[3] & kind == kind)
    sender.spoken = bytearray().join(_SPOKEN.pack(*row) for row in kept)
