"""A FreeSWITCH that is killed, restarted, silent, gone without a word and far too talkative.

    python -m chaos.freeswitch --restarts 20 --queued 100000

The fake switch is a process of its own with calls of its own; here is its client, with the leg
table and the live counts that the sidecar has. After each fault the live count must be the switch's
within one heartbeat, and after the second half of the restarts there may be no more memory,
descriptors or tasks than after the first: what leaked, leaks again.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from chaos import lab
from chaos.results import Result, command, progress
from fakeswitch import Call, FakeSwitch, Setup
from sipsidecar.calls.legs import LegTable
from sipsidecar.edges.freeswitch import FreeSwitch
from sipsidecar.edges.host import release_memory
from sipsidecar.signals.switches import Switches
from sipsidecar.wire import esl

NAME = "fs1"
PASSWORD = "of-the-fake"  # noqa: S105
LIMIT = 30.0
"""Seconds after which a fault counts as never repaired."""


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--restarts", type=int, default=20)
    flags.add_argument("--seconds", type=float, default=2.0, help="of calls between restarts")
    flags.add_argument("--calls", type=float, default=20.0, help="calls per second")
    flags.add_argument("--heartbeat", type=float, default=2.0, help="seconds between heartbeats")
    flags.add_argument("--queued", type=int, default=100_000, help="events at once")
    flags.add_argument("--growth-mb", type=float, default=16, help="bound of resident memory")
    flags.add_argument("--seed", type=int, default=1)
    return flags


# -------------------------------------------------------------------------------------- the switch


class Switch(FakeSwitch):
    """One that may be asked for its Core-UUID, as the real one."""

    async def start(self, port: int = 0) -> tuple[str, int]:
        """Listen, with a new Core-UUID."""
        address = await super().start(port)
        self.core.variables["core_uuid"] = self.core.core_uuid
        return address


class Served:
    """The fake with its calls; does what lines of JSON on standard input say."""

    def __init__(self, setup: Setup, rate: float) -> None:
        self.switch = Switch(setup)
        self.rate = rate
        self.open: deque[Call] = deque()
        self.forgotten: list[int] = []

    async def run(self) -> None:
        """Until the input ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with self.switch:
            calling = asyncio.create_task(self._call_for_ever())
            self._say(port=self.switch.address[1])
            while line := await reader.readline():
                said = json.loads(line)
                await getattr(self, "do_" + said.pop("do"))(**said)
                core = self.switch.core
                self._say(live=len(core.channels), core_uuid=core.core_uuid)
            calling.cancel()

    def _say(self, **words: Any) -> None:
        print(json.dumps(words), flush=True)

    async def _call_for_ever(self) -> None:
        while True:
            await asyncio.sleep(1 / self.rate if self.rate else 0.05)
            if self.rate:
                self.open.append(self.switch.call("b_bye", ends=False))
                if len(self.open) > 3 * self.rate:
                    self.switch.play(self.open.popleft())

    async def do_ask(self) -> None:
        """Nothing: the answer says what is live."""

    async def do_rate(self, rate: float) -> None:
        """So many new calls per second; those that go on stay."""
        self.rate = rate

    async def do_restart(self, *, kill: bool, down: float) -> None:
        """End, and come back; the calls of before have no end."""
        self.open.clear()
        await self.switch.restart(kill=kill, down=down)

    async def do_end_calls(self) -> None:
        """Hang up all."""
        while self.open:
            self.switch.play(self.open.popleft())

    async def do_silent(self) -> None:
        """Connections open, nothing read or sent."""
        self.switch.silent()

    async def do_resume(self) -> None:
        """As before."""
        self.switch.resume()

    async def do_vanish(self) -> None:
        """Forget connections without a FIN or RST, as a machine does that lost its power."""
        for peer in list(self.switch._peers):
            # The copy keeps the connection, which nobody reads or writes any more.
            self.forgotten.append(os.dup(peer.writer.get_extra_info("socket").fileno()))
            peer.cut()

    async def do_big(self, size: int) -> None:
        """One event of this size, of a leg that ends at once."""
        self.switch.emit("CHANNEL_ANSWER", {"Unique-ID": "big", "variable_x": "x" * size})
        self.switch.emit("CHANNEL_DESTROY", {"Unique-ID": "big"})

    async def do_queue(self, count: int) -> None:
        """Many events before one of them can be sent."""
        self.switch.queue(count, "CHANNEL_BRIDGE")


