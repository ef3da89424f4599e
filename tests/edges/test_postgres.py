import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipsidecar import rows
from sipsidecar.batch import StoreError, StoreRejected, StoreUnavailable
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.edges import postgres
from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.postgres import (
    CallFilter,
    Postgres,
    PostgresSettings,
)

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

DAY = 86_400_000_000
NOON = int(datetime(2026, 7, 20, 12, tzinfo=UTC).timestamp()) * 1_000_000
BROKEN_ROW = b"\0\1\0\0"

KINDS: dict[str, tuple[type[msgspec.Struct], Callable[[Any, int], bytes]]] = {
    "calls": (CallRecord, rows.encode_call),
    "attempts": (AttemptRecord, rows.encode_attempt),
    "registrations": (RegistrationRecord, rows.encode_registration),
    "pings": (PingRecord, rows.encode_ping),
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
    connection = await postgres._connect(PostgresSettings(dsn=dsn), "test")
    try:
        yield connection
    finally:
        # the tests kill backends and servers: an open one is asked, a dead one only dropped
        await postgres._close(connection)


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


def filled(kind: type[msgspec.Struct]) -> Any:
    def value(number: int, name: str, annotation: Any) -> Any:
        if name.endswith("_at"):
            return NOON + number
        if name.endswith("_ip"):
            return "2001:db8::1" if number % 2 else "192.0.2.7"
        by_type: dict[Any, Any] = {
            str: f"{name} ü",
            str | None: f"{name} ü",
            int: number,
            int | None: number,
            float | None: number + 0.25,
            bool: True,
            tuple[int, ...]: (number, 2**40),
            tuple[str, ...]: (name, "ß"),
        }
        return by_type[annotation]

    fields = msgspec.structs.fields(kind)
    return kind(**{f.name: value(n, f.name, f.type) for n, f in enumerate(fields, start=1)})


def bare(kind: type[msgspec.Struct]) -> Any:
    by_type: dict[Any, Any] = {str: "", int: 0}
    fields = [field for field in msgspec.structs.fields(kind) if field.required]
    return kind(**{field.name: by_type[field.type] for field in fields})


def as_stored(record: msgspec.Struct) -> dict[str, Any]:
    values = msgspec.structs.asdict(record)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


# --- schema -----------------------------------------------------------------------------------


async def test_the_columns_of_every_table_are_those_that_rows_encodes(database: str) -> None:
    async with store(database), sql(database) as connection:
        for table, columns in rows.TABLES.items():
            found = await connection.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass "
                "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                table,
            )
            assert tuple(name for (name,) in found) == columns


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
    assert set(primary) == {"calls", "attempts", "registrations", "pings"}
    assert all("(call_id, " in text and "received_at" in text for text in primary.values())
    assert not [text for _, kind, text in keys if kind in (b"f", b"u")]
    assert (nullable, counters) == (0, 0)


async def test_a_newer_schema_is_refused_and_both_versions_are_named(database: str) -> None:
    async with store(database), sql(database) as connection:
        await connection.execute("INSERT INTO sipsidecar_schema VALUES (999)")
    with pytest.raises(StoreError, match=r"schema version 999, this sidecar knows version 1:"):
        await Postgres(settings_of(database)).open()


async def test_two_sidecars_that_start_at_once_migrate_once(database: str) -> None:
    both = [Postgres(settings_of(database, node_id=node, node_wait_s=5)) for node in (1, 2)]
    await asyncio.gather(*(one.open() for one in both))
    for one in both:
        await one.close()
    assert await count(database, "sipsidecar_schema") == 1


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


# --- what is stored -----------------------------------------------------------------------------


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
        kept = [message(payload=payload), message(call_id="", payload=b"", captured_at=None)]
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
    float | None: st.none() | st.floats(),
    bool: st.booleans(),
    tuple[int, ...]: st.lists(ANY_INT, max_size=3).map(tuple),
    tuple[str, ...]: st.lists(LONG_TEXT, max_size=3).map(tuple),
}


def wild(table: str) -> st.SearchStrategy[tuple[str, bytes]]:
    kind, encode = KINDS[table]
    values = {
        field.name: ADDRESS if field.name.endswith("_ip") else BY_TYPE[field.type]
        for field in msgspec.structs.fields(kind)
    }
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
            left_out = await opened.write(opened.first_sequence, tables)
            stored = sum([await count(database, table) for table in tables])
            assert stored + left_out == len(batch)
            await connection.execute("TRUNCATE " + ", ".join(rows.TABLES))

    asyncio.run(write())


