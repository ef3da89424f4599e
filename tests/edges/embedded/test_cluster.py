import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servers import (
    as_nobody,
    ask,
    copy,
    gone,
    owner_of,
    root_only,
    running,
    until,
    wait_until_gone,
)
from sipsidecar.edges.embedded import (
    Binaries,
    EmbeddedError,
    EmbeddedPostgres,
    default_directory,
    dsn_of,
)
from sipsidecar.edges.embedded.cluster import account_of, as_account


async def test_a_pid_file_that_names_another_program_does_not_stop_a_start(
    directory: Path,
) -> None:
    async with running(directory):
        left = (directory / "postgres/postmaster.pid").read_text().partition("\n")[2]
    account = account_of(directory / "postgres")
    # As after a reboot: the pid is in use, by a program of the server's user.
    with subprocess.Popen(["sleep", "60"], **as_account(account)) as other:  # noqa: ASYNC220
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (directory / "postgres" / name).write_text(f"{other.pid}\n{left}")
        assert dsn_of(directory) is None
        async with running(directory) as server:
            assert await ask(server.dsn, "select 1") == 1
        other.kill()


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
