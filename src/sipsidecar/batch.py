"""Rows that wait for storage: bounded in bytes, flushed by size or age, every loss counted.

When the bound is reached raw messages go first, oldest first: a call's record is worth more than
its packets. Nothing here is cleared before it was written.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from sipsidecar.rows import Replaced

WORTH = ("messages", "quarantine", "pings", "registrations", "attempts", "calls")
"""The tables, what is worth least first: the order in which rows are given up for room."""
ROW_OVERHEAD = 120
"""Bytes of Python objects per waiting row, so that the bound is about memory, not payload."""
KEY_OVERHEAD = 600
"""The same for the key of a row to replace."""
LOSSES = ("queue-full", "rejected", "database-away")
"""Why rows are lost: no room, PostgreSQL refused them, it stayed away until the end."""


class StoreError(Exception):
    """Storing cannot begin until somebody changes something; the text is one line for them."""


class StoreUnavailable(StoreError):
    """The database cannot be used now: the same batch may be sent again later."""


class StoreRejected(StoreError):
    """PostgreSQL refused the data of this batch, and would again."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate}: {message}")
        self.sqlstate = sqlstate


class Store(Protocol):
    """What a storage is: each sequence is stored once, whole or not at all."""

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
    ) -> int:
        """Store encoded rows by table; StoreUnavailable, StoreRejected, and no third kind."""


class Row(NamedTuple):
    """One encoded row, how many received packets it accounts for, and what it puts out of date."""

    data: bytes
    """Empty for a bare retraction."""
    packets: int
    replaces: Replaced | None = None

    @property
    def size(self) -> int:
        """Bytes of memory it takes."""
        return len(self.data) + ROW_OVERHEAD + (KEY_OVERHEAD if self.replaces else 0)


class Batch(NamedTuple):
    """Rows taken together to one transaction."""

    tables: dict[str, list[Row]]
    replaced: list[Replaced]

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(len(rows) for rows in self.tables.values())


class Waiting:
    """Encoded rows by table, in order of arrival."""

    def __init__(self, *, max_rows: int, max_age: float, max_bytes: int) -> None:
        self._max_rows = max_rows
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._tables: dict[str, deque[Row]] = {table: deque() for table in WORTH}
        self._oldest: float | None = None
        self._rows = 0
        self._bytes = 0
        self._taken: Batch | None = None
        self._taken_bytes = 0
        self.added: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.packets_waiting: Counter[str] = Counter()
        self.packets_stored: Counter[str] = Counter()
        self.packets_dropped: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return self._rows + (self._taken.rows if self._taken else 0)

    @property
    def total_bytes(self) -> int:
        """Memory that waiting rows take, those in flight included."""
        return self._bytes + self._taken_bytes

    def waiting(self, table: str) -> int:
        """Rows of a table that are not in the database yet, those in flight included."""
        taken = self._taken.tables.get(table, ()) if self._taken else ()
        return sum(1 for row in self._tables[table] if row.data) + len(taken)

    def add(
        self,
        table: str,
        data: bytes,
        now: float,
        packets: int = 0,
        replaces: Replaced | None = None,
    ) -> None:
        """One encoded row; makes room by dropping what is worth least."""
        self.added[table] += 1
        self.packets_waiting[table] += packets
        self._append(table, Row(data, packets, replaces), now)

    def retract(self, key: Replaced, now: float) -> None:
        """A stored row that must go, after what was added before and before what comes after."""
        self._append(key.table, Row(b"", 0, key), now)

    def due(self, now: float) -> bool:
        """Whether a batch should be taken now."""
        if self._oldest is None or self._taken is not None:
            return False
        full = self._rows >= self._max_rows or self._bytes >= self._max_bytes // 4
        return full or now - self._oldest >= self._max_age

    def take(self) -> Batch | None:
        """Swap out at most one batch; it stays accounted for until `done` or `lost`.

        At most `max_rows` of each table, and about a quarter of the bytes: one huge COPY would
        stall the receiver, and what is in flight cannot make room. What is worth most goes first.
        """
        if self._taken is not None or self._oldest is None:
            return None
        tables: dict[str, list[Row]] = {}
        replaced: list[Replaced] = []
        taken = 0
        for table, waiting in reversed(self._tables.items()):
            rows: list[Row] = []
            for _ in range(min(len(waiting), self._max_rows)):
                if taken >= self._max_bytes // 4:
                    break
                row = waiting.popleft()
                taken += row.size
                self._rows -= 1
                if row.data:
                    rows.append(row)
                if row.replaces:
                    replaced.append(row.replaces)
            if rows:
                tables[table] = rows
        self._bytes -= taken
        self._taken, self._taken_bytes = Batch(tables, replaced), taken
        if not self._rows:
            self._oldest = None
        return self._taken

    def done(self) -> None:
        """The batch that was taken is in the database."""
        for table, rows in self._give_up().items():
            self.stored[table] += len(rows)
            self.packets_stored[table] += sum(row.packets for row in rows)

    def lost(self, reason: str) -> None:
        """The batch that was taken will never be written."""
        for table, rows in self._give_up().items():
            self.dropped[(table, reason)] += len(rows)
            self.packets_dropped[(table, reason)] += sum(row.packets for row in rows)

    def _append(self, table: str, row: Row, now: float) -> None:
        self._tables[table].append(row)
        self._rows += 1
        self._bytes += row.size
        if self._oldest is None:
            self._oldest = now
        while self._bytes + self._taken_bytes > self._max_bytes and self._rows:
            self._shed()

    def _give_up(self) -> dict[str, list[Row]]:
        taken, self._taken, self._taken_bytes = self._taken, None, 0
        tables = taken.tables if taken else {}
        for table, rows in tables.items():
            self.packets_waiting[table] -= sum(row.packets for row in rows)
        return tables

    def _shed(self) -> None:
        table = next(table for table, rows in self._tables.items() if rows)
        row = self._tables[table].popleft()
        self._rows -= 1
        self._bytes -= row.size
        if not self._rows:
            self._oldest = None
        if row.data:
            self.dropped[(table, "queue-full")] += 1
            self.packets_dropped[(table, "queue-full")] += row.packets
            self.packets_waiting[table] -= row.packets
