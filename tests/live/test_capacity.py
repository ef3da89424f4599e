"""A capacity of 50 and an offer of 80: the whole program with a real Kamailio and SIPp.

Every third second an emergency comes beside them, and every call is refreshed in its middle.
"""

import asyncio
import json
import os
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from live import truth
from live.evapi import need_evapi
from live.programs import (
    ROOT,
    answers_options,
    clean_environment,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)
from live.test_sipp import ready, sidecar_says

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

CAPACITY = 50
RESERVED = 3
"""5 % of it, rounded up: for calls that are never refused."""
OFFERED = 80
HOLD_SECONDS = 4.2
"""Of uac_offered and uas_holds."""
SECONDS = float(os.environ.get("SIPSIDECAR_CAPACITY_SECONDS", "20"))
OVERSHOOT_SECONDS = 0.05
"""From an INVITE at Kamailio to what was pushed because of it; two milliseconds on an idle machine."""
SCENARIOS = Path(__file__).parent / "scenarios"
MINIMAL = ROOT / "kamailio" / "kamailio-minimal.cfg"


@dataclass
class Outcome:
    """What the callers saw, and what the sidecar says of it."""

    callers: list[truth.Line]
    emergencies: list[truth.Line]
    refusals: list[dict[str, Any]]
    """Rows of the table."""
    finals: dict[str, tuple[int | None, str | None]]
    """Code and origin of each call's record."""
    leases: int
    """When all was over."""
    log: str


def offer(folder: Path, mode: str, calls: int, seconds: float) -> Outcome:
    """Offer so many calls in so many seconds with Kamailio `ASKED` or `PUSHED`."""
    need_evapi()
    sipp = need("sipp", "sip-tester")
    net, port = network(), free_port()
    hep, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    rpc, evapi = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    told = f'evapi = {{ edge = "{evapi}" }}'
    if mode == "PUSHED":
        told = f'kamailio = {{ edge = "udp:{rpc}" }}'
    (folder / "sidecar.toml").write_text(f"""
[admission]
{told}
[[admission.rules]]
name = "capacity"
measure = "calls"
limit = {CAPACITY}
reason = "all lines are taken"
""")
    run: list[str | Path] = [
        sys.executable,
        "-m",
        "sipsidecar",
        "run",
        "--config",
        folder / "sidecar.toml",
    ]
    run += ["--hep", hep, "--http", http, "--data", folder / "data"]
    kamailio = kamailio_command(
        MINIMAL,
        folder,
        {"PROXY_LISTEN": f"{net}.1:{port}", f"ADMISSION_{mode}": 1},
        strings={
            "SIPSIDECAR_URI": f"sip:{hep}",
            "SIPSIDECAR_RPC": f"udp:{rpc}",
            "SIPSIDECAR_EVAPI": evapi,
        },
    )
    common = ["-p", str(port), "-bind_local", "-nostdin", "-trace_err"]
    callee: list[str | Path] = [sipp, "-sf", SCENARIOS / "uas_holds.xml", "-i", f"{net}.2"]
    callee += common
    with (
        running("sidecar", run, folder, clean_environment()) as sidecar,
        running("kamailio", kamailio, folder) as proxy,
        running("callee", callee, folder),
    ):
        until("readiness", lambda: ready(http), 60, sidecar)
        until("OPTIONS answer", lambda: answers_options(f"{net}.1", port), 20, proxy)
        until("connection", lambda: is_connected(http), 20, sidecar)

        def caller(name: str, ip: str, user: str, calls: int) -> list[str | Path]:
            options: list[str | Path] = [sipp, f"{net}.1:{port}", "-i", ip]
            options += [
                "-sf",
                SCENARIOS / "uac_offered.xml",
                "-s",
                user,
                "-key",
                "callee",
                f"{net}.2:{port}",
                *common,
            ]
            options += ["-m", str(calls), "-l", "1000", "-r", str(calls)]
            options += ["-rp", str(int(seconds * 1e3)), "-cid_str", f"{name}.%u.%p@%s"]
            options += ["-trace_shortmsg", "-shortmessage_file", f"{name}.short"]
            return [*options, "-timeout", f"{seconds + 45:.0f}s", "-timeout_error"]

        emergencies = max(2, int(seconds / 3))
        with (
            running("calls", caller("calls", f"{net}.3", "bob", calls), folder) as many,
            running("sos", caller("sos", f"{net}.4", "112", emergencies), folder) as few,
        ):
            for one in (many, few):
                code = one.wait(seconds + 60)
                assert code == 0, f"SIPp {one.name} ended with {code}:\n{one.tail()}"
        lines = {name: truth.read(folder / f"{name}.short") for name in ("calls", "sos")}
        wanted = {call_id for own in lines.values() for call_id in truth.calls(own)}
        finals = until("records", lambda: records(folder / "data", wanted), 60, sidecar, every=1)
        leases = status(http)["leases"]["held"]
        dsn = sidecar_says("dsn", data=folder / "data").strip()
        refusals = asyncio.run(rows(dsn, "SELECT * FROM admissions"))
        sidecar.stop(30)
        log = sidecar.log.read_text(errors="replace")
    return Outcome(lines["calls"], lines["sos"], refusals, finals, leases, log)


