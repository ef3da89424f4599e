"""Rows that wait for storage: bounded in bytes, flushed by size or age, every loss counted.

When the bound is reached raw messages go first, oldest first: a call's record is worth more than
its packets. Nothing here is cleared before it was written.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from sipsidecar.rows import Replaced

WORTH = (
    "messages", "quality_intervals", "quarantine", "pings", "registrations", "media",
    "code_minute", "kpi_minute", "admissions", "attempts", "conversations", "legs", "outcomes",
    "baseline_hours", "admission_states", "events", "incidents", "calls",
)  # fmt: skip
"""The tables, what is worth least first: the order in which rows are given up for room.

What `quality_intervals` says over time, `media` says in sum; `conversations` can be put together
from `legs`; what `kpi_minute` and `code_minute` say can be added up again from what comes after
them, as long as that is kept. Of a refusal the Reason in `calls` still names the rule. Outcomes of
calls, what is normal, changes of rules' states, events and incidents are few, and said nowhere else.
"""
ROW_OVERHEAD = 120
"""Bytes of Python objects per waiting row, so that the bound is about memory, not payload."""
KEY_OVERHEAD = 600
"""The same for the key of a row to replace."""
LOSSES = (
    "queue-full", "memory", "rejected", "database-away",
    "spool-full", "spool-expired", "spool-corrupt", "spool-error",
)  # fmt: skip
"""Why rows are lost.

No room, no room because memory is short, PostgreSQL refused them, it stayed away until the end; on
disk: no room, too old, damaged, could not be written.
"""


class StoreError(Exception):
    """Storing cannot begin until somebody changes something; the text is one line for them."""


class StoreUnavailable(StoreError):
    """The database cannot be used now: the same batch may be sent again later."""


class StoreRejected(StoreError):
    """PostgreSQL refused the data of this batch, and would again."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate}: {message}")
        self.sqlstate = sqlstate


class SequenceTaken(StoreError):
    """The ledger has this sequence for a batch of another life: number the batch anew."""


class Written(msgspec.Struct, frozen=True):
    """What became of the rows of a batch that was committed; those not named here are stored."""

    left_out: int = 0
    """Rows that were there already."""
    refused: dict[str, tuple[int, ...]] = {}
    """Indexes by table of the rows that PostgreSQL refused: they are in `quarantine` now."""


class Store(Protocol):
    """What a storage is: each batch is stored once, whole or not at all."""

    @property
    def first_sequence(self) -> int:
        """The lowest batch sequence that is free for this node, as far as is known."""

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
        *,
        life: int,
    ) -> Written:
        """Store encoded rows by table; raises StoreError or one of its kinds, and nothing else.

        `life` is a number of 63 bits that only the process has that made the batch: the same
        sequence and life again is a batch that is stored already, which changes nothing.
        """


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

    def split(self) -> tuple["Batch", "Batch"]:
        """What only adds rows, and what puts stored ones out of date."""
        parts = [
            {
                table: some
                for table, rows in self.tables.items()
                if (some := [row for row in rows if bool(row.replaces) is replaces])
            }
            for replaces in (False, True)
        ]
        return Batch(parts[0], []), Batch(parts[1], self.replaced)


class Spooled(NamedTuple):
    """A batch that is on disk, under the number and the life that it was made with."""

    sequence: int
    life: int
    batch: Batch


class SpoolError(Exception):
    """The disk does not take or give a batch; one line for people, and the reason of a loss."""

    def __init__(self, message: str, reason: str = "spool-error") -> None:
        super().__init__(message)
        self.reason = reason


class Backlog(Protocol):
    """What a spool is: batches in order, which outlive the process, until the store has them.

    One call at a time. What a call counts is to be seen only when it returns, at once.
    """

    @property
    def batches(self) -> int:
        """How many it holds."""

    @property
    def highest(self) -> int:
        """The highest sequence it has seen; -1 for none."""

    async def put(self, spooled: Spooled, *, make_room: bool = True) -> None:
        """Take over a batch, as its newest; for want of room the least worth goes, and is counted.

        SpoolError when it takes nothing of it: then the batch is still the caller's. Without
        `make_room` it takes all of the batch, at nothing else's cost, or nothing.
        """

    async def oldest(self) -> Spooled | None:
        """Read what must be stored first; None when there is nothing (any more)."""

    async def renumber(self, spooled: Spooled, sequence: int) -> Spooled:
        """Give a batch another sequence, for good; it keeps its place."""

    async def done(self, spooled: Spooled, refused: Mapping[str, Sequence[int]]) -> None:
        """Let go of a batch that is in the database, but for the refused rows."""

    async def lost(self, spooled: Spooled, reason: str) -> None:
        """Let go of a batch that will never be written."""


