import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipsidecar.wire import hep, pcap, rtcp
from sipsidecar.wire.rtcp import (
    Report,
    ReportBlock,
    RtcpError,
    RtcpPacket,
    SenderInfo,
    VoipMetrics,
    from_freeswitch,
    implausible,
    packets,
    parse,
    parse_json,
)

CORPUS = Path(__file__).parent.parent / "corpus"
WORD = 0xFFFFFFFF

VECTORS = json.loads((CORPUS / "vectors/rtcp_hep.json").read_text())
BYTES = {each["name"]: bytes.fromhex(each["hex"]) for each in VECTORS["vectors"] if "hex" in each}
DIALECTS = {each["agent"]: each for each in VECTORS["hep5_json"]}

REPORTER, SOURCE = 0x11223344, 0xAABBCCDD
SENDER = SenderInfo(0xEEAA8F1085F0A17E, 160_000, 1000, 160_000)
BLOCK = ReportBlock(SOURCE, 26, -3, 66_036, 160, 0x12345678, 32_768)
METRICS = VoipMetrics(
    SOURCE,
    4.6875,
    4.6875,
    32.8125,
    3.90625,
    120,
    520,
    84,
    65,
    -18,
    -70,
    45,
    16,
    72,
    None,
    3.7,
    3.6,
    0xF0,
    60,
    120,
    300,
)


# ---------------------------------------------------------------------------------------- encoding


