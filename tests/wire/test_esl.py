import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import esl, rtcp, sip
from sipsidecar.wire.esl import Connection, EslError, Event, Reply, parse_json, parse_plain

CORPUS = Path(__file__).parent.parent / "corpus" / "freeswitch"
FILES = sorted(CORPUS.glob("*.esl"))

GREETING = b"Content-Type: auth/request\n\n"
ACCEPTED = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"


def frame(body: bytes, kind: bytes = b"text/event-json") -> bytes:
    return b"Content-Length: %d\nContent-Type: %s\n\n%s" % (len(body), kind, body)


def event(name: str = "CHANNEL_CREATE", **headers: object) -> bytes:
    named = {key.replace("__", "-"): value for key, value in headers.items()}
    return json.dumps({"Event-Name": name, **named}, separators=(",", ":")).encode()


HEARTBEAT = frame(event("HEARTBEAT", Session__Count="3"))


def received(*reads: bytes) -> list[Event | Reply]:
    line = Connection()
    return [item for read in reads for item in line.receive_data(read)]


def outcome(reads: list[bytes]) -> tuple[list[Event | Reply], Counter[str], str | None, int]:
    """All that a connection tells of these reads."""
    line = Connection()
    found: list[Event | Reply] = []
    with contextlib.suppress(EslError):
        for read in reads:
            found += line.receive_data(read)
    return found, line.refused, line.fault, line.pending


def recorded(name: str) -> bytes:
    (path,) = CORPUS.glob(name + "*.esl")
    return path.read_bytes()


def events(data: bytes) -> list[Event]:
    return [item for item in esl.read_transcript(data) if isinstance(item, Event)]


def replies(data: bytes) -> list[Reply]:
    return [item for item in esl.read_transcript(data) if isinstance(item, Reply)]


def contents(data: bytes) -> Iterator[bytes]:
    """The event bodies of a transcript, read by another way than ours."""
    at = data.find(b"Content-Length:")
    while at >= 0:
        head, _, rest = data[at:].partition(b"\n\n")
        length = int(head.split(b"\n")[0].split(b":")[1])
        if b"text/event" in head:
            yield rest[:length]
        at = data.find(b"Content-Length:", at + len(head) + 2 + length)


def pairs_of_plain(body: bytes) -> list[tuple[bytes, bytes]]:
    head, _, rest = body.partition(b"\n\n")
    pairs = [line.split(b": ", 1) for line in head.split(b"\n")]
    found = [(name, unquote_to_bytes(value)) for name, value in pairs]
    return [*found, (b"_body", rest)] if rest else found


def pairs_of_json(body: bytes) -> list[tuple[bytes, bytes]]:
    """With lists as FreeSWITCH writes them in plain text."""
    pairs = json.loads(body.decode("utf-8", "surrogateescape"), object_pairs_hook=list)
    return [
        (
            name.encode("utf-8", "surrogateescape"),
            ("ARRAY::" + "|:".join(value) if isinstance(value, list) else value).encode(
                "utf-8", "surrogateescape"
            ),
        )
        for name, value in pairs
    ]


def as_plain(pairs: list[tuple[bytes, bytes]]) -> bytes:
    lines = [
        name + b": " + (quote_from_bytes(value, safe="/(),!'*$~").encode() or b"_undef_")
        for name, value in pairs
        if name != b"_body"
    ]
    return b"\n".join(lines) + b"\n\n" + dict(pairs).get(b"_body", b"")


def as_json(pairs: list[tuple[bytes, bytes]]) -> bytes:
    def text(raw: bytes) -> bytes:
        written = json.dumps(raw.decode("utf-8", "surrogateescape"), ensure_ascii=False)
        return written.encode("utf-8", "surrogateescape")

    def value(raw: bytes) -> bytes:
        if not raw.startswith(b"ARRAY::"):
            return text(raw)
        return b"[" + b",".join(text(each) for each in raw[7:].split(b"|:")) + b"]"

    return b"{" + b",".join(text(name) + b":" + value(raw) for name, raw in pairs) + b"}"


