import gzip
import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipsidecar.wire import hep, pcap
from sipsidecar.wire.hep import HepError, HepStream, Kind, address_text, decode, encode, sniff

CORPUS = Path(__file__).parent.parent / "corpus"
VECTORS: dict[str, Any] = {
    vector["name"]: vector
    for vector in json.loads((CORPUS / "vectors/rtcp_hep.json").read_text())["vectors"]
    if vector["kind"].startswith("hep")
}
INVITE = (
    b"INVITE sip:bob@example.net SIP/2.0\r\nCall-ID: 1@example.net\r\nContent-Length: 0\r\n\r\n"
)
HEP_CAPTURES = sorted(
    path for path in CORPUS.glob("*/*.pcap") if path.name not in {"n_rawsip.pcap", "k_tcp_hep.pcap"}
)


def chunk(kind: int, value: bytes, vendor: int = 0) -> bytes:
    return (
        vendor.to_bytes(2, "big") + kind.to_bytes(2, "big") + (6 + len(value)).to_bytes(2, "big")
    ) + value


def hep3(*chunks: bytes, declared: int | None = None, mark: bytes = b"HEP3") -> bytes:
    body = b"".join(chunks)
    return mark + (6 + len(body) if declared is None else declared).to_bytes(2, "big") + body


def packet(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "source": bytes((192, 0, 2, 1)),
        "destination": bytes((192, 0, 2, 2)),
        "source_port": 5060,
        "destination_port": 5080,
        "captured_at": 1_700_000_000_123_456,
        "agent_id": 2001,
        "payload": INVITE,
    }
    return encode(**(arguments | changes))


def why(datagram: bytes, **arguments: Any) -> str:
    with pytest.raises(HepError) as caught:
        decode(datagram, **arguments)
    assert caught.value.why in hep.WHYS
    return caught.value.why


def is_value_or_error(datagram: bytes, now_seconds: int | None = None) -> bool:
    try:
        decode(datagram, now_seconds=now_seconds)
    except HepError as error:
        return error.why in hep.WHYS
    return True


