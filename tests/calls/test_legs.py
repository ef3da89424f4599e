import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls import legs as module
from sipsidecar.calls.events import ConversationRecord, LegRecord
from sipsidecar.calls.legs import (
    LINGER,
    LONGEST,
    MAX_CONVERSATION,
    MAX_LINKS,
    SETTLE,
    Leaving,
    Leg,
    LegTable,
    Packets,
    Unjoined,
)
from sipsidecar.wire import esl
from sipsidecar.wire.esl import Event

CORPUS = Path(__file__).parent.parent / "corpus" / "freeswitch"
FILES = sorted(path.stem for path in CORPUS.glob("*.esl"))
START = 1_795_000_000_000_000


def recorded(name: str) -> list[Event]:
    (path,) = CORPUS.glob(name + "*.esl")
    return [item for item in esl.read_transcript(path.read_bytes()) if isinstance(item, Event)]


def run(table: LegTable, until: float) -> list[Leaving]:
    """All that leaves up to a time."""
    while (due := table.next_timer()) is not None and due <= until:
        table.handle_timer(due)
    return table.records()


def told(events: Iterable[Event], table: LegTable | None = None) -> list[Leaving]:
    table = LegTable() if table is None else table
    for event in events:
        table.receive("one", event, 0.0, 5)
    return run(table, SETTLE)


def legs_of(records: Iterable[Leaving]) -> list[LegRecord]:
    """The caller's leg first."""
    found = [record for record in records if isinstance(record, LegRecord)]
    return sorted(found, key=lambda leg: (leg.created_at, leg.direction or "", leg.call_id))


def conversations_of(records: Iterable[Leaving]) -> list[ConversationRecord]:
    return [record for record in records if isinstance(record, ConversationRecord)]


_sequence = iter(range(1, 10**9))


def event(name: str, uuid: str | None, at: float = 0.0, **fields: Any) -> Event:
    """One event, `at` seconds after START."""
    stamp = START + int(at * 1_000_000)
    fields.setdefault("caller_channel_created_time", str(START))
    return Event(
        event_name=name,
        unique_id=uuid,
        event_date_timestamp=str(stamp),
        event_sequence=str(next(_sequence)),
        core_uuid=fields.pop("core_uuid", "core"),
        call_direction=fields.pop("call_direction", "inbound"),
        **fields,
    )


def create(uuid: str, at: float = 0.0, **fields: Any) -> Event:
    fields.setdefault("caller_channel_created_time", str(START + int(at * 1_000_000)))
    return event("CHANNEL_CREATE", uuid, at, **fields)


def end(uuid: str, at: float = 1.0, began: float = 0.0, **fields: Any) -> Iterator[Event]:
    fields = {
        "caller_channel_created_time": str(START + int(began * 1_000_000)),
        "caller_channel_hangup_time": str(START + int(at * 1_000_000)),
        "hangup_cause": "USER_BUSY",
        **fields,
    }
    for name in ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY"):
        yield event(name, uuid, at, **fields)


# ------------------------------------------------------------------------------------- the corpus

ALONE = {
    # code, source, cause, q850, released by, PDD, talk in ms, packets in, out, skipped, FreeSWITCH's MOS
    "01": (200, "reported", "NORMAL_CLEARING", 16, "peer", 0.0, 5019.998, 250, 250, 2, 4.5),
    "02": (200, "derived", "NORMAL_CLEARING", 16, "switch", 0.0, 3000.011, 149, 150, 2, 4.5),
    "03": (486, "derived", "USER_BUSY", 17, "switch", None, None, None, None, None, None),
    "04": (486, "derived", "USER_BUSY", 17, "switch", None, None, None, None, None, None),
    "05": (
        *(503, "derived", "NORMAL_TEMPORARY_FAILURE", 41, "switch"),
        *(None, None, None, None, None, None),
    ),
    "06": (603, "derived", "CALL_REJECTED", 21, "switch", None, None, None, None, None, None),
    "07": (487, "reported", "ORIGINATOR_CANCEL", 16, "peer", 0.0, None, None, None, None, None),
    "08": (200, "reported", "NORMAL_CLEARING", 16, "peer", 0.0, 3020.011, 299, 300, 4, 4.5),
    "19": (404, "derived", "NO_ROUTE_DESTINATION", 3, "switch", None, None, None, None, None, None),
}
BRIDGED = {
    # of both legs: code, source, cause, released by, PDD, talk in ms, packets in, out, skipped
    "10": (
        (200, "reported", "NORMAL_CLEARING", "peer", 199.997, 5020.005, 250, 249, 2),
        (200, "derived", "NORMAL_CLEARING", "switch", 199.997, 5060.01, 252, 249, 2),
    ),
    "11": (
        (200, "derived", "NORMAL_CLEARING", "switch", 199.991, 4020.031, 200, 197, 1),
        (200, "reported", "NORMAL_CLEARING", "peer", 199.991, 4020.024, 198, 199, 4),
    ),
    "12": (
        (486, "reported", "USER_BUSY", "switch", None, None, None, None, None),
        (486, "reported", "USER_BUSY", "peer", None, None, None, None, None),
    ),
    "13": (
        (503, "reported", "NORMAL_TEMPORARY_FAILURE", "switch", None, None, None, None, None),
        (503, "reported", "NORMAL_TEMPORARY_FAILURE", "peer", None, None, None, None, None),
    ),
    "15": (
        (603, "reported", "CALL_REJECTED", "switch", None, None, None, None, None),
        (603, "reported", "CALL_REJECTED", "peer", None, None, None, None, None),
    ),
    "17": (
        (487, "reported", "ORIGINATOR_CANCEL", "peer", 199.999, None, None, None, None),
        (487, "reported", "ORIGINATOR_CANCEL", "switch", 199.999, None, None, None, None),
    ),
}
CALLEES = {  # the Call-IDs that the callee saw
    "10": "474e08b4-5f66-1240-22ab-7ab7a297256e",
    "11": "4cbdef35-5f66-1240-22ab-7ab7a297256e",
    "12": "52318c95-5f66-1240-22ab-7ab7a297256e",
    "13": "54aa99bf-5f66-1240-22ab-7ab7a297256e",
    "15": "599d7226-5f66-1240-22ab-7ab7a297256e",
    "17": "60ef24ad-5f66-1240-22ab-7ab7a297256e",
    "20": "6b4d319c-5f66-1240-22ab-7ab7a297256e",
}
IMPAIRED = {
    # dialled: Call-ID at the callee; FreeSWITCH heard, skipped, rated; the caller's leg heard
    "110": ("add279e3-5f66-1240-22ab-7ab7a297256e", 475, 28, 4.17, 496),
    "111": ("add3016e-5f66-1240-22ab-7ab7a297256e", 366, 137, 1.49, 500),
    "120": ("add1d1d2-5f66-1240-22ab-7ab7a297256e", 499, 4, 1.0, 500),
    "121": ("add1de25-5f66-1240-22ab-7ab7a297256e", 485, 40, 3.45, 500),
    "130": ("add28ef7-5f66-1240-22ab-7ab7a297256e", 0, 502, 4.5, 496),
    "140": ("add2a52b-5f66-1240-22ab-7ab7a297256e", 401, 102, 4.5, 496),
}
NO_LEG = {
    "21-register-unregister",
    "23-paused-503",
    "27-auth-fail",
    "28-api-bgapi-exit",
    "29-userauth-restricted",
    "31-json-body-and-array",
}


