"""Prints figures of calls by cohort: SIP, media, and what the voice agents' side said."""

import argparse
import math
import sys
from typing import Any

from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import ask
from sipsidecar.cli.words import CliError, config_of, json_line, moment_of, terminal_width
from sipsidecar.edges import postgres
from sipsidecar.tables import table

FILTERS = ("tenant", "trunk", "carrier", "direction", "region", "agent")
COLUMNS = (
    "calls", "own_refusals", "seizures", "asr_percent", "ner_percent", "server_errors",
    "acd_seconds", "pdd_p50_ms", "pdd_p95_ms", "mos_nb", "mos_wb", "mos_fb", "low_mos",
    "one_way_audio", "outcomes", "first_audio_p50_ms", "first_audio_p95_ms", "asr_confidence",
    "asr_accuracy", "completed_percent", "transferred_percent",
)  # fmt: skip
MAX_BY = 3


def add_command(commands: Commands) -> None:
    """Add `report`."""
    command = commands.add(
        "report",
        report,
        "figures of calls by cohort: SIP, media and outcomes",
        "sipsidecar report --by trunk --since 7d",
    )
    command.add_argument(
        "--by",
        action="append",
        required=True,
        choices=postgres.REPORT_BY,
        help=f"group by that; up to {MAX_BY} times",
    )
    command.add_argument(
        "--since", default="1d", metavar="TIME", help="30m, 1d or 2026-01-31T10:00, UTC (1d)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms (now)")
    for name in FILTERS:
        command.add_argument(f"--{name}", metavar="NAME", help=f"calls of this {name} only")
    command.add_argument("--limit", type=int, default=100, metavar="N", help="rows (100)")
    command.add_argument("--json", action="store_true", help="one JSON object per line")


def report(arguments: argparse.Namespace) -> int:
    """Print one row for each value, most calls first; what nothing is known of is left out."""
    by = list(dict.fromkeys(arguments.by))
    if len(by) > MAX_BY:
        raise CliError(f"--by: at most {MAX_BY} of them")
    if not 0 < arguments.limit <= 10_000:
        raise CliError("--limit: expected a number from 1 to 10000")
    since, until = moment_of(arguments.since), moment_of(arguments.until or "0s")
    filters = {name: value for name in FILTERS if (value := getattr(arguments, name)) is not None}
    rows = ask(
        config_of(arguments),
        lambda where: postgres.find_report(
            where, by, since, until, filters=filters, limit=arguments.limit
        ),
    )
    if arguments.json:
        for row in rows:
            print(json_line(row))
    elif rows:
        empty = (None, 0)
        columns = [*by, *(name for name in COLUMNS if any(row[name] not in empty for row in rows))]
        print(table([_short(row) for row in rows], columns, terminal_width()))
    else:
        print("no calls began in that time", file=sys.stderr)
    return 0 if rows else 1


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _rounded(name, value) for name, value in row.items()}


def _rounded(name: str, value: Any) -> Any:  # noqa: ANN401 -- whatever a column holds
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    if name.endswith("_ms"):
        return round(value)
    return round(value, 1 if name.endswith(("_percent", "_seconds")) else 2)