SHORT = {"CHANNEL_CREATE": 1, "CHANNEL_HANGUP": 1, "CHANNEL_HANGUP_COMPLETE": 1}
LEG = {**SHORT, "CHANNEL_DESTROY": 1}
BOTH = dict.fromkeys(LEG, 2)
RTCP = {"RECV_RTCP_MESSAGE": 2, "SEND_RTCP_MESSAGE": 2}
ALL = {
    **BOTH, **RTCP, "HEARTBEAT": 2, "RE_SCHEDULE": 2, "CHANNEL_STATE": 14, "CODEC": 4,
    "CHANNEL_CALLSTATE": 6, "CHANNEL_EXECUTE": 3, "CHANNEL_EXECUTE_COMPLETE": 3,
    "CHANNEL_OUTGOING": 1, "CHANNEL_ORIGINATE": 1, "CHANNEL_PROGRESS": 2, "CHANNEL_ANSWER": 2,
    "CHANNEL_BRIDGE": 1, "CHANNEL_UNBRIDGE": 1, "CALL_UPDATE": 2,
}  # fmt: skip
IN_FILES: dict[str, dict[str, int]] = {
    "01": {**LEG, "CHANNEL_ANSWER": 1, "HEARTBEAT": 2},
    "02": {**LEG, "CHANNEL_ANSWER": 1, "HEARTBEAT": 2},
    "03": LEG,
    "04": {**LEG, "HEARTBEAT": 1},
    "05": {**LEG, "HEARTBEAT": 1},
    "06": LEG,
    "07": {**LEG, "CHANNEL_PROGRESS": 1, "HEARTBEAT": 1},
    "08": {**LEG, "CHANNEL_PROGRESS_MEDIA": 1, "CHANNEL_ANSWER": 1, "HEARTBEAT": 2},
    "10": ALL,
    "11": {
        **BOTH, **RTCP, "CHANNEL_PROGRESS": 2, "CHANNEL_ANSWER": 2, "CHANNEL_BRIDGE": 1,
        "CHANNEL_UNBRIDGE": 1, "CALL_UPDATE": 2, "HEARTBEAT": 2,
    },
    "12": {**BOTH, "HEARTBEAT": 1},
    "13": {**BOTH, "HEARTBEAT": 1},
    "15": {**BOTH, "HEARTBEAT": 1},
    "17": {**BOTH, "CHANNEL_PROGRESS": 2, "HEARTBEAT": 1},
    "19": LEG,
    "20": ALL,
    "21": {"CUSTOM": 2, "HEARTBEAT": 1},
    "22": {
        "CHANNEL_ANSWER": 12, "CHANNEL_HANGUP_COMPLETE": 12, "RECV_RTCP_MESSAGE": 25,
        "SEND_RTCP_MESSAGE": 22,
    },
    "23": {"API": 2, "HEARTBEAT": 2, "RE_SCHEDULE": 2},
    "24": {"CHANNEL_CREATE": 3, "CHANNEL_HANGUP_COMPLETE": 3},
    "25": {"CHANNEL_CREATE": 3, "CHANNEL_HANGUP_COMPLETE": 3},
    "27": {},
    "28": {"BACKGROUND_JOB": 1},
    "29": {"HEARTBEAT": 1},
    "31": {"BACKGROUND_JOB": 1, "CUSTOM": 1},
    "outbound-5100": {"CHANNEL_DATA": 1},
    "outbound-5186": {"CHANNEL_DATA": 1},
    "outbound-5286": {"CHANNEL_DATA": 1},
}  # fmt: skip


class TestRecordings:
    def test_every_recording_is_told_of_here(self) -> None:
        names = {path.stem for path in FILES}
        assert {name if name.startswith("out") else name[:2] for name in names} == set(IN_FILES)

    @pytest.mark.parametrize("name", IN_FILES)
    def test_every_event_of_a_recording_is_read(self, name: str) -> None:
        transcript = esl.read_transcript(recorded(name))
        found = [item for item in transcript if isinstance(item, Event)]
        assert Counter(each.event_name for each in found) == IN_FILES[name]
        assert not transcript.refused
        assert not transcript.truncated

    @pytest.mark.parametrize("name", [*(f"{n:02}" for n in range(1, 9)), "11", "12", "17", "22"])
    def test_the_events_of_a_recording_come_in_the_order_of_its_bytes(self, name: str) -> None:
        found = [each.event_sequence for each in events(recorded(name))]
        assert found == [
            dict(pairs_of_plain(body))[b"Event-Sequence"].decode()
            for body in contents(recorded(name))
        ]

    def test_every_field_is_the_header_of_its_name_in_some_recording(self) -> None:
        written = b"".join(path.read_bytes() for path in FILES)
        never = {
            name
            for name, header in esl._HEADERS.items()
            if b"\n" + header.encode() + b": " not in written
            and b'"' + header.encode() + b'":' not in written
        }
        # Those of sofia::gateway_state, and one that no recorded call had.
        assert never <= {"gateway", "state", "ping_status", "phrase", "status"}

    def test_both_legs_of_a_bridged_call_say_what_they_did(self) -> None:
        first, second = (
            each for each in events(recorded("11")) if each.event_name == "CHANNEL_HANGUP_COMPLETE"
        )
        legs = {first.call_direction: first, second.call_direction: second}
        a, b = legs["inbound"], legs["outbound"]
        assert a.channel_call_uuid == b.channel_call_uuid == a.unique_id
        assert b.variable_originating_leg_uuid == a.unique_id
        assert b.variable_sip_gateway_name == "trunk-a"
        assert a.variable_sip_call_id != b.variable_sip_call_id
        assert b.variable_sip_term_status == "200"
        assert (a.hangup_cause, a.variable_hangup_cause_q850) == ("NORMAL_CLEARING", "16")
        assert a.caller_channel_answered_time not in {None, "0"}
        assert (a.variable_rtp_use_codec_name, a.variable_rtp_use_codec_rate) == ("PCMU", "8000")

    def test_a_heartbeat_says_the_load(self) -> None:
        beat = next(each for each in events(recorded("29")))
        assert (beat.session_count, beat.max_sessions, beat.session_per_sec) == ("0", "1000", "200")
        assert (beat.session_per_sec_last, beat.idle_cpu) == ("0", "91.166667")
        assert beat.freeswitch_version == "1.11.2-release~64bit"
        assert beat.rtcp is None

    def test_a_registration_says_who_and_from_where(self) -> None:
        came = next(each for each in events(recorded("21")) if each.event_name == "CUSTOM")
        assert came.event_subclass == "sofia::register"
        assert (came.from_user, came.from_host, came.expires) == ("1000", "127.0.0.1", "60")
        assert came.contact == '"" <sip:1000@127.0.0.1:16060>'
        assert (came.registration_status, came.status) == ("Registered(UDP)", None)

    def test_a_gateway_state_is_no_registration(self) -> None:
        told = parse_json(event("CUSTOM", Gateway="trunk-a", Ping__Status="UP", Status="200"))
        assert (told.gateway, told.ping_status) == ("trunk-a", "UP")
        assert (told.status, told.registration_status) == ("200", None)

    def test_rtcp_events_have_every_header_and_are_readable_reports(self) -> None:
        found = [each for each in events(recorded("22")) if "RTCP" in each.event_name]
        for each in found:
            assert each.rtcp is not None
            assert each.rtcp["Unique-ID"] == each.unique_id
            report = rtcp.from_freeswitch(each.rtcp, sent=each.event_name[0] == "S")
            assert report.flaw is None
        assert sum(
            each.rtcp.get("Source0-Lost") == "17" for each in found if each.rtcp is not None
        ) == sum(each.event_name == "RECV_RTCP_MESSAGE" for each in found)

    @pytest.mark.parametrize("name", ["28", "31"])
    def test_the_body_of_a_background_job_is_its_output_in_either_format(self, name: str) -> None:
        (job,) = (each for each in events(recorded(name)) if each.event_name == "BACKGROUND_JOB")
        assert job.job_command == "status"
        assert job.job_uuid is not None
        assert job.body is not None
        assert job.body.startswith("UP 0 years, ")
        assert job.body.endswith("\nCurrent Stack Size/Max 240K/240K\n")

    def test_the_replies_of_a_session_come_in_the_order_of_its_commands(self) -> None:
        found = replies(recorded("28"))
        assert [(each.content_type, each.ok) for each in found] == [
            ("auth/request", True),
            ("command/reply", True),
            ("command/reply", True),
            ("api/response", True),
            ("api/response", False),
            ("command/reply", True),
            ("api/response", True),
            ("command/reply", False),
            ("command/reply", True),
            ("text/disconnect-notice", False),
        ]
        assert found[3].text.startswith("UP 0 years, 0 days")
        assert found[4].text == "-ERR nosuchcommand Command not found!\n"
        assert found[5].job_uuid == "3ede9f7b-3e23-4cda-ac68-d0cf5b218ce0"
        assert found[7].text == "-ERR command not found"

    def test_a_wrong_password_is_told_before_the_goodbye(self) -> None:
        assert [(each.text[:13], each.ok) for each in replies(recorded("27"))] == [
            ("", True),
            ("-ERR invalid", False),
            ("Disconnected,", False),
        ]

    def test_what_a_restricted_user_may_not_do_is_not_ok(self) -> None:
        denied = [each.text for each in replies(recorded("29")) if not each.ok]
        assert denied == ["-ERR permission denied"] * 3 + ["-ERR invalid session id [1234]"]

    @pytest.mark.parametrize("name", ["outbound-5100", "outbound-5186", "outbound-5286"])
    def test_the_reply_to_connect_is_an_event_and_a_reply(self, name: str) -> None:
        first, second, *_ = esl.read_transcript(recorded(name))
        assert isinstance(first, Event)
        assert first.caller_destination_number == name[-4:]
        assert second == Reply("command/reply", "+OK")


