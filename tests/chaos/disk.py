"""Disks that are full: the database's, and the spool's.

    python -m chaos.disk                      (all parts; the first two mount a tmpfs: root)
    python -m chaos.disk --part bound         (spool.max_bytes instead of a full disk: anybody)

database  the database's volume is a small tmpfs, filled up and freed under load; the spool has room:
          nothing may be lost.
spool     the spool's volume is a tiny tmpfs, and the database is away: messages must go, counted,
          and calls must not.
bound     the same with a bound of the spool.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from chaos import lab, truth
from chaos.results import Result, Unfit, command, progress

PARTS = ("database", "spool", "bound")
QUEUE_BYTES = 8 * 2**20
"""Memory for waiting rows while the spool is small: else it would be the larger of the two."""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--part", choices=PARTS, action="append", help="several times; all")
    flags.add_argument("--seconds", type=float, default=90)
    flags.add_argument("--rate", type=float, default=3000)
    flags.add_argument("--volume-mb", type=int, default=600, help="of the database")
    flags.add_argument("--leave-mb", type=int, default=8, help="free when it is filled up")
    flags.add_argument("--spool-mb", type=int, default=24)
    flags.add_argument("--settle-seconds", type=float, default=600)
    flags.add_argument("--seed", type=int, default=1)
    return flags


def run(wanted: argparse.Namespace) -> Result:
    """Each part in a lab of its own."""
    parts = wanted.part or PARTS
    result = Result(
        f"disk full: {', '.join(parts)}; {wanted.rate:g}/s for {wanted.seconds:g} s each"
    )
    for part in parts:
        progress(f"part {part}")
        one = Result(part)
        try:
            with lab.Lab(disk_gb=3 + 3e-6 * wanted.rate * wanted.seconds, memory_gb=3) as here:
                if part == "database":
                    _database_full(one, here, wanted)
                else:
                    _spool_full(one, here, wanted, on_tmpfs=part == "spool")
        except Unfit as error:
            if wanted.part or part == "bound":  # asked for, or what every machine can do
                raise
            result.note(**{f"{part}: not run": str(error)})
        for claim in one.claims:
            result.claims.append(claim._replace(what=f"{part}: {claim.what}"))
        result.note(**{f"{part}: {name}": value for name, value in one.figures.items()})
    return result


class Filler:
    """A file that takes what is free of a volume."""

    def __init__(self, volume: Path, leave: int) -> None:
        self._file = volume / "filler"
        self._volume = volume
        self._leave = leave

    def fill(self) -> None:
        """Take all but a little."""
        size = shutil.disk_usage(self._volume).free - self._leave
        with self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))

    def free(self) -> None:
        """Give it back."""
        self._file.unlink(missing_ok=True)


def _database_full(result: Result, here: lab.Lab, wanted: argparse.Namespace) -> None:
    volume = here.tmpfs("volume", wanted.volume_mb)
    (volume / "database").mkdir()
    database = here.database(volume / "database", max_wal_size="64MB", min_wal_size="32MB")
    sidecar = here.sidecar("sidecar", database)
    filler = Filler(volume, wanted.leave_mb * 2**20)
    events = [
        lab.Event(wanted.seconds * 0.2, "the volume is full", filler.fill),
        lab.Event(wanted.seconds * 0.7, "the volume has room", filler.free),
    ]
    said, traffic, watch = _load(here, database, sidecar, events, wanted)
    full = database.log.read_text(errors="replace").count("No space left on device")
    result.claim("the volume was full indeed", full > 0, f"PostgreSQL said so {full} times")
    result.note(server_starts=database.starts, spool_most_packets=watch.most("spooled"))
    have = truth.claim_exact(result, database, traffic)
    result.claim("the ledger's stored are in the tables", have.messages == said["stored"])
    result.claim("nothing was shed", said["dropped"] == 0, said["dropped"])
    _claim_recovery(result, sidecar, said, traffic, watch)


def _spool_full(
    result: Result, here: lab.Lab, wanted: argparse.Namespace, *, on_tmpfs: bool
) -> None:
    settings = {"DATABASE__QUEUE_BYTES": str(QUEUE_BYTES)}
    if on_tmpfs:
        volume = here.tmpfs("volume", wanted.spool_mb)
        settings["SPOOL__DIRECTORY"] = str(volume / "spool")
    else:
        settings["SPOOL__MAX_BYTES"] = str(wanted.spool_mb * 2**20)
    database = here.database()
    sidecar = here.sidecar("sidecar", database, settings)
    events = [
        lab.Event(wanted.seconds * 0.2, "stop PostgreSQL", database.stop),
        lab.Event(wanted.seconds * 0.8, "start PostgreSQL", database.start),
    ]
    said, traffic, watch = _load(here, database, sidecar, events, wanted)
    have = truth.stored(database)
    dropped = {
        table: int(sidecar.metric("sipsidecar_rows_dropped_total", table=table))
        for table in ("messages", "quarantine", "pings", "registrations", "attempts", "calls")
    }
    result.note(
        spool_most_packets=watch.most("spooled"),
        rows_dropped=dropped,
        dropped_by_reason=said["dropped_by_reason"],
    )
    result.claim(
        "there was too little room: messages were shed", said["dropped"] > 0, said["dropped"]
    )
    result.claim("messages alone were shed", sum(dropped.values()) == dropped["messages"], dropped)
    result.claim(
        "each shed packet is a message that is not in the tables",
        have.messages == said["stored"] == traffic.packets - said["dropped"] - sidecar.kernel()[0],
        f"{traffic.packets} sent, {have.messages} there, {said['dropped']} shed",
    )
    truth.claim_calls(result, database, traffic)
    truth.claim_no_doubles(result, database, have)
    _claim_recovery(result, sidecar, said, traffic, watch)


def _load(
    here: lab.Lab,
    database: lab.Database,
    sidecar: lab.Sidecar,
    events: list[lab.Event],
    wanted: argparse.Namespace,
) -> tuple[dict[str, int], truth.Traffic, lab.Watch]:
    """Traffic while the events happen, until everything has settled."""
    count = truth.dialogs(wanted.rate, wanted.seconds)

    def tend() -> None:
        sidecar.tend()
        database.tend()

    with lab.Watch(sidecar) as watch:
        words = ["-n", count, "-r", wanted.rate, "--seed", wanted.seed]
        load = here.blast("load", sidecar.hep, *words)
        lab.play(events, lambda: load.running, tend)
        sent = load.said()
        began = time.monotonic()
        said = sidecar.settle(wanted.settle_seconds, database)
        progress(f"settled after {time.monotonic() - began:.0f} s")
    return said, truth.Traffic(sent, wanted.seed, count), watch


def _claim_recovery(
    result: Result,
    sidecar: lab.Sidecar,
    said: dict[str, int],
    traffic: truth.Traffic,
    watch: lab.Watch,
) -> None:
    result.note(peak_memory_mb=round(watch.peak / 2**20, 1), health_live_ms=watch.latency_ms())
    result.claim(
        "it recovered by itself: one life, nothing left to be stored",
        not sidecar.crashes and not said["waiting"] and not said["spooled"],
        f"{sidecar.lives} lives, {said['waiting']} wait, {said['spooled']} on disk",
    )
    truth.claim_ledger(result, sidecar, said, traffic.packets, watch)
    code = sidecar.stop()
    result.claim("it ends cleanly", code == 0, f"exit code {code}")


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
