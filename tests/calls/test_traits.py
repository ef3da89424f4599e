"""What INVITEs say beyond their records, from bytes as they come."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Line, World, packet
from sipsidecar.calls.call import Call
from sipsidecar.calls.events import Setup, Traits
from sipsidecar.calls.traits import (
    MAX_HOST,
    MAX_IDENTITIES,
    MAX_PASSPORT,
    MAX_VALUES,
    same_user,
    traits_of,
)
from sipsidecar.privacy import Mask
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.wire import hep, sip

NOW = 1_795_000_000
VIA = "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa"
FROM = "From: <sip:+49301234567@example.com>;tag=f"


def invite(
    *lines: str,
    sender: str = FROM,
    vias: tuple[str, ...] = (VIA,),
    ruri: str = "sip:+4930999@trunk.example.net",
    body: str = "",
) -> bytes:
    head = (f"INVITE {ruri} SIP/2.0", *vias, sender, "To: <sip:+4930999@x>", "Call-ID: c@x")
    return "\r\n".join((*head, "CSeq: 1 INVITE", *lines, "", body)).encode()


def read(*lines: str, **how: Any) -> Traits:
    return of(invite(*lines, **how))


def of(payload: bytes) -> Traits:
    message = sip.parse(payload)
    address = message.address("from")
    user, host = (address.uri.user, address.uri.host) if address else (None, None)
    return traits_of(message, user, host, NOW * 1_000_000)


def segment(claims: object) -> str:
    said = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return base64.urlsafe_b64encode(said).decode().rstrip("=")


def passport(claims: object, **more: str) -> str:
    head = segment({"alg": "ES256", "ppt": "shaken", "typ": "passport", "x5u": "https://c.example"})
    name = more.get("name", "Identity")
    return f"{name}: {head}.{segment(claims)}.c2ln;info=<https://c.example>;alg=ES256;ppt=shaken"


def shaken(attest: object = "A", tn: str = "49301234567", iat: int = NOW) -> dict[str, object]:
    return {"attest": attest, "dest": {"tn": ["4930999"]}, "iat": iat, "orig": {"tn": tn}}


def test_an_invite_that_says_nothing_has_the_traits_of_nothing() -> None:
    assert read() == Traits()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Max-Forwards: 70", 70),
        ("max-forwards :69", 69),
        ("Max-Forwards: 70\r\nMax-Forwards: 3", 70),
        ("Max-Forwards: 1_0", None),
        ("Max-Forwards: -1", None),
        ("Max-Forwards: 7000", None),
        ("X-Max-Forwards: 5", None),
        ("Subject: a\r\n Max-Forwards: 5", None),
    ],
)
def test_max_forwards_is_digits_alone(line: str, said: int | None) -> None:
    assert read(line).max_forwards == said


def test_a_node_that_stands_twice_in_the_vias_was_passed_twice() -> None:
    other = "Via: SIP/2.0/TCP sbc.example:5060;branch=z9hG4bKb"
    again = "Via: SIP/2.0/UDP SBC.example:5060;branch=z9hG4bKc"
    assert not read(vias=(VIA, other)).passed_twice
    assert read(vias=(other, VIA, again)) == Traits(vias=3, passed_twice=True)
    assert read(vias=(f"{other}, {VIA[5:]}, {again[5:]}",)).passed_twice
    assert not read(vias=(other, again.replace("5060", "5070"))).passed_twice


PAI = "P-Asserted-Identity: "


@pytest.mark.parametrize(
    ("value", "differs"),
    [
        ("<sip:+49301234567@example.com>", False),
        ('"Alice" <tel:+49-30-123 4567>', False),
        ("<sip:0301234567@example.com;user=phone>", False),
        ("<sip:0049301234567@example.com>", False),
        ("<sip:+49309999999@example.com>", True),
        ("<sip:alice@example.com>", True),
        ("<sip:anonymous@anonymous.invalid>", None),
        ("<sip:example.com>", None),
        ("senseless", None),
        ("", None),
    ],
)
def test_an_asserted_identity_differs_when_it_names_another_number(
    value: str, differs: bool | None
) -> None:
    assert read(PAI + value).asserted_differs is differs
    assert read(f"Remote-Party-ID: {value}").remote_party_differs is differs


@pytest.mark.parametrize(
    "sender",
    [
        'From: "Anonymous" <sip:anonymous@anonymous.invalid>;tag=f',
        "From: <sip:Restricted@example.com>;tag=f",
        "From: <sip:x@anonymous.invalid>;tag=f",
        "From: <sip:example.com>;tag=f",
    ],
)
def test_nothing_differs_from_a_hidden_caller(sender: str) -> None:
    lines = (PAI + "<sip:+4940@example.com>", passport(shaken()))
    traits = read(*lines, sender=sender)
    assert (traits.asserted_differs, traits.origin_differs) == (None, None)
    assert (traits.asserted_host, traits.identity) == ("example.com", "A")


def test_the_domain_of_an_asserted_identity_is_kept_in_small_letters_when_it_is_one() -> None:
    assert read(PAI + "<sip:a@Carrier.EXAMPLE:5060>").asserted_host == "carrier.example"
    assert read(PAI + f"<sip:a@{'h' * MAX_HOST}>").asserted_host == "h" * MAX_HOST
    assert read(PAI + f"<sip:a@{'h' * (MAX_HOST + 1)}>").asserted_host is None
    assert read(PAI + "<sip:a@car\x1b]0;x>").asserted_host is None
    assert read(PAI + "<sip:a@b\u00fccher.example>").asserted_host is None
    assert read(PAI + "<tel:+4930>").asserted_host is None


@pytest.mark.parametrize("line", ["Diversion: <sip:1@x>", "History-Info: <sip:1@x>;index=1"])
def test_a_diverted_call_says_so(line: str) -> None:
    assert read(line).diverted


@pytest.mark.parametrize("attest", ["A", "B", "C"])
def test_the_attestation_is_what_the_passport_claims(attest: str) -> None:
    traits = read(passport(shaken(attest, iat=NOW - 3)))
    assert (traits.identity, traits.origin_differs) == (attest, False)
    assert traits.identity_age_seconds == 3


def test_another_origin_and_a_passport_of_the_future_are_told() -> None:
    traits = read(passport(shaken(tn="14155550100", iat=NOW + 90), name="y"))
    assert (traits.origin_differs, traits.identity_age_seconds) == (True, -90)


def test_of_several_identities_the_one_that_attests_is_read() -> None:
    div = passport({"div": {"tn": "1"}, "iat": NOW})
    assert read(div, passport(shaken("B"))).identity == "B"
    assert read(*[div] * MAX_IDENTITIES, passport(shaken("B"))).identity == "unreadable"


def test_a_folded_identity_is_read() -> None:
    assert read(passport(shaken("C")).replace(";info", "\r\n ;info")).identity == "C"


@pytest.mark.parametrize(
    "line",
    [
        "Identity: *",
        "Identity:",
        "Identity: ..c2ln;info=<https://c.example>;ppt=shaken",
        "Identity: a.b;ppt=shaken",
        "Identity: a.!.c;ppt=shaken",
        "Identity: a.bbbbb.c;ppt=shaken",
        f"Identity: a.{'A' * (MAX_PASSPORT + 1)}.c",
        passport(b"\xff\xfe"),
        passport(b"[" * 3000),
        passport(b'{"x":' * 600),
        passport([]),
        passport(shaken(1)),
        passport(shaken("D")),
        passport(shaken("A") | {"iat": "now"}),
        passport(shaken("A") | {"orig": 5}),
    ],
)
def test_an_identity_that_tells_no_attestation_is_unreadable(line: str) -> None:
    traits = read(line)
    assert (traits.identity, traits.origin_differs) == ("unreadable", None)
    assert traits.identity_age_seconds is None


def test_claims_that_are_left_out_are_unknown() -> None:
    traits = read(passport({"attest": "A"}))
    assert (traits.identity, traits.origin_differs, traits.identity_age_seconds) == (
        "A",
        None,
        None,
    )
    assert read(passport(shaken(iat=-(10**14)))).identity_age_seconds is None


@pytest.mark.parametrize(
    ("ruri", "line", "asked"),
    [
        ("sips:1@x", "", True),
        ("SIPS:1@x", "", True),
        ("sip:1@x;transport=TLS", "", True),
        ("sip:1@x;transport=tls-sctp", "", False),
        ("sip:1@x;transport=udp", "Contact: <sip:1@x;transport=tcp>", False),
        ("sip:1@x", "Contact: <sips:1@x>", True),
        ("sip:1@x", "m: <sip:1@x; transport = tls>;expires=60", True),
        ("sip:1@x", "Contact: *", False),
    ],
)
def test_tls_is_asked_for_by_request_uri_or_contact(ruri: str, line: str, asked: bool) -> None:
    assert read(*([line] if line else []), ruri=ruri).secure_asked is asked


@pytest.mark.parametrize(
    ("body", "media"),
    [
        ("v=0\r\nm=audio 4000 RTP/AVP 0\r\n", "RTP/AVP"),
        ("m=audio 4000/2 RTP/savp 0\n", "RTP/SAVP"),
        ("v=0\nm=audio 9 UDP/TLS/RTP/SAVPF 0", "UDP/TLS/RTP/SAVPF"),
        ("v=0\nm=video 9 RTP/AVP 0\nm=audio 9 RTP/SAVP 0\n", "RTP/SAVP"),
        ("v=0\nm=audio 9 TCP/MRCP 0\n", "other"),
        ("--b\r\nContent-Type: application/sdp\r\n\r\nm=audio 9 RTP/AVP 0\r\n--b--", "RTP/AVP"),
        ("v=0\nm=audio\n", None),
        ("a=m=audio 9 RTP/AVP 0\n", None),
        ("", None),
    ],
)
def test_the_protocol_of_the_first_audio_line_is_told(body: str, media: str | None) -> None:
    assert read(body=body).media == media


def test_invites_of_one_session_have_one_session() -> None:
    first = read("Session-ID: ab30317f1a784dc48ff824d0d3715d86;remote=" + "0" * 32).session
    same = "Session-ID: AB30317F1A784DC48FF824D0D3715D86", "P-Charging-Vector: icid-value=1234"
    assert first is not None
    assert read(*same).session == read(*reversed(same)).session == first
    other = read('P-Charging-Vector: orig-ioi=a;icid-value="1234"').session
    assert other == read("p-charging-vector: icid-value=1234;icid-generated-at=x").session
    assert other not in (None, first)
    assert read("X-CID: call-1").session == read("X-Session-ID: call-1;x=y").session


@pytest.mark.parametrize("line", [f"Session-ID: {'0' * 32}", "Session-ID: short", "X-CID: a"])
def test_a_session_that_names_none_is_unknown(line: str) -> None:
    assert read(line).session is None


def test_only_so_many_lines_are_looked_at() -> None:
    many = [f"History-Info: <sip:{i}@x>" for i in range(MAX_VALUES)]
    assert read(*many, "Max-Forwards: 5").max_forwards is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("+49 (30) 123-4567", "0049.30.1234567", True),
        ("1234567;npdi", "+491234567", True),
        ("100", "100", True),
        ("100", "+4930100", False),
        ("Alice", "alice", True),
        ("m0123456789abcdef", "m0123456789abcdef", True),
        ("m0123456789abcdef", "mfedcba9876543210", False),
        ("\u0661\u0662\u0663\u0664\u0665\u0666\u0667", "1234567", False),
        ("-", "1", None),
        (None, "1", None),
    ],
)
def test_users_are_compared_as_numbers_where_they_are(
    one: str | None, other: str | None, same: bool | None
) -> None:
    assert same_user(one, other) is same
    assert same_user(other, one) is same


def test_masked_users_are_compared_by_their_tokens_and_their_passport_tells_nothing() -> None:
    mask = Mask(b"k" * 32, users=True)
    lines = (PAI + "<sip:+49301234567@example.com>", passport(shaken()))
    traits = of(mask.payload(hep.Kind.SIP, invite(*lines)))
    assert (traits.asserted_differs, traits.identity) == (False, "unreadable")
    other = of(mask.payload(hep.Kind.SIP, invite(PAI + "<sip:+1415@example.com>")))
    assert other.asserted_differs is True


PIECES = st.sampled_from(
    [
        b"Identity: ", b"y: ", b"eyJhIjoxfQ", b".", b";", b"\r\n", b"\r\n ", b"Session-ID: ",
        b"Via: SIP/2.0/UDP ", b"P-Asserted-Identity: <sip:", b"Contact: <", b";transport=tls",
        b"\x00", b"\xff", b"Max-Forwards: 7", b"m=audio ", b"\n", b"icid-value=", b'"', b"<",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=40))
def test_no_bytes_make_it_raise(pieces: list[bytes]) -> None:
    start = invite().removesuffix(b"\r\n\r\n")
    payload = start + b"\r\n" + b"".join(pieces) + b"\r\n\r\nm=audio 4000 RTP/AVP 0\r\n"
    try:
        sip.parse(payload)
    except sip.SipError:
        return
    traits = of(payload)
    assert traits.identity in ("A", "B", "C", "missing", "unreadable")


# ------------------------------------------------------------------------------ through the table

FAILOVER = [
    "0.0 A>P INVITE 1/INVITE b1 a -",
    "0.01 P>B INVITE 1/INVITE p1 a - sdp=0",
    "0.2 B>P 503 1/INVITE p1 a x",
    "0.3 P>C INVITE 1/INVITE q1 a -",
    "1.8 C>P 200 1/INVITE q1 a y",
    "1.81 P>A 200 1/INVITE b1 a y",
    "1.9 A>P ACK 1/ACK b2 a y",
]
PARENTS = {"p1": "b1", "q1": "b1"}


def told(lines: list[str], *, traits: bool = True) -> list[Setup]:
    world = World(cohorts=Cohorts((Matcher(trunk="x"),), {}))
    world.pipeline.watch(setups=True)
    world.pipeline.calls.tell_traits = traits
    for text in lines:
        line = Line.of(text)
        world.send(packet(line, "one@example.com", parent=PARENTS.get(line.branch)), line.at)
    world.run_out()
    return world.pipeline.setups()


def branches(setup: Setup) -> list[str]:
    return [branch for branch, _ in setup.traits]


def test_a_setup_has_the_traits_of_its_ingress_hop_and_of_each_attempt() -> None:
    (setup,) = told(FAILOVER)
    assert branches(setup) == ["", *(one.branch for one in setup.attempts)]
    ingress, first, second = (said for _, said in setup.traits)
    assert (ingress.vias, first.vias, second.vias) == (1, 2, 2)
    assert (ingress.media, first.media, second.media) == (None, "RTP/AVP", None)


def test_a_call_that_was_not_answered_has_them_too() -> None:
    (setup,) = told([*FAILOVER[:3], "0.21 P>A 503 1/INVITE b1 a k"])
    assert branches(setup) == ["", setup.attempts[0].branch]


def test_of_an_invite_that_was_lost_nothing_is_told() -> None:
    (setup,) = told(FAILOVER[1:])
    assert branches(setup) == [one.branch for one in setup.attempts]


def test_nobody_pays_for_what_nobody_asks() -> None:
    (setup,) = told(FAILOVER, traits=False)
    assert setup.traits == ()
    assert not Call("c", 0.0, 0).traits


def test_traits_do_not_depend_on_the_order_of_messages() -> None:
    (expected,) = told(FAILOVER)
    (backwards,) = told(list(reversed(FAILOVER)))
    assert sorted(branches(backwards)) == sorted(branches(expected))
    assert dict(backwards.traits) == dict(expected.traits)
