"""Shows what the running sidecar knows of its FreeSWITCHes."""

import argparse
import sys
from typing import Any

from sipsidecar.cli.asking import Asked, answered
from sipsidecar.cli.words import config_of, json_line, terminal_width
from sipsidecar.config import Config
from sipsidecar.tables import table

SECONDS = 5.0
"""How long the sidecar may take."""
PAGE = "/v1/switches"
COLUMNS = (
    "name", "address", "connected", "version", "sessions", "per_second", "idle_cpu", "live_legs",
    "lag", "last_event", "gateways_up", "gateways_down", "error",
)  # fmt: skip


def status(arguments: argparse.Namespace) -> int:
    """Print each configured switch: its connection, its version and its load."""
    switches = _asked(config_of(arguments))
    if arguments.json:
        for one in switches:
            print(json_line({"kind": "switch", **one}))
        return 0 if switches else 1
    if not switches:
        print("no switches: name them in freeswitch.switches", file=sys.stderr)
        return 1
    shown = [_shown(one) for one in switches]
    columns = [name for name in COLUMNS if name != "error" or any(row["error"] for row in shown)]
    print(table(shown, columns, terminal_width()))
    return 0


def _asked(config: Config) -> list[dict[str, Any]]:
    return answered(
        Asked(config, SECONDS),
        lambda asked: asked.get(PAGE),
        list[dict[str, Any]],
        "http.read_tokens",
    )


def _shown(one: dict[str, Any]) -> dict[str, Any]:
    """Turn one switch into the cells of its line; what nobody knows is None."""
    gateways = one.get("gateways")
    states = gateways if isinstance(gateways, dict) else {}
    return {
        **{name: one.get(name) for name in COLUMNS},
        "sessions": _of(one.get("sessions"), one.get("max_sessions")),
        "per_second": _of(one.get("sessions_per_second"), one.get("sessions_per_second_limit")),
        "idle_cpu": _number(one.get("idle_cpu"), 100, " %"),
        "lag": _number(one.get("lag_seconds"), 1000, " ms"),
        "last_event": _number(one.get("last_event_seconds"), 1, " s ago"),
        "gateways_up": states.get("up"),
        "gateways_down": states.get("down"),
    }


def _of(value: object, limit: object) -> str | None:
    """`7/1000`: how much of how much."""
    if value is None:
        return None
    return str(value) if limit is None else f"{value}/{limit}"


def _number(value: object, factor: float, unit: str) -> str | None:
    return f"{value * factor:.0f}{unit}" if isinstance(value, int | float) else None
