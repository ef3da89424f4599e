"""Everything that was reported of a call's media, to who heard what of whom, and how well."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from statistics import median
from zlib import crc32

import msgspec

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.emodel import CODEC_ASSUMED
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.parties import CALLEE, CALLER, HINTS, OTHER, Parties, Route, Voice
from sipsidecar.calls.scoring import (
    ALL_LOST_PERCENT,
    CLOCK_ASSUMED,
    PTIME_ASSUMED,
    Delay,
    Figures,
    Point,
    Settings,
    burst_ratio,
    score,
)
from sipsidecar.calls.streams import Pair, Sender, Streams
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import hep, quality, rtcp

MAX_SSRCS = 32
"""Speakers of one call whose ways are kept."""
MAX_ROUTES = 8
"""Ways that one SSRC's reports were seen to go."""
MAX_ACCOUNTS = 32
"""Accounts of whole sessions that are kept of one call."""
MAX_SIGHTINGS = 4
"""Of one account."""
MIN_SILENT_REPORTS = 2
"""An RTCP BYE looks like an empty report in some forms, so one of them proves nothing."""
PRECEDENCE = ("vq", "rtp_stat", "rtpengine", "log")
"""Which account is taken where no RTCP speaks of a direction. Accounts are never averaged."""

UNNAMED = 1 << 32
"""Above all SSRCs: names for reporters whose form does not tell theirs."""

_at = attrgetter("at")

Sighting = tuple[int, int, Endpoint, Endpoint]
"""When, by which clock, from where, to where."""


class Facts:
    """Everything that was reported of the media of one call; the order of arrival does not matter."""

    __slots__ = ("_accounts", "_hints", "_refused", "_routes", "encrypted", "streams")

    def __init__(self) -> None:
        self.streams = Streams()
        self.encrypted = 0
        """Packets of SRTCP: seen, not read."""
        self._refused = 0
        self._routes: dict[int, tuple[Route, ...]] = {}
        # most calls have none of these
        self._hints: dict[int, tuple[str, ...]] | None = None
        self._accounts: dict[quality.SessionQuality, tuple[Sighting, ...]] | None = None

    @property
    def refused(self) -> int:
        """Reports, and parts of them, that were not kept because of a cap."""
        return self._refused + self.streams.refused

    @property
    def implausible(self) -> int:
        """Blocks whose figures are outside of what the fields can say."""
        return self.streams.implausible

    def see_report(
        self,
        report: rtcp.Report,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
        *,
        reporter: str | None = None,
    ) -> None:
        """Join one report; `reporter` where the source tells who speaks: a word of `parties.HINTS`."""
        if not report.ssrc:
            report = msgspec.structs.replace(report, ssrc=_name_for(source, reporter))
        self.streams.see(report, source, destination, clock, at)
        ssrc, route = report.ssrc, (source, destination)
        routes = self._routes.get(ssrc)
        if routes is None:
            if len(self._routes) >= MAX_SSRCS:
                self._refused += 1
                return
            self._routes[ssrc] = (route,)
        elif route not in routes:
            self._refused += len(routes) >= MAX_ROUTES
            self._routes[ssrc] = tuple(sorted((*routes, route))[:MAX_ROUTES])
        if reporter in HINTS:
            self._hints = self._hints or {}
            hints = self._hints.get(ssrc, ())
            if reporter not in hints:
                self._hints[ssrc] = tuple(sorted((*hints, reporter)))

    def see_quality(
        self,
        said: quality.SessionQuality,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
    ) -> None:
        """Join one account of a whole session."""
        self._accounts = {} if self._accounts is None else self._accounts
        sightings = self._accounts.get(said)
        if sightings is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._refused += 1
                return
            sightings = ()
        sighting = (at, clock, source, destination)
        if sighting not in sightings:
            ordered = sorted((*sightings, sighting))
            if len(ordered) > MAX_SIGHTINGS:
                del ordered[MAX_SIGHTINGS - 1]  # the first ones and the last one, in any order
            self._accounts[said] = tuple(ordered)

    def see_encrypted(self) -> None:
        """Join one packet of SRTCP: only that it was seen."""
        self.encrypted += 1

    @property
    def routes(self) -> Mapping[int, tuple[Route, ...]]:
        """Ways that each SSRC's reports were seen to go."""
        return self._routes

    @property
    def hints(self) -> Mapping[int, tuple[str, ...]]:
        """What sources said of who speaks under an SSRC."""
        return self._hints or {}

    @property
    def accounts(self) -> Mapping[quality.SessionQuality, tuple[Sighting, ...]]:
        """Accounts of whole sessions, and where each was seen."""
        return self._accounts or {}


