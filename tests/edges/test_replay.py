import ipaddress
import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    PingRecord,
    QualityInterval,
    RegistrationRecord,
)
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.table import Retraction
from sipsidecar.edges import replay
from sipsidecar.edges.replay import Replay, ReplayError, Switch
from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.wire import esl, hep, pcap

CORPUS = Path(__file__).parents[1] / "corpus"
KAMAILIO = CORPUS / "kamailio"
FREESWITCH = CORPUS / "freeswitch"
TRUTHS = sorted(path for path in KAMAILIO.glob("*.json") if path.with_suffix(".pcap").exists())
WITH_CALLS = [
    path
    for path in TRUTHS
    if any("answered" in row for row in json.loads(path.read_text())["calls"])
]


class Replayed:
    """What is left when a replay is over: the newest revision of each record."""

    def __init__(self, *paths: Path) -> None:
        self.pipeline = Pipeline()
        self.kept: list[Stored] = []
        self.replay = Replay(paths, self.pipeline, keep=self.kept.extend)
        self.records: dict[tuple[object, ...], Output] = {}
        for record in self.replay:
            if isinstance(record, Unjoined):
                self.records.pop((ConversationRecord, record.conversation), None)
            elif isinstance(record, LegRecord):
                self.records[LegRecord, record.uuid] = record
            elif isinstance(record, ConversationRecord):
                self.records[ConversationRecord, record.conversation] = record
            elif isinstance(record, Retraction):
                kind: type = CallRecord if record.branch is None else AttemptRecord
                self.records.pop((kind, record.call_id, record.from_tag, record.branch), None)
            else:
                key = [getattr(record, name, None) for name in ("from_tag", "branch", "cseq")]
                if isinstance(record, CallRecord | AttemptRecord):
                    key.pop()
                self.records[(type(record), record.call_id, *key)] = record
        self.said = self.pipeline.snapshot(self.replay.now)

    def calls(self) -> list[CallRecord]:
        return [record for record in self.records.values() if isinstance(record, CallRecord)]

    def call(self) -> CallRecord:
        (record,) = self.calls()
        return record

    def attempts(self, call_id: str) -> list[AttemptRecord]:
        found = [
            record
            for record in self.records.values()
            if isinstance(record, AttemptRecord) and record.call_id == call_id
        ]
        return sorted(found, key=lambda record: record.failover_order)

    def pings(self) -> list[PingRecord]:
        return [record for record in self.records.values() if isinstance(record, PingRecord)]

    def registrations(self) -> list[RegistrationRecord]:
        return [r for r in self.records.values() if isinstance(r, RegistrationRecord)]

    @property
    def ledger(self) -> dict[str, int]:
        said = self.said
        return {
            "received": said.received,
            "messages": said.stored_out,
            "quarantined": said.quarantined_out,
            "refused": sum(said.refused.values()),
            "held": said.held,
        }


# ------------------------------------------------------------------------------ Kamailio's captures


@pytest.mark.parametrize("path", WITH_CALLS, ids=lambda path: path.stem)
def test_a_capture_gives_what_the_caller_met(path: Path) -> None:
    truth = json.loads(path.read_text())
    replayed = Replayed(path.with_suffix(".pcap"))
    calls = {record.call_id: record for record in replayed.calls()}
    assert calls.keys() == {row["call_id"] for row in truth["calls"]}
    assert len(replayed.calls()) == len(truth["calls"])
    wrong: list[tuple[object, ...]] = []
    for row in truth["calls"]:
        record = calls[row["call_id"]]
        expected = {
            "final_code": row["final_code"],
            "answered": row["answered"],
            "released_by": "caller" if row.get("cancelled") else row["bye_by"],
            "inferred": False,
            "final_class": f"{row['final_code'] // 100}xx",
        }
        if "challenges" in row:
            expected["invites"] = 1 + len(row["challenges"])
            expected["final_phrase"] = row["reason"]
        got = {name: getattr(record, name) for name in expected}
        if got != expected:
            wrong.append((row["call_id"], got, expected))
        wrong += [(row["call_id"], *one) for one in wrong_delays(row, record)]
    assert wrong == []


