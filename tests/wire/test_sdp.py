import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import pcap, sdp
from sipsidecar.wire.sdp import (
    Codec,
    SdpError,
    audio_codecs,
    body_of,
    negotiated,
    parse,
    speech,
)

CORPUS = Path(__file__).parent.parent / "corpus"

OFFER = """\
v=0
o=alice 2890844526 2890844526 IN IP4 host.atlanta.example.com
s=
c=IN IP4 192.0.2.1
t=0 0
a=ptime:30
m=audio 49170 RTP/AVP 96 0 8 18 101 13
a=rtpmap:96 OPUS/48000/2
a=fmtp:96 useinbandfec=1; stereo=0
a=rtpmap:0 pcmu/8000
a=fmtp:18 annexb=no
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-15
a=ptime:20
m=video 51372/2 RTP/AVP 31 99
c=IN IP6 2001:db8::1/64
a=rtpmap:99 h264/90000
a=sendonly
"""


def audio(*lines: str, line: str = "m=audio 4000 RTP/AVP 0", session: str = "") -> str:
    return "\r\n".join(["v=0", *session.splitlines(), line, *lines, ""])


def media(
    *lines: str, line: str = "m=audio 4000 RTP/AVP 0", session: str = ""
) -> sdp.MediaDescription:
    return parse(audio(*lines, line=line, session=session)).media[0]


def why(body: bytes | str) -> str:
    with pytest.raises(SdpError) as caught:
        parse(body)
    return caught.value.why


def test_every_why_that_the_source_raises_is_announced() -> None:
    assert set(re.findall(r'SdpError\("([a-z-]+)"', Path(sdp.__file__).read_text())) == sdp.WHYS


