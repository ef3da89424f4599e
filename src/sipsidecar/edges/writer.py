"""Waiting rows to the store: one batch at a time, tried again until it is in or refused."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from sipsidecar.batch import Batch, Store, StoreRejected, StoreUnavailable, Waiting
from sipsidecar.rows import Replaced
from sipsidecar.signals.snapshot import WRITE_BOUNDS, Histogram

POLL = 0.02
"""Seconds between looks at a queue that has no batch to give."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
COMPLAIN_EVERY = 60.0

log = logging.getLogger("sipsidecar.writer")


class Writer:
    """The only one who takes batches."""

    def __init__(
        self,
        store: Store,
        waiting: Waiting,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._clock = clock
        self._pause = pause
        self._sequence = 0
        self._complained: dict[str, float] = {}
        self._said_away = False
        self._deadline: float | None = None
        self._attempt: asyncio.Timeout | None = None
        self.up = True
        self.seconds = Histogram(WRITE_BOUNDS)
        self.failures: Counter[str] = Counter()

    def begin(self, first_sequence: int) -> None:
        """Number batches from here: below are those of this node's earlier lives."""
        self._sequence = first_sequence

    async def run(self) -> None:
        """Write what becomes due, until `drain` was called and nothing waits any more."""
        while True:
            if self._deadline is None and not self._waiting.due(self._clock()):
                await self._pause(POLL)
                continue
            batch = self._waiting.take()
            if batch is not None:
                await self._write(batch)
            elif self._deadline is not None:
                return

    def drain(self, seconds: float) -> None:
        """Let `run` write all that waits and return; after so long the rest is counted as lost."""
        self._deadline = self._clock() + seconds
        if self._attempt is not None:
            self._attempt.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _write(self, batch: Batch) -> None:
        """One batch under one number, however often it has to be tried."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        tables = {table: [row.data for row in rows] for table, rows in batch.tables.items()}
        pause = FIRST_PAUSE
        while (left := self._left()) is None or left > 0:
            started = self._clock()
            try:
                await self._try(sequence, tables, batch.replaced, left)
            except StoreRejected as error:
                self.failures["rejected"] += 1
                self._waiting.lost("rejected")
                self._complain("rejected", f"PostgreSQL refused {batch.rows} rows: {error}")
                return
            except (StoreUnavailable, TimeoutError) as error:
                self.up = False
                self.failures["unavailable"] += 1
                rows = len(self._waiting)
                words = f"the database is away, {rows} rows wait in memory and are tried again"
                self._said_away |= self._complain(
                    "away", f"{words}: {str(error) or 'no answer in time'}"
                )
                left = self._left()
                await self._pause(pause if left is None else max(min(pause, left), 0))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.up = True
                if self._said_away:
                    self._said_away = False
                    log.info("the database is back")
                self.seconds.observe(self._clock() - started)
                self._waiting.done()
                return
        self._waiting.lost("database-away")

    async def _try(
        self,
        sequence: int,
        tables: dict[str, list[bytes]],
        replaced: list[Replaced],
        left: float | None,
    ) -> None:
        """One write, which `drain` can still give a deadline; TimeoutError when that is over."""
        self._attempt = limit = asyncio.timeout(left)
        try:
            async with limit:
                await self._store.write(sequence, tables, replaced)
        finally:
            self._attempt = None

    def _left(self) -> float | None:
        """Seconds until the rest is given up; None while nobody wants to stop."""
        return None if self._deadline is None else self._deadline - self._clock()

    def _complain(self, kind: str, words: str) -> bool:
        """Say it once, then once a minute how it stands: never a line per batch."""
        now = self._clock()
        if now - self._complained.get(kind, float("-inf")) < COMPLAIN_EVERY:
            return False
        self._complained[kind] = now
        log.warning("%s", words)
        return True
