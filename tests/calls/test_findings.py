import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import MediaRecord
from sipsidecar.calls.findings import KINDS, CallFacts, Finding, judge
from sipsidecar.calls.media import Direction, Media
from sipsidecar.calls.negotiation import Agreement, Negotiation
from sipsidecar.calls.thresholds import Thresholds
from talks import (
    CALLEE,
    CALLER,
    START,
    TO_CALLEE,
    TO_CALLER,
    agreement,
    callee,
    caller,
    facts_of,
    media_of,
    packed,
    proxied,
    side,
    talk,
)

FORTH, BACK = "caller_to_callee", "callee_to_caller"
ANSWERED = CallFacts(True, START, 60_000.0, None, packed("192.0.2.1"), packed("203.0.113.9"))
UNANSWERED = msgspec.structs.replace(ANSWERED, answered=False, answered_at=None, talk_ms=None)


def record(stream: str = FORTH, **fields: Any) -> MediaRecord:
    plain = MediaRecord(
        call_id="c", from_tag="a", stream=stream, received_at=START, direction=stream,
        started_at=START, ended_at=START + 60_000_000, reports=10, source="rtcp",
        packets_expected=3000, packets_lost=0, loss_percent=0.0, jitter_ms=1.0, mos=4.4, rated=True,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **fields)


def direction(stream: str = FORTH, /, **fields: Any) -> Direction:
    own = {name: fields.pop(name) for name in tuple(fields) if name in Direction.__struct_fields__}
    plain = Direction(record(stream, **fields), True, True, 3000, 3000, START, True, 0)
    return msgspec.structs.replace(plain, **own)


def found(
    media: Media | None = None,
    negotiation: Negotiation | None = None,
    call: CallFacts | None = ANSWERED,
    thresholds: Thresholds | None = None,
) -> dict[str, Finding]:
    """By kind, and by kind and direction."""
    judged = judge(
        call,
        proxied() if negotiation is None else negotiation,
        Media((direction(), direction(BACK))) if media is None else media,
        thresholds or Thresholds(),
    )
    json.dumps([finding.evidence for finding in judged])
    return {finding.kind: finding for finding in judged}


def of(*directions: Direction) -> Media:
    return Media(directions)


# ------------------------------------------------------------------------------------ figures


def test_a_clean_call_has_no_findings() -> None:
    assert found() == {}
    assert judge(ANSWERED, proxied(), media_of(facts_of(talk())), Thresholds()) == ()


def test_a_mos_under_the_threshold_is_low() -> None:
    low = found(of(direction(mos=3.49, mos_min=2.0), direction(BACK)))["low_mos"]
    assert low.direction == FORTH
    assert low.evidence["mos"] == 3.49
    assert low.evidence["threshold"] == 3.5
    assert "low_mos" not in found(of(direction(mos=3.5), direction(BACK)))


def test_two_bad_intervals_make_a_low_mos_of_a_good_mean_and_one_does_not() -> None:
    assert "low_mos" in found(of(direction(mos=4.2, low_intervals=2), direction(BACK)))
    assert "low_mos" not in found(of(direction(mos=4.2, low_intervals=1), direction(BACK)))


def test_a_direction_that_was_not_rated_has_no_low_mos() -> None:
    assert "low_mos" not in found(of(direction(mos=None, low_intervals=5), direction(BACK)))


@pytest.mark.parametrize(
    ("fields", "high"),
    [
        ({"loss_percent": 1.0, "packets_lost": 30}, True),
        ({"loss_percent": 0.99, "packets_lost": 29}, False),
        ({"loss_percent": 2.0, "packets_lost": 1, "packets_expected": 100}, False),
        ({"loss_percent": 2.0, "packets_lost": 2, "packets_expected": 99}, False),
        ({"loss_percent": 2.0, "packets_lost": None, "packets_expected": None}, False),
        (
            {
                "loss_percent": 2.0, "packets_lost": None, "packets_expected": None,
                "source": "rtpengine",
            },
            True,
        ),
        ({"loss_percent": None}, False),
    ],
)  # fmt: skip
def test_loss_is_high_from_one_percent_of_enough_packets_on(
    fields: dict[str, object], high: bool
) -> None:
    assert ("high_loss" in found(of(direction(**fields), direction(BACK)))) == high


