"""What several resolvers say of one name, again and again, to its addresses and what is odd in them."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from sipsidecar.signals.alarms import TREND, WARN

MAX_PLACES: Final = 8
"""Addresses of one peer that are asked, and judged; the others are counted."""
MAX_KNOWN: Final = 64
KNOWN_US: Final = 7 * 86_400_000_000
"""How long an address that was there once is nothing new."""
CHANGED_US: Final = 900_000_000
"""How long a change is told."""
LONGEST_TTL: Final = 3600
TWICE: Final = 2
"""Looks in a row, before what one alone may have met by bad luck is told."""


class Place(NamedTuple):
    """Where a peer can be reached."""

    ip: str
    port: int


class DnsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What one resolver says of a peer's name."""

    resolver: str
    """Its address; `hosts` for the system's file."""
    outcome: Literal["ok", "nxdomain", "empty", "failed"]
    """It has addresses; the name is not there; it is, but has none; nobody could say."""
    places: tuple[Place, ...] = ()
    """In the order of RFC 3263."""
    ttl: int | None = None
    """Seconds; the least of all that was asked."""
    why: str = ""


class Problem(NamedTuple):
    """Something to tell; the text holds no words of strangers."""

    severity: str
    text: str


class Names:
    """The name of one peer."""

    def __init__(self) -> None:
        self.places: tuple[Place, ...] = ()
        """Of all resolvers, the first one's first. Those known last, when nobody says any now."""
        self.answers: tuple[DnsAnswer, ...] = ()
        self.left_out = 0
        """Addresses over `MAX_PLACES`."""
        self._known: dict[str, int] = {}
        self._gone = self._failed = self._apart = 0
        self._apart_since = 0
        self._ttl = 0
        self._changed_at: int | None = None
        self._changed = Problem(TREND, "")

    def receive(self, answers: Sequence[DnsAnswer], at: int) -> str | None:
        """Take the answers of one look; tells of a change in words."""
        if not answers:
            return None
        self.answers = tuple(answers)
        good = [one for one in answers if one.places]
        none = [one for one in answers if one.outcome in ("nxdomain", "empty")]
        self._gone = self._gone + 1 if none and not good else 0
        self._failed = self._failed + 1 if not none and not good else 0
        sets = [{place.ip for place in one.places} for one in good]
        if good and (none or any(not one & other for one in sets for other in sets)):
            self._apart += 1
            if self._apart == 1:
                self._apart_since = at
                self._ttl = 0
            ttls = (min(one.ttl or 0, LONGEST_TTL) for one in answers)
            self._ttl = max(self._ttl, *ttls)
        else:
            self._apart = 0
        if not good:
            return None
        return self._take(list(dict.fromkeys(place for one in good for place in one.places)), at)

    def _take(self, places: list[Place], at: int) -> str | None:
        before, self.places = self.places, tuple(places[:MAX_PLACES])
        self.left_out = len(places) - len(self.places)
        known = self._known
        new = [place.ip for place in places if at - known.get(place.ip, -KNOWN_US) >= KNOWN_US]
        stays = bool({place.ip for place in before} & {place.ip for place in places})
        for place in places:
            known.pop(place.ip, None)
            known[place.ip] = at
        while len(known) > MAX_KNOWN:
            del known[next(iter(known))]
        if not before or not new:
            return None
        text = f"{_some(before)} before, {_some(self.places)} now"
        self._changed_at = at
        self._changed = Problem(TREND if stays else WARN, f"addresses changed: {text}")
        return text

    def problems(self, at: int, severity: str) -> list[Problem]:
        """What is wrong now; a name that is gone is as grave as `severity`."""
        count = len(self.answers)
        found = []
        if self._gone >= TWICE:
            found.append(Problem(severity, f"no address: {count} of {count} resolvers say so"))
        if self._failed >= TWICE:
            found.append(Problem(WARN, f"none of {count} resolvers can say its address"))
        # Caches may differ for as long as an answer holds.
        if self._apart >= TWICE and at - self._apart_since >= self._ttl * 1_000_000:
            found.append(Problem(WARN, f"{count} resolvers disagree: {self._apart_words()}"))
        if self._changed_at is not None and at - self._changed_at < CHANGED_US:
            found.append(self._changed)
        return found

    def _apart_words(self) -> str:
        said = [
            f"{one.resolver} {_some(one.places) if one.places else 'none'}"
            for one in self.answers
            if one.outcome != "failed"
        ]
        return "; ".join(said[:4])


def _some(places: Sequence[Place]) -> str:
    """Some addresses, for people."""
    texts = list(dict.fromkeys(place.ip for place in places))
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more
