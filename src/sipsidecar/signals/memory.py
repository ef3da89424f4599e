"""Readings of the process's memory to the share of every cap that may be used.

What costs least goes first: the memory of calls that are over and of rows that wait, then the
place of new calls. The shares follow the reading, down at once and up slowly; memory that was
given back to the allocator and not to the system keeps them where they are, and is used again.
"""

from typing import NamedTuple

LOW = 0.80
"""Share of the ceiling from which on lingering calls and waiting rows have less room."""
HIGH = 0.90
"""Share from which on new calls have less room; the others have least of theirs."""
TOP = 0.98
"""Share at which nothing new is taken."""
LEAST = 0.05
"""Of lingering calls and waiting rows: without any nothing could be written."""


class Relief(NamedTuple):
    """Shares of caps, 1 without pressure."""

    lingering: float = 1.0
    """Of calls that are over, and of the bytes that wait."""
    calls: float = 1.0
    """Of calls that are live."""


class Governor:
    """One process under one ceiling, read a few times a second."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.used = 0
        self.relief = Relief()

    @property
    def pressed(self) -> bool:
        """Whether any cap is lowered."""
        return self.relief != Relief()

    def read(self, used: int) -> Relief:
        """One reading, in bytes; returns the shares that are in force from now on."""
        self.used = used
        level = used / self.ceiling
        old = self.relief
        self.relief = Relief(
            max(LEAST, min((HIGH - level) / (HIGH - LOW), _up(old.lingering))),
            max(0.0, min((TOP - level) / (TOP - HIGH), _up(old.calls))),
        )
        return self.relief


def _up(share: float) -> float:
    return min(1.0, share * 1.02 + 0.005)
