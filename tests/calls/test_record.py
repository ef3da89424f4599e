import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import ANSWERED, FLOWS, PARENTS, SCENARIOS
from sim import ADDRESSES, Line, World, comparable, packet, play, shuffled
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import CallRecord
from sipsidecar.wire import hep


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s["name"][:40])
def test_every_shared_flow_gives_its_record(scenario: dict[str, Any]) -> None:
    for parents in ({}, PARENTS):
        record = play(scenario["messages"], parents=parents).call()
        for name, expected in {**scenario["full"], **scenario["expect"]}.items():
            found = getattr(record, name)
            if name == "flags":
                found = list(found)
            if name == "q850" and found is not None:
                found = str(found)
            assert expected == found, name


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s["name"][:40])
def test_no_arrival_order_and_no_duplicate_changes_a_sharedflow(scenario: dict[str, Any]) -> None:
    _assert_order_is_nothing(scenario["messages"], seed=scenario["name"])


@pytest.mark.parametrize(("name", "messages", "expected"), FLOWS, ids=[f[0][:50] for f in FLOWS])
def test_every_further_flow_gives_its_record(
    name: str, messages: list[str], expected: dict[str, object]
) -> None:
    record = play(messages, parents=PARENTS).call()
    for field, value in expected.items():
        assert value == getattr(record, field), field


@pytest.mark.parametrize(("name", "messages", "expected"), FLOWS, ids=[f[0][:50] for f in FLOWS])
def test_no_arrival_order_and_no_duplicate_changes_a_furtherflow(
    name: str, messages: list[str], expected: dict[str, object]
) -> None:
    _assert_order_is_nothing(messages, seed=name)


def _assert_order_is_nothing(messages: list[str], seed: str, orders: int = 200) -> None:
    rng = random.Random(seed)
    first = play(messages, parents=PARENTS)
    calls = [comparable(c) for c in first.calls()]
    attempts = [comparable(a) for a in first.attempts()]
    for _ in range(orders):
        world = play(messages, order=shuffled(len(messages), rng), parents=PARENTS)
        assert calls == [comparable(c) for c in world.calls()]
        assert attempts == [comparable(a) for a in world.attempts()]


def test_an_answer_by_another_agent_than_the_first_invites_has_no_delay() -> None:
    world = World()
    for text, node in (
        ("0.0 A>P INVITE 1/INVITE b1 a -", "P"),
        ("32.0 A>D INVITE 1/INVITE b2 a -", "D"),
        ("33.0 D>A 180 1/INVITE b2 a x", "D"),
        ("36.0 D>A 200 1/INVITE b2 a x", "D"),
        ("46.0 A>D BYE 2/BYE b4 a x", "D"),
    ):
        data = packet(Line.of(text), "dns@example.com", agent_id=ord(node))
        world.send(data, Line.of(text).at, peer=ADDRESSES[node])
    world.run_out()
    call = world.call()
    assert (call.final_code, call.pdd_ms, call.setup_ms, call.talk_ms) == (200, None, None, 10000.0)


def test_a_second_server_may_ring_longer_than_the_first_ones_refusal_waits() -> None:
    world = World()
    for text in (
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.1 B>A 503 1/INVITE b1 a k",
        "0.12 A>B ACK 1/ACK b1 a k",
        "0.2 A>C INVITE 1/INVITE b2 a -",
        "1.0 C>A 180 1/INVITE b2 a x",
        "121.0 C>A 200 1/INVITE b2 a x",
        "121.05 A>C ACK 1/ACK b3 a x",
        "131.0 A>C BYE 2/BYE b4 a x",
    ):
        world.send(packet(Line.of(text), "long@example.com"), Line.of(text).at)
    world.run_out()
    call = world.call()
    assert (call.final_code, call.pdd_ms, call.setup_ms) == (200, 1000.0, 121000.0)
    assert (call.revision, call.invites, call.talk_ms) == (0, 2, 10000.0)


def test_a_refusal_stands_when_a_branch_begun_before_it_stays_open() -> None:
    world = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.5 A>P INVITE 1/INVITE b2 a -",
            "2.0 P>A 486 1/INVITE b1 a x",
            "2.1 A>P ACK 1/ACK b1 a x",
        ]
    )
    assert (world.call().final_code, world.call().inferred) == (486, False)


def test_a_cancel_of_one_branch_is_no_race_with_the_answer_of_another() -> None:
    world = play(
        [
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.02 P>C INVITE 1/INVITE q1 a -",
            "2.0 B>P 200 1/INVITE p1 a x",
            "2.02 P>C CANCEL 1/CANCEL q1 a -",
            "2.1 C>P 487 1/INVITE q1 a y",
            "2.21 P>B ACK 1/ACK p2 a x",
            "5.0 P>B BYE 2/BYE p3 a x",
        ]
    )
    assert (world.call().final_code, world.call().flags) == (200, ())


def test_what_the_node_itself_refuses_is_the_proxys_and_marked_ones_are_our_own() -> None:
    flow = ["0.0 A>P INVITE 1/INVITE b1 a -", "0.001 P>A 486 1/INVITE b1 a k"]
    marked = [flow[0], f"{flow[1]} reason=SIP;cause=486;text=cac:global"]
    assert play(flow).call().final_origin == "proxy"
    assert play(marked).call().final_origin == "admission"


