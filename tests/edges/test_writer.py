import asyncio
import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipsidecar import rows
from sipsidecar.batch import (
    Backlog,
    Batch,
    Row,
    SequenceTaken,
    Spooled,
    SpoolError,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Waiting,
    Written,
)
from sipsidecar.calls.events import CallRecord
from sipsidecar.edges import writer as module
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.spool import Spool
from sipsidecar.edges.writer import (
    COMPLAIN_EVERY,
    FIRST_PAUSE,
    LONGEST_PACE,
    LONGEST_PAUSE,
    POLL,
    SLOW,
    SLOW_FROM_DISK,
    SLOW_WHEN_FULL,
    STARVED,
    Writer,
)
from sipsidecar.rows import Replaced

T = TypeVar("T")

AWAY = StoreUnavailable("connection refused")
REFUSED = StoreRejected("22021", "invalid byte sequence")
TAKEN = SequenceTaken("another life has it")
HANGS = "hangs"
DISOBEYS = "disobeys"
WRITE_SECONDS = 0.03
LIFE = 77
KEY = Replaced("calls", "a", "t", "", 1, 1, 1)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs makes the clock of a test run, and that in no time."""
    monkeypatch.setattr(module, "GLANCE", 0.001)
    monkeypatch.setattr(module, "GRACE", 0.001)


class Time:
    """A clock that moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.looks: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        for look in self.looks:
            look()
        if seconds != POLL:
            self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class ScriptedStore:
    """A store that does what it is told, then stores.

    It is told: None, an exception, a `Written`, HANGS, DISOBEYS, or seconds that a write takes.
    """

    def __init__(self, time: Time, *script: object) -> None:
        self.time = time
        self.script = list(script)
        self.first_sequence = 0
        self.tried: list[tuple[int, dict[str, list[bytes]], list[Replaced]]] = []
        self.at: list[float] = []
        self.lives: list[int] = []
        self.stored: list[tuple[int, dict[str, list[bytes]]]] = []
        self.hanging = 0
        self.released = False
        self.step = 0.05
        self.look: Callable[[], None] = lambda: None

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
        *,
        life: int,
    ) -> Written:
        one = {table: list(some) for table, some in tables.items()}
        self.tried.append((sequence, one, list(replace)))
        self.lives.append(life)
        self.at.append(self.time.now)
        self.look()
        await asyncio.sleep(0)
        self.time.now += WRITE_SECONDS
        written = Written()
        if self.script:
            told = self.script.pop(0)
            if isinstance(told, Exception):
                raise told
            if isinstance(told, Written):
                written = told
            elif told is not None:
                await self.hang(told)
        self.stored.append((sequence, one))
        return written

    async def hang(self, told: object) -> None:
        end = self.time.now + told if isinstance(told, float) else float("inf")
        self.hanging += 1
        try:
            while self.time.now < end and not self.released:
                self.time.now += self.step
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    if told != DISOBEYS:
                        raise
        finally:
            self.hanging -= 1


class InlineSpool(Spool):
    """The spool without its thread, which can be told to fail."""

    failure: SpoolError | None = None
    unreadable: SpoolError | None = None

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self.report = self._folder.report()

    async def put(self, spooled: Spooled, *, make_room: bool = True) -> None:
        if self.failure is not None:
            raise self.failure
        await super().put(spooled, make_room=make_room)

    async def oldest(self) -> Spooled | None:
        if self.unreadable is not None:
            raise self.unreadable
        return await super().oldest()


class Bench:
    def __init__(
        self,
        *script: object,
        max_rows: int = 2,
        max_bytes: int = 1 << 20,
        spool: InlineSpool | None = None,
        write_ahead: bool = False,
    ) -> None:
        self.crowded = False
        self.time = Time()
        self.waiting = Waiting(max_rows=max_rows, max_age=0.5, max_bytes=max_bytes)
        self.store = ScriptedStore(self.time, *script)
        self.spool = spool
        self.writer = Writer(
            self.store,
            self.waiting,
            spool,
            life=LIFE,
            write_ahead=write_ahead,
            crowded=lambda: self.crowded,
            clock=self.time,
            pause=self.time.pause,
        )
        self.writer.begin(100)

    @property
    def on_disk(self) -> dict[str, int]:
        assert self.spool is not None
        return self.spool.report.rows

    def add(self, *names: str, table: str = "calls", replaces: Replaced | None = None) -> None:
        for name in names:
            self.waiting.add(table, name.encode(), self.time.now, packets=1, replaces=replaces)

    async def run_out(self, seconds: float = 1e9) -> None:
        """Drain, with all the time in the world."""
        self.writer.drain(seconds)
        await asyncio.wait_for(self.writer.run(), 10)

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        task = asyncio.create_task(self.writer.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, holds: Callable[[], bool], limit: float = 1000.0) -> None:
        """Let the writer run until something holds; so many seconds of its clock, at most."""
        end = self.time.now + limit
        while not holds():
            assert self.time.now < end, "waited in vain"
            await asyncio.sleep(0)

    async def for_seconds(self, seconds: float) -> None:
        end = self.time.now + seconds
        await self.until(lambda: self.time.now >= end)


@pytest.fixture
async def spool(tmp_path: Path) -> Any:
    spool = InlineSpool(tmp_path, 1, max_bytes=1 << 30, max_age_seconds=3600)
    await spool.open()
    yield spool
    await spool.close()


def calls(*names: str) -> dict[str, list[bytes]]:
    return {"calls": [name.encode() for name in names]}


async def put(spool: Spool, sequence: int, *names: str, life: int = 5, packets: int = 1) -> None:
    """A batch of an earlier life."""
    some = [Row(name.encode(), packets) for name in names]
    await spool.put(Spooled(sequence, life, Batch({"calls": some}, [])))


# -- without a spool


async def test_each_batch_has_the_next_number_and_what_is_stored_is_counted() -> None:
    bench = Bench()
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3"))]
    assert bench.store.lives == [LIFE, LIFE]
    assert bench.waiting.stored == {"calls": 3}
    assert len(bench.waiting) == 0
    assert bench.writer.up


async def test_rows_wait_until_they_are_due() -> None:
    bench = Bench(max_rows=10)
    bench.add("1")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.stored))
    assert 1000.5 <= bench.time.now - WRITE_SECONDS < 1000.5 + 3 * POLL


