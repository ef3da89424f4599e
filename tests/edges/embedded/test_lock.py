import fcntl
import os
from pathlib import Path

import pytest

from servers import ask, owner_of
from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import DirectoryLock, EmbeddedError, EmbeddedPostgres


async def test_a_second_owner_is_refused_at_once_and_told_who_is_the_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.server, "WAIT_SECONDS", 3600.0)
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
