"""Quality of a whole session, as a device or a media proxy sums it up, in one canonical form."""

import ipaddress
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec

from sipsidecar.wire import WireError

WHYS: Final = frozenset(
    {"size", "lines", "fields", "several", "not-quality", "bencode", "json", "parties"}
)
MAX_VQ: Final = 16_384
MAX_LINES: Final = 256
"""Lines of a vq-rtcpxr body."""
MAX_HEADER: Final = 2048
MAX_FIELDS: Final = 64
"""Values of an X-RTP-Stat header."""
MAX_NG: Final = 262_144
"""As much as a compressed HEP payload may grow to."""
MAX_ITEMS: Final = 16_384
"""Values of an NG message."""
MAX_DEPTH: Final = 16
MAX_LOG: Final = 16_384
MAX_PARTIES: Final = 64
"""Parties, streams or reporters in one NG message."""

_DIGITS: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", re.ASCII)
_WORD: Final = re.compile(r"[!-~]+", re.ASCII)
_IP: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)


class QualityError(WireError):
    """A body or header that is not such a report; `why` is one of `WHYS`."""


class SessionQuality(msgspec.Struct, frozen=True, gc=False):
    """What one party heard over a session, by its own or a media proxy's account."""

    source: str
    """vq, rtp_stat, rtpengine or log."""
    call_id: str | None = None
    """Named in the report itself; None: that of the message that carries it."""
    heard_by: str | None = None
    """caller or callee, where the report says so; else by `local_ip` or who sent the message."""
    local_ip: str | None = None
    """Where the media was heard."""
    local_port: int | None = None
    remote_ip: str | None = None
    remote_port: int | None = None
    local_ssrc: int | None = None
    """Of what the hearing party sends, itself and in its RTCP."""
    remote_ssrc: int | None = None
    """Of the stream that was heard."""
    codec: str | None = None
    """Encoding name (IANA), or as the report spells it."""
    clock_rate: int | None = None
    ptime_ms: int | None = None
    packets_received: int | None = None
    packets_lost: int | None = None
    loss_percent: float | None = None
    discard_percent: float | None = None
    burst_ratio: float | None = None
    jitter_ms: float | None = None
    rtt_ms: float | None = None
    end_system_ms: float | None = None
    mos_lq: float | None = None
    mos_cq: float | None = None
    mos_min: float | None = None
    r: float | None = None
    """Conversational."""
    seconds: float | None = None
    kind: str | None = None
    """Of a vq report: final (the call ended), session or interval; None where nothing says it."""
    second_hand: bool = False
    """What the other party heard, as this one relays it: whoever sent the message did not hear it."""
    claimed_by: str | None = None
    """caller or callee by the identities in the report; an address in the SDP is better evidence."""
    local_tag: str | None = None
    """SIP tag of the party that heard."""
    packets_sent: int | None = None
    """What the hearing party sent itself, by its own count or by the media proxy that received it."""
    samples: int | None = None
    """Reports that the averages are of."""
    mos: float | None = None
    """Of a kind that the report does not name."""
    r_lq: float | None = None
    """Listening."""


# ------------------------------------------------------------------------------------------ values


