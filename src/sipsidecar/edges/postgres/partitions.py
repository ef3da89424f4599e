"""Partitions: made ahead, dropped by age and by size, and the DEFAULT ones emptied.

Whatever changes a partition holds an advisory lock, so that sidecars on one database take turns,
and gives up soon when a table is in use: while it waits, everybody behind it waits too.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import msgspec

from sipsidecar.batch import WORTH
from sipsidecar.edges.postgres.connection import limit_lock_wait, session, transaction
from sipsidecar.rows import TABLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from sipsidecar.edges.postgres.connection import Connection, PostgresSettings

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
WEEK_US = 7 * DAY_US

_PARTITION_LOCK, _MAINTENANCE_LOCK = 0x5349_5002, 0x5349_5004
_DDL_LOCK_TIMEOUT_MS = 2000
_ROUND_STATEMENT_SECONDS = 600.0
"""Longest step of a round: for so long may rows move, and readers of their table wait for them."""
_START_STATEMENT_SECONDS = 5
"""The same before the first write, which moves nothing: a large DEFAULT partition must not stop it."""
_COUNT_CAP = 100_001  # of the rows in a DEFAULT partition: a number, not a scan of everything
_REPAIRS_PER_ROUND = 64
_MAINTENANCE_DAYS = 30
# What a repair takes for a time: other rows stay in the DEFAULT partition.
_FIRST_US, _LAST_US = 0, int(datetime(2300, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_OTHER_TABLES = ("ingest_batch", "maintenance")
_BY_HOUR = frozenset({"messages"})
_BY_WEEK = frozenset({"kpi_minute", "code_minute", "baseline_hours", "incidents", "events"})
"""What is small or kept long: every partition of a table costs each plan some time."""

# Something is in the way: a reader, rows that came in between, a table of that name, an overlap.
_IN_THE_WAY = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.CheckViolationError,
    asyncpg.DuplicateTableError,
    asyncpg.InvalidObjectDefinitionError,
    asyncpg.QueryCanceledError,  # it took too long
)

log = logging.getLogger("sipsidecar.postgres")


class Maintained(msgspec.Struct, frozen=True, kw_only=True):
    """What one round of maintenance did."""

    skipped: bool = False
    """Another sidecar does it, or did not long ago: all else is 0."""
    made: int = 0
    """Partitions made, ahead and for rows in DEFAULT partitions."""
    dropped: int = 0
    """Partitions dropped by age."""
    dropped_for_size: int = 0
    """Partitions dropped because all tables together were too large."""
    deleted: int = 0
    """Rows deleted by age from DEFAULT partitions and the ledger."""
    moved: int = 0
    """Rows moved from DEFAULT partitions to partitions of their own."""
    postponed: int = 0
    """Partitions left for the next round because something was in the way."""
    default_rows: dict[str, int] = {}
    """Rows found in DEFAULT partitions by table, where there were any; at most 100001 are counted.
    Partitions were missing when they came: an alarm."""
    default_left: int = 0
    """Of these, rows that are still there after the round."""
    bytes: int = 0
    """Size of all tables with their indexes after the round."""


class Partition(NamedTuple):
    """One partition of a table, without the DEFAULT: times are microseconds UTC, end excluded."""

    name: str
    low: float
    high: float
    ours: bool
    """Named as we name them: ours to drop."""


def _step(table: str) -> int:
    """Length of a table's periods; they begin at its multiples, so weeks begin on Thursdays."""
    if table in _BY_HOUR:
        return HOUR_US
    return WEEK_US if table in _BY_WEEK else DAY_US


def _ahead(table: str) -> tuple[int, int, int]:
    """From which period to which, counted from now, and how far back a gap is filled."""
    if table in _BY_HOUR:
        return (-1, 6, 96)
    return (-1, 1, 2) if table in _BY_WEEK else (-1, 2, 4)


def _moment(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC)


