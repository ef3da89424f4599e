"""Setups and media of calls to figures of the last minutes, by whose they are.

Definitions are those of ITU-T E.425 (ASR, NER) on SIP's final codes, and of RFC 6076 where it has
them. A call speaks for its tenant, direction, region and node; each of its attempts for its trunk.

What of a setup counts as what `setups` says.

A refusal is known at once, an answer when somebody has picked up: of the calls of the last seconds only
those that failed are told of. Where a share is judged, the setups that go on count as good.
"""

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, comb, exp, floor, log, sqrt
from typing import Final, NamedTuple, TypeAlias

import msgspec

from sipsidecar.calls.events import OTHER, CallRecord, Cohort, MediaRecord, Move, Setup
from sipsidecar.signals.setups import (
    CLASSES,
    NUMERATORS,
    OWN,
    SEIZURES,
    kind_of_attempt,
    kind_of_call,
)

Z: Final = 3.09
"""Of the normal distribution: 99.9 %, one-sided."""
CHANCE: Final = 0.001
"""The rest of it."""
FEW: Final = 200
"""Up to so many calls Wilson's interval is too sure: 7 of 20 are said to be over 10 % by chance more
than twice as often as `CHANCE`, and there are 3600 readings in an hour. So it is reckoned exactly."""
MAX_GROUPS: Final = 4096
"""Combinations of labels whose series are remembered together; more are found one by one again."""
MAX_GOING: Final = 200_000
"""Setups that go on and are followed."""
MAX_WINDOWS: Final = 16
"""Windows of one key that are kept added up; more are added up anew."""


class Key(NamedTuple):
    """Whose figures: scope is global, tenant, trunk, direction, region or node."""

    scope: str = "global"
    value: str = ""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one window holds; every share has the counts that it stands on. Unknown is None."""

    seconds: float
    """What the window covers: as long as was asked and up to one step more, or less by `since`."""
    attempts: int = 0
    """INVITEs that ended, own refusals not among them."""
    seizures: int = 0
    """Attempts whose final is known, not 3xx, and no challenge that was left unanswered."""
    answered: int = 0
    effective: int = 0
    """NER's numerator: answered, busy, no answer, rejected by the person (standards 3.1)."""
    by_class: dict[str, int] = {}
    """2xx, 3xx, 4xx, 5xx, 6xx, unknown."""
    own_refusals: int = 0
    """Calls that this product refused: in nothing else here."""
    asr_percent: float | None = None
    ner_percent: float | None = None
    server_errors_percent: float | None = None
    """5xx of the seizures."""
    pdd_count: int = 0
    pdd_p50_ms: float | None = None
    pdd_p95_ms: float | None = None
    """Percentiles are within 2.5 % of the truth, from 1 ms to 1 h."""
    mos_count: int = 0
    """Of `mos_scale`, as are the next three: MOS of two scales do not compare."""
    mos: float | None = None
    """Mean."""
    mos_deviation: float | None = None
    mos_p05: float | None = None
    """One call in twenty sounded like this or worse."""
    mos_scale: str | None = None
    """nb, wb or fb: the one that most of the calls have."""
    loss_count: int = 0
    loss_percent: float | None = None
    """Mean."""
    loss_deviation: float | None = None


class Verdict(NamedTuple):
    """A figure against its limit."""

    bad: bool | None
    value: float | None
    samples: int


# A bucket maps small numbers to whole numbers: how many there were, or their sum.
Bucket = dict[int, int]
# One that is closed, and small: all keys, then all values.
Closed: TypeAlias = "array[int]"

_LOSS = 16  # count, sum, sum of squares
_MOS = 32  # the same, and from _HEARD on a histogram; _SCALE further for the next scale
_HEARD = 8
_SCALE = 128
_PDD = 512

