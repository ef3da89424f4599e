"""Counts of one series against what is normal to what is surely more: windows, CUSUM, three sigma.

Windows of 1, 5, 15 and 60 minutes find what is sudden, a CUSUM what creeps (standards 5.2). Where
counts vary more from hour to hour than by luck, both are divided by how much more.

The method three_sigma is the usual rule, kept for those who want it: a minute's share over the mean
and three deviations of all minutes of the last seven days, whatever the hour and however few the
calls. It is measured to be worse in both ways (standards 5.1).
"""

from collections.abc import Sequence
from math import ceil, inf, log, sqrt
from typing import Final, NamedTuple

from sipsidecar.signals.alarms import CATEGORIES
from sipsidecar.signals.chances import binomial_tail
from sipsidecar.signals.series import COUNTED, FIRST, MINUTES, TOTAL, MinuteRates, Ring

WINDOWS: Final = ((1, 1e-7), (5, 1e-6), (15, 1e-5), (60, 1e-5))
"""Minutes, and how improbable it must be."""
FEWEST: Final = 3
"""Failures that an alarm needs."""
ALARM, CLEAR, MOST = 10.0, 3.0, 25.0
"""Of the CUSUM: an in-control run is e^10 steps at least (Wald)."""
WEIGHT: Final = ALARM / FEWEST
"""One failure adds no more to the CUSUM: where none was ever seen, a single one proves nothing."""
CALM_MINUTES: Final = 10
"""How long an alarm's condition must be gone."""
LONGEST: Final = 60
SIGMAS: Final = 3.0
_LEAST_EFFECT: Final = 0.02
_LEAST_SHARE: Final = 1e-6
_RECOVERED: Final = 1e-3
_ENDS: Final = (5, 15, LONGEST)


class Normal:
    """What is normal for a series in an hour, and from where on it is not."""

    __slots__ = ("calm", "down", "hour", "known", "limit", "p", "phi", "up", "volume")

    def __init__(
        self,
        hour: int,
        known: str,
        p: Sequence[float | None],
        phi: Sequence[float] | None = None,
        volume: float | None = None,
    ) -> None:
        self.hour = hour
        """Hours since 1970, UTC."""
        self.known = known
        """own: from its own past; fleet: of all calls; cold: nothing is known yet."""
        self.p = tuple(p)
        """Share of each of `COUNTED`."""
        self.phi = tuple(phi or (1.0,) * len(COUNTED))
        """How much more each varies than by luck."""
        self.volume = volume
        """Seizures a minute."""
        self.limit: list[float] = []
        """Share that an alarm must be over."""
        self.calm: list[float] = []
        """Share that it must be under to end."""
        self.up: list[float] = []
        self.down: list[float] = []
        """What a failure, and a call that is none, add to the CUSUM."""
        for share, spread in zip(self.p, self.phi, strict=True):
            least = None if share is None else max(share, _LEAST_SHARE)
            if least is None or least >= 0.95:
                limit, calm, up, down = inf, inf, 0.0, 0.0
            else:
                effect = max(_LEAST_EFFECT, 0.5 * least)
                limit, calm = least + effect, least + effect / 2
                drifted = min(0.95, least + max(_LEAST_EFFECT, 0.4 * least))
                up = min(log(drifted / least), WEIGHT) / spread
                down = log((1 - drifted) / (1 - least)) / spread
                if known == "cold":  # there is no drifting away from a guess
                    up = down = 0.0
            self.limit.append(limit)
            self.calm.append(calm)
            self.up.append(up)
            self.down.append(down)

    def chance(self, column: int, k: int, n: int) -> float | None:
        """The chance of so many or more of a column, by luck; None where it is not known."""
        p, phi = self.p[column - FIRST], self.phi[column - FIRST]
        if p is None:
            return None
        return binomial_tail(ceil(k / phi), ceil(n / phi), max(p, _LEAST_SHARE))

    def z(self, column: int, k: int, n: int) -> float | None:
        """By how many deviations it is more than normal; None where it is not known."""
        p, phi = self.p[column - FIRST], self.phi[column - FIRST]
        if p is None or not n:
            return None
        p = min(max(p, _LEAST_SHARE), 1 - _LEAST_SHARE)
        return (k - n * p) / sqrt(phi * n * p * (1 - p))