def test_jitter_is_high_by_its_mean_over_several_reports() -> None:
    high = found(of(direction(), direction(BACK, jitter_ms=15.0)))["high_jitter"]
    assert high.direction == BACK
    assert (high.evidence["jitter_ms"], high.evidence["threshold_ms"]) == (15.0, 15.0)
    assert "high_jitter" not in found(of(direction(jitter_ms=14.9, jitter_max_ms=90.0)))
    assert "high_jitter" not in found(of(direction(jitter_ms=50.0, reports=1)))
    assert "high_jitter" in found(of(direction(jitter_ms=50.0, reports=1, source="vq")))


def test_thresholds_are_the_configured_ones() -> None:
    strict = Thresholds(low_mos=4.5, high_loss_percent=0.1, high_jitter_ms=0.5)
    media = of(direction(loss_percent=0.2, packets_lost=6), direction(BACK))
    assert set(found(media, thresholds=strict)) == {"low_mos", "high_loss", "high_jitter"}


def test_findings_are_sorted_by_kind_and_direction() -> None:
    bad = {"loss_percent": 9.0, "packets_lost": 90, "jitter_ms": 30.0}
    judged = judge(ANSWERED, proxied(), of(direction(**bad), direction(BACK, **bad)), Thresholds())
    keys = [(one.kind, one.direction or "") for one in judged]
    assert keys == sorted(keys)
    assert len(keys) == 4


# ------------------------------------------------------------------------------------ one way


def test_a_silent_callee_makes_one_way_audio_of_its_direction() -> None:
    media = media_of(facts_of(talk(caller(), callee(sends=False))))
    one_way = found(media)["one_way_audio"]
    assert one_way.direction == BACK
    assert one_way.evidence["heard"] is False
    assert one_way.evidence["sends"] is False
    assert one_way.evidence["reports_of_nothing"] == 12
    assert one_way.evidence["other_direction"] == {
        "sends": True, "heard": True, "packets_sent": 3000, "packets_received": 3020,
        "sender_reports": 12, "reports": 12,
    }  # fmt: skip


def test_media_that_is_sent_and_never_arrives_is_one_way_as_well() -> None:
    lost = direction(heard=False, received_packets=0)
    assert found(of(lost, direction(BACK)))["one_way_audio"].direction == FORTH


def test_a_party_without_reports_is_no_proof_of_one_way_audio() -> None:
    media = media_of(facts_of(talk(caller(), callee(reports=False))))
    assert found(media) == {}


def test_a_direction_that_died_early_is_one_way() -> None:
    dying = direction(sent_packets=3000, received_packets=299)
    assert "one_way_audio" in found(of(dying, direction(BACK)))
    alive = direction(sent_packets=3000, received_packets=301)
    assert "one_way_audio" not in found(of(alive, direction(BACK)))
    few = direction(sent_packets=100, received_packets=1)
    assert "one_way_audio" not in found(of(few, direction(BACK)))


def test_two_silent_directions_are_no_media() -> None:
    dead = {"sends": False, "heard": False, "sent_packets": 0, "received_packets": 0}
    both = found(of(direction(**dead), direction(BACK, **dead)))
    assert set(both) == {"no_media"}
    assert both["no_media"].direction is None
    assert set(both["no_media"].evidence) == {"talk_seconds", FORTH, BACK}


def test_a_direction_that_nobody_knows_of_accuses_nobody() -> None:
    dead = direction(sends=False, heard=False)
    unknown = direction(BACK, sends=None, heard=None)
    assert found(of(dead, unknown)) == {}


@pytest.mark.parametrize(
    "call",
    [
        UNANSWERED,
        msgspec.structs.replace(ANSWERED, talk_ms=4_900.0),
    ],
)
def test_only_calls_that_talk_long_enough_are_one_way(call: CallFacts) -> None:
    media = of(direction(BACK), direction(sends=False, heard=False))
    assert "one_way_audio" not in found(media, call=call)


def held(at: float, flow: str = "caller_to_callee") -> Agreement:
    return agreement("ingress", CALLER, TO_CALLER, at=at, via="reinvite", flow=flow)


