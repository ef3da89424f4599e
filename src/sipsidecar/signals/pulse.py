"""Answers and misses, in whatever order they are told, to up or down."""

from collections import deque
from typing import Final, NamedTuple

import msgspec

KEPT: Final = 32
"""Results that one told late can still be put among: a miss of somebody else's is only known after
32 s (64*T1), by then later answers were told."""


class Beat(msgspec.Struct, frozen=True):
    """What became of one OPTIONS."""

    at: int
    """Microseconds UTC."""
    ok: bool
    code: int | None = None
    """None: no answer."""
    rtt_ms: float | None = None
    why: str = ""
    """A word for what was missed."""
    call_id: str = ""


class Standing(NamedTuple):
    """What follows from all results up to one."""

    up: bool | None = None
    """None: not known yet."""
    misses: int = 0
    """In a row; so are `goods`."""
    goods: int = 0
    missed_since: int | None = None
    """When the first of these misses was."""


class Pulse:
    """Down after so many misses in a row, up again after so many answers.

    What is unknown is up at its first answer.
    """

    def __init__(self, down_after: int, up_after: int) -> None:
        self._down_after = down_after
        self._up_after = up_after
        self.answered = 0
        self.missed = 0
        self.late = 0
        """Older than all that are kept: counted above, and in nothing else."""
        self.standing = Standing()
        self._base = Standing()
        self._beats: deque[Beat] = deque()

    @property
    def last(self) -> Beat | None:
        """The newest result."""
        return self._beats[-1] if self._beats else None

    @property
    def last_good(self) -> Beat | None:
        """The newest answer, among those that are kept."""
        return next((beat for beat in reversed(self._beats) if beat.ok), None)

    def missed_call_ids(self, most: int = 5) -> tuple[str, ...]:
        """Call-IDs of the newest misses in a row, newest first."""
        found: list[str] = []
        for beat in reversed(self._beats):
            if beat.ok or len(found) == most:
                break
            if beat.call_id:
                found.append(beat.call_id)
        return tuple(found)

    def add(self, beat: Beat) -> None:
        """Take one result, at its own time."""
        if beat.ok:
            self.answered += 1
        else:
            self.missed += 1
        beats = self._beats
        if not beats or beat.at >= beats[-1].at:
            beats.append(beat)
            self.standing = self._after(self.standing, beat)
        elif len(beats) == KEPT and beat.at < beats[0].at:
            self.late += 1
            return
        else:
            place = next(n for n, other in enumerate(beats) if beat.at < other.at)
            beats.insert(place, beat)
            self.standing = self._base
            for each in beats:
                self.standing = self._after(self.standing, each)
        if len(beats) > KEPT:
            self._base = self._after(self._base, beats.popleft())

    def forget(self) -> None:
        """Know nothing of it any more; the totals stay."""
        self._beats.clear()
        self.standing = self._base = Standing()

    def _after(self, before: Standing, beat: Beat) -> Standing:
        if beat.ok:
            goods = before.goods + 1
            up = before.up is not False or goods >= self._up_after
            return Standing(up, 0, goods, None)
        misses = before.misses + 1
        up_or_not = False if misses >= self._down_after else before.up
        since = beat.at if before.missed_since is None else before.missed_since
        return Standing(up_or_not, misses, 0, since)
