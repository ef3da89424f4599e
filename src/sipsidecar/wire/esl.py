"""FreeSWITCH's event socket (ESL): bytes to events and replies, commands to bytes; pure, no socket.

A frame is a block of headers, a blank line and as many bytes as its Content-Length says. Callers
choose many of the texts in an event: no text can end a header, become another or break the stream.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from sipsidecar.wire import WireError

MAX_HEAD: Final = 64 * 1024
"""Bytes of a frame's header block."""
MAX_HEADERS: Final = 1024
"""Headers of a frame."""
MAX_CONTENT: Final = 16 * 1024 * 1024
"""Bytes of a frame's content; FreeSWITCH's own limit."""
MAX_LINES: Final = 65_536
"""Headers of a plain event that are read; what stands below them is not seen."""
MAX_TEXT: Final = 2048
"""Characters kept of a header's value; a body and a reply are kept whole."""
MAX_LIST: Final = 64 * 1024
"""Bytes of a value that is a list; a longer one is taken for none."""
MAX_RTCP: Final = 64 * 1024
"""Bytes of an RTCP event, of which every header is kept."""

FAULTS: Final = ("header-size", "header-count", "content-type", "content-length")
"""What ends a connection: where the next frame begins is not known."""
REFUSALS: Final = ("json", "event-name", "rtcp", "format", "log")
"""Why a whole frame is left out, counted in `Connection.refused`.

json: no JSON object. event-name: none. rtcp: more than MAX_RTCP. format: neither plain nor JSON
nor a reply. log: a log line, which nobody asked for.
"""
WHYS: Final = frozenset({*FAULTS, *REFUSALS, "newline", "text", "empty", "user", "event"})

MAX_CUSTOM: Final = 256
"""Headers of the INVITE that are kept of a channel."""
MAX_REASON: Final = 96
"""Characters of a refusal's words: FreeSWITCH cuts the whole Reason header at 127, and a cut one
has no closing quote."""


class EslError(WireError):
    """Bytes that are no ESL, or a command that cannot be sent; `why` is one of `WHYS`."""


# ------------------------------------------------------------------------------------------- values

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]

_ODD_NAMES: Final = {
    "core_uuid": "Core-UUID",
    "freeswitch_switchname": "FreeSWITCH-Switchname",
    "freeswitch_version": "FreeSWITCH-Version",
    "unique_id": "Unique-ID",
    "channel_call_uuid": "Channel-Call-UUID",
    "other_leg_unique_id": "Other-Leg-Unique-ID",
    "bridge_a_unique_id": "Bridge-A-Unique-ID",
    "bridge_b_unique_id": "Bridge-B-Unique-ID",
    "caller_caller_id_number": "Caller-Caller-ID-Number",
    "idle_cpu": "Idle-CPU",
    "uptime_msec": "Uptime-msec",
    "job_uuid": "Job-UUID",
    "registration_status": "status",
    **{
        name: name.replace("_", "-")
        for name in (
            "from_user",
            "from_host",
            "contact",
            "expires",
            "user_agent",
            "network_ip",
            "network_port",
        )
    },
    "rtcp": "_rtcp",  # no header
    "body": "_body",
}


def _header_name(field: str) -> str:
    if field.startswith("variable_"):
        return field
    return _ODD_NAMES.get(field) or field.replace("_", "-").title()


