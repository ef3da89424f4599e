"""Minutes of figures to alarms: what is surely not normal for this hour of the week.

A series is all calls, one value of a dimension, or one combination of tenant, trunk, direction and
region; those with a trunk or carrier count attempts, all others calls. Minutes are counted by when
setups ended; own refusals and overflows are in no count. Hours and weekdays are those of UTC.

What a series has of its own past counts once there are `arm_hours` of it. Until then that of all calls
does, and while there is not enough of that either, only what no healthy trunk has is an alarm (`COLD`).

Minutes in which an alarm of a series holds teach it nothing, nor do those of incidents (`exclude`); what
lasts longer than two days is the new normal, and is learned from then on.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from sipsidecar.signals.alarms import (
    CATEGORIES,
    DIMENSIONS,
    PAGE,
    TREND,
    WARN,
    Alarm,
    Scope,
    Share,
    scope_text,
)
from sipsidecar.signals.baseline import Baseline
from sipsidecar.signals.burning import Burning, Objective
from sipsidecar.signals.gathering import (
    JITTER_COUNT,
    JITTER_SUM,
    PDD_PLACES,
    Cell,
    Key,
    add,
    codes_of,
    gather,
    gather_codes,
    matches,
    pairs_of,
    scopes_of,
    source_of,
)
from sipsidecar.signals.gauges import Gauge
from sipsidecar.signals.levels import Levels
from sipsidecar.signals.minutes import DELAY_BOUNDS_MS, CodeMinute, KpiMinute
from sipsidecar.signals.phrasing import (
    TOP,
    More,
    budget_alarm,
    figures_of,
    gauge_alarm,
    level_alarm,
    rate_alarm,
    surplus,
    volume_alarm,
)
from sipsidecar.signals.rates import Finding, Normal, Rates
from sipsidecar.signals.ratios import percentile
from sipsidecar.signals.series import (
    COUNTED,
    FIRST,
    INEFFECTIVE,
    JITTER,
    MINUTES,
    PDD,
    TOTAL,
    UNANSWERED,
    WIDTH,
    History,
    MinuteRates,
    Ring,
)


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One objective: a share of good setups that is promised over 30 days."""

    name: str
    measure: Literal["asr", "ner"] = "ner"
    objective_percent: float
    scope: str = "all"
    """`all`, or pairs such as `trunk=acme,direction=in`."""


class DetectorError(ValueError):
    """Settings of detectors that cannot be; the message is one line that says which and why."""


MAX_SLOS: Final = 50
MAX_NAME: Final = 64
_NAME_SIGNS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def check_slos(slos: Sequence[Slo]) -> None:
    """Find what is wrong with objectives; DetectorError says which."""
    names: set[str] = set()
    for place, slo in enumerate(slos, 1):
        why = None
        if place > MAX_SLOS:
            why = f"there are more than {MAX_SLOS}"
        elif not 0 < len(slo.name) <= MAX_NAME or not _NAME_SIGNS.issuperset(slo.name):
            why = f"name: expected 1 to {MAX_NAME} letters, digits, dots, _ or -, got {slo.name!r}"
        elif slo.name in names:
            why = f"name: {slo.name!r} stands there twice"
        elif not 0 < slo.objective_percent < 100:
            why = f"objective_percent: expected more than 0 and less than 100, got {slo.objective_percent}"
        else:
            try:
                _scope_of(slo.scope)
            except ValueError as error:
                why = f"scope: {error}"
        if why is not None:
            raise DetectorError(f"slo {place}: {why}")
        names.add(slo.name)


def _scope_of(text: str) -> Scope:
    """A scope as it is written; ValueError says what is wrong with it."""
    if text == "all":
        return ()
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in DIMENSIONS or not value or name in pairs:
            raise ValueError(
                f"expected all, or pairs such as trunk=acme,direction=in of {', '.join(DIMENSIONS)},"
                f" got {text!r}"
            )
        pairs[name] = value
    return tuple((name, pairs[name]) for name in DIMENSIONS if name in pairs)