@pytest.mark.parametrize("name", ALONE)
def test_a_recorded_call_of_one_leg_is_told_as_it_was(name: str) -> None:
    records = told(recorded(name))
    (leg,) = legs_of(records)
    assert ALONE[name] == (
        *(leg.sip_code, leg.sip_code_source, leg.hangup_cause, leg.q850, leg.released_by),
        *(leg.pdd_ms, leg.talk_ms, leg.packets_in, leg.packets_out, leg.packets_skipped),
        leg.fs_mos,
    )
    assert leg.answered is (leg.sip_code == 200)
    assert leg.call_id.startswith(name + "-")
    assert (leg.codec_read, leg.codec_write) == ("PCMU", "PCMU")
    assert (leg.direction, leg.profile, leg.gateway) == ("inbound", "internal", None)
    assert (leg.network_ip, leg.network_port, leg.caller) == ("127.0.0.1", 16060, "44201")
    assert (leg.other_leg, leg.flags, leg.revision, leg.received_at) == (None, (), 0, 5)
    (conversation,) = conversations_of(records)
    assert conversation == ConversationRecord(
        conversation=leg.uuid,
        switch="one",
        received_at=5,
        started_at=leg.created_at,
        ended_at=leg.ended_at,
        answered=leg.answered,
        legs=(leg.uuid,),
        call_ids=(leg.call_id,),
    )


@pytest.mark.parametrize("name", [*BRIDGED, "20"])
def test_a_recorded_call_of_two_legs_is_one_conversation(name: str) -> None:
    records = told(recorded(name))
    caller, callee = legs_of(records)
    (conversation,) = conversations_of(records)
    assert conversation.legs == (caller.uuid, callee.uuid)
    assert conversation.conversation == caller.conversation == callee.conversation == caller.uuid
    assert conversation.call_ids == (caller.call_id, CALLEES[name])
    assert caller.call_id.startswith(name + "-")
    assert (caller.direction, callee.direction) == ("inbound", "outbound")
    assert (caller.gateway, callee.gateway) == (None, "trunk-a")
    assert (caller.profile, callee.profile) == ("internal", "external")
    assert callee.other_leg == caller.uuid
    assert caller.other_leg == callee.uuid
    assert (caller.flags, callee.flags, conversation.flags) == ((), (), ())
    assert conversation.started_at == caller.created_at
    assert conversation.ended_at == max(caller.ended_at or 0, callee.ended_at or 0)


@pytest.mark.parametrize("name", BRIDGED)
def test_both_legs_of_a_recorded_call_are_told_as_they_were(name: str) -> None:
    for leg, truth in zip(legs_of(told(recorded(name))), BRIDGED[name], strict=True):
        assert truth == (
            *(leg.sip_code, leg.sip_code_source, leg.hangup_cause, leg.released_by),
            *(leg.pdd_ms, leg.talk_ms, leg.packets_in, leg.packets_out, leg.packets_skipped),
        )
        assert leg.answered is (leg.sip_code == 200)


def test_the_times_of_a_bridged_call_are_those_that_the_callee_noted() -> None:
    caller, callee = legs_of(told(recorded("10")))
    base = callee.created_at
    assert base == caller.created_at == 1_795_166_347_279_509
    assert (callee.progress_at or 0) - base == 199_997  # 180 sent after 0.2 s
    assert (callee.answered_at or 0) - base == 1_199_998  # 200 sent after 1.2 s
    assert (caller.bridged_at or 0) - base == 1_220_004
    assert caller.ended_at == 1_795_166_353_519_518


def test_a_call_recorded_as_json_is_told_like_one_recorded_as_text() -> None:
    caller, callee = legs_of(told(recorded("20")))
    assert (caller.sip_code, caller.sip_code_source) == (200, "reported")
    assert (callee.sip_code, callee.sip_code_source) == (200, "derived")
    assert caller.talk_ms == pytest.approx(5020, abs=41)
    assert (callee.packets_in, callee.packets_out) == (249, 249)
    assert callee.pdd_ms == pytest.approx(200, abs=21)


def test_six_calls_at_once_are_six_conversations_with_their_own_figures() -> None:
    records = told(recorded("22"))
    assert len(conversations_of(records)) == 6
    by_call_id = {leg.call_id: leg for leg in legs_of(records)}
    assert len(by_call_id) == 12
    by_uuid = {leg.uuid: leg for leg in by_call_id.values()}
    for dialled, (call_id, heard, skipped, mos, caller_heard) in IMPAIRED.items():
        callee = by_call_id[call_id]
        caller = by_uuid[callee.other_leg or ""]
        assert caller.call_id.startswith(f"22-imp{dialled}-")
        assert caller.other_leg == callee.uuid
        assert (callee.destination, caller.destination) == (dialled, "2" + dialled)
        assert (callee.packets_in, callee.packets_skipped, callee.fs_mos) == (heard, skipped, mos)
        assert caller.packets_in == caller_heard
        assert (caller.sip_code, callee.sip_code) == (200, 200)
        # Only answers and ends were asked for.
        assert "created_unseen" in callee.flags
        assert ("no_packets_in" in callee.flags) is (dialled == "130")
        assert "no_packets_in" not in caller.flags


@pytest.mark.parametrize("name", sorted(NO_LEG))
def test_a_transcript_without_channels_makes_no_record(name: str) -> None:
    table = LegTable()
    assert told(recorded(name), table) == []
    assert len(table) == 0


