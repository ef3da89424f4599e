"""SIPp calls through a real Kamailio: every record equals what the caller's own log says.

A mix of 120 calls, or as many as SIPSIDECAR_LIVE_CALLS says.
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from live import traffic, truth
from live.programs import clean_environment, free_port, need, running, until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(420)]

CALLS = int(os.environ.get("SIPSIDECAR_LIVE_CALLS", "120"))
SIDECAR = [sys.executable, "-m", "sipsidecar"]
TOLERANCE_MS = 3.0
# Two clocks read by two programs on a machine that has other work: a program that has to wait for
# its turn between the network and its clock is late by that wait, and says nothing about us. So
# the middle of the differences is judged, and a stall, which would be a mix-up; all are printed.
STALL_MS = 250.0
QUERIES = [
    # The newest revision of each.
    """SELECT DISTINCT ON (call_id, from_tag, branch) * FROM attempts
       ORDER BY call_id, from_tag, branch, revision DESC""",
    "SELECT * FROM registrations",
    "SELECT * FROM pings",
]


@dataclass
class Live:
    """What the callers saw, and what the database says."""

    seen: traffic.Seen
    records: dict[str, dict[str, Any]]
    attempts: list[dict[str, Any]]
    registrations: list[dict[str, Any]]
    pings: list[dict[str, Any]]
    exit_code: int
    log: str


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    for program, package in traffic.NEEDED:
        need(program, package)
    folder = tmp_path_factory.mktemp("live")
    data = folder / "data"
    hep, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [*SIDECAR, "run", "--hep", hep, "--http", http, "--data", str(data)]
    with running("sidecar", command, folder) as sidecar:
        until("readiness", lambda: ready(http), 60, sidecar)
        seen = traffic.run(folder, hep, CALLS)
        # A challenge that nobody answers is an end only after 32 s.
        waiting = Waiting(data, seen)
        records = until(waiting, waiting.look, 60, sidecar, every=1)
        dsn = sidecar_says("dsn", data=data).strip()
        attempts, registrations, pings = [asyncio.run(rows(dsn, query)) for query in QUERIES]
        code = sidecar.stop(30)
        log = sidecar.log.read_text(errors="replace")
    return Live(seen, records, attempts, registrations, pings, code, log)


def ready(http: str) -> bool | None:
    with (
        contextlib.suppress(OSError),  # not listening yet, or 503
        urllib.request.urlopen(f"http://{http}/health/ready", timeout=2),
    ):
        return True
    return None


def sidecar_says(*arguments: str, data: Path) -> str:
    done = subprocess.run(
        [*SIDECAR, *arguments, "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=30,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return done.stdout


class Waiting:
    """The records that are in the database, and which are still to come."""

    def __init__(self, data: Path, seen: traffic.Seen) -> None:
        self.data = data
        self.kinds = {call_id: kind.name for call_id, kind in seen.kinds.items()}
        self.missing: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"records of {dict(self.missing)}"

    def look(self) -> dict[str, dict[str, Any]] | None:
        """All records by Call-ID; None while one is missing."""
        said = sidecar_says("calls", "--json", "--limit", "5000", data=self.data)
        found = [json.loads(line) for line in said.splitlines()]
        records = {record["call_id"]: record for record in found}
        late = self.kinds.keys() - records.keys()
        self.missing = Counter(self.kinds[call_id] for call_id in late)
        if late:
            return None
        assert len(found) == len(records), "a call has two records"
        return records


async def rows(dsn: str, query: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def test_every_call_has_one_record_that_says_what_the_caller_saw(live: Live) -> None:
    assert live.records.keys() == live.seen.calls.keys()
    assert len(live.records) == CALLS
    wrong = [
        difference
        for call_id, call in live.seen.calls.items()
        for difference in truth.differences(call, live.records[call_id])
    ]
    assert not wrong, "\n".join(wrong)
    # A challenge is not an end, however long nobody answers it.
    assert {r["final_code"] for r in live.records.values() if not r["ended"]} == {407}


def test_every_kind_of_call_went_as_it_was_meant_to(live: Live) -> None:
    for call_id, call in live.seen.calls.items():
        kind = live.seen.kinds[call_id]
        went = (call.final_code, call.released_by, call.invites)
        assert went == (kind.code, kind.released_by, kind.invites), call_id
    assert {kind.name for kind in live.seen.kinds.values()} == {k.name for k in traffic.KINDS}


@pytest.mark.parametrize("name", ["pdd_ms", "talk_ms"])
def test_a_duration_is_the_caller_s_within_3_ms(
    live: Live, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(call, live.records[call_id]) for call_id, call in live.seen.calls.items()]
    errors = truth.errors_ms(pairs, name)
    within = sum(abs(error) <= TOLERANCE_MS for error in errors.values())
    worst = max(errors.items(), key=lambda item: abs(item[1]))
    with capsys.disabled():
        print(
            f"\n{CALLS} calls, {name}: {within} of {len(errors)} within {TOLERANCE_MS:g} ms,"
            f" median {statistics.median(errors.values()):+.2f} ms,"
            f" worst {worst[1]:+.2f} ms ({worst[0].split('.')[0]})"
        )
    assert len(errors) > CALLS / 3
    middle = statistics.median(abs(error) for error in errors.values())
    assert middle <= TOLERANCE_MS
    assert abs(worst[1]) < STALL_MS, worst


def test_every_branch_is_an_attempt_with_its_own_code(live: Live) -> None:
    found: dict[str, list[int | None]] = {call_id: [] for call_id in live.seen.calls}
    for attempt in live.attempts:
        found[attempt["call_id"]].append(attempt["final_code"])
    for call_id, codes in found.items():
        wanted = live.seen.kinds[call_id].branches
        assert Counter(codes) == Counter(wanted), call_id
        assert live.records[call_id]["attempts"] == len(wanted), call_id


def test_a_failover_keeps_the_order_of_its_trunks(live: Live) -> None:
    order: dict[str, dict[int, int]] = {}
    for attempt in live.attempts:
        if live.seen.kinds[attempt["call_id"]].name == "failover":
            order.setdefault(attempt["call_id"], {})[attempt["failover_order"]] = attempt[
                "final_code"
            ]
    assert order
    assert all(codes == {1: 503, 2: 200} for codes in order.values()), order


def test_every_register_has_a_row_with_its_answer(live: Live) -> None:
    found = {(row["call_id"], row["cseq"]): row["final_code"] for row in live.registrations}
    assert len(found) == len(live.registrations)
    assert found == {key: sent.final_code for key, sent in live.seen.registers.items()}
    assert set(found.values()) == {200, 401}


def test_every_options_has_a_row_with_its_answer(live: Live) -> None:
    found = {(row["call_id"], row["cseq"]): row["final_code"] for row in live.pings}
    for key, sent in live.seen.options.items():
        assert found[key] == sent.final_code == 200


def test_the_sidecar_ends_with_0_and_without_an_error(live: Live) -> None:
    assert live.exit_code == 0, live.log
    assert "Traceback" not in live.log
    assert "ERROR" not in live.log
