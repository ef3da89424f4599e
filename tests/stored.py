"""A store on a test's own database, rows to write to it, and what is in it afterwards."""

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

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
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.postgres.connection import close, connect
from sipsidecar.signals.alarms import EventRecord, IncidentRecord, OutcomeRecord
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.decisions import AdmissionRecord, StateRecord
from sipsidecar.signals.minutes import CodeMinute, KpiMinute

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

DAY = 86_400_000_000
NOON = int(datetime(2026, 7, 20, 12, tzinfo=UTC).timestamp()) * 1_000_000
BROKEN_ROW = b"\0\1\0\0"

KINDS: dict[str, tuple[type[msgspec.Struct], Callable[[Any, int], bytes]]] = {
    "calls": (CallRecord, rows.encode_call),
    "attempts": (AttemptRecord, rows.encode_attempt),
    "media": (MediaRecord, rows.encode_media),
    "quality_intervals": (QualityInterval, rows.encode_interval),
    "legs": (LegRecord, rows.encode_leg),
    "conversations": (ConversationRecord, rows.encode_conversation),
    "registrations": (RegistrationRecord, rows.encode_registration),
    "pings": (PingRecord, rows.encode_ping),
    "admissions": (AdmissionRecord, rows.encode_admission),
    "admission_states": (StateRecord, rows.encode_state),
    "kpi_minute": (KpiMinute, rows.encode_kpi),
    "code_minute": (CodeMinute, rows.encode_code),
    "baseline_hours": (BaselineHour, rows.encode_baseline),
    "incidents": (IncidentRecord, rows.encode_incident),
    "events": (EventRecord, rows.encode_event),
    "outcomes": (OutcomeRecord, rows.encode_outcome),
}


def settings_of(dsn: str, **changes: Any) -> PostgresSettings:
    values: dict[str, Any] = {"dsn": dsn, "node_wait_s": 0.05}
    return PostgresSettings(**(values | changes))


@contextlib.asynccontextmanager
async def store(dsn: str, **changes: Any) -> AsyncIterator[Postgres]:
    opened = Postgres(settings_of(dsn, **changes))
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def sql(dsn: str) -> AsyncIterator["Connection"]:
    connection = await connect(PostgresSettings(dsn=dsn), "test")
    try:
        yield connection
    finally:
        # the tests kill backends and servers: an open one is asked, a dead one only dropped
        await close(connection)


async def count(dsn: str, table: str) -> int:
    async with sql(dsn) as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608


def message(call_id: str = "a@b", sequence: int = 0, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "received_at": NOON,
        "captured_at": NOON,
        "node_id": 1,
        "agent_id": 2001,
        "sequence": sequence,
        "kind": 1,
        "src_ip": "10.0.0.1",
        "src_port": 5060,
        "dst_ip": "10.0.0.2",
        "dst_port": 5060,
        "transport": "udp",
        "call_id": call_id,
        "payload": b"INVITE sip:b@b SIP/2.0\r\n\r\n",
    }
    return rows.encode_message(**(values | changes))


def call(call_id: str = "a@b", **changes: Any) -> CallRecord:
    values: dict[str, Any] = {"from_tag": "t", "received_at": NOON, "started_at": NOON}
    return CallRecord(call_id=call_id, **(values | changes))


def call_row(call_id: str = "a@b", **changes: Any) -> bytes:
    return rows.encode_call(call(call_id, **changes), 1)


def attempt(call_id: str, branch: str, **changes: Any) -> AttemptRecord:
    values: dict[str, Any] = {"from_tag": "t", "received_at": NOON, "started_at": NOON}
    return AttemptRecord(call_id=call_id, branch=branch, **(values | changes))


def media(call_id: str, stream: str = "caller_to_callee", **changes: Any) -> MediaRecord:
    values: dict[str, Any] = {
        "from_tag": "t",
        "received_at": NOON,
        "direction": stream if "_to_" in stream else "unknown",
        "started_at": NOON,
        "ended_at": NOON + 60_000_000,
    }
    return MediaRecord(call_id=call_id, stream=stream, **(values | changes))


def media_row(call_id: str, stream: str = "caller_to_callee", **changes: Any) -> bytes:
    return rows.encode_media(media(call_id, stream, **changes), 1)


def interval(call_id: str, at: int = NOON, **changes: Any) -> QualityInterval:
    values: dict[str, Any] = {
        "from_tag": "t",
        "direction": "caller_to_callee",
        "reporter_ssrc": 2**32 - 1,
        "source_ssrc": 2**31,
        "received_at": NOON,
        "source": "rtcp",
    }
    return QualityInterval(call_id=call_id, at=at, **(values | changes))


def interval_row(call_id: str, at: int = NOON, **changes: Any) -> bytes:
    return rows.encode_interval(interval(call_id, at, **changes), 1)


def leg(uuid: str, call_id: str = "", **changes: Any) -> LegRecord:
    values: dict[str, Any] = {
        "switch": "fs1",
        "conversation": uuid,
        "received_at": NOON,
        "created_at": NOON,
    }
    return LegRecord(uuid=uuid, call_id=call_id, **(values | changes))


def leg_row(uuid: str, call_id: str = "", **changes: Any) -> bytes:
    return rows.encode_leg(leg(uuid, call_id, **changes), 1)


def conversation(name: str, **changes: Any) -> ConversationRecord:
    values: dict[str, Any] = {"switch": "fs1", "received_at": NOON, "started_at": NOON}
    return ConversationRecord(conversation=name, **(values | changes))


def conversation_row(name: str, **changes: Any) -> bytes:
    return rows.encode_conversation(conversation(name, **changes), 1)


