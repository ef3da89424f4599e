"""Records and messages to rows of PostgreSQL's binary COPY format.

A row is encoded once, where its message is parsed, and goes to the server as it is. Whatever a
stranger sent is made storable first, so that no value can make PostgreSQL refuse a whole batch:
text is valid UTF-8 without NUL and clipped, numbers and times are clamped to their column's range.
"""

import functools
import ipaddress
import math
import operator
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    PingRecord,
    QualityInterval,
    RegistrationRecord,
)
from sipsidecar.signals.alarms import EventRecord, IncidentRecord, OutcomeRecord
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.decisions import AdmissionRecord, StateRecord
from sipsidecar.signals.minutes import CodeMinute, KpiMinute

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a COPY stream begins with: signature, flags, length of the header extension."""
TRAILER = b"\xff\xff"
"""What a COPY stream ends with."""

# Caps on text, in bytes of UTF-8. The first three are in primary keys: their sum stays well under
# the 2704 bytes that fit in a B-tree entry, or a long Call-ID would make a batch fail.
CALL_ID_CAP = 512
TAG_CAP = 256
BRANCH_CAP = 256
"""Of a branch, a stream's name, the UUID of a leg, the name of an incident or an event."""
TEXT_CAP = 256
LONG_TEXT_CAP = 1024
JSON_CAP = 1 << 14
"""Of a document; a longer one is NULL, for a part of it says nothing."""
ARRAY_CAP = 64
"""How many elements of an array are kept."""
PAYLOAD_CAP = 1 << 20
QUARANTINE_CAP = PAYLOAD_CAP + (1 << 16)
"""Of what goes to quarantine: a whole row may, with a payload at its cap."""

TIME_MIN = 0
"""1970-01-01, microseconds UTC."""
TIME_MAX = 7_258_118_400_000_000
"""2200-01-01, microseconds UTC."""
_EPOCH = 946_684_800_000_000  # PostgreSQL counts microseconds from 2000-01-01

_NULL = b"\xff\xff\xff\xff"
_pack_length = struct.Struct(">i").pack
_pack_count = struct.Struct(">h").pack
_pack_int8 = struct.Struct(">iq").pack
_pack_float8 = struct.Struct(">id").pack

_Encoder = Callable[[Any], bytes]


def clean_text(value: str, cap: int) -> bytes:
    r"""Make text storable: NUL and lone surrogates become `\x00` and `\udc80`, then it is clipped."""
    raw = value.encode("utf-8", "backslashreplace")
    if b"\0" in raw:
        raw = raw.replace(b"\0", b"\\x00")
    if len(raw) > cap:
        raw = raw[:cap].decode("utf-8", "ignore").encode()
    return raw


def clean_call_id(call_id: str) -> str:
    """Give the Call-ID as it is stored: what a query must ask for."""
    return clean_text(call_id, CALL_ID_CAP).decode()


def _text(cap: int) -> _Encoder:
    def encode(value: str | None) -> bytes:
        if value is None:
            return _NULL
        plain = value.isascii() and len(value) <= cap and "\0" not in value
        raw = value.encode() if plain else clean_text(value, cap)
        return _pack_length(len(raw)) + raw

    return encode


def _key(cap: int) -> _Encoder:
    """Text that is never NULL, as columns of a primary key must be: empty when absent."""
    text = _text(cap)
    return lambda value: text(value or "")


def _integer(code: str) -> _Encoder:
    layout = struct.Struct(">i" + code)
    pack, size = layout.pack, layout.size - 4
    high = (1 << (8 * size - 1)) - 1
    low = -high - 1

    def encode(value: int | None) -> bytes:
        if value is None:
            return _NULL
        return pack(size, value if low <= value <= high else high if value > 0 else low)

    return encode


def _port(value: int | None) -> bytes:
    return _NULL if value is None else _int4(value & 0xFFFF)


def _clamp_time(value: int) -> int:
    return value if TIME_MIN <= value <= TIME_MAX else TIME_MAX if value > 0 else TIME_MIN


def _clamp_int4(value: int) -> int:
    return max(-(1 << 31), min(value, (1 << 31) - 1))


def _time(value: int | None) -> bytes:
    if value is None:
        return _NULL
    if not TIME_MIN <= value <= TIME_MAX:
        value = _clamp_time(value)
    return _pack_int8(8, value - _EPOCH)


