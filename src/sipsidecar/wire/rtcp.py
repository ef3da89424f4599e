"""RTCP in all its forms to one canonical report: binary, HEP type-5 JSON of each agent, ESL events."""

import re
import struct
from collections.abc import Mapping, Sized
from typing import Annotated, Any, Final

import msgspec

from sipsidecar.wire import WireError

FLAWS: Final = ("version", "cut", "padding", "short", "count", "many", "values")
"""What may be wrong with a compound that is read all the same.

version: it ends at bytes that are no RTCP. cut: its last packet is longer than what is left.
padding: on another packet than the last, or of a senseless size. short: a packet or XR block that
is too short for what it must hold. count: fewer blocks than announced. many: a limit was reached.
values: a field that no RTCP packet can hold was left out with its block.
"""
WHYS: Final = frozenset({"size", "not-rtcp", "encrypted", "json", *FLAWS})
IMPLAUSIBLE: Final = ("count", "jitter", "lost", "sequence", "sender")
"""What `implausible` says: fewer blocks than announced; jitter over 10 s; cumulative loss of more
than 24 bits; more packets lost than sequence numbers used; octets that no packets can carry."""

MAX_SIZE: Final = 65_535
MAX_PACKETS: Final = 32
"""Packets of a compound."""
MAX_BLOCKS: Final = 64
"""Blocks of one report, of each kind."""
MAX_RTT: Final = 5.0
MAX_DLSR: Final = 60.0
MIN_ESL_RTT: Final = 0.04
"""FreeSWITCH measures in ticks of 20 ms: what is under two of them is noise."""

SR: Final = 200
RR: Final = 201
SDES: Final = 202
BYE: Final = 203
XR: Final = 207

_NTP_OF_UNIX: Final = 2_208_988_800
"""Seconds from 1900 to 1970."""
_YEAR_2000: Final = 946_684_800
_MASK: Final = 0xFFFFFFFF


class RtcpError(WireError):
    """A payload that is not RTCP, or makes no sense; `why` is one of `WHYS`."""


class ReportBlock(msgspec.Struct, frozen=True, gc=False):
    """What a reporter says of one source (RFC 3550 6.4.1)."""

    source_ssrc: int
    fraction_lost: int
    """0 to 255, of 256, since the report before."""
    lost: int
    """Cumulative; signed: duplicates make it negative."""
    highest_seq: int
    """Extended highest sequence number: cycles << 16 | sequence."""
    jitter: int
    """RTP timestamp units."""
    lsr: int = 0
    """Middle 32 bits of the NTP time of the last SR; 0: none was received."""
    dlsr: int = 0
    """1/65536 s."""


class SenderInfo(msgspec.Struct, frozen=True, gc=False):
    """What a sender says of what it sent."""

    ntp: int
    """32.32 fixed point, seconds since 1900; 0: the sender has no clock."""
    rtp_timestamp: int
    packets: int
    octets: int


class VoipMetrics(msgspec.Struct, frozen=True, gc=False):
    """XR block 7 (RFC 3611 4.7); None for what is unavailable (127) or unknown."""

    source_ssrc: int
    loss_percent: float
    discard_percent: float
    burst_density_percent: float
    gap_density_percent: float
    burst_ms: int
    gap_ms: int
    round_trip_ms: int | None
    end_system_ms: int | None
    signal_dbm: int | None
    noise_dbm: int | None
    rerl_db: int | None
    gmin: int | None
    r: int | None
    external_r: int | None
    mos_lq: float | None
    mos_cq: float | None
    rx_config: int | None
    buffer_nominal_ms: int | None
    buffer_maximum_ms: int | None
    buffer_absolute_ms: int | None


class Report(msgspec.Struct, frozen=True, gc=False):
    """One compound's worth of one reporter, whatever form it came in.

    Blocks about SSRC 0 without a sequence number are left out: heplify and FreeSWITCH write them
    for "nothing was received", which RTCP says by no block at all.
    """

    ssrc: int
    """The reporter's own; 0: the form does not tell it (FreeSWITCH of its own reports)."""
    sender: SenderInfo | None = None
    """None in a receiver report: the reporter sent no media since its last one."""
    blocks: tuple[ReportBlock, ...] = ()
    voip: tuple[VoipMetrics, ...] = ()
    reference_ntp: int | None = None
    """XR block 4 (RRTR)."""
    dlrr: tuple[tuple[int, int, int], ...] = ()
    """XR block 5: SSRC, last RR, delay since it."""
    bye: tuple[int, ...] = ()
    """SSRCs that left."""
    clock_rate: int | None = None
    """Of the jitter, where the form tells it (FreeSWITCH's RTP-Rate)."""
    rtt_ms: float | None = None
    """Where the form tells it (FreeSWITCH's Rtt0-Avg, from 40 ms on)."""
    form: str = "binary"
    """binary, json or freeswitch."""
    reception: bool = True
    """No blocks mean that nothing was received. False: there was no SR or RR, or none of its blocks
    could be read."""
    flaw: str | None = None
    """One of `FLAWS`, of the whole payload."""


