"""Ended setups and calls to one row of figures per minute and cohort.

What a setup counts as says `setups`. A setup is counted when it is over; what an answered call became
when that is over, at the same trunks that it was set up at. Minutes are told by this sidecar's clock,
as whoever feeds them gives it: what comes for a minute that was given out is given out later, in
another row of it, so that nothing is lost or twice when the clock is set.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from sipsidecar.calls.events import (
    OTHER,
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    RegistrationRecord,
    Setup,
)
from sipsidecar.signals.alarms import DIMENSIONS, Scope
from sipsidecar.signals.setups import (
    ANSWERED,
    CHALLENGED,
    NUMERATORS,
    OWN,
    REDIRECTED,
    SEIZURES,
    UNKNOWN,
    kind_of_attempt,
    kind_of_call,
    was_followed,
)

MINUTE: Final = 60_000_000
"""Microseconds."""
SHORT_MS: Final = 6000.0
"""Less talk makes a short call."""
MAX_OPEN: Final = 10
"""Minutes that are open at once: more are a clock that runs wild, or nobody who closes them."""
SUMMED: Final = 6
"""Closed minutes whose sums are remembered: those that short windows ask for again and again."""
MAX_CODES: Final = 64
"""Codes of one cohort in one minute; more count as the x00 of their class (RFC 3261 8.1.3.2)."""
MAX_TOTALS: Final = 5000
"""Values whose codes are counted since the start; more count as `other`."""
MAX_FOLLOWED: Final = 100_000
"""Answered calls of which is known where they were set up; the oldest gives way."""
MAX_CHALLENGES: Final = 20_000
"""REGISTERs that were challenged and whose next one is waited for; the oldest gives way."""
PAIRED: Final = 32_000_000
"""Microseconds from a challenged REGISTER to its next one (Timer F)."""

DELAY_BOUNDS_MS: Final = (
    100.0, 250.0, 500.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 6000.0, 8000.0, 12000.0, 20000.0,
    32000.0, 60000.0,
)  # fmt: skip
"""Upper bounds of the buckets of PDD, failed SRD, setup and RRD; one more bucket is for all over it."""
TALK_BOUNDS_SECONDS: Final = (
    1.0, 3.0, 6.0, 10.0, 20.0, 30.0, 33.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
)  # fmt: skip
MOS_BOUNDS: Final = (1.5, 2.0, 2.5, 2.8, 3.1, 3.3, 3.5, 3.7, 3.9, 4.0, 4.1, 4.2, 4.3, 4.4)
LOSS_BOUNDS_PERCENT: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
JITTER_BOUNDS_MS: Final = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0)
RTT_BOUNDS_MS: Final = (10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 1000.0)


class KpiMinute(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one cohort in one minute.

    Rows of one minute and cohort add up: there may be several, of several sidecars, or of one that
    was restarted or whose clock was set.
    """

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    received_at: int
    """When the minute was closed, microseconds UTC; the partition key."""
    minute_at: int
    """Its beginning, microseconds UTC, by this sidecar's clock: the time at which it learned how a
    setup or call ended."""
    source: str
    """call: as callers met it; trunk: how it went at each trunk, that is each attempt, and calls whose
    trunk none of their attempts has; register: REGISTERs."""
    tenant: str = ""
    """Empty where no cohorts are configured, as all of these, of REGISTERs, and of media without a call;
    `other` where nothing matched."""
    trunk: str = ""
    carrier: str = ""
    direction: str = ""
    region: str = ""
    agent: str = ""
    codec: str = ""
    """Negotiated, when it is one that is known by name, `other` for one that is not; empty: none."""
    attempts: int = 0
    """INVITEs that ended, without our own refusals and overflows; those of calls whose challenge was
    left unanswered, too."""
    redirected: int = 0
    """3xx: no seizures."""
    unknown: int = 0
    """Nobody saw how they ended."""
    seizures: int = 0
    answered: int = 0
    effective: int = 0
    """Numerator of NER (E.425)."""
    session_effective: int = 0
    """Numerator of SEER: 200, 480, 486, 600, 603 (RFC 6076 4.7)."""
    ineffective: int = 0
    """Numerator of ISA: 408, 500, 503, 504 (RFC 6076 4.8)."""
    own_refusals: int = 0
    """Calls that this product refused: in nothing else here; so is the next."""
    overflowed: int = 0
    """Calls that it sent elsewhere."""
    ended: int = 0
    """Answered calls that are over; of source trunk once for each answered attempt."""
    completed: int = 0
    """Of these, with a BYE: numerator of SCR (RFC 6076 4.9)."""
    dropped: int = 0
    """Of these, without one: a refresh failed, or nothing was seen any more."""
    short_calls: int = 0
    """Of these, of less than 6 s."""
    talk_seconds: float = 0.0
    talk_count: int = 0
    """Of these, whose talk time is known."""
    failovers: int = 0
    """Attempts that another had to follow; of source call, those of its calls."""
    one_way: int = 0
    """Calls with this finding; so are the next three."""
    no_media: int = 0
    dead_air: int = 0
    low_mos: int = 0
    pdd_count: int = 0
    pdd_sum_ms: float = 0.0
    pdd_buckets: tuple[int, ...] = ()
    """How many in each bucket, not cumulative, one more than there are bounds; () when there are none."""
    failed_srd_count: int = 0
    """Failed session request delay (RFC 6076 4.3.2)."""
    failed_srd_sum_ms: float = 0.0
    failed_srd_buckets: tuple[int, ...] = ()
    setup_count: int = 0
    setup_sum_ms: float = 0.0
    setup_buckets: tuple[int, ...] = ()
    talk_buckets: tuple[int, ...] = ()
    """Of `talk_count`."""
    mos_nb_count: int = 0
    """MOS of two scales do not add up."""
    mos_nb_sum: float = 0.0
    mos_nb_buckets: tuple[int, ...] = ()
    mos_wb_count: int = 0
    mos_wb_sum: float = 0.0
    mos_wb_buckets: tuple[int, ...] = ()
    mos_fb_count: int = 0
    mos_fb_sum: float = 0.0
    mos_fb_buckets: tuple[int, ...] = ()
    loss_count: int = 0
    """Directions of media."""
    loss_sum_percent: float = 0.0
    loss_buckets: tuple[int, ...] = ()
    jitter_count: int = 0
    jitter_sum_ms: float = 0.0
    jitter_buckets: tuple[int, ...] = ()
    rtt_count: int = 0
    rtt_sum_ms: float = 0.0
    rtt_buckets: tuple[int, ...] = ()
    registers: int = 0
    """REGISTER transactions; those that were challenged (401, 407) are not counted by themselves."""
    registers_failed: int = 0
    """Numerator of IRA (RFC 6076 4.2)."""
    rrd_count: int = 0
    """Successful registrations (RFC 6076 4.1)."""
    rrd_sum_ms: float = 0.0
    rrd_buckets: tuple[int, ...] = ()


