"""Waiting rows to the store: one batch at a time, tried again until it is in or refused."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from sipsidecar.batch import Batch, Store, StoreRejected, StoreUnavailable, Waiting
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
        self, store: Store, waiting: Waiting, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._clock = clock
        self._sequence = 0
        self._complained = float("-inf")
        self._deadline: float | None = None
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
                await asyncio.sleep(POLL)
                continue
            batch = self._waiting.take()
            if batch is not None:
                await self._write(batch)
            elif self._deadline is not None:
                return

    def drain(self, seconds: float) -> None:
        """Let `run` write all that waits and return; after so long the rest is counted as lost."""
        self._deadline = self._clock() + seconds

    async def _write(self, batch: Batch) -> None:
        """One batch under one number, however often it has to be tried."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        tables = {table: [row.data for row in rows] for table, rows in batch.tables.items()}
        pause = FIRST_PAUSE
        while True:
            started = self._clock()
            try:
                await self._store.write(sequence, tables, batch.replaced)
            except StoreRejected as error:
                self.failures["rejected"] += 1
                self._waiting.lost("rejected")
                log.error("PostgreSQL refused a batch of %d rows: %s", batch.rows, error)  # noqa: TRY400
                return
            except StoreUnavailable as error:
                self.up = False
                self.failures["unavailable"] += 1
                self._complain(error)
                if self._deadline is not None and self._clock() + pause > self._deadline:
                    self._waiting.lost("database-away")
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if not self.up:
                    log.info("the database is back")
                self.up = True
                self.seconds.observe(self._clock() - started)
                self._waiting.done()
                return

    def _complain(self, error: StoreUnavailable) -> None:
        """First the words, then once a minute how it stands: never a line per batch."""
        now = self._clock()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            log.warning(
                "the database is away, %d rows wait in memory and are tried again: %s",
                len(self._waiting),
                error,
            )