def packet(kind: int, count: int, body: bytes, padding: int = 0) -> bytes:
    body += bytes(max(0, padding - 1)) + (bytes([padding]) if padding else b"")
    first = 0x80 | (0x20 if padding else 0) | count
    return struct.pack(">BBH", first, kind, len(body) // 4) + body


def encoded(block: ReportBlock) -> bytes:
    losses = block.fraction_lost << 24 | (block.lost & 0xFFFFFF)
    rest = (block.highest_seq, block.jitter, block.lsr, block.dlsr)
    return struct.pack(">6I", block.source_ssrc, losses, *rest)


def sr(
    ssrc: int = REPORTER, sender: SenderInfo = SENDER, blocks: tuple[ReportBlock, ...] = (BLOCK,)
) -> bytes:
    said = (sender.ntp, sender.rtp_timestamp, sender.packets, sender.octets)
    body = struct.pack(">IQIII", ssrc, *said) + b"".join(map(encoded, blocks))
    return packet(200, len(blocks), body)


def rr(ssrc: int = REPORTER, blocks: tuple[ReportBlock, ...] = (BLOCK,)) -> bytes:
    return packet(201, len(blocks), struct.pack(">I", ssrc) + b"".join(map(encoded, blocks)))


def sdes(ssrc: int = REPORTER, name: bytes = b"someone@example") -> bytes:
    item = struct.pack(">IBB", ssrc, 1, len(name)) + name + b"\0"
    return packet(202, 1, item + bytes(-len(item) % 4))


def bye(*ssrcs: int) -> bytes:
    return packet(203, len(ssrcs), struct.pack(f">{len(ssrcs)}I", *ssrcs))


def xr(*blocks: bytes, ssrc: int = REPORTER) -> bytes:
    return packet(207, 0, struct.pack(">I", ssrc) + b"".join(blocks))


def xr_block(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body) // 4) + body


VOIP = BYTES["rr_xr_voip"][8:]
FEEDBACK = packet(205, 15, struct.pack(">IIII", REPORTER, SOURCE, 1, 2))


def one(payload: bytes) -> Report:
    (report,) = parse(payload)
    return report


def why(payload: bytes) -> str:
    with pytest.raises(RtcpError) as caught:
        parse(payload)
    return caught.value.why


def test_every_word_that_the_source_raises_or_returns_is_announced() -> None:
    source = Path(rtcp.__file__).read_text()
    assert set(re.findall(r'RtcpError\("([a-z-]+)"', source)) | set(rtcp.FLAWS) == rtcp.WHYS
    flaws = set(re.findall(r'flaw or \(?"([a-z]+)"|wrong or "([a-z]+)"', source))
    assert {word for pair in flaws for word in pair if word} <= set(rtcp.FLAWS)
    tail = source[source.index("def implausible") :]
    assert tuple(re.findall(r'return "([a-z]+)"', tail)) == rtcp.IMPLAUSIBLE


class TestVectors:
    @pytest.mark.parametrize(
        "vector",
        [each for each in VECTORS["vectors"] if each["kind"] == "rtcp"],
        ids=lambda v: v["name"],
    )
    def test_the_byte_vectors_are_read_as_they_say(self, vector: dict[str, Any]) -> None:
        compound = packets(bytes.fromhex(vector["hex"]))
        assert (compound.size, compound.flaw) == (len(vector["hex"]) // 2, None)
        assert len(compound.packets) == len(vector["expect"])
        for got, want in zip(compound.packets, vector["expect"], strict=True):
            assert (got.type, got.count, got.size) == (want["pt"], want["rc"], want["bytes"])
            assert got.ssrc == want.get("ssrc", got.ssrc)
            if "ntp_msw" in want:
                assert got.sender == SenderInfo(
                    want["ntp_msw"] << 32 | want["ntp_lsw"],
                    want["rtp_ts"],
                    want["packets"],
                    want["octets"],
                )
            for block, said in zip(got.blocks, want.get("blocks", ()), strict=True):
                assert block == ReportBlock(
                    said["ssrc"],
                    said["fraction_raw"],
                    said["lost"],
                    said["ext_seq"],
                    said["jitter"],
                    said["lsr"],
                    said["dlsr"],
                )

    def test_the_xr_vector_gives_its_metrics(self) -> None:
        (want,) = VECTORS["vectors"][6]["expect"][1]["xr"]
        report = one(BYTES["rr_xr_voip"])
        assert report.voip == (METRICS,)
        assert (report.voip[0].signal_dbm, report.voip[0].noise_dbm) == (
            want["signal"],
            want["noise"],
        )
        assert want["ext_r"] == 127
        assert report.blocks == ()
        assert report.reception

    def test_the_derived_figures_of_the_vector_come_out(self) -> None:
        (block,) = one(BYTES["rr_negative_lost"]).blocks
        derived = VECTORS["vectors"][4]["derived"]
        assert rtcp.fraction_percent(block.fraction_lost) == derived["fraction_pct"]
        for rate in (8000, 16_000, 48_000):
            want = pytest.approx(derived[f"jitter_ms_at_{rate}"])
            assert rtcp.jitter_ms(block.jitter, rate) == want

    @pytest.mark.parametrize(
        "vector",
        [each for each in VECTORS["vectors"] if each["kind"] == "rtt"],
        ids=lambda v: v["name"],
    )
    def test_the_round_trip_vectors_come_out(self, vector: dict[str, Any]) -> None:
        got = rtcp.round_trip(vector["A"], vector["lsr"], vector["dlsr"], limit=10)
        assert got == vector["expect_s"]

    @pytest.mark.parametrize("agent", DIALECTS)
    def test_each_dialect_becomes_its_canonical_report(self, agent: str) -> None:
        want = DIALECTS[agent]["canonical"]
        report = parse_json(DIALECTS[agent]["raw"].encode())
        (block,) = report.blocks
        assert report.ssrc == want["reporter_ssrc"]
        assert block.source_ssrc == want["source_ssrc"]
        assert rtcp.fraction_percent(block.fraction_lost) == want["fraction_pct"]
        assert (block.lost, block.highest_seq) == (want["lost"], want["ext_seq"])
        assert (block.jitter, block.lsr) == (want["jitter_units"], want["lsr"])
        assert block.dlsr / 65536 == pytest.approx(want["dlsr_s"], abs=1e-6)
        assert (report.form, report.flaw, implausible(report)) == ("json", None, None)


class TestCompound:
    def test_sender_report_and_description_become_one_report(self) -> None:
        assert parse(sr() + sdes()) == (Report(REPORTER, SENDER, (BLOCK,)),)

    def test_the_text_of_a_description_is_not_kept(self) -> None:
        compound = packets(rr() + sdes(name=b"alice@example.org"))
        assert compound.packets[1] == RtcpPacket(202, 1, 28, REPORTER)
        assert "alice" not in repr(compound)

    def test_an_empty_receiver_report_says_that_nothing_was_received(self) -> None:
        report = one(BYTES["rr_empty"])
        assert report == Report(REPORTER)
        assert report.reception

    def test_a_block_about_ssrc_0_without_a_sequence_says_the_same(self) -> None:
        nothing = ReportBlock(0, 255, 1, 0, 0)
        assert one(rr(blocks=(nothing,))) == Report(REPORTER)
        assert one(rr(blocks=(nothing, BLOCK, nothing))).blocks == (BLOCK,)
        heard = ReportBlock(0, 0, 0, 199, 0)
        assert one(rr(blocks=(heard,))).blocks == (heard,)

    def test_cumulative_loss_is_signed_24_bits(self) -> None:
        for lost in (0x7FFFFF, -0x800000, -1, 0):
            assert one(rr(blocks=(ReportBlock(1, 0, lost, WORD, 0),))).blocks[0].lost == lost

    def test_a_padded_last_packet_is_read_without_its_padding(self) -> None:
        body = struct.pack(">I", REPORTER) + encoded(BLOCK)
        compound = packets(sr() + packet(201, 1, body, padding=8))
        assert compound.flaw is None
        assert compound.packets[1].size == 40
        assert compound.packets[1].blocks == (BLOCK,)

    def test_padding_hides_blocks_that_the_header_announces(self) -> None:
        body = struct.pack(">I", REPORTER) + encoded(BLOCK)[:4]
        compound = packets(packet(201, 1, body, padding=24))
        assert (compound.packets[0].blocks, compound.flaw) == ((), "count")

    @pytest.mark.parametrize("padding", [0, 3, 40, 255])
    def test_padding_of_a_senseless_size_is_flagged_and_not_taken_off(self, padding: int) -> None:
        body = bytearray(packet(201, 0, struct.pack(">IQ", REPORTER, padding)))
        body[0] |= 0x20
        compound = packets(bytes(body))
        assert compound.flaw == "padding"
        assert compound.packets[0].ssrc == REPORTER

    def test_padding_on_another_packet_than_the_last_is_flagged(self) -> None:
        first = bytearray(sr())
        first[0] |= 0x20
        compound = packets(bytes(first) + sdes())
        assert compound.flaw == "padding"
        assert compound.packets[0].blocks == (BLOCK,)

    def test_reduced_size_rtcp_needs_no_report_before_it(self) -> None:
        assert [each.type for each in packets(FEEDBACK).packets] == [205]
        assert parse(FEEDBACK) == ()
        assert parse(sdes()) == ()
        assert parse(xr(xr_block(4, struct.pack(">Q", 7))))[0].reference_ntp == 7

    @pytest.mark.parametrize(
        "kind", [192, 193, 194, 195, 204, 205, 206, 208, 209, 215, 223, 255, 0]
    )
    def test_a_type_that_is_not_read_is_skipped_by_its_length(self, kind: int) -> None:
        other = packet(kind, 31, bytes(range(20)))
        compound = packets(rr() + other + sdes() + bye(REPORTER))
        assert [each.type for each in compound.packets] == [201, kind, 202, 203]
        assert compound.flaw is None
        assert one(rr() + other + bye(REPORTER)) == Report(
            REPORTER, blocks=(BLOCK,), bye=(REPORTER,)
        )

    def test_a_goodbye_with_a_reason_gives_who_left(self) -> None:
        body = struct.pack(">II", REPORTER, SOURCE) + b"\x07teardow"
        compound = packets(rr() + packet(203, 2, body))
        assert compound.packets[1].bye == (REPORTER, SOURCE)
        assert compound.flaw is None

    def test_a_goodbye_alone_is_no_report_of_what_was_received(self) -> None:
        assert parse(bye(REPORTER)) == (Report(REPORTER, bye=(REPORTER,), reception=False),)

    def test_a_goodbye_of_a_mixers_source_belongs_to_the_report_before_it(self) -> None:
        assert one(rr() + bye(SOURCE)).bye == (SOURCE,)
        first, second = parse(rr() + rr(SOURCE) + bye(SOURCE))
        assert (first.bye, second.bye) == ((), (SOURCE,))

    def test_a_goodbye_of_nobody_says_nothing(self) -> None:
        assert parse(bye()) == ()
        assert parse(packet(203, 0, bytes(4))) == ()
        assert packets(packet(202, 0, b"")).flaw is None
        assert packets(packet(202, 0, bytes(4))).packets[0].ssrc is None

    def test_a_goodbye_that_names_fewer_than_it_counts_is_flagged(self) -> None:
        compound = packets(packet(203, 3, struct.pack(">I", REPORTER)))
        assert (compound.packets[0].bye, compound.flaw) == ((REPORTER,), "count")
        assert why(packet(203, 1, b"")) == "short"

    def test_each_reporter_of_a_compound_has_its_own_report(self) -> None:
        payload = sr() + rr(7) + sdes() + rr(REPORTER, (ReportBlock(9, 0, 0, 1, 0),))
        first, second = parse(payload)
        assert first.ssrc == REPORTER
        assert first.sender == SENDER
        assert [each.source_ssrc for each in first.blocks] == [SOURCE, 9]
        assert second == Report(7, blocks=(BLOCK,))

    def test_a_profiles_extension_behind_the_blocks_is_left_alone(self) -> None:
        body = struct.pack(">I", REPORTER) + encoded(BLOCK) + b"more"
        assert one(packet(201, 1, body)) == Report(REPORTER, blocks=(BLOCK,))

    def test_what_is_no_rtcp_is_refused(self) -> None:
        for payload in (
            b"",
            b"\x80",
            b"\x81\xc9\x00",
            b"INVITE sip:x SIP/2.0",
            b"\x80\x00" + bytes(20),
        ):
            assert why(payload) == "not-rtcp"
        assert why(bytes([0x40]) + rr()[1:]) == "not-rtcp"  # version 1
        assert why(rr() + bytes(70_000)) == "size"

    def test_the_mux_range_of_rfc_5761_is_accepted(self) -> None:
        for kind in (191, 224):
            assert why(packet(kind, 0, bytes(4))) == "not-rtcp"
        for kind in (192, 223):
            assert parse(packet(kind, 0, bytes(4))) == ()

    def test_what_was_read_before_another_version_is_kept(self) -> None:
        compound = packets(rr() + b"\x00\x00\x00\x00")
        assert (compound.size, compound.flaw) == (32, "version")
        assert one(rr() + b"\r\n\r\n") == Report(REPORTER, blocks=(BLOCK,), flaw="version")

    def test_what_was_read_before_a_cut_is_kept(self) -> None:
        for cut in range(1, 20):
            compound = packets((rr() + sdes())[:-cut])
            assert (compound.size, compound.flaw, len(compound.packets)) == (32, "cut", 1)
        assert one(rr() + b"\n").flaw == "cut"

    def test_a_datagram_cut_inside_its_first_packet_is_refused(self) -> None:
        assert why(sr()[:30]) == "cut"

    def test_a_packet_too_short_for_its_type_is_refused_when_there_is_no_other(self) -> None:
        assert why(packet(200, 0, bytes(20))) == "short"
        assert why(packet(201, 0, b"")) == "short"
        first = packet(200, 0, struct.pack(">I", REPORTER) + bytes(16))
        assert one(first + rr()) == Report(REPORTER, blocks=(BLOCK,), flaw="short")

    def test_a_report_with_fewer_blocks_than_announced_is_implausible(self) -> None:
        short = bytearray(rr())
        short[0] += 1
        report = one(bytes(short))
        assert (report.blocks, report.flaw, report.reception) == ((BLOCK,), "count", True)
        assert implausible(report) == "count"
        assert not one(packet(201, 1, bytes(8))).reception

    def test_a_compound_of_too_many_packets_is_cut_and_flagged(self) -> None:
        compound = packets(rr() + FEEDBACK * 40)
        assert (len(compound.packets), compound.flaw) == (rtcp.MAX_PACKETS, "many")
        assert len(parse(b"".join(rr(each) for each in range(1, 100)))) == rtcp.MAX_PACKETS

    def test_a_report_of_too_many_blocks_is_cut_and_flagged(self) -> None:
        report = one(rr(blocks=(BLOCK,) * 31) * 3)
        assert (len(report.blocks), report.flaw) == (rtcp.MAX_BLOCKS, "many")


class TestExtendedReports:
    def test_time_and_delay_blocks_are_read(self) -> None:
        times = xr_block(4, struct.pack(">Q", SENDER.ntp))
        delays = xr_block(5, struct.pack(">6I", SOURCE, 1, 2, 9, 3, 4))
        report = one(rr() + xr(times, delays))
        assert report.blocks == (BLOCK,)
        assert report.reference_ntp == SENDER.ntp
        assert report.dlrr == ((SOURCE, 1, 2), (9, 3, 4))

    def test_blocks_of_other_types_are_skipped_by_their_length(self) -> None:
        others = [xr_block(kind, bytes(4 * kind)) for kind in (1, 2, 3, 6, 8, 255)]
        report = one(rr() + xr(*others, VOIP[8:]))
        assert (report.voip, report.flaw) == ((METRICS,), None)

    def test_an_extended_report_alone_says_nothing_of_what_was_received(self) -> None:
        report = one(VOIP)
        assert (report.voip, report.blocks, report.reception) == ((METRICS,), (), False)
        assert one(BYTES["rr_xr_voip"]).reception

    def test_an_extended_report_of_another_ssrc_is_another_report(self) -> None:
        first, second = parse(rr(7) + VOIP)
        assert (first.ssrc, first.voip, first.reception) == (7, (), True)
        assert (second.ssrc, second.voip, second.reception) == (REPORTER, (METRICS,), False)

    def test_what_is_unavailable_or_out_of_range_is_none(self) -> None:
        body = struct.pack(
            ">I4B4H9BxHHH", SOURCE, 0, 0, 0, 0, 0, 0, 0, 0,
            127, 127, 127, 0, 127, 101, 127, 51, 0, 0, 0, 0,
        )  # fmt: skip
        (metrics,) = one(xr(xr_block(7, body))).voip
        assert metrics == VoipMetrics(SOURCE, 0, 0, 0, 0, 0, 0, *[None] * 14)

    def test_levels_are_signed_bytes(self) -> None:
        body = bytearray(VOIP[12:])
        body[16:18] = b"\x80\x05"
        (metrics,) = one(xr(xr_block(7, bytes(body)))).voip
        assert (metrics.signal_dbm, metrics.noise_dbm) == (-128, 5)

    @pytest.mark.parametrize(
        "block",
        [
            xr_block(4, bytes(4)),
            xr_block(5, bytes(8)),
            xr_block(7, bytes(28)),
            b"\x04\x00\x00\x05" + bytes(8),
        ],
    )
    def test_a_block_of_a_wrong_size_is_flagged_and_left_out(self, block: bytes) -> None:
        report = one(rr() + xr(block))
        assert (report.blocks, report.voip, report.dlrr) == ((BLOCK,), (), ())
        assert (report.reference_ntp, report.flaw) == (None, "short")

    def test_too_many_blocks_are_cut_and_flagged(self) -> None:
        report = one(xr(*[VOIP[8:]] * 70))
        assert (len(report.voip), report.flaw) == (rtcp.MAX_BLOCKS, "many")
        delays = xr_block(5, struct.pack(">3I", 1, 2, 3) * 40)
        assert one(xr(delays, delays)).flaw == "many"
        assert len(one(xr(delays) + xr(delays)).dlrr) == rtcp.MAX_BLOCKS


def ciphered(size: int) -> bytes:
    """Bytes without order, the same in each run."""
    state, out = 0x2545F491, bytearray()
    while len(out) < size:
        state = (state * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        out.append(state >> 16 & 255)
    return bytes(out)


def srtcp(plain: bytes, index: int = 7, tag: int = 10, mki: int = 0, *, gcm: bool = False) -> bytes:
    """Cipher all but the first 8 bytes, with the trailer of RFC 3711 3.4 or RFC 7714 9."""
    noise = ciphered(len(plain) + tag + mki)
    word = struct.pack(">I", 0x80000000 | index)
    text = plain[:8] + noise[8 : len(plain)]
    tail, key = noise[len(plain) :][:tag], noise[len(plain) + tag :]
    return text + tail + word + key if gcm else text + word + key + tail


class TestSrtcp:
    @pytest.mark.parametrize(
        "plain", [sr() + sdes(), rr() + sdes(), sr(blocks=()), rr(), rr(blocks=()), rr() + VOIP]
    )
    @pytest.mark.parametrize("tag", [4, 10])
    @pytest.mark.parametrize("mki", [0, 1, 4])
    def test_ciphertext_is_recognised_by_its_trailer(
        self, plain: bytes, tag: int, mki: int
    ) -> None:
        assert why(srtcp(plain, tag=tag, mki=mki)) == "encrypted"

    @pytest.mark.parametrize("mki", [0, 1, 4])
    def test_ciphertext_of_aes_gcm_is_recognised_by_its_trailer(self, mki: int) -> None:
        assert why(srtcp(sr() + sdes(), tag=16, mki=mki, gcm=True)) == "encrypted"

    @pytest.mark.parametrize("index", [0, 1, 1000, 65_536])
    def test_the_index_may_be_any_small_number(self, index: int) -> None:
        assert why(srtcp(rr(), index)) == "encrypted"

    def test_ciphertext_with_an_unknown_trailer_is_recognised_by_its_figures(self) -> None:
        assert why(srtcp(sr() + sdes(), mki=16)) == "encrypted"
        assert why(srtcp(rr() + sdes(), index=0x7FFFFFFF)) == "encrypted"

    @pytest.mark.parametrize(
        "junk",
        [b"\n", b"\0", b"\r\n\r\n", bytes(14), b"\xff" * 14, bytes(20), b"\x81" * 16, b"{}" * 9,
         sdes()[:14], sr()[:20], b"\x80\x10" + bytes(12)],
    )  # fmt: skip
    def test_plain_rtcp_with_junk_behind_it_is_not_taken_for_it(self, junk: bytes) -> None:
        assert one(sr() + sdes() + junk).blocks == (BLOCK,)
        assert one(rr() + junk).blocks == (BLOCK,)

    def test_a_whole_plain_compound_is_never_taken_for_it(self) -> None:
        strange = ReportBlock(SOURCE, 255, 0x7FFFFF, 0, WORD, 0x80000001, 0x80000001)
        report = one(rr(blocks=(strange,)))
        assert report.blocks == (strange,)
        assert implausible(report) == "jitter"

    def test_an_authenticated_compound_in_clear_is_read(self) -> None:
        assert one(rr() + sdes() + struct.pack(">I", 5) + ciphered(10)).blocks == (BLOCK,)

    @given(st.binary(min_size=80, max_size=80), st.integers(0, 1000), st.sampled_from([4, 10]))
    def test_any_ciphertext_with_its_trailer_is_recognised(
        self, noise: bytes, index: int, tag: int
    ) -> None:
        word = struct.pack(">I", 0x80000000 | index)
        text = noise[: 80 if tag == 10 else 79]  # no packet can end at the datagram's end
        assert why(sr()[:8] + text + word + noise[:tag]) == "encrypted"

    @given(st.binary(min_size=1, max_size=40).filter(lambda junk: 0x80 not in junk))
    def test_junk_without_an_index_leaves_plain_rtcp_plain(self, junk: bytes) -> None:
        first = parse(sr() + junk)[0]
        assert (first.sender, first.blocks[:1]) == (SENDER, (BLOCK,))


# -------------------------------------------------------------------------------------------- JSON

RTPENGINE = json.loads(DIALECTS["rtpengine"]["raw"])


def js(message: Any) -> Report:
    return parse_json(json.dumps(message).encode())


def with_block(**fields: Any) -> Report:
    return js(RTPENGINE | {"report_blocks": [RTPENGINE["report_blocks"][0] | fields]})


def with_sender(**fields: Any) -> Report:
    return js(RTPENGINE | {"sender_information": RTPENGINE["sender_information"] | fields})


def json_why(payload: bytes) -> str:
    with pytest.raises(RtcpError) as caught:
        parse_json(payload)
    return caught.value.why


class TestJson:
    def test_rtpengines_fraction_of_a_second_is_no_microseconds(self) -> None:
        sender = parse_json(DIALECTS["rtpengine"]["raw"].encode()).sender
        assert sender == SenderInfo(3667834977 << 32 | 2355549043, 84_679, 514, 82_240)

    def test_an_unknown_key_changes_nothing(self) -> None:
        assert js(RTPENGINE | {"cid": [{"a": None}], "voip_metrics": 3}) == js(RTPENGINE)

    def test_rtpengines_empty_receiver_report_is_one(self) -> None:
        payload = b'{ "ssrc":286331153,"type":201,"report_count":0,"report_blocks":[] }'
        assert parse_json(payload) == Report(0x11111111, form="json")

    @pytest.mark.parametrize(
        ("printed", "meant"),
        [(0, 0), (5, 5), (-3, -3), (-0x800000, -0x800000), (0x7FFFFF, 0x7FFFFF), (16777213, -3),
         (0x800000, -0x800000), (4294967293, -3), (0xFF800000, -0x800000), ("16777214", -2),
         ("-2", -2)],
    )  # fmt: skip
    def test_cumulative_loss_is_signed_however_it_is_printed(
        self, printed: Any, meant: int
    ) -> None:
        report = with_block(packets_lost=printed)
        assert (report.blocks[0].lost, implausible(report)) == (
            meant,
            None if meant < 5000 else "sequence",
        )

    @pytest.mark.parametrize("printed", [0x1000000, 0xFF7FFFFF, -0x800001, -0x80000000])
    def test_a_loss_beyond_24_bits_is_implausible(self, printed: int) -> None:
        assert implausible(with_block(packets_lost=printed)) == "lost"

    @pytest.mark.parametrize(
        ("printed", "meant"),
        [("58f33dea", 0x58F33DEA), ("58F33DEA", 0x58F33DEA), ("0000002a", 42), ("0x2a", 42),
         ("12345678", 0x12345678), ("1234567", 1_234_567), ("123456789", 123_456_789),
         ("3724882677", 3_724_882_677), ("58f33d", 0x58F33D), ("-1640316609", 2_654_650_687),
         (-1, WORD), (0x80000000, 0x80000000), ("7", 7)],
    )  # fmt: skip
    def test_an_ssrc_is_read_however_it_is_printed(self, printed: Any, meant: int) -> None:
        assert js(RTPENGINE | {"ssrc": printed}).ssrc == meant
        assert with_block(source_ssrc=printed).blocks[0].source_ssrc == meant

    @pytest.mark.parametrize(
        "hostile",
        [None, True, 1.0, 44.5, "", "x", "1e+3", "1_000", " 1", "\u0661", [1], {}, 1 << 32, -(1 << 32),
         1 << 63, 1 << 64, -(1 << 64), "99999999999", "0x100000000"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "field",
        ["source_ssrc", "fraction_lost", "packets_lost", "highest_seq_no", "ia_jitter"],
    )
    def test_a_figure_that_rtcp_cannot_hold_is_left_out_with_its_block(
        self, field: str, hostile: Any
    ) -> None:
        report = with_block(**{field: hostile})
        assert (report.blocks, report.flaw) == ((), "values")
        assert report.sender is not None
        assert not report.reception  # it did not say that nothing was received

    @pytest.mark.parametrize("hostile", [None, True, 1.0, "", [1], 1 << 64])
    def test_an_echo_that_rtcp_cannot_hold_is_no_echo(self, hostile: Any) -> None:
        (block,) = with_block(lsr=hostile, dlsr=hostile).blocks
        assert (block.lsr, block.dlsr) == (0, 0)

    @pytest.mark.parametrize("field", ["packets", "octets", "rtp_timestamp"])
    @pytest.mark.parametrize("hostile", [None, True, 1.5, 1 << 40, "many"])
    def test_a_sender_that_rtcp_cannot_hold_is_left_out(self, field: str, hostile: Any) -> None:
        report = with_sender(**{field: hostile})
        assert (report.sender, report.flaw) == (None, "values")
        assert len(report.blocks) == 1

    def test_a_fraction_of_more_than_a_byte_is_left_out_with_its_block(self) -> None:
        assert with_block(fraction_lost=255).blocks[0].fraction_lost == 255
        assert with_block(fraction_lost=256).flaw == "values"
        assert with_block(fraction_lost=-1).flaw == "values"

    def test_a_report_of_which_nothing_can_be_read_is_refused_for_its_values(self) -> None:
        message = {"ssrc": 5, "type": 207, "report_blocks": [{"source_ssrc": 7}]}
        assert json_why(json.dumps(message).encode()) == "values"

    def test_a_block_that_is_no_object_is_left_out(self) -> None:
        report = js(RTPENGINE | {"report_blocks": [None, 3, "x", *RTPENGINE["report_blocks"]]})
        assert (len(report.blocks), report.flaw) == (1, "values")

    def test_too_many_blocks_are_cut_and_flagged(self) -> None:
        report = js(RTPENGINE | {"report_blocks": RTPENGINE["report_blocks"] * 200})
        assert (len(report.blocks), report.flaw) == (rtcp.MAX_BLOCKS, "many")

    def test_the_count_of_blocks_is_not_believed(self) -> None:
        for count in (0, 2, 4711, -1, None, "x"):
            assert js(RTPENGINE | {"report_count": count}) == js(RTPENGINE)

    def test_unsigned_words_printed_as_signed_are_the_same_words(self) -> None:
        report = with_block(lsr=-1, highest_seq_no=-2, dlsr=-3)
        (block,) = report.blocks
        assert (block.lsr, block.highest_seq, block.dlsr) == (WORD, WORD - 1, WORD - 2)
        sender = with_sender(rtp_timestamp=-210739271).sender
        assert sender is not None
        assert sender.rtp_timestamp == 4_084_228_025


class TestTime:
    def test_asterisks_unix_time_becomes_ntp_time(self) -> None:
        sender = parse_json(DIALECTS["asterisk"]["raw"].encode()).sender
        assert sender is not None
        assert sender.ntp >> 32 == 1_700_000_000 + 2_208_988_800
        assert sender.ntp & WORD == 1 << 30  # 250000 us: a quarter
        assert rtcp.ntp_middle(sender.ntp) == (3_908_988_800 & 0xFFFF) << 16 | 0x4000

    def test_unix_and_ntp_seconds_are_told_apart_from_2000_to_2036(self) -> None:
        for unix in (946_684_800, 1_795_000_000, 2_085_978_495):  # to 2036-02-07
            fraction = 999_999
            sender = with_sender(ntp_timestamp_sec=unix, ntp_timestamp_usec=fraction).sender
            assert sender is not None
            assert sender.ntp >> 32 == unix + 2_208_988_800
            ntp = unix + 2_208_988_800 << 32 | fraction
            sender = with_sender(ntp_timestamp_sec=ntp >> 32, ntp_timestamp_usec=fraction).sender
            assert sender is not None
            assert sender.ntp == ntp

    def test_unix_time_after_2036_belongs_to_the_next_era_of_ntp(self) -> None:
        sender = with_sender(ntp_timestamp_sec=2_085_978_496, ntp_timestamp_usec=0).sender
        assert sender is not None
        assert sender.ntp == 0
        sender = with_sender(ntp_timestamp_sec=2_085_978_497, ntp_timestamp_usec=0).sender
        assert sender is not None
        assert sender.ntp == 1 << 32

    def test_seconds_since_a_boot_are_no_unix_time(self) -> None:
        for seconds, fraction in ((151_547, 500_000), (1_000_000_000, 2_190_433_170)):
            sender = with_sender(ntp_timestamp_sec=seconds, ntp_timestamp_usec=fraction).sender
            assert sender is not None
            assert sender.ntp == seconds << 32 | fraction

    def test_a_sender_without_a_clock_has_no_time(self) -> None:
        for nothing in (0, "0"):
            fields = {"ntp_timestamp_sec": nothing, "ntp_timestamp_usec": nothing}
            assert with_sender(**fields).sender == SenderInfo(0, 84_679, 514, 82_240)

    @pytest.mark.parametrize("hostile", [None, True, 0.5, "now", 1 << 32, 18446744071500562816])
    def test_a_time_that_cannot_be_is_no_time(self, hostile: Any) -> None:
        # The last is Asterisk's print of an NTP time of 0.
        assert with_sender(ntp_timestamp_sec=hostile).sender == SenderInfo(0, 84_679, 514, 82_240)


class TestDialects:
    def test_asterisks_receiver_report_has_a_null_for_a_sender(self) -> None:
        message = json.loads(DIALECTS["asterisk"]["raw"])
        report = js(message | {"type": 201, "sender_information": None})
        assert report.sender is None
        assert len(report.blocks) == 1

    def test_heplifys_zeros_for_a_sender_mean_none(self) -> None:
        assert parse_json(DIALECTS["heplify"]["raw"].encode()).sender is None

    def test_heplifys_zeros_for_a_block_mean_none(self) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"])
        message["report_blocks"] = [dict.fromkeys(message["report_blocks"][0], 0)]
        sender = {"ntp_timestamp_sec": 3953771345, "ntp_timestamp_usec": 0, "packets": 2}
        message["sender_information"] |= sender
        want = Report(1492336106, SenderInfo(3953771345 << 32, 0, 2, 0), form="json")
        assert js(message) == want
        message["report_count"] = "1"
        message["report_blocks"][0]["lsr"] = "0"
        assert js(message) == want

    def test_heplifys_type_of_the_last_packet_does_not_make_a_report_something_else(self) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"])
        sent = {"ntp_timestamp_sec": 3667834977, "ntp_timestamp_usec": 1, "packets": 3}
        for last in (200, 201, 202, 203, 204, 205, 206, 207):
            report = js(message | {"type": last})
            assert (report.sender, len(report.blocks), report.reception) == (None, 1, True)
            report = js(
                message
                | {"type": last, "sender_information": sent | {"octets": 4, "rtp_timestamp": 5}}
            )
            assert report.sender == SenderInfo(3667834977 << 32 | 1, 5, 3, 4)

    def test_an_empty_report_before_a_description_says_that_nothing_was_received(self) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"]) | {"report_blocks": None}
        assert js(message) == Report(1492336106, form="json")

    @pytest.mark.parametrize("last", [192, 203, 204, 205, 206, 207])
    def test_a_packet_that_reports_nothing_is_no_report(self, last: int) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"]) | {"type": last, "report_blocks": []}
        assert json_why(json.dumps(message).encode()) == "not-rtcp"

    def test_heplifys_description_alone_is_no_report(self) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"])
        message |= {"ssrc": 0, "report_count": 1, "report_blocks": []}
        assert json_why(json.dumps(message).encode()) == "not-rtcp"

    def test_heplifys_extended_report_is_read(self) -> None:
        message = json.loads(DIALECTS["heplify"]["raw"])
        message["report_blocks_xr"] = {
            "type": 7, "id": SOURCE, "fraction_lost": 12, "fraction_discard": 12,
            "burst_density": 84, "gap_density": 10, "burst_duration": 120, "gap_duration": 520,
            "round_trip_delay": 84, "end_system_delay": 65,
        }  # fmt: skip
        report = js(message)
        (metrics,) = report.voip
        assert metrics.mos_lq is None
        known = (4.6875, 4.6875, 32.8125, 3.90625, 120, 520, 84, 65)
        assert metrics == VoipMetrics(SOURCE, *known, *[None] * 12)
        assert len(report.blocks) == 1
        message["report_blocks_xr"]["type"] = 4
        assert (js(message).voip, js(message).flaw) == ((), "values")

    CAPTAGENT = (
        '{ "ssrc":287454020,"type":201, "report_blocks":[{"source_ssrc":2864434397,'
        '"highest_seq_no":66036,"fraction_lost":26,"ia_jitter":160,"packets_lost":16777213,'
        '"lsr":305419896,"dlsr":32768}],"report_count":1,"sdes_ssrc":287454020,'
        '"sdes_chunk_ssrc":287454020,"sdes_information": [ {"type":1,"text":"x"}],'
        '"sdes_report_count":1,"extended_report_information":{"type":7, "identifier":2864434397,'
        ' "loss_rate":12, "discard_rate":12, "burst_rate":84, "gap_rate":10, "burst_duration":120,'
        ' "gap_duration":520, "round_trip_delay":84, "end_sys_delay":65, "signal_lev":%u,'
        ' "noise_lev":%d, "RERL":45, "Gmin":16, "R_fact":72, "ext_R_fact":127, "MOS_LQ":37,'
        ' "MOS_CQ":36, "RX_conf":[{"PLC":3, "JB_adapt":3, "JB_rate":0}], "JB_nom":60,'
        ' "JB_max":120, "JB_abs_max":300}}'
    )

    @pytest.mark.parametrize(
        ("signal", "noise"), [(238, 186), (4294967278, 4294967226), (238, -70)]
    )
    def test_captagents_extended_report_is_read(self, signal: int, noise: int) -> None:
        report = parse_json((self.CAPTAGENT % (signal, noise)).encode())
        assert report == Report(REPORTER, blocks=(BLOCK,), voip=(METRICS,), form="json")

    def test_captagents_extended_report_without_a_receiver_is_read(self) -> None:
        message = json.loads(self.CAPTAGENT % (238, 186))
        receivers: list[Any] = [None, [], [3], {}, [{"PLC": 9}]]
        for nothing in receivers:
            message["extended_report_information"]["RX_conf"] = nothing
            assert js(message).voip[0].rx_config is None

    def test_an_extended_report_that_cannot_be_is_left_out(self) -> None:
        message = json.loads(self.CAPTAGENT % (238, 186))
        for key, value in (("identifier", None), ("loss_rate", 256), ("gap_duration", 1 << 16)):
            report = js(
                message
                | {
                    "extended_report_information": message["extended_report_information"]
                    | {key: value}
                }
            )
            assert (report.voip, report.flaw, len(report.blocks)) == ((), "values", 1)
        alone = {
            "ssrc": 7,
            "type": 207,
            "extended_report_information": message["extended_report_information"],
        }
        assert js(alone) == Report(7, voip=(METRICS,), reception=False, form="json")

    def test_captagents_sender_report_without_blocks_is_told_by_its_description(self) -> None:
        payload = (
            b'{ "sender_information":{"ntp_timestamp_sec":3667834977,"ntp_timestamp_usec":1,'
            b'"octets":4,"rtp_timestamp":5, "packets":3},"sdes_ssrc":287454020,'
            b'"sdes_chunk_ssrc":287454020,"sdes_information": [ ],"sdes_report_count":0}'
        )
        sender = SenderInfo(3667834977 << 32 | 1, 5, 3, 4)
        assert parse_json(payload) == Report(REPORTER, sender, form="json")

    def test_rtpproxys_comma_before_a_brace_is_forgiven(self) -> None:
        payload = b'{\n "ssrc": 287454020,\n "type": 201,\n "report_count": 0,\n}\n'
        assert parse_json(payload) == Report(REPORTER, form="json")

    def test_rtpproxys_report_without_blocks_lacks_their_key(self) -> None:
        message = {key: RTPENGINE[key] for key in ("ssrc", "type", "sender_information")}
        assert js(message) == Report(3724882677, js(RTPENGINE).sender, form="json")

    def test_a_strange_text_in_a_description_does_not_cost_the_report(self) -> None:
        raw = DIALECTS["rtpengine"]["raw"].encode()
        for text in (b"J\xf6rg", b"a\x01b", b"a\nb", b"\xff\xfe,}"):
            named = raw.replace(b"[] }", b'[{"type":1,"text":"' + text + b'"}] }')
            assert parse_json(named) == js(RTPENGINE)
            stringly = named.replace(b'"lsr":3093100159', b'"lsr":"3093100159"')
            assert parse_json(stringly) == js(RTPENGINE)
        assert parse_json(raw + b"\0") == js(RTPENGINE)

    def test_numbers_that_could_not_be_parsed_by_a_script_leave_no_block(self) -> None:
        message = json.loads(DIALECTS["freeswitch-esl-agent"]["raw"])
        message["report_blocks"] = [dict.fromkeys(message["report_blocks"][0])]
        report = js(message)
        assert (report.blocks, report.flaw) == ((), "values")
        assert report.sender is not None


class TestNotJson:
    @pytest.mark.parametrize(
        "payload",
        [b"", b"{", b"nonsense", b'{"ssrc":1,"type":200', b'{"a":"b"c"}', b"\xff\xfe",
         b'{"ssrc":1,"x":' + b"[" * 50_000, b'{"ssrc":1,"y":' + b"9" * 6000 + b"}"],
    )  # fmt: skip
    def test_what_is_no_json_is_refused(self, payload: bytes) -> None:
        assert json_why(payload) == "json"

    @pytest.mark.parametrize(
        "message",
        [
            [], 3, "x", None, {}, {"ssrc": 5}, {"ssrc": 5, "type": 1}, {"type": 200},
            {"ssrc": 0, "type": 201}, {"ssrc": "zz", "type": 201}, {"ssrc": 5, "type": 224},
            {"ssrc": 5, "type": 191}, {"ssrc": 5, "type": -56}, {"report_blocks": []},
            {"emitter": "MyJanus", "type": 32, "subtype": 3, "event": {"media": "audio",
             "base": 48000, "rtt": 0, "lost": 0, "jitter-local": 12, "packets-received": 250}},
            {"CALL_ID": "a@b", "MOS": 4.4}, {"ssrc": 5, "type": True, "event": {}},
        ],
    )  # fmt: skip
    def test_json_that_reports_nothing_of_rtcp_is_refused(self, message: Any) -> None:
        assert json_why(json.dumps(message).encode()) == "not-rtcp"

    def test_a_payload_over_the_limit_is_refused(self) -> None:
        assert json_why(b" " * 70_000) == "size"


# -------------------------------------------------------------------------------------- FreeSWITCH

RECEIVED = {
    "Event-Name": "RECV_RTCP_MESSAGE",
    "Unique-ID": "1d8ceb64-df3f-43ce-b656-f035d1c6889c",
    "SSRC": "45eae8ef",
    "NTP-Most-Significant-Word": "4004155322",
    "NTP-Least-Significant-Word": "2025361408",
    "RTP-Timestamp": "906670049",
    "Sender-Packet-Count": "100",
    "Octect-Packet-Count": "16000",
    "Last-RTP-Timestamp": "906669409",
    "RTP-Rate": "8000",
    "Capture-Time": "1795166522472745",
    "Source0-SSRC": "11223344",
    "Source0-Fraction": "13",
    "Source0-Lost": "17",
    "Source0-Loss-Avg": "5",
    "Source0-Highest-Sequence-Number-Received": "5100",
    "Source0-Jitter": "88",
    "Source0-LSR": "0",
    "Source0-DLSR": "0",
    "Rtt0-Avg": "0.000000",
}
SENT = {
    "Event-Name": "SEND_RTCP_MESSAGE",
    "SSRC": "2c74d302",
    "NTP-Most-Significant-Word": "4004155152",
    "NTP-Least-Significant-Word": "2145490783",
    "RTP-Timestamp": "49696",
    "Sender-Packet-Count": "198",
    "Octect-Packet-Count": "31680",
    "Last-RTP-Timestamp": "49696",
    "Capture-Time": "1795166352517801",
    "Source-SSRC": "2c74d302",
    "Source-Fraction": "1",
    "Source-Lost": "1",
    "Source-Highest-Sequence-Number-Received": "9023",
    "Source-Jitter": "48",
    "Source-LSR": "2400221780",
    "Source-DLSR": "1312",
}


def received(**changed: str | None) -> Report:
    fields = {key.replace("_", "-"): value for key, value in changed.items()}
    return from_freeswitch({**RECEIVED, **fields}, sent=False)


def sent(**changed: str | None) -> Report:
    fields = {key.replace("_", "-"): value for key, value in changed.items()}
    return from_freeswitch({**SENT, **fields}, sent=True)


class TestFreeswitch:
    def test_what_freeswitch_received_is_the_peers_report(self) -> None:
        assert from_freeswitch(RECEIVED, sent=False) == Report(
            0x45EAE8EF,
            SenderInfo(4004155322 << 32 | 2025361408, 906670049, 100, 16_000),
            (ReportBlock(0x11223344, 13, 17, 5100, 88),),
            clock_rate=8000,
            form="freeswitch",
        )

    def test_what_freeswitch_sent_is_its_own_report_of_the_stream_named_ssrc(self) -> None:
        assert from_freeswitch(SENT, sent=True) == Report(
            0,
            SenderInfo(4004155152 << 32 | 2145490783, 49_696, 198, 31_680),
            (ReportBlock(0x2C74D302, 1, 1, 9023, 48, 2400221780, 1312),),
            form="freeswitch",
        )

    def test_the_stream_has_its_rtp_ssrc_when_the_peer_sent_no_rtcp(self) -> None:
        report = sent(SSRC="ca110000", Source_SSRC="00000000")
        assert [each.source_ssrc for each in report.blocks] == [0xCA110000]
        report = sent(SSRC="00000000", Source_SSRC="ca110000")
        assert [each.source_ssrc for each in report.blocks] == [0xCA110000]

    def test_a_leg_that_heard_no_rtp_has_no_block(self) -> None:
        nothing: dict[str, str | None] = {
            "SSRC": "00000000",
            "Source_SSRC": "00000000",
            "Source_Fraction": "255",
            "Source_Highest_Sequence_Number_Received": "0",
        }
        report = sent(**nothing)
        assert (report.blocks, report.reception, report.flaw) == ((), True, None)

    def test_an_ssrc_is_hexadecimal_whatever_its_digits(self) -> None:
        assert received(SSRC="12345678").ssrc == 0x12345678
        assert received(SSRC="1234567").ssrc == 0x1234567

    def test_a_negative_loss_is_printed_unsigned(self) -> None:
        assert received(Source0_Lost="4294967293").blocks[0].lost == -3

    def test_every_indexed_block_is_read(self) -> None:
        second = {
            key.replace("Source0", "Source1"): value
            for key, value in RECEIVED.items()
            if key.startswith("Source0")
        }
        headers = RECEIVED | second | {"Source1-SSRC": "55667788", "Source3-SSRC": "1"}
        report = from_freeswitch(headers, sent=False)
        assert [each.source_ssrc for each in report.blocks] == [0x11223344, 0x55667788]

    def test_the_first_round_trip_that_can_be_counts(self) -> None:
        second = {
            key.replace("Source0", "Source1"): value
            for key, value in RECEIVED.items()
            if key.startswith("Source0")
        }
        for first, want in (("0.01", 90.0), ("0.05", 50.0)):
            report = received(**second, Rtt0_Avg=first, Rtt1_Avg="0.09")
            assert report.rtt_ms == pytest.approx(want)

    def test_a_report_without_blocks_is_one(self) -> None:
        report = received(Source0_SSRC=None)
        assert (report.ssrc, report.blocks, report.flaw) == (0x45EAE8EF, (), None)
        assert sent(Source_SSRC=None).blocks == ()

    def test_a_stale_copy_of_the_senders_fields_is_equal_to_the_first(self) -> None:
        later = received(Source0_Jitter="90", Capture_Time="1795166526472745")
        assert later.sender == received().sender
        assert later.blocks != received().blocks

    def test_a_peer_that_never_sent_has_no_senders_fields(self) -> None:
        names = ("RTP-Timestamp", "Sender-Packet-Count", "Octect-Packet-Count")
        words = ("NTP-Most-Significant-Word", "NTP-Least-Significant-Word")
        zeros = dict.fromkeys((*names, *words), "0")
        assert received(**zeros).sender is None
        for name in names:
            assert received(**{name: None}).sender is None
        for name in words:
            assert received(**{name: None}).sender == SenderInfo(0, 906670049, 100, 16_000)

    @pytest.mark.parametrize(
        ("printed", "meant"),
        [("0.000000", None), ("0.020000", None), ("0.039999", None), ("0.040000", 40.0),
         ("0.250000", 250.0), ("5", 5000.0), ("5.1", None), ("nan", None), ("inf", None),
         ("-0.1", None), ("1e-1", None), ("", None), (None, None)],
    )  # fmt: skip
    def test_a_round_trip_of_under_two_ticks_or_over_five_seconds_is_not_believed(
        self, printed: str | None, meant: float | None
    ) -> None:
        assert received(Rtt0_Avg=printed).rtt_ms == meant

    @pytest.mark.parametrize(
        ("printed", "meant"),
        [("8000", 8000), ("48000", 48_000), ("0", None), ("999", None), ("192001", None),
         ("x", None), (None, None)],
    )  # fmt: skip
    def test_a_clock_rate_that_no_audio_has_is_unknown(
        self, printed: str | None, meant: int | None
    ) -> None:
        assert received(RTP_Rate=printed).clock_rate == meant

    def test_a_figure_that_rtcp_cannot_hold_is_left_out_with_its_block(self) -> None:
        for name in ("SSRC", "Fraction", "Lost", "Jitter", "Highest-Sequence-Number-Received"):
            for hostile in ("", "x", "99999999999", "1.5", "\u0663"):
                report = from_freeswitch(RECEIVED | {f"Source0-{name}": hostile}, sent=False)
                assert (report.blocks, report.flaw, report.reception) == ((), "values", False)
                report = from_freeswitch(SENT | {f"Source-{name}": hostile}, sent=True)
                assert (report.blocks, report.flaw) == ((), "values")

    def test_of_a_header_that_came_twice_the_first_counts(self) -> None:
        headers: dict[str, str | list[str] | None] = dict(RECEIVED)
        headers["SSRC"] = ["45eae8ef", "1"]
        headers["RTP-Rate"] = []
        report = from_freeswitch(headers, sent=False)
        assert (report.ssrc, report.clock_rate) == (0x45EAE8EF, None)

    @pytest.mark.parametrize("ssrc", [None, "", "zz", "123456789"])
    def test_an_event_without_an_ssrc_is_refused(self, ssrc: str | None) -> None:
        with pytest.raises(RtcpError, match="not-rtcp"):
            received(SSRC=ssrc)


# -------------------------------------------------------------------------------------- arithmetic


class TestArithmetic:
    def test_the_example_of_rfc_3550_comes_out(self) -> None:
        middle = rtcp.ntp_middle(0xB44DB705_20000000)
        assert middle == 0xB7052000
        assert rtcp.round_trip(0xB7108000, middle, 0x00054000, limit=10) == 6.125
        assert rtcp.round_trip(0xB7108000, middle, 0x00054000) is None  # over five seconds

    def test_a_round_trip_that_cannot_be_is_none(self) -> None:
        second = 65_536
        assert rtcp.round_trip(10 * second, 9 * second, 0) == 1.0
        assert rtcp.round_trip(10 * second, 5 * second, 0) == 5.0
        assert rtcp.round_trip(10 * second, 5 * second - 1, 0) is None
        assert rtcp.round_trip(10 * second, 9 * second, second + 1) is None
        assert rtcp.round_trip(70 * second, 9 * second, 60 * second) == 1.0
        assert rtcp.round_trip(70 * second + 1, 9 * second, 60 * second + 1) is None
        assert rtcp.round_trip(5, 0, 0) is None
        assert rtcp.round_trip(9 * second, 10 * second, 0, limit=1e9) is None

    @given(st.integers(0, WORD), st.integers(1, WORD), st.integers(0, WORD))
    def test_a_round_trip_is_none_or_no_longer_than_its_limit(
        self, at: int, lsr: int, dlsr: int
    ) -> None:
        got = rtcp.round_trip(at, lsr, dlsr)
        assert got is None or 0 <= got <= rtcp.MAX_RTT


class TestImplausible:
    def test_a_sound_report_is_plausible(self) -> None:
        assert implausible(Report(REPORTER, SENDER, (BLOCK,))) is None
        assert implausible(Report(REPORTER)) is None

    def test_jitter_of_over_ten_seconds_is_not(self) -> None:
        def of(units: int, rate: int | None = None) -> str | None:
            return implausible(Report(1, blocks=(ReportBlock(2, 0, 0, 9, units),), clock_rate=rate))

        assert (of(80_000, 8000), of(80_001, 8000)) == (None, "jitter")
        assert (of(480_000), of(480_001), of(63_125_527)) == (None, "jitter", "jitter")

    def test_more_lost_than_sequence_numbers_used_is_not(self) -> None:
        def of(lost: int, highest: int) -> str | None:
            return implausible(Report(1, blocks=(BLOCK, ReportBlock(2, 0, lost, highest, 0))))

        assert (of(101, 100), of(102, 100), of(-5, 0)) == (None, "sequence", None)

    def test_octets_that_no_packets_carry_are_not(self) -> None:
        def of(count: int, octets: int) -> str | None:
            return implausible(Report(1, SenderInfo(0, 0, count, octets)))

        assert (of(0, 0), of(1, 65_535), of(0, 1), of(1, 65_536)) == (
            None,
            None,
            "sender",
            "sender",
        )


# --------------------------------------------------------------------------------------- real ones


def test_the_reports_of_rtpengine_are_the_ground_truth_of_their_reporters() -> None:
    truth = json.loads((CORPUS / "kamailio/r_rtpengine_rtcp.json").read_text())
    said: dict[tuple[bytes, int], list[tuple[int, int, int]]] = {}
    with (CORPUS / "kamailio/r_rtpengine_rtcp.pcap").open("rb") as file:
        for captured in pcap.Reader(file):
            message = hep.decode(captured.payload)
            report = parse_json(message.payload)
            assert report.flaw is None
            assert implausible(report) is None
            assert message.correlation_id is not None
            for block in report.blocks:
                figures = (block.fraction_lost, block.lost, block.jitter)
                said.setdefault((message.correlation_id, report.ssrc), []).append(figures)
    for call in truth["calls"]:
        for who, key in (("A", "reports_by_A_about_B"), ("B", "reports_by_B_about_A")):
            want = [
                (each["fraction_lost"], each["packets_lost"], each["jitter"]) for each in call[key]
            ]
            assert said.get((call["call_id"].encode(), call["ssrc"][who]), []) == want


# -------------------------------------------------------------------------------------- properties

words = st.integers(0, WORD)
blocks_ = st.builds(
    ReportBlock,
    st.integers(1, WORD),
    st.integers(0, 255),
    st.integers(-0x800000, 0x7FFFFF),
    words,
    words,
    words,
    words,
)
senders = st.builds(SenderInfo, st.integers(0, (1 << 64) - 1), words, words, words)
some_blocks = st.lists(blocks_, max_size=31).map(tuple)
others = st.sampled_from([sdes(), FEEDBACK, packet(204, 3, bytes(12)), packet(192, 0, bytes(4))])


@given(words, st.none() | senders, some_blocks, st.lists(others, max_size=4))
def test_what_was_encoded_is_read(
    ssrc: int, sender: SenderInfo | None, blocks: tuple[ReportBlock, ...], rest: list[bytes]
) -> None:
    first = rr(ssrc, blocks) if sender is None else sr(ssrc, sender, blocks)
    compound = packets(first + b"".join(rest))
    assert compound.flaw is None
    assert compound.size == sum(each.size for each in compound.packets)
    assert parse(first + b"".join(rest)) == (Report(ssrc, sender, blocks),)


@given(words.filter(bool), st.none() | senders, some_blocks)
@example(5, SenderInfo(0, 0, 0, 0), ())
def test_json_and_binary_give_the_same_report(
    ssrc: int, sender: SenderInfo | None, blocks: tuple[ReportBlock, ...]
) -> None:
    said: dict[str, Any] = {
        "ssrc": ssrc,
        "type": 201 if sender is None else 200,
        "report_blocks": [
            {
                "source_ssrc": each.source_ssrc,
                "fraction_lost": each.fraction_lost,
                "packets_lost": each.lost & 0xFFFFFF,
                "highest_seq_no": each.highest_seq,
                "ia_jitter": each.jitter,
                "lsr": each.lsr,
                "dlsr": each.dlsr,
            }
            for each in blocks
        ],
    }
    if sender is not None:
        said["sender_information"] = {
            "ntp_timestamp_sec": sender.ntp >> 32,
            "ntp_timestamp_usec": sender.ntp & WORD,
            "rtp_timestamp": sender.rtp_timestamp,
            "packets": sender.packets,
            "octets": sender.octets,
        }
    first = rr(ssrc, blocks) if sender is None else sr(ssrc, sender, blocks)
    binary, read = one(first), js(said)
    assert (read.ssrc, read.blocks) == (binary.ssrc, binary.blocks)
    printed = json.loads(json.dumps(said), parse_int=str)
    printed["ssrc"] = f"{ssrc:08x}"
    for each, block in zip(printed["report_blocks"], blocks, strict=True):
        each["source_ssrc"] = f"{block.source_ssrc:08x}"
    assert js(printed) == read
    if sender is not None and sender.ntp >> 32 >= 2_208_988_800:  # else it may be UNIX time
        assert read.sender == sender


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: rr() + rest))
@example(bytes([0x81, 201, 0, 0]))
def test_any_bytes_are_reports_or_an_error(payload: bytes) -> None:
    words: set[str] = set()
    try:
        reports = parse(payload)
    except RtcpError as error:
        reports = ()
        words.add(error.why)
    assert words <= rtcp.WHYS
    for report in reports:
        assert report.flaw is None or report.flaw in rtcp.FLAWS
        assert implausible(report) in {None, *rtcp.IMPLAUSIBLE}


keys = st.sampled_from(
    [*RTPENGINE, *RTPENGINE["report_blocks"][0], *RTPENGINE["sender_information"],
     "report_blocks_xr", "extended_report_information", "RX_conf", "identifier", "id", "PLC"]
)  # fmt: skip


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=8),
    max_leaves=20,
)


