"""Reports of media through the whole house: joined to their call, rated, recorded once."""

import random

import msgspec
import pytest

import reports
from sim import EPOCH, Line, World, packet, sip_text
from sipsidecar.calls.events import CallRecord, MediaRecord, QualityInterval
from sipsidecar.calls.hearing import MAX_SSRCS
from sipsidecar.calls.table import Retraction
from sipsidecar.pipeline import Restored
from sipsidecar.wire import hep

CALL_ID = "media@example.com"
FLOW = (
    "0.0 A>B INVITE 1/INVITE b1 a - sdp=0",
    "0.5 B>A 180 1/INVITE b1 a x",
    "5.0 B>A 200 1/INVITE b1 a x sdp=0",
    "5.1 A>B ACK 1/ACK b2 a x",
    "65.5 A>B BYE 2/BYE b3 a x",
    "65.6 B>A 200 2/BYE b3 a x",
)


def _events(
    said: list[reports.Said], *, call_id: str | None = CALL_ID, flow: tuple[str, ...] = FLOW
) -> list[tuple[float, bytes]]:
    lines = [Line.of(text) for text in flow]
    events = [(line.at, packet(line, CALL_ID)) for line in lines]
    return events + [(one.at, reports.datagram(one, call_id)) for one in said]


def _play(events: list[tuple[float, bytes]], world: World | None = None) -> World:
    world = world or World()
    for at, datagram in sorted(events, key=lambda event: event[0]):
        world.send(datagram, at)
    world.run_out()
    return world


def _media(world: World) -> dict[str, MediaRecord]:
    return {one.stream: one for one in world.outputs if isinstance(one, MediaRecord)}


def _intervals(world: World) -> list[QualityInterval]:
    return [one for one in world.outputs if isinstance(one, QualityInterval)]


def test_a_call_has_the_quality_of_each_direction() -> None:
    world = _play(_events(reports.conversation(loss_to_callee=0.05)))
    media = _media(world)
    assert set(media) == {"caller_to_callee", "callee_to_caller"}
    bad, good = media["caller_to_callee"], media["callee_to_caller"]
    assert bad.loss_percent == pytest.approx(5.0, abs=0.05)
    assert good.loss_percent == 0.0
    assert (bad.codec, bad.clock_rate, bad.segment, bad.source) == (
        "PCMU", 8000, "end_to_end", "rtcp",
    )  # fmt: skip
    assert bad.findings == ("high_loss",)
    assert good.findings == ()
    assert bad.rated
    assert bad.mos is not None
    assert good.mos is not None
    assert bad.mos < good.mos
    call = world.call()
    assert (call.mos, call.mos_direction) == (bad.mos, "caller_to_callee")
    assert call.findings == ("high_loss",)
    assert call.evidence is not None
    (evidence,) = msgspec.json.decode(call.evidence)["high_loss"]
    assert evidence["direction"] == "caller_to_callee"


def test_a_clean_call_has_no_finding_and_no_evidence() -> None:
    call = _play(_events(reports.conversation())).call()
    assert (call.findings, call.evidence) == ((), None)
    assert call.mos == pytest.approx(4.409, abs=0.01)


def test_a_call_without_reports_has_no_media_and_no_mos() -> None:
    world = _play(_events([]))
    assert _media(world) == {}
    assert (world.call().mos, world.call().findings) == (None, ())


def test_reports_that_name_no_call_are_joined_by_the_addresses_of_its_sdp() -> None:
    named = _play(_events(reports.conversation()))
    unnamed = _play(_events(reports.conversation(), call_id=None))
    assert _media(unnamed).keys() == _media(named).keys()
    assert unnamed.call().mos == named.call().mos
    stored = [one for one in unnamed.stored if one.kind == 5]
    assert {one.call_id for one in stored} == {CALL_ID}


def test_reports_that_name_an_id_of_their_agent_are_joined_by_addresses_too() -> None:
    world = _play(_events(reports.conversation(), call_id="17-agents-own-id"))
    assert world.call().mos is not None
    assert {one.call_id for one in _media(world).values()} == {CALL_ID}