def test_every_transcript_is_looked_at_here() -> None:
    tested = {*ALONE, *BRIDGED, "20", "22", "24", "25", "outbound"}
    assert all(name in NO_LEG or name.partition("-")[0] in tested for name in FILES)


@pytest.mark.parametrize("name", ["24", "25"])
def test_headers_of_a_caller_forge_nothing(name: str) -> None:
    records = told(recorded(name))
    assert [
        (leg.call_id, leg.hangup_cause, leg.q850, leg.sip_code, leg.sip_code_source)
        for leg in legs_of(records)
    ] == [
        (f"24-hostile-{kind}@127.0.0.1", "NORMAL_CLEARING", 16, 200, "reported")
        for kind in ("encoded", "latin1", "fold")
    ]
    assert all(leg.other_leg is None for leg in legs_of(records))
    assert [len(each.legs) for each in conversations_of(records)] == [1, 1, 1]


def test_text_and_json_of_the_same_calls_make_the_same_records() -> None:
    assert told(recorded("24")) == told(recorded("25"))


@pytest.mark.parametrize("name", ["outbound-5100", "outbound-5186", "outbound-5286"])
def test_a_leg_that_asked_its_way_is_interrupted_at_the_end_of_the_transcript(name: str) -> None:
    table = LegTable()
    assert told(recorded(name), table) == []
    assert table.live("one") == 1
    table.drain(1.0)
    leg, conversation = table.records()
    assert isinstance(leg, LegRecord)
    assert (leg.ended_at, leg.sip_code, leg.flags) == (
        None,
        None,
        ("created_unseen", "interrupted"),
    )
    assert isinstance(conversation, ConversationRecord)
    assert (conversation.ended_at, conversation.flags) == (None, ("interrupted",))
    assert (table.live("one"), table.given_up) == (0, 0)
    table.drain(2.0)
    assert table.records() == []


def _as_set(records: Iterable[Leaving]) -> list[str]:
    return sorted(map(str, records))


JOINED = {name: recorded(name) for name in ("07", "10", "11", "12", "17", "22", "24", "25")}
TRUTH = {name: _as_set(told(events)) for name, events in JOINED.items()}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(JOINED)), seed=st.integers(0, 2**32), copies=st.integers(0, 20))
def test_order_and_copies_of_events_change_nothing(name: str, seed: int, copies: int) -> None:
    chance = random.Random(seed)
    events = [*JOINED[name], *chance.choices(JOINED[name], k=copies)]
    chance.shuffle(events)
    assert _as_set(told(events)) == TRUTH[name]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(JOINED)), seed=st.integers(0, 2**32))
def test_what_left_too_soon_is_put_right_by_what_comes_late(name: str, seed: int) -> None:
    chance = random.Random(seed)
    events = list(JOINED[name])
    chance.shuffle(events)
    table = LegTable(linger=1e6)
    now = 0.0
    legs: dict[str, LegRecord] = {}
    conversations: dict[str, ConversationRecord] = {}
    for each in [*events, None]:
        now += chance.choice([0.0, 0.5, 3.0])
        if each is None:
            now += SETTLE
        else:
            table.receive("one", each, now, 5)
        for record in run(table, now):
            if isinstance(record, Unjoined):
                del conversations[record.conversation]
            elif isinstance(record, LegRecord):
                legs[record.uuid] = record
            else:
                conversations[record.conversation] = record
    stands: list[LegRecord | ConversationRecord] = [*legs.values(), *conversations.values()]
    final = [msgspec.structs.replace(record, revision=0) for record in stands]
    assert _as_set(final) == TRUTH[name]


# ------------------------------------------------------------------------------------------ codes


def finished(**fields: Any) -> LegRecord:
    direction = fields.get("call_direction", "inbound")
    (leg,) = legs_of(told([create("a", call_direction=direction), *end("a", **fields)]))
    return leg


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # refused by FreeSWITCH itself: from the cause, by its own table
        ({"hangup_cause": "NO_USER_RESPONSE"}, (408, "derived")),
        ({"hangup_cause": "GATEWAY_DOWN"}, (503, "derived")),
        ({"hangup_cause": "NORMAL_CLEARING"}, (480, "derived")),
        ({"hangup_cause": "SOMETHING_NEW"}, (480, "derived")),
        ({"hangup_cause": ""}, (None, None)),
        # nobody answers FreeSWITCH's own INVITE with a code of a cause that no peer gave
        ({"hangup_cause": "NORMAL_CLEARING", "call_direction": "outbound"}, (None, None)),
        ({"hangup_cause": "GATEWAY_DOWN", "call_direction": "outbound"}, (503, "derived")),
        # what the peer said
        ({"variable_sip_term_status": "404"}, (404, "reported")),
        ({"variable_proto_specific_hangup_cause": "sip:433"}, (433, "reported")),
        (
            {
                "hangup_cause": "NO_ANSWER",
                "call_direction": "outbound",
                "variable_sip_invite_failure_status": "487",
            },
            (487, "reported"),
        ),
        # copied from the other leg, and handed on
        ({"variable_sip_invite_failure_status": "600"}, (600, "reported")),
        ({"variable_last_bridge_proto_specific_hangup_cause": "sip:486"}, (486, "reported")),
        # copied from the other leg, but the caller was told something else
        ({"variable_sip_invite_failure_status": "503"}, (486, "derived")),
        (
            {"variable_sip_invite_failure_status": "486", "hangup_cause": "NORMAL_CLEARING"},
            (480, "derived"),
        ),
        # no final code
        ({"variable_sip_term_status": "200"}, (486, "derived")),
        ({"variable_sip_term_status": "183"}, (486, "derived")),
        ({"variable_sip_term_status": "700"}, (486, "derived")),
        ({"variable_sip_term_status": "4_4"}, (486, "derived")),
        ({"variable_proto_specific_hangup_cause": "sip:"}, (486, "derived")),
    ],
)
def test_the_code_of_a_leg_that_was_not_answered(
    fields: dict[str, str], expected: tuple[int | None, str | None]
) -> None:
    leg = finished(**fields)
    assert (leg.sip_code, leg.sip_code_source) == expected
    assert not leg.answered


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({}, "derived"),
        ({"variable_sip_term_status": "200"}, "reported"),
        ({"variable_proto_specific_hangup_cause": "sip:200"}, "reported"),
        ({"variable_sip_term_status": "503"}, "derived"),
    ],
)
def test_a_leg_is_answered_by_its_answer_time_alone(fields: dict[str, str], source: str) -> None:
    leg = finished(caller_channel_answered_time=str(START + 20_000), **fields)
    assert (leg.answered, leg.sip_code, leg.sip_code_source) == (True, 200, source)
    assert (leg.pdd_ms, leg.talk_ms) == (20.0, 980.0)


