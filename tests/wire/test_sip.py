import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipsidecar.wire import hep, pcap, sip
from sipsidecar.wire.sip import Message, NameAddr, Reason, SipError, Uri, Via

CORPUS = Path(__file__).parent.parent / "corpus"
LINES = (
    b"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa",
    b'From: "Alice" <sip:alice@example.com>;tag=from1',
    b"To: <sip:bob@example.net>",
    b"Call-ID: 1@example.com",
    b"CSeq: 1 INVITE",
)
START = b"INVITE sip:bob@example.net SIP/2.0"


def message(
    *more: bytes,
    start: bytes = START,
    via: bytes | None = LINES[0],
    sender: bytes | None = LINES[1],
    receiver: bytes | None = LINES[2],
    call_id: bytes | None = LINES[3],
    cseq: bytes | None = LINES[4],
    body: bytes = b"",
    end: bytes = b"\r\n",
) -> bytes:
    """An INVITE whose lines can be exchanged or (None) left out."""
    lines = [start, *more, via, sender, receiver, call_id, cseq, b"", body]
    return end.join(line for line in lines if line is not None)


def parse(*more: bytes, **changes: Any) -> Message:
    return sip.parse(message(*more, **changes))


def why(payload: bytes) -> str:
    with pytest.raises(SipError) as caught:
        sip.parse(payload)
    assert caught.value.why in sip.WHYS
    return caught.value.why


def address(raw: bytes) -> NameAddr:
    found = sip.name_addr(raw)
    assert found is not None
    return found


def uri(raw: str) -> Uri:
    found = sip.uri(raw)
    assert found is not None
    return found


def hep_sip_payloads(path: Path) -> list[bytes]:
    payloads = []
    with path.open("rb") as file:
        for captured in pcap.Reader(file):
            packet = hep.decode(captured.payload)
            if packet.kind is hep.Kind.SIP:
                payloads.append(packet.payload)
    return payloads


MALFORMED = hep_sip_payloads(CORPUS / "kamailio/l_malformed.pcap")
TORTURE_FILES = sorted((CORPUS / "rfc4475").glob("*.dat"))
REAL = [
    payload
    for name in ("a_answered", "d_auth", "f_reinvite", "j_failover", "k_tls_sip")
    for payload in hep_sip_payloads(CORPUS / f"kamailio/{name}.pcap")
]
SEEDS = REAL[::7] + MALFORMED + [path.read_bytes() for path in TORTURE_FILES]


def test_every_why_that_the_source_raises_is_announced() -> None:
    source = Path(sip.__file__).read_text()
    assert set(re.findall(r'SipError\("([a-z-]+)"\)', source)) == sip.WHYS


class TestStartLine:
    def test_a_request_has_method_and_uri_and_no_status(self) -> None:
        invite = parse()
        assert (invite.status, invite.phrase) == (None, "")
        assert (invite.method, invite.ruri) == ("INVITE", "sip:bob@example.net")

    def test_a_response_takes_its_method_from_cseq(self) -> None:
        ringing = parse(start=b"SIP/2.0 180 Ringing")
        assert (ringing.status, ringing.phrase) == (180, "Ringing")
        assert (ringing.method, ringing.ruri) == ("INVITE", "")

    @pytest.mark.parametrize("start", [b"SIP/2.0 200", b"SIP/2.0 200 ", b"sip/2.0\t200\t"])
    def test_a_response_may_lack_its_phrase(self, start: bytes) -> None:
        for end in (b"\r\n", b"\n"):
            ok = parse(start=start, end=end)
            assert (ok.status, ok.phrase) == (200, "")

    @pytest.mark.parametrize("status", [b"100", b"699"])
    def test_first_and_last_status_are_read(self, status: bytes) -> None:
        assert parse(start=b"SIP/2.0 " + status + b" x").status == int(status)

    @pytest.mark.parametrize(
        "start",
        [
            b"SIP/2.0 99 x", b"SIP/2.0 700 x", b"SIP/2.0 20a x", b"SIP/2.0 2000 x", b"SIP/2.0",
            b"SIP/2.0 \xd9\xa2\xd9\xa0\xd9\xa0 OK", b"SIP/2.0 2_0 OK", b"SIP/3.0 200 OK",
            b"SIP/2.0200 OK", b"SIP/2.0 4294967301 better not break the receiver",
            b"INVITE sip:bob@example.net SIP/3.0", b"INVITE sip:bob@example.net SIP/2.00",
            b"INVITE sip:bob@example.net", b"INVITE SIP/2.0", b"INVITE  SIP/2.0", b"INVITE",
            b"INV\xc3\x8fTE sip:a SIP/2.0", b"IN/VITE sip:a SIP/2.0", b"GET / HTTP/1.1",
            b" INVITE sip:a SIP/2.0", b"A" * 65 + b" sip:a SIP/2.0", b"\0",
        ],
    )  # fmt: skip
    def test_what_is_no_start_line_is_refused(self, start: bytes) -> None:
        assert why(message(start=start)) == "start-line"

    def test_an_empty_datagram_is_refused(self) -> None:
        assert {why(b""), why(b"\r\n\r\n"), why(START), why(b"\0\0\0\0")} == {"start-line"}

    def test_a_lower_case_method_is_the_same_method(self) -> None:
        assert parse(start=b"invite sip:a sip/2.0", cseq=b"CSeq: 1 Invite").method == "INVITE"

    def test_the_method_and_uri_may_be_set_apart_by_any_blanks(self) -> None:
        assert parse(start=b"INVITE \t sip:a@b; lr \t SIP/2.0  ").ruri == "sip:a@b; lr"

    def test_empty_lines_in_front_are_skipped(self) -> None:
        assert sip.parse(b"\r\n\r\n\n" + message()) == parse()

    def test_phrase_and_uri_are_cut_at_their_cap(self) -> None:
        assert len(parse(start=b"SIP/2.0 200 " + b"x" * 60_000).phrase) == sip.MAX_TEXT
        assert len(parse(start=b"INVITE sip:" + b"x" * 60_000 + b" SIP/2.0").ruri) == sip.MAX_TEXT


class TestHead:
    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_either_line_end_will_do(self, end: bytes) -> None:
        found = parse(b"Subject: x", end=end, body=b"v=0\r\n\r\nx")
        assert found.body == b"v=0\r\n\r\nx"
        assert found.values("subject") == [b"x"]
        assert (found.to_tag, found.branch, found.truncated) == ("", "z9hG4bKa", False)

    def test_line_ends_may_be_mixed(self) -> None:
        mixed = message().replace(b"\r\n", b"\n", 3) + b"body"
        assert sip.parse(mixed).body == b"body"
        assert sip.parse(message(end=b"\n")[:-1] + b"\r\nbody").body == b"body"

    def test_the_first_empty_line_ends_the_head_whichever_kind_it_is(self) -> None:
        assert parse(body=b"a\n\nb\r\n\r\nc").body == b"a\n\nb\r\n\r\nc"
        assert parse(end=b"\n", body=b"a\r\n\r\nb").body == b"a\r\n\r\nb"

    def test_a_lone_carriage_return_begins_no_line(self) -> None:
        assert parse(b"X-Note: a\rCall-ID: evil").call_id == "1@example.com"

    @pytest.mark.parametrize("fold", [b"\r\n ", b"\n\t", b"\r\n \t  ", b"\r\n \r\n "])
    def test_a_folded_line_is_one_header(self, fold: bytes) -> None:
        folded = parse(
            b"Subject: one" + fold + b"two",
            b"X-Via:" + fold + b"Via: SIP/2.0/UDP evil",
            sender=b"From:" + fold + b"<sip:a@b>" + fold + b";tag" + fold + b"=" + fold + b"t1",
            cseq=b"CSeq: 1" + fold + b"INVITE",
        )
        assert folded.values("subject") == [b"one" + b" " * fold.count(b"\n") + b"two"]
        assert (folded.from_tag, folded.cseq, folded.via_count) == ("t1", 1, 1)

    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_a_line_without_colon_is_no_header(self, end: bytes) -> None:
        no_headers = [b"Call-ID", b"Subject", b"CALL-Id", b"Via", b"foobar roobar"]
        found = parse(*no_headers, cseq=end.join([LINES[4], *no_headers]), end=end)
        assert (found.call_id, found.via_count) == ("1@example.com", 1)
        assert found.values("call-id") == [b"1@example.com"]
        assert found.values("subject") == []

    def test_a_head_without_end_is_truncated_and_its_last_line_is_not_believed(self) -> None:
        head = message(b"Subject: whole").removesuffix(b"\r\n")
        cut = sip.parse(head + b"Subject: a cut li")
        assert (cut.values("subject"), cut.body, cut.truncated) == ([b"whole"], b"", True)
        assert sip.parse(head).truncated

    def test_a_cut_before_the_needed_headers_tells_which_is_missing(self) -> None:
        reasons = {why(message()[:length]) for length in range(len(message()) - 2)}
        assert reasons == {"start-line", "call-id", "cseq"}

    def test_lines_beyond_the_cap_are_not_seen(self) -> None:
        filling = [b"X-%d: x" % i for i in range(sip.MAX_LINES)]
        assert why(message(*filling)) == "call-id"
        found = sip.parse(message().removesuffix(b"\r\n") + b"\r\n".join([*filling, b"", b""]))
        last = sip.MAX_LINES - len(LINES) - 2
        assert found.values(f"x-{last}") == [b"x"]
        assert found.values(f"x-{last + 1}") == []

    def test_headers_of_60_kilobytes_are_read(self) -> None:
        for size in (20_000, 60_000):
            big = parse(b"X-Big: " + b"x" * size, b"Subject: y" + b"y" * size)
            assert [len(value) for value in big.values("x-big")] == [size]
            subject = big.first("subject")
            assert subject is not None
            assert len(subject) == sip.MAX_TEXT

    def test_parsing_keeps_the_head_as_it_came(self) -> None:
        assert message(body=b"x").startswith(parse(body=b"x").head)


