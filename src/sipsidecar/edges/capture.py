"""HEP over UDP and TCP to `deliver(datagram, now, received_at, peer)`.

The UDP reader owns its socket: after the first datagram it drains on a 1 ms tick instead of per
wake-up, which costs a third of the loop's own datagram endpoint. TCP always reads, and drops in
user space what it cannot use: a collector that stops reading makes agents close and lose more.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable

from sipsidecar.wire import hep

Deliver = Callable[[bytes, float, int, str], None]
"""A HEP packet, monotonic seconds, wall-clock microseconds UTC, the sender's address."""

MAX_DATAGRAM = 65_535
PER_TURN = 64
"""Datagrams per turn, so that HTTP and the writer get theirs: at 256 the writer starved under
overload and its queue grew to three times the memory."""
TICK = 0.001
IDLE_TICKS = 5
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
LEAST_IN_KERNEL = 256
"""Bytes that the kernel counts for a datagram at the very least."""
PER_ADDRESS = 64
"""TCP connections from one address: a node's workers may each have one."""
READ_AT_ONCE = 64 * 1024
MAX_IN_KERNEL = 64 * 2**20
"""Bytes that are still read from a connection at drain; socket buffers are smaller."""


class CaptureError(OSError):
    """A listener that cannot be had; the message is one line that says what to do."""


def _resolve(host: str, port: int, kind: socket.SocketKind) -> tuple[int, tuple[str, int]]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
    return family, address  # type: ignore[return-value]


def _explain(error: OSError, host: str, port: int, what: str) -> CaptureError:
    if error.errno == errno.EADDRINUSE:
        why = "is taken by another program; stop it, or give --hep another ADDR:PORT"
    elif error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        why = "is no address of this machine; give --hep one that is"
    elif error.errno == errno.EACCES:
        why = "may not be used by this user; give --hep a port above 1023"
    else:
        why = error.strerror or str(error)
    return CaptureError(error.errno, f"HEP {what} {host}:{port} {why}")