def test_what_was_on_the_wire_wins() -> None:
    asked = []

    def final_code(call_id: str) -> int | None:
        asked.append(call_id)
        return 480 if call_id == "x@y" else None

    table = LegTable(final_code)
    told([create("a", variable_sip_call_id="x@y"), *end("a"), create("b"), *end("b")], table)
    assert asked == ["x@y"]
    (leg,) = legs_of(
        told([create("a", variable_sip_call_id="x@y"), *end("a")], LegTable(final_code))
    )
    assert (leg.sip_code, leg.sip_code_source, leg.answered) == (480, "wire", False)


def test_a_code_that_was_on_the_wire_is_not_lost_with_the_sip_call() -> None:
    codes = {"x@y": 480}
    table = LegTable(codes.get)
    b = create("b", 0.1, other_leg_unique_id="a", variable_sip_call_id="x@y")
    (leg,) = told([create("a"), b, *end("b", began=0.1)], table)
    assert isinstance(leg, LegRecord)
    assert (leg.sip_code, leg.sip_code_source) == (480, "wire")
    codes.clear()
    for each in end("a"):
        table.receive("one", each, 3000.0, 5)
    assert [leg.uuid for leg in legs_of(run(table, 3002.0))] == ["a"]


# ------------------------------------------------------------------------------------------ facts


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"variable_rtp_audio_in_packet_count": "12"}, (12, None, None, None)),
        ({"variable_rtp_audio_in_packet_count": "-1"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_packet_count": "9" * 30}, (None, None, None, None)),
        ({"variable_rtp_audio_out_packet_count": "4294967296"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_skip_packet_count": "\u0663"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "4.50"}, (None, None, None, 4.5)),
        ({"variable_rtp_audio_in_mos": "4"}, (None, None, None, 4.0)),
        ({"variable_rtp_audio_in_mos": "5.01"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "1e0"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "nan"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "4.5e1"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "4.500000000"}, (None, None, None, None)),
        ({"variable_rtp_audio_in_mos": "\u0664"}, (None, None, None, None)),
    ],
)
def test_figures_are_decimal_or_unknown(
    fields: dict[str, str], expected: tuple[int | float | None, ...]
) -> None:
    leg = finished(**fields)
    assert (leg.packets_in, leg.packets_out, leg.packets_skipped, leg.fs_mos) == expected


def test_figures_before_the_end_do_not_count() -> None:
    table = LegTable()
    table.receive(
        "one",
        event("CHANNEL_UNBRIDGE", "a", variable_rtp_audio_in_packet_count="9"),
        0.0,
        0,
    )
    leg = table.leg_of("a")
    assert isinstance(leg, Leg)
    assert leg.quality() == Packets()
    for each in end("a", variable_rtp_audio_in_packet_count="10"):
        table.receive("one", each, 0.0, 0)
    assert leg.quality() == Packets(10)


@pytest.mark.parametrize(
    ("ip", "port", "expected"),
    [
        ("192.0.2.1", "5060", ("192.0.2.1", 5060)),
        ("[2001:db8::1]", "5060", ("2001:db8::1", 5060)),
        ("192.0.2.1", "0", (None, None)),
        ("192.0.2.1", "65536", (None, None)),
        ("192.0.2.1", None, (None, None)),
        ("host.example", "5060", (None, None)),
        ("1" * 100, "5060", (None, None)),
    ],
)
def test_an_address_is_one_or_unknown(
    ip: str, port: str | None, expected: tuple[str | None, int | None]
) -> None:
    leg = finished(variable_sip_network_ip=ip, variable_sip_network_port=port)
    assert (leg.network_ip, leg.network_port) == expected


def test_the_media_endpoints_are_the_first_that_were_told() -> None:
    table = LegTable()

    def told_of(name: str, at: float, port: str, own: str | None = None) -> None:
        media = {"variable_remote_media_ip": "192.0.2.1", "variable_remote_media_port": port}
        if own:
            media |= {"variable_local_media_ip": "192.0.2.9", "variable_local_media_port": own}
        table.receive("one", event(name, "a", at, **media), 0.0, 0)

    told_of("CHANNEL_ANSWER", 1.0, "4002", "6000")
    leg = table.leg_of("a")
    assert leg is not None
    assert leg.endpoints == ((b"\xc0\0\2\1", 4002), (b"\xc0\0\2\x09", 6000))
    told_of("CHANNEL_CREATE", 0.0, "4000")
    told_of("CALL_UPDATE", 2.0, "4004")
    assert leg.endpoints == ((b"\xc0\0\2\1", 4000), (b"\xc0\0\2\x09", 6000))


def test_a_leg_tells_what_its_media_needs() -> None:
    table = LegTable()
    table.receive("one", create("a", variable_sip_call_id="x@y"), 0.0, 0)
    table.receive("one", create("b", call_direction="sideways"), 0.0, 0)
    a, b = table.leg_of("a"), table.leg_of("b")
    assert a is not None
    assert b is not None
    assert (a.call_id, a.direction, a.switch, a.endpoints) == (
        "x@y",
        "inbound",
        "one",
        (None, None),
    )
    assert (b.call_id, b.direction) == ("", None)
    assert 0 < a.number < b.number
    assert table.leg_of("c") is None


def test_texts_of_strangers_are_clipped_but_a_call_id_is_not_cut_where_sip_keeps_it() -> None:
    leg = finished(
        caller_caller_id_number="9" * 300,
        caller_destination_number="8" * 300,
        variable_sip_call_id="c" * 2000,
    )
    assert (leg.caller, leg.destination) == ("9" * 255, "8" * 255)
    assert leg.call_id == "c" * 512


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    leg = finished(caller_channel_answered_time=str(START + 5_000_000), began=10)
    assert leg.created_at == START
    leg = finished(
        caller_channel_answered_time=str(START + 5_000_000),
        caller_channel_progress_time=str(START - 5_000_000),
    )
    assert (leg.pdd_ms, leg.talk_ms) == (None, None)


def test_transcoding_shows_in_the_codecs_and_the_last_ones_count() -> None:
    a = create("a", channel_read_codec_name="PCMU", variable_write_codec="L16")
    update = event("CALL_UPDATE", "a", 0.5, channel_read_codec_name="opus")
    (leg,) = legs_of(told([update, a, *end("a")]))
    assert (leg.codec_read, leg.codec_write) == ("opus", "L16")


@settings(max_examples=30, deadline=None)
@given(st.permutations([0, 1, 2, 3]))
def test_facts_of_one_moment_do_not_depend_on_order(order: list[int]) -> None:
    base = event("CHANNEL_ANSWER", "a")
    events = [
        msgspec.structs.replace(
            base,
            caller_caller_id_number=str(n % 3),
            hangup_cause=f"CAUSE_{n % 3}",
            variable_sip_network_ip=f"192.0.2.{n}",
            variable_sip_network_port="5060",
        )
        for n in order
    ]
    (leg,) = legs_of(told([*events, create("a"), *end("a", hangup_cause="")]))
    assert (leg.caller, leg.hangup_cause, leg.network_ip) == ("0", "CAUSE_2", "192.0.2.0")


# ------------------------------------------------------------------------------------------- ends


def test_a_record_leaves_when_nothing_new_came_for_the_settle_time() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 7)
    complete, destroy = end("a")
    table.receive("one", complete, 10.0, 8)
    table.receive("one", destroy, 11.0, 9)
    assert table.live("one") == 0
    for n in range(20):  # copies do not put it off
        table.receive("one", complete, 11.0 + n / 10, 9)
    assert run(table, 12.9) == []
    leg, conversation = run(table, 13.0)
    assert isinstance(leg, LegRecord)
    assert isinstance(conversation, ConversationRecord)
    assert (leg.received_at, conversation.received_at) == (7, 7)
    assert (len(table), table.lingering) == (1, 1)
    assert run(table, 13.0 + LINGER) == []
    assert (len(table), table.lingering) == (0, 0)
    assert table.leg_of("a") is None


def test_the_earliest_sighting_is_when_a_leg_was_received() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 9)
    for each in end("a"):
        table.receive("one", each, 0.0, 4)
    (leg,) = legs_of(run(table, 2.0))
    assert leg.received_at == 4
    table.receive("one", event("CHANNEL_ANSWER", "a", hangup_cause="X"), 3.0, 1)
    assert all(leg.received_at == 4 for leg in legs_of(run(table, 9.0)))