def test_a_call_on_hold_is_not_one_way() -> None:
    media = of(direction(), direction(BACK, sends=False, heard=False))
    first = agreement("ingress", CALLER, TO_CALLER)
    assert "one_way_audio" not in found(media, Negotiation((first, held(3.0))))
    assert "one_way_audio" in found(media, Negotiation((first, held(6.0))))
    resumed = held(50.0, "both")
    assert "one_way_audio" in found(media, Negotiation((first, held(3.0), resumed)))
    assert "one_way_audio" not in found(
        media, Negotiation((msgspec.structs.replace(first, flow="callee_to_caller"),))
    )


def test_a_call_whose_end_was_not_seen_lasts_as_long_as_its_reports() -> None:
    open_end = msgspec.structs.replace(ANSWERED, talk_ms=None, answered_at=None)
    media = of(direction(), direction(BACK, sends=False, heard=False))
    assert found(media, call=open_end)["one_way_audio"].evidence["talk_seconds"] == 61.0 - 1.0


def test_media_without_a_call_is_judged_by_its_figures() -> None:
    media = media_of(facts_of(talk(caller(loss=0.05), callee(sends=False))), Negotiation())
    judged = judge(None, Negotiation(), media, Thresholds())
    assert {(one.kind, one.direction) for one in judged} >= {
        ("high_loss", "unknown-11111111"),
        ("one_way_audio", "unknown-22222222"),
    }


def test_a_third_stream_that_nobody_can_place_does_not_hide_one_way_audio() -> None:
    stranger = direction("unknown-00000001")
    stranger = msgspec.structs.replace(
        stranger, record=msgspec.structs.replace(stranger.record, direction="unknown")
    )
    media = of(direction(), direction(BACK, sends=False, heard=False), stranger)
    assert found(media)["one_way_audio"].direction == BACK
    assert found(of(stranger, stranger, stranger), call=None) == {}


# ------------------------------------------------------------------------------------ early and late


def test_media_of_a_call_that_was_never_answered_is_early_media_only() -> None:
    early = msgspec.structs.replace(UNANSWERED, early_media_at=START)
    assert found(Media(), call=early)["early_media_only"].evidence == {"early_sdp": True}
    heard = found(call=UNANSWERED)["early_media_only"].evidence
    assert heard == {"early_sdp": False, "media": [FORTH, BACK]}
    assert found(Media(), call=UNANSWERED) == {}


def test_media_that_begins_long_after_the_answer_is_dead_air() -> None:
    late = direction(BACK, first_media_at=START + 2_100_000)
    air = found(of(direction(), late))["dead_air"]
    assert air.direction == BACK
    assert air.evidence["silence_seconds"] == 2.1
    soon = direction(BACK, first_media_at=START + 1_900_000)
    assert found(of(direction(), soon)) == {}


def test_dead_air_is_asked_for_where_media_was_due_and_came() -> None:
    late = direction(BACK, first_media_at=START + 9_000_000)
    announced = agreement("ingress", CALLER, TO_CALLER, flow="caller_to_callee")
    assert "dead_air" not in found(of(direction(), late), Negotiation((announced,)))
    assert "dead_air" not in found(of(direction(), late), call=UNANSWERED)
    never = direction(BACK, first_media_at=None)
    assert "dead_air" not in found(of(direction(), never))
    dead = msgspec.structs.replace(late, heard=False)
    assert set(found(of(direction(), dead))) == {"one_way_audio"}


def test_real_media_that_begins_late_is_found_by_its_first_counts() -> None:
    media = media_of(facts_of(talk(start=4.0)))
    judged = judge(ANSWERED, proxied(), media, Thresholds())
    assert [(one.kind, one.direction) for one in judged] == [
        ("dead_air", BACK),
        ("dead_air", FORTH),
    ]
    # at the latest 4 s after the answer, half a second later for who reports second
    assert judged[1].evidence["silence_seconds"] == pytest.approx(4.0, abs=0.5)


# ------------------------------------------------------------------------------------ SDP


def test_legs_of_two_codecs_are_transcoded() -> None:
    mixed = found(negotiation=proxied("G729", "PCMU"))["transcoded"]
    assert mixed.evidence == {"ingress_codec": "G729", "egress_codec": "PCMU"}
    assert found(negotiation=Negotiation(proxied("G729").ingress)) == {}
    nothing = agreement("egress", TO_CALLEE, CALLEE, None)
    assert found(negotiation=Negotiation(proxied().ingress, (nothing,))) == {}


