import asyncio
import gc
import os
import random
import signal
import string
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipsidecar import rows
from sipsidecar.batch import SequenceTaken, StoreError, StoreRejected, StoreUnavailable, Written
from sipsidecar.calls.events import AttemptRecord
from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.postgres import Postgres
from sipsidecar.edges.postgres import store as storing
from sipsidecar.signals import minutes as words
from stored import (
    BROKEN_ROW,
    DAY,
    KINDS,
    NOON,
    admission,
    admission_row,
    as_stored,
    attempt,
    bare,
    baseline,
    call,
    call_row,
    code_row,
    conversation,
    conversation_row,
    count,
    event,
    event_row,
    filled,
    incident,
    incident_row,
    interval,
    interval_row,
    kpi_row,
    leg,
    leg_row,
    media,
    media_row,
    message,
    outcome_row,
    settings_of,
    sql,
    state,
    state_row,
    store,
)

# --- schema ------------------------------------------------------------------------------------


async def test_the_columns_of_every_table_are_those_that_rows_encodes(database: str) -> None:
    async with store(database), sql(database) as connection:
        for table, columns in rows.TABLES.items():
            found = await connection.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass "
                "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                table,
            )
            # columns of a later version stand behind those of the first
            assert sorted(name for (name,) in found) == sorted(columns)


async def test_every_table_view_and_column_has_a_comment(database: str) -> None:
    async with store(database), sql(database) as connection:
        silent = await connection.fetch(
            "SELECT c.relname, a.attname FROM pg_class c "
            "LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
            "AND NOT a.attisdropped WHERE c.relnamespace = 'public'::regnamespace "
            "AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition "
            "AND (obj_description(c.oid) IS NULL OR col_description(c.oid, a.attnum) IS NULL)"
        )
    assert silent == []


async def test_no_table_breaks_the_rules_of_distribution_by_call(database: str) -> None:
    async with store(database), sql(database) as connection:
        keys = await connection.fetch(
            "SELECT conrelid::regclass::text, contype, pg_get_constraintdef(oid) "
            "FROM pg_constraint WHERE conrelid = ANY($1::text[]::regclass[])",
            list(rows.TABLES),
        )
        nullable = await connection.fetchval(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = ANY($1::text[]::regclass[]) "
            "AND attname = 'call_id' AND NOT attnotnull",
            list(rows.TABLES),
        )
        counters = await connection.fetchval("SELECT count(*) FROM pg_class WHERE relkind = 'S'")
    primary = {table: text for table, kind, text in keys if kind == b"p"}
    alike = {"messages", "quarantine", "kpi_minute", "code_minute"}  # two equal rows are both true
    assert set(primary) == set(rows.TABLES) - alike
    assert all("(call_id, " in text and "received_at" in text for text in primary.values())
    assert not [text for _, kind, text in keys if kind in (b"f", b"u")]
    assert (nullable, counters) == (0, 0)


async def test_a_database_of_the_first_version_goes_on_with_its_rows(bare_database: str) -> None:
    async with sql(bare_database) as connection:
        await connection.execute(storing._migrations()[1])
        await connection.execute("INSERT INTO sipsidecar_schema VALUES (1)")
        today = datetime.now(UTC).date()
        await connection.execute(
            f"CREATE TABLE messages_p{today:%Y%m%d} PARTITION OF messages FOR VALUES "
            f"FROM ('{today} 00:00:00+00') TO ('{today + timedelta(days=1)} 00:00:00+00')"
        )
        await connection.execute(
            "INSERT INTO messages (received_at, sequence, node_id, kind, payload) "
            "VALUES (now(), 7, 1, 1, 'x'); INSERT INTO ingest_batch VALUES (1, 41, now(), 1)"
        )
        async with store(bare_database) as opened:
            assert opened.first_sequence == 42
            now = time.time_ns() // 1000
            fresh = message(sequence=8, received_at=now, agent_ip="10.9.9.9")
            await opened.write(42, {"messages": [fresh]}, life=5)
            assert (await opened.maintain(now)).postponed == 0
        found = await connection.fetch(
            "SELECT sequence, agent_ip, tableoid::regclass::text FROM messages ORDER BY 1"
        )
        table = f"messages_p{today:%Y%m%d}"
        assert [tuple(row) for row in found] == [(7, None, table), (8, "10.9.9.9", table)]


