import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import diagnosing
from sipsidecar.calls import features as module
from sipsidecar.calls.features import CONTEXT, MAX_FEATURES, RANKS, features_of, rank
from sipsidecar.calls.offers import MAX_VALUE, of_offer
from sipsidecar.wire import sip

BODY = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
USUAL = (
    "INVITE sip:+4420794600@203.0.113.5;user=phone SIP/2.0",
    "Via: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK1",
    "Max-Forwards: 70",
    'From: "Alice" <sip:+12025550001@example.com>;tag=1',
    "To: <sip:+4420794600@203.0.113.5>",
    "Call-ID: 4d5c@192.0.2.1",
    "CSeq: 1 INVITE",
    "Contact: <sip:alice@192.0.2.1:5060;transport=udp>",
    "Content-Type: application/sdp",
    f"Content-Length: {len(BODY)}",
)


def invite(
    *more: str, lines: tuple[str, ...] = USUAL, body: str = BODY, end: str = "\r\n"
) -> bytes:
    return (end.join([*lines, *more]) + end * 2 + body).encode("latin-1")


def found(payload: bytes, **about: str | None) -> set[tuple[str, str]]:
    return set(features_of(payload, about).features)


def changed(old: str, new: str) -> bytes:
    return invite(lines=tuple(line.replace(old, new) for line in USUAL))


def without(name: str) -> bytes:
    return invite(lines=tuple(line for line in USUAL if not line.startswith(name)))


def test_which_header_stands_before_which_is_a_feature() -> None:
    features = found(invite())
    assert ("order", "contact < content-type") in features
    assert ("order", "content-type < contact") not in features
    assert ("next", "cseq < contact") in features
    assert ("first-after-via", "max-forwards") in features
    assert ("last-header", "content-length") in features
    moved = invite(lines=(*USUAL[:2], USUAL[7], *USUAL[2:7], *USUAL[8:]))
    assert ("order", "contact < from") in found(moved)
    assert ("first-after-via", "contact") in found(moved)


