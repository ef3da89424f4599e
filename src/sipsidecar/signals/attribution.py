"""Shares of an excess to the cohort that it comes from.

A cohort is compared with the rest of the calls: by the difference of the two failure rates, its
Newcombe interval, and what would be normal for each. Of all that explain enough, the one wins that
differs most surely: a broader one is diluted by calls that go well, a narrower one leaves bad calls
in the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Final, NamedTuple

from sipsidecar.signals.alarms import DIMENSIONS, Scope, Share
from sipsidecar.signals.chances import newcombe

EXPLAINS: Final = 0.8
"""A cohort that has more than that of an excess explains it (standards 5.2)."""
WORSE: Final = 2.0
"""So many times the excess of the rest, per call, a cohort must have: where all is bad, the largest
cohort is not to blame."""
SURE: Final = 2.576
"""Of the normal distribution: 99 %, two-sided, for hundreds of cohorts are compared."""
SIGNS: Final = 3.0
"""Standard deviations of the failures that are normal."""
FEWEST: Final = 3
"""Failures below which nothing is put down to a cohort."""
MAX_PAIRS: Final = 3
"""By so many pairs a scope is narrowed at most."""
MAX_PARTS: Final = 3
"""Into so many troubles of different cohorts one excess is divided at most."""
LEAST_PART: Final = 0.1
"""Of the whole excess, each of those troubles has."""
MAX_VALUES: Final = 5
"""Of a dimension, in the split by value."""
ORDER: Final = ("trunk", "carrier", "tenant", "region", "agent", "direction", "codec")
"""Which dimension wins where several mean the same calls."""
UPSTREAM: Final = ("trunk", "carrier", "region")
"""What several tenants share."""

_INDEX: Final = {name: at for at, name in enumerate(DIMENSIONS)}
_NO_COHORT: Final = frozenset({"", "other"})


class Sums(NamedTuple):
    """Calls, failures, and failures that would be normal."""

    total: int
    failed: int
    expected: float

    @property
    def excess(self) -> float:
        """Failures more than normal."""
        return self.failed - self.expected

    @property
    def is_telling(self) -> bool:
        """Whether there are surely more failures than normal, by three standard deviations."""
        return self.excess >= SIGNS * sqrt(max(self.expected, 1.0))


class Attribution(NamedTuple):
    """Where an excess comes from."""

    scope: Scope
    """What was asked about, and what it was narrowed by."""
    explained: float | None
    """The share of the excess that this cohort has, at most 1; None: no cohort explains it."""
    by_value: Mapping[str, int]
    """Excess by value of `dimension`, most first, at most 5, and only what is hardly luck."""
    dimension: str = ""
    """The one that tells most; empty: none does."""
    upstream: bool = False
    """Several tenants suffer alike on the trunk, carrier or region of the scope."""
    excess: float = 0.0
    """Of the cohort; 0: unknown, or none."""


def order_scope(scope: Iterable[tuple[str, str]]) -> Scope:
    """Turn pairs into a scope: each once, in the order of `DIMENSIONS`."""
    return tuple(sorted(set(scope), key=lambda pair: (_INDEX.get(pair[0], len(_INDEX)), pair)))


def is_inside(narrow: Scope, broad: Scope) -> bool:
    """Whether all calls of one scope are calls of the other by their words alone."""
    return all(pair in narrow for pair in broad)


def is_nested(one: Scope, other: Scope) -> bool:
    """Whether one of two scopes is inside the other."""
    return is_inside(one, other) or is_inside(other, one)


def is_compatible(one: Scope, other: Scope) -> bool:
    """Whether a call can be of both scopes: no dimension has two values."""
    values = dict(one)
    return all(values.get(name, value) == value for name, value in other)


def matches(row: Share, scope: Scope) -> bool:
    """Whether the calls of a share are of a scope."""
    for name, value in scope:
        index = _INDEX.get(name)
        if index is None or row.values[index] != value:
            return False
    return True


def add_up(rows: Sequence[Share]) -> Sums:
    """Turn shares into their sum."""
    return Sums(
        sum([row.total for row in rows]),
        sum([row.failed for row in rows]),
        sum([row.expected for row in rows]),
    )


def lead_of(part: Sums, whole: Sums) -> float | None:
    """Turn a cohort and the whole that it is part of into how much worse than the rest it surely is.

    Lower bound of the difference of failure rates, less the difference that would be normal; None: it
    is no worse, or nobody can tell.
    """
    total, failed, expected = (
        whole.total - part.total,
        whole.failed - part.failed,
        whole.expected - part.expected,
    )
    if part.total <= 0 or total <= 0 or part.failed < FEWEST or part.excess < 1:
        return None
    if part.excess / part.total < WORSE * (failed - expected) / total:
        return None
    lowest = newcombe(
        min(part.failed, part.total), part.total, max(0, min(failed, total)), total, SURE
    )[1]
    lowest -= part.expected / part.total - expected / total
    return lowest if lowest > 0 else None


def attribute(
    shares: Iterable[Share], within: Scope = (), dimensions: Sequence[str] = ()
) -> Attribution:
    """Turn the excess within a scope into the smallest cohort that explains more than 80 % of it.

    That is one value if one does, else a pair of values; then narrower as long as that still does and
    what is left out is no part of the trouble. `dimensions`: those that may be used, the favourite
    first.
    """
    rows = _choose(_order(shares), within)
    return _attribute(rows, within, dimensions)


def divide(shares: Iterable[Share], within: Scope = ()) -> list[Attribution]:
    """Turn the excess within a scope into the cohorts that explain it together.

    One, as `attribute` finds it; or two or three, the largest first, that are different troubles at
    the same time: together they explain more than 80 %, and have at most half of the calls that one
    cohort must have for it.
    """
    rows = _choose(_order(shares), within)
    one = _attribute(rows, within, ())
    whole = add_up(rows)
    parts: list[tuple[float, Scope, str]] = []
    left, order = rows, _favourites(within, ())
    while len(parts) < MAX_PARTS:
        rest = add_up(left)
        if rest.excess <= (1 - EXPLAINS) * whole.excess:
            break
        best = _single(left, rest, order, LEAST_PART * whole.excess)
        if best is None:
            return [one]
        inside = _choose(left, (best,))
        scope = _narrow(
            inside, order_scope((*within, best)), order, EXPLAINS * add_up(inside).excess, 1
        )
        parts.append((add_up(_choose(left, scope)).excess, scope, best[0]))
        left = [row for row in left if not matches(row, scope)]
    enough = add_up(left).excess <= (1 - EXPLAINS) * whole.excess
    calls = whole.total - add_up(left).total
    if not enough or len(parts) < 2 or 2 * calls > add_up(_choose(rows, one.scope)).total:
        return [one]
    return [
        Attribution(
            scope,
            min(1.0, excess / whole.excess),
            _by_value(rows, name),
            name,
            _is_upstream(_choose(rows, scope), scope),
            excess,
        )
        for excess, scope, name in sorted(parts, key=lambda part: (-part[0], part[1]))
    ]


class Portions(NamedTuple):
    """How much of one scope lies in each of some cohorts, 0 to 1; None: it has none at all."""

    excess: tuple[float, ...] | None
    calls: tuple[float, ...] | None


def portions(
    shares: Iterable[Share], scopes: Iterable[Scope], cohorts: Sequence[Scope]
) -> dict[Scope, Portions]:
    """Turn scopes into how much of them lies in each cohort, one pass for all of the same dimensions."""
    rows = [
        (row.values, row.total, row.failed - row.expected, _part_of(row, cohorts))
        for row in _order(shares)
    ]
    alike: dict[tuple[str, ...], list[Scope]] = {}
    for scope in scopes:
        alike.setdefault(tuple([name for name, _ in scope]), []).append(scope)
    found: dict[Scope, Portions] = {}
    for names, asked in alike.items():
        if not _INDEX.keys() >= set(names):
            found.update(dict.fromkeys(asked, Portions(None, None)))
            continue
        indexes = [_INDEX[name] for name in names]
        sums: dict[tuple[str, ...], list[float]] = {}
        for values, total, excess, part in rows:
            key = tuple([values[index] for index in indexes])
            into = sums.get(key)
            if into is None:
                into = sums[key] = [0.0] * (2 * len(cohorts) + 2)
            into[0] += excess
            into[1] += total
            for at in part:
                into[2 * at] += excess
                into[2 * at + 1] += total
        for scope in asked:
            got = sums.get(tuple([value for _, value in scope]))
            if got is None:
                found[scope] = Portions(None, None)
                continue
            all_excess, calls = got[0], got[1]
            found[scope] = Portions(
                None if all_excess < 1 else tuple(part / all_excess for part in got[2::2]),
                tuple(part / calls for part in got[3::2]),
            )
    return found


def _part_of(row: Share, cohorts: Sequence[Scope]) -> list[int]:
    """Of which cohorts a share is, counted from 1."""
    return [at for at, cohort in enumerate(cohorts, 1) if matches(row, cohort)]


def _attribute(rows: Sequence[Share], within: Scope, dimensions: Sequence[str]) -> Attribution:
    whole, order = add_up(rows), _favourites(within, dimensions)
    if whole.excess < 1:
        return Attribution(within, None, {})
    scope = _narrow(rows, within, order, EXPLAINS * whole.excess, 0)
    inside = _choose(rows, scope)
    if scope == within:
        name = _telling(rows, whole, order)
        upstream = _is_upstream(rows, within)
        return Attribution(within, None, _by_value(rows, name), name, upstream, whole.excess)
    # Of several that it was narrowed by, the first in order has the most to say.
    name = next(name for name in order if name in dict(scope))
    excess = add_up(inside).excess
    return Attribution(
        scope,
        min(1.0, excess / whole.excess),
        _by_value(rows, name),
        name,
        _is_upstream(inside, scope),
        excess,
    )


def _narrow(
    rows: Sequence[Share], scope: Scope, order: Sequence[str], needed: float, pairs: int
) -> Scope:
    """Add pairs to a scope as long as what is inside has more than `needed` and leads the rest."""
    while pairs < MAX_PAIRS:
        whole = add_up(rows)
        left = [name for name in order if name not in dict(scope)]
        best = _single(rows, whole, left, needed)
        found: Scope = () if best is None else (best,)
        if not found and not pairs:
            found = _pair(rows, whole, left, needed)
        if not found:
            break
        rows = _choose(rows, found)
        scope = order_scope((*scope, *found))
        pairs += len(found)
    return scope


def _single(
    rows: Sequence[Share], whole: Sums, order: Sequence[str], needed: float
) -> tuple[str, str] | None:
    found: list[tuple[float, int, int, str]] = []
    for rank, name in enumerate(order):
        for value, part in _sum(rows, name).items():
            if value in _NO_COHORT or part.excess <= needed:
                continue
            lead = lead_of(part, whole)
            if lead is not None:
                found.append((-round(lead, 9), rank, part.total, value))
    if not found:
        return None
    _, rank, _, value = min(found)
    return order[rank], value


def _pair(rows: Sequence[Share], whole: Sums, order: Sequence[str], needed: float) -> Scope:
    found: list[tuple[float, int, int, Scope]] = []
    for rank, (one, other) in enumerate(combinations(order, 2)):
        first, second = _INDEX[one], _INDEX[other]
        sums: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            into = sums.setdefault((row.values[first], row.values[second]), [0, 0, 0.0])
            into[0] += row.total
            into[1] += row.failed
            into[2] += row.expected
        for values, (total, failed, expected) in sums.items():
            if failed - expected <= needed or not _NO_COHORT.isdisjoint(values):
                continue
            part = Sums(int(total), int(failed), expected)
            lead = lead_of(part, whole)
            if lead is not None:
                scope = order_scope(((one, values[0]), (other, values[1])))
                found.append((-round(lead, 9), rank, part.total, scope))
    return min(found)[-1] if found else ()


def _favourites(within: Scope, dimensions: Sequence[str]) -> list[str]:
    said = dict(within)
    return [name for name in dimensions or ORDER if name not in said and name in _INDEX]


def _order(shares: Iterable[Share]) -> list[Share]:
    """Sums of floats depend on the order of what is added, and nothing else here may."""
    return sorted(row for row in shares if row.total > 0)


def _choose(rows: Sequence[Share], scope: Scope) -> Sequence[Share]:
    return [row for row in rows if matches(row, scope)] if scope else rows


def _sum(rows: Sequence[Share], name: str) -> dict[str, Sums]:
    index = _INDEX[name]
    sums: dict[str, list[float]] = {}
    for values, total, failed, expected in rows:
        value = values[index]
        into = sums.get(value)
        if into is None:
            sums[value] = [total, failed, expected]
        else:
            into[0] += total
            into[1] += failed
            into[2] += expected
    return {value: Sums(int(t), int(f), e) for value, (t, f, e) in sums.items()}


def _telling(rows: Sequence[Share], whole: Sums, order: Sequence[str]) -> str:
    """The dimension in which one value leads most surely; else the first that divides the excess."""
    best = _single(rows, whole, order, 0)
    if best is not None:
        return best[0]
    for name in order:
        if len(_by_value(rows, name)) > 1:
            return name
    return ""


def _by_value(rows: Sequence[Share], name: str) -> dict[str, int]:
    if not name:
        return {}
    found = [
        (-round(part.excess), value)
        for value, part in _sum(rows, name).items()
        if value and part.excess >= max(1.0, 2 * sqrt(max(part.expected, 0.0)))
    ]
    return {value: -excess for excess, value in sorted(found)[:MAX_VALUES]}


def _is_upstream(rows: Sequence[Share], scope: Scope) -> bool:
    said = dict(scope)
    if "tenant" in said or "agent" in said or said.keys().isdisjoint(UPSTREAM):
        return False
    whole = add_up(rows)
    suffering = [
        value
        for value, part in _sum(rows, "tenant").items()
        if value not in _NO_COHORT
        and part.excess >= 1
        and part.excess / part.total >= whole.excess / whole.total / 2
    ]
    return len(suffering) > 1
