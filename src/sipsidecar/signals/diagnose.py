"""What separates failing calls from good ones: features of both to a short ranked answer.

Each feature is a table of four counts: failing calls with and without it, good ones with and without.
Fisher's exact test, one-sided both ways and doubled, says how likely it is by luck; Benjamini and
Hochberg's procedure corrects for the many features that were looked at. Features that nearly always
come together (phi over 0.8) are one finding. A finding that separates nothing any more among calls
that are alike in those before it only goes along with them, and says so.

Features never look at which calls failed (thresholds are of all calls together), so a chance of
0.01 means what it says. With few failing calls it is said what cannot be known.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import erfc, sqrt
from typing import Final

import msgspec

from sipsidecar.calls.features import Shown, rank
from sipsidecar.calls.offers import Feature
from sipsidecar.signals.chances import benjamini_hochberg, fisher, newcombe, odds_ratio

MAX_CALLS: Final = 2000
"""Calls of each side that are compared; of more these are taken evenly over time."""
MAX_TESTED: Final = 10_000
"""Features that are tested; of more those that split the calls most evenly."""
MAX_DISTINCT: Final = 200_000
"""Features that are counted at all."""
MAX_FINDINGS: Final = 20
Q: Final = 0.01
"""A feature that is less likely by luck, corrected for all that were looked at, is named."""
PHI: Final = 0.8
"""Correlation from which on two features are one finding."""
MAX_ALIKE: Final = 12
"""Other features of a finding that are told."""
MAX_EXAMPLES: Final = 5
_CUTS: Final = 10
"""Parts of equally many calls between which thresholds of numbers and times are looked for."""
_STRATA: Final = 3
"""Findings that calls must be alike in before a later one counts by itself."""
_WEIGHTS: Final = (4.0, 2.0, 1.0, 0.5)
"""By rank: of the chances that Benjamini and Hochberg's procedure sees (Genovese et al. 2006)."""
_NEAR: Final = 0.75
"""Power of the best chance up to which another may be as good."""
_OF_SIZE: Final = frozenset({"size", "size-over", "udp-fragments"})
_UNLIKELY_Z: Final = 1.9
"""Normal deviate below which no exact chance can be under 0.005: those are not worked out."""
_MANY: Final = 20_000
"""Calls in all parts of the time; of more each counts for less than one."""
_GOOD_SHARE: Final = 0.1
"""Share of good calls that have the cause, for what can be known of few failing ones."""
_SOME: Final = 10
"""Calls before the first one of a feature, from which on it may be new."""
_WORN: Final = 0.001
"""A value that by its share would have been seen before, but for so small a chance, is new."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One call, or one attempt of it, by its INVITE."""

    call_id: str
    at: int
    """Microseconds UTC."""
    failed: bool
    shown: Shown


class Slot(msgspec.Struct, frozen=True):
    """How many calls failed and were good in one part of the time, compared here or not."""

    at: int
    """Its beginning, microseconds UTC; it ends where the next begins."""
    failing: int
    good: int


