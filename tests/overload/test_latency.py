import pytest

from overload import latency


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_decisions_go_on_while_captured_traffic_comes() -> None:
    # That it works, not how fast: other tests share the machine.
    words = "--rates 500 --seconds 3 --asked-ms 2000 --pushed-ms 500"
    result = latency.run(latency.parser().parse_args(words.split()))
    assert result.held, result.text()


def test_the_table_has_a_line_for_each_rate() -> None:
    times = {"p50": 1.0, "p99": 2.0, "max": 3.0}
    row = {"offered": 40000.0, "taken": 17000, "evapi": times, "http": times, "drain": times}
    said = latency.table([row | {"push": {"p50": 0.1, "max": 0.2}}])
    assert said.splitlines()[2].startswith(
        "| 40000 | 17000 | 1.0 / 2.0 / 3.0 | 1.0 / 2.0 / 3.0 | 0.1 / 0.2"
    )
