"""Alarms and findings to incidents: opened once, made worse, put down to a cohort, cleared."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from sipsidecar.signals.alarms import (
    DIMENSIONS,
    TREND,
    Alarm,
    EventRecord,
    IncidentRecord,
    Notice,
    Scope,
    Share,
    scope_text,
)
from sipsidecar.signals.attribution import is_compatible, is_inside, is_nested, order_scope
from sipsidecar.signals.troubles import (
    EFFECTS,
    Key,
    Trouble,
    broader,
    explains,
    fold_effects,
    is_divided,
    kind_of,
    onset_of,
    part_category,
    rank_of,
    weight_of,
)

LAPSE: Final = 180_000_000
"""Microseconds: an alarm that was not said again for so long holds no more, though nobody ended it."""
GROWN: Final = 600_000_000
"""Microseconds: an incident that was open for so long and then is of other calls than it was told of
has got worse. Until then more data only tells better where it is."""
REVISION: Final = 60_000_000
"""Microseconds: between two rows of one incident that only put it down to another cohort; twice as
long each time, up to `LONGEST_REFRESH`."""
REFRESH: Final = 300_000_000
"""Microseconds: between two rows of one incident of which only the numbers changed; twice as long each
time, up to `LONGEST_REFRESH`."""
LONGEST_REFRESH: Final = 3_600_000_000
LONGEST_DOUBLING: Final = 4
"""An incident that was reopened must be quiet for longer, up to so many times as long: what comes and
goes is not told each time."""
MAX_ALARMS: Final = 10_000
"""That hold at one time; of more the gravest are looked at."""
MAX_WAITING: Final = 20_000
"""Rows, and notices, that nobody fetched; then the oldest are lost."""
TWICE: Final = 2.0
"""So many times the excess it was told of it must have then."""
MAX_TOLD: Final = 8
"""Scopes that one incident is told of at most."""
MAX_EVIDENCE: Final = 12_288
"""Bytes."""
MAX_SUMMARY: Final = 1000
"""Characters."""
MAX_EXAMPLES: Final = 5
"""Call-IDs, and codes."""
MAX_LISTED: Final = 20
"""Alarms in the evidence of one incident."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PLURALS: Final = {"codec": "codecs", "agent": "agents", "direction": "directions"}


class IncidentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What incidents are told by the configuration."""

    clear_seconds: float = 600.0
    """How long nothing may hold before an incident is over (standards 5.2)."""
    merge_seconds: float = 1800.0
    """An alarm that comes again within that of the end reopens its incident."""
    hold_seconds: float = 0.0
    """How long an alarm must hold before it is told."""


class _Held(msgspec.Struct):
    """An alarm that holds."""

    alarm: Alarm
    first: int
    """On the clock of `Incidents`, as the next."""
    last: int


class _Incident(msgspec.Struct):
    """One incident, and what of it is no part of its row."""

    record: IncidentRecord
    """`revision` is that of the last row; -1: there is none yet."""
    scope: Scope
    opened: int
    """On the clock of `Incidents`, as all others here."""
    held: int
    """When one of its alarms was said last."""
    told: list[Scope]
    """Scopes that receivers were told of."""
    told_excess: float = 0.0
    """The largest of those times."""
    excess: float = 0.0
    alarms: list[Alarm] = []
    """Those that hold, the gravest first."""
    notes: list[str] = []
    """What happened since the last row: opened, escalated or cleared."""
    words: str = ""
    """Of the summary, without times."""
    written: int = 0
    written_scope: Scope = ()
    written_words: str = ""
    written_upstream: bool = False
    revise: int = REVISION
    refresh: int = REFRESH
    reopened: int = 0
    ended: int = 0
    dimension: str = ""
    by_value: dict[str, int] = {}


class Incidents:
    """All incidents that are open, and those that ended lately.

    `shares` divides the excess of an alarm among cohorts (`Detectors.shares`). Times are microseconds
    UTC; a clock that is set back does not undo what passed. Give each look's alarms of all sources in
    one call of `receive`: what is given apart may open apart, and is put together only then.
    """

    def __init__(
        self,
        settings: IncidentSettings | None = None,
        shares: Callable[[Alarm], Sequence[Share]] = lambda _: (),
        max_open: int = 1000,
    ) -> None:
        self.overflowed = 0
        """Incidents that were not opened, for too many are."""
        self.skipped = 0
        """Alarms that were not looked at, for too many hold."""
        self.lost = 0
        """Rows and notices that nobody fetched in time."""
        self._settings = settings or IncidentSettings()
        self._shares = shares
        self._max_open = max_open
        self._held: dict[Key, _Held] = {}
        self._open: dict[str, _Incident] = {}
        self._ended: dict[str, _Incident] = {}
        """Those that may be reopened, the oldest first."""
        self._owned: dict[Key, _Incident] = {}
        """Of alarms that hold."""
        self._changed = False
        """What holds is other than at the last look."""
        self._parted: dict[str, tuple[list[Alarm], list[Trouble]]] = {}
        """Of each category the alarms that held at the last look, and the troubles of them."""
        self._refused: set[tuple[str, Scope]] = set()
        """Troubles that found no room, since the last look."""
        self._rows: list[IncidentRecord | EventRecord] = []
        self._notices: list[Notice] = []
        self._counter = 0
        self._at: int | None = None
        self._clock = 0
        """Microseconds that passed, by all steps of `at` forwards."""

    def reload(self, settings: IncidentSettings) -> None:
        """Go on with other settings."""
        self._settings = settings

    def receive(self, alarms: Iterable[Alarm], at: int) -> None:
        """The alarms of one look."""
        for _ in self.look(alarms, at):
            pass

    def look(self, alarms: Iterable[Alarm], at: int) -> Iterator[None]:
        """As `receive`, in slices: one for each category of which other alarms hold than before."""
        self._pass(at)
        said = self._take(alarms)
        if self._changed or self._refused or not self._held.keys() <= self._owned.keys():
            yield from self._part()
            self._changed = False
            troubles = (trouble for _, each in self._parted.values() for trouble in each)
            self._sort_in(fold_effects(troubles), at)
        else:
            for key in said:
                self._say_again(self._owned[key], at)
        self._look_after(at)

    def handle_timer(self, at: int) -> None:
        """Clear what is over."""
        self._pass(at)
        self._lapse()
        self._look_after(at)

    def restore(self, incidents: Iterable[IncidentRecord]) -> None:
        """Take up incidents that an earlier life left open: they are not told a second time."""
        newest: dict[str, IncidentRecord] = {}
        for record in incidents:
            known = newest.get(record.incident)
            if known is None or known.revision < record.revision:
                newest[record.incident] = record
        for record in sorted(newest.values(), key=lambda one: (one.opened_at, one.incident)):
            if record.state != "open" or record.incident in self._open:
                continue
            if len(self._open) >= self._max_open:
                # It stays open in the store for good, unless another life takes it up.
                self.overflowed += 1
                continue
            scope = _scope_of(record)
            self._open[record.incident] = _Incident(
                record=record,
                scope=scope,
                opened=self._clock,
                held=self._clock,
                told=[scope],
                words=record.summary,
                written=self._clock,
                written_scope=scope,
                written_words=record.summary,
                written_upstream=record.upstream,
            )

    def records(self) -> list[IncidentRecord | EventRecord]:
        """Rows since the last call: incidents that changed, with a revision, and events of the timeline."""
        rows, self._rows = self._rows, []
        return rows

    def notices(self) -> list[Notice]:
        """What receivers must be told since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def open(self) -> Sequence[IncidentRecord]:
        """Those that are open now, the gravest first."""
        return sorted(
            (incident.record for incident in self._open.values()),
            key=lambda record: (-weight_of(record.severity), record.opened_at, record.incident),
        )

    def _pass(self, at: int) -> None:
        if self._at is not None:
            self._clock += max(0, at - self._at)
        self._at = at

    def _take(self, alarms: Iterable[Alarm]) -> list[Key]:
        """Remember what holds, and give out what was said to hold."""
        newest: dict[Key, Alarm] = {}
        for said in alarms:
            scope = order_scope(said.scope)
            alarm = said if scope == said.scope else msgspec.structs.replace(said, scope=scope)
            known = newest.get(alarm.key)
            if known is None or (known != alarm and _newness(alarm) > _newness(known)):
                newest[alarm.key] = alarm
        holding: list[Key] = []
        for key, alarm in newest.items():
            held = self._held.get(key)
            if not alarm.active:
                if self._held.pop(key, None) is not None:
                    self._changed = True
                continue
            holding.append(key)
            if held is None:
                first = msgspec.structs.replace(alarm, since=onset_of(alarm))
                self._held[key] = _Held(first, self._clock, self._clock)
                self._changed = True
                continue
            # When it began is said once: it may not come nearer from look to look.
            since = min(onset_of(alarm), onset_of(held.alarm))
            again = msgspec.structs.replace(alarm, since=since)
            if again != msgspec.structs.replace(held.alarm, at=again.at):
                held.alarm = again
                self._changed = True
            held.last = self._clock
        self._lapse()
        if len(self._held) > MAX_ALARMS:
            self.skipped += len(self._held) - MAX_ALARMS
            gravest = sorted(
                self._held, key=lambda key: (-weight_of(self._held[key].alarm.severity), key)
            )
            for key in gravest[MAX_ALARMS:]:
                del self._held[key]
            self._changed = True
            holding = [key for key in holding if key in self._held]
        return holding

    def _lapse(self) -> None:
        lapsed = [key for key, held in self._held.items() if self._clock - held.last > LAPSE]
        for key in lapsed:
            del self._held[key]
            self._changed = True

    def _part(self) -> Iterator[None]:
        """Tell troubles of what holds for long enough; shares are asked only where that changed."""
        hold = _microseconds(self._settings.hold_seconds)
        categories: dict[str, list[Alarm]] = {}
        for key in sorted(self._held):
            held = self._held[key]
            if key in self._owned or self._clock - held.first >= hold:
                categories.setdefault(held.alarm.category, []).append(held.alarm)
        parted: dict[str, tuple[list[Alarm], list[Trouble]]] = {}
        for category, alarms in categories.items():
            known = self._parted.get(category)
            if known is None or known[0] != alarms:
                known = alarms, part_category(alarms, self._shares)
                yield
            parted[category] = known
        self._parted = parted

    def _say_again(self, incident: _Incident, at: int) -> None:
        """What it is about holds as it did."""
        record = incident.record
        incident.held = self._clock
        last = max(record.last_seen_at, at)
        summary = _with_times(incident.words, _first_seen(record), last)
        incident.record = msgspec.structs.replace(record, last_seen_at=last, summary=summary)

    def _sort_in(self, troubles: Iterable[Trouble], at: int) -> None:
        """Put each trouble to its incident, or open one."""
        joined: dict[str, list[Trouble]] = {}
        behind: dict[str, list[Trouble]] = {}
        left = [trouble for trouble in troubles if not self._leave(trouble, behind)]
        for find, into in (
            (self._find_same, joined),
            (self._find_nested, joined),
            (self._find_moved, joined),
            (self._find_owner, behind),
            (self._find_related, joined),
        ):
            unfound: list[Trouble] = []
            for trouble in left:
                incident = find(trouble, joined)
                if incident is None:
                    unfound.append(trouble)
                else:
                    into.setdefault(incident.record.incident, []).append(trouble)
            left = unfound
        refused: set[tuple[str, Scope]] = set()
        for trouble in sorted(
            left, key=lambda one: (-_gravity(one.alarms), one.category, one.scope)
        ):
            if len(self._open) < self._max_open:
                incident = self._reopen(trouble) or self._create(trouble, at)
                joined[incident.record.incident] = [trouble]
            else:
                refused.add((trouble.category, trouble.scope))
        self.overflowed += len(refused - self._refused)
        self._refused = refused
        self._owned.clear()
        for name, incident in self._open.items():
            incident.alarms = []
            if name in joined or name in behind:
                self._hold(incident, joined.get(name, []), behind.get(name, []), at)
                self._owned.update((alarm.key, incident) for alarm in incident.alarms)
        self._unite(at)

    def _leave(self, trouble: Trouble, behind: dict[str, list[Trouble]]) -> bool:
        """Leave alarms with their incidents when none is new and shares say nothing of them.

        They hold by what was: detectors wait before they end one.
        """
        if trouble.known or not is_divided(trouble.category):
            return False
        owners = [self._owned.get(alarm.key) for alarm in trouble.alarms]
        names = [owner.record.incident for owner in owners if owner is not None]
        if len(names) < len(owners) or not self._open.keys() >= set(names):
            return False
        for name in sorted(set(names)):
            alarms = [alarm for alarm, of in zip(trouble.alarms, names, strict=True) if of == name]
            behind.setdefault(name, []).append(msgspec.structs.replace(trouble, alarms=alarms))
        return True

    def _find_same(self, trouble: Trouble, _: object) -> _Incident | None:
        return self._first(
            incident
            for incident in self._open.values()
            if incident.record.category == trouble.category and incident.scope == trouble.scope
        )

    def _find_nested(self, trouble: Trouble, _: object) -> _Incident | None:
        return self._first(
            incident
            for incident in self._open.values()
            if incident.record.category == trouble.category
            and is_nested(incident.scope, trouble.scope)
        )

    def _find_moved(self, trouble: Trouble, joined: dict[str, list[Trouble]]) -> _Incident | None:
        """One that more data puts down to other calls.

        What it was about is still in trouble, or most of this was of it.
        """
        about: set[Scope] = set()
        owners: Counter[str] = Counter()
        own = [alarm for alarm in trouble.alarms if alarm.category == trouble.category]
        for alarm in own:
            about.update(broader(alarm.scope), (alarm.scope,))
            owner = self._owned.get(alarm.key)
            if owner is not None:
                owners[owner.record.incident] += 1
        return self._first(
            incident
            for name, incident in self._open.items()
            if name not in joined
            and incident.record.category == trouble.category
            and (incident.scope in about or 2 * owners[name] > len(own))
        )

    def _find_owner(self, trouble: Trouble, _: object) -> _Incident | None:
        """One that all of it was of before: nothing new is in trouble, though shares tell less now."""
        owners = [self._owned.get(alarm.key) for alarm in trouble.alarms]
        known = [owner for owner in owners if owner and owner.record.incident in self._open]
        return self._first(known) if len(known) == len(owners) else None

    def _find_related(self, trouble: Trouble, _: object) -> _Incident | None:
        """One that this is the effect of, or the cause."""
        one, scope = trouble.category, trouble.scope
        related = []
        for incident in self._open.values():
            other = incident.record.category
            later = trouble.onset - _first_seen(incident.record)
            if explains(other, incident.scope, one, scope, later) or explains(
                one, scope, other, incident.scope, -later
            ):
                related.append(incident)
        return self._first(related)

    @staticmethod
    def _first(incidents: Iterable[_Incident]) -> _Incident | None:
        return min(
            incidents,
            key=lambda one: (
                rank_of(one.record.category),
                one.record.opened_at,
                one.record.incident,
            ),
            default=None,
        )

    def _reopen(self, trouble: Trouble) -> _Incident | None:
        merge = _microseconds(self._settings.merge_seconds)
        again = [
            incident
            for incident in self._ended.values()
            if incident.record.category == trouble.category
            and is_nested(incident.scope, trouble.scope)
            and self._clock - incident.ended < merge
        ]
        if not again:
            return None
        incident = max(again, key=lambda one: (one.ended, one.record.incident))
        name = incident.record.incident
        self._open[name] = self._ended.pop(name)
        incident.record = msgspec.structs.replace(incident.record, state="open", cleared_at=None)
        incident.opened = self._clock
        incident.reopened += 1
        incident.told = [trouble.scope]
        incident.notes.append("opened")
        return incident

    def _create(self, trouble: Trouble, at: int) -> _Incident:
        self._counter += 1
        name = f"{trouble.category}-{_time(at):%Y%m%dT%H%M%S.%f}Z-{self._counter}"
        incident = _Incident(
            record=IncidentRecord(
                incident=name,
                received_at=at,
                revision=-1,
                category=trouble.category,
                severity=TREND,
                opened_at=at,
                last_seen_at=at,
            ),
            scope=trouble.scope,
            opened=self._clock,
            held=self._clock,
            told=[trouble.scope],
            notes=["opened"],
        )
        self._open[name] = incident
        return incident

    def _hold(
        self,
        incident: _Incident,
        troubles: Sequence[Trouble],
        behind: Sequence[Trouble],
        at: int,
    ) -> None:
        """Let an incident be what its troubles say now, and those that were left behind if no others."""
        record = incident.record
        alarms = [alarm for trouble in (*troubles, *behind) for alarm in trouble.alarms]
        # Between two slices of a look an alarm may have ended.
        holding = [self._held[alarm.key] for alarm in alarms if alarm.key in self._held]
        incident.held = max([incident.held, *(held.last for held in holding)])
        said_now = incident.held == self._clock
        # Effects tell how bad it is, and not where: only itself and its causes do.
        leads = (
            [one for one in troubles if one.category == record.category]
            or [
                one for one in troubles if kind_of(record.category) in EFFECTS.get(one.category, ())
            ]
            or [one for one in behind if one.category == record.category and one.known]
        )
        if sum(len(one.alarms) for one in leads) < sum(len(one.alarms) for one in behind):
            leads = []  # the little that is known now says nothing of where the rest was
        changes: dict[str, Any] = {}
        if len(leads) == 1:
            (lead,) = leads
            incident.scope = lead.scope
            incident.dimension, incident.by_value = lead.dimension, dict(lead.by_value)
            incident.excess = lead.excess
            changes = {"explained": lead.explained, "upstream": lead.upstream}
        elif leads:
            together = frozenset.intersection(*(frozenset(one.scope) for one in leads))
            incident.scope = order_scope(together)
            incident.dimension, incident.by_value = "", {}
            incident.excess = sum(one.excess for one in leads)
            changes = {"explained": None, "upstream": any(one.upstream for one in leads)}
        incident.alarms = sorted(alarms, key=lambda alarm: _order_of(alarm, incident))
        severity = max(
            (record.severity, *(alarm.severity for alarm in alarms)),
            key=lambda word: (weight_of(word), word),
        )
        if weight_of(severity) > weight_of(record.severity):
            changes["severity"] = severity
            if "opened" not in incident.notes:
                changes["escalated_at"] = at
                incident.notes.append("escalated")
        incident.words = _words(incident)
        first = [onset_of(alarm) for alarm in alarms]
        if record.first_seen_at is not None:
            first.append(record.first_seen_at)
        last_seen_at = max(record.last_seen_at, at) if said_now else record.last_seen_at
        incident.record = msgspec.structs.replace(
            record,
            **changes,
            scope=scope_text(incident.scope),
            **_dimensions(incident.scope),
            first_seen_at=min(first),
            last_seen_at=last_seen_at,
            sources=tuple(sorted({*record.sources, *(alarm.source for alarm in alarms)})),
            summary=_with_times(incident.words, min(first), last_seen_at),
            codes=_codes(incident.alarms) or record.codes,
            call_ids=_call_ids(incident.alarms) or record.call_ids,
        )
        self._tell_growth(incident, at)

    def _tell_growth(self, incident: _Incident, at: int) -> None:
        """Tell of other calls than it was told of, when they are in trouble since later and more fail."""
        told, opened_at = incident.told, incident.record.opened_at
        if self._clock - incident.opened < GROWN:
            incident.told_excess = max(incident.told_excess, incident.excess)
            if len(told) < MAX_TOLD and incident.scope not in told:
                told.append(incident.scope)
            return
        if len(told) >= MAX_TOLD or any(is_inside(incident.scope, scope) for scope in told):
            return
        if incident.excess < TWICE * incident.told_excess or not any(
            onset_of(alarm) - opened_at >= GROWN
            and not any(is_inside(alarm.scope, scope) for scope in told)
            for alarm in incident.alarms
        ):
            return
        told.append(incident.scope)
        incident.told_excess = incident.excess
        if not incident.notes:
            incident.record = msgspec.structs.replace(incident.record, escalated_at=at)
            incident.notes.append("escalated")

    def _unite(self, at: int) -> None:
        """Let those be one incident that came to be of the same calls."""
        scopes: dict[tuple[str, Scope], _Incident] = {}
        order = sorted(
            self._open.values(),
            key=lambda one: (len(one.scope), one.record.opened_at, one.record.incident),
        )
        for incident in order:
            category = incident.record.category
            over = next(
                (
                    scopes[category, scope]
                    for scope in (*broader(incident.scope), incident.scope)
                    if (category, scope) in scopes
                ),
                None,
            )
            if over is None:
                scopes[category, incident.scope] = incident
                continue
            older, newer = sorted(
                (over, incident), key=lambda one: (one.record.opened_at, one.record.incident)
            )
            self._absorb(older, newer, over.scope, at)
            self._owned.update((alarm.key, older) for alarm in older.alarms)
            scopes[category, over.scope] = older

    def _absorb(self, older: _Incident, newer: _Incident, scope: Scope, at: int) -> None:
        one, other = older.record, newer.record
        severity = max(one.severity, other.severity, key=weight_of)
        if severity != one.severity and "opened" not in older.notes:
            older.notes.append("escalated")
            one = msgspec.structs.replace(one, escalated_at=at)
        if newer.scope == scope != older.scope:
            older.words, older.dimension = newer.words, newer.dimension
            older.by_value, older.excess = newer.by_value, newer.excess
            one = msgspec.structs.replace(one, explained=other.explained, upstream=other.upstream)
        older.scope = scope
        older.held = max(older.held, newer.held)
        older.alarms = sorted(
            (*older.alarms, *newer.alarms), key=lambda alarm: _order_of(alarm, older)
        )
        first, last = (
            min(_first_seen(one), _first_seen(other)),
            max(one.last_seen_at, other.last_seen_at),
        )
        older.record = msgspec.structs.replace(
            one,
            severity=severity,
            scope=scope_text(scope),
            **_dimensions(scope),
            first_seen_at=first,
            last_seen_at=last,
            sources=tuple(sorted({*one.sources, *other.sources})),
            summary=_with_times(older.words, first, last),
        )
        if other.revision < 0:
            # Nobody was told of it.
            del self._open[other.incident]
        else:
            newer.words = f"is part of {one.incident}"
            newer.record = msgspec.structs.replace(other, summary=newer.words)
            self._end(newer, at)
            self._write(newer, at)
            del self._ended[other.incident]
        self._tell_growth(older, at)

    def _look_after(self, at: int) -> None:
        """Clear what is over, forget what cannot come back, and write what changed."""
        for incident in list(self._open.values()):
            quiet = _microseconds(self._settings.clear_seconds) * min(
                2**incident.reopened, LONGEST_DOUBLING
            )
            held = any(alarm.key in self._held for alarm in incident.alarms)
            if not held and self._clock - incident.held >= quiet:
                self._end(incident, at)
            if self._must_write(incident):
                self._write(incident, at)
        merge = _microseconds(self._settings.merge_seconds)
        while self._ended:
            name, oldest = next(iter(self._ended.items()))
            if len(self._ended) <= self._max_open and self._clock - oldest.ended < merge:
                break
            del self._ended[name]

    def _end(self, incident: _Incident, at: int) -> None:
        record = incident.record
        incident.record = msgspec.structs.replace(
            record, state="cleared", cleared_at=max(at, record.opened_at)
        )
        incident.ended = self._clock
        incident.alarms = []
        incident.notes.append("cleared")
        self._ended[record.incident] = self._open.pop(record.incident)

    def _must_write(self, incident: _Incident) -> bool:
        if incident.notes:
            return True
        since = self._clock - incident.written
        placed = incident.scope, incident.record.upstream
        if placed != (incident.written_scope, incident.written_upstream):
            return since >= incident.revise
        return incident.words != incident.written_words and since >= incident.refresh

    def _write(self, incident: _Incident, at: int) -> None:
        """One row, one event for each thing that happened, and a notice for each that is told."""
        happened = list(incident.notes)
        if incident.written_scope != incident.scope and "opened" not in happened:
            happened.append("attributed")
        elif not happened:
            incident.refresh = min(2 * incident.refresh, LONGEST_REFRESH)
        if happened == ["attributed"]:
            incident.revise = min(2 * incident.revise, LONGEST_REFRESH)
        incident.notes = []
        incident.written = self._clock
        incident.written_scope, incident.written_words = incident.scope, incident.words
        incident.written_upstream = incident.record.upstream
        record = incident.record = msgspec.structs.replace(
            incident.record,
            revision=incident.record.revision + 1,
            evidence=_evidence(incident) or incident.record.evidence,
        )
        self._rows.append(record)
        for what in sorted(happened, key=_ORDER.index):
            self._rows.append(_event(record, what, incident.reopened, at))
            if what != "attributed":
                self._notices.append(Notice(what=what, incident=record, at=at))
        for waiting in (self._rows, self._notices):
            if len(waiting) > MAX_WAITING:
                self.lost += len(waiting) - MAX_WAITING
                del waiting[: len(waiting) - MAX_WAITING]