class Event(msgspec.Struct, frozen=True, gc=False, rename=_header_name):
    """One event: the fields that this product uses, whichever format they came in.

    Attributes are the headers' names in small letters with underscores; text as FreeSWITCH wrote it;
    None where the event has no such header. A value that came as a list (`ARRAY::`) is its first
    element: callers can make lists. An id is whole: cut, it would be that of another leg or call.
    What is not UTF-8, and NUL, are visible escapes as in the
    texts of a SIP message. Plain text loses one thing that JSON keeps: FreeSWITCH does not escape
    `%40`, so that it reads `@`.
    """

    event_name: _Text
    event_subclass: _Text | None = None
    core_uuid: _Text | None = None
    freeswitch_switchname: _Text | None = None
    freeswitch_version: _Text | None = None
    event_date_timestamp: _Text | None = None
    """Microseconds UTC."""
    event_sequence: _Text | None = None
    unique_id: _Text | None = None
    channel_call_uuid: _Text | None = None
    other_leg_unique_id: _Text | None = None
    bridge_a_unique_id: _Text | None = None
    bridge_b_unique_id: _Text | None = None
    call_direction: _Text | None = None
    hangup_cause: _Text | None = None
    channel_read_codec_name: _Text | None = None
    channel_write_codec_name: _Text | None = None
    caller_caller_id_number: _Text | None = None
    caller_destination_number: _Text | None = None
    caller_channel_created_time: _Text | None = None
    caller_channel_progress_time: _Text | None = None
    caller_channel_progress_media_time: _Text | None = None
    caller_channel_answered_time: _Text | None = None
    caller_channel_bridged_time: _Text | None = None
    caller_channel_hangup_time: _Text | None = None
    variable_sip_call_id: _Text | None = None
    variable_sip_gateway_name: _Text | None = None
    variable_sofia_profile_name: _Text | None = None
    variable_sip_network_ip: _Text | None = None
    variable_sip_network_port: _Text | None = None
    variable_originating_leg_uuid: _Text | None = None
    variable_originator: _Text | None = None
    variable_hangup_cause_q850: _Text | None = None
    variable_sip_term_status: _Text | None = None
    variable_sip_invite_failure_status: _Text | None = None
    variable_proto_specific_hangup_cause: _Text | None = None
    variable_last_bridge_proto_specific_hangup_cause: _Text | None = None
    variable_sip_hangup_disposition: _Text | None = None
    variable_rtp_use_codec_name: _Text | None = None
    variable_rtp_use_codec_rate: _Text | None = None
    variable_rtp_use_ssrc: _Text | None = None
    variable_read_codec: _Text | None = None
    variable_write_codec: _Text | None = None
    variable_local_media_ip: _Text | None = None
    variable_local_media_port: _Text | None = None
    variable_remote_media_ip: _Text | None = None
    variable_remote_media_port: _Text | None = None
    variable_rtp_audio_in_packet_count: _Text | None = None
    variable_rtp_audio_in_skip_packet_count: _Text | None = None
    variable_rtp_audio_in_mos: _Text | None = None
    variable_rtp_audio_out_packet_count: _Text | None = None
    session_count: _Text | None = None
    max_sessions: _Text | None = None
    session_per_sec: _Text | None = None
    session_per_sec_last: _Text | None = None
    session_since_startup: _Text | None = None
    session_peak_max: _Text | None = None
    idle_cpu: _Text | None = None
    uptime_msec: _Text | None = None
    gateway: _Text | None = None
    state: _Text | None = None
    ping_status: _Text | None = None
    status: _Text | None = None
    """Of sofia::gateway_state: the last SIP code."""
    phrase: _Text | None = None
    from_user: _Text | None = None
    from_host: _Text | None = None
    contact: _Text | None = None
    expires: _Text | None = None
    registration_status: _Text | None = None
    """`status` of sofia::register."""
    user_agent: _Text | None = None
    network_ip: _Text | None = None
    network_port: _Text | None = None
    job_uuid: _Text | None = None
    job_command: _Text | None = None
    rtcp: Mapping[str, str | list[str] | None] | None = None
    """All headers of a RECV_ or SEND_RTCP_MESSAGE: their names are numbered. None for others."""
    body: str | None = None
    """Of BACKGROUND_JOB and the like."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The answer to one command, in the order that the commands were sent.

    Or what FreeSWITCH says unasked: auth/request, text/disconnect-notice, text/rude-rejection.
    """

    content_type: str
    """command/reply, api/response, auth/request, text/disconnect-notice, text/rude-rejection."""
    text: str
    """`+OK ...`, `-ERR ...`, or the body, as it came with its line ends."""
    job_uuid: str | None = None
    ok: bool = True
    """False for `-ERR`, and for a notice or rejection, after which FreeSWITCH closes."""


