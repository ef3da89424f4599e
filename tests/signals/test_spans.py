import base64
import json
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.signals.spans import (
    MOST_TEXT,
    attribute,
    is_sampled,
    request_of,
    span_id_of,
    span_of,
    trace_id_of,
)

AT = 1_769_850_000_000_000
CALL = CallRecord(
    call_id="a84b4c76@pc33",
    from_tag="1928",
    received_at=AT,
    started_at=AT,
    ended=True,
    ended_at=AT + 12_000_000,
    end_source="bye",
    from_user="+4930111",
    from_host="a.example",
    to_user="+4930222",
    to_host="b.example",
    ruri_user="+4930222",
    ruri_host="192.0.2.9",
    user_agent="phone/1.0",
    src_ip="192.0.2.1",
    src_port=5060,
    dst_ip="192.0.2.2",
    dst_port=5061,
    transport="tls",
    final_code=200,
    final_phrase="OK",
    final_class="2xx",
    answered=True,
    pdd_ms=300.0,
    ring_ms=300.0,
    setup_ms=2000.0,
    talk_ms=10_000.0,
    released_by="callee",
    attempts=1,
    codec_negotiated="PCMU",
    tenant="shop",
    trunk="acme",
    mos=4.2,
    mos_scale="nb",
    findings=("one_way_audio",),
)
ATTEMPT = AttemptRecord(
    call_id=CALL.call_id,
    from_tag=CALL.from_tag,
    branch="z9hG4bK1",
    received_at=AT,
    started_at=AT + 50_000,
    peer_ip="198.51.100.7",
    peer_port=5060,
    transport="udp",
    final_code=503,
    fail_ms=120.0,
    trunk="acme",
)


def call(**changes: Any) -> CallRecord:
    return msgspec.structs.replace(CALL, **changes)


def told(record: CallRecord | AttemptRecord) -> Any:
    return json.loads(span_of(record))


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for each in span["attributes"]:
        ((_, value),) = each["value"].items()
        assert each["key"] not in found
        found[each["key"]] = value
    return found


def test_a_call_is_a_span_with_the_conventions_attributes() -> None:
    span = told(CALL)
    assert span["traceId"] == sha256(b"a84b4c76@pc33").hexdigest()[:32]
    assert span["name"] == "INVITE"
    assert span["kind"] == 3
    assert span["startTimeUnixNano"] == str(AT * 1000)
    assert span["endTimeUnixNano"] == str((AT + 12_000_000) * 1000)
    assert span["status"] == {}
    assert "parentSpanId" not in span
    found = attributes(span)
    assert found["network.peer.address"] == "192.0.2.2"
    assert found["network.peer.port"] == "5061"
    assert found["network.local.address"] == found["client.address"] == "192.0.2.1"
    assert found["network.transport"] == "tcp"
    assert found["tls.established"] is True
    assert found["network.protocol.name"] == "sip"
    assert found["server.address"] == "192.0.2.9"
    assert found["user_agent.original"] == "phone/1.0"
    assert found["sip.response.status_code"] == "200"
    assert found["sip.trunk"] == "acme"
    assert found["sip.mos"] == 4.2
    assert found["sip.findings"] == {"values": [{"stringValue": "one_way_audio"}]}
    assert found["sip.answered"] is True
    assert "error.type" not in found
    assert "sip.q850" not in found
    assert [event["name"] for event in span["events"]] == ["sip.ringing", "sip.answered"]
    assert span["events"][1]["timeUnixNano"] == str((AT + 2_000_000) * 1000)


def test_an_attempt_is_a_child_of_its_call() -> None:
    span, parent = told(ATTEMPT), told(CALL)
    assert span["traceId"] == parent["traceId"]
    assert span["parentSpanId"] == parent["spanId"] != span["spanId"]
    assert span["endTimeUnixNano"] == str((AT + 170_000) * 1000)
    assert span["status"] == {"code": 2}
    assert attributes(span)["error.type"] == "503"
    assert attributes(span)["network.peer.address"] == "198.51.100.7"
    assert "tls.established" not in attributes(span)


