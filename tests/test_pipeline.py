import gzip
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ADDRESSES, EPOCH, Line, World, packet, play, sip_text
from sipsidecar import pipeline
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.gate import Gate
from sipsidecar.privacy import Mask
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.wire import hep

SIP = hep.Kind.SIP
INVITE = Line.of("0.0 A>B INVITE 1/INVITE b1 a - sdp=0")
A, B = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2])


def _hep(payload: bytes, *, ip_protocol: int = 17, protocol_type: int = 1, **more: object) -> bytes:
    return hep.encode(
        source=A,
        destination=B,
        source_port=5060,
        destination_port=5060,
        ip_protocol=ip_protocol,
        captured_at=EPOCH,
        protocol_type=protocol_type,
        agent_id=2001,
        payload=payload,
        **more,  # type: ignore[arg-type]
    )


def _accounted(world: World) -> int:
    said = world.pipeline.snapshot(world.now)
    assert said.stored_out + said.quarantined_out == sum(m.packets for m in world.stored)
    return said.stored_out + said.quarantined_out + said.held + sum(said.refused.values())


def test_a_message_is_kept_as_it_came_with_its_call_id() -> None:
    world = World()
    payload = sip_text(INVITE, "kept@example.com")
    world.send(_hep(payload))
    (kept,) = world.stored
    assert ("kept@example.com", payload, "udp", 2001, None, 1) == (
        kept.call_id,
        kept.payload,
        kept.transport,
        kept.agent_id,
        kept.why,
        kept.packets,
    )


def test_nothing_is_kept_or_recorded_before_it_was_masked() -> None:
    mask = Mask(b"a key of sixteen bytes", users=True)
    world = World(mask=mask)
    payload = sip_text(INVITE, "masked@example.com")
    world.send(_hep(payload))
    for part in (payload[:99], payload[99:]):  # a fragment alone may hold half a user
        world.send(_hep(part, ip_protocol=6))
    world.send(_hep(payload.replace(b"CSeq: 1", b"CSeq: one")))
    world.send(_hep(payload[: payload.index(b"alice") + 3], ip_protocol=6))
    world.send(_hep(b'{"who":"sip:alice@example.com"}', protocol_type=5))
    world.run_out()
    assert [m.why for m in world.stored] == [None, None, "cseq", None, "call-id"]
    assert not any(b"alice" in m.payload or b"sip:ali" in m.payload for m in world.stored)
    assert world.stored[0].payload == world.stored[1].payload == mask.payload(SIP, payload)
    assert world.call().from_user == mask.user("alice")
    assert world.call().call_id == "masked@example.com"


def test_digits_and_keys_are_masked_when_nothing_else_is_asked_for() -> None:
    world = World()
    info = sip_text(Line.of("0.0 A>B INFO 2/INFO b2 a x"), "dtmf@example.com")
    world.send(_hep(info + b"Signal=5\r\nDuration=160\r\n"))
    world.send(_hep(b"v=0\r\na=crypto:1 A inline:SECRET|2^20\r\n", protocol_type=0x3D))
    assert [m.payload.rpartition(b"\r\n\r\n")[2] for m in world.stored] == [
        b"Signal=*\r\nDuration=160\r\n",
        b"v=0\r\na=crypto:1 A inline:******|2^20\r\n",
    ]


def test_what_is_not_understood_is_quarantined_whole_with_the_reason() -> None:
    world = World()
    payload = sip_text(INVITE, "x").replace(b"CSeq: 1", b"CSeq: one")
    world.send(_hep(payload))
    world.send(_hep(b"\x00\x01garbage"))
    assert [("cseq", payload), ("start-line", b"\x00\x01garbage")] == [
        (m.why, m.payload) for m in world.stored
    ]


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "not-hep"),
        (b"\x01", "not-hep"),
        (b"INVITE sip:a@b SIP/2.0\r\n\r\n", "not-hep"),
        (_hep(b"\r\n\r\n"), "keep-alive"),
        (_hep(b""), "empty-payload"),
        (_hep(b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)), "stun"),
        (_hep(b"hello")[:-2] + b"", "length"),
    ],
)
def test_a_packet_with_nothing_to_keep_is_counted_by_its_reason(
    datagram: bytes, reason: str
) -> None:
    world = World()
    world.send(datagram)
    refused = world.pipeline.snapshot(0.0).refused
    if reason == "length":
        assert sum(refused.values()) + len(world.stored) == 1
    else:
        assert {reason: 1} == refused
        assert world.pipeline.odd(reason) == 1


