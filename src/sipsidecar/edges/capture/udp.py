"""HEP over UDP: one socket, drained in ticks.

The reader owns its socket: after the first datagram it drains on a 1 ms tick instead of per
wake-up, which costs a third of the loop's own datagram endpoint.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable

from sipsidecar.edges.capture.sockets import (
    Complaint,
    Deliver,
    address_of,
    bound,
    inherited,
)

MAX_DATAGRAM = 65_535
PER_TURN = 64
"""Datagrams per turn, so that HTTP and the writer get theirs: at 256 the writer starved under
overload and its queue grew to three times the memory."""
TURN_SECONDS = 0.002
"""Time of a turn: on a slow or crowded machine 64 datagrams are too many for who waits meanwhile."""
HURRIED_SECONDS = 0.0005
"""The same while somebody asks whether calls may begin: a question waits for a turn or several."""
LOOK_EVERY = 8
"""Datagrams between looks at the clock."""
TICK = 0.001
IDLE_TICKS = 5
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
LEAST_IN_KERNEL = 256
"""Bytes that the kernel counts for a datagram at the very least."""


class UdpCapture:
    """One UDP socket, drained in ticks."""

    def __init__(self, deliver: Deliver, *, after_turn: Callable[[], None] | None = None) -> None:
        self._deliver = deliver
        self._after_turn = after_turn or (lambda: None)
        self._loop = asyncio.get_running_loop()
        self._broken = Complaint("a datagram's handling broke", is_bug=True)
        self._idle = 0
        self._more = False
        """The last turn ended before the kernel had no more."""
        self.hurried_until = 0.0
        """Loop time until which turns are short."""
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._drops = 0
        self.drops_before = 0
        """Drops of an inherited socket in lives before this one; `kernel` leaves them out."""
        self.buffer_bytes = 0
        self.advice: str | None = None
        """What to do about a receive buffer that is smaller than was asked for."""

    @property
    def errors(self) -> int:
        """How often a receiver raised: a bug. The datagram is lost, the next one is heard."""
        return self._broken.count

    def open(
        self, host: str, port: int, buffer_bytes: int, sock: socket.socket | None = None
    ) -> tuple[str, int]:
        """Bind, or take an inherited socket as it is, and start reading; returns its address."""
        if sock is None:
            sock = bound(socket.SOCK_DGRAM, host, port, "HEP UDP", "--hep")
            self.buffer_bytes = _grow_buffer(sock, buffer_bytes)
        else:
            sock = inherited(sock, socket.SOCK_DGRAM, "HEP UDP")
            self.buffer_bytes = _buffer_of(sock)
            if self.buffer_bytes < buffer_bytes:  # its maker may have given it more
                self.buffer_bytes = _grow_buffer(sock, buffer_bytes)
        if self.buffer_bytes < buffer_bytes:
            self.advice = (
                f"the UDP receive buffer is {self.buffer_bytes} bytes, {buffer_bytes} were asked for;"
                f" bursts may be lost in the kernel: sysctl -w net.core.rmem_max={buffer_bytes}"
            )
        self._drops = 0
        self.drops_before = _meminfo(sock)[1]
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._first)
        return address_of(sock)

    def kernel(self) -> tuple[int, int]:
        """Datagrams the kernel dropped since `open`, and bytes of `buffer_bytes` in use."""
        if self._socket is None:
            return self._drops, 0
        used, drops = _meminfo(self._socket)
        self._drops = (drops - self.drops_before) & 0xFFFFFFFF  # the kernel's counter has 32 bits
        return self._drops, used

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
        if self._more:
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
        until = time.monotonic() + (HURRIED_SECONDS if now < self.hurried_until else TURN_SECONDS)
        count = 0
        self._more = True
        while count < PER_TURN and (count % LOOK_EVERY or time.monotonic() < until):
            try:
                data, address = receive(MAX_DATAGRAM)
            except OSError:  # there is no more, or the network's trouble: the next turn looks again
                self._more = False
                break
            count += 1
            try:
                deliver(data, now, received_at, address[0])
            except Exception as error:  # noqa: BLE001 -- a bug must cost one datagram, not the rest
                self._broken(now, error)
        if count:
            try:
                self._after_turn()
            except Exception as error:  # noqa: BLE001 -- the same for a turn
                self._broken(now, error)
        return count


def _grow_buffer(sock: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer, with the privilege if we have it; returns what the kernel gave."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < wanted:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    return _buffer_of(sock)


def _buffer_of(sock: socket.socket) -> int:
    # the kernel reports twice what it uses for data (socket(7))
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def _meminfo(sock: socket.socket) -> tuple[int, int]:
    """Return bytes of data in the buffer, and datagrams dropped since the socket was made."""
    figures = struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return figures[0] // 2, figures[8]
