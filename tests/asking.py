"""Pages on a free port, and clients that ask for them well and badly."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from sipsidecar.edges.http import HttpServer
from sipsidecar.edges.metrics import Metrics
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.snapshot import (
    WRITE_BOUNDS,
    CaptureFigures,
    Figures,
    Histogram,
    StorageFigures,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
both_loops = pytest.mark.parametrize(
    "run", [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


no_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
LIMIT = 10.0
"""Seconds after which a test gives up."""


def some_figures() -> Figures:
    """Figures of a sidecar that received six packets."""
    return Figures(
        version="1",
        pipeline=msgspec.structs.replace(Pipeline().snapshot(0.0), received=6),
        storage=StorageFigures(
            up=True,
            rows_stored={"messages": 3},
            rows_waiting={"messages": 1},
            rows_dropped={},
            packets_stored=3,
            packets_quarantined=0,
            packets_waiting=1,
            packets_dropped={"queue-full": 2},
            queue_bytes=0,
            queue_limit_bytes=1000,
            write_seconds=Histogram(WRITE_BOUNDS),
            write_failures={},
            server_restarts=0,
        ),
        capture=CaptureFigures(
            kernel_drops=0,
            buffer_bytes=1000,
            buffer_used_bytes=0,
            tcp_connections=0,
            tcp_events={},
        ),
        loop_lag_seconds=0.0,
        uptime_seconds=1.5,
        agent_names={2001: "edge"},
    )


class Reply(msgspec.Struct):
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Served:
    """A server on a free port, and what it reads."""

    def __init__(self, **settings: Any) -> None:
        self.figures = some_figures()
        self.asked: list[int] = []
        self.calls: Callable[[], Sequence[dict[str, Any]]] = lambda: [
            {"call_id": f"{number}@a", "state": "ringing"} for number in range(3)
        ]
        self.server = HttpServer(
            lambda: self.figures, Metrics(lambda: self.figures).render, self.live, **settings
        )
        self.address = ("", 0)
        self.secure = "tls" in settings

    def live(self, limit: int) -> Sequence[dict[str, Any]]:
        self.asked.append(limit)
        return self.calls()[:limit]

    def change(self, part: str, **changes: Any) -> None:
        old = getattr(self.figures, part)
        new = msgspec.structs.replace(old, **changes)
        self.figures = msgspec.structs.replace(self.figures, **{part: new})

    async def connect(self, *, plain: bool = False, **options: Any) -> "Client":
        """One connection; whatever certificate there is will do."""
        context = None
        if self.secure and not plain:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, port = self.address
        target = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host)  # noqa: S104
        return Client(
            *await asyncio.open_connection(target, port, ssl=context, limit=2**24, **options)
        )

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", /, **more: str) -> Reply:
        """One request on its own connection; `more` are headers, `_` in their names is `-`."""
        client = await self.connect()
        try:
            return await client.ask(path, method, body, **more)
        finally:
            await client.close()

    async def get(self, path: str) -> tuple[int, Any]:
        reply = await self.ask(path)
        assert reply.headers["content-type"] == "application/json"
        return reply.status, reply.json

    async def send(self, raw: bytes, *, plain: bool = False) -> bytes:
        """What comes back for these bytes until the server closes or falls silent."""
        client = await self.connect(plain=plain)
        try:
            client.writer.write(raw)
            return await client.rest(0.3)
        finally:
            await client.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + LIMIT
        while not holds():
            assert time.monotonic() < deadline, self.server.counters
            await asyncio.sleep(0.002)


class Client:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", /, **more: str) -> Reply:
        host, port = self.writer.get_extra_info("peername")[:2]
        headers = {"Host": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
        if body or method == "POST":
            headers["Content-Length"] = str(len(body))
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items() if v)]
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return await self.reply(empty=method == "HEAD")

    async def reply(self, *, empty: bool = False) -> Reply:
        async with asyncio.timeout(LIMIT):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            headers = {name.lower(): value for name, _, value in pairs}
            size = 0 if empty else int(headers["content-length"])
            return Reply(int(first.split()[1]), headers, await self.reader.readexactly(size))

    async def rest(self, silence: float = LIMIT) -> bytes:
        """Everything that comes until the server closes, or says nothing for a while."""
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
            while True:
                async with asyncio.timeout(silence):
                    data = await self.reader.read(2**20)
                if not data:
                    break
                found += data
        return found

    async def gone(self) -> bool:
        """Wait until the server has closed; whatever it still says is thrown away."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(LIMIT):
                while await self.reader.read(2**20):
                    pass
        return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1", **settings: Any) -> AsyncIterator[Served]:
    """A server, open for the length of a `with`; nothing of it may be left afterwards."""
    made = Served(**settings)
    before = descriptors()
    made.address = await made.server.open(host, 0)
    try:
        yield made
    finally:
        await made.server.close()
    await made.until(lambda: descriptors() <= before)
    assert not made.server.connections


def descriptors() -> int:
    """How many sockets this process has open; loops open other files whenever they like."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(path.readlink()).startswith("socket:")
    return found


def slow_reader(address: tuple[str, int]) -> socket.socket:
    """A client that can take few bytes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    sock.setblocking(False)
    return sock


def certificate(folder: Path, name: str = "localhost") -> tuple[str, str]:
    """Make a certificate of its own authority; returns the paths of it and of its key."""

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed (Debian: apt-get install openssl)")
    folder.mkdir(parents=True, exist_ok=True)
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths
