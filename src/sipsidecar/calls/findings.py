"""What is known of a call's media to what is wrong with it, each with the figures it stands on."""

import msgspec

from sipsidecar.calls.media import Media
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.thresholds import Thresholds

KINDS = (
    "codec_changed",
    "dead_air",
    "direction_mismatch",
    "early_media_only",
    "high_jitter",
    "high_loss",
    "late_sdp",
    "low_mos",
    "no_media",
    "one_way_audio",
    "private_media_address",
    "transcoded",
)


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    kind: str
    """One of `KINDS`."""
    direction: str | None
    """caller_to_callee or callee_to_caller; None when it is the call's, not one direction's."""
    evidence: dict[str, object]
    """Figures and words that JSON can hold."""


class CallFacts(msgspec.Struct, frozen=True):
    """What findings ask of the call itself. Times in microseconds by the receiver's clock."""

    answered: bool
    answered_at: int | None
    talk_ms: float | None
    early_media_at: int | None
    """First provisional response with SDP."""
    source_ip: bytes
    """Who sent the INVITE (packed)."""
    destination_ip: bytes


def judge(
    call: CallFacts, negotiation: Negotiation, media: Media, thresholds: Thresholds
) -> tuple[Finding, ...]:
    """Find what is wrong, sorted by kind and direction."""
    raise NotImplementedError