def test_a_leg_ends_without_its_hangup_complete() -> None:
    table = LegTable()
    (leg,) = legs_of(told([create("a"), *list(end("a"))[1:]], table))
    assert (leg.ended_at, leg.flags) == (START + 1_000_000, ())


def test_a_leg_whose_end_was_lost_after_its_hangup_ends_with_that() -> None:
    table = LegTable()
    hangup = event("CHANNEL_HANGUP", "a", 1.0, hangup_cause="USER_BUSY")
    assert told([create("a"), hangup], table) == []
    assert run(table, LINGER - 0.1) == []
    (leg,) = legs_of(run(table, LINGER))
    assert (leg.ended_at, leg.hangup_cause) == (START + 1_000_000, "USER_BUSY")
    assert (leg.sip_code, leg.flags) == (486, ())


def test_the_destruction_of_a_channel_that_never_was_is_a_leg() -> None:
    gone = event(
        "CHANNEL_DESTROY",
        "a",
        3.0,
        caller_channel_created_time=None,
        call_direction="outbound",
        hangup_cause="GATEWAY_DOWN",
    )
    table = LegTable()
    (leg,) = legs_of(told([gone], table))
    assert (leg.created_at, leg.ended_at) == (START + 3_000_000, START + 3_000_000)
    assert (leg.flags, leg.sip_code, leg.sip_code_source) == (("created_unseen",), 503, "derived")
    assert table.live("one") == 0


def test_a_leg_that_no_event_dates_is_dated_by_its_sighting() -> None:
    gone = Event(event_name="CHANNEL_DESTROY", unique_id="a", event_date_timestamp="soon")
    leg, conversation = told([gone])
    assert isinstance(leg, LegRecord)
    assert isinstance(conversation, ConversationRecord)
    assert (leg.created_at, leg.ended_at, leg.direction) == (5, None, None)
    assert (conversation.started_at, conversation.ended_at) == (5, None)


def test_legs_of_a_switch_that_restarted_end_unseen() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    table.receive("two", create("b"), 0.0, 0)
    table.receive("one", create("c", core_uuid="new"), 0.0, 0)
    table.receive("one", event("CHANNEL_HANGUP", "d"), 0.0, 0)
    table.forget_switch("one", "new")
    leg, conversation = run(table, SETTLE)
    assert isinstance(leg, LegRecord)
    assert isinstance(conversation, ConversationRecord)
    assert (leg.uuid, leg.ended_at, leg.sip_code) == ("a", None, None)
    assert leg.flags == conversation.flags == ("end_unseen", "restarted")
    assert (table.live("one"), table.live("two"), table.given_up) == (2, 1, 1)


def test_the_end_of_a_leg_that_came_after_all_takes_the_flag_away() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    table.forget_switch("one", "new")
    for each in end("a"):
        table.receive("one", each, 1.0, 0)
    (leg,) = legs_of(run(table, 9.0))
    assert (leg.flags, leg.ended_at) == ((), START + 1_000_000)
    assert table.given_up == 0


def test_a_leg_that_is_heard_of_after_a_restart_lives() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    table.forget_switch("one", "new")
    table.receive("one", event("CHANNEL_ANSWER", "a"), 1.0, 0)
    assert run(table, 60.0) == []
    assert table.live("one") == 1


def test_a_code_that_the_wire_shows_while_the_leg_lingers_is_told() -> None:
    codes: dict[str, int] = {}
    table = LegTable(codes.get)
    records = told([create("a", variable_sip_call_id="x"), *end("a")], table)
    assert [(leg.sip_code, leg.sip_code_source) for leg in legs_of(records)] == [(486, "derived")]
    codes["x"] = 600
    (leg,) = legs_of(run(table, SETTLE + LINGER))
    assert (leg.sip_code, leg.sip_code_source, leg.revision) == (600, "wire", 1)
    assert table.mirrored == {"x"}
    assert len(table) == 0


