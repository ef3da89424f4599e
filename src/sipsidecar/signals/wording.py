"""Figures of alarms to the one line that people read; nothing in it was written by strangers."""

from collections.abc import Mapping, Sequence
from typing import Final

_DAYS: Final = ("Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed")
"""The first day of 1970 was a Thursday."""


def percent_text(share: float) -> str:
    """Turn a share into `17.6 %`; what is under 1 % keeps two digits that mean something."""
    percent = 100 * share
    if percent >= 1 or percent <= 0:
        return f"{percent:.1f} %"
    return f"{percent:.2g} %" if percent >= 0.01 else "under 0.01 %"


def probability_text(chance: float) -> str:
    """Turn a chance into `3e-6`."""
    if chance <= 1e-300:
        return "under 1e-300"
    if chance >= 0.001:
        return f"{chance:.1g}"
    digits, _, exponent = f"{chance:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def week_text(hour: int) -> str:
    """Turn hours since 1970 into `Tue 14:00 UTC`."""
    return f"{_DAYS[hour // 24 % 7]} {hour % 24:02d}:00 UTC"


def minute_text(minute: int) -> str:
    """Turn minutes since 1970 into `14:03 UTC`."""
    return f"{minute // 60 % 24:02d}:{minute % 60:02d} UTC"


def window_text(minutes: int) -> str:
    """Turn the length of a window into `in the last 5 min`."""
    return "in the last minute" if minutes == 1 else f"in the last {minutes} min"


def normal_text(known: str, hour: int, value: str) -> str:
    """Say what is normal, and how that is known: own, fleet or cold (`rates.Normal`)."""
    if known == "own":
        return f"normal for {week_text(hour)} is {value}"
    if known == "fleet":
        return f"normal of all calls for {week_text(hour)} is {value}, its own is not known yet"
    return f"normal is not known yet, taken for {value}"


def codes_text(codes: Sequence[tuple[int, int]]) -> str:
    """Turn codes and their surplus into `top codes 404 +29, 484 +5`; empty when there are none."""
    return "top codes " + ", ".join(f"{code} +{count}" for code, count in codes) if codes else ""


def values_text(what: str, counts: Mapping[str, int]) -> str:
    """Turn counts by value into `trunks A 31, B 6`; empty when there are none."""
    listed = ", ".join(f"{value} {count}" for value, count in counts.items())
    return f"{what} {listed}" if listed else ""


def line(*parts: str) -> str:
    """Join what there is to say to one line."""
    return "; ".join(part for part in parts if part)