class Child:
    """The process with the switch."""

    def __init__(self, wanted: argparse.Namespace, errors: Path) -> None:
        self.errors = errors
        self._file = errors.open("ab")
        said = json.dumps({"heartbeat": wanted.heartbeat, "calls": wanted.calls})
        # It ends with its input, so that it does not outlive us.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chaos.freeswitch", "--serve", said],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._file,
            cwd=Path(__file__).parents[1],
        )

    async def read(self) -> dict[str, Any]:
        """Its next answer."""
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, lab.tail(self.errors)
        said: dict[str, Any] = json.loads(line)
        return said

    async def do(self, what: str, **how: Any) -> dict[str, Any]:
        """Have it do something; what is live afterwards."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **how}).encode() + b"\n")
        self.process.stdin.flush()
        return await self.read()

    def end(self) -> None:
        """No more."""
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout, self._file):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def serve(heartbeat: float, calls: float) -> None:
    """Be the switch."""
    asyncio.run(Served(Setup(password=PASSWORD, heartbeat=heartbeat), calls).run())


# -------------------------------------------------------------------------------------- its client


class Client:
    """What the sidecar does with a switch, without the rest of it."""

    def __init__(self, port: int, heartbeat: float, seed: int) -> None:
        self.legs = LegTable()
        self.switches = Switches([NAME])
        self.records = self.bridges = self.big = 0
        self._rng = random.Random(seed)
        self.edge = FreeSwitch(
            NAME,
            "127.0.0.1",
            port,
            password=PASSWORD,
            deliver=self._deliver,
            restarted=self._restarted,
            channels=self._channels,
            live=self.legs.live,
            heartbeat_seconds=2 * heartbeat,
            chance=self._rng.random,
            # A day of pauses would make the run a day: the schedule has its own test.
            pause=lambda seconds: asyncio.sleep(min(seconds, 0.1)),
        )

    def _deliver(self, name: str, event: esl.Event, now: float, received_at: int) -> None:
        self.bridges += event.event_name == "CHANNEL_BRIDGE" and event.unique_id is None
        self.big += event.unique_id == "big"
        self.switches.receive(name, msgspec.structs.asdict(event), now)
        self.legs.receive(name, event, now, received_at)

    def _restarted(self, name: str, core_uuid: str) -> None:
        self.switches.restarted(name, core_uuid)
        self.legs.forget_switch(name, core_uuid)

    def _channels(self, name: str, uuids: list[str]) -> None:
        self.switches.reconcile(name, uuids)
        self.legs.reconcile(name, uuids, asyncio.get_running_loop().time())

    async def tick(self) -> None:
        """Let legs leave, for ever."""
        while True:
            await asyncio.sleep(0.02)
            self.legs.handle_timer(asyncio.get_running_loop().time())
            self.records += len(self.legs.records())

    @property
    def live(self) -> int | None:
        """As the metrics show it."""
        return self.switches.snapshot(asyncio.get_running_loop().time())[0].live_legs


class Run:
    """One switch, one client, and the faults."""

    def __init__(self, wanted: argparse.Namespace, result: Result, child: Child, port: int) -> None:
        self.wanted = wanted
        self.result = result
        self.child = child
        self.client = Client(port, wanted.heartbeat, wanted.seed)
        self.slowest = 0.0
        self.wrong: list[str] = []

    async def until(self, holds: Callable[[], bool], seconds: float = LIMIT) -> bool:
        """Whether it holds in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def count(self, what: str) -> None:
        """After a fault: how long until the live count is the switch's."""
        client = self.client
        connected = await self.until(lambda: client.edge.status().connected)
        began = time.monotonic()
        await self.child.do("rate", rate=0)
        said = await self.child.do("ask")
        right = await self.until(lambda: client.live == said["live"], 2 * self.wanted.heartbeat)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if not (connected and right):
            self.wrong.append(f"{what}: {client.live} instead of {said['live']}")
        await self.child.do("rate", rate=self.wanted.calls)

    def claim_counts(self, what: str) -> None:
        """Claim what `count` saw since the last time."""
        within = self.slowest <= self.wanted.heartbeat and not self.wrong
        self.result.claim(
            f"{what}: live counts are the switch's within one heartbeat",
            within,
            f"{self.slowest:.2f} s at most{''.join('; ' + words for words in self.wrong[:3])}",
        )
        self.slowest, self.wrong = 0.0, []

    async def restart(self, number: int) -> None:
        """Calls, then an end in the middle of them."""
        edge = self.client.edge
        await asyncio.sleep(self.wanted.seconds)
        connected = edge.counters["connected"]
        await self.child.do("restart", kill=number % 2 == 0, down=0.05)
        if not await self.until(lambda: edge.counters["connected"] > connected):
            self.wrong.append(f"restart {number}: not connected again")
        await self.count(f"restart {number}")

    def kept(self) -> tuple[float, int, int]:
        """Resident megabytes, descriptors, tasks."""
        gc.collect()
        release_memory()
        memory = lab.resident(os.getpid())[0] / 2**20
        return memory, lab.descriptors(os.getpid()), len(asyncio.all_tasks())

    async def all(self) -> None:
        """One fault after the other."""
        wanted, result, client = self.wanted, self.result, self.client
        edge = client.edge
        tasks = [asyncio.create_task(edge.run()), asyncio.create_task(client.tick())]
        try:
            result.claim("connected", await self.until(lambda: edge.status().connected))
            half = wanted.restarts // 2
            for number in range(half):
                await self.restart(number)
            before = self.kept()
            for number in range(half, wanted.restarts):
                await self.restart(number)
            after = self.kept()
            self.claim_counts(f"{wanted.restarts} restarts under load")
            restarts = edge.counters["restarts"]
            result.claim("every restart was told", restarts == wanted.restarts, restarts)
            self.claim_same("restarts", before, after)

            await self.silence("silent peer", "silent", "resume")
            await self.silence("half-open TCP", "vanish", "ask")
            await self.big()
            await self.queued()
            await self.leave()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        result.claim("nothing raised", edge.errors == 0, edge.errors)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        result.claim("no task is left", not left, len(left))
        result.note(
            events=edge.status().events,
            received_mb=round(edge.status().received_bytes / 2**20, 1),
            reconnects=edge.status().reconnects,
            records=client.records,
            counters=dict(edge.counters),
        )

    def claim_same(
        self, what: str, before: tuple[float, int, int], after: tuple[float, int, int]
    ) -> None:
        """Claim that nothing leaked."""
        grown = after[0] - before[0]
        self.result.claim(
            f"{what}: memory grew by less than {self.wanted.growth_mb:g} MB",
            grown < self.wanted.growth_mb,
            f"{before[0]:.0f} to {after[0]:.0f} MB",
        )
        self.result.claim(
            f"{what}: descriptors and tasks are as before",
            after[1:] == before[1:],
            f"{before[1:]} and {after[1:]}",
        )

    async def silence(self, what: str, begin: str, end: str) -> None:
        """Nothing comes any more, and no end either."""
        edge = self.client.edge
        closed = edge.counters["silent"]
        began = time.monotonic()
        await self.child.do(begin)
        heard = await self.until(lambda: edge.counters["silent"] > closed)
        took = time.monotonic() - began
        await self.child.do(end)
        self.result.claim(
            f"{what}: closed after the time of silence",
            heard and took < 2 * edge.heartbeat_seconds,
            f"{took:.1f} s, when nothing came for {edge.heartbeat_seconds:g} s or a quarter more",
        )
        await self.count(what)
        self.claim_counts(what)

    async def big(self) -> None:
        """2 MB in one event."""
        client = self.client
        connected = client.edge.counters["connected"]
        await self.child.do("big", size=2 * 2**20)
        heard = await self.until(lambda: client.big == 2)
        same = client.edge.counters["connected"] == connected
        self.result.claim("an event of 2 MB is heard, and the connection stays", heard and same)

    async def queued(self) -> None:
        """As many events as FreeSWITCH queues; then more, after which it ends the connection."""
        client, wanted = self.client, self.wanted
        edge = client.edge
        await self.child.do("rate", rate=0)
        client.legs.handle_timer(asyncio.get_running_loop().time())
        before = self.kept()
        connected, bridges = edge.counters["connected"], client.bridges
        longest = 0.0

        async def others() -> None:
            nonlocal longest
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - began)

        ticker = asyncio.create_task(others())
        began = time.monotonic()
        await self.child.do("queue", count=wanted.queued)
        heard = await self.until(lambda: client.bridges - bridges >= wanted.queued, 10 * LIMIT)
        took = time.monotonic() - began
        ticker.cancel()
        await asyncio.wait({ticker})
        self.result.claim(
            f"{wanted.queued} queued events: all are heard on one connection",
            heard
            and client.bridges - bridges == wanted.queued
            and edge.counters["connected"] == connected,
            f"{client.bridges - bridges} in {took:.1f} s",
        )
        self.result.note(longest_turn_ms=round(longest * 1000, 1))
        self.claim_same("queued events", before, self.kept())
        await self.count("queued events")
        self.claim_counts("queued events")

    async def leave(self) -> None:
        """All calls end: nothing may be live any more."""
        await self.child.do("rate", rate=0)
        await self.child.do("end_calls")
        client = self.client
        began = time.monotonic()
        none = await self.until(lambda: client.live == 0 and client.legs.live(NAME) == 0)
        self.result.claim(
            "at the end no leg is live, nor taken for it",
            none,
            f"{client.live}, {client.legs.live(NAME)} after {time.monotonic() - began:.1f} s",
        )


def run(wanted: argparse.Namespace) -> Result:
    """Every fault once, restarts many times."""
    result = Result(f"freeswitch: {wanted.restarts} restarts, {wanted.queued} queued events")
    with lab.Lab(disk_gb=0.1, memory_gb=1 + wanted.queued / 100_000) as here:
        child = Child(wanted, here.folder / "switch.log")
        try:

            async def main() -> None:
                said = await child.read()
                await Run(wanted, result, child, said["port"]).all()

            uvloop.run(main())
        finally:
            child.end()
            words = lab.tail(here.folder / "switch.log")
            if words:
                progress(words)
    return result


main = command(parser(), run)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(**json.loads(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