def _figure(value: object, high: float, *, low: float = 0, scale: float = 1) -> float | None:
    """Read digits or a JSON number and divide by `scale`; None for what is out of range."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    # Compared before the division: JSON has integers that no float can hold.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / scale if low * scale <= value <= high * scale else None
    return None


def _count(value: object, high: int = 0xFFFFFFFF) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value <= high else None
    return None


def _mos(value: object, scale: float = 1) -> float | None:
    return _figure(value, 5, low=1, scale=scale)


def _ms(value: object, scale: float = 1) -> float | None:
    """Read a time of less than 10 s."""
    return _figure(value, 9999.999, scale=scale)


def _delay(value: object, scale: float = 1) -> float | None:
    """Read a delay: 0 is how reports say that they know none (RFC 3611 4.7.3)."""
    return _ms(value, scale) or None


def _word(value: object, limit: int = 255) -> str | None:
    if isinstance(value, str) and len(value) <= limit and _WORD.fullmatch(value):
        return value
    return None


def _ip(value: object) -> str | None:
    """Write an address in its canonical form; None for no address and for an unspecified one."""
    if not isinstance(value, str):
        return None
    text = value.strip("[]")
    # Before the cache, which would keep strings of any length.
    return _canonical(text) if _IP.fullmatch(text) else None


@lru_cache(maxsize=4096)  # the same phones and proxies stand in all reports
def _canonical(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6:
        address = address.ipv4_mapped or address
    return None if address.is_unspecified else str(address)


def _port(value: object) -> int | None:
    return _count(value, 65_535) or None


# ---------------------------------------------------------------------------------------- RFC 6035

_REPORTS: Final = {
    "vqsessionreport": "session",
    "vqintervalreport": "interval",
    "vqalertreport": "alert",
}
_GROUPS: Final = {"localmetrics": False, "metrics": False, "remotemetrics": True}
_METRICS: Final = frozenset({
    "timestamps", "sessiondesc", "jitterbuffer", "packetloss", "burstgaploss", "delay", "signal",
    "qualityest",
})  # fmt: skip
_IDENTITIES: Final = frozenset({"callid", "localid", "remoteid", "origid", "dialogid"})
_ADDRESSES: Final = frozenset({"localaddr", "remoteaddr"})
_NAMES: Final = _REPORTS.keys() | _GROUPS.keys() | _METRICS | _IDENTITIES | _ADDRESSES
_ANY_METRIC: Final = "packetloss"
"""Whose line a value without a line's name is taken for: no two lines have a key in common."""
_KEYS: Final = frozenset({
    "start", "stop", "pd", "sr", "fd", "fpp", "pps", "nlr", "jdr", "rtd", "esd", "iaj",
    "rlq", "rcq", "moslq", "moscq",
})  # fmt: skip

_LINE: Final = re.compile(r"[ \t]{0,64}([A-Za-z][A-Za-z0-9-]{0,31})[ \t]{0,8}(?:([:=])|$)")
_PAIR: Final = re.compile(r'([A-Za-z]{1,16})[ \t]{0,8}=[ \t]{0,8}("[^"]*"|[^ \t;,"]*)')
_TIME: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]{1,6})?Z?", re.ASCII
)
_URI: Final = re.compile(r"<([^<>]{1,255})>")
_SSRC_HEX: Final = re.compile(r"0[xX]([0-9A-Fa-f]{1,8})|([0-9A-Fa-f]{8})", re.ASCII)
_SSRC_DECIMAL: Final = re.compile(r"-?[0-9]{9,10}", re.ASCII)


class _Group:
    """What the lines of LocalMetrics or of RemoteMetrics say, while they are being read."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.addresses: dict[str, str] = {}


def parse_vq(body: bytes) -> tuple[SessionQuality, ...]:
    """Turn a vq-rtcpxr body (RFC 6035 4.6) into what the reporter and what the other side heard.

    Also what came before the RFC (addresses within the groups, no colons, SSRCs in decimal) and
    a bare line of values ("NLR=0.5 JDR=0.1 ..."). A group without a figure, and an alert, which
    only repeats the state of a session that goes on, give nothing. QualityError: not such a body.
    """
    if len(body) > MAX_VQ:
        raise QualityError("size")
    lines = body.decode("latin-1").split("\n")
    if len(lines) > MAX_LINES:
        raise QualityError("lines")
    identities: dict[str, str] = {}
    groups = (_Group(), _Group())
    kind: str | None = None
    group = groups[0]
    name = _ANY_METRIC
    for raw in lines:
        line = raw.rstrip()
        if not line:
            continue
        match = _LINE.match(line)
        if match is not None and _begins(match[1].lower(), match[2]):
            name, text = match[1].lower(), line[match.end() :]
            if name in _REPORTS:
                if kind is not None:
                    raise QualityError("several")
                kind = _REPORTS[name]
                if kind == "session" and "callterm" in text.lower():
                    kind = "final"
                name = _ANY_METRIC
            elif name in _GROUPS:
                group = groups[_GROUPS[name]]
                name = _ANY_METRIC
            elif name in identities or name in group.addresses:
                name = ""  # said again: the first stays, also without what would be folded to it
        else:
            # A folded line (RFC 3261 7.3.1), or values that a device puts on a line of their own.
            if not line.startswith((" ", "\t")) and (match is None or match[2] != "="):
                name = ""
            text = line
        if name in _METRICS:
            for key, value in _PAIR.findall(text):
                if key.lower() in _KEYS:
                    group.values.setdefault(key.lower(), value.strip('"'))
        elif name in _ADDRESSES:
            group.addresses[name] = f"{group.addresses.get(name, '')} {text}"
        elif name in _IDENTITIES:
            identities[name] = (identities.get(name, "") + text).strip()
    if kind is None and not (groups[0].values or groups[1].values):
        raise QualityError("not-quality")
    if kind == "alert":
        return ()
    return tuple(_accounts(identities, groups, kind))


def _begins(name: str, separator: str | None) -> bool:
    """Tell a line's own name from a key of the line before, which comes with "=", too."""
    if separator is None:
        return name in _REPORTS or name in _GROUPS
    return name in _IDENTITIES or (separator == ":" and name in _NAMES)


