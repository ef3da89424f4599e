import ipaddress
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipsidecar import rows
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

ANY_TEXT = st.text(st.characters(exclude_categories=()))
STAMP = 1_785_000_000_123_456
EPOCH = 946_684_800_000_000

ENCODERS: list[tuple[str, type[msgspec.Struct], Any]] = [
    ("calls", CallRecord, rows.encode_call),
    ("attempts", AttemptRecord, rows.encode_attempt),
    ("media", MediaRecord, rows.encode_media),
    ("quality_intervals", QualityInterval, rows.encode_interval),
    ("legs", LegRecord, rows.encode_leg),
    ("registrations", RegistrationRecord, rows.encode_registration),
    ("pings", PingRecord, rows.encode_ping),
    ("admissions", AdmissionRecord, rows.encode_admission),
    ("admission_states", StateRecord, rows.encode_state),
    ("kpi_minute", KpiMinute, rows.encode_kpi),
    ("code_minute", CodeMinute, rows.encode_code),
    ("baseline_hours", BaselineHour, rows.encode_baseline),
    ("incidents", IncidentRecord, rows.encode_incident),
    ("events", EventRecord, rows.encode_event),
    ("outcomes", OutcomeRecord, rows.encode_outcome),
]


def split(table: str, row: bytes) -> dict[str, bytes | None]:
    (count,) = struct.unpack_from(">h", row)
    position, fields = 2, []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", row, position)
        position += 4
        fields.append(None if length < 0 else row[position : position + length])
        position += max(length, 0)
    assert position == len(row)
    return dict(zip(rows.TABLES[table], fields, strict=True))


def message(**changes: Any) -> dict[str, bytes | None]:
    values: dict[str, Any] = {
        "received_at": STAMP,
        "captured_at": STAMP - 7,
        "node_id": 3,
        "agent_id": 2001,
        "sequence": 42,
        "kind": 1,
        "src_ip": "10.0.0.1",
        "src_port": 5060,
        "dst_ip": "2001:db8::2",
        "dst_port": 5062,
        "transport": "udp",
        "call_id": "a@b",
        "payload": b"INVITE\0\xff",
        "agent_ip": "10.0.0.9",
    }
    return split("messages", rows.encode_message(**(values | changes)))


def call(**changes: Any) -> dict[str, bytes | None]:
    values: dict[str, Any] = {
        "call_id": "a@b",
        "from_tag": "t",
        "received_at": STAMP,
        "started_at": STAMP,
    }
    return split("calls", rows.encode_call(CallRecord(**(values | changes)), 1))


def media(**changes: Any) -> MediaRecord:
    values: dict[str, Any] = {
        "call_id": "a@b",
        "from_tag": "t",
        "stream": "caller_to_callee",
        "direction": "caller_to_callee",
        "received_at": STAMP,
        "started_at": STAMP,
        "ended_at": STAMP,
    }
    return MediaRecord(**(values | changes))


def int8(value: int) -> bytes:
    return struct.pack(">q", value)


def test_a_message_row_holds_every_column_in_the_form_of_its_type() -> None:
    assert message() == {
        "received_at": int8(STAMP - EPOCH),
        "captured_at": int8(STAMP - 7 - EPOCH),
        "agent_id": int8(2001),
        "sequence": int8(42),
        "node_id": struct.pack(">i", 3),
        "src_port": struct.pack(">i", 5060),
        "dst_port": struct.pack(">i", 5062),
        "kind": struct.pack(">h", 1),
        "codec": struct.pack(">h", 0),
        "src_ip": bytes((2, 32, 0, 4, 10, 0, 0, 1)),
        "dst_ip": bytes((3, 128, 0, 16)) + ipaddress.ip_address("2001:db8::2").packed,
        "transport": b"udp",
        "call_id": b"a@b",
        "payload": b"INVITE\0\xff",
        "agent_ip": bytes((2, 32, 0, 4, 10, 0, 0, 9)),
    }


@pytest.mark.parametrize(
    "absent",
    [
        "captured_at",
        "agent_id",
        "src_ip",
        "src_port",
        "dst_ip",
        "dst_port",
        "transport",
        "agent_ip",
    ],
)
def test_an_unknown_of_a_message_is_null_and_moves_nothing_else(absent: str) -> None:
    assert message(**{absent: None}) == message() | {absent: None}


def test_a_message_of_no_call_has_an_empty_call_id_and_not_null() -> None:
    assert message(call_id=None)["call_id"] == b""


