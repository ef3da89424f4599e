import contextlib
from pathlib import Path

import asyncpg
import pytest

from servers import ask, running, until
from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import DirectoryLock, EmbeddedError, EmbeddedPostgres


async def test_the_log_is_bounded_while_the_server_writes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.log, "LOG_BYTES", 20_000)
    async with running(directory, fsync=False) as server:
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await ask(server.dsn, "select * from nowhere /* " + "a" * 30_000 + " */")
        kept = Path(f"{server.log_path}.1")
        await until(lambda: kept.exists() and server.log_path.stat().st_size < 20_000)
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await ask(server.dsn, "select * from after_that")
        assert "after_that" in server.log_path.read_text()
        assert "\0" not in server.log_path.read_text()


async def test_a_cluster_that_does_not_start_tells_why_and_is_kept(directory: Path) -> None:
    (directory / "postgres/global/pg_control").unlink()
    with pytest.raises(EmbeddedError, match=r"^PostgreSQL did not start: \S.*pg_control"):
        await EmbeddedPostgres(directory).start()
    assert (directory / "postgres/base").is_dir()
    with DirectoryLock(directory):
        pass
