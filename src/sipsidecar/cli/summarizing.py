"""Prints one day or week of a tenant, or of all, as text or as a page that stands alone."""

import argparse
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from html import escape
from typing import Any, NamedTuple

from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import ask
from sipsidecar.cli.words import CliError, config_of, iso, json_line, readable
from sipsidecar.edges import postgres
from sipsidecar.tables import printable, table

Rows = list[dict[str, Any]]
FIGURES = (
    ("calls", "attempts", "{:,}"),
    ("answered", "answered", "{:,}"),
    ("ASR", "asr_percent", "{:.1f} %"),
    ("NER", "ner_percent", "{:.1f} %"),
    ("talk time", "talk_minutes", "{:,.0f} min"),
    ("ACD", "acd_seconds", "{:.0f} s"),
    ("short calls", "short_percent", "{:.1f} %"),
    ("dropped", "dropped_percent", "{:.1f} %"),
    ("PDD median", "pdd_p50_ms", "{:.0f} ms"),
    ("PDD 95 %", "pdd_p95_ms", "{:.0f} ms"),
    ("MOS (narrowband)", "mos_nb", "{:.2f}"),
    ("MOS (wideband)", "mos_wb", "{:.2f}"),
    ("MOS (fullband)", "mos_fb", "{:.2f}"),
    ("packet loss", "loss_percent", "{:.2f} %"),
    ("one-way audio", "one_way", "{:,}"),
    ("own refusals", "own_refusals", "{:,}"),
)
_AGENT = (
    ("agent", "agent", "{}"),
    ("calls", "calls", "{:,}"),
    ("first audio", "first_audio_p50_ms", "{:.0f} ms"),
    ("95 %", "first_audio_p95_ms", "{:.0f} ms"),
    ("ASR confidence", "asr_confidence", "{:.2f}"),
    ("ASR accuracy", "asr_accuracy", "{:.2f}"),
    ("completed", "completed_percent", "{:.1f} %"),
    ("transferred", "transferred_percent", "{:.1f} %"),
)
_PERIOD = (
    "attempts",
    "answered",
    "asr_percent",
    "ner_percent",
    "acd_seconds",
    "pdd_p95_ms",
    "mos_nb",
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}"
)


class Part(NamedTuple):
    """One heading with its table, cells as they are shown; or with `words` instead."""

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    words: str = ""