async def test_a_database_of_the_second_version_gets_media_and_keeps_its_calls(
    bare_database: str,
) -> None:
    now = time.time_ns() // 1000
    async with sql(bare_database) as connection:
        for version in (1, 2):
            await connection.execute(storing._migrations()[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)
        today = datetime.now(UTC).date()
        await connection.execute(
            f"CREATE TABLE calls_p{today:%Y%m%d} PARTITION OF calls FOR VALUES "
            f"FROM ('{today} 00:00:00+00') TO ('{today + timedelta(days=1)} 00:00:00+00')"
        )
        for name, at in (("today", now), ("stray", NOON - 400 * DAY)):
            await connection.execute(
                "INSERT INTO calls (call_id, from_tag, received_at, started_at, mos, node_id) "
                "VALUES ($1, 't', $2, $2, 4.2, 1)",
                name,
                at,
            )
        async with store(bare_database, retention_days={}) as opened:
            tables = {
                "calls": [call_row("new", received_at=now, findings=("low_mos",), mos=2.5)],
                "media": [media_row("new", received_at=now)],
                "quality_intervals": [interval_row("new", received_at=now)],
            }
            assert await opened.write(1, tables) == Written()
            assert (await opened.maintain(now)).postponed == 0  # the stray gets its day
        found = await connection.fetch(
            "SELECT call_id, mos, findings, evidence, mos_scale FROM calls ORDER BY mos, call_id"
        )
        assert [tuple(row) for row in found] == [
            ("new", 2.5, ["low_mos"], None, None),
            ("stray", 4.2, [], None, None),
            ("today", 4.2, [], None, None),
        ]
        for table in ("media", "quality_intervals"):
            in_days = await connection.fetchval(f"SELECT tableoid::regclass::text FROM {table}")  # noqa: S608
            assert in_days.startswith(f"{table}_p")
        recent = await connection.fetch("SELECT call_id, mos, findings FROM calls_recent")
        assert {row["call_id"] for row in recent} == {"new", "today"}
        assert await connection.fetchval("SELECT call_id FROM media_recent") == "new"


async def test_a_database_of_the_third_version_gets_legs_and_keeps_its_calls(
    bare_database: str,
) -> None:
    now = time.time_ns() // 1000
    async with sql(bare_database) as connection:
        for version in (1, 2, 3):
            await connection.execute(storing._migrations()[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)
        await connection.execute(
            "INSERT INTO calls (call_id, from_tag, received_at, started_at, node_id) "
            "VALUES ('before', 't', $1, $1, 1)",
            now,
        )
        async with store(bare_database, retention_days={}) as opened:
            tables = {
                "legs": [leg_row("u1", received_at=now)],
                "conversations": [conversation_row("u1", received_at=now, legs=("u1", "u2"))],
            }
            assert await opened.write(1, tables) == Written()
            assert (await opened.maintain(now)).postponed == 0
        assert await connection.fetchval("SELECT call_id FROM calls") == "before"
        for table in ("legs", "conversations"):
            in_days = await connection.fetchval(f"SELECT tableoid::regclass::text FROM {table}")  # noqa: S608
            assert in_days.startswith(f"{table}_p")
        (recent,) = await connection.fetch("SELECT conversation, legs FROM conversations_recent")
        assert tuple(recent) == ("u1", 2)


async def test_a_database_of_the_fourth_version_gets_cohorts_and_refusals_and_keeps_its_calls(
    bare_database: str,
) -> None:
    now = time.time_ns() // 1000
    async with sql(bare_database) as connection:
        for version in (1, 2, 3, 4):
            await connection.execute(storing._migrations()[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)
        today = datetime.now(UTC).date()
        for table in ("calls", "attempts"):
            await connection.execute(
                f"CREATE TABLE {table}_p{today:%Y%m%d} PARTITION OF {table} FOR VALUES "
                f"FROM ('{today} 00:00:00+00') TO ('{today + timedelta(days=1)} 00:00:00+00')"
            )
            await connection.execute(
                f"INSERT INTO {table} (call_id, from_tag, received_at, started_at, node_id) "  # noqa: S608
                "VALUES ('before', 't', $1, $1, 1)",
                now,
            )
        labels = {"tenant": "t1", "trunk": "acme", "direction": "in", "region": "eu"}
        made = attempt("after", "z", received_at=now, started_at=now, **labels)
        async with store(bare_database, retention_days={}) as opened:
            tables = {
                "calls": [call_row("after", received_at=now, started_at=now + 1, **labels)],
                "attempts": [rows.encode_attempt(made, 1)],
                "admissions": [admission_row("after", received_at=now)],
                "admission_states": [state_row(received_at=now)],
            }
            assert await opened.write(1, tables) == Written()
            assert (await opened.maintain(now)).postponed == 0
        for table in ("calls", "attempts"):
            found = await connection.fetch(
                f"SELECT call_id, tenant, trunk, direction, region FROM {table} ORDER BY 1"  # noqa: S608
            )
            assert [tuple(row) for row in found] == [
                ("after", "t1", "acme", "in", "eu"), ("before", None, None, None, None),
            ]  # fmt: skip
        for table in ("admissions", "admission_states"):
            in_days = await connection.fetchval(f"SELECT tableoid::regclass::text FROM {table}")  # noqa: S608
            assert in_days.startswith(f"{table}_p")
        recent = await connection.fetch("SELECT call_id, tenant, region FROM calls_recent")
        assert [tuple(row) for row in recent] == [("after", "t1", "eu"), ("before", None, None)]


async def test_a_database_of_the_fifth_version_gets_carriers_and_figures_and_keeps_its_calls(
    bare_database: str,
) -> None:
    now = time.time_ns() // 1000
    async with sql(bare_database) as connection:
        for version in (1, 2, 3, 4, 5):
            await connection.execute(storing._migrations()[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)
        today = datetime.now(UTC).date()
        for table in ("calls", "attempts"):
            await connection.execute(
                f"CREATE TABLE {table}_p{today:%Y%m%d} PARTITION OF {table} FOR VALUES "
                f"FROM ('{today} 00:00:00+00') TO ('{today + timedelta(days=1)} 00:00:00+00')"
            )
            await connection.execute(
                f"INSERT INTO {table} (call_id, from_tag, received_at, started_at, node_id) "  # noqa: S608
                "VALUES ('before', 't', $1, $1, 1)",
                now,
            )
        labels = {"carrier": "telco", "agent": "bot-1"}
        made = attempt("after", "z", received_at=now, started_at=now, **labels)
        async with store(bare_database, retention_days={}) as opened:
            tables = {
                "calls": [call_row("after", received_at=now, started_at=now + 1, **labels)],
                "attempts": [rows.encode_attempt(made, 1)],
                "kpi_minute": [kpi_row(now)],
                "code_minute": [code_row(200, minute_at=now)],
                "baseline_hours": [rows.encode_baseline(baseline(hour_at=now), 1)],
                "incidents": [incident_row("5xx-1", now)],
                "events": [event_row("e-1", now)],
                "outcomes": [outcome_row("after", received_at=now)],
            }
            assert await opened.write(1, tables) == Written()
            assert (await opened.maintain(now)).postponed == 0
        for table in tables:
            places = await connection.fetch(f"SELECT tableoid::regclass::text FROM {table}")  # noqa: S608
            assert all(place.startswith(f"{table}_p") for (place,) in places), table
        recent = await connection.fetch("SELECT call_id, carrier, agent FROM calls_recent")
        assert [tuple(row) for row in recent] == [
            ("after", "telco", "bot-1"), ("before", None, None),
        ]  # fmt: skip


async def test_a_newer_schema_is_refused_and_both_versions_are_named(database: str) -> None:
    async with store(database), sql(database) as connection:
        await connection.execute("INSERT INTO sipsidecar_schema VALUES (999)")
    with pytest.raises(StoreError, match=r"schema version 999, this sidecar knows version 6:"):
        await Postgres(settings_of(database)).open()


async def test_two_sidecars_that_start_at_once_migrate_once(database: str) -> None:
    both = [Postgres(settings_of(database, node_id=node, node_wait_s=5)) for node in (1, 2)]
    await asyncio.gather(*(one.open() for one in both))
    for one in both:
        await one.close()
    assert await count(database, "sipsidecar_schema") == 6


async def test_a_database_of_another_encoding_is_refused(database: str) -> None:
    async with sql(database) as connection:
        name = await connection.fetchval("SELECT current_database() || '_latin1'")
        await connection.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )
        try:
            dsn = database.replace(name.removesuffix("_latin1"), name)
            with pytest.raises(StoreError, match="encoding is LATIN1"):
                await Postgres(settings_of(dsn)).open()
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# --- what is stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("table", KINDS)
async def test_a_record_with_every_field_set_comes_back_as_it_was(
    database: str, table: str
) -> None:
    kind, encode = KINDS[table]
    record = filled(kind)
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {table: [encode(record, 7)]})
        (row,) = await connection.fetch(f"SELECT * FROM {table}")  # noqa: S608
    assert dict(row) == as_stored(record) | {"node_id": 7}


@pytest.mark.parametrize("table", KINDS)
async def test_a_record_with_nothing_known_comes_back_as_it_was(database: str, table: str) -> None:
    kind, encode = KINDS[table]
    record = bare(kind)
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {table: [encode(record, 7)]})
        (row,) = await connection.fetch(f"SELECT * FROM {table}")  # noqa: S608
    assert dict(row) == as_stored(record) | {"node_id": 7}


async def test_a_message_and_a_quarantined_packet_come_back_byte_for_byte(database: str) -> None:
    payload = bytes(range(256))
    refused = rows.encode_quarantine(
        NOON, None, 1, None, 8, "::1", 9060, None, None, "hep-length", payload
    )
    async with store(database) as opened, sql(database) as connection:
        kept = [
            message(payload=payload, agent_ip="10.9.9.9"),
            message(call_id="", payload=b"", captured_at=None),
        ]
        await opened.write(1, {"messages": kept, "quarantine": [refused]})
        first, second = await connection.fetch("SELECT * FROM messages ORDER BY call_id DESC")
        (odd,) = await connection.fetch("SELECT * FROM quarantine")
    assert dict(first) == {
        "received_at": NOON,
        "captured_at": NOON,
        "agent_id": 2001,
        "sequence": 0,
        "node_id": 1,
        "src_port": 5060,
        "dst_port": 5060,
        "kind": 1,
        "codec": 0,
        "src_ip": "10.0.0.1",
        "dst_ip": "10.0.0.2",
        "transport": "udp",
        "call_id": "a@b",
        "payload": payload,
        "agent_ip": "10.9.9.9",
    }
    assert (second["call_id"], second["captured_at"], second["payload"]) == ("", None, b"")
    assert (odd["why"], odd["payload"], odd["src_ip"]) == ("hep-length", payload, "::1")
    assert (odd["captured_at"], odd["agent_id"], odd["dst_ip"]) == (None, None, None)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
LONG_TEXT = st.builds(lambda text, times: text * times, ANY_TEXT, st.sampled_from([1, 1, 300]))
ANY_INT = st.integers() | st.integers(-(2**31), 2**32) | st.sampled_from([2**63, 2**64, -(2**63)])
ADDRESS = st.none() | st.ip_addresses().map(str) | ANY_TEXT
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: LONG_TEXT,
    str | None: st.none() | LONG_TEXT,
    int: ANY_INT,
    int | None: st.none() | ANY_INT,
    float: st.floats(),
    float | None: st.none() | st.floats(),
    bool: st.booleans(),
    bool | None: st.none() | st.booleans(),
    tuple[int, ...]: st.lists(ANY_INT, max_size=3).map(tuple),
    tuple[float, ...]: st.lists(st.floats(), max_size=3).map(tuple),
    tuple[str, ...]: st.lists(LONG_TEXT, max_size=3).map(tuple),
}


JSON_TEXT = st.sampled_from(
    ["\0", "\ud800", '"', "\\", "ü", "x" * 9000, "\\u0000", "\\ud800", "\\udc00\\ud800"]
)


def json_object(fields: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in fields) + "}"


JSON_VALUE = st.recursive(
    JSON_TEXT.map(lambda text: f'"{text}"')
    | st.sampled_from(["1e400", "-0", "1E-400", "9" * 400, "NaN", "null", "true", "1.5"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: f"[{','.join(some)}]")
        | st.lists(st.tuples(JSON_TEXT, inner), max_size=3).map(json_object)
    ),
    max_leaves=6,
)
EVIDENCE = st.none() | LONG_TEXT | JSON_VALUE.map(lambda text: f'{{"a":{text}}}')


def wild(table: str) -> st.SearchStrategy[tuple[str, bytes]]:
    kind, encode = KINDS[table]
    values = {
        field.name: ADDRESS if field.name.endswith("_ip") else BY_TYPE[field.type]
        for field in msgspec.structs.fields(kind)
    }
    for name in {"data", "evidence"} & values.keys():
        values[name] = EVIDENCE
    return st.builds(kind, **values).map(lambda record: (table, encode(record, 1)))