class Held:
    """An alarm that holds."""

    __slots__ = ("calm", "fired", "since", "window")

    def __init__(self, since: int, fired: int, window: int) -> None:
        self.since = since
        """The minute in which it was first seen."""
        self.fired = fired
        """The minute in which it was sure."""
        self.window = window
        """Minutes that its figures are of."""
        self.calm = 0
        """For how many minutes its condition is gone."""


class Finding(NamedTuple):
    """One alarm of one look."""

    source: str
    column: int
    held: Held
    active: bool
    value: float | None = None
    """What was measured; of a share: from its counts."""
    expected: float | None = None
    why: str = ""
    """More for people."""


NOTHING: Final[tuple[Finding, ...]] = ()


class Rates:
    """The shares of codes in one series."""

    __slots__ = ("_begun", "_cleared", "_cusum", "_drifts", "_sigmas", "_windows")

    def __init__(self) -> None:
        self._cusum = [0.0] * len(CATEGORIES)
        self._begun = [0] * len(CATEGORIES)
        self._cleared = [0] * len(CATEGORIES)
        """The minute in which an alarm of windows ended last."""
        self._windows: dict[int, Held] = {}
        self._drifts: dict[int, Held] = {}
        self._sigmas: dict[int, Held] = {}

    @property
    def holding(self) -> bool:
        """Whether any alarm holds."""
        return bool(self._windows or self._drifts or self._sigmas)

    def cusum(self, column: int) -> float:
        """Where the CUSUM of a column is."""
        return self._cusum[column - FIRST]

    def look(self, ring: Ring, normal: Normal) -> Sequence[Finding]:
        """Judge the minute that was pushed last."""
        data, here, minute = ring.data, ring.here, ring.minute
        total = data[here + TOTAL]
        bases = [(window, ring.before(window), chance) for window, chance in WINDOWS]
        one, hour = bases[0][1], bases[-1][1]
        calls = total - data[one + TOTAL]
        any_calls = total - data[hour + TOTAL]
        if not any_calls and not self._windows and not self._drifts:
            return NOTHING
        cusum, up, down, limit = self._cusum, normal.up, normal.down, normal.limit
        findings: list[Finding] = []
        for i in range(len(CATEGORIES)):
            column = FIRST + i
            now = data[here + column]
            if calls:
                failed = now - data[one + column]
                before = cusum[i]
                if failed or before > 0:
                    after = before + failed * up[i] + (calls - failed) * down[i]
                    if after <= 0:
                        after = 0.0
                    elif before <= 0:
                        self._begun[i] = minute
                    cusum[i] = min(after, MOST)
            window = None
            if now - data[hour + column] >= FEWEST:
                least = inf
                since = minute - self._cleared[i]  # what was cleared is not said again
                for size, base, improbable in bases:
                    if size > since:
                        break
                    n, k = total - data[base + TOTAL], now - data[base + column]
                    if k >= FEWEST and k > limit[i] * n:
                        chance = normal.chance(column, min(k, n), n)
                        if chance is not None and chance < improbable and chance < least:
                            window, least = size, chance
            if window is not None or i in self._windows:
                findings.append(self._hold_window(ring, normal, column, window))
            if cusum[i] > ALARM or i in self._drifts:
                findings.append(self._hold_drift(ring, normal, column))
        return findings or NOTHING

    def _hold_window(self, ring: Ring, normal: Normal, column: int, window: int | None) -> Finding:
        held = self._windows.get(column - FIRST)
        if held is None:
            assert window is not None
            # It was first seen where the CUSUM left zero.
            moved = self._cusum[column - FIRST] > 0
            since = self._begun[column - FIRST] if moved else ring.minute - window + 1
            held = Held(since, ring.minute, window)
            self._windows[column - FIRST] = held
        else:
            held.window = window or held.window
            self._count_calm(ring, normal, column, held)
        active = held.calm < CALM_MINUTES
        if not active:
            del self._windows[column - FIRST]
            self._cleared[column - FIRST] = ring.minute
        return Finding("rate", column, held, active)

    def _hold_drift(self, ring: Ring, normal: Normal, column: int) -> Finding:
        i, minute = column - FIRST, ring.minute
        held = self._drifts.get(i)
        if held is None:
            held = self._drifts[i] = Held(self._begun[i], minute, 5)
        self._count_calm(ring, normal, column, held)
        held.window = min(max(minute - held.since + 1, 5), LONGEST)
        active = self._cusum[i] >= CLEAR and not (
            held.calm >= CALM_MINUTES and self._recovered(ring, column, held)
        )
        if not active:
            self._cusum[i] = min(self._cusum[i], CLEAR)
            del self._drifts[i]
        return Finding("drift", column, held, active)

    @staticmethod
    def _count_calm(ring: Ring, normal: Normal, column: int, held: Held) -> None:
        """Count the minutes in which the last five are normal; of few calls, the last quarter."""
        for size in _ENDS:
            counted = ring.sums(size)
            if counted[TOTAL]:
                calm = counted[column] < normal.calm[column - FIRST] * counted[TOTAL]
                held.calm = held.calm + 1 if calm else 0
                return
        held.calm = CALM_MINUTES  # no call in an hour: there is nothing that could hold

    @staticmethod
    def _recovered(ring: Ring, column: int, held: Held) -> bool:
        """Whether the calm minutes cannot be of the level that was before them.

        Where calls are few a CUSUM at its top takes hours to go down, however clear the end is.
        """
        calm = ring.sums(held.calm)
        bad = ring.between(held.since, ring.minute - held.calm)
        if not calm[TOTAL] or not bad[TOTAL]:
            return not calm[TOTAL]
        n, good = calm[TOTAL], calm[TOTAL] - calm[column]
        return binomial_tail(max(good, 0), n, 1 - bad[column] / bad[TOTAL]) < _RECOVERED

    def look_for_sigmas(self, ring: Ring, rates: MinuteRates, armed: float) -> Sequence[Finding]:
        """Judge the last minute by the mean and deviation of all minutes, and add it to them."""
        counted = ring.sums(1)
        total = counted[TOTAL]
        known = rates.minutes >= max(armed, 1)
        findings: list[Finding] = []
        for i in range(len(CATEGORIES)):
            held = self._sigmas.get(i)
            over, value, mean = False, None, None
            if total and known:
                mean, deviation = rates.limit(i)
                value = counted[FIRST + i] / total
                # Sums of squares are not exact: a share that never changes has no deviation.
                over = value > mean + SIGMAS * max(deviation, 1e-9) + 1e-9
            if over and held is None:
                held = self._sigmas[i] = Held(ring.minute, ring.minute, 1)
            if held is None:
                continue
            held.calm = 0 if over else held.calm + 1
            if held.calm >= CALM_MINUTES:
                del self._sigmas[i]
            active = held.calm < CALM_MINUTES
            findings.append(Finding("three-sigma", FIRST + i, held, active, value, mean))
        if total:
            rates.add(ring.minute, total, counted[FIRST : FIRST + len(CATEGORIES)])
        return findings or NOTHING


def is_whole(ring: Ring, minutes: int) -> bool:
    """Whether each of the last minutes was looked at: no data is not zero."""
    return ring.minute - minutes + 1 >= ring.first and ring.sums(minutes)[MINUTES] == minutes
