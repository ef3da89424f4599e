"""Calls of one trunk to how many of them are of a kind, and to shifts: when those are surely more.

What is normal is learned: the share of the last seven days, with the hour of the day, and how much
more it wanders than coins would (overdispersion). A shift is found by a CUSUM of log likelihoods
(standards 5.2) whose threshold lets chance alone cross it once in e^18 calls at most (Wald), and must
be unlikely by the binomial distribution, too. What happens in a shift teaches nothing; one that holds
for a day is the new normal, ends, and is learned from its beginning.

Nothing is kept over a restart: until enough calls were seen there is no alarm.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil, log, sqrt
from statistics import median
from typing import Final, NamedTuple

import msgspec

from sipsidecar.signals.alarms import Scope
from sipsidecar.signals.chances import binomial_tail, wilson

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
HOURS: Final = 24
MAX_SCOPES: Final = 500
"""Scopes of one watch; a call of one more is counted in `folded` and watched by nobody."""
MAX_KINDS: Final = 16
"""Kinds of one scope that are told apart, without `other`."""
MAX_NOTES: Final = 16
MAX_CALL_IDS: Final = 5
OTHER_KIND: Final = "other"
BUCKET: Final = 5 * MINUTE
FRESH: Final = HOUR
"""How long calls wait until they teach what is normal: a shift is found before."""
MEMORY_DAYS: Final = 7.0
YOUNG: Final = DAY
"""So long the hours of a day are not known, and a shift must be twice as wide."""
PRIOR: Final = 300.0
"""Calls that the share of the whole day counts for in that of one hour (standards 5.2)."""
THRESHOLD: Final = 18.0
CAP: Final = 25.0
CHANCE: Final = 1e-6
RISE: Final = 0.4
"""The least shift that is looked for, relative to a share that is large (standards 5.2)."""
HIGHEST: Final = 0.95
CHI_SQUARE_MEDIAN: Final = 0.4549
MIN_HOURS: Final = 6
"""Hours that tell how much a share wanders."""
CLEAR_US: Final = 10 * MINUTE
CLEAR_CALLS: Final = 30
ADOPTED: Final = DAY


class ShareSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When more of a kind is a shift."""

    points: float = 0.10
    """The least rise of its share, from 0 to 1; twice that in the first day."""
    hits: int = 10
    """Calls of the kind at least."""
    arm_calls: int = 200
    """Calls that must have been learned from."""


class Shift(NamedTuple):
    """One kind that surely is more than normal, or is so no longer (`active` False)."""

    kind: str
    active: bool
    since: int
    """When its calls began to be more, microseconds UTC."""
    hits: int
    """Since then, as `total`."""
    total: int
    normal: float
    """The share that was normal, its upper bound, from 0 to 1."""
    probability: float
    z: float
    call_ids: tuple[str, ...]
    """Of the kind, newest first."""
    adopted: bool = False
    """It ended because it is the new normal."""


class _Bucket:
    """The calls of some minutes."""

    __slots__ = ("at", "hits", "notes", "total")

    def __init__(self, at: int) -> None:
        self.at = at
        self.total = 0
        self.hits: dict[str, int] = {}
        self.notes: dict[str, int] = {}

    def add(self, other: "_Bucket") -> None:
        self.total += other.total
        for kind, hits in other.hits.items():
            self.hits[kind] = self.hits.get(kind, 0) + hits
        for note, count in other.notes.items():
            if note in self.notes or len(self.notes) < MAX_NOTES:
                self.notes[note] = self.notes.get(note, 0) + count


