"""A DNS server on loopback that answers as a test wants it, or not at all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Records = dict[tuple[str, str], tuple[int, tuple[str, ...]]]
"""TTL and data by name and type."""


class DnsServer:
    """Knows some names; of each question it was asked."""

    def __init__(self) -> None:
        self.records: Records = {}
        self.asked: list[tuple[str, str]] = []
        self.rcode = dns.rcode.NOERROR
        """What it says of everything, when it is not NOERROR."""
        self.silent = 0
        """So many questions without an answer; -1: all."""
        self.by_tcp = 0
        self.shorten = False
        """Answers over UDP are too long."""
        self.spoil: Callable[[bytes], list[bytes]] = lambda answer: [answer]
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def knows(self, name: str, kind: str, *data: str, ttl: int = 60) -> None:
        """Add records."""
        self.records[name, kind] = ttl, data

    def answer(self, wire: bytes, *, udp: bool) -> list[bytes]:
        """Datagrams that answer one."""
        query = dns.message.from_wire(wire)
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.silent:
            self.silent -= 1
            return []
        answer = dns.message.make_response(query, recursion_available=True)
        if self.rcode != dns.rcode.NOERROR:
            answer.set_rcode(self.rcode)
            return self.spoil(answer.to_wire(max_size=65535))
        if udp and self.shorten:
            answer.flags |= dns.flags.TC
            return [answer.to_wire()]
        for _ in range(20):
            found = self.records.get((name, kind))
            alias = self.records.get((name, "CNAME"))
            if found is not None:
                answer.answer.append(
                    dns.rrset.from_text_list(f"{name}.", found[0], "IN", kind, found[1])
                )
            if found is not None or alias is None:
                break
            answer.answer.append(
                dns.rrset.from_text_list(f"{name}.", alias[0], "IN", "CNAME", alias[1])
            )
            name = alias[1][0].rstrip(".").lower()
        if not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return self.spoil(answer.to_wire(max_size=65535))


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        for one in self._server.answer(data, udp=True):
            self._transport.sendto(one, addr)


@contextlib.asynccontextmanager
async def resolver() -> AsyncIterator[DnsServer]:
    """A server on UDP and TCP, for the length of a `with`."""
    server = DnsServer()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            length = int.from_bytes(await reader.readexactly(2), "big")
            server.by_tcp += 1
            for one in server.answer(await reader.readexactly(length), udp=False):
                writer.write(len(one).to_bytes(2, "big") + one)
        writer.close()

    listener = await asyncio.start_server(take, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Udp(server), local_addr=("127.0.0.1", server.port)
    )
    try:
        yield server
    finally:
        transport.close()
        listener.close()
        await asyncio.sleep(0.01)
