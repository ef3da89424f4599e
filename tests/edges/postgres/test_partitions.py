import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.batch import WORTH
from sipsidecar.edges.postgres import Maintained, Postgres
from sipsidecar.edges.postgres import partitions as keeping
from stored import (
    DAY,
    NOON,
    attempt,
    call_row,
    count,
    event_row,
    kpi_row,
    message,
    partitions,
    rows_in,
    settings_of,
    sql,
    store,
)

HOUR = DAY // 24
BY_WEEK = ["kpi_minute", "code_minute", "baseline_hours", "incidents", "events"]
BY_DAY = [table for table in rows.TABLES if table not in {"messages", *BY_WEEK}]
AHEAD = 8 + 4 * len(BY_DAY) + 3 * len(BY_WEEK)
FOREVER: dict[str, int] = {}


def real_now() -> int:
    return int(datetime.now(UTC).timestamp()) * 1_000_000


def quarantined(received_at: int, payload: bytes = b"x") -> bytes:
    return rows.encode_quarantine(
        received_at, None, 1, None, 1, None, None, None, None, "word", payload
    )


@pytest.fixture
async def empty(database: str) -> AsyncIterator[Postgres]:
    """A store whose only partitions are the DEFAULT ones, so that a test makes its own."""
    async with store(database, retention_days=FOREVER) as opened, sql(database) as connection:
        for table in rows.TABLES:
            for name in await partitions(connection, table):
                if not name.endswith("_default"):
                    await connection.execute(f"DROP TABLE {name}")
        yield opened


# --- ahead ------------------------------------------------------------------------------------