def udp_payloads(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [each.payload for each in pcap.Reader(file)]


def test_every_why_that_the_source_raises_is_announced() -> None:
    source = Path(hep.__file__).read_text()
    assert set(re.findall(r'HepError\("([a-z-]+)"', source)) | {"length"} == hep.WHYS


class TestVectors:
    def test_the_spec_sample_decodes_as_the_spec_says(self) -> None:
        vector = VECTORS["hep3_spec_sample"]
        datagram = bytes.fromhex(vector["hex"])
        assert len(datagram) == vector["n"]
        got = decode(datagram)
        assert got.version == 3
        assert address_text(got.source) == vector["expect"]["src"]
        assert address_text(got.destination) == vector["expect"]["dst"]
        assert (got.source_port, got.destination_port) == (12010, 5060)
        assert (got.ip_protocol, got.protocol_type, got.agent_id) == (17, 1, 228)
        assert got.captured_at == 1_313_440_459_120_000
        assert got.payload == b"INVITE sip:bob"
        assert got.kind is Kind.SIP  # cut inside its start line, and still SIP
        assert (got.trailing, got.overdeclared, got.inflated) == (0, False, False)

    def test_ipv6_and_text_chunks_are_read_and_another_vendors_chunk_is_not(self) -> None:
        vector = VECTORS["hep3_ipv6_full"]
        got = decode(bytes.fromhex(vector["hex"]))
        expect = vector["expect"]
        assert address_text(got.source) == expect["src"]
        assert address_text(got.destination) == expect["dst"]
        assert got.auth_key == expect["auth"].encode()
        assert got.correlation_id == expect["corr"].encode()
        assert got.node_name == expect["node"].encode()
        assert got.payload == expect["payload"].encode()

    def test_hep1_has_no_time_and_no_agent(self) -> None:
        got = decode(bytes.fromhex(VECTORS["hep1_ipv4"]["hex"]))
        expect = VECTORS["hep1_ipv4"]["expect"]
        assert address_text(got.source) == expect["src"]
        assert address_text(got.destination) == expect["dst"]
        assert (got.source_port, got.destination_port) == (expect["sport"], expect["dport"])
        assert (got.version, got.captured_at, got.agent_id) == (1, None, None)
        assert got.payload.startswith(b"OPTIONS sip:x SIP/2.0\r\n")

    @pytest.mark.parametrize("name", ["hep2_ipv4_kamailio", "hep2_ipv4_sofia"])
    def test_hep2_decodes_whether_its_length_counts_the_time_header_or_not(self, name: str) -> None:
        got = decode(bytes.fromhex(VECTORS[name]["hex"]))
        assert got.captured_at == 1_700_000_000_123_456
        assert got.agent_id == VECTORS[name]["expect"]["agent"]
        assert got.payload.startswith(b"OPTIONS sip:x SIP/2.0\r\n")
        assert got.kind is Kind.SIP


class TestCaptures:
    @pytest.mark.parametrize("path", HEP_CAPTURES, ids=lambda path: path.stem)
    def test_every_datagram_of_a_real_agent_decodes_to_what_it_carries(self, path: Path) -> None:
        kind = Kind.JSON if path.name.startswith("r_") else Kind.SIP
        agent = 3001 if path.name.startswith("r_") else 2001
        for datagram in udp_payloads(path):
            got = decode(datagram)
            assert got.kind is kind
            assert got.payload
            assert len(got.source) == len(got.destination) == 4
            assert (got.trailing, got.overdeclared) == (0, False)
            assert (got.captured_at is None) == (got.version == 1)
            if path.parent.name == "kamailio" and got.version != 1:
                assert got.agent_id == agent
            assert datagram.endswith(got.payload)

    def test_plain_sip_is_refused_as_not_hep_and_sniffs_as_sip(self) -> None:
        for datagram in udp_payloads(CORPUS / "kamailio/n_rawsip.pcap"):
            assert why(datagram) == "not-hep"
            assert sniff(datagram, 0) is Kind.SIP

    def test_hep_over_tcp_gives_all_its_messages(self) -> None:
        stream = HepStream()
        frames: list[bytes] = []
        with (CORPUS / "kamailio/k_tcp_hep.pcap").open("rb") as file:
            for each in pcap.Reader(file):
                frames += stream.feed(each.payload)
        assert len(frames) == 156
        assert (stream.pending, stream.skipped) == (0, 0)
        assert {decode(frame).kind for frame in frames} == {Kind.SIP}


class TestChunks:
    def test_a_packet_of_no_chunks_is_empty_and_knows_nothing(self) -> None:
        got = decode(hep3())
        assert (got.source, got.destination, got.source_port, got.ip_protocol) == (b"", b"", 0, 0)
        assert (got.captured_at, got.agent_id, got.auth_key) == (None, None, None)
        assert got.kind is Kind.EMPTY

    @pytest.mark.parametrize("mark", [b"HEP3", b"EEP3", b"EEP1"])
    def test_the_older_marks_carry_the_same_chunks(self, mark: bytes) -> None:
        assert decode(hep3(chunk(15, INVITE), mark=mark)).payload == INVITE

    def test_a_chunk_of_another_vendor_is_never_read_as_generic(self) -> None:
        got = decode(hep3(chunk(12, b"\0\0\0\7", vendor=2), chunk(15, b"x", 1), chunk(15, INVITE)))
        assert got.agent_id is None
        assert got.payload == INVITE

    def test_chunks_of_unknown_type_are_skipped_by_their_length(self) -> None:
        new = b"".join(chunk(kind, b"\0" * (kind % 7)) for kind in range(0x12, 0x31))
        got = decode(hep3(new, chunk(0x65, b"{}"), chunk(15, INVITE)))
        assert got.payload == INVITE

    def test_the_first_of_two_equal_chunks_counts(self) -> None:
        both = hep3(chunk(15, b"one"), chunk(15, b"two"))
        assert decode(both).payload == b"one"

    @pytest.mark.parametrize(
        ("datagram", "word"),
        [
            (b"HEP3", "length"),
            (b"HEP3\0", "length"),
            (hep3(declared=5), "length"),
            (hep3(chunk(2, b"\x11"), b"\0\0\0"), "chunk"),
            (hep3(b"\0\0\0\2\0\5\x11"), "chunk"),  # shorter than its own header
            (hep3(b"\0\0\0\2\0\0\x11"), "chunk"),  # the zero length of an old proto_hep
            (hep3(b"\0\0\0\2\0\x08\x11"), "chunk"),
            (hep3(chunk(2, b"\x11\x11")), "chunk"),
            (hep3(chunk(9, b"\0\0\1")), "chunk"),
            (hep3(chunk(12, b"")), "chunk"),
            (hep3(chunk(3, b"\1\2\3")), "address"),
            (hep3(chunk(6, b"\1\2\3\4")), "address"),
            (b"", "not-hep"),
            (b"\1", "not-hep"),
            (b"HEP2" + b"\0" * 60, "not-hep"),
            (INVITE, "not-hep"),
        ],
    )
    def test_a_broken_packet_is_refused_by_its_name(self, datagram: bytes, word: str) -> None:
        assert why(datagram) == word

    def test_bytes_after_the_declared_end_are_counted_and_left_alone(self) -> None:
        got = decode(packet() + chunk(0x11, b"late"))
        assert got.trailing == 10
        assert got.correlation_id is None
        assert got.payload == INVITE

    def test_a_length_that_says_too_much_is_forgiven_when_the_chunks_end_with_the_datagram(
        self,
    ) -> None:
        got = decode(hep3(chunk(12, b"\0\0\0\7"), chunk(15, INVITE), declared=16_000))
        assert got.overdeclared
        assert got.payload == INVITE

    def test_a_payload_that_runs_over_the_datagram_is_cut_there(self) -> None:
        whole = packet()
        for cut in (1, 10, len(INVITE)):
            got = decode(whole[:-cut])
            assert got.overdeclared
            assert got.payload == INVITE[:-cut]
        assert decode(whole[: -len(INVITE)]).kind is Kind.EMPTY

    def test_another_chunk_that_runs_over_the_datagram_is_refused_as_length(self) -> None:
        assert why(hep3(chunk(0x11, b"correlation"))[:-2]) == "length"
        assert why(hep3(chunk(15, b"another vendor's", vendor=3))[:-2]) == "length"
        assert why(hep3(chunk(12, b"\0\0\0\7"), chunk(15, INVITE))[: -len(INVITE) - 2]) == "chunk"

    def test_the_agent_id_of_an_agent_that_mixed_up_its_widths_is_taken_as_it_stands(self) -> None:
        assert decode(hep3(chunk(12, b"\x07\xd1\0\0"))).agent_id == 2001 << 16

    @pytest.mark.parametrize(
        "chunks",
        [
            (chunk(9, b"\0\0\0\1"),),
            (chunk(10, b"\0\0\0\1"),),
            (chunk(9, b"\0\0\0\0"), chunk(10, b"\0\0\0\1")),
            (chunk(9, b"\0\0\0\1"), chunk(10, (1_000_000).to_bytes(4, "big"))),
        ],
    )
    def test_a_time_that_is_not_whole_is_no_time(self, chunks: tuple[bytes, ...]) -> None:
        assert decode(hep3(*chunks)).captured_at is None

    def test_the_broken_ipv6_addresses_of_sofia_sip_are_unknown(self) -> None:
        flow_label = b"\x01\x02\x03\x04"
        got = decode(hep3(chunk(5, bytes(16)), chunk(6, flow_label + bytes(12))))
        assert (got.source, got.destination) == (b"", b"")
        loopback = bytes(15) + b"\1"
        assert decode(hep3(chunk(5, loopback))).source == loopback

    def test_a_keep_alive_chunk_without_payload_is_a_keep_alive(self) -> None:
        assert decode(hep3(chunk(13, b"\0\x1e"))).kind is Kind.KEEP_ALIVE
        assert decode(hep3(chunk(13, b"\0\x1e"), chunk(15, INVITE))).kind is Kind.SIP

    @pytest.mark.parametrize("squeeze", [zlib.compress, gzip.compress])
    def test_a_compressed_payload_is_inflated(self, squeeze: Any) -> None:
        got = decode(hep3(chunk(16, squeeze(INVITE))))
        assert (got.payload, got.kind, got.inflated) == (INVITE, Kind.SIP, True)

    def test_a_plain_payload_goes_before_a_compressed_one(self) -> None:
        got = decode(hep3(chunk(16, b"not zlib"), chunk(15, INVITE)))
        assert (got.payload, got.inflated) == (INVITE, False)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"not zlib",
            zlib.compress(INVITE)[:-5],
            zlib.compress(b"\0" * (hep.MAX_INFLATED + 1)),
            zlib.compress(b"\0" * 50_000_000),
        ],
    )
    def test_what_does_not_inflate_or_is_a_bomb_is_refused_as_inflate(self, data: bytes) -> None:
        assert why(hep3(chunk(16, data))) == "inflate"

    def test_a_payload_of_just_the_cap_inflates(self) -> None:
        got = decode(hep3(chunk(16, zlib.compress(b"x" * hep.MAX_INFLATED))))
        assert len(got.payload) == hep.MAX_INFLATED