def test_legs_that_a_switch_does_not_list_end_unseen() -> None:
    table = LegTable()
    for uuid in ("gone", "up", "heard"):
        table.receive("one", create(uuid), 0.0, 0)
    table.receive("two", create("other"), 0.0, 0)
    table.receive("one", create("new"), 99.0, 0)
    table.reconcile("one", ["up", "unknown"], 100.0)
    table.reconcile("one", ["up"], 100.5)  # asked again: nothing is put off
    table.receive("one", Event(event_name="RECV_RTCP_MESSAGE", unique_id="heard"), 101.0, 0)
    records = run(table, 102.0)
    assert [leg.uuid for leg in legs_of(records)] == ["gone"]
    assert legs_of(records)[0].flags == ("end_unseen",)
    assert (table.live("one"), table.live("two")) == (3, 1)
    table.reconcile("one", [], 110.0)
    assert sorted(leg.uuid for leg in legs_of(run(table, 112.0))) == ["heard", "new", "up"]


def test_a_leg_that_left_is_not_reconciled_again() -> None:
    table = LegTable()
    told([create("a"), *end("a")], table)
    table.reconcile("one", [], 20.0)
    assert run(table, 30.0) == []


def test_a_leg_is_given_up_after_long_silence_only() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    table.receive("one", Event(event_name="SEND_RTCP_MESSAGE", unique_id="a"), 100.0, 0)
    table.receive("one", create("b"), 0.0, 0)
    (leg,) = legs_of(run(table, LONGEST))
    assert (leg.uuid, leg.flags, leg.ended_at) == ("b", ("end_unseen",), None)
    table.reconcile("one", ["a"], LONGEST)
    assert run(table, LONGEST + 200.0) == []
    (leg,) = legs_of(run(table, 2 * LONGEST))
    assert leg.uuid == "a"
    assert table.given_up == 2


def test_late_facts_make_a_new_revision_and_copies_make_none() -> None:
    table = LegTable()
    complete, destroy = end("a")
    told([create("a"), complete, destroy], table)
    table.receive("one", complete, 3.0, 5)
    assert run(table, 9.0) == []
    late = event("CHANNEL_ANSWER", "a", caller_channel_answered_time=str(START + 500_000))
    table.receive("one", late, 10.0, 5)
    leg, conversation = run(table, 12.0)
    assert isinstance(leg, LegRecord)
    assert isinstance(conversation, ConversationRecord)
    assert (leg.revision, leg.answered, leg.talk_ms) == (1, True, 500.0)
    assert (conversation.revision, conversation.answered) == (1, True)
    table.receive("one", event("CALL_UPDATE", "a", 0.5, channel_read_codec_name="G722"), 13.0, 5)
    (leg,) = run(table, 15.0)  # the conversation is as it was
    assert isinstance(leg, LegRecord)
    assert (leg.revision, leg.codec_read) == (2, "G722")
    assert table.revisions == 3
    assert run(table, 2.0 + LINGER) == []
    assert len(table) == 0


def test_what_came_just_before_a_leg_is_forgotten_is_said() -> None:
    table = LegTable()
    told([create("a"), *end("a")], table)
    late = event("CHANNEL_ANSWER", "a", caller_channel_answered_time=str(START))
    table.receive("one", late, 1.0 + LINGER, 5)
    (leg,) = legs_of(run(table, 2.0 + LINGER))
    assert leg.answered
    assert len(table) == 0


def test_the_end_of_a_leg_long_after_its_hangup_is_not_another_leg() -> None:
    table = LegTable()
    late = event("CHANNEL_DESTROY", "a", 60.0, caller_channel_hangup_time=str(START))
    assert told([late], table) == []
    assert (len(table), table.strays) == (0, 1)


def test_events_that_begin_no_leg_are_counted() -> None:
    table = LegTable()
    table.receive("one", Event(event_name="RECV_RTCP_MESSAGE", unique_id="a"), 0.0, 0)
    table.receive("one", Event(event_name="HEARTBEAT"), 0.0, 0)
    table.receive("one", event("CHANNEL_CREATE", "u" * 256), 0.0, 0)
    assert (len(table), table.strays, table.refused_uuids) == (0, 1, 1)


def test_live_legs_are_counted_until_they_are_destroyed() -> None:
    table = LegTable()
    for uuid in ("a", "b"):
        table.receive("one", create(uuid), 0.0, 0)
        table.receive("one", create(uuid), 0.0, 0)
    assert (table.live("one"), table.live("two")) == (2, 0)
    complete, destroy = end("a")
    table.receive("one", complete, 1.0, 0)
    assert table.live("one") == 2
    table.receive("one", destroy, 1.0, 0)
    assert table.live("one") == 1
    table.receive("one", create("a"), 1.0, 0)  # out of order
    assert table.live("one") == 1
    complete, _ = end("b")
    table.receive("one", complete, 1.0, 0)
    run(table, 9.0)  # its DESTROY was lost
    assert table.live("one") == 0


def test_a_switch_with_two_names_has_its_legs_under_one() -> None:
    for names in (("one", "two"), ("two", "one")):
        table = LegTable()
        for name in names:
            table.receive(name, create("a"), 0.0, 0)
        assert (table.live("one"), table.live("two")) == (1, 0)


# ------------------------------------------------------------------------------------------ joins


def bridged(one: str, other: str, at: float = 0.5) -> Event:
    return event("CHANNEL_BRIDGE", one, at, bridge_a_unique_id=one, bridge_b_unique_id=other)


@pytest.mark.parametrize(
    "field",
    [
        "other_leg_unique_id",
        "channel_call_uuid",
        "variable_originating_leg_uuid",
        "variable_originator",
    ],
)
def test_each_link_joins_two_legs(field: str) -> None:
    b = create("b", 0.1, call_direction="outbound", **{field: "a"})
    for events in ([create("a"), b], [b, create("a")]):
        table = LegTable()
        records = told([*events, *end("a"), *end("b", began=0.1)], table)
        (conversation,) = conversations_of(records)
        assert (conversation.conversation, conversation.legs) == ("a", ("a", "b"))
        assert {leg.conversation for leg in legs_of(records)} == {"a"}
        run(table, 99.0)
        assert len(table) == 0


