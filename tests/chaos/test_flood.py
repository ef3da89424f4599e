import pytest

from chaos import flood


@pytest.mark.slow
def test_calls_and_numbers_are_exact_under_a_flood() -> None:
    words = "--seconds 5 --any-latency --sample 300 --settle-seconds 60"
    result = flood.run(flood.parser().parse_args(words.split()))
    assert result.held, result.text()
