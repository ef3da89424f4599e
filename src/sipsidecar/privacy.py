r"""Payloads as they came to payloads that do not tell who spoke: what may be kept of people.

A mask is put on before anything is parsed, so that records, rows, ladders and captures that are
made from a payload hold masked bytes alone. What keys a message is never touched: method, status,
Call-ID, CSeq, Via, tags, Content-Length. Bodies keep their length; heads may not, and are unfolded.

Equal users have equal tokens: `m` and 16 hex digits of HMAC-SHA256(key, user). Before that a user
loses its password and its percent-escapes, and a number its visual separators and parameters; a
leading `+` stays. Display names have tokens of the same kind with `n`. What looks like a token is
left alone, so that masking a proper message again changes nothing. Stars stand where a length must
stay.

What is sent as SIP but has no start line is masked roughly: what stands before an `@`, runs of
five digits and more, and with `names` what is quoted. The headers that it has are still known.

Strangers choose every byte: every step is linear in the payload, and what has more addresses than
any real message is masked whole.
"""

import functools
import hmac
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from sipsidecar.wire import WireError, hep, sip

MIN_KEY: Final = 16
"""Bytes. Under a shorter key users could be found from tokens by trying keys."""
MAX_ADDRESSES: Final = 256
"""Addresses in one head or body that are masked one by one; the rest is blanked."""
MAX_PARTS: Final = 64
"""Parts of a multipart body that are read; the rest is blanked."""
MAX_NESTING: Final = 3
MAX_DTMF: Final = 4096
"""Bytes of a DTMF body that is read line by line; a longer one is blanked."""
MAX_SDP_LINES: Final = 2000
CACHED: Final = 4096
"""URIs and display names whose masked form is remembered, each."""
MAX_CACHED: Final = 256
"""Bytes of the longest that is remembered."""
MAX_USUAL_PARAMETERS: Final = 2048
MAX_WORDS: Final = 16
"""Users and names of one message that are looked for in headers of any form."""
MIN_WORD: Final = 3
"""Bytes of the shortest: a shorter one stands in too much else."""

_SIP: Final = hep.Kind.SIP

_Words = tuple[tuple[bytes, bytes], ...]
"""Forms in which somebody may be named, with the token that stands for them."""

# ------------------------------------------------------------------------------------------- stars

_STARS: Final = bytes(byte if byte in b"\r\n" else 0x2A for byte in range(256))
_WORD_STARS: Final = bytes(byte if byte in b"\r\n\t " else 0x2A for byte in range(256))


def _starred(data: bytes) -> bytes:
    """Blank all but line ends."""
    return data.translate(_STARS)


def _stars(data: bytes) -> bytes:
    return b"*" * len(data)


def _star_second(match: re.Match[bytes]) -> bytes:
    return match[1] + b"*" * len(match[2])


def _star_all(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])


# ------------------------------------------------------------------------------ media keys and DTMF

_LINE_START: Final = rb"(?:\A|[\r\n]|\\[rn])"  # also as JSON writes a line's end
# What a key consists of, also as JSON writes it: `\/` and `\u002b`.
_KEY: Final = rb"""((?:[^|\s;"'<>\\]++|\\/|\\u00[0-9a-f]{2})++)"""
_MEDIA_KEYS: Final = (
    (b"crypto:", re.compile(rb"(inline:[ \t]*)" + _KEY, re.IGNORECASE)),
    (b"key-mgmt:", re.compile(rb'(key-mgmt:[ \t]*[^\s"\\]++[ \t]+)' + _KEY, re.IGNORECASE)),
    (
        b"k=",
        re.compile(rb"(" + _LINE_START + rb'k=(?:[a-z0-9]{1,16}:)?)([^\r\n\\"]++)', re.IGNORECASE),
    ),
)
"""RFC 4568, RFC 4567 and RFC 4566 5.12: what must occur for a search to be worth it, and the key."""


def _hide_media_keys(data: bytes) -> bytes:
    if not (b"y" in data or b"k" in data):  # one byte is found much faster than two
        return data
    for mark, key in _MEDIA_KEYS:
        if mark in data:
            data = key.sub(_star_second, data)
    return data


_DTMF_METHODS: Final = frozenset({b"INFO", b"NOTI"})
_NO_DTMF: Final = frozenset(
    (b"SIP/", b"INVI", b"ACK ", b"BYE ", b"CANC", b"OPTI", b"REGI", b"PRAC", b"UPDA", b"REFE")
)
"""How messages begin in which digits are looked for only if their body is no SDP."""
_DTMF_TYPES: Final = re.compile(rb"dtmf|telephone-event|nortelnetworks\.digits")
_DTMF_WORDS: Final = (b"igit", b"ignal", b"dtmf", b"tone")
_SIGNAL: Final = re.compile(
    rb"(" + _LINE_START + rb"[ \t]*+(?:signal|digits?|dtmf|d)[ \t]*+[=:][ \t]*+)([^\r\n\\]++)",
    re.IGNORECASE,
)
# As an attribute of XML (KPML, MSCML) or a value of JSON.
_NAMED_DIGITS: Final = re.compile(
    rb"""((?:signals?|digits?|dtmf|tones?)["']?\s{0,9}[=:]\s{0,9}["'])([^"']*+)""", re.IGNORECASE
)
_NAMED_NUMBER: Final = re.compile(
    rb'("(?:signal|digits?|dtmf|tone)"\s{0,9}:\s{0,9})([0-9]++)', re.IGNORECASE
)
_DIGITS_ALONE: Final = re.compile(rb"\s*+[0-9A-Da-d*#]{1,64}+\s*+")
_CUT_DTMF: Final = re.compile(
    rb"[a-z]{0,8}[ \t]*=[ \t]*[0-9a-d*#]{1,16}\s*(?:duration[ \t]*=[^\r\n]*\s*)?", re.IGNORECASE
)
"""The end of a body as phones send it, when its beginning went with another packet."""
_LINE: Final = re.compile(rb"[^\r\n]++")
_PAIR: Final = re.compile(rb"([ \t]*+([A-Za-z-]{1,32}+)[ \t]*+[=:][ \t]*+)(.+)", re.DOTALL)
_TELLS_NO_DIGIT: Final = frozenset({b"duration", b"volume"})


