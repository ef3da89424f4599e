import itertools

import msgspec
import pytest

from sipsidecar.calls.hearing import MAX_ACCOUNTS, MAX_ROUTES, MAX_SSRCS, Facts, Hearing
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import quality, rtcp
from talks import (
    CALLER_SSRC,
    DIRECT,
    NOWHERE,
    START,
    callee,
    caller,
    facts_of,
    packed,
    proxied,
    rtcp_of,
    talk,
)

SAID = quality.SessionQuality(source="vq", heard_by="callee", loss_percent=1.0)


def hearing(facts: Facts, negotiation: Negotiation | None = None) -> Hearing:
    return Hearing(facts, proxied() if negotiation is None else negotiation, Thresholds(), "a", {})


# ------------------------------------------------------------------------------------ what is kept


def test_reports_without_an_ssrc_are_told_apart_by_hint_or_address() -> None:
    facts = Facts()
    empty = rtcp.Report(0, rtcp.SenderInfo(1 << 40, 0, 5, 0))
    facts.see_report(empty, NOWHERE, NOWHERE, 1, START, reporter="for_caller")
    facts.see_report(empty, NOWHERE, NOWHERE, 1, START, reporter="for_callee")
    facts.see_report(empty, (packed("192.0.2.9"), 1), NOWHERE, 1, START)
    facts.see_report(empty, (packed("192.0.2.9"), 2), NOWHERE, 1, START)
    facts.see_report(empty, NOWHERE, NOWHERE, 1, START)
    assert len(facts.routes) == 5
    assert set(facts.hints.values()) == {("for_caller",), ("for_callee",)}


def test_speakers_ways_and_accounts_over_their_caps_are_counted() -> None:
    facts = Facts()
    for ssrc in range(1, MAX_SSRCS + 2):
        facts.see_report(rtcp.Report(ssrc), NOWHERE, NOWHERE, 1, START)
    assert len(facts.routes) == MAX_SSRCS
    refused = facts.refused
    assert refused >= 1
    for port in range(MAX_ROUTES):
        facts.see_report(rtcp.Report(1), (b"four", port), NOWHERE, 1, START)
    assert len(facts.routes[1]) == MAX_ROUTES
    assert facts.refused == refused + 1
    for loss in range(MAX_ACCOUNTS + 1):
        said = msgspec.structs.replace(SAID, loss_percent=float(loss))
        facts.see_quality(said, NOWHERE, NOWHERE, 1, START)
    assert len(facts.accounts) == MAX_ACCOUNTS
    assert facts.refused == refused + 2


def test_the_ways_that_are_kept_do_not_depend_on_their_order() -> None:
    ways = [(b"four", port) for port in range(MAX_ROUTES + 3)]
    kept = set()
    for order in (ways, ways[::-1]):
        facts = Facts()
        for way in order:
            facts.see_report(rtcp.Report(1), way, NOWHERE, 1, START)
        kept.add(facts.routes[1])
    assert len(kept) == 1


def test_sightings_of_an_account_are_its_first_ones_and_its_last_one_in_any_order() -> None:
    kept = set()
    for order in itertools.permutations(range(6)):
        facts = Facts()
        for at in order:
            facts.see_quality(SAID, NOWHERE, NOWHERE, 1, START + at)
        kept.add(tuple(at - START for at, *_ in facts.accounts[SAID]))
    assert kept == {(0, 1, 2, 5)}


def test_implausible_blocks_are_counted() -> None:
    facts = Facts()
    wild = rtcp.ReportBlock(2, 300, 0, 1, 0)
    facts.see_report(rtcp.Report(1, None, (wild,)), NOWHERE, NOWHERE, 1, START)
    assert facts.implausible == 1


# ------------------------------------------------------------------------------------ who heard what