def _name(table: str, low_us: int) -> str:
    return f"{table}_p{_moment(low_us):{'%Y%m%d%H' if table in _BY_HOUR else '%Y%m%d'}}"


def _bounds(low_us: int, high_us: int) -> tuple[str, str]:
    low, high = (f"'{_moment(at):%Y-%m-%d %H:%M:%S}+00'" for at in (low_us, high_us))
    return low, high


def _bound(text: str, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(text.strip("'")).timestamp() * 1e6
    except ValueError:  # MINVALUE, MAXVALUE, or a year that Python does not have
        return otherwise


async def list_partitions(connection: Connection, table: str) -> list[Partition]:
    """List the partitions of a table, oldest first."""
    # Without the table's oid, which would wait for whoever has locked that partition.
    found = await connection.fetch(
        "SELECT relname, pg_get_expr(relpartbound, 0) FROM pg_inherits "
        "JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = $1::text::regclass",
        table,
    )
    partitions = []
    for name, expression in found:
        match = re.fullmatch(r"FOR VALUES FROM \((.*)\) TO \((.*)\)", expression or "")
        if match:
            low, high = _bound(match[1], float("-inf")), _bound(match[2], float("inf"))
            ours = re.fullmatch(f"{table}_p[0-9]{{8}}([0-9]{{2}})?", name) is not None
            partitions.append(Partition(name, low, high, ours))
    return sorted(partitions, key=lambda one: one.low)


@contextlib.asynccontextmanager
async def _altering(connection: Connection) -> AsyncIterator[None]:
    """One transaction that changes partitions: alone among sidecars, impatient with readers."""
    async with transaction(connection):
        await limit_lock_wait(connection, _DDL_LOCK_TIMEOUT_MS)
        await connection.execute("SELECT pg_advisory_xact_lock($1, 0)", _PARTITION_LOCK)
        yield


class _Made:
    """What making partitions came to."""

    def __init__(self) -> None:
        self.made = self.moved = self.postponed = 0


async def make_partitions(connection: Connection, now_us: int, *, move: bool) -> _Made:
    """Make the periods around now that are missing, and those missed while nobody made any.

    Without `move`, periods with rows in the DEFAULT partition are left for maintenance.
    """
    made = _Made()
    for table in TABLES:
        step = _step(table)
        first, last, back = _ahead(table)
        this = now_us // step
        present = await list_partitions(connection, table)
        # A spool that is read back holds rows of the time when the database was away.
        older = [one.high for one in present if one.ours and one.high <= (this + first) * step]
        if older:
            first = max(int(max(older)) // step - this, -back)
        wanted = [(this + offset) * step for offset in range(first, last + 1)]
        await _make(connection, table, wanted, present, made, move=move)
    return made


async def _make(
    connection: Connection,
    table: str,
    wanted: Iterable[int],
    present: Sequence[Partition],
    made: _Made,
    *,
    move: bool = True,
) -> None:
    step = _step(table)

    def covered(low: int, partitions: Sequence[Partition]) -> bool:
        return any(one.low < low + step and one.high > low for one in partitions)

    missing = [low for low in wanted if not covered(low, present)]
    for done, low in enumerate(missing):
        try:
            async with _altering(connection):
                if not covered(low, await list_partitions(connection, table)):
                    made.moved += await _make_partition(connection, table, low, move=move)
                    made.made += 1
        except _IN_THE_WAY as error:  # its rows wait in the DEFAULT partition
            made.postponed += 1
            if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
                made.postponed += len(missing) - done - 1  # would wait for the same
                return


async def _make_partition(
    connection: Connection, table: str, low_us: int, *, move: bool = True
) -> int:
    """Make one period, with its rows in the DEFAULT partition moved there; return how many."""
    name = _name(table, low_us)
    low, high = _bounds(low_us, low_us + _step(table))
    moved = 0
    # LIKE and ATTACH let writers go on, where PARTITION OF would stop them. Rows of this period in
    # the DEFAULT partition forbid the ATTACH, so no more may come while they move; the locks from
    # the parent down, as everybody takes them.
    await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL EXCLUDING COMMENTS)")
    await connection.execute(f"LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE")
    await connection.execute(f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE")
    if move:
        status = await connection.execute(
            f"WITH moved AS (DELETE FROM {table}_default "  # noqa: S608
            f"WHERE received_at >= {low} AND received_at < {high} RETURNING *) "
            f"INSERT INTO {name} SELECT * FROM moved"
        )
        moved = int(status.split()[-1])
    else:
        await connection.execute(f"SET LOCAL statement_timeout = '{_START_STATEMENT_SECONDS}s'")
    await connection.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high})"
    )
    return moved


