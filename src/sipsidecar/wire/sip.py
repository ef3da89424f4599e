"""One SIP message's bytes to the fields that a call record needs (RFC 3261).

Only what keys a transaction is read at once: start line, Call-ID, CSeq, tags and Via branches.
The rest stays bytes until somebody asks, because most messages are never asked.
Messages are read as they really arrive: compact names, any case, folded lines, comma-joined
Vias, bare LF, NUL and Latin-1 bytes, a wrong or missing Content-Length.
"""

import re

import msgspec

from sipsidecar.wire import WireError

MAX_CALL_ID = 512
"""Longer than any real one; a btree row holds 2.7 kB, so this must not come from strangers."""
MAX_TOKEN = 256
"""Tags, branches and methods beyond this are hostile."""
MAX_COPIES = 32
"""How many headers of one name are kept."""
MAX_REASONS = 8

WHYS = frozenset({"start-line", "call-id", "cseq", "via", "from", "to"})


class SipError(WireError):
    """Bytes that are no SIP message; `why` is one of `WHYS`."""


class Uri(msgspec.Struct, frozen=True):
    """A SIP, SIPS, TEL or URN address (RFC 3261 19.1, RFC 3966, RFC 5031)."""

    scheme: str
    user: str | None
    host: str | None
    port: int | None
    params: str


class NameAddr(msgspec.Struct, frozen=True):
    """A From, To, Contact or P-Asserted-Identity value (RFC 3261 20.10)."""

    display: str | None
    uri: Uri
    params: str


class Via(msgspec.Struct, frozen=True):
    """One Via value (RFC 3261 20.42)."""

    transport: str
    sent_by: str
    branch: str | None


class Reason(msgspec.Struct, frozen=True):
    """One Reason value (RFC 3326)."""

    protocol: str
    cause: int | None
    text: str | None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One request or response.

    `method` is the request's, and for a response the method that its CSeq names.
    `branch` keys the transaction at this hop; a Via without one (RFC 2543) is keyed by its
    sent-by. `parent_branch` is the next Via's branch: the transaction this one was forwarded
    from, None at the first hop.
    """

    status: int | None
    phrase: str
    method: str
    ruri: str
    call_id: str
    cseq: int
    from_tag: str
    to_tag: str
    branch: str
    parent_branch: str | None
    via_transport: str
    via_count: int
    headers: dict[str, list[bytes]]
    head: bytes
    body: bytes
    truncated: bool

    def values(self, name: str) -> list[bytes]:
        """Raw values of a header by its long lower-case name, in order; any header can be asked."""
        if name in _KEPT:
            return self.headers.get(name, [])
        found = []
        for line in _lines(self.head)[1:]:
            key, colon, value = line.partition(b":")
            if colon and _canonical(key) == name:
                found.append(value.strip())
        return found

    def first(self, name: str) -> str | None:
        """Text of a header's first value; None when absent or empty."""
        values = self.values(name)
        return text(values[0]) or None if values else None

    def address(self, name: str) -> NameAddr | None:
        """A header's first value read as a name and address; None when absent or senseless."""
        values = self.values(name)
        return name_addr(values[0]) if values else None

    def vias(self) -> list[Via]:
        """Every Via, topmost first."""
        return [_via(value) for raw in self.values("via") for value in split_values(raw)]

    def reasons(self) -> tuple[Reason, ...]:
        """Every Reason value, in order; there may be one per protocol (RFC 3326 2)."""
        return tuple(parse_reasons(self.values("reason")))

    def seconds(self, name: str) -> int | None:
        """The leading delta-seconds of Expires, Session-Expires or Retry-After."""
        values = self.values(name)
        match = _DIGITS.match(values[0]) if values else None
        return int(match[1]) if match else None


# Long names of the headers that are kept at parse; compact forms are RFC 3261 7.3.3 and IANA's.
_COMPACT = {
    b"v": "via",
    b"f": "from",
    b"t": "to",
    b"i": "call-id",
    b"m": "contact",
    b"l": "content-length",
    b"c": "content-type",
    b"x": "session-expires",
    b"k": "supported",
    b"s": "subject",
    b"e": "content-encoding",
    b"o": "event",
    b"r": "refer-to",
    b"b": "referred-by",
    b"y": "identity",
    b"u": "allow-events",
}
_KEPT = frozenset(
    {
        "via",
        "from",
        "to",
        "call-id",
        "cseq",
        "contact",
        "content-length",
        "content-type",
        "reason",
        "user-agent",
        "server",
        "p-asserted-identity",
        "remote-party-id",
        "diversion",
        "session-expires",
        "expires",
        "authorization",
        "proxy-authorization",
        "x-admission",
    }
)

