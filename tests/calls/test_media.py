import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import MediaRecord
from sipsidecar.calls.media import Direction, Facts, Media
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import quality, rtcp
from talks import (
    CALLEE,
    CALLEE_SSRC,
    CALLER,
    CALLER_SSRC,
    DIRECT,
    NOWHERE,
    START,
    TO_CALLEE,
    TO_CALLER,
    Seen,
    agreement,
    callee,
    caller,
    facts_of,
    media_of,
    packed,
    proxied,
    rtcp_of,
    side,
    talk,
)

FORTH, BACK = "caller_to_callee", "callee_to_caller"


def by_stream(media: Media) -> dict[str, Direction]:
    return {direction.record.stream: direction for direction in media.directions}


def record_of(media: Media, stream: str) -> MediaRecord:
    return by_stream(media)[stream].record


# ------------------------------------------------------------------------------------ the figures


def test_each_direction_has_the_figures_of_the_party_that_hears_it() -> None:
    facts = facts_of(talk(caller(loss=0.05, jitter=160), callee(loss=0.0, jitter=16)))
    media = media_of(facts)
    forth, back = record_of(media, FORTH), record_of(media, BACK)
    assert forth.ssrc == CALLER_SSRC
    assert back.ssrc == CALLEE_SSRC
    assert forth.loss_percent == pytest.approx(5.0, abs=0.02)
    assert back.loss_percent == 0.0
    assert forth.jitter_ms == pytest.approx(20.0)
    assert back.jitter_ms == pytest.approx(2.0)
    assert (forth.segment, forth.source, forth.reports) == ("end_to_end", "rtcp", 12)
    assert forth.packets_sent == 3000
    assert forth.media_seconds == pytest.approx(60, rel=0.02)
    assert forth.rated
    assert back.rated
    assert forth.mos is not None
    assert back.mos is not None
    assert forth.mos < back.mos
    assert (forth.sender_ip, forth.sender_port) == ("192.0.2.1", 4000)
    assert (forth.receiver_ip, forth.receiver_port) == ("198.51.100.2", 6000)
    assert forth.flags == ()


def test_the_mos_is_the_published_one_for_that_loss_jitter_and_delay() -> None:
    # 1 % loss, no late packets; network 40 ms + packet 20 ms + buffer 4 * 1 ms -> at least 20 ms
    facts = facts_of(talk(caller(loss=0.01, delay_ms=20), callee(delay_ms=20)))
    record = record_of(media_of(facts), FORTH)
    assert record.rtt_ms == pytest.approx(80, abs=1)
    assert record.delay_ms == pytest.approx(80, abs=1)
    assert (record.delay_source, record.mos_kind) == ("sr_rr", "cq")
    assert record.mos == pytest.approx(4.328, abs=0.01)
    assert (record.mos_scale, record.mos_grade, record.mos_codec) == ("nb", "A", "G711")


def test_without_any_delay_the_mos_is_a_listening_one() -> None:
    facts = facts_of(talk(callee(reports=False), caller()))
    record = record_of(media_of(facts), BACK)
    assert record.rtt_ms is None
    assert (record.mos_kind, record.delay_source, record.delay_ms) == ("lq", None, None)
    assert record.mos == record.mos_lq


def test_a_declared_delay_is_taken_where_none_was_measured() -> None:
    facts = facts_of(talk(callee(reports=False), caller()))
    record = record_of(media_of(facts, None, Thresholds(network_delay_ms=300)), BACK)
    assert (record.delay_source, record.mos_kind) == ("declared", "cq")
    assert record.mos is not None
    assert record.mos_lq is not None
    assert record.mos < record.mos_lq


def test_half_of_a_round_trip_is_not_taken_for_the_whole() -> None:
    # only the callee's reports match sender reports: the caller has no clock
    seen = [
        (
            msgspec.structs.replace(
                report,
                blocks=tuple(
                    msgspec.structs.replace(block, lsr=0)
                    for block in report.blocks
                    if report.ssrc == CALLER_SSRC
                )
                or report.blocks,
            ),
            *rest,
        )
        for report, *rest in talk()
    ]
    record = record_of(media_of(facts_of(seen)), FORTH)  # type: ignore[arg-type]
    assert record.rtt_ms is None
    assert record.mos_kind == "lq"


def test_a_capture_point_at_one_end_measures_the_whole_round_trip() -> None:
    one = caller(destination=callee().source, delay_ms=0)
    other = callee(destination=caller().source, delay_ms=50)
    seen = talk(one, other)
    only_b = [
        each if each[0].ssrc == CALLEE_SSRC else (_without_lsr(each[0]), *each[1:]) for each in seen
    ]
    record = record_of(media_of(facts_of(only_b), DIRECT), FORTH)
    assert record.rtt_ms == pytest.approx(100, abs=1)