@pytest.mark.parametrize(
    ("payload", "feature"),
    [
        (invite("X-Foo: bar"), ("header", "x-foo")),
        (invite("X-Foo: bar"), ("x-foo:", "bar")),
        (invite("X-Foo:"), ("empty", "x-foo")),
        (invite("X-Foo: caf\xe9"), ("non-ascii", "x-foo")),
        (invite("X-Foo: a\x01b"), ("control", "x-foo")),
        (invite("X-Foo: " + "a" * 300), ("long-header", "x-foo")),
        (invite("X-Foo: a", " b"), ("folded", "x-foo")),
        (invite("X-Foo : a"), ("space-before-colon", "x-foo")),
        (invite("k: timer"), ("compact", "supported")),
        (invite("k: timer"), ("option", "supported: timer")),
        (invite("Allow: INVITE, ACK,"), ("method", "allow: ACK")),
        (invite("CALL-ID: 2"), ("spelling", "CALL-ID")),
        (invite("Call-ID: 2"), ("duplicate", "call-id")),
        (invite("no colon here"), ("no-colon", "yes")),
        (invite("a(b: c"), ("odd-header-name", "yes")),
        (invite("User-Agent: Foo/1.2 (x)"), ("user-agent-product", "Foo")),
        (invite("User-Agent: Foo/1.2 (x)"), ("user-agent:", "Foo/1.2 (x)")),
        (invite("Session-Expires: 90;refresher=uac"), ("param", "session-expires;refresher=uac")),
        (invite("Diversion: <sip:1@x>;reason=busy"), ("param", "diversion;reason=busy")),
        (invite("Identity: a.b"), ("attest", "not understood")),
        (invite("Identity: a.*.c"), ("attest", "none")),
        (invite("Identity: a.bbbbb.c"), ("attest", "not understood")),
        (invite("Route: <sip:a;lr>, <sip:b;lr>"), ("lr", "route with")),
        (invite("Route: <sip:a>"), ("lr", "route without")),
        (invite("P-Asserted-Identity: <sip:+12025550001@x>"), ("from-pai", "the same user")),
        (invite("P-Asserted-Identity: <sip:9@x>"), ("from-pai", "other users")),
        (invite("P-Asserted-Identity: nobody"), ("scheme", "p-asserted-identity not understood")),
        (invite(end="\n"), ("line-ends", "LF")),
        (invite(), ("line-ends", "CR LF")),
        (changed("CSeq: 1", "CSeq:  1").replace(b"\r\n", b"\n", 1), ("line-ends", "mixed")),
        (changed(" SIP/2.0", "  SIP/2.0"), ("start", "spaces in the start line")),
        (invite().partition(b"\r\n\r\n")[0], ("start", "no empty line ends the head")),
        (changed(f"{len(BODY)}", "9"), ("content-length", "too small")),
        (changed(f"{len(BODY)}", "999"), ("content-length", "too large")),
        (changed(f"{len(BODY)}", "x"), ("content-length", "no number")),
        (invite(), ("content-length", "as it is")),
        (without("Content-Length"), ("content-length", "none")),
        (without("Max-Forwards"), ("max-forwards", "none")),
        (changed(";tag=1", ""), ("tag", "none in From")),
        (changed("600@203.0.113.5>", "600@203.0.113.5>;tag=2"), ("tag", "one in To")),
        (changed('"Alice"', "Alice"), ("display", "from not quoted")),
        (changed('"Alice" ', ""), ("display", "from none")),
        (invite(), ("display", "from quoted")),
        (changed("To: <sip:", "To: <sips:"), ("scheme", "to sips")),
        (changed("To: <sip:+4420794600", "To: <sip:other"), ("to-differs", "in the user")),
        (changed("600@203.0.113.5>", "600@198.51.100.1>"), ("to-differs", "in the host")),
        (invite(), ("user-form", "ruri + and digits")),
        (changed("INVITE sip:+44", "INVITE sip:0044"), ("user-form", "ruri 00 and digits")),
        (changed("INVITE sip:+4420794600@", "INVITE sip:"), ("user-form", "ruri none")),
        (changed("+12025550001", "anonymous"), ("user-form", "from anonymous")),
        (changed("+12025550001", "alice"), ("user-form", "from a name")),
        (changed("+12025550001@", "+12025550001;npdi=yes;rn=1@"), ("user-param", "from;npdi")),
        (changed(":5060;transport=udp", "?X=1"), ("uri-param", "contact?headers")),
        (invite(), ("uri-param", "ruri;user=phone")),
        (invite(), ("uri-param", "contact;transport=udp")),
        (invite(), ("callee-prefix", "+442")),
        (invite(), ("caller-prefix", "+120")),
        (invite(), ("callee", "+4420794600")),
        (invite(), ("host", "from example.com")),
        (invite(), ("host-form", "from host name")),
        (invite(), ("rport", "asked for")),
        (changed(";rport", ";rport=5060"), ("rport", "with a value")),
        (changed(";rport", ""), ("rport", "none")),
        (changed("z9hG4bK1", "1"), ("branch", "without z9hG4bK")),
        (invite(), ("call-id-form", "hex @ private IPv4")),
        (changed("4d5c@192.0.2.1", "a b"), ("call-id-form", "other characters")),
        (invite(body=""), ("sdp", "none")),
        (changed("application/sdp", "text/plain"), ("sdp", "none, but another body")),
        (changed("application/sdp", "text/plain;x"), ("content-type", "text/plain")),
        (invite(), ("sdp-protocol", "audio RTP/AVP")),
        (changed("CSeq: 1 INVITE", "CSeq: x"), ("unreadable", "cseq")),
        (b"", ("unreadable", "start-line")),
    ],
)  # fmt: skip
def test_what_an_invite_shows_is_a_feature(payload: bytes, feature: tuple[str, str]) -> None:
    assert feature in found(payload)


@pytest.mark.parametrize("level", ["A", "B", "C"])
def test_the_attestation_is_read_out_of_a_passport(level: str) -> None:
    claims = base64.urlsafe_b64encode(f'{{"attest":"{level}"}}'.encode()).decode().rstrip("=")
    assert ("attest", level) in found(invite(f"Identity: eyJ.{claims}.sig;info=<x>"))