class Separator(msgspec.Struct, frozen=True, kw_only=True):
    """One feature that separates, and by how much."""

    name: str
    """Of `calls.features.RANKS`, or a header's name and a colon. Of a number it is "over" `value`."""
    value: str
    over: bool = False
    present: bool = True
    """Failing calls have it more often; false: they lack it more often, and the counts are of those
    that lack it."""
    failing: int
    of_failing: int
    good: int
    of_good: int
    chance: float
    """Of this by luck, both ways."""
    q: float
    """The same, corrected for all features that were looked at (Benjamini-Hochberg)."""
    odds: float
    """Haldane's odds ratio."""
    difference: float
    """Of the compared calls: share of those with it that failed, less that of those without it; with
    its 95 % interval (Newcombe)."""
    low: float
    high: float
    first_seen_at: int | None = None
    """When the feature was first seen, if calls before it should have had it: it is new."""
    since: int | None = None
    """Of `time`: from then on, microseconds UTC; None: from the beginning."""
    until: int | None = None
    """Of `time`: and before then; None: to the end."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What may be the cause, and all that came with it and cannot be told from it."""

    separator: Separator
    alike: tuple[Separator, ...] = ()
    """The next most telling ones; at most `MAX_ALIKE`."""
    more_alike: int = 0
    follows: int | None = None
    """Number, from 0 on, of the finding that it goes along with: by itself it separates nothing."""
    examples: tuple[int, ...] = ()
    """Places of failing calls that have it, newest first."""
    pair: tuple[int, int] | None = None
    """Places of a failing call that has it, and of the good one without it that is most like it."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and what it stands on."""

    failing: int
    good: int
    findings: tuple[Finding, ...] = ()
    """Most telling first; those that follow another are last."""
    tested: int = 0
    """Different ways in which features split the calls."""
    features: int = 0
    rare: int = 0
    """Features of fewer than two calls, or of all but one: they can separate nothing."""
    cut: int = 0
    """Features that were left out because there were too many."""
    reach: int | None = None
    """Failing calls that would have to share a cause which a tenth of the good ones have, so that it
    is found; None: not even all of them would be enough."""
    needed: int | None = None
    """Failing calls that would be enough, if all share the cause; None: these good ones are too few."""