@pytest.mark.parametrize("code", [400, 486, 503, 603])
def test_a_failed_call_is_an_error_of_its_code(code: int) -> None:
    span = told(call(final_code=code, answered=False))
    assert span["status"] == {"code": 2}
    assert attributes(span)["error.type"] == str(code)


def test_a_caller_who_gives_up_is_no_error() -> None:
    assert told(call(final_code=487, released_by="caller"))["status"] == {}
    assert told(call(final_code=487, released_by=None))["status"] == {"code": 2}


def test_what_is_not_known_is_not_said() -> None:
    bare = CallRecord(call_id="a", from_tag="b", received_at=AT, started_at=AT, ended=True)
    assert set(attributes(told(bare))) == {
        "sip.call_id",
        "sip.attempts",
        "sip.answered",
        "network.protocol.name",
        "network.protocol.version",
    }
    assert told(bare)["status"] == {}
    assert told(bare)["endTimeUnixNano"] == told(bare)["startTimeUnixNano"]


def test_a_call_whose_end_was_not_seen_lasts_as_long_as_is_known() -> None:
    assert told(call(ended_at=None))["endTimeUnixNano"] == str((AT + 12_000_000) * 1000)
    early = told(call(ended_at=AT - 1))
    assert early["endTimeUnixNano"] == early["startTimeUnixNano"]


def test_nobodys_number_is_told() -> None:
    assert b"4930" not in span_of(CALL)


def test_ids_are_of_the_call_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert span_id_of("a", "b") != span_id_of("a", "b", "c") != span_id_of("a", "bc")
    assert len(span_id_of("a")) == 16

    class Zero:
        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr("sipsidecar.signals.spans.sha256", lambda _: Zero())
    assert span_id_of("a") == "0000000000000001"


def test_a_share_of_the_traces_is_sampled_always_the_same() -> None:
    ids = [trace_id_of(f"call-{number}") for number in range(4000)]
    tenth = {one for one in ids if is_sampled(one, 0.1)}
    assert 320 < len(tenth) < 480
    assert tenth < {one for one in ids if is_sampled(one, 0.2)}
    assert all(is_sampled(one, 1.0) for one in ids)
    assert not any(is_sampled(one, 0.0) for one in ids)


strangers = st.text(max_size=400) | st.just("\ud800\udfff") | st.just("\x00\x1b" * 200)


@given(strangers, st.integers(-(2**62), 2**62))
def test_whatever_strangers_wrote_is_cut_and_valid(text: str, at: int) -> None:
    record = call(
        call_id=text, user_agent=text, final_phrase=text, started_at=at, flags=(text,) * 40
    )
    span = told(record)
    assert len(span_of(record)) < 40_000
    assert len(attributes(span)["user_agent.original"]) <= MOST_TEXT
    assert int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"]) >= 0


def test_a_request_is_what_opentelemetrys_own_messages_are() -> None:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    body = request_of([span_of(CALL), span_of(ATTEMPT)], [attribute("service.name", "x")], "1")
    found = json.loads(body)
    for span in found["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        # OTLP has ids in hex, where protobuf's own JSON has base64.
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in span:
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    request = json_format.ParseDict(found, service.ExportTraceServiceRequest())
    first, second = request.resource_spans[0].scope_spans[0].spans
    assert len(first.trace_id) == 16
    assert second.parent_span_id == first.span_id
    assert first.end_time_unix_nano - first.start_time_unix_nano == 12_000_000_000
    assert second.status.code == 2


def test_a_request_has_the_shape_of_otlp() -> None:
    found = json.loads(request_of([span_of(CALL)], [attribute("service.name", "x")], "1.2"))
    (resource,) = found["resourceSpans"]
    assert resource["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "x"}}
    ]
    (scope,) = resource["scopeSpans"]
    assert scope["scope"] == {"name": "sipsidecar", "version": "1.2"}
    assert scope["spans"] == [told(CALL)]
    assert attribute("a", 3) == {"key": "a", "value": {"intValue": "3"}}
