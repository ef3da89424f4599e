"""Batches of encoded rows to PostgreSQL, each stored exactly once; and the questions people ask.

A batch is one transaction: its row in the ledger `ingest_batch`, then its rows by COPY. A batch
sent again because nobody knows whether it was committed finds its ledger row and stores nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec

from sipsidecar.batch import StoreError, StoreRejected, StoreUnavailable
from sipsidecar.rows import HEADER, TABLES, TRAILER, Replaced, clean_call_id, clean_key
from sipsidecar.tables import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    Connection = asyncpg.Connection[asyncpg.Record]

RETENTION_DAYS = {
    "calls": 90, "attempts": 90, "registrations": 30, "pings": 7, "messages": 7, "quarantine": 7,
}  # fmt: skip

_SCHEMA_LOCK, _PARTITION_LOCK, _NODE_LOCK = 0x5349_5001, 0x5349_5002, 0x5349_5003
_DDL_LOCK_TIMEOUT_MS = 2000  # while it waits for a table, every writer of that table waits too
_ROWS_PER_COPY = 4096  # bounds the copies in memory of a batch on its way out
_DAY_US = 86_400_000_000
_EPOCH = 946_684_800_000_000  # PostgreSQL counts microseconds from 2000-01-01
_OLDEST_SERVER = 15


class PostgresSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom to write."""

    dsn: str
    node_id: int = 1
    retention_days: dict[str, int] = msgspec.field(default_factory=RETENTION_DAYS.copy)
    """By table; 0, or no entry, keeps rows for ever."""
    ledger_days: int = 30
    connect_timeout_s: float = 10.0
    statement_timeout_s: float = 60.0
    node_wait_s: float = 5.0
    """How long to wait for the node id: a killed predecessor's connection may linger."""


class Maintained(msgspec.Struct, frozen=True, kw_only=True):
    """What one round of maintenance did."""

    made: int = 0
    """Partitions made ahead."""
    dropped: int = 0
    """Partitions dropped by age."""
    deleted: int = 0
    """Rows deleted by age from DEFAULT partitions and the ledger."""
    postponed: int = 0
    """Partitions left for the next round because somebody held a lock."""


class CallFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls to find; None asks nothing. Times are microseconds UTC, against `started_at`."""

    # The order of the fields is the order of the parameters of _CALLS_SQL.
    since_us: int
    until_us: int | None = None
    final_code: int | None = None
    final_class: str | None = None
    trunk: str | None = None
    from_user: str | None = None
    """Part of the user, in any case; `to_user` too."""
    to_user: str | None = None
    pdd_above_ms: float | None = None
    talk_above_ms: float | None = None
    talk_below_ms: float | None = None
    mos_below: float | None = None
    flags: tuple[str, ...] = ()
    """All of these."""
    call_id: str | None = None
    """Part of the Call-ID."""
    answered: bool | None = None
    limit: int = 50
    order: str = "started_at"
    """One of `ORDERS`, highest first; no parameter."""


# SQLSTATEs that speak of the data; all others are the server's state, which passes. 08P01 is the
# answer to a binary row that is shorter than it says.
_ABOUT_THE_DATA = re.compile("22|23|54|08P01")
_FAILURES = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError,
)  # fmt: skip
_TO_BE_CHANGED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    ValueError,  # asyncpg's word for settings and arguments that it cannot use
)


def _target(dsn: str) -> str:
    """Name the database of a DSN for people: never the user or the password."""
    try:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        host = query.get("host", [parts.hostname or "its default address"])[0]
        port = query.get("port", [str(parts.port or 5432)])[0]
        # A password with a bare slash or hash shifts all parts: then show none of them.
        understood = parts.scheme in {"postgres", "postgresql"} and "@" not in parts.path
        understood = understood and not parts.fragment
    except ValueError:
        understood = False
    if not understood:
        raise StoreError(
            "the DSN is not understood: expected postgresql://user:password@host:port/database, "
            "with special characters of the password percent-encoded"
        )
    database = parts.path.strip("/") or query.get("database", ["(default)"])[0]
    return f"PostgreSQL at {host} port {port}, database {database}"


@contextlib.contextmanager
def _explained(dsn: str) -> Iterator[None]:
    """Turn whatever goes wrong with this database into a StoreError of one line."""
    target = _target(dsn)
    try:
        yield
    except (*_FAILURES, ValueError) as error:
        line = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
        line = printable(line)  # it may quote what strangers sent
        state = getattr(error, "sqlstate", None) or ""
        if _ABOUT_THE_DATA.match(state):
            raise StoreRejected(state, line) from error
        if isinstance(error, asyncpg.UndefinedTableError):
            line = "the sidecar's tables are not there; `sipsidecar run` makes them"
        kind = StoreError if isinstance(error, _TO_BE_CHANGED) else StoreUnavailable
        raise kind(f"{target}: {line}") from error


async def _connect(settings: PostgresSettings, name: str) -> Connection:
    limit_ms = str(int(settings.statement_timeout_s * 1000))
    connection = await asyncpg.connect(
        settings.dsn,
        timeout=settings.connect_timeout_s,
        command_timeout=settings.statement_timeout_s + settings.connect_timeout_s,
        server_settings={
            "application_name": name,
            "timezone": "UTC",
            "statement_timeout": limit_ms,
            "idle_in_transaction_session_timeout": limit_ms,
            "tcp_keepalives_idle": "30",
        },
    )
    try:
        # Addresses as text, times as microseconds, as in the records.
        await connection.set_type_codec("inet", schema="pg_catalog", encoder=str, decoder=str)
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=lambda at: (at - _EPOCH,),
            decoder=lambda at: at[0] + _EPOCH,
            format="tuple",
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=5)
    except _FAILURES:
        connection.terminate()


class Postgres:
    """The one writer of a node. Connects again by itself after the connection was lost."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self.first_sequence = 0
        """The lowest batch sequence that is free for this node, as far as is known."""

    async def open(self, floor: int = 0) -> None:
        """Connect, migrate, become the node's only writer; sequences go on at `floor` or above.

        Raise StoreError for what somebody has to change, StoreUnavailable for what may pass.
        """
        self.first_sequence = max(self.first_sequence, floor)
        async with self._turn:
            with _explained(self._settings.dsn):
                await self._ready()

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
    ) -> int:
        """Store encoded rows by table, once per `sequence`, and drop the revisions they replace.

        Return how many rows were left out because their key was there already (a capture replayed
        twice). Raise StoreUnavailable or StoreRejected; then this attempt stored nothing, or all
        of it and the next attempt will find that out.
        """
        async with self._turn:
            try:
                with _explained(self._settings.dsn):
                    connection = await self._ready()
                    batch = (connection, self._settings.node_id, sequence, tables, replace)
                    try:
                        return await _store(*batch, merge=False)
                    except asyncpg.UniqueViolationError:
                        return await _store(*batch, merge=True)
            except StoreRejected:
                raise
            except StoreError as error:
                self._drop()
                raise StoreUnavailable(str(error)) from error
            except BaseException:  # cancelled: the COPY was left half-way
                self._drop()
                raise

    async def maintain(self, now_us: int) -> Maintained:
        """Make partitions from yesterday to the day after tomorrow, drop what is past its days."""
        settings = self._settings
        with _explained(settings.dsn):
            connection = await _connect(settings, "sipsidecar maintenance")
            try:
                made, postponed = await _make_partitions(connection, now_us)
                dropped = deleted = 0
                for table, days in settings.retention_days.items():
                    if days > 0:
                        cutoff = now_us - days * _DAY_US
                        gone, left = await _drop_partitions(connection, table, cutoff)
                        dropped, postponed = dropped + gone, postponed + left
                        deleted += await _delete(
                            connection, f"{table}_default", "received_at", cutoff
                        )
                cutoff = now_us - settings.ledger_days * _DAY_US
                deleted += await _delete(connection, "ingest_batch", "committed_at", cutoff)
            finally:
                await _close(connection)
        return Maintained(made=made, dropped=dropped, deleted=deleted, postponed=postponed)

    async def close(self) -> None:
        """Give the connection and the node id back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _ready(self) -> Connection:
        """Return the connection; make it, and all that must be true before a write, if need be."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        node_id = self._settings.node_id
        connection = await _connect(self._settings, f"sipsidecar node {node_id}")
        try:
            await _check_server(connection)
            await _become_node(connection, node_id, self._settings.node_wait_s)
            await _migrate(connection)
            await _make_partitions(connection, time.time_ns() // 1000)
            newest = await connection.fetchval(
                "SELECT coalesce(max(sequence), -1) FROM ingest_batch WHERE node_id = $1", node_id
            )
        except BaseException:
            connection.terminate()
            raise
        self.first_sequence = max(self.first_sequence, newest + 1)
        self._connection = connection
        return connection


# One statement per record, by its distribution column: Citus sends it to one shard.
_REPLACE = {
    "calls": "DELETE FROM calls WHERE call_id = $1 AND from_tag = $2 AND $3 = '' "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
    "attempts": "DELETE FROM attempts WHERE call_id = $1 AND from_tag = $2 AND branch = $3 "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
}


async def _store(
    connection: Connection,
    node_id: int,
    sequence: int,
    tables: Mapping[str, Sequence[bytes]],
    replace: Sequence[Replaced],
    *,
    merge: bool,
) -> int:
    left_out = 0
    async with connection.transaction():
        fresh = await connection.fetchval(
            "INSERT INTO ingest_batch (node_id, sequence, rows) VALUES ($1, $2, $3) "
            "ON CONFLICT DO NOTHING RETURNING true",
            node_id,
            sequence,
            sum(map(len, tables.values())),
        )
        if not fresh:
            return 0
        for table, rows in tables.items():
            for start in range(0, len(rows), _ROWS_PER_COPY):
                part = rows[start : start + _ROWS_PER_COPY]
                if merge:
                    left_out += len(part) - await _merge(connection, table, part)
                else:
                    await _copy(connection, table, table, part)
        # After the COPY, so that two revisions of a record may be in one batch.
        for table, statement in _REPLACE.items():
            keys = [clean_key(key)[1:] for key in replace if key.table == table]
            if keys:
                await connection.executemany(statement, keys)
    return left_out


async def _copy(connection: Connection, into: str, table: str, rows: Sequence[bytes]) -> None:
    # A buffer, not an iterator: asyncpg wraps a task around every step of an iterator. And not
    # bytes: those it takes for the path of a file.
    stream: Any = memoryview(b"".join((HEADER, *rows, TRAILER)))
    await connection.copy_to_table(into, source=stream, columns=TABLES[table], format="binary")


async def _merge(connection: Connection, table: str, rows: Sequence[bytes]) -> int:
    """COPY, but leave out rows whose key is there; return how many went in."""
    columns = ", ".join(TABLES[table])
    await connection.execute(f"CREATE TEMP TABLE merged (LIKE {table})")
    await _copy(connection, "merged", table, rows)
    status = await connection.execute(
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM merged ON CONFLICT DO NOTHING"  # noqa: S608
    )
    await connection.execute("DROP TABLE merged")
    return int(status.split()[-1])


async def _check_server(connection: Connection) -> None:
    version = int(await connection.fetchval("SHOW server_version_num")) // 10_000
    if version < _OLDEST_SERVER:
        raise StoreError(f"PostgreSQL {version} is too old: {_OLDEST_SERVER} or newer is needed")
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreError(f"the database's encoding is {encoding}: create it with ENCODING 'UTF8'")


async def _become_node(connection: Connection, node_id: int, wait_s: float) -> None:
    try:
        async with connection.transaction():  # the time limit ends with it, the lock does not
            await _limit_lock_wait(connection, int(wait_s * 1000))
            await connection.execute("SELECT pg_advisory_lock($1, $2)", _NODE_LOCK, node_id)
    except asyncpg.LockNotAvailableError:
        raise StoreError(
            f"another sidecar writes to this database as node {node_id}: "
            "set node.id to a number of its own"
        ) from None


async def _limit_lock_wait(connection: Connection, limit_ms: int) -> None:
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", str(max(1, limit_ms)))


def _migrations() -> dict[int, str]:
    """Read the schema_NNN.sql files beside this module: version to statements."""
    return {
        int(file.name[7:10]): file.read_text(encoding="utf-8")
        for file in importlib.resources.files("sipsidecar.edges").iterdir()
        if re.fullmatch(r"schema_[0-9]{3}\.sql", file.name)
    }


async def _migrate(connection: Connection) -> None:
    migrations = _migrations()
    known = max(migrations)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1, 0)", _SCHEMA_LOCK)
        have = 0
        if await _exists(connection, "sipsidecar_schema"):
            have = await connection.fetchval("SELECT max(version) FROM sipsidecar_schema") or 0
        if have > known:
            raise StoreError(
                f"the database has schema version {have}, this sidecar knows version {known}: "
                "start a newer sidecar, or give this one another database"
            )
        for version in range(have + 1, known + 1):
            await connection.execute(migrations[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)


async def _exists(connection: Connection, table: str) -> bool:
    # By a scan: to_regclass may answer from a cache that a waited-for lock has outdated.
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1 AND pg_table_is_visible(oid))",
            table,
        )
    )


