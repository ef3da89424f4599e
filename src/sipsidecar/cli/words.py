"""What commands share: their errors, settings, durations, times, lines of JSON, tables, progress."""

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from sipsidecar.config import Config, Loaded, find_file, load
from sipsidecar.tables import table

CALL_COLUMNS = (
    "started_at",
    "call_id",
    "from_user",
    "to_user",
    "src_ip",
    "final_code",
    "released_by",
    "pdd_ms",
    "setup_ms",
    "talk_ms",
    "attempts",
    "flags",
)
CALL_EXTRA_COLUMNS = ("trunk", "mos", "findings")
"""Of a table of calls, where one of them has any."""
MEDIA_COLUMNS = (
    "call_id",
    "stream",
    "codec",
    "mos",
    "mos_kind",
    "mos_scale",
    "mos_grade",
    "unrated",
    "loss_percent",
    "jitter_ms",
    "rtt_ms",
    "reports",
    "source",
    "findings",
)
LEG_COLUMNS = (
    "uuid",
    "call_id",
    "direction",
    "created_at",
    "caller",
    "destination",
    "gateway",
    "answered",
    "sip_code",
    "sip_code_source",
    "hangup_cause",
    "released_by",
    "pdd_ms",
    "talk_ms",
    "codec_read",
    "codec_write",
    "packets_in",
    "packets_out",
    "flags",
)
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "ms": 0.001}


class CliError(Exception):
    """One line for the person at the terminal; the exit code is 2."""


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration by flags, environment and file; ConfigError."""
    return loaded_of(arguments).config


def loaded_of(arguments: argparse.Namespace) -> Loaded:
    """The configuration, with the source of each setting; ConfigError."""
    flags = {
        "hep.listen": getattr(arguments, "hep", None),
        "http.listen": getattr(arguments, "http", None),
        "database.directory": arguments.data,
        "database.dsn": arguments.dsn,
    }
    return load(find_file(arguments.config, os.environ), os.environ, flags)


def seconds_of(text: str) -> float:
    """A duration with or without its unit, in seconds; CliError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)", text)
    if not found:
        raise CliError(f"{text}: expected a duration such as 2, 1.5s, 2000ms, 10m, 1h or 1d")
    return float(found[1]) * UNITS[found[2]]


def moment_of(text: str) -> int:
    """A point in time in microseconds UTC: so long ago, or an ISO 8601 date and time."""
    if re.fullmatch(r"[0-9.]+(ms|s|m|h|d)", text):
        return max(time.time_ns() // 1000 - int(seconds_of(text) * 1_000_000), 0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(
            f"{text}: expected so long ago (30m, 1d) or a date (2026-01-31T10:00, UTC)"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(int(moment.timestamp() * 1_000_000), 0)


def iso(at: int) -> str:
    """Microseconds UTC as ISO 8601; a number that is no date stays one."""
    try:
        moment = datetime.fromtimestamp(at // 1_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(at)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1_000_000:06d}Z"


def readable(fields: dict[str, Any]) -> dict[str, Any]:
    """Times as ISO 8601 UTC, evidence as an object, no Call-ID as null; all else as it is."""
    return {key: _readable(key, value) for key, value in fields.items()}


def _readable(key: str, value: Any) -> Any:  # noqa: ANN401 -- whatever a column holds
    if value is not None and (key == "at" or key.endswith("_at")):
        return iso(value)
    if key == "call_id" and not value:
        return None  # a primary key cannot be
    if isinstance(value, str) and key == "evidence":
        with contextlib.suppress(ValueError, RecursionError):
            return msgspec.json.decode(value)
    return value


def json_line(fields: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(fields).decode()


def call_table(rows: list[dict[str, Any]]) -> str:
    """For people: times to the millisecond, durations in whole ones."""
    columns = [name for name in ("state", *CALL_COLUMNS) if name in rows[0]]
    columns += [name for name in CALL_EXTRA_COLUMNS if any(row.get(name) for row in rows)]
    shown = [
        {name: _rounded(name, value) for name, value in row.items()}
        | {"started_at": row["started_at"][:23].replace("T", " ") + "Z"}
        for row in rows
    ]
    return table(shown, columns, terminal_width())


def media_table(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """For people: what was heard of each direction; columns in which nothing is known are left out."""
    unknown: tuple[object, ...] = (None, "", (), [])
    columns = [name for name in MEDIA_COLUMNS if any(row.get(name) not in unknown for row in rows)]
    shown = [{name: _rounded(name, row.get(name)) for name in columns} for row in rows]
    return table(shown, columns, width if width is not None else terminal_width())


def leg_table(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """For people: the legs of a FreeSWITCH; columns in which nothing is known are left out."""
    unknown: tuple[object, ...] = (None, "", (), [])
    columns = [name for name in LEG_COLUMNS if any(row.get(name) not in unknown for row in rows)]
    shown = [
        {name: _rounded(name, row.get(name)) for name in columns}
        | {"created_at": row["created_at"][:23].replace("T", " ") + "Z"}
        for row in rows
    ]
    return table(shown, columns, width if width is not None else terminal_width())


def _rounded(name: str, value: Any) -> Any:  # noqa: ANN401 -- whatever a column holds
    if not isinstance(value, float):
        return value
    if name == "jitter_ms":
        return round(value, 1)
    return round(value) if name.endswith("_ms") else round(value, 2)


def terminal_width() -> int | None:
    """The terminal's width; None for a file or a pipe, where nothing is clipped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def progress() -> Callable[[int, int], None] | None:
    """What shows on a terminal how much is read; None when nobody looks."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        share = 100 * done // total if total else 100
        sys.stderr.write(f"\r{share:3d} % of {total / 1e6:.1f} MB")
        sys.stderr.flush()

    return show


def clear_progress() -> None:
    """Leave the line on the terminal as if there had been no progress."""
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 30 + "\r")