async def _drop(connection: Connection, names: Sequence[str]) -> int:
    """Drop partitions of one table, one by one; return how many could be."""
    for done, name in enumerate(names):
        try:
            async with _altering(connection):
                await connection.execute(f"DROP TABLE IF EXISTS {name}")
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            return done  # the rest would wait for the same lock, and all writers with it
    return len(names)


async def _delete(connection: Connection, table: str, column: str, cutoff_us: int) -> int:
    statement = f"DELETE FROM {table} WHERE {column} < $1"  # noqa: S608
    return int((await connection.execute(statement, cutoff_us)).split()[-1])


async def _count_defaults(connection: Connection) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in TABLES:
        counts[table] = await connection.fetchval(
            f"SELECT count(*) FROM (SELECT FROM {table}_default LIMIT {_COUNT_CAP}) AS found"  # noqa: S608
        )
    return {table: count for table, count in counts.items() if count}


async def _repair(
    connection: Connection, tables: Iterable[str], cutoffs: Mapping[str, int], made: _Made
) -> None:
    """Make the periods of rows that wait in DEFAULT partitions, and move them there."""
    left = _REPAIRS_PER_ROUND
    for table in tables:
        step = _step(table)
        found = await connection.fetch(
            "SELECT DISTINCT date_bin(make_interval(secs => $1), received_at, 'epoch') AS low "  # noqa: S608
            f"FROM {table}_default WHERE received_at >= $2 AND received_at < $3 "
            "ORDER BY low DESC LIMIT $4",
            step / 1_000_000,
            max(_FIRST_US, cutoffs.get(table, _FIRST_US)),
            _LAST_US,
            left,
        )
        periods = [low for (low,) in found]
        left -= len(periods)
        await _make(connection, table, periods, await list_partitions(connection, table), made)


async def _sizes(connection: Connection) -> dict[str, int]:
    """Bytes of every table of ours with its indexes, partitions one by one, by name."""
    found = await connection.fetch(
        "SELECT relname, coalesce(pg_total_relation_size(oid), 0) FROM pg_class "
        "WHERE oid IN (SELECT inhrelid FROM pg_inherits "
        "WHERE inhparent = ANY($1::text[]::regclass[])) OR oid = ANY($2::text[]::regclass[])",
        list(TABLES),
        list(_OTHER_TABLES),
    )
    return {name: size for name, size in found}  # noqa: C416 -- a Record is no pair


async def _shrink(connection: Connection, now_us: int, max_bytes: int) -> tuple[list[str], int]:
    """Drop the oldest closed partitions, what is worth least first, until all fits.

    Return which went, and how many were left although they had to go.
    """
    sizes = await _sizes(connection)
    surplus = sum(sizes.values()) - max_bytes
    gone: list[str] = []
    postponed = 0
    for table in WORTH:
        if surplus <= 0:
            break
        names = []
        for one in await list_partitions(connection, table):
            # What may still be written to is never dropped.
            if surplus > 0 and one.ours and one.high <= now_us:
                names.append(one.name)
                surplus -= sizes.get(one.name, 0)
        dropped = await _drop(connection, names)
        gone += names[:dropped]
        postponed += len(names) - dropped
    return gone, postponed


