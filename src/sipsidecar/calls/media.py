"""Reports and agreements of a call to the quality of each direction: who sent, who heard, how well."""

from collections.abc import Mapping

import msgspec

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.events import MediaRecord, QualityInterval
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import quality, rtcp


class Facts:
    """Everything that was reported of the media of one call; the order of arrival does not matter."""

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
        """Join one report; `reporter` (caller or callee) where the source tells who speaks."""
        raise NotImplementedError

    def see_quality(
        self,
        said: quality.SessionQuality,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
    ) -> None:
        """Join one account of a whole session."""
        raise NotImplementedError


class Direction(msgspec.Struct, frozen=True):
    """One direction's record, and what findings ask besides. Times as `Interval.at`."""

    record: MediaRecord
    """Without its findings."""
    sends: bool | None
    """The sending party sent media, by its own word or by what was heard; None when nobody can know."""
    heard: bool | None
    """The hearing party received it; None when it made no report."""
    sent_packets: int | None
    received_packets: int | None
    first_media_at: int | None
    """When its first packet was sent or heard, at the latest; reckoned back from the first counts."""
    first_media_estimated: bool
    low_intervals: int
    """Intervals whose MOS is under the threshold."""


class Media(msgspec.Struct, frozen=True):
    """Everything that is known of one call's media."""

    directions: tuple[Direction, ...] = ()
    intervals: tuple[QualityInterval, ...] = ()
    encrypted: int = 0
    """Packets of SRTCP: seen, not read."""
    implausible: int = 0
    """Blocks that were left out because their figures cannot be."""


def derive(
    facts: Facts,
    negotiation: Negotiation,
    thresholds: Thresholds,
    *,
    call_id: str,
    from_tag: str,
    received_at: int,
    skews: Mapping[int, int],
) -> Media:
    """Derive the quality of each direction; the same facts give the same answer in any order.

    `skews`: microseconds that a clock is ahead of the receiver's, where it is known.
    """
    raise NotImplementedError