class Waiting:
    """Encoded rows by table, in order of arrival."""

    def __init__(self, *, max_rows: int, max_age: float, max_bytes: int) -> None:
        self._max_rows = max_rows
        self._max_age = max_age
        self._max_bytes = self._full_bytes = max_bytes
        self._tables: dict[str, deque[Row]] = {table: deque() for table in WORTH}
        self._oldest: float | None = None
        self._rows = 0
        self._bytes = 0
        self._taken: Batch | None = None
        self._rest: Batch | None = None
        self._taken_bytes = 0
        self.added: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.rows_spooled: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.packets_waiting: Counter[str] = Counter()
        self.packets_stored: Counter[str] = Counter()
        self.packets_refused: Counter[str] = Counter()
        self.packets_spooled: Counter[str] = Counter()
        self.packets_dropped: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return self._rows + sum(part.rows for part in (self._taken, self._rest) if part)

    @property
    def total_bytes(self) -> int:
        """Memory that waiting rows take, those in flight included."""
        return self._bytes + self._taken_bytes

    def waiting(self, table: str) -> int:
        """Rows of a table that are not in the database yet, those in flight included."""
        parts = [part.tables.get(table, ()) for part in (self._taken, self._rest) if part]
        return sum(1 for row in self._tables[table] if row.data) + sum(map(len, parts))

    @property
    def fill(self) -> float:
        """How much of the bytes that may wait are taken: 1 is full."""
        return self.total_bytes / self._max_bytes

    def limit(self, max_bytes: int) -> None:
        """Hold fewer bytes while memory is short, at most what it was made for; drops what is over."""
        self._max_bytes = max(1, min(max_bytes, self._full_bytes))
        self._make_room()

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

    def due(self, now: float, patience: float = 0.0) -> bool:
        """Whether a batch should be taken now; `patience` is an age that small ones may reach."""
        if self._taken is not None:
            return False
        if self._rest is not None:
            return True
        if self._oldest is None:
            return False
        full = self._rows >= self._max_rows or self._bytes >= self._max_bytes // 4
        return full or now - self._oldest >= max(self._max_age, patience)

    def take(self) -> Batch | None:
        """Swap out at most one batch; it stays accounted for until `done`, `spooled` or `lost`.

        At most `max_rows` of each table, and about a quarter of the bytes: one huge COPY would
        stall the receiver, and what is in flight cannot make room. What is worth most goes first.
        """
        if self._taken is not None:
            return None
        if self._rest is not None:
            self._taken, self._rest = self._rest, None
            return self._taken
        if self._oldest is None:
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

    def split(self) -> Batch:
        """Narrow the batch that was taken to what only adds rows; the next `take` gives the rest."""
        assert self._taken is not None
        assert self._rest is None
        self._taken, rest = self._taken.split()
        self._rest = rest if rest.tables or rest.replaced else None
        return self._taken

    def done(self, refused: Mapping[str, Sequence[int]] | None = None) -> None:
        """The batch that was taken is in the database, its refused rows (indexes) in quarantine."""
        for table, rows in self._give_up().items():
            self.stored[table] += len(rows)
            self.packets_stored[table] += sum(row.packets for row in rows)
            if refused and table in refused:
                out = [rows[index] for index in refused[table]]
                packets = sum(row.packets for row in out)
                self.stored[table] -= len(out)
                self.packets_stored[table] -= packets
                self.refused[table] += len(out)
                self.packets_refused[table] += packets

    def spooled(self) -> None:
        """The batch that was taken is on disk now: it waits no longer, but is not stored either."""
        for table, rows in self._give_up().items():
            self.rows_spooled[table] += len(rows)
            self.packets_spooled[table] += sum(row.packets for row in rows)

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
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes + self._taken_bytes > self._max_bytes and self._rows:
            self._shed()

    def _give_up(self) -> dict[str, list[Row]]:
        taken, self._taken = self._taken, None
        if self._rest is None:
            self._taken_bytes = 0
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
            reason = "memory" if self._max_bytes < self._full_bytes else "queue-full"
            self.dropped[(table, reason)] += 1
            self.packets_dropped[(table, reason)] += row.packets
            self.packets_waiting[table] -= row.packets
