"""Data directories, and binaries for all users, of the tests of the embedded PostgreSQL."""

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import copy
from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import Binaries, EmbeddedPostgres, find_binaries
from sipsidecar.edges.embedded.binaries import reachable
from sipsidecar.edges.embedded.cluster import Account


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


@pytest.fixture
def shared_binaries(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Binaries:
    """Binaries that an ordinary user can run."""
    found = find_binaries()
    if os.geteuid() != 0:
        return found
    monkeypatch.setattr(embedded.binaries, "RUNTIME", open_directory / "runtime")
    entry = pwd.getpwnam("nobody")
    return reachable(found, Account(entry.pw_uid, entry.pw_gid))
