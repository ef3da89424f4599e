"""SDP bodies (RFC 8866) to session descriptions: addresses, media, codecs, directions."""

import re
from functools import lru_cache
from typing import Final

import msgspec

from sipsidecar.wire import WireError

WHYS: Final = frozenset({"size", "lines", "media", "formats", "not-sdp"})
MAX_SIZE: Final = 65_535
MAX_LINES: Final = 2000
MAX_MEDIA: Final = 32
MAX_FORMATS: Final = 64
"""Formats of one m-line."""
MAX_FMTP: Final = 255
"""Characters of a format's parameters; longer ones are left out whole."""
MAX_RTPMAP: Final = 64
"""Characters of an rtpmap after its payload type."""
MAX_SSRCS: Final = 8
"""SSRCs of one m-line; those after them are left out."""
MAX_PARTS: Final = 16
MAX_NESTING: Final = 3

_STATIC: Final[dict[int, tuple[str, int | None, int]]] = {
    0: ("PCMU", 8000, 1), 3: ("GSM", 8000, 1), 4: ("G723", 8000, 1), 5: ("DVI4", 8000, 1),
    6: ("DVI4", 16000, 1), 7: ("LPC", 8000, 1), 8: ("PCMA", 8000, 1), 9: ("G722", 8000, 1),
    10: ("L16", 44100, 2), 11: ("L16", 44100, 1), 12: ("QCELP", 8000, 1), 13: ("CN", 8000, 1),
    14: ("MPA", 90000, 1), 15: ("G728", 8000, 1), 16: ("DVI4", 11025, 1), 17: ("DVI4", 22050, 1),
    18: ("G729", 8000, 1), 19: ("CN", 8000, 1), 25: ("CelB", 90000, 1), 26: ("JPEG", 90000, 1),
    28: ("nv", 90000, 1), 31: ("H261", 90000, 1), 32: ("MPV", 90000, 1), 33: ("MP2T", 90000, 1),
    34: ("H263", 90000, 1),
}  # fmt: skip
# Encoding names are case-insensitive: these are spelled as IANA has them, all others in capitals.
_SPELLING: Final = {
    name.lower(): name
    for name in ("opus", "speex", "iLBC", "telephone-event", "tone", "red", "rtx", "ulpfec", "nv")
}
_SPELLING["celb"] = "CelB"
_NOT_SPEECH: Final = frozenset({"telephone-event", "CN", "tone", "red", "rtx", "ulpfec"})
_DIRECTIONS: Final = frozenset({"sendrecv", "sendonly", "recvonly", "inactive"})

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,32}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]{1,253}", re.ASCII)


class SdpError(WireError):
    """A body that is not SDP, or goes over a limit; `why` is one of `WHYS`."""


class Codec(msgspec.Struct, frozen=True, gc=False):
    """One payload type of an m-line, in the words of its rtpmap or of RFC 3551's table."""

    payload_type: int
    name: str | None
    """None for a dynamic payload type without rtpmap."""
    clock_rate: int | None = None
    channels: int = 1
    fmtp: str | None = None


class MediaDescription(msgspec.Struct, frozen=True, gc=False):
    """One m-line with what belongs to it; what the media level leaves open is the session's."""

    kind: str
    """audio, video, image, ..."""
    port: int
    """0 for a rejected or disabled stream."""
    protocol: str
    formats: tuple[str, ...]
    codecs: tuple[Codec, ...] = ()
    """Of an RTP m-line, in order of preference."""
    connection: str | None = None
    """Address of the c-line as it stands, without TTL; it may be a host name."""
    direction: str = "sendrecv"
    ptime_ms: int | None = None
    crypto: bool = False
    """An a=crypto line (RFC 4568)."""
    fingerprint: bool = False
    """An a=fingerprint line (DTLS, RFC 8122)."""
    candidates: bool = False
    """An a=candidate line (ICE, RFC 8839)."""
    rtcp_mux: bool = False
    rtcp_port: int | None = None
    """Of a=rtcp (RFC 3605)."""
    rtcp_address: str | None = None
    ssrcs: tuple[int, ...] = ()
    """Of a=ssrc (RFC 5576), once each; at most MAX_SSRCS."""


class SessionDescription(msgspec.Struct, frozen=True, gc=False):
    """An offer or an answer."""

    media: tuple[MediaDescription, ...]
    origin: str | None = None
    """Address of the o-line."""
    connection: str | None = None
    """Address of the session's c-line."""
    direction: str | None = None
    """Of the session level, None when it says nothing."""