class TestOldVersions:
    @pytest.mark.parametrize(
        "head",
        [
            b"\3\x10\2\x11",  # no such version
            b"\1\x10\x03\x11",  # no such family
            b"\1\x11\2\x11",  # no such length
            b"\1\x1c\2\x11",  # HEPv1 has no time to count in
            b"\1\x10\x0a\x11",  # IPv4's length with IPv6's family
            b"\2\x28\2\x11",
        ],
    )
    def test_bytes_that_only_begin_like_it_are_refused_as_not_hep(self, head: bytes) -> None:
        assert why(head + bytes(80)) == "not-hep"

    @pytest.mark.parametrize("head", [b"\1\x10\2\x11", b"\2\x10\2\x11", b"\2\x34\x0a\x11"])
    def test_a_header_that_is_cut_is_refused_as_length(self, head: bytes) -> None:
        assert why(head) == "length"
        assert why(head + bytes(11)) == "length"

    def test_ipv6_is_read(self) -> None:
        six = {"source": b"\x20\1" + bytes(13) + b"\1", "destination": b"\x20\1" + b"\2" * 14}
        for version, length in ((1, 40), (2, 40)):
            datagram = packet(version=version, **six)
            assert datagram[1] == length
            got = decode(datagram)
            assert (got.source, got.destination) == (six["source"], six["destination"])
            assert got.payload == INVITE

    @pytest.mark.parametrize("method", ["INVITE", "PRACK", "ACK", "BYE", "SIP/2.0 200 OK"])
    def test_a_time_header_that_was_packed_into_ten_bytes_is_found_out(self, method: str) -> None:
        # "PRACK" without its first two letters is "ACK".
        message = method.encode() + b" sip:x SIP/2.0\r\n\r\n"
        padded = packet(version=2, payload=message)
        for datagram in (padded, padded[:26] + padded[28:]):
            got = decode(datagram)
            assert got.payload == message
            assert (got.agent_id, got.captured_at) == (2001, 1_700_000_000_123_456)

    def test_a_method_nobody_knows_is_not_taken_for_packed(self) -> None:
        assert decode(packet(version=2, payload=b"FOOBAR sip:x SIP/2.0\r\n\r\n")).payload[:6] == (
            b"FOOBAR"
        )

    def test_big_endian_time_is_taken_when_only_that_is_plausible(self) -> None:
        little = packet(version=2)
        at = 16
        big = (
            little[:at]
            + little[at : at + 4][::-1]
            + little[at + 4 : at + 8][::-1]
            + little[at + 8 : at + 10][::-1]
            + little[at + 10 :]
        )
        for datagram in (little, big):
            for now in (None, 1_700_000_600):
                got = decode(datagram, now_seconds=now)
                assert (got.captured_at, got.agent_id) == (1_700_000_000_123_456, 2001)

    def test_a_clock_a_year_off_is_still_read_as_little_endian(self) -> None:
        datagram = packet(version=2)
        assert decode(datagram, now_seconds=1_731_536_000).captured_at == 1_700_000_000_123_456

    def test_a_time_of_zero_is_no_time(self) -> None:
        assert decode(packet(version=2, captured_at=None)).captured_at is None

    def test_a_header_alone_is_empty(self) -> None:
        assert decode(packet(version=1, payload=b"")).kind is Kind.EMPTY