def _accounts(
    identities: dict[str, str], groups: tuple[_Group, _Group], kind: str | None
) -> Iterator[SessionQuality]:
    local, remote = groups
    if "localaddr" in local.addresses and len(remote.addresses) == 2:
        heard_there = (remote.addresses["localaddr"], remote.addresses["remoteaddr"])
    else:
        local.addresses = remote.addresses | local.addresses
        heard_there = (local.addresses.get("remoteaddr", ""), local.addresses.get("localaddr", ""))
    heard_here = (local.addresses.get("localaddr", ""), local.addresses.get("remoteaddr", ""))
    call_id = _word(identities.get("callid")) or _word(
        identities.get("dialogid", "").partition(";")[0].strip()
    )
    caller = _originator(identities)
    for group, addresses, second_hand in ((local, heard_here, False), (remote, heard_there, True)):
        values = group.values
        figures: dict[str, Any] = {
            "loss_percent": _figure(values.get("nlr"), 100),
            "discard_percent": _figure(values.get("jdr"), 100),
            "jitter_ms": _ms(values.get("iaj")),
            "rtt_ms": _delay(values.get("rtd")),
            "end_system_ms": _delay(values.get("esd")),
            "mos_lq": _mos(values.get("moslq")),
            "mos_cq": _mos(values.get("moscq")),
            "r": _figure(values.get("rcq"), 120),
            "r_lq": _figure(values.get("rlq"), 120),
        }
        if any(figure is not None for figure in figures.values()):
            here, there = (_place(text) for text in addresses)
            codec = _word(values.get("pd"), 32)
            claimed = None if caller is None else "caller" if caller != second_hand else "callee"
            yield SessionQuality(
                "vq",
                call_id=call_id,
                local_ip=here[0],
                local_port=here[1],
                remote_ip=there[0],
                remote_port=there[1],
                local_ssrc=here[2],
                remote_ssrc=there[2],
                codec=codec,
                clock_rate=_clock(codec, values.get("sr")),
                ptime_ms=_ptime(values),
                seconds=_duration(values.get("start", ""), values.get("stop", "")),
                kind=kind,
                second_hand=second_hand,
                claimed_by=claimed,
                **figures,
            )


def _originator(identities: dict[str, str]) -> bool | None:
    """Tell whether the reporter began the session: OrigID is LocalID, and not RemoteID."""
    local, remote, origin = (
        match[1].lower() if (match := _URI.search(text)) else text.lower()
        for text in (identities.get(name, "") for name in ("localid", "remoteid", "origid"))
    )
    if not origin or local == remote or origin not in {local, remote}:
        return None
    return origin == local


def _place(text: str) -> tuple[str | None, int | None, int | None]:
    """Read "IP=192.0.2.1 PORT=5000 SSRC=0x1a3b5c7d"."""
    values = {key.lower(): value for key, value in _PAIR.findall(text)}
    return _ip(values.get("ip", "")), _port(values.get("port")), _ssrc(values.get("ssrc", ""))


