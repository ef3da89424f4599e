"""That the comparison of readers still runs: each must see exactly what was sent."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "esl_readers.py"


@pytest.mark.skipif(
    importlib.util.find_spec("greenswitch") is None, reason="greenswitch is not installed"
)
def test_all_readers_see_the_same_recorded_events() -> None:
    command = [sys.executable, str(BENCH), "--events", "400", "--rounds", "1", "--json"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    rows = {row["reader"]: row for row in map(json.loads, ran.stdout.splitlines())}
    assert rows.keys() == {"plain", "json", "greenswitch"}
    assert len({row["events"] for row in rows.values()}) == 1
    assert all(row["us"] > 0 and row["peak_mb"] > 5 for row in rows.values())
