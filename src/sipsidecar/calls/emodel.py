"""Loss, delay and codec to R and MOS: G.107, G.107.1 (wideband), G.107.2 (fullband), pure numbers.

Loss in percent, times in ms, all of them finite; what is unknown is None. A loss or time that is
NaN gives NaN, never a good MOS.
"""

import math
from typing import Final

import msgspec

R_MAX: Final = {"nb": 93.2, "wb": 129.0, "fb": 148.0}
"""R of a connection with nothing wrong, by scale: Ro - Is + A, and Id without delay."""
CODEC_ASSUMED: Final = "codec_assumed"
"""No figures are known of this codec: those of the row `unknown` stand for them."""
MODE_ASSUMED: Final = "mode_assumed"
"""SDP leaves open which mode (bit rate) is used, or names one without figures."""
ASSUMPTIONS: Final = (CODEC_ASSUMED, MODE_ASSUMED)

# G.107 annex B is on the narrowband scale: R is brought there first.
_TO_NARROWBAND: Final = {"nb": 1.0, "wb": 1.29, "fb": 1.48}
# What impairment nears as loss grows. 95 is right for wideband as well, though R begins at 129.
_IE_WORST: Final = {"nb": 95.0, "wb": 95.0, "fb": 132.0}

_R_OF_MOS_1: Final = 6.5153
"""Below it the polynomial of annex B is under 1 (lowest: 0.9888 at 3.2)."""
_FREE_DELAY_MS: Final = 100.0  # mT of G.107's default delay class, for which sT is 1
_BUFFER_FACTOR: Final = 4.0
_BUFFER_FLOOR_MS: Final = 20.0
_BUFFER_CAP_MS: Final = 200.0


class CodecFigures(msgspec.Struct, frozen=True, gc=False):
    """A row of the codec table."""

    name: str
    scale: str
    """nb, wb or fb."""
    ie: float
    bpl: float
    look_ahead_ms: float
    """What coding adds to the delay besides a packet's own time."""
    clock_rate: int
    grade: str
    """A: published; B: Ie published, Bpl borrowed; C: estimated."""
    note: str
    frame_ms: float = 0.0
    """Least time that a packet holds."""

    @property
    def alg_delay_ms(self) -> float:
        """Delay of the coding itself: one frame and the look-ahead."""
        return self.frame_ms + self.look_ahead_ms


class Rating(msgspec.Struct, frozen=True, gc=False):
    """What the E-model says of one stream."""

    r: float
    """With the delay's impairment; without it where the delay is unknown."""
    r_lq: float
    mos_cq: float | None
    """None where the delay is unknown."""
    mos_lq: float
    scale: str
    grade: str


# ----------------------------------------------------------------------------------- codec table
#
# Narrowband: G.113 appendix I. Wideband: G.113 appendix IV. Fullband: G.113 appendix V.

_PLAIN: Final = "Bpl is not published: 10 is taken"
_MONOTIC: Final = "Ie of G.113 table IV.1 (handset), Bpl of table IV.4 (headset)"
_DEFAULT_BPL: Final = "Ie of G.113 table IV.1 (handset), no Bpl is published: 4.3 is taken"
_G722: Final = "Ie,WB as G.113 appendix IV is quoted, no Bpl is published: 4.3 is taken"
_EVS: Final = "G.113 appendix V, super-wideband"