async def test_what_a_batch_replaces_goes_with_it() -> None:
    bench = Bench()
    bench.add("new", replaces=KEY)
    await bench.run_out()
    assert bench.store.tried == [(100, calls("new"), [KEY])]


async def test_a_batch_keeps_its_number_and_its_rows_however_often_it_is_tried() -> None:
    bench = Bench(*[AWAY] * 20)
    bench.add("1", "2", "3")
    await bench.run_out()
    assert {(sequence, str(tables)) for sequence, tables, _ in bench.store.tried[:21]} == {
        (100, str(calls("1", "2")))
    }
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3"))]
    assert bench.writer.failures == {"unavailable": 20}
    assert not bench.waiting.dropped


async def test_pauses_grow_to_the_cap_and_begin_anew_with_the_next_batch() -> None:
    bench = Bench(*[AWAY] * 8, None, AWAY)
    bench.add("1", "2", "3")
    await bench.run_out()
    grown = list(
        itertools.accumulate([FIRST_PAUSE] * 8, lambda one, _: min(one * 2, LONGEST_PAUSE))
    )
    assert grown[-1] == LONGEST_PAUSE
    assert bench.time.pauses == pytest.approx([*grown, FIRST_PAUSE])


async def test_rows_that_come_while_the_database_is_away_wait_in_order() -> None:
    bench = Bench(AWAY)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.tried))
        bench.add("3", "4")
        await bench.until(lambda: len(bench.store.stored) == 2)
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3", "4"))]


async def test_the_writer_is_up_again_with_the_first_batch_that_works() -> None:
    bench = Bench(AWAY)
    bench.add("1")
    async with bench.running():
        await bench.until(lambda: not bench.writer.up)
        assert bench.writer.failures == {"unavailable": 1}
        await bench.until(lambda: bench.writer.up)
    assert bench.store.stored == [(100, calls("1"))]


async def test_without_a_spool_a_slow_store_is_waited_for() -> None:
    bench = Bench(3 * SLOW)
    bench.store.step = 0.5
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.stored))
    assert len(bench.store.tried) == 1
    assert bench.writer.failures == {}


async def test_refused_batches_are_counted_as_lost_and_not_tried_again() -> None:
    bench = Bench(REFUSED)
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.store.tried == [(100, calls("1", "2"), []), (101, calls("3"), [])]
    assert bench.waiting.dropped == {("calls", "rejected"): 2}
    assert bench.waiting.packets_dropped == {("calls", "rejected"): 2}
    assert bench.waiting.stored == {"calls": 1}
    assert bench.writer.failures == {"rejected": 1}
    assert bench.time.pauses == []


async def test_refused_rows_of_a_stored_batch_are_counted_apart() -> None:
    bench = Bench(Written(refused={"calls": (1,)}))
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.waiting.stored == {"calls": 2}
    assert bench.waiting.refused == {"calls": 1}
    assert bench.waiting.packets_refused == {"calls": 1}


async def test_only_what_was_committed_is_in_the_write_times() -> None:
    bench = Bench(AWAY, None, REFUSED)
    bench.add("1", "2", "3")
    await bench.run_out()
    assert sum(bench.writer.seconds.counts) == 1
    assert bench.writer.seconds.total == pytest.approx(WRITE_SECONDS)


async def test_drain_stops_when_nothing_waits() -> None:
    bench = Bench()
    await bench.run_out()
    assert bench.store.tried == []


async def test_drain_waits_for_the_database_up_to_its_deadline_and_counts_the_rest_as_lost() -> (
    None
):
    bench = Bench(*[AWAY] * 1000)
    bench.add("1", "2", "3", "4", "5")
    await bench.run_out(30.0)
    assert 1030.0 <= bench.time.now < 1031.0
    assert bench.waiting.dropped == {("calls", "database-away"): 5}
    assert {sequence for sequence, _, _ in bench.store.tried} == {100}


async def test_drain_that_finds_the_database_back_in_time_loses_nothing() -> None:
    bench = Bench(*[AWAY] * 5)
    bench.add("1", "2", "3")
    await bench.run_out(30.0)
    assert bench.waiting.stored == {"calls": 3}
    assert not bench.waiting.dropped


async def test_drain_does_not_wait_for_a_database_that_does_not_answer() -> None:
    bench = Bench(HANGS)
    bench.add("1", "2", "3")
    async with bench.running() as task:
        await bench.until(lambda: bool(bench.store.tried))
        bench.writer.drain(0.0)
        await asyncio.wait_for(task, 10)
    assert bench.waiting.dropped == {("calls", "database-away"): 3}
    assert len(bench.waiting) == 0
    assert bench.store.hanging == 0


async def test_drain_begins_at_once_between_two_tries() -> None:
    bench = Bench(*[AWAY] * 1000)
    bench.add("1", "2", "3")
    async with bench.running() as task:
        await bench.until(lambda: bool(bench.time.pauses))
        bench.writer.drain(2.0)
        await asyncio.wait_for(task, 10)
    assert bench.waiting.dropped == {("calls", "database-away"): 3}
    assert bench.time.now < 1005.0


async def test_an_outage_is_told_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    minutes = 10
    tries = int(minutes * COMPLAIN_EVERY / (LONGEST_PAUSE + WRITE_SECONDS))
    bench = Bench(*[AWAY] * tries)
    bench.add("1", "2", "3")
    with caplog.at_level(logging.INFO):
        await bench.run_out()
    away = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert minutes - 1 <= len(away) <= minutes
    assert away[0].getMessage() == (
        "the database is away, 3 rows wait in memory and are tried again: connection refused"
    )
    assert [record.getMessage() for record in caplog.records if record not in away] == [
        "the database is back"
    ]


async def test_a_database_that_comes_and_goes_is_not_told_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(*[AWAY, None] * 50, max_rows=1)
    bench.add(*map(str, range(50)))
    with caplog.at_level(logging.INFO):
        await bench.run_out()
    assert len(bench.store.stored) == 50
    assert len(caplog.records) == 2


