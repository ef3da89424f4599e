"""Calls of many cohorts, of which some fail: the alarms and shares that detectors make of them."""

from collections.abc import Iterator, Sequence
from itertools import product
from random import Random

from sipsidecar.signals.alarms import DIMENSIONS, PAGE, Alarm, Scope, Share
from sipsidecar.signals.attribution import matches, order_scope
from sipsidecar.signals.chances import binomial_tail

NORMAL = 0.01
MINUTE = 60_000_000
BEGAN = 1_791_036_180_000_000
"""2026-10-03 14:03 UTC."""
COMBINED = ("tenant", "trunk", "direction", "region")

Values = tuple[str, ...]


def values(**said: str) -> Values:
    return tuple(said.get(name, "") for name in DIMENSIONS)


def share(total: int, failed: int, expected: float | None = None, **said: str) -> Share:
    normal = total * NORMAL if expected is None else expected
    return Share(values(**said), total, failed, normal)


def scope(**said: str) -> Scope:
    return order_scope(said.items())


class World:
    """Tenants whose calls go over trunks of carriers; calls per look of each combination."""

    def __init__(
        self,
        tenants: int = 10,
        carriers: int = 4,
        trunks: int = 3,
        calls: int = 40,
        seed: int = 1,
    ) -> None:
        self.random = Random(seed)
        self.calls = calls
        self.cohorts = [
            values(
                tenant=f"t{tenant}",
                trunk=f"c{carrier}-{trunk}",
                carrier=f"c{carrier}",
                direction=direction,
                region="eu" if carrier % 2 else "us",
            )
            for tenant, carrier, trunk, direction in product(
                range(tenants), range(carriers), range(trunks), ("inbound", "outbound")
            )
        ]
        self.broken: list[tuple[Scope, float]] = []
        """Whose calls fail, and how many of them."""
        self.shares: list[Share] = []

    def look(self, at: int, category: str = "5xx", severity: str = PAGE) -> list[Alarm]:
        """One look: alarms that hold, in any order, as detectors give them."""
        self.shares = [self._draw(cohort) for cohort in self.cohorts]
        found = []
        for one, (total, failed) in self._series().items():
            expected = total * NORMAL
            if failed < 3 or failed / total <= 0.03:
                continue
            if binomial_tail(failed, total, NORMAL) < 1e-6:
                rate = 100 * failed / total
                found.append(
                    Alarm(
                        source="rate",
                        category=category,
                        scope=one,
                        at=at,
                        since=at,
                        severity=severity,
                        summary=f"{category} {rate:.1f} % ({failed} of {total})",
                        count=failed,
                        total=total,
                        codes=((503, round(failed - expected)),),
                        call_ids=tuple(f"{at}-{number}" for number in range(3)),
                    )
                )
        self.random.shuffle(found)
        return found

    def ask(self, _: Alarm) -> Sequence[Share]:
        return self.shares

    def _draw(self, cohort: Values) -> Share:
        total = max(1, round(self.random.gauss(self.calls, self.calls**0.5)))
        chance = NORMAL
        for broken, rate in self.broken:
            if matches(Share(cohort, 0, 0, 0.0), broken):
                chance = max(chance, rate)
        failed = sum(self.random.random() < chance for _ in range(total))
        return Share(cohort, total, failed, total * NORMAL)

    def _series(self) -> dict[Scope, tuple[int, int]]:
        found: dict[Scope, tuple[int, int]] = {}
        for row in self.shares:
            for one in _scopes(row.values):
                total, failed = found.get(one, (0, 0))
                found[one] = total + row.total, failed + row.failed
        return found


def _scopes(cohort: Values) -> Iterator[Scope]:
    said = dict(zip(DIMENSIONS, cohort, strict=True))
    yield ()
    for name, value in said.items():
        if value:
            yield ((name, value),)
    yield order_scope((name, said[name]) for name in COMBINED)