def _ssrc(text: str) -> int | None:
    """Read an SSRC: hexadecimal (RFC 6035), or decimal, also signed, as some devices have it."""
    if match := _SSRC_HEX.fullmatch(text):
        # Eight digits without a letter could be either.
        if match[2] is not None and match[2].isdigit():
            return None
        return int(match[1] or match[2], 16)
    if _SSRC_DECIMAL.fullmatch(text):
        value = int(text)
        return value & 0xFFFFFFFF if -0x80000000 <= value <= 0xFFFFFFFF else None
    return None


def _clock(codec: str | None, rate: str | None) -> int | None:
    if codec is not None and codec.upper().replace(".", "") == "G722":
        return 8000  # RFC 3551 4.5.2, whatever it samples at
    return _count(rate, 1_000_000) or None


def _ptime(values: dict[str, str]) -> int | None:
    """Return milliseconds of a packet; None when the ways to tell it differ.

    A frame's length alone does not tell it.
    """
    frame, frames = _count(values.get("fd"), 1000), _count(values.get("fpp"), 100)
    rate = _count(values.get("pps"), 1000)
    told = {frame * frames} if frame and frames else set()
    if rate:
        told.add(round(1000 / rate))
    return told.pop() if len(told) == 1 else None


def _duration(start: str, stop: str) -> float | None:
    began, ended = _moment(start), _moment(stop)
    if began is None or ended is None:
        return None
    passed = ended - began
    return passed.total_seconds() if timedelta(0) <= passed <= timedelta(days=7) else None


def _moment(text: str) -> datetime | None:
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    micros = int((match[7] or ".0")[1:].ljust(6, "0"))
    try:
        return datetime(year, month, day, hour, minute, second, micros)  # noqa: DTZ001
    except ValueError:
        return None


# --------------------------------------------------------------------------------- header of a BYE


def parse_rtp_stat(value: bytes | str) -> SessionQuality:
    """Turn an X-RTP-Stat or P-RTP-Stat header into what the sender of the message heard.

    The dialects (AVM, Cisco/Linksys, AudioCodes, Obihai/Poly, baresip) agree on: PS and PR
    packets sent and received, PL packets lost (of two: received, sent), DU and CD seconds, DE the
    decoder, IP local and remote address, and one JI is the jitter in ms. Of two JI the unit
    differs (ms or timestamp units), LA is the delay of a network, a decoder or a buffer, DL has
    no unit, PD counts discards or errors: they stay unknown. ES, ER, OS, OR, SP, SO, CR, SR, QS,
    QR, BL, LS, RB, SB, CS, EN, VQ say nothing more here. MOS is of an unnamed kind.
    """
    text = value if isinstance(value, str) else value.decode("latin-1")
    if len(text) > MAX_HEADER:
        raise QualityError("size")
    fields: dict[str, list[str]] = {}
    values: list[str] = []
    # Fields are parted by ";" or by ",", and "," also parts the values of one.
    parts = text.replace(";", ",").split(",")
    if len(parts) > MAX_FIELDS:
        raise QualityError("fields")
    for part in parts:
        key, equals, rest = part.partition("=")
        if equals:
            values = fields.setdefault(key.strip().upper(), [])
            values.append(rest.strip())
        elif part.strip():
            values.append(part.strip())
    received, lost = _counted(fields, "PR"), _counted(fields, "PL")
    sent = _counted(fields, "PS")
    if received is None and lost is None and sent is None:
        raise QualityError("not-quality")
    expected = None if received is None or lost is None else received + lost
    jitter = fields.get("JI", [])
    places = [_endpoint(text) for text in fields.get("IP", [])[:2]] + [(None, None)] * 2
    return SessionQuality(
        "rtp_stat",
        local_ip=places[0][0],
        local_port=places[0][1],
        remote_ip=places[1][0],
        remote_port=places[1][1],
        codec=_word(fields.get("DE", [""])[0], 32),
        packets_received=received,
        packets_lost=lost,
        loss_percent=100 * lost / expected if expected and lost is not None else None,
        jitter_ms=_ms(jitter[0]) if len(jitter) == 1 else None,
        seconds=_figure(fields.get("DU", fields.get("CD", [""]))[0], 7 * 86_400),
        packets_sent=sent,
        mos=_mos(fields.get("MOS", [""])[0]),
    )


