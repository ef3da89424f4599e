"""What was reported of a direction, interval by interval, to its figures and its MOS."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from math import ceil, fsum
from operator import mul

import msgspec

from sipsidecar.calls import emodel
from sipsidecar.calls.negotiation import Agreement, Negotiation
from sipsidecar.calls.parties import CALLER
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import rtcp, sdp

DEFAULT_PTIME_MS = 20
DEFAULT_CLOCK = 8000
MIN_CLOCK, MAX_CLOCK = 1000, 384_000
"""RTP clocks outside of these are no codec's."""

ALL_LOST_PERCENT = 100.0 * 255 / 256
"""A report's fraction tells no more: from here on nothing came, and that is no quality of media."""

CLOCK_ASSUMED = "clock_assumed"
PTIME_ASSUMED = "ptime_assumed"
TRANSCODED_IE = "transcoded_ie"
"""What was lost in the codec of the other leg counts as well."""
MIXED_SCALES = "mixed_scales"
"""The codec changed to one of another scale: the MOS is of the one that more was heard in."""


class Setting(msgspec.Struct, frozen=True, gc=False):
    """What is taken for granted where media is heard: codec, clock, packet time."""

    codec: emodel.CodecFigures
    name: str | None
    """Encoding name as agreed; None without SDP."""
    clock_rate: int
    ptime_ms: int
    flags: frozenset[str]
    """What of it was assumed."""


class Delay(msgspec.Struct, frozen=True, gc=False):
    """What is known of a direction's delay, and what a device says of its jitter buffer."""

    network_ms: float | None = None
    """One way."""
    mouth_to_ear_ms: float | None = None
    """Where the devices tell it whole."""
    source: str | None = None
    """xr, sr_rr, esl or declared."""
    rtt_ms: float | None = None
    rtt_max_ms: float | None = None
    buffer_ms: float | None = None
    discard_percent: float | None = None
    burst_ratio: float | None = None


class Point(msgspec.Struct, frozen=True, gc=False):
    """One interval, rated."""

    at: int
    seconds: float | None
    expected: int | None
    lost: int | None
    loss_percent: float | None
    jitter_ms: float | None
    rtt_ms: float | None
    setting: Setting
    delay_ms: float | None
    rating: emodel.Rating | None
    mos: float | None
    """Conversational where the delay is known, else listening."""
    kind: str | None
    """Which of the two it is: cq or lq."""

    @property
    def weight(self) -> float | None:
        """Packets, as far as they are known."""
        if self.expected is not None:
            return float(self.expected)
        return None if self.seconds is None else self.seconds * 1000 / self.setting.ptime_ms

    @property
    def media_seconds(self) -> float | None:
        """How much media it covers."""
        if self.expected is not None:
            return self.expected * self.setting.ptime_ms / 1000
        return self.seconds


class Figures(msgspec.Struct, frozen=True, gc=False):
    """What one source tells of one direction."""

    source: str
    segment: str | None
    points: tuple[Point, ...]
    """By time; at least one."""
    ssrcs: tuple[int, ...]
    """The newest one last."""
    expected: int | None
    lost: int | None
    delay: Delay
    first_at: int
    last_at: int
    flags: frozenset[str]
    upstream_loss_percent: float | None = None

    @property
    def received(self) -> int | None:
        """Packets that came."""
        if self.expected is None or self.lost is None:
            return None
        return max(self.expected - self.lost, 0)

    @property
    def loss_percent(self) -> float | None:
        """Of the counts, else the weighted mean of what the reports say."""
        if self.expected and self.lost is not None:
            return 100.0 * self.lost / self.expected
        told = [point for point in self.points if point.loss_percent is not None]
        weights = _weights(told)
        return _mean([point.loss_percent or 0.0 for point in told], weights, fsum(weights))

    @property
    def media_seconds(self) -> float | None:
        """How much media the reports cover."""
        known = [s for point in self.points if (s := point.media_seconds) is not None]
        return fsum(known) if known else None