def test_a_report_that_nothing_tells_the_call_of_is_counted_and_stored() -> None:
    world = World()
    world.send(reports.datagram(reports.conversation()[0], None), 1.0)
    world.run_out()
    assert world.pipeline.snapshot(world.now).reports["unjoined"] == 1
    assert len(world.stored) == 1
    assert world.outputs == []


def test_media_of_a_call_that_was_never_seen_leaves_records_without_a_call() -> None:
    world = _play(_events(reports.conversation(loss_to_callee=0.05), flow=()))
    assert world.calls() == []
    media = _media(world)
    assert set(media) == {"unknown-11111111", "unknown-22222222"}
    assert {one.from_tag for one in media.values()} == {""}
    assert media["unknown-11111111"].loss_percent == pytest.approx(5.0, abs=0.05)
    assert "high_loss" in media["unknown-11111111"].findings
    assert media["unknown-22222222"].findings == ()


def test_the_order_and_the_number_of_copies_of_reports_change_nothing() -> None:
    said = reports.conversation(loss_to_callee=0.03)
    expected = _play(_events(said))
    rng = random.Random(5)
    for _ in range(5):
        events = _events(said)
        events += rng.choices(events, k=10)
        rng.shuffle(events)
        world = World()
        for datagram in (datagram for _, datagram in events):
            world.send(datagram, 0.0)
        world.run_out()
        plain = msgspec.structs.replace
        for stream, record in _media(expected).items():
            other = _media(world)[stream]
            assert plain(other, received_at=0, revision=0) == plain(
                record, received_at=0, revision=0
            )
        assert {(i.source_ssrc, i.at, i.loss_percent, i.mos) for i in _intervals(world)} == {
            (i.source_ssrc, i.at, i.loss_percent, i.mos) for i in _intervals(expected)
        }


def test_each_interval_leaves_once_although_the_record_leaves_again() -> None:
    world = World()
    said = reports.conversation(loss_to_callee=0.05)
    for at, datagram in sorted(_events(said[:-1]), key=lambda event: event[0]):
        world.send(datagram, at)
    world.run_until(70.0)
    before = len(_intervals(world))
    first = _media(world)["caller_to_callee"]
    world.send(reports.datagram(said[-1], CALL_ID), 71.0)
    world.run_out()
    after = _intervals(world)
    assert len(after) == before + 1
    assert len({(i.reporter_ssrc, i.source_ssrc, i.at) for i in after}) == len(after)
    late = _media(world)["caller_to_callee"]
    assert (first.revision, late.revision) == (0, 1)
    assert late.reports == first.reports + 1


def test_reports_after_a_calls_end_do_not_keep_it() -> None:
    world = World()
    for at, datagram in sorted(_events(reports.conversation()), key=lambda event: event[0]):
        world.send(datagram, at)
    stray = reports.Said(70.0, "caller", 9000, 9999)
    for step in range(20):
        at = 70.0 + 2 * step
        world.send(reports.datagram(_again(stray, at), CALL_ID), at)
    revisions = [one.revision for one in world.outputs if isinstance(one, CallRecord)]
    assert max(revisions, default=0) <= 1
    world.run_out()
    assert len(world.pipeline.calls) == 0


def _again(said: reports.Said, at: float) -> reports.Said:
    return reports.Said(at, said.by, said.packets, said.heard_seq)


def test_media_without_calls_takes_at_most_a_quarter_of_the_room() -> None:
    world = World(max_calls=8)
    said = reports.conversation()[0]
    for number in range(5):
        world.send(reports.datagram(said, f"nobody-{number}"), 0.0)
    figures = world.pipeline.snapshot(world.now)
    assert (figures.limits["media"], figures.calls_tracked) == (3, 2)
    world.send(packet(Line.of(FLOW[0]), "nobody-0"), 0.0)
    world.send(reports.datagram(said, "nobody-9"), 0.0)
    assert world.pipeline.snapshot(world.now).limits["media"] == 3


