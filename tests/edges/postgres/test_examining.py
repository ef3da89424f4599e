import re
import socket
import time
from typing import Any

import msgspec
import pytest

from sipsidecar.batch import StoreError, StoreUnavailable
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.edges.postgres.examining import Examination, examine
from stored import sql, store


async def ask(dsn: str, statement: str) -> Any:
    async with sql(dsn) as connection:
        return await connection.fetchval(statement)


async def look(dsn: str, **changes: object) -> Examination:
    return await examine(msgspec.structs.replace(PostgresSettings(dsn=dsn), **changes))


async def test_an_empty_database_is_described_and_not_changed(bare_database: str) -> None:
    seen = await look(bare_database)
    assert seen.schema is None
    assert seen.schema_known >= 2
    assert seen.supported
    assert not seen.read_only
    assert seen.holder is None
    assert (seen.bytes, seen.maintained_us, seen.partitions_end_us) == (0, None, None)
    assert int(seen.version.split(".")[0]) >= 15
    assert (
        await ask(bare_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    )


async def test_a_database_in_use_tells_its_node_size_partitions_and_upkeep(database: str) -> None:
    before = time.time_ns() // 1000
    async with store(database) as opened:
        await opened.maintain(time.time_ns() // 1000)
        seen = await look(database)
        assert seen.schema == seen.schema_known
        assert seen.bytes > 8192
        assert seen.default_rows == {}
        assert seen.partitions_end_us is not None
        assert seen.partitions_end_us > before + 3_600_000_000
        assert seen.maintained_us is not None
        assert abs(seen.maintained_us - before) < 60_000_000
        assert seen.holder is not None
        assert seen.holder.application == "sipsidecar node 1"
        assert seen.holder.address is None
        assert seen.holder.since_us is not None
        assert abs(seen.holder.since_us - before) < 60_000_000
        assert (await look(database, node_id=2)).holder is None
    assert (await look(database)).holder is None


async def test_the_same_node_of_another_database_is_somebody_else(
    database: str, postgres_dsn: str
) -> None:
    async with store(database):
        assert (await look(postgres_dsn)).holder is None


async def test_rows_that_no_partition_wanted_are_counted_by_table(database: str) -> None:
    async with store(database):
        await ask(
            database,
            "INSERT INTO messages (received_at, sequence, node_id, kind, payload) "
            "SELECT '1999-01-01', n, 1, 1, '' FROM generate_series(1, 3) AS n",
        )
        assert (await look(database)).default_rows == {"messages": 3}


async def test_tables_of_a_newer_sidecar_are_left_alone(database: str) -> None:
    async with store(database):
        pass
    await ask(database, "INSERT INTO sipsidecar_schema VALUES (999)")
    await ask(database, "DROP TABLE maintenance")
    seen = await look(database)
    assert (seen.schema, seen.bytes) == (999, 0)


async def test_a_server_that_takes_no_writes_is_seen(database: str) -> None:
    name = await ask(database, "SELECT current_database()")
    await ask(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert (await look(database)).read_only


@pytest.mark.parametrize("off", [-7200.0, 0.0, 0.4, 86400.0])
async def test_the_difference_of_the_clocks_is_the_servers_less_ours(
    database: str, off: float
) -> None:
    def ours() -> int:
        return time.time_ns() - int(off * 1e9)

    seen = await examine(PostgresSettings(dsn=database), clock=ours)
    assert seen.round_trip_seconds >= 0
    assert seen.clock_ahead_seconds == pytest.approx(off, abs=seen.round_trip_seconds + 0.05)


async def test_a_database_that_is_away_is_one_line(database: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"^PostgreSQL at 127\.0\.0\.1 port 1, .*[^\n]$"):
        await look("postgresql://u:secret-word@127.0.0.1:1/d")
    with pytest.raises(StoreError, match="absent"):
        await look(re.sub(r"/test_[0-9]+\?", "/absent?", database))


async def test_a_server_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dsn = f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d"
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await examine(PostgresSettings(dsn=dsn), seconds=0.2)
        assert time.monotonic() - began < 20
