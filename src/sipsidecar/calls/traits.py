"""One INVITE to its traits: what it says beyond the record, for findings over many calls.

Of people only classes stay: whether two headers name the same caller, never whom. Where users are
masked they are so before anything is read, so tokens are compared; a masked PASSporT reads
`unreadable`. A PASSporT (RFC 8225) is decoded and never verified: it tells what the carrier claims.

Strangers choose every byte: one pass over the head, bounded values, and what makes no sense is None.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Final

import msgspec

from sipsidecar.calls.events import Traits
from sipsidecar.wire import sip

MAX_IDENTITIES: Final = 4
"""Identity headers that are read; one call has seldom more than shaken, div and rph."""
MAX_PASSPORT: Final = 4096
"""Bytes of a PASSporT's payload as it stands; a longer one is not read."""
MAX_VALUES: Final = 32
"""Lines that are looked at of those that are asked for."""
MAX_HOST: Final = 128
MIN_NUMBER: Final = 7
"""Digits in which two numbers must agree where one is longer: its country or area was left out."""
MAX_SKEW: Final = 2**31
"""Seconds; what is further away is no time."""

MEDIA: Final = frozenset(
    {
        "RTP/AVP", "RTP/AVPF", "RTP/SAVP", "RTP/SAVPF",
        "UDP/TLS/RTP/SAVP", "UDP/TLS/RTP/SAVPF",
    }
)  # fmt: skip
"""Protocols of audio lines that are known by name (RFC 3551, 4585, 3711, 5124, 5764)."""

_LINES: Final = re.compile(
    rb"\n(Max-Forwards|History-Info|Identity|y|Session-ID|P-Charging-Vector|X-CID|X-Call-ID"
    rb"|X-Session-ID)[ \t]*+:[ \t]*+([^\r\n]*+)",
    re.IGNORECASE,
)
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_SENT_BY: Final = re.compile(
    rb"SIP[ \t]{0,9}/[ \t]{0,9}2\.0[ \t]{0,9}/[ \t]{0,9}[A-Za-z-]{2,16}[ \t]+([^;,\s]{1,256})"
)
_TLS: Final = re.compile(rb";[ \t]*+transport[ \t]*+=[ \t]*+tls(?![A-Za-z0-9-])", re.IGNORECASE)
_SECURE_CONTACT: Final = re.compile(rb"(?:\A|<)[ \t]*+sips:", re.IGNORECASE)
_AUDIO: Final = re.compile(
    rb"(?:\A|\n)m=audio[ ]{1,4}[0-9]{1,5}(?:/[0-9]{1,5})?[ ]{1,4}([A-Za-z/]{1,24})[ \r\n]"
)
_SESSION: Final = re.compile(rb"([0-9a-f]{32})(?![0-9a-z])", re.IGNORECASE)
_ICID: Final = re.compile(rb"icid-value[ \t]*+=[ \t]*+\"?([^\";,\s]{1,256})", re.IGNORECASE)
_CORRELATION: Final = re.compile(rb"[^;,\s]{4,256}")
_HOST: Final = re.compile(rf"[a-z0-9._:-]{{1,{MAX_HOST}}}", re.ASCII)
_NIL: Final = b"0" * 32
_SKIPPED: Final = str.maketrans("", "", " -.()/")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_NOBODY: Final = frozenset(
    {"anonymous", "unavailable", "restricted", "private", "unknown", "withheld"}
)
"""Users that stand for a caller who is hidden: nothing can differ from them."""


class _Origin(msgspec.Struct):
    tn: str | None = None


class _Passport(msgspec.Struct):
    """The claims of a SHAKEN PASSporT that are looked at (RFC 8588)."""

    attest: str | None = None
    orig: _Origin | None = None
    iat: int | None = None


_PASSPORT: Final = msgspec.json.Decoder(_Passport)


