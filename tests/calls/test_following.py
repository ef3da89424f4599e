"""Calls that FreeSWITCH alone shows, and what it adds to those that SIP shows."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ADDRESSES, EPOCH, Line, World, packet
from sipsidecar.calls.events import CallRecord, Cohort, Move, Setup
from sipsidecar.calls.legs import LINGER, SETTLE
from sipsidecar.calls.table import STATES
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.leases import Alive
from sipsidecar.wire.esl import Event

CALL_ID = "one@example.com"
A, B = ADDRESSES["A"], ADDRESSES["B"]
COHORTS = Cohorts(
    [
        Matcher(tenant="acme", sources=(A,), switches=("fs1",)),
        Matcher(trunk="g", gateways=("trunk-a",)),
        Matcher(trunk="h", gateways=("trunk-b",)),
    ],
    {2001: "edge"},
)
ACME = Cohort("acme")
INVITE = "0.0 A>B INVITE 1/INVITE b1 a -"
RINGING = "0.5 B>A 180 1/INVITE b1 a x"
OK = "1.0 B>A 200 1/INVITE b1 a x"
BUSY = "1.0 B>A 486 1/INVITE b1 a x"
BYE = "6.0 A>B BYE 2/BYE b3 a x"


class House(World):
    """A world that hears of events, too, and is told of moves and setups."""

    def __init__(self, cohorts: Cohorts | None = COHORTS) -> None:
        super().__init__(cohorts=cohorts)
        self.pipeline.watch(moves=True, setups=True)
        self.moves: list[Move] = []
        self.setups: list[Setup] = []
        self._sequence = itertools.count(1)

    def _drain(self) -> None:
        super()._drain()
        self.moves += self.pipeline.moves()
        self.setups += self.pipeline.setups()

    def sip(self, text: str, at: float | None = None, call_id: str = CALL_ID) -> None:
        line = Line.of(text)
        self.send(packet(line, call_id), line.at if at is None else at)

    def event(self, event: Event, at: float) -> None:
        self.run_until(at)
        now = EPOCH + round(self.now * 1_000_000)
        self.pipeline.receive_event("fs1", event, self.now, now)
        self._drain()

    def states(self) -> list[str | None]:
        return [move.state for move in self.moves]

    def told(self) -> str | None:
        return self.moves[-1].state if self.moves else None

    def alive(self, call_id: str = CALL_ID) -> Alive | None:
        return self.pipeline.alive(call_id)


_numbers = itertools.count(1)


def event(name: str, at: float, uuid: str = "in", **fields: Any) -> Event:
    """One event of a leg, made `at` seconds after the world began."""
    inbound = fields.pop("inbound", True)
    answered, hangup = fields.pop("answered", None), fields.pop("hangup", None)
    ringing = fields.pop("ringing", None)
    fields.setdefault("variable_sip_call_id", CALL_ID)
    fields.setdefault("variable_sip_network_ip", A if inbound else B)

    def stamp(seconds: float | None) -> str:
        return "0" if seconds is None else str(EPOCH + round(seconds * 1_000_000))

    return Event(
        event_name=name,
        unique_id=uuid,
        event_date_timestamp=stamp(at),
        event_sequence=str(next(_numbers)),
        core_uuid="core",
        call_direction="inbound" if inbound else "outbound",
        caller_channel_created_time=stamp(fields.pop("created", 0.0)),
        caller_channel_progress_time=stamp(ringing),
        caller_channel_answered_time=stamp(answered),
        caller_channel_hangup_time=stamp(hangup),
        variable_sip_network_port="5060",
        **fields,
    )


CREATE = event("CHANNEL_CREATE", 0.0)
PROGRESS = event("CHANNEL_PROGRESS", 0.5, ringing=0.5)
ANSWER = event("CHANNEL_ANSWER", 1.0, ringing=0.5, answered=1.0)
HANGUP = event("CHANNEL_HANGUP", 6.0, ringing=0.5, answered=1.0, hangup=6.0)
COMPLETE = event("CHANNEL_HANGUP_COMPLETE", 6.0, ringing=0.5, answered=1.0, hangup=6.0)
REFUSED = event(
    "CHANNEL_HANGUP_COMPLETE", 2.0, hangup=2.0, hangup_cause="USER_BUSY",
    variable_sip_hangup_disposition="send_refuse",
)  # fmt: skip
OUT = event("CHANNEL_CREATE", 0.2, "out", inbound=False, variable_sip_call_id=None,
    variable_sip_gateway_name="trunk-a", other_leg_unique_id="in")  # fmt: skip


def test_a_leg_that_came_in_is_a_call_with_each_of_its_states() -> None:
    house = House()
    for told, at in ((CREATE, 0.0), (PROGRESS, 0.5), (ANSWER, 1.0), (HANGUP, 6.0), (COMPLETE, 6.0)):
        house.event(told, at)
    assert house.moves == [Move(CALL_ID, state, ACME) for state in (*STATES, None)]
    house.run_out()
    assert len(house.moves) == 4
    assert len(house.pipeline.bridging.following) == 0


def test_a_leg_that_freeswitch_made_is_no_call_and_names_the_trunk() -> None:
    house = House()
    house.event(CREATE, 0.0)
    house.event(OUT, 0.2)
    assert house.moves == [
        Move(CALL_ID, "trying", ACME),
        Move(CALL_ID, "trying", ACME._replace(trunk="g")),
    ]
    house.event(COMPLETE, 6.0)
    house.run_out()
    calls = {one.call_id: one for one in house.calls()}
    assert (calls[CALL_ID].tenant, calls[CALL_ID].trunk) == ("acme", "g")
    assert {move.call_id for move in house.moves} == {CALL_ID}


def test_the_call_of_a_leg_that_freeswitch_made_is_its_gateways() -> None:
    house = House()
    made: dict[str, Any] = {"inbound": False, "variable_sip_gateway_name": "trunk-b",
        "variable_sip_call_id": "b@example.com", "hangup": 3.0}  # fmt: skip
    house.event(event("CHANNEL_CREATE", 0.2, "out", **made), 0.2)
    house.event(event("CHANNEL_HANGUP_COMPLETE", 3.0, "out", **made), 3.0)
    house.run_out()
    assert (house.call().tenant, house.call().trunk) == ("other", "h")
    assert house.setups[0].call.trunk == "h"
    assert house.moves == []


def test_the_newest_leg_that_was_made_says_the_trunk() -> None:
    house = House()
    for told in (CREATE, OUT):
        house.event(told, 0.2)
    house.event(event("CHANNEL_CREATE", 3.0, "out2", inbound=False, created=3.0,
        variable_sip_call_id=None, variable_sip_gateway_name="trunk-b",
        other_leg_unique_id="in"), 3.0)  # fmt: skip
    assert [move.cohort.trunk for move in house.moves] == ["other", "g", "h"]


def test_nobody_is_told_who_does_not_ask() -> None:
    world = World()
    for told in (CREATE, ANSWER, COMPLETE):
        world.pipeline.receive_event("fs1", told, 0.0, EPOCH)
    world.run_out()
    assert (world.pipeline.moves(), world.pipeline.setups()) == ([], [])
    assert world.call().final_code == 200


def test_without_cohorts_a_call_of_events_has_no_labels() -> None:
    house = House(cohorts=None)
    for told, at in ((CREATE, 0.0), (COMPLETE, 6.0)):
        house.event(told, at)
    house.run_out()
    assert {move.cohort for move in house.moves} == {Cohort()}
    assert (house.call().tenant, house.call().trunk) == (None, None)


def test_a_leg_that_is_met_at_its_end_was_never_live() -> None:
    house = House()
    house.event(COMPLETE, 6.0)
    house.run_out()
    assert house.moves == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([CREATE, PROGRESS, ANSWER, HANGUP, COMPLETE]), max_size=10))
def test_events_in_any_order_and_number_bring_nothing_back_that_is_over(told: list[Event]) -> None:
    house = House()
    for step, one in enumerate(told):
        house.event(one, step * 0.01)
    over = any(one in (HANGUP, COMPLETE) for one in told)
    assert house.told() is None or not over
    if None in house.states():
        assert house.states().index(None) == len(house.moves) - 1
    house.run_out()
    assert house.told() is None
    assert len(house.pipeline.bridging.following) == 0


FACTS: list[Event | str] = [CREATE, PROGRESS, ANSWER, COMPLETE, INVITE, RINGING, OK, BYE]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FACTS), max_size=14))
def test_whichever_of_sip_and_events_says_over_the_other_brings_nothing_back(
    told: Sequence[Event | str],
) -> None:
    """SIP shows the live state or, when it is late, repeats it: the end stands all the same."""
    house = House()
    for step, one in enumerate(told):
        if isinstance(one, str):
            house.sip(one, step * 0.01)
        else:
            house.event(one, step * 0.01)
        if BYE in told[: step + 1] or COMPLETE in told[: step + 1]:
            assert house.told() is None
            alive = house.alive()
            assert alive is None or alive.over or INVITE not in told[: step + 1]
    house.run_out()
    assert house.told() is None


def test_a_hang_up_ends_a_call_whose_bye_was_lost_in_hep() -> None:
    house = House()
    for text in (INVITE, OK):
        house.sip(text)
    for told, at in ((CREATE, 1.0), (ANSWER, 1.1)):
        house.event(told, at)
    assert house.states() == ["trying", "answered"]
    house.event(HANGUP, 6.0)
    assert house.states() == ["trying", "answered", None]
    assert sum(house.pipeline.snapshot(house.now).live.values()) == 0
    alive = house.alive()
    assert alive is not None
    assert alive.over


@pytest.mark.parametrize("seen", [[INVITE, RINGING], [RINGING]])
def test_a_call_whose_200_was_lost_in_hep_goes_on_until_its_answered_leg_hangs_up(
    seen: list[str],
) -> None:
    house = House()
    for text in seen:
        house.sip(text)
    for told, at in ((CREATE, 0.9), (ANSWER, 1.1)):
        house.event(told, at)
    assert house.told() == "answered"
    house.run_until(1000.0)
    assert house.told() == "answered"
    alive = house.alive()
    assert alive is not None
    assert not alive.over
    house.event(event("CHANNEL_HANGUP", 1000.0, answered=1.0, hangup=1000.0), 1000.0)
    assert house.told() is None
    house.run_out()
    assert house.told() is None


def test_an_answered_leg_does_not_bring_back_what_sip_showed_to_be_over() -> None:
    house = House()
    for text in (INVITE, OK, BYE):
        house.sip(text)
    for told in (CREATE, ANSWER):
        house.event(told, 6.1)
    assert house.told() is None


def test_the_end_of_a_leg_that_was_not_answered_ends_no_call_for_the_proxy_may_fail_over() -> None:
    house = House()
    house.sip(INVITE)
    for told, at in ((CREATE, 0.1), (REFUSED, 2.0)):
        house.event(told, at)
    assert house.states() == ["trying"]
    house.run_until(10.0)
    assert house.told() == "trying"


def test_the_answered_leg_that_freeswitch_made_ends_the_call_of_its_own_call_id() -> None:
    house = House()
    for text in (INVITE, OK):
        house.sip(text, call_id="b@example.com")
    house.event(event("CHANNEL_HANGUP", 6.0, "out", inbound=False, answered=1.0,
        variable_sip_call_id="b@example.com"), 6.0)  # fmt: skip
    assert house.moves[-1][:2] == ("b@example.com", None)


def test_a_second_leg_under_the_same_call_id_goes_on_when_the_first_was_refused() -> None:
    house = House()
    house.event(CREATE, 0.0)
    house.event(REFUSED, 2.0)
    house.event(event("CHANNEL_CREATE", 2.1, "next"), 2.1)
    assert house.states() == ["trying", None, "trying"]
    house.event(event("CHANNEL_ANSWER", 3.0, "next", answered=3.0), 3.0)
    house.run_until(30.0)
    assert house.told() == "answered"


def test_of_two_legs_the_furthest_counts() -> None:
    house = House()
    house.event(ANSWER, 1.0)
    house.event(event("CHANNEL_CREATE", 2.1, "next"), 2.1)
    assert house.states() == ["answered"]


def test_a_call_id_that_is_told_late_or_otherwise_moves_the_call() -> None:
    house = House()
    house.event(event("CHANNEL_STATE", 0.2, variable_sip_call_id=None), 0.2)
    assert house.moves == []
    house.event(event("CHANNEL_STATE", 0.4, variable_sip_call_id="later@example.com"), 0.4)
    house.event(CREATE, 0.5)
    assert [move[:2] for move in house.moves] == [
        ("later@example.com", "trying"),
        ("later@example.com", None),
        (CALL_ID, "trying"),
    ]
    assert house.alive("later@example.com") is None


def test_sip_that_comes_late_takes_over_and_is_believed_after_it_is_forgotten() -> None:
    house = House()
    house.event(ANSWER, 1.0)
    for text in (INVITE, OK, BYE):
        house.sip(text, 1.5)
    house.event(ANSWER, 2.0)
    assert house.told() is None
    house.run_until(100.0)
    assert not house.pipeline.calls.has_sip(CALL_ID)
    house.event(PROGRESS, 100.0)
    house.event(event("CHANNEL_STATE", 100.0, answered=1.0), 100.0)
    assert house.told() is None
    alive = house.alive()
    assert alive is not None
    assert alive.over


def test_sip_that_shows_no_call_leaves_the_word_to_events() -> None:
    house = House()
    house.sip("0.0 A>B ACK 1/ACK b2 a x")
    house.event(CREATE, 0.1)
    assert house.told() == "trying"


def test_a_leg_that_is_given_up_is_over() -> None:
    house = House()
    house.event(ANSWER, 1.0)
    house.pipeline.bridging.legs.reconcile("fs1", [], 10.0)
    house.run_until(10.0 + SETTLE + 0.1)
    assert house.told() is None
    assert house.alive() is None


def test_a_call_that_goes_on_at_the_end_of_a_life_is_not_told_to_be_over() -> None:
    house = House()
    house.event(ANSWER, 1.0)
    house.pipeline.drain(house.now)
    house._drain()
    assert house.told() == "answered"


def test_an_event_is_a_sign_of_life_beside_sip() -> None:
    house = House()
    house.event(CREATE, 0.1)
    assert house.alive() == Alive(over=False, last_now=0.1, media=False)
    house.sip(INVITE, 0.2)
    house.sip(OK, 1.0)
    house.event(ANSWER, 3.0)
    assert house.alive() == Alive(over=False, last_now=3.0, media=False)
    house.event(COMPLETE, 6.0)
    alive = house.alive()
    assert alive is not None
    assert (alive.over, alive.last_now) == (True, 1.0)


def test_reports_alone_do_not_hide_the_end_of_a_call_of_events() -> None:
    house = House()
    house.event(ANSWER, 1.0)
    for at in (2.0, 4.0):
        house.event(Event(event_name="RECV_RTCP_MESSAGE", unique_id="in",
            rtcp={"SSRC": "7", "Source0-SSRC": "8"}), at)  # fmt: skip
    alive = house.alive()
    assert alive is not None
    assert not alive.over
    house.event(COMPLETE, 6.0)
    alive = house.alive()
    assert alive is not None
    assert alive.over


def test_the_setup_of_an_answered_leg_is_told_a_settle_time_later_and_once() -> None:
    house = House()
    for told, at in ((CREATE, 0.0), (ANSWER, 1.0), (ANSWER, 1.2)):
        house.event(told, at)
    house.run_until(1.0 + SETTLE - 0.1)
    assert house.setups == []
    house.run_until(1.0 + SETTLE)
    (setup,) = house.setups
    assert (setup.call.answered, setup.call.ended, setup.call.tenant) == (True, False, "acme")
    house.event(COMPLETE, 6.0)
    house.run_out()
    assert len(house.setups) == 1


def test_the_setup_of_a_refused_leg_is_told_with_its_record() -> None:
    house = House()
    for told, at in ((CREATE, 0.0), (REFUSED, 2.0)):
        house.event(told, at)
    house.run_until(2.0 + SETTLE)
    (setup,) = house.setups
    (record,) = [one for one in house.outputs if isinstance(one, CallRecord)]
    assert (setup.call, setup.attempts) == (record, ())
    house.run_until(2.0 + SETTLE + LINGER)
    assert len(house.setups) == 1


def test_a_leg_that_ends_before_its_setup_was_told_tells_it_once() -> None:
    house = House()
    for told, at in ((CREATE, 0.0), (ANSWER, 1.0), (COMPLETE, 1.1)):
        house.event(told, at)
    house.run_out()
    assert len(house.setups) == 1


@pytest.mark.parametrize("first", ["sip", "events"])
def test_where_sip_shows_the_call_its_setup_is_told_by_sip_alone(first: str) -> None:
    house = House()
    facts: list[Event | str] = [CREATE, ANSWER, INVITE, OK]
    for one in facts if first == "events" else reversed(facts):
        if isinstance(one, str):
            house.sip(one, 1.0)
        else:
            house.event(one, 1.0)
    house.run_until(20.0)
    house.event(COMPLETE, 20.0)
    house.sip(BYE, 20.0)
    house.run_out()
    (setup,) = house.setups
    assert setup.call.final_origin == "callee"


def test_a_setup_that_was_not_seen_is_not_told() -> None:
    house = House()
    house.event(event("CHANNEL_STATE", 5.0, answered=1.0), 5.0)
    house.event(COMPLETE, 6.0)
    house.event(event("CHANNEL_CREATE", 0.0, "x", variable_sip_call_id=None), 7.0)
    house.event(event("CHANNEL_DESTROY", 7.5, "x", variable_sip_call_id=None), 7.5)
    house.run_out()
    assert house.setups == []
