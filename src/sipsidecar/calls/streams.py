"""RTCP reports of one call to what each receiver reports of each source, interval by interval."""

import msgspec

from sipsidecar.calls.call import Endpoint


class Interval(msgspec.Struct, frozen=True, gc=False):
    """What one report block adds to the one before it."""

    at: int
    """Microseconds, by the receiver's clock as far as the agent's skew is known."""
    seconds: float | None
    """Since the report before; None for the first."""
    expected: int | None
    """Packets, by the extended sequence numbers; None where unknown."""
    lost: int | None
    """Never negative."""
    loss: float | None
    """0 to 1; of `lost` and `expected`, else the report's own fraction."""
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


class Sender(msgspec.Struct, frozen=True, gc=False):
    """What one SSRC says of itself: what it sent, and whether it heard anything."""

    ssrc: int
    endpoint: Endpoint
    target: Endpoint
    first_at: int
    last_at: int
    reports: int
    """SR, RR and empty ones, without duplicates."""
    sender_reports: int
    empty_reports: int
    """Those without a report block: it heard nothing."""
    first_sent_at: int | None
    """When the first SR with packets was captured."""
    first_packets: int | None
    """The count in that SR."""
    packets: int | None
    """The highest count of packets sent; None without an SR."""
    clock_rate: int | None