def test_a_stranger_cannot_mark_a_refusal_as_our_own() -> None:
    flow = [
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.5 B>A 486 1/INVITE b1 a x reason=SIP;cause=486;text=cac:global",
    ]
    assert play(flow).call().final_origin == "callee"


def test_an_answered_call_without_bye_ends_unknown_when_its_session_expired() -> None:
    flow = [*ANSWERED]
    flow[2] += " se=90"
    world = World(Timing(settle=2.0, longest=14_400.0))
    for text in flow:
        world.send(packet(Line.of(text), "expired@example.com"))
    world.run_until(121.9)
    assert world.calls() == []
    world.run_until(122.1)
    record = world.call()
    assert (
        record.final_code,
        record.ended,
        record.ended_at,
        record.talk_ms,
    ) == (200, False, None, None)


def test_two_callers_under_one_call_id_are_two_calls() -> None:
    other = [text.replace(" a ", " w ").replace("b1", "w1") for text in FLOWS[15][1]]
    assert {"a", "w"} == {c.from_tag for c in play([*FLOWS[15][1], *other]).calls()}


def test_stray_acks_and_byes_that_nobody_knows_are_no_calls() -> None:
    assert play(["0.0 A>B ACK 1/ACK b1 a x"]).calls() == []
    assert play(["0.0 A>B BYE 1/BYE b1 a x", "0.1 B>A 481 1/BYE b1 a x"]).calls() == []


def test_who_hung_up_is_unknown_when_only_a_later_bye_was_seen() -> None:
    record = play(["0.0 A>B BYE 7/BYE b1 a x"]).call()
    assert (
        record.released_by,
        record.seizure,
        record.flags,
    ) == (None, False, ("partial_no_invite",))


def test_a_retransmission_is_counted_and_a_second_tap_or_copy_is_not() -> None:
    flow = next(s["messages"] for s in SCENARIOS if s["name"].startswith("07"))
    once = play(flow).call()
    taps = play([*flow, *flow], agents=[(2001, 0), (2002, 40)]).call()
    assert (once.retransmissions, taps.retransmissions) == (4, 4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_lost_or_repeated_every_order_of_it_gives_one_record(
    data: st.DataObject,
) -> None:
    flows = [s["messages"] for s in SCENARIOS] + [messages for _, messages, _ in FLOWS]
    flow = data.draw(st.sampled_from(flows))
    kept = data.draw(st.lists(st.sampled_from(range(len(flow))), min_size=1, max_size=20))
    again = data.draw(st.permutations(kept))

    def said(order: list[int]) -> list[dict[str, object]]:
        world = play(flow, order=order, parents=PARENTS)
        return [*map(comparable, world.calls()), *map(comparable, world.attempts())]

    assert said(kept) == said(again)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_duration_is_ever_negative_and_no_inferred_code_is_unmarked(
    data: st.DataObject,
) -> None:
    flow = data.draw(st.sampled_from([messages for _, messages, _ in FLOWS]))
    kept = data.draw(st.lists(st.sampled_from(range(len(flow))), min_size=1, max_size=20))
    for record in play(flow, order=kept, parents=PARENTS).calls():
        for name in CallRecord.__struct_fields__:
            value = getattr(record, name)
            if name.endswith("_ms") and value is not None:
                assert value >= 0
        assert (record.final_code is None) == (record.final_class is None)
        if record.end_source == "timer":
            assert record.inferred


def test_who_refused_is_unknown_where_everybody_has_one_address() -> None:
    flow = ["0.0 P>P INVITE 1/INVITE b1 a -", "0.1 P>P 486 1/INVITE b1 a x"]
    assert play(flow).call().final_origin is None


def test_an_answer_that_only_numbers_its_codec_is_named_by_the_offer() -> None:
    world = World()
    offer = packet(Line.of("0.0 A>B INVITE 1/INVITE b1 a - sdp=111"), "sdp@example.com")
    named = b"RTP/AVP 111\r\na=rtpmap:111 opus/48000/2\r\n"
    plain = b"RTP/AVP 111\r\n"
    offer = _rewritten(offer, plain, named)
    world.send(offer)
    world.send(packet(Line.of("1.0 B>A 200 1/INVITE b1 a x sdp=111"), "sdp@example.com"))
    world.send(packet(Line.of("2.0 B>A BYE 1/BYE c1 x a"), "sdp@example.com"))
    world.run_out()
    assert (world.call().codec_offered, world.call().codec_negotiated) == ("opus", "opus")


def test_a_body_that_is_no_sdp_offers_nothing() -> None:
    world = World()
    data = packet(Line.of("0.0 A>B INVITE 1/INVITE b1 a - sdp=0"), "sdp@example.com")
    world.send(_rewritten(data, b"v=0\r\no=- 1 1 IN", b"zzzzzzzzzzzzzzzz", b"m=audio", b"zzzzzzz"))
    world.run_out()
    assert world.call().codec_offered is None


def _rewritten(data: bytes, *pairs: bytes) -> bytes:
    sent = hep.decode(data)
    head, _, body = sent.payload.partition(b"\r\n\r\n")
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in body
        body = body.replace(old, new)
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
    return hep.encode(
        source=sent.source,
        destination=sent.destination,
        source_port=5060,
        destination_port=5060,
        captured_at=sent.captured_at,
        agent_id=2001,
        payload=head + b"\r\n\r\n" + body,
    )