# ------------------------------------------------------------------------------------------- texts

_NUL: Final = "\\x00"
_ARRAY: Final = "ARRAY::"
_MAX_ENCODED: Final = 12 * (MAX_TEXT + 64)
"""Bytes of MAX_TEXT characters and an array's mark: four bytes each, as `%XX`."""


def _whole_text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "backslashreplace")
    return text.replace("\0", _NUL) if "\0" in text else text


def _capped(text: str) -> str:
    text = text[:MAX_TEXT]
    return text.replace("\0", _NUL) if "\0" in text else text


_SEPARATOR: Final = "|:"
_IDS: Final = frozenset(
    {
        "unique_id",
        "channel_call_uuid",
        "other_leg_unique_id",
        "bridge_a_unique_id",
        "bridge_b_unique_id",
        "variable_originating_leg_uuid",
        "variable_originator",
        "variable_sip_call_id",
    }
)
"""Fields whose text is kept whole although it looks like a list."""


def _plain_text(value: bytes, *, whole: bool = False) -> str:
    """The text of a plain event's header value."""
    if value == b"_undef_":  # how FreeSWITCH writes an empty one
        return ""
    value = value[:_MAX_ENCODED]
    text = _whole_text(unquote_to_bytes(value) if b"%" in value else value)
    if text.startswith(_ARRAY) and not whole:
        text = text[len(_ARRAY) :].partition(_SEPARATOR)[0]
    return text[:MAX_TEXT]


# ------------------------------------------------------------------------------------- JSON events

_RTCP_EVENTS: Final = frozenset({"RECV_RTCP_MESSAGE", "SEND_RTCP_MESSAGE"})
_HEADERS: Final = {
    field.name: field.encode_name
    for field in msgspec.structs.fields(Event)
    if field.name not in {"rtcp", "body"}
}
_RAW: Final = msgspec.Raw()
_RawEvent: Final = msgspec.defstruct(
    "_RawEvent",
    [(name, msgspec.Raw, _RAW) for name in (*_HEADERS, "body")],
    rename=_header_name,
    gc=False,
)

_decode_event: Final = msgspec.json.Decoder(Event).decode
_decode_rtcp: Final = msgspec.json.Decoder(dict[str, _Text]).decode
_decode_raw_event: Final = msgspec.json.Decoder(_RawEvent).decode
_decode_raw_headers: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value: Final = msgspec.json.Decoder(str | list[msgspec.Raw] | None).decode
# msgspec raises the second for a value that is not UTF-8, the third for what is nested too deep.
_NOT_DECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# In JSON the backslash of an escape is itself escaped.
_ESCAPES: Final = {0xDC00 + byte: f"\\\\x{byte:02x}" for byte in range(0x80, 0x100)}


def parse_json(body: bytes) -> Event:
    """Turn the content of a text/event-json frame into an event, or raise EslError of `REFUSALS`.

    Of a header that is there twice the last counts, as in plain text.
    """
    try:
        event = _careful_event(body) if b"\\u0000" in body else _decode_event(body)
    except _NOT_DECODED:
        event = _careful_event(body)
    if event.rtcp is not None:  # an object of that name, which is not for the peer to say
        raise EslError("json")
    if not event.event_name:
        raise EslError("event-name")
    if event.event_name in _RTCP_EVENTS:
        return msgspec.structs.replace(event, rtcp=_rtcp_headers(body))
    return event


def _careful_event(body: bytes) -> Event:
    """An event with bytes that are not UTF-8, or with values that are no text or very long."""
    raws = _decode_repaired(_decode_raw_event, body)
    values: dict[str, Any] = {
        name: _json_text(getattr(raws, name), whole=name in _IDS) for name in _HEADERS
    }
    said = _json_value(raws.body)
    values["body"] = said.replace("\0", _NUL) if isinstance(said, str) else None
    return Event(**values)


