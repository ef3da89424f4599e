import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sipsidecar.calls import streams
from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.streams import Interval, Pair, Sender, Streams
from sipsidecar.wire import hep, pcap
from sipsidecar.wire.rtcp import Report, ReportBlock, SenderInfo, VoipMetrics

EPOCH = 1_795_000_000_000_000
NTP_1970 = 2_208_988_800
A, B = 0x11111111, 0x22222222
AT_A: Endpoint = (b"\xc0\x00\x02\x01", 4001)
AT_B: Endpoint = (b"\xc6\x33\x64\x02", 4001)
PROXY: Endpoint = (b"\xcb\x00\x71\x05", 30001)
CORPUS = Path(__file__).parent.parent / "corpus"


def _us(seconds: float) -> int:
    return EPOCH + round(seconds * 1_000_000)


def _ntp(seconds: float) -> int:
    """A sender's own clock; it is nobody else's business what it is set to."""
    return round((seconds + NTP_1970) * (1 << 32))


def _block(
    highest: int,
    lost: int = 0,
    fraction: int = 0,
    *,
    source: int = A,
    jitter: int = 8,
    lsr: int = 0,
    dlsr: int = 0,
) -> ReportBlock:
    return ReportBlock(source, fraction, lost, highest, jitter, lsr, dlsr)


def _info(at: float, packets: int) -> SenderInfo:
    return SenderInfo(_ntp(at), packets * 160, packets, packets * 160)


class Capture(NamedTuple):
    """One report as it was captured."""

    at: float
    report: Report
    source: Endpoint = AT_B
    destination: Endpoint = PROXY
    clock: int = 1
    skew: float = 0.0


def _seen(captures: Iterable[Capture]) -> Streams:
    found = Streams()
    for one in captures:
        stamp = _us(one.at + one.skew)
        found.see(one.report, one.source, one.destination, one.clock, stamp)
    return found


def _rr(at: float, *blocks: ReportBlock, ssrc: int = B) -> Capture:
    return Capture(at, Report(ssrc, blocks=blocks))


def _sr(at: float, packets: int, *blocks: ReportBlock, ssrc: int = A) -> Capture:
    place = AT_A if ssrc == A else AT_B
    return Capture(at, Report(ssrc, sender=_info(at, packets), blocks=blocks), place)


def _pair(captures: Iterable[Capture], skews: dict[int, int] | None = None) -> Pair:
    (pair,) = _seen(captures).pairs(skews or {})
    return pair


def _sender(captures: Iterable[Capture], ssrc: int) -> Sender:
    return next(one for one in _seen(captures).senders({}) if one.ssrc == ssrc)


def _figures(pair: Pair) -> list[tuple[int | None, int | None]]:
    return [(one.expected, one.lost) for one in pair.intervals]


def _losses(pair: Pair) -> list[float | None]:
    return [one.loss for one in pair.intervals]


# A receiver as RFC 3550 has it, and a network that loses, repeats and reorders.


class Receiver:
    """Appendix A.1 (sequence numbers), A.3 (loss) and A.8 (jitter) of RFC 3550."""

    def __init__(self) -> None:
        self.began = False
        self.restarted = 0

    def _init(self, seq: int) -> None:
        self.base_seq = self.max_seq = seq
        self.bad_seq = -1
        self.cycles = self.received = self.expected_prior = self.received_prior = 0

    def hear(self, seq: int, timestamp: int, arrival: float) -> None:
        if not self.began:
            self._init(seq)
            self.began = True
            self.transit, self.jitter = arrival * 8000 - timestamp, 0.0
        else:
            delta = (seq - self.max_seq) % 65_536
            if delta < 3000:
                if seq < self.max_seq:
                    self.cycles += 65_536
                self.max_seq = seq
            elif delta <= 65_536 - 100:
                if seq != self.bad_seq:
                    self.bad_seq = (seq + 1) % 65_536
                    return
                self._init(seq)
                self.restarted += 1
        self.received += 1
        transit = arrival * 8000 - timestamp
        self.jitter += (abs(transit - self.transit) - self.jitter) / 16
        self.transit = transit

    @property
    def highest(self) -> int:
        return self.cycles + self.max_seq

    @property
    def expected(self) -> int:
        return self.highest - self.base_seq + 1

    @property
    def lost(self) -> int:
        return max(-0x800000, min(0x7FFFFF, self.expected - self.received))

    def block(self, source: int, lsr: int = 0, dlsr: int = 0) -> ReportBlock:
        expected = self.expected - self.expected_prior
        lost = expected - (self.received - self.received_prior)
        self.expected_prior, self.received_prior = self.expected, self.received
        fraction = 0 if expected == 0 or lost <= 0 else (lost << 8) // expected
        return ReportBlock(source, fraction, self.lost, self.highest, int(self.jitter), lsr, dlsr)


class World(NamedTuple):
    """What was captured of a stream from A to B, and what B knew in truth."""

    captures: list[Capture]
    expected: int
    lost: int
    heard_until: float
    expected_before: int
    """When its first report was made."""


