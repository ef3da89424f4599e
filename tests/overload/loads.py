"""Goodput of a system of known capacity under 0.8 to 10 times its load, with and without admission.

    python -m overload.loads --svg docs/admission-overload.svg --json overload.json

Callers who wait for nobody, a real Kamailio, and a callee that serves C calls a second. Modes:
`none` (nothing refuses), `asked` (each call asks the sidecar), `pushed` (Kamailio decides by what it
is told), `flags` (pushed, without a rule about the rate), `counted` (no sidecar: Kamailio counts calls
per second, by its pipelimit), `self` (no sidecar: the callee refuses what would wait, at a tenth of
the cost). The rules: `calls_per_second` a little under C, and the callee's
queue as a signal, for a rate alone never lets a queue go that is there already.
After each overload the load drops to 0.8 C, and the time is measured until calls are answered as
they should be.
"""

import argparse
import contextlib
import http.client
import json
import signal
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos.lab import Database, Lab, Sidecar, tail
from chaos.results import Result, Unfit, command, progress
from live.programs import free_port
from overload.goodput import achieved, bound, recovery, rounded, slope
from overload.plot import Line, Panel, draw
from overload.rig import Rig, split, tree_cpu

MODES = ("none", "asked", "pushed", "flags", "counted", "self")
ALONE = ("none", "counted", "self")
"""Those without a sidecar."""
FEW = ("flags", "counted")
"""Those that only two loads are worth the time of."""
AFTER = 0.8
"""Load after the overload."""
STEP = 2.0
"""Seconds of one point of the plot over time."""
SELF_REFUSAL = 0.1
"""What a refusal costs the callee itself in the mode `self`."""

RATE_RULE = """
[[admission.rules]]
name = "callee-rate"
measure = "calls_per_second"
limit = {limit:g}
burst = {burst:g}
"""
QUEUE_RULE = """
[[admission.rules]]
name = "callee-queue"
measure = "signal"
which = "queue_ms"
limit = 400
resume = 100
trip_samples = 1
resume_seconds = 1
in_service_seconds = 1
ramp_seconds = 5
"""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--capacity", type=float, default=50, help="calls per second (50)")
    flags.add_argument(
        "--modes", default="none,asked,pushed,flags,counted", help="of " + ", ".join(MODES)
    )
    flags.add_argument("--loads", default="0.8,1,2,5,10", help="in parts of the capacity")
    flags.add_argument("--seconds", type=float, default=18, help="of each load (18)")
    flags.add_argument("--warm", type=float, default=8, help="of these not measured (8)")
    flags.add_argument("--after", type=float, default=13, help="seconds at 0.8 afterwards (13)")
    flags.add_argument("--share", type=float, default=0.97, help="limit of the rule, parts of C")
    flags.add_argument("--burst", type=float, default=0.3, help="burst of the rule, seconds of C")
    flags.add_argument("--again", type=float, default=1.0, help="cost of an INVITE sent again")
    flags.add_argument("--patience", type=float, default=10.0)
    flags.add_argument("--no-queue-rule", action="store_true", help="the rate alone")
    flags.add_argument("--stall", type=float, default=0, help="seconds that the sidecar stops")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--svg", type=Path, metavar="FILE", help="write the plot")
    return flags


# ------------------------------------------------------------------------------------ the sidecar


def settings(lab: Lab, rig: Rig, name: str, rules: str, way: str) -> dict[str, str]:
    """A sidecar's settings whose rules are enforced in this way, `evapi` or `kamailio`."""
    at = f"{split(rig.proxy)[0]}:{free_port(split(rig.proxy)[0])}"
    address = at if way == "evapi" else f"udp:{at}"
    path = lab.folder / f"{name}.toml"
    path.write_text(f'[admission]\n{way} = {{ edge = "{address}" }}\n{rules}')
    return {"CONFIG": str(path)}


def switch_address(said: dict[str, str]) -> str:
    """Where the Kamailio of these settings must listen."""
    admission = tomllib.loads(Path(said["CONFIG"]).read_text())["admission"]
    for way in ("evapi", "kamailio"):
        if way in admission:
            return str(admission[way]["edge"]).removeprefix("udp:")
    raise AssertionError("no switch is configured")