OPTIONAL_INT = st.none() | ANY_INT
WILD_MESSAGE = st.builds(
    rows.encode_message,
    received_at=ANY_INT,
    captured_at=OPTIONAL_INT,
    node_id=st.just(1),
    agent_id=OPTIONAL_INT,
    sequence=st.integers(0, 2**63 - 1),
    kind=ANY_INT,
    src_ip=ADDRESS,
    src_port=OPTIONAL_INT,
    dst_ip=ADDRESS,
    dst_port=OPTIONAL_INT,
    transport=st.none() | LONG_TEXT,
    call_id=st.none() | LONG_TEXT,
    payload=st.binary(max_size=3000),
    agent_ip=ADDRESS,
).map(lambda row: ("messages", row))
WILD_QUARANTINE = st.builds(
    rows.encode_quarantine,
    received_at=ANY_INT,
    captured_at=OPTIONAL_INT,
    node_id=st.just(1),
    agent_id=OPTIONAL_INT,
    sequence=st.integers(0, 2**63 - 1),
    src_ip=ADDRESS,
    src_port=OPTIONAL_INT,
    dst_ip=ADDRESS,
    dst_port=OPTIONAL_INT,
    why=LONG_TEXT,
    payload=st.binary(max_size=300),
    detail=st.none() | LONG_TEXT,
).map(lambda row: ("quarantine", row))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    batch=st.lists(
        st.one_of(WILD_MESSAGE, WILD_QUARANTINE, *map(wild, KINDS)), min_size=1, max_size=30
    )
)
def test_no_value_that_a_stranger_can_send_makes_a_batch_fail(
    database: str, batch: list[tuple[str, bytes]]
) -> None:
    tables: dict[str, list[bytes]] = {}
    for table, row in batch:
        tables.setdefault(table, []).append(row)

    async def write() -> None:
        async with store(database) as opened, sql(database) as connection:
            written = await opened.write(opened.first_sequence, tables)
            ask = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)  # noqa: S608
            stored = await connection.fetchval(f"SELECT {ask}")
            assert written.refused == {}
            assert stored + written.left_out == len(batch)
            await connection.execute("TRUNCATE " + ", ".join(rows.TABLES))

    asyncio.run(write())


def test_keys_of_the_longest_and_least_compressible_text_fit_in_the_index(database: str) -> None:
    def noise(seed: int, length: int) -> str:
        return "".join(random.Random(seed).choices(string.printable[:94], k=length))

    async def write() -> None:
        async with store(database) as opened:
            record = AttemptRecord(
                call_id=noise(1, 4000),
                from_tag=noise(2, 4000),
                branch=noise(3, 4000),
                received_at=NOON,
                started_at=NOON,
            )
            long = {name: noise(n, 4000) for n, name in enumerate(("rule", "scope", "way"), 4)}
            refusal = admission(
                record.call_id, from_tag=record.from_tag, **long, verdict=noise(7, 4000)
            )
            changed = state(noise(8, 4000), scope=noise(9, 4000), scope_value=noise(10, 4000))
            hour = baseline(noise(12, 4000))
            tables = {
                "baseline_hours": [rows.encode_baseline(hour, 1)],
                "incidents": [incident_row(noise(13, 4000), revision=2**40)],
                "events": [event_row(noise(14, 4000))],
                "outcomes": [outcome_row(record.call_id, noise(15, 4000))],
                "attempts": [rows.encode_attempt(record, 1)],
                "admissions": [rows.encode_admission(refusal, 1)],
                "admission_states": [
                    rows.encode_state(msgspec.structs.replace(changed, state=noise(11, 4000)), 1)
                ],
            }
            written = await opened.write(1, tables)
            assert written == Written()

    asyncio.run(write())


# --- what was decided --------------------------------------------------------------------------


async def test_one_call_that_is_asked_about_again_has_a_row_for_each_time(database: str) -> None:
    some = [
        admission_row("a"),
        admission_row("a", received_at=NOON + 1),
        admission_row("a", from_tag=""),
        admission_row("a", rule="other-rule", verdict="admit", shadow=("other-rule",)),
    ]
    async with store(database) as opened:
        assert await opened.write(1, {"admissions": some}) == Written()
        assert await opened.write(2, {"admissions": some}) == Written(left_out=4)
        changes = [
            state_row(), state_row(received_at=NOON + 1), state_row(scope_value="other"),
            state_row(state="open", previous="closed"), state_row("drain"),
        ]  # fmt: skip
        assert await opened.write(3, {"admission_states": changes}) == Written()
    assert await count(database, "admissions") == 4
    assert await count(database, "admission_states") == 5


async def test_the_view_of_recent_decisions_shows_the_newest_first(database: str) -> None:
    now = time.time_ns() // 1000
    some = [
        admission_row("old", received_at=now - 2 * DAY),
        admission_row("earlier", received_at=now - 5),
        admission_row("last", received_at=now, verdict="overflow", route="ivr", code=None),
    ]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"admissions": some})
        recent = await connection.fetch("SELECT call_id, verdict, code FROM admissions_recent")
    assert [tuple(row) for row in recent] == [
        ("last", "overflow", None), ("earlier", "refuse", 486),
    ]  # fmt: skip


async def test_the_view_by_rule_counts_what_each_did_and_would_have_done(database: str) -> None:
    now = time.time_ns() // 1000
    shadow = {"verdict": "admit", "code": None}
    some = [
        admission_row("old", received_at=now - 2 * DAY),
        *(admission_row(f"r{n}", received_at=now - n) for n in range(3)),
        admission_row("r3", received_at=now, shadow=("asr", "mos")),
        admission_row("o1", received_at=now, verdict="overflow", code=None, route="ivr"),
        admission_row("e1", received_at=now, exempt="emergency", **shadow),
        admission_row("other trunk", received_at=now, scope_value="beta"),
        admission_row("s1", received_at=now, rule="asr", shadow=("asr", "mos"), **shadow),
        admission_row("s2", received_at=now, rule="asr", shadow=("asr",), **shadow),
    ]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"admissions": some})
        found = await connection.fetch("SELECT * FROM refused_by_rule")
    assert [tuple(row)[:7] for row in found] == [
        ("acme-calls", "trunk", "acme", 4, 1, 1, 0),
        ("acme-calls", "trunk", "beta", 1, 0, 0, 0),
        ("asr", "trunk", "acme", 0, 0, 0, 2),
        ("mos", "", "", 0, 0, 0, 2),
        ("asr", "", "", 0, 0, 0, 1),
    ]
    assert (found[0]["first_at"], found[0]["last_at"]) == (now - 2, now)


# --- figures -----------------------------------------------------------------------------------

MINUTE = 60_000_000
BOUNDS = {
    "delay": words.DELAY_BOUNDS_MS,
    "talk": words.TALK_BOUNDS_SECONDS,
    "mos": words.MOS_BOUNDS,
    "loss": words.LOSS_BOUNDS_PERCENT,
    "jitter": words.JITTER_BOUNDS_MS,
    "rtt": words.RTT_BOUNDS_MS,
}


async def figures(dsn: str, ask: str, *values: Any) -> list[dict[str, Any]]:
    async with sql(dsn) as connection:
        return [dict(row) for row in await connection.fetch(ask, *values)]


async def test_two_rows_of_one_minute_and_cohort_are_both_kept_and_add_up(database: str) -> None:
    now = time.time_ns() // 1000 // (5 * MINUTE) * 5 * MINUTE
    some = [
        kpi_row(now, trunk="acme", attempts=4, seizures=4, answered=3),
        kpi_row(now, trunk="acme", attempts=4, seizures=4, answered=3),
        kpi_row(now + MINUTE, trunk="acme", attempts=2, seizures=2, answered=0),
    ]
    async with store(database) as opened:
        assert await opened.write(1, {"kpi_minute": some}) == Written()
        assert await opened.write(1, {"kpi_minute": some}) == Written()
    (row,) = await figures(database, "SELECT * FROM kpi_5min")
    assert (row["time"], row["trunk"], row["attempts"], row["answered"]) == (now, "acme", 10, 6)
    assert row["asr_percent"] == pytest.approx(60)


async def test_the_shares_of_a_view_are_those_of_the_standards_vector(database: str) -> None:
    """standards 3.1: 60x200, 10x486, 8x480, 5x487, 4x404, 3x603, 4x503, 2x500, 2x408, 2x302."""
    now = time.time_ns() // 1000
    row = kpi_row(
        now,
        attempts=100, redirected=2, seizures=98, answered=60, effective=86, session_effective=81,
        ineffective=8, ended=58, completed=50, dropped=8, short_calls=29, talk_seconds=5800.0,
        talk_count=50, own_refusals=7,
    )  # fmt: skip
    async with store(database) as opened:
        await opened.write(1, {"kpi_minute": [row]})
    for view in ("kpi_5min", "kpi_hour", "kpi_day"):
        (seen,) = await figures(database, f"SELECT * FROM {view}")  # noqa: S608
        shares = {name: value for name, value in seen.items() if name.endswith("_percent")}
        assert {name: round(value, 4) for name, value in shares.items() if value is not None} == {
            "asr_percent": 61.2245, "ner_percent": 87.7551, "ser_percent": 61.2245,
            "seer_percent": 82.6531, "isa_percent": 8.0, "scr_percent": 50.0, "abr_percent": 60.0,
            "short_percent": 50.0, "dropped_percent": round(800 / 58, 4),
        }  # fmt: skip
        assert (seen["acd_seconds"], seen["own_refusals"], seen["pdd_p95_ms"]) == (116, 7, None)


def of_buckets(kind: str, counts: Sequence[int], share: float) -> float | None:
    low = 1.0 if kind == "mos" else 0.0
    edges = [low, *BOUNDS[kind]]
    wanted = share * sum(counts)
    before = 0
    for place, number in enumerate(counts):
        if number and before + number >= wanted:
            if place + 1 == len(edges):
                return edges[-1]
            width = edges[place + 1] - edges[place]
            return edges[place] + width * (wanted - before) / number
        before += number
    return None


