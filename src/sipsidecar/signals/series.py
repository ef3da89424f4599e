"""Minutes of one series to what it counted lately, and to what is normal for an hour of its week.

Hours, days and weeks are those of UTC. A share that is normal is that of the same hour of the week in
the last 28 days, drawn towards that of the same hour of all days, and this towards that of all hours,
as if 300 calls had been seen of each (standards 5.2). All of the 28 days that there are count alike:
one week of them is enough, and four are what it comes to.

A minute teaches nothing before it is an hour old: trouble is known by then, and what belongs to it is
left out. What was learned already is taken back: by the minute while the minutes are still here, and
by the whole hour where they are not.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from math import isnan, nan
from operator import add
from statistics import median
from typing import Final, TypeAlias

from sipsidecar.signals.alarms import CATEGORIES

COUNTED: Final = (*CATEGORIES, "unanswered", "ineffective")
"""What is counted of the seizures."""
MINUTES, TOTAL, FIRST = 0, 1, 2
"""Columns: minutes that were looked at, seizures, and the first of `COUNTED`."""
UNANSWERED: Final = FIRST + len(CATEGORIES)
INEFFECTIVE: Final = UNANSWERED + 1
WIDTH: Final = FIRST + len(COUNTED)

DAYS: Final = 28
DELAY: Final = 60
"""Minutes before one teaches anything."""
SIZE: Final = 192
"""Minutes that are kept one by one: the hour that is learned last, the delay, and room to take back."""
DRAWN: Final = 300
"""Calls that the wider figure counts as."""
WANDERS: Final = 2.0
"""Spread from which on counts do not only vary by luck."""
PDD, JITTER = 0, 1

_MEDIAN_OF_SQUARE: Final = 0.4549
"""The median of z^2 where counts are binomial."""
_LEAST_EXPECTED: Final = 5.0
"""An hour in which less is expected says nothing of how much counts spread."""
_LEAST_HOURS: Final = 24
_WEEK: Final = 168
_VOLUME_MINUTES: Final = 30
"""Minutes of an hour of the week that must be known to say how many calls it has."""


class Ring:
    """Counts of the last minutes as running sums, so that any window of them is one difference.

    Minutes are whole numbers; those between two that were pushed count as nothing.
    """

    __slots__ = ("data", "first", "here", "minute", "size", "width")

    def __init__(self, size: int, width: int, minute: int) -> None:
        self.size = size
        self.width = width
        self.first = minute
        """The first minute that can be pushed."""
        self.minute = minute - 1
        """The last minute that is in it."""
        self.data = array("q", bytes(8 * size * width))
        self.here = self.minute % size * width
        """Where the sums of this minute are; column by column."""

    def turn(self, minute: int) -> None:
        """Go on to a later minute; an earlier one changes nothing."""
        data, width = self.data, self.width
        for each in range(max(self.minute + 1, minute - self.size + 1), minute + 1):
            there = each % self.size * width
            data[there : there + width] = data[self.here : self.here + width]
            self.here = there
        self.minute = max(self.minute, minute)

    def push(self, minute: int, pairs: Iterable[tuple[int, int]]) -> None:
        """Add (column, count) of a minute that is not before the last one."""
        self.turn(minute)
        for column, count in pairs:
            self.data[self.here + column] += count

    def before(self, minutes: int) -> int:
        """Where the sums are from which the last so many minutes began; at most all but one."""
        return (self.minute - min(minutes, self.size - 1)) % self.size * self.width

    def between(self, first: int, last: int) -> list[int]:
        """What was counted from one minute to another, both within; as far as they are kept."""
        oldest = self.minute - self.size + 1
        start = max(first - 1, oldest) % self.size * self.width
        end = min(max(last, oldest), self.minute) % self.size * self.width
        data = self.data
        return [data[end + i] - data[start + i] for i in range(self.width)]

    def sums(self, minutes: int) -> list[int]:
        """What was counted in the last so many minutes."""
        return self.between(self.minute - minutes + 1, self.minute)


class History:
    """One series: its last minutes, and its last 28 days by the hour."""

    __slots__ = (
        "_days", "_gauges", "_left_out", "_marks", "_settled", "last_data", "name", "rates", "ring",
        "sums", "unsaved", "unsaved_gauges",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.ring: Ring | None = None
        """Its minutes, from the first on that this life saw."""
        self.sums = [0] * WIDTH
        """Of all hours that are kept."""
        self.last_data = 0
        """The last minute with seizures."""
        self.rates: MinuteRates | None = None
        self.unsaved: dict[int, list[int]] = {}
        """What hours taught that was in no row yet; negative where it was taken back."""
        self.unsaved_gauges: dict[int, tuple[float | None, float | None]] = {}
        self._days: dict[int, array[int]] = {}
        self._gauges: dict[int, array[float]] = {}
        self._left_out: list[tuple[int, int]] = []
        self._settled = 0
        self._marks: dict[int, list[float]] = {}

    # -- minutes

    def push(self, minute: int, pairs: Collection[tuple[int, int]]) -> Ring:
        """Take in one whole minute, and learn the hour that is old enough.

        A minute without calls has no pairs.
        """
        if pairs:
            self.last_data = minute
        ring = self.ring
        if ring is None:
            ring = self.ring = Ring(SIZE, WIDTH, minute)
            self._settled = minute - 1
        if minute - self._settled >= SIZE - 1:  # a gap: what it would push out is learned now
            self.settle(ring.minute)
            self._settled = minute - 1
        ring.push(minute, pairs)
        ring.data[ring.here + MINUTES] += 1
        if minute % 60 == 59:
            self.settle(minute - DELAY)
            self._prune(minute // 1440)
        return ring

    def begin_again(self) -> None:
        """Forget the minutes, for the clock was set; what was learned of them stays."""
        self.ring = None
        self._left_out = []
        self._marks = {}

    def settle(self, until: int) -> None:
        """Learn all minutes up to this one that were not left out."""
        ring = self.ring
        if ring is None:
            return
        while self._settled < until:
            first = self._settled + 1
            hour = first // 60
            last = min(until, hour * 60 + 59)
            found = ring.between(first, last)
            for since, end in self._left_out:
                if since <= last and end >= first:
                    out = ring.between(max(since, first), min(end, last))
                    found = [a - b for a, b in zip(found, out, strict=True)]
            self._add(hour, found)
            self._settled = last
            mark = self._marks.pop(hour, None)
            if mark is not None and found[MINUTES] > 0:
                pdd, jitter = (None if isnan(value) else value for value in mark)
                self.unsaved_gauges[hour] = pdd, jitter
                self.load_gauges(hour, pdd, jitter)

    def leave_out(self, since: int, until: int) -> bool:
        """Let the minutes from one to another, both within, teach nothing; what they taught is undone.

        Returns whether they had taught anything.
        """
        ring = self.ring
        if ring is not None:
            until = min(until, ring.minute)
        oldest = 1 << 62 if ring is None else max(ring.first, ring.minute - SIZE + 2)
        fresh = [(since, until)] if since <= until else []
        for start, end in self._left_out:
            fresh = [
                piece
                for a, b in fresh
                for piece in ((a, min(b, start - 1)), (max(a, end + 1), b))
                if piece[0] <= piece[1]
            ]
        old = [(a // 60, min(b, oldest - 1) // 60) for a, b in fresh if a < oldest]
        hours = self.hours() if old else ()
        whole = {hour for hour in hours if any(a <= hour <= b for a, b in old)}
        for hour in whole:
            self._add(hour, [-value for value in self.hour(hour, range(WIDTH))])
        taught = bool(whole)
        for a, b in fresh:
            first, last = max(a, oldest), min(b, self._settled)
            taught = taught or first <= last
            while ring is not None and first <= last:
                hour = first // 60
                end = min(last, hour * 60 + 59)
                if hour not in whole:
                    self._add(hour, [-value for value in ring.between(first, end)])
                first = end + 1
        self._left_out = [
            one for one in (*self._left_out, *fresh) if ring is not None and one[1] >= oldest
        ]
        if len(self._left_out) > 1:
            self._left_out = _joined(self._left_out)
        return taught

    # -- hours

    def load(self, hour: int, values: Sequence[int]) -> None:
        """Take up what an earlier life learned in an hour."""
        self._learn(hour, values)
        if values[TOTAL] > 0:
            self.last_data = max(self.last_data, hour * 60 + 59)

    def load_gauges(self, hour: int, pdd: float | None, jitter: float | None) -> None:
        """Take up the gauges at the end of an hour."""
        day, place = divmod(hour, 24)
        kept = self._gauges.get(day)
        if kept is None:
            kept = self._gauges[day] = array("f", [nan]) * 48
        for which, value in ((PDD, pdd), (JITTER, jitter)):
            if value is not None:
                kept[2 * place + which] = value

    def mark(self, hour: int, which: int, value: float) -> None:
        """Note a gauge as it is now: the last of an hour is what the hour teaches."""
        self._marks.setdefault(hour, [nan, nan])[which] = value
        if len(self._marks) > 4:
            del self._marks[next(iter(self._marks))]

    def hours(self) -> Iterable[int]:
        """Every hour of the days that are kept."""
        for day in self._days:
            yield from range(24 * day, 24 * day + 24)

    def hour(self, hour: int, columns: Iterable[int]) -> list[int]:
        """What was learned in one hour, of each column that is asked for."""
        day, place = divmod(hour, 24)
        kept = self._days.get(day)
        return [0 if kept is None else kept[place * WIDTH + column] for column in columns]

    def gauges(self, which: int) -> list[float]:
        """What a gauge was at the end of each hour."""
        return [
            value for kept in self._gauges.values() for value in kept[which::2] if not isnan(value)
        ]

    def expect(self, hour: int, spread: Sequence[float] | None = None) -> list[float]:
        """The share of each of `COUNTED` that is normal for an hour; itself is not asked.

        Where shares wander from hour to hour (`spread`), an hour of last week that was low by chance
        makes nothing abnormal that the same hour of half of the other days has.
        """
        day, place = divmod(hour, 24)
        start, end = place * WIDTH, (place + 1) * WIDTH
        same_hour, same_week = [0] * WIDTH, [0] * WIDTH
        parts = {other: kept[start:end] for other, kept in self._days.items() if other != day}
        for other, part in parts.items():
            same_hour = [a + b for a, b in zip(same_hour, part, strict=True)]
            if (day - other) % 7 == 0:
                same_week = [a + b for a, b in zip(same_week, part, strict=True)]
        found = [_drawn(same_week, same_hour, self.sums, column) for column in range(FIRST, WIDTH)]
        for i, each in enumerate(spread or ()):
            if each >= WANDERS:
                # The median, for one of the days may have been an outage.
                known = [
                    part[FIRST + i] / part[TOTAL] for part in parts.values() if part[TOTAL] > 0
                ]
                found[i] = min(max(found[i], median(known or [0.0])), 1.0)
        return found

    def volume(self, hour: int) -> float | None:
        """Seizures a minute that an hour of the week has, or one of its neighbours: the fewest.

        So a day that begins at nine is no drop at half past eight. None: not known of all three.
        """
        means = []
        for each in (hour - 1, hour, hour + 1):
            day, place = divmod(each, 24)
            minutes = total = 0
            for other, kept in self._days.items():
                if other != day and (day - other) % 7 == 0:
                    minutes += kept[place * WIDTH + MINUTES]
                    total += kept[place * WIDTH + TOTAL]
            if minutes < _VOLUME_MINUTES:
                return None
            means.append(total / minutes)
        return min(means)

    def spread(self) -> list[float]:
        """How much more than by luck each of `COUNTED` varies from hour to hour: 1 is by luck alone.

        The median of z^2 of the last week's hours, each against what all others say is normal for it,
        over what it is by luck (standards 5.2); the doubt of what they say is allowed for.
        """
        by_day = [0] * (24 * WIDTH)
        by_week: dict[int, list[int]] = {}
        for day, kept in self._days.items():
            by_day = list(map(add, by_day, kept))
            known = by_week.get(day % 7)
            by_week[day % 7] = list(kept if known is None else map(add, known, kept))
        latest = max(self._days, default=0)
        own = [
            (day, place)
            for day, kept in self._days.items()
            if day > latest - 7
            for place in range(0, 24 * WIDTH, WIDTH)
            if kept[place + TOTAL] > 0
        ]
        most = max((self._days[day][place + TOTAL] for day, place in own), default=0)
        found = []
        for column in range(FIRST, WIDTH):
            squares: list[float] = []
            # Where no hour has enough of it, nothing needs to be reckoned.
            if self.sums[column] * most >= _LEAST_EXPECTED * max(self.sums[TOTAL], 1):
                all_ = self.sums[TOTAL], self.sums[column]
                for day, place in own:
                    here, week = self._days[day], by_week[day % 7]
                    square = _z2(
                        (here[place + TOTAL], here[place + column]),
                        (week[place + TOTAL], week[place + column]),
                        (by_day[place + TOTAL], by_day[place + column]),
                        all_,
                    )
                    if square is not None:
                        squares.append(square)
            if len(squares) < _LEAST_HOURS:
                found.append(1.0)
            else:
                found.append(max(1.0, median(squares) / _MEDIAN_OF_SQUARE))
        return found

    def _add(self, hour: int, values: Sequence[int]) -> None:
        """Learn, or take back, and note it for a row."""
        if any(values):
            self._learn(hour, values)
            known = self.unsaved.get(hour)
            self.unsaved[hour] = (
                list(values)
                if known is None
                else [a + b for a, b in zip(known, values, strict=True)]
            )

    def _learn(self, hour: int, values: Sequence[int]) -> None:
        day, place = divmod(hour, 24)
        kept = self._days.get(day)
        if kept is None:
            kept = self._days[day] = array("i", bytes(4 * 24 * WIDTH))
        base = place * WIDTH
        for i, value in enumerate(values):
            kept[base + i] += value
            self.sums[i] += value

    def _prune(self, day: int) -> None:
        """Forget days that are over 28 days ago."""
        for old in [one for one in self._days if one < day - DAYS]:
            kept = self._days.pop(old)
            for i in range(WIDTH):
                self.sums[i] -= sum(kept[i::WIDTH])
        for old in [one for one in self._gauges if one < day - DAYS]:
            del self._gauges[old]


class MinuteRates:
    """Shares of single minutes of the last seven days: their mean and deviation (standards 5.1, S)."""

    __slots__ = ("_hours", "_saved", "_sums")

    def __init__(self) -> None:
        self._hours: dict[int, list[float]] = {}
        self._saved: dict[int, list[float]] = {}
        self._sums = [0.0] * (1 + 2 * len(CATEGORIES))

    @property
    def minutes(self) -> int:
        """How many minutes with seizures it knows."""
        return int(self._sums[0])

    def add(self, minute: int, total: int, counts: Sequence[int]) -> None:
        """Take in one minute with seizures."""
        rates = [count / total for count in counts]
        self.load(minute // 60, [1.0, *rates, *(rate * rate for rate in rates)])

    def load(self, hour: int, values: Sequence[float], *, saved: bool = False) -> None:
        """Take up an hour: minutes, sums of shares, sums of their squares."""
        kept = self._hours.get(hour)
        if kept is None:
            newest = max(hour, max(self._hours, default=hour))
            if hour <= newest - _WEEK:
                return
            kept = self._hours[hour] = [0.0] * len(self._sums)
            self._saved[hour] = [0.0] * len(self._sums)
            for old in [one for one in self._hours if one <= newest - _WEEK]:
                for i, value in enumerate(self._hours.pop(old)):
                    self._sums[i] -= value
                del self._saved[old]
        already = self._saved[hour]
        for i, value in enumerate(values):
            kept[i] += value
            self._sums[i] += value
            if saved:
                already[i] += value

    def unsaved(self, hour: int) -> list[tuple[int, list[float]]]:
        """Hours before this one of which something is in no row yet; it is from now on."""
        found = []
        for each, kept in self._hours.items():
            if each < hour:
                saved = self._saved[each]
                fresh = [a - b for a, b in zip(kept, saved, strict=True)]
                if round(fresh[0]):
                    found.append((each, fresh))
                    self._saved[each] = list(kept)
        return found

    def limit(self, column: int) -> tuple[float, float]:
        """Mean and deviation of one category's share; at least one minute must be known."""
        minutes = self._sums[0]
        mean = self._sums[1 + column] / minutes
        square = self._sums[1 + len(CATEGORIES) + column] / minutes
        return mean, max(square - mean * mean, 0.0) ** 0.5


