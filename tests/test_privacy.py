import base64
import hashlib
import hmac
import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim import EPOCH, World
from sipsidecar import privacy
from sipsidecar.privacy import Mask
from sipsidecar.wire import hep, pcap, sdp, sip

KEY = b"a key of 16 bytes and more"
SIP = hep.Kind.SIP
CORPUS = Path(__file__).parent / "corpus"
USERS = Mask(KEY, users=True)
NAMES = Mask(KEY, names=True)
PEOPLE = Mask(KEY, users=True, names=True)
BODIES = Mask(bodies=True)
EVERYTHING = Mask(KEY, users=True, names=True, bodies=True)
PLAIN = Mask()
NOTHING = Mask(keep_dtmf=True, keep_media_keys=True)
MASKS = (PLAIN, USERS, NAMES, PEOPLE, BODIES, EVERYTHING, NOTHING)


def token(user: str, letter: str = "m") -> str:
    return letter + hmac.new(KEY, user.encode(), hashlib.sha256).hexdigest()[:16]


ALICE, BOB, NUMBER = token("alice"), token("bob"), token("+49301234567")
NAME = token("Alice Smith", "n")
PASSPORT = "eyJhbGciOi.eyJ0biI6IjQ5In0.c2ln"


def message(
    *headers: str, start: str = "INVITE sip:bob@example.net SIP/2.0", body: bytes = b""
) -> bytes:
    method = start.split(maxsplit=1)[0] if start.endswith("SIP/2.0") else "INVITE"
    lines = [
        start,
        "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKalice",
        "From: <sip:alice@example.com>;tag=alice",
        "To: <sip:bob@example.net>",
        "Call-ID: alice-1@example.com",
        f"CSeq: 1 {method}",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def header(line: str, mask: Mask = PEOPLE) -> str:
    """A header line as it is kept."""
    masked = mask.payload(SIP, message(line)).decode()
    return masked.split("\r\n")[6]


def body(content: bytes, *headers: str, method: str = "INFO", mask: Mask = PLAIN) -> bytes:
    start = f"{method} sip:bob@example.net SIP/2.0"
    return mask.payload(SIP, message(*headers, start=start, body=content)).partition(b"\r\n\r\n")[2]


def corpus() -> list[bytes]:
    found = [path.read_bytes() for path in sorted(CORPUS.glob("rfc4475/*.dat"))]
    for path in sorted(CORPUS.glob("*/*.pcap")):
        raw = path.read_bytes()
        at = raw.find(b"HEP3")
        while at >= 0:
            size = int.from_bytes(raw[at + 4 : at + 6])
            try:
                packet = hep.decode(raw[at : at + size])
            except hep.HepError:
                size = 4
            else:
                if packet.kind is SIP:
                    found.append(packet.payload)
            at = raw.find(b"HEP3", at + size)
    return found


MESSAGES = corpus()


def understood(payload: bytes) -> sip.Message | None:
    try:
        return sip.parse(payload)
    except sip.SipError:
        return None


def identity(message: sip.Message) -> tuple[object, ...]:
    """What keys a message to its call, and what the pipeline concludes from it."""
    return (
        message.status,
        message.method,
        message.call_id,
        message.cseq,
        message.from_tag,
        message.to_tag,
        message.branch,
        message.parent_branch,
        message.via_transport,
        message.via_count,
        message.truncated,
        len(message.body),
        [reason.cause for reason in message.reasons()],
        message.seconds("session-expires"),
    )


# -------------------------------------------------------------------------------------------- users


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Contact: <sip:alice@192.0.2.1:5060;ob>", f"Contact: <sip:{ALICE}@192.0.2.1:5060;ob>"),
        ("m: sip:alice@192.0.2.1", f"m: sip:{ALICE}@192.0.2.1"),
        ("CONTACT: *", "CONTACT: *"),
        ("Contact: <sip:192.0.2.1:5060;lr>", "Contact: <sip:192.0.2.1:5060;lr>"),
        (
            'Contact: <sip:alice@h>;expires=60;pub-gruu="sip:alice@h;gr=1"',
            f'Contact: <sip:{ALICE}@h>;expires=60;pub-gruu="sip:{ALICE}@h;gr=1"',
        ),
        ("P-Asserted-Identity: tel:+49-30-1234567", f"P-Asserted-Identity: tel:{NUMBER}"),
        (
            "P-Asserted-Identity: <sip:alice@h>, <tel:+49301234567>",
            f"P-Asserted-Identity: <sip:{ALICE}@h>, <tel:{NUMBER}>",
        ),
        ("P-Preferred-Identity: <sip:alice@h>", f"P-Preferred-Identity: <sip:{ALICE}@h>"),
        (
            "Remote-Party-ID: <sip:alice@h>;party=calling;privacy=off",
            f"Remote-Party-ID: <sip:{ALICE}@h>;party=calling;privacy=off",
        ),
        ("Diversion: <tel:+49301234567>;counter=1", f"Diversion: <tel:{NUMBER}>;counter=1"),
        (
            "History-Info: <sip:bob@h?Reason=SIP%3Bcause%3D302>;index=1",
            f"History-Info: <sip:{BOB}@h?Reason=SIP%3Bcause%3D302>;index=1",
        ),
        (
            "History-Info: <sip:vm.h;target=sip:bob%40h;cause=486>;index=1",
            f"History-Info: <sip:vm.h;target=sip:{BOB}%40h;cause=486>;index=1",
        ),
        (
            "Refer-To: <sip:bob@h?Replaces=alice-1%40h%3Bto-tag%3D7>",
            f"Refer-To: <sip:{BOB}@h?Replaces=alice-1%40h%3Bto-tag%3D7>",
        ),
        (
            "r: <sip:h?P-Asserted-Identity=%3Csip%3Aalice%40h%3E>",
            f"r: <sip:h?P-Asserted-Identity=%3Csip%3A{ALICE}%40h%3E>",
        ),
        ("b: <sip:alice@h>", f"b: <sip:{ALICE}@h>"),
        ("Referred-By: sip:alice@h", f"Referred-By: sip:{ALICE}@h"),
        ("P-Called-Party-ID: <sip:bob@h>", f"P-Called-Party-ID: <sip:{BOB}@h>"),
        ("Route: <sip:alice@h;lr>,<sip:h;lr>", f"Route: <sip:{ALICE}@h;lr>,<sip:h;lr>"),
        ("Record-Route: <sip:h;lr;vsf=QUJD>", "Record-Route: <sip:h;lr;vsf=****>"),
        ("Path: <sip:alice@h;lr>", f"Path: <sip:{ALICE}@h;lr>"),
        ("Replaces: alice-1@h;to-tag=7", "Replaces: alice-1@h;to-tag=7"),
        ("In-Reply-To: alice-1@h", "In-Reply-To: alice-1@h"),
        ("Call-Info: <https://h/alice.jpg>", f"Call-Info: <https://h/{ALICE}.jpg>"),
        ("X-Caller: alice", f"X-Caller: {ALICE}"),
        ("X-Callers: alice2", "X-Callers: alice2"),
        ("X-Y: sip:carolsip:bob@h", f"X-Y: sip:{token('carol')}sip:{BOB}@h"),
        ("X-Y: sip:h:5060 tel:", "X-Y: sip:h:5060 tel:"),
        ('Authorization: Digest username="", realm="h"', 'Authorization: Digest username="", realm="h"'),
        ("X-Orig: <sip:carol@h>", f"X-Orig: <sip:{token('carol')}@h>"),
        ("Warning: 399 h alice", "Warning: 399 h alice"),
        (
            'Warning: 399 h "in_uri=sip:alice@h alice"',
            f'Warning: 399 h "in_uri=sip:{ALICE}@h {ALICE}"',
        ),
        (
            'Reason: Q.850;cause=16;text="alice is away"',
            f'Reason: Q.850;cause=16;text="{ALICE} is away"',
        ),
        (
            'Authorization: Digest username="alice", realm="h", uri="sip:alice@h", response="0f"',
            f'Authorization: Digest username="{ALICE}", realm="h", uri="sip:{ALICE}@h", response="0f"',
        ),
        (
            "Proxy-Authorization: DIGEST username=alice@home.net,realm=h",
            f'Proxy-Authorization: DIGEST username="{ALICE}",realm=h',
        ),
        (
            'Authorization: Digest username="sip:alice@h"',
            f'Authorization: Digest username="{ALICE}"',
        ),
        (
            "Authorization: Digest username*=UTF-8''alice",
            f'Authorization: Digest username*="{ALICE}"',
        ),
        ("Authorization: Bearer eyJhbGciOi.alice", "Authorization: *"),
        ("Identity: eyJhbGciOi.eyJ0bi.sig;info=<https://h>", "Identity: *"),
        ("y: eyJhbGciOi", "y: *"),
        (f"X-Passport: {PASSPORT}", f"X-Passport: {'*' * len(PASSPORT)}"),
        ("Reply-To: <mailto:alice@example.com>", f"Reply-To: <mailto:{ALICE}@example.com>"),
        ("P-Associated-URI: <urn:service:sos>", "P-Associated-URI: <urn:service:sos>"),
    ],
)  # fmt: skip
def test_a_user_is_its_token_wherever_it_stands(line: str, kept: str) -> None:
    assert header(line, USERS) == kept