def test_reports_over_the_caps_of_a_call_are_counted() -> None:
    world = World()
    one = reports.datagram(reports.conversation()[0], CALL_ID)
    known = str(reports.CALLER_SSRC).encode()
    for number in range(MAX_SSRCS + 3):
        world.send(one.replace(known, b"%d" % (100_000_000 + number)), 0.0)
    assert world.pipeline.snapshot(world.now).limits["media-reports"] >= 3


def test_what_is_no_rtcp_is_counted_and_stored_all_the_same() -> None:
    world = World()
    for payload in (b"\x81\xc8\x00", b"\x80\xc9\xff\xff1234", b'{"type": 200, "ssrc": []}'):
        world.send(_rtcp(payload), 0.0)
    world.send(_rtcp(b'{"a": 1}'), 0.0)  # JSON that never said it was a report
    counted = world.pipeline.snapshot(world.now).reports
    assert counted.get("refused", 0) >= 1
    assert len(world.stored) == 4


def _rtcp(payload: bytes, call_id: str | None = CALL_ID) -> bytes:
    return hep.encode(
        source=bytes([192, 0, 2, 1]),
        destination=bytes([198, 51, 100, 2]),
        source_port=4001,
        destination_port=4001,
        ip_protocol=17,
        captured_at=EPOCH,
        protocol_type=5,
        agent_id=3001,
        correlation_id=call_id.encode() if call_id else None,
        payload=payload,
    )


def test_a_phones_header_on_its_bye_is_the_quality_that_it_heard() -> None:
    world = World()
    for text in FLOW[:4]:
        line = Line.of(text)
        world.send(packet(line, CALL_ID), line.at)
    bye = packet(Line.of(FLOW[4]), CALL_ID)
    payload = hep.decode(bye).payload.replace(
        b"Max-Forwards: 70\r\n",
        b"Max-Forwards: 70\r\nX-RTP-Stat: CS=0;PS=3000;PR=2970;PL=30,0;JI=4,3;LA=50,10\r\n",
    )
    world.send(
        hep.encode(
            source=bytes([192, 0, 2, 1]),
            destination=bytes([198, 51, 100, 2]),
            source_port=5060,
            destination_port=5060,
            ip_protocol=17,
            captured_at=EPOCH + 65_500_000,
            protocol_type=1,
            agent_id=2001,
            payload=payload,
        ),
        65.5,
    )
    world.run_out()
    heard = _media(world)["callee_to_caller"]
    assert heard.source == "rtp_stat"
    assert heard.loss_percent == pytest.approx(1.0, abs=0.02)
    assert world.pipeline.snapshot(world.now).reports["rtp_stat"] == 1


def test_figures_of_media_reach_the_snapshot_once_per_record() -> None:
    world = _play(_events(reports.conversation(loss_to_callee=0.05)))
    figures = world.pipeline.snapshot(world.now)
    assert sum(sum(h.counts) for h in figures.mos.values()) == 2
    assert sum(figures.loss["caller_to_callee"].counts) == 1
    assert figures.findings == {"high_loss": 1}
    assert figures.reports == {"sr": 24}


def test_a_call_restored_from_its_messages_has_its_media_again() -> None:
    said = reports.conversation(loss_to_callee=0.05)
    whole = _play(_events(said))
    world = World()
    restored = [
        Restored(
            m.received_at, m.captured_at, m.agent_id, m.peer or "", m.source, m.source_port,
            m.destination, m.destination_port, m.transport, m.payload, m.kind,
        )
        for m in whole.stored
    ]  # fmt: skip
    world.pipeline.restore(restored, (), 0.0)
    world.run_out()
    assert world.call().mos == whole.call().mos
    assert _media(world)["caller_to_callee"].loss_percent == pytest.approx(5.0, abs=0.05)


