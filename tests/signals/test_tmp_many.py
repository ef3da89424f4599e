import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.signals.alarms import (
    DIMENSIONS,
    PAGE,
    TREND,
    WARN,
    Alarm,
    EventRecord,
    IncidentRecord,
    Notice,
    Scope,
    Share,
    scope_text,
)
from sipsidecar.signals.attribution import is_nested, order_scope
from sipsidecar.signals.incident import (
    LAPSE,
    MAX_ALARMS,
    MAX_EVIDENCE,
    MAX_EXAMPLES,
    MAX_SUMMARY,
    MAX_TOLD,
    MAX_WAITING,
    Incidents,
    IncidentSettings,
)
from troubled import BEGAN, MINUTE, World, scope, share

SECOND = 1_000_000


def alarm(category: str = "pdd", at: int = BEGAN, **said: Any) -> Alarm:
    fields = {name: said.pop(name) for name in DIMENSIONS if name in said}
    return Alarm(
        **{"source": "rate", "category": category, "scope": scope(**fields), "at": at, **said}
    )


class Desk:
    """Incidents that are looked at once a minute, and all that came of it."""

    def __init__(self, shares: Any = lambda _: (), max_open: int = 1000, **said: Any) -> None:
        self.incidents = Incidents(IncidentSettings(**said), shares, max_open)
        self.at = BEGAN
        self.notices: list[Notice] = []
        self.rows: list[IncidentRecord] = []
        self.events: list[EventRecord] = []

    def look(self, *alarms: Alarm, minutes: float = 1) -> list[str]:
        """The alarms of now, and then time passes; what receivers are told of both."""
        stamped = [msgspec.structs.replace(one, at=self.at) for one in alarms]
        self.incidents.receive(stamped, self.at)
        told = self.fetch()
        for _ in range(round(minutes)):
            self.at += MINUTE
            self.incidents.handle_timer(self.at)
            told += self.fetch()
        return told

    def hold(self, *alarms: Alarm, minutes: int) -> list[str]:
        return [what for _ in range(minutes) for what in self.look(*alarms)]

    def fetch(self) -> list[str]:
        for row in self.incidents.records():
            if isinstance(row, EventRecord):
                self.events.append(row)
            else:
                self.rows.append(row)
        notices = self.incidents.notices()
        self.notices += notices
        return [one.what for one in notices]

    @property
    def one(self) -> IncidentRecord:
        (record,) = self.incidents.open()
        return record

    @property
    def scopes(self) -> list[str]:
        return sorted(record.scope for record in self.incidents.open())


# ----------------------------------------------------------------------------- opening and clearing


def test_an_alarm_opens_one_incident_which_is_told_once_however_long_it_holds() -> None:
    desk = Desk()
    assert desk.look(alarm(trunk="a")) == ["opened"]
    assert desk.hold(alarm(trunk="a"), minutes=180) == []
    assert desk.one.state == "open"
    assert desk.one.opened_at == BEGAN
    assert desk.one.last_seen_at == BEGAN + 180 * MINUTE


def test_it_is_cleared_after_ten_minutes_without_any_alarm() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a"))
    assert desk.look(alarm(trunk="a", active=False), minutes=8) == []
    assert desk.look() == ["cleared"]
    assert desk.incidents.open() == []
    assert desk.rows[-1].state == "cleared"
    assert desk.rows[-1].cleared_at == desk.at
    assert desk.rows[-1].last_seen_at == BEGAN
    assert desk.look(minutes=600) == []


def test_one_alarm_of_several_keeps_it_open() -> None:
    desk = Desk()
    both = alarm(trunk="a"), alarm(trunk="a", tenant="t")
    desk.look(*both)
    assert desk.hold(both[1], alarm(trunk="a", active=False), minutes=60) == []
    assert len(desk.incidents.open()) == 1


def test_an_alarm_that_nobody_ended_holds_until_it_was_not_said_for_a_while() -> None:
    desk = Desk(clear_seconds=0)
    desk.look(alarm(trunk="a"), minutes=LAPSE / MINUTE)
    assert len(desk.incidents.open()) == 1
    assert desk.look() == ["cleared"]


def test_with_no_waiting_at_all_it_is_over_when_its_alarm_is() -> None:
    desk = Desk(clear_seconds=0, merge_seconds=0)
    assert desk.look(alarm(trunk="a")) == ["opened"]
    assert desk.hold(alarm(trunk="a"), minutes=5) == []
    assert desk.look(alarm(trunk="a", active=False)) == ["cleared"]
    assert desk.look(alarm(trunk="a")) == ["opened"]
    assert len({row.incident for row in desk.rows}) == 2