@pytest.mark.parametrize(
    ("column", "sent", "kept"),
    [
        ("captured_at", 2**62, int8(rows.TIME_MAX - EPOCH)),
        ("captured_at", -5, int8(rows.TIME_MIN - EPOCH)),
        ("received_at", 2**70, int8(rows.TIME_MAX - EPOCH)),
        ("agent_id", 2**64, int8(2**63 - 1)),
        ("agent_id", -(2**64), int8(-(2**63))),
        ("kind", 70_000, struct.pack(">h", 32_767)),
        ("src_port", 65_536 + 80, struct.pack(">i", 80)),
        ("dst_port", -1, struct.pack(">i", 65_535)),
    ],
)
def test_a_wild_number_of_a_message_is_brought_into_its_columns_range(
    column: str, sent: int, kept: bytes
) -> None:
    assert message(**{column: sent}) == message() | {column: kept}


@pytest.mark.parametrize("ip", ["", "10.0.0", "10.0.0.1/8", "example.com", "1.2.3.4\0", "\ud800"])
def test_what_is_no_address_is_null_in_an_inet_column(ip: str) -> None:
    assert message(src_ip=ip)["src_ip"] is None


def test_a_payload_over_its_cap_is_clipped() -> None:
    stored = message(payload=bytes(rows.PAYLOAD_CAP + 1))["payload"]
    assert stored == bytes(rows.PAYLOAD_CAP)


def quarantined(payload: bytes, detail: str | None = None) -> dict[str, bytes | None]:
    row = rows.encode_quarantine(
        STAMP, None, 1, None, 9, "10.0.0.1", 5060, None, None, "hep-length", payload, detail
    )
    return split("quarantine", row)


def test_the_detail_of_a_quarantine_row_is_clean_text_under_its_cap() -> None:
    assert quarantined(b"")["detail"] is None
    assert quarantined(b"", "a\0" + "x" * 5000)["detail"] == b"a\\x00" + b"x" * 1019


def test_quarantine_takes_a_whole_row_with_a_payload_at_its_cap_and_no_endless_one() -> None:
    row = rows.encode_message(
        received_at=STAMP,
        captured_at=None,
        node_id=1,
        agent_id=None,
        sequence=1,
        kind=1,
        src_ip=None,
        src_port=None,
        dst_ip=None,
        dst_port=None,
        transport="x" * 999,
        call_id="x" * 999,
        payload=bytes(rows.PAYLOAD_CAP + 1),
    )
    assert quarantined(row)["payload"] == row
    assert quarantined(bytes(rows.QUARANTINE_CAP + 1))["payload"] == bytes(rows.QUARANTINE_CAP)


def test_a_quarantine_row_keeps_the_bytes_and_the_reason() -> None:
    fields = quarantined(b"\0HEP")
    assert fields["why"] == b"hep-length"
    assert fields["payload"] == b"\0HEP"
    assert fields["captured_at"] is fields["agent_id"] is fields["dst_ip"] is None
    assert fields["sequence"] == int8(9)
    assert fields["detail"] is None


@pytest.mark.parametrize(("table", "kind", "_encode"), ENCODERS)
def test_a_record_table_has_a_column_per_field_and_the_node(
    table: str, kind: type[msgspec.Struct], _encode: Any
) -> None:
    assert rows.TABLES[table] == (*kind.__struct_fields__, "node_id")


def test_a_conversation_has_a_column_for_the_call_id_that_it_is_distributed_by() -> None:
    names = ConversationRecord.__struct_fields__
    assert rows.TABLES["conversations"] == (*names, "call_id", "node_id")


def leg(**changes: Any) -> LegRecord:
    values: dict[str, Any] = {"switch": "fs1", "received_at": STAMP, "created_at": STAMP}
    return LegRecord(**({"uuid": "u1", "conversation": "u0"} | values | changes))


def conversation(**changes: Any) -> ConversationRecord:
    values: dict[str, Any] = {"switch": "fs1", "received_at": STAMP, "started_at": STAMP}
    return ConversationRecord(**({"conversation": "u0"} | values | changes))


