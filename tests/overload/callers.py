"""Callers who do not wait for each other: calls by a Poisson process, whatever becomes of them.

    python -m overload.callers --listen 127.0.0.1:5070 --proxy 127.0.0.1:5060 \
        --callee 127.0.0.1:5090 --stages 20:100,10:40

20 s of 100 calls/s, then 10 s of 40 calls/s. Each caller sends its INVITE again as RFC 3261
17.1.1.2 says, gives up after its patience (CANCEL), acknowledges, and hangs up soon after an
answer. What became of every call is said at the end as JSON.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import uvloop

from overload import sipwords
from overload.sipwords import T1, T2, Message


class Fate(NamedTuple):
    """What became of one call."""

    at: float
    """Monotonic seconds when it was to begin."""
    kind: str
    """First word of the called user."""
    outcome: str
    """answered, late (an answer after the caller had given up), refused, silent."""
    code: int | None
    """Its final response."""
    rule: str
    """X-Admission of a refusal."""
    seconds: float | None
    """From INVITE to final response."""
    copies: int
    """INVITEs that were sent."""


class Call:
    """One call of one caller."""

    def __init__(self, number: int, kind: str, at: float, mark: str) -> None:
        self.number = number
        self.kind = kind
        self.at = at
        self.mark = mark
        self.call_id = f"{mark}-{number}"
        self.branch = f"z9hG4bK{mark}{number}"
        self.copies = 0
        self.provisional = False
        self.given_up = False
        self.code: int | None = None
        self.rule = ""
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.bye: bytes | None = None
        self.bye_done = False
        self.cancel_done = False
        self.ack: bytes | None = None
        self.timer: asyncio.TimerHandle | None = None

    def fate(self) -> Fate:
        """What became of it."""
        outcome = "silent"
        if self.code is not None and self.code < 300:
            outcome = "late" if self.given_up else "answered"
        elif self.code not in (None, 408) and not self.given_up:  # 408: the proxy heard nothing
            outcome = "refused"
        seconds = None if self.ended_at is None else round(self.ended_at - self.at, 6)
        return Fate(
            round(self.at, 6), self.kind, outcome, self.code, self.rule, seconds, self.copies
        )


class Callers(asyncio.DatagramProtocol):
    """All callers of one run, at one socket."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._wire: asyncio.DatagramTransport
        host, port = wanted.proxy.rsplit(":", 1)
        self._proxy = (host, int(port))
        self._mark = wanted.mark
        self.calls: dict[str, Call] = {}
        self.late = 0.0
        """Most seconds that a call began after its time: the noise of the machine."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.DatagramTransport", transport)

    # ------------------------------------------------------------------------------- what it sends

    def begin(self, kind: str, at: float) -> None:
        """A new call."""
        call = Call(len(self.calls), kind, at, self._mark)
        self.calls[call.call_id] = call
        self.late = max(self.late, time.monotonic() - at)
        self._invite(call, T1)
        self._loop.call_later(self._wanted.patience, self._give_up, call)

    def _request(
        self, call: Call, method: str, branch: str, *, to: str = "", uri: str = "", route: str = ""
    ) -> bytes:
        wanted = self._wanted
        callee = f"sip:{call.kind}-{call.number}@{wanted.callee}"
        own = wanted.listen
        number = 2 if method == "BYE" else 1
        headers = [
            ("Via", f"SIP/2.0/UDP {own};branch={branch}"),
            ("From", f"<sip:caller-{call.number}@{own}>;tag=f{call.number}"),
            ("To", to or f"<{callee}>"),
            ("Call-ID", call.call_id),
            ("CSeq", f"{number} {method}"),
            ("Max-Forwards", "70"),
        ]
        if route:
            headers.append(("Route", route))
        if method == "INVITE":
            headers.append(("Contact", f"<sip:caller@{own}>"))
        return sipwords.text(f"{method} {uri or callee} SIP/2.0", *headers)

    def _invite(self, call: Call, wait: float) -> None:
        """Timer A: again and again until there is any response (RFC 3261 17.1.1.2)."""
        if call.provisional or call.given_up or call.code is not None:
            return
        call.copies += 1
        self._wire.sendto(self._request(call, "INVITE", call.branch), self._proxy)
        call.timer = self._loop.call_later(wait, self._invite, call, 2 * wait)

    def _give_up(self, call: Call) -> None:
        if call.code is not None:
            return
        call.given_up = True
        if call.provisional:  # before one a CANCEL must not be sent (RFC 3261 9.1)
            self._cancel(call, T1)

    def _cancel(self, call: Call, wait: float) -> None:
        if call.code is None and not call.cancel_done and wait < 4 * T2:
            self._wire.sendto(self._request(call, "CANCEL", call.branch), self._proxy)
            self._loop.call_later(min(wait, T2), self._cancel, call, 2 * wait)

    def _hang_up(self, call: Call, wait: float) -> None:
        """Timers E and F (RFC 3261 17.1.2.2)."""
        assert call.bye is not None
        if not call.bye_done and wait < 64 * T1:
            self._wire.sendto(call.bye, self._proxy)
            self._loop.call_later(min(wait, T2), self._hang_up, call, 2 * wait)

    # ----------------------------------------------------------------------------- what it is told

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = sipwords.read(data)
        call = self.calls.get(message.value("call-id")) if message else None
        if message is None or call is None or message.code is None:
            return
        if message.method == "BYE":
            call.bye_done = True
        elif message.method == "CANCEL":
            call.cancel_done = True
        elif message.code < 200:
            call.provisional = True
        else:
            self._final(call, message, message.code)

    def _final(self, call: Call, message: Message, code: int) -> None:
        if call.code is None:
            call.code = code
            call.ended_at = time.monotonic()
            call.rule = message.value("x-admission")
            if call.timer is not None:
                call.timer.cancel()
            to = message.value("to")
            if code < 300:
                route = ", ".join(reversed(message.headers.get("record-route", [])))
                ends = {
                    "to": to,
                    "uri": sipwords.address(message.value("contact")),
                    "route": route,
                }
                call.ack = self._request(call, "ACK", f"{call.branch}a", **ends)
                call.bye = self._request(call, "BYE", f"{call.branch}b", **ends)
                hold = 0.0 if call.given_up else self._wanted.hold
                self._loop.call_later(hold, self._hang_up, call, T1)
            else:  # of the transaction: the INVITE's own branch (RFC 3261 17.1.1.3)
                call.ack = self._request(call, "ACK", call.branch, to=to)
        if call.ack is not None and (code < 300) == (call.code < 300):
            self._wire.sendto(call.ack, self._proxy)


def arrivals(stages: Sequence[tuple[float, float]], rng: random.Random) -> Iterator[float]:
    """Seconds from the beginning to each call of a Poisson process of changing rate."""
    end = 0.0
    for seconds, rate in stages:
        at, end = end, end + seconds
        while rate > 0 and (at := at + rng.expovariate(rate)) < end:
            yield at


def read_stages(words: str) -> list[tuple[float, float]]:
    """`20:100,10:40` to pairs of seconds and calls per second."""
    pairs = (word.split(":") for word in words.split(","))
    return [(float(seconds), float(rate)) for seconds, rate in pairs]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--listen", required=True, metavar="ADDR:PORT")
    flags.add_argument("--proxy", required=True, metavar="ADDR:PORT")
    flags.add_argument("--callee", required=True, metavar="ADDR:PORT")
    flags.add_argument("--stages", required=True, metavar="SECONDS:RATE,...")
    flags.add_argument("--kinds", default="call", help="first words of called users, each as often")
    flags.add_argument("--patience", type=float, default=10.0, help="seconds (10)")
    flags.add_argument("--hold", type=float, default=0.2, help="seconds of an answered call (0.2)")
    flags.add_argument("--mark", default="load", help="first word of each Call-ID")
    flags.add_argument("--seed", type=int, default=1)
    return flags


async def call(wanted: argparse.Namespace) -> dict[str, Any]:
    """All calls, and what became of them."""
    loop = asyncio.get_running_loop()
    host, port = wanted.listen.rsplit(":", 1)
    wire, callers = await loop.create_datagram_endpoint(
        lambda: Callers(wanted), local_addr=(host, int(port))
    )
    rng = random.Random(wanted.seed)
    stages = read_stages(wanted.stages)
    kinds = wanted.kinds.split(",")
    began = time.monotonic() + 0.1
    for after in arrivals(stages, rng):
        at = began + after
        # Late is no reason to leave one out: the callers do not know how the rig does.
        wait = at - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        callers.begin(rng.choice(kinds), at)
    end = began + sum(seconds for seconds, _ in stages)
    await asyncio.sleep(max(end - time.monotonic(), 0))
    # Until the last has its answer or gave up, and has hung up.
    until = end + wanted.patience + wanted.hold + 1
    while time.monotonic() < until:
        if all(one.code is not None for one in callers.calls.values()):
            await asyncio.sleep(wanted.hold + 0.5)
            break
        await asyncio.sleep(0.2)
    wire.close()
    fates = [one.fate() for one in callers.calls.values()]
    return {"began": began, "late_ms": round(callers.late * 1000, 1), "calls": fates}


def main() -> int:
    """Run it as a program."""
    wanted = parser().parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(call(wanted))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