async def test_refusals_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(*[REFUSED] * 50, max_rows=1)
    bench.add(*map(str, range(50)))
    await bench.run_out()
    assert caplog.messages == ["PostgreSQL refused 1 rows: 22021: invalid byte sequence"]


async def test_an_attempt_that_cannot_be_called_off_is_left_alone() -> None:
    bench = Bench(DISOBEYS)
    bench.add("1", "2")
    async with bench.running() as task:
        await bench.until(lambda: bool(bench.store.tried))
        bench.writer.drain(0.0)
        await asyncio.wait_for(task, 10)
        assert bench.store.hanging == 1
        assert bench.waiting.dropped == {("calls", "database-away"): 2}
        bench.store.released = True
        await bench.until(lambda: not bench.store.hanging)


# -- away


async def test_a_batch_that_the_store_did_not_take_goes_to_disk_and_keeps_its_number_and_life(
    spool: InlineSpool,
) -> None:
    bench = Bench(AWAY, AWAY, AWAY, spool=spool)
    bench.add("1", "2", table="messages")
    async with bench.running():
        await bench.until(lambda: bool(bench.on_disk))
        assert len(bench.waiting) == 0
        assert bench.waiting.packets_spooled == spool.report.packets == {"messages": 2}
        assert not bench.writer.up
        await bench.until(lambda: bench.writer.up)
    assert {(one[0], str(one[1])) for one in bench.store.tried} == {
        (100, str({"messages": [b"1", b"2"]}))
    }
    assert set(bench.store.lives) == {LIFE}
    assert bench.on_disk == {}
    assert spool.report.packets_stored == {"messages": 2}
    assert bench.waiting.stored == {}


@pytest.mark.parametrize("error", [AWAY, StoreError("wrong password")])
async def test_while_the_store_is_away_batches_go_to_disk_without_an_attempt_for_each(
    spool: InlineSpool, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(*[error] * 1000, spool=spool)
    async with bench.running():
        for number in range(100):
            bench.add(str(number), "x")
            await bench.for_seconds(0.1)
    assert len(bench.store.tried) < 10
    assert {sequence for sequence, _, _ in bench.store.tried} == {100}
    assert bench.on_disk == {"calls": 200}
    assert caplog.messages == [
        f"the database is away, batches go to disk, 0 are there now: {error}"
    ]


async def test_the_store_is_tried_with_the_oldest_batch_at_growing_intervals(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 9, spool=spool)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.stored))
    gaps = [after - before for before, after in itertools.pairwise(bench.store.at)]
    grown = list(
        itertools.accumulate([FIRST_PAUSE] * 9, lambda one, _: min(one * 2, LONGEST_PAUSE))
    )
    for gap, pause in zip(gaps, grown, strict=True):
        assert pause <= gap <= pause + WRITE_SECONDS + 2 * POLL


async def test_what_is_on_disk_is_stored_oldest_first_and_in_full(
    spool: InlineSpool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(*[AWAY] * 5, spool=spool)
    with caplog.at_level(logging.INFO):
        async with bench.running():
            for number in range(8):
                bench.add(str(number), "x")
                await bench.for_seconds(0.3)
            await bench.until(lambda: bench.writer.up and not bench.on_disk)
    sequences = [sequence for sequence, _ in bench.store.stored]
    assert sequences == list(range(100, 108))
    assert caplog.messages[0].startswith("the database is away")
    assert caplog.messages[1].startswith("the database is back, ")
    assert caplog.messages[1].endswith(" batches on disk are being stored")
    assert caplog.messages[2:] == ["the spool is empty again"]


async def test_a_store_that_was_never_there_is_waited_for_from_the_start(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[StoreUnavailable("not open yet")] * 3, spool=spool)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bench.writer.failures["unavailable"] == 3)
        bench.writer.begin(5000)
        bench.writer.begin(50)
        await bench.until(lambda: not bench.on_disk and bench.writer.up)
        bench.add("3", "4")
        await bench.until(lambda: len(bench.store.stored) == 2)
    assert [sequence for sequence, _ in bench.store.stored] == [100, 5000]


async def test_in_a_long_outage_small_batches_are_put_together_and_large_ones_are_not_kept_waiting(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 10_000, spool=spool, max_rows=50)
    async with bench.running():
        bench.add("1")
        await bench.until(lambda: not bench.writer.up)
        await bench.for_seconds(1000)
        files = spool.report.batches
        for _ in range(100):
            bench.add("1")
            await bench.for_seconds(1.0)
        assert 100 / (LONGEST_PACE + 2) < spool.report.batches - files <= 100 / LONGEST_PACE + 1
        await bench.for_seconds(LONGEST_PACE + 1)
        files = spool.report.batches
        bench.add(*"x" * 50)
        await bench.for_seconds(0.2)
        assert spool.report.batches == files + 1


async def test_an_outage_that_is_there_at_the_start_is_not_taken_for_a_long_one(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 100, spool=spool)
    bench.writer.up = False
    await put(spool, 1, "old")
    async with bench.running():
        bench.add("1")
        await bench.until(lambda: bench.on_disk == {"calls": 2}, 1.0)


# -- slow


async def test_a_store_that_takes_too_long_is_called_off_and_counts_as_away(
    spool: InlineSpool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(HANGS, spool=spool)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.tried))
        started = bench.time.now
        await bench.until(lambda: bool(bench.on_disk))
        assert SLOW < bench.time.now - started < SLOW + 2
        assert bench.store.hanging == 0
        assert bench.writer.failures == {"slow": 1}
        await bench.until(lambda: bench.writer.up)
    assert bench.store.stored == [(100, calls("1", "2"))]
    assert "no answer in 10 s" in caplog.messages[0]


async def test_with_memory_half_full_a_store_has_one_second(spool: InlineSpool) -> None:
    bench = Bench(HANGS, spool=spool, max_bytes=40_000)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.tried))
        await bench.for_seconds(SLOW_WHEN_FULL + 1)
        assert not bench.on_disk
        bench.add("x" * 25_000)
        started = bench.time.now
        await bench.until(lambda: bool(bench.on_disk))
        assert bench.time.now - started < 1.0