def test_fields_of_a_leg_are_encoded_by_their_types() -> None:
    record = leg(
        call_id="a@b", sip_code=486, q850=17, packets_in=2**40, packets_skipped=5, fs_mos=4.5,
        network_ip="10.0.0.1", network_port=5060, answered=True, ended_at=STAMP, flags=("restarted",),
    )  # fmt: skip
    fields = split("legs", rows.encode_leg(record, 7))
    assert (fields["uuid"], fields["conversation"], fields["call_id"]) == (b"u1", b"u0", b"a@b")
    assert fields["sip_code"] == struct.pack(">h", 486)
    assert fields["q850"] == struct.pack(">h", 17)
    assert (fields["packets_in"], fields["packets_skipped"]) == (int8(2**40), int8(5))
    assert fields["network_ip"] == bytes((2, 32, 0, 4, 10, 0, 0, 1))
    assert fields["ended_at"] == int8(STAMP - EPOCH)
    assert fields["node_id"] == struct.pack(">i", 7)
    assert fields["talk_ms"] is fields["gateway"] is fields["packets_out"] is None


@pytest.mark.parametrize(
    ("call_ids", "first"), [((), b""), (("b@x", "a@x"), b"b@x"), (("x" * 999,), b"x" * 512)]
)
def test_a_conversation_is_stored_under_the_first_call_id_that_is_known(
    call_ids: tuple[str, ...], first: bytes
) -> None:
    row = rows.encode_conversation(conversation(call_ids=call_ids), 1)
    fields = split("conversations", row)
    assert fields["call_id"] == first
    names = fields["call_ids"]
    assert names is not None
    assert first in names


def test_a_later_revision_of_a_leg_names_its_uuid_and_of_a_conversation_its_name_alone() -> None:
    assert rows.replaced(leg(), 4) is rows.replaced(conversation(), 4) is None
    assert rows.replaced(leg(call_id="a@b", revision=1), 4) == rows.Replaced(
        "legs", "a@b", "", "u1", STAMP, 4, 1
    )
    assert rows.replaced(conversation(call_ids=("a@b",), revision=2), 4) == rows.Replaced(
        "conversations", "", "", "u0", STAMP, 4, 2
    )


def test_fields_of_a_call_are_encoded_by_their_types() -> None:
    fields = call(
        from_user="älice",
        answered=True,
        final_code=200,
        q850=16,
        pdd_ms=12.5,
        invites=2,
        src_ip="10.0.0.1",
        src_port=5060,
        agent_ids=(7, 2**32),
        flags=("forked",),
    )
    assert fields["from_user"] == "älice".encode()
    assert fields["answered"] == b"\1"
    assert fields["ended"] == b"\0"
    assert fields["final_code"] == struct.pack(">h", 200)
    assert fields["q850"] == struct.pack(">h", 16)
    assert fields["pdd_ms"] == struct.pack(">d", 12.5)
    assert fields["invites"] == struct.pack(">i", 2)
    assert fields["src_ip"] == bytes((2, 32, 0, 4, 10, 0, 0, 1))
    assert fields["src_port"] == struct.pack(">i", 5060)
    assert fields["agent_ids"] == struct.pack(">iiiiiiqiq", 1, 0, 20, 2, 1, 8, 7, 8, 2**32)
    assert fields["flags"] == struct.pack(">iiiiii6s", 1, 0, 25, 1, 1, 6, b"forked")
    assert fields["talk_ms"] is fields["ended_at"] is fields["dst_ip"] is fields["trunk"] is None


def test_fields_of_media_are_encoded_by_their_types() -> None:
    record = media(
        ssrc=2**32 - 1,
        sender_ip="10.0.0.1",
        sender_port=30_000,
        clock_rate=8000,
        reports=7,
        packets_lost=-3,
        loss_percent=5.5,
        mos=4.25,
        rated=True,
        findings=("high_loss",),
    )
    fields = split("media", rows.encode_media(record, 1))
    assert fields["stream"] == fields["direction"] == b"caller_to_callee"
    assert fields["ssrc"] == int8(2**32 - 1)
    assert fields["sender_ip"] == bytes((2, 32, 0, 4, 10, 0, 0, 1))
    assert fields["sender_port"] == struct.pack(">i", 30_000)
    assert fields["clock_rate"] == struct.pack(">i", 8000)
    assert fields["reports"] == struct.pack(">i", 7)
    assert fields["packets_lost"] == int8(-3)
    assert fields["loss_percent"] == struct.pack(">d", 5.5)
    assert fields["rated"] == b"\1"
    assert fields["ended_at"] == int8(STAMP - EPOCH)
    assert fields["findings"] == struct.pack(">iiiiii9s", 1, 0, 25, 1, 1, 9, b"high_loss")
    assert fields["mos_scale"] is fields["rtt_ms"] is fields["packets_sent"] is None


