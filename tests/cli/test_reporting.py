"""Figures of calls by cohort."""

import pytest

from terminal import Run

SINCE = ("--since", "7d")


def test_calls_of_all_groups_are_those_that_calls_lists(run: Run, dsn: str) -> None:
    listed = run("calls", "--dsn", dsn, "--json", *SINCE, "--limit", "1000").rows
    said = run("report", "--dsn", dsn, "--by", "codec", "--json", *SINCE)
    assert (said.code, said.err) == (0, "")
    assert sum(row["calls"] for row in said.rows) == len(listed)
    assert sum(row["answered"] for row in said.rows) == sum(bool(row["answered"]) for row in listed)
    assert [row["calls"] for row in said.rows] == sorted(
        (row["calls"] for row in said.rows), reverse=True
    )
    for row in said.rows:
        assert row["seizures"] == 0 or row["asr_percent"] == pytest.approx(
            100 * row["answered"] / row["seizures"]
        )


def test_a_table_leaves_out_what_nothing_is_known_of(run: Run, dsn: str) -> None:
    said = run("report", "--dsn", dsn, "--by", "codec", "--by", "day", *SINCE)
    assert said.code == 0
    heading = said.out.splitlines()[0].split()
    assert heading[:3] == ["codec", "day", "calls"]
    assert "completed_percent" not in heading


def test_a_filter_leaves_calls_out(run: Run, dsn: str) -> None:
    said = run("report", "--dsn", dsn, "--by", "trunk", *SINCE, "--tenant", "nobody")
    assert said.code == 1
    assert "no calls began in that time" in said.err
    assert run("report", "--dsn", dsn, "--by", "trunk", "--since", "1s").code == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--by", "user"), "invalid choice"),
        ((), "--by"),
        (("--by", "day", "--by", "codec", "--by", "trunk", "--by", "agent"), "at most 3"),
        (("--by", "day", "--limit", "0"), "--limit: expected"),
        (("--by", "day", "--since", "soon"), "soon: expected"),
    ],
)
def test_what_cannot_be_reported_is_said(
    run: Run, dsn: str, arguments: tuple[str, ...], says: str
) -> None:
    said = run("report", "--dsn", dsn, *arguments)
    assert said.code == 2
    assert says in said.err
