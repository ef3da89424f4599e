import msgspec
import pytest

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.parties import CALLEE, CALLER, Parties, Voice, plain
from talks import CALLEE as CALLEE_SIDE
from talks import CALLER as CALLER_SIDE
from talks import (
    DIRECT,
    NOWHERE,
    TO_CALLEE,
    TO_CALLER,
    agreement,
    packed,
    proxied,
    rtcp_of,
    side,
)

A, B = rtcp_of("192.0.2.1", 4000), rtcp_of("198.51.100.2", 6000)
FACING_A, FACING_B = rtcp_of("203.0.113.9", 30_000), rtcp_of("203.0.113.9", 30_100)
AWAY: Endpoint = (packed("233.252.0.7"), 50_001)
AFAR: Endpoint = (packed("233.252.0.8"), 50_003)


def voices(
    negotiation: Negotiation,
    routes: dict[int, list[tuple[Endpoint, Endpoint]]],
    **more: object,
) -> dict[int, Voice]:
    hints = more.pop("hints", {})
    return Parties(negotiation, routes, hints, **more).voices  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "destination", "voice"),
    [
        (A, FACING_A, Voice(CALLER, True)),
        (B, FACING_B, Voice(CALLEE, True)),
        (FACING_A, A, Voice(CALLEE, False)),
        (FACING_B, B, Voice(CALLER, False)),
        (AWAY, FACING_A, Voice(CALLER, True)),
        (AWAY, FACING_B, Voice(CALLEE, True)),
        (AWAY, A, Voice(CALLEE, None)),
        ((packed("192.0.2.1"), 4000), FACING_A, Voice(CALLER, True)),
        ((packed("::ffff:192.0.2.1"), 4001), AWAY, Voice(CALLER, True)),
    ],
)
def test_addresses_of_sdp_tell_who_sent_a_report(
    source: Endpoint, destination: Endpoint, voice: Voice
) -> None:
    assert voices(proxied(), {1: [(source, destination)]}) == {1: voice}


def test_ports_tell_where_a_proxy_is_captured_at_its_inner_address() -> None:
    inner = (packed("10.0.0.9"), 30_001)
    assert voices(proxied(), {1: [(AWAY, inner)]}) == {1: Voice(CALLER, True)}


def test_an_address_tells_where_the_port_is_another() -> None:
    moved = (packed("192.0.2.1"), 7777)
    assert voices(proxied(), {1: [(moved, AFAR)]}) == {1: Voice(CALLER, True)}


def test_a_place_that_two_claim_is_nobodys() -> None:
    twin = Negotiation(
        (agreement("ingress", CALLER_SIDE, TO_CALLER),),
        (agreement("egress", TO_CALLEE, side("198.51.100.2", 4000)),),
    )
    # both parties have port 4000, and the proxy has one address on both sides
    assert voices(twin, {1: [((packed("233.252.0.7"), 4001), AFAR)]}) == {}
    assert voices(twin, {1: [((packed("203.0.113.9"), 9), AFAR)]}) == {}


def test_without_a_proxy_the_answers_address_is_the_callees_own() -> None:
    assert voices(DIRECT, {1: [(A, B)], 2: [(B, A)]}) == {
        1: Voice(CALLER, True),
        2: Voice(CALLEE, True),
    }
    # a proxy of signalling alone passes SDP on as it is
    passed = Negotiation(
        (agreement("ingress", CALLER_SIDE, CALLEE_SIDE),),
        (agreement("egress", CALLER_SIDE, CALLEE_SIDE),),
    )
    parties = Parties(passed, {1: [(AWAY, A)]}, {})
    assert not parties.between
    assert parties.voices == {1: Voice(CALLEE, True)}


def test_an_egress_leg_alone_has_the_proxys_address_for_the_caller() -> None:
    egress = Negotiation(egress=proxied().egress)
    assert voices(egress, {1: [(B, FACING_B)]}) == {1: Voice(CALLEE, True)}


def test_the_surest_way_goes_before_others() -> None:
    by_address = (packed("198.51.100.2"), 9)
    assert voices(proxied(), {1: [(by_address, AFAR), (A, FACING_A)]}) == {1: Voice(CALLER, True)}


def test_a_report_seen_on_both_sides_of_a_proxy_is_its_senders() -> None:
    assert voices(proxied(), {1: [(A, FACING_A), (FACING_B, B)]}) == {1: Voice(CALLER, True)}
    assert voices(proxied(), {1: [(FACING_A, A), (B, FACING_B)]}) == {1: Voice(CALLEE, True)}


def test_one_ssrc_of_two_parties_is_nobodys() -> None:
    assert voices(proxied(), {1: [(A, FACING_A), (B, FACING_B)]}) == {}


def test_an_own_address_goes_before_that_of_a_node_of_the_other_party() -> None:
    assert voices(proxied(), {1: [(A, FACING_A), (FACING_A, A)]}) == {1: Voice(CALLER, True)}