async def test_live_batches_go_to_disk_while_the_store_takes_long_with_one_from_there(
    spool: InlineSpool,
) -> None:
    bench = Bench(AWAY, 20.0, spool=spool)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bench.store.hanging == 1)
        for number in range(10):
            bench.add(str(number), "x")
            await bench.for_seconds(0.5)
            assert len(bench.waiting) == 0
        assert bench.store.hanging == 1
        assert bench.on_disk == {"calls": 22}
        await bench.until(lambda: not bench.on_disk)
    assert [sequence for sequence, _ in bench.store.stored] == list(range(100, 111))
    assert bench.writer.failures == {"unavailable": 1}


async def test_live_batches_wait_a_while_for_one_from_disk_as_long_as_there_is_memory(
    spool: InlineSpool,
) -> None:
    await put(spool, 1, "old")
    bench = Bench(2.5 * SLOW, spool=spool, max_bytes=40_000)
    async with bench.running():
        await bench.until(lambda: bench.store.hanging == 1)
        started = bench.time.now
        bench.add("1", "2")
        await bench.until(lambda: bench.on_disk == {"calls": 3})
        assert SLOW - 0.2 < bench.time.now - started < SLOW + 1
        await bench.until(lambda: not bench.on_disk)
    assert bench.writer.failures == {}


async def test_live_batches_do_not_fill_the_memory_for_one_from_disk(spool: InlineSpool) -> None:
    await put(spool, 1, "old")
    bench = Bench(SLOW, spool=spool, max_bytes=40_000)
    async with bench.running():
        await bench.until(lambda: bench.store.hanging == 1)
        started = bench.time.now
        bench.add("x" * 25_000)
        await bench.until(lambda: bench.on_disk == {"calls": 2})
        assert bench.time.now - started < SLOW_WHEN_FULL + 0.5


async def test_a_batch_from_disk_that_needs_long_is_stored_at_last_but_not_waited_for_for_ever(
    spool: InlineSpool,
) -> None:
    bench = Bench(HANGS, HANGS, SLOW_FROM_DISK - 5, spool=spool)
    bench.store.step = 0.5
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bench.writer.failures == {"slow": 2})
        assert bench.store.at[2:] == []
        assert SLOW_FROM_DISK < bench.time.now - bench.store.at[1] < SLOW_FROM_DISK + 5
        await bench.until(lambda: bench.writer.up)
    assert bench.store.stored == [(100, calls("1", "2"))]


async def test_a_live_batch_that_the_disk_does_not_take_beside_a_slow_store_is_not_lost(
    spool: InlineSpool,
) -> None:
    await put(spool, 1, "old")
    bench = Bench(2 * SLOW, spool=spool)
    async with bench.running():
        await bench.until(lambda: bench.store.hanging == 1)
        spool.failure = SpoolError("no space left", "spool-full")
        bench.add("1", "2")
        await bench.until(lambda: len(bench.store.stored) == 2)
    assert bench.store.stored == [(1, calls("old")), (100, calls("1", "2"))]
    assert bench.writer.failures == {"spool": 1}


# -- back


async def test_live_batches_go_before_those_on_disk(spool: InlineSpool) -> None:
    for number in range(20):
        await put(spool, number, f"old {number}")
    bench = Bench(spool=spool)
    bench.add("1", "2")
    async with bench.running():
        for number in range(6):
            await bench.until(lambda: len(bench.waiting) == 0)
            bench.add(str(number), "x")
            tried = len(bench.store.tried)
            await bench.until(lambda tried=tried: len(bench.store.tried) > tried + 1)  # type: ignore[misc]
            # one from disk may have been under way
            assert max(sequence for sequence, _, _ in bench.store.tried[tried : tried + 2]) >= 100


async def test_what_is_on_disk_takes_half_of_the_time_while_anything_else_waits(
    spool: InlineSpool,
) -> None:
    for number in range(60):
        await put(spool, number, f"old {number}")
    bench = Bench(*[0.2] * 1000, spool=spool, max_rows=1000)
    started = bench.time.now
    async with bench.running():
        while bench.time.now < started + 20:
            bench.add("x")
            await bench.for_seconds(0.1)
    replayed = sum(1 for sequence, _ in bench.store.stored if sequence < 100)
    assert 0.3 < replayed * (0.2 + WRITE_SECONDS) / 20 < 0.55


async def test_what_is_on_disk_takes_all_of_the_time_while_nothing_else_waits(
    spool: InlineSpool,
) -> None:
    for number in range(20):
        await put(spool, number, f"old {number}")
    bench = Bench(*[1.0] * 1000, spool=spool)
    bench.store.step = 0.2
    started = bench.time.now
    async with bench.running():
        await bench.until(lambda: not bench.on_disk)
    assert bench.time.now - started < 25


async def test_what_is_on_disk_gets_a_turn_though_a_live_batch_is_always_due(
    spool: InlineSpool,
) -> None:
    for number in range(50):
        await put(spool, number, f"old {number}")
    bench = Bench(spool=spool)
    bench.time.looks.append(lambda: bench.add("x", "y"))
    bench.store.look = lambda: bench.add("x", "y")
    async with bench.running():
        await bench.for_seconds(10.5 * STARVED)
    replayed = sum(1 for sequence, _ in bench.store.stored if sequence < 100)
    assert 8 <= replayed <= 11


async def test_while_capture_falls_behind_what_is_on_disk_has_a_turn_a_second_and_no_more(
    spool: InlineSpool,
) -> None:
    for number in range(50):
        await put(spool, number, f"old {number}")
    bench = Bench(spool=spool)
    bench.crowded = True
    async with bench.running():
        await bench.for_seconds(10.5 * STARVED)
        assert 8 <= len(bench.store.stored) <= 11
        bench.crowded = False
        await bench.until(lambda: not bench.on_disk)


async def test_a_queue_that_fills_gets_all_of_the_store(spool: InlineSpool) -> None:
    for number in range(50):
        await put(spool, number, f"old {number}")
    bench = Bench(spool=spool, max_bytes=4000)
    bench.store.look = lambda: bench.add(*"x" * 12)
    bench.add(*"x" * 12)
    async with bench.running():
        await bench.for_seconds(10)
    assert all(sequence >= 100 for sequence, _ in bench.store.stored)