def test_reports_are_kept_under_their_correlation_id() -> None:
    world = World()
    world.send(_hep(b'{"type":200}', protocol_type=5, correlation_id=b"c@example.com\0\xff"))
    world.send(_hep(b"\x80\xc9\x00\x01\x11\x22\x33\x44", protocol_type=5))
    assert [(m.call_id, m.kind) for m in world.stored] == [
        ("c@example.com\\x00\\xff", 5),
        (None, 5),
    ]


def test_tls_is_told_by_the_faked_protocol_number_and_the_top_via() -> None:
    world = World()
    for transport in (b"TLS", b"WSS", b"WS"):
        payload = sip_text(INVITE, "tls@example.com").replace(b"/UDP", b"/" + transport)
        world.send(_hep(payload, ip_protocol=22))
    assert [m.transport for m in world.stored] == ["tls", "wss", "ws"]


# Who may speak. A packet of which nothing may be kept has all that could leave a trace: an unknown
# agent with a name, an odd stamp, trailing bytes, no address, and a payload for quarantine.
TRACES = hep.encode(
    source=b"",
    destination=B,
    source_port=5060,
    destination_port=5060,
    captured_at=1_000_000,
    agent_id=666,
    node_name=b"stranger",
    payload=b"\x00\x01garbage",
)


def _refused_only(world: World, reason: str, count: int) -> None:
    said = world.pipeline.snapshot(world.now)
    assert said.refused == {reason: count}
    assert said.received == count
    assert said.agents == ()
    assert said.oddities == {}
    assert not any(said.received_by_kind.values())
    assert world.stored == []
    assert _accounted(world) == count
    assert world.pipeline.troubles() == {f"refused as {reason}": count}


def test_a_sender_that_is_not_allowed_is_refused_before_its_packet_is_read() -> None:
    world = World(gate=Gate(["192.0.2.0/24"]))
    invite = packet(INVITE, "x@example.com")
    datagrams = [TRACES + b"trailing", invite, b"", b"\x01", b"INVITE sip:a@b SIP/2.0\r\n\r\n"]
    for datagram in datagrams:
        world.send(datagram, peer="198.51.100.1")
    _refused_only(world, "not-allowed", len(datagrams))
    world.send(invite, peer="192.0.2.1")
    said = world.pipeline.snapshot(0.0)
    assert (said.stored_out, said.live["trying"], len(said.agents)) == (1, 1, 1)


def test_a_packet_without_the_key_of_its_capture_id_leaves_nothing_but_a_count() -> None:
    world = World(gate=Gate(keys={"2001": "right"}))
    payload = sip_text(INVITE, "x@example.com")
    datagrams = [
        TRACES + b"trailing",
        _hep(payload),
        _hep(payload, auth_key=b"wrong"),
        _hep(payload, version=1),
        _hep(payload, version=2),
        _hep(b""),
    ]
    for datagram in datagrams:
        world.send(datagram)
    _refused_only(world, "bad-key", len(datagrams))
    world.send(_hep(payload, auth_key=b"right"))
    assert [m.payload for m in world.stored] == [payload]
    assert b"right" not in repr(world.stored).encode()


def test_what_is_no_hep_is_refused_as_such_whatever_the_keys() -> None:
    world = World(gate=Gate(keys={"2001": "right"}))
    world.send(b"INVITE sip:a@b SIP/2.0\r\n\r\n")
    assert world.pipeline.snapshot(0.0).refused == {"not-hep": 1}


def test_a_part_of_a_message_from_a_stranger_does_not_join_an_agents_stream() -> None:
    world = World(gate=Gate(keys={"2001": "right"}))
    payload = sip_text(INVITE, "split@example.com")
    world.send(_hep(payload[:40], ip_protocol=6, auth_key=b"right"))
    world.send(_hep(b"injected", ip_protocol=6))
    world.send(_hep(payload[40:], ip_protocol=6, auth_key=b"right"))
    assert [m.payload for m in world.stored] == [payload]


def test_another_gate_takes_its_place_at_any_time() -> None:
    world = World()
    invite = packet(INVITE, "x@example.com")
    for gate in (Gate(["192.0.2.0/24"]), Gate(keys={"*": "k"}), Gate()):
        world.pipeline.gate = gate
        world.send(invite, peer="198.51.100.1")
    said = world.pipeline.snapshot(0.0)
    assert said.refused == {"not-allowed": 1, "bad-key": 1}
    assert said.stored_out == 1