def test_a_codec_that_changes_during_the_call_is_found_once_for_both_legs() -> None:
    plain = proxied()
    later = [
        agreement("ingress", CALLER, TO_CALLER, "G729", at=20, via="reinvite"),
        agreement("egress", TO_CALLEE, CALLEE, "G729", at=20, via="reinvite"),
    ]
    changed = Negotiation((*plain.ingress, later[0]), (*plain.egress, later[1]))
    assert found(negotiation=changed)["codec_changed"].evidence == {
        "ingress_codecs": ["PCMU", "G729"],
        "egress_codecs": ["PCMU", "G729"],
    }
    preview = agreement("ingress", CALLER, TO_CALLER, "G729", at=-2, early=True)
    assert found(negotiation=Negotiation((preview, *plain.ingress), plain.egress)) == {}


def test_an_answer_that_takes_away_a_direction_is_a_mismatch() -> None:
    for answer in (
        {"direction": "sendonly"},
        {"direction": "inactive"},
        {"held": True},
    ):
        mute = agreement("ingress", CALLER, side("203.0.113.9", 30_000, **answer))
        mismatch = found(Media(), Negotiation((mute,)))["direction_mismatch"]
        answers = mismatch.evidence["answers"]
        assert isinstance(answers, list)
        assert answers[0]["answered_by"] == "callee"
        assert answers[0]["offered"] == "sendrecv"


@pytest.mark.parametrize(
    "allowed",
    [
        agreement("ingress", CALLER, side("203.0.113.9", 30_000, direction="recvonly")),
        agreement(
            "ingress", side("192.0.2.1", 4000, direction="sendonly"),
            side("203.0.113.9", 30_000, direction="inactive"),
        ),
        agreement(
            "ingress", side("192.0.2.1", 4000, held=True),
            side("203.0.113.9", 30_000, direction="sendonly"),
        ),
        agreement(
            "ingress", CALLER, side("203.0.113.9", 30_000, direction="inactive"), via="reinvite"
        ),
    ],
)  # fmt: skip
def test_what_the_offer_asked_for_and_holds_are_no_mismatch(allowed: Agreement) -> None:
    assert "direction_mismatch" not in found(Media(), Negotiation((allowed,)))


def test_a_hold_after_the_answer_is_no_mismatch_of_the_answer() -> None:
    first = agreement("ingress", CALLER, TO_CALLER)
    later = agreement(
        "ingress", CALLER, side("203.0.113.9", 30_000, direction="inactive"), at=5, via="ack"
    )
    assert found(Media(), Negotiation((first, later))) == {}


def test_the_offer_of_a_late_offer_is_the_callees() -> None:
    late = agreement(
        "ingress", side("192.0.2.1", 4000, direction="inactive"), TO_CALLER, via="ack",
        offered_by="callee",
    )  # fmt: skip
    both = found(Media(), Negotiation((late,), late_offer=True))
    assert set(both) == {"direction_mismatch", "late_sdp"}
    assert both["late_sdp"].evidence == {"offer_in_response": True, "answer_in": "ack"}
    answers = both["direction_mismatch"].evidence["answers"]
    assert isinstance(answers, list)
    assert answers[0]["answered_by"] == "caller"


def test_answers_against_rfc_3264_are_a_mismatch() -> None:
    illegal = Negotiation(illegal_answers=("sendonly answered by sendonly",))
    evidence = found(Media(), illegal)["direction_mismatch"].evidence
    assert evidence == {"illegal_answers": ["sendonly answered by sendonly"]}


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.31.0.1", "192.168.1.9", "100.64.0.1", "169.254.1.1", "127.0.0.1",
     "fd00::1", "fe80::1", "::1", "::ffff:10.1.2.3"],
)  # fmt: skip
def test_a_private_media_address_of_a_public_party_suffers_what_is_sent_to_it(address: str) -> None:
    hidden = agreement("ingress", side(address, 4000), TO_CALLER)
    private = found(Media(), Negotiation((hidden,)))["private_media_address"]
    assert private.direction == BACK
    assert private.evidence["party"] == "caller"
    assert private.evidence["media_address"] == address.removeprefix("::ffff:")
    assert private.evidence["signalling_address"] == "192.0.2.1"


