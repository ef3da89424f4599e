import io
import itertools
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import pcap
from sipsidecar.wire.pcap import TCP, UDP, Captured, PcapError, Reader, file_header, udp_record

CORPUS = Path(__file__).parent.parent / "corpus"
A, B = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
A6, B6 = b"\x20\1\x0d\xb8" + bytes(11) + b"\1", b"\x20\1\x0d\xb8" + bytes(11) + b"\2"
AT = 1_700_000_000_123_456
SYN, FIN = 2, 1


def udp(payload: bytes = b"hello", *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    return struct.pack(">HHHH", 5060, 5080, size, 0) + payload


def tcp(sequence: int, data: bytes = b"", flags: int = 16, options: bytes = b"") -> bytes:
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack(">HHIIBB", 5060, 5080, sequence % (1 << 32), 0, offset, flags)
    return head + bytes(6) + options + data


def ip4(
    body: bytes,
    protocol: int = UDP,
    *,
    fragment: int = 0,
    identity: int = 1,
    length: int | None = None,
    options: bytes = b"",
) -> bytes:
    size = 20 + len(options) + len(body) if length is None else length
    first = 0x45 + len(options) // 4
    head = struct.pack(">BBHHHBBH", first, 0, size, identity, fragment, 64, protocol, 0)
    return head + A + B + options + body


def ip6(body: bytes, protocol: int = UDP, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return struct.pack(">IHBB", 6 << 28, size, protocol, 64) + A6 + B6 + body


def ethernet(packet: bytes, kind: int = 0x0800, tags: bytes = b"") -> bytes:
    return bytes(12) + tags + kind.to_bytes(2, "big") + packet


def capture(
    *frames: bytes | tuple[int, bytes], link: int = 101, order: str = "<", nano: bool = False
) -> bytes:
    """A pcap file; a frame may come with its time."""
    out = struct.pack(
        order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 65_535, link
    )
    for frame in frames:
        at, data = (AT, frame) if isinstance(frame, bytes) else frame
        fraction = at % 1_000_000 * (1000 if nano else 1)
        out += struct.pack(order + "IIII", at // 1_000_000, fraction, len(data), len(data)) + data
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = 101, options: bytes = b"", order: str = "<", snap: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, snap) + options, order)


def enhanced(ticks: int, frame: bytes, number: int = 0, order: str = "<", cut: int = 0) -> bytes:
    head = (number, ticks >> 32, ticks & 0xFFFF_FFFF, len(frame), len(frame) + cut)
    return block(6, struct.pack(order + "IIIII", *head) + frame, order)


def read(data: bytes) -> tuple[list[Captured], Reader]:
    reader = Reader(io.BytesIO(data))
    return list(reader), reader


def payloads(data: bytes) -> list[bytes]:
    return [each.payload for each in read(data)[0]]


def skipped(data: bytes) -> dict[str, int]:
    counts = dict(read(data)[1].skipped)
    assert set(counts) <= pcap.SKIPS
    return counts


HELLO = Captured(AT, UDP, A, B, 5060, 5080, b"hello")
HELLO6 = Captured(AT, UDP, A6, B6, 5060, 5080, b"hello")


def test_every_why_and_skip_that_the_source_uses_is_announced() -> None:
    source = Path(pcap.__file__).read_text()
    assert set(re.findall(r'PcapError\("([a-z-]+)"', source)) == pcap.WHYS
    used = re.findall(r'(?:_nothing\(|skipped\[)"([a-z0-9-]+)"', source)
    assert set(used) == pcap.SKIPS


class TestFiles:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("nano", [False, True])
    def test_both_byte_orders_and_both_precisions_are_read(self, order: str, nano: bool) -> None:
        assert read(capture(ip4(udp()), order=order, nano=nano))[0] == [HELLO]

    @pytest.mark.parametrize(
        "data",
        [b"", b"\xd4", capture()[:23], section()[:11], section()[:-1], b"\x0a\x0d\x0d\x0a" * 9,
         b"PK\3\4" + bytes(60), struct.pack("<III", 0x0A0D0D0A, 8, 0x1A2B3C4D) + bytes(20)],
    )  # fmt: skip
    def test_a_file_that_is_no_capture_is_refused_at_once(self, data: bytes) -> None:
        with pytest.raises(PcapError) as caught:
            Reader(io.BytesIO(data))
        assert caught.value.why == "not-pcap"

    def test_a_file_without_packets_is_a_capture(self) -> None:
        for data in (capture(), section(), section() + interface()):
            got, reader = read(data)
            assert (got, reader.packets, reader.truncated) == ([], 0, False)

    def test_a_cut_file_gives_what_is_whole_and_says_so(self) -> None:
        for data in (
            capture(ip4(udp()), ip4(udp())),
            section() + interface() + enhanced(AT, ip4(udp())) + enhanced(AT, ip4(udp())),
        ):
            for cut in (1, 5, 20, 33):
                got, reader = read(data[:-cut])
                assert got == [HELLO]
                assert reader.truncated
            assert not read(data)[1].truncated

    def test_a_record_that_claims_too_much_ends_the_reading(self) -> None:
        good = capture(ip4(udp()))
        huge = struct.pack("<IIII", 1, 0, pcap.MAX_RECORD + 1, 0) + bytes(64)
        got, reader = read(good + huge)
        assert (got, reader.truncated) == ([HELLO], True)

    def test_a_pipe_that_gives_little_at_a_time_reads_the_same(self) -> None:
        class Pipe(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(min(size or 0, 3))

        assert list(Reader(Pipe(capture(ip4(udp()))))) == [HELLO]

    def test_packets_cut_by_the_snap_length_are_given_as_far_as_they_go(self) -> None:
        data = bytearray(capture(ip4(udp())))
        struct.pack_into("<I", data, 24 + 12, 60)
        whole, reader = read(bytes(data))
        assert (whole, reader.cut) == ([HELLO], 1)
        frame = ip4(udp(), length=40)
        got, reader = read(section() + interface() + enhanced(AT, frame, cut=7))
        assert (got, reader.cut, reader.packets) == ([HELLO], 1, 1)


class TestPcapng:
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_both_byte_orders_are_read_also_in_one_file(self, order: str) -> None:
        other = "<>".replace(order, "")
        data = b"".join(
            section(each) + interface(order=each) + enhanced(AT, ip4(udp()), order=each)
            for each in (order, other)
        )
        assert read(data)[0] == [HELLO, HELLO]

    @pytest.mark.parametrize(
        ("resolution", "ticks"),
        [
            (6, AT), (9, AT * 1000 + 999), (3, AT // 1000), (0, AT // 1_000_000),
            (0x80 | 20, (AT << 20) // 1_000_000 + 1), (0x80, AT // 1_000_000),
        ],
    )  # fmt: skip
    def test_every_resolution_of_time_becomes_microseconds(
        self, resolution: int, ticks: int
    ) -> None:
        option = struct.pack("<HHBxxx", 9, 1, resolution)
        got = read(section() + interface(options=option) + enhanced(ticks, ip4(udp())))[0]
        precision = {3: 1000, 0: 1_000_000, 0x80: 1_000_000}.get(resolution, 1)
        assert got[0].captured_at == AT // precision * precision

    def test_an_offset_of_time_is_added(self) -> None:
        options = struct.pack("<HHxxxx", 2, 4) + struct.pack("<HHq", 14, 8, -3600)
        data = section() + interface(options=options) + enhanced(AT + 3_600_000_000, ip4(udp()))
        assert read(data)[0] == [HELLO]

    def test_a_time_that_cannot_be_is_unknown(self) -> None:
        option = struct.pack("<HHBxxx", 9, 1, 0)
        late = section() + interface(options=option) + enhanced((1 << 64) - 1, ip4(udp()))
        option = struct.pack("<HHq", 14, 8, -(1 << 63))
        early = section() + interface(options=option) + enhanced(AT, ip4(udp()))
        for data in (late, early):
            assert read(data)[0][0].captured_at is None

    def test_a_simple_packet_block_has_no_time(self) -> None:
        frame = ip4(udp())
        data = section() + interface() + block(3, struct.pack("<I", len(frame)) + frame)
        assert [(each.captured_at, each.payload) for each in read(data)[0]] == [(None, b"hello")]

    def test_a_simple_packet_block_may_be_cut_by_the_snap_length(self) -> None:
        frame = ip4(udp(b"hello you"))
        body = struct.pack("<I", len(frame)) + frame[:33]
        got, reader = read(section() + interface(snap=33) + block(3, body))
        assert [each.payload for each in got] == [b"hello"]
        assert reader.cut == 1

    def test_blocks_of_other_kinds_are_passed_over(self) -> None:
        other = block(5, bytes(1000)) + block(0x0BAD, bytes(200_000))
        data = section() + other + interface() + other + enhanced(AT, ip4(udp())) + other
        assert read(data)[0] == [HELLO]

    def test_a_packet_of_an_unknown_interface_is_counted_as_block(self) -> None:
        frame = ip4(udp())
        data = (
            section()
            + block(3, struct.pack("<I", len(frame)) + frame)
            + enhanced(AT, frame)
            + interface()
            + enhanced(AT, frame, number=1)
            + block(6, bytes(16))
            + block(6, struct.pack("<IIIII", 0, 0, 0, len(frame) + 4, 0) + frame)
        )
        assert skipped(data) == {"block": 5}
        assert read(data + enhanced(AT, frame))[0] == [HELLO]

    def test_each_interface_has_its_own_link_type(self) -> None:
        data = section() + interface(1) + interface(101)
        data += enhanced(AT, ip4(udp()), number=1) + enhanced(AT, ethernet(ip4(udp())), number=0)
        assert read(data)[0] == [HELLO, HELLO]

    def test_interfaces_are_capped(self) -> None:
        data = section() + interface() * (pcap.MAX_INTERFACES + 5)
        data += enhanced(AT, ip4(udp()), number=pcap.MAX_INTERFACES - 1)
        data += enhanced(AT, ip4(udp()), number=pcap.MAX_INTERFACES)
        assert read(data)[0] == [HELLO]
        assert skipped(data) == {"block": 1}

    @pytest.mark.parametrize(
        "tail",
        [
            struct.pack("<II", 5, 11),  # a length that is less than a block's own frame
            struct.pack("<II", 5, 0xFFFF_FFFC),
            struct.pack("<II", 6, 12) + bytes(4),
            struct.pack("<II", 6, pcap.MAX_RECORD + 1),
            struct.pack("<II", 6, 100) + bytes(20),
            struct.pack("<III", 0x0A0D0D0A, 28, 0),
            struct.pack("<I", 0x0A0D0D0A),
            b"\0\0\0\0\0",
        ],
    )
    def test_a_file_that_makes_no_sense_any_more_ends_there(self, tail: bytes) -> None:
        got, reader = read(section() + interface() + enhanced(AT, ip4(udp())) + tail)
        assert (got, reader.truncated) == ([HELLO], True)


class TestLinks:
    @pytest.mark.parametrize(
        ("link", "frame"),
        [
            (1, ethernet(ip4(udp()))),
            (1, ethernet(ip4(udp()), tags=b"\x81\0\0\x05")),
            (1, ethernet(ip4(udp()), tags=b"\x88\xa8\0\x05\x81\0\0\x06")),
            (1, ethernet(ip4(udp()) + b"padding")),
            (12, ip4(udp())),
            (14, ip4(udp())),
            (101, ip4(udp())),
            (228, ip4(udp())),
            (0xF000_0000 | 101, ip4(udp())),  # a frame check sequence length above
            (113, bytes(14) + b"\x08\0" + ip4(udp())),
            (113, bytes(14) + b"\x81\0\0\5\x08\0" + ip4(udp())),
            (276, b"\x08\0" + bytes(18) + ip4(udp())),
            (0, b"\2\0\0\0" + ip4(udp())),
            (108, b"\0\0\0\2" + ip4(udp())),
        ],
    )
    def test_ipv4_is_found_in_every_link_type(self, link: int, frame: bytes) -> None:
        assert read(capture(frame, link=link))[0] == [HELLO]

    @pytest.mark.parametrize(
        ("link", "frame"),
        [
            (1, ethernet(ip6(udp()), 0x86DD)),
            (229, ip6(udp())),
            (113, bytes(14) + b"\x86\xdd" + ip6(udp())),
            (0, b"\x1e\0\0\0" + ip6(udp())),
        ],
    )
    def test_ipv6_is_found_too(self, link: int, frame: bytes) -> None:
        assert read(capture(frame, link=link))[0] == [HELLO6]

    @pytest.mark.parametrize(
        ("link", "frame", "word"),
        [
            (147, ip4(udp()), "link"),
            (1, ethernet(bytes(28), 0x0806), "not-ip"),
            (1, b"", "not-ip"),
            (1, bytes(12) + b"\x81\0\0\5", "not-ip"),
            (101, b"", "not-ip"),
            (101, b"\x50" + bytes(40), "not-ip"),
            (0, b"\2\0\0\0", "not-ip"),
            (101, ip4(b"ping", 1), "protocol"),
            (101, ip6(b"ping", 58), "protocol"),
            (101, ip6(b"", 59), "protocol"),
            (101, ip4(udp())[:19], "malformed"),
            (101, b"\x44" + ip4(udp())[1:], "malformed"),
            (101, ip4(udp(), length=19), "malformed"),
            (101, ip4(b"1234567"), "malformed"),
            (101, ip4(udp(length=7)), "malformed"),
            (101, ip6(udp())[:39], "malformed"),
            (101, ip6(b"\x11\0", 0), "malformed"),
            (101, ip4(tcp(1)[:19], TCP), "malformed"),
            (101, ip4(tcp(1)[:12] + b"\x40" + bytes(7), TCP), "malformed"),
            (101, ip4(tcp(1)[:12] + b"\x60" + bytes(7), TCP), "malformed"),
        ],
    )
    def test_what_carries_nothing_for_us_is_counted_by_its_name(
        self, link: int, frame: bytes, word: str
    ) -> None:
        data = capture(frame, link=link)
        assert read(data)[0] == []
        assert skipped(data) == {word: 1}


class TestIp:
    def test_ipv4_options_are_passed_over(self) -> None:
        assert read(capture(ip4(udp(), options=bytes(8))))[0] == [HELLO]

    def test_a_length_of_zero_or_of_all_ones_means_the_rest_of_the_frame(self) -> None:
        assert read(capture(ip4(udp(), length=0), ip4(udp(), length=65_535)))[0] == [HELLO, HELLO]
        assert read(capture(ip6(udp(), length=0)))[0] == [HELLO6]

    def test_a_udp_datagram_longer_than_the_ip_length_can_say_is_read_by_its_own(self) -> None:
        long = b"x" * 65_500
        datagram = ip4(udp(long), options=bytes(40), length=65_535)
        assert payloads(capture(datagram)) == [long]

    def test_the_udp_length_ends_the_payload_and_zero_means_all(self) -> None:
        assert payloads(capture(ip4(udp(b"hello+pad", length=13)))) == [b"hello"]
        assert payloads(capture(ip4(udp(length=0)))) == [b"hello"]
        assert payloads(capture(ip4(udp(b"")))) == [b""]

    @pytest.mark.parametrize(
        "chain",
        [
            [(0, b"\0" * 6)],
            [(43, b"\0" * 6), (60, b"\0" * 6)],
            [(0, bytes(14)), (135, b"\0" * 6), (139, b"\0" * 6), (140, b"\0" * 6)],
            [(51, bytes(10))],
            [(44, bytes(6))],  # an atomic fragment
        ],
    )
    def test_extension_headers_of_ipv6_are_skipped(self, chain: list[tuple[int, bytes]]) -> None:
        body, following = udp(), UDP
        for kind, data in reversed(chain):
            size = (len(data) + 2) // 4 - 2 if kind == 51 else (len(data) + 2) // 8 - 1
            body = bytes((following, size)) + data + body
            following = kind
        assert read(capture(ip6(body, following)))[0] == [HELLO6]


def fragments4(body: bytes, size: int, identity: int = 1) -> list[bytes]:
    return [
        ip4(
            body[start : start + size],
            identity=identity,
            fragment=start // 8 | (0x2000 if start + size < len(body) else 0),
        )
        for start in range(0, len(body), size)
    ]


def fragments6(body: bytes, size: int) -> list[bytes]:
    return [
        ip6(
            struct.pack(">BBHI", UDP, 0, start | (start + size < len(body)), 7)
            + body[start : start + size],
            44,
        )
        for start in range(0, len(body), size)
    ]


class TestFragments:
    @given(st.integers(2, 40), st.randoms(use_true_random=False), st.booleans())
    def test_fragments_in_any_order_and_number_make_the_datagram(
        self, eights: int, random: Any, six: bool
    ) -> None:
        payload = bytes(range(256)) * 4
        pieces = (fragments6 if six else fragments4)(udp(payload), eights * 8)
        pieces += pieces[: len(pieces) // 2]
        random.shuffle(pieces)
        # What comes twice after the datagram is whole waits for the rest of another.
        assert payloads(capture(*pieces))[0] == payload

    def test_the_time_is_that_of_the_fragment_which_completes_it(self) -> None:
        first, second = fragments4(udp(b"x" * 20), 16)
        got = read(capture((AT + 5, second), (AT + 9, first)))[0]
        assert [each.captured_at for each in got] == [AT + 9]

    def test_datagrams_of_different_identity_do_not_mix(self) -> None:
        one, two = fragments4(udp(b"1" * 20), 16, 1), fragments4(udp(b"2" * 20), 16, 2)
        mixed = [one[0], two[0], two[1], one[1]]
        assert payloads(capture(*mixed)) == [b"2" * 20, b"1" * 20]

    def test_a_datagram_that_never_becomes_whole_is_counted(self) -> None:
        first, second, third = fragments4(udp(b"x" * 40), 16)
        for some in ([first], [second], [first, third], [third], [first, second]):
            assert skipped(capture(*some)) == {"fragment": 1}

    def test_an_identity_that_comes_round_again_begins_a_new_datagram(self) -> None:
        old, new = fragments4(udp(b"1" * 20), 16), fragments4(udp(b"2" * 20), 16)
        data = capture(old[0], *new)
        assert payloads(data) == [b"2" * 20]
        assert skipped(data) == {"fragment": 1}

    @pytest.mark.parametrize(
        "pieces",
        [
            [(0, True, 24), (16, False, 8)],  # overlap
            [(0, True, 8), (24, True, 8), (8, False, 8)],  # beyond the end
            [(0, True, 8), (65_528, False, 16)],  # longer than a datagram can be
        ],
    )
    def test_fragments_that_attack_are_dropped(self, pieces: list[tuple[int, bool, int]]) -> None:
        frames = [
            ip4(b"x" * size, fragment=start // 8 | (0x2000 if more else 0))
            for start, more, size in pieces
        ]
        data = capture(*frames)
        assert payloads(data) == []
        assert skipped(data) == {"fragment": 1}

    def test_fragments_of_one_datagram_are_capped(self) -> None:
        pieces = fragments4(udp(b"x" * 8 * pcap.MAX_FRAGMENTS), 8)
        data = capture(*pieces)
        assert payloads(data) == []
        assert set(skipped(data)) == {"fragment"}

    def test_datagrams_that_wait_are_capped_and_the_oldest_gives_way(self) -> None:
        heads = [
            fragments4(udp(b"x" * 20), 16, identity)[0]
            for identity in range(pcap.MAX_FRAGMENTED + 1)
        ]
        rests = [fragments4(udp(b"x" * 20), 16, identity)[1] for identity in (1, 0)]
        data = capture(*heads, *rests)
        assert payloads(data) == [b"x" * 20]
        assert skipped(data) == {"fragment": 1 + pcap.MAX_FRAGMENTED}


def segments(*pieces: bytes | tuple[int, bytes]) -> bytes:
    """A capture of TCP segments, each a packet body or (time in microseconds, body)."""
    frames: list[bytes | tuple[int, bytes]] = [
        ip4(piece, TCP) if isinstance(piece, bytes) else (AT + piece[0], ip4(piece[1], TCP))
        for piece in pieces
    ]
    return capture(*frames)


def text(data: bytes) -> bytes:
    return b"".join(payloads(data))


class TestTcp:
    def test_segments_in_order_are_given_as_they_come(self) -> None:
        data = segments(
            tcp(99, flags=SYN, options=bytes(12)),
            (7, tcp(100, b"one ", options=bytes(12))),
            tcp(104, b"two"),
            tcp(107, flags=FIN),
        )
        got = read(data)[0]
        assert got[0] == Captured(AT + 7, TCP, A, B, 5060, 5080, b"one ")
        assert [each.payload for each in got] == [b"one ", b"two"]
        assert skipped(data) == {}

    def test_the_two_directions_do_not_mix(self) -> None:
        back = tcp(500, b"back")
        back = back[2:4] + back[:2] + back[4:]
        frame = ip4(back, TCP)
        frame = frame[:12] + B + A + frame[20:]
        got = read(capture(ip4(tcp(1, b"there"), TCP), frame))[0]
        assert [(each.source, each.source_port, each.payload) for each in got] == [
            (A, 5060, b"there"),
            (B, 5080, b"back"),
        ]

    @given(
        st.binary(min_size=1, max_size=200),
        st.lists(st.integers(0, 200), max_size=8),
        st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=6),
        st.randoms(use_true_random=False),
        st.sampled_from([1, 1000, (1 << 32) - 1, (1 << 32) - 100]),
    )
    def test_out_of_order_repeated_and_overlapping_segments_make_the_stream(
        self,
        stream: bytes,
        cuts: list[int],
        repeats: list[tuple[int, int]],
        random: Any,
        start: int,
    ) -> None:
        edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        pieces = [(at, stream[at:end]) for at, end in itertools.pairwise(edges)]
        pieces += [(at, stream[at : at + size]) for at, size in repeats]
        random.shuffle(pieces)
        syn = tcp(start - 1, flags=SYN)
        data = segments(syn, *(tcp(start + at, piece) for at, piece in pieces), syn)
        assert text(data) == stream
        assert set(skipped(data)) <= {"duplicate"}

    def test_bytes_that_had_to_wait_carry_the_time_when_they_could_be_read(self) -> None:
        data = segments((0, tcp(1, b"a")), (10, tcp(3, b"c")), (20, tcp(2, b"b")))
        assert [(each.captured_at, each.payload) for each in read(data)[0]] == [
            (AT, b"a"), (AT + 20, b"b"), (AT + 20, b"c"),
        ]  # fmt: skip

    def test_a_capture_may_begin_inside_the_connection(self) -> None:
        assert text(segments(tcp(5000, b"mid"), tcp(5003, b"dle"))) == b"middle"

    def test_data_in_the_syn_counts(self) -> None:
        assert text(segments(tcp(9, b"fast ", flags=SYN), tcp(15, b"open"))) == b"fast open"

    def test_keep_alive_probes_and_bare_acks_are_nothing(self) -> None:
        data = segments(tcp(1, b"ab"), tcp(3), tcp(2, b"\0"))
        assert text(data) == b"ab"
        assert skipped(data) == {"duplicate": 1}
        assert skipped(segments(tcp(3))) == {}

    def test_a_gap_is_given_up_when_it_lasts_by_the_captures_time(self) -> None:
        late = pcap.GAP_PATIENCE_US
        data = segments(
            (0, tcp(1, b"a")), (1, tcp(3, b"c")), (late + 1, tcp(4, b"d")), (late + 2, tcp(5, b"e"))
        )
        got = read(data)[0]
        assert [each.payload for each in got] == [b"a", b"c", b"d", b"e"]
        assert [each.captured_at for each in got[1:]] == [AT + late + 2] * 3
        assert skipped(data) == {"gap": 1}

    def test_a_gap_is_given_up_when_too_many_segments_wait(self) -> None:
        many = pcap.MAX_SEGMENTS
        pieces = [tcp(1, b"a"), *(tcp(10 + 2 * at, b"x") for at in range(many + 1)), tcp(2, b"b")]
        data = segments(*pieces)
        assert skipped(data) == {"gap": many + 1, "duplicate": 1}
        assert text(data) == b"a" + b"x" * (many + 1)

    def test_bytes_behind_all_gaps_are_capped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pcap, "MAX_AHEAD", 1000)
        data = segments(tcp(1, b"a"), tcp(10, b"x" * 600), tcp(700, b"y" * 401), tcp(2, b"b"))
        assert text(data) == b"a" + b"x" * 600 + b"y" * 401
        assert skipped(data) == {"gap": 2, "duplicate": 1}

    def test_what_still_waits_at_the_end_of_the_file_is_given_out(self) -> None:
        data = segments((0, tcp(1, b"a")), (5, tcp(3, b"c")), (6, tcp(9, b"i")))
        assert [(each.captured_at, each.payload) for each in read(data)[0]] == [
            (AT, b"a"), (AT + 5, b"c"), (AT + 6, b"i"),
        ]  # fmt: skip
        assert skipped(data) == {"gap": 2}

    def test_without_times_a_gap_is_waited_for_to_the_end(self) -> None:
        frames = [ip4(tcp(at, b"x"), TCP) for at in (1, 3, 5, 4, 2)]
        data = section() + interface()
        data += b"".join(block(3, struct.pack("<I", len(each)) + each) for each in frames)
        assert text(data) == b"xxxxx"
        assert skipped(data) == {}

    def test_a_new_connection_on_the_same_ports_begins_anew(self) -> None:
        data = segments(
            tcp(0, flags=SYN), tcp(1, b"old"), tcp(9, b"!"), tcp(70, flags=SYN), tcp(71, b"new")
        )
        assert payloads(data) == [b"old", b"!", b"new"]
        assert skipped(data) == {"gap": 1}

    def test_it_does_so_without_a_syn_when_the_numbers_are_far_off(self) -> None:
        for jump in (pcap.MAX_JUMP + 100, -pcap.MAX_JUMP - 100):
            data = segments(tcp(5, b"old"), tcp(5 + jump, b"new"))
            assert payloads(data) == [b"old", b"new"]
            assert skipped(data) == {}

    def test_streams_are_capped_and_the_most_silent_gives_way(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pcap, "MAX_STREAMS", 2)

        def of(port: int, body: bytes) -> bytes:
            return port.to_bytes(2, "big") + body[2:]

        data = segments(
            of(1, tcp(1, b"a")), of(1, tcp(3, b"c")), of(2, tcp(1, b"x")),
            of(1, tcp(5, b"e")), of(2, tcp(2, b"y")), of(3, tcp(1, b"z")),
        )  # fmt: skip
        got = [(each.source_port, each.payload) for each in read(data)[0]]
        assert got == [(1, b"a"), (2, b"x"), (2, b"y"), (1, b"c"), (1, b"e"), (3, b"z")]
        assert skipped(data) == {"streams": 1, "gap": 2}


class TestWriter:
    @pytest.mark.parametrize(("source", "destination"), [(A, B), (A6, B6)])
    @pytest.mark.parametrize("payload", [b"", b"x", b"hello", bytes(range(256)) * 9])
    def test_what_is_written_reads_back(
        self, source: bytes, destination: bytes, payload: bytes
    ) -> None:
        data = file_header() + udp_record(AT, source, destination, 5060, 65_535, payload)
        assert read(data)[0] == [Captured(AT, UDP, source, destination, 5060, 65_535, payload)]

    @given(st.binary(max_size=300), st.booleans(), st.integers(0, 65_535))
    def test_checksums_add_up(self, payload: bytes, six: bool, port: int) -> None:
        source, destination = (A6, B6) if six else (A, B)
        packet = udp_record(AT, source, destination, port, 1, payload)[16:]
        start = 40 if six else 20

        def total(data: bytes) -> int:
            data += b"\0" * (len(data) % 2)
            value: int = sum(struct.unpack(f">{len(data) // 2}H", data))
            while value >> 16:
                value = (value & 0xFFFF) + (value >> 16)
            return value

        datagram = packet[start:]
        pseudo = source + destination + struct.pack(">IHH", len(datagram), 0, UDP)
        assert total(pseudo + datagram) == 0xFFFF
        assert datagram[6:8] != b"\0\0"
        if not six:
            assert total(packet[:20]) == 0xFFFF

    @pytest.mark.parametrize("size", [pcap.MAX_PAYLOAD, pcap.MAX_PAYLOAD + 1, 200_000])
    def test_a_payload_too_long_for_a_datagram_is_cut_and_its_length_recorded(
        self, size: int
    ) -> None:
        data = file_header() + udp_record(AT, A, B, 1, 2, b"x" * size)
        got, reader = read(data)
        assert len(got[0].payload) == pcap.MAX_PAYLOAD
        assert struct.unpack_from("<I", data, 24 + 12) == (28 + size,)
        assert reader.cut == (size > pcap.MAX_PAYLOAD)

    def test_absent_and_mixed_addresses_are_made_to_fit(self) -> None:
        def addresses(source: bytes, destination: bytes) -> tuple[bytes, bytes]:
            data = file_header() + udp_record(AT, source, destination, 1, 2, b"")
            return read(data)[0][0].source, read(data)[0][0].destination

        assert addresses(b"", b"") == (bytes(4), bytes(4))
        assert addresses(b"", B6) == (bytes(16), B6)
        assert addresses(A, B6) == (bytes(10) + b"\xff\xff" + A, B6)

    def test_an_address_that_is_none_is_refused(self) -> None:
        with pytest.raises(PcapError, match="address"):
            udp_record(AT, b"\1\2\3", B, 1, 2, b"")

    @pytest.mark.parametrize(("at", "read_back"), [(-5, 0), (1 << 62, ((1 << 32) * 10**6) - 1)])
    def test_a_time_that_the_format_cannot_say_becomes_the_nearest(
        self, at: int, read_back: int
    ) -> None:
        data = file_header() + udp_record(at, A, B, 1, 2, b"")
        assert read(data)[0][0].captured_at == read_back


class TestRealFiles:
    def test_every_capture_of_the_corpus_is_read_to_its_end(self) -> None:
        for path in sorted(CORPUS.glob("*/*.pcap")):
            got, reader = read(path.read_bytes())
            assert got
            assert not reader.truncated
            assert reader.cut == 0
            assert not reader.skipped
            if path.name != "k_tcp_hep.pcap":
                assert len(got) == reader.packets

    def test_the_tcp_capture_has_one_direction_with_bytes(self) -> None:
        got, _ = read((CORPUS / "kamailio/k_tcp_hep.pcap").read_bytes())
        assert {(each.protocol, each.destination_port) for each in got} == {(TCP, 9060)}

    def test_kamailios_answers_are_where_its_ground_truth_says(self) -> None:
        text = (CORPUS / "kamailio/n_rawsip.json").read_text()
        call_ids = set(re.findall(r'"call_id": "([^"]+)"', text))
        got, _ = read((CORPUS / "kamailio/n_rawsip.pcap").read_bytes())
        found = {re.findall(rb"\nCall-ID: (\S+)", each.payload)[0].decode() for each in got}
        assert json.loads(text)
        assert found == call_ids


tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
editcap = pytest.mark.skipif(not shutil.which("editcap"), reason="editcap is not installed")


def dissect(path: Path, *fields: str) -> list[list[str]]:
    command = ["tshark", "-r", str(path), "-o", "udp.check_checksum:TRUE", "-T", "fields"]
    command += ["-o", "ip.check_checksum:TRUE", "-d", "udp.port==5060,sip", "-E", "separator=|"]
    command += [part for field in fields for part in ("-e", field)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("|") for line in output.splitlines()]


@pytest.mark.live
class TestOtherPrograms:
    @tshark
    def test_wireshark_finds_right_checksums_and_the_sip_inside(self, tmp_path: Path) -> None:
        message = b"OPTIONS sip:x SIP/2.0\r\nCall-ID: 1@x\r\nContent-Length: 0\r\n\r\n"
        records = [
            udp_record(AT, A, B, 5060, 5060, message),
            udp_record(AT + 1, A6, B6, 5060, 5060, message),
            udp_record(AT + 2, A, B, 5060, 5060, message + b"x" * 70_000),
        ]
        path = tmp_path / "call.pcap"
        path.write_bytes(file_header() + b"".join(records))
        got = dissect(
            path, "frame.time_epoch", "sip.Method", "sip.Call-ID", "udp.checksum.status", "ip.src",
            "ipv6.src", "frame.len", "ip.checksum.status",
        )  # fmt: skip
        assert got[0][1:] == ["OPTIONS", "1@x", "1", "192.0.2.1", "", str(28 + len(message)), "1"]
        assert got[1][1:6] == ["OPTIONS", "1@x", "1", "", "2001:db8::1"]
        assert got[2][3] == "1"
        assert got[2][6] == str(28 + len(message) + 70_000)
        assert [row[0] for row in got] == [
            "1700000000.123456000", "1700000000.123457000", "1700000000.123458000",
        ]  # fmt: skip

    @editcap
    @pytest.mark.parametrize(
        "arguments", [["-F", "pcapng"], ["-F", "nsecpcap"], ["-F", "pcap", "-d"]]
    )
    @pytest.mark.parametrize("name", ["k_tcp_hep", "n_hepv2"])
    def test_what_other_programs_write_reads_the_same(
        self, tmp_path: Path, arguments: list[str], name: str
    ) -> None:
        source = CORPUS / f"kamailio/{name}.pcap"
        path = tmp_path / "converted"
        subprocess.run(["editcap", *arguments, source, path], check=True, capture_output=True)
        assert read(path.read_bytes())[0] == read(source.read_bytes())[0]


def damage(data: st.DataObject, seed: bytes) -> bytes:
    file = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    return bytes(file[: data.draw(st.integers(0, len(file)))])


def seeds() -> Iterable[bytes]:
    frames = [
        *fragments4(udp(b"x" * 40), 16),
        ip4(tcp(1, flags=SYN), TCP),
        ip4(tcp(2, b"one"), TCP),
        ip4(tcp(9, b"three"), TCP),
        ip4(tcp(5, b"two!"), TCP),
    ]
    yield capture(*frames)
    yield capture(*(ethernet(each, tags=b"\x81\0\0\x05") for each in frames), link=1, order=">")
    yield capture(*fragments6(udp(b"x" * 40), 16))
    yield section() + interface() + b"".join(enhanced(AT, each) for each in frames)


class TestHostileBytes:
    @given(st.binary(max_size=200))
    def test_arbitrary_bytes_give_packets_or_pcap_error(self, data: bytes) -> None:
        for file in (data, capture()[:20] + data, section() + data, section() + interface() + data):
            try:
                got, reader = read(file)
            except PcapError:
                continue
            assert set(reader.skipped) <= pcap.SKIPS
            assert len(got) <= len(file)

    @given(st.sampled_from(list(seeds())), st.data())
    def test_damaged_files_give_packets_or_pcap_error(
        self, seed: bytes, data: st.DataObject
    ) -> None:
        try:
            got, _ = read(damage(data, seed))
        except PcapError:
            got = []
        assert sum(len(each.payload) for each in got) <= len(seed)

    @given(st.binary(max_size=120))
    def test_arbitrary_frames_are_never_an_error(self, frame: bytes) -> None:
        for link in (0, 1, 101, 113, 276):
            for version in (frame, b"\x45" + frame, b"\x60" + frame, bytes(12) + b"\x08\0" + frame):
                read(capture(version, version, link=link))
