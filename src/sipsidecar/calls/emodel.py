"""Loss, delay and codec to R and MOS: G.107, G.107.1 (wideband), G.107.2 (fullband), pure numbers."""

import msgspec


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


def codec_of(
    name: str | None,
    clock_rate: int | None = None,
    fmtp: str | None = None,
    *,
    plc: bool = True,
    narrowband_only: bool = False,
) -> tuple[CodecFigures, tuple[str, ...]]:
    """Find the row for a table name or an SDP encoding name, and name the assumptions made."""
    raise NotImplementedError


def rate(
    codec: CodecFigures,
    loss_percent: float,
    *,
    burst_ratio: float = 1.0,
    delay_ms: float | None = None,
    id_mode: str = "idd",
) -> Rating:
    """Rate a stream; `loss_percent` includes what came too late, `delay_ms` is mouth to ear."""
    raise NotImplementedError


def jitter_buffer(jitter_ms: float, ptime_ms: float) -> tuple[float, float]:
    """Depth in ms of the adaptive buffer that this jitter makes, and percent that comes too late."""
    raise NotImplementedError


def with_late(loss_percent: float, late_percent: float) -> float:
    """Loss and lateness together, in percent."""
    raise NotImplementedError


def mouth_to_ear(
    network_ms: float, ptime_ms: float, codec: CodecFigures, buffer_ms: float
) -> float:
    """Delay from mouth to ear, one way, in ms."""
    raise NotImplementedError