class CodeMinute(msgspec.Struct, frozen=True, kw_only=True):
    """How often one final code ended setups of one cohort in one minute; a row as `KpiMinute`.

    Of source register every REGISTER transaction, challenged ones too.
    """

    call_id: str = ""
    received_at: int
    minute_at: int
    source: str
    tenant: str = ""
    trunk: str = ""
    carrier: str = ""
    direction: str = ""
    region: str = ""
    agent: str = ""
    codec: str = ""
    code: int
    """0: unknown."""
    origin: str = ""
    """Who made it: as `CallRecord.final_origin`; admission: our own refusals. Of attempts inferred, or
    empty, as where nobody knows."""
    count: int


Labels: TypeAlias = tuple[str, str, str, str, str, str, str, str]
"""Source, then values in the order of `DIMENSIONS`."""
# What was counted of one cohort: small numbers to counts or sums.
Cell: TypeAlias = defaultdict[int, float]


class Closed(NamedTuple):
    """A cell of a minute that is over, in less room."""

    keys: "array[int]"
    values: "array[float]"


Kept: TypeAlias = Cell | Closed


class Total(NamedTuple):
    """What was counted of one value of one dimension since the start."""

    codes: dict[tuple[int, str], int]
    """Setups by final code and origin, as in `CodeMinute`."""
    completed: int
    """Calls that ended with a BYE."""


class _Challenged(NamedTuple):
    """A REGISTER that was challenged, as far as its next one is concerned."""

    started_at: int
    dated_by: str
    agent_ids: tuple[int, ...]


class _Measure(NamedTuple):
    """Where a measured value is in a cell: count, sum, and from there on its buckets."""

    base: int
    low: float
    high: float
    bounds: tuple[float, ...]
    count_field: str
    sum_field: str
    buckets_field: str


_COUNTS: Final = (
    "attempts", "redirected", "unknown", "seizures", "answered", "effective", "session_effective",
    "ineffective", "own_refusals", "overflowed", "ended", "completed", "dropped", "short_calls",
    "failovers", "one_way", "no_media", "dead_air", "low_mos", "registers", "registers_failed",
)  # fmt: skip
_SLOT: Final = {name: slot for slot, name in enumerate(_COUNTS)}
_DISTINCT: Final = len(_COUNTS)
"""How many codes a cell has."""
_LONGEST_MS: Final = 86_400_000.0


