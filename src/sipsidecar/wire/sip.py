"""One SIP message's bytes to the fields that a call record needs (RFC 3261).

Only what keys a transaction is read at once: start line, Call-ID, CSeq, tags and Via branches.
The rest stays bytes until somebody asks, because most messages are never asked.
Messages are read as they really arrive: compact names, any case, folded lines, comma-joined
Vias, bare LF, NUL and Latin-1 bytes, a wrong or missing Content-Length.

Strangers choose every byte. So every text is capped, and no work grows faster than the message:
a quoted string is blanked before its separators are looked for, never matched around.
"""

import re
from itertools import islice
from typing import Final

import msgspec

from sipsidecar.wire import WireError

MAX_CALL_ID: Final = 512
"""Longer than any real one; a btree row holds 2.7 kB, so this must not come from strangers."""
MAX_TOKEN: Final = 256
"""Bytes kept of a tag or branch."""
MAX_TEXT: Final = 2048
"""Bytes kept of any other text: a Request-URI, a phrase, a display name."""
MAX_LINES: Final = 1024
"""Header lines that are read; what stands below them is not seen."""
MAX_VALUE: Final = 16 * 1024
"""Bytes of one header value in which separators are looked for."""
MAX_COPIES: Final = 256
"""Headers of one name, and values of one header: no message has more Vias than Max-Forwards."""
MAX_REASONS: Final = 8

WHYS: Final = frozenset({"start-line", "call-id", "cseq", "via", "from", "to"})


class SipError(WireError):
    """Bytes that are no SIP message; `why` is one of `WHYS`."""


class Uri(msgspec.Struct, frozen=True):
    """A SIP, SIPS, TEL or URN address (RFC 3261 19.1, RFC 3966, RFC 5031).

    What follows the scheme of any but SIP and SIPS is its `user`. Escapes are left as they came.
    """

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
    from, None at the first hop (and when that Via is senseless).
    `truncated` tells that the head has no end, or the body less than its Content-Length.
    No accessor raises: what is absent or senseless is None, or left out of the list.
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
        for line in _lines(_FOLD.sub(b" ", self.head))[1:]:
            key, colon, value = line.partition(b":")
            if colon and _canonical(key) == name:
                found.append(value.strip())
        return found[:MAX_COPIES]

    def first(self, name: str) -> str | None:
        """Text of a header's first value; None when absent or empty."""
        values = self.values(name)
        return text(values[0]) or None if values else None

    def address(self, name: str) -> NameAddr | None:
        """A header's first value read as a name and address; None when absent or senseless."""
        values = self.values(name)
        return name_addr(values[0]) if values else None

    def vias(self) -> list[Via]:
        """Every Via that makes sense, topmost first."""
        vias = (_via(value) for value in _via_values(self.values("via")))
        return [via for via in vias if via is not None]

    def reasons(self) -> tuple[Reason, ...]:
        """Every Reason value, in order; there may be one per protocol (RFC 3326 2)."""
        return tuple(parse_reasons(self.values("reason")))

    def seconds(self, name: str) -> int | None:
        """The leading delta-seconds of Expires, Session-Expires or Retry-After."""
        values = self.values(name)
        match = _SECONDS.match(values[0]) if values else None
        return int(match[1]) if match else None


# ------------------------------------------------------------------------------------ header names

_COMPACT: Final = {
    b"a": "accept-contact", b"b": "referred-by", b"c": "content-type", b"d": "request-disposition",
    b"e": "content-encoding", b"f": "from", b"i": "call-id", b"j": "reject-contact",
    b"k": "supported", b"l": "content-length", b"m": "contact", b"n": "identity-info",
    b"o": "event", b"r": "refer-to", b"s": "subject", b"t": "to", b"u": "allow-events",
    b"v": "via", b"x": "session-expires", b"y": "identity",
}  # fmt: skip
"""Compact forms, of RFC 3261 7.3.3 and of the extensions that IANA lists."""

_KEPT_AS_SPELLED: Final = (
    b"Via", b"From", b"To", b"Call-ID", b"CSeq", b"Contact", b"Content-Length", b"Content-Type",
    b"Reason", b"User-Agent", b"Server", b"P-Asserted-Identity", b"Remote-Party-ID", b"Diversion",
    b"Session-Expires", b"Expires", b"Authorization", b"Proxy-Authorization", b"X-Admission",
)  # fmt: skip
_KEPT: Final = frozenset(name.decode().lower() for name in _KEPT_AS_SPELLED)

