"""A SIP server that answers OPTIONS, or does not, in whatever way a test wants it."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

_KEPT = re.compile(rb"^(?:Via|From|To|Call-ID|CSeq): .*$", re.MULTILINE)


def reply(request: bytes, status: str = "200 OK") -> bytes:
    """A response that belongs to a request."""
    kept = [line.strip() for line in _KEPT.findall(request)]
    return b"\r\n".join([f"SIP/2.0 {status}".encode(), *kept, b"Content-Length: 0", b"", b""])


Answers = Callable[[bytes], list[bytes]]


class SipServer:
    """What it was asked, and how it answers: pieces to send for one request."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.peers: list[Any] = []
        """Of each request, where it came from."""
        self.connections = 0
        self.host = ""
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.transport: asyncio.DatagramTransport | None = None

    def heard(self, request: bytes, peer: Any) -> list[bytes]:
        """Take one request."""
        self.requests.append(request)
        self.peers.append(peer)
        return self.answers(request)

    def hang_up(self) -> list[bytes]:
        """Close all connections: an answer of nothing."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        return []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                for piece in self.heard(request, writer.get_extra_info("peername")):
                    writer.write(piece)
                    await asyncio.sleep(0)
        writer.transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: SipServer) -> None:
        self.server = server

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self.server.transport is not None
        for piece in self.server.heard(data, addr):
            self.server.transport.sendto(piece, addr)


@contextlib.asynccontextmanager
async def serving(
    transport: str = "udp",
    answers: Answers = lambda request: [reply(request)],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[SipServer]:
    """A server for the length of a `with`."""
    server = SipServer(answers)
    server.host = host
    if transport == "udp":
        made, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(server), local_addr=(host, port)
        )
        server.transport = made
        server.port = made.get_extra_info("sockname")[1]
        try:
            yield server
        finally:
            made.close()
        return
    listener = await asyncio.start_server(server.take, host, port, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        server.hang_up()
        await asyncio.sleep(0.01)
