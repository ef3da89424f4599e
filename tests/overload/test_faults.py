import pytest

from overload import faults
from overload.callers import Fate

REFUSED = ("refused", 486, "drain")
ANSWERED = ("answered", 200, "")


def fate(
    at: float, kind: str = "call", end: tuple[str, int, str] = ANSWERED, s: float = 0.01
) -> Fate:
    return Fate(at, kind, *end, s, 1)


def test_the_time_until_calls_pass_is_that_of_the_last_refusal_in_the_fault() -> None:
    calls = [
        fate(1.0, end=REFUSED),
        fate(12.0, end=REFUSED),
        fate(13.5),
        fate(20.5),
        fate(21.0, end=REFUSED),
    ]
    said = faults.judge(calls, struck=10.0, mended=20.0, state="closed")
    assert said["before_refused_share"] == 1
    assert said["pass_after_s"] == 2.0
    assert said["in_force_after_s"] == 0.5
    assert said["lost"] == 0


def test_who_waits_is_seen_and_whose_the_call_is() -> None:
    calls = [fate(9.8, s=0.25), fate(12.0, s=0.2), fate(14.0), fate(11.0, "plain", s=0.02)]
    said = faults.judge(calls, struck=10.0, mended=20.0, state="open")
    assert said["waited_until_s"] == 2.0
    assert said["asking_ms_fault"]["max"] == 250.0
    assert said["unrelated_ms_fault"]["max"] == 20.0
    assert said["unrelated_ms_before"]["max"] is None


def test_who_gets_no_answer_is_lost_and_has_waited_longest() -> None:
    lost = Fate(12.0, "plain", "silent", None, "", None, 5)
    said = faults.judge([lost], struck=10.0, mended=20.0, state="open")
    assert said["lost"] == 1
    assert said["unrelated_ms_fault"]["max"] == 10_000.0


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("way", ["asked", "pushed"])
def test_calls_pass_when_the_sidecar_stands_still_and_others_do_not_wait(way: str) -> None:
    words = f"--ways {way} --faults stop --states closed --before 2 --fault 6 --after 1"
    result = faults.run(faults.parser().parse_args(words.split()))
    assert result.held, result.text()