class _Kind:
    """What is known of one kind."""

    __slots__ = (
        "active",
        "call_ids",
        "dispersion",
        "hits",
        "hour",
        "normal",
        "since",
        "sum",
        "total",
        "wander",
    )

    def __init__(self) -> None:
        self.hour = [0.0] * HOURS
        """Learned calls of the kind by hour of the day."""
        self.sum = 0.0
        """The CUSUM."""
        self.since = self.hits = self.total = 0
        """Since the CUSUM left 0."""
        self.active: int | None = None
        """When the shift was found."""
        self.normal = 0.0
        """Before the shift."""
        self.wander: deque[float] = deque(maxlen=7 * HOURS)
        """Squared z of hours."""
        self.dispersion = 1.0
        self.call_ids: deque[str] = deque(maxlen=MAX_CALL_IDS)

    def rest(self) -> None:
        self.sum = 0.0
        self.since = self.hits = self.total = 0
        self.active = None

    def wandered(self, square: float) -> None:
        """Take note of how far one hour was from what was expected."""
        self.wander.append(square)
        if len(self.wander) >= MIN_HOURS:
            self.dispersion = max(1.0, median(self.wander) / CHI_SQUARE_MEDIAN)


class Share:
    """The calls of one scope by kind."""

    __slots__ = (
        "_day",
        "_ended",
        "_first",
        "_hour",
        "_kinds",
        "_last",
        "_learned",
        "_now",
        "_open",
        "_pending",
        "_settings",
        "folded",
    )

    def __init__(self, settings: ShareSettings, at: int) -> None:
        self.folded = 0
        """Calls whose kind was one too many: they are `other`."""
        self._settings = settings
        self._kinds: dict[str, _Kind] = {}
        self._learned = [0.0] * HOURS
        self._open = _Bucket(at)
        self._pending: deque[_Bucket] = deque()
        self._hour = _Bucket(at)
        self._first = self._last = self._now = at
        self._day = at // DAY
        self._ended = False

    @property
    def last(self) -> int:
        """When its last call came."""
        return self._last

    @property
    def learned(self) -> int:
        """Calls that taught what is normal, those of the last days counting most."""
        return int(sum(self._learned))

    @property
    def armed(self) -> bool:
        """Whether there were enough to judge others by."""
        return self.learned >= max(1, self._settings.arm_calls)

    @property
    def busy(self) -> bool:
        """Whether a look has something to do."""
        return self._open.total > 0 or self._shifted

    @property
    def _shifted(self) -> bool:
        return any(one.active is not None for one in self._kinds.values())

    def receive(self, kinds: Sequence[str], at: int, call_id: str, note: str = "") -> None:
        """One call that is of these kinds, or of none; `note` says what was seen of it."""
        bucket = self._open
        if not bucket.total:
            bucket.at = at
        bucket.total += 1
        self._last = at
        for each in kinds:
            kind = each
            known = self._kinds.get(kind)
            if known is None:
                if len(self._kinds) >= MAX_KINDS and kind != OTHER_KIND:
                    self.folded += 1
                    kind = OTHER_KIND
                known = self._kinds.setdefault(kind, _Kind())
            bucket.hits[kind] = bucket.hits.get(kind, 0) + 1
            known.call_ids.appendleft(call_id)
        if note and kinds and (note in bucket.notes or len(bucket.notes) < MAX_NOTES):
            bucket.notes[note] = bucket.notes.get(note, 0) + 1

    def look(self, at: int) -> list[Shift]:
        """Close what came since the last look; shifts that hold or end."""
        self._now = at
        self._grow_old(at)
        if self._ended:
            self._pending.clear()  # the calls of a shift that is over teach nothing
            self._ended = False
        closed, self._open = self._open, _Bucket(at)
        shifts = list(self._judge(closed, at)) if self.armed or self._shifted else []
        if closed.total:
            if self._pending and closed.at - self._pending[-1].at < BUCKET:
                self._pending[-1].add(closed)
            else:
                self._pending.append(closed)
        self._learn(at)
        if any(shift.adopted for shift in shifts):
            # What else is different has been so in the same time, and is learned with it.
            shifts = [shift._replace(active=False, adopted=True) for shift in shifts]
            self._begin_anew(at)
        self._ended = any(not shift.active for shift in shifts)
        return shifts

    def recent(self) -> tuple[int, dict[str, int], dict[str, int]]:
        """All calls of the last hour; by kind; and what was noted of them, most first."""
        since = self._now - FRESH
        whole = _Bucket(since)
        for bucket in self._pending:
            if bucket.at >= since:
                whole.add(bucket)
        notes = sorted(whole.notes.items(), key=lambda one: (-one[1], one[0]))
        return whole.total, whole.hits, dict(notes)

    def normal(self, kind: str) -> float | None:
        """The learned share of a kind; None when nothing was learned."""
        total = sum(self._learned)
        known = self._kinds.get(kind)
        return (sum(known.hour) if known else 0.0) / total if total else None

    def _judge(self, closed: _Bucket, at: int) -> Iterator[Shift]:
        hour = at // HOUR % HOURS
        for name, kind in self._kinds.items():
            hits = closed.hits.get(name, 0)
            if not hits and not kind.sum and kind.active is None:
                continue
            normal, rise = self._expected(kind, hour)
            wander = kind.dispersion
            if kind.active is None:
                if normal + rise > HIGHEST:
                    kind.rest()  # there is no room for a rise
                    continue
                if not kind.sum:
                    kind.since, kind.hits, kind.total = closed.at, 0, 0
                kind.hits += hits
                kind.total += closed.total
                up = log((normal + rise) / normal)
                down = log((1 - normal - rise) / (1 - normal))
                gain = (hits * up + (closed.total - hits) * down) / wander
                kind.sum = max(0.0, kind.sum + gain)
                if kind.sum > THRESHOLD and self._is_shift(kind, normal, rise, wander):
                    kind.active, kind.normal = at, normal
                    yield self._shift(name, kind, wander)
                kind.sum = min(kind.sum, CAP)
                continue
            kind.hits += hits
            kind.total += closed.total
            adopted = at - kind.active >= ADOPTED
            if adopted or self._is_over(name, kind.since, kind.normal + rise / 2, closed, at):
                yield self._shift(name, kind, wander)._replace(active=False, adopted=adopted)
                kind.rest()
            else:
                yield self._shift(name, kind, wander)

    def _expected(self, kind: _Kind, hour: int) -> tuple[float, float]:
        """The normal share in an hour of the day, with what is not known of it, and the least rise."""
        total, hits = sum(self._learned), sum(kind.hour)
        share = (hits + 0.5) / (total + 1)
        normal = (kind.hour[hour] + PRIOR * share) / (self._learned[hour] + PRIOR)
        normal += max(0.0, wilson(int(hits), int(total))[1] - share)
        points = self._settings.points * (2 if self._now - self._first < YOUNG else 1)
        return normal, max(points, RISE * normal)

    def _is_shift(self, kind: _Kind, normal: float, rise: float, wander: float) -> bool:
        return (
            kind.hits >= self._settings.hits
            and kind.hits >= (normal + rise / 2) * kind.total
            and _chance(kind, normal, wander) < CHANCE
        )

    def _shift(self, name: str, kind: _Kind, wander: float) -> Shift:
        normal = kind.normal
        spread = sqrt(wander * kind.total * normal * (1 - normal))
        return Shift(
            name,
            True,
            kind.since,
            kind.hits,
            kind.total,
            normal,
            _chance(kind, normal, wander),
            (kind.hits - kind.total * normal) / spread,
            tuple(kind.call_ids),
        )

    def _is_over(self, name: str, since: int, limit: float, closed: _Bucket, at: int) -> bool:
        """Whether the newest calls of a shift are as ever: those of ten minutes, and some.

        Where there are few, those of an hour; where there are none in an hour, it is over, too.
        """
        total, hits, oldest = closed.total, closed.hits.get(name, 0), closed.at
        for bucket in reversed(self._pending):
            if bucket.at < since or bucket.at <= at - FRESH:
                break
            if total >= CLEAR_CALLS and oldest <= at - CLEAR_US:
                break
            total += bucket.total
            hits += bucket.hits.get(name, 0)
            oldest = bucket.at
        if not total:
            return at - self._last >= FRESH
        enough = total >= CLEAR_CALLS and oldest <= at - CLEAR_US
        return hits <= limit * total and (enough or oldest <= at - FRESH + 2 * BUCKET)

    def _learn(self, at: int) -> None:
        """Let calls teach what is normal, when they are old enough and nothing is wrong."""
        shifted = self._shifted
        # In a shift they wait also where what was learned fades: by them it is known to be over.
        while self._pending and (not (self.armed or shifted) or self._pending[0].at <= at - FRESH):
            bucket = self._pending.popleft()
            if shifted:
                continue
            if bucket.at // HOUR != self._hour.at // HOUR:
                self._close_hour()
                self._hour = _Bucket(bucket.at)
            self._hour.add(bucket)
            hour = bucket.at // HOUR % HOURS
            self._learned[hour] += bucket.total
            for name, hits in bucket.hits.items():
                self._kinds[name].hour[hour] += hits

    def _close_hour(self) -> None:
        """Compare an hour with what was expected of it, to learn how much a share wanders."""
        closed = self._hour
        hour = closed.at // HOUR % HOURS
        total = sum(self._learned)
        for name, kind in self._kinds.items():
            share = (sum(kind.hour) + 0.5) / (total + 1)
            share = (kind.hour[hour] + PRIOR * share) / (self._learned[hour] + PRIOR)
            spread = closed.total * share * (1 - share)
            if spread >= 1:
                kind.wandered((closed.hits.get(name, 0) - closed.total * share) ** 2 / spread)

    def _grow_old(self, at: int) -> None:
        """Let what was learned fade, once a day; kinds that are not met any more are forgotten."""
        days = min(at // DAY - self._day, 60)
        if days <= 0:
            return
        self._day = at // DAY
        left = (1 - 1 / MEMORY_DAYS) ** days
        self._learned = [one * left for one in self._learned]
        for name, kind in list(self._kinds.items()):
            kind.hour = [one * left for one in kind.hour]
            waiting = name in self._open.hits or any(name in one.hits for one in self._pending)
            if sum(kind.hour) < 1 and kind.active is None and not waiting:
                del self._kinds[name]

    def _begin_anew(self, at: int) -> None:
        self._learned = [0.0] * HOURS
        for kind in self._kinds.values():
            kind.hour = [0.0] * HOURS
            kind.wander.clear()
            kind.dispersion = 1.0
            kind.rest()
        self._hour = _Bucket(at)
        self._first = at


def _chance(kind: _Kind, normal: float, wander: float) -> float:
    return binomial_tail(ceil(kind.hits / wander), ceil(kind.total / wander), normal)


class Watch:
    """Shares of many scopes, each by itself."""

    def __init__(self, settings: ShareSettings, max_scopes: int = MAX_SCOPES) -> None:
        self._settings = settings
        self._max = max_scopes
        self._folded = 0
        self._shares: dict[Scope, Share] = {}
        self._day = 0

    @property
    def folded(self) -> int:
        """Calls of scopes over the cap, and those whose kind was one too many."""
        return self._folded + sum(one.folded for one in self._shares.values())

    def receive(
        self, scope: Scope, kinds: Sequence[str], at: int, call_id: str, note: str = ""
    ) -> None:
        """One call of a scope, as `Share.receive`."""
        share = self._shares.get(scope)
        if share is None:
            if len(self._shares) >= self._max:
                self._folded += 1
                return
            share = self._shares[scope] = Share(self._settings, at)
        share.receive(kinds, at, call_id, note)

    def share(self, scope: Scope) -> Share | None:
        """What is known of a scope."""
        return self._shares.get(scope)

    def look(self, at: int) -> list[tuple[Scope, Share, list[Shift]]]:
        """Close what came since the last look; the scopes that have shifts that hold or end."""
        if at // DAY != self._day:
            self._day = at // DAY
            for scope, share in list(self._shares.items()):
                if at - share.last > MEMORY_DAYS * DAY and not share.busy:
                    self._folded += share.folded
                    del self._shares[scope]
        found = []
        for scope, share in self._shares.items():
            if share.busy and (shifts := share.look(at)):
                found.append((scope, share, shifts))
        return found
