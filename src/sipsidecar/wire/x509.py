"""A certificate's DER bytes to its names and times (RFC 5280 4.1), and whether a name is among them.

Nothing is verified here: that is OpenSSL's work, which keeps what it read of a certificate that it
does not trust to itself.
"""

import ipaddress
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from sipsidecar.wire import WireError

WHYS: Final = frozenset({"der", "time"})

MAX_SIZE: Final = 64 * 1024
"""Bytes of a certificate; real ones have two thousand."""
MAX_NAMES: Final = 128
MAX_TEXT: Final = 255
"""Bytes that are read of a name."""

_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS, _URI, _IP = 0x82, 0x86, 0x87
_BMP, _UNIVERSAL = 0x1E, 0x1C
_COMMON_NAME, _ORGANISATION = b"\x55\x04\x03", b"\x55\x04\x0a"
_ALTERNATIVE_NAMES: Final = b"\x55\x1d\x11"
_TIME: Final = re.compile(rb"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")


class X509Error(WireError):
    """Bytes that are no certificate; `why` is one of `WHYS`."""


class Certificate(msgspec.Struct, frozen=True):
    """What a certificate says; all texts are its maker's. Times are seconds UTC."""

    subject: str | None
    """Its common name, else its organisation; None without either."""
    issuer: str | None
    not_before: int
    not_after: int
    dns: tuple[str, ...] = ()
    """Alternative names, lower case; so are `uris`."""
    uris: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def is_for(self, name: str) -> bool:
        """Tell whether it is for a host name, a SIP domain or an address.

        As RFC 5922 7.1 has it; but `*.` stands for one label, too (RFC 6125 6.4.3), because
        carriers have such certificates. The common name counts where there is no other.
        """
        wanted = name.lower().rstrip(".")
        try:
            return str(ipaddress.ip_address(wanted)) in self.addresses
        except ValueError:
            pass  # not an address
        if {f"sip:{wanted}", f"sips:{wanted}"} & set(self.uris):
            return True
        names = self.dns
        if not names and not self.uris and self.subject:
            names = (self.subject.lower(),)
        _, _, parent = wanted.partition(".")
        return wanted in names or (bool(parent) and f"*.{parent}" in names)


def parse(der: bytes) -> Certificate:
    """One certificate; raises `X509Error`."""
    if len(der) > MAX_SIZE:
        raise X509Error("der")
    tag, certificate, _ = _read(der)
    _expect(tag, _SEQUENCE)
    tag, signed, _ = _read(certificate)
    _expect(tag, _SEQUENCE)
    tag, _, rest = _read(signed)
    if tag == _VERSION:
        tag, _, rest = _read(rest)
    _expect(tag, _INTEGER)  # serial number
    _, _, rest = _read(rest)  # signature algorithm
    _, issuer, rest = _read(rest)
    tag, validity, rest = _read(rest)
    _expect(tag, _SEQUENCE)
    _, subject, rest = _read(rest)
    first, begins, more = _read(validity)
    second, ends, _ = _read(more)
    dns: list[str] = []
    uris: list[str] = []
    addresses: list[str] = []
    for tag, text in _alternative_names(rest):
        if tag == _DNS:
            dns.append(_text(tag, text).lower().rstrip("."))
        elif tag == _URI:
            uris.append(_text(tag, text).lower())
        elif tag == _IP and len(text) in (4, 16):
            addresses.append(str(ipaddress.ip_address(text)))
    return Certificate(
        subject=_name(subject),
        issuer=_name(issuer),
        not_before=_seconds(first, begins),
        not_after=_seconds(second, ends),
        dns=tuple(dns),
        uris=tuple(uris),
        addresses=tuple(addresses),
    )


def _read(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and contents of the first element, and what follows it."""
    if len(data) < 2:
        raise X509Error("der")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise X509Error("der")
    return data[0], data[start : start + length], data[start + length :]


def _expect(tag: int, wanted: int) -> None:
    if tag != wanted:
        raise X509Error("der")


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements in a row; at most `MAX_NAMES` of them."""
    for _ in range(MAX_NAMES):
        if not data:
            return
        tag, contents, data = _read(data)
        yield tag, contents


def _alternative_names(rest: bytes) -> Iterator[tuple[int, bytes]]:
    """The subject's other names, out of what follows the subject."""
    for tag, contents in _each(rest):
        if tag != _EXTENSIONS:
            continue
        _, extensions, _ = _read(contents)
        for _, extension in _each(extensions):
            _, which, more = _read(extension)
            if which != _ALTERNATIVE_NAMES:
                continue
            for kind, value in _each(more):  # behind `critical`, if that is there
                if kind == _OCTETS:
                    yield from _each(_read(value)[1])


def _name(name: bytes) -> str | None:
    """The common name, else the organisation."""
    found: dict[bytes, str] = {}
    for _, group in _each(name):
        for _, pair in _each(group):
            _, which, more = _read(pair)
            if which in (_COMMON_NAME, _ORGANISATION) and which not in found:
                tag, value, _ = _read(more)
                found[which] = _text(tag, value)
    return found.get(_COMMON_NAME) or found.get(_ORGANISATION)


def _text(tag: int, value: bytes) -> str:
    if tag in (_BMP, _UNIVERSAL):
        coding = "utf-16-be" if tag == _BMP else "utf-32-be"
        return value[: MAX_TEXT & ~3].decode(coding, "replace")
    return value[:MAX_TEXT].decode("utf-8", "backslashreplace")


def _seconds(tag: int, value: bytes) -> int:
    # two digits of a year are 1950 to 2049 (RFC 5280 4.1.2.5.1)
    century = (b"19" if value[:1] >= b"5" else b"20") if tag == _UTC_TIME else b""
    found = _TIME.fullmatch(century + value)
    if found is None or tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise X509Error("time")
    year, month, day, hour, minute, second = map(int, found.groups())
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise X509Error("time") from None
    return int(moment.timestamp())
