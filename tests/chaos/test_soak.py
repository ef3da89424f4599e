from pathlib import Path

import pytest

from chaos import soak


@pytest.mark.slow
def test_a_soak_reads_restarts_and_says_the_slope(tmp_path: Path) -> None:
    words = f"--hours {9 / 3600} --rate 1000 --every 1.5 --restart-every 4 --warm-up 3 --no-slope"
    words += f" --settle-seconds 60 --table {tmp_path / 'table'}"
    result = soak.run(soak.parser().parse_args(words.split()))
    assert result.held, result.text()
    assert result.figures["restarts"] >= 2
    assert result.figures["readings_after_warm_up"] >= 2
    assert len((tmp_path / "table").read_text().splitlines()) > 3


def test_the_slope_is_that_of_the_line() -> None:
    assert soak.slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == 2.0
    assert soak.slope([(1.0, 7.0)]) == 0.0
    noisy = [(x / 10, 3 * x / 10 + (-1) ** x) for x in range(100)]
    assert abs(soak.slope(noisy) - 3) < 0.1
