"""Ended setups to the calls that an alarm can name: the newest of each kind of trouble and cohort."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from sipsidecar.calls.events import OTHER, AttemptRecord, CallRecord, Setup
from sipsidecar.signals.alarms import CATEGORIES, DIMENSIONS, Scope
from sipsidecar.signals.minutes import codec_label
from sipsidecar.signals.setups import NUMERATORS, kind_of_code

MOST: Final = 5
"""Calls that one alarm names."""
MAX_KEYS: Final = 4000
"""Kinds of trouble and cohorts that are remembered; the one that was quiet for longest gives way."""
SLOW_MS: Final = 2000.0
"""Post-dial delay from where on a call is an example of a slow one."""

_SLOW: Final = "pdd"
_FAILURES: Final = CATEGORIES

_Kind = tuple[str, str]
"""Source and category."""
_Values = tuple[str, ...]


class _Example(NamedTuple):
    at: int
    call_id: str
    effective: bool
    """People's doing: no failure of the network (NER)."""


class Examples:
    """The newest Call-IDs of each category and cohort; times are microseconds UTC."""

    def __init__(self) -> None:
        self.forgotten = 0
        """Kinds of trouble that gave way to others."""
        self._kept: OrderedDict[tuple[_Kind, _Values], deque[_Example]] = OrderedDict()
        self._by_kind: dict[_Kind, dict[_Values, deque[_Example]]] = {}
        """The same; an alarm is of one kind, and there may be a thousand alarms in a minute."""

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over: it, and each of its attempts, if there is trouble with it."""
        self._keep("call", setup.call, at)
        for attempt in setup.attempts:
            self._keep("trunk", attempt, at)
        if all(attempt.trunk != setup.call.trunk for attempt in setup.attempts):
            self._keep("trunk", setup.call, at)

    def find(self, category: str, scope: Scope, since: int) -> tuple[str, ...]:
        """The newest calls of a category within a scope that ended since then, at most 5.

        Of asr they are all that failed, of ner and objectives those that the network failed.
        """
        source = "trunk" if {"trunk", "carrier"} & {name for name, _ in scope} else "call"
        places = [(DIMENSIONS.index(name), value) for name, value in scope]
        shares = category in ("asr", "ner") or category.startswith("slo")
        found = [
            one
            for kind in (_FAILURES if shares else (category,))
            for values, calls in self._by_kind.get((source, kind), {}).items()
            if all(values[place] == value for place, value in places)
            for one in calls
            if one.at >= since and not (one.effective and shares and category != "asr")
        ]
        newest = dict.fromkeys(one.call_id for one in sorted(found, reverse=True))
        return tuple(newest)[:MOST]

    def _keep(self, source: str, record: CallRecord | AttemptRecord, at: int) -> None:
        categories = list(_categories(record))
        if not categories:
            return
        values = _values(record)
        kind = kind_of_code(record.final_code, record.ring_ms is not None)
        example = _Example(at, record.call_id, kind in NUMERATORS["ner_percent"])
        for category in categories:
            key = ((source, category), values)
            calls = self._kept.get(key)
            if calls is None:
                if len(self._kept) >= MAX_KEYS:
                    (oldest, of), _ = self._kept.popitem(last=False)
                    del self._by_kind[oldest][of]
                    self.forgotten += 1
                calls = self._kept[key] = deque(maxlen=MOST)
                self._by_kind.setdefault(key[0], {})[values] = calls
            self._kept.move_to_end(key)
            calls.append(example)


def _values(record: CallRecord | AttemptRecord) -> _Values:
    named = (getattr(record, name) or OTHER for name in DIMENSIONS[:-1])
    return (*named, codec_label(record.codec_negotiated))


def _categories(record: CallRecord | AttemptRecord) -> Iterable[str]:
    code = record.final_code
    if isinstance(record, CallRecord) and record.final_origin == "admission":
        return
    if code is not None and 400 <= code < 700 and code not in (401, 407):
        yield str(code) if str(code) in CATEGORIES else f"{code // 100}xx"
    if record.pdd_ms is not None and record.pdd_ms >= SLOW_MS:
        yield _SLOW
