import pytest

from chaos import storage


@pytest.mark.slow
def test_a_database_and_a_sidecar_that_are_killed_lose_what_was_in_memory_at_most() -> None:
    words = "--seconds 8 --rate 2000 --kills 2 --stops 1 --stop-seconds 3 --read-only 0"
    words += " --sidecar-kills 1 --settle-seconds 60"
    result = storage.run(storage.parser().parse_args(words.split()))
    assert result.held, result.text()