class TestParse:
    def test_an_offer_is_read_as_it_means(self) -> None:
        got = parse(OFFER)
        assert got.origin == "host.atlanta.example.com"
        assert got.connection == "192.0.2.1"
        assert got.direction is None
        voice, video = got.media
        assert (voice.kind, voice.port, voice.protocol) == ("audio", 49170, "RTP/AVP")
        assert voice.formats == ("96", "0", "8", "18", "101", "13")
        assert voice.codecs == (
            Codec(96, "opus", 48000, 2, "useinbandfec=1; stereo=0"),
            Codec(0, "PCMU", 8000),
            Codec(8, "PCMA", 8000),
            Codec(18, "G729", 8000, 1, "annexb=no"),
            Codec(101, "telephone-event", 8000, 1, "0-15"),
            Codec(13, "CN", 8000),
        )
        assert (voice.connection, voice.direction, voice.ptime_ms) == ("192.0.2.1", "sendrecv", 20)
        assert (video.kind, video.port, video.connection) == ("video", 51372, "2001:db8::1")
        assert (video.direction, video.ptime_ms) == ("sendonly", 30)
        assert video.codecs == (Codec(31, "H261", 90000), Codec(99, "H264", 90000))

    @pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n", "\n\n"])
    def test_any_line_end_and_both_kinds_of_string_give_the_same(self, end: str) -> None:
        text = OFFER.replace("\n", end)
        assert parse(text) == parse(text.encode()) == parse(OFFER)

    def test_latin_1_and_junk_lines_are_no_obstacle(self) -> None:
        body = b"\xff\xfe\nv=0\ns=caf\xe9\nthis is no line\na\n=\nm=audio 4000 RTP/AVP 8\na=\n"
        assert audio_codecs(parse(body)) == ("PCMA",)

    def test_the_media_level_goes_over_the_session_level(self) -> None:
        session = "c=IN IP4 192.0.2.1\na=inactive\na=ptime:40"
        got = media(session=session)
        assert (got.connection, got.direction, got.ptime_ms) == ("192.0.2.1", "inactive", 40)
        got = media("c=IN IP4 192.0.2.2", "a=recvonly", "a=ptime:10", session=session)
        assert (got.connection, got.direction, got.ptime_ms) == ("192.0.2.2", "recvonly", 10)

    @pytest.mark.parametrize("direction", ["sendrecv", "sendonly", "recvonly", "inactive"])
    def test_each_direction_is_known_at_both_levels(self, direction: str) -> None:
        assert media(f"a={direction}").direction == direction
        assert parse(audio(session=f"a={direction}")).direction == direction

    def test_security_and_ice_are_told_by_their_presence(self) -> None:
        got = media()
        assert not any((got.crypto, got.fingerprint, got.candidates, got.rtcp_mux))
        assert media("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x").crypto
        assert media("a=fingerprint:sha-256 AA:BB").fingerprint
        assert media(session="a=fingerprint:sha-256 AA:BB").fingerprint
        assert media("a=candidate:1 1 UDP 1 192.0.2.1 4000 typ host").candidates
        assert media("a=rtcp-mux").rtcp_mux

    @pytest.mark.parametrize(
        ("value", "port", "address"),
        [
            ("53020", 53020, None),
            ("53020 IN IP6 2001:db8::3", 53020, "2001:db8::3"),
            ("x IN IP4 192.0.2.3", None, "192.0.2.3"),
            ("70000", None, None),
            ("", None, None),
        ],
    )
    def test_rtcp_may_have_its_own_port_and_address(
        self, value: str, port: int | None, address: str | None
    ) -> None:
        got = media(f"a=rtcp:{value}")
        assert (got.rtcp_port, got.rtcp_address) == (port, address)

    def test_ssrcs_of_a_line_are_told_once_each(self) -> None:
        lines = ["a=ssrc:7 cname:x", "a=ssrc:7 msid:y", "a=ssrc:4294967295", "a=ssrc:0 cname:x"]
        assert media(*lines).ssrcs == (7, 4294967295, 0)
        assert media(session="a=ssrc:7 cname:x").ssrcs == ()

    @pytest.mark.parametrize("value", ["", "-1", "4294967296", "0x7", "7x", "\xb2", "99999999999"])
    def test_an_ssrc_that_cannot_be_is_left_out(self, value: str) -> None:
        assert media(f"a=ssrc:{value} cname:x", "a=ssrc:8 cname:x").ssrcs == (8,)

    def test_ssrcs_of_a_line_are_capped(self) -> None:
        lines = [f"a=ssrc:{i} cname:x" for i in range(sdp.MAX_SSRCS + 1)]
        assert media(*lines).ssrcs == tuple(range(sdp.MAX_SSRCS))

    @pytest.mark.parametrize(
        "line",
        [
            "c=IN IP4",
            "c=",
            "c=ATM IP4 192.0.2.1",
            "c=IN IP4 192.0.2.1\x00",
            "c=IN IP4 <script>",
            "c=IN IP4 " + "a" * 254,
        ],
    )
    def test_an_address_that_is_none_is_left_out(self, line: str) -> None:
        assert media(line).connection is None

    def test_the_first_of_two_addresses_of_a_level_counts(self) -> None:
        assert media("c=IN IP4 192.0.2.1/127", "c=IN IP4 192.0.2.2").connection == "192.0.2.1"

    @pytest.mark.parametrize(
        "value", ["0", "-20", "1 0", "20.5", "\u0663", "\xb2", "", "1001", "2_0"]
    )
    def test_a_ptime_that_is_no_number_is_unknown(self, value: str) -> None:
        assert media(f"a=ptime:{value}").ptime_ms is None

    @pytest.mark.parametrize(
        "line",
        [
            "a=rtpmap:x opus/48000",
            "a=rtpmap:128 opus/48000",
            "a=rtpmap:96",
            "a=rtpmap:96 /48000",
            "a=rtpmap:96 op us/48000",
            "a=rtpmap:96 \x1b[31m/48000",
            "a=rtpmap:96 " + "x" * 33,
        ],
    )
    def test_an_rtpmap_that_makes_no_sense_is_left_out(self, line: str) -> None:
        got = media(line, line="m=audio 4000 RTP/AVP 96")
        if line == "a=rtpmap:96 op us/48000":
            assert got.codecs == (Codec(96, None),)
        assert got.codecs[0].name is None

    def test_an_rtpmap_may_lack_its_rate_or_have_a_mad_one(self) -> None:
        lines = ["a=rtpmap:96 X/8k", "a=rtpmap:97 Y", "a=rtpmap:98 Z/8000/999"]
        got = media(*lines, line="m=audio 4000 RTP/AVP 96 97 98 x 300")
        assert got.codecs == (Codec(96, "X"), Codec(97, "Y"), Codec(98, "Z", 8000))
        assert got.formats == ("96", "97", "98", "x", "300")

    def test_the_first_rtpmap_and_fmtp_of_a_payload_type_count(self) -> None:
        lines = ["a=rtpmap:96 A/1", "a=rtpmap:96 B/2", "a=fmtp:96 a", "a=fmtp:96 b"]
        assert media(*lines, line="m=audio 1 RTP/AVP 96").codecs == (Codec(96, "A", 1, 1, "a"),)

    @pytest.mark.parametrize("value", ["x" * 256, "a\x00b", "a\x1bb"])
    def test_format_parameters_that_are_too_long_or_unprintable_are_left_out(
        self, value: str
    ) -> None:
        assert media(f"a=fmtp:0 {value}").codecs[0].fmtp is None

    def test_only_rtp_has_codecs(self) -> None:
        for line in ("m=image 4000 udptl t38", "m=audio 4000 TCP/MRCPv2 1"):
            got = media(line=line)
            assert got.codecs == ()
            assert len(got.formats) == 1
        assert media(line="m=audio 9 UDP/TLS/RTP/SAVPF 0").codecs[0].name == "PCMU"

    @pytest.mark.parametrize(
        "line",
        [
            "m=",
            "m=audio",
            "m=audio 4000",
            "m=audio x RTP/AVP 0",
            "m=audio 65536 RTP/AVP 0",
            "m=audio -1 RTP/AVP 0",
            "m=au\x00dio 4000 RTP/AVP 0",
            "m=audio 4000 R\xe9P 0",
        ],
    )
    def test_a_bad_m_line_is_left_out_with_all_that_belongs_to_it(self, line: str) -> None:
        got = parse(audio(line, "a=inactive", "c=IN IP4 192.0.2.9"))
        assert [each.port for each in got.media] == [4000]
        assert (got.media[0].direction, got.media[0].connection) == ("sendrecv", None)

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ("", "not-sdp"),
            (b"", "not-sdp"),
            ("<?xml version='1.0'?>\n", "not-sdp"),
            ("c=IN IP4 192.0.2.1\n", "not-sdp"),
            ("v=0\n" * (sdp.MAX_LINES + 1), "lines"),
            ("v=0\n" + " " * sdp.MAX_SIZE, "size"),
            ("m=audio 4000 RTP/AVP 0\n" * (sdp.MAX_MEDIA + 1), "media"),
            ("m=audio 4000 RTP/AVP" + " 0" * (sdp.MAX_FORMATS + 1), "formats"),
        ],
    )
    def test_what_is_no_sdp_or_too_much_is_refused_by_its_name(
        self, body: bytes | str, word: str
    ) -> None:
        assert why(body) == word

    def test_the_limits_themselves_are_allowed(self) -> None:
        assert len(parse("m=audio 4000 RTP/AVP 0\n" * sdp.MAX_MEDIA).media) == sdp.MAX_MEDIA
        assert len(media(line="m=audio 1 RTP/AVP" + " 0" * sdp.MAX_FORMATS).formats) == 64
        assert parse("v=0\n" * (sdp.MAX_LINES - 1)).media == ()


