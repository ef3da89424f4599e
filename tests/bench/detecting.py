"""Detectors over simulated series: how often they cry for nothing, and how soon they see what is wrong.

    make bench-detect
    make bench-detect ARGS="--runs 50 --days 50 --only drift"
    make bench-detect ARGS="--cost 500"

The series are those of standards 5.1. Arrivals are Poisson; their rate is that of the busy hours, of which
three in the night have 8 %, and trouble begins while it is so. A minute is told when it is over. Each run
has seven days of history of its own, of which the baseline is told the hours, and the three-sigma rule
the minutes. Everything else is the program's own. An alarm that comes again within 30 minutes of its end
is the same episode, as incidents have it. Delays count from the first minute of the trouble (or of its
ramp), and what was not seen in two hours is a miss.

Exit code 1 when a target is missed.
"""

import argparse
import json
import math
import multiprocessing
import random
import resource
import secrets
import statistics
import sys
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from sipsidecar.signals.alarms import CATEGORIES
from sipsidecar.signals.baseline import Baseline, BaselineHour
from sipsidecar.signals.detectors import Detectors, DetectorSettings
from sipsidecar.signals.minutes import CodeMinute, KpiMinute

CODES: Final = {"4xx": 403, "5xx": 503, "6xx": 603}
WEEK: Final = 7 * 1440
HOUR_US: Final = 3_600_000_000
MINUTE_US: Final = 60_000_000
MERGE: Final = 30
HORIZON: Final = 120
WARM: Final = 120
"""Minutes before the trouble."""
BUSY: Final = 12 * 60
"""Minute of the day from which on trouble begins, for four hours; it is busy until six hours later."""
NULL_DAYS: Final = 5
"""Days of one run without trouble."""
OURS: Final = ("rate", "drift")
METHODS: Final = ("S", "B", "C", "BC")
OTHERS: Final = "others"
"""ASR, NER and volume of the same series."""


class Minute(NamedTuple):
    calls: int
    failed: int


@lru_cache(20_000)
def _table(mean: float) -> tuple[int, list[float]]:
    """Where the distribution begins, and its sums from there."""
    spread = 9 * math.sqrt(mean) + 12
    first = max(0, int(mean - spread))
    log_first = first * math.log(mean) - mean - math.lgamma(first + 1)
    term, terms = math.exp(log_first), []
    for k in range(first, int(mean + spread) + 1):
        terms.append(term)
        term *= mean / (k + 1)
    return first, list(accumulate(terms))


def poisson(dice: random.Random, mean: float) -> int:
    """A Poisson number; means are rounded to three digits, so that few tables are needed."""
    if mean <= 0:
        return 0
    first, sums = _table(float(f"{mean:.3g}"))
    return first + bisect(sums, dice.random() * sums[-1])


@dataclass(frozen=True)
class Series:
    """One kind of series: minutes of the simulated clock to shares."""

    name: str
    category: str
    share: float
    per_minute: float
    night: float = 0.0
    """How much the share is up at three in the night, and down at three in the afternoon."""
    wander: float = 0.0
    """Deviation of the share from hour to hour, in parts of it."""
    poisoned: bool = False
    """Three hours of the history are an outage."""
    stationary: bool = True

    def history(self, dice: random.Random, start: int) -> list[Minute]:
        """The week before minute `start`."""
        poison = range(0)
        if self.poisoned:
            # Not the hour of the week of what comes: incidents are left out where they are known.
            first = start - WEEK + 1440 + dice.randrange(4 * 1440)
            poison = range(first, first + 180)
        levels = self.levels(dice)
        return [
            self.draw(dice, minute, 0.6 if minute in poison else next(levels) * self.usual(minute))
            for minute in range(start - WEEK, start)
        ]

    def levels(self, dice: random.Random) -> Iterator[float]:
        """What the share is multiplied by, minute for minute."""
        while True:
            level = max(0.2, dice.gauss(1, self.wander)) if self.wander else 1.0
            for _ in range(60):
                yield level

    def usual(self, minute: int) -> float:
        """The share that is normal in a minute."""
        if not self.night:
            return self.share
        return self.share + self.night * math.cos(2 * math.pi * (minute % 1440 - 180) / 1440)

    def draw(self, dice: random.Random, minute: int, share: float) -> Minute:
        """One minute's calls."""
        share = min(max(share, 0.0), 1.0)
        calls = self.per_minute * _busy(minute % 1440)
        failed = poisson(dice, calls * share)
        return Minute(poisson(dice, calls * (1 - share)) + failed, failed)