_SCALES = ("nb", "wb", "fb")
_FINE = 10_000
"""MOS and percents are added up in whole numbers of this part: sums never drift, and are far from 2**63
even with a million calls in one step."""
_MOS_STEP = 0.05

_PDD_STEP = log(1.05)
"""Width of a bucket of PDD: its middle is within 2.5 % of all that is in it."""
_LONGEST_PDD = 3_600_000.0
_PDD_END = _PDD + int(log(_LONGEST_PDD) / _PDD_STEP) + 2


class _Window:
    """The closed buckets of one window added up, so that a reading does not add them all up."""

    __slots__ = ("first", "held", "last", "sums")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.held: deque[tuple[int, Closed]] = deque()
        self.sums: Bucket = {}

    def move(self, first: int, closed: deque[tuple[int, Closed]]) -> None:
        """Let go what is before `first`, and take in what was closed since."""
        self.first = first
        while self.held and self.held[0][0] < first:
            _take(self.sums, _pairs(self.held.popleft()[1]))
        fresh = []
        for entry in reversed(closed):
            if entry[0] <= self.last or entry[0] < first:
                break
            fresh.append(entry)
        for entry in reversed(fresh):
            self.held.append(entry)
            self.last = entry[0]
            _add(self.sums, _pairs(entry[1]))


class _Series:
    """The buckets of one key: the open one, and closed ones in which anything happened."""

    __slots__ = ("closed", "head", "slot", "windows")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.head: Bucket = {}
        self.closed: deque[tuple[int, Closed]] = deque()
        self.windows: dict[tuple[float, float | None], _Window] = {}

    def turn(self, slot: int, oldest: int) -> Bucket:
        """Open the bucket of a later slot, and forget those before `oldest`."""
        if slot > self.slot:
            if self.head:
                self.closed.append((self.slot, _close(self.head)))
            while self.closed and self.closed[0][0] < oldest:
                self.closed.popleft()
            self.slot, self.head = slot, {}
        return self.head

    def since(self, first: int, window: tuple[float, float | None]) -> Bucket:
        """Add up all buckets from slot `first` on; `window` names whose question it is."""
        found = self.windows.get(window)
        if found is None or first < found.first:
            self.windows.pop(window, None)
            if len(self.windows) >= MAX_WINDOWS:
                del self.windows[next(iter(self.windows))]
            found = self.windows[window] = _Window(first)
        found.move(first, self.closed)
        sums = dict(found.sums)
        if self.slot >= first:
            _add(sums, self.head.items())
        return sums


class _Group(NamedTuple):
    """The series of one combination of labels."""

    series: tuple[_Series, ...]
    folded: int
    """How many of them are of `other` for want of room."""