def _without_lsr(report: rtcp.Report) -> rtcp.Report:
    blocks = tuple(msgspec.structs.replace(block, lsr=0, dlsr=0) for block in report.blocks)
    return msgspec.structs.replace(report, blocks=blocks)


def test_a_call_of_seconds_is_not_rated_but_its_loss_is_told() -> None:
    record = record_of(media_of(facts_of(talk(caller(loss=0.1), seconds=8, every=2))), FORTH)
    assert (record.rated, record.unrated, record.mos) == (False, "short", None)
    assert record.loss_percent == pytest.approx(10, abs=0.3)


def test_loss_of_everything_is_no_mos() -> None:
    facts = facts_of(talk(caller(loss=1.0)))
    record = record_of(media_of(facts), FORTH)
    assert record.loss_percent == pytest.approx(100.0, abs=0.1)
    assert (record.mos, record.unrated) == (None, "no_packets")


def test_the_worst_interval_and_the_share_of_bad_ones_are_told() -> None:
    good = talk(seconds=50)
    bad = talk(caller(loss=0.2, ssrc=CALLER_SSRC + 1), seconds=10, start=50)
    direction = by_stream(media_of(facts_of(good, bad)))[FORTH]
    record = direction.record
    assert record.mos_min is not None
    assert record.mos is not None
    assert record.mos_min < 3.0 < record.mos
    assert (direction.low_intervals, direction.rated_intervals) == (2, 12)
    assert record.low_share == pytest.approx(2 / 12)
    assert record.loss_max_percent == pytest.approx(20, abs=1)
    assert "ssrc_changed" in record.flags
    assert (record.ssrcs, record.ssrc) == (2, CALLER_SSRC + 1)


def test_every_interval_has_a_row_with_its_direction() -> None:
    media = media_of(facts_of(talk(caller(loss=0.05))))
    assert len(media.intervals) == 24
    forth = [row for row in media.intervals if row.direction == FORTH]
    assert len(forth) == 12
    assert {row.reporter_ssrc for row in forth} == {CALLEE_SSRC}
    assert {row.source_ssrc for row in forth} == {CALLER_SSRC}
    assert all(row.mos is not None and row.source == "rtcp" for row in forth)
    assert [row.at for row in forth] == sorted(row.at for row in forth)
    assert sum(row.packets_lost or 0 for row in forth) == record_of(media, FORTH).packets_lost


def test_a_time_that_cannot_be_is_not_a_date_of_the_record() -> None:
    facts = facts_of(talk(skew_us=-(10**14)))
    record = record_of(media_of(facts), FORTH)
    assert record.started_at == record.ended_at == START


def test_an_agents_known_skew_is_taken_off() -> None:
    media = media_of(facts_of(talk(skew_us=5_000_000)), skews={1: 5_000_000})
    plain = media_of(facts_of(talk()))
    assert [row.at for row in media.intervals] == [row.at for row in plain.intervals]


# ------------------------------------------------------------------------------------ codecs


def test_the_clock_of_the_negotiated_codec_turns_units_into_milliseconds() -> None:
    facts = facts_of(talk(caller(jitter=480)))
    record = record_of(media_of(facts, proxied("opus", clock_rate=48_000)), FORTH)
    assert record.jitter_ms == pytest.approx(10.0)
    assert (record.codec, record.clock_rate, record.mos_scale) == ("opus", 48_000, "fb")


def test_g722_counts_at_8000() -> None:
    facts = facts_of(talk(caller(jitter=80)))
    record = record_of(media_of(facts, proxied("G722", clock_rate=16_000)), FORTH)
    assert record.jitter_ms == pytest.approx(10.0)
    assert record.mos_scale == "wb"


def test_a_clock_that_the_form_tells_goes_before_sdp() -> None:
    seen = [
        (msgspec.structs.replace(report, clock_rate=16_000), *rest)
        for report, *rest in talk(caller(jitter=160))
    ]
    record = record_of(media_of(facts_of(seen)), FORTH)  # type: ignore[arg-type]
    assert record.jitter_ms == pytest.approx(10.0)


def test_media_without_sdp_is_rated_on_stated_assumptions() -> None:
    media = media_of(facts_of(talk()), Negotiation())
    for direction in media.directions:
        assert direction.record.rated
        assert direction.record.mos_grade == "C"
        assert direction.record.flags == ("clock_assumed", "codec_assumed", "ptime_assumed")
        assert direction.record.codec is None


def test_what_another_legs_codec_took_away_counts_for_who_hears_the_end_of_it() -> None:
    facts = facts_of(talk())
    plain = record_of(media_of(facts, proxied("PCMU")), FORTH)
    mixed = media_of(facts, proxied("G729", "PCMU"))
    forth, back = record_of(mixed, FORTH), record_of(mixed, BACK)
    assert forth.codec == "PCMU"
    assert back.codec == "G729"
    assert "transcoded_ie" in forth.flags
    assert plain.r is not None
    assert forth.r is not None
    assert back.r is not None
    assert plain.r - forth.r == pytest.approx(11, abs=0.01)
    # G.711 takes nothing away
    assert "transcoded_ie" not in back.flags


