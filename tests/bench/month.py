"""A month of figures in a real PostgreSQL: how large, how long to load, how long to look at.

Makes the rows of so many cohorts for so many days up to now, writes them as the sidecar does (binary
COPY through its own store), beside 400 days of empty weeks, and asks every view that ships for its
last 6 hours, day and 30 days. All of it goes to a new directory that is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from sipsidecar import rows
from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.postgres import partitions as keeping
from sipsidecar.signals import minutes as words
from sipsidecar.signals.minutes import CodeMinute, KpiMinute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Connection = asyncpg.Connection[asyncpg.Record]

MINUTE = 60_000_000
DAY = 1440 * MINUTE
KEPT_DAYS = 400
SPANS = ("6 hours", "1 day", "30 days")
VARIANTS = 40
"""Different minutes of one cohort; the rows of a month are these, again and again."""
MINUTES_PER_BATCH = 20
SECONDS = 900
CODES = (200, 486, 480, 487, 404, 503, 603)
WEIGHTS = (70, 8, 8, 6, 4, 3, 1)
_EPOCH = 946_684_800_000_000
_TIMES = struct.Struct(">iqiq")
_TIMES_AT = 2 + 4
"""Where the two times of a row stand: after the count of columns and an empty Call-ID."""


class Loaded(NamedTuple):
    rows: dict[str, int]
    seconds: float
    encode_us: dict[str, float]


class Asked(NamedTuple):
    view: str
    span: str
    question: str
    rows: int
    first_ms: float
    again_ms: float
    planning_ms: float
    weeks: int
    left_out: int
    by_index: bool


# -- rows


def buckets(values: Sequence[float], bounds: Sequence[float]) -> tuple[int, ...]:
    found = [0] * (len(bounds) + 1)
    for value in values:
        found[sum(bound < value for bound in bounds)] += 1
    return tuple(found)


def labels(cohort: int) -> dict[str, Any]:
    """Every second cohort is one of calls, the next the same of attempts."""
    number = cohort // 2
    return {
        "source": "trunk" if cohort % 2 else "call",
        "tenant": f"tenant-{number // 10}",
        "trunk": f"trunk-{number % 50}",
        "carrier": f"carrier-{number % 10}",
        "direction": ("in", "out")[number % 2],
        "region": ("eu-west", "us-east")[number % 50 % 2],
        "agent": f"bot-{number % 5}",
        "codec": ("PCMA", "opus")[number // 50 % 2],
    }


def minute_of(chance: random.Random, cohort: int) -> tuple[KpiMinute, list[CodeMinute]]:
    """One busy minute: a few setups, most answered, and what became of as many calls before."""
    setups = 1 + min(chance.choices(range(8), (14, 27, 27, 18, 9, 4, 2, 1))[0], 7)
    codes = chance.choices(CODES, WEIGHTS, k=setups)
    answered = codes.count(200)
    delays = [chance.lognormvariate(7, 0.5) for _ in range(setups)]
    setup = [delay + chance.lognormvariate(8, 0.6) for delay in delays[:answered]]
    talk = [chance.expovariate(1 / 120) for _ in range(answered)]
    mos = [min(chance.gauss(4.2, 0.2), 4.5) for _ in range(answered)]
    lost = [max(chance.expovariate(2) - 0.5, 0) for _ in range(2 * answered)]
    jitter = [chance.lognormvariate(1, 0.7) for _ in lost]
    rtt = [chance.lognormvariate(4, 0.5) for _ in lost]
    named = labels(cohort)
    effective = sum(code in (200, 486, 480, 487, 603) for code in codes)
    kpi = KpiMinute(
        received_at=0,
        minute_at=0,
        **named,
        attempts=setups,
        seizures=setups,
        answered=answered,
        effective=effective,
        session_effective=sum(code in (200, 480, 486, 603) for code in codes),
        ineffective=codes.count(503),
        ended=answered,
        completed=answered,
        short_calls=sum(one < 6 for one in talk),
        talk_seconds=sum(talk),
        talk_count=answered,
        pdd_count=setups,
        pdd_sum_ms=sum(delays),
        pdd_buckets=buckets(delays, words.DELAY_BOUNDS_MS),
        failed_srd_count=setups - answered,
        failed_srd_sum_ms=sum(delays[answered:]),
        failed_srd_buckets=buckets(delays[answered:], words.DELAY_BOUNDS_MS),
        setup_count=answered,
        setup_sum_ms=sum(setup),
        setup_buckets=buckets(setup, words.DELAY_BOUNDS_MS),
        talk_buckets=buckets(talk, words.TALK_BOUNDS_SECONDS),
        mos_nb_count=answered,
        mos_nb_sum=sum(mos),
        mos_nb_buckets=buckets(mos, words.MOS_BOUNDS),
        loss_count=len(lost),
        loss_sum_percent=sum(lost),
        loss_buckets=buckets(lost, words.LOSS_BOUNDS_PERCENT),
        jitter_count=len(jitter),
        jitter_sum_ms=sum(jitter),
        jitter_buckets=buckets(jitter, words.JITTER_BOUNDS_MS),
        rtt_count=len(rtt),
        rtt_sum_ms=sum(rtt),
        rtt_buckets=buckets(rtt, words.RTT_BOUNDS_MS),
    )
    origin = "callee" if named["source"] == "call" else ""
    counted = [
        CodeMinute(
            received_at=0, minute_at=0, **named, code=code, origin=origin, count=codes.count(code)
        )
        for code in sorted(set(codes))
    ]
    return kpi, counted


class Stock:
    """Encoded minutes of every cohort, in which the times are put later."""

    def __init__(self, cohorts: int) -> None:
        chance = random.Random(6)
        self.cohorts = cohorts
        made = [[minute_of(chance, cohort) for _ in range(VARIANTS)] for cohort in range(cohorts)]
        began = time.perf_counter()
        self.kpi = [[rows.encode_kpi(kpi, 1) for kpi, _ in some] for some in made]
        between = time.perf_counter()
        self.codes = [
            [[rows.encode_code(code, 1) for code in codes] for _, codes in some] for some in made
        ]
        codes = sum(len(codes) for some in made for _, codes in some)
        self.encode_us = {
            "kpi_minute": (between - began) * 1e6 / (cohorts * VARIANTS),
            "code_minute": (time.perf_counter() - between) * 1e6 / codes,
        }

    def minute(self, number: int, at: int, share: float) -> tuple[list[bytes], list[bytes]]:
        """The rows of one minute, in which each cohort has figures with this chance."""
        chance = random.Random(number)
        times = _TIMES.pack(8, at + MINUTE + 250_000 - _EPOCH, 8, at - _EPOCH)
        kpi: list[bytes] = []
        codes: list[bytes] = []
        for cohort in range(self.cohorts):
            if share < 1 and chance.random() >= share:
                continue
            variant = (number * 7 + cohort) % VARIANTS
            kpi.append(_stamped(self.kpi[cohort][variant], times))
            codes += [_stamped(row, times) for row in self.codes[cohort][variant]]
        return kpi, codes


def _stamped(row: bytes, times: bytes) -> bytes:
    return row[:_TIMES_AT] + times + row[_TIMES_AT + len(times) :]


# -- into the database


async def load(dsn: str, stock: Stock, days: float, share: float, now: int) -> Loaded:
    """Write the minutes up to now, as the sidecar writes its batches, but several to a batch."""
    store = Postgres(PostgresSettings(dsn=dsn, retention_days={}, statement_timeout_s=SECONDS))
    await store.open()
    try:
        await _make_weeks(dsn, now)
        count = dict.fromkeys(("kpi_minute", "code_minute"), 0)
        total = int(days * 1440)
        spent = 0.0
        for first in range(0, total, MINUTES_PER_BATCH):
            tables: dict[str, list[bytes]] = {"kpi_minute": [], "code_minute": []}
            for number in range(first, min(first + MINUTES_PER_BATCH, total)):
                at = (now // MINUTE - total + number) * MINUTE
                kpi, codes = stock.minute(number, at, share)
                tables["kpi_minute"] += kpi
                tables["code_minute"] += codes
            began = time.perf_counter()
            await store.write(store.first_sequence + first, tables)
            spent += time.perf_counter() - began
            for table, some in tables.items():
                count[table] += len(some)
            if first % (1440 * MINUTES_PER_BATCH // 20) == 0 and first:
                _progress(f"{first / 1440:.0f} of {days:g} days")
        return Loaded(count, spent, stock.encode_us)
    finally:
        await store.close()


async def _make_weeks(dsn: str, now: int) -> None:
    """The empty weeks that a long retention leaves in front of the month."""
    connection = await asyncpg.connect(dsn)
    try:
        week = keeping.WEEK_US
        for table in sorted(keeping._BY_WEEK):
            present = {one.low for one in await keeping.list_partitions(connection, table)}
            for low in range((now - KEPT_DAYS * DAY) // week * week, now, week):
                if low not in present:
                    async with connection.transaction():
                        await keeping._make_partition(connection, table, low)
    finally:
        await connection.close()


async def settle(dsn: str) -> None:
    """What autovacuum does in time: statistics, and page ranges in the indexes."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("VACUUM (ANALYZE) kpi_minute", timeout=SECONDS)
        await connection.execute("VACUUM (ANALYZE) code_minute", timeout=SECONDS)
    finally:
        await connection.close()