def test_fields_of_an_interval_are_encoded_by_their_types() -> None:
    record = QualityInterval(
        call_id="a@b",
        from_tag="",
        direction="unknown",
        reporter_ssrc=2**32 - 1,
        source_ssrc=2**31,
        received_at=STAMP,
        at=STAMP + 5,
        source="rtcp",
        seconds=5.0,
    )
    fields = split("quality_intervals", rows.encode_interval(record, 1))
    assert fields["reporter_ssrc"] == int8(2**32 - 1)
    assert fields["source_ssrc"] == int8(2**31)
    assert fields["at"] == int8(STAMP + 5 - EPOCH)
    assert fields["seconds"] == struct.pack(">d", 5.0)
    assert fields["packets_lost"] is fields["mos"] is None


def test_fields_of_a_refusal_are_encoded_by_their_types() -> None:
    record = AdmissionRecord(
        call_id="a@b", received_at=STAMP, way="evapi", verdict="refuse", rule="acme-calls",
        value=50.0, threshold=50.0, code=486, reason="cac acme-calls", shadow=("more",),
        trunk="acme",
    )  # fmt: skip
    fields = split("admissions", rows.encode_admission(record, 7))
    assert (fields["call_id"], fields["from_tag"], fields["rule"]) == (b"a@b", b"", b"acme-calls")
    assert fields["value"] == fields["threshold"] == struct.pack(">d", 50.0)
    assert fields["code"] == struct.pack(">h", 486)
    assert fields["shadow"] == struct.pack(">iiiiii4s", 1, 0, 25, 1, 1, 4, b"more")
    assert (fields["reason"], fields["route"], fields["trunk"]) == (b"cac acme-calls", b"", b"acme")
    assert fields["received_at"] == int8(STAMP - EPOCH)
    assert fields["node_id"] == struct.pack(">i", 7)
    assert fields["exempt"] is fields["measure"] is fields["tenant"] is fields["node"] is None


def test_fields_of_a_change_of_state_are_encoded_by_their_types() -> None:
    record = StateRecord(
        received_at=STAMP, rule="acme-asr", scope="trunk", scope_value="acme", state="closed",
        previous="open", value=31.5, threshold=40.0, reason="asr_percent 31.5 under 40",
    )  # fmt: skip
    fields = split("admission_states", rows.encode_state(record, 7))
    assert (fields["call_id"], fields["rule"], fields["by"]) == (b"", b"acme-asr", b"rule")
    assert (fields["state"], fields["previous"]) == (b"closed", b"open")
    assert fields["value"] == struct.pack(">d", 31.5)
    assert fields["measure"] is None


def int4_array(*values: int) -> bytes:
    head = struct.pack(">iiiii", 1, 0, 23, len(values), 1)
    return head + b"".join(struct.pack(">ii", 4, value) for value in values)


def kpi(**changes: Any) -> dict[str, bytes | None]:
    values: dict[str, Any] = {"received_at": STAMP, "minute_at": STAMP - 7, "source": "trunk"}
    return split("kpi_minute", rows.encode_kpi(KpiMinute(**(values | changes)), 1))


def test_fields_of_a_minute_are_encoded_by_their_types() -> None:
    row = kpi(trunk="acme", attempts=3, talk_seconds=1.5, pdd_buckets=(0, 2, 1))
    assert (row["call_id"], row["source"], row["trunk"], row["codec"]) == (
        b"", b"trunk", b"acme", b"",
    )  # fmt: skip
    assert row["minute_at"] == int8(STAMP - 7 - EPOCH)
    assert row["attempts"] == struct.pack(">i", 3)
    assert row["talk_seconds"] == struct.pack(">d", 1.5)
    assert row["pdd_buckets"] == int4_array(0, 2, 1)


@pytest.mark.parametrize(
    ("buckets", "kept"),
    [
        ((), None),
        ((0, 0, 0), None),
        ((0, 0, 5), int4_array(0, 0, 5)),
        ((1, 0, 2, 0, 0), int4_array(1, 0, 2)),
        ((2**40,), int4_array(2**31 - 1)),
    ],
)
def test_buckets_are_stored_without_zeros_at_the_end_and_empty_ones_as_null(
    buckets: tuple[int, ...], kept: bytes | None
) -> None:
    assert kpi(loss_buckets=buckets)["loss_buckets"] == kept