def test_each_interval_is_rated_by_the_codec_of_its_time() -> None:
    first = proxied()
    later = agreement("egress", TO_CALLEE, CALLEE, "G729", at=30.5, via="reinvite")
    also = agreement("ingress", CALLER, TO_CALLER, "G729", at=30.5, via="reinvite")
    changed = Negotiation((*first.ingress, also), (*first.egress, later))
    media = media_of(facts_of(talk()), changed)
    rates = [row.r for row in media.intervals if row.direction == FORTH]
    assert rates[:6] == [pytest.approx(93.2, abs=0.1)] * 6
    assert rates[6:] == [pytest.approx(82.2, abs=0.1)] * 6
    assert record_of(media, FORTH).codec == "G729"


def test_a_mos_is_never_a_mean_over_two_scales() -> None:
    first = proxied()
    wide = agreement("egress", TO_CALLEE, CALLEE, "AMR-WB", clock_rate=16_000, at=20.5)
    changed = Negotiation(first.ingress, (*first.egress, wide))
    record = record_of(media_of(facts_of(talk()), changed), FORTH)
    assert record.mos_scale == "wb"
    assert "mixed_scales" in record.flags


def test_the_packet_time_of_sdp_says_how_long_media_was() -> None:
    thirty = agreement("egress", TO_CALLEE, CALLEE, ptime_ms=30)
    record = record_of(media_of(facts_of(talk()), Negotiation(proxied().ingress, (thirty,))), FORTH)
    assert record.media_seconds == pytest.approx(90, rel=0.02)
    assert record.ptime_ms == 30


# ------------------------------------------------------------------------------------ who is who


def test_a_party_behind_nat_is_known_by_where_its_reports_go() -> None:
    hidden = callee(source=rtcp_of("198.51.100.77", 51_000))
    media = media_of(facts_of(talk(caller(loss=0.05), hidden)))
    assert record_of(media, FORTH).loss_percent == pytest.approx(5, abs=0.02)
    assert record_of(media, BACK).loss_percent == 0.0


def test_a_call_without_a_proxy_has_the_callees_address_in_the_answer() -> None:
    one = caller(destination=callee().source, loss=0.05)
    other = callee(destination=caller().source)
    media = media_of(facts_of(talk(one, other)), DIRECT)
    assert record_of(media, FORTH).loss_percent == pytest.approx(5, abs=0.02)
    assert record_of(media, FORTH).segment == "end_to_end"


def test_a_hint_places_reports_that_come_without_addresses() -> None:
    facts = Facts()
    for report, _, _, clock, at in talk(caller(loss=0.05)):
        by = "caller" if report.ssrc == CALLER_SSRC else "callee"
        facts.see_report(report, NOWHERE, NOWHERE, clock, at, reporter=by)
    media = media_of(facts, Negotiation())
    assert record_of(media, FORTH).loss_percent == pytest.approx(5, abs=0.02)


def test_when_one_side_is_known_the_other_follows() -> None:
    facts = Facts()
    for report, _, _, clock, at in talk(caller(loss=0.05)):
        by = "caller" if report.ssrc == CALLER_SSRC else None
        facts.see_report(report, NOWHERE, NOWHERE, clock, at, reporter=by)
    media = media_of(facts, Negotiation())
    assert set(by_stream(media)) == {FORTH, BACK}
    assert record_of(media, FORTH).loss_percent == pytest.approx(5, abs=0.02)


def test_media_that_nobody_can_place_has_a_row_for_each_ssrc_heard() -> None:
    media = media_of(facts_of(talk(caller(loss=0.05))), Negotiation())
    forth = record_of(media, "unknown-11111111")
    assert forth.direction == "unknown"
    assert forth.loss_percent == pytest.approx(5, abs=0.02)
    assert set(by_stream(media)) == {"unknown-11111111", "unknown-22222222"}
    assert {row.direction for row in media.intervals} == {"unknown"}
    assert (forth.sender_ip, forth.sender_port) == ("192.0.2.1", 4001)
    assert (forth.receiver_ip, forth.receiver_port) == ("198.51.100.2", 6001)


def test_of_two_unknown_speakers_the_unheard_one_is_told_of_as_well() -> None:
    media = media_of(facts_of(talk(caller(), callee(sends=False))), Negotiation())
    heard, unheard = (by_stream(media)[f"unknown-{n}"] for n in ("11111111", "22222222"))
    assert (heard.sends, heard.heard) == (True, True)
    assert (unheard.sends, unheard.heard) == (False, False)
    assert unheard.record.unrated == "no_packets"


