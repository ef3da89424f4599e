"""A trunk under quality rules for simulated weeks: does it close when it must, and only then?

    make bench-admission
    make bench-admission ARGS="--seeds 10 --minutes 1000"

The clock is simulated; windows, gates and admission are the program's own. Each call is told when
the program would be told of it: its setup a settle time after its final response, its media at its
end. The healthy trunk wanders between levels that are healthy, has bursts of 486, 480 and 503,
rushes, quiet nights and a weekend. The trunk in trouble is that one with one thing gone wrong.
"""

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    Move,
    Setup,
    Sighted,
)
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import ADMIT, CLOSED, OPEN, Ask, StateRecord
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import Leases
from sipsidecar.signals.rules import Rule

TRUNK = "acme"
MATCHERS = (Matcher(trunk=TRUNK, destinations=("192.0.2.0/24",)),)
SIGHTED = Sighted(dst_ip="192.0.2.1")
SETTLE = 2
"""Seconds from a final response, and from a BYE, to the record of it."""
LIMITS: dict[str, float] = {
    "asr_percent": 30,
    "ner_percent": 85,
    "server_errors_percent": 10,
    "pdd_p95_ms": 4000,
    "mos": 3.5,
    "loss_percent": 3,
}
DAY = 86_400
BUSIEST_DAY = 5.0
"""Calls a second at most; a trunk with more is as busy all the time, from its first second on."""
SHORT = 60.0
LONG = 300.0
WARM, TROUBLED, AFTER = 900, 900, 1800
"""Seconds of a run: healthy, in trouble, healed."""
SLOW = 600.0
"""Seconds in which what grows has grown."""


def rule(measure: str, window: float = LONG) -> Rule:
    """The rule of a measure, with the defaults of the program for all but its limit."""
    return Rule(
        name=f"{measure}.{window:g}",
        measure=measure,  # type: ignore[arg-type]
        limit=LIMITS[measure],
        trunk=TRUNK,
        window_seconds=window,
        outcome="overflow",
        route="ivr",
    )


# -- the trunk


@dataclass
class Levels:
    """What is true of a trunk for a while."""

    answers: float = 0.6
    """Share of the calls that do not fail which somebody answers."""
    fails: float = 0.02
    """Share of 503."""
    broken: float = 0.02
    """Share of 404 and 500."""
    pdd_ms: float = 900.0
    """Median."""
    mos: float = 4.2
    loss: float = 0.5
    """Mean, in percent."""


def wander(draw: random.Random) -> Levels:
    """Levels of some minutes, all of them healthy for `LIMITS`."""
    return Levels(
        answers=draw.uniform(0.48, 0.75),
        fails=draw.uniform(0.0, 0.04),
        broken=draw.uniform(0.0, 0.03),
        pdd_ms=draw.uniform(600, 1600),
        mos=draw.uniform(3.8, 4.3),
        loss=draw.uniform(0.1, 1.2),
    )


Trouble = Callable[[Levels, float], None]


def turns_503(levels: Levels, seconds: float) -> None:
    levels.fails = 1.0


def fills_with_503(levels: Levels, seconds: float) -> None:
    levels.fails = max(levels.fails, 0.02 + 0.58 * min(1.0, seconds / SLOW))


def grows_slow(levels: Levels, seconds: float) -> None:
    levels.pdd_ms *= 5


def sounds_bad(levels: Levels, seconds: float) -> None:
    levels.mos = 2.4


def loses_packets(levels: Levels, seconds: float) -> None:
    levels.loss = 8.0


TROUBLES: dict[str, tuple[Trouble, tuple[str, ...]]] = {
    "503 to all": (turns_503, ("server_errors_percent", "asr_percent", "ner_percent")),
    # It leaves an ASR of 19 to 29 %, which is about the limit and not surely under it.
    "503, 2 to 60 % in 10 min": (fills_with_503, ("server_errors_percent", "ner_percent")),
    "PDD x 5": (grows_slow, ("pdd_p95_ms",)),
    "MOS 2.4": (sounds_bad, ("mos",)),
    "loss 8 %": (loses_packets, ("loss_percent",)),
}


