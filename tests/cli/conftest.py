"""Commands run in this process, and a database with calls for them to read."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from running import recent
from sipsidecar import cli
from terminal import Row, Run, Said, hostile_capture

HOUR, DAY = 3600.0, 86400.0


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests, and no data directory of theirs."""
    for name in os.environ:
        if name.startswith("SIPSIDECAR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIPSIDECAR_DATABASE__DIRECTORY", str(tmp_path / "no-data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> Said:
        try:
            code = cli.main([str(one) for one in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a database with calls of the last hours and days, that no test changes."""

    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    folder = tmp_path_factory.mktemp("captures")
    asyncio.run(execute("CREATE DATABASE cli_calls"))
    mine = postgres_dsn.replace("///sipsidecar?", "///cli_calls?")
    files = [
        recent("kamailio/j_failover", folder / "j.pcap", 2 * HOUR),
        recent("kamailio/b_failures", folder / "b.pcap", 0.5 * HOUR),
        recent("kamailio/d_auth", folder / "d.pcap", 600),
        recent("kamailio/c_cancel", folder / "c.pcap", 12 * HOUR),
        recent("kamailio/h_register_options", folder / "h.pcap", 600),
        recent("kamailio/a_answered", folder / "a.pcap", 3 * DAY),
        hostile_capture(folder / "hostile.pcap"),
    ]
    assert cli.main(["replay", "--store", "--dsn", mine, *map(str, files)]) == 0
    yield mine
    asyncio.run(execute("DROP DATABASE cli_calls WITH (FORCE)"))


@pytest.fixture
def calls(run: Run, dsn: str) -> Callable[..., list[Row]]:
    def calls(*arguments: str) -> list[Row]:
        said = run("calls", "--dsn", dsn, "--json", *arguments)
        assert said.err == ""
        assert said.code == (0 if said.rows else 1)
        return said.rows

    return calls
