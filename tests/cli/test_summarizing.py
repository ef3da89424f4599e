"""One day or week in short."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.cli.summarizing import Part, html, text
from sipsidecar.signals.alarms import IncidentRecord, OutcomeRecord
from sipsidecar.signals.minutes import CodeMinute, KpiMinute
from stored import call, store
from terminal import Run

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
MONDAY = TODAY - timedelta(days=TODAY.weekday() + 7)
EVIL = "<script>alert(1)</script>\x1b[31m"


def micro(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def minute(at: datetime, tenant: str, **counts: Any) -> KpiMinute:
    begun = micro(at)
    values: dict[str, Any] = {"source": "call", "trunk": "acme", "attempts": 10, "seizures": 10}
    return KpiMinute(
        received_at=begun + 60_000_000, minute_at=begun, tenant=tenant, **(values | counts)
    )


@pytest.fixture
def stored(database: str) -> str:
    """Last week of two tenants, the week before it of one, and an incident that a stranger named."""
    tuesday, before = MONDAY + timedelta(days=1, hours=9), MONDAY - timedelta(days=3)
    kpis = [
        minute(tuesday, "blue", answered=8, effective=9),
        minute(tuesday + timedelta(days=1), "blue", answered=4, effective=9),
        minute(tuesday, "blue", answered=6, attempts=12, seizures=12, source="trunk"),
        minute(tuesday, "red", answered=1),
        minute(before, "blue", answered=5),
    ]
    code = CodeMinute(
        received_at=micro(tuesday), minute_at=micro(tuesday), source="call", tenant="blue",
        code=486, origin="callee", count=2,
    )  # fmt: skip
    incident = IncidentRecord(
        incident="5xx-1", received_at=micro(tuesday), category="5xx", severity="page",
        opened_at=micro(tuesday), last_seen_at=micro(tuesday), summary=EVIL,
    )  # fmt: skip
    one = call(
        "a@b", started_at=micro(tuesday), received_at=micro(tuesday), tenant="blue", agent="bot"
    )
    outcome = OutcomeRecord(
        call_id="a@b", received_at=micro(tuesday), outcome="o", first_audio_ms=400.0, completed=True
    )

    async def put() -> None:
        async with store(database) as opened:
            await opened.write(
                1,
                {
                    "kpi_minute": [rows.encode_kpi(row, 1) for row in kpis],
                    "code_minute": [rows.encode_code(code, 1)],
                    "incidents": [rows.encode_incident(incident, 1)],
                    "outcomes": [rows.encode_outcome(outcome, 1)],
                    "calls": [rows.encode_call(one, 1)],
                },
            )

    asyncio.run(put())
    return database


def test_a_week_has_its_figures_beside_those_of_the_week_before(run: Run, stored: str) -> None:
    said = run("summary", "--dsn", stored, "--tenant", "blue", "--week")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"blue, {MONDAY.date()} to {MONDAY.date() + timedelta(days=6)} (UTC)"
    figures = {line.split("  ")[0]: line.split()[-5:] for line in lines}
    assert figures["calls"][-2:] == ["20", "10"]
    assert figures["ASR"][-4:] == ["60.0", "%", "50.0", "%"]
    assert re.search(r"^486 +2$", said.out, re.MULTILINE)
    assert re.search(r"^bot +1 +400 ms", said.out, re.MULTILINE)
    assert re.search(r"^acme +12 +6 ", said.out, re.MULTILINE)
    assert said.out.count("2026-") or said.out.count("20")


def test_all_tenants_are_summed_when_none_is_named(run: Run, stored: str) -> None:
    said = run("summary", "--dsn", stored, "--json")
    (row,) = said.rows
    assert [one["attempts"] for one in row["period"]] == [10, 30]
    assert row["days"] == 7


def test_a_day_is_of_the_date_that_is_given(run: Run, stored: str) -> None:
    tuesday = (MONDAY + timedelta(days=1)).date().isoformat()
    (row,) = run("summary", "--dsn", stored, "--json", "--day", tuesday, "--tenant", "blue").rows
    assert [one["answered"] for one in row["period"]] == [8]
    empty = run("summary", "--dsn", stored, "--day", "2020-01-01")
    assert empty.code == 1
    assert "No calls ended in that day." in empty.out


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def test_what_strangers_wrote_is_no_html_and_no_terminal_escape(run: Run, stored: str) -> None:
    page = run("summary", "--dsn", stored, "--html").out
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert set(tags.seen) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td",
    }  # fmt: skip
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\x1b" not in run("summary", "--dsn", stored).out


@pytest.mark.parametrize("said", ["yesterday", "2026-02-30", "20260101", "2026-1-1"])
def test_a_date_that_cannot_be_is_said(run: Run, stored: str, said: str) -> None:
    for flag in ("--day", "--week"):
        told = run("summary", "--dsn", stored, flag, said)
        assert told.code == 2
        assert "expected a date such as 2026-01-31" in told.err


def test_parts_are_headings_with_tables_or_words() -> None:
    made = [Part("One", ("a", ""), [("1", "2")]), Part("Two", (), (), "None.")]
    assert text("T", made) == "T\n\nOne\na\n1  2\n\nTwo\nNone."
    assert "<h2>Two</h2>\n<p>None.</p>" in html("T", made)