def test_the_last_bridge_tells_the_other_leg_of_both() -> None:
    records = told(
        [
            bridged("b", "c", 0.7),  # B was handed on to C
            create("a"),
            create("b", 0.1, other_leg_unique_id="a"),
            bridged("a", "b"),
            create("c", 0.2),
            *end("a"),
            *end("b", began=0.1),
            *end("c", began=0.2),
        ]
    )
    assert {leg.uuid: leg.other_leg for leg in legs_of(records)} == {"a": "b", "b": "c", "c": "b"}
    (conversation,) = conversations_of(records)
    assert conversation.legs == ("a", "b", "c")


def test_bridges_are_kept_when_their_conversations_are_joined() -> None:
    records = told(
        [
            create("a"),
            create("b", 0.1),
            bridged("a", "b"),
            create("c", 0.2),
            create("d", 0.3),
            bridged("c", "d"),
            event("CHANNEL_PARK", "a", other_leg_unique_id="c"),
            bridged("a", "a"),
            event("CHANNEL_BRIDGE", "d", bridge_a_unique_id="b", bridge_b_unique_id="c"),
            *(each for n, uuid in enumerate("abcd") for each in end(uuid, began=n / 10)),
        ]
    )
    assert {leg.uuid: leg.other_leg for leg in legs_of(records)} == {
        "a": "b",
        "b": "a",
        "c": "d",
        "d": "c",
    }
    assert len(conversations_of(records)) == 1


def test_a_leg_that_was_only_named_is_no_leg_of_the_record() -> None:
    table = LegTable()
    leg, conversation = told([create("b", other_leg_unique_id="a"), *end("b")], table)
    assert isinstance(leg, LegRecord)
    assert isinstance(conversation, ConversationRecord)
    assert (leg.other_leg, leg.conversation) == ("a", "b")
    assert conversation.legs == ("b",)
    assert table.leg_of("a") is None


def test_a_leg_leaves_before_its_conversation_and_is_kept_until_that_is_over() -> None:
    table = LegTable()
    told([create("a"), create("b", 0.1, other_leg_unique_id="a"), *end("b", began=0.1)], table)
    assert run(table, 1000.0) == []
    assert len(table) == 2
    table.receive("one", create("c", 0.2, other_leg_unique_id="a"), 1000.0, 0)
    for uuid in ("a", "c"):
        for each in end(uuid):
            table.receive("one", each, 1001.0, 0)
    records = run(table, 1003.0)
    assert sorted(leg.uuid for leg in legs_of(records)) == ["a", "c"]
    (conversation,) = conversations_of(records)
    assert (sorted(conversation.legs), conversation.revision) == (["a", "b", "c"], 0)


def test_a_link_that_comes_late_takes_one_of_two_conversations_back() -> None:
    table = LegTable()
    told([create("a"), *end("a"), create("b", 0.1), *end("b", began=0.1)], table)
    table.receive("one", event("CHANNEL_PARK", "b", other_leg_unique_id="a"), 5.0, 5)
    *legs, conversation, unjoined = run(table, 7.0)
    assert {
        (leg.uuid, leg.conversation, leg.other_leg, leg.revision)
        for leg in legs
        if isinstance(leg, LegRecord)
    } == {("a", "a", "b", 1), ("b", "a", "a", 1)}
    assert isinstance(conversation, ConversationRecord)
    assert (conversation.conversation, conversation.legs, conversation.revision) == (
        *("a", ("a", "b")),
        1,
    )
    assert unjoined == Unjoined("b", 5, 1)
    run(table, 99.0)
    assert len(table) == 0
    assert table.records() == []


def test_a_conversation_that_joins_one_that_goes_on_is_taken_back_at_once() -> None:
    table = LegTable()
    told([create("b", 0.1), *end("b", began=0.1)], table)
    table.receive("one", create("a"), 5.0, 3)
    table.receive("one", event("CHANNEL_PARK", "a", other_leg_unique_id="b"), 5.0, 3)
    leg, unjoined = run(table, 7.0)
    assert isinstance(leg, LegRecord)
    assert (leg.uuid, leg.conversation, leg.revision) == ("b", "a", 1)
    assert unjoined == Unjoined("b", 5, 1)
    for each in end("a"):
        table.receive("one", each, 50.0, 3)
    (conversation,) = conversations_of(run(table, 52.0))
    assert (conversation.conversation, conversation.received_at) == ("a", 3)
    assert (conversation.legs, conversation.revision) == (("a", "b"), 2)


def test_a_conversation_that_goes_on_under_its_name_keeps_its_record_until_then() -> None:
    table = LegTable()
    told([create("a"), *end("a")], table)
    table.receive("one", create("c", 0.2, other_leg_unique_id="a"), 5.0, 9)
    (named,) = run(table, 20.0)
    assert isinstance(named, LegRecord)
    assert (named.uuid, named.other_leg, named.revision) == ("a", "c", 1)
    assert table.lingering == 0
    for each in end("c", began=0.2):
        table.receive("one", each, 50.0, 9)
    records = run(table, 52.0)
    (conversation,) = conversations_of(records)
    assert (conversation.conversation, conversation.legs) == ("a", ("a", "c"))
    assert (conversation.received_at, conversation.revision) == (5, 1)
    assert not [record for record in records if isinstance(record, Unjoined)]


def test_a_record_that_moves_to_another_day_is_taken_back_there() -> None:
    table = LegTable()
    told([create("a"), *end("a")], table)
    table.receive("one", create("c", 0.2, other_leg_unique_id="a"), 5.0, 1)
    for each in end("c", began=0.2):
        table.receive("one", each, 5.0, 1)
    records = run(table, 9.0)
    (conversation,) = conversations_of(records)
    assert (conversation.conversation, conversation.received_at) == ("a", 1)
    assert records[-1] == Unjoined("a", 5, conversation.revision)


def test_a_leg_of_which_only_the_name_was_known_may_come_late() -> None:
    table = LegTable()
    told([create("b", 0.1, other_leg_unique_id="a"), *end("b", began=0.1)], table)
    for each in end("a"):
        table.receive("one", each, 10.0, 5)
    records = run(table, 12.0)
    assert [(leg.uuid, leg.conversation, leg.revision) for leg in legs_of(records)] == [
        ("a", "a", 0),
        ("b", "a", 1),
    ]
    assert records[-1] == Unjoined("b", 5, 1)


# ------------------------------------------------------------------------------------------- caps