def _layout() -> dict[str, _Measure]:
    rows: tuple[tuple[str, str, tuple[float, ...], float, float], ...] = (
        ("pdd", "_sum_ms", DELAY_BOUNDS_MS, 0.0, _LONGEST_MS),
        ("failed_srd", "_sum_ms", DELAY_BOUNDS_MS, 0.0, _LONGEST_MS),
        ("setup", "_sum_ms", DELAY_BOUNDS_MS, 0.0, _LONGEST_MS),
        ("rrd", "_sum_ms", DELAY_BOUNDS_MS, 0.0, _LONGEST_MS),
        ("talk", "_seconds", TALK_BOUNDS_SECONDS, 0.0, 100 * _LONGEST_MS / 1000),
        ("mos_nb", "_sum", MOS_BOUNDS, 1.0, 5.0),
        ("mos_wb", "_sum", MOS_BOUNDS, 1.0, 5.0),
        ("mos_fb", "_sum", MOS_BOUNDS, 1.0, 5.0),
        ("loss", "_sum_percent", LOSS_BOUNDS_PERCENT, 0.0, 100.0),
        ("jitter", "_sum_ms", JITTER_BOUNDS_MS, 0.0, _LONGEST_MS),
        ("rtt", "_sum_ms", RTT_BOUNDS_MS, 0.0, _LONGEST_MS),
    )
    found, base = {}, _DISTINCT + 1
    for name, unit, bounds, low, high in rows:
        fields = (f"{name}_count", f"{name}{unit}", f"{name}_buckets")
        found[name] = _Measure(base, low, high, bounds, *fields)
        base += len(bounds) + 3
    return found


_MEASURES: Final = _layout()
_PDD, _FAILED_SRD, _SETUP = _MEASURES["pdd"], _MEASURES["failed_srd"], _MEASURES["setup"]
_TALK, _RRD = _MEASURES["talk"], _MEASURES["rrd"]
_LOSS, _JITTER, _RTT = _MEASURES["loss"], _MEASURES["jitter"], _MEASURES["rtt"]
_MOS: Final = {scale: _MEASURES[f"mos_{scale}"] for scale in ("nb", "wb", "fb")}
_FINDINGS: Final = {
    "one_way_audio": _SLOT["one_way"],
    "no_media": _SLOT["no_media"],
    "dead_air": _SLOT["dead_air"],
    "low_mos": _SLOT["low_mos"],
}
_CODES: Final = 512
"""From here on a cell counts codes: eight origins for each."""
_ORIGINS: Final = ("", "callee", "caller", "proxy", "admission", "inferred", "esl")
_ORIGIN: Final = {name: place for place, name in enumerate(_ORIGINS)}

_ATTEMPTS, _OVERFLOWED, _FAILOVERS = _SLOT["attempts"], _SLOT["overflowed"], _SLOT["failovers"]
_OWN_REFUSALS, _COMPLETED = _SLOT["own_refusals"], _SLOT["completed"]
_REGISTERS, _REGISTERS_FAILED = _SLOT["registers"], _SLOT["registers_failed"]

_SESSION_EFFECTIVE: Final = frozenset({480, 486, 600, 603})
_INEFFECTIVE: Final = frozenset({408, 500, 503, 504})
_CHALLENGES: Final = frozenset({401, 407})
_NO_FAILURE: Final = _CHALLENGES | {402}

_NOBODY: Final = ("", "", "", "", "", "", "")
_OTHERS: Final = (OTHER, OTHER, OTHER, OTHER, OTHER, OTHER, OTHER)
_LABELS: Final = ("source", *DIMENSIONS)
_PLACE: Final = {name: place for place, name in enumerate(DIMENSIONS, 1)}
_SOURCES: Final = dict.fromkeys(("", *DIMENSIONS), "call") | dict.fromkeys(
    ("trunk", "carrier"), "trunk"
)
"""Which rows speak for a dimension; "" is all calls."""

CODECS: Final = frozenset(
    {
        "AMR", "AMR-WB", "DVI4", "EVS", "G711", "G719", "G722", "G722.1", "G723", "G726-16", "G726-24",
        "G726-32", "G726-40", "G728", "G729", "G729A", "G729D", "G729E", "G7221", "GSM", "GSM-EFR",
        "GSM-HR-08", "iLBC", "iSAC", "L16", "LPC", "LYRA", "MPA", "MP4A-LATM", "opus", "PCMA",
        "PCMA-WB", "PCMU", "PCMU-WB", "QCELP", "SILK", "speex", "VMR-WB",
    }
)  # fmt: skip
"""Encoding names of RTP that may name a cohort, as IANA spells them; all others are `other`."""
_CODEC: Final = {form: name for name in CODECS for form in (name, name.lower())}