PERCENTILES = {
    "pdd": ("delay", {"pdd_p50_ms": 0.5, "pdd_p95_ms": 0.95}),
    "setup": ("delay", {"setup_p50_ms": 0.5, "setup_p95_ms": 0.95}),
    "failed_srd": ("delay", {"failed_srd_p95_ms": 0.95}),
    "talk": ("talk", {"talk_p50_seconds": 0.5}),
    "mos_nb": ("mos", {"mos_nb_p05": 0.05}),
    "mos_wb": ("mos", {"mos_wb_p05": 0.05}),
    "mos_fb": ("mos", {"mos_fb_p05": 0.05}),
    "loss": ("loss", {"loss_p95_percent": 0.95}),
    "jitter": ("jitter", {"jitter_p95_ms": 0.95}),
    "rtt": ("rtt", {"rtt_p95_ms": 0.95}),
    "rrd": ("delay", {"rrd_p95_ms": 0.95}),
}


async def test_percentiles_are_linear_within_the_buckets_of_the_rows_together(
    database: str,
) -> None:
    now = time.time_ns() // 1000 // (5 * MINUTE) * 5 * MINUTE
    chance = random.Random(6)
    batch, expected = [], []
    for number in range(40):
        counts = {
            name: [chance.choice((0, 0, 0, 1, 5, 100)) for _ in range(len(BOUNDS[kind]) + 1)]
            for name, (kind, _) in PERCENTILES.items()
        }
        label = {"tenant": f"{number:02}"}
        halves = [{f"{name}_buckets": tuple(some)} for name, some in counts.items()]
        batch += [kpi_row(now, **label, **half) for half in halves[::2]]
        batch += [kpi_row(now + MINUTE, **label, **half) for half in halves]
        for place, (name, (kind, columns)) in enumerate(PERCENTILES.items()):
            times = 2 if place % 2 == 0 else 1
            for column, share in columns.items():
                value = of_buckets(kind, [times * n for n in counts[name]], share)
                expected.append((number, column, value))
    async with store(database) as opened:
        await opened.write(1, {"kpi_minute": batch})
    seen = await figures(database, "SELECT * FROM kpi_5min ORDER BY tenant")
    assert len(seen) == 40
    for number, column, value in expected:
        assert seen[number][column] == (None if value is None else pytest.approx(value)), column


async def test_means_are_of_what_was_counted_and_unknown_without_it(database: str) -> None:
    now = time.time_ns() // 1000
    known = kpi_row(
        now, pdd_count=4, pdd_sum_ms=4800.0, loss_count=2, loss_sum_percent=3.0, mos_wb_count=3,
        mos_wb_sum=12.3, rrd_count=2, rrd_sum_ms=100.0, registers=10, registers_failed=1,
    )  # fmt: skip
    async with store(database) as opened:
        await opened.write(1, {"kpi_minute": [known]})
    (seen,) = await figures(database, "SELECT * FROM kpi_hour")
    assert (seen["pdd_ms"], seen["loss_percent"], seen["rrd_ms"]) == (1200, 1.5, 50)
    assert (seen["mos_wb"], seen["ira_percent"]) == (pytest.approx(4.1), 10)
    unknown = ("mos_nb", "mos_fb", "jitter_ms", "rtt_ms", "asr_percent", "acd_seconds")
    assert [seen[name] for name in unknown] == [None] * 6


async def test_figures_of_any_time_are_added_up_by_what_is_asked_for(database: str) -> None:
    some = [
        kpi_row(NOON + n * MINUTE, tenant=tenant, trunk=trunk, attempts=1, pdd_buckets=(1,))
        for n, tenant, trunk in ((0, "a", "x"), (1, "b", "x"), (2, "b", "y"), (15, "a", "x"))
    ]
    codes = [
        code_row(486, 3, NOON, trunk="x", origin="callee"),
        code_row(486, 2, NOON + 9 * MINUTE, trunk="x", origin="callee"),
        code_row(0, 1, NOON, trunk="x"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"kpi_minute": some, "code_minute": codes})
    ask = (
        "SELECT time, tenant, trunk, attempts, pdd_p50_ms FROM kpi('10 minutes', $1, $2, $3) "
        "ORDER BY time, trunk"
    )
    seen = await figures(database, ask, NOON, NOON + 15 * MINUTE, ["trunk"])
    assert [tuple(row.values()) for row in seen] == [
        (NOON, None, "x", 2, 50), (NOON, None, "y", 1, 50),
    ]  # fmt: skip
    # A step that has begun is whole; none is cut off at its beginning.
    seen = await figures(database, ask, NOON + 5 * MINUTE, NOON + DAY, [])
    assert [tuple(row.values()) for row in seen] == [
        (NOON, None, None, 3, 50), (NOON + 10 * MINUTE, None, None, 1, 50),
    ]  # fmt: skip
    found = await figures(
        database,
        "SELECT time, trunk, code, class, origin, count FROM codes('10 minutes', $1) ORDER BY code",
        NOON,
    )
    assert [tuple(row.values()) for row in found] == [
        (NOON, "x", 0, "unknown", "", 1), (NOON, "x", 486, "4xx", "callee", 5),
    ]  # fmt: skip


async def test_the_views_of_codes_add_up_the_minutes_of_their_step(database: str) -> None:
    hour = time.time_ns() // 1000 // (60 * MINUTE) * 60 * MINUTE - 60 * MINUTE
    some = [code_row(503, 1, hour + n * MINUTE, source="trunk") for n in (0, 4, 5)]
    old = code_row(503, 1, hour - 40 * DAY)
    async with store(database) as opened:
        await opened.write(1, {"code_minute": [*some, old]})
    fine = await figures(database, "SELECT time, count, class FROM codes_5min ORDER BY time")
    assert [tuple(row.values()) for row in fine] == [
        (hour, 2, "5xx"), (hour + 5 * MINUTE, 1, "5xx"),
    ]  # fmt: skip
    coarse = await figures(database, "SELECT source, count FROM codes_hour ORDER BY time")
    assert [tuple(row.values()) for row in coarse] == [("call", 1), ("trunk", 3)]


# --- what happened -----------------------------------------------------------------------------


async def test_a_trunk_is_shown_with_its_peers_states_and_its_last_hour(database: str) -> None:
    now = time.time_ns() // 1000
    told = {"kind": "trunk", "trunk": "acme"}
    events = [
        event_row("1", now - DAY, subject="acme-1", state="inactive", **told),
        event_row("2", now - 30 * MINUTE, subject="acme-1", state="active", **told),
        event_row("3", now - 20 * MINUTE, subject="acme-2", state="inactive", **told),
        event_row("4", now - MINUTE, subject="acme-2", state="certificate", **told),
        event_row("5", now - DAY, kind="trunk", subject="quiet", state="inactive"),
        event_row("6", now, subject="acme-3", state="inactive", kind="marker", trunk="acme"),
    ]
    figures_of = {"source": "trunk", "trunk": "acme", "seizures": 2, "attempts": 2}
    minutes = [
        kpi_row(now - 70 * MINUTE, **figures_of),
        kpi_row(now - 50 * MINUTE, answered=1, pdd_count=1, pdd_buckets=(0, 1), **figures_of),
        kpi_row(now - 5 * MINUTE, answered=2, carrier="telco", **figures_of),
        kpi_row(now, **(figures_of | {"source": "call"})),
        kpi_row(now, **(figures_of | {"trunk": "beta", "attempts": 1, "seizures": 0})),
    ]
    async with store(database) as opened:
        await opened.write(1, {"events": events, "kpi_minute": minutes})
        ask = "SELECT * FROM trunk_health"
        seen = {row["trunk"]: row for row in await figures(database, ask)}
        assert set(seen) == {"acme", "beta", "quiet"}
        acme = seen["acme"]
        assert acme["peers"] == ["acme-1 active", "acme-2 inactive"]
        assert acme["changed_at"] == now - 20 * MINUTE
        assert (acme["attempts"], acme["asr_percent"]) == (4, 75)
        assert acme["last_attempt_at"] == now - 5 * MINUTE
        assert acme["pdd_p50_ms"] == 175
        assert (seen["beta"]["peers"], seen["beta"]["asr_percent"]) == (None, None)
        assert (seen["quiet"]["peers"], seen["quiet"]["attempts"]) == (["quiet inactive"], None)
        begun = event_row("7", now - 25 * MINUTE, kind="sidecar", state="started")
        await opened.write(2, {"events": [begun]})
        peers = {row["trunk"]: row["peers"] for row in await figures(database, ask)}
    assert peers == {"acme": ["acme-2 inactive"], "beta": None}