class TestHeaderNames:
    @pytest.mark.parametrize("spell", [bytes.lower, bytes.upper, bytes.title, bytes.swapcase])
    @pytest.mark.parametrize("blank", [b"", b" ", b"\t "])
    def test_any_case_and_blanks_before_the_colon(
        self, spell: Callable[[bytes], bytes], blank: bytes
    ) -> None:
        lines = [spell(name) + blank + b":" + rest for name, _, rest in map(_colon, LINES)]
        found = sip.parse(b"\r\n".join([START, *lines, b"", b""]))
        assert _keys(found) == _keys(parse())

    def test_compact_names_are_the_long_ones(self) -> None:
        compact = parse(
            b"m: <sip:a@192.0.2.1>",
            b"L : 2",
            b"c: application/sdp",
            b"x: 1800;refresher=uac",
            b"K: timer",
            b"s:",
            b"n: z",
            via=b"v: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa",
            sender=b'f: "Alice" <sip:alice@example.com>;tag=from1',
            receiver=b"T: <sip:bob@example.net>",
            call_id=b"i: 1@example.com",
            body=b"ab",
        )
        assert _keys(compact) == _keys(parse()) | {"body": b"ab"}
        assert compact.values("contact") == [b"<sip:a@192.0.2.1>"]
        assert compact.first("content-type") == "application/sdp"
        assert compact.seconds("session-expires") == 1800
        assert compact.values("supported") == [b"timer"]
        assert compact.values("subject") == [b""]
        assert compact.values("identity-info") == [b"z"]

    def test_headers_nobody_knows_are_found_on_request(self) -> None:
        found = parse(b"X-Tenant: acme", b"x-TENANT :second ", b"Max-Forwards: 70", b": nameless")
        assert found.values("x-tenant") == [b"acme", b"second"]
        assert found.first("max-forwards") == "70"
        assert found.values("") == [b"nameless"]
        assert found.values("x-other") == found.values("diversion") == []

    def test_a_name_like_a_header_in_other_letters_is_another(self) -> None:
        assert why(message(call_id="\u0421all-ID: 1".encode())) == "call-id"
        assert parse("\u0421all-ID: 1".encode()).values("call-id") == [b"1@example.com"]

    def test_copies_beyond_the_cap_are_dropped(self) -> None:
        filling = [b"%s: %d" % (name, i) for name in (b"Reason", b"X-Y") for i in range(300)]
        found = parse(*filling)
        assert len(found.values("reason")) == len(found.values("x-y")) == sip.MAX_COPIES


class TestText:
    def test_what_is_not_utf_8_becomes_visible(self) -> None:
        assert sip.text("Müller 日本".encode()) == "Müller 日本"
        assert sip.text(b"Jos\xe9") == "Jos\\xe9"
        assert sip.text(b"a\0b\xff\0") == "a\\x00b\\xff\\x00"
        assert sip.text(b" \t\r\n") == ""

    def test_encoded_surrogates_stay_encodable(self) -> None:
        assert sip.text(b"\xed\xa0\x80").encode() == b"\\xed\\xa0\\x80"

    @pytest.mark.parametrize("size", [sip.MAX_TEXT, sip.MAX_TEXT + 1, 60_000])
    def test_text_is_cut_at_its_cap(self, size: int) -> None:
        assert sip.text(b"x" * size) == "x" * sip.MAX_TEXT

    def test_nul_and_latin_1_are_kept_apart_from_the_keys(self) -> None:
        found = parse(
            sender=b'From: "Jos\xe9 \\"x\\"" <sip:b\0b@192.0.2.9>;tag=t\0',
            call_id=b"Call-ID: a\0b\xe9",
        )
        assert (found.call_id, found.from_tag) == ("a\\x00b\\xe9", "t\\x00")
        sender = found.address("from")
        assert sender is not None
        assert (sender.display, sender.uri.user) == ('Jos\\xe9 "x"', "b\\x00b")


class TestKeys:
    def test_the_first_of_two_call_ids_counts(self) -> None:
        found = parse(call_id=b"Call-ID: first\r\ni: second")
        assert (found.call_id, found.values("call-id")) == ("first", [b"first", b"second"])

    def test_a_call_id_is_any_text_up_to_its_cap(self) -> None:
        assert parse(call_id=b"Call-ID: a@b;c=<d>, e").call_id == "a@b;c=<d>, e"
        longest = b"x" * sip.MAX_CALL_ID
        assert parse(call_id=b"Call-ID:" + longest).call_id == longest.decode()
        assert why(message(call_id=b"Call-ID: x" + longest)) == "call-id"
        assert why(message(call_id=b"Call-ID: " + b"\xff" * 200)) == "call-id"

    @pytest.mark.parametrize(
        ("gone", "reason"),
        [
            ("call_id", "call-id"), ("cseq", "cseq"), ("sender", "from"), ("receiver", "to"),
            ("via", "via"),
        ],
    )  # fmt: skip
    def test_a_missing_header_is_named(self, gone: str, reason: str) -> None:
        assert why(message(**{gone: None})) == reason  # type: ignore[arg-type] # by its name

    @pytest.mark.parametrize("value", [b"", b" ", b"\t"])
    def test_an_empty_call_id_cseq_or_via_is_missing(self, value: bytes) -> None:
        assert why(message(call_id=b"Call-ID:" + value)) == "call-id"
        assert why(message(cseq=b"CSeq:" + value)) == "cseq"
        assert why(message(via=b"Via:" + value)) == "via"

    @pytest.mark.parametrize(
        "cseq",
        [
            b"abc INVITE", b"1", b"INVITE", b"-1 INVITE", b"+1 INVITE", b"1_0 INVITE", b"1.0 INVITE",
            b"0x1 INVITE", b"4294967296 INVITE", b"00000000001 INVITE", b"1INVITE", b"1 INVITE x",
            b"1 IN(VITE", b"\xd9\xa3 INVITE", b"36893488147419103232 INVITE", b"1 BYE",
            b"1 " + b"A" * 65,
        ],
    )  # fmt: skip
    def test_a_bad_cseq_is_refused(self, cseq: bytes) -> None:
        assert why(message(cseq=b"CSeq: " + cseq)) == "cseq"

    @pytest.mark.parametrize("value", ["٣ INVITE", "\uff11 INVITE", "1\u00a0INVITE", "² INVITE"])
    def test_digits_and_blanks_of_other_alphabets_are_refused(self, value: str) -> None:
        assert why(message(cseq=b"CSeq: " + value.encode())) == "cseq"

    @pytest.mark.parametrize("cseq", [b"0 INVITE", b"0000000009\t INVITE", b"4294967295 INVITE "])
    def test_a_cseq_is_32_bits_and_a_method(self, cseq: bytes) -> None:
        assert parse(cseq=b"CSeq: " + cseq).cseq == int(cseq.split()[0])

    def test_a_response_may_answer_any_method(self) -> None:
        assert parse(start=b"SIP/2.0 200 OK", cseq=b"CSeq: 7 foo.bar!").method == "FOO.BAR!"