def test_the_end_of_what_never_held_is_nothing() -> None:
    desk = Desk()
    assert desk.look(alarm(active=False), minutes=30) == []
    assert (desk.rows, desk.events) == ([], [])


def test_an_alarm_is_told_only_when_it_held_for_so_long() -> None:
    desk = Desk(hold_seconds=120)
    assert desk.hold(alarm(), minutes=2) == []
    assert desk.look(alarm(active=False)) == []
    assert desk.hold(alarm(), minutes=2) == []
    assert desk.look(alarm()) == ["opened"]
    assert desk.one.first_seen_at == desk.at - 3 * MINUTE


def test_a_clock_that_is_set_back_neither_clears_nor_holds_it() -> None:
    desk = Desk()
    desk.look(alarm())
    desk.at -= 60 * MINUTE
    assert desk.look(minutes=8) == []
    assert desk.look(minutes=1) == ["cleared"]
    assert desk.rows[-1].cleared_at == desk.rows[-1].opened_at


# ---------------------------------------------------------------------------------------- reopening


def test_what_comes_again_within_half_an_hour_is_the_same_incident_told_again() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a"), minutes=10)
    name = desk.rows[0].incident
    assert [row.state for row in desk.rows] == ["open", "cleared"]
    assert desk.look(minutes=28) == []
    assert desk.look(alarm(trunk="a", tenant="t")) == ["opened"]
    assert (desk.one.incident, desk.one.cleared_at, desk.one.opened_at) == (name, None, BEGAN)
    assert [(one.state, one.previous) for one in desk.events] == [
        ("opened", ""),
        ("cleared", "open"),
        ("opened", "cleared"),
    ]


def test_what_comes_later_or_elsewhere_or_is_another_category_is_a_new_incident() -> None:
    for minutes, other in (
        (31, alarm(trunk="a")),
        (1, alarm(trunk="b")),
        (1, alarm("volume", trunk="a")),
    ):
        desk = Desk()
        desk.look(alarm(trunk="a"), minutes=10)
        desk.look(minutes=minutes - 1)
        assert desk.look(other) == ["opened"]
        assert len({row.incident for row in desk.rows}) == 2