_ORDER: Final = ("opened", "escalated", "attributed", "cleared")


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _time(at: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at)


def _first_seen(record: IncidentRecord) -> int:
    return record.opened_at if record.first_seen_at is None else record.first_seen_at


def _gravity(alarms: Iterable[Alarm]) -> int:
    return max(weight_of(alarm.severity) for alarm in alarms)


def _newness(alarm: Alarm) -> tuple[Any, ...]:
    """Which of two alarms of one key in one look counts, whatever their order."""
    return alarm.at, alarm.active, weight_of(alarm.severity), alarm.count or 0, repr(alarm)


def _order_of(alarm: Alarm, incident: _Incident) -> tuple[Any, ...]:
    """The alarm that says most of an incident comes first.

    The gravest; of these one of its scope, or else that of the fewest calls its scope is a part of.
    """
    around = is_inside(incident.scope, alarm.scope)
    return (
        -weight_of(alarm.severity),
        alarm.scope != incident.scope,
        alarm.category != incident.record.category,
        not is_compatible(alarm.scope, incident.scope),
        not around,
        (alarm.total or 0) if around else 0,
        -(alarm.count or 0),
        alarm.key,
    )


def _dimensions(scope: Scope) -> dict[str, str | None]:
    """The columns of a scope."""
    said = dict(scope)
    return {name: said.get(name) for name in DIMENSIONS if name != "codec"}


