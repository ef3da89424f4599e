"""Good setups against a promise to how fast its error budget burns, over several windows at once.

A budget is what of 30 days may fail. A page is when 2 % of it go in an hour, or 5 % in six, and a
ticket when 10 % go in three days; each only while a shorter window burns as fast, too (SRE workbook,
chapter 5; standards 5.2).
"""

from typing import Final, NamedTuple

from sipsidecar.signals.alarms import PAGE, WARN
from sipsidecar.signals.chances import wilson
from sipsidecar.signals.rates import CALM_MINUTES, FEWEST, Finding, Held
from sipsidecar.signals.series import MINUTES, TOTAL, History, Ring


class Pair(NamedTuple):
    """Two windows in minutes, the factor that both must burn at, and what it then is."""

    long: int
    short: int
    factor: float
    severity: str


PAIRS: Final = (
    Pair(60, 5, 14.4, PAGE),
    Pair(360, 30, 6.0, PAGE),
    Pair(4320, 360, 1.0, WARN),
)
SIZE: Final = 4320 + 1
_LOOKED, _CALLS, _BAD = range(3)


class Burning(NamedTuple):
    """What an objective says after a look."""

    finding: Finding
    pair: Pair
    burns: tuple[float, float]
    """How many times too fast, over the long window and over the short one."""


class Objective:
    """The budget of one objective. `history` is where its hours are kept over a restart."""

    __slots__ = ("_budget", "_column", "_held", "_history", "_pair", "_ring")

    def __init__(self, budget: float, column: int, history: History | None) -> None:
        self._budget = budget
        self._column = column
        self._history = history
        self._ring: Ring | None = None
        self._held: Held | None = None
        self._pair = PAIRS[0]

    def begin_again(self) -> None:
        """Forget the minutes, for the clock was set."""
        self._ring = self._held = None
        if self._history is not None:
            self._history.begin_again()

    def push(self, minute: int, total: int, bad: int) -> None:
        """Take in one whole minute."""
        if self._ring is None:
            self._ring = Ring(SIZE, 3, minute)
        self._ring.push(minute, ((_LOOKED, 1), (_CALLS, total), (_BAD, bad)))
        if self._history is not None:
            self._history.push(minute, ((TOTAL, total), (self._column, bad)) if total else ())

    def look(self) -> Burning | None:
        """Judge the minute that was pushed last."""
        ring = self._ring
        assert ring is not None
        found, burns = None, (0.0, 0.0)
        for pair in PAIRS:
            burns = self._burns(pair)
            if min(burns) > pair.factor and self._is_sure(pair):
                found = pair
                break
        held = self._held
        if held is None:
            if found is None:
                return None
            held = self._held = Held(ring.minute - found.short + 1, ring.minute, found.long)
        if found is None:
            held.calm += 1
            burns = self._burns(self._pair)
        else:
            held.calm, held.window, self._pair = 0, found.long, found
        active = held.calm < CALM_MINUTES
        if not active:
            self._held = None
        return Burning(Finding("slo", self._column, held, active), self._pair, burns)

    def counts(self, minutes: int) -> tuple[int, int]:
        """Calls of the last minutes, and how many of them were bad."""
        _, calls, bad = self._sums(minutes)
        return calls, bad

    def _burns(self, pair: Pair) -> tuple[float, float]:
        long, short = (self._sums(minutes) for minutes in (pair.long, pair.short))
        return self._burn(long), self._burn(short)

    def _burn(self, sums: list[int]) -> float:
        return sums[_BAD] / sums[_CALLS] / self._budget if sums[_CALLS] else 0.0

    def _is_sure(self, pair: Pair) -> bool:
        """Whether enough was seen: some failures, surely over the budget, in a quarter of the time."""
        looked, calls, bad = self._sums(pair.long)
        return 4 * looked >= pair.long and bad >= FEWEST and wilson(bad, calls)[0] > self._budget

    def _sums(self, minutes: int) -> list[int]:
        """What the last minutes had; of an earlier life, the whole hours."""
        ring, history = self._ring, self._history
        assert ring is not None
        found = ring.sums(minutes)
        start = ring.minute - minutes + 1
        if start < ring.first and history is not None:
            for hour in range(-(-start // 60), ring.first // 60):
                looked, calls, bad = history.hour(hour, (MINUTES, TOTAL, self._column))
                found = [found[0] + looked, found[1] + calls, found[2] + bad]
        return found
