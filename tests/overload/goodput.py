"""From the fates of calls to what an overloaded system achieved, and the bound of what it can."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from overload.callers import Fate

RECOVERED = 0.98
"""Share of the calls answered from which on it counts as recovered."""
WINDOW = 3.0
"""Seconds over which that is looked at."""


def bound(load: float, cost: float) -> float:
    """The most calls that can be answered, in parts of the capacity, at a load in parts of it.

    `cost`: of a refusal, in parts of what serving a call costs; both come out of one capacity.
    """
    if cost * load >= 1:
        return 0.0
    return min(load, (1 - cost * load) / (1 - cost))


class Achieved(NamedTuple):
    """What became of the calls that began in a part of a run."""

    offered: float
    """Calls per second."""
    goodput: float
    """Calls per second that were answered while the caller waited."""
    answered_share: float
    late: float
    """Calls per second that were answered after the caller had given up."""
    refused: float
    silent: float
    copies: float
    """INVITEs per call that the callers sent."""
    setup_p50_ms: float | None
    setup_p99_ms: float | None
    """Of the answered."""


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value under which so many are; None of nothing."""
    found = sorted(values)
    return found[min(int(share * len(found)), len(found) - 1)] if found else None


def achieved(fates: Iterable[Fate], begin: float, end: float) -> Achieved:
    """What became of the calls that began in [begin, end), monotonic seconds."""
    those = [fate for fate in fates if begin <= fate.at < end]
    seconds = end - begin
    count = {
        outcome: sum(fate.outcome == outcome for fate in those)
        for outcome in ("answered", "late", "refused", "silent")
    }
    setups = [fate.seconds * 1000 for fate in those if fate.outcome == "answered" and fate.seconds]
    p50, p99 = quantile(setups, 0.5), quantile(setups, 0.99)
    return Achieved(
        offered=len(those) / seconds,
        goodput=count["answered"] / seconds,
        answered_share=count["answered"] / len(those) if those else 0.0,
        late=count["late"] / seconds,
        refused=count["refused"] / seconds,
        silent=count["silent"] / seconds,
        copies=sum(fate.copies for fate in those) / len(those) if those else 0.0,
        setup_p50_ms=None if p50 is None else round(p50, 1),
        setup_p99_ms=None if p99 is None else round(p99, 1),
    )


def recovery(fates: Iterable[Fate], dropped_at: float, end: float) -> float | None:
    """Seconds from a drop of the load until calls are answered again as they should; None: never.

    The first time, in tenths of a second, from which on 98 % of the calls of the next three
    seconds, and of all that follow, are answered.
    """
    those = [fate for fate in fates if dropped_at <= fate.at < end]
    for tenth in range(int((end - dropped_at - WINDOW) * 10) + 1):
        at = dropped_at + tenth / 10
        soon = [fate.outcome == "answered" for fate in those if at <= fate.at < at + WINDOW]
        later = [fate.outcome == "answered" for fate in those if fate.at >= at]
        if soon and sum(soon) >= RECOVERED * len(soon) and sum(later) >= RECOVERED * len(later):
            return tenth / 10
    return None


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least squares: what y grows by for one more x; None where the points do not tell."""
    count = len(points)
    if count < 2:
        return None
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def rounded(achieved_: Achieved) -> dict[str, Any]:
    """As JSON can hold it, with no more digits than mean something."""
    return {
        name: None if value is None else round(value, 3)
        for name, value in achieved_._asdict().items()
    }