def wrong_delays(row: dict[str, Any], record: CallRecord) -> list[tuple[str, object, object]]:
    tolerance = 3.0
    if record.time_source == "receiver":
        tolerance = 10.0  # HEPv1 has no time: the recorder's stamps, by another process
    pdd = row["pdd_ms"]
    if pdd is None and row["answered"]:
        pdd = record.setup_ms  # the 200 was the first that the caller heard
    pairs = [("pdd_ms", record.pdd_ms, pdd)]
    if "invite_to_final_ms" in row:
        name = "setup_ms" if row["answered"] else "fail_ms"
        pairs.append((name, getattr(record, name), row["invite_to_final_ms"]))
        pairs.append(("talk_ms", record.talk_ms, row["duration_ms"]))
    return [
        one
        for one in pairs
        if (one[1] is None) != (one[2] is None)
        or (one[1] is not None and abs(one[1] - one[2]) > tolerance)
    ]


def test_there_is_a_truth_for_each_of_kamailios_captures_and_enough_calls_in_them() -> None:
    assert {path.stem for path in TRUTHS} == {path.stem for path in KAMAILIO.glob("*.pcap")}
    rows = [row for path in WITH_CALLS for row in json.loads(path.read_text())["calls"]]
    assert len(rows) == 188
    assert len([row for row in rows if row["pdd_ms"] is not None]) == 119


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_every_message_of_a_capture_is_accounted_for_and_none_is_refused(path: Path) -> None:
    truth = json.loads(path.read_text())
    replayed = Replayed(path.with_suffix(".pcap"))
    ledger = replayed.ledger
    assert ledger["received"] == truth["hep_messages"]
    assert ledger["received"] == ledger["messages"] + ledger["quarantined"]
    assert sum(one.packets for one in replayed.kept) == truth["hep_messages"]
    assert replayed.replay.not_sip == replayed.replay.cut == 0
    assert replayed.replay.truncated == []
    if path.stem != "l_malformed":
        assert ledger["quarantined"] == 0


def test_a_failover_is_two_attempts_in_order_and_one_call() -> None:
    truth = json.loads((KAMAILIO / "j_failover.json").read_text())
    replayed = Replayed(KAMAILIO / "j_failover.pcap")
    for row in truth["calls"]:
        first, second = replayed.attempts(row["call_id"])
        assert [first.failover_order, second.failover_order] == [1, 2]
        assert [first.final_code, second.final_code] == [503, 200]
        assert [first.answered, second.answered] == [False, True]
        assert [first.peer_ip, second.peer_ip] == ["127.10.0.31", "127.10.0.32"]
        assert first.branch != second.branch
        assert first.started_at < second.started_at
        assert first.pdd_ms is None
        assert second.pdd_ms is not None
    assert {record.attempts for record in replayed.calls()} == {2}


def test_each_ping_knows_its_trunk_its_code_and_how_often_it_was_sent() -> None:
    truth = json.loads((KAMAILIO / "h_dispatcher_ping.json").read_text())
    replayed = Replayed(KAMAILIO / "h_dispatcher_ping.pcap")
    found = {ping.call_id: ping for ping in replayed.pings()}
    rows = truth["pings_derived_from_hep"]
    assert len(rows) == len(found) == 48
    for row in rows:
        ping = found[row["call_id"]]
        assert (ping.peer_ip, ping.final_code) == (row["trunk"], row["code"])
        assert ping.requests == row["requests"]
        assert (ping.rtt_ms is None) == (row["code"] is None)
        assert ping.started_at / 1e6 == pytest.approx(row["t"], abs=0.002)


def test_registrations_and_pings_have_the_codes_that_the_client_saw_in_order() -> None:
    truth = json.loads((KAMAILIO / "h_register_options.json").read_text())
    replayed = Replayed(KAMAILIO / "h_register_options.pcap")
    found: dict[str, list[int | None]] = {}
    answers: list[RegistrationRecord | PingRecord] = [*replayed.registrations(), *replayed.pings()]
    for record in sorted(answers, key=lambda record: record.started_at):
        found.setdefault(record.call_id, []).append(record.final_code)
    assert found == {row["call_id"]: row["codes"] for row in truth["calls"]}
    assert replayed.calls() == []


def test_what_kamailio_could_not_read_is_kept_and_makes_no_call_answered() -> None:
    replayed = Replayed(KAMAILIO / "l_malformed.pcap")
    answered = {record.call_id: record.flags for record in replayed.calls() if record.answered}
    assert answered == {"l-stray": ("partial_no_invite",)}
    quarantined = Counter(one.why for one in replayed.kept if one.why is not None)
    assert set(quarantined) <= {"start-line", "call-id", "cseq", "via", "from", "to"}
    assert all(one.payload for one in replayed.kept)