def passes_limit(trouble: str, measure: str) -> float:
    """Seconds from the begin of a trouble to where the truth itself is past the limit."""
    if trouble.startswith("503,"):
        share = {"server_errors_percent": 0.10, "ner_percent": 0.13}[measure]
        return SLOW * (share - 0.02) / 0.58
    return 0.0


@dataclass
class Fate:
    """What becomes of one call."""

    code: int
    pdd: float
    """Seconds to its 180, or to the final of a failure."""
    rings: float
    talks: float = 0.0


def poisson(draw: random.Random, mean: float) -> int:
    """How many come in a second."""
    if mean > 30:
        return max(0, round(draw.gauss(mean, math.sqrt(mean))))
    # Knuth's method.
    least, count, product = math.exp(-mean), 0, draw.random()
    while product > least:
        count += 1
        product *= draw.random()
    return count


class Carrier:
    """A trunk and its callers, second by second."""

    def __init__(self, seed: int, per_second: float, *, days: bool) -> None:
        self._random = random.Random(seed)
        self._per_second = per_second
        self._days = days
        self._base = wander(self._random)
        self.levels = self._base
        self.trouble: Trouble | None = None
        self.trouble_at = 0
        self._mos: list[float] = [0.0]
        self._loss: list[float] = [0.0]
        # Bursts: until when, and what it is.
        self._burst_until, self._burst_code = 0, 0
        self._rush_until = 0
        # Nor is it to know of a trunk no more than the burst that its first second began.
        self._calm_until = 120
        self.second = 0

    def turn(self) -> int:
        """One second passes; returns how many calls come in it."""
        draw = self._random
        self.second += 1
        second = self.second
        if second % 300 == 0:
            self._base = wander(draw)
        chance = draw.random()
        if second >= self._calm_until and chance < 3 / 3600:
            # Two of them in one short window would be a trunk in trouble, not noise.
            self._calm_until = second + 120
            if chance < 1 / 3600:
                self._burst_until, self._burst_code = second + 20, 486
            elif chance < 2 / 3600:
                self._burst_until, self._burst_code = second + 20, 480
            elif chance < 2.6 / 3600:
                # Four seconds of it would be a whole minute that is past the limit.
                self._burst_until, self._burst_code = second + 2, 503
            else:
                self._rush_until = second + 60
        self.levels = self._base
        if self.trouble is not None:
            self.levels = Levels(**asdict(self._base))
            self.trouble(self.levels, second - self.trouble_at)
        self._mos.append(self._mos[-1] + self.levels.mos)
        self._loss.append(self._loss[-1] + self.levels.loss)
        return self._arrivals()

    def _arrivals(self) -> int:
        mean = self._per_second
        if self._days:
            day, second = divmod(self.second, DAY)
            mean *= 0.05 + 0.95 * math.sin(math.pi * second / DAY) ** 2
            if day % 7 in (2, 3):
                mean *= 0.15
        if self.second < self._rush_until:
            mean *= 3
        return poisson(self._random, mean)

    def treat(self) -> Fate:
        """What becomes of a call that comes now."""
        draw, levels = self._random, self.levels
        pdd = levels.pdd_ms / 1000 * draw.lognormvariate(0, 0.4)
        if self.second < self._burst_until:
            return Fate(self._burst_code, 0.2 if self._burst_code == 503 else pdd, 0.0)
        if draw.random() < levels.fails:
            return Fate(503, 0.2, 0.0)
        if draw.random() < levels.broken:
            return Fate(draw.choice((404, 500)), 0.3, 0.0)
        if draw.random() < levels.answers:
            return Fate(200, pdd, draw.expovariate(1 / 6), min(600.0, draw.expovariate(1 / 60)))
        code = draw.choice((486, 480, 487))
        return Fate(code, pdd, 0.0 if code == 486 else draw.uniform(10, 30))

    def heard(self, began: int, ended: int) -> tuple[float, float]:
        """MOS and loss of a call that was answered and ended in these seconds."""
        draw, seconds = self._random, max(1, ended - began)
        ended = min(ended, self.second)
        began = min(began, ended - 1)
        mos = (self._mos[ended] - self._mos[began]) / seconds + draw.gauss(0, 0.2)
        loss = (self._loss[ended] - self._loss[began]) / seconds * draw.lognormvariate(-0.5, 1.0)
        if draw.random() < 0.03:  # a caller with a bad line of his own
            mos, loss = draw.uniform(1.5, 3.0), draw.uniform(5, 30)
        return min(4.5, max(1.0, mos)), min(100.0, loss)


