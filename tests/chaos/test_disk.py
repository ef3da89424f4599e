import pytest

from chaos import disk


@pytest.mark.slow
def test_a_full_spool_sheds_messages_with_a_number_and_no_calls() -> None:
    words = "--part bound --seconds 8 --rate 2000 --spool-mb 4 --settle-seconds 60"
    result = disk.run(disk.parser().parse_args(words.split()))
    assert result.held, result.text()