@cache
def _busy(minute: int) -> float:
    """The part of the busy hours' calls that a minute of the day has."""
    day = 0.5 - 0.5 * math.cos(2 * math.pi * (minute - 180) / 1440)
    return min(0.08 + 1.1 * day, 1.0)


@dataclass(frozen=True)
class Trouble:
    """One event: the share by minutes since it began; `bound` is what the product must reach."""

    name: str
    series: Series
    share: Callable[[int, float], float]
    """Of minutes since the beginning, and the usual share."""
    gap: int = 0
    """Minutes just before in which the sidecar was not there."""
    median: float | None = None
    p95: float | None = None
    miss: float | None = None


def _step(share: float) -> Callable[[int, float], float]:
    return lambda _, __: share


def _ramp(share: float) -> Callable[[int, float], float]:
    return lambda minute, usual: usual + (share - usual) * min((minute + 1) / 30, 1.0)


def _series(category: str, share: float, per_minute: float, **more: float) -> Series:
    name = f"{category} {100 * share:g} %, {per_minute:g}/min"
    return Series(name, category, share, per_minute, **more)  # type: ignore[arg-type]


SEASONAL: Final = Series(
    "4xx seasonal 6 -> 14 % at night, 100/min", "4xx", 0.10, 100, night=0.04, stationary=False
)
POISONED: Final = Series(
    "4xx 8 %, 30/min, 3 h outage in the baseline", "4xx", 0.08, 30, poisoned=True
)
NULLS: Final = (
    _series("4xx", 0.08, 300),
    _series("4xx", 0.08, 30),
    _series("4xx", 0.08, 3),
    _series("4xx", 0.08, 0.2),
    _series("5xx", 0.005, 300),
    _series("5xx", 0.005, 30),
    _series("5xx", 0.005, 3),
    _series("6xx", 0.0005, 30),
    SEASONAL,
    Series("4xx 8 %, real 15 % hourly wander, 300/min", "4xx", 0.08, 300, wander=0.15,
           stationary=False),
    POISONED,
)  # fmt: skip
FALSE_A_DAY: Final = 0.15


def _outage(per_minute: float) -> Series:
    return _series("5xx", 0.005, per_minute)


def _drift(per_minute: float, **bounds: float) -> Trouble:
    return Trouble(
        f"drift 4xx 8 -> 12 % over 30 min, {per_minute:g}/min",
        _series("4xx", 0.08, per_minute),
        _ramp(0.12),
        **bounds,  # type: ignore[arg-type]
    )


POISONED_OUTAGE: Final = Series("", "5xx", 0.005, 30, poisoned=True)
TROUBLES: Final = (
    Trouble("outage 5xx 0.5 -> 60 %, 300/min", _outage(300), _step(0.6), p95=1, miss=0),
    Trouble("outage 5xx 0.5 -> 60 %, 30/min", _outage(30), _step(0.6), p95=1, miss=0),
    Trouble("outage 5xx 0.5 -> 60 %, 3/min", _outage(3), _step(0.6), p95=5, miss=0),
    Trouble("outage 5xx 0.5 -> 100 %, 0.2/min", _outage(0.2), _step(1.0)),
    Trouble("partial outage 5xx 0.5 -> 5 %, 100/min", _outage(100), _step(0.05)),
    Trouble("partial outage 5xx 0.5 -> 3 %, 300/min", _outage(300), _step(0.03)),
    _drift(300, median=25, miss=5),
    _drift(100, median=33, miss=5),
    _drift(30, median=55, miss=5),
    _drift(10),
    Trouble("drift 4xx 8 -> 20 % over 30 min, 30/min", _series("4xx", 0.08, 30), _ramp(0.2)),
    Trouble("step 4xx +8 points, 100/min, seasonal", SEASONAL, lambda _, usual: usual + 0.08),
    Trouble("outage 5xx 60 %, 30/min, poisoned baseline", POISONED_OUTAGE, _step(0.6), p95=1),
    Trouble("step 4xx 8 -> 20 %, 30/min, poisoned baseline", POISONED, _step(0.2)),
    Trouble("outage 5xx 60 % after a gap of 20 min, 100/min", _outage(100), _step(0.6), gap=20,
            p95=1, miss=0),
)  # fmt: skip
STRAY: Final = "one stray 603 on a series without any"


# ------------------------------------------------------------------------------------ the program


class Watched:
    """The program's detectors over one series, by one method."""

    def __init__(self, series: Series, history: Sequence[Minute], start: int, method: str) -> None:
        self._series = series
        self._column = CATEGORIES.index(series.category)
        baseline = Baseline()
        baseline.load(self._rows(history, start, by_minute=method == "three_sigma"))
        self._detectors = Detectors(DetectorSettings(method=method), baseline)  # type: ignore[arg-type]

    def _rows(
        self, history: Sequence[Minute], start: int, *, by_minute: bool
    ) -> Iterator[BaselineHour]:
        zeros = [0] * len(CATEGORIES)
        for first in range(0, len(history), 60):
            part = history[first : first + 60]
            calls, failed = sum(one.calls for one in part), sum(one.failed for one in part)
            counts = zeros.copy()
            counts[self._column] = failed
            rates = [one.failed / one.calls for one in part if one.calls] if by_minute else []
            sums, squares = [0.0] * len(zeros), [0.0] * len(zeros)
            sums[self._column] = sum(rates)
            squares[self._column] = sum(rate * rate for rate in rates)
            yield BaselineHour(
                received_at=0,
                hour_at=(start - WEEK + first) // 60 * HOUR_US,
                series="call:all",
                minutes=len(part),
                total=calls,
                answered=calls - failed,
                effective=calls - failed,
                counts=tuple(counts),
                rate_minutes=len(rates),
                rate_sums=tuple(sums) if by_minute else (),
                rate_squares=tuple(squares) if by_minute else (),
            )

    def look(self, minute: int, seen: Minute) -> set[str]:
        """Feed one minute; the sources of the alarms that hold."""
        calls, failed = seen
        kpis, codes = [], []
        if calls:
            kpis.append(
                KpiMinute(
                    received_at=0, minute_at=minute * MINUTE_US, source="call", attempts=calls,
                    seizures=calls, answered=calls - failed, effective=calls - failed,
                )
            )  # fmt: skip
        if failed:
            codes.append(
                CodeMinute(
                    received_at=0, minute_at=minute * MINUTE_US, source="call",
                    code=CODES[self._series.category], count=failed,
                )
            )  # fmt: skip
        alarms = self._detectors.receive_minute(minute * MINUTE_US, kpis, codes)
        return {alarm.source for alarm in alarms if alarm.active}


class Pair:
    """Both methods over the same minutes."""

    def __init__(self, series: Series, dice: random.Random, start: int) -> None:
        history = series.history(dice, start)
        self._ours = Watched(series, history, start, "binomial")
        self._usual = Watched(series, history, start, "three_sigma")

    def look(self, minute: int, seen: Minute) -> dict[str, bool]:
        """What holds, by method."""
        ours, usual = self._ours.look(minute, seen), self._usual.look(minute, seen)
        return {
            "S": "three-sigma" in usual,
            "B": "rate" in ours,
            "C": "drift" in ours,
            "BC": bool(ours.intersection(OURS)),
            OTHERS: bool(ours.intersection(("asr", "ner", "volume"))),
        }


