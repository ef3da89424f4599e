"""Hours of figures to what is normal for an hour of the week."""

from collections.abc import Iterable

import msgspec


class BaselineHour(msgspec.Struct, frozen=True, kw_only=True):
    """What one series taught in one hour, without the minutes of incidents; rows of one hour add up."""

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    received_at: int
    """When it was written, microseconds UTC; the partition key."""
    hour_at: int
    """Beginning of the hour, microseconds UTC."""
    series: str
    """A source and a scope, as `trunk:trunk=acme,direction=in` or `call:all`; words of the
    configuration alone."""
    minutes: int
    """How many minutes were learned from."""
    total: int
    """Seizures."""
    answered: int
    effective: int
    counts: tuple[int, ...]
    """Failures by category, in the order of `CATEGORIES`."""
    pdd_p95_ms: float | None = None
    jitter_ms: float | None = None


class Baseline:
    """What is normal: per series and hour of the week the last 28 days, at least the last 7."""

    def __init__(self) -> None:
        raise NotImplementedError

    def load(self, hours: Iterable[BaselineHour]) -> None:
        """Take up what an earlier life learned."""
        raise NotImplementedError

    def records(self, at: int, *, all_: bool = False) -> list[BaselineHour]:
        """Rows of hours that are over, each once; with `all_` those that are not over, too."""
        raise NotImplementedError
