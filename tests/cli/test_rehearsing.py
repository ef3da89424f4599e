"""Rules rehearsed on a stored capture, as a command of its own."""

from pathlib import Path

import pytest

from running import recent
from terminal import Run

RULES = """
[[cohorts.match]]
trunk = "callee"
destinations = ["127.0.0.0/8"]

[[admission.rules]]
name = "one-at-a-time"
measure = "calls"
limit = 1

[[admission.rules]]
name = "would"
measure = "calls"
limit = 1
outcome = "shadow"

[[admission.rules]]
name = "cpu"
measure = "cpu_percent"
"""


@pytest.fixture
def rules(run: Run, database: str, tmp_path: Path) -> Path:
    """A configuration with rules, whose database holds the calls of one capture."""
    capture = recent("kamailio/a_answered", tmp_path / "a.pcap", 3600)
    assert run("replay", "--store", "--dsn", database, capture).code == 0
    path = tmp_path / "new.toml"
    path.write_text(f'[database]\ndsn = "{database}"\n{RULES}')
    return path


def test_it_says_who_would_have_been_refused_when_and_why(run: Run, rules: Path) -> None:
    said = run("admission", "simulate", "--config", rules, "--since", "1d", "--json")
    assert (said.code, said.err) == (0, "")
    *rows, summary = said.rows
    stored = run("calls", "--config", rules, "--json", "--limit", "1000").rows
    assert summary["kind"] == "summary"
    assert summary["offered"] == len(stored)
    refused = [row for row in rows if row["kind"] == "refusal"]
    enforced = [row for row in refused if row["verdict"] == "refuse"]
    assert len(enforced) == summary["rules"]["one-at-a-time"]["refused"]
    assert summary["admitted"] + len(enforced) == summary["offered"]
    assert 0 < len(enforced) < len(stored)
    assert {row["call_id"] for row in enforced} < {row["call_id"] for row in stored}
    assert {(row["rule"], row["value"], row["threshold"]) for row in enforced} == {
        ("one-at-a-time", 1.0, 1.0)
    }
    assert summary["rules"]["would"]["shadowed"] == len(enforced)
    assert summary["most"]["global"] == 1
    assert summary["unheard"] == ["cpu"]


def test_people_read_a_table(run: Run, rules: Path) -> None:
    said = run("admission", "simulate", "--config", rules, "--list")
    assert said.code == 0
    first = said.out.splitlines()[0]
    assert " calls from " in first
    assert " admitted, " in first
    assert "one-at-a-time" in said.out
    assert "about health nothing is stored: not rehearsed: cpu" in said.out
    assert "most calls at once: global 1, trunk callee 1" in said.out


def test_a_time_without_calls_says_so(run: Run, rules: Path) -> None:
    said = run("admission", "simulate", "--config", rules, "--since", "5m")
    assert (said.code, said.out) == (1, "no calls are stored of that time\n")


def test_without_rules_it_says_where_they_belong(run: Run, database: str) -> None:
    said = run("admission", "simulate", "--dsn", database)
    assert said.refusal.endswith(
        "no rules to rehearse: name a --config whose admission.rules has some"
    )


def test_a_time_that_ends_before_it_begins_is_refused(run: Run, rules: Path) -> None:
    said = run("admission", "simulate", "--config", rules, "--since", "1h", "--until", "2h")
    assert said.refusal.endswith("--since is not before --until")
