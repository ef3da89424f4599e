"""An RTP endpoint of RFC 3550 with a bad network in front of it: what it sent, what it heard.

It sends G.711 packets of 20 ms and RTCP compounds over asyncio, and counts what it receives as
RFC 3550 A.1, A.3 and A.8 say. What goes wrong is done to packets after the sender has counted them,
as a network would: so its sender reports count a packet that is lost.
"""

import asyncio
import contextlib
import functools
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Address = tuple[str, int]

CLOCK_RATE = 8000
PACKET_SECONDS = 0.02
SAMPLES = 160
"""RTP timestamp units of a packet."""
SILENCE = b"\xff" * SAMPLES
NTP_1970 = 2_208_988_800

_RTP = struct.Struct(">BBHII")
_REPORT = struct.Struct(">BBHI")  # what SR and RR begin with
_SENDER = struct.Struct(">QIII")
_BLOCK = struct.Struct(">IIIIII")
_SR, _RR, _SDES, _BYE = 200, 201, 202, 203


@dataclass(frozen=True)
class Habits:
    """What one party sends, and what becomes of it on the way."""

    media: bool = True
    """False: it sends no RTP, so its reports are receiver reports."""
    reports: bool = True
    leaves: bool = False
    """It ends with an RTCP BYE, behind a receiver report without blocks."""
    loss: float = 0.0
    """Share of its media packets that never arrive."""
    jitter_ms: float = 0.0
    """Each media packet comes later by a uniform share of this; so packets overtake each other."""
    delay_ms: float = 0.0
    """Everything comes later by this, RTCP too."""


@dataclass(frozen=True)
class Said:
    """One report block as it was sent."""

    fraction: int
    lost: int
    highest: int
    jitter: int
    """RTP timestamp units."""
    expected: int
    """What the receiver itself knew then, and no report says."""

    @property
    def loss_percent(self) -> float:
        """Of all the packets up to this report."""
        return 100 * self.lost / self.expected


class Receiver:
    """RFC 3550's state of one source: sequence numbers (A.1), loss (A.3) and jitter (A.8)."""

    MIN_SEQUENTIAL = 2
    MAX_DROPOUT = 3000
    MAX_MISORDER = 100

    def __init__(self, sequence: int) -> None:
        self._start(sequence)
        self.highest = (sequence - 1) % 65536
        self._probation = self.MIN_SEQUENTIAL
        self._jitter = 0.0
        self._transit: float | None = None

    def _start(self, sequence: int) -> None:
        self.base = self.highest = sequence
        self._bad: int | None = None
        self.cycles = 0
        self.received = 0
        self._before = (0, 0)  # expected and received at the report before

    def see(self, sequence: int, timestamp: int, now: float) -> None:
        """Count one packet that came at `now` (seconds)."""
        if not self._counts(sequence):
            return
        transit = now * CLOCK_RATE - timestamp
        if self._transit is not None:
            self._jitter += (abs(transit - self._transit) - self._jitter) / 16
        self._transit = transit

    def _counts(self, sequence: int) -> bool:
        step = (sequence - self.highest) % 65536
        if self._probation:
            if step == 1:
                self._probation -= 1
                self.highest = sequence
                if not self._probation:
                    self._start(sequence)
                    self.received = 1
                    return True
            else:
                self._probation = self.MIN_SEQUENTIAL - 1
                self.highest = sequence
            return False
        if step < self.MAX_DROPOUT:
            if sequence < self.highest:
                self.cycles += 65536
            self.highest = sequence
        elif step <= 65536 - self.MAX_MISORDER:
            if sequence != self._bad:
                self._bad = (sequence + 1) % 65536
                return False
            self._start(sequence)
        self.received += 1
        return True

    @property
    def valid(self) -> bool:
        """The source has sent two packets in sequence."""
        return not self._probation

    @property
    def expected(self) -> int:
        return self.cycles + self.highest - self.base + 1

    @property
    def lost(self) -> int:
        return self.expected - self.received

    @property
    def heard(self) -> bool:
        """Packets came since the report before: only then a report has a block (6.4.1)."""
        return self.valid and self.received > self._before[1]

    def report(self) -> Said:
        """What the next block says; the interval begins anew."""
        expected, received = self.expected - self._before[0], self.received - self._before[1]
        self._before = self.expected, self.received
        lost = expected - received
        fraction = (lost << 8) // expected if expected > 0 and lost > 0 else 0
        highest = self.cycles + self.highest
        return Said(fraction, self.lost, highest, int(self._jitter), self.expected)


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._take(data)