@pytest.mark.parametrize("scheme", ["sip", "SIPS"])
@pytest.mark.parametrize(
    ("user", "kept"),
    [
        ("alice", ALICE),
        ("%61lice", ALICE),
        ("alice:secret", ALICE),
        ("alice:se@cret", None),
        ("a@lice", token("a@lice")),
        ("alice;day=tuesday", token("alice;day=tuesday")),
        ("+49301234567", NUMBER),
        ("+49%2030-1234567", NUMBER),
        ("+49.30(123)45-67;ext=22", NUMBER),
        ("49301234567", token("49301234567")),
        ("911", token("911")),
        ('"alice smith"', token('"alice smith"')),
    ],
)
def test_equal_users_have_equal_tokens_however_they_are_written(
    scheme: str, user: str, kept: str | None
) -> None:
    masked = USERS.payload(SIP, message(start=f"INVITE {scheme}:{user}@h;user=phone SIP/2.0"))
    first = masked.split(b"\r\n")[0].decode()
    if kept is None:
        assert "cret" not in first
        assert "alice" not in first
    else:
        assert first == f"INVITE {scheme}:{kept}@h;user=phone SIP/2.0"


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("tel:+49-30-1234567", f"tel:{NUMBER}"),
        ("tel:+49301234567;isub=77;ext=5;x=y", f"tel:{NUMBER};isub=**;ext=*;x=y"),
        ("tel:4567;phone-context=+49301", f"tel:{token('4567')};phone-context=******"),
        ("sip:+49301234567", f"sip:{NUMBER}"),
        ("sip:1001:5060", f"sip:{token('1001')}:5060"),
        ("sip:192.0.2.1", "sip:192.0.2.1"),
        ("sip:alice%40h", f"sip:{ALICE}%40h"),
        ("sip:vm@h;target=sip:bob@h", f"sip:{token('vm')}@h;target=sip:{BOB}@h"),
        ("urn:service:sos", "urn:service:sos"),
        ("<sip:bob@h>", f"<sip:{BOB}@h>"),
        ("unknown:alice", f"unknown:{ALICE}"),
        ("alice@h", f"{ALICE}@h"),
    ],
)
def test_the_request_line_says_who_by_a_token(uri: str, kept: str) -> None:
    masked = USERS.payload(SIP, message(start=f"INVITE {uri} SIP/2.0"))
    assert masked.startswith(f"INVITE {kept} SIP/2.0\r\n".encode())


