import asyncio
import gc
import socket
from typing import Any, cast

import asyncpg
import pytest

from sipsidecar.batch import StoreError, StoreRejected, StoreUnavailable
from sipsidecar.edges.postgres import Postgres, questions
from sipsidecar.edges.postgres.connection import _QuietLoop, exists, explained, session, transaction
from stored import settings_of, sql


async def test_a_database_that_cannot_be_reached_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        dsn = f"postgresql://sip:s3cret@127.0.0.1:{port}/calls"
        with pytest.raises(StoreUnavailable) as caught:
            await Postgres(settings_of(dsn)).open()
    text = str(caught.value)
    assert text.startswith(f"PostgreSQL at 127.0.0.1 port {port}, database calls: ")
    assert "s3cret" not in text
    assert "\n" not in text


async def test_a_database_that_does_not_exist_is_an_error_and_not_an_outage(database: str) -> None:
    async with sql(database) as connection:
        name = await connection.fetchval("SELECT current_database()")
    with pytest.raises(StoreError, match=r"database .*nowhere.* does not exist") as caught:
        await Postgres(settings_of(database.replace(name, "nowhere"))).open()
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "host=db password=s3cret",
        "mysql://u:s3cret@db/x",
        "postgresql://u:12/s3cret@db/x",
        "postgresql://u:12?s3cret@db/x",
        "postgresql://u:12#s3cret@db/x",
        "postgresql://u:s3cret@db:port/x",
        "postgresql://[u:s3cret@db/x",
    ],
)
async def test_a_dsn_that_is_not_understood_is_not_repeated(dsn: str) -> None:
    with pytest.raises(StoreError, match="the DSN is not understood") as caught:
        await Postgres(settings_of(dsn)).open()
    assert "s3cret" not in str(caught.value)
    assert "12" not in str(caught.value)


async def test_asking_before_the_tables_exist_says_what_to_do(bare_database: str) -> None:
    with pytest.raises(StoreError, match="sipsidecar run"):
        await questions.find_attempts(bare_database, "a")


