"""Setups and calls to findings over traffic: what changed between trunks, carriers and agents."""

from collections.abc import Mapping, Sequence

from sipsidecar.calls.events import CallRecord, Setup
from sipsidecar.signals.alarms import Alarm
from sipsidecar.signals.snapshot import AgentFigures


class Traffic:
    """All findings over traffic; times are microseconds UTC of this sidecar's clock."""

    def __init__(self, agent_names: Mapping[int, str] | None = None) -> None:
        raise NotImplementedError

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over, its attempts and what its INVITEs said."""
        raise NotImplementedError

    def receive_call(self, record: CallRecord, at: int) -> None:
        """One call that is over, at its first record."""
        raise NotImplementedError

    def receive_addresses(self, trunk: str, addresses: frozenset[str], at: int) -> None:
        """What DNS says of a trunk now: all addresses of all of its names."""
        raise NotImplementedError

    def look(self, at: int, agents: Sequence[AgentFigures]) -> list[Alarm]:
        """Once a minute: alarms that hold or end."""
        raise NotImplementedError
