"""HEP over TCP and TLS: two listeners, and connections that are bounded in all.

The sockets are ours, not the loop's: who may connect is asked, and how many may, before anything
is built for a connection, and a TLS handshake counts from its first byte. Connections are always
read, and what cannot be used is dropped in user space: a collector that stops reading makes agents
close and lose more.
"""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable

from sipsidecar.edges.capture.session import TlsSession
from sipsidecar.edges.capture.sockets import (
    Complaint,
    Deliver,
    address_of,
    bound,
    inherited,
)
from sipsidecar.wire import hep

PER_ADDRESS = 64
"""TCP connections from one address: a node's workers may each have one."""
HANDSHAKES = 64
"""TLS handshakes at one time. They come on top of the connections: who has not shown a certificate
cannot drive out who has. Few, since each costs the loop up to a millisecond of signing."""
HANDSHAKES_PER_ADDRESS = 16
HANDSHAKE_SECONDS = 5.0
CROWDED_SECONDS = 1.0
"""Time that a handshake has when all `HANDSHAKES` are in use and another peer comes."""
READ_AT_ONCE = 16 * 1024
READS_PER_TURN = 2
"""Per connection: about two hundred messages, so that the others get their turn."""
MAX_IN_KERNEL = 64 * 2**20
"""Bytes that are still read from a connection at drain; socket buffers are smaller."""
ACCEPTS_PER_TURN = 32
BACKLOG = 512
"""Connections that the kernel holds while we pause."""
PAUSE = 0.1
LONGEST_PAUSE = 1.0
"""Seconds of rest after `accept` failed: without descriptors it fails again at once."""
SWEEP = 1.0
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}
"""Seconds, seconds, probes: a node that lost its power leaves its connections open for ever."""
TLS_HELLO = b"\x16\x03"
HEP_MARKS = (b"HEP", b"EEP")

MakeContext = Callable[[], ssl.SSLContext]