def test_folded_headers_are_masked_as_the_parser_reads_them() -> None:
    lines = "P-Asserted-Identity:\r\n <sip:al\r\n\tice@h>,\r\n <tel:\r\n +49301234567>"
    masked = USERS.payload(SIP, message(lines)).decode()
    assert f"\r\nP-Asserted-Identity: <sip:{token('al ice')}@h>, <tel:" in masked
    assert "49301234567" not in masked
    start = "INVITE\r\n sip:bob@h\r\n SIP/2.0"
    assert USERS.payload(SIP, message(start=start)).startswith(
        f"INVITE sip:{BOB}@h SIP/2.0\r\n".encode()
    )


def test_a_display_name_that_repeats_the_user_is_its_token_too() -> None:
    for name in ('"+49 30 1234567"', "49301234567", '"+49301234567"'):
        line = f"P-Asserted-Identity: {name} <sip:+49301234567@h>"
        assert header(line, USERS) == f'P-Asserted-Identity: "{NUMBER}" <sip:{NUMBER}@h>'
    line = 'P-Asserted-Identity: "alice@h" <sip:anonymous@h>'
    assert header(line, USERS).startswith(f'P-Asserted-Identity: "{ALICE}@h" <')
    line = 'P-Asserted-Identity: "Alice Smith" <sip:anonymous@h>'
    assert header(line, USERS).startswith('P-Asserted-Identity: "Alice Smith" <')


def test_the_reason_phrase_does_not_name_who_the_addresses_name() -> None:
    masked = USERS.payload(SIP, message(start="SIP/2.0 404 No alice or sip:carol@h here"))
    start = f"SIP/2.0 404 No {ALICE} or sip:{token('carol')}@h here\r\n"
    assert masked.startswith(start.encode())


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ('"Alice Smith" <sip:a@h>', f'"{NAME}" <sip:a@h>'),
        ("Alice  Smith <sip:a@h>", f'"{NAME}" <sip:a@h>'),
        (r'"\Alice \Smith" <sip:a@h>', f'"{NAME}" <sip:a@h>'),
        ("Alice Smith<sip:a@h>;x=y", f'"{NAME}" <sip:a@h>;x=y'),
        ('"" <sip:a@h>', '"" <sip:a@h>'),
        ("<sip:a@h>", "<sip:a@h>"),
        ("sip:a@h", "sip:a@h"),
        (
            'Alice Smith <sip:a@h>, "B" <sip:b@h>',
            f'"{NAME}" <sip:a@h>, "{token("B", "n")}" <sip:b@h>',
        ),
    ],
)
def test_a_display_name_is_a_token_of_its_own(value: str, kept: str) -> None:
    assert header(f"P-Asserted-Identity: {value}", NAMES) == f"P-Asserted-Identity: {kept}"


def test_tokens_need_a_key_that_cannot_be_tried() -> None:
    for choice in ({"users": True}, {"names": True}):
        with pytest.raises(ValueError, match="16 bytes"):
            Mask(b"short", **choice)
    other = Mask(KEY[::-1], users=True)
    assert other.user("alice") != USERS.user("alice") == ALICE


def test_a_user_can_be_asked_for_by_its_token_in_any_writing() -> None:
    assert USERS.user("+49 30 1234567") == USERS.user("+49301234567") == NUMBER
    assert USERS.user(ALICE) == ALICE
    assert USERS.user("\udcff") != USERS.user("\ufffd")
    parsed = sip.parse(USERS.payload(SIP, message()))
    address = parsed.address("from")
    assert address is not None
    assert address.uri.user == USERS.user("alice")


def test_what_keys_a_message_stays_although_it_names_the_user() -> None:
    masked = EVERYTHING.payload(SIP, message("Contact: <sip:alice@h>"))
    assert b"branch=z9hG4bKalice\r\n" in masked
    assert b";tag=alice\r\n" in masked
    assert b"\r\nCall-ID: alice-1@example.com\r\n" in masked
    assert masked.count(b"alice") == 3


# ----------------------------------------------------------------------------------- DTMF and keys


RELAY = b"Signal=5\r\nDuration=160\r\n"
MIXED = (
    b"--b\r\nContent-Type: application/dtmf-relay\r\n\r\nSignal=%s\r\n--b\r\n"
    b"Content-Type: text/plain\r\n\r\nhello\r\n--b--\r\n"
)
HIDDEN = b"Signal=*\r\nDuration=160\r\n"