def test_what_a_node_between_hears_counts_where_the_party_itself_says_nothing() -> None:
    # a switch receives from the caller and reports to it
    switch = callee(
        ssrc=0x33333333,
        source=rtcp_of("203.0.113.9", 30_000),
        destination=caller().source,
        jitter=16,
    )
    media = media_of(facts_of(talk(caller(loss=0.03), switch)))
    record = record_of(media, FORTH)
    assert record.segment == "to_middle"
    assert record.loss_percent == pytest.approx(3, abs=0.02)
    # and what the caller hears is the switch's own stream
    assert record_of(media, BACK).segment == "from_middle"


def test_what_is_lost_before_a_node_that_makes_the_stream_anew_is_told_beside() -> None:
    to_caller = callee(
        ssrc=0x33333333, source=rtcp_of("203.0.113.9", 30_000), destination=caller().source
    )
    to_callee = caller(
        ssrc=0x44444444, source=rtcp_of("203.0.113.9", 30_100), destination=callee().source,
        loss=0.02,
    )  # fmt: skip
    media = media_of(
        facts_of(talk(caller(loss=0.03), to_caller), talk(to_callee, callee(loss=0.04)))
    )
    record = record_of(media, FORTH)
    assert (record.segment, record.ssrc) == ("from_middle", 0x44444444)
    assert record.loss_percent == pytest.approx(2, abs=0.02)
    assert record.upstream_loss_percent == pytest.approx(3, abs=0.02)
    # four pairs: the rows of both legs
    assert len([row for row in media.intervals if row.direction == FORTH]) == 24


def test_blocks_about_an_ssrc_that_nobody_has_are_left_out_and_counted() -> None:
    seen = [
        (_about(report, 0x11223344) if report.ssrc == CALLEE_SSRC else report, *rest)
        for report, *rest in talk(caller(loss=0.05))
    ]
    media = media_of(facts_of(seen))  # type: ignore[arg-type]
    direction = by_stream(media)[FORTH]
    assert direction.record.loss_percent is None
    assert direction.record.unrated == "no_reports"
    assert (direction.sends, direction.heard) == (True, None)
    assert media.implausible == 12
    assert len(media.intervals) == 12


def _about(report: rtcp.Report, ssrc: int) -> rtcp.Report:
    blocks = tuple(msgspec.structs.replace(block, source_ssrc=ssrc) for block in report.blocks)
    return msgspec.structs.replace(report, blocks=blocks)


def test_what_a_node_that_transcodes_sends_is_heard_though_its_ssrc_never_speaks() -> None:
    seen = [
        (_about(report, 0x44444444 if report.ssrc == CALLEE_SSRC else 0x55555555), *rest)
        for report, *rest in talk(caller(loss=0.05), callee(jitter=480))
    ]
    facts = facts_of(seen)  # type: ignore[arg-type]
    ingress = agreement("ingress", CALLER, TO_CALLER, "opus", clock_rate=48_000)
    egress = agreement("egress", TO_CALLEE, CALLEE, "PCMU")
    media = media_of(facts, Negotiation(ingress=(ingress,), egress=(egress,)))
    forth, back = record_of(media, FORTH), record_of(media, BACK)
    assert (forth.segment, forth.ssrc, forth.rated) == ("from_middle", 0x44444444, True)
    assert forth.loss_percent == pytest.approx(5.0, abs=0.02)
    assert (back.segment, back.ssrc, back.mos_scale) == ("from_middle", 0x55555555, "fb")
    assert back.jitter_ms == pytest.approx(10.0)
    assert (forth.packets_sent, back.packets_sent) == (3000, 3020)
    assert media.implausible == 0


def test_an_ssrc_that_never_spoke_before_its_sender_took_another_is_kept() -> None:
    early = [each for each in talk(caller(ssrc=0x55555555, loss=0.1), seconds=10)
             if each[0].ssrc == CALLEE_SSRC]  # fmt: skip
    media = media_of(facts_of(early, talk(start=11)))
    record = record_of(media, FORTH)
    assert record.ssrcs == 2
    assert record.packets_lost is not None
    assert record.packets_lost > 0
    assert media.implausible == 0


def test_reports_of_video_beside_the_audio_are_left_out_and_counted() -> None:
    eye = caller(
        ssrc=0x77770001, source=rtcp_of("192.0.2.1", 4002),
        destination=rtcp_of("203.0.113.9", 30_002), loss=0.3,
    )  # fmt: skip
    screen = callee(
        ssrc=0x77770002, source=rtcp_of("198.51.100.2", 6002),
        destination=rtcp_of("203.0.113.9", 30_102), loss=0.3,
    )  # fmt: skip
    media = media_of(facts_of(talk(), talk(eye, screen)))
    assert media.beside == 24
    assert record_of(media, FORTH).loss_percent == 0.0
    assert record_of(media, FORTH).packets_sent == 3000
    assert len(media.intervals) == 24


def test_two_parties_with_one_ssrc_are_told_apart_by_their_addresses() -> None:
    media = media_of(facts_of(talk(caller(loss=0.05), callee(ssrc=CALLER_SSRC))))
    assert record_of(media, FORTH).loss_percent == pytest.approx(5, abs=0.02)
    assert record_of(media, BACK).loss_percent == 0.0


