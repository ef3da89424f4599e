"""FreeSWITCH's events beside mirrored SIP: what joins what, and what is recorded from events alone."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from sipsidecar.calls.events import CallRecord, ConversationRecord, LegRecord, MediaRecord
from sipsidecar.calls.table import Retraction
from sipsidecar.pipeline import Output, Pipeline
from sipsidecar.privacy import Mask
from sipsidecar.wire import esl, hep
from sipsidecar.wire.pcap import Reader

CORPUS = Path(__file__).parent.parent / "corpus/freeswitch"
TIMES = [
    name
    for name in esl.Event.__struct_fields__
    if name == "event_date_timestamp" or name.startswith("caller_channel_")
]


def events(name: str) -> list[esl.Event]:
    """The events of a transcript, as they came."""
    (path,) = CORPUS.glob(f"{name}-*.esl")
    return [one for one in esl.read_transcript(path.read_bytes()) if isinstance(one, esl.Event)]


def at(event: esl.Event) -> int:
    return int(event.event_date_timestamp or 0)


def moved(event: esl.Event, delta_us: int, call_ids: dict[str, str]) -> esl.Event:
    """The event as it would have been at another time, of another call."""
    fields = {
        name: str(int(text) + delta_us)
        for name in TIMES
        if (text := getattr(event, name)) not in (None, "", "0")
    }
    call_id = event.variable_sip_call_id
    return msgspec.structs.replace(
        event, **fields, variable_sip_call_id=call_ids.get(call_id or "", call_id)
    )


class House:
    """A pipeline, fed by time."""

    def __init__(self, mask: Mask | None = None) -> None:
        self.pipeline = Pipeline(mask=mask)
        self.now = 0.0
        self.outputs: list[Output] = []

    def feed(
        self, told: Sequence[esl.Event] = (), packets: Sequence[tuple[int, bytes]] = ()
    ) -> "House":
        items: list[tuple[int, int, esl.Event | bytes]] = [(at(e), 0, e) for e in told]
        items += [(when, 1, packet) for when, packet in packets]
        for when, _, item in sorted(items, key=lambda each: each[:2]):
            self.run_until(when / 1e6)
            if isinstance(item, bytes):
                self.pipeline.receive(item, self.now, when, "127.0.0.1")
            else:
                self.pipeline.receive_event("fs1", item, self.now, when)
            self.outputs += self.pipeline.records()
        return self

    def run_until(self, until: float) -> None:
        while (due := self.pipeline.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.pipeline.handle_timer(self.now)
            self.outputs += self.pipeline.records()
        self.now = max(self.now, until)

    def over(self) -> "House":
        """Let every timer run out."""
        while (due := self.pipeline.next_timer()) is not None:
            self.run_until(due)
        return self

    def calls(self) -> dict[str, CallRecord]:
        return {one.call_id: one for one in self.outputs if isinstance(one, CallRecord)}

    def legs(self) -> dict[str, LegRecord]:
        return {one.call_id: one for one in self.outputs if isinstance(one, LegRecord)}

    def media(self) -> dict[tuple[str, str], MediaRecord]:
        return {
            (one.call_id, one.stream): one for one in self.outputs if isinstance(one, MediaRecord)
        }


def mirrored(name: str) -> list[tuple[int, bytes]]:
    with (CORPUS / name).open("rb") as file:
        return [(one.captured_at or 0, one.payload) for one in Reader(file)]


def test_a_leg_that_hep_did_not_see_becomes_a_call_that_says_so() -> None:
    house = House().feed(events("12")).over()
    calls = house.calls()
    assert len(calls) == 2
    for call in calls.values():
        assert (call.final_code, call.final_origin, call.answered) == (486, "esl", False)
        assert "from_esl" in call.flags


def test_an_answered_call_of_events_alone_has_its_times_and_who_hung_up() -> None:
    house = House().feed(events("01")).over()
    (call,) = house.calls().values()
    assert (call.final_code, call.answered, call.released_by) == (200, True, "caller")
    assert call.talk_ms == pytest.approx(5020, abs=25)
    assert (call.src_ip, call.src_port, call.codec_negotiated) == ("127.0.0.1", 16060, "PCMU")


def test_what_freeswitch_refused_itself_is_derived_from_the_cause() -> None:
    house = House().feed(events("05")).over()  # `respond 503`
    (call,) = house.calls().values()
    assert (call.final_code, call.inferred) == (503, True)
    assert {"derived", "from_esl"} <= set(call.flags)


def test_where_hep_saw_the_call_its_code_counts_and_no_second_call_is_recorded() -> None:
    ids = {
        "11-bridged-b-bye-1-12396@127.0.0.1": "hep3-bridged-1-13955@127.0.0.1",
        "4cbdef35-5f66-1240-22ab-7ab7a297256e": "9494c9b5-5f66-1240-22ab-7ab7a297256e",
    }
    packets = mirrored("hep-v3-full.pcap")
    told = events("11")
    delta = 1_795_166_476_939_175 - min(map(at, told)) - 40_000
    told = [moved(event, delta, ids) for event in told]
    house = House().feed(told, packets).over()
    calls, legs = house.calls(), house.legs()
    for call_id in ids.values():
        assert (calls[call_id].final_code, calls[call_id].final_origin) != (None, "esl")
        assert (legs[call_id].sip_code, legs[call_id].sip_code_source) == (200, "wire")
    assert not [one for one in calls.values() if one.final_origin == "esl"]
    (conversation,) = [one for one in house.outputs if isinstance(one, ConversationRecord)]
    assert conversation.call_ids == tuple(ids.values())
    heard = house.media()[ids["4cbdef35-5f66-1240-22ab-7ab7a297256e"], "callee_to_caller"]
    assert (heard.source, heard.codec) == ("esl", "PCMU")


def test_sip_that_comes_after_all_takes_the_call_of_events_back() -> None:
    ids = {"01-answered-caller-bye-1-11612@127.0.0.1": "hep3-bridged-1-13955@127.0.0.1"}
    packets = mirrored("hep-v3-full.pcap")
    told = events("01")
    delta = packets[0][0] - max(map(at, told)) - 5_000_000
    told = [moved(event, delta, ids) for event in told]
    house = House().feed(told)
    house.run_until(packets[0][0] / 1e6)
    (made,) = [one for one in house.outputs if isinstance(one, CallRecord)]
    house.feed((), packets)
    # The leg is looked at again when something more of it is told.
    late = [msgspec.structs.replace(told[-1], variable_sip_gateway_name="late")]
    late = [moved(late[0], packets[-1][0] - at(late[0]), {})]
    house.feed(late).over()
    gone = [one for one in house.outputs if isinstance(one, Retraction)]
    assert [(one.call_id, one.received_at) for one in gone] == [(made.call_id, made.received_at)]


@pytest.mark.parametrize("seconds", [3, 20, 60])
def test_sip_that_comes_late_takes_the_call_of_events_back_by_itself(seconds: int) -> None:
    ids = {"01-answered-caller-bye-1-11612@127.0.0.1": "hep3-bridged-1-13955@127.0.0.1"}
    packets = mirrored("hep-v3-full.pcap")
    told = events("01")
    delta = packets[0][0] - max(map(at, told)) - seconds * 1_000_000
    house = House().feed([moved(event, delta, ids) for event in told], packets).over()
    (made,) = [
        one for one in house.outputs if isinstance(one, CallRecord) and "from_esl" in one.flags
    ]
    gone = [one for one in house.outputs if isinstance(one, Retraction)]
    assert (made.call_id, "", made.received_at) in [
        (one.call_id, one.from_tag, one.received_at) for one in gone if one.stream is None
    ]
    leg = house.legs()[made.call_id]
    assert (leg.sip_code, leg.sip_code_source) == (200, "wire")


def test_a_leg_whose_end_was_told_long_after_its_sip_makes_no_second_call() -> None:
    """The connection was lost meanwhile: the SIP call is over and forgotten."""
    ids = {"01-answered-caller-bye-1-11612@127.0.0.1": "hep3-bridged-1-13955@127.0.0.1"}
    packets = mirrored("hep-v3-full.pcap")
    told = events("01")
    delta = packets[0][0] - min(map(at, told)) + 40_000
    told = [moved(event, delta, ids) for event in told]
    begun = [one for one in told if "HANGUP" not in one.event_name and "DEST" not in one.event_name]
    house = House().feed(begun, packets)
    house.run_until(house.now + 300)
    house.pipeline.bridging.legs.reconcile("fs1", [], house.now)
    house.over()
    assert house.legs()[ids[min(ids)]].flags == ("end_unseen",)
    calls = [one for one in house.outputs if isinstance(one, CallRecord)]
    assert not [one for one in calls if "from_esl" in one.flags]


def test_a_leg_of_which_sip_showed_no_call_is_recorded_from_its_events() -> None:
    """Mirroring began with a stray ACK, which is dismissed long before the leg ends."""
    told = events("01")
    call_id = "01-answered-caller-bye-1-11612@127.0.0.1"
    stray = (
        b"ACK sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\n"
        b"From: <sip:a@h>;tag=f\r\nTo: <sip:b@h>;tag=t\r\nCSeq: 1 ACK\r\n"
        b"Call-ID: %s\r\nContent-Length: 0\r\n\r\n" % call_id.encode()
    )
    ends = [one for one in told if one.caller_channel_hangup_time not in (None, "0")]
    begun = [one for one in told if one not in ends]
    packet = hep.encode(
        source=b"\x7f\0\0\1",
        destination=b"\x7f\0\0\1",
        source_port=5060,
        destination_port=5061,
        payload=stray,
        captured_at=at(begun[1]),
        agent_id=1,
    )
    house = House().feed(begun, [(at(begun[1]), packet)])
    house.feed([moved(one, 300_000_000, {}) for one in ends]).over()
    assert house.calls()[call_id].final_origin == "esl"


def test_a_call_id_that_looks_like_a_list_joins_no_other_call() -> None:
    ids = {"01-answered-caller-bye-1-11612@127.0.0.1": "hep3-bridged-1-13955@127.0.0.1"}
    body = (
        b'{"Event-Name":"CHANNEL_DESTROY","Unique-ID":"u","Call-Direction":"inbound",'
        b'"variable_sip_call_id":["hep3-bridged-1-13955@127.0.0.1"],"Hangup-Cause":"USER_BUSY"}'
    )
    packets = mirrored("hep-v3-full.pcap")
    house = House().feed((), packets)
    house.pipeline.receive_event("fs1", esl.parse_json(body), house.now, packets[-1][0])
    house.over()
    assert set(house.legs()) == {f"ARRAY::{ids[min(ids)]}"}


def test_reports_of_a_leg_become_media_of_its_call_in_the_right_direction() -> None:
    house = House().feed(events("22")).over()
    media = house.media()
    calls = house.calls()
    truth = {  # B's user to its Call-ID
        "110": "add279e3-5f66-1240-22ab-7ab7a297256e",
        "111": "add3016e-5f66-1240-22ab-7ab7a297256e",
        "120": "add1d1d2-5f66-1240-22ab-7ab7a297256e",
        "121": "add1de25-5f66-1240-22ab-7ab7a297256e",
        "130": "add28ef7-5f66-1240-22ab-7ab7a297256e",
        "140": "add2a52b-5f66-1240-22ab-7ab7a297256e",
    }
    found = {
        user: {
            (stream, finding)
            for (each, stream), one in media.items()
            if each == call_id
            for finding in one.findings
        }
        for user, call_id in truth.items()
    }
    back = "callee_to_caller"
    assert found == {
        "110": {(back, "high_loss")},
        "111": {(back, "high_loss")},
        "120": {(back, "high_jitter")},
        "121": {(back, "high_jitter")},
        "130": {(back, "one_way_audio")},
        "140": {(back, "high_loss")},
    }
    assert media[truth["110"], back].loss_percent == pytest.approx(5.17, abs=0.5)
    for user, call_id in truth.items():
        assert calls[call_id].findings == tuple(sorted({f for _, f in found[user]}))


def test_freeswitchs_own_mos_stays_with_the_leg() -> None:
    house = House().feed(events("22")).over()
    silent = house.legs()["add28ef7-5f66-1240-22ab-7ab7a297256e"]
    assert (silent.fs_mos, silent.packets_in, silent.flags) == (
        4.5, 0, ("created_unseen", "no_packets_in"),
    )  # fmt: skip
    assert house.calls()[silent.call_id].mos is None


def test_a_clean_bridged_call_has_no_finding_although_its_peer_reports_of_a_strangers_stream() -> (
    None
):
    for name in ("10", "20"):
        house = House().feed(events(name)).over()
        assert {one.findings for one in house.calls().values()} == {()}


def test_reports_of_a_leg_that_is_not_known_are_counted() -> None:
    house = House()
    (report, *_) = [e for e in events("22") if e.event_name == "RECV_RTCP_MESSAGE"]
    house.feed([report]).over()
    assert house.pipeline.snapshot(house.now).reports == {"unjoined": 1}
    assert house.outputs == []


def test_headers_of_hostile_callers_forge_neither_leg_nor_call() -> None:
    for name in ("24", "25"):
        house = House().feed(events(name)).over()
        assert len(house.legs()) == 3
        for leg in house.legs().values():
            assert (leg.hangup_cause, leg.sip_code) == ("NORMAL_CLEARING", 200)
        assert not [call_id for call_id in house.calls() if "forged" in call_id.lower()]


def test_callers_and_destinations_of_events_are_masked_as_those_of_sip_are() -> None:
    house = House(Mask(b"a key of sixteen bytes", users=True)).feed(events("01")).over()
    (leg,) = house.legs().values()
    (call,) = house.calls().values()
    assert leg.caller
    assert leg.destination
    assert "44201" not in repr((leg, call))
    assert (call.from_user, call.to_user) == (leg.caller, leg.destination)


def test_events_without_a_time_are_dated_by_their_arrival() -> None:
    told = [
        msgspec.structs.replace(event, event_date_timestamp=None)
        if event.event_name.endswith("RTCP_MESSAGE")
        else event
        for event in events("22")
    ]
    house = House()
    for event in told:
        house.pipeline.receive_event("fs1", event, 0.0, 1_795_166_530_000_000)
    house.over()
    assert house.media()


def test_what_is_remembered_of_calls_told_by_events_is_capped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sipsidecar.calls.bridging.MAX_TOLD", 1)
    house = House().feed([*events("01"), *events("02"), *events("03")]).over()
    assert len(house.calls()) == 3


def test_events_of_no_leg_and_legs_without_an_end_are_shown() -> None:
    house = House()
    born = next(one for one in events("10") if one.event_name == "CHANNEL_CREATE")
    house.feed([born, msgspec.structs.replace(born, event_name="RECV_RTCP_MESSAGE", unique_id="?",
        caller_channel_created_time=None)]).over()  # fmt: skip
    said = house.pipeline.snapshot(house.now)
    assert (said.orphans, said.legs_unended) == (1, 1)