def _day(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // _DAY_US * 86_400, UTC)


@contextlib.asynccontextmanager
async def _altering(connection: Connection) -> AsyncIterator[None]:
    """One transaction that changes partitions: alone among sidecars, impatient with readers."""
    async with connection.transaction():
        await _limit_lock_wait(connection, _DDL_LOCK_TIMEOUT_MS)
        await connection.execute("SELECT pg_advisory_xact_lock($1, 0)", _PARTITION_LOCK)
        yield


async def _make_partitions(connection: Connection, now_us: int) -> tuple[int, int]:
    """Make the days around now that are missing; return how many were made, how many could not."""
    made = postponed = 0
    for table in TABLES:
        for offset in (-1, 0, 1, 2):
            day = _day(now_us + offset * _DAY_US)
            name = f"{table}_p{day:%Y%m%d}"
            if await _exists(connection, name):
                continue
            try:
                async with _altering(connection):
                    if not await _exists(connection, name):
                        await _make_partition(connection, table, name, day)
                        made += 1
            except (asyncpg.LockNotAvailableError, asyncpg.CheckViolationError):
                postponed += 1  # its rows wait in the DEFAULT partition
    return made, postponed


async def _make_partition(connection: Connection, table: str, name: str, day: datetime) -> None:
    low, high = (f"'{at:%Y-%m-%d} 00:00:00+00'" for at in (day, day + timedelta(days=1)))
    # LIKE and ATTACH let writers go on, where PARTITION OF would stop them. Rows of this day that
    # wait in the DEFAULT partition would forbid the ATTACH.
    await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
    await connection.execute(
        f"WITH moved AS (DELETE FROM {table}_default "  # noqa: S608
        f"WHERE received_at >= {low} AND received_at < {high} RETURNING *) "
        f"INSERT INTO {name} SELECT * FROM moved"
    )
    await connection.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high})"
    )


