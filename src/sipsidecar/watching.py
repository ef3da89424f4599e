"""The running watch: figures per minute, what is not normal in them, incidents, and who is told."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from sipsidecar import __version__
from sipsidecar.batch import StoreError
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    MediaRecord,
    PingRecord,
    RegistrationRecord,
    Setup,
)
from sipsidecar.config import Config
from sipsidecar.edges.alerting import Alerter
from sipsidecar.edges.http.watch import Marker, Outcome
from sipsidecar.edges.kamailio.dispatching import Dispatching
from sipsidecar.edges.otel import Exporter
from sipsidecar.edges.pinger import Pingers
from sipsidecar.edges.resolving import Resolving
from sipsidecar.guarding import Guard
from sipsidecar.pipeline import Output, Pipeline
from sipsidecar.signals.alarms import (
    CATEGORIES,
    DIMENSIONS,
    Alarm,
    EventRecord,
    IncidentRecord,
    OutcomeRecord,
    Scope,
    scope_text,
)
from sipsidecar.signals.baseline import Baseline, BaselineHour
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import StateRecord
from sipsidecar.signals.detectors import Detectors
from sipsidecar.signals.examples import Examples
from sipsidecar.signals.incident import Incidents, IncidentSettings
from sipsidecar.signals.minutes import CodeMinute, KpiMinute, Minutes
from sipsidecar.signals.ratios import kpi_slices, ratios
from sipsidecar.signals.snapshot import KpiFigures, TrunkFigures, WatchFigures
from sipsidecar.signals.traffic import Traffic
from sipsidecar.signals.trunk import PeerState, Trunks

EVERY = 1.0
"""Seconds between two looks at trunks and incidents."""
MINUTE_US = 60_000_000
EXAMPLES_US = 900_000_000
"""How far back calls are looked for that an alarm is about."""
STALLED = 10.0
"""Seconds between two looks from which on the minute counts as not whole: it teaches nothing."""
SEEN_BY = {"trunk-down": ("4xx", "5xx")}
"""Failed setups that trouble of another category is seen by: what is silent is a 408."""
MOST_SOUGHT = 5
"""Alarms of trunks whose calls are looked for in one look: each goes through all that are kept."""
MAX_EVENTS = 10_000
"""Of the timeline in memory; all of them are in the database."""
FRESH = 5.0
"""Seconds that live figures are shown before they are reckoned anew."""
ASKED = 300.0
"""Seconds after somebody asked for them that they are reckoned on: whoever scrapes comes again."""
LOADED_AT_ONCE = 500
"""Hours of an earlier life that are taken up in one turn: there may be hundreds of thousands."""
LOOKED_BACK = 60
"""Minutes that are looked at when nobody looked for longer."""
COUNTS = (
    "attempts", "redirected", "unknown", "seizures", "answered", "effective", "own_refusals",
    "overflowed", "ended", "completed", "dropped", "short_calls", "failovers",
)  # fmt: skip
"""Of live figures, what the shares are of."""
MAX_REBUILT = 100_000
"""Calls of an earlier life whose end was counted; of more one may be counted again."""
RESTORE_EVERY = 60.0
"""Seconds between two tries to read what an earlier life left."""
MAX_PENDING = 50_000
"""Rows that wait to be stored, when nothing takes them."""

log = logging.getLogger("sipsidecar.watch")

Row = KpiMinute | CodeMinute | BaselineHour | IncidentRecord | EventRecord | OutcomeRecord


class History(Protocol):
    """What an earlier life left in the database."""

    async def baseline(self) -> list[BaselineHour]:
        """Hours of the last four weeks."""

    async def incidents(self) -> list[IncidentRecord]:
        """Those that were left open."""

    async def events(self, limit: int) -> list[EventRecord]:
        """The newest of the timeline, newest first."""


class Shown(Protocol):
    """A switch whose dialplan may read which trunks are down."""

    def show_down(self, trunks: Iterable[str]) -> None:
        """These are, from now on."""


class Watching:
    """The watch in one sidecar. `switches` are those FreeSWITCHes that are told things.

    `elsewhere` tells whether admission sent a call to a fallback route: what became of it there says
    nothing of the trunk that it was kept from. `history` is asked once, when the database is there.
    """

    def __init__(
        self,
        config: Config,
        cohorts: Cohorts,
        pipeline: Pipeline,
        history: History,
        *,
        elsewhere: Callable[[str], bool] = lambda _: False,
        switches: Sequence[Shown] = (),
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._cohorts = cohorts
        self._pipeline = pipeline
        self._history = history
        self._elsewhere = elsewhere
        self._wall_us = wall_us
        names = {number: name for name, number in config.hep.agents.items()}
        self._minutes = Minutes(config.kpi.max_cohorts)
        self._baseline = Baseline()
        self._detectors = Detectors(config.detect.settings, self._baseline)
        self._examples = Examples()
        self._traffic = Traffic(names)
        self._trunks = Trunks(config.trunks.peers, config.trunks.certificate_days)
        self._incidents = Incidents(
            IncidentSettings(
                clear_seconds=config.alerts.clear_seconds,
                merge_seconds=config.alerts.merge_seconds,
            ),
            shares=self._detectors.shares,
        )
        alerts = config.alerts
        self._alerter = Alerter(
            alerts.receivers,
            alerts.secrets,
            alerts.link,
            source=config.node.name or f"sipsidecar-{config.node.id}",
        )
        self._exporter = Exporter(config.otel) if config.otel.endpoint else None
        peers = config.trunks.peers
        self._pingers = Pingers(peers, self._trunks, agent=f"sipsidecar/{__version__}")
        self._resolving = Resolving(
            peers, config.trunks.resolvers, config.trunks.dns_seconds, self._trunks.receive_dns
        )
        self._dispatchings = [
            Dispatching(name, address, lease_seconds=config.trunks.lease_seconds)
            for name, address in config.trunks.kamailio.items()
        ]
        self._worst: dict[tuple[str, str, Scope], tuple[float, tuple[str, ...]]] = {}
        """Of alarms that held in the last look: how far from normal they were at most, and calls then."""
        self._calls_of: dict[tuple[str, str, Scope], tuple[str, ...]] = {}
        """Calls that alarms of trunks are about, while they hold."""
        self._switches = tuple(switches)
        self._rebuilt: set[tuple[str, str]] = set()
        self._pending: list[Row] = []
        self._events: deque[EventRecord] = deque(maxlen=MAX_EVENTS)
        self._ended: deque[IncidentRecord] = deque(maxlen=200)
        self._judging = asyncio.Lock()
        self._named = 0
        self._began_us = wall_us()
        self._last_us = 0
        self._next_minute: int | None = None
        self._broken: set[int] = set()
        """Minutes of which a part was missed."""
        self._shown: KpiFigures | None = None
        self._shown_at = self._asked_at = 0.0
        self._counts: Counter[str] = Counter()
        self._guard = Guard("watch", log)
        self.rows_lost = 0

    @property
    def faults(self) -> int:
        """Bugs here that cost something: a part's beginning again, or a turn."""
        return self._guard.faults

    async def close(self) -> None:
        """Let go of what others hold for us, and of connections."""
        self._guard.ending = True
        closing = [self._alerter.close()]
        if self._exporter is not None:
            closing.append(self._exporter.close())
        await asyncio.gather(*closing)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Begin to look and to tell: no bug in that ends these tasks."""
        # What an earlier life said of trunks holds no more: trunk_health leaves it out by this.
        self.happened("sidecar", self._config.node.name, "started")
        parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("figures", self._work),
            ("what was known", self._restore),
            ("telling", self._alerter.run),
            ("trunks", self._pingers.run),
            ("names of trunks", self._resolving.run),
        ]
        if self._exporter is not None:
            parts.append(("spans", self._exporter.run))
        parts += [(f"dispatcher of {one.name}", one.run) for one in self._dispatchings]
        return [asyncio.create_task(self._guard.keep(what, run), name=what) for what, run in parts]

    # -- what happens

    def after_turn(self, outputs: Sequence[Output], setups: Sequence[Setup]) -> list[Row]:
        """Take in what the pipeline learned; returns rows to store."""
        if outputs or setups:
            try:
                self._take_in(outputs, setups, self._wall_us())
            except Exception as error:  # noqa: BLE001 -- a bug costs a turn of figures, not of capture
                self._guard.fault("a turn", error)
        rows, self._pending = self._pending, []
        return rows

    def _take_in(self, outputs: Sequence[Output], setups: Sequence[Setup], at: int) -> None:
        minutes, elsewhere = self._minutes, self._elsewhere
        for setup in setups:
            if elsewhere(setup.call.call_id):
                minutes.receive_overflow(setup.call, at)
            else:
                minutes.receive_setup(setup, at)
                if self._config.detect.enabled:
                    self._examples.receive_setup(setup, at)
                    self._traffic.receive_setup(setup, at)
        ended: dict[tuple[str, str], CallRecord] = {}
        for record in outputs:
            if self._exporter is not None and isinstance(record, CallRecord | AttemptRecord):
                self._exporter.add(record)
            if isinstance(record, CallRecord):
                if not self._is_first(record) or elsewhere(record.call_id):
                    continue
                ended[record.call_id, record.from_tag] = record
                minutes.receive_call(record, at)
                if self._config.detect.enabled:
                    self._traffic.receive_call(record, at)
            elif isinstance(record, RegistrationRecord):
                minutes.receive_registration(record, at)
            elif isinstance(record, PingRecord):
                self._trunks.receive_ping(record, at)
        for record in outputs:
            if isinstance(record, MediaRecord) and not (
                record.revision or elsewhere(record.call_id)
            ):
                call = ended.get((record.call_id, record.from_tag))
                minutes.receive_media(record, call, at)

    def _is_first(self, record: CallRecord) -> bool:
        """Whether this life has said nothing of a call yet.

        One that was open at a restart has had a record, which spoke of its beginning alone.
        """
        if "rebuilt" not in record.flags:
            return not record.revision
        key = (record.call_id, record.from_tag)
        if key in self._rebuilt or not record.ended:
            return False
        if len(self._rebuilt) >= MAX_REBUILT:
            self._rebuilt.clear()
        self._rebuilt.add(key)
        return True

    async def _work(self) -> None:
        """Trunks and incidents each second, figures and detectors each minute."""
        due = self._loop.time()
        while True:
            began = self._loop.time()
            at = self._wall_us()
            self._note_stall(at)
            self._incidents.receive(self._alarms_of_trunks(at), at)
            self._show_down()
            await self._close_minutes(at)
            self._incidents.handle_timer(at)
            self._settle()
            await self._reckon()
            due = max(due + EVERY, began)
            await asyncio.sleep(max(due - self._loop.time(), 0))

    def _show_down(self) -> None:
        """Have switches know which trunks are down now."""
        out, down = self._trunks.out(), self._trunks.down_trunks()
        for kamailio in self._dispatchings:
            kamailio.show(out)
        for switch in self._switches:
            switch.show_down(down)

    def _note_stall(self, at: int) -> None:
        """Mark the minutes of which we slept through a part, and those of a clock that was set."""
        last, self._last_us = self._last_us or at, at
        if not 0 <= at - last <= STALLED * 1_000_000:
            this = at // MINUTE_US
            first, final = sorted((last // MINUTE_US, this))
            # After a step of days only those near now can still be looked at.
            self._broken.update(range(max(first, this - LOOKED_BACK), min(final, this + 1440) + 1))
            if at < last:
                self._next_minute = None

    async def _close_minutes(self, at: int) -> None:
        """Store the figures of minutes that are over, and look what is not normal in them."""
        this = at // MINUTE_US
        if self._next_minute is None:  # that of the start is not whole
            self._next_minute = this + 1
        if this <= self._next_minute:
            return
        # First of all: what fails here would else find these minutes empty at the next try.
        since, self._next_minute = self._next_minute, this
        kpis: list[KpiMinute] = []
        codes: list[CodeMinute] = []
        for some_kpis, some_codes in self._minutes.closing(at):
            kpis += some_kpis
            codes += some_codes
            self._store([*some_kpis, *some_codes])
            await asyncio.sleep(0)
        if self._config.detect.enabled:
            by_minute: dict[int, tuple[list[KpiMinute], list[CodeMinute]]] = {}
            for kpi in kpis:
                by_minute.setdefault(kpi.minute_at, ([], []))[0].append(kpi)
            for code in codes:
                by_minute.setdefault(code.minute_at, ([], []))[1].append(code)
            found: list[Alarm] = []
            async with self._judging:
                for minute in range(max(since, this - LOOKED_BACK), this):
                    if minute not in self._broken:
                        some = by_minute.get(minute * MINUTE_US, ([], []))
                        found += await self._detect(minute, *some)
            for trunk, addresses in self._trunks.addresses().items():
                self._traffic.receive_addresses(trunk, addresses, at)
            agents = self._pipeline.snapshot(self._loop.time()).agents
            worst, self._worst = self._worst, {}
            for place, alarm in enumerate(found):
                found[place] = self._with_calls(alarm, worst.get(alarm.key))
                await asyncio.sleep(0)
            for alarms in self._traffic.looks(at, agents):
                found += alarms
                await asyncio.sleep(0)
            found += self._alarms_of_trunks(at)
            for _ in self._incidents.look(found, at):
                await asyncio.sleep(0)
            for incident in self._incidents.open():  # nothing of it may become normal
                self._detectors.exclude(scope_of(incident), incident.opened_at, at)
            self._store(self._baseline.records(at))
        self._broken = {minute for minute in self._broken if minute >= this}

    async def _detect(
        self, minute: int, kpis: Sequence[KpiMinute], codes: Sequence[CodeMinute]
    ) -> list[Alarm]:
        """Every detector over one whole minute, in slices: capture has the loop between two."""
        found: list[Alarm] = []
        for alarms in self._detectors.look(minute * MINUTE_US, kpis, codes):
            found += alarms
            await asyncio.sleep(0)
        return found

    def _with_calls(self, alarm: Alarm, worst: tuple[float, tuple[str, ...]] | None) -> Alarm:
        """The alarm with calls that it is about: detectors see numbers alone.

        Those of its worst time: while it fades, what fails again is what always does.
        """
        if alarm.call_ids or not alarm.active:
            return alarm
        value, expected = alarm.value or 0.0, alarm.expected or 0.0
        apart = abs(value - expected)
        if worst is None or apart >= worst[0] or not worst[1]:
            worst = apart, self._calls_with_most(alarm)
        self._worst[alarm.key] = worst
        return msgspec.structs.replace(alarm, call_ids=worst[1]) if worst[1] else alarm

    def _calls_with_most(self, alarm: Alarm) -> tuple[str, ...]:
        """Calls of an alarm; where it is of all failures, of the code that is there too often."""
        since = min(alarm.since or alarm.at, alarm.at - EXAMPLES_US)
        kinds = [alarm.category]
        if alarm.category not in CATEGORIES:
            codes = [str(code) for code, _ in alarm.codes]
            kinds = [one if one in CATEGORIES else f"{one[0]}xx" for one in codes] + kinds
        for kind in dict.fromkeys(kinds):
            found = self._examples.find(kind, alarm.scope, since)
            if found:
                return found
        return ()

    def _alarms_of_trunks(self, at: int) -> list[Alarm]:
        """What OPTIONS, certificates and DNS say, a trunk that is down with calls that it failed."""
        alarms, before = self._trunks.alarms(at), self._calls_of
        self._calls_of, sought = {}, 0
        for place, alarm in enumerate(alarms):
            if not alarm.active or alarm.call_ids or alarm.category not in SEEN_BY:
                continue
            found = before.get(alarm.key, ())
            if not found and sought < MOST_SOUGHT:
                sought += 1
                found = self._failed_since(alarm)
            if found:
                self._calls_of[alarm.key] = found
                alarms[place] = msgspec.structs.replace(alarm, call_ids=found)
        return alarms

    def _failed_since(self, alarm: Alarm) -> tuple[str, ...]:
        """Calls that failed at a trunk since it fell silent."""
        since = alarm.at if alarm.since is None else alarm.since
        for category in SEEN_BY[alarm.category]:
            found = self._examples.find(category, alarm.scope, since)
            if found:
                return found
        return ()

    def _settle(self) -> None:
        """Store, show and tell what became of incidents and trunks."""
        for row in (*self._incidents.records(), *self._trunks.records()):
            if isinstance(row, EventRecord):
                self._note(row)
            else:
                self._store([row])
                if row.state == "cleared":
                    self._ended.append(row)
        notices = self._incidents.notices()
        for notice in notices:
            incident = notice.incident
            level = logging.INFO if notice.what == "cleared" else logging.WARNING
            log.log(
                level, "incident %s %s (%s, %s): %s", incident.incident, notice.what,
                incident.severity, incident.scope, incident.summary,
                extra={"kind": incident.category},
            )  # fmt: skip
        if notices:
            self._alerter.send(notices)

    def _note(self, event: EventRecord) -> None:
        self._counts[event.kind] += 1
        self._events.append(event)
        self._store([event])

    def _store(self, rows: Sequence[Row]) -> None:
        room = MAX_PENDING - len(self._pending)
        self._pending += rows[:room]
        self.rows_lost += max(len(rows) - room, 0)

    async def _restore(self) -> None:
        """Take up what an earlier life learned and left open.

        A database that was away has rows of this life, too, which are known here, and hours add up.
        """
        while True:
            try:
                hours = await self._history.baseline()
                left = await self._history.incidents()
                known = await self._history.events(MAX_EVENTS)
                break
            except StoreError as error:  # it went away again: no bug
                log.warning("what an earlier life left cannot be read yet: %s", error)
                await asyncio.sleep(RESTORE_EVERY)
        # All is there now: nothing of it is taken up a second time.
        earlier_hours = [hour for hour in hours if hour.received_at < self._began_us]
        async with self._judging:  # by all of it or by nothing
            for begin in range(0, len(earlier_hours), LOADED_AT_ONCE):
                self._baseline.load(earlier_hours[begin : begin + LOADED_AT_ONCE])
                await asyncio.sleep(0)
        mine = {one.incident for one in (*self._incidents.open(), *self._ended)}
        left = [one for one in left if one.incident not in mine]
        self._incidents.restore(left)
        self._alerter.restore(left)
        names = {one.event for one in self._events}
        earlier = [one for one in reversed(known) if one.event not in names]
        now = list(self._events)
        self._events.clear()
        self._events.extend([*earlier, *now])
        await asyncio.Event().wait()  # its end is no failure

    def _name(self, kind: str, at: int) -> str:
        self._named += 1
        return f"{kind}-{at}-{self._named}"

    def happened(self, kind: str, subject: str, state: str, text: str = "") -> None:
        """Put something on the timeline: kind is switch, agent or sidecar."""
        at = self._wall_us()
        name = self._name(kind, at)
        self._note(
            EventRecord(
                received_at=at,
                event=name,
                at=at,
                kind=kind,
                subject=subject,
                state=state,
                text=text,
            )
        )

    def decided(self, rows: Sequence[Any]) -> None:
        """Admission's changes of state: they have rows of their own, and are on the timeline."""
        for row in rows:
            if isinstance(row, StateRecord):
                self._counts["admission"] += 1
                self._events.append(_event_of(row))

    # -- who asks

    def timeline(
        self, since: int, until: int, limit: int, kind: str | None, where: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Events, newest first; those in memory."""
        found = [
            one
            for one in reversed(self._events)
            if since <= one.at <= until
            and kind in (None, one.kind)
            and all(getattr(one, name) == value for name, value in where.items())
        ]
        found.sort(key=lambda one: one.at, reverse=True)
        return [msgspec.to_builtins(one) for one in found[:limit]]

    def incidents(self, *, every: bool) -> list[dict[str, Any]]:
        """Open incidents, the gravest first; with `every` those that ended lately, too."""
        rows = {row.incident: row for row in self._incidents.open()}
        if every:
            for row in reversed(self._ended):  # one that was reopened ended more than once
                rows.setdefault(row.incident, row)
        return [_shown_incident(row) for row in rows.values()]

    def trunks(self) -> list[dict[str, Any]]:
        """Every peer that is looked after: what is known of it, and how it is asked."""
        lines = {one.name: msgspec.to_builtins(one) for one in self._pingers.status()}
        return [
            msgspec.to_builtins(one) | {"probing": lines.get(one.name)}
            for one in self._trunks.states(self._wall_us())
        ]

    def receivers(self) -> list[dict[str, Any]]:
        """How each receiver of alerts is reached."""
        return self._alerter.status()

    def kpi(self, by: str | None, where: Mapping[str, str], minutes: int) -> list[dict[str, Any]]:
        """Figures of the last minutes of the cohorts of `where`; with `by` one of each value."""
        at = self._wall_us()
        source = "trunk" if {by, *where} & {"trunk", "carrier"} else "call"
        scope = tuple((name, where[name]) for name in DIMENSIONS if name in where)
        found: list[tuple[dict[str, str], KpiMinute, list[CodeMinute]]]
        if by is None:
            found = [({}, *self._minutes.live(source, scope, at, minutes))]
        else:
            by_value = self._minutes.live_by(source, by, scope, at, minutes)
            found = [({by: value}, row, codes) for value, row, codes in by_value]
        since = self._began_us if self._began_us <= at else 0  # before, nobody knows
        return [
            {
                **where,
                **pair,
                "source": source,
                "since": max(row.minute_at, since),
                **{name: getattr(row, name) for name in COUNTS},
                **msgspec.to_builtins(ratios(row)),
                "codes": {one.code: one.count for one in codes if one.origin != "admission"},
            }
            for pair, row, codes in found
        ]

    def figures(self) -> WatchFigures:
        """What metrics show; live figures are some seconds old. A bug here ends no health check."""
        try:
            return self._figures()
        except Exception as error:  # noqa: BLE001 -- as above
            self._guard.fault("figures to show", error)
            return WatchFigures(faults=self.faults)

    def _figures(self) -> WatchFigures:
        self._asked_at = now = self._loop.time()
        if self._shown is None or now - self._shown_at >= 3 * FRESH:
            for made in self._slices():
                self._shown, self._shown_at = made or self._shown, now
        assert self._shown is not None
        opened = Counter((one.category, one.severity) for one in self._incidents.open())
        at = self._wall_us()
        return WatchFigures(
            kpi=msgspec.structs.replace(self._shown, limits=self._shown.limits | self._limits()),
            trunks=tuple(_trunk_figures(one, at) for one in self._trunks.states(at)),
            incidents=dict(opened),
            receivers=dict(self._alerter.counters),
            events=dict(self._counts),
            faults=self.faults + self._pingers.faults + self._resolving.faults,
            folded=sum(self._traffic.folded.values()) + self._detectors.folded,
        )

    def _limits(self) -> dict[str, int]:
        """What was left out here, besides calls of figures."""
        spans = self._exporter.counters if self._exporter is not None else Counter()
        return {
            "rows": self.rows_lost,
            "incidents": self._incidents.overflowed,
            "alarms": self._incidents.skipped,
            "notices": self._incidents.lost,
            "examples": self._examples.forgotten,
            "trunk-events": self._trunks.records_lost,
            "spans": spans["dropped"] + spans["failed"],
        }

    def _slices(self) -> Iterator[KpiFigures | None]:
        """Live figures, reckoned some values at a time."""
        at = self._wall_us()
        values = {
            name: self._cohorts.values(name) if self._cohorts else ()
            for name in DIMENSIONS
            if name != "codec"
        }
        values["codec"] = tuple(self._minutes.values("call", "codec", at))
        return kpi_slices(self._minutes, values, at)

    async def _reckon(self) -> None:
        """Keep live figures fresh for who comes again: of many cohorts they take too long for a turn."""
        now = self._loop.time()
        if self._shown is None or now - self._asked_at >= ASKED or now - self._shown_at < FRESH:
            return
        for made in self._slices():
            if made is not None:
                self._shown, self._shown_at = made, now
            await asyncio.sleep(0)

    def reload(self, config: Config) -> None:
        """Tell others of incidents from now on."""
        self._config = config
        alerts = config.alerts
        self._alerter.reload(alerts.receivers, alerts.secrets, alerts.link)

    def drain(self) -> list[Row]:
        """All that is not stored yet, the open minute too: the process ends."""
        rows: list[Row] = []
        try:
            self._settle()
            at = self._wall_us()
            kpis, codes = self._minutes.drain(at)
            rows += [*kpis, *codes]
            rows += self._baseline.records(at, all_=True)
        except Exception as error:  # noqa: BLE001 -- a bug must not keep others' rows from the disk
            self._guard.fault("the end", error)
        self.happened("sidecar", self._config.node.name, "stopped")
        pending, self._pending = self._pending, []
        return [*pending, *rows]

    def mark(self, marker: Marker, at: int) -> str:
        """Put a marker on the timeline."""
        now = self._wall_us()
        name = self._name("marker", now)
        fields = {one: getattr(marker, one) for one in DIMENSIONS if one != "codec"}
        scope = tuple((one, value) for one, value in fields.items() if value is not None)
        self._note(
            EventRecord(
                received_at=now,
                event=name,
                at=at,
                kind="marker",
                subject=marker.kind,
                scope=scope_text(scope),
                text=marker.text,
                by=marker.by or "posted",
                data=None if marker.data is None else msgspec.json.encode(marker.data).decode(),
                **fields,
            )
        )
        return name

    def take_outcome(self, call_id: str, outcome: Outcome, data: str | None) -> str:
        """Keep what was said of a call."""
        now = self._wall_us()
        name = self._name("outcome", now)
        fields = msgspec.structs.asdict(outcome)
        self._store(
            [OutcomeRecord(call_id=call_id, received_at=now, outcome=name, data=data, **fields)]
        )
        return name


def scope_of(incident: IncidentRecord) -> Scope:
    """The scope of an incident as pairs."""
    if incident.scope == "all":
        return ()
    pairs = (pair.partition("=") for pair in incident.scope.split(","))
    return tuple((name, value) for name, _, value in pairs)


def _trunk_figures(one: PeerState, at: int) -> TrunkFigures:
    return TrunkFigures(
        name=one.name,
        trunk=one.trunk,
        state=one.state,
        rtt_ms=one.rtt_ms,
        own=one.probed,
        since_seconds=None if one.since is None else max(0, at - one.since) / 1e6,
        certificate_days=one.certificate_days,
        failures=one.missed if one.probed else one.seen_missed,
    )


def _shown_incident(row: IncidentRecord) -> dict[str, Any]:
    """An incident as a page shows it: without what only its row needs, its evidence as an object."""
    fields: dict[str, Any] = msgspec.to_builtins(row)
    for name in ("call_id", "received_at", "revision"):
        del fields[name]
    if row.evidence is not None:
        fields["evidence"] = msgspec.Raw(row.evidence.encode())
    return fields


def _event_of(row: StateRecord) -> EventRecord:
    """A change of admission's, as the timeline shows it."""
    known = {row.scope: row.scope_value} if row.scope in DIMENSIONS else {}
    return EventRecord(
        received_at=row.received_at,
        event=f"admission-{row.received_at}-{row.rule}",
        at=row.received_at,
        kind="admission",
        subject=row.rule,
        state=row.state,
        previous=row.previous,
        scope=f"{row.scope}={row.scope_value}" if row.scope_value else "all",
        text=row.reason,
        by=row.by,
        **known,
    )