def _float8(value: float | None) -> bytes:
    if value is None or not math.isfinite(value):
        return _NULL
    return _pack_float8(8, value)


def _boolean(value: bool) -> bytes:
    return b"\0\0\0\1\1" if value else b"\0\0\0\1\0"


def _answer(value: bool | None) -> bytes:
    return _NULL if value is None else _boolean(value)


@functools.lru_cache(maxsize=16_384)
def _inet(ip: str | None) -> bytes:
    if ip is None:
        return _NULL
    try:
        packed = ipaddress.ip_address(ip).packed
    except ValueError:
        return _NULL  # an inet column holds addresses alone
    # family (PostgreSQL's own 2 and 3), bits of the netmask, is it a network, length
    head = bytes((2, 32, 0, 4)) if len(packed) == 4 else bytes((3, 128, 0, 16))
    return _pack_length(len(head) + len(packed)) + head + packed


def _array(oid: int, element: _Encoder) -> _Encoder:
    # dimensions, has NULLs, element type, elements, first subscript
    shape = struct.Struct(">iiiii")
    empty = struct.pack(">iiii", 12, 0, 0, oid)

    def encode(values: tuple[Any, ...]) -> bytes:
        if not values:
            return empty
        kept = values[:ARRAY_CAP]
        body = shape.pack(1, 0, oid, len(kept), 1) + b"".join([element(value) for value in kept])
        return _pack_length(len(body)) + body

    return encode


def _storable(value: Any) -> Any:  # noqa: ANN401 -- whatever JSON holds
    """Make the text in a document storable: jsonb refuses NUL."""
    if isinstance(value, str):
        return clean_text(value, JSON_CAP).decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(one) for key, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value


def _json_object(value: str | None) -> bytes:
    """Encode a JSON object for a jsonb column; NULL for what is none, or over its cap."""
    if value is None or len(value) > JSON_CAP:
        return _NULL
    try:
        # Decoded and encoded anew: what jsonb refuses (half a surrogate pair, 1e400) ends here.
        raw = msgspec.json.encode(_storable(msgspec.json.decode(value, type=dict[str, Any])))
    except (ValueError, RecursionError):
        return _NULL
    if len(raw) > JSON_CAP:
        return _NULL
    return _pack_length(1 + len(raw)) + b"\1" + raw  # 1: version of jsonb's binary form


def _buckets(values: tuple[int, ...] | None) -> bytes:
    """Encode how many are in each bucket: without zeros at the end, NULL when there are only those."""
    if not values or not any(values):
        return _NULL
    used = len(values)
    while not values[used - 1]:
        used -= 1
    return _counts(values[:used])


_int2 = _integer("h")
_int4 = _integer("i")
_int8 = _integer("q")
_counts = _array(23, _int4)
_short_text = _text(TEXT_CAP)
_long_text = _text(LONG_TEXT_CAP)
_call_id = _key(CALL_ID_CAP)
_word = functools.lru_cache(maxsize=1024)(_short_text)

_WORDS = frozenset(
    {
        "agent", "carrier", "codec", "codec_negotiated", "codec_offered", "dated_by",
        "delay_source", "direction", "end_source", "final_class", "final_origin", "measure",
        "mos_codec", "mos_direction", "mos_grade", "mos_kind", "mos_scale", "node",
        "peer_mos_source", "region", "released_by", "rule", "scope", "scope_value", "segment",
        "source", "tenant", "time_source", "transport", "trunk", "unrated", "verdict", "way",
    }
)  # fmt: skip
"""Columns that hold the same few words in nearly all rows."""