class TestTags:
    @pytest.mark.parametrize(
        ("value", "tag"),
        [
            (b"<sip:a@b>;tag=t1", "t1"),
            (b"<sip:a@b>;x=1;tag=t1;y", "t1"),
            (b"<sip:a@b>;tag=t1;tag=t2", "t1"),
            (b"<sip:a@b>;tag=;tag=t2", ""),
            (b"<sip:a@b>;tag", ""),
            (b"<sip:a@b>;tagged=t1", ""),
            (b"<sip:a@b>;xtag=t1", ""),
            (b"<sip:a@b>", ""),
            (b"", ""),
            (b";tag=t1", "t1"),
            (b"<sip:a@b> ; TAG = t1 ; x", "t1"),
            (b"<sip:a@b>;tag=t1 x", "t1"),
            (b"<sip:a@b>;tag=t1, <sip:c@d>;tag=t2", "t1"),
            (b"<sip:a@b>;tag=t1>", "t1"),
            (b"<sip:a@b;tag=evil>", ""),
            (b"<sip:a@b;tag=evil>;tag=t1", "t1"),
            (b'"x;tag=evil" <sip:a@b>;tag=t1', "t1"),
            (b'"<x>;tag=evil" <sip:a@b>;tag=t1', "t1"),
            (b'"<x>;tag=evil\\" <sip:e@e>;tag=evil" <sip:a@b>;tag=t1', "t1"),
            (b'";tag=evil" <sip:a@b>', ""),
            (b'"a \\"b\\\\" <sip:a@b>;tag=t1', "t1"),
            (b'"\\\\\\"<;,>" <sip:a@b>;tag=t1', "t1"),
            (b'Bob ">;tag=evil" <sip:a@b>;tag=t1', "t1"),
            (b'<sip:a@b>;x=";tag=evil";tag=t1', "t1"),
            (b'<sip:a@b>;x="\\";tag=evil";tag=t1', "t1"),
            (b'<sip:a@b>;tag="t 1";x', '"t 1"'),
            (b"Bell, Alexander <sip:a@b>;tag=t1", "t1"),
            (b"caller<sip:a@b>;tag=t1", "t1"),
            (b"a;tag=evil <sip:a@b>;tag=t1", "t1"),
            (b"sip:a@b;tag=t1", "t1"),
            (b"sip:a@b;user=phone ; tag=t1;x", "t1"),
            (b'sip:a@b;x=";tag=evil";tag=t1', "t1"),
            (b"tel:+1555;tag=t1", "t1"),
            (b'"Mr. J. User <sip:a@b>;tag=t1', "t1"),
            (b'"\\"\\"\\" <sip:a@b>;tag=t1', "t1"),
            (b"<sip:a@b;tag=evil", ""),
            ("<sip:a@b>;tag=é1".encode(), "é1"),
            (b"<sip:a@b>;tag=" + b"x" * 300, "x" * sip.MAX_TOKEN),
            (b'"' + b";" * 15_000 + b'" <sip:a@b>;tag=t1', "t1"),
        ],
    )  # fmt: skip
    def test_the_tag_is_the_header_parameter_and_nothing_else(self, value: bytes, tag: str) -> None:
        found = parse(sender=b"From: " + value, receiver=b"To:" + value)
        assert (found.from_tag, found.to_tag) == (tag, tag)