@pytest.mark.parametrize(
    ("content", "headers", "kept"),
    [
        (RELAY, ["Content-Type: application/dtmf-relay"], HIDDEN),
        (RELAY, ["CONTENT-TYPE: APPLICATION/DTMF-RELAY"], HIDDEN),
        (RELAY, ["c: application/dtmf-relay"], HIDDEN),
        (RELAY, ["Content-Type:\r\n application/dtmf-relay; x=y"], HIDDEN),
        (RELAY, ["Content-Type: text/plain"], HIDDEN),
        (RELAY, [], HIDDEN),
        (b"signal = #\nduration = 1\n", [], b"signal = *\nduration = 1\n"),
        (b"Duration=160\r\nSignal=11\r\n", [], b"Duration=160\r\nSignal=**\r\n"),
        (b"5", ["Content-Type: application/dtmf"], b"*"),
        (b"5\r\n", [], b"*\r\n"),
        (b"12*#\r\n", ["Content-Type: text/plain"], b"****\r\n"),
        (b"d5\r\n", ["Content-Type: audio/telephone-event"], b"**\r\n"),
        (b"\x0a\x0a\x00\xa0", ["Content-Type: audio/telephone-event"], b"****"),
        (b"\x0d\x0a\x03\x20", ["Content-Type: audio/telephone-event"], b"****"),
        (
            b"p=Digit-Collection\r\nd=4\r\n",
            ["Content-Type: application/vnd.nortelnetworks.digits"],
            b"p=****************\r\nd=*\r\n",
        ),
        (
            b'<kpml-response code="200" digits="1234#" tag="x"/>',
            ["Content-Type: application/kpml-response+xml"],
            b'<kpml-response code="200" digits="*****" tag="x"/>',
        ),
        (b"<response digits='42'/>", ["c: application/mediaservercontrol+xml"],
            b"<response digits='**'/>"),
        (b'{"digit": "5", "digits":12}', ["c: application/json"], b'{"digit": "*", "digits":**}'),
        (b"\x1f\x8b\x08\x00ab", ["c: application/dtmf-relay", "Content-Encoding: gzip"],
            b"******"),
        (base64.b64encode(RELAY), ["Content-Transfer-Encoding: base64"], b"*" * 32),
        (b"x" * 5000, ["Content-Type: application/dtmf"], b"*" * 5000),
        (MIXED % b"5", ['Content-Type: multipart/mixed; boundary="b"'], MIXED % b"*"),
        (b"--b\r\n\r\n7\r\n--b--", [], b"--b\r\n\r\n*\r\n--b--"),
    ],
)  # fmt: skip
def test_dtmf_is_never_kept(content: bytes, headers: list[str], kept: bytes) -> None:
    assert body(content, *headers) == kept
    assert body(content, *headers, method="NOTIFY") == kept
    assert body(content, *headers, mask=NOTHING) == content


def test_dtmf_is_masked_in_any_line_ends_and_after_empty_lines() -> None:
    payload = message(start="INFO sip:bob@h SIP/2.0", body=RELAY)
    for changed in (
        payload.replace(b"\r\n", b"\n"),
        b"\r\n\r\n" + payload,
        payload.replace(b"INFO", b"info").replace(b"CSeq: 1 info", b"CSeq: 1 INFO"),
        payload + b"\r\n\r\n",
    ):
        assert b"ignal=5" not in PLAIN.payload(SIP, changed)
        assert PLAIN.payload(SIP, changed) == changed.replace(b"Signal=5", b"Signal=*")


def test_words_that_look_like_dtmf_stay_elsewhere() -> None:
    for content in (b"Signal=5\r\n", b"12345", b"call 5"):
        assert body(content, "Content-Type: text/plain", method="MESSAGE") == content
    offer = b"v=0\r\na=rtpmap:101 telephone-event/8000\r\n"
    assert body(offer, "Content-Type: application/sdp", method="INVITE") == offer
    voice = b"Messages-Waiting: yes\r\nVoice-Message: 2/8\r\n"
    assert body(voice, "c: application/simple-message-summary", method="NOTIFY") == voice


SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\nm=audio 4000 RTP/SAVP 0\r\n"
SECRET = b"WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:%s|2^20|1:4 FEC_ORDER=FEC_SRTP",) * 2,
        (b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 INLINE:%s",) * 2,
        (b"a=crypto:1 A inline:%s|2^20;inline:%s|2^20",) * 2,
        (b"a=key-mgmt:mikey %s",) * 2,
        (b"k=base64:%s",) * 2,
        (b"k=clear:%s",) * 2,
    ],
)
@pytest.mark.parametrize("method", ["INVITE", "SIP/2.0 200 OK", "INFO"])
def test_media_keys_are_never_kept(line: bytes, kept: bytes, method: str) -> None:
    def filled(pattern: bytes, secret: bytes) -> bytes:
        return SDP + pattern.replace(b"%s", secret) + b"\r\na=ptime:20\r\n"

    start = method if method.startswith("SIP") else f"{method} sip:bob@h SIP/2.0"
    stars = b"*" * len(SECRET)
    for content_type in ("application/sdp", "APPLICATION/SDP", "multipart/mixed;boundary=b"):
        payload = message(f"Content-Type: {content_type}", start=start, body=filled(line, SECRET))
        masked = PLAIN.payload(SIP, payload)
        assert masked == payload.replace(filled(line, SECRET), filled(kept, stars))
        assert NOTHING.payload(SIP, payload) == payload


def test_media_keys_are_masked_in_whatever_carries_sdp() -> None:
    line = b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:%s|2^20\r\n"
    offer = SDP + line % SECRET
    bencode = b"5f_1 d7:command5:offer3:sdp%d:%se" % (len(offer), offer)
    json = msgspec.json.encode({"sdp": offer.decode(), "k": 1})
    slashed = json.replace(b"WVNf", rb"WV\/f").replace(b"19zZ", rb"\u002b9z")
    for kind, payload in (
        (hep.Kind.NG, bencode),
        (hep.Kind.JSON, json),
        (hep.Kind.JSON, slashed),
        (hep.Kind.LOG, offer),
        (hep.Kind.OTHER, offer),
        (SIP, offer),  # no start line: the rest of a message
        (SIP, b"9@h\r\nContent-Type: application/sdp\r\n\r\n" + offer),
    ):
        masked = PLAIN.payload(kind, payload)
        assert len(masked) == len(payload)
        assert b"jdGwgKCkgewkyMjA7fQp9CnVubGVz" not in masked
        assert b"*|2^20" in masked
    coded = message("Content-Type: application/sdp", "Content-Encoding: gzip", body=b"\x1f\x8bxyz")
    assert PLAIN.payload(SIP, coded).endswith(b"\r\n\r\n*****")