SEVERITY: Final = {**dict.fromkeys(CATEGORIES, TREND), "4xx": WARN, "5xx": PAGE, "6xx": PAGE}
"""What is not configured otherwise."""
COLD: Final = {"4xx": 0.5, "5xx": 0.2, "6xx": 0.3}
"""Shares that are taken for normal where nothing is known: only what no healthy trunk has is an alarm."""

MINUTE_US: Final = 60_000_000
MAX_COHORTS: Final = 4000
"""Combinations of labels whose last hour is kept, to divide an excess among."""
MAX_KNOWN: Final = 20_000
"""Combinations whose series are remembered; more are found one by one again."""
NEW_NORMAL: Final = 48 * 60
"""Minutes after which what holds is learned."""
CLOCK_WAS_SET: Final = 10
"""Minutes that one may come late; the clock of one that comes later was set back."""
LONGEST: Final = 60
SLOW_MINUTES: Final = 30
"""In which slow calls are counted: a smoothed gauge stays over its limit for so long after them."""
PDD_FLOOR_MS: Final = 200.0
JITTER_FLOOR_MS: Final = 5.0
_DAY: Final = 1440
_BUDGET: Final = 80
"""Of one slice, in looks at a series: about 2 ms."""
_ROWS: Final = 100
"""Rows of figures in one slice; of cohorts half as many."""
_COLUMN_OF: Final = {
    **{category: FIRST + place for place, category in enumerate(CATEGORIES)},
    "asr": UNANSWERED,
    "ner": INEFFECTIVE,
}
_MIX_MOST: Final = 1_000_000
_ALARM_COST: Final = 40
_TAKEN_BACK: Final = 180
"""Minutes before an alarm that are left out with it at most."""


class DetectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What detectors are told by the configuration."""

    method: Literal["binomial", "three_sigma"] = "binomial"
    severities: Mapping[str, str] = msgspec.field(default_factory=lambda: SEVERITY)
    inbound: tuple[str, ...] = ("inbound",)
    """Directions whose ASR and NER have a fixed threshold."""
    answer_percent: float = 90.0
    """That threshold."""
    slos: tuple[Slo, ...] = ()
    arm_hours: float = 24.0
    """Data that a baseline needs before it is used; until then the fleet's own, of all calls, is."""


class _Series:
    """Everything about one series."""

    __slots__ = (
        "codes", "cohorts", "fixed", "history", "jitter", "learned_at", "levels", "mix", "normal",
        "pdd", "phi", "quiet", "rates", "scope", "slow", "source", "stagger",
    )  # fmt: skip

    def __init__(
        self, source: str, scope: Scope, history: History, fixed: float | None, *, stagger: int
    ) -> None:
        self.source = source
        self.scope = scope
        self.history = history
        self.fixed = fixed
        """The share that ASR must have, if it is not its usual one."""
        self.quiet = source == "trunk" and not scope
        """Only for others to learn from: of all calls there is one alarm, that of the calls."""
        self.rates = Rates()
        self.levels = Levels()
        self.pdd = Gauge(PDD_FLOOR_MS)
        self.slow: deque[tuple[int, int, int]] = deque(maxlen=SLOW_MINUTES)
        """Of the last minutes with calls: which one, how many were slow, and how many there were."""
        self.jitter = Gauge(JITTER_FLOOR_MS)
        self.codes: deque[tuple[int, ...]] = deque(maxlen=LONGEST)
        """Code, count, code, count ... of each of the last minutes."""
        self.cohorts: set[Key] = set()
        """Those of the last hour that are of it."""
        self.mix: dict[int, int] = {}
        """How often each code was there while nothing was wrong."""
        self.normal: Normal | None = None
        self.phi: list[float] | None = None
        self.learned_at = 0
        self.stagger = stagger

    @property
    def holding(self) -> bool:
        return self.rates.holding or self.levels.holding

    def is_due(self, minute: int) -> bool:
        """Whether it is to learn how much its counts spread, and where its gauges usually are."""
        return self.phi is None or minute - self.learned_at >= _DAY + self.stagger

    def slow_calls(self, minute: int) -> tuple[int, int]:
        """Slow calls, and all, of the last minutes: where they are is the trouble.

        A percentile does not tell: it is the same for a trunk and for all that it is a part of.
        """
        found = [one for one in self.slow if one[0] > minute - SLOW_MINUTES]
        return sum(slow for _, slow, _ in found), sum(calls for _, _, calls in found)


