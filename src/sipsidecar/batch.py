"""Rows that wait for storage: bounded in bytes, flushed by size or age, every loss counted.

When the bound is reached raw messages go first, oldest first: a call's record is worth more than
its packets. Nothing here is cleared before it was written.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from sipsidecar.rows import Replaced

ROW_OVERHEAD = 120
"""Bytes of Python objects per waiting row, so that the bound is about memory, not payload."""
MESSAGES = "messages"


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
    """One encoded row, and how many received packets it accounts for."""

    data: bytes
    packets: int


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
        self._tables: dict[str, deque[Row]] = {}
        self._replaced: list[Replaced] = []
        self._oldest: float | None = None
        self._rows = 0
        self.bytes = 0
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
        return self.bytes + self._taken_bytes

    def waiting(self, table: str) -> int:
        """Rows of a table that are not in the database yet, those in flight included."""
        taken = len(self._taken.tables.get(table, ())) if self._taken else 0
        return len(self._tables.get(table, ())) + taken

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
        rows = self._tables.get(table)
        if rows is None:
            rows = self._tables[table] = deque()
        rows.append(Row(data, packets))
        self._rows += 1
        self.bytes += len(data) + ROW_OVERHEAD
        if replaces is not None:
            self._replaced.append(replaces)
        if self._oldest is None:
            self._oldest = now
        while self.bytes + self._taken_bytes > self._max_bytes and self._rows:
            self._shed()

    def retract(self, key: Replaced, now: float) -> None:
        """A stored row that must go when the next batch is written."""
        self._replaced.append(key)
        if self._oldest is None:
            self._oldest = now

    def due(self, now: float) -> bool:
        """Whether a batch should be taken now."""
        if self._oldest is None or self._taken is not None:
            return False
        return self._rows >= self._max_rows or now - self._oldest >= self._max_age

    def take(self) -> Batch | None:
        """Swap out at most one batch; it stays accounted for until `done` or `failed`.

        At most `max_rows` of each table: one huge COPY would stall the receiver.
        """
        if self._taken is not None or self._oldest is None:
            return None
        tables: dict[str, list[Row]] = {}
        for table, rows in self._tables.items():
            if rows:
                tables[table] = [rows.popleft() for _ in range(min(len(rows), self._max_rows))]
        self._taken = Batch(tables, self._replaced)
        self._replaced = []
        count = self._taken.rows
        self._taken_bytes = sum(
            len(row.data) + ROW_OVERHEAD for rows in tables.values() for row in rows
        )
        self.bytes -= self._taken_bytes
        self._rows -= count
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

    def _give_up(self) -> dict[str, list[Row]]:
        taken, self._taken, self._taken_bytes = self._taken, None, 0
        tables = taken.tables if taken else {}
        for table, rows in tables.items():
            self.packets_waiting[table] -= sum(row.packets for row in rows)
        return tables

    def _shed(self) -> None:
        table = MESSAGES if self._tables.get(MESSAGES) else max(self._tables, key=self._length)
        row = self._tables[table].popleft()
        self._rows -= 1
        self.bytes -= len(row.data) + ROW_OVERHEAD
        self.dropped[(table, "queue-full")] += 1
        self.packets_dropped[(table, "queue-full")] += row.packets
        self.packets_waiting[table] -= row.packets

    def _length(self, table: str) -> int:
        return len(self._tables[table])