async def test_a_spool_that_cannot_be_read_does_not_stop_live_batches(
    spool: InlineSpool, caplog: pytest.LogCaptureFixture
) -> None:
    await put(spool, 1, "old")
    spool.unreadable = SpoolError("too many open files")
    bench = Bench(spool=spool)
    async with bench.running():
        await bench.for_seconds(0.1)
        bench.add("1", "2")
        await bench.until(lambda: bool(bench.store.stored))
        spool.unreadable = None
        await bench.until(lambda: len(bench.store.stored) == 2)
    assert bench.store.stored == [(100, calls("1", "2")), (1, calls("old"))]
    assert caplog.messages == ["the disk failed for a batch: too many open files"]


async def test_what_an_earlier_life_left_is_stored_under_its_number_and_life(
    spool: InlineSpool, caplog: pytest.LogCaptureFixture
) -> None:
    await put(spool, 7, "old", life=5)
    await put(spool, 400, "older", life=6)
    bench = Bench(spool=spool)
    with caplog.at_level(logging.INFO):
        async with bench.running():
            await bench.until(lambda: not bench.on_disk)
            bench.add("1", "2")
            await bench.until(lambda: len(bench.store.stored) == 3)
    assert [one[0] for one in bench.store.tried] == [7, 400, 401]
    assert bench.store.lives == [5, 6, LIFE]
    assert caplog.messages == [
        "2 batches of an earlier life are on disk, to be stored", "the spool is empty again",
    ]  # fmt: skip


async def test_refused_and_rejected_batches_from_disk_are_counted_and_go(
    spool: InlineSpool, caplog: pytest.LogCaptureFixture
) -> None:
    await put(spool, 1, "a", "b", packets=2)
    await put(spool, 2, "c", packets=4)
    bench = Bench(Written(refused={"calls": (1,)}), REFUSED, spool=spool)
    async with bench.running():
        await bench.until(lambda: not bench.on_disk)
    report = spool.report
    assert report.packets_stored == report.packets_refused == {"calls": 2}
    assert report.packets_dropped == {("calls", "rejected"): 4}
    assert bench.writer.failures == {"rejected": 1}
    assert caplog.messages == ["PostgreSQL refused 1 rows: 22021: invalid byte sequence"]


# -- what must not be overtaken


async def test_what_replaces_stored_rows_waits_behind_what_is_on_disk(
    spool: InlineSpool,
) -> None:
    await put(spool, 1, "first")
    await put(spool, 2, "second")
    bench = Bench(spool=spool, max_rows=4)
    bench.add("1", "2")
    bench.add("revised", replaces=KEY)
    bench.waiting.retract(KEY._replace(call_id="b"), bench.time.now)
    async with bench.running():
        await bench.until(lambda: len(bench.store.stored) == 4)
    tried = {sequence: (tables, replace) for sequence, tables, replace in bench.store.tried}
    assert tried[100] == (calls("1", "2"), [])
    assert tried[101] == (calls("revised"), [KEY, KEY._replace(call_id="b")])
    order = [sequence for sequence, _ in bench.store.stored]
    assert order.index(101) == 3
    assert bench.waiting.rows_spooled == {"calls": 1}


async def test_a_retraction_alone_waits_behind_what_is_on_disk(spool: InlineSpool) -> None:
    for number in range(3):
        await put(spool, number, "old")
    bench = Bench(5.0, spool=spool)
    bench.waiting.retract(KEY, bench.time.now - 1)
    async with bench.running():
        await bench.until(lambda: not bench.on_disk and len(bench.store.tried) == 4)
    assert bench.store.tried[3] == (100, {}, [KEY])


async def test_with_nothing_on_disk_replacing_rows_go_with_the_others(spool: InlineSpool) -> None:
    bench = Bench(spool=spool)
    bench.add("1")
    bench.add("revised", replaces=KEY)
    await bench.run_out()
    assert bench.store.tried == [(100, calls("1", "revised"), [KEY])]


async def test_replacing_rows_that_the_disk_does_not_take_wait_in_memory_for_their_turn(
    spool: InlineSpool,
) -> None:
    for number in range(3):
        await put(spool, number, "old")
    bench = Bench(spool=spool)
    spool.failure = SpoolError("no space left", "spool-full")
    bench.add("1")
    bench.add("revised", replaces=KEY)
    await bench.run_out(30.0)
    assert [one[0] for one in bench.store.tried] == [100, 0, 1, 2, 101]
    assert bench.store.tried[-1] == (101, calls("revised"), [KEY])
    assert bench.waiting.stored == {"calls": 2}


# -- write ahead


async def test_writing_ahead_has_every_batch_on_disk_before_it_is_stored(
    spool: InlineSpool,
) -> None:
    bench = Bench(spool=spool, write_ahead=True)
    seen = []
    bench.store.look = lambda: seen.append(dict(bench.on_disk))
    bench.add("1", "2", "3")
    await bench.run_out()
    assert seen == [{"calls": 2}, {"calls": 1}]
    assert [one[0] for one in bench.store.tried] == [100, 101]
    assert bench.on_disk == {}
    assert spool.report.rows_stored == {"calls": 3}


async def test_writing_ahead_leaves_on_disk_what_the_store_did_not_take(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 5, spool=spool, write_ahead=True)
    async with bench.running():
        bench.add("1", "2")
        await bench.until(lambda: not bench.writer.up)
        bench.add("3", "4")
        await bench.until(lambda: bench.on_disk == {"calls": 4})
        await bench.until(lambda: not bench.on_disk)
    assert [sequence for sequence, _ in bench.store.stored] == [100, 101]


async def test_writing_ahead_stores_all_the_same_when_the_disk_fails_or_is_full(
    spool: InlineSpool,
) -> None:
    bench = Bench(spool=spool, write_ahead=True)
    spool.failure = SpoolError("input/output error")
    bench.add("1", "2")
    await bench.run_out()
    assert bench.store.stored == [(100, calls("1", "2"))]
    assert bench.waiting.stored == {"calls": 2}
    assert bench.writer.failures == {"spool": 1}


async def test_writing_ahead_costs_nothing_that_is_on_a_full_disk(tmp_path: Path) -> None:
    spool = InlineSpool(tmp_path, 1, max_bytes=4096, max_age_seconds=3600)
    await spool.open()
    await put(spool, 1, "old")
    bench = Bench(spool=spool, write_ahead=True)
    bench.add("1", "2")
    await bench.run_out()
    assert bench.on_disk == {"calls": 1}
    assert spool.report.rows_dropped == {}
    assert bench.store.stored == [(100, calls("1", "2"))]
    await spool.close()


