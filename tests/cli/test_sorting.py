"""Whose calls are, tried on captures and on stored calls."""

from pathlib import Path

import pytest

from running import CORPUS
from sipsidecar.cli import sorting
from terminal import Run

MATCHERS = """
[[cohorts.match]]
trunk = "callee"
carrier = "blue"
destinations = ["127.0.0.0/8"]
ports = [5080]

[[cohorts.match]]
tenant = "acme"
direction = "inbound"
"""


@pytest.fixture
def matchers(tmp_path: Path) -> Path:
    path = tmp_path / "matchers.toml"
    path.write_text(MATCHERS)
    return path


def test_each_kind_of_hop_of_a_file_is_shown_with_the_matcher_of_each_label(
    run: Run, matchers: Path
) -> None:
    said = run(
        "cohorts", "test", CORPUS / "kamailio/j_failover.pcap", "--config", matchers, "--json"
    )
    assert (said.code, said.err) == (0, "")
    assert {row["tenant"] for row in said.rows} == {"acme"}
    assert {row["matched"]["tenant"] for row in said.rows} == {2}
    told = {(row["trunk"], row["carrier"], row["matched"]["trunk"]) for row in said.rows}
    assert told <= {("callee", "blue", 1), ("other", "other", None)}
    assert [row["calls"] for row in said.rows] == sorted(
        (row["calls"] for row in said.rows), reverse=True
    )
    table = run("cohorts", "test", CORPUS / "kamailio/j_failover.pcap", "--config", matchers)
    assert "acme (2)" in table.out
    assert "region" not in table.out  # no matcher says one
    assert "counted from 1 in cohorts.match" in table.out


def test_what_is_left_out_of_a_large_file_is_counted(
    run: Run, matchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "MAX_HOPS", 1)
    said = run(
        "cohorts", "test", CORPUS / "kamailio/j_failover.pcap", "--config", matchers, "--json"
    )
    assert len(said.rows) == 1
    assert "INVITEs after the first 1 hops are left out" in said.err


def test_every_hop_of_a_stored_call_is_shown(run: Run, matchers: Path, dsn: str) -> None:
    rows = run("calls", "--dsn", dsn, "--json", "--since", "7d", "--limit", "1000").rows
    failed_over = next(row["call_id"] for row in rows if row["attempts"] == 2)
    said = run("cohorts", "test", failed_over, "--config", matchers, "--dsn", dsn, "--json")
    assert (said.code, said.err) == (0, "")
    assert {row["call_id"] for row in said.rows} == {failed_over}
    assert len(said.rows) == 3  # from the caller, and twice from the proxy


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nobody@nowhere", "nobody@nowhere: neither a file nor the Call-ID of a stored call"),
        (CORPUS / "kamailio/h_register_options.pcap", "there is no INVITE in it"),
    ],
)
def test_what_has_no_invite_is_said_to_have_none(
    run: Run, matchers: Path, dsn: str, what: str | Path, says: str
) -> None:
    said = run("cohorts", "test", what, "--config", matchers, "--dsn", dsn)
    assert said.code == 2
    assert says in said.err


def test_without_matchers_it_says_what_to_write(run: Run, dsn: str) -> None:
    said = run("cohorts", "test", "a.pcap", "--dsn", dsn)
    assert said.code == 2
    assert "add [[cohorts.match]] tables" in said.err
