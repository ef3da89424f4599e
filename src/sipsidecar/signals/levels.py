"""Answered and effective calls, and how many there are, to what is surely too few."""

from collections.abc import Sequence
from typing import Final

from sipsidecar.signals.chances import poisson_lower, wilson
from sipsidecar.signals.rates import (
    CALM_MINUTES,
    LONGEST,
    NOTHING,
    Finding,
    Held,
    Normal,
    is_whole,
)
from sipsidecar.signals.series import FIRST, INEFFECTIVE, TOTAL, UNANSWERED, Ring

WINDOW: Final = 5
FEWEST: Final = 5
"""Seizures that ASR and NER are judged by (standards 5.4)."""
PART: Final = 0.9
"""Where there is no fixed threshold, the part of the normal share that is too little."""
IMPROBABLE: Final = 1e-6
LEAST_VOLUME: Final = 10.0
"""Calls that must be normal in the window."""
VOLUME_IMPROBABLE: Final = 1e-5
VOLUME_PART: Final = 0.5
"""A smaller drop is no alarm, however improbable: no day is quite like another."""

_MEASURES: Final = (("asr", UNANSWERED), ("ner", INEFFECTIVE))


class Levels:
    """ASR, NER and volume of one series."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    @property
    def holding(self) -> bool:
        """Whether any alarm holds."""
        return bool(self._held)

    def look(self, ring: Ring, normal: Normal, fixed: float | None) -> Sequence[Finding]:
        """Judge the last five minutes; `fixed` is the share that ASR and NER must have, if any."""
        data, here, base = ring.data, ring.here, ring.before(WINDOW)
        total = data[here + TOTAL] - data[base + TOTAL]
        findings: list[Finding] = []
        if total >= FEWEST or self._held:
            for source, column in _MEASURES:
                found = self._look_at_share(ring, normal, fixed, source, column)
                if found is not None:
                    findings.append(found)
        found = self._look_at_volume(ring, normal, total)
        if found is not None:
            findings.append(found)
        return findings or NOTHING

    def _look_at_share(
        self, ring: Ring, normal: Normal, fixed: float | None, source: str, column: int
    ) -> Finding | None:
        share = normal.p[column - FIRST]
        usual = None if share is None else 1 - share
        least = fixed if fixed is not None else None if usual is None else PART * usual
        held = self._held.get(column)
        low = False
        counted = ring.sums(WINDOW)
        total, bad = counted[TOTAL], min(counted[column], counted[TOTAL])
        if least is not None and total >= FEWEST and total - bad < least * total:
            low = wilson(total - bad, total)[1] < least
            if low and fixed is None:
                chance = normal.chance(column, bad, total)
                low = chance is not None and chance < IMPROBABLE
        if held is None:
            if not low:
                return None
            assert least is not None
            since = _first_low(ring, column, least)
            held = self._held[column] = Held(since, ring.minute, WINDOW)
        if low:
            held.calm = 0
        elif least is None:
            held.calm = CALM_MINUTES  # what is normal is not known any more
        else:
            goal = least if fixed is not None or usual is None else (least + usual) / 2
            held.calm = held.calm + 1 if _is_back(ring, column, goal) else 0
        active = held.calm < CALM_MINUTES
        if not active:
            del self._held[column]
        value = (total - bad) / total if total else None
        return Finding(source, column, held, active, value, least)

    def _look_at_volume(self, ring: Ring, normal: Normal, total: int) -> Finding | None:
        held = self._held.get(TOTAL)
        expected = None if normal.volume is None else WINDOW * normal.volume
        low = (
            expected is not None
            and expected >= LEAST_VOLUME
            and total < VOLUME_PART * expected
            and is_whole(ring, WINDOW)
            and poisson_lower(total, expected) < VOLUME_IMPROBABLE
        )
        if held is None:
            if not low:
                return None
            held = self._held[TOTAL] = Held(ring.minute - WINDOW + 1, ring.minute, WINDOW)
        held.calm = 0 if low else held.calm + 1
        active = held.calm < CALM_MINUTES
        if not active:
            del self._held[TOTAL]
        return Finding("volume", TOTAL, held, active, float(total), expected)


def _first_low(ring: Ring, column: int, least: float) -> int:
    """The first minute of the window that was too low by itself."""

    def is_low(minute: int) -> bool:
        counted = ring.between(minute, minute)
        return counted[TOTAL] - counted[column] < least * counted[TOTAL]

    minutes = range(ring.minute - WINDOW + 1, ring.minute + 1)
    return next(filter(is_low, minutes), minutes[0])


def _is_back(ring: Ring, column: int, goal: float) -> bool:
    """Whether the share is what it should be, in the shortest time that says anything."""
    for size in (WINDOW, 15, LONGEST):
        counted = ring.sums(size)
        if counted[TOTAL] >= FEWEST or (size == LONGEST and counted[TOTAL]):
            return counted[TOTAL] - counted[column] >= goal * counted[TOTAL]
    return True