# ------------------------------------------------------------------------------------ sent and heard


def test_a_party_that_sends_nothing_is_known_by_its_own_reports() -> None:
    direction = by_stream(media_of(facts_of(talk(caller(), callee(sends=False)))))[BACK]
    assert (direction.sends, direction.heard) == (False, False)
    assert (direction.sender_reports, direction.silent_reports) == (0, 12)
    assert direction.received_packets == 0
    assert direction.record.unrated == "no_packets"


def test_what_is_sent_and_never_arrives_is_known_by_empty_reports() -> None:
    seen = [
        (
            msgspec.structs.replace(report, blocks=()) if report.ssrc == CALLEE_SSRC else report,
            *rest,
        )
        for report, *rest in talk()
    ]
    direction = by_stream(media_of(facts_of(seen)))[FORTH]  # type: ignore[arg-type]
    assert (direction.sends, direction.heard) == (True, False)
    assert direction.sent_packets == 3000


def test_a_party_that_makes_no_reports_is_not_known_to_hear_nothing() -> None:
    direction = by_stream(media_of(facts_of(talk(caller(), callee(reports=False)))))[FORTH]
    assert (direction.sends, direction.heard) == (True, None)
    assert direction.record.unrated == "no_reports"


def test_one_empty_report_at_the_end_proves_nothing() -> None:
    seen = talk(caller(), callee(reports=False))
    bye: Seen = (
        rtcp.Report(CALLEE_SSRC, form="json"), callee().source, callee().destination, 1, START + 61_000_000,
    )  # fmt: skip
    direction = by_stream(media_of(facts_of([*seen, bye])))[FORTH]
    assert direction.heard is None


def test_media_begins_where_the_first_counts_say() -> None:
    direction = by_stream(media_of(facts_of(talk())))[FORTH]
    assert direction.first_media_at is not None
    assert abs(direction.first_media_at - START) < 500_000


def test_encrypted_reports_are_told_as_the_reason_for_no_mos() -> None:
    facts = Facts()
    facts.see_encrypted()
    media = media_of(facts)
    assert [direction.record.unrated for direction in media.directions] == ["encrypted"] * 2


def test_no_facts_make_no_rows() -> None:
    assert media_of(Facts()) == Media()


# ------------------------------------------------------------------------------------ other sources


def voip(source_ssrc: int, **fields: object) -> rtcp.VoipMetrics:
    values: dict[str, object] = dict.fromkeys(rtcp.VoipMetrics.__struct_fields__)
    values |= {
        "source_ssrc": source_ssrc, "loss_percent": 0.0, "discard_percent": 0.0, "gmin": 16,
        "burst_density_percent": 0.0, "gap_density_percent": 0.0, "burst_ms": 0, "gap_ms": 0,
        "rx_config": 0,
    }  # fmt: skip
    return rtcp.VoipMetrics(**(values | fields))  # type: ignore[arg-type]


def with_voip(seen: list[Seen], reporter: int, metrics: rtcp.VoipMetrics) -> list[Seen]:
    return [
        (msgspec.structs.replace(each[0], voip=(metrics,)), *each[1:])
        if each[0].ssrc == reporter
        else each
        for each in seen
    ]


def test_a_device_that_tells_its_buffer_replaces_the_model_of_one() -> None:
    told = voip(
        CALLER_SSRC, discard_percent=4.0, round_trip_ms=100, end_system_ms=60,
        buffer_nominal_ms=60, mos_cq=3.1, mos_lq=3.3,
    )  # fmt: skip
    seen = with_voip(talk(caller(jitter=8)), CALLEE_SSRC, told)
    record = record_of(media_of(facts_of(seen)), FORTH)
    plain = record_of(media_of(facts_of(talk(caller(jitter=8)))), FORTH)
    assert record.discard_percent == 4.0
    assert record.delay_source == "xr"
    assert record.delay_ms == pytest.approx(50 + 20 + 60)
    assert (record.peer_mos, record.peer_mos_source) == (3.1, "xr")
    assert record.mos is not None
    assert plain.mos is not None
    assert record.mos < plain.mos
    assert record.loss_percent == 0.0


def test_two_devices_tell_the_delay_from_mouth_to_ear() -> None:
    seen = with_voip(talk(), CALLEE_SSRC, voip(CALLER_SSRC, round_trip_ms=100, end_system_ms=60))
    seen = with_voip(seen, CALLER_SSRC, voip(CALLEE_SSRC, round_trip_ms=90, end_system_ms=80))
    media = media_of(facts_of(seen))
    assert record_of(media, FORTH).delay_ms == pytest.approx((100 + 60 + 80) / 2)
    assert record_of(media, BACK).delay_ms == pytest.approx((90 + 60 + 80) / 2)