async def test_writing_ahead_lets_nothing_overtake_what_is_on_disk(spool: InlineSpool) -> None:
    await put(spool, 1, "old")
    bench = Bench(spool=spool, write_ahead=True)
    bench.add("1")
    bench.add("revised", replaces=KEY)
    await bench.run_out()
    assert bench.store.stored == [(100, calls("1"))]
    assert bench.on_disk == {"calls": 2}


async def test_writing_ahead_without_a_spool_is_writing() -> None:
    bench = Bench(write_ahead=True)
    bench.add("1")
    await bench.run_out()
    assert bench.store.stored == [(100, calls("1"))]


# -- numbers


async def test_a_batch_whose_number_is_taken_gets_one_that_is_free(spool: InlineSpool) -> None:
    bench = Bench(TAKEN, TAKEN, spool=spool)
    bench.store.first_sequence = 9000
    bench.add("1", "2", "3")
    await bench.run_out()
    assert [one[0] for one in bench.store.tried[:2]] == [100, 9000]
    assert bench.store.stored[0][1] == calls("1", "2")
    assert bench.store.stored[1][0] > bench.store.stored[0][0] > 9000
    assert bench.writer.failures == {"renumbered": 2}
    assert bench.writer.up


async def test_the_search_for_a_free_number_leaps_further_and_further() -> None:
    bench = Bench(*[TAKEN] * 30)
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.store.stored[0][0] > 100 + (1 << 29)
    assert bench.store.stored[1][0] == bench.store.stored[0][0] + 1


async def test_a_batch_on_disk_whose_number_is_taken_gets_another_and_keeps_its_life_and_place(
    spool: InlineSpool,
) -> None:
    await put(spool, 7, "old", life=5)
    await put(spool, 8, "newer", life=6)
    bench = Bench(TAKEN, spool=spool)
    bench.store.first_sequence = 9000
    async with bench.running():
        await bench.until(lambda: not bench.on_disk)
    assert [one[0] for one in bench.store.tried] == [7, 9000, 8]
    assert bench.store.lives == [5, 5, 6]
    assert bench.store.stored == [(9000, calls("old")), (8, calls("newer"))]


async def test_a_number_that_cannot_be_written_down_is_not_used(
    spool: InlineSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(spool, 7, "old", life=5)
    bench = Bench(TAKEN, TAKEN, spool=spool)
    renumber = spool.renumber

    async def fail(spooled: Spooled, sequence: int) -> Spooled:
        monkeypatch.setattr(spool, "renumber", renumber)
        raise SpoolError("read-only file system")

    monkeypatch.setattr(spool, "renumber", fail)
    async with bench.running():
        await bench.until(lambda: not bench.on_disk)
    assert [one[0] for one in bench.store.tried][:2] == [7, 7]
    assert len(bench.store.stored) == 1


# -- a disk that fails


async def test_without_store_and_disk_a_batch_waits_in_memory_for_the_store(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 4, spool=spool)
    spool.failure = SpoolError("no space left", "spool-full")
    bench.add("1", "2", "3")
    async with bench.running():
        await bench.until(lambda: len(bench.waiting) == 0)
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3"))]
    assert bench.waiting.stored == {"calls": 3}
    assert bench.writer.failures == {"unavailable": 4, "spool": 4}


async def test_without_store_and_disk_a_batch_goes_to_disk_when_that_works_again(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 1000, spool=spool)
    spool.failure = SpoolError("no space left", "spool-full")
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bench.writer.failures["spool"] > 3)
        spool.failure = None
        await bench.until(lambda: bool(bench.on_disk))
    assert len(bench.waiting) == 0


async def test_a_full_disk_with_old_batches_does_not_hide_that_the_store_is_back(
    spool: InlineSpool,
) -> None:
    await put(spool, 1, "old")
    bench = Bench(*[AWAY] * 3, spool=spool)
    spool.failure = SpoolError("no space left", "spool-full")
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: len(bench.store.stored) == 2)
    assert sorted(bench.store.stored) == [(1, calls("old")), (100, calls("1", "2"))]


# -- drain


async def test_drain_brings_everything_to_disk_at_once_after_one_failed_attempt(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 1000, spool=spool)
    bench.add(*map(str, range(20)))
    await bench.run_out(30.0)
    assert bench.time.now < 1001.0
    assert len(bench.store.tried) == 1
    assert bench.on_disk == {"calls": 20}
    assert not bench.waiting.dropped
    assert len(bench.waiting) == 0


async def test_drain_leaves_on_disk_what_is_there(spool: InlineSpool) -> None:
    await put(spool, 1, "old")
    bench = Bench(spool=spool)
    bench.add("1", "2")
    await bench.run_out(30.0)
    assert bench.store.stored == [(100, calls("1", "2"))]
    assert bench.on_disk == {"calls": 1}


async def test_drain_calls_a_hanging_attempt_with_a_batch_from_disk_off_at_once(
    spool: InlineSpool,
) -> None:
    bench = Bench(AWAY, HANGS, spool=spool)
    bench.add("1", "2")
    async with bench.running() as task:
        await bench.until(lambda: bench.store.hanging == 1)
        started = bench.time.now
        bench.writer.drain(30.0)
        await asyncio.wait_for(task, 10)
    assert bench.time.now - started < 1.0
    assert bench.on_disk == {"calls": 2}


async def test_drain_gives_a_batch_from_disk_a_moment_while_the_store_is_up(
    spool: InlineSpool,
) -> None:
    await put(spool, 1, "old")
    bench = Bench(0.5, spool=spool)
    async with bench.running() as task:
        await bench.until(lambda: bench.store.hanging == 1)
        bench.writer.drain(30.0)
        await asyncio.wait_for(task, 10)
    assert bench.on_disk == {}


async def test_giving_up_a_drain_still_brings_everything_to_disk(spool: InlineSpool) -> None:
    bench = Bench(HANGS, spool=spool)
    bench.add("1", "2", "3")
    async with bench.running() as task:
        await bench.until(lambda: bench.store.hanging == 1)
        bench.writer.drain(0.0)
        await asyncio.wait_for(task, 10)
    assert bench.on_disk == {"calls": 3}
    assert not bench.waiting.dropped