async def test_open_incidents_are_shown_the_gravest_first_and_recent_ones_newest_first(
    database: str,
) -> None:
    now = time.time_ns() // 1000
    some = [
        incident_row("a", now - 3, severity="warn"),
        incident_row("b", now - 9 * DAY, severity="page"),
        incident_row("c", now - 1, severity="page", state="cleared", cleared_at=now),
        incident_row("d", now - 2, severity="page", call_ids=("x@y",), codes=("404 +29",)),
        incident_row("e", now - 40 * DAY, severity="trend"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"incidents": some})
    ask = "SELECT incident, call_ids FROM "
    open_now = await figures(database, ask + "incidents_open")
    assert [row["incident"] for row in open_now] == ["d", "b", "a", "e"]
    assert open_now[0]["call_ids"] == ["x@y"]
    recent = await figures(database, ask + "incidents_recent")
    assert [row["incident"] for row in recent] == ["c", "d", "a", "b"]


async def test_the_timeline_joins_events_and_admission_newest_first(database: str) -> None:
    now = time.time_ns() // 1000
    tables = {
        "events": [
            event_row("m", now - 5, received_at=now, subject="deploy", text="bot 1.4", by="ci"),
            event_row("old", now - 40 * DAY),
        ],
        "admission_states": [
            state_row(received_at=now - 4, reason="too many"),
            state_row("drain", received_at=now - 6, scope="global", scope_value=""),
        ],
    }
    async with store(database) as opened:
        await opened.write(1, tables)
    seen = await figures(database, "SELECT * FROM timeline")
    assert [(row["time"], row["kind"], row["subject"], row["scope"]) for row in seen] == [
        (now - 4, "admission", "acme-asr", "trunk=acme"),
        (now - 5, "marker", "deploy", "all"),
        (now - 6, "admission", "drain", "all"),
    ]
    assert (seen[0]["trunk"], seen[0]["tenant"], seen[0]["text"]) == ("acme", None, "too many")
    assert seen[0]["event"] == f"admission-{now - 4}-acme-asr"


# --- exactly once ------------------------------------------------------------------------------


async def test_a_batch_that_is_sent_twice_is_stored_once(database: str) -> None:
    async with store(database) as opened:
        for _ in range(2):
            await opened.write(5, {"messages": [message()], "calls": [call_row()]})
        await opened.write(6, {"messages": [message()]})
    assert await count(database, "messages") == 2
    assert await count(database, "calls") == 1
    async with sql(database) as connection:
        ledger = await connection.fetch("SELECT node_id, sequence, rows FROM ingest_batch")
    assert sorted(map(tuple, ledger)) == [(1, 5, 2), (1, 6, 1)]


async def test_a_batch_larger_than_one_copy_is_stored_whole(database: str) -> None:
    many = [message(sequence=n) for n in range(storing._ROWS_PER_COPY * 2 + 1)]
    async with store(database) as opened:
        await opened.write(1, {"messages": many})
    assert await count(database, "messages") == len(many)


async def test_sequences_go_on_above_the_ledger_and_above_the_floor(database: str) -> None:
    async with store(database) as opened:
        assert opened.first_sequence == 0
        await opened.write(41, {"messages": [message()]})
    async with store(database) as opened:
        assert opened.first_sequence == 42
    later = Postgres(settings_of(database))
    await later.open(floor=1000)
    assert later.first_sequence == 1000
    await later.close()


async def test_the_same_key_in_another_batch_is_left_out_and_the_rest_is_stored(
    database: str,
) -> None:
    async with store(database) as opened:
        first = {"calls": [call_row("a"), call_row("b")], "messages": [message()]}
        assert await opened.write(1, first) == Written()
        second = {"calls": [call_row("b"), call_row("c")], "messages": [message()]}
        assert await opened.write(2, second) == Written(left_out=1)
    assert await count(database, "calls") == 3
    assert await count(database, "messages") == 2


@pytest.mark.parametrize(
    ("damage", "sqlstate"),
    [
        (lambda row: row[:-9], "22P04"),
        (lambda row: row.replace(bytes((2, 32, 0, 4, 10)), bytes((9, 32, 0, 4, 10))), "22P03"),
        (lambda row: row.replace(b"a@b", b"a\0b"), "22021"),
        (lambda row: row.replace(b"a@b", b"a\xffb"), "22021"),
        (lambda row: b"\0\x0d" + row[2:], "22P04"),
    ],
)
async def test_a_corrupt_row_goes_to_quarantine_with_the_error(
    database: str, damage: Callable[[bytes], bytes], sqlstate: str
) -> None:
    corrupt = damage(message(call_id="a@b"))
    async with store(database) as opened, sql(database) as connection:
        written = await opened.write(7, {"messages": [corrupt]})
        (row,) = await connection.fetch("SELECT * FROM quarantine")
    assert written == Written(refused={"messages": (0,)})
    assert (row["why"], row["payload"]) == (f"postgres-{sqlstate}", corrupt)
    assert (row["node_id"], row["sequence"]) == (1, 7)
    assert row["detail"].startswith("messages: ")
    assert await count(database, "messages") == 0


# --- rows that PostgreSQL refuses ---------------------------------------------------------------


def no_address(row: bytes) -> bytes:
    return row.replace(bytes((2, 32, 0, 4, 10)), bytes((9, 32, 0, 4, 10)))


def a_length_that_takes_the_neighbours(row: bytes) -> bytes:
    at = row.index(b"INVITE") - 4
    return row[:at] + (40_000).to_bytes(4, "big") + row[at + 4 :]


def a_length_that_takes_exactly_the_next_row(row: bytes) -> bytes:
    # The agent's address is the last field: it now ends where the next row ends.
    at = row.index(b"INVITE") - 4
    length = int.from_bytes(row[at : at + 4], "big") + 4 + len(row) - 4
    return row[:at] + length.to_bytes(4, "big") + row[at + 4 :]


DAMAGES: list[Callable[[bytes], bytes]] = [
    no_address,
    a_length_that_takes_the_neighbours,
    a_length_that_takes_exactly_the_next_row,
    lambda row: row[:-9],
    lambda row: row[:3],
    lambda row: row[:0],
    lambda row: row + row,
    lambda row: row + b"\0",
    lambda row: b"\xff\xff" + row[:0],
    lambda row: b"\xff\xff" + row,
    lambda row: b"\0\x0d" + row[2:],
    lambda row: b"\x7f\xff" + row[2:],
    lambda row: row[:2] + b"\x80\0\0\0" + row[6:],
    lambda row: row[:2] + b"\x7f\xff\xff\xff" + row[6:],
    lambda row: row.replace(b"a@b", b"a\0b"),
    lambda row: row.replace(b"a@b", b"\xed\xa0\x80"),
    lambda row: row * 3,
    lambda row: rows.HEADER + row[:0],
]


@pytest.mark.parametrize("position", [0, 6, 11])
async def test_one_bad_row_goes_alone_wherever_it_is_and_whatever_it_does_to_the_protocol(
    database: str, position: int
) -> None:
    good = [message(call_id="a@b", sequence=n, agent_ip="10.1.1.1") for n in range(12)]
    async with store(database) as opened, sql(database) as connection:
        for number, damage in enumerate(DAMAGES):
            bad = damage(good[position])
            batch = {"messages": [*good[:position], bad, *good[position + 1 :]]}
            written = await opened.write(2 * number, batch)
            assert written == Written(refused={"messages": (position,)}), number
            (row,) = await connection.fetch("SELECT why, payload FROM quarantine")
            assert row["payload"] == bad
            assert row["why"].startswith("postgres-")
            found = await connection.fetch("SELECT sequence FROM messages ORDER BY 1")
            assert [n for (n,) in found] == [n for n in range(12) if n != position]
            # The connection goes on in step with the server.
            assert await opened.write(2 * number + 1, {"messages": good[:position]}) == Written()
            assert await opened.write(2 * number, batch) == written
            assert await count(database, "quarantine") == 1
            await connection.execute("TRUNCATE messages, quarantine")


@pytest.mark.parametrize(
    ("positions", "seconds"),
    [((), 2), ((2500,), 4), ((0, 4095, 4999), 4), (tuple(range(0, 5000, 100)), 10)],
)
async def test_a_large_batch_loses_its_bad_rows_alone_and_once(
    database: str, positions: tuple[int, ...], seconds: float
) -> None:
    batch = [message(call_id="a@b", sequence=n) for n in range(5000)]
    for n, position in enumerate(positions):
        batch[position] = DAMAGES[n % 3](batch[position])
    async with store(database) as opened:
        started = time.perf_counter()
        written = await opened.write(1, {"messages": batch}, life=7)
        took = time.perf_counter() - started
        assert written == Written(refused={"messages": positions} if positions else {})
        assert await opened.write(1, {"messages": batch}, life=7) == written
    assert await count(database, "messages") == 5000 - len(positions)
    assert await count(database, "quarantine") == len(positions)
    assert took < seconds


async def test_a_batch_of_bad_rows_alone_is_given_up_within_bounds(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "_SALVAGE_COPIES", 300)
    batch = [no_address(message(call_id="a@b", sequence=n)) for n in range(5000)]
    batch[4321] = message(sequence=4321)
    async with store(database) as opened:
        written = await opened.write(1, {"messages": batch, "calls": [call_row()]})
    refused = set(written.refused["messages"])
    assert refused >= set(range(5000)) - {4321}
    assert await count(database, "quarantine") == len(refused)
    assert await count(database, "calls") == 1


