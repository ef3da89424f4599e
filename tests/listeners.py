"""Capture sockets under test, and peers that speak to them."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from sipsidecar.edges.capture import TcpCapture, UdpCapture

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Delivered = tuple[bytes, float, int, str]

both_loops = pytest.mark.parametrize(
    "run", [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


no_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
both_families = pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=no_ipv6)])
BUFFER = 1 << 20
LIMIT = 10.0
"""Seconds after which a test gives up."""


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.001)


def frame(number: int, size: int = 0) -> bytes:
    """A HEP3 frame; its content is the receiver's business, its length is the stream's."""
    body = b"%d:" % number + b"x" * size
    return b"HEP3" + (6 + len(body)).to_bytes(2, "big") + body


@contextlib.asynccontextmanager
async def udp(
    host: str = "127.0.0.1", size: int = BUFFER, sock: socket.socket | None = None
) -> AsyncIterator[Any]:
    delivered: list[Delivered] = []
    source = UdpCapture(lambda *one: delivered.append(one))
    address = source.open(host, 0, size, sock)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((host, 0))
        sender.connect(address)
        try:
            yield source, sender, delivered
        finally:
            source.drain()


@contextlib.asynccontextmanager
async def tcp(
    connections: int = 8, idle_seconds: float = 60.0, host: str = "127.0.0.1", **more: Any
) -> AsyncIterator[Any]:
    delivered: list[Delivered] = []
    listener = TcpCapture(
        lambda *one: delivered.append(one),
        connections=connections,
        idle_seconds=idle_seconds,
        **more,
    )
    try:
        yield listener, await listener.open(host, 0), delivered
    finally:
        await listener.drain()


@contextlib.asynccontextmanager
async def tls(
    make_context: Callable[[], ssl.SSLContext], connections: int = 8, **more: Any
) -> AsyncIterator[Any]:
    delivered: list[Delivered] = []
    listener = TcpCapture(
        lambda *one: delivered.append(one),
        connections=connections,
        **{"idle_seconds": 60.0} | more,
    )
    try:
        yield listener, await listener.open_tls("127.0.0.1", 0, make_context), delivered
    finally:
        await listener.drain()


@contextlib.asynccontextmanager
async def connected(
    address: tuple[str, int], source: str | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Any]:
    local = (source, 0) if source else None
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(*address, local_addr=local, ssl=context), LIMIT
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes, within the limit."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(1), LIMIT) == b""
    return True


async def peers(listener: TcpCapture, count: int) -> list[Any]:
    await until(lambda: listener.connections == count)
    return list(listener._open)


def bytes_of(delivered: list[Delivered]) -> list[bytes]:
    return [one[0] for one in delivered]