def _drawn(week: Sequence[int], day: Sequence[int], all_: Sequence[int], column: int) -> float:
    """The share that is normal: of the hour of the week, drawn to that of the day, and of all."""
    p = (max(all_[column], 0) + 0.5) / (max(all_[TOTAL], 0) + 1)
    for part in (day, week):
        p = (max(part[column], 0) + DRAWN * p) / (max(part[TOTAL], 0) + DRAWN)
    return min(p, 1.0)


_Counted: TypeAlias = tuple[int, int]
"""Calls, and how many of them are it."""


def _z2(own: _Counted, week: _Counted, day: _Counted, all_: _Counted) -> float | None:
    """Squared deviation of one hour from what the others say; None where too little is expected."""
    n, k = own
    # A row that takes back what another taught may be there without it.
    (total, of_all), (in_day, of_day), (in_week, of_week) = (
        (max(calls - n, 0), max(count - k, 0)) for calls, count in (all_, day, week)
    )
    p = (of_all + 0.5) / (total + 1)
    p = (of_day + DRAWN * p) / (in_day + DRAWN)
    p = (of_week + DRAWN * p) / (in_week + DRAWN)
    expected = n * p
    if min(expected, n - expected) < _LEAST_EXPECTED:
        return None
    # How unsure the others are of it themselves, in parts of p (1 - p).
    by_week, by_day = in_week + DRAWN, in_day + DRAWN
    unsure = in_week / by_week**2 + (DRAWN / by_week) ** 2 * (
        in_day / by_day**2 + (DRAWN / by_day) ** 2 / (total + 1)
    )
    square: float = (k - expected) ** 2 / (expected * (1 - p) * (1 + n * unsure))
    return square


def _joined(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for since, until in sorted(pieces):
        if found and since <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], until)
        else:
            found.append((since, until))
    return found
