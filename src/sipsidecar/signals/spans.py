"""Calls and attempts to spans of OpenTelemetry: the JSON of OTLP/HTTP (opentelemetry-proto 1.x).

Attributes are those of the semantic conventions where they have one, else `sip.*`. Users of SIP URIs,
which are telephone numbers, are in none of them.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from sipsidecar.calls.events import AttemptRecord, CallRecord

MOST_TEXT: Final = 256
"""Characters of one value."""
CLIENT: Final = 3
"""SPAN_KIND_CLIENT: a call as its caller met it, an attempt as the proxy that made it."""
ERROR: Final = 2
"""STATUS_CODE_ERROR."""
_RANDOM_BITS = 56  # of a trace id: W3C Trace Context Level 2, 5.1
_TRANSPORTS = {"udp": "udp", "tcp": "tcp", "tls": "tcp", "ws": "tcp", "wss": "tcp", "sctp": "sctp"}
_COHORT = ("tenant", "trunk", "carrier", "direction", "region", "agent")

Attribute = dict[str, Any]


def trace_id_of(call_id: str) -> str:
    """The trace of a Call-ID: the first 16 bytes of its SHA-256 in hex, so that others find it."""
    return sha256(_bytes(call_id)).hexdigest()[:32]


def span_id_of(*parts: str) -> str:
    """The span of a call (Call-ID, From tag), or of an attempt (and branch)."""
    found = sha256(_bytes("\0".join(parts))).hexdigest()[:16]
    return found if int(found, 16) else "0000000000000001"  # zero is no id


def is_sampled(trace_id: str, ratio: float) -> bool:
    """Whether a trace belongs to a share of all; of one ratio all programs choose the same traces.

    By OpenTelemetry's consistent probability sampling: the last 56 bits against a threshold.
    """
    least: int = round((1.0 - ratio) * 2**_RANDOM_BITS)
    return int(trace_id[-14:], 16) >= least


def span_of(record: CallRecord | AttemptRecord) -> bytes:
    """Turn the record of an ended call, or of an attempt, into one span in JSON."""
    made = _call(record) if isinstance(record, CallRecord) else _attempt(record)
    return msgspec.json.encode(made)


def request_of(spans: Iterable[bytes], resource: Sequence[Attribute], version: str) -> bytes:
    """Join spans to an ExportTraceServiceRequest in JSON."""
    scope = msgspec.json.encode({"name": "sipsidecar", "version": version})
    about = msgspec.json.encode({"attributes": resource})
    return b'{"resourceSpans":[{"resource":%b,"scopeSpans":[{"scope":%b,"spans":[%b]}]}]}' % (
        about,
        scope,
        b",".join(spans),
    )


def attribute(name: str, value: str | bool | float | tuple[str, ...]) -> Attribute:
    """One KeyValue: whole numbers are text in JSON, as protobuf has its int64."""
    return {"key": name, "value": _value(value)}


def _value(value: str | bool | float | tuple[str, ...]) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": _text(value)}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [{"stringValue": _text(each)} for each in value[:16]]}}


def _attributes(
    *values: tuple[str, str | bool | float | tuple[str, ...] | None],
) -> list[Attribute]:
    """Those that are known."""
    return [
        {"key": name, "value": _value(value)}
        for name, value in values
        if value is not None and value != ()
    ]


def _call(record: CallRecord) -> dict[str, Any]:
    known = (record.pdd_ms, record.setup_ms, record.fail_ms, _sum(record.setup_ms, record.talk_ms))
    ended = record.ended_at if record.ended_at is not None else _after(record.started_at, known)
    # A caller who hangs up before anybody answers is no error of those whom he called.
    given_up = record.final_code == 487 and record.released_by == "caller"
    attributes = _attributes(
        ("network.peer.address", record.dst_ip),
        ("network.peer.port", record.dst_port),
        ("network.local.address", record.src_ip),
        ("network.local.port", record.src_port),
        ("client.address", record.src_ip),
        ("client.port", record.src_port),
        ("sip.call_id", record.call_id),
        ("sip.from.host", record.from_host),
        ("sip.to.host", record.to_host),
        ("sip.final_origin", record.final_origin),
        ("sip.end_source", record.end_source),
        ("sip.released_by", record.released_by),
        ("sip.talk_ms", record.talk_ms),
        ("sip.attempts", record.attempts),
        ("sip.mos", record.mos),
        ("sip.mos_scale", record.mos_scale),
        ("sip.findings", record.findings),
        ("user_agent.original", record.user_agent),
    )
    return {
        "traceId": trace_id_of(record.call_id),
        "spanId": span_id_of(record.call_id, record.from_tag),
        "name": "INVITE",
        **_common(record, attributes, max(ended, record.started_at), fails=not given_up),
    }


def _attempt(record: AttemptRecord) -> dict[str, Any]:
    ended = _after(record.started_at, (record.pdd_ms, record.setup_ms, record.fail_ms))
    attributes = _attributes(
        ("network.peer.address", record.peer_ip),
        ("network.peer.port", record.peer_port),
        ("network.local.address", record.src_ip),
        ("network.local.port", record.src_port),
        ("sip.call_id", record.call_id),
        ("sip.failover_order", record.failover_order),
    )
    return {
        "traceId": trace_id_of(record.call_id),
        "spanId": span_id_of(record.call_id, record.from_tag, record.branch),
        "parentSpanId": span_id_of(record.call_id, record.from_tag),
        "name": "INVITE attempt",
        **_common(record, attributes, ended, fails=True),
    }


def _common(
    record: CallRecord | AttemptRecord, attributes: list[Attribute], ended: int, *, fails: bool
) -> dict[str, Any]:
    code, transport = record.final_code, record.transport
    # As of HTTP's client spans: from 400 on it is an error, and its type is the code.
    error = fails and code is not None and code >= 400
    attributes += _attributes(
        ("network.protocol.name", "sip"),
        ("network.protocol.version", "2.0"),
        ("network.transport", _TRANSPORTS.get(transport or "")),
        ("tls.established", True if transport in ("tls", "wss") else None),
        ("server.address", record.ruri_host),
        ("error.type", str(code) if error else None),
        ("sip.response.status_code", code),
        ("sip.response.reason_phrase", record.final_phrase),
        ("sip.q850", record.q850),
        ("sip.answered", record.answered),
        ("sip.pdd_ms", record.pdd_ms),
        ("sip.ring_ms", record.ring_ms),
        ("sip.setup_ms", record.setup_ms),
        ("sip.codec.negotiated", record.codec_negotiated),
        ("sip.flags", record.flags),
    )
    for name in _COHORT:
        if (value := getattr(record, name)) is not None:
            attributes.append(attribute(f"sip.{name}", value))
    return {
        "kind": CLIENT,
        "startTimeUnixNano": _nanoseconds(record.started_at),
        "endTimeUnixNano": _nanoseconds(max(ended, record.started_at)),
        "attributes": attributes,
        "events": [
            {"name": name, "timeUnixNano": _nanoseconds(_after(record.started_at, (ms,)))}
            for name, ms in (("sip.ringing", record.ring_ms), ("sip.answered", record.setup_ms))
            if ms is not None
        ],
        "status": {"code": ERROR} if error else {},
    }


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _after(at: int, durations_ms: Iterable[float | None]) -> int:
    """The latest of what is known to have happened, microseconds UTC."""
    return at + round(1000 * max((ms for ms in durations_ms if ms is not None), default=0.0))


def _nanoseconds(at: int) -> str:
    return str(max(at, 0) * 1000)


def _text(text: str) -> str:
    """As strangers wrote it, cut; JSON escapes the rest, but for halves of characters it has no form."""
    text = text[:MOST_TEXT]
    return text if text.isascii() else text.encode(errors="replace").decode()


def _bytes(text: str) -> bytes:
    return (
        text.encode(errors="surrogateescape") if text.isascii() else text.encode(errors="replace")
    )