# -- the trunk under rules


@dataclass
class Told:
    """What a run has shown so far."""

    offered: int = 0
    admitted: int = 0
    states: list[tuple[int, str, str]] = field(default_factory=list)
    """Second, rule and state."""
    counts: list[tuple[int, int]] = field(default_factory=list)
    """Offered and admitted after each second."""


class World:
    """One trunk, its rules, and what the program is told of its calls."""

    def __init__(
        self, rules: Sequence[Rule], seed: int, per_second: float, *, days: bool = False
    ) -> None:
        self.carrier = Carrier(seed, per_second, days=days)
        self.told = Told()
        self._cohorts = Cohorts(MATCHERS)
        longest = max(rule.window_seconds for rule in rules)
        self._windows = Windows(("trunk",), longest=longest)
        self.admission = Admission(
            Policy(rules=tuple(rules)),
            self._cohorts,
            self._windows,
            Leases(lambda _: None, pending=3600.0),
        )
        self._due: dict[int, list[Callable[[], None]]] = defaultdict(list)
        # A clock that has run for a while, and seconds that are not those of the steps.
        self._epoch = 1_000_000.0 + 5 * random.Random(seed).random()

    @property
    def now(self) -> float:
        return self._epoch + self.carrier.second

    @property
    def _us(self) -> int:
        return int(self.now * 1_000_000)

    def run(self, seconds: int) -> None:
        """Let so many seconds pass."""
        for _ in range(seconds):
            arrivals = self.carrier.turn()
            second = self.carrier.second
            for tell in self._due.pop(second, ()):
                tell()
            for _ in range(arrivals):
                self._call(second)
            self.admission.receive_readings({}, self.now, self._us)
            self.admission.handle_timer(self.now, self._us)
            for row in self.admission.records():
                if isinstance(row, StateRecord):
                    self.told.states.append((second, row.rule, row.state))
            self.told.counts.append((self.told.offered, self.told.admitted))

    def _call(self, second: int) -> None:
        self.told.offered += 1
        call_id = str(self.told.offered)
        ask = Ask(call_id=call_id, sighted=SIGHTED)
        decision = self.admission.ask(ask, self.now, self._us)
        if decision.verdict != ADMIT:
            return
        self.told.admitted += 1
        fate = self.carrier.treat()
        final = second + fate.pdd + fate.rings
        due = self._due
        self._move(call_id, "ringing")
        due[max(second + 1, math.ceil(final))].append(
            lambda: self._move(call_id, "answered" if fate.code == 200 else None)
        )
        due[max(second + 1, math.ceil(final) + SETTLE)].append(
            lambda: self._tell_setup(call_id, fate)
        )
        ended = final + fate.talks
        due[max(second + 1, math.ceil(ended) + SETTLE)].append(
            lambda: self._tell_end(call_id, fate, math.ceil(final), math.ceil(ended))
        )

    def _move(self, call_id: str, state: str | None) -> None:
        move = Move(call_id, state, Cohort(trunk=TRUNK))
        self.admission.receive_moves([move], self.now, self._us)

    def _tell_setup(self, call_id: str, fate: Fate) -> None:
        call, attempt = _records(call_id, fate, self._us)
        self._windows.receive_setup(Setup(call, (attempt,)), self.now)

    def _tell_end(self, call_id: str, fate: Fate, began: int, ended: int) -> None:
        if fate.code != 200:
            return
        self._move(call_id, None)
        mos, loss = self.carrier.heard(began, ended)
        call, _ = _records(call_id, fate, self._us, mos=mos, mos_scale="nb")
        self._windows.receive_call(call, self.now)
        media = MediaRecord(
            call_id=call_id,
            from_tag="t",
            stream="callee_to_caller",
            direction="callee_to_caller",
            received_at=self._us,
            started_at=self._us,
            ended_at=self._us,
            loss_percent=loss,
        )
        self._windows.receive_media(media, call, self.now)