# What senders write, so that only odd spellings cost more than one lookup; "" is read on request.
_SPELLINGS: Final = {
    **dict.fromkeys(
        b"Max-Forwards Record-Route Route Allow Supported Require Accept Allow-Events Event Subject "
        b"Min-SE Date Timestamp Warning WWW-Authenticate Proxy-Authenticate P-Charging-Vector".split(),
        "",
    ),
    **{
        spelling: name.decode().lower()
        for name in _KEPT_AS_SPELLED
        for spelling in (name, name.lower(), name.upper(), name.title())
    },
    **{
        spelling: name if name in _KEPT else ""
        for letter, name in _COMPACT.items()
        for spelling in (letter, letter.upper())
    },
}


def _canonical(name: bytes) -> str:
    """A header's long lower-case name from any of its spellings."""
    plain = name.strip().lower()
    return _COMPACT.get(plain) or plain[:64].decode("latin-1")


# ------------------------------------------------------------------------------- text and its parts

_TOKEN: Final = rb"A-Za-z0-9.!%*_+`'~-"

_QUOTED: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*"', re.DOTALL)
# The escape before it is for the string that never ends: without it every `\"` would be tried.
_QUOTED_ANYWHERE: Final = re.compile(rb'\\["\\]|' + _QUOTED.pattern, re.DOTALL)
_ANGLED: Final = re.compile(rb"<[^>]*+>?")
_UNESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)


def text(raw: bytes) -> str:
    """The first MAX_TEXT bytes as text: what is not UTF-8, and NUL, become visible escapes."""
    if len(raw) > MAX_TEXT:
        raw = raw[:MAX_TEXT]
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        decoded = raw.decode("utf-8", "backslashreplace")
    if "\0" in decoded:
        decoded = decoded.replace("\0", "\\x00")
    return decoded.strip()


def _blank(match: re.Match[bytes]) -> bytes:
    return b"_" * len(match[0])


def _masked(value: bytes) -> bytes:
    """`value` with its quoted strings blanked: what separates here, separates there."""
    value = value[:MAX_VALUE]
    return _QUOTED_ANYWHERE.sub(_blank, value) if b'"' in value else value


def _unquoted(value: bytes) -> bytes:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == 0x22:
        return _UNESCAPE.sub(rb"\1", value[1:-1])
    return value


def _number(raw: bytes) -> int | None:
    """Digits only: int() also takes signs, spaces, underscores and other alphabets' digits."""
    return int(raw) if raw.isdigit() and len(raw) <= 9 else None


def split_values(raw: bytes) -> list[bytes]:
    """A comma-joined header value to its parts; commas in quotes and angle brackets are text."""
    if b"," not in raw:
        return [raw] if raw else []
    parts, start = [], 0
    masked = _masked(raw)
    if b"<" in masked:
        masked = _ANGLED.sub(_blank, masked)
    for part in masked.split(b",", MAX_COPIES)[:MAX_COPIES]:
        end = start + len(part)
        value = raw[start:end].strip()
        if value:
            parts.append(value)
        start = end + 1
    return parts


_COOKIE: Final = b"z9hG4bK"
"""What begins every branch of RFC 3261; alone it tells nothing (RFC 4475 3.2.1)."""
_SECONDS: Final = re.compile(rb"([0-9]{1,9})(?=[\s;,(]|\Z)")
_TAG: Final = re.compile(rb";\s*tag\s*=\s*([^;,\s>]*)", re.IGNORECASE)
_BRANCH: Final = re.compile(rb";\s*branch\s*=\s*([^;,\s]*)", re.IGNORECASE)
_CAUSE: Final = re.compile(rb";\s*cause\s*=\s*([^;\s]*)", re.IGNORECASE)
_TEXT: Final = re.compile(rb";\s*text\s*=\s*([^;]*)", re.IGNORECASE)


def _parameter(wanted: re.Pattern[bytes], value: bytes, masked: bytes, start: int) -> bytes:
    """A header parameter's value; empty when it is absent or has none."""
    match = wanted.search(masked, start)
    return value[match.start(1) : match.end(1)] if match else b""


# ----------------------------------------------------------------------------------- header values

# The usual shapes at once; what they do not match is read the long way, to the same result.
# Visible ASCII without `"`, `,` and `;` is `[!#-+\--:<-~]`. In front of the branch no capitals
# either, so that the `;branch=` found here is the one that `_BRANCH` would find.
_USUAL_ADDRESS: Final = re.compile(
    rb'(?:"[^"\\]*")?[^"<>;]*<[^"<>]*>(?:\Z|;tag=([!#-+\--:<=?-~]{0,%d})(?:;|\Z))' % MAX_TOKEN
)
_USUAL_VIA: Final = re.compile(
    rb"SIP/2\.0/(UDP|TCP|TLS|SCTP|WSS?) [!#-+\--:<-~]{1,%d}+(?>[!#-+\--@\[-~]*?;branch=)"
    rb"([!#-+\--:<-~]{1,%d})(?:;|\Z)" % (MAX_TOKEN, MAX_TOKEN)
)
_VIA: Final = re.compile(
    rb"\s*SIP\s*/\s*[0-9.]{1,8}\s*/\s*([%s]{1,16})\s+([^;,\s]{1,%d}(?:\s*:\s*[0-9]{1,5})?)"
    % (_TOKEN, MAX_TOKEN),
    re.IGNORECASE,
)