_BY_NAME: dict[str, _Encoder] = {
    "call_id": _call_id,
    "from_tag": _key(TAG_CAP),
    "branch": _key(BRANCH_CAP),
    "stream": _key(BRANCH_CAP),
    **dict.fromkeys(_WORDS, _word),
    "uuid": _key(BRANCH_CAP),
    "conversation": _key(BRANCH_CAP),
    "incident": _key(BRANCH_CAP),
    "event": _key(BRANCH_CAP),
    "outcome": _key(BRANCH_CAP),
    "series": _key(LONG_TEXT_CAP),  # a word of the configuration for each dimension
    "call_ids": _array(25, _call_id),
    "user_agent": _long_text,
    "final_phrase": _long_text,
    "reason": _long_text,
    "summary": _long_text,
    "text": _long_text,
    "final_code": _int2,
    "q850": _int2,
    "sip_code": _int2,
    "code": _int2,
    "clock_agent_id": _int8,
    "cseq": _int8,
    "expires": _int8,
    # SSRCs and counts of RTCP are unsigned numbers of 32 bits
    "ssrc": _int8,
    "reporter_ssrc": _int8,
    "source_ssrc": _int8,
    "packets_sent": _int8,
    "packets_expected": _int8,
    "packets_lost": _int8,
    "packets_in": _int8,
    "packets_out": _int8,
    "packets_skipped": _int8,
    "counts": _counts,
    "data": _json_object,
    "evidence": _json_object,
}
_BY_SUFFIX: dict[str, _Encoder] = {"at": _time, "ip": _inet, "port": _port, "buckets": _buckets}
_BY_TYPE: dict[Any, _Encoder] = {
    str: _short_text,
    str | None: _short_text,
    int: _int4,
    int | None: _int4,
    float: _float8,
    float | None: _float8,
    bool: _boolean,
    bool | None: _answer,
    tuple[int, ...]: _array(20, _int8),
    tuple[float, ...]: _array(701, _float8),
    tuple[str, ...]: _array(25, _short_text),
}


class _Layout:
    """How one kind of record becomes a row: a column per field, then `node_id`."""

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        names = kind.__struct_fields__
        self.columns = (*names, "node_id")
        self.values = operator.attrgetter(*names)
        self.encoders = tuple(
            _BY_NAME.get(field.name)
            or _BY_SUFFIX.get(field.name.rpartition("_")[2])
            or _BY_TYPE[field.type]
            for field in msgspec.structs.fields(kind)
        )
        self.absent = tuple(encoder(None) for encoder in self.encoders)
        self.count = _pack_count(len(self.columns))

    def encode(self, record: msgspec.Struct, node_id: int) -> bytes:
        columns = zip(self.encoders, self.absent, self.values(record), strict=True)
        # much of a row is absent: that is not encoded each time
        fields = [absent if value is None else encoder(value) for encoder, absent, value in columns]
        return b"".join([self.count, *fields, _int4(node_id)])


class _StoredConversation(ConversationRecord, frozen=True, kw_only=True):
    """A conversation with the column that its rows are distributed by."""

    call_id: str


_CALL = _Layout(CallRecord)
_ATTEMPT = _Layout(AttemptRecord)
_MEDIA = _Layout(MediaRecord)
_INTERVAL = _Layout(QualityInterval)
_LEG = _Layout(LegRecord)
_CONVERSATION = _Layout(_StoredConversation)
_REGISTRATION = _Layout(RegistrationRecord)
_PING = _Layout(PingRecord)
_ADMISSION = _Layout(AdmissionRecord)
_STATE = _Layout(StateRecord)
_KPI = _Layout(KpiMinute)
_CODE = _Layout(CodeMinute)
_BASELINE = _Layout(BaselineHour)
_INCIDENT = _Layout(IncidentRecord)
_EVENT = _Layout(EventRecord)
_OUTCOME = _Layout(OutcomeRecord)

# Numbers first: fixed widths make the row short on disk and one struct of the hot path.
_MESSAGE_COLUMNS = (
    "received_at", "captured_at", "agent_id", "sequence", "node_id", "src_port", "dst_port",
    "kind", "codec", "src_ip", "dst_ip", "transport", "call_id", "payload", "agent_ip",
)  # fmt: skip
_QUARANTINE_COLUMNS = (
    "received_at", "captured_at", "agent_id", "sequence", "node_id", "src_port", "dst_port",
    "src_ip", "dst_ip", "why", "payload", "detail",
)  # fmt: skip

TABLES: dict[str, tuple[str, ...]] = {
    "calls": _CALL.columns,
    "attempts": _ATTEMPT.columns,
    "media": _MEDIA.columns,
    "quality_intervals": _INTERVAL.columns,
    "legs": _LEG.columns,
    "conversations": _CONVERSATION.columns,
    "registrations": _REGISTRATION.columns,
    "pings": _PING.columns,
    "admissions": _ADMISSION.columns,
    "admission_states": _STATE.columns,
    "kpi_minute": _KPI.columns,
    "code_minute": _CODE.columns,
    "baseline_hours": _BASELINE.columns,
    "incidents": _INCIDENT.columns,
    "events": _EVENT.columns,
    "outcomes": _OUTCOME.columns,
    "messages": _MESSAGE_COLUMNS,
    "quarantine": _QUARANTINE_COLUMNS,
}
"""The columns of every row encoded here, in order."""

