import argparse

import pytest

from overload import loads


def wanted(words: str) -> argparse.Namespace:
    return loads.parser().parse_args(words.split())


def row(mode: str, load: float, got: float, refused: float, cpu: float) -> dict[str, object]:
    return {
        "mode": mode,
        "load": load,
        "goodput_of_capacity": got,
        "refused": refused,
        "silent": 0.0,
        "late": 0.0,
        "setup_p50_ms": None,
        "setup_p99_ms": None,
        "bound": 1.0,
        "recovery": None,
        "cpu_share": {"kamailio": cpu, "sidecar": 0.0},
        "by_time": [1.0, 0.5],
    }


def test_what_a_refusal_costs_is_what_more_of_them_cost() -> None:
    rows = [row("asked", 2, 1, 50, 0.10), row("asked", 5, 1, 200, 0.25), row("asked", 1, 1, 1, 9.0)]
    assert loads.cost_of_refusal(rows, 50) == pytest.approx(0.05)
    assert loads.cost_of_refusal(rows[:1], 50) is None


def test_every_row_is_in_the_table_and_every_mode_in_the_plot() -> None:
    rows = [row("none", 0.8, 0.8, 0, 0), row("asked", 5, 0.97, 200, 0.2)]
    said = loads.table(rows, wanted(""))
    assert said.splitlines()[2].startswith("| none | 0.8 | 1.00 | **0.80** |")
    assert "not in 13" in said.splitlines()[3]
    drawn = loads.plot(rows, wanted(""))
    assert ">none</text>" in drawn
    assert ">asked</text>" in drawn


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.usefixtures("proxy")
def test_five_times_the_capacity_is_ruin_without_admission() -> None:
    words = "--modes none --loads 5 --seconds 7 --warm 4 --after 0 --capacity 30 --patience 2"
    result = loads.run(wanted(words))
    assert result.held, result.text()


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("mode", ["asked", "pushed"])
def test_five_times_the_capacity_is_served_to_the_capacity_with_admission(mode: str) -> None:
    words = f"--modes {mode} --loads 5 --seconds 7 --warm 2 --after 0 --capacity 40 --patience 2"
    result = loads.run(wanted(words))
    assert result.held, result.text()
