"""What capture agents are heard of to those that fell silent, and those whose clock is wrong.

An agent that is not heard is no quiet trunk: nothing is known any more. Each is judged by its own
pauses: it is silent when it has said nothing for three times as long as ever in the last seven days,
ten times in its first day, whose nights are not known.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sipsidecar.signals.shares import DAY
from sipsidecar.signals.snapshot import AgentFigures

SECOND: Final = 1_000_000
MAX_AGENTS: Final = 1024
MIN_PACKETS: Final = 100
MIN_TIME: Final = 600 * SECOND
"""How long an agent must have been heard until its silence means something."""
FLOOR_SECONDS: Final = 120.0
"""The shortest silence that is told: two looks."""
TIMES: Final = 3.0
YOUNG_TIMES: Final = 10.0
USUAL: Final = 3
"""Silences of its last seven days that were told until they are its usual pauses."""
DAYS: Final = 7
SKEW_LOOKS: Final = 3
"""Looks in a row."""
SKEW_CLEAR: Final = 0.5
"""Share of the limit under which a clock is right again."""


class Silence(NamedTuple):
    """One agent that is silent, or is heard again (`active` False)."""

    name: str
    active: bool
    since: int
    """When it was heard last, microseconds UTC."""
    seconds: float
    """How long it is, or was, silent."""
    usual_seconds: float
    """Its longest pause."""


class Skew(NamedTuple):
    """One agent whose clock is wrong, or is right again (`active` False)."""

    name: str
    active: bool
    since: int
    seconds: float
    """How far it is ahead of ours; behind: negative."""


class _Agent:
    def __init__(self, at: int) -> None:
        self.first = at
        self.looked = at
        self.packets = 0
        self.age = 0.0
        self.pauses: deque[float] = deque([0.0], maxlen=DAYS)
        """The longest of each day."""
        self.told: deque[tuple[int, float]] = deque(maxlen=USUAL)
        self.since: int | None = None
        self.skewed: int | None = None
        self.wrong = self.right = 0


class Silences:
    """All capture agents, by name: one that changed its address is the same."""

    def __init__(
        self, names: Mapping[int, str] | None = None, skew_limit_seconds: float = 1.0
    ) -> None:
        self.folded = 0
        """Looks at agents over the cap."""
        self._names = dict(names or {})
        self._limit = skew_limit_seconds
        self._agents: dict[str, _Agent] = {}
        self._day = 0

    def look(self, at: int, agents: Sequence[AgentFigures]) -> tuple[list[Silence], list[Skew]]:
        """What holds or ends; to be called about once a minute."""
        by_name: dict[str, list[AgentFigures]] = {}
        for figures in agents:
            by_name.setdefault(self._name(figures), []).append(figures)
        if at // DAY != self._day:
            self._day = at // DAY
            for one in self._agents.values():
                one.pauses.append(0.0)
        silences: list[Silence] = []
        skews: list[Skew] = []
        for name, some in by_name.items():
            agent = self._agents.get(name)
            if agent is None:
                if len(self._agents) >= MAX_AGENTS:
                    self.folded += 1
                    continue
                agent = self._agents[name] = _Agent(at)
            newest = min(some, key=lambda one: one.last_seen_seconds)
            packets = sum(one.packets for one in some)
            if (silence := _silence(name, agent, newest, packets, at)) is not None:
                silences.append(silence)
            if (skew := self._skew(name, agent, newest, at)) is not None:
                skews.append(skew)
            agent.packets, agent.age, agent.looked = packets, newest.last_seen_seconds, at
        return silences, skews

    def _name(self, figures: AgentFigures) -> str:
        if figures.agent_id is None:
            return figures.address
        return self._names.get(figures.agent_id, str(figures.agent_id))

    def _skew(self, name: str, agent: _Agent, figures: AgentFigures, at: int) -> Skew | None:
        skew = figures.clock_skew_seconds
        if skew is None or agent.since is not None:
            return None  # nothing new is known of its clock
        off = abs(skew)
        agent.wrong = agent.wrong + 1 if off > self._limit else 0
        agent.right = agent.right + 1 if off < SKEW_CLEAR * self._limit else 0
        if agent.skewed is None:
            if agent.wrong < SKEW_LOOKS:
                return None
            agent.skewed = at
        since = agent.skewed
        if agent.right >= SKEW_LOOKS:
            agent.skewed = None
        return Skew(name, agent.skewed is not None, since, skew)


def _silence(
    name: str, agent: _Agent, figures: AgentFigures, packets: int, at: int
) -> Silence | None:
    age, heard = figures.last_seen_seconds, packets - agent.packets
    usual = max(agent.pauses)
    if heard > 0:
        # The pause that ended since the last look, at its longest: then packets came at a pace.
        paused = max(0.0, agent.age + ((at - agent.looked) / SECOND - age) / (heard + 1))
        if agent.since is None:
            agent.pauses[-1] = max(agent.pauses[-1], paused)
            return None
        since, agent.since = agent.since, None
        _remember(agent, paused, at)
        return Silence(name, False, since, paused, usual)
    if agent.since is None:
        limit = (YOUNG_TIMES if at - agent.first < DAY else TIMES) * usual
        last = at - int(age * SECOND)
        known = packets >= MIN_PACKETS and last - agent.first >= MIN_TIME
        if not known or age <= max(limit, FLOOR_SECONDS):
            return None
        agent.since = last
    return Silence(name, True, agent.since, age, usual)


def _remember(agent: _Agent, paused: float, at: int) -> None:
    """Let a silence that was told become usual when it keeps coming."""
    agent.told.append((at, paused))
    if len(agent.told) == USUAL and at - agent.told[0][0] <= DAYS * DAY:
        agent.pauses[-1] = max(agent.pauses[-1], min(pause for _, pause in agent.told))
