"""RTCP in all its forms to one canonical report: binary, HEP type-5 JSON of each agent, ESL events."""

import msgspec

from sipsidecar.wire import WireError


class RtcpError(WireError):
    """A payload that is not RTCP, or makes no sense; `why` is one of `WHYS`."""


class ReportBlock(msgspec.Struct, frozen=True, gc=False):
    """What a reporter says of one source (RFC 3550 6.4.1)."""

    source_ssrc: int
    fraction_lost: int
    """0 to 255, of 256, since the report before."""
    lost: int
    """Cumulative; signed: duplicates make it negative."""
    highest_seq: int
    """Extended highest sequence number: cycles << 16 | sequence."""
    jitter: int
    """RTP timestamp units."""
    lsr: int = 0
    """Middle 32 bits of the NTP time of the last SR; 0: none was received."""
    dlsr: int = 0
    """1/65536 s."""


class SenderInfo(msgspec.Struct, frozen=True, gc=False):
    """What a sender says of what it sent."""

    ntp: int
    """32.32 fixed point, seconds since 1900; 0: the sender has no clock."""
    rtp_timestamp: int
    packets: int
    octets: int


class VoipMetrics(msgspec.Struct, frozen=True, gc=False):
    """XR block 7 (RFC 3611 4.7); None for what is unavailable (127) or unknown."""

    source_ssrc: int
    loss_percent: float
    discard_percent: float
    burst_density_percent: float
    gap_density_percent: float
    burst_ms: int
    gap_ms: int
    round_trip_ms: int | None
    end_system_ms: int | None
    signal_dbm: int | None
    noise_dbm: int | None
    rerl_db: int | None
    gmin: int
    r: int | None
    external_r: int | None
    mos_lq: float | None
    mos_cq: float | None
    rx_config: int
    buffer_nominal_ms: int | None
    buffer_maximum_ms: int | None
    buffer_absolute_ms: int | None


class Report(msgspec.Struct, frozen=True, gc=False):
    """One compound's worth of one reporter, whatever form it came in."""

    ssrc: int
    """The reporter's own."""
    sender: SenderInfo | None = None
    """None in a receiver report: the reporter sent no media since its last one."""
    blocks: tuple[ReportBlock, ...] = ()
    voip: tuple[VoipMetrics, ...] = ()
    reference_ntp: int | None = None
    """XR block 4 (RRTR)."""
    dlrr: tuple[tuple[int, int, int], ...] = ()
    """XR block 5: SSRC, last RR, delay since it."""
    bye: tuple[int, ...] = ()
    """SSRCs that left."""
    clock_rate: int | None = None
    """Of the jitter, where the form tells it (FreeSWITCH's RTP-Rate)."""
    rtt_ms: float | None = None
    """Where the form tells it (FreeSWITCH's Rtt0-Avg, from 40 ms on)."""
    form: str = "binary"
    """binary, json or freeswitch."""