class Settings:
    """What was agreed on at each end of a call, at any time."""

    def __init__(self, negotiation: Negotiation, thresholds: Thresholds) -> None:
        self._negotiation = negotiation
        self._thresholds = thresholds
        self._steady: dict[tuple[str | None, bool, int | None], Setting] = {}
        """Those that no later agreement changed."""

    def heard_at(self, party: str | None, *, end: bool, clock: int | None, at: int) -> Setting:
        """What holds for what `party` said: as the other heard it (`end`), or a node between.

        What is heard is in the codec of the hearing end. `clock`: the RTP clock, where reports tell.
        """
        key = (party, end, clock)
        setting = self._steady.get(key)
        if setting is not None:
            return setting
        if party is None:
            setting = self._steady[key] = self._setting(self._sole(), None, clock)
            return setting
        far = self._leg(party, far=end)
        near = self._leg(party, far=False) if end else ()
        setting = self._setting(_in_force(far, at), _in_force(near, at), clock)
        if len(far) < 2 and len(near) < 2:
            self._steady[key] = setting
        return setting

    def codec_of(
        self, name: str | None, clock_rate: int | None = None
    ) -> tuple[emodel.CodecFigures, tuple[str, ...]]:
        """The codec's figures as the thresholds want them."""
        return emodel.codec_of(
            name,
            clock_rate,
            plc=self._thresholds.plc,
            narrowband_only=self._thresholds.narrowband_only,
        )

    def transcodes(self, at: int) -> bool:
        """Whether a node between changes the codec: it makes each stream anew, under an SSRC of its own."""
        one = _in_force(self._negotiation.ingress, at)
        other = _in_force(self._negotiation.egress, at)
        if one is None or other is None or one.codec is None or other.codec is None:
            return False
        return one.codec.name != other.codec.name

    def _leg(self, party: str, *, far: bool) -> tuple[Agreement, ...]:
        """Agreements at a party's end of the call, or at the other one."""
        ingress, egress = self._negotiation.ingress, self._negotiation.egress
        if not ingress or not egress:
            return ingress or egress
        return ingress if (party == CALLER) != far else egress

    def _sole(self) -> Agreement | None:
        """The newest agreement where nobody knows who speaks; None when they are of several codecs."""
        agreements = [*self._negotiation.ingress, *self._negotiation.egress]
        codecs = {(each.codec.name, each.codec.clock_rate) for each in agreements if each.codec}
        return agreements[-1] if len(codecs) == 1 else None

    def _setting(
        self, here: Agreement | None, before: Agreement | None, clock: int | None
    ) -> Setting:
        return _setting(
            here.codec if here else None,
            here.ptime_ms if here else None,
            before.codec if before else None,
            clock,
            self._thresholds.plc,
            self._thresholds.narrowband_only,
        )


@lru_cache(maxsize=256)  # calls agree on few codecs, and this is slow
def _setting(
    codec: sdp.Codec | None,
    ptime: int | None,
    other: sdp.Codec | None,
    clock: int | None,
    plc: bool,
    narrowband_only: bool,
) -> Setting:
    """What holds where `codec` is heard, of what was sent in the `other`."""
    figures, assumptions = _figures_of(codec, plc, narrowband_only)
    flags = set(assumptions)
    if clock is None or not MIN_CLOCK <= clock <= MAX_CLOCK:
        # G.722 samples at 16000 and counts at 8000; some SDP says otherwise
        clock = codec.clock_rate if codec else None
        if codec is not None and emodel.CODEC_ASSUMED not in assumptions:
            clock = figures.clock_rate
    if clock is None or not MIN_CLOCK <= clock <= MAX_CLOCK:
        clock = DEFAULT_CLOCK
        flags.add(CLOCK_ASSUMED)
    if not ptime:
        ptime = DEFAULT_PTIME_MS
        flags.add(PTIME_ASSUMED)
    if codec is not None and other is not None and codec.name != other.name:
        added, _ = _figures_of(other, plc, narrowband_only)
        if added.scale == figures.scale and added.ie > 0:
            figures = msgspec.structs.replace(
                figures, ie=figures.ie + added.ie, grade=max(figures.grade, added.grade)
            )
            flags.add(TRANSCODED_IE)
    return Setting(figures, codec.name if codec else None, clock, ptime, frozenset(flags))


def _figures_of(
    codec: sdp.Codec | None, plc: bool, narrowband_only: bool
) -> tuple[emodel.CodecFigures, tuple[str, ...]]:
    if codec is None:
        return emodel.codec_of(None, plc=plc, narrowband_only=narrowband_only)
    return emodel.codec_of(
        codec.name, codec.clock_rate, codec.fmtp, plc=plc, narrowband_only=narrowband_only
    )


def _in_force(agreements: Sequence[Agreement], at: int) -> Agreement | None:
    """The newest agreement of a time; the first one for what came before it."""
    found = None
    for each in agreements:
        if each.codec is not None and (found is None or each.at is None or each.at <= at):
            found = each
    return found


def score(
    at: int,
    setting: Setting,
    delay: Delay,
    *,
    loss_percent: float | None,
    jitter_ms: float | None,
    expected: int | None = None,
    lost: int | None = None,
    seconds: float | None = None,
    rtt_ms: float | None = None,
    id_mode: str = "idd",
) -> Point:
    """Rate one interval. What a device says of its own jitter buffer replaces the model of one."""
    buffer, late = emodel.jitter_buffer(jitter_ms or 0.0, setting.ptime_ms)
    if delay.discard_percent is not None:
        late = delay.discard_percent
    if delay.buffer_ms is not None:
        buffer = delay.buffer_ms
    delay_ms = delay.mouth_to_ear_ms
    if delay_ms is None and delay.network_ms is not None:
        delay_ms = emodel.mouth_to_ear(delay.network_ms, setting.ptime_ms, setting.codec, buffer)
    rating = mos = kind = None
    if loss_percent is not None and expected != 0:
        rating = emodel.rate(
            setting.codec,
            emodel.with_late(loss_percent, late),
            burst_ratio=delay.burst_ratio or 1.0,
            delay_ms=delay_ms,
            id_mode=id_mode,
        )
        mos, kind = rating.mos_cq, "cq"
        if mos is None:
            mos, kind = rating.mos_lq, "lq"
    return Point(
        at, seconds, expected, lost, loss_percent, jitter_ms, rtt_ms, setting, delay_ms, rating,
        mos, kind,
    )  # fmt: skip


