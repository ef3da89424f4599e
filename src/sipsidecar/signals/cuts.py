"""Talk times of ended calls to times at which too many end: timers that cut calls.

Some lengths tell their cause: 32 s after a 2xx without ACK (RFC 3261 13.3.1.4), 868 s and 1768 s where
a session of 900 s or 1800 s was not refreshed (RFC 4028 10: 32 s before its end) and multiples of 900 s,
60 s and 120 s by a carrier's limit. Calls that end there are compared with those that end shortly
before and after, so nothing need be learned: it holds from the first calls on.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from sipsidecar.signals.alarms import Scope
from sipsidecar.signals.chances import binomial_tail, poisson_lower
from sipsidecar.signals.shares import DAY, HOUR, MAX_CALL_IDS, MAX_SCOPES, MINUTE

MIN_HITS: Final = 10
CHANCE: Final = 1e-7
TIMES: Final = 2.0
"""How many times as many as expected."""
ONE_SIDE: Final = 0.8
"""Share of the cut calls that one side must have ended: a timer is on one side."""
OVER: Final = 0.001
"""The chance of so few hits, if it went on, under which it is over."""


class Spot(NamedTuple):
    """One length of calls that tells a cause; seconds."""

    name: str
    low: float
    high: float
    flank: float
    """Before and after it: what it is compared with."""

    @property
    def share(self) -> float:
        """The share of the calls of spot and flanks that end in the spot by chance."""
        width = self.high - self.low
        return width / (width + 2 * self.flank)


SPOTS: Final = (
    Spot("30/32 s", 29.5, 33.5, 4.0),
    Spot("60 s", 59.5, 61.5, 4.0),
    Spot("120 s", 119.5, 121.5, 4.0),
    Spot("868 s", 866.0, 871.0, 20.0),
    Spot("900 s", 898.0, 904.0, 20.0),
    Spot("1768 s", 1766.0, 1771.0, 20.0),
    Spot("1800 s", 1798.0, 1804.0, 20.0),
    Spot("2700 s", 2698.0, 2704.0, 30.0),
    Spot("3600 s", 3598.0, 3604.0, 30.0),
    Spot("5400 s", 5398.0, 5404.0, 30.0),
    Spot("7200 s", 7198.0, 7204.0, 30.0),
)
_NEAR: Final = tuple(
    (number, spot, spot.low - spot.flank, spot.high + spot.flank)
    for number, spot in enumerate(SPOTS)
)

WINDOWS: Final = ((5 * MINUTE, HOUR), (HOUR, DAY))
"""Microseconds of a bucket and of all of them: quick, and what few calls reach."""


class Cut(NamedTuple):
    """Too many calls of one length, or no longer (`active` False)."""

    spot: str
    active: bool
    since: int
    hits: int
    expected: float
    calls: int
    """That ended in the same time."""
    probability: float
    released_by: dict[str, int]
    no_ack: int
    call_ids: tuple[str, ...]


class _Tally:
    """Calls around one spot."""

    __slots__ = ("callee", "caller", "flanks", "hits", "no_ack")

    def __init__(self) -> None:
        self.hits = self.flanks = self.caller = self.callee = self.no_ack = 0

    def add(self, other: "_Tally") -> None:
        self.hits += other.hits
        self.flanks += other.flanks
        self.caller += other.caller
        self.callee += other.callee
        self.no_ack += other.no_ack

    def chance(self, spot: Spot) -> float:
        return binomial_tail(self.hits, self.hits + self.flanks, spot.share)

    def is_cut(self, spot: Spot) -> bool:
        # The part that is no timer's is taken for what the flanks say.
        expected = self.flanks * spot.share / (1 - spot.share)
        return (
            self.hits >= MIN_HITS
            and self.hits >= TIMES * expected
            and max(self.caller, self.callee) >= ONE_SIDE * (self.caller + self.callee - expected)
            and self.chance(spot) < CHANCE
        )


class _Bucket:
    __slots__ = ("at", "calls", "spots")

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.spots: dict[int, _Tally] = {}


class _Trunk:
    __slots__ = ("active", "call_ids", "last", "news", "windows")

    def __init__(self) -> None:
        self.windows: tuple[deque[_Bucket], ...] = tuple(deque() for _ in WINDOWS)
        self.active: dict[int, tuple[int, int, float]] = {}
        """Spot to the window that found it, when, and the share of calls that ended there."""
        self.call_ids: dict[int, deque[str]] = {}
        self.last = 0
        self.news = False


class Cuts:
    """Talk times of many scopes; times are microseconds UTC."""

    def __init__(self, max_scopes: int = MAX_SCOPES) -> None:
        self.folded = 0
        """Calls of scopes over the cap."""
        self._max = max_scopes
        self._trunks: dict[Scope, _Trunk] = {}

    def receive(
        self,
        scope: Scope,
        talk_seconds: float,
        at: int,
        call_id: str,
        *,
        released_by: str | None = None,
        no_ack: bool = False,
    ) -> None:
        """One answered call that ended."""
        trunk = self._trunks.get(scope)
        if trunk is None:
            if len(self._trunks) >= self._max:
                self.folded += 1
                return
            trunk = self._trunks[scope] = _Trunk()
        trunk.last, trunk.news = at, True
        buckets = []
        for (width, _), window in zip(WINDOWS, trunk.windows, strict=True):
            if not window or at // width != window[-1].at // width:
                window.append(_Bucket(at // width * width))
            window[-1].calls += 1
            buckets.append(window[-1])
        for number, spot, low, high in _NEAR:
            if not low <= talk_seconds < high:
                continue
            hit = spot.low <= talk_seconds < spot.high
            for bucket in buckets:
                tally = bucket.spots.setdefault(number, _Tally())
                if hit:
                    tally.hits += 1
                    tally.caller += released_by == "caller"
                    tally.callee += released_by == "callee"
                    tally.no_ack += no_ack
                else:
                    tally.flanks += 1
            if hit:
                ids = trunk.call_ids.setdefault(number, deque(maxlen=MAX_CALL_IDS))
                ids.appendleft(call_id)

    def look(self, at: int) -> list[tuple[Scope, list[Cut]]]:
        """Scopes with lengths that too many calls have, or have no longer."""
        found = []
        for scope, trunk in list(self._trunks.items()):
            if not trunk.news and not trunk.active:
                if at - trunk.last > DAY:
                    del self._trunks[scope]
                continue
            trunk.news = False
            for (_, length), window in zip(WINDOWS, trunk.windows, strict=True):
                while window and window[0].at <= at - length:
                    window.popleft()
            if cuts := list(self._judge(trunk, at)):
                found.append((scope, cuts))
        return found

    def _judge(self, trunk: _Trunk, at: int) -> Iterator[Cut]:
        for number, window in enumerate(trunk.windows):
            whole: dict[int, _Tally] = {}
            for bucket in window:
                for spot, tally in bucket.spots.items():
                    whole.setdefault(spot, _Tally()).add(tally)
            for spot, tally in whole.items():
                if spot not in trunk.active and tally.is_cut(SPOTS[spot]):
                    trunk.active[spot] = number, at, 0.0
        for spot, (number, since, worst) in sorted(trunk.active.items()):
            window = trunk.windows[number]
            tally, calls = _sum(window, spot)
            share = max(worst, tally.hits / max(calls, 1))
            trunk.active[spot] = number, since, share
            over = _is_over(window, spot, share)
            yield Cut(
                SPOTS[spot].name,
                not over,
                since,
                tally.hits,
                tally.flanks * SPOTS[spot].share / (1 - SPOTS[spot].share),
                calls,
                tally.chance(SPOTS[spot]),
                {"caller": tally.caller, "callee": tally.callee},
                tally.no_ack,
                tuple(trunk.call_ids.get(spot, ())),
            )
            if over:
                del trunk.active[spot]
                trunk.call_ids.pop(spot, None)
                for each in trunk.windows:
                    for bucket in each:
                        bucket.spots.pop(spot, None)


def _is_over(window: deque[_Bucket], spot: int, share: float) -> bool:
    """Whether of the newest calls, however many that are, surely fewer end there than did."""
    hits = calls = 0
    for bucket in reversed(window):
        calls += bucket.calls
        hits += bucket.spots[spot].hits if spot in bucket.spots else 0
        if poisson_lower(hits, calls * share) < OVER:
            return True
    return not calls


def _sum(window: deque[_Bucket], spot: int) -> tuple[_Tally, int]:
    whole = _Tally()
    for bucket in window:
        if spot in bucket.spots:
            whole.add(bucket.spots[spot])
    return whole, sum(bucket.calls for bucket in window)
