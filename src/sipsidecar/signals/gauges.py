"""Delays and jitter of each minute to a smoothed gauge, and to when it is over what is usual.

EWMA with lambda 0.2 of one reading per minute; the limit is the median and four deviations (1.4826
times the median absolute deviation) of what the gauge was at the end of each hour of the last 28 days,
never nearer to the median than a floor (standards 5.2). What is lower than usual is no alarm.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from sipsidecar.signals.rates import Finding, Held

LAMBDA: Final = 0.2
DEVIATIONS: Final = 4 * 1.4826
FEWEST: Final = 10
"""Calls that one reading is of; it waits for them."""
PATIENCE: Final = 60
"""Minutes that it waits, and that a reading is good for."""


class Gauge:
    """One gauge of one series. A sample is a list of counts or sums, added up until they are enough."""

    __slots__ = ("_floor", "_held", "_limits", "_read_at", "_waiting", "_waits_since", "value")

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self.value: float | None = None
        """Smoothed; None before the first reading."""
        self._read_at = 0
        self._waiting: list[float] | None = None
        self._waits_since = 0
        self._limits: tuple[float, float] | None = None
        self._held: Held | None = None

    @property
    def holding(self) -> bool:
        """Whether its alarm holds."""
        return self._held is not None

    @property
    def usual(self) -> float | None:
        """The median of what was learned; None while nothing is known."""
        return None if self._limits is None else self._limits[0]

    @property
    def limit(self) -> float | None:
        """What the gauge must not be over; None while nothing is known."""
        return None if self._limits is None else self._limits[0] + self._limits[1]

    def learn(self, values: Sequence[float], least: float) -> None:
        """Set the limit by what the gauge was at the end of hours; of fewer than `least` there is none."""
        if len(values) < max(least, 1):
            self._limits = None
            return
        middle = median(values)
        spread = median(abs(value - middle) for value in values)
        self._limits = middle, max(DEVIATIONS * spread, self._floor)
        if self.value is None:
            self.value = middle

    def gather(self, minute: int, sample: Sequence[float], count: float) -> Sequence[float] | None:
        """Add a minute's sample; returns the sum once it is of enough calls."""
        waiting = self._waiting
        if waiting is None or minute - self._waits_since >= PATIENCE:
            waiting, self._waits_since = None, minute
        added = [*sample, count]
        if waiting is not None:
            added = [a + b for a, b in zip(waiting, added, strict=True)]
        if added[-1] < FEWEST:
            self._waiting = added
            return None
        self._waiting = None
        return added[:-1]

    def read(self, minute: int, value: float) -> None:
        """Take in one reading."""
        known = self.value
        self.value = value if known is None else known + LAMBDA * (value - known)
        self._read_at = minute

    def look(self, source: str, minute: int) -> Finding | None:
        """Judge the gauge as it is now."""
        held, value = self._held, self.value
        fresh = minute - self._read_at < PATIENCE
        if self._limits is None or value is None:
            over = back = False
        else:
            middle, band = self._limits
            over = fresh and value > middle + band
            back = value < middle + band / 2
        if held is None:
            if not over:
                return None
            held = self._held = Held(minute, minute, 1)
        active = fresh and not back and self._limits is not None
        if not active:
            self._held = None
        expected = None if self._limits is None else self._limits[0]
        return Finding(source, 0, held, active, value, expected)
