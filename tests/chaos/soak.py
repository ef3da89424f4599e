"""Hours of steady load with a database that is started again now and then: does anything grow?

    python -m chaos.soak --hours 6

One line per minute, and a table at the end. The slope of the resident memory is by least squares
over the readings after the warm-up.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

from chaos import lab, truth
from chaos.results import Result, command, progress


class Reading(NamedTuple):
    """One line of the table."""

    minutes: float
    resident_mb: float
    descriptors: int
    received: int
    stored: int
    waiting: int
    spooled: int
    lag_ms: float
    """Longest lateness of the loop lately."""
    database_mb: float


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--hours", type=float, default=6)
    flags.add_argument("--rate", type=float, default=1500)
    flags.add_argument("--every", type=float, default=60, help="seconds between readings")
    flags.add_argument("--restart-every", type=float, default=600, help="seconds, of PostgreSQL")
    flags.add_argument("--warm-up", type=float, default=300, help="seconds")
    flags.add_argument("--keep-gb", type=float, default=20, help="retention.max_bytes")
    flags.add_argument("--slope", type=float, default=8, help="most MB/h of resident memory")
    flags.add_argument("--no-slope", action="store_true", help="report it, claim nothing")
    flags.add_argument("--table", type=Path, help="write every reading to a file, as it comes")
    flags.add_argument("--settle-seconds", type=float, default=600)
    flags.add_argument("--seed", type=int, default=1)
    return flags


def slope(points: list[tuple[float, float]]) -> float:
    """Rise per unit of the line through points by least squares; 0 for fewer than two."""
    count = len(points)
    if count < 2:
        return 0.0
    middle_x = sum(x for x, _ in points) / count
    middle_y = sum(y for _, y in points) / count
    square = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / square if square else 0.0


def run(wanted: argparse.Namespace) -> Result:
    """Load, restarts and readings, then the line through them."""
    seconds = wanted.hours * 3600
    result = Result(f"soak: {wanted.rate:g}/s for {wanted.hours:g} h")
    count = truth.dialogs(wanted.rate, seconds)
    readings: list[Reading] = []
    # What is kept, the hour that is still written to, WAL and room.
    hour_gb = 2e-6 * wanted.rate * 3600
    disk_gb = 3 + min(2e-6 * wanted.rate * seconds, wanted.keep_gb + 2 * hour_gb)
    settings = {"RETENTION__MAX_BYTES": str(int(wanted.keep_gb * 2**30))}
    with lab.Lab(disk_gb=disk_gb, memory_gb=3) as here:
        database = here.database()
        sidecar = here.sidecar("sidecar", database, settings)
        with lab.Watch(sidecar, every=1.0, look_every=max(wanted.every / 10, 0.5)) as watch:
            words = ["-n", count, "-r", wanted.rate, "--seed", wanted.seed]
            load = here.blast("load", sidecar.hep, *words)
            began = time.monotonic()

            def read() -> None:
                said = sidecar.ledger()
                size = database.value("SELECT pg_database_size(current_database())")
                reading = Reading(
                    round((time.monotonic() - began) / 60, 2),
                    round(lab.resident(sidecar.pid)[0] / 2**20, 1),
                    lab.descriptors(sidecar.pid),
                    said["received"],
                    said["stored"],
                    said["waiting"],
                    said["spooled"],
                    round(sidecar.metric("sipsidecar_loop_lag_seconds") * 1000, 1),
                    round(size / 2**20),
                )
                readings.append(reading)
                progress(" ".join(f"{k}={v}" for k, v in reading._asdict().items()))
                if wanted.table:
                    wanted.table.write_text(table(readings))

            def restart() -> None:
                database.stop()
                database.start()

            events = [
                lab.Event(wanted.every * number, "reading", read)
                for number in range(1, int(seconds / wanted.every) + 1)
            ]
            events += [
                lab.Event(wanted.restart_every * (number + 0.5), "restart PostgreSQL", restart)
                for number in range(int(seconds / wanted.restart_every))
            ]
            lab.play(events, lambda: load.running, sidecar.tend, every=0.25)
            sent = load.said()
            said = sidecar.settle(wanted.settle_seconds, database)
        traffic = truth.Traffic(sent, wanted.seed, count)
        gone = database.value("SELECT coalesce(sum(dropped_for_size), 0) FROM maintenance")
        if gone:  # by retention.max_bytes: the oldest hours of messages
            truth.claim_calls(result, database, traffic)
        else:
            truth.claim_exact(result, database, traffic)
        truth.claim_ledger(result, sidecar, said, traffic.packets, watch)
        result.claim("the sidecar never ended by itself", sidecar.crashes == 0, sidecar.crashes)
        _claim_flat(result, readings, wanted)
        result.note(
            restarts=database.starts - 1,
            partitions_dropped_for_size=int(gone),
            peak_memory_mb=round(watch.peak / 2**20, 1),
            health_live_ms=watch.latency_ms(),
        )
        code = sidecar.stop()
        result.claim("it ends cleanly", code == 0, f"exit code {code}")
    print(table(readings))
    result.note(readings=[list(reading) for reading in readings])
    return result


def _claim_flat(result: Result, readings: list[Reading], wanted: argparse.Namespace) -> None:
    warm = [one for one in readings if one.minutes * 60 >= wanted.warm_up]
    rise = slope([(one.minutes / 60, one.resident_mb) for one in warm])
    result.note(slope_mb_per_hour=round(rise, 2), readings_after_warm_up=len(warm))
    if wanted.no_slope:
        return
    result.claim(
        f"memory is flat: it rises by less than {wanted.slope:g} MB/h",
        len(warm) > 1 and rise < wanted.slope,
        f"{rise:.2f} MB/h over {len(warm)} readings",
    )
    opened = [one.descriptors for one in warm]
    spread = max(opened, default=0) - min(opened, default=0)
    result.claim("descriptors are steady", spread <= 8, f"{spread} between least and most")


def table(readings: list[Reading]) -> str:
    """Every reading in a line of columns."""
    rows = [Reading._fields, *([str(value) for value in one] for one in readings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(Reading._fields))]
    return (
        "\n".join(
            "  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True))
            for row in rows
        )
        + "\n"
    )


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