class RtcpPacket(msgspec.Struct, frozen=True, gc=False):
    """One packet of a compound; types without content here are skipped by their length."""

    type: int
    count: int
    """RC, SC or FMT: the five bits beside the version."""
    size: int
    """Bytes, with header and padding."""
    ssrc: int | None = None
    """The first one named, the sender's in most types."""
    sender: SenderInfo | None = None
    blocks: tuple[ReportBlock, ...] = ()
    voip: tuple[VoipMetrics, ...] = ()
    reference_ntp: int | None = None
    dlrr: tuple[tuple[int, int, int], ...] = ()
    bye: tuple[int, ...] = ()


class Compound(msgspec.Struct, frozen=True, gc=False):
    """The packets of one datagram in their order."""

    packets: tuple[RtcpPacket, ...]
    size: int
    """Bytes that they take; less than the datagram's when the walk had to stop."""
    flaw: str | None = None
    """The first one found, of `FLAWS`."""


# ------------------------------------------------------------------------------------------ binary

_HEADER: Final = struct.Struct(">BBH")
_SSRC: Final = struct.Struct(">I")
_SENDER: Final = struct.Struct(">QIII")
_BLOCK: Final = struct.Struct(">IIIIII")
_NTP: Final = struct.Struct(">Q")
_DLRR: Final = struct.Struct(">III")
_VOIP: Final = struct.Struct(">IBBBBHHHHBBBBBBBBBxHHH")


def packets(payload: bytes) -> Compound:
    """Walk a compound (RFC 3550 6.4, A.2; RFC 5506), or raise RtcpError.

    The walk stops at what is no packet and keeps what came before. Of SDES no text is kept.
    """
    end = len(payload)
    if end > MAX_SIZE:
        raise RtcpError("size")
    # RFC 5761 4: the second byte tells RTCP from RTP on one port.
    if end < 4 or payload[0] >> 6 != 2 or not 192 <= payload[1] <= 223:
        raise RtcpError("not-rtcp")
    found: list[RtcpPacket] = []
    flaw = None
    at = 0
    while at < end:
        if end - at < 4:
            flaw = flaw or "cut"
            break
        first, kind, words = _HEADER.unpack_from(payload, at)
        if first >> 6 != 2:
            flaw = flaw or "version"
            break
        size = 4 * words + 4
        stop = at + size
        if stop > end:
            flaw = flaw or "cut"
            break
        if len(found) == MAX_PACKETS:
            flaw = flaw or "many"
            break
        content = stop
        if first & 0x20:
            padding = payload[stop - 1]
            if stop == end and padding and not padding % 4 and padding <= size - 4:
                content -= padding
            else:
                flaw = flaw or "padding"
        packet, wrong = _packet(payload, at, content, size, kind, first & 31)
        flaw = flaw or wrong
        found.append(packet)
        at = stop
    if not found:
        raise RtcpError("cut")
    return Compound(tuple(found), at, flaw)


