import re
from collections.abc import Callable

import pytest

from running import CORPUS
from sipsidecar.cli import words
from sipsidecar.cli.words import CALL_COLUMNS
from terminal import Row, Run, on_terminal


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 71),
        (["--since", "1d"], 71),
        (["--since", "1h"], 46),
        (["--since", "20m"], 14),
        (["--since", "7d"], 121),
        (["--since", "1h", "--until", "20m"], 32),
        (["--until", "1d"], 0),
        (["--since", "30d", "--until", "1d"], 50),
        (["--since", "2000-01-01"], 121),
        (["--since", "2000-01-01T00:00+02:00"], 121),
        (["--since", "0001-01-01"], 121),
        (["--since", "999999999d"], 121),
        (["--since", "2000-01-01", "--until", "2001-01-01"], 0),
    ],
)
def test_times_are_so_long_ago_or_dates(
    calls: Callable[..., list[Row]], arguments: list[str], count: int
) -> None:
    assert len(calls(*arguments, "--limit", "1000")) == count


def test_a_table_has_a_heading_and_a_line_per_call(run: Run, dsn: str) -> None:
    said = run("calls", "--dsn", dsn, "--flag", "failover")
    heading, *lines = said.out.splitlines()
    assert heading.split() == list(CALL_COLUMNS)
    assert len(lines) == 10
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  j503-", line)
        assert re.search(r" 200  caller +\d+ +\d+ +\d+ +2  failover$", line)
    assert said.err == ""


def test_on_a_terminal_a_table_fits_and_what_is_missing_is_said(dsn: str) -> None:
    shown = on_terminal(["calls", "--dsn", dsn, "--limit", "5"], 100)
    lines = shown.splitlines()
    assert len(lines) == 7
    assert max(map(len, lines[:6])) <= 100
    assert lines[6] == "the first 5 are shown; see --limit"


def test_on_a_terminal_a_replay_shows_its_progress_and_clears_it() -> None:
    shown = on_terminal(["replay", str(CORPUS / "kamailio/a_answered.pcap")], 200)
    assert re.match(r"(\r *\d+ % of 0\.4 MB)+\r +\rstarted_at", shown)
    assert "645 packets, 50 calls" in shown


def test_a_row_without_a_call_id_says_null() -> None:
    assert words.readable({"call_id": "", "from_tag": ""}) == {"call_id": None, "from_tag": ""}