def _world(
    seed: int,
    *,
    seconds: float = 40.0,
    loss: float = 0.05,
    repeat: float = 0.01,
    delay: float = 0.03,
    every: float = 4.0,
    restart_at: float | None = None,
    rtt: float = 0.04,
) -> World:
    """A sends 50 packets a second; both report; the capture point is beside B's proxy."""
    rng = random.Random(seed)
    first = rng.choice([0, 1, 1000, 65_500, rng.randrange(65_536)])
    arrivals = []
    seq, timestamp = first, rng.randrange(1 << 20)
    for i in range(int(seconds * 50)):
        at = i / 50
        if restart_at is not None and i == int(restart_at * 50):
            # Far enough from the old number to be a new sequence for the receiver.
            seq = (seq + rng.randrange(20_000, 45_000)) % 65_536
        seq = (seq + 1) % 65_536
        timestamp += 160
        if rng.random() < loss and i:
            continue
        for _ in range(2 if rng.random() < repeat else 1):
            arrivals.append((at + rtt / 2 + rng.random() * delay, seq, timestamp))
    arrivals.sort()
    receiver = Receiver()
    captures: list[Capture] = []
    events = sorted(
        [(at, 1, (seq, timestamp)) for at, seq, timestamp in arrivals]
        + [(at, 0, None) for at in _times(rng, seconds, every)]
    )
    gone_expected = gone_lost = before = 0
    known = (0, 0, 0)
    last_sr: tuple[float, float] | None = None
    reported = 0.0
    for at, _, packet in events:
        if packet is not None:
            restarted = receiver.restarted if receiver.began else 0
            receiver.hear(*packet, at)
            if receiver.restarted > restarted:
                gone_expected, gone_lost = gone_expected + known[0], gone_lost + known[1]
            continue
        sent = _sr(at, math.ceil(at * 50))
        captures.append(sent)
        if receiver.began:
            lsr = dlsr = 0
            if last_sr is not None:
                lsr = _ntp(last_sr[0]) >> 16 & 0xFFFFFFFF
                dlsr = round((at - last_sr[1]) * 65_536)
            known = (receiver.expected, receiver.lost, 0)
            before = before or receiver.expected
            reported = at
            captures.append(_rr(at + rtt / 2, receiver.block(A, lsr, dlsr)))
        last_sr = (at, at + rtt / 2)
    return World(captures, gone_expected + known[0], gone_lost + known[1], reported, before)


def _times(rng: random.Random, seconds: float, every: float) -> list[float]:
    times, at = [], every / 2
    while at < seconds:
        times.append(at)
        at += every * rng.uniform(0.5, 1.5)
    return times


def _consistent(pair: Pair) -> None:
    for one in pair.intervals:
        assert one.seconds is None or one.seconds >= 0
        assert (one.expected is None) == (one.lost is None)
        if one.expected is not None and one.lost is not None:
            assert one.expected >= one.lost >= 0
        assert one.loss is None or 0 <= one.loss <= 1
        assert one.rtt_ms is None or 0 <= one.rtt_ms <= 5000
    assert (pair.expected is None) == (pair.lost is None)
    if pair.expected is not None and pair.lost is not None:
        assert pair.expected >= pair.lost >= 0
    assert [one.at for one in pair.intervals] == sorted(one.at for one in pair.intervals)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6]))
def test_totals_are_those_of_the_receiver_itself(seed: int, loss: float) -> None:
    world = _world(seed, loss=loss)
    pair = _pair(world.captures)
    _consistent(pair)
    assert pair.lost == max(0, world.lost)
    # The base sequence number is not in any report: the first interval goes by SRs or the fraction.
    assert pair.expected == pytest.approx(world.expected, abs=5)
    assert pair.restarts == 0
    assert sum(one.expected or 0 for one in pair.intervals) == pair.expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.01, 0.05, 0.2]))
def test_a_source_that_begins_anew_makes_neither_negative_nor_phantom_loss(
    seed: int, loss: float
) -> None:
    world = _world(seed, loss=loss, repeat=0.0, restart_at=18.0)
    pair = _pair(world.captures)
    _consistent(pair)
    assert pair.restarts == 1
    assert pair.lost is not None
    assert pair.expected is not None
    # Where the new sequence began is not known: its first report counts only if it shows loss, and
    # then by the fraction, which one lost packet leaves between 128 and 256 of.
    assert world.lost - 15 <= pair.lost <= world.lost
    assert world.expected - 310 <= pair.expected <= world.expected + 130


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.randoms(use_true_random=False), st.booleans())
def test_order_and_copies_of_the_reports_change_nothing(
    seed: int, rng: random.Random, restarts: bool
) -> None:
    world = _world(seed, seconds=30, restart_at=12.0 if restarts else None)
    once = _seen(world.captures)
    copies = [one._replace(at=one.at + 0.0004) for one in rng.sample(world.captures, 5)]
    other_tap = [
        one._replace(source=PROXY, destination=AT_A, clock=2, skew=3.0, at=one.at + 0.002)
        for one in world.captures
        if rng.random() < 0.7
    ]
    shuffled = world.captures + copies + other_tap
    rng.shuffle(shuffled)
    again = _seen(shuffled)
    for skews in ({}, {1: 0, 2: 3_000_000}, {1: 0}):
        assert again.pairs(skews) == once.pairs(skews)
        assert again.senders(skews) == once.senders(skews)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.data())
def test_two_taps_that_each_lost_some_reports_join_in_any_order(
    seed: int, data: st.DataObject
) -> None:
    world = _world(seed, seconds=30)
    taps = [
        one._replace(clock=clock, skew=(clock - 1) * 5.0)
        for one in world.captures
        for clock in data.draw(st.sampled_from([(1,), (2,), (1, 2)]))
    ]
    mixed = data.draw(st.permutations(taps))
    skews = data.draw(st.sampled_from([{}, {1: 0, 2: 5_000_000}]))
    assert _seen(taps).pairs(skews) == _seen(mixed).pairs(skews)
    assert _seen(taps).senders(skews) == _seen(mixed).senders(skews)
    pair = _pair(mixed, {1: 0, 2: 5_000_000})
    _consistent(pair)
    assert pair.lost == max(0, world.lost)
    assert pair.restarts == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.data())
def test_lost_reports_lose_detail_but_not_the_totals(seed: int, data: st.DataObject) -> None:
    world = _world(seed, seconds=40, repeat=0.0)
    whole = _pair(world.captures)
    reports = [one for one in world.captures if one.report.ssrc == B]
    gone = data.draw(st.sets(st.integers(1, len(reports) - 2)))
    kept = [one for one in world.captures if one not in [reports[i] for i in gone]]
    part = _pair(kept)
    _consistent(part)
    assert (part.expected, part.lost, part.restarts) == (whole.expected, whole.lost, 0)
    assert len(part.intervals) == len(whole.intervals) - len(gone)


