"""Hours of figures to what is normal for an hour of the week."""

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from sipsidecar.signals.alarms import CATEGORIES
from sipsidecar.signals.series import (
    COUNTED,
    DAYS,
    FIRST,
    INEFFECTIVE,
    MINUTES,
    TOTAL,
    UNANSWERED,
    History,
    MinuteRates,
)

MAX_SERIES: Final = 2000
_HOUR_US: Final = 3_600_000_000
_MOST: Final = 1_000_000_000
"""A row with a count over that is none of ours."""
_WORD_SIZE: Final = 1024


class BaselineHour(msgspec.Struct, frozen=True, kw_only=True):
    """What one series taught in one hour, without the minutes of incidents; rows of one hour add up.

    So one row may take back what another taught: its counts are negative then.
    """

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
    """Smoothed, as it was at the end of the hour; so is the next. The last row that has one counts."""
    jitter_ms: float | None = None
    rate_minutes: int = 0
    """Minutes with seizures; this and the next two only for the method three_sigma."""
    rate_sums: tuple[float, ...] = ()
    """Sums of the shares of single minutes, 0 to 1, by category."""
    rate_squares: tuple[float, ...] = ()
    """Sums of their squares."""


class Baseline:
    """What is normal: per series and hour of the week the last 28 days, at least the last 7.

    A series without any call in 28 days is forgotten. Over `max_series` a new one has no history, and
    `folded` counts how often one was asked for.
    """

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self.folded = 0
        self.loads = 0
        """How often something was loaded: what was reckoned before is not true any more."""
        self._max_series = max_series
        self._histories: dict[str, History] = {}

    @property
    def series(self) -> int:
        """How many there are."""
        return len(self._histories)

    def history(self, name: str) -> History | None:
        """The history of a series, new when it has none; None where there is no room for it."""
        found = self._histories.get(name)
        if found is None:
            if len(self._histories) >= self._max_series:
                self.folded += 1
                return None
            found = self._histories[name] = History(name)
        return found

    def forget(self, minute: int, but: Collection[str] = ()) -> list[str]:
        """Let go of series that had no call in 28 days; returns their names."""
        oldest = minute - DAYS * 1440
        gone = [
            name
            for name, one in self._histories.items()
            if one.last_data < oldest and name not in but
        ]
        for name in gone:
            del self._histories[name]
        return gone

    def load(self, hours: Iterable[BaselineHour]) -> None:
        """Take up what an earlier life learned. It may be given in parts; of gauges the last counts."""
        self.loads += 1
        for row in hours:
            values = [row.minutes, row.total, *row.counts]
            values += [row.total - row.answered, row.total - row.effective]
            if (
                len(row.counts) != len(CATEGORIES)
                or len(row.series) > _WORD_SIZE
                or any(abs(value) > _MOST for value in values)
            ):
                continue
            history = self.history(row.series)
            if history is None:
                continue
            hour = row.hour_at // _HOUR_US
            history.load(hour, values)
            if len(row.rate_sums) == len(row.rate_squares) == len(CATEGORIES):
                if history.rates is None:
                    history.rates = MinuteRates()
                rates = (float(row.rate_minutes), *row.rate_sums, *row.rate_squares)
                history.rates.load(hour, rates, saved=True)
            if row.pdd_p95_ms is not None or row.jitter_ms is not None:
                history.load_gauges(hour, row.pdd_p95_ms, row.jitter_ms)

    def records(self, at: int, *, all_: bool = False) -> list[BaselineHour]:
        """Rows of hours that are over, each once; with `all_` those that are not over, too.

        An hour is over an hour after its end (`series.DELAY`); `all_` is for the end of this life,
        and learns all that there is.
        """
        found = []
        this = at // _HOUR_US
        for history in self._histories.values():
            if all_ and history.ring is not None:
                history.settle(history.ring.minute)
            if history.unsaved:
                for hour, values in sorted(history.unsaved.items()):
                    pdd, jitter = history.unsaved_gauges.pop(hour, (None, None))
                    found.append(_row(history.name, at, hour, values, pdd, jitter))
                history.unsaved.clear()
                history.unsaved_gauges.clear()
            if history.rates is not None:
                for hour, rates in history.rates.unsaved(this + all_):
                    found.append(_row(history.name, at, hour, _NOTHING, None, None, rates))
        return found


_NOTHING: Final = (0,) * (FIRST + len(COUNTED))


def _row(
    name: str,
    at: int,
    hour: int,
    values: list[int] | tuple[int, ...],
    pdd: float | None,
    jitter: float | None,
    rates: list[float] | None = None,
) -> BaselineHour:
    categories = len(CATEGORIES)
    return BaselineHour(
        received_at=at,
        hour_at=hour * _HOUR_US,
        series=name,
        minutes=values[MINUTES],
        total=values[TOTAL],
        answered=values[TOTAL] - values[UNANSWERED],
        effective=values[TOTAL] - values[INEFFECTIVE],
        counts=tuple(values[FIRST:UNANSWERED]),
        pdd_p95_ms=pdd,
        jitter_ms=jitter,
        rate_minutes=0 if rates is None else round(rates[0]),
        rate_sums=() if rates is None else tuple(rates[1 : 1 + categories]),
        rate_squares=() if rates is None else tuple(rates[1 + categories :]),
    )
