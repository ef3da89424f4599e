"""The names of peers to addresses, by each of several DNS servers (RFC 3263, without NAPTR).

A name without a port is looked up by SRV for its transport, then by A and AAAA; one with a port by
the latter alone. What the system's hosts file says of a name holds, as it does for other programs,
and no server is asked. Who comes first among SRV records of one priority is not drawn by lot: all of
them are looked after, the heavier ones first.
"""

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import msgspec

from sipsidecar.config import parse_address
from sipsidecar.signals.naming import DnsAnswer, Place
from sipsidecar.signals.trunk import Peer, PeerUri, parse_uri

PATIENCE: Final = 3.0
"""Seconds for one answer; it is asked for twice, for a datagram may be lost."""
TRIES: Final = 2
LONGEST: Final = 600.0
"""Seconds to the next look, however long answers hold: so that what is wrong is not told for longer."""
SPREAD: Final = 1.0
"""Seconds over which the first looks are spread."""
MOST_ALOFT: Final = 16
"""Questions at one time."""
MOST_SERVERS: Final = 8
MOST_RECORDS: Final = 32
"""Records of one answer that are read."""
MOST_TARGETS: Final = 8
"""Names of one SRV answer that are looked up."""
MOST_HOSTS: Final = 2**18
"""Bytes of the hosts file that are read."""
COMPLAIN_EVERY: Final = 600.0

log = logging.getLogger("sipsidecar.trunks")

_SERVICES: Final = {"udp": "_sip._udp.", "tcp": "_sip._tcp.", "tls": "_sips._tcp."}

Receive = Callable[[str, Sequence[DnsAnswer], int], None]
"""A peer's name, the answers of one look, microseconds UTC."""


class ResolverState(msgspec.Struct, frozen=True, kw_only=True):
    """How it is with one DNS server."""

    resolver: str
    asked: int
    failed: int
    error: str
    """Of the last question; empty: it was answered."""


class _Found(NamedTuple):
    """What a server says of one name and type."""

    outcome: str
    records: tuple[tuple[int, int, str, int], ...] = ()
    """Priority, -weight, target and port; of A and AAAA the target is an address."""
    ttl: int | None = None


class _FailedError(Exception):
    """Nobody can say."""


