"""More traffic than the machine can take, for as long as you like.

    python -m chaos.flood --seconds 600

hepblast sends as fast as it can. The kernel drops what the sidecar does not fetch, the sidecar
sheds what it cannot store, and all of it is counted. Two proofs that calls are exact for what was
accepted:

- Every call all of whose messages are stored says what its dialog was (the generator's truth).
- For a sample of all other calls, whatever they lost: the messages that are stored, given to a
  fresh pipeline with their times of arrival, make the record that is stored.

A call that had no place (calls.max_calls, the memory ceiling) when its first message came has no
record, or one of its later messages alone. Of these there may be no more than the sidecar counted.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from chaos import lab, truth
from chaos.results import Result, command, progress
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import CallRecord
from sipsidecar.config import Calls
from sipsidecar.pipeline import Pipeline
from sipsidecar.wire import hep

LATENCY_MS = 100.0
CHUNK = 5000
"""Call-IDs per question."""
CUT = {"invite_lost", "partial_no_invite"}
"""Flags of a call whose beginning the sidecar did not see."""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--seconds", type=float, default=600)
    flags.add_argument("--rate", type=float, default=0, help="packets per second; 0: top speed")
    flags.add_argument("--window", type=int, default=1000, help="dialogs open at once")
    flags.add_argument(
        "--nice", type=int, default=0, help="of the sender, which stands for another machine"
    )
    flags.add_argument("--sample", type=int, default=5000, help="calls to derive anew")
    flags.add_argument("--memory-mb", type=int, default=512, help="ceiling")
    flags.add_argument("--any-latency", action="store_true", help="report it, claim nothing")
    flags.add_argument("--settle-seconds", type=float, default=900)
    flags.add_argument("--seed", type=int, default=1)
    return flags


class Record(NamedTuple):
    """What is compared of a call."""

    final_code: int | None
    answered: bool
    released_by: str | None


def run(wanted: argparse.Namespace) -> Result:
    """Flood, and where every packet went."""
    speed = f"{wanted.rate:g}/s" if wanted.rate else "top speed"
    result = Result(f"flood at {speed} for {wanted.seconds:g} s")
    settings = {"LIMITS__MEMORY_BYTES": str(wanted.memory_mb * 2**20)}
    with lab.Lab(disk_gb=2 + wanted.seconds * 0.04, memory_gb=3) as here:
        database = here.database(work_mem="256MB")
        sidecar = here.sidecar("sidecar", database, settings)
        words = ["-d", wanted.seconds, "-r", wanted.rate, "-w", wanted.window]
        with lab.Watch(sidecar, every=0.1) as watch:
            load = here.blast("load", sidecar.hep, *words, "--seed", wanted.seed)
            os.setpriority(os.PRIO_PROCESS, load.process.pid, wanted.nice)
            told = time.monotonic()
            while load.running:
                sidecar.tend()
                if time.monotonic() - told > 60 and watch.samples:
                    told = time.monotonic()
                    progress(f"{watch.samples[-1].ledger['received']} packets received")
                time.sleep(0.1)
            sent = load.said()
            flood = watch.latency_ms()
            received = watch.most("received")
            progress(f"sent {sent['sent']}; waiting for the rest to be stored")
            said = sidecar.settle(wanted.settle_seconds)
        result.note(
            sent_per_second=sent["pps"],
            received_per_second=round(received / wanted.seconds),
            health_live_ms_during_the_flood=flood,
            health_live_ms_in_all=watch.latency_ms(),
            dropped=said["dropped_by_reason"],
            spool_most_packets=watch.most("spooled"),
        )
        result.claim("the sidecar never ended by itself", sidecar.crashes == 0, sidecar.crashes)
        result.claim(
            f"memory stayed under {wanted.memory_mb} MB",
            watch.peak < wanted.memory_mb * 2**20,
            f"{watch.peak / 2**20:.0f} MB at most",
        )
        most = watch.latency_ms()
        result.claim(
            f"/health/live answered within {LATENCY_MS:g} ms",
            most["max"] < LATENCY_MS or wanted.any_latency,
            f"p50 {most['p50']}, p99 {most['p99']}, max {most['max']} ms",
        )
        truth.claim_ledger(result, sidecar, said, sent["sent"], watch)
        have = truth.stored(database)
        result.claim("the ledger's stored are in the tables", have.messages == said["stored"])
        truth.claim_no_doubles(result, database, have)
        refused = sum(
            int(sidecar.metric("sipsidecar_limits_total", cap=cap))
            for cap in ("calls", "lingering")
        )
        result.note(calls_that_had_no_place=refused)
        _claim_whole(result, database, wanted.seed, refused)
        if said["dropped"]:
            result.note(derived_anew="not done: messages were shed, the tables do not hold them")
        else:
            _claim_derived(result, database, wanted, refused)
        code = sidecar.stop()
        result.claim("it ends cleanly", code == 0, f"exit code {code}")
    return result


def _records(database: lab.Database, call_ids: list[str]) -> dict[str, tuple[Record, set[str]]]:
    """The stored records of Call-IDs, with their flags."""
    found = {}
    for start in range(0, len(call_ids), CHUNK):
        for call_id, code, answered, released_by, flags in database.query(
            "SELECT call_id, final_code, answered, released_by, flags FROM calls"
            " WHERE call_id = ANY($1::text[])",
            call_ids[start : start + CHUNK],
        ):
            found[call_id] = Record(code, answered, released_by), set(flags)
    return found


def _claim_whole(result: Result, database: lab.Database, seed: int, refused: int) -> None:
    """Claim that calls with all their messages say the truth."""
    sizes = sorted({kind.packets for kind in truth.KINDS if kind.code})
    whole = {}
    for call_id, packets in database.query(
        "SELECT call_id, count(*) FROM messages GROUP BY call_id HAVING count(*) = ANY($1::int[])",
        sizes,
    ):
        index = truth.index_of(call_id)
        if index is not None:
            known = truth.truth_of(seed, index)
            if known.kind.code and packets == known.kind.packets:
                whole[call_id] = known
    records = _records(database, list(whole))
    wrong = []
    cut = exact = 0
    for call_id, (said, flags) in records.items():
        known = whole[call_id]
        meant = Record(known.kind.code, known.kind.code == 200, known.released_by)
        if said._replace(released_by=said.released_by if known.released_by else None) == meant:
            exact += 1
        elif flags & CUT:
            cut += 1
        else:
            wrong.append(f"{call_id}: {meant} became {said} {sorted(flags)}")
    without = len(whole) - len(records)
    result.claim(
        "every recorded call all of whose messages were accepted says the truth",
        not wrong and exact > 0,
        f"{exact} exact, {len(wrong)} wrong{''.join(f'; {words}' for words in wrong[:3])}",
    )
    result.claim(
        "such calls without a whole record are no more than were counted as having no place",
        without + cut <= refused,
        f"{without} without a record, {cut} without a beginning, {refused} counted",
    )


def _claim_derived(
    result: Result, database: lab.Database, wanted: argparse.Namespace, refused: int
) -> None:
    """Claim that stored messages make the stored records."""
    call_ids = [
        call_id
        for (call_id,) in database.query(
            "SELECT call_id FROM calls ORDER BY md5(call_id) LIMIT $1", wanted.sample
        )
    ]
    records = _records(database, call_ids)
    end = database.value("SELECT extract(epoch FROM clock_timestamp())::float8")
    wrong = []
    equal = cut = 0
    derived = dict(derive(database, call_ids, end))
    for call_id, (said, flags) in records.items():
        if derived.get(call_id) == said:
            equal += 1
        elif flags & CUT:
            cut += 1
        else:
            wrong.append(f"{call_id}: {derived.get(call_id)} is stored as {said} {sorted(flags)}")
    result.claim(
        f"of {len(records)} calls the stored messages make the stored record",
        not wrong and equal > 0,
        f"{equal} equal, {len(wrong)} not{''.join(f'; {words}' for words in wrong[:3])}",
    )
    result.claim(
        "but for calls that had no place at first", cut <= refused, f"{cut}, {refused} counted"
    )


def derive(database: lab.Database, call_ids: list[str], end: float) -> Iterator[tuple[str, Record]]:
    """Yield what a fresh pipeline says of calls whose stored messages it gets in their order."""
    config = Calls()
    timing = Timing(settle=config.settle_seconds, longest=config.max_seconds)
    pipeline = Pipeline(timing, max_calls=len(call_ids) + 1, linger=config.linger_seconds)
    messages = []
    for start in range(0, len(call_ids), CHUNK):
        messages += database.query(
            "SELECT received_at_us, sequence, captured_at_us, agent_id, kind, src, src_port, dst,"
            " dst_port, payload FROM (SELECT *, host(src_ip) AS src, host(dst_ip) AS dst,"
            " (extract(epoch FROM received_at) * 1000000)::bigint AS received_at_us,"
            " (extract(epoch FROM captured_at) * 1000000)::bigint AS captured_at_us"
            " FROM messages WHERE call_id = ANY($1::text[])) AS each",
            call_ids[start : start + CHUNK],
        )
    said: dict[str, CallRecord] = {}

    def until(now: float) -> None:
        while (timer := pipeline.next_timer()) is not None and timer <= now:
            pipeline.handle_timer(timer)
            said.update(
                (one.call_id, one) for one in pipeline.records() if isinstance(one, CallRecord)
            )

    for (
        received_at,
        _,
        captured_at,
        agent_id,
        kind,
        src,
        src_port,
        dst,
        dst_port,
        payload,
    ) in sorted(messages, key=lambda row: row[:2]):
        now = received_at / 1e6
        until(now)
        datagram = hep.encode(
            source=hep.packed_address(src),
            destination=hep.packed_address(dst),
            source_port=src_port,
            destination_port=dst_port,
            captured_at=captured_at,
            protocol_type=kind,
            agent_id=agent_id,
            payload=payload,
        )
        pipeline.receive(datagram, now, received_at, "127.0.0.1")
        pipeline.stored()
    until(end)
    for call_id, one in said.items():
        yield call_id, Record(one.final_code, one.answered, one.released_by)


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