_numbers = st.integers(-(1 << 23), (1 << 23) - 1) | st.integers(-3, 300)
_blocks = st.builds(
    ReportBlock,
    source_ssrc=st.sampled_from([A, B, 0]),
    fraction_lost=st.integers(0, 255),
    lost=_numbers,
    highest_seq=st.integers(0, (1 << 32) - 1) | st.integers(65_000, 66_000),
    jitter=st.integers(0, (1 << 32) - 1) | st.integers(0, 500),
    lsr=st.just(0) | st.integers(0, (1 << 32) - 1),
    dlsr=st.integers(0, (1 << 32) - 1),
)
_reports = st.builds(
    Report,
    ssrc=st.sampled_from([A, B, 0]),
    sender=st.none()
    | st.builds(
        SenderInfo,
        ntp=st.integers(0, (1 << 64) - 1) | st.just(0),
        rtp_timestamp=st.integers(0, 5),
        packets=st.integers(0, (1 << 32) - 1) | st.integers(0, 500),
        octets=st.just(0),
    ),
    blocks=st.lists(_blocks, max_size=3).map(tuple),
    bye=st.sampled_from([(), (A,)]),
    clock_rate=st.sampled_from([None, 8000, 48_000]),
    rtt_ms=st.sampled_from([None, 40.0, math.nan, math.inf, -1.0]),
    form=st.sampled_from(["binary", "json", "freeswitch"]),
    reception=st.booleans(),
)
_captures = st.builds(
    Capture,
    at=st.integers(0, 60).map(float) | st.floats(0, 60),
    report=_reports,
    source=st.sampled_from([AT_A, AT_B]),
    destination=st.sampled_from([PROXY, AT_A]),
    clock=st.integers(0, 3),
    skew=st.just(0.0),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_captures, max_size=12), st.data())
def test_whatever_strangers_report_gives_one_consistent_answer_in_any_order(
    captures: list[Capture], data: st.DataObject
) -> None:
    skews = data.draw(st.dictionaries(st.integers(0, 3), st.integers(-(10**7), 10**7)))
    found = _seen(captures)
    for pair in found.pairs(skews):
        _consistent(pair)
    again = _seen(data.draw(st.permutations(captures)) + captures)
    assert again.pairs(skews) == found.pairs(skews)
    assert again.senders(skews) == found.senders(skews)


@given(st.lists(_blocks, min_size=1, max_size=12))
def test_any_figures_of_one_pair_account_for_themselves(blocks: list[ReportBlock]) -> None:
    blocks = [msgspec.structs.replace(one, source_ssrc=A) for one in blocks]
    found = _seen([_rr(float(i), block) for i, block in enumerate(blocks)])
    for pair in found.pairs({}):
        _consistent(pair)


# Intervals.


def test_interval_loss_comes_from_the_counts_not_from_the_coarse_fraction() -> None:
    pair = _pair([_rr(0, _block(1000)), _rr(5, _block(1250, 1, 1)), _rr(10, _block(1500, 1))])
    assert _figures(pair) == [(None, None), (250, 1), (250, 0)]
    assert _losses(pair) == [0.0, 0.004, 0.0]
    assert (pair.expected, pair.lost) == (500, 1)
    assert [one.seconds for one in pair.intervals] == [None, 5.0, 5.0]
    assert pair.intervals[0] == Interval(_us(0), None, None, None, 0.0, 8, None)


def test_a_lost_report_does_not_lose_what_it_counted() -> None:
    pair = _pair([_rr(0, _block(1000)), _rr(10, _block(1500, 20, 4))])
    assert _figures(pair) == [(None, None), (500, 20)]


def test_duplicates_that_make_the_count_fall_are_no_loss() -> None:
    pair = _pair([_rr(0, _block(1000, 5)), _rr(5, _block(1250, -2)), _rr(10, _block(1500, 8))])
    assert _figures(pair) == [(None, None), (250, 0), (250, 10)]
    assert (pair.expected, pair.lost) == (500, 3)


def test_more_lost_than_expected_is_all_lost() -> None:
    pair = _pair([_rr(0, _block(1000)), _rr(5, _block(1010, 50))])
    assert _figures(pair) == [(None, None), (10, 10)]


def test_a_count_that_reached_its_end_gives_way_to_the_fraction() -> None:
    full = 0x7FFFFF
    pair = _pair([_rr(0, _block(1000, full)), _rr(5, _block(1256, full, 64))])
    assert _figures(pair)[1] == (256, 64)


def test_the_sequence_wraps_with_its_cycles() -> None:
    pair = _pair([_rr(0, _block(65_500)), _rr(5, _block(65_536 + 214, 2))])
    assert _figures(pair)[1] == (250, 2)
    assert pair.restarts == 0


def test_a_receiver_without_cycles_wraps_too() -> None:
    pair = _pair([_rr(0, _block(65_250)), _rr(5, _block(65_500)), _rr(10, _block(214, 2))])
    assert _figures(pair)[2] == (250, 2)
    assert pair.restarts == 0


@pytest.mark.parametrize("counted", [0, 65_536])
def test_a_receiver_that_counts_a_cycle_too_many_loses_no_65536_packets(counted: int) -> None:
    """Reordering at the wrap makes simple receivers do so, and then count all of it as lost."""
    pair = _pair([_rr(0, _block(100)), _rr(5, _block(65_536 + 350, counted + 3))])
    assert _figures(pair)[1] == (250, 3)
    assert pair.restarts == 0


def test_a_sequence_that_goes_back_or_leaps_is_a_new_one() -> None:
    back = [_rr(0, _block(40_000, 7)), _rr(5, _block(40_250, 9)), _rr(10, _block(1100, 0))]
    pair = _pair([*back, _rr(15, _block(1350, 4))])
    assert _figures(pair) == [(None, None), (250, 2), (None, None), (250, 4)]
    assert (pair.expected, pair.lost, pair.restarts) == (500, 6, 1)
    assert pair.intervals[2].seconds == 5.0
    leap = [_rr(0, _block(1000, 7)), _rr(5, _block(30_000, 0)), _rr(10, _block(30_250, 1))]
    pair = _pair(leap)
    assert (pair.expected, pair.lost, pair.restarts) == (250, 1, 1)