async def maintain(settings: PostgresSettings, now_us: int, interval_s: float) -> Maintained:
    """Run one round, or skip it when another sidecar's will do. Raises what asyncpg raises."""
    settings = msgspec.structs.replace(settings, statement_timeout_s=_ROUND_STATEMENT_SECONDS)
    async with session(settings, "sipsidecar maintenance") as connection:
        # The session holds it, and it goes with the connection however that ends.
        alone = await connection.fetchval("SELECT pg_try_advisory_lock($1, 0)", _MAINTENANCE_LOCK)
        if not alone or await _recently(connection, settings.node_id, interval_s / 2):
            return Maintained(skipped=True)
        started = time.monotonic()
        done = await _round(connection, settings, now_us)
        await connection.execute(
            "INSERT INTO maintenance (node_id, seconds, made, dropped, dropped_for_size, "
            "postponed, deleted, moved, default_rows, default_left, bytes) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            settings.node_id,
            time.monotonic() - started,
            done.made,
            done.dropped,
            done.dropped_for_size,
            done.postponed,
            done.deleted,
            done.moved,
            sum(done.default_rows.values()),
            done.default_left,
            done.bytes,
        )
        return done


async def _recently(connection: Connection, node_id: int, seconds: float) -> bool:
    # By the database's clock: those of two sidecars may differ.
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM maintenance WHERE node_id <> $1 "
            "AND at > clock_timestamp() - make_interval(secs => $2))",
            node_id,
            seconds,
        )
    )


async def _round(connection: Connection, settings: PostgresSettings, now_us: int) -> Maintained:
    waiting = await _count_defaults(connection)
    made = await make_partitions(connection, now_us, move=True)
    cutoffs = {
        table: now_us - days * DAY_US
        for table, days in settings.retention_days.items()
        if days > 0 and table in TABLES
    }
    dropped = deleted = postponed = 0
    for table, cutoff in cutoffs.items():
        names = [
            one.name
            for one in await list_partitions(connection, table)
            if one.ours and one.high <= cutoff
        ]
        gone = await _drop(connection, names)
        dropped, postponed = dropped + gone, postponed + len(names) - gone
        deleted += await _delete(connection, f"{table}_default", "received_at", cutoff)
    deleted += await _delete(
        connection, "ingest_batch", "committed_at", now_us - settings.ledger_days * DAY_US
    )
    await _delete(connection, "maintenance", "at", now_us - _MAINTENANCE_DAYS * DAY_US)
    await _repair(connection, waiting, cutoffs, made)
    gone_for_size: list[str] = []
    if settings.max_bytes > 0:
        gone_for_size, left = await _shrink(connection, now_us, settings.max_bytes)
        postponed += left
    done = Maintained(
        made=made.made,
        dropped=dropped,
        dropped_for_size=len(gone_for_size),
        deleted=deleted,
        moved=made.moved,
        postponed=made.postponed + postponed,
        default_rows=waiting,
        default_left=sum((await _count_defaults(connection)).values()) if waiting else 0,
        bytes=sum((await _sizes(connection)).values()),
    )
    _tell(done, gone_for_size, settings.max_bytes)
    return done


def _tell(done: Maintained, gone_for_size: Sequence[str], max_bytes: int) -> None:
    """One line for each thing that somebody should know."""
    if done.default_rows:
        found = ", ".join(f"{table} {count}" for table, count in done.default_rows.items())
        log.warning(
            "rows were in DEFAULT partitions (%s): %d moved, %d left",
            found,
            done.moved,
            done.default_left,
        )
    if gone_for_size:
        some = ", ".join(gone_for_size[:5]) + (", ..." if len(gone_for_size) > 5 else "")
        log.warning(
            "%d partitions were dropped to stay under %d bytes: %s",
            len(gone_for_size),
            max_bytes,
            some,
        )
    if 0 < max_bytes < done.bytes:
        log.warning(
            "the tables take %d bytes, over retention.max_bytes (%d), with nothing closed to drop",
            done.bytes,
            max_bytes,
        )