def _rtcp_headers(body: bytes) -> dict[str, str | list[str] | None]:
    if len(body) > MAX_RTCP:
        raise EslError("rtcp")
    try:
        if b"\\u0000" not in body:
            return dict(_decode_rtcp(body))
    except _NOT_DECODED:
        pass
    raws = _decode_repaired(_decode_raw_headers, body)
    return {_capped(name): _json_text(raw) for name, raw in raws.items()}


def _decode_repaired(decode: Callable[[bytes], Any], body: bytes) -> Any:  # noqa: ANN401 - as decoded
    try:
        body.decode()
    except UnicodeDecodeError:
        body = body.decode("utf-8", "surrogateescape").translate(_ESCAPES).encode()
    try:
        return decode(body)
    except _NOT_DECODED:
        raise EslError("json") from None


def _json_text(raw: msgspec.Raw, *, whole: bool = False) -> str | None:
    value = _json_value(raw)
    if isinstance(value, list) and whole:
        parts = [_json_value(part) for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        # As it is in plain text, and in the SIP message.
        value = _ARRAY + _SEPARATOR.join(texts) if len(texts) == len(parts) else None
    elif isinstance(value, list):
        value = _json_value(value[0]) if value else None
    return _capped(value) if isinstance(value, str) else None


def _json_value(raw: msgspec.Raw) -> str | list[msgspec.Raw] | None:
    """None for what is absent, or no value of FreeSWITCH's: a number, an object, a huge list."""
    data = bytes(raw)
    if len(data) > MAX_LIST and data[:1] == b"[":
        return None
    try:
        return _decode_value(data) if data else None
    except _NOT_DECODED:
        return None


# ------------------------------------------------------------------------------------ plain events

_FIELDS: Final = {header.encode(): name for name, header in _HEADERS.items()}


def parse_plain(body: bytes) -> Event:
    """Turn the content of a text/event-plain frame into an event, or raise EslError of `REFUSALS`.

    Lines are split before values are unquoted: `%0A` in a value ends no line.
    """
    head, _, rest = body.partition(b"\n\n")
    values: dict[str, Any] = {}
    length = b""
    lines = head.split(b"\n", MAX_LINES)[:MAX_LINES]
    for line in lines:
        name, _, value = line.partition(b": ")
        field = _FIELDS.get(name)
        if field:
            values[field] = _plain_text(value, whole=field in _IDS)
        elif name == b"Content-Length":
            length = value
    event_name = values.get("event_name")
    if not event_name:
        raise EslError("event-name")
    if event_name in _RTCP_EVENTS:
        if len(body) > MAX_RTCP:
            raise EslError("rtcp")
        parts = (line.partition(b": ") for line in lines)
        values["rtcp"] = {
            _capped(_whole_text(name)): _plain_text(value) for name, colon, value in parts if colon
        }
    if length.isdigit() and len(length) <= 9:
        values["body"] = _whole_text(rest[: int(length)])
    return Event(**values)


# ------------------------------------------------------------------------------- outbound channels


class Channel(msgspec.Struct, frozen=True, gc=False):
    """The channel that an outbound socket is about: what its INVITE said, and what received it.

    Texts as in `Event`; None where FreeSWITCH did not say. `core_uuid`, `profile`, the addresses
    and the stamps are FreeSWITCH's own; all else was written by the caller.
    """

    core_uuid: str | None = None
    unique_id: str | None = None
    direction: str | None = None
    """inbound for a call that came to FreeSWITCH."""
    answer_state: str | None = None
    """ringing, early or answered."""
    profile: str | None = None
    """The sofia profile that received it."""
    call_id: str | None = None
    from_tag: str | None = None
    from_user: str | None = None
    from_host: str | None = None
    to_user: str | None = None
    to_host: str | None = None
    request_uri: str | None = None
    """Without its scheme."""
    request_user: str | None = None
    request_host: str | None = None
    destination: str | None = None
    """The number that the dialplan looks for now."""
    network_ip: str | None = None
    network_port: str | None = None
    local_ip: str | None = None
    invite_stamp: str | None = None
    """When the INVITE came, and `event_stamp`: now; microseconds UTC by FreeSWITCH's clock."""
    event_stamp: str | None = None
    socket_mode: str | None = None
    """async, or static for a dialplan that waits."""
    headers: Mapping[str, str] = {}
    """Custom headers of the INVITE (FreeSWITCH keeps those with X- and P-), names in small letters;
    at most `MAX_CUSTOM`."""


_CHANNEL: Final = {
    b"Core-UUID": "core_uuid",
    b"Unique-ID": "unique_id",
    b"Call-Direction": "direction",
    b"Answer-State": "answer_state",
    b"variable_sofia_profile_name": "profile",
    b"variable_sip_call_id": "call_id",
    b"variable_sip_from_tag": "from_tag",
    b"variable_sip_from_user": "from_user",
    b"variable_sip_from_host": "from_host",
    b"variable_sip_to_user": "to_user",
    b"variable_sip_to_host": "to_host",
    b"variable_sip_req_uri": "request_uri",
    b"variable_sip_req_user": "request_user",
    b"variable_sip_req_host": "request_host",
    b"Caller-Destination-Number": "destination",
    b"variable_sip_network_ip": "network_ip",
    b"variable_sip_network_port": "network_port",
    b"variable_sip_local_network_addr": "local_ip",
    b"variable_sip_invite_stamp": "invite_stamp",
    b"Event-Date-Timestamp": "event_stamp",
    b"Socket-Mode": "socket_mode",
}
_CUSTOM: Final = b"variable_sip_h_"
_CHANNEL_IDS: Final = frozenset({"unique_id", "call_id", "from_tag"})


def parse_channel(block: bytes) -> Channel:
    """Turn the answer to `connect` on an outbound socket, up to its blank line, into the channel.

    Lines are split before values are unquoted, and of a header that is there twice the first
    counts: FreeSWITCH writes its own before those of the INVITE. EslError `event-name` where it is
    no such answer.
    """
    values: dict[str, str] = {}
    headers: dict[str, str] = {}
    is_channel = False
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b": ")
        if name.startswith(_CUSTOM):
            if len(headers) < MAX_CUSTOM:
                custom = _capped(_whole_text(name[len(_CUSTOM) :])).lower()
                headers.setdefault(custom, _plain_text(value))
        elif field := _CHANNEL.get(name):
            values.setdefault(field, _plain_text(value, whole=field in _CHANNEL_IDS))
        elif name == b"Event-Name" and colon:
            is_channel = True
    if not is_channel:
        raise EslError("event-name")
    return Channel(**values, headers=headers)