def _packet(
    payload: bytes, at: int, stop: int, size: int, kind: int, count: int
) -> tuple[RtcpPacket, str | None]:
    """Read the packet whose content ends at `stop`; second, its flaw."""
    if stop - at < 8:
        # SDES and BYE may name no SSRC (RFC 3550 6.5, 6.6).
        wrong = kind in {SR, RR, XR} or (kind == BYE and count > 0)
        return RtcpPacket(kind, count, size), "short" if wrong else None
    (ssrc,) = _SSRC.unpack_from(payload, at + 4)
    if kind == SR:
        if stop - at < 28:  # without the SSRC: it must not pass for a report of nothing
            return RtcpPacket(kind, count, size), "short"
        sender = SenderInfo(*_SENDER.unpack_from(payload, at + 8))
        blocks = _blocks(payload[at + 28 : stop], count)
        return RtcpPacket(kind, count, size, ssrc, sender, blocks), _missing(blocks, count)
    if kind == RR:
        blocks = _blocks(payload[at + 8 : stop], count)
        return RtcpPacket(kind, count, size, ssrc, None, blocks), _missing(blocks, count)
    if kind == XR:
        return _extended(payload, at, stop, size, count, ssrc)
    if kind == BYE:
        named = min(count, (stop - at) // 4 - 1)
        left = struct.unpack_from(f">{named}I", payload, at + 4)
        packet = RtcpPacket(kind, count, size, left[0] if left else None, bye=left)
        return packet, _missing(left, count)
    if kind == SDES and not count:
        return RtcpPacket(kind, count, size), None
    return RtcpPacket(kind, count, size, ssrc), None


def _missing(found: Sized, count: int) -> str | None:
    return None if len(found) == count else "count"


def _blocks(content: bytes, count: int) -> tuple[ReportBlock, ...]:
    """Read up to `count` blocks; what follows them is a profile's extension (RFC 3550 6.4.3)."""
    fitting = min(count, len(content) // 24)
    blocks = []
    for source, losses, highest, jitter, lsr, dlsr in _BLOCK.iter_unpack(content[: 24 * fitting]):
        lost = losses & 0xFFFFFF
        if lost > 0x7FFFFF:
            lost -= 0x1000000
        blocks.append(ReportBlock(source, losses >> 24, lost, highest, jitter, lsr, dlsr))
    return tuple(blocks)


def _extended(
    payload: bytes, at: int, stop: int, size: int, count: int, ssrc: int
) -> tuple[RtcpPacket, str | None]:
    """Read an XR packet (RFC 3611): blocks 4, 5 and 7; all others are skipped by their length."""
    voip: list[VoipMetrics] = []
    dlrr: list[tuple[int, int, int]] = []
    reference = None
    wrong = None
    at += 8
    while at < stop:  # all sizes are multiples of four
        kind, _, words = _HEADER.unpack_from(payload, at)
        begin = at + 4
        at = begin + 4 * words
        if at > stop:
            wrong = wrong or "short"
            break
        if kind == 4:
            if words == 2:
                (reference,) = _NTP.unpack_from(payload, begin)
            else:
                wrong = wrong or "short"
        elif kind == 5:
            if words % 3:
                wrong = wrong or "short"
            elif len(dlrr) + words // 3 > MAX_BLOCKS:
                wrong = wrong or "many"
            else:
                dlrr.extend(_DLRR.iter_unpack(payload[begin:at]))
        elif kind == 7:
            if words != 8:
                wrong = wrong or "short"
            elif len(voip) == MAX_BLOCKS:
                wrong = wrong or "many"
            else:
                voip.append(_metrics(*_VOIP.unpack_from(payload, begin)))
    packet = RtcpPacket(XR, count, size, ssrc, None, (), tuple(voip), reference, tuple(dlrr))
    return packet, wrong


def _metrics(
    source: int,
    loss: int,
    discard: int,
    burst_density: int,
    gap_density: int,
    burst: int,
    gap: int,
    round_trip: int,
    end_system: int,
    signal: int = 127,
    noise: int = 127,
    rerl: int = 127,
    gmin: int = 0,
    r: int = 127,
    external_r: int = 127,
    mos_lq: int = 127,
    mos_cq: int = 127,
    rx_config: int = 0,
    nominal: int = 0,
    maximum: int = 0,
    absolute: int = 0,
) -> VoipMetrics:
    """Turn the numbers of an XR block 7 into metrics; the defaults say "unavailable"."""
    return VoipMetrics(
        source,
        fraction_percent(loss),
        fraction_percent(discard),
        fraction_percent(burst_density),
        fraction_percent(gap_density),
        burst,
        gap,
        # A delay or a buffer of nothing, and a Gmin of 0 (RFC 3611 4.7.6), are "not told".
        round_trip or None,
        end_system or None,
        _decibels(signal),
        _decibels(noise),
        None if rerl == 127 else rerl,
        gmin or None,
        r if r <= 100 else None,
        external_r if external_r <= 100 else None,
        mos_lq / 10 if 10 <= mos_lq <= 50 else None,
        mos_cq / 10 if 10 <= mos_cq <= 50 else None,
        rx_config or None,
        nominal or None,
        maximum or None,
        absolute or None,
    )


def _decibels(level: int) -> int | None:
    """Read a signed byte; 127 is "unavailable"."""
    if level == 127:
        return None
    return level - 256 if level > 127 else level


def parse(payload: bytes) -> tuple[Report, ...]:
    """Turn one RTCP datagram into its reports, one for each reporter, or raise RtcpError.

    None at all for RTCP that reports nothing, such as feedback alone. SRTCP raises "encrypted".
    """
    compound = packets(payload)
    reports = _reports(compound)
    if compound.size < len(payload) and _encrypted(payload, compound, reports):
        raise RtcpError("encrypted")
    if not reports and compound.flaw is not None:
        raise RtcpError(compound.flaw)
    return reports


def _reports(compound: Compound) -> tuple[Report, ...]:
    by_ssrc: dict[int, list[RtcpPacket]] = {}
    left: list[int] = []
    for packet in compound.packets:
        if packet.bye:
            left += packet.bye
        elif packet.ssrc is not None and packet.type in {SR, RR, XR}:
            by_ssrc.setdefault(packet.ssrc, []).append(packet)
    if not left:
        return tuple(_report(ssrc, said, [], compound.flaw) for ssrc, said in by_ssrc.items())
    # Who leaves reports it of itself, and a mixer of its sources (RFC 3550 6.6).
    by_ssrc = by_ssrc or {left[0]: []}
    speaker = left[0] if left[0] in by_ssrc else next(iter(by_ssrc))
    return tuple(
        _report(ssrc, said, left if ssrc == speaker else [], compound.flaw)
        for ssrc, said in by_ssrc.items()
    )


def _report(ssrc: int, said: list[RtcpPacket], left: list[int], flaw: str | None) -> Report:
    if len(said) == 1 and said[0].type != XR and not left and flaw is None:
        # by far the most frequent
        return Report(ssrc, said[0].sender, _heard(said[0].blocks))
    sender = reference = None
    blocks: list[ReportBlock] = []
    voip: list[VoipMetrics] = []
    dlrr: list[tuple[int, int, int]] = []
    for packet in said:
        sender = packet.sender or sender
        reference = reference if packet.reference_ntp is None else packet.reference_ntp
        blocks += _heard(packet.blocks)
        voip += packet.voip
        dlrr += packet.dlrr
    if max(len(blocks), len(voip), len(dlrr), len(left)) > MAX_BLOCKS:
        flaw = flaw or "many"
    return Report(
        ssrc,
        sender,
        tuple(blocks[:MAX_BLOCKS]),
        tuple(voip[:MAX_BLOCKS]),
        reference,
        tuple(dlrr[:MAX_BLOCKS]),
        tuple(left[:MAX_BLOCKS]),
        reception=bool(blocks) or (flaw != "count" and any(packet.type != XR for packet in said)),
        flaw=flaw,
    )


def _heard(blocks: tuple[ReportBlock, ...]) -> tuple[ReportBlock, ...]:
    """Leave out blocks that say "nothing was received" (see Report)."""
    for block in blocks:
        if not (block.source_ssrc or block.highest_seq):
            return tuple(each for each in blocks if each.source_ssrc or each.highest_seq)
    return blocks


# SRTCP (RFC 3711 3.4) leaves the first 8 bytes in clear, so that its first header and the length in
# it are those of the plain compound; the rest is ciphertext, then the E bit with a 31-bit index,
# an optional MKI, and the authentication tag: 10 bytes for both suites of RFC 4568, 4 bytes in some
# implementations; with AES-GCM (RFC 7714 9) the tag stands before the index. The index starts
# at 0 and grows by one a packet: it stays small. So a datagram with bytes behind its last packet is
# SRTCP when a small index with the E bit stands where it must: in junk behind plain RTCP that is a
# chance of one in 4096 for each place. What has another MKI than of 0, 1 or 4 bytes is told by its
# figures, which no plain report can have; junk leaves them plausible. Without the E bit the
# compound is in clear, and read with its trailer as junk.
_INDEX_FROM_END: Final = tuple(
    sorted({4 + tag + mki for tag in (0, 4, 10) for mki in (0, 1, 4)}, reverse=True)
)
_MAX_INDEX: Final = 1 << 20


def _encrypted(payload: bytes, compound: Compound, reports: tuple[Report, ...]) -> bool:
    clear = compound.packets[0].size
    for distance in _INDEX_FROM_END:
        at = len(payload) - distance
        if at >= clear and (_SSRC.unpack_from(payload, at)[0] ^ 0x80000000) < _MAX_INDEX:
            return True
    return len(payload) - clear >= 8 and any(
        implausible(report) not in {None, "count"} for report in reports
    )


# -------------------------------------------------------------------------------------------- JSON

_Word = Annotated[int, msgspec.Meta(ge=0, le=_MASK)]


class _Block(msgspec.Struct, gc=False):
    source_ssrc: _Word
    highest_seq_no: _Word
    fraction_lost: Annotated[int, msgspec.Meta(ge=0, le=255)]
    ia_jitter: _Word
    packets_lost: Annotated[int, msgspec.Meta(ge=-0x800000, le=0xFFFFFF)]
    lsr: _Word
    dlsr: _Word


class _Sender(msgspec.Struct, gc=False):
    ntp_timestamp_sec: _Word
    ntp_timestamp_usec: _Word
    octets: _Word
    rtp_timestamp: _Word
    packets: _Word


class _Heplify(msgspec.Struct, gc=False):
    type: _Word = 0


class _Message(msgspec.Struct):
    """What rtpengine and heplify write, all numbers being numbers; all else takes the long way."""

    ssrc: Annotated[int, msgspec.Meta(ge=1, le=_MASK)]
    type: Annotated[int, msgspec.Meta(ge=192, le=223)]
    report_blocks: Annotated[list[_Block], msgspec.Meta(max_length=MAX_BLOCKS)]
    sender_information: _Sender | None = None
    report_blocks_xr: _Heplify | None = None
    extended_report_information: msgspec.Raw | None = None


_decode: Final = msgspec.json.Decoder(_Message).decode


def parse_json(payload: bytes) -> Report:
    """Turn one RTCP report as JSON, of any agent, into a report, or raise RtcpError.

    "json" when it is no JSON, "not-rtcp" when it reports nothing that RTCP can. A number may be
    a string; a field that no RTCP packet can hold is left out with its block (`flaw`), as are
    floats and booleans. `report_count` is not looked at: FreeSWITCH agents write their event
    number there, heplify the count of another packet, Asterisk that of blocks it leaves out.
    """
    if len(payload) > MAX_SIZE:
        raise RtcpError("size")
    try:
        message = _decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return _from_any(_loaded(payload))
    if message.extended_report_information is not None or (
        message.report_blocks_xr is not None and message.report_blocks_xr.type
    ):
        return _from_any(_loaded(payload))
    sender = None
    said = message.sender_information
    if said is not None:
        ntp = _ntp(said.ntp_timestamp_sec, said.ntp_timestamp_usec)
        if ntp or said.packets or said.octets or said.rtp_timestamp:
            sender = SenderInfo(ntp, said.rtp_timestamp, said.packets, said.octets)
    blocks = []
    for each in message.report_blocks:
        if each.source_ssrc or each.highest_seq_no:
            lost = each.packets_lost
            blocks.append(
                ReportBlock(
                    each.source_ssrc,
                    each.fraction_lost,
                    lost if lost <= 0x7FFFFF else lost - 0x1000000,
                    each.highest_seq_no,
                    each.ia_jitter,
                    each.lsr,
                    each.dlsr,
                )
            )
    if not blocks and sender is None:
        return _from_any(_loaded(payload))
    return Report(message.ssrc, sender, tuple(blocks), form="json")


_CONTROLS: Final = bytes(max(each, 32) for each in range(256))
_LAST_COMMA: Final = re.compile(rb",\s*([}\]])")


def _loaded(payload: bytes) -> dict[str, Any]:
    """Decode JSON of any shape.

    The errors that agents make are mended: RTPProxy's comma before a closing brace, control
    characters and bytes that are no UTF-8 in SDES texts, a NUL at the end.
    """
    try:
        try:
            message = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            mended = _LAST_COMMA.sub(rb"\1", payload.translate(_CONTROLS))
            message = msgspec.json.decode(mended.decode("latin-1"))
    # ValueError: an integer of thousands of digits. msgspec.DecodeError is one, too.
    except (ValueError, RecursionError):
        raise RtcpError("json") from None
    if not isinstance(message, dict):
        raise RtcpError("not-rtcp")
    return message


def _from_any(message: dict[str, Any]) -> Report:
    kind = _word(message.get("type"))
    said = message.get("sender_information")
    listed = message.get("report_blocks")
    extended = message.get("extended_report_information")
    if kind is None:
        # captagent writes no type beside an SR without blocks.
        if not (isinstance(said, dict) or isinstance(listed, list) or isinstance(extended, dict)):
            raise RtcpError("not-rtcp")
    elif not 192 <= kind <= 223:
        raise RtcpError("not-rtcp")
    own = _ssrc(message.get("ssrc"))
    # captagent leaves the reporter to the SDES where no block follows.
    ssrc = own or _ssrc(message.get("sdes_ssrc"))
    if not ssrc:
        raise RtcpError("not-rtcp")
    flaw = sender = None
    # heplify writes all objects always, with zeros for what there was not.
    if isinstance(said, dict) and any(said.values()):
        sender = _sender(said)
        flaw = "values" if sender is None else None
        sender = None if sender == _NOTHING_SENT else sender
    blocks: list[ReportBlock] = []
    complete = True
    for each in listed if isinstance(listed, list) else ():
        if len(blocks) == MAX_BLOCKS:
            flaw = flaw or "many"
            break
        block = _block(each)
        if block is None:
            flaw = flaw or "values"
            complete = False
        elif block.source_ssrc or block.highest_seq:
            blocks.append(block)
    voip = []
    xr = message.get("report_blocks_xr")
    for each, names in ((extended, _CAPTAGENT), (xr, _HEPLIFY)):
        if isinstance(each, dict) and any(each.values()):
            metrics = _metrics_of(each, names)
            if metrics is None:
                flaw = flaw or "values"
            else:
                voip.append(metrics)
    # heplify names the last packet of the compound: SDES comes after an SR or RR, feedback also
    # alone.
    reported = sender is not None or (bool(own) and kind in {SR, RR, SDES})
    if not (reported or blocks or voip):
        raise RtcpError(flaw or "not-rtcp")
    reception = bool(blocks) or (reported and complete)
    return Report(
        ssrc, sender, tuple(blocks), tuple(voip), reception=reception, form="json", flaw=flaw
    )


_DECIMAL: Final = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_HEX: Final = re.compile(r"(?:0[xX])?([0-9A-Fa-f]{1,8})", re.ASCII)


def _number(value: object) -> int | None:
    """Read an integer, also as a decimal string; no booleans, no floats."""
    if type(value) is int:
        return value
    if type(value) is str and _DECIMAL.fullmatch(value):
        return int(value)
    return None


def _word(value: object) -> int | None:
    """Read 32 bits; agents with signed integers print the upper half as negative."""
    number = _number(value)
    if number is None or not -0x80000000 <= number <= _MASK:
        return None
    return number & _MASK


def _small(value: object, limit: int) -> int | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= limit else None


def _ssrc(value: object) -> int | None:
    """Read an SSRC, also as a string, decimal or hexadecimal.

    Eight hex digits are FreeSWITCH's `%.8x`, even when all of them are decimal: no agent is known
    that writes an SSRC as a decimal string, and of random numbers but one in 48 has eight digits.
    Other strings are hexadecimal only when they cannot be decimal.
    """
    if type(value) is str:
        digits = _HEX.fullmatch(value)
        if digits and (len(value) == 8 or not _DECIMAL.fullmatch(value)):
            return int(digits[1], 16)
    return _word(value)


def _lost(value: object) -> int | None:
    """Read the cumulative loss: signed, or the raw 24 bits, or a sign-extended unsigned 32 bits.

    A number that is none of them is kept for `implausible` to find, if 32 bits can hold it.
    """
    number = _number(value)
    if number is None or not -0x80000000 <= number <= _MASK:
        return None
    if 0x800000 <= number <= 0xFFFFFF:
        return number - 0x1000000
    if number >= 0xFF800000:
        return number - 0x100000000
    return number


def _ntp(seconds: int | None, fraction: int | None) -> int:
    """Turn seconds and fraction into 32.32; 0 for what is no time.

    Asterisk prints UNIX seconds and microseconds instead, which are told by both: the seconds
    from the year 2000 on stay below those of NTP until 2040-01-01 (2208988800), and NTP seconds,
    that begin again at 0 on 2036-02-07, reach 946684800 in 2066; and a fraction of 32 bits is
    below a million in one of 4295.
    """
    if seconds is None or fraction is None:
        return 0
    if _YEAR_2000 <= seconds < _NTP_OF_UNIX and fraction < 1_000_000:
        return ((seconds + _NTP_OF_UNIX) & _MASK) << 32 | (fraction << 32) // 1_000_000
    return seconds << 32 | fraction


_NOTHING_SENT: Final = SenderInfo(0, 0, 0, 0)


def _sender(said: dict[str, Any]) -> SenderInfo | None:
    timestamp = _word(said.get("rtp_timestamp"))
    packets_sent = _word(said.get("packets"))
    octets = _word(said.get("octets"))
    if timestamp is None or packets_sent is None or octets is None:
        return None
    ntp = _ntp(_word(said.get("ntp_timestamp_sec")), _word(said.get("ntp_timestamp_usec")))
    return SenderInfo(ntp, timestamp, packets_sent, octets)


def _block(said: object) -> ReportBlock | None:
    if not isinstance(said, dict):
        return None
    return _report_block(
        _ssrc(said.get("source_ssrc")),
        said.get("fraction_lost"),
        said.get("packets_lost"),
        said.get("highest_seq_no"),
        said.get("ia_jitter"),
        said.get("lsr"),
        said.get("dlsr"),
    )


def _report_block(
    source: int | None,
    fraction: object,
    losses: object,
    sequence: object,
    units: object,
    lsr: object,
    dlsr: object,
) -> ReportBlock | None:
    fraction_lost = _small(fraction, 255)
    lost = _lost(losses)
    highest = _word(sequence)
    jitter = _word(units)
    if source is None or fraction_lost is None or lost is None or highest is None or jitter is None:
        return None
    return ReportBlock(
        source, fraction_lost, lost, highest, jitter, _word(lsr) or 0, _word(dlsr) or 0
    )


# In the order of the XR block; an empty name for what the agent does not write.
_CAPTAGENT: Final = (
    "identifier", "loss_rate", "discard_rate", "burst_rate", "gap_rate", "burst_duration",
    "gap_duration", "round_trip_delay", "end_sys_delay", "signal_lev", "noise_lev", "RERL",
    "Gmin", "R_fact", "ext_R_fact", "MOS_LQ", "MOS_CQ", "", "JB_nom", "JB_max", "JB_abs_max",
)  # fmt: skip
_HEPLIFY: Final = (
    "id", "fraction_lost", "fraction_discard", "burst_density", "gap_density", "burst_duration",
    "gap_duration", "round_trip_delay", "end_system_delay",
)  # fmt: skip
_UNAVAILABLE: Final = (127, 127, 127, 0, 127, 127, 127, 127, 0, 0, 0, 0)
"""From the tenth field on."""


def _metrics_of(said: dict[str, Any], names: tuple[str, ...]) -> VoipMetrics | None:
    if _word(said.get("type")) not in {None, 7, XR}:
        return None
    source = _ssrc(said.get(names[0]))
    rates = [_small(said.get(name), 255) for name in names[1:5]]
    times = [_small(said.get(name), 0xFFFF) for name in names[5:9]]
    if source is None or None in rates or None in times:
        return None
    rest = list(_UNAVAILABLE)
    for index, name in enumerate(names[9:]):
        limit = 0xFFFF if index > 8 else 255
        value = _word(said.get(name))
        if value is not None and index < 2:
            value &= 255  # signed bytes, printed with their sign or as unsigned 32 bits
        if value is not None and value <= limit:
            rest[index] = value
    rest[8] = _receiver(said.get("RX_conf"))
    return _metrics(source, *[each or 0 for each in (*rates, *times)], *rest)


def _receiver(listed: object) -> int:
    """Put captagent's list of one object back into the byte of RFC 3611 4.7.6."""
    said = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(said, dict):
        return 0
    concealment = _small(said.get("PLC"), 3) or 0
    adaptive = _small(said.get("JB_adapt"), 3) or 0
    return concealment << 6 | adaptive << 4 | (_small(said.get("JB_rate"), 15) or 0)


# -------------------------------------------------------------------------------------- FreeSWITCH

_SECONDS: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?", re.ASCII)


def from_freeswitch(headers: Mapping[str, str | list[str] | None], *, sent: bool) -> Report:
    """Turn the headers of an ESL event into a report, or raise RtcpError.

    `sent`: SEND_RTCP_MESSAGE, in which FreeSWITCH reports what it hears; its `SSRC` is that of the
    stream it hears, and its own is not told. Else RECV_RTCP_MESSAGE, what the peer reports.
    A receiver report comes with the sender's fields of the last sender report, and nothing in it
    tells so: an equal `sender.ntp` says nothing new, neither of packets nor of time.
    """
    named = _hex(headers, "SSRC")
    if named is None:
        raise RtcpError("not-rtcp")
    sender = _esl_sender(headers)
    flaw = None
    blocks = []
    rtt_ms = None
    for index in ("",) if sent else _ESL_INDEXES:
        start = f"Source{index}-"
        if _header(headers, start + "SSRC") is None:
            break
        source = _hex(headers, start + "SSRC")
        block = _report_block(
            # `Source-SSRC` is 0 until the peer has sent RTCP; its RTP has told the SSRC before.
            (named or source) if sent and source is not None else source,
            *(_header(headers, start + name) for name in _ESL_BLOCK),
        )
        if block is None:
            flaw = "values"
        elif block.source_ssrc or block.highest_seq:
            blocks.append(block)
        if rtt_ms is None:
            rtt_ms = _esl_rtt(_header(headers, f"Rtt{index}-Avg"))
    return Report(
        0 if sent else named,
        sender,
        tuple(blocks),
        clock_rate=_rate(_header(headers, "RTP-Rate")),
        rtt_ms=rtt_ms,
        form="freeswitch",
        reception=bool(blocks) or flaw is None,
        flaw=flaw,
    )


_ESL_INDEXES: Final = tuple(str(index) for index in range(MAX_BLOCKS))
_ESL_BLOCK: Final = (
    "Fraction",
    "Lost",
    "Highest-Sequence-Number-Received",
    "Jitter",
    "LSR",
    "DLSR",
)


def _header(headers: Mapping[str, str | list[str] | None], name: str) -> str | None:
    value = headers.get(name)
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _hex(headers: Mapping[str, str | list[str] | None], name: str) -> int | None:
    """Read an SSRC that is hexadecimal whatever its digits."""
    digits = _HEX.fullmatch(_header(headers, name) or "")
    return int(digits[1], 16) if digits else None


def _esl_sender(headers: Mapping[str, str | list[str] | None]) -> SenderInfo | None:
    seconds = _word(_header(headers, "NTP-Most-Significant-Word"))
    fraction = _word(_header(headers, "NTP-Least-Significant-Word"))
    timestamp = _word(_header(headers, "RTP-Timestamp"))
    packets_sent = _word(_header(headers, "Sender-Packet-Count"))
    octets = _word(_header(headers, "Octect-Packet-Count"))  # as FreeSWITCH spells it
    if timestamp is None or packets_sent is None or octets is None:
        return None
    # All zero: the peer has sent no sender report yet.
    if not (seconds or fraction or timestamp or packets_sent or octets):
        return None
    ntp = 0 if seconds is None or fraction is None else seconds << 32 | fraction
    return SenderInfo(ntp, timestamp, packets_sent, octets)


def _rate(text: str | None) -> int | None:
    rate = _small(text, 192_000)
    return rate if rate is not None and rate >= 1000 else None


def _esl_rtt(text: str | None) -> float | None:
    if text is None or not _SECONDS.fullmatch(text):
        return None
    seconds = float(text)
    return seconds * 1000 if MIN_ESL_RTT <= seconds <= MAX_RTT else None


# -------------------------------------------------------------------------------------- arithmetic


def ntp_middle(ntp: int) -> int:
    """Return the 32 bits of a 32.32 time that an LSR echoes."""
    return ntp >> 16 & _MASK


def round_trip(arrival_middle: int, lsr: int, dlsr: int, *, limit: float = MAX_RTT) -> float | None:
    """Return seconds of A - LSR - DLSR (RFC 3550 6.4.1), all in 1/65536 s, modulo 2^32.

    None without an SR (LSR 0), for what is negative by that arithmetic (2^31 or more), longer
    than `limit` seconds, or answered later than MAX_DLSR seconds after the SR.
    """
    ticks = (arrival_middle - lsr - dlsr) & _MASK
    if not lsr or dlsr > MAX_DLSR * 65536 or ticks >= 1 << 31 or ticks > limit * 65536:
        return None
    return ticks / 65536


def fraction_percent(fraction: int) -> float:
    """Turn a fraction of 256 into percent."""
    return fraction * 100 / 256


def jitter_ms(units: int, clock_rate: int) -> float:
    """Turn RTP timestamp units into milliseconds; `clock_rate` in Hz."""
    return units * 1000 / clock_rate


def implausible(report: Report) -> str | None:
    """Say what of a report cannot be, in a word of `IMPLAUSIBLE`, or None.

    Agents that decode ciphertext send such figures. Loss and sequence numbers are compared by
    RFC 3550 A.3: no more can be lost than were expected.
    """
    if report.flaw == "count":
        return "count"
    # The clock may be any up to 48 kHz where the form does not tell it.
    jitter = 10 * (report.clock_rate or 48_000)
    for block in report.blocks:
        if block.jitter > jitter:
            return "jitter"
        if not -0x800000 <= block.lost <= 0x7FFFFF:
            return "lost"
        if block.lost > block.highest_seq + 1:
            return "sequence"
    sender = report.sender
    if sender is not None and sender.octets > sender.packets * MAX_SIZE:
        return "sender"
    return None
