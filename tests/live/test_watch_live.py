"""Trunks that fail in four ways before a real Kamailio: one incident of each, and none of the one that is well.

The sidecar runs in this process with a clock that is forty times as fast: an incident is over only
when its trunk was well for ten minutes. In real time, each way by itself, and with a trunk that is
silent and own OPTIONS: `watchlab` (make live-watch).
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from live.evapi import need_module
from live.programs import free_port, need, until
from live.trunklab import Exchange, Hook, Stack, settings, stack
from live.watchlab import past, teach_database
from sipsidecar import app, config, watching
from sipsidecar.signals.traffic import Traffic, TrafficSettings

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(180)]

SPEED = 40
PER_SECOND = 55.0
"""Of real ones; each trunk has a fifth, and what others pass on: over fifteen in a fast minute."""
ARMED = 60
"""Calls that teach what is normal of a trunk; 200 would take half a minute."""
TRUNKS = {
    "errs": "5xx",
    "slow": "pdd",
    "squeezed": "codec-change",
    "open": "transport-downgrade",
    "well": "",
}
"""By what becomes of them."""
USUAL_MS = 1000.0
"""PDD that the past has. It is less, but of so few calls one that had to wait for its turn on a busy
machine is the 95th percentile."""
LIMIT = 60.0
"""Seconds for all to be told, or cleared."""


class Clock:
    """A clock that is so many times as fast; microseconds UTC."""

    def __init__(self) -> None:
        self._began = time.time_ns() // 1000
        self._origin = time.monotonic_ns()

    def __call__(self) -> int:
        return self._began + SPEED * (time.monotonic_ns() - self._origin) // 1000


@contextlib.contextmanager
def sidecar(path: Path, flags: dict[str, object]) -> Iterator[app.Sidecar]:
    """A sidecar in a thread with its own loop."""
    made: list[app.Sidecar] = []
    failed: list[BaseException] = []
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        one = app.Sidecar(config.load(path, {}, flags).config)
        await one.start()
        made.append(one)
        ready.set()
        stopped = asyncio.Event()
        asyncio.get_running_loop().run_in_executor(None, stop.wait).add_done_callback(
            lambda _: stopped.set()
        )
        await one.run_until(stopped)
        await one.drain()

    def begin() -> None:
        try:
            uvloop.run(run())
        except BaseException as error:  # noqa: BLE001 -- it is for the test's own thread
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=begin)
    thread.start()
    try:
        assert ready.wait(60)
        assert not failed, failed
        yield made[0]
    finally:
        stop.set()
        thread.join(60)
    assert not failed, failed


@dataclass
class Story:
    """What was told of trunks that failed and were mended."""

    at: Stack
    notices: list[dict[str, Any]]
    """In their order."""
    early: int
    """Notices before anything failed."""
    incidents: list[dict[str, Any]]
    told_after: dict[str, float]
    """Seconds by trunk, of the real clock."""
    cleared_after: dict[str, float]

    def of(self, trunk: str) -> list[dict[str, Any]]:
        return [body for body in self.notices if body["trunk"] == trunk]


@pytest.fixture
def story(tmp_path: Path, database: str) -> Iterator[Story]:
    need_module("tls", "kamailio-tls-modules")
    need("sipp", "sip-tester")
    clock = Clock()
    hep = f"127.0.0.1:{free_port()}"
    with (
        pytest.MonkeyPatch.context() as patch,
        Exchange() as exchange,
        Hook() as hook,
        stack(tmp_path / "kamailio", exchange, list(TRUNKS), ["open"], hep=hep) as at,
    ):
        patch.setattr(app, "Watching", functools.partial(watching.Watching, wall_us=clock))
        patch.setattr(watching, "EVERY", watching.EVERY / 20)
        patch.setattr(watching, "STALLED", watching.STALLED * SPEED)
        armed = TrafficSettings(arm_calls=ARMED)
        patch.setattr(watching, "Traffic", functools.partial(Traffic, settings=armed))
        hours = past(at.trunks, PER_SECOND / SPEED, clock(), USUAL_MS)
        asyncio.run(teach_database(database, hours))
        path = settings(at, f"{hook.url}/x", clear_seconds=60, peers=False)
        flags = {"hep.listen": hep, "http.listen": "127.0.0.1:0", "database.dsn": database}
        with sidecar(path, dict(flags)) as one, at.calling(PER_SECOND) as callers:
            time.sleep(2 * ARMED * len(TRUNKS) / PER_SECOND)
            early = len(hook.told)
            trunks = at.trunks
            for each in trunks.values():
                each.broken = True
            broken_at = time.time()
            trunks["errs"].failing = True
            trunks["slow"].rings_after = 2.5
            trunks["squeezed"].codec = "G729"
            at.downgrade("open")

            def told(what: str) -> dict[str, float]:
                found: dict[str, float] = {}
                for seen_at, body in hook.at("/x"):
                    if body["what"] == what:
                        found.setdefault(str(body["trunk"]), seen_at)
                return found

            def all_told(what: str) -> bool | None:
                return told(what).keys() >= TRUNKS.keys() - {"well"} or None

            until(hook, lambda: all_told("opened"), LIMIT, callers, every=0.1)
            time.sleep(1.5)
            trunks["errs"].failing = False
            trunks["slow"].rings_after = 0.05
            trunks["squeezed"].codec = "PCMA"
            at.upgrade("open")
            for each in trunks.values():
                each.broken = False
            mended_at = time.time()
            until(hook, lambda: all_told("cleared"), LIMIT, callers, every=0.1)
            time.sleep(1)
            assert one._watching is not None
            watch = one._watching
            assert not watch.faults
            # Before the callers stop: that is an incident, too.
            whole = Story(
                at,
                [body for _, body in hook.at("/x")],
                early,
                watch.incidents(every=True),
                {trunk: when - broken_at for trunk, when in told("opened").items()},
                {trunk: when - mended_at for trunk, when in told("cleared").items()},
            )
        yield whole


def test_trunks_that_fail_at_once_in_four_ways_are_one_incident_each_told_once_and_cleared_once(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        for body in story.notices:
            print(f"\n{body['what']}: {body['summary']}", end="")
        print(f"\ntold after {story.told_after}, cleared after {story.cleared_after} s")
    assert not story.early
    found = {one["trunk"]: one["category"] for one in story.incidents}
    assert found == {trunk: category for trunk, category in TRUNKS.items() if category}
    assert len(story.incidents) == len(found)
    for trunk, category in TRUNKS.items():
        said = Counter(body["what"] for body in story.of(trunk))
        assert said["opened"] == said["cleared"] == bool(category)
    for body in story.notices:
        assert body["evidence"]
        named = set(body["call_ids"])
        assert named
        assert named <= story.at.trunks[body["trunk"]].troubled
