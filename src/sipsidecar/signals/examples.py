"""Ended setups to the calls that an alarm can name: the newest of each kind of trouble and cohort."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from sipsidecar.calls.events import OTHER, AttemptRecord, CallRecord, Setup
from sipsidecar.signals.alarms import CATEGORIES, DIMENSIONS, Scope

MOST: Final = 5
"""Calls that one alarm names."""
MAX_KEYS: Final = 4000
"""Kinds of trouble and cohorts that are remembered; the one that was quiet for longest gives way."""
SLOW_MS: Final = 2000.0
"""Post-dial delay from where on a call is an example of a slow one."""

_FAILURES: Final = frozenset({"asr", "ner"})
"""Categories of which every failed setup is an example."""

_Values = tuple[str, ...]


class Examples:
    """The newest Call-IDs of each category and cohort; times are microseconds UTC."""

    def __init__(self) -> None:
        self.forgotten = 0
        """Kinds of trouble that gave way to others."""
        self._kept: OrderedDict[tuple[str, str, _Values], deque[tuple[int, str]]] = OrderedDict()

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over: it, and each of its attempts, if there is trouble with it."""
        self._keep("call", setup.call, at)
        for attempt in setup.attempts:
            self._keep("trunk", attempt, at)
        if all(attempt.trunk != setup.call.trunk for attempt in setup.attempts):
            self._keep("trunk", setup.call, at)

    def find(self, category: str, scope: Scope, since: int) -> tuple[str, ...]:
        """The newest calls of a category within a scope that ended since then, at most 5."""
        source = "trunk" if {"trunk", "carrier"} & {name for name, _ in scope} else "call"
        places = [(DIMENSIONS.index(name), value) for name, value in scope]
        found: list[tuple[int, str]] = []
        for (kept_source, kept, values), calls in self._kept.items():
            if (
                kept_source == source
                and _is_of(kept, category)
                and all(values[place] == value for place, value in places)
            ):
                found += [one for one in calls if one[0] >= since]
        newest = dict.fromkeys(call_id for _, call_id in sorted(found, reverse=True))
        return tuple(newest)[:MOST]

    def _keep(self, source: str, record: CallRecord | AttemptRecord, at: int) -> None:
        for category in _categories(record):
            key = (source, category, _values(record))
            calls = self._kept.get(key)
            if calls is None:
                if len(self._kept) >= MAX_KEYS:
                    self._kept.popitem(last=False)
                    self.forgotten += 1
                calls = self._kept[key] = deque(maxlen=MOST)
            self._kept.move_to_end(key)
            calls.append((at, record.call_id))


def _values(record: CallRecord | AttemptRecord) -> _Values:
    named = (getattr(record, name) or OTHER for name in DIMENSIONS[:-1])
    return (*named, record.codec_negotiated or "")


def _categories(record: CallRecord | AttemptRecord) -> Iterable[str]:
    code = record.final_code
    if isinstance(record, CallRecord) and record.final_origin == "admission":
        return
    if code is not None and 400 <= code < 700 and code not in (401, 407):
        yield str(code) if str(code) in CATEGORIES else f"{code // 100}xx"
    if record.pdd_ms is not None and record.pdd_ms >= SLOW_MS:
        yield "pdd"


def _is_of(kept: str, category: str) -> bool:
    if category in _FAILURES or category.startswith("slo"):
        return kept != "pdd"
    return kept == category