def test_the_final_code_of_a_minute_is_a_small_number_and_0_when_unknown() -> None:
    record = CodeMinute(received_at=STAMP, minute_at=STAMP, source="call", code=0, count=2)
    row = split("code_minute", rows.encode_code(record, 1))
    assert (row["code"], row["count"]) == (bytes(2), struct.pack(">i", 2))


def test_the_name_of_a_series_may_be_longer_than_other_words() -> None:
    series = "trunk:" + ",".join(f"{name}={'x' * 64}" for name in ("tenant", "trunk", "agent")) * 3
    record = BaselineHour(
        received_at=STAMP, hour_at=STAMP, series=series, minutes=60, total=5, answered=4,
        effective=4, counts=(1, 0, 0),
    )  # fmt: skip
    row = split("baseline_hours", rows.encode_baseline(record, 1))
    assert row["series"] == series.encode()
    assert row["counts"] == int4_array(1, 0, 0)
    assert row["pdd_p95_ms"] is None


@pytest.mark.parametrize(("said", "kept"), [(None, None), (True, b"\1"), (False, b"\0")])
def test_what_was_not_said_of_a_call_is_null_and_not_no(
    said: bool | None, kept: bytes | None
) -> None:
    record = OutcomeRecord(call_id="a@b", received_at=STAMP, outcome="o-1", completed=said)
    row = split("outcomes", rows.encode_outcome(record, 1))
    assert (row["completed"], row["transferred"], row["agent"]) == (kept, None, None)


def test_what_a_poster_said_of_an_event_is_a_document_and_its_text_is_clean() -> None:
    record = EventRecord(
        received_at=STAMP, event="marker-1", at=STAMP - 9, kind="marker", text="a\0b" * 900,
        data='{"version": "1.4"}',
    )  # fmt: skip
    row = split("events", rows.encode_event(record, 1))
    assert row["data"] == b'\1{"version":"1.4"}'
    assert row["text"] is not None
    assert row["text"].startswith(b"a\\x00ba")
    assert len(row["text"]) == rows.LONG_TEXT_CAP
    assert row["severity"] is None


def incident(name: str = "5xx-1", **changes: Any) -> IncidentRecord:
    values: dict[str, Any] = {
        "received_at": STAMP,
        "category": "5xx",
        "severity": "page",
        "opened_at": STAMP,
        "last_seen_at": STAMP,
    }
    return IncidentRecord(incident=name, **(values | changes))


def test_a_later_revision_of_an_incident_names_it_as_it_was_stored() -> None:
    assert rows.replaced(incident(), 3) is None
    assert rows.replaced(incident("5xx\0", revision=2), 3) == rows.Replaced(
        "incidents", "", "", r"5xx\x00", STAMP, 3, 2
    )


def test_a_code_that_is_none_of_sips_is_brought_into_its_columns_range() -> None:
    record = AdmissionRecord(
        call_id="a", received_at=STAMP, way="http", verdict="refuse", rule="r", code=2**40
    )
    assert split("admissions", rows.encode_admission(record, 1))["code"] == b"\x7f\xff"


def test_evidence_is_a_document_in_the_binary_form_of_jsonb() -> None:
    assert call(evidence='{"high_loss": [{"percent": 5.5}]}')["evidence"] == (
        b'\1{"high_loss":[{"percent":5.5}]}'
    )
    assert call()["evidence"] is None


@pytest.mark.parametrize(
    "text",
    [
        "", "no JSON", "[1]", "null", '"text"', '{"a": NaN}', '{"a": 1e400}', '{"a": "\\ud800"}',
        '{"a": "\udcff"}', '{"a": 1', '{"a":' + "[" * 3000 + "]" * 3000 + "}",
        '{"a": "' + "x" * rows.JSON_CAP + '"}', '{"a": "' + "é" * (rows.JSON_CAP // 2) + '"}',
    ],
)  # fmt: skip
def test_evidence_that_jsonb_would_refuse_or_that_is_too_long_is_null(text: str) -> None:
    assert call(evidence=text) == call()


def test_a_strangers_nul_does_not_make_evidence_disappear() -> None:
    assert call(evidence='{"\\u0000k": ["a\\u0000b", {"c": "\\u0000"}]}')["evidence"] == (
        rb'\x01{"\\x00k":["a\\x00b",{"c":"\\x00"}]}'.replace(rb"\x01", b"\1")
    )


def test_an_empty_array_has_no_dimension() -> None:
    assert call()["flags"] == struct.pack(">iii", 0, 0, 25)


def test_an_array_over_its_cap_is_clipped() -> None:
    stored = call(agent_ids=tuple(range(1000)))["agent_ids"]
    assert stored is not None
    assert len(stored) == 20 + 12 * rows.ARRAY_CAP


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_duration_that_is_no_number_is_null(value: float) -> None:
    assert call(pdd_ms=value)["pdd_ms"] is None


def test_an_absent_from_tag_is_empty_for_the_primary_key() -> None:
    assert call(from_tag="")["from_tag"] == b""
    assert call(from_tag=None)["from_tag"] == b""


@given(ANY_TEXT, st.integers(0, 40))
@example("a\0b", 40)
@example("\ud800", 3)
@example("€€", 4)
def test_cleaned_text_is_short_utf8_without_nul(text: str, cap: int) -> None:
    clean = rows.clean_text(text, cap)
    assert len(clean) <= cap
    assert "\0" not in clean.decode()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50))