class Windows:
    """Sliding windows per key: what was fed in the last `longest` seconds, in steps of `step`.

    Times are seconds of one steady clock.

    Nothing is kept of a key that was idle for so long. Over `max_keys` a new value counts as `other`
    of its scope, and `folded` counts what did. Only what is in `scopes` is kept by itself, and
    all calls together. `nodes` are names of capture ids: a call's node is that of its first one
    that has a name.
    """

    def __init__(
        self,
        scopes: Sequence[str],
        longest: float = 3600.0,
        step: float = 5.0,
        max_keys: int = 1000,
        nodes: Mapping[int, str] | None = None,
    ) -> None:
        self.folded = 0
        """Calls, attempts and media that counted as `other` of a scope because keys ran out."""
        self.overlooked = 0
        """Setups over `MAX_GOING`."""
        self.going: Counter[tuple[str, str]] = Counter()
        """Setups that go on by (scope, value); ("global", "") counts all."""
        self._begun: dict[str, Cohort] = {}
        self._scopes = frozenset(scopes)
        self._longest = longest
        self._step = step
        self._max_keys = max_keys
        self._nodes = dict(nodes or {}) if "node" in self._scopes else {}
        self._slot = 0
        self._oldest = 0
        self._global = _Series(0)
        self._series: dict[tuple[str, str], _Series] = {}
        self._groups: dict[tuple[str | None, ...], _Group] = {}

    @property
    def keys(self) -> int:
        """How many keys are kept, without the one of all calls."""
        return len(self._series)

    def receive_move(self, move: Move) -> None:
        """Follow one call from its INVITE to its answer, its failure or its end."""
        call_id, state, cohort = move
        goes_on = state is not None and state != "answered"
        known = self._begun.get(call_id)
        if goes_on and cohort == known:
            return
        if known is not None:
            del self._begun[call_id]
            self._count_going(known, -1)
        if not goes_on:
            return
        if len(self._begun) >= MAX_GOING:
            self.overlooked += 1
            return
        self._begun[call_id] = cohort
        self._count_going(cohort, 1)

    def receive_setup(self, setup: Setup, now: float) -> None:
        """One call whose setup is over: its attempts speak for their trunks, it for the rest.

        The call itself speaks for its trunk when none of its attempts has that one. What counts as
        what `setups` says.
        """
        self._turn(now)
        call = setup.call
        if call.final_origin == "admission":
            self._count(call, (OWN,), call.trunk)
            return
        trunk = call.trunk
        for attempt in setup.attempts:
            if attempt.trunk is None:
                continue
            if attempt.trunk == trunk:
                trunk = None
            kind = kind_of_attempt(attempt, setup)
            if kind is not None:
                self._count_trunk(attempt.trunk, _with_pdd(kind, attempt.pdd_ms))
        kind = kind_of_call(call)
        if kind is not None:
            self._count(call, _with_pdd(kind, call.pdd_ms), trunk)

    def receive_call(self, record: CallRecord, now: float) -> None:
        """One call that ended, at its first record: its MOS."""
        if record.mos is None or record.mos_scale not in _SCALES:
            return
        self._turn(now)
        base = _MOS + _SCALES.index(record.mos_scale) * _SCALE
        mos = min(max(record.mos, 1.0), 5.0)
        self._measure(record, base, mos, base + _HEARD + _heard(mos))

    def receive_media(self, record: MediaRecord, call: CallRecord | None, now: float) -> None:
        """One direction's media at its first record: its loss.

        It counts as its call's; without a call, or labels of it, among all calls alone.
        """
        if record.loss_percent is None:
            return
        self._turn(now)
        self._measure(call, _LOSS, min(max(record.loss_percent, 0.0), 100.0))

    def read(self, key: Key, seconds: float, now: float, since: float | None = None) -> Figures:
        """Figures of one key over the last `seconds`, of these only what came after `since`.

        Both are exact to a step: a window is up to one step longer than `seconds`, and nothing of
        the step in which `since` fell is in it.
        """
        first, sums = self._sums(key, seconds, now, since)
        get = sums.get
        seizures = sum(get(kind, 0) for kind in SEIZURES)
        answered, effective, errors = (
            sum(get(kind, 0) for kind in NUMERATORS[name])
            for name in ("asr_percent", "ner_percent", "server_errors_percent")
        )
        by_class = {name: sum(get(k, 0) for k in kinds) for name, kinds in CLASSES.items()}
        delays = _histogram(sums, _PDD, _PDD_END)
        base = max(
            (_MOS + at * _SCALE for at in range(len(_SCALES))),
            key=lambda base: (get(base, 0), -base),
        )
        heard = _mean(sums, base)
        lost = _mean(sums, _LOSS)
        opinions = _histogram(sums, base + _HEARD, base + _SCALE)
        worst = _percentile(opinions, 0.05)
        return Figures(
            seconds=max(0.0, now - first * self._step),
            attempts=sum(by_class.values()),
            seizures=seizures,
            answered=answered,
            effective=effective,
            by_class=by_class,
            own_refusals=get(OWN, 0),
            asr_percent=_percent(answered, seizures),
            ner_percent=_percent(effective, seizures),
            server_errors_percent=_percent(errors, seizures),
            pdd_count=sum(count for _, count in delays),
            pdd_p50_ms=_delay(_percentile(delays, 0.5)),
            pdd_p95_ms=_delay(_percentile(delays, 0.95)),
            mos_count=heard.samples,
            mos=heard.mean,
            mos_deviation=heard.deviation,
            mos_p05=None if worst is None else 1 + (worst + 0.5) * _MOS_STEP,
            mos_scale=_SCALES[(base - _MOS) // _SCALE] if heard.samples else None,
            loss_count=lost.samples,
            loss_percent=lost.mean,
            loss_deviation=lost.deviation,
        )

    def surely_bad(
        self,
        key: Key,
        measure: str,
        limit: float,
        seconds: float,
        now: float,
        *,
        min_samples: int,
        since: float | None = None,
    ) -> Verdict:
        """Whether a quality measure is worse than its limit, chance left aside.

        `bad` is None with fewer than `min_samples`, True only where the bound of the confidence
        interval (Wilson's for shares, normal for means; 99.9 %, one-sided) is past the limit; of a share
        of few calls, only where the binomial distribution itself says so, too.
        `pdd_p95_ms` is bad where surely more than 5 % of the delays are over the limit, by up to 5 %
        of it. `mos` is judged on each scale by itself: the one that is worst is said.
        Of a share `value` and `samples` are of what is known, without the setups that go on.
        A measure that is none of quality is a ValueError.
        """
        _, sums = self._sums(key, seconds, now, since)
        if measure in NUMERATORS:
            going = self.going[key.scope, key.value]
            return _judge_share(sums, measure, limit, min_samples, going)
        if measure == "pdd_p95_ms":
            return _judge_delays(sums, limit, min_samples)
        if measure == "loss_percent":
            return _judge_mean(_mean(sums, _LOSS), limit, min_samples, low_is_bad=False)
        if measure == "mos":
            verdicts = [
                _judge_mean(_mean(sums, _MOS + at * _SCALE), limit, min_samples, low_is_bad=True)
                for at in range(len(_SCALES))
            ]
            return min(verdicts, key=_seriousness)
        raise ValueError(f"{measure} is no measure of quality")

    def _count_going(self, cohort: Cohort, step: int) -> None:
        pairs = [("global", ""), *zip(cohort._fields, cohort, strict=True)]
        for pair in pairs:
            self.going[pair] += step
            if not self.going[pair]:
                del self.going[pair]

    def _turn(self, now: float) -> None:
        """Follow the clock; at each step let go the keys that are idle."""
        slot = floor(now / self._step)
        if slot <= self._slot:
            return
        self._slot = slot
        self._oldest = oldest = floor((now - self._longest) / self._step)
        idle = [key for key, series in self._series.items() if series.slot < oldest]
        for key in idle:
            del self._series[key]
        if idle:
            self._groups.clear()

    def _sums(
        self, key: Key, seconds: float, now: float, since: float | None
    ) -> tuple[int, Bucket]:
        """The first slot of a window, and all of its buckets added up."""
        self._turn(now)
        step = self._step
        first = floor((now - min(seconds, self._longest)) / step)
        if since is not None and (begun := ceil(since / step)) > first:
            first = begun
        else:
            since = None
        series = self._global if key.scope == "global" else self._series.get(key)
        return first, {} if series is None else series.since(first, (seconds, since))

    def _count(self, call: CallRecord, what: Sequence[int], trunk: str | None) -> None:
        group = self._group_of(call)
        self.folded += group.folded
        slot, oldest = self._slot, self._oldest
        for series in group.series:
            bucket = series.head if series.slot == slot else series.turn(slot, oldest)
            for each in what:
                bucket[each] = bucket.get(each, 0) + 1
        if trunk is not None:
            self._count_trunk(trunk, what)

    def _count_trunk(self, trunk: str, what: Sequence[int]) -> None:
        if "trunk" in self._scopes:
            series = self._series.get(("trunk", trunk)) or self._new("trunk", trunk)
            bucket = series.turn(self._slot, self._oldest)
            for each in what:
                bucket[each] = bucket.get(each, 0) + 1

    def _measure(
        self, call: CallRecord | None, base: int, value: float, also: int | None = None
    ) -> None:
        """Add a measured value to the sums that begin at `base`, of all that the call is of."""
        exact = round(value * _FINE)
        what = {base: 1, base + 1: exact, base + 2: exact * exact}
        if also is not None:
            what[also] = 1
        everybody = [self._global]
        if call is not None:
            group = self._group_of(call)
            self.folded += group.folded
            everybody = list(group.series)
            if call.trunk is not None and "trunk" in self._scopes:
                trunk = call.trunk
                everybody.append(self._series.get(("trunk", trunk)) or self._new("trunk", trunk))
        for series in everybody:
            _add(series.turn(self._slot, self._oldest), what.items())

    def _group_of(self, call: CallRecord) -> _Group:
        """The series of all that a call is of, but its trunk."""
        node = self._node_of(call) if self._nodes else None
        labels = (call.tenant, call.direction, call.region, node)
        group = self._groups.get(labels)
        if group is None:
            before = self.folded
            found = [self._global]
            for scope, value in zip(("tenant", "direction", "region", "node"), labels, strict=True):
                if value is not None and scope in self._scopes:
                    found.append(self._series.get((scope, value)) or self._new(scope, value))
            folded, self.folded = self.folded - before, before
            if len(self._groups) >= MAX_GROUPS:
                self._groups.clear()
            group = self._groups[labels] = _Group(tuple(found), folded)
        return group

    def _node_of(self, call: CallRecord) -> str:
        names = (self._nodes.get(agent_id) for agent_id in call.agent_ids)
        return next((name for name in names if name is not None), OTHER)

    def _new(self, scope: str, value: str) -> _Series:
        """Make room for a key that is not known; where there is none, it is that of `other`."""
        if len(self._series) >= self._max_keys and value != OTHER:
            self.folded += 1
            known = self._series.get((scope, OTHER))
            if known is not None:
                return known
            value = OTHER
        series = self._series[scope, value] = _Series(self._slot)
        return series


# -- places in a bucket


def _with_pdd(kind: int, pdd_ms: float | None) -> tuple[int, ...]:
    if pdd_ms is None:
        return (kind,)
    if pdd_ms < 1:
        return kind, _PDD
    return kind, _PDD + 1 + int(log(min(pdd_ms, _LONGEST_PDD)) / _PDD_STEP)


def _heard(mos: float) -> int:
    """The place of a MOS, from 1 to 5, in its histogram; steps of 0.05."""
    return int((mos - 1) / _MOS_STEP)


# -- buckets to figures


def _close(bucket: Bucket) -> Closed:
    return array("q", [*bucket, *bucket.values()])


def _pairs(closed: Closed) -> Iterable[tuple[int, int]]:
    half = len(closed) // 2
    return zip(closed[:half], closed[half:], strict=True)


def _add(sums: Bucket, pairs: Iterable[tuple[int, int]]) -> None:
    for key, value in pairs:
        sums[key] = sums.get(key, 0) + value


def _take(sums: Bucket, pairs: Iterable[tuple[int, int]]) -> None:
    for key, value in pairs:
        left = sums[key] - value
        if left:
            sums[key] = left
        else:
            del sums[key]


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _histogram(sums: Bucket, start: int, end: int) -> list[tuple[int, int]]:
    """Places, from 0 on, and how many are there; in order."""
    return sorted((key - start, count) for key, count in sums.items() if start <= key < end)


def _percentile(histogram: Sequence[tuple[int, int]], share: float) -> int | None:
    """The place of the value that so large a share is not over (nearest rank)."""
    rank = ceil(share * sum(count for _, count in histogram))
    seen = 0
    for place, count in histogram:
        seen += count
        if seen >= rank:
            return place
    return None


def _delay(place: int | None) -> float | None:
    """The middle of a place in the histogram of PDD, in milliseconds."""
    if place is None:
        return None
    return exp((place - 0.5) * _PDD_STEP) if place else 0.5


class _Mean(NamedTuple):
    samples: int
    mean: float | None
    deviation: float | None


def _mean(sums: Bucket, base: int) -> _Mean:
    """Mean and sample deviation of the values whose sums begin at `base`."""
    count = sums.get(base, 0)
    if not count:
        return _Mean(0, None, None)
    total = sums.get(base + 1, 0)
    mean = total / count / _FINE
    if count < 2:
        return _Mean(count, mean, None)
    spread = count * sums.get(base + 2, 0) - total * total  # whole numbers: exact
    return _Mean(count, mean, sqrt(spread / (count * (count - 1))) / _FINE)


# -- figures to verdicts


def _bounds(part: int, whole: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    share, square = part / whole, Z * Z
    middle = share + square / (2 * whole)
    spread = Z * sqrt(share * (1 - share) / whole + square / (4 * whole * whole))
    return (middle - spread) / (1 + square / whole), (middle + spread) / (1 + square / whole)


def _is_over(part: int, whole: int, limit: float) -> bool:
    """Whether a share is surely over its limit."""
    if _bounds(part, whole)[0] <= limit:
        return False
    return whole > FEW or _tail(part, whole, limit) < CHANCE


def _tail(part: int, whole: int, share: float) -> float:
    """The chance that so many or more of `whole` are it, where each is with the chance `share`."""
    return sum(
        comb(whole, count) * share**count * (1 - share) ** (whole - count)
        for count in range(part, whole + 1)
    )


def _judge_share(sums: Bucket, measure: str, limit: float, min_samples: int, going: int) -> Verdict:
    whole = sum(sums.get(kind, 0) for kind in SEIZURES)
    part = sum(sums.get(kind, 0) for kind in NUMERATORS[measure])
    value = _percent(part, whole)
    if whole < max(min_samples, 1):
        return Verdict(None, value, whole)
    if measure == "server_errors_percent":
        bad = _is_over(part, whole + going, limit / 100)
    else:
        bad = _is_over(whole - part, whole + going, 1 - limit / 100)
    return Verdict(bad, value, whole)


def _judge_delays(sums: Bucket, limit: float, min_samples: int) -> Verdict:
    delays = _histogram(sums, _PDD, _PDD_END)
    whole = sum(count for _, count in delays)
    value = _delay(_percentile(delays, 0.95))
    if whole < max(min_samples, 1):
        return Verdict(None, value, whole)
    # places that are over the limit from their lower edge on
    from_ = 2 + int(log(limit) / _PDD_STEP) if limit >= 1 else 1
    over = sum(count for place, count in delays if place >= from_)
    return Verdict(_is_over(over, whole, 0.05), value, whole)


def _judge_mean(found: _Mean, limit: float, min_samples: int, *, low_is_bad: bool) -> Verdict:
    if found.samples < min_samples or found.mean is None or found.deviation is None:
        return Verdict(None, found.mean, found.samples)
    spread = Z * found.deviation / sqrt(found.samples)
    bad = found.mean + spread < limit if low_is_bad else found.mean - spread > limit
    return Verdict(bad, found.mean, found.samples)


def _seriousness(verdict: Verdict) -> tuple[int, int, float]:
    """What is said first: what is bad, then what is known, of this the lowest; else the most calls."""
    order = {True: 0, False: 1, None: 2}[verdict.bad]
    samples = -verdict.samples if verdict.bad is None else 0
    return order, samples, verdict.value if verdict.value is not None else 0.0