class TestFormats:
    @pytest.mark.parametrize("name", ["10", "11", "21", "22", "24", "28"])
    def test_a_plain_event_written_as_json_reads_the_same(self, name: str) -> None:
        for body in contents(recorded(name)):
            assert parse_plain(body) == parse_json(as_json(pairs_of_plain(body)))

    @pytest.mark.parametrize("name", ["20", "25", "31"])
    def test_a_json_event_written_as_plain_text_reads_the_same(self, name: str) -> None:
        for body in contents(recorded(name)):
            assert parse_json(body) == parse_plain(as_plain(pairs_of_json(body)))

    def test_the_same_calls_heard_by_both_formats_read_the_same(self) -> None:
        plain, as_told = events(recorded("24")), events(recorded("25"))
        assert len(plain) == len(as_told) == 6
        assert plain == as_told

    @given(
        st.dictionaries(
            st.sampled_from([*esl._HEADERS.values(), "Source0-SSRC", "variable_x"]),
            st.one_of(st.text(max_size=30), st.lists(st.text(max_size=5), min_size=1)),
        ),
        st.sampled_from(["CHANNEL_CREATE", "SEND_RTCP_MESSAGE"]),
    )
    def test_any_event_reads_the_same_in_both_formats(
        self, headers: dict[str, Any], name: str
    ) -> None:
        headers = {
            key: "".join(value).replace("ARRAY", "").replace("_undef_", "")
            if isinstance(value, str)
            else [each.replace("|", "").replace(":", "") for each in value]
            for key, value in headers.items()
        }
        headers["Event-Name"] = name
        body = json.dumps(headers).encode()
        assert parse_json(body) == parse_plain(as_plain(pairs_of_json(body)))


