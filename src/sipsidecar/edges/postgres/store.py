"""Batches of encoded rows to PostgreSQL, each stored exactly once.

A batch is one transaction: its row in the ledger `ingest_batch`, then its rows by COPY. A batch
sent again because nobody knows whether it was committed finds its ledger row and stores nothing.
When PostgreSQL refuses rows, the same batch is stored again piece by piece: what is good goes in,
what is bad goes to quarantine, in one transaction under the same ledger row.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from sipsidecar.batch import SequenceTaken, StoreError, StoreRejected, StoreUnavailable, Written
from sipsidecar.edges.postgres.connection import (
    close,
    connect,
    exists,
    explained,
    is_about_data,
    limit_lock_wait,
    one_line,
    sqlstate,
    transaction,
)
from sipsidecar.edges.postgres.partitions import Maintained, maintain, make_partitions
from sipsidecar.rows import HEADER, TABLES, TRAILER, Replaced, clean_key, encode_quarantine
from sipsidecar.tables import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from sipsidecar.edges.postgres.connection import Connection, PostgresSettings

_SCHEMA_LOCK, _NODE_LOCK = 0x5349_5001, 0x5349_5003
_MIGRATION_LOCK_TIMEOUT_MS = 10_000  # while it waits for a table, its writers wait too
# Of one COPY: they bound the copies in memory of a batch on its way out.
_ROWS_PER_COPY = 4096
_BYTES_PER_COPY = 8 << 20
_OLDEST_SERVER = 15

# The search for bad rows ends after so many COPYs, or seconds, of one batch; what is still mixed
# by then is taken as bad. Halves are tried level by level, so that it is in small pieces by then.
_SALVAGE_COPIES = 4096
_SALVAGE_SECONDS = 20.0


class Postgres:
    """The one writer of a node. Connects by itself, also again after the connection was lost."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings
        """Where and as whom; retention may change between two rounds of maintenance."""
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self.first_sequence = 0
        """The lowest batch sequence that is free for this node, as far as is known."""

    async def open(self, floor: int = 0) -> None:
        """Connect, migrate, become the node's only writer; sequences go on at `floor` or above.

        Raise StoreError for what somebody has to change, StoreUnavailable for what may pass; after
        that, too, `write` works as soon as the database does.
        """
        self.first_sequence = max(self.first_sequence, floor)
        async with self._turn:
            with explained(self.settings):
                await self._ready()

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
        *,
        life: int = 0,
    ) -> Written:
        """Store encoded rows by table, once per `sequence` and `life`, and drop what they replace.

        Rows whose key is there already (a capture replayed twice) are left out; rows that
        PostgreSQL refuses go to `quarantine`. Sent again, a batch gives the same answer again.
        Raises StoreError, or its kinds StoreUnavailable, SequenceTaken (then `first_sequence` is
        free) and StoreRejected (even quarantine was refused); then this attempt stored nothing, or all of it and the next
        attempt will find that out. Can be cancelled at any time, which drops the connection.
        """
        async with self._turn:
            try:
                with explained(self.settings):
                    connection = await self._ready()
                batch = _Batch(self.settings.node_id, sequence, life, tables, replace)
                with explained(self.settings, data=True):
                    try:
                        return await batch.store(connection)
                    except SequenceTaken:
                        await self._learn_sequence(connection)
                        raise
                    except asyncpg.PostgresError as error:
                        if not is_about_data(error):
                            raise
                    return await batch.salvage(connection)
            except (StoreRejected, SequenceTaken):
                raise
            except BaseException:  # cancelled among them: the COPY was left half-way
                self._drop()
                raise

    async def maintain(self, now_us: int, *, interval_s: float = 0.0) -> Maintained:
        """Run a round of maintenance, unless another sidecar runs one or did within half an interval.

        It makes partitions ahead, drops what is past its days or too much, and empties the DEFAULT
        partitions. It has a connection of its own; raises as `open` does.
        """
        with explained(self.settings):
            return await maintain(self.settings, now_us, interval_s)

    async def close(self) -> None:
        """Give the connection and the node id back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _ready(self) -> Connection:
        """Return the connection; make it, and all that must be true before a write, if need be."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        node_id = self.settings.node_id
        connection = await connect(self.settings, f"sipsidecar node {node_id}")
        try:
            await _check_server(connection)
            await _notice_lost_client(connection)
            await _become_node(connection, node_id, self.settings.node_wait_s)
            await _migrate(connection)
            await make_partitions(connection, time.time_ns() // 1000, move=False)
            await self._learn_sequence(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection

    async def _learn_sequence(self, connection: Connection) -> None:
        newest = await connection.fetchval(
            "SELECT coalesce(max(sequence), -1) FROM ingest_batch WHERE node_id = $1",
            self.settings.node_id,
        )
        self.first_sequence = max(self.first_sequence, newest + 1)


# One statement per record, by its distribution column: Citus sends it to one shard.
_REPLACE = {
    "calls": "DELETE FROM calls WHERE call_id = $1 AND from_tag = $2 AND $3 = '' "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
    "attempts": "DELETE FROM attempts WHERE call_id = $1 AND from_tag = $2 AND branch = $3 "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
    "media": "DELETE FROM media WHERE call_id = $1 AND from_tag = $2 AND stream = $3 "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
    # A leg may have been stored before its Call-ID was known.
    "legs": "DELETE FROM legs WHERE call_id = ANY(ARRAY[$1, '']::text[]) AND $2 = '' "
    "AND uuid = $3 AND received_at = $4 AND node_id = $5 AND revision < $6",
    # By its index: the Call-ID that the stored row lies under is not known.
    "conversations": "DELETE FROM conversations WHERE $1 = '' AND $2 = '' AND conversation = $3 "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
    "incidents": "DELETE FROM incidents WHERE call_id = $1 AND $2 = '' AND incident = $3 "
    "AND received_at = $4 AND node_id = $5 AND revision < $6",
}


class _Batch:
    """One batch on its way into one database."""

    def __init__(
        self,
        node_id: int,
        sequence: int,
        life: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced],
    ) -> None:
        unknown = tables.keys() - TABLES.keys()
        if unknown:
            raise StoreRejected("42P01", f"no table {printable(min(unknown))}")
        self._node_id = node_id
        self._sequence = sequence
        self._life = life
        self._tables = tables
        keys = [clean_key(key) for key in replace]
        self._replace = {
            table: [key[1:] for key in keys if key.table == table] for table in _REPLACE
        }

    async def store(self, connection: Connection) -> Written:
        """Store it as it is; a refused row is an error that leaves nothing behind."""
        async with transaction(connection):
            if before := await self._claim(connection):
                return before
            for table, rows in self._tables.items():
                for part in _parts(rows):
                    await _copy(connection, table, table, rows[part])
            # After the COPY, so that two revisions of a record may be in one batch.
            for table, keys in self._replace.items():
                if keys:
                    await connection.executemany(_REPLACE[table], keys)
        return Written()

    async def salvage(self, connection: Connection) -> Written:
        """Store what can be stored, piece by piece; refused rows go to quarantine."""
        refused: dict[str, tuple[int, ...]] = {}
        quarantine: list[bytes] = []
        left_out = 0
        async with transaction(connection):
            if before := await self._claim(connection):
                return before
            search = _Search(connection)
            for table, rows in self._tables.items():
                bad, present = await search.store(table, rows)
                left_out += present
                if bad:
                    refused[table] = tuple(sorted(bad))
                quarantine += [self._refused(table, rows[n], bad[n]) for n in sorted(bad)]
            for table, keys in self._replace.items():
                for key, error in await _delete_each(connection, _REPLACE[table], keys):
                    what = f"{table}, a key to replace"
                    quarantine.append(self._refused(what, repr(key).encode(), error))
            for part in _parts(quarantine):
                await _copy(connection, "quarantine", "quarantine", quarantine[part])
            await connection.execute(
                "UPDATE ingest_batch SET left_out = $3, refused = $4 "
                "WHERE node_id = $1 AND sequence = $2",
                self._node_id,
                self._sequence,
                left_out,
                msgspec.json.encode(refused).decode() if refused else None,
            )
        return Written(left_out, refused)

    async def _claim(self, connection: Connection) -> Written | None:
        """Enter the batch in the ledger; return what became of it when it is there already."""
        fresh = await connection.fetchval(
            "INSERT INTO ingest_batch (node_id, sequence, life, rows) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING RETURNING true",
            self._node_id,
            self._sequence,
            self._life,
            sum(map(len, self._tables.values())),
        )
        if fresh:
            return None
        before = await connection.fetchrow(
            "SELECT life, left_out, refused FROM ingest_batch WHERE node_id = $1 AND sequence = $2",
            self._node_id,
            self._sequence,
        )
        if before is None:
            raise StoreUnavailable("the batch's ledger row went while it was read")
        if before["life"] != self._life:
            raise SequenceTaken(
                f"sequence {self._sequence} of node {self._node_id} is taken by an earlier batch"
            )
        refused: dict[str, tuple[int, ...]] = {}
        if before["refused"]:
            refused = msgspec.json.decode(before["refused"], type=dict[str, tuple[int, ...]])
        return Written(before["left_out"], refused)

    def _refused(self, table: str, row: bytes, error: BaseException) -> bytes:
        where = getattr(error, "context", None)
        text = f"{table}: {one_line(error)}" + (f" ({printable(where[:200])})" if where else "")
        return encode_quarantine(
            time.time_ns() // 1000,
            None,
            self._node_id,
            None,
            self._sequence,
            None,
            None,
            None,
            None,
            f"postgres-{sqlstate(error)}",
            row,
            text,
        )


class _Search:
    """Stores the good rows of a batch and finds the bad ones, by halves, within a budget."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._copies = _SALVAGE_COPIES
        self._deadline = time.monotonic() + _SALVAGE_SECONDS

    async def store(
        self, table: str, rows: Sequence[bytes]
    ) -> tuple[dict[int, BaseException], int]:
        """Return the error of each bad row by its index, and how many rows were there already."""
        bad: dict[int, BaseException] = {}
        left_out = 0
        merging = False
        pieces = deque((part.start, min(part.stop, len(rows))) for part in _parts(rows))
        while pieces:
            start, stop = pieces.popleft()
            piece = rows[start:stop]
            self._copies -= 1
            try:
                async with _savepoint(self._connection):
                    if merging:
                        left_out += len(piece) - await _merge(self._connection, table, piece)
                    else:
                        await _copy(self._connection, table, table, piece)
            except asyncpg.PostgresError as error:
                if isinstance(error, asyncpg.UniqueViolationError) and not merging:
                    merging = True
                    await self._connection.execute(
                        f"CREATE TEMP TABLE merged_{table} (LIKE {table}) ON COMMIT DROP"
                    )
                    pieces.appendleft((start, stop))
                elif not is_about_data(error):
                    raise
                elif stop - start == 1 or self._exhausted():
                    bad |= dict.fromkeys(range(start, stop), error)
                else:
                    middle = (start + stop) // 2
                    pieces += [(start, middle), (middle, stop)]
        return bad, left_out

    def _exhausted(self) -> bool:
        return self._copies <= 0 or time.monotonic() > self._deadline


@contextlib.asynccontextmanager
async def _savepoint(connection: Connection) -> AsyncIterator[None]:
    """One step of a transaction that can be undone when the server refuses it."""
    await connection.execute("SAVEPOINT step")
    try:
        yield
    except asyncpg.PostgresError:
        if not connection.is_closed():
            await connection.execute("ROLLBACK TO step; RELEASE step")
        raise
    await connection.execute("RELEASE step")


def _parts(rows: Sequence[bytes]) -> Iterator[slice]:
    """Cut rows into what one COPY takes."""
    start = size = 0
    for index, row in enumerate(rows):
        if index > start and (size + len(row) > _BYTES_PER_COPY or index - start == _ROWS_PER_COPY):
            yield slice(start, index)
            start, size = index, 0
        size += len(row)
    if start < len(rows):
        yield slice(start, len(rows))


async def _copy(connection: Connection, into: str, table: str, rows: Sequence[bytes]) -> None:
    # A buffer, not an iterator: asyncpg wraps a task around every step of an iterator, and can
    # leave a future behind that nobody looks at. And not bytes: it takes those for a file's path.
    stream: Any = memoryview(b"".join((HEADER, *rows, TRAILER)))
    status = await connection.copy_to_table(
        into, source=stream, columns=TABLES[table], format="binary"
    )
    stored = int(status.split()[-1])
    if stored != len(rows):  # a wrong length in one row took its neighbours for its own bytes
        raise asyncpg.BadCopyFileFormatError(f"{len(rows)} rows were taken for {stored}")


async def _merge(connection: Connection, table: str, rows: Sequence[bytes]) -> int:
    """COPY, but leave out rows whose key is there; return how many went in."""
    columns = ", ".join(TABLES[table])
    merged = f"merged_{table}"
    await _copy(connection, merged, table, rows)
    status = await connection.execute(
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {merged} ON CONFLICT DO NOTHING"  # noqa: S608
    )
    await connection.execute(f"TRUNCATE {merged}")
    return int(status.split()[-1])


async def _delete_each(
    connection: Connection, statement: str, keys: Sequence[tuple[Any, ...]]
) -> list[tuple[tuple[Any, ...], BaseException]]:
    """Delete by keys, all at once or else one by one; return the refused keys with their errors."""
    refused: list[tuple[tuple[Any, ...], BaseException]] = []
    for some in [keys, *([key] for key in keys)] if keys else ():
        try:
            async with _savepoint(connection):
                await connection.executemany(statement, some)
        except asyncpg.PostgresError as error:
            if not is_about_data(error):
                raise
            if some is not keys:
                refused.append((some[0], error))
        else:
            if some is keys:
                break
    return refused


async def _check_server(connection: Connection) -> None:
    version = int(await connection.fetchval("SHOW server_version_num")) // 10_000
    if version < _OLDEST_SERVER:
        raise StoreError(f"PostgreSQL {version} is too old: {_OLDEST_SERVER} or newer is needed")
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreError(f"the database's encoding is {encoding}: create it with ENCODING 'UTF8'")


async def _notice_lost_client(connection: Connection) -> None:
    """Have the server end what this connection does soon after it is dropped.

    Else its lock on the node id would outlive it for as long as a statement may wait.
    """
    with contextlib.suppress(asyncpg.PostgresError):  # some systems cannot
        await connection.execute("SET client_connection_check_interval = '500ms'")


async def _become_node(connection: Connection, node_id: int, wait_s: float) -> None:
    try:
        async with transaction(connection):  # the time limit ends with it, the lock does not
            await limit_lock_wait(connection, int(wait_s * 1000))
            await connection.execute("SELECT pg_advisory_lock($1, $2)", _NODE_LOCK, node_id)
    except asyncpg.LockNotAvailableError:
        raise StoreError(
            f"another sidecar writes to this database as node {node_id}: "
            "set node.id to a number of its own"
        ) from None


def _migrations() -> dict[int, str]:
    """Read the schema_NNN.sql files beside this module: version to statements."""
    return {
        int(file.name[7:10]): file.read_text(encoding="utf-8")
        for file in importlib.resources.files("sipsidecar.edges.postgres").iterdir()
        if re.fullmatch(r"schema_[0-9]{3}\.sql", file.name)
    }


async def _migrate(connection: Connection) -> None:
    migrations = _migrations()
    known = max(migrations)
    async with transaction(connection):
        await connection.execute("SELECT pg_advisory_xact_lock($1, 0)", _SCHEMA_LOCK)
        have = 0
        if await exists(connection, "sipsidecar_schema"):
            have = await connection.fetchval("SELECT max(version) FROM sipsidecar_schema") or 0
        if have > known:
            raise StoreError(
                f"the database has schema version {have}, this sidecar knows version {known}: "
                "start a newer sidecar, or give this one another database"
            )
        await limit_lock_wait(connection, _MIGRATION_LOCK_TIMEOUT_MS)
        for version in range(have + 1, known + 1):
            await connection.execute(migrations[version])
            await connection.execute("INSERT INTO sipsidecar_schema VALUES ($1)", version)
