"""A sidecar that is killed, stopped or cut off while calls are decided: do calls pass, and who waits.

    python -m overload.faults --rate 40

For each way (asked, pushed) and each fault: everything is refused by a drain, then the fault comes,
and the time is measured until calls pass; the fault goes, and the time until they are refused again.
The same with everything open: does any call fail or wait. Meanwhile other calls, whom no rule
concerns, go through the same proxy: theirs must not wait for anything.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from chaos.lab import Database, Lab, Sidecar
from chaos.results import Result, command, progress
from live.programs import free_port
from overload.callers import Fate
from overload.goodput import quantile
from overload.loads import RATE_RULE, post, settings, switch_address, wait_connected
from overload.relay import Relay
from overload.rig import Rig, split

WAYS = ("asked", "pushed")
FAULTS = ("kill", "stop", "cut")
STATES = ("closed", "open")
PASS_WITHIN = {"asked": 0.5, "pushed": 4.5}
"""Seconds: an asking call waits 200 ms at most; what was pushed holds for three, looked at each second."""
LONGEST_MS = {"asked": 400.0, "pushed": 100.0}
"""Most that a call may wait for a decision that does not come, with a proxy that is not alone."""
UNDER_WAY = 0.5
"""Seconds before a fault from which on a call may still meet it."""
UNRELATED_MS = 100.0
"""Most that others may wait."""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--ways", default=",".join(WAYS))
    flags.add_argument("--faults", default=",".join(FAULTS))
    flags.add_argument("--states", default=",".join(STATES))
    flags.add_argument(
        "--rate", type=float, default=80, help="calls per second, half unrelated (80)"
    )
    flags.add_argument("--before", type=float, default=3, help="seconds before the fault (3)")
    flags.add_argument("--fault", type=float, default=7, help="seconds of the fault (7)")
    flags.add_argument("--after", type=float, default=5, help="seconds after its end (5)")
    flags.add_argument("--seed", type=int, default=1)
    return flags


def one(
    lab: Lab, database: Database, wanted: argparse.Namespace, way: str, fault: str, state: str
) -> dict[str, Any]:
    """One fault, with fresh processes."""
    name = f"{way}-{fault}-{state}"
    rig = Rig(lab, name)
    rig.start_callee("--capacity", 10_000)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(Relay())
        net = split(rig.proxy)[0]
        rules = RATE_RULE.format(limit=10_000, burst=1000)
        said = settings(lab, rig, name, rules, "evapi" if way == "asked" else "kamailio")
        # The sidecar speaks to the relay, and Kamailio's mirrored messages go through it as well.
        near = split(switch_address(said))
        far = (net, free_port(net))
        sidecar = lab.sidecar(f"sidecar-{name}", database, said)
        (relay.tcp if way == "asked" else relay.udp)(near, far)
        hep = (net, free_port(net))
        relay.udp(hep, sidecar.hep)
        define = "ADMISSION_ASKED" if way == "asked" else "ADMISSION_PUSHED"
        place = f"{far[0]}:{far[1]}"
        strings = {"SIPSIDECAR_EVAPI": place, "SIPSIDECAR_RPC": f"udp:{place}"}
        defines: dict[str, str | int] = {define: 1, "SIPSIDECAR_ALONE_CPS": 1000}
        rig.start_proxy(defines=defines, strings=strings, hep=hep)
        wait_connected(sidecar)
        if state == "closed":
            post(sidecar, "/v1/admission/drain", {})
        stages = [(wanted.before + wanted.fault + wanted.after, wanted.rate)]
        run = rig.start_callers(stages, "--kinds", "call,plain", "--seed", wanted.seed)
        time.sleep(wanted.before)
        struck = _strike(sidecar, relay, fault)
        time.sleep(wanted.fault)
        mended = _mend(sidecar, relay, fault, state)
        fates = run.fates(wanted.after + 60)
    rig.end()
    sidecar.end()
    return {"way": way, "fault": fault, "state": state, **judge(fates, struck, mended, state)}


def _strike(sidecar: Sidecar, relay: Relay, fault: str) -> float:
    assert sidecar.process is not None
    at = time.monotonic()
    if fault == "kill":
        sidecar.process.kill()
    elif fault == "stop":
        sidecar.process.send_signal(signal.SIGSTOP)
    else:
        relay.cut()
    return at


def _mend(sidecar: Sidecar, relay: Relay, fault: str, state: str) -> float:
    assert sidecar.process is not None
    at = time.monotonic()
    if fault == "kill":
        sidecar.process.wait(10)
        sidecar.start()
        sidecar.wait_ready()
        at = time.monotonic()
        if state == "closed":  # a drain does not outlive its process
            post(sidecar, "/v1/admission/drain", {})
    elif fault == "stop":
        sidecar.process.send_signal(signal.SIGCONT)
    else:
        relay.cut(now=False)
    return at


def judge(fates: Sequence[Fate], struck: float, mended: float, state: str) -> dict[str, Any]:
    """What the calls met, in three parts: before the fault, during it, after it."""

    # A call that is under way when the fault comes belongs to it.
    struck_at, struck = struck, struck - UNDER_WAY

    def waits(kind: str, begin: float, end: float) -> list[float]:
        # Those that got no answer at all have waited for as long as anybody does.
        return [
            10_000.0 if fate.seconds is None else fate.seconds * 1000
            for fate in fates
            if fate.kind == kind and begin <= fate.at < end
        ]

    asking = [fate for fate in fates if fate.kind == "call"]
    plain = [fate for fate in fates if fate.kind == "plain"]
    refused = [fate.at for fate in asking if fate.outcome == "refused"]
    during = [at for at in refused if struck_at <= at < mended]
    waited = [
        fate.at
        for fate in asking
        if struck <= fate.at < mended and (fate.seconds or 0) * 1000 > UNRELATED_MS
    ]
    passed_late = [fate.at for fate in asking if fate.at >= mended and fate.outcome == "answered"]
    row: dict[str, Any] = {
        "calls": len(asking),
        "before_refused_share": _share([one for one in asking if one.at < struck], "refused"),
        # From then on every call passed.
        "pass_after_s": round(max(max(during) - struck_at, 0.0), 2) if during else 0.0,
        # Until then some waited for a decision that did not come.
        "waited_until_s": round(max(max(waited) - struck_at, 0.0), 2) if waited else 0.0,
        "lost": sum(fate.outcome in ("silent", "late") for fate in fates),
        "unrelated_refused": sum(fate.outcome == "refused" for fate in plain),
    }
    if state == "closed":
        row["in_force_after_s"] = round(max(passed_late) - mended, 2) if passed_late else 0.0
    parts = (("before", 0.0, struck), ("fault", struck, mended), ("after", mended, float("inf")))
    for kind, word in (("call", "asking"), ("plain", "unrelated")):
        for part, begin, end in parts:
            found = waits(kind, begin, end)
            row[f"{word}_ms_{part}"] = {
                "p50": _rounded(quantile(found, 0.5)),
                "max": _rounded(max(found, default=None)),
            }
    return row


def _share(fates: Sequence[Fate], outcome: str) -> float:
    return round(sum(one.outcome == outcome for one in fates) / len(fates), 3) if fates else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def run(wanted: argparse.Namespace) -> Result:
    """Every way, fault and state."""
    result = Result("a sidecar that is killed, stopped, or cut off")
    rows = []
    with Lab(disk_gb=1) as lab:
        database = lab.database()
        for way in wanted.ways.split(","):
            for fault in wanted.faults.split(","):
                for state in wanted.states.split(","):
                    row = one(lab, database, wanted, way, fault, state)
                    rows.append(row)
                    progress(json.dumps(row))
                    _claim(result, row)
    result.note(rows=rows)
    print(table(rows))
    return result


def _claim(result: Result, row: dict[str, Any]) -> None:
    name = f"{row['way']}, {row['state']}, {row['fault']}"
    way = row["way"]
    if row["state"] == "closed":
        share = row["before_refused_share"]
        result.claim(f"{name}: before it all are refused", share == 1, share)
        after = row["pass_after_s"]
        result.claim(f"{name}: calls pass in time", after <= PASS_WITHIN[way], f"{after} s")
    else:
        refused = row["before_refused_share"], row["pass_after_s"]
        result.claim(f"{name}: none is refused", refused == (0, 0), refused)
    result.claim(f"{name}: no call is lost", row["lost"] == 0, row["lost"])
    longest = row["asking_ms_fault"]["max"]
    result.claim(f"{name}: a call waits its patience at most", longest < LONGEST_MS[way], longest)
    longest = max(row[f"unrelated_ms_{part}"]["max"] or 0 for part in ("before", "fault", "after"))
    words = f"{name}: no other call waits or is refused"
    result.claim(words, longest < UNRELATED_MS and not row["unrelated_refused"], f"{longest} ms")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        (
            "| way | fault | before | calls pass after s | refused again after s |"
            " worst asking call ms | some wait until s | worst unrelated call ms (before / during / after) |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        others = " / ".join(
            str(row[f"unrelated_ms_{part}"]["max"]) for part in ("before", "fault", "after")
        )
        before = "all refused" if row["state"] == "closed" else "all pass"
        passing = row["pass_after_s"] if row["state"] == "closed" else "always"
        lines.append(
            f"| {row['way']} | {row['fault']} | {before} | {passing} |"
            f" {row.get('in_force_after_s', '-')} | {row['asking_ms_fault']['max']} |"
            f" {row['waited_until_s']} | {others} |"
        )
    return "\n".join(lines)


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
