"""Quality of a whole session, as a device or a media proxy sums it up, in one canonical form."""

import msgspec

from sipsidecar.wire import WireError


class QualityError(WireError):
    """A body or header that is not such a report; `why` is one of `WHYS`."""


class SessionQuality(msgspec.Struct, frozen=True, gc=False):
    """What one party heard over a session, by its own or a media proxy's account."""

    source: str
    """vq, rtp_stat, rtpengine or log."""
    call_id: str | None = None
    """Named in the report itself; None: that of the message that carries it."""
    heard_by: str | None = None
    """caller or callee, where the report says so; else by `local_ip` or who sent the message."""
    local_ip: str | None = None
    """Where the media was heard."""
    local_port: int | None = None
    remote_ip: str | None = None
    remote_port: int | None = None
    local_ssrc: int | None = None
    remote_ssrc: int | None = None
    """Of the stream that was heard."""
    codec: str | None = None
    """Encoding name (IANA), or as the report spells it."""
    clock_rate: int | None = None
    ptime_ms: int | None = None
    packets_received: int | None = None
    packets_lost: int | None = None
    loss_percent: float | None = None
    discard_percent: float | None = None
    burst_ratio: float | None = None
    jitter_ms: float | None = None
    rtt_ms: float | None = None
    end_system_ms: float | None = None
    mos_lq: float | None = None
    mos_cq: float | None = None
    mos_min: float | None = None
    r: float | None = None
    seconds: float | None = None