async def sizes(dsn: str) -> dict[str, tuple[int, int]]:
    """Bytes of each table and of its indexes."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch(
            "SELECT inhparent::regclass::text AS name, sum(pg_table_size(inhrelid))::bigint AS heap,"
            " sum(pg_indexes_size(inhrelid))::bigint AS indexes FROM pg_inherits "
            "WHERE inhparent IN ('kpi_minute'::regclass, 'code_minute'::regclass) GROUP BY 1"
        )
        return {row["name"]: (row["heap"], row["indexes"]) for row in found}
    finally:
        await connection.close()


# -- questions


_KPI = {
    "a trunk's ASR, p95": """
        SELECT time, sum(answered) * 100.0 / sum(seizures), max(pdd_p95_ms) FROM {view}
        WHERE source = 'trunk' AND trunk = 'trunk-7' AND time > now() - interval '{span}'
        GROUP BY 1""",
    "ASR of each trunk": """
        SELECT time, trunk, sum(answered) * 100.0 / sum(seizures) FROM {view}
        WHERE source = 'trunk' AND time > now() - interval '{span}'
        GROUP BY 1, 2""",
    "all of a tenant": """
        SELECT * FROM {view}
        WHERE source = 'call' AND tenant = 'tenant-0' AND time > now() - interval '{span}'""",
}
_CODES = {
    "a trunk's codes": """
        SELECT time, code, sum(count) FROM {view}
        WHERE source = 'trunk' AND trunk = 'trunk-7' AND time > now() - interval '{span}'
        GROUP BY 1, 2""",
    "all of a tenant": _KPI["all of a tenant"],
}
_BY_TRUNK = {
    "ASR, p95 of each trunk": """
        SELECT time, trunk, asr_percent, pdd_p95_ms
        FROM kpi('1 hour', now() - interval '{span}', by => '{{trunk}}') WHERE source = 'trunk'""",
}
_ALL = {"all of it": "SELECT * FROM {view}"}
_QUESTIONS = {
    "kpi_5min": _KPI,
    "kpi_hour": _KPI,
    "kpi_day": _KPI,
    "codes_5min": _CODES,
    "codes_hour": _CODES,
    "kpi('1 hour', ...)": _BY_TRUNK,
    "trunk_health": _ALL,
    "incidents_open": _ALL,
    "incidents_recent": _ALL,
    "timeline": _ALL,
}


def questions(spans: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """View, span, what is asked, and the statement."""
    for view, statements in _QUESTIONS.items():
        for question, statement in statements.items():
            for span in spans if "{span}" in statement else ("",):
                yield view, span, question, statement.format(view=view, span=span)


def looked_at(plan: str) -> tuple[int, int, bool]:
    """Partitions that a plan reads, those that it left out when it began, and whether by an index."""
    read = set(re.findall(r"Scan on (\w+_minute_(?:p[0-9]{8}|default))\b", plan))
    left_out = sum(map(int, re.findall(r"Subplans Removed: ([0-9]+)", plan)))
    return len(read), left_out, "Bitmap Index Scan" in plan


async def ask(dsn: str, spans: Sequence[str], patience: float) -> list[Asked]:
    connection = await asyncpg.connect(dsn, command_timeout=SECONDS)
    found = []
    try:
        for view, span, question, sql in questions(spans):
            explained = await connection.fetch(f"EXPLAIN (SUMMARY) {sql}")
            plan = "\n".join(line for (line,) in explained)
            # all of it as text, as a client gets it: what nobody wants is not reckoned
            counted = f"SELECT count(*), sum(length(x::text)) FROM ({sql}) AS x"  # noqa: S608
            began = time.perf_counter()
            number = await connection.fetchval(counted)
            first = again = (time.perf_counter() - began) * 1000
            if first < patience * 1000:
                began = time.perf_counter()
                await connection.fetchval(counted)
                again = (time.perf_counter() - began) * 1000
            planning = float(re.findall(r"Planning Time: ([0-9.]+)", plan)[0])
            asked = (view, span, question, number, first, again, planning, *looked_at(plan))
            found.append(Asked(*asked))
            _progress(f"{view} {span} {question}: {again:.0f} ms")
    finally:
        await connection.close()
    return found


# -- the run


async def measure(dsn: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fill a database, and ask it."""
    loaded = await load(
        dsn, Stock(options.cohorts), options.days, options.share, time.time_ns() // 1000
    )
    await settle(dsn)
    taken = await sizes(dsn)
    asked = await ask(dsn, options.spans, options.patience)
    return {
        "days": options.days,
        "cohorts": options.cohorts,
        "share": options.share,
        "loaded": loaded._asdict(),
        "bytes": taken,
        "asked": [one._asdict() for one in asked],
    }