def test_what_has_neither_dtmf_nor_a_key_is_kept_as_it_came() -> None:
    assert PLAIN.payload(SIP, message()) is not None
    changed = [payload for payload in MESSAGES if PLAIN.payload(SIP, payload) != payload]
    assert changed == []
    for kind in hep.Kind:
        assert NOTHING.payload(kind, b"anything \0\xff Signal=5") == b"anything \0\xff Signal=5"


# ------------------------------------------------------------------------------------------ bodies


def test_bodies_other_than_sdp_become_stars_between_their_line_ends() -> None:
    text = b"Meet me\r\nat nine \xff\x00"
    for content_type in (
        "text/plain",
        "application/pidf+xml",
        "application/isup",
        "message/sipfrag",
    ):
        kept = body(text, f"Content-Type: {content_type}", method="MESSAGE", mask=BODIES)
        assert kept == b"*******\r\n**********"
    assert body(text, method="MESSAGE", mask=BODIES) == b"*******\r\n**********"
    offer = SDP + b"a=rtpmap:0 PCMU/8000\r\n"
    assert body(offer, "c: application/sdp", method="INVITE", mask=BODIES) == offer
    assert body(offer, method="INVITE", mask=BODIES) == offer
    hidden = body(offer + b"secret words\r\n", "c: application/sdp", method="INVITE", mask=BODIES)
    assert hidden == offer + b"************\r\n"


def test_a_multipart_body_keeps_its_shape_and_its_sdp() -> None:
    content = (
        b"a preamble\r\n--b\r\nContent-Type: application/sdp\r\nX-Who: alice\r\n\r\n" + SDP
        + b"\r\n--b\r\nContent-Type: application/isup\r\n\r\n\x01\x02alice\r\n--b--\r\nthe end"
    )  # fmt: skip
    kept = body(content, "Content-Type: multipart/mixed; boundary=b", mask=BODIES)
    assert len(kept) == len(content)
    assert b"alice" not in kept
    assert b"preamble" not in kept
    assert b"end" not in kept
    assert b"Content-Type: application/isup\r\n\r\n*******\r\n--b--" in kept
    assert sdp.body_of("multipart/mixed; boundary=b", kept) == SDP.removesuffix(b"\r\n") + b"\r\n"
    for headers in (["Content-Type: multipart/mixed"], ["c: multipart/mixed;boundary=c"]):
        assert b"alice" not in body(content, *headers, mask=BODIES)


def test_deep_or_many_parts_are_masked_as_one() -> None:
    nested = b"secret"
    for name in "abcdef":
        content_type = f"multipart/mixed;boundary={chr(ord(name) - 1)}" if name != "a" else "text/x"
        nested = f"--{name}\r\nContent-Type: {content_type}\r\n\r\n".encode() + nested
    kept = body(nested, "Content-Type: multipart/mixed;boundary=f", mask=BODIES)
    assert len(kept) == len(nested)
    assert b"secret" not in kept
    many = b"--b\r\n\r\nsecret\r\n" * 200
    kept = body(many, "Content-Type: multipart/mixed;boundary=b", mask=BODIES)
    assert len(kept) == len(many)
    assert b"secret" not in kept


def test_headers_that_say_what_a_body_says_go_with_the_bodies() -> None:
    for line in ("Subject: lunch", "s: lunch", "User-to-User: 6c756e6368;encoding=hex"):
        assert header(line, BODIES) == line.partition(":")[0] + ": *"
        assert header(line, USERS) == line
    assert header("Contact: <sip:alice@h>", BODIES) == "Contact: <sip:alice@h>"


def test_sdp_does_not_name_the_user_when_users_are_masked() -> None:
    offer = (
        b"v=0\r\no=alice 1 2 IN IP4 192.0.2.1\r\ns=Call of Alice\r\ni=Alice\r\ne=alice@h\r\n"
        b"p=+49 30 1\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\na=ssrc:1 cname:alice@h\r\n"
    )
    kept = body(offer, "Content-Type: application/sdp", method="INVITE", mask=PEOPLE)
    assert len(kept) == len(offer)
    assert b"lice" not in kept
    assert b"49" not in kept
    assert sdp.parse(kept) == sdp.parse(offer)
    for origin in (b"o=alice smith 1 2 IN IP4 h", b"o=alice", b"o=- 1 2 IN IP4 h", b"o=alice 1"):
        masked = body(b"v=0\r\n%s\r\n" % origin, method="INVITE", mask=USERS)
        assert b"alice" not in masked
        assert masked.split() != [] and masked.count(b" ") == origin.count(b" ")  # noqa: PT018


def test_uris_in_bodies_become_stars_of_the_same_length() -> None:
    xml = b'<p entity="sip:alice@h"><tuple>tel:+49301234567</tuple>&lt;sips:bob:x@h&gt; sip:h</p>'
    kept = body(xml, "Content-Type: application/pidf+xml", method="PUBLISH", mask=USERS)
    assert kept == (
        b'<p entity="sip:*****@h"><tuple>tel:************</tuple>&lt;sips:*****@h&gt; sip:h</p>'
    )
    numbers = body(b"\x01\x10alice", "Content-Type: application/isup;v=x", mask=USERS)
    assert numbers == b"*******"


# ---------------------------------------------------------------------------- what is not understood


@pytest.mark.parametrize(
    "payload",
    [
        b"INVITE sip:alice@h SIP/3.0\r\n\r\n",
        b"ice <sip:alice@h>;tag=1\r\nTo: <sip:alice@h>\r\nX-Y: alice@h 4930123\r\n\r\nalice@h",
        b"\x00\x01sip:alice@h\xff\xfe",
        b"alice@h tel:alice sip:alice%40h",
        b'"alice@h"' + b"@" * 1000,
    ],
)
def test_bytes_of_unknown_sense_are_masked_rather_too_much(payload: bytes) -> None:
    masked = PEOPLE.payload(SIP, payload)
    assert b"alice" not in masked
    assert understood(masked) is None