class TestHostileTexts:
    @pytest.mark.parametrize("name", ["24", "25"])
    def test_no_header_of_a_caller_forges_another(self, name: str) -> None:
        data = recorded(name)
        assert b"FAKE" in data
        assert b"forged" in data
        assert b"FOLDED" in data
        found = events(data)
        ends = [each for each in found if each.event_name == "CHANNEL_HANGUP_COMPLETE"]
        assert {each.hangup_cause for each in ends} == {"NORMAL_CLEARING"}
        for each in found:
            for field in esl._HEADERS:
                text = getattr(each, field)
                assert text is None or not any(
                    word in text for word in ("FAKE", "forged", "FOLDED")
                )
        assert len({each.variable_sip_call_id for each in found}) == 3

    def test_a_quoted_line_end_in_a_plain_value_ends_no_line(self) -> None:
        body = b"Event-Name: X\nUser-Agent: x\nuser-agent: a%0AHangup-Cause: FAKE%0d%0A\n\n"
        assert parse_plain(body).hangup_cause is None
        assert parse_plain(body).user_agent == "a\nHangup-Cause: FAKE\r\n"

    def test_a_body_forges_no_header(self) -> None:
        body = b"Event-Name: BACKGROUND_JOB\nContent-Length: 19\n\nHangup-Cause: FAKE\n"
        told = parse_plain(body)
        assert (told.hangup_cause, told.body) == (None, "Hangup-Cause: FAKE\n")

    def test_a_frame_in_a_body_is_no_frame(self) -> None:
        body = frame(event("CHANNEL_CREATE"))
        (reply,) = received(frame(body, b"api/response"))
        assert isinstance(reply, Reply)
        assert reply.text == body.decode()

    @pytest.mark.parametrize(
        "raw", [b"caf\xe9", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xe2\x82"]
    )
    def test_what_is_not_utf8_reads_as_in_a_sip_message(self, raw: bytes) -> None:
        body = b'{"Event-Name":"X","user-agent":"%s","_body":"%s"}' % (raw, raw)
        told = parse_json(body)
        assert told.user_agent == told.body == sip.text(raw)
        quoted = quote_from_bytes(raw).encode()
        length = b"Content-Length: %d" % len(raw)
        assert told == parse_plain(
            b"Event-Name: X\nuser-agent: %s\n%s\n\n%s" % (quoted, length, raw)
        )

    def test_bad_bytes_in_a_value_that_nobody_reads_cost_nothing(self) -> None:
        assert parse_json(b'{"Event-Name":"X","variable_y":"\xff"}') == Event("X")

    def test_nul_is_a_visible_escape_in_every_text(self) -> None:
        expected = Event("X\\x00", phrase="a\\x00b", body="\\x00")
        assert expected == parse_json(
            rb'{"Event-Name":"X\u0000","Phrase":"a\u0000b","_body":"\u0000"}'
        )
        assert expected == parse_plain(b"Event-Name: X%00\nPhrase: a%00b\nContent-Length: 1\n\n\0")

    def test_nul_in_an_rtcp_event_is_a_visible_escape(self) -> None:
        told = parse_json(rb'{"Event-Name":"SEND_RTCP_MESSAGE","SSRC":"\u0000","\u0000":"1"}')
        assert told.rtcp == {"Event-Name": "SEND_RTCP_MESSAGE", "SSRC": "\\x00", "\\x00": "1"}

    def test_a_list_is_its_first_element(self) -> None:
        told = parse_json(event("X", Gateway=["a", "b"], Phrase=[], State=[["c"]]))
        assert (told.gateway, told.phrase, told.state) == ("a", None, None)
        plain = b"Event-Name: X\nGateway: ARRAY%3A%3Aa%7C%3Ab\n\n"
        assert parse_plain(plain).gateway == "a"

    @pytest.mark.parametrize("parts", [["victim"], ["victim", "b"], ["victim", ""]])
    def test_an_id_that_looks_like_a_list_is_not_the_id_of_another(self, parts: list[str]) -> None:
        whole = "ARRAY::" + "|:".join(parts)
        headers = {"variable_sip_call_id": parts, "Unique-ID": parts, "Channel-Call-UUID": parts}
        told = parse_json(json.dumps({"Event-Name": "CHANNEL_CREATE", **headers}).encode())
        ids = (told.variable_sip_call_id, told.unique_id, told.channel_call_uuid)
        assert ids == (whole, whole, whole)
        plain = f"Event-Name: X\nvariable_sip_call_id: {whole}\nUnique-ID: {whole}\n\n"
        read = parse_plain(plain.encode())
        assert (read.variable_sip_call_id, read.unique_id) == (whole, whole)

    def test_an_id_of_parts_that_are_no_text_is_none(self) -> None:
        assert parse_json(event("X", Unique__ID=["a", 1])).unique_id is None

    def test_a_list_beyond_all_measure_is_none(self) -> None:
        told = parse_json(event("X", Phrase=["a"] * 20_000, State="s"))
        assert (told.phrase, told.state) == (None, "s")

    @pytest.mark.parametrize("value", [1, 1.5, True, None, {"a": "b"}, 10**400])
    def test_a_value_that_is_no_text_hides_none_of_the_others(self, value: object) -> None:
        told = parse_json(event("X", Unique__ID=value, Hangup__Cause="USER_BUSY", _body=value))
        assert told == Event("X", hangup_cause="USER_BUSY")

    def test_a_very_long_text_is_cut_to_the_same_in_both_formats(self) -> None:
        for text in ("a" * 5000, "%" * 5000, "é" * 5000, "\U0001f600" * 5000):
            pairs = [(b"Event-Name", b"X"), (b"Phrase", text.encode())]
            told = parse_json(as_json(pairs))
            assert told == Event("X", phrase=text[: esl.MAX_TEXT])
            assert told == parse_plain(as_plain(pairs))

    def test_a_body_is_never_cut(self) -> None:
        assert parse_json(event("X", _body="a" * 100_000)).body == "a" * 100_000

    def test_of_a_header_that_is_there_twice_the_last_counts_in_both_formats(self) -> None:
        assert parse_json(b'{"Event-Name":"X","Phrase":"1","Phrase":"2"}').phrase == "2"
        assert parse_plain(b"Event-Name: X\nPhrase: 1\nPhrase: 2\n\n").phrase == "2"

    def test_an_empty_header_is_empty_in_both_formats(self) -> None:
        assert parse_json(event("X", Phrase="")).phrase == ""
        assert parse_plain(b"Event-Name: X\nPhrase: _undef_\n\n").phrase == ""

    def test_a_header_named_as_our_own_field_is_none(self) -> None:
        assert parse_json(event("X", _rtcp="1", rtcp="2", body="3")) == Event("X")
        assert parse_plain(b"Event-Name: X\n_rtcp: 1\nrtcp: 2\n_body: 3\n\n") == Event("X")
        with pytest.raises(EslError, match="json"):
            parse_json(event("X", _rtcp={"SSRC": "1"}))

    def test_every_text_can_be_stored(self) -> None:
        for path in FILES:
            for item in esl.read_transcript(path.read_bytes()):
                assert "\0" not in msgspec.json.encode(item).decode()


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "json"),
            (b"[]", "json"),
            (b'"x"', "json"),
            (b'{"Event-Name":"X"', "json"),
            (b'{"Event-Name":"X"} x', "json"),
            (b'{"Event-Name":"\\ud800"}', "json"),
            (b'{"Event-Name":"X","a":' + b"[" * 100_000 + b"}", "json"),
            (b"\xff\xfe", "json"),
            (b"{}", "event-name"),
            (b'{"Event-Name":""}', "event-name"),
            (b'{"Event-Name":5}', "event-name"),
            (b'{"Event-Name":"SEND_RTCP_MESSAGE","a":"%s"}' % (b"a" * 70_000), "rtcp"),
        ],
    )
    def test_a_bad_event_is_counted_and_the_next_one_read(self, body: bytes, why: str) -> None:
        line = Connection()
        (found,) = line.receive_data(frame(body) + HEARTBEAT)
        assert isinstance(found, Event)
        assert found.session_count == "3"
        assert line.refused == {why: 1}
        assert why in esl.REFUSALS
        assert line.fault is None

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "event-name"),
            (b"\n\nEvent-Name: X\n", "event-name"),
            (b"Event-Name:X\n\n", "event-name"),
            (b"Event-Name: _undef_\n\n", "event-name"),
            (b"Event-Name: RECV_RTCP_MESSAGE\na: %s\n\n" % (b"a" * 70_000), "rtcp"),
        ],
    )
    def test_a_bad_plain_event_is_counted(self, body: bytes, why: str) -> None:
        line = Connection()
        assert line.receive_data(frame(body, b"text/event-plain")) == []
        assert line.refused == {why: 1}

    def test_other_content_is_skipped_and_counted(self) -> None:
        line = Connection()
        log = b"Content-Type: log/data\nContent-Length: 4\nLog-Level: 7\n\na\n\nb"
        xml = frame(b"<event/>", b"text/event-xml")
        assert line.receive_data(log + xml + log + ACCEPTED) == [
            Reply("command/reply", "+OK accepted")
        ]
        assert line.refused == {"log": 2, "format": 1}

    def test_a_reply_is_never_lost_with_the_event_in_it(self) -> None:
        line = Connection()
        head = b"Content-Type: command/reply\nEvent-Name:X\nReply-Text: %2BOK%0A\n\n"
        assert line.receive_data(head) == [Reply("command/reply", "+OK")]
        assert line.refused == {"event-name": 1}

    @pytest.mark.parametrize(
        "body",
        [
            b"Event-Name: X\nContent-Length: 5\n\nab",
            b"Event-Name: X\nContent-Length: 2\n\nabc",
        ],
    )
    def test_a_plain_body_is_what_is_there_of_its_length(self, body: bytes) -> None:
        assert parse_plain(body).body == "ab"

    @pytest.mark.parametrize("length", [b"-2", b" 2", b"x", b"1" * 5000, b"\xb2"])
    def test_a_plain_body_of_senseless_length_is_none(self, length: bytes) -> None:
        assert parse_plain(b"Event-Name: X\nContent-Length: %s\n\nab" % length).body is None

    def test_headers_beyond_all_number_are_not_seen(self) -> None:
        many = b"a: b\n" * (esl.MAX_LINES - 1)
        assert parse_plain(b"Event-Name: X\n" + many + b"Phrase: 1\n\n").phrase is None
        assert parse_plain(b"Event-Name: X\n" + many[5:] + b"Phrase: 1\n\n").phrase == "1"

    def test_values_that_are_no_texts_leave_the_rest_of_an_rtcp_event(self) -> None:
        told = parse_json(event("RECV_RTCP_MESSAGE", SSRC=["1", "2"], a=5, b="c" * 3000))
        assert told.rtcp == {
            "Event-Name": "RECV_RTCP_MESSAGE",
            "SSRC": "1",
            "a": None,
            "b": "c" * esl.MAX_TEXT,
        }