def test_keys_of_the_longest_and_least_compressible_text_fit_in_the_index(database: str) -> None:
    def noise(seed: int, length: int) -> str:
        return "".join(chr(33 + (seed * 7919 + i * i * 31 + i * 17) % 94) for i in range(length))

    async def write() -> None:
        async with store(database) as opened:
            record = AttemptRecord(
                call_id=noise(1, 4000),
                from_tag=noise(2, 4000),
                branch=noise(3, 4000),
                received_at=NOON,
                started_at=NOON,
            )
            await opened.write(1, {"attempts": [rows.encode_attempt(record, 1)]})

    asyncio.run(write())


# --- exactly once -------------------------------------------------------------------------------


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
    many = [message(sequence=n) for n in range(postgres._ROWS_PER_COPY * 2 + 1)]
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
        assert await opened.write(1, first) == 0
        second = {"calls": [call_row("b"), call_row("c")], "messages": [message()]}
        assert await opened.write(2, second) == 1
    assert await count(database, "calls") == 3
    assert await count(database, "messages") == 2


async def test_a_rejected_batch_leaves_nothing_and_the_next_one_is_stored(database: str) -> None:
    async with store(database) as opened:
        with pytest.raises(StoreRejected) as caught:
            await opened.write(
                1, {"messages": [message()], "calls": [call_row(), BROKEN_ROW, call_row("c")]}
            )
        assert caught.value.sqlstate in ("22P04", "08P01")
        assert "\n" not in str(caught.value)
        for table in ("messages", "calls", "ingest_batch"):
            assert await count(database, table) == 0
        await opened.write(1, {"messages": [message()]})
    assert await count(database, "messages") == 1


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
async def test_a_corrupt_row_is_a_rejection_and_not_an_outage(
    database: str, damage: Callable[[bytes], bytes], sqlstate: str
) -> None:
    async with store(database) as opened:
        with pytest.raises(StoreRejected) as caught:
            await opened.write(1, {"messages": [damage(message())]})
    assert caught.value.sqlstate == sqlstate


async def blocked_backend(connection: "Connection") -> int:
    """Wait until the writer of node 1 is inside its transaction, held up by a lock; its pid."""
    while True:
        pid = await connection.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'sipsidecar node 1' "
            "AND datname = current_database() AND wait_event_type = 'Lock'"
        )
        if pid is not None:
            return int(pid)


async def write_until_stored(
    opened: Postgres, sequence: int, tables: dict[str, Sequence[bytes]]
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


# --- revisions ----------------------------------------------------------------------------------


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
        assert await opened.write(2, {"calls": later}, replace) == 0
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


# --- one writer per node ------------------------------------------------------------------------


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
            with pytest.raises(StoreUnavailable, match=r"set node\.id"):
                await opened.write(1, {"messages": [message()]})
        await opened.write(1, {"messages": [message()]})


# --- DSN ----------------------------------------------------------------------------------------


async def test_a_database_that_cannot_be_reached_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        dsn = f"postgresql://sip:s3cret@127.0.0.1:{port}/calls"
        with pytest.raises(StoreUnavailable) as caught:
            await Postgres(settings_of(dsn)).open()
    text = str(caught.value)
    assert text.startswith(f"PostgreSQL at 127.0.0.1 port {port}, database calls: ")
    assert "s3cret" not in text
    assert "\n" not in text


async def test_a_database_that_does_not_exist_is_an_error_and_not_an_outage(database: str) -> None:
    async with sql(database) as connection:
        name = await connection.fetchval("SELECT current_database()")
    with pytest.raises(StoreError, match=r"database .*nowhere.* does not exist") as caught:
        await Postgres(settings_of(database.replace(name, "nowhere"))).open()
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "host=db password=s3cret",
        "mysql://u:s3cret@db/x",
        "postgresql://u:12/s3cret@db/x",
        "postgresql://u:12?s3cret@db/x",
        "postgresql://u:12#s3cret@db/x",
        "postgresql://u:s3cret@db:port/x",
        "postgresql://[u:s3cret@db/x",
    ],
)
async def test_a_dsn_that_is_not_understood_is_not_repeated(dsn: str) -> None:
    with pytest.raises(StoreError, match="the DSN is not understood") as caught:
        await Postgres(settings_of(dsn)).open()
    assert "s3cret" not in str(caught.value)
    assert "12" not in str(caught.value)