@given(st.dictionaries(keys, anything, max_size=10), st.booleans())
def test_any_json_is_a_report_or_an_error(message: dict[str, Any], named: bool) -> None:
    if named:
        message |= {"ssrc": 5, "type": 200}
    words: set[str] = set()
    report = Report(0)
    try:
        report = parse_json(json.dumps(message).encode())
    except RtcpError as error:
        words.add(error.why)
    assert words <= {"json", "not-rtcp"}
    for block in report.blocks:
        assert 0 <= block.source_ssrc <= WORD
        assert 0 <= block.fraction_lost <= 255
        assert min(block.highest_seq, block.jitter, block.lsr, block.dlsr) >= 0
        assert max(block.highest_seq, block.jitter, block.lsr, block.dlsr) <= WORD


@given(
    st.dictionaries(st.sampled_from([*RECEIVED, *SENT]), st.none() | st.text(max_size=12)),
    st.booleans(),
)
def test_any_event_is_a_report_or_an_error(headers: dict[str, str | None], sent: bool) -> None:
    words: set[str] = set()
    report = Report(0)
    try:
        report = from_freeswitch({"SSRC": "1", **headers}, sent=sent)
    except RtcpError as error:
        words.add(error.why)
    assert words <= {"not-rtcp"}
    assert implausible(report) in {None, *rtcp.IMPLAUSIBLE}
