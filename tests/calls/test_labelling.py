"""Whose calls and attempts are, by real matchers over golden flows."""

import random
from typing import Any

import msgspec
import pytest

from flows import FLOWS, PARENTS
from lives import Life, Tables
from sim import ADDRESSES, Line, World, comparable, packet, play, shuffled, sip_text
from sipsidecar.calls.call import MAX_HEADER, Call
from sipsidecar.calls.events import OTHER, AttemptRecord, CallRecord, Cohort, LegRecord, Sighted
from sipsidecar.calls.labelling import Labels
from sipsidecar.signals.cohort import Cohorts, Matcher

A, B, C, P = (ADDRESSES[name] for name in "ABCP")
CALLERS = Matcher(tenant="acme", direction="inbound", sources=(A,))
TRUNK_B = Matcher(trunk="b", direction="outbound", addresses=(B,))
TRUNK_C = Matcher(trunk="c", direction="outbound", region="far", addresses=(C,))
FAILOVER = [
    "0.0 A>P INVITE 1/INVITE b1 a -",
    "0.01 P>B INVITE 1/INVITE p1 a -",
    "0.2 B>P 503 1/INVITE p1 a x",
    "0.3 P>C INVITE 1/INVITE q1 a -",
    "1.8 C>P 200 1/INVITE q1 a y",
    "1.81 P>A 200 1/INVITE b1 a y",
    "1.9 A>P ACK 1/ACK b2 a y",
    "4.81 A>P BYE 2/BYE b3 a y",
]
LABELS = ("tenant", "trunk", "direction", "region")


def told(*matchers: Matcher, lines: list[str] = FAILOVER, **how: Any) -> World:
    world = World(cohorts=Cohorts(matchers, {2001: "edge"}), **how)
    for text in lines:
        line = Line.of(text)
        world.send(packet(line, "one@example.com", parent=PARENTS.get(line.branch)), line.at)
    world.run_out()
    return world


def labels_of(record: object) -> tuple[str | None, ...]:
    return tuple(getattr(record, name) for name in LABELS)


def test_a_call_has_its_ingress_hops_labels_and_the_trunk_of_its_last_attempt_that_has_one() -> (
    None
):
    world = told(CALLERS, TRUNK_B, TRUNK_C)
    assert labels_of(world.call()) == ("acme", "c", "inbound", OTHER)
    assert [labels_of(one) for one in world.attempts()] == [
        ("acme", "b", "outbound", OTHER),
        ("acme", "c", "outbound", "far"),
    ]


def test_the_trunk_of_the_ingress_hop_counts_before_those_of_attempts() -> None:
    world = told(Matcher(trunk="in", sources=(A,)), TRUNK_C)
    assert world.call().trunk == "in"
    assert [one.trunk for one in world.attempts()] == [OTHER, "c"]


def test_carrier_and_agent_of_a_call_are_each_of_the_last_hop_that_has_one() -> None:
    """The carrier comes before, the agent after the proxy; the failed attempt keeps its own."""
    world = told(
        CALLERS,
        Matcher(trunk="b", carrier="blue", addresses=(B,)),
        Matcher(trunk="c", agent="bot", addresses=(C,)),
    )
    call = world.call()
    assert (call.trunk, call.carrier, call.agent) == ("c", "blue", "bot")
    assert [(one.carrier, one.agent) for one in world.attempts()] == [
        ("blue", OTHER),
        (OTHER, "bot"),
    ]
    world = told(Matcher(carrier="in", agent="caller", sources=(A,)), TRUNK_B, TRUNK_C)
    assert (world.call().carrier, world.call().agent) == ("in", "caller")
    # Who made the call is its agent at every hop, but the carrier is that of the hop.
    assert {(one.carrier, one.agent) for one in world.attempts()} == {(OTHER, "caller")}


def test_an_attempt_without_a_trunk_is_passed_over() -> None:
    assert told(CALLERS, TRUNK_B).call().trunk == "b"
    assert told(CALLERS).call().trunk == OTHER


