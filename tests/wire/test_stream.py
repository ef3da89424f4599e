import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import hep, pcap, stream
from sipsidecar.wire.stream import SipStream, StreamMessage, is_whole

CORPUS = Path(__file__).parent.parent / "corpus"


def sip(
    start: bytes = b"INVITE sip:bob@example.net SIP/2.0",
    body: bytes = b"",
    length: bytes | None = None,
    name: bytes = b"Content-Length",
) -> bytes:
    head = start + b"\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK1\r\nCall-ID: 1@example.net\r\n"
    return head + name + b": " + (length or b"%d" % len(body)) + b"\r\n\r\n" + body


INVITE = sip(body=b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\n")
OK = sip(b"SIP/2.0 200 OK", b"v=0\r\n")
BYE = sip(b"BYE sip:bob@example.net SIP/2.0")
WITHOUT_LENGTH = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/WS x\r\n\r\n"


def fed(*payloads: bytes) -> list[StreamMessage]:
    """All outputs, the flush included; payload number n is captured at 100 * n."""
    line = SipStream()
    outputs = [out for at, each in enumerate(payloads) for out in line.feed(each, 100 * at)]
    last = line.flush()
    assert line.pending == 0
    return outputs if last is None else [*outputs, last]


def whole(payload: bytes, captured_at: int, fragments: int, packets: int) -> StreamMessage:
    return StreamMessage(payload, captured_at, fragments, packets)


class TestFraming:
    def test_one_message_in_one_payload_is_itself(self) -> None:
        assert fed(INVITE) == [whole(INVITE, 0, 1, 1)]

    def test_one_message_in_three_payloads_closes_three(self) -> None:
        assert fed(INVITE[:30], INVITE[30:90], INVITE[90:]) == [whole(INVITE, 0, 3, 3)]

    def test_two_messages_in_one_payload_close_one_and_none(self) -> None:
        assert fed(OK + BYE) == [whole(OK, 0, 1, 1), whole(BYE, 0, 1, 0)]

    def test_a_payload_with_the_end_of_one_and_the_start_of_another_is_closed_once(self) -> None:
        assert fed(INVITE[:50], INVITE[50:] + BYE[:20], BYE[20:]) == [
            whole(INVITE, 0, 2, 2),
            whole(BYE, 100, 2, 1),
        ]

    @pytest.mark.parametrize(
        "name", [b"l", b"L", b"content-length", b"CONTENT-LENGTH ", b"Content-Length\t"]
    )
    def test_the_length_is_found_under_any_spelling(self, name: bytes) -> None:
        message = sip(body=b"12345", name=name)
        assert [out.payload for out in fed(message + BYE)] == [message, BYE]

    def test_a_folded_length_is_found(self) -> None:
        message = sip(body=b"12345", length=b"\r\n 5")
        assert [out.payload for out in fed(message + BYE)] == [message, BYE]

    def test_lines_may_end_in_lf_alone(self) -> None:
        message = INVITE.replace(b"\r\n", b"\n").replace(b": 31", b": 29")
        assert [out.payload for out in fed(message + BYE)] == [message, BYE]

    def test_odd_case_and_unknown_methods_are_start_lines(self) -> None:
        for start in (b"foobar sip:x sip/2.0", b"sip/2.0 200 ok", b"INVITE sip:a b SIP/2.0"):
            message = sip(start)
            assert fed(message + BYE) == [whole(message, 0, 1, 1), whole(BYE, 0, 1, 0)]

    def test_without_a_length_the_rest_of_the_payload_is_the_message(self) -> None:
        message = WITHOUT_LENGTH + b"body" + BYE
        assert fed(message, BYE) == [whole(message, 0, 1, 1), whole(BYE, 100, 1, 1)]
        assert fed(message[:20], message[20:]) == [whole(message, 0, 2, 2)]

    @pytest.mark.parametrize("length", [b"-1", b"1 0", b"x", b"9999999999", b"\xb2"])
    def test_a_length_that_is_no_number_is_no_length(self, length: bytes) -> None:
        message = sip(body=b"12345", length=length)
        assert fed(message, BYE) == [whole(message, 0, 1, 1), whole(BYE, 100, 1, 1)]

    def test_keep_alives_between_messages_are_dropped(self) -> None:
        assert fed(b"\r\n\r\n" + OK + b"\r\n\r\n" + BYE + b"\r\n") == [
            whole(OK, 0, 1, 1),
            whole(BYE, 0, 1, 0),
        ]

    def test_a_time_that_is_unknown_stays_unknown(self) -> None:
        assert SipStream().feed(OK, None)[0].captured_at is None

    def test_tcp_call_of_the_old_sofia_sip_comes_back_message_by_message(self) -> None:
        # The messages are real, the three segments and the ACK+BYE in one are how they were sent.
        with (CORPUS / "freeswitch/hep-v3-new-sofia-tcp-oversize.pcap").open("rb") as file:
            packets = [hep.decode(each.payload) for each in pcap.Reader(file)]
        messages = [each.payload for each in packets if each.ip_protocol == 6]
        invite, _, _, ack, bye, _ = messages
        assert fed(invite[:100], invite[100:200], invite[200:], ack + bye) == [
            whole(invite, 0, 3, 3),
            whole(ack, 300, 1, 1),
            whole(bye, 300, 1, 0),
        ]


class TestAccounting:
    def test_keep_alives_alone_are_a_piece_of_their_own(self) -> None:
        assert fed(b"\r\n\r\n", BYE) == [
            StreamMessage(b"\r\n\r\n", 0, 1, 1, garbage=True),
            whole(BYE, 100, 1, 1),
        ]

    def test_an_empty_payload_is_a_piece_of_its_own(self) -> None:
        assert fed(b"") == [StreamMessage(b"", 0, 1, 1, garbage=True)]

    def test_an_empty_payload_inside_a_message_is_closed_with_it(self) -> None:
        assert fed(BYE[:20], b"", BYE[20:]) == [whole(BYE, 0, 2, 3)]

    def test_flush_gives_the_held_message_back_truncated(self) -> None:
        line = SipStream()
        assert line.feed(INVITE[:-1], 7) == []
        assert line.pending == len(INVITE) - 1
        assert line.flush() == StreamMessage(INVITE[:-1], 7, 1, 1, truncated=True)
        assert line.flush() is None
        assert line.feed(BYE, 8) == [whole(BYE, 8, 1, 1)]

    def test_bytes_held_are_capped(self) -> None:
        message = sip(body=b"x" * 200_000)
        line = SipStream()
        outputs = []
        for start in range(0, len(message), 1000):
            outputs += line.feed(message[start : start + 1000], None)
            assert line.pending <= stream.MAX_HELD
        assert outputs[0].truncated
        assert len(outputs[0].payload) > stream.MAX_HELD
        assert {out.garbage for out in outputs[1:]} == {True}
        assert b"".join(out.payload for out in outputs) == message
        assert sum(out.packets for out in outputs) == 201

    def test_headers_without_end_are_capped(self) -> None:
        line = SipStream()
        outputs = line.feed(BYE[:60], None)
        for _ in range(200):
            outputs += line.feed(b"x" * 1000, None)
        assert outputs[0].truncated
        assert sum(out.packets for out in outputs) == 201


class TestDamage:
    @pytest.mark.parametrize("following", [BYE, OK, INVITE, WITHOUT_LENGTH])
    @pytest.mark.parametrize("cut", [3, 7, 20, 50, 100, -3, -1])
    def test_a_message_whose_rest_was_lost_gives_way_to_the_next(
        self, cut: int, following: bytes
    ) -> None:
        assert fed(INVITE[:cut], following) == [
            StreamMessage(INVITE[:cut], 0, 1, 1, truncated=True),
            whole(following, 100, 1, 1),
        ]

    @pytest.mark.parametrize("cut", [7, 20, 50, 100, -20])
    def test_it_does_for_a_method_nobody_knows_where_that_cannot_be_the_rest(
        self, cut: int
    ) -> None:
        following = sip(b"FOOBAR tel:1 SIP/2.0")
        assert fed(INVITE[:cut], following) == [
            StreamMessage(INVITE[:cut], 0, 1, 1, truncated=True),
            whole(following, 100, 1, 1),
        ]

    @pytest.mark.parametrize("cut", range(1, 8))
    @pytest.mark.parametrize(
        "start", [b"PRACK sip:x SIP/2.0", b"REGISTER sip:x SIP/2.0", b"XYZZYXYZ sip:x SIP/2.0"]
    )
    def test_a_method_that_is_split_is_one_method(self, start: bytes, cut: int) -> None:
        message = sip(start)
        assert fed(message[:cut], message[cut:]) == [whole(message, 0, 2, 2)]

    def test_a_length_that_is_too_large_costs_only_its_own_message(self) -> None:
        wrong = sip(b"SIP/2.0 200 OK", body=b"v=0\r\n", length=b"300")
        assert fed(wrong, INVITE, BYE) == [
            StreamMessage(wrong, 0, 1, 1, truncated=True),
            whole(INVITE, 100, 1, 1),
            whole(BYE, 200, 1, 1),
        ]
        short = sip(b"SIP/2.0 200 OK", length=b"5")
        assert [out.payload for out in fed(short, BYE, OK)] == [short, BYE, OK]

    def test_a_length_that_is_too_small_leaves_a_piece(self) -> None:
        wrong = sip(body=b"v=0\r\ns=-\r\n", length=b"5")
        assert fed(wrong + BYE) == [
            whole(wrong[:-5], 0, 1, 1),
            StreamMessage(b"s=-\r\n", 0, 1, 0, garbage=True),
            whole(BYE, 0, 1, 0),
        ]

    @pytest.mark.parametrize("at", [0, 15])
    def test_a_body_that_is_itself_a_start_line_stays_a_body(self, at: int) -> None:
        message = sip(b"NOTIFY sip:x SIP/2.0", b"SIP/2.0 100 Trying\r\n")
        head = len(message) - 20 + at
        for rest in (b"", b"\r\n", BYE):
            outputs = fed(message[:head], message[head:] + rest)
            assert outputs[0] == whole(message, 0, 2, 2)
            assert [out.payload for out in outputs[1:]] == ([rest] if rest == BYE else [])

    def test_the_tail_of_a_message_whose_head_was_not_seen_is_a_piece(self) -> None:
        tail = b"Via: SIP/2.0/TCP x\r\nContent-Length: 0\r\n\r\n"
        assert fed(tail, BYE) == [
            StreamMessage(tail, 0, 1, 1, garbage=True),
            whole(BYE, 100, 1, 1),
        ]
        assert fed(tail + BYE + tail) == [
            StreamMessage(tail, 0, 1, 1, garbage=True),
            whole(BYE, 0, 1, 0),
            StreamMessage(tail, 0, 1, 0, garbage=True),
        ]

    @pytest.mark.parametrize(
        "garbage",
        [b"\x16\x03\x01\x02\x00", b"x" * 33, b"INVITE sip:x\r\n", b"INVITE " + b"x" * 9000, b" \n"],
    )
    def test_what_cannot_be_a_start_line_is_given_out_at_once(self, garbage: bytes) -> None:
        line = SipStream()
        assert line.feed(garbage, 1) == [StreamMessage(garbage, 1, 1, 1, garbage=True)]
        assert line.pending == 0

    def test_a_start_line_that_comes_byte_by_byte_is_waited_for(self) -> None:
        line = SipStream()
        for at in range(len(OK) - 1):
            assert line.feed(OK[at : at + 1], at) == []
        assert line.feed(OK[-1:], 0) == [whole(OK, 0, len(OK), len(OK))]

    def test_a_start_line_of_the_largest_size_passes(self) -> None:
        room = stream.MAX_START_LINE - len("INVITE sip: SIP/2.0\r\n")
        long = sip(b"INVITE sip:" + b"x" * room + b" SIP/2.0")
        assert fed(long) == [whole(long, 0, 1, 1)]
        longer = sip(b"INVITE sip:" + b"x" * (room + 1) + b" SIP/2.0")
        assert [out.garbage for out in fed(longer)] == [True]


class TestIsWhole:
    @pytest.mark.parametrize("message", [INVITE, OK, BYE, WITHOUT_LENGTH, WITHOUT_LENGTH + b"x"])
    def test_a_whole_message_is_whole_and_any_part_is_not(self, message: bytes) -> None:
        assert is_whole(message)
        assert not is_whole(b" " + message)
        if message is not WITHOUT_LENGTH + b"x":
            assert not any(is_whole(message[:cut]) for cut in range(message.find(b"\r\n\r\n")))

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\r\n\r\n",
            b"\r\n" + BYE,
            OK + BYE,
            OK + b"\r\n",
            OK[:-1],
            b"Via: x\r\n\r\n",
            b"INVITE sip:" + b"x" * 9000 + b" SIP/2.0\r\n\r\n",
            b"INVITE sip:x SIP/2.0\r\n",
        ],
    )
    def test_anything_else_is_not(self, payload: bytes) -> None:
        assert not is_whole(payload)

    def test_all_that_real_agents_sent_over_udp_and_tls_is_whole(self) -> None:
        for name in ("a_answered", "k_tls_sip"):
            with (CORPUS / f"kamailio/{name}.pcap").open("rb") as file:
                payloads = [hep.decode(each.payload).payload for each in pcap.Reader(file)]
            assert all(is_whole(payload) for payload in payloads)


