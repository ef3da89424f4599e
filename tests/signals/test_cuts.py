"""Lengths at which too many calls end."""

import math
import random

import pytest

from sipsidecar.signals.cuts import SPOTS, Cut, Cuts
from sipsidecar.signals.shares import DAY, HOUR, MINUTE

T0 = 1_795_000_000_000_000 // DAY * DAY
SCOPE = (("trunk", "acme"),)


class Trunk:
    """A trunk whose answered calls are as long as people talk, but for those that are cut."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.cuts = Cuts()
        self.now = T0
        self.calls = 0
        self.found: list[Cut] = []

    def minute(self, calls: int = 5, share: float = 0.0, length: float = 32.05) -> list[Cut]:
        for _ in range(calls):
            cut = self.random.random() < share
            talk = length if cut else math.exp(self.random.gauss(4.2, 1.1))
            side = "callee" if cut or self.random.random() < 0.5 else "caller"
            self.calls += 1
            self.cuts.receive(SCOPE, talk, self.now, str(self.calls), released_by=side, no_ack=cut)
        self.now += MINUTE
        cuts = [cut for _, some in self.cuts.look(self.now) for cut in some]
        self.found += cuts
        return cuts

    def until(self, *, active: bool, share: float = 0.0, length: float = 32.05) -> Cut:
        for _ in range(3000):
            for cut in self.minute(share=share, length=length):
                if cut.active is active:
                    return cut
        raise AssertionError("nothing was found")


@pytest.mark.parametrize("seed", range(3))
def test_calls_of_the_lengths_that_people_talk_are_not_cut(seed: int) -> None:
    trunk = Trunk(seed)
    for _ in range(2 * 1440):
        trunk.minute()
    assert not trunk.found


@pytest.mark.parametrize(
    ("length", "spot", "share", "within"),
    [
        (32.05, "30/32 s", 0.3, 150),
        (30.0, "30/32 s", 0.3, 150),
        (60.1, "60 s", 0.1, 300),
        (120.02, "120 s", 0.1, 300),
        (868.0, "868 s", 0.05, 600),
        (900.4, "900 s", 0.05, 600),
        (1768.2, "1768 s", 0.05, 600),
        (1800.5, "1800 s", 0.02, 2000),
        (3600.5, "3600 s", 0.02, 2000),
    ],
)
def test_a_timer_is_found_from_the_first_calls_on_and_ends(
    length: float, spot: str, share: float, within: int
) -> None:
    for seed in range(3):
        trunk = Trunk(seed)
        cut = trunk.until(active=True, share=share, length=length)
        assert trunk.calls <= within
        assert cut.spot == spot
        assert cut.hits >= 10 > cut.expected
        assert cut.released_by["callee"] >= 0.8 * (cut.hits - cut.expected)
        assert cut.no_ack > 0
        assert len(cut.call_ids) == 5
        assert [one.active for one in trunk.minute(share=share, length=length)] == [True]
        for _ in range(60):
            trunk.minute(share=share, length=length)
        fixed = trunk.now
        end = trunk.until(active=False)
        assert end.spot == spot
        assert trunk.now - fixed < 12 * HOUR
        assert {one.spot for one in trunk.found} == {spot}
        for _ in range(300):
            assert not trunk.minute()


def test_calls_that_either_side_ends_at_a_length_are_not_cut() -> None:
    cuts = Cuts()
    for number in range(100):
        side = "callee" if number % 2 else "caller"
        cuts.receive(SCOPE, 60.5, T0, str(number), released_by=side)
    assert cuts.look(T0 + MINUTE) == []


def test_calls_of_which_nobody_knows_who_ended_them_may_be_cut() -> None:
    cuts = Cuts()
    for number in range(100):
        cuts.receive(SCOPE, 60.5, T0, str(number))
    ((_, (cut,)),) = cuts.look(T0 + MINUTE)
    assert (cut.active, cut.hits, cut.calls, cut.expected) == (True, 100, 100, 0.0)


def test_few_calls_are_not_cut() -> None:
    cuts = Cuts()
    for number in range(9):
        cuts.receive(SCOPE, 60.5, T0, str(number))
    assert cuts.look(T0 + MINUTE) == []


def test_a_cut_on_a_trunk_without_any_more_calls_ends() -> None:
    cuts = Cuts()
    for number in range(100):
        cuts.receive(SCOPE, 60.5, T0, str(number))
    cuts.look(T0 + MINUTE)
    ((_, (cut,)),) = cuts.look(T0 + 2 * HOUR)
    assert not cut.active
    assert cuts.look(T0 + 2 * HOUR) == []


def test_two_lengths_are_two_cuts() -> None:
    cuts = Cuts()
    for number in range(40):
        cuts.receive(SCOPE, 60.5, T0, str(number))
        cuts.receive(SCOPE, 32.1, T0, str(number))
    ((_, found),) = cuts.look(T0 + MINUTE)
    assert [cut.spot for cut in found] == ["30/32 s", "60 s"]


def test_scopes_are_bounded_and_forgotten_after_a_day() -> None:
    cuts = Cuts(max_scopes=1)
    other = (("trunk", "other"),)
    cuts.receive(SCOPE, 10.0, T0, "c")
    cuts.receive(other, 10.0, T0, "c")
    assert cuts.folded == 1
    cuts.look(T0)
    cuts.look(T0 + 2 * DAY)
    cuts.receive(other, 10.0, T0 + 2 * DAY, "c")
    assert cuts.folded == 1


def test_no_spot_is_a_neighbour_of_another() -> None:
    for spot in SPOTS:
        for other in SPOTS:
            apart = other.high <= spot.low - spot.flank or other.low >= spot.high + spot.flank
            assert spot is other or apart