@pytest.mark.parametrize(
    ("dsn", "beside", "sent"),
    [
        ("postgresql://sip@{}/x", "s3cret-beside", b"s3cret-beside"),
        ("postgresql://sip:s3cret-inside@{}/x", "s3cret-beside", b"s3cret-inside"),
        ("postgresql://sip@{}/x?password=s3cret-inside", "s3cret-beside", b"s3cret-inside"),
    ],
)
async def test_the_password_beside_the_dsn_is_used_when_that_holds_none_and_is_never_said(
    dsn: str, beside: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    heard = asyncio.Queue[bytes]()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Decline TLS, ask for the password in clear, refuse it and quote it."""
        try:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if size == 8:
                await reader.readexactly(4)
                writer.write(b"N")
                size = int.from_bytes(await reader.readexactly(4), "big")
            await reader.readexactly(size - 4)
            writer.write(b"R\0\0\0\x08\0\0\0\x03")
            await reader.readexactly(1)
            size = int.from_bytes(await reader.readexactly(4), "big")
            password = (await reader.readexactly(size - 4)).rstrip(b"\0")
            heard.put_nowait(password)
            fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword " + password + b" is wrong\0\0"
            writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listening:
        host, port = listening.sockets[0].getsockname()
        settings = settings_of(dsn.format(f"{host}:{port}"), password=beside)
        with pytest.raises(StoreError) as caught:
            await Postgres(settings).open()
    assert await heard.get() == sent
    assert not isinstance(caught.value, StoreUnavailable)
    assert str(caught.value).endswith("password *** is wrong")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DiskFullError("x"),
        asyncpg.ReadOnlySQLTransactionError("x"),
        asyncpg.OutOfMemoryError("x"),
        asyncpg.TooManyConnectionsError("x"),
        asyncpg.AdminShutdownError("x"),
        asyncpg.CannotConnectNowError("x"),
        asyncpg.QueryCanceledError("x"),
        asyncpg.LockNotAvailableError("x"),
        asyncpg.UndefinedColumnError("x"),
        asyncpg.InterfaceError("x"),
        asyncpg.InternalClientError("x"),
        ConnectionResetError("x"),
        EOFError("x"),
        TimeoutError(),
        RuntimeError("the handler is closed"),
    ],
)
def test_what_may_pass_is_an_outage_whatever_was_sent(error: Exception) -> None:
    with (
        pytest.raises(StoreUnavailable, match="PostgreSQL at h port 5432, database d: "),
        explained(settings_of("postgresql://u:s3cret@h/d"), data=True),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InvalidPasswordError("x"),
        asyncpg.InvalidCatalogNameError("x"),
        asyncpg.InsufficientPrivilegeError("x"),
        asyncpg.exceptions.ClientConfigurationError("x"),
    ],
)
def test_what_somebody_has_to_change_is_an_error_and_no_outage(error: Exception) -> None:
    with pytest.raises(StoreError) as caught, explained(settings_of("postgresql://u@h/d")):
        raise error
    assert type(caught.value) is StoreError


def test_a_refusal_of_data_is_one_only_where_data_was_sent() -> None:
    settings = settings_of("postgresql://u@h/d")
    error = asyncpg.CheckViolationError("x")
    with pytest.raises(StoreRejected), explained(settings, data=True):
        raise error
    with pytest.raises(StoreUnavailable), explained(settings):
        raise error


async def undone(connection: Any, statement: str) -> None:
    async with transaction(connection):
        await connection.execute("CREATE TABLE gone ()")
        await connection.execute(statement)
        raise StoreError("no")


async def test_a_transaction_that_the_server_ended_leaves_the_connection_fit_for_the_next(
    database: str,
) -> None:
    async with sql(database) as connection:
        for error, statement in [
            (asyncpg.DivisionByZeroError, "SELECT 1 / 0"),
            (StoreError, "SELECT 1"),
        ]:
            with pytest.raises(error):
                await undone(connection, statement)
            assert not await exists(connection, "gone")
        async with transaction(connection):
            await connection.execute("CREATE TABLE kept ()")
        assert await exists(connection, "kept")


async def test_a_transaction_left_for_any_other_reason_takes_the_connection_with_it(
    database: str,
) -> None:
    async with sql(database) as connection:
        with pytest.raises(KeyError):
            async with transaction(connection):
                raise KeyError
        assert connection.is_closed()


async def test_a_session_that_fails_is_dropped_and_one_that_does_not_is_closed(
    database: str,
) -> None:
    settings = settings_of(database)
    async with session(settings, "first") as first:
        assert await first.fetchval("SELECT current_setting('application_name')") == "first"
    assert first.is_closed()
    with pytest.raises(KeyError):
        async with session(settings, "second") as second:
            raise KeyError
    assert second.is_closed()


def wire_message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize("quiet", [True, False])
async def test_a_session_ended_between_two_statements_leaves_no_future_that_nobody_looked_at(
    quiet: bool,
) -> None:
    said: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context["message"]))
    fatal = asyncio.Event()
    over = asyncio.Event()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let anybody in; later say FATAL but do not hang up yet."""
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size - 4)
        writer.write(wire_message(b"R", bytes(4)))
        writer.write(wire_message(b"S", b"server_version\x0015.0\0"))
        writer.write(wire_message(b"Z", b"I"))
        await fatal.wait()
        writer.write(wire_message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mshutting down\0\0"))
        await over.wait()
        writer.close()
        await writer.wait_closed()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listening:
        host, port = listening.sockets[0].getsockname()
        connection = await asyncpg.connect(
            f"postgresql://u@{host}:{port}/d",
            ssl=False,
            loop=cast("asyncio.AbstractEventLoop", _QuietLoop()) if quiet else None,
        )
        fatal.set()
        await asyncio.sleep(0.05)
        data: Any = memoryview(b"")
        with pytest.raises(asyncpg.InternalClientError):
            await connection.copy_to_table("calls", source=data, format="binary")
        connection.terminate()
        over.set()
        await asyncio.sleep(0.05)
    gc.collect()
    # When asyncpg no longer does this by itself, _QuietLoop can go.
    assert said == ([] if quiet else ["Future exception was never retrieved"])