class TestSniff:
    @pytest.mark.parametrize(
        ("payload", "kind"),
        [
            (INVITE, Kind.SIP),
            (b"SIP/2.0 200 OK\r\n", Kind.SIP),
            (b"sip/2.0 200 ok\n", Kind.SIP),
            (b"\r\n\r\nSIP/2.0 200 OK\r\n", Kind.SIP),
            (b"\r\nINVITE sip:cut", Kind.SIP),
            (b"FOO.bar!%*_+`'~- anything at all SIP/2.0 \nVia: x\n", Kind.SIP),
            (b"options * sip/2.0\n\n", Kind.SIP),
            (b"OPTIONS * SIP/2.0", Kind.SIP),
            (b"INVITE sips:bob@example.net SIP/2.0", Kind.SIP),
            (b"INVITE tel:+123 SIP/3.0\r\n", Kind.SIP),
            (b"INVITE urn:service:sos SIP/2.0\r\n", Kind.SIP),
            (b"INVITE", Kind.OTHER),
            (b"GET / HTTP/1.1\r\n\r\n", Kind.OTHER),
            (b'{"type":200}', Kind.JSON),
            (b' \r\n{"type":200}', Kind.JSON),
            (b"\x80\xc8\0\6abcd", Kind.RTCP),
            (b"\x81\xc9\0\7", Kind.RTCP),
            (b"\x80\xc8\0", Kind.OTHER),
            (b"\x80\x00\0\0rtp", Kind.OTHER),
            (b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12), Kind.STUN),
            (b"\1\1\0\0\x21\x12\xa4\x42" + bytes(11), Kind.OTHER),
            (b"d7:command4:pinge", Kind.NG),
            (b"cookie_1 d7:command4:pinge", Kind.NG),
            (b"NLR=0.4;JDR=0.1", Kind.OTHER),
            (b"\r\n\r\n", Kind.KEEP_ALIVE),
            (b"\r\n", Kind.KEEP_ALIVE),
            (b"\0\0\0\0", Kind.KEEP_ALIVE),
            (b"", Kind.EMPTY),
            (b"\xff" * 40, Kind.OTHER),
        ],
    )
    @pytest.mark.parametrize("protocol_type", [0, 1, 5, 35, 61])
    def test_the_content_decides_under_any_type(
        self, payload: bytes, kind: Kind, protocol_type: int
    ) -> None:
        assert sniff(payload, protocol_type) is kind

    def test_text_under_the_log_type_is_a_log_unless_it_is_a_whole_start_line(self) -> None:
        assert sniff(b"INVITE sip:bob was refused", 100) is Kind.LOG
        assert sniff(b'{"event": 1}', 100) is Kind.LOG
        assert sniff(INVITE, 100) is Kind.SIP
        assert sniff(b"", 100) is Kind.EMPTY

    @given(st.integers(16, len(INVITE)))
    def test_a_sip_message_cut_anywhere_is_still_sip(self, length: int) -> None:
        assert sniff(INVITE[:length], 1) is Kind.SIP


