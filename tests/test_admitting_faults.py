"""Bugs in admission: what they cost, and what goes on all the same."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from listeners import until
from sipsidecar import admitting, guarding
from sipsidecar.admitting import Admitting, NotAtWorkError
from sipsidecar.config import AdmissionSettings, Config
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals import telling
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.decisions import ADMIT, Ask, PushState
from sipsidecar.signals.rules import Rule

FULL = Rule(name="full", measure="calls", limit=5)


class Switch:
    """A switch that is told, and counts how often."""

    def __init__(self) -> None:
        self.shown = 0
        self.running = False
        self.runs = 0
        self.bug: Exception | None = None

    def show(self, *_: object) -> None:
        self.shown += 1

    async def run(self) -> None:
        self.runs += 1
        self.running = True
        try:
            if self.bug is not None:
                raise self.bug
            await asyncio.Event().wait()
        finally:
            self.running = False

    def status(self) -> PushState:
        return PushState(name="fs1", kind="freeswitch", up=self.running)


class World:
    """An admission whose figures a test can break."""

    def __init__(self) -> None:
        self.switch = Switch()
        self.bug: Exception | None = None
        self.looks = 0
        self.pipeline = Pipeline()
        board: Any = SimpleNamespace(pushes=(self.switch,), name_of=lambda _: "")
        self.one = Admitting(
            Config(admission=AdmissionSettings(rules=(FULL,))),
            Cohorts(),
            self.pipeline,
            board,
            self._figures,
        )

    def _figures(self) -> Any:
        self.looks += 1
        if self.bug is not None:
            raise self.bug
        storage = SimpleNamespace(queue_bytes=0, queue_limit_bytes=1, up=True)
        return SimpleNamespace(storage=storage, loop_lag_seconds=0.0, switches=())

    def ask(self, call_id: str) -> str:
        return self.one.ask(Ask(call_id=call_id)).verdict


@contextlib.asynccontextmanager
async def working() -> AsyncIterator[World]:
    world = World()
    tasks = world.one.tasks()
    try:
        yield world
        assert not any(task.done() for task in tasks), "the sidecar would have ended"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.one.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitting, "EVERY", 0.005)
    monkeypatch.setattr(guarding, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(guarding, "LONGEST_PAUSE", 0.02)


async def test_rules_that_cannot_be_read_leave_switches_to_themselves_until_they_can_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with working() as world:
        await until(lambda: world.switch.running)
        assert world.ask("a") == ADMIT
        world.bug = RuntimeError("a bug")
        await until(lambda: world.one.faults >= 3)
        assert not world.switch.running, "it would hold what it was told last"
        with pytest.raises(NotAtWorkError):
            world.ask("b")
        world.bug = None
        await until(lambda: world.switch.running)
        assert world.ask("c") == ADMIT
        assert world.one.status()["faults"] == world.one.figures().faults >= 3
    said = [one for one in caplog.records if one.getMessage() == "admission: the rules failed"]
    assert len(said) == 1
    assert said[0].exc_info is not None


async def test_a_bug_in_telling_one_switch_is_of_that_one_alone() -> None:
    async with working() as world:
        world.switch.bug = RuntimeError("a bug")
        await until(lambda: world.switch.runs >= 3)
        looks = world.looks
        await until(lambda: world.looks > looks)
        assert world.ask("a") == ADMIT
        world.switch.bug = None
        await until(lambda: world.switch.running)


async def test_a_bug_in_a_turn_costs_that_turn_of_admission_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.pipeline, "moves", fail)
    assert world.one.after_turn([], [], 1.0) == []
    assert world.one.faults == 1
    monkeypatch.undo()
    assert world.one.after_turn([], [], 1.0) == []
    assert world.one.faults == 1


async def test_a_bug_in_what_is_told_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(telling, "denials", fail)
    assert world.ask("a") == ADMIT
    assert world.one.faults == 1


async def test_telling_takes_a_bounded_part_of_the_time_and_the_last_change_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    found = telling.denials

    def slowly(*given: Any) -> Any:
        time.sleep(0.004)
        return found(*given)

    monkeypatch.setattr(telling, "denials", slowly)
    world.one.drain("global", "")
    assert world.switch.shown == 1, "the first one at once"
    for _ in range(20):
        world.one.resume("global", "")
        world.one.drain("global", "")
    assert world.switch.shown == 1
    await until(lambda: world.switch.shown == 2)
    assert world.one._telling is None
    world.one.resume("global", "")
    assert world.one._telling is not None
    await world.one.close()