def test_media_reports_are_kept_and_become_media_but_no_calls() -> None:
    replayed = Replayed(KAMAILIO / "r_rtpengine_rtcp.pcap")
    kinds = {type(one) for one in replayed.records.values()}
    assert kinds == {MediaRecord, QualityInterval}
    assert {one.kind for one in replayed.kept} == {5}
    truth = json.loads((KAMAILIO / "r_rtpengine_rtcp.json").read_text())
    counts = Counter(one.call_id for one in replayed.kept)
    assert counts == {row["call_id"]: row["hep_messages"] for row in truth["calls"]}


# ---------------------------------------------------------------------------- FreeSWITCH's captures

# The final code on the wire per call, in the order of the calls.
FREESWITCH_CODES = {
    "hep-default": [486],
    "hep-v1": [200, 200, 486],
    "hep-v3-full": [200, 200, 486, 503, 503, 487, 487, 200],
    "hep-v3-new-sofia-tcp-oversize": [200, 486],
    "hep-v3-paused-503": [503],
}


@pytest.mark.parametrize("name", sorted(FREESWITCH_CODES))
def test_freeswitchs_calls_have_the_codes_that_were_on_the_wire(name: str) -> None:
    replayed = Replayed(FREESWITCH / f"{name}.pcap")
    calls = sorted(replayed.calls(), key=lambda record: record.started_at)
    assert [record.final_code for record in calls] == FREESWITCH_CODES[name]
    assert replayed.said.refused == {}
    assert replayed.ledger["quarantined"] == 0


def test_each_of_freeswitchs_captures_is_among_those_with_known_codes() -> None:
    assert {path.stem for path in FREESWITCH.glob("*.pcap")} == set(FREESWITCH_CODES)


def test_the_callees_behind_freeswitch_have_the_codes_that_they_sent() -> None:
    lines = (FREESWITCH / "uas-ground-truth.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    told = 0
    for path in FREESWITCH.glob("*.pcap"):
        calls = {record.call_id: record for record in Replayed(path).calls()}
        for row in rows:
            if row["capture"] == path.name and row["call_id"] in calls:
                record = calls[row["call_id"]]
                assert record.final_code == row["responses"][-1][1]
                assert record.answered == (record.final_code == 200)
                told += 1
    assert told == 4


# ------------------------------------------------------------------------------------- other files


def hep_packets(path: Path) -> list[tuple[pcap.Captured, hep.Packet]]:
    with path.open("rb") as file:
        return [(captured, hep.decode(captured.payload)) for captured in pcap.Reader(file)]


def plain(path: Path, to: Path) -> Path:
    """The SIP messages of a HEP capture as a capture of SIP itself, over UDP."""
    records = [
        pcap.udp_record(
            packet.captured_at or 0,
            packet.source,
            packet.destination,
            packet.source_port,
            packet.destination_port,
            packet.payload,
        )
        for _, packet in hep_packets(path)
    ]
    to.write_bytes(pcap.file_header() + b"".join(records))
    return to


def told(record: CallRecord) -> dict[str, object]:
    names = ("final_code", "answered", "released_by", "pdd_ms", "setup_ms", "talk_ms", "fail_ms",
             "invites", "attempts", "flags", "src_ip", "dst_ip", "started_at", "codec_negotiated")  # fmt: skip
    return {name: getattr(record, name) for name in names}


@pytest.mark.parametrize(
    "name", ["a_answered", "b_failures", "c_cancel", "d_auth", "f_reinvite", "j_failover"]
)
def test_plain_sip_over_udp_gives_the_same_calls_as_hep(name: str, tmp_path: Path) -> None:
    mirrored = Replayed(KAMAILIO / f"{name}.pcap")
    seen = Replayed(plain(KAMAILIO / f"{name}.pcap", tmp_path / "plain.pcap"))
    assert {record.call_id: told(record) for record in seen.calls()} == {
        record.call_id: told(record) for record in mirrored.calls()
    }
    assert seen.ledger["received"] == mirrored.ledger["received"]
    assert seen.replay.not_sip == 0


class Wire:
    """A capture of TCP, made by hand: raw IP, one packet per segment."""

    def __init__(self) -> None:
        self.data = bytearray(pcap.file_header())
        self.at = 1_795_000_000_000_000
        self.sequences: Counter[tuple[str, int, str, int]] = Counter()

    def send(self, source: str, sport: int, destination: str, dport: int, data: bytes) -> None:
        flow = (source, sport, destination, dport)
        sequence = 1000 + self.sequences[flow]
        self.sequences[flow] += len(data)
        segment = struct.pack(">HHIIBBHHH", sport, dport, sequence, 0, 0x50, 0x18, 65_535, 0, 0)
        packed = [ipaddress.IPv4Address(one).packed for one in (source, destination)]
        size = 20 + len(segment) + len(data)
        head = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0x4000, 64, pcap.TCP, 0)
        packet = head + packed[0] + packed[1] + segment + data
        seconds, micros = divmod(self.at, 1_000_000)
        self.data += struct.pack("<IIII", seconds, micros, len(packet), len(packet)) + packet
        self.at += 10_000

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