def pair(ip: str) -> tuple[socket.socket, socket.socket]:
    """Two sockets on an even port and the one above it."""
    for _ in range(50):
        port = random.randrange(20000, 30000, 2)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            both = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
            for number, one in enumerate(both):
                stack.callback(one.close)
                one.setblocking(False)
                one.bind((ip, port + number))
            stack.pop_all()
            return both[0], both[1]
    raise AssertionError(f"no pair of ports is free on {ip}")


@dataclass
class Endpoint:
    """One party's media: open, start, stop; then its counts are the truth."""

    habits: Habits
    seed: int
    report_seconds: float
    """Mean time between two reports."""
    sent: int = 0
    """Media packets, those that the network lost too."""
    dropped: int = 0
    arrived: int = 0
    """Media packets of the other party that came here."""
    receiver: Receiver | None = None
    said: list[Said] = field(default_factory=list)
    """Every block that was sent, in order."""
    round_trips: list[float] = field(default_factory=list)
    """Milliseconds, as this party measured them by LSR and DLSR (RFC 3550 6.4.1)."""
    address: Address = ("", 0)
    """Where it wants media; RTCP is one port above."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.ssrc = self._random.getrandbits(32)
        self._sequence = self._random.getrandbits(16)
        self._timestamp = self._random.getrandbits(32)
        self._drops: frozenset[int] = frozenset()
        self._heard_ssrc = 0
        self._last_sr: tuple[int, float] | None = None  # middle of its NTP time, when it came
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._transports: list[asyncio.DatagramTransport] = []

    async def open(self, ip: str) -> None:
        """Take a pair of ports, the lower one for RTP."""
        self._loop = asyncio.get_running_loop()
        for sock, take in zip(pair(ip), (self._take_rtp, self._take_rtcp), strict=True):
            transport, _ = await self._loop.create_datagram_endpoint(
                functools.partial(_Socket, take), sock=sock
            )
            self._transports.append(transport)
        self.address = ip, self._transports[0].get_extra_info("sockname")[1]

    def start(self, peer: Address, seconds: float) -> None:
        """Send to a peer's `address` for so long."""
        self._peer, self._rtcp_peer = peer, (peer[0], peer[1] + 1)
        self._packets = round(seconds / PACKET_SECONDS) if self.habits.media else 0
        # Exactly so many, wherever they are.
        self._drops = frozenset(
            self._random.sample(range(self._packets), round(self._packets * self.habits.loss))
        )
        self._began = self._loop.time()
        self._ends = self._began + seconds
        if self._packets:
            self._tick()
        if self.habits.reports:
            self._later("report", self._began + self._pause() / 2, self._report)

    def stop(self) -> None:
        """Send nothing more; what is on its way still arrives."""
        for timer in self._timers.values():
            timer.cancel()
        if self.habits.leaves:
            self._send_rtcp(
                _REPORT.pack(0x80, _RR, 1, self.ssrc)
                + self._description()
                + _REPORT.pack(0x81, _BYE, 1, self.ssrc)
            )

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for transport in self._transports:
            transport.close()

    # ------------------------------------------------------------------------------------ sending

    def _later(self, name: str, when: float, what: Callable[[], None]) -> None:
        self._timers[name] = self._loop.call_at(when, what)

    def _tick(self) -> None:
        number = self.sent
        self.sent += 1
        sequence = (self._sequence + number) % 65536
        timestamp = (self._timestamp + number * SAMPLES) % 2**32
        marker = 0 if number else 0x80  # of the first packet; the payload type is 0, PCMU
        packet = _RTP.pack(0x80, marker, sequence, timestamp, self.ssrc)
        if number in self._drops:
            self.dropped += 1
        else:
            late = self.habits.delay_ms + self._random.uniform(0, self.habits.jitter_ms)
            self._deliver(0, packet + SILENCE, self._peer, late)
        if self.sent < self._packets:
            self._later("media", self._began + self.sent * PACKET_SECONDS, self._tick)

    def _deliver(self, which: int, packet: bytes, peer: Address, late_ms: float) -> None:
        transport = self._transports[which]

        def send() -> None:
            if not transport.is_closing():
                transport.sendto(packet, peer)

        if late_ms:
            self._loop.call_later(late_ms / 1e3, send)
        else:
            send()

    def _send_rtcp(self, compound: bytes) -> None:
        self._deliver(1, compound, self._rtcp_peer, self.habits.delay_ms)

    def _pause(self) -> float:
        return self.report_seconds * self._random.uniform(0.5, 1.5)  # RFC 3550 6.3.1

    def _report(self) -> None:
        blocks = self._blocks()
        count = len(blocks) // _BLOCK.size
        words = len(blocks) // 4 + 1
        if self.sent:
            now = self._loop.time()
            timestamp = self._timestamp + int((now - self._began) * CLOCK_RATE)
            info = (_ntp(), timestamp % 2**32, self.sent, self.sent * SAMPLES)
            head = _REPORT.pack(0x80 | count, _SR, words + 5, self.ssrc) + _SENDER.pack(*info)
        else:
            head = _REPORT.pack(0x80 | count, _RR, words, self.ssrc)
        self._send_rtcp(head + blocks + self._description())
        pause = self._pause()
        if self._loop.time() + pause < self._ends:
            self._later("report", self._loop.time() + pause, self._report)

    def _blocks(self) -> bytes:
        if self.receiver is None or not self.receiver.heard:
            return b""
        said = self.receiver.report()
        self.said.append(said)
        lsr = dlsr = 0
        if self._last_sr is not None:
            lsr, came = self._last_sr
            dlsr = int((self._loop.time() - came) * 65536)
        return _BLOCK.pack(
            self._heard_ssrc,
            said.fraction << 24 | said.lost & 0xFFFFFF,
            said.highest,
            said.jitter,
            lsr,
            dlsr,
        )

    def _description(self) -> bytes:
        name = f"{self.ssrc:08x}@lab".encode()
        chunk = struct.pack(">IBB", self.ssrc, 1, len(name)) + name
        chunk += bytes(4 - len(chunk) % 4)
        return struct.pack(">BBH", 0x81, _SDES, len(chunk) // 4) + chunk

    # ---------------------------------------------------------------------------------- receiving

    def _take_rtp(self, packet: bytes) -> None:
        _, _, sequence, timestamp, ssrc = _RTP.unpack_from(packet)
        self.arrived += 1
        if self.receiver is None or ssrc != self._heard_ssrc:
            self.receiver, self._heard_ssrc = Receiver(sequence), ssrc
        self.receiver.see(sequence, timestamp, self._loop.time())

    def _take_rtcp(self, compound: bytes) -> None:
        at = 0
        while at + 8 <= len(compound):
            first, kind, words, _ = _REPORT.unpack_from(compound, at)
            block = at + _REPORT.size
            if kind == _SR:
                ntp, *_ = _SENDER.unpack_from(compound, block)
                self._last_sr = ntp >> 16 & 0xFFFFFFFF, self._loop.time()
                block += _SENDER.size
            for _ in range(first & 31 if kind in {_SR, _RR} else 0):
                source, *_, lsr, dlsr = _BLOCK.unpack_from(compound, block)
                if source == self.ssrc and lsr:
                    units = ((_ntp() >> 16) - lsr - dlsr) % 2**32
                    self.round_trips.append(units / 65.536 if units < 2**31 else 0.0)
                block += _BLOCK.size
            at += 4 * (words + 1)


def _ntp() -> int:
    """Now as NTP's 32.32 fixed point."""
    return (NTP_1970 << 32) + (time.time_ns() << 32) // 10**9