def _hide_dtmf_line(match: re.Match[bytes]) -> bytes:
    pair = _PAIR.fullmatch(match[0])
    if not pair:
        return _stars(match[0])
    if pair[2].lower() in _TELLS_NO_DIGIT and pair[3].strip().isdigit():
        return match[0]
    return pair[1] + _stars(pair[3])


def _hide_dtmf(body: bytes, *, coded: bool) -> bytes:
    """Mask a body that is DTMF by its type: everything but names and durations."""
    if coded or len(body) > MAX_DTMF:
        return _starred(body)
    if b"=" not in body and not body.translate(None, b"\t\r\n").isascii():
        return _stars(body)
    if b"=" not in body and min(body.translate(None, b"\t\r\n"), default=0x20) < 0x20:
        return _stars(body)  # the event of RFC 4733: its first byte may look like a line's end
    return _LINE.sub(_hide_dtmf_line, body)


def _hide_named_digits(data: bytes) -> bytes:
    lower = data.lower()
    if any(word in lower for word in _DTMF_WORDS):
        data = _NAMED_NUMBER.sub(_star_second, _NAMED_DIGITS.sub(_star_second, data))
    return data


# -------------------------------------------------------------------------------------------- users

_TOKEN: Final = re.compile(rb"[mn][0-9a-f]{16}")
_NUMBER: Final = re.compile(rb"(\+?[0-9*#()\-. ]++)(?:;.*)?", re.DOTALL)
_DIGIT: Final = re.compile(rb"[0-9*#]")
_NO_SEPARATORS: Final = b"()-. "


def canonical_user(user: bytes) -> bytes:
    """Reduce the user of a URI, without password, to what its token is made of.

    Escapes are decoded. Of a number, visual separators (RFC 3966 5.1.1) and parameters go.
    """
    if b"%" in user:
        user = unquote_to_bytes(user)
    number = _NUMBER.fullmatch(user)
    if number and _DIGIT.search(number[1]):
        return number[1].translate(None, _NO_SEPARATORS)
    return user


# ---------------------------------------------------------------------------------------- addresses

_QUOTED: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# The escape before it is for the string that never ends: without it every `\"` would be tried.
_QUOTED_ANYWHERE: Final = re.compile(rb'\\["\\]|' + _QUOTED.pattern, re.DOTALL)
_ANGLED: Final = re.compile(rb"<[^>]*+>?")
_UNESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_TAG: Final = re.compile(rb";\s*tag\s*=\s*[^;,\s>]*", re.IGNORECASE)
# A name and one URI up to its `>`: nearly every value.
_USUAL: Final = re.compile(rb'[ \t]*+(?:"([^"\\<>]*+)"[ \t]*+|([^"<>;,:@%\\]*+))<([^<>"]{1,512}+)')

_SCHEME: Final = re.compile(rb"\s*+<?([A-Za-z][A-Za-z0-9+.-]{0,31}):")
_NOBODY: Final = frozenset({b"urn", b"http", b"https", b"cid", b"data", b"geo"})
"""Schemes whose URIs name no person; what stands in them is read as text."""
_MAILBOXES: Final = frozenset({b"mailto", b"im", b"pres", b"xmpp", b"h323"})
# A number without host, which readers take for the host; no address has these characters alone.
_NUMBER_AS_HOST: Final = re.compile(rb"(?:\+[0-9().*#-]++|[0-9*#()-]++)(?=[:;?>,%\s]|\Z)")
# Parameters that hold a number (RFC 3966, RFC 4694), and those in which Kamailio's uac module
# keeps the users that it has replaced.
_CARRIERS: Final = re.compile(
    rb"([;&?](?:isub|ext|postd|rn|phone-context|vsf|vst)(?:=|%3d))([^;?&>\s]++)", re.IGNORECASE
)
_SCHEMES: Final = re.compile(
    rb"((?:sips?|tel|(?<![a-z])(?:im|pres|mailto|xmpp|h323))(?::|%3a))", re.IGNORECASE
)
_SCHEME_WORDS: Final = (
    b"sip",
    b"tel:",
    b"tel%",
    b"im:",
    b"im%",
    b"pres",
    b"mailto",
    b"xmpp",
    b"h323",
)
"""What must occur for a search to be worth it."""
_URIS: Final = re.compile(_SCHEMES.pattern + rb'[^\s"<>]*+', re.IGNORECASE)
_END: Final = re.compile(rb"[;?&]|%3[bef]", re.IGNORECASE)
_USERNAME: Final = re.compile(
    rb'(username\*?[ \t]*+=[ \t]*+)("[^"\\]*+(?:\\.[^"\\]*+)*+"?|[^\s,"]*+)',
    re.IGNORECASE | re.DOTALL,
)
_JWT: Final = re.compile(rb"eyJ[A-Za-z0-9_.=-]++")
_BEFORE_AT: Final = re.compile(rb'([^\s"<>@]++)(@?)')
_LONG_NUMBER: Final = re.compile(rb"\+?[0-9](?:[-()]?[0-9]){4,}+")


def _blank(match: re.Match[bytes]) -> bytes:
    return b"_" * len(match[0])


def _star_quoted(match: re.Match[bytes]) -> bytes:
    return match[0] if match[0].startswith(b"\\") else b"*" * len(match[0])


def _star_before_at(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[1]) + match[2] if match[2] else match[0]