class TestFraming:
    def test_a_frame_is_given_when_its_last_byte_is_there(self) -> None:
        line = Connection()
        assert line.receive_data(HEARTBEAT[:-1]) == []
        assert line.pending
        assert len(line.receive_data(HEARTBEAT[-1:])) == 1
        assert line.pending == 0
        assert line.receive_data(b"") == []

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_a_recording_in_small_reads_is_the_same(self, path: Path, size: int) -> None:
        data = path.read_bytes()[: 20_000 * size]
        whole, line = Connection(recorded=True), Connection(recorded=True)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        found = [item for piece in pieces for item in line.receive_data(piece)]
        assert found == whole.receive_data(data)
        assert line.pending == whole.pending

    @given(st.data())
    def test_any_cuts_give_the_same(self, data: st.DataObject) -> None:
        stream = b"".join(
            data.draw(
                st.lists(
                    st.sampled_from(
                        [
                            GREETING,
                            ACCEPTED,
                            HEARTBEAT,
                            b"\n",
                            b"\r\n\r\n",
                            frame(b"a\n\nb", b"api/response"),
                            frame(b"Event-Name: X\n\n", b"text/event-plain"),
                            frame(b"junk"),
                            b"Content-Type: a\nContent-Length: x\n\n",
                            b"junk\n\n",
                        ]
                    )
                )
            )
        )
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
        outcomes = []
        for edges in ([], cuts, range(len(stream))):
            reads = [
                stream[start:end]
                for start, end in zip([0, *edges], [*edges, len(stream)], strict=True)
            ]
            outcomes.append(outcome([*reads, b""]))
        assert outcomes[0] == outcomes[1] == outcomes[2]

    @given(st.binary(max_size=300))
    def test_any_bytes_are_frames_or_a_fault(self, data: bytes) -> None:
        found, _, fault, pending = outcome([data])
        assert fault in {None, *esl.FAULTS}
        assert len(found) + pending <= len(data)

    def test_lines_may_end_with_carriage_returns(self) -> None:
        assert received(b"Content-Type: auth/request\r\n\r\n") == [Reply("auth/request", "")]

    def test_header_names_are_read_in_any_case(self) -> None:
        assert received(b"content-type:api/response\nCONTENT-LENGTH:  2\n\nok") == [
            Reply("api/response", "ok")
        ]

    def test_blank_lines_between_frames_are_nothing(self) -> None:
        # A reply text that ends with a line end makes one.
        assert len(received(b"\n\n" + ACCEPTED + b"\n" + ACCEPTED + b"\n\n")) == 2

    def test_the_rejection_of_a_stranger_is_not_ok(self) -> None:
        assert received(frame(b"Access Denied, go away.\n", b"text/rude-rejection")) == [
            Reply("text/rude-rejection", "Access Denied, go away.\n", ok=False)
        ]

    @pytest.mark.parametrize(
        ("text", "ok"),
        [(b"+OK", True), (b"true", True), (b"-ERR no", False), (b"-USAGE: x", False)],
    )
    def test_a_reply_is_ok_unless_it_says_no(self, text: bytes, ok: bool) -> None:
        assert received(frame(text, b"api/response")) == [
            Reply("api/response", text.decode(), ok=ok)
        ]

    def test_a_reply_that_is_not_utf8_is_text(self) -> None:
        assert received(b"Content-Type: command/reply\nReply-Text: \xff\0\nJob-UUID: \xff\n\n") == [
            Reply("command/reply", "\\xff\\x00", "\\xff")
        ]