async def test_drain_loses_only_what_neither_store_nor_disk_took_in_time_and_says_why(
    spool: InlineSpool,
) -> None:
    bench = Bench(*[AWAY] * 1000, spool=spool)
    spool.failure = SpoolError("no space left", "spool-full")
    bench.add("1", "2", "3")
    await bench.run_out(30.0)
    assert 1030.0 <= bench.time.now < 1031.0
    assert bench.waiting.dropped == {("calls", "spool-full"): 3}


async def test_a_writer_that_is_cancelled_leaves_no_attempt_behind(spool: InlineSpool) -> None:
    bench = Bench(HANGS, spool=spool)
    bench.add("1", "2")
    async with bench.running():
        await bench.until(lambda: bench.store.hanging == 1)
    assert bench.store.hanging == 0


# -- any order of all of it


class Database:
    """A ledger and rows that outlive writers, and answers that may lie about what happened."""

    def __init__(self, time: Time) -> None:
        self.time = time
        self.first_sequence = 0
        self.ledger: dict[int, tuple[int, Written]] = {}
        self.rows: Counter[bytes] = Counter()
        self.refused: Counter[bytes] = Counter()
        self.moods: list[str] = []
        self.look: Callable[[], None] = lambda: None

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
        *,
        life: int,
    ) -> Written:
        self.look()
        mood = self.moods.pop(0) if self.moods else "works"
        if mood == "away":
            raise AWAY
        if mood == "hangs":
            await self.hang()
        if sequence in self.ledger:
            if self.ledger[sequence][0] != life:
                raise TAKEN
            return self.ledger[sequence][1]
        if mood == "rejects":
            raise REFUSED
        refused: dict[str, tuple[int, ...]] = {}
        if mood == "refuses":
            refused = dict.fromkeys(tables, (0,))
        written = Written(refused=refused)
        self.ledger[sequence] = life, written
        for table, some in tables.items():
            self.refused.update([some[n] for n in refused.get(table, ())])
            self.rows.update([row for n, row in enumerate(some) if n not in refused.get(table, ())])
        if mood == "lies":
            raise AWAY
        if mood == "commits and hangs":
            await self.hang()
        return written

    async def hang(self) -> None:
        while True:
            self.time.now += 1.0
            await asyncio.sleep(0.0002)


class Hours(Time):
    """The same in a hurry."""

    async def pause(self, seconds: float) -> None:
        await super().pause(max(seconds, 0.1))


class World:
    """Lives of writers on one database and one folder."""

    def __init__(self, directory: Path, *, write_ahead: bool) -> None:
        self.directory = directory
        self.write_ahead = write_ahead
        self.time = Hours()
        self.database = Database(self.time)
        self.database.look = self.check
        self.time.looks.append(self.check)
        self.added: set[bytes] = set()
        self.killed: set[bytes] = set()
        self.dropped = 0
        self.life = 0

    async def start(self) -> None:
        self.life += 1
        self.waiting = Waiting(max_rows=2, max_age=0.5, max_bytes=1 << 20)
        self.spool = InlineSpool(self.directory, 1, max_bytes=1 << 30, max_age_seconds=1e9)
        await self.spool.open()
        self.writer = Writer(
            self.database, self.waiting, self.spool, life=self.life,
            write_ahead=self.write_ahead, clock=self.time, pause=self.time.pause,
        )  # fmt: skip
        self.writer.begin(10 * (3 - self.life % 3))  # a clock that goes back and forth
        self.mine = 0
        self.task = asyncio.create_task(self.writer.run())

    def add(self, count: int, replaces: bool) -> None:
        for _ in range(count):
            name = b"%d" % len(self.added)
            self.added.add(name)
            self.mine += 2
            self.waiting.add(
                "calls" if replaces else "messages", name, self.time.now, packets=2,
                replaces=KEY if replaces else None,
            )  # fmt: skip

    def check(self) -> None:
        """Every packet is in one place, at every moment that anybody could look."""
        waiting, report = self.waiting, self.spool.report
        sides = ("waiting", "stored", "refused", "spooled", "dropped")
        assert self.mine == sum(sum(getattr(waiting, f"packets_{side}").values()) for side in sides)
        assert waiting.packets_spooled == report.packets_put
        went = (report.packets, report.packets_stored, report.packets_refused)
        gone = sum(sum(side.values()) for side in went) + sum(report.packets_dropped.values())
        came = sum(report.packets_put.values()) + sum(report.packets_inherited.values())
        assert came == gone

    async def kill(self) -> None:
        """What is in memory is gone, what is on disk is not."""
        parts = [part for part in (self.waiting._taken, self.waiting._rest) if part]
        for some in itertools.chain(
            self.waiting._tables.values(), *(part.tables.values() for part in parts)
        ):
            self.killed.update(row.data for row in some)
        await self.stop()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.dropped += sum(self.waiting.dropped.values())
        self.dropped += sum(self.spool.report.rows_dropped.values())
        await self.spool.close()

    async def wait(self, seconds: float) -> None:
        end = self.time.now + seconds
        while self.time.now < end and not self.task.done():  # noqa: ASYNC110 -- a clock of its own
            await asyncio.sleep(0)
        if self.task.done():
            self.task.result()


EVENTS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 5), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 7.0, 30.0])),
    st.tuples(
        st.just("mood"),
        st.lists(
            st.sampled_from(
                ["away", "hangs", "lies", "commits and hangs", "works", "refuses", "rejects"]
            ),
            min_size=1,
            max_size=4,
        ),
    ),
    st.tuples(st.just("kill")),
    st.tuples(st.just("disk"), st.booleans()),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(events=st.lists(EVENTS, max_size=25), write_ahead=st.booleans())
