"""Readings of one figure to open, closed and ramping: hysteresis that cannot flap.

Closed after so many bad readings in a row, for so long at least; then, when the figure was good for
its in-service period (or nobody can tell, for no call passes), a growing share of calls is let in
again. Bad readings while ramping close it anew, for twice as long as before, and so they do until
it was open for `resume_seconds` of readings that are known and not bad.
"""

from sipsidecar.signals.decisions import CLOSED, OPEN, RAMPING
from sipsidecar.signals.rules import Rule

LONGEST_DOUBLING = 8
"""The time it stays closed grows to at most so many times `resume_seconds`."""
FIRST_SHARE = 0.1
"""Share of calls at the begin of the ramp."""
STEP = 0.5
"""Seconds. Of readings that come closer together than this only the first counts: a clock that
stands still, or a timer that catches up, must not make three readings of one."""
LAPSE = 2.0
"""Seconds. A reading speaks for at most so much of the time since the one before: in a longer gap
nobody looked, so neither an in-service period nor a ramp can pass in it."""
ROUNDING = 1e-9
"""Ten tenths are a little less than one."""


class Gate:
    """The state of one quality or health rule, for one value of its scope.

    `sample` alone takes it from open to closed, closed to ramping, and ramping to open or closed.
    Between two closings at least `resume_seconds` and `trip_samples` readings pass.
    """

    def __init__(self, rule: Rule) -> None:
        self.state = OPEN
        self.value: float | None = None
        self.since: float | None = None
        """Monotonic; of the state."""
        self.reopened_at: float | None = None
        """When the ramp began: what was measured before it says nothing of now."""
        self.closings = 0
        self._rule = rule
        self._bad = 0
        """Bad readings in a row."""
        self._calm: float | None = None
        """Seconds of the readings in a row that do not speak against it: open, those that are known and
        not bad (unknown ones neither add to it nor end it); closed, since the first of those that are
        good or unknown. None: the newest one does."""
        self._times = 0
        """Of `resume_seconds` that it stays, or stayed, closed; 0: its last closing is forgotten."""
        self._ramped = 0.0
        """Seconds of the ramp that were looked at and not bad."""
        self._owed = 0.0
        """Part of a call that the ramp may let in and has not yet."""
        self._sampled: float | None = None
        """Monotonic; the newest reading that counted."""

    @property
    def resumes_at(self) -> float | None:
        """Monotonic; until then it surely stays closed. None while it is not."""
        if self.state != CLOSED or self.since is None:
            return None
        return self.since + self._rule.resume_seconds * self._times

    def sample(self, bad: bool | None, good: bool | None, value: float | None, now: float) -> None:
        """One reading a second.

        `bad`: past the limit; `good`: on the good side of `resume`; None: nobody can tell. Neither bad
        nor good is the band between the two.
        An unknown reading ends a row of bad ones: nobody is refused for what nobody can tell.
        """
        self.value = value
        step = 0.0
        if self._sampled is not None:
            if now - self._sampled < STEP:
                return
            step = min(now - self._sampled, LAPSE)
        self._sampled = now
        if self.state == OPEN:
            self._sample_open(bad, step, now)
        elif self.state == CLOSED:
            unknown = bad is None or good is None
            self._sample_closed(bad is not True and (good is True or unknown), step, now)
        else:
            self._sample_ramping(bad is True, step, now)

    def reopen(self, now: float) -> None:
        """Open it at once, as an operator says, and forget that it was closed."""
        self._open(now)
        self.reopened_at = now
        self._bad = self._times = 0

    def share(self, now: float) -> float:
        """Share of new calls that may pass: 1 open, 0 closed, between while ramping."""
        if self.state == OPEN:
            return 1.0
        if self.state == CLOSED:
            return 0.0
        ramped = self._ramped
        if self._sampled is not None and not self._bad:
            ramped += min(max(0.0, now - self._sampled), LAPSE)
        return min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * ramped / self._rule.ramp_seconds)

    def admits(self, now: float) -> bool:
        """Whether the next call may pass; in a ramp evenly spread, without chance.

        Ask once for each call: the answer is counted. The first call of a ramp passes.
        """
        if self.state != RAMPING:
            return self.state == OPEN
        self._owed += self.share(now)
        if self._owed < 1 - ROUNDING:
            return False
        self._owed -= 1
        return True

    def _sample_open(self, bad: bool | None, step: float, now: float) -> None:
        if bad:
            self._calm = None
            self._count_bad(now)
            return
        self._bad = 0
        # After a ramp few calls are known for a while: that is no proof that it has healed.
        if bad is None:
            return
        self._calm = 0.0 if self._calm is None else self._calm + step
        if self._calm >= self._rule.resume_seconds:
            self._times = 0

    def _sample_closed(self, calm: bool, step: float, now: float) -> None:
        if not calm:
            self._calm = None
            return
        self._calm = 0.0 if self._calm is None else self._calm + step
        resumes_at = self.resumes_at
        assert resumes_at is not None  # it is closed
        if now >= resumes_at and self._calm >= self._rule.in_service_seconds:
            self.reopened_at = now
            if self._rule.ramp_seconds > 0:
                self._turn(RAMPING, now)
                self._bad, self._ramped, self._owed = 0, 0.0, 1 - FIRST_SHARE
            else:
                self._open(now)

    def _sample_ramping(self, bad: bool, step: float, now: float) -> None:
        # While the readings are bad nobody more is let in.
        if not self._bad:
            self._ramped += step
        if bad:
            self._count_bad(now)
            return
        self._bad = 0
        if self._ramped >= self._rule.ramp_seconds:
            self._open(now)

    def _count_bad(self, now: float) -> None:
        self._bad += 1
        if self._bad >= self._rule.trip_samples:
            self._times = min(2 * self._times, LONGEST_DOUBLING) if self._times else 1
            self.closings += 1
            self._turn(CLOSED, now)
            self._bad, self._calm = 0, None

    def _open(self, now: float) -> None:
        self._turn(OPEN, now)
        self._calm = 0.0

    def _turn(self, state: str, now: float) -> None:
        self.state = state
        self.since = now