async def test_when_the_search_is_over_what_is_good_as_a_whole_is_still_stored(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "_SALVAGE_SECONDS", 0.0)
    monkeypatch.setattr(storing, "_ROWS_PER_COPY", 100)
    batch = [message(call_id="a@b", sequence=n) for n in range(1000)]
    batch[250] = no_address(batch[250])
    async with store(database) as opened:
        written = await opened.write(1, {"messages": batch, "calls": [call_row()]})
    assert written == Written(refused={"messages": tuple(range(200, 300))})
    assert await count(database, "messages") == 900
    assert await count(database, "calls") == 1


async def test_bad_rows_and_rows_that_are_there_already_are_told_apart(database: str) -> None:
    first = [call_row(f"{n}") for n in range(300)]
    second = [call_row(f"{n}") for n in range(250, 550)]
    second[7] = second[7][:-5]
    second[200] = second[200][:-5]
    async with store(database) as opened:
        await opened.write(1, {"calls": first})
        written = await opened.write(2, {"calls": second, "messages": [message()]})
        # 250 to 299 were there, and one of these is damaged.
        assert written == Written(left_out=49, refused={"calls": (7, 200)})
        assert await opened.write(2, {"calls": second, "messages": [message()]}) == written
    assert await count(database, "calls") == 300 + 249
    assert await count(database, "quarantine") == 2


async def test_a_row_that_only_an_index_refuses_goes_to_quarantine(database: str) -> None:
    # Longer than the encoders let a key be, and of text that does not compress.
    noise = "".join(random.Random(1).choices(string.printable[:94], k=9000))
    good = call_row("good")
    row = call_row("X" * 9)
    row = row.replace(b"\0\0\0\x09" + b"X" * 9, len(noise).to_bytes(4, "big") + noise.encode())
    async with store(database) as opened, sql(database) as connection:
        written = await opened.write(1, {"calls": [good, row]})
        why = await connection.fetchval("SELECT why FROM quarantine")
    assert (written.refused, why) == ({"calls": (1,)}, "postgres-54000")


async def test_a_quarantined_packet_that_is_refused_is_quarantined_itself(database: str) -> None:
    packet = rows.encode_quarantine(
        NOON, None, 1, None, 8, "10.0.0.1", 9060, None, None, "hep", b"x" * (1 << 20)
    )
    bad = no_address(packet)
    async with store(database) as opened, sql(database) as connection:
        written = await opened.write(1, {"quarantine": [packet, bad]})
        kept = await connection.fetchval(
            "SELECT payload FROM quarantine WHERE why LIKE 'postgres-%'"
        )
    assert written == Written(refused={"quarantine": (1,)})
    assert kept == bad


async def test_a_key_to_replace_that_is_refused_does_not_hold_up_the_batch(database: str) -> None:
    late = [call(f"{n}", revision=1) for n in range(3)]
    keys = [key for record in late if (key := rows.replaced(record, 1))]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"calls": [call_row(f"{n}") for n in range(3)]})
        await connection.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF OLD.call_id = '1' THEN RAISE 'kept' USING ERRCODE = '23503'; END IF; "
            "RETURN OLD; END $$; CREATE TRIGGER no BEFORE DELETE ON calls "
            "FOR EACH ROW EXECUTE FUNCTION no()"
        )
        written = await opened.write(2, {"calls": [rows.encode_call(r, 1) for r in late]}, keys)
        left = await connection.fetch("SELECT call_id FROM calls WHERE revision = 0")
        (row,) = await connection.fetch("SELECT why, detail, payload FROM quarantine")
    assert written == Written()
    assert [name for (name,) in left] == ["1"]
    assert row["why"] == "postgres-23503"
    assert row["detail"].startswith("calls, a key to replace: kept")
    assert b"'1'" in row["payload"]


async def test_numbers_of_a_key_that_no_column_can_hold_replace_nothing(database: str) -> None:
    wild = rows.Replaced("calls", "a", "t", "", 2**80, 2**40, 2**70)
    other = rows.Replaced("no such table", "a", "t", "", 1, 1, 1)
    async with store(database) as opened:
        await opened.write(1, {"calls": [call_row("a")]})
        assert await opened.write(2, {}, [wild, other]) == Written()
    assert await count(database, "calls") == 1
    assert await count(database, "quarantine") == 0


async def test_a_table_that_is_not_ours_is_refused_and_never_asked_for(database: str) -> None:
    async with store(database) as opened:
        with pytest.raises(StoreRejected, match="no table pg_authid"):
            await opened.write(1, {"pg_authid": [message()]})
        assert await opened.write(1, {"messages": [message()]}) == Written()


async def test_a_batch_whose_quarantine_is_refused_too_is_rejected_and_leaves_nothing(
    database: str,
) -> None:
    async with store(database) as opened, sql(database) as connection:
        await connection.execute("ALTER TABLE quarantine ADD CHECK (why <> 'postgres-22P03')")
        with pytest.raises(StoreRejected) as caught:
            await opened.write(
                1, {"messages": [message(), no_address(message())], "calls": [call_row()]}
            )
        assert caught.value.sqlstate == "23514"
        assert "\n" not in str(caught.value)
        for table in ("messages", "calls", "ingest_batch", "quarantine"):
            assert await count(database, table) == 0
        await opened.write(1, {"messages": [message()]})
    assert await count(database, "messages") == 1


async def test_what_a_stranger_sent_is_escaped_in_the_detail(database: str) -> None:
    async with store(database) as opened, sql(database) as connection:
        await connection.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE '%', NEW.call_id USING ERRCODE = '22000'; END $$; "
            "CREATE TRIGGER no BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION no()"
        )
        await opened.write(1, {"messages": [message("\x1b[31m" + "x" * 600)]})
        detail = await connection.fetchval("SELECT detail FROM quarantine")
    assert detail.startswith("messages: \\x1b[31mxxx")
    assert detail.isprintable()
    assert len(detail) < 600


# --- whose batch --------------------------------------------------------------------------------


async def test_a_sequence_of_another_life_is_taken_and_a_free_one_is_known(database: str) -> None:
    async with store(database) as opened:
        await opened.write(5, {"messages": [message()]}, life=2**63 - 1)
        await opened.write(5, {"messages": [message()]}, life=2**63 - 1)
        async with sql(database) as connection:
            await connection.execute("INSERT INTO ingest_batch VALUES (1, 80, now(), 0)")
        with pytest.raises(SequenceTaken, match="sequence 5 of node 1"):
            await opened.write(5, {"messages": [message()]}, life=1)
        assert opened.first_sequence == 81
        assert await opened.write(81, {"messages": [message()]}, life=1) == Written()
        # Rows of the first version have no life.
        with pytest.raises(SequenceTaken):
            await opened.write(80, {"messages": [message()]}, life=1)
    assert await count(database, "messages") == 2


async def test_a_bad_batch_of_another_life_is_taken_too(database: str) -> None:
    async with store(database) as opened:
        await opened.write(5, {"messages": [message()]}, life=1)
        with pytest.raises(SequenceTaken):
            await opened.write(5, {"messages": [BROKEN_ROW]}, life=2)
        assert await opened.write(6, {"messages": [message()]}, life=2) == Written()
    assert await count(database, "quarantine") == 0


# --- a database that fails ----------------------------------------------------------------------


async def blocked_backend(connection: Any) -> int:
    """Wait until the writer of node 1 is inside its transaction, held up by a lock; its pid."""
    while True:
        pid = await connection.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'sipsidecar node 1' "
            "AND datname = current_database() AND wait_event_type = 'Lock'"
        )
        if pid is not None:
            return int(pid)


async def write_until_stored(
    opened: Postgres, sequence: int, tables: Mapping[str, Sequence[bytes]]
) -> None:
    while True:
        try:
            await opened.write(sequence, tables)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("how", ["terminate", "kill -9"])