def add_command(commands: Commands) -> None:
    """Add `summary`."""
    command = commands.add(
        "summary",
        summary,
        "one day or week of a tenant, as text or HTML",
        "sipsidecar summary --tenant acme --week",
    )
    command.add_argument("--tenant", metavar="NAME", help="of this tenant (all)")
    when = command.add_mutually_exclusive_group()
    when.add_argument(
        "--week",
        nargs="?",
        const="",
        metavar="DATE",
        help="the week, Monday to Sunday UTC, of this day (the last whole one)",
    )
    when.add_argument(
        "--day", nargs="?", const="", metavar="DATE", help="this day, UTC (yesterday)"
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--html", action="store_true", help="a page that stands alone")
    how.add_argument("--json", action="store_true", help="one JSON object")


def summary(arguments: argparse.Namespace) -> int:
    """Print a whole day or week: figures beside those before, days, trunks, codes, incidents."""
    days = 1 if arguments.day is not None else 7
    began = _begin(arguments.day if days == 1 else arguments.week or "", days)
    since_us = int(datetime(began.year, began.month, began.day, tzinfo=UTC).timestamp()) * 1_000_000
    tenant = arguments.tenant
    found = ask(
        config_of(arguments), lambda where: postgres.find_summary(where, since_us, days, tenant)
    )
    ended = began + timedelta(days=days - 1)
    title = f"{tenant or 'All tenants'}, {began}" + (f" to {ended}" if days > 1 else "") + " (UTC)"
    if arguments.json:
        rows = {name: [_plain(row) for row in some] for name, some in found.items()}
        print(json_line({"tenant": tenant, "since": iso(since_us), "days": days, **rows}))
    else:
        made = list(parts(found, since_us, days))
        print(html(title, made) if arguments.html else text(title, made))
    return 0 if found["by_day"] or found["incidents"] else 1


def _begin(said: str, days: int) -> date:
    today = datetime.now(UTC).date()
    if not said:
        return today - timedelta(days=1 if days == 1 else today.weekday() + 7)
    try:
        day = date.fromisoformat(said) if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", said) else None
    except ValueError:
        day = None
    if day is None:
        raise CliError(f"{said}: expected a date such as 2026-01-31")
    return day if days == 1 else day - timedelta(days=day.weekday())


def parts(found: dict[str, Rows], since_us: int, days: int) -> Iterator[Part]:
    """What is said, in its order; values are clipped to one line, but not escaped."""
    this = next((row for row in found["period"] if row["time"] >= since_us), {})
    last = next((row for row in found["period"] if row["time"] < since_us), {})
    name = "day" if days == 1 else "week"
    if not this:
        yield Part("Figures", (), (), f"No calls ended in that {name}.")
    else:
        shown = [
            (label, _said(form, this.get(key)), _said(form, last.get(key)))
            for label, key, form in FIGURES
            if this.get(key) is not None or last.get(key) is not None
        ]
        yield Part("Figures", ("", f"this {name}", f"the {name} before"), shown)
    if days > 1 and found["by_day"]:
        yield _table("Days", "time", found["by_day"], lambda at: iso(at)[:10])
    if found["trunks"]:
        yield _table("Trunks, by attempt", "trunk", found["trunks"], lambda name: name or "-")
    if found["codes"]:
        cells = [(str(row["code"] or "unknown"), f"{row['count']:,}") for row in found["codes"]]
        yield Part("Final codes", ("code", "calls"), cells)
    if found["agents"]:
        yield Part(
            "Voice agents",
            [label for label, *_ in _AGENT],
            [[_said(form, row[key]) for _, key, form in _AGENT] for row in found["agents"]],
        )
    incidents = [
        (
            iso(row["opened_at"])[:16].replace("T", " "),
            iso(row["cleared_at"])[:16].replace("T", " ") if row["cleared_at"] else "open",
            row["severity"],
            row["scope"],
            row["summary"],
        )
        for row in found["incidents"]
    ]
    columns = ("opened", "cleared", "severity", "of", "what")
    yield Part("Incidents", columns, incidents, "" if incidents else "None.")


def _table(title: str, key: str, rows: Rows, name: Any) -> Part:  # noqa: ANN401 -- a small function
    forms = {column: form for _, column, form in FIGURES}
    columns = [one for one in _PERIOD if any(row[one] is not None for row in rows)]
    cells = [[name(row[key]), *(_said(forms[one], row[one]) for one in columns)] for row in rows]
    labels = {column: label for label, column, _ in FIGURES}
    return Part(title, [key if key != "time" else "day", *(labels[one] for one in columns)], cells)


def _said(form: str, value: Any) -> str:  # noqa: ANN401 -- whatever a column holds
    return "-" if value is None else form.format(value)


def text(title: str, made: Sequence[Part]) -> str:
    """Turn it into text for a terminal or a mail."""
    blocks = [printable(title)]
    for part in made:
        body = part.words
        if not body:
            names = [name or " " for name in part.columns]
            rows = [dict(zip(names, cells, strict=True)) for cells in part.cells]
            body = table(rows, names)
        blocks.append(f"{part.title}\n{body}")
    return "\n\n".join(blocks)


def html(title: str, made: Sequence[Part]) -> str:
    """Turn it into a page without scripts or anything from elsewhere; all text is escaped."""
    body = [f"<h1>{escape(printable(title))}</h1>"]
    for part in made:
        body.append(f"<h2>{escape(part.title)}</h2>")
        if part.words:
            body.append(f"<p>{escape(part.words)}</p>")
            continue
        head = "".join(f"<th>{escape(name)}</th>" for name in part.columns)
        lines = "".join(
            "<tr>" + "".join(f"<td>{escape(printable(cell))}</td>" for cell in cells) + "</tr>"
            for cells in part.cells
        )
        body.append(f"<table><tr>{head}</tr>{lines}</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(printable(title))}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>"
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    shown = readable(row)
    if isinstance(shown.get("time"), int):
        shown["time"] = iso(shown["time"])
    return shown
