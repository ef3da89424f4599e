"""The running watch: what it makes of calls, minutes, faults and restarts."""

import asyncio
import json
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from running import Sidecar, sidecar, until
from sipsidecar.batch import StoreError
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    PingRecord,
    RegistrationRecord,
    Setup,
)
from sipsidecar.config import Alerts, Config, Detect, TrunkSettings
from sipsidecar.edges.http.watch import Marker, Outcome
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.alarms import Alarm, EventRecord, IncidentRecord, OutcomeRecord
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import StateRecord
from sipsidecar.signals.minutes import CodeMinute, KpiMinute
from sipsidecar.signals.series import TOTAL
from sipsidecar.signals.trunk import Peer
from sipsidecar.watching import (
    ASKED,
    FRESH,
    LOADED_AT_ONCE,
    MAX_PENDING,
    STALLED,
    Watching,
    scope_of,
)

BEGIN = 1_790_000_040_000_000 // 60_000_000 * 60_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE
PEER = Peer(name="acme", uri="sip:127.0.0.1:9", probe=False)


class Past:
    """What an earlier life left."""

    def __init__(self) -> None:
        self.hours: list[BaselineHour] = []
        self.left: list[IncidentRecord] = []
        self.happened: list[EventRecord] = []

    async def baseline(self) -> list[BaselineHour]:
        return self.hours

    async def incidents(self) -> list[IncidentRecord]:
        return self.left

    async def events(self, limit: int) -> list[EventRecord]:
        return self.happened[:limit]


class World:
    """A watch whose clock stands until it is told otherwise."""

    def __init__(self, config: Config | None = None, past: Past | None = None) -> None:
        self.at = BEGIN
        self.elsewhere: set[str] = set()
        self.rows: list[Any] = []
        matchers = [Matcher(tenant="t", trunk="acme", sources=("192.0.2.0/24",))]
        self.watching = Watching(
            config or Config(),
            Cohorts(matchers),
            Pipeline(),
            past or Past(),
            elsewhere=self.elsewhere.__contains__,
            wall_us=lambda: self.at,
        )
        self._number = 0

    def call(self, code: int, **changes: Any) -> CallRecord:
        self._number += 1
        values: dict[str, Any] = {
            "from_tag": "t", "received_at": self.at, "started_at": self.at, "final_code": code,
            "final_class": f"{code // 100}xx", "answered": code == 200, "seizure": True,
            "tenant": "t", "trunk": "acme", "carrier": "other", "direction": "other",
            "region": "other", "agent": "other",
        }  # fmt: skip
        return CallRecord(call_id=f"call-{self._number}", **(values | changes))

    def setups(self, *codes: int) -> list[Setup]:
        made = [Setup(self.call(code), ()) for code in codes]
        self.rows += self.watching.after_turn([], made)
        return made

    async def minute(self, *codes: int) -> None:
        """One whole minute in which setups ended so."""
        self.setups(*codes)
        await self.sleep(60)

    async def sleep(self, seconds: float) -> None:
        """Look once a second of some, as the running watch does."""
        end = self.at + int(seconds * 1e6)
        while self.at < end:
            self.at = min(self.at + 5_000_000, end)
            await self.look()

    async def look(self) -> None:
        watching = self.watching
        watching._note_stall(self.at)
        watching._incidents.receive(watching._trunks.alarms(self.at), self.at)
        await watching._close_minutes(self.at)
        watching._incidents.handle_timer(self.at)
        watching._settle()
        self.rows += watching.after_turn([], [])

    def of(self, kind: type[Any]) -> list[Any]:
        return [row for row in self.rows if isinstance(row, kind)]


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_minute_becomes_rows_once_it_is_over_and_only_once(world: World) -> None:
    await world.look()
    world.setups(200, 200, 503)
    await world.sleep(50)
    assert not world.of(KpiMinute)
    await world.sleep(70)
    found = [row for row in world.of(KpiMinute) if row.source == "call"]
    assert [(row.attempts, row.answered, row.trunk) for row in found] == [(3, 2, "acme")]
    assert sum(row.count for row in world.of(CodeMinute) if row.source == "call") == 3
    await world.sleep(120)
    assert len([row for row in world.of(KpiMinute) if row.source == "call"]) == 1


