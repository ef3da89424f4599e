import asyncio
import os
import signal
from pathlib import Path

import pytest

from servers import (
    Run,
    as_nobody,
    ask,
    belongs_to_nobody,
    both_loops,
    copy,
    owner_of,
    owner_uid,
    program,
    root_only,
    running,
    until,
    wait_until_gone,
)
from sipsidecar.edges.embedded import (
    Binaries,
    EmbeddedError,
    EmbeddedPostgres,
    find_binaries,
    reach,
)


def test_no_server_outlives_an_owner_that_was_killed(directory: Path) -> None:
    with owner_of(directory) as (owner, dsn, pid):
        assert asyncio.run(ask(dsn, "select 1")) == 1
        owner.kill()
        wait_until_gone(pid)


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
