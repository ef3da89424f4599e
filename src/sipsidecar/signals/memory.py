"""Readings of the process's memory to the share of every cap that may be used.

Memory that was given back to the allocator is rarely given back to the system: what counts is
whether the reading still grows. So the share falls while it does, holds while it does not, and
comes back when there is room; the caps themselves then keep what is in use inside the memory that
the process already has.
"""

HIGH = 0.80
"""Share of the ceiling from which on growth is answered."""
CRITICAL = 0.90
"""From here on it is answered more strongly."""
LOW = 0.75
"""Share of the ceiling under which caps come back."""
LEAST = 0.02
NOISE = 1 << 20
"""Bytes: less than this is no growth."""


class Governor:
    """One process under one ceiling, read a few times a second."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.used = 0
        self.share = 1.0
        """Of each cap, 1 while there is no pressure."""
        self._peak = 0

    @property
    def pressed(self) -> bool:
        """Whether the caps are lowered."""
        return self.share < 1.0

    def read(self, used: int, fullest: float) -> float:
        """One reading in bytes, and how full the fullest of the governed caps is; returns the share.

        The first answer to pressure begins at `fullest`: lowering a cap that is half empty from 1
        to 0.9 would change nothing.
        """
        self.used = used
        level = used / self.ceiling
        if level < LOW:
            self.share = min(1.0, self.share * 1.02 + 0.005)
            self._peak = 0
        elif level >= HIGH and used > self._peak + NOISE:
            self._peak = used
            factor = 0.75 if level >= CRITICAL else 0.93
            self.share = max(LEAST, min(self.share, fullest) * factor)
        return self.share