def test_the_first_report_of_a_new_sequence_counts_when_it_shows_loss() -> None:
    pair = _pair([_rr(0, _block(40_000)), _rr(5, _block(40_250)), _rr(10, _block(1249, 25, 25))])
    assert _figures(pair)[2] == (251, 25)  # 25 of 250, in fact
    assert (pair.expected, pair.lost) == (501, 25)


def test_a_count_of_lost_packets_that_begins_anew_does_not_take_back_loss() -> None:
    told = [_rr(0, _block(1000, 300)), _rr(5, _block(1250, 25, 25)), _rr(10, _block(1500, 30, 5))]
    pair = _pair(told)
    assert _figures(pair) == [(None, None), (250, 25), (250, 5)]
    assert (pair.lost, pair.restarts) == (30, 0)
    unexplained = [_rr(0, _block(1000, 900)), _rr(5, _block(1250, 0)), _rr(10, _block(1500, 5))]
    pair = _pair(unexplained)
    assert (pair.expected, pair.lost, pair.restarts) == (250, 5, 1)


def test_one_senseless_block_among_others_is_left_out() -> None:
    pair = _pair(
        [
            _rr(0, _block(1000)),
            _rr(5, _block(1250, 2)),
            _rr(7, _block(3_000_000_000, -70_000, 200)),
            _rr(10, _block(1500, 4)),
        ]
    )
    assert (pair.expected, pair.lost, pair.restarts, pair.implausible) == (500, 4, 0, 1)


def test_one_senseless_count_of_lost_packets_is_no_loss_of_everything() -> None:
    told = [_rr(5 * i, _block(1000 + 250 * i)) for i in range(5)]
    told[3] = _rr(15, _block(1750, 57_363))
    pair = _pair(told)
    assert (pair.expected, pair.lost, pair.restarts, pair.implausible) == (1000, 0, 0, 1)


def test_an_older_view_by_a_clock_that_is_off_is_no_restart() -> None:
    late = _rr(6, _block(1200, 1))._replace(clock=2)
    pair = _pair([_rr(0, _block(1000)), _rr(5, _block(1250, 2)), late, _rr(10, _block(1500, 4))])
    assert (pair.expected, pair.lost, pair.restarts) == (500, 4, 0)


def test_times_are_the_receivers_where_the_clock_is_known() -> None:
    captures = [
        _rr(0, _block(1000)),
        _rr(5, _block(1250))._replace(clock=2, skew=3600.0),
    ]
    pair = _pair(captures, {2: 3_600_000_000})
    assert [one.at for one in pair.intervals] == [_us(0), _us(5)]
    assert pair.intervals[1].seconds == 5.0


# The first report: the sequence number that the source began with is in none.


def test_the_first_report_goes_by_its_fraction_when_it_shows_loss() -> None:
    pair = _pair([_rr(4, _block(1249, 12, 12))])
    assert _figures(pair) == [(246, 12)]
    assert pair.intervals[0].loss == pytest.approx(12 / 250, rel=0.02)
    assert (pair.expected, pair.lost) == (246, 12)


def test_the_first_report_goes_by_the_sources_own_count_when_it_shows_none() -> None:
    clean = [_sr(2, 100), _sr(4, 200), _rr(3, _block(1149))]
    assert _figures(_pair(clean)) == [(150, 0)]
    assert _figures(_pair([_sr(4, 200), _sr(6, 300), _rr(3, _block(1149))])) == [(150, 0)]
    assert _figures(_pair([_sr(2, 100), _sr(4, 200), _rr(5, _block(1249))])) == [(250, 0)]
    assert _figures(_pair([_sr(3, 150), _rr(3.5, _block(1149))])) == [(150, 0)]
    some = [_sr(2, 1000), _sr(4, 2000), _rr(3, _block(1149, 5, 0))]
    assert _figures(_pair(some)) == [(1500, 5)]


@pytest.mark.parametrize(
    "captures",
    [
        pytest.param([_sr(0, 100), _sr(20, 1100), _rr(20, _block(1149))], id="another heard it"),
        pytest.param([_sr(3, 150), _rr(5, _block(1149))], id="one SR too long ago"),
        pytest.param([_sr(2, 100), _sr(3, 150), _rr(9, _block(1149))], id="two SRs too long ago"),
        pytest.param([_sr(30, 1500), _sr(32, 1600), _rr(3, _block(1149))], id="SRs much later"),
        pytest.param([_sr(2, 90_000), _sr(4, 90_100), _rr(3, _block(1149))], id="not the first"),
        pytest.param([_sr(2, 0), _sr(4, 0), _rr(3, _block(1149))], id="nothing sent"),
        pytest.param([_sr(2, 100), _sr(4, 200), _rr(3, _block(1149, 9, 0))], id="contradiction"),
        pytest.param([_rr(3, _block(1149))], id="no SR"),
        pytest.param([_rr(3, _block(90_000, 900, 1))], id="loss of hours"),
        pytest.param([_rr(3, _block(1149, -2, 9))], id="fraction without loss"),
    ],
)
def test_the_first_report_counts_nothing_where_nobody_can_know_how_much(
    captures: list[Capture],
) -> None:
    pair = _pair(captures)
    assert _figures(pair) == [(None, None)]
    assert pair.intervals[0].loss is not None
    assert (pair.expected, pair.lost) == (None, None)


def test_a_count_of_sent_packets_that_began_anew_counts_as_it_stands() -> None:
    assert _figures(_pair([_sr(3, 150), _sr(3.2, 10), _rr(3.1, _block(1149))])) == [(150, 0)]


def test_freeswitchs_one_packet_lost_at_the_start_of_a_clean_stream_is_none() -> None:
    def told(*blocks: ReportBlock) -> list[Capture]:
        return [
            Capture(4.0 * i, Report(9, blocks=(block,), form="freeswitch"))
            for i, block in enumerate(blocks)
        ]

    clean = _pair(told(_block(1199, 1, 1), _block(1399, 1)))
    assert (clean.lost, _losses(clean)) == (0, [0.0, 0.0])
    lossy = _pair(told(_block(1199, 1, 1), _block(1399, 4, 3)))
    assert lossy.lost == 4
    other = _pair([_rr(4, _block(1199, 1, 1)), _rr(8, _block(1399, 1))])
    assert other.lost == 1


