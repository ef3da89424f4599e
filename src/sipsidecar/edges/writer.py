"""Waiting rows to the store, by way of the disk while the store is away: each row exactly once.

A batch goes to the store. When the store cannot take it, or takes too long, it goes to disk under
the same number: whether it was committed all the same, the store's ledger will tell. From then on
all batches go to disk, and the oldest there is what the store is tried with, at growing intervals.

Once the store is back live batches go to it again, and what is on disk follows beside them: while
no live batch is due, and never for more than half of the time. Only what puts stored rows out of
date must not overtake them: while anything is on disk, such rows go to its end.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from sipsidecar.batch import (
    Backlog,
    Batch,
    SequenceTaken,
    Spooled,
    SpoolError,
    Store,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Waiting,
    Written,
)
from sipsidecar.signals.snapshot import WRITE_BOUNDS, Histogram

POLL = 0.02
"""Seconds between looks at a queue that has no batch to give."""
GLANCE = 0.05
"""Seconds between looks at the clock while the store works."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
SLOW = 10.0
"""Seconds after which an attempt with a live batch is called off, and the store counts as away; and
for which live batches wait for one from disk before they go to disk, too."""
SLOW_WHEN_FULL = 1.0
"""The same while more than half of the memory for rows is taken."""
SLOW_FROM_DISK = 60.0
"""The same for an attempt with a batch from disk: a store needs long to find bad rows, and what it
can store at all must be stored at last."""
GRACE = 1.0
"""Seconds for a store to obey when an attempt is called off."""
STARVED = 1.0
"""Seconds without a turn after which a batch on disk goes before live ones."""
CALM = 0.25
"""Fill of the memory up to which it may."""
LONGEST_PACE = 5.0
"""Age of a small batch that goes to disk in a long outage: disks hold few files, or many bytes."""
COMPLAIN_EVERY = 60.0

log = logging.getLogger("sipsidecar.writer")


class _TooSlowError(StoreUnavailable):
    """It may be there, but capture cannot wait for it."""


