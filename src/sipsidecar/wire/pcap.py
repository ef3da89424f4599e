"""pcap and pcapng files to UDP datagrams and TCP bytes in order, and datagrams to a pcap file."""

import heapq
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import msgspec

from sipsidecar.wire import WireError

WHYS: Final = frozenset({"not-pcap", "address"})
SKIPS: Final = frozenset(
    {"block", "link", "not-ip", "protocol", "malformed", "fragment", "duplicate", "gap", "streams"}
)
MAX_RECORD: Final = 1 << 20
"""Bytes of one captured packet; a file that claims more is corrupt from there on."""
MAX_INTERFACES: Final = 1024
MAX_FRAGMENTED: Final = 256
"""IP datagrams that wait for fragments; the oldest gives way."""
MAX_FRAGMENTS: Final = 128
"""Fragments of one IP datagram."""
MAX_STREAMS: Final = 4096
"""Directions of TCP connections that are followed; the one silent for longest gives way."""
MAX_SEGMENTS: Final = 1024
"""Segments held behind a gap of one stream before the gap is given up."""
MAX_AHEAD: Final = 1 << 25
"""Bytes held behind the gaps of all streams."""
GAP_PATIENCE_US: Final = 3_000_000
"""How long a missing segment is waited for, by the capture's time."""
MAX_JUMP: Final = 1 << 24
"""Bytes that a sequence number may be off; beyond, the ports belong to a new connection."""
MAX_PAYLOAD: Final = 65_507
"""Bytes of payload in a written record: the longest UDP datagram of IPv4."""

TCP: Final = 6
UDP: Final = 17


class PcapError(WireError):
    """A file that is no capture, or an address that is none; `why` is one of `WHYS`."""


class Captured(msgspec.Struct, frozen=True, gc=False):
    """A UDP datagram, or the next bytes of one direction of a TCP connection."""

    captured_at: int | None
    """Microseconds UTC; None when the file has no (sane) time for the packet.

    For bytes that had to wait for a missing segment: when they could be read in order.
    """
    protocol: int
    """`UDP` or `TCP`."""
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    payload: bytes


# ------------------------------------------------------------------------------------------- files

_MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1),
    b"\xa1\xb2\xc3\xd4": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1000),
}
_SECTION: Final = b"\x0a\x0d\x0d\x0a"
_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE_BLOCK, _SIMPLE_BLOCK, _ENHANCED_BLOCK = 1, 3, 6


class _Record(NamedTuple):
    captured_at: int | None
    link: int
    data: bytes


class _Interface(NamedTuple):
    link: int
    snap_length: int
    ticks: int  # per second
    offset: int  # seconds to add


class _Fragments:
    """The pieces of one IP datagram by their offset."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.length: int | None = None


class _Stream:
    """One direction of a TCP connection. Positions are sequence numbers that do not wrap."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.position = start
        self.ahead: list[tuple[int, int, int | None, bytes]] = []
        """Behind a gap: a heap of position, packet number, captured_at, bytes."""


_Flow = tuple[bytes, bytes, int, int]