class TestVia:
    def test_the_top_via_keys_the_transaction(self) -> None:
        found = parse()
        assert (found.via_transport, found.branch) == ("udp", "z9hG4bKa")
        assert (found.parent_branch, found.via_count) == (None, 1)
        assert found.vias() == [Via("udp", "192.0.2.1:5060", "z9hG4bKa")]

    @pytest.mark.parametrize("comma", [b",", b" , ", b",\r\n ", b"\r\nVia: ", b"\r\nv:", b", ,,"])
    def test_vias_are_the_same_in_one_line_or_in_several(self, comma: bytes) -> None:
        vias = [b"SIP/2.0/TLS p.example:5061;branch=z9hG4bKp", LINES[0][5:], b"SIP/2.0/UDP c"]
        found = parse(via=b"Via: " + comma.join(vias))
        assert (found.via_transport, found.branch) == ("tls", "z9hG4bKp")
        assert (found.parent_branch, found.via_count) == ("z9hG4bKa", 3)
        assert [via.sent_by for via in found.vias()] == ["p.example:5061", "192.0.2.1:5060", "c"]

    @pytest.mark.parametrize(
        ("value", "via"),
        [
            (b"SIP  /   2.0 /UDP    a;branch=b1", Via("udp", "a", "b1")),
            (b"sip/2.0/wss a ; BRANCH = b1 ; x", Via("wss", "a", "b1")),
            (b"SIP/2.0/TCP\ta : 5060;branch=b1", Via("tcp", "a:5060", "b1")),
            (b"SIP/2.0/SCTP [2001:db8::1]:5060;branch=b1", Via("sctp", "[2001:db8::1]:5060", "b1")),
            (b"SIP/2.0/UDP a;received=192.0.2.9;rport=5;branch=b1;x", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a;maddr=B.example;branch=b1", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a;branch=b1 ;rport", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a;branch=b1;branch=b2", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a;Branch=b1;branch=b2", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a; branch=b1;branch=b2", Via("udp", "a", "b1")),
            (b"SIP/2.0/UDP a;branch=;branch=b2", Via("udp", "a", None)),
            (b"SIP/2.0/UDP a;xbranch=b1;branches=b2;branch", Via("udp", "a", None)),
            (b"SIP/2.0/UDP a;branch=" + b"x" * 300 + b";branch=b", Via("udp", "a", "x" * 256)),
            (b'SIP/2.0/UDP a;x=";branch=evil";branch=b1', Via("udp", "a", "b1")),
            (b'SIP/2.0/UDP a;x="\\",;branch=evil";branch=b1', Via("udp", "a", "b1")),
            (b'SIP/2.0/UDP a;branch="b 1"', Via("udp", "a", '"b 1"')),
            (b"SIP/2.0/UDP a;branch=b\0\xff", Via("udp", "a", "b\\x00\\xff")),
            (b"SIP/2.0/UDP a;branch=z9hG4bK", Via("udp", "a", None)),
            (b"SIP/2.0/UDP a;branch=z9hG4bK;x", Via("udp", "a", None)),
            (b"SIP/2.0/UDP a:70000;branch=z9hG4bK-", Via("udp", "a:70000", "z9hG4bK-")),
            (b"SIP/2.0/X-!7 a_b.example", Via("x-!7", "a_b.example", None)),
            (b"SIP/7.0/UDP a", Via("udp", "a", None)),
            (b"SIP/2.0/UDP " + b"a" * 300, Via("udp", "a" * 256, None)),
            (b"SIP/2.0/UDP " + b"a" * 300 + b";branch=b1", Via("udp", "a" * 256, "b1")),
        ],
    )  # fmt: skip
    def test_a_via_is_read_as_it_comes(self, value: bytes, via: Via) -> None:
        found = parse(via=b"Via: " + value)
        assert found.vias() == [via]
        assert found.via_transport == via.transport
        assert found.branch == (via.branch or f"sent-by {via.sent_by}")

    @pytest.mark.parametrize(
        "value",
        [
            b"SIP/2.0/UDP", b"SIP/2.0/UDP ;branch=b", b"SIP/2.0 a", b"UDP a", b"HTTP/1.1/TCP a",
            b"SIP/2.0/" + b"A" * 17 + b" a", b"SIP/2,0/UDP a", b"SIP/\xd9\xa2/UDP a", b",", b" , ,",
            b"\0", b'"', b'"SIP/2.0/UDP a, SIP/2.0/UDP b"',
        ],
    )  # fmt: skip
    def test_a_senseless_top_via_is_refused(self, value: bytes) -> None:
        assert why(message(via=b"Via: " + value)) == "via"

    def test_a_senseless_via_below_is_left_out(self) -> None:
        found = parse(via=LINES[0] + b", nonsense, SIP/2.0/UDP c;branch=b3")
        assert (found.branch, found.parent_branch, found.via_count) == ("z9hG4bKa", None, 3)
        assert [via.branch for via in found.vias()] == ["z9hG4bKa", "b3"]

    def test_a_parent_of_rfc_2543_is_keyed_by_its_sent_by(self) -> None:
        assert parse(via=LINES[0] + b",SIP/2.0/UDP c:5062").parent_branch == "sent-by c:5062"

    def test_vias_beyond_the_cap_are_dropped(self) -> None:
        found = parse(via=b"Via: " + b",".join([b"SIP/2.0/UDP a;branch=b"] * 600))
        assert found.via_count == len(found.vias()) == sip.MAX_COPIES
        found = parse(*[b"v:SIP/2.0/UDP a,SIP/2.0/UDP b"] * 200)
        assert found.via_count == len(found.vias()) == sip.MAX_COPIES


class TestBody:
    @pytest.mark.parametrize("name", [b"Content-Length", b"l", b"CONTENT-LENGTH "])
    def test_bytes_beyond_the_content_length_are_another_message(self, name: bytes) -> None:
        found = parse(name + b": 3", body=b"abcdef")
        assert (found.body, found.truncated) == (b"abc", False)

    def test_a_body_shorter_than_its_content_length_is_truncated(self) -> None:
        found = parse(b"Content-Length: 7", body=b"abcdef")
        assert (found.body, found.truncated) == (b"abcdef", True)
        assert not parse(b"Content-Length:   6", body=b"abcdef").truncated

    @pytest.mark.parametrize(
        "value",
        [
            b"", b"-5", b"+3", b"3x", b"3 3", b"1_0", b"0x3", b"3.0", b"1000000000", b"9" * 5000,
            b"\xd9\xa3", b"three",
        ],
    )  # fmt: skip
    def test_a_senseless_content_length_counts_for_nothing(self, value: bytes) -> None:
        found = parse(b"Content-Length: " + value, body=b"abcdef")
        assert (found.body, found.truncated) == (b"abcdef", False)

    def test_two_content_lengths_count_for_nothing(self) -> None:
        found = parse(b"Content-Length: 3", b"l: 5", body=b"abcdef")
        assert (found.body, found.truncated) == (b"abcdef", False)

    def test_a_body_may_be_anything(self) -> None:
        assert parse(body=b"\0\xff\r\n\r\nVia: x").body == b"\0\xff\r\n\r\nVia: x"


class TestUri:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            ("sip:bob@example.net", Uri("sip", "bob", "example.net", None, "")),
            ("SIPS:Bob@Example.NET:5061", Uri("sips", "Bob", "example.net", 5061, "")),
            ("sip:example.net", Uri("sip", None, "example.net", None, "")),
            ("sip:@example.net", Uri("sip", None, "example.net", None, "")),
            ("sip:bob:secret@h:5060", Uri("sip", "bob", "h", 5060, "")),
            ("sip:bob@h;transport=tcp;lr", Uri("sip", "bob", "h", None, "transport=tcp;lr")),
            ("sip:bob@h:5060;lr?a=b", Uri("sip", "bob", "h", 5060, "lr?a=b")),
            ("sip:bob@h?a=b@c", Uri("sip", "bob", "h", None, "?a=b@c")),
            ("sip:+1555;phone-context=x;y@h;user=phone", Uri("sip", "+1555;phone-context=x;y", "h",
                                                             None, "user=phone")),
            ("sip:a?b;c:d@h", Uri("sip", "a?b;c", "h", None, "")),
            ("sip:h;x=1", Uri("sip", None, "h", None, "x=1")),
            ("sip:bob@corp.example@192.0.2.1", Uri("sip", "bob@corp.example", "192.0.2.1", None, "")),
            ("sip:bob@h;x=a@b", Uri("sip", "bob", "h", None, "x=a@b")),
            ("sip:bob@[2001:DB8::1]:5060;lr", Uri("sip", "bob", "2001:db8::1", 5060, "lr")),
            ("sip:[::ffff:192.0.2.1]", Uri("sip", None, "::ffff:192.0.2.1", None, "")),
            ("sip:bob@[evil];x", Uri("sip", "bob", None, None, "[evil];x")),
            ("sip:bob@h:0", Uri("sip", "bob", "h", 0, "")),
            ("sip:bob@h:65536", Uri("sip", "bob", "h", None, "")),
            ("sip:bob@h:123456", Uri("sip", "bob", "h", None, ":123456")),
            ("sip:bob@h:٣", Uri("sip", "bob", "h", None, ":٣")),
            ("sip:bob@h:;x", Uri("sip", "bob", "h", None, ":;x")),
            ("sip:bob@a, sip:c@b", Uri("sip", "bob@a, sip", "b", None, "")),
            ("sip:bob@a, tel:+1", Uri("sip", "bob", "a", None, ", tel:+1")),
            ("sip:user@example.com; lr", Uri("sip", "user", "example.com", None, "lr")),
            ("sip:%75ser%40x@h", Uri("sip", "%75ser%40x", "h", None, "")),
            ("sip:", Uri("sip", None, None, None, "")),
            ("tel:+1-202-555-0101;phone-context=x", Uri("tel", "+1-202-555-0101", None, None,
                                                        "phone-context=x")),
            ("tel:", Uri("tel", None, None, None, "")),
            ("urn:service:sos.fire", Uri("urn", "service:sos.fire", None, None, "")),
            (" sip:bob@h ", Uri("sip", "bob", "h", None, "")),
        ],
    )  # fmt: skip
    def test_a_uri_has_parts(self, raw: str, expected: Uri) -> None:
        assert uri(raw) == expected

    @pytest.mark.parametrize(
        "raw",
        [
            "",
            "bob",
            "*",
            "bob@example.net",
            ":x",
            "1sip:x",
            "\u017fip:a@b",
            "a" * 33 + ":x",
            "<sip:a>",
        ],
    )
    def test_what_has_no_scheme_is_none(self, raw: str) -> None:
        assert sip.uri(raw) is None