def test_what_is_said_of_everything_is_a_default_that_any_hop_comes_before() -> None:
    default = Matcher(tenant="rest", trunk="none", direction="local", region="here")
    world = told(CALLERS, TRUNK_C, default)
    assert labels_of(world.call()) == ("acme", "c", "inbound", "here")
    assert [labels_of(one) for one in world.attempts()] == [
        ("acme", "none", "inbound", "here"),
        ("acme", "c", "outbound", "far"),
    ]
    assert told(default).call().trunk == "none"


def test_without_matchers_records_have_no_labels() -> None:
    for world in (told(), play(FAILOVER, parents=PARENTS)):
        records = [world.call(), *world.attempts()]
        assert {labels_of(one) for one in records} == {(None, None, None, None)}


def test_labels_are_part_of_a_record_so_that_a_late_invite_revises_it() -> None:
    lines = ["0.5 B>A 486 1/INVITE b1 a x", "0.0 A>B INVITE 1/INVITE b1 a -"]
    world = World(cohorts=Cohorts([Matcher(tenant="gold", prefixes=("bob",))]))
    for at, line in zip((0.5, 12.0), map(Line.of, lines), strict=True):
        world.send(packet(line, "one@example.com"), at)
    world.run_out()
    said = [one for one in world.outputs if isinstance(one, CallRecord)]
    assert [(one.revision, one.tenant) for one in said] == [(0, OTHER), (1, "gold")]


def test_an_ingress_whose_invite_was_lost_is_told_by_its_ends_and_the_names_of_the_next_hop() -> (
    None
):
    gold = Matcher(tenant="gold", sources=(A,), prefixes=("bob",))
    assert told(gold, lines=FAILOVER[1:]).call().tenant == "gold"
    assert told(gold, lines=FAILOVER[1:3]).call().tenant == OTHER


def test_a_call_of_which_only_a_bye_was_seen_has_the_labels_of_nothing() -> None:
    world = told(CALLERS, Matcher(region="here"), lines=["9.0 A>B BYE 2/BYE b3 a x"])
    assert labels_of(world.call()) == (OTHER, OTHER, OTHER, "here")


def test_the_hop_of_an_invite_that_was_lost_is_told_by_its_replies() -> None:
    world = told(CALLERS, lines=["0.5 B>A 486 1/INVITE b1 a x", "0.6 A>B ACK 1/ACK b1 a x"])
    assert world.call().tenant == "acme"


def test_headers_that_a_matcher_asks_for_are_kept_of_the_first_copy_and_no_others() -> None:
    line = Line.of("0.0 A>B INVITE 1/INVITE b1 a -")
    world = World(cohorts=Cohorts([Matcher(tenant="t", headers={"X-Tenant": "gold*"})]))
    for value, skew in ((b"silver", 5_000), (b"golden" + b"x" * 999, 0), (b"tin", 9_000)):
        data = packet(line, "one@example.com", skew_us=skew)
        text = sip_text(line, "one@example.com")
        payload = text.replace(b"Max-Forwards: 70", b"X-Tenant: %s\r\nX-Other: 1" % value)
        size = len(payload) - len(text)
        place = data.index(b"INVITE sip:")
        data = data[: place - 2] + (len(payload) + 6).to_bytes(2, "big") + payload
        data = data[:4] + (len(data)).to_bytes(2, "big") + data[6:]
        assert size > 0
        world.send(data)
    ((_, call),) = world.pipeline.live_calls()
    first = next(iter(call.legs.values())).first
    assert first is not None
    assert set(first.headers) == {"x-tenant"}
    assert (first.headers["x-tenant"][:6], len(first.headers["x-tenant"])) == ("golden", MAX_HEADER)
    world.run_out()
    assert world.call().tenant == "t"


def test_no_header_is_kept_when_none_is_asked_for() -> None:
    world = World(cohorts=Cohorts([CALLERS]))
    world.send(packet(Line.of(FAILOVER[0]), "one@example.com"))
    ((_, call),) = world.pipeline.live_calls()
    assert [leg.first.headers for leg in call.legs.values() if leg.first] == [{}]


