from chaos import freeswitch


def test_live_counts_are_right_after_every_fault_of_a_switch() -> None:
    words = "--restarts 4 --seconds 0.2 --heartbeat 0.5 --queued 3000 --calls 40"
    result = freeswitch.run(freeswitch.parser().parse_args(words.split()))
    assert result.held, result.text()
