import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import x509
from sipsidecar.wire.x509 import Certificate, X509Error

COMMON_NAME, ORGANISATION = b"\x06\x03\x55\x04\x03", b"\x06\x03\x55\x04\x0a"
NAMES = b"\x06\x03\x55\x1d\x11"


def der(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes(2, "big")
    return bytes([tag, 0x82]) + size + body


def name(*pairs: bytes) -> bytes:
    return der(0x30, *(der(0x31, der(0x30, pair)) for pair in pairs))


def alternative(*names: bytes) -> bytes:
    critical = b"\x01\x01\xff"
    some = der(0x30, b"\x06\x03\x55\x1d\x0f", der(0x04, b"\x03\x01\x00"))
    known = der(0x30, NAMES, critical, der(0x04, der(0x30, *names)))
    return der(0xA3, der(0x30, some, known))


ISSUER = name(ORGANISATION + der(0x0C, b"Authority"))
SUBJECT = name(ORGANISATION + der(0x0C, b"Acme"), COMMON_NAME + der(0x13, b"sip.example.com"))
BEGINS = der(0x17, b"260101000000Z")
ENDS = der(0x17, b"270203040506Z")


def certificate(
    *,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    serial: bytes = b"\x02\x01\x05",
    issuer: bytes = ISSUER,
    subject: bytes = SUBJECT,
    begins: bytes = BEGINS,
    ends: bytes = ENDS,
    names: bytes = b"",
) -> bytes:
    key = der(0x30, b"\x05\x00")
    algorithm = der(0x30, b"\x06\x01\x01")
    validity = der(0x30, begins, ends)
    signed = der(
        0x30, version, serial, algorithm, issuer, validity, subject, key, b"\xa1\x00", names
    )
    return der(0x30, signed, algorithm, b"\x03\x01\x00")


def why(raw: bytes) -> str:
    with pytest.raises(X509Error) as caught:
        x509.parse(raw)
    assert caught.value.why in x509.WHYS
    return caught.value.why


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())


def test_a_certificate_says_whose_it_is_who_made_it_and_how_long_it_holds() -> None:
    found = x509.parse(certificate())
    assert found == Certificate(
        subject="sip.example.com",
        issuer="Authority",
        not_before=utc(2026, 1, 1),
        not_after=utc(2027, 2, 3, 4, 5, 6),
    )


def test_one_without_a_version_is_read_as_well() -> None:
    assert x509.parse(certificate(version=b"")).subject == "sip.example.com"


def test_times_of_both_forms_are_read() -> None:
    assert x509.parse(certificate(ends=der(0x18, b"20510101000000Z"))).not_after == utc(2051, 1, 1)
    assert x509.parse(certificate(begins=der(0x17, b"500101000000Z"))).not_before == utc(1950, 1, 1)
    assert x509.parse(certificate(ends=der(0x17, b"491231235959Z"))).not_after == utc(
        2049, 12, 31, 23, 59, 59
    )


@pytest.mark.parametrize(
    "ends",
    [
        der(0x17, b"271301000000Z"),
        der(0x17, b"2701010000Z"),
        der(0x17, b"20270101000000Z"),
        der(0x18, b"270101000000Z"),
        der(0x17, b"27010100000+Z"),
        der(0x16, b"20270101000000Z"),
        der(0x17, b""),
    ],
)
def test_what_is_no_time_is_refused(ends: bytes) -> None:
    assert why(certificate(ends=ends)) == "time"


def test_a_subject_without_names_is_unknown() -> None:
    assert x509.parse(certificate(subject=name())).subject is None
    assert x509.parse(certificate(subject=name(b"\x06\x01\x01" + der(0x0C, b"x")))).subject is None


def test_names_are_read_in_every_coding_and_cut() -> None:
    for tag, text, expected in (
        (0x1E, "Zürich".encode("utf-16-be"), "Zürich"),
        (0x1C, "Zürich".encode("utf-32-be"), "Zürich"),
        (0x14, b"Z\xfcrich", "Z\\xfcrich"),
        (0x0C, b"x" * 300, "x" * 255),
    ):
        made = certificate(subject=name(COMMON_NAME + der(tag, text)))
        assert x509.parse(made).subject == expected


def test_the_first_of_two_common_names_counts() -> None:
    twice = name(COMMON_NAME + der(0x0C, b"one"), COMMON_NAME + der(0x0C, b"two"))
    assert x509.parse(certificate(subject=twice)).subject == "one"


def test_alternative_names_are_read_by_their_kind() -> None:
    names = alternative(
        der(0x82, b"SIP.Example.com."),
        der(0x86, b"sip:Example.com"),
        der(0x87, bytes([192, 0, 2, 1])),
        der(0x87, bytes(15) + b"\x01"),
        der(0x87, b"\x01"),
        der(0x81, b"root@example.com"),
    )
    found = x509.parse(certificate(names=names))
    assert found.dns == ("sip.example.com",)
    assert found.uris == ("sip:example.com",)
    assert found.addresses == ("192.0.2.1", "::1")


def test_no_more_names_are_read_than_there_may_be() -> None:
    names = alternative(*(der(0x82, b"%d" % n) for n in range(500)))
    assert len(x509.parse(certificate(names=names)).dns) == x509.MAX_NAMES


def test_a_certificate_is_for_the_names_that_it_has() -> None:
    found = Certificate(
        subject="other.example.org",
        issuer=None,
        not_before=0,
        not_after=1,
        dns=("sip.example.com", "*.trunk.example.com"),
        uris=("sip:example.net",),
        addresses=("192.0.2.1", "::1"),
    )
    for one in ("SIP.example.com.", "a.trunk.example.com", "example.net", "192.0.2.1", "0:0::1"):
        assert found.is_for(one), one
    for one in (
        "example.com",
        "trunk.example.com",
        "a.b.trunk.example.com",
        "other.example.org",
        "192.0.2.2",
        "localhost",
        "",
    ):
        assert not found.is_for(one), one


def test_the_common_name_counts_where_there_is_no_other() -> None:
    alone = Certificate(subject="SIP.example.com", issuer=None, not_before=0, not_after=1)
    assert alone.is_for("sip.example.com")
    assert not Certificate(subject=None, issuer=None, not_before=0, not_after=1).is_for("x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x30",
        b"\x30\x05\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x31\x00",
        b"\x30\x02\x31\x00",
        bytes(x509.MAX_SIZE + 1),
        certificate(serial=b"\x05\x00"),
        certificate()[:-5],
    ],
)
def test_what_is_no_certificate_is_refused(raw: bytes) -> None:
    assert why(raw) == "der"


def test_a_validity_that_is_no_sequence_is_refused() -> None:
    raw = certificate().replace(der(0x30, BEGINS, ENDS), der(0x31, BEGINS, ENDS))
    assert why(raw) == "der"


@given(st.binary(max_size=200))
def test_bytes_of_strangers_raise_nothing_else(raw: bytes) -> None:
    with pytest.raises(X509Error):
        x509.parse(raw)


@given(st.data())
def test_a_spoilt_certificate_raises_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(certificate(names=alternative(der(0x82, b"a"), der(0x87, b"\x7f\x00\x00\x01"))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(X509Error):
        x509.parse(bytes(raw)).is_for("a")
