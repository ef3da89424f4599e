import pytest

from chaos import hostile


@pytest.mark.slow
def test_wrong_datagrams_and_hostile_connections_leave_nothing_behind() -> None:
    words = "--datagrams 50000 --connections 400 --at-once 100 --patience 1 --forget-seconds 0"
    words += " --growth-mb 256 --settle-seconds 60"
    result = hostile.run(hostile.parser().parse_args(words.split()))
    assert result.held, result.text()