class Summary(msgspec.Struct, frozen=True, gc=False):
    """A direction's figures over all its intervals: the words of `MediaRecord`."""

    loss_percent: float | None
    media_seconds: float | None
    mos: float | None = None
    mos_kind: str | None = None
    mos_lq: float | None = None
    mos_min: float | None = None
    low_share: float | None = None
    r: float | None = None
    mos_scale: str | None = None
    mos_grade: str | None = None
    mos_codec: str | None = None
    delay_ms: float | None = None
    rated: bool = False
    unrated: str | None = None
    low_intervals: int = 0
    rated_intervals: int = 0
    flags: frozenset[str] = frozenset()


def summarize(figures: Figures, thresholds: Thresholds) -> Summary:
    """Rate a direction: means weighted by packets, of the scale that most was heard in."""
    rated = [point for point in figures.points if point.rating is not None]
    loss, seconds = figures.loss_percent, figures.media_seconds
    if not rated or loss is None or loss >= ALL_LOST_PERCENT:
        return Summary(loss, seconds, unrated="no_packets")
    if (seconds or 0.0) < thresholds.min_seconds:
        return Summary(loss, seconds, unrated="short")
    weights = _weights(rated)
    scale, flags = rated[0].setting.codec.scale, frozenset[str]()
    by_scale: dict[str, float] = {}
    for point, weight in zip(rated, weights, strict=True):
        heard_in = point.setting.codec.scale
        by_scale[heard_in] = by_scale.get(heard_in, 0.0) + weight
    if len(by_scale) > 1:
        scale, flags = max(sorted(by_scale), key=by_scale.__getitem__), frozenset({MIXED_SCALES})
        same = [point.setting.codec.scale == scale for point in rated]
        rated, weights = list(compress(rated, same)), list(compress(weights, same))
    total = fsum(weights)
    every: list[float] = []
    listening: list[float] = []
    factors: list[float] = []
    delays: list[float] = []
    grade, low = "", 0
    for point in rated:
        rating, mos = point.rating, point.mos
        if rating is not None and mos is not None:
            every.append(mos)
            listening.append(rating.mos_lq)
            factors.append(rating.r)
            grade = max(grade, rating.grade)
            low += mos < thresholds.low_mos
        if point.delay_ms is not None:
            delays.append(point.delay_ms)
    return Summary(
        loss,
        seconds,
        mos=_mean(every, weights, total),
        mos_kind="cq" if delays else "lq",
        mos_lq=_mean(listening, weights, total),
        mos_min=min(every),
        low_share=low / len(every),
        r=_mean(factors, weights, total),
        mos_scale=scale,
        mos_grade=grade,
        mos_codec=rated[-1].setting.codec.name,
        delay_ms=_mean(delays, weights, total) if delays else None,
        rated=True,
        low_intervals=low,
        rated_intervals=len(every),
        flags=flags,
    )


def _weights(points: Sequence[Point]) -> list[float]:
    """Packets of each; the mean of the others for one whose packets are unknown."""
    weights = [point.weight for point in points]
    known = [weight for weight in weights if weight]
    if len(known) == len(weights):
        return known
    middle = fsum(known) / len(known) if known else 1.0
    return [middle if weight is None else weight for weight in weights]


def _mean(values: Sequence[float], weights: Sequence[float], total: float) -> float | None:
    """The weighted mean; `total` is the sum of the weights."""
    if not values or total <= 0:
        return None
    # what is between the least and the most must not leave them by rounding
    mean = fsum(map(mul, values, weights)) / total
    return min(max(mean, min(values)), max(values))


def p95(values: Sequence[float]) -> float | None:
    """The value that 95 of 100 do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[ceil(0.95 * len(ordered)) - 1] if ordered else None


def burst_ratio(voip: rtcp.VoipMetrics) -> float | None:
    """How much longer runs of loss are than random ones, by the bursts that a device reports.

    RFC 3611 4.7.2 tells how dense loss is within bursts and between them; within each it is taken
    as random, so that a run is 1/(1 - density) packets long. None without loss, and for loss of all.
    """
    states = (
        (voip.burst_density_percent / 100, voip.burst_ms),
        (voip.gap_density_percent / 100, voip.gap_ms),
    )
    packets = sum(time for _, time in states)
    lost = fsum(density * time for density, time in states)
    runs = fsum(density * (1 - density) * time for density, time in states)
    if packets <= 0 or runs <= 0:
        return None
    return max(lost / runs * (1 - lost / packets), 1.0)
