import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

import asyncpg
import pytest

from sipsidecar import rows
from sipsidecar.batch import StoreRejected, StoreUnavailable, Waiting
from sipsidecar.calls.events import CallRecord
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.writer import COMPLAIN_EVERY, FIRST_PAUSE, LONGEST_PAUSE, POLL, Writer
from sipsidecar.rows import Replaced

AWAY = StoreUnavailable("connection refused")
REFUSED = StoreRejected("22021", "invalid byte sequence")
HANGS = "hangs"
WRITE_SECONDS = 0.03


class Time:
    """A clock that moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        if seconds != POLL:
            self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class ScriptedStore:
    """A store that does what it is told, then stores."""

    def __init__(self, time: Time, *script: object) -> None:
        self.time = time
        self.script = list(script)
        self.tried: list[tuple[int, dict[str, list[bytes]], list[Replaced]]] = []
        self.stored: list[tuple[int, dict[str, list[bytes]]]] = []

    async def write(
        self,
        sequence: int,
        tables: Mapping[str, Sequence[bytes]],
        replace: Sequence[Replaced] = (),
    ) -> int:
        one = {table: list(some) for table, some in tables.items()}
        self.tried.append((sequence, one, list(replace)))
        await asyncio.sleep(0)
        self.time.now += WRITE_SECONDS
        if self.script:
            told = self.script.pop(0)
            if told == HANGS:
                await asyncio.Event().wait()
            if isinstance(told, Exception):
                raise told
        self.stored.append((sequence, one))
        return 0


class Bench:
    def __init__(self, *script: object, max_rows: int = 2) -> None:
        self.time = Time()
        self.waiting = Waiting(max_rows=max_rows, max_age=0.5, max_bytes=1 << 20)
        self.store = ScriptedStore(self.time, *script)
        self.writer = Writer(self.store, self.waiting, clock=self.time, pause=self.time.pause)
        self.writer.begin(100)

    def add(self, *names: str) -> None:
        for name in names:
            self.waiting.add("calls", name.encode(), self.time.now, packets=1)

    async def run_out(self, seconds: float = 1e9) -> None:
        """Drain, with all the time in the world."""
        self.writer.drain(seconds)
        await asyncio.wait_for(self.writer.run(), 10)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 -- the writer runs on a clock of its own
        await asyncio.sleep(0)


def calls(*names: str) -> dict[str, list[bytes]]:
    return {"calls": [name.encode() for name in names]}


async def test_each_batch_has_the_next_number_and_what_is_stored_is_counted() -> None:
    bench = Bench()
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3"))]
    assert bench.waiting.stored == {"calls": 3}
    assert len(bench.waiting) == 0
    assert bench.writer.up


async def test_rows_wait_until_they_are_due() -> None:
    bench = Bench(max_rows=10)
    bench.add("1")
    task = asyncio.create_task(bench.writer.run())
    await until(lambda: bool(bench.store.stored))
    assert 1000.5 <= bench.time.now - WRITE_SECONDS < 1000.5 + 2 * POLL
    task.cancel()


async def test_what_a_batch_replaces_goes_with_it() -> None:
    bench = Bench()
    key = Replaced("calls", "a", "t", "", 1, 1, 1)
    bench.waiting.add("calls", b"new", 0.0, replaces=key)
    await bench.run_out()
    assert bench.store.tried == [(100, calls("new"), [key])]


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
    assert bench.time.pauses == [*grown, FIRST_PAUSE]


async def test_rows_that_come_while_the_database_is_away_wait_in_order() -> None:
    bench = Bench(AWAY)
    bench.add("1", "2")
    task = asyncio.create_task(bench.writer.run())
    await until(lambda: bool(bench.store.tried))
    bench.add("3", "4")
    await until(lambda: len(bench.store.stored) == 2)
    assert bench.store.stored == [(100, calls("1", "2")), (101, calls("3", "4"))]
    task.cancel()


async def test_the_writer_is_up_again_with_the_first_batch_that_works() -> None:
    bench = Bench(AWAY)
    bench.add("1")
    task = asyncio.create_task(bench.writer.run())
    await until(lambda: not bench.writer.up)
    assert bench.writer.failures == {"unavailable": 1}
    await until(lambda: bench.writer.up)
    assert bench.store.stored == [(100, calls("1"))]
    task.cancel()


async def test_refused_rows_are_counted_as_lost_and_not_tried_again() -> None:
    bench = Bench(REFUSED)
    bench.add("1", "2", "3")
    await bench.run_out()
    assert bench.store.tried == [(100, calls("1", "2"), []), (101, calls("3"), [])]
    assert bench.waiting.dropped == {("calls", "rejected"): 2}
    assert bench.waiting.packets_dropped == {("calls", "rejected"): 2}
    assert bench.waiting.stored == {"calls": 1}
    assert bench.writer.failures == {"rejected": 1}
    assert bench.time.pauses == []


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
    task = asyncio.create_task(bench.writer.run())
    await until(lambda: bool(bench.store.tried))
    bench.writer.drain(0.0)
    await asyncio.wait_for(task, 10)
    assert bench.waiting.dropped == {("calls", "database-away"): 3}
    assert len(bench.waiting) == 0


async def test_drain_begins_at_once_between_two_tries(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(*[AWAY] * 1000)
    bench.add("1", "2", "3")
    task = asyncio.create_task(bench.writer.run())
    await until(lambda: bool(bench.time.pauses))
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


async def test_calls_end_up_in_postgresql_once_though_the_first_answer_is_lost(
    database: str,
) -> None:
    """Between a commit and its answer the connection breaks: the row is there, the writer errs."""

    class Unlucky(Postgres):
        def __init__(self, settings: PostgresSettings) -> None:
            super().__init__(settings)
            self.unlucky = True

        async def write(
            self,
            sequence: int,
            tables: Mapping[str, Sequence[bytes]],
            replace: Sequence[Replaced] = (),
        ) -> int:
            left_out = await super().write(sequence, tables, replace)
            if self.unlucky:
                self.unlucky = False
                raise StoreUnavailable("connection lost")
            return left_out

    waiting = Waiting(max_rows=2, max_age=0.0, max_bytes=1 << 20)
    for number in range(5):
        record = CallRecord(
            call_id=f"{number}@test", from_tag="t", received_at=number + 1, started_at=number + 1
        )
        waiting.add("calls", rows.encode_call(record, 1), 0.0)
    store = Unlucky(PostgresSettings(dsn=database))
    await store.open()
    time = Time()
    writer = Writer(store, waiting, pause=time.pause)
    writer.begin(store.first_sequence)
    writer.drain(60.0)
    await writer.run()
    await store.close()
    assert waiting.stored == {"calls": 5}
    assert writer.failures == {"unavailable": 1}
    connection = await asyncpg.connect(database)
    try:
        found = await connection.fetch("SELECT call_id FROM calls ORDER BY 1")
        assert [row[0] for row in found] == [f"{number}@test" for number in range(5)]
        assert await connection.fetchval("SELECT count(*) FROM ingest_batch") == 3
    finally:
        await connection.close()