# ------------------------------------------------------------------------------------------ frames

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_BETWEEN: Final = re.compile(rb"[\r\n]*")
_BETWEEN_RECORDED: Final = re.compile(rb"(?:[\r\n]|>>>[^\n]*\n)*")
_NO: Final = ("-ERR", "-USAGE")
_REPLIES: Final = frozenset(
    {
        b"auth/request",
        b"command/reply",
        b"api/response",
        b"text/disconnect-notice",
        b"text/rude-rejection",
    }
)
_NOTICES: Final = frozenset({b"text/disconnect-notice", b"text/rude-rejection"})
_PARSERS: Final = {b"text/event-json": parse_json, b"text/event-plain": parse_plain}


class _Head(msgspec.Struct, frozen=True, gc=False):
    """A frame's header block."""

    block: bytes
    headers: dict[bytes, bytes]
    """By their names in small letters; the first of each."""
    content_type: bytes
    length: int


def _head(block: bytes) -> _Head:
    lines = block.split(b"\n", MAX_HEADERS)
    if len(lines) > MAX_HEADERS:
        raise EslError("header-count")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            if headers.setdefault(name, value) != value and name == b"content-length":
                raise EslError("content-length")
    content_type = headers.get(b"content-type")
    if not content_type:
        raise EslError("content-type")
    length = headers.get(b"content-length", b"0")
    # Digits only: int() also takes signs, spaces and underscores.
    if not length.isdigit() or len(length) > 9 or int(length) > MAX_CONTENT:
        raise EslError("content-length")
    return _Head(block, headers, content_type, int(length))