def test_long_numbers_and_quoted_names_go_from_bytes_of_unknown_sense() -> None:
    rest = b'foo +4930-1234567 "Alice" port 5060'
    assert PEOPLE.payload(SIP, rest) == b"foo ************* ******* port 5060"
    assert USERS.payload(SIP, rest) == b'foo ************* "Alice" port 5060'
    assert EVERYTHING.payload(SIP, rest) == b"*" * len(rest)
    assert PLAIN.payload(SIP, rest) == rest


def test_digits_go_from_the_rest_of_a_message_too() -> None:
    for payload in (b"Signal=5\r\nDuration=160", b"gnal=5\r\nDuration=1\r\n", b"5", b"\r\n5"):
        assert b"5" not in PLAIN.payload(SIP, payload)
    payload = b"t: 7\r\nContent-Type: application/dtmf\r\n\r\n57"
    assert PLAIN.payload(SIP, payload) == payload.replace(b"57", b"**")


def test_a_line_that_was_cut_is_blanked_unless_it_names_nobody() -> None:
    whole = message("P-Asserted-Identity: <sip:alice@h>")
    end = whole.index(b"<sip:alice@h>")
    for size in range(1, 12):
        masked = USERS.payload(SIP, whole[: end + size])
        assert masked.endswith(b"\r\nP-Asserted-Identity:" + b"*" * (size + 1))
        assert sip.parse(masked).truncated
    cut = whole[: whole.index(b"sip:alice@example.com") + 7]
    assert USERS.payload(SIP, cut).endswith(b"\r\nFrom:*********")
    via = b"INVITE sip:h SIP/2.0\r\nVia: SIP/2.0/UDP 192"
    assert USERS.payload(SIP, via) == via
    assert USERS.payload(SIP, via + b"\r\nali") == via + b"\r\n***"
    assert PLAIN.payload(SIP, cut) == cut


@pytest.mark.parametrize("kind", [hep.Kind.JSON, hep.Kind.NG, hep.Kind.LOG, hep.Kind.OTHER])
def test_what_is_not_sip_keeps_its_length_and_loses_users(kind: hep.Kind) -> None:
    payload = b'd3:sdp9:v=0\r\no=alice 1 1 IN IP4 h\r\ne "sip:alice@h" "tel:alice"'
    masked = EVERYTHING.payload(kind, payload)
    assert len(masked) == len(payload)
    assert b"alice" not in masked
    assert PLAIN.payload(kind, payload) == payload
    dump = b"INFO sip:h\r\n\r\nSignal=5\r\n" + rb'{"digits":"12"} \r\nSignal=7\r\n'
    kept = PLAIN.payload(kind, dump)
    assert kept == dump.replace(b"=5", b"=*").replace(b'"12"', b'"**"').replace(b"=7", b"=*")


def test_free_text_of_a_log_is_masked_roughly() -> None:
    text = b"call from alice@h to 4930123456 code 486"
    assert USERS.payload(hep.Kind.LOG, text) == b"call from *****@h to ********** code 486"


def test_source_descriptions_of_rtcp_lose_their_texts_and_nothing_else() -> None:
    def chunk(source: int, *items: tuple[int, bytes]) -> bytes:
        raw = struct.pack(">I", source) + b"".join(
            bytes((kind, len(text))) + text for kind, text in items
        )
        return raw + bytes(4 - len(raw) % 4)

    def described(first: bytes, second: bytes) -> bytes:
        report = b"\x80\xc9\x00\x01" + struct.pack(">I", 1)
        chunks = chunk(1, (1, first), (4, b"+" * len(second))) + chunk(2, (2, second))
        return report + struct.pack(">BBH", 0x82, 202, len(chunks) // 4) + chunks + report

    sent = described(b"alice@192.0.2.1", b"Alice")
    masked = USERS.payload(hep.Kind.RTCP, sent)
    assert masked == described(b"*" * 15, b"*" * 5).replace(b"+" * 5, b"*" * 5)
    assert PLAIN.payload(hep.Kind.RTCP, sent) == sent
    json = b'{"sdes_information":[{"type":1,"text":"alice@h"}]}'
    assert USERS.payload(hep.Kind.JSON, json) == json.replace(b"alice@h", b"*******")


@given(st.binary(max_size=200), st.sampled_from(sorted(hep.Kind)))
@example(b"\x81\xca\xff\xff\x00", hep.Kind.RTCP)
def test_no_bytes_make_a_mask_raise(payload: bytes, kind: hep.Kind) -> None:
    for mask in MASKS:
        masked = mask.payload(kind, payload)
        if kind is not SIP:
            assert len(masked) == len(payload)


# ----------------------------------------------------------------- a mask changes nothing but people


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(MASKS.index(mask)))
def test_a_masked_message_is_the_same_message(mask: Mask) -> None:
    for payload in MESSAGES[::2]:
        before = understood(payload)
        masked = mask.payload(SIP, payload)
        after = understood(masked)
        if before is not None:
            assert after is not None
            assert identity(after) == identity(before)
            assert mask.payload(SIP, masked) == masked


PIECES = (
    b'"', b'\\"', b"<", b">", b",", b";", b";tag=x", b';tag="a,b"', b"\r\n ", b"\n\t", b"\n", b"\r\n",
    b"\r\n\r\n", b"sip:", b"sip:a:b@h", b"@", b"%40", b"%3a", b"tel:+49 30", b"From:", b"f: ", b"To: ",
    b"\r", b"\0", b"\xff", b"Content-Length: 3\r\n", b"c: multipart/mixed;boundary=x\r\n", b"--x\r\n",
    b"inline:ABC", b"Signal=5", b":", b"alice@h", b"*", b'"sip:x@y"', b";TAG = z", b"\\",
    b'"' + b"q" * 17_000 + b'"', b"a:b\n" * 1100, b" x\n" * 40,
)  # fmt: skip
WHOLE = [payload for payload in MESSAGES if understood(payload) is not None]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4
    ),
    st.sampled_from(MASKS),
)
def test_masking_never_changes_what_the_parser_finds(
    payload: bytes, edits: list[tuple[int, int, bytes]], mask: Mask
) -> None:
    for at, gone, piece in edits:
        payload = payload[:at] + piece + payload[at + gone :]
    before = understood(payload)
    masked = mask.payload(SIP, payload)
    if before is not None:
        assert identity(sip.parse(masked)) == identity(before)


