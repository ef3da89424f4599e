"""A real PostgreSQL for tests that want one: one server for the session, one database per test."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from sipsidecar.edges.embedded import EmbeddedPostgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a server that loses its data when the machine stops, and is fast."""
    loop = asyncio.new_event_loop()  # of its own: tests bring theirs
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), fsync=False)
    try:
        yield loop.run_until_complete(server.start())
    finally:
        loop.run_until_complete(server.stop())
        loop.close()


@pytest.fixture
def database(postgres_dsn: str) -> Iterator[str]:
    """The DSN of an empty database that nobody else uses."""
    name = f"test_{next(_numbers)}"
    _execute(postgres_dsn, f"CREATE DATABASE {name}")
    yield postgres_dsn.replace("///sipsidecar?", f"///{name}?")
    _execute(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(dsn: str, sql: str) -> None:
    import asyncpg  # most tests need no database

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