class TestFaults:
    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "content-type"),
            (b"SSH-2.0-x\n\n", "content-type"),
            (b"Content-Type:\n\n", "content-type"),
            (b"Content-Type: api/response\nContent-Length: -1\n\n", "content-length"),
            (b"Content-Type: api/response\nContent-Length: +1\n\n", "content-length"),
            (b"Content-Type: api/response\nContent-Length:\n\n", "content-length"),
            (b"Content-Type: api/response\nContent-Length: 1_0\n\n", "content-length"),
            (b"Content-Type: api/response\nContent-Length: 16777217\n\n", "content-length"),
            (b"Content-Type: a/b\nContent-Length: 1\nContent-Length: 2\n\n", "content-length"),
            (b"Content-Type: a/b\n" + b"a:b\n" * 1024 + b"\n", "header-count"),
            (b"a" * (esl.MAX_HEAD + 1), "header-size"),
            (b"a" * (esl.MAX_HEAD + 1) + b"\n\n", "header-size"),
        ],
    )
    def test_what_is_no_esl_ends_the_connection(self, data: bytes, why: str) -> None:
        line = Connection()
        with pytest.raises(EslError) as error:
            line.receive_data(data)
        assert error.value.why == line.fault == why
        assert why in esl.FAULTS
        assert line.pending == 0
        for more in (b"", ACCEPTED):
            with pytest.raises(EslError, match=why):
                line.receive_data(more)
        assert line.pending == 0

    def test_what_came_before_the_fault_is_given_first(self) -> None:
        line = Connection()
        assert line.receive_data(ACCEPTED + b"junk\n\n") == [Reply("command/reply", "+OK accepted")]
        assert line.fault == "content-type"
        with pytest.raises(EslError, match="content-type"):
            line.receive_data(b"")

    def test_the_largest_allowed_frame_is_read(self) -> None:
        head = b"Content-Type: api/response\nContent-Length: %d\nX: " % esl.MAX_CONTENT
        head += b"x" * (esl.MAX_HEAD - len(head))
        (found,) = received(head + b"\n\n", b"a" * esl.MAX_CONTENT)
        assert isinstance(found, Reply)
        assert len(found.text) == esl.MAX_CONTENT

    def test_a_head_that_never_ends_is_not_held_for_ever(self) -> None:
        line = Connection()
        for _ in range(64):
            assert line.receive_data(b"a" * 1024) == []
        assert line.pending == esl.MAX_HEAD
        with pytest.raises(EslError, match="header-size"):
            line.receive_data(b"a")


class TestCost:
    def test_a_big_frame_in_single_bytes_is_not_read_again_and_again(self) -> None:
        body = event("X", _body="a" * 500_000)
        line = Connection()
        started = time.process_time()
        found = [item for byte in frame(body) for item in line.receive_data(bytes((byte,)))]
        assert len(found) == 1
        assert time.process_time() - started < 10

    def test_a_head_in_single_bytes_is_not_read_again_and_again(self) -> None:
        head = (b"X: " + b"x" * 100 + b"\n") * 600 + b"Content-Type: auth/request\n\n"
        line = Connection()
        started = time.process_time()
        for _ in range(3):
            found = [item for byte in head for item in line.receive_data(bytes((byte,)))]
            assert len(found) == 1
        assert time.process_time() - started < 10

    def test_an_event_of_two_megabytes_is_read(self) -> None:
        body = event("X", **{f"variable_{n}": "a" * 1000 for n in range(2000)}, Phrase="end")
        assert len(body) > 2_000_000
        data = frame(body)
        line = Connection()
        found = []
        for at in range(0, len(data), 65_536):
            found += line.receive_data(data[at : at + 65_536])
        assert found == [Event("X", phrase="end")]

    def test_a_hundred_thousand_small_events_in_one_read_are_read(self) -> None:
        started = time.process_time()
        assert len(received(HEARTBEAT * 100_000)) == 100_000
        assert time.process_time() - started < 20


