import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.calls.offers import MAX_LINES, MAX_VALUE, address_form, of_offer

OFFER = (
    b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 8.8.8.8\r\nt=0 0\r\n"
    b"m=audio 4000 RTP/AVP 18 0 101\r\na=rtpmap:18 G729/8000\r\na=fmtp:18 annexb=yes\r\n"
    b"a=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\na=sendrecv\r\n"
)


def features(body: bytes, source: str | None = None) -> set[tuple[str, str]]:
    return set(of_offer(body, source)[0])


def test_an_offer_shows_its_codecs_in_their_order_and_their_parameters() -> None:
    found = features(OFFER)
    assert ("codec", "G729/8000") in found
    assert ("first-codec", "G729") in found
    assert ("codecs", "G729,PCMU,telephone-event") in found
    assert ("fmtp", "G729 annexb=yes") in found
    assert ("sdp-line", "a=fmtp:18 annexb=yes") in found
    assert ("sdp-formats", "audio 18 0 101") in found
    assert ("sdp-direction", "audio sendrecv") in found
    assert ("ptime", "20 ms") in found


def test_numbers_are_told_by_name() -> None:
    numbers = of_offer(OFFER)[1]
    assert numbers == {
        "sdp-size": len(OFFER), "sdp-lines": 11, "sdp-media-lines": 1, "codecs": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "feature"),
    [
        (b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:AAAA", "a=crypto AES_CM_128_HMAC_SHA1_80"),
        (b"a=fingerprint:SHA-256 AB:CD", "a=fingerprint sha-256"),
        (b"a=rtcp:4001", "a=rtcp without an address"),
        (b"a=rtcp:4001 IN IP4 192.0.2.1", "a=rtcp with an address"),
        (b"b=AS:64", "b=AS:64"),
    ],
)
def test_of_a_line_that_differs_in_every_call_only_its_form_counts(
    line: bytes, feature: str
) -> None:
    found = features(OFFER + line + b"\r\n")
    assert ("sdp-line", feature) in found
    assert not any("AAAA" in value or "AB:CD" in value for _, value in found)


def test_candidates_and_keys_are_seen_without_their_values() -> None:
    lines = b"a=candidate:1 1 udp 1 192.0.2.9 4000 typ host\r\na=crypto:1 X inline:A\r\n"
    found = features(OFFER + lines + b"a=fingerprint:sha-256 AB\r\na=ssrc:1 cname:x\r\n")
    assert {("ice", "ICE candidates"), ("sdp-security", "crypto")} <= found
    assert {("sdp-security", "fingerprint"), ("sdp-attribute", "ssrc")} <= found
    assert not any("cname" in value for _, value in found)


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        (OFFER.replace(b"\r\n", b"\n"), ("sdp-line-ends", "LF")),
        (OFFER.replace(b"\r\n", b"\n", 1), ("sdp-line-ends", "mixed")),
        (OFFER, ("sdp-line-ends", "CR LF")),
        (OFFER.rstrip(), ("sdp-odd", "no line end after the last line")),
        (OFFER + b"nothing\r\n", ("sdp-odd", "a line that is no type=value")),
        (OFFER + b"a= x\r\n", ("sdp-odd", "space around the value of a=")),
        (OFFER + b"a=\xff:1\r\n", ("sdp-odd", "an attribute whose name is no token")),
        (OFFER.replace(b"- 1 1", b"- 1"), ("sdp-odd", "o= has not six fields")),
        (OFFER.replace(b"- 1 1", b"- x 1"), ("sdp-odd", "the session id of o= is no number")),
        (OFFER.replace(b"- 1 1", b"- 1 12345678901"), ("sdp-origin", "version over 10 digits")),
        (OFFER.replace(b"4000", b"4001"), ("sdp-port", "odd")),
        (OFFER.replace(b"4000", b"0"), ("sdp-port", "0 for audio")),
        (OFFER.replace(b"4000", b"four"), ("sdp-port", "no number")),
        (OFFER.replace(b"IN IP4 8.8.8.8", b"IN"), ("sdp-address", "not understood")),
        (b"m=audio", ("sdp-port", "no number")),
        (b"hello", ("sdp", "not understood: not-sdp")),
        (OFFER.replace(b"18 0 101", b"99"), ("codec", "payload type 99")),
        (OFFER.replace(b"18 0 101", b"99"), ("first-codec", "payload type 99")),
    ],
)  # fmt: skip
def test_what_is_odd_about_an_offer_is_a_feature(body: bytes, feature: tuple[str, str]) -> None:
    assert feature in features(body)


def test_the_address_of_media_is_compared_with_the_sender() -> None:
    assert ("sdp-address", "not the sender's") in features(OFFER, "192.0.2.1")
    assert ("sdp-address", "the sender's own") in features(OFFER, "8.8.8.8")
    assert not any("sender" in value for _, value in features(OFFER))


def test_a_connection_line_is_told_by_its_level() -> None:
    assert ("sdp-connection", "in the session") in features(OFFER)
    assert ("sdp-connection", "in the media") in features(OFFER + b"c=IN IP4 0.0.0.0\r\n")


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("10.0.0.1", "private IPv4"), ("100.64.1.1", "private IPv4"), ("8.8.8.8", "public IPv4"),
        ("[fe80::1]", "private IPv6"), ("2600::1", "public IPv6"),
        ("0.0.0.0", "0.0.0.0"),  # noqa: S104 -- a word, nothing is bound
        ("::", "::"), ("a.example", "host name"), ("", "empty"),
    ],
)  # fmt: skip
def test_an_address_has_a_form(address: str, form: str) -> None:
    assert address_form(address) == form


def test_a_long_body_is_read_up_to_the_cap() -> None:
    found, numbers = of_offer(OFFER + b"a=x:1\r\n" * 10 * MAX_LINES)
    assert numbers["sdp-lines"] == MAX_LINES
    assert all(len(value) <= MAX_VALUE for _, value in found)


@given(
    st.binary(max_size=400)
    | st.from_regex(rb"(([vosctmab])=[ -~]{0,30}\r?\n){0,9}", fullmatch=True)
)
def test_whatever_the_bytes_are_nothing_is_raised(body: bytes) -> None:
    found, numbers = of_offer(body, "192.0.2.1")
    assert all(len(value) <= MAX_VALUE for _, value in found)
    assert all(number >= 0 for number in numbers.values())