@pytest.mark.parametrize(
    ("one", "other", "segments"),
    [
        (caller(), callee(), {"end_to_end"}),
        (
            caller(),
            callee(ssrc=3, source=rtcp_of("203.0.113.9", 30_000), destination=caller().source),
            {"to_middle", "from_middle"},
        ),
    ],
)
def test_segments_say_who_heard_and_who_made_it(
    one: object, other: object, segments: set[str]
) -> None:
    heard = hearing(facts_of(talk(one, other))).heard  # type: ignore[arg-type]
    assert {each.segment for each in heard} == segments


def test_the_segment_is_unknown_where_the_source_never_spoke_itself() -> None:
    seen = talk(caller(), callee(reports=False))
    heard = hearing(facts_of(seen)).heard
    assert [each.segment for each in heard] == [None]
    direct = talk(
        caller(destination=callee().source), callee(destination=caller().source, reports=False)
    )
    assert [each.segment for each in hearing(facts_of(direct), DIRECT).heard] == ["end_to_end"]


def test_two_listeners_of_one_ssrc_are_not_added_up() -> None:
    seen = talk(caller(loss=0.1))
    also = [
        (msgspec.structs.replace(report, ssrc=0x77), *rest)
        for report, *rest in talk(caller(loss=0.2), seconds=20)
        if report.ssrc != CALLER_SSRC
    ]
    figures = hearing(facts_of(seen, also)).figures_of("caller")  # type: ignore[arg-type]
    assert figures is not None
    assert figures.expected == pytest.approx(3000, rel=0.02)
    assert figures.loss_percent == pytest.approx(10, abs=0.2)


def test_freeswitch_tells_the_round_trip_of_a_leg_whole() -> None:
    seen = []
    for report, source, destination, clock, at in talk(form="freeswitch"):
        blocks = tuple(msgspec.structs.replace(block, lsr=0) for block in report.blocks)
        told = msgspec.structs.replace(report, blocks=blocks, rtt_ms=60.0)
        seen.append((told, source, destination, clock, at))
    both = hearing(facts_of(seen)).figures_of("caller")
    assert both is not None
    assert (both.delay.rtt_ms, both.delay.source, both.source) == (120.0, "esl", "esl")
    alone = [each for each in seen if each[0].ssrc != CALLER_SSRC]
    # one leg of two is half the truth; of a switch that answers itself it is all of it
    half = hearing(facts_of(alone)).figures_of("caller")
    assert half is not None
    assert half.delay.rtt_ms is None
    whole = hearing(facts_of(alone), DIRECT).figures_of("caller")
    assert whole is not None
    assert whole.delay.rtt_ms == 60.0


def test_strangers_are_those_that_nobody_can_place() -> None:
    facts = facts_of(talk())
    assert hearing(facts).strangers() == []
    assert hearing(facts, Negotiation()).strangers() == [0x11111111, 0x22222222]
    third = talk(caller(ssrc=5), callee(ssrc=6, sends=False))
    assert hearing(facts_of(talk(), third), Negotiation()).strangers() == [
        5, 0x11111111, 0x22222222,
    ]  # fmt: skip


def test_a_speaker_without_an_ssrc_is_no_stranger_with_a_row() -> None:
    facts = Facts()
    words = rtcp.Report(0, rtcp.SenderInfo(1 << 40, 0, 500, 0))
    for port in (1, 2):
        facts.see_report(words, (packed("192.0.2.9"), port), NOWHERE, 1, START)
    assert hearing(facts, Negotiation()).strangers() == []


def test_a_report_that_those_around_it_contradict_is_left_out_and_flagged() -> None:
    seen = talk()
    i = next(i for i in range(8, len(seen)) if seen[i][0].ssrc != CALLER_SSRC)
    report, *rest = seen[i]
    wild = msgspec.structs.replace(report.blocks[0], highest_seq=9_000_000)
    seen[i] = (msgspec.structs.replace(report, blocks=(wild,)), *rest)  # type: ignore[assignment]
    found = hearing(facts_of(seen))
    figures = found.figures_of("caller")
    assert figures is not None
    assert "implausible" in figures.flags
    assert found.implausible == 1
    assert len(figures.points) == 11
