"""Five ways in which a trunk fails, one of them twice, each before its own Kamailio and sidecar, in real time.

    PYTHONPATH=tests python -m live.watchlab [SCENARIO ...] [--rate 6] [--out FILE]

Each becomes one incident of the right cohort, told once and cleared once, and names calls of that trunk;
a table says how soon. All at the same time it takes some twenty-five minutes, for an incident is over
only when its trunk was well for long enough. Exit code 1 when one did not go as it must.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from live.programs import Program, clean_environment, free_port, running, until
from live.test_sipp import ready
from live.trunklab import BUSY, TENANTS, Exchange, Hook, Stack, Trunk, settings, stack
from sipsidecar.calls.events import OTHER
from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.rows import encode_baseline
from sipsidecar.signals.alarms import CATEGORIES, scope_text
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.gathering import scopes_of

HEALTHY_SECONDS = 160.0
"""So that findings over traffic have seen what is normal: nothing is kept of that over a restart."""
BROKEN_SECONDS = 150.0
"""At least, and a minute after it was told."""
CLEAR_SECONDS = 60.0
"""`alerts.clear_seconds`, after what detectors and findings wait by themselves."""
LONGEST_CLEAR = 1800.0
TOLD_SECONDS = 125.0
"""Fault to webhook: the minute in which it falls, the next one, and a moment."""
DOWN_SECONDS = 36.0
"""The same when nothing answers: three intervals of 10 s, the timer of 4 s, and a look."""
BACK_SECONDS = 22.0
"""Two good answers, and a look."""
WEEK_HOURS = 8 * 24
HOUR_US = 3_600_000_000
USUAL_PDD_MS = 240.0


@dataclass(frozen=True)
class Scenario:
    """One way to fail, of trunk a."""

    name: str
    does: Callable[[Stack, Trunk], object]
    mends: Callable[[Stack, Trunk], object]
    categories: frozenset[str]
    within: float
    secure: bool = False
    taken_out: bool = False
    """Kamailio is told not to use it."""
    second: float | None = None
    """Of the minute in which it is broken; None: any."""


def _set(**changes: Any) -> Callable[[Stack, Trunk], None]:
    def change(_: Stack, trunk: Trunk) -> None:
        for name, value in changes.items():
            setattr(trunk, name, value)

    return change


SCENARIOS = (
    Scenario("503", _set(failing=True), _set(failing=False), frozenset({"5xx"}), TOLD_SECONDS),
    # What OPTIONS show and what calls show is one trouble, whichever is there first: the minute of
    # the calls ends after the third OPTIONS, or before.
    Scenario(
        "silence",
        _set(silent=True),
        _set(silent=False),
        frozenset({"trunk-down"}),
        DOWN_SECONDS,
        taken_out=True,
        second=5.0,
    ),
    Scenario(
        "silence, calls first",
        _set(silent=True),
        _set(silent=False),
        frozenset({"4xx"}),
        DOWN_SECONDS,
        taken_out=True,
        second=38.0,
    ),
    Scenario(
        "slow", _set(rings_after=3.0), _set(rings_after=0.05), frozenset({"pdd"}), TOLD_SECONDS
    ),
    Scenario(
        "G.729", _set(codec="G729"), _set(codec="PCMA"), frozenset({"codec-change"}), TOLD_SECONDS
    ),
    Scenario(
        "TLS to UDP",
        lambda at, trunk: at.downgrade(trunk.name),
        lambda at, trunk: at.upgrade(trunk.name),
        frozenset({"transport-downgrade"}),
        TOLD_SECONDS,
        secure=True,
    ),
)


@dataclass
class Result:
    """What became of one scenario."""

    name: str
    category: str = ""
    scope: str = ""
    severity: str = ""
    told_after: float | None = None
    whats: list[str] = field(default_factory=list)
    named: int = 0
    """Calls that notices named."""
    cleared_after: float | None = None
    out_after: float | None = None
    back_after: float | None = None
    calls: int = 0
    """That trunk a took while it was broken."""
    summary: str = ""
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: object, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def line(self) -> str:
        def seconds(value: float | None) -> str:
            return "-" if value is None else f"{value:.0f} s"

        parts = [
            self.name, self.category, self.scope, self.severity, seconds(self.told_after),
            " ".join(self.whats), f"{self.named} of {self.calls}", seconds(self.cleared_after),
            f"{seconds(self.out_after)} / {seconds(self.back_after)}",
            "; ".join(self.wrong) or "as it must",
        ]  # fmt: skip
        return "| " + " | ".join(parts) + " |"


HEAD = (
    "| fault of trunk a | category | scope | severity | told after | notices | calls named |"
    " cleared after mending | dispatcher out / back | |\n|" + " --- |" * 10
)


def past(
    trunks: Iterable[str], per_second: float, now_us: int, pdd_ms: float = USUAL_PDD_MS
) -> list[BaselineHour]:
    """What eight good days of such traffic teach: hours of each series; `pdd_ms` is its p95."""
    chance = random.Random(7)
    names = list(trunks)
    share = 0.7 * per_second / len(names) / len(TENANTS)  # not so many that less would be a drop
    minutes = 60
    sums: dict[str, float] = {}
    for trunk in names:
        for tenant in TENANTS:
            for source in ("trunk", "call"):
                key = (source, tenant, trunk, "north", "outbound", OTHER, OTHER, "PCMA")
                for scope in scopes_of(key):
                    series = f"{source}:{scope_text(scope)}"
                    sums[series] = sums.get(series, 0.0) + share * 3600
    last = now_us // HOUR_US
    busy = CATEGORIES.index("486")
    found = []
    for hour in range(last - WEEK_HOURS, last):
        for series, calls in sums.items():
            total = round(calls)
            refused = sum(chance.random() < 1 / BUSY for _ in range(total))
            counts = [0] * len(CATEGORIES)
            counts[busy] = refused
            found.append(
                BaselineHour(
                    received_at=now_us,
                    hour_at=hour * HOUR_US,
                    series=series,
                    minutes=minutes,
                    total=total,
                    answered=total - refused,
                    effective=total,
                    counts=tuple(counts),
                    pdd_p95_ms=max(50.0, chance.gauss(pdd_ms, 40.0)),
                )
            )
    return found


async def teach(data: Path, hours: Sequence[BaselineHour]) -> None:
    """Put hours into a sidecar's own database, before its first start."""
    server = EmbeddedPostgres(data)
    dsn = await server.start()
    try:
        await teach_database(dsn, hours)
    finally:
        await server.stop()