ADDRESSES = st.one_of(st.just(b""), st.binary(min_size=4, max_size=4), st.just(b"\x20" * 16))
PACKETS = st.fixed_dictionaries(
    {
        "source": ADDRESSES,
        "destination": ADDRESSES,
        "source_port": st.integers(0, 65_535),
        "destination_port": st.integers(0, 65_535),
        "payload": st.one_of(st.just(INVITE), st.binary(max_size=200)),
        "ip_protocol": st.integers(0, 255),
        "captured_at": st.none() | st.integers(1_000_000, (1 << 32) * 1_000_000 - 1),
        "protocol_type": st.integers(0, 255),
        "agent_id": st.none() | st.integers(0, (1 << 32) - 1),
        "auth_key": st.none() | st.binary(max_size=20),
        "correlation_id": st.none() | st.binary(max_size=20),
        "node_name": st.none() | st.binary(max_size=20),
    }
)


class TestEncode:
    @given(PACKETS, st.booleans())
    def test_version_3_comes_back_as_it_was(self, fields: dict[str, Any], compress: bool) -> None:
        extra = [(2, 15, b"not generic"), (0, 0x65, b"{}")]
        got = decode(encode(**fields, compress=compress, extra=extra))
        assert {name: getattr(got, name) for name in FIELDS} == fields
        assert got.inflated == compress
        assert got.kind is sniff(fields["payload"], fields["protocol_type"])

    @given(
        st.sampled_from([1, 2]),
        st.sampled_from([4, 16]),
        st.integers(946_684_800_000_000, 4_102_444_799_999_999),
        st.integers(0, 65_535),
        st.integers(0, 255),
    )
    def test_versions_1_and_2_come_back_with_what_they_can_hold(
        self, version: int, size: int, captured_at: int, agent_id: int, ip_protocol: int
    ) -> None:
        datagram = packet(
            version=version,
            source=b"\1" * size,
            destination=b"\2" * size,
            captured_at=captured_at,
            agent_id=agent_id,
            ip_protocol=ip_protocol,
        )
        got = decode(datagram)
        assert (got.version, got.source, got.destination) == (version, b"\1" * size, b"\2" * size)
        assert (got.source_port, got.destination_port, got.payload) == (5060, 5080, INVITE)
        assert got.ip_protocol == ip_protocol
        held = (captured_at, agent_id) if version == 2 else (None, None)
        assert (got.captured_at, got.agent_id) == held

    def test_the_longest_packet_fits_and_one_byte_more_is_refused(self) -> None:
        room = 65_535 - (len(packet()) - len(INVITE))
        assert len(decode(packet(payload=b"x" * room)).payload) == room
        for longer in ({"payload": b"x" * (room + 1)}, {"extra": [(0, 0x65, b"x" * 65_530)]}):
            with pytest.raises(HepError, match="length"):
                packet(**longer)

    def test_old_versions_need_two_addresses_of_one_family(self) -> None:
        for source in (b"", b"\1" * 16):
            with pytest.raises(HepError, match="address"):
                packet(version=2, source=source)

    def test_kamailios_datagrams_come_back_byte_for_byte(self) -> None:
        for name in ("a_answered", "n_hepv1", "n_hepv2"):
            for datagram in udp_payloads(CORPUS / f"kamailio/{name}.pcap")[:20]:
                got = decode(datagram)
                fields = {field: getattr(got, field) for field in FIELDS}
                assert encode(version=got.version, **fields) == datagram