class TestNameAddr:
    @pytest.mark.parametrize(
        ("raw", "display", "user", "params"),
        [
            (b"<sip:bob@h>", None, "bob", ""),
            (b"<sip:bob@h;lr>;tag=1;x", None, "bob", "tag=1;x"),
            (b"Bob B. <sip:bob@h> ; tag=1", "Bob B.", "bob", "tag=1"),
            (b"Bob<sip:bob@h>", "Bob", "bob", ""),
            (b'"Bob"<sip:bob@h>', "Bob", "bob", ""),
            (b'"" <sip:bob@h>', None, "bob", ""),
            (b'" " <sip:bob@h>', None, "bob", ""),
            (b'"a;tag=1 <x>, \\"b\\" \\\\" <sip:bob@h>;tag=2', 'a;tag=1 <x>, "b" \\', "bob", "tag=2"),
            (b"Bell, Alexander <sip:bob@h>", "Bell, Alexander", "bob", ""),
            (b'"Mr. J. User <sip:bob@h>', '"Mr. J. User', "bob", ""),
            (b"DOMAIN\\bob <sip:bob@h>", "DOMAIN\\bob", "bob", ""),
            (b'"Bob" sip:bob@h;tag=1', "Bob", "bob", "tag=1"),
            (b"sip:bob@h;tag=1", None, "bob", "tag=1"),
            (b"  sip:bob@h ", None, "bob", ""),
            (b"tel:+1555;tag=1", None, "+1555", "tag=1"),
            (b"<tel:+1555;x=y>;party=calling", None, "+1555", "party=calling"),
            (b"< sip:bob@h >", None, "bob", ""),
            (b"<sip:bob@h", None, "bob", ""),
            (b'"\\\xc3\xa9" <sip:bob@h>', "é", "bob", ""),
            (b'"\xe9\\\0" <sip:bob@h>', "\\xe9\\x00", "bob", ""),
            ("日本 <sip:bob@h>".encode(), "日本", "bob", ""),
        ],
    )  # fmt: skip
    def test_an_address_has_display_uri_and_parameters(
        self, raw: bytes, display: str | None, user: str, params: str
    ) -> None:
        found = address(raw)
        assert (found.display, found.uri.user, found.params) == (display, user, params)

    @pytest.mark.parametrize(
        "raw", [b"", b"*", b"bob", b"<>", b'"sip:a@b"', b'"a" <b>', b"<", b">"]
    )
    def test_what_holds_no_uri_is_none(self, raw: bytes) -> None:
        assert sip.name_addr(raw) is None
        assert parse(b"Contact: " + raw).address("contact") is None

    def test_identities_and_diversions_are_addresses(self) -> None:
        found = parse(
            b'P-Asserted-Identity: "Bob, B." <sip:+1@h>, <tel:+2>',
            b'Remote-Party-ID: "x" <sip:+3@h>;party=calling;privacy=off',
            b"Diversion: <sip:+4@h>;reason=unconditional;counter=1",
            b"diversion: <sip:+5@h>",
            b"P-Preferred-Identity: sip:+6@h",
        )
        asserted = found.address("p-asserted-identity")
        assert asserted is not None
        assert (asserted.display, asserted.uri.user) == ("Bob, B.", "+1")
        assert [address(v).uri.user for v in sip.split_values(found.values("p-asserted-identity")[0])
                ] == ["+1", "+2"]  # fmt: skip
        party = found.address("remote-party-id")
        assert party is not None
        assert (party.uri.user, party.params) == ("+3", "party=calling;privacy=off")
        assert [address(v).uri.user for v in found.values("diversion")] == ["+4", "+5"]
        preferred = found.address("p-preferred-identity")
        assert preferred is not None
        assert preferred.uri.user == "+6"
        assert found.address("referred-by") is None


class TestOtherHeaders:
    @pytest.mark.parametrize(
        ("raw", "parts"),
        [
            (b"a", [b"a"]),
            (b"", []),
            (b" , ", []),
            (b"a, b ,,c", [b"a", b"b", b"c"]),
            (b'"a,b" <sip:x,y@h>;z, c', [b'"a,b" <sip:x,y@h>;z', b"c"]),
            (b'"a\\",b", c', [b'"a\\",b"', b"c"]),
            (b'"a\\\\", b', [b'"a\\\\"', b"b"]),
            (b'a", b', [b'a"', b"b"]),
            (b'a\\", "b, c"', [b'a\\"', b'"b, c"']),
            (b"<a, b", [b"<a, b"]),
            (b"a>, b", [b"a>", b"b"]),
            (b'"<", <a, b>, "c', [b'"<"', b"<a, b>", b'"c']),
        ],
    )
    def test_commas_in_quotes_and_angle_brackets_are_text(
        self, raw: bytes, parts: list[bytes]
    ) -> None:
        assert sip.split_values(raw) == parts

    def test_parts_beyond_the_caps_are_dropped(self) -> None:
        assert sip.split_values(b"a," * 1000) == [b"a"] * sip.MAX_COPIES
        longest = b"a" * sip.MAX_VALUE
        assert sip.split_values(longest + b",b") == [longest]

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (b'Q.850;cause=16;text="Terminated"', Reason("Q.850", 16, "Terminated")),
            (b'SIP ; CAUSE = 200 ; Text = "Call completed elsewhere" ', Reason(
                "SIP", 200, "Call completed elsewhere")),
            (b'SIP;text="a, b; cause=1 \\"c\\"";cause=2', Reason("SIP", 2, 'a, b; cause=1 "c"')),
            (b'SIP;cause="487";text=no quotes ;x', Reason("SIP", 487, "no quotes")),
            (b"SIP", Reason("SIP", None, None)),
            (b"", Reason("", None, None)),
            (b";cause=3", Reason("", 3, None)),
            (b"SIP;cause;text", Reason("SIP", None, None)),
            (b'SIP;cause=;text=""', Reason("SIP", None, None)),
            (b"SIP;cause=-1", Reason("SIP", None, None)),
            (b"SIP;cause=1_0", Reason("SIP", None, None)),
            (b"SIP;cause=\xd9\xa3", Reason("SIP", None, None)),
            (b"SIP;cause=" + b"9" * 5000, Reason("SIP", None, None)),
            (b'SIP;text="open;cause=5', Reason("SIP", 5, '"open')),
            (b'SIP;text="', Reason("SIP", None, '"')),
            (b'SIP;text="Jos\xe9\0"', Reason("SIP", None, "Jos\\xe9\\x00")),
            (b"x" * 100, Reason("x" * 64, None, None)),
            (b"x" * 100 + b";cause=1", Reason("x" * 64, 1, None)),
            (b"SIP;text=" + b"x" * 9000, Reason("SIP", None, "x" * sip.MAX_TEXT)),
        ],
    )  # fmt: skip
    def test_a_reason_has_protocol_cause_and_text(self, raw: bytes, reason: Reason) -> None:
        assert sip.parse_reasons([raw] if raw else []) == ([reason] if raw else [])

    def test_reasons_come_in_one_line_or_in_several(self) -> None:
        found = parse(
            b'Reason: SIP;cause=487;text="a, b;c", Q.850;cause=31', b"Reason:", b"reason: X;cause=1"
        )
        assert [(r.protocol, r.cause) for r in found.reasons()] == [
            ("SIP", 487), ("Q.850", 31), ("X", 1)
        ]  # fmt: skip
        assert found.reasons()[0].text == "a, b;c"
        assert parse().reasons() == ()

    def test_reasons_beyond_the_cap_are_dropped(self) -> None:
        assert len(parse(b"Reason: " + b"SIP," * 5000).reasons()) == sip.MAX_REASONS
        assert len(parse(*[b"Reason: SIP"] * 20).reasons()) == sip.MAX_REASONS

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (b"1800", 1800), (b"1800;refresher=uac", 1800), (b"120 (in a meeting)", 120),
            (b"18000;duration=3600", 18000), (b"0", 0), (b"007", 7), (b"10,20", 10),
            (b"", None), (b"x", None), (b"-1", None), (b"1_0", None), (b"1.5", None), (b"12h", None),
            (b"1000000000", None), (b"\xd9\xa3", None), (b";5", None), (b"9" * 5000, None),
        ],
    )  # fmt: skip
    def test_seconds_are_leading_digits(self, value: bytes, seconds: int | None) -> None:
        found = parse(b"Session-Expires: " + value, b"Retry-After: " + value)
        assert found.seconds("session-expires") == found.seconds("retry-after") == seconds
        assert found.seconds("expires") is None

    def test_the_agents_are_texts(self) -> None:
        found = parse(b"User-Agent: A (b; c) \xe9", b"Server:", b"Subject:   ")
        assert found.first("user-agent") == "A (b; c) \\xe9"
        assert (found.first("server"), found.first("subject")) == (None, None)
        assert found.first("x-none") is None


# ------------------------------------------------------------------------------ whole real messages