async def test_asking_before_the_tables_exist_says_what_to_do(database: str) -> None:
    with pytest.raises(StoreError, match="sipsidecar run"):
        await postgres.find_attempts(database, "a")


# --- partitions and retention -------------------------------------------------------------------


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


async def test_days_are_made_from_yesterday_to_the_day_after_tomorrow(database: str) -> None:
    async with store(database) as opened, sql(database) as connection:
        forever = dict.fromkeys(rows.TABLES, 0)
        keeping = Postgres(settings_of(database, retention_days=forever))
        report = await keeping.maintain(NOON)
        assert (report.made, report.dropped, report.postponed) == (4 * len(rows.TABLES), 0, 0)
        assert (await keeping.maintain(NOON + 11 * 3_600_000_000)).made == 0
        assert (await keeping.maintain(NOON + 12 * 3_600_000_000)).made == len(rows.TABLES)
        await opened.write(
            1,
            {
                "messages": [
                    message(received_at=NOON - DAY),
                    message(received_at=NOON),
                    message(received_at=NOON + 400 * DAY),
                ]
            },
        )
        assert await rows_in(connection, "messages") == [
            ("messages_default", 1),
            ("messages_p20260719", 1),
            ("messages_p20260720", 1),
        ]


async def test_today_has_partitions_as_soon_as_the_store_is_open(database: str) -> None:
    today = f"calls_p{datetime.now(UTC):%Y%m%d}"
    async with store(database), sql(database) as connection:
        assert today in await partitions(connection, "calls")