async def teach_database(dsn: str, hours: Sequence[BaselineHour]) -> None:
    """Put hours into the database that a sidecar will use."""
    store = Postgres(PostgresSettings(dsn=dsn))
    await store.open(floor=time.time_ns() // 1000)
    try:
        rows = [encode_baseline(one, 1) for one in hours]
        await store.write(store.first_sequence, {"baseline_hours": rows})
    finally:
        await store.close()


def ask(http: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{http}{path}", timeout=10) as answer:
        return json.load(answer)


class Flags:
    """The dispatcher's flags of a trunk over time, looked at twice a second."""

    def __init__(self, at: Stack, name: str) -> None:
        self.seen: list[tuple[float, str]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(at, name))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _run(self, at: Stack, name: str) -> None:
        while not self._stopped.wait(0.5):
            try:
                flags = at.flags(name)
            except (OSError, ValueError, KeyError, AssertionError):
                continue
            if not self.seen or self.seen[-1][1] != flags:
                self.seen.append((time.time(), flags))

    def first(self, flags: str, since: float) -> float | None:
        """Seconds from a time to the first change to these."""
        return next((at - since for at, one in self.seen if one == flags and at >= since), None)


def play(scenario: Scenario, folder: Path, exchange: Exchange, hook: Hook, rate: float) -> Result:
    """One scenario from its beginning to its end."""
    result = Result(scenario.name)
    path = "/" + folder.name
    hep, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with ExitStack() as opened:
        secure = ["a"] if scenario.secure else []
        at = opened.enter_context(stack(folder, exchange, ["a", "b"], secure, hep=hep))
        trunk = at.trunks["a"]
        config = settings(at, hook.url + path, clear_seconds=CLEAR_SECONDS, peers=True)
        data = folder / "data"
        asyncio.run(teach(data, past(at.trunks, rate, time.time_ns() // 1000)))
        run: list[str | Path] = [sys.executable, "-m", "sipsidecar", "run", "--config", config]
        run += ["--hep", hep, "--http", http, "--data", data]
        sidecar = opened.enter_context(running("sidecar", run, folder, clean_environment()))
        until("readiness", lambda: ready(http), 60, sidecar)
        opened.enter_context(at.calling(rate))
        flags = opened.enter_context(Flags(at, "a"))
        time.sleep(HEALTHY_SECONDS)
        if scenario.second is not None:
            time.sleep((scenario.second - time.time()) % 60.0)
        result.expect(not hook.at(path), "told of something while all was well")
        trunk.broken = True
        scenario.does(at, trunk)
        broken_at = time.time()
        told = _wait_for(hook, path, "opened", sidecar, 300)
        if told is not None:
            result.told_after = told - broken_at
        time.sleep(max(0.0, BROKEN_SECONDS - (time.time() - broken_at), 60.0 * (told is not None)))
        scenario.mends(at, trunk)
        trunk.broken = False
        mended_at = time.time()
        if told is not None:
            cleared = _wait_for(hook, path, "cleared", sidecar, LONGEST_CLEAR)
            result.cleared_after = None if cleared is None else cleared - mended_at
        time.sleep(20)
        result.out_after = flags.first("IX", broken_at)
        result.back_after = flags.first("AX", mended_at)
        incidents = ask(http, "/v1/incidents?state=all")
        _judge(result, scenario, hook.at(path), incidents, trunk.troubled)
        if result.wrong:
            print(f"-- {scenario.name}: {json.dumps(incidents, indent=1)}", flush=True)
    return result


def _wait_for(hook: Hook, path: str, what: str, sidecar: Program, seconds: float) -> float | None:
    deadline = time.time() + seconds
    while time.time() < deadline and sidecar.process.poll() is None:
        for at, body in hook.at(path):
            if body["what"] == what:
                return at
        time.sleep(0.2)
    return None


def _judge(
    result: Result,
    scenario: Scenario,
    notices: Sequence[tuple[float, dict[str, Any]]],
    incidents: Sequence[dict[str, Any]],
    troubled: set[str],
) -> None:
    result.calls = len(troubled)
    result.whats = [body["what"] for _, body in notices]
    named = {call_id for _, body in notices for call_id in body["call_ids"]}
    result.named = len(named)
    if notices:
        last = notices[-1][1]
        result.category, result.scope = last["category"], last["scope"]
        result.severity, result.summary = last["severity"], last["summary"]
    result.expect(len(incidents) == 1, f"{len(incidents)} incidents")
    result.expect(result.category in scenario.categories, "another category")
    for _, body in notices:
        result.expect(body["trunk"] == "a", f"{body['what']}: of {body['scope']}")
        result.expect(body["call_ids"], f"{body['what']}: names no calls")
        result.expect(body["evidence"], f"{body['what']}: no evidence")
    result.expect(named <= troubled, f"names others' calls: {sorted(named - troubled)[:3]}")
    for what in ("opened", "cleared"):
        result.expect(result.whats.count(what) == 1, f"{what} {result.whats.count(what)} times")
    late = result.told_after is None or result.told_after > scenario.within
    result.expect(not late, f"told later than {scenario.within:g} s")
    if scenario.taken_out:
        out, back = result.out_after, result.back_after
        result.expect(out is not None and out <= DOWN_SECONDS + 2, "taken out too late, or not")
        result.expect(back is not None and back <= BACK_SECONDS, "put back too late, or not")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [one.name for one in SCENARIOS]
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--rate", type=float, default=6.0, help="calls a second, of each stack")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    said = parser.parse_args()
    if lost := set(said.scenarios) - set(names):
        parser.error(f"no such scenario: {', '.join(sorted(lost))}")
    chosen = [one for one in SCENARIOS if not said.scenarios or one.name in said.scenarios]
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="watchlab-") as root,
        Exchange() as exchange,
        Hook() as hook,
    ):

        def one(number: int, scenario: Scenario) -> Result:
            time.sleep(3.0 * number)  # not all at the same second
            try:
                return play(scenario, Path(root) / f"s{number}", exchange, hook, said.rate)
            except BaseException as error:  # noqa: BLE001 -- the others go on
                traceback.print_exc()
                return Result(scenario.name, wrong=[f"{type(error).__name__}: {error}"[:200]])

        with ThreadPoolExecutor(len(chosen)) as pool:
            for result in pool.map(one, range(len(chosen)), chosen):
                results.append(result)
                print(f"{result.line()}\n    {result.summary}", flush=True)
    table = "\n".join([HEAD, *(result.line() for result in results)])
    print(f"\n{table}")
    if said.out:
        said.out.write_text(table + "\n")
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