def _name_for(source: Endpoint, reporter: str | None) -> int:
    """A name instead of an SSRC for a reporter whose form tells none: one for each, by any order."""
    if reporter in HINTS:
        return UNNAMED + sorted(HINTS).index(reporter or "")
    if source[0]:
        return 2 * UNNAMED + crc32(source[0], source[1])
    return 0


class Heard(msgspec.Struct, frozen=True, gc=False):
    """One pair, and who is who in it."""

    pair: Pair
    speaker: Voice | None
    hearer: Voice | None
    party: str | None
    """Who speaks; None when nobody can tell."""
    end: bool
    """Heard by the party itself, as far as anybody can tell."""
    remade: bool
    """What was heard, a node between had made anew."""
    received: bool
    """Something came: there is no block about a source that nothing came from."""

    @property
    def segment(self) -> str | None:
        """The word of `MediaRecord.segment`."""
        if self.hearer is None or self.hearer.own is None:
            return None
        if not self.hearer.own:
            return "to_middle"
        if self.speaker is None or self.speaker.own is None:
            return None
        return "end_to_end" if self.speaker.own else "from_middle"


class _Trip(msgspec.Struct, frozen=True, gc=False):
    """Round trips that one party's reports tell."""

    times: tuple[float, ...]
    told: bool
    """By the form itself (FreeSWITCH), not reckoned from when reports passed."""
    whole: bool
    """From one party to the other: what measured it is the other end itself."""