PHONE, PROXY = ("192.0.2.1", 40_000), ("203.0.113.5", 5060)
SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"


def message(start: str, cseq: str, to_tag: str = "", body: bytes = b"") -> bytes:
    lines = [
        start,
        f"Via: SIP/2.0/TCP 192.0.2.1:40000;branch=z9hG4bK{cseq.replace(' ', '')}",
        "From: <sip:alice@example.com>;tag=a",
        f"To: <sip:bob@example.com>{to_tag}",
        "Call-ID: stream@example.com",
        f"CSeq: {cseq}",
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


TO = ";tag=b"
ASKED = message("INVITE sip:bob@example.com SIP/2.0", "1 INVITE", body=SDP)
ANSWERED = (
    message("SIP/2.0 100 Trying", "1 INVITE")
    + message("SIP/2.0 180 Ringing", "1 INVITE", TO)
    + message("SIP/2.0 200 OK", "1 INVITE", TO, SDP)
)
RELEASED = message("ACK sip:bob@example.com SIP/2.0", "1 ACK", TO) + message(
    "BYE sip:bob@example.com SIP/2.0", "2 BYE", TO
)


def stream_call(wire: Wire, cuts: Sequence[int] = ()) -> None:
    """A call over one TCP connection; the INVITE and the last requests are cut, replies are not."""
    for start, end in pieces(ASKED, cuts):
        wire.send(*PHONE, *PROXY, ASKED[start:end])
    wire.send(*PROXY, *PHONE, ANSWERED)
    for start, end in pieces(RELEASED, cuts):
        wire.send(*PHONE, *PROXY, RELEASED[start:end])
    wire.send(*PROXY, *PHONE, message("SIP/2.0 200 OK", "2 BYE", TO))


def pieces(data: bytes, cuts: Sequence[int]) -> list[tuple[int, int]]:
    inside = sorted({cut for cut in cuts if 0 < cut < len(data)})
    return list(zip([0, *inside], [*inside, len(data)], strict=True))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, len(ASKED) - 1), max_size=6))
def test_plain_sip_over_tcp_is_put_together_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int]
) -> None:
    wire = Wire()
    stream_call(wire, sorted(cuts))
    replayed = Replayed(wire.write(tmp_path_factory.mktemp("tcp") / "sip.pcap"))
    record = replayed.call()
    assert (record.final_code, record.answered, record.released_by) == (200, True, "caller")
    assert (record.transport, record.codec_negotiated) == ("tcp", "PCMU")
    assert len(replayed.kept) == 7
    assert sum(one.packets for one in replayed.kept) == replayed.said.received
    assert replayed.replay.not_sip == 0


def test_other_protocols_over_tcp_and_udp_are_counted_and_make_no_noise(tmp_path: Path) -> None:
    wire = Wire()
    for number in range(20):
        wire.send("192.0.2.9", 50_000 + number, "192.0.2.8", 443, b"\x16\x03\x01" + bytes(300))
        wire.send("192.0.2.9", 50_000 + number, "192.0.2.8", 443, bytes(range(256)) * 4)
        wire.send("192.0.2.9", 51_000 + number, "192.0.2.8", 80, b"GET / HTTP/1.1\r\n\r\n")
    stream_call(wire)
    wire.data += pcap.udp_record(wire.at, bytes(4), bytes(4), 53, 53, b"\x12\x34\x01\0\0\1")
    replayed = Replayed(wire.write(tmp_path / "mixed.pcap"))
    assert replayed.call().final_code == 200
    assert replayed.replay.not_sip == 61
    assert replayed.ledger == {
        "received": 4, "messages": 4, "quarantined": 0, "refused": 0, "held": 0,
    }  # fmt: skip
    assert len(replayed.kept) == 7


