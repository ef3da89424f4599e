"""Prints what happened, in the order of time: incidents, trunks, admission, switches, markers."""

import argparse
import sys
from typing import Any

import msgspec

from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import ask
from sipsidecar.cli.words import CliError, config_of, json_line, moment_of, readable, terminal_width
from sipsidecar.edges import postgres
from sipsidecar.edges.http.watch import KINDS
from sipsidecar.tables import table

FILTERS = ("tenant", "trunk", "carrier", "direction", "region", "agent")
COLUMNS = ("at", "kind", "subject", "state", "severity", "scope", "text", "by")


def add_command(commands: Commands) -> None:
    """Add `timeline`."""
    command = commands.add(
        "timeline",
        timeline,
        "show what happened: incidents, trunks, admission, switches, markers",
        "sipsidecar timeline --since 6h --trunk acme",
    )
    command.add_argument(
        "--since", default="1d", metavar="TIME", help="30m, 1d or 2026-01-31T10:00, UTC (1d)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms (now)")
    command.add_argument("--kind", choices=KINDS, help="only what is of this kind")
    for name in FILTERS:
        command.add_argument(f"--{name}", metavar="NAME", help=f"what is about this {name} only")
    command.add_argument("--limit", type=int, default=200, metavar="N", help="the newest N (200)")
    command.add_argument("--json", action="store_true", help="one JSON object per line")


def timeline(arguments: argparse.Namespace) -> int:
    """Print the newest events of a time, oldest first as they happened."""
    if not 0 < arguments.limit <= 10_000:
        raise CliError("--limit: expected a number from 1 to 10000")
    since, until = moment_of(arguments.since), moment_of(arguments.until or "0s")
    filters = {name: getattr(arguments, name) for name in FILTERS}
    found = ask(
        config_of(arguments),
        lambda where: postgres.find_timeline(
            where, since, until + 1, arguments.limit, arguments.kind, **filters
        ),
    )
    rows = [_shown(msgspec.structs.asdict(event)) for event in reversed(found)]
    if arguments.json:
        for row in rows:
            print(json_line(row))
    elif rows:
        columns = [name for name in COLUMNS if any(row[name] not in (None, "") for row in rows)]
        drawn = [{**row, "at": row["at"][:19].replace("T", " ") + "Z"} for row in rows]
        print(table(drawn, columns, terminal_width()))
    else:
        print("nothing happened in that time", file=sys.stderr)
    return 0 if rows else 1


def _shown(fields: dict[str, Any]) -> dict[str, Any]:
    del fields["call_id"]
    if fields["data"] is not None:
        fields["data"] = msgspec.Raw(fields["data"].encode())
    return readable(fields)