async def test_a_call_that_admission_sent_elsewhere_says_nothing_of_its_trunk(world: World) -> None:
    await world.look()
    world.elsewhere.update({"call-1"})
    world.setups(503, 200)
    await world.sleep(120)
    (row,) = [row for row in world.of(KpiMinute) if row.source == "call"]
    assert (row.overflowed, row.attempts, row.answered) == (1, 1, 1)


async def test_calls_registrations_and_attempts_are_counted_at_their_first_record(
    world: World,
) -> None:
    await world.look()
    ended = world.call(200, ended=True, ended_at=world.at, end_source="bye", talk_ms=30_000.0)
    register = RegistrationRecord(
        call_id="r", branch="b", cseq=1, received_at=1, started_at=1, final_code=200, rtt_ms=5.0
    )
    attempt = AttemptRecord(call_id="c", from_tag="t", branch="b", received_at=1, started_at=1)
    revised = msgspec.structs.replace(ended, revision=1)
    world.watching.after_turn([ended, register, attempt, revised], [])
    await world.sleep(120)
    by_source: dict[str, Any] = {row.source: row for row in world.of(KpiMinute)}
    assert (by_source["call"].ended, by_source["call"].talk_seconds) == (1, 30.0)
    assert by_source["register"].registers == 1


async def test_a_call_that_was_open_at_a_restart_ends_once(world: World) -> None:
    await world.look()
    went_on = world.call(200, revision=1, flags=("rebuilt",))
    ended = msgspec.structs.replace(
        went_on, revision=2, ended=True, ended_at=world.at, end_source="bye", talk_ms=5000.0
    )
    again = msgspec.structs.replace(ended, revision=3)
    for record in (went_on, ended, again):
        world.watching.after_turn([record], [])
    await world.sleep(120)
    (row,) = [row for row in world.of(KpiMinute) if row.source == "call"]
    assert (row.ended, row.completed, row.talk_seconds) == (1, 1, 5.0)


async def test_server_errors_after_a_good_day_become_one_incident_and_it_ends(world: World) -> None:
    await world.look()
    for _ in range(30):
        await world.minute(*[200] * 40)
    for _ in range(4):
        await world.minute(*[503] * 40)
    opened = world.watching.incidents(every=False)
    assert [one["category"] for one in opened] == ["5xx"]
    assert opened[0]["severity"] == "page"
    assert opened[0]["call_ids"]
    assert not {"revision", "received_at", "call_id"} & opened[0].keys()
    assert msgspec.json.decode(opened[0]["evidence"])["alarms"]
    for _ in range(40):
        await world.minute(*[200] * 40)
    assert world.watching.incidents(every=False) == []
    (ended,) = world.watching.incidents(every=True)
    assert ended["state"] == "cleared"
    told = [event for event in world.of(EventRecord) if event.kind == "incident"]
    assert [event.state for event in told].count("opened") == 1
    assert [event.state for event in told].count("cleared") == 1


async def test_nothing_is_detected_where_that_is_switched_off() -> None:
    world = World(Config(detect=Detect(enabled=False)))
    await world.look()
    for codes in ([200] * 40, [503] * 40):
        for _ in range(10):
            await world.minute(*codes)
    assert world.of(KpiMinute)
    assert not world.watching.incidents(every=True)