class TestCodecs:
    def test_speech_codecs_are_named_once_in_their_order(self) -> None:
        assert audio_codecs(parse(OFFER)) == ("opus", "PCMU", "PCMA", "G729")
        two = parse(audio("m=audio 4002 RTP/SAVP 8 0 9 97"))
        assert audio_codecs(two) == ("PCMU", "PCMA", "G722")
        assert audio_codecs(parse(audio(line="m=audio 0 RTP/AVP 0"))) == ()
        assert audio_codecs(parse("v=0\n")) == ()

    @pytest.mark.parametrize(
        ("answer", "name"),
        [
            (["m=audio 4000 RTP/AVP 8 101", "a=rtpmap:101 telephone-event/8000"], "PCMA"),
            (["m=audio 4000 RTP/AVP 101 13 19 18", "a=rtpmap:101 TELEPHONE-EVENT/8000"], "G729"),
            (["m=audio 0 RTP/AVP 8", "m=audio 4000 RTP/AVP 9"], "G722"),
            (["m=audio 4000 RTP/AVP 0", "m=audio 4002 RTP/AVP 9"], "PCMU"),
            (["m=video 4000 RTP/AVP 31", "m=audio 4000 RTP/AVP 3"], "GSM"),
            (["m=audio 4000 RTP/AVP 97", "a=rtpmap:97 iLBC/8000"], "iLBC"),
        ],
    )
    def test_the_negotiated_codec_is_the_first_real_one_that_was_accepted(
        self, answer: list[str], name: str
    ) -> None:
        codec = negotiated(parse("v=0\n" + "\n".join(answer)))
        assert codec is not None
        assert codec.name == name

    def test_what_the_answer_only_numbers_is_what_it_was_offered_as(self) -> None:
        offered = media(
            "a=rtpmap:96 opus/48000/2",
            "a=rtpmap:101 telephone-event/8000",
            line="m=audio 4000 RTP/AVP 0 96 101",
        )
        answered = media("a=rtpmap:98 iLBC/8000", line="m=audio 4000 RTP/AVP 101 96 97 98")
        assert [codec.name for codec in speech(answered)] == [None, None, None, "iLBC"]
        assert [codec.name for codec in speech(answered, offered)] == ["opus", None, "iLBC"]

    def test_without_a_real_codec_nothing_is_negotiated(self) -> None:
        for line in ("m=audio 0 RTP/AVP 0", "m=audio 4000 RTP/AVP 13", "m=audio 4000 RTP/AVP"):
            assert negotiated(parse(audio(line=line))) is None
        assert negotiated(parse("v=0\n")) is None

    def test_a_dynamic_type_that_the_answer_does_not_name_is_negotiated_without_a_name(
        self,
    ) -> None:
        assert negotiated(parse(audio(line="m=audio 4000 RTP/AVP 96 0"))) == Codec(96, None)