def test_hints_tell_where_addresses_do_not() -> None:
    routes = {1: [(NOWHERE, NOWHERE)]}
    assert voices(Negotiation(), routes, hints={1: ("for_callee",)}) == {1: Voice(CALLEE, False)}
    assert voices(Negotiation(), routes, hints={1: ("caller", "callee")}) == {}
    known = {1: [(B, FACING_B)]}
    assert voices(proxied(), known, hints={1: ("caller",)}) == {1: Voice(CALLEE, True)}


def test_ssrcs_that_sdp_names_are_known() -> None:
    named = Negotiation(
        (
            agreement(
                "ingress",
                side("192.0.2.1", 4000, ssrcs=(1, 9)),
                side("203.0.113.9", 30_000, ssrcs=(2, 3)),
            ),
        ),
        (
            agreement(
                "egress",
                side("203.0.113.9", 30_100, ssrcs=(1,)),
                side("198.51.100.2", 6000, ssrcs=(2, 9)),
            ),
        ),
    )
    # SSRC 1 and 2 were passed on as they are, 3 is the proxy's, 9 is everybody's
    assert voices(named, {}) == {
        1: Voice(CALLER, True),
        2: Voice(CALLEE, True),
        3: Voice(CALLEE, False),
    }


def test_who_hears_a_known_party_is_the_other() -> None:
    routes = {1: [(A, FACING_A)], 2: [(AWAY, AFAR)]}
    assert voices(proxied(), routes, pairs=[(1, 2)])[2] == Voice(CALLEE, None)
    assert voices(DIRECT, routes, pairs=[(2, 1)])[2] == Voice(CALLEE, True)


def test_an_ssrc_that_two_parties_hear_is_nobodys() -> None:
    routes = {1: [(A, FACING_A)], 2: [(B, FACING_B)]}
    assert 3 not in voices(proxied(), routes, pairs=[(1, 3), (2, 3)])


def test_of_two_speakers_one_known_the_other_is_the_other_party() -> None:
    routes = {1: [(A, FACING_A)], 2: [(AWAY, AFAR)]}
    assert voices(proxied(), routes, speakers=[1, 2])[2] == Voice(CALLEE, None)
    assert 2 not in voices(proxied(), routes, speakers=[1, 2, 3])


def test_a_party_is_where_its_newest_sdp_with_an_address_says() -> None:
    first = agreement("ingress", CALLER_SIDE, TO_CALLER)
    hold = agreement("ingress", side("::", 4000, held=True), TO_CALLER, at=5)
    parties = Parties(Negotiation((first, hold)), {}, {})
    assert parties.place(CALLER) == (packed("192.0.2.1"), 4000)
    assert parties.place(None) is None
    assert Parties(Negotiation(), {}, {}).place(CALLEE) is None


def test_a_side_without_media_has_no_address() -> None:
    refused = Negotiation((agreement("ingress", CALLER_SIDE, side("198.51.100.2", 0)),))
    assert voices(refused, {1: [(rtcp_of("198.51.100.2", 0), AFAR)]}) == {}


def test_signalling_that_comes_from_where_a_party_speaks_is_that_partys() -> None:
    parties = Parties(proxied(), {}, {})
    assert parties.of_host((packed("198.51.100.2"), 5060)) == CALLEE
    assert parties.of_host((packed("203.0.113.9"), 5060)) is None
    assert parties.of_host(NOWHERE) is None


def test_a_report_that_goes_straight_to_a_party_reaches_its_end() -> None:
    parties = Parties(DIRECT, {}, {})
    assert parties.reaches_end([(A, B)], CALLEE)
    assert not parties.reaches_end([(A, AFAR)], CALLEE)


def test_only_reports_of_the_audio_lines_own_addresses_are_sure() -> None:
    parties = Parties(proxied(), {1: [(A, FACING_A)], 2: [((packed("192.0.2.1"), 9), AFAR)]}, {})
    assert parties.sure == {1}
    assert set(parties.voices) == {1, 2}


def test_an_ipv4_address_written_as_ipv6_is_the_ipv4_address() -> None:
    assert plain((packed("::ffff:192.0.2.1"), 7)) == (packed("192.0.2.1"), 7)
    assert plain((packed("2001:db8::1"), 7)) == (packed("2001:db8::1"), 7)


def test_the_newest_agreement_does_not_take_an_older_address_away() -> None:
    moved = msgspec.structs.replace(
        proxied(),
        ingress=(
            *proxied().ingress,
            agreement("ingress", side("192.0.2.200", 4800), TO_CALLER, at=20),
        ),
    )
    assert voices(moved, {1: [(A, AFAR)], 2: [(rtcp_of("192.0.2.200", 4800), AFAR)]}) == {
        1: Voice(CALLER, True),
        2: Voice(CALLER, True),
    }
