"""Load of the bundled generator against a fresh sidecar: loss, CPU and memory, checked by its truth.

    make bench ARGS="--calls 20000 --rate 15000"

The generator, the sidecar and its PostgreSQL share the machine. Quote ratios, not absolute rates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUTCOMES = {"ok": 200, "busy": 486, "cancel": 487, "503": 503, "404": 404, "timeout": 408}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run once; exit code 0 when every call of the generator's truth is in the database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="dialogs (20000)")
    parser.add_argument("--rate", type=int, default=15_000, help="packets per second, 0: flood")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("more", nargs="*", help="more flags for hepblast, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sipsidecar-bench-") as folder:
        said = _bench(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(said))
    else:
        for key, value in said.items():
            print(f"{key:24} {value}")
    return 0 if said["exact"] and said["ledger"]["balance"] == 0 else 1


def _bench(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    blast = folder / "hepblast"
    subprocess.run(["cc", "-O2", "-o", blast, HERE / "hepblast.c", "-lm"], check=True)
    command = [sys.executable, "-m", "sipsidecar", "run", "--data", str(folder / "data")]
    command += ["--hep", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with (folder / "log").open("w") as log:
        sidecar = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert sidecar.stdout is not None
        words = " ".join(sidecar.stdout.readline() for _ in range(3)).split()
        hep = words[words.index("HEP") + 1]
        http = words[words.index("HTTP") + 1]
        before = _cpu(sidecar.pid)
        load = [str(blast), "-t", hep, "-n", str(arguments.calls), "-r", str(arguments.rate)]
        load += ["--seed", "7", *arguments.more]
        sent = json.loads(subprocess.run(load, check=True, capture_output=True, text=True).stdout)
        started = time.monotonic()
        ledger = _settled(http)
        backlog = time.monotonic() - started
        cpu = _cpu(sidecar.pid) - before
        stored = _stored(folder / "data")
        memory = _peak_memory(sidecar.pid)
    finally:
        sidecar.terminate()
        code = sidecar.wait(60)
    truth = {str(code): sent["done"][name] for name, code in OUTCOMES.items()}
    return {
        "sent": sent["sent"],
        "packets_per_second": sent["pps"],
        "lost": sent["sent"] - ledger["stored"],
        "exact": truth == stored["calls"]
        and stored["pings"] == sent["done"]["options"]
        and stored["registrations"] == 2 * sent["done"]["register"],
        "truth": truth,
        "calls": stored["calls"],
        "ledger": ledger,
        "settled_seconds": round(backlog, 1),
        "cpu_us_per_packet": round(cpu * 1e6 / sent["sent"], 1),
        "peak_memory_mb": round(memory, 1),
        "exit_code": code,
    }


def _settled(http: str) -> dict[str, Any]:
    """Wait until nothing waits and no call is closed any more."""
    last: dict[str, Any] = {}
    for _ in range(300):
        with urllib.request.urlopen(f"{http}/v1/ledger", timeout=10) as page:
            now = json.load(page)
        if now == last and now["waiting"] == 0:
            break
        last = now
        time.sleep(1.5)
    names = ("received", "stored", "waiting", "quarantined", "refused", "dropped", "balance")
    return {name: last[name] for name in (*names, "kernel_drops")}


def _stored(data: Path) -> dict[str, Any]:
    import asyncio

    import asyncpg

    from sipsidecar.edges.embedded import dsn_of

    async def ask() -> dict[str, Any]:
        connection = await asyncpg.connect(dsn_of(data))
        calls = await connection.fetch(
            "SELECT final_code, count(*) FROM calls WHERE seizure GROUP BY 1"
        )
        pings = await connection.fetchval("SELECT count(*) FROM pings")
        registrations = await connection.fetchval("SELECT count(*) FROM registrations")
        await connection.close()
        return {
            "calls": {str(row[0]): row[1] for row in calls},
            "pings": pings,
            "registrations": registrations,
        }

    return asyncio.run(ask())


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _peak_memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
