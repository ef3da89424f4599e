"""Settings to connections that are safe to lose, and every way in which they fail to one line."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import msgspec

from sipsidecar.batch import StoreError, StoreRejected, StoreUnavailable
from sipsidecar.tables import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    Connection = asyncpg.Connection[asyncpg.Record]

RETENTION_DAYS = {
    "calls": 90, "attempts": 90, "media": 90, "quality_intervals": 14, "legs": 90,
    "conversations": 90, "admissions": 90, "admission_states": 365, "registrations": 30, "pings": 7,
    "kpi_minute": 400, "code_minute": 400, "baseline_hours": 35, "incidents": 400, "events": 400,
    "outcomes": 90, "messages": 7, "quarantine": 7,
}  # fmt: skip

_EPOCH = 946_684_800_000_000  # PostgreSQL counts microseconds from 2000-01-01
_CLOSE_SECONDS = 5


class PostgresSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom to write. Its text shows neither the DSN nor the password."""

    dsn: str
    password: str = ""
    """For a DSN that holds none."""
    node_id: int = 1
    retention_days: dict[str, int] = msgspec.field(default_factory=RETENTION_DAYS.copy)
    """By table; 0, or no entry, keeps rows for ever."""
    ledger_days: int = 30
    max_bytes: int = 0
    """Most bytes of all tables with their indexes; 0: any."""
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 60.0
    node_wait_s: float = 5.0
    """How long to wait for the node id: a killed predecessor's connection may linger."""

    def __repr__(self) -> str:
        return f"PostgresSettings(node_id={self.node_id})"


# SQLSTATEs that speak of the data; all others are the server's state, which passes. 08P01 is the
# answer to a binary row that is shorter than it says.
_ABOUT_THE_DATA = re.compile("22|23|54|08P01")
FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
    RuntimeError,  # uvloop's word for a transport that has gone
)
_TO_BE_CHANGED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    ValueError,  # asyncpg's word for settings and arguments that it cannot use
)


def sqlstate(error: BaseException) -> str:
    """Give the five characters that say what went wrong; empty when the server did not say."""
    return getattr(error, "sqlstate", None) or ""


def is_about_data(error: BaseException) -> bool:
    """Whether the server refused what it was sent, and would again."""
    return bool(_ABOUT_THE_DATA.match(sqlstate(error)))


def one_line(error: BaseException) -> str:
    """Give the first line of an error, fit for a terminal: it may quote what strangers sent."""
    silent = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return printable((str(error).splitlines() or [""])[0][:300] or silent)


def _target(dsn: str) -> tuple[str, str | None]:
    """Name the database of a DSN for people, never the user or the password; and its password."""
    try:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        host = query.get("host", [parts.hostname or "its default address"])[0]
        port = query.get("port", [str(parts.port or 5432)])[0]
        # A password with a bare slash or hash shifts all parts: then show none of them.
        understood = parts.scheme in {"postgres", "postgresql"} and "@" not in parts.path
        understood = understood and not parts.fragment
    except ValueError:
        understood = False
    if not understood:
        raise StoreError(
            "the DSN is not understood: expected postgresql://user:password@host:port/database, "
            "with special characters of the password percent-encoded"
        )
    database = parts.path.strip("/") or query.get("database", ["(default)"])[0]
    password = query.get("password", [parts.password and unquote(parts.password)])[0]
    return f"PostgreSQL at {host} port {port}, database {database}", password


@contextlib.contextmanager
def explained(settings: PostgresSettings, *, data: bool = False) -> Iterator[None]:
    """Turn whatever goes wrong with this database into a StoreError of one line.

    With `data` a refusal of what was sent is a StoreRejected.
    """
    target, password = _target(settings.dsn)
    try:
        yield
    except (*FAILURES, ValueError) as error:
        line = one_line(error)
        for secret in filter(None, (password, settings.password)):
            line = line.replace(secret, "***")
        if data and is_about_data(error):
            raise StoreRejected(sqlstate(error), line) from error
        if isinstance(error, asyncpg.UndefinedTableError):
            line = "the sidecar's tables are not there; `sipsidecar run` makes them"
        if isinstance(error, asyncpg.UndefinedColumnError):
            line = (
                "its tables are of another version; `sipsidecar run` brings older ones up to date"
            )
        kind = StoreError if isinstance(error, _TO_BE_CHANGED) else StoreUnavailable
        raise kind(f"{target}: {line}") from error


class _QuietLoop:
    """The running event loop, except that nobody has to look at its futures.

    When the server ends a session between two statements, asyncpg's next COPY raises the error and
    leaves it behind in a future too, which asyncio logs as an exception never retrieved.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the loop has
        return getattr(self._loop, name)

    def create_future(self) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future


async def connect(settings: PostgresSettings, name: str) -> Connection:
    """Connect; addresses are text and times are microseconds UTC, as in the records."""
    limit_ms = str(int(settings.statement_timeout_s * 1000))
    _, password = _target(settings.dsn)
    connection = await asyncpg.connect(
        settings.dsn,
        loop=cast("asyncio.AbstractEventLoop", _QuietLoop()),
        password=None if password else settings.password or None,
        timeout=settings.connect_timeout_s,
        command_timeout=settings.statement_timeout_s + settings.connect_timeout_s,
        server_settings={
            "application_name": name,
            "timezone": "UTC",
            "datestyle": "ISO",
            "default_transaction_isolation": "read committed",
            "statement_timeout": limit_ms,
            "idle_in_transaction_session_timeout": limit_ms,
            "tcp_keepalives_idle": "30",
        },
    )
    try:
        await connection.set_type_codec("inet", schema="pg_catalog", encoder=str, decoder=str)
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=lambda at: (at - _EPOCH,),
            decoder=lambda at: at[0] + _EPOCH,
            format="tuple",
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def close(connection: Connection) -> None:
    """Say good-bye to the server, or drop the connection when that does not work."""
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except FAILURES:
        connection.terminate()
    except BaseException:
        connection.terminate()
        raise


@contextlib.asynccontextmanager
async def session(settings: PostgresSettings, name: str) -> AsyncIterator[Connection]:
    """One connection for one purpose; after any failure it is dropped without a word."""
    connection = await connect(settings, name)
    try:
        yield connection
    except BaseException:
        connection.terminate()
        raise
    await close(connection)


@contextlib.asynccontextmanager
async def transaction(connection: Connection, begin: str = "BEGIN") -> AsyncIterator[None]:
    """One transaction. What the server refused is rolled back; after all else the connection goes.

    asyncpg's own would send ROLLBACK after a cancellation too, and wait for a server that is stuck.
    """
    try:
        await connection.execute(begin)
        yield
        await connection.execute("COMMIT")
    except (asyncpg.PostgresError, StoreError):
        with contextlib.suppress(*FAILURES):
            await connection.execute("ROLLBACK")
        if connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        raise
    except BaseException:
        connection.terminate()
        raise


async def limit_lock_wait(connection: Connection, limit_ms: int) -> None:
    """Until the transaction ends, give up waiting for a lock after so long."""
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", str(max(1, limit_ms)))


async def exists(connection: Connection, table: str) -> bool:
    """Whether there is a table of this name."""
    # By a scan: to_regclass may answer from a cache that a waited-for lock has outdated.
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1 AND pg_table_is_visible(oid))",
            table,
        )
    )