MIXED = (
    b"preamble\r\n--b1\r\nContent-Type: application/isup\r\n\r\n\x01\x02--b1\r\n"
    b"--b1\r\nContent-Disposition: session\r\ncontent-type:\r\n application/SDP;x=y\r\n\r\n"
    b"v=0\r\ns=-\r\n\r\n--b1--\r\nepilogue --b1\r\n"
)


class TestBodyOf:
    @pytest.mark.parametrize(
        "content_type", ["application/sdp", " Application/SDP ; charset=utf-8", "APPLICATION/SDP"]
    )
    def test_a_plain_body_is_itself(self, content_type: str) -> None:
        assert body_of(content_type, b"v=0\r\n") == b"v=0\r\n"

    @pytest.mark.parametrize("content_type", ["", "text/plain", "application/sdpx", "\u20ac;\xe9"])
    def test_another_type_has_none(self, content_type: str) -> None:
        assert body_of(content_type, b"v=0\r\n") is None

    @pytest.mark.parametrize(
        "parameter",
        ["boundary=b1", 'boundary="b1"', "BOUNDARY = b1", 'x="y";\r\n boundary=b1;z=1'],
    )
    def test_the_sdp_part_of_a_multipart_body_is_found(self, parameter: str) -> None:
        assert body_of(f"multipart/mixed;{parameter}", MIXED) == b"v=0\r\ns=-\r\n"

    @pytest.mark.parametrize(
        "content_type",
        ["multipart/mixed", "multipart/mixed;boundary=", "multipart/mixed;boundary=b2",
         'multipart/mixed;boundary=""', "multipart/mixed;boundary=" + "b" * 71],
    )  # fmt: skip
    def test_without_its_boundary_there_is_none(self, content_type: str) -> None:
        assert body_of(content_type, MIXED) is None

    def test_lines_may_end_in_lf_alone_and_the_last_delimiter_may_be_lost(self) -> None:
        wanted = b"v=0\ns=-\n"
        body = MIXED.replace(b"\r\n", b"\n")
        assert body_of("multipart/mixed;boundary=b1", body) == wanted
        cut = body[: body.index(wanted) + len(wanted)]
        assert body_of("multipart/mixed;boundary=b1", cut) == wanted

    def test_a_body_of_one_part_without_preamble_is_read(self) -> None:
        body = b"--b1  \r\nContent-Type: application/sdp\r\n\r\nv=0\r\n\r\n--b1--"
        assert body_of("multipart/mixed;boundary=b1", body) == b"v=0\r\n"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"--b1",
            b"--b1--",
            b"--b1--\r\n--b1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b1--",
            b"--b1\r\n\r\nv=0\r\n--b1--",
            b"--b1\r\nno header at all\r\n--b1--",
            b"--b1x\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b1x--",
            b" --b1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n",
            b"--b1\r\nContent-Type: application/sdp\r\nContent-Transfer-Encoding: base64\r\n\r\ndj0w",
        ],
    )
    def test_a_multipart_body_without_such_a_part_has_none(self, body: bytes) -> None:
        assert body_of("multipart/mixed;boundary=b1", body) is None

    def test_a_part_without_content_is_empty(self) -> None:
        body = b"--b1\r\nContent-Type: application/sdp\r\n--b1--"
        assert body_of("multipart/mixed;boundary=b1", body) == b""

    def test_multipart_in_multipart_is_followed_but_not_for_ever(self) -> None:
        body, kind = b"v=0\r\n", "application/sdp"
        for level in range(1, 6):
            mark = f"b{level}"
            body = f"--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode() + body
            body += f"\r\n--{mark}--\r\n".encode()
            kind = f"multipart/alternative;boundary={mark}"
            found = body_of(kind, body)
            assert found == (b"v=0\r\n" if level <= sdp.MAX_NESTING else None)

    def test_parts_are_capped(self) -> None:
        part = b"--b1\r\n\r\nx\r\n"
        sdp_part = b"--b1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n"
        for parts, found in ((sdp.MAX_PARTS - 1, b"v=0"), (sdp.MAX_PARTS, None)):
            body = part * parts + sdp_part
            assert body_of("multipart/mixed;boundary=b1", body + b"--b1--\r\n") == found
            assert (body_of("multipart/mixed;boundary=b1", body) is None) == (found is None)


