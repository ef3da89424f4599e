import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import asyncpg
import pytest

from servers import (
    Run,
    ask,
    binaries_from,
    both_loops,
    both_origins,
    gone,
    owner_of,
    running,
    until,
)
from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import (
    DirectoryLock,
    EmbeddedError,
    EmbeddedPostgres,
    cluster_major,
    dsn_of,
    find_binaries,
    reach,
)

# Start and stop


@both_loops
@both_origins
def test_a_first_start_makes_a_private_cluster_and_an_empty_database(
    run: Run, origin: str, tmp_path: Path
) -> None:
    binaries = binaries_from(origin)
    directory = tmp_path / "new" / "data"

    async def main() -> None:
        async with running(directory, binaries=binaries, fsync=False) as server:
            connection = await asyncpg.connect(server.dsn)
            asked = (
                "current_database()",
                "current_setting('server_version_num')::int / 10000",
                "current_setting('server_encoding')",
                "(select datcollate from pg_database where datname = current_database())",
                "current_setting('listen_addresses')",
                "current_setting('jit')",
            )
            answer = await connection.fetchrow("select " + ", ".join(asked))
            await connection.close()
            assert tuple(answer or ()) == ("sipsidecar", binaries.major, "UTF8", "C", "", "off")
            assert server.restarts == 0
            assert dsn_of(directory) == server.dsn
            pid = server.pid
            assert pid is not None
            assert os.getsid(pid) != os.getsid(0), "a Ctrl-C would reach the server"
        assert gone(pid)
        assert server.pid is None
        assert dsn_of(directory) is None

    run(main())
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "postgres").stat().st_mode & 0o777 == 0o700
    assert (directory / "postgres.log").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in directory.iterdir()) == ["lock", "postgres", "postgres.log"]
    assert cluster_major(directory) == binaries.major


@both_loops
def test_a_second_start_finds_what_the_first_one_stored(run: Run, directory: Path) -> None:
    async def main() -> None:
        server = EmbeddedPostgres(directory)
        await ask(await server.start(), "create table t as select 42 as n")
        await server.stop()
        assert await ask(await server.start(), "select n from t") == 42
        await server.stop()
        await server.stop()

    run(main())


async def test_a_client_that_stays_does_not_hold_up_the_stop(directory: Path) -> None:
    server = EmbeddedPostgres(directory, fsync=False)
    connection = await asyncpg.connect(await server.start())
    await server.stop()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("select 1")
    connection.terminate()


async def test_a_second_start_of_one_object_is_refused_and_harms_nothing(directory: Path) -> None:
    async with running(directory, fsync=False) as server:
        with pytest.raises(RuntimeError, match="started already"):
            await server.start()
        assert await ask(server.dsn, "select 1") == 1


async def test_psql_takes_the_dsn(directory: Path) -> None:
    psql = find_binaries(directory=directory).directory / "psql"
    async with running(directory, fsync=False) as server:
        done = subprocess.run(  # noqa: ASYNC221
            [psql, "-XAtc", "select current_user", server.dsn],
            capture_output=True,
            text=True,
            check=True,
        )
    assert (done.stdout.strip(), done.stderr) == ("postgres", "")


async def test_a_start_that_is_cancelled_leaves_no_server_and_no_lock(directory: Path) -> None:
    server = EmbeddedPostgres(directory, fsync=False)
    task = asyncio.create_task(server.start())
    await until(lambda: server._process)
    process = server._process
    assert process is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode is not None
    with DirectoryLock(directory):
        pass


# Deaths


@both_loops
def test_a_killed_server_comes_back_with_all_that_was_committed(run: Run, directory: Path) -> None:
    async def main() -> None:
        async with running(directory) as server:
            await ask(server.dsn, "create table t as select generate_series(1, 1000) as n")
            first = server.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            assert "-9" in await server.wait_stopped()
            await until(lambda: server.pid)
            assert server.pid != first
            assert server.restarts >= 1
            assert await ask(server.dsn, "select count(*) from t") == 1000
            assert dsn_of(directory) == server.dsn

    run(main())