def test_media_without_a_call_is_taken_back_when_its_call_is_seen() -> None:
    world = World()
    (one, *_), first = reports.conversation(), packet(Line.of(FLOW[0]), CALL_ID)
    world.send(reports.datagram(one, CALL_ID), 0.0)
    world.run_until(40.0)
    assert "unknown-22222222" in _media(world)
    world.send(first, 41.0)
    world.run_out()
    gone = [one for one in world.outputs if isinstance(one, Retraction)]
    assert {one.stream for one in gone} == {"unknown-11111111", "unknown-22222222"}
    assert {one.from_tag for one in _media(world).values()} == {"a"}


@pytest.mark.parametrize("call_id", [CALL_ID, None])
def test_media_that_is_encrypted_is_counted_and_said_to_be_so(call_id: str | None) -> None:
    world = World()
    secret = (
        b"\x81\xc9\x00\x07\x11\x11\x11\x11"
        + bytes(range(100, 124))
        + b"\x80\x00\x00\x05"
        + bytes(10)
    )
    for at, datagram in _events([]):
        world.send(datagram, at)
        if at == 5.1:
            world.send(_rtcp(secret, call_id), 6.0)
    world.run_out()
    assert world.pipeline.snapshot(world.now).reports == {"encrypted": 1}
    assert {one.unrated for one in _media(world).values()} == {"encrypted"}
    assert world.call().mos is None


def test_quality_that_sip_publishes_joins_the_call_that_its_body_names() -> None:
    world = World()
    for text in FLOW:
        line = Line.of(text)
        world.send(packet(line, CALL_ID), line.at)
    body = (
        "VQSessionReport: CallTerm\r\n"
        f"CallID: {CALL_ID}\r\n"
        "LocalID: <sip:alice@example.com>\r\nRemoteID: <sip:bob@example.net>\r\n"
        "OrigID: <sip:alice@example.com>\r\n"
        "LocalAddr: IP=192.0.2.1 PORT=4000 SSRC=0x11111111\r\n"
        "RemoteAddr: IP=198.51.100.2 PORT=4000 SSRC=0x22222222\r\n"
        "LocalMetrics:\r\nSessionDesc: PT=0 PD=PCMU SR=8000 FD=20\r\n"
        "PacketLoss: NLR=2.0 JDR=0.5\r\nDelay: RTD=80 ESD=40 IAJ=6\r\n"
        "QualityEst: MOSLQ=4.1 MOSCQ=4.0\r\n"
    )
    publish = (
        "PUBLISH sip:collector@203.0.113.5 SIP/2.0\r\n"
        "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKpub\r\n"
        "From: <sip:alice@example.com>;tag=p\r\nTo: <sip:collector@203.0.113.5>\r\n"
        "Call-ID: publish@192.0.2.1\r\nCSeq: 1 PUBLISH\r\nEvent: vq-rtcpxr\r\n"
        f"Content-Type: application/vq-rtcpxr\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    world.send(_sip(publish), 66.0)
    world.run_out()
    heard = _media(world)["callee_to_caller"]
    assert (heard.source, heard.loss_percent, heard.peer_mos) == ("vq", 2.0, 4.0)
    assert heard.findings == ("high_loss",)
    assert world.call().findings == ("high_loss",)


def _sip(payload: bytes) -> bytes:
    return hep.encode(
        source=bytes([192, 0, 2, 1]),
        destination=bytes([203, 0, 113, 5]),
        source_port=5060,
        destination_port=5060,
        ip_protocol=17,
        captured_at=EPOCH + 66_000_000,
        protocol_type=1,
        agent_id=2001,
        payload=payload,
    )


def test_a_bye_with_figures_that_make_no_sense_is_a_bye_all_the_same() -> None:
    world = World()
    for text in FLOW[:4]:
        line = Line.of(text)
        world.send(packet(line, CALL_ID), line.at)
    bye = sip_text(Line.of(FLOW[4]), CALL_ID).replace(
        b"Max-Forwards: 70\r\n", b"Max-Forwards: 70\r\nX-RTP-Stat: \xff\r\n"
    )
    world.send(_sip(bye), 65.5)
    world.run_out()
    assert world.call().released_by == "caller"
    assert world.pipeline.snapshot(world.now).reports["refused"] == 1
