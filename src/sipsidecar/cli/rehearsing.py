"""Rehearses rules on stored calls: who would have been refused, when and why."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from sipsidecar import app
from sipsidecar.admitting import policy_of
from sipsidecar.calls.dialog import code_class
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import reading_dsn
from sipsidecar.cli.words import (
    CliError,
    clear_progress,
    config_of,
    iso,
    json_line,
    moment_of,
    progress,
    terminal_width,
)
from sipsidecar.config import Config
from sipsidecar.edges import postgres
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.signals.decisions import AdmissionRecord, StateRecord
from sipsidecar.signals.rehearsal import Offered, Rehearsal
from sipsidecar.tables import printable, table

RULE_COLUMNS = ("rule", "refused", "overflowed", "shadowed", "first", "last", "examples")
STATE_COLUMNS = ("at", "rule", "of", "state", "reason")
REFUSAL_COLUMNS = ("at", "call_id", "verdict", "rule", "of", "value", "threshold")
MAX_STATES = 50
"""Changes of state that people are shown; with --json all of them."""
Row = AdmissionRecord | StateRecord


def add_command(group: Commands) -> None:
    """Add `simulate` to the commands of `admission`."""
    command = group.add(
        "simulate",
        simulate,
        "show what the rules of a configuration would have refused of the stored calls",
        "sipsidecar admission simulate --config new.toml --since 24h",
    )
    command.add_argument(
        "--since", metavar="TIME", help="30m, 1d or 2026-01-31T10:00, UTC (the last day)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms (now)")
    command.add_argument("--list", action="store_true", help="list every refusal, too")
    command.add_argument("--json", action="store_true", help="one JSON object per line")


def simulate(arguments: argparse.Namespace) -> int:
    """Offer the stored calls of a time to the configured rules; 1 when there were no calls."""
    config = config_of(arguments)
    if not config.admission.rules:
        raise CliError("no rules to rehearse: name a --config whose admission.rules has some")
    since = moment_of(arguments.since or "1d")
    until = moment_of(arguments.until) if arguments.until else time.time_ns() // 1000
    if since >= until:
        raise CliError("--since is not before --until")
    rehearsal = Rehearsal(policy_of(config), app.cohorts_of(config))
    rows = asyncio.run(_rehearse(config, rehearsal, since, until, arguments))
    clear_progress()
    if arguments.json:
        print(json_line({"kind": "summary", **msgspec.to_builtins(rehearsal.result)}))
    else:
        print(_shown(rehearsal, rows, refusals=arguments.list))
    return 0 if rehearsal.result.offered else 1


async def _rehearse(
    config: Config, rehearsal: Rehearsal, since: int, until: int, arguments: argparse.Namespace
) -> list[Row]:
    """Run it; what people will see of its rows, for all of them may be many."""
    kept: list[Row] = []
    tell = None if arguments.json else progress()
    async with reading_dsn(config) as dsn:
        where = PostgresSettings(dsn=dsn, password=config.database.password)
        async for calls in _offered(where, since, until):
            for row in rehearsal.run(calls):
                if arguments.json:
                    print(_json(row))
                elif isinstance(row, StateRecord) or arguments.list:
                    kept.append(row)
            if tell is not None:
                tell(calls[-1].call.started_at - since, until - since)
    for row in rehearsal.finish():
        if arguments.json:
            print(_json(row))
        elif isinstance(row, StateRecord) or arguments.list:
            kept.append(row)
    return kept


async def _offered(where: PostgresSettings, since: int, until: int) -> AsyncIterator[list[Offered]]:
    async for part in postgres.find_offered(where, since_us=since, until_us=until):
        yield [
            Offered(
                _record(CallRecord, row),
                tuple(_record(AttemptRecord, one) for one in row["made"]),
                row["loss_percent"],
            )
            for row in part
        ]


def _record(kind: Any, row: dict[str, Any]) -> Any:  # noqa: ANN401 -- one of two kinds
    """A stored row as the record that it was, as far as it was asked for."""
    fields = {name: row[name] for name in kind.__struct_fields__ if name in row}
    for name in ("agent_ids", "flags"):
        if name in fields:
            fields[name] = tuple(fields[name])
    for name in ("src_ip", "dst_ip", "peer_ip"):
        if fields.get(name) is not None:
            fields[name] = str(fields[name])
    return kind(**fields, final_class=code_class(fields["final_code"]))


def _json(row: Row) -> str:
    kind = "state" if isinstance(row, StateRecord) else "refusal"
    fields = {**msgspec.structs.asdict(row), "at": iso(row.received_at)}
    del fields["received_at"]
    return json_line({"kind": kind, **fields})


# -- for people


def _shown(rehearsal: Rehearsal, rows: list[Row], *, refusals: bool) -> str:
    result = rehearsal.result
    if result.from_at is None or result.until_at is None:
        return "no calls are stored of that time"
    lost = result.offered - result.admitted
    span = f"{_time(result.from_at)} to {_time(result.until_at)}"
    share = f"{lost} not ({100 * lost / result.offered:.1f} %)"
    parts = [f"{result.offered} calls from {span}: {result.admitted} admitted, {share}"]
    if result.rules:
        tallies = [
            {
                **msgspec.structs.asdict(one),
                "first": _time(one.first_at),
                "last": _time(one.last_at),
                "examples": tuple(one.examples[:2]),
            }
            for one in result.rules.values()
        ]
        parts.append(table(tallies, RULE_COLUMNS, terminal_width()))
    states = [row for row in rows if isinstance(row, StateRecord)]
    if states:
        shown = [_row(row) | {"state": row.state} for row in states[:MAX_STATES]]
        parts.append(table(shown, STATE_COLUMNS, terminal_width()))
        if len(states) > MAX_STATES:
            parts.append(f"and {len(states) - MAX_STATES} more changes: --json has them all")
    if refusals:
        found = [_row(row) for row in rows if isinstance(row, AdmissionRecord)]
        parts.append(table(found, REFUSAL_COLUMNS, terminal_width()) if found else "")
    most = ", ".join(f"{name} {count}" for name, count in sorted(result.most.items()))
    parts.append(printable(f"most calls at once: {most}"))
    if result.guessed:
        parts.append(
            f"{result.guessed} calls whose end is not known were taken to last as others do"
        )
    if result.unheard:
        parts.append("about health nothing is stored: not rehearsed: " + ", ".join(result.unheard))
    return "\n\n".join(filter(None, parts))


def _row(row: Row) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(row),
        "at": _time(row.received_at),
        "of": f"{row.scope} {row.scope_value}".strip(),
    }


def _time(at: int | None) -> str | None:
    return None if at is None else iso(at)[:19].replace("T", " ") + "Z"