def test_text_that_can_be_stored_is_stored_as_it_is(text: str) -> None:
    assert rows.clean_text(text, 200) == text.encode()


def test_bytes_that_are_no_text_are_stored_as_escapes() -> None:
    assert rows.clean_text("a\0b\udcff", 100) == rb"a\x00b\udcff"


@given(ANY_TEXT | st.integers(0, 400).map(lambda n: "x" * n))
@example("x" * rows.TEXT_CAP)
@example("x" * (rows.TEXT_CAP + 1))
@example("x" * (rows.TEXT_CAP - 2) + "\0")
def test_text_in_a_column_is_cleaned_whether_it_is_a_word_or_a_strangers(text: str) -> None:
    fields = call(released_by=text, from_user=text, flags=(text,))
    clean = rows.clean_text(text, rows.TEXT_CAP)
    assert fields["released_by"] == fields["from_user"] == clean
    assert (fields["flags"] or b"").endswith(clean)


@given(ANY_TEXT.map(lambda text: text * 60))
def test_a_call_id_is_stored_alike_in_every_table_and_asked_for_alike(call_id: str) -> None:
    asked = rows.clean_call_id(call_id).encode()
    assert message(call_id=call_id)["call_id"] == asked
    assert call(call_id=call_id)["call_id"] == asked


def test_the_keys_at_their_caps_fit_in_an_index_entry() -> None:
    assert rows.CALL_ID_CAP + rows.TAG_CAP + rows.BRANCH_CAP + 64 < 2704
    # of a refusal: Call-ID, From tag, rule, way and verdict; of a state: rule, scope, value and state
    assert rows.CALL_ID_CAP + rows.TAG_CAP + 3 * rows.TEXT_CAP + 64 < 2704
    assert 4 * rows.TEXT_CAP + 64 < 2704


def test_a_first_revision_replaces_nothing() -> None:
    record = CallRecord(call_id="a", from_tag="t", received_at=STAMP, started_at=STAMP)
    assert rows.replaced(record, 1) is None


def test_a_later_revision_names_the_key_as_it_was_stored() -> None:
    late = CallRecord(
        call_id="a\0", from_tag="t" * 999, received_at=2**70, started_at=STAMP, revision=2
    )
    assert rows.replaced(late, 4) == rows.Replaced(
        "calls", r"a\x00", "t" * rows.TAG_CAP, "", rows.TIME_MAX, 4, 2
    )


def test_a_later_revision_of_media_names_its_stream() -> None:
    late = media(stream="unknown-" + "x" * 999, revision=3)
    assert rows.replaced(media(), 4) is None
    assert rows.replaced(late, 4) == rows.Replaced(
        "media", "a@b", "t", ("unknown-" + "x" * 999)[: rows.BRANCH_CAP], STAMP, 4, 3
    )


def test_the_numbers_of_a_key_are_brought_into_their_columns_range() -> None:
    key = rows.clean_key(rows.Replaced("calls", "a", "t", "", -5, 2**40, 2**70))
    assert key == rows.Replaced("calls", "a", "t", "", rows.TIME_MIN, 2**31 - 1, 2**31 - 1)
    assert rows.clean_key(key) == key


def test_a_later_revision_of_an_attempt_names_its_branch() -> None:
    late = AttemptRecord(
        call_id="a",
        from_tag="t",
        branch="z9hG4bK1",
        received_at=STAMP,
        started_at=STAMP,
        revision=1,
    )
    assert rows.replaced(late, 4) == rows.Replaced("attempts", "a", "t", "z9hG4bK1", STAMP, 4, 1)
