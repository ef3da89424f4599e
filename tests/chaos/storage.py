"""A database that is killed, stopped and made read-only under load, and a sidecar that is killed.

    python -m chaos.storage --seconds 300 --rate 10000 --kills 10 --stops 2 --read-only 1
    python -m chaos.storage --sidecar-kills 5 [--write-ahead]

Without kills of the sidecar nothing may be missing. With them each kill may lose what was in that
process: rows that no write had finished with. The bound is stated and the loss measured.
"""

import argparse
import functools
import random
import sys
import time

from chaos import lab, truth
from chaos.results import Result, command, progress

READ_ONLY_SECONDS = 20.0


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--seconds", type=float, default=300)
    flags.add_argument("--rate", type=float, default=10_000, help="packets per second")
    flags.add_argument("--kills", type=int, default=10, help="of PostgreSQL, by SIGKILL")
    flags.add_argument("--stops", type=int, default=2)
    flags.add_argument("--stop-seconds", type=float, default=60)
    flags.add_argument("--read-only", type=int, default=1, help="times")
    flags.add_argument("--read-only-seconds", type=float, default=READ_ONLY_SECONDS)
    flags.add_argument("--sidecar-kills", type=int, default=0)
    flags.add_argument("--write-ahead", action="store_true")
    flags.add_argument("--settle-seconds", type=float, default=900)
    flags.add_argument("--seed", type=int, default=1)
    return flags


def faults(
    database: lab.Database, rng: random.Random, wanted: argparse.Namespace
) -> list[lab.Event]:
    """Every fault of the database and its repair, spread over the run."""
    away = [round(rng.uniform(0.2, 2.0), 1) for _ in range(wanted.kills)]
    kinds = [("kill", seconds) for seconds in away]
    kinds += [("stop", wanted.stop_seconds)] * wanted.stops
    kinds += [("read-only", wanted.read_only_seconds)] * wanted.read_only
    rng.shuffle(kinds)
    hows = [("server", "postmaster", "backend")[number % 3] for number in range(wanted.kills)]
    events = []
    times = lab.spread(rng, wanted.seconds, [length for _, length in kinds])
    for at, (kind, length) in zip(times, kinds, strict=True):
        if kind == "read-only":
            first = lab.Event(at, "read-only", lambda: database.read_only(True))
            second = lab.Event(at + length, "writable again", lambda: database.read_only(False))
        else:
            second = lab.Event(at + length, "start PostgreSQL", database.start)
            if kind == "stop":
                first = lab.Event(at, f"stop PostgreSQL for {length:g} s", database.stop)
            else:
                how = hows.pop()
                strike = functools.partial(database.kill, how)
                first = lab.Event(at, f"SIGKILL PostgreSQL ({how})", strike)
                if how == "backend":  # its postmaster repairs that by itself
                    second = lab.Event(at + length, "PostgreSQL recovers", lambda: None)
        events += [first, second]
    return events


def run(wanted: argparse.Namespace) -> Result:
    """Load, faults, and what is in the database afterwards."""
    rng = random.Random(wanted.seed)
    title = f"storage, {wanted.rate:g}/s for {wanted.seconds:g} s: {wanted.kills} SIGKILLs"
    title += f", {wanted.stops} stops of {wanted.stop_seconds:g} s, {wanted.read_only} read-only"
    if wanted.sidecar_kills:
        title += f", sidecar SIGKILLed {wanted.sidecar_kills} times"
        title += ", write-ahead" if wanted.write_ahead else ""
    result = Result(title)
    count = truth.dialogs(wanted.rate, wanted.seconds)
    with lab.Lab(disk_gb=2 + 3e-6 * wanted.rate * wanted.seconds) as here:
        database = here.database()
        settings = {"SPOOL__WRITE_AHEAD": "true"} if wanted.write_ahead else {}
        sidecar = here.sidecar("sidecar", database, settings)
        events = faults(database, rng, wanted)
        with lab.Watch(sidecar, look_every=0.2) as watch:
            kills = lab.Kills(sidecar, watch)
            for at in lab.spread(rng, wanted.seconds, [1.0] * wanted.sidecar_kills):
                events.append(lab.Event(at, "SIGKILL the sidecar", kills.strike))
            load = here.blast(
                "load", sidecar.hep, "-n", count, "-r", wanted.rate, "--seed", wanted.seed
            )
            lab.play(events, lambda: load.running, sidecar.tend)
            sent = load.said()
            progress(f"sent {sent['sent']}; waiting for the rest to be stored")
            began = time.monotonic()
            said = sidecar.settle(wanted.settle_seconds, database)
            result.note(
                settled_seconds=round(time.monotonic() - began, 1),
                spool_most_packets=watch.most("spooled"),
                waiting_most_packets=watch.most("waiting"),
                peak_memory_mb=round(watch.peak / 2**20, 1),
                health_live_ms=watch.latency_ms(),
                server_starts=database.starts,
                sidecar_lives=sidecar.lives,
            )
        result.claim("the sidecar never ended by itself", sidecar.crashes == 0, sidecar.crashes)
        result.claim(
            "nothing is left to be stored",
            not said["waiting"] and not said["spooled"],
            f"{said['waiting']} wait, {said['spooled']} on disk",
        )
        traffic = truth.Traffic(sent, wanted.seed, count)
        if wanted.sidecar_kills:
            truth.claim_bounded(result, database, sidecar, traffic, kills, wanted.rate)
            last = [one.ledger["balance"] for one in watch.samples if one.pid == sidecar.pid]
            result.claim(
                "the last life's balance was always 0", not any(last), f"{len(last)} looks"
            )
        else:
            have = truth.claim_exact(result, database, traffic)
            truth.claim_ledger(result, sidecar, said, sent["sent"], watch)
            result.claim("the ledger's stored are in the tables", have.messages == said["stored"])
        code = sidecar.stop()
        result.claim("it ends cleanly", code == 0, f"exit code {code}")
        wrong = sidecar.words().count("Traceback")
        result.claim("no unhandled exception", wrong == 0, wrong)
    return result


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
