"""How long decisions take while the same process is flooded with captured traffic.

    python -m overload.latency --rates 0,10000,40000 --seconds 20

At each rate of HEP (SIP, and reports of media) a switch asks a hundred times a second by evapi and
by HTTP, is pushed to, and an operator drains a trunk now and then.
"""

import argparse
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from chaos.lab import Database, Lab, cpu_seconds
from chaos.results import Result, command, progress
from live.programs import free_port
from overload.goodput import quantile
from overload.loads import admission_status

if TYPE_CHECKING:
    from pathlib import Path

ASKED_MS = 20.0
"""Most that the 99th percentile of a decision may be."""
PUSHED_MS = 5.0
"""Most that the median round trip of a push may be."""

CONFIG = """
[admission]
kamailio = {{ probe = "udp:{rpc}" }}
evapi = {{ probe = "{evapi}" }}

[[cohorts.match]]
trunk = "probed"
sources = ["192.0.2.200"]
{matchers}
[[admission.rules]]
name = "all-calls"
measure = "calls"
limit = 100000
[[admission.rules]]
name = "all-rate"
measure = "calls_per_second"
limit = 5000
[[admission.rules]]
name = "each-trunk"
measure = "calls"
trunk = "*"
limit = 50000
[[admission.rules]]
name = "trunk-ner"
measure = "ner_percent"
trunk = "*"
limit = 30
outcome = "shadow"
[[admission.rules]]
name = "trunk-delay"
measure = "pdd_p95_ms"
trunk = "*"
limit = 20000
outcome = "shadow"
"""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--rates", default="0,10000,40000", help="HEP packets per second")
    flags.add_argument("--seconds", type=float, default=20, help="of each rate (20)")
    flags.add_argument("--ask", type=float, default=100, help="questions per second, each way")
    flags.add_argument("--asked-ms", type=float, default=ASKED_MS)
    flags.add_argument("--pushed-ms", type=float, default=PUSHED_MS)
    return flags


def one(
    lab: Lab, database: Database, wanted: argparse.Namespace, name: str, rate: float
) -> dict[str, Any]:
    """One rate, with a fresh sidecar."""
    places = {key: f"127.0.0.1:{free_port('127.0.0.1')}" for key in ("evapi", "rpc")}
    matchers = "".join(
        f'[[cohorts.match]]\ntrunk = "trunk{number}"\naddresses = ["192.0.2.{number}"]\n'
        for number in range(1, 9)
    )
    path = lab.folder / f"{name}.toml"
    path.write_text(CONFIG.format(**places, matchers=matchers))
    sidecar = lab.sidecar(f"sidecar-{name}", database, {"CONFIG": str(path)})
    words: list[str | Path] = [sys.executable, "-m", "overload.askers"]
    words += [word for key, value in places.items() for word in (f"--{key}", value)]
    words += ["--http", f"{sidecar.http[0]}:{sidecar.http[1]}"]
    words += ["--seconds", str(wanted.seconds), "--rate", str(wanted.ask)]
    if rate:
        more: list[str | float] = ["-r", rate, "-d", wanted.seconds + 8, "--quiet"]
        lab.blast(f"blast-{name}", sidecar.hep, *more)
        time.sleep(2)
    asker = lab.generator(f"askers-{name}", words)
    round_trips: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for told in admission_status(sidecar)["pushes"]:
                if told["up"] and told["rtt_ms"] is not None:
                    round_trips.append(round(told["rtt_ms"], 3))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    before = sidecar.ledger()["received"], time.monotonic(), cpu_seconds(sidecar.pid)
    said = asker.said(wanted.seconds + 60)
    seconds = time.monotonic() - before[1]
    received = sidecar.ledger()["received"] - before[0]
    cpu = cpu_seconds(sidecar.pid) - before[2]
    over.set()
    thread.join(30)
    row: dict[str, Any] = {
        "offered": rate,
        "taken": round(received / seconds),
        "lost": said["lost"],
    }
    row["cpu_share"] = round(cpu / seconds, 2)
    row["cpu_us_per_packet"] = round(cpu / received * 1e6, 1) if received else None
    for way, values in said["ms"].items():
        row[way] = {
            word: quantile(values, share)
            for word, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        } | {"asked": len(values)}
    row["push"] = {"p50": quantile(round_trips, 0.5), "max": quantile(round_trips, 1.0)}
    row["kernel_drops"] = sidecar.kernel()[0]
    sidecar.end()
    return row


def run(wanted: argparse.Namespace) -> Result:
    """Every rate."""
    result = Result("latency of decisions under capture load")
    rows = []
    with Lab(disk_gb=3) as lab:
        for rate in (float(word) for word in wanted.rates.split(",")):
            name = f"{rate:g}"
            database = lab.database(lab.folder / f"database-{name}")
            row = one(lab, database, wanted, name, rate)
            database.stop()
            rows.append(row)
            progress(json.dumps(row))
            for way in ("evapi", "http"):
                p99 = row[way]["p99"]
                result.claim(
                    f"{rate:g}/s: a decision by {way} takes under {wanted.asked_ms:g} ms (p99)",
                    p99 is not None and p99 < wanted.asked_ms and not row["lost"][way],
                    f"{p99} ms of {row[way]['asked']}, {row['lost'][way]} lost",
                )
            median = row["push"]["p50"]
            result.claim(
                f"{rate:g}/s: the round trip of a push is under {wanted.pushed_ms:g} ms",
                median is not None and median < wanted.pushed_ms,
                f"{median} ms",
            )
    result.note(rows=rows)
    print(table(rows))
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        (
            "| HEP offered/s | taken/s | evapi p50 / p99 / max ms | HTTP p50 / p99 / max ms |"
            " push round trip p50 / max ms | drain to switch p50 / p99 ms |"
        ),
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ways = [
            " / ".join(f"{row[way][word]}" for word in ("p50", "p99", "max"))
            for way in ("evapi", "http")
        ]
        push, drain = row["push"], row["drain"]
        lines.append(
            f"| {row['offered']:g} | {row['taken']} | {ways[0]} | {ways[1]} |"
            f" {push['p50']} / {push['max']} | {drain['p50']} / {drain['p99']} |"
        )
    return "\n".join(lines)


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