def _start(dice: random.Random) -> int:
    """A whole hour of some week."""
    return 60 * (480_000 + dice.randrange(168))


def episodes(series: Series, seed: int, days: int = NULL_DAYS) -> dict[str, int]:
    """How many episodes each method had in days without trouble."""
    dice = random.Random(seed)
    start = _start(dice)
    pair = Pair(series, dice, start)
    levels = series.levels(dice)
    found = dict.fromkeys((*METHODS, OTHERS), 0)
    last = dict.fromkeys(found, -MERGE - 1)
    for minute in range(start, start + days * 1440):
        seen = series.draw(dice, minute, next(levels) * series.usual(minute))
        for method, holds in pair.look(minute, seen).items():
            if holds:
                found[method] += minute - last[method] > MERGE
                last[method] = minute
    return found


def delays(trouble: Trouble, seed: int) -> dict[str, int | None]:
    """Minutes from the beginning to the first alarm by method; None: not in the time."""
    dice = random.Random(seed)
    series = trouble.series
    began = _start(dice) // 1440 * 1440 + BUSY + dice.randrange(240)
    start = began // 60 * 60 - WARM
    pair = Pair(series, dice, start)
    levels = series.levels(dice)
    found: dict[str, int | None] = dict.fromkeys(METHODS)
    for minute in range(start, began + HORIZON):
        usual = next(levels) * series.usual(minute)
        if minute < began:
            if minute < began - trouble.gap:
                pair.look(minute, series.draw(dice, minute, usual))
            continue
        seen = series.draw(dice, minute, trouble.share(minute - began, usual))
        holds = pair.look(minute, seen)
        for method in METHODS:
            if holds[method] and found[method] is None:
                found[method] = minute - began + 1
        if None not in found.values():
            break
    return found


def stray(seed: int) -> dict[str, bool]:
    """Which methods cry at a single 603 where there never was one."""
    dice = random.Random(seed)
    series = Series("", "6xx", 0.0, 30)
    start = _start(dice)
    pair = Pair(series, dice, start)
    found = dict.fromkeys(METHODS, False)
    for minute in range(start, start + WARM + HORIZON):
        seen = series.draw(dice, minute, 0.0)
        if minute == start + WARM:
            seen = Minute(seen.calls + 1, 1)
        for method, holds in pair.look(minute, seen).items():
            if holds and method in found:
                found[method] = True
    return found


# ------------------------------------------------------------------------------------- the tables


@dataclass
class Row:
    name: str
    cells: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    """Targets."""


def null_row(series: Series, found: Sequence[dict[str, int]], days: int) -> Row:
    """Episodes per series-day."""
    row = Row(series.name)
    for method in (*METHODS, OTHERS):
        row.cells[method] = f"{sum(one[method] for one in found) / (len(found) * days):.3g}"
    if series.stationary and float(row.cells["BC"]) > FALSE_A_DAY:
        row.missed.append(f"{row.cells['BC']} false alarms a day, at most {FALSE_A_DAY}")
    return row


def _quantile(values: Sequence[int | None], share: float) -> float:
    """Of the delays, a miss being longer than any."""
    ordered = sorted(math.inf if value is None else float(value) for value in values)
    if share == 0.5:
        return statistics.median(ordered)
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]


def trouble_row(trouble: Trouble, found: Sequence[dict[str, int | None]]) -> Row:
    """Median and 95th percentile of the delay in minutes, and misses in percent."""
    row = Row(trouble.name)
    for method in METHODS:
        values = [one[method] for one in found]
        miss = 100 * values.count(None) / len(values)
        middle, late = _quantile(values, 0.5), _quantile(values, 0.95)
        texts = ["-" if math.isinf(each) else f"{each:g}" for each in (middle, late)]
        row.cells[method] = "/".join(texts) + (f" ({miss:g} %)" if miss else "")
        if method != "BC":
            continue
        for what, value, bound in (
            ("median", middle, trouble.median),
            ("p95", late, trouble.p95),
            ("miss %", miss, trouble.miss),
        ):
            if bound is not None and value > bound:
                row.missed.append(f"{what} {value:g}, at most {bound:g}")
    return row


