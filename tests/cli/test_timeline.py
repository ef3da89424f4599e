"""What happened, as it is printed."""

import asyncio
import time
from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.signals.alarms import EventRecord
from stored import store
from terminal import Run


@pytest.fixture
def happened(database: str) -> str:
    """A trunk that went down and came back, and a marker that a stranger wrote."""
    now = time.time_ns() // 1000
    fields: list[dict[str, Any]] = [
        {"event": "a", "kind": "trunk", "subject": "acme", "state": "inactive", "trunk": "acme",
         "scope": "trunk=acme", "severity": "page"},
        {"event": "b", "kind": "trunk", "subject": "acme", "state": "active", "trunk": "acme",
         "scope": "trunk=acme"},
        {"event": "c", "kind": "marker", "subject": "deploy", "text": "\x1b[31mred", "by": "ci",
         "data": '{"version": "1.4"}'},
    ]  # fmt: skip

    async def put() -> None:
        async with store(database) as opened:
            made = [
                EventRecord(received_at=now - 60_000_000 + n, at=now - 60_000_000 + n, **one)
                for n, one in enumerate(fields)
            ]
            await opened.write(1, {"events": [rows.encode_event(one, 1) for one in made]})

    asyncio.run(put())
    return database


def test_events_are_printed_as_they_happened_and_as_they_came(run: Run, happened: str) -> None:
    said = run("timeline", "--dsn", happened, "--json")
    assert (said.code, said.err) == (0, "")
    assert [row["event"] for row in said.rows] == ["a", "b", "c"]
    assert said.rows[2]["data"] == {"version": "1.4"}
    assert said.rows[0]["at"].endswith("Z")


def test_what_a_stranger_wrote_cannot_colour_a_terminal(run: Run, happened: str) -> None:
    said = run("timeline", "--dsn", happened)
    assert said.code == 0
    assert "\x1b" not in said.out
    assert "\\x1b[31mred" in said.out
    assert said.out.splitlines()[0].split() == [
        "at", "kind", "subject", "state", "severity", "scope", "text", "by",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        (("--kind", "marker"), ["c"]),
        (("--trunk", "acme"), ["a", "b"]),
        (("--limit", "1"), ["c"]),
        (("--until", "1h"), []),
        (("--region", "eu"), []),
    ],
)
def test_filters_leave_events_out(
    run: Run, happened: str, arguments: tuple[str, ...], events: list[str]
) -> None:
    said = run("timeline", "--dsn", happened, "--json", *arguments)
    assert [row["event"] for row in said.rows] == events
    assert said.code == (0 if events else 1)
    shown = run("timeline", "--dsn", happened, *arguments)
    assert ("nothing happened" in shown.err) == (not events)


def test_a_limit_that_cannot_be_is_said(run: Run, happened: str) -> None:
    said = run("timeline", "--dsn", happened, "--limit", "0")
    assert said.code == 2
    assert "--limit: expected" in said.err
