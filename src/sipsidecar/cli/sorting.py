"""Shows which matcher says whose the calls of a capture, or a stored call, are."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from sipsidecar import app
from sipsidecar.calls.call import Invite
from sipsidecar.calls.labelling import sighted_of
from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import ask
from sipsidecar.cli.words import (
    CliError,
    clear_progress,
    config_of,
    json_line,
    progress,
    terminal_width,
)
from sipsidecar.edges import postgres
from sipsidecar.edges.replay import Replay
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.tables import table
from sipsidecar.wire import WireError, hep, sip

MAX_HOPS = 100_000
"""Hops of a capture that are told apart; of more nothing is shown."""
DIMENSIONS = ("tenant", "trunk", "carrier", "direction", "region", "agent")


class _Hop(NamedTuple):
    """What one INVITE showed."""

    call_id: str
    branch: str | None
    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    message: sip.Message
    agent_id: int | None


def add_commands(commands: Commands) -> None:
    """Add `cohorts` and its commands."""
    group = commands.group(
        "cohorts", "try the matchers of cohorts.match", "sipsidecar cohorts test a.pcap"
    )
    command = group.add(
        "test",
        test,
        "show which matcher says whose calls are",
        "sipsidecar cohorts test a.pcap --config new.toml",
    )
    command.add_argument(
        "what", metavar="FILE|CALL-ID", help="a capture file, or a call of the database"
    )
    command.add_argument("--json", action="store_true", help="one JSON object per line")


def test(arguments: argparse.Namespace) -> int:
    """Print every hop, or every kind of hop of a file, and the matcher of each label."""
    config = config_of(arguments)
    cohorts = app.cohorts_of(config)
    if not cohorts:
        raise CliError("no matcher is configured: add [[cohorts.match]] tables, or name --config")
    path = Path(arguments.what)
    if path.is_file():
        rows = list(_of_file(path, cohorts, config))
    else:
        stored = ask(config, lambda where: postgres.find_messages(where, arguments.what))
        if not stored:
            raise CliError(f"{arguments.what}: neither a file nor the Call-ID of a stored call")
        rows = [_row(hop, cohorts) for hop in _hops(_stored(stored))]
    if not rows:
        raise CliError(f"{arguments.what}: there is no INVITE in it")
    if arguments.json:
        for row in rows:
            print(json_line(row))
        return 0
    names = [name for name in DIMENSIONS if any(row["matched"][name] for row in rows)]
    shown = [
        {
            **{key: row[key] for key in ("calls", "hop", "call_id") if key in row},
            **{name: _said(row[name], row["matched"][name]) for name in names},
        }
        for row in rows
    ]
    print(table(shown, list(shown[0]), terminal_width()))
    print("(n): the matcher that says it, counted from 1 in cohorts.match; what none says is other")
    return 0


def _said(value: str, matcher: int | None) -> str:
    return value if matcher is None else f"{value} ({matcher})"


def _of_file(path: Path, cohorts: Cohorts, config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """One row for each pair of addresses and each set of matchers, with how many calls it had."""
    hops: dict[tuple[str, str | None, bytes, bytes], _Hop] = {}
    left_out = 0

    def keep(stored: Iterable[Any]) -> None:
        found = (
            (m.payload, (m.source, m.source_port), (m.destination, m.destination_port), m.agent_id)
            for m in stored
            if m.why is None
        )
        nonlocal left_out
        for hop in _hops(found):
            key = (hop.call_id, hop.branch, hop.source[0], hop.destination[0])
            if len(hops) < MAX_HOPS:
                hops.setdefault(key, hop)
            else:
                left_out += key not in hops

    for _ in Replay([path], app.pipeline_of(config, cohorts), keep=keep, progress=progress()):
        pass
    clear_progress()
    if left_out:
        print(f"{left_out} INVITEs after the first {MAX_HOPS} hops are left out", file=sys.stderr)
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for hop in hops.values():
        row = _row(hop, cohorts)
        key = (row["hop"], *row["matched"].values())
        kinds.setdefault(key, {"calls": 0, **row})["calls"] += 1
    yield from sorted(kinds.values(), key=lambda row: -row["calls"])


def _stored(rows: Iterable[dict[str, Any]]) -> Iterator[Any]:
    for row in rows:
        ends = [
            (ip_address(ip).packed if (ip := row[f"{side}_ip"]) else b"", row[f"{side}_port"] or 0)
            for side in ("src", "dst")
        ]
        yield row["payload"], *ends, row["agent_id"]


def _hops(messages: Iterable[Any]) -> Iterator[_Hop]:
    """The first INVITE of each hop; those within a dialog say nothing of whose the call is."""
    seen: set[tuple[object, ...]] = set()
    for payload, source, destination, agent_id in messages:
        try:
            message = sip.parse(payload)
        except WireError:
            continue
        if message.method != "INVITE" or message.status is not None or message.to_tag:
            continue
        key = (message.call_id, message.branch, source, destination)
        if key not in seen:
            seen.add(key)
            yield _Hop(message.call_id, message.branch, source, destination, message, agent_id)


def _row(hop: _Hop, cohorts: Cohorts) -> dict[str, Any]:
    invite = Invite((0, 0), hop.message, hop.source, hop.destination, None, cohorts.headers)
    ids = () if hop.agent_id is None else (hop.agent_id,)
    sighted = sighted_of(invite, hop.source, hop.destination, ids)
    cohort, why = cohorts.of(sighted), cohorts.why(sighted)
    ends = (hep.address_text(end[0]) or "?" for end in (hop.source, hop.destination))
    return {
        "hop": " -> ".join(ends),
        "call_id": hop.call_id,
        **{name: getattr(cohort, name) for name in DIMENSIONS},
        "node": cohort.node,
        "matched": {
            name: None if (place := why[name]) is None else place + 1 for name in DIMENSIONS
        },
    }
