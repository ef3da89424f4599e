"""Capture agents that fell silent, or whose clock is wrong."""

import random

import pytest

from sipsidecar.signals.shares import DAY, HOUR, MINUTE
from sipsidecar.signals.silence import MAX_AGENTS, Silence, Silences, Skew
from sipsidecar.signals.snapshot import AgentFigures

T0 = 1_795_000_000_000_000 // DAY * DAY


class Agents:
    """Agents that speak every so many seconds, looked at each minute."""

    def __init__(self, *pauses: float, **settings: float) -> None:
        self.silences = Silences({1: "edge"}, **settings)
        self.pauses = dict(enumerate(pauses, 1))
        self.packets = dict.fromkeys(self.pauses, 0)
        self.last = dict.fromkeys(self.pauses, 0.0)
        self.seconds = 0.0
        self.skew: float | None = 0.0

    def minute(self, *silent: int) -> tuple[list[Silence], list[Skew]]:
        self.seconds += 60
        for number, pause in self.pauses.items():
            if number in silent:
                continue
            spoken = int((self.seconds - self.last[number]) / pause)
            self.packets[number] += spoken
            self.last[number] += spoken * pause
        return self.silences.look(T0 + int(self.seconds * 1_000_000), self.figures())

    def figures(self) -> list[AgentFigures]:
        return [
            AgentFigures(
                number,
                f"192.0.2.{number}",
                None,
                self.packets[number],
                self.seconds - self.last[number],
                self.skew,
                None,
            )
            for number in self.pauses
        ]

    def run(self, minutes: int, *silent: int) -> list[Silence]:
        return [one for _ in range(minutes) for one in self.minute(*silent)[0]]


def test_agents_that_speak_as_ever_are_not_silent() -> None:
    agents = Agents(0.01, 10.0, 45.0, 400.0, 3000.0)
    assert not agents.run(3 * 1440)


@pytest.mark.parametrize(
    ("pause", "first_day", "later"), [(0.1, 3, 3), (20.0, 8, 4), (100.0, 30, 10)]
)
def test_an_agent_is_silent_after_some_of_its_own_pauses(
    pause: float, first_day: int, later: int
) -> None:
    agents = Agents(pause)
    agents.run(400)
    for limit in (first_day, later):
        silent = 0
        found: list[Silence] = []
        while not found:
            silent += 1
            found, _ = agents.minute(1)
        assert silent <= limit
        assert (found[0].name, found[0].active) == ("edge", True)
        assert agents.minute(1)[0][0].since == found[0].since
        (end,) = agents.run(5)
        assert (end.active, end.since) == (False, found[0].since)
        agents.run(1500)


def test_one_silent_agent_does_not_make_another_silent() -> None:
    agents = Agents(1.0, 1.0)
    agents.run(60)
    assert {one.name for one in agents.run(60, 2)} == {"2"}


def test_an_agent_that_was_hardly_heard_is_not_silent() -> None:
    agents = Agents(0.1)
    agents.run(5)
    assert not agents.run(600, 1)
    seldom = Agents(60.0)
    seldom.run(30)
    assert not seldom.run(600, 1)


def test_a_pause_that_keeps_coming_becomes_usual() -> None:
    agents = Agents(1.0)
    agents.run(1500)
    nights = []
    for _ in range(6):
        nights.append(len(agents.run(120, 1)) > 0)
        agents.run(1320)
    assert nights == [True, True, True, False, False, False]


def test_an_agent_with_a_new_address_is_the_same() -> None:
    silences = Silences({1: "edge"})
    old = AgentFigures(1, "192.0.2.1", None, 1000, 0.1, None, None)
    now = T0
    for _ in range(30):
        now += MINUTE
        silences.look(now, [old])
        old = AgentFigures(1, "192.0.2.1", None, old.packets + 10, 0.1, None, None)
    new_packets = 0
    for minute in range(30):
        now += MINUTE
        new_packets += 10
        gone = AgentFigures(1, "192.0.2.1", None, old.packets, 60.0 * minute, None, None)
        new = AgentFigures(1, "192.0.2.2", None, new_packets, 0.1, None, None)
        assert silences.look(now, [gone, new]) == ([], [])


def test_agents_without_an_id_are_known_by_address_and_are_bounded() -> None:
    silences = Silences()
    many = [AgentFigures(None, f"a{i}", None, 1, 0.0, 5.0, None) for i in range(MAX_AGENTS + 3)]
    for minute in range(3):
        _, skews = silences.look(T0 + minute * MINUTE, many)
    assert len(skews) == MAX_AGENTS
    assert skews[0].name == "a0"
    assert silences.folded == 9


def test_a_clock_is_wrong_after_three_looks_and_right_again_well_below_the_limit() -> None:
    agents = Agents(1.0, skew_limit_seconds=2.0)
    seen = []
    for skew in (3, 3, 0, 3, -3, -3, 1.5, 1.5, 1.5, 0.9, 0.9, 0.9, 0.9):
        agents.skew = float(skew)
        seen.append([(one.active, one.seconds) for one in agents.minute()[1]])
    assert seen[:5] == [[]] * 5
    assert seen[5] == [(True, -3.0)]
    assert seen[6:11] == [[(True, 1.5)]] * 3 + [[(True, 0.9)]] * 2
    assert seen[11:] == [[(False, 0.9)], []]


def test_an_unknown_clock_is_not_wrong_and_a_silent_one_says_nothing_new() -> None:
    agents = Agents(1.0)
    agents.skew = None
    assert not [one for _ in range(10) for one in agents.minute()[1]]
    agents.skew = 5.0
    agents.run(60)
    assert agents.minute()[1]
    assert len([one for _ in range(60) for one in agents.minute(1)[1]]) <= 3


def test_a_clock_that_jumps_backwards_breaks_nothing() -> None:
    agents = Agents(1.0)
    agents.run(60)
    assert agents.silences.look(T0 - HOUR, agents.figures()) == ([], [])


def test_the_jitter_of_real_traffic_is_no_silence() -> None:
    chance = random.Random(3)
    silences = Silences()
    packets, age, now = 0, 0.0, T0
    for minute in range(5 * 1440):
        rate = 0.5 if minute % 1440 < 480 else 5.0
        spoken = sum(chance.random() < rate / 60 for _ in range(60))
        now += MINUTE
        packets += spoken
        age = chance.random() * 60 / (spoken + 1) if spoken else age + 60
        figures = AgentFigures(7, "192.0.2.7", None, packets, age, None, None)
        assert silences.look(now, [figures])[0] == []
