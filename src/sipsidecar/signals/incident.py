"""Alarms and findings to incidents: opened once, made worse, put down to a cohort, cleared."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from sipsidecar.signals.alarms import Alarm, EventRecord, IncidentRecord, Notice, Scope, Share


class IncidentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What incidents are told by the configuration."""

    clear_seconds: float = 600.0
    """How long nothing may hold before an incident is over (standards 5.2)."""
    merge_seconds: float = 1800.0
    """An alarm that comes again within that of the end reopens its incident."""
    hold_seconds: float = 0.0
    """How long an alarm must hold before it is told."""


class Incidents:
    """All incidents that are open, and those that ended lately.

    `shares` divides the excess of an alarm among cohorts (`Detectors.shares`).
    """

    def __init__(
        self,
        settings: IncidentSettings | None = None,
        shares: Callable[[Alarm], Sequence[Share]] = lambda _: (),
        max_open: int = 1000,
    ) -> None:
        raise NotImplementedError

    def receive(self, alarms: Iterable[Alarm], at: int) -> None:
        """The alarms of one look."""
        raise NotImplementedError

    def handle_timer(self, at: int) -> None:
        """Clear what is over."""
        raise NotImplementedError

    def restore(self, incidents: Iterable[IncidentRecord]) -> None:
        """Take up incidents that an earlier life left open: they are not told a second time."""
        raise NotImplementedError

    def records(self) -> list[IncidentRecord | EventRecord]:
        """Rows since the last call: incidents that changed, with a revision, and events of the timeline."""
        raise NotImplementedError

    def notices(self) -> list[Notice]:
        """What receivers must be told since the last call."""
        raise NotImplementedError

    def open(self) -> Sequence[IncidentRecord]:
        """Those that are open now, the gravest first."""
        raise NotImplementedError


def attribute(
    shares: Sequence[Share], within: Scope = (), dimensions: Sequence[str] = ()
) -> tuple[Scope, float | None, Mapping[str, int]]:
    """The smallest cohort that explains more than 80 % of an excess, its share of it, and the excess
    by value of the dimension that tells most."""
    raise NotImplementedError