# Reports of nothing.


def test_an_outage_that_the_receiver_goes_on_reporting_is_loss_by_the_sources_own_count() -> None:
    captures = [_sr(t + 0.1, 50 * t + 5) for t in range(0, 60, 5)]
    captures += [_rr(t, _block(1000 + 50 * t)) for t in range(5, 30, 5)]
    captures += [_rr(t, _block(1000 + 50 * 25, jitter=t)) for t in range(30, 60, 5)]
    pair = _pair(captures)
    assert _losses(pair)[1:] == [0.0] * 4 + [None] + [1.0] * 5
    assert _figures(pair)[5:] == [(0, 0)] + [(250, 250)] * 5
    assert pair.lost == 1250
    assert pair.expected == 250 + 1000 + 1250


def test_an_outage_shows_when_the_receivers_reports_have_no_block_any_more() -> None:
    captures = [_sr(t + 0.1, 50 * t + 5) for t in range(0, 60, 5)]
    captures += [_rr(t, _block(1000 + 50 * t)) for t in range(5, 30, 5)]
    captures += [_rr(t) for t in range(30, 60, 5)]
    pair = _pair(captures)
    assert _losses(pair) == [0.0] * 5 + [1.0] * 5
    assert (pair.lost, pair.expected) == (1250, 250 + 1000 + 1250)
    assert _sender(captures, B).empty_reports == 6


def test_a_silent_source_is_no_outage() -> None:
    """It sends receiver reports, or repeats its last count, which came right after the last block."""
    for silent in ([], [_sr(t + 0.1, 1255) for t in range(30, 60, 5)]):
        captures = [_sr(t + 0.1, 50 * t + 5) for t in range(0, 30, 5)] + silent
        captures += [_rr(t, _block(1000 + 50 * t)) for t in range(5, 30, 5)]
        captures += [_rr(t, _block(1000 + 50 * 25, jitter=t)) for t in range(30, 60, 5)]
        pair = _pair(captures)
        assert _losses(pair)[5:] == [None] * 6
        assert pair.lost == 0


def test_an_outage_that_ends_is_counted_once() -> None:
    captures = [_sr(t + 0.1, 50 * t + 5) for t in range(0, 60, 5)]
    captures += [_rr(t, _block(1000 + 50 * t)) for t in range(5, 30, 5)]
    captures += [_rr(t, _block(1000 + 50 * 25, jitter=t)) for t in range(30, 45, 5)]
    captures += [_rr(45, _block(1000 + 50 * 45, 1000, 255)), _rr(50, _block(1000 + 50 * 50, 1000))]
    pair = _pair(captures)
    assert _figures(pair)[5:] == [(0, 0), (250, 250), (250, 250), (500, 500), (250, 0)]
    assert (pair.expected, pair.lost, pair.restarts) == (50 * 50, 1000, 0)


def test_a_long_outage_that_is_told_as_lost_is_no_restart() -> None:
    captures = [_rr(t, _block(1000 + 50 * t)) for t in range(5, 30, 5)]
    captures += [_rr(t, _block(1000 + 50 * 25, jitter=t)) for t in range(30, 300, 5)]
    back = _rr(300, _block(1000 + 50 * 300, 50 * 270, 250))
    pair = _pair([*captures, back])
    assert (pair.restarts, pair.lost) == (0, 50 * 270)
    anew = _rr(300, _block(1000 + 50 * 300, 0))
    assert _pair([*captures, anew]).restarts == 1


def test_a_senseless_count_of_sent_packets_is_no_outage() -> None:
    captures = [_sr(0.1, 5), _sr(5.1, 255), _sr(10.1, 505), _sr(14.9, 4_000_000_000)]
    captures += [_rr(5, _block(1250)), _rr(10, _block(1250, jitter=1)), _rr(15, _block(1250))]
    assert _losses(_pair(captures))[1:] == [None, None]


def test_late_packets_lower_the_loss_without_a_new_one() -> None:
    pair = _pair([_rr(0, _block(1000)), _rr(5, _block(1250, 10)), _rr(10, _block(1250, 7))])
    assert (pair.expected, pair.lost, pair.restarts) == (250, 7, 0)


def test_a_reporter_that_never_heard_a_packet_has_no_loss_but_says_so() -> None:
    first = ReportBlock(A, 255, 1, 0, 0)
    pair = _pair([_rr(4, first), _rr(8, ReportBlock(A, 0, 1, 0, 0))])
    assert not pair.heard
    assert _losses(pair) == [None, None]
    assert pair.expected is None
    assert _pair([_rr(4, _block(1000))]).heard


# Round trips.


def _echo(at: float, sr_at: float, dlsr: float, units: int = 0, **more: int) -> Capture:
    lsr = (_ntp(sr_at) >> 16 & 0xFFFFFFFF) + units
    return _rr(at, _block(1000, lsr=lsr, dlsr=round(dlsr * 65_536), **more))


@pytest.mark.parametrize("units", [0, 1, -1, 2, -2])
def test_a_round_trip_is_what_an_echo_took_beyond_its_delay(units: int) -> None:
    """RFC 3550 6.4.1, figure 2: 6.125 s, of which all but 5 s here is one passive half."""
    pair = _pair([_sr(10, 500), _echo(11.04, 10, 1.0, units)])
    assert pair.intervals[0].rtt_ms == pytest.approx(40, abs=0.1)


@pytest.mark.parametrize(
    ("echo", "rtt_ms"),
    [
        pytest.param(_echo(10.999, 10, 1.0), 0.0, id="stamps are not that exact"),
        pytest.param(_echo(10.99, 10, 1.0), None, id="negative"),
        pytest.param(_echo(16.1, 10, 1.0), None, id="over 5 s"),
        pytest.param(_echo(71.1, 10, 61.0), None, id="an echo of a minute ago"),
        pytest.param(_echo(11.04, 10, 1.0, 3), None, id="no such SR"),
        pytest.param(_echo(11.04, 9, 1.0), None, id="an SR that was not captured"),
        pytest.param(_echo(11.04, 10, 1.0)._replace(clock=2), None, id="by another clock"),
        pytest.param(_rr(11.04, _block(1000)), None, id="none was received"),
    ],
)
def test_what_cannot_be_a_round_trip_is_none(echo: Capture, rtt_ms: float | None) -> None:
    (one,) = _pair([_sr(10, 500), echo]).intervals
    assert one.rtt_ms == rtt_ms


