"""Two sidecars on one database, one of them killed and started again.

    python -m chaos.pair --seconds 600

Maintenance comes every few seconds instead of minutes, and partitions that are past their days are
planted again and again: each must be dropped once, by whoever's turn it is.
"""

import argparse
import datetime as dt
import functools
import itertools
import sys
import time

from chaos import lab, truth
from chaos.results import Result, command, progress

OLD_DAYS = 30
"""Age of what is planted; messages are kept for 7 days."""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--seconds", type=float, default=600)
    flags.add_argument("--rate", type=float, default=3000, help="packets per second, each")
    flags.add_argument("--maintain-every", type=float, default=10, help="seconds")
    flags.add_argument("--plants", type=int, default=10, help="old partitions")
    flags.add_argument("--settle-seconds", type=float, default=600)
    flags.add_argument("--seed", type=int, default=1)
    return flags


def plant(database: lab.Database, number: int, planted: list[str]) -> None:
    """Make an old partition with a row in it, and note its name."""
    day = dt.datetime.now(dt.UTC) - dt.timedelta(days=OLD_DAYS, hours=number)
    low = day.replace(minute=0, second=0, microsecond=0)
    high = low + dt.timedelta(hours=1)
    name = f"messages_p{low:%Y%m%d%H}"
    database.query(
        f"CREATE TABLE {name} PARTITION OF messages FOR VALUES FROM ('{low}') TO ('{high}')"
    )
    database.query(
        "INSERT INTO messages (received_at, sequence, node_id, kind, payload)"
        " VALUES ($1, 0, 0, 1, '')",
        low,
    )
    planted.append(name)


def run(wanted: argparse.Namespace) -> Result:
    """Two loads, one kill, old partitions, and what the tables say of it."""
    result = Result(f"pair: two sidecars at {wanted.rate:g}/s each for {wanted.seconds:g} s")
    count = truth.dialogs(wanted.rate, wanted.seconds)
    planted: list[str] = []
    with lab.Lab(disk_gb=3 + 6e-6 * wanted.rate * wanted.seconds, memory_gb=3) as here:
        database = here.database()
        every = {"RETENTION__CHECK_SECONDS": str(wanted.maintain_every)}
        one, two = (
            here.sidecar(f"node-{node}", database, {"NODE__ID": str(node), **every})
            for node in (1, 2)
        )
        with lab.Watch(one, look_every=0.2) as watch, lab.Watch(two) as other:
            kills = lab.Kills(one, watch)
            events = [lab.Event(wanted.seconds / 2, "SIGKILL sidecar 1", kills.strike)]
            for number, at in enumerate(_times(wanted)):
                act = functools.partial(plant, database, number, planted)
                events.append(lab.Event(at, "an old partition", act))
            loads = [
                here.blast(
                    f"load-{node}", sidecar.hep, "-n", count, "-r", wanted.rate,
                    "--seed", wanted.seed * 10 + node,
                )
                for node, sidecar in ((1, one), (2, two))
            ]  # fmt: skip

            def tend() -> None:
                one.tend()
                two.tend()

            lab.play(events, lambda: any(load.running for load in loads), tend)
            sent = [load.said() for load in loads]
            progress("all is sent; waiting for the rest to be stored")
            one.settle(wanted.settle_seconds)
            said = two.settle(wanted.settle_seconds)
            _wait_dropped(database, planted, wanted)
        result.claim(
            "neither ended by itself", not one.crashes + two.crashes, (one.crashes, two.crashes)
        )
        first, second = (
            truth.Traffic(sent[node - 1], wanted.seed * 10 + node, count, node) for node in (1, 2)
        )
        truth.claim_bounded(result, database, one, first, kills, wanted.rate)
        result.note(**{f"node_1_{name}": result.figures.pop(name) for name in list(result.figures)})
        truth.claim_exact(result, database, second)
        truth.claim_ledger(result, two, said, second.packets, other)
        _claim_maintenance(result, database, planted)
        deadlocks = database.value(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        result.claim("no deadlock", deadlocks == 0, deadlocks)
        words = one.words() + two.words()
        result.claim("no unhandled exception", "Traceback" not in words, words.count("Traceback"))
        codes = one.stop(), two.stop()
        result.claim("both end cleanly", codes == (0, 0), codes)
    return result


def _times(wanted: argparse.Namespace) -> list[float]:
    """When to plant: evenly, and one beside the kill."""
    step = wanted.seconds * 0.85 / max(wanted.plants, 1)
    return [wanted.seconds * 0.05 + step * number for number in range(wanted.plants)]


def _there(database: lab.Database, planted: list[str]) -> list[str]:
    return [
        name
        for (name,) in database.query(
            "SELECT relname::text FROM pg_class WHERE relname = ANY($1::text[])", planted
        )
    ]


def _wait_dropped(database: lab.Database, planted: list[str], wanted: argparse.Namespace) -> None:
    """Wait for the round after the last was planted."""
    deadline = time.monotonic() + 4 * wanted.maintain_every + 30
    while _there(database, planted) and time.monotonic() < deadline:
        time.sleep(0.5)


def _claim_maintenance(result: Result, database: lab.Database, planted: list[str]) -> None:
    left = _there(database, planted)
    result.claim("every old partition is gone", not left, f"{len(planted)} planted, left: {left}")
    rounds = database.query(
        "SELECT node_id, extract(epoch FROM at)::float8 - seconds, extract(epoch FROM at)::float8,"
        " dropped, postponed FROM maintenance ORDER BY at"
    )
    dropped = sum(row[3] for row in rounds)
    # A round whose sidecar was killed has left no row.
    result.claim(
        "each was dropped once",
        len(planted) - 1 <= dropped <= len(planted),
        f"{dropped} drops are recorded for {len(planted)}",
    )
    overlaps = sum(1 for before, after in itertools.pairwise(rounds) if after[1] < before[2])
    result.claim("no two rounds at one time", overlaps == 0, f"{len(rounds)} rounds")
    result.note(
        rounds_by_node={str(node): sum(1 for row in rounds if row[0] == node) for node in (1, 2)},
        postponed=sum(row[4] for row in rounds),
        longest_round_seconds=round(max((row[2] - row[1] for row in rounds), default=0), 3),
    )


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