def test_a_capture_that_begins_inside_a_connection_is_read_from_the_next_message_on(
    tmp_path: Path,
) -> None:
    wire = Wire()
    wire.send(*PHONE, *PROXY, b"a=rtpmap:0 PCMU/8000\r\na=ptime:20\r\n")
    stream_call(wire)
    replayed = Replayed(wire.write(tmp_path / "inside.pcap"))
    assert replayed.call().final_code == 200
    assert replayed.replay.not_sip == 1


def test_hep_over_tcp_is_found_wherever_the_capture_begins(tmp_path: Path) -> None:
    heps = b"".join(captured.payload for captured, _ in hep_packets(KAMAILIO / "e_early183.pcap"))
    wire = Wire()
    start = 17  # inside the first frame
    for position in range(start, len(heps), 1400):
        wire.send("127.0.0.1", 40_000, "127.0.0.1", 9060, heps[position : position + 1400])
    replayed = Replayed(wire.write(tmp_path / "hep.pcap"))
    assert replayed.said.received == 136 - 1
    assert {record.final_code for record in replayed.calls()} == {200}
    assert len(replayed.calls()) == 8


def test_a_connection_that_turns_out_not_to_be_hep_is_left_alone(tmp_path: Path) -> None:
    wire = Wire()
    wire.send("192.0.2.9", 1, "192.0.2.8", 2, b"HEP3 is the word of the day. ")
    for _ in range(60):
        wire.send("192.0.2.9", 1, "192.0.2.8", 2, b"x" * 1400)
    replayed = Replayed(wire.write(tmp_path / "no-hep.pcap"))
    assert replayed.records == {}
    assert replayed.replay.not_sip > 0


def test_the_connections_that_are_followed_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_CONNECTIONS", 10)
    wire = Wire()
    for port in range(1, 200):
        wire.send("192.0.2.1", port, "203.0.113.5", 5060, b"INV")
    stream_call(wire)
    replayed = Replayed(wire.write(tmp_path / "many.pcap"))
    assert len(replayed.replay._flows) == 10
    assert replayed.call().final_code == 200


def test_files_are_merged_by_time(tmp_path: Path) -> None:
    """The two directions of a call, captured apart: neither alone tells how it ended."""
    data = plain(KAMAILIO / "a_answered.pcap", tmp_path / "all.pcap")
    whole = Replayed(data)
    halves = (tmp_path / "to.pcap", tmp_path / "from.pcap")
    with data.open("rb") as file:
        captured = list(pcap.Reader(file))
    for path, wanted in zip(halves, (True, False), strict=True):
        records = [
            pcap.udp_record(
                one.captured_at or 0,
                one.source,
                one.destination,
                one.source_port,
                one.destination_port,
                one.payload,
            )
            for one in captured
            if one.payload.startswith(b"SIP/2.0") is wanted
        ]
        path.write_bytes(pcap.file_header() + b"".join(records))
    merged = Replayed(*halves)
    assert {r.call_id: told(r) for r in merged.calls()} == {
        r.call_id: told(r) for r in whole.calls()
    }
    assert [one.captured_at for one in merged.kept] == sorted(
        one.captured_at or 0 for one in merged.kept
    )


def test_a_file_that_is_out_of_order_gives_the_same_calls(tmp_path: Path) -> None:
    """As of several queues of a network card, or two files put together by a careless tool."""
    data = (KAMAILIO / "c_cancel.pcap").read_bytes()
    records, at = [], 24
    while at < len(data):
        size = 16 + struct.unpack_from("<I", data, at + 8)[0]
        records.append(data[at : at + size])
        at += size
    path = tmp_path / "mixed.pcap"
    path.write_bytes(data[:24] + b"".join(records[1::2] + records[::2]))
    whole, mixed = Replayed(KAMAILIO / "c_cancel.pcap"), Replayed(path)
    assert {r.call_id: told(r) for r in mixed.calls()} == {
        r.call_id: told(r) for r in whole.calls()
    }
    assert mixed.replay.now == whole.replay.now