def test_copies_of_an_sr_are_sent_when_the_first_was() -> None:
    copies = [_sr(10, 500)._replace(skew=0.03), _sr(10, 500)]
    (one,) = _pair([*copies, _echo(11.04, 10, 1.0)]).intervals
    assert one.rtt_ms == pytest.approx(40, abs=0.1)


def test_a_round_trip_takes_both_stamps_from_one_clock() -> None:
    echo = _echo(11.04, 10, 1.0)
    captures = [
        _sr(10, 500)._replace(clock=2, skew=7.0),
        echo,
        echo._replace(clock=2, skew=7.0),
    ]
    (one,) = _pair(captures).intervals
    assert one.rtt_ms == pytest.approx(40, abs=0.1)
    assert one.at == _us(11.04)


def test_a_sender_without_a_clock_echoes_nothing() -> None:
    info = SenderInfo(5, 800, 5, 800)
    captures = [
        Capture(1, Report(A, sender=info), AT_A),
        Capture(2, Report(A, sender=msgspec.structs.replace(info, rtp_timestamp=1600)), AT_A),
        _rr(2.04, _block(1000, lsr=5 << 16, dlsr=65_536)),
    ]
    assert _pair(captures).intervals[0].rtt_ms is None
    assert _sender(captures, A).sender_reports == 2


def test_the_round_trip_that_the_form_told_is_second_to_the_measured_one() -> None:
    told = Report(B, blocks=(_block(1000),), rtt_ms=55.5)
    assert _pair([Capture(4, told)]).intervals[0].rtt_ms == 55.5
    echo = _echo(11.04, 10, 1.0)
    report = msgspec.structs.replace(echo.report, rtt_ms=90.0)
    both = _pair([_sr(10, 500), echo._replace(report=report)])
    assert both.intervals[0].rtt_ms == pytest.approx(40, abs=0.1)
    for senseless in (math.nan, math.inf, -1.0, 5001.0):
        report = msgspec.structs.replace(told, rtt_ms=senseless)
        assert _pair([Capture(4, report)]).intervals[0].rtt_ms is None


# Copies.


def test_a_block_without_an_echo_that_comes_again_later_is_another_report() -> None:
    """A silent source: everything in the block stands still."""
    same = _block(1000)
    copies = [_rr(5, same), _rr(5.001, same), _rr(10, same), _rr(15, same)]
    assert len(_pair(copies).intervals) == 3
    other_tap = [one._replace(clock=2, skew=40.0) for one in copies]
    assert len(_pair(copies + other_tap).intervals) == 3
    assert _sender(copies + other_tap, B).reports == 3


def test_a_block_with_an_echo_is_one_report_whenever_it_was_captured() -> None:
    same = _block(1000, lsr=77, dlsr=99)
    captures = [_rr(5, same), _rr(6, same)._replace(clock=2, skew=100.0, source=AT_A)]
    pair = _pair(captures)
    assert len(pair.intervals) == 1
    assert (pair.intervals[0].at, pair.reporter, pair.target) == (_us(5), AT_B, PROXY)
    known = _pair(captures, {2: 100_000_000})
    assert (known.intervals[0].at, known.reporter) == (_us(6), AT_A)


def test_a_reporter_is_where_its_newest_report_came_from() -> None:
    moved = (b"\xc6\x33\x64\x03", 5001)
    captures = [_rr(0, _block(1000)), _rr(5, _block(1250))._replace(source=moved)]
    assert _pair(captures).reporter == moved
    assert _sender(captures, B).endpoint == moved


# What an SSRC says of itself.


def test_a_sender_counts_what_it_sent_and_what_it_did_not_hear() -> None:
    captures = [
        _sr(1, 0),
        _sr(2, 50),
        _sr(3, 100, _block(1000, source=B)),
        _rr(4, _block(1050, source=B), ssrc=A)._replace(source=AT_A),
        _rr(5, ssrc=A)._replace(source=AT_A),
        _rr(5.1, ssrc=A)._replace(source=AT_A),
    ]
    assert _sender(captures, A) == Sender(
        ssrc=A,
        endpoint=AT_A,
        target=PROXY,
        first_at=_us(1),
        last_at=_us(5),
        reports=5,
        sender_reports=3,
        empty_reports=3,
        first_sent_at=_us(2),
        first_packets=50,
        packets=100,
        clock_rate=None,
    )


@pytest.mark.parametrize("where", [0, 1, 2])
def test_one_senseless_count_of_sent_packets_is_not_how_many_were_sent(where: int) -> None:
    captures = [_sr(5 * i, 250 * i) for i in (1, 2, 3)]
    captures[where] = _sr(5 * (where + 1), 0xF000_0000)
    one = _sender(captures, A)
    assert one.packets == (500 if where == 2 else 750)
    assert one.first_packets == (500 if where == 0 else 250)
    assert one.sender_reports == 3


def test_a_party_that_never_sent_has_no_count() -> None:
    one = _sender([_rr(1, _block(1000)), _rr(2, _block(1050))], B)
    assert (one.packets, one.first_packets, one.first_sent_at) == (None, None, None)


def test_a_last_word_and_an_xr_alone_complain_of_nothing() -> None:
    captures = [
        _rr(1, _block(1000)),
        Capture(2, Report(B, reception=False)),
        Capture(3, Report(B, bye=(B,))),
        Capture(4, Report(B, sender=_info(4, 9), bye=(B,))),
    ]
    one = _sender(captures, B)
    assert (one.reports, one.empty_reports, one.left) == (4, 0, True)
    assert not _sender(captures[:2], B).left