class UdpCapture:
    """One UDP socket, drained in ticks."""

    def __init__(self, deliver: Deliver, *, after_turn: Callable[[], None] | None = None) -> None:
        self._deliver = deliver
        self._after_turn = after_turn or (lambda: None)
        self._loop = asyncio.get_running_loop()
        self._idle = 0
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._drops = 0
        self.buffer_bytes = 0
        self.advice: str | None = None
        """What to do about a receive buffer that is smaller than was asked for."""

    def open(self, host: str, port: int, buffer_bytes: int) -> tuple[str, int]:
        """Bind and start reading; returns the address it got."""
        family, address = _resolve(host, port, socket.SOCK_DGRAM)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.bind(address)
        except OSError as error:
            sock.close()
            raise _explain(error, host, port, "UDP") from None
        self.buffer_bytes = _grow_buffer(sock, buffer_bytes)
        if self.buffer_bytes < buffer_bytes:
            self.advice = (
                f"the UDP receive buffer is {self.buffer_bytes} bytes, {buffer_bytes} were asked for;"
                f" bursts may be lost in the kernel: sysctl -w net.core.rmem_max={buffer_bytes}"
            )
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._first)
        bound: tuple[str, int] = sock.getsockname()[:2]
        return bound

    def kernel(self) -> tuple[int, int]:
        """Datagrams the kernel dropped at this socket, and bytes of `buffer_bytes` in use."""
        if self._socket is None:
            return self._drops, 0
        raw = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        figures = struct.unpack("9I", raw)
        self._drops = figures[8]
        return self._drops, figures[0] // 2

    def drain(self) -> None:
        """Read what the kernel already holds, and stop reading."""
        # no more than that: a sender that does not pause must not keep us
        most = 2 * self.kernel()[1] // LEAST_IN_KERNEL + 1
        sock, self._socket = self._socket, None
        if sock is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(sock.fileno())
        while most > 0 and (count := self._read(sock)):
            most -= count
        sock.close()

    def _first(self) -> None:
        """The first datagram after a pause: from here on a tick is cheaper than a wake-up each."""
        assert self._socket is not None
        self._loop.remove_reader(self._socket.fileno())
        self._idle = 0
        self._tick()

    def _tick(self) -> None:
        sock = self._socket
        if sock is None:
            return
        self._timer = self._loop.call_later(TICK, self._tick)  # whatever a receiver does: hear on
        count = self._read(sock)
        self._idle = 0 if count else self._idle + 1
        if count == PER_TURN:
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self._tick)
        elif self._idle >= IDLE_TICKS:
            self._timer.cancel()
            self._timer = None
            self._loop.add_reader(sock.fileno(), self._first)

    def _read(self, sock: socket.socket) -> int:
        now = self._loop.time()
        received_at = time.time_ns() // 1000
        deliver = self._deliver
        receive = sock.recvfrom
        count = 0
        while count < PER_TURN:
            try:
                data, address = receive(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # of the network, not of a datagram; the next turn looks again
                break
            count += 1
            deliver(data, now, received_at, address[0])
        if count:
            self._after_turn()
        return count


def _grow_buffer(sock: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer, with the privilege if we have it; returns what the kernel gave."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < wanted:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    # the kernel reports twice what it uses for data (socket(7))
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


class TcpCapture:
    """A HEP3 TCP listener: any number of connections per node, bounded in all."""

    def __init__(
        self,
        deliver: Deliver,
        *,
        connections: int,
        idle_seconds: float,
        after_turn: Callable[[], None] | None = None,
    ) -> None:
        self._deliver = deliver
        self._after_turn = after_turn or (lambda: None)
        self._limit = connections
        self.idle_seconds = idle_seconds
        self._open: dict[_Peer, None] = {}
        self._per_address: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.counters: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address it got."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Peer(self), host, port)
        except OSError as error:
            raise _explain(error, host, port, "TCP") from None
        self._sweep()
        bound: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return bound

    async def drain(self) -> None:
        """Stop listening, and close every connection after what it already delivered."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for peer in list(self._open):
            peer.drain()
        if self._server is not None:
            await self._server.wait_closed()

    def admit(self, peer: "_Peer") -> str | None:
        """Make room for one more connection, or tell why not; the longest idle one may go."""
        of_address = self._per_address[peer.address] >= PER_ADDRESS
        if of_address or len(self._open) >= self._limit:
            rivals = [p for p in self._open if not of_address or p.address == peer.address]
            idle = min(rivals, key=lambda p: p.last)
            if asyncio.get_running_loop().time() - idle.last < self.idle_seconds:
                return "refused-per-address" if of_address else "refused-full"
            # a node that lost its power left its connections open for ever
            idle.close("evicted-idle")
        self._open[peer] = None
        self._per_address[peer.address] += 1
        self.counters["accepted"] += 1
        return None

    def forget(self, peer: "_Peer") -> None:
        """A connection is gone."""
        if peer in self._open:
            del self._open[peer]
            self._per_address[peer.address] -= 1
            if not self._per_address[peer.address]:
                del self._per_address[peer.address]

    def deliver(self, frames: list[bytes], now: float, peer: str) -> None:
        """Frames of one read."""
        received_at = time.time_ns() // 1000
        for frame in frames:
            self._deliver(frame, now, received_at, peer)
        self._after_turn()

    def _sweep(self) -> None:
        """Close who holds back half a message: a byte a minute must not hold a connection."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for peer in list(self._open):
            if peer.since is not None and now - peer.since > self.idle_seconds:
                peer.close("closed-slow")
        self._sweeper = loop.call_later(min(self.idle_seconds / 2, 5.0), self._sweep)


class _Peer(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self, owner: TcpCapture) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self.stream = hep.HepStream()
        self.address = ""
        self.last = asyncio.get_running_loop().time()
        self.since: float | None = None
        """When the message began that is not complete yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        self.address = name[0] if name else ""
        self._transport = transport  # type: ignore[assignment]
        refusal = self._owner.admit(self)
        if refusal:
            self.close(refusal)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        now = asyncio.get_running_loop().time()
        self.last = now
        skipped = self.stream.skipped
        try:
            frames = self.stream.feed(data)
        except hep.HepError:
            self.close("closed-garbage")
            return
        if self.stream.skipped != skipped:
            self._owner.counters["resynchronised"] += 1
            self._owner.counters["skipped-bytes"] += self.stream.skipped - skipped
        if not self.stream.pending:
            self.since = None
        elif frames or self.since is None:
            self.since = now
        if frames:
            self._owner.deliver(frames, now, self.address)

    def connection_lost(self, _: Exception | None) -> None:
        if self._transport is not None:
            self._gone()

    def drain(self) -> None:
        """Take what the kernel already holds of it, and close."""
        left = MAX_IN_KERNEL
        while self._transport is not None and left > 0:
            try:
                data = os.read(self._transport.get_extra_info("socket").fileno(), READ_AT_ONCE)
            except OSError:  # nothing more now, or for ever
                break
            if not data:
                break
            self.data_received(data)
            left -= len(data)
        self.close("drained")

    def close(self, why: str) -> None:
        """Close, and count why."""
        if self._transport is not None:
            self._owner.counters[why] += 1
            self._transport.abort()
            self._gone()

    def _gone(self) -> None:
        self._transport = None
        if self.stream.pending:
            self._owner.counters["cut-message"] += 1
        self._owner.forget(self)