class Hearing:
    """All that is known of one call's media, and who is who in it."""

    def __init__(
        self,
        facts: Facts,
        negotiation: Negotiation,
        thresholds: Thresholds,
        from_tag: str,
        skews: Mapping[int, int],
    ) -> None:
        self.facts = facts
        self.thresholds = thresholds
        self.from_tag = from_tag
        self.skews = skews
        self.agreed = bool(negotiation.ingress or negotiation.egress)
        self.settings = Settings(negotiation, thresholds)
        pairs, self.senders = facts.streams.derived(skews)
        self.parties = Parties(
            negotiation,
            facts.routes,
            facts.hints,
            [(pair.reporter_ssrc, pair.source_ssrc) for pair in pairs],
            [sender.ssrc for sender in self.senders if sender.reports >= MIN_SILENT_REPORTS],
        )
        self.reporters = {pair.reporter_ssrc for pair in pairs if pair.heard}
        self.heard: list[Heard] = []
        self.heard_of: dict[str | None, list[Heard]] = {CALLER: [], CALLEE: [], None: []}
        """By who speaks."""
        self.doubted: set[str | None] = set()
        """Parties of which reports with made-up figures speak."""
        self.implausible = self.beside = 0
        others: set[int] = set()
        """SSRCs of other media."""
        for each in [self._who(pair) for pair in pairs if pair.intervals]:
            pair = each.pair
            if self._beside(each):
                self.beside += len(pair.intervals)
                others |= {pair.reporter_ssrc, pair.source_ssrc}
            elif self._made_up(each):
                self.implausible += len(pair.intervals)
                self.doubted.add(each.party)
            else:
                self.implausible += pair.implausible
                self.heard.append(each)
                self.heard_of[each.party].append(each)
        self._voices: dict[tuple[str, bool], list[Sender]] = {}
        for sender in self.senders:
            voice = self.parties.voices.get(sender.ssrc)
            if voice is not None and sender.ssrc not in others:
                self._voices.setdefault((voice.party, voice.own is not False), []).append(sender)
        self.unplaced: list[quality.SessionQuality] = []
        self.accounts = self._place_accounts()
        self._trip = self._round_trip(self._measured())
        self._delays: dict[object, Delay] = {}
        self._scored: dict[int, tuple[Point, ...]] = {}

    # --------------------------------------------------------------------------- who is who

    def _who(self, pair: Pair) -> Heard:
        speaker = self.parties.voices.get(pair.source_ssrc)
        hearer = self.parties.hearer(pair.reporter_ssrc, (pair.reporter, pair.target))
        party = speaker.party if speaker else None
        if hearer is not None:
            if hearer.party == party:
                # Two parties with one SSRC, or a guess gone wrong: who reports is the better
                # evidence.
                speaker = None
            party = OTHER[hearer.party]
            if not pair.known and hearer.own and self._transcoded(pair):
                speaker = Voice(party, False)
        return Heard(
            pair,
            speaker,
            hearer,
            party,
            end=hearer is None or hearer.own is not False,
            remade=speaker is not None and speaker.own is False,
            received=pair.heard and not _lost_all(pair),
        )

    def _made_up(self, heard: Heard) -> bool:
        """Whether a pair speaks of an SSRC that nobody has: test equipment sends such blocks.

        Its figures are no measurement, or its party speaks under another SSRC at that time.
        """
        pair = heard.pair
        if pair.known and not pair.static:
            return False
        if pair.static and not pair.known:
            return True
        if heard.remade and not pair.known:
            return False  # rtpengine mirrors what it receives: its own SSRC is never seen to speak
        return any(
            sender.packets
            and sender.ssrc != pair.source_ssrc
            # a node between is heard on its other side
            and (heard.end or self.parties.voices[sender.ssrc].own is not False)
            for sender in self._meanwhile(pair, heard.party)
        )

    def _transcoded(self, pair: Pair) -> bool:
        # the codec may change between a report and what it tells of
        return any(self.settings.transcodes(pair.intervals[i].at) for i in (0, -1))

    def _beside(self, heard: Heard) -> bool:
        """Whether a report is of another medium, such as video: audio is reported from elsewhere."""
        reporter = heard.pair.reporter_ssrc
        if heard.hearer is None or reporter in self.parties.sure:
            return False
        meanwhile = self._meanwhile(heard.pair, heard.hearer.party)
        return any(sender.ssrc in self.parties.sure for sender in meanwhile)

    def _meanwhile(self, pair: Pair, party: str | None) -> list[Sender]:
        """Those who speak for a party at the time of a pair's reports."""
        first, last = pair.intervals[0].at, pair.intervals[-1].at
        return [
            sender
            for sender in self.senders
            if sender.first_at <= last
            and sender.last_at >= first
            and (voice := self.parties.voices.get(sender.ssrc)) is not None
            and voice.party == party
        ]

    def _place_accounts(self) -> dict[str, list[quality.SessionQuality]]:
        """Accounts by the party that spoke, the best and newest last."""
        placed: dict[str, list[quality.SessionQuality]] = {CALLER: [], CALLEE: []}
        if not self.facts.accounts:
            return placed
        for said in sorted(
            self.facts.accounts,
            key=lambda said: (said.kind != "interval", max(self._times_of(said)), repr(said)),
        ):
            hearer = self._hearer_of(said, self.facts.accounts[said])
            if hearer is None:
                self.unplaced.append(said)
            else:
                placed[OTHER[hearer]].append(said)
        return placed

    def _times_of(self, said: quality.SessionQuality) -> list[int]:
        sightings = self.facts.accounts[said]
        return [at - self.skews.get(clock, 0) for at, clock, _, _ in sightings]

    def _hearer_of(
        self, said: quality.SessionQuality, sightings: Collection[Sighting]
    ) -> str | None:
        if said.heard_by in OTHER:
            return said.heard_by
        local = _endpoint(said.local_ip, said.local_port)
        found = self.parties.of_route((local, _endpoint(said.remote_ip, said.remote_port)))
        if found is not None:
            return found[1].party
        if (voice := self.parties.voices.get(said.local_ssrc or -1)) is not None:
            return voice.party
        if (voice := self.parties.voices.get(said.remote_ssrc or -1)) is not None:
            return OTHER[voice.party]
        if said.local_tag and self.from_tag:
            return CALLER if said.local_tag == self.from_tag else CALLEE
        senders = {
            party
            for _, _, source, _ in sightings
            if (party := self.parties.of_host(source)) is not None
        }
        if len(senders) == 1:
            sender = senders.pop()
            return OTHER[sender] if said.second_hand else sender
        return said.claimed_by if said.claimed_by in OTHER else None

    # --------------------------------------------------------------------------- delay

    def _measured(self) -> dict[object, _Trip]:
        """Round trips to each party that reports itself; to each SSRC where parties are unknown."""
        trips: dict[object, _Trip] = {}
        for heard in self.heard:
            times = [each.rtt_ms for each in heard.pair.intervals if each.rtt_ms is not None]
            if not times or not heard.end:
                continue
            key = heard.hearer.party if heard.hearer else heard.pair.reporter_ssrc
            told = heard.pair.form == "freeswitch"
            known = trips.get(key, _Trip((), False, True))
            trips[key] = _Trip(
                (*known.times, *times), known.told or told, known.whole and self._whole(heard, told)
            )
        return trips

    def _whole(self, heard: Heard, told: bool) -> bool:
        if heard.party is None:
            return False
        if told and self.agreed and not self.parties.between:
            return True
        routes = self.facts.routes.get(heard.pair.reporter_ssrc, ())
        return self.parties.reaches_end(
            (*routes, (heard.pair.reporter, heard.pair.target)), heard.party
        )

    def _round_trip(self, trips: Mapping[object, _Trip]) -> tuple[float, float, str] | None:
        """Between the parties: median, maximum, and how it was measured.

        The capture point is between them, so the round trip to each is a part of the whole: one
        part alone is only as good as half the truth.
        """
        if not trips:
            return None
        parts = [trips[party] for party in (CALLER, CALLEE) if party in trips]
        if not parts and len(trips) == 2:
            parts = list(trips.values())
        if not parts or (len(parts) == 1 and not parts[0].whole):
            return None
        return (
            sum(median(part.times) for part in parts),
            sum(max(part.times) for part in parts),
            "esl" if any(part.told for part in parts) else "sr_rr",
        )

    def _delay_of(self, heard: Heard) -> Delay:
        """What is known of the delay of what was heard there."""
        source = heard.pair.source_ssrc if heard.party is None else None
        key = (heard.party, heard.end, source)
        delay = self._delays.get(key)
        if delay is None:
            same = [
                each
                for each in self.heard_of[heard.party]
                if each.end == heard.end and (source is None or each.pair.source_ssrc == source)
            ]
            delay = self._delays[key] = self._make_delay(same)
        return delay

    def _make_delay(self, heard: Sequence[Heard]) -> Delay:
        voip = voip_of(heard)
        trip = self._trip
        delay = Delay()
        if trip is not None:
            rtt, rtt_max, how = trip
            delay = Delay(network_ms=rtt / 2, source=how, rtt_ms=rtt, rtt_max_ms=rtt_max)
        if voip is not None:
            straight = all(each.segment == "end_to_end" for each in heard)
            if straight and voip.round_trip_ms:
                delay = msgspec.structs.replace(
                    delay,
                    network_ms=voip.round_trip_ms / 2,
                    mouth_to_ear_ms=self._told_by_both(voip, heard[0].party),
                    source="xr",
                    rtt_ms=float(voip.round_trip_ms) if trip is None else trip[0],
                )
            delay = msgspec.structs.replace(
                delay,
                buffer_ms=float(voip.buffer_nominal_ms) if voip.buffer_nominal_ms else None,
                discard_percent=voip.discard_percent,
                burst_ratio=burst_ratio(voip),
            )
        return self._declared(delay)

    def _told_by_both(self, voip: rtcp.VoipMetrics, party: str | None) -> float | None:
        """Mouth to ear as both devices tell it (RFC 3611 4.7.3)."""
        back = voip_of(self.heard_of[OTHER[party]]) if party else None
        if not voip.round_trip_ms or back is None:
            return None
        if voip.end_system_ms is None or back.end_system_ms is None:
            return None
        return (voip.round_trip_ms + voip.end_system_ms + back.end_system_ms) / 2

    def _declared(self, delay: Delay) -> Delay:
        declared = self.thresholds.network_delay_ms
        if delay.network_ms is not None or declared is None:
            return delay
        return msgspec.structs.replace(delay, network_ms=declared, source="declared")

    # --------------------------------------------------------------------------- figures

    def points(self, heard: Heard) -> tuple[Point, ...]:
        """Rate the intervals of one pair, by time."""
        points = self._scored.get(id(heard))
        if points is None:
            points = self._scored[id(heard)] = self._rated(heard)
        return points

    def _rated(self, heard: Heard) -> tuple[Point, ...]:
        delay = self._delay_of(heard)
        settings, id_mode, clock = self.settings, self.thresholds.id_mode, heard.pair.clock_rate
        points = []
        for each in heard.pair.intervals:
            setting = settings.heard_at(heard.party, end=heard.end, clock=clock, at=each.at)
            points.append(
                score(
                    each.at,
                    setting,
                    delay,
                    loss_percent=None if each.loss is None else 100.0 * each.loss,
                    jitter_ms=1000.0 * each.jitter / setting.clock_rate,
                    expected=each.expected,
                    lost=each.lost,
                    seconds=each.seconds,
                    rtt_ms=each.rtt_ms,
                    id_mode=id_mode,
                )
            )
        return tuple(points)

    def figures_of(self, party: str) -> Figures | None:
        """The best account of what one party said, as the other heard it."""
        heard = [each for each in self.heard_of[party] if each.pair.heard]
        at_end = longest([each for each in heard if each.end])
        between = longest([each for each in heard if not each.end])
        if not at_end:
            return self.of_pairs(between) if between else self._of_accounts(party)
        figures = self.of_pairs(at_end)
        if figures.segment == "from_middle":
            expected, lost = _totals(between)
            if expected and lost is not None:
                upstream = 100.0 * lost / expected
                return msgspec.structs.replace(figures, upstream_loss_percent=upstream)
        return figures

    def of_pairs(self, heard: Sequence[Heard]) -> Figures:
        """Join what pairs tell of one direction, such as of SSRCs that followed each other."""
        most = newest = heard[0]
        points = self.points(newest)
        ssrcs: tuple[int, ...] = (newest.pair.source_ssrc,)
        if len(heard) > 1:
            told = [point for each in heard for point in self.points(each)]
            points = tuple(sorted(told, key=_at))
            ordered = sorted(heard, key=_newness)
            once = {each.pair.source_ssrc: None for each in reversed(ordered)}
            ssrcs = tuple(reversed(once))
            most = max(heard, key=lambda each: (each.pair.expected or 0, len(each.pair.intervals)))
        expected, lost = _totals(heard)
        flags: set[str] = set()
        for point in points:
            flags |= point.setting.flags
        if len(ssrcs) > 1:
            flags.add("ssrc_changed")
        if newest.party in self.doubted:
            flags.add("implausible")
        source = "esl"
        for each in heard:
            if each.pair.restarts:
                flags.add("restarted")
            if each.pair.implausible:
                flags.add("implausible")
            if each.pair.form != "freeswitch":
                source = "rtcp"
        return Figures(
            source=source,
            segment=most.segment,
            points=points,
            ssrcs=ssrcs,
            expected=expected,
            lost=lost,
            delay=self._delay_of(heard[0]),
            first_at=points[0].at,
            last_at=points[-1].at,
            flags=frozenset(flags),
        )

    def _of_accounts(self, party: str) -> Figures | None:
        """The newest account of the best kind that tells a loss or a jitter."""
        for source in PRECEDENCE:
            for said in reversed(self.accounts[party]):
                loss = _loss_of(said)
                if said.source == source and (loss is not None or said.jitter_ms is not None):
                    return self._of_account(party, said, loss)
        return None

    def _of_account(self, party: str, said: quality.SessionQuality, loss: float | None) -> Figures:
        times = self._times_of(said)
        setting = self.settings.heard_at(party, end=True, clock=None, at=max(times))
        flags = set(setting.flags) - {CLOCK_ASSUMED}  # jitter is in ms here
        if setting.name is None and said.codec:
            codec, assumptions = self.settings.codec_of(said.codec, said.clock_rate)
            flags = flags - {CODEC_ASSUMED} | set(assumptions)
            setting = msgspec.structs.replace(setting, codec=codec)
        if PTIME_ASSUMED in flags and said.ptime_ms:
            setting = msgspec.structs.replace(setting, ptime_ms=said.ptime_ms)
            flags.discard(PTIME_ASSUMED)
        setting = msgspec.structs.replace(setting, flags=frozenset(flags))
        delay = Delay(discard_percent=said.discard_percent, burst_ratio=said.burst_ratio)
        trip = self._trip
        if trip is None and said.rtt_ms:
            trip = said.rtt_ms, said.rtt_ms, "xr" if said.source == "vq" else "sr_rr"
        if trip is not None:
            delay = msgspec.structs.replace(
                delay, network_ms=trip[0] / 2, source=trip[2], rtt_ms=trip[0], rtt_max_ms=trip[1]
            )
        expected = lost = None
        if said.packets_received is not None and said.packets_lost is not None:
            expected, lost = said.packets_received + said.packets_lost, said.packets_lost
        delay = self._declared(delay)
        point = score(
            min(times),
            setting,
            delay,
            loss_percent=loss,
            jitter_ms=said.jitter_ms,
            expected=expected,
            lost=lost,
            seconds=said.seconds,
            rtt_ms=said.rtt_ms,
            id_mode=self.thresholds.id_mode,
        )
        return Figures(
            source=said.source,
            segment=None,
            points=(point,),
            ssrcs=(said.remote_ssrc,) if said.remote_ssrc else (),
            expected=expected,
            lost=lost,
            delay=delay,
            first_at=min(times),
            last_at=max(times),
            flags=setting.flags,
        )

    # --------------------------------------------------------------------------- who sent, who heard

    def voices(self, party: str, *, own: bool) -> Sequence[Sender]:
        """Those who speak RTCP for a party: itself, or nodes in its place."""
        return self._voices.get((party, own), ())

    def sends(self, party: str) -> bool | None:
        """Whether a party sent media, by its own word or by what was heard of it."""
        silent = 0
        for sender in self.voices(party, own=True):
            if sender.packets:
                return True
            silent += sender.reports
        heard = [each for each in self.heard_of[party] if each.received]
        if any(not each.remade for each in heard):
            return True
        if silent >= MIN_SILENT_REPORTS:
            return False
        if heard or any(sender.packets for sender in self.voices(party, own=False)):
            return True
        return None

    def is_heard(self, party: str) -> tuple[bool | None, int]:
        """Whether the other party hears it, and how many of its reports speak of nothing."""
        for own in (True, False):
            pairs = [each for each in self.heard_of[party] if each.end == own]
            for each in pairs:
                if each.received:
                    return True, 0
            reporters = self.voices(OTHER[party], own=own)
            silent = silent_reports(reporters, pairs)
            if silent >= MIN_SILENT_REPORTS and self.nothing_else(reporters, pairs):
                return False, silent
        return None, 0

    def strangers(self) -> list[int]:
        """SSRCs that were heard, and nobody can tell whose they are.

        Where nobody at all is known and two speak, both are told of, heard or not.
        """
        found = {each.pair.source_ssrc for each in self.heard_of[None]}
        if not self.parties.voices:
            spoke = {s.ssrc for s in self.senders if s.packets or s.reports >= MIN_SILENT_REPORTS}
            if len(found | spoke) == 2 and max(found | spoke) < UNNAMED:
                return sorted(found | spoke)
        return sorted(found)

    def nothing_else(self, reporters: Iterable[Sender], pairs: Iterable[Heard]) -> bool:
        """Whether these report of nothing but of what they did not receive."""
        unheard = {each.pair.reporter_ssrc for each in pairs}
        return all(s.ssrc not in self.reporters or s.ssrc in unheard for s in reporters)