def traits_of(
    message: sip.Message, from_user: str | None, from_host: str | None, at: int
) -> Traits:
    """Turn an INVITE into its traits; the users and hosts are of its From.

    `at`: when it was seen, microseconds UTC by the clock that saw it. Never raises.
    """
    max_forwards: int | None = None
    history = False
    identities: list[bytes] = []
    sessions: list[int | None] = [None, None, None]
    head = message.head
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    for count, line in enumerate(_LINES.finditer(head)):
        if count == MAX_VALUES:
            break
        name, value = line[1].lower(), line[2].strip()
        if name == b"max-forwards":
            if max_forwards is None and value.isdigit() and len(value) <= 3:
                max_forwards = int(value)
        elif name == b"history-info":
            history = True
        elif name in (b"identity", b"y"):
            identities.append(value)
        elif name == b"session-id":
            sessions[0] = _session(_SESSION.match(value), sessions[0])
        elif name == b"p-charging-vector":
            sessions[1] = _session(_ICID.search(value), sessions[1])
        else:
            sessions[2] = _session(_CORRELATION.match(value), sessions[2])
    asserted = message.address("p-asserted-identity")
    remote = message.address("remote-party-id")
    hidden = _hidden(from_user, from_host)
    identity, claims = _identity(identities)
    skew: int | None = None
    if claims is not None and claims.iat is not None:
        skew = at // 1_000_000 - claims.iat
        skew = skew if abs(skew) < MAX_SKEW else None
    origin = claims.orig.tn if claims is not None and claims.orig is not None else None
    host = asserted.uri.host if asserted is not None else None
    return Traits(
        max_forwards=max_forwards,
        vias=message.via_count,
        passed_twice=message.via_count > 1 and _passed_twice(message),
        asserted_differs=_differs(hidden, from_user, asserted),
        asserted_host=host if host and _HOST.fullmatch(host) else None,
        remote_party_differs=_differs(hidden, from_user, remote),
        diverted=history or bool(message.values("diversion")),
        identity=identity,
        origin_differs=None if hidden or not origin else _opposite(same_user(from_user, origin)),
        identity_age_seconds=skew,
        secure_asked=_secure_asked(message),
        media=_media(message.body),
        session=next((one for one in sessions if one is not None), None),
    )


def same_user(one: str | None, other: str | None) -> bool | None:
    """Tell whether two users name the same caller; None where one of them names nobody.

    Numbers are compared without visual separators (RFC 3966 5.1.1), international prefix and the
    zeros of national ones; where one is shorter, it must be the end of the other.
    """
    if not one or not other:
        return None
    first, second = _plain(one), _plain(other)
    if not first or not second or first in _NOBODY or second in _NOBODY:
        return None
    if first == second:
        return True
    a, b = first.removeprefix("+").lstrip("0"), second.removeprefix("+").lstrip("0")
    if not (a.isascii() and b.isascii() and a.isdigit() and b.isdigit()):
        return False
    short, long_ = sorted((a, b), key=len)
    return short == long_ or (len(short) >= MIN_NUMBER and long_.endswith(short))


def _plain(user: str) -> str:
    return user[:MAX_HOST].partition(";")[0].translate(_SKIPPED).lower()


def _opposite(same: bool | None) -> bool | None:
    return None if same is None else not same


def _hidden(user: str | None, host: str | None) -> bool:
    return not user or user.lower() in _NOBODY or (host or "").endswith("anonymous.invalid")


def _differs(hidden: bool, from_user: str | None, address: sip.NameAddr | None) -> bool | None:
    """Whether an address names another caller than From; None where either names nobody."""
    if hidden or address is None:
        return None
    return _opposite(same_user(from_user, address.uri.user))


def _session(found: re.Match[bytes] | None, before: int | None) -> int | None:
    """The first id of a session that is one; the nil of RFC 7989 5 is none."""
    if before is not None or found is None:
        return before
    said = (found[1] if found.re.groups else found[0]).lower()
    return None if said == _NIL else hash(said)


def _passed_twice(message: sip.Message) -> bool:
    """Whether one node stands twice in the Vias: the request came round to it again."""
    passed = _SENT_BY.findall(b",".join(message.values("via"))[: sip.MAX_VALUE])
    return len({one.lower() for one in passed}) < len(passed)


def _secure_asked(message: sip.Message) -> bool:
    """Whether its Request-URI or Contact asks for TLS (RFC 3261 19.1, 26.2.2)."""
    uri = message.ruri[: sip.MAX_TEXT]
    if uri[:5].lower() == "sips:" or (
        ";" in uri and _TLS.search(uri.encode("utf-8", "replace")) is not None
    ):
        return True
    contact = next(iter(message.values("contact")), b"")[: sip.MAX_TEXT]
    return bool(_SECURE_CONTACT.search(contact) or (b";" in contact and _TLS.search(contact)))


def _media(body: bytes) -> str | None:
    """The protocol of the first audio line, also of SDP that is a part of the body."""
    found = _AUDIO.search(body) if body else None
    if found is None:
        return None
    protocol = found[1].decode().upper()
    return protocol if protocol in MEDIA else "other"


def _identity(values: list[bytes]) -> tuple[str, _Passport | None]:
    """The attestation of the first PASSporT that has one, and its claims."""
    if not values:
        return "missing", None
    for value in values[:MAX_IDENTITIES]:
        claims = _claims(value)
        if claims is not None and claims.attest in ("A", "B", "C"):
            return claims.attest, claims
    return "unreadable", None


def _claims(value: bytes) -> _Passport | None:
    """The payload of a PASSporT in full form: header.payload.signature;info=... (RFC 8224 4.1)."""
    parts = value.partition(b";")[0].split(b".", 3)
    if len(parts) != 3 or not 0 < len(parts[1]) <= MAX_PASSPORT:
        return None
    try:
        return _PASSPORT.decode(a2b_base64(parts[1].translate(_URL_SAFE) + b"=="))
    except (Base64Error, msgspec.MsgspecError, RecursionError):
        return None