class Detectors:
    """Every detector over every series, fed one closed minute after the other."""

    def __init__(self, settings: DetectorSettings, baseline: Baseline) -> None:
        self._settings = settings
        self._baseline = baseline
        self._severities = {**SEVERITY, **settings.severities}
        self._armed = settings.arm_hours * 60
        self._fixed = settings.answer_percent / 100
        self._minute = 0
        self._loads = baseline.loads
        self._series: dict[str, _Series] = {}
        self._known: dict[Key, tuple[_Series, ...]] = {}
        self._rings: dict[Key, Ring] = {}
        self._shares: dict[tuple[str, int, int], list[Share]] = {}
        self._objectives = [_Promise(slo, baseline) for slo in settings.slos]
        self._promised = frozenset(promise.name for promise in self._objectives)
        self.late = 0
        """Minutes that came after a later one: they are not looked at."""
        self.unshared = 0
        """Cohorts of a minute that an excess cannot be divided among, for want of room."""

    @property
    def series(self) -> int:
        """How many series are looked after."""
        return len(self._series)

    @property
    def folded(self) -> int:
        """How often a cohort of a minute had no series of its own, for want of room."""
        return self._baseline.folded

    def receive_minute(
        self, minute_at: int, kpis: Sequence[KpiMinute], codes: Sequence[CodeMinute]
    ) -> list[Alarm]:
        """All rows of one minute that is over: alarms that hold or end.

        A minute without any calls is fed, too; one in which the sidecar was not there is not: no data
        is not zero.
        """
        return [alarm for part in self.look(minute_at, kpis, codes) for alarm in part]

    def look(
        self, minute_at: int, kpis: Sequence[KpiMinute], codes: Sequence[CodeMinute]
    ) -> Iterator[list[Alarm]]:
        """As `receive_minute`, in slices of a few milliseconds; all of them must be asked for."""
        minute = minute_at // MINUTE_US
        if minute <= self._minute:
            self.late += 1
            if minute > self._minute - CLOCK_WAS_SET:
                return
            self._begin_again()
        self._shares.clear()
        if self._loads != self._baseline.loads:
            self._loads = self._baseline.loads
            for series in self._series.values():
                series.normal = series.phi = None
        if minute // 60 != self._minute // 60:
            self._forget(minute)
        self._minute = minute
        cells: dict[Key, Cell] = {}
        for start in range(0, len(kpis), _ROWS):
            gather(cells, kpis[start : start + _ROWS])
            yield []
        for start in range(0, len(codes), 2 * _ROWS):
            gather_codes(cells, codes[start : start + 2 * _ROWS])
            yield []
        sums: dict[str, Cell] = {}
        for place, (key, cell) in enumerate(cells.items(), 1):
            self._divide(key, cell, sums, minute)
            if not place % (_ROWS // 2):
                yield []
        yield from self._judge_all(sums, minute)
        for promise in self._objectives:
            promise.push(minute, cells)
            burning = promise.objective.look()
            yield [] if burning is None else [promise.alarm(burning, minute)]

    def shares(self, alarm: Alarm) -> list[Share]:
        """How calls and failures of an alarm's category were divided among cohorts in its time.

        All cohorts with calls, also those outside of the alarm's scope. Empty of gauges and volume.
        """
        source = source_of(alarm.scope)
        column = _COLUMN_OF.get(alarm.category)
        for promise in self._objectives:
            if promise.category == alarm.category:
                column = promise.column
        if column is None:
            return []
        size = alarm.evidence.get("minutes")
        minutes = min(size, LONGEST) if isinstance(size, int) and size > 0 else 5
        found = self._shares.get((source, column, minutes))
        if found is None:
            of_alarm = self._series.get(f"{source}:{scope_text(alarm.scope)}")
            of_alarm = of_alarm or self._series.get(f"{source}:all")
            found = self._divided(source, column, minutes, of_alarm)
            self._shares[source, column, minutes] = found
        return list(found)

    def exclude(self, alarm_scope: tuple[tuple[str, str], ...], since: int, until: int) -> None:
        """Let minutes of an incident not become normal: what they taught is taken back.

        Of all series within the scope, at most two days from `since` on. A wider series that the
        incident could be seen in had an alarm of its own, and has left these minutes out by itself.
        It may be told again and again while an incident lasts.
        """
        first = since // MINUTE_US
        last = min((until - 1) // MINUTE_US, first + NEW_NORMAL)
        pairs = frozenset(alarm_scope)
        for series in self._series.values():
            if pairs.issubset(series.scope) and series.history.leave_out(first, last):
                series.normal = None

    def _begin_again(self) -> None:
        """Forget all that is of single minutes, but nothing of what was learned."""
        self._minute = 0
        self._rings.clear()
        self._known.clear()
        for series in self._series.values():
            series.history.begin_again()
        for promise in self._objectives:
            promise.objective.begin_again()
        self._series.clear()

    # -- rows to series

    def _divide(self, key: Key, cell: Cell, sums: dict[str, Cell], minute: int) -> None:
        """Add one cohort's minute to all series that it is of."""
        ring = self._rings.get(key)
        if ring is None and len(self._rings) < MAX_COHORTS:
            ring = self._rings[key] = Ring(LONGEST + 1, WIDTH, minute)
        if ring is None:
            self.unshared += 1
        else:
            ring.push(minute, pairs_of(cell))
        known = self._known.get(key)
        if known is None:
            known = self._find_series(key)
        for series in known:
            series.cohorts.add(key)
            into = sums.get(series.history.name)
            if into is None:
                sums[series.history.name] = dict(cell)
            else:
                add(into, cell)

    def _find_series(self, key: Key) -> tuple[_Series, ...]:
        source = key[0]
        found = []
        complete = True
        for scope in scopes_of(key):
            name = f"{source}:{scope_text(scope)}"
            series = self._series.get(name)
            if series is None:
                history = self._baseline.history(name)
                if history is None:
                    complete = False
                    continue
                inbound = any(
                    dimension == "direction" and value in self._settings.inbound
                    for dimension, value in scope
                )
                series = self._series[name] = _Series(
                    source,
                    scope,
                    history,
                    self._fixed if inbound else None,
                    stagger=len(self._series) % 60,
                )
                history.last_data = self._minute
                if self._settings.method == "three_sigma" and history.rates is None:
                    history.rates = MinuteRates()
            found.append(series)
        if complete:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = tuple(found)
        return tuple(found)

    def _forget(self, minute: int) -> None:
        """Let go of what was not seen for long; once an hour."""
        gone = self._baseline.forget(minute, self._promised)
        if gone:
            for name in gone:
                self._series.pop(name, None)
            self._known.clear()
        for key in [key for key, ring in self._rings.items() if ring.minute < minute - LONGEST]:
            del self._rings[key]
        for series in self._series.values():
            series.cohorts &= self._rings.keys()

    # -- series to alarms

    def _judge_all(self, sums: Mapping[str, Cell], minute: int) -> Iterator[list[Alarm]]:
        batch: list[Alarm] = []
        cost = 0
        for name, series in list(self._series.items()):
            if series.is_due(minute) and cost:
                yield batch  # what it learns is a slice of its own
                batch, cost = [], 0
            cost += self._prepare(series, minute)
            found = self._judge(series, sums.get(name), minute)
            batch += found
            cost += 1 + _ALARM_COST * len(found)
            if cost >= _BUDGET:
                yield batch
                batch, cost = [], 0
        yield batch

    def _prepare(self, series: _Series, minute: int) -> int:
        """Know what is normal in this hour; returns what that cost."""
        hour = minute // 60
        normal = series.normal
        cost = 0
        if series.is_due(minute):
            history = series.history
            series.phi, series.learned_at = history.spread(), minute
            least = self._settings.arm_hours
            series.pdd.learn(history.gauges(PDD), least)
            series.jitter.learn(history.gauges(JITTER), least)
            normal, cost = None, _BUDGET
        if normal is None or normal.hour != hour:
            series.normal = self._normal(series, hour)
            cost += 4
        return cost

    def _normal(self, series: _Series, hour: int) -> Normal:
        history = series.history
        if history.sums[MINUTES] >= self._armed:
            return Normal(
                hour, "own", history.expect(hour, series.phi), series.phi, history.volume(hour)
            )
        fleet = self._series.get(f"{series.source}:all")
        if fleet is not None and fleet.history.sums[MINUTES] >= self._armed:
            # How often calls are answered is each trunk's own.
            usual = fleet.history.expect(hour)[: len(CATEGORIES)]
            return Normal(hour, "fleet", [*usual, None, None])
        return Normal(hour, "cold", [COLD.get(category) for category in COUNTED])

    def _judge(self, series: _Series, cell: Cell | None, minute: int) -> list[Alarm]:
        history, normal = series.history, series.normal
        assert normal is not None
        ring = history.push(minute, pairs_of(cell) if cell else ())
        codes = codes_of(cell) if cell else ()
        series.codes.append(codes)
        alarms: list[Alarm] = []
        if not series.quiet:
            if history.rates is None or self._settings.method == "binomial":
                findings = series.rates.look(ring, normal)
            else:
                findings = series.rates.look_for_sigmas(ring, history.rates, self._armed)
            levels = series.levels.look(ring, normal, series.fixed)
            if findings or levels:
                for finding in (*findings, *levels):
                    held = finding.held
                    if minute - held.fired < NEW_NORMAL:
                        since = max(held.since, held.fired - _TAKEN_BACK, ring.first)
                        history.leave_out(since, minute)
                    alarms.append(self._alarm(series, normal, finding, minute))
            gauges = self._look_at_gauges(series, cell, minute)
            if gauges:
                alarms += gauges
        if codes and not series.holding:
            _learn_mix(series.mix, codes)
        return alarms

    def _look_at_gauges(self, series: _Series, cell: Cell | None, minute: int) -> list[Alarm]:
        if cell:
            delays = [cell.get(place, 0) for place in PDD_PLACES]
            calls = sum(delays)
            if calls:
                slow = sum(delays[_slow_from(series.pdd) :])
                series.slow.append((minute, int(slow), int(calls)))
                enough = series.pdd.gather(minute, delays, calls)
                if enough is not None:
                    value = percentile([int(each) for each in enough], DELAY_BOUNDS_MS, 0.95)
                    assert value is not None
                    series.pdd.read(minute, value)
            streams = cell.get(JITTER_COUNT, 0)
            if streams:
                enough = series.jitter.gather(minute, (cell[JITTER_SUM], streams), streams)
                if enough is not None:
                    series.jitter.read(minute, enough[0] / enough[1])
        alarms = []
        for source, which, gauge in (("pdd", PDD, series.pdd), ("jitter", JITTER, series.jitter)):
            if gauge.value is None:
                continue
            finding = gauge.look(source, minute)
            if finding is not None:
                slow_calls = series.slow_calls(minute) if gauge is series.pdd else None
                alarms.append(gauge_alarm(series.scope, finding, minute, gauge.limit, slow_calls))
            if finding is None or minute - finding.held.fired >= NEW_NORMAL:
                series.history.mark(minute // 60, which, gauge.value)
        return alarms

    def _alarm(self, series: _Series, normal: Normal, finding: Finding, minute: int) -> Alarm:
        scope, ring, column = series.scope, series.history.ring, finding.column
        assert ring is not None
        if finding.source == "volume":
            return volume_alarm(scope, normal, finding, minute)
        size = figures_of(finding.held)
        usual = finding.expected if finding.source == "three-sigma" else normal.p[column - FIRST]
        counted = ring.sums(size)
        more = More(
            surplus(
                list(series.codes)[-size:], series.mix, column, counted[TOTAL] * (usual or 0.0)
            ),
            self._by_value(series, "trunk", column, size),
            self._severities,
        )
        if column in (UNANSWERED, INEFFECTIVE):
            return level_alarm(scope, normal, finding, minute, counted, series.fixed, more)
        cusum = series.rates.cusum(column)
        return rate_alarm(scope, normal, finding, minute, counted, cusum, more)

    def _by_value(self, series: _Series, dimension: str, column: int, size: int) -> dict[str, int]:
        """How many failed by value of a dimension, most first; nothing where the scope says it."""
        if any(name == dimension for name, _ in series.scope):
            return {}
        place = 1 + DIMENSIONS.index(dimension)
        first = self._minute - size + 1
        found: Counter[str] = Counter()
        for key in series.cohorts:
            ring = self._rings.get(key)
            if ring is not None and key[place] and ring.minute >= first:
                found[key[place]] += ring.between(first, self._minute)[column]
        most = sorted((one for one in found.items() if one[1]), key=lambda one: (-one[1], one[0]))
        return dict(most[:TOP])

    def _divided(
        self, source: str, column: int, minutes: int, of_alarm: _Series | None
    ) -> list[Share]:
        first = self._minute - minutes + 1
        usual = None
        if of_alarm is not None and of_alarm.normal is not None:
            usual = of_alarm.normal.p[column - FIRST]
        found = []
        for key, ring in self._rings.items():
            if key[0] != source or ring.minute < first:
                continue
            counted = ring.between(first, self._minute)
            total = counted[TOTAL]
            if not total:
                continue
            # The narrowest series that knows its own past says what is normal for the cohort.
            known = min(
                (
                    series
                    for series in self._known.get(key, ())
                    if series.normal is not None and series.normal.known == "own"
                ),
                key=lambda one: one.history.sums[TOTAL],
                default=None,
            )
            share = usual
            if known is not None and known.normal is not None:
                share = known.normal.p[column - FIRST]
            found.append(Share(key[1:], total, counted[column], total * (share or 0.0)))
        return found


class _Promise:
    """One objective, and the cohorts that it is of."""

    def __init__(self, slo: Slo, baseline: Baseline) -> None:
        self.slo = slo
        self.scope = _scope_of(slo.scope)
        self.source = source_of(self.scope)
        self.category = f"slo-{slo.name}"
        self.name = f"slo:{slo.name}"
        self.column = UNANSWERED if slo.measure == "asr" else INEFFECTIVE
        self.objective = Objective(
            1 - slo.objective_percent / 100, self.column, baseline.history(self.name)
        )

    def push(self, minute: int, cells: Mapping[Key, Cell]) -> None:
        """Take in one whole minute of all cohorts."""
        total = bad = 0
        for key, cell in cells.items():
            if key[0] == self.source and matches(key, self.scope):
                calls = int(cell.get(TOTAL, 0))
                total += calls
                bad += min(int(cell.get(self.column, 0)), calls)
        self.objective.push(minute, total, bad)

    def alarm(self, burning: Burning, minute: int) -> Alarm:
        """What the objective says, as an alarm."""
        counted = self.objective.counts(burning.pair.long)
        return budget_alarm(
            self.scope, burning, minute, counted, self.slo.name, self.slo.measure,
            self.slo.objective_percent,
        )  # fmt: skip


def _slow_from(gauge: Gauge) -> int:
    """The first bucket of PDD whose calls are slow: over the limit, or with it, not with the usual."""
    usual, limit = gauge.usual, gauge.limit
    if usual is None or limit is None:
        return len(DELAY_BOUNDS_MS)
    return max(bisect_left(DELAY_BOUNDS_MS, usual) + 1, bisect_left(DELAY_BOUNDS_MS, limit))


def _learn_mix(mix: dict[int, int], codes: Sequence[int]) -> None:
    for code, count in zip(codes[::2], codes[1::2], strict=True):
        mix[code] = mix.get(code, 0) + count
        if mix[code] > _MIX_MOST:
            for each in mix:
                mix[each] //= 2