async def _drop_partitions(connection: Connection, table: str, cutoff_us: int) -> tuple[int, int]:
    """Drop our days that ended by `cutoff_us`; return how many went, how many could not."""
    names = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
        "WHERE inhparent = $1::text::regclass AND relname ~ $2 AND relname < $3 ORDER BY 1",
        table,
        f"^{table}_p[0-9]{{8}}$",
        f"{table}_p{_day(cutoff_us):%Y%m%d}",
    )
    dropped = 0
    for (name,) in names:
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            async with _altering(connection):
                await connection.execute(f"DROP TABLE IF EXISTS {name}")
            dropped += 1
    return dropped, len(names) - dropped


async def _delete(connection: Connection, table: str, column: str, cutoff_us: int) -> int:
    statement = f"DELETE FROM {table} WHERE {column} < $1"  # noqa: S608
    return int((await connection.execute(statement, cutoff_us)).split()[-1])


# Partitions go by received_at, people ask by started_at: a day of slack for agents' clocks.
_CALLS_SQL = """
SELECT * FROM calls
WHERE started_at >= $1::timestamptz AND received_at >= $1::timestamptz - interval '1 day'
  AND ($2::timestamptz IS NULL
       OR started_at < $2::timestamptz AND received_at < $2::timestamptz + interval '1 day')
  AND ($3::integer IS NULL OR final_code = $3)
  AND ($4::text IS NULL OR final_class = $4)
  AND ($5::text IS NULL OR trunk = $5)
  AND ($6::text IS NULL OR strpos(lower(from_user), lower($6)) > 0)
  AND ($7::text IS NULL OR strpos(lower(to_user), lower($7)) > 0)
  AND ($8::double precision IS NULL OR pdd_ms > $8)
  AND ($9::double precision IS NULL OR talk_ms > $9)
  AND ($10::double precision IS NULL OR talk_ms < $10)
  AND ($11::double precision IS NULL OR mos < $11)
  AND flags @> $12::text[]
  AND ($13::text IS NULL OR strpos(call_id, $13) > 0)
  AND ($14::boolean IS NULL OR answered = $14)
ORDER BY {order}, call_id, from_tag LIMIT $15
"""
ORDERS = ("started_at", "ended_at", "pdd_ms", "setup_ms", "talk_ms", "retransmissions")
_CALL_SQL = "SELECT * FROM calls WHERE call_id = $1 ORDER BY started_at DESC, from_tag LIMIT $2"
_CALL_PART_SQL = """
SELECT * FROM calls WHERE strpos(call_id, $1) > 0 AND received_at >= $3
ORDER BY strpos(call_id, $1) > 1, started_at DESC, call_id, from_tag LIMIT $2
"""
_ATTEMPTS_SQL = """
SELECT * FROM attempts WHERE call_id = $1 ORDER BY started_at, failover_order, branch LIMIT $2
"""
_MESSAGES_SQL = """
SELECT * FROM messages WHERE call_id = $1
ORDER BY coalesce(captured_at, received_at), sequence LIMIT $2
"""