def test_clock_rates_and_forms_are_kept_where_they_are_told() -> None:
    told = Report(B, blocks=(_block(1000),), clock_rate=16_000, form="freeswitch")
    captures = [Capture(1, told), _rr(2, _block(1050))]
    pair = _pair(captures)
    assert (pair.clock_rate, pair.form) == (16_000, "binary")
    assert _sender(captures, B).clock_rate == 16_000


def test_a_source_that_never_spoke_is_not_known() -> None:
    assert not _pair([_rr(1, _block(1000))]).known
    assert _pair([_rr(1, _block(1000)), _sr(2, 100)]).known


def test_figures_that_stand_still_are_no_measurement() -> None:
    unmoved = [_rr(t, _block(1000, jitter=t)) for t in range(1, 5)]
    assert _pair(unmoved).static
    assert not _pair(unmoved[:2]).static
    claims = [_rr(t, _block(1000 + 50 * t, 17, 13)) for t in range(1, 5)]
    assert _pair(claims).static
    assert not _pair([*claims, _rr(6, _block(1400, 18, 13))]).static
    clean = [_rr(t, _block(1000 + 50 * t)) for t in range(1, 5)]
    assert not _pair(clean).static
    full = [_rr(t, _block(1000 + 50 * t, 0x7FFFFF, 13)) for t in range(1, 5)]
    assert not _pair(full).static


def test_two_parties_with_one_ssrc_are_told_apart_by_address() -> None:
    captures = [_sr(t, 50 * t, _block(1000 + 50 * t)) for t in range(1, 4)]
    captures += [
        _sr(t, 50 * t, _block(9000 + 50 * t, 5 * t, 25))._replace(source=AT_B) for t in range(1, 4)
    ]
    found = _seen(captures)
    pairs = found.pairs({})
    assert [(pair.reporter, pair.restarts) for pair in pairs] == [(AT_A, 0), (AT_B, 0)]
    assert [pair.lost for pair in pairs] == [0, 15]
    assert found.senders({}) == ()


def test_a_reporter_that_is_not_told_is_one_for_each_address() -> None:
    reports = [
        Report(0, sender=_info(1, 50), blocks=(_block(1000, source=ssrc),)) for ssrc in (A, B)
    ]
    found = _seen(
        [Capture(1, reports[0]), Capture(1, reports[1], AT_A), Capture(5, Report(0), AT_A)]
    )
    assert [(one.ssrc, one.endpoint) for one in found.senders({})] == [(0, AT_A), (0, AT_B)]
    assert [(one.source_ssrc, one.reporter) for one in found.pairs({})] == [(A, AT_B), (B, AT_A)]


def _metrics(source: int, mos: float) -> VoipMetrics:
    some = (1.0, 0.0, 0.0, 0.0, 0, 0, None, None, None, None, None, 16, 90, None)
    return VoipMetrics(source, *some, mos, mos, 0, None, None, None)


def test_the_newest_voip_metrics_of_a_pair_stand() -> None:
    block = _block(1000)
    told = [
        Capture(t, Report(B, blocks=(block,), voip=(_metrics(A, mos),)), clock=clock, skew=skew)
        for t, mos, clock, skew in ((1, 4.1, 1, 0.0), (5, 4.3, 1, 0.0), (3, 4.2, 2, 60.0))
    ]
    for order in (told, told[::-1]):
        assert _pair(order, {2: 60_000_000}).voip == _metrics(A, 4.3)
        assert _pair(order).voip == _metrics(A, 4.2)
    tied = [one._replace(at=1.0, clock=1, skew=0.0) for one in told]
    assert _pair(tied).voip == _pair(tied[::-1]).voip == _metrics(A, 4.3)
    assert _pair([_rr(1, block)]).voip is None
    alone = Streams()
    alone.see(Report(B, voip=(_metrics(A, 4.0),), reception=False), AT_B, PROXY, 1, EPOCH)
    assert alone.pairs({}) == ()


# Caps.


def test_strangers_cannot_grow_a_call_and_each_refusal_is_counted() -> None:
    found = Streams()
    for ssrc in range(1, 101):
        found.see(Report(ssrc, blocks=(_block(1000),)), AT_B, PROXY, 1, EPOCH)
    assert len(found.pairs({})) == streams.MAX_PAIRS
    assert len(found.senders({})) == streams.MAX_SENDERS
    assert found.refused == (100 - streams.MAX_PAIRS) + (100 - streams.MAX_SENDERS)
    found = Streams()
    for port in range(100):
        found.see(Report(B, blocks=(_block(1000),)), (b"", port), PROXY, 1, EPOCH + port)
    assert found.refused == 100 - streams.MAX_PLACES
    found = Streams()
    for ssrc in range(100):
        found.see(Report(B, bye=(ssrc,)), AT_B, PROXY, 1, EPOCH + ssrc)
    assert found.refused == 100 - streams.MAX_SENDERS
    found = Streams()
    for clock in range(100):
        report = Report(B, voip=(_metrics(A, 4.0),))
        found.see(report, AT_B, PROXY, clock, EPOCH)
    assert found.refused == 100 - streams.MAX_VOIP_CLOCKS


@pytest.mark.parametrize(
    "report",
    [
        Report(B, blocks=(_block(1 << 32),)),
        Report(B, blocks=(_block(1000, 1 << 23),)),
        Report(B, blocks=(_block(1000, -(1 << 23) - 1),)),
        Report(B, blocks=(_block(1000, jitter=900_001),)),
        Report(B, blocks=(_block(1000, jitter=80_001),), clock_rate=8000),
        Report(B, sender=SenderInfo(1 << 64, 0, 0, 0)),
    ],
)
def test_figures_that_no_field_can_hold_are_left_out_and_counted(report: Report) -> None:
    found = Streams()
    found.see(report, AT_B, PROXY, 1, EPOCH)
    assert found.implausible == 1
    assert found.pairs({}) == ()