def post(sidecar: Sidecar, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A page that changes something; what it said."""
    request = urllib.request.Request(
        f"http://{sidecar.http[0]}:{sidecar.http[1]}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as page:
        said: dict[str, Any] = json.load(page)
    return said


def admission_status(sidecar: Sidecar) -> dict[str, Any]:
    """The page of admission."""
    said: dict[str, Any] = json.loads(sidecar.page("/v1/admission/status"))
    return said


def wait_connected(sidecar: Sidecar, limit: float = 20.0) -> None:
    """Until every switch is told, or asks."""
    deadline = time.monotonic() + limit
    while True:
        said = admission_status(sidecar)
        switches = [*said["pushes"], *said["asks"]]
        if switches and all(one["up"] for one in switches):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"no connection between sidecar and switch: {switches}")
        time.sleep(0.1)


@contextlib.contextmanager
def reporting(rig: Rig, sidecar: Sidecar) -> Iterator[None]:
    """The callee's queue as a signal to the sidecar, four times a second."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(0.25):
            queue = rig.queue_ms()
            if queue is not None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    body = {"name": "queue_ms", "value": queue, "ttl_seconds": 5}
                    post(sidecar, "/v1/signals", body)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


@contextlib.contextmanager
def stalled(sidecar: Sidecar, after: float, seconds: float) -> Iterator[None]:
    """A sidecar that stands still for a while."""
    assert sidecar.process is not None
    times = ((after, signal.SIGSTOP), (after + seconds, signal.SIGCONT))
    timers = [threading.Timer(at, sidecar.process.send_signal, [number]) for at, number in times]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.join()


# ----------------------------------------------------------------------------------------- a run


def one(
    lab: Lab, database: Database | None, wanted: argparse.Namespace, mode: str, load: float
) -> dict[str, Any]:
    """One overload and what follows it, with fresh processes."""
    rig = Rig(lab, f"{mode}-{load:g}")
    capacity = wanted.capacity
    # 40 s of work, as much as the reference's simulation holds.
    words: list[str | float] = ["--capacity", capacity, "--buffer", int(40 * capacity)]
    words += ["--again", wanted.again]
    if mode == "self":
        words += ["--guard-ms", 100, "--refusal", SELF_REFUSAL]
    rig.start_callee(*words)
    sidecar = None
    with contextlib.ExitStack() as stack:
        if mode in ALONE:
            whole = int(wanted.share * capacity)
            rig.start_proxy(defines={"LOCAL_LIMIT": f'"{whole}"'} if mode == "counted" else {})
        else:
            assert database is not None
            rules = "" if wanted.no_queue_rule else QUEUE_RULE
            if mode != "flags":
                limit = {"limit": wanted.share * capacity, "burst": wanted.burst * capacity}
                rules += RATE_RULE.format(**limit)
            way = "evapi" if mode == "asked" else "kamailio"
            said = settings(lab, rig, f"{mode}-{load:g}", rules, way)
            sidecar = lab.sidecar(f"sidecar-{mode}-{load:g}", database, said)
            define = "ADMISSION_ASKED" if mode == "asked" else "ADMISSION_PUSHED"
            place = switch_address(said)
            strings = {"SIPSIDECAR_EVAPI": place, "SIPSIDECAR_RPC": f"udp:{place}"}
            # What the proxy lets in by itself while no decision comes: no more than the rule does.
            alone = int(wanted.share * capacity)
            defines: dict[str, str | int] = {define: 1, "SIPSIDECAR_ALONE_CPS": alone}
            rig.start_proxy(defines=defines, strings=strings, hep=sidecar.hep)
            wait_connected(sidecar)
            if QUEUE_RULE in rules:
                stack.enter_context(reporting(rig, sidecar))
        stages = [(wanted.seconds, load * capacity)]
        if load > 1:
            stages.append((wanted.after, AFTER * capacity))
        run = rig.start_callers(stages, "--patience", wanted.patience, "--seed", wanted.seed)
        if sidecar is not None and wanted.stall:
            stack.enter_context(stalled(sidecar, wanted.warm, wanted.stall))
        cpu = _cpu(rig, sidecar, wanted)
        fates = run.fates(wanted.seconds + wanted.after + 3 * wanted.patience + 30)
    callee = rig.end()
    row: dict[str, Any] = {"mode": mode, "load": load}
    if sidecar is not None:
        assert sidecar.process is not None
        if sidecar.process.poll() is not None:
            raise AssertionError(f"the sidecar ended by itself:\n{tail(sidecar.err)}")
        # Whether the loop ever was too late for a call that waited.
        row["loop_lag_ms"] = round(sidecar.metric("sipsidecar_loop_lag_seconds") * 1000)
        row["refused_too_late"] = sidecar.metric("sipsidecar_admission_too_late_total")
        sidecar.stop()
    begin, end = run.began + wanted.warm, run.began + wanted.seconds
    got = achieved(fates, begin, end)
    row |= rounded(got)
    row["goodput_of_capacity"] = round(got.goodput / capacity, 3)
    row["cpu_share"] = {name: round(value, 4) for name, value in cpu.items()}
    row["rig_late_ms"] = max(run.late_ms, callee["late_ms"])
    row["recovery"] = recovery(fates, end, end + wanted.after) if load > 1 else None
    whole = sum(seconds for seconds, _ in stages)
    row["by_time"] = [
        round(achieved(fates, at, at + STEP).goodput / capacity, 3)
        for at in (run.began + STEP * number for number in range(int(whole / STEP)))
    ]
    return row


def _cpu(rig: Rig, sidecar: Sidecar | None, wanted: argparse.Namespace) -> dict[str, float]:
    """CPU seconds per second of Kamailio and the sidecar, over what is measured."""
    assert rig.kamailio is not None
    pids = {"kamailio": rig.kamailio.pid} | ({"sidecar": sidecar.pid} if sidecar else {})
    time.sleep(wanted.warm)
    before, at = {name: tree_cpu(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(wanted.seconds - wanted.warm)
    seconds = time.monotonic() - at
    return {name: (tree_cpu(pid) - before[name]) / seconds for name, pid in pids.items()}


# --------------------------------------------------------------------------------------- all runs


def cost_of_refusal(rows: list[dict[str, Any]], capacity: float) -> float | None:
    """CPU that Kamailio and the sidecar spend on one more refusal, in parts of serving a call."""
    points = [
        (row["refused"], sum(row["cpu_share"].values()))
        for row in rows
        if row["load"] >= 2 and row["refused"]
    ]
    seconds = slope(points)
    return None if seconds is None else max(seconds, 0.0) * capacity


def run(wanted: argparse.Namespace) -> Result:
    """Every mode at every load."""
    modes, loads = wanted.modes.split(","), [float(one) for one in wanted.loads.split(",")]
    if unknown := set(modes) - set(MODES):
        raise Unfit(f"no such mode: {', '.join(sorted(unknown))}; of {', '.join(MODES)}")
    result = Result(f"overload, C = {wanted.capacity:g} calls/s")
    rows: list[dict[str, Any]] = []
    with Lab(disk_gb=1) as lab:
        for mode in modes:
            for load in loads:
                if mode in FEW and load not in (2, 5):
                    continue
                database = None
                if mode not in ALONE:
                    database = lab.database(lab.folder / f"database-{mode}-{load:g}")
                row = one(lab, database, wanted, mode, load)
                if database is not None:
                    database.stop()
                rows.append(row)
                progress(f"{mode} at {load:g} C: {json.dumps(row)}")
    _judge(result, rows, wanted, modes)
    result.note(rows=rows)
    if wanted.svg:
        wanted.svg.write_text(plot(rows, wanted))
    print(table(rows, wanted))
    return result


def _judge(
    result: Result, rows: list[dict[str, Any]], wanted: argparse.Namespace, modes: list[str]
) -> None:
    for mode in modes:
        those = [row for row in rows if row["mode"] == mode]
        cost = SELF_REFUSAL if mode == "self" else cost_of_refusal(those, wanted.capacity)
        for row in those:
            row["bound"] = round(bound(row["load"], cost or 0.0), 3)
        if cost is not None and mode not in ("none", "counted"):
            result.note(**{f"cost_of_refusal_{mode}": round(cost, 4)})
        for row in those:
            load, got, best = row["load"], row["goodput_of_capacity"], row["bound"]
            if mode == "none" and load >= 2:
                result.claim(f"none at {load:g} C collapses", got < 0.2, got)
            if mode not in ("asked", "pushed") or load < 2:
                continue
            share = 0.95 if load < 10 else 0.9
            words = f"{mode} at {load:g} C: goodput is {share:g} of the bound or more"
            if not wanted.stall:  # then it cannot be
                result.claim(words, got >= share * best, f"{got} of {best}")
            if wanted.after >= 5:
                back = row["recovery"]
                words = f"{mode} after {load:g} C: as before within 10 s"
                result.claim(words, back is not None and back <= 10, f"{back} s")
        late = max(row["rig_late_ms"] for row in those)
        result.claim(f"{mode}: the rig itself was never 100 ms late", late < 100, f"{late} ms")


def table(rows: list[dict[str, Any]], wanted: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        (
            "| mode | offered / C | bound | goodput / C | refused/s | unanswered/s | setup p50 / p99 ms |"
            " recovery s |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        setups = f"{row['setup_p50_ms']} / {row['setup_p99_ms']}" if row["setup_p50_ms"] else "-"
        back = row["recovery"]
        again = (
            "-" if row["load"] <= 1 else f"not in {wanted.after:g}" if back is None else f"{back:g}"
        )
        lines.append(
            f"| {row['mode']} | {row['load']:g} | {row['bound']:.2f} |"
            f" **{row['goodput_of_capacity']:.2f}** | {row['refused']:.0f} |"
            f" {row['silent'] + row['late']:.0f} | {setups} | {again} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], wanted: argparse.Namespace) -> str:
    """Goodput by load, and by time through the overload of five times the capacity."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    loads = sorted({row["load"] for row in rows})
    by_load = [
        Line(mode, [(r["load"], r["goodput_of_capacity"]) for r in rows if r["mode"] == mode])
        for mode in modes
    ]
    least = {load: min(row["bound"] for row in rows if row["load"] == load) for load in loads}
    by_load.append(Line("bound", sorted(least.items()), dashed=True))
    middle = 5.0 if 5.0 in loads else loads[-1]
    by_time = [
        Line(mode, [(STEP * (at + 0.5), value) for at, value in enumerate(row["by_time"])])
        for mode in modes
        for row in rows
        if row["mode"] == mode and row["load"] == middle
    ]
    marks = [(wanted.seconds, f"load drops to {AFTER:g} C")]
    return draw(
        [
            Panel("Goodput by offered load", "offered / C", "answered in time / C", by_load),
            Panel(
                f"At {middle:g} C, then {AFTER:g} C",
                "seconds",
                "answered in time / C",
                by_time,
                marks,
            ),
        ]
    )


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