_ROWS: Final = (
    #  name, scale, Ie, Bpl, look-ahead, clock rate, grade, note, frame
    ("G711", "nb", 0.0, 25.1, 0.0, 8000, "A", "losses are concealed (G.711 appendix I)", 0.125),
    ("G711-noPLC", "nb", 0.0, 4.3, 0.0, 8000, "A", "losses are not concealed", 0.125),
    ("G729", "nb", 10.0, 19.0, 5.0, 8000, "B", "without VAD; Bpl of G.729A with VAD", 10.0),
    ("G729A-VAD", "nb", 11.0, 19.0, 5.0, 8000, "A", "G.729A with VAD (annex B)", 10.0),
    ("G723.1-6.3", "nb", 15.0, 16.1, 7.5, 8000, "A", "6.3 kbit/s with VAD", 30.0),
    ("G723.1-5.3", "nb", 19.0, 16.1, 7.5, 8000, "B", "Bpl of the 6.3 kbit/s mode", 30.0),
    ("G726-40", "nb", 2.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.125),
    ("G726-32", "nb", 7.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.125),
    ("G726-24", "nb", 25.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.125),
    ("G726-16", "nb", 50.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.125),
    ("G728", "nb", 7.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.625),
    ("G728-12.8", "nb", 20.0, 10.0, 0.0, 8000, "B", _PLAIN, 0.625),
    ("GSM-FR", "nb", 20.0, 10.0, 0.0, 8000, "B", "Bpl of GSM-EFR", 20.0),
    ("GSM-HR", "nb", 23.0, 10.0, 4.4, 8000, "B", "Bpl of GSM-EFR", 20.0),
    ("GSM-EFR", "nb", 5.0, 10.0, 0.0, 8000, "A", "12.2 kbit/s", 20.0),
    ("AMR-12.2", "nb", 5.0, 10.0, 5.0, 8000, "C", "figures of GSM-EFR, the same coding", 20.0),
    ("ILBC-15.2", "nb", 11.0, 32.0, 5.0, 8000, "C", "estimate, G.113 has none", 20.0),
    ("SPEEX-15", "nb", 13.0, 10.0, 10.0, 8000, "C", "estimate, G.113 has none", 20.0),
    ("OPUS-NB", "nb", 0.0, 20.0, 6.5, 48_000, "C", "estimate, ITU-T has none for Opus", 20.0),
    ("G722-NB", "nb", 0.0, 25.1, 1.375, 8000, "C", "as G.711: the scale goes no higher", 0.125),
    ("G722-WB", "wb", 13.0, 4.3, 1.375, 8000, "C", f"64 kbit/s; {_G722}", 0.125),
    ("G722-WB-56", "wb", 20.0, 4.3, 1.375, 8000, "C", f"56 kbit/s; {_G722}", 0.125),
    ("G722-WB-48", "wb", 31.0, 4.3, 1.375, 8000, "C", f"48 kbit/s; {_G722}", 0.125),
    ("AMRWB-6.6", "wb", 41.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-8.85", "wb", 26.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-12.65", "wb", 13.0, 4.3, 5.0, 16_000, "B", _MONOTIC, 20.0),
    ("AMRWB-14.25", "wb", 10.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-15.85", "wb", 7.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-18.25", "wb", 5.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-19.85", "wb", 3.0, 4.3, 5.0, 16_000, "B", _DEFAULT_BPL, 20.0),
    ("AMRWB-23.05", "wb", 1.0, 4.6, 5.0, 16_000, "B", _MONOTIC, 20.0),
    ("AMRWB-23.85", "wb", 8.0, 4.9, 5.0, 16_000, "B", f"{_MONOTIC}; worse than 23.05", 20.0),
    ("EVS-24.4", "fb", 7.2, 11.4, 12.0, 16_000, "A", _EVS, 20.0),
    ("EVS-13.2", "fb", 17.1, 11.7, 12.0, 16_000, "A", _EVS, 20.0),
    ("EVS-9.6", "fb", 22.7, 13.0, 12.0, 16_000, "A", _EVS, 20.0),
    ("EVS-16.4", "fb", 10.8, 10.3, 12.0, 16_000, "A", _EVS, 20.0),
    ("EVS-32", "fb", 8.7, 9.3, 12.0, 16_000, "A", _EVS, 20.0),
    ("EVS-48", "fb", 10.2, 9.6, 12.0, 16_000, "A", _EVS, 20.0),
    ("OPUS-FB", "fb", 10.2, 4.3, 6.5, 48_000, "C", "as rtpengine: Ie of EVS-48, Bpl 4.3", 20.0),
    ("unknown", "nb", 0.0, 10.0, 0.0, 8000, "C", "Ie 0 and Bpl 10 stand for a codec without figures", 0.0),
)  # fmt: skip
CODECS: Final = {row[0]: CodecFigures(*row) for row in _ROWS}
"""All rows by name."""

_BY_NAME: Final = {name.lower(): row for name, row in CODECS.items()}
_UNKNOWN: Final = CODECS["unknown"]
# SDP encoding names that leave nothing open; those of a row's own name are not repeated.
_ENCODINGS: Final = {
    "pcmu": "G711", "pcma": "G711", "g722": "G722-WB", "gsm": "GSM-FR", "gsm-hr-08": "GSM-HR",
    "speex": "SPEEX-15", "opus": "OPUS-FB", "aal2-g726-40": "G726-40", "aal2-g726-32": "G726-32",
    "aal2-g726-24": "G726-24", "aal2-g726-16": "G726-16",
}  # fmt: skip
_AMRWB: Final = ("6.6", "8.85", "12.65", "14.25", "15.85", "18.25", "19.85", "23.05", "23.85")
_ON_NARROWBAND: Final = {"G722-WB": "G722-NB", "OPUS-FB": "OPUS-NB"}


def codec_of(
    name: str | None,
    clock_rate: int | None = None,
    fmtp: str | None = None,
    *,
    plc: bool = True,
    narrowband_only: bool = False,
) -> tuple[CodecFigures, tuple[str, ...]]:
    """Find the row for a table name or an SDP encoding name, and name the assumptions made.

    Case does not matter. A name alone is looked up among the rows first; with a clock rate or fmtp
    it is SDP's: `G729` with 8000 is G.729 with annex B (RFC 4856), alone it is the row `G729`. The
    assumptions are of `ASSUMPTIONS`. Without `plc` G.711 does not conceal losses. With
    `narrowband_only` wideband codecs are put on the narrowband scale, where R ends at 93.2.
    """
    row, assumptions = _figures((name or "").lower(), clock_rate, fmtp or "")
    if row.name == "G711" and not plc:
        row = CODECS["G711-noPLC"]
    if narrowband_only and row.scale != "nb":
        row = _on_narrowband(row)
    if MODE_ASSUMED in assumptions:
        row = msgspec.structs.replace(row, grade="C")
    return row, assumptions


def _figures(name: str, clock_rate: int | None, fmtp: str) -> tuple[CodecFigures, tuple[str, ...]]:
    if clock_rate is None and not fmtp and name in _BY_NAME:
        row = _BY_NAME[name]
        return row, (CODEC_ASSUMED,) if row is _UNKNOWN else ()
    wanted, assumed = _mode(name, fmtp)
    row = _BY_NAME.get(wanted.lower(), _UNKNOWN)
    # G.722 samples at 16000 and says 8000 (RFC 3551 4.5.2); not everybody knows
    fits = clock_rate in {None, row.clock_rate} or (name, clock_rate) == ("g722", 16_000)
    if row is _UNKNOWN or not fits:
        return _UNKNOWN, (CODEC_ASSUMED,)
    return row, (MODE_ASSUMED,) if assumed else ()


def _mode(name: str, fmtp: str) -> tuple[str, bool]:
    """Name the row for an encoding name, and say whether its mode is assumed."""
    if name in {"g729", "g729a", "g729ab"}:  # RFC 4856: annex B unless it says no
        return "G729" if _parameter(fmtp, "annexb") == "no" else "G729A-VAD", False
    if name == "g723":  # RFC 4856
        mode = _parameter(fmtp, "bitrate")
        return "G723.1-5.3" if mode == "5.3" else "G723.1-6.3", mode not in {"5.3", "6.3"}
    if name == "amr":  # RFC 4867 8.1; mode 7 is 12.2 kbit/s
        return "AMR-12.2", _parameter(fmtp, "mode-set") != "7"
    if name == "amr-wb":  # RFC 4867 8.2
        mode = _parameter(fmtp, "mode-set")
        if len(mode) == 1 and mode in "012345678":
            return f"AMRWB-{_AMRWB[int(mode)]}", False
        return "AMRWB-12.65", True
    if name == "ilbc":  # RFC 3952; frames of 30 ms are another bit rate
        return "ILBC-15.2", _parameter(fmtp, "mode") != "20"
    if name == "evs":  # 3GPP TS 26.445 annex A; the figures are those of super-wideband
        mode = f"EVS-{_parameter(fmtp, 'br')}"
        narrower = _parameter(fmtp, "bw") in {"nb", "wb", "nb-wb"}
        return (mode, narrower) if mode in CODECS else ("EVS-13.2", True)
    return _ENCODINGS.get(name, name), False


def _parameter(fmtp: str, name: str) -> str:
    """Read one of a format's parameters, in small letters; empty when it is not there."""
    for part in fmtp.split(";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip().lower()
    return ""


def _on_narrowband(row: CodecFigures) -> CodecFigures:
    """Put a wideband codec on the narrowband scale: as good as G.711 at most.

    What is left of its impairment is what goes below 93.2; loss takes as much as from others.
    """
    if row.name in _ON_NARROWBAND:
        return CODECS[_ON_NARROWBAND[row.name]]
    return msgspec.structs.replace(
        row,
        name=f"{row.name}-NB",
        scale="nb",
        ie=round(max(row.ie - (R_MAX[row.scale] - R_MAX["nb"]), 0.0), 1),
        grade="C",
        note=f"{row.name} on the narrowband scale, which goes no higher than G.711",
    )


# ---------------------------------------------------------------------------------------- rating


def rate(
    codec: CodecFigures,
    loss_percent: float,
    *,
    burst_ratio: float = 1.0,
    delay_ms: float | None = None,
    id_mode: str = "idd",
) -> Rating:
    """Rate a stream; `loss_percent` includes what came too late, `delay_ms` is mouth to ear.

    A burst ratio under 1 counts as 1, and it counts on the narrowband scale alone: the formulas of
    the others have none. `id_mode`: idd (G.107, no echo) or linear (Cole and Rosenbluth). Loss of
    everything has an R like any other: whether that is media at all is the caller's to say.
    """
    scale = codec.scale
    r_lq = R_MAX[scale] - codec.ie
    loss = min(max(loss_percent, 0.0), 100.0)
    if loss != 0.0:
        counted = loss / burst_ratio if burst_ratio > 1.0 and scale == "nb" else loss
        r_lq -= (_IE_WORST[scale] - codec.ie) * loss / (counted + codec.bpl)
    mos_lq = mos_of(r_lq, scale)
    if delay_ms is None:
        return Rating(r_lq, r_lq, None, mos_lq, scale, codec.grade)
    impairment = _linear(delay_ms) if id_mode == "linear" else _idd(delay_ms)
    if scale == "fb":
        impairment *= 1.48
    r = r_lq - impairment
    return Rating(r, r_lq, mos_of(r, scale), mos_lq, scale, codec.grade)


def _idd(delay_ms: float) -> float:
    """Idd of G.107 7.4: too long a delay, without any echo."""
    if delay_ms <= _FREE_DELAY_MS:
        return 0.0
    x = math.log2(delay_ms / _FREE_DELAY_MS)
    risen = math.pow(1.0 + math.pow(x, 6.0), 1 / 6)
    fallen = math.pow(1.0 + math.pow(x / 3.0, 6.0), 1 / 6)
    # max: just above the free delay rounding can leave a little less than nothing
    return max(25.0 * (risen - 3.0 * fallen + 2.0), 0.0)


def _linear(delay_ms: float) -> float:
    """Two straight lines: G.107 with its default echo, up to 350 ms; above it far too harsh."""
    return 0.024 * max(delay_ms, 0.0) + 0.11 * max(delay_ms - 177.3, 0.0)


def mos_of(r: float, scale: str = "nb") -> float:
    """R on its scale to MOS, 1 to 4.5 (G.107 annex B)."""
    r /= _TO_NARROWBAND[scale]
    if r <= _R_OF_MOS_1:
        return 1.0
    if r >= 100.0:
        return 4.5
    return max(1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6, 1.0)


def r_of(mos: float, scale: str = "nb") -> float:
    """MOS to R on that scale (G.107 appendix I); a MOS under 1 counts as 1, over 4.5 as 4.5."""
    mos = min(max(mos, 1.0), 4.5)
    root = math.sqrt(-903_522 + 1_113_960 * mos - 202_500 * mos * mos)
    h = math.atan2(15.0 * root, 18_566 - 6750 * mos) / 3.0
    r = 20.0 / 3.0 * (8.0 - math.sqrt(226.0) * math.cos(h + math.pi / 3.0))
    return r * _TO_NARROWBAND[scale]


# ------------------------------------------------------------------------------- jitter and delay


def jitter_buffer(jitter_ms: float, ptime_ms: float) -> tuple[float, float]:
    """Depth in ms of the adaptive buffer that this jitter makes, and percent that comes too late.

    Jitter is RFC 3550's J. It equals the mean of exponential delays, of which exp(-d/J) are longer
    than d: the buffer is usually 4 J deep, and stretches to 200 ms before it lets a packet go.
    """
    depth = max(_BUFFER_FACTOR * jitter_ms, ptime_ms, _BUFFER_FLOOR_MS)
    late = 0.0 if jitter_ms <= 0.0 else 100.0 * math.exp(-_BUFFER_CAP_MS / jitter_ms)
    return min(depth, _BUFFER_CAP_MS), late


def with_late(loss_percent: float, late_percent: float) -> float:
    """Loss and lateness together, in percent."""
    return 100.0 * (1.0 - (1.0 - loss_percent / 100.0) * (1.0 - late_percent / 100.0))


def mouth_to_ear(
    network_ms: float, ptime_ms: float, codec: CodecFigures, buffer_ms: float
) -> float:
    """Delay from mouth to ear, one way, in ms: network, packet, look-ahead, buffer.

    A packet holds one frame of the codec at least, whatever its `ptime_ms`.
    """
    return network_ms + max(ptime_ms, codec.frame_ms) + codec.look_ahead_ms + buffer_ms