_STATUS = re.compile(
    rb"SIP/2\.0[ \t]+([1-6][0-9][0-9])(?:[ \t]+(.*))?\Z", re.IGNORECASE | re.DOTALL
)
_REQUEST = re.compile(
    rb"([A-Za-z0-9.!%*_+`'~-]{1,32})[ \t]+(\S.*?)[ \t]+SIP/2\.0[ \t]*\Z", re.IGNORECASE | re.DOTALL
)
_CSEQ = re.compile(rb"\s*([0-9]{1,10})[ \t]+([A-Za-z0-9.!%*_+`'~-]{1,32})\s*\Z")
_DIGITS = re.compile(rb"\s*([0-9]{1,9})(?![0-9])")
_TAG = re.compile(rb";\s*tag\s*=\s*([^;,\s>]*)", re.IGNORECASE)
_BRANCH = re.compile(rb";\s*branch\s*=\s*([^;,\s]*)", re.IGNORECASE)
_VIA = re.compile(
    rb"\s*SIP\s*/\s*[0-9.]+\s*/\s*([A-Za-z0-9-]{1,16})\s+([^;,\s]{1,256})", re.IGNORECASE
)
_FOLD = re.compile(rb"\n[ \t]+")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_UNESCAPE = re.compile(r"\\(.)", re.DOTALL)
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,15}):(.*)\Z", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,64}\]|[^:;?\s\[\]]*)(?::([0-9]{1,5}))?(.*)\Z", re.DOTALL)

_names: dict[bytes, str] = {}
_MAX_NAMES = 1024  # strangers choose header names; the cache of spellings must not grow with them


def _canonical(name: bytes) -> str:
    """A header's long lower-case name from any of its spellings."""
    known = _names.get(name)
    if known is None:
        plain = name.strip().lower()
        known = _COMPACT.get(plain) or plain[:64].decode("latin-1")
        if len(_names) < _MAX_NAMES and len(name) <= 64:
            _names[name] = known
    return known


def text(raw: bytes) -> str:
    """Bytes from the wire as text: what is not UTF-8, and NUL, become visible escapes."""
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        decoded = raw.decode("utf-8", "backslashreplace")
    if "\0" in decoded:
        decoded = decoded.replace("\0", "\\x00")
    return decoded.strip()


def split_values(raw: bytes) -> list[bytes]:
    """A comma-joined header value to its parts; commas in quotes and angle brackets are text."""
    if b"," not in raw:
        return [raw]
    parts, start, depth, quoted, i = [], 0, 0, False, 0
    while i < len(raw):
        c = raw[i]
        if quoted:
            if c == 0x5C:
                i += 1
            elif c == 0x22:
                quoted = False
        elif c == 0x22:
            quoted = True
        elif c == 0x3C:
            depth = 1
        elif c == 0x3E:
            depth = 0
        elif c == 0x2C and not depth:
            parts.append(raw[start:i].strip())
            start = i + 1
        i += 1
    parts.append(raw[start:].strip())
    return parts


def _lines(head: bytes) -> list[bytes]:
    """The head's logical lines, unfolded (RFC 3261 7.3.1)."""
    if b"\r" in head:
        head = head.replace(b"\r\n", b"\n").rstrip(b"\r")
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    return head.split(b"\n")


def _after_address(value: bytes) -> bytes:
    """The header parameters behind a name-addr or addr-spec.

    A display name or a URI may hold `;tag=` too: that one is the attacker's, not the tag.
    """
    start = 0
    if b'"' in value:
        match = _QUOTED.match(value.lstrip())
        if match:
            start = len(value) - len(value.lstrip()) + match.end()
    if b"<" in value:
        close = value.find(b">", value.find(b"<", start))
        if close >= 0:
            return value[close + 1 :]
    semicolon = value.find(b";", start)
    return value[semicolon:] if semicolon >= 0 else b""


def _tag(value: bytes) -> str:
    match = _TAG.search(_after_address(value))
    return text(match[1][:MAX_TOKEN]) if match else ""


def _via(value: bytes) -> Via:
    match = _VIA.match(value)
    if not match:
        raise SipError("via")
    found = _BRANCH.search(value)
    return Via(
        match[1].decode("ascii").lower(),
        text(match[2]),
        text(found[1][:MAX_TOKEN]) if found and found[1] else None,
    )


def _reason(value: bytes) -> Reason:
    protocol, _, params = value.partition(b";")
    cause = re.search(rb"(?:^|;)\s*cause\s*=\s*\"?([0-9]{1,6})", params, re.IGNORECASE)
    said = re.search(rb"(?:^|;)\s*text\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)", params, re.IGNORECASE)
    return Reason(
        text(protocol)[:64],
        int(cause[1]) if cause else None,
        _unquote(text(said[1])) or None if said else None,
    )


def parse_reasons(raw: list[bytes]) -> list[Reason]:
    """Raw Reason header values to their reasons, in order."""
    return [_reason(v) for value in raw for v in split_values(value) if v][:MAX_REASONS]


def _unquote(quoted: str) -> str:
    if len(quoted) >= 2 and quoted[0] == quoted[-1] == '"':
        return _UNESCAPE.sub(r"\1", quoted[1:-1])
    return quoted