def test_a_device_that_keeps_its_own_delay_to_itself_leaves_it_to_the_model() -> None:
    seen = with_voip(talk(), CALLEE_SSRC, voip(CALLER_SSRC, round_trip_ms=100, end_system_ms=60))
    seen = with_voip(seen, CALLER_SSRC, voip(CALLEE_SSRC, round_trip_ms=100))
    record = record_of(media_of(facts_of(seen)), FORTH)
    assert record.delay_source == "xr"
    assert record.delay_ms == pytest.approx(50 + 20 + 20)


def test_a_round_trip_to_a_node_between_is_not_the_whole_delay() -> None:
    switch = callee(
        ssrc=0x33333333, source=rtcp_of("203.0.113.9", 30_000), destination=caller().source
    )
    seen = with_voip(talk(caller(), switch), CALLER_SSRC, voip(0x33333333, round_trip_ms=100))
    assert record_of(media_of(facts_of(seen)), BACK).delay_source != "xr"


def test_bursts_that_a_device_tells_make_the_same_loss_worse() -> None:
    told = voip(
        CALLER_SSRC, burst_density_percent=50.0, burst_ms=1000, gap_density_percent=0.0,
        gap_ms=9000,
    )  # fmt: skip
    seen = with_voip(talk(caller(loss=0.05)), CALLEE_SSRC, told)
    record = record_of(media_of(facts_of(seen)), FORTH)
    assert record.burst_ratio == pytest.approx(2 * 0.95)


VQ = quality.SessionQuality(
    source="vq", heard_by="callee", codec="PCMU", clock_rate=8000, packets_received=2850,
    packets_lost=150, loss_percent=5.0, discard_percent=1.0, jitter_ms=7.0, rtt_ms=120.0,
    mos_cq=3.7, mos_lq=3.9, seconds=60.0,
)  # fmt: skip


def test_an_account_of_the_session_stands_in_where_no_rtcp_speaks() -> None:
    facts = Facts()
    facts.see_quality(VQ, NOWHERE, NOWHERE, 1, START + 60_000_000)
    direction = by_stream(media_of(facts, Negotiation()))[FORTH]
    record = direction.record
    assert (record.source, record.segment, record.reports) == ("vq", None, 1)
    assert record.loss_percent == 5.0
    assert record.jitter_ms == 7.0
    assert (record.packets_expected, record.packets_lost) == (3000, 150)
    assert (record.rtt_ms, record.delay_source, record.mos_codec) == (120.0, "xr", "G711")
    assert record.rated
    assert record.mos != 3.7
    assert (record.peer_mos, record.peer_mos_source) == (3.7, "vq")
    assert (direction.sends, direction.heard) == (True, True)
    assert record.flags == ("ptime_assumed",)


def test_rtcp_goes_before_every_account_and_nothing_is_averaged() -> None:
    facts = facts_of(talk())
    facts.see_quality(VQ, NOWHERE, NOWHERE, 1, START + 60_000_000)
    record = record_of(media_of(facts), FORTH)
    assert (record.source, record.loss_percent) == ("rtcp", 0.0)
    assert (record.peer_mos, record.peer_mos_source) == (3.7, "vq")


def test_of_several_kinds_of_accounts_the_best_is_taken_whole() -> None:
    facts = Facts()
    for source, loss in (("log", 1.0), ("rtpengine", 2.0), ("rtp_stat", 3.0)):
        said = msgspec.structs.replace(
            VQ, source=source, loss_percent=loss, packets_received=None, packets_lost=None, mos_cq=None,
            mos_lq=None, mos=2.0 + loss / 10,
        )  # fmt: skip
        facts.see_quality(said, NOWHERE, NOWHERE, 1, START)
    record = record_of(media_of(facts), FORTH)
    assert (record.source, record.loss_percent) == ("rtp_stat", 3.0)
    assert (record.peer_mos, record.peer_mos_source) == (2.3, "rtp_stat")


def test_an_account_of_the_whole_session_goes_before_a_newer_one_of_an_interval() -> None:
    facts = Facts()
    facts.see_quality(msgspec.structs.replace(VQ, kind="final"), NOWHERE, NOWHERE, 1, START)
    late = msgspec.structs.replace(VQ, kind="interval", loss_percent=50.0)
    facts.see_quality(late, NOWHERE, NOWHERE, 1, START + 10)
    assert record_of(media_of(facts), FORTH).loss_percent == 5.0