def silent_reports(reporters: Iterable[Sender], unheard: Iterable[Heard]) -> int:
    """How many reports speak of nothing that was received."""
    empty = sum(sender.empty_reports for sender in reporters)
    return empty + sum(len(each.pair.intervals) for each in unheard)


def longest(heard: Sequence[Heard]) -> list[Heard]:
    """One account of each SSRC at each time: of several listeners the one who tells most."""
    if len(heard) < 2:
        return list(heard)
    kept: list[Heard] = []
    ordered = sorted(heard, key=lambda each: -len(each.pair.intervals))
    for each in ordered:
        span = each.pair.intervals
        if not any(
            other.pair.source_ssrc == each.pair.source_ssrc
            and other.pair.intervals[0].at <= span[-1].at
            and other.pair.intervals[-1].at >= span[0].at
            for other in kept
        ):
            kept.append(each)
    return sorted(kept, key=lambda each: (each.pair.intervals[0].at, each.pair.source_ssrc))


def _lost_all(pair: Pair) -> bool:
    """Whether a pair's counts say that everything was lost."""
    if not pair.expected or pair.lost is None:
        return False
    return 100.0 * pair.lost >= ALL_LOST_PERCENT * pair.expected


def _newness(heard: Heard) -> tuple[int, int]:
    return heard.pair.intervals[-1].at, heard.pair.source_ssrc


def _totals(heard: Iterable[Heard]) -> tuple[int | None, int | None]:
    """Packets expected and lost, over the pairs that tell both."""
    expected: int | None = None
    lost: int | None = None
    for each in heard:
        pair = each.pair
        if pair.expected is not None and pair.lost is not None:
            expected, lost = (expected or 0) + pair.expected, (lost or 0) + pair.lost
    return expected, lost


def voip_of(heard: Iterable[Heard]) -> rtcp.VoipMetrics | None:
    """The extended report of those who heard it themselves; the one of the newest pair."""
    found = [each for each in heard if each.pair.voip is not None and each.end]
    return max(found, key=_newness).pair.voip if found else None


def _loss_of(said: quality.SessionQuality) -> float | None:
    if said.loss_percent is not None:
        return said.loss_percent
    if said.packets_received is None or said.packets_lost is None:
        return None
    total = said.packets_received + said.packets_lost
    return 100.0 * said.packets_lost / total if total else None


def _endpoint(ip: str | None, port: int | None) -> Endpoint:
    return (hep.packed_address(ip) if ip else b"", port or 0)