def status(http: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{http}/v1/admission/status", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def is_connected(http: str) -> bool | None:
    said = status(http)
    return all(one["up"] for one in said["pushes"] + said["asks"]) or None


def records(data: Path, wanted: set[str]) -> dict[str, tuple[int | None, str | None]] | None:
    said = sidecar_says("calls", "--json", "--limit", "5000", data=data)
    found = [json.loads(line) for line in said.splitlines()]
    if wanted - {one["call_id"] for one in found}:
        return None
    return {one["call_id"]: (one["final_code"], one["final_origin"]) for one in found}


async def rows(dsn: str, query: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def most_at_once(lines: Iterable[truth.Line]) -> int:
    """The most calls that were established at one time: from the 200 to the BYE."""
    steps: list[tuple[float, int]] = []
    for line in lines:
        if (line.method, line.cseq, line.status) == ("INVITE", 1, 200):
            steps.append((line.at, 1))
        elif line.method == "BYE" and line.status is None:
            steps.append((line.at, -1))
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def judge(mode: str, done: Outcome, capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """What must be true in both modes; the most calls at once, in all and without emergencies."""
    calls, emergencies = truth.calls(done.callers), truth.calls(done.emergencies)
    codes = Counter(call.final_code for call in calls.values())
    most, ordinary = most_at_once([*done.callers, *done.emergencies]), most_at_once(done.callers)
    refused = {call_id for call_id, call in calls.items() if call.final_code == 486}
    ways = Counter(row["way"] for row in done.refusals if row["verdict"] == "refuse")
    with capsys.disabled():
        print(
            f"\n{mode}: {len(calls)} calls offered, {codes[200]} answered, {codes[486]} refused;"
            f" most at once {most} of {CAPACITY} ({ordinary} ordinary,"
            f" {most_at_once(done.emergencies)} emergency); refusals stored {dict(ways)};"
            f" leases at the end {done.leases}"
        )
    assert set(codes) == {200, 486}
    # In-dialog requests and emergencies are never refused: SIPp ends with an error when one is.
    assert {call.final_code for call in emergencies.values()} == {200}
    stored = {row["call_id"] for row in done.refusals if row["verdict"] == "refuse"}
    assert stored == refused
    assert {row["rule"] for row in done.refusals if row["verdict"] == "refuse"} == {"capacity"}
    for call_id in refused:
        assert done.finals[call_id] == (486, "admission")
    assert done.leases == 0
    assert "Traceback" not in done.log
    assert "ERROR" not in done.log
    return most, ordinary


STEADY = (int(OFFERED / HOLD_SECONDS * SECONDS), SECONDS)
BURST = (OFFERED, 0.2)
"""All of them before the first one ends, 400 a second."""
shapes = pytest.mark.parametrize("shape", [STEADY, BURST], ids=["steady", "burst"])


@shapes
def test_asked_there_are_never_more_calls_than_the_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, float]
) -> None:
    most, ordinary = judge("asked", offer(tmp_path, "ASKED", *shape), capsys)
    assert most <= CAPACITY
    # And it is used, but for what is reserved.
    assert CAPACITY - RESERVED - 1 <= ordinary <= CAPACITY - RESERVED


@shapes
def test_pushed_there_are_few_more_calls_than_the_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, float]
) -> None:
    most, ordinary = judge("pushed", offer(tmp_path, "PUSHED", *shape), capsys)
    # As many as come while what was seen is counted and pushed.
    assert most <= CAPACITY + OVERSHOOT_SECONDS * shape[0] / shape[1]
    assert ordinary >= CAPACITY - RESERVED - 1
