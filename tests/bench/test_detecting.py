"""A short form of `make bench-detect`: fewer days and seeds, and the same series."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import detecting
from bench.detecting import NULLS, TROUBLES, Row, Series, Trouble

BENCH = Path(__file__).parent / "detecting.py"


@pytest.mark.parametrize("series", NULLS, ids=lambda one: one.name)
def test_a_series_without_trouble_is_quiet_for_a_day(series: Series) -> None:
    found = [detecting.episodes(series, seed, days=1) for seed in (11, 12)]
    assert sum(one["BC"] for one in found) <= 1
    assert sum(one["others"] for one in found) == 0


def test_three_sigma_cries_for_nothing() -> None:
    slow = next(one for one in NULLS if one.name == "4xx 8 %, 3/min")
    found = detecting.episodes(slow, 5, days=1)
    assert found["S"] >= 5
    assert found["BC"] == 0


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("outage 5xx 0.5 -> 60 %, 300/min", 1),
        ("outage 5xx 0.5 -> 60 %, 30/min", 1),
        ("outage 5xx 0.5 -> 60 %, 3/min", 8),
        ("partial outage 5xx 0.5 -> 3 %, 300/min", 6),
        ("drift 4xx 8 -> 12 % over 30 min, 300/min", 36),
        ("step 4xx 8 -> 20 %, 30/min, poisoned baseline", 30),
        ("outage 5xx 60 % after a gap of 20 min, 100/min", 1),
    ],
)
def test_trouble_is_seen_in_time(name: str, worst: int) -> None:
    trouble = next(one for one in TROUBLES if one.name == name)
    found = [detecting.delays(trouble, seed)["BC"] for seed in (1, 2, 3)]
    assert all(each is not None and each <= worst for each in found), found


def test_three_sigma_does_not_see_a_drift() -> None:
    drift = next(one for one in TROUBLES if one.name.endswith("30 min, 100/min"))
    found = [detecting.delays(drift, seed) for seed in (1, 2, 3)]
    assert all(one["S"] is None for one in found)
    assert all(one["BC"] is not None for one in found)


def test_a_stray_failure_is_no_alarm_but_for_three_sigma() -> None:
    assert detecting.stray(7) == {"S": True, "B": False, "C": False, "BC": False}


def test_targets_that_are_missed_are_said() -> None:
    trouble = Trouble("x", NULLS[0], lambda _, usual: usual, median=5, p95=9, miss=10)
    methods = ("S", "B", "C")
    slow = [{**dict.fromkeys(methods), "BC": 6}] * 9 + [{**dict.fromkeys(methods), "BC": None}] * 2
    row = detecting.trouble_row(trouble, slow)
    assert [why.split()[0] for why in row.missed] == ["median", "p95", "miss"]
    assert row.cells["S"] == "-/- (100 %)"
    false = [dict.fromkeys((*detecting.METHODS, "others"), 1)]
    assert detecting.null_row(NULLS[0], false, 5).missed
    assert not detecting.null_row(detecting.SEASONAL, false, 5).missed
    assert detecting.stray_row([dict.fromkeys(detecting.METHODS, True)]).missed
    lines = detecting.drawn("title", [Row("a", {"S": "1"}, ["why"])], ("S",))
    assert lines[1:] == ["a    " + "1".rjust(17), "  MISSED: why"]


def test_the_cost_of_a_minute_is_measured_without_alarms() -> None:
    found = detecting.cost(6, minutes=4).cells
    assert found["alarms"] == "0"
    assert int(found["series"]) > 20
    assert float(found["worst ms"]) > 0


def test_the_program_says_what_it_found() -> None:
    command = [sys.executable, str(BENCH), "--runs", "2", "--days", "1", "--jobs", "1"]
    command += ["--only", "0.2/min", "--seed", "3"]
    ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=100)
    lines = ran.stdout.splitlines()
    assert lines[0] == "seeds from 3 on; 2 runs, 1 series-days"
    assert [line[:16] for line in lines if "0.2/min" in line] == [
        "4xx 8 %, 0.2/min",
        "outage 5xx 0.5 -",
    ]
    assert lines[-1] == "every target is met"
    assert ran.returncode == 0
