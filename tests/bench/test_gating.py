"""A short form of `make bench-admission`: the same trunks, for hours instead of weeks."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import gating

BENCH = Path(__file__).parent / "gating.py"


@pytest.mark.parametrize(("per_second", "minutes"), [(0.2, 150), (1.0, 150), (5.0, 60), (100.0, 1)])
def test_a_noisy_but_healthy_trunk_never_closes(per_second: float, minutes: int) -> None:
    run = gating.healthy(11, per_second, minutes)
    assert run.closings == {}
    assert run.calls > 100


@pytest.mark.parametrize(
    ("trouble", "measure"),
    [(trouble, measures[0]) for trouble, (_, measures) in gating.TROUBLES.items()],
)
def test_a_trunk_in_trouble_closes_in_time_and_opens_without_flapping(
    trouble: str, measure: str
) -> None:
    found = gating.row((trouble, measure, gating.LONG, 1.0), seeds=2)
    assert not gating.late(found), found
    assert found.reached_worst is not None
    assert found.reached_worst < 70


def test_a_trunk_with_few_calls_is_tried_ever_less_often() -> None:
    found = gating.row(("503 to all", "server_errors_percent", gating.LONG, 0.2), seeds=3)
    assert found.closings_worst <= 5
    assert found.reached_worst is not None
    assert found.reached_worst < 60


def test_the_program_says_what_it_found() -> None:
    command = [sys.executable, str(BENCH), "--minutes", "1", "--healthy-seeds", "1"]
    command += ["--seeds", "1", "--only", "loss", "--jobs", "1"]
    ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=100)
    lines = ran.stdout.splitlines()
    healthy = [line for line in lines if line.startswith("healthy, ")]
    assert len(healthy) == 6
    assert all(line.endswith("never closed") for line in healthy)
    assert [line.split()[0] for line in lines[-4:]] == ["loss"] * 4
