"""Turns capture files into printed records, or into rows of PostgreSQL."""

import argparse
import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from sipsidecar import app
from sipsidecar.batch import Waiting
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    PingRecord,
    QualityInterval,
    RegistrationRecord,
)
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.table import Retraction
from sipsidecar.cli.reading import reading_dsn
from sipsidecar.cli.words import (
    CliError,
    call_table,
    clear_progress,
    config_of,
    json_line,
    leg_table,
    media_table,
    progress,
    readable,
)
from sipsidecar.config import Config
from sipsidecar.edges import embedded, postgres
from sipsidecar.edges.replay import Replay
from sipsidecar.keeping import RowMaker
from sipsidecar.pipeline import Output, Pipeline

KINDS = {
    CallRecord: "call",
    AttemptRecord: "attempt",
    MediaRecord: "media",
    QualityInterval: "interval",
    LegRecord: "leg",
    ConversationRecord: "conversation",
    RegistrationRecord: "registration",
    PingRecord: "ping",
}
KEYS = (
    "call_id", "from_tag", "branch", "stream", "received_at", "cseq", "source_ssrc",
    "reporter_ssrc", "at",
)  # fmt: skip
"""Fields that name a record: those of its table's primary key, but for the revision."""
KEYS_OF_JOINED = {"leg": ("uuid", "received_at"), "conversation": ("conversation", "received_at")}
"""Their Call-IDs and what they belong to may be learned late."""
REPLAY_NODE = 0
"""Writes as no sidecar does (their numbers begin with 1), so that one may be running."""
REPLAY_ROWS = 5000
"""Rows in memory at which `replay --store` writes a batch."""


def replay(arguments: argparse.Namespace) -> int:
    """Print the records of capture files, or write them to PostgreSQL."""
    for path in arguments.files:
        if not path.exists():
            raise CliError(f"{path}: no such file")
    if arguments.intervals and not arguments.json:
        raise CliError("--intervals adds lines of JSON: give --json as well")
    config = config_of(arguments)
    if arguments.store:
        return asyncio.run(_replay_into_store(arguments, config))
    pipeline = app.pipeline_of(config)
    newest: dict[object, dict[str, Any]] = {}
    run = Replay(arguments.files, pipeline, progress=progress())
    for output in run:
        # Reports over time are many, and nobody sees them in a table.
        if arguments.intervals or not isinstance(output, QualityInterval):
            _remember(newest, output)
    clear_progress()
    counts = dict.fromkeys(KINDS.values(), 0)
    tables = {"call": call_table, "media": media_table, "leg": leg_table}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in tables}
    for fields in newest.values():
        counts[fields["kind"]] += 1
        if arguments.json:
            print(json_line(fields))
        elif fields["kind"] in rows:
            rows[fields["kind"]].append(fields)
    summary = _summary(run, pipeline, counts)
    if arguments.json:
        for one in run.switches.values():
            print(json_line({"kind": "switch", **readable(msgspec.structs.asdict(one))}))
        print(json_line({"kind": "summary", **summary}))
        return 0
    drawn = [draw(rows[kind]) for kind, draw in tables.items() if rows[kind]]
    if drawn:
        print("\n\n".join(drawn))
    counted = {key.replace("_", " "): n for key, n in summary.items() if isinstance(n, int)}
    print(", ".join(f"{count} {what}" for what, count in counted.items()))
    _say_truncated(run)
    return 0


def _remember(newest: dict[object, dict[str, Any]], output: Output) -> None:
    """Keep the newest revision of each record, in the order of first appearance."""
    fields = msgspec.structs.asdict(output)
    if isinstance(output, Retraction):
        kind = "call" if output.branch is None else "attempt"
        kind = kind if output.stream is None else "media"
        newest.pop(_key(kind, fields), None)
        return
    if isinstance(output, Unjoined):
        newest.pop(_key("conversation", fields), None)
        return
    kind = KINDS[type(output)]
    newest[_key(kind, fields)] = {"kind": kind, **readable(fields)}