def test_newcomers_are_refused_when_there_is_no_room() -> None:
    table = LegTable(max_legs=2)
    for uuid in ("a", "b", "c"):
        table.receive("one", create(uuid), 0.0, 0)
    assert (len(table), table.refused_legs) == (2, 1)
    for each in end("a"):
        table.receive("one", each, 0.0, 0)
    run(table, SETTLE)
    table.receive("one", create("d"), 3.0, 0)  # what lingers takes no room
    assert (len(table), table.lingering, table.refused_legs) == (3, 1, 1)


def test_newcomers_are_refused_while_memory_is_short() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    table.refuse_new = True
    table.receive("one", create("b"), 0.0, 0)
    table.receive("one", event("CHANNEL_ANSWER", "a"), 0.0, 0)
    assert (len(table), table.refused_memory) == (1, 1)


def test_a_leg_names_few_others_and_a_conversation_has_few_legs() -> None:
    table = LegTable()
    table.receive("one", create("a"), 0.0, 0)
    for n in range(MAX_LINKS + 3):
        table.receive("one", event("CHANNEL_PARK", "a", other_leg_unique_id=f"x{n}"), 0.0, 0)
    assert table.refused_links == 3
    table.receive("one", bridged("a", "z"), 0.0, 0)  # no room for a partner either
    assert table.refused_links == 4
    table = LegTable()
    table.receive("one", create("b", other_leg_unique_id="y" * 256), 0.0, 0)
    assert table.refused_links == 1
    for n in range(MAX_CONVERSATION + 4):
        table.receive("one", create(f"b{n}", other_leg_unique_id="b"), 0.0, 0)
    assert table.refused_links == 1 + 5
    table.drain(1.0)
    sizes = [len(each.legs) for each in conversations_of(table.records())]
    assert sorted(sizes) == [1, 1, 1, 1, 1, MAX_CONVERSATION]
    run(table, 99.0)
    assert len(table) == 0


def test_what_lingers_longest_is_evicted_and_its_news_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LINGERING", 2)
    table = LegTable()
    told([create("a"), *end("a"), create("b"), *end("b")], table)
    late = event("CHANNEL_ANSWER", "a", caller_channel_answered_time=str(START))
    table.receive("one", late, 3.0, 5)
    for each in [create("c"), *end("c")]:
        table.receive("one", each, 3.0, 5)
    told_now = legs_of(run(table, 5.0))
    assert {(leg.uuid, leg.revision) for leg in told_now} == {("a", 1), ("c", 0)}
    assert (table.evicted, table.lingering, table.leg_of("a")) == (1, 2, None)
    table.shrink(0.0, 5.0)
    assert (table.evicted, len(table), table.lingering) == (3, 0, 0)
    assert run(table, 99.0) == []


def test_news_of_the_evicted_are_said_before_it_is_forgotten() -> None:
    table = LegTable()
    told([create("a"), *end("a")], table)
    late = event("CHANNEL_ANSWER", "a", caller_channel_answered_time=str(START))
    table.receive("one", late, 3.0, 5)
    table.shrink(0.0, 3.0)
    (leg,) = legs_of(table.records())
    assert (leg.revision, leg.answered) == (1, True)
    assert len(table) == 0


def test_deadlines_that_no_longer_count_do_not_pile_up() -> None:
    table = LegTable()
    for n in range(3000):
        table.receive("one", create(str(n)), float(n), 0)
        for each in end(str(n)):
            table.receive("one", each, float(n), 0)
        run(table, float(n))
    assert len(table._deadlines) < 2 * len(table._conversations) + module.SPARE_DEADLINES + 2
    assert len(table) < 100


def test_at_most_a_turn_of_conversations_leaves_at_once() -> None:
    table = LegTable()
    for n in range(module.TURN + 1):
        for each in [create(str(n)), *end(str(n))]:
            table.receive("one", each, 0.0, 0)
    table.handle_timer(SETTLE)
    assert len(legs_of(table.records())) == module.TURN
    assert table.next_timer() == SETTLE
    table.handle_timer(SETTLE)
    assert len(legs_of(table.records())) == 1


NAMES = ("CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY")
STEPS = st.tuples(
    st.sampled_from((*NAMES, "CHANNEL_BRIDGE", "CHANNEL_HANGUP", "RECV_RTCP_MESSAGE")),
    st.sampled_from("abcdefgh"),
    st.sampled_from([None, None, *"abcdefgh"]),
    st.sampled_from([0.0, 0.0, 0.5, 3.0, 20.0, 40.0]),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_what_stands_at_the_end_is_consistent_whatever_came(
    steps: list[tuple[str, str, str | None, float, int]],
) -> None:
    table = LegTable(max_legs=6)
    now, records = 0.0, []
    for name, uuid, other, wait, sooner in steps:
        now += wait
        received_at = int(now * 10) - sooner
        records += run(table, now)
        if name == "RECV_RTCP_MESSAGE":
            table.receive("one", Event(event_name=name, unique_id=uuid), now, received_at)
            continue
        links: dict[str, Any] = {"other_leg_unique_id": other}
        if name == "CHANNEL_BRIDGE" and other:
            links = {"bridge_a_unique_id": uuid, "bridge_b_unique_id": other}
        created = str(START + ord(uuid))
        made = event(name, uuid, now, caller_channel_created_time=created, **links)
        table.receive("one", made, now, received_at)
        if sooner == 3 and name == "CHANNEL_ANSWER":
            table.reconcile("one", [uuid], now)
        assert table.live("one") == sum(leg.counted for leg in table._legs.values())
    table.drain(now)
    records += table.records()
    records += run(table, now + 2 * LONGEST)
    assert (len(table), table.lingering, table.live("one")) == (0, 0, 0)
    assert not table._named
    assert not table._conversations
    legs: dict[tuple[str, int], LegRecord] = {}
    standing: dict[tuple[str, int], ConversationRecord] = {}
    for record in records:
        if isinstance(record, LegRecord):
            held = legs.get((record.uuid, record.received_at))
            assert held is None or held.revision < record.revision
            legs[record.uuid, record.received_at] = record
        elif isinstance(record, ConversationRecord):
            stood = standing.get((record.conversation, record.received_at))
            assert stood is None or stood.revision < record.revision
            standing[record.conversation, record.received_at] = record
        else:
            taken = standing.pop((record.conversation, record.received_at))
            assert taken.revision < record.revision
    for conversation in standing.values():
        assert conversation.conversation == conversation.legs[0]
    for leg in legs.values():
        assert any(leg.uuid in each.legs for each in standing.values())
        assert any(leg.conversation == each.conversation for each in standing.values())