async def test_rows_that_waited_in_the_default_partition_move_to_their_day(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.write(1, {"calls": [call_row("a"), call_row("b", received_at=NOON + 9 * DAY)]})
        assert await rows_in(connection, "calls") == [("calls_default", 2)]
        assert (await opened.maintain(NOON)).postponed == 0
        assert await rows_in(connection, "calls") == [
            ("calls_default", 1),
            ("calls_p20260720", 1),
        ]


async def test_a_day_whose_table_is_locked_is_made_in_the_next_round(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_DDL_LOCK_TIMEOUT_MS", 50)
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE pings_default IN ACCESS SHARE MODE")
            report = await opened.maintain(NOON)
        assert (report.made, report.postponed) == (4 * (len(rows.TABLES) - 1), 4)
        report = await opened.maintain(NOON)
        assert (report.made, report.postponed) == (4, 0)


async def test_retention_drops_the_days_of_each_table_by_its_own_age(database: str) -> None:
    keep = {"calls": 3, "messages": 1, "quarantine": 0}
    async with store(database, retention_days=keep) as opened, sql(database) as connection:
        for day in (-6, -3, 0):
            await opened.maintain(NOON + day * DAY)
        now = NOON
        report = await opened.maintain(now)
        days = {table: await partitions(connection, table) for table in rows.TABLES}
        ours = {t: [n for n in names if n < f"{t}_p20260723"] for t, names in days.items()}
        # The oldest row that must be kept is three days and one day old, at noon.
        assert ours["calls"][:2] == ["calls_default", "calls_p20260717"]
        assert ours["messages"][:2] == ["messages_default", "messages_p20260719"]
        for table in ("quarantine", "attempts"):
            assert ours[table][:2] == [f"{table}_default", f"{table}_p20260713"]
        assert report == postgres.Maintained()


async def test_retention_clears_old_rows_of_the_default_partition_and_the_ledger(
    database: str,
) -> None:
    now = int(datetime.now(UTC).timestamp()) * 1_000_000
    async with (
        store(database, retention_days={"calls": 30}, ledger_days=2) as opened,
        sql(database) as connection,
    ):
        old, young = now - 31 * DAY, now - 29 * DAY
        await opened.write(
            1, {"calls": [call_row("old", received_at=old), call_row("new", received_at=young)]}
        )
        await opened.write(2, {"calls": []})
        await connection.execute(
            "UPDATE ingest_batch SET committed_at = now() - interval '3 days' WHERE sequence = 1"
        )
        report = await opened.maintain(now)
        assert (report.dropped, report.deleted) == (0, 2)
        assert await connection.fetchval("SELECT string_agg(call_id, ' ') FROM calls") == "new"
        assert await connection.fetchval("SELECT max(sequence) FROM ingest_batch") == 2


async def test_a_partition_that_somebody_else_made_is_left_alone(database: str) -> None:
    async with store(database, retention_days={"pings": 1}) as opened, sql(database) as connection:
        await connection.execute(
            "CREATE TABLE pings_archive PARTITION OF pings "
            "FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-02-01 00:00:00+00')"
        )
        assert (await opened.maintain(NOON)).dropped == 0
        assert "pings_archive" in await partitions(connection, "pings")


# --- questions ----------------------------------------------------------------------------------


async def found(dsn: str, **wanted: Any) -> list[str]:
    calls = await postgres.find_calls(dsn, CallFilter(**({"since_us": NOON} | wanted)))
    return [row["call_id"] for row in calls]


@pytest.fixture
async def asked(database: str) -> str:
    """Three calls: `one`, then `two` a second later, then `three`, which was not answered."""
    one = call("one@pbx", from_user="Alice", to_user="100", answered=True, final_code=200)
    one = msgspec.structs.replace(one, final_class="2xx", pdd_ms=900.0, talk_ms=60_000.0, mos=4.2)
    two = call("two@pbx", started_at=NOON + 1_000_000, from_user="bob%", to_user="alice")
    two = msgspec.structs.replace(two, answered=True, final_code=200, final_class="2xx", mos=2.9)
    two = msgspec.structs.replace(two, pdd_ms=2500.0, talk_ms=500.0, flags=("forked", "reinvite"))
    three = call("three@pbx", started_at=NOON + 2_000_000, final_code=486, final_class="4xx")
    three = msgspec.structs.replace(three, flags=("forked",), trunk="carrier-a")
    async with store(database) as opened:
        await opened.write(1, {"calls": [rows.encode_call(r, 1) for r in (one, two, three)]})
    return database


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "three two one"),
        ({"limit": 2}, "three two"),
        ({"since_us": NOON + 1}, "three two"),
        ({"until_us": NOON + 2_000_000}, "two one"),
        ({"final_code": 486}, "three"),
        ({"final_code": 99_999}, ""),
        ({"final_class": "2xx"}, "two one"),
        ({"trunk": "carrier-a"}, "three"),
        ({"from_user": "ALI"}, "one"),
        ({"from_user": "%"}, "two"),
        ({"to_user": "lic"}, "two"),
        ({"pdd_above_ms": 900.0}, "two"),
        ({"talk_above_ms": 1000.0}, "one"),
        ({"talk_below_ms": 1000.0}, "two"),
        ({"mos_below": 3.5}, "two"),
        ({"flags": ("forked",)}, "three two"),
        ({"flags": ("forked", "reinvite")}, "two"),
        ({"call_id": "pbx"}, "three two one"),
        ({"call_id": "two@"}, "two"),
        ({"call_id": "\0'; DROP TABLE calls; --\ud800"}, ""),
        ({"answered": True}, "two one"),
        ({"answered": False}, "three"),
    ],
)
async def test_calls_are_found_newest_first_by_what_is_asked(
    asked: str, wanted: dict[str, Any], expected: str
) -> None:
    names = [f"{name}@pbx" for name in expected.split()]
    assert await found(asked, **wanted) == names


async def test_a_found_call_has_the_fields_of_its_record_and_times_in_microseconds(
    asked: str,
) -> None:
    (row,) = await postgres.find_calls(asked, CallFilter(since_us=NOON, final_code=486))
    record = call("three@pbx", started_at=NOON + 2_000_000, final_code=486, final_class="4xx")
    record = msgspec.structs.replace(record, flags=("forked",), trunk="carrier-a")
    assert row == as_stored(record) | {"node_id": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("two@pbx", "two"), ("t", "three two"), ("e@pbx", "three one"), ("nobody", ""), ("", "")],
)
async def test_a_call_is_found_by_its_call_id_or_by_part_of_it(
    asked: str, text: str, expected: str
) -> None:
    rows_found = await postgres.find_call(asked, text, since_us=NOON)
    assert [row["call_id"] for row in rows_found] == [f"{n}@pbx" for n in expected.split()]


async def test_messages_of_a_call_come_in_the_order_of_capture(database: str) -> None:
    async with store(database) as opened:
        unordered = [
            message("a", 3, captured_at=NOON + 10),
            message("a", 2, captured_at=None, received_at=NOON + 5),
            message("b", 9),
            message("a", 1, captured_at=NOON + 10),
            message("a", 4, captured_at=NOON),
        ]
        await opened.write(1, {"messages": unordered})
    messages = await postgres.find_messages(database, "a")
    assert [row["sequence"] for row in messages] == [4, 2, 1, 3]
    assert len(await postgres.find_messages(database, "a", limit=2)) == 2