def _without_quoted(value: bytes) -> bytes:
    """Blank the quoted strings: what separates there, separates in the value."""
    return _QUOTED_ANYWHERE.sub(_blank, value) if b'"' in value else value


def _end_of_user(rest: bytes) -> int:
    """Where the userinfo ends in what follows `sip:`, as `sip.uri` reads it; -1 without one."""
    first = rest.find(b"@") + 1
    if not first:
        return -1
    ends = (rest.find(b";", first), rest.find(b"?", first))
    return rest.rfind(b"@", 0, min((end for end in ends if end >= 0), default=len(rest)))


def _end(rest: bytes) -> int:
    """Where parameters begin in what follows a scheme."""
    found = _END.search(rest)
    return found.start() if found else len(rest)


def _parts_of_uri(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Split what stands where one URI should: what is before the user, the user, what is after.

    The password is left out.
    """
    found = _SCHEME.match(raw)
    if not found:
        plain = raw.strip()
        user, at, host = plain.rpartition(b"@")
        if not user and plain != b"*":
            return b"", host, b""
        return (b"", user, at + host) if user else (raw, b"", b"")
    before, scheme, rest = found[0], found[1].lower(), raw[found.end() :]
    if scheme in _NOBODY:
        return before, b"", rest
    if scheme in {b"sip", b"sips"}:
        end = _end_of_user(rest)
        if end < 0:
            number = _NUMBER_AS_HOST.match(rest)
            end = number.end() if number else max(rest.rfind(b"%40", 0, _end(rest)), 0)
        return before, rest[:end].partition(b":")[0], rest[end:]
    ends = (rest.find(b";"), rest.find(b"?"))
    end = min((end for end in ends if end >= 0), default=len(rest))
    user, after = rest[:end], rest[end:]
    if scheme in _MAILBOXES and b"@" in user:
        user, at, host = user.rpartition(b"@")
        after = at + host + after
    return before, user, after


def _words_of(who: bytes, token: bytes) -> _Words:
    """The forms in which somebody may be named, with the token that stands for them."""
    return tuple(
        (form, token)
        for form in {who, canonical_user(who), who.lstrip(b"+")}
        if MIN_WORD <= len(form) <= MAX_CACHED and not _TOKEN.fullmatch(form)
    )


def _hide_users(uris: bytes, hide: Callable[[bytes], bytes]) -> bytes:
    """Hide the user of each URI in text without spaces, quotes and angle brackets."""
    parts = _SCHEMES.split(uris)  # nothing, scheme, what follows, scheme, what follows...
    for at in range(2, len(parts), 2):
        scheme, rest = parts[at - 1], parts[at]
        if scheme[:3].lower() == b"tel":
            end = _end(rest)
        else:
            end = _end_of_user(rest)
            if end < 0:
                end = rest.rfind(b"%40", 0, _end(rest))
            if end < 0 and (number := _NUMBER_AS_HOST.match(rest)):
                end = number.end()
            if end < 0 and at + 1 < len(parts) and rest[-1:] not in b";?,&=":
                end = len(rest)  # a scheme in a user
        if end > 0:
            parts[at] = hide(rest[:end]) + rest[end:]
        parts[at] = _CARRIERS.sub(_star_second, parts[at])
    return b"".join(parts)


def _canonical_name(name: bytes) -> bytes:
    return b" ".join(_UNESCAPE.sub(rb"\1", name).split())


def _replace_word(text: bytes, word: bytes, token: bytes) -> bytes:
    parts: list[bytes] = []
    start, at = 0, text.find(word)
    while at >= 0:
        end = at + len(word)
        if not text[max(at - 1, 0) : at].isalnum() and not text[end : end + 1].isalnum():
            parts += text[start:at], token
            start = end
        at = text.find(word, end)
    return b"".join((*parts, text[start:]))


def _tag_of(value: bytes) -> str:
    """The tag that the parser finds in a From or To."""
    probe = (
        b"X x SIP/2.0\r\nVia: SIP/2.0/UDP x\r\nCall-ID: x\r\nCSeq: 1 X\r\nTo: x\r\nFrom:"
        + value
        + b"\r\n\r\n"
    )
    try:
        return sip.parse(probe).from_tag
    except WireError:  # pragma: no cover -- nothing in a value can do that
        return ""


def _nobody_with_tag(value: bytes, tag: str) -> bytes:
    """An address that says nothing but its tag."""
    found = b""
    for limit in (sip.MAX_VALUE, len(value)):  # the parser has a limit for unusual values alone
        blanked = _without_quoted(value[:limit])
        opening = blanked.find(b"<")
        end = blanked.find(b">", opening) if opening >= 0 else blanked.find(b";")
        match = _TAG.search(blanked, end if end >= 0 else limit)
        found = b" <sip:masked.invalid>" + (value[match.start() : match.end()] if match else b"")
        if _tag_of(found) == tag:
            break
    return found


# ------------------------------------------------------------------------------------ header names

_ADDRESSES: Final = (
    b"Contact m P-Asserted-Identity P-Preferred-Identity Remote-Party-ID Diversion CC-Diversion"
    b" History-Info Refer-To r Referred-By b Reply-To P-Called-Party-ID P-Associated-URI"
    b" P-Served-User P-Refused-URI-List P-DCS-Trace-Party-ID"
).split()
_SENDERS: Final = b"From f".split()
_RECEIVERS: Final = b"To t".split()
_ROUTES: Final = b"Route Record-Route Path Service-Route".split()
_CREDENTIALS: Final = b"Authorization Proxy-Authorization".split()
_PASSPORTS: Final = b"Identity y P-Identity-Bypass".split()
_QUOTING: Final = b"Reason Warning".split()
_CONTENT: Final = b"Subject s User-to-User".split()
"""Headers that carry what one end says to the other, as a body does."""
_IMPERSONAL: Final = (
    b"Via v Call-ID i CSeq Max-Forwards Max-Breadth Content-Length l Content-Type c"
    b" Content-Encoding e Content-Disposition Content-Language Content-ID MIME-Version Allow"
    b" Supported k Require Proxy-Require Unsupported Accept Accept-Encoding Accept-Language"
    b" Accept-Resource-Priority Resource-Priority Allow-Events u Event o Expires Min-Expires"
    b" Session-Expires x Min-SE Date Timestamp RAck RSeq Replaces Join Target-Dialog In-Reply-To"
    b" WWW-Authenticate Proxy-Authenticate Authentication-Info Proxy-Authentication-Info"
    b" User-Agent Server Subscription-State Retry-After Privacy Priority Refer-Sub SIP-ETag"
    b" SIP-If-Match Security-Client Security-Server Security-Verify Session-ID X-Admission"
    b" P-Charging-Vector P-Charging-Function-Addresses P-Asserted-Service P-Preferred-Service"
    b" P-Early-Media P-Visited-Network-ID Identity-Info n Recv-Info Info-Package Flow-Timer"
    b" Request-Disposition d Answer-Mode Priv-Answer-Mode"
).split()


_Handler = Callable[["_Head", bytes], bytes]
_KNOWN: Final = frozenset(
    name.lower()
    for names in (
        *(_ADDRESSES, _SENDERS, _RECEIVERS, _ROUTES, _CREDENTIALS, _PASSPORTS),
        *(_QUOTING, _CONTENT, _IMPERSONAL),
    )
    for name in names
)


def _is_header(line: bytes) -> bool:
    name, colon, _ = line.partition(b":")
    return bool(colon) and name.strip().lower() in _KNOWN


def _spelled(names: list[bytes]) -> set[bytes]:
    return {how for name in names for how in (name, name.lower(), name.upper(), name.title())}


# -------------------------------------------------------------------------------- messages, bodies

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_C_OR_E: Final = frozenset({b"c", b"C", b"e", b"E"})
_SPACE: Final = frozenset({b" ", b"\t"})
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_STATUS: Final = re.compile(rb"(SIP/2\.0[ \t]+[1-6][0-9][0-9])(\s.*)?\Z", re.IGNORECASE | re.DOTALL)
_PHRASES: Final = frozenset(
    {
        b"OK", b"Ringing", b"Trying", b"trying -- your call is important to us", b"Not Found",
        b"Session Progress", b"Unauthorized", b"Proxy Authentication Required", b"Busy Here",
    }
)  # fmt: skip
"""The usual reason phrases, which name nobody."""
_REQUEST: Final = re.compile(
    rb"([A-Za-z0-9.!%*_+`'~-]{1,64}[ \t]+)(\S.*)([ \t]SIP/2\.0\s*)\Z", re.IGNORECASE | re.DOTALL
)
_PLAIN: Final = frozenset({b"", b"identity", b"7bit", b"8bit", b"binary"})
_BOUNDARY: Final = re.compile(
    rb';\s*boundary[ \t]*+=[ \t]*+(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE
)
_HOLDS_NUMBERS: Final = re.compile(rb"application/(?:isup|qsig)|isdn")
"""Types of signalling that carries the numbers of both sides in a coding of its own."""
_SDP: Final = re.compile(rb"(?:[a-z]=[^\n]*+(?:\n|\Z)|\r?\n)*+")
_TELLING: Final = re.compile(rb"\n[eip]=")
_USUAL_ORIGIN: Final = re.compile(rb"\no=(\S++)(?: \S++){5}\r?\n")
_ORIGIN: Final = re.compile(rb"(" + _LINE_START + rb'o=)([^\r\n\\"]++)')
_CONTACTS: Final = re.compile(rb"(" + _LINE_START + rb'[ep]=)([^\r\n\\"]++)')
_TITLES: Final = re.compile(rb"(" + _LINE_START + rb'[si]=)(?!-[\r\n\\])([^\r\n\\"]++)')
_CNAME: Final = re.compile(rb'( cname:)([^\s"\\]++)')
_DESCRIPTION: Final = re.compile(rb'("text"\s{0,9}:\s{0,9}")([^"\\]*+)')


def _lines_of(head: bytes) -> list[bytes]:
    """The lines of a head as the parser reads them; what it does not read is blanked."""
    lines = head.split(b"\n")
    for line in lines[1 : sip.MAX_LINES]:
        if line[:1] in _SPACE:
            lines = _FOLD.sub(b" ", head).split(b"\n")
            break
    if len(lines) > sip.MAX_LINES:
        lines[sip.MAX_LINES :] = map(_starred, lines[sip.MAX_LINES :])
    return lines


def _content_of(lines: list[bytes]) -> tuple[bytes, bytes]:
    """The first content type and all content codings that header lines tell."""
    content_type: bytes | None = None
    coding = b""
    for line in lines:
        if line[:1] in _C_OR_E:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name in {b"content-type", b"c"} and content_type is None:
                content_type = value.strip()
            elif name in {b"content-encoding", b"content-transfer-encoding", b"e"}:
                coding += value.strip().lower()
    return content_type or b"", coding


def _hide_lines(body: bytes, mark: bytes, hide: Callable[[bytes], bytes]) -> bytes:
    """Hide what follows a mark on its line."""
    at = body.find(mark)
    if at < 0:
        return body
    parts: list[bytes] = []
    start = 0
    while at >= 0:
        begin = at + len(mark)
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        parts += body[start:begin], hide(body[begin:end])
        start = end
        at = body.find(mark, end)
    return b"".join((*parts, body[start:]))


def _without_username(origin: bytes) -> bytes:
    """Blank the username of an o-line: what stands before its last five fields."""
    fields = origin.rsplit(maxsplit=5)
    username = fields[0] if len(fields) == 6 else origin
    if username == b"-":
        return origin
    return username.translate(_WORD_STARS) + origin[len(username) :]


def _hide_origin(match: re.Match[bytes]) -> bytes:
    return match[1] + _without_username(match[2])


def _without_title(title: bytes) -> bytes:
    return title if title.strip() in {b"", b"-"} else _starred(title)


def _hide_descriptions(report: bytes) -> bytes:
    """Blank the texts of RTCP's source descriptions (RFC 3550 6.5): names, addresses, numbers."""
    data = bytearray(report)
    start = 0
    while start + 4 <= len(data):
        stop = min(start + 4 + 4 * int.from_bytes(data[start + 2 : start + 4]), len(data))
        at = start + 8 if data[start + 1] == 202 else stop  # behind the first source's number
        while at + 2 <= stop:
            if data[at] == 0:  # up to a multiple of four, then the next source's number
                at = (at & ~3) + 8
            else:
                end = min(at + 2 + data[at + 1], stop)
                data[at + 2 : end] = b"*" * (end - at - 2)
                at = end
        start = stop
    return bytes(data)


class Mask:
    """Masks payloads the way it was told to: without settings, DTMF digits and media keys."""

    def __init__(
        self,
        key: bytes = b"",
        *,
        users: bool = False,
        names: bool = False,
        bodies: bool = False,
        keep_dtmf: bool = False,
        keep_media_keys: bool = False,
    ) -> None:
        if (users or names) and len(key) < MIN_KEY:
            raise ValueError(f"masking users or names needs a key of at least {MIN_KEY} bytes")
        self._key = key
        self.users = users
        self.names = names
        self.bodies = bodies
        self._dtmf = not keep_dtmf
        self._media_keys = not keep_media_keys
        self._people = users or names
        self._seen_uri = functools.lru_cache(CACHED)(self._masked_uri)
        self._seen_name = functools.lru_cache(CACHED)(self._masked_name)
        self.address = functools.lru_cache(CACHED)(self._masked_address)
        self._idle = not (self._dtmf or self._media_keys or users or names or bodies)
        self._handlers = self._handlers_by_name()
        self._heads_stay = not self._handlers
        self._other = _Head.later if self._people else None

    def _handlers_by_name(self) -> dict[bytes, _Handler | None]:
        handlers: dict[bytes, _Handler | None] = {}

        def put(names: list[bytes], handler: _Handler | None) -> None:
            handlers.update(dict.fromkeys(_spelled(names), handler))

        if self._people:
            put(_IMPERSONAL, None)
            put(_ADDRESSES, _Head.addresses)
            put(_SENDERS, _Head.sender)
            put(_RECEIVERS, _Head.receiver)
            put(_ROUTES, _Head.route)
            put(_QUOTING, _Head.later_quoted)
        if self.users:
            put(_CREDENTIALS, _Head.credentials)
            put(_PASSPORTS, _Head.blank)
        if self.bodies:
            put(_CONTENT, _Head.blank)
        return handlers

    def user(self, text: str) -> str:
        """Give the token that stands for a user in records and rows; a token is its own."""
        return self.token(text.encode("utf-8", "surrogatepass")).decode()

    def payload(self, kind: hep.Kind, payload: bytes) -> bytes:
        """Turn a payload of HEP into what may be kept of it. Never raises.

        What is sent as SIP is read as SIP, whether it is SIP or not.
        """
        if self._idle:
            return payload
        if kind is not _SIP:
            return self._foreign(kind, payload)
        # By far most messages hold neither DTMF nor a key: this is what they cost.
        if self._heads_stay and payload[:4] in _NO_DTMF:
            if payload.endswith(b"\r\nContent-Length: 0\r\n\r\n"):
                return payload
            end = payload.find(b"\r\n\r\n")
            if end == len(payload) - 4 and payload[payload.find(b"\n") - 1] == 0x0D:
                return payload  # no body
            if end > 0 and payload.startswith(b"v=", end + 4):
                may = payload.find(b"y", end) > 0 or payload.find(b"k", end) > 0
                if not may or not any(payload.find(mark, end) > 0 for mark, _ in _MEDIA_KEYS):
                    return payload
        return self._sip(payload)

    # -- tokens, URIs and names

    def token(self, user: bytes) -> bytes:
        """Give the token of a user as it stands in a URI, without its password."""
        plain = canonical_user(user)
        return plain if _TOKEN.fullmatch(plain) else b"m" + self._digest(plain)

    def _digest(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")[:8].hex().encode()

    def uri(self, raw: bytes) -> tuple[bytes, bytes, _Words]:
        """Turn what stands where one URI should into its masked form; give its user and words."""
        return (self._seen_uri if len(raw) <= MAX_CACHED else self._masked_uri)(raw)

    def _masked_uri(self, raw: bytes) -> tuple[bytes, bytes, _Words]:
        before, user, after = _parts_of_uri(raw)
        if not user:
            return before + self.parameters(after), b"", ()
        token = self.token(user)
        return before + token + self.parameters(after), user, _words_of(user, token)

    def _masked_address(self, raw: bytes) -> tuple[bytes, _Words] | None:
        """Turn an address up to its `>` into its masked form, and give the words that it masks.

        None when it is not of the usual shape.
        """
        usual = _USUAL.fullmatch(raw)
        if not usual:
            return None
        quoted, bare, uri = usual.groups()
        before, user = raw[: usual.start(3)], b""
        words: _Words = ()
        if self.users:
            uri, user, words = self.uri(uri)
        name = quoted or (bare and bare.strip())
        shown = self.name(name, user) if name else name
        if shown != name:
            before = b' "' + shown + b'" <'
            words += _words_of(name, shown) if self.names else ()
        return before + uri + b">", words

    def parameters(self, tail: bytes) -> bytes:
        """Mask what the parameters of a URI or an address say of users."""
        if self.users and (b"=" in tail or b":" in tail or b"%" in tail):
            tail = self.text(_CARRIERS.sub(_star_second, tail))
        return tail

    def name(self, raw: bytes, user: bytes) -> bytes:
        """Turn a display name without its quotes, and the user of its URI, into what is kept."""
        if len(raw) + len(user) <= MAX_CACHED:
            return self._seen_name(raw, user)
        return self._masked_name(raw, user)

    def _masked_name(self, raw: bytes, user: bytes) -> bytes:
        plain = _canonical_name(raw)
        if self.names:
            return plain if _TOKEN.fullmatch(plain) else b"n" + self._digest(plain)
        if user and canonical_user(plain).lstrip(b"+") == canonical_user(user).lstrip(b"+"):
            return self.token(user)  # many phones show the number for a name
        local, at, host = plain.rpartition(b"@")
        if at and b" " not in plain and not _SCHEMES.search(plain):
            return self.token(local) + at + host
        return self.text(raw)

    def text(self, text: bytes, *, stars: bool = False) -> bytes:
        """Mask the user of every URI in a text, by tokens or with stars of the same length."""
        if not self.users or (b":" not in text and b"%" not in text):
            return text
        lower = text.lower()
        found = sum(lower.count(scheme) for scheme in _SCHEME_WORDS)
        if not found:
            return text
        if found > MAX_ADDRESSES:
            return _starred(text)
        hide = _stars if stars else self._token_of_userinfo
        return _URIS.sub(lambda uris: _hide_users(uris[0], hide), text)

    def _token_of_userinfo(self, userinfo: bytes) -> bytes:
        return self.token(userinfo.partition(b":")[0])

    def rough(self, text: bytes) -> bytes:
        """Blank in bytes of unknown sense whatever may be a user or, in quotes, a name."""
        if self._people and text.count(b"@") + text.count(b'"') > MAX_ADDRESSES:
            return _starred(text)
        if self.users:
            text = self.text(text, stars=True)
            if b"@" in text:
                text = _BEFORE_AT.sub(_star_before_at, text)
            text = _LONG_NUMBER.sub(_star_all, text)
        if self.names:
            text = _QUOTED_ANYWHERE.sub(_star_quoted, text)
        return text

    # -- payloads

    def _foreign(self, kind: hep.Kind, payload: bytes) -> bytes:
        """Mask what is not SIP; no length changes, as in bencode lengths stand before texts."""
        if kind is hep.Kind.RTCP:
            return _hide_descriptions(payload) if self.users else payload
        if self._media_keys:
            payload = _hide_media_keys(payload)
        if self._dtmf and (b"ignal" in payload or b"igit" in payload):
            payload = _hide_named_digits(_SIGNAL.sub(_star_second, payload))
        if self.users and b"o=" in payload:
            payload = _CONTACTS.sub(_star_second, _ORIGIN.sub(_hide_origin, payload))
        if self.names and b"s=" in payload:
            payload = _TITLES.sub(_star_second, payload)
        if self.users and b'"sdes' in payload:
            payload = _DESCRIPTION.sub(_star_second, payload)
        if kind is hep.Kind.LOG:
            return self.rough(payload)
        return self.text(payload, stars=True)

    def _sip(self, payload: bytes) -> bytes:
        start = len(payload) - len(payload.lstrip(b"\r\n"))
        blank = _BLANK_LINE.search(payload, start)
        # Without a blank line it was cut in its head; the line that was cut is read by nobody.
        end = blank.start() if blank else max(payload.rfind(b"\n") + 1, start)
        lines = _lines_of(payload[start:end])
        request = _REQUEST.match(lines[0])
        status = None if request else _STATUS.match(lines[0])
        if not request and not status:
            return self._garbage(payload)
        if blank:
            informs = lines[0][:4].upper() in _DTMF_METHODS
            rest = payload[blank.start() : blank.end()]
            if blank.end() < len(payload):
                rest += self._body(lines, payload[blank.end() :], informs=informs)
        else:
            rest = self._cut_line(payload[end:])
        if self._heads_stay:
            return payload[:end] + rest
        head = _Head(self)
        if request and self.users:
            masked, _, words = self.uri(request[2])
            lines[0] = request[1] + masked + request[3]
            head.remember(words)
        self._mask_lines(lines, head)
        if status and self._people and status[2] and status[2].strip() not in _PHRASES:
            lines[0] = status[1] + head.free(status[2])
        return payload[:start] + b"\n".join(lines) + rest

    def _mask_lines(self, lines: list[bytes], head: "_Head") -> None:
        handlers, other = self._handlers, self._other
        waiting: list[tuple[int, _Handler, bytes, bytes]] = []
        for index, line in enumerate(lines[1 : sip.MAX_LINES], 1):
            name, colon, value = line.partition(b":")
            try:
                handler = handlers[name]
            except KeyError:
                handler = handlers.get(name.strip().lower(), other)
            if handler is None:
                continue
            if handler is _Head.later or handler is _Head.later_quoted:
                text = value if colon else line
                waiting.append((index, handler, line[: len(line) - len(text)], text))
            elif value and value != b"\r":
                lines[index] = name + b":" + handler(head, value)
        for index, handler, before, value in waiting:
            lines[index] = before + handler(head, value)

    def _cut_line(self, line: bytes) -> bytes:
        """Blank a header line whose end is missing: so may be the `@` that makes a user of it."""
        name, colon, value = line.partition(b":")
        if not self._people or self._handlers.get(name.strip().lower(), self._other) is None:
            return line
        return name + colon + _starred(value) if colon else _starred(line)

    def _garbage(self, payload: bytes) -> bytes:
        """Mask what has no start line: a part of a message, or anything."""
        if self._media_keys:
            payload = _hide_media_keys(payload)
        if self._dtmf:
            payload = _hide_named_digits(_SIGNAL.sub(_star_second, payload))
        blank = _BLANK_LINE.search(payload)
        end = blank.end() if blank else len(payload)
        lines = payload[:end].split(b"\n")
        if not any(_is_header(line) for line in lines[: sip.MAX_LINES]):
            end, lines = 0, []
        body = payload[end:]
        if self._dtmf and body:
            kind, coding = _content_of(lines)
            kind, coded = kind.partition(b";")[0].strip().lower(), coding not in _PLAIN
            body = self._without_dtmf(kind, body, coded=coded, informs=True)
            if not lines and _CUT_DTMF.fullmatch(body):
                body = _starred(body)
        body = _starred(body) if self.bodies else self.rough(body)
        if lines and self._handlers:
            lines = _lines_of(payload[:end])
            head = _Head(self)
            self._mask_lines(lines, head)
            lines[0] = self.rough(lines[0])
            for index, line in enumerate(lines[1 : sip.MAX_LINES], 1):
                if not _is_header(line):
                    lines[index] = self.rough(line)
        return b"\n".join(lines) + body

    # -- bodies

    def _body(self, lines: list[bytes], body: bytes, *, informs: bool) -> bytes:
        """A body of the same length; `lines` are the head's."""
        if self._media_keys:
            body = _hide_media_keys(body)
        if body.startswith(b"v=") and b"Content-Type: application/sdp\r" in lines:
            return self._sdp(body)
        kind, coding = _content_of(lines)
        return self._part(kind, coding, body, informs=informs, nesting=MAX_NESTING)

    def _part(
        self, content_type: bytes, coding: bytes, body: bytes, *, informs: bool, nesting: int
    ) -> bytes:
        kind = content_type.partition(b";")[0].strip().lower()
        coded = coding not in _PLAIN
        if kind.startswith(b"multipart/") or (not kind and body.startswith(b"--")):
            boundary = _BOUNDARY.search(content_type)
            if not nesting or coded or (self.bodies and not boundary):
                return _starred(body)
            mark = b"--" + (boundary[1] or boundary[2] if boundary else b"")
            return self._multipart(mark, body, informs=informs, nesting=nesting - 1)
        sdp = kind == b"application/sdp" or (not kind and body.startswith(b"v="))
        hidden = (informs and self._dtmf) or (sdp and self._media_keys) or self._people
        if coded and hidden:
            return _starred(body)  # nobody can look into it
        if self._dtmf and not sdp:
            body = self._without_dtmf(kind, body, coded=coded, informs=informs)
        if sdp and not coded:
            return self._sdp(body)
        if self.bodies or (self.users and _HOLDS_NUMBERS.search(kind)):
            return _starred(body)
        return self.text(body, stars=True)

    def _without_dtmf(self, kind: bytes, body: bytes, *, coded: bool, informs: bool) -> bytes:
        if _DTMF_TYPES.search(kind):
            return _hide_dtmf(body, coded=coded)
        body = _hide_named_digits(body)
        if informs or not kind:
            body = _SIGNAL.sub(_star_second, body)
        if informs and _DIGITS_ALONE.fullmatch(body):
            body = _starred(body)
        return body

    def _sdp(self, body: bytes) -> bytes:
        if self.bodies and not _SDP.fullmatch(body):
            if body.count(b"\n") > MAX_SDP_LINES:
                return _starred(body)
            body = _LINE.sub(
                lambda line: line[0] if _SDP.fullmatch(line[0]) else _stars(line[0]), body
            )
        telling = _TELLING.search(body)
        if self.users:
            origin = _USUAL_ORIGIN.search(body)
            if not origin or body.count(b"\no=") > 1:
                body = _hide_lines(body, b"\no=", _without_username)
            elif origin[1] != b"-":
                body = body[: origin.start(1)] + _stars(origin[1]) + body[origin.end(1) :]
            if telling:
                body = _hide_lines(_hide_lines(body, b"\ne=", _starred), b"\np=", _starred)
            if b"cname:" in body:
                body = _CNAME.sub(_star_second, body)
            if b"sip" in body or b"tel:" in body:
                body = self.text(body, stars=True)
        if self.names:
            if b"\ns=-\r" not in body or body.count(b"\ns=") > 1:
                body = _hide_lines(body, b"\ns=", _without_title)
            if telling:
                body = _hide_lines(body, b"\ni=", _without_title)
        return body

    def _multipart(self, mark: bytes, body: bytes, *, informs: bool, nesting: int) -> bytes:
        """Mask part by part; delimiters and the headers of parts stay."""
        lines = body.split(b"\n")
        masked: list[bytes] = []
        begin = parts = 0
        kind = coding = b""

        def close(end: int) -> None:
            if end > begin:
                content = b"\n".join(lines[begin:end])
                masked.append(self._part(kind, coding, content, informs=informs, nesting=nesting))

        index = 0
        while index < len(lines):
            if not lines[index].startswith(mark):
                index += 1
                continue
            close(index)
            begin = index
            while index < len(lines) and lines[index].strip():
                index += 1
            head = b"\n".join(lines[begin:index])
            kind, coding = _content_of(_FOLD.sub(b" ", head).split(b"\n"))
            if self.bodies:
                head = b"\n".join(
                    line if at == 0 or line.lower().startswith(b"content-") else _starred(line)
                    for at, line in enumerate(lines[begin:index])
                )
            masked.append(head)
            begin = index
            parts += 1
            if parts > MAX_PARTS:
                masked.append(_starred(b"\n".join(lines[begin:])))
                break
        else:
            close(len(lines))
        return b"\n".join(masked)


class _Head:
    """One head while it is masked: whom it has named, and how many addresses it has left."""

    __slots__ = ("_left", "_mask", "_named", "_receivers", "_senders", "_words")

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._left = MAX_ADDRESSES
        self._senders = self._receivers = 0
        self._named: list[_Words] = []
        self._words: dict[bytes, bytes] | None = None

    def remember(self, words: _Words) -> None:
        """Take note of users and names, to find them in headers of any form."""
        self._named.append(words)

    def addresses(self, value: bytes) -> bytes:
        """One or more addresses with their parameters."""
        usual = self._usual(value)
        return self._list(value) if usual is None else usual

    def sender(self, value: bytes) -> bytes:
        """A From."""
        self._senders += 1
        usual = self._usual(value)
        return self._party(value, first=self._senders == 1) if usual is None else usual

    def receiver(self, value: bytes) -> bytes:
        """A To."""
        self._receivers += 1
        usual = self._usual(value)
        return self._party(value, first=self._receivers == 1) if usual is None else usual

    def _party(self, value: bytes, *, first: bool) -> bytes:
        """An address whose tag must stay; the parser looks at the first of each name."""
        masked = self._list(value)
        if first and (tag := _tag_of(value)) != _tag_of(masked):
            return _nobody_with_tag(value, tag)
        return masked

    def route(self, value: bytes) -> bytes:
        """Addresses of proxies, which seldom have users."""
        if b"@" in value or b"%" in value or b";vs" in value or b"tel:" in value:
            return self.addresses(value)
        return value

    def credentials(self, value: bytes) -> bytes:
        """Digest credentials without their user; others cannot be read, and may say all."""
        lower = value.lower()
        if not lower.lstrip().startswith(b"digest ") or lower.count(b"username") > 1:
            return self.blank(value)
        at = lower.find(b"username")
        found = _USERNAME.match(value, at) if at >= 0 else None
        if found:
            value = value[:at] + self._username(found) + value[found.end() :]
        return self._mask.text(value)

    def _username(self, match: re.Match[bytes]) -> bytes:
        user = _UNESCAPE.sub(rb"\1", match[2].strip(b'"')).rpartition(b"'")[2]
        local = (user.rpartition(b"@")[0] or user).rpartition(b":")[2]  # some write a URI
        if not local:
            return match[0]
        token = self._mask.token(local)
        self.remember(_words_of(local, token))
        return match[1] + b'"' + token + b'"'

    def blank(self, value: bytes) -> bytes:
        """Nothing of it."""
        return b" *" + value[len(value.rstrip()) :]

    def later(self, value: bytes) -> bytes:
        """A header of any form, when all addresses are known."""
        if b"<" in value and _SCHEMES.search(value):
            value = self._list(value)
        return self.free(value)

    def later_quoted(self, value: bytes) -> bytes:
        """A header that has in quotes what is for people; the rest is for machines."""
        self._left -= value.count(b'"')
        if self._left < 0:
            return _starred(value)
        if b'"' in value:
            value = _QUOTED_ANYWHERE.sub(lambda quoted: self.free(quoted[0]), value)
        return self._mask.text(value)

    def free(self, text: bytes) -> bytes:
        """Text of any form: URIs, tokens that tell who, and those whom the addresses named."""
        if self._mask.users:
            text = self._mask.text(text)
            if b"eyJ" in text:
                text = _JWT.sub(_star_all, text)
        words = self._words
        if words is None:  # headers of any form come last
            words = self._words = dict(pair for some in self._named[:MAX_WORDS] for pair in some)
        found = [word for word in words if word in text]
        for word in sorted(found, key=len, reverse=True) if found else ():
            text = _replace_word(text, word, words[word])
        return text

    def _usual(self, value: bytes) -> bytes | None:
        """One address in brackets, when it and its parameters are as they should be."""
        address, closed, after = value.partition(b">")
        if (
            not closed
            or len(address) > MAX_CACHED
            or len(after) > MAX_USUAL_PARAMETERS
            or (b":" in after or b"%" in after)  # there may be a URI in it
            or (b'"' in after or b"," in after or b"<" in after)
        ):
            return None
        seen = self._mask.address(address)
        if seen is None:
            return None
        self._named.append(seen[1])
        return seen[0] + after

    def _list(self, value: bytes) -> bytes:
        if len(value) > sip.MAX_VALUE:
            return self.blank(value)
        blanked = _without_quoted(value)
        separated = _ANGLED.sub(_blank, blanked) if b"<" in blanked else blanked
        masked: list[bytes] = []
        start = 0
        for part in separated.split(b","):
            end = start + len(part)
            self._left -= 1
            if self._left < 0:
                masked.append(_starred(value[start:]))
                break
            masked.append(self._address(value[start:end], blanked[start:end]))
            start = end + 1
        return b",".join(masked)

    def _address(self, text: bytes, blanked: bytes) -> bytes:
        """One address of any shape; in `blanked` its quoted strings are blanks."""
        mask = self._mask
        opening = blanked.find(b"<")
        if opening < 0:
            end = blanked.find(b";")
            raw = text[: end if end >= 0 else len(text)]
            plain = raw.strip()
            if not plain:
                return text
            masked = plain
            if mask.users:
                masked, _, words = mask.uri(plain)
                self.remember(words)
            elif b":" not in plain and b"@" not in plain and plain != b"*":
                masked = mask.name(plain.strip(b'"'), b"")  # a name that a comma cut off
            return b" " + masked + mask.parameters(text[len(raw.rstrip()) :])
        closing = blanked.find(b">", opening)
        closing = closing if closing >= 0 else len(text)
        before, uri, after = text[:opening], text[opening + 1 : closing], text[closing:]
        user = b""
        if mask.users:
            uri, user, words = mask.uri(uri)
            self.remember(words)
        name = before.strip()
        if len(name) > 1 and name[0] == name[-1] == 0x22:
            name = name[1:-1]
        if name:
            shown = mask.name(name, user)
            if shown != name:
                before = b' "' + shown + b'" '
                self.remember(_words_of(name, shown) if mask.names else ())
        return before + b"<" + uri + mask.parameters(after)