TOKENS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ-.", min_size=1, max_size=12)
STARTS = st.one_of(
    st.sampled_from([b"INVITE", b"PRACK", b"ACK", b"REGISTER", b"OPTIONS"]).map(
        lambda method: method + b" sip:bob@example.net SIP/2.0"
    ),
    st.sampled_from([b"SIP/2.0 100 Trying", b"SIP/2.0 200 OK", b"SIP/2.0 486 "]),
)
HEADERS = st.lists(
    st.tuples(TOKENS, st.text("abc 123;=<>/.", max_size=20)).map(
        lambda pair: f"X{pair[0]}: {pair[1]}\r\n".encode()
    ),
    max_size=5,
).map(b"".join)
MESSAGES = st.builds(
    lambda start, headers, name, body: (
        start + b"\r\n" + headers + name + b": %d\r\n\r\n" % len(body) + body
    ),
    STARTS,
    HEADERS,
    st.sampled_from([b"Content-Length", b"l", b"content-length"]),
    st.one_of(st.just(b""), st.binary(max_size=60)),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 4000), max_size=12)


class TestProperties:
    @given(st.lists(MESSAGES, min_size=1, max_size=6), CUTS, st.sampled_from([b"", b"\r\n\r\n"]))
    def test_any_split_of_messages_gives_back_exactly_these_messages(
        self, messages: list[bytes], cuts: list[int], between: bytes
    ) -> None:
        payloads = [each for each in split(between.join(messages), cuts) if each.strip(b"\r\n")]
        joined = b"".join(payloads)
        if joined != between.join(messages):
            return  # a payload of keep-alives alone, or of a message's own line ends
        outputs = fed(*payloads)
        assert [out.payload for out in outputs] == messages
        assert sum(out.packets for out in outputs) == len(payloads)
        assert not any(out.truncated or out.garbage for out in outputs)

    @given(st.lists(MESSAGES, min_size=1, max_size=4))
    def test_byte_by_byte_gives_back_exactly_these_messages(self, messages: list[bytes]) -> None:
        whole = b"".join(messages)
        outputs = fed(*(whole[at : at + 1] for at in range(len(whole))))
        assert [out.payload for out in outputs] == messages

    @given(
        st.lists(
            st.one_of(
                MESSAGES,
                st.binary(max_size=60),
                st.sampled_from([b"", b"\r\n", INVITE[:60], BYE[:5], b"\r\n\r\n" + OK, OK + b"x"]),
            ),
            max_size=12,
        ),
        CUTS,
    )
    def test_every_payload_is_closed_once_and_no_byte_but_line_ends_is_lost(
        self, pieces: list[bytes], cuts: list[int]
    ) -> None:
        for payloads in (pieces, split(b"".join(pieces), cuts)):
            outputs = fed(*payloads)
            assert sum(out.packets for out in outputs) == len(payloads)
            got = b"".join(out.payload for out in outputs)
            assert got.translate(None, b"\r\n") == b"".join(payloads).translate(None, b"\r\n")
            assert all(0 < out.fragments <= max(1, len(payloads)) for out in outputs)

    @given(st.one_of(MESSAGES, st.binary(max_size=80)), st.data())
    def test_what_is_whole_comes_out_as_itself(self, payload: bytes, data: st.DataObject) -> None:
        damaged: Any = bytearray(payload)
        if damaged and data.draw(st.booleans()):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        outputs = SipStream().feed(bytes(damaged), 1)
        if is_whole(bytes(damaged)):
            assert outputs == [whole(bytes(damaged), 1, 1, 1)]