def _key(kind: str, fields: dict[str, Any]) -> object:
    return kind, *(fields.get(name) for name in KEYS_OF_JOINED.get(kind, KEYS))


def _summary(run: Replay, pipeline: Pipeline, counts: dict[str, int]) -> dict[str, Any]:
    said = pipeline.snapshot(run.now)
    return {
        "packets": said.received,
        "calls": counts["call"],
        "attempts": counts["attempt"],
        "media": counts["media"],
        "legs": counts["leg"],
        "conversations": counts["conversation"],
        "registrations": counts["registration"],
        "pings": counts["ping"],
        "messages": said.stored_out,
        "quarantined": said.quarantined_out,
        "refused": sum(said.refused.values()),
        "orphans": said.orphans,
        "not_sip": run.not_sip,
        "events": run.events,
        "events_refused": sum(run.events_refused.values()),
        "refused_by_reason": said.refused,
        "odd": said.oddities,
        "cut_packets": run.cut,
        "skipped_packets": dict(run.skipped),
        "truncated_files": run.truncated,
        "broken_files": run.broken,
    }


async def _replay_into_store(arguments: argparse.Namespace, config: Config) -> int:
    """Through the same rows and the same ledger as live traffic, batch by batch."""
    pipeline = app.pipeline_of(config)
    async with _writing_dsn(config) as dsn:
        store = postgres.Postgres(
            postgres.PostgresSettings(
                dsn=dsn, password=config.database.password, node_id=REPLAY_NODE
            )
        )
        await store.open()
        waiting = Waiting(max_rows=REPLAY_ROWS, max_age=0.0, max_bytes=1 << 40)
        maker = RowMaker(
            waiting,
            REPLAY_NODE,
            messages=config.database.store_messages,
            intervals=config.quality.store_intervals,
        )

        async def write(least: int) -> None:
            while len(waiting) > least and (batch := waiting.take()) is not None:
                rows = {name: [row.data for row in some] for name, some in batch.tables.items()}
                await store.write(_content(rows), rows, batch.replaced)
                waiting.done()

        try:
            run = Replay(
                arguments.files,
                pipeline,
                keep=lambda stored: maker.keep(stored, 0.0),
                progress=progress(),
            )
            for outputs in run.turns():
                maker.add(outputs, 0.0)
                if len(waiting) > REPLAY_ROWS:
                    await write(REPLAY_ROWS)
            await write(0)
        finally:
            await store.close()
    clear_progress()
    stored = dict(waiting.stored)
    if arguments.json:
        print(json_line({"kind": "stored", **stored}))
    else:
        said = ", ".join(f"{count} {name}" for name, count in sorted(stored.items())) or "nothing"
        print(f"in the database: {said}")
    _say_truncated(run)
    return 0


@contextlib.asynccontextmanager
async def _writing_dsn(config: Config) -> AsyncIterator[str]:
    """The same, but an embedded one that was never started is made."""
    directory = app.data_directory(config)
    if config.database.dsn or embedded.cluster_major(directory) is not None:
        async with reading_dsn(config) as dsn:
            yield dsn
        return
    server = embedded.EmbeddedPostgres(directory, binaries=app.binaries_of(config))
    dsn = await server.start()
    try:
        yield dsn
    finally:
        await server.stop()


def _content(tables: dict[str, list[bytes]]) -> int:
    """A number for a batch by what is in it: a capture that is stored again changes nothing."""
    digest = hashlib.blake2b(digest_size=8)
    for name, rows in tables.items():
        digest.update(name.encode())
        for row in rows:
            digest.update(row)
    return int.from_bytes(digest.digest(), "big") >> 1


def _say_truncated(run: Replay) -> None:
    for path in run.truncated:
        print(f"sipsidecar: {path} ends inside a packet; it was read up to there", file=sys.stderr)
    for path in run.broken:
        print(f"sipsidecar: {path} is damaged; it was read up to there", file=sys.stderr)