@pytest.mark.parametrize(
    ("ends", "call"),
    [
        ((side("10.0.0.1", 4000), TO_CALLER), {"source_ip": packed("10.0.0.1")}),
        ((side("10.0.0.1", 4000, candidates=True), TO_CALLER), {}),
        ((side("10.0.0.1", 0), TO_CALLER), {}),
        ((side("10.0.0.1", 4000, held=True), TO_CALLER), {}),
        ((side("", 4000), TO_CALLER), {}),
        ((side("172.32.0.1", 4000), TO_CALLER), {}),
        ((side("10.0.0.1", 4000), TO_CALLER), {"source_ip": b""}),
    ],
)
def test_a_private_address_is_no_finding_where_it_can_be_reached_or_is_not_used(
    ends: tuple[object, ...], call: dict[str, object]
) -> None:
    agreed = agreement("ingress", *ends)  # type: ignore[arg-type]
    facts = msgspec.structs.replace(ANSWERED, **call)
    assert found(Media(), Negotiation((agreed,)), facts) == {}


def test_each_side_is_judged_by_the_signalling_of_its_own_side() -> None:
    hidden = agreement("egress", TO_CALLEE, side("192.168.0.2", 6000))
    negotiation = Negotiation(proxied().ingress, (hidden,))
    assert found(Media(), negotiation) == {}
    public = msgspec.structs.replace(ANSWERED, callee_ip=packed("198.51.100.2"))
    assert found(Media(), negotiation, public)["private_media_address"].direction == FORTH
    inside = msgspec.structs.replace(ANSWERED, callee_ip=packed("192.168.0.2"))
    assert found(Media(), negotiation, inside) == {}


# ------------------------------------------------------------------------------------ anything


SIDES = st.builds(
    side,
    st.sampled_from(["", "10.0.0.1", "192.0.2.1", "2001:db8::1", "fe80::1"]),
    st.sampled_from([0, 4000]),
    direction=st.sampled_from(["sendrecv", "sendonly", "recvonly", "inactive"]),
    held=st.booleans(),
    candidates=st.booleans(),
)
AGREEMENTS = st.lists(
    st.builds(
        agreement,
        st.just("ingress"),
        SIDES,
        SIDES,
        st.sampled_from([None, "PCMU", "G729"]),
        at=st.floats(-10, 100),
        via=st.sampled_from(["invite", "ack", "prack", "reinvite", "update"]),
        offered_by=st.sampled_from(["caller", "callee"]),
        flow=st.sampled_from(["both", "none", FORTH, BACK]),
        early=st.booleans(),
    ),
    max_size=4,
).map(tuple)
KNOWN = st.sampled_from([None, True, False])
COUNTS = st.none() | st.integers(0, 10_000)
FIGURES = st.none() | st.floats(0, 200)
DIRECTIONS = st.builds(
    direction,
    st.sampled_from([FORTH, BACK]),
    mos=st.none() | st.floats(1, 4.5),
    loss_percent=FIGURES,
    packets_lost=COUNTS,
    packets_expected=COUNTS,
    jitter_ms=FIGURES,
    sends=KNOWN,
    heard=KNOWN,
    sent_packets=COUNTS,
    received_packets=COUNTS,
    first_media_at=st.none() | st.integers(0, 2**62),
    low_intervals=st.integers(0, 5),
)
CALLS = st.none() | st.builds(
    CallFacts,
    st.booleans(),
    st.none() | st.integers(0, 2**62),
    st.none() | st.floats(0, 1e9),
    st.none() | st.integers(0, 2**62),
    st.sampled_from([b"", packed("10.0.0.1"), packed("192.0.2.1"), packed("2001:db8::1")]),
    st.sampled_from([b"", packed("10.0.0.1"), b"odd"]),
)


@given(
    call=CALLS,
    ingress=AGREEMENTS,
    egress=AGREEMENTS,
    late=st.booleans(),
    directions=st.lists(DIRECTIONS, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_known_is_judged_in_known_words(
    call: CallFacts | None,
    ingress: tuple[Agreement, ...],
    egress: tuple[Agreement, ...],
    late: bool,
    directions: list[Direction],
) -> None:
    negotiation = Negotiation(ingress, egress, late_offer=late)
    judged = judge(call, negotiation, Media(tuple(directions)), Thresholds())
    assert {one.kind for one in judged} <= set(KINDS)
    msgspec.json.encode(judged)
    assert all(one.evidence for one in judged)
