"""A PEM file to the days that its first certificate is still good for. Pure."""

import re
import ssl
from datetime import datetime

_INTEGER, _UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _VERSION = 0x02, 0x17, 0x18, 0x30, 0xA0
_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]{1,100000}-----END CERTIFICATE-----"
)


def days_left(pem: bytes, now: float) -> float | None:
    """Days from `now` (seconds UTC) to the end; negative when it is over, None for no certificate."""
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        return (_end(ssl.PEM_cert_to_DER_cert(found[0].decode())) - now) / 86_400
    except (ValueError, IndexError):
        return None


def _end(der: bytes) -> float:
    """Seconds UTC of notAfter: RFC 5280, section 4.1, in the forms of DER."""
    _, certificate, _ = _read(der)
    _, signed, _ = _read(certificate)
    tag, _, rest = _read(signed)
    if tag == _VERSION:
        tag, _, rest = _read(rest)
    if tag != _INTEGER:
        raise ValueError("no serial number")
    _, _, rest = _read(rest)  # signature algorithm
    _, _, rest = _read(rest)  # issuer
    tag, validity, _ = _read(rest)
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    _, _, rest = _read(validity)  # notBefore
    tag, text, _ = _read(rest)
    # two digits of a year are 1950 to 2049
    century = (b"19" if text[:1] >= b"5" else b"20") if tag == _UTC_TIME else b""
    if tag not in {_UTC_TIME, _GENERALIZED_TIME} or not re.fullmatch(rb"[0-9]{12,14}Z", text):
        raise ValueError("no time")
    moment = (century + text[:-1]).decode() + "+0000"
    return datetime.strptime(moment, "%Y%m%d%H%M%S%z").timestamp()


def _read(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and contents of the first element, and what follows it; ValueError, IndexError."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("cut off")
    return data[0], data[start : start + length], data[start + length :]