@pytest.mark.parametrize(
    ("fields", "stream"),
    [
        ({"local_ip": "198.51.100.2", "local_port": 6000}, FORTH),
        ({"local_ip": "192.0.2.1"}, BACK),
        ({"remote_ip": "203.0.113.9", "remote_port": 30_000}, BACK),
        ({"local_ssrc": CALLEE_SSRC}, FORTH),
        ({"remote_ssrc": CALLEE_SSRC}, BACK),
        ({"local_tag": "a"}, BACK),
        ({"local_tag": "b"}, FORTH),
        ({"claimed_by": "caller"}, BACK),
    ],
)
def test_who_heard_is_told_by_addresses_ssrcs_tags_or_names(
    fields: dict[str, object], stream: str
) -> None:
    facts = facts_of(talk(caller(), callee()))
    said = msgspec.structs.replace(VQ, heard_by=None, mos_cq=1.5, **fields)
    facts.see_quality(said, NOWHERE, NOWHERE, 1, START)
    assert record_of(media_of(facts), stream).peer_mos == 1.5


def test_who_sent_the_message_heard_what_it_tells_unless_it_says_otherwise() -> None:
    for second_hand, stream in ((False, FORTH), (True, BACK)):
        facts = Facts()
        said = msgspec.structs.replace(VQ, heard_by=None, second_hand=second_hand)
        facts.see_quality(said, (CALLEE.ip, 5060), NOWHERE, 1, START)
        assert record_of(media_of(facts), stream).loss_percent == 5.0


def test_an_account_that_nobody_can_place_is_counted() -> None:
    facts = Facts()
    facts.see_quality(msgspec.structs.replace(VQ, heard_by=None), NOWHERE, NOWHERE, 1, START)
    media = media_of(facts)
    assert media.unplaced == 1
    assert media.directions == ()


def test_an_account_without_a_length_is_not_rated() -> None:
    facts = Facts()
    bare = quality.SessionQuality(source="rtpengine", heard_by="caller", loss_percent=2.0, mos=4.0)
    facts.see_quality(bare, NOWHERE, NOWHERE, 1, START)
    record = record_of(media_of(facts), BACK)
    assert (record.unrated, record.loss_percent, record.peer_mos) == ("short", 2.0, 4.0)


def test_an_account_of_packets_alone_gives_a_loss() -> None:
    facts = Facts()
    said = quality.SessionQuality(
        source="rtp_stat", heard_by="caller", packets_received=900, packets_lost=100, ptime_ms=30
    )
    facts.see_quality(said, NOWHERE, NOWHERE, 1, START)
    record = record_of(media_of(facts, Negotiation()), BACK)
    assert record.loss_percent == 10.0
    assert record.media_seconds == 30.0


# ------------------------------------------------------------------------------------ properties


def _join(seen: list[tuple[object, ...]]) -> Facts:
    facts = Facts()
    for said, *rest in seen:
        if isinstance(said, rtcp.Report):
            facts.see_report(said, *rest)  # type: ignore[arg-type]
        else:
            facts.see_quality(said, *rest)  # type: ignore[arg-type]
    return facts