def stray_row(found: Sequence[dict[str, bool]]) -> Row:
    """Percent of the runs with an alarm."""
    row = Row(STRAY)
    for method in METHODS:
        row.cells[method] = f"{100 * sum(one[method] for one in found) / len(found):g} %"
    if any(one["BC"] for one in found):
        row.missed.append(f"{row.cells['BC']} alarmed, none may")
    return row


def drawn(title: str, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A table as text."""
    wide = max([len(title), *(len(row.name) for row in rows)])
    lines = [title.ljust(wide) + "".join(name.rjust(17) for name in columns)]
    for row in rows:
        cells = "".join(row.cells.get(name, "").rjust(17) for name in columns)
        lines.append(row.name.ljust(wide) + cells)
        lines += [f"  MISSED: {why}" for why in row.missed]
    return lines


# ------------------------------------------------------------------------------------- the cost


def _cohorts(many: int) -> list[dict[str, str]]:
    """Labels of so many cohorts that all have a trunk in common with one other at most."""
    return [
        {
            "tenant": f"t{i % 100}", "trunk": f"k{i // 2}", "carrier": f"c{i % 20}",
            "direction": ("in", "out")[i % 2], "region": f"r{i % 5}", "agent": f"a{i % 10}",
            "codec": ("PCMU", "G729")[i % 2],
        }
        for i in range(many)
    ]  # fmt: skip


def _busy_minute(
    dice: random.Random, minute: int, cohorts: Sequence[dict[str, str]]
) -> tuple[list[KpiMinute], list[CodeMinute]]:
    """About 30 calls of each cohort, and as many attempts."""
    kpis, codes = [], []
    at = minute * MINUTE_US
    for labels in cohorts:
        said: dict[str, Any] = {"received_at": 0, "minute_at": at, **labels}
        for source in ("call", "trunk"):
            calls = dice.randint(20, 40)
            ends = {404: 2, 480: 2, 486: 3, 487: 3, 503: dice.random() < 0.15, 403: 1}
            found = {code: dice.randint(0, int(most)) for code, most in ends.items()}
            delays = [0] * 15
            for _ in range(calls):
                delays[dice.randint(2, 9)] += 1
            good = calls - sum(found.values())
            kpis.append(
                KpiMinute(
                    **said, source=source, attempts=calls, seizures=calls, answered=good,
                    effective=good, pdd_count=calls, pdd_sum_ms=1.0, pdd_buckets=tuple(delays),
                    jitter_count=calls, jitter_sum_ms=5.0 * calls,
                )
            )  # fmt: skip
            codes += [
                CodeMinute(**said, source=source, code=code, count=count)
                for code, count in found.items()
                if count
            ]
    return kpis, codes


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def cost(many: int, minutes: int = 70) -> Row:
    """What a minute of so many cohorts costs, all busy, with four weeks behind them."""
    dice = random.Random(1)
    cohorts = _cohorts(many)
    start = 480_000 * 60
    samples = [_busy_minute(dice, start, cohorts) for _ in range(5)]
    # One life to know the series and their size, another to measure.
    scout = Baseline(5000)
    detectors = Detectors(DetectorSettings(), scout)
    for each in range(5):
        detectors.receive_minute((start - 5 + each) * MINUTE_US, *samples[each])
    week = [row for row in scout.records(start * MINUTE_US, all_=True) if row.total]
    del detectors, scout
    before = _resident_mb()
    baseline = Baseline(5000)
    detectors = Detectors(DetectorSettings(), baseline)

    def vary(count: float) -> int:
        return max(0, round(dice.gauss(12 * count, (12 * count) ** 0.5)))

    for row in week:
        baseline.load(
            msgspec.structs.replace(
                row, hour_at=(start // 60 - each) * HOUR_US, minutes=60, total=12 * row.total,
                answered=12 * row.total - vary(row.total - row.answered),
                effective=12 * row.total - vary(row.total - row.effective),
                counts=tuple(vary(count) for count in row.counts),
                pdd_p95_ms=dice.gauss(7300, 100), jitter_ms=dice.gauss(5, 0.2),
            )
            for each in range(1, 28 * 24 + 1)
        )  # fmt: skip
    whole, slices, alarms = [], [], 0
    for minute in range(start, start + minutes):
        began = last = time.process_time()
        for part in detectors.look(minute * MINUTE_US, *samples[minute % 5]):
            alarms += len(part)
            now = time.process_time()
            slices.append(now - last)
            last = now
        whole.append(last - began)
        baseline.records(minute * MINUTE_US)
    return Row(
        f"{many} cohorts, {len(samples[0][0])} + {len(samples[0][1])} rows a minute",
        {
            "series": f"{detectors.series}",
            "first ms": f"{1000 * whole[0]:.0f}",
            "minute ms": f"{1000 * statistics.median(whole):.0f}",
            "of an hour ms": f"{1000 * max(whole[1:]):.0f}",
            "slice p99 ms": f"{1000 * sorted(slices)[len(slices) * 99 // 100]:.1f}",
            "worst ms": f"{1000 * max(slices):.1f}",
            "MB": f"{_resident_mb() - before:.0f}",
            "alarms": f"{alarms}",
        },
    )


def _null(job: tuple[int, int]) -> dict[str, int]:
    return episodes(NULLS[job[0]], job[1])


def _delay(job: tuple[int, int]) -> dict[str, int | None]:
    return delays(TROUBLES[job[0]], job[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="of each trouble")
    parser.add_argument("--days", type=int, default=400, help="series-days of each without trouble")
    parser.add_argument("--seed", type=int, default=None, help="fresh ones if not said")
    parser.add_argument("--only", default="", help="rows whose name has this")
    parser.add_argument("--cost", type=int, default=0, help="of a minute of so many cohorts, only")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=None, help="the tables as JSON, too")
    said = parser.parse_args(arguments)
    if said.cost:
        found = cost(said.cost)
        print("\n".join(drawn("CPU and memory", [found], tuple(found.cells))))
        return 0
    first = secrets.randbelow(1 << 40) if said.seed is None else said.seed
    print(f"seeds from {first} on; {said.runs} runs, {said.days} series-days")
    rows: list[Row] = []
    count = -(-said.days // NULL_DAYS)
    with multiprocessing.Pool(said.jobs) as pool:
        nulls = []
        for place, series in enumerate(NULLS):
            if said.only in series.name:
                jobs = [(place, first + seed) for seed in range(count)]
                nulls.append(null_row(series, pool.map(_null, jobs, chunksize=1), NULL_DAYS))
        if nulls:
            title = "false alarm episodes per series-day"
            print("\n".join(drawn(title, nulls, (*METHODS, OTHERS))), flush=True)
        rows += nulls
        seen = []
        for place, trouble in enumerate(TROUBLES):
            if said.only in trouble.name:
                jobs = [(place, first + seed) for seed in range(said.runs)]
                seen.append(trouble_row(trouble, pool.map(_delay, jobs, chunksize=5)))
        if said.only in STRAY:
            strays = pool.map(stray, range(first, first + said.runs), chunksize=5)
            seen.append(stray_row(strays))
        if seen:
            title = "median/p95 of the delay in minutes (missed)"
            print("\n".join(drawn(title, seen, METHODS)), flush=True)
        rows += seen
    if said.out is not None:
        said.out.write_text(json.dumps({row.name: [row.cells, row.missed] for row in rows}))
    missed = [row for row in rows if row.missed]
    print(f"{len(missed)} of {len(rows)} rows missed a target" if missed else "every target is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