@pytest.mark.parametrize(
    "value",
    [
        b'"' + b"q" * 20_000 + b'" <sip:a@h>;tag=far',
        b'"\\"' + b"q" * 20_000 + b'" <sip:a@h>;tag=far',
        b"<sip:a@h>;x=sip:b@h;tag=sip:c@h",
        b'"a;tag=no" <sip:a@h;tag=no>;tag="x;y"',
        b"a, b;tag=c, <sip:d@h>;tag=e",
        b'a" <sip:a@h>;tag=t"x',
        b";tag=only",
        b"sip:a@h;tag=t",
        b"<sip:a@h>;tag=" + "é".encode() * 200,
        b"<sip:a@h" + b">" * 3 + b";tag=t",
        b",".join([b"<sip:a@h>"] * 400) + b";tag=t",
    ],
)
def test_no_address_is_so_odd_that_its_tag_is_lost(value: bytes) -> None:
    payload = message().replace(b" <sip:alice@example.com>;tag=alice", b" " + value)
    before = sip.parse(payload)
    for mask in MASKS:
        assert identity(sip.parse(mask.payload(SIP, payload))) == identity(before)
    assert b"a@h" not in USERS.payload(SIP, payload)


def test_lines_that_the_parser_does_not_read_are_blanked() -> None:
    lines = ["X: y"] * sip.MAX_LINES + ["P-Asserted-Identity: <sip:alice@h>", " folded alice"]
    payload = message(*lines, body=b"")
    masked = EVERYTHING.payload(SIP, payload)
    assert masked.count(b"alice") == 3  # branch, tag and Call-ID
    assert identity(sip.parse(masked)) == identity(sip.parse(payload))


# -------------------------------------------------------------------------- hostile, and all at once