def _seen(found: Message) -> dict[str, Any]:
    """What a case of the tables below may name."""
    target = sip.uri(found.ruri)
    sender, receiver = found.address("from"), found.address("to")
    contact = found.address("contact")
    return {
        "status": found.status,
        "phrase": found.phrase,
        "method": found.method,
        "ruri": target and (target.user, target.host, target.params),
        "scheme": target and target.scheme,
        "call_id": found.call_id,
        "cseq": found.cseq,
        "tags": (found.from_tag, found.to_tag),
        "branch": found.branch,
        "parent": found.parent_branch,
        "transport": found.via_transport,
        "vias": found.via_count,
        "truncated": found.truncated,
        "body": len(found.body),
        "from": sender and (sender.display, sender.uri.user, sender.uri.host),
        "to": receiver and (receiver.display, receiver.uri.user, receiver.uri.host),
        "contact": contact
        and (contact.display, contact.uri.user, contact.uri.params, contact.params),
    }


def _outcome(payload: bytes, expected: dict[str, Any] | str) -> dict[str, Any] | str:
    try:
        seen = _seen(sip.parse(payload))
    except SipError as error:
        return error.why
    return {key: seen[key] for key in expected} if isinstance(expected, dict) else seen


def _malformed(case: str, **more: Any) -> dict[str, Any]:
    return {
        "status": None, "method": "INVITE", "ruri": ("nonum", "kam.test", ""),
        "call_id": f"l-{case}", "cseq": 1, "tags": (f"tl-{case}", ""), "branch": f"z9hG4bKl-{case}",
        "parent": None, "vias": 1, "body": 0, "truncated": False,
        "from": (None, "bob", "127.10.0.9"), "to": (None, "nonum", "kam.test"),
    } | more  # fmt: skip


def _answer(case: str, status: int, to_tag: str, **more: Any) -> dict[str, Any]:
    if len(to_tag) == 8:
        to_tag = f"4523806027763c7971ed50390dea55f8.{to_tag}"
    tags = (f"tl-{case}", to_tag)
    return _malformed(case, status=status, ruri=None, tags=tags, **more)


DISPLAYS = {"from": ("José 日本", "bob", "127.10.0.9"), "to": ("M\\xfcller", "nonum", "kam.test")}
IN_DIALOG = {"tags": ("tl-bye", "zz"), "method": "BYE"}
MALFORMED_CASES: list[tuple[str, dict[str, Any] | str]] = [
    ("truncated mid header", "cseq"),
    ("no Call-ID", "call-id"),
    ("bad CSeq", "cseq"),
    ("its 400, which repeats the bad CSeq", "cseq"),
    ("CSeq method mismatch", "cseq"),
    ("its 400", _answer("cseqmm", 400, "5be271bc", method="BYE")),
    ("no Via", "via"),
    ("no From", "from"),
    ("folded and compact headers", _malformed("compact", contact=(None, "bob", "transport=udp", ""))),
    ("its 404", _answer("compact", 404, "fbd224ba")),
    ("Content-Length too large", _malformed("cl", truncated=True)),
    ("its 400", _answer("cl", 400, "010d033c", phrase="Content-Length mis-match")),
    ("Content-Length negative", _malformed("cln")),
    ("LF only", _malformed("lf")),
    ("its 404", _answer("lf", 404, "28cf2afe")),
    ("odd case", _malformed("case")),
    ("its 404", _answer("case", 404, "32d5a0c5")),
    ("unknown method", _malformed("unk", method="FOOBAR")),
    ("its 404", _answer("unk", 404, "00d511c7", method="FOOBAR")),
    ("UTF-8 and Latin-1 displays", _malformed("utf", **DISPLAYS)),
    ("its 404", _answer("utf", 404, "40ee51fc", **DISPLAYS)),
    ("NUL in header", _malformed("nul", **{"from": (None, "b\\x00b", "127.10.0.9")})),
    ("its 404", _answer("nul", 404, "5b4f4a5d", **{"from": (None, "b\\x00b", "127.10.0.9")})),
    ("20 kB of header", _malformed("big")),
    ("its 404", _answer("big", 404, "4f3d5e2f")),
    ("60 kB message", _malformed("huge")),
    ("its 404", _answer("huge", 404, "3398a188")),
    ("response nobody waits for", _malformed("stray", status=200, ruri=None, tags=("1", "2"), **{
        "from": (None, "a", "b"), "to": (None, "c", "d"), "branch": "z9hG4bKstray", "vias": 2,
        "parent": "z9hG4bKl-stray"})),
    ("the same, forwarded", _malformed("stray", status=200, ruri=None, tags=("1", "2"), **{
        "from": (None, "a", "b"), "to": (None, "c", "d")})),
    ("Max-Forwards 0", _malformed("mf0")),
    ("its 483", _answer("mf0", 483, "1cc30dd1", phrase="Too Many Hops")),
    ("BYE of no dialog", _malformed("bye", **IN_DIALOG)),
    ("its 404", _answer("bye", 404, "zz", method="BYE")),
    ("stray ACK", _malformed("ack", method="ACK", tags=("tl-ack", "zz"))),
    ("two Call-IDs", _malformed("dup")),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(MALFORMED_CASES)))
def test_what_kamailio_mirrors_of_malformed_datagrams_is_read_or_named(index: int) -> None:
    case, expected = MALFORMED_CASES[index]
    assert (case, _outcome(MALFORMED[index], expected)) == (case, expected)


def test_no_malformed_message_is_left_out() -> None:
    assert len(MALFORMED_CASES) == len(MALFORMED)


USUAL: dict[str, Any] = {
    "status": None, "method": "INVITE", "ruri": ("user", "example.com", ""), "parent": None,
    "vias": 1, "transport": "udp", "truncated": False, "branch": "z9hG4bKkdjuw",
}  # fmt: skip


def _torture(*tags: str, **more: Any) -> dict[str, Any]:
    method = {} if "method" in more or "status" in more else {"method": "INVITE"}
    return USUAL | method | {"tags": tags} | more