def _scope_of(record: IncidentRecord) -> Scope:
    """What `scope_text` and the columns of a row were made of."""
    said = {name: getattr(record, name) for name in DIMENSIONS if name != "codec"}
    before, found, codec = record.scope.rpartition("codec=")
    if found and (not before or before.endswith(",")):
        said["codec"] = codec
    return order_scope((name, value) for name, value in said.items() if value is not None)


def _words(incident: _Incident) -> str:
    """The summary of the alarm that says most, whose it is, by which values, and what else holds."""
    first = incident.alarms[0]
    whose = scope_text(first.scope)
    said = first.summary or first.category
    parts = [said if said.startswith(whose) else f"{whose}: {said}"]
    split = ", ".join(f"{value} {excess}" for value, excess in incident.by_value.items())
    if split and split not in said:
        name = incident.dimension
        parts.append(f"{_PLURALS.get(name, f'{name}s')} {split}")
    if incident.record.upstream:
        parts.append("several tenants")
    others = sorted({alarm.category for alarm in incident.alarms} - {first.category})
    if others:
        parts.append(f"also {', '.join(others)}")
    return "; ".join(parts)[:MAX_SUMMARY]


def _with_times(words: str, first: int, last: int) -> str:
    begin, end = _time(first), _time(last)
    until = f"{end:%H:%M}" if begin.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"{words}; {begin:%Y-%m-%d %H:%M} to {until} UTC"