def diagnose(
    cases: Sequence[Case],
    slots: Sequence[Slot] = (),
    tell: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Find what separates the failing cases from the others.

    Places in the answer are of `cases`. `slots`, by time, are for when it began; without them the
    cases themselves are. `tell` is told how much of the work is done: part, whole.
    """
    places = sampled(cases)
    work = _Work([cases[place] for place in places], places)
    if not work.failing or not work.good:
        return Diagnosis(failing=work.failing.bit_count(), good=work.good.bit_count())
    return work.answer(slots or work.slots(), tell or (lambda _part, _whole: None))


def sampled(cases: Sequence[Case], most: int = MAX_CALLS) -> list[int]:
    """Places of at most `most` cases of each side, evenly over time, in the order of time."""
    taken: list[int] = []
    for failed in (True, False):
        side = [place for place, case in enumerate(cases) if case.failed is failed]
        side.sort(key=lambda place: (cases[place].at, cases[place].call_id))
        if len(side) > most:
            side = [side[n * len(side) // most] for n in range(most)]
        taken += side
    return sorted(taken, key=lambda place: (cases[place].at, cases[place].call_id))


class _Split(msgspec.Struct):
    """Features that split the calls in the same way, and how that way separates."""

    mask: int
    features: list[tuple[Feature, bool, bool]]
    """The feature, whether it is a number over the value, whether calls of the mask have it."""
    chance: float = 1.0
    strength: float = 0.0
    present: bool = True
    """Failing calls are more often of the mask."""
    q: float = 1.0


class _Work:
    """The calls as bits of whole numbers: the lowest is the first by time."""

    def __init__(self, cases: list[Case], places: list[int]) -> None:
        self.cases = cases
        self.places = places
        self.all = (1 << len(cases)) - 1
        self.failing = sum(1 << n for n, case in enumerate(cases) if case.failed)
        self.good = self.all ^ self.failing
        self.cut = sum(case.shown.cut for case in cases)
        self.rare = 0
        self.features = 0

    def slots(self) -> list[Slot]:
        """The cases themselves, each its own part of the time."""
        return [Slot(case.at, int(case.failed), int(not case.failed)) for case in self.cases]

    def answer(self, slots: Sequence[Slot], tell: Callable[[int, int], None]) -> Diagnosis:
        splits = self._splits()
        for n, split in enumerate(splits):
            counts = self._counts(split.mask, self.all)
            split.chance, split.present = _chance(*counts)
            split.strength = _strength(*counts)
            if not n % 256:
                tell(n, len(splits))
        tell(len(splits), len(splits))
        window = _window(slots)
        weights = _weights(splits)
        chances = [split.chance / weight for split, weight in zip(splits, weights, strict=True)]
        qs = benjamini_hochberg([*chances, window[0] if window else 1.0])
        for split, q in zip(splits, qs, strict=False):
            split.q = q
        telling = sorted((s for s in splits if s.q < Q), key=_order)
        failing, good = self.failing.bit_count(), self.good.bit_count()
        return Diagnosis(
            failing=failing,
            good=good,
            findings=self._findings(telling, window, qs[-1]),
            tested=len(splits),
            features=self.features,
            rare=self.rare,
            cut=self.cut,
            reach=_reach(failing, good, len(splits)),
            needed=_needed(good, len(splits)),
        )

    # -- features to splits

    def _splits(self) -> list[_Split]:
        """All features that more than one call has and more than one lacks, alike ones together."""
        holders, singles = self._holders()
        count = len(self.cases)
        usable: list[tuple[Feature, bool, int]] = []
        for feature, who in holders.items():
            if 2 <= len(who) <= count - 2:
                usable.append((feature, False, _mask(who)))
            elif len(who) < count:
                self.rare += 1
        for name, who in singles.items():
            if 2 <= len(who) <= count - 2:
                usable.append((("one-of-a-kind", name), False, _mask(who)))
        usable += self._thresholds()
        if len(usable) > MAX_TESTED:
            usable.sort(key=lambda one: (abs(2 * one[2].bit_count() - count), one[0], one[1]))
            self.cut += len(usable) - MAX_TESTED
            del usable[MAX_TESTED:]
        self.features = len(usable)
        found: dict[int, _Split] = {}
        for feature, over, mask in usable:
            key = min(mask, self.all ^ mask)
            split = found.setdefault(key, _Split(key, []))
            split.features.append((feature, over, mask == key))
        return list(found.values())

    def _holders(self) -> tuple[dict[Feature, list[int]], dict[str, list[int]]]:
        """Which calls have a feature, and which have a value of a name that no other call has."""
        holders: dict[Feature, list[int]] = {}
        for n, case in enumerate(self.cases):
            minute = case.at // 60_000_000 % 60 // 5 * 5
            own: Iterable[Feature] = (
                *case.shown.features,
                ("minute-of-hour", f"{minute} to {minute + 4}"),
            )
            for feature in own:
                who = holders.get(feature)
                if who is not None:
                    who.append(n)
                elif len(holders) < MAX_DISTINCT:
                    holders[feature] = [n]
                else:
                    self.cut += 1
        singles: defaultdict[str, set[int]] = defaultdict(set)
        for (name, _), who in holders.items():
            if len(who) == 1:
                singles[name].add(who[0])
        return holders, {name: sorted(who) for name, who in singles.items()}

    def _thresholds(self) -> list[tuple[Feature, bool, int]]:
        """Numbers over some of the values that they have: the limits of parts with equally many."""
        series: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        for n, case in enumerate(self.cases):
            for name, value in case.shown.numbers:
                series[name].append((value, n))
        found: list[tuple[Feature, bool, int]] = []
        for name, values in series.items():
            values.sort()
            cuts = {values[part * len(values) // _CUTS][0] for part in range(_CUTS)}
            for cut in sorted(cuts):
                over = [n for value, n in values if value > cut]
                if 2 <= len(over) <= len(self.cases) - 2:
                    found.append(((name, f"{cut:g}"), True, _mask(over)))
        return found

    # -- one split

    def _counts(self, mask: int, within: int) -> tuple[int, int, int, int]:
        """The table of a mask among some calls: failing with, without; good with, without."""
        failing, good = self.failing & within, self.good & within
        a, c = (mask & failing).bit_count(), (mask & good).bit_count()
        return a, failing.bit_count() - a, c, good.bit_count() - c

    # -- splits to findings

    def _findings(
        self, telling: list[_Split], window: "_Window | None", q: float
    ) -> tuple[Finding, ...]:
        groups: list[list[_Split]] = []
        numbers: set[str] = set()
        for split in telling:
            family = _family(split)
            for group in groups:
                if self._one_finding(group[0], split):
                    group.append(split)
                    break
            else:
                if family in numbers:
                    continue  # another threshold of a number that is a finding already
                groups.append([split])
            if family:
                numbers.add(family)
        least = Q / max(len(groups), 1)  # so many are asked whether they are more than luck
        in_time = self._mask_of(window[3], window[4]) if window is not None and q < Q else None
        leading: list[list[_Split]] = []
        behind: list[tuple[list[_Split], int]] = []
        for group in groups:
            before = [one[0].mask for one in leading[:_STRATA]]
            if in_time is not None and not self._separates(group[0].mask, [in_time], least):
                behind.append((group, -1))
            elif before and not self._separates(group[0].mask, before, least):
                nearest = max(
                    range(len(before)), key=lambda n: abs(self._phi(before[n], group[0].mask))
                )
                behind.append((group, nearest))
            else:
                leading.append(group)
        found = [self._finding(group, None) for group in leading[:MAX_FINDINGS]]
        time_at = len(found)
        if window is not None and in_time is not None:
            found.append(self._time_finding(window, q, in_time))
        for group, after in behind[: max(MAX_FINDINGS - len(found), 0)]:
            found.append(self._finding(group, time_at if after < 0 else after))
        return tuple(found)

    def _phi(self, one: int, other: int) -> float:
        """The correlation of two splits, from -1 to 1."""
        n = len(self.cases)
        both, a, b = (one & other).bit_count(), one.bit_count(), other.bit_count()
        return (n * both - a * b) / sqrt(a * b * (n - a) * (n - b))

    def _one_finding(self, first: _Split, other: _Split) -> bool:
        """Whether two splits are as good as one: they come together, or cannot be told apart."""
        return abs(self._phi(first.mask, other.mask)) > PHI or self._as_good(first, other)

    def _as_good(self, first: _Split, other: _Split) -> bool:
        """Whether a split that separates less may be the cause of what a better one separates."""
        near = other.chance <= first.chance**_NEAR
        return near and not self._separates(first.mask, [other.mask], Q / 10)

    def _separates(self, mask: int, given: Sequence[int], least: float) -> bool:
        """Whether a split still tells failing calls from good ones among those alike in `given`.

        Cochran, Mantel and Haenszel's test over all combinations, which must point the same way; and
        as it is too sure of few calls, Fisher's in one of the combinations, too.
        """
        a, b, c, d = self._counts(mask, self.all)
        more = a * (c + d) > c * (a + b)
        excess = spread = 0.0
        chances = []
        for chosen in range(1 << len(given)):
            within = self.all
            for n, one in enumerate(given):
                within &= one if chosen >> n & 1 else self.all ^ one
            a, b, c, d = self._counts(mask, within)
            total = a + b + c + d
            expected = (a + b) * (c + d) * (a + c) * (b + d)
            if expected:
                excess += a - (a + b) * (a + c) / total
                spread += expected / (total * total * (total - 1))
                chances.append(fisher(a, b, c, d) if more else fisher(b, a, d, c))
        if not chances or (excess > 0) is not more:
            return False
        z = max(abs(excess) - 0.5, 0.0) / sqrt(spread)
        return erfc(z / sqrt(2)) < least and min(chances) * len(chances) < least

    def _finding(self, group: list[_Split], follows: int | None) -> Finding:
        """Name a group by the feature that says most of those that separate about as well as any."""
        near = [split for split in group if split is group[0] or self._as_good(group[0], split)]
        told = [(split, *one) for split in group for one in split.features]
        # What failing calls have says more than what they lack.
        told.sort(
            key=lambda one: (
                one[0] not in near,
                rank(one[1]),
                one[0].present is not one[3],
                one[0].chance,
                one[1],
            )
        )
        separators = [self._separator(*one) for one in told[: MAX_ALIKE + 1]]
        split = told[0][0]
        having = split.mask if split.present else self.all ^ split.mask
        return Finding(
            separator=separators[0],
            alike=tuple(separators[1:]),
            more_alike=len(told) - len(separators),
            follows=follows,
            examples=self._examples(having & self.failing),
            pair=self._pair(having),
        )

    def _separator(self, split: _Split, feature: Feature, over: bool, holds: bool) -> Separator:
        having = split.mask if holds else self.all ^ split.mask
        present = split.present is holds
        mask = having if present else self.all ^ having
        a, b, c, d = self._counts(mask, self.all)
        difference, low, high = newcombe(a, a + c, b, b + d)
        return Separator(
            name=feature[0],
            value=feature[1],
            over=over,
            present=present,
            failing=a,
            of_failing=a + b,
            good=c,
            of_good=c + d,
            chance=split.chance,
            q=split.q,
            odds=odds_ratio(a, b, c, d),
            difference=difference,
            low=low,
            high=high,
            first_seen_at=self._first_seen(mask),
        )

    def _first_seen(self, mask: int) -> int | None:
        """When calls of the mask began, unless those before may be none of it by chance."""
        before = (mask & -mask).bit_length() - 1
        share = mask.bit_count() / (len(self.cases) - before + 1)
        new = before >= _SOME and (1 - share) ** before < _WORN
        return self.cases[before].at if new else None

    def _newest(self, mask: int) -> list[int]:
        """The newest calls of a mask."""
        found: list[int] = []
        while mask and len(found) < MAX_EXAMPLES:
            found.append(mask.bit_length() - 1)
            mask ^= 1 << found[-1]
        return found

    def _examples(self, mask: int) -> tuple[int, ...]:
        return tuple(self.places[n] for n in self._newest(mask))

    def _pair(self, having: int) -> tuple[int, int] | None:
        """A new failing call of the mask and a good one out of it: those that are most alike."""
        failing, good = self._newest(having & self.failing), self.good & ~having
        candidates = [n for n in range(len(self.cases)) if good >> n & 1]
        best: tuple[float, int, int] | None = None
        for one in failing:
            own = set(self.cases[one].shown.features)
            for other in candidates:
                others = self.cases[other].shown.features
                shared = sum(feature in own for feature in others)
                likeness = shared / (len(own) + len(others) - shared or 1)
                if best is None or likeness > best[0]:
                    best = likeness, self.places[one], self.places[other]
        return best[1:] if best else None

    # -- time

    def _mask_of(self, since: int | None, until: int | None) -> int:
        return sum(
            1 << n
            for n, case in enumerate(self.cases)
            if (since is None or case.at >= since) and (until is None or case.at < until)
        )

    def _time_finding(self, window: "_Window", q: float, mask: int) -> Finding:
        chance, (a, b), (c, d), since, until = window
        difference, low, high = newcombe(a, a + c, b, b + d)
        return Finding(
            separator=Separator(
                name="time",
                value="",
                failing=a,
                of_failing=a + b,
                good=c,
                of_good=c + d,
                chance=chance,
                q=q,
                odds=odds_ratio(a, b, c, d),
                difference=difference,
                low=low,
                high=high,
                since=since,
                until=until,
            ),
            examples=self._examples(mask & self.failing),
            pair=self._pair(mask),
        )


_Window = tuple[float, tuple[int, int], tuple[int, int], int | None, int | None]
"""Chance, failing calls in and out of it, good ones in and out, since, until."""


def _window(slots: Sequence[Slot]) -> _Window | None:
    """The part of the time in which most more of the calls failed than in the rest.

    Its chance is corrected for all parts that were looked at. None where there is only one.
    """
    total = sum(slot.failing + slot.good for slot in slots)
    scale = max(1.0, total / _MANY)
    bounds: list[int] = []  # places of slots where a part begins
    passed = 0
    for n, slot in enumerate(slots):
        if n and passed * _CUTS >= (len(bounds) + 1) * total and slot.at != slots[n - 1].at:
            bounds.append(n)
        passed += slot.failing + slot.good
    ends = [0, *bounds, len(slots)]
    failing, good = [0], [0]
    for slot in slots:
        failing.append(failing[-1] + slot.failing)
        good.append(good[-1] + slot.good)
    parts = [pair for pair in combinations(ends, 2) if pair != (0, len(slots))]

    def judged(first: int, last: int) -> _Window | None:
        """The part from one slot to before another, if more failed in it."""
        a, c = failing[last] - failing[first], good[last] - good[first]
        b, d = failing[-1] - a, good[-1] - c
        chance, more = _chance(*(int(count / scale) for count in (a, b, c, d)))
        since = slots[first].at if first else None
        until = slots[last].at if last < len(slots) else None
        return (chance, (a, b), (c, d), since, until) if more else None

    best = _best(judged, parts)
    if best is None:
        return None
    (first, last), (chance, *_) = best
    # Where it began and ended, to the slot; the chance stays that of the parts.
    for _ in range(2):
        near = _around(first, ends)
        (first, last), window = _best(judged, ((n, last) for n in near if n < last)) or best
        near = _around(last, ends)
        (first, last), window = _best(judged, ((first, n) for n in near if n > first)) or best
    return (min(1.0, chance * len(parts)), *window[1:])


def _best(
    judged: Callable[[int, int], _Window | None], parts: Iterable[tuple[int, int]]
) -> tuple[tuple[int, int], _Window] | None:
    """The part with the least chance, the first of equals."""
    found = ((part, window) for part in parts if (window := judged(*part)) is not None)
    return min(found, key=lambda one: (one[1][0], -_strength(*one[1][1], *one[1][2])), default=None)


def _around(bound: int, ends: Sequence[int]) -> Iterable[int]:
    """Slots between the bounds beside this one; the outer ones stay."""
    if bound in (ends[0], ends[-1]):
        return (bound,)
    before = max(end for end in ends if end < bound)
    return range(before + 1, min(end for end in ends if end > bound))


def _chance(a: int, b: int, c: int, d: int) -> tuple[float, bool]:
    """Fisher's exact chance of a table, both ways, and whether failing calls are more often in it."""
    total = a + b + c + d
    spread = (a + b) * (c + d) * (a + c) * (b + d)
    away = a * d - b * c
    if spread <= 0:
        return 1.0, True
    if abs(away) * sqrt(total / spread) < _UNLIKELY_Z:
        return 1.0, away >= 0
    one_sided = fisher(a, b, c, d) if away > 0 else fisher(b, a, d, c)
    return min(1.0, 2 * one_sided), away > 0


def _weights(splits: Sequence[_Split]) -> list[float]:
    """How much each split counts: what tells a person more is more often a cause. One on average."""
    weights = [_WEIGHTS[min(rank(feature) for feature, _, _ in one.features)] for one in splits]
    mean = sum(weights) / len(weights) if weights else 1.0
    return [weight / mean for weight in weights]


def _family(split: _Split) -> str:
    """The number that it is a threshold of and nothing else; empty when it is none."""
    names = {
        "size" if name in _OF_SIZE else name if over else ""
        for (name, _), over, _ in split.features
    }
    return names.pop() if len(names) == 1 else ""


def _mask(who: Iterable[int]) -> int:
    mask = 0
    for n in who:
        mask |= 1 << n
    return mask


def _strength(a: int, b: int, c: int, d: int) -> float:
    """How far a table is from luck, 0 to 1: it tells apart what is too unlikely for a double."""
    spread = (a + b) * (c + d) * (a + c) * (b + d)
    return abs(a * d - b * c) / sqrt(spread) if spread else 0.0


def _order(split: _Split) -> tuple[float, float, int, Feature]:
    first = min((feature for feature, _, _ in split.features), key=lambda one: (rank(one), one))
    return split.chance, -split.strength, rank(first), first


def _reach(failing: int, good: int, tests: int) -> int | None:
    """The least of the failing calls that must share a cause for it to be found."""
    least = Q / max(tests, 1) / 2
    with_it = round(_GOOD_SHARE * good)
    for shared in range(1, failing + 1):
        if fisher(shared, failing - shared, with_it, good - with_it) < least:
            return shared
    return None


def _needed(good: int, tests: int) -> int | None:
    """How many failing calls that all share a cause are enough for it to be found."""
    least = Q / max(tests, 1) / 2
    with_it = round(_GOOD_SHARE * good)
    for failing in range(1, 101):
        if fisher(failing, 0, with_it, good - with_it) < least:
            return failing
    return None