async def test_a_backend_that_dies_in_mid_write_costs_nothing_and_doubles_nothing(
    database: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    tables: dict[str, Sequence[bytes]] = {
        "messages": [message(sequence=n) for n in range(3000)],
        "calls": [call_row()],
    }
    async with store(database, node_wait_s=5) as opened:
        async with sql(database) as connection:
            blocking = connection.transaction()
            await blocking.start()
            await connection.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
            writing = asyncio.create_task(opened.write(1, tables))
            pid = await blocked_backend(connection)
            if how == "terminate":
                await connection.execute("SELECT pg_terminate_backend($1)", pid)
                await blocking.rollback()
            else:
                os.kill(pid, signal.SIGKILL)  # the whole server goes through crash recovery
            with pytest.raises(StoreUnavailable):
                await writing
        await write_until_stored(opened, 1, tables)
        await write_until_stored(opened, 1, tables)
    assert await count(database, "messages") == 3000
    assert await count(database, "calls") == 1
    del writing
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_server_that_is_killed_in_mid_write_costs_nothing_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    tables: dict[str, Sequence[bytes]] = {
        "messages": [message(sequence=n) for n in range(3000)],
        "calls": [call_row()],
    }
    server = EmbeddedPostgres(tmp_path)
    dsn = await server.start()
    try:
        async with store(dsn, node_wait_s=5) as opened:
            await opened.write(1, tables)
            async with sql(dsn) as connection:
                await connection.execute("BEGIN; LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
                writing = asyncio.create_task(opened.write(2, tables))
                await blocked_backend(connection)
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                with pytest.raises(StoreUnavailable):
                    await writing
            await write_until_stored(opened, 2, tables)
            await write_until_stored(opened, 1, tables)
        assert await count(dsn, "messages") == 6000
        assert await count(dsn, "ingest_batch") == 2
    finally:
        await server.stop()


async def test_connections_that_die_at_any_moment_lose_and_double_nothing(database: str) -> None:
    batch = [message(sequence=n) for n in range(400)]
    done = asyncio.Event()

    async def kill() -> int:
        killed = 0
        async with sql(database) as connection:
            while not done.is_set():
                killed += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "
                    "application_name = 'sipsidecar node 1' AND datname = current_database()"
                )
                await asyncio.sleep(0.2)
        return killed

    async with store(database, node_wait_s=5) as opened:
        killing = asyncio.create_task(kill())
        for sequence in range(30):
            await write_until_stored(opened, sequence, {"messages": batch})
        done.set()
        assert await killing > 0
    assert await count(database, "messages") == 30 * 400
    assert await count(database, "ingest_batch") == 30


async def test_a_write_that_is_cancelled_stores_nothing_and_can_be_sent_again(
    database: str,
) -> None:
    async with store(database, node_wait_s=5) as opened, sql(database) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
            writing = asyncio.create_task(opened.write(1, {"messages": [message()]}))
            await blocked_backend(connection)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        assert await connection.fetchval("SELECT count(*) FROM messages") == 0
        await opened.write(1, {"messages": [message()]})
        assert await connection.fetchval("SELECT count(*) FROM messages") == 1


async def test_what_a_dropped_connection_was_waiting_for_does_not_keep_the_node_id(
    database: str,
) -> None:
    async with (
        store(database, node_wait_s=5) as opened,
        sql(database) as connection,
        connection.transaction(),
    ):
        await connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        writing = asyncio.create_task(opened.write(1, {"messages": [message()]}))
        await blocked_backend(connection)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await opened.write(2, {"calls": [call_row()]}) == Written()
    assert await count(database, "messages") == 0


async def test_a_statement_that_takes_too_long_is_an_outage(database: str) -> None:
    slow = Postgres(settings_of(database, statement_timeout_s=0.2))
    await slow.open()
    async with sql(database) as connection, connection.transaction():
        await connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            await slow.write(1, {"messages": [message()]})
    await write_until_stored(slow, 1, {"messages": [message()]})
    await slow.close()


async def test_a_database_that_became_read_only_is_an_outage(database: str) -> None:
    async with store(database, node_wait_s=5) as opened, sql(database) as connection:
        name = await connection.fetchval("SELECT current_database()")
        read_only = f"ALTER DATABASE {name} SET default_transaction_read_only"
        await connection.execute(f"{read_only} = on")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'sipsidecar node 1' AND datname = $1",
            name,
        )
        with pytest.raises(StoreUnavailable):
            await opened.write(1, {"messages": [message()]})
        with pytest.raises(StoreUnavailable, match="read-only"):
            await opened.write(1, {"messages": [message()]})
        async with connection.transaction(readonly=False):
            await connection.execute(f"{read_only} = off")
        await write_until_stored(opened, 1, {"messages": [message()]})
    assert await count(database, "messages") == 1


# --- revisions ---------------------------------------------------------------------------------


async def test_a_later_revision_replaces_the_earlier_ones_of_its_call_alone(database: str) -> None:
    revisions = [call("a", revision=n, invites=n) for n in range(3)]
    replace = [key for record in revisions if (key := rows.replaced(record, 1))]
    async with store(database) as opened, sql(database) as connection:
        others = [
            call_row("b"),
            call_row("a", from_tag="x"),
            call_row("a", received_at=NOON + 1),
            rows.encode_call(revisions[0], 2),
        ]
        await opened.write(1, {"calls": [*others, rows.encode_call(revisions[0], 1)]})
        # Two revisions in one batch, as when a call changes twice before the batch leaves.
        later = [rows.encode_call(record, 1) for record in revisions[1:]]
        assert await opened.write(2, {"calls": later}, replace) == Written()
        assert await connection.fetchval("SELECT count(*) FROM calls") == len(others) + 1
        (row,) = await connection.fetch("SELECT revision, invites FROM calls WHERE revision > 0")
        assert tuple(row) == (2, 2)


async def test_a_key_to_replace_may_hold_what_no_text_column_can(database: str) -> None:
    first = call("a\0b\udcff", from_tag="\ud800" * 500)
    raw = rows.Replaced("calls", first.call_id, first.from_tag, "", NOON, 1, 1 << 30)
    async with store(database) as opened:
        await opened.write(1, {"calls": [rows.encode_call(first, 1)]})
        await opened.write(2, {}, [raw])
    assert await count(database, "calls") == 0


async def test_a_later_revision_of_an_attempt_replaces_that_branch_alone(database: str) -> None:
    first = [attempt("a", "z1"), attempt("a", "z2")]
    late = attempt("a", "z1", revision=1, final_code=503)
    key = rows.replaced(late, 1)
    assert key is not None
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"attempts": [rows.encode_attempt(r, 1) for r in first]})
        await opened.write(2, {"attempts": [rows.encode_attempt(late, 1)]}, [key])
        found = await connection.fetch("SELECT branch, revision FROM attempts ORDER BY branch")
    assert [tuple(row) for row in found] == [("z1", 1), ("z2", 0)]


async def test_a_later_revision_of_media_replaces_that_stream_alone(database: str) -> None:
    first = [media("a"), media("a", "callee_to_caller"), media("a", from_tag="x"), media("b")]
    late = media("a", revision=1, mos=3.1)
    key = rows.replaced(late, 1)
    assert key is not None
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"media": [rows.encode_media(r, 1) for r in first]})
        await opened.write(2, {"media": [rows.encode_media(late, 1)]}, [key])
        found = await connection.fetch("SELECT call_id, from_tag, stream, revision, mos FROM media")
    assert sorted(tuple(row) for row in found) == [
        ("a", "t", "callee_to_caller", 0, None),
        ("a", "t", "caller_to_callee", 1, 3.1),
        ("a", "x", "caller_to_callee", 0, None),
        ("b", "t", "caller_to_callee", 0, None),
    ]


async def test_media_that_proved_never_to_have_been_is_taken_back(database: str) -> None:
    gone = rows.Replaced("media", "a", "t", "unknown-00000001", NOON, 1, 1)
    async with store(database) as opened:
        await opened.write(1, {"media": [media_row("a"), media_row("a", "unknown-00000001")]})
        await opened.write(2, {}, [gone])
    async with sql(database) as connection:
        assert await connection.fetchval("SELECT string_agg(stream, ' ') FROM media") == (
            "caller_to_callee"
        )


async def test_a_later_revision_of_a_leg_replaces_it_though_its_call_id_was_not_known(
    database: str,
) -> None:
    late = leg("u1", "a@b", revision=2, sip_code=200)
    key = rows.replaced(late, 1)
    assert key is not None
    async with store(database) as opened, sql(database) as connection:
        others = [leg_row("u2"), leg_row("u1", "other@b"), leg_row("u1", received_at=NOON + 1)]
        first = [leg_row("u1"), leg_row("u1", "a@b", revision=1), *others]
        await opened.write(1, {"legs": first})
        await opened.write(2, {"legs": [rows.encode_leg(late, 1)]}, [key])
        found = await connection.fetch(
            "SELECT uuid, call_id, received_at - $1::timestamptz = interval '0', revision FROM legs "
            "ORDER BY 1, 2, 3",
            NOON,
        )
    assert [tuple(row) for row in found] == [
        ("u1", "", False, 0), ("u1", "a@b", True, 2), ("u1", "other@b", True, 0),
        ("u2", "", True, 0),
    ]  # fmt: skip


async def test_a_conversation_is_replaced_or_taken_back_by_its_name(database: str) -> None:
    late = conversation("u1", call_ids=("a@b",), revision=1)
    gone = [rows.replaced(late, 1), rows.Replaced("conversations", "", "", "u2", NOON, 1, 9)]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"conversations": [conversation_row(f"u{n}") for n in (1, 2, 3)]})
        await opened.write(
            2, {"conversations": [rows.encode_conversation(late, 1)]}, [key for key in gone if key]
        )
        found = await connection.fetch(
            "SELECT conversation, call_id, revision FROM conversations ORDER BY 1"
        )
        assert [tuple(row) for row in found] == [("u1", "a@b", 1), ("u3", "", 0)]


