"""Calls per second by RFC 7415's leaky bucket: sustained rate, bounded burst, priority above it."""

from math import inf

DEFAULT_BURST = 5.0
"""TAU = 4 T, which RFC 7415 3.5.1 recommends: one call, and four more that it tolerates."""
PRIORITY_TAU = 10.0
"""TAU2 of RFC 7415 3.5.2, in T: so far calls with priority may fill the bucket."""
SLACK = 1e-6
"""Of a call. Calls that come at exactly the rate must not be refused for a rounded time."""


class Bucket:
    """One bucket (RFC 7415 3.5.1): X is its level, LCT when it was last filled.

    `rate` calls a second; `burst` calls may come at once after a pause, so TAU = (burst - 1) T. In
    any t seconds at most rate * t + burst ordinary calls pass. All is kept in calls, not in seconds:
    RFC 7415's X and TAU, each divided by T = 1 / rate. ValueError for a rate that is not above 0 and
    for a burst under 1. T is not randomised: that is for many clients of one server.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = DEFAULT_BURST if burst is None else burst
        if not 0 < rate < inf or not 1 <= self.burst < inf:
            raise ValueError("expected more than 0 calls per second, and a burst of 1 or more")
        self._tau = self.burst - 1
        self._tau2 = max(PRIORITY_TAU, 2.5 * self._tau)
        self._x = 0.0
        """TAU0 = 0: the first call finds it empty."""
        self._lct: float | None = None

    def admits(self, now: float, *, priority: bool = False) -> bool:
        """Whether a call may pass now; changes nothing. Priority: up to TAU2 = 10 T, at least 2.5 TAU."""
        return self._drained(now) <= (self._tau2 if priority else self._tau) + SLACK

    def take(self, now: float) -> None:
        """One call passes.

        Whatever passes without being asked for here (calls that are never refused) fills it to where
        priority would stop and no further: it must not hold up ordinary calls for minutes.
        """
        self._x = min(max(0.0, self._drained(now)), self._tau2) + 1
        if self._lct is None or now > self._lct:
            self._lct = now

    def level(self, now: float) -> float:
        """How full it is in calls: above `burst` - 1 the next ordinary call is refused."""
        return max(0.0, self._drained(now))

    def _drained(self, now: float) -> float:
        """X' = X - (t - LCT); a clock that stands still or steps back drains nothing."""
        if self._lct is None:
            return self._x
        return self._x - max(0.0, now - self._lct) * self.rate