CALLER = {"from": (None, "caller", "example.net")}
LONG = "amazinglylongcallername" * 5
TORTURE: dict[str, dict[str, Any] | str] = {
    # 3.1.1 Valid messages
    "wsinv": _torture(
        "98asjd8", "1918181833n", cseq=9, branch="390skdjuw", parent="z9hG4bK9ikj8", vias=3,
        ruri=("vivekg", "chair-dnrc.example.com", "unknownparam"), body=150,
        call_id="wsinv.ndaksdj@192.0.2.1",
        **{"from": ('J Rosenberg \\"', "jdrosen", "example.com"),
           "to": (None, "vivekg", "chair-dnrc.example.com")},
        contact=('Quoted string ""', "jdrosen", "",
                 "newparam = newvalue ; secondparam ; q = 0.33"),
    ),
    "intmeth": _torture(
        "_token~1'+`*%!-.", "", method="!INTERESTING-METHOD0123456789_*+`.%INDEED'~",
        cseq=139122385, transport="tcp", branch="z9hG4bK-.!%66*_+`'~", body=0,
        call_id="intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{",
        ruri=("1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*", "example.com", ""),
        **{"from": ("token1~` token2'+_ token3*%!.-", "mundane", "example.com"),
           "to": ("BEL:\a NUL:\\x00 DEL:\x7f",
                  "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*", "example.com")},
    ),
    "esc01": _torture(
        "938", "", cseq=234234, ruri=("sips%3Auser%40example.com", "example.net", ""), body=150,
        **{"from": (None, "I%20have%20spaces", "example.net"),
           "to": (None, "%75se%72", "example.com")},
        contact=(None, "cal%6Cer", "%6C%72;n%61me=v%61lue%25%34%31", ""),
    ),
    "escnull": _torture(
        "839923423", "", method="REGISTER", ruri=(None, "example.com", ""), cseq=14398234,
        contact=(None, "%00", "", ""), to=(None, "null-%00-null", "example.com"),
    ),
    "esc02": _torture(
        "f232jadfj23", "", method="RE%47IST%45R", ruri=(None, "registrar.example.com", ""),
        cseq=29344, transport="tcp", branch="z9hG4bK209%fzsnel234",
        to=("%Z%45", "resource", "example.com"), contact=(None, "alias1", "", ""),
    ),
    "lwsdisp": _torture("323", "", method="OPTIONS", cseq=60,
                        **{"from": ("caller", "caller", "example.com")}),
    "longreq": _torture(
        "12" + "982" * 50 + "424", "", cseq=3882340, transport="tcp", vias=34, body=150,
        call_id="longreq.one" + "really" * 20 + "longcallid", branch="sent-by sip33.example.com",
        parent="sent-by sip32.example.com", contact=(None, LONG, "", ""),
        **{"from": (None, LONG, "example.net"),
           "to": ("I have a user name of " + "extreme" * 10 + " proportion", "user",
                  "example.com")},
    ),
    "dblreq": _torture(
        "43251j3j324", "", method="REGISTER", ruri=(None, "example.com", ""), cseq=8, body=0,
        branch="z9hG4bKkdjuw23492", call_id="dblreq.0ha0isndaksdj99sdfafnl3lk233412",
    ),
    "semiuri": _torture(
        "33242", "", method="OPTIONS", ruri=("user;par=u%40example.net", "example.com", ""),
        cseq=8,
    ),
    "transports": _torture("323", "", method="OPTIONS", parent="z9hG4bKklasjdhf", vias=5, cseq=60),
    "mpart01": _torture(
        "2fb0dcc9", "", method="MESSAGE", ruri=("kumiko", "example.org", ""), cseq=1, body=553,
        branch="z9hG4bK-d87543-4dade06d0bdb11ee-1--d87543-",
        call_id="3d9485ad0c49859b@Zmx1ZmZ5LW1hYy0xNi5sb2NhbA..",
    ),
    "unreason": _torture(
        "11141343", "2229", status=200, method="INVITE", ruri=None, branch="z9hG4bK1324923",
        phrase="= 2**3 * 5**2 но сто девяносто девять - простое", body=154,
    ),
    "noreason": _torture("39ansfi3", "902jndnke3", status=100, method="INVITE", ruri=None,
                         phrase="", branch="z9hG4bK2398ndaoe"),
    # 3.1.2 Invalid messages: what still keys a transaction is kept, for a call may hang on it
    "badinv01": _torture("134161461246", "", branch="sent-by 192.0.2.15", vias=2, body=152,
                         contact=("Joe", "joe", "", "")),
    "clerr": _torture("93942939o2", "", branch="z9hG4bK-39234-23523", truncated=True, body=154,
                      cseq=8),
    "ncl": _torture("32394234", "", cseq=0, body=154, **CALLER),
    "scalar02": "cseq",
    "scalarlg": "cseq",
    "quotbal": _torture("93334", "", branch="z9hG4bKkdjuw39234",
                        to=('"Mr. J. User', "j.user", "example.com")),
    "ltgtruri": _torture("39291", "", ruri=None, branch="sent-by 192.0.2.5", cseq=1),
    "lwsruri": _torture("231413434", "3xfe-9921883-z9f", ruri=("user", "example.com", "lr"),
                        cseq=2130706432, branch="z9hG4bKkdjuw2395", body=159),
    "lwsstart": _torture("8814", "", branch="z9hG4bKkdjuw3923", cseq=1893884),
    "trws": _torture("329429089", "", method="OPTIONS", ruri=("remote-target", "example.com", ""),
                     transport="tcp", branch="z9hG4bK299342093"),
    "escruri": _torture("341518", "", ruri=("user", "example.com", "?Route=%3Csip:example.com%3E"),
                        cseq=149209342),
    "baddate": _torture("2234923", "", cseq=1392934),
    "regbadct": _torture("998332", "", method="REGISTER", ruri=(None, "example.com", ""),
                         contact=(None, "user", "?Route=%3Csip:sip.example.com%3E", "")),
    "badaspec": _torture("433423", "", method="OPTIONS", ruri=("user", "example.org", ""),
                         branch="z9hG4bKkdju43234",
                         to=("Watson, Thomas", "t.watson", "example.org")),
    "baddn": _torture("43", "", method="OPTIONS", ruri=("t.watson", "example.org", ""),
                      **{"from": ("Bell, Alexander", "a.g.bell", "example.com")}),
    "badvers": "start-line",
    "mismatch01": "cseq",
    "mismatch02": "cseq",
    "bigcode": "start-line",
    # 3.2 Transaction layer
    "badbranch": _torture("33242", "", method="OPTIONS", branch="sent-by 192.0.2.1"),
    # 3.3 Application layer
    "insuf": "call-id",
    "unkscm": _torture("384", "", method="OPTIONS", ruri=("totallyopaquecontent", None, ""),
                       scheme="nobodyknowsthisscheme", transport="tcp",
                       branch="z9hG4bKkdjuw39234"),
    "novelsc": _torture("384", "", method="OPTIONS", ruri=("//192.0.2.103:3002", None, ""),
                        scheme="soap.beep", transport="tcp", branch="z9hG4bKkdjuw39234"),
    "unksm2": _torture("3234233", "", method="REGISTER", ruri=(None, "example.com", ""),
                       to=(None, "2983792873", None), contact=(None, "John_Smith", "", "")),
    "bext01": _torture("242etr", "", method="OPTIONS", transport="tls"),
    "invut": _torture("8392034", "", body=40, cseq=235448),
    "regaut01": _torture("87321hj23128", "", method="REGISTER", ruri=(None, "example.com", ""),
                         transport="tcp"),
    "multi01": _torture("3413415", "", ruri=("user", "company.com", ""), cseq=5,
                        call_id="multi01.98asdh@192.0.2.1", to=(None, "user", "example.com"),
                        contact=(None, "caller", "", ""), body=154),
    "mcl01": _torture("3923942", "", method="OPTIONS", branch="z9hG4bK293423", body=67),
    "bcast": _torture("11141343", "2229", status=200, method="INVITE", ruri=None,
                      branch="z9hG4bK1324923", parent="z9hG4bK1saber23", vias=2, body=154),
    "zeromf": _torture("3ghsd41", "", method="OPTIONS", branch="z9hG4bKkdjuw2349i"),
    "cparam01": _torture("DkfVgjkrtMwaerKKpe", "", method="REGISTER",
                         ruri=(None, "example.com", ""),
                         contact=(None, "+19725552222", "", "unknownparam")),
    "cparam02": _torture("838293", "", method="REGISTER", ruri=(None, "example.com", ""),
                         contact=(None, "+19725552222", "unknownparam", "")),
    "regescrt": _torture("8", "", method="REGISTER", ruri=(None, "example.com", ""),
                         contact=(None, "user", "?Route=%3Csip:sip.example.com%3E", "")),
    "sdp01": _torture("234", "", cseq=8, body=150),
    # 3.4 Backward compatibility
    "inv2543": _torture("", "", ruri=("UserB", "example.com", ""), cseq=56, body=105,
                        branch="sent-by iftgw.example.com",
                        **{"from": (None, "+13035551111", "ift.client.example.net"),
                           "to": (None, "+16505552222", "ss1.example.net")}),
    # In the archive of appendix A, not in the text: no SIP version, no CSeq, no Via
    "test": "start-line",
}  # fmt: skip


@pytest.mark.parametrize("path", TORTURE_FILES, ids=lambda path: path.stem)
def test_each_message_of_rfc_4475_is_read_or_named(path: Path) -> None:
    expected = TORTURE[path.stem]
    assert _outcome(path.read_bytes(), expected) == expected


def test_no_message_of_rfc_4475_is_left_out() -> None:
    assert {path.stem for path in TORTURE_FILES} == set(TORTURE)


# ---------------------------------------------------------------------------------------- anything


def _keys(found: Message) -> dict[str, Any]:
    names = (
        "status", "phrase", "method", "ruri", "call_id", "cseq", "from_tag", "to_tag", "branch",
        "parent_branch", "via_transport", "via_count", "body", "truncated",
    )  # fmt: skip
    return {name: getattr(found, name) for name in names}


def _colon(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, msgspec.Struct):
        return [said for name in value.__struct_fields__ for said in _texts(getattr(value, name))]
    if isinstance(value, (list, tuple)):
        return [said for each in value for said in _texts(each)]
    return []