def _counted(fields: dict[str, list[str]], key: str) -> int | None:
    return _count(fields.get(key, [""])[0])


def _endpoint(text: str) -> tuple[str | None, int | None]:
    ip, _, port = text.rpartition(":")
    return _ip(ip), _port(port)


# ------------------------------------------------------------------------------------ rtpengine NG

_NG_START: Final = re.compile(rb"(?:[!-~]{1,128} )?(?=[d{])")
_B_INTEGER: Final = re.compile(rb"i(-?[0-9]{1,20})e")
_B_LENGTH: Final = re.compile(rb"([0-9]{1,6}):")
_JSON: Final = msgspec.json.Decoder(dict[str, Any])
_LABELS: Final = frozenset({"caller", "callee"})


def parse_ng(payload: bytes) -> tuple[SessionQuality, ...]:
    """Turn rtpengine's answer to a query or delete, mirrored over HEP, into what each party heard.

    A cookie and a bencoded dictionary, or a JSON object where the client speaks JSON. The SSRC
    table is kept by reporter: the entry of B is what B heard. MOS is times ten, round-trip times
    are microseconds, jitter milliseconds, loss percent. The call is that of HEP's correlation id.
    Parties of which there is no MOS are given, too, with the packets that came from them: that
    is all that shows one-way audio. Messages without statistics give nothing. Source:
    rtpengine's ng_control_protocol.md and its ng_call_stats().
    """
    if len(payload) > MAX_NG:
        raise QualityError("size")
    start = _NG_START.match(payload)
    if start is None:
        raise QualityError("not-quality")
    if b"SSRC" not in payload:
        return ()
    at = start.end()
    said = _bdecode(payload, at) if payload[at] == 0x64 else _object(payload[at:])
    if "command" in said:
        return ()
    table = {
        ssrc: entry
        for key, entry in _dict(said.get("SSRC")).items()
        if (ssrc := _count(key)) is not None and isinstance(entry, dict) and "average MOS" in entry
    }
    parties = [each for each in _dict(said.get("tags")).values() if isinstance(each, dict)]
    if len(parties) > MAX_PARTIES or len(table) > MAX_PARTIES:
        raise QualityError("parties")
    told = tuple(
        islice((each for party in parties for each in _party(party, table)), MAX_PARTIES + 1)
    )
    if len(told) > MAX_PARTIES:
        raise QualityError("parties")
    return (*told, *(_rtpengine(entry, ssrc) for ssrc, entry in table.items()))


def _party(party: dict[str, Any], table: dict[int, dict[str, Any]]) -> Iterator[SessionQuality]:
    """Yield what one tag heard, with its addresses and names, and take it out of the table."""
    tag, label = _word(party.get("tag")), party.get("label")
    for media in _list(party.get("medias")):
        for stream in _list(media.get("streams")) if media.get("type") == "audio" else ():
            flags = stream.get("flags")
            if not isinstance(flags, list) or "RTP" not in flags:
                continue
            place = _dict(stream.get("endpoint"))
            ssrcs = _ssrcs(media, stream)
            packets = _count(_dict(stream.get("stats")).get("packets"))
            for ssrc in [each for each in ssrcs if each in table] or ssrcs[:1] or [None]:
                yield msgspec.structs.replace(
                    _rtpengine({} if ssrc is None else table.pop(ssrc, {}), ssrc),
                    heard_by=label if isinstance(label, str) and label in _LABELS else None,
                    local_ip=_ip(place.get("address")),
                    local_port=_port(place.get("port")),
                    local_tag=tag,
                    packets_sent=packets,
                )
                packets = None  # of the stream, whatever its SSRCs


def _ssrcs(media: dict[str, Any], stream: dict[str, Any]) -> list[int | None]:
    """Return what the party sends with: one number, or lists in newer versions, each once."""
    known = [stream.get("SSRC")]
    for holder in (stream, media):
        known += [each.get("SSRC") for each in _list(holder.get("ingress SSRCs"))]
    counted = dict.fromkeys(_count(each) for each in known)
    return [each for each in counted if each is not None]


