"""A database to what `sipsidecar doctor` wants to know of it; changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from sipsidecar.edges.postgres.connection import PostgresSettings, exists, explained, session
from sipsidecar.edges.postgres.partitions import _sizes, list_partitions
from sipsidecar.edges.postgres.store import _NODE_LOCK, _OLDEST_SERVER, _migrations
from sipsidecar.rows import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipsidecar.edges.postgres.connection import Connection

_COUNT_CAP = 100_001


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who is connected as a node. All of it is what that client says of itself."""

    application: str
    address: str | None
    """None for a client on the server's own machine."""
    since_us: int | None


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a database showed. Times are microseconds UTC by its clock."""

    version: str
    """Of the server, such as `15.18`."""
    supported: bool
    """The server is not too old, and the database keeps UTF-8."""
    read_only: bool
    schema: int | None
    """Version of the sidecar's tables; None while there are none."""
    schema_known: int
    """Version that this sidecar brings."""
    clock_ahead_seconds: float
    """The server's clock less ours; exact to half of `round_trip_seconds`."""
    round_trip_seconds: float
    holder: Holder | None
    """Who writes as this node now."""
    default_rows: dict[str, int] = {}
    """Rows in DEFAULT partitions by table, where there are any; at most 100001 are counted."""
    bytes: int = 0
    """Of all tables with their indexes."""
    partitions_end_us: int | None = None
    """Until when every table has partitions."""
    maintained_us: int | None = None
    """When partitions and retention were last looked after, by any sidecar."""


async def examine(
    settings: PostgresSettings, *, seconds: float = 3.0, clock: Callable[[], int] = time.time_ns
) -> Examination:
    """Look at a database as the node of the settings would; StoreError when that is not possible.

    A connection may take `seconds`, and so may each question. `clock` is ours, in nanoseconds UTC.
    """
    brief = msgspec.structs.replace(
        settings, connect_timeout_s=seconds, statement_timeout_s=seconds
    )
    with explained(brief):
        async with session(brief, "sipsidecar doctor") as connection:
            await connection.execute("SET default_transaction_read_only = on")
            return await _look(connection, settings.node_id, clock)


async def _look(connection: Connection, node_id: int, clock: Callable[[], int]) -> Examination:
    before = clock()
    theirs: int = await connection.fetchval("SELECT clock_timestamp()")
    after = clock()
    number = int(await connection.fetchval("SHOW server_version_num"))
    encoding = await connection.fetchval("SHOW server_encoding")
    schema = None
    if await exists(connection, "sipsidecar_schema"):
        schema = await connection.fetchval("SELECT max(version) FROM sipsidecar_schema")
    seen = Examination(
        version=f"{number // 10_000}.{number % 10_000}",
        supported=number // 10_000 >= _OLDEST_SERVER and encoding == "UTF8",
        # of the server, not of this connection, which changes nothing anyway
        read_only=await connection.fetchval(
            "SELECT pg_is_in_recovery() OR (SELECT reset_val FROM pg_settings "
            "WHERE name = 'default_transaction_read_only') = 'on'"
        ),
        schema=schema,
        schema_known=max(_migrations()),
        clock_ahead_seconds=(theirs - (before + after) / 2000) / 1_000_000,
        round_trip_seconds=(after - before) / 1_000_000_000,
        holder=await _holder(connection, node_id),
    )
    # Tables of another version may lack what is asked here.
    return seen if schema != seen.schema_known else await _look_inside(connection, seen)


async def _look_inside(connection: Connection, seen: Examination) -> Examination:
    rows = {}
    ends = []
    for table in TABLES:
        count = await connection.fetchval(
            f"SELECT count(*) FROM (SELECT FROM {table}_default LIMIT {_COUNT_CAP}) AS found"  # noqa: S608
        )
        if count:
            rows[table] = count
        ends.append(max((one.high for one in await list_partitions(connection, table)), default=0))
    end = min(ends)
    return msgspec.structs.replace(
        seen,
        default_rows=rows,
        bytes=sum((await _sizes(connection)).values()),
        partitions_end_us=int(end) if 0 < end < float("inf") else None,
        maintained_us=await connection.fetchval("SELECT max(at) FROM maintenance"),
    )


async def _holder(connection: Connection, node_id: int) -> Holder | None:
    found = await connection.fetchrow(
        "SELECT application_name, client_addr, backend_start FROM pg_locks "
        "LEFT JOIN pg_stat_activity USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
        "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND classid = $1::bigint::oid AND objid = $2::bigint::oid",
        _NODE_LOCK,
        node_id,
    )
    if found is None:
        return None
    application, address, since = found
    return Holder(application=application or "", address=address, since_us=since)
