"""Who captures: each HEP sender's capture id, its clock's skew, and the addresses of its own node.

No HEP chunk says which side of a message is the capture node itself. Where it is not configured
it is learned: a proxy sends HEP from its own SIP address, so the sender's address on a message is
the node's own; else it is the one address that is on one side of every message.
"""

from collections.abc import Collection, Iterator
from ipaddress import ip_address

from sipsidecar.calls.call import RECEIVER
from sipsidecar.calls.dialog import Clocks

MAX_AGENTS = 1024
"""Capture ids are written by strangers; beyond this many senders share the receiver's clock."""
SKEW_WINDOW = 60.0
"""Seconds over which the least delay between an agent's stamp and its arrival is taken as skew."""
MIN_REMOTES = 2
"""An address is the node's own once it was met with this many others."""
MAX_REMOTES = 8


class Agent:
    """One HEP sender: capture id and source address."""

    __slots__ = (
        "_candidates",
        "_least",
        "_own",
        "_remotes",
        "_skew",
        "_strays",
        "_window_ends",
        "agent_id",
        "clock",
        "last_now",
        "last_received_at",
        "local",
        "node_name",
        "packets",
        "peer",
    )

    def __init__(self, clock: int, agent_id: int | None, peer: str) -> None:
        self.clock = clock
        self.agent_id = agent_id
        self.peer = peer
        self._own = _packed(peer)
        self.node_name: bytes | None = None
        self.packets = 0
        self.last_now = 0.0
        self.last_received_at = 0
        self.local: bytes | None = None
        self._least: int | None = None
        self._skew: int | None = None
        self._window_ends = 0.0
        self._candidates: frozenset[bytes] | None = None
        self._remotes: set[bytes] = set()
        self._strays = 0

    @property
    def skew_us(self) -> int | None:
        """How far the agent's clock is ahead of ours (behind: negative); None without a stamp."""
        skew = self._skew if self._skew is not None else self._least
        return None if skew is None else -skew

    @property
    def skew_seconds(self) -> float | None:
        """The same in seconds."""
        skew = self.skew_us
        return None if skew is None else skew / 1_000_000

    def stamp(self, captured_at: int, received_at: int, now: float) -> None:
        """One packet's two times: the least delay seen in a window is the clocks' difference."""
        delay = received_at - captured_at
        if now >= self._window_ends:
            if self._least is not None:
                self._skew = self._least
            self._least = delay
            self._window_ends = now + SKEW_WINDOW
        elif self._least is None or delay < self._least:
            self._least = delay

    def learn(self, source: bytes, destination: bytes) -> None:
        """One message's two addresses; the node's own is on every message."""
        if self.local is not None:
            if self.local not in (source, destination):
                # A node with several addresses: better none than a wrong one.
                self._strays += 1
                if self._strays * 20 > self.packets:
                    self.local = None
                    self._candidates = frozenset()
            return
        if self._own in (source, destination):
            self.local = self._own
            return
        both = frozenset((source, destination))
        self._candidates = both if self._candidates is None else self._candidates & both
        if len(self._remotes) < MAX_REMOTES:
            self._remotes |= both
        if len(self._candidates) == 1 and len(self._remotes) > MIN_REMOTES:
            self.local = next(iter(self._candidates))


def _packed(address: str) -> bytes | None:
    """An address as SIP's are compared: without its scope, an IPv4-mapped one as IPv4."""
    try:
        found = ip_address(address)
    except ValueError:
        return None
    return (getattr(found, "ipv4_mapped", None) or found).packed


class Agents:
    """Every HEP sender met, bounded."""

    def __init__(self, local: Collection[bytes] = ()) -> None:
        self._configured = frozenset(local)
        self._by_key: dict[tuple[int | None, str], Agent] = {}
        self._by_own: dict[tuple[int | None, bytes], Agent] = {}
        self._by_clock: dict[int, Agent] = {}
        self.overflow = 0

    def __iter__(self) -> Iterator[Agent]:
        """Those that were heard; one only remembered is not among them."""
        return (agent for agent in self._by_clock.values() if agent.packets)

    def see(self, agent_id: int | None, peer: str, now: float, received_at: int) -> Agent | None:
        """The agent a packet came from; None when there are too many to know."""
        agent = self._by_key.get((agent_id, peer)) or self.recall(agent_id, peer)
        if agent is None:
            self.overflow += 1
            return None
        agent.packets += 1
        agent.last_now = now
        agent.last_received_at = received_at
        return agent

    def recall(self, agent_id: int | None, peer: str) -> Agent | None:
        """The agent that a stored message came from, as `see` would know it; nothing is counted.

        One sender may be written in two ways, as `::ffff:192.0.2.1` by a socket and `192.0.2.1`
        by a table: it is one agent, or no time before a restart could be compared with one after.
        """
        key = (agent_id, peer)
        agent = self._by_key.get(key)
        if agent is None and len(self._by_key) < MAX_AGENTS:
            own = _packed(peer)
            agent = self._by_own.get((agent_id, own)) if own is not None else None
            if agent is None:
                clock = RECEIVER + 1 + len(self._by_clock)
                agent = Agent(clock, agent_id, peer)
                self._by_clock[clock] = agent
                if own is not None:
                    self._by_own[agent_id, own] = agent
            self._by_key[key] = agent
        return agent

    def clocks(self, clocks: Collection[int]) -> Clocks:
        """What a call needs to know of the clocks that saw it."""
        ids: dict[int, int | None] = {}
        skews: dict[int, int] = {}
        local = self._configured
        for clock in clocks:
            agent = self._by_clock.get(clock)
            if agent is not None:
                ids[clock] = agent.agent_id
                if (skew := agent.skew_us) is not None:
                    skews[clock] = skew
                if not self._configured and agent.local is not None:
                    local |= {agent.local}
        return Clocks(ids, local, skews)
