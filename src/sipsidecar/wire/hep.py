"""HEP datagrams (versions 1, 2 and 3) to packets and back, and HEP3 frames out of a TCP stream."""

import ipaddress
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from sipsidecar.wire import WireError

WHYS: Final = frozenset({"not-hep", "length", "chunk", "address", "inflate", "stream"})
MAX_INFLATED: Final = 256 * 1024
"""Bytes that a compressed payload (chunk 0x10) may grow to."""
MAX_GARBAGE: Final = 65_535
"""Bytes without a HEP3 mark after which a TCP peer is given up: the longest frame there is."""
MAX_LAYOUTS: Final = 64
"""Chunk layouts remembered for the fast path; the memory is emptied when full."""

_MARKS: Final = (b"HEP3", b"EEP3", b"EEP1")  # all three carry the same chunks
_MARK: Final = re.compile(b"HEP3|EEP3|EEP1")
_CHUNK: Final = struct.Struct(">HHH")  # vendor, type, length with these six bytes
_LOG_TEXT: Final = 100  # Kamailio's hlog()


class HepError(WireError):
    """A datagram or stream that is not HEP; `why` is one of `WHYS`."""


class Kind(IntEnum):
    """What a payload is, by its own bytes."""

    SIP = 1
    JSON = 2
    RTCP = 3
    NG = 4
    KEEP_ALIVE = 5
    STUN = 6
    LOG = 7
    EMPTY = 8
    OTHER = 9


class Packet(msgspec.Struct, frozen=True, gc=False):
    """One mirrored packet and what its capture agent says about it."""

    version: int
    source: bytes
    """Packed address, 4 or 16 bytes; empty when absent, or when it is sofia-sip's broken IPv6."""
    destination: bytes
    source_port: int
    """0 when absent, as for `ip_protocol` and `protocol_type`: no real one has that number."""
    destination_port: int
    ip_protocol: int
    captured_at: int | None
    """Microseconds UTC by the agent's clock; None in HEPv1 and when a chunk of it is missing or 0."""
    protocol_type: int
    agent_id: int | None
    auth_key: bytes | None
    correlation_id: bytes | None
    node_name: bytes | None
    payload: bytes
    kind: Kind
    trailing: int = 0
    """Bytes after the declared end of the packet, left unread."""
    overdeclared: bool = False
    """The packet declares more bytes than came; a payload that runs over the end is cut there."""
    inflated: bool = False


# ---------------------------------------------------------------------------------------- payloads

_SIP_URI_REQUEST: Final = re.compile(
    rb"[A-Za-z0-9.!%*_+`'~-]{1,32} (?:sips?|tel|urn):", re.IGNORECASE
)
_TOKEN_AND_SPACE: Final = re.compile(rb"[A-Za-z0-9.!%*_+`'~-]{1,32} ")
_NG: Final = re.compile(rb"(?:[!-~]{1,128} )?d[0-9]{1,5}:|[!-~]{1,128} \{")
_STUN_COOKIE: Final = b"\x21\x12\xa4\x42"

_SIP, _JSON, _RTCP, _NG_KIND, _KEEP_ALIVE, _STUN, _LOG, _EMPTY, _OTHER = Kind


def sniff(payload: bytes, protocol_type: int) -> Kind:
    """Tell what a payload is: by content first, since agents give types different meanings."""
    if payload.startswith(b"SIP/2.0 "):
        return _SIP
    if protocol_type != _LOG_TEXT and _SIP_URI_REQUEST.match(payload):
        return _SIP  # also when cut inside its start line
    if not payload:
        return _EMPTY
    if not payload.strip(b"\r\n\0"):
        return _KEEP_ALIVE
    text = payload.lstrip(b"\r\n")  # RFC 3261 7.5
    if _is_start_line(text) or (protocol_type != _LOG_TEXT and _SIP_URI_REQUEST.match(text)):
        return _SIP
    if protocol_type == _LOG_TEXT:
        return _LOG
    if text.lstrip()[:1] == b"{":
        return _JSON
    first = payload[0]
    if 0x80 <= first <= 0xBF and len(payload) >= 4 and 200 <= payload[1] <= 207:
        return _RTCP
    if first <= 0x3F and len(payload) >= 20 and payload[4:8] == _STUN_COOKIE:
        return _STUN
    if _NG.match(payload):
        return _NG_KIND
    return _OTHER


def _is_start_line(text: bytes) -> bool:
    if text[:8].upper() == b"SIP/2.0 ":
        return True
    if _TOKEN_AND_SPACE.match(text) is None:
        return False
    end = text.find(b"\n")
    line = text if end < 0 else text[:end]
    return line.rstrip()[-8:].upper() == b" SIP/2.0"


# ---------------------------------------------------------------------------------------- decoding