FIELDS = (
    "source",
    "destination",
    "source_port",
    "destination_port",
    "payload",
    "ip_protocol",
    "captured_at",
    "protocol_type",
    "agent_id",
    "auth_key",
    "correlation_id",
    "node_name",
)
CHUNKS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([1, 2, 11]), st.binary(min_size=1, max_size=1)),
        st.tuples(st.sampled_from([7, 8]), st.binary(min_size=2, max_size=2)),
        st.tuples(st.sampled_from([3, 4, 9, 10, 12]), st.binary(min_size=4, max_size=4)),
        st.tuples(st.sampled_from([5, 6]), st.binary(min_size=16, max_size=16)),
        st.tuples(st.integers(0, 48), st.binary(max_size=20)),
    ),
    max_size=16,
)
COMMON = [(1, b"\2"), (2, b"\x11"), (3, b"\1" * 4), (4, b"\2" * 4), (7, b"\0\1"), (8, b"\0\2"),
          (9, b"\1" * 4), (10, b"\0\0\0\1"), (11, b"\1"), (12, b"\0\0\0\7")]  # fmt: skip


def outcome(datagram: bytes, layouts: dict[bytes, Any]) -> hep.Packet | str:
    try:
        return hep._decode3(datagram, layouts)
    except HepError as error:
        return error.why