def _rtpengine(entry: dict[str, Any], ssrc: int | None) -> SessionQuality:
    average, lowest = _dict(entry.get("average MOS")), _dict(entry.get("lowest MOS"))
    return SessionQuality(
        "rtpengine",
        local_ssrc=ssrc,
        packets_lost=_count(entry.get("cumulative loss"), 0x7FFFFF),
        loss_percent=_figure(average.get("packet loss"), 100),
        jitter_ms=_ms(average.get("jitter")),
        rtt_ms=_delay(average.get("round-trip time"), 1000),
        mos_cq=_mos(average.get("MOS"), 10),
        mos_min=_mos(lowest.get("MOS"), 10),
        samples=_count(average.get("samples")),
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    """Return the dictionaries of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _object(text: bytes) -> dict[str, Any]:
    try:
        return _JSON.decode(text)
    # The last two, because msgspec lets them out: nested too deep, and no UTF-8.
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise QualityError("json") from None


def _bdecode(data: bytes, at: int) -> dict[str, Any]:
    """Read the bencoded dictionary at `at`, to the end; no recursion, that no bytes can exhaust."""
    root: dict[str, Any] = {}
    open_: list[dict[str, Any] | list[Any]] = [root]
    keys: list[str | None] = [None]  # of each open dictionary, the key that waits for its value
    at += 1
    for _ in range(MAX_ITEMS):
        letter = data[at : at + 1]
        value: Any
        if letter == b"e":
            if keys.pop() is not None:
                raise QualityError("bencode")
            open_.pop()
            at += 1
            if open_:
                continue
            if data[at:].strip():
                break
            return root
        if letter in {b"d", b"l"}:
            value = {} if letter == b"d" else []
            at += 1
        elif match := _B_INTEGER.match(data, at):
            value, at = int(match[1]), match.end()
        elif match := _B_LENGTH.match(data, at):
            at = match.end() + int(match[1])
            if at > len(data):
                break
            value = data[match.end() : at].decode("utf-8", "replace")
        else:
            break
        holder = open_[-1]
        if isinstance(holder, list):
            holder.append(value)
        elif (key := keys[-1]) is not None:
            holder[key] = value
            keys[-1] = None
        elif isinstance(value, str):
            keys[-1] = value
        else:
            break
        if letter in {b"d", b"l"}:
            if len(open_) == MAX_DEPTH:
                break
            open_.append(value)
            keys.append(None)
    raise QualityError("bencode")


# ------------------------------------------------------------------------------- Kamailio's hlog()


def parse_log(payload: bytes) -> tuple[SessionQuality, ...]:
    """Turn the JSON that kamailio/sipsidecar-media.cfg logs at the end of a call into accounts.

    `{"quality": "rtpengine", "caller": {...}, "callee": {...}}`, each with mos_average, mos_min,
    packetloss (percent), jitter (ms), roundtrip (microseconds) and samples, as numbers or text.
    rtpengine keeps them by reporter: those of the label "caller" are what the caller heard.
    Kamailio writes "<null>" for what it does not have; a party without a figure gives nothing.
    """
    if len(payload) > MAX_LOG:
        raise QualityError("size")
    # Log lines are for everything: only what claims to be a report may fail as one.
    if not payload.lstrip().startswith(b"{") or b'"quality"' not in payload:
        raise QualityError("not-quality")
    said = _object(payload.replace(b'"<null>"', b"null").replace(b"<null>", b"null"))
    if not isinstance(said.get("quality"), str):
        raise QualityError("not-quality")
    told = []
    for party in ("caller", "callee"):
        figures = _dict(said.get(party))
        account = SessionQuality(
            "log",
            heard_by=party,
            loss_percent=_figure(figures.get("packetloss"), 100),
            jitter_ms=_ms(figures.get("jitter")),
            rtt_ms=_delay(figures.get("roundtrip"), 1000),
            mos_cq=_mos(figures.get("mos_average")),
            mos_min=_mos(figures.get("mos_min")),
            samples=_count(figures.get("samples")),
        )
        if account != SessionQuality("log", heard_by=party):
            told.append(account)
    return tuple(told)