def test_timers_run_out_after_the_last_packet_as_they_would_in_life(tmp_path: Path) -> None:
    """An INVITE that nobody answers ends by Timer B, though the capture ends at once."""
    wire = Wire()
    wire.send(*PHONE, *PROXY, ASKED)
    replayed = Replayed(wire.write(tmp_path / "silent.pcap"))
    record = replayed.call()
    assert (record.final_code, record.inferred) == (408, True)
    assert "no_response" in record.flags
    assert replayed.pipeline.next_timer() is None


def test_half_a_message_at_the_end_of_a_capture_is_not_lost(tmp_path: Path) -> None:
    wire = Wire()
    wire.send(*PHONE, *PROXY, ASKED[:-20])
    replayed = Replayed(wire.write(tmp_path / "half.pcap"))
    (kept,) = replayed.kept
    assert kept.payload == ASKED[:-20]
    assert replayed.call().call_id == "stream@example.com"
    assert replayed.ledger["held"] == 0


@pytest.mark.parametrize("content", [b"", b"\n", b"not a capture at all\n" * 10])
def test_a_file_that_is_no_capture_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ReplayError) as caught:
        Replayed(path)
    assert str(caught.value) == (
        f"{path}: not a pcap or pcapng file, nor a transcript of a FreeSWITCH's event socket; "
        "write one with tcpdump -w or Wireshark"
    )


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ReplayError, match=why) as caught:
            Replayed(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bytes_short", [1, 10, 200, 5000])
def test_a_file_that_was_cut_is_read_up_to_there_and_said_to_be_cut(
    tmp_path: Path, bytes_short: int
) -> None:
    path = tmp_path / "cut.pcap"
    whole = (KAMAILIO / "a_answered.pcap").read_bytes()
    path.write_bytes(whole[:-bytes_short])
    replayed = Replayed(path)
    assert replayed.replay.truncated == [str(path)]
    assert 600 < replayed.said.received < 645
    assert len(replayed.calls()) == 50


def test_packets_of_which_only_the_beginning_was_captured_are_counted(tmp_path: Path) -> None:
    records = []
    for captured, _ in hep_packets(KAMAILIO / "e_early183.pcap"):
        record = pcap.udp_record(
            captured.captured_at or 0,
            captured.source,
            captured.destination,
            captured.source_port,
            captured.destination_port,
            captured.payload,
        )
        seconds, micros, size, original = struct.unpack_from("<IIII", record)
        short = record[16 : 16 + 600]  # as tcpdump -s 600 would
        records.append(struct.pack("<IIII", seconds, micros, len(short), original) + short)
        assert size == original
    path = tmp_path / "short.pcap"
    path.write_bytes(pcap.file_header() + b"".join(records))
    replayed = Replayed(path)
    assert 0 < replayed.replay.cut < 137
    assert {record.final_code for record in replayed.calls()} == {200}
    assert replayed.said.refused == {}


def test_progress_is_told_in_bytes_of_all_files() -> None:
    told: list[tuple[int, int]] = []
    paths = [KAMAILIO / "a_answered.pcap", KAMAILIO / "b_failures.pcap"]
    for _ in Replay(paths, Pipeline(), progress=lambda *one: told.append(one)):
        pass
    total = sum(path.stat().st_size for path in paths)
    assert {one[1] for one in told} == {total}
    assert [one[0] for one in told] == sorted(one[0] for one in told)
    assert told[-1][0] <= total


# ---------------------------------------------------------------------- transcripts of a FreeSWITCH


class Heard(Pipeline):
    """A pipeline that remembers in which order it was told what, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str, float, int]] = []

    def receive_event(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        self.told.append((switch, event.event_name, now, received_at))

    def receive(self, datagram: bytes, now: float, received_at: int, peer: str) -> None:
        self.told.append(("", "packet", now, received_at))


def heard_of(*paths: Path) -> tuple[Replay, Heard]:
    heard = Heard()
    run = Replay(paths, heard)
    for _ in run:
        pass
    return run, heard


def frame(**headers: object) -> bytes:
    """One plain event."""
    body = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items())
    content = body.encode() + b"\n"
    return b"Content-Length: %d\nContent-Type: text/event-plain\n\n" % len(content) + content


def event(at: int | None, name: str = "CHANNEL_ANSWER", **headers: object) -> bytes:
    stamp = {} if at is None else {"Event_Date_Timestamp": at}
    return frame(Event_Name=name, **stamp, **{"FreeSWITCH_Switchname": "fs1"} | headers)


SECOND = 1_000_000
EPOCH = 1_795_000_000 * SECOND


def test_a_transcript_is_read_whatever_its_name_and_its_replies_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes((FREESWITCH / "28-api-bgapi-exit.esl").read_bytes())
    run, heard = heard_of(path)
    assert [name for _, name, _, _ in heard.told] == ["BACKGROUND_JOB"]
    assert (run.events, run.packets, run.truncated, run.broken) == (1, 0, [], [])


def test_events_and_packets_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    first, second = tmp_path / "1.esl", tmp_path / "2.esl"
    first.write_bytes(event(EPOCH + 30) + event(EPOCH + 10) + event(EPOCH + SECOND))
    second.write_bytes(event(EPOCH + 20, FreeSWITCH_Switchname="fs2"))
    capture = tmp_path / "c.pcap"
    packets = [
        pcap.udp_record(EPOCH + at, b"\x7f\0\0\1", b"\x7f\0\0\1", 1, 2, b"HEP3 and so on")
        for at in (5, 25, 2 * SECOND)
    ]
    capture.write_bytes(pcap.file_header() + b"".join(packets))
    _, heard = heard_of(first, capture, second)
    assert [(switch, at - EPOCH) for switch, _, _, at in heard.told] == [
        ("", 5), ("fs1", 10), ("fs2", 20), ("", 25), ("fs1", 30), ("fs1", SECOND), ("", 2 * SECOND),
    ]  # fmt: skip
    assert all(now == at / SECOND for _, _, now, at in heard.told)


def test_an_event_without_a_time_or_name_has_those_of_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    odd = ("-5", "1e9", "\uff19", "1" * 17, "")
    path.write_bytes(
        event(None)
        + event(EPOCH)
        + b"".join(frame(Event_Name="X", Event_Date_Timestamp=text) for text in odd)
        + event(EPOCH + 9, FreeSWITCH_Switchname="fs2")
    )
    _, heard = heard_of(path)
    assert [(switch, at - EPOCH) for switch, _, _, at in heard.told] == [
        ("fs1", 0), ("fs1", 0), *[("fs1", 0)] * 5, ("fs2", 9),
    ]  # fmt: skip


def test_events_that_never_had_a_time_are_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "REORDER_EVENTS", 3)
    path = tmp_path / "a.esl"
    path.write_bytes(frame(Event_Name="X", Core_UUID="c1") * 10)
    _, heard = heard_of(path)
    assert heard.told == [("c1", "X", 0.0, 0)] * 10


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_transcript_is_read_alike_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    path = FREESWITCH / "21-register-unregister.esl"
    _, whole = heard_of(path)
    monkeypatch.setattr(replay, "CHUNK", chunk)
    _, pieces = heard_of(path)
    assert whole.told == pieces.told != []


def test_a_transcript_that_was_cut_is_read_up_to_there_and_said_to_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut.esl"
    path.write_bytes(event(EPOCH) + event(EPOCH + 1)[:-5])
    run, heard = heard_of(path)
    assert len(heard.told) == 1
    assert (run.truncated, run.broken) == ([str(path)], [])


@pytest.mark.parametrize("rest", [b"Content-Length: x\n\n", b"x" * 200_000])
def test_a_transcript_with_garbage_in_it_is_read_up_to_there_and_said_to_be_damaged(
    tmp_path: Path, rest: bytes
) -> None:
    path = tmp_path / "bad.esl"
    path.write_bytes(event(EPOCH) + rest + event(EPOCH + 1))
    run, heard = heard_of(path)
    assert len(heard.told) == 1
    assert (run.truncated, run.broken) == ([], [str(path)])


def test_frames_that_are_left_out_are_counted_by_why(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    path.write_bytes(frame(No_Name=1) + event(EPOCH) + frame(No_Name=1))
    run, heard = heard_of(path)
    assert len(heard.told) == run.events == 1
    assert run.events_refused == {"event-name": 2}


def test_a_switch_is_known_by_what_its_transcripts_say_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    beat = {
        "Core_UUID": "c1", "FreeSWITCH_Version": "1.11.2", "Session_Count": 3, "Max_Sessions": 1000,
        "Session_Per_Sec": 28, "Session_Per_Sec_Last": 2, "Idle_CPU": "88.5", "Uptime_msec": 5000,
        "Session_Since_Startup": 40, "Session_Peak_Max": 9,
    }  # fmt: skip
    path.write_bytes(
        event(EPOCH, "HEARTBEAT", **beat)
        + event(EPOCH + 1, "HEARTBEAT", **beat | {"Session_Count": 1, "Idle_CPU": "lots"})
        + event(EPOCH + 2, "CHANNEL_CREATE", Unique_ID="u1", Core_UUID="c2")
        + event(EPOCH + 3, "CHANNEL_DESTROY", Unique_ID="u1", Core_UUID="c2")
        + event(EPOCH + 4, FreeSWITCH_Switchname="fs2")
    )
    run, _ = heard_of(path)
    assert list(run.switches.values()) == [
        Switch(
            switch="fs1", core_uuid="c2", version="1.11.2", restarts=1, events=4,
            first_event_at=EPOCH, last_event_at=EPOCH + 3, heartbeats=2, heartbeat_at=EPOCH + 1,
            sessions=1, max_sessions=1000, sessions_per_second=2, sessions_per_second_left=28,
            idle_cpu=None, uptime_ms=5000, sessions_since_startup=40, sessions_peak=9,
            sessions_seen=3,
        ),
        Switch(switch="fs2", events=1, first_event_at=EPOCH + 4, last_event_at=EPOCH + 4),
    ]  # fmt: skip


def test_legs_that_live_at_once_are_sessions_even_without_a_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    path.write_bytes(
        b"".join(event(EPOCH + n, "CHANNEL_CREATE", Unique_ID=f"u{n}") for n in range(3))
        + event(EPOCH + 5, "CHANNEL_DESTROY", Unique_ID="u1")
        + event(EPOCH + 6, "CHANNEL_CREATE", Unique_ID="u0")
    )
    run, _ = heard_of(path)
    assert run.switches["fs1"].sessions_seen == 3


def test_legs_of_a_switch_that_restarted_in_a_transcript_end_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    path.write_bytes(
        event(EPOCH, "CHANNEL_CREATE", Unique_ID="old", Core_UUID="c1")
        + event(EPOCH + 10 * SECOND, "HEARTBEAT", Core_UUID="c2")
        + event(EPOCH + 60 * SECOND, "HEARTBEAT", Core_UUID="c2")
    )
    pipeline = Pipeline()
    run = Replay([path], pipeline)
    legs = [(one.flags, run.events) for one in run if isinstance(one, LegRecord)]
    assert legs == [(("end_unseen", "restarted"), 2)]
    assert run.switches["fs1"].restarts == 1


def test_hosts_of_one_name_that_take_turns_restart_once(tmp_path: Path) -> None:
    path = tmp_path / "a.esl"
    path.write_bytes(
        event(EPOCH, "CHANNEL_CREATE", Unique_ID="a", Core_UUID="c1")
        + b"".join(
            event(EPOCH + n * SECOND, Unique_ID="a", Core_UUID=f"c{1 + n % 2}") for n in range(1, 9)
        )
        + event(EPOCH + 9 * SECOND, "CHANNEL_DESTROY", Unique_ID="a", Core_UUID="c1")
    )
    pipeline = Pipeline()
    run = Replay([path], pipeline)
    newest = [one for one in run if isinstance(one, LegRecord)]
    assert [one.flags for one in newest] == [()]
    assert run.switches["fs1"].restarts == 1


def test_names_of_switches_beyond_the_cap_are_not_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_SWITCHES", 2)
    path = tmp_path / "a.esl"
    path.write_bytes(b"".join(event(EPOCH, FreeSWITCH_Switchname=f"fs{n}") for n in range(5)))
    run, heard = heard_of(path)
    assert list(run.switches) == ["fs0", "fs1"]
    assert run.events == len(heard.told) == 5


@pytest.mark.parametrize(
    ("name", "legs", "joined"),
    [("01-answered-caller-bye", 1, 1), ("10-bridged-a-bye-ALL", 2, 1), ("20-bridged-json", 2, 1),
     ("21-register-unregister", 0, 0), ("24-hostile-headers", 3, 3)],
)  # fmt: skip
def test_a_transcript_alone_gives_its_legs_and_conversations(
    name: str, legs: int, joined: int
) -> None:
    replayed = Replayed(FREESWITCH / f"{name}.esl")
    kinds = Counter(type(record) for record in replayed.records.values())
    assert (kinds[LegRecord], kinds[ConversationRecord]) == (legs, joined)
    assert replayed.pipeline.next_timer() is None