def test_every_sdp_of_the_captures_has_an_audio_codec() -> None:
    seen: set[str] = set()
    for path in sorted(CORPUS.glob("*/*.pcap")):
        with path.open("rb") as file:
            bodies = [
                each.payload.partition(b"\r\n\r\n")[2]
                for each in pcap.Reader(file)
                if b"\nContent-Type: application/sdp" in each.payload
            ]
        for body in bodies:
            if body[:2] == b"v=":  # not cut by the capture agent, not over TCP
                codec = negotiated(parse(body))
                assert codec is not None
                seen.add(str(codec.name))
    assert {"PCMU", "G729"} <= seen


LINES = st.one_of(
    st.sampled_from(OFFER.splitlines()),
    st.builds(
        lambda letter, rest: f"{letter}={rest}",
        st.sampled_from("vocamst"),
        st.text(st.characters(max_codepoint=255), max_size=30),
    ),
    st.builds(
        lambda name, rest: f"a={name}:{rest}",
        st.sampled_from(["rtpmap", "fmtp", "ptime", "rtcp", "crypto"]),
        st.text("0123456789 /abc\xb2IN", max_size=20),
    ),
)


class TestHostileBytes:
    @given(st.one_of(st.binary(max_size=300), st.lists(LINES, max_size=30).map("\n".join)))
    def test_anything_gives_a_description_or_sdp_error(self, body: bytes | str) -> None:
        try:
            got = parse(body)
        except SdpError as error:
            known = error.why in sdp.WHYS
        else:
            known = True
            codec = negotiated(got)
            assert codec is None or codec.name is None or codec.name in audio_codecs(got)
            for each in got.media:
                assert all(name.isascii() and name.isprintable() for name in each.formats)
        assert known

    @given(
        st.one_of(st.text(max_size=60), st.just("multipart/mixed;boundary=b1")),
        st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(MIXED.split(b"\r\n")))
                  .map(b"\r\n".join)),
    )  # fmt: skip
    def test_any_multipart_gives_a_piece_of_itself_or_none(
        self, content_type: str, body: bytes
    ) -> None:
        found = body_of(content_type, body)
        assert found is None or found in body