class Reader:
    """The UDP datagrams and TCP bytes of a capture: iterate once; PcapError when it is no capture.

    Packets that the capture cut (snap length) are given as far as they go and counted in `cut`.
    `skipped` counts by the words of `SKIPS` what is not given: "duplicate" and "gap" are TCP's,
    "fragment" counts IP datagrams, "block" packets of a pcapng file. `truncated` tells afterwards
    that the file ends inside a record, or makes no sense from there on.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.packets = 0
        self.cut = 0
        self.skipped: Counter[str] = Counter()
        self.truncated = False
        self._file = file
        self._fragmented: OrderedDict[tuple[object, ...], _Fragments] = OrderedDict()
        self._streams: OrderedDict[_Flow, _Stream] = OrderedDict()
        self._ahead = 0  # bytes held by all streams
        magic = self._take(4)
        if magic == _SECTION:
            order = self._section(self._take(4))
            if order is None:
                raise PcapError("not-pcap")
            self._records = self._pcapng_records(order)
            return
        header = self._take(20)
        if magic not in _MAGICS or len(header) < 20:
            raise PcapError("not-pcap")
        order, divisor = _MAGICS[magic]
        link = int(struct.unpack_from(order + "I", header, 16)[0]) & 0xFFFF  # above it: FCS length
        self._records = self._pcap_records(order, divisor, link)

    def __iter__(self) -> Iterator[Captured]:
        for record in self._records:
            self.packets += 1
            packet = self._network(record)
            if packet is not None:
                yield from self._ip(record.captured_at, packet)
        for flow, stream in self._streams.items():
            yield from self._give_up(flow, stream)
        self._streams.clear()
        for _ in self._fragmented:
            self.skipped["fragment"] += 1
        self._fragmented.clear()

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more  # a pipe gives less than was asked for
        return data

    def _pcap_records(self, order: str, divisor: int, link: int) -> Iterator[_Record]:
        header = struct.Struct(order + "IIII")
        while head := self._take(16):
            if len(head) < 16:
                break
            seconds, fraction, size, original = header.unpack(head)
            data = self._take(size) if size <= MAX_RECORD else b""
            if len(data) < size:
                break
            self.cut += size < original
            yield _Record(seconds * 1_000_000 + fraction // divisor, link, data)
        else:
            return
        self.truncated = True

    def _section(self, length: bytes) -> str | None:
        """Read a section header up to its end and return its byte order, or None if it has none."""
        order = _ORDERS.get(self._take(4))
        if order is None or len(length) < 4:
            return None
        return order if self._skip(int(struct.unpack(order + "I", length)[0]) - 12) else None

    def _skip(self, size: int) -> bool:
        while size > 0:
            data = self._take(min(size, 1 << 16))
            if not data:
                return False
            size -= len(data)
        return size == 0

    def _pcapng_records(self, order: str) -> Iterator[_Record]:
        interfaces: list[_Interface] = []
        while head := self._take(8):
            if head[:4] == _SECTION:
                interfaces.clear()
                following = self._section(head[4:])
                if following is None:
                    break
                order = following
                continue
            if len(head) < 8:
                break
            kind, length = struct.unpack(order + "II", head)
            if kind not in {_INTERFACE_BLOCK, _SIMPLE_BLOCK, _ENHANCED_BLOCK}:
                if length < 12 or not self._skip(length - 8):
                    break
                continue
            if not 16 <= length <= MAX_RECORD:
                break
            body = self._take(length - 8)
            if len(body) < length - 8:
                break
            if kind == _INTERFACE_BLOCK:
                if len(interfaces) < MAX_INTERFACES:
                    interfaces.append(_interface(order, body[:-4]))
            else:
                record = self._packet_block(order, kind, body[:-4], interfaces)
                if record is None:
                    self.skipped["block"] += 1
                else:
                    yield record
        else:
            return
        self.truncated = True

    def _packet_block(
        self, order: str, kind: int, body: bytes, interfaces: list[_Interface]
    ) -> _Record | None:
        if kind == _SIMPLE_BLOCK:
            if not interfaces:
                return None
            (original,) = struct.unpack_from(order + "I", body)
            size = min(original, interfaces[0].snap_length or original)
            self.cut += size < original
            return _Record(None, interfaces[0].link, body[4 : 4 + size])
        if len(body) < 20:
            return None
        number, high, low, size, original = struct.unpack_from(order + "IIIII", body)
        if number >= len(interfaces) or size > len(body) - 20:
            return None
        interface = interfaces[number]
        stamp = (high << 32 | low) * 1_000_000 // interface.ticks + interface.offset * 1_000_000
        captured_at = stamp if 0 <= stamp < 1 << 62 else None
        self.cut += size < original
        return _Record(captured_at, interface.link, body[20 : 20 + size])

    # -------------------------------------------------------------------------------- link and IP

    def _network(self, record: _Record) -> bytes | None:
        """Return the IP packet inside a frame."""
        link, data = record.link, record.data
        if link in _TYPED_LINKS:
            type_at, start = _TYPED_LINKS[link]
            ether_type = data[type_at : type_at + 2]
            while ether_type in _VLAN_TAGS:
                ether_type = data[start + 2 : start + 4]
                start += 4
            return data[start:] if ether_type in _IP_TYPES else self._nothing("not-ip")
        if link in _LOOPBACK_LINKS:
            return data[4:]
        return data if link in _RAW_LINKS else self._nothing("link")

    def _nothing(self, skip: str) -> bytes | None:
        self.skipped[skip] += 1
        return None

    def _ip(self, captured_at: int | None, packet: bytes) -> Iterator[Captured]:
        version = packet[0] >> 4 if packet else 0
        if version == 4:
            protocol, source, destination, body = self._ip4(packet)
        elif version == 6:
            protocol, source, destination, body = self._ip6(packet)
        else:
            self._nothing("not-ip")
            return
        if body is None:
            return
        if protocol == UDP:
            yield from self._udp(captured_at, source, destination, body)
        elif protocol == TCP:
            yield from self._tcp(captured_at, source, destination, body)
        else:
            self._nothing("protocol")

    def _ip4(self, packet: bytes) -> tuple[int, bytes, bytes, bytes | None]:
        if len(packet) < 20:
            return 0, b"", b"", self._nothing("malformed")
        length, identity, fragment = struct.unpack_from(">HHH", packet, 2)
        start = (packet[0] & 15) * 4
        # 0 where the network card cuts segments; 65535 where a recorder could not say more.
        end = len(packet) if length in {0, 65_535} else length
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        body: bytes | None = packet[start:end]
        if start < 20 or end < start:
            body = self._nothing("malformed")
        elif fragment & 0x3FFF:
            key = (source, destination, protocol, identity)
            offset = (fragment & 0x1FFF) * 8
            body = self._reassemble(key, offset, fragment & 0x2000, packet[start:end])
        return protocol, source, destination, body

    def _ip6(self, packet: bytes) -> tuple[int, bytes, bytes, bytes | None]:
        if len(packet) < 40:
            return 0, b"", b"", self._nothing("malformed")
        length, protocol = struct.unpack_from(">HB", packet, 4)
        source, destination = packet[8:24], packet[24:40]
        body: bytes | None = packet[40 : 40 + length] if length else packet[40:]
        while body is not None and protocol in _EXTENSIONS:
            if len(body) < 8:
                body = self._nothing("malformed")
            elif protocol == _FRAGMENT:
                protocol, offset, identity = struct.unpack_from(">BxHI", body)
                body = body[8:]
                if offset & 0xFFF9:
                    key = (source, destination, protocol, identity)
                    body = self._reassemble(key, offset & 0xFFF8, offset & 1, body)
            else:
                size = (body[1] + 2) * 4 if protocol == _AUTHENTICATION else (body[1] + 1) * 8
                protocol, body = body[0], body[size:]
        return protocol, source, destination, body

    def _reassemble(
        self, key: tuple[object, ...], offset: int, more: int, body: bytes
    ) -> bytes | None:
        """Keep a fragment; return the datagram that it completes."""
        fragments = self._fragmented.get(key)
        if fragments is not None and fragments.pieces.get(offset, body) != body:
            # The sender has come round to this identity again; the old datagram lost a piece.
            self.skipped["fragment"] += 1
            fragments = None
        if fragments is None:
            fragments = self._fragmented[key] = _Fragments()
            if len(self._fragmented) > MAX_FRAGMENTED:
                self._fragmented.popitem(last=False)
                self.skipped["fragment"] += 1
        fragments.pieces[offset] = body
        if not more:
            fragments.length = offset + len(body)
        end = 0
        hole = fragments.length is None
        wrong = len(fragments.pieces) > MAX_FRAGMENTS
        for start, piece in sorted(fragments.pieces.items()):
            hole |= start > end
            wrong |= start < end  # overlapping fragments are an attack (RFC 5722)
            end = start + len(piece)
        wrong |= end > 65_535 or end > (fragments.length or end)
        if wrong:
            self.skipped["fragment"] += 1
        if hole and not wrong:
            return None
        del self._fragmented[key]
        return None if wrong else b"".join(p for _, p in sorted(fragments.pieces.items()))

    # --------------------------------------------------------------------------------- UDP and TCP

    def _udp(
        self, captured_at: int | None, source: bytes, destination: bytes, body: bytes
    ) -> Iterator[Captured]:
        head = struct.unpack_from(">HHH", body) if len(body) >= 8 else (0, 0, 1)
        source_port, destination_port, length = head
        if 0 < length < 8:
            self._nothing("malformed")
            return
        payload = body[8 : length or len(body)]
        yield Captured(
            captured_at, UDP, source, destination, source_port, destination_port, payload
        )

    def _tcp(
        self, captured_at: int | None, source: bytes, destination: bytes, body: bytes
    ) -> Iterator[Captured]:
        start = (body[12] >> 4) * 4 if len(body) >= 20 else 0
        if not 20 <= start <= len(body):
            self._nothing("malformed")
            return
        source_port, destination_port, sequence = struct.unpack_from(">HHI", body)
        flow = (source, destination, source_port, destination_port)
        opens = body[13] & 2
        sequence += opens >> 1  # a SYN takes one number
        data = body[start:]
        if not (data or opens):
            return
        stream = self._streams.get(flow)
        if stream is not None:
            distance = (sequence - stream.position + (1 << 31)) % (1 << 32) - (1 << 31)
            if (opens and sequence != stream.start) or abs(distance) > MAX_JUMP:
                yield from self._give_up(flow, stream)
                stream = None
        if stream is None:
            # Without a SYN the capture began inside the connection: its first bytes are the start.
            stream = self._streams[flow] = _Stream(sequence)
            distance = 0
        self._streams.move_to_end(flow)
        if len(self._streams) > MAX_STREAMS:
            self.skipped["streams"] += 1
            yield from self._give_up(*self._streams.popitem(last=False))
        if data:
            position = stream.position + distance
            heapq.heappush(stream.ahead, (position, self.packets, captured_at, data))
            self._ahead += len(data)
            yield from self._drain(flow, stream, captured_at)
            while stream.ahead and self._hopeless(stream, captured_at):
                self._jump(stream)
                yield from self._drain(flow, stream, captured_at)

    def _drain(self, flow: _Flow, stream: _Stream, captured_at: int | None) -> Iterator[Captured]:
        """Give out what is in order now, stamped `captured_at`."""
        while stream.ahead and stream.ahead[0][0] <= stream.position:
            position, _, _, data = heapq.heappop(stream.ahead)
            self._ahead -= len(data)
            data = data[stream.position - position :]
            if data:
                stream.position += len(data)
                yield Captured(captured_at, TCP, *flow, data)
            else:
                self.skipped["duplicate"] += 1

    def _hopeless(self, stream: _Stream, now: int | None) -> bool:
        if self._ahead > MAX_AHEAD or len(stream.ahead) > MAX_SEGMENTS:
            return True
        since = stream.ahead[0][2]
        return now is not None and since is not None and now - since > GAP_PATIENCE_US

    def _jump(self, stream: _Stream) -> None:
        self.skipped["gap"] += 1
        stream.position = stream.ahead[0][0]

    def _give_up(self, flow: _Flow, stream: _Stream) -> Iterator[Captured]:
        while stream.ahead:
            self._jump(stream)
            yield from self._drain(flow, stream, stream.ahead[0][2])


_RAW_LINKS: Final = frozenset({12, 14, 101, 228, 229})
_LOOPBACK_LINKS: Final = frozenset({0, 108})
# Where the type stands and where the packet begins: Ethernet, Linux cooked v1 and v2.
_TYPED_LINKS: Final = {1: (12, 14), 113: (14, 16), 276: (0, 20)}
_IP_TYPES: Final = frozenset({b"\x08\x00", b"\x86\xdd"})
_VLAN_TAGS: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00"})
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
# Hop-by-hop, routing, fragment, authentication, destination, mobility, HIP, shim6.
_EXTENSIONS: Final = frozenset({0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140})


def _interface(order: str, body: bytes) -> _Interface:
    link, _, snap_length = struct.unpack_from(order + "HHI", body.ljust(8, b"\0"))
    ticks, offset = 1_000_000, 0
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == 9 and len(value) == 1:  # if_tsresol
            ticks = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == 14 and len(value) == 8:  # if_tsoffset
            (offset,) = struct.unpack(order + "q", value)
        at += 4 + (length + 3) // 4 * 4
    return _Interface(link, snap_length, ticks, offset)


# ----------------------------------------------------------------------------------------- writing


def file_header() -> bytes:
    """Return what a pcap file of `udp_record`s begins with: microseconds, LINKTYPE_RAW."""
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 101)


def udp_record(
    captured_at: int,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
    payload: bytes,
) -> bytes:
    """Build the record of one UDP datagram, IPv4 or IPv6 with right checksums.

    An absent address (empty) becomes the unspecified one, an IPv4 address beside an IPv6 one is
    mapped. A payload over MAX_PAYLOAD is cut; the record tells its original length.
    """
    size = 16 if 16 in {len(source), len(destination)} else 4
    source, destination = _sized(source, size), _sized(destination, size)
    carried = payload[:MAX_PAYLOAD]
    length = 8 + len(carried)
    ports = struct.pack(">HH", source_port, destination_port)
    pseudo = source + destination + struct.pack(">HH", UDP, length)
    datagram = ports + length.to_bytes(2, "big") + b"\0\0" + carried
    checksum = _checksum(pseudo + datagram)
    datagram = datagram[:6] + checksum + carried
    if size == 4:
        # Do not fragment, 64 hops.
        head = struct.pack(">BBHIBBxx", 0x45, 0, 20 + length, 0x4000, 64, UDP)
        head = head[:10] + _checksum(head + source + destination)
    else:
        head = struct.pack(">IHBB", 0x6000_0000, length, UDP, 64)
    packet = head + source + destination + datagram
    seconds, micros = divmod(min(max(captured_at, 0), (1 << 32) * 1_000_000 - 1), 1_000_000)
    original = len(packet) + len(payload) - len(carried)
    return struct.pack("<IIII", seconds, micros, len(packet), original) + packet


def _sized(address: bytes, size: int) -> bytes:
    if not address:
        return bytes(size)
    if len(address) not in {4, 16}:
        raise PcapError("address")
    return address if len(address) == size else b"\0" * 10 + b"\xff\xff" + address


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071), never 0, which UDP takes for none."""
    data += b"\0" * (len(data) % 2)
    # A sum of 16-bit words with end-around carry is a remainder by 65535.
    return (65_535 - int.from_bytes(data, "big") % 65_535).to_bytes(2, "big")