def _address_bounds(masked: bytes) -> tuple[int, int]:
    """Where the URI begins, and where it ends and the header's parameters follow."""
    opening = masked.find(b"<")
    # Without angle brackets every parameter is the header's (RFC 3261 20.10).
    end = masked.find(b">", opening) if opening >= 0 else masked.find(b";")
    return opening + 1, end if end >= 0 else len(masked)


def _tag(value: bytes) -> str:
    """The tag of a From or To; `;tag=` in the display name or the URI is an attacker's."""
    usual = _USUAL_ADDRESS.match(value)
    if usual:
        found: bytes | None = usual[1]
        return found.decode() if found else ""
    masked = _masked(value)
    return text(_parameter(_TAG, value, masked, _address_bounds(masked)[1])[:MAX_TOKEN])


def _via_values(raw: list[bytes]) -> list[bytes]:
    values: list[bytes] = []
    for line in raw:
        if b"," in line:
            values += split_values(line)
        elif line:
            values.append(line)
    return values[:MAX_COPIES]


def _via(value: bytes) -> Via | None:
    match = _VIA.match(value)
    if not match:
        return None
    branch = _parameter(_BRANCH, value, _masked(value), match.end())
    return Via(
        match[1].decode().lower(),
        text(b"".join(match[2].split())),
        None if branch == _COOKIE else text(branch[:MAX_TOKEN]) or None,
    )


def _hop(value: bytes) -> tuple[str, str] | None:
    """The transport of one Via, and what keys its transaction; None when it is senseless."""
    usual = _USUAL_VIA.match(value)
    if usual:
        transport, branch = usual.groups()
        if branch != _COOKIE:
            return transport.decode().lower(), branch.decode()
    via = _via(value)
    return (via.transport, via.branch or "sent-by " + via.sent_by) if via else None


def _reason(value: bytes) -> Reason:
    masked = _masked(value)
    end = masked.find(b";")
    if end < 0:
        return Reason(text(value[:64]), None, None)
    cause = _unquoted(_parameter(_CAUSE, value, masked, end))
    said = _unquoted(_parameter(_TEXT, value, masked, end))
    return Reason(text(value[: min(end, 64)]), _number(cause), text(said) or None)


def parse_reasons(raw: list[bytes]) -> list[Reason]:
    """Raw Reason header values to their reasons, in order."""
    values = (value for line in raw for value in split_values(line))
    return [_reason(value) for value in islice(values, MAX_REASONS)]


_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):(.*)\Z", re.DOTALL)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,64}\]|[^:;?,\s\[\]]*)(?::([0-9]{1,5})(?![0-9]))?")


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
    authority = _HOST.match(rest, at + 1)
    assert authority is not None  # it may be empty, but it is there
    port = int(authority[2]) if authority[2] else None
    return Uri(
        scheme,
        user or None,
        authority[1].lower().strip("[]") or None,
        port if port is not None and port < 1 << 16 else None,
        rest[authority.end() :].lstrip("; "),
    )


def _end_of_authority(rest: str) -> int:
    """Where URI parameters begin; a `;` before the `@` is the user's (RFC 4475 3.1.1.9)."""
    start = rest.find("@") + 1
    ends = (rest.find(";", start), rest.find("?", start))
    return min((end for end in ends if end >= 0), default=len(rest))


def name_addr(raw: bytes) -> NameAddr | None:
    """One From-like header value to display name, URI and parameters; None when it has no URI."""
    value = raw.strip()
    quoted = _QUOTED.match(value)
    display = b""
    if quoted:
        display, value = quoted[0], value[quoted.end() :]
    start, end = _address_bounds(_masked(value))
    found = uri(text(value[start:end]))
    if found is None:
        return None
    said = text(_unquoted(display or value[: max(start - 1, 0)]))
    return NameAddr(said or None, found, text(value[end:]).lstrip(">; "))


# ---------------------------------------------------------------------------------------- messages

_NO_LINE: Final = re.compile(rb"\n\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_STATUS: Final = re.compile(
    rb"SIP/2\.0[ \t]+([1-6][0-9][0-9])(?:\s+(.*))?\Z", re.IGNORECASE | re.DOTALL
)
_REQUEST: Final = re.compile(
    rb"([%s]{1,64})[ \t]+(\S.*)[ \t]SIP/2\.0\s*\Z" % _TOKEN, re.IGNORECASE | re.DOTALL
)
_CSEQ: Final = re.compile(rb"([0-9]{1,10})\s+([%s]{1,64})\Z" % _TOKEN)