LATER_COLUMNS = {"findings": _array(25, _short_text)(())}
"""What stands, encoded, in a column that rows of an earlier version of the sidecar lack and that
cannot be NULL."""


def encode_call(record: CallRecord, node_id: int) -> bytes:
    """Encode a row of `calls`."""
    return _CALL.encode(record, node_id)


def encode_attempt(record: AttemptRecord, node_id: int) -> bytes:
    """Encode a row of `attempts`."""
    return _ATTEMPT.encode(record, node_id)


def encode_media(record: MediaRecord, node_id: int) -> bytes:
    """Encode a row of `media`."""
    return _MEDIA.encode(record, node_id)


def encode_interval(record: QualityInterval, node_id: int) -> bytes:
    """Encode a row of `quality_intervals`."""
    return _INTERVAL.encode(record, node_id)


def encode_leg(record: LegRecord, node_id: int) -> bytes:
    """Encode a row of `legs`."""
    return _LEG.encode(record, node_id)


def encode_conversation(record: ConversationRecord, node_id: int) -> bytes:
    """Encode a row of `conversations`; its `call_id` is the first known one of its legs."""
    first = record.call_ids[0] if record.call_ids else ""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return _CONVERSATION.encode(_StoredConversation(call_id=first, **fields), node_id)


def encode_registration(record: RegistrationRecord, node_id: int) -> bytes:
    """Encode a row of `registrations`."""
    return _REGISTRATION.encode(record, node_id)


def encode_ping(record: PingRecord, node_id: int) -> bytes:
    """Encode a row of `pings`."""
    return _PING.encode(record, node_id)


def encode_admission(record: AdmissionRecord, node_id: int) -> bytes:
    """Encode a row of `admissions`."""
    return _ADMISSION.encode(record, node_id)


def encode_state(record: StateRecord, node_id: int) -> bytes:
    """Encode a row of `admission_states`."""
    return _STATE.encode(record, node_id)


def encode_kpi(record: KpiMinute, node_id: int) -> bytes:
    """Encode a row of `kpi_minute`."""
    return _KPI.encode(record, node_id)


def encode_code(record: CodeMinute, node_id: int) -> bytes:
    """Encode a row of `code_minute`."""
    return _CODE.encode(record, node_id)


def encode_baseline(record: BaselineHour, node_id: int) -> bytes:
    """Encode a row of `baseline_hours`."""
    return _BASELINE.encode(record, node_id)


def encode_incident(record: IncidentRecord, node_id: int) -> bytes:
    """Encode a row of `incidents`."""
    return _INCIDENT.encode(record, node_id)


def encode_event(record: EventRecord, node_id: int) -> bytes:
    """Encode a row of `events`."""
    return _EVENT.encode(record, node_id)


def encode_outcome(record: OutcomeRecord, node_id: int) -> bytes:
    """Encode a row of `outcomes`."""
    return _OUTCOME.encode(record, node_id)


class Replaced(NamedTuple):
    """The older revisions of one record: same key, a revision below this one."""

    table: str
    call_id: str
    from_tag: str
    part: str
    """Branch of an attempt, stream of media, UUID of a leg, name of a conversation or of an incident;
    empty for a call."""
    received_at: int
    node_id: int
    revision: int


def clean_key(key: Replaced) -> Replaced:
    """Give the key as it was stored; cleaning it again changes nothing."""
    return key._replace(
        call_id=clean_call_id(key.call_id),
        from_tag=clean_text(key.from_tag or "", TAG_CAP).decode(),
        part=clean_text(key.part or "", BRANCH_CAP).decode(),
        received_at=_clamp_time(key.received_at),
        node_id=_clamp_int4(key.node_id),
        revision=_clamp_int4(key.revision),
    )