@given(seed=st.integers(0, 2**32), repeats=st.integers(0, 5), negotiated=st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_and_duplicates_of_what_was_reported_do_not_matter(
    seed: int, repeats: int, negotiated: bool
) -> None:
    told = voip(CALLER_SSRC, discard_percent=1.0, round_trip_ms=80, mos_lq=4.0)
    seen: list[tuple[object, ...]] = [
        *with_voip(talk(caller(loss=0.07)), CALLEE_SSRC, told),
        *talk(caller(ssrc=0x99999999, loss=0.2), callee(), start=61, seconds=20),
        (VQ, NOWHERE, NOWHERE, 1, START + 1),
        (VQ, (CALLER.ip, 5060), NOWHERE, 2, START + 2),
        (msgspec.structs.replace(VQ, kind="interval", mos_cq=2.0), NOWHERE, NOWHERE, 1, START + 3),
        (msgspec.structs.replace(VQ, heard_by="caller", source="log"), NOWHERE, NOWHERE, 1, START),
    ]
    negotiation = proxied() if negotiated else Negotiation()
    plain = media_of(_join(seen), negotiation)
    shuffled = random.Random(seed)
    mixed = seen + [shuffled.choice(seen) for _ in range(repeats)]
    shuffled.shuffle(mixed)
    assert media_of(_join(mixed), negotiation) == plain


def test_mos_falls_as_loss_rises() -> None:
    rated = [
        record_of(media_of(facts_of(talk(caller(loss=loss / 100)))), FORTH).mos
        for loss in (0, 1, 2, 5, 10, 20, 40, 80)
    ]
    assert all(a is not None and b is not None and a > b for a, b in pairwise(rated))


def test_mos_falls_as_jitter_and_delay_rise() -> None:
    for fields in (
        [{"jitter": j} for j in (8, 400, 800)],
        [{"delay_ms": d} for d in (10, 100, 300)],
    ):
        rated = [record_of(media_of(facts_of(talk(caller(**each)))), FORTH).mos for each in fields]
        assert all(a is not None and b is not None and a > b for a, b in pairwise(rated))


ENDPOINTS = st.sampled_from(
    [NOWHERE, caller().source, caller().destination, callee().source, callee().destination,
     (packed("192.0.2.1"), 9), (packed("::ffff:192.0.2.1"), 4001)]
)  # fmt: skip
WORDS = st.integers(0, 2**32 - 1)
SSRCS = st.sampled_from([0, 1, CALLER_SSRC, CALLEE_SSRC, 2**32 - 1])
BLOCKS = st.builds(
    rtcp.ReportBlock, SSRCS, st.integers(0, 255), st.integers(-(2**23), 2**23 - 1), WORDS, WORDS, WORDS, WORDS,
)  # fmt: skip
SENDERS = st.builds(rtcp.SenderInfo, st.integers(0, 2**64 - 1), WORDS, WORDS, WORDS)
BYTES = st.integers(0, 255)
METRICS = st.builds(
    lambda ssrc, *figures: voip(
        ssrc, discard_percent=figures[0], burst_density_percent=figures[1], burst_ms=figures[2],
        gap_density_percent=figures[1] / 2, gap_ms=figures[2], round_trip_ms=figures[2],
        end_system_ms=figures[3], buffer_nominal_ms=figures[3], mos_cq=figures[4],
    ),
    SSRCS, st.floats(0, 100), st.floats(0, 100), st.integers(0, 65_535),
    st.none() | st.integers(0, 65_535), st.none() | st.floats(1, 5),
)  # fmt: skip
REPORTS = st.builds(
    rtcp.Report,
    SSRCS,
    st.none() | SENDERS,
    st.lists(BLOCKS, max_size=3).map(tuple),
    st.lists(METRICS, max_size=1).map(tuple),
    clock_rate=st.none() | st.integers(0, 1_000_000),
    rtt_ms=st.none() | st.floats(0, 10_000),
    form=st.sampled_from(["binary", "json", "freeswitch"]),
)
FIGURES = st.none() | st.floats(0, 100)
ACCOUNTS = st.builds(
    quality.SessionQuality,
    st.sampled_from(["vq", "rtp_stat", "rtpengine", "log"]),
    heard_by=st.sampled_from([None, "caller", "callee"]),
    local_ip=st.sampled_from([None, "192.0.2.1", "2001:db8::1"]),
    remote_ssrc=st.none() | SSRCS,
    codec=st.sampled_from([None, "PCMU", "nonsense"]),
    packets_received=st.none() | WORDS,
    packets_lost=st.none() | WORDS,
    loss_percent=FIGURES,
    discard_percent=FIGURES,
    burst_ratio=FIGURES,
    jitter_ms=st.none() | st.floats(0, 9_999),
    rtt_ms=st.none() | st.floats(0, 9_999),
    mos=st.none() | st.floats(1, 5),
    seconds=st.none() | st.floats(0, 1e6),
)
AGREED = st.sampled_from(
    [
        Negotiation(),
        proxied(),
        proxied("G729", "opus"),
        DIRECT,
        Negotiation(egress=proxied().egress),
        Negotiation(
            (agreement("ingress", side("", 0), side("::", 0, held=True), None, ptime_ms=None),)
        ),
    ]
)


@given(
    reports=st.lists(st.tuples(REPORTS, ENDPOINTS, ENDPOINTS, st.integers(-(10**8), 10**8)), max_size=12),
    accounts=st.lists(ACCOUNTS, max_size=3),
    negotiation=AGREED,
    hints=st.lists(st.sampled_from([None, "caller", "callee", "for_caller", "nobody"]), min_size=12),
    encrypted=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_figures_of_strangers_raise_or_leave_their_bounds(
    reports: list[tuple[rtcp.Report, tuple[bytes, int], tuple[bytes, int], int]],
    accounts: list[quality.SessionQuality],
    negotiation: Negotiation,
    hints: list[str | None],
    encrypted: bool,
) -> None:
    facts = Facts()
    for (report, source, destination, at), hint in zip(reports, hints, strict=False):
        facts.see_report(report, source, destination, 1, START + at, reporter=hint)
    for said in accounts:
        facts.see_quality(said, (CALLER.ip, 5060), NOWHERE, 1, START)
    if encrypted:
        facts.see_encrypted()
    media = media_of(facts, negotiation, Thresholds(min_seconds=0.0))
    for direction in media.directions:
        record = direction.record
        for mos in (record.mos, record.mos_lq, record.mos_min):
            assert mos is None or 1.0 <= mos <= 4.5
        for share in (record.loss_percent, record.loss_max_percent, record.upstream_loss_percent):
            assert share is None or 0.0 <= share <= 100.0
        assert record.low_share is None or 0.0 <= record.low_share <= 1.0
        assert record.rated == (record.mos is not None)
        assert (record.unrated is None) == record.rated
        assert record.ssrc is None or 0 <= record.ssrc < 2**32
        assert record.mos is None or record.mos_min is None or record.mos_min <= record.mos
    assert len({direction.record.stream for direction in media.directions}) == len(media.directions)
    for row in media.intervals:
        assert 0 <= row.reporter_ssrc < 2**32
    msgspec.json.encode(media)
