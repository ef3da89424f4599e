"""Denials and limits to the entries of Kamailio's hash tables, as sipsidecar-admission.cfg reads them."""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from sipsidecar.signals.decisions import OVERFLOW, Denial, RateLimit
from sipsidecar.signals.rules import GLOBAL

CLOSED: Final = "sidecar"
"""The table of what is closed; key to `pack`."""
RATES: Final = "sidecar_cps"
"""The table of calls per second."""
TEXTS: Final = "sidecar_rule"
"""The table of texts: the number of a rule, and `route::` with that of a route."""
UP: Final = (CLOSED, "up")
"""The entry that says that a sidecar lives."""
CHECKSUM: Final = (TEXTS, "checksum")
"""The text that tells whether all the other texts are there."""

MOST_RULES: Final = 2146
"""Numbers that leave room for code and percentage in 31 bits, which Kamailio's integers have."""
MOST_ROUTES: Final = 399
"""Numbers of routes are below those of SIP codes that refuse."""
LONGEST: Final = 100_000_000
"""Microseconds of one call's share of a rate: 0.01 calls per second."""
MOST_ENTRIES: Final = 2000
"""Entries that expire, all of them renewed each second."""
MOST_TEXT: Final = 150
DEFAULT_CODE: Final = 486
OWN_SCOPE: Final = "node"

Key = tuple[str, str]
"""Table and key."""

_UNSAFE = re.compile(r"[^A-Za-z0-9 ,.()/_%+:-]")


class Entries(msgspec.Struct, frozen=True):
    """What one Kamailio must hold."""

    leased: Mapping[Key, int]
    """Integers that expire unless they are renewed: a string may lose its expiry (fixed in 6.0.7)."""
    texts: Mapping[Key, str]
    """`CHECKSUM` is the first: it tells of those that were set after it."""
    left_out: int
    """Denials and limits over `MOST_ENTRIES`."""


def pack(number: int, code: int, percent: int) -> int:
    """Number of a rule, code or number of a route, and percentage of calls, in one integer."""
    return number * 1_000_000 + code * 1000 + percent


def refusal_code(code: int | None) -> int:
    """A code that refuses: what is none becomes 486."""
    return code if code is not None and 400 <= code <= 699 else DEFAULT_CODE


def text(rule: str, reason: str) -> str:
    """`RULE: words`, fit for a quoted string in a SIP header and for Kamailio's `{s.select}`."""
    words = reason.removeprefix("cac ")
    if words == rule or words.startswith(f"{rule}:"):
        words = words[len(rule) + 1 :]
    words = words.strip()
    return _UNSAFE.sub("_", f"{rule}: {words}" if words else rule)[:MOST_TEXT]


class Numbers:
    """Names of rules to their numbers, from 1 on.

    A name has the same number in another life and in another sidecar, unless two names meet.
    """

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._taken: set[int] = set()

    def number(self, rule: str) -> int:
        """The number of a rule; 0, which has no text, when there are none left."""
        known = self._of.get(rule)
        if known is not None or len(self._of) >= MOST_RULES:
            return known or 0
        number = zlib.crc32(rule.encode()) % MOST_RULES
        while number + 1 in self._taken:
            number = (number + 1) % MOST_RULES
        self._of[rule] = number + 1
        self._taken.add(number + 1)
        return number + 1


class Encoder:
    """Turns decisions into the entries of the Kamailio of a name.

    `routes` are the names that overflow may go to; `addresses` gives the source addresses that alone
    decide a value of a scope.
    """

    def __init__(
        self, name: str, routes: Sequence[str], addresses: Callable[[str, str], Sequence[str]]
    ) -> None:
        self._name = name
        self._routes = {route: number for number, route in enumerate(routes[:MOST_ROUTES], start=1)}
        self._addresses = addresses
        self._numbers = Numbers()

    def encode(self, denials: Iterable[Denial], limits: Iterable[RateLimit]) -> Entries:
        """The entries of all that is about this Kamailio; where two meet, that about more calls."""
        leased: dict[Key, int] = {UP: 1}
        texts = {(TEXTS, f"route::{number}"): route for route, number in self._routes.items()}
        left_out = 0
        for denial in denials:
            value = self._value(denial)
            new = [(CLOSED, key) for key in self._closed_keys(denial)]
            if not new or denial.percent < 1:
                continue
            if len(leased) + len(new) > MOST_ENTRIES:
                left_out += 1
                continue
            self._describe(texts, denial.rule, denial.reason)
            for key in new:
                if value % 1000 > leased.get(key, 0) % 1000:
                    leased[key] = value
        for limit in limits:
            keys = self._rate_keys(limit)
            if not keys:
                continue
            if len(leased) + len(keys) + 3 > MOST_ENTRIES:
                left_out += 1
                continue
            self._describe(texts, limit.rule, limit.reason)
            self._limit(leased, keys, limit)
        if texts:
            said = "\n".join(f"{key} {value}" for (_, key), value in sorted(texts.items()))
            texts = {CHECKSUM: f"{zlib.crc32(said.encode()):08x}"} | texts
        return Entries(leased, texts, left_out)

    def _value(self, denial: Denial) -> int:
        code = refusal_code(denial.code)
        if denial.verdict == OVERFLOW:
            # Of a route that nobody configured the script knows no name: refused, not lost.
            code = self._routes.get(denial.route, code)
        return pack(self._numbers.number(denial.rule), code, min(denial.percent, 100))

    def _limit(self, leased: dict[Key, int], keys: Sequence[str], limit: RateLimit) -> None:
        number = zlib.crc32(keys[0].encode()) & 0x7FFFFFFF or 1
        # 0 is no limit there; a bucket is full before its clock, of a thousand seconds, is half round
        each = min(max(round(1e6 / (limit.rate or max(limit.limit, 1))), 1), LONGEST)
        if each <= leased.get((RATES, f"each::{number}"), 0):
            return
        for key in keys:
            leased[RATES, key] = number
        leased[RATES, f"each::{number}"] = each
        leased[RATES, f"full::{number}"] = min(round((limit.burst - 1) * each), 4 * LONGEST)
        leased[RATES, f"why::{number}"] = pack(
            self._numbers.number(limit.rule), refusal_code(limit.code), 100
        )

    def _closed_keys(self, denial: Denial) -> list[str]:
        if denial.scope in (GLOBAL, OWN_SCOPE):
            return self._everything(denial.scope, denial.scope_value)
        found = [f"src::{address}" for address in self._addresses(denial.scope, denial.scope_value)]
        return [f"{denial.scope}::{denial.scope_value}", *found]

    def _rate_keys(self, limit: RateLimit) -> list[str]:
        if limit.scope in (GLOBAL, OWN_SCOPE):
            return self._everything(limit.scope, limit.scope_value)
        # By scope, for all addresses of one value share its limit.
        found = self._addresses(limit.scope, limit.scope_value)
        return [
            f"{limit.scope}::{limit.scope_value}",
            *(f"{limit.scope}:src::{address}" for address in found),
        ]

    def _everything(self, scope: str, value: str) -> list[str]:
        return ["global"] if scope == GLOBAL or value == self._name else []

    def _describe(self, texts: dict[Key, str], rule: str, reason: str) -> None:
        number = self._numbers.number(rule)
        if number:
            texts.setdefault((TEXTS, str(number)), text(rule, reason))