async def test_a_later_revision_of_an_incident_replaces_that_one_alone(database: str) -> None:
    first = [
        incident("5xx-1"), incident("5xx-1", NOON + 1), incident("404-1"),
        incident("5xx-1", revision=1), incident("5xx-1", revision=2, state="cleared"),
    ]  # fmt: skip
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"incidents": [rows.encode_incident(one, 1) for one in first[:3]]})
        await opened.write(2, {"incidents": [rows.encode_incident(first[0], 2)]})
        keys = [key for one in first if (key := rows.replaced(one, 1))]
        await opened.write(3, {"incidents": [rows.encode_incident(o, 1) for o in first[3:]]}, keys)
        found = await connection.fetch(
            "SELECT incident, received_at, node_id, revision, state FROM incidents ORDER BY 1, 2, 3"
        )
    assert [tuple(row) for row in found] == [
        ("404-1", NOON, 1, 0, "open"),
        ("5xx-1", NOON, 1, 2, "cleared"),
        ("5xx-1", NOON, 2, 0, "open"),
        ("5xx-1", NOON + 1, 1, 0, "open"),
    ]


async def test_events_outcomes_and_hours_of_one_moment_are_told_apart(database: str) -> None:
    tables = {
        "events": [event_row("e-1"), event_row("e-2"), rows.encode_event(event("e-1"), 2)],
        "outcomes": [outcome_row("a"), outcome_row("a", "o-2"), outcome_row("b")],
        "baseline_hours": [
            rows.encode_baseline(one, 1)
            for one in (baseline(), baseline("call:trunk=x"), baseline(received_at=NOON + 9))
        ],
    }
    async with store(database) as opened:
        assert await opened.write(1, tables) == Written()
        assert await opened.write(2, tables) == Written(left_out=9)


async def test_an_interval_that_is_said_again_is_there_once(database: str) -> None:
    some = [interval("a", NOON + n) for n in range(3)]
    async with store(database) as opened:
        await opened.write(1, {"quality_intervals": [rows.encode_interval(one, 1) for one in some]})
        again = [*some[1:], interval("a", NOON + 3), interval("a", source_ssrc=0)]
        written = await opened.write(
            2, {"quality_intervals": [rows.encode_interval(one, 1) for one in again]}
        )
    assert written == Written(left_out=2)
    assert await count(database, "quality_intervals") == 5


async def test_numbers_of_32_bits_without_a_sign_are_stored_as_they_are(database: str) -> None:
    most = 2**32 - 1
    loud = media("a", ssrc=most, packets_sent=most, packets_expected=most, packets_lost=-(2**23))
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"media": [rows.encode_media(loud, 1)]})
        await opened.write(2, {"quality_intervals": [interval_row("a")]})
        row = await connection.fetchrow(
            "SELECT ssrc, packets_sent, packets_expected, packets_lost FROM media"
        )
        ssrcs = await connection.fetchrow(
            "SELECT reporter_ssrc, source_ssrc FROM quality_intervals"
        )
    assert row is not None
    assert tuple(row) == (most, most, most, -(2**23))
    assert ssrcs is not None
    assert tuple(ssrcs) == (most, 2**31)


async def test_evidence_can_be_asked_for_by_its_figures(database: str) -> None:
    evidence = '{"high_loss": [{"loss_percent": 5.5, "host": "x\\u0000\\u202e"}]}'
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"calls": [call_row("a", evidence=evidence)]})
        found = await connection.fetchval(
            "SELECT call_id FROM calls "
            "WHERE (evidence #>> '{high_loss,0,loss_percent}')::float8 > 5"
        )
        host = await connection.fetchval("SELECT evidence #>> '{high_loss,0,host}' FROM calls")
    assert found == "a"
    assert host == "x\\x00\u202e"


# --- one writer per node -----------------------------------------------------------------------


async def test_a_second_writer_of_the_same_node_is_refused(database: str) -> None:
    async with store(database), store(database, node_id=2):
        with pytest.raises(StoreError, match=r"as node 1: set node\.id"):
            await Postgres(settings_of(database)).open()
    async with store(database):
        pass


async def test_a_connection_of_a_dead_predecessor_is_waited_for(database: str) -> None:
    dying = Postgres(settings_of(database))
    await dying.open()
    heir = Postgres(settings_of(database, node_wait_s=20))
    waiting = asyncio.create_task(heir.open())
    async with sql(database) as connection:
        await blocked_backend(connection)
    dying._drop()
    await waiting
    await heir.close()


async def test_a_writer_whose_node_was_taken_while_it_was_away_can_only_wait(
    database: str,
) -> None:
    async with store(database) as opened:
        opened._drop()
        async with store(database, node_wait_s=5):
            with pytest.raises(StoreError, match=r"set node\.id"):
                await opened.write(1, {"messages": [message()]})
        await opened.write(1, {"messages": [message()]})


# --- a server that answers no more --------------------------------------------------------------


async def test_a_server_in_trouble_is_an_outage_and_the_batch_goes_in_later(
    database: str,
) -> None:
    troubles = ["53100", "53200", "53300", "25006", "57014", "57P01", "58030", "40001", "XX000"]
    async with store(database, node_wait_s=5) as opened, sql(database) as connection:
        for number, sqlstate in enumerate(troubles):
            await connection.execute(
                "CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN RAISE 'no room' USING ERRCODE = '{sqlstate}'; END $$; "
                "CREATE TRIGGER no BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION no()"
            )
            with pytest.raises(StoreUnavailable, match="no room"):
                await opened.write(number, {"messages": [message(), BROKEN_ROW]})
            with pytest.raises(StoreUnavailable, match="no room"):
                await opened.write(number, {"messages": [message()], "calls": [BROKEN_ROW]})
            await connection.execute("DROP TRIGGER no ON messages")
            await opened.write(number, {"messages": [message()]})
    assert await count(database, "messages") == len(troubles)
    assert await count(database, "quarantine") == 0


async def test_a_store_that_never_opened_writes_as_soon_as_the_database_is_there(
    tmp_path: Path,
) -> None:
    server = EmbeddedPostgres(tmp_path, fsync=False)
    dsn = await server.start()
    async with store(dsn) as earlier:
        await earlier.write(7, {"messages": [message()]})
    await server.stop()
    late = Postgres(settings_of(dsn))
    started = time.perf_counter()
    with pytest.raises(StoreUnavailable):
        await late.open(floor=3)
    with pytest.raises(StoreUnavailable):
        await late.write(3, {"messages": [message()]})
    assert time.perf_counter() - started < 20  # and not for as long as the server stands still
    assert late.first_sequence == 3
    await server.start()
    try:
        assert await late.write(3, {"messages": [message()]}) == Written()
        assert late.first_sequence == 8
        await late.close()
        assert await count(dsn, "messages") == 2
    finally:
        await server.stop()


def processes(connection_pid: int, server: EmbeddedPostgres) -> list[int]:
    assert server.pid is not None
    return [server.pid, connection_pid]


async def test_a_server_that_stands_still_can_be_left_at_once_and_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedPostgres(tmp_path, fsync=False)
    dsn = await server.start()
    batch = {"messages": [message(sequence=n, payload=bytes(1400)) for n in range(4000)]}
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: said.append(context["message"])
    )
    stopped: list[int] = []
    try:
        opened = Postgres(settings_of(dsn, node_wait_s=10))
        await opened.open()
        assert opened._connection is not None
        for sequence in range(3):
            backend = opened._connection.get_server_pid()
            stopped += processes(backend, server)
            if sequence < 2:  # the third one goes into a pause of the server's in mid-write
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
            for _ in range(2):  # the second time it is stuck while it connects
                writing = asyncio.create_task(opened.write(sequence, batch))
                await asyncio.sleep(0.02)
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                started = time.perf_counter()
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
                assert time.perf_counter() - started < 20
                assert opened._connection is None
            while stopped:
                os.kill(stopped.pop(), signal.SIGCONT)
            await opened.write(sequence, batch)
        await opened.close()
        assert await count(dsn, "messages") == 3 * 4000
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await server.stop()
    del writing
    gc.collect()
    await asyncio.sleep(0)
    assert said == []
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_server_that_stands_still_is_an_outage_after_the_time_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedPostgres(tmp_path, fsync=False)
    dsn = await server.start()
    stopped: list[int] = []
    try:
        opened = Postgres(settings_of(dsn, statement_timeout_s=0.2, connect_timeout_s=0.2))
        await opened.open()
        assert opened._connection is not None
        stopped = processes(opened._connection.get_server_pid(), server)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                await opened.write(1, {"messages": [message()]})
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await server.stop()
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_backend_that_ends_in_the_middle_of_a_copy_leaves_no_noise(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: said.append(context["message"])
    )
    batch = {"messages": [message(sequence=n, payload=bytes(1400)) for n in range(4000)]}
    failed = 0
    async with store(database, node_wait_s=5) as opened, sql(database) as connection:
        for delay in range(12):
            await write_until_stored(opened, 1000, {})
            assert opened._connection is not None
            pid = opened._connection.get_server_pid()
            writing = asyncio.create_task(opened.write(delay, batch))
            await asyncio.sleep(delay * 0.003)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            try:
                await writing
            except StoreUnavailable:
                failed += 1
            await write_until_stored(opened, delay, batch)
    assert failed > 3
    assert await count(database, "messages") == 12 * 4000
    del writing
    gc.collect()
    await asyncio.sleep(0)
    assert said == []
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