def decode(datagram: bytes, *, now_seconds: int | None = None) -> Packet:
    """Turn one HEP datagram into its packet, or raise HepError.

    `now_seconds` (UTC) only serves to tell the byte order of HEPv2's time.
    """
    if datagram[:4] in _MARKS:
        return _decode3(datagram, _layouts)
    return _decode12(datagram, now_seconds)


def _decode12(datagram: bytes, now_seconds: int | None) -> Packet:
    version, length, family = datagram[:3].ljust(3, b"\0")
    if version not in {1, 2} or family not in {2, 10}:
        raise HepError("not-hep")
    size = 4 if family == 2 else 16
    end = 8 + 2 * size
    # Kamailio and OpenSIPS leave the time header out of the length, sofia-sip counts it in.
    if length != end and (version == 1 or length not in {end + 10, end + 12}):
        raise HepError("not-hep")
    captured_at = agent_id = None
    start = end
    if version == 2:
        start = end + 12
    if len(datagram) < start:
        raise HepError("length")
    protocol, source_port, destination_port = struct.unpack_from(">BHH", datagram, 3)
    if version == 2:
        captured_at, agent_id = _time2(datagram[end:start], now_seconds)
        # Ten bytes instead of twelve: a writer that packed the C struct. A known method is asked
        # for, because the tail of any method is a token too ("INVITE" gives "VITE" at +12).
        if _KNOWN_START.match(datagram, end + 10):
            start = end + 10
    payload = datagram[start:]
    return Packet(
        version,
        _address(datagram[8 : 8 + size]),
        _address(datagram[8 + size : end]),
        source_port,
        destination_port,
        protocol,
        captured_at,
        1,
        agent_id,
        None,
        None,
        None,
        payload,
        sniff(payload, 1),
    )


_KNOWN_START: Final = re.compile(
    rb"(?:INVITE|ACK|BYE|CANCEL|OPTIONS|REGISTER|PRACK|SUBSCRIBE|NOTIFY|PUBLISH|INFO|REFER"
    rb"|MESSAGE|UPDATE|SIP/2\.0) "
)


def _time2(header: bytes, now_seconds: int | None) -> tuple[int | None, int]:
    little = struct.unpack_from("<IIH", header)
    big = struct.unpack_from(">IIH", header)
    # The struct is sent in host order: little-endian unless only big-endian makes sense.
    chosen = little
    if not _plausible(little[0], now_seconds) and _plausible(big[0], now_seconds):
        chosen = big
    return _time(chosen[0], chosen[1]), chosen[2]


def _plausible(seconds: int, now_seconds: int | None) -> bool:
    if now_seconds is None:
        return 946_684_800 <= seconds < 4_102_444_800  # the years 2000 to 2099
    return abs(seconds - now_seconds) <= 86_400


def _time(seconds: int | None, micros: int | None) -> int | None:
    if not seconds or micros is None or micros >= 1_000_000:
        return None
    return seconds * 1_000_000 + micros


def _address(packed: bytes) -> bytes:
    # sofia-sip copies four bytes of a sockaddr_in into its IPv6 addresses; the rest stays zero.
    return b"" if len(packed) == 16 and packed.endswith(bytes(12)) else packed


class _Layout(NamedTuple):
    """The run of fixed-size chunks that a kind of agent begins each packet with."""

    end: int
    unpack_from: Callable[[bytes, int], tuple[Any, ...]]
    headers: tuple[bytes, ...]
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]


_layouts: dict[bytes, _Layout] = {}
_FIXED: Final = {
    1: "B", 2: "B", 3: "4s", 4: "4s", 5: "16s", 6: "16s", 7: "H", 8: "H",
    9: "I", 10: "I", 11: "B", 12: "I",
}  # fmt: skip


def _decode3(datagram: bytes, layouts: dict[bytes, _Layout]) -> Packet:
    size = len(datagram)
    if size < 6:
        raise HepError("length")
    declared = datagram[4] << 8 | datagram[5]
    if declared < 6:
        raise HepError("length")
    overdeclared = declared > size
    end = size if overdeclared else declared
    hint = datagram[20:26]  # the third chunk's header in the usual order; any six bytes would do
    layout = layouts.get(hint)
    if layout is not None and layout.end <= end:
        values = layout.unpack_from(datagram, 6)
        if values[::2] == layout.headers:
            chunks = _chunks(datagram, layout.end, end, overdeclared)
            if chunks.keys().isdisjoint(_FIXED):
                return _packet3(layout.pick(values), chunks, size - end, overdeclared)
    chunks = _chunks(datagram, 6, end, overdeclared)
    packet = _packet3(_fixed(chunks), chunks, size - end, overdeclared)
    layout = _layout(datagram, end)
    if layout is not None:
        if len(layouts) >= MAX_LAYOUTS:
            layouts.clear()
        layouts[hint] = layout
    return packet