def _everything(found: Message) -> list[object]:
    names = [*sorted(sip._KEPT), "subject", "x-tenant", "max-forwards"]
    return [
        found,
        sip.uri(found.ruri),
        found.vias(),
        found.reasons(),
        [found.first(name) for name in names],
        [found.address(name) for name in names],
        [found.seconds(name) for name in names],
        [sip.name_addr(part) for name in names for raw in found.values(name)
         for part in sip.split_values(raw)],
    ]  # fmt: skip


def _is_message_or_error(payload: bytes) -> bool:
    try:
        found = sip.parse(payload)
    except SipError as error:
        return error.why in sip.WHYS
    everything = _everything(found)
    for said in _texts(everything):
        assert "\0" not in said
        said.encode()
    assert everything == _everything(sip.parse(payload))
    return 0 < len(found.call_id) <= sip.MAX_CALL_ID and 0 <= found.cseq < 1 << 32


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A real message with flipped bits, cuts, splices and characters that mean something."""
    payload = bytearray(draw(st.sampled_from(SEEDS))[:4096])
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(payload)))
        match draw(st.integers(0, 4)):
            case 0 if at < len(payload):
                payload[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del payload[at : at + draw(st.integers(1, 40))]
            case 2:
                other = draw(st.sampled_from(SEEDS))
                start = draw(st.integers(0, len(other)))
                payload[at:at] = other[start : start + draw(st.integers(1, 80))]
            case 3:
                payload[at:at] = draw(st.sampled_from(b'\r\n \t:;,<>"\\=@/?[]\0\xff')).to_bytes()
            case _:
                del payload[at:]
    return bytes(payload)


@given(st.binary(max_size=300))
@example(b"\n\n")
@example(b"\r\n \r\n\r\n")
@example(START + b"\r\n:\r\n\r\n")
def test_any_bytes_are_a_message_or_the_one_error(payload: bytes) -> None:
    assert _is_message_or_error(payload)
    assert _is_message_or_error(message(payload))


@given(mutations())
def test_a_real_message_with_faults_is_a_message_or_the_one_error(payload: bytes) -> None:
    assert _is_message_or_error(payload)


@given(st.binary(max_size=200), st.sampled_from([b"", b"<sip:", b'"', b"SIP;", b"SIP/2.0/UDP a;"]))
def test_no_accessor_raises_on_any_value(value: bytes, front: bytes) -> None:
    raw = front + value
    sip.text(raw).encode()
    sip.name_addr(raw)
    sip.uri(sip.text(raw))
    sip.parse_reasons([raw])
    line = raw.replace(b"\r", b"").replace(b"\n", b"")
    for name in (b"Reason", b"Contact", b"Expires", b"X-Tenant", b"Content-Length"):
        assert _is_message_or_error(message(name + b": " + line))


ONE_AT_A_TIME = re.compile(rb"(?!)")


@given(mutations() | st.sampled_from(REAL))
@example(message(via=b"Via: SIP/2.0/UDP a;branch=;branch=b"))
@example(message(via=b"Via: SIP/2.0/UDP a;branch=b\0;branch=c"))
@example(message(sender=b"From: <sip:a@b>;tag=;tag=b"))
def test_the_usual_shapes_give_what_the_long_way_gives(payload: bytes) -> None:
    try:
        found = sip.parse(payload)
    except SipError as error:
        found, reason = None, error.why
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sip, "_USUAL_VIA", ONE_AT_A_TIME)
        patch.setattr(sip, "_USUAL_ADDRESS", ONE_AT_A_TIME)
        patch.setattr(sip, "_SPELLINGS", {})
        if found is None:
            assert why(payload) == reason
        else:
            assert sip.parse(payload) == found


COMPACT = {name: letter for letter, name in sip._COMPACT.items()}


def _respelled(payload: bytes, chance: random.Random) -> bytes:
    """The same message as another sender would write it."""
    head, _, body = payload.partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    ends = chance.choice([[b"\r\n"], [b"\n"], [b"\r\n", b"\n"]])
    written = [start + chance.choice(ends)]
    for line in lines:
        name, _, value = line.partition(b":")
        letter = COMPACT.get(name.decode().lower())
        if letter and chance.random() < 0.5:
            name = letter
        name = bytes(chance.choice((c, ord(chr(c).swapcase()))) for c in name)
        value = value.strip()
        if name.lower() in {b"via", b"v"}:
            value = value.replace(b"/", chance.choice([b"/", b" / "]), 2)
        if name.lower() in {b"via", b"v", b"from", b"f", b"to", b"t"} and b"<sip:" not in value:
            fold = chance.choice(ends) + chance.choice([b" ", b"\t ", b"    "])
            value = value.replace(b";", chance.choice([b";", fold + b";", b";" + fold]))
        blank = chance.choice([b"", b" ", chance.choice(ends) + b"  "])
        written.append(name + chance.choice([b":", b" :"]) + blank + value + chance.choice(ends))
    return b"".join(written) + chance.choice(ends) + body


@given(st.sampled_from(REAL), st.integers(0, 1 << 30))
def test_a_message_spelled_otherwise_has_the_same_keys(payload: bytes, seed: int) -> None:
    respelled = _respelled(payload, random.Random(seed))
    assert _keys(sip.parse(respelled)) == _keys(sip.parse(payload))


@given(st.sampled_from(REAL))
def test_a_real_message_cut_anywhere_never_gives_other_keys(payload: bytes) -> None:
    whole = sip.parse(payload)
    for length in range(0, len(payload), 3):
        try:
            cut = sip.parse(payload[:length])
        except SipError:
            continue
        assert (cut.call_id, cut.cseq, cut.method) == (whole.call_id, whole.cseq, whole.method)
        assert (cut.from_tag, cut.branch) == (whole.from_tag, whole.branch)
        assert cut.truncated


@pytest.mark.parametrize(
    "unit",
    [b",", b'"', b'""', b'\\"', b'"\\', b"<", b"<>", b";", b";tag=", b";branch=x", b"\r\n ", b" ", b"\r", b"@",
     b"\nVia:", b"\n:", b" SIP/2.0", b'""<>,', b"\xff", b"\0"],
)  # fmt: skip
def test_64_kilobytes_of_one_sign_are_read_to_the_end(unit: bytes) -> None:
    filling = unit * (64_000 // len(unit))
    for front in (b"", b"<sip:a@b>", b"SIP/2.0/UDP a", b'"', b'"" ', b"SIP;"):
        assert _is_message_or_error(START + front + filling)
        assert _is_message_or_error(message(start=b"INVITE " + filling + b" SIP/2.0"))
        for name in ("via", "sender"):
            line = {"via": b"Via: ", "sender": b"From: "}[name] + front + filling
            assert _is_message_or_error(message(**{name: line}))
        assert _is_message_or_error(message(b"Reason: " + front + filling))


def test_an_options_that_is_built_is_read_as_it_was_meant() -> None:
    raw = sip.build_options(
        ruri="sip:trunk.example.com;transport=tls",
        transport="tls",
        sent_by="[2001:db8::1]:40000",
        branch="z9hG4bKabc",
        call_id="one@here",
        from_uri="sip:sidecar@example.org",
        from_tag="t",
        to_uri="sip:trunk.example.com",
        contact="sip:sidecar@[2001:db8::1]:40000;transport=tls",
        user_agent="sipsidecar",
        cseq=7,
    )
    found = sip.parse(raw)
    assert (found.status, found.method, found.cseq) == (None, "OPTIONS", 7)
    assert found.ruri == "sip:trunk.example.com;transport=tls"
    assert found.vias() == [Via("tls", "[2001:db8::1]:40000", "z9hG4bKabc")]
    assert (found.call_id, found.from_tag, found.to_tag) == ("one@here", "t", "")
    assert found.first("max-forwards") == "70"
    assert found.first("accept") == "application/sdp"
    assert b";rport;" in found.values("via")[0]
    contact = found.address("contact")
    assert contact is not None
    assert (contact.uri.host, contact.uri.port) == ("2001:db8::1", 40000)
    assert not found.truncated
    assert found.body == b""
    assert raw.endswith(b"\r\n\r\n")