def test_capture_ids_are_those_that_saw_the_hop_the_first_one_named_first() -> None:
    asked: list[Sighted] = []

    class Asked:
        headers = ()

        def of(self, sighted: Sighted) -> Cohort:
            asked.append(sighted)
            return Cohort()

    world = World(cohorts=Asked())
    invite, egress = Line.of(FAILOVER[0]), Line.of(FAILOVER[1])
    world.send(packet(invite, "one@example.com", agent_id=9, skew_us=4_000), peer="203.0.113.6")
    world.send(packet(invite, "one@example.com", agent_id=7), peer="203.0.113.5")
    world.send(packet(egress, "one@example.com", agent_id=9, parent="b1"), peer="203.0.113.6")
    world.run_out()
    assert {(one.dst_ip, one.agent_ids) for one in asked[1:]} == {(P, (7, 9)), (B, (9,))}


@pytest.mark.parametrize(("name", "lines", "_"), FLOWS, ids=[name[:50] for name, *_ in FLOWS])
def test_labels_do_not_depend_on_the_order_of_arrival(
    name: str, lines: list[str], _: dict[str, object]
) -> None:
    cohorts = Cohorts([CALLERS, TRUNK_B, TRUNK_C, Matcher(region="here")])
    said = []
    for order in (list(range(len(lines))), shuffled(len(lines), random.Random(name))):
        world = World(cohorts=cohorts)
        for step, index in enumerate(order):
            line = Line.of(lines[index])
            data = packet(line, "flow@example.com", parent=PARENTS.get(line.branch))
            world.send(data, step * 0.001)
        world.run_out()
        records: list[CallRecord | AttemptRecord] = [*world.calls(), *world.attempts()]
        said.append([comparable(one) for one in records])
    assert said[0] == said[1]


def test_a_restart_changes_no_label() -> None:
    tables = Tables()
    first = Life(tables, cohorts=Cohorts([CALLERS, TRUNK_B, TRUNK_C]))
    for text in FAILOVER[:5]:
        first.hear(text, parents=PARENTS)
    second = Life(tables, first.now, cohorts=Cohorts([CALLERS, TRUNK_B, TRUNK_C]))
    second.rebuild()
    for text in FAILOVER[5:]:
        second.hear(text, parents=PARENTS)
    second.run_out()
    assert labels_of(tables.calls()[0]) == ("acme", "c", "inbound", OTHER)


def test_a_call_without_an_invite_is_nobodys() -> None:
    assert Labels(Cohorts([Matcher(tenant="t")])).of_call(Call("one", 0.0, 1), {}) == Cohort()


def test_vias_that_name_each_other_leave_the_earliest_for_the_ingress() -> None:
    world = World(cohorts=Cohorts([CALLERS]))
    world.pipeline.watch(moves=True, setups=False)
    for text, parent in ((FAILOVER[0], "p1"), (FAILOVER[1], "b1")):
        world.send(packet(Line.of(text), "one@example.com", parent=parent))
    assert world.pipeline.moves()[-1].cohort.tenant == "acme"


def test_a_legs_labels_are_by_its_gateway_and_switch_and_the_end_that_is_the_peer() -> None:
    cohorts = Cohorts(
        [
            Matcher(trunk="g", gateways=("trunk-a",)),
            Matcher(tenant="t", sources=(A,), callers=("alice",), switches=("fs1",)),
            Matcher(region="r", destinations=(A,)),
        ]
    )
    leg = LegRecord(
        uuid="u", switch="fs1", conversation="u", received_at=1, created_at=1, direction="inbound",
        caller="alice", network_ip=A, network_port=5060,
    )  # fmt: skip
    labels = Labels(cohorts)
    assert labels.of_leg(leg) == Cohort("t", OTHER, OTHER, OTHER)
    made = msgspec.structs.replace(leg, direction="outbound", gateway="trunk-a")
    assert labels.of_leg(made) == Cohort(OTHER, "g", OTHER, "r")