def _lines(head: bytes) -> list[bytes]:
    """The start line and the header lines, each perhaps with its CR."""
    lines = head.split(b"\n", MAX_LINES)
    if len(lines) > MAX_LINES:
        lines.pop()
    return lines


def _headers(lines: list[bytes]) -> dict[str, list[bytes]] | None:
    """The headers that are kept, by long lower-case name; None when a line is folded."""
    headers: dict[str, list[bytes]] = {}
    spelled = _SPELLINGS.get
    for line in islice(lines, 1, None):
        name, colon, value = line.partition(b":")
        key = spelled(name)
        if key is None:
            if line.startswith((b" ", b"\t")):
                return None
            key = _canonical(name)
            if key not in _KEPT:
                continue
        if key in headers:
            if colon and len(headers[key]) < MAX_COPIES:
                headers[key].append(value.strip())
        elif key and colon:
            headers[key] = [value.strip()]
    return headers


def parse(payload: bytes) -> Message:
    """One SIP message; raises `SipError` when it cannot be keyed to a transaction."""
    payload = payload.lstrip(b"\r\n")  # RFC 3261 7.5
    # The head ends at the first empty line, whichever line ends the sender mixes.
    no_line = _NO_LINE.search(payload)
    if no_line:
        head, body = payload[: no_line.start()], payload[no_line.end() :]
    else:
        # Cut in the middle of a header, whose last line cannot be trusted.
        head, body = payload[: payload.rfind(b"\n") + 1], b""
    lines = _lines(head)
    headers = _headers(lines)
    if headers is None:
        lines = _lines(_FOLD.sub(b" ", head))  # RFC 3261 7.3.1
        headers = _headers(lines)
        assert headers is not None

    status: int | None = None
    phrase = ruri = method = ""
    matched = _STATUS.match(lines[0])
    if matched:
        status = int(matched[1])
        phrase = text(matched[2] or b"")
    else:
        matched = _REQUEST.match(lines[0])
        if not matched:
            raise SipError("start-line")
        method = matched[1].decode().upper()
        ruri = text(matched[2])

    call_ids = headers.get("call-id")
    call_id = text(call_ids[0]) if call_ids else ""
    if not 0 < len(call_id) <= MAX_CALL_ID:
        raise SipError("call-id")
    cseqs = headers.get("cseq")
    sequence = _CSEQ.match(cseqs[0]) if cseqs else None
    if not sequence:
        raise SipError("cseq")
    cseq, cseq_method = int(sequence[1]), sequence[2].decode().upper()
    if cseq >= 1 << 32 or (status is None and method != cseq_method):
        raise SipError("cseq")
    senders, receivers = headers.get("from"), headers.get("to")
    if not senders:
        raise SipError("from")
    if not receivers:
        raise SipError("to")
    vias = _via_values(headers.get("via", []))
    top = _hop(vias[0]) if vias else None
    if not top:
        raise SipError("via")
    parent = _hop(vias[1]) if len(vias) > 1 else None

    truncated = no_line is None
    lengths = headers.get("content-length")
    # Two lengths are none: there is no way to know which is meant (RFC 4475 3.3.9).
    length = _number(lengths[0]) if lengths and len(lengths) == 1 else None
    if length is not None:
        truncated = truncated or length > len(body)
        body = body[:length]
    return Message(
        status,
        phrase,
        cseq_method,
        ruri,
        call_id,
        cseq,
        _tag(senders[0]),
        _tag(receivers[0]),
        top[1],
        parent[1] if parent else None,
        top[0],
        len(vias),
        headers,
        head,
        body,
        truncated,
    )


def build_options(
    *,
    ruri: str,
    transport: str,
    sent_by: str,
    branch: str,
    call_id: str,
    from_uri: str,
    from_tag: str,
    to_uri: str,
    contact: str,
    user_agent: str,
    cseq: int = 1,
) -> bytes:
    """An OPTIONS outside any dialog (RFC 3261 11.1); the caller made sure that no part has line ends.

    `transport` is a name as `Via` has it; `branch` is with its cookie. `rport` is empty: the answer
    shall come back to where this comes from (RFC 3581).
    """
    return (
        f"OPTIONS {ruri} SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport.upper()} {sent_by};rport;branch={branch}\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <{from_uri}>;tag={from_tag}\r\n"
        f"To: <{to_uri}>\r\n"
        f"Call-ID: {call_id}\r\n"
        f"CSeq: {cseq} OPTIONS\r\n"
        f"Contact: <{contact}>\r\n"
        "Accept: application/sdp\r\n"
        f"User-Agent: {user_agent}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()