class TestLayouts:
    """The fast path gives what the loop over the chunks gives."""

    def test_a_layout_is_learned_from_real_agents_and_used(self) -> None:
        for path in HEP_CAPTURES:
            layouts: dict[bytes, Any] = {}
            for datagram in udp_payloads(path):
                if datagram[:4] == b"HEP3":
                    assert hep._decode3(datagram, layouts) == hep._decode3(datagram, {})
            assert len(layouts) <= 1

    @given(st.permutations(COMMON), CHUNKS, CHUNKS)
    def test_with_a_learned_layout_every_packet_reads_as_without(
        self, common: list[tuple[int, bytes]], first: list[tuple[int, bytes]], more: list[Any]
    ) -> None:
        layouts: dict[bytes, Any] = {}
        head = b"".join(chunk(*each) for each in common)
        tails = [b"".join(chunk(*each) for each in tail) for tail in (first, more)]
        packets = [hep3(head + tails[0]), hep3(head + tails[1]), hep3(tails[0] + head), hep3(head)]
        for datagram in [*packets, *packets, packets[0][:-1], packets[1] + b"x"]:
            assert outcome(datagram, layouts) == outcome(datagram, {})

    @given(st.permutations(COMMON), st.data())
    def test_with_a_learned_layout_a_flipped_bit_reads_as_without(
        self, common: list[tuple[int, bytes]], data: st.DataObject
    ) -> None:
        layouts: dict[bytes, Any] = {}
        datagram = bytearray(hep3(*(chunk(*each) for each in common), chunk(15, INVITE)))
        outcome(bytes(datagram), layouts)
        datagram[data.draw(st.integers(0, len(datagram) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert outcome(bytes(datagram), layouts) == outcome(bytes(datagram), {})

    def test_the_memory_of_layouts_is_bounded(self) -> None:
        layouts: dict[bytes, Any] = {}
        common = dict(COMMON)
        for number in range(hep.MAX_LAYOUTS * 2 + 5):
            # The hint that a layout is found by are six bytes that a stranger chooses freely.
            common[7] = number.to_bytes(2, "big")
            order = [1, 7, 2, *(kind for kind in common if kind not in {1, 2, 7})]
            datagram = hep3(*(chunk(kind, common[kind]) for kind in order), chunk(15, INVITE))
            for _ in range(2):
                assert outcome(datagram, layouts) == outcome(datagram, {})
            assert len(layouts) == number % hep.MAX_LAYOUTS + 1

    def test_a_layout_that_takes_the_place_of_another_is_learned_anew(self) -> None:
        layouts: dict[bytes, Any] = {}
        kinds = dict(COMMON)
        orders = ([1, 2, 3, 4, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 8, 7, 9, 10, 11, 12])
        for order in orders * 2:
            datagram = hep3(*(chunk(kind, kinds[kind]) for kind in order), chunk(15, INVITE))
            assert outcome(datagram, layouts) == outcome(datagram, {})
            assert len(layouts) == 1


class TestNames:
    @pytest.mark.parametrize(
        ("protocol", "via", "name"),
        [
            (17, None, "udp"), (17, "UDP", "udp"), (17, "TLS", "udp"), (6, None, "tcp"),
            (6, "TCP", "tcp"), (6, "TLS", "tls"), (6, "ws", "ws"), (6, "WSS", "wss"),
            (22, None, "tls"), (22, "TLS", "tls"), (22, "WS", "ws"), (22, "wss", "wss"),
            (22, "UDP", "tls"), (50, None, "ws"), (50, "WS", "ws"), (50, "WSS", "wss"),
            (132, None, "sctp"), (132, "SCTP", "sctp"), (0, None, None), (0, "UDP", None),
            (99, "TLS", None),
        ],
    )  # fmt: skip
    def test_transport_is_told_by_protocol_number_and_top_via(
        self, protocol: int, via: str | None, name: str | None
    ) -> None:
        assert hep.transport_name(protocol, via) == name

    @pytest.mark.parametrize(
        ("packed", "text"),
        [
            (bytes((192, 0, 2, 255)), "192.0.2.255"),
            (bytes(15) + b"\1", "::1"),
            (bytes(10) + b"\xff\xff\xc0\0\2\1", "192.0.2.1"),
            (bytes.fromhex("20010db8000000000000000000000001"), "2001:db8::1"),
            (b"", None),
            (b"\1\2\3", None),
            (bytes(10) + b"\xff\xff\1", None),
        ],
    )
    def test_an_address_is_written_as_people_write_it(
        self, packed: bytes, text: str | None
    ) -> None:
        assert address_text(packed) == text

    @pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::1"])
    def test_an_address_that_was_written_is_packed_again(self, text: str) -> None:
        assert address_text(hep.packed_address(text)) == text

    def test_no_address_packs_as_the_unspecified_one(self) -> None:
        assert hep.packed_address(None) == bytes(4)

    def test_the_memory_of_addresses_is_bounded(self) -> None:
        for number in range(10_000):
            address_text(number.to_bytes(4, "big"))
        assert address_text.cache_info().currsize <= 8192


FRAMES = st.lists(
    st.binary(max_size=40).map(lambda payload: hep3(chunk(15, payload))), min_size=1, max_size=8
)


class TestHepStream:
    @given(FRAMES, st.lists(st.integers(0, 400), max_size=12))
    def test_any_split_gives_the_same_frames(self, frames: list[bytes], cuts: list[int]) -> None:
        stream = HepStream()
        whole = b"".join(frames)
        edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
        got = [
            frame
            for start, end in itertools.pairwise(edges)
            for frame in stream.feed(whole[start:end])
        ]
        assert got == frames
        assert (stream.pending, stream.skipped) == (0, 0)

    def test_a_frame_waits_for_its_last_byte(self) -> None:
        stream = HepStream()
        whole = packet()
        for at in range(len(whole) - 1):
            assert stream.feed(whole[at : at + 1]) == []
            assert stream.pending == at + 1
        assert stream.feed(whole[-1:]) == [whole]

    @pytest.mark.parametrize(
        "garbage", [b"x", b"HEP", b"GET / HTTP/1.1\r\n\r\n", b"HEP3\0\5", b"\0" * 70_000]
    )
    def test_it_goes_on_at_the_next_mark_and_counts_what_it_skipped(self, garbage: bytes) -> None:
        stream = HepStream()
        assert stream.feed(packet() + garbage + packet() * 2) == [packet()] * 3
        assert stream.skipped == len(garbage)

    def test_a_mark_that_is_split_is_found_after_garbage(self) -> None:
        stream = HepStream()
        assert stream.feed(b"garbage HE") == []
        assert stream.pending == 3
        assert stream.feed(b"P3" + packet()[4:]) == [packet()]
        assert stream.skipped == 8

    def test_endless_garbage_raises_stream_and_holds_nothing(self) -> None:
        stream = HepStream()
        for _ in range(65):
            assert stream.feed(b"\xff" * 1000) == []
        with pytest.raises(HepError, match="stream"):
            stream.feed(b"\xff" * 1000)
        assert stream.pending < 4
        assert stream.skipped > hep.MAX_GARBAGE

    def test_frames_before_endless_garbage_are_given_first(self) -> None:
        stream = HepStream()
        assert stream.feed(packet() + b"\xff" * 70_000) == [packet()]
        with pytest.raises(HepError, match="stream"):
            stream.feed(b"\xff")

    def test_what_is_held_never_exceeds_a_frame(self) -> None:
        stream = HepStream()
        stream.feed(b"HEP3\xff\xff" + bytes(65_528))
        assert stream.pending == 65_534
        assert len(stream.feed(b"\0" + packet())) == 2


class TestHostileBytes:
    @given(st.binary(max_size=300), st.none() | st.integers(0, 1 << 33))
    @example(b"HEP3\0\6", None)
    def test_arbitrary_bytes_give_a_packet_or_hep_error(self, data: bytes, now: int | None) -> None:
        for datagram in (data, b"HEP3" + data, b"\2\x10\2" + data, b"\1\x28\x0a" + data):
            assert is_value_or_error(datagram, now)

    @given(st.sampled_from(sorted(VECTORS)), st.data())
    def test_truncations_and_flipped_bits_give_a_packet_or_hep_error(
        self, name: str, data: st.DataObject
    ) -> None:
        datagram = bytearray.fromhex(VECTORS[name]["hex"])
        for _ in range(data.draw(st.integers(1, 4))):
            datagram[data.draw(st.integers(0, len(datagram) - 1))] ^= data.draw(st.integers(1, 255))
        assert is_value_or_error(bytes(datagram[: data.draw(st.integers(0, len(datagram)))]))

    @given(st.lists(st.binary(max_size=200), max_size=20))
    def test_an_arbitrary_stream_gives_frames_or_hep_error(self, reads: list[bytes]) -> None:
        stream = HepStream()
        for read in reads:
            for frame in stream.feed(read):
                assert frame[:4] in {b"HEP3", b"EEP3", b"EEP1"}