def test_what_a_capture_holds_without_hep_passes_every_gate() -> None:
    world = World(gate=Gate(["192.0.2.0/24"], {"*": "k"}))
    world.pipeline.receive_plain(hep.decode(packet(INVITE, "x@example.com")), 0.0, EPOCH)
    assert world.pipeline.snapshot(0.0).stored_out == 1


def test_a_message_in_three_fragments_is_one_message_and_three_packets() -> None:
    world = World()
    payload = sip_text(INVITE, "split@example.com")
    for part in (payload[:40], payload[40:200], payload[200:]):
        world.send(_hep(part, ip_protocol=6))
    (kept,) = world.stored
    assert (payload, 3, "tcp") == (kept.payload, kept.packets, kept.transport)
    assert _accounted(world) == 3


def test_two_messages_in_one_packet_are_two_messages_and_one_packet() -> None:
    world = World()
    one, two = sip_text(INVITE, "one@example.com"), sip_text(INVITE, "two@example.com")
    world.send(_hep(one + two, ip_protocol=6))
    assert [(one, 1), (two, 0)] == [(m.payload, m.packets) for m in world.stored]
    assert _accounted(world) == 1


def test_half_a_message_waits_and_is_given_out_truncated_when_the_rest_never_comes() -> None:
    world = World()
    payload = sip_text(INVITE, "half@example.com")
    world.send(_hep(payload[:-20], ip_protocol=6))
    assert (world.pipeline.snapshot(0.0).held, world.stored) == (1, [])
    world.run_until(pipeline.STREAM_PATIENCE + 1)
    assert [m.call_id for m in world.stored] == ["half@example.com"]
    said = world.pipeline.snapshot(world.now)
    assert (said.held, said.oddities["truncated-sip"]) == (0, 1)


def test_keep_alives_on_a_stream_are_refused_by_name() -> None:
    world = World()
    payload = sip_text(INVITE, "x@example.com")
    world.send(_hep(payload[:50], ip_protocol=6))
    world.send(_hep(payload[50:] + b"\r\n\r\n", ip_protocol=6))
    world.send(_hep(b"\r\n\r\n", ip_protocol=6))
    assert world.pipeline.snapshot(0.0).refused == {"keep-alive": 1}
    assert _accounted(world) == 3


def test_a_fragment_belongs_to_its_stream_whatever_it_looks_like() -> None:
    world = World()
    payload = sip_text(INVITE, "cut@example.com")
    end = payload.index(b"\r\n\r\n")
    for part in (payload[:end], b"\r\n", b"\r\n" + payload[end + 4 :]):
        world.send(_hep(part, ip_protocol=6))
    assert [("cut@example.com", payload, 3)] == [
        (m.call_id, m.payload, m.packets) for m in world.stored
    ]
    assert _accounted(world) == 3


def test_streams_are_capped_and_the_quietest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_STREAMS", 2)
    world = World()
    half = sip_text(INVITE, "x@example.com")[:-20]
    for port in range(4):
        world.send(
            hep.encode(
                source=A,
                destination=B,
                source_port=port,
                destination_port=5060,
                ip_protocol=6,
                captured_at=EPOCH,
                agent_id=1,
                payload=half,
            )
        )
    said = world.pipeline.snapshot(0.0)
    assert (said.held, said.limits["streams"], len(world.stored)) == (2, 2, 2)
    assert _accounted(world) == 4


def test_a_packet_without_time_is_timed_by_the_receiver() -> None:
    world = World()
    for text in (
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.0 B>A 180 1/INVITE b1 a x",
        "0.0 B>A 486 1/INVITE b1 a x",
    ):
        line = Line.of(text)
        ends = (A, B) if line.source == "A" else (B, A)
        data = hep.encode(
            version=1,
            source=ends[0],
            destination=ends[1],
            source_port=5060,
            destination_port=5060,
            ip_protocol=17,
            payload=sip_text(line, "v1@example.com"),
        )
        world.send(data, world.now + 0.5)
    world.run_out()
    record = world.call()
    assert (record.time_source, record.clock_agent_id, record.pdd_ms) == ("receiver", None, 500.0)
    assert world.pipeline.odd("hep-1") == 3