class TestTranscripts:
    @pytest.mark.parametrize("at", [1, 30, 70, 5000, 30_000, -1])
    def test_a_transcript_cut_anywhere_is_read_up_to_there(self, at: int) -> None:
        data = recorded("20")[:at]
        transcript = esl.read_transcript(GREETING + data)
        found = list(transcript)
        assert transcript.truncated
        assert found == list(esl.read_transcript(GREETING + recorded("20")))[: len(found)]

    def test_plain_and_json_may_be_mixed(self) -> None:
        data = recorded("10") + recorded("20") + recorded("25") + recorded("24")
        assert len(events(data)) == 56 + 56 + 6 + 6

    def test_an_empty_transcript_is_nothing(self) -> None:
        transcript = esl.read_transcript(b"")
        assert list(transcript) == []
        assert not transcript.truncated

    @pytest.mark.parametrize("data", [b"hello\n", b"\xd4\xc3\xb2\xa1", b"a\n\nb", b"\0" * 100_000])
    def test_another_kind_of_file_is_an_error(self, data: bytes) -> None:
        with pytest.raises(EslError):
            list(esl.read_transcript(data))

    def test_events_before_garbage_are_given_first(self) -> None:
        transcript = esl.read_transcript(HEARTBEAT * 500 + b"junk\n\n")
        assert len([next(transcript) for _ in range(500)]) == 500
        with pytest.raises(EslError, match="content-type"):
            next(transcript)

    def test_refused_frames_are_counted(self) -> None:
        transcript = esl.read_transcript(frame(b"x") * 3)
        assert list(transcript) == []
        assert transcript.refused == {"json": 3}

    def test_lines_of_the_client_are_skipped_only_between_frames(self) -> None:
        said = b">>> api x\n>>> \n\n"
        reply = frame(b">>> not the client\n\n", b"api/response")
        found = list(esl.read_transcript(said + reply + said + said + reply + b">>> exit\n>>>\n"))
        assert found == [Reply("api/response", ">>> not the client\n\n")] * 2

    def test_a_switch_cannot_say_a_line_of_the_client(self) -> None:
        with pytest.raises(EslError, match="content-type"):
            received(b">>> api x\n\n")

    @pytest.mark.parametrize("offset", range(12))
    def test_a_line_of_the_client_may_lie_anywhere_in_the_file(self, offset: int) -> None:
        fill = frame(b"x" * (esl.MAX_HEAD - 100), b"api/response")
        fill += b"\n" * (esl.MAX_HEAD - len(fill) - offset)
        transcript = esl.read_transcript(fill + b">>> exit\n" + ACCEPTED)
        assert [each.content_type for each in transcript if isinstance(each, Reply)] == [
            "api/response",
            "command/reply",
        ]
        assert not transcript.truncated


class TestCommands:
    def test_commands_are_what_freeswitch_reads(self) -> None:
        assert esl.auth("ClueCon") == b"auth ClueCon\n\n"
        assert esl.userauth("me@example.net", "a:b@c d") == b"userauth me@example.net:a:b@c d\n\n"
        assert esl.api("status") == b"api status\n\n"
        assert esl.bgapi("status x", "u-1") == b"bgapi status x\nJob-UUID: u-1\n\n"
        assert esl.exit_() == b"exit\n\n"
        assert esl.command("noevents") == b"noevents\n\n"

    def test_subclasses_are_asked_for_after_all_other_names(self) -> None:
        names = ["sofia::register", "HEARTBEAT", "sofia::gateway_state", "CHANNEL_CREATE"]
        assert (
            esl.subscribe(names)
            == b"event json HEARTBEAT CHANNEL_CREATE CUSTOM sofia::register sofia::gateway_state\n\n"
        )
        assert esl.subscribe(iter(["ALL"]), json=False) == b"event plain ALL\n\n"

    @pytest.mark.parametrize("end", ["\n", "\r", "\0", "\n\nexit\n\n"])
    def test_no_argument_begins_another_command(self, end: str) -> None:
        for build in (
            esl.auth,
            lambda text: esl.userauth("a@b", text),
            lambda text: esl.userauth(text + "@b", "c"),
            esl.api,
            lambda text: esl.bgapi(text, "u"),
            lambda text: esl.bgapi("status", text),
            esl.command,
        ):
            with pytest.raises(EslError, match="newline"):
                build("x" + end)
            with pytest.raises(EslError, match="newline"):
                build(end + "x")

    @pytest.mark.parametrize("name", ["", "A B", "A\nexit", "é", "A\n"])
    def test_only_names_are_subscribed_to(self, name: str) -> None:
        with pytest.raises(EslError, match="event"):
            esl.subscribe(["HEARTBEAT", name])

    def test_nothing_cannot_be_subscribed_to(self) -> None:
        with pytest.raises(EslError, match="event"):
            esl.subscribe([])

    @pytest.mark.parametrize("line", ["", " ", "\t"])
    def test_a_command_that_gets_no_answer_is_not_sent(self, line: str) -> None:
        with pytest.raises(EslError, match="empty"):
            esl.command(line)

    @pytest.mark.parametrize("user", ["", "me", "@b", "a@", "a:b@c", "a@b:c", "a@b@c"])
    def test_a_user_has_a_domain_and_no_colon(self, user: str) -> None:
        with pytest.raises(EslError, match="user"):
            esl.userauth(user, "x")

    def test_a_password_of_other_bytes_goes_out_as_it_was(self) -> None:
        assert esl.auth(b"caf\xe9".decode("utf-8", "surrogateescape")) == b"auth caf\xe9\n\n"

    @pytest.mark.parametrize("password", ["S3CRET\n", "S3CRET\ud800", "\udc0aS3CRET"])
    def test_a_password_is_in_no_error(self, password: str) -> None:
        with pytest.raises(EslError) as error:
            esl.userauth("a@b", password)
        told: BaseException | None = error.value
        assert error.value.why in {"newline", "text"}
        while told is not None:
            assert "S3CRET" not in repr(told) + str(vars(told))
            told = told.__context__

    def test_every_why_is_known(self) -> None:
        assert {*esl.FAULTS, *esl.REFUSALS} < esl.WHYS