class Resolving:
    """Looks at the names of all peers that have one, again and again; `receive` hears what is found.

    `resolvers` are ADDR or ADDR:PORT, empty: the system's. An answer that holds longer than
    `every_seconds` is not asked for before it ends, or `LONGEST` has passed.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        resolvers: Sequence[str],
        every_seconds: float,
        receive: Receive,
        *,
        hosts: str = "/etc/hosts",
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        uris = [(peer.name, parse_uri(peer.uri)) for peer in peers]
        self._named = [(name, uri) for name, uri in uris if not uri.literal]
        self._every = every_seconds
        self._receive = receive
        self._hosts = Path(hosts)
        self._wall = wall
        self._servers = [_Server(*one) for one in _servers(resolvers)] if self._named else []
        self._aloft = asyncio.Semaphore(MOST_ALOFT)
        self.faults = 0
        """Bugs that cost one look."""
        self._complained = -COMPLAIN_EVERY

    async def run(self) -> None:
        """Look until cancelled."""
        if not self._named:
            await asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            for number, (name, uri) in enumerate(self._named):
                group.create_task(self._follow(name, uri, SPREAD * number / len(self._named)))

    def status(self) -> list[ResolverState]:
        """How it is with each server."""
        return [
            ResolverState(resolver=one.name, asked=one.asked, failed=one.failed, error=one.error)
            for one in self._servers
        ]

    async def _follow(self, name: str, uri: PeerUri, delay: float) -> None:
        await asyncio.sleep(delay)
        while True:
            pause = self._every
            try:
                answers = await self._look(uri)
                self._receive(name, answers, self._wall() // 1000)
                ttl = min((one.ttl for one in answers if one.ttl is not None), default=0)
                pause = max(self._every, min(ttl, LONGEST))
            except Exception as error:  # noqa: BLE001 -- a bug must not end all looks
                self._fault(name, error)
            await asyncio.sleep(pause)

    async def _look(self, uri: PeerUri) -> list[DnsAnswer]:
        """What each server says."""
        port = uri.port or uri.default_port
        if addresses := _in_hosts(self._hosts, uri.host):
            places = tuple(Place(ip, port) for ip in addresses)
            return [DnsAnswer(resolver="hosts", outcome="ok", places=places)]
        return list(await asyncio.gather(*(self._ask(one, uri) for one in self._servers)))

    async def _ask(self, server: "_Server", uri: PeerUri) -> DnsAnswer:
        try:
            found = await self._resolve(server, uri)
        except _FailedError as error:
            return DnsAnswer(resolver=server.name, outcome="failed", why=str(error))
        places = tuple(dict.fromkeys(Place(ip, port) for _, _, ip, port in found.records))
        if places:
            return DnsAnswer(resolver=server.name, outcome="ok", places=places, ttl=found.ttl)
        outcome = "nxdomain" if found.outcome == "nxdomain" else "empty"
        return DnsAnswer(
            resolver=server.name,
            outcome=outcome,  # type: ignore[arg-type]
            ttl=found.ttl,
        )

    async def _resolve(self, server: "_Server", uri: PeerUri) -> _Found:
        """RFC 3263 4.2, of one server."""
        if uri.port is not None:
            return await self._addresses(server, uri.host, uri.port)
        services = await self._query(server, _SERVICES[uri.transport] + uri.host, "SRV", 0)
        if not services.records:
            # Without SRV records it is the default port.
            return await self._addresses(server, uri.host, uri.default_port)
        ordered = sorted(services.records)[:MOST_TARGETS]
        if [target for _, _, target, _ in ordered] == ["."]:
            return _Found("empty", ttl=services.ttl)  # there is no such service (RFC 2782)
        answers = await asyncio.gather(
            *(self._addresses(server, target, port) for _, _, target, port in ordered),
            return_exceptions=True,
        )
        whole = [one for one in answers if isinstance(one, _Found)]
        for one in answers:
            # A name of several that cannot be looked up does not hide the others.
            if isinstance(one, BaseException) and (
                not isinstance(one, _FailedError) or not any(other.records for other in whole)
            ):
                raise one
        records = tuple(record for one in whole for record in one.records)
        return _Found("ok" if records else "empty", records, _least(services, *whole))

    async def _addresses(self, server: "_Server", host: str, port: int) -> _Found:
        with contextlib.suppress(ValueError):  # a target of SRV must be a name, and is not always
            literal = str(ipaddress.ip_address(host.rstrip(".")))
            return _Found("ok", ((0, 0, literal, port),))
        four, six = await asyncio.gather(
            self._query(server, host, "A", port),
            self._query(server, host, "AAAA", port),
            return_exceptions=True,
        )
        for one, other in ((four, six), (six, four)):
            if isinstance(one, BaseException) and (
                not isinstance(one, _FailedError)
                or isinstance(other, BaseException)
                or not other.records
            ):
                raise one
        found = [one for one in (four, six) if isinstance(one, _Found)]
        records = tuple(record for one in found for record in one.records)
        some = [one for one in found if one.records] or found
        gone = all(one.outcome == "nxdomain" for one in found)
        return _Found("nxdomain" if gone else "ok", records, _least(*some))

    async def _query(self, server: "_Server", name: str, kind: str, port: int) -> _Found:
        """Records of one name and type; _FailedError."""
        try:
            query = dns.message.make_query(dns.name.from_text(name), kind, use_edns=0, payload=1232)
        except dns.exception.DNSException:  # too long with the service before it
            raise _FailedError("no name") from None
        async with self._aloft:
            return await server.ask(query, kind, port)

    def _fault(self, name: str, error: Exception) -> None:
        self.faults += 1
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            log.error("a look at the name of %s failed", name, exc_info=error)


class _Server:
    """One DNS server."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name = name
        self.asked = 0
        self.failed = 0
        self.error = ""
        self._address = address
        self._port = port

    async def ask(self, query: dns.message.QueryMessage, kind: str, port: int) -> _Found:
        """One question, over TCP where the answer is too long; _FailedError."""
        self.asked += 1
        try:
            answer = await self._answer(query)
        except _FailedError as error:
            self.failed += 1
            self.error = str(error)
            raise
        self.error = ""
        return _read(answer, kind, port)

    async def _answer(self, query: dns.message.QueryMessage) -> dns.message.Message:
        for left in reversed(range(TRIES)):
            try:
                # What comes from elsewhere, or is no answer to this, is passed over.
                answer, _ = await dns.asyncquery.udp_with_fallback(
                    query,
                    self._address,
                    timeout=PATIENCE,
                    port=self._port,
                    ignore_unexpected=True,
                    ignore_errors=True,
                )
            except dns.exception.Timeout:
                if not left:
                    raise _FailedError("no answer") from None
                continue
            except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
                refused = isinstance(error, ConnectionRefusedError)
                raise _FailedError("nobody listens" if refused else "broken") from None
            code = answer.rcode()
            if code in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return answer
            raise _FailedError(dns.rcode.to_text(code).lower())
        raise AssertionError  # the last turn returns or raises


def _read(answer: dns.message.Message, kind: str, port: int) -> _Found:
    """The records behind all aliases."""
    assert isinstance(answer, dns.message.QueryMessage)
    try:
        chain = answer.resolve_chaining()
    except dns.exception.DNSException:  # aliases in a circle, or too many
        raise _FailedError("broken") from None
    ttl = min(chain.minimum_ttl, 2**31 - 1)
    if chain.answer is None:
        gone = answer.rcode() == dns.rcode.NXDOMAIN
        return _Found("nxdomain" if gone else "empty", ttl=ttl)
    records = []
    for record in list(chain.answer)[:MOST_RECORDS]:
        if kind == "SRV":
            target = record.target.to_text()
            if record.port or target == ".":
                records.append((record.priority, -record.weight, target, record.port))
        else:
            records.append((0, 0, str(ipaddress.ip_address(record.address)), port))
    # Servers give them in another order each time.
    return _Found("ok", tuple(sorted(records)), ttl)


def _least(*found: _Found) -> int | None:
    return min((one.ttl for one in found if one.ttl is not None), default=None)


def _servers(resolvers: Sequence[str]) -> list[tuple[str, str, int]]:
    """Name, address and port of each server."""
    found: list[tuple[str, str, int]] = []
    for each in resolvers:
        try:
            found.append((each, str(ipaddress.ip_address(each)), 53))
        except ValueError:
            found.append((each, *parse_address(each)))
    if not resolvers:
        with contextlib.suppress(dns.exception.DNSException, OSError):
            found = [(str(one), str(one), 53) for one in dns.resolver.Resolver().nameservers]
    return found[:MOST_SERVERS]


def _in_hosts(hosts: Path, name: str) -> list[str]:
    """Addresses of a name in the system's file."""
    found: dict[str, None] = {}
    try:
        with hosts.open("rb") as opened:
            text = opened.read(MOST_HOSTS).decode("utf-8", "replace")
    except OSError:
        return []
    for line in text.splitlines():
        words = line.partition("#")[0].lower().split()
        if name in words[1:]:
            with contextlib.suppress(ValueError):
                found[str(ipaddress.ip_address(words[0]))] = None
    return list(found)[:MOST_RECORDS]