async def test_weeks_days_and_hours_around_now_are_made_ahead(
    database: str, empty: Postgres
) -> None:
    report = await empty.maintain(NOON)
    assert (report.made, report.dropped, report.postponed) == (AHEAD, 0, 0)
    async with sql(database) as connection:
        assert await partitions(connection, "messages") == [
            "messages_default",
            *(f"messages_p20260720{hour}" for hour in range(11, 19)),
        ]
        for table in BY_DAY:
            assert await partitions(connection, table) == [
                f"{table}_default",
                *(f"{table}_p202607{day}" for day in range(19, 23)),
            ]
        for table in BY_WEEK:
            assert await partitions(connection, table) == [
                f"{table}_default",
                *(f"{table}_p202607{day:02}" for day in (9, 16, 23)),
            ]
    assert (await empty.maintain(NOON + HOUR // 2)).made == 0
    assert (await empty.maintain(NOON + HOUR)).made == 1
    assert (await empty.maintain(NOON + 12 * HOUR)).made == len(BY_DAY) + 11


async def test_a_row_goes_to_the_partition_of_its_time(database: str, empty: Postgres) -> None:
    await empty.maintain(NOON)
    times = (NOON - 1, NOON, NOON + HOUR - 1, NOON + HOUR)
    await empty.write(1, {"messages": [message(received_at=at) for at in times]})
    await empty.write(2, {"calls": [call_row(received_at=at) for at in (NOON - DAY, NOON)]})
    async with sql(database) as connection:
        assert await rows_in(connection, "messages") == [
            ("messages_p2026072011", 1),
            ("messages_p2026072012", 2),
            ("messages_p2026072013", 1),
        ]
        assert await rows_in(connection, "calls") == [
            ("calls_p20260719", 1),
            ("calls_p20260720", 1),
        ]


async def test_hours_missed_while_the_database_was_away_are_made_for_what_was_spooled(
    database: str, empty: Postgres
) -> None:
    await empty.maintain(NOON)  # up to 18 o'clock
    report = await empty.maintain(NOON + 2 * DAY)
    async with sql(database) as connection:
        hours = await partitions(connection, "messages")
        assert len(hours) == 1 + 7 + 2 * 24 + 1
        assert (await partitions(connection, "calls"))[-1] == "calls_p20260724"
    assert report.postponed == 0
    await empty.maintain(NOON + 40 * DAY)
    async with sql(database) as connection:
        assert len(await partitions(connection, "messages")) == len(hours) + 96 + 7


async def test_today_has_partitions_as_soon_as_the_store_is_open(database: str) -> None:
    now = datetime.now(UTC)
    async with store(database), sql(database) as connection:
        assert f"calls_p{now:%Y%m%d}" in await partitions(connection, "calls")
        assert f"messages_p{now:%Y%m%d%H}" in await partitions(connection, "messages")


async def test_a_day_of_messages_from_the_first_version_goes_on_and_its_hours_are_not_made(
    database: str, empty: Postgres
) -> None:
    async with sql(database) as connection:
        await connection.execute(
            "CREATE TABLE messages_p20260720 PARTITION OF messages "
            "FOR VALUES FROM ('2026-07-20 00:00:00+00') TO ('2026-07-21 00:00:00+00')"
        )
        late = NOON + 11 * HOUR
        report = await empty.maintain(late)
        assert (report.made, report.postponed) == (AHEAD - 2, 0)
        await empty.write(1, {"messages": [message(received_at=late + n * HOUR) for n in (0, 1)]})
        assert await rows_in(connection, "messages") == [
            ("messages_p20260720", 1),
            ("messages_p2026072100", 1),
        ]
        keep = Postgres(settings_of(database, retention_days={"messages": 1}))
        assert (await keep.maintain(NOON + int(1.5 * DAY) - 1)).dropped == 0
        assert (await keep.maintain(NOON + int(1.5 * DAY))).dropped == 1


async def test_a_day_whose_table_is_locked_is_made_in_the_next_round(
    database: str, empty: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_DDL_LOCK_TIMEOUT_MS", 50)
    async with sql(database) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE pings_default IN ACCESS SHARE MODE")
            report = await empty.maintain(NOON)
        assert (report.made, report.postponed) == (AHEAD - 4, 4)
        report = await empty.maintain(NOON)
        assert (report.made, report.postponed) == (4, 0)


async def test_a_table_that_has_the_name_of_a_partition_is_left_alone_and_stops_nothing(
    database: str, empty: Postgres
) -> None:
    async with sql(database) as connection:
        await connection.execute("CREATE TABLE calls_p20260720 (mine text)")
        report = await empty.maintain(NOON)
        assert (report.made, report.postponed) == (AHEAD - 1, 1)
        assert await connection.fetchval("SELECT count(*) FROM calls_p20260720") == 0


async def test_a_partition_that_somebody_else_made_is_left_alone(
    database: str, empty: Postgres
) -> None:
    async with sql(database) as connection:
        await connection.execute(
            "CREATE TABLE pings_archive PARTITION OF pings "
            "FOR VALUES FROM (MINVALUE) TO ('2026-07-20 06:00:00+00')"
        )
        keep = Postgres(settings_of(database, retention_days={"pings": 1}, max_bytes=1))
        report = await keep.maintain(NOON)
        assert (report.made, report.postponed) == (AHEAD - 2, 0)
        await keep.maintain(NOON + 40 * DAY)
        assert "pings_archive" in await partitions(connection, "pings")


# --- age --------------------------------------------------------------------------------------


async def test_retention_drops_the_periods_of_each_table_by_its_own_age(
    database: str, empty: Postgres
) -> None:
    keep = Postgres(
        settings_of(database, retention_days={"calls": 3, "messages": 1, "quarantine": 0})
    )
    for day in (-6, -3, 0):
        await empty.maintain(NOON + day * DAY)
    async with sql(database) as connection:
        report = await keep.maintain(NOON)
        oldest = {table: (await partitions(connection, table))[1] for table in rows.TABLES}
    # The oldest row that must be kept is three days and one day old, at noon.
    assert oldest["calls"] == "calls_p20260717"
    assert oldest["messages"] == "messages_p2026071912"
    for table in ("quarantine", "attempts"):
        assert oldest[table] == f"{table}_p20260713"
    assert report.dropped == 4 + (8 + 2 * 72 - 31)
    assert (await keep.maintain(NOON)).dropped == 0


async def test_retention_clears_old_rows_of_the_default_partition_and_the_ledger(
    database: str,
) -> None:
    now = real_now()
    async with (
        store(database, retention_days={"calls": 30}, ledger_days=2) as opened,
        sql(database) as connection,
    ):
        old, young = now - 31 * DAY, now - 29 * DAY
        await opened.write(
            1, {"calls": [call_row("old", received_at=old), call_row("new", received_at=young)]}
        )
        await opened.write(2, {"calls": []})
        await connection.execute(
            "UPDATE ingest_batch SET committed_at = now() - interval '3 days' WHERE sequence = 1"
        )
        report = await opened.maintain(now)
        assert (report.dropped, report.deleted, report.moved) == (0, 2, 1)
        assert await connection.fetchval("SELECT string_agg(call_id, ' ') FROM calls") == "new"
        assert await connection.fetchval("SELECT max(sequence) FROM ingest_batch") == 2


# --- size -------------------------------------------------------------------------------------


async def fill(opened: Postgres, kilobytes: int = 400) -> None:
    """Give every table a partition of at least so much, and messages two, all closed by NOON."""
    early, late = NOON - 2 * DAY, NOON - 2 * DAY + HOUR
    noise = bytes((n * n * 31 + n * 17) % 251 for n in range(1021))
    packets = [message(sequence=n, received_at=early, payload=noise) for n in range(kilobytes)]
    packets += [message(sequence=n, received_at=late, payload=noise) for n in range(kilobytes)]
    await opened.maintain(early)
    await opened.write(opened.first_sequence, {"messages": packets})
    await opened.write(
        opened.first_sequence + 1,
        {
            "quarantine": [quarantined(early, noise) for _ in range(kilobytes)],
            "calls": [call_row(f"{n}", received_at=early) for n in range(kilobytes)],
            "attempts": [
                rows.encode_attempt(attempt(f"{n}", "z", received_at=early), 1)
                for n in range(kilobytes)
            ],
        },
    )


async def test_over_its_size_the_oldest_messages_go_first_and_no_more_than_needed(
    database: str, empty: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(empty)
    size = (await empty.maintain(NOON - DAY)).bytes
    assert size > 1_600_000
    keep = Postgres(settings_of(database, retention_days=FOREVER, max_bytes=size - 300_000))
    report = await keep.maintain(NOON - DAY)
    async with sql(database) as connection:
        names = await partitions(connection, "messages")
        assert "messages_p2026071812" not in names
        assert "messages_p2026071813" in names
        # Before it stood the hour that was empty: the oldest goes first, whatever is in it.
        assert "messages_p2026071811" not in names
    assert report.dropped_for_size >= 2
    assert size - 800_000 < report.bytes <= size - 300_000
    assert await count(database, "quarantine") == 400
    (line,) = [record.message for record in caplog.records if "to stay under" in record.message]
    assert line.startswith(f"{report.dropped_for_size} partitions were dropped")
    assert "messages_p2026071812" in line


async def test_the_tables_are_given_up_in_the_order_of_their_worth_and_oldest_first(
    database: str, empty: Postgres
) -> None:
    await empty.maintain(NOON)
    async with sql(database) as connection:
        gone, postponed = await keeping._shrink(connection, NOON + DAY, 1)
    assert postponed == 0
    tables = [name.rpartition("_p")[0] for name in gone]
    assert tables == sorted(tables, key=WORTH.index)
    assert set(tables) == set(WORTH)
    assert gone[:3] == [f"messages_p20260720{hour}" for hour in (11, 12, 13)]
    assert gone[-2:] == ["calls_p20260719", "calls_p20260720"]


async def test_what_is_written_to_now_is_never_dropped_for_size(
    database: str, empty: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    await empty.maintain(NOON)
    await empty.write(1, {"messages": [message()], "calls": [call_row()]})
    keep = Postgres(settings_of(database, retention_days=FOREVER, max_bytes=1))
    report = await keep.maintain(NOON)
    assert await count(database, "messages") == await count(database, "calls") == 1
    assert report.bytes > 1
    assert "with nothing closed to drop" in caplog.text
    async with sql(database) as connection:
        assert (await partitions(connection, "messages"))[1] == "messages_p2026072012"


async def test_a_reader_makes_retention_wait_for_the_next_round_and_not_for_long(
    database: str, empty: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_DDL_LOCK_TIMEOUT_MS", 50)
    await empty.maintain(NOON)
    later = NOON + 2 * DAY
    await empty.maintain(later)
    keep = Postgres(settings_of(database, retention_days={"calls": 1}, max_bytes=1))
    async with sql(database) as connection:
        async with connection.transaction():
            await connection.fetch("SELECT FROM calls UNION ALL SELECT FROM messages")
            report = await keep.maintain(later)
            assert (report.dropped, report.postponed) == (0, 2 + 49 + 3)
        report = await keep.maintain(later)
    assert (report.dropped, report.postponed) == (2, 0)


# --- several sidecars -------------------------------------------------------------------------


async def test_a_round_that_another_sidecar_runs_is_not_run_twice(
    database: str, empty: Postgres
) -> None:
    async with sql(database) as connection:
        await connection.execute("SELECT pg_advisory_lock($1, 0)", keeping._MAINTENANCE_LOCK)
        assert await empty.maintain(NOON) == Maintained(skipped=True)
        assert await count(database, "maintenance") == 0
    assert (await empty.maintain(NOON)).made == AHEAD


async def test_a_round_is_skipped_when_another_node_did_one_within_half_an_interval(
    database: str, empty: Postgres
) -> None:
    other = Postgres(settings_of(database, node_id=2, retention_days=FOREVER))
    assert not (await empty.maintain(NOON, interval_s=600)).skipped
    assert not (await empty.maintain(NOON, interval_s=600)).skipped  # its own does not count
    assert (await other.maintain(NOON, interval_s=600)) == Maintained(skipped=True)
    async with sql(database) as connection:
        await connection.execute("UPDATE maintenance SET at = at - interval '301 seconds'")
    assert not (await other.maintain(NOON, interval_s=600)).skipped


async def test_a_round_leaves_a_row_of_what_it_did_for_thirty_days(database: str) -> None:
    now = real_now()
    async with store(database) as opened, sql(database) as connection:
        report = await opened.maintain(now + 2 * HOUR)
        (row,) = await connection.fetch("SELECT * FROM maintenance")
        assert (row["node_id"], row["made"]) == (1, report.made)
        assert report.made >= 2
        # Its own row was not there yet when the size was taken.
        assert row["bytes"] == report.bytes > 100_000
        assert row["seconds"] > 0
        await connection.execute("UPDATE maintenance SET at = $1", now - 29 * DAY)
        await opened.maintain(now)
        assert await count(database, "maintenance") == 2
        await opened.maintain(now + DAY + HOUR)
        assert await connection.fetchval("SELECT count(*) FROM maintenance WHERE at < $1", now) == 0


async def test_two_sidecars_write_and_maintain_at_once_without_deadlock_or_loss(
    database: str,
) -> None:
    async with (
        store(database, retention_days={"messages": 1}, max_bytes=1) as one,
        store(database, node_id=2, retention_days={"messages": 1}, max_bytes=1) as two,
        sql(database) as connection,
    ):
        now = real_now()
        done = asyncio.Event()

        async def write(opened: Postgres, node_id: int) -> None:
            for n in range(60):
                batch: dict[str, Any] = {
                    "messages": [
                        message(sequence=n, node_id=node_id, received_at=at)
                        for at in [now] * 50 + [now + n * DAY]
                    ],
                    "calls": [call_row(f"{node_id}-{n}", received_at=now)],
                }
                await opened.write(opened.first_sequence + n, batch)
            done.set()

        async def maintain(opened: Postgres) -> list[Maintained]:
            rounds = []
            while not done.is_set():
                rounds.append(await opened.maintain(now))
            return rounds

        _, _, first, second = await asyncio.gather(
            write(one, 1), write(two, 2), maintain(one), maintain(two)
        )
        rounds = first + second
        assert any(report.skipped for report in rounds)
        assert sum(report.moved for report in rounds) > 0
        ran = await connection.fetchval("SELECT count(*) FROM maintenance")
        assert ran == sum(not report.skipped for report in rounds)
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.fetchval(deadlocks) == 0
        assert await count(database, "messages") == 2 * 60 * 51
        assert await count(database, "calls") == 2 * 60


# --- DEFAULT ----------------------------------------------------------------------------------


async def test_rows_that_waited_in_default_partitions_get_partitions_of_their_own(
    database: str, empty: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    strange = [NOON - 300 * DAY, NOON + 9 * DAY, rows.TIME_MAX]
    await empty.maintain(NOON)
    await empty.write(
        1,
        {
            "calls": [call_row(f"{n}", received_at=at) for n, at in enumerate(strange)],
            "messages": [message(received_at=at) for at in [*strange, NOON - 5 * HOUR, NOON]],
        },
    )
    report = await empty.maintain(NOON)
    assert report.default_rows == {"calls": 3, "messages": 4}
    assert (report.made, report.moved, report.default_left) == (7, 7, 0)
    async with sql(database) as connection:
        assert await rows_in(connection, "messages") == [
            ("messages_p2025092312", 1),
            ("messages_p2026072007", 1),
            ("messages_p2026072012", 1),
            ("messages_p2026072912", 1),
            ("messages_p2200010100", 1),
        ]
        assert len(await rows_in(connection, "calls")) == 3
        assert await connection.fetchval("SELECT max(default_rows) FROM maintenance") == 7
    (line,) = [record.message for record in caplog.records if "DEFAULT" in record.message]
    assert "calls 3" in line
    assert "7 moved, 0 left" in line
    assert (await empty.maintain(NOON)).default_rows == {}


async def test_rows_of_weeks_are_moved_to_the_week_that_holds_them(
    database: str, empty: Postgres
) -> None:
    await empty.maintain(NOON)  # a Monday; weeks begin on Thursdays, as 1970 did
    thursday = NOON // DAY * DAY - 4 * DAY
    times = [thursday - 30 * DAY - 1, thursday - 1, thursday, thursday + 7 * DAY - 1]
    rows_of = [kpi_row(at - 60_250_000) for at in times]
    await empty.write(1, {"kpi_minute": rows_of, "events": [event_row("e", NOON + 30 * DAY)]})
    report = await empty.maintain(NOON)
    assert (report.made, report.moved, report.default_left) == (2, 2, 0)
    async with sql(database) as connection:
        assert await rows_in(connection, "kpi_minute") == [
            ("kpi_minute_p20260611", 1),
            ("kpi_minute_p20260709", 1),
            ("kpi_minute_p20260716", 2),
        ]
        assert await rows_in(connection, "events") == [("events_p20260813", 1)]
    keep = Postgres(settings_of(database, retention_days={"kpi_minute": 3}))
    late = thursday + 10 * DAY - 1
    assert (await keep.maintain(late)).dropped == 2
    assert (await keep.maintain(late + 1)).dropped == 1
    assert await count(database, "kpi_minute") == 0


async def test_rows_of_the_default_partition_past_their_retention_go_and_get_no_partition(
    database: str, empty: Postgres
) -> None:
    keep = Postgres(settings_of(database, retention_days={"calls": 3}))
    await empty.maintain(NOON)
    times = (NOON - 10 * DAY, NOON - 3 * DAY - 1, NOON - 3 * DAY)
    await empty.write(1, {"calls": [call_row(f"{at}", received_at=at) for at in times]})
    report = await keep.maintain(NOON)
    assert (report.deleted, report.moved, report.made, report.default_left) == (2, 1, 1, 0)
    async with sql(database) as connection:
        assert await rows_in(connection, "calls") == [("calls_p20260717", 1)]


async def test_a_round_repairs_at_most_64_periods_and_the_next_ones_the_rest(
    database: str, empty: Postgres
) -> None:
    await empty.maintain(NOON)
    many = [call_row(f"{n}", received_at=NOON + n * 10 * DAY) for n in range(1, 71)]
    await empty.write(1, {"calls": many})
    first = await empty.maintain(NOON)
    assert (first.made, first.default_left) == (64, 6)
    second = await empty.maintain(NOON)
    assert (second.made, second.default_rows, second.default_left) == (6, {"calls": 6}, 0)


async def test_a_time_that_no_partition_can_have_stays_in_the_default_one(
    database: str, empty: Postgres
) -> None:
    async with sql(database) as connection:
        for at in ("infinity", "-infinity", "200000-01-01 00:00:00+00", "0044-03-15 BC"):
            await connection.execute(
                f"INSERT INTO pings (call_id, cseq, received_at, started_at, node_id) "  # noqa: S608
                f"VALUES ('a', 1, '{at}', now(), 1)"
            )
    report = await empty.maintain(NOON)
    assert (report.default_rows, report.default_left, report.moved) == ({"pings": 4}, 4, 0)


async def test_opening_moves_no_rows_and_cannot_fail_for_their_number(
    database: str, empty: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = real_now()
    await empty.write(1, {"calls": [call_row(received_at=now)]})
    async with sql(database) as connection:
        for limit in (5, 0.000_001):
            monkeypatch.setattr(keeping, "_START_STATEMENT_SECONDS", limit)
            empty._drop()
            await empty.write(2, {"messages": [message(received_at=now)]})
            assert (await rows_in(connection, "calls"))[0][0] == "calls_default"
        assert (await rows_in(connection, "messages"))[0][0] != "messages_default"
        report = await empty.maintain(now)
        assert (report.moved, report.default_left) == (1, 0)


async def test_a_move_that_takes_too_long_is_left_for_the_next_round(
    database: str, empty: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await empty.write(1, {"calls": [call_row(f"{n}") for n in range(2000)]})
    async with sql(database) as connection:
        await connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(1); RETURN OLD; END $$; CREATE TRIGGER slow "
            "BEFORE DELETE ON calls_default FOR EACH ROW EXECUTE FUNCTION slow()"
        )
        monkeypatch.setattr(keeping, "_ROUND_STATEMENT_SECONDS", 0.3)
        report = await empty.maintain(NOON)
        assert (report.moved, report.postponed, report.default_left) == (0, 4, 2000)
        await connection.execute("DROP TRIGGER slow ON calls_default")
        assert (await empty.maintain(NOON)).moved == 2000


async def test_rows_move_while_more_of_the_same_hour_arrive(database: str, empty: Postgres) -> None:
    await empty.write(0, {"messages": [message()] * 2000})
    done = asyncio.Event()

    async def write() -> None:
        sequence = 1
        while not done.is_set():
            await empty.write(sequence, {"messages": [message(sequence=sequence)]})
            sequence += 1

    writing = asyncio.create_task(write())
    keep = Postgres(settings_of(database, retention_days=FOREVER))
    report = await keep.maintain(NOON)
    done.set()
    await writing
    assert report.postponed == 0
    assert report.moved >= 2000
    assert await count(database, "messages_default") == 0