def _records(call_id: str, fate: Fate, at: int, **media: Any) -> tuple[CallRecord, AttemptRecord]:
    common: dict[str, Any] = {
        "call_id": call_id,
        "from_tag": "t",
        "received_at": at,
        "started_at": at,
        "final_code": fate.code,
        "final_class": f"{fate.code // 100}xx",
        "answered": fate.code == 200,
        "pdd_ms": fate.pdd * 1000 if fate.code in (200, 480, 487) else None,
        **Cohort(trunk=TRUNK)._replace()._asdict(),
    }
    del common["node"]
    call = CallRecord(**common, **media, seizure=True, final_origin="callee", attempts=1)
    return call, AttemptRecord(**common, branch="z9hG4bK")


# -- runs


@dataclass
class Healthy:
    """A run in which nothing was wrong."""

    seed: int
    per_second: float
    minutes: int
    calls: int
    closings: dict[str, int]
    """By rule; empty is right."""


def healthy(seed: int, per_second: float, minutes: int) -> Healthy:
    """Every rule over both windows on a noisy but healthy trunk."""
    rules = [rule(measure, window) for measure in LIMITS for window in (SHORT, LONG)]
    world = World(rules, seed, per_second, days=per_second <= BUSIEST_DAY)
    for _ in range(minutes):
        world.run(60)
        world.told.counts.clear()
    closings: dict[str, int] = defaultdict(int)
    for _, name, state in world.told.states:
        closings[name] += state == CLOSED
    return Healthy(seed, per_second, minutes, world.told.offered, dict(closings))


@dataclass
class Troubled:
    """A run in which one thing went wrong, and was mended."""

    closed_after: float | None
    """Seconds from where the truth was past the limit."""
    reached_percent: float | None
    """Share of calls that got the bad trunk, from its first closing to its mending."""
    closings: int
    """While it was in trouble."""
    closings_healed: int
    """After it was mended."""
    open_after: float | None
    """Seconds from its mending until it was open for good."""


def troubled(trouble: str, measure: str, window: float, per_second: float, seed: int) -> Troubled:
    """One trouble under one rule: a quarter of an hour of it."""
    one = rule(measure, window)
    world = World([one], seed, per_second)
    world.run(WARM)
    early = [state for _, _, state in world.told.states]
    assert not early, f"seed {seed}: {early} before anything was wrong"
    carrier, told = world.carrier, world.told
    carrier.trouble, carrier.trouble_at = TROUBLES[trouble][0], carrier.second
    began = carrier.second + passes_limit(trouble, measure)
    world.run(TROUBLED)
    healed = carrier.second
    carrier.trouble = None
    world.run(AFTER)
    closings = [second for second, _, state in told.states if state == CLOSED]
    in_trouble = [second for second in closings if second <= healed]
    reached = None
    if in_trouble:
        offered, admitted = (
            after - before
            for before, after in zip(
                told.counts[in_trouble[0] - 1], told.counts[healed - 1], strict=True
            )
        )
        reached = 100 * admitted / offered if offered else None
    last = told.states[-1] if told.states else None
    open_after = None
    if last is None or last[2] == OPEN:
        open_after = 0.0 if last is None else max(0.0, float(last[0] - healed))
    return Troubled(
        closed_after=in_trouble[0] - began if in_trouble else None,
        reached_percent=reached,
        closings=len(in_trouble),
        closings_healed=len(closings) - len(in_trouble),
        open_after=open_after,
    )


CASES = tuple(
    (trouble, measure, window, per_second)
    for trouble, (_, measures) in TROUBLES.items()
    for measure in measures
    for window, per_second in ((LONG, 0.2), (LONG, 1.0), (LONG, 5.0), (SHORT, 5.0))
)


@dataclass
class Row:
    """All seeds of one case; the worst is the longest, and None where one run never got there."""

    trouble: str
    measure: str
    window: float
    per_second: float
    runs: int
    never_closed: int
    closed_median: float | None
    closed_worst: float | None
    reached_median: float | None
    reached_worst: float | None
    closings_median: float
    closings_worst: int
    healed_median: float
    healed_worst: int
    never_open: int
    open_median: float | None
    open_worst: float | None