class TcpCapture:
    """HEP3 listeners: any number of connections per node, bounded in all."""

    def __init__(
        self,
        deliver: Deliver,
        *,
        connections: int,
        idle_seconds: float,
        after_turn: Callable[[], None] | None = None,
        admits: Callable[[str], bool] | None = None,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        """`admits` tells by a peer's address whether it may connect at all."""
        self._deliver = deliver
        self._after_turn = after_turn or (lambda: None)
        self._admits = admits or (lambda _: True)
        self._limit = connections
        self.idle_seconds = idle_seconds
        self.handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._broken = Complaint("a packet's handling broke", is_bug=True)
        self._starved = Complaint(
            "HEP connections cannot be accepted; raise LimitNOFILE or `ulimit -n`", is_bug=False
        )
        self._open: dict[_Peer, None] = {}
        self._handshakes: dict[_Peer, None] = {}
        self._per_address: Counter[str] = Counter()
        self._listeners: list[_Listener] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._make_context: MakeContext | None = None
        self._context: ssl.SSLContext | None = None
        self.counters: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many are open; handshakes are not counted."""
        return len(self._open)

    @property
    def handshakes(self) -> int:
        """How many TLS handshakes are under way."""
        return len(self._handshakes)

    @property
    def errors(self) -> int:
        """How often a receiver raised: a bug. The packet is lost, the next one is heard."""
        return self._broken.count

    async def open(
        self, host: str, port: int, sock: socket.socket | None = None
    ) -> tuple[str, int]:
        """Listen, or take an inherited socket as it is; returns its address."""
        if sock is None:
            sock = bound(socket.SOCK_STREAM, host, port, "HEP TCP", "--hep")
        else:
            sock = inherited(sock, socket.SOCK_STREAM, "HEP TCP")
        return self._listen(sock, self._arrive)

    async def open_tls(
        self,
        host: str,
        port: int,
        make_context: MakeContext,
        sock: socket.socket | None = None,
    ) -> tuple[str, int]:
        """Listen for TLS; what `make_context` raises comes out of here and of `reload_tls`."""
        self._make_context = make_context
        self.reload_tls()
        if sock is None:
            sock = bound(socket.SOCK_STREAM, host, port, "HEP TLS", "hep.tls_listen")
        else:
            sock = inherited(sock, socket.SOCK_STREAM, "HEP TLS")
        return self._listen(sock, self._arrive_tls)

    def reload_tls(self) -> None:
        """Read the certificates again, for handshakes from now on; after an error the old stay."""
        if self._make_context is not None:
            context = self._make_context()
            # Agents only send. A ticket that they never read would turn their close into a reset,
            # and a reset throws away what is still on its way to us.
            context.num_tickets = 0
            self._context = context

    async def drain(self) -> None:
        """Stop listening, and close every connection after what it already delivered."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for peer in [*self._open, *self._handshakes]:
            peer.drain()

    # -- what listeners and connections call

    def admit(self, peer: "_Peer") -> str | None:
        """Make room for one more connection, or tell why not; the longest idle one may go."""
        of_address = self._per_address[peer.address] >= PER_ADDRESS
        if of_address or len(self._open) >= self._limit:
            rivals = [p for p in self._open if not of_address or p.address == peer.address]
            idle = min(rivals, key=lambda p: p.last)
            if self._loop.time() - idle.last < self.idle_seconds:
                return "refused-per-address" if of_address else "refused-full"
            # a node that lost its power left its connections open
            idle.close("evicted-idle")
        self._handshakes.pop(peer, None)
        self._open[peer] = None
        self._per_address[peer.address] += 1
        self.counters["accepted"] += 1
        return None

    def forget(self, peer: "_Peer") -> None:
        """A connection is gone."""
        self._handshakes.pop(peer, None)
        if peer in self._open:
            del self._open[peer]
            self._per_address[peer.address] -= 1
            if not self._per_address[peer.address]:
                del self._per_address[peer.address]

    def deliver(self, frames: list[bytes], now: float, peer: str) -> None:
        """Frames of one read."""
        received_at = time.time_ns() // 1000
        for frame in frames:
            try:
                self._deliver(frame, now, received_at, peer)
            except Exception as error:  # noqa: BLE001 -- a bug must cost one packet, not the rest
                self._broken(now, error)
        try:
            self._after_turn()
        except Exception as error:  # noqa: BLE001 -- the same for a turn
            self._broken(now, error)

    # -- own

    def _listen(
        self, sock: socket.socket, arrive: Callable[[socket.socket, str], None]
    ) -> tuple[str, int]:
        for option, value in KEEP_ALIVE.items():  # what is accepted takes over these
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(BACKLOG)
        self._listeners.append(_Listener(sock, arrive, self._accept_failed))
        if self._sweeper is None:
            self._sweep()
        return address_of(sock)

    def _accept_failed(self, error: OSError) -> None:
        self.counters["accept-failed"] += 1
        self._starved(self._loop.time(), error)

    def _arrive(self, sock: socket.socket, address: str) -> None:
        if not self._admits(address):
            self.counters["refused-not-allowed"] += 1
            sock.close()
            return
        peer = _Peer(self, sock, address, None)
        refusal = self.admit(peer)
        if refusal:
            peer.close(refusal)

    def _arrive_tls(self, sock: socket.socket, address: str) -> None:
        refusal = None
        if not self._admits(address):
            refusal = "refused-not-allowed"
        elif sum(p.address == address for p in self._handshakes) >= HANDSHAKES_PER_ADDRESS:
            refusal = "refused-handshakes"
        elif len(self._handshakes) >= HANDSHAKES:
            oldest = next(iter(self._handshakes))
            if self._loop.time() - oldest.began < CROWDED_SECONDS:
                refusal = "refused-handshakes"
            else:
                oldest.close("handshake-timeout")
        if refusal:
            self.counters[refusal] += 1
            sock.close()
            return
        assert self._context is not None
        peer = _Peer(self, sock, address, TlsSession(self._context))
        self._handshakes[peer] = None

    def _sweep(self) -> None:
        """Close who holds back half a message or handshake: a byte a minute holds no connection."""
        now = self._loop.time()
        for peer in list(self._handshakes):
            if now - peer.began > self.handshake_seconds:
                peer.close("handshake-timeout")
        for peer in list(self._open):
            if peer.since is not None and now - peer.since > self.idle_seconds:
                peer.close("closed-slow")
            elif not self._admits(peer.address):  # the list has changed since it came
                peer.close("closed-not-allowed")
        every = min(self.idle_seconds / 2, self.handshake_seconds / 2, SWEEP)
        self._sweeper = self._loop.call_later(every, self._sweep)


class _Listener:
    """Accepts the connections of one socket; a lack of descriptors only makes it pause."""

    def __init__(
        self,
        sock: socket.socket,
        arrive: Callable[[socket.socket, str], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._arrive = arrive
        self._failed = failed
        self._pause = PAUSE
        self._timer: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Accept no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _resume(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # it left before we came
                continue
            except OSError as error:
                self._failed(error)
                self._loop.remove_reader(self._socket.fileno())
                self._timer = self._loop.call_later(self._pause, self._resume)
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return
            self._pause = PAUSE
            sock.setblocking(False)
            self._arrive(sock, address[0])


class _Peer:
    """One connection, from `accept` to its end."""

    def __init__(
        self, owner: TcpCapture, sock: socket.socket, address: str, session: TlsSession | None
    ) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = sock
        self._session = session
        self._silent = True
        self._again: asyncio.Handle | None = None
        self.address = address
        self.stream = hep.HepStream()
        self.began = self.last = self._loop.time()
        self.since: float | None = None
        """When the message began that is not complete yet."""
        self._loop.add_reader(sock.fileno(), self._readable)

    def drain(self) -> None:
        """Take what the kernel already holds of it, and close."""
        left = MAX_IN_KERNEL
        while left > 0 and (count := self._read()):
            left -= count
        self.close("drained")

    def close(self, why: str | None) -> None:
        """Close, and count why; None where the peer closed."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        if why is not None:
            self._owner.counters[why] += 1
        if self.stream.pending:
            self._owner.counters["cut-message"] += 1
        self._owner.forget(self)
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(sock.fileno())
        sock.close()

    def _readable(self) -> None:
        """Read until the kernel has no more, a few pieces per turn.

        Not just once: after a reset uvloop calls a reader one last time, and data may be in front
        of the end.
        """
        for _ in range(READS_PER_TURN):
            if not self._read():
                return
        if self._again is None and self._socket is not None:
            self._again = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._again = None
        self._readable()

    def _read(self) -> int:
        """Read once; returns how many bytes."""
        if self._socket is None:
            return 0
        try:
            data = self._socket.recv(READ_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # such as a reset
            data = b""
        if data:
            self._take(data)
        elif self._session is not None and not self._session.ready:
            self.close("handshake-failed")
        else:
            self.close(None)
        return len(data)

    def _take(self, data: bytes) -> None:
        """Bytes off the socket."""
        silent, self._silent = self._silent, False
        session = self._session
        if session is None:
            if silent and data.startswith(TLS_HELLO):
                self.close("tls-on-plain")
            else:
                self._hear(data)
            return
        if silent and data.startswith(HEP_MARKS):
            self.close("plain-on-tls")
            return
        shaking = not session.ready
        clear = session.receive(data)
        if shaking and session.ready:
            refusal = self._owner.admit(self)
            if refusal:
                self.close(refusal)
        if clear:
            self._hear(clear)
        self._send(session.to_send())
        if session.failed:
            self.close("closed-garbage" if session.ready else "handshake-failed")
        elif session.ended:
            self.close(None)

    def _send(self, data: bytes) -> None:
        """Hand handshake messages and alerts to the kernel; nothing of ours waits for a peer."""
        if not data or self._socket is None:
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the next read tells, after what the peer still said
            return
        if sent < len(data):  # it fits into any empty buffer: this peer does not read
            self.close("closed-unread")

    def _hear(self, data: bytes) -> None:
        """Bytes in clear."""
        if self._socket is None:
            return
        owner = self._owner
        self.last = now = self._loop.time()
        skipped = self.stream.skipped
        try:
            frames = self.stream.feed(data)
        except hep.HepError:
            self.close("closed-garbage")
            return
        if self.stream.skipped != skipped:
            owner.counters["resynchronised"] += 1
            owner.counters["skipped-bytes"] += self.stream.skipped - skipped
        if not self.stream.pending:
            self.since = None
        elif frames or self.since is None:
            self.since = now
        if frames:
            owner.deliver(frames, now, self.address)
