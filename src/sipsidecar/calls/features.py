"""One INVITE as it was on the wire to features: names and values that calls are compared by.

What makes a far side answer 400 is often what a parser does not look at: the order of headers, a
folded line, a compact name, a byte over the MTU. So the head is read here line by line as it came.

Strangers choose every byte. So names are of a fixed set, or names of headers and parameters (small
letters, token characters, 48 at most); values are clipped; and there are at most so many of both.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from sipsidecar.calls.offers import MAX_VALUE, Feature, address_form, of_offer
from sipsidecar.wire import WireError, sdp, sip

MAX_FEATURES: Final = 800
"""Features of one INVITE; a usual one has 250."""
MAX_HEADERS: Final = 128
"""Header lines that are read."""
MAX_HEAD: Final = 64 * 1024
MAX_WORDS: Final = 32
"""Option tags, methods or parameters that are read of one header."""
SIZES: Final = (1300, 1500)
"""Bytes: RFC 3261 18.1.1 wants TCP from 1300 on, and above 1500 it is in pieces on any network."""

_RANKED: Final = (
    """
    size-over udp-fragments duplicate folded compact content-length line-ends no-colon header codec
    fmtp start
    """,
    """
    order first-codec spelling non-ascii control empty space-before-colon odd-header-name
    content-type attest user-agent-product transport source destination tenant trunk carrier region
    direction agent sdp sdp-odd sdp-address sdp-direction sdp-protocol sdp-security option method
    ptime ice tag from-pai to-differs unreadable time
    """,
    """
    first-after-via last-header param uri-param user-form user-param display scheme host-form host
    callee-prefix caller-prefix callee via-transport rport branch lr call-id-form sdp-attribute
    sdp-connection sdp-line sdp-line-ends sdp-media sdp-origin sdp-origin-user sdp-port
    capture-agent retried attempt minute-of-hour
    """,
    """
    next header-list codecs sdp-formats sdp-sequence source-port long-header size head-size
    body-size sdp-size sdp-lines sdp-media-lines headers longest-line vias routes record-routes
    max-forwards cseq call-id-length idle-seconds one-of-a-kind
    """,
)
RANKS: Final = {name: rank for rank, names in enumerate(_RANKED) for name in names.split()}
"""Every name, and how little a person learns from it: of things that separate equally well, the lowest
is said first. The value of a header is named by the header and a colon, which no name here has."""
_RANK_OF_VALUES: Final = 2
CONTEXT: Final = (
    "source", "source-port", "destination", "transport", "tenant", "trunk", "carrier", "region",
    "direction", "agent", "capture-agent", "retried", "attempt",
)  # fmt: skip
"""What else may be told of an INVITE than its bytes."""


class Shown(msgspec.Struct, frozen=True):
    """All that one INVITE shows."""

    features: tuple[Feature, ...] = ()
    """In the order they were found, once each."""
    numbers: tuple[tuple[str, float], ...] = ()
    """What is counted or measured, by name: thresholds are for whoever sees many of them."""
    cut: int = 0
    """Features over `MAX_FEATURES`, which are left out."""


def rank(feature: Feature) -> int:
    """How little a person learns from it: 0 is said first."""
    return RANKS.get(feature[0], _RANK_OF_VALUES)


class _Header(NamedTuple):
    name: str
    """Long, in small letters."""
    spelled: str
    value: bytes
    folded: bool
    space: bool
    """Before the colon."""


class _Found:
    """Features in the order they come, once each, and no more than `MAX_FEATURES`."""

    def __init__(self) -> None:
        self.features: dict[Feature, None] = {}
        self.numbers: dict[str, float] = {}
        self.cut = 0

    def add(self, name: str, value: str = "yes") -> None:
        feature = name, value[:MAX_VALUE]
        if feature in self.features:
            return
        if len(self.features) < MAX_FEATURES:
            self.features[feature] = None
        else:
            self.cut += 1


def features_of(
    payload: bytes,
    about: Mapping[str, str | None] | None = None,
    numbers: Mapping[str, float] | None = None,
) -> Shown:
    """Turn the bytes of an INVITE into its features; `about` is what else is known of it.

    `about` may name what `CONTEXT` does, None being unknown; other names are left out. `numbers` are
    added to those of the message. Whatever the bytes are, nothing is raised.
    """
    found = _Found()
    for name in CONTEXT:
        value = about.get(name) if about else None
        if value:
            found.add(name, value)
    transport = (about.get("transport") if about else None) or ""
    _sizes(found, payload, transport)
    head, body, ends = _divided(payload)
    lines = head.split(b"\n", MAX_HEADERS + 1)[: MAX_HEADERS + 1]
    _line_ends(found, lines, ends)
    headers = list(_headers(found, lines))
    _shape(found, headers)
    for header in headers:
        _value(found, header)
    try:
        message = sip.parse(payload)
    except WireError as error:
        found.add("unreadable", error.why)
    else:
        _addresses(found, message)
        _hops(found, message)
        _length(found, message, len(body))
        _offer(found, message, about.get("source") if about else None)
    found.numbers.update(numbers or {})
    found.numbers.update({"headers": len(headers), "body-size": len(body), "head-size": len(head)})
    return Shown(tuple(found.features), tuple(found.numbers.items()), found.cut)


# ------------------------------------------------------------------------------------ the whole


def _sizes(found: _Found, payload: bytes, transport: str) -> None:
    size = len(payload)
    found.numbers["size"] = size
    for over in SIZES:
        if size > over:
            found.add("size-over", str(over))
    if transport == "udp" and size + 28 > 1500:  # IPv4 and UDP headers
        found.add("udp-fragments")


_EMPTY_LINE: Final = re.compile(rb"\n\r?\n")


def _divided(payload: bytes) -> tuple[bytes, bytes, bool]:
    """The head, the body, and whether the head has its end."""
    payload = payload.lstrip(b"\r\n")
    empty = _EMPTY_LINE.search(payload)
    if empty is None:
        return payload[:MAX_HEAD], b"", False
    return payload[: empty.start()][:MAX_HEAD], payload[empty.end() :], True


def _line_ends(found: _Found, lines: list[bytes], ends: bool) -> None:
    kinds = {line.endswith(b"\r") for line in lines[:-1]}
    found.add("line-ends", "mixed" if len(kinds) > 1 else "CR LF" if kinds == {True} else "LF")
    if not ends:
        found.add("start", "no empty line ends the head")
    if b"  " in lines[0] or lines[0].rstrip(b"\r").endswith(b" "):
        found.add("start", "spaces in the start line")
    found.numbers["longest-line"] = max(map(len, lines))


# ---------------------------------------------------------------------------------- header lines

COMPACT: Final = {
    "a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition",
    "e": "content-encoding", "f": "from", "i": "call-id", "j": "reject-contact", "k": "supported",
    "l": "content-length", "m": "contact", "n": "identity-info", "o": "event", "r": "refer-to",
    "s": "subject", "t": "to", "u": "allow-events", "v": "via", "x": "session-expires",
    "y": "identity",
}  # fmt: skip
SPELLINGS: Final = (
    "Via", "From", "To", "Call-ID", "CSeq", "Contact", "Max-Forwards", "Content-Type",
    "Content-Length", "User-Agent", "Allow", "Supported", "Require", "Route", "Record-Route",
    "Session-Expires", "Min-SE", "P-Asserted-Identity", "Privacy", "Remote-Party-ID", "Diversion",
    "Identity", "Date", "Accept", "Expires", "Allow-Events", "Content-Disposition",
)  # fmt: skip
_SPELLED: Final = {spelled.lower(): spelled for spelled in SPELLINGS}
_SINGLE: Final = frozenset({
    "from", "to", "call-id", "cseq", "max-forwards", "content-type", "content-length", "user-agent",
    "date", "expires", "session-expires", "min-se", "subject", "organization", "priority", "event",
    "content-disposition", "mime-version", "timestamp", "referred-by", "replaces", "contact",
})  # fmt: skip
"""Headers that an INVITE has one of (RFC 3261 7.3.1, and one Contact by 8.1.1.8)."""
_IN_ORDER: Final = frozenset(_SPELLED) | {"organization", "subject", "authorization", "server"}
"""Headers of which it is said which stands before which; of others only what they stand next to."""
_NAME: Final = re.compile(rb"[A-Za-z0-9.!%*_+`'~-]{1,48}")


def _headers(found: _Found, lines: list[bytes]) -> Iterable[_Header]:
    current: _Header | None = None
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            if current is not None:
                value = current.value + b" " + line.strip()
                current = current._replace(value=value[: sip.MAX_TEXT], folded=True)
            continue
        if current is not None:
            yield current
            current = None
        name, colon, value = line.partition(b":")
        plain = name.rstrip()
        if not colon or not _NAME.fullmatch(plain):
            found.add("no-colon" if not colon else "odd-header-name")
            continue
        spelled = plain.decode()
        small = spelled.lower()
        current = _Header(COMPACT.get(small, small), spelled, value.strip(), False, plain != name)
    if current is not None:
        yield current


def _shape(found: _Found, headers: list[_Header]) -> None:
    """Which headers there are, in which order and spelling."""
    for header in headers:
        name = header.name
        found.add("header", name)
        if header.folded:
            found.add("folded", name)
        if header.space:
            found.add("space-before-colon", name)
        if header.spelled.lower() != name:
            found.add("compact", name)
        elif header.spelled != _SPELLED.get(name, header.spelled):
            found.add("spelling", header.spelled)
        if not header.value:
            found.add("empty", name)
        if not header.value.isascii():
            found.add("non-ascii", name)
        if _CONTROL.search(header.value):
            found.add("control", name)
        if len(header.value) > 256:
            found.add("long-header", name)
    for name, count in Counter(header.name for header in headers).items():
        if count > 1 and name in _SINGLE:
            found.add("duplicate", name)
    order = list(dict.fromkeys(header.name for header in headers))
    if not order:
        return
    known = [name for name in order if name in _IN_ORDER]
    for place, name in enumerate(known):
        for later in known[place + 1 :]:
            found.add("order", f"{name} < {later}")
    for name, after in pairwise(order):
        found.add("next", f"{name} < {after}")
        if name == "via":
            found.add("first-after-via", after)
    found.add("last-header", order[-1])
    found.add("header-list", ",".join(order))


_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# Whose values are read by their parts, or are another one in every call.
_NO_VALUES: Final = frozenset({
    "via", "from", "to", "call-id", "cseq", "contact", "content-length", "max-forwards", "route",
    "record-route", "authorization", "proxy-authorization", "identity", "date", "timestamp",
    "session-id", "p-charging-vector", "in-reply-to", "replaces",
})  # fmt: skip
_LISTS: Final = {
    "supported": "option", "require": "option", "proxy-require": "option", "allow": "method",
    "accept": "option", "privacy": "option", "allow-events": "option", "accept-encoding": "option",
    "accept-language": "option",
}  # fmt: skip
_PRODUCT: Final = re.compile(r"[^\s/(]{1,48}")
_PARAMETER: Final = re.compile(r"\s*([A-Za-z0-9.!%*_+`'~-]{1,48})\s*(?:=\s*(.*))?\Z", re.DOTALL)
_TOLD_PARAMETERS: Final = frozenset(
    {"transport", "user", "refresher", "reason", "privacy", "cause"}
)
"""Parameters whose values are few and say something."""


def _value(found: _Found, header: _Header) -> None:
    name = header.name
    value = sip.text(header.value)
    if name in _LISTS:
        for word in value.split(",")[:MAX_WORDS]:
            if word.strip():
                found.add(_LISTS[name], f"{name}: {word.strip()}")
    if name not in _NO_VALUES and value:
        found.add(f"{name}:", value)
    if name in ("user-agent", "server") and (product := _PRODUCT.match(value)):
        found.add("user-agent-product", product[0])
    elif name == "content-type":
        found.add("content-type", value.partition(";")[0].strip().lower())
    elif name == "identity":
        found.add("attest", _attestation(header.value))
    elif name in ("diversion", "history-info", "session-expires", "remote-party-id"):
        _parameters(found, name, value.partition(";")[2])


def _parameters(found: _Found, where: str, text: str) -> None:
    for part in text.split(";")[:MAX_WORDS]:
        matched = _PARAMETER.match(part)
        if matched:
            key = matched[1].lower()
            value = (matched[2] or "").strip()
            told = f"={value.lower()}" if key in _TOLD_PARAMETERS and value else ""
            found.add("param", f"{where};{key}{told}")


_ATTEST: Final = re.compile(rb'"attest"\s*:\s*"([ABC])"')


def _attestation(value: bytes) -> str:
    """The level of a SHAKEN PASSporT (RFC 8588) whose signature nobody checks here."""
    parts = value.partition(b";")[0].split(b".")
    if len(parts) != 3:
        return "not understood"
    try:
        claims = base64.urlsafe_b64decode(parts[1][:4096] + b"==")
    except (binascii.Error, ValueError):
        return "not understood"
    level = _ATTEST.search(claims)
    return level[1].decode() if level else "none"


# ------------------------------------------------------------------------------- addresses, hops

_USERS: Final = (
    (re.compile(r"\+[0-9]{5,15}\Z"), "+ and digits"),
    (re.compile(r"00[0-9]{6,}\Z"), "00 and digits"),
    (re.compile(r"0[0-9]{4,}\Z"), "0 and digits"),
    (re.compile(r"[0-9]{7,}\Z"), "digits"),
    (re.compile(r"[0-9]{1,6}\Z"), "up to 6 digits"),
    (re.compile(r"[0-9*#+ ().-]+\Z"), "digits and others"),
    (re.compile(r"anonymous\Z", re.IGNORECASE), "anonymous"),
)
_ADDRESSES: Final = ("from", "to", "contact", "p-asserted-identity", "remote-party-id", "diversion")


def _addresses(found: _Found, message: sip.Message) -> None:
    uris: dict[str, sip.Uri | None] = {"ruri": sip.uri(message.ruri)}
    for name in _ADDRESSES:
        values = message.values(name)
        if not values:
            continue
        address = sip.name_addr(values[0])
        uris[name] = address.uri if address else None
        if address is None:
            continue
        if name != "contact":
            quoted = values[0].lstrip().startswith(b'"')
            shown = "none" if not address.display else "quoted" if quoted else "not quoted"
            found.add("display", f"{name} {shown}")
        _parameters(found, name, address.params)
    for name, uri in uris.items():
        if uri is None:
            found.add("scheme", f"{name} not understood")
            continue
        found.add("scheme", f"{name} {uri.scheme}")
        user, _, params = (uri.user or "").partition(";")
        form = next((form for pattern, form in _USERS if pattern.match(user)), "a name")
        found.add("user-form", f"{name} {form if user else 'none'}")
        for one in params.split(";")[:MAX_WORDS] if params else ():
            found.add("user-param", f"{name};{one.partition('=')[0].lower()}")
        if uri.host:
            found.add("host-form", f"{name} {address_form(uri.host)}")
            found.add("host", f"{name} {uri.host}")
        _uri_parameters(found, name, uri.params)
    for what, name in (("caller", "from"), ("callee", "ruri")):
        uri = uris.get(name)
        user = (uri.user or "") if uri else ""
        if user[1:4].isdigit():
            found.add(f"{what}-prefix", user[:4])
        if what == "callee" and user:
            found.add("callee", user)
    caller, asserted = uris.get("from"), uris.get("p-asserted-identity")
    if caller and asserted:
        found.add("from-pai", "the same user" if caller.user == asserted.user else "other users")
    called, to = uris["ruri"], uris.get("to")
    if called and to and (called.user, called.host) != (to.user, to.host):
        found.add("to-differs", "in the user" if called.user != to.user else "in the host")
    if not message.from_tag:
        found.add("tag", "none in From")
    if message.to_tag:
        found.add("tag", "one in To")


def _uri_parameters(found: _Found, where: str, text: str) -> None:
    parameters, _, more = text.partition("?")
    for part in parameters.split(";")[:MAX_WORDS]:
        matched = _PARAMETER.match(part)
        if matched:
            key = matched[1].lower()
            value = f"={matched[2].lower()}" if matched[2] and key in _TOLD_PARAMETERS else ""
            found.add("uri-param", f"{where};{key}{value}")
    if more:
        found.add("uri-param", f"{where}?headers")


_RPORT: Final = re.compile(rb";\s*rport\s*(=?)", re.IGNORECASE)
_WORDS: Final = (
    (re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"), "UUID"),
    (re.compile(r"[0-9]+\Z"), "digits"),
    (re.compile(r"[0-9a-fA-F]+\Z"), "hex"),
    (re.compile(r"[A-Za-z0-9.!%*_+`'~-]+\Z"), "token"),
)


def _hops(found: _Found, message: sip.Message) -> None:
    numbers = found.numbers
    numbers["vias"] = message.via_count
    numbers["cseq"] = message.cseq
    numbers["call-id-length"] = len(message.call_id)
    for via in message.vias()[:MAX_WORDS]:
        found.add("via-transport", via.transport)
    top = message.values("via")[0] if message.values("via") else b""
    rport = _RPORT.search(top)
    found.add("rport", "none" if not rport else "with a value" if rport[1] else "asked for")
    if not message.branch.startswith("z9hG4bK"):
        found.add("branch", "without z9hG4bK")
    left, at, host = message.call_id.partition("@")
    form = next((form for pattern, form in _WORDS if pattern.match(left)), "other characters")
    found.add("call-id-form", f"{form}{f' @ {address_form(host)}' if at else ''}")
    for name in ("route", "record-route"):
        values = [one for raw in message.values(name) for one in sip.split_values(raw)]
        numbers[f"{name}s"] = len(values)
        if values:
            loose = all(b";lr" in one.lower() for one in values)
            found.add("lr", f"{name} {'with' if loose else 'without'}")
    hops = message.seconds("max-forwards")
    if hops is None:
        found.add("max-forwards", "none")
    else:
        numbers["max-forwards"] = hops


def _length(found: _Found, message: sip.Message, body: int) -> None:
    lengths = message.values("content-length")
    if not lengths:
        found.add("content-length", "none")
        return
    said = lengths[0]
    if not said.isdigit() or len(said) > 9:
        found.add("content-length", "no number")
        return
    more = body - int(said)
    found.add(
        "content-length", "as it is" if not more else "too small" if more > 0 else "too large"
    )


def _offer(found: _Found, message: sip.Message, source: str | None) -> None:
    if not message.body:
        found.add("sdp", "none")
        return
    body = sdp.body_of(message.first("content-type") or "", message.body)
    if body is None:
        found.add("sdp", "none, but another body")
        return
    features, numbers = of_offer(body, source)
    for name, value in features:
        found.add(name, value)
    found.numbers.update(numbers)
