"""Figures of the sidecar, its host, its switches and what is behind the calls, to readings of rules."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

import msgspec

from sipsidecar.signals.snapshot import Figures, SwitchFigures

Reading = tuple[str, str]
"""Measure and which: ("freeswitch_sessions_percent", "fs1"), ("cpu_percent", "")."""

LONGEST_TTL: Final = 86_400.0
"""Seconds that a signal holds at most: who is silent for a day is not believed."""


class Host(msgspec.Struct, frozen=True):
    """What the machine says; unknown is None."""

    cpu_percent: float | None = None
    """Of all its processors, over the last second."""
    memory_percent: float | None = None
    disk_percent: float | None = None
    """Used, of the file system with the least room of those that the sidecar writes to."""


class Probed(msgspec.Struct, frozen=True):
    """What one downstream check found last."""

    name: str
    ok: bool | None
    """None: not asked yet, or too long ago."""
    ms: float | None = None
    why: str = ""
    """Why it failed, in a word or two of our own."""
    age_seconds: float | None = None


class Signals:
    """What others say of their part by POST /v1/signals; bounded by the configured names.

    A signal that is not renewed within its time to live is unknown again: nobody is refused for it.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._said: dict[str, tuple[float, float] | None] = dict.fromkeys(names)
        """Value, and until when it holds."""

    def take_over(self, before: "Signals") -> None:
        """What was said before a reload still holds, of the names that are still known."""
        self._said |= {name: said for name, said in before._said.items() if name in self._said}  # noqa: SLF001

    def set(self, name: str, value: float, ttl_seconds: float, now: float) -> bool:
        """Take a value; False when no rule knows the name.

        What is no number, or holds for no time, is a ValueError.
        """
        if not isfinite(value) or not ttl_seconds > 0:
            raise ValueError("expected a number, and more than 0 seconds that it holds")
        if name not in self._said:
            return False
        self._said[name] = (value, now + min(ttl_seconds, LONGEST_TTL))
        return True

    def values(self, now: float) -> dict[str, float | None]:
        """Value of each name; None for one that is not said or too old."""
        return {
            name: said[0] if said is not None and now < said[1] else None
            for name, said in self._said.items()
        }


def readings(
    figures: Figures, host: Host, probed: Sequence[Probed], signals: Mapping[str, float | None]
) -> dict[Reading, float | None]:
    """Every reading that a health rule can be about, under its own name and, as ("", worst), under "".

    database and check: 1 while away or failing, 0 while well. The worst is that of those that are
    known. A FreeSWITCH that is not connected, or from which no HEARTBEAT comes, is unknown; its
    rate and idle CPU are those of its last HEARTBEAT, up to 20 seconds old. A signal has no worst.
    """
    storage = figures.storage
    found: dict[Reading, float | None] = {
        ("cpu_percent", ""): host.cpu_percent,
        ("memory_percent", ""): host.memory_percent,
        ("disk_percent", ""): host.disk_percent,
        ("loop_lag_ms", ""): figures.loop_lag_seconds * 1000,
        ("queue_percent", ""): _percent(storage.queue_bytes, storage.queue_limit_bytes),
        ("database", ""): 0.0 if storage.up else 1.0,
    }
    switches = [one for one in figures.switches if one.configured]
    for measure, read, worst in (
        ("freeswitch_sessions_percent", _sessions, max),
        ("freeswitch_rate_percent", _rate, max),
        ("freeswitch_idle_cpu_percent", _idle_cpu, min),
    ):
        each = {one.name: read(one) if _speaks(one) else None for one in switches}
        known = [value for value in each.values() if value is not None]
        found |= {(measure, name): value for name, value in each.items()}
        found[measure, ""] = worst(known) if known else None
    checks = {one.name: None if one.ok is None else float(not one.ok) for one in probed}
    found |= {("check", name): value for name, value in checks.items()}
    found["check", ""] = max((c for c in checks.values() if c is not None), default=None)
    found |= {("signal", name): value for name, value in signals.items()}
    return found


def _speaks(one: SwitchFigures) -> bool:
    """Whether what a switch said of itself is of now."""
    age = one.heartbeat_age_seconds
    return one.connected_seconds is not None and age is not None and age < one.watchdog_seconds


def _sessions(one: SwitchFigures) -> float | None:
    return None if one.legs is None else _percent(one.legs, one.max_sessions)


def _rate(one: SwitchFigures) -> float | None:
    if one.sessions_per_second is None:
        return None
    return _percent(one.sessions_per_second, one.sessions_per_second_limit)


def _idle_cpu(one: SwitchFigures) -> float | None:
    return None if one.idle_cpu is None else one.idle_cpu * 100


def _percent(part: int, whole: int | None) -> float | None:
    return 100 * part / whole if whole else None