def _calls_sql(order: str) -> str:
    # `started_at` is never NULL, and only so can its index, read backwards, give this order.
    nulls = "" if order == "started_at" else " NULLS LAST"
    return _CALLS_SQL.format(order=f"{order} DESC{nulls}")


async def _ask(dsn: str, sql: str, *values: object) -> list[dict[str, Any]]:
    settings = PostgresSettings(dsn=dsn, connect_timeout_s=5, statement_timeout_s=15)
    storable = [clean_call_id(value) if isinstance(value, str) else value for value in values]
    with _explained(dsn):
        connection = await _connect(settings, "sipsidecar query")
        try:
            async with connection.transaction(readonly=True):
                return [dict(row) for row in await connection.fetch(sql, *storable)]
        finally:
            await _close(connection)


async def find_calls(dsn: str, wanted: CallFilter) -> list[dict[str, Any]]:
    """Find calls, in the order asked for: column to value, times in microseconds UTC."""
    if wanted.order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}")
    *values, order = msgspec.structs.astuple(wanted)
    return await _ask(dsn, _calls_sql(order), *values)


async def find_call(
    dsn: str, call_id: str, *, since_us: int | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """Find the calls of a Call-ID; when there is none, those with the text in their Call-ID.

    The second search goes back to `since_us` (7 days); Call-IDs that begin with the text go first.
    """
    found = await _ask(dsn, _CALL_SQL, call_id, limit)
    if found or not call_id:
        return found
    since = time.time_ns() // 1000 - 7 * _DAY_US if since_us is None else since_us
    return await _ask(dsn, _CALL_PART_SQL, call_id, limit, since)


async def find_attempts(dsn: str, call_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Find the egress attempts of a call, in the order they were made."""
    return await _ask(dsn, _ATTEMPTS_SQL, call_id, limit)


async def find_messages(dsn: str, call_id: str, limit: int = 10_000) -> list[dict[str, Any]]:
    """Find the messages of a call, in the order they were captured."""
    return await _ask(dsn, _MESSAGES_SQL, call_id, limit)