def test_agents_beyond_the_cap_are_timed_by_the_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipsidecar.calls.agents.MAX_AGENTS", 0)
    world = World()
    world.send(packet(INVITE, "many@example.com"))
    world.run_out()
    assert world.call().time_source == "receiver"


def test_compressed_payloads_are_read() -> None:
    world = World()
    payload = sip_text(INVITE, "gz@example.com")
    data = _hep(b"")
    chunk = gzip.compress(payload)
    raw = data + (0).to_bytes(2) + (0x10).to_bytes(2) + (6 + len(chunk)).to_bytes(2) + chunk
    raw = raw[:4] + len(raw).to_bytes(2) + raw[6:]
    world.send(raw)
    assert {"gz@example.com"} <= {m.call_id for m in world.stored} or (
        world.pipeline.snapshot(0.0).refused
    )


def test_records_are_counted_once_by_class_code_and_origin() -> None:
    world = World()
    for text in (
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.01 P>B INVITE 1/INVITE p1 a -",
        "0.2 B>P 486 1/INVITE p1 a x",
        "0.21 P>A 486 1/INVITE b1 a x",
        "0.3 A>P REGISTER 1/REGISTER r1 a -",
        "0.31 P>A 200 1/REGISTER r1 a x",
        "0.4 P>B OPTIONS 1/OPTIONS o1 a -",
    ):
        world.send(packet(Line.of(text), "count@example.com" if "INV" in text else text[:3]))
    world.run_out()
    kinds = [CallRecord, AttemptRecord, RegistrationRecord, PingRecord]
    assert [sum(isinstance(r, k) for r in world.outputs) for k in kinds] == [1, 1, 1, 1]
    said = world.pipeline.snapshot(world.now)
    assert said.finals == {("4xx", "486", "callee"): 1}
    assert said.attempt_finals == {("4xx", "486"): 1}
    assert (said.registrations, said.pings) == ({"200": 1}, {"unknown": 1})


def test_delays_go_into_histograms_in_seconds() -> None:
    world = World()
    for text in (
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.9 B>A 180 1/INVITE b1 a x",
        "4.0 B>A 200 1/INVITE b1 a x",
        "9.0 A>B BYE 2/BYE b3 a x",
    ):
        world.send(packet(Line.of(text), "h@example.com"))
    world.run_out()
    said = world.pipeline.snapshot(world.now)
    assert (said.pdd.total, sum(said.pdd.counts)) == (0.9, 1)
    assert (said.setup.total, sum(said.setup.counts)) == (4.0, 1)


def test_the_snapshot_names_agents_with_skew_age_and_learned_address() -> None:
    world = World()
    data = hep.encode(
        source=A, destination=B, source_port=1, destination_port=2, captured_at=EPOCH - 5_000_000,
        agent_id=7, node_name=b"edge\x1b[31m", payload=sip_text(INVITE, "n@example.com"),
    )  # fmt: skip
    world.send(data, peer="198.51.100.2")
    (agent,) = world.pipeline.snapshot(10.0).agents
    assert (
        agent.agent_id,
        agent.address,
        agent.clock_skew_seconds,
        agent.last_seen_seconds,
        agent.local_address,
    ) == (7, "198.51.100.2", -5.0, 10.0, "198.51.100.2")