class _Minute:
    """One minute, open or closed."""

    __slots__ = ("at", "cells", "sums")

    def __init__(self, at: int) -> None:
        self.at = at
        self.cells: dict[Labels, Any] = {}
        """Each a `Cell`, of a closed minute a `Closed`."""
        self.sums: dict[tuple[str, str], dict[str, Cell]] = {}
        """By source and dimension: cells added up by value. Forgotten at each change."""

    def by(self, source: str, dimension: str) -> dict[str, Cell]:
        """Cells of a source added up by the values of a dimension; "" is all, under ""."""
        found = self.sums.get((source, dimension))
        if found is None:
            found = self.sums[source, dimension] = {}
            place = _PLACE.get(dimension)
            for labels, cell in self.cells.items():
                if labels[0] == source:
                    value = "" if place is None else labels[place]
                    whole = found.get(value)
                    if whole is None:
                        whole = found[value] = defaultdict(int)
                    _add(whole, _pairs(cell))
        return found

    def within(self, source: str, scope: Scope) -> Iterator[Kept]:
        """The cells of a source that a scope holds."""
        if len(scope) < 2:
            dimension, value = scope[0] if scope else ("", "")
            cell = self.by(source, dimension).get(value)
            if cell is not None:
                yield cell
            return
        wanted = [(_PLACE[dimension], value) for dimension, value in scope]
        for labels, each in self.cells.items():
            if labels[0] == source and all(labels[place] == value for place, value in wanted):
                yield each

    def join(self, other: "_Minute") -> None:
        """Take in what was given out of the same minute later."""
        for labels, cell in other.cells.items():
            known = self.cells.get(labels)
            if known is None:
                self.cells[labels] = cell
                continue
            whole: Cell = defaultdict(int)
            _add(whole, _pairs(known))
            _add(whole, _pairs(cell))
            self.cells[labels] = _closed(whole)
        self.sums = {}