async def test_a_minute_that_we_slept_through_is_not_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.look()
    await world.sleep(120)
    seen: list[int] = []
    look = world.watching._detectors.look

    def spy(minute_at: int, *rest: Any) -> Any:
        seen.append(minute_at)
        return look(minute_at, *rest)

    monkeypatch.setattr(world.watching._detectors, "look", spy)
    began = world.at
    await world.sleep(30)
    world.at += int((STALLED + 60) * 1e6)
    await world.look()
    await world.sleep(180)
    minutes = {(at - began) // MINUTE for at in seen}
    assert 0 not in minutes
    assert 1 not in minutes
    assert {2, 3} <= minutes


async def test_a_clock_that_is_set_back_loses_no_row(world: World) -> None:
    await world.look()
    await world.minute(200)
    world.setups(200, 200)
    world.at -= 3600_000_000
    await world.look()
    world.setups(200)
    await world.sleep(180)
    rows = [*world.rows, *world.watching.drain()]
    calls = [row for row in rows if isinstance(row, KpiMinute) and row.source == "call"]
    assert sum(row.attempts for row in calls) == 4


async def test_a_bug_costs_a_turn_and_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(world.watching._minutes, "receive_setup", fail)
    world.setups(200)
    world.setups(200)
    assert world.watching.faults == 2
    assert caplog.text.count("a turn failed") == 1  # not again for ten minutes
    monkeypatch.undo()
    await world.look()
    world.setups(200)
    await world.sleep(120)
    assert world.of(KpiMinute)


async def test_a_part_that_fails_begins_again_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sipsidecar.guarding.FIRST_PAUSE", 0.001)
    world = World()
    tries: list[int] = []
    enough = asyncio.Event()

    async def fail() -> None:
        tries.append(1)
        if len(tries) == 3:
            enough.set()
        raise ZeroDivisionError

    monkeypatch.setattr(world.watching._pingers, "run", fail)
    tasks = world.watching.tasks()
    try:
        await asyncio.wait_for(enough.wait(), 5)
        assert not any(task.done() for task in tasks)
        assert world.watching.faults >= 2
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.watching.close()


async def test_what_an_earlier_life_left_open_is_not_told_again() -> None:
    past = Past()
    past.left = [
        IncidentRecord(
            incident="5xx-1", received_at=BEGIN - MINUTE, category="5xx", severity="page",
            scope="trunk=acme", trunk="acme", opened_at=BEGIN - MINUTE, last_seen_at=BEGIN - MINUTE,
        )
    ]  # fmt: skip
    past.happened = [
        EventRecord(received_at=BEGIN - n, event=str(n), at=BEGIN - n, kind="sidecar")
        for n in range(3)
    ]
    world = World(past=past)
    world.watching.happened("switch", "fs1", "restarted")
    restoring = asyncio.create_task(world.watching._restore())
    await asyncio.sleep(0.01)
    restoring.cancel()
    await world.look()
    assert [one["incident"] for one in world.watching.incidents(every=False)] == ["5xx-1"]
    assert not [event for event in world.of(EventRecord) if event.state == "opened"]
    shown = world.watching.timeline(0, BEGIN + MINUTE, 10, None, {})
    assert [one["event"] for one in shown if one["kind"] == "sidecar"] == ["0", "1", "2"]
    assert shown[0]["subject"] in {"", "fs1"}


async def test_rows_of_this_life_are_not_taken_up_again_from_a_database_that_was_away() -> None:
    past = Past()
    world = World(past=past)
    await world.look()
    for _ in range(30):
        await world.minute(*[200] * 40)
    for _ in range(4):
        await world.minute(*[503] * 40)
    opened = world.of(IncidentRecord)[-1]
    for _ in range(40):
        await world.minute(*[200] * 40)
    world.watching.happened("switch", "fs1", "restarted")
    world.rows += world.watching.after_turn([], [])
    # All of it was stored just now, but for the row that ends the incident.
    past.left = [opened]
    past.happened = [*reversed(world.of(EventRecord))]
    past.hours = [row for row in world.rows if isinstance(row, BaselineHour)]
    past.hours += [row for row in world.watching.drain() if isinstance(row, BaselineHour)]
    assert past.hours
    before = learned(world)
    await restored(world)
    assert world.watching.incidents(every=False) == []
    names = [one["event"] for one in world.watching.timeline(0, world.at, 10_000, None, {})]
    assert len(names) == len(set(names)) > 2
    assert learned(world) == before > 0


async def restored(world: World) -> None:
    restoring = asyncio.create_task(world.watching._restore())
    await asyncio.sleep(0.02)
    restoring.cancel()


def learned(world: World) -> int:
    """Seizures of all calls that taught what is normal."""
    history = world.watching._baseline.history("call:all")
    assert history is not None
    return sum(history.hour(hour, [TOTAL])[0] for hour in history.hours())


def hour_of(at: int, series: str = "call:all") -> BaselineHour:
    return BaselineHour(
        received_at=at, hour_at=at // HOUR * HOUR, series=series, minutes=60, total=600,
        counts=(0,) * 7, answered=600, effective=600,
    )  # fmt: skip


async def test_what_is_left_is_taken_up_once_though_the_database_fails_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sipsidecar.guarding.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("sipsidecar.watching.RESTORE_EVERY", 0.001)
    past = Past()
    past.hours = [hour_of(BEGIN - HOUR)]
    fails: list[Exception] = [ZeroDivisionError(), StoreError("it is away")]
    events = past.events

    async def fail(limit: int) -> list[EventRecord]:
        if fails:
            raise fails.pop()
        return await events(limit)

    monkeypatch.setattr(past, "events", fail)
    world = World(past=past)
    keeping = asyncio.create_task(world.watching._guard.keep("it", world.watching._restore))
    await asyncio.sleep(0.05)
    keeping.cancel()
    assert not fails
    assert learned(world) == 600
    assert world.watching.faults == 1


async def test_what_was_learned_is_taken_up_in_slices_and_judged_by_when_it_is_whole() -> None:
    past = Past()
    past.hours = [hour_of(BEGIN - HOUR - n, f"call:tenant=t{n}") for n in range(3 * LOADED_AT_ONCE)]
    world = World(past=past)
    turns = 0
    restoring = asyncio.create_task(world.watching._restore())
    await asyncio.sleep(0)
    while world.watching._baseline.series < len(past.hours):
        assert world.watching._judging.locked()
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 2
    await asyncio.sleep(0)
    assert not world.watching._judging.locked()
    restoring.cancel()


async def test_a_bug_in_a_detector_does_not_make_its_minute_one_without_calls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.look()
    for _ in range(3):
        await world.minute(*[200] * 40)
    look = world.watching._detectors.look
    given: list[tuple[int, int]] = []
    fails = [True]

    def spy(minute_at: int, kpis: Any, codes: Any) -> Any:
        if fails:
            fails.pop()
            raise ZeroDivisionError
        given.append((minute_at, sum(row.attempts for row in kpis if row.source == "call")))
        return look(minute_at, kpis, codes)

    monkeypatch.setattr(world.watching._detectors, "look", spy)
    with pytest.raises(ZeroDivisionError):
        await world.minute(*[200] * 40)
    for _ in range(3):
        await world.minute(*[200] * 40)
    assert len(given) >= 2
    assert all(calls == 40 for _, calls in given)


async def test_no_minute_is_looked_at_after_a_step_of_days(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.look()
    await world.minute(200)
    seen: list[int] = []

    def spy(minute_at: int, *_: Any) -> Any:
        seen.append(minute_at)
        return iter(())

    monkeypatch.setattr(world.watching._detectors, "look", spy)
    world.at += 10 * 24 * HOUR
    stepped = world.at
    await world.sleep(180)
    assert seen
    assert min(seen) > stepped


async def test_alarms_find_their_calls_in_turns_of_their_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = [
        Alarm(source="rate", category="5xx", scope=(("tenant", f"t{n}"),), at=BEGIN)
        for n in range(20)
    ]
    await world.look()
    await world.sleep(60)
    monkeypatch.setattr(world.watching._detectors, "look", lambda *_: iter([alarms]))
    found: list[int] = []
    turns = [0]

    def find(*_: Any) -> tuple[str, ...]:
        found.append(turns[0])
        return ("call-1",)

    monkeypatch.setattr(world.watching._examples, "find", find)
    world.at += 60_000_000
    world.watching._last_us = world.at
    closing = asyncio.create_task(world.watching._close_minutes(world.at))
    while not closing.done():
        turns[0] += 1
        await asyncio.sleep(0)
    assert len(found) == len(set(found)) == len(alarms)


async def test_live_figures_are_kept_fresh_in_slices_for_who_asked(world: World) -> None:
    await world.look()
    world.setups(200)
    first = world.watching.figures().kpi
    world.watching._shown_at -= FRESH
    await world.watching._reckon()
    assert world.watching._shown is not None
    assert world.watching._shown is not first
    fresh = world.watching._shown
    await world.watching._reckon()
    assert world.watching._shown is fresh
    world.watching._shown_at -= FRESH
    world.watching._asked_at -= ASKED
    await world.watching._reckon()
    assert world.watching._shown is fresh  # nobody has come again
    world.watching._shown_at -= 3 * FRESH
    world.watching.figures()
    assert world.watching._shown is not fresh


async def test_a_bug_in_figures_or_at_the_end_is_counted_and_costs_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    await world.look()
    world.setups(200)
    monkeypatch.setattr(world.watching._trunks, "states", fail)
    shown = world.watching.figures()
    assert (shown.kpi, shown.faults) == (None, 1)
    monkeypatch.setattr(world.watching._baseline, "records", fail)
    rows = world.watching.drain()
    assert {type(row) for row in rows} >= {KpiMinute, EventRecord}
    assert world.watching.faults == 2


async def test_what_is_lost_here_has_a_number(world: World) -> None:
    world.watching.rows_lost = 3
    world.watching._examples.forgotten = 4
    kpi = world.watching.figures().kpi
    assert kpi is not None
    assert kpi.limits["cohorts"] == 0
    assert (kpi.limits["rows"], kpi.limits["examples"], kpi.limits["spans"]) == (3, 4, 0)


async def test_an_incident_that_came_back_is_shown_once(world: World) -> None:
    def row(state: str, revision: int) -> IncidentRecord:
        return IncidentRecord(
            incident="5xx-1", received_at=BEGIN, revision=revision, category="5xx", state=state,
            severity="page", opened_at=BEGIN, last_seen_at=BEGIN + revision,
        )  # fmt: skip

    world.watching._ended += [row("cleared", 1), row("cleared", 3)]
    assert [one["last_seen_at"] for one in world.watching.incidents(every=True)] == [BEGIN + 3]
    world.watching._incidents.restore([row("open", 4)])
    assert [one["state"] for one in world.watching.incidents(every=True)] == ["open"]


async def test_figures_by_a_dimension_are_those_of_who_was_asked_for(world: World) -> None:
    await world.look()
    world.setups(200, 503)
    world.watching.after_turn([], [Setup(world.call(200, trunk="beta", region="eu"), ())])
    both = world.watching.kpi("trunk", {}, 5)
    assert [(one["trunk"], one["attempts"]) for one in both] == [("acme", 2), ("beta", 1)]
    (acme,) = world.watching.kpi("trunk", {"trunk": "acme"}, 5)
    assert (acme["trunk"], acme["attempts"]) == ("acme", 2)
    (beta,) = world.watching.kpi("trunk", {"region": "eu"}, 5)
    assert (beta["trunk"], beta["region"], beta["codes"]) == ("beta", "eu", {200: 1})
    assert acme["since"] == BEGIN  # nothing is known of the minutes before the start
    world.at += 20 * MINUTE
    (nothing,) = world.watching.kpi(None, {}, 5)
    assert nothing["since"] == world.at - 5 * MINUTE


async def test_the_timeline_holds_markers_switches_trunks_and_admission(world: World) -> None:
    watching = world.watching
    watching.mark(Marker(kind="deploy", text="bot 1.4", trunk="acme", data={"a": 1}), world.at - 1)
    watching.happened("switch", "fs1", "restarted")
    state = StateRecord(
        received_at=world.at, rule="acme-calls", scope="trunk", scope_value="acme",
        state="closed", previous="open", reason="too many",
    )  # fmt: skip
    watching.decided([state, "something else"])
    kinds = [one["kind"] for one in watching.timeline(0, world.at, 10, None, {})]
    assert sorted(kinds) == ["admission", "marker", "switch"]
    of_trunk = watching.timeline(0, world.at, 10, None, {"trunk": "acme"})
    assert {one["kind"] for one in of_trunk} == {"admission", "marker"}
    (marker,) = watching.timeline(0, world.at, 10, "marker", {})
    assert (marker["scope"], marker["data"], marker["by"]) == ("trunk=acme", '{"a":1}', "posted")
    assert len(watching.timeline(0, world.at, 1, None, {})) == 1
    assert watching.timeline(world.at + 1, world.at + 2, 10, None, {}) == []
    rows = world.watching.after_turn([], [])
    assert {row.kind for row in rows if isinstance(row, EventRecord)} == {"marker", "switch"}


async def test_outcomes_are_rows_with_names_of_their_own(world: World) -> None:
    names = {
        world.watching.take_outcome("a@b", Outcome(completed=True), '{"x":1}') for _ in range(3)
    }
    rows = [row for row in world.watching.after_turn([], []) if isinstance(row, OutcomeRecord)]
    assert {row.outcome for row in rows} == names
    assert len(names) == 3
    assert {(row.call_id, row.completed, row.data) for row in rows} == {("a@b", True, '{"x":1}')}


async def test_rows_that_nobody_fetches_are_bounded_and_counted(world: World) -> None:
    for _ in range(MAX_PENDING + 5):
        world.watching.take_outcome("a", Outcome(completed=True), None)
    assert len(world.watching.after_turn([], [])) == MAX_PENDING
    assert world.watching.rows_lost == 5


async def test_live_figures_are_of_whom_they_are_asked_about(world: World) -> None:
    await world.look()
    world.setups(200, 200, 486, 503)
    (everybody,) = world.watching.kpi(None, {}, 5)
    assert (everybody["attempts"], everybody["asr_percent"]) == (4, 50.0)
    assert everybody["codes"] == {200: 2, 486: 1, 503: 1}
    (acme,) = world.watching.kpi("trunk", {}, 5)
    assert (acme["trunk"], acme["source"], acme["ner_percent"]) == ("acme", "trunk", 75.0)
    (none,) = world.watching.kpi(None, {"tenant": "nobody"}, 5)
    assert (none["attempts"], none["asr_percent"]) == (0, None)


async def test_metrics_have_what_is_watched() -> None:
    world = World(Config(trunks=TrunkSettings(peers=(PEER,))))
    await world.look()
    world.setups(200)
    figures = world.watching.figures()
    assert figures.kpi is not None
    assert {(one.scope, one.value) for one in figures.kpi.scopes} >= {("trunk", "acme")}
    assert [(one.name, one.own) for one in figures.trunks] == [("acme", False)]
    again = world.watching.figures().kpi
    assert again is not None
    assert again.scopes is figures.kpi.scopes  # not reckoned anew for each scrape
    (shown,) = world.watching.trunks()
    assert (shown["name"], shown["probing"]) == ("acme", None)


async def test_switches_are_told_which_trunks_are_down() -> None:
    peer = msgspec.structs.replace(PEER, dispatcher_group=1)
    world = World(Config(trunks=TrunkSettings(peers=(peer,), kamailio={"edge": "udp:127.0.0.1:9"})))
    told: list[set[str]] = []

    class Switch:
        def show_down(self, trunks: Any) -> None:
            told.append(set(trunks))

    world.watching._switches = (Switch(),)
    (kamailio,) = world.watching._dispatchings
    for at in range(4):
        world.watching._trunks.receive_ping(
            PingRecord(
                call_id="o", branch=str(at), cseq=at, received_at=world.at, started_at=world.at,
                peer_ip="127.0.0.1", peer_port=9, transport="udp",
            ),
            world.at,
        )  # fmt: skip
        world.at += 10_000_000
    world.watching._show_down()
    assert told[-1] == {"acme"}
    assert kamailio._down == {(1, "sip:127.0.0.1:9")}


async def test_the_timeline_says_when_the_sidecar_began(world: World) -> None:
    tasks = world.watching.tasks()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (began,) = world.watching.timeline(0, world.at + MINUTE, 10, "sidecar", {})
    assert (began["state"], began["at"]) == ("started", world.at)


async def test_the_end_of_the_process_gives_out_the_open_minute(world: World) -> None:
    await world.look()
    world.setups(200, 200)
    rows = world.watching.drain()
    assert (
        sum(row.attempts for row in rows if isinstance(row, KpiMinute) and row.source == "call")
        == 2
    )
    assert [row.state for row in rows if isinstance(row, EventRecord)] == ["stopped"]
    assert world.watching.after_turn([], []) == []


async def test_new_receivers_are_told_from_the_reload_on(world: World) -> None:
    from sipsidecar.signals.receivers import Receiver

    receiver = Receiver(name="hook", kind="webhook", url="http://127.0.0.1:9/x")
    world.watching.reload(Config(alerts=Alerts(receivers=(receiver,))))
    assert [one["name"] for one in world.watching.receivers()] == ["hook"]
    await world.watching.close()


@pytest.mark.parametrize(
    ("scope", "pairs"),
    [("all", ()), ("trunk=a", (("trunk", "a"),)), ("tenant=t,trunk=a", (("tenant", "t"), ("trunk", "a")))],
)  # fmt: skip
def test_the_scope_of_an_incident_is_read_back(scope: str, pairs: object) -> None:
    record = IncidentRecord(
        incident="x", received_at=1, category="5xx", severity="page", scope=scope, opened_at=1,
        last_seen_at=1,
    )  # fmt: skip
    assert scope_of(record) == pairs


# -- a sidecar that runs


class Hook:
    """A webhook, and a SIP server that answers OPTIONS once it is told to."""

    def __init__(self) -> None:
        heard: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.heard = heard
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        self.sip = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sip.bind(("127.0.0.1", 0))
        self.sip.settimeout(0.2)
        self.answers = self.ended = False
        self.threads = [
            threading.Thread(target=self.server.serve_forever, args=(0.05,)),
            threading.Thread(target=self._answer),
        ]
        for thread in self.threads:
            thread.start()

    def _answer(self) -> None:
        while not self.ended:
            try:
                data, sender = self.sip.recvfrom(65536)
            except TimeoutError:
                continue
            if self.answers:
                head, _, rest = data.partition(b"\r\n")
                assert head.startswith(b"OPTIONS ")
                kept = [
                    line
                    for line in rest.split(b"\r\n")
                    if line.split(b":")[0].lower() in (b"via", b"from", b"to", b"call-id", b"cseq")
                ]
                self.sip.sendto(b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"", b""]), sender)

    def what(self) -> list[str]:
        return [one["what"] for one in self.heard]

    def close(self) -> None:
        self.ended = True
        self.server.shutdown()
        for thread in self.threads:
            thread.join()
        self.server.server_close()
        self.sip.close()


