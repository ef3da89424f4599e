import pytest

from chaos import pair


@pytest.mark.slow
def test_two_sidecars_share_a_database_through_a_kill() -> None:
    words = "--seconds 8 --rate 1000 --maintain-every 1 --plants 3 --settle-seconds 60"
    result = pair.run(pair.parser().parse_args(words.split()))
    assert result.held, result.text()