CORPUS = sorted((Path(__file__).parent / "corpus/kamailio").glob("*.pcap"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_garbage_truncation_and_flipped_bits_never_raise_and_are_all_accounted_for(
    seed: int, count: int
) -> None:
    rng = random.Random(seed)
    world = World()
    whole = [packet(INVITE, "fuzz@example.com"), _hep(sip_text(INVITE, "t@x"), ip_protocol=6)]
    for _ in range(count):
        data = bytearray(rng.choice(whole))
        choice = rng.randrange(4)
        if choice == 0:
            data = data[: rng.randrange(len(data))]
        elif choice == 1:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif choice == 2:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        world.send(bytes(data))
    assert count == _accounted(world)
    world.run_out()
    assert count == _accounted(world)
    assert world.pipeline.snapshot(world.now).held == 0


def test_next_timer_is_the_earliest_of_all_parts() -> None:
    world = World()
    assert world.pipeline.next_timer() is None
    world.send(_hep(sip_text(INVITE, "s@example.com")[:-9], ip_protocol=6))
    assert world.pipeline.next_timer() == pipeline.STREAM_PATIENCE
    world.send(packet(INVITE, "c@example.com"))
    assert world.pipeline.next_timer() == 7.0


def _restored(payload: bytes, **more: object) -> pipeline.Restored:
    found = pipeline.Restored(EPOCH, EPOCH, 2001, "203.0.113.5", A, 5060, B, 5060, "udp", payload)
    return found._replace(**more)  # type: ignore[arg-type]


def test_a_restored_message_is_a_fact_and_nothing_else() -> None:
    world = World()
    world.pipeline.gate = Gate(allow=["192.0.2.77/32"])
    joined = world.pipeline.restore([_restored(sip_text(INVITE, "r@example.com"))], [], 0.0)
    said = world.pipeline.snapshot(0.0)
    assert (joined, said.live["trying"]) == (1, 1)
    assert (said.received, said.stored_out, said.refused, said.agents) == (0, 0, {}, ())
    assert world.pipeline.stored() == []
    world.run_out()
    record = world.call()
    assert (record.received_at, record.started_at, record.agent_ids) == (EPOCH, EPOCH, (2001,))
    assert record.flags == ("no_response", "rebuilt")


def test_a_restored_message_without_stamp_is_timed_by_its_receipt() -> None:
    world = World()
    message = _restored(sip_text(INVITE, "r@example.com"), captured_at=None, agent_id=None, peer="")
    world.pipeline.restore([message], [], 0.0)
    world.run_out()
    assert (world.call().time_source, world.call().started_at) == ("receiver", EPOCH)


def test_what_is_no_fact_of_a_call_is_not_restored() -> None:
    world = World()
    for method in ("REGISTER", "OPTIONS"):
        text = sip_text(Line.of(f"0.0 A>B {method} 1/{method} r1 a -"), "r@example.com")
        assert world.pipeline.restore([_restored(text), _restored(b"garbage")], [], 0.0) == 0
    assert len(world.pipeline.calls) == 0
    assert len(world.pipeline.transactions) == 0


def test_a_call_without_room_is_not_restored() -> None:
    world = World(max_calls=1)
    world.send(packet(INVITE, "one@example.com"))
    assert world.pipeline.restore([_restored(sip_text(INVITE, "two@x"))], [], 0.0) is None


def test_restored_messages_tell_the_nodes_own_address_until_it_is_known() -> None:
    world = World()
    near, far = bytes([192, 0, 2, 7]), bytes([192, 0, 2, 8])
    line = sip_text(INVITE, "l@example.com")
    for source, destination in ((A, B), (B, near), (near, far)):
        world.pipeline.restore([_restored(line, source=source, destination=destination)], [], 0.0)
    agent = world.pipeline.agents.recall(2001, "203.0.113.5")
    assert agent is not None
    assert agent.local == B


def test_the_first_minutes_of_a_life_are_warming() -> None:
    house = World().pipeline
    assert not house.warming(0.0)
    house.calls.warming_until = 180.0
    assert [house.warming(now) for now in (0.0, 179.9, 180.0)] == [True, True, False]


def test_calls_are_counted_by_whose_they_were_and_own_refusals_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sipsidecar.pipeline.MAX_COHORTS", 2)
    matchers = [Matcher(tenant=name, sources=(ADDRESSES[name],)) for name in "ACD"]
    world = World(cohorts=Cohorts(matchers), local=[socket.inet_aton(ADDRESSES["P"])])
    for i, (name, extra) in enumerate(
        [("A", ""), ("A", ""), ("A", " reason=SIP;cause=486;text=cac"), ("C", ""), ("D", "")]
    ):
        world.send(packet(Line.of(f"0.0 {name}>P INVITE 1/INVITE b{i} a -"), f"{i}@example.com"))
        refusal = Line.of(f"0.1 P>{name} 486 1/INVITE b{i} a k{extra}")
        world.send(packet(refusal, f"{i}@example.com"))
        world.run_out()
    assert world.pipeline.snapshot(world.now).cohort_finals == {
        ("A", "other", "other", "other", "4xx"): 2,
        ("A", "other", "other", "other", "admission"): 1,
        ("other", "other", "other", "other", "4xx"): 2,
    }


def test_without_cohorts_no_call_is_counted_by_them() -> None:
    world = play(["0.0 A>B INVITE 1/INVITE b1 a -", "0.1 B>A 486 1/INVITE b1 a x"])
    assert world.pipeline.snapshot(world.now).cohort_finals == {}