class _Level:
    """What the lines of the session or of one m-line say, while they are being read."""

    def __init__(self, media: tuple[str, int, str, list[str]] | None = None) -> None:
        self.media = media
        self.connection: str | None = None
        self.direction: str | None = None
        self.ptime_ms: int | None = None
        self.rtpmap: dict[int, tuple[str, int | None, int]] = {}
        self.fmtp: dict[int, str] = {}
        self.marks: set[str] = set()
        self.rtcp_port: int | None = None
        self.rtcp_address: str | None = None
        self.ssrcs: dict[int, None] = {}


def parse(body: bytes | str) -> SessionDescription:
    """Turn an SDP body into its description, or raise SdpError.

    Lines that make no sense are left out. Bytes are read as Latin-1, so that none is refused.
    """
    text = body if isinstance(body, str) else body.decode("latin-1")
    if len(text) > MAX_SIZE:
        raise SdpError("size")
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise SdpError("lines")
    session = level = _Level()
    levels: list[_Level] = []
    origin = None
    known = False
    for raw in lines:
        line = raw.rstrip()
        letter, value = line[:2], line[2:]
        if letter == "a=":
            _attribute(level, value)
        elif letter == "m=":
            if len(levels) == MAX_MEDIA:
                raise SdpError("media")
            # A bad m-line still ends the one before: its attributes must not count for that one.
            level = _Level(_media_line(value))
            levels.append(level)
            known = True
        elif letter == "c=":
            level.connection = level.connection or _address(value.split())
        elif letter == "o=":
            origin = origin or _address(value.split()[3:])
        elif letter == "v=":
            known = True
    if not known:
        raise SdpError("not-sdp")
    media = tuple(_media(session, each, each.media) for each in levels if each.media is not None)
    return SessionDescription(media, origin, session.connection, session.direction)