def replaced(
    record: CallRecord
    | AttemptRecord
    | MediaRecord
    | LegRecord
    | ConversationRecord
    | IncidentRecord,
    node_id: int,
) -> Replaced | None:
    """Name what must go when this record is stored; None for a first revision."""
    if record.revision <= 0:
        return None
    if isinstance(record, CallRecord):
        table, call_id, tag, part = "calls", record.call_id, record.from_tag, ""
    elif isinstance(record, AttemptRecord):
        table, call_id, tag, part = "attempts", record.call_id, record.from_tag, record.branch
    elif isinstance(record, MediaRecord):
        table, call_id, tag, part = "media", record.call_id, record.from_tag, record.stream
    elif isinstance(record, LegRecord):
        table, call_id, tag, part = "legs", record.call_id, "", record.uuid
    elif isinstance(record, IncidentRecord):
        table, call_id, tag, part = "incidents", record.call_id, "", record.incident
    else:  # by its name alone: the Call-ID may have been learned since
        table, call_id, tag, part = "conversations", "", "", record.conversation
    key = (table, call_id, tag, part, record.received_at, node_id, record.revision)
    return clean_key(Replaced(*key))


_MESSAGE = struct.Struct(">h iq iq iq iq ii ii ii ih ih")
_INT2_MAX = (1 << 15) - 1
_INT8_MAX = (1 << 63) - 1
_TRANSPORTS: dict[str | None, bytes] = {
    name: _short_text(name) for name in (None, "udp", "tcp", "tls", "ws", "wss", "sctp")
}


def _numbers(
    columns: int,
    received_at: int,
    captured_at: int | None,
    agent_id: int | None,
    sequence: int,
    node_id: int,
    src_port: int | None,
    dst_port: int | None,
) -> bytes:
    """Encode what messages and quarantine begin with, absent and wild values included."""
    times = _pack_count(columns) + _time(received_at) + _time(captured_at)
    origin = _int8(agent_id) + _int8(sequence) + _int4(node_id)
    return times + origin + _port(src_port) + _port(dst_port)


def encode_message(
    received_at: int,
    captured_at: int | None,
    node_id: int,
    agent_id: int | None,
    sequence: int,
    kind: int,
    src_ip: str | None,
    src_port: int | None,
    dst_ip: str | None,
    dst_port: int | None,
    transport: str | None,
    call_id: str | None,
    payload: bytes,
    codec: int = 0,
    agent_ip: str | None = None,
) -> bytes:
    """Encode a row of `messages`: one mirrored packet as it was.

    `kind` is the HEP protocol type, `sequence` the order of arrival in this process, `agent_ip`
    the sender of the HEP packet. A message of
    no call gets an empty Call-ID: Citus cannot place a row whose distribution column is NULL.
    """
    if (
        captured_at is not None
        and agent_id is not None
        and src_port is not None
        and dst_port is not None
        and TIME_MIN <= received_at <= TIME_MAX
        and TIME_MIN <= captured_at <= TIME_MAX
        and 0 <= agent_id <= _INT8_MAX
        and 0 <= kind <= _INT2_MAX
    ):
        numbers = _MESSAGE.pack(
            15, 8, received_at - _EPOCH, 8, captured_at - _EPOCH, 8, agent_id, 8, sequence,
            4, node_id, 4, src_port & 0xFFFF, 4, dst_port & 0xFFFF, 2, kind, 2, codec,
        )  # fmt: skip
    else:
        numbers = (
            _numbers(15, received_at, captured_at, agent_id, sequence, node_id, src_port, dst_port)
            + _int2(kind)
            + _int2(codec)
        )
    name = clean_text(call_id, CALL_ID_CAP) if call_id else b""
    if len(payload) > PAYLOAD_CAP:
        payload = payload[:PAYLOAD_CAP]
    return b"".join(
        (
            numbers,
            _inet(src_ip),
            _inet(dst_ip),
            _TRANSPORTS.get(transport) or _short_text(transport),
            _pack_length(len(name)),
            name,
            _pack_length(len(payload)),
            payload,
            _inet(agent_ip),
        )
    )


def encode_quarantine(
    received_at: int,
    captured_at: int | None,
    node_id: int,
    agent_id: int | None,
    sequence: int,
    src_ip: str | None,
    src_port: int | None,
    dst_ip: str | None,
    dst_port: int | None,
    why: str,
    payload: bytes,
    detail: str | None = None,
) -> bytes:
    """Encode a row of `quarantine`: bytes that were not understood, and the word for why.

    `detail` says more where `why` is only a class.
    """
    payload = payload[:QUARANTINE_CAP]
    return b"".join(
        (
            _numbers(12, received_at, captured_at, agent_id, sequence, node_id, src_port, dst_port),
            _inet(src_ip),
            _inet(dst_ip),
            _short_text(why),
            _pack_length(len(payload)),
            payload,
            _long_text(detail),
        )
    )