class Connection:
    """What one FreeSWITCH sends over one connection: frames back to back, split anywhere."""

    def __init__(self, *, recorded: bool = False) -> None:
        """`recorded`: lines between frames that begin with `>>>` are the client's, and skipped."""
        self.refused: Counter[str] = Counter()
        """Frames left out, by why (`REFUSALS`)."""
        self.fault: str | None = None
        """One of `FAULTS`: the connection must be closed."""
        self._held = bytearray()
        self._scanned = 0  # bytes in which no end of headers was found
        self._head: _Head | None = None  # of the frame whose content is awaited
        self._between = _BETWEEN_RECORDED if recorded else _BETWEEN

    @property
    def pending(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return len(self._held) + (len(self._head.block) if self._head else 0)

    def receive_data(self, data: bytes) -> list[Event | Reply]:
        """Return what is complete now, in order; EslError of `FAULTS` if the peer speaks no ESL.

        Frames before the fault are given first; the next call then raises.
        """
        found: list[Event | Reply] = []
        if self.fault is None:
            self._held += data
            try:
                self._take(found)
            except EslError as error:
                self.fault = error.why
                self._held.clear()
                self._head = None
        if self.fault is not None and not found:
            raise EslError(self.fault)
        return found

    def _take(self, found: list[Event | Reply]) -> None:
        held = self._held
        at = 0
        while True:
            head = self._head
            if head is None:
                # It always matches, if only nothing.
                between = self._between.match(held, at)
                at = between.end() if between else at
                blank = _BLANK_LINE.search(held, max(at, self._scanned))
                if (blank.start() if blank else len(held)) - at > MAX_HEAD:
                    raise EslError("header-size")
                if blank is None:
                    self._scanned = max(0, len(held) - at - 2)
                    break
                self._scanned = 0
                head = self._head = _head(bytes(held[at : blank.start()]))
                at = blank.end()
            if len(held) - at < head.length:
                break
            self._read(head, bytes(held[at : at + head.length]), found)
            at += head.length
            self._head = None
        # Once for all frames of a read.
        del held[:at]

    def _read(self, head: _Head, content: bytes, found: list[Event | Reply]) -> None:
        if head.content_type in _REPLIES:
            if b"event-name" in head.headers:
                # The answer to an outbound socket's `connect` is an event as well.
                self._parse(parse_plain, head.block, found)
            found.append(_reply(head, content))
        elif head.content_type in _PARSERS:
            self._parse(_PARSERS[head.content_type], content, found)
        else:
            self.refused["log" if head.content_type == b"log/data" else "format"] += 1

    def _parse(
        self, parse: Callable[[bytes], Event], content: bytes, found: list[Event | Reply]
    ) -> None:
        try:
            found.append(parse(content))
        except EslError as error:
            self.refused[error.why] += 1


def _reply(head: _Head, content: bytes) -> Reply:
    text = _whole_text(content)
    if head.content_type == b"command/reply":
        said = head.headers.get(b"reply-text", b"")
        text = _plain_text(said).strip() if b"event-name" in head.headers else _whole_text(said)
    job_uuid = head.headers.get(b"job-uuid")
    return Reply(
        _whole_text(head.content_type),
        text,
        None if job_uuid is None else _capped(_whole_text(job_uuid)),
        head.content_type not in _NOTICES and not text.startswith(_NO),
    )


class Transcript(Iterator[Event | Reply]):
    """The events and replies of a recorded connection, in order; see `read_transcript`."""

    def __init__(self, data: bytes) -> None:
        self._connection = Connection(recorded=True)
        self._data = data
        self._items = self._read()
        self.refused = self._connection.refused
        """Frames left out so far, by why."""
        self.truncated = False
        """The file ends inside a frame; known at the end."""

    def __next__(self) -> Event | Reply:
        return next(self._items)

    def _read(self) -> Iterator[Event | Reply]:
        nothing = True
        for at in range(0, len(self._data), MAX_HEAD):
            for item in self._connection.receive_data(self._data[at : at + MAX_HEAD]):
                nothing = False
                yield item
        if self._connection.fault:
            raise EslError(self._connection.fault)
        self.truncated = bool(self._connection.pending)
        if nothing and self.truncated:
            raise EslError("content-type")


def read_transcript(data: bytes) -> Transcript:
    """Read the bytes that a switch sent: any mix of plain and JSON events, cut anywhere at the end.

    Lines of the client between frames, which begin with `>>>`, are skipped. Where the rest is no
    ESL, or all of it, EslError comes after the events before.
    """
    return Transcript(data)


# ---------------------------------------------------------------------------------------- commands

_USER: Final = re.compile(r"[^@:]+@[^@:]+")
_EVENT: Final = re.compile(r"[!-~]+")


def _line(text: str) -> bytes:
    """A line of a command; a line end in it would begin another command."""
    if any(end in text for end in "\r\n\0"):
        raise EslError("newline")
    try:
        # What the environment or a file held that is not UTF-8 goes out as it was.
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    # Outside of the handler, so that the text, which may be a password, is not chained to it.
    raise EslError("text")


def command(line: str) -> bytes:
    """Any command of one line. FreeSWITCH does not answer an empty one, so it is refused."""
    sent = _line(line)
    if not sent.strip():
        raise EslError("empty")
    return sent + b"\n\n"


def auth(password: str) -> bytes:
    """Log in with the password of event_socket.conf: every right."""
    return command("auth " + password)


def userauth(user: str, password: str) -> bytes:
    """Log in as `user@domain` of the directory, with the rights that it gives."""
    if not _USER.fullmatch(user):
        raise EslError("user")
    return command(f"userauth {user}:{password}")


def api(line: str) -> bytes:
    """Run an API command; the reply is its output."""
    return command("api " + line)


def bgapi(line: str, job_uuid: str) -> bytes:
    """Run an API command beside others; its output is the body of a BACKGROUND_JOB event."""
    return _line("bgapi " + line) + b"\nJob-UUID: " + _line(job_uuid) + b"\n\n"


def execute(application: str, argument: str) -> bytes:
    """Run a dialplan application on the channel of an outbound socket."""
    return (
        b"sendmsg\ncall-command: execute\nexecute-app-name: "
        + _line(application)
        + b"\nexecute-app-arg: "
        + _line(argument)
        + b"\n\n"
    )


_NO_WORDS: Final = re.compile(r"[^A-Za-z0-9 ,.:()/_+-]")


def refusal_words(text: str) -> str:
    """What of a refusal's text can stand in a Reason header that FreeSWITCH writes.

    No quote, `$`, `%`, `=` or brace, which it would take for its own.
    """
    return _NO_WORDS.sub("", text)[:MAX_REASON]


def subscribe(names: Iterable[str], *, json: bool = True) -> bytes:
    """Ask for events; names with `::` are subclasses of CUSTOM."""
    asked = list(names)
    if not asked or not all(_EVENT.fullmatch(name) for name in asked):
        raise EslError("event")
    plain = [name for name in asked if "::" not in name]
    custom = [name for name in asked if "::" in name]
    words = [*plain, "CUSTOM", *custom] if custom else plain
    return command(f"event {'json' if json else 'plain'} {' '.join(words)}")


def exit_() -> bytes:
    """Say goodbye; FreeSWITCH answers, sends its notice and closes."""
    return command("exit")