def test_an_incident_is_told_once_though_the_sidecar_begins_anew_in_it(tmp_path: Path) -> None:
    hook = Hook()
    config = tmp_path / "s.toml"
    config.write_text(f"""
[alerts]
clear_seconds = 1
merge_seconds = 0

[[alerts.receivers]]
name = "hook"
kind = "webhook"
url = "{hook.url}"

[[trunks.peers]]
name = "acme"
uri = "sip:127.0.0.1:{hook.sip.getsockname()[1]}"
interval_seconds = 1
timeout_seconds = 0.3
""")
    try:
        with sidecar(tmp_path, "--config", config) as one:
            until("it is told", lambda: hook.what() == ["opened"])
            post(one, "/v1/markers", {"kind": "deploy", "text": "bot 1.4"})
            post(one, "/v1/calls/a%40b/outcome", {"completed": True, "mood": "calm"})
            assert one.stop() == 0
        with sidecar(tmp_path, "--config", config) as one:
            (opened,) = until("it is taken up", lambda: one.get("/v1/incidents")[1] or None)
            assert opened["scope"] == "trunk=acme"
            kinds = {"marker", "incident", "trunk", "sidecar"}
            until(
                "the timeline is there",
                lambda: {event["kind"] for event in one.get("/v1/timeline")[1]} >= kinds,
            )
            hook.answers = True
            until("it is over", lambda: hook.what() == ["opened", "cleared"])
            assert one.get("/v1/incidents")[1] == []
            # "trying" for a moment where one answer comes late
            until("it is up", lambda: one.get("/v1/trunks")[1][0]["state"] == "active")
            assert one.stop() == 0
        said = one.ask("timeline", "--json", "--kind", "incident")
        states = [json.loads(line)["state"] for line in said.stdout.splitlines()]
        assert (states.count("opened"), states.count("cleared")) == (1, 1)
    finally:
        hook.close()


def post(one: Sidecar, path: str, body: dict[str, Any]) -> None:
    host, port = one.http
    request = urllib.request.Request(
        f"http://{host}:{port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert reply.status == 200