def _chunks(datagram: bytes, offset: int, end: int, overdeclared: bool) -> dict[int, bytes]:
    """Return the generic chunks by type: the first of a type; other vendors' are skipped."""
    found: dict[int, bytes] = {}
    while offset < end:
        if end - offset < 6:
            raise HepError("chunk")
        vendor, kind, length = _CHUNK.unpack_from(datagram, offset)
        stop = offset + length
        if length < 6:
            raise HepError("chunk")
        if stop > end:
            # sofia-sip counts a payload that it then cuts or leaves out.
            if not overdeclared or vendor or kind != 0x0F:
                raise HepError("length" if overdeclared else "chunk")
            stop = end
        if not vendor and kind not in found:
            found[kind] = datagram[offset + 6 : stop]
        offset = stop
    return found


def _fixed(chunks: dict[int, bytes]) -> tuple[Any, ...]:
    """Return protocol, addresses, ports, seconds, microseconds, type, agent id, where present."""

    def number(kind: int, size: int) -> int | None:
        value = chunks.get(kind)
        if value is None:
            return None
        if len(value) != size:
            raise HepError("chunk")
        return int.from_bytes(value, "big")

    def address(kind4: int, kind6: int) -> bytes:
        value = chunks.get(kind4)
        size = 4
        if value is None:
            value = chunks.get(kind6, b"")
            size = 16
        if value and len(value) != size:
            raise HepError("address")
        return value

    return (
        number(2, 1) or 0,
        address(3, 5),
        address(4, 6),
        number(7, 2) or 0,
        number(8, 2) or 0,
        number(9, 4),
        number(10, 4),
        number(11, 1) or 0,
        number(12, 4),
    )


def _packet3(
    fixed: tuple[Any, ...], chunks: dict[int, bytes], trailing: int, overdeclared: bool
) -> Packet:
    protocol, source, destination, sport, dport, seconds, micros, protocol_type, agent_id = fixed
    payload = chunks.get(0x0F)
    inflated = False
    if payload is None:
        payload = b""
        if 0x10 in chunks:
            payload = _inflate(chunks[0x10])
            inflated = True
    kind = sniff(payload, protocol_type)
    if kind is _EMPTY and 0x0D in chunks:
        kind = _KEEP_ALIVE
    return Packet(
        3,
        _address(source),
        _address(destination),
        sport,
        dport,
        protocol,
        _time(seconds, micros),
        protocol_type,
        agent_id,
        chunks.get(0x0E),
        chunks.get(0x11),
        chunks.get(0x13),
        payload,
        kind,
        trailing,
        overdeclared,
        inflated,
    )


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, by its first bytes
    try:
        payload = inflater.decompress(data, MAX_INFLATED)
    except zlib.error:
        raise HepError("inflate") from None
    if not inflater.eof:  # cut, or a bomb
        raise HepError("inflate")
    return payload


def _layout(datagram: bytes, end: int) -> _Layout | None:
    """Return the layout of a readable packet, when all nine common chunks are in it."""
    offset = 6
    form = ">"
    headers: list[bytes] = []
    place: dict[int, int] = {}
    while end - offset >= 6:
        vendor, kind, length = _CHUNK.unpack_from(datagram, offset)
        code = _FIXED.get(kind)
        if vendor or code is None or kind in place or length != 6 + struct.calcsize(code):
            break
        place[kind] = 2 * len(headers) + 1
        headers.append(datagram[offset : offset + 6])
        form += "6s" + code
        offset += length
    wanted = [2, 3 if 3 in place else 5, 4 if 4 in place else 6, 7, 8, 9, 10, 11, 12]
    if not all(kind in place for kind in wanted):
        return None
    pick = itemgetter(*(place[kind] for kind in wanted))
    return _Layout(offset, struct.Struct(form).unpack_from, tuple(headers), pick)


# ---------------------------------------------------------------------------------------- encoding