async def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    server = EmbeddedPostgres(directory)
    try:
        return await measure(await server.start(), options)
    finally:
        await server.stop()


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(result: dict[str, Any]) -> None:
    loaded = result["loaded"]
    print(
        f"{result['cohorts']} cohorts, {result['days']:g} days, "
        f"{result['share'] * 100:g} % of minutes with figures"
    )
    total = sum(loaded["rows"].values())
    print(
        f"loaded {total:,} rows in {loaded['seconds']:.0f} s of COPY "
        f"({total / loaded['seconds']:,.0f} rows/s)\n"
    )
    print("| table | rows | table GB | indexes MB | bytes per row | encode us per row |")
    print("| --- | --- | --- | --- | --- | --- |")
    for table, number in loaded["rows"].items():
        heap, indexes = result["bytes"][table]
        print(
            f"| {table} | {number:,} | {heap / 1e9:.2f} | {indexes / 1e6:.2f} "
            f"| {(heap + indexes) / max(number, 1):.0f} | {loaded['encode_us'][table]:.1f} |"
        )
    print(
        "\n| view | of the last | asked | rows | first ms | again ms | plan ms | weeks read, left out |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in result["asked"]:
        print(
            f"| {one['view']} | {one['span']} | {one['question']} | {one['rows']:,} "
            f"| {one['first_ms']:,.0f} | {one['again_ms']:,.0f} | {one['planning_ms']:.0f} "
            f"| {one['weeks']}, {one['left_out']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--cohorts", type=int, default=500)
    parser.add_argument("--share", type=float, default=1.0, help="of minutes with figures, 0 to 1")
    parser.add_argument("--spans", nargs="*", default=SPANS)
    parser.add_argument(
        "--patience",
        type=float,
        default=20,
        help="seconds of a first answer up to which a question is asked again",
    )
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="month-", dir=options.directory) as directory:
        result = asyncio.run(run(Path(directory), options))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