async def test_attempts_of_a_call_come_in_the_order_they_were_made(database: str) -> None:
    made = [
        attempt("a", "z3", started_at=NOON + 9, failover_order=2),
        attempt("a", "z1", failover_order=1),
        attempt("b", "z2"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"attempts": [rows.encode_attempt(r, 1) for r in made]})
    assert [r["branch"] for r in await postgres.find_attempts(database, "a")] == ["z1", "z3"]


def index_scans(plan: Any) -> list[str]:
    here = [plan["Node Type"]] if "Relation Name" in plan or "Index Name" in plan else []
    return here + [scan for below in plan.get("Plans", []) for scan in index_scans(below)]


async def test_messages_and_attempts_of_a_call_are_found_through_an_index(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        for n, day in enumerate((-1, 0, 1)):
            at = NOON + day * DAY
            messages = [message(f"{i}@pbx", i, received_at=at) for i in range(1000)]
            attempts = [
                rows.encode_attempt(attempt(f"{i}@pbx", "z", received_at=at), 1)
                for i in range(1000)
            ]
            await opened.write(n, {"messages": messages, "attempts": attempts})
        await connection.execute("ANALYZE messages, attempts")
        for statement in (postgres._MESSAGES_SQL, postgres._ATTEMPTS_SQL):
            ask = statement.replace("$1", "'7@pbx'").replace("$2", "100")
            (answer,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {ask}"))
            scans = index_scans(answer["Plan"])
            assert "Index Scan" in str(scans)
            full = [scan for scan in scans if scan == "Seq Scan"]
            # Days without a row in them (the DEFAULT among them) may be read as they are.
            assert len(scans) - len(full) >= 3


def search_since(since: str, order: str = "") -> str:
    ask = postgres._calls_sql(order or "started_at").replace("$15", "50")
    for name in [f"${n}" for n in range(14, 1, -1)]:
        ask = ask.replace(name, "'{}'" if name == "$12" else "NULL")
    return ask.replace("$1", f"'{since}'")


async def test_a_search_touches_only_the_days_it_asks_for(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        for day in range(0, 12, 4):
            await opened.maintain(NOON + day * DAY)
        ask = search_since("2026-07-31 12:00:00+00")
        plan = await connection.fetch(f"EXPLAIN ANALYZE {ask}")
    text = "\n".join(line for (line,) in plan)
    assert "calls_p20260730" in text
    assert "calls_p20260729" not in text
    assert "calls_p20260719" not in text


async def test_the_newest_calls_are_read_from_the_index_and_not_sorted(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        batch = [call_row(f"{n}@pbx", started_at=NOON + n) for n in range(3000)]
        await opened.write(1, {"calls": batch})
        await connection.execute("ANALYZE calls")
        ask = search_since("2026-07-20 00:00:00+00")
        plan = await connection.fetch(f"EXPLAIN {ask}")
    text = "\n".join(line for (line,) in plan)
    assert "Index Scan Backward using calls_p20260720_started_at_idx" in text


@pytest.mark.parametrize(
    ("order", "expected"),
    [("started_at", "three two one"), ("pdd_ms", "two one three"), ("talk_ms", "one two three")],
)
async def test_calls_come_in_the_order_asked_for_with_the_unknown_last(
    asked: str, order: str, expected: str
) -> None:
    assert await found(asked, order=order) == [f"{name}@pbx" for name in expected.split()]


async def test_an_order_that_is_not_offered_never_reaches_the_database(asked: str) -> None:
    with pytest.raises(ValueError, match="expected one of started_at, "):
        await found(asked, order="1; DROP TABLE calls")


async def test_the_view_of_recent_calls_shows_the_newest_first(database: str) -> None:
    now = int(datetime.now(UTC).timestamp()) * 1_000_000
    batch = [
        call_row("old", received_at=now - 2 * DAY, started_at=now - 2 * DAY),
        call_row("earlier", received_at=now, started_at=now - 5),
        call_row("last", received_at=now, started_at=now),
    ]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"calls": batch})
        recent = await connection.fetch("SELECT call_id FROM calls_recent")
    assert [name for (name,) in recent] == ["last", "earlier"]