def uri(raw: str) -> Uri | None:
    """Text of a URI to its parts; None when it has no scheme."""
    match = _URI.match(raw.strip())
    if not match:
        return None
    scheme, rest = match[1].lower(), match[2]
    if scheme not in ("sip", "sips"):
        number, _, params = rest.partition(";")
        return Uri(scheme, number or None, None, None, params)
    at = rest.rfind("@", 0, _end_of_authority(rest))
    user = rest[:at].partition(":")[0] if at >= 0 else None
    parts = _HOST.match(rest[at + 1 :])
    if not parts:
        return None
    port = int(parts[2]) if parts[2] else None
    host = parts[1].lower().strip("[]")
    return Uri(scheme, user or None, host or None, port, parts[3].lstrip(";"))


def _end_of_authority(rest: str) -> int:
    """Where URI parameters begin; a `;` before the `@` belongs to the user part (RFC 4475 3.1.1.2)."""
    at = rest.find("@")
    for i, c in enumerate(rest):
        if c in ";?" and i > at:
            return i
    return len(rest)


def name_addr(raw: bytes) -> NameAddr | None:
    """One From-like header value to display name, URI and parameters; None when it has no URI."""
    value = raw.strip()
    display: str | None = None
    quoted = _QUOTED.match(value)
    if quoted:
        display = _unquote(text(quoted[0]))
        value = value[quoted.end() :].lstrip()
    opening = value.find(b"<")
    if opening >= 0:
        if display is None:
            display = text(value[:opening]) or None
        closing = value.find(b">", opening)
        inside = value[opening + 1 : closing if closing >= 0 else len(value)]
        params = value[closing + 1 :] if closing >= 0 else b""
    else:
        # without angle brackets every parameter is the header's (RFC 3261 20.10)
        inside, _, params = value.partition(b";")
    found = uri(text(inside))
    return NameAddr(display or None, found, text(params).lstrip("; ")) if found else None


def parse(payload: bytes) -> Message:
    """One SIP message; raises `SipError` when it cannot be keyed to a transaction."""
    if payload[:1] in (b"\r", b"\n"):
        payload = payload.lstrip(b"\r\n")
    # The head ends at the first empty line, whichever line ends the sender mixes.
    end = payload.find(b"\n\r\n")
    bare = payload.find(b"\n\n", 0, end + 1 if end >= 0 else len(payload))
    if bare >= 0 and (end < 0 or bare < end):
        head, body, whole = payload[:bare], payload[bare + 2 :], True
    elif end >= 0:
        head, body, whole = payload[:end], payload[end + 3 :], True
    else:
        # No empty line: cut in the middle of a header, whose last line cannot be trusted.
        head, body, whole = payload[: payload.rfind(b"\n") + 1], b"", False
    lines = _lines(head)

    start = lines[0]
    status: int | None = None
    phrase = ruri = method = ""
    matched = _STATUS.match(start)
    if matched:
        status = int(matched[1])
        phrase = text(matched[2] or b"")
    else:
        matched = _REQUEST.match(start)
        if not matched:
            raise SipError("start-line")
        method = matched[1].decode("ascii").upper()
        ruri = text(matched[2])

    headers: dict[str, list[bytes]] = {}
    known = _names
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            continue
        key = known.get(name) or _canonical(name)
        if key in _KEPT:
            copies = headers.get(key)
            if copies is None:
                headers[key] = [value.strip()]
            elif len(copies) < MAX_COPIES:
                copies.append(value.strip())

    try:
        call_id = text(headers["call-id"][0])
    except KeyError:
        raise SipError("call-id") from None
    if not call_id or len(call_id) > MAX_CALL_ID:
        raise SipError("call-id")
    sequence = _CSEQ.match(headers["cseq"][0]) if "cseq" in headers else None
    if not sequence:
        raise SipError("cseq")
    cseq_method = sequence[2].decode("ascii").upper()
    if status is None and method != cseq_method:
        raise SipError("cseq")
    cseq = int(sequence[1])
    if cseq >= 1 << 32:
        raise SipError("cseq")
    if "from" not in headers:
        raise SipError("from")
    if "to" not in headers:
        raise SipError("to")
    if "via" not in headers:
        raise SipError("via")

    vias = headers["via"]
    via_values = [split_values(raw) for raw in vias] if any(b"," in v for v in vias) else None
    flat = [v for values in via_values for v in values] if via_values else vias
    top = _via(flat[0])
    parent: str | None = None
    if len(flat) > 1:
        found = _BRANCH.search(flat[1])
        parent = (
            text(found[1][:MAX_TOKEN]) if found and found[1] else "sent-by " + _via(flat[1]).sent_by
        )

    truncated = not whole
    lengths = headers.get("content-length")
    declared = _DIGITS.match(lengths[0]) if lengths else None
    if declared:
        length = int(declared[1])
        if length < len(body):
            body = body[:length]
        elif length > len(body):
            truncated = True
    return Message(
        status,
        phrase,
        cseq_method,
        ruri,
        call_id,
        cseq,
        _tag(headers["from"][0]),
        _tag(headers["to"][0]),
        top.branch or "sent-by " + top.sent_by,
        parent,
        top.transport,
        len(flat),
        headers,
        head,
        body,
        truncated,
    )