def test_what_flaps_each_five_minutes_for_an_hour_is_one_incident_and_two_notices() -> None:
    desk = Desk()
    for minute in range(60):
        desk.look(alarm(trunk="a", active=minute // 5 % 2 == 0))
    desk.look(minutes=60)
    assert [one.what for one in desk.notices] == ["opened", "cleared"]
    assert len(desk.rows) <= 3


def test_what_flaps_more_slowly_than_it_clears_is_soon_not_told_each_time() -> None:
    desk = Desk()
    for minute in range(10 * 60):
        desk.look(alarm(trunk="a", active=minute % 20 < 3))
    desk.look(minutes=60)
    assert len({row.incident for row in desk.rows}) == 1
    assert [one.what for one in desk.notices] == ["opened", "cleared"] * 2


# --------------------------------------------------------------------------------------- escalating


def test_a_graver_alarm_escalates_it_once_and_nothing_makes_it_milder() -> None:
    desk = Desk()
    mild, grave = (alarm(trunk="a", source=s, severity=s) for s in (WARN, PAGE))
    assert desk.look(mild) == ["opened"]
    assert desk.look(mild, grave) == ["escalated"]
    assert (desk.one.severity, desk.one.escalated_at) == (PAGE, BEGAN + MINUTE)
    ended = msgspec.structs.replace(grave, active=False)
    assert desk.hold(mild, ended, minutes=5) == desk.hold(mild, grave, minutes=5) == []
    assert desk.one.severity == PAGE
    assert [one.state for one in desk.events] == ["opened", "escalated"]


def test_a_trend_has_an_incident_and_a_notice_of_its_severity() -> None:
    desk = Desk()
    assert desk.look(alarm("486", severity=TREND)) == ["opened"]
    assert desk.notices[0].incident.severity == TREND


def test_what_opens_grave_does_not_escalate() -> None:
    desk = Desk()
    assert desk.look(alarm(severity=TREND), alarm(source="x", severity=PAGE)) == ["opened"]
    assert (desk.one.severity, desk.one.escalated_at) == (PAGE, None)


def test_other_calls_that_are_in_trouble_since_later_are_told_as_worse() -> None:
    desk = Desk()
    desk.hold(alarm(trunk="a"), minutes=30)
    both = alarm(trunk="a"), alarm(since=desk.at)
    assert desk.look(*both) == ["escalated"]
    assert (desk.one.scope, desk.one.escalated_at) == ("all", desk.at - MINUTE)
    assert desk.hold(*both, minutes=30) == []
    assert desk.hold(alarm(trunk="a"), alarm(active=False), minutes=30) == []
    assert desk.look(*both) == []


def test_a_wider_look_in_its_first_minutes_only_tells_better_where_it_is() -> None:
    desk = Desk()
    desk.hold(alarm(trunk="a"), minutes=8)
    assert desk.hold(alarm(trunk="a"), alarm(since=desk.at), minutes=60) == []
    assert desk.one.scope == "all"
    assert [one.state for one in desk.events] == ["opened", "attributed"]


def test_alarms_that_began_with_it_make_it_no_worse_whenever_they_are_seen() -> None:
    desk = Desk()
    desk.hold(alarm(trunk="a"), minutes=30)
    assert desk.hold(alarm(trunk="a"), alarm(since=BEGAN), minutes=30) == []


def test_what_is_graver_and_of_more_calls_at_once_is_told_once() -> None:
    desk = Desk()
    desk.hold(alarm(trunk="a"), minutes=30)
    assert desk.look(alarm(trunk="a"), alarm(since=desk.at, severity=PAGE)) == ["escalated"]
    assert desk.hold(alarm(trunk="a"), alarm(severity=PAGE), minutes=5) == []


def test_it_grows_only_so_often() -> None:
    desk = Desk()
    told: list[str] = []
    for at in range(3 * MAX_TOLD):
        now = alarm(tenant="t", trunk="a"), alarm(region=f"r{at}", tenant="t", since=desk.at)
        told += desk.hold(*now, minutes=15)
        told += desk.hold(now[0], alarm(since=desk.at), minutes=15)
    assert told.count("escalated") < MAX_TOLD


# ------------------------------------------------------------------------------------ one trouble


def test_a_trunk_that_is_down_and_what_fails_on_it_are_one_incident() -> None:
    desk = Desk()
    down = alarm("trunk-down", trunk="a", source="trunk", severity=PAGE)
    effects = [
        alarm("5xx", trunk="a", severity=PAGE),
        alarm("4xx", trunk="a", tenant="t"),
        alarm("volume", trunk="a"),
        alarm("asr"),
    ]
    assert desk.look(down, *effects) == ["opened"]
    assert (desk.one.category, desk.one.scope) == ("trunk-down", "trunk=a")
    assert desk.one.summary.startswith("trunk=a: trunk-down; also 4xx, 5xx, asr, volume; ")


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_they_are_one_incident_whichever_is_seen_first(gap: int) -> None:
    alarms = [alarm("trunk-down", trunk="a"), alarm("5xx", trunk="a"), alarm("asr", trunk="a")]
    for turn in range(3):
        desk = Desk()
        order = alarms[turn:] + alarms[:turn]
        for count in range(1, 4):
            desk.hold(*order[:count], minutes=gap)
        desk.look(*alarms)
        assert [one.what for one in desk.notices] == ["opened"]
        assert desk.one.scope == "trunk=a"


def test_what_was_there_long_before_is_not_explained_by_what_came_later() -> None:
    desk = Desk()
    desk.hold(alarm("asr", tenant="t"), minutes=60)
    assert desk.look(alarm("asr", tenant="t"), alarm("5xx", since=desk.at)) == ["opened"]
    assert desk.scopes == ["all", "tenant=t"]


def test_an_effect_tells_how_grave_it_is_and_not_where() -> None:
    desk = Desk()
    desk.look(alarm("5xx", trunk="a", severity=WARN))
    effect = alarm("asr", severity=PAGE, summary="ASR 40 % (40 of 100)")
    assert desk.look(alarm("5xx", trunk="a", severity=WARN), effect) == ["escalated"]
    assert desk.one.scope == "trunk=a"
    assert desk.one.summary.startswith("all: ASR 40 % (40 of 100); also 5xx; ")


def test_other_troubles_stay_apart() -> None:
    desk = Desk()
    desk.look(
        alarm("5xx", trunk="a"),
        alarm("5xx", trunk="b"),
        alarm("486", tenant="t"),
        alarm("certificate", trunk="a"),
        alarm("codec-change", trunk="b"),
    )
    assert len(desk.incidents.open()) == 5


def test_two_incidents_that_come_to_be_of_the_same_calls_become_the_older() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a", severity=WARN))
    name = desk.one.incident
    desk.look(alarm(trunk="a", severity=WARN), alarm(trunk="b", severity=PAGE))
    assert desk.scopes == ["trunk=a", "trunk=b"]
    both = alarm(trunk="a", severity=WARN), alarm(trunk="b", severity=PAGE)
    assert sorted(desk.look(alarm(severity=WARN), *both)) == ["cleared", "escalated"]
    assert (desk.one.incident, desk.one.scope, desk.one.severity) == (name, "all", PAGE)
    (over,) = [row for row in desk.rows if row.state == "cleared"]
    assert over.summary == f"is part of {name}"
    assert desk.look(alarm(active=False), *both, minutes=12) == ["cleared"]
    assert desk.incidents.open() == []


def test_one_that_nobody_was_told_of_ends_without_a_word() -> None:
    desk = Desk()
    desk.look(alarm("asr", tenant="t"))
    causes = alarm("5xx", trunk="a"), alarm("5xx", trunk="b")
    before = alarm("asr", tenant="u", since=BEGAN - 20 * MINUTE)
    assert desk.look(alarm("asr", tenant="t"), before, *causes) == []
    assert desk.one.scope == "all"
    assert len({row.incident for row in desk.rows}) == 1
    assert desk.look(minutes=10) == ["cleared"]


def test_what_narrows_to_two_causes_stays_one_incident() -> None:
    desk = Desk()
    both = alarm(trunk="a"), alarm(trunk="b")
    desk.hold(alarm(), *both, minutes=5)
    desk.hold(alarm(active=False), *both, minutes=5)
    assert desk.one.scope == "all"
    assert [one.what for one in desk.notices] == ["opened"]


# --------------------------------------------------------------------------------------- storms


def run(world: World, desk: Desk, broken: list[tuple[Scope, float]], minutes: int) -> list[str]:
    world.broken = broken
    told = []
    held: dict[Any, Alarm] = {}
    for _ in range(minutes):
        now = {one.key: one for one in world.look(desk.at)}
        ended = [
            msgspec.structs.replace(held[key], active=False) for key in held.keys() - now.keys()
        ]
        held = now
        told += desk.look(*now.values(), *ended)
    return told


def test_five_hundred_cohorts_that_fail_by_one_carrier_are_one_incident_upstream() -> None:
    world = World(tenants=63, carriers=4, trunks=2, calls=10)
    desk = Desk(world.ask)
    assert run(world, desk, [], 3) == []
    assert run(world, desk, [(scope(carrier="c1"), 0.6)], 10) == ["opened"]
    failing = {one.scope for one in world.look(desk.at) if len(one.scope) == 4}
    assert len(failing) > 200
    assert (desk.one.scope, desk.one.upstream, desk.one.carrier) == ("carrier=c1", True, "c1")
    assert desk.one.explained is not None
    assert desk.one.explained > 0.9
    assert run(world, desk, [], 15) == ["cleared"]
    assert len({row.incident for row in desk.rows}) == 1
    assert len(desk.rows) <= 6


def test_five_hundred_cohorts_that_fail_without_any_rest_are_one_incident_of_all() -> None:
    world = World(tenants=63, carriers=1, trunks=4, calls=10)
    desk = Desk(world.ask)
    assert run(world, desk, [(scope(carrier="c0"), 0.6)], 5) == ["opened"]
    assert desk.one.scope == "all"


def test_three_independent_troubles_are_three_incidents() -> None:
    world = World()
    desk = Desk(world.ask)
    causes = [scope(trunk="c1-1"), scope(tenant="t3"), scope(trunk="c2-2", direction="inbound")]
    assert run(world, desk, [(causes[0], 0.6)], 5) == ["opened"]
    assert run(world, desk, [(one, 0.6) for one in causes[:2]], 5) == ["opened"]
    assert run(world, desk, [(one, 0.6) for one in causes], 5) == ["opened"]
    assert desk.scopes == sorted(map(scope_text, causes))
    assert run(world, desk, [(causes[2], 0.6)], 15) == ["cleared", "cleared"]
    assert run(world, desk, [], 15) == ["cleared"]


@pytest.mark.parametrize("seed", range(5))
def test_a_tenant_seen_before_the_carrier_it_suffers_from_is_told_once(seed: int) -> None:
    world = World(seed=seed)
    desk = Desk(world.ask)
    assert run(world, desk, [(scope(tenant="t1", carrier="c1"), 0.7)], 3) == ["opened"]
    assert run(world, desk, [(scope(carrier="c1"), 0.7)], 6) == []
    assert desk.one.scope == "carrier=c1"
    assert "attributed" in [one.state for one in desk.events]


def test_what_spreads_to_twice_the_failures_later_is_told_as_worse() -> None:
    world = World()
    desk = Desk(world.ask)
    run(world, desk, [(scope(trunk="c1-1"), 0.5)], 30)
    assert run(world, desk, [(scope(carrier="c1"), 0.5)], 5) == ["escalated"]
    assert desk.one.scope == "carrier=c1"


def test_alarms_that_hold_on_after_the_trouble_do_not_move_the_incident() -> None:
    world = World(calls=20)
    desk = Desk(world.ask)
    run(world, desk, [(scope(trunk="c1-1"), 0.6)], 5)
    world.broken = [(scope(trunk="c1-1"), 0.6)]
    lingering = world.look(desk.at)
    world.broken = []
    for _ in range(10):
        world.look(desk.at)
        assert desk.look(*lingering) == []
        assert desk.scopes == ["trunk=c1-1"]
    assert desk.look(minutes=12) == ["cleared"]
    assert {row.scope for row in desk.rows} == {"trunk=c1-1"}


def test_what_is_left_of_a_trouble_is_where_the_incident_is_then() -> None:
    world = World()
    desk = Desk(world.ask)
    run(world, desk, [(scope(carrier="c1"), 0.6)], 5)
    assert run(world, desk, [(scope(trunk="c1-1"), 0.6)], 5) == []
    assert desk.scopes == ["trunk=c1-1"]


# --------------------------------------------------------------------------------- rows and messages


def test_numbers_alone_make_few_revisions() -> None:
    desk = Desk()
    for count in range(8 * 60):
        desk.look(alarm(trunk="a", summary=f"PDD {count} ms", count=count))
    assert len(desk.rows) <= 13
    assert [row.revision for row in desk.rows] == list(range(len(desk.rows)))
    assert desk.rows[-1].summary != desk.rows[-2].summary


def test_an_incident_that_stays_as_it_is_has_one_row_until_it_ends() -> None:
    desk = Desk()
    desk.hold(alarm("certificate", trunk="a", summary="ends in 13 days"), minutes=24 * 60)
    assert len(desk.rows) == 1
    desk.look(minutes=10)
    assert [row.revision for row in desk.rows] == [0, 1]
    assert desk.rows[-1].summary == (
        "trunk=a: ends in 13 days; 2026-10-03 14:03 to 2026-10-04 14:02 UTC"
    )


def test_a_scope_that_swings_makes_few_rows() -> None:
    desk = Desk()
    for minute in range(6 * 60):
        desk.look(alarm(trunk="a"), alarm(since=BEGAN, active=minute % 2 == 0))
    assert [one.what for one in desk.notices] == ["opened"]
    assert len(desk.rows) <= 12


def test_each_row_has_its_event_and_names_are_never_given_twice() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a"), alarm(trunk="b"))
    desk.look(alarm(trunk="a", severity=PAGE), minutes=25)
    desk.look(alarm(trunk="a"), minutes=60)
    names = [one.event for one in desk.events]
    assert len(set(names)) == len(names)
    assert {(one.incident, one.revision) for one in desk.rows} == {
        (one.event.split("/")[0], int(one.event.split("/")[1])) for one in desk.events
    }
    event, row = desk.events[0], desk.rows[0]
    assert (event.kind, event.subject, event.state) == ("incident", row.incident, "opened")
    assert (event.scope, event.trunk, event.text) == ("trunk=a", "a", row.summary)


def test_names_are_of_category_time_and_a_number() -> None:
    desk = Desk()
    desk.look(alarm("5xx", trunk="a"), alarm("5xx", trunk="b"))
    assert sorted(row.incident for row in desk.rows) == [
        "5xx-20261003T140300.000000Z-1",
        "5xx-20261003T140300.000000Z-2",
    ]


def test_the_message_has_numbers_times_codes_examples_and_the_split() -> None:
    rows = [
        share(100, 32, trunk="A", carrier="c"),
        share(100, 7, trunk="B", carrier="c"),
        *(share(100, 1, trunk=f"X{at}") for at in range(5)),
    ]
    said = alarm(
        "4xx",
        trunk="A",
        summary="4xx 32 % (32 of 100) in the last 5 min; normal for Sat 14:00 is 1 %",
        count=32,
        total=100,
        codes=((404, 29), (484, 5), (488, -1)),
        call_ids=("one", "two"),
    )
    broad = alarm("4xx", count=44, total=700, call_ids=("two", "three", "four", "five", "six"))
    desk = Desk(lambda _: rows)
    desk.look(broad, said)
    row = desk.rows[0]
    assert row.summary == (
        "trunk=A: 4xx 32 % (32 of 100) in the last 5 min; normal for Sat 14:00 is 1 %;"
        " trunks A 31, B 6; 2026-10-03 14:03 to 14:03 UTC"
    )
    assert row.codes == ("404 +29", "484 +5", "488 -1")
    assert row.call_ids == ("one", "two", "three", "four", "five")
    assert len(row.call_ids) == MAX_EXAMPLES
    assert (row.scope, row.trunk, row.tenant) == ("trunk=A", "A", None)
    assert row.explained == pytest.approx(31 / 37)
    assert row.sources == ("rate",)
    evidence = msgspec.json.decode(row.evidence or "")
    assert evidence["by_value"] == {"trunk": {"A": 31, "B": 6}}
    assert evidence["alarms_total"] == 2
    assert evidence["alarms"][0] == {
        "source": "rate",
        "category": "4xx",
        "scope": "trunk=A",
        "severity": "warn",
        "since": BEGAN,
        "count": 32,
        "total": 100,
    }


def test_a_split_that_the_alarm_tells_itself_is_not_told_twice() -> None:
    rows = [share(100, 32, trunk="A"), share(900, 9, trunk="B")]
    said = alarm("4xx", trunk="A", count=32, total=100, summary="trunk=A: 4xx; trunks A 31")
    desk = Desk(lambda _: rows)
    desk.look(said)
    assert desk.rows[0].summary == "trunk=A: 4xx; trunks A 31; 2026-10-03 14:03 to 14:03 UTC"


def test_what_strangers_wrote_cannot_make_evidence_large_or_wrong() -> None:
    for details in (
        {"address": "x" * MAX_EVIDENCE},
        {"half": "\ud800"},
        {"what": object()},
        {"nul": "\0", "number": float("nan")},
    ):
        desk = Desk()
        desk.look(alarm("destination-drift", trunk="a", evidence=details))
        evidence = desk.rows[0].evidence
        assert evidence is not None
        assert len(evidence.encode()) <= MAX_EVIDENCE
        assert msgspec.json.decode(evidence)["alarms"][0]["scope"] == "trunk=a"
    desk = Desk()
    long = [alarm(tenant="t" * 3000, source=f"s{at}") for at in range(30)]
    desk.look(*long)
    assert len((desk.rows[0].evidence or "").encode()) <= MAX_EVIDENCE
    assert msgspec.json.decode(desk.rows[0].evidence or "")["alarms_total"] == 30
    desk = Desk(lambda _: [share(100, 60, tenant="\ud800"), share(900, 9, tenant="t")])
    desk.look(alarm("5xx"))
    assert desk.rows[0].evidence is None
    desk = Desk()
    desk.look(alarm(source="\ud800"))
    assert msgspec.json.decode(desk.rows[0].evidence or "")["alarms"] == []


def test_a_summary_has_an_end() -> None:
    desk = Desk()
    desk.look(alarm(summary="x" * 5000))
    assert len(desk.rows[0].summary) < MAX_SUMMARY + 60


def test_a_record_keeps_what_it_knew_when_nothing_holds_any_more() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a", summary="it was so", codes=((503, 7),), call_ids=("x",)))
    desk.look(alarm(trunk="a", active=False), minutes=12)
    row = desk.rows[-1]
    assert row.state == "cleared"
    assert (row.codes, row.call_ids) == (("503 +7",), ("x",))
    assert "it was so" in row.summary
    assert "alarms" in (row.evidence or "")


def test_the_gravest_are_shown_first() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a", severity=TREND))
    desk.look(alarm(trunk="b", severity=PAGE), alarm(trunk="c", severity=WARN))
    assert [record.severity for record in desk.incidents.open()] == [PAGE, WARN, TREND]


# ------------------------------------------------------------------------------------------- restart


def test_what_an_earlier_life_left_open_goes_on_and_is_not_told_again() -> None:
    before = Desk()
    before.look(alarm(trunk="a", codec="PCMA"), alarm("volume", trunk="b"))
    rows = list(before.rows)
    after = Desk()
    after.at = before.at + 5 * MINUTE
    after.incidents.restore([*rows, *rows])
    assert after.hold(alarm(trunk="a", codec="PCMA"), minutes=5) == []
    assert after.scopes == ["trunk=a,codec=PCMA", "trunk=b"]
    assert after.hold(alarm(trunk="a", codec="PCMA"), minutes=6) == ["cleared"]
    assert after.rows[-1].incident == before.rows[-1].incident
    assert after.rows[-1].revision == 1
    assert after.look(alarm(trunk="a", codec="PCMA", severity=PAGE)) == ["escalated"]
    assert after.look(minutes=12) == ["cleared"]
    assert {one.incident for one in after.rows} == {one.incident for one in rows}


def test_the_newest_revision_is_restored_and_what_is_over_is_not() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a"))
    desk.look(alarm(trunk="a", severity=PAGE), minutes=1)
    desk.look(alarm("volume"), minutes=1)
    for rows in (desk.rows, desk.rows[::-1]):
        after = Desk()
        after.incidents.restore(rows)
        assert [row.revision for row in after.incidents.open()] == [1, 0]
        after.incidents.restore(rows)
        assert len(after.incidents.open()) == 2
    desk.look(minutes=12)
    after = Desk()
    after.incidents.restore(desk.rows)
    assert after.incidents.open() == []


def test_restored_incidents_of_the_same_calls_become_the_older_one() -> None:
    desk = Desk()
    desk.look(alarm(trunk="a"))
    row = desk.rows[0]
    other = msgspec.structs.replace(
        row, incident="pdd-2", scope="all", trunk=None, opened_at=BEGAN + 1, severity=PAGE
    )
    after = Desk()
    after.incidents.restore([other, row])
    assert sorted(after.look(alarm(trunk="a"))) == ["cleared", "escalated"]
    assert (after.one.incident, after.one.severity) == (row.incident, PAGE)
    assert after.one.scope == "all"


@pytest.mark.parametrize(
    "one",
    [(), scope(codec="G729"), scope(tenant="a=b", codec="x"), scope(region="r", agent="codec")],
)
def test_a_scope_comes_back_from_its_row(one: Scope) -> None:
    desk = Desk()
    desk.look(msgspec.structs.replace(alarm(), scope=one))
    after = Desk()
    after.incidents.restore(desk.rows)
    assert after.look(msgspec.structs.replace(alarm(), scope=one)) == []
    assert after.one.scope == scope_text(one)


# -------------------------------------------------------------------------------------------- bounds


def test_more_incidents_than_may_be_open_are_counted_once_and_opened_when_there_is_room() -> None:
    desk = Desk(max_open=2)
    many = [alarm(trunk=f"x{at}") for at in range(5)]
    grave = alarm(trunk="z", severity=PAGE)
    assert desk.look(*many, grave) == ["opened", "opened"]
    assert desk.scopes == ["trunk=x0", "trunk=z"]
    desk.hold(*many, grave, minutes=5)
    assert desk.incidents.overflowed == 4
    ended = msgspec.structs.replace(grave, active=False)
    told = desk.look(ended, *many)
    for _ in range(12):
        told += desk.look(*many)
    assert told == ["cleared", "opened"]
    assert desk.incidents.overflowed == 4


def test_restoring_has_the_same_bound() -> None:
    desk = Desk()
    desk.look(*(alarm(trunk=f"x{at}") for at in range(5)))
    after = Desk(max_open=3)
    after.incidents.restore(desk.rows)
    assert (len(after.incidents.open()), after.incidents.overflowed) == (3, 2)


def test_of_those_that_may_come_again_only_so_many_are_remembered() -> None:
    desk = Desk(max_open=2, clear_seconds=60)
    for at in range(6):
        desk.look(alarm(trunk=f"x{at}"))
        desk.look(alarm(trunk=f"x{at}", active=False), minutes=2)
    assert len(desk.incidents._ended) == 2


def test_of_too_many_alarms_the_gravest_are_looked_at() -> None:
    desk = Desk()
    many = [alarm(source=f"{at}", severity=TREND, trunk="a") for at in range(MAX_ALARMS)]
    assert desk.look(*many, alarm("volume", severity=PAGE)) == ["opened", "opened"]
    assert desk.incidents.skipped == 1
    assert desk.incidents.open()[0].category == "volume"


def test_rows_that_nobody_fetches_are_lost_and_counted() -> None:
    incidents = Incidents(IncidentSettings(clear_seconds=0, merge_seconds=0))
    at = BEGAN
    for _ in range(6):
        incidents.receive([alarm(trunk=f"x{one}") for one in range(1000)], at)
        incidents.receive([alarm(trunk=f"x{one}", active=False) for one in range(1000)], at)
        at += MINUTE
    assert len(incidents.records()) == MAX_WAITING
    assert incidents.lost == 4000
    assert len(incidents.notices()) == 12_000


def test_settings_can_change_in_a_run() -> None:
    desk = Desk()
    desk.look(alarm())
    desk.incidents.reload(IncidentSettings(clear_seconds=60))
    assert desk.look(alarm(active=False)) == ["cleared"]


def test_a_look_can_be_taken_in_slices_and_an_alarm_may_end_between_them() -> None:
    incidents = Incidents()
    slices = incidents.look([alarm(trunk="a"), alarm("volume", trunk="a")], BEGAN)
    assert next(slices) is None
    incidents.handle_timer(BEGAN + 2 * LAPSE)
    assert list(slices) == [None]
    assert len(incidents.open()) == 2
    incidents.handle_timer(BEGAN + 2 * LAPSE + 600 * SECOND)
    assert incidents.open() == []


def test_shares_are_asked_again_only_when_alarms_say_something_else() -> None:
    asked = []

    def ask(one: Alarm) -> Sequence[Share]:
        asked.append(one)
        return [share(100, 60, trunk="a"), share(900, 9, trunk="b")]

    desk = Desk(ask)
    said = alarm("5xx", trunk="a", count=60)
    down = alarm("trunk-down", trunk="b")
    desk.hold(said, minutes=5)
    desk.hold(said, down, minutes=5)
    assert len(asked) == 1
    desk.look(alarm("5xx", trunk="a", count=61), down)
    assert len(asked) == 2


# ---------------------------------------------------------------------------------------- properties

CATEGORIES = ["5xx", "asr", "pdd", "trunk-down"]
SCOPES = [
    (),
    scope(trunk="a"),
    scope(trunk="b"),
    scope(tenant="t"),
    scope(tenant="u"),
    scope(carrier="c"),
    scope(tenant="t", trunk="a"),
    scope(trunk="a", region="eu"),
]
said = st.builds(
    lambda category, one, active, severity, count, source: Alarm(
        source=source,
        category=category,
        scope=one,
        at=BEGAN,
        active=active,
        severity=severity,
        count=count,
        total=100,
        summary=f"{category} {count}",
    ),
    st.sampled_from(CATEGORIES),
    st.sampled_from(SCOPES),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([TREND, WARN, PAGE]),
    st.integers(0, 3),
    st.sampled_from(["rate", "drift"]),
)
rows_ = st.lists(
    st.builds(
        lambda failed, tenant, trunk: share(
            100, failed, tenant=tenant, trunk=trunk, carrier="c" if trunk == "a" else "d"
        ),
        st.integers(0, 100),
        st.sampled_from(["t", "u", "v"]),
        st.sampled_from(["a", "b", "d"]),
    ),
    max_size=9,
)
looks = st.lists(
    st.tuples(
        st.lists(said, max_size=8),
        rows_,
        st.sampled_from([60, 60, 60, 1, 200, 700, 2000, -100]),
    ),
    min_size=1,
    max_size=12,
)
FORM = re.compile(r"opened( escalated)*( cleared opened( escalated)*)* cleared")


def play(
    steps: Iterable[tuple[list[Alarm], list[Share], int]], luck: Random | None
) -> tuple[Any, ...]:
    """All that incidents give out; with `luck` alarms are shuffled, doubled, and looked at twice."""
    rows: list[Share] = []
    desk = Desk(lambda _: rows)
    at = BEGAN
    for alarms, rows, step in steps:
        now = [msgspec.structs.replace(one, at=at) for one in alarms]
        if luck is not None:
            now += luck.sample(now, len(now) // 2)
            luck.shuffle(now)
            desk.incidents.receive(now, at)
            luck.shuffle(now)
            luck.shuffle(rows)
        desk.incidents.receive(now, at)
        desk.fetch()
        records = desk.incidents.open()
        for one in records:
            assert one.state == "open"
            for other in records:
                if one is not other and one.category == other.category:
                    scopes = [order_scope(_pairs(each)) for each in (one, other)]
                    assert not is_nested(*scopes)
        at += step * SECOND
        desk.incidents.handle_timer(at)
        desk.fetch()
    at = max(at, BEGAN)
    for _ in range(400):
        if not desk.incidents.open():
            break
        at += MINUTE
        desk.incidents.handle_timer(at)
    desk.fetch()
    assert desk.incidents.open() == []
    return desk.rows, desk.events, desk.notices


def _pairs(record: IncidentRecord) -> list[tuple[str, str]]:
    found = [(name, getattr(record, name)) for name in DIMENSIONS if name != "codec"]
    return [(name, value) for name, value in found if value is not None]


@settings(deadline=None, max_examples=4000)
@given(looks, st.randoms(use_true_random=False))
def test_whatever_is_looked_at_each_incident_is_opened_and_cleared_in_turn_and_order_is_nothing(
    steps: list[tuple[list[Alarm], list[Share], int]], luck: Random
) -> None:
    rows, events, notices = play(steps, None)
    told: dict[str, list[str]] = {}
    for notice in notices:
        told.setdefault(notice.incident.incident, []).append(notice.what)
    assert told.keys() == {row.incident for row in rows}
    for name, whats in told.items():
        assert FORM.fullmatch(" ".join(whats)), whats
        mine = [row for row in rows if row.incident == name]
        assert [row.revision for row in mine] == list(range(len(mine)))
        assert mine[-1].state == "cleared"
        assert len({row.received_at for row in mine}) == 1
    assert len({event.event for event in events}) == len(events)
    assert len({row.incident for row in rows}) == sum(row.revision == 0 for row in rows)
    distinct = [
        ([*{one.key: one for one in said}.values()], rows, step) for said, rows, step in steps
    ]
    assert play(distinct, None) == play(distinct, luck)