class Writer:
    """The only one who takes batches."""

    def __init__(
        self,
        store: Store,
        waiting: Waiting,
        spool: Backlog | None = None,
        *,
        life: int,
        write_ahead: bool = False,
        crowded: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`crowded` tells whether capture falls behind: then what is on disk can wait."""
        self._store = store
        self._waiting = waiting
        self._spool = spool
        self._life = life
        self._write_ahead = write_ahead and spool is not None
        self._crowded = crowded
        self._clock = clock
        self._pause = pause
        self._sequence = 0
        self._leap = 1
        self._complained: dict[str, float] = {}
        self._said_away = self._said_behind = False
        self._deadline: float | None = None
        self._held: tuple[int, Batch] | None = None
        self._abandoned: set[asyncio.Future[Written]] = set()
        self._next_pause = FIRST_PAUSE
        self._away_since = 0.0
        self._try_at = self._yield_until = self._replayed_at = float("-inf")
        self.up = True
        self.seconds = Histogram(WRITE_BOUNDS)
        self.failures: Counter[str] = Counter()

    def begin(self, first_sequence: int) -> None:
        """Number batches from here or above: below are those of this node's earlier lives."""
        highest = self._spool.highest if self._spool is not None else -1
        self._sequence = max(self._sequence, first_sequence, highest + 1)

    async def run(self) -> None:
        """Write what becomes due, until `drain` was called and nothing waits any more."""
        self.begin(0)
        self._replayed_at = self._away_since = self._clock()
        if self._behind:
            self._said_behind = True
            log.info("%d batches of an earlier life are on disk, to be stored", self._on_disk)
        while True:
            if self._held is not None:
                (sequence, batch), self._held = self._held, None
                await self._settle(batch, sequence)
            elif self._deadline is None and self._turn_of_disk():
                await self._replay()
            elif self._deadline is not None or self._waiting.due(self._clock(), self._pace()):
                taken = self._waiting.take()
                if taken is not None:
                    await self._settle(taken, self._number())
                elif self._deadline is not None:
                    return
            else:
                await self._pause(POLL)

    def drain(self, seconds: float) -> None:
        """Let `run` bring all that waits to the store or to disk, and return.

        After so long what neither took is counted as lost; what is on disk stays for the next life.
        """
        self._deadline = self._clock() + seconds

    # -- one batch

    async def _settle(self, batch: Batch, sequence: int) -> None:
        """Bring the batch that was taken to the store, or to disk; it waits here for either."""
        if self._behind and batch.replaced and batch.split()[0].rows:
            batch = self._waiting.split()
        if self._write_ahead and await self._ahead(Spooled(sequence, self._life, batch)):
            return
        reason = "database-away"
        while True:
            if self._may_try(batch):
                try:
                    written = await self._try(Spooled(sequence, self._life, batch), live=True)
                except SequenceTaken:
                    sequence = self._number_anew()
                    continue
                except StoreRejected as error:
                    self._waiting.lost("rejected")
                    self._rejected(batch, error)
                    return
                except StoreError as error:
                    self._failed(error)
                else:
                    self._waiting.done(written.refused)
                    self._works()
                    return
            if self._spool is not None:
                try:
                    await self._spool.put(Spooled(sequence, self._life, batch))
                except SpoolError as error:
                    reason = error.reason
                    self._spool_failed(error)
                else:
                    self._waiting.spooled()
                    return
            left = self._left()
            if left is not None and left <= 0:
                self._waiting.lost(reason)
                return
            pause = max(self._try_at - self._clock(), POLL)
            await self._pause(pause if left is None else min(pause, left))
            if self._behind:
                await self._replay()

    async def _ahead(self, spooled: Spooled) -> bool:
        """Write to disk, then to the store; False when the disk did not take it."""
        assert self._spool is not None
        overtakes = self._behind and spooled.batch.replaced
        try:
            await self._spool.put(spooled, make_room=False)
        except SpoolError as error:
            self._spool_failed(error)
            return False
        self._waiting.spooled()
        if self.up and not overtakes:
            await self._store_spooled(spooled)
        return True

    async def _aside(self) -> None:
        """Bring a live batch to disk while the store works on one from there."""
        assert self._spool is not None
        batch = self._waiting.take()
        assert batch is not None
        sequence = self._number()
        try:
            await self._spool.put(Spooled(sequence, self._life, batch))
        except SpoolError as error:
            self._held = sequence, batch
            self._spool_failed(error)
        else:
            self._waiting.spooled()

    def _may_try(self, batch: Batch) -> bool:
        """Whether the store may be tried with a live batch now."""
        left = self._left()
        if left is not None and left <= 0:
            return False
        if self._behind:
            return self.up and not batch.replaced
        return self.up or self._spool is None or self._clock() >= self._try_at

    # -- what is on disk

    @property
    def _on_disk(self) -> int:
        return self._spool.batches if self._spool is not None else 0

    @property
    def _behind(self) -> bool:
        """Whether something is on disk that must be stored first."""
        return self._on_disk > 0

    def _turn_of_disk(self) -> bool:
        """Whether a batch from disk goes now: live ones first, but not for ever."""
        now = self._clock()
        if not self._behind or now < self._try_at:
            return False
        if self.up and now < self._yield_until and len(self._waiting):
            return False
        if not self._waiting.due(now, self._pace()) and not (self.up and self._crowded()):
            return True
        starved = now - self._replayed_at >= STARVED
        return starved and (not self.up or self._waiting.fill < CALM)

    def _pace(self) -> float:
        """Age that a small batch may reach before it goes to disk."""
        if self.up or self._write_ahead:
            return 0.0
        return min((self._clock() - self._away_since) / 100, LONGEST_PACE)

    async def _replay(self) -> None:
        """Store the oldest batch on disk; then leave the store to live ones for as long."""
        assert self._spool is not None
        started = self._clock()
        try:
            spooled = await self._spool.oldest()
        except SpoolError as error:
            self._spool_failed(error)
            self._try_at = self._clock() + LONGEST_PAUSE
            return
        if spooled is not None:
            await self._store_spooled(spooled)
        now = self._replayed_at = self._clock()
        self._yield_until = now + min(now - started, LONGEST_PAUSE)

    async def _store_spooled(self, spooled: Spooled) -> None:
        """One attempt with a batch that is on disk, and leaves it only for good."""
        assert self._spool is not None
        try:
            written = await self._try(spooled, live=False)
        except SequenceTaken:
            try:
                await self._spool.renumber(spooled, self._number_anew())
            except SpoolError as error:
                self._spool_failed(error)
                self._try_at = self._clock() + LONGEST_PAUSE
        except StoreRejected as error:
            await self._spool.lost(spooled, "rejected")
            self._rejected(spooled.batch, error)
        except StoreError as error:
            self._failed(error)
        else:
            await self._spool.done(spooled, written.refused)
            self._works()

    # -- the store

    async def _try(self, spooled: Spooled, *, live: bool) -> Written:
        """One write, called off when it takes too long; nobody knows then whether it was committed."""
        sequence, life, batch = spooled
        tables = {table: [row.data for row in rows] for table, rows in batch.tables.items()}
        started = self._clock()
        attempt = asyncio.ensure_future(
            self._store.write(sequence, tables, batch.replaced, life=life)
        )
        try:
            while not attempt.done() and not self._overdue(started, live=live):
                await asyncio.wait({attempt}, timeout=GLANCE)
                now = self._clock()
                waits = live or attempt.done() or (self.up and not self._slow(now - started))
                if not waits and self._waiting.due(now, self._pace()):
                    await self._aside()
        finally:
            await self._call_off(attempt)
        took = self._clock() - started
        if not attempt.done() or attempt.cancelled():
            raise _TooSlowError(f"no answer in {took:.0f} s")
        written = attempt.result()
        self.seconds.observe(took)
        return written

    def _overdue(self, started: float, *, live: bool) -> bool:
        took = self._clock() - started
        left = self._left()
        if left is not None and (left <= 0 or not (live or (self.up and took < SLOW_WHEN_FULL))):
            return True
        if not live:
            return took > SLOW_FROM_DISK
        return self._spool is not None and self._slow(took)

    def _slow(self, took: float) -> bool:
        """Whether live batches can wait no longer."""
        return took > SLOW or (took > SLOW_WHEN_FULL and self._waiting.fill > 0.5)

    async def _call_off(self, attempt: asyncio.Future[Written]) -> None:
        """End an attempt; one that does not obey is left alone, the ledger knows its number."""
        for _ in range(3):
            if attempt.done():
                return
            attempt.cancel()
            await asyncio.wait({attempt}, timeout=GRACE)
        if not attempt.done():
            self._abandoned.add(attempt)
            attempt.add_done_callback(self._forget)

    def _forget(self, attempt: asyncio.Future[Written]) -> None:
        self._abandoned.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()

    def _number(self) -> int:
        sequence, self._sequence = self._sequence, self._sequence + 1
        return sequence

    def _number_anew(self) -> int:
        """Leave behind the numbers of a life whose clock was ahead, by longer and longer leaps."""
        self.failures["renumbered"] += 1
        self.begin(max(self._sequence + self._leap - 1, self._store.first_sequence))
        self._leap = min(self._leap * 2, 1 << 40)
        return self._number()

    def _works(self) -> None:
        self._leap = 1
        self._reached()
        if self._said_behind and not self._behind:
            self._said_behind = False
            log.info("the spool is empty again")

    def _reached(self) -> None:
        """The store answers."""
        self.up = True
        self._next_pause = FIRST_PAUSE
        if self._said_away:
            self._said_away = False
            if self._behind:
                self._said_behind = True
                log.info("the database is back, %d batches on disk are being stored", self._on_disk)
            else:
                log.info("the database is back")

    def _rejected(self, batch: Batch, error: StoreRejected) -> None:
        self.failures["rejected"] += 1
        self._complain("rejected", f"PostgreSQL refused {batch.rows} rows: {error}")
        self._reached()

    def _failed(self, error: StoreError) -> None:
        now = self._clock()
        if self.up:
            self.up = False
            self._away_since = now
        self.failures["slow" if isinstance(error, _TooSlowError) else "unavailable"] += 1
        self._try_at = now + self._next_pause
        self._next_pause = min(self._next_pause * 2, LONGEST_PAUSE)
        if self._spool is None:
            rows = len(self._waiting)
            words = f"the database is away, {rows} rows wait in memory and are tried again"
        else:
            words = f"the database is away, batches go to disk, {self._on_disk} are there now"
        self._said_away |= self._complain("away", f"{words}: {error}")

    def _spool_failed(self, error: SpoolError) -> None:
        self.failures["spool"] += 1
        self._complain("spool", f"the disk failed for a batch: {error}")

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
