"""Hostile HEP connections of all kinds, many at once; says at its end what it did, as JSON.

python -m chaos.attack --plain 127.0.0.1:9060 --tls 127.0.0.1:9061 --connections 1000
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from running import datagrams
from sipsidecar.config import parse_address

CONNECTION_LIMIT = 8.0
"""Seconds after which a hostile connection has shown what it can do."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Attackers:
    """Connections of all hostile kinds, many at once."""

    def __init__(self, plain: tuple[str, int], tls: tuple[str, int], seed: int) -> None:
        self._plain = plain
        self._tls = tls
        self._rng = random.Random(seed)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = self._context.wrap_bio(incoming, outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        self._hello = outgoing.read()
        self._packet = datagrams("kamailio/a_answered")[0]
        self.done: Counter[str] = Counter()
        self.refused = 0
        """Connections that the sidecar, or its kernel, did not take or keep."""
        self._kinds: list[Callable[[], Awaitable[None]]] = [
            self.slow, self.silent, self.huge_length, self.bad_magic, self.cut_message,
            self.flood_of_nothing, self.tls_on_plain, self.plain_on_tls, self.tls_cut,
            self.tls_noise, self.tls_then_noise, self.half_closed,
        ]  # fmt: skip

    async def run(self, count: int, at_once: int) -> None:
        """So many connections."""
        left = iter(range(count))

        async def worker() -> None:
            for number in left:
                kind = self._kinds[number % len(self._kinds)]
                self.done[kind.__name__] += 1
                try:
                    async with asyncio.timeout(CONNECTION_LIMIT):
                        await kind()
                except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
                    self.refused += 1

        await asyncio.gather(*(worker() for _ in range(min(at_once, count))))

    async def _connect(self, to: tuple[str, int], context: ssl.SSLContext | None = None) -> Streams:
        # Half of them from one address, which has a cap; half from many.
        many = self._rng.random() < 0.5
        parts = [self._rng.randrange(1, 255) for _ in range(3)]
        source = f"127.{parts[0]}.{parts[1]}.{parts[2]}" if many else "127.0.0.1"
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(sock, to)
            name = "localhost" if context else None
            return await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    @contextlib.asynccontextmanager
    async def _open(
        self, to: tuple[str, int], context: ssl.SSLContext | None = None
    ) -> AsyncIterator[Streams]:
        reader, writer = await self._connect(to, context)
        try:
            yield reader, writer
        finally:
            # Half of them leave as a machine does that lost its power: with a reset.
            if self._rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def _send(self, to: tuple[str, int], *parts: bytes, gap: float = 0.0) -> None:
        async with self._open(to) as (reader, writer):
            for part in parts:
                writer.write(part)
                await writer.drain()
                if gap:
                    await asyncio.sleep(gap)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)

    async def slow(self) -> None:
        """A byte now and then of a message that never ends."""
        await self._send(self._plain, *(bytes([byte]) for byte in self._packet[:8]), gap=0.1)

    async def silent(self) -> None:
        """Half open: connected, and nothing more."""
        await self._send(self._plain)

    async def huge_length(self) -> None:
        """A length that is a lie, and some of what it promises."""
        await self._send(self._plain, b"HEP3\xff\xff", self._rng.randbytes(2000))

    async def bad_magic(self) -> None:
        """Other protocols, and noise."""
        words = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"INVITE sip:x SIP/2.0\r\n\r\n",
            b"HEP4\0\x10",
            b"\0" * 64,
        ]
        await self._send(self._plain, self._rng.choice(words), self._rng.randbytes(500))

    async def cut_message(self) -> None:
        """A whole message, and a part of the next."""
        cut = self._rng.randrange(len(self._packet))
        await self._send(self._plain, self._packet, self._packet[:cut])

    async def flood_of_nothing(self) -> None:
        """Messages of six bytes, thousands of them."""
        await self._send(self._plain, b"HEP3\0\x06" * 2000)

    async def tls_on_plain(self) -> None:
        """A handshake where none is spoken."""
        await self._send(self._plain, self._hello)

    async def plain_on_tls(self) -> None:
        """HEP where TLS is spoken."""
        await self._send(self._tls, self._packet)

    async def tls_cut(self) -> None:
        """A part of a handshake."""
        await self._send(self._tls, self._hello[: self._rng.randrange(1, len(self._hello))])

    async def tls_noise(self) -> None:
        """A handshake record whose bytes were thrown."""
        hello = bytearray(self._hello)
        for _ in range(8):
            hello[self._rng.randrange(5, len(hello))] = self._rng.randrange(256)
        await self._send(self._tls, bytes(hello), self._rng.randbytes(300))

    async def tls_then_noise(self) -> None:
        """A whole handshake, and then no HEP, or a message and a cut."""
        async with self._open(self._tls, self._context) as (_, writer):
            writer.write(
                self._rng.choice([self._rng.randbytes(400), self._packet + b"HEP3\xff\xff"])
            )
            await writer.drain()

    async def half_closed(self) -> None:
        """It says that it has said everything, and listens."""
        async with self._open(self._plain) as (reader, writer):
            writer.write(self._packet[:20])
            writer.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.read()


def main() -> int:
    """Attack; exit code 0 when all connections were tried."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--plain", type=parse_address, required=True)
    flags.add_argument("--tls", type=parse_address, required=True)
    flags.add_argument("--connections", type=int, required=True)
    flags.add_argument("--at-once", type=int, default=500)
    flags.add_argument("--seed", type=int, default=1)
    wanted = flags.parse_args()
    attackers = Attackers(wanted.plain, wanted.tls, wanted.seed)
    asyncio.run(attackers.run(wanted.connections, wanted.at_once))
    print(json.dumps({"kinds": attackers.done, "cut_short": attackers.refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