HOSTILE = (
    b'"', b'\\"', b"\\", b"<", b">", b",", b'"a",', b"<a>,", b"sip:", b"sip:a", b"sip:a@h ", b"a@", b"%41",
    b"tel:1", b"1", b"1-", b";", b";tag=", b";ext=1", b"eyJ", b'username="a",', b" ", b"\t", b"a",
    b"sip%3aa%40h%3b", b'"sip:a@h"', b"inline:A|", b"k=", b'digits="1" ', b"a:b\r\n", b"f: \\a\r\n",
    b"m: <sip:a@h>,<sip:b@h>\r\n", b"Signal=5\r\n", b"--x\r\n", b"o=a b c d e f\r\n", b" x\r\n",
)  # fmt: skip


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"From: ",
        b"Contact: ",
        b"X: sip:a@h ",
        b"Reason: ",
        b"Authorization: Digest ",
        b"INFO",
        b"v=",
    ],
)
def test_no_unit_of_64_kilobytes_takes_long(before: bytes) -> None:
    slowest = 0.0
    for unit in HOSTILE:
        filling = unit * (64_000 // len(unit))
        if before == b"INFO":
            payload = message("c: application/dtmf-relay", start="INFO sip:h SIP/2.0", body=filling)
        elif before == b"v=":
            payload = message("c: application/sdp", body=b"v=0\r\n" + filling)
        elif before:
            payload = message().replace(b"From: ", before + filling + b"\r\nFrom: ")
        else:
            payload = filling
        for mask in (PLAIN, EVERYTHING, PEOPLE):
            best = min(_seconds(mask, payload) for _ in range(2))
            slowest = max(slowest, best)
    assert slowest < 0.1  # 20 ms on a machine that does nothing else


def _seconds(mask: Mask, payload: bytes) -> float:
    started = time.process_time()
    mask.payload(SIP, payload)
    return time.process_time() - started


def test_what_is_remembered_has_a_limit_in_number_and_size() -> None:
    mask = Mask(KEY, users=True, names=True)
    for number in range(privacy.CACHED + 50):
        mask.payload(SIP, message(f"Contact: <sip:{number}@h>"))
    long = message(f"Contact: <sip:{'x' * 3000}@h>")
    before = mask.address.cache_info()
    mask.payload(SIP, long)
    assert before.currsize <= privacy.CACHED
    assert mask.address.cache_info().misses - before.misses <= 2


PLANTED_USER, PLANTED_NUMBER, PLANTED_NAME = "plantedperson", "+4930555123987", "Planted Person"
CARRIERS: tuple[str, ...] = (
    "P-Asserted-Identity: {name} <sip:{user}@h>",
    "P-Asserted-Identity: tel:{user}",
    "P-Preferred-Identity: <sip:{user}:pass@h;user=phone>",
    "Remote-Party-ID: {name} <sip:{user}@h>;party=calling",
    "Diversion: {name} <tel:{user}>;reason=unknown",
    "History-Info: <sip:h;target=sip:{user}%40h>;index=1,\r\n\t<sip:{user}@h>;index=1.1",
    "Refer-To: <sip:{user}@h?Replaces=x%40h>",
    "Referred-By: {name} <sip:{user}@h>",
    "b: <sips:{user}@h>",
    'm: {name}<sip:{user}@h;transport=tcp>;expires=1;pub-gruu="sip:{user}@h"',
    "Reply-To: {name} <sip:{user}@h>",
    "P-Called-Party-ID: <sip:{user}@h>",
    "P-Served-User: <sip:{user}@h>;sescase=orig",
    "Record-Route: <sip:{user}@h;lr>",
    "Route: <sip:h;lr>, <sip:{user}@h;lr>",
    "Path: <sip:{user}@h;lr>",
    'Authorization: Digest username="{user}", uri="sip:{user}@h", realm="h"',
    "Proxy-Authorization: Basic {user}",
    "Identity: eyJ{user}.{user}.{user}",
    "Subject: {user} {name}",
    "X-Caller: {user}",
    "X-Caller-Name: {name}",
    "Alert-Info: <sip:{user}@h>;x={user}",
    'Reason: SIP;cause=200;text="{user} has answered"',
    'Warning: 399 h "{user}"',
    "Organization: of {user}",
)


def _planted(payload: bytes, user: str) -> bytes:
    """A message of a capture with somebody in every place that may name them."""
    found = sip.parse(payload)
    quoted = f'"{PLANTED_NAME}"'
    lines = [line.format(user=user, name=quoted) for line in CARRIERS]
    offer = (
        f"v=0\r\no={user} 1 1 IN IP4 192.0.2.1\r\ns={PLANTED_NAME}\r\ne={user}@h\r\np={user}\r\n"
        f"t=0 0\r\nm=audio 4000 RTP/SAVP 0\r\na=crypto:1 AES inline:{SECRET.decode()}|2^20\r\n"
    )
    return "\r\n".join(
        [
            f"INVITE sip:{user}@example.net;user=phone SIP/2.0",
            *(f"Via: {via.decode()}" for via in found.values("via")),
            f"f: {PLANTED_NAME} <sip:{user}@h>;tag={found.from_tag}",
            f"t: {quoted} <tel:{user};ext=1>",
            f"Call-ID: {found.call_id}",
            f"CSeq: {found.cseq} INVITE",
            *lines,
            "Content-Type: application/sdp",
            f"Content-Length: {len(offer)}",
            "",
            offer,
        ]
    ).encode()


def _texts(value: object) -> str:
    return repr(msgspec.to_builtins(value, builtin_types=(bytes,)))


@pytest.mark.parametrize("user", [PLANTED_USER, PLANTED_NUMBER])
def test_nobody_who_was_planted_leaves_the_pipeline_by_name(user: str) -> None:
    world = World(mask=EVERYTHING)
    invites = [payload for payload in WHOLE if payload.startswith(b"INVITE ")]

    def send(payload: bytes, **more: Any) -> None:
        fields: dict[str, Any] = {"ip_protocol": 17, "protocol_type": 1} | more
        world.send(
            hep.encode(
                source=bytes(4), destination=bytes(4), source_port=5060, destination_port=5060,
                captured_at=EPOCH, agent_id=1, payload=payload, **fields,
            ),
            world.now + 0.001,
        )  # fmt: skip

    for payload in invites[::9]:
        whole = _planted(payload, user)
        tags = sip.parse(whole)
        send(whole)
        send(whole[:700], ip_protocol=6)  # a part of a stream whose rest never comes
        send(whole[:900])
        send(whole.replace(b"CSeq: ", b"CSeq: x"))
        send(whole[len(whole) // 2 :])
        info = b"INFO" + whole[6:].replace(b" INVITE", b" INFO").partition(b"application/sdp")[0]
        send(info + b"application/dtmf-relay\r\n\r\nSignal=55512398\r\nDuration=1")
        reply = b"SIP/2.0 404 No " + user.encode() + b"\r\n"
        send(reply + whole.partition(b"\r\n")[2].replace(b";ext=1>", b">;tag=b"))
        register = whole.replace(b" INVITE", b" REGISTER").replace(b"INVITE ", b"REGISTER ", 1)
        send(register.replace(tags.call_id.encode(), b"r" + tags.call_id.encode()))
        send(whole, protocol_type=100)
        send(b"d3:sdp5:" + whole.partition(b"\r\n\r\n")[2] + b"e", protocol_type=0x3D)
        send(msgspec.json.encode({"sip": f"sip:{user}@h"}), protocol_type=5)
    world.run_out()
    assert len(world.stored) >= 11 * len(invites[::9])
    assert {m.why for m in world.stored} >= {None, "cseq", "start-line"}
    kinds = {type(output).__name__ for output in world.outputs}
    assert {"CallRecord", "RegistrationRecord"} <= kinds
    for value in itertools.chain(world.outputs, world.stored):
        text = _texts(value)
        for secret in (user, user.lstrip("+"), PLANTED_NAME, "55512398", SECRET.decode()):
            assert secret not in text, (secret, value)
    (caller,) = {record.from_user for record in world.calls()} - {None}
    assert caller == EVERYTHING.user(user)


def test_a_capture_of_masked_messages_is_read_as_before(tmp_path: Path) -> None:
    packet = pcap.udp_record(EPOCH, bytes(4), bytes(4), 1, 2, EVERYTHING.payload(SIP, message()))
    again = EVERYTHING.payload(SIP, packet[-len(EVERYTHING.payload(SIP, message())) :])
    assert sip.parse(again).call_id == "alice-1@example.com"


@pytest.mark.parametrize(
    ("mask", "limit"), [(PLAIN, 0.25), (EVERYTHING, 5.0)], ids=["default", "everything"]
)
def test_a_mask_is_cheap_beside_the_parser(mask: Mask, limit: float) -> None:
    invites = [payload for payload in WHOLE if payload.startswith(b"INVITE ")]

    def cost(work: Callable[[bytes], object]) -> float:
        best = 9.0
        for _ in range(5):
            started = time.process_time()
            for payload in invites:
                work(payload)
            best = min(best, time.process_time() - started)
        return best

    assert cost(lambda payload: mask.payload(SIP, payload)) < limit * cost(sip.parse)
