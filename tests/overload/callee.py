"""A callee of known capacity: one worker, a queue of bounded length, first come first served.

    python -m overload.callee --listen 127.0.0.1:5090 --capacity 50

Each INVITE costs the worker 1/C seconds. One that is sent again while the first copy waits costs
as much (`--again`): the worker does not look at what it holds before it has worked on it, and works
for callers who are gone. The time is spent by waiting, not by computing, so that the capacity does
not depend on the machine. All other requests are answered at once and cost nothing.

It ends by SIGTERM and says then, as JSON, what it did in each second.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from typing import Any, cast

import uvloop

from overload import sipwords

SURVEY = b"HOW LONG"
"""A datagram of this text is answered with the queue's length in milliseconds."""
GIVES_UP = 32.0
"""Seconds after which a 200 without ACK is not sent again (RFC 3261 13.3.1.4)."""


class Work:
    """The worker's clock: what comes when it is free again is begun at once, the rest waits."""

    def __init__(self, capacity: float, buffer: int) -> None:
        self._each = 1 / capacity
        self._buffer = buffer
        self._free_at = 0.0
        self._waiting = 0

    def delay(self, now: float) -> float:
        """Seconds that a newcomer waits before it is begun."""
        return max(self._free_at - now, 0.0)

    def take(self, now: float, cost: float) -> float | None:
        """When work that costs so many calls is done; None when the queue is full."""
        if self._waiting >= self._buffer:
            return None
        self._waiting += 1
        self._free_at = max(self._free_at, now) + cost * self._each
        return self._free_at

    def done(self) -> None:
        """What was taken first is done."""
        self._waiting -= 1


class Invited:
    """One INVITE transaction."""

    def __init__(self, request: sipwords.Message, source: tuple[str, int], code: int) -> None:
        self.request = request
        self.source = source
        self.code = code
        self.final: bytes | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.acknowledged = False
        self.cancelled = False


class Callee(asyncio.DatagramProtocol):
    """Answers calls, as fast as its worker can."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self._wanted = wanted
        self._work = Work(wanted.capacity, wanted.buffer)
        self._loop = asyncio.get_running_loop()
        self._invited: dict[str, Invited] = {}
        self._by_call: dict[str, Invited] = {}
        self._wire: asyncio.DatagramTransport
        self._contact = f"<sip:callee@{wanted.listen}>"
        self.seconds: dict[int, dict[str, float]] = {}
        """What was done in each second of the monotonic clock."""
        self.late = 0.0
        """Most seconds that an answer left after its time: the noise of the machine."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        now = time.monotonic()
        if data == SURVEY:
            self._wire.sendto(f"{self._work.delay(now) * 1000:.1f}".encode(), addr)
            return
        message = sipwords.read(data)
        if message is None or message.code is not None:
            return
        if message.method == "INVITE":
            self._invite(message, addr, now)
        elif message.method == "ACK":
            held = self._by_call.get(message.value("call-id"))
            if held is not None:
                held.acknowledged = True
                if held.timer is not None:
                    held.timer.cancel()
        else:
            self._wire.sendto(sipwords.answer(message, 200, "OK", "callee"), addr)
            if message.method == "CANCEL":
                held = self._invited.get(message.branch)
                if held is not None:
                    held.cancelled = True

    def _invite(self, message: sipwords.Message, addr: tuple[str, int], now: float) -> None:
        wanted = self._wanted
        delay = self._work.delay(now)
        self._count(now, "delay_ms", delay * 1000)
        held = self._invited.get(message.branch)
        code, cost = 200, 1.0 if held is None else wanted.again
        if held is None and wanted.guard_ms and delay * 1000 > wanted.guard_ms:
            code, cost = 486, wanted.refusal
        at = self._work.take(now, cost)
        if at is None:
            self._count(now, "dropped")
            return
        if held is None:
            held = self._invited[message.branch] = Invited(message, addr, code)
            self._by_call[message.value("call-id")] = held
        # The loop's clock is the monotonic one.
        self._loop.call_at(at, self._worked, held, at)

    def _worked(self, held: Invited, due: float) -> None:
        self._work.done()
        now = time.monotonic()
        self.late = max(self.late, now - due)
        if held.final is not None:
            self._count(now, "again")
            if not held.acknowledged:
                self._wire.sendto(held.final, held.source)
            return
        code = 487 if held.cancelled else held.code
        self._count(now, "served" if code == 200 else "refused")
        phrase = {200: "OK", 486: "Busy Here", 487: "Request Terminated"}[code]
        more = [("Contact", self._contact)] if code == 200 else []
        held.final = sipwords.answer(held.request, code, phrase, "callee", *more)
        self._send(held, sipwords.T1, now)

    def _send(self, held: Invited, wait: float, since: float) -> None:
        assert held.final is not None
        self._wire.sendto(held.final, held.source)
        if not held.acknowledged and time.monotonic() - since < GIVES_UP:
            longer = min(2 * wait, sipwords.T2)
            held.timer = self._loop.call_later(wait, self._send, held, longer, since)

    def _count(self, now: float, what: str, value: float = 1) -> None:
        second = self.seconds.setdefault(int(now), {})
        if what == "delay_ms":
            second[what] = max(second.get(what, 0.0), round(value, 1))
        else:
            second[what] = second.get(what, 0) + value

    def said(self) -> dict[str, Any]:
        """What it did, as JSON can hold it."""
        return {"seconds": self.seconds, "late_ms": round(self.late * 1000, 1)}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--listen", required=True, metavar="ADDR:PORT")
    flags.add_argument("--capacity", type=float, default=50, help="calls per second (50)")
    flags.add_argument("--buffer", type=int, default=2000, help="messages that may wait (2000)")
    flags.add_argument("--again", type=float, default=1.0, help="cost of an INVITE sent again (1)")
    flags.add_argument("--guard-ms", type=float, default=0, help="refuse after such a wait (0: no)")
    flags.add_argument("--refusal", type=float, default=0.1, help="cost of refusing itself (0.1)")
    return flags


async def serve(wanted: argparse.Namespace) -> dict[str, Any]:
    """Answer until SIGTERM; what was done."""
    loop = asyncio.get_running_loop()
    host, port = wanted.listen.rsplit(":", 1)
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    wire, callee = await loop.create_datagram_endpoint(
        lambda: Callee(wanted), local_addr=(host, int(port))
    )
    await over.wait()
    wire.close()
    return callee.said()


def main() -> int:
    """Run it as a program."""
    wanted = parser().parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(serve(wanted))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