def _codes(alarms: Sequence[Alarm]) -> tuple[str, ...]:
    for alarm in alarms:
        if alarm.codes:
            return tuple(f"{code} {more:+d}" for code, more in alarm.codes[:MAX_EXAMPLES])
    return ()


def _call_ids(alarms: Sequence[Alarm]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for alarm in alarms:
        for call_id in alarm.call_ids[:MAX_EXAMPLES]:
            found.setdefault(call_id)
        if len(found) >= MAX_EXAMPLES:
            break
    return tuple(found)[:MAX_EXAMPLES]


def _evidence(incident: _Incident) -> str | None:
    """What is known of an incident as JSON; as much as there is room for. None: nothing holds."""
    if not incident.alarms:
        return None
    listed = [_figures(alarm) for alarm in incident.alarms[:MAX_LISTED]]
    content: dict[str, Any] = {
        "alarms": listed,
        "alarms_total": len(incident.alarms),
        "by_value": {incident.dimension: incident.by_value} if incident.by_value else {},
        "details": incident.alarms[0].evidence,
    }
    while True:
        try:
            encoded = msgspec.json.encode(content)
        except (TypeError, ValueError, OverflowError, RecursionError):
            # Only the details can hold what is no JSON, such as half of a surrogate pair.
            encoded = b""
        if encoded and len(encoded) <= MAX_EVIDENCE:
            return encoded.decode()
        if content["details"]:
            content["details"] = {}
        elif listed:
            del listed[len(listed) // 2 :]
        else:
            return None


def _figures(alarm: Alarm) -> dict[str, Any]:
    said = {
        "source": alarm.source,
        "category": alarm.category,
        "scope": scope_text(alarm.scope),
        "severity": alarm.severity,
        "since": alarm.since,
        "value": alarm.value,
        "expected": alarm.expected,
        "count": alarm.count,
        "total": alarm.total,
        "probability": alarm.probability,
        "z": alarm.z,
    }
    return {name: value for name, value in said.items() if value is not None}


def _event(record: IncidentRecord, what: str, reopened: int, at: int) -> EventRecord:
    previous = {"opened": "cleared" if reopened else "", "attributed": "open", "escalated": "open"}
    return EventRecord(
        received_at=at,
        event=f"{record.incident}/{record.revision}/{what}",
        at=at,
        kind="incident",
        subject=record.incident,
        state=what,
        previous=previous.get(what, "open"),
        severity=record.severity,
        scope=record.scope,
        tenant=record.tenant,
        trunk=record.trunk,
        carrier=record.carrier,
        direction=record.direction,
        region=record.region,
        agent=record.agent,
        text=record.summary,
    )