class Minutes:
    """The open minutes of every cohort, and the last `keep` closed ones for live windows.

    Times are microseconds UTC of this sidecar's clock. Over `max_cohorts` combinations in one minute a
    new one counts as `other` in all dimensions, and `folded` counts what did.

    Of what happened at a time setups are to be fed first, then calls, then media.
    """

    def __init__(self, max_cohorts: int = 2000, keep: int = 15) -> None:
        self.folded = 0
        """Setups, calls and media that counted as `other` of all because cohorts ran out."""
        self.misdated = 0
        """What counted in another minute because too many were open."""
        self.forgotten = 0
        """Answered calls over `MAX_FOLLOWED`: their end counts at the call's own trunk."""
        self.unpaired = 0
        """Challenged REGISTERs over `MAX_CHALLENGES`: the delay of their registration begins later."""
        self._max_cohorts = max_cohorts
        self._keep = keep
        self._open: dict[int, _Minute] = {}
        self._closing: list[_Minute] = []
        """Those that are given out just now, or were not to their end."""
        self._closed: dict[int, _Minute] = {}
        self._current = _Minute(-1)
        self._stamp = -MINUTE
        self._followed: dict[tuple[str, str], tuple[Labels, ...]] = {}
        """By Call-ID and From tag: at which trunks an answered call was set up."""
        self._over: dict[tuple[str, str], tuple[Labels, ...]] = {}
        """The same of calls that ended in this minute: their media comes after them."""
        self._shared: dict[Labels, tuple[Labels, ...]] = {}
        self._challenges: dict[tuple[str, str | None, str | None, int], _Challenged] = {}
        self._totals: dict[tuple[str, str], dict[str, Cell]] = {}
        self._total_keys = 0

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over, and its attempts."""
        minute = self._minute(at)
        call = setup.call
        if call.final_origin == "admission":
            code = _CODES + _code_place(call.final_code) + _ORIGIN["admission"]
            for source in ("call", "trunk"):
                cell = self._cell(minute, _labels(source, call))
                cell[_OWN_REFUSALS] += 1
                _count_code(cell, code)
            return
        failovers = 0
        reached: list[Labels] = []
        for attempt in setup.attempts:
            kind = kind_of_attempt(attempt, setup)
            if kind is None:
                continue
            labels = _labels("trunk", attempt)
            cell = self._cell(minute, labels)
            failed_srd = attempt.fail_ms if attempt.pdd_ms is None else attempt.pdd_ms
            _count(cell, kind, attempt, "inferred" if attempt.inferred else "", failed_srd)
            if kind == ANSWERED:
                reached.append(labels)
            elif was_followed(attempt, setup):
                cell[_FAILOVERS] += 1
                failovers += 1
        kind = kind_of_call(call)
        if kind is None:
            return
        origin = call.final_origin or ""
        cell = self._cell(minute, _labels("call", call))
        _count(cell, kind, call, origin, call.srd_ms)
        if failovers:
            cell[_FAILOVERS] += failovers
        own = _own_trunk(setup)
        if own is not None:
            _count(self._cell(minute, own), kind, call, origin, call.srd_ms)
            reached.append(own)
        if kind == ANSWERED:
            self._follow((call.call_id, call.from_tag), reached)

    def receive_call(self, record: CallRecord, at: int) -> None:
        """One call that is over, at its first record.

        One that this product refused, that goes on (`interrupted`), or whose INVITE was not seen is
        nothing here.
        """
        key = record.call_id, record.from_tag
        trunks = self._followed.pop(key, None)
        if (
            record.final_origin == "admission"
            or not record.seizure
            or ("interrupted" in record.flags and not record.ended)
        ):
            return
        counted = [slot for name in record.findings if (slot := _FINDINGS.get(name)) is not None]
        measured: list[tuple[_Measure, float]] = []
        if record.answered:
            counted.append(_SLOT["ended"])
            counted.append(_COMPLETED if record.end_source == "bye" else _SLOT["dropped"])
            if record.talk_ms is not None:
                measured.append((_TALK, record.talk_ms / 1000))
                if record.talk_ms < SHORT_MS:
                    counted.append(_SLOT["short_calls"])
        scale = _MOS.get(record.mos_scale or "")
        if record.mos is not None and scale is not None:
            measured.append((scale, record.mos))
        if trunks is None:
            trunks = (_labels("trunk", record),)
        self._over[key] = trunks
        if len(self._over) > MAX_FOLLOWED:
            del self._over[next(iter(self._over))]
        if not counted and not measured:
            return
        minute = self._minute(at)
        for labels in (_labels("call", record), *trunks):
            cell = self._cell(minute, labels)
            for slot in counted:
                cell[slot] += 1
            for measure, value in measured:
                _observe(cell, measure, value)

    def receive_media(self, record: MediaRecord, call: CallRecord | None, at: int) -> None:
        """One direction of media at its first record, and its call if that is known."""
        measured = [
            (measure, value)
            for measure, value in (
                (_LOSS, record.loss_percent),
                (_JITTER, record.jitter_ms),
                (_RTT, record.rtt_ms),
            )
            if value is not None
        ]
        if not measured:
            return
        minute = self._minute(at)
        rows: tuple[Labels, ...] = (("call", *_NOBODY),)
        if call is not None:
            trunks = self._over.get((call.call_id, call.from_tag))
            if trunks is None:
                trunks = (_labels("trunk", call),)
            rows = (_labels("call", call), *trunks)
        for labels in rows:
            cell = self._cell(minute, labels)
            for measure, value in measured:
                _observe(cell, measure, value)

    def receive_registration(
        self, record: RegistrationRecord, at: int, cohort: Cohort | None = None
    ) -> None:
        """One REGISTER transaction, and whose it is if somebody knows.

        The delay of a registration begins with the request that was challenged, where that was told
        before and is the one before it on the same hop and by the same clock.
        """
        code = record.final_code
        if code is None and "interrupted" in record.flags:
            return
        labels: Labels = ("register", *_NOBODY)
        if cohort is not None:
            who = (cohort.tenant, cohort.trunk, cohort.carrier, cohort.direction, cohort.region)
            labels = ("register", *who, cohort.agent, "")
        cell = self._cell(self._minute(at), labels)
        # Nobody answered: Timer F, which stands for a 408 (RFC 3261 8.1.3.1).
        origin = "inferred" if code is None else ""
        place = _code_place(408 if code is None else code)
        _count_code(cell, _CODES + place + _ORIGIN[origin])
        hop = record.call_id, record.src_ip, record.peer_ip
        before = self._challenges.pop((*hop, record.cseq - 1), None)
        began = record.started_at
        if before is not None and _is_next(record, before):
            began = before.started_at
        if code in _CHALLENGES:
            if len(self._challenges) >= MAX_CHALLENGES:
                del self._challenges[next(iter(self._challenges))]
                self.unpaired += 1
            said = _Challenged(began, record.dated_by, record.agent_ids)
            self._challenges[(*hop, record.cseq)] = said
            return
        cell[_REGISTERS] += 1
        if code is None or (400 <= code < 700 and code not in _NO_FAILURE):
            cell[_REGISTERS_FAILED] += 1
        elif 200 <= code < 300 and record.rtt_ms is not None:
            _observe(cell, _RRD, record.rtt_ms + (record.started_at - began) / 1000)

    def receive_overflow(self, call: CallRecord, at: int) -> None:
        """One call that admission sent elsewhere."""
        minute = self._minute(at)
        for source in ("call", "trunk"):
            self._cell(minute, _labels(source, call))[_OVERFLOWED] += 1

    def close(self, at: int) -> tuple[list[KpiMinute], list[CodeMinute]]:
        """Give out the rows of all minutes that ended at `at` or before, each once.

        Minutes that begin more than one after `at` go, too: the clock was set back, and they may not
        come for hours.
        """
        kpis: list[KpiMinute] = []
        codes: list[CodeMinute] = []
        for some_kpis, some_codes in self.closing(at):
            kpis += some_kpis
            codes += some_codes
        return kpis, codes

    def closing(
        self, at: int, slice_rows: int = 50
    ) -> Iterator[tuple[list[KpiMinute], list[CodeMinute]]]:
        """Do as `close`, some cohorts at a time, so that others may work in between.

        What comes meanwhile is of later rows. What is left when it is not run to its end comes with the
        next rows.
        """
        due = [one for one in self._open if one + MINUTE <= at or one > at + MINUTE]
        return self._give_out(sorted(due), at, slice_rows)

    def drain(self, at: int) -> tuple[list[KpiMinute], list[CodeMinute]]:
        """Give out all that is left, the open minute too."""
        kpis: list[KpiMinute] = []
        codes: list[CodeMinute] = []
        for some_kpis, some_codes in self._give_out(sorted(self._open), at):
            kpis += some_kpis
            codes += some_codes
        return kpis, codes

    def live(
        self, source: str, scope: Scope, at: int, minutes: int = 5
    ) -> tuple[KpiMinute, list[CodeMinute]]:
        """Add up the last whole minutes, and the open one, of all cohorts within a scope.

        `minute_at` of the rows is the beginning of the first.
        """
        first = at - at % MINUTE - minutes * MINUTE
        whole: Cell = defaultdict(int)
        for minute in self._between(first, at):
            for cell in minute.within(source, scope):
                _add(whole, _pairs(cell))
        said = dict(scope)
        labels: Any = (source, *(said.get(name, "") for name in DIMENSIONS))
        return _row(whole, at, first, labels), list(_code_rows(whole, at, first, labels))

    def live_by(
        self, source: str, dimension: str, scope: Scope, at: int, minutes: int = 5
    ) -> Iterator[tuple[str, KpiMinute, list[CodeMinute]]]:
        """Do as `live` for each value of a dimension that has figures within a scope, by one pass."""
        first = at - at % MINUTE - minutes * MINUTE
        place = _PLACE[dimension]
        wanted = [(_PLACE[name], value) for name, value in scope]
        found: dict[str, Cell] = {}
        for minute in self._between(first, at):
            cells: Iterable[tuple[str, Kept]] = minute.by(source, dimension).items()
            if wanted:
                cells = (
                    (labels[place], cell)
                    for labels, cell in minute.cells.items()
                    if labels[0] == source and all(labels[one] == value for one, value in wanted)
                )
            for value, cell in cells:
                if value:
                    _add(found.setdefault(value, defaultdict(int)), _pairs(cell))
        said = dict(scope)
        for value in sorted(found):
            named = {**said, dimension: value}
            labels: Any = (source, *(named.get(name, "") for name in DIMENSIONS))
            row = _row(found[value], at, first, labels)
            yield value, row, list(_code_rows(found[value], at, first, labels))

    def values(self, source: str, dimension: str, at: int, minutes: int = 5) -> Sequence[str]:
        """The values of a dimension that have figures in that time."""
        first = at - at % MINUTE - minutes * MINUTE
        found: set[str] = set()
        for minute in self._between(first, at):
            found.update(minute.by(source, dimension))
        return sorted(found - {""})

    def totals(self, source: str, dimension: str = "") -> Mapping[str, Total]:
        """What was counted since the start, by the values of a dimension; without one under "".

        Only of sources that speak for it: trunk for trunk and carrier, call for all others; of REGISTERs
        there is no dimension.
        """
        found: dict[str, Cell] = {}
        every = [self._totals.get((source, dimension), {})]
        every += [minute.by(source, dimension) for minute in self._open.values()]
        every += [self._left_of(minute).by(source, dimension) for minute in self._closing]
        for each in every:
            for value, cell in each.items():
                lasting = list(_lasting(cell.items()))
                if lasting and (value or not dimension):
                    _add(found.setdefault(value, defaultdict(int)), lasting)
        return {
            value: Total(dict(_codes(cell)), int(cell.get(_COMPLETED, 0)))
            for value, cell in found.items()
        }

    @staticmethod
    def _left_of(closing: _Minute) -> _Minute:
        """What of a minute is not given out yet."""
        left = _Minute(closing.at)
        left.cells = {
            labels: cell for labels, cell in closing.cells.items() if not isinstance(cell, Closed)
        }
        return left

    # -- minutes

    def _minute(self, at: int) -> _Minute:
        """The minute of a time, about to change."""
        begin = at - at % MINUTE
        minute = self._current
        if minute.at != begin:
            found = self._open.get(begin)
            if found is None and len(self._open) >= MAX_OPEN:
                self.misdated += 1
                found = self._open[next(reversed(self._open))]
            if found is None:
                found = self._open[begin] = _Minute(begin)
            minute = self._current = found
        if minute.sums:
            minute.sums = {}
        return minute

    def _cell(self, minute: _Minute, labels: Labels) -> Cell:
        cells = minute.cells
        cell = cells.get(labels)
        if cell is None:
            if len(cells) >= self._max_cohorts and labels[1:] != _OTHERS:
                self.folded += 1
                return self._cell(minute, (labels[0], *_OTHERS))
            cell = cells[labels] = defaultdict(int)
        found: Cell = cell
        return found

    def _between(self, first: int, at: int) -> Iterator[_Minute]:
        for minute in (*self._closed.values(), *self._closing, *self._open.values()):
            if first <= minute.at <= at:
                yield minute

    def _give_out(
        self, due: Sequence[int], at: int, slice_rows: int = 50
    ) -> Iterator[tuple[list[KpiMinute], list[CodeMinute]]]:
        self._over.clear()
        for begin in due:
            minute = self._open.pop(begin)
            if minute is self._current:
                self._current = _Minute(-1)
            self._closing.append(minute)
        if self._closing:
            # Two rows of one minute and cohort differ by this.
            self._stamp = at = self._stamp + 1 if 0 <= self._stamp - at < MINUTE else at
        for minute in list(self._closing):
            every = list(self._left_of(minute).cells)
            for first in range(0, len(every), slice_rows):
                kpis: list[KpiMinute] = []
                codes: list[CodeMinute] = []
                for labels in every[first : first + slice_rows]:
                    cell = minute.cells[labels]
                    if isinstance(cell, Closed):
                        continue  # somebody was quicker
                    kpis.append(_row(cell, at, minute.at, labels))
                    codes += _code_rows(cell, at, minute.at, labels)
                    self._add_totals(labels, cell)
                    minute.cells[labels] = _closed(cell)
                yield kpis, codes
            self._keep_closed(minute)

    def _keep_closed(self, minute: _Minute) -> None:
        """Remember a minute that was given out to its end."""
        if minute not in self._closing:
            return
        self._closing.remove(minute)
        known = self._closed.get(minute.at)
        if known is not None:
            known.join(minute)
        else:
            self._closed[minute.at] = minute
        while len(self._closed) > self._keep:
            del self._closed[next(iter(self._closed))]
        for old in list(self._closed.values())[:-SUMMED]:
            old.sums = {}

    def _add_totals(self, labels: Labels, cell: Cell) -> None:
        lasting = list(_lasting(cell.items()))
        if not lasting:
            return
        source = labels[0]
        for dimension, speaks in _SOURCES.items():
            if source == speaks or (source in ("trunk", "register") and not dimension):
                value = labels[_PLACE[dimension]] if dimension else ""
                if not value and dimension:
                    continue
                whole = self._total(source, dimension, value)
                for key, count in lasting:
                    if key >= _CODES:
                        _count_code(whole, key, count)
                    else:
                        whole[key] += count

    def _total(self, source: str, dimension: str, value: str) -> Cell:
        values = self._totals.setdefault((source, dimension), {})
        whole = values.get(value)
        if whole is None:
            if self._total_keys >= MAX_TOTALS and value not in ("", OTHER):
                return self._total(source, dimension, OTHER)
            self._total_keys += 1
            whole = values[value] = defaultdict(int)
        return whole

    # -- calls that are answered

    def _follow(self, key: tuple[str, str], reached: Sequence[Labels]) -> None:
        """Remember where an answered call was set up."""
        trunks: tuple[Labels, ...]
        if len(reached) == 1:  # nearly all are: one tuple for all calls of a cohort
            trunks = self._shared.setdefault(reached[0], (reached[0],))
            if len(self._shared) > 2 * self._max_cohorts:
                self._shared.clear()
        else:
            trunks = tuple(reached)
        self._followed[key] = trunks
        if len(self._followed) > MAX_FOLLOWED:
            self.forgotten += 1
            del self._followed[next(iter(self._followed))]


# -- what is counted, and where


def _labels(source: str, record: CallRecord | AttemptRecord) -> Labels:
    codec = record.codec_negotiated
    return (
        source,
        record.tenant or "",
        record.trunk or "",
        record.carrier or "",
        record.direction or "",
        record.region or "",
        record.agent or "",
        codec_label(codec),
    )


def codec_label(name: str | None) -> str:
    """Turn a negotiated codec, which strangers name, into the value of the dimension."""
    return (_CODEC.get(name) or _CODEC.get(name.lower(), OTHER)) if name else ""


def _own_trunk(setup: Setup) -> Labels | None:
    """Labels under which a call speaks for its own trunk and carrier: those that no attempt of it has.

    None where there are none such.
    """
    call, attempts = setup.call, setup.attempts
    labels = _labels("trunk", call)
    if not attempts:
        return labels
    trunk_spoken = any(attempt.trunk == call.trunk for attempt in attempts)
    carrier_spoken = any(attempt.carrier == call.carrier for attempt in attempts)
    if trunk_spoken and carrier_spoken:
        return None
    source, tenant, trunk, carrier, *rest = labels
    trunk = OTHER if trunk_spoken else trunk
    carrier = OTHER if carrier_spoken else carrier
    if trunk in ("", OTHER) and carrier in ("", OTHER):
        return None  # `other` and nothing else is what an attempt without a trunk is
    direction, region, agent, codec = rest
    return source, tenant, trunk, carrier, direction, region, agent, codec


def _is_next(record: RegistrationRecord, before: _Challenged) -> bool:
    """Whether the time between two REGISTERs is by one clock, and no longer than one waits."""
    same_clock = (record.dated_by, record.agent_ids) == (before.dated_by, before.agent_ids)
    return same_clock and 0 <= record.started_at - before.started_at <= PAIRED


def _steps_of(kind: int, code: int) -> tuple[int, ...]:
    """What a setup adds one to."""
    if kind == UNKNOWN:
        names = ["unknown"]
    elif kind == REDIRECTED:
        names = ["redirected"]
    elif kind in SEIZURES:
        names = ["seizures"]
        if kind == ANSWERED:
            names.append("answered")
        if kind in NUMERATORS["ner_percent"]:
            names.append("effective")
        if kind == ANSWERED or code in _SESSION_EFFECTIVE:
            names.append("session_effective")
        if code in _INEFFECTIVE:
            names.append("ineffective")
    else:
        names = []
    return _ATTEMPTS, *(_SLOT[name] for name in names)


_STEPS: Final = {
    (kind, code): _steps_of(kind, code)
    for kind in range(UNKNOWN + 1)
    for code in (0, *range(200, 700))
    if kind != OWN
}


def _code_place(code: int | None) -> int:
    """Where a code is counted, from `_CODES` on; what is no final code of SIP counts as unknown."""
    return 8 * code if code is not None and 200 <= code < 700 else 0


def _count(
    cell: Cell, kind: int, record: CallRecord | AttemptRecord, origin: str, failed_srd: float | None
) -> None:
    """Add one setup."""
    code = record.final_code if kind != UNKNOWN and record.final_code is not None else 0
    for slot in _STEPS[kind, code]:
        cell[slot] += 1
    _count_code(cell, _CODES + 8 * code + _ORIGIN.get(origin, 0))
    if record.pdd_ms is not None:
        _observe(cell, _PDD, record.pdd_ms)
    if kind == ANSWERED:
        if record.setup_ms is not None:
            _observe(cell, _SETUP, record.setup_ms)
    elif failed_srd is not None and kind not in (REDIRECTED, CHALLENGED, UNKNOWN) and code != 402:
        _observe(cell, _FAILED_SRD, failed_srd)


def _count_code(cell: Cell, key: int, count: float = 1) -> None:
    if key not in cell:
        if cell[_DISTINCT] >= MAX_CODES:
            code, origin = divmod(key - _CODES, 8)
            key = _CODES + 8 * (code - code % 100) + origin
        else:
            cell[_DISTINCT] += 1
    cell[key] += count


def _observe(cell: Cell, measure: _Measure, value: float) -> None:
    base = measure.base
    if not measure.low <= value <= measure.high:
        value = min(max(measure.low, value), measure.high)  # in this order NaN is the lowest
    cell[base] += 1
    cell[base + 1] += value
    cell[base + 2 + bisect_left(measure.bounds, value)] += 1


# -- cells, and rows of them


def _closed(cell: Cell) -> Closed:
    return Closed(array("H", cell), array("d", cell.values()))


def _pairs(cell: Kept) -> Iterable[tuple[int, float]]:
    if isinstance(cell, Closed):
        return zip(cell.keys, cell.values, strict=True)
    return cell.items()


def _add(whole: Cell, pairs: Iterable[tuple[int, float]]) -> None:
    for key, value in pairs:
        whole[key] += value


def _lasting(pairs: Iterable[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """What is counted since the start, too."""
    return ((key, value) for key, value in pairs if key >= _CODES or key == _COMPLETED)


def _codes(cell: Cell) -> Iterator[tuple[tuple[int, str], int]]:
    for key, count in cell.items():
        if key >= _CODES and count:
            code, origin = divmod(key - _CODES, 8)
            yield (code, _ORIGINS[origin]), int(count)


def _row(cell: Cell, received_at: int, minute_at: int, labels: Labels) -> KpiMinute:
    get = cell.get
    figures: dict[str, Any] = dict(zip(_LABELS, labels, strict=True))
    for key, value in cell.items():
        if key < _DISTINCT:
            figures[_COUNTS[key]] = int(value)
    for base, _, _, bounds, count_field, sum_field, buckets_field in _MEASURES.values():
        count = get(base)
        if count:
            figures[count_field] = int(count)
            figures[sum_field] = float(get(base + 1, 0))
            figures[buckets_field] = tuple(
                [int(get(place, 0)) for place in range(base + 2, base + 3 + len(bounds))]
            )
    return KpiMinute(received_at=received_at, minute_at=minute_at, **figures)


def _code_rows(
    cell: Cell, received_at: int, minute_at: int, labels: Labels
) -> Iterator[CodeMinute]:
    said: Any = dict(zip(_LABELS, labels, strict=True))
    for (code, origin), count in sorted(_codes(cell)):
        yield CodeMinute(
            received_at=received_at, minute_at=minute_at, **said, code=code, origin=origin,
            count=count,
        )  # fmt: skip