def row(case: tuple[str, str, float, float], seeds: int) -> Row:
    """One case with so many seeds."""
    runs = [troubled(*case, seed) for seed in range(1, seeds + 1)]
    closed = [run.closed_after for run in runs if run.closed_after is not None]
    reached = [run.reached_percent for run in runs if run.reached_percent is not None]
    opened = [run.open_after for run in runs if run.open_after is not None]
    return Row(
        *case,
        runs=seeds,
        never_closed=seeds - len(closed),
        closed_median=statistics.median(closed) if closed else None,
        closed_worst=max(closed, default=None),
        reached_median=statistics.median(reached) if reached else None,
        reached_worst=max(reached, default=None),
        closings_median=statistics.median(run.closings for run in runs),
        closings_worst=max(run.closings for run in runs),
        healed_median=statistics.median(run.closings_healed for run in runs),
        healed_worst=max(run.closings_healed for run in runs),
        never_open=seeds - len(opened),
        open_median=statistics.median(opened) if opened else None,
        open_worst=max(opened, default=None),
    )


def late(found: Row) -> bool:
    """Whether a case closed later than its window, flapped after its mending, or never opened.

    What grows slowly is past the limit in the mean of a window long after it is so in truth, and of
    few calls it takes longer to be sure: they have two windows.
    """
    worst = found.closed_worst
    slow = passes_limit(found.trouble, found.measure) > 0 or found.per_second < 1
    return bool(
        found.never_closed
        or worst is None
        or worst > found.window * (2 if slow else 1)
        or found.healed_worst > 1
        or found.never_open
    )


# -- the program


def _work(job: tuple[str, tuple[Any, ...]]) -> Healthy | Row:
    kind, arguments = job
    return healthy(*arguments) if kind == "healthy" else row(*arguments)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The table of troubles, line by line."""
    yield (
        f"{'trouble':26}{'rule':24}{'window':>7}{'calls/s':>8}{'closed after s':>16}"
        f"{'reached it %':>14}{'closings':>10}{'after':>8}{'open after s':>14}"
    )
    for one in rows:
        yield (
            f"{one.trouble:26}{f'{one.measure} {LIMITS[one.measure]:g}':24}"
            f"{one.window:7.0f}{one.per_second:8.1f}"
            f"{f'{_shown(one.closed_median)} / {_shown(one.closed_worst)}':>16}"
            f"{f'{_shown(one.reached_median)} / {_shown(one.reached_worst)}':>14}"
            f"{f'{one.closings_median:.0f} / {one.closings_worst}':>10}"
            f"{f'{one.healed_median:.0f} / {one.healed_worst}':>8}"
            f"{f'{_shown(one.open_median)} / {_shown(one.open_worst)}':>14}"
            + (f"  never closed in {one.never_closed}" if one.never_closed else "")
            + (f"  never open in {one.never_open}" if one.never_open else "")
        )


def main() -> int:
    """Run all of it; exit code 0 when no healthy trunk closed and none in trouble was late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=10_000, help="healthy, simulated (10000)")
    parser.add_argument("--healthy-seeds", type=int, default=3, help="of each load (3)")
    parser.add_argument("--seeds", type=int, default=50, help="of each trouble (50)")
    parser.add_argument("--only", default="", help="cases whose trouble or rule has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    jobs: list[tuple[str, tuple[Any, ...]]] = [
        ("healthy", (seed, per_second, arguments.minutes))
        for per_second in (5.0, 1.0, 0.2)
        for seed in range(1, arguments.healthy_seeds + 1)
    ]
    jobs += [
        ("healthy", (seed, 100.0, min(10, arguments.minutes)))
        for seed in range(1, 3 * arguments.healthy_seeds + 1)
    ]
    jobs += [
        ("row", (case, arguments.seeds))
        for case in CASES
        if arguments.only in case[0] or arguments.only in case[1]
    ]
    found: list[Healthy | Row] = []
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for one in pool.imap(_work, jobs, chunksize=1):
            found.append(one)
            if arguments.json:
                print(json.dumps(asdict(one)), flush=True)
            elif isinstance(one, Healthy):
                said = one.closings or "never closed"
                print(
                    f"healthy, up to {one.per_second:g} calls/s, seed {one.seed}:"
                    f" {one.minutes} minutes, {one.calls} calls, {said}",
                    flush=True,
                )
    rows = [one for one in found if isinstance(one, Row)]
    if not arguments.json:
        print("\nmedian / worst")
        print("\n".join(table(rows)))
    closed = any(one.closings for one in found if isinstance(one, Healthy))
    return 1 if closed or any(late(one) for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