def _long(reports: int, clocks: Sequence[int] = (1,), restart: int = 0) -> list[Capture]:
    told: list[Capture] = []
    for i in range(reports):
        at = 5.0 * i
        highest, lost = 1000 + 250 * i, 2 * i
        if restart and i >= restart:
            highest, lost = 40_000 + 250 * (i - restart), 3 * (i - restart)
        lsr = (_ntp(at - 1) >> 16) & 0xFFFFFFFF
        for clock in clocks:
            skew = 7.0 * clock
            told.append(_sr(at - 1, 250 * (i + 1))._replace(clock=clock, skew=skew))
            block = _block(highest, lost, 2, lsr=lsr, dlsr=65_536)
            told.append(_rr(at + 0.04, block)._replace(clock=clock, skew=skew))
    return told


@pytest.mark.parametrize("restart", [0, 301])
@pytest.mark.parametrize("clocks", [(1,), (1, 2)])
def test_a_call_of_hours_keeps_its_totals_and_its_newer_half(
    clocks: tuple[int, ...], restart: int
) -> None:
    hours = _long(4000, clocks, restart)
    found = _seen(hours)
    (pair,) = found.pairs({1: 7_000_000, 2: 14_000_000})
    _consistent(pair)
    assert len(pair.intervals) <= streams.MAX_BLOCKS
    assert len(pair.intervals) + pair.thinned == 4000
    if restart:
        assert (pair.expected, pair.lost) == (
            (300 + 3698) * 250,
            300 * 2 + 3698 * 3,
        )
        assert pair.restarts == 1
    else:
        assert (pair.expected, pair.lost) == (3999 * 250, 3999 * 2)
    newest = pair.intervals[-300:]
    assert all(one.seconds == 5.0 and one.expected == 250 for one in newest)
    assert all(one.rtt_ms == pytest.approx(40, abs=1) for one in newest)
    sender = next(one for one in found.senders({1: 7_000_000, 2: 14_000_000}) if one.ssrc == A)
    assert (sender.reports, sender.sender_reports, sender.first_packets) == (4000, 4000, 250)
    assert (sender.first_sent_at, sender.packets) == (_us(-1), 1_000_000)


def test_reports_that_all_contradict_each_other_do_not_grow_a_call_either() -> None:
    found = Streams()
    rng = random.Random(5)
    for i in range(3000):
        block = _block(rng.randrange(1 << 32), rng.randrange(1 << 20), 9)
        report = Report(B, sender=_info(i, i) if i % 2 else None, blocks=(block,))
        found.see(report, AT_B, PROXY, rng.randrange(1000), _us(i))
    (pair,) = found.pairs({})
    _consistent(pair)
    assert len(pair.intervals) <= streams.MAX_BLOCKS
    assert pair.thinned >= 3000 - streams.MAX_BLOCKS
    assert sum(map(len, [p.blocks for p in found._pairs.values()])) <= streams.MAX_BLOCKS * 36


def test_empty_reports_are_counted_when_they_are_thinned_too() -> None:
    captures = [Capture(float(i), Report(B)) for i in range(2500)]
    one = _sender(captures, B)
    assert (one.reports, one.empty_reports, one.sender_reports) == (2500, 2500, 0)


# Real ones.


def _recorded() -> dict[str, list[Capture]]:
    found: dict[str, list[Capture]] = {}
    with (CORPUS / "kamailio" / "r_rtpengine_rtcp.pcap").open("rb") as file:
        for record in pcap.Reader(file):
            packet = hep.decode(record.payload)
            told = json.loads(packet.payload)
            info = told.get("sender_information")
            sender = info and SenderInfo(
                info["ntp_timestamp_sec"] << 32 | info["ntp_timestamp_usec"],
                info["rtp_timestamp"],
                info["packets"],
                info["octets"],
            )
            blocks = tuple(
                ReportBlock(
                    one["source_ssrc"],
                    one["fraction_lost"],
                    one["packets_lost"],
                    one["highest_seq_no"],
                    one["ia_jitter"],
                    one["lsr"],
                    one["dlsr"],
                )
                for one in told["report_blocks"]
            )
            assert packet.captured_at is not None
            assert packet.correlation_id is not None
            capture = Capture(
                (packet.captured_at - EPOCH) / 1_000_000,
                Report(told["ssrc"], sender, blocks, form="json"),
                (packet.source, packet.source_port),
                (packet.destination, packet.destination_port),
            )
            found.setdefault(packet.correlation_id.decode(), []).append(capture)
    return found


def test_what_rtpengine_mirrors_gives_the_loss_that_its_endpoints_counted() -> None:
    truth = json.loads((CORPUS / "kamailio" / "r_rtpengine_rtcp.json").read_text())
    recorded = _recorded()
    for call in truth["calls"]:
        captures = recorded[call["call_id"]]
        random.Random(3).shuffle(captures)
        found = _seen(captures)
        pairs = {(pair.reporter_ssrc, pair.source_ssrc): pair for pair in found.pairs({})}
        for key, name in (((B, A), "reports_by_B_about_A"), ((A, B), "reports_by_A_about_B")):
            reports = call[name]
            # An endpoint may have made reports that its own silence kept from the wire.
            if key not in pairs:
                continue
            pair = pairs[key]
            _consistent(pair)
            assert len(pair.intervals) == len(reports)
            assert pair.lost == reports[-1]["packets_lost"]
            assert [one.jitter for one in pair.intervals] == [one["jitter"] for one in reports]
            rtts = [one.rtt_ms for one in pair.intervals if one.rtt_ms is not None]
            assert all(rtt < 3 for rtt in rtts)
            if call["case"] != "norr_from_B":
                assert pair.expected == pytest.approx(300, abs=2)
                assert len(rtts) >= len(reports) - 2
        if call["case"] == "one_way_B_silent":
            heard_nothing = next(one for one in found.senders({}) if one.ssrc == A)
            assert heard_nothing.empty_reports == heard_nothing.reports
            assert list(pairs) == [(B, A)]


@example(65_535, 250)
@given(st.integers(0, 65_535), st.integers(1, 3000))
def test_a_new_sequence_is_never_a_jump_of_65536_packets(start: int, ahead: int) -> None:
    pair = _pair([_rr(0, _block(start)), _rr(5, _block(start + 65_536 + ahead))])
    assert pair.expected is None or pair.expected <= 3000