def admission(call_id: str, **changes: Any) -> AdmissionRecord:
    values: dict[str, Any] = {
        "from_tag": "t",
        "received_at": NOON,
        "way": "evapi",
        "verdict": "refuse",
        "rule": "acme-calls",
        "measure": "calls",
        "scope": "trunk",
        "scope_value": "acme",
        "value": 50.0,
        "threshold": 50.0,
        "code": 486,
        "reason": "cac acme-calls",
    }
    return AdmissionRecord(call_id=call_id, **(values | changes))


def admission_row(call_id: str, **changes: Any) -> bytes:
    return rows.encode_admission(admission(call_id, **changes), 1)


def state(rule: str = "acme-asr", **changes: Any) -> StateRecord:
    values: dict[str, Any] = {
        "received_at": NOON,
        "scope": "trunk",
        "scope_value": "acme",
        "state": "closed",
        "previous": "open",
    }
    return StateRecord(rule=rule, **(values | changes))


def state_row(rule: str = "acme-asr", **changes: Any) -> bytes:
    return rows.encode_state(state(rule, **changes), 1)


def kpi(minute_at: int = NOON, **changes: Any) -> KpiMinute:
    values: dict[str, Any] = {"received_at": minute_at + 60_250_000, "source": "call"}
    return KpiMinute(minute_at=minute_at, **(values | changes))


def kpi_row(minute_at: int = NOON, **changes: Any) -> bytes:
    return rows.encode_kpi(kpi(minute_at, **changes), 1)


def code_row(code: int, count: int = 1, minute_at: int = NOON, **changes: Any) -> bytes:
    values: dict[str, Any] = {"received_at": minute_at + 60_250_000, "source": "call"}
    record = CodeMinute(minute_at=minute_at, code=code, count=count, **(values | changes))
    return rows.encode_code(record, 1)


def baseline(series: str = "call:all", hour_at: int = NOON, **changes: Any) -> BaselineHour:
    values: dict[str, Any] = {
        "received_at": hour_at + 3_600_000_000,
        "minutes": 60,
        "total": 100,
        "answered": 60,
        "effective": 80,
        "counts": (10, 2, 0, 3, 0, 4, 1),
    }
    return BaselineHour(series=series, hour_at=hour_at, **(values | changes))


def incident(name: str, at: int = NOON, **changes: Any) -> IncidentRecord:
    values: dict[str, Any] = {"category": "5xx", "severity": "page", "last_seen_at": at}
    return IncidentRecord(incident=name, received_at=at, opened_at=at, **(values | changes))


def incident_row(name: str, at: int = NOON, **changes: Any) -> bytes:
    return rows.encode_incident(incident(name, at, **changes), 1)


def event(name: str, at: int = NOON, **changes: Any) -> EventRecord:
    values: dict[str, Any] = {"received_at": at, "kind": "marker"}
    return EventRecord(event=name, at=at, **(values | changes))


def event_row(name: str, at: int = NOON, **changes: Any) -> bytes:
    return rows.encode_event(event(name, at, **changes), 1)


def outcome(call_id: str, name: str = "outcome-1", **changes: Any) -> OutcomeRecord:
    values: dict[str, Any] = {"received_at": NOON}
    return OutcomeRecord(call_id=call_id, outcome=name, **(values | changes))


def outcome_row(call_id: str, name: str = "outcome-1", **changes: Any) -> bytes:
    return rows.encode_outcome(outcome(call_id, name, **changes), 1)


def filled(kind: type[msgspec.Struct]) -> Any:
    def value(number: int, name: str, annotation: Any) -> Any:
        if name == "at" or name.endswith("_at"):
            return NOON + number
        if name.endswith("_buckets"):
            return (0, number, 2**31 - 1, 0)
        if name == "counts":
            return (0, number, 2**31 - 1, 0)
        if name in {"evidence", "data"}:
            return '{"evidence": ["ü", 1.5]}'
        if name.endswith("_ip"):
            return "2001:db8::1" if number % 2 else "192.0.2.7"
        by_type: dict[Any, Any] = {
            str: f"{name} ü",
            str | None: f"{name} ü",
            int: number,
            int | None: number,
            float: number + 0.25,
            float | None: number + 0.25,
            bool: True,
            bool | None: True,
            tuple[int, ...]: (number, 2**40),
            tuple[float, ...]: (number + 0.25, -1e-300),
            tuple[str, ...]: (name, "ß"),
        }
        return by_type[annotation]

    fields = msgspec.structs.fields(kind)
    return kind(**{f.name: value(n, f.name, f.type) for n, f in enumerate(fields, start=1)})


def bare(kind: type[msgspec.Struct]) -> Any:
    by_type: dict[Any, Any] = {str: "", int: 0, tuple[int, ...]: ()}
    fields = [field for field in msgspec.structs.fields(kind) if field.required]
    return kind(**{field.name: by_type[field.type] for field in fields})


def as_stored(record: msgspec.Struct) -> dict[str, Any]:
    values = msgspec.structs.asdict(record)
    if isinstance(record, ConversationRecord):
        values["call_id"] = record.call_ids[0] if record.call_ids else ""
    for name in [name for name in values if name.endswith("_buckets")]:
        used = [n for n, value in enumerate(values[name], start=1) if value]
        values[name] = values[name][: used[-1]] if used else None
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


async def partitions(connection: "Connection", table: str) -> list[str]:
    found = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
        "WHERE inhparent = $1::text::regclass ORDER BY 1",
        table,
    )
    return [name for (name,) in found]


async def rows_in(connection: "Connection", table: str) -> list[tuple[str, int]]:
    found = await connection.fetch(
        f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1 ORDER BY 1"  # noqa: S608
    )
    return [(name, number) for name, number in found]