def encode(
    *,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
    payload: bytes,
    version: int = 3,
    ip_protocol: int = 17,
    captured_at: int | None = None,
    protocol_type: int = 1,
    agent_id: int | None = None,
    auth_key: bytes | None = None,
    correlation_id: bytes | None = None,
    node_name: bytes | None = None,
    extra: Iterable[tuple[int, int, bytes]] = (),
    compress: bool = False,
) -> bytes:
    """Build the datagram that `decode` reads back; versions 1 and 2 hold fewer fields.

    `extra` are further chunks as (vendor, type, value). HepError "address" or "length" when the
    packet cannot be said in that version.
    """
    seconds, micros = divmod(captured_at or 0, 1_000_000)
    family = 10 if 16 in {len(source), len(destination)} else 2
    if version != 3:
        size = 16 if family == 10 else 4
        if len(source) != size or len(destination) != size:
            raise HepError("address")
        datagram = struct.pack(
            ">BBBBHH", version, 8 + 2 * size, family, ip_protocol, source_port, destination_port
        )
        datagram += source + destination
        if version == 2:
            datagram += struct.pack("<IIHxx", seconds, micros, agent_id or 0)
        return datagram + payload
    chunks: list[tuple[int, int, bytes | None]] = [
        (0, 1, bytes((family,))),
        (0, 2, bytes((ip_protocol,))),
        (0, 5 if len(source) == 16 else 3, source or None),
        (0, 6 if len(destination) == 16 else 4, destination or None),
        (0, 7, source_port.to_bytes(2, "big")),
        (0, 8, destination_port.to_bytes(2, "big")),
        (0, 9, None if captured_at is None else seconds.to_bytes(4, "big")),
        (0, 10, None if captured_at is None else micros.to_bytes(4, "big")),
        (0, 11, bytes((protocol_type,))),
        (0, 12, None if agent_id is None else agent_id.to_bytes(4, "big")),
        (0, 0x11, correlation_id),
        (0, 0x0E, auth_key),
        (0, 0x13, node_name),
        *extra,
        (0, 0x10, zlib.compress(payload)) if compress else (0, 0x0F, payload),
    ]
    present = [(vendor, kind, value) for vendor, kind, value in chunks if value is not None]
    length = 6 + sum(6 + len(value) for _, _, value in present)
    if length > 65_535:
        raise HepError("length")
    body = (_CHUNK.pack(vendor, kind, 6 + len(value)) + value for vendor, kind, value in present)
    return b"HEP3" + length.to_bytes(2, "big") + b"".join(body)


# ------------------------------------------------------------------------------------------- words

_TRANSPORTS: Final[dict[tuple[int, str | None], str]] = {
    (6, None): "tcp", (6, "tls"): "tls", (6, "ws"): "ws", (6, "wss"): "wss",
    (17, None): "udp", (132, None): "sctp",
    (22, None): "tls", (22, "ws"): "ws", (22, "wss"): "wss",  # Kamailio's number for all three
    (50, None): "ws", (50, "wss"): "wss",  # OpenSIPS
}  # fmt: skip


def transport_name(ip_protocol: int, via_transport: str | None) -> str | None:
    """Name udp, tcp, tls, ws, wss or sctp by HEP's protocol number and the top Via, or None."""
    if via_transport is not None:
        name = _TRANSPORTS.get((ip_protocol, via_transport.lower()))
        if name is not None:
            return name
    return _TRANSPORTS.get((ip_protocol, None))


@lru_cache(maxsize=8192)
def address_text(packed: bytes) -> str | None:
    """Write a packed address, an IPv4-mapped one as the IPv4 address it is; None for no address."""
    if packed[:12] == b"\0\0\0\0\0\0\0\0\0\0\xff\xff":
        packed = packed[12:]
    if len(packed) == 4:
        return "{}.{}.{}.{}".format(*packed)
    return str(ipaddress.IPv6Address(packed)) if len(packed) == 16 else None


def packed_address(text: str | None) -> bytes:
    """Return the packed form of an address's text; the unspecified IPv4 address for None."""
    return ipaddress.ip_address(text or "0.0.0.0").packed  # noqa: S104 -- no address, not a listener


# --------------------------------------------------------------------------------------------- TCP


class HepStream:
    """The HEP3 frames of one TCP connection: back to back, many per read and split anywhere."""

    def __init__(self) -> None:
        self.skipped = 0
        """Bytes thrown away while looking for a mark."""
        self._held = bytearray()
        self._garbage = 0  # of `skipped`, those since the last whole frame

    @property
    def pending(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now; HepError "stream" if the peer speaks no HEP3.

        Frames before the garbage are given first; the next call then raises.
        """
        held = self._held
        held += data
        frames: list[bytes] = []
        while len(held) >= 4:
            length = held[4] << 8 | held[5] if len(held) >= 6 else 6
            if bytes(held[:4]) not in _MARKS or length < 6:
                self._resynchronise()
                continue
            if len(held) < 6 or len(held) < length:
                break
            frames.append(bytes(held[:length]))
            del held[:length]
            self._garbage = 0
        if self._garbage > MAX_GARBAGE and not frames:
            raise HepError("stream")
        return frames

    def _resynchronise(self) -> None:
        mark = _MARK.search(self._held, 1)
        # The last three bytes may begin a mark.
        skip = mark.start() if mark else len(self._held) - 3
        del self._held[:skip]
        self.skipped += skip
        self._garbage += skip
