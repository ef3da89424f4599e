"""A real PostgreSQL for tests that want one: one server for the session, one database per test."""

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.postgres import Postgres, PostgresSettings

# The first draw of any text builds tables of all characters: seconds on a busy machine. No test may
# fail for the time it takes.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A sidecar that a test sets up sets the level of the whole process: here others come after."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


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


@pytest.fixture(scope="session")
def migrated(postgres_dsn: str) -> str:
    """The name of a database with today's tables and partitions, to be copied."""
    name = "migrated"
    _execute(postgres_dsn, f"CREATE DATABASE {name}")

    async def migrate() -> None:
        store = Postgres(PostgresSettings(dsn=_named(postgres_dsn, name)))
        await store.open()
        await store.close()

    _run(migrate())
    return name


@pytest.fixture
def database(postgres_dsn: str, migrated: str) -> Iterator[str]:
    """The DSN of a database that nobody else uses, its tables made and empty."""
    yield from _database(postgres_dsn, f"TEMPLATE {migrated}")


@pytest.fixture
def bare_database(postgres_dsn: str) -> Iterator[str]:
    """The same without any table."""
    yield from _database(postgres_dsn, "")


def _database(postgres_dsn: str, options: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _execute(postgres_dsn, f"CREATE DATABASE {name} {options}")
    yield _named(postgres_dsn, name)
    _execute(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def _named(postgres_dsn: str, name: str) -> str:
    return postgres_dsn.replace("///sipsidecar?", f"///{name}?")


def _execute(dsn: str, sql: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    _run(execute())


def _run(work: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()