def test_every_row_is_stored_once_or_counted_and_every_packet_is_somewhere(
    events: list[tuple[Any, ...]], write_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)  # nobody pulls the plug here

    async def live(directory: Path) -> World:
        world = World(directory, write_ahead=write_ahead)
        await world.start()
        for what, *values in events:
            if what == "add":
                world.add(*values)
            elif what == "wait":
                await world.wait(*values)
            elif what == "mood":
                world.database.moods += values[0]
            elif what == "disk":
                world.spool.failure = None if values[0] else SpoolError("no space", "spool-full")
            else:
                await world.kill()
                await world.start()
        world.database.moods.clear()
        world.spool.failure = None
        for _ in range(100):
            await world.wait(3.0)
            if not (world.spool.batches or len(world.waiting)):
                break
        world.writer.drain(30.0)
        await world.wait(60.0)
        assert world.task.done()
        assert world.spool.batches == 0
        assert len(world.waiting) == 0
        world.check()
        await world.stop()
        return world

    with tempfile.TemporaryDirectory() as directory:
        world = asyncio.run(live(Path(directory)))
    stored = world.database.rows + world.database.refused
    assert set(stored.values()) <= {1}
    missing = world.added - set(stored)
    assert len(missing - world.killed) <= world.dropped <= len(missing)


# -- with PostgreSQL


def call(number: int) -> bytes:
    record = CallRecord(
        call_id=f"{number}@test", from_tag="t", received_at=number + 1, started_at=number + 1
    )
    return rows.encode_call(record, 1)


class Unlucky(Postgres):
    """Between a commit and its answer the connection breaks: the row is there, the writer errs."""

    def __init__(self, settings: PostgresSettings, times: int = 1) -> None:
        super().__init__(settings)
        self.times = times

    async def write(self, *batch: Any, life: int = 0) -> Written:
        written = await super().write(*batch, life=life)
        if self.times:
            self.times -= 1
            raise StoreUnavailable("connection lost")
        return written


async def fetch(dsn: str, sql: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@pytest.mark.parametrize("spooling", [False, True])
async def test_calls_end_up_in_postgresql_once_though_answers_are_lost(
    database: str, tmp_path: Path, spooling: bool
) -> None:
    waiting = Waiting(max_rows=2, max_age=0.0, max_bytes=1 << 20)
    for number in range(5):
        waiting.add("calls", call(number), 0.0)
    store = Unlucky(PostgresSettings(dsn=database), 2)
    await store.open()
    spool: Backlog | None = None
    if spooling:
        spool = disk = Spool(tmp_path, 1, max_bytes=1 << 20, max_age_seconds=60)
        await disk.open()
    time = Time()
    writer = Writer(store, waiting, spool, life=LIFE, clock=time, pause=time.pause)
    writer.begin(store.first_sequence)
    task = asyncio.create_task(writer.run())
    while len(waiting) or (spool is not None and spool.batches):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    writer.drain(60.0)
    await task
    await store.close()
    if spooling:
        assert disk.report.rows_stored["calls"] >= 2
        await disk.close()
    assert writer.failures == {"unavailable": 2}
    found = await fetch(database, "SELECT call_id FROM calls ORDER BY 1")
    assert found == [f"{number}@test" for number in range(5)]
    assert await fetch(database, "SELECT count(*) FROM ingest_batch") == [3]


PROCESS = """
import asyncio, random, sys, time
from pathlib import Path
from sipsidecar import rows
from sipsidecar.batch import StoreUnavailable, Waiting
from sipsidecar.calls.events import CallRecord
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.spool import Spool
from sipsidecar.edges.writer import Writer

dsn, directory, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


class Moody(Postgres):
    async def write(self, *batch, life):
        mood = random.random()
        if mood < 0.3:
            raise StoreUnavailable("away")
        written = await super().write(*batch, life=life)
        if mood < 0.5:
            raise StoreUnavailable("lost answer")
        return written


class Telling(Spool):
    async def put(self, spooled, **named):
        await super().put(spooled, **named)
        for row in spooled.batch.tables.get("calls", []):
            print(row.data[6:6 + 12].decode(), flush=True)


async def main():
    global number
    store = Moody(PostgresSettings(dsn=dsn))
    await store.open()
    spool = Telling(directory, 1, max_bytes=1 << 30, max_age_seconds=3600)
    await spool.open()
    waiting = Waiting(max_rows=20, max_age=0.01, max_bytes=1 << 24)

    async def pause(seconds):
        await asyncio.sleep(min(seconds, 0.01))

    writer = Writer(store, waiting, spool, life=random.getrandbits(63), pause=pause,
                    clock=lambda: 20 * time.monotonic(), write_ahead=number % 2 == 0)
    writer.begin(store.first_sequence)
    task = asyncio.create_task(writer.run())
    print("ready", flush=True)
    last = number + 50_000
    while number < last and not task.done():
        record = CallRecord(call_id=f"{number:012}", from_tag="t", received_at=1, started_at=1)
        waiting.add("calls", rows.encode_call(record, 1), 20 * time.monotonic())
        number += 1
        if number % 20 == 0:
            await asyncio.sleep(0.002)
    task.result()


async def finish():
    store = Postgres(PostgresSettings(dsn=dsn))
    await store.open()
    spool = Spool(directory, 1, max_bytes=1 << 30, max_age_seconds=3600)
    await spool.open()
    writer = Writer(store, Waiting(max_rows=20, max_age=0.1, max_bytes=1 << 24), spool, life=1)
    task = asyncio.create_task(writer.run())
    while spool.batches:
        await asyncio.sleep(0.01)
    writer.drain(1)
    await task
    await spool.close()
    await store.close()


asyncio.run(finish() if number < 0 else main())
"""


def test_a_writer_that_is_killed_again_and_again_stores_all_that_was_on_disk_once(
    database: str, tmp_path: Path
) -> None:
    said: set[str] = set()
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, database, tmp_path, str(life * 100_001)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == b"ready\n"
            out = process.stdout.read(13 * (50 + 200 * life))
            time.sleep(0.05 * life)
            process.send_signal(signal.SIGKILL)
            out += process.stdout.read()
        said |= {line for line in out.decode().split("\n")[:-1] if len(line) == 12}
    subprocess.run(
        [sys.executable, "-c", PROCESS, database, tmp_path, "-1"], check=True, timeout=60
    )
    found = asyncio.run(fetch(database, "SELECT call_id FROM calls"))
    assert len(found) == len(set(found))
    assert len(said) > 500
    assert said <= set(found)
    assert list(tmp_path.glob("*.pgcopy*")) == []