def channel_block(*lines: bytes) -> bytes:
    return b"\n".join([b"Event-Name: CHANNEL_DATA", *lines])


class TestChannels:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [("outbound-5100", "static"), ("outbound-5186", "static"), ("outbound-5286", "async")],
    )
    def test_a_recorded_channel_says_what_its_invite_said(self, name: str, mode: str) -> None:
        data = recorded(name)
        block = data[data.index(b"Event-Name") :].partition(b"\n\n")[0]
        channel = esl.parse_channel(block)
        assert channel.destination == channel.request_user == channel.to_user == name[-4:]
        assert (channel.direction, channel.answer_state) == ("inbound", "ringing")
        assert (channel.profile, channel.socket_mode) == ("internal", mode)
        assert (channel.from_user, channel.from_host) == ("u", "127.0.0.1")
        assert channel.from_tag == f"t{channel.network_port}"
        assert (channel.network_ip, channel.local_ip) == ("127.0.0.1", "127.0.0.1")
        assert channel.request_uri == f"{name[-4:]}@127.0.0.1:15060"
        assert (channel.request_host, channel.to_host) == ("127.0.0.1", "127.0.0.1")
        assert channel.call_id is not None
        assert channel.call_id.startswith("inj-")
        assert channel.invite_stamp == channel.event_stamp
        assert channel.core_uuid == "aeabca5b-4051-4db3-88a1-f80ba07110e1"
        assert channel.headers == {}

    def test_custom_headers_are_kept_by_small_names(self) -> None:
        block = channel_block(b"variable_sip_h_X-Tenant: seven%20up", b"variable_sip_h_x-tenant: 8")
        assert esl.parse_channel(block).headers == {"x-tenant": "seven up"}

    def test_a_header_of_the_caller_becomes_no_other(self) -> None:
        channel = esl.parse_channel(
            channel_block(
                b"variable_sip_call_id: own",
                b"variable_sip_h_X-Evil: a%0Avariable_sip_call_id: forged%0A%0A",
                b"variable_sip_call_id: forged",
                b"variable_sip_network_ip: 192.0.2.1",
            )
        )
        assert channel.call_id == "own"
        assert channel.network_ip == "192.0.2.1"
        assert channel.headers == {"x-evil": "a\nvariable_sip_call_id: forged\n\n"}

    def test_a_call_id_that_looks_like_a_list_is_whole_and_a_user_is_its_first(self) -> None:
        block = channel_block(
            b"variable_sip_call_id: ARRAY%3A%3Aa%7C%3Ab", b"variable_sip_from_user: ARRAY::c|:d"
        )
        channel = esl.parse_channel(block)
        assert (channel.call_id, channel.from_user) == ("ARRAY::a|:b", "c")

    def test_no_more_custom_headers_than_the_limit_are_kept(self) -> None:
        lines = [b"variable_sip_h_X-%d: v" % n for n in range(esl.MAX_CUSTOM + 50)]
        channel = esl.parse_channel(channel_block(*lines, b"variable_sip_call_id: last"))
        assert len(channel.headers) == esl.MAX_CUSTOM
        assert channel.call_id == "last"

    @pytest.mark.parametrize("block", [b"", b"Content-Type: command/reply", b"Event-Name", b"\xff"])
    def test_what_is_no_channel_is_refused(self, block: bytes) -> None:
        with pytest.raises(EslError, match="event-name"):
            esl.parse_channel(block)

    @given(st.binary(max_size=300))
    def test_any_bytes_are_a_channel_or_an_esl_error(self, data: bytes) -> None:
        with contextlib.suppress(EslError):
            esl.parse_channel(b"Event-Name: X\n" + data)
            esl.parse_channel(data)

    def test_an_application_is_executed_as_it_was_recorded(self) -> None:
        sent = esl.execute("respond", "486")
        written = b"".join(b">>> " + line + b"\n" for line in sent.split(b"\n")[:-1])
        assert written in recorded("outbound-5186")

    @pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b"])
    def test_an_argument_cannot_be_another_command(self, text: str) -> None:
        with pytest.raises(EslError, match="newline"):
            esl.execute("set", text)
        with pytest.raises(EslError, match="newline"):
            esl.execute(text, "x")

    @given(st.text())
    def test_words_of_a_refusal_can_stand_in_a_quoted_text(self, text: str) -> None:
        words = esl.refusal_words(text)
        assert len(words) <= esl.MAX_REASON
        assert not set(words) & set('"\\$%={}[]<>;\r\n\0`|&')
        assert esl.refusal_words(words) == words
        # FreeSWITCH cuts the header at 127.
        assert len(f'SIP;cause=486;text="{words}"') < 127

    def test_words_of_a_rule_are_kept(self) -> None:
        assert esl.refusal_words("cac acme_asr: ASR (5 min) low") == "cac acme_asr: ASR (5 min) low"