def _number(text: str, limit: int) -> int | None:
    """Read decimal digits only: int() would take spaces, signs, underscores, other scripts too."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= limit else None


def _address(fields: list[str]) -> str | None:
    """Read "IN IP4 192.0.2.1/127"."""
    if len(fields) < 3 or fields[0].upper() != "IN":
        return None
    address = fields[2].partition("/")[0]
    return address if _HOST.fullmatch(address) else None


def _media_line(value: str) -> tuple[str, int, str, list[str]] | None:
    fields = value.split()
    if len(fields) < 3 or not (value.isascii() and value.isprintable()):
        return None
    if len(fields) > 3 + MAX_FORMATS:
        raise SdpError("formats")
    port = _number(fields[1].partition("/")[0], 65_535)
    if port is None:
        return None
    return fields[0].lower(), port, fields[2].upper(), fields[3:]


def _attribute(level: _Level, attribute: str) -> None:
    name, _, value = attribute.partition(":")
    if name in _DIRECTIONS:
        level.direction = name
    elif name in {"crypto", "fingerprint", "candidate", "rtcp-mux"}:
        level.marks.add(name)
    elif name == "ptime":
        level.ptime_ms = _number(value.strip(), 1000) or None
    elif name == "rtcp":
        fields = value.split()
        if fields:
            level.rtcp_port = _number(fields[0], 65_535)
            level.rtcp_address = _address(fields[1:])
    elif name in {"rtpmap", "fmtp"}:
        number, _, rest = value.strip().partition(" ")
        payload_type = _number(number, 127)
        if payload_type is None:
            return
        if name == "fmtp":
            if len(rest) <= MAX_FMTP and rest.isprintable():
                level.fmtp.setdefault(payload_type, rest.strip())
        elif len(rest) <= MAX_RTPMAP and (mapped := _mapped(rest)):
            level.rtpmap.setdefault(payload_type, mapped)
    elif name == "ssrc" and len(level.ssrcs) < MAX_SSRCS:
        ssrc = _number(value.partition(" ")[0].rstrip(), 0xFFFFFFFF)
        if ssrc is not None:
            level.ssrcs[ssrc] = None


@lru_cache(maxsize=512)  # the same few stand in nearly every body
def _mapped(rtpmap: str) -> tuple[str, int | None, int] | None:
    """Read "opus/48000/2"."""
    name, _, rates = rtpmap.strip().partition("/")
    rate, _, channels = rates.partition("/")
    if not _NAME.fullmatch(name):
        return None
    spelled = _SPELLING.get(name.lower()) or name.upper()
    return spelled, _number(rate, 1_000_000), _number(channels, 255) or 1


def _media(
    session: _Level, level: _Level, line: tuple[str, int, str, list[str]]
) -> MediaDescription:
    kind, port, protocol, formats = line
    codecs = tuple(_codecs(level, formats)) if "RTP/" in protocol else ()
    marks = session.marks | level.marks
    return MediaDescription(
        kind,
        port,
        protocol,
        tuple(formats),
        codecs,
        level.connection or session.connection,
        level.direction or session.direction or "sendrecv",
        level.ptime_ms or session.ptime_ms,
        "crypto" in marks,
        "fingerprint" in marks,
        "candidate" in marks,
        "rtcp-mux" in marks,
        level.rtcp_port,
        level.rtcp_address,
        tuple(level.ssrcs),
    )


def _codecs(level: _Level, formats: list[str]) -> list[Codec]:
    codecs = []
    for each in formats:
        payload_type = _number(each, 127)
        if payload_type is not None:
            mapped = level.rtpmap.get(payload_type) or _STATIC.get(payload_type)
            name, clock_rate, channels = mapped or (None, None, 1)
            fmtp = level.fmtp.get(payload_type)
            codecs.append(Codec(payload_type, name, clock_rate, channels, fmtp))
    return codecs


def _accepted(description: SessionDescription) -> list[MediaDescription]:
    return [media for media in description.media if media.kind == "audio" and media.port]


def speech(media: MediaDescription, offered: MediaDescription | None = None) -> tuple[Codec, ...]:
    """Return the formats of an m-line that carry speech, in order of preference.

    An answer may leave out the rtpmap of a payload type: it then is what it was `offered` as, and
    what the offer does not name either stays without a name.
    """
    codecs = media.codecs
    if offered is not None:
        names = {codec.payload_type: codec for codec in offered.codecs}
        codecs = tuple(c if c.name else names.get(c.payload_type, c) for c in codecs)
    return tuple(codec for codec in codecs if codec.name not in _NOT_SPEECH)


def audio_codecs(description: SessionDescription) -> tuple[str, ...]:
    """Name the audio codecs in order of preference, once each, without telephone-event and CN."""
    names = (codec.name for media in _accepted(description) for codec in speech(media))
    return tuple(dict.fromkeys(name for name in names if name))


def negotiated(answer: SessionDescription) -> Codec | None:
    """Find the first real codec of an answer's first accepted audio m-line (RFC 3264).

    Its name is None when the answer leaves out the rtpmap: the offer's then holds.
    """
    first = next(iter(_accepted(answer)), None)
    return next(iter(speech(first)), None) if first else None


# --------------------------------------------------------------------------------------- multipart

_BOUNDARY: Final = re.compile(
    rb';[ \t\r\n]*boundary[ \t]*=[ \t]*(?:"([^"\r\n]{1,70})"|([^ \t\r\n;,"]{1,70}))', re.IGNORECASE
)
_BLANK_LINE: Final = re.compile(rb"(?:\A|\n)\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_PLAIN: Final = frozenset({b"7bit", b"8bit", b"binary"})


def body_of(content_type: str, body: bytes) -> bytes | None:
    """Return the application/sdp body, also out of a multipart one (RFC 2046), or None."""
    return _body_of(content_type.encode("latin-1", "replace"), body, MAX_NESTING)


def _body_of(content_type: bytes, body: bytes, nesting: int) -> bytes | None:
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type == b"application/sdp":
        return body
    boundary = _BOUNDARY.search(content_type)
    if not media_type.startswith(b"multipart/") or boundary is None or not nesting:
        return None
    for part in _parts(body, b"--" + (boundary[1] or boundary[2])):
        head, content = _split(part)
        if head.get(b"content-transfer-encoding", b"binary").lower() in _PLAIN:
            found = _body_of(head.get(b"content-type", b""), content, nesting - 1)
            if found is not None:
                return found
    return None


def _parts(body: bytes, delimiter: bytes) -> list[bytes]:
    """Return what stands between delimiter lines; the last may lack its own (a cut body)."""
    parts: list[bytes] = []
    start = None
    at = body.find(delimiter)
    while at >= 0 and len(parts) < MAX_PARTS:
        if at == 0 or body[at - 1] == 10:
            end = body.find(b"\n", at)
            end = len(body) if end < 0 else end
            tail = body[at + len(delimiter) : end].strip()
            if not tail or tail == b"--":
                if start is not None:
                    parts.append(body[start:at].removesuffix(b"\n").removesuffix(b"\r"))
                if tail:
                    return parts
                start = end + 1
        at = body.find(delimiter, at + len(delimiter))
    if start is not None and len(parts) < MAX_PARTS:
        parts.append(body[start:])
    return parts


def _split(part: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Split a part into its headers, names in small letters, and its content."""
    blank = _BLANK_LINE.search(part)
    start, end = blank.span() if blank else (len(part), len(part))
    head: dict[bytes, bytes] = {}
    for line in _FOLD.sub(b" ", part[:start]).split(b"\n"):
        name, _, value = line.partition(b":")
        head.setdefault(name.strip().lower(), value.strip())
    return head, part[end:]