async def test_a_server_that_is_not_there_is_stopped_already(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    assert await server.wait_stopped() == "not started"
    await server.stop()


@both_loops
def test_a_start_follows_a_killed_owner_at_once(run: Run, directory: Path) -> None:
    async def main() -> None:
        async with running(directory) as server:
            assert await ask(server.dsn, "select n from t") == 42

    with owner_of(directory) as (owner, dsn, _):
        asyncio.run(ask(dsn, "create table t as select 42 as n"))
        owner.kill()
        owner.wait()
        run(main())


async def test_a_start_waits_for_busy_backends_of_a_killed_server(directory: Path) -> None:
    server = EmbeddedPostgres(directory)
    with owner_of(directory) as (owner, dsn, pid):
        connection = await asyncpg.connect(dsn)
        backend = await connection.fetchval("select pg_backend_pid()")
        # It computes, so it does not see that its server is gone.
        work = "do $$ begin for i in 1..2000000000 loop end loop; end $$"
        busy = asyncio.create_task(connection.execute(work))
        await until(lambda: "DO" in Path(f"/proc/{backend}/cmdline").read_text())
        os.kill(pid, signal.SIGSTOP)  # it shall not tell its backends that its owner died
        owner.kill()
        owner.wait()
        os.kill(pid, signal.SIGKILL)
        start = asyncio.create_task(server.start())
        log = directory / "postgres.log"
        await until(lambda: b"is still in use" in log.read_bytes())
        os.kill(backend, signal.SIGKILL)
        await start
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await busy
        connection.terminate()
        assert await ask(server.dsn, "select 1") == 1
        await server.stop()


async def test_a_start_does_not_wait_for_ever_for_an_earlier_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.server, "WAIT_SECONDS", 0.1)
    with owner_of(directory) as (owner, _, pid):
        os.kill(pid, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        try:
            with pytest.raises(EmbeddedError, match=f"still stopping in .*: kill -QUIT {pid}$"):
                await EmbeddedPostgres(directory).start()
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_server_that_hears_nothing_is_killed_in_the_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        embedded.server, "STOP_STEPS", ((signal.SIGINT, 0.05), (signal.SIGQUIT, 0.05))
    )
    server = EmbeddedPostgres(directory)
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert gone(pid)
    assert await server.wait_stopped() == "stopped (exit status -9)"


# Readers


async def test_a_reader_uses_the_server_of_a_running_sidecar_and_leaves_it_running(
    directory: Path,
) -> None:
    with owner_of(directory) as (_, dsn, pid):
        async with reach(directory) as reached:
            assert reached == dsn
        assert dsn_of(directory) == dsn
        assert not gone(pid)


@both_loops
def test_a_reader_starts_a_stopped_server_and_stops_it_again(run: Run, directory: Path) -> None:
    async def main() -> None:
        async with reach(directory) as dsn:
            assert await ask(dsn, "select 1") == 1
        assert dsn_of(directory) is None
        with DirectoryLock(directory):
            pass

    run(main())


async def test_a_reader_that_ends_does_not_cut_off_another(directory: Path) -> None:
    async with contextlib.AsyncExitStack() as second:
        async with reach(directory) as dsn:
            assert await second.enter_async_context(reach(directory)) == dsn
            connection = await asyncpg.connect(dsn)
            first_leaves = asyncio.Event()

            async def work() -> int:
                await first_leaves.wait()
                value = await connection.fetchval("select 7 from pg_sleep(0.3)")
                await connection.close()
                return int(value)

            working = asyncio.create_task(work())
            first_leaves.set()
        assert await working == 7


async def test_a_reader_waits_for_the_owner_to_be_ready_or_to_leave(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DirectoryLock(directory)
    lock.acquire()
    asyncio.get_running_loop().call_later(0.1, lock.release)
    async with reach(directory) as dsn:
        assert await ask(dsn, "select 1") == 1
    monkeypatch.setattr(embedded.server, "WAIT_SECONDS", 0.1)
    with lock, pytest.raises(EmbeddedError, match="is in use by sidecar pid"):
        async with reach(directory):
            pass


async def test_a_sidecar_waits_until_a_reader_is_done(directory: Path) -> None:
    server = EmbeddedPostgres(directory)
    async with reach(directory):
        start = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        assert not start.done()
    await start
    assert await ask(server.dsn, "select 1") == 1
    await server.stop()


async def test_a_reader_of_an_empty_directory_is_told_to_run_the_sidecar(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"no calls here yet .* start `sipsidecar run` first"):
        async with reach(tmp_path / "nothing"):
            pass
    assert not (tmp_path / "nothing").exists()
    assert dsn_of(tmp_path / "nothing") is None


# The fixtures of the other tests


async def test_each_test_gets_an_empty_database_of_its_own(
    database: str, postgres_dsn: str
) -> None:
    assert database != postgres_dsn
    await ask(database, "create table t as select 1 as n")
    assert await ask(postgres_dsn, "select to_regclass('t')") is None