def test_an_invite_over_a_size_says_which_sizes_it_is_over() -> None:
    def sizes(pad: int, transport: str) -> set[tuple[str, str]]:
        features = found(invite("X-Pad: " + "a" * pad), transport=transport)
        return {one for one in features if one[0] in ("size-over", "udp-fragments")}

    assert sizes(10, "udp") == set()
    assert sizes(1000, "udp") == {("size-over", "1300")}
    assert sizes(1200, "tcp") == {("size-over", "1300"), ("size-over", "1500")}
    assert sizes(1200, "udp") == {
        ("size-over", "1300"),
        ("size-over", "1500"),
        ("udp-fragments", "yes"),
    }


def test_numbers_are_for_thresholds() -> None:
    payload = invite("Route: <sip:a;lr>, <sip:b;lr>")
    numbers = dict(features_of(payload, {}, {"idle-seconds": 7.5}).numbers)
    assert numbers["size"] == len(payload)
    assert numbers["routes"] == 2
    assert numbers["headers"] == len(USUAL)
    assert numbers["idle-seconds"] == 7.5
    assert numbers["codecs"] == 1


def test_what_is_known_beside_the_bytes_is_a_feature_and_what_is_unknown_is_none() -> None:
    about = {"source": "192.0.2.9", "trunk": "acme", "tenant": None, "else": "no"}
    features = found(invite(), **about)
    assert {("source", "192.0.2.9"), ("trunk", "acme")} <= features
    assert not {name for name, _ in features} & {"tenant", "else"}


def test_every_name_is_of_the_fixed_set_or_a_header_and_a_colon() -> None:
    names = {name for name, _ in diagnosing_features()}
    assert all(name in RANKS for name in names if not name.endswith(":"))
    assert all(name in RANKS for name in CONTEXT)
    assert not any(name.endswith(":") for name in RANKS)
    assert rank(("x-foo:", "1")) == 2
    assert rank(("size-over", "1300")) == 0


def diagnosing_features() -> set[tuple[str, str]]:
    return {one for case in diagnosing.cases_of("none", 1, 60, 10) for one in case.shown.features}


def test_every_number_has_a_rank() -> None:
    numbers = dict(features_of(invite(), {}, {"idle-seconds": 1.0}).numbers)
    numbers |= of_offer(BODY.encode())[1]
    assert numbers.keys() <= RANKS.keys()


def test_compact_names_are_those_of_the_parser() -> None:
    parsers = {letter.decode(): name for letter, name in sip._COMPACT.items()}
    assert parsers == module.COMPACT


def test_one_invite_has_no_more_features_than_the_cap_and_says_how_many_it_had() -> None:
    names = (
        "Via",
        "From",
        "To",
        "Route",
        "Allow",
        "Date",
        "Accept",
        "Require",
        "Privacy",
        "Server",
    )
    flood = [f"{name}: {n}" for n, name in enumerate([*names, *module.SPELLINGS])]
    flood += [f"X-{n}: {n}" for n in range(99)]
    shown = features_of(invite(*flood, body=BODY + "".join(f"a=x{n}:{n}\r\n" for n in range(190))))
    assert len(shown.features) == MAX_FEATURES
    assert shown.cut > 0


@given(
    st.binary(max_size=600)
    | st.builds(
        lambda lines, body: invite(*lines, body=body),
        st.lists(st.from_regex(r"[A-Za-z -]{0,12}:?[\x00-\xff]{0,40}", fullmatch=True), max_size=9),
        st.text(st.characters(max_codepoint=255), max_size=80),
    )
)
def test_whatever_the_bytes_are_nothing_is_raised(payload: bytes) -> None:
    shown = features_of(payload, {"source": "192.0.2.1", "transport": "udp"})
    assert len(set(shown.features)) == len(shown.features) <= MAX_FEATURES
    assert all(len(name) <= 49 and len(value) <= MAX_VALUE for name, value in shown.features)


@given(st.lists(st.sampled_from([*USUAL[1:], "X: y", " folded", "v: 1"]), max_size=12), st.data())
def test_the_head_in_any_order_is_read(lines: list[str], data: st.DataObject) -> None:
    payload = invite(lines=(USUAL[0], *lines))
    cut = data.draw(st.integers(0, len(payload)))
    features_of(payload[:cut])
